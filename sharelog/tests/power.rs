//! The power is cut, again and again, while a log of tier `disk` is written: every acknowledged row is there exactly once, and every row that is there resolves.
//!
//! The log lies on an ext4 file system in an image on a loop device. The file system's own "going down" ioctl ends it at once, with or without its journal flushed: what no sync
//! has brought to the device is gone, what a sync has is there. Then the image is mounted again and the log opened, as after a reboot. It needs root and loop devices and says
//! loudly where it skips. 24 cuts; 500 with OTEDAMA_LONG=1, over three batch policies each time. In every fourth cut segments are so large that they are written past the page
//! cache, and sealed ones are compressed as soon as they are there.
mod support;
use otedama_primitives::{RunId, ShareRow, ShareStatus};
use otedama_sharelog::store::{Cursor, CursorPosition, SegmentStore};
use otedama_sharelog::{DimensionReader, Disk, LogSettings, ShareLog, Storage, SyncStep, verify::verify};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use support::*;

/// A small generator: the test needs variety, not quality. Source: xorshift64, Marsaglia 2003.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Rows of the batches that one boot writes.
#[derive(Clone, Copy, Debug)]
enum Batches {
    Single,
    Mixed,
    Full,
}

impl Batches {
    const ALL: [Self; 3] = [Self::Single, Self::Mixed, Self::Full];

    fn rows(self, random: &mut Random) -> u32 {
        match self {
            Self::Single => 1,
            Self::Mixed => 1 + random.below(400) as u32,
            Self::Full => 512,
        }
    }
}

/// An ext4 image that can lose its power.
struct Machine {
    folder: tempfile::TempDir,
}

fn ran(program: &str, arguments: &[&str]) -> Result<Output, String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        Ok(output)
    } else {
        Err(format!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }
}

