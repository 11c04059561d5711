//! The disk misbehaves: full, failing syncs, short writes. And crashes at any step, in any order.
mod support;
use otedama_primitives::{RunId, ShareRow};
use otedama_sharelog::{Disk, LogSettings, SealStep, Sealer, ShareLog, Storage, verify::verify};
use proptest::prelude::*;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use support::*;

/// A disk with faults.
#[derive(Default)]
struct Faults {
    /// Reserving or writing files fails with ENOSPC.
    full: AtomicBool,
    /// So many operations succeed, then one fails with EIO (negative: never).
    fail_after: AtomicI64,
    fsync_fails: AtomicUsize,
    short_writes: AtomicBool,
    /// What was done, in order: "fsync x.native.tmp".
    trace: Mutex<Vec<String>>,
    names: Mutex<Vec<(u64, PathBuf)>>,
}

#[derive(Clone)]
struct FaultyStorage(Arc<Faults>);

impl FaultyStorage {
    fn new() -> Self {
        Self(Arc::new(Faults { fail_after: AtomicI64::new(-1), ..Faults::default() }))
    }

    fn operation(&self, name: &str, path: &Path) -> io::Result<()> {
        self.0.trace.lock().expect("trace").push(format!("{name} {}", path.file_name().unwrap_or_default().to_string_lossy()));
        if self.0.fail_after.load(Relaxed) >= 0 && self.0.fail_after.fetch_sub(1, Relaxed) == 0 {
            return Err(io::Error::from_raw_os_error(5));
        }
        Ok(())
    }

    fn no_space(&self) -> io::Result<()> {
        if self.0.full.load(Relaxed) { Err(io::Error::from_raw_os_error(28)) } else { Ok(()) }
    }

    fn name(&self, file: &File) -> PathBuf {
        let inode = std::os::unix::fs::MetadataExt::ino(&file.metadata().expect("metadata"));
        let names = self.0.names.lock().expect("names");
        names.iter().rev().find(|(known, _)| *known == inode).map_or_else(|| "dimensions.log".into(), |(_, path)| path.clone())
    }
}

impl Storage for FaultyStorage {
    fn create(&self, path: &Path) -> io::Result<File> {
        self.operation("create", path)?;
        let file = Disk.create(path)?;
        let inode = std::os::unix::fs::MetadataExt::ino(&file.metadata()?);
        self.0.names.lock().expect("names").push((inode, path.to_path_buf()));
        Ok(file)
    }

    fn fallocate(&self, file: &File, bytes: u64) -> io::Result<()> {
        self.operation("fallocate", &self.name(file))?;
        self.no_space()?;
        Disk.fallocate(file, bytes)
    }

    fn write_at(&self, file: &File, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        self.operation("write", &self.name(file))?;
        self.no_space()?;
        let taken = if self.0.short_writes.load(Relaxed) { bytes.len().div_ceil(3) } else { bytes.len() };
        Disk.write_at(file, offset, &bytes[..taken])
    }

    fn fsync(&self, file: &File) -> io::Result<()> {
        self.operation("fsync", &self.name(file))?;
        if self.0.fsync_fails.load(Relaxed) > 0 {
            self.0.fsync_fails.fetch_sub(1, Relaxed);
            return Err(io::Error::from_raw_os_error(5));
        }
        // Not the real one: tests read through the page cache, and a real fsync would make them slow.
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.operation("rename", to)?;
        Disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.operation("remove", path)?;
        Disk.remove(path)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.operation("fsync folder", Path::new(""))?;
        let _ = folder;
        Ok(())
    }
}

fn wanted(settings: &LogSettings, rows: u32) -> Vec<(u32, u32)> {
    (0..rows).map(|nonce| (settings.run.prefix(), nonce)).collect()
}

