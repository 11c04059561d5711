//! Ships a log that nobody writes into a server of its own and holds the two against each other: `cargo run --release -p otedama-shipper --example ship_log -- FOLDER`.
//!
//! The server is Debian's, or the engine with `OTEDAMA_TEST_SERVER=engine`, `OTEDAMA_ENGINE` and `OTEDAMA_LIBCHDB`. The last line is JSON: rows, sums, seconds, and what some queries take.
//! `cargo xtask figures day` runs it on a day.
#[path = "../tests/running/mod.rs"]
mod running;
#[path = "../tests/server/mod.rs"]
mod server;

use otedama_sharelog::store::SegmentStore;
use otedama_shipper::{Pace, Shipper, ShipperSettings, ShipperState, Sink, Timeouts, reconcile};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::watch;

const QUERIES: [(&str, &str); 4] = [
    ("work_by_status", "SELECT status, count(), sum(work) FROM {db}.shares GROUP BY status"),
    (
        "hashrate_by_hour",
        "SELECT toStartOfHour(minute, 'UTC') AS hour, sum(work) FROM {db}.pool_minute WHERE status = 'accepted' GROUP BY hour ORDER BY hour",
    ),
    (
        "top_workers",
        "SELECT worker, sum(work) AS credited FROM {db}.worker_hour WHERE status = 'accepted' GROUP BY worker ORDER BY credited DESC LIMIT 10",
    ),
    ("p99_latency", "SELECT status, quantile(0.99)(latency_us) FROM {db}.shares GROUP BY status"),
];

fn main() -> ExitCode {
    let Some(dir) = std::env::args().nth(1) else {
        eprintln!("usage: ship_log FOLDER");
        return ExitCode::from(2);
    };
    let outcome = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string());
    match outcome.and_then(|runtime| runtime.block_on(run(Path::new(&dir)))) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(text) => {
            eprintln!("{text}");
            ExitCode::from(3)
        }
    }
}

async fn run(dir: &Path) -> Result<serde_json::Value, String> {
    let server = server::Server::start("ship_log").ok_or("there is no server to start")?;
    let store = SegmentStore::open(dir).map_err(|error| error.to_string())?;
    let metas = store.segments().map_err(|error| error.to_string())?;
    let instance = metas.first().map_or(0, |meta| meta.run_prefix >> 24) as u8;
    // A cursor of an earlier try would keep segments from this server.
    let _ = std::fs::remove_file(dir.join("cursor-shipper"));
    let settings = ShipperSettings {
        instance,
        timeouts: Timeouts { query: Duration::from_secs(600), piece: Duration::from_secs(60), answer: Duration::from_secs(600) },
        pace: Pace { inserts_per_s: 1000, ..running::settings(server.url()).pace },
        ..running::settings(server.url())
    };
    let state = Arc::new(ShipperState::default());
    let shipper = Shipper::new(settings.clone(), store, Arc::clone(&state)).map_err(|error| error.to_string())?;
    let (stop, stopped) = watch::channel(false);
    let started = Instant::now();
    let task = tokio::spawn(shipper.run(stopped));
    while state.segments_shipped.load(Ordering::Relaxed) < metas.len() as u64 {
        if task.is_finished() {
            return Err(format!("the shipper has ended: {}", state.last_error()));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let ship_s = started.elapsed().as_secs_f64();
    stop.send_replace(true);
    task.await.map_err(|error| error.to_string())?;

    let text = |error: otedama_shipper::SinkError| error.to_string();
    let (sink, database) = (settings.sink(), &settings.database);
    let counts = sink.query(&format!("SELECT count(), toString(sum(toDecimal128(work, 0))) FROM {database}.shares")).await.map_err(text)?;
    let credited = sink
        .query(&format!("SELECT toString(sum(toDecimal128(work, 0))) FROM {database}.shares WHERE status = 'accepted'"))
        .await
        .map_err(text)?;
    let rows: u64 = counts.split('\t').next().and_then(|text| text.trim().parse().ok()).ok_or("the server does not count")?;
    let logged: u64 = metas.iter().map(|meta| u64::from(meta.rows)).sum();
    if rows != logged {
        return Err(format!("the server has {rows} rows, the log {logged}"));
    }
    let report = reconcile(&settings, dir).await.map_err(|error| error.to_string())?;
    if !report.is_clean() {
        return Err(format!("reconcile: missing {:?}, doubled {:?}", report.missing, report.doubled));
    }
    let mut query_ms = serde_json::Map::new();
    for (name, sql) in QUERIES {
        let started = Instant::now();
        sink.query(&sql.replace("{db}", database)).await.map_err(|error| format!("{name}: {error}"))?;
        query_ms.insert(name.to_owned(), (started.elapsed().as_secs_f64() * 1000.0).into());
    }
    let version = sink.query("SELECT version()").await.map_err(text)?.trim().to_owned();
    Ok(serde_json::json!({
        "version": format!("ClickHouse {version}"), "rows": rows, "work_credited": credited.trim(), "segments": metas.len(),
        "ship_s": ship_s, "query_ms": query_ms
    }))
}
