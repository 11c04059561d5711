//! The tables that rows are summed in: one for any keys, and in front of it a small one for the loop over rows, which knows of one identity and the status alone.
use crate::id_map::mix;
use crate::segment::LoggedRow;
use otedama_primitives::ShareStatus;

/// Slots of an empty table.
const SLOTS_FIRST: usize = 1 << 10;
/// Statuses that a row can have, and one place for bytes that are none.
const STATUSES: usize = ShareStatus::ALL.len() + 1;
const ACCEPTED: usize = ShareStatus::Accepted as usize;

/// Cells of a table of identities up to which it is kept sparse: 8 MiB, of which a row's cache line is touched where there is a row.
const SPARSE_CELLS: usize = 1 << 18;

/// Sums of one combination of keys.
#[derive(Clone, Copy, Default)]
pub(crate) struct Sums {
    pub(crate) shares: u64,
    pub(crate) work: u128,
    pub(crate) credited: u128,
}

impl Sums {
    /// Adds rows of one status.
    #[inline]
    fn add(&mut self, status: u8, shares: u64, work: u128) {
        self.shares += shares;
        self.work += work;
        if status == ShareStatus::Accepted as u8 {
            self.credited += work;
        }
    }
}

#[derive(Clone, Copy)]
struct Slot<const N: usize> {
    keys: [u64; N],
    is_used: bool,
    sums: Sums,
}

