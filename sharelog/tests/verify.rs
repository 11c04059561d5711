//! What verify must see, and what it must not mind.
mod support;
use otedama_primitives::{ShareRow, ShareStatus};
use otedama_sharelog::store::{Cursor, CursorPosition, SegmentStore};
use otedama_sharelog::{ShareLog, shares, verify::verify};
use std::path::{Path, PathBuf};
use support::*;

/// A log of 3 small segments and 5 unsealed rows, closed as a crash leaves it.
fn small_log() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("folder");
    let settings = otedama_sharelog::LogSettings { segment_rows: 6, journal_file_bytes: 128 << 10, ..settings(folder.path(), 1) };
    let (mut journal, mut sealer, registry, _) = ShareLog::open(settings.clone()).expect("open");
    begin(&settings, &registry, &mut journal);
    journal.append(&[], &(0..18).map(row).collect::<Vec<_>>()).expect("room");
    for _ in 0..20 {
        sealer.step(NOON_US).expect("step");
    }
    journal.append(&[session(2)], &[row(18), row(19)]).expect("room");
    journal.append(&[worker(5, "bob")], &(20..23).map(|i| ShareRow { session: 2, worker: 5, ..row(i) }).collect::<Vec<_>>()).expect("room");
    assert_eq!(verify(folder.path(), None).expect("verify").problems, Vec::<String>::new());
    folder
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(dir).expect("list").map(|entry| entry.expect("entry").path()).collect();
    files.sort();
    files
}

fn with_extension(dir: &Path, extension: &str) -> Vec<PathBuf> {
    files(dir).into_iter().filter(|path| path.extension().is_some_and(|e| e == extension)).collect()
}

/// The rows that a clean verify stands for.
fn summary(dir: &Path) -> (u64, [u64; 9], Vec<(u32, u32)>) {
    let report = verify(dir, None).expect("verify");
    assert_eq!(report.problems, Vec::<String>::new());
    (report.rows, report.by_status, nonces(dir))
}

#[test]
fn a_sound_log_is_clean_and_counts_every_row_once() {
    let folder = small_log();
    let report = verify(folder.path(), None).expect("verify");
    assert_eq!((report.segments, report.rows), (3, 23));
    assert_eq!(report.by_status, [3, 3, 3, 3, 3, 2, 2, 2, 2]);
    assert_eq!(
        report.to_json(),
        r#"{"segments":3,"rows":23,"by_status":{"accepted":3,"stale":3,"duplicate":3,"low_difficulty":3,"bad_time":3,"bad_version":2,"malformed":2,"unauthorized":2,"overload":2},"problems":[]}"#
    );
    assert_eq!(verify(Path::new("/nowhere/at/all"), None).map(|_| ()).map_err(|error| error.exit_code()), Err(3));
}

