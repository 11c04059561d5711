//! A segment's block piece by piece, for whoever passes it on: checked before its last piece is out.
use crate::aligned::{ALIGN, AlignedBytes};
use crate::error::LogError;
use crate::segment_writer::DIRECT_FROM_BYTES;
use crate::storage::leave_direct;
use crate::store::read_block;
use rustix::fs::OFlags;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Bytes read at a time: a read past the page cache, and a thread waked for it, cost the same whatever its length.
pub const PIECE_BYTES: usize = 1 << 22;
const _: () = assert!(PIECE_BYTES.is_multiple_of(ALIGN));

/// Where a segment's bytes are.
enum Source {
    File {
        file: File,
        is_direct: bool,
    },
    /// A cold segment, unpacked.
    Memory(Vec<u8>),
}

/// Reads the block of one segment from its begin to its end.
pub struct BlockReader {
    source: Source,
    path: PathBuf,
    bytes: u64,
    crc32c: u32,
    /// Bytes read, and their sum.
    read: u64,
    running: u32,
}

impl BlockReader {
    /// Opens the block at `plain`, or the packed one beside it, of this size and sum.
    ///
    /// # Errors
    /// Where it cannot be read, or is of another size.
    pub fn open(plain: &Path, bytes: u64, crc32c: u32) -> Result<Self, LogError> {
        let source = match open_for(plain, bytes) {
            Ok((file, is_direct)) => {
                let length = file.metadata().map_err(LogError::io("stat", plain))?.len();
                if length != bytes || bytes == 0 {
                    return Err(LogError::damaged(plain, format!("it has {length} bytes, its .meta says {bytes}")));
                }
                Source::File { file, is_direct }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut block = Vec::new();
                if !read_block(plain, bytes, crc32c, &mut block)? {
                    return Err(LogError::io("open", plain)(error));
                }
                Source::Memory(block)
            }
            Err(error) => return Err(LogError::io("open", plain)(error)),
        };
        Ok(Self { source, path: plain.to_path_buf(), bytes, crc32c, read: 0, running: 0 })
    }

    /// Reads the next piece into `into`; false behind the last one.
    ///
    /// # Errors
    /// Where the disk fails, and instead of the last piece where what was read is not what the sum says.
    pub fn next(&mut self, into: &mut AlignedBytes) -> Result<bool, LogError> {
        let length = usize::try_from(self.bytes - self.read).unwrap_or(usize::MAX).min(PIECE_BYTES);
        if length == 0 {
            return if self.running == self.crc32c { Ok(false) } else { Err(self.sum_differs()) };
        }
        // Of a file that is read past the page cache, whole blocks: the last one ends behind the file.
        let room = into.room(length.next_multiple_of(ALIGN)).map_err(LogError::io("take memory for", &self.path))?;
        let count = match &mut self.source {
            Source::File { file, is_direct } => fill(file, is_direct, self.read, room).map_err(LogError::io("read", &self.path))?,
            Source::Memory(block) => {
                let rest = usize::try_from(self.read).ok().and_then(|from| block.get(from..)).unwrap_or_default();
                let count = rest.len().min(room.len());
                room.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
                count
            }
        };
        if count < length {
            return Err(LogError::damaged(&self.path, "it was cut while it was read"));
        }
        into.keep(length);
        self.running = crc32c::crc32c_append(self.running, into.as_ref());
        self.read += length as u64;
        if self.read == self.bytes && self.running != self.crc32c {
            return Err(self.sum_differs());
        }
        Ok(true)
    }

    fn sum_differs(&self) -> LogError {
        LogError::damaged(&self.path, format!("its CRC-32C is {:08x}, its .meta says {:08x}", self.running, self.crc32c))
    }
}

