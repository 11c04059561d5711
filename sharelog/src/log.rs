//! Opening a share log: lock, epoch, recovery of what an earlier process left, and the four handles.
use crate::dimensions::{DIMENSIONS_START, DimensionLog, Registry};
use crate::ends;
use crate::error::LogError;
use crate::folder::{self, seg_of};
use crate::journal::Journal;
use crate::journal_format::{
    BATCH_CELLS_MAX, CELL, DURABLE_END_OFFSET, FIRST_CELL, HeaderProblem, JournalHeader, PREAMBLE, durable_end, row_sequence,
};
use crate::layout::Layout;
use crate::sealer::{FILES_MAX, Sealer, SealerParts, Source, least_max_bytes};
use crate::segment::SEGMENT_ROWS_MAX;
use crate::storage::{Disk, Storage};
use crate::store;
use crate::sync::new_sync;
use otedama_killpoint::pass;
use otedama_primitives::RunId;
use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Settings of a log, from `[log]` and `[pool]`.
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// The folder; created where it is missing.
    pub dir: PathBuf,
    /// `[pool] name`.
    pub pool: String,
    /// This boot.
    pub run: RunId,
    /// Rows at which a segment is sealed, 1 to `SEGMENT_ROWS_MAX`.
    pub segment_rows: u32,
    /// Milliseconds after its first row at which a segment is sealed.
    pub seal_after_ms: u64,
    /// Most bytes of the files in the folder: segments, dimension records, journal files, and what the journal's rows will take as segments, which lie there before a file is free
    /// again. A journal file that has no room within it is not made. Beyond it are the disk's own blocks for names, journal files set aside as damaged, and in tier `disk` the file
    /// that replaces one that failed.
    pub max_bytes: u64,
    /// Size of a journal file, a multiple of 4096 from 128 KiB to 4 GiB.
    pub journal_file_bytes: u64,
    /// Without a cursor: segments older than this are deleted.
    pub keep_ms: u64,
    /// With a cursor: segments are deleted this long after every cursor was seen behind them.
    pub keep_shipped_ms: u64,
    /// Whether someone follows the log (ClickHouse is configured): then only what every registered cursor has passed is deleted, and a missing cursor has passed nothing.
    pub has_cursor: bool,
    /// What the rows of new segments keep. Segments of other layouts stay as they are.
    pub layout: Layout,
    /// In the last eighth of `max_bytes`, and for a minute after the disk was full, new segments keep sums (`Layout::Rollup`); then rows again.
    pub rolls_up_when_full: bool,
}

/// What the log counts, for the stats page. Relaxed: each number stands for itself.
#[derive(Debug, Default)]
pub struct LogCounters {
    /// Segments sealed by this process.
    pub segments_sealed: AtomicU64,
    /// Segments of the folder that every cursor has passed, as of the last look, with those deleted by this process.
    pub segments_shipped: AtomicU64,
    /// Cold segments packed by this process.
    pub segments_packed: AtomicU64,
    /// Bytes that it saved by that.
    pub packed_away_bytes: AtomicU64,
    /// Segments deleted by this process.
    pub segments_deleted: AtomicU64,
    /// Rows sealed by this process, recovered ones included.
    pub rows_sealed: AtomicU64,
    /// Rows in sealed segments that a cursor has still to pass; 0 without a cursor.
    pub rows_unshipped: AtomicU64,
    /// Bytes of the folder.
    pub bytes: AtomicU64,
    /// The disk or `max_bytes` is full: the journal gets no more files until space returns. Those that it has are still filled.
    pub log_full: AtomicBool,
    /// Room is short and `rolls_up_when_full` is set: new segments keep sums instead of rows.
    pub rolled_up: AtomicBool,
    /// Shares of segments that were rolled up for want of room.
    pub shares_rolled_up: AtomicU64,
    /// Journal files ready for use.
    pub journal_spares: AtomicU64,
    /// Journal files set aside because a part of them was damaged.
    pub journals_damaged: AtomicU64,
    /// Rows of this run in sealed segments: they survive a power cut whatever the tier.
    pub rows_sealed_of_run: AtomicU64,
    /// Arrival of the oldest row that the sealer has read and not sealed, microseconds since the epoch; 0 where there is none.
    pub oldest_unsealed_us: AtomicU64,
    /// Bytes of journal behind the last sync that a power cut took, as recovery found. Nothing there was acknowledged.
    pub cut_bytes: AtomicU64,
    /// Tier `disk`: rounds of the sync thread.
    pub syncs: AtomicU64,
    /// Tier `disk`: rounds that failed; nothing was acknowledged by them.
    pub syncs_failed: AtomicU64,
    /// Tier `disk`: microseconds spent in rounds.
    pub sync_us: AtomicU64,
    /// Tier `disk`: the longest round, microseconds.
    pub sync_us_max: AtomicU64,
    /// Tier `disk`: journal files replaced because writing or syncing them failed.
    pub journals_replaced: AtomicU64,
    troubles: Mutex<[String; 3]>,
}

