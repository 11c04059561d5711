//! The accepted shares of the jobs that live, by the whole duplicate key: nothing is evicted, so equality is exact.
use otedama_sharelog::{IdMap, LoggedRow, mix};
use std::collections::HashSet;
use std::hash::{BuildHasher, Hasher, RandomState};

/// extranonce2, ntime and nonce, extranonce1 and version: with the job the whole key.
pub(crate) type Key = [u64; 3];

pub(crate) fn key(row: &LoggedRow, extranonce1: u32, version: u32) -> Key {
    [row.extranonce2, (u64::from(row.ntime) << 32) | u64::from(row.nonce), (u64::from(extranonce1) << 32) | u64::from(version)]
}

/// Which of `shards` keeps a key.
#[inline]
pub(crate) fn shard_of(key: &Key, shards: usize) -> usize {
    let mixed = key.iter().fold(0, |state, &word| mix(state, word));
    ((u128::from(mixed) * shards as u128) >> 64) as usize
}

/// Keys are chosen by miners, so the hash has a seed that they do not know.
#[derive(Clone)]
struct KeyState(u64);

impl Default for KeyState {
    fn default() -> Self {
        Self(RandomState::new().build_hasher().finish())
    }
}

struct KeyHasher(u64);

impl BuildHasher for KeyState {
    type Hasher = KeyHasher;

    fn build_hasher(&self) -> KeyHasher {
        KeyHasher(self.0)
    }
}

impl Hasher for KeyHasher {
    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }

    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        let (words, _) = bytes.as_chunks::<8>();
        self.0 = words.iter().fold(self.0, |state, word| mix(state, u64::from_le_bytes(*word)));
    }

    #[inline]
    fn write_usize(&mut self, _length: usize) {}
}

/// The part of the tables that one thread looks after.
#[derive(Default)]
pub(crate) struct Shard {
    jobs: IdMap<u64, HashSet<Key, KeyState>>,
    state: KeyState,
}

impl Shard {
    pub(crate) fn contains(&self, job: u64, key: &Key) -> bool {
        self.jobs.get(&job).is_some_and(|keys| keys.contains(key))
    }

    pub(crate) fn insert(&mut self, job: u64, key: Key) {
        let state = &self.state;
        self.jobs.entry(job).or_insert_with(|| HashSet::with_hasher(state.clone())).insert(key);
    }

    /// Forgets the shares of every job that `keeps` does not want.
    pub(crate) fn keep(&mut self, mut keeps: impl FnMut(u64) -> bool) {
        self.jobs.retain(|&job, _| keeps(job));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn word() -> impl Strategy<Value = u64> {
        prop_oneof![0..3_u64, (u64::MAX - 2)..=u64::MAX, any::<u64>()]
    }

    proptest! {
        #[test]
        fn a_share_is_found_in_its_job_and_nowhere_else(ops in prop::collection::vec((0..3_u64, [word(), word(), word()], prop::bool::weighted(0.05)), 1..200), shards in 1..5_usize) {
            let mut tables: Vec<Shard> = (0..shards).map(|_| Shard::default()).collect();
            let mut set = std::collections::BTreeSet::new();
            for (job, key, forgets) in ops {
                if forgets {
                    tables.iter_mut().for_each(|shard| shard.keep(|kept| kept != job));
                    set.retain(|(kept, _)| *kept != job);
                }
                let shard = &mut tables[shard_of(&key, shards)];
                prop_assert_eq!(shard.contains(job, &key), set.contains(&(job, key)));
                shard.insert(job, key);
                set.insert((job, key));
            }
        }
    }
}
