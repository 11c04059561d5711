//! The sums behind `otedama shares`: only the columns that are asked for, some thousand rows at a time, on every core.
//!
//! A row of a segment has 85 bytes; what a group by worker and status needs of it has 17. A time that all rows of a segment share is not read either. What is left is cut
//! where a coin or a second identity changes; between two cuts identity, time and status are looked up together, in a table that stays in the cache (`IdentityTable`) and in
//! which rows of one worker, which lie side by side, find the same place. Rows whose other keys change all the time go into the large table one by one.
//!
//! A checksum over the whole file would read the other columns, so a segment is held against the sums in its meta instead; `otedama log verify` is what checks every byte.
use crate::column_file::{Column, ColumnFile};
use crate::error::LogError;
use crate::group_table::{GroupTable, IdentityTable, StatusSums, tag};
use crate::scan::Filter;
use crate::segment::{LoggedRow, SegmentBlock, SegmentMeta};
use crate::shares::Key;
use crate::store::SegmentStore;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Rows read at a time: with three columns of 8 bytes a fifth of a second-level cache of 1 MiB.
const BLOCK_ROWS: usize = 8192;
/// Rows between two cuts from which on the table of identities pays.
const RUN_ROWS_MIN: usize = 64;
/// Columns of identities, in the order in which they are looked up: rows lie by worker, and what else changes with it is cut at.
const IDENTITIES: [(Key, Column); 3] = [(Key::Worker, Column::Worker), (Key::Session, Column::Session), (Key::Job, Column::Job)];

/// Groups the rows of `metas` that `filter` takes, on `threads` threads. Beside the sums: a sentence for each segment that could not be used, in their order.
pub(crate) fn segments<const N: usize>(
    store: &SegmentStore,
    metas: &[&SegmentMeta],
    keys: &[Key; N],
    filter: &Filter,
    threads: usize,
) -> Result<(GroupTable<N>, Vec<String>), LogError> {
    let mut metas = metas.to_vec();
    let mut damaged = BTreeMap::new();
    loop {
        let (table, found) = pass(store, &metas, keys, filter, threads)?;
        let must_repeat = found.iter().any(|damage| damage.is_in_the_table);
        damaged.extend(found.into_iter().map(|damage| (damage.sequence, damage.what)));
        if !must_repeat {
            return Ok((table, damaged.into_values().collect()));
        }
        // The rows of a segment are in the table before its last row shows that its sums are wrong. Rare enough to begin again without it.
        metas.retain(|meta| !damaged.contains_key(&meta.sequence()));
    }
}

/// A segment that cannot be used.
struct Damage {
    sequence: u32,
    what: String,
    is_in_the_table: bool,
}

fn pass<const N: usize>(
    store: &SegmentStore,
    metas: &[&SegmentMeta],
    keys: &[Key; N],
    filter: &Filter,
    threads: usize,
) -> Result<(GroupTable<N>, Vec<Damage>), LogError> {
    let next = AtomicUsize::new(0);
    let scan = || -> Result<(GroupTable<N>, Vec<Damage>), LogError> {
        let mut scan = Scan::new(store, keys, filter);
        let mut damaged = Vec::new();
        // Relaxed: the number alone is shared; what the threads found is joined.
        let open_next = || metas.get(next.fetch_add(1, Ordering::Relaxed)).map(|&meta| Opened::new(store, meta, keys, filter));
        let mut current = open_next();
        while let Some(segment) = current {
            // Opened one ahead: the disk reads its columns while this one is summed.
            current = open_next();
            damaged.extend(scan.segment(&segment)?);
        }
        scan.flush();
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
    Ok((table, damaged))
}

/// A segment about to be summed.
struct Opened<'a> {
    meta: &'a SegmentMeta,
    path: PathBuf,
    /// None where it has to be read whole.
    columns: Option<ColumnFile>,
    /// True when some of its rows may have arrived at a moment that is not wanted.
    by_time: bool,
    /// The second that stands for the time of all rows, where they do not differ in what the keys show of it.
    one_second: Option<u32>,
}

