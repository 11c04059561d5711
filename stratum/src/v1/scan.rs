//! The general scanner: one pass over a line of any key order and spacing, no allocation, no copy.
//!
//! It takes the flat lines that miners write (printable ASCII, no escapes, params an array of scalars) and gives up on everything else, valid or not: `None` means
//! "ask `slow`", never "refused". What it takes, `slow` takes with the same result; the differential tests and the fuzz target `v1_line` hold that.
use super::marks::{BLOCK, plain_quotes};
use super::request::{IdToken, Method, Param, Request};
use std::ops::Range;

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
    let request = Request { id: Some(IdToken::NULL), method: Method::Missing, params: [Param::Null; Request::PARAMS_MAX], params_count: 0 };
    // One value for all ends, so that it is written where the caller wants it; it is some 200 bytes.
    let mut found = Some(request);
    if let Some(request) = &mut found
        && fill(line, request, note).is_none()
    {
        found = None;
    }
    found
}

#[inline(always)]
fn fill<'a>(line: &'a [u8], request: &mut Request<'a>, note: &mut impl Note) -> Option<()> {
    let mut cursor = Cursor { bytes: line, at: 0, block: 0, quotes: plain_quotes_of(line, 0)? };
    let (mut id_seen, mut method_seen, mut params_seen) = (false, false, false);
    cursor.blanks();
    cursor.expect(b'{')?;
    cursor.blanks();
    loop {
        let key = cursor.string()?;
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
                request.method = Method::from_name(cursor.string()?);
            }
            b"params" if !params_seen => {
                params_seen = true;
                cursor.params(request, note)?;
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
    (cursor.at == line.len()).then_some(())
}

/// Quotes of the block that begins at `from`, the last of which may be cut short by the end of the line; None when anything in it is left to the slow tier.
///
/// Not part of every string, or the code of the scanner would be three times as long; nor a method of the cursor, which is to stay in registers.
#[inline(never)]
fn plain_quotes_of(line: &[u8], from: usize) -> Option<u64> {
    let rest = line.get(from..)?;
    if let Some(block) = rest.first_chunk::<BLOCK>() {
        return plain_quotes(block);
    }
    if let Some(block) = line.last_chunk::<BLOCK>() {
        // Some of these are looked at twice: cheaper than a copy. A shift by all bits would be by none; no line that needs it has an end to find.
        return plain_quotes(block).map(|quotes| quotes.checked_shr((BLOCK - rest.len()) as u32).unwrap_or(0));
    }
    let mut block = [b' '; BLOCK];
    block[..rest.len()].copy_from_slice(rest);
    plain_quotes(&block)
}

/// Over a line, in which it knows where the next quotes stand. That every block up to the last quote is plain is what strings may be made of; what is not in strings
/// is looked at byte by byte.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Where the block begins that `quotes` is of.
    block: usize,
    /// Those that were not passed.
    quotes: u64,
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
        if let Some(token) = IdToken::of_digits(self.bytes, self.at) {
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

    /// The place of the next quote, which is passed.
    #[inline(always)]
    fn quote(&mut self) -> Option<usize> {
        while self.quotes == 0 {
            self.block += BLOCK;
            self.quotes = plain_quotes_of(self.bytes, self.block)?;
        }
        let place = self.block + self.quotes.trailing_zeros() as usize;
        self.quotes &= self.quotes - 1;
        Some(place)
    }

    /// The string that begins here, without its quotes.
    #[inline(always)]
    fn string(&mut self) -> Option<&'a [u8]> {
        // Nothing but strings has quotes, so that those before this place have all been passed.
        let start = self.quote()?;
        if start != self.at {
            return None;
        }
        let end = self.quote()?;
        self.at = end + 1;
        self.bytes.get(start + 1..end)
    }

    /// A string, number, true, false or null.
    #[inline(always)]
    fn scalar(&mut self) -> Option<Param<'a>> {
        match self.peek()? {
            b'"' => self.string().map(Param::Text),
            b'-' | b'0'..=b'9' => {
                let start = self.at;
                self.at = number_end(self.bytes, start)?;
                self.bytes.get(start..self.at).map(Param::Number)
            }
            b't' => self.literal(b"true", Param::Bool(true)),
            b'f' => self.literal(b"false", Param::Bool(false)),
            b'n' => self.literal(b"null", Param::Null),
            _ => None,
        }
    }

    #[inline(always)]
    fn literal(&mut self, text: &[u8], value: Param<'a>) -> Option<Param<'a>> {
        self.bytes.get(self.at..)?.starts_with(text).then(|| self.at += text.len())?;
        Some(value)
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
            let slot = request.params.get_mut(request.params_count as usize);
            // Each is written where it stays: one that was put together elsewhere and copied at once would wait for its pieces to be stored.
            if self.peek()? == b'"' {
                let text = self.string()?;
                if let Some(slot) = slot {
                    *slot = Param::Text(text);
                }
            } else {
                let value = self.scalar()?;
                if let Some(slot) = slot {
                    *slot = value;
                }
            }
            note.param(request.params_count, start..self.at);
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

/// The end of the number that begins at `start`: an integer or a decimal fraction by JSON's grammar; exponents are left to the slow tier.
#[inline(never)]
fn number_end(bytes: &[u8], start: usize) -> Option<usize> {
    let digits_end = |from: usize| from + bytes.get(from..).unwrap_or_default().iter().take_while(|byte| byte.is_ascii_digit()).count();
    let whole = start + usize::from(bytes.get(start) == Some(&b'-'));
    let mut end = digits_end(whole);
    if end == whole || (end > whole + 1 && bytes.get(whole) == Some(&b'0')) {
        return None;
    }
    if bytes.get(end) == Some(&b'.') {
        let fraction = end + 1;
        end = digits_end(fraction);
        if end == fraction {
            return None;
        }
    }
    (!matches!(bytes.get(end), Some(b'e' | b'E'))).then_some(end)
}
