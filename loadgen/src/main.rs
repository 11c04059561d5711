//! The command `loadgen`: load for a Stratum server on this machine, and the null server that shows the floor.
use clap::{Args, Parser, Subcommand};
use loadgen::abuse::{Abuse, AbuseOrder, abuse};
use loadgen::compare::{Stored, compare};
use loadgen::dialect::Style;
use loadgen::engine::EngineConfig;
use loadgen::ledger::LedgerSink;
use loadgen::null::Null;
use loadgen::plot::{Series, html, svg};
use loadgen::processes::{PROCESSES_MAX, PartResult, part_of, run_parts, wait_for_start};
use loadgen::profile::{Preset, Profile};
use loadgen::replay::{ReplayOrder, Speed, replay};
use loadgen::report::{OutFolder, RunReport, read_interval_log};
use loadgen::run::{RunConfig, run, run_when};
use loadgen::session::{Behaviour, Mode};
use loadgen::trial::{TrialOrder, series};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Simulated miners that mine for real and judge every answer.
#[derive(Parser)]
#[command(
    version,
    disable_help_subcommand = true,
    after_help = "Examples:
  loadgen null --listen 127.0.0.1:3399
  loadgen run --target 127.0.0.1:3399 --connections 64 --depth 8 --seconds 5 --server-pid PID
  loadgen run --target 127.0.0.1:3333 --connections 1000 --rate 20000 --out after
  loadgen run --target 127.0.0.1:3333 --shares 2000000 --bad-every 10 --dup-every 10 --ledger shares.txt --json
  loadgen compare before after && loadgen plot before after -o latency.html
Exit codes: 0 fine, 1 the server broke the rules or a finding, 2 usage, 3 no server or no permission."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const REPLAY_HELP: &str = "\
Example:
  otedama serve --config practice.toml --capture wire           load it, stop it
  otedama serve --config replay.toml --replay-of wire           the same config with another [log] dir
  loadgen replay wire --target 127.0.0.1:3333 --speed max
A share is valid for one job and one extranonce1, so the server must hand out the captured ones. Compared are the
answers of each connection in their order: ids, extranonces, verdicts.";

fn speed(text: &str) -> Result<Speed, String> {
    match text {
        "1" => Ok(Speed::AsCaptured),
        "max" => Ok(Speed::Max),
        _ => Err("1 or max".into()),
    }
}

