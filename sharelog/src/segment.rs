//! A sealed segment: `NAME.native` is exactly one ClickHouse Native block, `NAME.meta` says what stands in it and which part of the journal it covers.
use crate::error::LogError;
use crate::id_map::IdMap;
use crate::journal_format::row_sequence;
use crate::layout::{COLUMNS, Layout};
use crate::segment_writer::{SegmentWriter, Staging};
use crate::storage::Storage;
use otedama_primitives::{Hash256, ShareRow, ShareStatus, flags};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::Path;

/// Most rows of a segment: one insert, one block, one part on the server.
pub const SEGMENT_ROWS_MAX: u32 = 524_288;

/// Rows that are laid out as columns at a time: 4 KiB.
const TRANSPOSED_ROWS: usize = 64;
/// Rows of smaller batches are gathered until there are so many.
const GATHERED_ROWS: usize = 4 * TRANSPOSED_ROWS;

/// Shares of a segment of sums, at most: counts of a segment stay within 32 bits.
const SEGMENT_SHARES_MAX: u64 = 1 << 31;

/// One row with full ids, as it stands in ClickHouse. What its segment's layout has not is zero.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct LoggedRow {
    /// `[pool] instance` of the run.
    pub instance: u16,
    /// Segment: directory epoch << 32 | sequence; 0 while the row is unsealed.
    pub seg: u64,
    /// Index in the segment; while unsealed, index in the journal file.
    pub seq: u32,
    /// Arrival, microseconds since the epoch: columns `time` and `us`.
    pub arrival_us: u64,
    /// Full session number; 0 in a sum.
    pub session: u64,
    /// Worker identity; 0 when unauthorized.
    pub worker: u64,
    /// Full job number; 0 when the job named was unknown.
    pub job: u64,
    /// Number of the `Coin`.
    pub coin: u8,
    /// Number of the `ShareStatus`.
    pub status: u8,
    /// Bits of `flags`.
    pub flags: u8,
    /// Work it was judged at.
    pub work: u64,
    /// Difficulty of the hash.
    pub share_difficulty: f32,
    /// Header nonce.
    pub nonce: u32,
    /// Header time.
    pub ntime: u32,
    /// Header version as hashed.
    pub version: u32,
    /// As a big-endian number of its wire bytes.
    pub extranonce2: u64,
    /// Bytes read to append; the mean of a sum.
    pub latency_us: u32,
    /// Shares that the row stands for: 1, or more in a sum of layout `rollup`.
    pub share_count: u32,
    /// Hash of the header; zeros where nothing was hashed, and in every layout but `full`.
    pub hash: Hash256,
    /// Layout of its segment; while unsealed the default, as a row has all but perhaps the hash then.
    pub layout: Layout,
}

impl LoggedRow {
    /// True for a row that stands for accepted shares of one worker and second.
    #[inline]
    pub fn is_sum(&self) -> bool {
        self.layout == Layout::Rollup && self.session == 0
    }

    /// The full row of a journal row.
    pub(crate) fn expand(row: &ShareRow, hash: Hash256, run_prefix: u32, sequence: u32) -> Self {
        Self {
            instance: (run_prefix >> 24) as u16,
            seg: 0,
            seq: sequence,
            arrival_us: row.arrival_us,
            session: full_id(run_prefix, row.session),
            worker: row.worker,
            job: full_id(run_prefix, row.job),
            coin: row.coin,
            status: row.status,
            flags: row.flags,
            work: row.work,
            share_difficulty: row.share_difficulty,
            nonce: row.nonce,
            ntime: row.ntime,
            version: row.version,
            extranonce2: row.extranonce2,
            latency_us: row.latency_us,
            share_count: 1,
            hash,
            layout: Layout::default(),
        }
    }
}

/// Counter 0 is "none" and stays 0 in full.
#[inline]
fn full_id(run_prefix: u32, counter: u32) -> u64 {
    if counter == 0 { 0 } else { (u64::from(run_prefix) << 32) | u64::from(counter) }
}

/// Days since the epoch: the partition of a row.
#[inline]
pub(crate) fn utc_day(arrival_us: u64) -> u64 {
    arrival_us / 86_400_000_000
}

/// A part of one journal file: rows `first..end`, by index in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct JournalRange {
    /// Number of the journal file.
    pub file: u32,
    /// First row.
    pub first: u32,
    /// Behind the last row.
    pub end: u32,
    /// Cell behind the batch of the last row.
    pub cell: u32,
}

