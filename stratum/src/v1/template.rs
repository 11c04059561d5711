//! The template tier: a submit that differs from an earlier one of its connection in nothing but worker, id and hex digits needs no parsing, only comparing.
//!
//! A [`Shape`] is what one submit teaches: the bytes that stay, and where worker, id, job, extranonce2, ntime, nonce and version bits stand between them. Worker and
//! id may be of any length, so that proxies that interleave workers and ids that grow a digit still match. A few dozen shapes serve all connections of a net
//! ([`Shapes`]); a connection keeps the number of its own. What does not match costs a comparison of eight bytes or so and goes to `scan`.
//!
//! A line that matches is valid JSON with the meaning of the one that taught the shape: every byte of it either equals that line's, or is a hex digit in a string, a
//! digit of the id, or part of a worker's name or a quoted id, which have neither quotes, backslashes nor control characters. For the same reason no line feed can
//! be among them but the last byte: a match needs no search for the end of the line.
use super::claim::{Claim, number_of_bytes, sending_of};
use super::request::{IdToken, Method, Param, Request};
use super::scan;
use super::workers::Workers;
use otedama_primitives::hex_word;
use std::ops::Range;

/// Bytes of a line that stay, at most; longer ones are left to `scan`.
const FIXED_BYTES_MAX: usize = 320;
/// Longest line that a shape can match: what stays, a name and an id. Shorter than any limit on lines.
pub const LINE_BYTES_MAX: usize = FIXED_BYTES_MAX + otedama_primitives::WorkerName::BYTES_MAX + IdToken::BYTES_MAX;

/// Eight bytes of a line under a mask.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Word {
    /// From the start of its run; negative where a short last run is compared together with digits before it.
    offset: i16,
    expected: u64,
    mask: u64,
}

/// Sixteen bytes of a line under a mask.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Chunk {
    expected: [u8; 16],
    mask: [u8; 16],
}

/// Bytes between two places of variable length: what stays, with hex fields of a fixed length in it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Run {
    bytes: usize,
    /// From its start on, without a gap.
    chunks: Box<[Chunk]>,
    /// What is left at its end.
    words: Box<[Word]>,
}

/// What may have any length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Gap {
    /// A worker's name, up to the quote.
    Worker,
    /// An id of digits.
    Number,
    /// An id in quotes, which belong to it.
    Quoted,
}

/// Where a hex field stands: from the start of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Field {
    run: u8,
    offset: u16,
}

/// What one submit teaches about those of its kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shape {
    runs: [Run; 3],
    /// After the first run and after the second; without a number or a string for an id the third run is empty.
    gaps: [Option<Gap>; 2],
    job: Field,
    /// The job has two more digits: which sending it was.
    job_has_sending: bool,
    extranonce2: Field,
    extranonce2_bytes: u8,
    ntime: Field,
    nonce: Field,
    version: Option<Field>,
}

/// Where the scanner found the parts of a line.
#[derive(Default)]
struct Places {
    /// Blanks before what was scanned.
    shift: usize,
    id: Range<usize>,
    params: [Range<usize>; Places::PARAMS],
}

impl Places {
    const PARAMS: usize = 6;

    /// A text without its quotes.
    fn text(&self, param: usize) -> Range<usize> {
        let place = &self.params[param];
        place.start + 1..place.end - 1
    }
}

impl scan::Note for Places {
    fn id(&mut self, place: Range<usize>) {
        self.id = place.start + self.shift..place.end + self.shift;
    }

    fn param(&mut self, index: u32, place: Range<usize>) {
        if let Some(slot) = self.params.get_mut(index as usize) {
            *slot = place.start + self.shift..place.end + self.shift;
        }
    }
}

