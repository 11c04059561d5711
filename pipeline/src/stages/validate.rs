//! validate: duplicates looked up, shares hashed in batches by job, verdicts in ring order.
//!
//! A pass takes what its inputs hold, up to 256 shares, and waits for nothing. It gets the cache lines of all its look-ups under way, refuses what needs no
//! hash, sorts the rest by job and by whether the merkle root is known, hashes bucket by bucket, and credits in ring order.
use super::duplicates::{DUPLICATE_TABLES, DuplicateTable, Inserted};
use super::roots::RootCache;
use crate::metrics::{ValidateCounts, ValidateMetrics};
use crate::ring::{Rx, Tx};
use crate::stage::{Regime, Stage};
use bytemuck::Zeroable;
use otedama_kernels::sha256d::scalar;
use otedama_kernels::{BATCH, Isa, JobTable, Judged, ShareBatch, judge, judge_headers};
use otedama_primitives::{BlockCandidate, Hash256, Job, JobId, ShareStatus, Submit, Target, Verdict, Work, WorkerId, flags};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[cfg(test)]
mod tests;

/// Shares taken in one step: eight batches.
const TAKE: usize = 8 * BATCH;
/// Passes in one step at most: all that a net on the same core reads in its step is judged before that net writes answers or reads on.
const PASSES_PER_STEP: usize = 4;
/// Buckets of a pass: a job's shares whose root is known, and the others.
const BUCKETS: usize = 2 * DUPLICATE_TABLES;
/// One hashed share in so many is recomputed by the scalar kernel, give or take half a batch, so that every lane gets its turn.
const CROSSCHECK_EVERY: u64 = 4096;

/// A batch kernel as `otedama_kernels` has them.
type Judge = fn(Isa, &JobTable, &ShareBatch, &mut Judged);

/// The kernel of a lane: whole shares, and shares over known roots.
#[derive(Clone, Copy)]
struct Kernel {
    isa: Isa,
    judge: Judge,
    judge_headers: Judge,
}

impl Kernel {
    fn of(isa: Isa) -> Self {
        Self { isa, judge, judge_headers }
    }
}

/// A job as validate needs it. Chain keeps a reference of its own until every stage has let go, so that dropping one here never frees.
#[derive(Debug)]
pub struct ValidatedJob {
    /// Its number.
    pub id: JobId,
    /// Number of its coin.
    pub coin: u8,
    /// Prepared tables.
    pub table: JobTable,
    /// Bits by which extranonce2 is short of eight bytes.
    extranonce2_shift: u32,
    network_target: Target,
}

impl ValidatedJob {
    /// Prepares the tables of a job.
    pub fn new(job: &Job) -> Self {
        assert!((1..=8).contains(&job.extranonce2_bytes), "extranonce2 has 1 to 8 bytes");
        Self {
            id: job.id,
            coin: job.coin as u8,
            table: JobTable::new(job),
            extranonce2_shift: 8 * (8 - u32::from(job.extranonce2_bytes)),
            network_target: job.network_target,
        }
    }

    /// Extranonce1 and 2 as they stand in the coinbase, zeros behind them.
    #[inline(always)]
    fn extranonce(&self, extranonce1: u32, extranonce2: u64) -> [u8; 16] {
        let mut bytes = [0u8; 16];
        bytes[..4].copy_from_slice(&extranonce1.to_be_bytes());
        bytes[4..12].copy_from_slice(&(extranonce2 << self.extranonce2_shift).to_be_bytes());
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

/// Rung when a block candidate has been put on the ring to chain, so that nobody has to look there all the time. Rare, so it may cost a system call; it must not block.
#[derive(Clone)]
pub struct BlockBell(Arc<dyn Fn() + Send + Sync>);

impl BlockBell {
    /// A bell that calls `ring`.
    pub fn new(ring: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(ring))
    }

    /// A bell that nobody hears.
    pub fn silent() -> Self {
        Self::new(|| {})
    }
}

impl std::fmt::Debug for BlockBell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BlockBell")
    }
}

