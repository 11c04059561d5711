//! What a row of each layout costs a server: CPU time to insert and to merge it, and bytes on its disk, per row and, so that sums stand beside rows, per share; one JSON line per figure:
//! `cargo run --release -p otedama-shipper --example table` (18.16), and with `OTEDAMA_TEST_SERVER=engine OTEDAMA_ENGINE=... OTEDAMA_LIBCHDB=...` the modern engine;
//! `cargo xtask figures ship` takes the median of several.
mod farm;
#[path = "../tests/running/mod.rs"]
mod running;
#[path = "../tests/server/mod.rs"]
mod server;

use farm::mixed;
use otedama_primitives::{Coin, Hash256, RunId, ShareRow, ShareStatus};
use otedama_sharelog::store::SegmentStore;
use otedama_sharelog::{Layout, LogSettings, ShareLog};
use otedama_shipper::{ShipperSettings, probe};
use running::{Running, settings};
use server::Server;
use std::path::Path;

/// Shares a second of the farm, and its workers: what sums take hangs on both.
const SHARES_PER_S: u64 = 1_000_000;
const WORKERS: u64 = 10_000;
/// Rows wanted of each layout, about.
const ROWS: u64 = 1 << 21;
/// Seconds of the farm that are summed.
const SUMMED_S: u64 = 12;
const BATCH: u64 = 512;
const START_US: u64 = 1_795_248_000_000_000;

/// A share: every worker as likely as any other, 1 in 100 refused, eight difficulties, sixteen rolled versions.
fn share(number: u64) -> (ShareRow, Hash256) {
    let (one, two) = (mixed(number * 2), mixed(number * 2 + 1));
    let worker = two % WORKERS;
    let exponent = mixed(worker) % 8;
    let mut hash = [0u8; 32];
    for (word, bytes) in hash.chunks_exact_mut(8).enumerate() {
        bytes.copy_from_slice(&mixed(one ^ word as u64).to_le_bytes());
    }
    // Difficulty 1024 and above: 42 bits of zeros.
    hash[27..].fill(0);
    let row = ShareRow {
        worker: mixed(worker ^ 77),
        work: 1 << (42 + exponent),
        extranonce2: number / WORKERS,
        arrival_us: START_US + number * 1_000_000 / SHARES_PER_S,
        session: 1 + worker as u32,
        job: 1 + (number / SHARES_PER_S / 30) as u32,
        nonce: one as u32,
        ntime: (START_US / 1_000_000 + number / SHARES_PER_S) as u32,
        version: 0x2000_0000 | (((one >> 32) as u32 & 0xf) << 13),
        share_difficulty: (1024u64 << exponent) as f32 / ((two >> 40) as f32 / (1u64 << 24) as f32).max(1e-6),
        latency_us: 10 + (one >> 58) as u32,
        status: if one.is_multiple_of(100) { ShareStatus::Stale as u8 } else { ShareStatus::Accepted as u8 },
        flags: 0,
        net: 0,
        coin: Coin::Bitcoin as u8,
    };
    (row, Hash256(hash))
}

/// The log of the farm in this layout: its segments, the rows in them, and the shares that they stand for.
fn log(dir: &Path, layout: Layout) -> (usize, u64, u64) {
    let settings = LogSettings {
        dir: dir.to_path_buf(),
        pool: "table".into(),
        run: RunId::new(7, 1),
        segment_rows: 524_288,
        seal_after_ms: 600_000,
        max_bytes: 1 << 40,
        journal_file_bytes: 32 << 20,
        keep_ms: 1 << 45,
        keep_shipped_ms: 1 << 45,
        has_cursor: true,
        layout,
        rolls_up_when_full: false,
    };
    let (mut journal, mut sealer, ..) = ShareLog::open(settings).expect("the log opens");
    let shares = if layout == Layout::Rollup { SUMMED_S * SHARES_PER_S } else { ROWS };
    for first in (0..shares).step_by(BATCH as usize) {
        while journal.room_cells() < 4 * BATCH as usize {
            sealer.step(START_US).expect("sealed");
        }
        let (rows, hashes): (Vec<_>, Vec<_>) = (first..shares.min(first + BATCH)).map(share).unzip();
        journal.append_hashed(&[], &rows, if layout == Layout::Full { &hashes } else { &[] }).expect("there is room");
        if layout == Layout::Rollup && (first + BATCH) / SHARES_PER_S > first / SHARES_PER_S {
            // As a pool does whose segments are a second of shares.
            sealer.drain(START_US).expect("sealed");
        }
    }
    sealer.drain(START_US).expect("sealed");
    let segments = SegmentStore::open(dir).expect("the folder is there").segments().expect("segments");
    (segments.len(), segments.iter().map(|meta| u64::from(meta.rows)).sum(), shares)
}

