//! A day of shares out of a seed, hashed for real and written by the log's own journal and sealer: what replay is tried and measured on.
//!
//! Time is simulated, everything else is not: coinbases, merkle branches, headers, targets, duplicates, the ends of jobs. Every share is found as a miner finds it, by
//! trying nonces, at works of 1 to 8 hashes, so that a hundred million of them take minutes.
#![allow(dead_code, reason = "each user takes a part of it")]

use otedama_kernels::{BATCH, Isa, JobTable, Judged, ShareBatch, judge, judge_headers};
use otedama_primitives::{
    Coin, Dimension, Hash256, Job, JobId, RunId, SessionRecord, ShareRow, ShareStatus, Target, VersionMaskRecord, Work, WorkerId,
    WorkerName, WorkerRecord, flags,
};
use otedama_sharelog::{
    BATCH_DIMENSIONS_MAX, BlockRecord, BlockStatus, Disk, JobRecord, Journal, Layout, LogError, LogSettings, Registry, RunRecord, SealStep,
    Sealer, ShareLog,
};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// 2026-11-20 00:00:00 UTC.
pub const DAY_US: u64 = 1_795_132_800_000_000;
const SPAN_US: u64 = 86_400_000_000;
const JOB_EVERY_US: u64 = 30_000_000;
const JOBS_LIVE: usize = 8;
const VERSION: u32 = 0x2000_0000;
const MASK: u32 = 0x1fff_e000;
/// Rows of a journal batch.
const ROWS: usize = 512;
const AGENTS: [&str; 4] = ["cgminer/4.12.1", "bmminer/2.0.0", "braiins/26.04", "nerdminer/1.6"];

/// What is to be made.
#[derive(Clone, Debug)]
pub struct Plan {
    pub dir: PathBuf,
    pub rows: u64,
    pub seed: u64,
    pub segment_rows: u32,
    pub journal_file_bytes: u64,
    pub layout: Layout,
    /// The pool is killed and started again this many times.
    pub kills: u32,
    /// Whether the pool is killed at the end, too: then the last rows are not sealed.
    pub ends_killed: bool,
    /// Refusals that are sprinkled in, of a million shares.
    pub odd_of_a_million: u64,
    /// No record says which version bits a session might roll, as in logs of releases before.
    pub without_masks: bool,
}

impl Plan {
    pub fn new(dir: &Path, rows: u64) -> Self {
        Self {
            dir: dir.to_path_buf(),
            rows,
            seed: 1,
            segment_rows: 524_288,
            journal_file_bytes: 32 << 20,
            layout: Layout::Replayable,
            kills: 0,
            ends_killed: false,
            odd_of_a_million: 14_000,
            without_masks: false,
        }
    }
}

/// What was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Made {
    pub rows: u64,
    pub by_status: [u64; 9],
    pub work_credited: u128,
    pub blocks: u64,
    pub jobs: u64,
    pub sessions: u64,
}

/// splitmix64 (Steele, Lea and Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }

    fn chance(&mut self, of_a_million: u64) -> bool {
        self.below(1_000_000) < of_a_million
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.next() as u8)
    }
}

/// The compact form of a target, rounded down: what `Target::from_compact` reads. Source: Bitcoin, `arith_uint256::GetCompact`.
fn compact(target: &Target) -> u32 {
    let bytes = target.to_le_bytes();
    let mut size = 32 - bytes.iter().rev().take_while(|&&byte| byte == 0).count();
    let byte = |at: usize| at.checked_sub(1).and_then(|at| bytes.get(at)).map_or(0, |&byte| u32::from(byte));
    let mut word = (byte(size) << 16) | (byte(size - 1) << 8) | byte(size - 2);
    if word & 0x0080_0000 != 0 {
        word >>= 8;
        size += 1;
    }
    ((size as u32) << 24) | word
}

/// A miner as the pool sees it.
#[derive(Clone)]
struct Miner {
    id: WorkerId,
    session: u32,
    extranonce1: u32,
    work: u64,
    work_before: u64,
    mask: u32,
    extranonce2: u64,
}

struct Live {
    job: Job,
    table: JobTable,
}

