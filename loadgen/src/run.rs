//! One command's worth of load: set-up, warm-up, measured windows, drain, and what came of it.
use crate::cpu::{self, ProcessClock};
use crate::engine::{Engine, EngineConfig, EngineError};
use crate::ledger::LedgerSink;
use crate::random;
use crate::report::RunReport;
use crate::statistics::Estimate;
use crate::totals::{Quantiles, Totals, empty_histogram};
use hdrhistogram::Histogram;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Length of one turn when two targets take turns.
const TURN: Duration = Duration::from_millis(500);
/// How long answers are waited for once nothing more is sent.
const DRAIN: Duration = Duration::from_secs(3);
/// The same between two turns.
const DRAIN_TURN: Duration = Duration::from_millis(250);

/// Hashes of a share from which on a run is warned that it will send next to nothing: about a second of a core.
const HARD_HASHES: u64 = 4_000_000;

/// What to run.
#[derive(Clone, Debug)]
pub struct RunConfig {
    /// The farm.
    pub engine: EngineConfig,
    /// Length of a measured window.
    pub window: Duration,
    /// Load before the first window.
    pub warmup: Duration,
    /// Measured windows, at least 1.
    pub repeat: u32,
    /// Stop after so many submits, warm-up included.
    pub shares: Option<u64>,
    /// The server's process, whose CPU time is read around each window.
    pub server_pid: Option<u32>,
    /// A second server to take turns with, and its process.
    pub against: Option<(SocketAddr, Option<u32>)>,
    /// How long connections may take until all are ready.
    pub set_up_limit: Duration,
    /// Breaks every connection so often within a window and waits until all are back.
    pub storm_every: Option<Duration>,
    /// With `against`: differences up to this are no finding; 0.01 is one per cent.
    pub tolerance: f64,
}

impl RunConfig {
    /// One window of ten seconds after one second of warm-up.
    pub fn new(engine: EngineConfig) -> Self {
        Self {
            engine,
            window: Duration::from_secs(10),
            warmup: Duration::from_secs(1),
            repeat: 1,
            shares: None,
            server_pid: None,
            against: None,
            set_up_limit: Duration::from_secs(30),
            storm_every: None,
            tolerance: 0.01,
        }
    }
}

/// One measured stretch.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Window {
    /// Wall time.
    pub seconds: f64,
    /// Answers that came.
    pub answered: u64,
    /// CPU time of the server, where its process is known.
    pub server_cpu_s: Option<f64>,
    /// CPU time of the farm's thread, without what it spun through waiting.
    pub client_cpu_s: f64,
    /// Time in which the farm waited for the server or for the next share to be due.
    pub blocked_s: f64,
}

impl Window {
    /// Answers per second.
    pub fn shares_per_s(&self) -> f64 {
        ratio(self.answered as f64, self.seconds).unwrap_or(0.0)
    }

    /// Answers per second of the server's CPU time.
    pub fn shares_per_cpu_s(&self) -> Option<f64> {
        self.server_cpu_s.and_then(|cpu| ratio(self.answered as f64, cpu))
    }

    /// Adds a stretch that came after this one.
    pub fn add(&mut self, other: &Self) {
        self.seconds += other.seconds;
        self.answered += other.answered;
        self.server_cpu_s = match (self.server_cpu_s, other.server_cpu_s) {
            (Some(one), Some(two)) => Some(one + two),
            (one, two) => one.or(two),
        };
        self.client_cpu_s += other.client_cpu_s;
        self.blocked_s += other.blocked_s;
    }
}

/// Two targets that took turns.
#[derive(Clone, Debug)]
pub struct Pairing {
    /// The other target.
    pub target: SocketAddr,
    /// `cpu` when rates are shares per CPU-second of the servers, `wall` when they are shares per second.
    pub per: &'static str,
    /// Target over the other.
    pub estimate: Estimate,
    /// What `estimate` stands on: both rates of each pair of turns, in their order.
    pub pairs: Vec<(f64, f64)>,
    /// The same by shares per second of wall time, whatever `per` says.
    pub estimate_wall: Estimate,
    /// All turns of the other target.
    pub against: Window,
    /// Counts of the other target.
    pub totals: Totals,
    /// Latencies of the other target.
    pub histogram: Histogram<u64>,
    /// Latencies of the target and of the other in each round, microseconds.
    pub rounds: Vec<(Quantiles, Quantiles)>,
}

/// How late an open loop was.
#[derive(Clone, Debug)]
pub struct Lateness {
    /// From the time a share was due to its write, microseconds.
    pub histogram: Histogram<u64>,
    /// Shares that were due within a measured or warm-up stretch and never got written.
    pub behind: u64,
}

pub(crate) fn ratio(of: f64, to: f64) -> Option<f64> {
    (to > 0.0).then(|| of / to)
}

struct Mark {
    at: Instant,
    answered: u64,
    server_cpu_s: Option<f64>,
    client_cpu_s: f64,
    blocked: Duration,
}

