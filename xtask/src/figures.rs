//! `cargo xtask figures <topic>`: measures the release binaries on this machine and writes docs/figures/<topic>.json.
//!
//! Two servers that are compared run in turn, never one after the other's whole series: clock speed drifts, and a ratio inside of one pair does not.
mod day;
mod drivers;
mod log;
mod network;
mod pipeline;
mod ship;
mod sql;
mod suites;

use crate::Failure;
use crate::measure::{self, Process, Scratch, median};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topic {
    Pipeline,
    Memory,
    Start,
    Kernels,
    Drivers,
    Log,
    Sql,
    Loadgen,
    Parser,
    Network,
    Ship,
    Outages,
    Scan,
    Day,
}

/// A topic with its sizes.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    topic: Topic,
    runs: usize,
    seconds: u32,
    build: bool,
    /// Of the topic `network`: what is measured, in this order.
    parts: Vec<network::Part>,
    /// Of the topics `scan`, `day` and `sql`: rows of the log.
    rows: u32,
}

impl Request {
    /// From the command line.
    pub fn parse(topic: &str, words: &[&str]) -> Result<Self, Failure> {
        let (topic, runs, seconds) = match topic {
            "pipeline" => (Topic::Pipeline, 5, 5),
            "memory" => (Topic::Memory, 3, 5),
            "start" => (Topic::Start, 15, 0),
            "kernels" => (Topic::Kernels, 5, 0),
            "drivers" => (Topic::Drivers, 5, 5),
            "log" => (Topic::Log, 3, 5),
            "sql" => (Topic::Sql, 3, 0),
            "loadgen" => (Topic::Loadgen, 20, 20),
            "parser" => (Topic::Parser, 5, 0),
            "network" => (Topic::Network, 5, 5),
            "ship" => (Topic::Ship, 3, 0),
            "outages" => (Topic::Outages, 1, 60),
            "scan" => (Topic::Scan, 5, 0),
            "day" => (Topic::Day, 1, 0),
            other => return Err(Failure::Usage(format!("there is no topic {other}"))),
        };
        let rows = match topic {
            Topic::Day => DAY_ROWS,
            Topic::Sql => sql::ROWS,
            _ => SCAN_ROWS,
        };
        let mut request = Self { topic, runs, seconds, build: true, parts: Vec::new(), rows };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut number = || words.next().and_then(|value| value.parse::<u32>().ok()).filter(|value| (1..=1000).contains(value));
            match *word {
                "--runs" => request.runs = number().ok_or_else(|| Failure::Usage("--runs wants 1 to 1000".to_owned()))? as usize,
                "--seconds" => request.seconds = number().ok_or_else(|| Failure::Usage("--seconds wants 1 to 1000".to_owned()))?,
                "--no-build" => request.build = false,
                "--rows" if matches!(request.topic, Topic::Scan | Topic::Day | Topic::Sql) => {
                    let rows = words.next().and_then(|value| value.parse().ok()).filter(|rows| (10_000..=1_000_000_000).contains(rows));
                    request.rows = rows.ok_or_else(|| Failure::Usage("--rows wants 10000 to 1000000000".to_owned()))?;
                }
                "--part" if request.topic == Topic::Network => {
                    let part = words.next().and_then(|name| network::Part::parse(name));
                    let names = network::Part::ALL.map(network::Part::name).join(", ");
                    request.parts.push(part.ok_or_else(|| Failure::Usage(format!("--part wants one of {names}")))?);
                }
                other => return Err(Failure::Usage(format!("figures does not know {other}"))),
            }
        }
        if request.topic == Topic::Network && request.parts.is_empty() {
            request.parts = network::Part::ALL.into_iter().filter(|&part| part != network::Part::Million).collect();
        }
        Ok(request)
    }

    fn name(&self) -> &'static str {
        match self.topic {
            Topic::Pipeline => "pipeline",
            Topic::Memory => "memory",
            Topic::Start => "start",
            Topic::Kernels => "kernels",
            Topic::Drivers => "drivers",
            Topic::Log => "log",
            Topic::Sql => "sql",
            Topic::Loadgen => "loadgen",
            Topic::Parser => "parser",
            Topic::Network => "network",
            Topic::Ship => "ship",
            Topic::Outages => "outages",
            Topic::Scan => "scan",
            Topic::Day => "day",
        }
    }

    /// Suites of `benches` that it consists of; none where the pool itself is measured.
    fn suites(&self) -> &'static [&'static str] {
        match self.topic {
            Topic::Kernels => &["kernels", "stage"],
            Topic::Parser => &["parser"],
            Topic::Pipeline
            | Topic::Memory
            | Topic::Start
            | Topic::Drivers
            | Topic::Log
            | Topic::Sql
            | Topic::Loadgen
            | Topic::Network
            | Topic::Ship
            | Topic::Outages
            | Topic::Scan
            | Topic::Day => &[],
        }
    }

    /// The packages that it measures.
    fn packages(&self) -> &'static [&'static str] {
        match self.topic {
            Topic::Kernels | Topic::Parser => &["benches"],
            // Examples and tests, which cargo builds as it runs them.
            Topic::Sql | Topic::Ship | Topic::Outages => &[],
            Topic::Scan => &["otedama-sharelog"],
            Topic::Pipeline | Topic::Memory | Topic::Start | Topic::Drivers | Topic::Log | Topic::Network | Topic::Day => {
                &["otedama", "loadgen"]
            }
            Topic::Loadgen => &["loadgen"],
        }
    }

    /// The command that repeats this measurement.
    fn command(&self) -> String {
        let has_seconds = matches!(
            self.topic,
            Topic::Pipeline | Topic::Memory | Topic::Drivers | Topic::Log | Topic::Network | Topic::Outages | Topic::Loadgen
        );
        let seconds = if has_seconds { format!(" --seconds {}", self.seconds) } else { String::new() };
        let rows =
            if matches!(self.topic, Topic::Scan | Topic::Day | Topic::Sql) { format!(" --rows {}", self.rows) } else { String::new() };
        format!("cargo xtask figures {} --runs {}{seconds}{rows}", self.name(), self.runs)
    }
}

