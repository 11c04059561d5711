//! Against a real server: Debian's 18.16 with its own HTTP stack, or a modern engine with tokens and views; real crashes, real lost answers on either.
mod log;
mod running;
mod server;

use log::{FIRST_US, Log};
use otedama_sharelog::BlockStatus;
use otedama_shipper::{ReconcileReport, StateKind, query, reconcile};
use running::{Running, settings};
use server::{LossyProxy, Server};
use std::path::Path;
use std::time::Duration;

fn segments(count: u32, rows: u32) -> Log {
    let mut log = Log::new();
    for _ in 0..count {
        log.segment(rows, 5);
    }
    log
}

async fn reconciled(server: &Server, dir: &Path) -> ReconcileReport {
    reconcile(&settings(server.url()), dir).await.expect("log and server can be read")
}

fn clean(segments: u64, rows: u64) -> ReconcileReport {
    ReconcileReport { segments, rows_log: rows, rows_server: rows, ..ReconcileReport::default() }
}

#[tokio::test]
async fn it_makes_the_tables_and_every_row_and_dimension_arrives() {
    let Some(server) = Server::start("it_makes_the_tables_and_every_row_and_dimension_arrives") else { return };
    let mut log = segments(3, 1000);
    let run = Running::start(settings(server.url()), log.store());
    run.until_shipped(3).await;
    let (kind, version) =
        if server.is_modern() { (StateKind::Ok, server.query("SELECT version()")) } else { (StateKind::Legacy, "18.16.1".to_owned()) };
    assert_eq!((run.state.kind(), run.state.server_version()), (kind, version.trim().to_owned()));
    log.registry.block(&log.block(BlockStatus::Found)).expect("block");
    log.registry.block(&log.block(BlockStatus::Accepted)).expect("block");
    log.registry.job_end(log.job(1).job, FIRST_US + 7_000_000).expect("end");
    log.segment(1, 5);
    run.until_shipped(4).await;
    run.end().await;
    assert_eq!(reconciled(&server, log.dir()).await, clean(4, 3001));

    assert_eq!(server.query("SELECT status, count() FROM otedama.shares GROUP BY status ORDER BY status"), "accepted\t2700\nstale\t301\n");
    // Every column of a row, against what the log's own fixture wrote; session and job are 0x07abcdef_00000001.
    assert_eq!(
        server.query(
            "SELECT instance, seq, toString(time), us, session, worker, job, coin, status, flags, work, share_difficulty, nonce, ntime, version, extranonce2, latency_us \
             FROM otedama.shares WHERE extranonce2 = 5"
        ),
        "7\t5\t2026-11-20 23:46:19\t500\t552761805663895553\t3\t552761805663895553\tbitcoin\taccepted\t1\t5\t1.5\t5\t1795218379\t536870912\t5\t20\n"
    );
    assert_eq!(
        server.query("SELECT count(), sum(rows), sum(work), sum(work_credited) FROM otedama.segments FINAL"),
        "4\t3001\t15005\t13500\n"
    );
    assert_eq!(
        server.query("SELECT instance, pool, build, kernel, driver, tier FROM otedama.runs FINAL"),
        "7\totedama\ttest\\tbuild\tscalar\tmio\tprocess\n"
    );
    assert_eq!(server.query("SELECT worker, name, account FROM otedama.workers FINAL"), "1\taccount.rig1\taccount\n");
    assert_eq!(
        server.query("SELECT extranonce1, peer, agent, toString(time) FROM otedama.sessions FINAL"),
        "16909060\t127.0.0.1:4000\ttest\\\\agent\\n\t2026-11-20 23:46:19\n"
    );
    assert_eq!(server.query("SELECT status, height FROM otedama.blocks FINAL"), "accepted\t900000\n");
    assert_eq!(
        server.query("SELECT height, coinbase_prefix, length(branch), toString(ended) FROM otedama.jobs FINAL"),
        "900000\t010203\t128\t2026-11-20 23:46:26\n"
    );
    assert_eq!(
        server.query("SELECT count() FROM otedama.shares_named WHERE worker_name = 'account.rig1' AND account = 'account'"),
        "1001\n"
    );
    assert_eq!(
        server.query("SELECT count() FROM otedama.shares WHERE session IN (SELECT session FROM otedama.sessions)"),
        "3001\n",
        "every row's session resolves"
    );
    assert_eq!(
        server.query("SELECT count() FROM otedama.shares WHERE job IN (SELECT job FROM otedama.jobs)"),
        "3001\n",
        "every row's job resolves"
    );

    let answer = query(&settings(server.url()), "SELECT count() AS n, '?' AS mark FROM shares FORMAT CSVWithNames").await;
    assert_eq!(answer.as_deref(), Ok("\"n\",\"mark\"\n3001,\"?\"\n"));
}