/// Ring ends and shared state of a validate stage.
#[derive(Debug)]
pub struct ValidatePorts {
    /// One ring per net that feeds this lane.
    pub submits: Vec<Rx<Submit>>,
    /// To the log.
    pub verdicts: Tx<Verdict>,
    /// Layout `full`: the hash of every verdict, put here before it; as deep as that ring.
    pub hashes: Option<Tx<Hash256>>,
    /// Block candidates to chain; full: the row carries the flag and chain reads it from the log.
    pub blocks: Tx<BlockCandidate>,
    /// Rung after a candidate was put on that ring.
    pub block_bell: BlockBell,
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
    kernel: Kernel,
    ports: ValidatePorts,
    next_input: usize,
    /// Jobs by counter modulo the number of tables, beside their tables.
    jobs: [Option<Arc<ValidatedJob>>; DUPLICATE_TABLES],
    tables: Vec<DuplicateTable>,
    roots: RootCache,
    newest: u32,
    taken: Box<[Submit; TAKE]>,
    found: Box<[Verdict; TAKE]>,
    /// Layout `full`: the hash of every share of the pass; zeros where none was made.
    share_hash: Box<[Hash256; TAKE]>,
    /// By share of the pass: its hash in the duplicate table of its job, and its place in the root cache.
    hashes: Box<[u64; TAKE]>,
    root_places: Box<[u16; TAKE]>,
    /// Header hashes of block candidates, made by the scalar kernel.
    block_hash: Box<[Hash256; TAKE]>,
    /// Shares to hash, by bucket: first those with known roots of every job, then the others.
    buckets: Box<[[u16; TAKE]; BUCKETS]>,
    bucket_len: [usize; BUCKETS],
    batch: Box<ShareBatch>,
    judged: Box<Judged>,
    /// Hashed shares until the next one that is recomputed.
    crosscheck_in: u64,
    dice: u64,
    counts: ValidateCounts,
    draining: bool,
    finished: bool,
}

impl std::fmt::Debug for Validate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Validate").field("isa", &self.kernel.isa).field("newest", &self.newest).finish_non_exhaustive()
    }
}

impl Validate {
    /// A lane; `seed` is random per boot.
    pub fn new(isa: Isa, seed: u64, ports: ValidatePorts) -> Self {
        Self::with_kernel(Kernel::of(isa), seed, ports)
    }

    fn with_kernel(kernel: Kernel, seed: u64, ports: ValidatePorts) -> Self {
        Self {
            kernel,
            ports,
            next_input: 0,
            jobs: Default::default(),
            tables: (0..DUPLICATE_TABLES as u64).map(|index| DuplicateTable::new(seed.rotate_left(index as u32 * 5) ^ index)).collect(),
            roots: RootCache::new(seed.rotate_right(7)),
            newest: 0,
            taken: Box::new([Submit::zeroed(); TAKE]),
            found: Box::new([Verdict::zeroed(); TAKE]),
            share_hash: Box::new([Hash256::default(); TAKE]),
            hashes: Box::new([0; TAKE]),
            root_places: Box::new([0; TAKE]),
            block_hash: Box::new([Hash256([0; 32]); TAKE]),
            buckets: Box::new([[0; TAKE]; BUCKETS]),
            bucket_len: [0; BUCKETS],
            batch: Box::default(),
            judged: Box::default(),
            crosscheck_in: CROSSCHECK_EVERY,
            dice: seed | 1,
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
            let index = index_of(counter);
            self.tables[index].take_over(counter);
            self.jobs[index] = Some(job);
        }
    }

    /// Takes up to `room` shares, from every input in turn: several thin inputs make one batch.
    fn take(&mut self, room: usize) -> usize {
        let inputs = self.ports.submits.len();
        let first = self.next_input;
        self.next_input = (first + 1) % inputs;
        let mut count = 0;
        for step in 0..inputs {
            count += self.ports.submits[(first + step) % inputs].take_into(&mut self.taken[count..room]);
        }
        count
    }

