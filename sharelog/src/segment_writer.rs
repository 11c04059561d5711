//! The way of a block into its file: laid out in aligned memory, summed while its bytes are in the cache, and written past the page cache where the file system can do so.
//!
//! Sealing is the largest stream of fresh pages that a pool makes: 45 MB per segment. Through the page cache each page is found, filled, tracked and written back by the
//! kernel, which cost more than everything else about a segment together, and pushes what other programs use out of memory. The same bytes out of one reused
//! buffer cost less (docs/decisions.md), and whoever reads them back past the page cache pays no more. Small segments stay in the page cache.
use crate::aligned::ALIGN;
use crate::content_hash::ContentHash;
use crate::error::LogError;
use crate::storage::Storage;
use std::fs::File;
use std::path::Path;

/// Segments from here on are written past the page cache, and are best read so.
pub const DIRECT_FROM_BYTES: u64 = 4 << 20;
/// Bytes of a direct write: long enough that the wait for the disk is not its latency again and again.
const DIRECT_BYTES: usize = 4 << 20;
/// Bytes of a write through the page cache: they stay in the second-level cache from the sums to the copy.
const CACHED_BYTES: usize = 1 << 18;
/// Bytes that are summed at a time, once for the checksum and once for the hash.
const SUMMED_BYTES: usize = 1 << 17;

/// What was written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) crc32c: u32,
    pub(crate) content_hash: u64,
}

/// Writes a block into `file`, which is empty; `is_direct` says that it came from `Storage::create_direct` in that mode, and the block lies in `AlignedBytes`. The file is complete then, and not synced.
pub(crate) fn write_block<S: Storage>(
    storage: &S,
    file: &File,
    path: &Path,
    mut is_direct: bool,
    bytes: &[u8],
) -> Result<Written, LogError> {
    let end_direct = |is_direct: &mut bool| {
        *is_direct = false;
        storage.end_direct(file).map_err(LogError::io("end direct writes to", path))
    };
    let (mut crc, mut hash) = (0, ContentHash::new());
    let mut offset = 0;
    while let Some(rest) = bytes.get(offset..).filter(|rest| !rest.is_empty()) {
        let length = if !is_direct {
            rest.len().min(CACHED_BYTES)
        } else if rest.len() >= ALIGN {
            (rest.len() / ALIGN * ALIGN).min(DIRECT_BYTES)
        } else {
            // The last bytes are no whole block: they, and no others, go through the page cache.
            end_direct(&mut is_direct)?;
            continue;
        };
        let piece = rest.get(..length).unwrap_or_default();
        for part in piece.chunks(SUMMED_BYTES) {
            crc = crc32c::crc32c_append(crc, part);
            hash.update(part);
        }
        let mut written = storage.write_all_at(file, offset as u64, piece);
        if is_direct && written.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::InvalidInput) {
            // A file system that opens a file for direct writes and then refuses them: this one goes through the page cache.
            end_direct(&mut is_direct)?;
            written = storage.write_all_at(file, offset as u64, piece);
        }
        written.map_err(LogError::io("write", path))?;
        offset += length;
    }
    if is_direct {
        end_direct(&mut is_direct)?;
    }
    Ok(Written { crc32c: crc, content_hash: hash.finish() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aligned::AlignedBytes;
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
        let mut block = AlignedBytes::default();
        let lengths =
            [0, 1, 4095, 4096, 4097, CACHED_BYTES, CACHED_BYTES + 1, DIRECT_BYTES - 1, DIRECT_BYTES, DIRECT_BYTES + 4096, bytes.len()];
        // The longest first as well: what it leaves behind is no part of a shorter one.
        for length in lengths.into_iter().rev().chain(lengths) {
            for (is_direct, takes_direct, short) in [(true, true, false), (true, true, true), (true, false, false), (false, false, false)] {
                let storage = Blocks { takes_direct, short, state: Mutex::new((!is_direct, Vec::new())) };
                block.room(length).expect("room").copy_from_slice(&bytes[..length]);
                let written = write_block(&storage, &file, &path, is_direct, block.as_ref()).expect("written");
                let state = storage.state.lock().expect("state");
                assert!(state.0 && state.1 == bytes[..length], "{length} bytes, direct {is_direct} {takes_direct}");
                assert_eq!(written, Written { crc32c: crc32c::crc32c(&bytes[..length]), content_hash: ContentHash::of(&bytes[..length]) });
            }
        }
    }
}
