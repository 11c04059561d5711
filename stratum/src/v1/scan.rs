//! The general scanner: one pass over a line of any key order and spacing, no allocation, no copy.
//!
//! It takes the flat lines that miners write (printable ASCII, no escapes, params an array of scalars) and gives up on everything else, valid or not: `None` means
//! "ask `slow`", never "refused". What it takes, `slow` takes with the same result; the differential tests and the fuzz target `v1_line` hold that.
use super::request::{IdToken, Method, Param, Request};
use std::ops::Range;

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// Told where in the line the parts of a request stand.
pub(super) trait Note {
    /// The id, quotes included.
    fn id(&mut self, place: Range<usize>);
    /// An element of params, quotes included.
    fn param(&mut self, index: u32, place: Range<usize>);
}

impl Note for () {
    #[inline(always)]
    fn id(&mut self, _: Range<usize>) {}

    #[inline(always)]
    fn param(&mut self, _: u32, _: Range<usize>) {}
}

/// Takes a line apart, or gives it up to the slow tier.
pub fn scan(line: &[u8]) -> Option<Request<'_>> {
    scan_noting(line, &mut ())
}

/// The same, telling `note` where the parts stand.
#[inline(always)]
pub(super) fn scan_noting<'a>(line: &'a [u8], note: &mut impl Note) -> Option<Request<'a>> {
    if !is_plain(line) {
        return None;
    }
    let mut cursor = Cursor { bytes: line, at: 0 };
    let mut request =
        Request { id: Some(IdToken::NULL), method: Method::Missing, params: [Param::Null; Request::PARAMS_MAX], params_count: 0 };
    let (mut id_seen, mut method_seen, mut params_seen) = (false, false, false);
    cursor.blanks();
    cursor.expect(b'{')?;
    cursor.blanks();
    loop {
        cursor.expect(b'"')?;
        let key = cursor.string_body()?;
        cursor.blanks();
        cursor.expect(b':')?;
        cursor.blanks();
        match key {
            b"id" if !id_seen => {
                id_seen = true;
                let start = cursor.at;
                request.id = cursor.id()?;
                note.id(start..cursor.at);
            }
            b"method" if !method_seen => {
                method_seen = true;
                cursor.expect(b'"')?;
                request.method = Method::from_name(cursor.string_body()?);
            }
            b"params" if !params_seen => {
                params_seen = true;
                cursor.params(&mut request, note)?;
            }
            // A repeated key, or the answer to a request of ours: rare enough for the slow tier to decide.
            b"id" | b"method" | b"params" | b"result" | b"error" => return None,
            _ => {
                cursor.scalar()?;
            }
        }
        cursor.blanks();
        match cursor.next()? {
            b',' => cursor.blanks(),
            b'}' => break,
            _ => return None,
        }
    }
    cursor.blanks();
    (cursor.at == line.len()).then_some(request)
}

/// True when all bytes are printable ASCII (or DEL) and none is a backslash: what strings may be made of, and what leaves the space as the only blank. One look
/// at every byte here saves three of four at those of strings.
#[inline(always)]
fn is_plain(line: &[u8]) -> bool {
    #[inline(always)]
    fn mark(odd: &mut [u8; 16], chunk: &[u8; 16]) {
        for (odd, &byte) in odd.iter_mut().zip(chunk) {
            // Bytes past ASCII are negative.
            *odd |= u8::from((byte as i8) < 0x20) | u8::from(byte == b'\\');
        }
    }
    let mut odd = [0; 16];
    let (chunks, rest) = line.as_chunks::<16>();
    chunks.iter().for_each(|chunk| mark(&mut odd, chunk));
    match line.last_chunk::<16>() {
        // Some of these are looked at twice: cheaper than one at a time.
        Some(last) => mark(&mut odd, last),
        None => return rest.iter().all(|byte| matches!(byte, 0x20..=0x5b | 0x5d..=0x7f)),
    }
    odd == [0; 16]
}

