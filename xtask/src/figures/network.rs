//! The topic `network`: what farms, idle crowds, attackers and overload cost, part by part. A part replaces its own entries of docs/figures/network.json and
//! leaves those of the others, so that one can be measured again alone.
mod crowds;
mod hostile;

use super::{Bench, LOAD_CORE, SERVER_CORE, Series, Server, number, write};
use crate::Failure;
use crate::measure::{self, Process, Scratch, median};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

/// A part of the topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Many workers on a connection against one.
    Workers,
    /// A farm of 200,000 workers, and its way back after kill -9.
    Farm,
    /// 100,000 connections in one process.
    Hundred,
    /// 1,000,000 of them; only where it is asked for by name, as both ends take 9 GB.
    Million,
    /// Latency at half of saturation beside the null server, and the system calls of the share threads.
    Latency,
    /// 10,000 connections that send a byte a second.
    Slowloris,
    /// Connects without end.
    Flood,
    /// Three times saturation.
    Overload,
}

impl Part {
    pub(super) const ALL: [Self; 8] =
        [Self::Workers, Self::Farm, Self::Hundred, Self::Million, Self::Latency, Self::Slowloris, Self::Flood, Self::Overload];

    /// Key in the command line, and the start of the names of its figures.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Workers => "workers",
            Self::Farm => "farm",
            Self::Hundred => "hundred",
            Self::Million => "million",
            Self::Latency => "latency",
            Self::Slowloris => "slowloris",
            Self::Flood => "flood",
            Self::Overload => "overload",
        }
    }

    pub(super) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|part| part.name() == name)
    }
}

/// How long anything may take that takes seconds.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
/// Before a command: it runs where nobody else wants the core (chrt(1), SCHED_IDLE).
const IDLY: [&str; 3] = ["chrt", "--idle", "0"];
/// Workers on each connection, one beside many.
const WORKERS: [u32; 2] = [1, 50];
const FARM_CONNECTIONS: u32 = 4_000;
const FARM_WORKERS: u32 = 50;
const FARM_SHARES_PER_S: u32 = 27_000;
/// Connections of the latency part.
const LATENCY_CONNECTIONS: u32 = 1_000;
/// Shares per second while a share thread is traced: tracing makes every system call many times dearer.
const TRACED_SHARES_PER_S: u32 = 2_000;
const TRACED_S: u32 = 3;

/// A load generator on its core, with a folder for its result.
pub(super) struct Load {
    process: Process,
    scratch: Scratch,
}

impl Load {
    /// Starts `loadgen run` with these words.
    pub(super) fn start(bench: &Bench<'_>, name: &str, words: &str) -> Result<Self, Failure> {
        Self::start_by(&[], bench, name, words)
    }

    /// The same at the lowest priority: a crowd that is only there leaves the core to the generator whose latencies are measured.
    fn start_idly(bench: &Bench<'_>, name: &str, words: &str) -> Result<Self, Failure> {
        Self::start_by(&IDLY, bench, name, words)
    }

    fn start_by(before: &[&str], bench: &Bench<'_>, name: &str, words: &str) -> Result<Self, Failure> {
        let scratch = Scratch::new(bench.root, &format!("{name}-load"))?;
        let (loadgen, out) = (bench.loadgen.to_string_lossy(), scratch.path().join("out"));
        let out = out.to_string_lossy();
        let mut arguments = before.to_vec();
        arguments.extend([&*loadgen, "run"]);
        arguments.extend(words.split(' '));
        arguments.extend(["--json", "--out", &out]);
        let process = Process::start(Path::new(arguments[0]), &arguments[1..], LOAD_CORE, &scratch.path().join("loadgen.txt"))?;
        Ok(Self { process, scratch })
    }

