//! A farm on a thread of its own, for programs that bring their own miners, as a demonstration does.
use crate::engine::{Engine, EngineConfig, EngineError};
use crate::ledger::LedgerSink;
use crate::session::Behaviour;
use crate::totals::{LiveCounters, Quantiles, Totals};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long answers are waited for once the stop flag is set.
const DRAIN: Duration = Duration::from_secs(3);
/// How long the first job may take to come.
const SET_UP: Duration = Duration::from_secs(60);

/// A farm as it is ordered.
#[derive(Clone, Debug)]
pub struct FarmConfig {
    /// Where the server listens.
    pub target: SocketAddr,
    /// Connections to hold.
    pub connections: usize,
    /// What each does; mode, depth, seed, style, bad and repeated shares.
    pub behaviour: Behaviour,
    /// At most so many shares a second from each connection, so that a demonstration leaves the machine usable; 0 for no limit.
    pub shares_per_s_per_connection: f64,
    /// Connect again when a connection breaks.
    pub reconnect: bool,
    /// Where submits and their answers are written down.
    pub ledger: LedgerSink,
}

impl FarmConfig {
    /// 64 miners at depth 8 that mine as fast as they can, keep no ledger and come back when they are cut off.
    pub fn new(target: SocketAddr) -> Self {
        Self {
            target,
            connections: 64,
            behaviour: Behaviour::default(),
            shares_per_s_per_connection: 0.0,
            reconnect: true,
            ledger: LedgerSink::None,
        }
    }
}

/// Why a farm ended badly.
#[derive(Debug, thiserror::Error)]
pub enum FarmError {
    /// Sockets, ledger, server.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The operating system gave no thread.
    #[error("cannot start the farm's thread: {0}")]
    Thread(#[source] std::io::Error),
    /// The thread is gone without a summary.
    #[error("the farm's thread panicked")]
    Panicked,
}

/// What a farm did in its life.
#[derive(Clone, Debug, Default)]
pub struct FarmSummary {
    /// Counts; submits = accepted + rejected + unanswered.
    pub totals: Totals,
    /// Latencies over its whole life.
    pub latency_us: Quantiles,
    /// From the start to the stop flag.
    pub seconds: f64,
    /// From the start to the first accepted share; None if there was none.
    pub first_accepted: Option<Duration>,
    /// Text of a ledger that was kept in memory.
    pub ledger: Option<Vec<u8>>,
}

/// A farm at work.
#[derive(Debug)]
pub struct Farm {
    live: Arc<LiveCounters>,
    thread: JoinHandle<Result<FarmSummary, EngineError>>,
}

impl Farm {
    /// Starts it. Shares flow from each connection as soon as it has a job; the farm ends when `stop` is set (seen within 20 ms), waits up to 3 s for
    /// the last answers and closes.
    pub fn start(config: FarmConfig, stop: Arc<AtomicBool>) -> Result<Self, FarmError> {
        let live = Arc::new(LiveCounters::default());
        let published = Arc::clone(&live);
        let run = move || work(config, &published, &stop);
        let thread = std::thread::Builder::new().name("farm".into()).spawn(run).map_err(FarmError::Thread)?;
        Ok(Self { live, thread })
    }

    /// Counters to watch.
    pub fn live(&self) -> &Arc<LiveCounters> {
        &self.live
    }

    /// True once the thread has come to its end, with or without the stop flag.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for its end.
    pub fn join(self) -> Result<FarmSummary, FarmError> {
        match self.thread.join() {
            Ok(outcome) => Ok(outcome?),
            Err(_) => Err(FarmError::Panicked),
        }
    }
}

fn work(config: FarmConfig, live: &Arc<LiveCounters>, stop: &AtomicBool) -> Result<FarmSummary, EngineError> {
    let mut engine = Engine::new(EngineConfig {
        connections: config.connections,
        behaviour: config.behaviour,
        reconnect: config.reconnect,
        ledger: config.ledger,
        pace_shares_per_s: config.shares_per_s_per_connection,
        ..EngineConfig::new(config.target)
    })?;
    engine.publish_to(Arc::clone(live));
    engine.shared.latencies.recording = true;
    let started = Instant::now();
    // A year: the stop flag is what ends it.
    let worked = engine.set_up(SET_UP, true, stop).and_then(|()| engine.pump(started + Duration::from_secs(365 * 86_400), stop));
    let seconds = started.elapsed().as_secs_f64();
    if let Err(error) = worked.and_then(|()| engine.drain(DRAIN)) {
        // The ledger knows what was sent and answered until then: it is the witness of a server that died.
        engine.finish()?;
        return Err(error);
    }
    let ledger = engine.finish()?;
    // Relaxed: written by this thread.
    let first_us = live.first_accepted_us.load(Ordering::Relaxed);
    Ok(FarmSummary {
        totals: engine.shared.totals.clone(),
        latency_us: engine.shared.latencies.quantiles(),
        seconds,
        first_accepted: (first_us > 0).then(|| Duration::from_micros(first_us)),
        ledger,
    })
}
