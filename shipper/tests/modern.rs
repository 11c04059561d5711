//! Against a modern server: the engine that `OTEDAMA_TEST_SERVER=engine` starts, or a real one that the environment names:
//! `OTEDAMA_MODERN_CLICKHOUSE_URL=http://127.0.0.1:8123 cargo test -p otedama-shipper --test modern`. The tests make and drop databases whose names start with `otedama_test_`.
mod log;
mod running;
mod server;

use log::Log;
use otedama_shipper::{ReconcileReport, ShipperSettings, StateKind, query, reconcile};
use running::{Running, settings};
use server::LossyProxy;
use std::net::ToSocketAddrs;
use std::sync::atomic::Ordering;

struct Modern {
    url: String,
    database: String,
    /// The engine, where it is ours.
    _server: Option<server::Server>,
}

impl Modern {
    async fn find(test: &str) -> Option<Self> {
        let (url, server) = server::modern(test)?;
        let modern = Self { url, database: format!("otedama_test_{test}"), _server: server };
        modern.ask(&format!("DROP DATABASE IF EXISTS {}", modern.database)).await;
        Some(modern)
    }

    fn settings(&self, url: String) -> ShipperSettings {
        ShipperSettings { database: self.database.clone(), inserts_in_flight: 4, ..settings(url) }
    }

    async fn ask(&self, sql: &str) -> String {
        let settings = ShipperSettings { database: "default".into(), ..settings(self.url.clone()) };
        query(&settings, sql).await.unwrap_or_else(|error| panic!("{sql}: {error}")).trim().to_owned()
    }

    fn address(&self) -> std::net::SocketAddr {
        let place = self.url.trim_start_matches("http://").trim_end_matches('/');
        place.to_socket_addrs().expect("host:port").next().expect("an address")
    }
}

#[tokio::test]
async fn lost_answers_leave_base_table_and_roll_ups_exact() {
    let Some(modern) = Modern::find("lost_answers").await else { return };
    let proxy = LossyProxy::start(modern.address(), 3);
    let mut log = Log::new();
    for _ in 0..30 {
        log.segment(2000, u64::MAX);
    }
    let run = Running::start(modern.settings(proxy.url()), log.store());
    run.until_shipped(30).await;
    run.until("all being well", |state| state.kind() == StateKind::Ok).await;
    run.end().await;
    let (_, lost) = proxy.counts();
    assert!(lost >= 9, "only {lost} answers were lost");
    let report = reconcile(&modern.settings(modern.url.clone()), log.dir()).await.expect("reconciled");
    assert_eq!(report, ReconcileReport { segments: 30, rows_log: 60_000, rows_server: 60_000, ..ReconcileReport::default() });
    let exact = (u128::from(u64::MAX) * 60_000).to_string();
    for table in ["shares", "shares_named", "worker_minute", "worker_hour", "pool_minute"] {
        assert_eq!(modern.ask(&format!("SELECT sum(work) FROM {}.{table}", modern.database)).await, exact, "{table}");
    }
    assert_eq!(modern.ask(&format!("SELECT sum(work) FROM {}.segments FINAL", modern.database)).await, exact);
    assert_eq!(modern.ask(&format!("SELECT sum(shares) FROM {}.worker_hour", modern.database)).await, "60000");
    let bare = format!(
        "SELECT count() FROM system.columns WHERE database = '{}' AND comment = '' AND table NOT LIKE '%\\_view' AND table NOT IN ('shares_named', 'schema_version')",
        modern.database
    );
    assert_eq!(modern.ask(&bare).await, "0", "columns without a comment");
    modern.ask(&format!("DROP DATABASE {}", modern.database)).await;
}

#[tokio::test]
async fn a_view_of_the_users_own_without_a_window_is_refused_until_it_has_one() {
    let Some(modern) = Modern::find("own_view").await else { return };
    let mut log = Log::new();
    log.segment(10, 1);
    let run = Running::start(modern.settings(modern.url.clone()), log.store());
    run.until_shipped(1).await;
    run.end().await;
    let database = &modern.database;
    modern.ask(&format!("CREATE TABLE {database}.mine (job UInt64, shares UInt64) ENGINE = SummingMergeTree ORDER BY job")).await;
    // The view hangs on a roll-up, two steps from the base table.
    modern
        .ask(&format!(
            "CREATE MATERIALIZED VIEW {database}.mine_view TO {database}.mine AS SELECT worker AS job, shares FROM {database}.worker_minute"
        ))
        .await;
    log.segment(10, 1);
    let run = Running::start(modern.settings(modern.url.clone()), log.store());
    run.until("refusing", |state| state.kind() == StateKind::Refusing).await;
    assert!(
        run.state.last_error().contains(&format!("{database}.mine (filled by the view {database}.mine_view)")),
        "{}",
        run.state.last_error()
    );
    assert_eq!(run.state.rows_shipped.load(Ordering::Relaxed), 0);
    modern.ask(&format!("ALTER TABLE {database}.mine MODIFY SETTING non_replicated_deduplication_window = 1000")).await;
    run.until_shipped(1).await;
    run.end().await;
    // A view with a table of its own.
    modern.ask(&format!("CREATE MATERIALIZED VIEW {database}.own ENGINE = SummingMergeTree ORDER BY job AS SELECT job, count() AS shares FROM {database}.shares GROUP BY job")).await;
    log.segment(10, 1);
    let run = Running::start(modern.settings(modern.url.clone()), log.store());
    run.until("refusing", |state| state.kind() == StateKind::Refusing).await;
    assert!(run.state.last_error().contains(&format!("filled by the view {database}.own)")), "{}", run.state.last_error());
    run.end().await;
    modern.ask(&format!("DROP DATABASE {database}")).await;
}
