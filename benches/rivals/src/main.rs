//! What was refused beside what was taken: `cargo run --release --manifest-path benches/rivals/Cargo.toml` prints a table.
//!
//! Each row names both sides, what was counted and how many times the cost of ours the rival's is. Both sides of a row run in one process and in turn.
#![forbid(unsafe_code)]

mod compress;
#[path = "../../src/cycles.rs"]
mod cycles;
mod inserts;
mod lines;
mod rings;
mod sockets;

use std::process::ExitCode;

/// One comparison. Values are costs: less is better.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What we took, and its cost.
    pub taken: (&'static str, f64),
    /// What we refused, and its cost.
    pub refused: (&'static str, f64),
    /// Of both costs.
    pub unit: &'static str,
    /// What exactly was counted.
    pub counted: &'static str,
}

impl Row {
    /// How many times the cost of ours the rival's is.
    fn ratio(&self) -> f64 {
        self.refused.1 / self.taken.1
    }
}

type Topic = fn(&Machine) -> Result<Vec<Row>, String>;

/// Every comparison by its name.
const TOPICS: [(&str, Topic); 5] =
    [("compress", compress::run), ("rings", rings::run), ("lines", lines::run), ("inserts", inserts::run), ("sockets", sockets::run)];

/// The cores that are used: what is measured, and what feeds it.
pub struct Machine {
    /// The measured side is pinned here.
    pub core: usize,
    /// Its counterpart is; the same core where there is one only.
    pub other: usize,
}

const USAGE: &str = "usage: rivals [compress|rings|lines|inserts|sockets]...\n\nCompares everything without a name.";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let chosen: Option<Vec<_>> = words.iter().map(|word| TOPICS.into_iter().find(|(name, _)| name == word)).collect();
    let topics = match chosen {
        Some(topics) if topics.is_empty() => TOPICS.to_vec(),
        Some(topics) => topics,
        None => {
            eprintln!("{USAGE}");
            return ExitCode::from(if words.iter().any(|word| word == "--help" || word == "-h") { 0 } else { 2 });
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let machine = Machine { core: 0, other: usize::from(cores > 1) };
    println!(
        "| Topic | Taken | Refused | Taken costs | Refused costs | Unit | Refused / taken | Counted |\n|---|---|---|---:|---:|---|---:|---|"
    );
    let mut failed = false;
    for (name, topic) in topics {
        match cycles::pin(Some(machine.core)).and_then(|_| topic(&machine)) {
            Ok(rows) => rows.iter().for_each(|row| println!("{}", line(name, row))),
            Err(what) => {
                eprintln!("{name}: {what}");
                failed = true;
            }
        }
    }
    ExitCode::from(if failed { 3 } else { 0 })
}

fn line(topic: &str, row: &Row) -> String {
    format!(
        "| {topic} | {} | {} | {:.1} | {:.1} | {} | {:.2} | {} |",
        row.taken.0,
        row.refused.0,
        row.taken.1,
        row.refused.1,
        row.unit,
        row.ratio(),
        row.counted
    )
}

/// The least of several values: what a shared machine disturbs only ever gets larger.
pub fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

/// Seconds of user and system time of this thread.
pub fn thread_cpu_s() -> f64 {
    seconds(rustix::time::ClockId::ThreadCPUTime)
}

/// Seconds of user and system time of all threads, the kernel's workers for this process among them.
pub fn process_cpu_s() -> f64 {
    seconds(rustix::time::ClockId::ProcessCPUTime)
}

fn seconds(clock: rustix::time::ClockId) -> f64 {
    let now = rustix::time::clock_gettime(clock);
    now.tv_sec as f64 + now.tv_nsec as f64 * 1e-9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_says_how_much_dearer_the_refused_one_is() {
        let row = Row { taken: ("a", 2.0), refused: ("b", 5.0), unit: "ns", counted: "c" };
        assert_eq!(line("t", &row), "| t | a | b | 2.0 | 5.0 | ns | 2.50 | c |");
        assert_eq!(least(&[3.0, 1.0, 2.0]), 1.0);
    }

    #[test]
    fn both_clocks_move_with_work() {
        let (thread, process) = (thread_cpu_s(), process_cpu_s());
        assert!((0..1_000_000_u64).fold(0, |sum, step| std::hint::black_box(sum ^ step)) < u64::MAX);
        assert!(thread_cpu_s() > thread && process_cpu_s() > process);
    }
}
