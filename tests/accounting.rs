//! Shares received = accepted + refused, and three witnesses agree on every one of them: the miners' ledger, the server's own counters, and the share log.
mod support;

use loadgen::ledger::LedgerSink;
use loadgen::session::Behaviour;
use otedama_primitives::ShareStatus;
use support::{Amount, Config, MinedShare, Miner, Site, alone, ledger_counts, load, size};

const STALE: i64 = 21;
const DUPLICATE: i64 = 22;
const LOW_DIFFICULTY: i64 = 23;

/// Load with every kind of bad and repeated share, then the three sets of books side by side.
fn books_agree_over(config: Config, amount: Amount, connections: usize, depth: usize) {
    let _turn = alone();
    let site = Site::new(config);
    let server = site.serve();
    let behaviour = Behaviour { bad_every: 10, dup_every: 10, ..Behaviour::default() };
    let report = load(server.stratum, amount, connections, depth, behaviour, LedgerSink::File(site.ledger()));
    let totals = &report.totals;
    assert_eq!(totals.wrong, 0, "{:#?}", totals.wrong_kept);
    assert_eq!(totals.unanswered, 0, "{}", report.trouble);
    let submits = totals.submits;
    if let Amount::Submits(ordered) = amount {
        assert_eq!(submits, ordered, "{}", report.trouble);
    }

    let (ledger, unanswered) = ledger_counts(&site.ledger());
    assert_eq!(unanswered, 0);
    assert_eq!(ledger, server.settled_shares(submits), "the miners' ledger and /api/stats");
    let drained = server.stop();
    let accepted = ledger[ShareStatus::Accepted as usize];
    assert_eq!((drained.received, drained.accepted, drained.rejected), (submits, accepted, submits - accepted));
    assert_eq!(ledger, site.verified_clean(), "the miners' ledger and the share log");
    site.assert_no_panic();

    // Books of accepted shares alone would agree as well: the refusals must have been there.
    for status in [ShareStatus::Stale, ShareStatus::Duplicate, ShareStatus::LowDifficulty, ShareStatus::BadTime, ShareStatus::BadVersion] {
        assert!(ledger[status as usize] > 0, "no {} among {submits}: {ledger:?}", status.label());
    }
    assert!(ledger[ShareStatus::Malformed as usize] > 0 && ledger[ShareStatus::Unauthorized as usize] > 0, "{ledger:?}");
    assert!(accepted > submits / 2, "{ledger:?}");
    println!("{submits} submits: {:.0} shares/s, {ledger:?} by status", report.windows.first().map_or(0.0, |window| window.shares_per_s()));
}

#[test]
fn every_share_stands_alike_in_the_ledger_the_stats_and_the_log() {
    books_agree_over(Config::default(), Amount::Submits(size(60_000, 2_000_000)), 64, 8);
}

#[test]
fn the_books_agree_where_answers_leave_before_the_append() {
    books_agree_over(Config { ack: "memory", ..Config::default() }, Amount::Submits(20_000), 64, 8);
}

#[test]
fn the_books_agree_where_answers_wait_for_the_disk() {
    books_agree_over(Config { ack: "disk", ..Config::default() }, Amount::Submits(20_000), 64, 8);
    // Rows that come while the log stage has a core of its own, too.
    books_agree_over(Config { ack: "disk", net: "0", validate: "1", ..Config::default() }, Amount::Submits(20_000), 64, 64);
}

#[test]
fn the_books_agree_where_jobs_and_blocks_change_under_load() {
    // Long enough for a few of both: refreshes keep earlier jobs, blocks end them with shares on the wire.
    books_agree_over(Config { refresh_s: 1, block_s: 2, ..Config::default() }, Amount::Seconds(size(5, 60)), 32, 16);
}

#[test]
fn the_books_agree_whatever_a_row_keeps() {
    for row in ["lean", "full", "rollup"] {
        books_agree_over(Config { row, net: "0,1", validate: "0,1", ..Config::default() }, Amount::Submits(20_000), 64, 8);
    }
}

#[test]
fn rows_of_layout_full_have_the_hash_that_they_were_judged_by() {
    let _turn = alone();
    let site = Site::new(Config { row: "full", net: "0", validate: "0,1", ..Config::default() });
    let server = site.serve();
    let behaviour = Behaviour { bad_every: 10, dup_every: 10, ..Behaviour::default() };
    let report = load(server.stratum, Amount::Submits(20_000), 64, 8, behaviour, LedgerSink::None);
    assert_eq!(report.totals.wrong, 0);
    server.stop();
    let mut hashed = 0;
    for row in otedama_sharelog::scan::rows(&site.log(), Default::default()).expect("the log") {
        let row = row.expect("a sound segment");
        assert_eq!(row.share_difficulty > 0.0, row.hash != otedama_primitives::Hash256::default(), "{row:?}");
        if row.share_difficulty > 0.0 {
            // The difficulty was computed from the top of the hash, beside it.
            assert!((row.hash.difficulty() / f64::from(row.share_difficulty) - 1.0).abs() < 1e-6, "{row:?}");
            let met = otedama_primitives::Work::new(row.work).target().is_met_by(&row.hash);
            assert!(met || row.status != ShareStatus::Accepted as u8, "an accepted share's hash meets its target: {row:?}");
            hashed += 1;
        }
    }
    assert!(hashed > 10_000, "{hashed}");
}