#[derive(Subcommand)]
enum Command {
    /// Load a server and judge its answers
    Run(Box<RunArgs>),
    /// Answer true to everything: the floor on this machine
    Null {
        /// Address to listen on
        #[arg(long, value_name = "H:P", default_value = "127.0.0.1:3399")]
        listen: String,
        /// Difficulty for every miner; at 2.4e-10 every hash passes
        #[arg(long, value_name = "D", default_value_t = 2.4e-10)]
        difficulty: f64,
        /// Burn so many per cent more CPU time per share than it takes
        #[arg(long, value_name = "P", default_value_t = 0.0)]
        burn_percent: f64,
        /// Stay on this core
        #[arg(long, value_name = "N")]
        core: Option<usize>,
        /// Share the address with other null servers started so
        #[arg(long)]
        share_port: bool,
    },
    /// Say whether run AFTER is worse than run BEFORE; exit 1 if it is
    Compare {
        /// Folder that --out wrote, or its result.json
        before: PathBuf,
        /// The other one
        after: PathBuf,
        /// Worse by more than this is a regression, per cent
        #[arg(long, value_name = "PCT", default_value_t = 5.0)]
        tolerance: f64,
    },
    /// Draw the latencies of runs by percentile
    Plot {
        /// Folders that --out wrote
        #[arg(required = true, value_name = "DIR")]
        folders: Vec<PathBuf>,
        /// Picture to write, .svg or .html
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Send a captured wire again and compare every verdict; exit 1 on the first other one
    #[command(after_help = REPLAY_HELP)]
    Replay {
        /// Folder that otedama serve --capture wrote
        dir: PathBuf,
        /// Server started with otedama serve --replay-of DIR
        #[arg(long, value_name = "H:P")]
        target: String,
        /// 1: at the captured times; max: as fast as the server reads
        #[arg(long, value_name = "1|max", default_value = "max", value_parser = speed)]
        speed: Speed,
        /// Play a capture that is cut off or has a gap up to there
        #[arg(long)]
        whole_part: bool,
        /// Only the result as JSON
        #[arg(long)]
        json: bool,
        /// Load a host that is not this machine; it must be yours
        #[arg(long)]
        i_own_this_target: bool,
    },
    /// Check that --against finds a burn between two null servers, and nothing between equals
    Trial {
        /// Trials with a burn, and as many without
        #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
        trials: u32,
        /// The burn to find
        #[arg(long, value_name = "P", default_value_t = 5.0)]
        burn_percent: f64,
        /// Length of a trial
        #[arg(long, value_name = "S", default_value_t = 20.0)]
        seconds: f64,
        /// Connections to each server
        #[arg(long, value_name = "C", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=9000))]
        connections: u32,
        /// Submits in flight per connection
        #[arg(long, value_name = "D", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=4096))]
        depth: u32,
        /// Differences up to this are none, per cent
        #[arg(long, value_name = "PCT", default_value_t = 1.0)]
        tolerance: f64,
    },
}

#[derive(Args)]
#[command(after_help = "Examples:
  loadgen run --target 127.0.0.1:3333 --connections 1000 --depth 1 --repeat 3 --json
  loadgen run --target 127.0.0.1:3333 --against 127.0.0.1:3399 --server-pid P --against-pid Q
  loadgen run --target 127.0.0.1:3333 --mode idle --connections 100000 --processes 6
  loadgen run --target 127.0.0.1:3333 --abuse slowloris --connections 10000 --seconds 30
Closed loop: a window of D submits leaves in one write once the last window is answered. Open loop (--rate): shares
leave by the clock and latency counts from the time a share was due. With --json the last line is the result. Counts
are of the whole run; rates, CPU times and latencies of the measured windows.")]
struct RunArgs {
    /// Server to load
    #[arg(long, value_name = "H:P")]
    target: String,
    /// asic-farm, proxy, mixed or reconnect-storm: sets what is not given
    #[arg(long, value_enum, value_name = "P", hide_possible_values = true)]
    profile: Option<Profile>,
    /// Connections [default: 64, or the profile's]
    #[arg(long, value_name = "C", value_parser = clap::value_parser!(u32).range(1..=2_000_000))]
    connections: Option<u32>,
    /// Submits in flight per connection [default: 8, or the profile's]
    #[arg(long, value_name = "D", value_parser = clap::value_parser!(u32).range(1..=4096))]
    depth: Option<u32>,
    /// Open loop: shares per second of all connections together
    #[arg(long, value_name = "R", conflicts_with = "depth")]
    rate: Option<f64>,
    /// Length of a measured window [default: 10, or none with --shares]
    #[arg(long, value_name = "S")]
    seconds: Option<f64>,
    /// Load before the first window [default: 1, or 0 with --shares]
    #[arg(long, value_name = "S")]
    warmup: Option<f64>,
    /// Open the connections evenly over this time
    #[arg(long, value_name = "S", default_value_t = 0.0)]
    ramp: f64,
    /// Measured windows
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeat: u32,
    /// Stop after N submits
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    shares: Option<u64>,
    /// valid: mine and judge; junk: unhashed, counted only; idle: silent
    #[arg(long, value_enum, default_value_t, hide_possible_values = true)]
    mode: Mode,
    /// Same seed and same server lines: same bytes
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Processes that share the connections
    #[arg(long, value_name = "P", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(PROCESSES_MAX)))]
    processes: u32,
    /// Workers authorized on each connection [default: 1, or the profile's]
    #[arg(long, value_name = "W", value_parser = clap::value_parser!(u32).range(1..=4096))]
    workers_per_connection: Option<u32>,
    /// Worker names are P.<connection>w<worker>
    #[arg(long, value_name = "P", default_value = "loadgen")]
    worker_prefix: String,
    /// Distinct extranonce2 values per connection and job; 0: unique
    #[arg(long, value_name = "U", default_value_t = 0)]
    en2_units: u64,
    /// Every Nth submit is bad on purpose, by every reason in turn
    #[arg(long, value_name = "N", default_value_t = 0)]
    bad_every: u64,
    /// Every Nth submit repeats a share, in every way in turn
    #[arg(long, value_name = "N", default_value_t = 0)]
    dup_every: u64,
    /// Take any refusal of a bad share as right: other pools' codes
    #[arg(long)]
    any_refusal: bool,
    /// esp-miner, cgminer, cpuminer, nerdminer, firmware, esp32, asic or mixed
    #[arg(long, value_enum, value_name = "S", hide_possible_values = true)]
    style: Option<Style>,
    /// Negotiate version rolling: on or off [default: as the style does]
    #[arg(long, value_name = "on|off", value_parser = on_or_off)]
    version_rolling: Option<bool>,
    /// The server's process: figures per CPU-second
    #[arg(long, value_name = "P")]
    server_pid: Option<u32>,
    /// Second server, in turns of 0.5 s: prints the paired ratio
    #[arg(long, value_name = "H:P", conflicts_with = "shares")]
    against: Option<String>,
    /// The second server's process
    #[arg(long, value_name = "P", requires = "against")]
    against_pid: Option<u32>,
    /// With --against: differences up to this are none, per cent
    #[arg(long, value_name = "PCT", default_value_t = 1.0)]
    tolerance: f64,
    /// slowloris, half-open, junk, giant-lines, duplicate-storm, connect-flood, slow-reader
    #[arg(long, value_enum, value_name = "A", hide_possible_values = true, conflicts_with_all = ["profile", "against", "shares"])]
    abuse: Option<Abuse>,
    /// Connect again when a connection breaks
    #[arg(long)]
    reconnect: bool,
    /// Append every submit and its answer to FILE
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// Only machine-readable lines, the result last
    #[arg(long)]
    json: bool,
    /// Also write result.json, latency.hdr, latency.hgrm to DIR
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Load a host that is not this machine; it must be yours
    #[arg(long)]
    i_own_this_target: bool,
    /// Which of the processes this is; set by the first one
    #[arg(long, hide = true)]
    part: Option<u32>,
}

fn on_or_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("on or off".into()),
    }
}

