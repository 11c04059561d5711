//! `otedama`: a mining pool whose share log is exact. This file is the command line; `topology` is the page to read first, `wiring` joins the crates.
#![deny(unsafe_code)]

mod capture;
mod check;
mod config;
mod demo;
mod jobs;
mod log_export;
mod log_replay;
mod shares;
mod sql;
mod stats;
mod stats_source;
mod status;
mod top;
mod topology;
mod wiring;

use capture::{CaptureOrder, Replay};
use clap::{Parser, Subcommand};
use config::Config;
use otedama_pipeline::driver::{Drivers, MioDriver};
use otedama_shipper::schema::{self, Flavour};
use otedama_tuning::{Action, ExitFinding, Host, STATE_DEFAULT};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use wiring::{Pool, StartError, Wire, chain_of};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EXAMPLES: &str = "\
examples:
  otedama demo --seconds 10                  a pool, a farm and a share log, nothing else needed
  otedama config init > otedama.toml         a commented config, then: otedama check --config otedama.toml
  otedama serve --config otedama.toml        the pool
  otedama shares --config otedama.toml --by worker,minute --since 1h --format csv

Exit codes: 0 ok, 1 a finding, 2 usage or config, 3 environment.";

const CAPTURE_HELP: &str = "\
Capture and replay:
  otedama serve --config practice.toml --capture wire           then load it, and stop it
  otedama serve --config replay.toml --replay-of wire           the same config with another [log] dir
  loadgen replay wire --target 127.0.0.1:3333 --speed max       compares every verdict, exit 1 on the first other one";

#[derive(Parser, Debug)]
#[command(name = "otedama", version, about = "A mining pool whose share log is exact.", after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Commands,
}

/// Where the config stands; without a file the defaults and the environment hold.
#[derive(clap::Args, Debug)]
struct ConfigArg {
    /// The config file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(clap::Args, Debug)]
#[command(after_help = CAPTURE_HELP)]
struct ServeArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// Writes every byte in and out with its time into this new folder.
    #[arg(long, value_name = "DIR")]
    capture: Option<PathBuf>,
    /// The capture ends at this size, the pool goes on.
    #[arg(long, value_name = "N", default_value_t = 1024, requires = "capture", value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    capture_max_mib: u64,
    /// Serves with the ids and jobs of a capture, for `loadgen replay`; practice chain, fixed difficulty, one net, empty log.
    #[arg(long, value_name = "DIR")]
    replay_of: Option<PathBuf>,
}

