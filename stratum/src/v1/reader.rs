//! What the sessions of a net share for reading lines: the shapes, the limits, and how much the slow tier may still do in this pass.
use super::template::{self, Shapes};

/// Bytes that the slow tier parses in a pass, at about 3 ns each: what a flood of odd lines may keep the answers of others waiting.
const SLOW_BYTES_PER_PASS: usize = 32 * 1024;

/// Lines by the tier that read them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tiers {
    /// Submits that matched the shape of their connection.
    pub template: u64,
    /// Lines that the scanner took.
    pub scanned: u64,
    /// Lines that went to serde_json.
    pub slow: u64,
}

/// Why no line was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unread {
    /// There is no line feed yet.
    Unfinished,
    /// The line is longer than the limit, whether or not it has ended.
    TooLong,
    /// The slow tier has done what it may in this pass: read on in the next one.
    Later,
}

/// The shared part of reading; one for each net stage.
#[derive(Debug)]
pub struct Reader {
    pub(super) shapes: Shapes,
    pub(super) line_bytes: usize,
    pub(super) tiers: Tiers,
    slow_bytes_left: usize,
}

impl Reader {
    /// `line_bytes` is the longest line that is read, its line feed not counted; 464 at least, which is the longest that a shape matches.
    pub fn new(line_bytes: usize) -> Self {
        Self {
            shapes: Shapes::default(),
            line_bytes: line_bytes.max(template::LINE_BYTES_MAX),
            tiers: Tiers::default(),
            slow_bytes_left: SLOW_BYTES_PER_PASS,
        }
    }

    /// Begins a pass: the slow tier may work again.
    pub fn begin_pass(&mut self) {
        self.slow_bytes_left = SLOW_BYTES_PER_PASS;
    }

    /// Lines read so far, by tier.
    pub fn tiers(&self) -> Tiers {
        self.tiers
    }

    /// True when the slow tier may parse a line of so many bytes now, which is booked. The first one of a pass may have any length.
    pub(super) fn may_parse_slowly(&mut self, bytes: usize) -> bool {
        if bytes > self.slow_bytes_left && self.slow_bytes_left < SLOW_BYTES_PER_PASS {
            return false;
        }
        self.slow_bytes_left = self.slow_bytes_left.saturating_sub(bytes.max(1));
        self.tiers.slow += 1;
        true
    }
}