#[test]
fn a_full_disk_is_a_state_that_passes_and_loses_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let storage = FaultyStorage::new();
    let settings = settings(folder.path(), 1);
    let (mut journal, mut sealer, registry, counters) = ShareLog::open_with(settings.clone(), storage.clone()).expect("open");
    begin(&settings, &registry, &mut journal);
    settle(&mut sealer, NOON_US);
    storage.0.full.store(true, Relaxed);
    let mut next = 0;
    let mut now_us = NOON_US;
    while journal.room_cells() >= 100 {
        journal.append(&[], &(next..next + 100).map(row).collect::<Vec<_>>()).expect("room");
        next += 100;
        now_us += 300_000;
        for _ in 0..10 {
            sealer.step(now_us).expect("a full disk is no error");
        }
    }
    assert!(counters.log_full.load(Relaxed));
    assert!(next > 12_000, "all four files were filled: {next}");
    assert!(registry.job(&job(settings.run, 2)).expect_err("no job is published").is_disk_full());
    assert_eq!(nonces(folder.path()), wanted(&settings, next), "readable meanwhile");
    storage.0.full.store(false, Relaxed);
    for _ in 0..100 {
        now_us += 100_000;
        sealer.step(now_us).expect("step");
    }
    assert!(!counters.log_full.load(Relaxed), "space came back");
    registry.job(&job(settings.run, 2)).expect("again");
    journal.append(&[], &(next..next + 100).map(row).collect::<Vec<_>>()).expect("room again");
    drop(journal);
    sealer.drain(now_us).expect("drain");
    assert_eq!(nonces(folder.path()), wanted(&settings, next + 100));
    assert_eq!(verify(folder.path(), None).expect("verify").problems, Vec::<String>::new());
}

#[test]
fn max_bytes_with_a_cursor_that_stands_still_refuses_and_goes_on_when_it_moves() {
    let folder = tempfile::tempdir().expect("folder");
    let settings = LogSettings { max_bytes: 2 << 20, has_cursor: true, ..settings(folder.path(), 1) };
    let (mut journal, mut sealer, registry, counters) = ShareLog::open(settings.clone()).expect("open");
    begin(&settings, &registry, &mut journal);
    let cursor = otedama_sharelog::store::Cursor::open(folder.path(), "shipper").expect("cursor");
    let (mut next, mut now_us) = (0, NOON_US);
    while journal.room_cells() >= 500 {
        journal.append(&[], &(next..next + 500).map(row).collect::<Vec<_>>()).expect("room");
        next += 500;
        now_us += 2_000_000;
        settle(&mut sealer, now_us);
        assert!(next < 1_000_000, "max_bytes has no effect");
        assert!(folder_bytes(folder.path()) <= settings.max_bytes);
    }
    assert!(counters.log_full.load(Relaxed));
    assert_eq!(nonces(folder.path()).len(), next as usize);
    cursor.store(otedama_sharelog::store::CursorPosition { segment: 10_000, dimensions: 0 }).expect("store");
    for _ in 0..5 {
        now_us += 2_000_000;
        settle(&mut sealer, now_us);
    }
    assert!(!counters.log_full.load(Relaxed));
    assert!(journal.room_cells() >= 500);
}

fn folder_bytes(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).expect("list");
    entries.map(|entry| entry.expect("entry").metadata().map_or(0, |metadata| metadata.len())).sum()
}

/// A log of 2 MiB.
fn small_log(dir: &Path, has_cursor: bool, segment_rows: u32) -> LogSettings {
    LogSettings { max_bytes: 2 << 20, has_cursor, segment_rows, journal_file_bytes: 128 << 10, seal_after_ms: 1000, ..settings(dir, 1) }
}