/// A share log: by its folder or by the config that names it.
#[derive(clap::Args, Debug)]
struct LogArg {
    /// The folder of the share log.
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    dir: Option<PathBuf>,
    /// The config that names it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// A range of arrivals.
#[derive(clap::Args, Debug)]
struct RangeArg {
    /// Only what arrived from then on: 90s, 15m, 1h, 7d ago, 2026-11-20, or 2026-11-20T08:00:00Z.
    #[arg(long, value_name = "WHEN")]
    since: Option<String>,
    /// Only what arrived before then, written alike.
    #[arg(long, value_name = "WHEN")]
    until: Option<String>,
}

impl RangeArg {
    /// Both ends in microseconds since the epoch.
    fn moments(&self) -> Result<(Option<u64>, Option<u64>), Failure> {
        let now_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
        let moment = |name: &str, text: &Option<String>| {
            let read =
                |text: &String| otedama_sharelog::parse_moment(text, now_us).map_err(|error| Failure::usage(format!("{name}: {error}")));
            text.as_ref().map(read).transpose()
        };
        let (since_us, until_us) = (moment("--since", &self.since)?, moment("--until", &self.until)?);
        if let (Some(since), Some(until)) = (&self.since, &self.until)
            && since_us >= until_us
        {
            return Err(Failure::usage(format!("--since {since} is not before --until {until}: nothing lies between them")));
        }
        Ok((since_us, until_us))
    }
}

#[derive(Subcommand, Debug)]
enum Commands {
    /// Pool, farm, share log and stats page in one process; reconciles at the end.
    Demo(demo::DemoArgs),
    /// Runs the pool until SIGTERM or SIGINT, then drains and seals.
    Serve(ServeArgs),
    /// Judges a config and prints every bound with its bytes.
    Check(ConfigArg),
    /// Asks a running server how it is.
    Status {
        #[command(flatten)]
        config: ConfigArg,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Shows a running server live: stages, rings, rates, refusals; `q` ends.
    Top {
        #[command(flatten)]
        config: ConfigArg,
        /// Stats endpoint of the server, instead of the config's [stats] listen.
        #[arg(long, value_name = "http://HOST:PORT", conflicts_with = "config")]
        url: Option<String>,
        /// One page, measured over a second, and the end; needs no terminal.
        #[arg(long)]
        once: bool,
        /// As JSON: one object, or one a second without --once.
        #[arg(long)]
        json: bool,
    },
    /// Sums the shares of the log.
    Shares(shares::SharesArgs),
    /// Runs SQL, or a recipe of docs/sql, on the configured ClickHouse, else over the log's own segments.
    Sql(sql::SqlArgs),
    /// Prints the ClickHouse schema.
    Schema {
        /// For one modern server (the default).
        #[arg(long, conflicts_with_all = ["cluster", "legacy"])]
        single: bool,
        /// For a cluster of this name.
        #[arg(long, value_name = "NAME", conflicts_with = "legacy")]
        cluster: Option<String>,
        /// For servers before 24.8.
        #[arg(long)]
        legacy: bool,
        /// Prints what makes a user of this name, who may only read, within limits; the password is taken from OTEDAMA_READER_PASSWORD.
        #[arg(long, value_name = "NAME", conflicts_with = "from")]
        reader: Option<String>,
        /// Prints what leads from this older version of the schema to today's.
        #[arg(long, value_name = "VERSION", value_parser = clap::value_parser!(u32).range(1..=i64::from(schema::VERSION)))]
        from: Option<u32>,
        /// Days that rows of shares are kept; 0 for ever. The roll-ups stay.
        #[arg(long, value_name = "DAYS", default_value_t = schema::KEEP_DAYS)]
        keep_days: u32,
        #[command(flatten)]
        config: ConfigArg,
    },
    /// Looks into a share log.
    #[command(subcommand)]
    Log(LogCommand),
    /// Holds ClickHouse against the share log, segment by segment.
    Reconcile {
        #[command(flatten)]
        config: ConfigArg,
        /// Sends again what the server lacks, and names what would have to be deleted for the rest.
        #[arg(long)]
        repair: bool,
        /// With --repair: deletes what is there too often or in part, and sums the roll-ups of those hours again.
        #[arg(long, requires = "repair")]
        yes: bool,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Host settings that matter: looks, plans, applies, puts back.
    Tune {
        /// check, plan, apply or revert.
        action: String,
        /// Old values are kept here.
        #[arg(long, value_name = "FILE", default_value = STATE_DEFAULT)]
        state: PathBuf,
        /// Root of /sys and /proc.
        #[arg(long, value_name = "DIR", default_value = "/", hide = true)]
        root: PathBuf,
        #[command(flatten)]
        config: ConfigArg,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Writes, shows and documents the config.
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Subcommand, Debug)]
enum LogCommand {
    /// Prints what stands in the folder.
    Inspect(LogArg),
    /// Checks every byte, and every share against a loadgen ledger if one is given.
    Verify {
        #[command(flatten)]
        log: LogArg,
        /// Ledger of `loadgen run --ledger`.
        #[arg(long, value_name = "FILE")]
        ledger: Option<PathBuf>,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Judges every share again that can be, from the log alone, and names the first row that comes out otherwise.
    Replay(log_replay::ReplayArgs),
    /// Writes rows as Parquet or CSV for other tools.
    Export(log_export::ExportArgs),
}

#[derive(Subcommand, Debug)]
enum ConfigCommand {
    /// Prints a commented config with every key at its default.
    Init,
    /// Prints the config that holds.
    Show {
        #[command(flatten)]
        config: ConfigArg,
        /// With the origin of every value.
        #[arg(long)]
        origin: bool,
    },
    /// Prints the reference of all keys as Markdown.
    Docs,
}

/// A failed command: what to say and the exit code.
struct Failure(u8, String);

impl Failure {
    fn usage(text: impl Into<String>) -> Self {
        Self(2, text.into())
    }

    fn environment(text: impl Into<String>) -> Self {
        Self(3, text.into())
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        Self(error.code, chain_of(&error))
    }
}

impl From<otedama_sharelog::LogError> for Failure {
    fn from(error: otedama_sharelog::LogError) -> Self {
        Self(error.exit_code(), chain_of(&error))
    }
}

fn main() -> ExitCode {
    let started = Instant::now();
    let cli = Cli::parse();
    match run(cli.command, started) {
        Ok(code) => ExitCode::from(code),
        Err(Failure(code, text)) => {
            eprintln!("otedama: {text}");
            ExitCode::from(code)
        }
    }
}

fn run(command: Commands, started: Instant) -> Result<u8, Failure> {
    match command {
        Commands::Demo(args) => {
            raise_nofile();
            demo::run(&args, started, &stop_flag()?).map_err(|error| match error.downcast::<StartError>() {
                Ok(start) => Failure::from(*start),
                Err(other) => Failure::environment(chain_of(&*other)),
            })
        }
        Commands::Serve(args) => serve(&args, started),
        Commands::Check(args) => check(&args),
        Commands::Status { config, json } => {
            let config = load(&config)?;
            let (text, code) =
                status::report(&config.stats.listen.to_string(), json).map_err(|error| Failure::environment(chain_of(&error)))?;
            print(&text)?;
            Ok(code)
        }
        Commands::Top { config, url, once, json } => show_top(&config, url.as_deref(), once, json),
        Commands::Shares(args) => shares::run(&args),
        Commands::Sql(args) => sql::run(&args),
        Commands::Schema { single: _, cluster, legacy, reader, from, keep_days, config } => {
            let flavour = match (cluster, legacy) {
                (Some(name), _) => Flavour::Cluster(name),
                (None, true) => Flavour::Legacy,
                (None, false) => Flavour::Single,
            };
            let database = load(&config)?.clickhouse.database;
            print(&match (reader, from) {
                (Some(name), _) => schema_reader(&flavour, &database, &name)?,
                (None, Some(from)) => schema::script_from(&flavour, &database, from, keep_days),
                (None, None) => schema::script(&flavour, &database, keep_days),
            })?;
            Ok(0)
        }
        Commands::Log(LogCommand::Inspect(log)) => {
            print(&otedama_sharelog::inspect::dump(&dir_of(&log)?)?)?;
            Ok(0)
        }
        Commands::Log(LogCommand::Verify { log, ledger, json }) => verify(&dir_of(&log)?, ledger.as_deref(), json),
        Commands::Log(LogCommand::Replay(args)) => log_replay::run(&args),
        Commands::Log(LogCommand::Export(args)) => log_export::run(&args),
        Commands::Reconcile { config, repair: true, yes, json } => repair(&load(&config)?, yes, json),
        Commands::Reconcile { config, json, .. } => reconcile(&load(&config)?, json),
        Commands::Tune { action, state, root, config, json } => tune(&action, &state, root, &load(&config)?, json),
        Commands::Config(ConfigCommand::Init) => print(&Config::commented_default()).map(|()| 0),
        Commands::Config(ConfigCommand::Show { config, origin }) => print(&load(&config)?.show(origin)).map(|()| 0),
        Commands::Config(ConfigCommand::Docs) => print(&Config::docs_markdown()).map(|()| 0),
    }
}

/// Prints to standard output; a reader that has gone away (`| head`) is not an error of ours.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| if text.ends_with('\n') { Ok(()) } else { out.write_all(b"\n") }) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::environment(format!("writing to standard output failed: {error}"))),
    }
}

fn load(arg: &ConfigArg) -> Result<Config, Failure> {
    load_from(arg.config.as_deref())
}

fn load_from(path: Option<&Path>) -> Result<Config, Failure> {
    Config::load(path, config::process_env()).map_err(|error| Failure::usage(chain_of(&error)))
}

fn dir_of(log: &LogArg) -> Result<PathBuf, Failure> {
    match &log.dir {
        Some(dir) => Ok(dir.clone()),
        None => Ok(load_from(log.config.as_deref())?.log.dir),
    }
}

/// Prints the findings on a config; true when `serve` must not start.
fn judge(config: &Config) -> bool {
    let findings = config.validate();
    for finding in &findings {
        eprintln!("{finding}");
    }
    Config::is_refused(&findings)
}

fn stop_flag() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, stop.clone())
            .map_err(|error| Failure::environment(format!("cannot handle signal {signal}: {error}")))?;
    }
    Ok(stop)
}