/// A pool's log while it is made.
struct Pool {
    plan: Plan,
    random: Random,
    isa: Isa,
    run: RunId,
    journal: Option<Journal>,
    sealer: Option<Sealer<Disk>>,
    registry: Option<Arc<Registry>>,
    dimensions: Vec<Dimension>,
    batch: Vec<ShareRow>,
    /// One per row, zeros where nothing was hashed.
    hashes: Vec<Hash256>,
    miners: Vec<Miner>,
    live: VecDeque<Live>,
    /// Jobs that have ended in this run: stale shares name them.
    ended: VecDeque<JobId>,
    /// Accepted rows of late, by the job that they name.
    recent: VecDeque<ShareRow>,
    next_session: u32,
    next_job: u32,
    network: Target,
    nbits: u32,
    tip: Hash256,
    height: u32,
    /// When the parent of the jobs was found.
    tip_us: u64,
    next_tip_us: u64,
    next_job_us: u64,
    now_us: u64,
    made: Made,
}

/// Makes the log of a day.
pub fn make(plan: &Plan) -> Result<Made, LogError> {
    let mut random = Random(plan.seed);
    // About twenty blocks, and never a share that is more work than one.
    let network = Target::from_compact(compact(&Work::new((plan.rows / 20).max(64)).target())).expect("a target");
    let nbits = compact(&network);
    let tip = Hash256(random.bytes());
    let mut pool = Pool {
        plan: plan.clone(),
        random,
        isa: Isa::choose("auto").expect("a kernel"),
        run: RunId::new(3, 0),
        journal: None,
        sealer: None,
        registry: None,
        dimensions: Vec::new(),
        batch: Vec::with_capacity(ROWS + BATCH),
        hashes: Vec::with_capacity(ROWS + BATCH),
        miners: Vec::new(),
        live: VecDeque::new(),
        ended: VecDeque::new(),
        recent: VecDeque::new(),
        next_session: 1,
        next_job: 1,
        network,
        nbits,
        tip,
        height: 900_000,
        tip_us: DAY_US,
        next_tip_us: 0,
        next_job_us: 0,
        now_us: DAY_US,
        made: Made::default(),
    };
    pool.day()?;
    Ok(pool.made)
}

impl Pool {
    fn day(&mut self) -> Result<(), LogError> {
        self.boot(0)?;
        let mut boots = 1;
        let mut batch = Box::<ShareBatch>::default();
        let mut judged = Box::<Judged>::default();
        while self.made.rows < self.plan.rows {
            self.now_us = self.now_us.max(self.time_of(self.made.rows));
            if self.made.rows * u64::from(self.plan.kills + 1) >= u64::from(boots) * self.plan.rows {
                self.flush()?;
                self.boot(boots)?;
                boots += 1;
            }
            if self.now_us >= self.next_job_us {
                // Rows before the end of a job stand before it.
                self.flush()?;
                self.new_job(false)?;
            }
            self.shares(&mut batch, &mut judged)?;
        }
        self.flush()?;
        self.journal = None;
        if let Some(mut sealer) = self.sealer.take()
            && !self.plan.ends_killed
        {
            sealer.drain(self.now_us)?;
        }
        Ok(())
    }

    fn time_of(&self, row: u64) -> u64 {
        DAY_US + (u128::from(row) * u128::from(SPAN_US - 1_000_000) / u128::from(self.plan.rows)) as u64
    }

    /// Starts the pool, as if the process before had been killed.
    fn boot(&mut self, number: u32) -> Result<(), LogError> {
        (self.journal, self.sealer, self.registry) = (None, None, None);
        self.run = RunId::new(3, 0x00ab_c000 + number);
        let settings = LogSettings {
            dir: self.plan.dir.clone(),
            pool: "otedama".into(),
            run: self.run,
            segment_rows: self.plan.segment_rows,
            seal_after_ms: 600_000,
            max_bytes: 1 << 42,
            journal_file_bytes: self.plan.journal_file_bytes,
            keep_ms: 1 << 45,
            keep_shipped_ms: 1 << 45,
            has_cursor: false,
            layout: self.plan.layout,
            rolls_up_when_full: false,
        };
        let (journal, sealer, registry, _) = ShareLog::open(settings)?;
        registry.run(&RunRecord {
            run: self.run,
            started_us: self.now_us,
            build: "0.1.0 (generated)".into(),
            kernel: self.isa.label().into(),
            driver: "none".into(),
            tier: "process".into(),
            pool: "otedama".into(),
        })?;
        (self.journal, self.sealer, self.registry) = (Some(journal), Some(sealer), Some(registry));
        self.live.clear();
        self.ended.clear();
        self.recent.clear();
        (self.next_session, self.next_job) = (1, 1);
        let miners = (self.plan.rows / 2000).clamp(16, 20_000);
        self.miners.clear();
        for number in 0..miners {
            let raw = format!("account{:03}.rig{:03}", number % 97, number / 97);
            let name = WorkerName::new(raw.as_bytes()).expect("a name");
            let id = name.id("otedama");
            let mask = if number % 5 == 4 { 0 } else { MASK };
            let work = 1 << self.random.below(4);
            self.miners.push(Miner { id, session: 0, extranonce1: 0, work, work_before: work, mask, extranonce2: 0 });
            self.connect(number as usize)?;
            let seen = WorkerRecord { worker: id, seen_us: self.now_us, session: self.next_session - 1, name: raw };
            self.name(Dimension::worker(&seen))?;
        }
        self.new_job(true)
    }

