//! The production stages under a seeded schedule: one thread, injected sockets, clock, journal and jobs. A failing seed is a bug report.
use otedama_kernels::Isa;
#[cfg(target_os = "linux")]
use otedama_pipeline::driver::UringDriver;
use otedama_pipeline::driver::{DoorSettings, Driver, Event, Listener, MioDriver, Slot};
use otedama_pipeline::metrics::{LogMetrics, NetMetrics, ValidateMetrics};
use otedama_pipeline::ring::{Full, Rx, Tx, ring};
use otedama_pipeline::stages::{
    Append, BlockBell, Histograms, IN_FLIGHT, Log, LogPorts, Net, NetPorts, NetSettings, Validate, ValidatePorts, ValidatedJob,
};
use otedama_pipeline::{Cores, Regime, Stage};
use otedama_primitives::{
    BlockCandidate, Coin, Difficulty, Dimension, Hash256, Job, ManualClock, RunId, ShareRow, ShareStatus, Submit, Target, Verdict,
};
use otedama_stratum::v1::{self, PublishedJob};
use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// xorshift64*: enough for schedules, and the same on every machine.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

#[derive(Default)]
struct Wire {
    events: VecDeque<(Event, Vec<u8>)>,
    sent: HashMap<Slot, Vec<u8>>,
    closed: HashSet<Slot>,
    /// What net said about the door, one word after another.
    door: Vec<bool>,
}

#[derive(Clone, Default)]
struct SimulatedWire(Arc<Mutex<Wire>>);

impl SimulatedWire {
    fn lock(&self) -> MutexGuard<'_, Wire> {
        self.0.lock().expect("one thread")
    }

    fn send(&self, event: Event, bytes: &[u8]) {
        self.lock().events.push_back((event, bytes.to_vec()));
    }
}

struct SimulatedDriver {
    wire: SimulatedWire,
    /// What the last polls found.
    ready: VecDeque<(Event, Vec<u8>)>,
    bytes: Vec<u8>,
}

impl SimulatedDriver {
    fn new(wire: &SimulatedWire) -> Self {
        Self { wire: wire.clone(), ready: VecDeque::new(), bytes: vec![] }
    }
}

impl Driver for SimulatedDriver {
    fn poll(&mut self, _: Duration) -> io::Result<()> {
        self.ready.extend(self.wire.lock().events.drain(..));
        Ok(())
    }

