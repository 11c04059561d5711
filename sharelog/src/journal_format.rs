//! Bytes of a journal file: a header, the committed end, then batches. All numbers little-endian, all in 64-byte cells.
//!
//! ```text
//! cell 0   header: magic, version, file number, run prefix, directory epoch, cells, newest segment; crc32c in its last 4 bytes
//! cell 1   committed end: next free cell u32, crc32c of (file number, next free cell) u32; one word, stored last of all;
//!          in tier `disk` a second such word: the end that was durable when the first was written (0 in the other tiers)
//! cell 2.. batches: a commit record, then dimension cells (4 per record), then row cells (1 per row);
//!          in files of version 2, which layout `full` writes, then hash cells (2 hashes per cell, in order of the rows)
//! ```
//! A commit stands before its cells but is written after them, so a scan is a walk. The word with its magic and file number is stored after the rest of the record:
//! a process killed half way leaves no commit. A recycled file has a higher number, so what an earlier use left behind is not valid.
//!
//! In tier `disk` nothing behind the durable end was acknowledged before the next sync returned. Pages reach a disk in any order, so a power cut may leave holes there:
//! the file ends at the first of them. Below the durable end a hole is damage.
use bytemuck::{Pod, Zeroable};
use otedama_primitives::{Dimension, Hash256, ShareRow};

/// Bytes of a cell.
pub(crate) const CELL: usize = 64;
/// First cell of batches.
pub(crate) const FIRST_CELL: u32 = 2;
/// Cells of a dimension record.
pub(crate) const DIMENSION_CELLS: u32 = (size_of::<Dimension>() / CELL) as u32;
/// Rows of a batch, at most.
pub const BATCH_ROWS_MAX: usize = 512;
/// Dimension records of a batch, at most.
pub const BATCH_DIMENSIONS_MAX: usize = 64;
/// Cells of a batch with its commit record, at most.
pub(crate) const BATCH_CELLS_MAX: u32 =
    1 + BATCH_DIMENSIONS_MAX as u32 * DIMENSION_CELLS + BATCH_ROWS_MAX as u32 + hash_cells(BATCH_ROWS_MAX as u32);
/// Byte offset of the committed end.
pub(crate) const COMMITTED_END_OFFSET: usize = CELL;
/// Byte offset of the durable end.
pub(crate) const DURABLE_END_OFFSET: usize = CELL + 8;
/// Bytes of header and committed end.
pub(crate) const PREAMBLE: usize = 2 * CELL;

const HEADER_MAGIC: [u8; 8] = *b"OTEDJRN\x01";
const COMMIT_MAGIC: u32 = 0xC0A1_17ED;
/// Files without hashes, which every release reads, and with them.
const VERSION: u32 = 1;
const VERSION_WITH_HASHES: u32 = 2;

/// Cells that the hashes of so many rows take.
pub(crate) const fn hash_cells(rows: u32) -> u32 {
    rows.div_ceil((CELL / size_of::<Hash256>()) as u32)
}

const _: () = assert!(cfg!(target_endian = "little"), "rows and columns are written as they lie in memory");
const _: () = assert!(size_of::<ShareRow>() == CELL && size_of::<Dimension>() == CELL * DIMENSION_CELLS as usize);

/// 64 bytes with the alignment of a row, so that buffers of cells read as rows without a copy.
#[repr(C, align(64))]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct Cell(pub(crate) [u8; CELL]);

/// A place in the journal: file number << 32 | row index in the file (or cell, where positions of batches are compared). Grows over the life of a folder, with gaps between files; no two rows share one.
pub(crate) fn row_sequence(file_number: u32, row: u32) -> u64 {
    (u64::from(file_number) << 32) | u64::from(row)
}

/// What stands at the front of a journal file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct JournalHeader {
    pub(crate) file_number: u32,
    /// Instance and boot epoch: the upper half of every session and job in the file.
    pub(crate) run_prefix: u32,
    /// Epoch of the folder.
    pub(crate) epoch: u32,
    /// Cells of the file, header included.
    pub(crate) cells: u32,
    /// Sequence of the newest segment when the file was made ready: were the newest segments to vanish with their metas, this still tells. 0 in files of earlier builds.
    pub(crate) sealed: u32,
    /// Batches may carry the hashes of their rows.
    pub(crate) has_hashes: bool,
}

