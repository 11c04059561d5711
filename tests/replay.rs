//! The wire written down and played again: a server that replays gives every share the verdict that it had, and whatever is not so is found.
mod support;

use loadgen::dialect::Style;
use loadgen::ledger::LedgerSink;
use loadgen::replay::{ReplayError, ReplayOrder, ReplayReport, Speed, replay};
use loadgen::session::Behaviour;
use otedama_primitives::ShareStatus;
use otedama_primitives::capture::{CaptureReader, Entry, block_header, file_header};
use std::ffi::OsStr;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use support::{Amount, Config, Miner, Server, Site, alone, ledger_counts, load, size};

/// One net, as a replay needs it; jobs and blocks change while the load runs.
fn config() -> Config {
    Config { net: "0", refresh_s: 1, block_s: 2, ..Config::default() }
}

fn capturing(site: &Site, dir: &Path) -> Server {
    site.serve_with(&[OsStr::new("--capture"), dir.as_os_str()])
}

/// A fresh server that is like the captured one.
fn replaying(dir: &Path) -> (Site, Server) {
    let site = Site::new(config());
    let server = site.serve_with(&[OsStr::new("--replay-of"), dir.as_os_str()]);
    (site, server)
}

fn order(dir: &Path, server: &Server, speed: Speed) -> ReplayOrder {
    ReplayOrder { dir: dir.to_owned(), target: server.stratum, speed, whole_part: false }
}

fn play(order: &ReplayOrder) -> Result<ReplayReport, ReplayError> {
    replay(order, &AtomicBool::new(false))
}

/// A capture of load with every kind of bad and repeated share; what the miners were told, by status.
fn capture_of_load(dir: &Path, seconds: u64) -> [u64; 9] {
    let site = Site::new(config());
    let server = capturing(&site, dir);
    let behaviour = Behaviour { bad_every: 10, dup_every: 10, style: Style::Mixed, workers_per_connection: 2, ..Behaviour::default() };
    let report = load(server.stratum, Amount::Seconds(seconds), 16, 8, behaviour, LedgerSink::File(site.ledger()));
    assert_eq!((report.totals.wrong, report.totals.unanswered), (0, 0), "{}", report.table());
    let (_, metrics) = server.get("/metrics");
    assert!(metrics.contains("otedama_capture_entry_taken_total") && metrics.contains("otedama_capture_entry_lost_total 0"), "{metrics}");
    server.stop();
    site.assert_no_panic();
    ledger_counts(&site.ledger()).0
}

#[test]
fn a_replay_gives_every_share_its_captured_verdict_at_either_speed() {
    let _turn = alone();
    let folder = tempfile::tempdir().expect("folder");
    let dir = folder.path().join("wire");
    let told = capture_of_load(&dir, size(3, 60));
    for speed in [Speed::Max, Speed::AsCaptured] {
        let (site, server) = replaying(&dir);
        let order = order(&dir, &server, speed);
        let report = play(&order).expect("a replay");
        assert_eq!(report.difference, None, "{}", report.table(&order));
        assert_eq!((report.by_status, report.unanswered, report.overload), (told, 0, 0), "{}", report.table(&order));
        assert_eq!(report.shares, told.iter().sum::<u64>());
        assert!(report.jobs >= 2 && told[ShareStatus::Stale as usize] > 0, "jobs came and ended: {}", report.table(&order));
        println!("{}", report.table(&order));
        // The log of the replay is a log like any other, and holds what the miners of the capture were told.
        let drained = server.stop();
        assert_eq!(drained.received, report.shares);
        assert_eq!(site.verify(None).0, 0);
        site.assert_no_panic();
    }
}