/// Rows on their way into a segment, as the columns of the block. Buffers are kept from segment to segment.
#[derive(Default)]
pub(crate) struct Columns {
    time: Vec<u32>,
    us: Vec<u32>,
    session: Vec<u64>,
    worker: Vec<u64>,
    job: Vec<u64>,
    coin: Vec<u8>,
    status: Vec<u8>,
    flags: Vec<u8>,
    work: Vec<u64>,
    share_difficulty: Vec<f32>,
    nonce: Vec<u32>,
    ntime: Vec<u32>,
    version: Vec<u32>,
    extranonce2: Vec<u64>,
    latency_us: Vec<u32>,
    /// Layout `full`: hashes as explorers show them, most significant byte first.
    hash: Vec<[u8; 32]>,
    /// Layout `rollup`: shares of each row, and their latencies together.
    share_count: Vec<u32>,
    latency_us_sum: Vec<u64>,
    /// Layout `rollup`: rows of the current second that take further shares, by worker, flags and coin.
    open_sums: IdMap<(u64, u32), u32>,
    open_second: u64,
    pub(crate) layout: Layout,
    /// The columns that say where a row stands; filled when the block is written.
    instance: Vec<u16>,
    seg: Vec<u64>,
    seq: Vec<u32>,
    /// Rows that no column has yet, fewer than `GATHERED_ROWS`.
    pending: Vec<ShareRow>,
    staging: Staging,
    pub(crate) run_prefix: u32,
    pub(crate) by_status: [u64; 9],
    pub(crate) work_sum: u128,
    pub(crate) work_credited: u128,
    pub(crate) first_us: u64,
    pub(crate) last_us: u64,
    pub(crate) ranges: Vec<JournalRange>,
}

impl Columns {
    pub(crate) fn rows(&self) -> usize {
        self.time.len() + self.pending.len()
    }

    pub(crate) fn clear(&mut self) {
        self.pending.clear();
        self.time.clear();
        self.us.clear();
        self.session.clear();
        self.worker.clear();
        self.job.clear();
        self.coin.clear();
        self.status.clear();
        self.flags.clear();
        self.work.clear();
        self.share_difficulty.clear();
        self.nonce.clear();
        self.ntime.clear();
        self.version.clear();
        self.extranonce2.clear();
        self.latency_us.clear();
        self.hash.clear();
        self.share_count.clear();
        self.latency_us_sum.clear();
        self.open_sums.clear();
        self.by_status = [0; 9];
        self.work_sum = 0;
        self.work_credited = 0;
        self.ranges.clear();
    }

    /// Takes the room of a whole segment at once: address space alone, pages come as they are written. Growing by doubling would copy what is there again and again.
    fn reserve(&mut self) {
        let rows = SEGMENT_ROWS_MAX as usize;
        for column in [&mut self.session, &mut self.worker, &mut self.job, &mut self.work, &mut self.extranonce2] {
            column.reserve_exact(rows);
        }
        for column in [&mut self.time, &mut self.us, &mut self.nonce, &mut self.ntime, &mut self.version, &mut self.latency_us] {
            column.reserve_exact(rows);
        }
        for column in [&mut self.coin, &mut self.status, &mut self.flags] {
            column.reserve_exact(rows);
        }
        self.share_difficulty.reserve_exact(rows);
        match self.layout {
            Layout::Full => self.hash.reserve_exact(rows),
            Layout::Rollup => {
                self.share_count.reserve_exact(rows);
                self.latency_us_sum.reserve_exact(rows);
            }
            Layout::Lean | Layout::Replayable => {}
        }
    }

    /// Bytes of the values of the block that `write` makes; its headers are some hundred more.
    pub(crate) fn block_bytes(&self) -> u64 {
        (self.rows() * self.layout.row_bytes()) as u64
    }

    /// Shares of the rows.
    pub(crate) fn shares(&self) -> u64 {
        self.by_status.iter().sum()
    }

    /// True when the next row belongs into another segment.
    pub(crate) fn is_full(&self, segment_rows: u32) -> bool {
        self.rows() >= segment_rows as usize || (self.layout == Layout::Rollup && self.shares() >= SEGMENT_SHARES_MAX)
    }

