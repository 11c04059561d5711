//! The exact set of credited shares, one fixed table per live job. Nothing is evicted, nothing is skipped: near its end the table asks for a new job instead.
//!
//! A table is an index of 8-byte slots, looked up at random, and the keys themselves, appended one after the other. A share that is new reads one slot, most
//! often, and never a key; a slot says which job it belongs to, so a table changes hands without being cleared.
//! Refused after a trial on 12 cold tables: keys in the index itself, which reads and dirties twice the memory at random, and plain loads in the place of the
//! prefetch; both were slower. `benches stage` measures the stage with its tables.
use crate::sys::pages::HugeSlice;
use otedama_kernels::prefetch::prefetch;
use otedama_primitives::Submit;

/// Shares that a table can hold: 2^19.
pub const DUPLICATE_ENTRIES: usize = 1 << 19;
/// Slots of the index: with twice as many as shares a probe ends after two or three.
const SLOTS: usize = DUPLICATE_ENTRIES * 2;
/// Bytes of a table: 8 MiB of slots and 12 MiB of keys, touched only as shares come.
pub const DUPLICATE_TABLE_BYTES: usize = SLOTS * size_of::<u64>() + DUPLICATE_ENTRIES * size_of::<Key>();
/// Tables of a lane: eight jobs may be live, and net may lag behind validate by a few.
pub const DUPLICATE_TABLES: usize = 12;
/// Three quarters full: chain issues a new job.
pub const DUPLICATE_PRESSURE: usize = DUPLICATE_ENTRIES / 4 * 3;
/// Past fifteen sixteenths nothing is credited any more.
const USED_MAX: usize = DUPLICATE_ENTRIES / 16 * 15;

/// extranonce2, ntime and nonce, extranonce1 and version: with the job of the table the whole key, so equality is exact.
type Key = [u64; 3];

/// Bits of a slot: job counter 32, a part of the hash 13, place of the key 19. A slot whose counter is not the table's is empty.
const PLACE_BITS: u32 = DUPLICATE_ENTRIES.trailing_zeros();
const PLACE_MASK: u64 = DUPLICATE_ENTRIES as u64 - 1;
const PART_MASK: u64 = (1 << (32 - PLACE_BITS)) - 1;

#[inline(always)]
fn key(submit: &Submit) -> Key {
    [
        submit.extranonce2,
        (u64::from(submit.ntime) << 32) | u64::from(submit.nonce),
        (u64::from(submit.extranonce1) << 32) | u64::from(submit.version),
    ]
}

/// Multiply and fold: every bit of the words reaches every bit of the hash, keyed by the seed.
#[inline(always)]
pub(super) fn keyed_hash<const WORDS: usize>(seed: u64, words: [u64; WORDS]) -> u64 {
    words.into_iter().fold(seed, |state, word| {
        let product = u128::from(state ^ word) * u128::from(0x9e37_79b9_7f4a_7c15_u64);
        (product >> 64) as u64 ^ product as u64
    })
}

/// What became of an insertion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inserted {
    /// It was new.
    New,
    /// It was there already.
    Duplicate,
    /// There is no room: the share must not be credited.
    Full,
}

/// What a probe ended at.
enum Found {
    Share,
    EmptySlot(usize),
}

/// Credited shares of one job.
#[derive(Debug)]
pub struct DuplicateTable {
    job: u32,
    used: usize,
    seed: u64,
    slots: HugeSlice<u64>,
    keys: HugeSlice<Key>,
}

impl DuplicateTable {
    /// An empty table; `seed` is random per boot, so that nobody can choose shares that collide.
    pub fn new(seed: u64) -> Self {
        Self { job: 0, used: 0, seed: seed | 1, slots: HugeSlice::zeroed(SLOTS), keys: HugeSlice::zeroed(DUPLICATE_ENTRIES) }
    }

    /// Hands the table to a job, whose counter it never had before. Slots of the job before count as empty from now on: nothing is cleared.
    pub fn take_over(&mut self, job: u32) {
        self.job = job;
        self.used = 0;
    }

    /// The job it belongs to, 0 for none.
    pub fn job(&self) -> u32 {
        self.job
    }

    /// Shares in it.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Where a share is looked for; the other calls take it, so that it is worked out once.
    #[inline(always)]
    pub fn hash(&self, submit: &Submit) -> u64 {
        keyed_hash(self.seed, key(submit))
    }

    /// Gets the slot of a share under way.
    #[inline(always)]
    pub fn prefetch(&self, hash: u64) {
        prefetch(&self.slots[slot_of(hash)]);
    }

    #[inline(always)]
    fn find(&self, submit: &Submit, hash: u64) -> Found {
        let own = self.tag(hash);
        let mut at = slot_of(hash);
        loop {
            let slot = self.slots[at];
            if (slot >> 32) as u32 != self.job {
                return Found::EmptySlot(at);
            }
            if slot & !PLACE_MASK == own && self.keys[(slot & PLACE_MASK) as usize] == key(submit) {
                return Found::Share;
            }
            at = (at + 1) % SLOTS;
        }
    }

