//! Rows on their way into a segment: gathered as they arrive, put in the order of the table, laid out as the columns of one block.
use crate::aligned::{AlignedBytes, RowMemory};
use crate::error::LogError;
use crate::id_map::IdMap;
use crate::layout::{COLUMNS, Layout};
use crate::segment::{JournalRange, SEGMENT_ROWS_MAX, SegmentMeta, full_id, reversed, segment_name};
use crate::segment_writer::write_block;
use crate::storage::Storage;
use crate::table_order::TableOrder;
use bytemuck::Zeroable;
use otedama_primitives::{Hash256, ShareRow, ShareStatus, flags};
use std::fs::File;
use std::io;
use std::path::Path;

/// Rows that are laid out as columns at a time: 4 KiB.
const TRANSPOSED_ROWS: usize = 64;
/// Rows that are summed at a time.
const SUMMED_ROWS: usize = 64;
/// Shares of a segment of sums, at most: counts of a segment stay within 32 bits.
const SEGMENT_SHARES_MAX: u64 = 1 << 31;

/// The rows of the open segment, of one run and one UTC day, in order of arrival. Buffers are kept from segment to segment.
#[derive(Default)]
pub(crate) struct SegmentRows {
    rows: RowMemory,
    /// Layout `full`: hashes as explorers show them, most significant byte first.
    hashes: Vec<[u8; 32]>,
    /// Layout `rollup`: shares of each row, and their latencies together.
    share_count: Vec<u32>,
    latency_us_sum: Vec<u64>,
    /// Layout `rollup`: rows of the current second that take further shares, by worker, flags and coin.
    open_sums: IdMap<(u64, u32), u32>,
    open_second: u64,
    pub(crate) layout: Layout,
    /// The rows as they will lie.
    order: Vec<u32>,
    table_order: TableOrder,
    block: AlignedBytes,
    pub(crate) run_prefix: u32,
    by_status: [u64; 9],
    work_sum: u128,
    work_credited: u128,
    first_us: u64,
    pub(crate) last_us: u64,
    pub(crate) ranges: Vec<JournalRange>,
}

impl SegmentRows {
    pub(crate) fn rows(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn clear(&mut self) {
        self.rows.clear();
        self.table_order.clear();
        self.hashes.clear();
        self.share_count.clear();
        self.latency_us_sum.clear();
        self.open_sums.clear();
        self.by_status = [0; 9];
        self.work_sum = 0;
        self.work_credited = 0;
        self.ranges.clear();
    }

    /// Takes room for the rows of a segment where there is none yet: address space alone, pages come as they are written.
    pub(crate) fn reserve(&mut self) -> io::Result<()> {
        self.rows.reserve(SEGMENT_ROWS_MAX as usize)
    }

    /// Bytes of the values of the block that `write` makes; its headers are some hundred more.
    pub(crate) fn block_bytes(&self) -> u64 {
        (self.rows() * self.layout.row_bytes()) as u64
    }

    /// Shares of the rows.
    fn shares(&self) -> u64 {
        self.by_status.iter().sum()
    }

    /// True when the next row belongs into another segment.
    pub(crate) fn is_full(&self, segment_rows: u32) -> bool {
        self.rows() >= segment_rows as usize || (self.layout == Layout::Rollup && self.shares() >= SEGMENT_SHARES_MAX)
    }

    /// Adds rows of one run and one UTC day, in order of arrival; status and coin were checked. `first_row` is the index of the first in its journal file.
    /// `hashes` are those of the rows, or none where the journal has none. There is room for `SEGMENT_ROWS_MAX` rows after `reserve`.
    pub(crate) fn extend(&mut self, rows: &[ShareRow], hashes: &[Hash256], file: u32, first_row: u32, cell: u32) {
        let Some(first) = rows.first() else { return };
        if self.rows() == 0 {
            self.first_us = first.arrival_us;
        }
        let end = first_row + rows.len() as u32;
        match self.ranges.last_mut() {
            Some(range) if range.file == file && range.end == first_row => (range.end, range.cell) = (end, cell),
            _ => self.ranges.push(JournalRange { file, first: first_row, end, cell }),
        }
        self.sum(rows);
        if self.layout == Layout::Rollup {
            rows.iter().for_each(|row| self.sum_up(row));
            return;
        }
        if let Some(last) = rows.last() {
            self.last_us = last.arrival_us;
        }
        self.rows.extend(rows);
        rows.iter().for_each(|row| self.table_order.push(row.worker));
        if self.layout == Layout::Full {
            self.hashes.extend(hashes.iter().take(rows.len()).map(displayed));
            // Rows that an earlier run journaled without theirs.
            self.hashes.resize(self.rows.len(), [0; 32]);
        }
    }

    /// Adds to the sums of the meta.
    fn sum(&mut self, rows: &[ShareRow]) {
        let accepted = ShareStatus::Accepted as u8;
        for rows in rows.chunks(SUMMED_ROWS) {
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
                continue;
            }
            for row in rows {
                self.work_credited += u128::from(if row.status == accepted { row.work } else { 0 });
                if let Some(count) = self.by_status.get_mut(usize::from(row.status)) {
                    *count += 1;
                }
            }
        }
    }