    /// A session of its own for a miner.
    fn connect(&mut self, miner: usize) -> Result<(), LogError> {
        let session = self.next_session;
        self.next_session += 1;
        self.made.sessions += 1;
        let (now_us, without_masks) = (self.now_us, self.plan.without_masks);
        let Some(miner) = self.miners.get_mut(miner) else { return Ok(()) };
        (miner.session, miner.extranonce1, miner.extranonce2) = (session, (1 << 26) | session, 0);
        let mask = miner.mask;
        let record = SessionRecord {
            session,
            extranonce1: miner.extranonce1,
            net: 1,
            extranonce2_bytes: 8,
            started_us: now_us,
            peer: format!("10.{}.{}.{}:{}", session >> 16 & 255, session >> 8 & 255, session & 255, 1024 + session % 60_000),
            agent: AGENTS[session as usize % AGENTS.len()].into(),
        };
        self.name(Dimension::session(&record))?;
        if without_masks {
            return Ok(());
        }
        self.name(Dimension::version_mask(&VersionMaskRecord { session, mask, since_us: now_us }))
    }

    fn name(&mut self, record: Result<Dimension, otedama_primitives::DimensionTooLong>) -> Result<(), LogError> {
        self.dimensions.push(record.expect("it fits"));
        if self.dimensions.len() >= BATCH_DIMENSIONS_MAX.min(60) { self.flush() } else { Ok(()) }
    }

    /// Appends what waits: records in front of the rows that name them.
    fn flush(&mut self) -> Result<(), LogError> {
        let (Some(journal), Some(sealer)) = (self.journal.as_mut(), self.sealer.as_mut()) else { return Ok(()) };
        while journal.room_cells() < 1600 {
            sealer.step(self.now_us)?;
        }
        let hashes = if self.plan.layout == Layout::Full { &self.hashes[..] } else { &[] };
        assert!(journal.append_hashed(&self.dimensions, &self.batch, hashes).is_ok(), "there is room");
        self.dimensions.clear();
        self.batch.clear();
        self.hashes.clear();
        while sealer.step(self.now_us)? == SealStep::Worked {}
        Ok(())
    }

    /// Publishes a job as the pool does: recorded first; a clean one ends all others, a ninth the oldest.
    fn new_job(&mut self, first: bool) -> Result<(), LogError> {
        let clean = first || self.now_us >= self.next_tip_us;
        if clean {
            self.tip = Hash256(self.random.bytes());
            self.tip_us = self.now_us;
            self.height += 1;
            self.next_tip_us = self.now_us + 60_000_000 + self.random.below(1_080_000_000);
        }
        let counter = self.next_job;
        self.next_job += 1;
        self.made.jobs += 1;
        let mut prefix = vec![1, 0, 0, 0, 1];
        prefix.extend([0; 32]);
        prefix.extend([0xff; 4]);
        prefix.extend([40, 3]);
        prefix.extend(&self.height.to_le_bytes()[..3]);
        prefix.extend(self.run.job(counter).0.to_be_bytes());
        let mut suffix = b"/otedama/".to_vec();
        suffix.extend(self.random.bytes::<110>());
        let extranonce2_bytes = if counter.is_multiple_of(11) { 6 } else { 8 };
        let job = Job {
            id: self.run.job(counter),
            coin: Coin::Bitcoin,
            height: self.height,
            prev_hash: self.tip,
            version: VERSION,
            nbits: self.nbits,
            ntime: (self.now_us / 1_000_000) as u32,
            ntime_min: (self.tip_us / 1_000_000) as u32 - 3600,
            coinbase_prefix: prefix.into(),
            coinbase_suffix: suffix.into(),
            branch: (0..12).map(|_| Hash256(self.random.bytes())).collect(),
            extranonce2_bytes,
            network_target: self.network,
            clean,
            created_us: self.now_us,
        };
        let Some(registry) = self.registry.clone() else { return Ok(()) };
        registry.job(&JobRecord::new(&job, counter.wrapping_add(self.run.epoch)))?;
        let ends = if clean { self.live.len() } else { (self.live.len() + 1).saturating_sub(JOBS_LIVE) };
        for ended in self.live.drain(..ends) {
            registry.job_end(ended.job.id, self.now_us)?;
            self.recent.retain(|row| row.job != ended.job.id.counter());
            self.ended.push_back(ended.job.id);
        }
        while self.ended.len() > 16 {
            self.ended.pop_front();
        }
        self.live.push_back(Live { table: JobTable::new(&job), job });
        self.next_job_us = self.now_us + JOB_EVERY_US;
        Ok(())
    }