/// What went wrong, with the exit code it ends in.
struct Failure(u8, String);

impl Failure {
    fn usage(text: impl ToString) -> Self {
        Self(2, text.to_string())
    }

    fn environment(error: impl ToString) -> Self {
        Self(3, error.to_string())
    }
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(args) => load(&args),
        Command::Null { listen, difficulty, burn_percent, core, share_port } => null(&listen, difficulty, burn_percent, core, share_port),
        Command::Compare { before, after, tolerance } => compared(&before, &after, tolerance),
        Command::Plot { folders, output } => plot(&folders, &output),
        Command::Replay { dir, target, speed, whole_part, json, i_own_this_target } => {
            own_address(&target, i_own_this_target).and_then(|target| replayed(&ReplayOrder { dir, target, speed, whole_part }, json))
        }
        Command::Trial { trials, burn_percent, seconds, connections, depth, tolerance } => {
            trial(trials, burn_percent, seconds, (connections as usize, depth as usize), tolerance)
        }
    };
    match outcome {
        Ok(code) => code,
        Err(Failure(code, text)) => {
            eprintln!("loadgen: {text}");
            ExitCode::from(code)
        }
    }
}

/// A flag that SIGINT and SIGTERM set, so that a run ends with its drain, its ledger and its report.
fn stop_flag() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .map_err(|error| Failure::environment(format!("cannot handle signal {signal}: {error}")))?;
    }
    Ok(stop)
}

fn address(text: &str) -> Result<SocketAddr, Failure> {
    let resolved = text.to_socket_addrs().map_err(|error| Failure::usage(format!("{text} is no host:port ({error})")))?;
    resolved.into_iter().next().ok_or_else(|| Failure::usage(format!("{text} has no address")))
}

fn own_address(text: &str, is_owned: bool) -> Result<SocketAddr, Failure> {
    let address = address(text)?;
    if !address.ip().is_loopback() && !is_owned {
        return Err(Failure::usage(format!(
            "{address} is not this machine. Load on another's server is an attack; add --i-own-this-target if it is yours."
        )));
    }
    Ok(address)
}

fn stay_on_core(core: usize) -> Result<(), Failure> {
    if core >= rustix::thread::CpuSet::MAX_CPU {
        return Err(Failure::usage(format!("--core {core}: cores count from 0")));
    }
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    rustix::thread::sched_setaffinity(None, &set).map_err(|error| Failure::environment(format!("cannot stay on core {core}: {error}")))
}

