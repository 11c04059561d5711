//! Row layouts: what each keeps, folders that hold several, and sums that stand for exactly what was accepted.
mod support;
use otedama_primitives::{Hash256, ShareRow, ShareStatus, flags};
use otedama_sharelog::scan::{Filter, rows};
use otedama_sharelog::store::{Cursor, CursorPosition, SegmentStore};
use otedama_sharelog::{Disk, Layout, LogSettings, LoggedRow, ShareLog, Storage, inspect, shares, verify::verify};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};
use support::*;

fn hash(nonce: u32) -> Hash256 {
    let mut bytes = [nonce as u8; 32];
    bytes[..4].copy_from_slice(&nonce.to_le_bytes());
    Hash256(bytes)
}

fn settings_of(dir: &Path, boot: u32, layout: Layout) -> LogSettings {
    LogSettings { layout, journal_file_bytes: 128 << 10, ..settings(dir, boot) }
}

/// Appends the rows in batches of odd sizes and seals them, with their hashes where the layout has these.
fn write(settings: &LogSettings, all: &[ShareRow]) {
    let (mut journal, mut sealer, registry, _) = ShareLog::open(settings.clone()).expect("open");
    begin(settings, &registry, &mut journal);
    for batch in all.chunks(101) {
        let hashes: Vec<_> = batch.iter().map(|row| hash(row.nonce)).collect();
        let hashes = if settings.layout == Layout::Full { &hashes[..] } else { &[] };
        journal.append_hashed(&[], batch, hashes).expect("room");
        settle(&mut sealer, NOON_US);
    }
    drop(journal);
    sealer.drain(NOON_US).expect("drain");
}

fn read(dir: &Path) -> Vec<LoggedRow> {
    rows(dir, Filter::default()).expect("scan").map(|row| row.expect("sound")).collect()
}

/// Shares and work by (worker, second, status, flags).
fn sums_of(rows: impl Iterator<Item = LoggedRow>) -> BTreeMap<(u64, u64, u8, u8), (u64, u128)> {
    let mut sums = BTreeMap::new();
    for row in rows {
        let sum: &mut (u64, u128) = sums.entry((row.worker, row.arrival_us / 1_000_000, row.status, row.flags)).or_default();
        sum.0 += u64::from(row.share_count);
        sum.1 += u128::from(row.work);
    }
    sums
}

fn plain(row: &ShareRow) -> LoggedRow {
    LoggedRow {
        worker: row.worker,
        arrival_us: row.arrival_us,
        status: row.status,
        flags: row.flags,
        work: row.work,
        share_count: 1,
        ..LoggedRow::default()
    }
}

#[test]
fn each_layout_gives_back_what_it_keeps() {
    // The rows of the support module have works near 2^64: no two fit one sum. These have small ones.
    let all: Vec<ShareRow> = (0..2500).map(|index| ShareRow { work: 1 + u64::from(index % 3), ..row(index) }).collect();
    for layout in Layout::ALL {
        let folder = tempfile::tempdir().expect("folder");
        let settings = settings_of(folder.path(), 1, layout);
        write(&settings, &all);
        assert_eq!(verify(folder.path(), None).expect("verify").problems, Vec::<String>::new(), "{layout:?}");
        let metas = SegmentStore::open(folder.path()).expect("store").segments().expect("segments");
        assert!(metas.iter().all(|meta| meta.layout == layout));
        assert_eq!(metas.iter().map(|meta| meta.shares()).sum::<u64>(), 2500);
        assert!(inspect::dump(folder.path()).expect("inspect").contains(&format!("  {}  rows ", layout.label())), "{layout:?}");
        let found = read(folder.path());
        if layout == Layout::Rollup {
            assert!(found.len() < 2500 && found.iter().any(|row| row.share_count > 1));
            assert_eq!(sums_of(found.iter().copied()), sums_of(all.iter().map(plain)));
            assert!(found.iter().filter(|row| !row.is_sum()).all(|row| row.ntime == all[0].ntime && row.session & 0xffff_ffff == 1));
            continue;
        }
        assert_eq!(found.len(), 2500);
        for (row, found) in all.iter().zip(&found) {
            assert_eq!((found.nonce, found.work, found.worker, found.latency_us), (row.nonce, row.work, row.worker, row.latency_us));
            assert_eq!((found.share_count, found.is_sum()), (1, false));
            let whole = (found.ntime, found.version, found.extranonce2);
            assert_eq!(whole, if layout == Layout::Lean { (0, 0, 0) } else { (row.ntime, row.version, row.extranonce2) });
            assert_eq!(found.hash, if layout == Layout::Full { hash(row.nonce) } else { Hash256::default() });
        }
    }
}

