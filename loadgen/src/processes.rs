//! One farm in several processes: each holds a part of the connections, all start together, and their results become one.
//!
//! A part says on its standard output that it is ready, waits for a line on its standard input, runs, and says what came of it.
use crate::report::{RunReport, interval_log, read_interval_log};
use crate::run::{Lateness, RunConfig, Window};
use crate::totals::{Totals, empty_histogram};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Processes at most.
pub const PROCESSES_MAX: u32 = 128;

/// Why a farm of several processes failed.
#[derive(Debug, thiserror::Error)]
pub enum ProcessesError {
    /// The operating system gave no process.
    #[error("cannot start process {part} of the farm: {source}")]
    Start {
        /// Which, from 0.
        part: usize,
        /// Why.
        source: std::io::Error,
    },
    /// A process ended without its result; it has said why on standard error.
    #[error("process {part} of the farm ended without {what}; its own message stands above")]
    Ended {
        /// Which, from 0.
        part: usize,
        /// What was expected of it.
        what: &'static str,
    },
}

/// What a process hands over, as one line of JSON.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct PartResult {
    totals: Totals,
    windows: Vec<Window>,
    /// Interval log.
    latency: String,
    /// Interval log of the lateness and the shares left behind, of an open loop.
    late: Option<(String, u64)>,
    set_up_s: f64,
    outages_s: Vec<f64>,
    trouble: String,
}

impl PartResult {
    /// Of a part's own report.
    pub fn of(report: &RunReport) -> Self {
        Self {
            totals: report.totals.clone(),
            windows: report.windows.clone(),
            latency: interval_log(&report.histogram, 0.0),
            late: report.lateness.as_ref().map(|late| (interval_log(&late.histogram, 0.0), late.behind)),
            set_up_s: report.set_up_s,
            outages_s: report.outages_s.clone(),
            trouble: report.trouble.clone(),
        }
    }
}

/// `total` things dealt out to `parts`: how many the `part`-th gets, and how many those before it.
fn dealt(total: u64, part: u64, parts: u64) -> (u64, u64) {
    let before = |part: u64| (u128::from(total) * u128::from(part) / u128::from(parts)) as u64;
    (before(part + 1) - before(part), before(part))
}

/// The order of one of `parts` processes.
pub fn part_of(mut config: RunConfig, part: usize, parts: usize) -> RunConfig {
    let all = config.engine.connections;
    let (own, before) = dealt(all as u64, part as u64, parts as u64);
    config.engine.connections = own as usize;
    config.engine.behaviour.first_connection += before as usize;
    config.engine.rate_shares_per_s *= own as f64 / all.max(1) as f64;
    config.shares = config.shares.map(|shares| dealt(shares, part as u64, parts as u64).0);
    // One reading of the server's clock is enough.
    config.server_pid = config.server_pid.filter(|_| part == 0);
    config
}

/// A part's side of the start: says that it is ready and waits for the word. False when the parent is gone.
pub fn wait_for_start() -> bool {
    println!("ready");
    let mut line = String::new();
    matches!(std::io::stdin().lock().read_line(&mut line), Ok(1..))
}

/// The parent's side: starts `parts` processes by `command`, which gets the number of the part, and makes one report of theirs.
pub fn run_parts(
    config: &RunConfig,
    parts: usize,
    command: impl Fn(usize) -> Command,
    stop: &AtomicBool,
) -> Result<RunReport, ProcessesError> {
    let mut children = Vec::new();
    let outcome = run_children(config, parts, command, stop, &mut children);
    if outcome.is_err() {
        for child in &mut children {
            // One that has ended already cannot be killed, which is as well.
            let _ = child.kill();
        }
    }
    for mut child in children {
        let _ = child.wait();
    }
    outcome
}

fn run_children(
    config: &RunConfig,
    parts: usize,
    command: impl Fn(usize) -> Command,
    stop: &AtomicBool,
    children: &mut Vec<Child>,
) -> Result<RunReport, ProcessesError> {
    let mut pipes: Vec<(ChildStdin, BufReader<ChildStdout>)> = Vec::new();
    for part in 0..parts {
        let start = |source| ProcessesError::Start { part, source };
        let mut child = command(part).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(start)?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        children.push(child);
        pipes.extend(stdin.zip(stdout).map(|(stdin, stdout)| (stdin, BufReader::new(stdout))));
    }
    for (part, (_, stdout)) in pipes.iter_mut().enumerate() {
        let mut line = String::new();
        match stdout.read_line(&mut line) {
            Ok(1..) => {}
            _ => return Err(ProcessesError::Ended { part, what: "being ready" }),
        }
    }
    for (part, (stdin, _)) in pipes.iter_mut().enumerate() {
        stdin.write_all(b"go\n").map_err(|_| ProcessesError::Ended { part, what: "starting" })?;
    }
    let ids: Vec<u32> = children.iter().map(Child::id).collect();
    let texts: Vec<String> = std::thread::scope(|scope| {
        let readers: Vec<_> = pipes
            .into_iter()
            .map(|(_stdin, mut stdout)| {
                scope.spawn(move || {
                    let mut text = String::new();
                    // A part that breaks off leaves a text that is no result.
                    let _ = stdout.read_to_string(&mut text);
                    text
                })
            })
            .collect();
        let mut told = false;
        while !readers.iter().all(|reader| reader.is_finished()) {
            std::thread::sleep(Duration::from_millis(20));
            // Relaxed: the flag carries no data.
            if stop.load(Ordering::Relaxed) && !told {
                told = true;
                ids.iter().for_each(|&id| terminate(id));
            }
        }
        readers.into_iter().map(|reader| reader.join().unwrap_or_default()).collect()
    });
    let mut report = empty_report(config, parts);
    for (part, text) in texts.iter().enumerate() {
        let result = text.lines().last().and_then(|line| serde_json::from_str::<PartResult>(line).ok());
        let merged = result.and_then(|result| merge(&mut report, result));
        merged.ok_or(ProcessesError::Ended { part, what: "a result" })?;
    }
    // What a part waited is an average over the parts, so that "never idle" keeps its meaning.
    report.windows.iter_mut().for_each(|window| window.blocked_s /= parts as f64);
    Ok(report)
}