    /// Adds rows of one run and one UTC day, in order of arrival; status and coin were checked. `first_row` is the index of the first in its journal file.
    /// `hashes` are those of the rows, or none where the journal has none.
    pub(crate) fn extend(&mut self, rows: &[ShareRow], hashes: &[Hash256], file: u32, first_row: u32, cell: u32) {
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return };
        if self.rows() == 0 {
            self.first_us = first.arrival_us;
            self.reserve();
        }
        let end = first_row + rows.len() as u32;
        match self.ranges.last_mut() {
            Some(range) if range.file == file && range.end == first_row => (range.end, range.cell) = (end, cell),
            _ => self.ranges.push(JournalRange { file, first: first_row, end, cell }),
        }
        if self.layout == Layout::Rollup {
            let prefix = self.run_prefix;
            for rows in rows.chunks(TRANSPOSED_ROWS) {
                self.sum(rows);
                rows.iter().for_each(|row| self.sum_up(&LoggedRow::expand(row, Hash256::default(), prefix, 0)));
            }
            return;
        }
        self.last_us = last.arrival_us;
        if self.layout == Layout::Full {
            let rows_then = self.rows() + rows.len();
            self.hash.extend(hashes.iter().take(rows.len()).map(displayed));
            // Rows that an earlier run journaled without theirs.
            self.hash.resize(rows_then, [0; 32]);
        }
        if self.pending.is_empty() && rows.len() >= GATHERED_ROWS {
            self.take(rows);
            return;
        }
        // Small batches are gathered first: a column wants more than some rows at a time.
        self.pending.extend_from_slice(rows);
        if self.pending.len() >= GATHERED_ROWS {
            self.take_pending();
        }
    }

    fn take_pending(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        self.take(&pending);
        self.pending = pending;
        self.pending.clear();
    }

    /// Lays rows out as columns, so few at a time that they stay in the first-level cache while every column is taken from them.
    fn take(&mut self, rows: &[ShareRow]) {
        let prefix = self.run_prefix;
        for rows in rows.chunks(TRANSPOSED_ROWS) {
            self.time.extend(rows.iter().map(|row| u32::try_from(row.arrival_us / 1_000_000).unwrap_or(u32::MAX)));
            self.us.extend(rows.iter().map(|row| (row.arrival_us % 1_000_000) as u32));
            self.session.extend(rows.iter().map(|row| full_id(prefix, row.session)));
            self.worker.extend(rows.iter().map(|row| row.worker));
            self.job.extend(rows.iter().map(|row| full_id(prefix, row.job)));
            self.coin.extend(rows.iter().map(|row| row.coin));
            self.status.extend(rows.iter().map(|row| row.status));
            self.flags.extend(rows.iter().map(|row| row.flags));
            self.work.extend(rows.iter().map(|row| row.work));
            self.share_difficulty.extend(rows.iter().map(|row| row.share_difficulty));
            self.nonce.extend(rows.iter().map(|row| row.nonce));
            self.ntime.extend(rows.iter().map(|row| row.ntime));
            self.version.extend(rows.iter().map(|row| row.version));
            self.extranonce2.extend(rows.iter().map(|row| row.extranonce2));
            self.latency_us.extend(rows.iter().map(|row| row.latency_us));
            self.sum(rows);
        }
    }

    /// Adds to the sums of the meta.
    fn sum(&mut self, rows: &[ShareRow]) {
        let accepted = ShareStatus::Accepted as u8;
        let (all, others) = rows.iter().fold((0, 0), |(all, others), row| (all | row.work, others | (row.status ^ accepted)));
        // 64 summands under 2^58 stay under 2^64.
        let work: u128 = if all >> 58 == 0 {
            u128::from(rows.iter().map(|row| row.work).sum::<u64>())
        } else {
            rows.iter().map(|row| u128::from(row.work)).sum()
        };
        self.work_sum += work;
        if others == 0 {
            self.work_credited += work;
            self.by_status[accepted as usize] += rows.len() as u64;
            return;
        }
        for row in rows {
            self.work_credited += u128::from(if row.status == accepted { row.work } else { 0 });
            if let Some(count) = self.by_status.get_mut(usize::from(row.status)) {
                *count += 1;
            }
        }
    }

    /// Layout `rollup`: adds an accepted share to the sum of its worker and second, or the row as it is where it is refused or a block candidate.
    fn sum_up(&mut self, row: &LoggedRow) {
        let second = row.arrival_us / 1_000_000;
        if second != self.open_second {
            self.open_second = second;
            self.open_sums.clear();
        }
        if row.status != ShareStatus::Accepted as u8 || row.flags & flags::BLOCK != 0 {
            return self.push(row);
        }
        let key = (row.worker, u32::from(row.flags) << 8 | u32::from(row.coin));
        if let Some(&at) = self.open_sums.get(&key)
            && self.add_to(at as usize, row).is_some()
        {
            return;
        }
        self.open_sums.insert(key, self.rows() as u32);
        self.push(&LoggedRow { session: 0, job: 0, nonce: 0, ntime: 0, version: 0, extranonce2: 0, ..*row });
    }

    /// Makes of rows that were gathered in another layout what layout `rollup` makes of them.
    pub(crate) fn roll_up(&mut self) {
        self.take_pending();
        let mut old = std::mem::take(self);
        self.layout = Layout::Rollup;
        self.run_prefix = old.run_prefix;
        self.first_us = old.first_us;
        self.by_status = old.by_status;
        (self.work_sum, self.work_credited) = (old.work_sum, old.work_credited);
        self.ranges = std::mem::take(&mut old.ranges);
        self.staging = std::mem::take(&mut old.staging);
        for at in 0..old.rows() {
            let u64_of = |column: &[u64]| column.get(at).copied().unwrap_or_default();
            let u32_of = |column: &[u32]| column.get(at).copied().unwrap_or_default();
            let u8_of = |column: &[u8]| column.get(at).copied().unwrap_or_default();
            self.sum_up(&LoggedRow {
                arrival_us: u64::from(u32_of(&old.time)) * 1_000_000 + u64::from(u32_of(&old.us)),
                session: u64_of(&old.session),
                worker: u64_of(&old.worker),
                job: u64_of(&old.job),
                coin: u8_of(&old.coin),
                status: u8_of(&old.status),
                flags: u8_of(&old.flags),
                work: u64_of(&old.work),
                share_difficulty: old.share_difficulty.get(at).copied().unwrap_or_default(),
                nonce: u32_of(&old.nonce),
                ntime: u32_of(&old.ntime),
                version: u32_of(&old.version),
                extranonce2: u64_of(&old.extranonce2),
                latency_us: u32_of(&old.latency_us),
                ..LoggedRow::default()
            });
        }
    }

    /// Adds a share to the sum in row `at`; None, and nothing changed, where its work would pass 64 bits: another row goes on then.
    fn add_to(&mut self, at: usize, row: &LoggedRow) -> Option<()> {
        let work = self.work.get_mut(at)?;
        let sum = work.checked_add(row.work)?;
        let count = self.share_count.get_mut(at)?;
        let latency = self.latency_us_sum.get_mut(at)?;
        let best = self.share_difficulty.get_mut(at)?;
        *work = sum;
        *count += 1;
        *latency += u64::from(row.latency_us);
        *best = best.max(row.share_difficulty);
        Some(())
    }

    /// Layout `rollup`: adds a row of its own.
    fn push(&mut self, row: &LoggedRow) {
        self.last_us = row.arrival_us;
        self.time.push(u32::try_from(row.arrival_us / 1_000_000).unwrap_or(u32::MAX));
        self.us.push((row.arrival_us % 1_000_000) as u32);
        self.session.push(row.session);
        self.worker.push(row.worker);
        self.job.push(row.job);
        self.coin.push(row.coin);
        self.status.push(row.status);
        self.flags.push(row.flags);
        self.work.push(row.work);
        self.share_difficulty.push(row.share_difficulty);
        self.nonce.push(row.nonce);
        self.ntime.push(row.ntime);
        self.version.push(row.version);
        self.extranonce2.push(row.extranonce2);
        self.latency_us.push(row.latency_us);
        self.share_count.push(1);
        self.latency_us_sum.push(u64::from(row.latency_us));
    }

    /// Gives the bytes of the block, piece by piece.
    fn block(&mut self, seg: u64, mut sink: impl FnMut(&[u8]) -> Result<(), LogError>) -> Result<(), LogError> {
        self.take_pending();
        let rows = self.rows();
        let mut header = Vec::with_capacity(64);
        let columns = self.layout.columns();
        push_varint(&mut header, columns.len() as u64);
        push_varint(&mut header, rows as u64);
        sink(&header)?;
        self.instance.clear();
        self.instance.resize(rows, (self.run_prefix >> 24) as u16);
        self.seg.clear();
        self.seg.resize(rows, seg);
        self.seq.clear();
        self.seq.extend(0..rows as u32);
        if self.layout == Layout::Rollup {
            for ((mean, sum), count) in self.latency_us.iter_mut().zip(&self.latency_us_sum).zip(&self.share_count) {
                *mean = u32::try_from(sum / u64::from(*count)).unwrap_or(u32::MAX);
            }
        }
        for &index in columns {
            let Some((name, kind, _)) = COLUMNS.get(index) else { continue };
            header.clear();
            push_text(&mut header, name);
            push_text(&mut header, kind);
            sink(&header)?;
            let bytes: &[u8] = match index {
                0 => bytemuck::cast_slice(&self.instance),
                1 => bytemuck::cast_slice(&self.seg),
                2 => bytemuck::cast_slice(&self.seq),
                3 => bytemuck::cast_slice(&self.time),
                4 => bytemuck::cast_slice(&self.us),
                5 => bytemuck::cast_slice(&self.session),
                6 => bytemuck::cast_slice(&self.worker),
                7 => bytemuck::cast_slice(&self.job),
                8 => &self.coin,
                9 => &self.status,
                10 => &self.flags,
                11 => bytemuck::cast_slice(&self.work),
                12 => bytemuck::cast_slice(&self.share_difficulty),
                13 => bytemuck::cast_slice(&self.nonce),
                14 => bytemuck::cast_slice(&self.ntime),
                15 => bytemuck::cast_slice(&self.version),
                16 => bytemuck::cast_slice(&self.extranonce2),
                17 => bytemuck::cast_slice(&self.latency_us),
                18 => bytemuck::cast_slice(&self.share_count),
                _ => self.hash.as_flattened(),
            };
            sink(bytes)?;
        }
        Ok(())
    }

    /// Writes the block into `file` (`is_direct`: which takes aligned pieces, past the page cache) and returns what its meta says of it.
    pub(crate) fn write<S: Storage>(
        &mut self,
        storage: &S,
        file: &File,
        path: &Path,
        is_direct: bool,
        seg: u64,
        dimensions_end: u64,
    ) -> Result<SegmentMeta, LogError> {
        let mut staging = std::mem::take(&mut self.staging);
        let mut writer = SegmentWriter::new(storage, file, path, is_direct, &mut staging);
        let pushed = self.block(seg, |bytes| writer.push(bytes));
        let written = pushed.and_then(|()| writer.finish());
        self.staging = staging;
        let written = written?;
        Ok(SegmentMeta {
            name: segment_name(seg),
            seg,
            layout: self.layout,
            rows: self.rows() as u32,
            by_status: self.by_status,
            work_sum: self.work_sum,
            work_credited: self.work_credited,
            first_us: self.first_us,
            last_us: self.last_us,
            native_bytes: written.bytes,
            crc32c: written.crc32c,
            content_hash: written.content_hash,
            dimensions_end,
            run_prefix: self.run_prefix,
            journal: self.ranges.clone(),
        })
    }
}