impl Machine {
    /// A mounted image, or why there is none here.
    fn new() -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("mounting needs root".into());
        }
        ran("perl", &["-e", "1"])?;
        let machine = Self { folder: tempfile::tempdir().map_err(|error| error.to_string())? };
        std::fs::create_dir(machine.mountpoint()).map_err(|error| error.to_string())?;
        ran("fallocate", &["-l", "256M", &machine.image()])?;
        ran("mkfs.ext4", &["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", &machine.image()])?;
        machine.power_on()?;
        Ok(machine)
    }

    fn image(&self) -> String {
        self.folder.path().join("image").to_string_lossy().into_owned()
    }

    fn mountpoint(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    fn power_on(&self) -> Result<(), String> {
        ran("mount", &["-o", "loop", &self.image(), &self.mountpoint().to_string_lossy()]).map(|_| ())
    }

    /// `_IOR('X', 125, u32)` of ext4 and XFS: 1 flushes the file system's journal first, 2 does not. Perl, as std has no ioctl and perl-base is on every Debian.
    fn cut(&self, flag: u32) {
        let shutdown = "open(my $f, '<', $ARGV[0]) or die $!; ioctl($f, 0x8004587d, pack('L', $ARGV[1])) or die $!";
        ran("perl", &["-e", shutdown, &self.mountpoint().to_string_lossy(), &flag.to_string()]).expect("the file system goes down");
    }

    fn power_off(&self) {
        // A file handle that is just being closed keeps it for a moment.
        for _ in 0..200 {
            if ran("umount", &[&self.mountpoint().to_string_lossy()]).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the image stays in use");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = ran("umount", &["-l", &self.mountpoint().to_string_lossy()]);
    }
}

/// Rows of a large segment: at 85 bytes each more than `DIRECT_FROM_BYTES`.
const LARGE_ROWS: u32 = 52_000;
/// Bytes from where on segments are written past the page cache.
const DIRECT_FROM_BYTES: u64 = 4 << 20;

fn power_settings(dir: &Path, boot: u32, is_large: bool) -> LogSettings {
    if is_large {
        return LogSettings { segment_rows: LARGE_ROWS, seal_after_ms: 600_000, journal_file_bytes: 1 << 20, ..settings(dir, boot) };
    }
    LogSettings { segment_rows: 4000, seal_after_ms: 7, journal_file_bytes: 128 << 10, ..settings(dir, boot) }
}

/// The real disk, which says whether a segment is being written past the page cache, and whose folders cannot be synced where that is wanted.
#[derive(Clone, Default)]
struct ProbedDisk {
    folders_fail: Arc<AtomicBool>,
    is_writing_direct: Arc<AtomicBool>,
}

impl Storage for ProbedDisk {
    fn create(&self, path: &Path) -> io::Result<File> {
        Disk.create(path)
    }

    fn create_direct(&self, path: &Path) -> io::Result<(File, bool)> {
        let (file, is_direct) = Disk.create_direct(path)?;
        self.is_writing_direct.store(is_direct, Ordering::Release);
        Ok((file, is_direct))
    }

    fn end_direct(&self, file: &File) -> io::Result<()> {
        Disk.end_direct(file)
    }

    fn fallocate(&self, file: &File, bytes: u64) -> io::Result<()> {
        Disk.fallocate(file, bytes)
    }

    fn write_at(&self, file: &File, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        Disk.write_at(file, offset, bytes)
    }

    fn fsync(&self, file: &File) -> io::Result<()> {
        Disk.fsync(file)
    }

    fn fdatasync(&self, file: &File) -> io::Result<()> {
        Disk.fdatasync(file)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Disk.rename(from, to)?;
        if to.extension().is_some_and(|extension| extension == "native") {
            self.is_writing_direct.store(false, Ordering::Release);
        }
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        Disk.remove(path)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        if self.folders_fail.load(Ordering::Acquire) { Err(io::Error::from_raw_os_error(5)) } else { Disk.sync_folder(folder) }
    }
}

/// One boot, up to its cut.
#[derive(Clone, Copy)]
struct Boot {
    number: u32,
    batches: Batches,
    is_synced: bool,
    is_large: bool,
}

/// Writes for a while with the threads that the pool has, cuts the power in the middle, and gives the rows acknowledged until then, and whether a segment was being written past the
/// page cache at that moment.
fn write_until_the_cut(machine: &Machine, dir: &Path, boot: Boot, random: &mut Random) -> (u32, bool) {
    let Boot { number: boot, batches, is_synced, is_large } = boot;
    let settings = power_settings(dir, boot, is_large);
    let disk = ProbedDisk::default();
    let open = if is_synced { ShareLog::open_synced_with::<ProbedDisk> } else { ShareLog::open_with::<ProbedDisk> };
    let (mut journal, mut sealer, registry, counters) = open(settings.clone(), disk.clone()).expect("open");
    let mut syncer = sealer.take_sync();
    assert_eq!(syncer.is_some(), is_synced);
    let mut packer = sealer.take_packer(0).expect("packer");
    registry.run(&run_record(settings.run)).expect("run");
    let stop = AtomicBool::new(false);
    let acknowledged = AtomicU32::new(0);
    let mut cut_after = Duration::from_micros(if is_large { random.below(8000) } else { 3000 + random.below(40_000) });
    let waits_for_the_end = random.below(2) == 0;
    let flag = 1 + random.below(2) as u32;
    let mut random = Random(random.0 ^ 0x9E37_79B9_7F4A_7C15);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let started = Instant::now();
            while !stop.load(Ordering::Acquire) {
                // After the cut everything fails, which is what this is about.
                let _ = sealer.step(NOON_US + started.elapsed().as_micros() as u64);
                std::thread::yield_now();
            }
        });
        threads.spawn(|| {
            while !stop.load(Ordering::Acquire) {
                let _ = packer.step(|| !stop.load(Ordering::Acquire));
            }
        });
        if let Some(syncer) = syncer.as_mut() {
            let stop = &stop;
            threads.spawn(move || {
                while !stop.load(Ordering::Acquire) {
                    match syncer.step() {
                        Ok(SyncStep::Idle) => std::thread::sleep(Duration::from_micros(50)),
                        Ok(_) => {}
                        Err(_) => std::thread::sleep(Duration::from_millis(1)),
                    }
                }
            });
        }
        threads.spawn(|| {
            let (mut nonce, mut sessions, mut jobs) = (0u32, 0u32, 0u32);
            let mut waiting = std::collections::VecDeque::new();
            while !stop.load(Ordering::Acquire) {
                if jobs == 0 || random.below(20) == 0 {
                    // A job that could not be recorded is not published.
                    if registry.job(&job(settings.run, jobs + 1)).is_err() {
                        break;
                    }
                    jobs += 1;
                }
                let mut dimensions = Vec::new();
                if sessions == 0 || random.below(4) == 0 {
                    sessions += 1;
                    dimensions.push(session(sessions));
                    dimensions.push(worker(u64::from(boot) << 32 | u64::from(sessions), &format!("worker.{boot}.{sessions}")));
                }
                let rows: Vec<_> = (nonce..nonce + batches.rows(&mut random))
                    .map(|nonce| ShareRow {
                        session: sessions,
                        worker: u64::from(boot) << 32 | u64::from(sessions),
                        job: jobs,
                        status: if nonce % 5 == 0 { ShareStatus::Stale as u8 } else { ShareStatus::Accepted as u8 },
                        ..row(nonce)
                    })
                    .collect();
                while journal.append(&dimensions, &rows).is_err() && !stop.load(Ordering::Acquire) {
                    std::thread::yield_now();
                }
                if stop.load(Ordering::Acquire) {
                    break;
                }
                nonce += rows.len() as u32;
                waiting.push_back((journal.position(), nonce));
                let durable = journal.durable_position();
                while let Some(&(position, rows)) = waiting.front()
                    && position <= durable
                {
                    waiting.pop_front();
                    acknowledged.store(rows, Ordering::Release);
                }
                if matches!(batches, Batches::Single) {
                    std::thread::sleep(Duration::from_micros(20));
                }
            }
        });
        // A boot whose first sync is late is given the time for one: a cut before it proves nothing.
        let patience = Instant::now();
        while acknowledged.load(Ordering::Acquire) == 0 && patience.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_micros(200));
        }
        // A large segment takes its time to gather: it is cut while it is being written, or soon after.
        let is_there = || {
            let is_sealed = counters.rows_sealed_of_run.load(Ordering::Relaxed) >= u64::from(LARGE_ROWS);
            if waits_for_the_end { is_sealed } else { disk.is_writing_direct.load(Ordering::Acquire) || is_sealed }
        };
        while is_large && !is_there() && patience.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_micros(50));
        }
        std::thread::sleep(std::mem::take(&mut cut_after));
        machine.cut(flag);
        stop.store(true, Ordering::Release);
    });
    // What was cut off never came to its name.
    (acknowledged.load(Ordering::Acquire), disk.is_writing_direct.load(Ordering::Acquire))
}