    /// Layout `rollup`: adds an accepted share to the sum of its worker and second, or the row as it is where it is refused or a block candidate.
    fn sum_up(&mut self, row: &ShareRow) {
        let second = row.arrival_us / 1_000_000;
        if second != self.open_second {
            self.open_second = second;
            self.open_sums.clear();
        }
        if row.status != ShareStatus::Accepted as u8 || row.flags & flags::BLOCK != 0 {
            return self.push(*row);
        }
        let key = (row.worker, u32::from(row.flags) << 8 | u32::from(row.coin));
        if let Some(&at) = self.open_sums.get(&key)
            && self.add_to(at as usize, row).is_some()
        {
            return;
        }
        self.open_sums.insert(key, self.rows() as u32);
        self.push(ShareRow { session: 0, job: 0, nonce: 0, ntime: 0, version: 0, extranonce2: 0, ..*row });
    }

    /// Makes of rows that were gathered in another layout what layout `rollup` makes of them.
    pub(crate) fn roll_up(&mut self) {
        let rows = self.rows.len();
        self.rows.clear();
        self.table_order.clear();
        self.hashes = Vec::new();
        self.layout = Layout::Rollup;
        // There are never more sums than rows were taken into them: none is written over before it is read.
        for at in 0..rows {
            if let Some(row) = self.rows.remembered(at) {
                self.sum_up(&row);
            }
        }
    }

    /// Adds a share to the sum in row `at`; None, and nothing changed, where its work would pass 64 bits: another row goes on then.
    fn add_to(&mut self, at: usize, row: &ShareRow) -> Option<()> {
        let sum = self.rows.as_mut_slice().get_mut(at)?;
        let work = sum.work.checked_add(row.work)?;
        let count = self.share_count.get_mut(at)?;
        let latency = self.latency_us_sum.get_mut(at)?;
        sum.work = work;
        sum.share_difficulty = sum.share_difficulty.max(row.share_difficulty);
        *count += 1;
        *latency += u64::from(row.latency_us);
        Some(())
    }

    /// Layout `rollup`: adds a row of its own.
    fn push(&mut self, row: ShareRow) {
        self.last_us = row.arrival_us;
        self.rows.extend(&[row]);
        self.table_order.push(row.worker);
        self.share_count.push(1);
        self.latency_us_sum.push(u64::from(row.latency_us));
    }

    /// Makes the block: one column behind the other, rows in the order of the table.
    fn lay_out(&mut self, seg: u64) -> io::Result<()> {
        if self.layout == Layout::Rollup {
            for ((row, sum), count) in self.rows.as_mut_slice().iter_mut().zip(&self.latency_us_sum).zip(&self.share_count) {
                row.latency_us = u32::try_from(sum / u64::from(*count)).unwrap_or(u32::MAX);
            }
        }
        self.table_order.sort(&mut self.order);
        if !self.lay_out_in_order(seg)? {
            // Workers that only their lowest bits tell apart: those rows change places. A sort that keeps what is equal as it is, over what is all but sorted.
            let rows = self.rows.as_slice();
            self.order.sort_by_key(|&at| rows.get(at as usize).map_or(0, |row| row.worker));
            self.lay_out_in_order(seg)?;
        }
        Ok(())
    }