impl<'a> Opened<'a> {
    fn new(store: &SegmentStore, meta: &'a SegmentMeta, keys: &[Key], filter: &Filter) -> Self {
        let path = store.native_path(meta);
        let columns = ColumnFile::open(&path, meta);
        let by_time = !filter.takes_every_time(meta);
        let (first, last) = ((meta.first_us / 1_000_000) as u32, (meta.last_us / 1_000_000) as u32);
        let is_one_time = shortest_s(keys).is_none_or(|time_s| first / time_s == last / time_s);
        let opened = Self { meta, path, columns, by_time, one_second: (is_one_time && !by_time).then_some(first) };
        if let Some(columns) = &opened.columns {
            columns.read_ahead(opened.wanted(keys), meta.rows as usize);
        }
        opened
    }

    /// The columns that are read.
    fn wanted(&self, keys: &[Key]) -> impl Iterator<Item = Column> {
        let identities = IDENTITIES.into_iter().filter(|(key, _)| keys.contains(key)).map(|(_, column)| column);
        let others = [(Column::Coin, keys.contains(&Key::Coin)), (Column::Time, self.one_second.is_none()), (Column::Us, self.by_time)];
        let others = others.into_iter().filter(|(_, is_wanted)| *is_wanted).map(|(column, _)| column);
        [Column::Work, Column::Status].into_iter().chain(identities).chain(others)
    }
}

/// Columns of a block of rows. Those that nothing asks for are empty.
struct Block {
    rows: usize,
    work: Vec<u64>,
    status: Vec<u8>,
    coin: Vec<u8>,
    /// By `IDENTITIES`.
    identities: [Vec<u64>; IDENTITIES.len()],
    /// Seconds since the epoch of each row, or of all of them.
    seconds: Vec<u32>,
    one_second: Option<u32>,
    us: Vec<u32>,
}

impl Block {
    /// Reads one column of rows from `row` on.
    fn read(&mut self, from: &ColumnFile, column: Column, row: usize, rows: usize) -> std::io::Result<()> {
        fn values<T: bytemuck::Pod>(from: &ColumnFile, column: Column, row: usize, rows: usize, into: &mut Vec<T>) -> std::io::Result<()> {
            into.resize(rows, T::zeroed());
            from.read(column, row, into)
        }
        self.rows = rows;
        let [workers, sessions, jobs] = &mut self.identities;
        match column {
            Column::Work => values(from, column, row, rows, &mut self.work),
            Column::Worker => values(from, column, row, rows, workers),
            Column::Session => values(from, column, row, rows, sessions),
            Column::Job => values(from, column, row, rows, jobs),
            Column::Time => values(from, column, row, rows, &mut self.seconds),
            Column::Us => values(from, column, row, rows, &mut self.us),
            Column::Status => values(from, column, row, rows, &mut self.status),
            Column::Coin => values(from, column, row, rows, &mut self.coin),
        }
    }

    #[inline]
    fn second(&self, row: usize) -> u32 {
        self.one_second.unwrap_or_else(|| self.seconds[row])
    }

    #[inline]
    fn key(&self, key: Key, row: usize) -> u64 {
        match key {
            Key::Worker => self.identities[0][row],
            Key::Session => self.identities[1][row],
            Key::Job => self.identities[2][row],
            Key::Minute => u64::from(self.second(row) / 60),
            Key::Hour => u64::from(self.second(row) / 3600),
            Key::Day => u64::from(self.second(row) / 86_400),
            Key::Status => u64::from(self.status[row]),
            Key::Coin => u64::from(self.coin[row]),
        }
    }

    fn arrival_us(&self, row: usize) -> u64 {
        u64::from(self.seconds[row]) * 1_000_000 + u64::from(self.us[row])
    }
}

/// Seconds of a key that is a time.
fn seconds_of(key: Key) -> Option<u32> {
    match key {
        Key::Minute => Some(60),
        Key::Hour => Some(3600),
        Key::Day => Some(86_400),
        _ => None,
    }
}

