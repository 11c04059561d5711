//! SHA-256d of whole shares: contract and dispatch. Source of the construction: Bitcoin block headers and merkle trees; Stratum V1 coinbase from parts.
use otedama_primitives::{Hash256, Job, Target};

pub mod scalar;

/// Shares a batch holds at most.
pub const BATCH: usize = 32;
/// Extranonce1 (4 bytes) and extranonce2 (up to 8).
pub const EXTRANONCE_BYTES_MAX: usize = 12;

/// An instruction set that this CPU has. Chosen once, at boot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Isa {
    /// Any CPU.
    Portable,
}

impl Isa {
    /// Every instruction set this CPU can run, best last.
    pub fn available() -> Vec<Self> {
        vec![Self::Portable]
    }

    /// The one `[layout] isa` asks for: `auto` or a label; None when it is unknown or the CPU lacks it.
    pub fn choose(name: &str) -> Option<Self> {
        let available = Self::available();
        if name == "auto" { available.last().copied() } else { available.into_iter().find(|isa| isa.label() == name) }
    }

    /// Name in config, stats and figures.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Portable => "portable",
        }
    }
}

/// What all shares of a job have in common, worked out once per job: the midstate of the coinbase before the extranonce, the padded rest, the branch.
#[derive(Clone, Debug)]
pub struct JobTable {
    midstate: [u32; 8],
    /// The one or two blocks that hold the extranonce, zeros in its place.
    head: [u8; 128],
    head_blocks: u8,
    extranonce_offset: u8,
    extranonce_bytes: u8,
    /// Coinbase blocks after the extranonce, padding included: the same for every share.
    tail: Vec<[u8; 64]>,
    branch: Vec<Hash256>,
    prev_hash: Hash256,
    nbits: u32,
    network_target: Target,
}

impl JobTable {
    /// Prepares the tables of a job.
    pub fn new(job: &Job) -> Self {
        let extranonce_bytes = 4 + usize::from(job.extranonce2_bytes);
        assert!(extranonce_bytes <= EXTRANONCE_BYTES_MAX, "extranonce2 has at most 8 bytes");
        let constant_blocks = job.coinbase_prefix.len() / 64;
        let mut midstate = scalar::INITIAL;
        for block in job.coinbase_prefix.chunks_exact(64) {
            let mut copy = [0u8; 64];
            copy.copy_from_slice(block);
            sha2::block_api::compress256(&mut midstate, &[copy]);
        }
        let mut message = Vec::with_capacity(job.coinbase_bytes() + 72);
        message.extend_from_slice(&job.coinbase_prefix);
        message.extend(std::iter::repeat_n(0, extranonce_bytes));
        message.extend_from_slice(&job.coinbase_suffix);
        let bits = message.len() as u64 * 8;
        message.push(0x80);
        while message.len() % 64 != 56 {
            message.push(0);
        }
        message.extend_from_slice(&bits.to_be_bytes());
        let rest = &message[constant_blocks * 64..];
        let offset = job.coinbase_prefix.len() % 64;
        let head_blocks = (offset + extranonce_bytes).div_ceil(64);
        let mut head = [0u8; 128];
        head[..head_blocks * 64].copy_from_slice(&rest[..head_blocks * 64]);
        let tail = rest[head_blocks * 64..]
            .chunks_exact(64)
            .map(|block| {
                let mut copy = [0u8; 64];
                copy.copy_from_slice(block);
                copy
            })
            .collect();
        Self {
            midstate,
            head,
            head_blocks: head_blocks as u8,
            extranonce_offset: offset as u8,
            extranonce_bytes: extranonce_bytes as u8,
            tail,
            branch: job.branch.to_vec(),
            prev_hash: job.prev_hash,
            nbits: job.nbits,
            network_target: job.network_target,
        }
    }
}

/// 1 to `BATCH` shares of one job, as columns; no padding. Shape: `extranonce[share]` = extranonce1 then extranonce2, as they stand in the coinbase.
#[repr(C, align(64))]
#[derive(Clone, Debug)]
pub struct ShareBatch {
    /// Bytes as they stand in the coinbase, unused ones at the end.
    pub extranonce: [[u8; 16]; BATCH],
    /// Header version, rolled bits included.
    pub version: [u32; BATCH],
    /// Header time.
    pub ntime: [u32; BATCH],
    /// Header nonce.
    pub nonce: [u32; BATCH],
    /// Work each share is judged at, in expected hashes, at least 1.
    pub work: [u64; BATCH],
    /// Shares in the batch.
    pub count: u32,
}

impl Default for ShareBatch {
    fn default() -> Self {
        Self { extranonce: [[0; 16]; BATCH], version: [0; BATCH], ntime: [0; BATCH], nonce: [0; BATCH], work: [1; BATCH], count: 0 }
    }
}

/// What a kernel found. Shape: `hash[word][share]`, SHA-256 words; bit i of a mask is share i.
#[repr(C, align(64))]
#[derive(Clone, Debug)]
pub struct Judged {
    /// Header hashes.
    pub hash: [[u32; BATCH]; 8],
    /// Merkle roots that went into the headers.
    pub root: [[u32; BATCH]; 8],
    /// Shares at or under their own target.
    pub share_mask: u32,
    /// Shares at or under the network target.
    pub network_mask: u32,
}

impl Default for Judged {
    fn default() -> Self {
        Self { hash: [[0; BATCH]; 8], root: [[0; BATCH]; 8], share_mask: 0, network_mask: 0 }
    }
}

impl Judged {
    /// Header hash of one share, internal order.
    pub fn hash_of(&self, share: usize) -> Hash256 {
        let mut bytes = [0u8; 32];
        for (chunk, column) in bytes.chunks_exact_mut(4).zip(&self.hash) {
            chunk.copy_from_slice(&column[share].to_be_bytes());
        }
        Hash256(bytes)
    }

    /// Difficulty of a share's hash from its top 64 bits: precise to 2^-32 of itself at difficulty 2^-32 and above, which is more than the f32 it is for.
    #[inline]
    pub fn difficulty_of(&self, share: usize) -> f32 {
        let top = (u64::from(self.hash[7][share].swap_bytes()) << 32) | u64::from(self.hash[6][share].swap_bytes());
        if top == 0 {
            return self.hash_of(share).difficulty() as f32;
        }
        // 0xffff x 2^208 / (top x 2^192).
        (65535.0 * 65536.0 / top as f64) as f32
    }
}

/// Judges a batch of shares of one job.
#[inline]
pub fn judge(isa: Isa, job: &JobTable, batch: &ShareBatch, out: &mut Judged) {
    assert!((1..=BATCH).contains(&(batch.count as usize)), "a batch has 1 to 32 shares");
    match isa {
        Isa::Portable => scalar::judge(job, batch, out),
    }
}

/// Judges a batch of shares whose merkle roots are known: `out.root` holds them on entry, in the shape that `judge` leaves. Extranonces are not read.
#[inline]
pub fn judge_headers(isa: Isa, job: &JobTable, batch: &ShareBatch, out: &mut Judged) {
    assert!((1..=BATCH).contains(&(batch.count as usize)), "a batch has 1 to 32 shares");
    match isa {
        Isa::Portable => scalar::judge_headers(job, batch, out),
    }
}

#[cfg(test)]
mod tests;
