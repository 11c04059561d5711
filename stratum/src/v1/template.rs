//! The template tier: a submit that differs from an earlier one of its connection in nothing but worker, id and hex digits needs no parsing, only comparing.
//!
//! A [`Shape`] is what one submit teaches: the bytes that stay, and where worker, id, job, extranonce2, ntime, nonce and version bits stand between them. Worker and
//! id may be of any length, so that proxies that interleave workers and ids that grow a digit still match. A few dozen shapes serve all connections of a net
//! ([`Shapes`]); a connection keeps the number of its own. What does not match costs a comparison or so of sixteen bytes and goes to `scan`.
//!
//! A line that matches is valid JSON with the meaning of the one that taught the shape: every byte of it either equals that line's, or is a hex digit in a string, a
//! digit of the id, or part of a worker's name or a quoted id, which have neither quotes, backslashes nor control characters. For the same reason no line feed can
//! be among them but the last byte: a match needs no search for the end of the line.
use super::claim::{Claim, number_of_bytes, sending_of};
use super::request::{IdToken, Method, Param, Request};
use super::scan;
use super::workers::Workers;
use otedama_primitives::{hex_long, hex_pair};
use std::ops::Range;
use wide::u8x16;

/// Bytes of a line that stay, at most; longer ones are left to `scan`.
const FIXED_BYTES_MAX: usize = 320;
/// Longest line that a shape can match: what stays, a name and an id. Shorter than any limit on lines.
pub const LINE_BYTES_MAX: usize = FIXED_BYTES_MAX + otedama_primitives::WorkerName::BYTES_MAX + IdToken::BYTES_MAX;

/// Sixteen bytes of a line under a mask.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
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
    /// The last sixteen bytes of the run; of a shorter run the masked rest is what stands before it, or behind it at the start of a line.
    last: Chunk,
    /// Where those begin, from the start of the run.
    last_at: isize,
}

/// An id of any length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Id {
    /// Digits.
    Number,
    /// In quotes, which belong to it.
    Quoted,
}

/// Which places of variable length a line has, in their order: the worker's name, up to its quote, and the id, unless that stays (null, or none).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Gaps {
    Worker,
    WorkerThenId(Id),
    IdThenWorker(Id),
}

/// What one submit teaches about those of its kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Before the gaps, between them and behind them; of a line with one gap the third is empty.
    runs: [Run; 3],
    gaps: Gaps,
    /// Where the hex fields stand, from the end of the worker's name on: all of them are params as that is, and the id is none.
    job: usize,
    /// The job has two more digits: which sending it was.
    job_has_sending: bool,
    extranonce2: usize,
    extranonce2_bytes: u8,
    ntime: usize,
    nonce: usize,
    version: Option<usize>,
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
        let worker = places.text(0);
        clear(worker.clone());
        let gaps = match id {
            None => Gaps::Worker,
            Some(id) if places.id.start < worker.start => Gaps::IdThenWorker(id),
            Some(id) => Gaps::WorkerThenId(id),
        };
        let (first, second) = match gaps {
            Gaps::Worker => (worker.clone(), line.len()..line.len()),
            Gaps::WorkerThenId(_) => (worker.clone(), places.id.clone()),
            Gaps::IdThenWorker(_) => (places.id.clone(), worker.clone()),
        };
        let spans = [0..first.start, first.end..second.start, second.end..line.len()];
        if spans.iter().map(Range::len).sum::<usize>() > FIXED_BYTES_MAX {
            return None;
        }
        let [first, second, third] = spans.map(|span| Run::learn(line, &fixed, span));
        let field = |param: usize| places.text(param).start - worker.end;
        Some(Self {
            runs: [first?, second?, third?],
            gaps,
            job: field(1),
            job_has_sending: job.len() == 10,
            extranonce2: field(2),
            extranonce2_bytes: (extranonce2.len() / 2) as u8,
            ntime: field(3),
            nonce: field(4),
            version: rolls.then(|| field(5)),
        })
    }

    /// The submit at the start of `bytes`, and the bytes that it takes with its line feed; None when this is another line, whatever it is.
    #[inline]
    pub fn read(&self, bytes: &[u8], workers: &Workers, extranonce2_bytes: u8) -> Option<(usize, Claim)> {
        if extranonce2_bytes != self.extranonce2_bytes {
            return None;
        }
        let [first, second, third] = &self.runs;
        let at = first.passed(bytes, 0)?;
        let (id, worker, fields, end) = match self.gaps {
            Gaps::Worker => {
                let (name_bytes, worker) = workers.find_quoted(bytes.get(at..)?)?;
                let fields = at + name_bytes;
                let end = second.passed(bytes, fields)?;
                (IdToken::NULL, worker, bytes.get(fields..end)?, end)
            }
            Gaps::WorkerThenId(id) => {
                let (name_bytes, worker) = workers.find_quoted(bytes.get(at..)?)?;
                let fields = at + name_bytes;
                let fields_end = second.passed(bytes, fields)?;
                let id = id.read(bytes, fields_end)?;
                let end = third.passed(bytes, fields_end + id.as_bytes().len())?;
                (id, worker, bytes.get(fields..fields_end)?, end)
            }
            Gaps::IdThenWorker(id) => {
                let id = id.read(bytes, at)?;
                let at = second.passed(bytes, at + id.as_bytes().len())?;
                let (name_bytes, worker) = workers.find_quoted(bytes.get(at..)?)?;
                let fields = at + name_bytes;
                let end = third.passed(bytes, fields)?;
                (id, worker, bytes.get(fields..end)?, end)
            }
        };
        let eight = |at: usize| fields.get(at..).and_then(|text| text.first_chunk::<8>());
        let ([job, ntime], job_and_ntime_valid) = hex_pair(*eight(self.job)?, *eight(self.ntime)?);
        let nonce = eight(self.nonce)?;
        let ([nonce, version], nonce_and_version_valid) = hex_pair(*nonce, *self.version.map_or(Some(nonce), eight)?);
        let sending = if self.job_has_sending { sending_of(fields.get(self.job + 8..self.job + 10)?)? } else { 0 };
        let (extranonce2, extranonce2_valid) = if self.extranonce2_bytes == 8 {
            hex_long(*fields.get(self.extranonce2..)?.first_chunk::<16>()?)
        } else {
            let text = fields.get(self.extranonce2..self.extranonce2 + usize::from(self.extranonce2_bytes) * 2)?;
            (number_of_bytes(text, self.extranonce2_bytes)?, true)
        };
        if !(job_and_ntime_valid & nonce_and_version_valid & extranonce2_valid) {
            return None;
        }
        let claim = Claim {
            id: Some(id),
            worker: Some(worker),
            job: Some((job, sending)),
            extranonce2: Some(extranonce2),
            ntime: Some(ntime),
            nonce: Some(nonce),
            rolled: Some(self.version.map(|_| version)),
            has_shape: true,
            names_job: true,
        };
        Some((end, claim))
    }
}

