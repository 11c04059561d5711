//! Jobs as sessions see them: the notify line made once, and the book of jobs that a share may name.
use otedama_primitives::{Difficulty, Job, Work};
use std::sync::Arc;

/// A job with everything that is the same for every session: its id on the wire, its notify lines and the limit on difficulty.
#[derive(Debug)]
pub struct PublishedJob {
    /// The job.
    pub job: Job,
    /// Its id on the wire as a number: counter + salt of the boot, so that ids of an earlier boot are unknown here. Miners read 8 lower-case hex digits.
    pub wire_id: u32,
    /// The mining.notify line with clean_jobs false, LF included.
    pub notify: Box<[u8]>,
    /// The mining.notify line with clean_jobs true, LF included.
    pub notify_clean: Box<[u8]>,
    /// Work of the network target: no share is judged at more.
    pub network_work: Work,
    /// The largest difficulty whose work is at most `network_work`: no session is sent more, or it would keep blocks to itself.
    pub network_difficulty: Difficulty,
}

impl PublishedJob {
    /// Prepares `job` for the wire; `salt` is one random number per boot.
    pub fn new(job: Job, salt: u32) -> Self {
        let wire_id = job.id.counter().wrapping_add(salt);
        let network_work = job.network_target.work();
        Self {
            notify: super::messages::notify_line(&job, wire_id, false).into_boxed_slice(),
            notify_clean: super::messages::notify_line(&job, wire_id, true).into_boxed_slice(),
            network_difficulty: difficulty_at_most(network_work),
            network_work,
            wire_id,
            job,
        }
    }
}

/// The largest difficulty as it would be sent (whole from 1 up) whose work is at most `work`.
fn difficulty_at_most(work: Work) -> Difficulty {
    // Work is rounded down, so a whole difficulty may look a hair below itself.
    let mut value = work.difficulty().round();
    if value < 1.0 || Difficulty::clamped(value).work() > work {
        value = super::messages::wire_difficulty(work.difficulty()).get();
    }
    while Difficulty::clamped(value).work() > work && value > otedama_primitives::DIFFICULTY_MIN {
        value = super::messages::wire_difficulty(value.next_down()).get();
    }
    Difficulty::clamped(value)
}

/// Jobs that are remembered, live or ended: a share of an ended one is stale with its job named, one of a forgotten job is stale without.
const REMEMBERED: usize = 16;
/// Jobs that may be live at once.
const LIVE_MAX: usize = 8;

/// The last 16 jobs of one coin, at most 8 of them live; one book per net stage. A clean job ends all earlier ones.
#[derive(Debug, Default)]
pub struct JobBook {
    /// Wire ids beside the entries: the search reads one cache line. Entries that are None are not looked at.
    wire_ids: [u32; REMEMBERED],
    entries: [Option<Arc<PublishedJob>>; REMEMBERED],
    /// Jobs with a smaller counter have ended.
    oldest_live: u32,
    newest: Option<usize>,
}

impl JobBook {
    /// An empty book.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a job in; counters rise from call to call. Returns the job that was forgotten to make room, if any.
    pub fn publish(&mut self, job: Arc<PublishedJob>) -> Option<Arc<PublishedJob>> {
        let counter = job.job.id.counter();
        debug_assert!(self.newest().is_none_or(|newest| newest.job.id.counter() < counter), "job counters rise");
        let index = self.newest.map_or(0, |newest| (newest + 1) % REMEMBERED);
        if job.job.clean {
            self.end_before(counter);
        }
        self.wire_ids[index] = job.wire_id;
        let forgotten = self.entries[index].replace(job);
        self.newest = Some(index);
        // Entries lie in the order of their counters, so the eighth newest is the oldest that may live.
        if let Some(eighth) = &self.entries[(index + REMEMBERED + 1 - LIVE_MAX) % REMEMBERED] {
            let eighth = eighth.job.id.counter();
            self.end_before(eighth);
        }
        forgotten
    }

    /// Ends every job with a smaller counter: their shares are stale from now on.
    pub fn end_before(&mut self, counter: u32) {
        self.oldest_live = self.oldest_live.max(counter);
    }

    /// The newest job, if it is live.
    pub fn newest(&self) -> Option<&Arc<PublishedJob>> {
        self.entries[self.newest?].as_ref().filter(|job| self.is_live(job.job.id.counter()))
    }

    /// Counter below which no job is live: what `Extranonces::expire` wants. 0 before the first job ended.
    pub fn oldest_live(&self) -> u32 {
        self.oldest_live
    }

    /// True while shares of the job with this counter are judged. Counters that were never published are live if they are new enough: look the job up first.
    pub fn is_live(&self, counter: u32) -> bool {
        counter >= self.oldest_live
    }