#[derive(Default, Debug)]
struct Tally {
    acknowledged: u64,
    lost: u64,
    survived_unacknowledged: u64,
    doubled: u64,
    problems: Vec<String>,
    /// Cuts that came while a segment was being written past the page cache.
    cut_direct_writes: u32,
    /// Segments of more than `DIRECT_FROM_BYTES` among what the cuts left.
    large_segments: u32,
    /// Compressed segments among it.
    packed_segments: u32,
}

/// What is in the log after a cut, against what was acknowledged before it.
fn look(dir: &Path, acknowledged: &BTreeMap<u32, u32>, tally: &mut Tally) {
    tally.problems.extend(verify(dir, None).expect("verify").problems);
    let metas = SegmentStore::open(dir).expect("the folder").segments().expect("segments");
    tally.large_segments += metas.iter().filter(|meta| meta.native_bytes >= DIRECT_FROM_BYTES).count() as u32;
    let files = std::fs::read_dir(dir).expect("list").map(|entry| entry.expect("entry").path());
    tally.packed_segments += files.filter(|path| path.extension().is_some_and(|extension| extension == "zst")).count() as u32;
    let mut found: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (run, nonce) in nonces(dir) {
        found.entry(run).or_default().push(nonce);
    }
    for (run, &rows) in acknowledged {
        let here = found.remove(run).unwrap_or_default();
        let mut unique = here.clone();
        unique.dedup();
        tally.doubled += (here.len() - unique.len()) as u64;
        tally.acknowledged += u64::from(rows);
        let kept = unique.iter().filter(|&&nonce| nonce < rows).count() as u64;
        tally.lost += u64::from(rows) - kept;
        tally.survived_unacknowledged += unique.len() as u64 - kept;
    }
}

fn cuts(is_synced: bool, cuts: u32, seed: u64) -> Result<Tally, String> {
    let mut random = Random(seed | 1);
    let mut tally = Tally::default();
    let mut boot = 0;
    let machine = Machine::new()?;
    // The log of a tenth of the cuts at a time: the image is small.
    let mut dir = machine.mountpoint().join("log-0");
    let mut acknowledged: BTreeMap<u32, u32> = BTreeMap::new();
    for cut in 0..cuts {
        boot += 1;
        let is_large = cut % 4 == 3;
        // Single rows would take seconds to become a large segment.
        let batches = if is_large { Batches::Full } else { Batches::ALL[cut as usize % 3] };
        let (rows, was_writing_direct) =
            write_until_the_cut(&machine, &dir, Boot { number: boot, batches, is_synced, is_large }, &mut random);
        acknowledged.insert(RunId::new(3, boot).prefix(), rows);
        machine.power_off();
        machine.power_on()?;
        tally.cut_direct_writes += u32::from(was_writing_direct);
        if cut % 10 == 9 || cut + 1 == cuts {
            boot += 1;
            let (journal, mut sealer, ..) = ShareLog::open(power_settings(&dir, boot, false)).expect("open after the cut");
            drop(journal);
            sealer.drain(NOON_US).expect("drain");
            drop(sealer);
            look(&dir, &acknowledged, &mut tally);
            std::fs::remove_dir_all(&dir).expect("remove");
            acknowledged.clear();
            dir = machine.mountpoint().join(format!("log-{}", cut + 1));
        }
    }
    machine.power_off();
    Ok(tally)
}