impl JournalHeader {
    /// Header and committed end of a file without batches.
    pub(crate) fn preamble(&self) -> [u8; PREAMBLE] {
        let mut bytes = [0u8; PREAMBLE];
        bytes[0..8].copy_from_slice(&HEADER_MAGIC);
        let version = if self.has_hashes { VERSION_WITH_HASHES } else { VERSION };
        bytes[8..12].copy_from_slice(&version.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.file_number.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.run_prefix.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.cells.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.sealed.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        bytes[COMMITTED_END_OFFSET..COMMITTED_END_OFFSET + 8]
            .copy_from_slice(&committed_end_word(self.file_number, FIRST_CELL).to_le_bytes());
        bytes
    }

    /// The header, or why there is none.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, HeaderProblem> {
        let Some(bytes) = bytes.first_chunk::<CELL>() else { return Err(HeaderProblem::Short) };
        if bytes.iter().all(|&byte| byte == 0) {
            return Err(HeaderProblem::Blank);
        }
        if crc32c::crc32c(&bytes[..60]) != word32(bytes, 60) || bytes[0..8] != HEADER_MAGIC {
            return Err(HeaderProblem::Damaged);
        }
        let version = word32(bytes, 8);
        if version != VERSION && version != VERSION_WITH_HASHES {
            return Err(HeaderProblem::Version(version));
        }
        Ok(Self {
            file_number: word32(bytes, 12),
            run_prefix: word32(bytes, 16),
            epoch: word32(bytes, 20),
            cells: word32(bytes, 24),
            sealed: word32(bytes, 28),
            has_hashes: version == VERSION_WITH_HASHES,
        })
    }
}

/// Why a header was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum HeaderProblem {
    #[error("shorter than a journal header")]
    Short,
    #[error("there is no header, only zeros")]
    Blank,
    #[error("the header's crc does not match")]
    Damaged,
    #[error("journal version {0} is of another release, this one reads versions 1 and 2")]
    Version(u32),
}

fn word32(bytes: &[u8; CELL], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |four| u32::from_le_bytes(*four))
}

fn word64(bytes: &[u8; CELL], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |eight| u64::from_le_bytes(*eight))
}

/// The word of cell 1. Its check is bound to the file number: a recycled file never shows the end of its earlier use.
#[inline]
pub(crate) fn committed_end_word(file_number: u32, next_cell: u32) -> u64 {
    let text = (u64::from(file_number) << 32) | u64::from(next_cell);
    u64::from(next_cell) | (u64::from(crc32c::crc32c(&text.to_le_bytes())) << 32)
}

/// The second word of cell 1. Its check is of its own kind: one word is never taken for the other.
pub(crate) fn durable_end_word(file_number: u32, next_cell: u32) -> u64 {
    let text = (u64::from(next_cell) << 32) | u64::from(!file_number);
    u64::from(next_cell) | (u64::from(crc32c::crc32c(&text.to_le_bytes())) << 32)
}

/// The durable end that the word tells; None when its check fails, as it does in files of the other tiers.
pub(crate) fn durable_end(word: u64, file_number: u32) -> Option<u32> {
    let next_cell = word as u32;
    (durable_end_word(file_number, next_cell) == word).then_some(next_cell)
}

/// The first free cell that the word tells, None when its check fails.
pub(crate) fn committed_end(word: u64, file_number: u32) -> Option<u32> {
    let next_cell = word as u32;
    (committed_end_word(file_number, next_cell) == word).then_some(next_cell)
}

/// A commit record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Commit {
    pub(crate) file_number: u32,
    /// Index in the file of the first row.
    pub(crate) first_row: u32,
    pub(crate) rows: u32,
    pub(crate) dimensions: u32,
    /// Whether hash cells stand behind the rows.
    pub(crate) has_hashes: bool,
    /// crc32c of all cells of the batch.
    pub(crate) cells_crc: u32,
}

impl Commit {
    /// Cells behind the commit record.
    pub(crate) fn cells(&self) -> u32 {
        self.dimensions * DIMENSION_CELLS + self.rows + if self.has_hashes { hash_cells(self.rows) } else { 0 }
    }

    #[inline]
    pub(crate) fn encode(&self) -> [u8; CELL] {
        let mut bytes = [0u8; CELL];
        bytes[0..4].copy_from_slice(&COMMIT_MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.file_number.to_le_bytes());
        bytes[8..16].copy_from_slice(&row_sequence(self.file_number, self.first_row).to_le_bytes());
        bytes[16..20].copy_from_slice(&self.rows.to_le_bytes());
        bytes[20..24].copy_from_slice(&(self.dimensions * DIMENSION_CELLS).to_le_bytes());
        bytes[24..28].copy_from_slice(&self.cells_crc.to_le_bytes());
        bytes[28..32].copy_from_slice(&u32::from(self.has_hashes).to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; CELL], file_number: u32) -> Option<Self> {
        if word32(bytes, 0) != COMMIT_MAGIC || word32(bytes, 4) != file_number || word32(bytes, 60) != crc32c::crc32c(&bytes[..60]) {
            return None;
        }
        let sequence = word64(bytes, 8);
        let (rows, dimension_cells) = (word32(bytes, 16), word32(bytes, 20));
        let sound = (sequence >> 32) as u32 == file_number
            && rows as usize <= BATCH_ROWS_MAX
            && dimension_cells.is_multiple_of(DIMENSION_CELLS)
            && dimension_cells / DIMENSION_CELLS <= BATCH_DIMENSIONS_MAX as u32
            && rows + dimension_cells > 0
            && word32(bytes, 28) <= 1;
        sound.then_some(Self {
            file_number,
            first_row: sequence as u32,
            rows,
            dimensions: dimension_cells / DIMENSION_CELLS,
            has_hashes: word32(bytes, 28) == 1,
            cells_crc: word32(bytes, 24),
        })
    }
}