/// A thousand shares a second.
const DAY_ROWS: u32 = 86_400_000;
/// Rows that `otedama shares` sums unless told otherwise: seven gigabytes of log.
const SCAN_ROWS: u32 = 100_000_000;
const SERVER_CORE: usize = 0;
const LOAD_CORE: usize = 1;
/// What one side of a comparison burns that is to be found.
const BURN_PERCENT: u32 = 5;
/// Connections of the memory topic: both ends stay under the 20,000 descriptors that small machines allow a process.
const IDLE_CONNECTIONS: u32 = 9_000;

struct Bench<'a> {
    root: &'a Path,
    otedama: PathBuf,
    loadgen: PathBuf,
    benches: PathBuf,
    examples: PathBuf,
    request: &'a Request,
    cpu: String,
    commit: String,
}

/// Measures and writes the file.
pub fn run(root: &Path, request: &Request) -> Result<(), Failure> {
    let one_core_does = matches!(request.topic, Topic::Kernels | Topic::Parser | Topic::Sql | Topic::Scan);
    if !one_core_does && std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        return Err(Failure::Environment("figures need two cores: the server has one of its own".to_owned()));
    }
    if request.build && !request.packages().is_empty() {
        let packages = request.packages().iter().flat_map(|package| ["--package", package]);
        let status = Command::new("cargo").args(["build", "--release"]).args(packages).current_dir(root).status();
        if !status.is_ok_and(|status| status.success()) {
            return Err(Failure::Environment("cargo build --release failed".to_owned()));
        }
        let examples: &[&[&str]] = match request.topic {
            Topic::Log | Topic::Scan => &[&["otedama-sharelog", "--examples"]],
            Topic::Day => &[&["otedama-replay", "--example", "day"], &["otedama-shipper", "--example", "ship_log"]],
            _ => &[],
        };
        for words in examples {
            let status = Command::new("cargo").args(["build", "--release", "--package"]).args(*words).current_dir(root).status();
            if !status.is_ok_and(|status| status.success()) {
                return Err(Failure::Environment("cargo build --release --examples failed".to_owned()));
            }
        }
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |folder| root.join(folder));
    let bench = Bench {
        root,
        otedama: target.join("release/otedama"),
        loadgen: target.join("release/loadgen"),
        benches: target.join("release/benches"),
        examples: target.join("release/examples"),
        request,
        cpu: measure::cpu(),
        commit: measure::commit(root),
    };
    let path = root.join("docs/figures").join(format!("{}.json", request.name()));
    let figures = match request.topic {
        Topic::Pipeline => bench.pipeline()?,
        Topic::Memory => bench.memory()?,
        Topic::Start => bench.start()?,
        Topic::Kernels | Topic::Parser => bench.suites()?,
        Topic::Drivers => bench.drivers()?,
        Topic::Log => bench.log()?,
        Topic::Sql => bench.sql()?,
        Topic::Loadgen => bench.comparison()?,
        Topic::Network => bench.network(&path)?,
        Topic::Ship => bench.ship()?,
        Topic::Outages => bench.outages()?,
        Topic::Scan => bench.scan()?,
        Topic::Day => bench.day()?,
    };
    println!("{}wrote {}", write(&path, figures)?, path.display());
    Ok(())
}