fn null(listen: &str, difficulty: f64, burn_percent: f64, core: Option<usize>, shared: bool) -> Result<ExitCode, Failure> {
    if !(0.0..=1000.0).contains(&burn_percent) {
        return Err(Failure::usage(format!("--burn-percent {burn_percent}: 0 to 1000")));
    }
    let stop = stop_flag()?;
    core.map_or(Ok(()), stay_on_core)?;
    let mut server = Null::bind_shared(address(listen)?, difficulty, shared).map_err(Failure::environment)?;
    server.burn_percent(burn_percent);
    println!("listening on {}", server.address());
    server.serve(&stop).map_err(Failure::environment)?;
    if let Some((served_s, burnt_s)) = server.burnt() {
        println!("served for {served_s:.3} s of CPU time and burnt {burnt_s:.3} s");
    }
    Ok(ExitCode::SUCCESS)
}

fn seconds(value: f64, option: &str) -> Result<Duration, Failure> {
    Duration::try_from_secs_f64(value).map_err(|_| Failure::usage(format!("--{option} {value}: not a length of time in seconds")))
}

fn fraction(percent: f64) -> Result<f64, Failure> {
    if (0.0..100.0).contains(&percent) {
        Ok(percent / 100.0)
    } else {
        Err(Failure::usage(format!("--tolerance {percent}: 0 up to 100 per cent")))
    }
}

fn preset(args: &RunArgs) -> Preset {
    args.profile.map_or(Preset::NONE, Profile::preset)
}

fn behaviour(args: &RunArgs) -> Result<Behaviour, Failure> {
    if args.mode != Mode::Valid && (args.bad_every > 0 || args.dup_every > 0) {
        return Err(Failure::usage("--bad-every and --dup-every are judged by hash and need --mode valid."));
    }
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\'' | b'\\');
    if args.worker_prefix.is_empty() || args.worker_prefix.len() > 100 || !args.worker_prefix.bytes().all(plain) {
        return Err(Failure::usage("--worker-prefix: 1 to 100 printable ASCII characters without blanks, quotes and backslash."));
    }
    let preset = preset(args);
    let open_loop = rate(args)? > 0.0;
    Ok(Behaviour {
        mode: args.mode,
        // Without meaning in an open loop, where shares leave one by one.
        depth: if open_loop { 1 } else { args.depth.unwrap_or(preset.depth) as usize },
        seed: args.seed,
        workers_per_connection: args.workers_per_connection.unwrap_or(preset.workers) as usize,
        en2_units: args.en2_units,
        bad_every: args.bad_every,
        dup_every: args.dup_every,
        style: args.style.unwrap_or(preset.style),
        worker_prefix: args.worker_prefix.clone(),
        first_connection: 0,
        open_loop,
        proxy_every: preset.proxy_every,
        version_rolling: args.version_rolling,
        any_refusal: args.any_refusal,
    })
}

/// Shares per second of an open loop; 0 for a closed one.
fn rate(args: &RunArgs) -> Result<f64, Failure> {
    let preset = preset(args);
    match args.rate {
        Some(rate) if !(rate > 0.0 && rate <= 1e8) => Err(Failure::usage(format!("--rate {rate}: shares per second, above 0 up to 1e8"))),
        Some(rate) => Ok(rate),
        None if args.depth.is_none() && args.mode != Mode::Idle => {
            Ok(preset.rate_per_connection * f64::from(args.connections.unwrap_or(preset.connections)))
        }
        None => Ok(0.0),
    }
}

fn config(args: &RunArgs) -> Result<RunConfig, Failure> {
    let against = match &args.against {
        Some(text) => Some((own_address(text, args.i_own_this_target)?, args.against_pid)),
        None => None,
    };
    if args.processes > 1 && (args.against.is_some() || args.ledger.is_some()) {
        return Err(Failure::usage("--against and --ledger need one process; leave --processes out."));
    }
    let preset = preset(args);
    let connections = args.connections.unwrap_or(preset.connections) as usize;
    if connections < args.processes as usize {
        return Err(Failure::usage(format!("--processes {}: more than the {connections} connections", args.processes)));
    }
    let limited = args.shares.is_some();
    let engine = EngineConfig {
        connections,
        behaviour: behaviour(args)?,
        reconnect: args.reconnect || preset.storm_every.is_some(),
        ledger: args.ledger.clone().map_or(LedgerSink::None, LedgerSink::File),
        rate_shares_per_s: rate(args)?,
        ramp: seconds(args.ramp, "ramp")?,
        ..EngineConfig::new(own_address(&args.target, args.i_own_this_target)?)
    };
    Ok(RunConfig {
        // A day stands for "until the shares are out".
        window: seconds(args.seconds.unwrap_or(if limited { 86_400.0 } else { 10.0 }), "seconds")?,
        warmup: seconds(args.warmup.unwrap_or(if limited { 0.0 } else { 1.0 }), "warmup")?,
        repeat: args.repeat,
        shares: args.shares,
        server_pid: args.server_pid,
        against,
        // A server takes a few thousand connections a second.
        set_up_limit: Duration::from_secs(30 + connections as u64 / 1_000),
        storm_every: preset.storm_every,
        tolerance: fraction(args.tolerance)?,
        ..RunConfig::new(engine)
    })
}

