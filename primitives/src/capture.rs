//! The wire as `otedama serve --capture` writes it down and `loadgen replay` plays it again: what came in, what went out, and when.
//!
//! One folder holds one capture: `capture.json` (what a replay needs to know of the server) and one `wire-<net>.bin` per net. A wire file is a header of 16
//! bytes (magic, version and net, both u32) and blocks of `length u32, crc32c u32, payload`, numbers little-endian. The payloads in a row are the entries, each
//! in words of 8 bytes: kind 8 bits, payload length 24 bits and slot 32 bits in the first, microseconds since the server's start in the second, then the payload,
//! padded with zeros. An entry may begin in one block and end in the next. The last entry is `End`: a file without it is cut off.
use std::io::{self, Read};

/// First bytes of a wire file.
pub const MAGIC: [u8; 8] = *b"OTEDWIRE";
/// Version of the format: files of another one are refused.
pub const VERSION: u32 = 1;
/// Bytes before the first block.
pub const HEADER_BYTES: usize = 16;
/// Bytes before the payload of a block.
pub const BLOCK_HEADER_BYTES: usize = 8;
/// Payload of a block at most.
pub const BLOCK_BYTES_MAX: usize = 1 << 20;
/// Payload of an entry at most; longer runs of bytes are split.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 16;

/// What happened, as one net saw it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry<'a> {
    /// A connection came up. Its slot is free for another one after `Left` or `Shut`.
    Opened {
        /// Its place.
        slot: u32,
        /// The other end, as text.
        peer: &'a str,
    },
    /// Bytes came in.
    In {
        /// From which connection.
        slot: u32,
        /// As they were read.
        bytes: &'a [u8],
    },
    /// Bytes went out.
    Out {
        /// To which connection.
        slot: u32,
        /// As they were handed over.
        bytes: &'a [u8],
    },
    /// The other end closed the connection, or it broke.
    Left {
        /// Which connection.
        slot: u32,
    },
    /// The server closed the connection.
    Shut {
        /// Which connection.
        slot: u32,
    },
    /// Lines that are read from here on are judged with this job in the book.
    Job(JobEntry),
    /// The writer was behind: so much is missing here.
    Lost {
        /// Entries.
        entries: u32,
        /// Bytes in them.
        bytes: u64,
    },
    /// The capture has reached its size; nothing follows but `End`.
    Full,
    /// The server ended in order.
    End,
}

/// A job as it came to a net.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JobEntry {
    /// Counter within the run, from 1.
    pub counter: u32,
    /// Its id on the wire as a number.
    pub wire_id: u32,
    /// Height of the block that it works on.
    pub height: u32,
    /// Lines that the net had taken before.
    pub lines: u64,
}

const OPENED: u8 = 1;
const IN: u8 = 2;
const OUT: u8 = 3;
const LEFT: u8 = 4;
const SHUT: u8 = 5;
const JOB: u8 = 6;
const LOST: u8 = 7;
const FULL: u8 = 8;
const END: u8 = 9;

