//! The sums behind `otedama shares`: only the columns that are asked for, some thousand rows at a time, into one table per thread.
//!
//! A row of a segment has 85 bytes; what a group by worker and minute needs of it has 21. They are read with pread into buffers that stay in the second-level cache,
//! never through a mapping: a disk that fails is an error then, not a signal. A checksum over the whole file would read the other 64 bytes, so a segment is held
//! against the sums in its meta instead; `otedama log verify` is what checks every byte.
use crate::error::LogError;
use crate::id_map::mix;
use crate::layout::{COLUMNS, Layout};
use crate::scan::Filter;
use crate::segment::{LoggedRow, SegmentBlock, SegmentMeta};
use crate::shares::Key;
use crate::store::SegmentStore;
use otedama_primitives::ShareStatus;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Rows read at a time.
const BLOCK_ROWS: usize = 8192;
/// Bytes in which the header of a column fits: a name and a type, an enum with all its values at the longest.
const HEADER_BYTES: usize = 1024;
/// Slots of an empty table.
const SLOTS_FIRST: usize = 1 << 10;

/// Sums of one combination of keys.
#[derive(Clone, Copy, Default)]
pub(crate) struct Sums {
    pub(crate) shares: u64,
    pub(crate) work: u128,
    pub(crate) credited: u128,
}

#[derive(Clone, Copy)]
struct Slot<const N: usize> {
    keys: [u64; N],
    is_used: bool,
    sums: Sums,
}

/// An open-addressing table from keys to sums: one cache line per group where there are two keys.
pub(crate) struct GroupTable<const N: usize> {
    slots: Vec<Slot<N>>,
    used: usize,
}

impl<const N: usize> GroupTable<N> {
    const EMPTY: Slot<N> = Slot { keys: [0; N], is_used: false, sums: Sums { shares: 0, work: 0, credited: 0 } };

    pub(crate) fn new() -> Self {
        Self { slots: vec![Self::EMPTY; SLOTS_FIRST], used: 0 }
    }

    /// The sums of `keys`, made where they are new.
    #[inline]
    fn sums(&mut self, keys: &[u64; N]) -> &mut Sums {
        // At most half full, checked before the search: an empty slot is always found.
        if self.used * 2 >= self.slots.len() {
            self.grow();
        }
        let hash = keys.iter().fold(0, |hash, &key| mix(hash, key));
        // The length is a power of two.
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        while self.slots[at].is_used && self.slots[at].keys != *keys {
            at = (at + 1) & mask;
        }
        let slot = &mut self.slots[at];
        if !slot.is_used {
            (slot.is_used, slot.keys) = (true, *keys);
            self.used += 1;
        }
        &mut slot.sums
    }

    #[cold]
    fn grow(&mut self) {
        let larger = vec![Self::EMPTY; self.slots.len() * 2];
        let slots = std::mem::replace(&mut self.slots, larger);
        self.used = 0;
        for slot in slots.into_iter().filter(|slot| slot.is_used) {
            *self.sums(&slot.keys) = slot.sums;
        }
    }

    /// Adds one row.
    pub(crate) fn add(&mut self, keys: &[u64; N], row: &LoggedRow) {
        let sums = self.sums(keys);
        sums.shares += u64::from(row.share_count);
        sums.work += u128::from(row.work);
        if row.status == ShareStatus::Accepted as u8 {
            sums.credited += u128::from(row.work);
        }
    }

    fn merge(&mut self, other: Self) {
        for (keys, theirs) in other.into_groups() {
            let sums = self.sums(&keys);
            sums.shares += theirs.shares;
            sums.work += theirs.work;
            sums.credited += theirs.credited;
        }
    }

    /// Every group that has a row, in no order.
    pub(crate) fn into_groups(self) -> impl Iterator<Item = ([u64; N], Sums)> {
        self.slots.into_iter().filter(|slot| slot.is_used && slot.sums.shares > 0).map(|slot| (slot.keys, slot.sums))
    }
}