    /// Waits until every connection is authorized and has a job.
    fn wait_ready(&mut self) -> Result<(), Failure> {
        let since = Instant::now();
        while !self.process.said().contains("ready: ") {
            if self.process.ended() || since.elapsed() > PATIENCE {
                return Err(Failure::Environment(format!("the farm is not ready\n{}", self.process.said().trim_end())));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Waits for its end; its result.
    pub(super) fn result(self, limit: Duration) -> Result<Value, Failure> {
        let Self { process, scratch } = self;
        // Its exit code says whether an answer was wrong or missing, and so does its result, which the caller looks at.
        process.wait(limit)?;
        result_in(&scratch)
    }

    /// Ends it now; its result up to here.
    fn stopped(self) -> Result<Value, Failure> {
        let Self { process, scratch } = self;
        process.stop()?;
        result_in(&scratch)
    }
}

fn result_in(scratch: &Scratch) -> Result<Value, Failure> {
    let path = scratch.path().join("out/result.json");
    let said = || std::fs::read_to_string(scratch.path().join("loadgen.txt")).unwrap_or_default();
    let text = std::fs::read_to_string(&path)
        .map_err(|error| Failure::Environment(format!("{}: {error}\n{}", path.display(), said().trim_end())))?;
    let result: Value = serde_json::from_str(&text).map_err(|error| Failure::Environment(format!("{}: {error}", path.display())))?;
    if number(&result, "wrong")? != 0.0 {
        return Err(Failure::Environment(format!("a run with wrong answers is no measurement: {result}\n{}", said().trim_end())));
    }
    if let Some(limit) = result["generator_limit"].as_str() {
        println!("the generator was the limit: {limit}");
    }
    Ok(result)
}

/// Percentile of a result's latency.
fn latency(result: &Value, key: &str) -> Result<f64, Failure> {
    number(&result["latency_us"], key)
}

/// A result whose honest miners noticed nothing but time.
pub(super) fn whole(result: Value) -> Result<Value, Failure> {
    for key in ["unanswered", "disconnects"] {
        if number(&result, key)? != 0.0 {
            return Err(Failure::Environment(format!("honest miners have {key}: {result}")));
        }
    }
    Ok(result)
}

/// Says what a bar of the issue makes of a value.
pub(super) fn bar(what: &str, value: f64, least: Option<f64>, most: Option<f64>) {
    let met = least.is_none_or(|least| value >= least) && most.is_none_or(|most| value <= most);
    let bound =
        least.map_or(String::new(), |least| format!(" at least {least}")) + &most.map_or(String::new(), |most| format!(" at most {most}"));
    println!("bar: {what} is {value:.4}, wanted{bound}: {}", if met { "met" } else { "MISSED" });
}

/// The entries of one part in the making.
struct Sheet<'a> {
    bench: &'a Bench<'a>,
    part: Part,
    conditions: String,
    figures: Vec<Value>,
}

impl Sheet<'_> {
    /// Adds an entry; its name gets the part's in front.
    fn add(&mut self, name: &str, values: &[f64], unit: &str, counted: &str) {
        let name = format!("{}_{name}", self.part.name());
        let mut entry = self.bench.figure(&name, values, unit, counted, &self.conditions);
        let request = self.bench.request;
        entry["command"] =
            json!(format!("cargo xtask figures network --part {} --runs {} --seconds {}", self.part.name(), request.runs, request.seconds));
        println!("{name}: {} {unit} of {values:?}", median(values));
        self.figures.push(entry);
    }
}

/// The entries of `old` without those of `part`, and `new` in their place; parts stand in their own order.
fn merged(old: &[Value], part: Part, new: Vec<Value>) -> Vec<Value> {
    let of = |entry: &Value| {
        let name = entry["name"].as_str().unwrap_or_default();
        Part::ALL.into_iter().position(|part| name.strip_prefix(part.name()).is_some_and(|rest| rest.starts_with('_')))
    };
    let own = Part::ALL.into_iter().position(|one| one == part);
    let mut all: Vec<Value> = old.iter().filter(|entry| of(entry) != own).cloned().chain(new).collect();
    all.sort_by_key(|entry| of(entry));
    all
}

fn read(path: &Path) -> Result<Vec<Value>, Failure> {
    let Ok(text) = std::fs::read_to_string(path) else { return Ok(Vec::new()) };
    serde_json::from_str(&text).map_err(|error| Failure::Environment(format!("{}: {error}", path.display())))
}

impl Bench<'_> {
    /// The parts that were asked for; each is written down as soon as it is measured.
    pub(super) fn network(&self, path: &Path) -> Result<Vec<Value>, Failure> {
        for &part in &self.request.parts {
            println!("-- {}", part.name());
            let mut sheet = Sheet { bench: self, part, conditions: String::new(), figures: Vec::new() };
            match part {
                Part::Workers => self.workers(&mut sheet)?,
                Part::Farm => self.large_farm(&mut sheet)?,
                Part::Hundred => self.crowd(&crowds::HUNDRED, &mut sheet)?,
                Part::Million => self.crowd(&crowds::WHOLE_MILLION, &mut sheet)?,
                Part::Latency => self.latency(&mut sheet)?,
                Part::Slowloris | Part::Flood => self.attacked(&mut sheet)?,
                Part::Overload => self.overload(&mut sheet)?,
            }
            write(path, merged(&read(path)?, part, sheet.figures))?;
        }
        read(path)
    }