#[test]
fn hashes_stand_in_the_block_as_explorers_show_them() {
    let folder = tempfile::tempdir().expect("folder");
    write(&settings_of(folder.path(), 1, Layout::Full), &[row(0x0102_0304)]);
    let store = SegmentStore::open(folder.path()).expect("store");
    let mut bytes = Vec::new();
    assert!(store.read_native(&store.segments().expect("segments")[0], &mut bytes).expect("native"));
    let mut shown = hash(0x0102_0304).0;
    shown.reverse();
    assert!(bytes.ends_with(&shown), "hash is the last column");
    assert!(shown.ends_with(&[1, 2, 3, 4]));
}

#[test]
fn unsealed_rows_of_layout_full_have_their_hashes_and_survive_the_process() {
    let folder = tempfile::tempdir().expect("folder");
    let settings = settings_of(folder.path(), 1, Layout::Full);
    let (mut journal, sealer, registry, _) = ShareLog::open(settings.clone()).expect("open");
    begin(&settings, &registry, &mut journal);
    let all: Vec<ShareRow> = (0..7).map(row).collect();
    let hashes: Vec<_> = all.iter().map(|row| hash(row.nonce)).collect();
    journal.append_hashed(&[], &all, &hashes).expect("room");
    // A batch without, as one of records alone is, and one of a single row.
    journal.append(&[session(2)], &[]).expect("room");
    journal.append_hashed(&[], &[row(7)], &[hash(7)]).expect("room");
    let check = || {
        let found = read(folder.path());
        assert_eq!(found.len(), 8);
        assert!(found.iter().all(|row| row.hash == hash(row.nonce)), "{found:?}");
        assert_eq!(verify(folder.path(), None).expect("verify").problems, Vec::<String>::new());
    };
    check();
    drop((journal, sealer, registry));
    // The next run has another layout: what the journal has of the first is sealed in that one, without hashes.
    let copied = tempfile::tempdir().expect("folder");
    copy(folder.path(), copied.path());
    let (_, mut sealer, ..) = ShareLog::open(settings_of(copied.path(), 2, Layout::Lean)).expect("reopen");
    sealer.drain(NOON_US).expect("drain");
    assert!(read(copied.path()).iter().all(|row| row.hash == Hash256::default() && row.ntime == 0));
    let (_, mut sealer, ..) = ShareLog::open(settings_of(folder.path(), 2, Layout::Full)).expect("reopen");
    sealer.drain(NOON_US).expect("drain");
    check();
}

#[test]
fn a_flipped_byte_of_a_journaled_hash_is_seen() {
    let folder = tempfile::tempdir().expect("folder");
    let settings = settings_of(folder.path(), 1, Layout::Full);
    let (mut journal, sealer, registry, _) = ShareLog::open(settings.clone()).expect("open");
    begin(&settings, &registry, &mut journal);
    journal.append_hashed(&[], &[row(3)], &[hash(3)]).expect("room");
    drop((journal, sealer, registry));
    let path = folder.path().join("journal-000000.open");
    let mut bytes = std::fs::read(&path).expect("journal");
    let at = bytes.windows(32).position(|window| window == hash(3).0).expect("the hash is there");
    bytes[at + 9] ^= 1;
    std::fs::write(&path, bytes).expect("write");
    assert!(!verify(folder.path(), None).expect("verify").is_clean());
}