    /// A pass over the shares taken.
    fn judge(&mut self, count: usize) {
        // Chain publishes a job here before it tells any net, so a job that a share names must be in the ring by now. After this the tables stay with their jobs.
        if self.taken[..count].iter().any(|submit| submit.job > self.newest) {
            self.take_jobs();
        }
        let looks_for_roots = self.roots.begin_pass();
        self.prefetch(count, looks_for_roots);
        if !self.hash(count, looks_for_roots) {
            // Nothing that the kernel made is trusted any more: no batch of this pass, and no root that it left. Where the portable kernel were wrong too, the
            // lanes that were recomputed would still stand as the scalar kernel has them.
            self.kernel = Kernel::of(Isa::Portable);
            self.roots.forget();
            self.hash(count, false);
        }
        let blocks_before = self.counts.block_found;
        for at in 0..count {
            if self.found[at].status == Submit::PENDING {
                self.credit(at);
            } else if self.found[at].status == ShareStatus::LowDifficulty as u8 {
                self.look_again(at);
            }
        }
        // Candidates go before verdicts.
        if self.counts.block_found != blocks_before {
            (self.ports.block_bell.0)();
        }
        if let Some(hashes) = &mut self.ports.hashes {
            hashes.push_all(&self.share_hash[..count]);
        }
        self.ports.verdicts.push_all(&self.found[..count]);
    }

    /// Gets the cache lines that the look-ups of this pass will read under way, all together.
    fn prefetch(&mut self, count: usize, looks_for_roots: bool) {
        for at in 0..count {
            let submit = &self.taken[at];
            let table = &self.tables[index_of(submit.job)];
            let hash = table.hash(submit);
            table.prefetch(hash);
            self.hashes[at] = hash;
            if looks_for_roots {
                let place = self.roots.place(submit);
                self.roots.prefetch(place);
                self.root_places[at] = place as u16;
            }
        }
    }

    /// Everything of a pass that needs no memory of the shares before it but the tables: what each share would be, were it alone. False when a recomputed
    /// share was not as the kernel had it.
    fn hash(&mut self, count: usize, looks_for_roots: bool) -> bool {
        self.sort(count, looks_for_roots);
        // Known roots first: what the others make may take their places.
        let mut agreed = true;
        for bucket in 0..BUCKETS {
            if self.bucket_len[bucket] > 0 {
                agreed &= self.hash_bucket(bucket, looks_for_roots);
            }
        }
        agreed
    }

    /// Refuses what needs no hash and sorts the rest into buckets.
    fn sort(&mut self, count: usize, looks_for_roots: bool) {
        self.bucket_len = [0; BUCKETS];
        for at in 0..count {
            let submit = &self.taken[at];
            self.found[at] = verdict_of(submit);
            if self.ports.hashes.is_some() {
                self.share_hash[at] = Hash256::default();
            }
            if submit.status != Submit::PENDING {
                continue;
            }
            let index = index_of(submit.job);
            let table = &self.tables[index];
            if table.job() != submit.job || self.jobs[index].is_none() {
                self.found[at].status = ShareStatus::Stale as u8;
            } else if table.contains(submit, self.hashes[at]) {
                self.found[at].status = ShareStatus::Duplicate as u8;
            } else {
                let known = looks_for_roots && self.roots.look_up(usize::from(self.root_places[at]), submit);
                let bucket = if known { index } else { DUPLICATE_TABLES + index };
                self.buckets[bucket][self.bucket_len[bucket]] = at as u16;
                self.bucket_len[bucket] += 1;
            }
        }
    }

    fn hash_bucket(&mut self, bucket: usize, keeps_roots: bool) -> bool {
        let known_roots = bucket < DUPLICATE_TABLES;
        // Taken out for the while, so that no reference is counted per batch.
        let index = bucket % DUPLICATE_TABLES;
        let Some(job) = self.jobs[index].take() else {
            unreachable!("a share is put into a bucket only with its job at hand");
        };
        let mut from = 0;
        let mut agreed = true;
        while from < self.bucket_len[bucket] {
            let count = BATCH.min(self.bucket_len[bucket] - from);
            let mut lanes = [0u16; BATCH];
            lanes[..count].copy_from_slice(&self.buckets[bucket][from..from + count]);
            agreed &= self.hash_batch(&job, &lanes[..count], known_roots);
            if keeps_roots && !known_roots {
                self.keep_roots(&lanes[..count]);
            }
            from += count;
        }
        self.jobs[index] = Some(job);
        agreed
    }

