//! The pool with a real ClickHouse: the miners' ledger, `/api/stats`, the log and the server's tables agree to the last share, also after an outage.
mod support;

#[path = "../shipper/tests/server/mod.rs"]
mod server;

use loadgen::engine::EngineConfig;
use loadgen::ledger::LedgerSink;
use loadgen::random;
use loadgen::report::RunReport;
use loadgen::run::RunConfig;
use loadgen::session::Behaviour;
use otedama_primitives::ShareStatus;
use otedama_sharelog::scan::{Filter, rows};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::Output;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use support::kills::{self, Armed, Miners};
use support::{Amount, Config, PATIENCE, Server, Site, alone, eventually, load, long, size};

const BAD_AND_DOUBLE: (u64, u64) = (10, 10);

fn behaviour(seed: u64, prefix: &str) -> Behaviour {
    let (bad_every, dup_every) = BAD_AND_DOUBLE;
    Behaviour { bad_every, dup_every, seed, worker_prefix: prefix.to_owned(), workers_per_connection: 2, ..Behaviour::default() }
}

fn site(clickhouse: &server::Server) -> Site {
    Site::new(Config { clickhouse: clickhouse.url(), ..Config::default() })
}

/// A subcommand with the site's config.
fn otedama(site: &Site, arguments: &[&str]) -> Output {
    let config = site.config_file();
    let mut all = arguments.to_vec();
    all.extend(["--config", config.to_str().expect("UTF-8")]);
    support::otedama(&all)
}