/// User and system time of a process, in seconds.
fn cpu_s(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the server's stat");
    let fields: Vec<&str> = text.rsplit_once(") ").expect("a name").1.split(' ').collect();
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().expect("ticks")).sum();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let Some(server) = Server::start("table") else { std::process::exit(3) };
    let kind = if server.is_modern() { "engine" } else { "debian" };
    let pid = server.pid().expect("it runs");
    let version = server.query("SELECT version()").trim().to_owned();
    for layout in Layout::ALL {
        let label = layout.label();
        let folder = tempfile::tempdir().expect("a folder");
        let (segments, rows, shares) = log(folder.path(), layout);
        let database = format!("table_{label}");
        let settings = ShipperSettings { database: database.clone(), ..settings(server.url()) };
        probe(&settings.sink(), &settings).await.expect("the tables are made");
        // Of the tables that are there.
        server.query("SYSTEM STOP MERGES");
        let before_s = cpu_s(pid);
        let run = Running::start(settings, SegmentStore::open(folder.path()).expect("the folder is there"));
        run.until_shipped(segments as u64).await;
        run.end().await;
        let inserting_s = cpu_s(pid) - before_s;
        assert_eq!(server.query(&format!("SELECT count() FROM {database}.shares")).trim(), rows.to_string(), "{label}");
        let parts = || -> Vec<u64> {
            let active = format!("FROM system.parts WHERE active AND database = '{database}' AND table = 'shares'");
            let text = server.query(&format!("SELECT count(), sum(rows), sum(bytes_on_disk) {active}"));
            text.split_whitespace().map(|number| number.parse().expect("a number")).collect()
        };
        assert_eq!(parts()[..2], [segments as u64, rows], "{label}: a segment is a part");
        let before_s = cpu_s(pid);
        server.query(&format!("SYSTEM START MERGES {database}.shares"));
        for _ in 0..100 {
            // A merge of the server's own may be under way: then the rest follows.
            server.query(&format!("OPTIMIZE TABLE {database}.shares FINAL"));
            if parts()[0] == 1 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        let merging_s = cpu_s(pid) - before_s;
        let numbers = parts();
        assert_eq!(numbers[..2], [1, rows], "{label}: merged into one part");
        let conditions = format!(
            "{version} ({}), {rows} rows of layout {label} in {segments} segments of {SHARES_PER_S} shares/s of {WORKERS} workers, three roll-ups",
            if server.is_modern() { "libchdb behind otedama-engine" } else { "ClickHouse of Debian" }
        );
        let line = |name: String, value: f64, unit: &str, counted: &str| {
            println!(r#"{{"name":"{kind}_{name}","value":{value:.3},"unit":"{unit}","counted":"{counted}","conditions":"{conditions}"}}"#);
        };
        let ns = |seconds: f64| seconds * 1e9 / rows as f64;
        let of_table = |what: &str| format!("table_{label}_{what}");
        line(of_table("insert_ns"), ns(inserting_s), "ns/row", "CPU time of the server, shipping of sealed segments, merges stopped");
        line(
            of_table("merge_ns"),
            ns(merging_s),
            "ns/row",
            "CPU time of the server, OPTIMIZE TABLE shares FINAL: every row rewritten once",
        );
        let bytes = numbers[2] as f64;
        line(of_table("bytes_per_row"), bytes / rows as f64, "bytes/row", "bytes_on_disk of the part that all were merged into");
        line(format!("disk_bytes_per_share_{label}"), bytes / shares as f64, "bytes/share", "the same, per share that its rows stand for");
        server.query(&format!("DROP DATABASE {database}"));
    }
}
