//! Reading the sealed part of a log, without its lock: segments, and the cursors of those who follow it.
use crate::cold;
use crate::dimensions::{DIMENSIONS_FILE, DIMENSIONS_START};
use crate::error::LogError;
use crate::folder::{self, Listing, checked_line, read_checked_line, seg_of};
use crate::segment::{SegmentMeta, segment_name};
use crate::storage::{Disk, Storage};
use std::path::{Path, PathBuf};

/// What can be read of a folder, and what cannot.
#[derive(Debug, Default)]
pub struct Readable {
    /// Segments whose metas are sound, oldest first.
    pub metas: Vec<SegmentMeta>,
    /// The others, oldest first.
    pub damaged: Vec<DamagedMeta>,
}

/// A segment of which nothing is known, as its meta is damaged.
#[derive(Debug)]
pub struct DamagedMeta {
    /// Its place among the segments.
    pub sequence: u32,
    /// What is wrong with it.
    pub error: LogError,
    /// Its rows arrived at or after this, microseconds since the epoch: by its neighbours.
    pub since_us: u64,
    /// And at or before this.
    pub until_us: u64,
}

/// The sealed segments of a folder.
pub struct SegmentStore {
    dir: PathBuf,
}

impl SegmentStore {
    /// Opens the folder for reading. It need not be locked, nor idle.
    pub fn open(dir: &Path) -> Result<Self, LogError> {
        folder::list(dir)?;
        Ok(Self { dir: dir.to_path_buf() })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Every sealed segment, oldest first. Segments that retention removes meanwhile are left out.
    pub fn segments(&self) -> Result<Vec<SegmentMeta>, LogError> {
        self.segments_after(0)
    }

    /// Sealed segments with a sequence above `sequence`, oldest first. A meta that cannot be read is an error: who follows the log must not pass its segment by.
    pub fn segments_after(&self, sequence: u32) -> Result<Vec<SegmentMeta>, LogError> {
        let mut metas = Vec::new();
        self.metas_after(sequence, |_, meta| meta.map(|meta| metas.push(meta)))?;
        Ok(metas)
    }

    /// As `segments`, for who asks a question of the log: a segment whose meta is damaged is left out and named beside the others, like one whose block is.
    pub fn readable(&self) -> Result<Readable, LogError> {
        let mut readable = Readable::default();
        self.metas_after(0, |sequence, meta| {
            match meta {
                Ok(meta) => {
                    for damaged in readable.damaged.iter_mut().rev().take_while(|damaged| damaged.until_us == u64::MAX) {
                        damaged.until_us = meta.first_us;
                    }
                    readable.metas.push(meta);
                }
                Err(error @ LogError::Damaged { .. }) => {
                    // Arrival never goes back.
                    let since_us = readable.metas.last().map_or(0, |meta| meta.last_us);
                    readable.damaged.push(DamagedMeta { sequence, error, since_us, until_us: u64::MAX });
                }
                Err(error) => return Err(error),
            }
            Ok(())
        })?;
        Ok(readable)
    }

    /// Gives sequence and meta of each segment, or what is wrong with the meta.
    fn metas_after(
        &self,
        sequence: u32,
        mut take: impl FnMut(u32, Result<SegmentMeta, LogError>) -> Result<(), LogError>,
    ) -> Result<(), LogError> {
        let listing = folder::list(&self.dir)?;
        for (&key, files) in listing.segments.range((sequence.saturating_add(1), 0)..) {
            if !files.has_block() || (sequence == u32::MAX) {
                continue;
            }
            if let Some(meta) = read_meta(&self.dir, seg_of(key)).transpose() {
                take(key.0, meta)?;
            }
        }
        Ok(())
    }

    /// Makes the names of the segments listed so far durable, for a follower that tells others of them: a segment can be seen a moment before its name would survive a power
    /// cut, and where one goes, its number goes to other rows.
    pub fn keep_names(&self) -> Result<(), LogError> {
        Disk.sync_folder(&self.dir).map_err(LogError::io("fsync", &self.dir))
    }

    /// The `.native` file of a segment: one block that ClickHouse takes as it is. Of a cold segment it is `NAME.native.zst` instead, which `read_block` takes as well.
    pub fn native_path(&self, meta: &SegmentMeta) -> PathBuf {
        plain_path(&self.dir, meta.seg)
    }

    /// True while the segment is in the folder, cold or not.
    pub fn is_here(&self, meta: &SegmentMeta) -> bool {
        has_block(&self.dir, meta.seg)
    }

    /// Reads a segment's block into `into` (reused) and checks size and crc32c against its meta; a cold one is unpacked. Ok(false): retention has removed it.
    pub fn read_native(&self, meta: &SegmentMeta, into: &mut Vec<u8>) -> Result<bool, LogError> {
        read_block(&self.native_path(meta), meta.native_bytes, meta.crc32c, into)
    }
}

/// Reads the block of a segment into `into` (reused), from the `.native` file at `plain` or the `.native.zst` beside it. `bytes` and `crc32c` are those of the block, from its meta.
/// Ok(false): there is neither.
pub fn read_block(plain: &Path, bytes: u64, crc32c: u32, into: &mut Vec<u8>) -> Result<bool, LogError> {
    let opened = |path: &Path| match std::fs::File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(LogError::io("open", path)(error)),
    };
    into.clear();
    let Some(mut file) = opened(plain)? else {
        // The plain one goes when the packed one is there: looked for in this order, one of them is found.
        let packed = plain.with_extension("native.zst");
        let Some(file) = opened(&packed)? else { return Ok(false) };
        return unpack_file(file, &packed, bytes, crc32c, into).map(|()| true);
    };
    // One allocation of the right size, kept by the caller for the next segment; a file that is longer than its meta says is still seen as such.
    into.reserve(usize::try_from(bytes).unwrap_or(0).min(1 << 28) + 1);
    std::io::Read::read_to_end(&mut file, into).map_err(LogError::io("read", plain))?;
    check_block(plain, bytes, crc32c, into).map(|()| true)
}