fn terminate(id: u32) {
    use rustix::process::{Pid, Signal, kill_process};
    if let Some(pid) = i32::try_from(id).ok().and_then(Pid::from_raw) {
        // It may have ended by itself.
        let _ = kill_process(pid, Signal::TERM);
    }
}

fn empty_report(config: &RunConfig, processes: usize) -> RunReport {
    RunReport {
        config: config.clone(),
        totals: Totals::default(),
        windows: Vec::new(),
        histogram: empty_histogram(),
        lateness: None,
        set_up_s: 0.0,
        outages_s: Vec::new(),
        ledger: None,
        pairing: None,
        trouble: "none".into(),
        processes,
    }
}

fn merge(report: &mut RunReport, part: PartResult) -> Option<()> {
    report.totals.add(&part.totals);
    report.histogram.add(read_interval_log(&part.latency)?).ok()?;
    if let Some((text, behind)) = part.late {
        let histogram = read_interval_log(&text)?;
        match &mut report.lateness {
            Some(late) => {
                late.histogram.add(histogram).ok()?;
                late.behind += behind;
            }
            None => report.lateness = Some(Lateness { histogram, behind }),
        }
    }
    for (index, window) in part.windows.into_iter().enumerate() {
        match report.windows.get_mut(index) {
            None => report.windows.push(window),
            Some(sum) => {
                let seconds = sum.seconds.max(window.seconds);
                sum.add(&window);
                sum.seconds = seconds;
            }
        }
    }
    for (index, outage) in part.outages_s.into_iter().enumerate() {
        match report.outages_s.get_mut(index) {
            None => report.outages_s.push(outage),
            Some(longest) => *longest = longest.max(outage),
        }
    }
    report.set_up_s = report.set_up_s.max(part.set_up_s);
    if part.trouble != "none" {
        report.trouble = part.trouble;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::EngineConfig;

    fn order() -> RunConfig {
        let engine =
            EngineConfig { connections: 100, rate_shares_per_s: 1000.0, ..EngineConfig::new("127.0.0.1:1".parse().expect("address")) };
        RunConfig { shares: Some(1001), server_pid: Some(7), ..RunConfig::new(engine) }
    }

    #[test]
    fn parts_add_up_to_the_whole_and_count_through() {
        let parts: Vec<RunConfig> = (0..7).map(|part| part_of(order(), part, 7)).collect();
        let mut next = 0;
        for part in &parts {
            assert_eq!(part.engine.behaviour.first_connection, next);
            next += part.engine.connections;
        }
        assert_eq!((next, parts.iter().filter_map(|part| part.shares).sum::<u64>()), (100, 1001));
        assert!((parts.iter().map(|part| part.engine.rate_shares_per_s).sum::<f64>() - 1000.0).abs() < 1e-6);
        assert_eq!(parts.iter().filter(|part| part.server_pid.is_some()).count(), 1);
    }

    #[test]
    fn results_of_parts_become_one() {
        let mut whole = empty_report(&order(), 2);
        for (answered, latency) in [(10u64, 100u64), (30, 900)] {
            let mut part = empty_report(&order(), 1);
            part.totals.submits = answered;
            part.totals.accepted = answered;
            part.histogram.saturating_record_n(latency, answered);
            part.windows.push(Window {
                seconds: 2.0,
                answered,
                server_cpu_s: (answered == 10).then_some(0.5),
                client_cpu_s: 0.25,
                blocked_s: 1.0,
            });
            part.outages_s = vec![latency as f64];
            let line = serde_json::to_string(&PartResult::of(&part)).expect("json");
            merge(&mut whole, serde_json::from_str(&line).expect("json")).expect("merge");
        }
        assert_eq!((whole.totals.submits, whole.totals.accepted, whole.histogram.len(), whole.histogram.max()), (40, 40, 40, 900));
        let window = whole.windows[0];
        assert_eq!((window.seconds, window.answered, window.server_cpu_s, window.client_cpu_s), (2.0, 40, Some(0.5), 0.5));
        assert_eq!(whole.outages_s, [900.0]);
    }
}
