//! The way of a block into its file: summed while its bytes are in the cache, gathered in aligned memory, and written past the page cache where the file system can do so.
//!
//! Sealing is the largest stream of fresh pages that a pool makes: 45 MB per segment. Through the page cache each page is found, filled, tracked and written back by the
//! kernel, which cost more than everything else about a segment together, and pushes what other programs use out of memory. The same bytes out of one reused
//! buffer cost less (docs/decisions.md). What is read at once stays in the page cache: small segments, and all of them where a follower waits.
use crate::content_hash::ContentHash;
use crate::error::LogError;
use crate::storage::Storage;
use bytemuck::{Pod, Zeroable};
use std::fs::File;
use std::path::Path;

/// Segments from here on are written past the page cache, where nobody follows the log.
pub const DIRECT_FROM_BYTES: u64 = 4 << 20;
/// Addresses, lengths and offsets of direct writes are multiples of this: the largest logical block of disks.
const ALIGN: usize = 4096;
/// Bytes of a direct write: long enough that the wait for the disk is not its latency again and again.
const DIRECT_BYTES: usize = 4 << 20;
/// Bytes of a write through the page cache: they stay in the second-level cache from one copy to the other.
const CACHED_BYTES: usize = 1 << 18;
/// Bytes that are summed and copied at a time.
const PIECE_BYTES: usize = 1 << 17;

#[repr(C, align(4096))]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Page([u8; ALIGN]);

/// The memory that blocks are gathered in, kept from segment to segment.
#[derive(Default)]
pub(crate) struct Staging(Vec<Page>);

/// A file that is being written.
pub(crate) struct SegmentWriter<'a, S: Storage> {
    storage: &'a S,
    file: &'a File,
    path: &'a Path,
    staging: &'a mut [u8],
    /// Bytes gathered and not written.
    filled: usize,
    /// Bytes written.
    offset: u64,
    is_direct: bool,
    crc: u32,
    hash: ContentHash,
}

/// What was written.
pub(crate) struct Written {
    pub(crate) bytes: u64,
    pub(crate) crc32c: u32,
    pub(crate) content_hash: u64,
}

impl<'a, S: Storage> SegmentWriter<'a, S> {
    /// A writer into `file`, which is empty; `is_direct` says that it came from `Storage::create_direct` in that mode.
    pub(crate) fn new(storage: &'a S, file: &'a File, path: &'a Path, is_direct: bool, staging: &'a mut Staging) -> Self {
        let bytes = if is_direct { DIRECT_BYTES } else { CACHED_BYTES };
        if staging.0.len() < bytes / ALIGN {
            staging.0.resize(bytes / ALIGN, Page::zeroed());
        }
        let memory: &mut [u8] = bytemuck::cast_slice_mut(&mut staging.0);
        let staging = memory.get_mut(..bytes).unwrap_or_default();
        Self { storage, file, path, staging, filled: 0, offset: 0, is_direct, crc: 0, hash: ContentHash::new() }
    }

