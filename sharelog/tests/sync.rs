//! Tier `disk` with a disk that misbehaves: what is acknowledged, and where it stands afterwards.
mod support;
use otedama_primitives::ShareRow;
use otedama_sharelog::{Disk, LogCounters, LogSettings, Sealer, ShareLog, Storage, SyncStep, Syncer, verify::verify};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use support::*;

#[derive(Default)]
struct Faults {
    /// So many of the next fdatasyncs fail.
    fdatasync_fails: AtomicU32,
    /// So many of the next creations fail.
    create_fails: AtomicU32,
    full: AtomicBool,
    /// Inodes whose sync has failed once, and those that were synced again after that.
    failed: Mutex<BTreeSet<u64>>,
    synced_after_failure: Mutex<Vec<u64>>,
}

/// A disk that loses what a failed sync was to bring: the pages are gone from the file, as they may be after a real one.
#[derive(Clone, Default)]
struct LosingStorage(Arc<Faults>);

impl LosingStorage {
    fn takes_one(count: &AtomicU32) -> bool {
        count.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

impl Storage for LosingStorage {
    fn create(&self, path: &Path) -> io::Result<File> {
        if Self::takes_one(&self.0.create_fails) {
            return Err(io::Error::from_raw_os_error(5));
        }
        let file = Disk.create(path)?;
        // A number of a removed file that is used again.
        self.0.failed.lock().expect("failed").remove(&file.metadata()?.ino());
        Ok(file)
    }
    fn fallocate(&self, file: &File, bytes: u64) -> io::Result<()> {
        if self.0.full.load(Relaxed) { Err(io::Error::from_raw_os_error(28)) } else { Disk.fallocate(file, bytes) }
    }
    fn write_at(&self, file: &File, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        if self.0.full.load(Relaxed) && offset > 128 { Err(io::Error::from_raw_os_error(28)) } else { Disk.write_at(file, offset, bytes) }
    }
    fn fsync(&self, file: &File) -> io::Result<()> {
        let inode = file.metadata()?.ino();
        if self.0.failed.lock().expect("failed").contains(&inode) {
            self.0.synced_after_failure.lock().expect("list").push(inode);
        }
        Ok(())
    }
    fn fdatasync(&self, file: &File) -> io::Result<()> {
        if Self::takes_one(&self.0.fdatasync_fails) {
            self.0.failed.lock().expect("failed").insert(file.metadata()?.ino());
            // Everything behind the first page is lost.
            let bytes = file.metadata()?.len();
            file.write_all_at(&vec![0; bytes as usize - 4096], 4096)?;
            return Err(io::Error::from_raw_os_error(5));
        }
        self.fsync(file)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        Disk.remove(path)
    }
    fn sync_folder(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

struct Writer {
    journal: otedama_sharelog::Journal,
    next: u32,
    /// Position behind each batch, and the rows up to there.
    waiting: Vec<(u64, u32)>,
    acknowledged: u32,
}

impl Writer {
    fn append(&mut self, rows: u32) {
        let batch: Vec<ShareRow> = (self.next..self.next + rows).map(row).collect();
        self.journal.append(&[], &batch).expect("room");
        self.next += rows;
        self.waiting.push((self.journal.position(), self.next));
        self.look();
    }

    fn look(&mut self) {
        let durable = self.journal.durable_position();
        self.waiting.retain(|&(position, rows)| {
            if position <= durable {
                self.acknowledged = rows;
            }
            position > durable
        });
    }
}

fn start(dir: &Path, storage: LosingStorage) -> (Writer, Sealer<LosingStorage>, Syncer<LosingStorage>, Arc<LogCounters>, LogSettings) {
    let settings = LogSettings { journal_file_bytes: 128 << 10, ..settings(dir, 1) };
    let (mut journal, mut sealer, registry, counters) = ShareLog::open_synced_with(settings.clone(), storage).expect("open");
    begin(&settings, &registry, &mut journal);
    let syncer = sealer.take_sync().expect("tier disk has a sync thread");
    assert!(sealer.take_sync().is_none(), "one of them");
    (Writer { journal, next: 0, waiting: vec![], acknowledged: 0 }, sealer, syncer, counters, settings)
}

/// Rows of run 1 in a copy of the folder, as a power cut at this moment leaves it: only what was synced counts, and the copy has no more than that.
fn rows_after_a_crash(dir: &Path) -> Vec<u32> {
    let crashed = tempfile::tempdir().expect("folder");
    copy(dir, crashed.path());
    let (journal, mut sealer, ..) = ShareLog::open(support::settings(crashed.path(), 2)).expect("recover");
    drop(journal);
    sealer.drain(NOON_US).expect("drain");
    assert_eq!(verify(crashed.path(), None).expect("verify").problems, Vec::<String>::new());
    nonces(crashed.path()).into_iter().map(|(_, nonce)| nonce).collect()
}

fn native_files(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir)
        .expect("list")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "native"))
        .collect()
}

#[test]
fn nothing_is_acknowledged_before_the_sync_thread_said_so_and_one_round_takes_all_that_waits() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut writer, mut sealer, mut syncer, counters, _) = start(folder.path(), LosingStorage::default());
    for batch in [1, 512, 37] {
        writer.append(batch);
    }
    assert_eq!((writer.acknowledged, writer.waiting.len()), (0, 3));
    assert_eq!(syncer.step().expect("sync"), SyncStep::Synced);
    writer.look();
    assert_eq!((writer.acknowledged, counters.syncs.load(Relaxed)), (550, 1));
    assert_eq!(rows_after_a_crash(folder.path()), (0..550).collect::<Vec<_>>());
    assert_eq!(syncer.step().expect("sync"), SyncStep::Idle);
    // Over the ends of files: 2046 cells each.
    for _ in 0..12 {
        writer.append(500);
        settle(&mut sealer, NOON_US);
    }
    assert_eq!(writer.acknowledged, 550);
    syncer.step().expect("sync");
    writer.look();
    assert_eq!(writer.acknowledged, 6550);
    assert_eq!(rows_after_a_crash(folder.path()), (0..6550).collect::<Vec<_>>());
}

