//! Two pools' servers and 26 hours of shares, out of a seed: what the analyst's book is tried on, with every oddity that a recipe looks for put in on purpose.
//!
//! The rows go through the real journal and sealer. What stands in `Facts` is what was made, kept beside the log and never read back from it.
#![allow(dead_code, reason = "each user takes a part of it")]

use otedama_primitives::{
    Coin, Difficulty, Dimension, Hash256, RunId, SessionRecord, ShareRow, ShareStatus, Target, WorkerId, WorkerName, WorkerRecord, flags,
};
use otedama_sharelog::store::SegmentStore;
use otedama_sharelog::{BlockRecord, BlockStatus, Disk, JobRecord, Journal, LogSettings, Registry, RunRecord, Sealer, ShareLog};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

/// 2026-11-20 00:00:00 UTC: the day in the middle of the span.
pub const DAY_S: u64 = 1_795_132_800;
/// The span: from an hour before the day to an hour behind it.
pub const SINCE_S: u64 = DAY_S - 3600;
/// Its end.
pub const UNTIL_S: u64 = DAY_S + 86_400 + 3600;
const SINCE_US: u64 = SINCE_S * 1_000_000;
const SPAN_US: u64 = (UNTIL_S - SINCE_S) * 1_000_000;

/// Workers of both servers together.
pub const WORKERS: usize = 48;
/// Finds no block, at a tenth of the pool's work.
pub const WITHHOLDS: usize = 0;
/// Never finds a nonce in the last quarter.
pub const DEAD_CHIPS: usize = 3;
/// Sends what it has sent again.
pub const PROBES: usize = 5;
/// Start a session every ten minutes.
pub const FLAP: [usize; 2] = [7, 31];
/// Stops six hours before the end.
pub const GOES_SILENT: usize = 11;
/// Holds shares near its target back.
pub const FILTERS: usize = 14;

const AGENTS: [&str; 4] = ["cgminer/4.12.1", "bmminer/2.0.0", "braiins/26.04", "nerdminer/1.6"];
const VERSION: u32 = 0x2000_0000;
const ROLLED: u32 = 0x1fff_e000;
/// Network target such that a million shares are some dozens of blocks.
const NBITS: u32 = 0x1901_dcd6;
const JOB_EVERY_US: u64 = 60_000_000;

