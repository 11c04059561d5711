//! Puts the crates together: the share path on its cores, and around it chain, sealer, shipper and stats on the control and stats cores.
use crate::capture::{Capture, CaptureFailure, CaptureOrder, Drawn, JobTurn, JobTurns, PatientPractice, Replay};
use crate::config::{self, Ack, Config, RowLayout, WhenFull};
use crate::jobs::{CandidatesFromLog, JobDesk, PoolSink, lock};
use crate::stats::StatsServer;
use crate::stats_source::PoolStats;
use crate::topology::{Boot, lay_out};
use otedama_chain::node::rpc::{RpcNodes, RpcSettings};
use otedama_chain::{AssemblerSettings, ChainSettings, ChainStats, Command, Network, NodeRpc, Practice, PracticeSettings};
use otedama_kernels::Isa;
use otedama_pipeline::Rx;
use otedama_pipeline::driver::{Captured, Choice, DoorSettings, Driver, DriverError, Drivers, Listener};
use otedama_pipeline::fail_point::Pause;
use otedama_pipeline::metrics::{CaptureMetrics, NetMetrics, ValidateMetrics};
use otedama_pipeline::stages::{BlockBell, DUPLICATE_PRESSURE, JournalEnd, NetSettings};
use otedama_pipeline::sys::{WallClock, allowed_cores, ask_for_huge_pages_alone, pin_to_core};
use otedama_pipeline::{Cores, Running};
use otedama_primitives::{BlockCandidate, Clock, Difficulty, RunId};
use otedama_sharelog::store::SegmentStore;
use otedama_sharelog::{Layout, LogSettings, LoggedRow, PackStep, Packer, RunRecord, SealStep, Sealer, ShareLog, SyncStep, Syncer};
use otedama_shipper::{Shipper, ShipperSettings, ShipperState};
use otedama_stratum::v1;
use otedama_stratum::vardiff::{Learning, Memory, Policy};
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, watch};

/// Bytes of one journal file: half a million rows, or fewer where `log.max_bytes` is small, as four of them and their rows as segments have to fit into half of it.
pub fn journal_file_bytes(max_bytes: u64) -> u64 {
    (max_bytes / 24 / 4096 * 4096).clamp(2 << 20, 32 << 20)
}

/// Seal after this long where nobody ships: by rows or ten minutes.
const SEAL_ALONE_MS: u64 = 600_000;
/// How often the control core looks at duplicate tables and job rings. Candidates ring a bell. A lane at two million shares a second takes the rest of its newest
/// table, past the three quarters at which a new job is asked for, in some fifty milliseconds.
const CONTROL_TICK: Duration = Duration::from_millis(10);
/// The same while something waits that had no room, and where captured jobs are due by the lines that were taken.
const CONTROL_TICK_BUSY: Duration = Duration::from_millis(1);
/// Block candidates on their way to the chain task. While they are so many, those behind wait on their rings, and those behind these in the log.
pub const CANDIDATES_WAITING: usize = 1024;
/// Rows on their way from the sealer to the chain thread whose candidate found its ring full. While they are so many the sealer waits.
pub const FLAGGED_WAITING: usize = 1 << 14;
/// Commands on their way to the chain task: those for a new job are one, and the one to stop is given again until it is taken.
const COMMANDS_WAITING: usize = 16;
/// Candidates taken from the log in one tick.
const FLAGGED_PER_TICK: usize = 512;
/// A lane whose newest duplicate table has grown by this since a new job was asked for asks again.
const ASK_AGAIN_AFTER: u64 = 8192;
/// The largest nice value.
const LEAST_PRIORITY: i32 = 19;
/// How often the sealer looks at the journal when it has caught up.
const SEALER_TICK: Duration = Duration::from_millis(5);
/// How often the sync thread looks for new rows: at most this is added to the wait for a disk, which takes milliseconds.
const SYNC_TICK: Duration = Duration::from_micros(100);
/// The same once nothing has come for a while.
const SYNC_TICK_AT_REST: Duration = Duration::from_millis(1);
/// Looks without news after which the sync thread rests.
const SYNC_LOOKS: u32 = 1000;
/// Pause before a new file is tried after the disk refused one.
const SYNC_RETRY: Duration = Duration::from_millis(200);
/// A replay renews no job by the clock.
const REFRESH_NEVER_S: u64 = 1_000_000_000;
/// The log-full check and clock corrections.
const SLOW_TICK: Duration = Duration::from_millis(100);
/// What the kernel holds for a connection in each direction at most, as it is asked for; Linux allows twice as much, half of it for its own bookkeeping. A thousand
/// shares: more is no miner's burst but a server that does not keep up, and then the sender shall wait, not the kernel's memory fill.
pub const SOCKET_BUFFER_BYTES: usize = 128 << 10;
/// Connections waiting to be accepted.
const LISTEN_BACKLOG: i32 = 4096;
/// Time for the shipper to hand over what is sealed at a stop.
const SHIP_AT_STOP: Duration = Duration::from_secs(5);

