//! Cold segments: packed beside the pool, read by everybody, and never in two forms or none, whatever dies in between.
mod support;
use otedama_sharelog::scan::Filter;
use otedama_sharelog::shares::{Key, Table, group_on};
use otedama_sharelog::store::{Cursor, CursorPosition, SegmentStore, hold_forms};
use otedama_sharelog::{Disk, LogSettings, PackStep, Packer, Sealer, ShareLog, Storage, inspect, verify::verify};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use support::*;

/// Age at which the segments of these tests are cold.
const AFTER_MS: u64 = 60_000;
const COLD_US: u64 = NOON_US + 3_600_000_000;

/// A disk that fails at its n-th operation and at all that follow, as for a process that was killed there.
#[derive(Clone)]
struct Dying(Arc<AtomicI64>);

impl Dying {
    fn never() -> Self {
        Self(Arc::new(AtomicI64::new(i64::MAX)))
    }

    fn operation(&self) -> io::Result<()> {
        if self.0.fetch_sub(1, Relaxed) <= 0 { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
    }
}

impl Storage for Dying {
    fn create(&self, path: &Path) -> io::Result<File> {
        self.operation()?;
        Disk.create(path)
    }
    fn fallocate(&self, file: &File, bytes: u64) -> io::Result<()> {
        self.operation()?;
        Disk.fallocate(file, bytes)
    }
    fn write_at(&self, file: &File, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        self.operation()?;
        Disk.write_at(file, offset, bytes)
    }
    fn fsync(&self, _: &File) -> io::Result<()> {
        self.operation()
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.operation()?;
        Disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.operation()?;
        Disk.remove(path)
    }
    fn sync_folder(&self, _: &Path) -> io::Result<()> {
        self.operation()
    }
}

fn small(dir: &Path) -> LogSettings {
    LogSettings { segment_rows: 500, journal_file_bytes: 128 << 10, ..settings(dir, 1) }
}

/// A log of `segments` segments of 500 rows, its sealer and its packer.
fn log_with<S: Storage>(settings: &LogSettings, storage: S, segments: u32) -> (Sealer<S>, Packer<S>) {
    let (mut journal, mut sealer, registry, _) = ShareLog::open_with(settings.clone(), storage).expect("open");
    let packer = sealer.take_packer(AFTER_MS).expect("a packer");
    assert!(sealer.take_packer(AFTER_MS).is_none(), "there is one");
    begin(settings, &registry, &mut journal);
    for segment in 0..segments {
        journal.append(&[], &(segment * 500..(segment + 1) * 500).map(row).collect::<Vec<_>>()).expect("room");
        settle(&mut sealer, NOON_US);
    }
    (sealer, packer)
}

/// Packs everything that is cold, as the pool's thread does; the segments that were packed or given up.
fn pack_all<S: Storage>(sealer: &mut Sealer<S>, packer: &mut Packer<S>) -> usize {
    let mut worked = 0;
    // Retention looks once a second.
    for now_us in (COLD_US..).step_by(2_000_000) {
        settle(sealer, now_us);
        match packer.step(|| true) {
            Ok(PackStep::Idle | PackStep::Ended) => break,
            Ok(PackStep::Worked) | Err(_) => worked += 1,
        }
    }
    worked
}

fn with_ending(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).expect("list").map(|entry| entry.expect("entry").path());
    let mut paths: Vec<_> = entries.filter(|path| path.to_string_lossy().ends_with(ending)).collect();
    paths.sort();
    paths
}

fn grouped(dir: &Path) -> Table {
    group_on(dir, &[Key::Status, Key::Minute], &Filter::default(), 2).expect("group")
}

/// Everything that readers say of a sound log.
fn told(dir: &Path) -> (u64, [u64; 9], Vec<(u32, u32)>, Table) {
    let report = verify(dir, None).expect("verify");
    assert_eq!(report.problems, Vec::<String>::new());
    (report.rows, report.by_status, nonces(dir), grouped(dir))
}

