//! `otedama log replay` over logs that whole servers wrote: every verdict comes out again, whatever happened to the server meanwhile.
mod support;

use loadgen::farm::{Farm, FarmConfig};
use loadgen::ledger::LedgerSink;
use loadgen::session::Behaviour;
use otedama_primitives::ShareStatus;
use serde_json::Value;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use support::{Amount, Config, Site, alone, eventually, load, otedama, port_out_of_the_way, rows_by_status, size};

/// `otedama log replay --json`: exit code and report.
fn replay(dir: &Path, more: &[&str]) -> (i32, Value) {
    let dir = dir.to_str().expect("UTF-8");
    let output = otedama(&[&["log", "replay", "--json", "--dir", dir], more].concat());
    let text = String::from_utf8_lossy(&output.stdout);
    let report = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text} {}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code().expect("replay ends by itself"), report)
}

fn number(report: &Value, map: &str, key: &str) -> u64 {
    report[map][key].as_u64().unwrap_or(0)
}

/// The log replays identical, and what was judged and what was not are what the log has by status.
fn replays_identical(site: &Site) -> Value {
    let by_status = rows_by_status(&site.verify(None).1["by_status"]);
    let (code, report) = replay(&site.log(), &["--threads", "2"]);
    assert_eq!((code, &report["identical"]), (0, &Value::Bool(true)), "{report:#}");
    let rows: u64 = by_status.iter().sum();
    assert_eq!(report["rows"].as_u64(), Some(rows));
    let of = |status: ShareStatus| by_status[status as usize];
    for status in [ShareStatus::Accepted, ShareStatus::Duplicate, ShareStatus::LowDifficulty, ShareStatus::BadTime, ShareStatus::BadVersion]
    {
        assert_eq!(number(&report, "judged_by_status", status.label()), of(status), "{}: {report:#}", status.label());
        assert!(of(status) > 0, "no {} in the log", status.label());
    }
    for status in [ShareStatus::Malformed, ShareStatus::Unauthorized, ShareStatus::Overload] {
        assert_eq!(number(&report, "unjudged", status.label()), of(status));
    }
    let stale = number(&report, "judged_by_status", "stale")
        + number(&report, "unjudged", "stale_job_unknown")
        + number(&report, "unjudged", "stale_end_unrecorded");
    assert_eq!(stale, of(ShareStatus::Stale), "{report:#}");
    report
}

fn bad_and_repeated() -> Behaviour {
    Behaviour { bad_every: 10, dup_every: 10, ..Behaviour::default() }
}

#[test]
fn every_reason_and_every_change_of_jobs_comes_out_again() {
    let _turn = alone();
    let site = Site::new(Config { refresh_s: 1, block_s: 2, ..Config::default() });
    let server = site.serve();
    load(server.stratum, Amount::Seconds(size(6, 60)), 32, 16, bad_and_repeated(), LedgerSink::None);
    server.stop();
    let report = replays_identical(&site);
    assert!(number(&report, "judged_by_status", "stale") > 0, "shares came late for ended jobs: {report:#}");
}

#[test]
fn two_nets_over_two_lanes_come_out_again() {
    let _turn = alone();
    let site = Site::new(Config { net: "0,1", validate: "0,1", ..Config::default() });
    let server = site.serve();
    load(server.stratum, Amount::Submits(20_000), 64, 8, bad_and_repeated(), LedgerSink::None);
    server.stop();
    replays_identical(&site);
}

#[test]
fn retargets_with_their_grace_come_out_again() {
    let _turn = alone();
    let site = Site::new(Config { refresh_s: 1, ..Config::default() });
    let learning =
        [("OTEDAMA_VARDIFF__ENABLED", "true"), ("OTEDAMA_VARDIFF__TARGET_SHARES_PER_MINUTE", "6000"), ("OTEDAMA_VARDIFF__MIN", "1e-9")];
    let server = site.spawn_with(&learning).listening().expect("it listens");
    load(server.stratum, Amount::Seconds(size(8, 60)), 8, 8, bad_and_repeated(), LedgerSink::None);
    let (_, page) = server.get("/metrics");
    let raised = page.lines().find(|line| line.starts_with("otedama_net_difficulty_raised_total")).expect("the metric");
    assert!(!raised.ends_with(" 0"), "{raised}");
    server.stop();
    replays_identical(&site);
}