/// The columns that groups and filters read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Column {
    Time,
    Us,
    Session,
    Worker,
    Job,
    Coin,
    Status,
    Work,
}

impl Column {
    const ALL: [Self; 8] = [Self::Time, Self::Us, Self::Session, Self::Worker, Self::Job, Self::Coin, Self::Status, Self::Work];

    const fn name(self) -> &'static str {
        match self {
            Self::Time => "time",
            Self::Us => "us",
            Self::Session => "session",
            Self::Worker => "worker",
            Self::Job => "job",
            Self::Coin => "coin",
            Self::Status => "status",
            Self::Work => "work",
        }
    }
}

/// A `.native` file whose columns are known by their place.
struct ColumnFile {
    file: File,
    /// Offset of the first value, by `Column`.
    offsets: [u64; Column::ALL.len()],
}

impl ColumnFile {
    /// Finds the columns of a segment. None where the file is not a block of `meta.rows` rows of known columns, or cannot be read: whoever reads it whole tells what it is.
    fn open(path: &Path, meta: &SegmentMeta) -> Option<Self> {
        if meta.layout == Layout::Rollup {
            // Few rows, which stand for several shares each.
            return None;
        }
        let file = File::open(path).ok()?;
        if file.metadata().ok()?.len() != meta.native_bytes {
            return None;
        }
        let mut bytes = [0u8; HEADER_BYTES];
        let mut read = |offset: u64| {
            let length = (meta.native_bytes.saturating_sub(offset) as usize).min(HEADER_BYTES);
            file.read_exact_at(bytes.get_mut(..length)?, offset).ok()?;
            Some(bytes)
        };
        let head = read(0)?;
        let mut rest = head.as_slice();
        let columns = crate::segment::take_varint(&mut rest)?;
        let rows = crate::segment::take_varint(&mut rest)?;
        if rows != u64::from(meta.rows) || columns > 2 * COLUMNS.len() as u64 {
            return None;
        }
        let mut offset = (head.len() - rest.len()) as u64;
        let mut offsets = [None; Column::ALL.len()];
        for _ in 0..columns {
            let header = read(offset)?;
            let mut rest = header.as_slice();
            let name = crate::segment::take_text(&mut rest)?;
            let kind = crate::segment::take_text(&mut rest)?;
            // A column that this module does not know may change what a row stands for.
            let (name, _, width) =
                COLUMNS.iter().find(|(known, of_kind, _)| known.as_bytes() == name && of_kind.as_bytes() == kind).copied()?;
            offset += (header.len() - rest.len()) as u64;
            if let Some((slot, _)) = offsets.iter_mut().zip(Column::ALL).find(|(_, column)| column.name() == name) {
                *slot = Some(offset);
            }
            offset += rows * width as u64;
        }
        if offset != meta.native_bytes {
            return None;
        }
        let mut known = [0u64; Column::ALL.len()];
        for (known, offset) in known.iter_mut().zip(offsets) {
            *known = offset?;
        }
        Some(Self { file, offsets: known })
    }

    fn read<T: bytemuck::Pod>(&self, column: Column, row: usize, into: &mut [T]) -> std::io::Result<()> {
        let offset = self.offsets.get(column as usize).copied().unwrap_or(u64::MAX);
        self.file.read_exact_at(bytemuck::cast_slice_mut(into), offset + (row * size_of::<T>()) as u64)
    }
}

/// Buffers of one thread, kept from block to block.
struct Buffers<const N: usize> {
    keys: [Vec<u64>; N],
    work: Vec<u64>,
    status: Vec<u8>,
    halves: Vec<u32>,
    bytes: Vec<u8>,
    arrival_us: Vec<u64>,
}

impl<const N: usize> Buffers<N> {
    fn new() -> Self {
        Self {
            keys: std::array::from_fn(|_| vec![0; BLOCK_ROWS]),
            work: vec![0; BLOCK_ROWS],
            status: vec![0; BLOCK_ROWS],
            halves: vec![0; BLOCK_ROWS],
            bytes: vec![0; BLOCK_ROWS],
            arrival_us: vec![0; BLOCK_ROWS],
        }
    }
}