    /// The job that a miner names, and whether it is live; None when it is unknown or forgotten.
    #[inline]
    pub fn lookup(&self, wire_id: u32) -> Option<(&PublishedJob, bool)> {
        for (known, entry) in self.wire_ids.iter().zip(&self.entries) {
            if *known == wire_id
                && let Some(job) = entry
            {
                return Some((job, self.is_live(job.job.id.counter())));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use otedama_primitives::{Coin, Hash256, RunId, Target};
    use proptest::prelude::*;

    fn published(counter: u32, salt: u32, clean: bool, network_target: Target) -> Arc<PublishedJob> {
        let job = Job {
            id: RunId::new(1, 2).job(counter),
            coin: Coin::Bitcoin,
            height: 1,
            prev_hash: Hash256([0; 32]),
            version: 0x2000_0000,
            nbits: 0x207f_ffff,
            ntime: 1,
            ntime_min: 0,
            coinbase_prefix: Box::new([]),
            coinbase_suffix: Box::new([]),
            branch: Box::new([]),
            extranonce2_bytes: 8,
            network_target,
            clean,
            created_us: 0,
        };
        Arc::new(PublishedJob::new(job, salt))
    }

    #[test]
    fn the_network_difficulty_never_has_more_work_than_the_network() {
        for (compact, expected) in
            [(0x1d00_ffffu32, Some(1.0)), (0x1b04_04cb, Some(16307.0)), (0x207f_ffff, None), (0x1702_5ced, Some(4e9))]
        {
            let target = Target::from_compact(compact).expect("a target");
            let job = published(1, 0, false, target);
            assert_eq!(job.network_work, target.work());
            assert!(job.network_difficulty.work() <= job.network_work, "{compact:08x}");
            if let Some(expected) = expected {
                assert_eq!(job.network_difficulty.get(), expected, "{compact:08x}");
            }
        }
        for target in [Target([u64::MAX; 4]), Target([0; 4]), Target([1, 0, 0, 0])] {
            let job = published(1, 0, false, target);
            assert!(job.network_difficulty.work() <= job.network_work);
        }
    }

    proptest! {
        #[test]
        fn network_difficulties_of_any_work_are_the_largest_that_fit(work in prop_oneof![1u64..5, 4_295_032_830..4_295_032_840u64, any::<u64>(), (0u32..64).prop_map(|s| 1 << s)]) {
            let work = Work::new(work);
            let found = difficulty_at_most(work);
            prop_assert!(found.work() <= work);
            if found.get() >= 1.0 && found.get() < 4e9 {
                prop_assert!(Difficulty::clamped(found.get() + 1.0).work() > work, "{} is not the largest of {}", found.get(), work.hashes());
            }
        }

        /// Against the obvious model: a list of all jobs ever, with salts that make wire ids wrap.
        #[test]
        fn the_book_agrees_with_a_list(
            salt in prop_oneof![Just(0u32), Just(u32::MAX - 3), any::<u32>()],
            steps in prop::collection::vec((prop_oneof![4 => Just(0u8), 1 => Just(1), 1 => Just(2)], 1u32..3), 1..60),
        ) {
            let mut book = JobBook::new();
            let mut list: Vec<(u32, bool)> = Vec::new();
            let (mut counter, mut ended) = (0u32, 0u32);
            for (what, gap) in steps {
                if what == 2 {
                    ended = ended.max(counter.saturating_sub(gap));
                    book.end_before(counter.saturating_sub(gap));
                } else {
                    counter += gap;
                    let forgotten = book.publish(published(counter, salt, what == 1, Target([u64::MAX; 4])));
                    list.push((counter, what == 1));
                    let expected = list.len().checked_sub(17).map(|index| list[index].0);
                    prop_assert_eq!(forgotten.map(|job| job.job.id.counter()), expected);
                    if what == 1 {
                        ended = ended.max(counter);
                    }
                    if let Some(index) = list.len().checked_sub(8) {
                        ended = ended.max(list[index].0);
                    }
                }
                let remembered = &list[list.len().saturating_sub(16)..];
                for probe in 0..=counter + 2 {
                    let expected = remembered.iter().find(|job| job.0 == probe).map(|job| (probe, probe >= ended && probe == job.0));
                    let found = book.lookup(probe.wrapping_add(salt)).map(|(job, live)| (job.job.id.counter(), live));
                    prop_assert_eq!(found, expected);
                }
                let live = remembered.iter().filter(|job| job.0 >= ended).count();
                prop_assert!(live <= 8);
                prop_assert_eq!(book.newest().map(|job| job.job.id.counter()), remembered.last().map(|job| job.0).filter(|job| *job >= ended));
                prop_assert!(book.oldest_live() <= counter || list.is_empty());
            }
        }
    }
}