/// Over a line that `is_plain`.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    #[inline(always)]
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    #[inline(always)]
    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    #[inline(always)]
    fn expect(&mut self, wanted: u8) -> Option<()> {
        (self.next()? == wanted).then_some(())
    }

    #[inline(always)]
    fn blanks(&mut self) {
        while self.peek() == Some(b' ') {
            self.at += 1;
        }
    }

    /// An id: as it is echoed, or None where it cannot be.
    #[inline(always)]
    fn id(&mut self) -> Option<Option<IdToken>> {
        if let Some(token) = IdToken::of_digits(self.bytes.get(self.at..)?) {
            let end = self.at + token.as_bytes().len();
            if !matches!(self.bytes.get(end), Some(b'0'..=b'9' | b'.' | b'e' | b'E')) {
                self.at = end;
                return Some(Some(token));
            }
        }
        let start = self.at;
        let value = self.scalar()?;
        let raw = self.bytes.get(start..self.at)?;
        Some(if matches!(value, Param::Bool(_)) { None } else { IdToken::new(raw) })
    }

    /// The bytes up to the closing quote, which is passed. The opening quote is behind us.
    #[inline(always)]
    fn string_body(&mut self) -> Option<&'a [u8]> {
        let start = self.at;
        // Eight bytes at a time. The test marks the high bit of every quote; borrows can mark bytes above one, but the lowest mark is used.
        while let Some(chunk) = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<8>()) {
            let quote = u64::from_le_bytes(*chunk) ^ (ONES * b'"' as u64);
            let hits = quote.wrapping_sub(ONES) & !quote & HIGHS;
            if hits != 0 {
                self.at += (hits.trailing_zeros() / 8) as usize;
                return self.close_string(start);
            }
            self.at += 8;
        }
        while self.peek().is_some_and(|byte| byte != b'"') {
            self.at += 1;
        }
        self.close_string(start)
    }

    #[inline(always)]
    fn close_string(&mut self, start: usize) -> Option<&'a [u8]> {
        let body = self.bytes.get(start..self.at)?;
        self.expect(b'"')?;
        Some(body)
    }

    /// A string, number, true, false or null.
    #[inline(always)]
    fn scalar(&mut self) -> Option<Param<'a>> {
        match self.peek()? {
            b'"' => {
                self.at += 1;
                self.string_body().map(Param::Text)
            }
            b'-' | b'0'..=b'9' => self.number(),
            b't' => self.literal(b"true", Param::Bool(true)),
            b'f' => self.literal(b"false", Param::Bool(false)),
            b'n' => self.literal(b"null", Param::Null),
            _ => None,
        }
    }

    fn literal(&mut self, text: &[u8], value: Param<'a>) -> Option<Param<'a>> {
        self.bytes.get(self.at..)?.starts_with(text).then(|| self.at += text.len())?;
        Some(value)
    }

    /// An integer or a decimal fraction by JSON's grammar; exponents are left to the slow tier.
    #[inline]
    fn number(&mut self) -> Option<Param<'a>> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        let whole = self.digits();
        if whole == 0 || (whole > 1 && self.bytes.get(self.at - whole) == Some(&b'0')) {
            return None;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            if self.digits() == 0 {
                return None;
            }
        }
        if let Some(b'e' | b'E') = self.peek() {
            return None;
        }
        Some(Param::Number(self.bytes.get(start..self.at)?))
    }

    #[inline]
    fn digits(&mut self) -> usize {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        self.at - start
    }

    #[inline(always)]
    fn params(&mut self, request: &mut Request<'a>, note: &mut impl Note) -> Option<()> {
        self.expect(b'[')?;
        self.blanks();
        if self.peek()? == b']' {
            self.at += 1;
            return Some(());
        }
        loop {
            let start = self.at;
            let value = self.scalar()?;
            note.param(request.params_count, start..self.at);
            if let Some(slot) = request.params.get_mut(request.params_count as usize) {
                *slot = value;
            }
            // A line that overflowed the count would be over 8 GiB long.
            request.params_count = request.params_count.saturating_add(1);
            self.blanks();
            match self.next()? {
                b',' => self.blanks(),
                b']' => return Some(()),
                _ => return None,
            }
        }
    }
}
