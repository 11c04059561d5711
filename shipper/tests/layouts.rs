//! Segments of every row layout on real servers: the columns of each, the sums, the roll-ups, and what an older schema takes.
mod log;
mod running;
mod server;

use log::Log;
use otedama_sharelog::Layout;
use otedama_shipper::schema::{self, Flavour, KEEP_DAYS};
use otedama_shipper::{ShipperSettings, StateKind, query, reconcile};
use running::{Running, settings};
use std::path::Path;

/// A database of its own on the server at `url`.
struct Database {
    url: String,
    name: &'static str,
}

impl Database {
    async fn new(url: String, name: &'static str) -> Self {
        let database = Self { url, name };
        database.drop().await;
        database
    }

    async fn ask(&self, sql: &str) -> String {
        query(&self.settings(true), sql).await.unwrap_or_else(|error| panic!("{sql}: {error}")).trim().to_owned()
    }

    async fn drop(&self) {
        let at_large = ShipperSettings { database: "default".into(), ..settings(self.url.clone()) };
        query(&at_large, &format!("DROP DATABASE IF EXISTS {}", self.name)).await.expect("dropped");
    }

    fn settings(&self, create_tables: bool) -> ShipperSettings {
        ShipperSettings { database: self.name.into(), create_tables, ..settings(self.url.clone()) }
    }
}

async fn every_layout_is_counted_to_the_share(url: String) {
    let database = Database::new(url, "otedama_test_layouts").await;
    let (rows, work) = (3000_u32, 1_u64 << 40);
    for layout in Layout::ALL {
        let mut log = Log::of(layout);
        log.segment(rows, work);
        let metas = log.store().segments().expect("segments");
        let run = Running::start(database.settings(true), log.store());
        run.until_shipped(1).await;
        run.end().await;
        let report = reconcile(&database.settings(true), log.dir()).await.expect("reconciled");
        assert!(report.is_clean() && report.rows_server == u64::from(metas[0].rows), "{layout:?}: {report:?}");
        let of = format!("FROM shares WHERE seg = {}", metas[0].seg);
        assert_eq!(
            database.ask(&format!("SELECT sum(share_count), sum(toDecimal128(work, 0)) {of}")).await,
            format!("3000\t{}", u128::from(rows) * u128::from(work))
        );
        let described = database.ask(&format!("SELECT layout, rows, shares FROM segments FINAL WHERE seg = {}", metas[0].seg)).await;
        assert_eq!(described, format!("{}\t{}\t3000", layout.label(), metas[0].rows));
        let kept = database.ask(&format!("SELECT countIf(ntime != 0 AND version != 0) = count(), max(extranonce2) > 0, countIf(hash != toFixedString('', 32)) {of} AND session != 0")).await;
        let (whole, hashed) = (u8::from(layout.is_whole()), if layout == Layout::Full { "2988" } else { "0" });
        // Every 256th of the nonces makes a hash of zeros.
        assert_eq!(kept, format!("{whole}\t{whole}\t{hashed}"), "{layout:?}");
    }
    let rows_there = database.ask("SELECT count() FROM shares").await;
    assert!(
        rows_there.parse::<u64>().is_ok_and(|rows| (9000..12_000).contains(&rows)),
        "{rows_there}: a roll-up has fewer rows than shares"
    );
    let by_status = "SELECT status, sum(share_count), sum(toDecimal128(work, 0)) FROM shares GROUP BY status ORDER BY status";
    let wanted = database.ask(by_status).await;
    assert_eq!(wanted, format!("accepted\t10800\t{}\nstale\t1200\t{}", 10_800_u128 << 40, 1200_u128 << 40));
    for table in ["worker_minute", "worker_hour", "pool_minute"] {
        let sql = format!("SELECT status, sum(shares), sum(work) FROM {table} GROUP BY status ORDER BY status");
        assert_eq!(database.ask(&sql).await, wanted, "{table}");
    }
    // The mean of every sum is that of its shares, which all took the same time.
    assert_eq!(database.ask("SELECT sum(latency_us_sum) / sum(shares) FROM pool_minute").await, "20");
    database.drop().await;
}

#[tokio::test]
async fn every_layout_is_counted_to_the_share_on_debians_server() {
    let Some(server) = server::debian("every_layout_is_counted_to_the_share_on_debians_server") else { return };
    every_layout_is_counted_to_the_share(server.url()).await;
}

#[tokio::test]
async fn every_layout_is_counted_to_the_share_on_a_modern_server() {
    let Some((url, _server)) = server::modern("every_layout_is_counted_to_the_share_on_a_modern_server") else { return };
    every_layout_is_counted_to_the_share(url).await;
}

#[tokio::test]
async fn a_schema_before_layouts_takes_lean_rows_and_says_what_it_lacks_for_sums() {
    let Some(server) = server::debian("a_schema_before_layouts_takes_lean_rows_and_says_what_it_lacks_for_sums") else { return };
    let database = Database::new(server.url(), "otedama_test_before_layouts").await;
    let script = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/schema/2-legacy.sql")).expect("version 2");
    for statement in
        script.replace("`otedama`", "`otedama_test_before_layouts`").split(";\n").map(str::trim).filter(|text| !text.is_empty())
    {
        let at_large = ShipperSettings { database: "default".into(), ..settings(server.url()) };
        query(&at_large, statement).await.expect("made");
    }
    let mut lean = Log::of(Layout::Lean);
    lean.segment(500, 3);
    let run = Running::start(database.settings(false), lean.store());
    run.until_shipped(1).await;
    run.end().await;
    assert_eq!(database.ask("SELECT count(), sum(work), sum(ntime) FROM shares").await, "500\t1500\t0");
    assert!(reconcile(&database.settings(false), lean.dir()).await.expect("reconciled").is_clean());
    for layout in [Layout::Full, Layout::Rollup] {
        let mut log = Log::of(layout);
        log.segment(500, 3);
        let mut refused = database.settings(false);
        refused.pace.drain = std::time::Duration::from_millis(50);
        let run = Running::start(refused, log.store());
        run.until("a refusal", |state| state.kind() == StateKind::Refusing).await;
        assert!(run.state.last_error().contains(&format!("is of layout {}", layout.label())), "{}", run.state.last_error());
        run.end().await;
    }
    assert_eq!(database.ask("SELECT count() FROM shares").await, "500", "nothing of them is there");
    // Allowed to, the shipper adds what is missing, and the same segment goes out.
    let mut sums = Log::of(Layout::Rollup);
    sums.segment(500, 3);
    let run = Running::start(database.settings(true), sums.store());
    run.until_shipped(1).await;
    run.end().await;
    assert_eq!(database.ask("SELECT sum(share_count), sum(work) FROM shares").await, "1000\t3000");
    assert_eq!(database.ask("SELECT sum(shares), sum(work) FROM worker_minute").await, "1000\t3000");
    assert!(schema::script_from(&Flavour::Legacy, "otedama", 2, KEEP_DAYS).contains("share_count"));
}
