//! The share path without sockets: Stratum V1 lines that lie in memory, through net, validate and log, to rows in a real journal and answers in memory.
use crate::stage::numbered_job;
use otedama_kernels::Isa;
use otedama_pipeline::Stage;
use otedama_pipeline::driver::{Driver, Event, Slot};
use otedama_pipeline::metrics::{LogMetrics, NetMetrics, ValidateMetrics};
use otedama_pipeline::ring::{Full, Rx, Tx, ring};
use otedama_pipeline::stages::{
    BlockBell, Histograms, IN_FLIGHT, JournalEnd, Log, LogPorts, Net, NetPorts, NetSettings, Validate, ValidatePorts, ValidatedJob,
};
use otedama_pipeline::sys::WallClock;
use otedama_primitives::{BlockCandidate, Clock, Difficulty, Dimension, RunId, Submit, Verdict};
use otedama_sharelog::{LogCounters, LogSettings, SealStep, ShareLog};
use otedama_stratum::v1::{self, PublishedJob};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Shares of a round.
pub const ROUND: usize = 16_384;
/// Connections that send them.
pub const CONNECTIONS: usize = 64;
/// Submits in one read of a connection.
pub const SUBMITS_PER_READ: usize = 32;
/// Rounds after which a job is replaced: well before its duplicate table is under pressure.
pub const ROUNDS_PER_JOB: usize = 16;
/// Rounds of each job before the clock runs.
const WARM_ROUNDS_PER_JOB: usize = 2;
/// How long to wait for the sealer, or for answers that are not coming.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the miners vary.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Traffic {
    /// A fresh extranonce2 for every share.
    FullWork,
    /// One extranonce2 a connection: only the nonce changes.
    KnownRoots,
}

/// Nanoseconds a share of one round, by stage.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    pub net_ns: f64,
    pub validate_ns: f64,
    pub log_ns: f64,
}

impl Round {
    /// All of it.
    pub fn total_ns(&self) -> f64 {
        self.net_ns + self.validate_ns + self.log_ns
    }
}

type Read = (Slot, Vec<u8>);

/// Reads come from a ring; answers are copied into the buffer of their connection, as a socket driver does, and counted.
struct Memory {
    reads: Rx<Read>,
    bytes: Vec<u8>,
    opened: usize,
    out: Vec<Vec<u8>>,
    answered: Arc<AtomicU64>,
    replies: u64,
}

impl Driver for Memory {
    fn poll(&mut self, _: Duration) -> io::Result<()> {
        Ok(())
    }

    fn event(&mut self) -> Option<Event> {
        if self.opened < CONNECTIONS {
            self.opened += 1;
            return Some(Event::Opened { slot: self.opened as Slot - 1, peer: ([127, 0, 0, 1], 1).into() });
        }
        let (slot, bytes) = self.reads.pop()?;
        self.bytes = bytes;
        Some(Event::Bytes { slot })
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn reply(&mut self, slot: Slot, bytes: &[u8]) {
        self.out[slot as usize].extend_from_slice(bytes);
        self.replies += 1;
    }

    fn flush(&mut self) {
        self.out.iter_mut().for_each(Vec::clear);
        // Relaxed: read by this thread.
        self.answered.store(self.replies, Ordering::Relaxed);
    }

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
        "memory"
    }
}