    /// Makes the block of the rows in their `order`. False where that is not the order of the table.
    fn lay_out_in_order(&mut self, seg: u64) -> io::Result<bool> {
        let Self { rows, hashes, share_count, order, block, run_prefix, layout, .. } = self;
        let (rows, prefix) = (rows.as_slice(), *run_prefix);
        let mut columns: [&mut [u8]; COLUMNS.len()] = Default::default();
        let places = layout.places(rows.len() as u32);
        let mut rest = block.room(places.last().map_or(0, |place| place.end as usize))?;
        let mut header = Vec::with_capacity(256);
        push_varint(&mut header, layout.columns().len() as u64);
        push_varint(&mut header, rows.len() as u64);
        for (&index, place) in layout.columns().iter().zip(&places) {
            let Some(((name, kind, _), column)) = COLUMNS.get(index).zip(columns.get_mut(index)) else { continue };
            push_text(&mut header, name);
            push_text(&mut header, kind);
            let (head, behind) = std::mem::take(&mut rest).split_at_mut((place.values - place.start) as usize);
            head.copy_from_slice(&header);
            header.clear();
            (*column, rest) = behind.split_at_mut((place.end - place.values) as usize);
        }

        let [instance, segs, seq, time, us, session, worker, job, coin, status, flags, work, columns @ ..] = &mut columns;
        let [share_difficulty, nonce, ntime, version, extranonce2, latency_us, counts, hash] = columns;
        instance.as_chunks_mut().0.fill(((prefix >> 24) as u16).to_le_bytes());
        segs.as_chunks_mut().0.fill(seg.to_le_bytes());
        // So few at a time that they stay in the first-level cache while every column is taken from them.
        let mut part = [ShareRow::zeroed(); TRANSPOSED_ROWS];
        let (mut is_sorted, mut last) = (true, 0);
        for (index, places) in order.chunks(TRANSPOSED_ROWS).enumerate() {
            let part = part.get_mut(..places.len()).unwrap_or_default();
            // All of their cache lines at once, before one is copied: as many wait for the memory side by side as the core can have on the way.
            std::hint::black_box(places.iter().fold(0, |all, &at| all ^ rows.get(at as usize).map_or(0, |row| row.worker)));
            for (to, &at) in part.iter_mut().zip(places) {
                *to = rows.get(at as usize).copied().unwrap_or(ShareRow::zeroed());
            }
            for row in &*part {
                is_sorted &= row.worker >= last;
                last = row.worker;
            }
            let from = index * TRANSPOSED_ROWS;
            fill(seq, from, places, |at| at.to_le_bytes());
            fill(time, from, part, |row| u32::try_from(row.arrival_us / 1_000_000).unwrap_or(u32::MAX).to_le_bytes());
            fill(us, from, part, |row| ((row.arrival_us % 1_000_000) as u32).to_le_bytes());
            fill(session, from, part, |row| full_id(prefix, row.session).to_le_bytes());
            fill(worker, from, part, |row| row.worker.to_le_bytes());
            fill(job, from, part, |row| full_id(prefix, row.job).to_le_bytes());
            fill(coin, from, part, |row| [row.coin]);
            fill(status, from, part, |row| [row.status]);
            fill(flags, from, part, |row| [row.flags]);
            fill(work, from, part, |row| row.work.to_le_bytes());
            fill(share_difficulty, from, part, |row| row.share_difficulty.to_le_bytes());
            fill(nonce, from, part, |row| row.nonce.to_le_bytes());
            fill(latency_us, from, part, |row| row.latency_us.to_le_bytes());
            // What a layout lacks has no bytes.
            fill(ntime, from, part, |row| row.ntime.to_le_bytes());
            fill(version, from, part, |row| row.version.to_le_bytes());
            fill(extranonce2, from, part, |row| row.extranonce2.to_le_bytes());
            fill(counts, from, places, |&at| share_count.get(at as usize).copied().unwrap_or(1).to_le_bytes());
            fill(hash, from, places, |&at| hashes.get(at as usize).copied().unwrap_or([0; 32]));
        }
        Ok(is_sorted)
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
        let journaled: u64 = self.ranges.iter().map(|range| u64::from(range.end - range.first)).sum();
        let here =
            if self.layout == Layout::Rollup { self.share_count.iter().map(|&count| u64::from(count)).sum() } else { self.rows() as u64 };
        if here != journaled {
            // Never yet: sealing less than the journal has would let it go.
            return Err(LogError::damaged(
                path,
                format!("the open segment has {here} shares of {journaled} in the journal, which stays as it is"),
            ));
        }
        self.lay_out(seg).map_err(LogError::io("take memory for", path))?;
        let written = write_block(storage, file, path, is_direct, self.block.as_ref())?;
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
            native_bytes: self.block.as_ref().len() as u64,
            crc32c: written.crc32c,
            content_hash: written.content_hash,
            dimensions_end,
            run_prefix: self.run_prefix,
            journal: self.ranges.clone(),
        })
    }
}