    fn event(&mut self) -> Option<Event> {
        let wire = self.wire.lock();
        loop {
            let (event, bytes) = self.ready.pop_front()?;
            if let Event::Bytes { slot } = event
                && wire.closed.contains(&slot)
            {
                continue;
            }
            self.bytes = bytes;
            return Some(event);
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn reply(&mut self, slot: Slot, bytes: &[u8]) {
        self.wire.lock().sent.entry(slot).or_default().extend_from_slice(bytes);
    }

    fn flush(&mut self) {}

    fn close(&mut self, slot: Slot) {
        self.wire.lock().closed.insert(slot);
    }

    fn accept(&mut self, open: bool) {
        self.wire.lock().door.push(open);
    }

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

#[derive(Default)]
struct Rows {
    rows: Vec<ShareRow>,
    sessions: HashSet<u32>,
    workers: HashSet<u64>,
    room: usize,
}

#[derive(Clone, Default)]
struct SimulatedJournal(Arc<Mutex<Rows>>);

impl SimulatedJournal {
    fn lock(&self) -> MutexGuard<'_, Rows> {
        self.0.lock().expect("one thread")
    }
}

impl Append for SimulatedJournal {
    fn room_cells(&self) -> usize {
        self.lock().room
    }

    fn append(&mut self, dimensions: &[Dimension], rows: &[ShareRow], _: &[Hash256]) {
        let mut log = self.lock();
        let cells = dimensions.len() * 4 + rows.len() + 1;
        assert!(cells <= log.room, "appended without room");
        log.room -= cells;
        for dimension in dimensions {
            match (dimension.as_session(), dimension.as_worker()) {
                (Some(session), _) => log.sessions.insert(session.session),
                (_, Some(worker)) => log.workers.insert(worker.worker.0),
                _ if dimension.as_version_mask().is_some_and(|mask| log.sessions.contains(&mask.session)) => true,
                _ => panic!("a dimension record that does not decode"),
            };
        }
        for row in rows {
            assert!(log.sessions.contains(&row.session), "session {} has a row before its record", row.session);
            assert!(row.worker == 0 || log.workers.contains(&row.worker), "worker {} has a row before its record", row.worker);
            log.rows.push(*row);
        }
    }

    fn is_full(&self) -> bool {
        false
    }
}

fn job(counter: u32, clean: bool) -> Job {
    Job {
        id: RunId::new(1, 0xab_cdef).job(counter),
        coin: Coin::Bitcoin,
        height: counter,
        prev_hash: Hash256([counter as u8; 32]),
        version: 0x2000_0000,
        nbits: 0x1d00_ffff,
        ntime: 1_700_000_000,
        ntime_min: 1_699_990_000,
        coinbase_prefix: [&[1u8; 60][..], &counter.to_be_bytes()].concat().into(),
        coinbase_suffix: vec![2; 90].into(),
        branch: vec![Hash256([3; 32]); 2].into(),
        extranonce2_bytes: 8,
        network_target: Target::from_compact(0x1d00_ffff).expect("difficulty 1"),
        clean,
        created_us: 1_700_000_000_000_000,
    }
}

/// One miner: what it sent, what it was told.
#[derive(Default)]
struct Miner {
    net: usize,
    slot: Slot,
    extranonce1: Option<String>,
    jobs: Vec<String>,
    read: usize,
    next_id: u64,
    /// (id, line) in the order sent.
    sent: VecDeque<(u64, String)>,
    credited: HashSet<String>,
    past: Vec<String>,
    answered: u64,
    closed: bool,
}

impl Miner {
    fn read(&mut self, wire: &SimulatedWire, seed: u64) {
        let wire = wire.lock();
        let Some(all) = wire.sent.get(&self.slot) else { return };
        while let Some(end) = all[self.read..].iter().position(|&byte| byte == b'\n') {
            let line = &all[self.read..self.read + end];
            self.read += end + 1;
            let value: serde_json::Value = serde_json::from_slice(line).expect("the server sends JSON");
            if value["method"] == "mining.notify" {
                if value["params"][8] == true {
                    self.jobs.clear();
                }
                self.jobs.push(value["params"][0].as_str().expect("job id").to_owned());
                continue;
            }
            match value["id"].as_u64() {
                Some(1) => self.extranonce1 = value["result"][1].as_str().map(str::to_owned),
                Some(id) if id >= 1000 => self.judge(id, value["error"][0].as_u64().unwrap_or(0), seed),
                _ => {}
            }
        }
        self.closed |= wire.closed.contains(&self.slot);
    }

    fn judge(&mut self, id: u64, code: u64, seed: u64) {
        let (expected, line) = self.sent.pop_front().expect("an answer has a question");
        assert_eq!(id, expected, "seed {seed}: answers come in the order of the submits");
        self.answered += 1;
        // A job that was sent again, two more digits in its id, is the same job: so is a share of it.
        let job_at = line.find("5151").expect("every job of these boots");
        let share = format!("{}{}", &line[..job_at + 8], &line[line[job_at..].find('"').map_or(job_at + 8, |end| job_at + end)..]);
        if code == 0 {
            assert!(self.credited.insert(share), "seed {seed}: credited twice: {line}");
            self.past.push(line);
        } else if code == 22 {
            assert!(self.credited.contains(&share), "seed {seed}: refused as a duplicate of nothing: {line}");
        }
    }

    /// A handful of submits, good, bad and repeated, as one run of bytes.
    fn submits(&mut self, dice: &mut Dice) -> Vec<u8> {
        let mut bytes = vec![];
        for _ in 0..dice.below(9) {
            let line = if !self.past.is_empty() && dice.one_in(4) {
                self.past[dice.below(self.past.len())].clone()
            } else {
                let job = &self.jobs[dice.below(self.jobs.len())];
                let version = if dice.one_in(20) { ",\"00000001\"" } else { "" };
                let ntime = if dice.one_in(20) { 1 } else { 1_700_000_000 };
                let worker = if dice.one_in(20) { "who" } else { "a.b" };
                format!(
                    "\"params\":[\"{worker}\",\"{job}\",\"{:016x}\",\"{ntime:08x}\",\"{:08x}\"{version}]",
                    dice.next() % 64,
                    dice.next() as u32 % 3
                )
            };
            // Twins in one segment now and then.
            for _ in 0..if dice.one_in(10) { 2 + dice.below(4) } else { 1 } {
                self.next_id += 1;
                bytes.extend_from_slice(format!("{{\"id\":{},\"method\":\"mining.submit\",{line}}}\n", self.next_id).as_bytes());
                self.sent.push_back((self.next_id, line.clone()));
            }
        }
        bytes
    }
}

/// Bytes that wait longer than this are overload.
const READ_WITHIN_US: u64 = 250_000;

type HistogramEnds = (Rx<Box<hdrhistogram::Histogram<u64>>>, Tx<Box<hdrhistogram::Histogram<u64>>>);

struct World {
    stages: Vec<Box<dyn Stage>>,
    clock: ManualClock,
    jobs_to_validate: Vec<Tx<Arc<ValidatedJob>>>,
    jobs_to_net: Vec<Tx<Arc<PublishedJob>>>,
    kept: Vec<(Arc<ValidatedJob>, Arc<PublishedJob>)>,
    next_job: u32,
    metrics: Vec<Arc<NetMetrics>>,
    /// Ends that nothing reads here.
    _ends: (Vec<Rx<BlockCandidate>>, Vec<HistogramEnds>),
}

/// A pipeline of one net per driver.
fn world<D: Driver + 'static, A: Append + 'static>(drivers: Vec<D>, journal: A, validates: usize, depth: usize, difficulty: f64) -> World {
    let clock = ManualClock::at(1_700_000_000_000_000);
    let nets = drivers.len();
    let nets_running = Arc::new(AtomicUsize::new(nets));
    let validates_running = Arc::new(AtomicUsize::new(validates));
    let next_session = Arc::new(AtomicU32::new(1));
    let cores = Cores { net: vec![0; nets], validate: vec![0; validates], log: 0, control: 0, stats: 0 };
    let mut world = World {
        stages: vec![],
        clock: clock.clone(),
        jobs_to_validate: vec![],
        jobs_to_net: vec![],
        kept: vec![],
        next_job: 1,
        metrics: vec![],
        _ends: (vec![], vec![]),
    };
    let mut submits_rx: Vec<Vec<Rx<Submit>>> = (0..validates).map(|_| vec![]).collect();
    let (mut answers_tx, mut names_rx) = (vec![], vec![]);
    for (net, driver) in drivers.into_iter().enumerate() {
        let mut submits = vec![];
        for lane in cores.lanes_of_net(net) {
            let (tx, rx, _) = ring("net_validate", depth, Full::Wait);
            submits.push(tx);
            submits_rx[lane].push(rx);
        }
        let (tx, answers, _) = ring("log_net", IN_FLIGHT, Full::Never);
        answers_tx.push(tx);
        let (names, rx, _) = ring("net_log", depth, Full::Wait);
        names_rx.push(rx);
        let (tx, jobs, _) = ring("chain_net", 64, Full::Wait);
        world.jobs_to_net.push(tx);
        let (full, full_rx, _) = ring("net_stats", 4, Full::Wait);
        let (empty_tx, empty, _) = ring("stats_net", 4, Full::Wait);
        world._ends.1.push((full_rx, empty_tx));
        let metrics = Arc::new(NetMetrics::default());
        world.metrics.push(metrics.clone());
        let settings = NetSettings {
            net: net as u8,
            session: v1::Settings {
                difficulty: Difficulty::clamped(difficulty),
                difficulty_min: Difficulty::clamped(0.0),
                ..v1::Settings::default()
            },
            connections_max: 64,
            line_bytes: 8192,
            authorize_within_us: u64::MAX,
            refused_per_s: u32::MAX,
            read_within_us: READ_WITHIN_US,
        };
        let latency = Histograms { full, empty };
        let ports = NetPorts {
            submits,
            answers,
            names,
            jobs,
            latency,
            metrics,
            next_session: next_session.clone(),
            nets_running: nets_running.clone(),
            log_full: Arc::default(),
        };
        world.stages.push(Box::new(Net::new(driver, clock.clone(), settings, ports, 99)));
    }
    let mut verdicts_rx = vec![];
    for submits in submits_rx {
        let (verdicts, rx, _) = ring::<Verdict>("validate_log", depth, Full::Wait);
        verdicts_rx.push(rx);
        let (blocks, rx, _) = ring("validate_chain", 64, Full::Flag);
        world._ends.0.push(rx);
        let (tx, jobs, _) = ring("chain_validate", 64, Full::Wait);
        world.jobs_to_validate.push(tx);
        let metrics = Arc::new(ValidateMetrics::default());
        let ports = ValidatePorts {
            submits,
            verdicts,
            hashes: None,
            blocks,
            block_bell: BlockBell::silent(),
            jobs,
            metrics,
            nets_running: nets_running.clone(),
            validates_running: validates_running.clone(),
        };
        world.stages.push(Box::new(Validate::new(Isa::Portable, 7, ports)));
    }
    let metrics = Arc::new(LogMetrics::default());
    let ports = LogPorts {
        verdicts: verdicts_rx,
        hashes: vec![],
        answers: answers_tx,
        names: names_rx,
        metrics,
        validates_running,
        answer_first: false,
        log_full: Arc::default(),
    };
    world.stages.push(Box::new(Log::new(journal, clock, ports)));
    world
}

impl World {
    fn publish_job(&mut self, clean: bool) {
        let room = self.jobs_to_validate.iter().map(Tx::room).chain(self.jobs_to_net.iter().map(Tx::room)).min();
        if room == Some(0) {
            return;
        }
        let job = job(self.next_job, clean);
        self.next_job += 1;
        let validated = Arc::new(ValidatedJob::new(&job));
        let published = Arc::new(PublishedJob::new(job, 0x5151_0000));
        for ring in &mut self.jobs_to_validate {
            assert!(ring.push(validated.clone()).is_ok());
        }
        for ring in &mut self.jobs_to_net {
            assert!(ring.push(published.clone()).is_ok());
        }
        self.kept.push((validated, published));
    }

    fn step(&mut self, index: usize) -> Regime {
        let regime = self.stages[index].step();
        self.stages[index].housekeeping();
        regime
    }

    fn overload_step(&self) -> u64 {
        self.metrics.iter().map(|metrics| read(&metrics.overload_step)).max().unwrap_or(0)
    }

    fn sum(&self, pick: impl Fn(&NetMetrics) -> u64) -> u64 {
        self.metrics.iter().map(|metrics| pick(metrics)).sum()
    }
}

fn read(value: &AtomicU64) -> u64 {
    value.load(Ordering::Relaxed)
}

fn simulate(seed: u64, nets: usize, validates: usize) {
    simulate_with_pause(seed, nets, validates, None);
}

/// While `paused` stands still, in the middle of the schedule, five seconds go by and miners go on sending. Gives the highest step of the measures against overload.
fn simulate_with_pause(seed: u64, nets: usize, validates: usize, paused: Option<usize>) -> u64 {
    let mut dice = Dice::new(seed);
    let depth = 1 << (1 + dice.below(5));
    // Difficulty 5e-10 is work 2: about half of the hashes are refused.
    let difficulty = if dice.one_in(2) { 5e-10 } else { 2.4e-10 };
    let wires: Vec<_> = (0..nets).map(|_| SimulatedWire::default()).collect();
    let journal = SimulatedJournal::default();
    let drivers = wires.iter().map(SimulatedDriver::new).collect();
    let mut world = world(drivers, journal.clone(), validates, depth, difficulty);
    let mut miners = vec![];
    let mut highest = 0;
    for index in 0..6 * nets {
        let (net, slot) = (index % nets, (index / nets) as Slot);
        let peer: SocketAddr = "127.0.0.1:1".parse().expect("address");
        wires[net].send(Event::Opened { slot, peer }, b"");
        let hello = b"{\"id\":1,\"method\":\"mining.subscribe\",\"params\":[\"sim/1\"]}\n{\"id\":2,\"method\":\"mining.authorize\",\"params\":[\"a.b\",\"x\"]}\n";
        wires[net].send(Event::Bytes { slot }, hello);
        miners.push(Miner { net, slot, next_id: 1000, ..Miner::default() });
    }
    for step in 0..1500 {
        let stage = dice.below(world.stages.len());
        let stands_still = paused.is_some() && (500..1000).contains(&step);
        if stands_still {
            if paused != Some(stage) {
                world.step(stage);
            }
            world.clock.advance(10_000);
        } else {
            world.step(stage);
            world.clock.advance(dice.below(50) as u64);
        }
        highest = highest.max(world.overload_step());
        if step == 3 || dice.one_in(60) {
            // Job storms come in bursts now and then.
            for _ in 0..if dice.one_in(10) { 12 } else { 1 } {
                let clean = dice.one_in(3);
                world.publish_job(clean);
            }
        }
        if dice.one_in(3) {
            let room = if dice.one_in(4) { 0 } else { 300 + dice.below(2000) };
            journal.lock().room = room;
        }
        let which = dice.below(miners.len());
        let miner = &mut miners[which];
        miner.read(&wires[miner.net], seed);
        if miner.closed || miner.extranonce1.is_none() || miner.jobs.is_empty() {
            continue;
        }
        let bytes = miner.submits(&mut dice);
        // Split at any byte.
        let cut = dice.below(bytes.len() + 1);
        wires[miner.net].send(Event::Bytes { slot: miner.slot }, &bytes[..cut]);
        wires[miner.net].send(Event::Bytes { slot: miner.slot }, &bytes[cut..]);
        if dice.one_in(400) {
            wires[miner.net].send(Event::Closed { slot: miner.slot }, b"");
            miner.closed = true;
        }
    }
    // Quiet: room for everything, every stage until nothing moves.
    journal.lock().room = usize::MAX / 2;
    let mut idle = 0;
    while idle < 3 {
        let moved = (0..world.stages.len()).filter(|&stage| world.step(stage) != Regime::CaughtUp).count();
        idle = if moved > 0 { 0 } else { idle + 1 };
    }
    check(&world, &wires, &journal, &mut miners, seed);
    // A quiet server takes every measure back, in a few seconds a step.
    for _ in 0..1_000 {
        if world.overload_step() + world.sum(|metrics| read(&metrics.session_doubled)) == 0 {
            break;
        }
        world.clock.advance(50_000);
        for stage in 0..world.stages.len() {
            world.step(stage);
        }
    }
    assert_eq!(world.overload_step(), 0, "seed {seed}");
    assert_eq!(world.sum(|metrics| read(&metrics.session_doubled)), 0, "seed {seed}: every difficulty is back");
    assert!(wires.iter().all(|wire| wire.lock().door.last().copied().unwrap_or(true)), "seed {seed}: every door is open");
    highest
}

fn check(world: &World, wires: &[SimulatedWire], journal: &SimulatedJournal, miners: &mut [Miner], seed: u64) {
    let received = world.sum(|metrics| read(&metrics.share_received));
    let accepted = world.sum(|metrics| read(&metrics.share_accepted));
    let in_flight = world.sum(|metrics| read(&metrics.share_in_flight));
    let refused = world.sum(|metrics| {
        let refusals =
            metrics.samples().into_iter().filter(|sample| sample.name.starts_with("share_") && sample.name.ends_with("_refused"));
        refusals.map(|sample| sample.value).sum()
    });
    let log = journal.lock();
    assert_eq!(received, accepted + refused + in_flight, "seed {seed}: conservation");
    assert_eq!(in_flight, 0, "seed {seed}: nothing is left in flight");
    assert_eq!(log.rows.len() as u64, received, "seed {seed}: one row per submit");
    let credited: Vec<_> = log.rows.iter().filter(|row| row.status == ShareStatus::Accepted as u8).collect();
    assert_eq!(credited.len() as u64, accepted, "seed {seed}: what was accepted is what was logged");
    let keys: HashSet<_> = credited.iter().map(|row| (row.session, row.job, row.extranonce2, row.ntime, row.nonce, row.version)).collect();
    assert_eq!(keys.len(), credited.len(), "seed {seed}: no header is credited twice");
    let mut answered = 0;
    for miner in miners {
        miner.read(&wires[miner.net], seed);
        answered += miner.answered;
        assert!(miner.closed || miner.sent.is_empty(), "seed {seed}: every submit of an open connection is answered");
    }
    assert!(answered <= received, "seed {seed}");
    assert!(received > 100, "seed {seed}: the schedule did something: {received}");
}

#[test]
fn nothing_is_lost_under_any_schedule() {
    let seeds = if std::env::var_os("OTEDAMA_LONG").is_some() { 10_000 } else { 100 };
    for seed in 1..=seeds {
        let (nets, validates) = [(1, 1), (2, 1), (1, 2), (2, 3), (3, 2)][seed as usize % 5];
        simulate(seed, nets, validates);
    }
}

#[test]
fn a_stage_that_stands_still_for_five_seconds_costs_no_share_whichever_it_is() {
    let seeds = if std::env::var_os("OTEDAMA_LONG").is_some() { 2_000 } else { 3 };
    for seed in 1..=seeds {
        let (nets, validates) = [(1, 1), (2, 1), (1, 2)][seed as usize % 3];
        for paused in 0..nets + validates + 1 {
            let highest = simulate_with_pause(seed, nets, validates, Some(paused));
            assert!(highest >= 1, "seed {seed}: five seconds without stage {paused} are overload somewhere");
        }
    }
}

/// Lines that the server sent to a slot, in order.
fn lines_of(wire: &SimulatedWire, slot: Slot) -> Vec<serde_json::Value> {
    let wire = wire.lock();
    let sent = wire.sent.get(&slot).map(Vec::as_slice).unwrap_or_default();
    sent.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).map(|line| serde_json::from_slice(line).expect("JSON")).collect()
}

/// Difficulties that the server sent to a slot. Each but the first stands right before a job: both leave in one write.
fn difficulties_of(wire: &SimulatedWire, slot: Slot) -> Vec<f64> {
    let lines = lines_of(wire, slot);
    let is_difficulty = |line: &serde_json::Value| line["method"] == "mining.set_difficulty";
    let at: Vec<usize> = (0..lines.len()).filter(|&index| is_difficulty(&lines[index])).collect();
    for &index in &at {
        assert_eq!(
            lines.get(index + 1).map(|line| &line["method"]),
            Some(&"mining.notify".into()),
            "slot {slot}: no job after a difficulty"
        );
    }
    at.into_iter().map(|index| lines[index]["params"][0].as_f64().expect("a number")).collect()
}

#[test]
fn overload_shuts_the_door_then_doubles_the_busiest_then_closes_the_worst_and_all_goes_back() {
    const START: f64 = 2.4e-10;
    let (wire, journal) = (SimulatedWire::default(), SimulatedJournal::default());
    journal.lock().room = usize::MAX / 2;
    let mut world = world(vec![SimulatedDriver::new(&wire)], journal.clone(), 1, 1 << 10, START);
    world.publish_job(true);
    let (busy, quiet, junk) = (0, 1, 2);
    for slot in [busy, quiet, junk] {
        wire.send(Event::Opened { slot, peer: SocketAddr::from(([127, 0, 0, 1], 1)) }, b"");
        let hello = b"{\"id\":1,\"method\":\"mining.subscribe\",\"params\":[\"sim/1\"]}\n{\"id\":2,\"method\":\"mining.authorize\",\"params\":[\"a.b\",\"x\"]}\n";
        wire.send(Event::Bytes { slot }, hello);
    }
    let mut steps = vec![];
    let mut number = 0_u64;
    // A quarter of a second a turn: whatever comes in one is read in the next, and so has waited too long.
    let mut turn = |world: &mut World, steps: &mut Vec<u64>, overloaded: bool| {
        world.clock.advance(if overloaded { READ_WITHIN_US + 1 } else { 20_000 });
        for (slot, shares) in [(busy, 20), (quiet, 1), (junk, 12)] {
            if !overloaded || wire.lock().closed.contains(&slot) {
                continue;
            }
            for _ in 0..shares {
                number += 1;
                // Junk names a job that never was.
                let job = if slot == junk { "00000000" } else { "51510001" };
                let line = format!(
                    "{{\"id\":1000,\"method\":\"mining.submit\",\"params\":[\"a.b\",\"{job}\",\"{number:016x}\",\"6553f100\",\"00000000\"]}}\n"
                );
                wire.send(Event::Bytes { slot }, line.as_bytes());
            }
        }
        for _ in 0..4 {
            for stage in 0..world.stages.len() {
                world.step(stage);
            }
        }
        let step = world.overload_step();
        if steps.last() != Some(&step) {
            steps.push(step);
        }
    };
    for _ in 0..100 {
        turn(&mut world, &mut steps, true);
    }
    assert_eq!(steps, [1, 2, 3, 4, 5, 6, 7, 8], "one measure after another");
    assert_eq!(wire.lock().door, [false]);
    let doubled = difficulties_of(&wire, busy);
    assert_eq!(doubled, (0..=6).map(|doublings| START * f64::from(1 << doublings)).collect::<Vec<_>>());
    assert_eq!(difficulties_of(&wire, quiet), [START], "who sends little is left alone");
    assert!(wire.lock().closed.contains(&junk) && !wire.lock().closed.contains(&busy) && !wire.lock().closed.contains(&quiet));
    let last = lines_of(&wire, junk).pop().expect("a last word");
    assert_eq!(last["method"], "client.show_message");
    assert!(last["params"][0].as_str().is_some_and(|why| why.contains("overloaded") && why.contains("refused")), "{last}");
    assert_eq!(world.sum(|metrics| read(&metrics.connection_closed_overload)), 1);

    steps.clear();
    for _ in 0..1_000 {
        turn(&mut world, &mut steps, false);
    }
    assert_eq!(steps.last(), Some(&0));
    assert_eq!(wire.lock().door, [false, true]);
    assert_eq!(difficulties_of(&wire, busy).last(), Some(&START), "the difficulty is what it was");
    assert_eq!(world.sum(|metrics| read(&metrics.session_doubled)), 0);
    assert_eq!(world.sum(|metrics| read(&metrics.unread_oldest_us)), 0);
    let received = world.sum(|metrics| read(&metrics.share_received));
    assert_eq!(journal.lock().rows.len() as u64, received, "whatever was read has its row");
}

/// A connection that says hello and then sends a fresh share and its twin for ever; its answers are counted and dropped.
struct Treadmill {
    hello: Vec<u8>,
    submits: Vec<u8>,
    /// Where the nonces of the two lines stand.
    nonce_at: [usize; 2],
    nonce: u32,
    events: u64,
    answered: Arc<AtomicU64>,
}

impl Driver for Treadmill {
    fn poll(&mut self, _: Duration) -> io::Result<()> {
        Ok(())
    }