/// Why a pool could not start, with the exit code that goes with it.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct StartError {
    what: String,
    /// 2 config, 3 environment.
    pub code: u8,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl StartError {
    fn config(what: impl Into<String>) -> Self {
        Self { what: what.into(), code: 2, source: None }
    }

    fn environment(what: impl Into<String>, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self { what: what.into(), code: 3, source: Some(Box::new(source)) }
    }
}

impl From<CaptureFailure> for StartError {
    fn from(failure: CaptureFailure) -> Self {
        Self { what: failure.to_string(), code: failure.exit_code(), source: None }
    }
}

/// What is done with the wire of a pool beside serving it.
#[derive(Debug, Default)]
pub struct Wire {
    /// Write it down.
    pub capture: Option<CaptureOrder>,
    /// Serve as a captured pool did.
    pub replay_of: Option<Replay>,
}

/// A running pool.
pub struct Pool {
    running: Running,
    driver: &'static str,
    stats: Arc<PoolStats>,
    stats_server: StatsServer,
    stop_control: Arc<AtomicBool>,
    stop_chain: Arc<AtomicBool>,
    stop_shipper: watch::Sender<bool>,
    chain: JoinHandle<()>,
    sealer: JoinHandle<bool>,
    packer: Option<JoinHandle<()>>,
    /// Tier `disk`.
    sync: Option<JoinHandle<()>>,
    shipper: Option<JoinHandle<()>>,
    capture: Option<Capture>,
    capture_writers: Vec<JoinHandle<bool>>,
    listening: Vec<SocketAddr>,
    started: Instant,
}

/// What a drained pool reports.
#[derive(Debug)]
pub struct Drained {
    /// Every stage ended in order, and every row is in a segment.
    pub clean: bool,
    /// The last figures.
    pub snapshot: crate::stats::Snapshot,
}

/// The layout that a config asks for on the cores there are.
pub fn cores_of(config: &Config) -> Result<Cores, StartError> {
    let allowed = allowed_cores().map_err(|error| StartError::environment("reading which cores this process may run on", error))?;
    let auto = Cores::auto(&allowed);
    let list = |cores: &config::Cores, auto: Vec<usize>| match cores {
        config::Cores::Auto => auto,
        config::Cores::List(list) => list.clone(),
    };
    let one = |name: &str, cores: &config::Cores, auto: usize| match list(cores, vec![auto]).as_slice() {
        [core] => Ok(*core),
        more => Err(StartError::config(format!("[layout] {name} names {} cores; it runs on one", more.len()))),
    };
    let layout = &config.layout;
    let cores = Cores {
        net: list(&layout.net, auto.net),
        validate: list(&layout.validate, auto.validate),
        log: one("log", &layout.log, auto.log)?,
        control: one("control", &layout.control, auto.control)?,
        stats: one("stats", &layout.stats, auto.stats)?,
    };
    cores.check(&allowed).map_err(|error| StartError::config(error.to_string()))?;
    Ok(cores)
}

fn listen(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, StartError> {
    addresses
        .iter()
        .map(|address| {
            let failed = |error| StartError::environment(format!("[stratum] cannot listen on {address}"), error);
            let listener = bind(*address).map_err(failed)?;
            // std listens with a backlog of 128: a farm that reconnects at once needs more.
            rustix::net::listen(&listener, LISTEN_BACKLOG).map_err(|error| failed(error.into()))?;
            // Every accepted socket has these from its listener. Set, they do not grow to the megabytes that the kernel allows.
            let bounded = set_socket_recv_buffer_size(&listener, SOCKET_BUFFER_BYTES)
                .and_then(|()| set_socket_send_buffer_size(&listener, SOCKET_BUFFER_BYTES));
            bounded.map_err(|error| failed(error.into()))?;
            Ok(listener)
        })
        .collect()
}

/// How long an address may stay taken by a process that is no more.
const ADDRESS_FREES_WITHIN: Duration = Duration::from_secs(3);

/// Binds. The kernel takes io_uring's sockets from a killed process on a worker thread of its own, some milliseconds after the process is gone: a server that
/// is started again at once finds its own address in use for that long.
fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let since = Instant::now();
    loop {
        match TcpListener::bind(address) {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && since.elapsed() < ADDRESS_FREES_WITHIN => {
                std::thread::sleep(Duration::from_millis(2));
            }
            done => return done,
        }
    }
}

fn payout_script(config: &Config) -> Result<Vec<u8>, StartError> {
    let chain = &config.chain;
    if chain.is_practice() {
        return if chain.payout_address.is_empty() {
            Ok(otedama_chain::practice_payout_script())
        } else {
            otedama_chain::practice::payout_script(&chain.payout_address).map_err(|error| StartError::config(error.to_string()))
        };
    }
    otedama_chain::payout_script(network_of(config)?, &chain.payout_address).map_err(|error| StartError::config(error.to_string()))
}

fn network_of(config: &Config) -> Result<Network, StartError> {
    let label = config.chain.network.name();
    Network::from_label(label).ok_or_else(|| StartError::config(format!("[chain] network \"{label}\" is not known")))
}