#[test]
fn a_failed_sync_acknowledges_nothing_and_its_file_is_replaced_and_never_synced_again() {
    let folder = tempfile::tempdir().expect("folder");
    let storage = LosingStorage::default();
    let (mut writer, mut sealer, mut syncer, counters, settings) = start(folder.path(), storage.clone());
    writer.append(300);
    syncer.step().expect("sync");
    writer.look();
    assert_eq!(writer.acknowledged, 300);

    // The failing sync takes the rows of the round with it, and rows that were acknowledged before.
    writer.append(200);
    storage.0.fdatasync_fails.store(1, Relaxed);
    let SyncStep::Replaced(cause) = syncer.step().expect("a new file takes its place") else { panic!("the file is replaced") };
    assert!(cause.contains("fdatasync"), "{cause}");
    writer.look();
    assert_eq!((writer.acknowledged, counters.journals_replaced.load(Relaxed)), (500, 1));
    assert_eq!(rows_after_a_crash(folder.path()), (0..500).collect::<Vec<_>>());

    // And where the new file cannot be made either, nothing is told until one can.
    writer.append(100);
    storage.0.fdatasync_fails.store(1, Relaxed);
    storage.0.create_fails.store(2, Relaxed);
    for _ in 0..2 {
        syncer.step().expect_err("no file, no promise");
        writer.look();
        assert_eq!(writer.acknowledged, 500);
        assert!(writer.journal.sync_is_failing());
        assert!(counters.troubles()[0].contains("journal-"), "{:?}", counters.troubles());
    }
    assert!(matches!(syncer.step().expect("a new file"), SyncStep::Replaced(_)));
    writer.look();
    assert_eq!((writer.acknowledged, counters.troubles()), (600, vec![]));
    assert!(!writer.journal.sync_is_failing());
    assert_eq!(rows_after_a_crash(folder.path()), (0..600).collect::<Vec<_>>());
    assert_eq!(*storage.0.synced_after_failure.lock().expect("list"), [0u64; 0], "no failed file was synced again");

    // The log goes on: sealed, recycled, verified.
    for _ in 0..20 {
        writer.append(500);
        while !writer.waiting.is_empty() {
            syncer.step().expect("sync");
            writer.look();
        }
        settle(&mut sealer, NOON_US);
    }
    drop(writer.journal);
    sealer.drain(NOON_US).expect("drain");
    assert_eq!(verify(folder.path(), None).expect("verify").problems, Vec::<String>::new());
    assert_eq!(nonces(folder.path()), (0..10_600).map(|nonce| (settings.run.prefix(), nonce)).collect::<Vec<_>>());
}

#[test]
fn what_could_not_be_synced_is_sealed_from_memory_all_the_same() {
    let folder = tempfile::tempdir().expect("folder");
    let storage = LosingStorage::default();
    let (mut writer, mut sealer, mut syncer, _, settings) = start(folder.path(), storage.clone());
    writer.append(400);
    writer.append(400);
    storage.0.fdatasync_fails.store(1, Relaxed);
    storage.0.create_fails.store(1, Relaxed);
    syncer.step().expect_err("neither the file nor a new one");
    settle(&mut sealer, NOON_US);
    settle(&mut sealer, NOON_US + 600_000_001);
    assert_eq!(native_files(folder.path()).len(), 1);
    writer.look();
    assert_eq!(writer.acknowledged, 0);
    syncer.step().expect("the disk is well again");
    writer.look();
    assert_eq!(writer.acknowledged, 800);
    drop(writer.journal);
    sealer.drain(NOON_US).expect("drain");
    assert_eq!(nonces(folder.path()), (0..800).map(|nonce| (settings.run.prefix(), nonce)).collect::<Vec<_>>());
    assert_eq!(verify(folder.path(), None).expect("verify").problems, Vec::<String>::new());
}

#[test]
fn a_full_disk_stops_acknowledging_and_passes() {
    let folder = tempfile::tempdir().expect("folder");
    let storage = LosingStorage::default();
    let (mut writer, mut sealer, mut syncer, counters, settings) = start(folder.path(), storage.clone());
    writer.append(100);
    syncer.step().expect("sync");
    writer.look();
    storage.0.full.store(true, Relaxed);
    writer.append(100);
    syncer.step().expect_err("full");
    writer.look();
    assert_eq!(writer.acknowledged, 100);
    assert_eq!(counters.troubles().len(), 1);
    let mut now_us = NOON_US;
    while writer.journal.room_cells() > 100 {
        writer.append(100);
        now_us += 300_000;
        sealer.step(now_us).expect("a full disk is no error");
    }
    assert_eq!(writer.acknowledged, 100);
    storage.0.full.store(false, Relaxed);
    for _ in 0..20 {
        now_us += 300_000;
        sealer.step(now_us).expect("step");
        syncer.step().expect("sync");
    }
    writer.look();
    assert_eq!((writer.acknowledged, counters.troubles()), (writer.next, vec![]));
    writer.append(100);
    assert_eq!(rows_after_a_crash(folder.path()), (0..writer.acknowledged).collect::<Vec<_>>());
    drop(writer.journal);
    sealer.drain(now_us).expect("drain");
    assert_eq!(nonces(folder.path()), (0..writer.next).map(|nonce| (settings.run.prefix(), nonce)).collect::<Vec<_>>());
}