    fn event(&mut self) -> Option<Event> {
        self.events += 1;
        match self.events {
            1 => return Some(Event::Opened { slot: 0, peer: SocketAddr::from(([127, 0, 0, 1], 1)) }),
            2 => return Some(Event::Bytes { slot: 0 }),
            _ => {}
        }
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        self.nonce += 1;
        for at in self.nonce_at {
            for (place, digit) in self.submits[at..at + 8].iter_mut().enumerate() {
                *digit = DIGITS[(self.nonce >> (28 - 4 * place)) as usize & 15];
            }
        }
        Some(Event::Bytes { slot: 0 })
    }

    fn bytes(&self) -> &[u8] {
        if self.events <= 2 { &self.hello } else { &self.submits }
    }

    fn reply(&mut self, _: Slot, bytes: &[u8]) {
        self.answered.fetch_add(bytes.iter().filter(|&&byte| byte == b'\n').count() as u64, Ordering::Relaxed);
    }

    fn flush(&mut self) {}

    fn close(&mut self, _: Slot) {}

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
        "treadmill"
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

#[test]
fn a_share_allocates_nothing_from_socket_to_answer() {
    let (treadmill, answered) = treadmill();
    let mut world = world(vec![treadmill], Sink, 1, 1 << 14, 2.4e-10);
    world.publish_job(true);
    let mut turn = |turns: usize| {
        for _ in 0..turns {
            for stage in 0..world.stages.len() {
                world.step(stage);
            }
        }
    };
    // Two turns take in hello and the first shares; buffers have their size from the start.
    turn(2);
    let before = answered.load(Ordering::Relaxed);
    let counted = allocation_counter::measure(|| turn(200));
    let shares = answered.load(Ordering::Relaxed) - before;
    assert!(shares > 10_000, "shares flowed: {shares}");
    assert_eq!(counted.count_total, 0, "allocations over {shares} shares");
    assert_eq!(
        world.sum(|metrics| read(&metrics.share_accepted)),
        world.sum(|metrics| read(&metrics.share_duplicate_refused)),
        "each twin was refused"
    );
}

/// Its polls fail as it is told to; then it is a treadmill.
struct Failing {
    errors: VecDeque<i32>,
    then: Treadmill,
}

impl Driver for Failing {
    fn poll(&mut self, timeout: Duration) -> io::Result<()> {
        self.errors.pop_front().map_or_else(|| self.then.poll(timeout), |code| Err(io::Error::from_raw_os_error(code)))
    }