#[test]
fn every_flipped_byte_is_detected_or_harmless_and_recovery_never_panics() {
    let folder = small_log();
    let dir = folder.path();
    let sound = summary(dir);
    let mut flips = 0;
    for path in files(dir) {
        let name = path.file_name().expect("name").to_string_lossy().into_owned();
        let original = std::fs::read(&path).expect("read");
        // Of a journal, what lies behind the written part is never read: the first 3 KiB have all of it. Spares have a header alone.
        // Blocks repeat themselves: every byte of them with OTEDAMA_LONG=1, else every fifth of the first and some of the others.
        let long = std::env::var_os("OTEDAMA_LONG").is_some();
        let (length, step) = match (name.ends_with(".open"), name.ends_with(".native")) {
            (true, _) if name.starts_with("journal-000000") => (3 << 10, 1),
            (true, _) => (192, 1),
            (false, true) if !long => (usize::MAX, if name.ends_with("01.native") { 5 } else { 29 }),
            (false, _) => (usize::MAX, 1),
        };
        for at in (0..original.len().min(length)).step_by(step) {
            let mut bytes = original.clone();
            bytes[at] ^= 1 << (at % 8);
            if name.ends_with(".open") {
                use std::os::unix::fs::FileExt;
                std::fs::OpenOptions::new().write(true).open(&path).expect("open").write_all_at(&bytes[at..=at], at as u64).expect("write");
            } else {
                std::fs::write(&path, &bytes).expect("write");
            }
            flips += 1;
            let report = verify(dir, None).expect("verify looks at anything");
            if report.is_clean() {
                // Harmless: in an unused part of the journal, everything reads as before.
                assert!(name.ends_with(".open"), "byte {at} of {name} passed");
                assert_eq!(summary(dir), sound, "byte {at} of {name}");
            }
            if at % 199 == 0 {
                let copied = tempfile::tempdir().expect("folder");
                copy(dir, copied.path());
                if let Ok((journal, mut sealer, ..)) = ShareLog::open(settings(copied.path(), 2)) {
                    drop(journal);
                    sealer.drain(NOON_US).expect("drain");
                }
            }
            if name.ends_with(".open") {
                use std::os::unix::fs::FileExt;
                std::fs::OpenOptions::new()
                    .write(true)
                    .open(&path)
                    .expect("open")
                    .write_all_at(&original[at..=at], at as u64)
                    .expect("write");
            }
        }
        std::fs::write(&path, &original).expect("restore");
    }
    assert!(flips > 4000, "{flips}");
    assert_eq!(summary(dir), sound);
}

#[test]
fn every_flipped_byte_of_a_synced_journal_is_detected_and_none_passes_for_the_end_that_a_power_cut_left() {
    let folder = tempfile::tempdir().expect("folder");
    let settings = otedama_sharelog::LogSettings { journal_file_bytes: 128 << 10, ..settings(folder.path(), 1) };
    let (mut journal, mut sealer, registry, _) = ShareLog::open_synced(settings.clone()).expect("open");
    let mut syncer = sealer.take_sync().expect("tier disk");
    begin(&settings, &registry, &mut journal);
    for batch in 0..3 {
        journal.append(&[session(batch + 2)], &(batch * 4..batch * 4 + 4).map(row).collect::<Vec<_>>()).expect("room");
        syncer.step().expect("sync");
    }
    // Appended and not synced: it is in memory alone, and goes with the process.
    journal.append(&[], &[row(99)]).expect("room");
    let used = journal.position() as u32 as usize * 64;
    let dir = folder.path();
    let sound = summary(dir);
    assert_eq!(sound.0, 12);
    let path = with_extension(dir, "open").into_iter().next().expect("a journal file");
    let mut harmless = Vec::new();
    for at in 0..used {
        use std::os::unix::fs::FileExt;
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).expect("open");
        let mut byte = [0u8];
        file.read_exact_at(&mut byte, at as u64).expect("read");
        let flipped = [byte[0] ^ (1 << (at % 8))];
        file.write_all_at(&flipped, at as u64).expect("write");
        if verify(dir, None).expect("verify looks at anything").is_clean() {
            assert_eq!(summary(dir), sound, "byte {at}");
            harmless.push(at);
        }
        file.write_all_at(&byte, at as u64).expect("write");
    }
    // The durable end itself (its loss makes verify stricter), the rest of its cell, and what is behind the last sync.
    assert!(harmless.iter().all(|&at| (72..128).contains(&at) || at >= used - 128), "{harmless:?}");
    assert!(harmless.len() < 200, "{harmless:?}");
    drop((journal, registry, syncer));
}

#[test]
fn a_file_that_is_not_of_the_log_is_told_by_name() {
    let folder = small_log();
    std::fs::write(folder.path().join("backup.tar"), "x").expect("write");
    std::fs::create_dir(folder.path().join("lost+found")).expect("folder");
    let problems = verify(folder.path(), None).expect("verify").problems;
    assert_eq!(problems, ["backup.tar is not of the log: move it out of this folder"]);
    let (journal, mut sealer, ..) = ShareLog::open(settings(folder.path(), 2)).expect("a foreign file keeps nobody from starting");
    drop(journal);
    sealer.drain(NOON_US).expect("drain");
    assert!(folder.path().join("backup.tar").exists(), "and it is left alone");
}

