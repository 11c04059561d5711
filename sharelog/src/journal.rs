//! The open form of the log: the log stage appends batches to mapped, preallocated files.
use crate::error::JournalFull;
use crate::folder::WriterLock;
use crate::journal_format::{
    BATCH_DIMENSIONS_MAX, BATCH_ROWS_MAX, CELL, COMMITTED_END_OFFSET, Commit, DIMENSION_CELLS, FIRST_CELL, committed_end_word, hash_cells,
    row_sequence,
};
use crate::mapping::MappedFile;
use crate::sync::JournalSync;
use otedama_killpoint::pass;
use otedama_primitives::{Dimension, Hash256, ShareRow};
use std::sync::Arc;

/// A journal file ready for batches: mapped, faulted in, its header written. In tier `disk` the mapping is of memory that the sync thread copies to the file.
pub(crate) struct JournalFile {
    pub(crate) map: MappedFile,
    pub(crate) number: u32,
    pub(crate) cells: u32,
}

/// The writing end of the journal; it moves into the log stage. It never allocates, syncs, renames or touches a page for the first time: files come ready made
/// from the sealer over a ring and go back over another.
pub struct Journal {
    current: Option<JournalFile>,
    next_cell: u32,
    next_row: u32,
    last_us: u64,
    rows_appended: u64,
    spares: rtrb::Consumer<JournalFile>,
    full: rtrb::Producer<JournalFile>,
    /// Tier `disk`: tells the sync thread how far the journal is, and hears how far it is durable.
    sync: Option<JournalSync>,
    _lock: Arc<WriterLock>,
}

impl Journal {
    pub(crate) fn new(
        spares: rtrb::Consumer<JournalFile>,
        full: rtrb::Producer<JournalFile>,
        sync: Option<JournalSync>,
        lock: Arc<WriterLock>,
    ) -> Self {
        Self { current: None, next_cell: 0, next_row: 0, last_us: 0, rows_appended: 0, spares, full, sync, _lock: lock }
    }

    /// The place behind the last batch, as `durable_position` counts: grows with every append, 0 before the first.
    #[inline]
    pub fn position(&self) -> u64 {
        self.current.as_ref().map_or(0, |file| row_sequence(file.number, self.next_cell))
    }

    /// Up to where what was appended holds as the tier promises: batches whose `position` was at or under it may be acknowledged. In tier `disk` it follows the sync
    /// thread; otherwise an append holds when it returns.
    #[inline]
    pub fn durable_position(&mut self) -> u64 {
        match self.sync.as_mut() {
            Some(sync) => sync.durable_position(),
            None => u64::MAX,
        }
    }

    /// True where answers wait for a sync: tier `disk`.
    pub fn is_synced(&self) -> bool {
        self.sync.is_some()
    }

    /// True while what is appended cannot be made durable: the disk refuses it.
    pub fn sync_is_failing(&self) -> bool {
        self.sync.as_ref().is_some_and(JournalSync::is_failing)
    }

    /// Cells of 64 bytes (one per row, one per two hashes, four per dimension record) that a single `append` can take right now. Zero: the log is full.
    #[inline]
    pub fn room_cells(&self) -> usize {
        let here = self.current.as_ref().map_or(0, |file| file.cells.saturating_sub(self.next_cell + 1));
        let next = self.spares.peek().map_or(0, |file| file.cells.saturating_sub(FIRST_CELL + 1));
        here.max(next) as usize
    }

    /// Rows appended since open.
    pub fn rows_appended(&self) -> u64 {
        self.rows_appended
    }

    /// Appends one batch: all of it becomes durable against the death of the process before this returns, or nothing on `JournalFull`.
    /// `arrival_us` never goes back within the journal: an earlier time is raised to the last one.
    ///
    /// # Panics
    /// When the batch has more than 512 rows or 64 dimension records.
    pub fn append(&mut self, dimensions: &[Dimension], rows: &[ShareRow]) -> Result<(), JournalFull> {
        self.append_hashed(dimensions, rows, &[])
    }

