//! Merkle roots of shares seen lately, by (job, extranonce1, extranonce2): exact, of fixed size, and out of the way where nothing repeats.
//!
//! A miner that rolls the version or the nonce sends many shares over one root; hashing such a share over the known root costs a thirteenth of the whole.
//! Production difficulties give no repeats at all, so the cache watches itself: unless a quarter of the last shares were hits it looks at one pass in about
//! sixteen. A hit saves more than four look-ups cost, so nobody can make the cache cost more than it saves, and a flood of fresh extranonces puts it to sleep.
use super::duplicates::keyed_hash;
use otedama_kernels::prefetch::prefetch;
use otedama_primitives::Submit;

/// Roots held: 16384, 1 MiB. A root falls out when another takes its place.
const PLACES: usize = 1 << 14;
/// Bytes of a cache.
pub const ROOT_CACHE_BYTES: usize = PLACES * size_of::<Known>();
/// Look-ups after which the hits among them decide whether the cache stays awake.
const WINDOW_LOOKUPS: u64 = 1024;
/// One hit in so many look-ups keeps it awake.
const LOOKUPS_PER_HIT: u64 = 4;
/// Passes between two looks of a sleeping cache: 8 to 23, drawn anew each time, so that no rhythm of the miners can hide from it.
const ASLEEP_PASSES: (u64, u64) = (8, 16);

/// A root and what it was made from. Job counters start at 1 and never repeat within a run: an empty place is found by nobody, and an ended job's root neither.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Known {
    extranonce2: u64,
    job: u32,
    extranonce1: u32,
    root: [u32; 8],
}

/// The cache of a lane.
pub struct RootCache {
    places: Box<[Known]>,
    seed: u64,
    dice: u64,
    awake: bool,
    /// Passes that a sleeping cache still lets go by.
    passes_left: u64,
    lookups: u64,
    hits: u64,
    window_from: (u64, u64),
}

impl RootCache {
    /// An empty one, awake; `seed` is random per boot.
    pub fn new(seed: u64) -> Self {
        let empty = Known { extranonce2: 0, job: 0, extranonce1: 0, root: [0; 8] };
        Self {
            places: vec![empty; PLACES].into_boxed_slice(),
            seed,
            dice: seed | 1,
            awake: true,
            passes_left: 0,
            lookups: 0,
            hits: 0,
            window_from: (0, 0),
        }
    }

    /// Whether the pass that begins now looks roots up and keeps the ones it makes.
    pub fn begin_pass(&mut self) -> bool {
        let (lookups, hits) = (self.lookups - self.window_from.0, self.hits - self.window_from.1);
        if lookups >= WINDOW_LOOKUPS {
            self.awake = hits * LOOKUPS_PER_HIT >= lookups;
            self.window_from = (self.lookups, self.hits);
        }
        if self.awake {
            return true;
        }
        if self.passes_left > 0 {
            self.passes_left -= 1;
            return false;
        }
        // xorshift64: any spread will do.
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.passes_left = ASLEEP_PASSES.0 + self.dice % ASLEEP_PASSES.1;
        true
    }

    /// Place of a share's root; the other calls take it, so that it is worked out once.
    #[inline(always)]
    pub fn place(&self, submit: &Submit) -> usize {
        let hash = keyed_hash(self.seed, [(u64::from(submit.job) << 32) | u64::from(submit.extranonce1), submit.extranonce2]);
        (hash >> (64 - PLACES.trailing_zeros())) as usize
    }

    /// Gets the place under way.
    #[inline(always)]
    pub fn prefetch(&self, place: usize) {
        prefetch(&self.places[place]);
    }

    /// True when the root of this share stands at its place. Counted.
    #[inline]
    pub fn look_up(&mut self, place: usize, submit: &Submit) -> bool {
        let known = self.root(place, submit).is_some();
        self.lookups += 1;
        self.hits += u64::from(known);
        known
    }

    /// The root of this share, SHA-256 words.
    #[inline]
    pub fn root(&self, place: usize, submit: &Submit) -> Option<[u32; 8]> {
        let known = &self.places[place];
        let same = known.extranonce2 == submit.extranonce2 && known.job == submit.job && known.extranonce1 == submit.extranonce1;
        same.then_some(known.root)
    }

