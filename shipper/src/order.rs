//! The order in which the rows of a segment leave: that of the table they go to.
//!
//! A segment has its rows as they arrived; `shares` has them by worker and time. A server that is sent the first makes the second out of it: it sorts half a million rows
//! with a comparison through its columns and fills every roll-up in an order that finds nothing in its caches, which is half of what an insert costs it. Rows
//! that lie in the order of the table already it takes as they are. The same order is cheap to make here: one key of eight bytes, and columns of fixed width
//! (`cargo xtask figures ship` has both sides of it). `seq` keeps the place that a row has in its segment.
use bytes::Bytes;
use crc32c::crc32c_append;
use otedama_sharelog::store::read_block;
use otedama_sharelog::{ColumnPlace, Layout};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes that are sent at a time.
const PIECE_BYTES: usize = 1 << 20;
/// Room for a column's name and type before its values: those of `status` take 172.
const HEADER_BYTES: usize = 4096;
/// Buffers of pieces that are kept for the next ones: as many as a connection has on their way.
const PIECES_KEPT: usize = 4;
/// Bits of a key that one pass sorts by.
const DIGIT_BITS: u32 = 11;

/// Memory that is kept from segment to segment: every fresh page costs a fault, and a segment has ten thousand of them.
#[derive(Default)]
pub(crate) struct Kept {
    pieces: Mutex<Vec<Vec<u8>>>,
    /// Of one reader; where several read at once the others have theirs for themselves.
    scratch: Mutex<Option<Scratch>>,
}

impl Kept {
    /// A buffer with what an earlier piece left in it.
    fn piece(&self) -> Vec<u8> {
        let kept = self.pieces.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(|| vec![0; PIECE_BYTES + HEADER_BYTES])
    }
}

/// A piece on its way; its buffer comes back when it is sent.
struct Piece {
    bytes: Vec<u8>,
    used: usize,
    home: Arc<Kept>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(..self.used).unwrap_or_default()
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut pieces = self.home.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        if pieces.len() < PIECES_KEPT {
            pieces.push(bytes);
        }
    }
}

#[derive(Default)]
struct Scratch {
    /// A column with its name and type, as it stands in the file.
    column: Vec<u8>,
    /// The rows in the order in which they leave.
    order: Vec<u32>,
    keys: Vec<u64>,
    spare: Vec<u64>,
}

/// Where a segment's bytes are.
enum Source {
    File(File),
    /// A cold segment, unpacked: it is sent a second time because the server lost it, which is rare, and then it is some ten megabytes.
    Memory(Vec<u8>),
}

impl Source {
    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Self::File(file) => file.read_exact_at(into, offset),
            Self::Memory(bytes) => {
                let from = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)?.get(..into.len()));
                into.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }
}

/// Reads a segment piece by piece, its rows by worker and, as they arrived, by time.
pub(crate) struct OrderedSegment {
    source: Source,
    size: u64,
    crc32c: u32,
    home: Arc<Kept>,
    scratch: Scratch,
    /// Columns that are still to be read, the next one last; none where the rows stay as they are.
    places: Vec<ColumnPlace>,
    /// The column that is being sent.
    place: Option<ColumnPlace>,
    /// Values of it that have left.
    sent: usize,
    /// Bytes read, and their sum.
    read: u64,
    running: u32,
}

/// Why a segment cannot be read to its end.
#[derive(Debug)]
pub(crate) enum ReadProblem {
    Io(io::Error),
    /// What is wrong with it.
    Damaged(String),
}

