//! Rows per second end to end into a real server, beside the server's own INSERT ... SELECT of the same rows into the same tables and roll-ups, one JSON line per figure:
//! `cargo run --release -p otedama-shipper --example rate` (18.16), and with `OTEDAMA_TEST_SERVER=engine OTEDAMA_ENGINE=... OTEDAMA_LIBCHDB=...` the modern engine;
//! `cargo xtask figures ship` takes the median of several.
//!
//! End to end means: from a log with sealed segments to the last acknowledgement, cursor and row of `segments` included. The server's own ways are one statement over a table
//! that has the same rows in the order of their arrival, one over a table that has them by worker, and on the modern engine one statement per segment over `file()`.
//! Server and client share the machine's cores, nothing is pinned. All take turns within a round, with merges stopped, because clock and neighbours drift.
mod farm;
#[path = "../tests/log/mod.rs"]
mod log;
#[path = "../tests/running/mod.rs"]
mod running;
#[path = "../tests/server/mod.rs"]
mod server;

use farm::farm;
use log::Log;
use otedama_sharelog::Layout;
use otedama_shipper::schema::{SHARES, segment_columns};
use otedama_shipper::{ShipperSettings, probe};
use running::{Running, settings};
use rustix::time::{ClockId, clock_gettime};
use server::Server;
use std::time::Instant;

const SEGMENT_ROWS: u32 = 524_288;
const SEGMENTS: u32 = 4;
const ROWS: u64 = SEGMENT_ROWS as u64 * SEGMENTS as u64;
const ROUNDS: usize = 5;

/// How rows come into `shares`. Of the server's own ways, a table in order of arrival is what a pool without an order of its own would send; a table that is sorted already, and
/// the files of the log, which are, leave the server the least that there can be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Shipper { in_flight: usize },
    SelectArrival,
    SelectSorted,
    SelectFile,
}

const LEGACY_WAYS: [Way; 3] = [Way::Shipper { in_flight: 1 }, Way::SelectArrival, Way::SelectSorted];
const MODERN_WAYS: [Way; 5] =
    [Way::Shipper { in_flight: 1 }, Way::Shipper { in_flight: 4 }, Way::SelectArrival, Way::SelectSorted, Way::SelectFile];

impl Way {
    fn name(self) -> String {
        match self {
            Self::Shipper { in_flight: 1 } => "shipper".to_owned(),
            Self::Shipper { in_flight } => format!("shipper_{in_flight}_in_flight"),
            Self::SelectArrival => "insert_select".to_owned(),
            Self::SelectSorted => "insert_select_sorted".to_owned(),
            Self::SelectFile => "insert_select_file".to_owned(),
        }
    }

    fn is_own(self) -> bool {
        matches!(self, Self::Shipper { .. })
    }

    /// What its figures are of.
    fn what(self) -> &'static str {
        match self {
            Self::Shipper { .. } => "sealed segments to the last acknowledgement, shipped by worker",
            Self::SelectArrival => "the server's own INSERT ... SELECT from a table that has the rows as they arrived",
            Self::SelectSorted => "the server's own INSERT ... SELECT from a table that has the rows by worker, as shares wants them",
            Self::SelectFile => "the server's own INSERT ... SELECT from the very segments by file()",
        }
    }
}

/// User and system time of a process, in seconds.
fn cpu_s(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the server's stat");
    let fields: Vec<&str> = text.rsplit_once(") ").expect("a name").1.split(' ').collect();
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().expect("ticks")).sum();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

fn own_cpu_s() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Wall seconds, the server's CPU seconds and our own.
#[derive(Clone, Copy)]
struct Cost {
    wall_s: f64,
    server_s: f64,
    own_s: f64,
}

struct Meter(Instant, f64, f64);

impl Meter {
    fn start(pid: u32) -> Self {
        Self(Instant::now(), cpu_s(pid), own_cpu_s())
    }