    /// Keeps the root of a share.
    #[inline]
    pub fn keep(&mut self, place: usize, submit: &Submit, root: [u32; 8]) {
        self.places[place] = Known { extranonce2: submit.extranonce2, job: submit.job, extranonce1: submit.extranonce1, root };
    }

    /// Forgets every root: the kernel that made them was found wrong.
    pub fn forget(&mut self) {
        self.places.iter_mut().for_each(|known| known.job = 0);
    }

    /// Never looks again: what a lane without a cache does.
    #[cfg(test)]
    pub fn sleep_for_ever(&mut self) {
        self.awake = false;
        self.passes_left = u64::MAX;
    }

    /// Look-ups and hits since the start.
    pub fn counts(&self) -> (u64, u64) {
        (self.lookups, self.hits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytemuck::Zeroable;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn share(job: u32, extranonce1: u32, extranonce2: u64) -> Submit {
        Submit { job, extranonce1, extranonce2, ..Submit::zeroed() }
    }

    /// Passes of `shares` shares; returns how many of them looked.
    fn passes(cache: &mut RootCache, count: usize, mut extranonce2: impl FnMut() -> u64) -> usize {
        let mut looked = 0;
        for _ in 0..count {
            let looks = cache.begin_pass();
            looked += usize::from(looks);
            for _ in 0..256 {
                let share = share(1, 1, extranonce2());
                let place = cache.place(&share);
                if looks && !cache.look_up(place, &share) {
                    cache.keep(place, &share, [0; 8]);
                }
            }
        }
        looked
    }

    #[test]
    fn a_cache_without_hits_looks_at_one_pass_in_eight_at_most() {
        let mut cache = RootCache::new(9);
        let mut next = 0;
        let mut fresh = || {
            next += 1;
            next
        };
        passes(&mut cache, 16, &mut fresh);
        let looked = passes(&mut cache, 1600, &mut fresh);
        assert!((1600 / 24..=1600 / 8).contains(&looked), "{looked}");
    }

    #[test]
    fn a_sleeping_cache_wakes_up_when_extranonces_repeat() {
        let mut cache = RootCache::new(9);
        let mut next = 0;
        passes(&mut cache, 100, || {
            next += 1;
            next
        });
        // Forty miners on one extranonce each, seen again only in later passes that look.
        passes(&mut cache, 400, || {
            next += 1;
            next % 40
        });
        assert_eq!(passes(&mut cache, 100, || 7), 100);
    }

    #[test]
    fn a_root_at_this_place_is_of_this_share_or_of_none() {
        let mut cache = RootCache::new(9);
        let kept = share(1, 2, 3);
        for place in [0, 77, PLACES - 1] {
            cache.keep(place, &kept, [5; 8]);
            assert_eq!(cache.root(place, &kept), Some([5; 8]));
            for other in [share(2, 2, 3), share(1, 3, 3), share(1, 2, 4), share(1, 2, 3 | 1 << 63)] {
                assert_eq!(cache.root(place, &other), None, "{other:?}");
                assert!(!cache.look_up(place, &other));
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_found_is_what_was_kept_last(
            ops in prop::collection::vec((1u32..4, prop_oneof![0u32..3, any::<u32>()], prop_oneof![0u64..3, any::<u64>()], any::<u32>()), 1..300),
            seed in any::<u64>(),
        ) {
            let mut cache = RootCache::new(seed);
            let mut kept: HashMap<(u32, u32, u64), [u32; 8]> = HashMap::new();
            for (job, extranonce1, extranonce2, word) in ops {
                let share = share(job, extranonce1, extranonce2);
                let place = cache.place(&share);
                let key = (job, extranonce1, extranonce2);
                // A root may have made way for another; a wrong one is never found.
                if let Some(found) = cache.root(place, &share) {
                    prop_assert_eq!(Some(&found), kept.get(&key));
                }
                cache.keep(place, &share, [word; 8]);
                kept.insert(key, [word; 8]);
                prop_assert_eq!(cache.root(place, &share), Some([word; 8]));
            }
            cache.forget();
            for (job, extranonce1, extranonce2) in kept.into_keys() {
                let share = share(job, extranonce1, extranonce2);
                prop_assert_eq!(cache.root(cache.place(&share), &share), None);
            }
        }
    }
}