#[test]
fn a_folder_of_every_layout_is_read_as_one() {
    let folder = tempfile::tempdir().expect("folder");
    let mut all = Vec::new();
    for (boot, layout) in Layout::ALL.into_iter().chain(Layout::ALL).enumerate() {
        let first = boot as u32 * 700;
        let part: Vec<ShareRow> = (first..first + 700).map(|index| ShareRow { work: 7, ..row(index) }).collect();
        write(&settings_of(folder.path(), boot as u32 + 1, layout), &part);
        all.extend(part);
    }
    let report = verify(folder.path(), None).expect("verify");
    assert_eq!(report.problems, Vec::<String>::new());
    assert_eq!(report.by_status.iter().sum::<u64>(), 5600);
    assert!(report.rows < 5600, "rows of sums are fewer than their shares");
    assert_eq!(sums_of(read(folder.path()).into_iter()), sums_of(all.iter().map(plain)));
    let table = shares::group(folder.path(), &[shares::Key::Status, shares::Key::Worker], &Filter::default()).expect("group");
    assert_eq!(table.rows.iter().map(|row| row.shares).sum::<u64>(), 5600);
    assert_eq!(table.rows.iter().map(|row| row.work).sum::<u128>(), 5600 * 7);
}

#[test]
fn a_segment_under_the_meta_of_another_layout_is_told() {
    let (one, other) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
    write(&settings_of(one.path(), 1, Layout::Replayable), &[row(1), row(2)]);
    std::fs::copy(one.path().join("epoch"), other.path().join("epoch")).expect("copy");
    write(&settings_of(other.path(), 1, Layout::Lean), &[row(1), row(2)]);
    let native = |dir: &Path| {
        let entries = std::fs::read_dir(dir).expect("list");
        entries
            .map(|entry| entry.expect("entry").path())
            .find(|path| path.extension().is_some_and(|ending| ending == "native"))
            .expect("one")
    };
    std::fs::copy(native(other.path()), native(one.path())).expect("copy");
    assert!(!verify(one.path(), None).expect("verify").is_clean());
}

fn ledger_line(job: u32, row: &ShareRow, worker: &str, verdict: &str) -> String {
    format!("01000001 {worker} {job:08x} {:016x} {:08x} {:08x} {:08x} {verdict}\n", row.extranonce2, row.ntime, row.nonce, row.version)
}

#[test]
fn the_ledger_is_held_against_every_layout() {
    for layout in Layout::ALL {
        let folder = tempfile::tempdir().expect("folder");
        let settings = settings_of(folder.path(), 1, layout);
        let job = job(settings.run, 1).wire_id;
        let of = |index: u32, status: ShareStatus| ShareRow { status: status as u8, flags: 0, work: 5, ..row(index) };
        let accepted: Vec<_> = (0..40).map(|index| of(index, ShareStatus::Accepted)).collect();
        let refused = [
            of(50, ShareStatus::LowDifficulty),
            of(3, ShareStatus::Duplicate),
            of(51, ShareStatus::BadTime),
            of(52, ShareStatus::Malformed),
            of(53, ShareStatus::Unauthorized),
        ];
        let all = accepted.iter().chain(&refused).copied().enumerate();
        let all: Vec<_> = all.map(|(at, row)| ShareRow { arrival_us: NOON_US + at as u64, ..row }).collect();
        write(&settings, &all);
        let outside = tempfile::tempdir().expect("folder");
        let path = outside.path().join("ledger.txt");
        let problems = |lines: &[String]| {
            std::fs::write(&path, format!("# otedama ledger 1\n{}", lines.concat())).expect("write");
            verify(folder.path(), Some(&path)).expect("verify").problems
        };
        let mut good: Vec<String> = accepted.iter().map(|row| ledger_line(job, row, "alice.rig1", "accepted")).collect();
        good.extend(
            refused.iter().map(|row| ledger_line(job, row, "alice.rig1", ShareStatus::from_u8(row.status).expect("known").label())),
        );
        assert_eq!(problems(&good), Vec::<String>::new(), "{layout:?}");
        // One of them was not answered: its row may be there.
        let mut unanswered = good.clone();
        unanswered[7] = ledger_line(job, &accepted[7], "alice.rig1", "unanswered");
        assert_eq!(problems(&unanswered), Vec::<String>::new(), "{layout:?}");
        let with = |more: String| good.iter().cloned().chain([more]).collect::<Vec<_>>();
        for (what, lines) in [
            ("a share that the log has not", with(ledger_line(job, &row(99), "alice.rig1", "accepted"))),
            ("one of another worker", with(ledger_line(job, &row(99), "mallory", "accepted"))),
            ("a refusal that the log has not", with(ledger_line(job, &row(98), "alice.rig1", "low_difficulty"))),
            ("a share that the ledger has not", good[1..].to_vec()),
        ] {
            assert_eq!(problems(&lines).len(), 1, "{layout:?}: {what}: {:?}", problems(&lines));
        }
    }
}