impl Shape {
    /// What `line`, its line feed included, teaches; None when it is no submit or has something unusual in it.
    pub fn learn(line: &[u8]) -> Option<Self> {
        let body = line.strip_suffix(b"\n")?;
        let scanned = body.trim_ascii();
        let mut places = Places { shift: body.len() - body.trim_ascii_start().len(), ..Places::default() };
        let request = scan::scan_noting(scanned, &mut places)?;
        if request.method != Method::Submit || request.params_count < 5 {
            return None;
        }
        let text = |index: usize| if let Param::Text(text) = request.params[index] { Some(text) } else { None };
        let id = id_gap(&request, body, &places.id)?;
        let (job, extranonce2, ntime, nonce) = (text(1)?, text(2)?, text(3)?, text(4)?);
        let sized =
            matches!(job.len(), 8 | 10) && matches!(extranonce2.len(), 8 | 10 | 12 | 14 | 16) && ntime.len() == 8 && nonce.len() == 8;
        let rolls = match request.params[5] {
            Param::Null => false,
            Param::Text(version) if version.len() == 8 => true,
            _ => return None,
        };
        if !sized || text(0).is_none() {
            return None;
        }

        let mut fixed = vec![0xff; line.len()];
        let mut clear = |place: Range<usize>| fixed[place].fill(0);
        (1..5 + usize::from(rolls)).for_each(|param| clear(places.text(param)));
        let mut gaps = vec![(places.text(0), Gap::Worker)];
        gaps.extend(id.map(|gap| (places.id.clone(), gap)));
        gaps.sort_by_key(|(place, _)| place.start);
        gaps.iter().for_each(|(place, _)| clear(place.clone()));

        let ends = gaps.iter().map(|(place, _)| place.start).chain([line.len()]);
        let starts = [0].into_iter().chain(gaps.iter().map(|(place, _)| place.end));
        let spans: Vec<Range<usize>> = starts.zip(ends).map(|(start, end)| start..end).collect();
        if spans.iter().map(Range::len).sum::<usize>() > FIXED_BYTES_MAX {
            return None;
        }
        let field = |param: usize| {
            let at = places.text(param).start;
            let run = spans.iter().position(|span| span.contains(&at))?;
            Some(Field { run: run as u8, offset: (at - spans[run].start) as u16 })
        };
        let mut runs = [Run::default(), Run::default(), Run::default()];
        for (run, span) in runs.iter_mut().zip(&spans) {
            *run = Run { bytes: span.len(), chunks: chunks(line, &fixed, span), words: words(line, &fixed, span) };
        }
        Some(Self {
            runs,
            gaps: [gaps.first().map(|gap| gap.1), gaps.get(1).map(|gap| gap.1)],
            job: field(1)?,
            job_has_sending: job.len() == 10,
            extranonce2: field(2)?,
            extranonce2_bytes: (extranonce2.len() / 2) as u8,
            ntime: field(3)?,
            nonce: field(4)?,
            version: if rolls { Some(field(5)?) } else { None },
        })
    }