fn said(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

/// Waits until every one of `rows` is on the server and acknowledged.
fn until_shipped(pool: &Server, clickhouse: &server::Server, rows: u64) {
    let mut stats = Value::Null;
    let shipped = eventually(|| {
        stats = pool.stats();
        let log = &stats["log"];
        log["rows_unshipped"] == 0
            && stats["clickhouse"]["state"] == clickhouse.state()
            && clickhouse.try_query("SELECT count() FROM otedama.shares").is_ok_and(|count| count.trim() == rows.to_string())
    });
    assert!(shipped, "{rows} rows: {} {}", stats["log"], stats["clickhouse"]);
}

fn number(clickhouse: &server::Server, sql: &str) -> u128 {
    let answer = clickhouse.query(sql);
    answer.trim().parse().unwrap_or_else(|_| panic!("{sql}: {answer:?}"))
}

/// Every witness of a drained pool beside the others. `counts` are those of the stats endpoint.
fn witnesses_agree(site: &Site, clickhouse: &server::Server, counts: [u64; 9]) {
    let received: u64 = counts.iter().sum();
    assert_eq!(site.verified_clean(), counts, "the log and /api/stats");

    let mut on_server = [0; 9];
    for line in clickhouse.query("SELECT CAST(status AS Int8), count() FROM otedama.shares GROUP BY status").lines() {
        let (status, rows) = line.split_once('\t').expect("two columns");
        on_server[status.parse::<usize>().expect("a number")] = rows.parse().expect("a count");
    }
    assert_eq!(on_server, counts, "the shares table and /api/stats");
    for status in ShareStatus::ALL {
        let sql = format!("SELECT count() FROM otedama.shares WHERE status = '{}'", status.label());
        assert_eq!(number(clickhouse, &sql), u128::from(counts[status as usize]), "{sql}");
    }

    let report: Value = serde_json::from_str(&said(&otedama(site, &["reconcile", "--json"]))).expect("JSON");
    assert_eq!((&report["rows_log"], &report["rows_server"]), (&json!(received), &json!(received)), "{report}");
    assert_eq!((&report["missing"], &report["doubled"], &report["unshipped"]), (&json!([]), &json!([]), &json!(0)), "{report}");

    // Every name of every row. Shares of an unknown worker or job carry 0, which names none.
    for (column, table) in
        [("session", "sessions"), ("worker", "workers"), ("job", "jobs"), ("toUInt32(intDiv(session, 4294967296))", "runs")]
    {
        let key = if table == "runs" { "run" } else { column };
        let sql = format!("SELECT count() FROM otedama.shares WHERE {column} != 0 AND {column} NOT IN (SELECT {key} FROM otedama.{table})");
        assert_eq!(number(clickhouse, &sql), 0, "{sql}");
    }
    let accepted = counts[ShareStatus::Accepted as usize];
    let nameless = "SELECT count() FROM otedama.shares WHERE status = 'accepted' AND (session = 0 OR worker = 0 OR job = 0)";
    assert_eq!(number(clickhouse, nameless), 0);
    let named = "SELECT count() FROM otedama.shares_named WHERE status = 'accepted' AND worker_name LIKE 'ship%'";
    assert_eq!(number(clickhouse, named), u128::from(accepted));

    let (mut work, mut credited) = (0_u128, 0_u128);
    for row in rows(&site.log(), Filter::default()).expect("the log") {
        let row = row.expect("a row");
        work += u128::from(row.work);
        credited += if row.status == ShareStatus::Accepted as u8 { u128::from(row.work) } else { 0 };
    }
    assert!(credited > 0 && work > credited);
    for roll_up in ["worker_minute", "worker_hour", "pool_minute"] {
        let sums = format!("SELECT sum(shares), sum(work), sumIf(work, status = 'accepted') FROM otedama.{roll_up}");
        assert_eq!(clickhouse.query(&sums).trim(), format!("{received}\t{work}\t{credited}"), "{roll_up}");
    }
    let segments = "SELECT sum(rows), sum(accepted), sum(work), sum(work_credited) FROM otedama.segments FINAL";
    assert_eq!(clickhouse.query(segments).trim(), format!("{received}\t{accepted}\t{work}\t{credited}"));
}

#[test]
fn clickhouse_has_every_share_once_and_every_witness_agrees() {
    let _turn = alone();
    let Some(clickhouse) = server::Server::start("clickhouse_has_every_share_once_and_every_witness_agrees") else { return };
    let site = site(&clickhouse);
    let pool = site.serve();
    let submits = size(100_000, 2_000_000);
    let began = Instant::now();
    let report = load(pool.stratum, Amount::Submits(submits), 64, 8, behaviour(1, "ship"), LedgerSink::File(site.ledger()));
    let seconds = began.elapsed().as_secs_f64();
    let totals = &report.totals;
    assert_eq!(totals.wrong, 0, "{:#?}", totals.wrong_kept);
    assert_eq!((totals.submits, totals.unanswered), (submits, 0), "{}", report.trouble);
    let counts = pool.settled_shares(submits);
    until_shipped(&pool, &clickhouse, submits);
    let behind = began.elapsed().as_secs_f64() - seconds;
    assert_eq!(pool.stop().received, submits);
    witnesses_agree(&site, &clickhouse, counts);
    for status in [ShareStatus::Stale, ShareStatus::Duplicate, ShareStatus::LowDifficulty, ShareStatus::BadTime, ShareStatus::BadVersion] {
        assert!(counts[status as usize] > 0, "no {} among {submits}: {counts:?}", status.label());
    }
    println!("{submits} submits in {seconds:.1} s, all on the server {behind:.1} s later; by status {counts:?}");

    // The commands that an operator looks with.
    let sql = said(&otedama(&site, &["sql", "SELECT count() FROM shares WHERE status = 'duplicate'"]));
    assert_eq!(sql.trim(), counts[ShareStatus::Duplicate as usize].to_string());
    assert_eq!(otedama(&site, &["sql", "SELECT nonsense FROM nowhere"]).status.code(), Some(2), "the statement is wrong");
    let shares = said(&otedama(&site, &["shares", "--by", "status", "--format", "csv"]));
    for status in ShareStatus::ALL.into_iter().filter(|status| counts[*status as usize] > 0) {
        let line = format!("{},{}", status.label(), counts[status as usize]);
        assert!(shares.lines().any(|row| row.starts_with(&line)), "{line} in {shares}");
    }
    let of_workers: Value = serde_json::from_str(&said(&otedama(&site, &["shares", "--by", "worker", "--format", "json"]))).expect("JSON");
    assert!(of_workers.as_array().is_some_and(|workers| workers.len() >= 128), "{of_workers}");
    // The printed schema and the one that the pool made are the same: all of it is there already.
    let schema = said(&otedama(&site, &["schema", if clickhouse.is_modern() { "--single" } else { "--legacy" }]));
    let tables = || clickhouse.query("SELECT name FROM system.tables WHERE database = 'otedama' ORDER BY name");
    let made = tables();
    for statement in schema.split(";\n").map(str::trim).filter(|statement| !statement.is_empty()) {
        clickhouse.query(statement);
    }
    assert_eq!(tables(), made);
    site.assert_no_panic();
}

#[test]
fn clickhouse_reconciliation_finds_a_row_that_was_dropped_and_one_that_was_doubled() {
    let _turn = alone();
    let Some(clickhouse) = server::Server::start("clickhouse_reconciliation_finds_a_row_that_was_dropped_and_one_that_was_doubled") else {
        return;
    };
    let site = site(&clickhouse);
    let pool = site.serve();
    let submits = 2_000;
    load(pool.stratum, Amount::Submits(submits), 4, 8, behaviour(2, "ship"), LedgerSink::None);
    until_shipped(&pool, &clickhouse, submits);
    pool.stop();
    let segments: Vec<(u64, u64)> = clickhouse
        .query("SELECT seg, count() FROM otedama.shares GROUP BY seg ORDER BY seg")
        .lines()
        .map(|line| line.split_once('\t').expect("two columns"))
        .map(|(segment, rows)| (segment.parse().expect("a number"), rows.parse().expect("a count")))
        .collect();
    let &(segment, segment_rows) = segments.first().expect("a segment");
    let reconciled = || {
        let output = otedama(&site, &["reconcile", "--json"]);
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let found = |key: &str| report[key].as_array().expect("a list").len();
        (output.status.code(), found("missing"), found("doubled"))
    };
    assert_eq!(reconciled(), (Some(0), 0, 0));
    clickhouse.query(&format!("INSERT INTO otedama.shares SELECT * FROM otedama.shares WHERE seg = {segment} AND seq = 0"));
    assert_eq!(reconciled(), (Some(1), 0, 1), "a row twice");
    // 18.16 deletes by partition only: all but one row are put aside and come back.
    let whole = format!("seg != {segment} OR seq != {}", segment_rows - 1);
    clickhouse.query(&format!("CREATE TABLE otedama.kept ENGINE = Memory AS SELECT DISTINCT * FROM otedama.shares WHERE {whole}"));
    for partition in
        clickhouse.query("SELECT DISTINCT partition FROM system.parts WHERE database = 'otedama' AND table = 'shares' AND active").lines()
    {
        clickhouse.query(&format!("ALTER TABLE otedama.shares DROP PARTITION {partition}"));
    }
    clickhouse.query("INSERT INTO otedama.shares SELECT * FROM otedama.kept");
    assert_eq!(reconciled(), (Some(1), 1, 0), "a row that is not there");
}

/// Paced load for a time, on connections of its own.
fn paced(pool: &Server, site: &Site, seed: u64, seconds: f64) -> RunReport {
    let engine = EngineConfig {
        connections: 64,
        behaviour: behaviour(seed, &format!("ship{seed}")),
        ledger: LedgerSink::File(site.ledger()),
        // Together 6,400 shares a second: a latency under load, not that of a queue that is always full.
        pace_shares_per_s: 100.0,
        ..EngineConfig::new(pool.stratum)
    };
    let config =
        RunConfig { window: Duration::from_secs_f64(seconds), warmup: Duration::ZERO, set_up_limit: PATIENCE, ..RunConfig::new(engine) };
    let report = loadgen::run::run(config, &AtomicBool::new(false)).expect("the load generator");
    assert_eq!(report.totals.wrong, 0, "{:#?}", report.totals.wrong_kept);
    assert_eq!(report.totals.unanswered, 0, "{}", report.trouble);
    report
}

#[test]
fn clickhouse_stopped_under_load_and_started_again_misses_nothing_and_no_miner_notices() {
    let _turn = alone();
    let test = "clickhouse_stopped_under_load_and_started_again_misses_nothing_and_no_miner_notices";
    let Some(mut clickhouse) = server::Server::start(test) else { return };
    let site = site(&clickhouse);
    let pool = site.serve();
    let seconds = size(5.0, 60.0);
    // Two histograms circulate between net and stats: a read hands them back, and net fills them with all that it has kept since. A later read has that.
    let of_pool = |pool: &Server| {
        for _ in 0..4 {
            pool.stats();
            std::thread::sleep(Duration::from_millis(500));
        }
        pool.stats()["latency_us"].take()
    };
    let quiet = paced(&pool, &site, 1, seconds);
    let quiet_pool = of_pool(&pool);
    until_shipped(&pool, &clickhouse, quiet.totals.submits);

    clickhouse.stop();
    let outage = paced(&pool, &site, 2, seconds);
    let stats = pool.stats();
    assert_eq!(stats["clickhouse"]["state"], "retrying", "{stats}");
    assert_ne!(stats["clickhouse"]["last_error"], "", "{stats}");
    assert!(stats["log"]["rows_unshipped"].as_u64() > Some(0), "{stats}");
    let (code, health) = pool.get("/health");
    assert_eq!(code, 200, "miners need not go elsewhere: {health}");
    assert!(health.contains("clickhouse retrying"), "{health}");
    let outage_pool = of_pool(&pool);

    clickhouse.restart();
    let restarted = Instant::now();
    let again = paced(&pool, &site, 3, 2.0);
    let submits = [&quiet, &outage, &again].map(|report| report.totals.submits);
    let counts = pool.settled_shares(submits.iter().sum());
    until_shipped(&pool, &clickhouse, submits.iter().sum());
    let caught_up = restarted.elapsed().as_secs_f64();
    assert_eq!(pool.get("/health").0, 200);
    pool.stop();
    assert!(submits[1] > 0 && outage.totals.answered() == submits[1], "every share is answered while the server is away");
    witnesses_agree(&site, &clickhouse, counts);
    println!(
        "{submits:?} submits before, during and after {seconds} s without a server ({}); seen by miners, us: quiet {:?}, outage {:?}; by the pool since its start: \
         {quiet_pool} before, {outage_pool} at the end of the outage; all shipped {caught_up:.1} s after the start of the server",
        if long() { "long" } else { "CI" },
        quiet.latency_us(),
        outage.latency_us()
    );
    site.assert_no_panic();
}

#[test]
fn clickhouse_that_is_away_when_the_pool_starts_stops_and_starts_again_gets_every_row_afterwards() {
    let _turn = alone();
    let test = "clickhouse_that_is_away_when_the_pool_starts_stops_and_starts_again_gets_every_row_afterwards";
    let Some(mut clickhouse) = server::Server::start(test) else { return };
    clickhouse.stop();
    let site = site(&clickhouse);
    let mut counts = [0; 9];
    let mut add = |pool: &Server, seed| {
        let submits = 20_000;
        load(pool.stratum, Amount::Submits(submits), 16, 8, behaviour(seed, "ship"), LedgerSink::File(site.ledger()));
        for (sum, count) in counts.iter_mut().zip(pool.settled_shares(submits)) {
            *sum += count;
        }
        counts
    };
    let pool = site.serve();
    add(&pool, 1);
    // The stop does not wait for ClickHouse longer than some seconds, and is a clean one: the log has everything.
    pool.stop();
    let pool = site.serve();
    let counts = add(&pool, 2);
    clickhouse.restart();
    until_shipped(&pool, &clickhouse, counts.iter().sum());
    pool.stop();
    witnesses_agree(&site, &clickhouse, counts);
    assert_eq!(number(&clickhouse, "SELECT count() FROM otedama.runs FINAL"), 2);
    site.assert_no_panic();
}

#[test]
fn clickhouse_and_pool_killed_in_turn_leave_every_share_once_in_tables_and_roll_ups() {
    let _turn = alone();
    let test = "clickhouse_and_pool_killed_in_turn_leave_every_share_once_in_tables_and_roll_ups";
    let Some(mut clickhouse) = server::Server::start(test) else { return };
    let kills: u32 = size(12, 200);
    let site = kills::site(clickhouse.url());
    let (miners, first) = Miners::start(&site, |farm| farm.behaviour = behaviour(5, "ship"));
    let mut pool = Some(first);
    let mut chance = kills::seed();
    let mut killed = [0; 2];
    for kill in 0..kills {
        miners.until_accepted(0, &format!("kill {kill}"));
        // Up to more than the second after which a segment is sealed and sent: some kills find an insert on its way.
        std::thread::sleep(Duration::from_micros(random::next(&mut chance) % 1_500_000));
        let which = random::next(&mut chance) % 3;
        if which != 0 {
            clickhouse.kill();
            killed[0] += 1;
        }
        if which != 1 {
            pool.take().expect("one at a time").kill();
            killed[1] += 1;
            // After a kill the kernel takes a ring's hold on the listening socket back a little later: until then a start ends with 3, as under a supervisor that starts it again.
            assert!(eventually(|| {
                pool = site.spawn().listening().map_err(|code| assert_eq!(code, Some(3))).ok();
                pool.is_some()
            }));
        }
        if which != 0 {
            // The pool comes up, and serves, without it.
            clickhouse.restart();
        }
    }
    let (totals, counts) = miners.end(&site, pool.take().expect("one at a time"));
    let rows: u64 = counts.iter().sum();
    ship_the_rest(&site, &clickhouse, rows);
    println!("{} kills of the server and {} of the pool, {rows} rows, {} accepted shares", killed[0], killed[1], totals.accepted);
    repaired_where_nothing_else_is_promised(&site, &clickhouse);
    witnesses_agree(&site, &clickhouse, counts);
    site.assert_no_panic();
}

/// What the stop had no time for goes out after the next start: at the end the server has so many rows, and the cursor has passed them.
fn ship_the_rest(site: &Site, clickhouse: &server::Server, rows: u64) {
    let pool = site.serve();
    let mut there = 0;
    while there < rows {
        let before = there;
        // However slow the machine is: some of it goes out all the time. The pool's own count of what waits is no witness of a process that has only begun to look.
        assert!(
            eventually(|| {
                let count = clickhouse.try_query("SELECT count() FROM otedama.shares");
                there = count.ok().and_then(|count| count.trim().parse().ok()).unwrap_or(before);
                there > before
            }),
            "{there} of {rows} rows are on the server: {}",
            pool.stats()
        );
    }
    assert!(eventually(|| pool.stats()["log"]["rows_unshipped"] == 0), "{}", pool.stats());
    pool.stop();
}

/// Exactly once is promised on servers with tokens. On 18.16 a kill may have a segment there twice or a roll-up without its sums; `reconcile` says so, and `--repair --yes` mends it.
fn repaired_where_nothing_else_is_promised(site: &Site, clickhouse: &server::Server) {
    if clickhouse.is_modern() {
        return;
    }
    let report: Value = serde_json::from_str(&said(&otedama(site, &["reconcile", "--repair", "--yes", "--json"]))).expect("JSON");
    let before = &report["before"];
    println!("18.16 before the repair: missing {}, doubled {}, roll-ups {}", before["missing"], before["doubled"], before["roll_ups"]);
    assert_eq!((&before["missing"], &report["left"]), (&json!([]), &json!([])), "{report}");
}

/// kill -9 of the pool at every named point of shipping, the server killed with it one time in three. 8 kills a point, 100 with OTEDAMA_LONG=1; OTEDAMA_KILL_POINTS names some of them.
#[test]
#[ignore = "minutes of kills: cargo xtask test --lane clickhouse, or --lane engine"]
fn clickhouse_has_every_share_once_after_kills_at_every_point_of_shipping() {
    let test = "clickhouse_has_every_share_once_after_kills_at_every_point_of_shipping";
    if !otedama_killpoint::are_built_in() {
        server::skip(test, "this build has no kill points (they need debug assertions)");
        return;
    }
    let _turn = alone();
    let Some(mut clickhouse) = server::Server::start(test) else { return };
    let each: u32 = size(8, 100);
    let chosen = std::env::var("OTEDAMA_KILL_POINTS").unwrap_or_default();
    let is_chosen = |point: &str| chosen.is_empty() || chosen.split(',').any(|name| name.trim() == point);
    let points: Vec<&str> = otedama_killpoint::POINTS.into_iter().filter(|point| point.starts_with("ship.") && is_chosen(point)).collect();
    assert!(!points.is_empty(), "OTEDAMA_KILL_POINTS names no point of shipping");
    let site = kills::site(clickhouse.url());
    let (miners, first) = Miners::start(&site, |farm| {
        farm.shares_per_s_per_connection = 100.0;
        farm.behaviour = behaviour(6, "ship");
    });
    first.kill();

    let mut chance = kills::seed();
    let started = Instant::now();
    let (mut tally, mut of_the_server) = (BTreeMap::new(), 0);
    let arm = |_, chance: &mut u64| {
        let pass = 1 + random::next(chance) % 4;
        let in_flight = if random::next(chance).is_multiple_of(2) { "4" } else { "1" };
        let variables =
            vec![("OTEDAMA_LOG__SEAL_AFTER_MS", "50".to_owned()), ("OTEDAMA_CLICKHOUSE__INSERTS_IN_FLIGHT", in_flight.to_owned())];
        Armed { pass, variables, patience: Duration::from_secs(15) }
    };
    kills::at_points(&site, &points, each, &mut chance, &mut tally, arm, |chance| {
        if random::next(chance).is_multiple_of(3) {
            clickhouse.kill();
            clickhouse.restart();
            of_the_server += 1;
        }
    });
    let (totals, counts) = miners.end(&site, site.serve());
    let rows: u64 = counts.iter().sum();
    ship_the_rest(&site, &clickhouse, rows);
    println!(
        "{each} kills of the pool at each of {points:?}, {} from outside, {of_the_server} of the server; {rows} rows, {} accepted shares; {:.0} s",
        tally.values().map(|kills| kills.from_outside).sum::<u32>(),
        totals.accepted,
        started.elapsed().as_secs_f64()
    );
    repaired_where_nothing_else_is_promised(&site, &clickhouse);
    witnesses_agree(&site, &clickhouse, counts);
    site.assert_no_panic();
}
