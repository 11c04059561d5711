//! The command `loadgen`: load for a Stratum server on this machine, and the null server that shows the floor.
use clap::{Args, Parser, Subcommand};
use loadgen::dialect::Style;
use loadgen::engine::EngineConfig;
use loadgen::ledger::LedgerSink;
use loadgen::null::Null;
use loadgen::run::{RunConfig, RunReport, run};
use loadgen::session::{Behaviour, Mode};
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
  loadgen run --target 127.0.0.1:3333 --shares 2000000 --bad-every 10 --dup-every 10 --ledger shares.txt --json
Exit codes: 0 fine, 1 the server broke the rules, 2 usage, 3 no server or no permission."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
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
    },
}

#[derive(Args)]
#[command(after_help = "Examples:
  loadgen run --target 127.0.0.1:3333 --connections 1000 --depth 1 --repeat 3 --json
  loadgen run --target 127.0.0.1:3333 --against 127.0.0.1:3399 --server-pid P --against-pid Q
A window of D submits leaves in one write once the last window is answered. With --json the last line is
the result. Counts are of the whole run; rates, CPU times and latencies of the measured windows.")]
struct RunArgs {
    /// Server to load
    #[arg(long, value_name = "H:P")]
    target: String,
    /// Connections
    #[arg(long, value_name = "C", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    connections: u32,
    /// Submits in flight per connection
    #[arg(long, value_name = "D", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=4096))]
    depth: u32,
    /// Length of a measured window [default: 10, or none with --shares]
    #[arg(long, value_name = "S")]
    seconds: Option<f64>,
    /// Load before the first window [default: 1, or 0 with --shares]
    #[arg(long, value_name = "S")]
    warmup: Option<f64>,
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
    /// Workers authorized on each connection
    #[arg(long, value_name = "W", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    workers_per_connection: u32,
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
    /// esp-miner, cgminer, cpuminer, nerdminer, firmware or mixed
    #[arg(long, value_enum, value_name = "S", default_value_t = Style::EspMiner, hide_possible_values = true)]
    style: Style,
    /// The server's process: figures per CPU-second
    #[arg(long, value_name = "P")]
    server_pid: Option<u32>,
    /// Second server, in turns of 0.5 s: prints the paired ratio
    #[arg(long, value_name = "H:P", conflicts_with = "shares")]
    against: Option<String>,
    /// The second server's process
    #[arg(long, value_name = "P", requires = "against")]
    against_pid: Option<u32>,
    /// Connect again when a connection breaks
    #[arg(long)]
    reconnect: bool,
    /// Append every submit and its answer to FILE
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// Only machine-readable lines, the result last
    #[arg(long)]
    json: bool,
    /// Also write result.json and wrong.txt to DIR
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Load a host that is not this machine; it must be yours
    #[arg(long)]
    i_own_this_target: bool,
    /// Open loop; not built yet, refused
    #[arg(long, value_name = "R", hide = true)]
    rate: Option<f64>,
}

/// What went wrong, with the exit code it ends in.
struct Failure(u8, String);

impl Failure {
    fn usage(text: impl Into<String>) -> Self {
        Self(2, text.into())
    }

