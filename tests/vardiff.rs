//! Difficulty that follows a swinging hashrate, through the stages that judge: net with its sessions and their grace, validate with real hashes, jobs of the
//! practice chain. An honest miner must never be told "low difficulty", and one that comes back must start where it left.
//!
//! `OTEDAMA_LONG=1 cargo test -p otedama --test vardiff -- --nocapture` goes through 10^5 retargets.
use loadgen::hash::{OpenHeader, meets, merkle_roots};
use loadgen::job::Job as MinedJob;
use otedama_chain::{Assembler, AssemblerSettings, NodeRpc, Practice, PracticeSettings, practice_payout_script};
use otedama_kernels::Isa;
use otedama_pipeline::driver::{Driver, Event, Slot};
use otedama_pipeline::metrics::NetMetrics;
use otedama_pipeline::ring::{Full, Rx, Tx, ring};
use otedama_pipeline::stages::{
    Append, BlockBell, Histograms, IN_FLIGHT, Log, LogPorts, Net, NetPorts, NetSettings, Validate, ValidatePorts, ValidatedJob,
};
use otedama_pipeline::{Regime, Stage};
use otedama_primitives::{
    Answer, BlockCandidate, Clock, DIFFICULTY_MIN, Difficulty, Dimension, Hash256, ManualClock, RunId, ShareRow, Submit, Target, Verdict,
};
use otedama_stratum::v1::{self, PublishedJob};
use otedama_stratum::vardiff::{Learning, Memory, Policy};
use serde_json::Value;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const START_US: u64 = 1_767_225_600_000_000;
const MINUTE_US: u64 = 60_000_000;
/// What vardiff aims at.
const PER_MINUTE: f64 = 60.0;
/// Work of a share at the middle of the swings: real hashes, so a small number.
const WORK_MIDDLE: f64 = 64.0;

fn is_long() -> bool {
    std::env::var_os("OTEDAMA_LONG").is_some()
}

/// splitmix64: a seed is a whole run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In (0, 1].
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Mostly next to nothing, now and then up to `most_us`: a link that stalls.
    fn delay_us(&mut self, most_us: f64) -> u64 {
        (self.unit().powi(4) * most_us) as u64
    }
}

/// The socket of one miner at a time.
#[derive(Default)]
struct Socket {
    events: VecDeque<(Event, Vec<u8>)>,
    sent: Vec<u8>,
    closed: bool,
}

#[derive(Clone, Default)]
struct SimulatedDriver {
    socket: Arc<Mutex<Socket>>,
    bytes: Vec<u8>,
}

impl SimulatedDriver {
    fn with<T>(&self, act: impl FnOnce(&mut Socket) -> T) -> T {
        act(&mut self.socket.lock().expect("one thread"))
    }
}

impl Driver for SimulatedDriver {
    fn poll(&mut self, _: Duration) -> io::Result<()> {
        Ok(())
    }
    fn event(&mut self) -> Option<Event> {
        let (event, bytes) = self.with(|socket| socket.events.pop_front())?;
        self.bytes = bytes;
        Some(event)
    }
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }
    fn reply(&mut self, _: Slot, bytes: &[u8]) {
        self.with(|socket| socket.sent.extend_from_slice(bytes));
    }
    fn flush(&mut self) {}
    fn close(&mut self, _: Slot) {
        self.with(|socket| socket.closed = true);
    }
    fn accept(&mut self, _: bool) {}
    fn bytes_sent(&self) -> u64 {
        0
    }
    fn closed_slow(&self) -> u64 {
        0
    }
    fn refused(&self) -> u64 {
        0
    }
    fn name(&self) -> &'static str {
        "simulated"
    }
}

/// Takes everything, keeps nothing.
struct Sink;

impl Append for Sink {
    fn room_cells(&self) -> usize {
        1 << 20
    }
    fn append(&mut self, _: &[Dimension], _: &[ShareRow], _: &[Hash256]) {}
    fn is_full(&self) -> bool {
        false
    }
}

type Latencies = Box<hdrhistogram::Histogram<u64>>;