/// Seconds of the shortest time among the keys.
fn shortest_s(keys: &[Key]) -> Option<u32> {
    keys.iter().filter_map(|&key| seconds_of(key)).min()
}

/// A week: a segment has one day.
const SECONDS_MAX: u32 = 7 * 86_400;

/// The times of the shortest key, counted from the first of a segment.
struct Times {
    /// Seconds of one.
    length_s: u32,
    /// 2^40 over `length_s`, rounded up: a product and a shift divide exactly up to `SECONDS_MAX`, and without the tens of cycles of a division.
    inverse: u64,
    /// The one that is counted as 0.
    first: u32,
}

impl Times {
    fn new(length_s: Option<u32>) -> Self {
        let length_s = length_s.unwrap_or(86_400);
        Self { length_s, inverse: (1_u64 << 40).div_ceil(u64::from(length_s)), first: 0 }
    }

    /// The one of a second, from the epoch.
    fn number(&self, second: u32) -> u32 {
        second / self.length_s
    }

    /// The one of a second, from the first.
    #[inline]
    fn since_first(&self, second: u32) -> u32 {
        // A row from before the first, or of another week, is damaged: it stands apart.
        let since = second.wrapping_sub(self.first * self.length_s).min(SECONDS_MAX);
        ((u64::from(since) * self.inverse) >> 40) as u32
    }

    /// Where one counted from the first begins, seconds since the epoch.
    fn second(&self, time: u32) -> u64 {
        (u64::from(self.first) + u64::from(time)) * u64::from(self.length_s)
    }
}

/// The row behind the last that `same` takes, from `from` on; whole stretches at a look.
fn same_until<T: Copy>(column: &[T], from: usize, same: impl Fn(T) -> bool) -> usize {
    let rest = &column[from..];
    let whole: usize = rest.chunks(64).take_while(|part| part.iter().fold(true, |all, &value| all & same(value))).map(<[T]>::len).sum();
    from + whole + rest[whole..].iter().take_while(|value| same(**value)).count()
}

/// Where the keys change that are not looked up: the next row by column, found when it is passed.
#[derive(Default)]
struct Cuts {
    coin: usize,
    identities: [usize; IDENTITIES.len()],
}

impl Cuts {
    /// The row behind the stretch that begins with `from`.
    fn next(&mut self, block: &Block, from: usize, looked_up: Option<usize>) -> usize {
        let mut until = block.rows;
        if !block.coin.is_empty() {
            if self.coin <= from {
                self.coin = same_until(&block.coin, from, |coin| coin == block.coin[from]);
            }
            until = until.min(self.coin);
        }
        for (index, (column, cut)) in block.identities.iter().zip(&mut self.identities).enumerate() {
            if column.is_empty() || looked_up == Some(index) {
                continue;
            }
            if *cut <= from {
                *cut = same_until(column, from, |identity| identity == column[from]);
            }
            until = until.min(*cut);
        }
        until
    }
}

/// One thread's part of a scan.
struct Scan<'a, const N: usize> {
    store: &'a SegmentStore,
    keys: &'a [Key; N],
    filter: &'a Filter,
    table: GroupTable<N>,
    /// Rows that are not in `table` yet, all of the keys in `context`.
    identities: IdentityTable,
    /// Values of the keys; those that are looked up, identity, times and status, are 0.
    context: [u64; N],
    /// Index in `IDENTITIES` of what is looked up per row.
    looked_up: Option<usize>,
    times: Times,
    wanted_status: Option<u8>,
    block: Block,
    whole: Vec<u8>,
}

