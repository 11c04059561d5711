//! validate: duplicates looked up, shares hashed in batches by job, verdicts in ring order.
use super::duplicates::{DUPLICATE_TABLES, DuplicateTable, Inserted};
use crate::metrics::{ValidateCounts, ValidateMetrics};
use crate::ring::{Rx, Tx};
use crate::stage::{Regime, Stage};
use bytemuck::Zeroable;
use otedama_kernels::sha256d::scalar;
use otedama_kernels::{BATCH, Isa, JobTable, Judged, ShareBatch, judge};
use otedama_primitives::{BlockCandidate, Hash256, Job, JobId, ShareStatus, Submit, Verdict, WorkerId, flags};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Shares taken in one step: eight batches.
const TAKE: usize = 8 * BATCH;

/// A job as validate needs it. Chain keeps a reference of its own until every stage has let go, so that dropping one here never frees.
#[derive(Debug)]
pub struct ValidatedJob {
    /// Its number.
    pub id: JobId,
    /// Number of its coin.
    pub coin: u8,
    /// Prepared tables.
    pub table: JobTable,
    extranonce2_bytes: usize,
}

impl ValidatedJob {
    /// Prepares the tables of a job.
    pub fn new(job: &Job) -> Self {
        Self { id: job.id, coin: job.coin as u8, table: JobTable::new(job), extranonce2_bytes: usize::from(job.extranonce2_bytes) }
    }

    /// Extranonce1 and 2 as they stand in the coinbase.
    fn extranonce(&self, extranonce1: u32, extranonce2: u64) -> [u8; 16] {
        let mut bytes = [0u8; 16];
        bytes[..4].copy_from_slice(&extranonce1.to_be_bytes());
        bytes[4..4 + self.extranonce2_bytes].copy_from_slice(&extranonce2.to_be_bytes()[8 - self.extranonce2_bytes..]);
        bytes
    }

    /// Header hash of a share by the scalar kernel: the definition, whatever kernel judged it.
    pub fn hash(&self, extranonce1: u32, extranonce2: u64, version: u32, ntime: u32, nonce: u32) -> Hash256 {
        let words = scalar::share_hash(&self.table, &self.extranonce(extranonce1, extranonce2), version, ntime, nonce);
        let mut bytes = [0u8; 32];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
            chunk.copy_from_slice(&word.to_be_bytes());
        }
        Hash256(bytes)
    }
}

/// Ring ends and shared state of a validate stage.
#[derive(Debug)]
pub struct ValidatePorts {
    /// One ring per net that feeds this lane.
    pub submits: Vec<Rx<Submit>>,
    /// To the log.
    pub verdicts: Tx<Verdict>,
    /// Block candidates to chain; full: the row carries the flag and chain reads it from the log.
    pub blocks: Tx<BlockCandidate>,
    /// Jobs from chain; published here before any net hears of them.
    pub jobs: Rx<Arc<ValidatedJob>>,
    /// Counters for readers.
    pub metrics: Arc<ValidateMetrics>,
    /// Net stages that may still send.
    pub nets_running: Arc<AtomicUsize>,
    /// Decremented when this stage is drained.
    pub validates_running: Arc<AtomicUsize>,
}

/// The stage.
pub struct Validate {
    isa: Isa,
    ports: ValidatePorts,
    next_input: usize,
    /// Jobs by counter modulo the number of tables, beside their tables.
    jobs: [Option<Arc<ValidatedJob>>; DUPLICATE_TABLES],
    tables: Vec<DuplicateTable>,
    newest: u32,
    taken: Box<[Submit; TAKE]>,
    found: Box<[Verdict; TAKE]>,
    candidate: [bool; TAKE],
    to_hash: Vec<u16>,
    batch: Box<ShareBatch>,
    judged: Box<Judged>,
    counts: ValidateCounts,
    draining: bool,
    finished: bool,
}

impl std::fmt::Debug for Validate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Validate").field("isa", &self.isa).field("newest", &self.newest).finish_non_exhaustive()
    }
}