#[tokio::test]
async fn tables_that_a_killed_server_did_not_come_to_make_are_made_at_the_next_start() {
    let Some(server) = Server::start("tables_that_a_killed_server_did_not_come_to_make_are_made_at_the_next_start") else { return };
    let mut log = segments(1, 100);
    let run = Running::start(settings(server.url()), log.store());
    run.until_shipped(1).await;
    run.end().await;
    for lost in ["pool_minute_view", "pool_minute", "worker_hour_view", "jobs"] {
        server.query(&format!("DROP TABLE otedama.{lost}"));
    }
    log.segment(7, 5);
    let run = Running::start(settings(server.url()), log.store());
    run.until_shipped(1).await;
    run.end().await;
    assert_eq!(server.query("SELECT sum(shares) FROM otedama.pool_minute").trim(), "7", "what came after it was there");
    assert_eq!(server.query("SELECT sum(shares) FROM otedama.worker_minute").trim(), "107");
    let names = "SELECT count() FROM system.tables WHERE database = 'otedama' AND name IN ('pool_minute_view', 'pool_minute', 'worker_hour_view', 'jobs')";
    assert_eq!(server.query(names).trim(), "4");
}

#[tokio::test]
async fn every_column_that_the_shipper_makes_is_commented() {
    let Some(server) = Server::start("every_column_that_the_shipper_makes_is_commented") else { return };
    let log = segments(1, 1);
    let run = Running::start(settings(server.url()), log.store());
    run.until_shipped(1).await;
    run.end().await;
    let bare = "SELECT table, name FROM system.columns WHERE database = 'otedama' AND comment = '' AND table NOT LIKE '%\\_view' AND table NOT IN ('shares_named', 'schema_version')";
    assert_eq!(server.query(bare), "");
    // Modern servers have `ts` besides, and give the columns of views comments of their own.
    let of_tables = "SELECT count() FROM system.columns WHERE database = 'otedama' AND comment != '' AND table NOT LIKE '%\\_view' AND table NOT IN ('shares_named', 'schema_version')";
    assert_eq!(
        server.query(of_tables).trim(),
        if server.is_modern() { "106" } else { "105" },
        "86 of the seven tables, 19 of the roll-ups"
    );
}

#[tokio::test]
async fn sums_of_work_are_exact_past_two_to_the_64() {
    let Some(server) = Server::start("sums_of_work_are_exact_past_two_to_the_64") else { return };
    let mut log = Log::new();
    for _ in 0..3 {
        log.segment(1000, u64::MAX);
    }
    let run = Running::start(settings(server.url()), log.store());
    run.until_shipped(3).await;
    run.end().await;
    let exact = (u128::from(u64::MAX) * 3000).to_string();
    let ask = |sql: &str| server.query(sql).trim().to_owned();
    for merged in [false, true] {
        for table in ["worker_minute", "worker_hour", "pool_minute", "shares_named", "segments"] {
            assert_eq!(ask(&format!("SELECT sum(work) FROM otedama.{table}")), exact, "{table}, merged: {merged}");
        }
        for table in ["worker_minute", "worker_hour", "pool_minute"] {
            assert_eq!(ask(&format!("SELECT sum(shares) FROM otedama.{table}")), "3000", "{table}, merged: {merged}");
            server.query(&format!("OPTIMIZE TABLE otedama.{table} FINAL"));
        }
    }
    assert_eq!(ask("SELECT sum(toDecimal128(work, 0)) FROM otedama.shares"), exact);
    if server.is_modern() {
        assert_eq!(ask("SELECT sum(work) FROM otedama.shares"), exact, "typed bare");
    }
    assert_eq!(ask("SELECT sum(block_candidates), sum(latency_us_sum) FROM otedama.pool_minute"), "1\t60000");
}

#[tokio::test]
async fn lost_answers_neither_double_nor_lose_a_segment() {
    let Some(server) = Server::start("lost_answers_neither_double_nor_lose_a_segment") else { return };
    let proxy = LossyProxy::start(server.address(), 3);
    let log = segments(30, 2000);
    let run = Running::start(settings(proxy.url()), log.store());
    run.until_shipped(30).await;
    run.end().await;
    let (_, lost) = proxy.counts();
    assert!(lost >= 9, "only {lost} answers were lost");
    assert_eq!(reconciled(&server, log.dir()).await, clean(30, 60_000));
    assert_eq!(server.query("SELECT sum(shares) FROM otedama.pool_minute"), "60000\n");
}