impl<'a, const N: usize> Scan<'a, N> {
    fn new(store: &'a SegmentStore, keys: &'a [Key; N], filter: &'a Filter) -> Self {
        let block = Block {
            rows: 0,
            work: Vec::new(),
            status: Vec::new(),
            coin: Vec::new(),
            identities: Default::default(),
            seconds: Vec::new(),
            one_second: None,
            us: Vec::new(),
        };
        Self {
            store,
            keys,
            filter,
            table: GroupTable::new(),
            identities: IdentityTable::new(),
            context: [0; N],
            looked_up: IDENTITIES.iter().position(|(key, _)| keys.contains(key)),
            times: Times::new(shortest_s(keys)),
            wanted_status: filter.status.map(|status| status as u8),
            block,
            whole: Vec::new(),
        }
    }

    /// Adds the rows of a segment that the filter takes.
    fn segment(&mut self, segment: &Opened<'_>) -> Result<Option<Damage>, LogError> {
        let Opened { meta, path, columns, by_time, one_second } = segment;
        let Some(columns) = columns else { return self.whole_segment(meta) };
        self.block.one_second = *one_second;
        if !*by_time {
            let first = self.times.number((meta.first_us / 1_000_000) as u32);
            if first != self.times.first {
                self.flush();
                self.times.first = first;
            }
        }
        let mut sums = StatusSums::default();
        let rows = meta.rows as usize;
        for row in (0..rows).step_by(BLOCK_ROWS) {
            let count = (rows - row).min(BLOCK_ROWS);
            for column in segment.wanted(self.keys) {
                self.block.read(columns, column, row, count).map_err(LogError::io("read", path))?;
            }
            if *by_time {
                self.add_filtered();
            } else {
                let mut of_block = StatusSums::default();
                of_block.add(&self.block.work, &self.block.status);
                sums.merge(&of_block);
                self.add_all(&of_block);
            }
        }
        // Rows that were left out are in no sum.
        if *by_time || sums.are(&meta.by_status, meta.work_sum, meta.work_credited) {
            return Ok(None);
        }
        let what = LogError::damaged(path, "its rows by status and their work are not those of its meta").to_string();
        Ok(Some(Damage { sequence: meta.sequence(), what, is_in_the_table: true }))
    }

    /// Adds the rows of the block that the filter takes, one by one.
    fn add_filtered(&mut self) {
        for row in 0..self.block.rows {
            if self.filter.takes_time(self.block.arrival_us(row)) {
                self.add_row(row);
            }
        }
    }

    /// Adds one row that arrived at a moment that is wanted.
    #[inline]
    fn add_row(&mut self, row: usize) {
        let status = self.block.status[row];
        if self.wanted_status.is_none_or(|wanted| wanted == status) {
            let keys = self.keys.map(|key| self.block.key(key, row));
            self.table.add(&keys, status, 1, u128::from(self.block.work[row]));
        }
    }

    /// Adds the whole block, whose rows `of_block` sums.
    fn add_all(&mut self, of_block: &StatusSums) {
        let rows = self.block.rows;
        let mut cuts = Cuts::default();
        let mut from = 0;
        while from < rows {
            let until = cuts.next(&self.block, from, self.looked_up);
            if until - from < RUN_ROWS_MIN {
                (from..until).for_each(|row| self.add_row(row));
            } else if self.looked_up.is_none() && self.block.one_second.is_some() {
                let context = self.context_of(from, false);
                if until - from == rows {
                    self.add_sums(context, of_block);
                } else {
                    let mut sums = StatusSums::default();
                    sums.add(&self.block.work[from..until], &self.block.status[from..until]);
                    self.add_sums(context, &sums);
                }
            } else {
                self.look_up(from..until);
            }
            from = until;
        }
    }

    /// Adds rows that differ in what is looked up alone.
    fn look_up(&mut self, rows: Range<usize>) {
        let context = self.context_of(rows.start, true);
        if context != self.context || self.identities.is_full(rows.len()) {
            self.flush();
            self.context = context;
        }
        let Self { identities, block, times, looked_up, .. } = self;
        let (work, status) = (&block.work[rows.clone()], &block.status[rows.clone()]);
        let seconds = block.seconds.get(rows.clone()).unwrap_or_default();
        let in_first = |row: usize| tag(0, status[row]);
        let in_each = |row: usize| tag(times.since_first(seconds[row]), status[row]);
        match (looked_up.map(|index| &block.identities[index][rows]), block.one_second) {
            (Some(keys), None) => identities.add(work, |row| keys[row], in_each),
            (Some(keys), Some(_)) => identities.add(work, |row| keys[row], in_first),
            (None, None) => identities.add(work, |_| 0, in_each),
            (None, Some(_)) => identities.add(work, |_| 0, in_first),
        }
    }

