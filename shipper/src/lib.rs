//! ClickHouse: sealed segments go to the server, each exactly once; the share path never notices.
//!
//! The shipper follows the share log by a durable cursor. For every segment it sends the dimension records that the segment's rows name, then the segment itself (one POST,
//! body = the `.native` file = one Native block = one part), then a row of `segments`, and only then moves the cursor. Whatever fails is tried
//! again with the same bytes and the same identity, for ever: nothing is skipped, nothing is given up.
//!
//! Servers from 24.8 on recognise a repeated insert by its token, on `shares` and on every table that a view fills from it; the probe refuses to ship where they would not.
//! Older ones (Debian's 18.16) know no tokens: there the identity is the query id, and before a retry the shipper waits until the query has gone from `system.processes`
//! and counts the segment's rows. What that cannot promise, `reconcile` finds. Such a server that is killed between the part of `shares` and those of its views
//! has the rows and lacks their sums: `repair` (`otedama reconcile --repair --yes`) makes those hours of the roll-ups again from `shares`.
#![forbid(unsafe_code)]

mod dimension;
mod local;
mod probe;
pub mod recipes;
mod reconcile;
mod repair;
pub mod schema;
mod ship;
mod sink;
mod state;

pub use local::{LocalTables, local_tables};
pub use probe::{MODERN_FROM, Method, Server, probe};
pub use reconcile::{ReconcileError, ReconcileReport, reconcile, reconcile_with};
pub use repair::{Left, RepairReport, RollUpHours, repair, repair_with};
pub use ship::{Pace, Shipper};
pub use sink::{Body, HttpSink, PIECES_KEPT, Remedy, Sink, SinkError, Timeouts, error_code};
pub use state::{ShipperState, StateKind};

/// Where and how to ship: `[clickhouse]` and `[pool]` of the config.
#[derive(Clone, Debug)]
pub struct ShipperSettings {
    /// `[clickhouse] url`, such as `http://127.0.0.1:8123`.
    pub url: String,
    /// `[clickhouse] database`.
    pub database: String,
    /// `[clickhouse] user`; empty for the server's default user.
    pub user: String,
    /// `[clickhouse] password`.
    pub password: String,
    /// `[clickhouse] create_tables`: make what is missing.
    pub create_tables: bool,
    /// Days that rows of `shares` stay where the tables are made here; 0 for ever.
    pub keep_days: u32,
    /// `[clickhouse] inserts_in_flight`, 1 to 8; servers without tokens always get one at a time.
    pub inserts_in_flight: usize,
    /// `[pool] name`, the first part of every insert's identity.
    pub pool: String,
    /// `[pool] instance`, the second.
    pub instance: u8,
    /// How long requests may take.
    pub timeouts: Timeouts,
    /// How fast to go, and how long to wait after failures.
    pub pace: Pace,
}

impl ShipperSettings {
    /// The defaults of the config for a server at `url`.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            database: "otedama".to_owned(),
            user: String::new(),
            password: String::new(),
            create_tables: true,
            keep_days: schema::KEEP_DAYS,
            inserts_in_flight: 1,
            pool: "otedama".to_owned(),
            instance: 0,
            timeouts: Timeouts::default(),
            pace: Pace::default(),
        }
    }

    /// The transport these settings name.
    pub fn sink(&self) -> HttpSink {
        HttpSink::new(&self.url, &self.user, &self.password, self.timeouts)
    }
}

/// Runs one statement on the configured server, with its database selected, and returns the result as text: tab-separated unless the statement names a FORMAT.
///
/// # Errors
/// What the transport or the server says.
pub async fn query(settings: &ShipperSettings, sql: &str) -> Result<String, SinkError> {
    settings.sink().with_setting("database", &settings.database).query(sql).await
}