    /// A batch of shares of one job, searched for like miners do, with the odd refusals among them.
    fn shares(&mut self, batch: &mut ShareBatch, judged: &mut Judged) -> Result<(), LogError> {
        let newest = self.live.len() - 1;
        let at = if self.random.chance(80_000) { self.random.below(self.live.len() as u64) as usize } else { newest };
        let counter = self.live[at].job.id.counter();
        let (job_ntime, job_us, shift) = {
            let job = &self.live[at].job;
            (job.ntime, job.created_us, 8 * (8 - u32::from(job.extranonce2_bytes)))
        };
        let ntime = job_ntime + ((self.now_us - job_us) / 1_000_000) as u32;
        let mut owners = [(WorkerId(0), 0u32); BATCH];
        let mut too_easy = 0u32;
        let mut grace = 0u32;
        for (lane, owned) in owners.iter_mut().enumerate() {
            // Half of the shares come from a tenth of the miners.
            let miners = self.miners.len() as u64;
            let owner =
                if self.random.chance(500_000) { self.random.below(miners.div_ceil(10)) } else { self.random.below(miners) } as usize;
            if self.random.chance(200) {
                let miner = &mut self.miners[owner];
                (miner.work_before, miner.work) = (miner.work, 1 << self.random.below(4));
            }
            let reconnects = self.random.chance(300);
            if reconnects {
                self.connect(owner)?;
            }
            let (roll, nonce) = (self.random.next(), self.random.next());
            let in_grace = self.random.chance(2000);
            let is_low = self.random.chance(4000);
            let miner = &mut self.miners[owner];
            *owned = (miner.id, miner.session);
            miner.extranonce2 += 1;
            batch.extranonce[lane] = [0; 16];
            batch.extranonce[lane][..4].copy_from_slice(&miner.extranonce1.to_be_bytes());
            let extranonce2 = miner.extranonce2 & (u64::MAX >> shift);
            batch.extranonce[lane][4..12].copy_from_slice(&(extranonce2 << shift).to_be_bytes());
            batch.version[lane] = (VERSION & !miner.mask) | (roll as u32 & miner.mask);
            batch.ntime[lane] = ntime + (roll >> 60) as u32;
            batch.nonce[lane] = nonce as u32;
            let judged_at = if in_grace { miner.work.min(miner.work_before) } else { miner.work };
            batch.work[lane] = judged_at;
            grace |= u32::from(judged_at < miner.work) << lane;
            too_easy |= u32::from(is_low && judged_at > 1) << lane;
        }
        batch.count = BATCH as u32;
        judge(self.isa, &self.live[at].table, batch, judged);
        // Header after header until each lane has what it looks for: a share, or, now and then, a hash that is none.
        loop {
            let searching = !judged.share_mask ^ too_easy;
            if searching == 0 {
                break;
            }
            for lane in (0..BATCH).filter(|lane| searching >> lane & 1 == 1) {
                batch.nonce[lane] = batch.nonce[lane].wrapping_add(1);
            }
            judge_headers(self.isa, &self.live[at].table, batch, judged);
        }
        for (lane, &(worker, session)) in owners.iter().enumerate() {
            if self.made.rows >= self.plan.rows {
                break;
            }
            self.now_us = self.now_us.max(self.time_of(self.made.rows));
            let mut extranonce2 = [0u8; 8];
            extranonce2.copy_from_slice(&batch.extranonce[lane][4..12]);
            let is_block = judged.network_mask >> lane & 1 == 1;
            let status = if too_easy >> lane & 1 == 1 && !is_block { ShareStatus::LowDifficulty } else { ShareStatus::Accepted };
            let row = ShareRow {
                worker: worker.0,
                work: batch.work[lane],
                extranonce2: u64::from_be_bytes(extranonce2) >> shift,
                arrival_us: self.now_us,
                session,
                job: counter,
                nonce: batch.nonce[lane],
                ntime: batch.ntime[lane],
                version: batch.version[lane],
                share_difficulty: judged.difficulty_of(lane),
                latency_us: 15 + self.random.below(40) as u32,
                status: status as u8,
                flags: [
                    (grace >> lane & 1 == 1, flags::GRACE),
                    (at < newest, flags::LATE),
                    (is_block && status == ShareStatus::Accepted, flags::BLOCK),
                ]
                .into_iter()
                .filter_map(|(is_set, flag)| is_set.then_some(flag))
                .sum(),
                net: 1,
                coin: 0,
            };
            if row.flags & flags::BLOCK != 0 {
                self.block(&row, judged.hash_of(lane))?;
            }
            self.push(row, judged.hash_of(lane))?;
            if self.random.chance(self.plan.odd_of_a_million) {
                self.odd(&row)?;
            }
        }
        Ok(())
    }