#[test]
fn a_cold_segment_reads_as_before_and_takes_less_room() {
    let folder = tempfile::tempdir().expect("folder");
    let dir = folder.path();
    let (mut sealer, mut packer) = log_with(&small(dir), Disk, 5);
    let before = told(dir);
    let store = SegmentStore::open(dir).expect("store");
    let metas = store.segments().expect("segments");
    let blocks: Vec<Vec<u8>> = metas.iter().map(|meta| std::fs::read(store.native_path(meta)).expect("block")).collect();
    settle(&mut sealer, NOON_US + 2_000_000);
    assert_eq!(packer.step(|| true).expect("step"), PackStep::Idle, "nothing is a minute old");

    assert_eq!(pack_all(&mut sealer, &mut packer), 5);
    assert_eq!((with_ending(dir, ".native").len(), with_ending(dir, ".native.zst").len(), with_ending(dir, ".tmp").len()), (0, 5, 0));
    assert_eq!(told(dir), before);
    assert_eq!(store.segments().expect("segments"), metas, "metas stay as they are");
    for (meta, block) in metas.iter().zip(&blocks) {
        let mut bytes = Vec::new();
        assert!(store.read_native(meta, &mut bytes).expect("sound") && store.is_here(meta));
        assert!(bytes == *block);
        // For everybody else it is a plain zstd file.
        let packed = File::open(store.native_path(meta).with_extension("native.zst")).expect("open");
        assert!(zstd::stream::decode_all(packed).expect("zstd") == *block);
    }
    assert!(inspect::dump(dir).expect("inspect").contains("(packed "));
    // Retention by bytes counts what is there.
    settle(&mut sealer, COLD_US + 60_000_000);
    let on_disk: u64 = std::fs::read_dir(dir).expect("list").map(|entry| entry.expect("entry").metadata().expect("size").len()).sum();
    let small_files = (with_ending(dir, "epoch").len() + with_ending(dir, "LOCK").len()) as u64 * 64;
    let counted = sealer.counters().bytes.load(Relaxed);
    assert!(counted <= on_disk && on_disk <= counted + small_files, "{counted} counted, {on_disk} there");
    let saved = sealer.counters().packed_away_bytes.load(Relaxed);
    let plain = blocks.iter().map(Vec::len).sum::<usize>() as u64;
    let packed: u64 = with_ending(dir, ".native.zst").iter().map(|path| path.metadata().expect("size").len()).sum();
    assert_eq!(saved, plain - packed);
    assert!(saved * 2 > plain, "{saved} of {plain} saved");
    assert_eq!(sealer.counters().segments_packed.load(Relaxed), 5);

    // A further process goes on behind it, deletes by age, and counts the same.
    drop((sealer, packer));
    let settings = LogSettings { keep_ms: 1, ..settings(dir, 2) };
    let (mut journal, mut sealer, ..) = ShareLog::open(settings).expect("reopen");
    journal.append(&[], &[row(0)]).expect("room");
    drop(journal);
    sealer.drain(COLD_US).expect("drain");
    let left = SegmentStore::open(dir).expect("store").segments().expect("segments");
    assert_eq!(left.iter().map(|meta| meta.sequence()).collect::<Vec<_>>(), [6], "the newest stays");
    assert_eq!((with_ending(dir, ".native.zst").len(), with_ending(dir, ".meta").len()), (0, 1));
}

#[test]
fn every_flipped_byte_and_every_cut_of_a_packed_segment_is_told_by_verify_and_named_by_every_reader() {
    let folder = tempfile::tempdir().expect("folder");
    let dir = folder.path();
    let settings = LogSettings { segment_rows: 100, ..small(dir) };
    let (mut sealer, mut packer) = log_with(&settings, Disk, 1);
    assert_eq!(pack_all(&mut sealer, &mut packer), 5);
    drop((sealer, packer));
    let sound = told(dir);
    let path = with_ending(dir, ".native.zst").remove(1);
    let name = path.file_name().expect("name").to_string_lossy().into_owned();
    let whole = std::fs::read(&path).expect("read");
    let long = std::env::var_os("OTEDAMA_LONG").is_some();
    let flips = (0..whole.len()).step_by(if long { 1 } else { 3 }).map(|at| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        bytes
    });
    let other = std::fs::read(with_ending(dir, ".native.zst").remove(2)).expect("read");
    let cuts = (0..whole.len()).step_by(if long { 1 } else { 19 }).map(|length| whole[..length].to_vec());
    let more = [[&whole[..], &[0]].concat(), [&whole[..], &whole[..]].concat(), other, vec![0; whole.len()]];
    for (index, bytes) in flips.chain(cuts).chain(more).enumerate() {
        std::fs::write(&path, &bytes).expect("write");
        let problems = verify(dir, None).expect("verify looks at anything").problems;
        assert!(problems.iter().any(|problem| problem.starts_with(&name)), "damage {index} passed: {problems:?}");
        if index % 50 == 0 {
            let table = grouped(dir);
            assert_eq!(table.rows.iter().map(|row| row.shares).sum::<u64>(), sound.0 - 100, "damage {index}");
            assert!(table.damaged.len() == 1 && table.damaged[0].contains(&name), "{:?}", table.damaged);
            let errors = otedama_sharelog::scan::rows(dir, Filter::default()).expect("scan").filter_map(Result::err);
            let errors: Vec<_> = errors.map(|error| error.to_string()).collect();
            assert!(errors.len() == 1 && errors[0].contains(&name), "{errors:?}");
        }
    }
    std::fs::write(&path, &whole).expect("restore");
    assert_eq!(told(dir), sound);
}