    fn environment(error: impl ToString) -> Self {
        Self(3, error.to_string())
    }
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(args) => load(&args),
        Command::Null { listen, difficulty } => null(&listen, difficulty),
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

fn own_address(text: &str, args: &RunArgs) -> Result<SocketAddr, Failure> {
    let address = address(text)?;
    if !address.ip().is_loopback() && !args.i_own_this_target {
        return Err(Failure::usage(format!(
            "{address} is not this machine. Load on another's server is an attack; add --i-own-this-target if it is yours."
        )));
    }
    Ok(address)
}

fn null(listen: &str, difficulty: f64) -> Result<ExitCode, Failure> {
    let stop = stop_flag()?;
    let mut server = Null::bind(address(listen)?, difficulty).map_err(Failure::environment)?;
    println!("listening on {}", server.address());
    server.serve(&stop).map_err(Failure::environment)?;
    Ok(ExitCode::SUCCESS)
}

fn seconds(value: f64, option: &str) -> Result<Duration, Failure> {
    Duration::try_from_secs_f64(value).map_err(|_| Failure::usage(format!("--{option} {value}: not a length of time in seconds")))
}

fn config(args: &RunArgs) -> Result<RunConfig, Failure> {
    if args.rate.is_some() {
        return Err(Failure::usage("--rate: the open loop is not built yet. Use the closed loop: --connections C --depth D."));
    }
    if args.mode != Mode::Valid && (args.bad_every > 0 || args.dup_every > 0) {
        return Err(Failure::usage("--bad-every and --dup-every are judged by hash and need --mode valid."));
    }
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\'' | b'\\');
    if args.worker_prefix.is_empty() || args.worker_prefix.len() > 100 || !args.worker_prefix.bytes().all(plain) {
        return Err(Failure::usage("--worker-prefix: 1 to 100 printable ASCII characters without blanks, quotes and backslash."));
    }
    let against = match &args.against {
        Some(text) => Some((own_address(text, args)?, args.against_pid)),
        None => None,
    };
    let limited = args.shares.is_some();
    Ok(RunConfig {
        engine: EngineConfig {
            target: own_address(&args.target, args)?,
            connections: args.connections as usize,
            behaviour: Behaviour {
                mode: args.mode,
                depth: args.depth as usize,
                seed: args.seed,
                workers_per_connection: args.workers_per_connection as usize,
                en2_units: args.en2_units,
                bad_every: args.bad_every,
                dup_every: args.dup_every,
                style: args.style,
                worker_prefix: args.worker_prefix.clone(),
            },
            reconnect: args.reconnect,
            ledger: args.ledger.clone().map_or(LedgerSink::None, LedgerSink::File),
            pace_shares_per_s: 0.0,
        },
        // A day stands for "until the shares are out".
        window: seconds(args.seconds.unwrap_or(if limited { 86_400.0 } else { 10.0 }), "seconds")?,
        warmup: seconds(args.warmup.unwrap_or(if limited { 0.0 } else { 1.0 }), "warmup")?,
        repeat: args.repeat,
        shares: args.shares,
        server_pid: args.server_pid,
        against,
        set_up_limit: Duration::from_secs(30),
    })
}

fn load(args: &RunArgs) -> Result<ExitCode, Failure> {
    let stop = stop_flag()?;
    let report = run(config(args)?, &stop).map_err(Failure::environment)?;
    if args.json {
        for wrong in &report.totals.wrong_kept {
            eprintln!("WRONG expected {}\n  sent   {}\n  answer {}", wrong.expected, wrong.sent, wrong.answer);
        }
        if report.windows.len() > 1 {
            for window in &report.windows {
                println!("{}", serde_json::json!({"schema": 1, "window_s": window.seconds, "shares_per_s": window.shares_per_s()}));
            }
        }
    } else {
        print!("{}", report.table());
    }
    if let Some(pairing) = report.pairing_json() {
        println!("{pairing}");
    }
    if let Some(folder) = &args.out {
        write_out(folder, &report)?;
    }
    println!("{}", report.json());
    Ok(if report.is_finding() { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

fn write_out(folder: &Path, report: &RunReport) -> Result<(), Failure> {
    let failed = |path: &Path, error: std::io::Error| Failure::environment(format!("cannot write {}: {error}", path.display()));
    std::fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
    let mut result = report.json();
    if let Some(object) = result.as_object_mut() {
        let by_status: serde_json::Map<String, serde_json::Value> = otedama_primitives::ShareStatus::ALL
            .into_iter()
            .map(|status| (status.label().to_owned(), report.totals.by_status[status as usize].into()))
            .collect();
        object.insert("by_status".into(), by_status.into());
        object.insert("windows_shares_per_s".into(), report.windows.iter().map(|window| window.shares_per_s()).collect());
        object.insert("set_up_s".into(), report.set_up_s.into());
        object.insert("connects".into(), report.totals.connects.into());
        object.insert("disconnects".into(), report.totals.disconnects.into());
        object.insert("paired".into(), report.pairing_json().unwrap_or_default());
    }
    let path = folder.join("result.json");
    std::fs::write(&path, format!("{result:#}\n")).map_err(|error| failed(&path, error))?;
    let wrong: String = report
        .totals
        .wrong_kept
        .iter()
        .map(|wrong| format!("expected {}\nsent   {}\nanswer {}\n\n", wrong.expected, wrong.sent, wrong.answer))
        .collect();
    let path = folder.join("wrong.txt");
    std::fs::write(&path, wrong).map_err(|error| failed(&path, error))
}