fn raise_nofile() {
    if let Err(error) = otedama_tuning::raise_nofile_soft() {
        eprintln!("warning: the limit of open files could not be raised: {error}");
    }
}

fn serve(args: &ServeArgs, started: Instant) -> Result<u8, Failure> {
    let config = load(&args.config)?;
    if judge(&config) {
        return Err(Failure::usage("the config is refused; mend what stands above"));
    }
    raise_nofile();
    let stop = stop_flag()?;
    let capture = args.capture.clone().map(|dir| CaptureOrder { dir, bytes_max: args.capture_max_mib << 20 });
    let replay_of = args.replay_of.as_deref().map(Replay::read).transpose().map_err(StartError::from)?;
    let pool = Pool::start(&config, started, Wire { capture, replay_of })?;
    let practice = if config.chain.is_practice() { "   (PRACTICE chain)" } else { "" };
    for address in pool.stratum() {
        println!("listening on {address}{practice}");
    }
    println!("stats on http://{}/", pool.stats_address());
    println!("sockets by {}", pool.driver());
    println!("share log {}; listening {:.1} ms after the start", config.log.dir.display(), pool.started().elapsed().as_secs_f64() * 1000.0);
    if let Some(capture) = pool.capture() {
        println!("{}", capture.notice());
    }
    while !stop.load(Ordering::Relaxed) && pool.is_alive() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let died = !pool.is_alive();
    if died {
        eprintln!("error: a thread of the pool has ended by itself; draining what is left");
    }
    let drained = pool.stop();
    let shares = &drained.snapshot.shares;
    println!(
        "drained: received {} = accepted {} + rejected {}, logged {}, segments sealed {}",
        shares.received,
        shares.accepted,
        shares.rejected.total(),
        shares.logged,
        drained.snapshot.log.segments_sealed
    );
    if died || !drained.clean {
        return Err(Failure::environment("the pool did not end in order; `otedama log verify` tells what the log holds"));
    }
    Ok(0)
}