#[test]
fn truncated_and_missing_files_are_detected_unless_only_the_oldest_are_gone() {
    let folder = small_log();
    for path in files(folder.path()) {
        let name = path.file_name().expect("name").to_string_lossy().into_owned();
        let bytes = std::fs::metadata(&path).expect("stat").len();
        for keep in [0, 1, bytes / 2, bytes.saturating_sub(1)] {
            if keep == bytes {
                continue;
            }
            let copied = tempfile::tempdir().expect("folder");
            copy(folder.path(), copied.path());
            let file = std::fs::OpenOptions::new().write(true).open(copied.path().join(&name)).expect("open");
            file.set_len(keep).expect("cut");
            let report = verify(copied.path(), None).expect("verify");
            assert!(!report.is_clean() || name == "LOCK", "{name} cut to {keep} of {bytes}");
        }
    }
    let natives = with_extension(folder.path(), "native");
    let gone = |which: &[usize]| {
        let copied = tempfile::tempdir().expect("folder");
        copy(folder.path(), copied.path());
        for &index in which {
            let path = copied.path().join(natives[index].file_name().expect("name"));
            std::fs::remove_file(path.with_extension("meta")).expect("remove");
            std::fs::remove_file(path).expect("remove");
        }
        verify(copied.path(), None).expect("verify")
    };
    assert!(gone(&[0]).is_clean(), "retention removes the oldest");
    assert!(gone(&[0, 1]).is_clean());
    assert!(!gone(&[1]).is_clean());
}

#[test]
fn the_newest_segments_are_missed_even_with_their_metas() {
    let folder = tempfile::tempdir().expect("folder");
    let settings = otedama_sharelog::LogSettings { segment_rows: 500, journal_file_bytes: 128 << 10, ..settings(folder.path(), 1) };
    let (mut journal, mut sealer, registry, _) = ShareLog::open(settings.clone()).expect("open");
    begin(&settings, &registry, &mut journal);
    for first in (0..20_000).step_by(500) {
        journal.append(&[], &(first..first + 500).map(row).collect::<Vec<_>>()).expect("room");
        settle(&mut sealer, NOON_US);
    }
    drop((journal, sealer, registry));
    assert_eq!(verify(folder.path(), None).expect("verify").problems, Vec::<String>::new());
    let natives = with_extension(folder.path(), "native");
    assert_eq!(natives.len(), 40);
    for path in &natives[10..] {
        std::fs::remove_file(path.with_extension("meta")).expect("remove");
        std::fs::remove_file(path).expect("remove");
    }
    let problems = verify(folder.path(), None).expect("verify").problems;
    assert!(problems.iter().any(|problem| problem.contains("are missing")), "{problems:?}");
    // Their numbers are not given a second time: a server that has them would take new rows for old ones.
    let (mut journal, mut sealer, ..) = ShareLog::open(support::settings(folder.path(), 2)).expect("open");
    journal.append(&[], &[row(0)]).expect("room");
    drop(journal);
    sealer.drain(NOON_US).expect("drain");
    let newest = SegmentStore::open(folder.path()).expect("store").segments().expect("segments").last().expect("sealed").sequence();
    assert!(newest > 35, "{newest}");
    assert!(!verify(folder.path(), None).expect("verify").is_clean(), "and verify goes on telling");
}