    /// Shares per CPU-second where a connection carries many workers against one.
    fn workers(&self, sheet: &mut Sheet<'_>) -> Result<(), Failure> {
        let mut series = WORKERS.map(|_| Series::default());
        for run in 0..self.request.runs {
            for turn in 0..WORKERS.len() {
                let index = (run + turn) % WORKERS.len();
                let server = self.server(&format!("workers-{}-{run}", WORKERS[index]), 10_000, "auto")?;
                let words = format!(
                    "--target {} --connections 64 --depth 64 --workers-per-connection {} --seconds {} --warmup 1 --seed {} --server-pid {}",
                    server.stratum,
                    WORKERS[index],
                    self.request.seconds,
                    run + 1,
                    server.process.pid()
                );
                let result = Load::start(self, "workers", &words)?.result(PATIENCE)?;
                println!("run {run}: {} workers a connection: {result}", WORKERS[index]);
                series[index].push(&result)?;
                server.process.stop()?;
            }
        }
        sheet.conditions = format!(
            "64 connections x 64 shares in flight, shares of a connection's workers in turn, loopback, valid proof of work; server on core {SERVER_CORE}, loadgen on core {LOAD_CORE}; {} s after 1 s of warm-up",
            self.request.seconds
        );
        for (count, series) in WORKERS.iter().zip(&series) {
            let counted = format!("answered shares per second of server user and system time, {count} workers on each connection");
            sheet.add(&format!("{count}_shares_per_cpu_s"), &series.per_cpu_s, "shares/CPU-s", &counted);
        }
        let [one, many] = &series;
        let ratios: Vec<f64> = many.per_cpu_s.iter().zip(&one.per_cpu_s).map(|(many, one)| many / one).collect();
        sheet.add(
            "50_to_1_ratio",
            &ratios,
            "ratio",
            "shares per CPU-second with 50 workers on each connection to those with 1, within one pair of runs",
        );
        bar("50 workers to 1", median(&ratios), Some(0.90), None);
        Ok(())
    }

    /// What a farm of 200,000 workers costs, and how soon all of them are back after kill -9.
    fn large_farm(&self, sheet: &mut Sheet<'_>) -> Result<(), Failure> {
        let farm =
            format!("--connections {FARM_CONNECTIONS} --workers-per-connection {FARM_WORKERS} --rate {FARM_SHARES_PER_S} --warmup 2");
        let (mut cpu_percent, mut resident, mut set_up_s) = (vec![], vec![], vec![]);
        let mut latencies: [Vec<f64>; 3] = Default::default();
        let mut conditions_end = String::new();
        for run in 0..self.request.runs {
            let server = self.server(&format!("farm-{run}"), 10_000, "auto")?;
            let words = format!(
                "--target {} {farm} --seconds {} --seed {} --server-pid {}",
                server.stratum,
                self.request.seconds,
                run + 1,
                server.process.pid()
            );
            let mut load = Load::start(self, "farm", &words)?;
            load.wait_ready()?;
            // In the measured window: the warm-up is 2 s.
            std::thread::sleep(Duration::from_millis(2_000 + 500 * u64::from(self.request.seconds)));
            resident.push(measure::resident_bytes(server.process.pid())? as f64);
            let result = whole(load.result(PATIENCE)?)?;
            println!("run {run}: {result}");
            cpu_percent.push(number(&result, "server_cpu_us_per_share")? * number(&result, "shares_per_s")? / 1e4);
            set_up_s.push(number(&result, "set_up_s")?);
            for (values, key) in latencies.iter_mut().zip(["p50", "p99", "p999"]) {
                values.push(latency(&result, key)?);
            }
            if result["generator_limited"] == true {
                conditions_end = "; in a run or more the generator was late".to_owned();
            }
            server.process.stop()?;
        }
        let (back_s, listening_ms) = self.killed_farm(&farm)?;
        sheet.conditions = format!(
            "{FARM_CONNECTIONS} connections x {FARM_WORKERS} workers, open loop at {FARM_SHARES_PER_S} shares/s, loopback, valid proof of work; server on core {SERVER_CORE}, loadgen on core {LOAD_CORE}; {} s after 2 s of warm-up{conditions_end}",
            self.request.seconds
        );
        sheet.add("server_cpu_percent", &cpu_percent, "%", "user and system time of the server's process, of one core");
        sheet.add("resident_bytes", &resident, "bytes", "RssAnon of the server in the middle of the measured time");
        for (key, values) in ["p50", "p99", "p999"].into_iter().zip(&latencies) {
            sheet.add(&format!("latency_us_{key}"), values, "us", "from the time a share was due to its answer read");
        }
        sheet.add("set_up_s", &set_up_s, "s", "from the start of loadgen until all 200,000 workers were authorized for the first time");
        let counted = "from the first connection that broke by kill -9 of the server until all 200,000 workers were authorized again and had a job, with shares offered at the same rate meanwhile; start of the server included";
        sheet.add("back_after_kill_s", &back_s, "s", counted);
        sheet.add(
            "listening_after_kill_ms",
            &listening_ms,
            "ms",
            "from starting the server again, on the same log, to the first answer of its stats page, which it opens last",
        );
        Ok(())
    }