    fn hash_batch(&mut self, job: &ValidatedJob, lanes: &[u16], known_roots: bool) -> bool {
        for (lane, &at) in lanes.iter().enumerate() {
            let submit = &self.taken[usize::from(at)];
            self.batch.extranonce[lane] = job.extranonce(submit.extranonce1, submit.extranonce2);
            self.batch.version[lane] = submit.version;
            self.batch.ntime[lane] = submit.ntime;
            self.batch.nonce[lane] = submit.nonce;
            self.batch.work[lane] = submit.work;
        }
        self.batch.count = lanes.len() as u32;
        if known_roots && self.gather_roots(lanes) {
            (self.kernel.judge_headers)(self.kernel.isa, &job.table, &self.batch, &mut self.judged);
        } else {
            (self.kernel.judge)(self.kernel.isa, &job.table, &self.batch, &mut self.judged);
        }
        self.counts.batch_hashed += 1;
        self.counts.share_hashed += lanes.len() as u64;
        let agreed = self.crosscheck(job, lanes);
        for (lane, &at) in lanes.iter().enumerate() {
            let verdict = &mut self.found[usize::from(at)];
            verdict.coin = job.coin;
            verdict.share_difficulty = self.judged.difficulty_of(lane);
            if self.ports.hashes.is_some() {
                self.share_hash[usize::from(at)] = self.judged.hash_of(lane);
            }
            let met = self.judged.share_mask >> lane & 1 == 1;
            let block = self.judged.network_mask >> lane & 1 == 1;
            // A hash at or under the network target is a candidate whatever the share target.
            if !met && !block {
                verdict.status = ShareStatus::LowDifficulty as u8;
            }
            if block {
                verdict.flags |= flags::BLOCK;
            }
        }
        agreed
    }

    /// Puts the known roots where the kernel reads them; false when one has gone since it was looked up.
    fn gather_roots(&mut self, lanes: &[u16]) -> bool {
        for (lane, &at) in lanes.iter().enumerate() {
            let at = usize::from(at);
            let Some(root) = self.roots.root(usize::from(self.root_places[at]), &self.taken[at]) else { return false };
            for (column, word) in self.judged.root.iter_mut().zip(root) {
                column[lane] = word;
            }
        }
        true
    }

    fn keep_roots(&mut self, lanes: &[u16]) {
        for (lane, &at) in lanes.iter().enumerate() {
            let at = usize::from(at);
            let root = std::array::from_fn(|word| self.judged.root[word][lane]);
            self.roots.keep(usize::from(self.root_places[at]), &self.taken[at], root);
        }
    }

    /// Recomputes, by the scalar kernel, the share whose turn it is and every block candidate of the batch. Where the two differ the scalar result stands;
    /// false when they did.
    fn crosscheck(&mut self, job: &ValidatedJob, lanes: &[u16]) -> bool {
        let mut to_check = self.judged.network_mask;
        if self.crosscheck_in < lanes.len() as u64 {
            to_check |= 1 << self.crosscheck_in;
            // xorshift64: any spread will do.
            self.dice ^= self.dice << 13;
            self.dice ^= self.dice >> 7;
            self.dice ^= self.dice << 17;
            self.crosscheck_in += CROSSCHECK_EVERY - BATCH as u64 / 2 + self.dice % BATCH as u64;
        }
        self.crosscheck_in -= lanes.len() as u64;
        let mut agreed = true;
        while to_check != 0 {
            let lane = to_check.trailing_zeros() as usize;
            to_check &= to_check - 1;
            let at = usize::from(lanes[lane]);
            let submit = &self.taken[at];
            let hash = job.hash(submit.extranonce1, submit.extranonce2, submit.version, submit.ntime, submit.nonce);
            let met = Work::new(submit.work).target().is_met_by(&hash);
            let block = job.network_target.is_met_by(&hash);
            self.counts.share_crosschecked += 1;
            self.block_hash[at] = hash;
            let judged = &mut self.judged;
            let same = judged.hash_of(lane) == hash
                && (judged.share_mask >> lane & 1 == 1) == met
                && (judged.network_mask >> lane & 1 == 1) == block;
            if !same {
                agreed = false;
                self.counts.kernel_disagreed += 1;
                correct(judged, lane, &hash, met, block);
            }
        }
        agreed
    }