impl From<io::Error> for ReadProblem {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl OrderedSegment {
    /// Opens the segment at `path`, of this size and sum, with so many rows of this layout. Where its columns are not where such a block has them, it is read as it stands.
    pub(crate) fn open(path: &Path, size: u64, crc32c: u32, rows: u32, layout: Layout, home: Arc<Kept>) -> Result<Self, ReadProblem> {
        let (source, length) = match File::open(path) {
            Ok(file) => {
                let length = file.metadata()?.len();
                (Source::File(file), length)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut block = Vec::new();
                if !read_block(path, size, crc32c, &mut block).map_err(io::Error::other)? {
                    return Err(error.into());
                }
                (Source::Memory(block), size)
            }
            Err(error) => return Err(error.into()),
        };
        if length != size || size == 0 {
            return Err(ReadProblem::Damaged(format!("it has {length} bytes, its .meta says {size}")));
        }
        let scratch = home.scratch.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
        let mut segment = Self { source, size, crc32c, home, scratch, places: Vec::new(), place: None, sent: 0, read: 0, running: 0 };
        let mut places = layout.places(rows);
        if let Some(workers) = places.iter().find(|place| place.name == "worker")
            && places.last().is_some_and(|place| place.end == size)
        {
            let Scratch { column, order, keys, spare } = &mut segment.scratch;
            let values = read_exactly(&segment.source, column, workers.values, workers.end)?;
            if sort(values.as_chunks().0, keys, spare) {
                order.clear();
                order.extend(keys.iter().map(|&key| key as u32));
                places.reverse();
                segment.places = places;
            }
        }
        Ok(segment)
    }

    /// The next piece; None behind the last one. That one leaves only when all that was read is what the sum says.
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, ReadProblem> {
        if self.place.is_none() && self.places.is_empty() {
            if self.read == self.size {
                return Ok(None);
            }
            let end = self.size.min(self.read + PIECE_BYTES as u64);
            let mut bytes = self.home.piece();
            let used = (end - self.read) as usize;
            let running = crc32c_append(self.running, read_exactly(&self.source, &mut bytes, self.read, end)?);
            self.count(end, running)?;
            return Ok(Some(self.leave(bytes, used)));
        }
        let (place, is_new) = match self.place {
            Some(place) => (place, false),
            None => {
                let Some(place) = self.places.pop() else { return Ok(None) };
                let column = read_exactly(&self.source, &mut self.scratch.column, place.start, place.end)?;
                let running = crc32c_append(self.running, column);
                self.count(place.end, running)?;
                (self.place, self.sent) = (Some(place), 0);
                (place, true)
            }
        };
        let column = self.scratch.column.get(..(place.end - place.start) as usize).unwrap_or_default();
        let (header, values) = column.split_at_checked((place.values - place.start) as usize).unwrap_or_default();
        let header = if is_new { header } else { &[] };
        let order = self.scratch.order.get(self.sent..).unwrap_or_default();
        let order = order.get(..order.len().min(PIECE_BYTES / place.width)).unwrap_or_default();
        let mut bytes = self.home.piece();
        let used = header.len() + order.len() * place.width;
        let Some((head, to)) = bytes.get_mut(..used).and_then(|used| used.split_at_mut_checked(header.len())) else {
            return Err(ReadProblem::Damaged(format!("{used} bytes of column {} are more than a piece", place.name)));
        };
        head.copy_from_slice(header);
        match place.width {
            1 => gather::<1>(values, order, to),
            2 => gather::<2>(values, order, to),
            4 => gather::<4>(values, order, to),
            8 => gather::<8>(values, order, to),
            _ => gather::<32>(values, order, to),
        }
        self.sent += order.len();
        if self.sent == self.scratch.order.len() {
            self.place = None;
        }
        Ok(Some(self.leave(bytes, used)))
    }

    fn leave(&self, bytes: Vec<u8>, used: usize) -> Bytes {
        Bytes::from_owner(Piece { bytes, used, home: Arc::clone(&self.home) })
    }

    /// Everything up to `end` has been read, and this is its sum.
    fn count(&mut self, end: u64, running: u32) -> Result<(), ReadProblem> {
        (self.read, self.running) = (end, running);
        if end == self.size && running != self.crc32c {
            return Err(ReadProblem::Damaged(format!("its CRC-32C is {running:08x}, its .meta says {:08x}", self.crc32c)));
        }
        Ok(())
    }
}

impl Drop for OrderedSegment {
    fn drop(&mut self) {
        let scratch = std::mem::take(&mut self.scratch);
        *self.home.scratch.lock().unwrap_or_else(PoisonError::into_inner) = Some(scratch);
    }
}

/// Bytes `from..to` of a file, in the front of `into`, which grows where it must: bytes that are read over need no zeros first.
fn read_exactly<'a>(source: &Source, into: &'a mut Vec<u8>, from: u64, to: u64) -> io::Result<&'a [u8]> {
    let length = (to - from) as usize;
    if into.len() < length {
        into.resize(length, 0);
    }
    let bytes = into.get_mut(..length).unwrap_or_default();
    source.read_exact_at(bytes, from)?;
    Ok(bytes)
}