/// Who cannot write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// The sealer: segments, dimension records, new journal files.
    Sealing = 0,
    /// The sync thread of tier `disk`.
    Syncing = 1,
    /// The packer of cold segments. Shares are logged all the same.
    Packing = 2,
}

impl LogCounters {
    /// Keeps what keeps `who` from writing, or clears it. Takes a lock: not for a share core.
    pub fn trouble(&self, who: Trouble, error: Option<&LogError>) {
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(text) = troubles.get_mut(who as usize) {
            match error {
                Some(error) => *text = error.to_string(),
                None => text.clear(),
            }
        }
    }

    /// Why the log cannot be written right now; empty when it can.
    pub fn troubles(&self) -> Vec<String> {
        let troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        troubles.iter().take(Trouble::Packing as usize).filter(|text| !text.is_empty()).cloned().collect()
    }

    /// Why the last cold segment could not be packed; empty when it was.
    pub fn packing_trouble(&self) -> String {
        let troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        troubles.get(Trouble::Packing as usize).cloned().unwrap_or_default()
    }
}

/// What `ShareLog::open` gives: the end for the log stage, the one for the control core, the registry and the counters.
pub type LogHandles<S> = (Journal, Sealer<S>, Arc<Registry>, Arc<LogCounters>);

/// A share log.
pub struct ShareLog;

impl ShareLog {
    /// Opens the log on the real disk. See `open_with`.
    pub fn open(settings: LogSettings) -> Result<LogHandles<Disk>, LogError> {
        Self::open_with(settings, Disk)
    }

    /// Opens or creates a log. Reads headers only: what an earlier process left is sealed by `Sealer::step`, before any row of this run.
    /// `LogError::Locked` when another process has the folder.
    pub fn open_with<S: Storage>(settings: LogSettings, storage: S) -> Result<LogHandles<S>, LogError> {
        Self::open_as(settings, storage, false)
    }

    /// Opens a log of tier `disk` on the real disk. See `open_synced_with`.
    pub fn open_synced(settings: LogSettings) -> Result<LogHandles<Disk>, LogError> {
        Self::open_synced_with(settings, Disk)
    }

    /// Opens or creates a log of tier `disk`: `Journal::durable_position` follows the sync thread, which is `Sealer::take_sync`.
    pub fn open_synced_with<S: Storage>(settings: LogSettings, storage: S) -> Result<LogHandles<S>, LogError> {
        Self::open_as(settings, storage, true)
    }

