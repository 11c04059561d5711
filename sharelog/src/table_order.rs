//! The order in which the rows of a segment lie: that of the table they go to, by worker and, as they arrived, by time.
//!
//! A server that is sent rows as they arrived sorts half a million of them with a comparison through its columns and fills every roll-up in an order that finds nothing in
//! its caches, which is half of what an insert costs it; rows in the order of the table it takes as they are. Sums by worker, and compression, find equal values side by
//! side. The order is cheap to make here: one key of eight bytes, and rows of one cache line (`cargo xtask figures log` has the cost). `seq` keeps a row's place by arrival.
use crate::segment::SEGMENT_ROWS_MAX;

/// Bits of a key that one pass sorts by: its 512 ends, and the lines that are written there, lie in the first-level cache.
const DIGIT_BITS: u32 = 9;
const DIGITS: usize = 1 << DIGIT_BITS;
/// The lower bits of a key are the row, the others the upper bits of its worker, which is a hash: of a million workers two share them in one pool of a hundred.
const ROW_BITS: u32 = 19;
const PASSES: [u32; 5] = [19, 28, 37, 46, 55];
const _: () = assert!(SEGMENT_ROWS_MAX <= 1 << ROW_BITS && PASSES[0] == ROW_BITS && PASSES[4] + DIGIT_BITS == u64::BITS);

/// Keys of rows as they arrive, and memory for sorting them, kept from segment to segment.
#[derive(Default)]
pub(crate) struct TableOrder {
    keys: Vec<u64>,
    spare: Vec<u64>,
}

impl TableOrder {
    /// Adds a row: the next one.
    #[inline]
    pub(crate) fn push(&mut self, worker: u64) {
        self.keys.push((worker >> ROW_BITS << ROW_BITS) | self.keys.len() as u64);
    }

    /// Forgets the rows and keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.keys.clear();
    }

    /// Gives the rows by the upper bits of their workers, those of one as they are; they stay, in this order, until `clear`. Five passes over memory that fits a cache, where a
    /// comparison would mispredict twenty times a row. Nothing but the keys is looked at: workers whose upper bits are equal, which nobody has who did not go looking for
    /// them, are the caller's.
    pub(crate) fn sort(&mut self, order: &mut Vec<u32>) {
        let Self { keys, spare } = self;
        let mut counts = PASSES.map(|_| [0u32; DIGITS]);
        for &key in keys.iter() {
            for (counts, shift) in counts.iter_mut().zip(PASSES) {
                counts[digit(key, shift)] += 1;
            }
        }
        spare.resize(keys.len(), 0);
        for (ends, shift) in counts.iter_mut().zip(PASSES) {
            let mut end = 0;
            for count in ends.iter_mut() {
                (*count, end) = (end, end + *count);
            }
            for &key in keys.iter() {
                let place = &mut ends[digit(key, shift)];
                if let Some(slot) = spare.get_mut(*place as usize) {
                    *slot = key;
                }
                *place += 1;
            }
            std::mem::swap(keys, spare);
        }
        order.clear();
        order.extend(keys.iter().map(|&key| key as u32 & ((1 << ROW_BITS) - 1)));
    }
}

#[inline]
fn digit(key: u64, shift: u32) -> usize {
    (key >> shift) as usize & (DIGITS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 64 } else { 1000 }))]

        #[test]
        fn every_row_stands_once_by_the_upper_bits_of_its_worker_and_those_of_one_as_they_came(
            rounds in prop::collection::vec(prop::collection::vec(prop_oneof![0..4_u64, Just(u64::MAX), any::<u64>()], 0..400), 1..4),
        ) {
            let (mut order, mut rows) = (TableOrder::default(), Vec::new());
            for workers in rounds {
                order.clear();
                workers.iter().for_each(|&worker| order.push(worker));
                let mut slow: Vec<u32> = (0..workers.len() as u32).collect();
                slow.sort_by_key(|&row| workers[row as usize] >> ROW_BITS);
                order.sort(&mut rows);
                prop_assert_eq!(&rows, &slow);
                // A seal that failed is made again.
                order.sort(&mut rows);
                prop_assert_eq!(&rows, &slow);
            }
        }
    }
}