/// What a scan of one segment came to.
enum Scanned {
    /// All of it is in the table.
    Whole,
    /// Retention has removed it.
    Gone,
    /// It cannot be used; nothing of it is in the table.
    Damaged(String),
}

/// One thread's part of a scan.
struct Scan<'a, const N: usize> {
    store: &'a SegmentStore,
    keys: &'a [Key; N],
    filter: &'a Filter,
    table: GroupTable<N>,
    buffers: Buffers<N>,
    whole: Vec<u8>,
}

/// Groups the rows of `metas` that `filter` takes, on `threads` threads. Beside the sums: a sentence for each segment that could not be used, in their order.
pub(crate) fn segments<const N: usize>(
    store: &SegmentStore,
    metas: &[&SegmentMeta],
    keys: &[Key; N],
    filter: &Filter,
    threads: usize,
) -> Result<(GroupTable<N>, Vec<String>), LogError> {
    let next = AtomicUsize::new(0);
    let scan = || -> Result<(GroupTable<N>, Vec<(usize, String)>), LogError> {
        let mut scan = Scan { store, keys, filter, table: GroupTable::new(), buffers: Buffers::new(), whole: Vec::new() };
        let mut damaged = Vec::new();
        // Relaxed: the number alone is shared; what the threads found is joined.
        while let Some(&meta) = metas.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Scanned::Damaged(what) = scan.segment(meta)? {
                damaged.push((meta.sequence() as usize, what));
            }
        }
        Ok((scan.table, damaged))
    };
    let threads = threads.clamp(1, metas.len().max(1));
    let mut parts = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(scan)).collect();
        let own = scan();
        let mut parts = vec![own];
        for other in others {
            match other.join() {
                Ok(part) => parts.push(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        parts
    });
    let (mut table, mut damaged) = parts.swap_remove(0)?;
    for part in parts {
        let (other, their_damaged) = part?;
        table.merge(other);
        damaged.extend(their_damaged);
    }
    damaged.sort();
    Ok((table, damaged.into_iter().map(|(_, what)| what).collect()))
}