    fn block(&mut self, row: &ShareRow, hash: Hash256) -> Result<(), LogError> {
        self.made.blocks += 1;
        let Some(registry) = &self.registry else { return Ok(()) };
        let mut record = BlockRecord {
            job: self.run.job(row.job),
            height: self.height,
            hash,
            worker: WorkerId(row.worker),
            session: self.run.session(row.session),
            found_us: row.arrival_us,
            status: BlockStatus::Found,
            reason: String::new(),
        };
        registry.block(&record)?;
        record.status = BlockStatus::Accepted;
        registry.block(&record)?;
        // The chain goes on: the next job is a clean one.
        (self.next_tip_us, self.next_job_us) = (self.now_us, self.now_us);
        Ok(())
    }

    fn push(&mut self, row: ShareRow, hash: Hash256) -> Result<(), LogError> {
        self.made.rows += 1;
        self.made.by_status[usize::from(row.status)] += 1;
        if row.status == ShareStatus::Accepted as u8 {
            self.made.work_credited += u128::from(row.work);
            self.recent.push_back(row);
            if self.recent.len() > 4096 {
                self.recent.pop_front();
            }
        }
        self.batch.push(row);
        self.hashes.push(hash);
        if self.batch.len() >= ROWS { self.flush() } else { Ok(()) }
    }

    /// A refusal of another kind, by the miner of `like`.
    fn odd(&mut self, like: &ShareRow) -> Result<(), LogError> {
        if self.made.rows >= self.plan.rows {
            return Ok(());
        }
        let kind = self.random.below(14);
        let job = self.live.iter().find(|live| live.job.id.counter() == like.job).map(|live| live.job.clone());
        let Some(job) = job else { return Ok(()) };
        let mut row = ShareRow { share_difficulty: 0.0, flags: like.flags & !flags::BLOCK, arrival_us: self.now_us, ..*like };
        row.status = match kind {
            0..=3 => {
                // Anything accepted in a job that lives, old or new; twins of one pass have been hashed.
                let pick = self.random.below(self.recent.len() as u64) as usize;
                let Some(first) = self.recent.get(pick) else { return Ok(()) };
                row = ShareRow {
                    share_difficulty: if kind == 0 { first.share_difficulty } else { 0.0 },
                    flags: 0,
                    arrival_us: self.now_us,
                    ..*first
                };
                ShareStatus::Duplicate
            }
            4..=7 => {
                match self.ended.back() {
                    Some(ended) if kind > 4 => row.job = ended.counter(),
                    _ => row.job = 0,
                }
                ShareStatus::Stale
            }
            8 => {
                row.ntime = if self.random.chance(500_000) {
                    job.ntime_min - 1
                } else {
                    job.ntime_max(self.now_us) + 1 + self.random.below(90) as u32
                };
                ShareStatus::BadTime
            }
            9 | 10 => {
                // The whole version instead of its bits, as some firmware sends it, or a bit that nobody may roll.
                row.version = if kind == 9 { VERSION | (row.version & MASK) } else { 1 };
                ShareStatus::BadVersion
            }
            11 => {
                (row.nonce, row.ntime) = (0, 0);
                ShareStatus::Malformed
            }
            12 => {
                row.worker = 0;
                ShareStatus::Unauthorized
            }
            _ => ShareStatus::Overload,
        } as u8;
        self.push(row, Hash256::default())
    }
}