/// Killed again and again, and read while the last one runs: journals that nobody sealed, torn ends, jobs without an end.
#[test]
fn a_log_of_killed_servers_comes_out_again_and_so_does_one_in_use() {
    let _turn = alone();
    let listen = SocketAddr::from(([127, 0, 0, 1], port_out_of_the_way()));
    let site = Site::new(Config { listen, refresh_s: 1, block_s: 3, ..Config::default() });
    let mut farm = FarmConfig::new(listen);
    farm.connections = 16;
    farm.behaviour = bad_and_repeated();
    let mut server = Some(site.serve());
    let stop = Arc::new(AtomicBool::new(false));
    let farm = Farm::start(farm, stop.clone()).expect("farm");
    let accepted = || farm.live().accepted.load(Ordering::Relaxed);
    for kill in 0..size(4, 40) {
        let before = accepted();
        assert!(eventually(|| accepted() > before + 2000), "kill {kill}: no share is accepted any more");
        let (code, report) = replay(&site.log(), &[]);
        assert_eq!((code, &report["first"]), (0, &Value::Null), "in use, before kill {kill}: {report:#}");
        server.take().expect("one server at a time").kill();
        let (code, report) = replay(&site.log(), &[]);
        assert_eq!((code, &report["first"]), (0, &Value::Null), "after kill {kill}: {report:#}");
        server = Some(site.serve());
    }
    stop.store(true, Ordering::Relaxed);
    farm.join().expect("farm");
    server.take().expect("one server at a time").stop();
    let report = replays_identical(&site);
    let all = report["rows"].as_u64().expect("rows");
    let (code, half) = replay(&site.log(), &["--until", "1s"]);
    assert!(code == 0 && half["rows"].as_u64().is_some_and(|rows| rows <= all), "{half:#}");
}

#[test]
fn the_command_line_exports_what_it_says_or_tells_what_is_wrong() {
    let _turn = alone();
    let site = Site::new(Config::default());
    let server = site.serve();
    load(server.stratum, Amount::Submits(5_000), 8, 8, bad_and_repeated(), LedgerSink::None);
    let (dir, file) = (site.log(), site.path("shares.csv"));
    let (dir, file) = (dir.to_str().expect("UTF-8"), file.to_str().expect("UTF-8"));
    // In use: the log is read without its lock.
    let export = |more: &[&str]| {
        let output = otedama(&[&["log", "export", "--dir", dir], more].concat());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().expect("export ends by itself"), text(&output.stdout), text(&output.stderr))
    };
    assert!(eventually(|| server.stats()["shares"]["logged"] == 5_000));
    let (code, said, _) = export(&["--out", file]);
    let csv = std::fs::read_to_string(file).expect("it is there");
    assert_eq!((code, csv.lines().count()), (0, 5_001));
    assert_eq!(said, format!("rows 5000, bytes {}, {file}\n", csv.len()));
    let (code, piped, said) = export(&["--format", "csv", "--out", "-"]);
    assert_eq!((code, piped.lines().count(), said.as_str()), (0, 5_001, "rows 5000\n"));
    let (code, named, _) = export(&["--format", "csv", "--out", "-", "--columns", "worker_name,work"]);
    let workers: std::collections::BTreeSet<_> = named.lines().skip(1).filter_map(|line| line.split(',').next()).collect();
    assert!(code == 0 && workers.iter().filter(|name| name.contains('.')).count() > 1, "{workers:?}");
    let (code, nothing, _) = export(&["--format", "csv", "--out", "-", "--since", "2000-01-01", "--until", "2000-01-02"]);
    assert_eq!((code, nothing.lines().count()), (0, 1));
    for (wrong, word) in [
        (&["--out", "shares.xls"][..], "--format"),
        (&["--out", file, "--columns", "wrok"], "work"),
        (&["--out", file, "--since", "yesterday"], "2026-11-20"),
    ] {
        let (code, _, said) = export(wrong);
        assert!(code == 2 && said.contains(word), "{wrong:?}: {said}");
    }
    let (code, _, said) = export(&["--out", "/nowhere/at/all.csv"]);
    assert!(code == 3 && said.contains("/nowhere/at"), "{said}");
    server.stop();
}