/// The sealer of the journal on a thread of its own, off the measured core where there is another.
struct SealerThread {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for SealerThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn start_sealer(mut sealer: otedama_sharelog::Sealer, clock: WallClock, measured_core: usize) -> SealerThread {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let thread = std::thread::spawn(move || {
        use rustix::thread::{CpuSet, sched_setaffinity};
        let mut others = CpuSet::new();
        (0..CpuSet::MAX_CPU).filter(|&core| core != measured_core).for_each(|core| others.set(core));
        // Refused where there is but one core: then it shares that one.
        let _ = sched_setaffinity(None, &others);
        while !stopped.load(Ordering::Acquire) {
            match sealer.step(clock.now_us()) {
                Ok(SealStep::Worked) => {}
                Ok(SealStep::Idle) => std::thread::sleep(Duration::from_millis(1)),
                Err(error) => {
                    eprintln!("sealing failed: {error}");
                    return;
                }
            }
        }
    });
    SealerThread { stop, thread: Some(thread) }
}

/// All stages of one core with the ends that this thread holds.
struct SharePath {
    net: Net<Memory, WallClock>,
    validate: Validate,
    log: Log<JournalEnd, WallClock>,
    reads: Tx<Read>,
    jobs_to_validate: Tx<Arc<ValidatedJob>>,
    jobs_to_net: Tx<Arc<PublishedJob>>,
    kept: Vec<(Arc<ValidatedJob>, Arc<PublishedJob>)>,
    newest: u32,
    metrics: Arc<NetMetrics>,
    answered: Arc<AtomicU64>,
    counters: Arc<LogCounters>,
    traffic: Traffic,
    number: u64,
    // Ends and files that must outlive the stages.
    _blocks: Rx<BlockCandidate>,
    _sealer: SealerThread,
    _dir: tempfile::TempDir,
}

impl SharePath {
    fn new(core: usize, isa: Isa, traffic: Traffic) -> Result<Self, String> {
        let clock = WallClock::new();
        let dir = tempfile::tempdir().map_err(|error| format!("a temporary folder for the journal: {error}"))?;
        let settings = LogSettings {
            dir: dir.path().to_owned(),
            pool: "benches".to_owned(),
            run: RunId::new(1, 2),
            segment_rows: 524_288,
            seal_after_ms: 600_000,
            max_bytes: 8 << 30,
            journal_file_bytes: 32 << 20,
            keep_ms: 1_000,
            keep_shipped_ms: 1_000,
            has_cursor: false,
            layout: otedama_sharelog::Layout::Replayable,
            rolls_up_when_full: false,
        };
        let (journal, sealer, _registry, counters) = ShareLog::open(settings).map_err(|error| format!("opening the journal: {error}"))?;
        let sealer = start_sealer(sealer, clock.clone(), core);
        let (reads, reads_rx, _) = ring("memory_net", ROUND, Full::Wait);
        let (submits, submits_rx, _) = ring::<Submit>("net_validate", 1 << 14, Full::Wait);
        let (answers_tx, answers, _) = ring("log_net", IN_FLIGHT, Full::Never);
        let (names, names_rx, _) = ring::<Dimension>("net_log", 1 << 12, Full::Wait);
        let (verdicts, verdicts_rx, _) = ring::<Verdict>("validate_log", 1 << 14, Full::Wait);
        let (blocks, blocks_rx, _) = ring("validate_chain", 64, Full::Flag);
        let (jobs_to_validate, validate_jobs, _) = ring("chain_validate", 64, Full::Wait);
        let (jobs_to_net, net_jobs, _) = ring("chain_net", 64, Full::Wait);
        let (full, _, _) = ring("net_stats", 2, Full::Wait);
        let (_, empty, _) = ring("stats_net", 2, Full::Wait);
        let (metrics, answered) = (Arc::new(NetMetrics::default()), Arc::new(AtomicU64::new(0)));
        let nets_running = Arc::new(AtomicUsize::new(1));
        let validates_running = Arc::new(AtomicUsize::new(1));
        let out = (0..CONNECTIONS).map(|_| Vec::with_capacity(1 << 20)).collect();
        let driver = Memory { reads: reads_rx, bytes: Vec::new(), opened: 0, out, answered: answered.clone(), replies: 0 };
        let least = Difficulty::clamped(0.0);
        let net_settings = NetSettings {
            net: 0,
            session: v1::Settings { difficulty: least, difficulty_min: least, ..v1::Settings::default() },
            connections_max: CONNECTIONS,
            line_bytes: 8192,
            authorize_within_us: u64::MAX,
            refused_per_s: u32::MAX,
            read_within_us: u64::MAX,
        };
        let net_ports = NetPorts {
            submits: vec![submits],
            answers,
            names,
            jobs: net_jobs,
            latency: Histograms { full, empty },
            metrics: metrics.clone(),
            next_session: Arc::new(AtomicU32::new(1)),
            nets_running: nets_running.clone(),
            log_full: Arc::default(),
        };
        let validate_ports = ValidatePorts {
            submits: vec![submits_rx],
            verdicts,
            hashes: None,
            blocks,
            block_bell: BlockBell::silent(),
            jobs: validate_jobs,
            metrics: Arc::new(ValidateMetrics::default()),
            nets_running,
            validates_running: validates_running.clone(),
        };
        let log_ports = LogPorts {
            verdicts: vec![verdicts_rx],
            hashes: vec![],
            answers: vec![answers_tx],
            names: vec![names_rx],
            metrics: Arc::new(LogMetrics::default()),
            validates_running,
            answer_first: false,
            log_full: Arc::default(),
        };
        let mut path = Self {
            net: Net::new(driver, clock.clone(), net_settings, net_ports, 99),
            validate: Validate::new(isa, 7, validate_ports),
            log: Log::new(JournalEnd::new(journal, Arc::default()), clock, log_ports),
            reads,
            jobs_to_validate,
            jobs_to_net,
            kept: Vec::new(),
            newest: 0,
            metrics,
            answered,
            counters,
            traffic,
            number: 0,
            _blocks: blocks_rx,
            _sealer: sealer,
            _dir: dir,
        };
        path.publish_job()?;
        let hello = "{\"id\":1,\"method\":\"mining.subscribe\",\"params\":[\"bench/1\"]}\n\
                     {\"id\":2,\"method\":\"mining.authorize\",\"params\":[\"farm.1\",\"x\"]}\n";
        for slot in 0..CONNECTIONS {
            path.feed(slot as Slot, hello.into())?;
        }
        path.settle();
        Ok(path)
    }

