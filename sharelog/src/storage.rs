//! The operations on files that decide about loss, behind a trait: tests inject full disks, failed syncs and short writes.
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Writes to the folder of the log. Reads go straight to the files: they lose nothing.
pub trait Storage: Send + Sync + 'static {
    /// Creates or empties `path` for reading and writing.
    fn create(&self, path: &Path) -> io::Result<File>;
    /// As `create`, for a file that is written once and in order. True beside it: writes go past the page cache, and their addresses, lengths and offsets have to be
    /// multiples of 4096 until `end_direct`.
    fn create_direct(&self, path: &Path) -> io::Result<(File, bool)> {
        self.create(path).map(|file| (file, false))
    }
    /// From here on the file takes any bytes, through the page cache.
    fn end_direct(&self, file: &File) -> io::Result<()> {
        let _ = file;
        Ok(())
    }
    /// Reserves `bytes` of disk, so that later stores into the range cannot meet a full disk. The file has at least this size afterwards.
    fn fallocate(&self, file: &File, bytes: u64) -> io::Result<()>;
    /// Writes at `offset` and returns how many bytes were taken, as `pwrite` does: possibly fewer than given.
    fn write_at(&self, file: &File, offset: u64, bytes: &[u8]) -> io::Result<usize>;
    /// Returns once data and size are durable. After an error nothing is known of the pages written since the last success: write them again.
    fn fsync(&self, file: &File) -> io::Result<()>;
    /// As `fsync`, without the times: what a sync of the journal needs.
    fn fdatasync(&self, file: &File) -> io::Result<()> {
        self.fsync(file)
    }
    /// Renames within a folder, replacing the target.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes renames and removals of a folder durable.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`, however short the single writes are.
    fn write_all_at(&self, file: &File, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.write_at(file, offset, bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(taken) => {
                    offset += taken as u64;
                    bytes = bytes.get(taken..).unwrap_or_default();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// From here on the file is read and written through the page cache.
pub(crate) fn leave_direct(file: &File) -> io::Result<()> {
    let flags = fcntl_getfl(file)?;
    Ok(fcntl_setfl(file, flags - OFlags::DIRECT)?)
}

/// The real disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disk;

impl Storage for Disk {
    fn create(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)
    }

    fn create_direct(&self, path: &Path) -> io::Result<(File, bool)> {
        let direct = OFlags::DIRECT.bits() as i32;
        match OpenOptions::new().read(true).write(true).create(true).truncate(true).custom_flags(direct).open(path) {
            Ok(file) => Ok((file, true)),
            // A file system without direct writes, such as an older tmpfs.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok((self.create(path)?, false)),
            Err(error) => Err(error),
        }
    }

    fn end_direct(&self, file: &File) -> io::Result<()> {
        leave_direct(file)
    }

    fn fallocate(&self, file: &File, bytes: u64) -> io::Result<()> {
        match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::OPNOTSUPP) => {
                // A file system without preallocation: zeros reserve the space as well.
                let zeros = vec![0u8; 1 << 20];
                let mut offset = file.metadata()?.len();
                while offset < bytes {
                    let step = (bytes - offset).min(zeros.len() as u64);
                    self.write_all_at(file, offset, zeros.get(..step as usize).unwrap_or(&zeros))?;
                    offset += step;
                }
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn write_at(&self, file: &File, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        file.write_at(bytes, offset)
    }

    fn fsync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn fdatasync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }
}