/// Rows in batches of `batch`, `pause_us` apart, until there is no room; after every step of the sealer the folder is looked at. Gives how many were taken.
fn fill_watched(settings: &LogSettings, batch: u32, pause_us: u64) -> u32 {
    let (mut journal, mut sealer, registry, counters) = ShareLog::open_with(settings.clone(), FaultyStorage::new()).expect("open");
    if settings.has_cursor {
        otedama_sharelog::store::Cursor::open(&settings.dir, "shipper").expect("cursor");
    }
    let (mut next, mut now_us) = (0, NOON_US);
    let watch = |sealer: &mut Sealer<FaultyStorage>, now_us: u64| {
        for _ in 0..1000 {
            let step = sealer.step(now_us).expect("step");
            let bytes = folder_bytes(&settings.dir);
            assert!(bytes <= settings.max_bytes, "{bytes} bytes");
            if step == SealStep::Idle {
                return;
            }
        }
        panic!("it never rests");
    };
    watch(&mut sealer, now_us);
    if journal.room_cells() > 64 {
        begin(settings, &registry, &mut journal);
    }
    while journal.room_cells() > u64::from(batch) as usize + 8 {
        let rows: Vec<_> =
            (next..next + batch).map(|index| ShareRow { arrival_us: now_us + u64::from(index - next), ..row(index) }).collect();
        journal.append(&[], &rows).expect("room");
        next += batch;
        now_us += pause_us;
        watch(&mut sealer, now_us);
        assert!(next < 1_000_000 || !settings.has_cursor, "max_bytes has no effect");
        if next >= 150_000 && !settings.has_cursor {
            break;
        }
    }
    assert!(counters.log_full.load(Relaxed) || !settings.has_cursor);
    drop(journal);
    sealer.drain(now_us).expect("drain");
    let bytes = folder_bytes(&settings.dir);
    assert!(bytes <= settings.max_bytes, "{bytes} bytes");
    next
}

#[test]
fn the_folder_never_takes_more_than_max_bytes_however_rows_come_and_however_often_it_is_opened() {
    // Gusts that fill files between two looks, and some rows every two seconds, each time a segment with a meta of its own until that has no room.
    for (batch, pause_us, max_bytes) in [(500, 2_000_000, 2 << 20), (512, 1000, 2 << 20), (5, 2_000_000, 1 << 20), (37, 700_000, 2 << 20)] {
        let folder = tempfile::tempdir().expect("folder");
        let settings = LogSettings { max_bytes, ..small_log(folder.path(), true, 1000) };
        let taken = fill_watched(&settings, batch, pause_us);
        assert!(taken > if batch == 5 { 700 } else { 10_000 }, "{batch}: {taken}");
        let mut all = wanted(&settings, taken);
        // A server that is restarted again and again in this state takes what room is left, and then nothing.
        for boot in 2..5 {
            let again = LogSettings { run: RunId::new(3, boot), ..settings.clone() };
            let more = fill_watched(&again, batch, pause_us);
            assert!(more < 4096, "{batch}: {more} rows at start {boot}");
            all.extend(wanted(&again, more));
        }
        assert_eq!(verify(folder.path(), None).expect("verify").problems, Vec::<String>::new());
        assert_eq!(nonces(folder.path()), all, "{batch}: what was appended is there, whatever the room");
    }
}

#[test]
fn the_oldest_rows_alone_go_where_nobody_follows_the_log_and_it_goes_on_for_ever() {
    // Segments that the room ends, as their rows and time are beyond it; segments of few rows.
    for (segment_rows, batch) in [(1000, 512), (400_000, 512), (400_000, 37)] {
        let folder = tempfile::tempdir().expect("folder");
        let settings = LogSettings { segment_rows, seal_after_ms: 600_000, ..small_log(folder.path(), false, segment_rows) };
        let taken = fill_watched(&settings, batch, 1000);
        assert!(taken >= 150_000, "{segment_rows}: it stops at {taken}");
        let kept = nonces(folder.path());
        assert!(kept.len() > 4000, "{segment_rows}: {} rows are kept", kept.len());
        assert!(kept == wanted(&settings, taken)[taken as usize - kept.len()..], "{segment_rows}: the newest rows are there, every one");
        assert_eq!(verify(folder.path(), None).expect("verify").problems, Vec::<String>::new());
    }
}

#[test]
fn a_log_is_full_for_want_of_room_and_not_for_want_of_a_whole_segment() {
    // A follower that stands still: everything may be filled before shares are refused, though no segment comes by rows or by the clock.
    let folder = tempfile::tempdir().expect("folder");
    let settings = LogSettings { seal_after_ms: 600_000, ..small_log(folder.path(), true, 400_000) };
    let taken = fill_watched(&settings, 512, 1000);
    assert!(u64::from(taken) * 85 > settings.max_bytes / 2, "{taken}");
    assert_eq!(nonces(folder.path()), wanted(&settings, taken));
}