    fn read(&self, pid: u32) -> Cost {
        Cost { wall_s: self.0.elapsed().as_secs_f64(), server_s: cpu_s(pid) - self.1, own_s: own_cpu_s() - self.2 }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

async fn tables(settings: &ShipperSettings) {
    probe(&settings.sink(), settings).await.expect("the tables are made");
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let Some(server) = Server::start("rate") else { std::process::exit(3) };
    let kind = if server.is_modern() { "engine" } else { "debian" };
    let pid = server.pid().expect("it runs");
    let mut log = Log::new();
    for _ in 0..SEGMENTS {
        log.segment_of(SEGMENT_ROWS, farm);
    }
    let metas = log.store().segments().expect("segments");
    assert_eq!(metas.len(), SEGMENTS as usize);
    let columns = segment_columns(Layout::Replayable);
    let names = columns.trim_matches(['(', ')']).to_owned();
    // As the wire has them.
    let structure: Vec<_> = SHARES
        .columns
        .iter()
        .filter(|column| Layout::Replayable.column_names().any(|name| name == column.name))
        .map(|column| format!("{} {}", column.name, if column.name == "work" { "UInt64" } else { column.kind }))
        .collect();
    let structure = structure.join(", ").replace('\'', "\\'");
    let files: Vec<String> = metas.iter().map(|meta| log.store().native_path(meta).to_str().expect("UTF-8").to_owned()).collect();
    server.query("SYSTEM STOP MERGES");
    // 18.16 splits the structure of a file at every comma, those of an Enum too.
    let ways = if server.is_modern() { &MODERN_WAYS[..] } else { &LEGACY_WAYS[..] };
    let mut costs = vec![Vec::new(); ways.len()];
    for round in 0..=ROUNDS {
        for (number, way) in ways.iter().enumerate() {
            let database = format!("rate_{number}");
            let in_flight = if let Way::Shipper { in_flight } = way { *in_flight } else { 1 };
            let settings = ShipperSettings { database: database.clone(), inserts_in_flight: in_flight, ..settings(server.url()) };
            tables(&settings).await;
            let shares = format!("{database}.shares");
            let from = |source: &str| format!("INSERT INTO {shares} {columns} SELECT {names} FROM {source}");
            let meter = Meter::start(pid);
            match way {
                Way::SelectFile => {
                    for file in &files {
                        server.query(&from(&format!("file('{file}', 'Native', '{structure}')")));
                    }
                }
                Way::SelectArrival => drop(server.query(&from("rate_source.arrival"))),
                Way::SelectSorted => drop(server.query(&from("rate_source.sorted"))),
                Way::Shipper { .. } => {
                    // The log is shipped anew.
                    let _ = std::fs::remove_file(log.dir().join("cursor-shipper"));
                    let run = Running::start(settings, log.store());
                    run.until_shipped(u64::from(SEGMENTS)).await;
                    run.end().await;
                }
            }
            let cost = meter.read(pid);
            let name = way.name();
            assert_eq!(server.query(&format!("SELECT count() FROM {shares}")).trim(), ROWS.to_string(), "{name}");
            assert_eq!(server.query(&format!("SELECT sum(shares) FROM {database}.worker_minute")).trim(), ROWS.to_string(), "{name}");
            // The first round warms caches, page cache and allocators.
            if round > 0 {
                costs[number].push(cost);
            } else if number == 0 {
                server.query("CREATE DATABASE rate_source");
                // A part per segment, as in shares.
                for (table, key) in [("arrival", "seg, seq"), ("sorted", "worker, time")] {
                    let partitions = "PARTITION BY toYYYYMMDD(time, 'UTC')";
                    server
                        .query(&format!("CREATE TABLE rate_source.{table} ENGINE = MergeTree() {partitions} ORDER BY ({key}) AS SELECT * FROM {shares} WHERE 0"));
                    for meta in &metas {
                        server.query(&format!(
                            "INSERT INTO rate_source.{table} SELECT * FROM {shares} WHERE seg = {} ORDER BY {key}",
                            meta.seg
                        ));
                    }
                    assert_eq!(server.query(&format!("SELECT count() FROM rate_source.{table}")).trim(), ROWS.to_string(), "{table}");
                }
            }
        }
        for number in 0..ways.len() {
            server.query(&format!("DROP DATABASE rate_{number}"));
        }
    }
    let version = server.query("SELECT version()").trim().to_owned();
    let conditions = format!(
        "{version} ({}), median of {ROUNDS} rounds of {ROWS} rows in segments of {SEGMENT_ROWS}, three roll-ups, merges stopped, loopback, log on tmpfs",
        if server.is_modern() { "libchdb behind otedama-engine" } else { "ClickHouse of Debian" }
    );
    let line = |name: String, value: f64, unit: &str, counted: &str| {
        println!(r#"{{"name":"{kind}_{name}","value":{value:.3},"unit":"{unit}","counted":"{counted}","conditions":"{conditions}"}}"#);
    };
    let per_row = |costs: &[Cost], of: fn(&Cost) -> f64| median(costs.iter().map(|cost| of(cost) * 1e9 / ROWS as f64).collect());
    for (way, costs) in ways.iter().zip(&costs) {
        let (name, what) = (way.name(), way.what());
        let rates: Vec<f64> = costs.iter().map(|cost| ROWS as f64 / cost.wall_s).collect();
        line(format!("{name}_rows_per_s"), median(rates), "rows/s", &format!("rows per second of wall time: {what}"));
        line(format!("{name}_server_ns"), per_row(costs, |cost| cost.server_s), "ns/row", &format!("CPU time of the server: {what}"));
        if way.is_own() {
            line(
                format!("{name}_client_ns"),
                per_row(costs, |cost| cost.own_s),
                "ns/row",
                "CPU time of the shipper, dimension records and probe included",
            );
        }
    }
    // Pairs of one round, so that drift is in both.
    let ratio = |one: usize, other: usize, of: fn(&Cost) -> f64| {
        median(costs[one].iter().zip(&costs[other]).map(|(one, other)| of(other) / of(one)).collect())
    };
    for (one, shipper) in ways.iter().enumerate().filter(|(_, way)| way.is_own()) {
        for (other, select) in ways.iter().enumerate().filter(|(_, way)| !way.is_own()) {
            let pair = format!("{}_to_{}", shipper.name(), select.name());
            line(format!("{pair}_ratio"), ratio(one, other, |cost| cost.wall_s), "ratio", "rates by wall time, within one round");
            let counted = "rates by the CPU time of the server, within one round";
            line(format!("{pair}_cpu_ratio"), ratio(one, other, |cost| cost.server_s), "ratio", counted);
        }
    }
}