/// How the id varies, or None where it stays (null, or no id); None of all where it cannot be taught.
fn id_gap(request: &Request<'_>, body: &[u8], place: &Range<usize>) -> Option<Option<Id>> {
    let id = request.id?;
    match body.get(place.clone()).unwrap_or_default() {
        b"" | b"null" => Some(None),
        [b'"', ..] => Some(Some(Id::Quoted)),
        _ if id.as_bytes().iter().all(u8::is_ascii_digit) => Some(Some(Id::Number)),
        _ => None,
    }
}

impl Id {
    #[inline(always)]
    fn read(self, bytes: &[u8], at: usize) -> Option<IdToken> {
        match self {
            Self::Number => IdToken::of_digits(bytes, at),
            Self::Quoted => quoted(bytes.get(at..)?),
        }
    }
}

impl Chunk {
    /// Of the bytes from `at` on those that stay and belong to `span`.
    fn learn(line: &[u8], fixed: &[u8], span: &Range<usize>, at: usize) -> Option<Self> {
        let (text, stays) = (line.get(at..)?.first_chunk::<16>()?, fixed.get(at..)?.first_chunk::<16>()?);
        // Bytes of the neighbouring runs are theirs to compare: between them the distance varies.
        let mask: [u8; 16] = std::array::from_fn(|lane| if span.contains(&(at + lane)) { stays[lane] } else { 0 });
        Some(Self { expected: std::array::from_fn(|lane| text[lane] & mask[lane]), mask })
    }

    /// Zero where the bytes are those that stay.
    #[inline(always)]
    fn differs(&self, text: [u8; 16]) -> u8x16 {
        (u8x16::new(text) ^ u8x16::new(self.expected)) & u8x16::new(self.mask)
    }
}

impl Run {
    /// None when the line is too short to have one.
    fn learn(line: &[u8], fixed: &[u8], span: Range<usize>) -> Option<Self> {
        let last_at = if span.start == 0 { span.end.saturating_sub(16) } else { span.end.checked_sub(16)? };
        let chunks = (span.start..last_at.max(span.start)).step_by(16).map(|at| Chunk::learn(line, fixed, &span, at));
        Some(Self {
            bytes: span.len(),
            chunks: chunks.collect::<Option<_>>()?,
            last: Chunk::learn(line, fixed, &span, last_at)?,
            last_at: last_at as isize - span.start as isize,
        })
    }

    /// The end of this run where the bytes from `at` on are it, hex digits aside.
    #[inline(always)]
    fn passed(&self, bytes: &[u8], at: usize) -> Option<usize> {
        let end = at + self.bytes;
        let (texts, _) = bytes.get(at..end)?.as_chunks::<16>();
        let last = bytes.get(at.wrapping_add_signed(self.last_at)..)?.first_chunk::<16>()?;
        let differs =
            texts.iter().zip(&self.chunks).fold(self.last.differs(*last), |differs, (text, chunk)| differs | chunk.differs(*text));
        (u128::from_ne_bytes(differs.to_array()) == 0).then_some(end)
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
    pub const EACH_BYTES: usize = size_of::<Known>() + FIXED_BYTES_MAX / 16 * size_of::<Chunk>();

    /// As `Shape::read`, by the shape of this number; None when there is none.
    #[inline]
    pub fn read(&mut self, number: ShapeNumber, bytes: &[u8], workers: &Workers, extranonce2_bytes: u8) -> Option<(usize, Claim)> {
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