    /// Adds bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), LogError> {
        for piece in bytes.chunks(PIECE_BYTES) {
            self.crc = crc32c::crc32c_append(self.crc, piece);
            self.hash.update(piece);
            let mut rest = piece;
            while !rest.is_empty() {
                let room = self.staging.len() - self.filled;
                let (now, later) = rest.split_at(rest.len().min(room));
                self.staging[self.filled..self.filled + now.len()].copy_from_slice(now);
                self.filled += now.len();
                rest = later;
                if self.filled == self.staging.len() {
                    self.write_out(self.filled)?;
                }
            }
        }
        Ok(())
    }

    /// Writes the first `bytes` of what is gathered, which is all of it but for a tail that the caller keeps.
    fn write_out(&mut self, bytes: usize) -> Result<(), LogError> {
        let write =
            |writer: &Self| writer.storage.write_all_at(writer.file, writer.offset, writer.staging.get(..bytes).unwrap_or_default());
        let mut written = write(self);
        if self.is_direct && written.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::InvalidInput) {
            // A file system that opens a file for direct writes and then refuses them: this one goes through the page cache.
            self.end_direct()?;
            written = write(self);
        }
        written.map_err(LogError::io("write", self.path))?;
        self.offset += bytes as u64;
        self.filled -= bytes;
        Ok(())
    }

    fn end_direct(&mut self) -> Result<(), LogError> {
        self.is_direct = false;
        self.storage.end_direct(self.file).map_err(LogError::io("end direct writes to", self.path))
    }

    /// Writes what is left. The file is complete then, and not synced.
    pub(crate) fn finish(mut self) -> Result<Written, LogError> {
        if self.is_direct {
            let whole = self.filled / ALIGN * ALIGN;
            let tail = whole..self.filled;
            if whole > 0 {
                self.write_out(whole)?;
            }
            self.staging.copy_within(tail, 0);
            // The last bytes are no whole block: they, and no others, go through the page cache.
            if self.is_direct {
                self.end_direct()?;
            }
        }
        if self.filled > 0 {
            self.write_out(self.filled)?;
        }
        Ok(Written { bytes: self.offset, crc32c: self.crc, content_hash: self.hash.finish() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::Mutex;

    /// Takes direct writes as a disk does, a block at a time, and remembers them; or refuses them at the first one.
    #[derive(Default)]
    struct Blocks {
        takes_direct: bool,
        short: bool,
        state: Mutex<(bool, Vec<u8>)>,
    }

    impl Storage for Blocks {
        fn create(&self, path: &Path) -> io::Result<File> {
            File::create(path)
        }
        fn end_direct(&self, _: &File) -> io::Result<()> {
            self.state.lock().expect("state").0 = true;
            Ok(())
        }
        fn fallocate(&self, _: &File, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn write_at(&self, _: &File, offset: u64, bytes: &[u8]) -> io::Result<usize> {
            let mut state = self.state.lock().expect("state");
            let (is_over, written) = &mut *state;
            let taken = if *is_over {
                bytes.len()
            } else {
                let address = bytes.as_ptr().addr();
                if !self.takes_direct || !address.is_multiple_of(4096) || !bytes.len().is_multiple_of(4096) || !offset.is_multiple_of(4096)
                {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
                if self.short { 4096 } else { bytes.len() }
            };
            assert_eq!(offset, written.len() as u64, "in order, without holes");
            written.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }
        fn fsync(&self, _: &File) -> io::Result<()> {
            Ok(())
        }
        fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
            Ok(())
        }
        fn remove(&self, _: &Path) -> io::Result<()> {
            Ok(())
        }
        fn sync_folder(&self, _: &Path) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_length_arrives_whole_whatever_the_disk_takes() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("block");
        let file = File::create(&path).expect("file");
        let bytes: Vec<u8> = (0..2 * DIRECT_BYTES + 5000).map(|at| (at * 31 + at / 4096) as u8).collect();
        let mut staging = Staging::default();
        let lengths =
            [0, 1, 4095, 4096, 4097, CACHED_BYTES, CACHED_BYTES + 1, DIRECT_BYTES - 1, DIRECT_BYTES, DIRECT_BYTES + 4096, bytes.len()];
        for length in lengths {
            for (is_direct, takes_direct, short) in [(true, true, false), (true, true, true), (true, false, false), (false, false, false)] {
                let storage = Blocks { takes_direct, short, state: Mutex::new((!is_direct, Vec::new())) };
                let mut writer = SegmentWriter::new(&storage, &file, &path, is_direct, &mut staging);
                // Pieces of odd sizes, small ones among them.
                for piece in bytes[..length].chunks(77_777) {
                    let (head, rest) = piece.split_at(piece.len().min(13));
                    writer.push(head).expect("head");
                    writer.push(rest).expect("rest");
                }
                let written = writer.finish().expect("written");
                assert!(storage.state.lock().expect("state").1 == bytes[..length], "{length} bytes, direct {is_direct} {takes_direct}");
                assert_eq!(
                    (written.bytes, written.crc32c, written.content_hash),
                    (length as u64, crc32c::crc32c(&bytes[..length]), ContentHash::of(&bytes[..length]))
                );
            }
        }
    }
}