/// A file that was written past the page cache is not in it: it is read as it was written, where the file system can do so.
fn open_for(path: &Path, bytes: u64) -> io::Result<(File, bool)> {
    if bytes >= DIRECT_FROM_BYTES {
        match OpenOptions::new().read(true).custom_flags(OFlags::DIRECT.bits() as i32).open(path) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
            opened => return opened.map(|file| (file, true)),
        }
    }
    File::open(path).map(|file| (file, false))
}

/// Fills `room` from `offset` on, as far as the file goes: how many bytes there were.
fn fill(file: &File, is_direct: &mut bool, offset: u64, room: &mut [u8]) -> io::Result<usize> {
    let mut count = 0;
    while let Some(rest) = room.get_mut(count..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + count as u64) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A file system that opens a file for direct reads and then refuses them, or has given less than a block.
            Err(error) if *is_direct && error.kind() == io::ErrorKind::InvalidInput => {
                leave_direct(file)?;
                *is_direct = false;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(reader: &mut BlockReader, piece: &mut AlignedBytes) -> Result<Vec<u8>, (LogError, usize)> {
        let mut all = Vec::new();
        loop {
            match reader.next(piece) {
                Ok(true) => all.extend_from_slice(piece.as_ref()),
                Ok(false) => return Ok(all),
                Err(error) => return Err((error, all.len())),
            }
        }
    }

    #[test]
    fn blocks_of_every_length_come_whole_past_the_page_cache_or_through_it() {
        let direct = DIRECT_FROM_BYTES as usize;
        let bytes: Vec<u8> = (0..direct + 2 * PIECE_BYTES + 777).map(|at| (at * 31 + at / 4096) as u8).collect();
        let mut piece = AlignedBytes::default();
        let mut folders = vec![tempfile::tempdir().expect("folder")];
        // Where there is one: a file system that may not know direct reads.
        folders.extend(tempfile::tempdir_in("/dev/shm"));
        for folder in folders {
            let path = folder.path().join("block.native");
            for length in [1, 4096, 5000, PIECE_BYTES, PIECE_BYTES + 1, direct - 1, direct, direct + 1, direct + 4096, bytes.len()] {
                std::fs::write(&path, &bytes[..length]).expect("written");
                let mut reader = BlockReader::open(&path, length as u64, crc32c::crc32c(&bytes[..length])).expect("opened");
                assert!(read_all(&mut reader, &mut piece).expect("sound") == bytes[..length], "{length}");
                assert!(!reader.next(&mut piece).expect("it stays at its end"));
            }
        }
    }

    #[test]
    fn damage_is_found_before_the_last_piece_and_another_size_at_once() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("block.native");
        let good = vec![7u8; DIRECT_FROM_BYTES as usize + PIECE_BYTES + 5000];
        let (size, sum) = (good.len() as u64, crc32c::crc32c(&good));
        let mut piece = AlignedBytes::default();
        for at in [0, good.len() / 2, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).expect("written");
            let mut reader = BlockReader::open(&path, size, sum).expect("opened");
            let (error, before) = read_all(&mut reader, &mut piece).expect_err("damaged");
            assert!(matches!(&error, LogError::Damaged { what, .. } if what.contains("CRC-32C")), "{error}");
            assert!(before < good.len(), "the block is unfinished");
            assert!(reader.next(&mut piece).is_err(), "and stays so");
        }
        for other in [size - 1, size + 1] {
            let error = BlockReader::open(&path, other, sum).err().expect("another size");
            assert!(matches!(&error, LogError::Damaged { what, .. } if what.contains(".meta says")), "{error}");
        }
        // Cut while it is read.
        std::fs::write(&path, &good).expect("written");
        let mut reader = BlockReader::open(&path, size, sum).expect("opened");
        assert!(reader.next(&mut piece).expect("the first"));
        std::fs::write(&path, &good[..PIECE_BYTES + 4096]).expect("cut");
        let (error, _) = read_all(&mut reader, &mut piece).expect_err("cut");
        assert!(error.to_string().contains("cut"), "{error}");
        assert!(BlockReader::open(&folder.path().join("none.native"), 1, 0).is_err());
    }
}