/// Writes a figures file and gives its text.
fn write(path: &Path, figures: Vec<Value>) -> Result<String, Failure> {
    let text = format!("{:#}\n", Value::from(figures));
    let folder = path.parent().unwrap_or(path);
    std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(path, &text))
        .map_err(|error| Failure::Environment(format!("{}: {error}", path.display())))?;
    Ok(text)
}

/// A pool on the practice chain, ready for miners.
struct Server {
    process: Process,
    stratum: SocketAddr,
    stats: SocketAddr,
    listening_ms: f64,
    config: PathBuf,
    // Last, so that the folder goes after the process.
    _scratch: Scratch,
}

/// One field of a loadgen result; absent or of another type is an error, never a 0.
fn number(result: &Value, key: &str) -> Result<f64, Failure> {
    result[key].as_f64().ok_or_else(|| Failure::Environment(format!("loadgen's last line has no number {key}: {result}")))
}

/// The config of a measured server: practice chain, no ClickHouse, fixed difficulty at its lower end, everything on one core.
fn config(stratum: SocketAddr, stats: SocketAddr, log: &Path, max_connections: u32, isa: &str, driver: &str, ack: &str) -> String {
    format!(
        "[stratum]\nlisten = [\"{stratum}\"]\ndifficulty = 2.4e-10\nmax_connections = {max_connections}\n\n[vardiff]\nenabled = false\n\n\
         [chain]\nrpc = [\"practice\"]\n\n[log]\ndir = {log:?}\nack = \"{ack}\"\n\n[limits]\nconnects_per_ip_per_s = 0\nrefused_per_s = 0\nauthorize_within_s = 3600\n\n[stats]\nlisten = \"{stats}\"\n\n\
         [layout]\nnet = \"{SERVER_CORE}\"\nvalidate = \"{SERVER_CORE}\"\nlog = \"{SERVER_CORE}\"\ncontrol = \"{SERVER_CORE}\"\nstats = \"{SERVER_CORE}\"\nisa = \"{isa}\"\ndriver = \"{driver}\"\n"
    )
}

/// One server's series in a comparison.
#[derive(Default)]
struct Series {
    per_cpu_s: Vec<f64>,
    per_s: Vec<f64>,
    p50_us: Vec<f64>,
    p99_us: Vec<f64>,
}

impl Series {
    fn push(&mut self, result: &Value) -> Result<(), Failure> {
        if number(result, "wrong")? != 0.0 || number(result, "unanswered")? != 0.0 {
            return Err(Failure::Environment(format!("a run with wrong or missing answers is no measurement: {result}")));
        }
        self.per_cpu_s.push(number(result, "server_shares_per_cpu_s")?);
        self.per_s.push(number(result, "shares_per_s")?);
        self.p50_us.push(number(&result["latency_us"], "p50")?);
        self.p99_us.push(number(&result["latency_us"], "p99")?);
        Ok(())
    }
}

