//! The folder of the log: which files there are, its lock and its epoch.
use crate::error::LogError;
use crate::segment::parse_segment_name;
use crate::storage::Storage;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::path::{Path, PathBuf};

pub(crate) const LOCK_FILE: &str = "LOCK";
pub(crate) const EPOCH_FILE: &str = "epoch";
const CURSOR_PREFIX: &str = "cursor-";

/// What stands beside a segment's name.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(crate) struct SegmentFiles {
    pub(crate) native: bool,
    /// The block packed, `.native.zst`. Beside a `.native` it does not count: a packer was killed before it came to remove that.
    pub(crate) packed: bool,
    pub(crate) meta: bool,
}

impl SegmentFiles {
    /// True where the block is there: the segment is sealed.
    pub(crate) fn has_block(self) -> bool {
        self.native || self.packed
    }
}

/// The files of a folder by role.
#[derive(Default, Debug)]
pub(crate) struct Listing {
    /// By (sequence, epoch): the order of sealing, also where a folder got a second epoch.
    pub(crate) segments: BTreeMap<(u32, u32), SegmentFiles>,
    pub(crate) journals: Vec<PathBuf>,
    /// Journal files set aside by recovery because parts of them were damaged.
    pub(crate) set_aside: Vec<PathBuf>,
    pub(crate) temporary: Vec<PathBuf>,
    pub(crate) cursors: Vec<String>,
    pub(crate) foreign: Vec<String>,
}

/// The segment number of a listing's key.
pub(crate) fn seg_of((sequence, epoch): (u32, u32)) -> u64 {
    (u64::from(epoch) << 32) | u64::from(sequence)
}

pub(crate) fn list(dir: &Path) -> Result<Listing, LogError> {
    let mut listing = Listing::default();
    for entry in std::fs::read_dir(dir).map_err(LogError::io("list", dir))? {
        let entry = entry.map_err(LogError::io("list", dir))?;
        let path = entry.path();
        let Ok(name) = entry.file_name().into_string() else {
            listing.foreign.push(entry.file_name().to_string_lossy().into_owned());
            continue;
        };
        let key = |stem: &str| parse_segment_name(stem).map(|seg| (seg as u32, (seg >> 32) as u32));
        if name.ends_with(".tmp") {
            listing.temporary.push(path);
        } else if let Some(key) = name.strip_suffix(".native").and_then(key) {
            listing.segments.entry(key).or_default().native = true;
        } else if let Some(key) = name.strip_suffix(".native.zst").and_then(key) {
            listing.segments.entry(key).or_default().packed = true;
        } else if let Some(key) = name.strip_suffix(".meta").and_then(key) {
            listing.segments.entry(key).or_default().meta = true;
        } else if name.starts_with("journal-") && name.ends_with(".open") {
            listing.journals.push(path);
        } else if name.starts_with("journal-") && name.ends_with(".damaged") {
            listing.set_aside.push(path);
        } else if let Some(cursor) = name.strip_prefix(CURSOR_PREFIX) {
            listing.cursors.push(cursor.to_string());
        } else if ![LOCK_FILE, EPOCH_FILE, crate::dimensions::DIMENSIONS_FILE].contains(&name.as_str()) {
            listing.foreign.push(name);
        }
    }
    listing.journals.sort();
    listing.foreign.sort();
    Ok(listing)
}

/// The writer's hold on a folder, as long as it is not dropped.
#[derive(Debug)]
pub(crate) struct WriterLock {
    /// `LOCK`, which every release asks for.
    _file: File,
    /// The folder itself: a `LOCK` that somebody removed is made anew by the next writer, and locked by both.
    _folder: File,
}

/// Takes the writer's lock of the folder.
pub(crate) fn lock(dir: &Path) -> Result<WriterLock, LogError> {
    let path = dir.join(LOCK_FILE);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(LogError::io("open", &path))?;
    let folder = File::open(dir).map_err(LogError::io("open", dir))?;
    for (handle, path) in [(&file, path.as_path()), (&folder, dir)] {
        match rustix::fs::flock(handle, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(LogError::Locked { path: dir.to_path_buf() }),
            // A network's file system may lock files and no folders.
            Err(_) if path == dir => {}
            Err(error) => return Err(LogError::io("lock", path)(error.into())),
        }
    }
    Ok(WriterLock { _file: file, _folder: folder })
}

/// Writes a small file whole: temporary, fsync, rename, fsync of the folder.
pub(crate) fn replace<S: Storage + ?Sized>(storage: &S, dir: &Path, name: &str, bytes: &[u8]) -> Result<(), LogError> {
    let path = dir.join(name);
    let temporary = dir.join(format!("{name}.tmp"));
    let file = storage.create(&temporary).map_err(LogError::io("create", &temporary))?;
    storage.write_all_at(&file, 0, bytes).map_err(LogError::io("write", &temporary))?;
    storage.fsync(&file).map_err(LogError::io("fsync", &temporary))?;
    storage.rename(&temporary, &path).map_err(LogError::io("rename", &temporary))?;
    storage.sync_folder(dir).map_err(LogError::io("fsync", dir))
}

/// A line of text with its crc32c, for files a person may look at.
pub(crate) fn checked_line(text: &str) -> String {
    format!("{text} {:08x}\n", crc32c::crc32c(text.as_bytes()))
}

/// The text of a `checked_line`.
pub(crate) fn read_checked_line(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?;
    let (text, _) = text.rsplit_once(' ')?;
    (checked_line(text).as_bytes() == bytes).then_some(text)
}

/// The folder's epoch: Ok(None) where there is none yet.
pub(crate) fn read_epoch(dir: &Path) -> Result<Option<u32>, LogError> {
    let path = dir.join(EPOCH_FILE);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(LogError::io("read", &path)(error)),
    };
    let epoch = read_checked_line(&bytes)
        .and_then(|text| text.strip_prefix("otedama-log 1 epoch "))
        .filter(|hex| hex.len() == 8)
        .and_then(|hex| u32::from_str_radix(hex, 16).ok());
    match epoch {
        Some(epoch) => Ok(Some(epoch)),
        None => Err(LogError::damaged(&path, "it is not the line that was written")),
    }
}

/// The folder's epoch, drawn now where it has none or a damaged one: a fresh epoch is always safe, a guessed one never.
pub(crate) fn ensure_epoch<S: Storage + ?Sized>(storage: &S, dir: &Path) -> Result<u32, LogError> {
    match read_epoch(dir) {
        Ok(Some(epoch)) => return Ok(epoch),
        Ok(None) | Err(LogError::Damaged { .. }) => {}
        Err(error) => return Err(error),
    }
    let mut bytes = [0u8; 4];
    let source = Path::new("/dev/urandom");
    File::open(source).and_then(|mut file| file.read_exact(&mut bytes)).map_err(LogError::io("read", source))?;
    let epoch = u32::from_le_bytes(bytes);
    replace(storage, dir, EPOCH_FILE, checked_line(&format!("otedama-log 1 epoch {epoch:08x}")).as_bytes())?;
    Ok(epoch)
}