/// Settings of the coinbase; refuses an address of another network and a tag that is too long. `check` and `serve` judge by this.
pub fn assembler_settings(config: &Config) -> Result<AssemblerSettings, StartError> {
    let settings = AssemblerSettings {
        payout_script: payout_script(config)?,
        tag: config.chain.coinbase_tag.clone(),
        extranonce2_bytes: config.stratum.extranonce2_bytes,
    };
    otedama_chain::coinbase::check(&settings.tag, settings.extranonce2_bytes, &settings.payout_script)
        .map_err(|error| StartError::config(error.to_string()))?;
    Ok(settings)
}

/// Settings of the shipper; None without `[clickhouse] url`.
pub fn shipper_settings(config: &Config) -> Option<ShipperSettings> {
    let clickhouse = &config.clickhouse;
    let mut settings = ShipperSettings::new(clickhouse.url.clone()?);
    settings.database = clickhouse.database.clone();
    settings.user = clickhouse.user.clone();
    settings.password = clickhouse.password.expose().to_owned();
    settings.create_tables = clickhouse.create_tables;
    settings.inserts_in_flight = usize::from(clickhouse.inserts_in_flight);
    settings.pool = config.pool.name.clone();
    settings.instance = config.pool.instance;
    settings.pace.drain = SHIP_AT_STOP;
    Some(settings)
}

/// The share log's name for `[log] row`.
pub fn layout_of(row: RowLayout) -> Layout {
    match row {
        RowLayout::Lean => Layout::Lean,
        RowLayout::Replayable => Layout::Replayable,
        RowLayout::Full => Layout::Full,
        RowLayout::Rollup => Layout::Rollup,
    }
}

fn log_settings(config: &Config, run: RunId) -> LogSettings {
    let ships = config.clickhouse.url.is_some();
    LogSettings {
        dir: config.log.dir.clone(),
        pool: config.pool.name.clone(),
        run,
        segment_rows: config.log.segment_rows,
        seal_after_ms: if ships { config.log.seal_after_ms } else { SEAL_ALONE_MS },
        max_bytes: config.log.max_bytes,
        journal_file_bytes: otedama_killpoint::journal_file_bytes(journal_file_bytes(config.log.max_bytes)),
        keep_ms: config.log.keep_s.saturating_mul(1000),
        keep_shipped_ms: config.log.keep_shipped_s.saturating_mul(1000),
        has_cursor: ships,
        layout: layout_of(config.log.row),
        rolls_up_when_full: config.log.when_full == WhenFull::Rollup,
    }
}

/// What sessions are told; from the config. Called once: its clones share one memory of workers.
fn session_settings(config: &Config) -> v1::Settings {
    let difficulty = Difficulty::clamped(config.stratum.difficulty);
    let least = Difficulty::clamped(config.vardiff.min.min(config.stratum.difficulty));
    let most = Difficulty::clamped(config.vardiff.max);
    let learning = config.vardiff.enabled.then(|| Learning {
        policy: Policy::new(config.vardiff.target_shares_per_minute, least, most),
        memory: Arc::new(Memory::new(Memory::WORKERS)),
    });
    v1::Settings {
        pool: config.pool.name.as_str().into(),
        learning,
        difficulty,
        difficulty_min: least,
        difficulty_max: most,
        version_mask: config.stratum.version_mask,
        extranonce2_bytes: config.stratum.extranonce2_bytes,
        workers_max: config.stratum.max_workers_per_connection as usize,
        ..v1::Settings::default()
    }
}

/// 64 random bits from the operating system, by way of the standard library's hash keys.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// The fail points that a test has set in the environment.
fn fail_points() -> Result<Vec<Pause>, StartError> {
    let Some(text) = std::env::var_os(Pause::VARIABLE) else { return Ok(vec![]) };
    let pauses = Pause::parse(&text.to_string_lossy()).map_err(|error| StartError::config(format!("{}: {error}", Pause::VARIABLE)))?;
    eprintln!("warning: {} is set: this is a test, stages of this server will stop: {pauses:?}", Pause::VARIABLE);
    Ok(pauses)
}

/// What `[layout] driver` asks for.
pub fn choice_of(config: &Config) -> Choice {
    match config.layout.driver {
        config::Driver::Auto => Choice::Auto,
        config::Driver::Mio => Choice::Mio,
        config::Driver::Uring => Choice::Uring,
    }
}

/// The kernels that `[layout] isa` names, if this CPU runs them.
fn chosen_isa(name: &str) -> Result<Isa, StartError> {
    Isa::choose(name).ok_or_else(|| {
        let available = Isa::available().iter().map(|isa| format!("\"{}\"", isa.name())).collect::<Vec<_>>().join(", ");
        StartError::config(format!("[layout] isa = \"{name}\": this CPU does not have it; use \"auto\" or one of {available}"))
    })
}

/// The captures of all nets, as they begin.
struct Captures<'a> {
    core: usize,
    started: Instant,
    writers: &'a mut Vec<JoinHandle<bool>>,
    metrics: &'a mut Vec<Arc<CaptureMetrics>>,
}

impl Captures<'_> {
    /// Wraps every driver, and starts the thread that writes its file.
    fn of<D: Driver>(&mut self, drivers: Vec<D>, capture: &mut Capture) -> Result<Vec<Captured<D>>, StartError> {
        let mut captured = Vec::with_capacity(drivers.len());
        for (driver, net) in drivers.into_iter().zip(0..) {
            let (driver, writer, metrics) = Captured::new(driver, net, self.started, capture.bytes_max);
            captured.push(driver);
            self.writers.push(spawn(&format!("capture:{net}"), self.core, capture.writing(writer))?);
            self.metrics.push(metrics);
        }
        Ok(captured)
    }
}