fn check(args: &ConfigArg) -> Result<u8, Failure> {
    let config = load(args)?;
    let refused = judge(&config);
    let cores = wiring::cores_of(&config)?;
    let connections = config.stratum.max_connections;
    let descriptors = otedama_tuning::raise_nofile_soft().map_or(u64::MAX, |(_, now)| now);
    let (plan, why_mio) =
        Drivers::plan(wiring::choice_of(&config), connections as usize).map_err(|error| Failure::usage(chain_of(&error)))?;
    let limits = check::Limits::of(&config, cores.net.len() as u64, cores.validate.len() as u64).with_driver(&plan);
    let most = MioDriver::connections_of(usize::try_from(descriptors).unwrap_or(usize::MAX));
    let short = if plan.rings == 0 && connections as usize > most {
        format!("; a connection takes a descriptor, of which this process may have {descriptors}: no more than {most} connections get in")
    } else {
        String::new()
    };
    let driver = match (plan.rings, why_mio) {
        (0, None) => format!("mio{short}"),
        (0, Some(why)) => format!("mio, as io_uring cannot be used: {why}{short}"),
        (rings, _) => format!("{}, {connections} connections of a net in {rings} tables of {}", plan.name, plan.places),
    };
    print(&format!("cores: {cores:?}\ndriver: {driver}\n\n{}", check::table(&config, &limits)))?;
    if refused {
        return Err(Failure::usage("the config is refused; mend what stands above"));
    }
    wiring::assembler_settings(&config)?;
    Ok(0)
}

fn show_top(config: &ConfigArg, url: Option<&str>, once: bool, json: bool) -> Result<u8, Failure> {
    let failed = |error: top::TopError| Failure(error.code(), chain_of(&error));
    let stats = match url {
        Some(url) => top::address_of(url).map_err(failed)?,
        None => load(config)?.stats.listen.to_string(),
    };
    let stop = stop_flag()?;
    top::run(&top::TopSettings { stats, once, json }, &stop).map_err(failed)?;
    Ok(0)
}

