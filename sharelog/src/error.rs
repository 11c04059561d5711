//! What can go wrong with the folder of the log. Every error names the operation and the path.
use std::io;
use std::path::{Path, PathBuf};

/// A failed operation on the share log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The operating system refused an operation.
    #[error("{operation} {path}: {source}")]
    Io {
        /// What was tried, as a verb: "open", "fsync".
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Another process writes this folder.
    #[error(
        "the share log {path} is locked by another otedama process; stop that process or give this one its own [log] dir (and its own [pool] instance)"
    )]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// A file does not hold what the log wrote.
    #[error("{path} is damaged: {what}; `otedama log verify` lists every finding, restore the file from a copy or move it away")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// A setting that cannot work.
    #[error("log setting {key}: {what}")]
    Setting {
        /// Name of the setting.
        key: &'static str,
        /// Why it is refused and which values are taken.
        what: String,
    },
}

impl LogError {
    pub(crate) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { operation, path, source }
    }

    pub(crate) fn damaged(path: &Path, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_path_buf(), what: what.into() }
    }

    /// True when the disk (or the quota) is full: a state that passes when space returns, not a defect.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
                    || source.raw_os_error() == Some(rustix::io::Errno::NOSPC.raw_os_error())
            }
            _ => false,
        }
    }

    /// Exit code of a command that ends with this error: 2 for a setting, 3 for the environment.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Setting { .. } => 2,
            _ => 3,
        }
    }
}

/// The journal has no room: the disk is full or the sealer is behind. Nothing of the batch was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the journal has no room for this batch; free disk space or raise [log] max_bytes")]
pub struct JournalFull;