impl Pool {
    /// Starts everything. `started` is when the process began, for `listening_ms`.
    pub fn start(config: &Config, started: Instant, wire: Wire) -> Result<Self, StartError> {
        ask_for_huge_pages_alone();
        let cores = cores_of(config)?;
        if let Some(replay) = &wire.replay_of {
            replay.check(config, cores.net.len())?;
        }
        let is_replay = wire.replay_of.is_some();
        let drawn = wire.replay_of.as_ref().map_or_else(|| Drawn { epoch: random() as u32, salt: random() as u32 }, Replay::drawn);
        let mut capture = match &wire.capture {
            Some(order) => Some(Capture::create(order, config, drawn, cores.net.len())?),
            None => None,
        };
        let assembler = assembler_settings(config)?;
        let isa = chosen_isa(config.layout.isa.name())?;
        let clock = WallClock::new();
        let run = RunId::new(config.pool.instance, drawn.epoch);
        let listeners = listen(&config.stratum.listen)?;
        let listening = listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect::<Vec<_>>();
        let stats_listener = TcpListener::bind(config.stats.listen)
            .map_err(|error| StartError::environment(format!("[stats] cannot listen on {}", config.stats.listen), error))?;

        let log_failed = |error: otedama_sharelog::LogError| {
            let code = error.exit_code();
            StartError { what: format!("opening the share log in {}", config.log.dir.display()), code, source: Some(Box::new(error)) }
        };
        let open = if config.log.ack == Ack::Disk { ShareLog::open_synced } else { ShareLog::open };
        let (journal, mut sealer, registry, log_counters) = open(log_settings(config, run)).map_err(log_failed)?;
        let syncer = sealer.take_sync();
        let packer = sealer.take_packer(config.log.compress_after_s.saturating_mul(1000));

        let nets = cores.net.len();
        let shared = Listener::new(listeners, nets).map_err(|error| StartError::environment("preparing the listening sockets", error))?;
        let network = |list: &[config::Cidr]| list.iter().map(|cidr| (cidr.address, cidr.prefix_bits)).collect::<Vec<_>>();
        let door = DoorSettings {
            connections_max: config.stratum.max_connections as usize,
            connects_per_ip_per_s: config.limits.connects_per_ip_per_s,
            allow: network(&config.limits.allow),
            deny: network(&config.limits.deny),
        };
        let (drivers, why_mio) = Drivers::open(choice_of(config), &shared, nets, &door).map_err(|error| match error {
            DriverError::Mio(_) => StartError::environment("opening the sockets' driver", error),
            asked_for => StartError { what: chain_of(&asked_for), code: 2, source: None },
        })?;
        if let Some(why) = why_mio {
            eprintln!("note: driver mio, as io_uring cannot be used: {why}");
        }
        let (driver, wakers) = (drivers.name(), drivers.wakers());
        registry
            .run(&RunRecord {
                run,
                started_us: clock.now_us(),
                build: env!("CARGO_PKG_VERSION").to_owned(),
                kernel: isa.label().to_owned(),
                driver: driver.to_owned(),
                tier: config.log.ack.name().to_owned(),
                pool: config.pool.name.clone(),
            })
            .map_err(log_failed)?;

        let settings = NetSettings {
            net: 0,
            session: session_settings(config),
            connections_max: config.stratum.max_connections as usize,
            line_bytes: config.limits.line_bytes as usize,
            // A replay may be quicker than what was captured: what is a limit in time would be another one.
            authorize_within_us: if is_replay { u64::MAX } else { config.limits.authorize_within_s.saturating_mul(1_000_000) },
            refused_per_s: if is_replay { u32::MAX } else { config.limits.refused_per_s },
            read_within_us: if is_replay { u64::MAX } else { config.limits.read_within_ms.saturating_mul(1000) },
        };
        let log_full: Arc<AtomicBool> = Arc::default();
        let candidate_found = Arc::new(Notify::new());
        let block_bell = BlockBell::new({
            let candidate_found = candidate_found.clone();
            move || candidate_found.notify_one()
        });
        let answer_first = config.log.ack == Ack::Memory;
        let boot = Boot {
            clock: clock.clone(),
            isa,
            seed: random(),
            answer_first,
            keeps_hashes: config.log.row == RowLayout::Full,
            block_bell,
            fail_points: fail_points()?,
        };
        let journal = JournalEnd::new(journal, log_full.clone());
        let (mut capture_writers, mut capture_metrics) = (Vec::new(), Vec::new());
        let mut captures = Captures { core: cores.control, started, writers: &mut capture_writers, metrics: &mut capture_metrics };
        let (topology, ends) = match (drivers, &mut capture) {
            (Drivers::Mio(drivers), None) => lay_out(&cores, drivers, &settings, journal, &boot),
            (Drivers::Mio(drivers), Some(capture)) => lay_out(&cores, captures.of(drivers, capture)?, &settings, journal, &boot),
            #[cfg(target_os = "linux")]
            (Drivers::Uring(drivers), None) => lay_out(&cores, drivers, &settings, journal, &boot),
            #[cfg(target_os = "linux")]
            (Drivers::Uring(drivers), Some(capture)) => lay_out(&cores, captures.of(drivers, capture)?, &settings, journal, &boot),
        };
        let running = topology.start().map_err(|error| StartError::environment("starting the share path", error))?;

        let chain_stats: Arc<ChainStats> = Arc::default();
        let desk = Arc::new(Mutex::new(JobDesk::new(ends.jobs_to_validate, ends.jobs_to_net, wakers, drawn.salt)));
        let source = source_of(config, &clock, is_replay)?;
        let replay = match (wire.replay_of, &source) {
            (Some(replay), Source::Patient(practice)) => {
                let nets = ends.net_metrics.clone();
                Some(ReplayedJobs { turns: replay.into_turns(), practice: practice.0.clone(), nets })
            }
            _ => None,
        };
        let stats = Arc::new(PoolStats::new(
            config,
            &running,
            driver,
            isa,
            clock.clone(),
            ends.net_metrics,
            capture_metrics,
            ends.validate_metrics.clone(),
            ends.log_metrics,
            ends.latencies,
            log_counters,
            chain_stats.clone(),
            listening.clone(),
        ));
        let stats_core = cores.stats;
        let stats_server = StatsServer::start(stats_listener, stats.clone(), move || pin_softly(stats_core))
            .map_err(|error| StartError::environment("starting the stats endpoint", error))?;

        let (commands, command_rx) = mpsc::channel(COMMANDS_WAITING);
        let (candidates, candidate_rx) = mpsc::channel(CANDIDATES_WAITING);
        let (stop_control, stop_chain) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let job_owed: Arc<AtomicBool> = Arc::default();
        let (flagged, flagged_rows) = mpsc::channel(FLAGGED_WAITING);
        let flagged = FlaggedRows { rows: flagged, bell: candidate_found.clone() };
        let chain = ChainThread {
            core: cores.control,
            settings: ChainSettings {
                run,
                network: if config.chain.is_practice() { Network::Main } else { network_of(config)? },
                assembler,
                poll_ms: config.chain.poll_ms,
                refresh_s: if is_replay { REFRESH_NEVER_S } else { config.chain.refresh_s },
            },
            sink: PoolSink::new(desk.clone(), registry.clone(), clock.clone(), job_owed.clone()),
            clock: clock.clone(),
            stats: chain_stats,
            candidate_rx,
            command_rx,
            candidate_found,
            watch: ShareWatch {
                desk: desk.clone(),
                blocks: ends.blocks,
                candidates,
                commands,
                stop: stop_chain.clone(),
                job_owed,
                pool_stats: stats.clone(),
                validate_metrics: ends.validate_metrics,
                asked_at: vec![0; cores.validate.len()],
                from_log: CandidatesFromLog::new(config.log.dir.clone(), desk, registry),
                flagged_rows,
                replay,
            },
        };
        let chain = chain.start(source)?;
        let sync = match syncer {
            Some(syncer) => Some(start_sync(syncer, cores.control, stop_control.clone())?),
            None => None,
        };
        let sealer = start_sealer(sealer, flagged, log_full, clock, cores.control, stop_control.clone())?;
        let packer = match packer {
            Some(packer) => Some(start_packer(packer, cores.control, stop_control.clone())?),
            None => None,
        };
        let (stop_shipper, shipper_stop) = watch::channel(false);
        let shipper = match shipper_settings(config) {
            Some(settings) => Some(start_shipper(settings, config.log.dir.clone(), stats.shipper(), shipper_stop, cores.control)?),
            None => None,
        };
        Ok(Self {
            running,
            driver,
            stats,
            stats_server,
            stop_control,
            stop_chain,
            stop_shipper,
            chain,
            sealer,
            packer,
            sync,
            shipper,
            capture,
            capture_writers,
            listening,
            started,
        })
    }