fn verify(dir: &Path, ledger: Option<&Path>, json: bool) -> Result<u8, Failure> {
    let report = otedama_sharelog::verify::verify(dir, ledger)?;
    if json {
        print(&report.to_json())?;
    } else {
        let mut text = format!("segments {}, rows {}\n", report.segments, report.rows);
        for (status, rows) in otedama_primitives::ShareStatus::ALL.iter().zip(report.by_status) {
            text.push_str(&format!("  {:<15} {rows}\n", status.label()));
        }
        for problem in &report.problems {
            text.push_str(&format!("problem: {problem}\n"));
        }
        text.push_str(if report.is_clean() { "clean\n" } else { "NOT clean\n" });
        print(&text)?;
    }
    Ok(u8::from(!report.is_clean()))
}

fn schema_reader(flavour: &Flavour, database: &str, name: &str) -> Result<String, Failure> {
    if !schema::is_user_name(name) {
        return Err(Failure::usage(format!("--reader {name:?}: write 1 to 64 letters, digits and underscores, not first a digit")));
    }
    // Not an argument: those are seen by everybody on the machine.
    match std::env::var("OTEDAMA_READER_PASSWORD") {
        Ok(password) if !password.is_empty() => Ok(schema::reader(flavour, database, name, &password)),
        _ => Err(Failure::usage("--reader wants the user's password in OTEDAMA_READER_PASSWORD; it is written as its SHA-256 alone")),
    }
}

fn event_loop() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::environment(format!("starting an event loop failed: {error}")))
}

fn clickhouse_of(config: &Config) -> Result<otedama_shipper::ShipperSettings, Failure> {
    wiring::shipper_settings(config)
        .ok_or_else(|| Failure::usage("no ClickHouse is configured: set [clickhouse] url, or read the log itself with `otedama shares`"))
}

fn reconcile(config: &Config, json: bool) -> Result<u8, Failure> {
    let settings = clickhouse_of(config)?;
    let report = event_loop()?
        .block_on(otedama_shipper::reconcile(&settings, &config.log.dir))
        .map_err(|error| Failure::environment(chain_of(&error)))?;
    let body = serde_json::to_string(&report).map_err(|error| Failure::environment(error.to_string()))?;
    for damaged in &report.damaged {
        eprintln!("warning: {damaged}");
    }
    if json {
        print(&body)?;
    } else {
        print(&format!(
            "segments {}, rows in the log {}, rows on the server {}\nmissing: {:?}\ndoubled: {:?}\n{}",
            report.segments,
            report.rows_log,
            report.rows_server,
            report.missing,
            report.doubled,
            if report.is_clean() { "clean" } else { "NOT clean" }
        ))?;
    }
    Ok(u8::from(!report.is_clean()))
}

fn repair(config: &Config, allow_delete: bool, json: bool) -> Result<u8, Failure> {
    let settings = clickhouse_of(config)?;
    let report = event_loop()?
        .block_on(otedama_shipper::repair(&settings, &config.log.dir, allow_delete))
        .map_err(|error| Failure::environment(chain_of(&error)))?;
    if json {
        print(&serde_json::to_string(&report).map_err(|error| Failure::environment(error.to_string()))?)?;
    } else {
        let mut text = format!("deleted on the server: {:?}\nsent again: {:?}\n", report.deleted, report.shipped_again);
        for hours in &report.rebuilt {
            text.push_str(&format!("summed again: {} from {} to {}\n", hours.roll_up, hours.since, hours.until));
        }
        for left in &report.left {
            text.push_str(&format!("left: {}\n", left.what));
            for statement in &left.statements {
                text.push_str(&format!("    {statement};\n"));
            }
        }
        text.push_str(&format!(
            "segments {}, rows in the log {}, rows on the server {}: {}",
            report.after.segments,
            report.after.rows_log,
            report.after.rows_server,
            if report.after.is_clean() { "clean" } else { "NOT clean" }
        ));
        print(&text)?;
    }
    Ok(u8::from(!report.after.is_clean() || !report.left.is_empty()))
}

fn tune(action: &str, state: &Path, root: PathBuf, config: &Config, json: bool) -> Result<u8, Failure> {
    let action: Action = action.parse().map_err(Failure::usage)?;
    let host = Host::new(root).with_connections(u64::from(config.stratum.max_connections));
    let outcome = otedama_tuning::tune(action, &host, state, json, &mut std::io::stdout().lock());
    outcome.map(ExitFinding::code).map_err(|error| Failure(error.exit_code(), chain_of(&error)))
}