/// Writes the capture anew with one entry changed; `change` gives the bytes that an answer gets, once.
fn rewrite(dir: &Path, mut change: impl FnMut(&Entry<'_>) -> Option<Vec<u8>>) {
    let path = dir.join("wire-0.bin");
    let file = std::fs::read(&path).expect("the wire");
    let mut reader = CaptureReader::new(&file[..]).expect("a header");
    let mut words = vec![];
    while let Some((entry, at_us)) = reader.next_entry().expect("whole") {
        match (change(&entry), entry) {
            (Some(bytes), Entry::Out { slot, .. }) => Entry::Out { slot, bytes: &bytes }.put(at_us, &mut words),
            (_, entry) => entry.put(at_us, &mut words),
        }
    }
    let mut new = file_header(0).to_vec();
    for block in words.chunks(1 << 12) {
        let payload: Vec<u8> = block.iter().flat_map(|word| word.to_le_bytes()).collect();
        new.extend_from_slice(&block_header(&payload));
        new.extend_from_slice(&payload);
    }
    std::fs::write(path, new).expect("write");
}

/// A capture of one miner with a few shares, quick to make.
fn small_capture(dir: &Path) {
    let site = Site::new(config());
    let server = capturing(&site, dir);
    let mut miner = Miner::connect(server.stratum);
    for _ in 0..20 {
        let share = miner.mine();
        assert_eq!(miner.submit_at_once(&[share.clone(), share]), [0, 22]);
        // The writer makes a block of what it finds every 2 ms: several blocks, so that a cut leaves some of them whole.
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(miner);
    server.stop();
}

#[test]
fn another_verdict_is_found_and_named() {
    let _turn = alone();
    let folder = tempfile::tempdir().expect("folder");
    let dir = folder.path().join("wire");
    small_capture(&dir);
    // The thirtieth answer was another one, so they say.
    let mut answers = 0;
    rewrite(&dir, |entry| {
        let Entry::Out { bytes, .. } = entry else { return None };
        let text = String::from_utf8_lossy(bytes).into_owned();
        answers += usize::from(text.contains("duplicate"));
        (answers == 7 && text.contains("duplicate"))
            .then(|| text.replacen("[22,\"duplicate share\"", "[21,\"job not found (stale)\"", 1).into_bytes())
    });
    let (_site, server) = replaying(&dir);
    let order = order(&dir, &server, Speed::Max);
    let report = play(&order).expect("a replay");
    let difference = report.difference.clone().unwrap_or_else(|| panic!("no difference: {}", report.table(&order)));
    // Subscribe and authorize come first; every share is followed by its twin.
    assert_eq!((difference.connection, difference.answer), (1, 16));
    assert!(difference.captured.contains("[21,") && difference.replayed.contains("[22,"), "{difference:?}");
    assert!(difference.sent.contains("mining.submit") && report.table(&order).contains("DIFFERENT at connection 1"), "{difference:?}");
    assert_eq!(report.shares, 13, "those before it were compared");
}

#[test]
fn a_damaged_or_cut_capture_and_a_server_that_replays_nothing_are_clear_errors() {
    let _turn = alone();
    let folder = tempfile::tempdir().expect("folder");
    let dir = folder.path().join("wire");
    small_capture(&dir);
    let site = Site::new(config());
    // Not empty: never written over.
    assert_eq!(site.spawn_told(&[], &[OsStr::new("--capture"), dir.as_os_str()]).listening().err(), Some(Some(2)));
    assert!(site.stderr().contains("not empty"), "{}", site.stderr());
    let plain = site.serve();
    let path = dir.join("wire-0.bin");
    let whole = std::fs::read(&path).expect("the wire");
    let error_of = |order: &ReplayOrder| play(order).expect_err("no replay").to_string();
    let plain_order = order(&dir, &plain, Speed::Max);

    let error = error_of(&plain_order);
    assert!(error.contains("is not serving this capture") && error.contains("--replay-of"), "{error}");
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    std::fs::write(&path, &damaged).expect("write");
    let error = error_of(&plain_order);
    assert!(error.contains("wire-0.bin is damaged at byte"), "{error}");
    assert!(play(&ReplayOrder { whole_part: true, ..plain_order.clone() }).is_err(), "damage is no clean cut");
    std::fs::write(&path, b"not a wire").expect("write");
    assert!(error_of(&plain_order).contains("no wire file"));
    std::fs::remove_file(&path).expect("remove");
    assert!(error_of(&plain_order).contains("wire-0.bin cannot be read"));

    std::fs::write(&path, &whole[..whole.len() * 2 / 3]).expect("write");
    let error = error_of(&plain_order);
    assert!(error.contains("is cut off after") && error.contains("--whole-part"), "{error}");
    let (_site, server) = replaying(&dir);
    let order = ReplayOrder { whole_part: true, ..order(&dir, &server, Speed::Max) };
    let report = play(&order).expect("the whole part");
    assert_eq!(report.difference, None, "{}", report.table(&order));
    assert!(report.shares > 5, "{}", report.table(&order));

    std::fs::remove_file(dir.join("capture.json")).expect("remove");
    assert!(error_of(&plain_order).contains("capture.json"));
}

#[test]
fn what_a_killed_server_had_captured_can_be_replayed() {
    let _turn = alone();
    let folder = tempfile::tempdir().expect("folder");
    let dir = folder.path().join("wire");
    let site = Site::new(config());
    let server = capturing(&site, &dir);
    let mut miner = Miner::connect(server.stratum);
    for _ in 0..50 {
        let share = miner.mine();
        assert_eq!(miner.submit_at_once(&[share]), [0]);
    }
    // The writer looks every few milliseconds.
    std::thread::sleep(std::time::Duration::from_millis(200));
    server.kill();
    let (_replay_site, server) = replaying(&dir);
    let mut order = order(&dir, &server, Speed::Max);
    assert!(matches!(play(&order), Err(ReplayError::Wire { can_be_cut: true, .. })));
    order.whole_part = true;
    let report = play(&order).expect("the whole part");
    assert_eq!((report.shares, report.difference.clone()), (50, None), "{}", report.table(&order));
}

#[test]
fn a_target_that_dies_during_a_replay_is_an_error_or_a_missing_answer() {
    let _turn = alone();
    let folder = tempfile::tempdir().expect("folder");
    let dir = folder.path().join("wire");
    small_capture(&dir);
    // Nobody there at all.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let target = gone.local_addr().expect("address");
    drop(gone);
    let order = ReplayOrder { dir, target, speed: Speed::Max, whole_part: false };
    let error = play(&order).expect_err("nobody").to_string();
    assert!(error.contains("connection 1 to") && error.contains("connect"), "{error}");
    // Somebody who closes at once.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let target = listener.local_addr().expect("address");
    let closing = std::thread::spawn(move || drop(listener.accept()));
    let report = play(&ReplayOrder { target, ..order.clone() });
    closing.join().expect("no panic");
    match report {
        Ok(report) => assert!(report.difference.is_some_and(|difference| difference.replayed.is_empty())),
        Err(error) => assert!(error.to_string().contains("connection 1"), "{error}"),
    }
}
