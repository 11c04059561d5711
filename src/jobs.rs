//! Jobs on their way to the share path, and block candidates that had to be found in the log. Control core only.
use otedama_chain::{BlockEvent, ChainSink};
use otedama_pipeline::Tx;
use otedama_pipeline::driver::NetWaker;
use otedama_pipeline::stages::ValidatedJob;
use otedama_primitives::{BlockCandidate, Clock, Job, WorkerId};
use otedama_sharelog::{BlockRecord, BlockStatus, DIMENSIONS_START, DimensionEntry, DimensionReader, JobRecord, LoggedRow, Registry};
use otedama_stratum::v1::PublishedJob;
use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Jobs live at once on the share path: the ninth ends the oldest.
const LIVE_MAX: usize = 8;
/// Jobs whose tables are kept for candidates that come by way of the log.
pub const KEPT_FOR_CANDIDATES: usize = 1024;

/// Jobs that wait for a stage that takes none. Rings of jobs are deep: only a stage that stands still lets it come to this.
pub const JOBS_WAITING: usize = 16;

/// A job in the two forms in which stages hold it.
type Pair = (Arc<ValidatedJob>, Arc<PublishedJob>);

/// Publishes jobs: to every validate lane first, then to the nets, and keeps a reference of each until every stage has let go, so that no share core ever frees one.
pub struct JobDesk {
    to_validate: Vec<Tx<Arc<ValidatedJob>>>,
    to_net: Vec<Tx<Arc<PublishedJob>>>,
    wakers: Vec<NetWaker>,
    waiting: VecDeque<Pair>,
    kept: VecDeque<Pair>,
    salt: u32,
}

impl JobDesk {
    /// A desk over the job rings; `salt` makes the wire ids of this boot its own.
    pub fn new(to_validate: Vec<Tx<Arc<ValidatedJob>>>, to_net: Vec<Tx<Arc<PublishedJob>>>, wakers: Vec<NetWaker>, salt: u32) -> Self {
        Self { to_validate, to_net, wakers, waiting: VecDeque::new(), kept: VecDeque::new(), salt }
    }

    /// The id that miners see for a job.
    fn wire_id(&self, job: &Job) -> u32 {
        job.id.counter().wrapping_add(self.salt)
    }

    /// Where too many wait already, the newest of them gives its place: no stage has seen it, so no share can name it. That it ended the jobs before it is kept.
    fn publish(&mut self, job: &Job) {
        let mut clean = job.clean;
        if self.waiting.len() >= JOBS_WAITING
            && let Some((_, given_up)) = self.waiting.pop_back()
        {
            clean |= given_up.job.clean;
        }
        let job = &Job { clean, ..job.clone() };
        self.waiting.push_back((Arc::new(ValidatedJob::new(job)), Arc::new(PublishedJob::new(job.clone(), self.salt))));
        self.tick();
    }

    /// Moves waiting jobs on as far as the rings have room, and frees what no stage holds any more.
    pub fn tick(&mut self) {
        let mut sent = false;
        while !self.waiting.is_empty()
            && self.to_validate.iter().all(|ring| ring.room() > 0)
            && self.to_net.iter().all(|ring| ring.room() > 0)
        {
            let Some(pair) = self.waiting.pop_front() else { break };
            for ring in &mut self.to_validate {
                assert!(ring.push(pair.0.clone()).is_ok(), "asked for room");
            }
            for ring in &mut self.to_net {
                assert!(ring.push(pair.1.clone()).is_ok(), "asked for room");
            }
            self.kept.push_back(pair);
            sent = true;
        }
        if sent {
            // A failed wake costs the nets' own timeout of a few milliseconds.
            self.wakers.iter().for_each(|waker| drop(waker.wake()));
        }
        while self.kept.len() > KEPT_FOR_CANDIDATES
            && self
                .kept
                .front()
                .is_some_and(|(validated, published)| Arc::strong_count(validated) == 1 && Arc::strong_count(published) == 1)
        {
            self.kept.pop_front();
        }
    }

    /// Counter of the newest job that went to the stages; 0 before the first.
    pub fn newest_sent(&self) -> u32 {
        self.kept.back().map_or(0, |(_, published)| published.job.id.counter())
    }