    fn event(&mut self) -> Option<Event> {
        if self.errors.is_empty() { self.then.event() } else { None }
    }

    fn bytes(&self) -> &[u8] {
        self.then.bytes()
    }

    fn reply(&mut self, slot: Slot, bytes: &[u8]) {
        self.then.reply(slot, bytes);
    }

    fn flush(&mut self) {}

    fn close(&mut self, _: Slot) {}

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

    fn without_buffer(&self) -> u64 {
        17
    }

    fn name(&self) -> &'static str {
        "failing"
    }
}

const HELLO: &str =
    "{\"id\":1,\"method\":\"mining.subscribe\",\"params\":[]}\n{\"id\":2,\"method\":\"mining.authorize\",\"params\":[\"a.b\",\"\"]}\n";

/// A connection on its treadmill, and how many answers it has had.
fn treadmill() -> (Treadmill, Arc<AtomicU64>) {
    let answered = Arc::new(AtomicU64::new(0));
    let line = "{\"id\":7,\"method\":\"mining.submit\",\"params\":[\"a.b\",\"51510001\",\"0000000000000001\",\"6553f100\",\"00000000\"]}\n";
    let at = line.len() - "00000000\"]}\n".len();
    let treadmill = Treadmill {
        hello: HELLO.into(),
        submits: [line, line].concat().into(),
        nonce_at: [at, line.len() + at],
        nonce: 0,
        events: 0,
        answered: answered.clone(),
    };
    (treadmill, answered)
}

#[test]
fn failed_polls_are_counted_and_pass() {
    let (then, answered) = treadmill();
    // EBADF twice, ENOMEM, EBADF: two that are told.
    let driver = Failing { errors: [9, 9, 12, 9].into(), then };
    let mut world = world(vec![driver], Sink, 1, 1 << 14, 2.4e-10);
    world.publish_job(true);
    for failed in 1..=3 {
        world.step(0);
        assert_eq!(world.sum(|metrics| read(&metrics.poll_failed)), failed);
    }
    // The loop takes a failed wait for a wait: it neither spins on it nor sleeps beside it.
    assert!(world.stages[0].wait(Duration::from_millis(1)));
    for _ in 0..4 {
        for stage in 0..world.stages.len() {
            world.step(stage);
        }
    }
    assert_eq!(world.sum(|metrics| read(&metrics.poll_failed)), 4);
    assert!(answered.load(Ordering::Relaxed) > 0, "shares flow once polls go well");
    assert_eq!(world.sum(|metrics| read(&metrics.receive_unbuffered)), 17, "the driver's own count is exported");
}

/// Miners on real sockets, in a thread of their own: each sends a burst of fresh shares and reads as many answers, in rounds of all of them.
struct Sockets {
    peers: Vec<(TcpStream, BufReader<TcpStream>)>,
    number: u64,
}

impl Sockets {
    fn connect(address: SocketAddr, count: usize) -> Self {
        let connect = |_| {
            let stream = TcpStream::connect(address).expect("the server listens");
            stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
            stream.set_nodelay(true).expect("a socket");
            let reader = BufReader::new(stream.try_clone().expect("a descriptor"));
            (stream, reader)
        };
        Self { peers: (0..count).map(connect).collect(), number: 0 }
    }