    /// The submit at the start of `bytes`, and the bytes that it takes with its line feed; None when this is another line, whatever it is.
    #[inline]
    pub fn read(&self, bytes: &[u8], workers: &mut Workers, extranonce2_bytes: u8) -> Option<(usize, Claim)> {
        if extranonce2_bytes != self.extranonce2_bytes {
            return None;
        }
        let (mut id, mut worker) = (IdToken::NULL, None);
        let mut starts = [0; 3];
        let mut at = 0;
        for (index, run) in self.runs.iter().enumerate() {
            if !run.stands_at(bytes, at) {
                return None;
            }
            starts[index] = at;
            at += run.bytes;
            match self.gaps.get(index).copied().flatten() {
                None => break,
                Some(Gap::Worker) => {
                    let (name_bytes, found) = workers.find_quoted(bytes.get(at..)?)?;
                    worker = Some(found);
                    at += name_bytes;
                }
                Some(Gap::Number) => {
                    id = IdToken::of_digits(bytes.get(at..)?)?;
                    at += id.as_bytes().len();
                }
                Some(Gap::Quoted) => {
                    id = quoted(bytes.get(at..)?)?;
                    at += id.as_bytes().len();
                }
            }
        }
        let text = |field: Field| bytes.get(starts[usize::from(field.run)] + usize::from(field.offset)..);
        let word = |field: Field| text(field).and_then(|text| text.first_chunk::<8>()).map(|digits| hex_word(*digits));
        let (job, job_valid) = word(self.job)?;
        let sending = if self.job_has_sending { sending_of(text(self.job)?.get(8..10)?)? } else { 0 };
        let extranonce2 = if self.extranonce2_bytes == 8 {
            let (halves, _) = text(self.extranonce2)?.get(..16)?.as_chunks::<8>();
            let ((high, high_valid), (low, low_valid)) = (hex_word(halves[0]), hex_word(halves[1]));
            if !(high_valid & low_valid) {
                return None;
            }
            (u64::from(high) << 32) | u64::from(low)
        } else {
            number_of_bytes(text(self.extranonce2)?.get(..usize::from(self.extranonce2_bytes) * 2)?, self.extranonce2_bytes)?
        };
        let ((ntime, ntime_valid), (nonce, nonce_valid)) = (word(self.ntime)?, word(self.nonce)?);
        let (rolled, rolled_valid) = match self.version {
            None => (None, true),
            Some(field) => word(field).map(|(version, valid)| (Some(version), valid))?,
        };
        if !(job_valid & ntime_valid & nonce_valid & rolled_valid) {
            return None;
        }
        let claim = Claim {
            id: Some(id),
            worker,
            job: Some((job, sending)),
            extranonce2: Some(extranonce2),
            ntime: Some(ntime),
            nonce: Some(nonce),
            rolled: Some(rolled),
            has_shape: true,
            names_job: true,
        };
        Some((at, claim))
    }
}

/// What stands for the id: a gap, or None where it stays (null, or no id); None of all where it cannot be taught.
fn id_gap(request: &Request<'_>, body: &[u8], place: &Range<usize>) -> Option<Option<Gap>> {
    let id = request.id?;
    match body.get(place.clone()).unwrap_or_default() {
        b"" | b"null" => Some(None),
        [b'"', ..] => Some(Some(Gap::Quoted)),
        _ if id.as_bytes().iter().all(u8::is_ascii_digit) => Some(Some(Gap::Number)),
        _ => None,
    }
}

/// The bytes of a run that stay, sixteen at a time, as far as they go.
fn chunks(line: &[u8], fixed: &[u8], span: &Range<usize>) -> Box<[Chunk]> {
    let (texts, _) = line[span.clone()].as_chunks::<16>();
    let (masks, _) = fixed[span.clone()].as_chunks::<16>();
    texts.iter().zip(masks).map(|(text, mask)| Chunk { expected: std::array::from_fn(|at| text[at] & mask[at]), mask: *mask }).collect()
}

/// The bytes of a run that stay behind its whole chunks, eight at a time.
fn words(line: &[u8], fixed: &[u8], span: &Range<usize>) -> Box<[Word]> {
    let word_at = |from: usize| -> Option<Word> {
        let (text, stays) = (line.get(from..)?.first_chunk::<8>()?, fixed.get(from..)?.first_chunk::<8>()?);
        // Bytes of the neighbouring runs are theirs to compare: between them the distance varies.
        let mut mask = *stays;
        for (at, byte) in mask.iter_mut().enumerate() {
            if !span.contains(&(from + at)) {
                *byte = 0;
            }
        }
        let mask = u64::from_le_bytes(mask);
        Some(Word { offset: (from as isize - span.start as isize) as i16, expected: u64::from_le_bytes(*text) & mask, mask })
    };
    let mut from: Vec<usize> = (span.end - span.len() % 16..span.end).step_by(8).collect();
    if let Some(last) = from.last_mut() {
        // The last word ends with its run, also where the run is shorter than a word; only at the start of a line there is nothing before it.
        *last = span.end.saturating_sub(8);
    }
    from.into_iter().filter_map(word_at).filter(|word| word.mask != 0).collect()
}

