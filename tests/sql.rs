//! `otedama sql`: over the log's own segments by the engine, beside a server with the same rows, and what it says where there is neither.
mod support;

#[path = "../shipper/tests/server/mod.rs"]
mod server;

use loadgen::ledger::LedgerSink;
use loadgen::session::Behaviour;
use otedama_sharelog::store::SegmentStore;
use otedama_shipper::recipes::{self, Kind};
use std::path::Path;
use std::process::{Command, Output};
use support::{Amount, Config, Site, alone, eventually, load};

/// `otedama sql` with these variables.
fn sql(variables: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_otedama"));
    command.arg("sql").args(arguments);
    for (name, value) in variables {
        command.env(name, value);
    }
    command.output().expect("run otedama sql")
}

fn said(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn refused(output: &Output) -> (Option<i32>, String) {
    assert!(output.stdout.is_empty(), "{output:?}");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn behaviour() -> Behaviour {
    Behaviour { bad_every: 10, dup_every: 10, seed: 3, worker_prefix: "ship".to_owned(), workers_per_connection: 2, ..Behaviour::default() }
}

#[test]
fn without_server_and_engine_the_one_command_is_named() {
    let site = Site::new(Config::default());
    let config = site.config_file();
    let (code, text) =
        refused(&sql(&[("OTEDAMA_ENGINE", "/nonexistent/otedama-engine")], &["--config", config.to_str().expect("UTF-8"), "SELECT 1"]));
    assert_eq!(code, Some(3));
    assert!(text.contains("cargo xtask engine") && text.contains("[clickhouse] url"), "{text}");
}

#[test]
fn recipes_are_listed_shown_and_refused_by_name() {
    let list = said(&sql(&[], &[]));
    for recipe in recipes::RECIPES {
        assert!(list.lines().any(|line| line.starts_with(recipe.name)), "{}", recipe.name);
    }
    let shown = said(&sql(&[], &["hashrate-by-worker", "since=2026-11-20", "--show"]));
    assert!(shown.starts_with("SELECT") && shown.contains("toDateTime('2026-11-20 00:00:00', 'UTC')"), "{shown}");
    for (arguments, says) in [
        (&["no_such_recipe"][..], "neither a statement nor the name of a recipe"),
        (&["hashrate_by_worker", "since=soon"], "since=soon"),
        (&["hashrate_by_worker", "nope=1"], "nope"),
        (&["SELECT 1", "since=1d"], "only recipes take parameters"),
        (&["SELECT 1", "--format", "CSV SETTINGS"], "--format"),
    ] {
        let (code, text) = refused(&sql(&[], arguments));
        assert_eq!(code, Some(2), "{arguments:?}: {text}");
        assert!(text.contains(says), "{arguments:?}: {text}");
    }
}

/// Values that mean the same whenever and wherever the recipe runs.
fn values(recipe: &recipes::Recipe, of: &dyn Fn(&str) -> String) -> Vec<String> {
    let value = |parameter: &recipes::Parameter| match (parameter.kind, parameter.default) {
        (Kind::DateTime, Some("now")) => Some("2100-01-01".to_owned()),
        (Kind::DateTime, Some(default)) if default.starts_with(|digit: char| digit.is_ascii_digit()) => Some("yesterday".to_owned()),
        (_, Some(_)) => None,
        (_, None) => Some(of(parameter.name)),
    };
    recipe.parameters().iter().filter_map(|parameter| value(parameter).map(|value| format!("{}={value}", parameter.name))).collect()
}

#[test]
fn engine_answers_over_the_segments_what_a_server_with_the_same_rows_answers() {
    let _turn = alone();
    let test = "engine_answers_over_the_segments_what_a_server_with_the_same_rows_answers";
    if server::Kind::chosen() != Some(server::Kind::Engine) {
        server::skip(test, "OTEDAMA_TEST_SERVER=engine is not set");
        return;
    }
    let Some(clickhouse) = server::Server::start(test) else { return };
    let site = Site::new(Config { clickhouse: clickhouse.url(), ..Config::default() });
    // What the server has is compressed at once.
    let pool = site.spawn_with(&[("OTEDAMA_LOG__COMPRESS_AFTER", "0s")]).listening().expect("the pool listens");
    let submits = 20_000;
    load(pool.stratum, Amount::Submits(submits), 16, 8, behaviour(), LedgerSink::File(site.ledger()));
    let counts = pool.settled_shares(submits);
    let mut on_server = 0;
    while on_server < submits {
        let before = on_server;
        // However slow the machine is: some of it arrives all the time.
        assert!(
            eventually(|| {
                on_server = clickhouse
                    .try_query("SELECT count() FROM otedama.shares")
                    .ok()
                    .and_then(|count| count.trim().parse().ok())
                    .unwrap_or(before);
                on_server > before
            }),
            "{}",
            pool.stats()
        );
    }
    // The record of the last segment follows its rows.
    assert!(eventually(|| pool.stats()["log"]["rows_unshipped"] == 0), "{}", pool.stats());
    pool.stop();
    assert_eq!(site.verified_clean(), counts);
    // The folder of a pool whose packer was killed: one segment in both forms, and one torn beside the plain one.
    let store = SegmentStore::open(&site.log()).expect("store");
    let metas = store.segments().expect("segments");
    let packed = |meta| store.native_path(meta).with_extension("native.zst");
    let first = metas.iter().find(|meta| packed(meta).exists()).expect("a packed segment");
    let mut block = Vec::new();
    assert!(store.read_native(first, &mut block).expect("sound"));
    std::fs::write(store.native_path(first), &block).expect("write");
    if let Some(plain) = metas.iter().find(|meta| !packed(meta).exists()) {
        std::fs::write(packed(plain), "torn").expect("write");
    }

    let (config, log) = (site.config_file(), site.log());
    let (config, log) = (config.to_str().expect("UTF-8"), log.to_str().expect("UTF-8"));
    let local = |arguments: &[&str]| said(&sql(&[], &[arguments, &["--dir", log]].concat()));
    let remote = |arguments: &[&str]| said(&sql(&[], &[arguments, &["--config", config]].concat()));

    assert_eq!(local(&["SELECT count() FROM shares"]).trim(), submits.to_string());
    for statement in [
        "SELECT status, count(), sum(work), min(ts), max(ts) FROM shares GROUP BY status ORDER BY status",
        "SELECT worker, status, sum(shares), sum(work) FROM worker_minute GROUP BY worker, status ORDER BY worker, status",
        "SELECT sum(shares), sum(work) FROM worker_hour",
        "SELECT sum(shares), sum(work), sum(block_candidates), sum(latency_us_sum) FROM pool_minute",
        "SELECT worker_name, count() FROM shares_named GROUP BY worker_name ORDER BY worker_name",
        "SELECT * FROM workers FINAL ORDER BY worker",
        "SELECT * FROM sessions FINAL ORDER BY session",
        "SELECT * FROM jobs FINAL ORDER BY job",
        "SELECT * FROM runs FINAL ORDER BY run",
        "SELECT * FROM segments FINAL ORDER BY seg",
        "SELECT table, name, type, comment FROM system.columns WHERE database = 'otedama' AND table IN ('shares', 'workers', 'worker_minute', 'segments') ORDER BY table, name",
        "DESCRIBE TABLE (SELECT work, ts FROM shares)",
    ] {
        let answer = local(&[statement, "--format", "csv"]);
        assert!(answer.lines().count() > 1, "{statement}: {answer}");
        assert_eq!(answer, remote(&[statement, "--format", "csv"]), "{statement}");
    }
    let of = |name: &str| match name {
        "worker" => clickhouse.query("SELECT name FROM otedama.workers ORDER BY name LIMIT 1").trim().to_owned(),
        "seg" => clickhouse.query("SELECT min(seg) FROM otedama.shares").trim().to_owned(),
        "seq" => "7".to_owned(),
        other => panic!("a value for {other}"),
    };
    for recipe in recipes::RECIPES {
        let values = values(recipe, &of);
        let arguments: Vec<&str> = [recipe.name, "--format", "csv"].into_iter().chain(values.iter().map(String::as_str)).collect();
        assert_eq!(in_order(&local(&arguments)), in_order(&remote(&arguments)), "{arguments:?}");
    }

    // What is wrong is said in ClickHouse's words, with the same code on both sides.
    for (statement, code, says) in
        [("SELECT nope FROM shares", 2, "Code: 47."), ("SELCT", 2, "neither"), ("SELECT throwIf(1, 'no')", 3, "Code: 395.")]
    {
        for place in [["--dir", log], ["--config", config]] {
            let (exit, text) = refused(&sql(&[], &[&[statement][..], &place].concat()));
            assert_eq!(exit, Some(code), "{statement}: {text}");
            assert!(text.contains(says) && text.starts_with("otedama: "), "{statement}: {text}");
        }
    }
    let (code, text) = refused(&sql(&[], &["--dir", "/nonexistent/log", "SELECT 1"]));
    assert!(code == Some(3) && text.contains("/nonexistent/log"), "{text}");
    let native = sql(&[], &["--dir", log, "--format", "Native", "SELECT toUInt8(200) AS a"]);
    assert_eq!(native.stdout, [&[1, 1, 1, b'a', 5][..], b"UInt8", &[200]].concat(), "bytes, not text: {:?}", native.status);
    empty_log(&site);
}

/// A log without segments has every table, and nothing in them.
fn empty_log(site: &Site) {
    let folder = site.path("empty");
    std::fs::create_dir(&folder).expect("made");
    let ask = |statement: &str| said(&sql(&[], &["--dir", folder.to_str().expect("UTF-8"), statement]));
    assert_eq!(ask("SELECT count(), sum(work) FROM shares"), "0\t0\n");
    assert_eq!(ask("SELECT sum(shares) FROM worker_minute"), "0\n");
    assert!(Path::new(&folder).read_dir().expect("read").next().is_none(), "a reader leaves nothing behind");
}

/// Lines in order: rows that sort equal may come in any.
fn in_order(text: &str) -> Vec<&str> {
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    lines
}