/// Reads the packed block at `path`.
pub(crate) fn read_packed(path: &Path, meta: &SegmentMeta, into: &mut Vec<u8>) -> Result<(), LogError> {
    let file = std::fs::File::open(path).map_err(LogError::io("open", path))?;
    unpack_file(file, path, meta.native_bytes, meta.crc32c, into)
}

fn unpack_file(mut file: std::fs::File, path: &Path, bytes: u64, crc32c: u32, into: &mut Vec<u8>) -> Result<(), LogError> {
    let mut packed = Vec::new();
    std::io::Read::read_to_end(&mut file, &mut packed).map_err(LogError::io("read", path))?;
    cold::unpack(&packed, bytes, into).map_err(|what| LogError::damaged(path, what))?;
    check_block(path, bytes, crc32c, into)
}

fn check_block(path: &Path, bytes: u64, crc32c: u32, block: &[u8]) -> Result<(), LogError> {
    if block.len() as u64 != bytes {
        return Err(LogError::damaged(path, format!("{} bytes where its meta has {bytes}", block.len())));
    }
    if crc32c::crc32c(block) != crc32c {
        return Err(LogError::damaged(path, "its crc does not match"));
    }
    Ok(())
}

/// Held by a reader that names the files of segments itself, such as an SQL engine: until the file is dropped, no `.native` turns into a `.native.zst`, so that a segment is met once. None
/// where the folder has no log yet.
pub fn hold_forms(dir: &Path) -> Result<Option<std::fs::File>, LogError> {
    match lock_forms(dir, rustix::fs::FlockOperation::LockShared) {
        Err(LogError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        held => held,
    }
}

/// Taken for the moment in which a segment changes its form; None while a reader holds the forms.
pub(crate) fn lock_forms_to_change(dir: &Path) -> Result<Option<std::fs::File>, LogError> {
    lock_forms(dir, rustix::fs::FlockOperation::NonBlockingLockExclusive)
}

fn lock_forms(dir: &Path, operation: rustix::fs::FlockOperation) -> Result<Option<std::fs::File>, LogError> {
    // The dimension log is there as long as the folder is, and is never replaced: no file of its own is needed.
    lock_file(&dir.join(DIMENSIONS_FILE), operation)
}

/// A lock on a file that is there; None where another process has it and `operation` does not wait.
fn lock_file(path: &Path, operation: rustix::fs::FlockOperation) -> Result<Option<std::fs::File>, LogError> {
    let file = std::fs::File::open(path).map_err(LogError::io("open", path))?;
    match rustix::fs::flock(&file, operation) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(LogError::io("lock", path)(error.into())),
    }
}

/// Taken by whoever sends segments again that a follower's server had acknowledged and lost: a pool that runs, or `otedama reconcile --repair`. Two that did so at once would
/// each find a segment missing, and double it. Held until the file is dropped; None while another process has it. Readers and the log's own writer do not ask for it.
pub fn lock_resending(dir: &Path) -> Result<Option<std::fs::File>, LogError> {
    // The file of the epoch is there as long as the folder is, and is never replaced: no file of its own is needed.
    lock_file(&dir.join(folder::EPOCH_FILE), rustix::fs::FlockOperation::NonBlockingLockExclusive)
}