    /// Where miners connect.
    pub fn stratum(&self) -> &[SocketAddr] {
        &self.listening
    }

    /// The sockets' driver: `uring` or `mio`.
    pub fn driver(&self) -> &'static str {
        self.driver
    }

    /// Where the stats endpoint is.
    pub fn stats_address(&self) -> SocketAddr {
        self.stats_server.address()
    }

    /// The capture of the wire, where one is made.
    pub fn capture(&self) -> Option<&Capture> {
        self.capture.as_ref()
    }

    /// The figures.
    pub fn stats(&self) -> &Arc<PoolStats> {
        &self.stats
    }

    /// When the process began.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// False when a stage or a control thread has ended by itself: nothing but a bug or a failed disk does that.
    pub fn is_alive(&self) -> bool {
        let syncs = self.sync.as_ref().is_none_or(|sync| !sync.is_finished());
        self.running.is_alive() && syncs && !self.sealer.is_finished() && !self.chain.is_finished()
    }

    /// Drains: no new work, every share in flight is answered and logged, every row sealed, then what is sealed is shipped for a few seconds.
    pub fn stop(mut self) -> Drained {
        self.stats.set_draining();
        let stages_clean = self.running.join();
        // A capture that failed has said so; the pool is not worse for it.
        self.capture_writers.into_iter().for_each(|writer| drop(writer.join()));
        self.stop_control.store(true, Ordering::Release);
        let synced = self.sync.is_none_or(|sync| sync.join().is_ok());
        let sealed = self.sealer.join().unwrap_or(false);
        // What it has in hand it leaves as it was: nothing of the log hangs on it.
        self.packer.into_iter().for_each(|packer| drop(packer.join()));
        // Every candidate is on a ring or has been read from the log by now: the watch hands them all on before it stops the chain.
        self.stop_chain.store(true, Ordering::Release);
        let chain_clean = self.chain.join().is_ok();
        let _ = self.stop_shipper.send(true);
        let shipper_clean = self.shipper.is_none_or(|shipper| shipper.join().is_ok());
        let snapshot = crate::stats::StatsSource::snapshot(&*self.stats);
        self.stats_server.stop();
        Drained { clean: stages_clean && synced && sealed && chain_clean && shipper_clean, snapshot }
    }
}