impl Bench<'_> {
    fn server(&self, name: &str, max_connections: u32, isa: &str) -> Result<Server, Failure> {
        self.server_on(name, max_connections, isa, "auto", "process")
    }

    fn server_on(&self, name: &str, max_connections: u32, isa: &str, driver: &str, ack: &str) -> Result<Server, Failure> {
        let scratch = Scratch::new(self.root, name)?;
        let (stratum, stats) = (measure::free_address()?, measure::free_address()?);
        let path = scratch.path().join("otedama.toml");
        std::fs::write(&path, config(stratum, stats, &scratch.path().join("log"), max_connections, isa, driver, ack))
            .map_err(|error| Failure::Environment(format!("{}: {error}", path.display())))?;
        let (process, listening_ms) = self.boot(&path, stratum)?;
        Ok(Server { process, stratum, stats, listening_ms, config: path, _scratch: scratch })
    }

    /// Starts the pool by a config that stands, and waits until it listens; with the milliseconds that took.
    fn boot(&self, config: &Path, stratum: SocketAddr) -> Result<(Process, f64), Failure> {
        let since = Instant::now();
        let output = config.with_extension("txt");
        let mut process = Process::start(&self.otedama, &["serve", "--config", &config.to_string_lossy()], SERVER_CORE, &output)?;
        let listening_ms = measure::wait_listening(stratum, &mut process, since).map_err(|failure| match failure {
            Failure::Environment(what) => Failure::Environment(format!("{what}\n{}", process.said().trim_end())),
            usage => usage,
        })?;
        Ok((process, listening_ms))
    }

    fn load(&self, target: SocketAddr, pid: u32, connections: u32, depth: u32, seed: usize) -> Result<Value, Failure> {
        let arguments = format!(
            "run --target {target} --connections {connections} --depth {depth} --seconds {} --warmup 1 --mode valid --seed {seed} --server-pid {pid} --json",
            self.request.seconds
        );
        measure::last_json(&self.loadgen, &arguments.split(' ').collect::<Vec<_>>(), LOAD_CORE)
    }

    /// Resident bytes for each idle connection.
    fn memory(&self) -> Result<Vec<Value>, Failure> {
        let (mut per_connection, mut small) = (Vec::new(), Vec::new());
        for run in 0..self.request.runs {
            let base = self.server(&format!("memory-base-{run}"), 64, "auto")?;
            // Housekeeping has run and the first template is out.
            std::thread::sleep(Duration::from_secs(3));
            let base_bytes = measure::resident_bytes(base.process.pid())?;
            base.process.stop()?;
            let server = self.server(&format!("memory-idle-{run}"), 10_000, "auto")?;
            let scratch = Scratch::new(self.root, &format!("memory-load-{run}"))?;
            // The generator outlasts the measurement and is ended with it.
            let arguments = format!(
                "run --target {} --connections {IDLE_CONNECTIONS} --depth 1 --mode idle --seconds 120 --warmup 0 --seed 1",
                server.stratum
            );
            let output = scratch.path().join("loadgen.txt");
            let mut load = Process::start(&self.loadgen, &arguments.split(' ').collect::<Vec<_>>(), LOAD_CORE, &output)?;
            let since = Instant::now();
            loop {
                let open = measure::get_json(server.stats, "/api/stats")?["connections"]["open"].as_u64().unwrap_or(0);
                if open >= u64::from(IDLE_CONNECTIONS) {
                    break;
                }
                if since.elapsed() > Duration::from_secs(60) || load.ended() {
                    let said = std::fs::read_to_string(&output).unwrap_or_default();
                    return Err(Failure::Environment(format!(
                        "only {open} of {IDLE_CONNECTIONS} idle connections stand\n{}",
                        said.trim_end()
                    )));
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            std::thread::sleep(Duration::from_secs(self.request.seconds.into()));
            let bytes = measure::resident_bytes(server.process.pid())?;
            println!("run {run}: {bytes} bytes with {IDLE_CONNECTIONS} idle connections, {base_bytes} with max_connections = 64");
            per_connection.push((bytes as f64 - base_bytes as f64) / f64::from(IDLE_CONNECTIONS));
            small.push(base_bytes as f64);
            drop(load);
            server.process.stop()?;
        }
        let conditions =
            format!("{IDLE_CONNECTIONS} connections, subscribed, authorized and silent, on loopback; everything on core {SERVER_CORE}");
        let counted = format!(
            "(RssAnon with {IDLE_CONNECTIONS} idle connections - RssAnon of the same layout with max_connections = 64) / {IDLE_CONNECTIONS}: VmRSS less the mapped journal files, which come in steps of 32 MiB and belong to no connection; sockets in the kernel are in neither"
        );
        Ok(vec![
            self.figure("idle_connection_bytes", &per_connection, "bytes", &counted, &conditions),
            self.figure(
                "empty_server_bytes",
                &small,
                "bytes",
                "RssAnon three seconds after the start",
                "max_connections = 64, no connection",
            ),
        ])
    }

    /// From exec to listening, and the size of the binary.
    fn start(&self) -> Result<Vec<Value>, Failure> {
        let mut listening = Vec::new();
        for run in 0..self.request.runs {
            let server = self.server(&format!("start-{run}"), 10_000, "auto")?;
            listening.push(server.listening_ms);
            server.process.stop()?;
        }
        let path = &self.otedama;
        let bytes = std::fs::metadata(path).map_err(|error| Failure::Environment(format!("{}: {error}", path.display())))?.len();
        let conditions = format!("practice chain, empty log folder, files warm in the page cache, server on core {SERVER_CORE}");
        Ok(vec![
            self.figure(
                "listening_ms",
                &listening,
                "ms",
                "from starting the process to the first accepted connection, looked for every 0.2 ms",
                &conditions,
            ),
            self.figure(
                "binary_bytes",
                &[bytes as f64],
                "bytes",
                "target/release/otedama, stripped",
                "release profile: fat LTO, one codegen unit",
            ),
        ])
    }

    /// Whether `loadgen run --against` finds a known difference between two null servers, and none where there is none.
    fn comparison(&self) -> Result<Vec<Value>, Failure> {
        let (runs, seconds) = (self.request.runs, self.request.seconds);
        let mut trials = Command::new(&self.loadgen);
        trials.args([
            "trial",
            "--trials",
            &runs.to_string(),
            "--seconds",
            &seconds.to_string(),
            "--burn-percent",
            &BURN_PERCENT.to_string(),
        ]);
        // It chooses its cores itself, and exits 1 where it misses its bar: a figure all the same.
        let outcome = measure::last_json_of(trials, &[0, 1])?;
        println!("{outcome}");
        let ratios = |key: &str| -> Result<Vec<f64>, Failure> {
            let values: Option<Vec<f64>> = outcome[key].as_array().map(|values| values.iter().filter_map(Value::as_f64).collect());
            values
                .filter(|values| values.len() == runs)
                .ok_or_else(|| Failure::Environment(format!("loadgen trial has no {key}: {outcome}")))
        };
        let percent = |key: &str| number(&outcome, key).map(|count| [100.0 * count / runs as f64]);
        let conditions = format!(
            "two null servers on core {SERVER_CORE}, loadgen on core {LOAD_CORE}, 64 x 8, in turns of half a second for {seconds} s a trial; differences up to 1 % are none"
        );
        let trials = format!("{runs} trials");
        let found = format!("{trials} with a burn of {BURN_PERCENT} % on one side: those in which it was found");
        let cried = format!("{trials} of two equal servers: those in which a difference was claimed");
        let ratio = "paired ratio of shares per server CPU-second, one value a trial";
        Ok(vec![
            self.figure("against_burn_found_percent", &percent("found")?, "%", &found, &conditions),
            self.figure("against_equal_claimed_percent", &percent("cried_wolf")?, "%", &cried, &conditions),
            self.figure(
                "against_burn_ratio",
                &ratios("burnt_ratios")?,
                "ratio",
                &format!("{ratio}; one burns {BURN_PERCENT} %"),
                &conditions,
            ),
            self.figure("against_equal_ratio", &ratios("equal_ratios")?, "ratio", &format!("{ratio}; both alike"), &conditions),
        ])
    }

    /// One entry of a figures file: the median, with the least and the largest run as its spread.
    fn figure(&self, name: &str, values: &[f64], unit: &str, counted: &str, conditions: &str) -> Value {
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        json!({
            "name": name,
            "value": rounded(median(values)),
            "unit": unit,
            "counted": counted,
            "runs": values.len(),
            "spread": [rounded(least), rounded(largest)],
            "conditions": conditions,
            "cpu": self.cpu,
            "commit": self.commit,
            "command": self.request.command(),
        })
    }
}

/// Four significant digits: what such runs can tell apart. Whole numbers from 10,000 up keep their zeros.
fn rounded(value: f64) -> Value {
    if value == 0.0 || !value.is_finite() {
        return json!(0);
    }
    let step = 10_f64.powi(value.abs().log10().floor() as i32 - 3);
    if step >= 1.0 {
        return json!(((value / step).round() * step) as i64);
    }
    // Through text, because 0.1 x 3 is 0.30000000000000004.
    let digits = (-step.log10()).round() as usize;
    format!("{value:.digits$}").parse::<f64>().map_or(Value::Null, |value| json!(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_in_the_file_repeats_the_measurement() {
        let request = Request::parse("pipeline", &["--runs", "7", "--seconds", "3", "--no-build"]).unwrap();
        assert_eq!(request.command(), "cargo xtask figures pipeline --runs 7 --seconds 3");
        let request = Request::parse("loadgen", &["--runs", "7", "--seconds", "3"]).unwrap();
        assert_eq!(request.command(), "cargo xtask figures loadgen --runs 7 --seconds 3");
        let words: Vec<String> = request.command().split(' ').skip(4).map(str::to_owned).collect();
        let again = Request::parse("pipeline", &words.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        assert_eq!((again.runs, again.seconds), (7, 3));
        let request = Request::parse("scan", &["--rows", "100000000"]).unwrap();
        assert_eq!(request.command(), "cargo xtask figures scan --runs 5 --rows 100000000");
        assert!(Request::parse("log", &["--rows", "100000000"]).is_err());
        assert!(Request::parse("speed", &[]).is_err());
        assert!(Request::parse("start", &["--runs", "0"]).is_err());
        assert!(Request::parse("start", &["--runs"]).is_err());
    }

    #[test]
    fn figures_have_four_digits() {
        for (value, text) in [
            (1_234_567.0, "1235000"),
            (10_008.0, "10010"),
            (9_999.6, "10000"),
            (12.3456, "12.35"),
            (0.301_249, "0.3012"),
            (3.0, "3.0"),
            (0.0, "0"),
            (99.999, "100.0"),
        ] {
            assert_eq!(rounded(value).to_string(), text, "{value}");
        }
    }

    #[test]
    fn an_entry_has_the_published_keys_in_their_order() {
        let request = Request::parse("start", &[]).unwrap();
        let bench = Bench {
            root: Path::new("."),
            otedama: PathBuf::new(),
            loadgen: PathBuf::new(),
            benches: PathBuf::new(),
            examples: PathBuf::new(),
            request: &request,
            cpu: "c".into(),
            commit: "d".into(),
        };
        let entry = bench.figure("n", &[3.0, 1.0, 2.0], "ms", "counted", "conditions");
        assert_eq!(
            entry.to_string(),
            r#"{"name":"n","value":2.0,"unit":"ms","counted":"counted","runs":3,"spread":[1.0,3.0],"conditions":"conditions","cpu":"c","commit":"d","command":"cargo xtask figures start --runs 15"}"#
        );
    }

    #[test]
    fn a_run_with_a_wrong_answer_is_no_measurement() {
        let good =
            json!({"wrong": 0, "unanswered": 0, "server_shares_per_cpu_s": 5.0, "shares_per_s": 4, "latency_us": {"p50": 1, "p99": 2}});
        let mut series = Series::default();
        series.push(&good).unwrap();
        for (key, value) in [("wrong", json!(1)), ("unanswered", json!(2)), ("server_shares_per_cpu_s", Value::Null)] {
            let mut bad = good.clone();
            bad[key] = value;
            assert!(series.push(&bad).is_err(), "{key}");
        }
        assert_eq!(series.p99_us, [2.0]);
    }
}