/// Makes a consistent pair of block and meta out of a copied log in which `change` was done to the rows of one segment.
fn rewrite_segment(dir: &Path, change: impl Fn(&mut Vec<ShareRow>)) {
    // The forger seals a log of its own with the changed rows and swaps the files in, sums and all.
    let other = tempfile::tempdir().expect("folder");
    std::fs::copy(dir.join("epoch"), other.path().join("epoch")).expect("copy");
    let settings = settings(other.path(), 1);
    let (mut journal, mut sealer, ..) = ShareLog::open(settings).expect("open");
    let mut rows: Vec<_> = (0..6).map(row).collect();
    change(&mut rows);
    journal.append(&[], &rows).expect("room");
    drop(journal);
    sealer.drain(NOON_US).expect("drain");
    for extension in ["native", "meta"] {
        let from = with_extension(other.path(), extension).remove(0);
        std::fs::copy(&from, dir.join(from.file_name().expect("name"))).expect("copy");
    }
}

#[test]
fn a_dropped_row_and_a_doubled_row_turn_verify_red() {
    let folder = small_log();
    rewrite_segment(folder.path(), |_| {});
    assert!(verify(folder.path(), None).expect("verify").is_clean(), "the forger's copy of the same rows passes");

    rewrite_segment(folder.path(), |rows| rows.truncate(5));
    let dropped = verify(folder.path(), None).expect("verify");
    assert!(dropped.problems.iter().any(|problem| problem.contains("in no segment")), "{:?}", dropped.problems);

    rewrite_segment(folder.path(), |rows| rows.push(rows[0]));
    let doubled = verify(folder.path(), None).expect("verify");
    assert!(doubled.problems.iter().any(|problem| problem.contains("accepted 2 times")), "{:?}", doubled.problems);
    assert!(doubled.problems.iter().any(|problem| problem.contains("a second time")), "{:?}", doubled.problems);

    // The same number of rows, one of them twice in place of another.
    rewrite_segment(folder.path(), |rows| rows[5] = ShareRow { arrival_us: rows[5].arrival_us, ..rows[0] });
    let swapped = verify(folder.path(), None).expect("verify");
    assert!(swapped.problems.iter().any(|problem| problem.contains("accepted 2 times")), "{:?}", swapped.problems);
}

#[test]
fn rows_that_name_what_nothing_resolves_are_told() {
    let folder = tempfile::tempdir().expect("folder");
    let settings = settings(folder.path(), 1);
    let (mut journal, mut sealer, registry, _) = ShareLog::open(settings.clone()).expect("open");
    begin(&settings, &registry, &mut journal);
    journal.append(&[], &[ShareRow { worker: 0, job: 0, status: ShareStatus::Unauthorized as u8, ..row(0) }]).expect("room");
    assert!(verify(folder.path(), None).expect("verify").is_clean(), "worker 0 and job 0 are legal");
    for bad in [ShareRow { session: 9, ..row(1) }, ShareRow { worker: 9, ..row(2) }, ShareRow { job: 9, ..row(3) }] {
        journal.append(&[], &[bad]).expect("room");
    }
    let unsealed = verify(folder.path(), None).expect("verify").problems;
    assert_eq!(unsealed.len(), 3, "{unsealed:?}");
    for (problem, kind) in unsealed.iter().zip(["job", "session", "worker"]) {
        assert!(problem.contains(&format!("1 rows name {kind}")), "{problem}");
    }
    drop(journal);
    sealer.drain(NOON_US).expect("drain");
    assert_eq!(verify(folder.path(), None).expect("verify").problems.len(), 3, "sealed or not");
}