fn client_cpu_s(engine: &Engine) -> f64 {
    cpu::thread_seconds() - engine.spun().as_secs_f64()
}

impl Mark {
    fn now(engine: &Engine, server: Option<ProcessClock>) -> Self {
        Self {
            at: Instant::now(),
            answered: engine.shared.totals.answered(),
            server_cpu_s: server.and_then(|server| server.seconds()),
            client_cpu_s: client_cpu_s(engine),
            blocked: engine.blocked(),
        }
    }

    /// From here to now. A server that was killed and started again within has another process: its CPU time is then unknown.
    fn window(&self, engine: &Engine, server: Option<ProcessClock>) -> Window {
        let server_now = server.and_then(|server| server.seconds());
        Window {
            seconds: self.at.elapsed().as_secs_f64(),
            answered: engine.shared.totals.answered() - self.answered,
            server_cpu_s: self.server_cpu_s.zip(server_now).map(|(from, to)| to - from),
            client_cpu_s: (client_cpu_s(engine) - self.client_cpu_s).max(0.0),
            blocked_s: (engine.blocked() - self.blocked).as_secs_f64(),
        }
    }
}

/// Runs the farm to its end. The stop flag ends it early, with a drain and a report.
pub fn run(config: RunConfig, stop: &AtomicBool) -> Result<RunReport, EngineError> {
    run_when(config, stop, |_| true)
}

/// The same; `ready` is asked once all connections are up, with the seconds that took, and may wait. When it says no, nothing is sent.
pub fn run_when(config: RunConfig, stop: &AtomicBool, ready: impl FnOnce(f64) -> bool) -> Result<RunReport, EngineError> {
    let started = Instant::now();
    let mut engine = Engine::new(config.engine.clone())?;
    let server = config.server_pid.map(ProcessClock::new).transpose()?;
    let set_up_limit = config.set_up_limit + config.engine.ramp;
    engine.set_up(set_up_limit, false, stop)?;
    let mut other = match config.against {
        None => None,
        Some((target, pid)) => {
            let mut other = Engine::new(EngineConfig { target, ledger: LedgerSink::None, ..config.engine.clone() })?;
            other.set_up(set_up_limit, false, stop)?;
            Some((other, pid.map(ProcessClock::new).transpose()?))
        }
    };
    let set_up_s = started.elapsed().as_secs_f64();
    // One write: the processes of a farm share this stream, and standard error would pass on piece by piece.
    let line = format!("ready: {} connections to {} in {set_up_s:.2} s\n", engine.ready(), config.engine.target);
    let _ = std::io::stderr().write_all(line.as_bytes());
    engine.shared.submits_left = config.shares.unwrap_or(u64::MAX);
    if !ready(set_up_s) {
        engine.shared.submits_left = 0;
    }

    if let Some(hashes) = engine.hashes_per_share().filter(|hashes| *hashes > HARD_HASHES && config.engine.behaviour.first_connection == 0)
    {
        eprintln!(
            "warning: at the target's difficulty a share takes {hashes} hashes on average, which are seconds to hours of this core; lower its difficulty, or use --mode junk"
        );
    }

    let mut windows = Vec::new();
    let mut pairing = None;
    let loaded = match &mut other {
        None => pump_windows(&config, &mut engine, server, &mut windows, stop),
        Some((other, other_server)) => take_turns(&config, (&mut engine, server), (other, *other_server), stop).map(|(own, taken)| {
            windows.push(own);
            pairing = Some(taken);
        }),
    };
    if let Err(error) = loaded {
        // The ledger knows what was sent and answered until then: it is the witness of a server that died.
        engine.finish()?;
        return Err(error);
    }
    engine.drain(DRAIN)?;
    let trouble = engine.trouble().to_owned();
    let ledger = engine.finish()?;
    let histogram = match &pairing {
        Some(taken) => taken.0.clone(),
        None => engine.shared.latencies.take(),
    };
    let lateness = engine.lateness().map(|(histogram, behind)| Lateness { histogram: histogram.clone(), behind });
    let outages_s = engine.outages_s().to_vec();
    let totals = engine.shared.totals.clone();
    let pairing = match (other, pairing) {
        (Some((mut other, _)), Some((_, mut taken))) => {
            other.drain(DRAIN)?;
            other.finish()?;
            // The other is a yardstick and may be one that accepts everything: its wrong answers are its own.
            taken.totals = other.shared.totals.clone();
            Some(taken)
        }
        _ => None,
    };
    Ok(RunReport { config, totals, windows, histogram, lateness, set_up_s, outages_s, ledger, pairing, trouble, processes: 1 })
}

