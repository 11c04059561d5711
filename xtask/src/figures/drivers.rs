//! The topic `drivers`: the pool on io_uring and on mio in turn, and what 100,000 idle connections cost one process.
use super::{Bench, LOAD_CORE, SERVER_CORE, Series};
use crate::Failure;
use crate::measure::{self, Process, Scratch};
use serde_json::Value;
use std::time::{Duration, Instant};

/// Connections, shares in flight per connection, and processes that make them.
const SHAPES: [(u32, u32, u32); 4] = [(64, 8, 1), (64, 64, 1), (1000, 1, 1), (10_000, 1, 4)];
const DRIVERS: [&str; 2] = ["uring", "mio"];
/// Idle connections of one server process, far over the descriptors that small machines allow it.
const MANY: u32 = 100_000;
const MANY_PROCESSES: u32 = 8;

impl Bench<'_> {
    /// Shares per second of server CPU on either driver, and the memory of many idle connections.
    pub(super) fn drivers(&self) -> Result<Vec<Value>, Failure> {
        let mut figures = Vec::new();
        for (connections, depth, processes) in SHAPES {
            let mut series = DRIVERS.map(|_| Series::default());
            for run in 0..self.request.runs {
                // Each goes first in its turn, so that a drift of the clock favours none.
                for turn in 0..DRIVERS.len() {
                    let index = (run + turn) % DRIVERS.len();
                    let driver = DRIVERS[index];
                    let server = self.server_on(&format!("{driver}-{connections}x{depth}-{run}"), 20_000, "auto", driver, "process")?;
                    let arguments = format!(
                        "run --target {} --connections {connections} --processes {processes} --depth {depth} --seconds {} --warmup 1 --mode valid --seed {} --server-pid {} --json",
                        server.stratum,
                        self.request.seconds,
                        run + 1,
                        server.process.pid()
                    );
                    let result = measure::last_json(&self.loadgen, &arguments.split(' ').collect::<Vec<_>>(), LOAD_CORE)?;
                    println!("{connections} x {depth} run {run}: {driver} {result}");
                    series[index].push(&result)?;
                    server.process.stop()?;
                }
            }
            let shape = format!("{connections}x{depth}");
            let load = format!(
                "{connections} connections x {depth} shares in flight from {processes} processes, loopback, valid proof of work; server on core {SERVER_CORE}, loadgen on core {LOAD_CORE}; {} s after 1 s of warm-up",
                self.request.seconds
            );
            for (driver, series) in DRIVERS.iter().zip(&series) {
                let counted = "answered shares per second of server user and system time";
                let name = format!("{driver}_{shape}_shares_per_cpu_s");
                figures.push(self.figure(&name, &series.per_cpu_s, "shares/CPU-s", counted, &load));
            }
            let [uring, mio] = &series;
            let ratios: Vec<f64> = uring.per_cpu_s.iter().zip(&mio.per_cpu_s).map(|(uring, mio)| uring / mio).collect();
            let counted = "io_uring to mio, shares per CPU-second, within one pair of runs";
            figures.push(self.figure(&format!("uring_to_mio_{shape}_ratio"), &ratios, "ratio", counted, &load));
        }
        figures.extend(self.many()?);
        Ok(figures)
    }

    /// Bytes of the process and of the kernel for each of many idle connections.
    fn many(&self) -> Result<Vec<Value>, Failure> {
        let base = self.server_on("many-base", 64, "auto", "uring", "process")?;
        std::thread::sleep(Duration::from_secs(3));
        let base_bytes = measure::resident_bytes(base.process.pid())?;
        base.process.stop()?;
        let server = self.server_on("many", MANY + 1000, "auto", "uring", "process")?;
        let slab_before = measure::unreclaimable_slab_bytes()?;
        let scratch = Scratch::new(self.root, "many-load")?;
        let output = scratch.path().join("loadgen.txt");
        let arguments = format!(
            "run --target {} --connections {MANY} --processes {MANY_PROCESSES} --mode idle --seconds 120 --warmup 0 --seed 1",
            server.stratum
        );
        let mut load = Process::start(&self.loadgen, &arguments.split(' ').collect::<Vec<_>>(), LOAD_CORE, &output)?;
        let since = Instant::now();
        loop {
            let stats = measure::get_json(server.stats, "/api/stats")?;
            let open = stats["connections"]["open"].as_u64().unwrap_or(0);
            if open >= u64::from(MANY) {
                break;
            }
            if since.elapsed() > Duration::from_secs(110) || load.ended() {
                let said = std::fs::read_to_string(&output).unwrap_or_default();
                return Err(Failure::Environment(format!("only {open} of {MANY} idle connections stand: {stats}\n{}", said.trim_end())));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let connected_s = since.elapsed().as_secs_f64();
        std::thread::sleep(Duration::from_secs(5));
        let per = |bytes: u64, before: u64| (bytes as f64 - before as f64) / f64::from(MANY);
        let resident = per(measure::resident_bytes(server.process.pid())?, base_bytes);
        let slab = per(measure::unreclaimable_slab_bytes()?, slab_before);
        let descriptors = measure::open_descriptors(server.process.pid())? as f64;
        drop(load);
        server.process.stop()?;
        let conditions = format!(
            "{MANY} connections from {MANY_PROCESSES} processes, subscribed, authorized and silent, to one server process on io_uring"
        );
        let figure = |name: &str, value: f64, unit: &str, counted: &str| self.figure(name, &[value], unit, counted, &conditions);
        let counted = "(RssAnon - RssAnon of the same layout with max_connections = 64) per connection";
        Ok(vec![
            figure("uring_100000_idle_connection_bytes", resident, "bytes", counted),
            figure(
                "uring_100000_kernel_connection_bytes",
                slab,
                "bytes",
                "growth of SUnreclaim in /proc/meminfo per connection: sockets and epoll entries of loadgen's end are in it, receive and send buffers are not",
            ),
            figure("uring_100000_descriptors", descriptors, "descriptors", "entries of /proc/PID/fd while all are connected"),
            figure(
                "uring_100000_connected_s",
                connected_s,
                "s",
                "from the start of loadgen to the last session open, as /api/stats counts them",
            ),
        ])
    }
}