#[test]
fn a_max_bytes_without_room_for_a_journal_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let error = ShareLog::open(LogSettings { max_bytes: 900 << 10, ..settings(folder.path(), 1) }).map(drop).expect_err("refused");
    assert!(error.to_string().contains("max_bytes") && error.exit_code() == 2, "{error}");
}

#[test]
fn a_failed_fsync_commits_nothing_and_the_next_try_writes_new_files() {
    let folder = tempfile::tempdir().expect("folder");
    let storage = FaultyStorage::new();
    let settings = settings(folder.path(), 1);
    let (mut journal, mut sealer, registry, _) = ShareLog::open_with(settings.clone(), storage.clone()).expect("open");
    begin(&settings, &registry, &mut journal);
    settle(&mut sealer, NOON_US);
    journal.append(&[], &(0..500).map(row).collect::<Vec<_>>()).expect("room");
    journal.append(&[], &(500..1000).map(row).collect::<Vec<_>>()).expect("room");
    // Dimensions, block and meta in turn.
    for failing in 0..3 {
        storage.0.fsync_fails.store(1, Relaxed);
        if failing > 0 {
            storage.0.fsync_fails.store(0, Relaxed);
            storage.0.trace.lock().expect("trace").clear();
            storage.0.fail_after.store([0, 0, 0][failing], Relaxed);
        }
        let failed = (0..5).find_map(|_| sealer.step(NOON_US).err());
        assert!(failed.is_some(), "fault {failing}");
        let natives = std::fs::read_dir(folder.path())
            .expect("list")
            .filter(|e| e.as_ref().expect("entry").path().extension().is_some_and(|e| e == "native"));
        assert_eq!(natives.count(), 0, "nothing is committed after a failed sync");
    }
    storage.0.trace.lock().expect("trace").clear();
    settle(&mut sealer, NOON_US);
    let trace = storage.0.trace.lock().expect("trace").clone();
    let step = |wanted: &str| {
        trace.iter().position(|line| {
            line.starts_with(wanted.split('*').next().expect("head")) && line.ends_with(wanted.split('*').next_back().expect("tail"))
        })
    };
    let order = [
        "create *.native.tmp",
        "fsync *.native.tmp",
        "create *.meta.tmp",
        "fsync *.meta.tmp",
        "rename *.meta",
        "rename *.native",
        "fsync folder *",
    ]
    .map(|wanted| step(wanted).unwrap_or_else(|| panic!("no {wanted} in {trace:?}")));
    assert!(order.is_sorted(), "{trace:?}");
    assert_eq!(nonces(folder.path()), wanted(&settings, 1000));
    assert_eq!(verify(folder.path(), None).expect("verify").problems, Vec::<String>::new());
}

#[test]
fn short_writes_are_finished() {
    let folder = tempfile::tempdir().expect("folder");
    let storage = FaultyStorage::new();
    storage.0.short_writes.store(true, Relaxed);
    let settings = settings(folder.path(), 1);
    let (mut journal, mut sealer, registry, _) = ShareLog::open_with(settings.clone(), storage).expect("open");
    begin(&settings, &registry, &mut journal);
    journal.append(&[], &(0..500).map(row).collect::<Vec<_>>()).expect("room");
    drop(journal);
    sealer.drain(NOON_US).expect("drain");
    assert_eq!(verify(folder.path(), None).expect("verify").problems, Vec::<String>::new());
    assert_eq!(nonces(folder.path()), wanted(&settings, 500));
}