/// The share path of one net and one lane, and the chain that feeds it.
struct Pool {
    stages: Vec<Box<dyn Stage>>,
    driver: SimulatedDriver,
    clock: ManualClock,
    practice: Practice<ManualClock>,
    assembler: Assembler,
    runtime: tokio::runtime::Runtime,
    to_validate: Tx<Arc<ValidatedJob>>,
    to_net: Tx<Arc<PublishedJob>>,
    next_job: u32,
    height: u32,
    metrics: Arc<NetMetrics>,
    /// Ends that nothing reads here.
    _blocks: Rx<BlockCandidate>,
    _full: Rx<Latencies>,
    _empty: Tx<Latencies>,
}

impl Pool {
    fn new(memory: Arc<Memory>) -> Self {
        let clock = ManualClock::at(START_US);
        let driver = SimulatedDriver::default();
        let least = Difficulty::clamped(DIFFICULTY_MIN);
        let policy = Policy::new(PER_MINUTE, least, Difficulty::clamped(4e9));
        let session = v1::Settings {
            // Far from the mark, so that the start is a retarget too.
            difficulty: Difficulty::clamped(WORK_MIDDLE / 8.0 * 65535.0 / 2f64.powi(48)),
            difficulty_min: least,
            learning: Some(Learning { policy, memory }),
            ..v1::Settings::default()
        };
        let (submits, submits_rx, _) = ring::<Submit>("net_validate", 1 << 10, Full::Wait);
        let (verdicts, verdicts_rx, _) = ring::<Verdict>("validate_log", 1 << 10, Full::Wait);
        let (answers_tx, answers, _) = ring::<Answer>("log_net", IN_FLIGHT, Full::Never);
        let (names, names_rx, _) = ring::<Dimension>("net_log", 1 << 10, Full::Wait);
        let (to_net, net_jobs, _) = ring("chain_net", 64, Full::Wait);
        let (to_validate, validate_jobs, _) = ring("chain_validate", 64, Full::Wait);
        let (blocks, blocks_rx, _) = ring("validate_chain", 64, Full::Flag);
        let (full, full_rx, _) = ring("net_stats", 4, Full::Wait);
        let (empty_tx, empty, _) = ring("stats_net", 4, Full::Wait);
        let metrics: Arc<NetMetrics> = Arc::default();
        let running = || Arc::new(std::sync::atomic::AtomicUsize::new(1));
        let (nets_running, validates_running) = (running(), running());
        let ports = NetPorts {
            submits: vec![submits],
            answers,
            names,
            jobs: net_jobs,
            latency: Histograms { full, empty },
            metrics: metrics.clone(),
            next_session: Arc::new(std::sync::atomic::AtomicU32::new(1)),
            nets_running: nets_running.clone(),
            log_full: Arc::default(),
        };
        let settings = NetSettings {
            net: 0,
            session,
            connections_max: 64,
            line_bytes: 8192,
            authorize_within_us: u64::MAX,
            refused_per_s: u32::MAX,
            // Overload raises difficulties for reasons of its own.
            read_within_us: u64::MAX,
        };
        let net = Net::new(driver.clone(), clock.clone(), settings, ports, 99);
        let ports = ValidatePorts {
            submits: vec![submits_rx],
            verdicts,
            hashes: None,
            blocks,
            jobs: validate_jobs,
            metrics: Arc::default(),
            nets_running,
            validates_running: validates_running.clone(),
            block_bell: BlockBell::silent(),
        };
        let validate = Validate::new(Isa::Portable, 7, ports);
        let ports = LogPorts {
            verdicts: vec![verdicts_rx],
            hashes: vec![],
            answers: vec![answers_tx],
            names: vec![names_rx],
            metrics: Arc::default(),
            validates_running,
            answer_first: false,
            log_full: Arc::default(),
        };
        let log = Log::new(Sink, clock.clone(), ports);
        // Blocks come by word; a template of mainnet's size would only cost time here.
        let practice = PracticeSettings { transactions: 6, block_s: 0, ..PracticeSettings::default() };
        let settings = AssemblerSettings { payout_script: practice_payout_script(), tag: "/otedama/".into(), extranonce2_bytes: 8 };
        Self {
            stages: vec![Box::new(net), Box::new(validate), Box::new(log)],
            practice: Practice::new(practice, clock.clone()).expect("a chain"),
            assembler: Assembler::new(settings).expect("settings"),
            runtime: tokio::runtime::Builder::new_current_thread().build().expect("a runtime"),
            driver,
            clock,
            to_validate,
            to_net,
            next_job: 1,
            height: 0,
            metrics,
            _blocks: blocks_rx,
            _full: full_rx,
            _empty: empty_tx,
        }
    }