/// Pins a control or stats thread; a refused pin costs nothing but placement.
fn pin_softly(core: usize) {
    if let Err(error) = pin_to_core(core) {
        eprintln!("warning: could not pin to core {core}: {error}; running unpinned");
    }
}

fn spawn<T: Send + 'static>(name: &str, core: usize, work: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>, StartError> {
    let pinned = move || {
        pin_softly(core);
        work()
    };
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(pinned)
        .map_err(|error| StartError::environment(format!("starting the {name} thread"), error))
}

fn runtime() -> Result<tokio::runtime::Runtime, StartError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| StartError::environment("starting an event loop", error))
}

/// Where templates come from.
enum Source {
    Practice(Practice<WallClock>),
    Patient(PatientPractice<WallClock>),
    Nodes(RpcNodes),
}

fn source_of(config: &Config, clock: &WallClock, is_replay: bool) -> Result<Source, StartError> {
    let chain = &config.chain;
    if chain.is_practice() {
        let block_s = if is_replay { 0 } else { chain.practice_block_s };
        let settings = PracticeSettings { block_s, ..PracticeSettings::default() };
        let practice = Practice::new(settings, clock.clone()).map_err(|error| StartError::config(error.to_string()))?;
        return Ok(if is_replay { Source::Patient(PatientPractice(practice)) } else { Source::Practice(practice) });
    }
    let settings = RpcSettings {
        urls: chain.rpc.clone(),
        user: chain.user.clone(),
        password: chain.password.expose().to_owned(),
        cookie_file: chain.cookie_file.clone().unwrap_or_default(),
        ..RpcSettings::default()
    };
    RpcNodes::new(settings).map(Source::Nodes).map_err(|error| StartError::config(error.to_string()))
}

/// The jobs of a captured pool, when their time has come.
struct ReplayedJobs {
    turns: JobTurns,
    practice: Practice<WallClock>,
    nets: Vec<Arc<NetMetrics>>,
}

/// What the control core watches of the share path: candidates, duplicate tables, job rings.
struct ShareWatch {
    desk: Arc<Mutex<JobDesk>>,
    blocks: Vec<Rx<BlockCandidate>>,
    candidates: mpsc::Sender<BlockCandidate>,
    commands: mpsc::Sender<Command>,
    /// Set once nothing new can come.
    stop: Arc<AtomicBool>,
    validate_metrics: Vec<Arc<ValidateMetrics>>,
    /// Shares in a lane's newest table when a new job was last asked for; 0 when it is not under pressure.
    asked_at: Vec<u64>,
    from_log: CandidatesFromLog,
    flagged_rows: mpsc::Receiver<LoggedRow>,
    /// Set while a job could not be recorded, and so is owed to the miners.
    job_owed: Arc<AtomicBool>,
    pool_stats: Arc<PoolStats>,
    /// Set where jobs come as they were captured: then nothing else asks for one.
    replay: Option<ReplayedJobs>,
}

impl ShareWatch {
    /// Asks for a new job. Where so many commands wait that this one has no room, one of them asks already.
    fn want_job(&self) {
        let _ = self.commands.try_send(Command::NewJobWanted);
    }