/// A batch as it lies in a buffer.
#[derive(Clone, Copy)]
pub(crate) struct Batch<'a> {
    pub(crate) commit: Commit,
    pub(crate) dimensions: &'a [Cell],
    pub(crate) rows: &'a [ShareRow],
    hashes: &'a [Cell],
}

impl Batch<'_> {
    /// The hash of row `index`; zeros where the batch has none.
    pub(crate) fn hash(&self, index: usize) -> Hash256 {
        self.hashes_from(index).first().copied().unwrap_or_default()
    }

    /// The hashes of row `index` and those behind it; empty where the batch has none.
    pub(crate) fn hashes_from(&self, index: usize) -> &[Hash256] {
        let hashes: &[Hash256] = bytemuck::cast_slice(self.hashes);
        hashes.get(index..self.rows.len()).unwrap_or_default()
    }

    /// The dimension records, copied out: cells are 64-byte aligned as they are.
    pub(crate) fn dimension_records(&self) -> impl Iterator<Item = Dimension> {
        self.dimensions.chunks_exact(DIMENSION_CELLS as usize).map(|cells| bytemuck::pod_read_unaligned(bytemuck::cast_slice(cells)))
    }
}

/// What stands at the front of a run of cells.
pub(crate) enum Parsed<'a> {
    /// A whole, checked batch.
    Batch(Batch<'a>),
    /// A commit whose cells reach beyond the buffer.
    Incomplete,
    /// No valid batch starts here.
    Nothing,
}

/// Reads the batch at the front of `cells`.
pub(crate) fn parse<'a>(cells: &'a [Cell], file_number: u32) -> Parsed<'a> {
    let Some((first, rest)) = cells.split_first() else { return Parsed::Incomplete };
    let Some(commit) = Commit::decode(&first.0, file_number) else { return Parsed::Nothing };
    let Some(body) = rest.get(..commit.cells() as usize) else { return Parsed::Incomplete };
    if crc32c::crc32c(bytemuck::cast_slice(body)) != commit.cells_crc {
        return Parsed::Nothing;
    }
    let Some((dimensions, rest)) = body.split_at_checked((commit.dimensions * DIMENSION_CELLS) as usize) else { return Parsed::Nothing };
    let Some((rows, hashes)) = rest.split_at_checked(commit.rows as usize) else { return Parsed::Nothing };
    Parsed::Batch(Batch { commit, dimensions, rows: bytemuck::cast_slice(rows), hashes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_comes_back_and_every_flipped_byte_of_it_is_seen() {
        let header = JournalHeader { file_number: 7, run_prefix: 0x0112_3456, epoch: 9, cells: 1024, sealed: 77, has_hashes: false };
        assert_eq!(
            JournalHeader::decode(&JournalHeader { has_hashes: true, ..header }.preamble()),
            Ok(JournalHeader { has_hashes: true, ..header })
        );
        let bytes = header.preamble();
        assert_eq!(JournalHeader::decode(&bytes), Ok(header));
        for at in 0..CELL {
            for bit in 0..8 {
                let mut bad = bytes;
                bad[at] ^= 1 << bit;
                assert!(JournalHeader::decode(&bad).is_err(), "byte {at} bit {bit}");
            }
        }
        assert_eq!(JournalHeader::decode(&[0; 64]), Err(HeaderProblem::Blank));
        assert_eq!(JournalHeader::decode(&bytes[..63]), Err(HeaderProblem::Short));
    }

    #[test]
    fn the_committed_end_is_bound_to_the_file_number() {
        let word = committed_end_word(7, 40);
        assert_eq!(committed_end(word, 7), Some(40));
        assert_eq!(committed_end(word, 8), None);
        for bit in 0..64 {
            assert_eq!(committed_end(word ^ (1 << bit), 7), None);
        }
        assert_eq!((durable_end(durable_end_word(7, 40), 7), durable_end(durable_end_word(7, 40), 8)), (Some(40), None));
        assert_eq!((durable_end(word, 7), committed_end(durable_end_word(7, 40), 7), durable_end(0, 7)), (None, None, None));
    }

    #[test]
    fn a_commit_of_another_file_or_with_a_flipped_byte_is_none() {
        let commit = Commit { file_number: 3, first_row: 5, rows: 512, dimensions: 64, has_hashes: true, cells_crc: 0xdead_beef };
        let bytes = commit.encode();
        assert_eq!(Commit::decode(&bytes, 3), Some(commit));
        assert_eq!(Commit::decode(&bytes, 4), None);
        for at in 0..CELL {
            let mut bad = bytes;
            bad[at] ^= 0x10;
            assert_eq!(Commit::decode(&bad, 3), None, "byte {at}");
        }
    }
}