    /// A job on a new block or on the same, as chain would publish it.
    fn publish(&mut self, new_block: bool) {
        if new_block {
            self.practice.mine_elsewhere();
        }
        let template = self.runtime.block_on(self.practice.block_template(0, None)).expect("a template").received_at(self.clock.now_us());
        let mut job = self.assembler.job(&template, RunId::new(0, 7).job(self.next_job)).expect("a job");
        job.clean = std::mem::replace(&mut self.height, template.height) != template.height;
        self.next_job += 1;
        assert!(self.to_validate.push(Arc::new(ValidatedJob::new(&job))).is_ok());
        assert!(self.to_net.push(Arc::new(PublishedJob::new(job, 0x5151_0000))).is_ok());
        self.settle();
    }

    /// Every stage until nothing moves.
    fn settle(&mut self) {
        loop {
            let moved = self.stages.iter_mut().map(|stage| stage.step()).filter(|regime| *regime != Regime::CaughtUp).count();
            if moved == 0 {
                break;
            }
        }
    }

    /// What is done now and then: looks at silent sessions among it.
    fn keep_house(&mut self) {
        self.stages.iter_mut().for_each(|stage| stage.housekeeping());
        self.settle();
    }

    fn retargets(&self) -> u64 {
        let read = |value: &AtomicU64| value.load(Ordering::Relaxed);
        read(&self.metrics.difficulty_raised) + read(&self.metrics.difficulty_lowered)
    }
}

/// A job as the miner has it.
#[derive(Clone)]
struct Held {
    job: Arc<MinedJob>,
    /// As told by the last set_difficulty before it.
    difficulty: f64,
}

/// An honest miner: it works at what it was told, finishes what it has in hand, and its link stalls now and then, either way. One in three applies a new
/// difficulty to what it has in hand, too, as some firmware does.
struct Miner {
    random: Random,
    hasty: bool,
    hashrate: f64,
    slot: Slot,
    extranonce1: Vec<u8>,
    told: f64,
    mined: Option<Held>,
    before: Option<Held>,
    extranonce2: u64,
    next_id: u64,
    /// Lines on their way to the miner, and submits on their way to the pool.
    down: VecDeque<(u64, String)>,
    up: VecDeque<(u64, String)>,
    /// Shares since the last retarget that the miner heard of.
    calm: u32,
}

#[derive(Default, Debug)]
struct Counts {
    shares: u64,
    by_code: BTreeMap<i64, u64>,
    /// Comings back of a miner whose difficulty had been learned, and those that started at it.
    back: u64,
    restored: u64,
}

