//! Who and what a row names: instances, runs, sessions, jobs and workers. DESIGN: 8-byte identities, unique over all servers and boots of a pool.
use sha2::{Digest, Sha256};
use std::fmt;

/// Number of a running server within its pool, 0..=255, from `[pool] instance`.
pub type Instance = u8;

/// One boot of one instance: instance 8 bits and boot epoch 24 random bits. Sessions and jobs of the run are this prefix and a 32-bit counter.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct RunId {
    /// `[pool] instance`.
    pub instance: Instance,
    /// 24 random bits drawn at boot.
    pub epoch: u32,
}

impl RunId {
    /// Keeps the lowest 24 bits of `epoch`.
    pub fn new(instance: Instance, epoch: u32) -> Self {
        Self { instance, epoch: epoch & 0x00ff_ffff }
    }

    /// The upper 32 bits of every session and job of this run.
    pub fn prefix(self) -> u32 {
        (u32::from(self.instance) << 24) | self.epoch
    }

    /// The run whose prefix this is.
    pub fn from_prefix(prefix: u32) -> Self {
        Self { instance: (prefix >> 24) as u8, epoch: prefix & 0x00ff_ffff }
    }

    /// The job with this counter.
    pub fn job(self, counter: u32) -> JobId {
        JobId((u64::from(self.prefix()) << 32) | u64::from(counter))
    }

    /// The session with this counter.
    pub fn session(self, counter: u32) -> SessionId {
        SessionId((u64::from(self.prefix()) << 32) | u64::from(counter))
    }
}

/// Job number: instance 8 bits, boot epoch 24, counter 32. It stands in the coinbase of the job, big-endian, and is the `job` column. Counter 0 is "no job".
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct JobId(pub u64);

impl JobId {
    /// The run that issued it.
    pub fn run(self) -> RunId {
        RunId::from_prefix((self.0 >> 32) as u32)
    }

    /// Counter within the run, from 1.
    pub fn counter(self) -> u32 {
        self.0 as u32
    }
}

/// Session number: instance 8 bits, boot epoch 24, counter 32; the `session` column.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct SessionId(pub u64);

impl SessionId {
    /// Counter within the run, from 1.
    pub fn counter(self) -> u32 {
        self.0 as u32
    }
}

/// First 8 bytes (big-endian) of SHA-256 of `pool 0x00 account.worker`: the same on every server and after any loss.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct WorkerId(pub u64);

/// Why a worker name was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WorkerNameError {
    /// Nothing is left once blanks are trimmed.
    #[error("the worker name is empty")]
    Empty,
    /// Longer than `WorkerName::BYTES_MAX`.
    #[error("the worker name has {0} bytes, at most 128 are taken")]
    TooLong(usize),
    /// A byte outside of the printable ASCII range, or a quote or backslash.
    #[error("byte {position} of the worker name is not printable ASCII without quotes or backslash")]
    Byte {
        /// Index of the offending byte.
        position: usize,
    },
}

/// A normalised `account.worker` name: ASCII blanks trimmed at both ends; printable ASCII without `"`, `'`, `\`; 1 to 128 bytes. Case is kept: addresses are case-sensitive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WorkerName<'a>(&'a str);

impl<'a> WorkerName<'a> {
    /// Longest name in bytes.
    pub const BYTES_MAX: usize = 128;

    /// Normalises and checks a name as it came from the wire.
    pub fn new(raw: &'a [u8]) -> Result<Self, WorkerNameError> {
        let trimmed = raw.trim_ascii();
        if trimmed.is_empty() {
            return Err(WorkerNameError::Empty);
        }
        if trimmed.len() > Self::BYTES_MAX {
            return Err(WorkerNameError::TooLong(trimmed.len()));
        }
        let allowed = |byte: u8| (0x20..0x7f).contains(&byte) && !matches!(byte, b'"' | b'\'' | b'\\');
        if let Some(position) = trimmed.iter().position(|&byte| !allowed(byte)) {
            return Err(WorkerNameError::Byte { position });
        }
        std::str::from_utf8(trimmed).map(Self).map_err(|error| WorkerNameError::Byte { position: error.valid_up_to() })
    }

    /// The normalised text.
    pub fn as_str(&self) -> &'a str {
        self.0
    }

    /// The part before the first dot: the account or payout address.
    pub fn account(&self) -> &'a str {
        self.0.split_once('.').map_or(self.0, |(account, _)| account)
    }

    /// The identity in rows.
    pub fn id(&self, pool: &str) -> WorkerId {
        let digest = Sha256::new().chain_update(pool.as_bytes()).chain_update([0]).chain_update(self.0.as_bytes()).finalize();
        let mut eight = [0u8; 8];
        eight.copy_from_slice(&digest[..8]);
        WorkerId(u64::from_be_bytes(eight))
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_take_apart_as_they_were_put_together() {
        let run = RunId::new(200, 0xff12_3456);
        assert_eq!(run.epoch, 0x12_3456);
        let job = run.job(7);
        assert_eq!((job.run(), job.counter()), (run, 7));
        assert_eq!(job.0, 0xc812_3456_0000_0007);
    }

    #[test]
    fn worker_ids_do_not_change_between_releases() {
        let name = WorkerName::new(b" bc1qexample.rig1 ").expect("name");
        assert_eq!(name.as_str(), "bc1qexample.rig1");
        assert_eq!(name.account(), "bc1qexample");
        // sha256("otedama\0bc1qexample.rig1")[..8], computed with coreutils' sha256sum.
        assert_eq!(name.id("otedama").0, 0x14bf_1032_c915_fef3);
        assert_ne!(name.id("otedama"), name.id("other"));
    }

    #[test]
    fn hostile_names_are_refused() {
        assert_eq!(WorkerName::new(b"  "), Err(WorkerNameError::Empty));
        assert_eq!(WorkerName::new(&[b'a'; 129]), Err(WorkerNameError::TooLong(129)));
        assert_eq!(WorkerName::new(b"a\x1bb"), Err(WorkerNameError::Byte { position: 1 }));
        assert_eq!(WorkerName::new(b"a'; DROP"), Err(WorkerNameError::Byte { position: 1 }));
        assert_eq!(WorkerName::new("wörker".as_bytes()), Err(WorkerNameError::Byte { position: 1 }));
    }
}
