//! The exact set of credited shares, one fixed table per live job. Nothing is evicted, nothing is skipped: near its end the table asks for a new job instead.
use otedama_primitives::Submit;

/// Entries of a table: 2^19, 16 MiB, touched only as shares come.
pub const DUPLICATE_ENTRIES: usize = 1 << 19;
/// Bytes of an entry.
pub const DUPLICATE_ENTRY_BYTES: usize = size_of::<Entry>();
/// Tables of a lane: eight jobs may be live, and net may lag behind validate by a few.
pub const DUPLICATE_TABLES: usize = 12;
/// Three quarters full: chain issues a new job.
pub const DUPLICATE_PRESSURE: usize = DUPLICATE_ENTRIES / 4 * 3;
/// Past fifteen sixteenths nothing is credited any more, or probes would get long.
const USED_MAX: usize = DUPLICATE_ENTRIES / 16 * 15;

/// job and extranonce1, extranonce2, ntime and nonce, version: the whole key, so equality is exact. Empty when the job is not the table's.
type Entry = [u64; 4];

fn key(submit: &Submit) -> Entry {
    [
        (u64::from(submit.job) << 32) | u64::from(submit.extranonce1),
        submit.extranonce2,
        (u64::from(submit.ntime) << 32) | u64::from(submit.nonce),
        u64::from(submit.version),
    ]
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

/// Credited shares of one job.
#[derive(Debug)]
pub struct DuplicateTable {
    job: u32,
    used: usize,
    seed: u64,
    entries: Vec<Entry>,
}

impl DuplicateTable {
    /// An empty table; `seed` is random per boot, so that nobody can choose shares that collide.
    pub fn new(seed: u64) -> Self {
        Self { job: 0, used: 0, seed: seed | 1, entries: vec![[0; 4]; DUPLICATE_ENTRIES] }
    }

    /// Hands the table to a job. Entries of the job before count as empty from now on: nothing is cleared.
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

    fn start(&self, key: &Entry) -> usize {
        // Multiply and fold: every bit of the key reaches the index, keyed by the seed.
        let mut state = self.seed;
        for word in key {
            let product = u128::from(state ^ word) * u128::from(0x9e37_79b9_7f4a_7c15_u64);
            state = (product >> 64) as u64 ^ product as u64;
        }
        (state >> (64 - DUPLICATE_ENTRIES.trailing_zeros())) as usize
    }

    /// True when the share was credited before.
    #[inline]
    pub fn contains(&self, submit: &Submit) -> bool {
        let key = key(submit);
        let mut at = self.start(&key);
        loop {
            let entry = &self.entries[at];
            if (entry[0] >> 32) as u32 != self.job {
                return false;
            }
            if *entry == key {
                return true;
            }
            at = (at + 1) % DUPLICATE_ENTRIES;
        }
    }

    /// Test and set, in ring order, of a share that met its target.
    #[inline]
    pub fn insert(&mut self, submit: &Submit) -> Inserted {
        debug_assert_eq!(submit.job, self.job);
        let key = key(submit);
        let mut at = self.start(&key);
        loop {
            let entry = &mut self.entries[at];
            if (entry[0] >> 32) as u32 != self.job {
                if self.used >= USED_MAX {
                    return Inserted::Full;
                }
                *entry = key;
                self.used += 1;
                return Inserted::New;
            }
            if *entry == key {
                return Inserted::Duplicate;
            }
            at = (at + 1) % DUPLICATE_ENTRIES;
        }
    }
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

    #[test]
    fn a_table_that_changes_hands_forgets_the_job_before() {
        let mut table = DuplicateTable::new(3);
        table.take_over(1);
        assert_eq!(table.insert(&submit(1, 4, 9)), Inserted::New);
        assert_eq!(table.insert(&submit(1, 4, 9)), Inserted::Duplicate);
        table.take_over(13);
        assert!(!table.contains(&submit(13, 4, 9)));
        assert_eq!(table.insert(&submit(13, 4, 9)), Inserted::New);
        assert_eq!(table.used(), 1);
    }

    #[test]
    fn a_full_table_credits_nothing_and_still_knows_what_it_has() {
        let mut table = DuplicateTable::new(5);
        table.take_over(1);
        for nonce in 0..USED_MAX as u32 {
            assert_eq!(table.insert(&submit(1, 4, nonce)), Inserted::New);
        }
        assert_eq!(table.insert(&submit(1, 4, u32::MAX)), Inserted::Full);
        assert!((0..USED_MAX as u32).all(|nonce| table.contains(&submit(1, 4, nonce))));
        assert!(!table.contains(&submit(1, 4, u32::MAX)));
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_set(ops in prop::collection::vec((0u8..6, prop_oneof![0u32..4, (u32::MAX - 2)..=u32::MAX, any::<u32>()]), 1..300), seed in any::<u64>()) {
            let mut table = DuplicateTable::new(seed);
            table.take_over(7);
            let mut set = HashSet::new();
            for (field, value) in ops {
                let share = submit(7, field, value);
                prop_assert_eq!(table.contains(&share), set.contains(&key(&share)));
                let new = set.insert(key(&share));
                prop_assert_eq!(table.insert(&share) == Inserted::New, new);
            }
            prop_assert_eq!(table.used(), set.len());
        }
    }
}