/// Warm-up and measured windows of a single target.
fn pump_windows(
    config: &RunConfig,
    engine: &mut Engine,
    server: Option<ProcessClock>,
    windows: &mut Vec<Window>,
    stop: &AtomicBool,
) -> Result<(), EngineError> {
    engine.pump(Instant::now() + config.warmup, stop)?;
    for _ in 0..config.repeat.max(1) {
        if engine.shared.submits_left == 0 || stop.load(Ordering::Relaxed) {
            break;
        }
        let mark = Mark::now(engine, server);
        engine.shared.latencies.recording = true;
        pump_through_storms(config, engine, mark.at + config.window, stop)?;
        engine.shared.latencies.recording = false;
        windows.push(mark.window(engine, server));
    }
    Ok(())
}

/// Load until `until`; with storms, every connection breaks at once every so often, and all of them come back before the next time.
fn pump_through_storms(config: &RunConfig, engine: &mut Engine, until: Instant, stop: &AtomicBool) -> Result<(), EngineError> {
    let Some(every) = config.storm_every else { return engine.pump(until, stop) };
    loop {
        engine.pump(until.min(Instant::now() + every), stop)?;
        if Instant::now() >= until || stop.load(Ordering::Relaxed) || engine.shared.submits_left == 0 {
            return Ok(());
        }
        let broken = Instant::now();
        engine.break_all();
        // By the pump: an open loop goes on meanwhile and books what had no connection to leave by.
        while engine.ready() < config.engine.connections && !stop.load(Ordering::Relaxed) {
            if broken.elapsed() >= config.set_up_limit {
                return Err(engine.not_ready(broken.elapsed()));
            }
            engine.pump(Instant::now() + Duration::from_millis(2), stop)?;
        }
    }
}

/// Turns of half a second in pairs; who goes first is drawn from the seed, so that neither a drift nor a rhythm of the machine favours one.
fn take_turns(
    config: &RunConfig,
    (engine, server): (&mut Engine, Option<ProcessClock>),
    (other, other_server): (&mut Engine, Option<ProcessClock>),
    stop: &AtomicBool,
) -> Result<(Window, (Histogram<u64>, Pairing)), EngineError> {
    let turn = |engine: &mut Engine, server| -> Result<Window, EngineError> {
        let mark = Mark::now(engine, server);
        engine.shared.latencies.recording = true;
        engine.pump(mark.at + TURN, stop)?;
        engine.shared.latencies.recording = false;
        engine.drain(DRAIN_TURN)?;
        Ok(mark.window(engine, server))
    };
    let warmup = config.warmup.div_f64(2.0);
    for engine in [&mut *engine, &mut *other] {
        engine.pump(Instant::now() + warmup, stop)?;
        engine.drain(DRAIN_TURN)?;
    }
    let pairs_a_round = ((config.window.as_secs_f64() / (2.0 * TURN.as_secs_f64())).ceil() as usize).max(1);
    let (mut own_sum, mut other_sum) = (Window::default(), Window::default());
    let (mut by_wall, mut by_cpu_s, mut rounds) = (Vec::new(), Vec::new(), Vec::new());
    let (mut own_histogram, mut other_histogram) = (empty_histogram(), empty_histogram());
    let mut state = random::mix(config.engine.behaviour.seed);
    let by_cpu = server.is_some() && other_server.is_some();
    'rounds: for _ in 0..config.repeat.max(1) {
        for _ in 0..pairs_a_round {
            if stop.load(Ordering::Relaxed) {
                break 'rounds;
            }
            let clocks = [server, other_server].map(|server| (server, server.and_then(|server| server.seconds())));
            let (mut own, mut others) = if random::next(&mut state).is_multiple_of(2) {
                let own = turn(engine, server)?;
                (own, turn(other, other_server)?)
            } else {
                let others = turn(other, other_server)?;
                (turn(engine, server)?, others)
            };
            // What a server does for its shares while the other is asked, such as sealing them, is its own CPU time as well.
            for (window, (server, from)) in [&mut own, &mut others].into_iter().zip(clocks) {
                window.server_cpu_s = from.zip(server.and_then(|server| server.seconds())).map(|(from, to)| to - from);
            }
            own_sum.add(&own);
            other_sum.add(&others);
            by_wall.push((own.shares_per_s(), others.shares_per_s()));
            by_cpu_s.extend(own.shares_per_cpu_s().zip(others.shares_per_cpu_s()));
        }
        let (one, two) = (engine.shared.latencies.take(), other.shared.latencies.take());
        rounds.push((Quantiles::of(&one), Quantiles::of(&two)));
        // Both are of the same bounds: adding cannot fail.
        let _ = own_histogram.add(one);
        let _ = other_histogram.add(two);
    }
    let estimate_wall = Estimate::of_pairs(&by_wall);
    let pairing = Pairing {
        target: config.against.map_or(config.engine.target, |(target, _)| target),
        per: if by_cpu { "cpu" } else { "wall" },
        estimate: if by_cpu { Estimate::of_pairs(&by_cpu_s) } else { estimate_wall },
        pairs: if by_cpu { by_cpu_s } else { by_wall },
        estimate_wall,
        against: other_sum,
        totals: Totals::default(),
        histogram: other_histogram,
        rounds,
    };
    Ok((own_sum, (own_histogram, pairing)))
}