impl Validate {
    /// A lane; `seed` is random per boot.
    pub fn new(isa: Isa, seed: u64, ports: ValidatePorts) -> Self {
        Self {
            isa,
            ports,
            next_input: 0,
            jobs: Default::default(),
            tables: (0..DUPLICATE_TABLES as u64).map(|index| DuplicateTable::new(seed.rotate_left(index as u32 * 5) ^ index)).collect(),
            newest: 0,
            taken: Box::new([Submit::zeroed(); TAKE]),
            found: Box::new([Verdict::zeroed(); TAKE]),
            candidate: [false; TAKE],
            to_hash: Vec::with_capacity(TAKE),
            batch: Box::default(),
            judged: Box::default(),
            counts: ValidateCounts::default(),
            draining: false,
            finished: false,
        }
    }

    fn take_jobs(&mut self) {
        while let Some(job) = self.ports.jobs.pop() {
            let counter = job.id.counter();
            assert!(counter > self.newest, "job counters rise");
            self.newest = counter;
            let index = counter as usize % DUPLICATE_TABLES;
            self.tables[index].take_over(counter);
            self.jobs[index] = Some(job);
        }
    }

    /// Index of the job with this counter; None when its table has gone to a newer job.
    fn index_of(&mut self, counter: u32) -> Option<usize> {
        if counter > self.newest {
            // Chain publishes a job here before it tells any net, so it must be in the ring by now.
            self.take_jobs();
        }
        let index = counter as usize % DUPLICATE_TABLES;
        (self.tables[index].job() == counter && self.jobs[index].is_some()).then_some(index)
    }

    /// First pass: what needs no hash. Second: hashes, bucketed by job. Third: verdicts in ring order.
    fn judge(&mut self, count: usize) {
        self.to_hash.clear();
        for at in 0..count {
            let submit = self.taken[at];
            self.found[at] = verdict_of(&submit);
            self.candidate[at] = false;
            if submit.status != Submit::PENDING {
                continue;
            }
            match self.index_of(submit.job) {
                None => self.found[at].status = ShareStatus::Stale as u8,
                Some(index) if self.tables[index].contains(&submit) => self.found[at].status = ShareStatus::Duplicate as u8,
                Some(_) => self.to_hash.push(at as u16),
            }
        }
        self.hash_bucketed();
        for at in 0..count {
            if self.found[at].status == Submit::PENDING {
                self.emit(at);
            }
        }
        self.ports.verdicts.push_all(&self.found[..count]);
    }

    fn hash_bucketed(&mut self) {
        let mut rest = std::mem::take(&mut self.to_hash);
        while let Some(&first) = rest.first() {
            let counter = self.taken[usize::from(first)].job;
            // Taken out for the while, so that no reference is counted per batch.
            let index = counter as usize % DUPLICATE_TABLES;
            let Some(job) = self.jobs[index].take() else {
                unreachable!("a share is queued for hashing only with its job at hand");
            };
            if job.id.counter() != counter {
                // Jobs came in a storm while this pass looked for another: the table has gone to a newer job.
                self.jobs[index] = Some(job);
                rest.retain(|&at| {
                    let same = self.taken[usize::from(at)].job == counter;
                    if same {
                        self.found[usize::from(at)].status = ShareStatus::Stale as u8;
                    }
                    !same
                });
                continue;
            }
            let mut lanes = [0u16; BATCH];
            let mut filled = 0;
            rest.retain(|&at| {
                let same = filled < BATCH && self.taken[usize::from(at)].job == counter;
                if same {
                    lanes[filled] = at;
                    filled += 1;
                }
                !same
            });
            self.hash_batch(&job, &lanes[..filled]);
            self.jobs[index] = Some(job);
        }
        self.to_hash = rest;
    }

    fn hash_batch(&mut self, job: &ValidatedJob, lanes: &[u16]) {
        for (lane, &at) in lanes.iter().enumerate() {
            let submit = &self.taken[usize::from(at)];
            self.batch.extranonce[lane] = job.extranonce(submit.extranonce1, submit.extranonce2);
            self.batch.version[lane] = submit.version;
            self.batch.ntime[lane] = submit.ntime;
            self.batch.nonce[lane] = submit.nonce;
            self.batch.work[lane] = submit.work;
        }
        self.batch.count = lanes.len() as u32;
        judge(self.isa, &job.table, &self.batch, &mut self.judged);
        self.counts.batch_hashed += 1;
        self.counts.share_hashed += lanes.len() as u64;
        for (lane, &at) in lanes.iter().enumerate() {
            let at = usize::from(at);
            let verdict = &mut self.found[at];
            verdict.coin = job.coin;
            verdict.share_difficulty = self.judged.difficulty_of(lane);
            let met = self.judged.share_mask >> lane & 1 == 1;
            let block = self.judged.network_mask >> lane & 1 == 1;
            // A hash at or under the network target is a candidate whatever the share target.
            if !met && !block {
                verdict.status = ShareStatus::LowDifficulty as u8;
            }
            if block {
                self.candidate[at] = true;
                verdict.flags |= flags::BLOCK;
            }
        }
    }