impl Entry<'_> {
    /// Appends the entry as words. A payload over `PAYLOAD_BYTES_MAX` is cut: the caller splits.
    pub fn put(&self, at_us: u64, words: &mut Vec<u64>) {
        let mut fixed = [0u8; 16];
        let (kind, slot, payload): (u8, u32, &[u8]) = match self {
            Self::Opened { slot, peer } => (OPENED, *slot, peer.as_bytes()),
            Self::In { slot, bytes } => (IN, *slot, bytes),
            Self::Out { slot, bytes } => (OUT, *slot, bytes),
            Self::Left { slot } => (LEFT, *slot, &[]),
            Self::Shut { slot } => (SHUT, *slot, &[]),
            Self::Job(job) => {
                fixed[..8].copy_from_slice(&job.lines.to_le_bytes());
                fixed[8..12].copy_from_slice(&job.wire_id.to_le_bytes());
                fixed[12..].copy_from_slice(&job.height.to_le_bytes());
                (JOB, job.counter, &fixed)
            }
            Self::Lost { entries, bytes } => {
                fixed[..8].copy_from_slice(&bytes.to_le_bytes());
                (LOST, *entries, &fixed[..8])
            }
            Self::Full => (FULL, 0, &[]),
            Self::End => (END, 0, &[]),
        };
        let payload = &payload[..payload.len().min(PAYLOAD_BYTES_MAX)];
        words.push(u64::from(kind) | (payload.len() as u64) << 8 | u64::from(slot) << 32);
        words.push(at_us);
        let (whole, rest) = payload.as_chunks::<8>();
        words.extend(whole.iter().map(|word| u64::from_le_bytes(*word)));
        if !rest.is_empty() {
            let mut last = [0u8; 8];
            last[..rest.len()].copy_from_slice(rest);
            words.push(u64::from_le_bytes(last));
        }
    }

    /// Reads the entry at the front of `bytes`: itself, its time and its length in bytes; None when its end is not there yet.
    fn read(bytes: &[u8]) -> Result<Option<(Entry<'_>, u64, usize)>, &'static str> {
        let Some((head, rest)) = bytes.split_at_checked(16) else { return Ok(None) };
        let word = |at: usize| head[at..at + 8].try_into().map(u64::from_le_bytes).unwrap_or(0);
        let (first, at_us) = (word(0), word(8));
        let (kind, length, slot) = (first as u8, (first >> 8) as usize & 0xff_ffff, (first >> 32) as u32);
        if length > PAYLOAD_BYTES_MAX {
            return Err("an entry is longer than entries are");
        }
        let padded = length.next_multiple_of(8);
        let Some(payload) = rest.get(..padded) else { return Ok(None) };
        let payload = &payload[..length];
        let number = |at: usize, bytes: usize| payload[at..at + bytes].iter().rev().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte));
        let entry = match (kind, length) {
            (OPENED, _) => Entry::Opened { slot, peer: std::str::from_utf8(payload).map_err(|_| "a peer's address is no text")? },
            (IN, _) => Entry::In { slot, bytes: payload },
            (OUT, _) => Entry::Out { slot, bytes: payload },
            (LEFT, 0) => Entry::Left { slot },
            (SHUT, 0) => Entry::Shut { slot },
            (JOB, 16) => {
                Entry::Job(JobEntry { counter: slot, lines: number(0, 8), wire_id: number(8, 4) as u32, height: number(12, 4) as u32 })
            }
            (LOST, 8) => Entry::Lost { entries: slot, bytes: number(0, 8) },
            (FULL, 0) => Entry::Full,
            (END, 0) => Entry::End,
            _ => return Err("an entry is of no known kind"),
        };
        Ok(Some((entry, at_us, 16 + padded)))
    }
}

/// The header of the wire file of one net.
pub fn file_header(net: u32) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..].copy_from_slice(&net.to_le_bytes());
    header
}

/// The header of a block with this payload.
pub fn block_header(payload: &[u8]) -> [u8; BLOCK_HEADER_BYTES] {
    let mut header = [0; BLOCK_HEADER_BYTES];
    header[..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    header[4..].copy_from_slice(&crc32c::crc32c(payload).to_le_bytes());
    header
}

/// A wire file that cannot be read on. The caller adds which file it is.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The operating system.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    /// Not a wire file.
    #[error("is no wire file of a capture: it does not begin with {MAGIC:?}")]
    Magic,
    /// Another version of the format.
    #[error("is of version {0} of the format; this program reads version {VERSION}")]
    Version(u32),
    /// It ends within a block, or without its last entry: the server was killed, or the file was cut.
    #[error("is cut off after {entries} entries, at byte {at}: the server did not end in order, or the copy is not whole")]
    CutOff {
        /// Entries before.
        entries: u64,
        /// Bytes before.
        at: u64,
    },
    /// A block whose bytes are not those that were written.
    #[error("is damaged at byte {at}, after {entries} entries: {what}")]
    Damaged {
        /// Where the block or entry begins.
        at: u64,
        /// Entries before.
        entries: u64,
        /// What is wrong.
        what: &'static str,
    },
}

/// Reads a wire file from front to back, whatever it comes from.
#[derive(Debug)]
pub struct CaptureReader<R> {
    from: R,
    /// Payload that has been read and not yet taken; `taken` bytes of it are done with.
    payload: Vec<u8>,
    taken: usize,
    /// Where the next block begins.
    at: u64,
    entries: u64,
    net: u32,
    ended: bool,
}

impl<R: Read> CaptureReader<R> {
    /// Reads the header.
    pub fn new(mut from: R) -> Result<Self, CaptureError> {
        let mut header = [0; HEADER_BYTES];
        let count = read_up_to(&mut from, &mut header)?;
        if count < 8 || header[..8] != MAGIC {
            return Err(CaptureError::Magic);
        }
        if count < HEADER_BYTES {
            return Err(CaptureError::CutOff { entries: 0, at: count as u64 });
        }
        let number = |at: usize| header[at..at + 4].iter().rev().fold(0u32, |sum, &byte| sum << 8 | u32::from(byte));
        if number(8) != VERSION {
            return Err(CaptureError::Version(number(8)));
        }
        Ok(Self { from, payload: Vec::new(), taken: 0, at: HEADER_BYTES as u64, entries: 0, net: number(12), ended: false })
    }