    fn open_as<S: Storage>(settings: LogSettings, storage: S, is_synced: bool) -> Result<LogHandles<S>, LogError> {
        check(&settings)?;
        let dir = settings.dir.clone();
        std::fs::create_dir_all(&dir).map_err(LogError::io("create", &dir))?;
        let lock = Arc::new(folder::lock(&dir)?);
        pass("open.locked");
        let storage = Arc::new(storage);
        let epoch = folder::ensure_epoch(&*storage, &dir)?;
        pass("open.epoch_known");
        let counters = Arc::new(LogCounters::default());
        let recovery = recover(&*storage, &dir, &counters)?;
        pass("open.recovered");

        let dimensions = Arc::new(DimensionLog::open(storage.clone(), &dir, epoch, recovery.dimensions_end, is_synced)?);
        pass("open.dimensions_open");
        let (spares_tx, spares_rx) = rtrb::RingBuffer::new(FILES_MAX);
        let (full_tx, full_rx) = rtrb::RingBuffer::new(FILES_MAX);
        let (journal_sync, sync) = if is_synced {
            let (journal, files, syncer) = new_sync(storage.clone(), &dir, counters.clone(), lock.clone(), FILES_MAX);
            (Some(journal), Some((files, syncer)))
        } else {
            (None, None)
        };
        let folders = storage.clone();
        let mut sealer = Sealer::new(SealerParts {
            storage,
            settings,
            epoch,
            counters: counters.clone(),
            dimensions: dimensions.clone(),
            spares: spares_tx,
            full: full_rx,
            sync,
            leftovers: recovery.leftovers,
            next_file_number: recovery.next_file_number,
            next_slot: recovery.next_slot,
            next_sequence: recovery.next_sequence,
            covered: recovery.covered,
            ends_from: recovery.ends_from,
            sealed_bytes: recovery.sealed_bytes,
            lock: lock.clone(),
        });
        match sealer.make_first() {
            Ok(()) => {}
            // The journal has no room then, which the log stage sees; the sealer makes a file as soon as there is space.
            Err(error) if error.is_disk_full() => counters.log_full.store(true, Ordering::Relaxed),
            Err(error) => return Err(error),
        }
        if is_synced {
            // Names are what a power cut takes first: the folder's in its parent, the files' in the folder.
            let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            for folder in [parent, &dir] {
                folders.sync_folder(folder).map_err(LogError::io("fsync", folder))?;
            }
        }
        pass("open.ready");
        let journal = Journal::new(spares_rx, full_tx, journal_sync, lock.clone());
        let registry = Arc::new(Registry::new(dimensions, lock));
        Ok((journal, sealer, registry, counters))
    }
}

fn check(settings: &LogSettings) -> Result<(), LogError> {
    if !(1..=SEGMENT_ROWS_MAX).contains(&settings.segment_rows) {
        return Err(LogError::Setting { key: "segment_rows", what: format!("{} is not in 1..={SEGMENT_ROWS_MAX}", settings.segment_rows) });
    }
    let bytes = settings.journal_file_bytes;
    if !(128 << 10..=4 << 30).contains(&bytes) || !bytes.is_multiple_of(4096) {
        return Err(LogError::Setting {
            key: "journal_file_bytes",
            what: format!("{bytes} is not a multiple of 4096 from 128 KiB to 4 GiB"),
        });
    }
    let least = least_max_bytes(settings);
    if settings.max_bytes < least {
        return Err(LogError::Setting {
            key: "max_bytes",
            what: format!(
                "{} has no room for journal files of {bytes} bytes and their segments; give it {least} or more",
                settings.max_bytes
            ),
        });
    }
    Ok(())
}

const _: () = assert!((BATCH_CELLS_MAX + FIRST_CELL) as u64 * CELL as u64 <= 128 << 10, "every batch fits the smallest file");

struct Recovery {
    leftovers: VecDeque<Source>,
    next_file_number: u32,
    next_slot: u32,
    next_sequence: u32,
    covered: u64,
    dimensions_end: u64,
    /// Where the search for jobs that an earlier run left open begins.
    ends_from: u64,
    sealed_bytes: u64,
}