#[test]
fn the_ledger_is_held_against_the_rows() {
    let folder = tempfile::tempdir().expect("folder");
    let settings = settings(folder.path(), 1);
    let (mut journal, mut sealer, registry, _) = ShareLog::open(settings.clone()).expect("open");
    begin(&settings, &registry, &mut journal);
    let at = |nonce: u32, status: ShareStatus| ShareRow { extranonce2: 0xab, status: status as u8, ..row(nonce) };
    let rows = [
        at(0, ShareStatus::Accepted),
        at(0, ShareStatus::Duplicate),
        at(2, ShareStatus::LowDifficulty),
        ShareRow { job: 0, version: 0, ..at(3, ShareStatus::Stale) },
        ShareRow { worker: 0, ..at(4, ShareStatus::Unauthorized) },
        ShareRow { nonce: 0, ..at(5, ShareStatus::Malformed) },
        at(6, ShareStatus::Accepted),
    ];
    journal.append(&[], &rows[..4]).expect("room");
    drop(registry);
    sealer.step(NOON_US).expect("step");
    journal.append(&[], &rows[4..]).expect("room");
    drop(journal);
    let wire_id = 2;
    let line = |job: &str, nonce: u32, worker: &str, verdict: &str| {
        format!("01000001 {worker} {job} 00000000000000ab 6b01a580 {nonce:08x} 20000000 {verdict}\n")
    };
    let ntime = format!("{:08x}", row(0).ntime);
    let job = format!("{wire_id:08x}");
    let good = [
        "# otedama ledger 1\n".to_string(),
        line(&job, 0, "alice.rig1", "accepted"),
        line(&job, 0, "alice.rig1", "duplicate"),
        line(&job, 2, "alice.rig1", "low_difficulty"),
        line("ffffffff", 3, "alice.rig1", "stale"),
        line(&job, 4, "mallory", "unauthorized"),
        "01000001 alice.rig1 - - - - - malformed\n".to_string(),
        line(&job, 6, "alice.rig1", "unanswered"),
        line(&job, 7, "alice.rig1", "unanswered"),
        "01000001 cut off he".to_string(),
    ];
    let good: Vec<String> = good.iter().map(|line| line.replace("6b01a580", &ntime)).collect();
    let outside = tempfile::tempdir().expect("folder");
    let path = outside.path().join("ledger.txt");
    let problems = |lines: &[String]| {
        std::fs::write(&path, lines.concat()).expect("write");
        verify(folder.path(), Some(&path)).expect("verify").problems
    };
    assert_eq!(problems(&good), Vec::<String>::new());

    let with = |more: String| {
        let mut lines = good.clone();
        lines.insert(1, more.replace("6b01a580", &ntime));
        lines
    };
    let missing = problems(&with(line(&job, 99, "alice.rig1", "accepted")));
    assert!(missing.len() == 1 && missing[0].contains("missing"), "{missing:?}");
    let twice = problems(&with(line(&job, 0, "alice.rig1", "accepted")));
    assert!(twice.len() == 1 && twice[0].contains("accepted 2 times"), "{twice:?}");
    let refusal = problems(&with(line(&job, 0, "alice.rig1", "duplicate")));
    assert!(refusal.len() == 1 && refusal[0].contains("2 refusals where the log has 1"), "{refusal:?}");
    let wrong_worker = problems(&with(line(&job, 2, "mallory", "low_difficulty")));
    assert_eq!(wrong_worker.len(), 1, "{wrong_worker:?}");
    let malformed = problems(&with("01000001 - - - - - - malformed\n".into()));
    assert_eq!(malformed.len(), 1, "{malformed:?}");
    let mut unexplained = good.clone();
    unexplained.remove(7);
    let unexplained = problems(&unexplained);
    assert!(unexplained.len() == 1 && unexplained[0].contains("does not know"), "{unexplained:?}");
    let nonsense = problems(&with("what is this\n".into()));
    assert!(nonsense.len() == 1 && nonsense[0].contains("does not parse"), "{nonsense:?}");
}