    /// Kills a server under its farm, as often as there are runs; seconds until the farm was whole again, and milliseconds until the server listened.
    fn killed_farm(&self, farm: &str) -> Result<(Vec<f64>, Vec<f64>), Failure> {
        let Server { mut process, stratum, stats, config, _scratch, .. } = self.server("farm-killed", 10_000, "auto")?;
        let mut load = Load::start(self, "farm-killed", &format!("--target {stratum} {farm} --seconds 3600 --seed 1 --reconnect"))?;
        load.wait_ready()?;
        let mut listening_ms = Vec::new();
        for kill in 0..self.request.runs {
            self.wait_full_rate(stats, &mut load)?;
            process.kill()?;
            let since = Instant::now();
            let (mut next, _) = self.boot(&config, stratum)?;
            // What connects may be taken by the dead server's socket, which io_uring holds for a moment: the page of the new one cannot be.
            while measure::get_json(stats, "/api/stats").is_err() {
                if since.elapsed() > PATIENCE || next.ended() {
                    return Err(Failure::Environment(format!("the server does not come back:\n{}", next.said().trim_end())));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            let ms = since.elapsed().as_secs_f64() * 1e3;
            println!("kill {kill}: listening again after {ms:.1} ms");
            listening_ms.push(ms);
            process = next;
        }
        self.wait_full_rate(stats, &mut load)?;
        let result = load.stopped()?;
        process.stop()?;
        let back_s: Vec<f64> = result["outages_s"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
        println!("{result}");
        if back_s.len() != self.request.runs {
            return Err(Failure::Environment(format!("{} kills made {} outages: {result}", self.request.runs, back_s.len())));
        }
        Ok((back_s, listening_ms))
    }

    /// Waits until shares come at the farm's whole rate, which takes every connection.
    fn wait_full_rate(&self, stats: SocketAddr, load: &mut Load) -> Result<(), Failure> {
        let since = Instant::now();
        let received = || -> Result<(f64, f64), Failure> {
            let stats = measure::get_json(stats, "/api/stats")?;
            Ok((number(&stats["shares"], "received")?, number(&stats["connections"], "open")?))
        };
        loop {
            let (before, at) = (received()?.0, Instant::now());
            std::thread::sleep(Duration::from_secs(1));
            let (after, open) = received()?;
            let rate = (after - before) / at.elapsed().as_secs_f64();
            if open >= f64::from(FARM_CONNECTIONS) && rate >= 0.98 * f64::from(FARM_SHARES_PER_S) {
                return Ok(());
            }
            if since.elapsed() > PATIENCE || load.process.ended() {
                return Err(Failure::Environment(format!(
                    "the farm does not come back: {open} connections, {rate:.0} shares/s\n{}",
                    load.process.said().trim_end()
                )));
            }
        }
    }

    /// Latency at half of saturation, in turns with the null server.
    fn latency(&self, sheet: &mut Sheet<'_>) -> Result<(), Failure> {
        let server = self.server("latency", 10_000, "auto")?;
        let scratch = Scratch::new(self.root, "latency-null")?;
        let null_address = measure::free_address()?;
        let words = ["null", "--listen", &null_address.to_string()];
        let mut null = Process::start(&self.loadgen, &words, SERVER_CORE, &scratch.path().join("null.txt"))?;
        measure::wait_listening(null_address, &mut null, Instant::now())?;
        let pid = server.process.pid();
        let closed = self.load(server.stratum, pid, LATENCY_CONNECTIONS, 1, 1)?;
        let mut saturated = Series::default();
        saturated.push(&closed)?;
        let saturation = median(&saturated.per_s);
        let rate = (saturation / 2.0).round();
        let pairs = 2 * self.request.runs;
        println!("saturation {saturation:.0} shares/s: {closed}");
        let who = if closed["generator_limited"] == true { ", where the generator was the limit" } else { "" };
        let words = format!(
            "--target {} --against {null_address} --connections {LATENCY_CONNECTIONS} --rate {rate} --seconds {} --repeat {pairs} --warmup 2 --seed 1 --server-pid {pid} --against-pid {}",
            server.stratum,
            self.request.seconds,
            null.pid()
        );
        let limit = PATIENCE + Duration::from_secs(2 * pairs as u64 * u64::from(self.request.seconds));
        let result = whole(Load::start(self, "latency", &words)?.result(limit)?)?;
        let rounds = result["paired"]["rounds"].as_array().filter(|rounds| rounds.len() == pairs);
        let rounds = rounds.ok_or_else(|| Failure::Environment(format!("loadgen has not {pairs} rounds: {result}")))?;
        let of = |side: &str, key: &str| rounds.iter().map(|round| number(&round[side], key)).collect::<Result<Vec<f64>, _>>();
        let busy = 100.0 * number(&result, "server_cpu_us_per_share")? * rate / 1e6;
        let late = &result["generator_late_us"];
        sheet.conditions = format!(
            "{LATENCY_CONNECTIONS} connections, open loop at half of saturation ({rate} shares/s{who}), {pairs} pairs of {} s in turns of half a second with loadgen null; both servers on core {SERVER_CORE}, loadgen on core {LOAD_CORE}; the pool used {busy:.0} % of its core, shares left {} us (p99) after their time",
            self.request.seconds, late["p99"]
        );
        sheet.add("saturation_shares_per_s", &saturated.per_s, "shares/s", "closed loop with one share in flight on each connection");
        for (key, most) in [("p50", Some(25.0)), ("p99", None), ("p999", Some(300.0))] {
            let (ours, nulls) = (of("latency_us", key)?, of("against_latency_us", key)?);
            let more: Vec<f64> = ours.iter().zip(&nulls).map(|(ours, null)| ours - null).collect();
            let listed: Vec<String> = ours.iter().zip(&nulls).map(|(ours, null)| format!("{ours}-{null}")).collect();
            println!("{key} of every pair, pool-null, us: {}", listed.join(" "));
            sheet.add(&format!("pool_us_{key}"), &ours, "us", "pool: from the time a share was due to its answer read, one value a pair");
            sheet.add(&format!("null_us_{key}"), &nulls, "us", "the null server in the same pairs");
            let counted = format!("pool less null server, pair by pair: {}", listed.join(" "));
            sheet.add(&format!("more_us_{key}"), &more, "us", &counted);
            if most.is_some() {
                bar(&format!("pool - null at {key}, us"), median(&more), None, most);
            }
            if key == "p999" {
                let quick = ours.iter().zip(&nulls).filter(|(_, null)| **null < 700.0);
                let (under, all) = quick.fold((0, 0), |(under, all), (ours, _)| (under + u32::from(*ours < 1000.0), all + 1));
                println!(
                    "bar: p99.9 under 1 ms in {under} of the {all} pairs whose null server is under 0.7 ms: {}",
                    match under {
                        _ if all == 0 => "not shown",
                        under if under == all => "met",
                        _ => "MISSED",
                    }
                );
            }
        }
        drop(null);
        self.traced(&server, sheet)?;
        server.process.stop()
    }

    /// System calls of the share thread in steady state, by strace where it is installed.
    fn traced(&self, server: &Server, sheet: &mut Sheet<'_>) -> Result<(), Failure> {
        if !Path::new("/usr/bin/strace").exists() {
            println!("skipped: system calls of the share thread: no strace here (apt-get install strace)");
            return Ok(());
        }
        let thread = share_thread(server.process.pid())?;
        let words = format!(
            "--target {} --connections {LATENCY_CONNECTIONS} --rate {TRACED_SHARES_PER_S} --seconds {} --warmup 1 --seed 1",
            server.stratum,
            TRACED_S + 4
        );
        let mut load = Load::start(self, "traced", &words)?;
        load.wait_ready()?;
        std::thread::sleep(Duration::from_secs(2));
        let path = load.scratch.path().join("strace.txt");
        let (thread, path_text, traced_s) = (thread.to_string(), path.to_string_lossy(), TRACED_S.to_string());
        // strace ends on the signal, lets the thread go and writes its table.
        crate::install::output("timeout", &["-s", "INT", &traced_s, "strace", "-c", "-o", &path_text, "-p", &thread]);
        let table = std::fs::read_to_string(&path).map_err(|error| Failure::Environment(format!("{}: {error}", path.display())))?;
        whole(load.result(PATIENCE)?)?;
        println!("{}", table.trim_end());
        let calls = calls_of(&table);
        let count =
            |names: &[&str]| calls.iter().filter(|(name, _)| names.contains(&name.as_str())).map(|(_, count)| *count).sum::<u64>() as f64;
        let all = calls.iter().map(|(_, count)| *count).sum::<u64>() as f64;
        if all == 0.0 {
            println!("skipped: system calls of the share thread: strace may not attach here");
            return Ok(());
        }
        let before = std::mem::replace(
            &mut sheet.conditions,
            format!(
                "strace -c on the thread of net, validate and log for {TRACED_S} s, {LATENCY_CONNECTIONS} connections, open loop at {TRACED_SHARES_PER_S} shares/s after 3 s of the same"
            ),
        );
        let memory = count(&["brk", "mmap", "munmap", "mremap", "madvise"]);
        sheet.add("share_thread_futex_calls", &[count(&["futex"])], "calls", "futex");
        sheet.add("share_thread_memory_calls", &[memory], "calls", "brk, mmap, munmap, mremap, madvise: growth of the heap and of mappings; allocations from what the allocator holds are no system call; that there are none is what the tests a_share_over_real_sockets_allocates_nothing_with_io_uring and _with_mio count");
        sheet.add("share_thread_calls", &[all], "calls", "all system calls of the thread");
        sheet.conditions = before;
        bar("futex calls of the share thread", count(&["futex"]), None, Some(0.0));
        Ok(())
    }
}

/// The thread that runs the stages of shares: its name begins with the first of them.
fn share_thread(pid: u32) -> Result<u32, Failure> {
    let folder = format!("/proc/{pid}/task");
    let tasks = std::fs::read_dir(&folder).map_err(|error| Failure::Environment(format!("{folder}: {error}")))?;
    tasks
        .filter_map(|task| {
            let path = task.ok()?.path();
            let name = std::fs::read_to_string(path.join("comm")).ok()?;
            name.starts_with("net:0").then(|| path.file_name()?.to_str()?.parse().ok())?
        })
        .next()
        .ok_or_else(|| Failure::Environment(format!("{folder} has no thread net:0")))
}

/// Names and calls of a table by `strace -c`: the last word of a row, and the fourth.
fn calls_of(table: &str) -> Vec<(String, u64)> {
    let row = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (name, calls) = (*words.last()?, words.get(3)?.parse().ok()?);
        words[0].parse::<f64>().ok().filter(|_| name != "total").map(|_| (name.to_owned(), calls))
    };
    table.lines().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_replaces_its_own_figures_alone_and_parts_keep_their_order() {
        let entry = |name: &str, value: u32| json!({"name": name, "value": value});
        let old = [entry("workers_a", 1), entry("farm_a", 1), entry("farm_b", 1), entry("flood_a", 1)];
        let all = merged(&old, Part::Farm, vec![entry("farm_c", 2)]);
        assert_eq!(all, [entry("workers_a", 1), entry("farm_c", 2), entry("flood_a", 1)]);
        let all = merged(&all, Part::Latency, vec![entry("latency_a", 3)]);
        assert_eq!(all, [entry("workers_a", 1), entry("farm_c", 2), entry("latency_a", 3), entry("flood_a", 1)]);
        assert_eq!(Part::ALL.map(|part| Part::parse(part.name())), Part::ALL.map(Some));
        assert_eq!(Part::parse("farms"), None);
    }

    #[test]
    fn calls_are_read_from_the_table_of_strace() {
        let table = "% time     seconds  usecs/call     calls    errors syscall\n------ ----------- ----------- --------- --------- ----------------\n 98.75    0.034721           5      6117           io_uring_enter\n  1.25    0.000438           2       157        12 futex\n------ ----------- ----------- --------- --------- ----------------\n100.00    0.035159           5      6274        12 total\n";
        assert_eq!(calls_of(table), [("io_uring_enter".to_owned(), 6117), ("futex".to_owned(), 157)]);
        assert_eq!(calls_of(""), []);
    }
}