    /// Credits a share that met its target: test and set, so that twins in one batch cannot both pass.
    fn emit(&mut self, at: usize) {
        let submit = self.taken[at];
        let index = submit.job as usize % DUPLICATE_TABLES;
        let inserted = self.tables[index].insert(&submit);
        let verdict = &mut self.found[at];
        verdict.status = match inserted {
            Inserted::New => ShareStatus::Accepted,
            Inserted::Duplicate => ShareStatus::Duplicate,
            Inserted::Full => ShareStatus::Overload,
        } as u8;
        if inserted == Inserted::Duplicate {
            verdict.flags &= !flags::BLOCK;
        } else if self.candidate[at] {
            self.report_block(at, index);
        }
    }

    /// Recomputes a candidate by the scalar kernel and hands it to chain; with a full ring the row says that chain must take it from the log.
    fn report_block(&mut self, at: usize, index: usize) {
        let submit = &self.taken[at];
        let Some(job) = &self.jobs[index] else { return };
        let hash = job.hash(submit.extranonce1, submit.extranonce2, submit.version, submit.ntime, submit.nonce);
        self.counts.block_found += 1;
        let candidate = BlockCandidate {
            job: job.id,
            session: submit.session,
            extranonce1: submit.extranonce1,
            extranonce2: submit.extranonce2,
            ntime: submit.ntime,
            nonce: submit.nonce,
            version: submit.version,
            worker: WorkerId(submit.worker),
            hash,
            arrival_us: submit.arrival_us,
        };
        if self.ports.blocks.push(candidate).is_err() {
            self.counts.block_flagged += 1;
            self.found[at].flags |= flags::FROM_LOG;
        }
    }
}

fn verdict_of(submit: &Submit) -> Verdict {
    Verdict {
        worker: submit.worker,
        work: submit.work,
        extranonce2: submit.extranonce2,
        arrival_us: submit.arrival_us,
        session: submit.session,
        job: submit.job,
        nonce: submit.nonce,
        ntime: submit.ntime,
        version: submit.version,
        share_difficulty: 0.0,
        in_flight: submit.in_flight,
        status: submit.status,
        flags: submit.flags,
        net: submit.net,
        coin: 0,
    }
}

impl Stage for Validate {
    fn step(&mut self) -> Regime {
        self.take_jobs();
        let room = self.ports.verdicts.room().min(TAKE);
        let inputs = self.ports.submits.len();
        if room == 0 {
            return if self.ports.submits.iter().any(|ring| ring.available() > 0) { Regime::Backpressure } else { Regime::CaughtUp };
        }
        // Acquire pairs with the Release of a net that has drained: what it sent is visible after it.
        let nets_running = self.ports.nets_running.load(Ordering::Acquire);
        for _ in 0..inputs {
            let input = self.next_input;
            self.next_input = (self.next_input + 1) % inputs;
            let count = self.ports.submits[input].take_into(&mut self.taken[..room]);
            if count > 0 {
                self.judge(count);
                return Regime::Processing;
            }
        }
        if self.draining && nets_running == 0 && !self.finished {
            self.finished = true;
            self.ports.validates_running.fetch_sub(1, Ordering::Release);
        }
        Regime::CaughtUp
    }

    fn housekeeping(&mut self) {
        self.counts.duplicate_table_used = self.tables.iter().map(|table| table.used() as u64).max().unwrap_or(0);
        self.counts.duplicate_table_newest_used = self.tables[self.newest as usize % DUPLICATE_TABLES].used() as u64;
        self.counts.publish(&self.ports.metrics);
        self.ports.submits.iter().for_each(Rx::publish);
        self.ports.verdicts.publish();
        self.ports.blocks.publish();
        self.ports.jobs.publish();
    }

    fn drain(&mut self) {
        self.draining = true;
    }

    fn is_drained(&self) -> bool {
        self.finished
    }
}