    fn validated(&self, job: u64) -> Option<Arc<ValidatedJob>> {
        self.kept.iter().rev().find(|(validated, _)| validated.id.0 == job).map(|(validated, _)| validated.clone())
    }
}

/// Locks a control-plane mutex; a poisoned one still holds sound data, as every change is whole.
pub fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where chain puts its jobs and blocks: into the log first, then to the share path.
pub struct PoolSink<C: Clock> {
    desk: Arc<Mutex<JobDesk>>,
    registry: Arc<Registry>,
    clock: C,
    live: VecDeque<otedama_primitives::JobId>,
    /// A job on a new parent could not be recorded: the next one that can is the clean one.
    clean_owed: bool,
    /// Set while a job is owed to the miners; the control loop asks for one again.
    job_owed: Arc<AtomicBool>,
}

impl<C: Clock> PoolSink<C> {
    /// A sink over the desk and the log's registry.
    pub fn new(desk: Arc<Mutex<JobDesk>>, registry: Arc<Registry>, clock: C, job_owed: Arc<AtomicBool>) -> Self {
        Self { desk, registry, clock, live: VecDeque::new(), clean_owed: false, job_owed }
    }

    fn end(&mut self, job: otedama_primitives::JobId) {
        if let Err(error) = self.registry.job_end(job, self.clock.now_us()) {
            eprintln!("warning: the end of job {job} could not be recorded: {error}");
        }
    }
}

/// A pool that stops in good order ends its jobs. The next start does it for one that was killed.
impl<C: Clock> Drop for PoolSink<C> {
    fn drop(&mut self) {
        while let Some(ended) = self.live.pop_front() {
            self.end(ended);
        }
    }
}

impl<C: Clock> ChainSink for PoolSink<C> {
    fn job(&mut self, job: &Arc<Job>) {
        let job = &Job { clean: job.clean || self.clean_owed, ..(**job).clone() };
        let mut desk = lock(&self.desk);
        if let Err(error) = self.registry.job(&JobRecord::new(job, desk.wire_id(job))) {
            // Rows that name a job which is nowhere recorded would not resolve: miners stay on the jobs they have until the log takes records again.
            self.clean_owed = job.clean;
            if !self.job_owed.swap(true, Ordering::Relaxed) {
                eprintln!("warning: job {} is not published, as it could not be recorded; tried again every second: {error}", job.id);
            }
            return;
        }
        desk.publish(job);
        drop(desk);
        self.clean_owed = false;
        self.job_owed.store(false, Ordering::Relaxed);
        if job.clean {
            while let Some(ended) = self.live.pop_front() {
                self.end(ended);
            }
        }
        self.live.push_back(job.id);
        while self.live.len() > LIVE_MAX {
            if let Some(ended) = self.live.pop_front() {
                self.end(ended);
            }
        }
    }

    fn block(&mut self, event: &BlockEvent) {
        let status = match event.status {
            otedama_chain::BlockStatus::Found => BlockStatus::Found,
            otedama_chain::BlockStatus::Accepted => BlockStatus::Accepted,
            otedama_chain::BlockStatus::Superseded => BlockStatus::Superseded,
            otedama_chain::BlockStatus::Rejected => BlockStatus::Rejected,
        };
        if matches!(status, BlockStatus::Accepted | BlockStatus::Rejected) {
            eprintln!("block {} at height {}: {} {}", event.hash, event.height, status.label(), event.reason);
        }
        let record = BlockRecord {
            job: event.job,
            height: event.height,
            hash: event.hash,
            worker: event.worker,
            session: event.session,
            found_us: event.found_us,
            status,
            reason: event.reason.clone(),
        };
        if let Err(error) = self.registry.block(&record) {
            eprintln!("warning: block {} could not be recorded: {error}", event.hash);
        }
    }
}

/// Rebuilds candidates from rows whose ring was full: the row has everything but extranonce1, which its session's record has.
pub struct CandidatesFromLog {
    dir: PathBuf,
    desk: Arc<Mutex<JobDesk>>,
    registry: Arc<Registry>,
    extranonce1: HashMap<u64, u32>,
    read_to: u64,
    said: bool,
}