#[test]
fn a_frame_that_says_it_is_larger_than_its_segment_takes_no_room_and_is_damaged() {
    let folder = tempfile::tempdir().expect("folder");
    let dir = folder.path();
    let (mut sealer, mut packer) = log_with(&small(dir), Disk, 1);
    assert_eq!(pack_all(&mut sealer, &mut packer), 1);
    let path = with_ending(dir, ".native.zst").remove(0);
    // 64 MB of zeros in some kilobytes, with a sound checksum of its own.
    let mut bomb = zstd::stream::encode_all(&vec![0u8; 64 << 20][..], 3).expect("zstd");
    let crc32c = crc32c::crc32c(&bomb).to_le_bytes();
    bomb.extend_from_slice(&[&[0x5E, 0x2A, 0x4D, 0x18, 8, 0, 0, 0][..], b"OTED", &crc32c].concat());
    std::fs::write(&path, &bomb).expect("write");
    let store = SegmentStore::open(dir).expect("store");
    let meta = store.segments().expect("segments").remove(0);
    let mut bytes = Vec::new();
    let error = store.read_native(&meta, &mut bytes).expect_err("damaged").to_string();
    assert!(error.contains("does not unpack"), "{error}");
    assert!(bytes.capacity() < 1 << 20, "{}", bytes.capacity());
}

#[test]
fn a_crash_at_any_step_of_the_packer_leaves_one_readable_segment() {
    let mut died = 0;
    for operations in 0.. {
        let folder = tempfile::tempdir().expect("folder");
        let dir = folder.path();
        let storage = Dying::never();
        let (mut sealer, mut packer) = log_with(&small(dir), storage.clone(), 2);
        settle(&mut sealer, COLD_US);
        let before = told(dir);
        storage.0.store(operations, Relaxed);
        let worked = packer.step(|| true);
        storage.0.store(i64::MAX, Relaxed);
        if worked.is_ok() {
            assert_eq!(with_ending(dir, ".native.zst").len(), 1);
            break;
        }
        died += 1;
        // As the crash left it, then as the next process finds it.
        assert_eq!(told(dir), before, "{operations} operations");
        let crashed = tempfile::tempdir().expect("folder");
        copy(dir, crashed.path());
        let (journal, mut next, ..) =
            ShareLog::open(LogSettings { run: otedama_primitives::RunId::new(3, 2), ..small(crashed.path()) }).expect("reopen");
        drop(journal);
        let mut packer = next.take_packer(AFTER_MS).expect("packer");
        assert_eq!(told(crashed.path()), before, "{operations} operations, opened again");
        for path in with_ending(crashed.path(), ".native.zst") {
            assert!(!path.with_extension("").exists(), "{} stands in both forms", path.display());
        }
        assert_eq!(with_ending(crashed.path(), ".zst.tmp"), Vec::<PathBuf>::new());
        assert!(pack_all(&mut next, &mut packer) > 0);
        assert_eq!(told(crashed.path()), before);
        assert_eq!(with_ending(crashed.path(), ".native").len(), 0);
    }
    assert!(died >= 6, "{died} steps were seen");
}

#[test]
fn of_two_forms_the_plain_one_is_the_segment_whatever_the_other_holds() {
    let folder = tempfile::tempdir().expect("folder");
    let dir = folder.path();
    let (sealer, packer) = log_with(&small(dir), Disk, 3);
    drop((sealer, packer));
    let before = told(dir);
    let plain = with_ending(dir, ".native");
    std::fs::write(plain[0].with_extension("native.zst"), b"torn").expect("write");
    std::fs::write(plain[2].with_extension("native.zst"), b"").expect("write");
    assert_eq!(told(dir), before);
    let (journal, mut sealer, ..) =
        ShareLog::open(LogSettings { run: otedama_primitives::RunId::new(3, 2), ..small(dir) }).expect("reopen");
    drop(journal);
    assert_eq!(with_ending(dir, ".native.zst"), Vec::<PathBuf>::new(), "what does not count goes");
    sealer.drain(NOON_US).expect("drain");
    assert_eq!(told(dir), before);
}