fn load(args: &RunArgs) -> Result<ExitCode, Failure> {
    let config = match args.abuse {
        None => config(args)?,
        Some(Abuse::DuplicateStorm) => duplicate_storm(args)?,
        Some(kind) => return abused(args, kind),
    };
    let stop = stop_flag()?;
    if let Some(part) = args.part {
        end_with_parent().map_err(|error| Failure::environment(format!("cannot end with the process that started this one: {error}")))?;
        let config = part_of(config, part as usize, args.processes as usize);
        let report = run_when(config, &stop, |_| wait_for_start()).map_err(Failure::environment)?;
        println!("{}", serde_json::to_string(&PartResult::of(&report)).map_err(Failure::environment)?);
        return Ok(ExitCode::SUCCESS);
    }
    let out = args.out.as_deref().map(OutFolder::hold).transpose().map_err(Failure::environment)?;
    let report = if args.processes > 1 {
        let loadgen = std::env::current_exe().map_err(Failure::environment)?;
        let command = |part: usize| {
            let mut command = std::process::Command::new(&loadgen);
            command.args(std::env::args_os().skip(1)).args(["--part", &part.to_string()]);
            command
        };
        run_parts(&config, args.processes as usize, command, &stop).map_err(Failure::environment)?
    } else {
        run(config, &stop).map_err(Failure::environment)?
    };
    say(args, &report, out.as_ref())?;
    Ok(if report.is_finding() { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

/// A farm of several processes is one thing: when the first one is killed the others get a SIGTERM, and do not go on loading a server for nobody.
#[cfg(target_os = "linux")]
fn end_with_parent() -> std::io::Result<()> {
    Ok(rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?)
}

#[cfg(not(target_os = "linux"))]
fn end_with_parent() -> std::io::Result<()> {
    Ok(())
}

fn say(args: &RunArgs, report: &RunReport, out: Option<&OutFolder>) -> Result<(), Failure> {
    if args.json {
        for wrong in &report.totals.wrong_kept {
            eprintln!("WRONG expected {}\n  sent   {}\n  answer {}", wrong.expected, wrong.sent, wrong.answer);
        }
        if let Some(reason) = report.limited_by_generator() {
            eprintln!("WARNING: the generator is the limit, not the server: {reason}");
        }
        if report.windows.len() > 1 {
            for window in &report.windows {
                println!("{}", serde_json::json!({"schema": 1, "window_s": window.seconds, "shares_per_s": window.shares_per_s()}));
            }
        }
        if let Some(pairing) = report.pairing_json() {
            println!("{pairing}");
        }
    } else {
        print!("{}", report.table());
    }
    // First what was measured, then what may fail.
    println!("{}", report.json());
    out.map_or(Ok(()), |out| report.write_out(out.path())).map_err(Failure::environment)
}

/// An honest share and its copies, without end: the farm does it, as the first must be valid. A server may cut it off.
fn duplicate_storm(args: &RunArgs) -> Result<RunConfig, Failure> {
    let mut config = config(args)?;
    config.engine.behaviour.dup_every = 1;
    if args.depth.is_none() && !config.engine.behaviour.open_loop {
        // Copies stand behind their original in one write: long windows have more of them.
        config.engine.behaviour.depth = 64;
    }
    config.engine.reconnect = true;
    Ok(config)
}

fn abused(args: &RunArgs, kind: Abuse) -> Result<ExitCode, Failure> {
    let for_farms = [
        ("--processes", args.processes > 1),
        ("--depth", args.depth.is_some()),
        ("--ledger", args.ledger.is_some()),
        ("--out", args.out.is_some()),
        ("--ramp", args.ramp > 0.0),
        ("--server-pid", args.server_pid.is_some()),
        ("--bad-every", args.bad_every > 0),
        ("--dup-every", args.dup_every > 0),
    ];
    if let Some((option, _)) = for_farms.iter().find(|(_, is_given)| *is_given) {
        return Err(Failure::usage(format!(
            "{option} is for a farm; --abuse {} takes --connections, --seconds, --rate and --seed.",
            kind.label()
        )));
    }
    let order = AbuseOrder {
        target: own_address(&args.target, args.i_own_this_target)?,
        kind,
        connections: args.connections.unwrap_or(64) as usize,
        length: seconds(args.seconds.unwrap_or(10.0), "seconds")?,
        connects_per_s: rate(args)?,
        seed: args.seed,
    };
    if order.length > Duration::from_secs(3600) {
        return Err(Failure::usage("--seconds: an abuse lasts an hour at most."));
    }
    let report = abuse(&order, &*stop_flag()?).map_err(Failure::environment)?;
    if !args.json {
        print!("{}", report.table(&order));
    }
    println!("{}", report.json(&order));
    if report.connects == 0 {
        return Err(Failure::environment(format!("no connection to {} came up; last trouble: {}", order.target, report.trouble)));
    }
    Ok(ExitCode::SUCCESS)
}

fn compared(before: &Path, after: &Path, tolerance: f64) -> Result<ExitCode, Failure> {
    let read = |path| Stored::read(path).map_err(Failure::usage);
    let comparison = compare(&read(before)?, &read(after)?, fraction(tolerance)?).map_err(Failure::usage)?;
    print!("{}", comparison.text);
    Ok(if comparison.regressions.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn plot(folders: &[PathBuf], output: &Path) -> Result<ExitCode, Failure> {
    let lines: Vec<Series> = folders
        .iter()
        .map(|folder| {
            let path = folder.join("latency.hdr");
            let text = std::fs::read_to_string(&path)
                .map_err(|error| Failure::usage(format!("cannot read {}: {error}; give folders that run --out wrote", path.display())))?;
            let histogram =
                read_interval_log(&text).ok_or_else(|| Failure::usage(format!("{} is no histogram log with data", path.display())))?;
            Ok(Series { name: folder.display().to_string(), histogram })
        })
        .collect::<Result<_, Failure>>()?;
    let picture = match output.extension().and_then(|extension| extension.to_str()) {
        Some("svg") => svg(&lines),
        Some("html") => html(&lines),
        _ => return Err(Failure::usage(format!("-o {}: the name must end in .svg or .html", output.display()))),
    };
    std::fs::write(output, picture).map_err(|error| Failure::environment(format!("cannot write {}: {error}", output.display())))?;
    println!("{}", output.display());
    Ok(ExitCode::SUCCESS)
}

fn replayed(order: &ReplayOrder, json: bool) -> Result<ExitCode, Failure> {
    let report = replay(order, &*stop_flag()?).map_err(|error| Failure(error.exit_code(), error.to_string()))?;
    if !json {
        print!("{}", report.table(order));
    }
    println!("{}", report.json(order));
    Ok(if report.difference.is_some() { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

fn trial(trials: u32, burn_percent: f64, length: f64, (connections, depth): (usize, usize), tolerance: f64) -> Result<ExitCode, Failure> {
    let stop = stop_flag()?;
    let several_cores = std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1);
    if several_cores {
        stay_on_core(1)?;
    }
    let order = TrialOrder {
        trials,
        burn_percent,
        length: seconds(length, "seconds")?,
        connections,
        depth,
        tolerance: fraction(tolerance)?,
        server_core: several_cores.then_some(0),
    };
    let loadgen = std::env::current_exe().map_err(Failure::environment)?;
    let outcome = series(&order, &loadgen, &stop, |line| println!("{line}")).map_err(Failure::environment)?;
    println!(
        "{}",
        serde_json::json!({
            "schema": 1, "trials": outcome.trials, "burn_percent": burn_percent, "found": outcome.found, "cried_wolf": outcome.cried_wolf,
            "met": outcome.is_met(), "burnt_ratios": outcome.burnt_ratios, "equal_ratios": outcome.equal_ratios,
        })
    );
    Ok(if outcome.is_met() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