    /// Credits a share that met its target: test and set, so that twins in one batch cannot both pass.
    fn credit(&mut self, at: usize) {
        let submit = &self.taken[at];
        let index = index_of(submit.job);
        let inserted = self.tables[index].insert(submit, self.hashes[at]);
        let verdict = &mut self.found[at];
        verdict.status = match inserted {
            Inserted::New => ShareStatus::Accepted,
            Inserted::Duplicate => ShareStatus::Duplicate,
            Inserted::Full => ShareStatus::Overload,
        } as u8;
        if verdict.flags & flags::BLOCK == 0 {
            return;
        }
        if inserted == Inserted::Duplicate {
            verdict.flags &= !flags::BLOCK;
        } else {
            self.report_block(at, index);
        }
    }

    /// A share of too much work whose twin of less work was credited in this pass is a duplicate, as it would be in the next.
    fn look_again(&mut self, at: usize) {
        let submit = &self.taken[at];
        if submit.status == Submit::PENDING && self.tables[index_of(submit.job)].contains(submit, self.hashes[at]) {
            self.found[at].status = ShareStatus::Duplicate as u8;
        }
    }

    /// Hands a candidate, which the scalar kernel has confirmed, to chain; with a full ring the row says that chain must take it from the log.
    fn report_block(&mut self, at: usize, index: usize) {
        let submit = &self.taken[at];
        let Some(job) = &self.jobs[index] else { return };
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
            hash: self.block_hash[at],
            arrival_us: submit.arrival_us,
        };
        if self.ports.blocks.push(candidate).is_err() {
            self.counts.block_flagged += 1;
            self.found[at].flags |= flags::FROM_LOG;
        }
    }
}

/// Puts what the scalar kernel found for a lane in the place of what another kernel had.
fn correct(judged: &mut Judged, lane: usize, hash: &Hash256, met: bool, block: bool) {
    for (column, bytes) in judged.hash.iter_mut().zip(hash.0.as_chunks::<4>().0) {
        column[lane] = u32::from_be_bytes(*bytes);
    }
    judged.share_mask = judged.share_mask & !(1 << lane) | u32::from(met) << lane;
    judged.network_mask = judged.network_mask & !(1 << lane) | u32::from(block) << lane;
}

/// Where the table and the job with this counter stand.
#[inline(always)]
fn index_of(counter: u32) -> usize {
    counter as usize % DUPLICATE_TABLES
}

#[inline(always)]
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
        otedama_killpoint::pass("validate.step");
        let mut worked = false;
        for _ in 0..PASSES_PER_STEP {
            self.take_jobs();
            let room = self.ports.hashes.as_ref().map_or(TAKE, Tx::room).min(self.ports.verdicts.room()).min(TAKE);
            if room == 0 {
                let waits = self.ports.submits.iter().any(|ring| ring.available() > 0);
                return if worked {
                    Regime::Processing
                } else if waits {
                    Regime::Backpressure
                } else {
                    Regime::CaughtUp
                };
            }
            // Acquire pairs with the Release of a net that has drained: what it sent is visible after it.
            let nets_running = self.ports.nets_running.load(Ordering::Acquire);
            let count = self.take(room);
            if count > 0 {
                self.judge(count);
                worked = true;
                continue;
            }
            if worked {
                break;
            }
            if self.draining && nets_running == 0 && !self.finished {
                self.finished = true;
                self.ports.validates_running.fetch_sub(1, Ordering::Release);
            }
            return Regime::CaughtUp;
        }
        Regime::Processing
    }

    fn housekeeping(&mut self) {
        self.counts.duplicate_table_used = self.tables.iter().map(|table| table.used() as u64).max().unwrap_or(0);
        self.counts.duplicate_table_newest_used = self.tables[index_of(self.newest)].used() as u64;
        (self.counts.root_looked_up, self.counts.root_hit) = self.roots.counts();
        self.counts.publish(&self.ports.metrics);
        self.ports.submits.iter().for_each(Rx::publish);
        self.ports.verdicts.publish();
        self.ports.hashes.iter().for_each(Tx::publish);
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