impl Miner {
    fn hear(&mut self, now_us: u64, counts: &mut Counts) {
        while let Some((_, text)) = self.down.pop_front_if(|(at, _)| *at <= now_us) {
            for line in text.lines() {
                let value: Value = serde_json::from_str(line).expect("JSON");
                match value["method"].as_str() {
                    Some("mining.set_difficulty") => {
                        // From its text: a JSON reader may be off by a unit in the last place, and here that is a hash in eight.
                        let text = line.split_once("\"params\":[").and_then(|(_, rest)| rest.split_once(']')).expect("a list").0;
                        self.told = text.parse().expect("a number");
                        self.calm = 0;
                    }
                    Some("mining.notify") => {
                        let job = MinedJob::from_notify(&value["params"].to_string(), 4, 8).expect("a job");
                        self.before = self.mined.replace(Held { job: Arc::new(job), difficulty: self.told });
                        if let Some(before) = &mut self.before
                            && self.hasty
                        {
                            before.difficulty = self.told;
                        }
                    }
                    _ if value["id"] == 1 => {
                        let hex = value["result"][1].as_str().expect("extranonce1");
                        self.extranonce1 =
                            (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).expect("hex")).collect();
                    }
                    _ if value["id"] == 2 => assert_eq!(value["result"], true, "{line}"),
                    _ => {
                        let code = if value["result"] == true { 0 } else { value["error"][0].as_i64().expect("a code") };
                        *counts.by_code.entry(code).or_default() += 1;
                        assert!(code == 0 || code == 21, "an honest share was refused: {line}");
                    }
                }
            }
        }
    }

    /// Finds a share of this job for real and sends it.
    fn submit(&mut self, held: &Held, now_us: u64, counts: &mut Counts) {
        self.extranonce2 += 1;
        let target: Target = Difficulty::clamped(held.difficulty).work().target();
        let mut roots = [[0; 32]];
        merkle_roots(&held.job, &self.extranonce1, &[self.extranonce2], &mut roots);
        let mut header = OpenHeader::new(&held.job, &roots[0], held.job.ntime, held.job.version);
        let nonce = (0..=u32::MAX).find(|&nonce| meets(&header.hash(nonce), &target)).expect("work is small");
        let line = format!(
            "{{\"id\":{},\"method\":\"mining.submit\",\"params\":[\"rig.1\",\"{}\",\"{:016x}\",\"{:08x}\",\"{nonce:08x}\"]}}\n",
            self.next_id, held.job.id, self.extranonce2, held.job.ntime
        );
        self.next_id += 1;
        // The link up stalls for a few seconds at most: longer than firmware waits for a connection it is gone.
        let late_us = self.random.delay_us(3e6);
        let at = self.up.back().map_or(0, |(at, _)| *at).max(now_us + late_us);
        self.up.push_back((at, line));
        counts.shares += 1;
        self.calm += 1;
    }

    /// Everything that the pool has said leaves for the miner, as one write.
    fn post(&mut self, pool: &Pool) {
        let text = pool.driver.with(|socket| std::mem::take(&mut socket.sent));
        if !text.is_empty() {
            let late_us = self.random.delay_us(20e6);
            let at = self.down.back().map_or(0, |(at, _)| *at).max(pool.clock.now_us() + late_us);
            self.down.push_back((at, String::from_utf8(text).expect("ASCII")));
        }
    }

    /// A new connection; the old one, if any, is gone with everything on its way.
    fn connect(&mut self, pool: &mut Pool) {
        let slot = self.slot;
        pool.driver.with(|socket| {
            if !self.extranonce1.is_empty() {
                socket.events.push_back((Event::Closed { slot }, vec![]));
            }
            socket.events.push_back((Event::Opened { slot, peer: ([127, 0, 0, 1], 1).into() }, vec![]));
        });
        pool.settle();
        let hello = "{\"id\":1,\"method\":\"mining.subscribe\",\"params\":[]}\n{\"id\":2,\"method\":\"mining.authorize\",\"params\":[\"rig.1\",\"x\"]}\n";
        pool.driver.with(|socket| {
            socket.sent.clear();
            socket.events.push_back((Event::Bytes { slot }, hello.into()));
        });
        pool.settle();
        (self.mined, self.before) = (None, None);
        self.down.clear();
        self.up.clear();
        self.next_id = 3;
        // The first words come at once: nothing can be mined before them.
        let text = pool.driver.with(|socket| std::mem::take(&mut socket.sent));
        self.down.push_back((pool.clock.now_us(), String::from_utf8(text).expect("ASCII")));
    }
}