/// splitmix64 (Steele, Lea and Flood 2014).
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 up to but not including `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Over 0, up to 1.
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    fn chance(&mut self, of_a_million: u64) -> bool {
        self.below(1_000_000) < of_a_million
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -self.unit().ln() * mean
    }
}

/// A job and when it ended; 0 while it lives.
#[derive(Clone)]
pub struct JobFact {
    pub record: JobRecord,
    pub ended_us: u64,
}

/// What was made.
#[derive(Default)]
pub struct Facts {
    /// Rows by server, in order, with the row's full session and job numbers (0 for none).
    pub rows: [Vec<Fact>; 2],
    /// Worker number and name.
    pub names: BTreeMap<u64, String>,
    /// By session number.
    pub sessions: BTreeMap<u64, SessionRecord>,
    /// By job number.
    pub jobs: BTreeMap<u64, JobFact>,
    /// Last state of each block.
    pub blocks: Vec<BlockRecord>,
    pub runs: Vec<RunRecord>,
}

/// A row as it was appended.
#[derive(Clone, Copy)]
pub struct Fact {
    pub row: ShareRow,
    pub session: u64,
    pub job: u64,
}

impl Facts {
    pub fn all(&self) -> impl Iterator<Item = &Fact> {
        self.rows.iter().flatten()
    }

    pub fn accepted(&self) -> impl Iterator<Item = &Fact> {
        self.all().filter(|fact| fact.row.status == ShareStatus::Accepted as u8)
    }

    pub fn name(&self, worker: u64) -> String {
        self.names.get(&worker).cloned().unwrap_or_default()
    }

    /// Expected hashes of a block, as the network's compact target says.
    pub fn network_hashes() -> f64 {
        let target = Target::from_compact(NBITS).expect("a target");
        let near: f64 = target.0.iter().enumerate().map(|(limb, &word)| word as f64 * 2f64.powi(64 * limb as i32)).sum();
        2f64.powi(256) / near
    }

    /// Header and hash of a share, from the records alone.
    pub fn rehash(&self, fact: &Fact) -> (Vec<u8>, Hash256) {
        header_and_hash(&self.jobs[&fact.job].record, &self.sessions[&fact.session], &fact.row)
    }
}

fn sha256d(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(Sha256::digest(bytes)).into()
}

fn header_and_hash(job: &JobRecord, session: &SessionRecord, row: &ShareRow) -> (Vec<u8>, Hash256) {
    let mut coinbase = job.coinbase_prefix.clone();
    coinbase.extend(session.extranonce1.to_be_bytes());
    coinbase.extend(row.extranonce2.to_be_bytes());
    coinbase.extend(&job.coinbase_suffix);
    let mut root = sha256d(&coinbase);
    for sibling in &job.branch {
        root = sha256d(&[root, sibling.0].concat());
    }
    let mut header = row.version.to_le_bytes().to_vec();
    header.extend(job.prev_hash.0);
    header.extend(root);
    header.extend(row.ntime.to_le_bytes());
    header.extend(job.nbits.to_le_bytes());
    header.extend(row.nonce.to_le_bytes());
    let hash = Hash256(sha256d(&header));
    (header, hash)
}

/// Difficulty of a hash: 0xffff x 2^208 over it.
pub fn difficulty_of(hash: &Hash256) -> f64 {
    let limbs = hash.limbs();
    65535.0 * 2f64.powi(208) / (limbs[3] as f64 * 2f64.powi(192) + limbs[2] as f64 * 2f64.powi(128))
}

/// One worker as its server sees it.
struct Miner {
    id: WorkerId,
    name: String,
    number: usize,
    /// Part of the server's submits.
    weight: u64,
    difficulty: f64,
    lag_us: u64,
    session: u32,
    session_until_us: u64,
    last: Option<ShareRow>,
    extranonce2: u64,
}

/// The log of one server while it is made.
struct Writer {
    journal: Journal,
    sealer: Sealer<Disk>,
    registry: Arc<Registry>,
    dimensions: Vec<Dimension>,
    batch: Vec<ShareRow>,
    rows: u64,
}

impl Writer {
    fn open(dir: &Path, run: RunId, segment_rows: u32) -> Self {
        let settings = LogSettings {
            dir: dir.to_path_buf(),
            pool: "otedama".into(),
            run,
            segment_rows,
            seal_after_ms: 3_600_000,
            max_bytes: 1 << 40,
            journal_file_bytes: 8 << 20,
            keep_ms: 1 << 45,
            keep_shipped_ms: 1 << 45,
            has_cursor: true,
            layout: otedama_sharelog::Layout::Replayable,
            rolls_up_when_full: false,
        };
        let (journal, sealer, registry, _) = ShareLog::open(settings).expect("the log opens");
        Self { journal, sealer, registry, dimensions: Vec::new(), batch: Vec::new(), rows: 0 }
    }

    fn push(&mut self, row: ShareRow) {
        self.batch.push(row);
        self.rows += 1;
        if self.batch.len() == 512 || self.dimensions.len() >= 60 {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let now_us = self.batch.last().map_or(SINCE_US, |row| row.arrival_us);
        while self.journal.room_cells() < 1200 {
            self.sealer.step(now_us).expect("the sealer makes room");
        }
        self.journal.append(&self.dimensions, &self.batch).expect("there is room");
        self.dimensions.clear();
        self.batch.clear();
        self.sealer.step(now_us).expect("sealed");
    }
}

/// The two logs, on the disk.
pub struct Logs {
    folders: [tempfile::TempDir; 2],
}

impl Logs {
    pub fn store(&self, server: usize) -> SegmentStore {
        SegmentStore::open(self.folders[server].path()).expect("the folder is there")
    }

    pub fn dir(&self, server: usize) -> &Path {
        self.folders[server].path()
    }
}

/// Makes about `rows` rows, half by each server. `keep` holds the facts back for the checks; without it memory stays flat.
pub fn generate(rows: u64, seed: u64, segment_rows: u32, keep: bool) -> (Logs, Facts) {
    let memory = Path::new("/dev/shm");
    let folder = || if memory.is_dir() && keep { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.expect("a temporary folder");
    let logs = Logs { folders: [folder(), folder()] };
    let mut facts = Facts::default();
    // Blocks of the network, the same for both servers.
    let mut random = Random(seed);
    let mut blocks_us = vec![SINCE_US];
    loop {
        let next = blocks_us[blocks_us.len() - 1] + 20_000_000 + random.exponential(580e6) as u64;
        if next >= SINCE_US + SPAN_US {
            break;
        }
        blocks_us.push(next);
    }
    for server in 0..2 {
        serve(server, rows / 2, Random(seed ^ ((server as u64 + 1) << 40)), &blocks_us, logs.dir(server), segment_rows, keep, &mut facts);
    }
    (logs, facts)
}

fn jobs(server: usize, run: RunId, random: &mut Random, blocks_us: &[u64]) -> Vec<JobFact> {
    let mut jobs: Vec<JobFact> = Vec::new();
    for (number, &block_us) in blocks_us.iter().enumerate() {
        // The template of the second server comes later.
        let mut at_us = block_us + 50_000 + random.below(150_000) + server as u64 * (200_000 + random.below(900_000));
        let next_us = blocks_us.get(number + 1).copied().unwrap_or(SINCE_US + SPAN_US);
        let mut clean = true;
        let mut bytes = |count: usize| (0..count).map(|_| random.next() as u8).collect::<Vec<u8>>();
        let prev_hash = Hash256(sha256d(&block_us.to_le_bytes()));
        while at_us < next_us {
            let counter = jobs.len() as u32 + 1;
            let record = JobRecord {
                job: run.job(counter),
                wire_id: counter,
                coin: Coin::Bitcoin,
                height: 900_000 + number as u32,
                prev_hash,
                version: VERSION,
                nbits: NBITS,
                ntime: (at_us / 1_000_000) as u32,
                ntime_min: (block_us / 1_000_000) as u32 - 3600,
                coinbase_prefix: bytes(58),
                coinbase_suffix: bytes(91),
                branch: (0..counter % 14).map(|_| Hash256(bytes(32).try_into().expect("32 bytes"))).collect(),
                extranonce2_bytes: 8,
                network_target: Target::from_compact(NBITS).expect("a target"),
                clean,
                created_us: at_us,
            };
            jobs.push(JobFact { record, ended_us: 0 });
            clean = false;
            at_us += JOB_EVERY_US;
        }
    }
    // A job ends with the next block, or when the third job after it comes.
    for index in 0..jobs.len() {
        let next_clean = jobs[index + 1..].iter().find(|job| job.record.clean).map(|job| job.record.created_us);
        let third = jobs.get(index + 3).map(|job| job.record.created_us);
        jobs[index].ended_us = [next_clean, third].into_iter().flatten().min().unwrap_or(0);
    }
    jobs
}

#[expect(clippy::too_many_arguments, reason = "the parts of one server, made in one place")]
fn serve(server: usize, rows: u64, mut random: Random, blocks_us: &[u64], dir: &Path, segment_rows: u32, keep: bool, facts: &mut Facts) {
    let run = RunId::new(7 + server as u8, 0x00ab_c000 + server as u32);
    let mut writer = Writer::open(dir, run, segment_rows);
    let record = RunRecord {
        run,
        started_us: SINCE_US - 5_000_000,
        build: format!("0.1.{server} ({:07x})", 0x00ab_c000 + server),
        kernel: if server == 0 { "avx512x2" } else { "shani" }.into(),
        driver: "mio".into(),
        tier: "process".into(),
        pool: "otedama".into(),
    };
    writer.registry.run(&record).expect("run");
    facts.runs.push(record);
    let jobs = jobs(server, run, &mut random, blocks_us);
    let mut miners: Vec<Miner> = (0..WORKERS)
        .filter(|number| number % 2 == server)
        .map(|number| {
            let name = format!("account{:02}.rig{:02}", number / 6, number % 6);
            let weight = if number == WITHHOLDS { 40 } else { 1 + number as u64 % 5 };
            let difficulty = 65536.0 * [1.0, 2.0, 4.0][number % 3] * if number == WITHHOLDS { 8.0 } else { 1.0 };
            Miner {
                id: WorkerName::new(name.as_bytes()).expect("a name").id("otedama"),
                name,
                number,
                weight,
                difficulty,
                lag_us: 40_000 + (number as u64 * 97_003) % 2_500_000,
                session: 0,
                session_until_us: 0,
                last: None,
                extranonce2: 0,
            }
        })
        .collect();
    let lots: Vec<usize> = miners.iter().enumerate().flat_map(|(index, miner)| std::iter::repeat_n(index, miner.weight as usize)).collect();
    let network_difficulty = Facts::network_hashes() * 65535.0 / 2f64.powi(48);
    let mean_us = SPAN_US as f64 / rows as f64;
    let mut clock = SINCE_US as f64 + 100_000.0;
    let (mut next_job, mut sessions, mut found) = (0usize, 0u32, 0u32);
    let mut live: VecDeque<usize> = VecDeque::new();
    let mut known = BTreeMap::new();
    loop {
        clock += random.exponential(mean_us);
        let at_us = clock as u64;
        if at_us >= SINCE_US + SPAN_US {
            break;
        }
        while let Some(job) = jobs.get(next_job).filter(|job| job.record.created_us <= at_us) {
            // What is recorded by now is written behind the rows before it.
            for &old in live.iter().filter(|&&old| jobs[old].ended_us != 0 && jobs[old].ended_us <= job.record.created_us) {
                writer.registry.job_end(jobs[old].record.job, jobs[old].ended_us).expect("end");
            }
            live.retain(|&old| jobs[old].ended_us == 0 || jobs[old].ended_us > job.record.created_us);
            writer.registry.job(&job.record).expect("job");
            live.push_back(next_job);
            next_job += 1;
        }
        if next_job == 0 {
            continue;
        }
        let miner = &mut miners[lots[random.below(lots.len() as u64) as usize]];
        if miner.number == GOES_SILENT && at_us > SINCE_US + SPAN_US - 6 * 3_600_000_000 {
            continue;
        }
        if at_us >= miner.session_until_us {
            sessions += 1;
            miner.session = sessions;
            let length_us = if FLAP.contains(&miner.number) {
                300_000_000 + random.below(600_000_000)
            } else {
                40_000_000_000 + random.below(20_000_000_000)
            };
            miner.session_until_us = at_us + length_us;
            miner.last = None;
            let record = SessionRecord {
                session: sessions,
                extranonce1: ((server as u32) << 26) | sessions,
                net: (sessions % 3) as u8,
                extranonce2_bytes: 8,
                started_us: at_us - 1000,
                peer: format!("10.0.{}.{}:{}", server, miner.number, 20_000 + sessions),
                agent: AGENTS[miner.number % 4].into(),
            };
            let worker = WorkerRecord { worker: miner.id, seen_us: at_us - 500, session: sessions, name: miner.name.clone() };
            writer.dimensions.push(Dimension::session(&record).expect("fits"));
            writer.dimensions.push(Dimension::worker(&worker).expect("fits"));
            known.insert(sessions, record.clone());
            facts.names.insert(miner.id.0, miner.name.clone());
            facts.sessions.insert(run.session(sessions).0, record);
        }
        let current = next_job - 1;
        let quarter = ((at_us - SINCE_US) * 4 / SPAN_US) as usize;
        let level = miner.difficulty * if miner.number.is_multiple_of(4) { [1.0, 2.0, 4.0, 1.0][quarter] } else { 1.0 };
        let net = known[&miner.session].net;
        let mut row = ShareRow {
            worker: miner.id.0,
            work: Difficulty::clamped(level).work().hashes(),
            extranonce2: miner.extranonce2,
            arrival_us: at_us,
            session: miner.session,
            job: jobs[current].record.job.counter(),
            nonce: random.next() as u32,
            ntime: (at_us / 1_000_000) as u32 - random.below(30) as u32,
            version: VERSION,
            share_difficulty: 0.0,
            latency_us: 15 + 10 * u32::from(net) + 7 * server as u32 + random.exponential(6.0) as u32,
            status: ShareStatus::Accepted as u8,
            flags: 0,
            net,
            coin: Coin::Bitcoin as u8,
        };
        miner.extranonce2 += 1;
        if random.chance(2_000) {
            row.latency_us += 500 + random.below(4000) as u32;
        }
        if miner.number % 4 != 3 {
            row.version = VERSION ^ (random.next() as u32 & ROLLED);
        }
        if miner.number % 4 == 2 {
            row.ntime += random.below(600) as u32;
        }
        if miner.number == DEAD_CHIPS {
            row.nonce = ((row.nonce % 12) << 28) | (row.nonce >> 4);
        }
        // A hash under the target, uniform.
        let mut luck = random.unit();
        while (miner.number == WITHHOLDS && level / luck >= network_difficulty) || (miner.number == FILTERS && luck > 0.97) {
            luck = random.unit();
        }
        row.share_difficulty = (level / luck) as f32;
        let since_job_us = at_us - jobs[current].record.created_us;
        let kind = random.below(1_000_000);
        if jobs[current].record.clean && current > 0 && since_job_us < miner.lag_us {
            row.job = jobs[current - 1].record.job.counter();
            row.status = ShareStatus::Stale as u8;
            row.share_difficulty = 0.0;
        } else if miner.number == PROBES
            && kind < 80_000
            && miner.last.is_some_and(|last| live.iter().any(|&job| jobs[job].record.job.counter() == last.job))
        {
            let last = miner.last.expect("there is one");
            row = ShareRow {
                arrival_us: at_us,
                latency_us: row.latency_us,
                status: ShareStatus::Duplicate as u8,
                share_difficulty: 0.0,
                flags: 0,
                ..last
            };
        } else if kind < if miner.number % 4 == 3 { 9_000 } else { 600 } {
            row.status = ShareStatus::LowDifficulty as u8;
            row.share_difficulty = (level * random.unit()) as f32;
        } else if (9_000..9_400).contains(&kind) {
            row.status = ShareStatus::BadTime as u8;
            row.ntime += 9000;
            row.share_difficulty = 0.0;
        } else if (9_400..9_700).contains(&kind) {
            row.status = ShareStatus::BadVersion as u8;
            row.share_difficulty = 0.0;
        } else if (9_700..9_900).contains(&kind) {
            row = ShareRow {
                status: ShareStatus::Malformed as u8,
                job: 0,
                share_difficulty: 0.0,
                extranonce2: 0,
                nonce: 0,
                ntime: 0,
                version: 0,
                ..row
            };
        } else if (9_900..10_000).contains(&kind) {
            row = ShareRow { status: ShareStatus::Unauthorized as u8, worker: 0, share_difficulty: 0.0, ..row };
        } else {
            if kind < 40_000 && !jobs[current].record.clean && current > 0 {
                row.job = jobs[current - 1].record.job.counter();
                row.flags |= flags::LATE;
            } else if kind < 45_000 {
                row.flags |= flags::GRACE;
            }
            if writer.rows == 100 {
                // One row whose hash is what its fields say, at the smallest difficulty there is.
                row.work = 1;
                let (_, hash) = header_and_hash(&jobs[row.job as usize - 1].record, &known[&row.session], &row);
                row.share_difficulty = difficulty_of(&hash) as f32;
            }
            if f64::from(row.share_difficulty) >= network_difficulty {
                row.flags |= flags::BLOCK;
                found += 1;
                let fate = match found % 10 {
                    4 => (BlockStatus::Superseded, ""),
                    9 => (BlockStatus::Rejected, "bad-txns-inputs-missingorspent"),
                    _ => (BlockStatus::Accepted, ""),
                };
                let job = &jobs[row.job as usize - 1].record;
                let mut block = BlockRecord {
                    job: job.job,
                    height: job.height,
                    hash: Hash256(sha256d(&at_us.to_be_bytes())),
                    worker: miner.id,
                    session: run.session(miner.session),
                    found_us: at_us,
                    status: BlockStatus::Found,
                    reason: String::new(),
                };
                writer.registry.block(&block).expect("block");
                block.status = fate.0;
                block.reason = fate.1.into();
                writer.registry.block(&block).expect("block");
                facts.blocks.push(block);
            }
            miner.last = Some(row);
        }
        if keep {
            let full = |counter: u32| if counter == 0 { 0 } else { run.job(counter).0 };
            facts.rows[server].push(Fact { row, session: full(row.session), job: full(row.job) });
        }
        writer.push(row);
    }
    for job in jobs.iter().take(next_job) {
        // What was recorded by the last row; a job that outlived it has no end on record.
        let over = job.ended_us != 0 && job.ended_us <= jobs[next_job - 1].record.created_us;
        facts.jobs.insert(job.record.job.0, JobFact { record: job.record.clone(), ended_us: if over { job.ended_us } else { 0 } });
    }
    writer.flush();
    writer.sealer.drain(SINCE_US + SPAN_US).expect("sealed");
}