fn any_row() -> impl Strategy<Value = ShareRow> {
    (
        prop_oneof![Just(0_u64), 1..3_u64, Just(u64::MAX)],
        prop_oneof![Just(1_u64), Just(u64::MAX), Just(u64::MAX / 2), Just(u64::MAX / 2 + 1), any::<u64>()],
        prop_oneof![4 => Just(0_u64), 2 => Just(1), 1 => Just(999_999), 1 => Just(1_000_000)],
        prop_oneof![4 => Just(ShareStatus::Accepted as u8), 1 => 0..9_u8],
        prop_oneof![4 => Just(0_u8), 1 => Just(flags::BLOCK), 1 => Just(flags::LATE), 1 => Just(flags::GRACE)],
        any::<u32>(),
        prop_oneof![Just(0_u32), Just(u32::MAX), 0..50_u32],
    )
        .prop_map(|(worker, work, later_us, status, flags, nonce, latency_us)| ShareRow {
            worker,
            work,
            arrival_us: later_us,
            status,
            flags,
            nonce,
            latency_us,
            ..row(1)
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn sums_are_what_was_accepted_and_everything_else_is_raw(
        steps in prop::collection::vec(any_row(), 1..80), segment_rows in prop_oneof![Just(1_u32), 2..5_u32, Just(1000)]
    ) {
        let mut now_us = NOON_US + 999_000;
        let all: Vec<ShareRow> = steps.into_iter().map(|step| {
            now_us += step.arrival_us;
            ShareRow { arrival_us: now_us, ..step }
        }).collect();
        // In memory where there is such a place: a segment a row is many syncs, and this is not about disks.
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.expect("folder");
        let settings = LogSettings { segment_rows, ..settings_of(folder.path(), 1, Layout::Rollup) };
        write(&settings, &all);
        let found = read(folder.path());
        prop_assert_eq!(sums_of(found.iter().copied()), sums_of(all.iter().map(plain)));
        let raw = |row: &&ShareRow| row.status != ShareStatus::Accepted as u8 || row.flags & flags::BLOCK != 0;
        let wanted: Vec<_> = all.iter().filter(raw).map(|row| (row.nonce, row.arrival_us, row.latency_us)).collect();
        let kept: Vec<_> = found.iter().filter(|row| !row.is_sum()).map(|row| (row.nonce, row.arrival_us, row.latency_us)).collect();
        prop_assert_eq!(kept, wanted);
        let problems = verify(folder.path(), None).expect("verify").problems;
        // Names of workers are not recorded here, and random shares may be equal: what it says of sums and counts is what this is about.
        let about_sums: Vec<_> = problems.iter().filter(|text| !text.contains("which no record resolves") && !text.contains("is accepted")).collect();
        prop_assert!(about_sums.is_empty(), "{:?}", about_sums);
    }
}

/// Rows of one worker, a thousand a second: one sum of a thousand shares each.
fn busy(index: u32) -> ShareRow {
    ShareRow { worker: WORKER, work: 3, status: 0, flags: 0, arrival_us: NOON_US + u64::from(index) * 1000, ..row(index) }
}

fn folder_bytes(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).expect("list");
    entries.map(|entry| entry.expect("entry").metadata().map_or(0, |metadata| metadata.len())).sum()
}

/// Appends and seals until the log is full or `rows` rows are in; gives how many are.
fn fill(settings: &LogSettings, rows: u32) -> (u32, bool) {
    let (mut journal, mut sealer, registry, counters) = ShareLog::open(settings.clone()).expect("open");
    begin(settings, &registry, &mut journal);
    let (mut next, mut now_us, mut was_rolled_up) = (0, NOON_US, false);
    while next < rows && journal.room_cells() > 512 {
        journal.append(&[], &(next..next + 500).map(busy).collect::<Vec<_>>()).expect("room");
        next += 500;
        now_us += 2_000_000;
        settle(&mut sealer, now_us);
        was_rolled_up |= counters.rolled_up.load(Relaxed);
        assert!(folder_bytes(&settings.dir) <= settings.max_bytes, "max_bytes holds");
    }
    drop(journal);
    sealer.drain(now_us).expect("drain");
    (next, was_rolled_up)
}

#[test]
fn a_full_log_goes_on_with_sums_and_loses_no_share() {
    let settings_in = |dir: &Path, rolls_up_when_full| LogSettings {
        max_bytes: 4 << 20,
        has_cursor: true,
        rolls_up_when_full,
        ..settings_of(dir, 1, Layout::Replayable)
    };
    let refusing = tempfile::tempdir().expect("folder");
    Cursor::open(refusing.path(), "shipper").expect("cursor");
    let (held, was_rolled_up) = fill(&settings_in(refusing.path(), false), 200_000);
    assert!(held < 60_000 && !was_rolled_up, "without sums the log is full after {held} rows");

    let folder = tempfile::tempdir().expect("folder");
    let cursor = Cursor::open(folder.path(), "shipper").expect("cursor");
    let settings = settings_in(folder.path(), true);
    let (held, was_rolled_up) = fill(&settings, 200_000);
    assert!(was_rolled_up && held == 200_000, "it goes on: {held}");
    let report = verify(folder.path(), None).expect("verify");
    assert_eq!((report.problems, report.by_status[0]), (vec![], 200_000));
    assert_eq!(sums_of(read(folder.path()).into_iter()), sums_of((0..200_000).map(|index| plain(&busy(index)))));
    let layouts: Vec<_> =
        SegmentStore::open(folder.path()).expect("store").segments().expect("segments").iter().map(|meta| meta.layout).collect();
    let rows_first = layouts.iter().take_while(|layout| **layout == Layout::Replayable).count();
    assert!(rows_first > 10 && layouts[rows_first..].iter().all(|layout| *layout == Layout::Rollup), "{layouts:?}");

    // The follower comes back: what it has passed goes, and rows are kept again.
    cursor.store(CursorPosition { segment: 1_000_000, dimensions: 0 }).expect("store");
    let (mut journal, mut sealer, _, counters) =
        ShareLog::open(LogSettings { run: otedama_primitives::RunId::new(3, 2), ..settings }).expect("reopen");
    let mut now_us = NOON_US + 3_600_000_000;
    settle(&mut sealer, now_us);
    now_us += 2_000_000;
    settle(&mut sealer, now_us);
    assert!(!counters.rolled_up.load(Relaxed) && !counters.log_full.load(Relaxed));
    journal.append(&[session(1), worker(WORKER, "alice.rig1")], &[busy(3_700_000)]).expect("room");
    drop(journal);
    sealer.drain(now_us).expect("drain");
    let newest = SegmentStore::open(folder.path()).expect("store").segments().expect("segments").pop().expect("sealed");
    assert_eq!((newest.layout, newest.rows), (Layout::Replayable, 1));
}

/// A disk with so many bytes left, whose folders cannot be synced while the flag is set.
#[derive(Clone)]
struct SmallDisk(Arc<AtomicI64>, Arc<AtomicBool>);

impl SmallDisk {
    fn take(&self, file: &File, end: u64) -> io::Result<()> {
        let more = end.saturating_sub(file.metadata()?.len()) as i64;
        if self.0.load(Relaxed) < more {
            return Err(io::Error::from_raw_os_error(28));
        }
        self.0.fetch_sub(more, Relaxed);
        Ok(())
    }

    fn give_back(&self, path: &Path) {
        self.0.fetch_add(std::fs::metadata(path).map_or(0, |metadata| metadata.len()) as i64, Relaxed);
    }
}

impl Storage for SmallDisk {
    fn create(&self, path: &Path) -> io::Result<File> {
        self.give_back(path);
        Disk.create(path)
    }

    fn fallocate(&self, file: &File, bytes: u64) -> io::Result<()> {
        self.take(file, bytes)?;
        Disk.fallocate(file, bytes)
    }

    fn write_at(&self, file: &File, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        self.take(file, offset + bytes.len() as u64)?;
        Disk.write_at(file, offset, bytes)
    }

    fn fsync(&self, file: &File) -> io::Result<()> {
        Disk.fsync(file)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.give_back(to);
        Disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.give_back(path);
        Disk.remove(path)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        if self.1.load(Relaxed) { Err(io::Error::from_raw_os_error(28)) } else { Disk.sync_folder(folder) }
    }
}

#[test]
fn a_full_disk_takes_sums_where_it_has_no_room_for_rows() {
    let folder = tempfile::tempdir().expect("folder");
    let settings = LogSettings { rolls_up_when_full: true, ..settings_of(folder.path(), 1, Layout::Full) };
    let disk = SmallDisk(Arc::new(AtomicI64::new(2 << 20)), Arc::default());
    let (mut journal, mut sealer, registry, counters) = ShareLog::open_with(settings.clone(), disk.clone()).expect("open");
    begin(&settings, &registry, &mut journal);
    let (mut next, mut now_us) = (0, NOON_US);
    let mut step = |journal: &mut otedama_sharelog::Journal, sealer: &mut otedama_sharelog::Sealer<SmallDisk>, rows: u32| {
        for _ in 0..rows / 250 {
            if journal.room_cells() > 512 {
                let batch: Vec<_> = (next..next + 250).map(busy).collect();
                journal.append_hashed(&[], &batch, &batch.iter().map(|row| hash(row.nonce)).collect::<Vec<_>>()).expect("room");
                next += 250;
            }
            now_us += 300_000;
            for _ in 0..5 {
                sealer.step(now_us).expect("a full disk is no error");
            }
        }
        next
    };
    let held = step(&mut journal, &mut sealer, 100_000);
    assert!(held > 50_000, "117 bytes of each would have filled 2 MiB after 18,000: {held}");
    assert!(counters.rolled_up.load(Relaxed) && counters.shares_rolled_up.load(Relaxed) > 30_000);
    disk.0.store(1 << 30, Relaxed);
    let held = {
        // A minute and more of rows: then the disk is tried with rows again.
        step(&mut journal, &mut sealer, 60_000);
        assert!(!counters.rolled_up.load(Relaxed) && !counters.log_full.load(Relaxed), "rows again");
        step(&mut journal, &mut sealer, 2000)
    };
    drop(journal);
    sealer.drain(NOON_US + 1_000_000_000).expect("drain");
    let report = verify(folder.path(), None).expect("verify");
    assert_eq!((report.problems, report.by_status[0]), (vec![], u64::from(held)));
    let newest = SegmentStore::open(folder.path()).expect("store").segments().expect("segments").pop().expect("sealed");
    assert_eq!(newest.layout, Layout::Full);
}

#[test]
fn a_segment_that_a_follower_may_have_read_is_not_made_of_sums_afterwards() {
    let folder = tempfile::tempdir().expect("folder");
    let settings = LogSettings { rolls_up_when_full: true, ..settings_of(folder.path(), 1, Layout::Replayable) };
    let disk = SmallDisk(Arc::new(AtomicI64::new(1 << 30)), Arc::default());
    let (mut journal, mut sealer, registry, _) = ShareLog::open_with(settings.clone(), disk.clone()).expect("open");
    begin(&settings, &registry, &mut journal);
    settle(&mut sealer, NOON_US);
    journal.append(&[], &(0..1000).map(busy).collect::<Vec<_>>()[..500]).expect("room");
    journal.append(&[], &(0..1000).map(busy).collect::<Vec<_>>()[500..]).expect("room");
    // The one sync of the folder that seals it fails behind the commit point, for want of room.
    disk.1.store(true, Relaxed);
    for step in 0..5 {
        sealer.step(NOON_US + step).expect("a full disk is no error");
    }
    let seen = SegmentStore::open(folder.path()).expect("store").segments().expect("segments");
    assert_eq!((seen.len(), seen[0].layout, seen[0].rows), (1, Layout::Replayable, 1000));
    disk.1.store(false, Relaxed);
    for step in 0..5 {
        sealer.step(NOON_US + 1_000_000 * (1 + step)).expect("room again");
    }
    drop(journal);
    sealer.drain(NOON_US + 10_000_000).expect("drain");
    let now = SegmentStore::open(folder.path()).expect("store").segments().expect("segments");
    assert_eq!((now.len(), now[0].layout, now[0].content_hash), (1, Layout::Replayable, seen[0].content_hash));
    assert_eq!(verify(folder.path(), None).expect("verify").problems, Vec::<String>::new());
}