impl<const N: usize> Scan<'_, N> {
    fn segment(&mut self, meta: &SegmentMeta) -> Result<Scanned, LogError> {
        let path = self.store.native_path(meta);
        let Some(columns) = ColumnFile::open(&path, meta) else { return self.whole_segment(meta) };
        let io = LogError::io("read", &path);
        let is_whole = self.filter.takes_all(meta);
        let (mut work_sum, mut credited) = (0u128, 0u128);
        let outcome = self.blocks(&columns, meta, |table, keys, work, status| {
            let credit = if status == ShareStatus::Accepted as u8 { work } else { 0 };
            let sums = table.sums(keys);
            sums.shares += 1;
            sums.work += u128::from(work);
            sums.credited += u128::from(credit);
            work_sum += u128::from(work);
            credited += u128::from(credit);
        });
        outcome.map_err(io)?;
        if !is_whole || (work_sum, credited) == (meta.work_sum, meta.work_credited) {
            return Ok(Scanned::Whole);
        }
        // What was added is taken back, row by row: rare, and cheaper than a table per segment.
        self.blocks(&columns, meta, |table, keys, work, status| {
            let sums = table.sums(keys);
            sums.shares -= 1;
            sums.work -= u128::from(work);
            if status == ShareStatus::Accepted as u8 {
                sums.credited -= u128::from(work);
            }
        })
        .map_err(LogError::io("read", &path))?;
        let problem = LogError::damaged(&path, "its sums of work are not those of its meta");
        Ok(Scanned::Damaged(problem.to_string()))
    }

    /// Gives every row that the filter takes, with its keys.
    #[inline]
    fn blocks(
        &mut self,
        columns: &ColumnFile,
        meta: &SegmentMeta,
        mut add: impl FnMut(&mut GroupTable<N>, &[u64; N], u64, u8),
    ) -> std::io::Result<()> {
        let rows = meta.rows as usize;
        let by_time = !self.filter.takes_every_time(meta);
        let wanted_status = self.filter.status.map(|status| status as u8);
        let mut row = 0;
        while row < rows {
            let count = (rows - row).min(BLOCK_ROWS);
            let Buffers { keys, work, status, halves, bytes, arrival_us } = &mut self.buffers;
            let (work, status) = (&mut work[..count], &mut status[..count]);
            let (halves, bytes, arrival_us) = (&mut halves[..count], &mut bytes[..count], &mut arrival_us[..count]);
            columns.read(Column::Work, row, work)?;
            columns.read(Column::Status, row, status)?;
            if by_time {
                columns.read(Column::Us, row, halves)?;
                for (arrival, &us) in arrival_us.iter_mut().zip(halves.iter()) {
                    *arrival = u64::from(us);
                }
                columns.read(Column::Time, row, halves)?;
                for (arrival, &second) in arrival_us.iter_mut().zip(halves.iter()) {
                    *arrival += u64::from(second) * 1_000_000;
                }
            }
            for (of_rows, key) in keys.iter_mut().zip(self.keys) {
                let of_rows = &mut of_rows[..count];
                let mut seconds_over = |divisor: u32| -> std::io::Result<()> {
                    columns.read(Column::Time, row, halves)?;
                    of_rows.iter_mut().zip(halves.iter()).for_each(|(key, &second)| *key = u64::from(second / divisor));
                    Ok(())
                };
                match key {
                    Key::Minute => seconds_over(60)?,
                    Key::Hour => seconds_over(3600)?,
                    Key::Day => seconds_over(86_400)?,
                    Key::Worker => columns.read(Column::Worker, row, of_rows)?,
                    Key::Session => columns.read(Column::Session, row, of_rows)?,
                    Key::Job => columns.read(Column::Job, row, of_rows)?,
                    Key::Status => of_rows.iter_mut().zip(status.iter()).for_each(|(key, &status)| *key = u64::from(status)),
                    Key::Coin => {
                        columns.read(Column::Coin, row, bytes)?;
                        of_rows.iter_mut().zip(bytes.iter()).for_each(|(key, &coin)| *key = u64::from(coin));
                    }
                }
            }
            let keys: [&[u64]; N] = std::array::from_fn(|index| &keys[index][..count]);
            if by_time || wanted_status.is_some() {
                for index in 0..count {
                    let in_time = !by_time || self.filter.takes_time(arrival_us[index]);
                    if in_time && wanted_status.is_none_or(|wanted| wanted == status[index]) {
                        add(&mut self.table, &keys.map(|key| key[index]), work[index], status[index]);
                    }
                }
            } else {
                for index in 0..count {
                    add(&mut self.table, &keys.map(|key| key[index]), work[index], status[index]);
                }
            }
            row += count;
        }
        Ok(())
    }

    /// The long way: every byte is read and summed, and whatever is odd about the file gets its name.
    fn whole_segment(&mut self, meta: &SegmentMeta) -> Result<Scanned, LogError> {
        match self.store.read_native(meta, &mut self.whole) {
            Ok(true) => {}
            Ok(false) => return Ok(Scanned::Gone),
            Err(error @ LogError::Damaged { .. }) => return Ok(Scanned::Damaged(error.to_string())),
            Err(error) => return Err(error),
        }
        match SegmentBlock::parse(&self.whole) {
            Ok(block) => {
                for row in (0..block.rows()).map(|row| block.row(row)).filter(|row| self.filter.takes(row)) {
                    self.table.add(&keys_of(self.keys, &row), &row);
                }
                Ok(Scanned::Whole)
            }
            Err(what) => Ok(Scanned::Damaged(LogError::damaged(&self.store.native_path(meta), what).to_string())),
        }
    }
}

/// The keys of one row.
#[inline]
pub(crate) fn keys_of<const N: usize>(keys: &[Key; N], row: &LoggedRow) -> [u64; N] {
    keys.map(|key| key.of(row))
}