    /// As `append`, with the hash of every row: for a log of layout `full`. In a log of another layout `hashes` is empty.
    ///
    /// # Panics
    /// As `append`, and when there are hashes, but not one per row.
    pub fn append_hashed(&mut self, dimensions: &[Dimension], rows: &[ShareRow], hashes: &[Hash256]) -> Result<(), JournalFull> {
        assert!(hashes.is_empty() || hashes.len() == rows.len(), "one hash per row, or none");
        assert!(rows.len() <= BATCH_ROWS_MAX, "a batch has at most 512 rows");
        assert!(dimensions.len() <= BATCH_DIMENSIONS_MAX, "a batch has at most 64 dimension records");
        let cells = dimensions.len() as u32 * DIMENSION_CELLS + rows.len() as u32 + hash_cells(hashes.len() as u32);
        if cells == 0 {
            return Ok(());
        }
        if self.current.as_ref().is_none_or(|file| file.cells - self.next_cell < cells + 1) {
            self.turn(cells)?;
        }
        let Some(file) = self.current.as_mut() else { return Err(JournalFull) };

        let at = self.next_cell as usize * CELL;
        let Some((commit_bytes, body)) =
            file.map.bytes_mut().get_mut(at..at + (cells as usize + 1) * CELL).and_then(|batch| batch.split_at_mut_checked(CELL))
        else {
            return Err(JournalFull);
        };
        let (dimension_bytes, rest) = body.split_at_mut(size_of_val(dimensions));
        let (row_bytes, hash_bytes) = rest.split_at_mut(size_of_val(rows));
        dimension_bytes.copy_from_slice(bytemuck::cast_slice(dimensions));
        row_bytes.copy_from_slice(bytemuck::cast_slice(rows));
        let (hash_bytes, odd) = hash_bytes.split_at_mut(size_of_val(hashes));
        hash_bytes.copy_from_slice(bytemuck::cast_slice(hashes));
        // The cell behind an odd number of hashes: what an earlier use of the file left there would be in the crc all the same, but the same batch is the same bytes.
        odd.fill(0);
        let mut last_us = self.last_us;
        let mut goes_back = false;
        for row in rows {
            goes_back |= row.arrival_us < last_us;
            last_us = last_us.max(row.arrival_us);
        }
        if goes_back {
            raise_times(row_bytes, rows, self.last_us);
        }

        let commit = Commit {
            file_number: file.number,
            first_row: self.next_row,
            rows: rows.len() as u32,
            dimensions: dimensions.len() as u32,
            has_hashes: !hashes.is_empty(),
            cells_crc: crc32c::crc32c(body),
        };
        let record = commit.encode();
        let (first, rest) = record.split_at(8);
        if let Some(slot) = commit_bytes.get_mut(8..) {
            slot.copy_from_slice(rest);
        }
        pass("journal.cells_written");
        // Release, twice: the cells and the rest of the record come before the word with magic and file number, and that before the committed end.
        let word = first.first_chunk().map_or(0, |eight| u64::from_le_bytes(*eight));
        file.map.store_release(at, word);
        pass("journal.commit_stored");
        self.next_cell += cells + 1;
        file.map.store_release(COMMITTED_END_OFFSET, committed_end_word(file.number, self.next_cell));
        pass("journal.end_stored");
        if let Some(sync) = self.sync.as_ref() {
            sync.appended(row_sequence(file.number, self.next_cell));
        }
        self.next_row += rows.len() as u32;
        self.rows_appended += rows.len() as u64;
        self.last_us = last_us;
        Ok(())
    }

    /// Gives the current file back and takes the next one, if it can hold `cells` and a commit record.
    #[cold]
    fn turn(&mut self, cells: u32) -> Result<(), JournalFull> {
        match self.spares.peek() {
            Ok(next) if next.cells - FIRST_CELL > cells => {}
            _ => return Err(JournalFull),
        }
        if let Some(file) = self.current.take()
            && let Err(rtrb::PushError::Full(file)) = self.full.push(file)
        {
            // The sealer sizes both rings for every file there is; should that ever fail, refusing is better than losing a file.
            self.current = Some(file);
            return Err(JournalFull);
        }
        self.current = self.spares.pop().ok();
        self.next_cell = FIRST_CELL;
        self.next_row = 0;
        pass("journal.turned");
        Ok(())
    }
}

/// Writes the rows anew with times that never go back. Rare: only after the wall clock was set back under a clock that does not hold.
#[cold]
fn raise_times(row_bytes: &mut [u8], rows: &[ShareRow], mut last_us: u64) {
    for (slot, row) in row_bytes.chunks_exact_mut(CELL).zip(rows) {
        last_us = last_us.max(row.arrival_us);
        slot.copy_from_slice(bytemuck::bytes_of(&ShareRow { arrival_us: last_us, ..*row }));
    }
}