#[test]
fn the_command_line_sums_the_shares_of_a_range_or_tells_what_is_wrong() {
    let _turn = alone();
    let site = Site::new(Config::default());
    let server = site.serve();
    load(server.stratum, Amount::Submits(5_000), 8, 8, bad_and_repeated(), LedgerSink::None);
    let dir = site.log();
    let dir = dir.to_str().expect("UTF-8");
    // In use: the log is read without its lock.
    let shares = |more: &[&str]| {
        let output = otedama(&[&["shares", "--dir", dir], more].concat());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().expect("shares ends by itself"), text(&output.stdout), text(&output.stderr))
    };
    let number = |text: &str| text.replace(',', "").parse::<u128>().expect("a number");
    assert!(eventually(|| server.stats()["shares"]["logged"] == 5_000));
    // Into a pipe goes CSV.
    let (code, csv, _) = shares(&["--by", "worker,status"]);
    assert_eq!((code, csv.lines().next()), (0, Some("worker,status,shares,work,credited")));
    assert_eq!(csv, shares(&["--by", "worker,status", "--format", "csv"]).1);
    assert_eq!(csv.lines().skip(1).map(|line| number(line.split(',').nth(2).expect("shares"))).sum::<u128>(), 5_000);
    // The table for people has the same cells, each line as wide as the others.
    let (code, table, _) = shares(&["--by", "worker,status", "--format", "table"]);
    let cells: Vec<String> =
        table.lines().map(|line| line.split_whitespace().map(|cell| cell.replace(',', "")).collect::<Vec<_>>().join(",")).collect();
    assert_eq!((code, cells), (0, csv.lines().map(str::to_owned).collect()));
    assert!(table.lines().all(|line| line.len() == table.find('\n').expect("a header")), "{table}");
    // A range and what lies outside of it are the whole, to the row.
    let moment = shares(&["--by", "minute"]).1.lines().last().and_then(|line| line.split(',').next()).expect("a minute").to_owned();
    let count = |range: &[&str]| {
        let (code, csv, _) = shares(&[&["--by", "", "--format", "csv"], range].concat());
        (code, csv.lines().nth(1).map_or(0, |line| number(line.split(',').next().expect("shares"))))
    };
    let ((_, before), (_, after)) = (count(&["--until", &moment]), count(&["--since", &moment]));
    assert!(after > 0 && before + after == 5_000, "{before} before {moment}, {after} from then on");
    assert_eq!(count(&["--since", "1h", "--until", "2100-01-01"]), (0, 5_000));
    assert_eq!(count(&["--until", "1h"]), (0, 0));
    let (code, nothing, said) = shares(&["--by", "day", "--since", "2000-01-01", "--until", "2000-01-02"]);
    assert_eq!((code, nothing.as_str(), said.lines().count()), (0, "day,shares,work,credited\n", 1), "{said}");
    for (wrong, word) in [
        (&["--since", "yesterday"][..], "2026-11-20"),
        (&["--until", "2026-02-29"], "--until"),
        (&["--since", "2026-11-21", "--until", "2026-11-20"], "is not before"),
        (&["--since", "1h", "--until", "2h"], "is not before"),
        (&["--by", "wroker"], "worker"),
        (&["--where", "status=ok"], "accepted"),
        (&["--format", "xml"], "table"),
    ] {
        let (code, _, said) = shares(wrong);
        assert!(code == 2 && said.contains(word), "{wrong:?}: {said}");
    }
    server.stop();
}