    /// True when something waits that had no room.
    fn tick(&mut self) -> bool {
        // Looked at before the rings are. Acquire pairs with the Release after stages and sealer have ended: what they left is seen below.
        let is_last = self.stop.load(Ordering::Acquire);
        for ring in &mut self.blocks {
            while self.candidates.capacity() > 0
                && let Some(candidate) = ring.pop()
            {
                // The chain task may have ended: then the flagged row is what remains.
                let _ = self.candidates.try_send(candidate);
            }
            ring.publish();
        }
        // Bounded, as the chain task shares this thread.
        for _ in 0..FLAGGED_PER_TICK {
            if self.candidates.capacity() == 0 {
                break;
            }
            let Ok(row) = self.flagged_rows.try_recv() else { break };
            if let Some(candidate) = self.from_log.rebuild(&row) {
                let _ = self.candidates.try_send(candidate);
            }
        }
        let waits = !self.flagged_rows.is_empty() || self.blocks.iter().any(|ring| ring.available() > 0);
        if let Some(replay) = &mut self.replay {
            let lines = replay.nets.iter().map(|net| net.line_received.load(Ordering::Relaxed)).sum();
            match replay.turns.next(lines, lock(&self.desk).newest_sent()) {
                None => {}
                Some(JobTurn::Again) => self.want_job(),
                Some(JobTurn::Blocks(count)) => (0..count).for_each(|_| replay.practice.mine_elsewhere()),
            }
        }
        let mut is_wanted = false;
        let lanes = if self.replay.is_some() { &[][..] } else { &self.validate_metrics[..] };
        for (metrics, asked) in lanes.iter().zip(&mut self.asked_at) {
            let used = metrics.duplicate_table_newest_used.load(Ordering::Relaxed);
            if used < DUPLICATE_PRESSURE as u64 {
                *asked = 0;
            } else if *asked == 0 || used >= *asked + ASK_AGAIN_AFTER {
                *asked = used;
                is_wanted = true;
            }
        }
        if is_wanted {
            self.want_job();
        }
        lock(&self.desk).tick();
        if is_last && !waits {
            // Without room for it now it is given at the next tick.
            let _ = self.commands.try_send(Command::Stop);
        }
        waits
    }

    /// Once a second: latencies are taken in, and a job that could not be recorded is asked for again.
    fn slow_tick(&mut self) {
        self.pool_stats.collect();
        if self.job_owed.load(Ordering::Relaxed) {
            self.want_job();
        }
    }
}

/// The thread of the chain task, with everything it takes along.
struct ChainThread {
    core: usize,
    settings: ChainSettings,
    sink: PoolSink<WallClock>,
    clock: WallClock,
    stats: Arc<ChainStats>,
    candidate_rx: mpsc::Receiver<BlockCandidate>,
    command_rx: mpsc::Receiver<Command>,
    /// Rung by the validate stages.
    candidate_found: Arc<Notify>,
    watch: ShareWatch,
}

impl ChainThread {
    fn start(self, source: Source) -> Result<JoinHandle<()>, StartError> {
        let runtime = runtime()?;
        let core = self.core;
        spawn("chain", core, move || match source {
            Source::Practice(practice) => runtime.block_on(self.run(practice)),
            Source::Patient(practice) => runtime.block_on(self.run(practice)),
            Source::Nodes(nodes) => runtime.block_on(self.run(nodes)),
        })
    }

    async fn run<N: NodeRpc>(self, nodes: N) {
        let mut watch = self.watch;
        let clock = self.clock.clone();
        let candidate_found = self.candidate_found;
        let ticking = async move {
            let mut last_slow = Instant::now();
            let mut last_second = Instant::now();
            let calm = if watch.replay.is_some() { CONTROL_TICK_BUSY } else { CONTROL_TICK };
            let mut waits = false;
            loop {
                // While something waits the bell has been heard: it would only ring again.
                tokio::select! {
                    () = tokio::time::sleep(if waits { CONTROL_TICK_BUSY } else { calm }) => {}
                    () = candidate_found.notified(), if !waits => {}
                }
                waits = watch.tick();
                if last_slow.elapsed() >= SLOW_TICK {
                    last_slow = Instant::now();
                    clock.resync();
                }
                if last_second.elapsed() >= Duration::from_secs(1) {
                    last_second = Instant::now();
                    watch.slow_tick();
                }
            }
        };
        let chain = otedama_chain::run(self.settings, nodes, self.sink, self.clock, self.stats, self.candidate_rx, self.command_rx);
        tokio::select! {
            ended = chain => if let Err(error) = ended {
                eprintln!("error: the chain task ended: {error}");
            },
            () = ticking => {}
        }
    }
}

/// Where the sealer puts the block candidates that found their ring full.
struct FlaggedRows {
    rows: mpsc::Sender<LoggedRow>,
    /// Wakes the chain thread.
    bell: Arc<Notify>,
}

impl FlaggedRows {
    /// Waits for room: a candidate is never lost, and the sealer is no share core. Where it waits for long the journal fills, and then miners wait.
    fn put(&self, row: LoggedRow) {
        if let Err(mpsc::error::TrySendError::Full(row)) = self.rows.try_send(row) {
            self.bell.notify_one();
            // Nobody listens any more when the pool has stopped; the row stays flagged in the log.
            let _ = self.rows.blocking_send(row);
        }
        self.bell.notify_one();
    }
}