    /// A slot of this share, without its place.
    #[inline(always)]
    fn tag(&self, hash: u64) -> u64 {
        (u64::from(self.job) << 32) | ((hash & PART_MASK) << PLACE_BITS)
    }

    /// True when the share was credited before.
    #[inline]
    pub fn contains(&self, submit: &Submit, hash: u64) -> bool {
        matches!(self.find(submit, hash), Found::Share)
    }

    /// Test and set, in ring order, of a share that met its target.
    #[inline]
    pub fn insert(&mut self, submit: &Submit, hash: u64) -> Inserted {
        debug_assert_eq!(submit.job, self.job);
        match self.find(submit, hash) {
            Found::Share => Inserted::Duplicate,
            Found::EmptySlot(_) if self.used >= USED_MAX => Inserted::Full,
            Found::EmptySlot(at) => {
                self.slots[at] = self.tag(hash) | self.used as u64;
                self.keys[self.used] = key(submit);
                self.used += 1;
                Inserted::New
            }
        }
    }
}

/// First slot that is looked at. The highest bits choose it, the lowest stand in it.
#[inline(always)]
fn slot_of(hash: u64) -> usize {
    (hash >> (64 - SLOTS.trailing_zeros())) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytemuck::Zeroable;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn submit(job: u32, field: u8, value: u32) -> Submit {
        let mut submit = Submit { job, ..Submit::zeroed() };
        match field {
            0 => submit.extranonce1 = value,
            1 => submit.extranonce2 = u64::from(value) << 32,
            2 => submit.extranonce2 = u64::from(value),
            3 => submit.ntime = value,
            4 => submit.nonce = value,
            _ => submit.version = value,
        }
        submit
    }

    fn insert(table: &mut DuplicateTable, submit: &Submit) -> Inserted {
        table.insert(submit, table.hash(submit))
    }

    fn contains(table: &DuplicateTable, submit: &Submit) -> bool {
        table.contains(submit, table.hash(submit))
    }

    #[test]
    fn a_table_that_changes_hands_forgets_the_job_before() {
        let mut table = DuplicateTable::new(3);
        table.take_over(1);
        assert_eq!(insert(&mut table, &submit(1, 4, 9)), Inserted::New);
        assert_eq!(insert(&mut table, &submit(1, 4, 9)), Inserted::Duplicate);
        table.take_over(13);
        assert!(!contains(&table, &submit(13, 4, 9)));
        assert_eq!(insert(&mut table, &submit(13, 4, 9)), Inserted::New);
        assert_eq!(table.used(), 1);
    }

    #[test]
    fn a_full_table_credits_nothing_and_still_knows_what_it_has() {
        let mut table = DuplicateTable::new(5);
        table.take_over(1);
        for nonce in 0..USED_MAX as u32 {
            assert_eq!(insert(&mut table, &submit(1, 4, nonce)), Inserted::New);
        }
        assert_eq!(insert(&mut table, &submit(1, 4, u32::MAX)), Inserted::Full);
        assert!((0..USED_MAX as u32).all(|nonce| contains(&table, &submit(1, 4, nonce))));
        assert_eq!(insert(&mut table, &submit(1, 4, 0)), Inserted::Duplicate);
        assert!(!contains(&table, &submit(1, 4, u32::MAX)));
    }

    #[test]
    fn shares_of_equal_hash_are_told_apart_by_their_keys() {
        // All of them under one hash, whose slot is the last: slot and tag agree, and the probe goes round the end.
        let mut table = DuplicateTable::new(1);
        table.take_over(1);
        let shares: Vec<_> = (0..40).map(|nonce| submit(1, 4, nonce)).collect();
        for share in &shares {
            assert!(!table.contains(share, u64::MAX));
            assert_eq!(table.insert(share, u64::MAX), Inserted::New);
            assert_eq!(table.insert(share, u64::MAX), Inserted::Duplicate);
        }
        assert!(shares.iter().all(|share| table.contains(share, u64::MAX)));
        assert_eq!(table.used(), shares.len());
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_set_over_many_owners(
            ops in prop::collection::vec((0u8..6, prop_oneof![0u32..4, (u32::MAX - 2)..=u32::MAX, any::<u32>()], prop::bool::weighted(0.03)), 1..300),
            seed in any::<u64>(),
        ) {
            let mut table = DuplicateTable::new(seed);
            let mut job = 7;
            table.take_over(job);
            let mut set = HashSet::new();
            for (field, value, hands_over) in ops {
                if hands_over {
                    job += DUPLICATE_TABLES as u32;
                    table.take_over(job);
                    set.clear();
                }
                let share = submit(job, field, value);
                prop_assert_eq!(contains(&table, &share), set.contains(&key(&share)));
                let new = set.insert(key(&share));
                prop_assert_eq!(insert(&mut table, &share) == Inserted::New, new);
                prop_assert_eq!(table.used(), set.len());
            }
        }
    }
}