/// Clears what a killed process left half done and finds what is still to be sealed. Headers only.
fn recover<S: Storage>(storage: &S, dir: &Path, counters: &LogCounters) -> Result<Recovery, LogError> {
    let listing = folder::list(dir)?;
    for path in &listing.temporary {
        storage.remove(path).map_err(LogError::io("remove", path))?;
    }

    let ends_from = ends::look_back(dir, &listing);
    let mut leftovers = Vec::new();
    let mut next_slot = 0;
    for path in &listing.journals {
        let slot = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .and_then(|stem| stem.strip_prefix("journal-"))
            .and_then(|slot| slot.parse::<u32>().ok());
        next_slot = next_slot.max(slot.map_or(0, |slot| slot.saturating_add(1)));
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(LogError::io("open", path))?;
        let bytes = file.metadata().map_err(LogError::io("stat", path))?.len();
        let mut preamble = [0u8; PREAMBLE];
        let front = preamble.get_mut(..bytes.min(PREAMBLE as u64) as usize).unwrap_or_default();
        file.read_exact_at(front, 0).map_err(LogError::io("read", path))?;
        match JournalHeader::decode(front) {
            Ok(header) => {
                // A file that was cut still has its first rows.
                let cells = header.cells.min(u32::try_from(bytes / CELL as u64).unwrap_or(u32::MAX));
                leftovers.push(Source {
                    header: JournalHeader { cells, ..header },
                    path: path.clone(),
                    file,
                    cell: FIRST_CELL,
                    taken: 0,
                    finished: true,
                    leftover: true,
                    damaged: cells < header.cells,
                    durable_end: preamble
                        .get(DURABLE_END_OFFSET..)
                        .and_then(|rest| rest.first_chunk())
                        .and_then(|word| durable_end(u64::from_le_bytes(*word), header.file_number)),
                    map: None,
                    disk: None,
                });
            }
            Err(HeaderProblem::Version(version)) => {
                return Err(LogError::damaged(
                    path,
                    format!("journal version {version}: start the release that wrote it once, it will seal it"),
                ));
            }
            Err(_) => {
                // Never thrown away: a person may still read rows out of it.
                let aside = path.with_extension("damaged");
                storage.rename(path, &aside).map_err(LogError::io("set aside", path))?;
                counters.journals_damaged.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    leftovers.sort_by_key(|source| source.header.file_number);

    let mut next_sequence = 1;
    let mut covered = 0;
    let mut dimensions_end = DIMENSIONS_START;
    if let Some((&key, _)) = listing.segments.iter().rev().find(|(_, files)| files.has_block()) {
        let meta = store::read_meta(dir, seg_of(key))?;
        let Some(meta) = meta else {
            return Err(LogError::damaged(&store::plain_path(dir, seg_of(key)), "it vanished while the log was opened"));
        };
        next_sequence = key.0.saturating_add(1);
        covered = meta.journal_end();
        dimensions_end = meta.dimensions_end;
    }
    let size = |path: PathBuf| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    let sealed = listing.segments.iter().filter(|(_, files)| files.has_block());
    let sealed_bytes = sealed
        .map(|(&key, files)| {
            let seg = seg_of(key);
            let block = if files.native { store::plain_path(dir, seg) } else { store::packed_path(dir, seg) };
            size(block) + size(store::meta_path(dir, seg))
        })
        .sum();
    for (&key, _) in listing.segments.iter().filter(|(_, files)| files.native && files.packed) {
        // A packer was killed before it removed the plain one, which nobody has to take on trust.
        let path = store::packed_path(dir, seg_of(key));
        storage.remove(&path).map_err(LogError::io("remove", &path))?;
    }
    for (&key, _) in listing.segments.iter().filter(|(_, files)| files.meta && !files.has_block()) {
        let path = store::meta_path(dir, seg_of(key));
        // The rows of a segment that was never committed are still in the journal. Where they are not, a committed block was lost since: its number is not used again
        // and its meta stays, so that verify tells.
        let first_file = store::read_meta(dir, seg_of(key)).ok().flatten().and_then(|meta| meta.journal.first().map(|range| range.file));
        let rows_are_here = |file| leftovers.iter().any(|source: &Source| source.header.file_number == file);
        if key.0 >= next_sequence && first_file.is_some_and(|file| !rows_are_here(file)) {
            next_sequence = key.0.saturating_add(1);
            continue;
        }
        storage.remove(&path).map_err(LogError::io("remove", &path))?;
    }
    for source in &leftovers {
        next_sequence = next_sequence.max(source.header.sealed.saturating_add(1));
    }
    for name in &listing.cursors {
        // A folder that lost its segments must not call a new one by a number that a follower has passed.
        if let Ok(Some(position)) = store::read_cursor(dir, name) {
            next_sequence = next_sequence.max(position.segment.saturating_add(1));
        }
    }
    let newest_file = leftovers.last().map_or(0, |source| source.header.file_number).max((covered >> 32) as u32);
    leftovers.retain(|source| {
        let wholly_covered = row_sequence(source.header.file_number, u32::MAX) < covered;
        if wholly_covered {
            // Sealed before the process died and not yet recycled. Removing needs no sync: at worst it is found again.
            let _ = storage.remove(&source.path);
        }
        !wholly_covered
    });
    Ok(Recovery {
        leftovers: leftovers.into(),
        next_file_number: newest_file + 1,
        next_slot,
        next_sequence,
        covered,
        dimensions_end,
        ends_from,
        sealed_bytes,
    })
}