/// The bytes of a hash as explorers show it.
fn displayed(hash: &Hash256) -> [u8; 32] {
    reversed(hash.0)
}

#[inline]
fn reversed(mut bytes: [u8; 32]) -> [u8; 32] {
    bytes.reverse();
    bytes
}

fn push_varint(into: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        into.push(value as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}

fn push_text(into: &mut Vec<u8>, text: &str) {
    push_varint(into, text.len() as u64);
    into.extend_from_slice(text.as_bytes());
}

/// `{epoch:08x}-{sequence:08x}`.
pub fn segment_name(seg: u64) -> String {
    format!("{:08x}-{:08x}", seg >> 32, seg & 0xffff_ffff)
}

/// The segment number in a name without extension.
pub fn parse_segment_name(name: &str) -> Option<u64> {
    let (epoch, sequence) = name.split_once('-')?;
    let number = |text: &str| (text.len() == 8).then(|| u32::from_str_radix(text, 16).ok()).flatten();
    let seg = (u64::from(number(epoch)?) << 32) | u64::from(number(sequence)?);
    (segment_name(seg) == name).then_some(seg)
}

/// What `NAME.meta` says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentMeta {
    /// Name without extension.
    pub name: String,
    /// Directory epoch << 32 | sequence.
    pub seg: u64,
    /// What its rows keep.
    pub layout: Layout,
    /// Rows, 1 to `SEGMENT_ROWS_MAX`.
    pub rows: u32,
    /// Shares by status number: rows, but for sums.
    pub by_status: [u64; 9],
    /// Sum of `work` over all rows.
    pub work_sum: u128,
    /// Sum of `work` over accepted rows.
    pub work_credited: u128,
    /// Arrival of the first row, microseconds since the epoch.
    pub first_us: u64,
    /// Arrival of the last row.
    pub last_us: u64,
    /// Size of the `.native` file.
    pub native_bytes: u64,
    /// crc32c of the `.native` file.
    pub crc32c: u32,
    /// XXH64 of the `.native` file: the last part of the deduplication token.
    pub content_hash: u64,
    /// Offset in `dimensions.log` up to which entries must be shipped before this segment.
    pub dimensions_end: u64,
    /// Instance << 24 | boot epoch of the run whose rows these are.
    pub run_prefix: u32,
    /// Which parts of the journal are covered, in order.
    pub journal: Vec<JournalRange>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MetaText {
    version: u32,
    seg: u64,
    /// Missing in segments of earlier releases, which knew one layout.
    #[serde(default, skip_serializing_if = "Layout::is_replayable")]
    layout: Layout,
    rows: u32,
    by_status: [u64; 9],
    /// Decimal text: beyond what JSON readers keep exact.
    work_sum: String,
    work_credited: String,
    first_us: u64,
    last_us: u64,
    native_bytes: u64,
    crc32c: u32,
    content_hash: String,
    dimensions_end: u64,
    run_prefix: u32,
    journal: Vec<JournalRange>,
}

impl SegmentMeta {
    /// Position of the segment in the folder, from 1.
    pub fn sequence(&self) -> u32 {
        self.seg as u32
    }

    /// Shares that the rows stand for.
    pub fn shares(&self) -> u64 {
        self.by_status.iter().sum()
    }

    /// Behind the last journal row covered: journal file << 32 | row.
    pub fn journal_end(&self) -> u64 {
        self.journal.last().map_or(0, |range| row_sequence(range.file, range.end))
    }

    /// The text of the file: one line of JSON, one line with its crc32c.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let text = MetaText {
            version: if self.layout.is_replayable() { 1 } else { 2 },
            seg: self.seg,
            layout: self.layout,
            rows: self.rows,
            by_status: self.by_status,
            work_sum: self.work_sum.to_string(),
            work_credited: self.work_credited.to_string(),
            first_us: self.first_us,
            last_us: self.last_us,
            native_bytes: self.native_bytes,
            crc32c: self.crc32c,
            content_hash: format!("{:016x}", self.content_hash),
            dimensions_end: self.dimensions_end,
            run_prefix: self.run_prefix,
            journal: self.journal.clone(),
        };
        let mut bytes = serde_json::to_vec(&text).unwrap_or_default();
        bytes.push(b'\n');
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(format!("crc32c {crc:08x}\n").as_bytes());
        bytes
    }

    /// Reads the text of a file named `name`; the error is what is wrong with it.
    pub(crate) fn decode(name: &str, bytes: &[u8]) -> Result<Self, String> {
        let split = bytes.len().checked_sub("crc32c 00000000\n".len()).ok_or("it is shorter than a meta")?;
        let (json, line) = bytes.split_at(split);
        if line != format!("crc32c {:08x}\n", crc32c::crc32c(json)).as_bytes() {
            return Err("its crc does not match".into());
        }
        let text: MetaText = serde_json::from_slice(json).map_err(|error| format!("it does not parse: {error}"))?;
        let meta = Self {
            name: segment_name(text.seg),
            seg: text.seg,
            layout: text.layout,
            rows: text.rows,
            by_status: text.by_status,
            work_sum: text.work_sum.parse().map_err(|_| "work_sum is no number")?,
            work_credited: text.work_credited.parse().map_err(|_| "work_credited is no number")?,
            first_us: text.first_us,
            last_us: text.last_us,
            native_bytes: text.native_bytes,
            crc32c: text.crc32c,
            content_hash: u64::from_str_radix(&text.content_hash, 16).map_err(|_| "content_hash is no number")?,
            dimensions_end: text.dimensions_end,
            run_prefix: text.run_prefix,
            journal: text.journal,
        };
        if !(1..=2).contains(&text.version) {
            return Err(format!("meta version {} is of another release", text.version));
        }
        if meta.name != name {
            return Err(format!("it describes segment {}", meta.name));
        }
        if meta.journal.iter().any(|range| range.end < range.first) {
            return Err("a journal range ends before it starts".into());
        }
        Ok(meta)
    }
}

