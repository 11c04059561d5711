//! Jobs and block candidates: what chain hands to the share path, and what comes back.
use crate::{Hash256, JobId, Target};

/// The coin of a job; the `coin` column. Append-only.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Coin {
    /// Bitcoin and its test networks.
    Bitcoin = 0,
}

impl Coin {
    /// Config key and ClickHouse enum name.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Bitcoin => "bitcoin",
        }
    }
}

/// Everything the share path needs of a job. Shared by all sessions: the coinbase of a share is
/// `coinbase_prefix`, extranonce1 (4 bytes), extranonce2 (`extranonce2_bytes`), `coinbase_suffix`, in the stripped form whose SHA-256d is the txid.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its number; the counter part orders the jobs of a run, from 1.
    pub id: JobId,
    /// The coin it mines.
    pub coin: Coin,
    /// Height of the block it would make.
    pub height: u32,
    /// Previous block hash, internal order.
    pub prev_hash: Hash256,
    /// Header version before rolled bits.
    pub version: u32,
    /// Compact network target of the header.
    pub nbits: u32,
    /// The template's curtime, seconds: the job's own ntime.
    pub ntime: u32,
    /// The template's mintime, seconds: the smallest ntime allowed.
    pub ntime_min: u32,
    /// Coinbase bytes before extranonce1.
    pub coinbase_prefix: Box<[u8]>,
    /// Coinbase bytes after extranonce2.
    pub coinbase_suffix: Box<[u8]>,
    /// Merkle siblings of the coinbase, leaf to root, internal order; at most 16.
    pub branch: Box<[Hash256]>,
    /// Bytes of extranonce2, 4..=8.
    pub extranonce2_bytes: u8,
    /// The network target; a hash at or under it is a block candidate.
    pub network_target: Target,
    /// True for the first job on a new parent: earlier jobs end with it.
    pub clean: bool,
    /// When the template arrived, microseconds since the epoch: the ntime window moves with the time elapsed since.
    pub created_us: u64,
}

impl Job {
    /// Largest ntime allowed at `now_us`: curtime + elapsed + 7200 s. Template time, never the wall clock, as bursts push curtime ahead.
    pub fn ntime_max(&self, now_us: u64) -> u32 {
        let elapsed_s = now_us.saturating_sub(self.created_us) / 1_000_000;
        u32::try_from(u64::from(self.ntime) + elapsed_s + 7200).unwrap_or(u32::MAX)
    }

    /// Bytes of the whole stripped coinbase.
    pub fn coinbase_bytes(&self) -> usize {
        self.coinbase_prefix.len() + 4 + usize::from(self.extranonce2_bytes) + self.coinbase_suffix.len()
    }
}

/// A share at or under the network target, recomputed by the scalar kernel, on its way to the node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockCandidate {
    /// The job it solves.
    pub job: JobId,
    /// Counter of the session that found it.
    pub session: u32,
    /// As a big-endian number of its four wire bytes.
    pub extranonce1: u32,
    /// As a big-endian number of its wire bytes, right-aligned.
    pub extranonce2: u64,
    /// Header time.
    pub ntime: u32,
    /// Header nonce.
    pub nonce: u32,
    /// Header version as hashed.
    pub version: u32,
    /// The worker that found it.
    pub worker: crate::WorkerId,
    /// The block hash.
    pub hash: Hash256,
    /// When its bytes were read, microseconds since the epoch.
    pub arrival_us: u64,
}