fn long() -> bool {
    std::env::var_os("OTEDAMA_LONG").is_some()
}

#[test]
fn no_row_acknowledged_in_tier_disk_is_lost_by_a_power_cut_and_every_survivor_resolves() {
    let wanted = if long() { 500 } else { 24 };
    let seed = u64::from(std::process::id()) << 20 | 0xC07;
    match cuts(true, wanted, seed) {
        Ok(tally) => {
            println!("{wanted} power cuts in tier disk, seed {seed}: {tally:?}");
            assert_eq!((tally.lost, tally.doubled), (0, 0), "seed {seed}: {tally:?}");
            assert_eq!(tally.problems, Vec::<String>::new(), "seed {seed}");
            assert!(tally.acknowledged > u64::from(wanted) * 10, "{tally:?}");
            assert!(tally.large_segments > 0 && tally.packed_segments > 0, "{tally:?}");
            assert!(!long() || tally.cut_direct_writes > 0, "{tally:?}");
        }
        Err(why) => println!("skipped: no power was cut, tier disk is NOT tested here: {why}"),
    }
}

#[test]
fn the_same_cuts_lose_rows_that_tier_process_acknowledged() {
    // A harness that has never shown a loss proves nothing.
    match cuts(false, if long() { 50 } else { 6 }, 0xBEEF) {
        Ok(tally) => {
            println!("power cuts in tier process, which promises nothing against them: {tally:?}");
            assert!(tally.lost > 0, "{tally:?}");
        }
        Err(why) => println!("skipped: no power was cut: {why}"),
    }
}

#[test]
fn what_a_follower_told_others_of_is_there_after_a_power_cut() {
    let machine = match Machine::new() {
        Ok(machine) => machine,
        Err(why) => return println!("skipped: no power was cut: {why}"),
    };
    let dir = machine.mountpoint().join("log");
    let disk = ProbedDisk::default();
    let position = {
        let settings = LogSettings { seal_after_ms: 600_000, ..power_settings(&dir, 1, false) };
        let (mut journal, mut sealer, registry, _) = ShareLog::open_with(settings.clone(), disk.clone()).expect("open");
        begin(&settings, &registry, &mut journal);
        // From here on a segment is renamed, and its name is not durable: the power goes before the folder's fsync.
        disk.folders_fail.store(true, Ordering::Release);
        journal.append(&[], &(0..100).map(row).collect::<Vec<_>>()).expect("room");
        drop(journal);
        sealer.drain(NOON_US).expect_err("the folder cannot be synced");
        // A follower sees it and passes it on, with records behind it that nothing has synced.
        let store = SegmentStore::open(&dir).expect("the folder");
        assert_eq!(store.segments().expect("segments").len(), 1);
        store.keep_names().expect("the disk itself is sound");
        for counter in 2..200 {
            registry.job(&job(settings.run, counter)).expect("record");
        }
        let mut reader = DimensionReader::from(&dir, 0).expect("records");
        for entry in reader.by_ref() {
            entry.expect("a sound log");
        }
        let position = CursorPosition { segment: 1, dimensions: reader.offset() };
        Cursor::open(&dir, "follower").expect("a cursor").store(position).expect("stored");
        machine.cut(2);
        position
    };
    machine.power_off();
    machine.power_on().expect("power");
    assert_eq!(SegmentStore::open(&dir).expect("the folder").segments().expect("segments").len(), 1, "its number would go to other rows");
    assert_eq!(Cursor::open(&dir, "follower").expect("a cursor").load().expect("whole"), position);
    let end = std::fs::metadata(dir.join("dimensions.log")).expect("records").len();
    assert!(end >= position.dimensions, "{end} bytes of records, {} were passed", position.dimensions);
    machine.power_off();
}