/// The values of these rows. Columns that say the same of every row (`instance`, `seg`, `coin`) are copied.
fn gather<const WIDTH: usize>(values: &[u8], order: &[u32], to: &mut [u8]) {
    let (values, _) = values.as_chunks::<WIDTH>();
    let (places, _) = to.as_chunks_mut::<WIDTH>();
    let Some(&first) = values.first() else { return };
    if values.iter().all(|value| *value == first) {
        places.fill(first);
        return;
    }
    for (place, &row) in places.iter_mut().zip(order) {
        *place = values.get(row as usize).copied().unwrap_or(first);
    }
}

/// Fills `keys` with the rows in the order of their workers, those of one worker as they were: the lower half of a key is the row. False where that is how they lie.
fn sort(workers: &[[u8; 8]], keys: &mut Vec<u64>, spare: &mut Vec<u64>) -> bool {
    let worker = |key: u64| workers.get(key as u32 as usize).map_or(0, |bytes| u64::from_le_bytes(*bytes));
    keys.clear();
    if workers.is_sorted_by_key(|bytes| u64::from_le_bytes(*bytes)) {
        return false;
    }
    // By the upper half of the worker, a hash: two passes and a half over memory that fits a cache, where a comparison would mispredict twenty times a row.
    keys.extend(workers.iter().enumerate().map(|(at, bytes)| (u64::from_le_bytes(*bytes) >> 32 << 32) | at as u64));
    spare.clear();
    spare.resize(keys.len(), 0);
    for shift in (32..u64::BITS).step_by(DIGIT_BITS as usize) {
        let digit = |key: u64| (key >> shift) as usize & ((1 << DIGIT_BITS) - 1);
        let mut ends = [0u32; 1 << DIGIT_BITS];
        keys.iter().for_each(|&key| ends[digit(key)] += 1);
        let mut end = 0;
        for count in &mut ends {
            (*count, end) = (end, end + *count);
        }
        for &key in keys.iter() {
            let place = &mut ends[digit(key)];
            if let Some(slot) = spare.get_mut(*place as usize) {
                *slot = key;
            }
            *place += 1;
        }
        std::mem::swap(keys, spare);
    }
    // Workers whose upper halves are equal: next to none, unless somebody went looking for them.
    for equal in keys.chunk_by_mut(|one, other| one >> 32 == other >> 32) {
        let first = equal.first().map_or(0, |&key| worker(key));
        if equal.iter().any(|&key| worker(key) != first) {
            equal.sort_by_key(|&key| worker(key));
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A block of this layout with values that tell where they come from, and these workers.
    fn block(layout: Layout, workers: &[u64]) -> Vec<u8> {
        let rows = workers.len() as u32;
        let mut bytes = Vec::new();
        for (index, place) in layout.places(rows).into_iter().enumerate() {
            // Headers are not looked at: their bytes only have to arrive.
            bytes.resize(place.values as usize, index as u8 + 200);
            for (at, worker) in workers.iter().enumerate() {
                let word = if place.name == "worker" { *worker } else { ((at as u64) << 8) + (index as u64 % 7) * (at as u64 + 1) };
                let cell: Vec<u8> = word.to_le_bytes().into_iter().cycle().take(place.width).collect();
                bytes.extend(cell);
            }
            assert_eq!(bytes.len() as u64, place.end);
        }
        bytes
    }

    fn read_all(path: &Path, bytes: &[u8], rows: u32, layout: Layout, home: &Arc<Kept>) -> Result<Vec<u8>, ReadProblem> {
        let mut segment = OrderedSegment::open(path, bytes.len() as u64, crc32c::crc32c(bytes), rows, layout, Arc::clone(home))?;
        let mut sent = Vec::new();
        while let Some(piece) = segment.next()? {
            assert!(!piece.is_empty() && piece.len() <= PIECE_BYTES + HEADER_BYTES);
            sent.extend_from_slice(&piece);
        }
        assert!(segment.next()?.is_none(), "it stays at its end");
        Ok(sent)
    }

    /// What is to leave, made the slow way.
    fn ordered(bytes: &[u8], workers: &[u64], layout: Layout) -> Vec<u8> {
        let mut order: Vec<usize> = (0..workers.len()).collect();
        order.sort_by_key(|&at| workers[at]);
        let mut wanted = Vec::new();
        for place in layout.places(workers.len() as u32) {
            wanted.extend_from_slice(&bytes[place.start as usize..place.values as usize]);
            let values = &bytes[place.values as usize..place.end as usize];
            order.iter().for_each(|&at| wanted.extend_from_slice(&values[at * place.width..][..place.width]));
        }
        wanted
    }

    fn assert_ordered(layout: Layout, workers: &[u64], home: &Arc<Kept>) {
        let bytes = block(layout, workers);
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), &bytes).expect("segment");
        let sent = read_all(file.path(), &bytes, workers.len() as u32, layout, home).expect("read");
        assert!(sent == ordered(&bytes, workers, layout), "{layout:?} {:?}", &workers[..workers.len().min(20)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 64 } else { 1000 }))]

        #[test]
        fn every_row_leaves_once_by_worker_and_those_of_a_worker_as_they_came(
            workers in prop::collection::vec(
                prop_oneof![
                    0..4_u64,
                    Just(u64::MAX),
                    // Adjacent, with one upper half and with two.
                    (0xffff_fffc..0x1_0000_0004_u64),
                    (0..3_u64).prop_map(|low| (7 << 32) + low),
                    any::<u64>(),
                ],
                1..400,
            ),
            layout in prop::sample::select(Layout::ALL.to_vec()),
        ) {
            assert_ordered(layout, &workers, &Arc::default());
        }
    }

    #[test]
    fn columns_longer_than_a_piece_leave_whole_and_memory_is_used_again() {
        let home = Arc::new(Kept::default());
        // 131,072 values of eight bytes are a piece.
        for rows in [131_071_u64, 131_072, 131_073, 300_000, 5] {
            let workers: Vec<u64> = (0..rows).map(|at| at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (at % 40)).collect();
            assert_ordered(Layout::Full, &workers, &home);
        }
        assert!(home.pieces.lock().expect("pieces").len() <= PIECES_KEPT);
        assert!(home.scratch.lock().expect("scratch").as_ref().is_some_and(|scratch| scratch.order.capacity() >= 300_000));
    }

    #[test]
    fn rows_in_order_and_what_is_no_block_leave_as_they_stand_and_damage_is_found_before_the_last_piece() {
        let home = Arc::new(Kept::default());
        let file = tempfile::NamedTempFile::new().expect("file");
        let workers: Vec<u64> = (0..2000).map(|at| at / 3).collect();
        let bytes = block(Layout::Replayable, &workers);
        std::fs::write(file.path(), &bytes).expect("segment");
        assert!(read_all(file.path(), &bytes, 2000, Layout::Replayable, &home).expect("read") == bytes);
        // Other rows than there are: nothing is where it would be.
        assert!(read_all(file.path(), &bytes, 1999, Layout::Replayable, &home).expect("read") == bytes);

        let workers: Vec<u64> = (0..2000).rev().collect();
        let good = block(Layout::Lean, &workers);
        let mut bad = good.clone();
        for at in [0, 3, good.len() / 2, good.len() - 1] {
            bad[at] ^= 1;
            std::fs::write(file.path(), &bad).expect("segment");
            let sum = crc32c::crc32c(&good);
            let mut segment =
                OrderedSegment::open(file.path(), good.len() as u64, sum, 2000, Layout::Lean, Arc::clone(&home)).expect("opened");
            let mut sent = 0;
            let problem = loop {
                match segment.next() {
                    Ok(Some(piece)) => sent += piece.len(),
                    Ok(None) => panic!("damage at {at} went through"),
                    Err(problem) => break problem,
                }
            };
            assert!(matches!(&problem, ReadProblem::Damaged(text) if text.contains("CRC-32C")), "{problem:?}");
            assert!(sent < good.len(), "the block is unfinished");
            bad[at] ^= 1;
        }
        let cut = OrderedSegment::open(file.path(), good.len() as u64 + 1, 0, 2000, Layout::Lean, Arc::clone(&home));
        assert!(matches!(cut, Err(ReadProblem::Damaged(_))));
    }
}