    /// The net that the file is of.
    pub fn net(&self) -> u32 {
        self.net
    }

    /// Entries read so far.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// The next entry and its time in microseconds since the server's start; None after `End`.
    pub fn next_entry(&mut self) -> Result<Option<(Entry<'_>, u64)>, CaptureError> {
        if self.ended {
            return Ok(None);
        }
        // The look ahead and the borrow that is handed out are two reads: the borrow of a loop cannot be returned.
        while self.damaged(Entry::read(&self.payload[self.taken..]).map(|entry| entry.is_none()))? {
            self.read_block()?;
        }
        let at = self.taken;
        match Entry::read(&self.payload[at..]) {
            Ok(Some((entry, at_us, length))) => {
                self.taken += length;
                self.entries += 1;
                self.ended = entry == Entry::End;
                Ok(Some((entry, at_us)))
            }
            Ok(None) => Ok(None),
            Err(what) => Err(CaptureError::Damaged { at: self.at, entries: self.entries, what }),
        }
    }

    fn damaged<T>(&self, read: Result<T, &'static str>) -> Result<T, CaptureError> {
        read.map_err(|what| CaptureError::Damaged { at: self.at, entries: self.entries, what })
    }

    fn read_block(&mut self) -> Result<(), CaptureError> {
        let cut_off = CaptureError::CutOff { entries: self.entries, at: self.at };
        let mut header = [0; BLOCK_HEADER_BYTES];
        if read_up_to(&mut self.from, &mut header)? < BLOCK_HEADER_BYTES {
            return Err(cut_off);
        }
        let number = |at: usize| header[at..at + 4].iter().rev().fold(0u32, |sum, &byte| sum << 8 | u32::from(byte));
        let (length, crc) = (number(0) as usize, number(4));
        if length == 0 || length > BLOCK_BYTES_MAX {
            return Err(CaptureError::Damaged { at: self.at, entries: self.entries, what: "a block's length is none that blocks have" });
        }
        self.payload.drain(..self.taken);
        self.taken = 0;
        let kept = self.payload.len();
        self.payload.resize(kept + length, 0);
        if read_up_to(&mut self.from, &mut self.payload[kept..])? < length {
            return Err(cut_off);
        }
        if crc32c::crc32c(&self.payload[kept..]) != crc {
            return Err(CaptureError::Damaged { at: self.at, entries: self.entries, what: "the checksum of a block is wrong" });
        }
        self.at += (BLOCK_HEADER_BYTES + length) as u64;
        Ok(())
    }
}

