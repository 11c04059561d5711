//! Shares per second of server CPU: the pool in turns with the null server, and with itself on its portable kernel.
use super::network::{Load, PATIENCE, bar, whole};
use super::{Bench, LOAD_CORE, SERVER_CORE, Series, number};
use crate::Failure;
use crate::measure::{self, Process, Scratch};
use serde_json::Value;
use std::time::{Duration, Instant};

/// A farm's shape, the least part of the null server's rate that the pool is to reach with it, and the null server's least rate (shares per CPU-second) for a run to count.
struct Shape {
    connections: u32,
    depth: u32,
    least: f64,
    null_least: f64,
}

const SHAPES: [Shape; 3] = [
    Shape { connections: 64, depth: 8, least: 0.40, null_least: 0.9e6 },
    Shape { connections: 64, depth: 64, least: 0.16, null_least: 3.5e6 },
    Shape { connections: 1000, depth: 1, least: 0.85, null_least: 125e3 },
];

/// One share in so many is bad.
const BAD_EVERY: u32 = 10;

/// Whom the pool takes turns with.
#[derive(Clone, Copy)]
enum Other {
    /// `loadgen null`: reads lines and answers, judges nothing.
    Null,
    /// The pool with `[layout] isa = "portable"`: what the kernels are worth on sockets.
    Portable,
}

/// Both sides of one comparison, a value for each run.
#[derive(Default)]
struct Sides {
    pool: Series,
    other: Vec<f64>,
    ratios: Vec<f64>,
    running: String,
}

impl Bench<'_> {
    pub(super) fn pipeline(&self) -> Result<Vec<Value>, Failure> {
        let mut figures = Vec::new();
        for shape in &SHAPES {
            let (mut to_null, mut to_portable) = (Sides::default(), Sides::default());
            for run in 0..self.request.runs {
                self.turns(shape, Other::Null, run, &mut to_null)?;
                self.turns(shape, Other::Portable, run, &mut to_portable)?;
            }
            let Shape { connections, depth, .. } = *shape;
            let counts: Vec<f64> =
                to_null.ratios.iter().zip(&to_null.other).filter(|(_, null)| **null >= shape.null_least).map(|(ratio, _)| *ratio).collect();
            println!(
                "{connections} x {depth}: null reaches {} shares/CPU-s in {} of {} runs: ratios {counts:?}",
                shape.null_least,
                counts.len(),
                to_null.ratios.len()
            );
            bar(&format!("pool to null at {connections} x {depth}"), super::median(&to_null.ratios), Some(shape.least), None);
            let load = format!(
                "{connections} connections x {depth} shares in flight, loopback, valid proof of work, unique extranonce2, 1 share in {BAD_EVERY} bad, in turns of half a second; both servers on core {SERVER_CORE}, loadgen on core {LOAD_CORE}; {} s each after 1 s of warm-up",
                self.request.seconds
            );
            let conditions = |sides: &Sides, who: &str| format!("{}; {who}; {load}", sides.running);
            let (against_null, against_portable) =
                (conditions(&to_null, "against loadgen null"), conditions(&to_portable, "against isa = portable"));
            let name = format!("{connections}x{depth}");
            let mut add = |name: String, values: &[f64], unit: &str, counted: &str, conditions: &str| {
                figures.push(self.figure(&name, values, unit, counted, conditions));
            };
            let counted = "answered shares per second of server user and system time, that between its turns included";
            add(format!("pool_{name}_shares_per_cpu_s"), &to_null.pool.per_cpu_s, "shares/CPU-s", counted, &against_null);
            add(format!("null_{name}_shares_per_cpu_s"), &to_null.other, "shares/CPU-s", counted, &against_null);
            add(format!("portable_{name}_shares_per_cpu_s"), &to_portable.other, "shares/CPU-s", counted, &against_portable);
            let counted = "pool to null server, shares per CPU-second, in turns within one run";
            add(format!("pool_to_null_{name}_ratio"), &to_null.ratios, "ratio", counted, &against_null);
            let counted = "pool to the same binary with isa = portable, shares per CPU-second, in turns within one run";
            add(format!("pool_to_portable_{name}_ratio"), &to_portable.ratios, "ratio", counted, &against_portable);
            let counted = "answered shares per second of wall time in the pool's turns, the wait for the last answers of a turn included";
            add(format!("pool_{name}_shares_per_s"), &to_null.pool.per_s, "shares/s", counted, &against_null);
            let counted = "submit written to answer read, closed loop, as loadgen sees it";
            add(format!("pool_{name}_latency_us_p50"), &to_null.pool.p50_us, "us", counted, &against_null);
            add(format!("pool_{name}_latency_us_p99"), &to_null.pool.p99_us, "us", counted, &against_null);
        }
        Ok(figures)
    }

    /// One run of the pool in turns with another.
    fn turns(&self, shape: &Shape, other: Other, run: usize, sides: &mut Sides) -> Result<(), Failure> {
        let Shape { connections, depth, .. } = *shape;
        let kind = match other {
            Other::Null => "null",
            Other::Portable => "portable",
        };
        let name = format!("{connections}x{depth}-{kind}-{run}");
        let scratch = Scratch::new(self.root, &name)?;
        let server = self.server(&format!("{name}-pool"), 10_000, "auto")?;
        // Either lives until the run is over.
        let (mut null, mut portable) = (None, None);
        let (address, pid) = match other {
            Other::Null => {
                let address = measure::free_address()?;
                let words = ["null", "--listen", &address.to_string()];
                let process = null.insert(Process::start(&self.loadgen, &words, SERVER_CORE, &scratch.path().join("null.txt"))?);
                measure::wait_listening(address, process, Instant::now())?;
                (address, process.pid())
            }
            Other::Portable => {
                let server = portable.insert(self.server(&name, 10_000, "portable")?);
                (server.stratum, server.process.pid())
            }
        };
        // A run's length is that of both sides.
        let seconds = 2 * self.request.seconds;
        let words = format!(
            "--target {} --against {address} --connections {connections} --depth {depth} --bad-every {BAD_EVERY} --seconds {seconds} --warmup 2 --seed {} --server-pid {} --against-pid {pid}",
            server.stratum,
            run + 1,
            server.process.pid()
        );
        let result = whole(Load::start(self, &name, &words)?.result(PATIENCE + Duration::from_secs(4 * u64::from(seconds)))?)?;
        let stats = measure::get_json(server.stats, "/api/stats")?;
        let word = |key: &str| stats[key].as_str().unwrap_or("unknown").to_owned();
        sides.running = format!("driver {}, kernel {}, tier {}, {} chain", word("driver"), word("kernel"), word("ack"), word("chain"));
        server.process.stop()?;
        let (ratio, others) = (number(&result["paired"], "ratio")?, number(&result["paired"], "against_shares_per_cpu_s")?);
        sides.pool.push(&result)?;
        sides.other.push(others);
        sides.ratios.push(ratio);
        println!(
            "{connections} x {depth} run {run}: pool {}, {kind} {others} shares/CPU-s, ratio {ratio}; p50 {} us, p99 {} us{}",
            result["server_shares_per_cpu_s"],
            result["latency_us"]["p50"],
            result["latency_us"]["p99"],
            if result["generator_limited"] == true { "; the generator was the limit" } else { "" }
        );
        Ok(())
    }
}