    fn feed(&mut self, slot: Slot, bytes: Vec<u8>) -> Result<(), String> {
        self.reads.push((slot, bytes)).map_err(|_| "the ring holds a round".to_owned())
    }

    /// Steps all stages until none has anything to do.
    fn settle(&mut self) {
        let mut quiet = 0;
        while quiet < 3 {
            let regimes = [self.net.step(), self.validate.step(), self.log.step()];
            quiet = if regimes.iter().all(|&regime| regime == otedama_pipeline::Regime::CaughtUp) { quiet + 1 } else { 0 };
        }
    }

    /// A new job for everybody, and the messages that go with it.
    fn publish_job(&mut self) -> Result<(), String> {
        self.newest += 1;
        let job = numbered_job(self.newest);
        let pair = (Arc::new(ValidatedJob::new(&job)), Arc::new(PublishedJob::new(job, 0)));
        let taken = self.jobs_to_validate.push(pair.0.clone()).is_ok() && self.jobs_to_net.push(pair.1.clone()).is_ok();
        self.kept.push(pair);
        self.settle();
        if taken { Ok(()) } else { Err("a job ring is full".to_owned()) }
    }

    /// Lays the lines of a round out in memory.
    fn prepare(&mut self) -> Result<(), String> {
        use std::fmt::Write;
        for read in 0..ROUND / SUBMITS_PER_READ {
            let slot = read % CONNECTIONS;
            let mut lines = String::with_capacity(SUBMITS_PER_READ * 128);
            for _ in 0..SUBMITS_PER_READ {
                self.number += 1;
                let extranonce2 = if self.traffic == Traffic::FullWork { self.number } else { 7 };
                let written = writeln!(
                    lines,
                    "{{\"id\":{},\"method\":\"mining.submit\",\"params\":[\"farm.1\",\"{:08x}\",\"{extranonce2:016x}\",\"{:08x}\",\"{:08x}\"]}}",
                    self.number % 100_000,
                    self.newest,
                    1_795_000_000,
                    self.number as u32,
                );
                debug_assert!(written.is_ok());
            }
            self.feed(slot as Slot, lines.into_bytes())?;
        }
        Ok(())
    }

    /// The journal has files in reserve: the sealer is not what is measured.
    fn await_sealer(&self) -> Result<(), String> {
        let start = Instant::now();
        while self.counters.journal_spares.load(Ordering::Relaxed) == 0 {
            if start.elapsed() > PATIENCE {
                return Err("the sealer makes no journal file ready".to_owned());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// One round: the stages in turn, as the run loop of one core has them, until every share is answered.
    fn round(&mut self) -> Result<Round, String> {
        self.prepare()?;
        self.await_sealer()?;
        let wanted = self.answered.load(Ordering::Relaxed) + ROUND as u64;
        let (mut net, mut validate, mut log) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
        let begun = Instant::now();
        let mut mark = begun;
        while self.answered.load(Ordering::Relaxed) < wanted {
            self.net.step();
            let after_net = Instant::now();
            self.validate.step();
            let after_validate = Instant::now();
            self.log.step();
            let after_log = Instant::now();
            net += after_net - mark;
            validate += after_validate - after_net;
            log += after_log - after_validate;
            mark = after_log;
            if mark - begun > PATIENCE {
                return Err(format!("{} of {ROUND} answers did not come", wanted - self.answered.load(Ordering::Relaxed)));
            }
        }
        self.net.housekeeping();
        self.validate.housekeeping();
        self.log.housekeeping();
        let per_share = |spent: Duration| spent.as_nanos() as f64 / ROUND as f64;
        Ok(Round { net_ns: per_share(net), validate_ns: per_share(validate), log_ns: per_share(log) })
    }
}

/// Runs rounds of shares through all stages on this thread's core, after short rounds over `warm_jobs` jobs that touch every duplicate table. Every share must
/// have been accepted.
pub fn run(core: usize, isa: Isa, traffic: Traffic, warm_jobs: usize, rounds: usize) -> Result<Vec<Round>, String> {
    let mut path = SharePath::new(core, isa, traffic)?;
    for _ in 0..warm_jobs {
        for _ in 0..WARM_ROUNDS_PER_JOB {
            path.round()?;
        }
        path.publish_job()?;
    }
    let mut measured = Vec::with_capacity(rounds);
    for round in 0..rounds {
        if round > 0 && round % ROUNDS_PER_JOB == 0 {
            path.publish_job()?;
        }
        measured.push(path.round()?);
    }
    let accepted = path.metrics.share_accepted.load(Ordering::Relaxed);
    let sent = ((WARM_ROUNDS_PER_JOB * warm_jobs + rounds) * ROUND) as u64;
    if accepted == sent { Ok(measured) } else { Err(format!("{accepted} of {sent} shares were accepted")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_a_round_becomes_an_accepted_row() {
        for traffic in [Traffic::FullWork, Traffic::KnownRoots] {
            let rounds = run(usize::MAX, Isa::Portable, traffic, 1, 1).unwrap();
            assert_eq!(rounds.len(), 1);
        }
    }
}