/// Fills `into` as far as there are bytes; how many there were.
fn read_up_to(from: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    let mut count = 0;
    while count < into.len() {
        match from.read(&mut into[count..]) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An entry with its payload on the heap.
    #[derive(Clone, Debug)]
    enum Owned {
        Opened(u32, String),
        In(u32, Vec<u8>),
        Out(u32, Vec<u8>),
        Left(u32),
        Shut(u32),
        Job(u32, u32, u32, u64),
        Lost(u32, u64),
        Full,
    }

    impl Owned {
        fn entry(&self) -> Entry<'_> {
            match self {
                Self::Opened(slot, peer) => Entry::Opened { slot: *slot, peer },
                Self::In(slot, bytes) => Entry::In { slot: *slot, bytes },
                Self::Out(slot, bytes) => Entry::Out { slot: *slot, bytes },
                Self::Left(slot) => Entry::Left { slot: *slot },
                Self::Shut(slot) => Entry::Shut { slot: *slot },
                &Self::Job(counter, wire_id, height, lines) => Entry::Job(JobEntry { counter, wire_id, height, lines }),
                &Self::Lost(entries, bytes) => Entry::Lost { entries, bytes },
                Self::Full => Entry::Full,
            }
        }
    }

    fn owned() -> impl Strategy<Value = Owned> {
        let slot = prop_oneof![0..3_u32, u32::MAX - 1..=u32::MAX];
        let bytes = prop_oneof![prop::collection::vec(any::<u8>(), 0..20), prop::collection::vec(any::<u8>(), 1020..1030)];
        prop_oneof![
            (slot.clone(), "[0-9.:]{0,21}").prop_map(|(slot, peer)| Owned::Opened(slot, peer)),
            (slot.clone(), bytes.clone()).prop_map(|(slot, bytes)| Owned::In(slot, bytes)),
            (slot.clone(), bytes).prop_map(|(slot, bytes)| Owned::Out(slot, bytes)),
            slot.clone().prop_map(Owned::Left),
            slot.prop_map(Owned::Shut),
            (any::<u32>(), any::<u32>(), any::<u32>(), any::<u64>()).prop_map(|(one, two, three, four)| Owned::Job(one, two, three, four)),
            (any::<u32>(), any::<u64>()).prop_map(|(entries, bytes)| Owned::Lost(entries, bytes)),
            Just(Owned::Full),
        ]
    }

    /// A file of these entries, an `End` behind them, in blocks of this many words.
    fn file(entries: &[(Owned, u64)], block_words: usize) -> Vec<u8> {
        let mut words = Vec::new();
        entries.iter().for_each(|(entry, at_us)| entry.entry().put(*at_us, &mut words));
        Entry::End.put(u64::MAX, &mut words);
        let mut file = file_header(7).to_vec();
        for block in words.chunks(block_words) {
            let payload: Vec<u8> = block.iter().flat_map(|word| word.to_le_bytes()).collect();
            file.extend_from_slice(&block_header(&payload));
            file.extend_from_slice(&payload);
        }
        file
    }

    /// Reads to the end or to an error; the entries as text.
    fn read(file: &[u8]) -> (Vec<String>, Option<CaptureError>) {
        let mut texts = Vec::new();
        let mut reader = match CaptureReader::new(file) {
            Ok(reader) => reader,
            Err(error) => return (texts, Some(error)),
        };
        loop {
            match reader.next_entry() {
                Ok(Some((entry, at_us))) => texts.push(format!("{at_us} {entry:?}")),
                Ok(None) => return (texts, None),
                Err(error) => return (texts, Some(error)),
            }
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_whatever_the_blocks(entries in prop::collection::vec((owned(), any::<u64>()), 0..20), block_words in 1..200_usize) {
            let (texts, error) = read(&file(&entries, block_words));
            prop_assert!(error.is_none(), "{error:?}");
            let mut expected: Vec<String> = entries.iter().map(|(entry, at_us)| format!("{at_us} {:?}", entry.entry())).collect();
            expected.push(format!("{} End", u64::MAX));
            prop_assert_eq!(texts, expected);
        }

        #[test]
        fn a_file_that_is_cut_or_changed_is_an_error_and_what_stands_before_is_right(
            entries in prop::collection::vec((owned(), any::<u64>()), 1..20),
            block_words in 1..40_usize,
            at in any::<prop::sample::Index>(),
            flip in prop_oneof![Just(None), (0..8_u8).prop_map(Some)],
        ) {
            let whole = file(&entries, block_words);
            let (expected, _) = read(&whole);
            let at = at.index(whole.len());
            let mut broken = whole.clone();
            match flip {
                // The number of the net is the caller's to judge.
                Some(_) if (12..16).contains(&at) => return Ok(()),
                Some(bit) => broken[at] ^= 1 << bit,
                None => broken.truncate(at),
            }
            let (texts, error) = read(&broken);
            prop_assert!(error.is_some(), "byte {at} of {}", whole.len());
            prop_assert!(expected.starts_with(&texts), "{texts:?} {expected:?}");
        }
    }

    #[test]
    fn errors_name_what_is_wrong() {
        let whole = file(&[(Owned::Full, 1)], 2);
        let text = |file: &[u8]| read(file).1.map(|error| error.to_string()).unwrap_or_default();
        assert!(text(b"").contains("no wire file") && text(b"{\"format\": 1, \"build\"").contains("no wire file"));
        let mut other = whole.clone();
        other[8] = 9;
        assert!(text(&other).contains("version 9"), "{}", text(&other));
        // Cut between blocks: everything there is right, but the end is missing.
        let cut = &whole[..HEADER_BYTES + BLOCK_HEADER_BYTES + 16];
        assert!(text(cut).contains("cut off after 1 entries"), "{}", text(cut));
        let mut changed = whole.clone();
        *changed.last_mut().expect("bytes") ^= 1;
        assert!(text(&changed).contains("damaged at byte 40, after 1 entries: the checksum"), "{}", text(&changed));
    }
}
