//! Rows per second end to end into a real server, beside the server's own INSERT ... SELECT of the same rows into the same tables and roll-ups, one JSON line per figure:
//! `cargo run --release -p otedama-shipper --example rate` (18.16), and with `OTEDAMA_TEST_SERVER=engine OTEDAMA_ENGINE=... OTEDAMA_LIBCHDB=...` the modern engine;
//! `cargo xtask figures ship` takes the median of several.
//!
//! End to end means: from a log with sealed segments to the last acknowledgement, cursor and row of `segments` included. The other ways read the very segments by `file()`, one
//! statement a segment, and the rows of a table. All take turns within a round, with merges stopped, because clock and neighbours drift.
#[path = "../tests/log/mod.rs"]
mod log;
#[path = "../tests/running/mod.rs"]
mod running;
#[path = "../tests/server/mod.rs"]
mod server;

use log::{FIRST_US, Log};
use otedama_primitives::{Coin, ShareRow, ShareStatus};
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

/// A number that looks random, the same for the same input (SplitMix64).
fn mixed(number: u64) -> u64 {
    let mut word = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x1234_5678_9abc_def1);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// A farm at a million shares a second: 100,000 workers, half of the shares from a tenth of them, two refusals in a hundred.
fn farm(number: u64) -> ShareRow {
    let (one, two) = (mixed(number), mixed(number ^ (1 << 63)));
    let worker = if one & 1 == 0 { two % 10_000 } else { two % 100_000 };
    let exponent = mixed(worker) % 8;
    ShareRow {
        worker: mixed(worker ^ 77),
        work: 1 << (36 + exponent),
        extranonce2: number / 100_000,
        arrival_us: FIRST_US + number,
        session: 1 + worker as u32,
        job: 1 + (number / 30_000_000) as u32,
        nonce: (one >> 32) as u32,
        ntime: 1_795_218_379 + (number / 1_000_000) as u32,
        version: 0x2000_0000 | (two as u32 & 0x1fff_e000),
        share_difficulty: (1 << exponent) as f32 / (1e-6 + (two >> 40) as f32 / (1 << 24) as f32),
        latency_us: 20 + (one >> 58) as u32,
        status: if one.is_multiple_of(50) { ShareStatus::Stale as u8 } else { ShareStatus::Accepted as u8 },
        flags: 0,
        net: 0,
        coin: Coin::Bitcoin as u8,
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
    let ways = if server.is_modern() {
        &["shipper", "shipper, 4 in flight", "INSERT SELECT file()", "INSERT SELECT table"][..]
    } else {
        // 18.16 splits the structure of a file at every comma, those of an Enum too.
        &["shipper", "INSERT SELECT table"]
    };
    let mut costs = vec![Vec::new(); ways.len()];
    for round in 0..=ROUNDS {
        for (way, name) in ways.iter().enumerate() {
            let database = format!("rate_{way}");
            let settings = ShipperSettings {
                database: database.clone(),
                inserts_in_flight: if name.ends_with("4 in flight") { 4 } else { 1 },
                ..settings(server.url())
            };
            tables(&settings).await;
            let shares = format!("{database}.shares");
            let meter = Meter::start(pid);
            match *name {
                "INSERT SELECT file()" => {
                    for file in &files {
                        server
                            .query(&format!("INSERT INTO {shares} {columns} SELECT {names} FROM file('{file}', 'Native', '{structure}')"));
                    }
                }
                "INSERT SELECT table" => {
                    server.query(&format!("INSERT INTO {shares} {columns} SELECT {names} FROM rate_0.shares"));
                }
                _ => {
                    // The log is shipped anew.
                    let _ = std::fs::remove_file(log.dir().join("cursor-shipper"));
                    let run = Running::start(settings, log.store());
                    run.until_shipped(u64::from(SEGMENTS)).await;
                    run.end().await;
                }
            }
            let cost = meter.read(pid);
            assert_eq!(server.query(&format!("SELECT count() FROM {shares}")).trim(), ROWS.to_string(), "{name}");
            assert_eq!(server.query(&format!("SELECT sum(shares) FROM {database}.worker_minute")).trim(), ROWS.to_string(), "{name}");
            // The first round warms caches, page cache and allocators.
            if round > 0 {
                costs[way].push(cost);
            }
        }
        for way in 0..ways.len() {
            server.query(&format!("DROP DATABASE rate_{way}"));
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
    let word = |name: &str| name.to_lowercase().replace("file()", "file").replace(", ", "_").replace(' ', "_");
    for (name, costs) in ways.iter().zip(&costs) {
        let rate = median(costs.iter().map(|cost| ROWS as f64 / cost.wall_s).collect());
        line(
            format!("{}_rows_per_s", word(name)),
            rate,
            "rows/s",
            "rows acknowledged, or inserted by the server itself, per second of wall time",
        );
        line(format!("{}_server_ns", word(name)), per_row(costs, |cost| cost.server_s), "ns/row", "CPU time of the server");
        if name.starts_with("shipper") {
            line(format!("{}_own_ns", word(name)), per_row(costs, |cost| cost.own_s), "ns/row", "CPU time of the shipper");
        }
    }
    // Pairs of one round, so that drift is in both.
    let ratio = |one: usize, other: usize, of: fn(&Cost) -> f64| {
        median(costs[one].iter().zip(&costs[other]).map(|(one, other)| of(other) / of(one)).collect())
    };
    let own = ways.iter().position(|name| name.starts_with("INSERT")).expect("a way of the server's own");
    for other in own..ways.len() {
        for one in 0..own {
            let pair = format!("{}_to_{}", word(ways[one]), word(ways[other]));
            line(format!("{pair}_ratio"), ratio(one, other, |cost| cost.wall_s), "ratio", "rates by wall time, within one round");
            line(
                format!("{pair}_cpu_ratio"),
                ratio(one, other, |cost| cost.server_s),
                "ratio",
                "rates by the CPU time of the server, within one round",
            );
        }
    }
}