#[test]
fn the_books_agree_with_one_net_over_two_validate_lanes() {
    books_agree_over(Config { net: "0", validate: "0,1", ..Config::default() }, Amount::Submits(20_000), 64, 8);
}

#[test]
fn the_books_agree_with_two_nets_over_one_validate_lane() {
    books_agree_over(Config { net: "0,1", validate: "1", ..Config::default() }, Amount::Submits(20_000), 64, 8);
}

#[test]
fn the_books_agree_with_two_nets_over_two_validate_lanes() {
    books_agree_over(Config { net: "0,1", validate: "0,1", ..Config::default() }, Amount::Submits(20_000), 64, 8);
}

/// The same share 2 to 64 times in one segment, in every layout: one of them is credited.
fn twins_are_credited_once(config: Config) {
    let _turn = alone();
    let site = Site::new(config);
    let server = site.serve();
    let mut miner = Miner::connect(server.stratum);
    let (mut sent, mut credited) = (0, 0);
    for copies in 2..=64 {
        let share = miner.mine();
        let codes = miner.submit_at_once(&vec![share; copies]);
        let mut expected = vec![DUPLICATE; copies];
        expected[0] = 0;
        assert_eq!(codes, expected, "{copies} copies");
        sent += copies as u64;
        credited += 1;
    }
    let counts = server.settled_shares(sent);
    assert_eq!((counts[ShareStatus::Accepted as usize], counts[ShareStatus::Duplicate as usize]), (credited, sent - credited));
    let drained = server.stop();
    assert_eq!((drained.received, drained.accepted), (sent, credited));
    let (code, report) = site.verify(None);
    assert_eq!(
        (code, &report["by_status"]["accepted"], &report["by_status"]["duplicate"]),
        (0, &credited.into(), &(sent - credited).into())
    );
}

#[test]
fn twins_in_one_segment_are_credited_once() {
    twins_are_credited_once(Config::default());
}

#[test]
fn twins_in_one_segment_are_credited_once_over_two_lanes() {
    twins_are_credited_once(Config { net: "0", validate: "0,1", ..Config::default() });
}

/// Submits the shares under their own job and under `job`, and says how many of the latter were credited: exactly those that happen to be a share of `job`, too.
fn resend(miner: &mut Miner, shares: &[MinedShare], own: i64) -> u64 {
    let job = miner.newest().id.to_string();
    assert!(shares.iter().all(|share| share.job != job), "the newest job has an id of its own");
    let codes = miner.submit_at_once(shares);
    assert_eq!(codes, vec![own; shares.len()], "under the job that they were found for");

    let moved: Vec<MinedShare> = shares.iter().map(|share| MinedShare { job: job.clone(), ..share.clone() }).collect();
    let expected: Vec<i64> = moved.iter().map(|share| if miner.would_pass(miner.newest(), share) { 0 } else { LOW_DIFFICULTY }).collect();
    assert_eq!(miner.submit_at_once(&moved), expected, "under the newest job");
    expected.iter().filter(|code| **code == 0).count() as u64
}

#[test]
fn shares_resent_under_a_newer_job_of_the_same_parent_are_not_credited() {
    const SHARES: usize = 50;
    let _turn = alone();
    // 2^16 hashes a share, 2^20 in the long form: one of 50 resent shares meets the target by chance in 1,300 runs, and the test then expects just that.
    let work: f64 = size(65_536.0, 1_048_576.0);
    let config = Config { difficulty: (work + 0.5) * 65_535.0 / 2f64.powi(48), refresh_s: size(2, 20), ..Config::default() };
    let site = Site::new(config);
    let server = site.serve();
    let mut miner = Miner::connect(server.stratum);
    assert_eq!(miner.work.hashes(), work as u64);
    let parent = miner.newest().prev_hash;

    // All of the same job, so that the refresh in between is the only change.
    let shares: Vec<MinedShare> = (0..SHARES).map(|_| miner.mine()).collect();
    assert!(shares.iter().all(|share| share.job == shares[0].job));
    assert_eq!(miner.submit_at_once(&shares), vec![0; SHARES]);
    let refreshed = miner.next_job();
    assert_eq!((refreshed.prev_hash, refreshed.clean), (parent, false), "a refresh of the same template");
    while miner.jobs.len() < 3 {
        miner.next_job();
    }
    let by_chance = resend(&mut miner, &shares, DUPLICATE);
    let drained = server.stop();
    assert_eq!((drained.received, drained.accepted), (3 * SHARES as u64, SHARES as u64 + by_chance));

    // The next boot serves the same template under a job number of its own and honours no earlier one.
    let server = site.serve();
    let mut miner = Miner::connect(server.stratum);
    assert_eq!(miner.newest().prev_hash, parent, "the same parent after the restart");
    let by_chance_later = resend(&mut miner, &shares, STALE);
    let drained = server.stop();
    assert_eq!((drained.received, drained.accepted), (2 * SHARES as u64, by_chance_later));
    let (code, report) = site.verify(None);
    assert_eq!((code, &report["by_status"]["accepted"]), (0, &(SHARES as u64 + by_chance + by_chance_later).into()), "{report}");
    println!("{SHARES} shares of work {work}: {by_chance} and {by_chance_later} of them met the newer jobs' target by chance");
}
