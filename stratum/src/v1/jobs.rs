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

/// The largest whole difficulty from 1 up, or fractional one below 1, whose work is at most `work`.
fn difficulty_at_most(work: Work) -> Difficulty {
    let mut value = super::messages::wire_difficulty(work.difficulty()).get();
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