fn start_sealer(
    mut sealer: Sealer,
    flagged: FlaggedRows,
    log_full: Arc<AtomicBool>,
    clock: WallClock,
    core: usize,
    stop: Arc<AtomicBool>,
) -> Result<JoinHandle<bool>, StartError> {
    sealer.on_block_row(move |row| {
        if row.flags & otedama_primitives::flags::FROM_LOG != 0 {
            flagged.put(*row);
        }
    });
    spawn("sealer", core, move || {
        let mut said: Option<Instant> = None;
        // Acquire pairs with the Release after the last stage has drained: everything appended is visible.
        while !stop.load(Ordering::Acquire) {
            match sealer.step(clock.now_us()) {
                Ok(step) => {
                    log_full.store(sealer.counters().log_full.load(Ordering::Relaxed), Ordering::Relaxed);
                    if step == SealStep::Idle {
                        std::thread::sleep(SEALER_TICK);
                    }
                }
                Err(error) => {
                    // No room will come until this passes: shares are refused with a word instead of waiting without one.
                    log_full.store(true, Ordering::Relaxed);
                    if said.is_none_or(|at| at.elapsed() > Duration::from_secs(10)) {
                        said = Some(Instant::now());
                        eprintln!("error: sealing the share log failed, it is tried again: {}", chain_of(&error));
                    }
                    std::thread::sleep(Duration::from_millis(200));
                }
            }
        }
        sealer.drain(clock.now_us()).inspect_err(|error| eprintln!("error: the log could not be sealed: {}", chain_of(error))).is_ok()
    })
}

fn start_packer(mut packer: Packer, core: usize, stop: Arc<AtomicBool>) -> Result<JoinHandle<()>, StartError> {
    spawn("packer", core, move || {
        // The thread, as Linux has it. Everything else on this core goes first; where that cannot be had, it is merely less polite.
        let _ = rustix::process::setpriority_process(None, LEAST_PRIORITY);
        let mut said: Option<Instant> = None;
        while !stop.load(Ordering::Acquire) {
            match packer.step(|| !stop.load(Ordering::Acquire)) {
                Ok(PackStep::Ended) => break,
                Ok(PackStep::Idle | PackStep::Worked) => {}
                Err(error) => {
                    if said.is_none_or(|at| at.elapsed() > Duration::from_secs(600)) {
                        said = Some(Instant::now());
                        eprintln!("warning: a cold segment stays as it is: {}", chain_of(&error));
                    }
                }
            }
        }
    })
}

fn start_sync(mut syncer: Syncer, core: usize, stop: Arc<AtomicBool>) -> Result<JoinHandle<()>, StartError> {
    spawn("sync", core, move || {
        let mut said: Option<Instant> = None;
        let mut looks = 0;
        loop {
            // Looked at before the rows are: after the stages have ended nothing new can come.
            let is_last = stop.load(Ordering::Acquire);
            match syncer.step() {
                Ok(SyncStep::Idle) if is_last => break,
                Ok(SyncStep::Idle) => {
                    looks += 1;
                    std::thread::sleep(if looks < SYNC_LOOKS { SYNC_TICK } else { SYNC_TICK_AT_REST });
                }
                Ok(SyncStep::Synced) => looks = 0,
                Ok(SyncStep::Replaced(cause)) => {
                    eprintln!("error: {cause}; that journal file is given up, and all that it held is durable in a new one");
                }
                Err(error) => {
                    if said.is_none_or(|at| at.elapsed() > Duration::from_secs(10)) {
                        said = Some(Instant::now());
                        eprintln!(
                            "error: the share log cannot be made durable, no share is acknowledged until it can: {}",
                            chain_of(&error)
                        );
                    }
                    if is_last {
                        break;
                    }
                    std::thread::sleep(SYNC_RETRY);
                }
            }
        }
    })
}

fn start_shipper(
    settings: ShipperSettings,
    dir: PathBuf,
    state: Arc<ShipperState>,
    stop: watch::Receiver<bool>,
    core: usize,
) -> Result<JoinHandle<()>, StartError> {
    let failed =
        |error: otedama_sharelog::LogError| StartError::environment(format!("opening the shipper's cursor in {}", dir.display()), error);
    let store = SegmentStore::open(&dir).map_err(failed)?;
    let shipper = Shipper::new(settings, store, state).map_err(failed)?;
    let runtime = runtime()?;
    spawn("shipper", core, move || runtime.block_on(shipper.run(stop)))
}

/// An error with its causes, on one line.
pub fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(nonce: u32) -> LoggedRow {
        LoggedRow {
            instance: 0,
            seg: 0,
            seq: 0,
            arrival_us: 0,
            session: 0,
            worker: 0,
            job: 1,
            coin: 0,
            status: 0,
            flags: otedama_primitives::flags::FROM_LOG,
            work: 1,
            share_difficulty: 1.0,
            nonce,
            ntime: 0,
            version: 0,
            extranonce2: 0,
            latency_us: 0,
            ..LoggedRow::default()
        }
    }

    #[test]
    fn a_flagged_row_waits_for_room_and_is_not_lost() {
        const ROWS: u32 = 1000;
        let (rows, mut taken) = mpsc::channel(2);
        let flagged = FlaggedRows { rows, bell: Arc::default() };
        let sealer = std::thread::spawn(move || (0..ROWS).for_each(|number| flagged.put(row(number))));
        for number in 0..ROWS {
            assert_eq!(taken.blocking_recv().map(|row| row.nonce), Some(number));
        }
        sealer.join().expect("no panic");
        assert!(taken.blocking_recv().is_none());
    }

    #[test]
    fn a_flagged_row_without_a_listener_keeps_nobody_waiting() {
        let (rows, taken) = mpsc::channel(1);
        let flagged = FlaggedRows { rows, bell: Arc::default() };
        drop(taken);
        (0..10).for_each(|number| flagged.put(row(number)));
    }
}
