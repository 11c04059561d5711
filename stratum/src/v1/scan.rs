//! The general scanner: one pass over a line of any key order and spacing, no allocation, no copy.
//!
//! It takes the flat lines that miners write (ASCII, no escapes, params an array of scalars) and gives up on everything else, valid or not: `None` means
//! "ask `slow`", never "refused". What it takes, `slow` takes with the same result; the differential tests and the fuzz target `v1_line` hold that.
use super::request::{IdToken, Method, Param, Request};

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// Takes a line apart, or gives it up to the slow tier.
pub fn scan(line: &[u8]) -> Option<Request<'_>> {
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
                let value = cursor.scalar()?;
                let raw = line.get(start..cursor.at)?;
                request.id = if matches!(value, Param::Bool(_)) { None } else { IdToken::new(raw) };
            }
            b"method" if !method_seen => {
                method_seen = true;
                cursor.expect(b'"')?;
                request.method = Method::from_name(cursor.string_body()?);
            }
            b"params" if !params_seen => {
                params_seen = true;
                cursor.params(&mut request)?;
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
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.peek() {
            self.at += 1;
        }
    }

    /// The bytes up to the closing quote, which is passed; gives up at escapes, control characters and bytes past ASCII. The opening quote is behind us.
    #[inline(always)]
    fn string_body(&mut self) -> Option<&'a [u8]> {
        let start = self.at;
        // Eight bytes at a time. Each test marks the high bit of the bytes it hits; borrows can mark too much, but only above a true hit, and the lowest is used.
        while let Some(chunk) = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<8>()) {
            let word = u64::from_le_bytes(*chunk);
            let quote = word ^ (ONES * b'"' as u64);
            let backslash = word ^ (ONES * b'\\' as u64);
            let hits = ((quote.wrapping_sub(ONES) & !quote)
                | (backslash.wrapping_sub(ONES) & !backslash)
                | (word.wrapping_sub(ONES * 0x20) & !word)
                | word)
                & HIGHS;
            if hits != 0 {
                self.at += (hits.trailing_zeros() / 8) as usize;
                return self.close_string(start);
            }
            self.at += 8;
        }
        while let Some(0x20..=0x21 | 0x23..=0x5b | 0x5d..=0x7f) = self.peek() {
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
    fn params(&mut self, request: &mut Request<'a>) -> Option<()> {
        self.expect(b'[')?;
        self.blanks();
        if self.peek()? == b']' {
            self.at += 1;
            return Some(());
        }
        loop {
            let value = self.scalar()?;
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