    fn line_of(&mut self, peer: usize) -> String {
        let mut line = String::new();
        self.peers[peer].1.read_line(&mut line).expect("the server answers");
        line
    }

    fn hello(&mut self) {
        for peer in 0..self.peers.len() {
            self.peers[peer].0.write_all(HELLO.as_bytes()).expect("sent");
            while !self.line_of(peer).contains("mining.notify\",\"params\":[\"51510001") {}
        }
    }

    fn round(&mut self, burst: usize) {
        for peer in 0..self.peers.len() {
            let mut bytes = String::new();
            for _ in 0..burst {
                self.number += 1;
                let number = self.number;
                bytes += &format!(
                    "{{\"id\":7,\"method\":\"mining.submit\",\"params\":[\"a.b\",\"51510001\",\"{number:016x}\",\"6553f100\",\"00000000\"]}}\n"
                );
            }
            self.peers[peer].0.write_all(bytes.as_bytes()).expect("sent");
        }
        for peer in 0..self.peers.len() {
            for _ in 0..burst {
                let line = self.line_of(peer);
                assert!(line.contains("true"), "a fresh share is accepted: {line}");
            }
        }
    }
}

/// Bursts of one share up to what a net reads in a step; the longest come while nothing is counted yet as well.
const BURSTS: [usize; 6] = [32, 1, 3, 16, 1, 32];

fn a_share_allocates_nothing_over<D: Driver + 'static>(open: impl FnOnce(&Listener, DoorSettings) -> Option<D>) {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = socket.local_addr().expect("bound");
    let listener = Listener::new(vec![socket], 1).expect("non-blocking");
    let Some(driver) = open(&listener, DoorSettings { connections_max: 64, ..DoorSettings::default() }) else { return };
    let mut world = world(vec![driver], Sink, 1, 1 << 14, 2.4e-10);
    world.publish_job(true);
    // 0: warming up; 1: warm, and waiting to be counted; 2: counted; 3: done.
    let phase = Arc::new(AtomicUsize::new(0));
    let miners = std::thread::spawn({
        let phase = phase.clone();
        move || {
            let mut sockets = Sockets::connect(address, 40);
            sockets.hello();
            (0..4).for_each(|_| BURSTS.iter().for_each(|&burst| sockets.round(burst)));
            phase.store(1, Ordering::SeqCst);
            while phase.load(Ordering::SeqCst) == 1 {
                std::thread::yield_now();
            }
            (0..12).for_each(|_| BURSTS.iter().for_each(|&burst| sockets.round(burst)));
            phase.store(3, Ordering::SeqCst);
            // Open until all is counted: a connection that ends may cost memory, a share may not.
            sockets
        }
    });
    let mut turn_until = |wanted: usize| {
        while phase.load(Ordering::SeqCst) != wanted && !miners.is_finished() {
            let busy = (0..world.stages.len()).filter(|&stage| world.step(stage) != Regime::CaughtUp).count();
            if busy == 0 {
                world.stages[0].wait(Duration::from_millis(1));
            }
        }
        world.sum(|metrics| read(&metrics.share_accepted))
    };
    let before = turn_until(1);
    let mut after = 0;
    let counted = allocation_counter::measure(|| {
        phase.store(2, Ordering::SeqCst);
        after = turn_until(3);
    });
    drop(miners.join().expect("every share was answered with true"));
    let shares = after - before;
    assert!(shares >= 12 * 40 * BURSTS.iter().sum::<usize>() as u64, "shares flowed: {shares}");
    assert_eq!(counted.count_total, 0, "allocations of the thread of all stages over {shares} shares");
}

#[test]
#[cfg(target_os = "linux")]
fn a_share_over_real_sockets_allocates_nothing_with_io_uring() {
    a_share_allocates_nothing_over(|listener, settings| {
        if let Err(error) = UringDriver::probe() {
            eprintln!("skipped: {}", error.reason());
            return None;
        }
        Some(UringDriver::new(listener, 0, settings).expect("the probe passed"))
    });
}

#[test]
fn a_share_over_real_sockets_allocates_nothing_with_mio() {
    a_share_allocates_nothing_over(|listener, settings| Some(MioDriver::new(listener, 0, settings).expect("a selector")));
}