#[test]
fn an_error_at_any_operation_leaves_a_folder_that_recovers_exactly() {
    // How many operations a life of the log has, then an error at each of them: on the spot a retry succeeds; in a copy taken there, recovery finds every row.
    let life = |fail_at: i64| -> (usize, bool) {
        let folder = tempfile::tempdir().expect("folder");
        let storage = FaultyStorage::new();
        let settings = LogSettings { segment_rows: 40, journal_file_bytes: 128 << 10, ..settings(folder.path(), 1) };
        let (mut journal, mut sealer, registry, _) = ShareLog::open_with(settings.clone(), storage.clone()).expect("open");
        begin(&settings, &registry, &mut journal);
        storage.0.trace.lock().expect("trace").clear();
        storage.0.fail_after.store(fail_at, Relaxed);
        let mut failed = false;
        for batch in 0..3 {
            journal.append(&[session(batch + 2)], &(batch * 30..batch * 30 + 30).map(row).collect::<Vec<_>>()).expect("room");
            let mut steps = 0;
            loop {
                match sealer.step(NOON_US) {
                    Ok(SealStep::Idle) => break,
                    Ok(SealStep::Worked) => {}
                    Err(_) => {
                        assert!(!failed, "one error was injected");
                        failed = true;
                        let crashed = tempfile::tempdir().expect("folder");
                        copy(folder.path(), crashed.path());
                        let before = nonces(crashed.path());
                        assert_eq!(before, wanted(&settings, batch * 30 + 30), "fault {fail_at}: before recovery");
                        recover(crashed.path(), 2);
                        assert_eq!(nonces(crashed.path()), before, "fault {fail_at}: after recovery");
                    }
                }
                steps += 1;
                assert!(steps < 100, "the sealer does not come to rest");
            }
        }
        drop(journal);
        if sealer.drain(NOON_US).is_err() {
            failed = true;
            sealer.drain(NOON_US).expect("second try");
        }
        assert_eq!(nonces(folder.path()), wanted(&settings, 90), "fault {fail_at}: on the spot");
        assert_eq!(verify(folder.path(), None).expect("verify").problems, Vec::<String>::new());
        (storage.0.trace.lock().expect("trace").len(), failed)
    };
    let (operations, failed) = life(-1);
    assert!(!failed && operations > 40, "{operations}");
    for fail_at in 0..operations as i64 {
        life(fail_at);
    }
}

fn recover(dir: &Path, boot: u32) {
    let (journal, mut sealer, ..) =
        ShareLog::open_with(LogSettings { journal_file_bytes: 128 << 10, ..settings(dir, boot) }, FaultyStorage::new()).expect("recover");
    drop(journal);
    sealer.drain(NOON_US).expect("drain");
    assert_eq!(verify(dir, None).expect("verify").problems, Vec::<String>::new());
}

#[test]
fn temporary_files_and_a_lone_meta_are_dropped_and_their_rows_sealed_once() {
    let folder = tempfile::tempdir().expect("folder");
    let settings = settings(folder.path(), 1);
    let (mut journal, mut sealer, registry, _) = ShareLog::open(settings.clone()).expect("open");
    begin(&settings, &registry, &mut journal);
    journal.append(&[], &(0..500).map(row).collect::<Vec<_>>()).expect("room");
    journal.append(&[], &(500..1200).map(row).collect::<Vec<_>>()[..500]).expect("room");
    let unsealed = tempfile::tempdir().expect("folder");
    copy(folder.path(), unsealed.path());
    settle(&mut sealer, NOON_US);
    let native = std::fs::read_dir(folder.path())
        .expect("list")
        .map(|e| e.expect("entry").path())
        .find(|p| p.extension().is_some_and(|e| e == "native"))
        .expect("sealed");
    let name = native.file_stem().expect("stem").to_string_lossy().into_owned();
    // What stands in the folder when the process dies: before the meta's rename; between the two renames.
    for (as_native, as_meta) in [("native.tmp", "meta.tmp"), ("native.tmp", "meta")] {
        let crashed = tempfile::tempdir().expect("folder");
        copy(unsealed.path(), crashed.path());
        std::fs::copy(&native, crashed.path().join(format!("{name}.{as_native}"))).expect("copy");
        std::fs::copy(native.with_extension("meta"), crashed.path().join(format!("{name}.{as_meta}"))).expect("copy");
        assert_eq!(verify(crashed.path(), None).expect("verify").problems, Vec::<String>::new(), "{as_meta}");
        recover(crashed.path(), 2);
        assert_eq!(nonces(crashed.path()), wanted(&settings, 1000));
    }
    // A committed block that is lost later is never taken for such a crash: its journal file is gone.
    drop((journal, registry));
    sealer.drain(NOON_US).expect("drain");
    drop(sealer);
    std::fs::remove_file(&native).expect("remove");
    let (journal, mut sealer, ..) = ShareLog::open(support::settings(folder.path(), 3)).expect("open");
    drop(journal);
    sealer.drain(NOON_US).expect("drain");
    assert!(!verify(folder.path(), None).expect("verify").is_clean());
}