/// True while a process has the folder open for writing.
pub fn is_being_written(dir: &Path) -> Result<bool, LogError> {
    match folder::lock(dir) {
        Ok(_) => Ok(false),
        Err(LogError::Locked { .. }) => Ok(true),
        Err(error) => Err(error),
    }
}

pub(crate) fn plain_path(dir: &Path, seg: u64) -> PathBuf {
    dir.join(format!("{}.native", segment_name(seg)))
}

pub(crate) fn packed_path(dir: &Path, seg: u64) -> PathBuf {
    dir.join(format!("{}.native.zst", segment_name(seg)))
}

/// True where a segment's block is there in either form; asked in the order in which one follows the other.
fn has_block(dir: &Path, seg: u64) -> bool {
    plain_path(dir, seg).exists() || packed_path(dir, seg).exists()
}

pub(crate) fn meta_path(dir: &Path, seg: u64) -> PathBuf {
    dir.join(format!("{}.meta", segment_name(seg)))
}

/// The meta of a segment whose block was listed; None when both are gone by now.
pub(crate) fn read_meta(dir: &Path, seg: u64) -> Result<Option<SegmentMeta>, LogError> {
    let path = meta_path(dir, seg);
    match std::fs::read(&path) {
        Ok(bytes) => match SegmentMeta::decode(&segment_name(seg), &bytes) {
            Ok(meta) => Ok(Some(meta)),
            Err(what) => Err(LogError::damaged(&path, what)),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            // Retention removes the .native first: with that gone too, all is well.
            if has_block(dir, seg) { Err(LogError::damaged(&path, "it is missing beside its .native")) } else { Ok(None) }
        }
        Err(error) => Err(LogError::io("read", &path)(error)),
    }
}

/// How far a follower of the log has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CursorPosition {
    /// Sequence of the last segment passed; 0 for none.
    pub segment: u32,
    /// Offset in `dimensions.log` up to which entries were passed.
    pub dimensions: u64,
}

/// A durable cursor: retention keeps what it has not passed.
pub struct Cursor {
    dir: PathBuf,
    name: String,
}

impl Cursor {
    /// Opens cursor `name` of a folder and registers it at the start where it is new. Names are lower-case letters and digits.
    pub fn open(dir: &Path, name: &str) -> Result<Self, LogError> {
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()) {
            return Err(LogError::Setting { key: "cursor name", what: format!("{name:?} is not of lower-case letters and digits") });
        }
        let cursor = Self { dir: dir.to_path_buf(), name: name.to_string() };
        if read_cursor(dir, name)?.is_none() {
            cursor.store(CursorPosition::default())?;
        }
        Ok(cursor)
    }

    /// The stored position.
    pub fn load(&self) -> Result<CursorPosition, LogError> {
        Ok(read_cursor(&self.dir, &self.name)?.unwrap_or_default())
    }

    /// Stores a position; it is durable when this returns, and so are the records that it has passed. Were a power cut to take them, others would stand at their offsets, and be
    /// taken for passed.
    pub fn store(&self, position: CursorPosition) -> Result<(), LogError> {
        if position.dimensions > DIMENSIONS_START {
            let path = self.dir.join(DIMENSIONS_FILE);
            match std::fs::File::open(&path).and_then(|file| Disk.fdatasync(&file)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(LogError::io("fdatasync", &path)(error)),
                _ => {}
            }
        }
        let line = checked_line(&format!("otedama-cursor 1 {} {}", position.segment, position.dimensions));
        folder::replace(&Disk, &self.dir, &format!("cursor-{}", self.name), line.as_bytes())
    }
}

/// The position of a cursor, None where it is not registered.
pub(crate) fn read_cursor(dir: &Path, name: &str) -> Result<Option<CursorPosition>, LogError> {
    let path = dir.join(format!("cursor-{name}"));
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(LogError::io("read", &path)(error)),
    };
    let position = read_checked_line(&bytes).and_then(|text| {
        let (segment, dimensions) = text.strip_prefix("otedama-cursor 1 ")?.split_once(' ')?;
        Some(CursorPosition { segment: segment.parse().ok()?, dimensions: dimensions.parse().ok()? })
    });
    position
        .map(Some)
        .ok_or_else(|| LogError::damaged(&path, "it is not the line that was written; remove it to ship from the start again"))
}

/// The smallest position of all registered cursors; None where there is none. A damaged cursor has passed nothing.
pub(crate) fn slowest_cursor(dir: &Path, listing: &Listing) -> Option<CursorPosition> {
    listing.cursors.iter().map(|name| read_cursor(dir, name).ok().flatten().unwrap_or_default()).min_by_key(|position| position.segment)
}