/// A decoded block: the columns as they lie in the bytes of the file.
pub struct SegmentBlock<'a> {
    rows: usize,
    layout: Layout,
    /// As in `COLUMNS`; empty where the layout has none.
    columns: [&'a [u8]; COLUMNS.len()],
}

impl<'a> SegmentBlock<'a> {
    /// Takes a `.native` file apart. The error says what does not fit: column order, names and types are exactly those of one layout.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let mut rest = bytes;
        let columns_here = take_varint(&mut rest).ok_or("no column count")?;
        let rows = take_varint(&mut rest).ok_or("no row count")?;
        if rows == 0 || rows > u64::from(SEGMENT_ROWS_MAX) {
            return Err(format!("{rows} rows"));
        }
        let mut outcome = Err(format!("{columns_here} columns, as no layout has"));
        for layout in Layout::ALL.into_iter().filter(|layout| layout.columns().len() as u64 == columns_here) {
            outcome = Self::parse_as(layout, rows as usize, rest);
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    fn parse_as(layout: Layout, rows: usize, mut rest: &'a [u8]) -> Result<Self, String> {
        let mut columns = [&[][..]; COLUMNS.len()];
        for &index in layout.columns() {
            let Some((slot, (name, kind, width))) = columns.get_mut(index).zip(COLUMNS.get(index)) else { continue };
            for wanted in [name, kind] {
                let text = take_text(&mut rest).ok_or_else(|| format!("the header of column {name} is cut"))?;
                if text != wanted.as_bytes() {
                    return Err(format!("{:?} where {wanted:?} was expected", String::from_utf8_lossy(text)));
                }
            }
            let (column, behind) = rest.split_at_checked(rows * width).ok_or_else(|| format!("column {name} is cut"))?;
            *slot = column;
            rest = behind;
        }
        if !rest.is_empty() {
            return Err(format!("{} bytes behind the block", rest.len()));
        }
        Ok(Self { rows, layout, columns })
    }

    /// What its rows keep.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Rows of the block.
    pub fn rows(&self) -> usize {
        self.rows
    }

    #[inline]
    fn get<const WIDTH: usize>(&self, column: usize, row: usize) -> [u8; WIDTH] {
        self.columns
            .get(column)
            .and_then(|bytes| bytes.get(row * WIDTH..))
            .and_then(|bytes| bytes.first_chunk())
            .copied()
            .unwrap_or([0; WIDTH])
    }

    /// Row `row`; a default row beyond the end.
    #[inline]
    pub fn row(&self, row: usize) -> LoggedRow {
        let u32_at = |column| u32::from_le_bytes(self.get(column, row));
        let u64_at = |column| u64::from_le_bytes(self.get(column, row));
        let u8_at = |column| u8::from_le_bytes(self.get(column, row));
        LoggedRow {
            instance: u16::from_le_bytes(self.get(0, row)),
            seg: u64_at(1),
            seq: u32_at(2),
            arrival_us: u64::from(u32_at(3)) * 1_000_000 + u64::from(u32_at(4)),
            session: u64_at(5),
            worker: u64_at(6),
            job: u64_at(7),
            coin: u8_at(8),
            status: u8_at(9),
            flags: u8_at(10),
            work: u64_at(11),
            share_difficulty: f32::from_le_bytes(self.get(12, row)),
            nonce: u32_at(13),
            ntime: u32_at(14),
            version: u32_at(15),
            extranonce2: u64_at(16),
            latency_us: u32_at(17),
            share_count: if self.layout == Layout::Rollup { u32_at(18) } else { 1 },
            layout: self.layout,
            hash: if self.layout == Layout::Full { Hash256(reversed(self.get(19, row))) } else { Hash256::default() },
        }
    }
}

pub(crate) fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..63).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

pub(crate) fn take_text<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(take_varint(bytes)?).ok()?;
    let (text, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(text)
}