    /// Values of the keys of a row without the status, and where they are looked up without identity and times.
    fn context_of(&self, row: usize, without_times: bool) -> [u64; N] {
        let looked_up = self.looked_up.map(|index| IDENTITIES[index].0);
        let is_left_out = |key: Key| Some(key) == looked_up || key == Key::Status || (without_times && seconds_of(key).is_some());
        self.keys.map(|key| if is_left_out(key) { 0 } else { self.block.key(key, row) })
    }

    /// Adds rows that differ in their status alone.
    fn add_sums(&mut self, context: [u64; N], sums: &StatusSums) {
        for (status, rows, work) in sums.each().filter(|(status, ..)| self.wanted_status.is_none_or(|wanted| wanted == *status)) {
            let mut values = context;
            for (value, _) in values.iter_mut().zip(self.keys).filter(|(_, key)| **key == Key::Status) {
                *value = u64::from(status);
            }
            self.table.add(&values, status, rows, work);
        }
    }

    /// Moves what was looked up into the table of all keys.
    fn flush(&mut self) {
        let Self { table, identities, context, keys, wanted_status, times, .. } = self;
        let looked_up = self.looked_up.map(|index| IDENTITIES[index].0);
        identities.drain(|identity, time, status, rows, work| {
            if wanted_status.is_some_and(|wanted| wanted != status) {
                return;
            }
            let mut values = *context;
            for (value, &key) in values.iter_mut().zip(*keys) {
                if Some(key) == looked_up {
                    *value = identity;
                } else if key == Key::Status {
                    *value = u64::from(status);
                } else if let Some(seconds) = seconds_of(key) {
                    *value = times.second(time) / u64::from(seconds);
                }
            }
            table.add(&values, status, rows, work);
        });
    }

    /// The long way: every byte is read and summed, and whatever is odd about the file gets its name.
    fn whole_segment(&mut self, meta: &SegmentMeta) -> Result<Option<Damage>, LogError> {
        let damage = |what: String| Ok(Some(Damage { sequence: meta.sequence(), what, is_in_the_table: false }));
        match self.store.read_native(meta, &mut self.whole) {
            Ok(true) => {}
            // Retention has removed it.
            Ok(false) => return Ok(None),
            Err(error @ LogError::Damaged { .. }) => return damage(error.to_string()),
            Err(error) => return Err(error),
        }
        match SegmentBlock::parse(&self.whole) {
            Ok(block) => {
                for row in (0..block.rows()).map(|row| block.row(row)).filter(|row| self.filter.takes(row)) {
                    self.table.add_row(&keys_of(self.keys, &row), &row);
                }
                Ok(None)
            }
            Err(what) => damage(LogError::damaged(&self.store.native_path(meta), what).to_string()),
        }
    }
}

/// The keys of one row.
#[inline]
pub(crate) fn keys_of<const N: usize>(keys: &[Key; N], row: &LoggedRow) -> [u64; N] {
    keys.map(|key| key.of(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_divided_exactly_as_far_as_a_segment_can_go() {
        for length_s in [60, 3600, 86_400] {
            let mut times = Times::new(Some(length_s));
            times.first = times.number(1_795_248_000 + 59);
            let begin = times.first * length_s;
            for since in 0..=SECONDS_MAX {
                assert_eq!(times.since_first(begin + since), since / length_s, "{since} s in parts of {length_s} s");
            }
            let apart = SECONDS_MAX / length_s;
            assert_eq!([begin - 1, 0, u32::MAX].map(|second| times.since_first(second)), [apart; 3]);
        }
    }
}