#[tokio::test]
async fn a_server_killed_again_and_again_ends_up_with_every_segment_once() {
    let Some(mut server) = Server::start("a_server_killed_again_and_again_ends_up_with_every_segment_once") else { return };
    let proxy = LossyProxy::start(server.address(), 5);
    let log = segments(60, 5000);
    let run = Running::start(settings(proxy.url()), log.store());
    for kill in 1..=5u64 {
        run.until_shipped(kill * 10).await;
        // A little on, so that it dies in the middle of something.
        tokio::time::sleep(Duration::from_millis(7 * kill)).await;
        let killed = run.shipped();
        server = tokio::task::spawn_blocking(move || {
            server.kill();
            server.restart();
            server
        })
        .await
        .expect("restarted");
        assert!(killed < 60, "it was killed while shipping");
    }
    run.until_shipped(60).await;
    run.end().await;
    let report = reconciled(&server, log.dir()).await;
    let sum = |table: &str, column: &str| -> u64 {
        server.query(&format!("SELECT sum({column}) FROM otedama.{table}")).trim().parse().expect("a number")
    };
    if server.is_modern() {
        assert_eq!(report, clean(60, 300_000));
        assert_eq!(sum("shares", "work"), 1_500_000);
        for roll_up in ["worker_minute", "worker_hour", "pool_minute"] {
            assert_eq!((sum(roll_up, "shares"), sum(roll_up, "work")), (300_000, 1_500_000), "{roll_up}");
        }
    } else {
        assert_eq!(ReconcileReport { roll_ups: Vec::new(), ..report.clone() }, clean(60, 300_000));
        // 18.16 writes the base part, then those of the views: killed in between it has the rows and lacks their sums, and nothing on it can tell. Each kill can cost one.
        let summed = sum("pool_minute", "shares");
        assert!((275_000..=300_000).contains(&summed) && summed.is_multiple_of(5000), "{summed} shares in the roll-up");
        assert_eq!(report.roll_ups.contains(&"pool_minute"), summed < 300_000, "reconcile names the roll-up that lacks some: {report:?}");
    }
}

#[tokio::test]
async fn a_server_that_was_stopped_for_some_seconds_catches_up() {
    let Some(mut server) = Server::start("a_server_that_was_stopped_for_some_seconds_catches_up") else { return };
    let mut log = segments(2, 1000);
    let run = Running::start(settings(server.url()), log.store());
    run.until_shipped(2).await;
    server = tokio::task::spawn_blocking(move || {
        server.stop();
        server
    })
    .await
    .expect("stopped");
    for _ in 0..20 {
        log.segment(1000, 5);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    run.until("the failure to show", |state| state.kind() == StateKind::Retrying).await;
    assert!(run.state.last_error().contains("cannot connect"), "{}", run.state.last_error());
    assert_eq!(run.shipped(), 2);
    server.restart();
    run.until_shipped(22).await;
    run.end().await;
    assert_eq!(reconciled(&server, log.dir()).await, clean(22, 22_000));
}

#[tokio::test]
async fn reconcile_finds_a_missing_a_halved_and_a_doubled_segment() {
    let Some(server) = Server::start("reconcile_finds_a_missing_a_halved_and_a_doubled_segment") else { return };
    let mut log = segments(5, 100);
    let run = Running::start(settings(server.url()), log.store());
    run.until_shipped(5).await;
    run.end().await;
    assert!(reconciled(&server, log.dir()).await.is_clean());
    let metas = log.store().segments().expect("segments");
    // 18.16 has DELETE as a mutation; it is done when the rows are gone.
    let delete = |condition: String, left: &str| {
        server.query(&format!("ALTER TABLE otedama.shares DELETE WHERE {condition}"));
        for _ in 0..500 {
            if server.query("SELECT count() FROM otedama.shares") == left {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the rows are still there");
    };
    delete(format!("seg = {}", metas[1].seg), "400\n");
    delete(format!("seg = {} AND seq >= 50", metas[2].seg), "350\n");
    let body = std::fs::read(log.store().native_path(&metas[3])).expect("the segment");
    server.post("query=INSERT%20INTO%20otedama.shares%20FORMAT%20Native", &body).expect("sent by hand");
    // Not shipped yet is no finding.
    log.segment(100, 5);
    let report = reconciled(&server, log.dir()).await;
    assert_eq!(
        report,
        ReconcileReport {
            segments: 5,
            rows_log: 500,
            rows_server: 450,
            missing: vec![metas[1].name.clone(), metas[2].name.clone()],
            doubled: vec![metas[3].name.clone()],
            unshipped: 1,
            damaged: Vec::new(),
            // The views saw every insert and no deletion.
            roll_ups: vec!["worker_minute", "worker_hour", "pool_minute"],
        }
    );
    assert!(!report.is_clean());
}