#[test]
fn shares_are_summed_by_name_time_and_status() {
    let folder = small_log();
    let table = shares::group(folder.path(), &shares::parse_by("worker,status").expect("keys"), &Default::default()).expect("group");
    let rows: Vec<_> = table.rows.iter().map(|row| (row.keys.join("/"), row.shares)).collect();
    assert_eq!(rows.iter().map(|(_, shares)| shares).sum::<u64>(), 23);
    assert!(rows.contains(&("alice.rig1/accepted".into(), 3)), "{rows:?}");
    assert!(rows.contains(&("bob/duplicate".into(), 1)), "{rows:?}");
    let accepted = otedama_sharelog::scan::Filter { status: Some(ShareStatus::Accepted), ..Default::default() };
    let table = shares::group(folder.path(), &[shares::Key::Day], &accepted).expect("group");
    let work: u128 = [0u32, 9, 18].iter().map(|&index| u128::from(row(index).work)).sum();
    assert_eq!(table.to_csv(), format!("day,shares,work,credited\n2026-11-21,3,{work},{work}\n"));
    let none = otedama_sharelog::scan::Filter { since_us: Some(NOON_US + 1_000_000), ..Default::default() };
    assert_eq!(shares::group(folder.path(), &[], &none).expect("group").rows, []);
    let late = otedama_sharelog::scan::Filter { since_us: Some(row(21).arrival_us), ..Default::default() };
    assert_eq!(shares::group(folder.path(), &[], &late).expect("group").rows[0].shares, 2);
    let text = otedama_sharelog::inspect::dump(folder.path()).expect("inspect");
    assert!(text.contains("segments: 3") && text.contains("sessions 1, workers 1, jobs 1") && !text.contains('!'), "{text}");
}

#[test]
fn retention_removes_the_oldest_that_every_cursor_has_passed_and_never_the_newest() {
    let folder = tempfile::tempdir().expect("folder");
    let settings = otedama_sharelog::LogSettings { segment_rows: 6, has_cursor: true, keep_shipped_ms: 10, ..settings(folder.path(), 1) };
    let (mut journal, mut sealer, registry, counters) = ShareLog::open(settings.clone()).expect("open");
    begin(&settings, &registry, &mut journal);
    let left = || {
        SegmentStore::open(folder.path())
            .expect("store")
            .segments()
            .expect("segments")
            .iter()
            .map(|meta| meta.sequence())
            .collect::<Vec<_>>()
    };
    journal.append(&[], &(0..30).map(row).collect::<Vec<_>>()).expect("room");
    settle(&mut sealer, NOON_US);
    settle(&mut sealer, NOON_US + 3_600_000_000);
    assert_eq!(left(), [1, 2, 3, 4, 5], "no cursor has passed anything");
    let shipper = Cursor::open(folder.path(), "shipper").expect("cursor");
    let ledger = Cursor::open(folder.path(), "ledger").expect("cursor");
    shipper.store(CursorPosition { segment: 5, dimensions: 100 }).expect("store");
    ledger.store(CursorPosition { segment: 3, dimensions: 50 }).expect("store");
    assert_eq!(shipper.load().expect("load"), CursorPosition { segment: 5, dimensions: 100 });
    settle(&mut sealer, NOON_US + 3_602_000_000);
    assert_eq!(left(), [1, 2, 3, 4, 5], "the hold begins when a segment is seen passed");
    settle(&mut sealer, NOON_US + 3_604_000_000);
    assert_eq!(left(), [4, 5]);
    assert_eq!(counters.rows_unshipped.load(std::sync::atomic::Ordering::Relaxed), 12);
    ledger.store(CursorPosition { segment: 5, dimensions: 50 }).expect("store");
    settle(&mut sealer, NOON_US + 3_608_000_000);
    settle(&mut sealer, NOON_US + 3_609_500_000);
    assert_eq!(left(), [5], "the newest stays: it says what of the journal is sealed");
    assert_eq!(verify(folder.path(), None).expect("verify").problems, Vec::<String>::new());
    assert!(Cursor::open(folder.path(), "../evil").is_err());
    // And the rows of the journal file, half of them in deleted segments, are not sealed again.
    drop((journal, sealer, registry));
    let (journal, mut sealer, ..) =
        ShareLog::open(otedama_sharelog::LogSettings { run: otedama_primitives::RunId::new(3, 2), ..settings }).expect("reopen");
    drop(journal);
    sealer.drain(NOON_US).expect("drain");
    assert_eq!(left(), [5]);
}