#[derive(Clone, Debug)]
enum Act {
    Append { dimensions: usize, rows: usize },
    Steps(usize),
    Crash,
    Drain,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let sizes = prop_oneof![Just(0usize), Just(1), Just(37), Just(512), 2usize..200];
    let act = prop_oneof![
        6 => (prop_oneof![Just(0usize), Just(1), Just(64)], sizes).prop_map(|(dimensions, rows)| Act::Append { dimensions, rows }),
        3 => (1usize..6).prop_map(Act::Steps),
        2 => Just(Act::Crash),
        1 => Just(Act::Drain),
    ];
    prop::collection::vec(act, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn every_appended_row_stands_exactly_once_whatever_the_order_of_batches_steps_and_crashes(acts in acts(), segment_rows in prop_oneof![Just(37u32), Just(511), Just(512), 100u32..2000]) {
        let folder = tempfile::tempdir().expect("folder");
        let mut boot = 1;
        let open = |boot: u32| {
            let settings = LogSettings { segment_rows, journal_file_bytes: 128 << 10, ..settings(folder.path(), boot) };
            let handles = ShareLog::open_with(settings.clone(), FaultyStorage::new()).expect("open");
            handles.2.run(&run_record(settings.run)).expect("run");
            handles.2.job(&job(settings.run, 1)).expect("job");
            handles
        };
        let (mut journal, mut sealer, mut registry, _) = open(boot);
        let mut appended: Vec<(u32, u32)> = Vec::new();
        let (mut nonce, mut sessions) = (0u32, 0u32);
        let mut now_us = NOON_US;
        for act in acts {
            now_us += 1000;
            match act {
                Act::Append { dimensions, rows } => {
                    let new = if sessions == 0 { dimensions.max(1) } else { dimensions } as u32;
                    let records: Vec<_> = (sessions + 1..=sessions + new).map(session).collect();
                    sessions += new;
                    let batch: Vec<_> =
                        (nonce..nonce + rows as u32).map(|nonce| ShareRow { session: sessions, worker: 0, ..row(nonce) }).collect();
                    if journal.room_cells() < records.len() * 4 + batch.len() {
                        prop_assert!(journal.append(&records, &batch).is_err());
                        run_steps(&mut sealer, now_us, 50);
                    }
                    journal.append(&records, &batch).expect("room");
                    appended.extend((nonce..nonce + rows as u32).map(|nonce| (RunId::new(3, boot).prefix(), nonce)));
                    nonce += rows as u32;
                }
                Act::Steps(steps) => run_steps(&mut sealer, now_us, steps),
                Act::Crash | Act::Drain => {
                    drop(journal);
                    if matches!(act, Act::Drain) { sealer.drain(now_us).expect("drain"); }
                    drop((sealer, registry));
                    boot += 1;
                    sessions = 0;
                    (journal, sealer, registry, _) = open(boot);
                }
            }
        }
        let _ = &registry;
        prop_assert_eq!(verify(folder.path(), None).expect("verify").problems, Vec::<String>::new());
        prop_assert_eq!(&nonces(folder.path()), &appended);
        drop(journal);
        sealer.drain(now_us).expect("drain");
        prop_assert_eq!(verify(folder.path(), None).expect("verify").problems, Vec::<String>::new());
        prop_assert_eq!(nonces(folder.path()), appended);
    }
}

fn run_steps<S: Storage>(sealer: &mut Sealer<S>, now_us: u64, steps: usize) {
    for _ in 0..steps {
        sealer.step(now_us).expect("step");
    }
}