#[test]
fn a_damaged_segment_stays_plain_and_is_told_once() {
    let folder = tempfile::tempdir().expect("folder");
    let dir = folder.path();
    let (mut sealer, mut packer) = log_with(&small(dir), Disk, 3);
    let path = with_ending(dir, ".native").remove(1);
    let mut bytes = std::fs::read(&path).expect("read");
    bytes[700] ^= 4;
    std::fs::write(&path, &bytes).expect("write");
    let mut damaged = Vec::new();
    for now_us in (COLD_US..COLD_US + 400_000_000).step_by(2_000_000).take(8) {
        settle(&mut sealer, now_us);
        if let Err(error) = packer.step(|| true) {
            damaged.push(error.to_string());
            assert!(sealer.counters().packing_trouble().contains("crc"), "{}", sealer.counters().packing_trouble());
            assert_eq!(sealer.counters().troubles(), Vec::<String>::new(), "shares are logged all the same");
        }
    }
    assert_eq!(damaged.len(), 1, "{damaged:?}");
    assert_eq!(with_ending(dir, ".native"), [path]);
    assert_eq!((with_ending(dir, ".native.zst").len(), with_ending(dir, ".tmp").len()), (2, 0));
}

#[test]
fn what_a_cursor_has_not_passed_a_reader_holds_or_a_stop_interrupts_stays_as_it_is() {
    let folder = tempfile::tempdir().expect("folder");
    let dir = folder.path();
    let settings = LogSettings { has_cursor: true, keep_shipped_ms: u64::MAX, ..small(dir) };
    let (mut sealer, mut packer) = log_with(&settings, Disk, 4);
    let cursor = Cursor::open(dir, "shipper").expect("cursor");
    assert_eq!(pack_all(&mut sealer, &mut packer), 0, "nothing is shipped");
    cursor.store(CursorPosition { segment: 2, dimensions: 0 }).expect("store");
    let held = hold_forms(dir).expect("hold").expect("there is a log");
    settle(&mut sealer, COLD_US + 1_000_000_000);
    assert_eq!(packer.step(|| true).expect("step"), PackStep::Worked);
    assert_eq!(with_ending(dir, ".native").len(), 4, "an SQL engine is reading");
    drop(held);
    settle(&mut sealer, COLD_US + 1_002_000_000);
    assert_eq!(packer.step(|| false).expect("step"), PackStep::Worked);
    assert_eq!((with_ending(dir, ".native").len(), with_ending(dir, ".tmp").len()), (4, 0), "the pool stops");
    // A minute later, each.
    for now_us in [100, 102, 200, 202].map(|seconds| COLD_US + 1_000_000_000 + seconds * 1_000_000) {
        settle(&mut sealer, now_us);
        let _ = packer.step(|| true).expect("step");
    }
    let packed: Vec<_> = with_ending(dir, ".native.zst").into_iter().map(|path| path.to_string_lossy().into_owned()).collect();
    assert!(packed.len() == 2 && packed[0].ends_with("00000001.native.zst") && packed[1].ends_with("00000002.native.zst"), "{packed:?}");
    assert_eq!(pack_all(&mut sealer, &mut packer), 0);
    assert_eq!(verify(dir, None).expect("verify").problems, Vec::<String>::new());
    drop(sealer);
    assert_eq!(packer.step(|| true).expect("step"), PackStep::Ended);
}

#[test]
fn a_segment_in_the_packers_hands_is_not_deleted_and_goes_afterwards() {
    let folder = tempfile::tempdir().expect("folder");
    let dir = folder.path();
    let settings = LogSettings { keep_ms: 3_600_000 + 30_000, ..small(dir) };
    let (mut sealer, mut packer) = log_with(&settings, Disk, 3);
    settle(&mut sealer, COLD_US);
    // Now it is too old as well, as are those behind it.
    settle(&mut sealer, COLD_US + 120_000_000);
    assert_eq!(with_ending(dir, ".native").len(), 3);
    assert_eq!(packer.step(|| true).expect("step"), PackStep::Worked);
    assert_eq!((with_ending(dir, ".native").len(), with_ending(dir, ".native.zst").len()), (2, 1));
    settle(&mut sealer, COLD_US + 123_000_000);
    while packer.step(|| true).expect("step") == PackStep::Worked {
        settle(&mut sealer, COLD_US + 126_000_000);
    }
    let left = SegmentStore::open(dir).expect("store").segments().expect("segments");
    assert_eq!(left.iter().map(|meta| meta.sequence()).collect::<Vec<_>>(), [3]);
    assert_eq!(with_ending(dir, "").len(), 2 + with_ending(dir, ".open").len() + ["LOCK", "epoch", "dimensions.log"].len());
}
