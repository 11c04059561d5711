//! The schema against servers: from every older version to today's, sums typed bare, and the reader's rights. `OTEDAMA_MODERN_CLICKHOUSE_URL` as in `modern.rs`.
mod log;
mod running;
mod server;

use log::{FIRST_US, Log};
use otedama_shipper::schema::{self, Flavour, KEEP_DAYS, VERSION};
use otedama_shipper::{ShipperSettings, query, reconcile};
use running::{Running, settings};
use server::Server;
use std::path::{Path, PathBuf};

const FLAVOURS: [(&str, Flavour); 2] = [("single", Flavour::Single), ("legacy", Flavour::Legacy)];

fn committed(version: u32, flavour: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/schema/{version}-{flavour}.sql"))
}

/// A server of either kind.
struct Place {
    flavour: &'static str,
    url: String,
    _server: Option<Server>,
}

impl Place {
    async fn ask(&self, sql: &str) -> String {
        self.try_ask("default", sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    async fn try_ask(&self, database: &str, sql: &str) -> Result<String, String> {
        let settings = ShipperSettings { database: database.into(), ..settings(self.url.clone()) };
        query(&settings, sql).await.map_err(|error| error.to_string())
    }

    async fn drop_database(&self, name: &str) {
        self.ask(&format!("DROP DATABASE IF EXISTS {name}")).await;
    }
}

fn debian(test: &str) -> Option<Place> {
    let server = server::debian(test)?;
    Some(Place { flavour: "legacy", url: server.url(), _server: Some(server) })
}

fn modern(test: &str) -> Option<Place> {
    let (url, server) = server::modern(test)?;
    Some(Place { flavour: "single", url, _server: server })
}

/// Columns without their comments, which every release words as it likes: the shipper puts them right on the server.
fn without_comments(statements: &str) -> String {
    let mut text = String::new();
    for line in statements.lines() {
        match line.split_once(" COMMENT '") {
            Some((column, comment)) if line.starts_with("    `") => {
                // Up to the quote that no backslash stands before.
                let end =
                    comment.match_indices('\'').find(|(at, _)| !comment[..*at].ends_with('\\')).map_or(comment.len(), |(at, _)| at + 1);
                text.push_str(column);
                text.push_str(&comment[end..]);
            }
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

#[test]
fn todays_schema_is_the_committed_one_of_its_version() {
    for (name, flavour) in FLAVOURS.into_iter().chain([("cluster", Flavour::Cluster("farm".into()))]) {
        let path = committed(VERSION, name);
        let today = schema::ddl(&flavour, "otedama", KEEP_DAYS).iter().map(|statement| format!("{statement};\n\n")).collect::<String>();
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        let (kept, today) = (without_comments(&kept), without_comments(&today));
        let why = "a released schema does not change: raise schema::VERSION, write its migration, and commit today's statements";
        assert!(kept == today, "{}: {why}:\n{today}", path.display());
    }
}

#[test]
fn the_plan_of_docs_scale_has_the_tables_of_a_cluster_where_the_statements_put_them() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/scale.md");
    let page = std::fs::read_to_string(&path).expect("docs/scale.md");
    let (_, marked) = page.split_once("<!-- cluster: held against").expect("its mark");
    let (marked, _) = marked.split_once("\n<!-- cluster: end -->").expect("its end");
    let (_, told) = marked.split_once("-->\n").expect("the rest of the mark");
    let mut wanted = "| Table | Where its rows are |\n|---|---|".to_owned();
    for statement in schema::ddl(&Flavour::Cluster("farm".into()), "otedama", KEEP_DAYS) {
        let Some(rest) = statement.strip_prefix("CREATE TABLE IF NOT EXISTS `otedama`.`") else { continue };
        let (name, rest) = rest.split_once("` ON CLUSTER `farm`").expect("every table is one of the cluster");
        let place = if rest.contains("MergeTree('/clickhouse/tables/{shard}/") {
            "on the replicas of one shard".to_owned()
        } else if rest.contains("MergeTree('/clickhouse/tables/all/") {
            "on every node, whole".to_owned()
        } else {
            let read = format!("ENGINE = Distributed('farm', 'otedama', '{name}_local'");
            assert!(rest.contains(&read), "{statement}");
            format!("nowhere: reads `{name}_local` of all shards")
        };
        wanted.push_str(&format!("\n| `{name}` | {place} |"));
    }
    assert_eq!(told, wanted);
}

/// What a database looks like to its users.
async fn shape(place: &Place, database: &str) -> String {
    let columns = format!("SELECT table, name, type, comment FROM system.columns WHERE database = '{database}' ORDER BY table, name");
    let tables = format!("SELECT name, engine_full FROM system.tables WHERE database = '{database}' ORDER BY name");
    format!("{}{}", place.ask(&columns).await, place.ask(&tables).await)
}

async fn every_older_version_becomes_todays(place: Place) {
    // Today's too, as it was committed: in older words.
    for version in 1..=VERSION {
        let (old, new) = (format!("otedama_test_from_{version}"), "otedama_test_fresh".to_owned());
        for database in [&old, &new] {
            place.drop_database(database).await;
        }
        let script = std::fs::read_to_string(committed(version, place.flavour)).expect("the schema of that version");
        // A TTL is for new installations, whose rows are not of a date of their own.
        let script = script.replace("\nTTL time + toIntervalDay(90)", "").replace(", ttl_only_drop_parts = 1", "");
        for statement in
            script.replace("`otedama`", &format!("`{old}`")).split(";\n").map(str::trim).filter(|statement| !statement.is_empty())
        {
            place.ask(statement).await;
        }
        let mut log = Log::new();
        for _ in 0..3 {
            log.segment(500, u64::MAX);
        }
        let settings_of =
            |database: &str, create_tables| ShipperSettings { database: database.into(), create_tables, ..settings(place.url.clone()) };
        // As it was filled in its time: today's shipper takes the columns as they are where it may not change the tables.
        let run = Running::start(settings_of(&old, false), log.store());
        run.until_shipped(3).await;
        run.end().await;
        assert!(place.try_ask(&old, "SELECT version FROM schema_version").await.is_err() || version > 1);
        log.segment(500, u64::MAX);
        let run = Running::start(settings_of(&old, true), log.store());
        run.until_shipped(1).await;
        run.end().await;
        let report = reconcile(&settings_of(&old, true), log.dir()).await.expect("reconciled");
        assert!(report.is_clean() && report.rows_server == 2000, "{report:?}");
        let exact = (u128::from(u64::MAX) * 2000).to_string();
        for table in ["shares_named", "worker_minute", "worker_hour", "pool_minute"] {
            assert_eq!(place.ask(&format!("SELECT sum(work) FROM {old}.{table}")).await.trim(), exact, "{table} from version {version}");
        }
        assert_eq!(place.ask(&format!("SELECT version FROM {old}.schema_version")).await.trim(), VERSION.to_string());

        let fresh = Log::new();
        let run = Running::start(settings_of(&new, true), fresh.store());
        run.until("the tables", |state| state.server_version() != "" && state.kind() != otedama_shipper::StateKind::Off).await;
        run.end().await;
        assert_eq!(shape(&place, &old).await, shape(&place, &new).await, "from version {version}");
        for database in [&old, &new] {
            place.drop_database(database).await;
        }
    }
}

#[tokio::test]
async fn every_older_schema_becomes_todays_on_debians_server() {
    let Some(place) = debian("every_older_schema_becomes_todays_on_debians_server") else { return };
    every_older_version_becomes_todays(place).await;
}

#[tokio::test]
async fn every_older_schema_becomes_todays_on_a_modern_server() {
    let Some(place) = modern("every_older_schema_becomes_todays_on_a_modern_server") else { return };
    every_older_version_becomes_todays(place).await;
}

/// A minute of 30 EH/s in 60,000 shares of every size, a hundred times what a UInt64 holds.
async fn a_minute_of_30_eh_per_s_sums_to_the_last_hash(place: Place, tables: &[&str]) {
    let database = "otedama_test_30_eh";
    place.drop_database(database).await;
    let mut state = 1u64;
    let works: Vec<u64> = (0..60_000)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // From 0 to 6 x 10^16, 3 x 10^16 in the mean.
            ((u128::from(state) * 60_000_000_000_000_000) >> 64) as u64
        })
        .collect();
    let total: u128 = works.iter().map(|&work| u128::from(work)).sum();
    assert!((1_780_000_000_000_000_000_000..1_820_000_000_000_000_000_000).contains(&total), "{total}: 30 EH/s for a minute");
    let minute_us = FIRST_US - FIRST_US % 60_000_000 + 60_000_000;
    let mut log = Log::new();
    log.minute(&works, minute_us);
    let settings = ShipperSettings { database: database.into(), ..settings(place.url.clone()) };
    let run = Running::start(settings, log.store());
    run.until_shipped(1).await;
    run.end().await;
    for table in tables {
        assert_eq!(place.try_ask(database, &format!("SELECT sum(work) FROM {table}")).await, Ok(format!("{total}\n")), "{table}");
    }
    place.drop_database(database).await;
}

#[tokio::test]
async fn a_minute_of_30_eh_per_s_sums_to_the_last_hash_on_debians_server() {
    let Some(place) = debian("a_minute_of_30_eh_per_s_sums_to_the_last_hash_on_debians_server") else { return };
    // The one bare sum that wraps there is that of shares, as its comment says: 18.16 has no integer over 64 bits and takes no Decimal from a segment.
    a_minute_of_30_eh_per_s_sums_to_the_last_hash(place, &["shares_named", "worker_minute", "worker_hour", "pool_minute", "segments"])
        .await;
}

#[tokio::test]
async fn a_minute_of_30_eh_per_s_sums_to_the_last_hash_on_a_modern_server() {
    let Some(place) = modern("a_minute_of_30_eh_per_s_sums_to_the_last_hash_on_a_modern_server") else { return };
    a_minute_of_30_eh_per_s_sums_to_the_last_hash(
        place,
        &["shares", "shares_named", "worker_minute", "worker_hour", "pool_minute", "segments"],
    )
    .await;
}

#[tokio::test]
async fn the_reader_reads_and_does_nothing_else() {
    let Some(mut server) = server::debian("the_reader_reads_and_does_nothing_else") else { return };
    let mut log = Log::new();
    log.segment(10, 5);
    let run = Running::start(settings(server.url()), log.store());
    run.until_shipped(1).await;
    run.end().await;
    server.query("CREATE DATABASE private");
    server.stop();
    std::fs::create_dir_all(server.folder().join("users.d")).expect("users.d");
    std::fs::write(server.folder().join("users.d/analyst.xml"), schema::reader(&Flavour::Legacy, "otedama", "analyst", "pass <&'word"))
        .expect("the reader");
    server.restart();
    let ask = async |password: &str, sql: &str| {
        let reader = ShipperSettings { user: "analyst".into(), password: password.into(), ..settings(server.url()) };
        query(&reader, sql).await.map_err(|error| error.to_string())
    };
    assert_eq!(ask("pass <&'word", "SELECT count() FROM otedama.shares").await.as_deref(), Ok("10\n"));
    let comment = "SELECT comment FROM system.columns WHERE database = 'otedama' AND table = 'shares' AND name = 'seq'";
    assert!(ask("pass <&'word", comment).await.is_ok_and(|comment| comment.contains("Position of the row")));
    assert!(ask("wrong", "SELECT 1").await.is_err());
    for forbidden in [
        "DROP TABLE otedama.shares",
        "ALTER TABLE otedama.shares DELETE WHERE 1",
        "INSERT INTO otedama.workers (name) VALUES ('x')",
        "CREATE TABLE otedama.mine (x UInt8) ENGINE = Memory",
        "CREATE TABLE private.mine (x UInt8) ENGINE = Memory",
        "SET max_execution_time = 6000",
        "SYSTEM SHUTDOWN",
    ] {
        assert!(ask("pass <&'word", forbidden).await.is_err(), "{forbidden}");
    }
    assert_eq!(server.query("SELECT count() FROM otedama.shares"), "10\n");
}

#[tokio::test]
async fn a_modern_server_can_read_what_makes_the_reader_and_the_cluster() {
    let Some(place) = modern("a_modern_server_can_read_what_makes_the_reader_and_the_cluster") else { return };
    let cluster = Flavour::Cluster("farm".into());
    let readers = [&Flavour::Single, &cluster].map(|flavour| schema::reader(flavour, "otedama", "analyst", "password"));
    let mut statements: Vec<String> =
        readers.iter().flat_map(|script| script.split(";\n")).map(|statement| statement.trim().to_owned()).collect();
    statements.extend(schema::ddl(&cluster, "otedama", KEEP_DAYS));
    statements.extend((1..VERSION).flat_map(|version| schema::migration(&cluster, "otedama", version)));
    statements.extend(
        schema::comments(&cluster).iter().map(|(table, column, text)| schema::comment_sql(&cluster, "otedama", table, column, text)),
    );
    for statement in statements.iter().filter(|statement| !statement.is_empty()) {
        let quoted = statement.replace('\\', "\\\\").replace('\'', "\\'");
        let formatted = place.try_ask("default", &format!("SELECT length(formatQuery('{quoted}'))")).await;
        assert!(formatted.is_ok(), "{statement}: {formatted:?}");
    }
}