/// An open-addressing table from keys to sums.
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

    /// Adds rows of one status that stand for `shares` shares and have `work` together.
    #[inline]
    pub(crate) fn add(&mut self, keys: &[u64; N], status: u8, shares: u64, work: u128) {
        self.sums(keys).add(status, shares, work);
    }

    /// Adds one row.
    pub(crate) fn add_row(&mut self, keys: &[u64; N], row: &LoggedRow) {
        self.add(keys, row.status, u64::from(row.share_count), u128::from(row.work));
    }

    /// Adds what another table has.
    pub(crate) fn merge(&mut self, other: Self) {
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

/// Rows and work of some rows by status.
#[derive(Clone, Copy, Default)]
pub(crate) struct StatusSums {
    /// The last place is for bytes that are no status.
    rows: [u64; STATUSES],
    work: [u128; STATUSES],
}

impl StatusSums {
    /// Adds rows: columns of one length. Nearly all rows of a log are accepted: all work is summed at once, and what was refused is picked out, eight rows at a look.
    pub(crate) fn add(&mut self, work: &[u64], status: &[u8]) {
        const { assert!(ACCEPTED == 0, "a word of eight accepted rows is 0") };
        let mut refused = Self::default();
        let mut refuse = |status: u8, work: u64| {
            let at = usize::from(status).min(STATUSES - 1);
            refused.rows[at] += 1;
            refused.work[at] += u128::from(work);
        };
        let (words, rest) = status.as_chunks::<8>();
        let (eights, rest_work) = work.as_chunks::<8>();
        for (word, work) in words.iter().zip(eights) {
            let mut left = u64::from_le_bytes(*word);
            while left != 0 {
                let at = left.trailing_zeros() as usize / 8;
                refuse(word[at], work[at]);
                left &= !(0xff << (8 * at));
            }
        }
        rest.iter().zip(rest_work).filter(|(status, _)| **status != 0).for_each(|(&status, &work)| refuse(status, work));
        refused.rows[ACCEPTED] = status.len() as u64 - refused.rows.iter().sum::<u64>();
        refused.work[ACCEPTED] = exact_sum(work) - refused.work.iter().sum::<u128>();
        self.merge(&refused);
    }

    /// Adds other sums.
    pub(crate) fn merge(&mut self, other: &Self) {
        for at in 0..STATUSES {
            self.rows[at] += other.rows[at];
            self.work[at] += other.work[at];
        }
    }

    /// Each status that has rows: its number, rows and work.
    pub(crate) fn each(&self) -> impl Iterator<Item = (u8, u64, u128)> {
        (0_u8..).zip(self.rows).zip(self.work).filter(|((_, rows), _)| *rows > 0).map(|((status, rows), work)| (status, rows, work))
    }

    /// True when these are the rows by status and the sums of work that a meta has.
    pub(crate) fn are(&self, by_status: &[u64; ShareStatus::ALL.len()], work_sum: u128, work_credited: u128) -> bool {
        let (of_none, of_status) = (self.rows[STATUSES - 1], &self.rows[..STATUSES - 1]);
        of_none == 0 && of_status == by_status && self.work.iter().sum::<u128>() == work_sum && self.work[ACCEPTED] == work_credited
    }
}

/// Exact sum of up to 2^32 words: halves are summed apart, in lanes.
fn exact_sum(words: &[u64]) -> u128 {
    let (low, high) = words.iter().fold((0u64, 0u64), |(low, high), word| (low + (word & 0xffff_ffff), high + (word >> 32)));
    u128::from(low) + (u128::from(high) << 32)
}

/// Status and time of a row: the number of its time in a stretch of times, and its status. Never 0.
pub(crate) type Tag = u32;

/// The tag of a row with this status in the `time`-th minute, hour or day.
#[inline]
pub(crate) fn tag(time: u32, status: u8) -> Tag {
    // A time that no day has, of a damaged row: it stays apart from those there are.
    (time.min(Tag::MAX >> 9) << 8 | u32::from(status)) + 1
}

/// Time and status of a tag.
fn of_tag(tag: Tag) -> (u32, u8) {
    ((tag - 1) >> 8, (tag - 1) as u8)
}

/// Sums of the rows of one identity and tag: half a cache line.
#[derive(Clone, Copy, Default)]
#[repr(C, align(32))]
struct Cell {
    key: u64,
    work_low: u64,
    /// How often `work_low` has passed 2^64.
    work_high: u32,
    rows: u32,
    /// 0 where the cell is empty.
    tag: Tag,
}
const _: () = assert!(size_of::<Cell>() == 32, "two to a cache line");

/// An open-addressing table for the rows of a stretch in which every key but one identity, the time and the status is the same. Of its lines the
/// rows of ten thousand workers touch 640 KB: that stays in the second-level cache where a table over all keys would not, and rows of one worker, which lie side by side,
/// find theirs in the first.
pub(crate) struct IdentityTable {
    cells: Vec<Cell>,
    used: Vec<u32>,
    rows: u64,
}

impl IdentityTable {
    /// A new table. It takes no memory before the first row.
    pub(crate) fn new() -> Self {
        Self { cells: Vec::new(), used: Vec::new(), rows: 0 }
    }

    /// True when so many more rows could pass what a cell counts to: `drain` it first.
    pub(crate) fn is_full(&self, more: usize) -> bool {
        self.rows + more as u64 > u64::from(u32::MAX)
    }

    /// Adds rows with this work: `key` and `tag` tell of a row what it is. Rows side by side that are alike are summed first.
    pub(crate) fn add(&mut self, work: &[u64], key: impl Fn(usize) -> u64, tag: impl Fn(usize) -> Tag) {
        self.reserve(work.len());
        self.rows += work.len() as u64;
        let mut rest = work.iter().enumerate().map(|(row, &work)| (key(row), tag(row), work));
        let mut next = rest.next();
        while let Some((key, tag, work)) = next {
            let (mut low, mut high, mut rows) = (work, 0, 1);
            next = loop {
                match rest.next() {
                    Some((other, of_other, work)) if (other == key) & (of_other == tag) => {
                        let (sum, carry) = low.overflowing_add(work);
                        (low, high, rows) = (sum, high + u32::from(carry), rows + 1);
                    }
                    other => break other,
                }
            };
            self.put(key, tag, low, high, rows);
        }
    }

    /// Adds the sum of rows that are alike.
    #[inline]
    fn put(&mut self, key: u64, tag: Tag, low: u64, high: u32, rows: u32) {
        let cells = self.cells.as_mut_slice();
        // The length is a power of two.
        let mask = cells.len() - 1;
        let mut at = mix(u64::from(tag), key) as usize & mask;
        loop {
            let cell = &mut cells[at];
            if (cell.key == key) & (cell.tag == tag) {
                break;
            }
            if cell.tag == 0 {
                (cell.key, cell.tag) = (key, tag);
                self.used.push(at as u32);
                break;
            }
            at = (at + 1) & mask;
        }
        let cell = &mut cells[at];
        let (sum, carry) = cell.work_low.overflowing_add(low);
        cell.work_low = sum;
        cell.work_high += high + u32::from(carry);
        cell.rows += rows;
    }

    /// Makes room such that at most half of the cells are used after so many rows. While the table is small, at most an eighth were before: a search that goes beyond its
    /// first cell costs a mispredicted branch, as much as the rest of the row.
    fn reserve(&mut self, rows: usize) {
        let wanted = (2 * (self.used.len() + rows)).max((8 * self.used.len()).min(SPARSE_CELLS)).next_power_of_two();
        if wanted <= self.cells.len() {
            return;
        }
        let cells = std::mem::replace(&mut self.cells, vec![Cell::default(); wanted]);
        let mask = wanted - 1;
        for place in &mut self.used {
            let cell = cells[*place as usize];
            let mut at = mix(u64::from(cell.tag), cell.key) as usize & mask;
            while self.cells[at].tag != 0 {
                at = (at + 1) & mask;
            }
            self.cells[at] = cell;
            *place = at as u32;
        }
    }

    /// Gives each identity with time, status, rows and work, and empties the table.
    pub(crate) fn drain(&mut self, mut take: impl FnMut(u64, u32, u8, u64, u128)) {
        for place in self.used.drain(..) {
            let cell = std::mem::take(&mut self.cells[place as usize]);
            let work = (u128::from(cell.work_high) << 64) | u128::from(cell.work_low);
            let (time, status) = of_tag(cell.tag);
            take(cell.key, time, status, u64::from(cell.rows), work);
        }
        self.rows = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn rows() -> impl Strategy<Value = Vec<(u64, u64, u8)>> {
        let word = || prop_oneof![Just(0), Just(1), Just(u64::MAX), Just(u64::MAX - 1), Just(1 << 32), 2..5_u64, any::<u64>()];
        prop::collection::vec((word(), word(), prop_oneof![4 => Just(0), 2 => 0..9_u8, 1 => any::<u8>()]), 0..300)
    }

    /// One of few.
    fn time_of(work: u64) -> u32 {
        (work % 3) as u32
    }

    proptest! {
        #[test]
        fn sums_by_status_are_those_of_adding_row_by_row(rows in rows(), cut in 0..300_usize) {
            let (work, status): (Vec<u64>, Vec<u8>) = rows.iter().map(|&(_, work, status)| (work, status)).unzip();
            let mut sums = StatusSums::default();
            let cut = cut.min(work.len());
            sums.add(&work[..cut], &status[..cut]);
            sums.add(&work[cut..], &status[cut..]);
            let mut slow: BTreeMap<u8, (u64, u128)> = BTreeMap::new();
            for (&work, &status) in work.iter().zip(&status) {
                let sum = slow.entry(status.min(9)).or_default();
                *sum = (sum.0 + 1, sum.1 + u128::from(work));
            }
            let slow: Vec<(u8, u64, u128)> = slow.into_iter().map(|(status, (rows, work))| (status, rows, work)).collect();
            prop_assert_eq!(sums.each().collect::<Vec<_>>(), slow);
            let by_status = std::array::from_fn(|at| status.iter().filter(|status| usize::from(**status) == at).count() as u64);
            let all: u128 = work.iter().map(|&work| u128::from(work)).sum();
            let credited: u128 = work.iter().zip(&status).filter(|(_, status)| **status == 0).map(|(&work, _)| u128::from(work)).sum();
            prop_assert_eq!(sums.are(&by_status, all, credited), status.iter().all(|status| *status < 9));
            prop_assert!(!sums.are(&by_status, all + 1, credited));
            prop_assert!(!sums.are(&by_status, all, credited + 1));
            let mut other = by_status;
            other[5] += 1;
            prop_assert!(!sums.are(&other, all, credited));
        }

        #[test]
        fn identities_are_summed_as_row_by_row_and_a_drained_table_is_empty(rows in rows(), part in 1..90_usize) {
            let mut table = IdentityTable::new();
            // Twice: what the first round leaves behind would stand in the second.
            for _ in 0..2 {
                for rows in rows.chunks(part) {
                    let work: Vec<u64> = rows.iter().map(|row| row.1).collect();
                    table.add(&work, |at| rows[at].0, |at| tag(time_of(rows[at].1), rows[at].2));
                }
                let mut slow: BTreeMap<(u64, u32, u8), (u64, u128)> = BTreeMap::new();
                for &(key, work, status) in &rows {
                    let sum = slow.entry((key, time_of(work), status)).or_default();
                    *sum = (sum.0 + 1, sum.1 + u128::from(work));
                }
                let mut drained = BTreeMap::new();
                table.drain(|key, time, status, rows, work| assert!(drained.insert((key, time, status), (rows, work)).is_none()));
                prop_assert_eq!(&drained, &slow);
            }
        }
    }

    #[test]
    fn work_past_64_bits_is_carried() {
        let mut table = IdentityTable::new();
        let rows = 100_000;
        table.add(&vec![u64::MAX; rows], |_| 7, |_| tag(u32::MAX, 255));
        let mut all = Vec::new();
        table.drain(|key, time, status, rows, work| all.push((key, time, status, rows, work)));
        assert_eq!(all, [(7, u32::MAX >> 9, 255, 100_000, 100_000 * u128::from(u64::MAX))]);
        assert!(!table.is_full(u32::MAX as usize) && table.is_full(u32::MAX as usize + 1));
    }
}