/// Writes the values of these rows into a column, from its row `from` on; nothing into a column without bytes.
#[inline]
fn fill<R, const WIDTH: usize>(column: &mut [u8], from: usize, rows: &[R], value: impl Fn(&R) -> [u8; WIDTH]) {
    let (cells, _) = column.as_chunks_mut::<WIDTH>();
    let cells = cells.get_mut(from..).unwrap_or_default();
    cells.iter_mut().zip(rows).for_each(|(cell, row)| *cell = value(row));
}

/// The bytes of a hash as explorers show it.
fn displayed(hash: &Hash256) -> [u8; 32] {
    reversed(hash.0)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::SegmentBlock;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 64 } else { 1000 }))]

        #[test]
        fn every_row_lies_once_by_worker_and_those_of_a_worker_as_they_came(
            segments in prop::collection::vec(
                prop::collection::vec(
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
                1..4,
            ),
            layout in prop::sample::select(vec![Layout::Lean, Layout::Replayable, Layout::Full]),
        ) {
            let mut open = SegmentRows { layout, run_prefix: 3 << 24, ..SegmentRows::default() };
            for workers in segments {
                open.reserve().expect("memory");
                let rows: Vec<ShareRow> = (0..).zip(&workers).map(|(nonce, &worker)| ShareRow { worker, nonce, ..ShareRow::zeroed() }).collect();
                let hashes: Vec<Hash256> = (0..rows.len()).map(|at| Hash256([at as u8; 32])).collect();
                open.extend(&rows, &hashes, 1, 0, 1);
                open.lay_out(9).expect("memory");
                let block = SegmentBlock::parse(open.block.as_ref()).expect("a block");
                let lying: Vec<_> = (0..rows.len()).map(|at| block.row(at)).collect();
                let mut slow: Vec<u32> = (0..rows.len() as u32).collect();
                slow.sort_by_key(|&at| workers[at as usize]);
                prop_assert_eq!(lying.iter().map(|row| row.seq).collect::<Vec<_>>(), slow);
                for row in lying {
                    let hash = if layout == Layout::Full { Hash256([row.seq as u8; 32]) } else { Hash256::default() };
                    prop_assert_eq!((row.worker, row.nonce, row.hash), (workers[row.seq as usize], row.seq, hash));
                    prop_assert_eq!((row.instance, row.seg, row.share_count), (3, 9, 1));
                }
                open.clear();
            }
        }

        #[test]
        fn rolled_up_late_is_rolled_up_from_the_start(
            segments in prop::collection::vec(
                prop::collection::vec((0..4_u64, 0..3_u64, prop_oneof![4 => Just(0), 1 => 0..9_u8], any::<bool>(), any::<u32>()), 1..200),
                1..4,
            ),
            kept in prop::sample::select(vec![Layout::Lean, Layout::Replayable, Layout::Full]),
        ) {
            let begin = |layout| SegmentRows { layout, run_prefix: 3 << 24, ..SegmentRows::default() };
            let (mut late, mut early) = (begin(kept), begin(Layout::Rollup));
            for segment in segments {
                let mut arrival_us = 5_000_000;
                let rows: Vec<ShareRow> = segment.iter().map(|&(worker, seconds, status, is_block, nonce)| {
                    arrival_us += seconds * 400_000;
                    let flags = if is_block && nonce % 4 == 0 { flags::BLOCK } else { 0 };
                    // Some works that no two of fit 64 bits, and workers that only their lowest bits tell apart.
                    let work = if nonce % 5 == 0 { u64::MAX - 1 } else { u64::from(nonce) };
                    ShareRow { worker: (7 << 40) + worker, arrival_us, status, flags, nonce, work, latency_us: nonce >> 8, ..ShareRow::zeroed() }
                }).collect();
                for open in [&mut late, &mut early] {
                    open.reserve().expect("memory");
                    open.extend(&rows, &[], 1, 0, 1);
                }
                // A seal that failed, and is tried again as sums.
                late.lay_out(9).expect("memory");
                if late.layout != Layout::Rollup {
                    late.roll_up();
                }
                late.lay_out(9).expect("memory");
                early.lay_out(9).expect("memory");
                prop_assert!(late.block.as_ref() == early.block.as_ref());
                prop_assert_eq!((late.by_status, late.work_sum, late.last_us), (early.by_status, early.work_sum, early.last_us));
                late.clear();
                early.clear();
                late.layout = kept;
            }
        }
    }
}