impl Run {
    /// True when the bytes from `at` on are this run, hex digits aside.
    #[inline(always)]
    fn stands_at(&self, bytes: &[u8], at: usize) -> bool {
        if at + self.bytes > bytes.len() {
            return false;
        }
        let (texts, _) = bytes[at..at + self.bytes].as_chunks::<16>();
        let mut differs = [0u8; 16];
        for (text, chunk) in texts.iter().zip(&self.chunks) {
            for (lane, differs) in differs.iter_mut().enumerate() {
                *differs |= (text[lane] ^ chunk.expected[lane]) & chunk.mask[lane];
            }
        }
        let mut rest = 0;
        for word in &self.words {
            let Some(text) = bytes.get(at.wrapping_add_signed(isize::from(word.offset))..).and_then(|text| text.first_chunk::<8>()) else {
                return false;
            };
            rest |= (u64::from_le_bytes(*text) ^ word.expected) & word.mask;
        }
        (u128::from_ne_bytes(differs) | u128::from(rest)) == 0
    }
}

/// An id in quotes at the start of `text`, of at most 16 bytes with them.
fn quoted(text: &[u8]) -> Option<IdToken> {
    let body = text.strip_prefix(b"\"")?;
    let end = body.iter().position(|byte| !matches!(byte, 0x20..=0x21 | 0x23..=0x5b | 0x5d..=0x7f))?;
    if body[end] != b'"' {
        return None;
    }
    IdToken::new(text.get(..end + 2)?)
}

/// The shapes of all connections of a net. Bounded: a new one takes the place of one that was not used of late, and connections that had that one learn anew.
#[derive(Debug, Default)]
pub struct Shapes {
    known: Vec<Known>,
    /// Where the search for one to replace goes on.
    hand: usize,
}

#[derive(Debug)]
struct Known {
    shape: Shape,
    used: bool,
}

/// Number of a shape within its net.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShapeNumber(u8);

impl ShapeNumber {
    /// No shape yet.
    pub const NONE: Self = Self(u8::MAX);
}

impl Shapes {
    /// Shapes at most: firmware and proxies of the field come to a few dozen.
    pub const MAX: usize = 128;
    /// Bytes of each, about.
    pub const EACH_BYTES: usize = size_of::<Known>() + FIXED_BYTES_MAX / 16 * size_of::<Chunk>() + 6 * size_of::<Word>();

    /// As `Shape::read`, by the shape of this number; None when there is none.
    #[inline]
    pub fn read(&mut self, number: ShapeNumber, bytes: &[u8], workers: &mut Workers, extranonce2_bytes: u8) -> Option<(usize, Claim)> {
        let known = self.known.get_mut(usize::from(number.0))?;
        let read = known.shape.read(bytes, workers, extranonce2_bytes)?;
        known.used = true;
        Some(read)
    }

    /// The number of a shape, which is remembered from now on.
    pub fn number(&mut self, shape: Shape) -> ShapeNumber {
        if let Some(number) = self.known.iter().position(|known| known.shape == shape) {
            return ShapeNumber(number as u8);
        }
        // Not used before it has matched: who invents shapes without end replaces his own.
        let known = Known { shape, used: false };
        if self.known.len() < Self::MAX {
            self.known.push(known);
            return ShapeNumber(self.known.len() as u8 - 1);
        }
        // The search ends within two rounds: the first one clears every mark.
        loop {
            let number = self.hand;
            self.hand = (number + 1) % Self::MAX;
            if !std::mem::take(&mut self.known[number].used) {
                self.known[number] = known;
                return ShapeNumber(number as u8);
            }
        }
    }
}

const _: () = assert!(Shapes::MAX <= ShapeNumber::NONE.0 as usize);

#[cfg(test)]
mod tests;