impl CandidatesFromLog {
    /// Reads session records from the log in `dir`.
    pub fn new(dir: PathBuf, desk: Arc<Mutex<JobDesk>>, registry: Arc<Registry>) -> Self {
        Self { dir, desk, registry, extranonce1: HashMap::new(), read_to: DIMENSIONS_START, said: false }
    }

    /// The candidate of a flagged row; None, said once, when its job or session is not known any more.
    pub fn rebuild(&mut self, row: &LoggedRow) -> Option<BlockCandidate> {
        if !self.extranonce1.contains_key(&row.session) {
            self.read_sessions(row.session >> 32);
        }
        let job = lock(&self.desk).validated(row.job);
        let (Some(&extranonce1), Some(job)) = (self.extranonce1.get(&row.session), job) else {
            if !self.said {
                self.said = true;
                eprintln!(
                    "warning: a block candidate in the log (job {:016x}, session {:016x}) is too old to be rebuilt",
                    row.job, row.session
                );
            }
            return None;
        };
        Some(BlockCandidate {
            job: job.id,
            session: row.session as u32,
            extranonce1,
            extranonce2: row.extranonce2,
            ntime: row.ntime,
            nonce: row.nonce,
            version: row.version,
            worker: WorkerId(row.worker),
            hash: job.hash(extranonce1, row.extranonce2, row.version, row.ntime, row.nonce),
            arrival_us: row.arrival_us,
        })
    }

    /// Reads on in the dimension log. The sealer writes session records in batches; `sync` brings out what it still holds.
    fn read_sessions(&mut self, run: u64) {
        if let Err(error) = self.registry.sync() {
            eprintln!("warning: the log's session records could not be written out: {error}");
        }
        let Ok(reader) = DimensionReader::from(&self.dir, self.read_to) else { return };
        for entry in reader {
            let Ok((end, entry)) = entry else { return };
            self.read_to = end;
            if let DimensionEntry::Session { session, record } = entry
                && session.0 >> 32 == run
            {
                self.extranonce1.insert(session.0, record.extranonce1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use otedama_pipeline::ring::{Full, ring};
    use otedama_primitives::{Coin, Hash256, RunId, Target};

    fn job(counter: u32, clean: bool) -> Job {
        let network_target = Target::from_compact(0x1d00_ffff).expect("difficulty 1");
        Job {
            id: RunId::new(1, 7).job(counter),
            coin: Coin::Bitcoin,
            height: counter,
            prev_hash: Hash256([1; 32]),
            version: 0x2000_0000,
            nbits: 0x1d00_ffff,
            ntime: 1_700_000_000,
            ntime_min: 1_699_990_000,
            coinbase_prefix: [&[1u8; 60][..], &counter.to_be_bytes()].concat().into(),
            coinbase_suffix: vec![2; 90].into(),
            branch: vec![Hash256([3; 32]); 2].into(),
            extranonce2_bytes: 8,
            network_target,
            clean,
            created_us: 1,
        }
    }

    #[test]
    fn jobs_for_a_stage_at_rest_are_bounded_and_the_newest_and_the_end_of_the_old_ones_survive() {
        let (to_validate, mut validate, _) = ring("chain_validate", 4, Full::Wait);
        let (to_net, mut net, _) = ring("chain_net", 4, Full::Wait);
        let mut desk = JobDesk::new(vec![to_validate], vec![to_net], vec![], 0);
        // More than the rings and the desk hold, while nobody takes any; one that is given up later ends all jobs before it.
        let (last, clean) = (JOBS_WAITING as u32 + 40, JOBS_WAITING as u32 + 30);
        for counter in 1..=last {
            desk.publish(&job(counter, counter == clean));
            assert!(desk.waiting.len() <= JOBS_WAITING);
        }
        let mut taken = vec![];
        while let Some(published) = net.pop() {
            assert_eq!(validate.pop().map(|validated| validated.id), Some(published.job.id), "both stages get the same jobs");
            taken.push((published.job.id.counter(), published.job.clean));
            desk.tick();
        }
        assert_eq!(taken.len(), 4 + JOBS_WAITING);
        assert!(taken.is_sorted_by(|one, two| one.0 < two.0));
        assert_eq!(taken.last(), Some(&(last, true)), "the newest job ends what the one before it would have ended");
        assert!(taken[..taken.len() - 1].iter().all(|&(_, clean)| !clean));
    }
}