/// One miner through `span_us`: its hashrate swings by up to 16 either way, jobs come every 30 s, every twentieth on a new block, and it comes back now and then.
fn run(seed: u64, span_us: u64, counts: &mut Counts) -> u64 {
    let memory = Arc::new(Memory::new(16));
    let mut pool = Pool::new(memory);
    let mut miner = Miner {
        random: Random(seed),
        hasty: seed.is_multiple_of(3),
        hashrate: WORK_MIDDLE * PER_MINUTE / 60.0,
        slot: 0,
        extranonce1: vec![],
        told: 0.0,
        mined: None,
        before: None,
        extranonce2: 0,
        next_id: 3,
        down: VecDeque::new(),
        up: VecDeque::new(),
        calm: 0,
    };
    pool.publish(true);
    miner.connect(&mut pool);
    let (mut job_us, mut look_us, mut swing_us, mut leave_us) = (START_US + 30_000_000, START_US, START_US, START_US + 5 * MINUTE_US);
    let end_us = START_US + span_us;
    loop {
        let now_us = pool.clock.now_us();
        if now_us >= end_us {
            break;
        }
        if now_us >= swing_us {
            miner.hashrate = WORK_MIDDLE * PER_MINUTE / 60.0 * 2f64.powf((miner.random.unit() - 0.5) * 8.0);
            swing_us = now_us + (miner.random.unit() * 300e6) as u64;
        }
        // Exponential waits have no memory: after any other event the next one may be drawn anew.
        let share_us = miner.mined.as_ref().map_or(u64::MAX, |held| {
            let work = Difficulty::clamped(held.difficulty).work().hashes() as f64;
            now_us + 1 + (-miner.random.unit().ln() * work / miner.hashrate * 1e6) as u64
        });
        let first = |queue: &VecDeque<(u64, String)>| queue.front().map_or(u64::MAX, |(at, _)| (*at).max(now_us));
        let next_us = [share_us, job_us, look_us, swing_us, leave_us, first(&miner.down), first(&miner.up), end_us];
        let next_us = next_us.into_iter().min().unwrap_or(end_us).max(now_us);
        pool.clock.advance(next_us - now_us);
        miner.hear(next_us, counts);
        if next_us == share_us {
            // One share in ten was in hand when the job changed.
            let in_hand = if miner.random.unit() < 0.1 { miner.before.clone() } else { None };
            if let Some(held) = in_hand.or_else(|| miner.mined.clone()) {
                miner.submit(&held, next_us, counts);
            }
        }
        while let Some((_, line)) = miner.up.pop_front_if(|(at, _)| *at <= next_us) {
            pool.driver.with(|socket| socket.events.push_back((Event::Bytes { slot: 0 }, line.into_bytes())));
            pool.settle();
        }
        if next_us >= job_us {
            job_us += 30_000_000;
            let new_block = miner.random.unit() < 0.05;
            pool.publish(new_block);
        }
        if next_us >= look_us {
            look_us += 1_000_000;
            pool.keep_house();
        }
        miner.post(&pool);
        if next_us >= leave_us {
            leave_us += 2 * MINUTE_US + (miner.random.unit() * 8.0 * MINUTE_US as f64) as u64;
            // Only a miner that has heard the last of it knows what it had.
            let on_its_way = miner.down.iter().any(|(_, text)| text.contains("set_difficulty"));
            let (had, calm) = (miner.told, miner.calm >= 30 && !on_its_way);
            miner.connect(&mut pool);
            miner.hear(pool.clock.now_us(), counts);
            if calm {
                counts.back += 1;
                counts.restored += u64::from((miner.told / had - 1.0).abs() < 1e-6);
            }
        }
        assert!(!pool.driver.with(|socket| socket.closed), "the pool closed an honest connection");
    }
    pool.keep_house();
    pool.retargets()
}

#[test]
fn a_swinging_hashrate_through_every_stage_costs_no_honest_share_and_comes_back_where_it_left() {
    let (wanted, span_us) = if is_long() { (100_000, 24 * 60 * MINUTE_US) } else { (600, 60 * MINUTE_US) };
    let (mut counts, mut retargets, mut runs) = (Counts::default(), 0, 0);
    for seed in 1.. {
        retargets += run(seed, span_us, &mut counts);
        runs += 1;
        if retargets >= wanted {
            break;
        }
    }
    let answered: u64 = counts.by_code.values().sum();
    let (accepted, stale) = (counts.by_code.get(&0).copied().unwrap_or(0), counts.by_code.get(&21).copied().unwrap_or(0));
    println!(
        "{runs} miners over {} h each: {retargets} retargets, {} honest shares, {accepted} accepted, {stale} stale by a new block, 0 refused as low difficulty; \
         {} of {} settled miners that came back started at the difficulty they had",
        span_us / MINUTE_US / 60,
        counts.shares,
        counts.restored,
        counts.back
    );
    // Answers on a broken link are never heard; all others are.
    assert!(answered * 100 >= counts.shares * 90, "{counts:?}");
    assert!(accepted * 100 >= answered * 97, "{counts:?}");
    assert!(counts.restored * 100 >= counts.back * 95 && counts.back >= runs, "{counts:?}");
}
