//! SHA-256d of whole shares: contract and dispatch. Source of the construction: Bitcoin block headers and merkle trees; Stratum V1 coinbase from parts.
//!
//! The instruction set is chosen once, at boot. `scalar` is the definition; the others agree with it bit for bit (tests.rs).
use otedama_primitives::Hash256;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod compare;
#[cfg(target_arch = "x86_64")]
mod lanes;
pub mod scalar;
#[cfg(target_arch = "x86_64")]
mod shani;
mod table;

pub use table::JobTable;

/// Shares a batch holds at most.
pub const BATCH: usize = 32;
/// Extranonce1 (4 bytes) and extranonce2 (up to 8).
pub const EXTRANONCE_BYTES_MAX: usize = 12;

/// An instruction set that this CPU has. Chosen once, at boot; only `available` makes one that not every CPU has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Isa {
    /// Any CPU: the scalar kernel.
    Portable,
    /// 8 lanes.
    #[non_exhaustive]
    Avx2,
    /// SHA extensions, one to five streams.
    #[non_exhaustive]
    ShaNi,
    /// 2 x 16 lanes; fewer shares by 16 lanes and SHA-NI.
    #[non_exhaustive]
    Avx512,
}

impl Isa {
    /// Every instruction set this CPU can run, best last (the order that was measured on Zen 4, docs/figures/kernels.json).
    pub fn available() -> Vec<Self> {
        let mut available = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") {
                available.push(Self::Avx2);
            }
            if is_x86_feature_detected!("sha") && is_x86_feature_detected!("ssse3") && is_x86_feature_detected!("sse4.1") {
                available.push(Self::ShaNi);
            }
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl") {
                available.push(Self::Avx512);
            }
        }
        available
    }

    /// The one `[layout] isa` asks for, ready to hash: `auto` or a name; None when it is unknown or the CPU lacks it.
    pub fn choose(name: &str) -> Option<Self> {
        let available = Self::available();
        let chosen = if name == "auto" { available.last().copied() } else { available.into_iter().find(|isa| isa.name() == name) };
        chosen.inspect(|isa| {
            isa.cuts();
        })
    }

    /// Number of shares from which 16 lanes and 2 x 16 lanes are taken (`BATCH + 1` for never); fewer go through SHA-NI streams. None where lanes do not vary.
    /// The first call measures them.
    #[cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "the dispatch call"))]
    pub fn cuts(self) -> Option<(usize, usize)> {
        match self {
            // SAFETY: as in `judge`.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => Some(unsafe { avx512::cuts() }),
            _ => None,
        }
    }

    /// Name in config.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::ShaNi => "shani",
            Self::Avx512 => "avx512",
        }
    }

    /// Name of the kernel in stats and figures: instruction set and groups of lanes or streams.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::ShaNi => "shani",
            Self::Avx512 => "avx512x2",
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
#[cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "the dispatch call"))]
pub fn judge(isa: Isa, job: &JobTable, batch: &ShareBatch, out: &mut Judged) {
    assert!((1..=BATCH).contains(&(batch.count as usize)), "a batch has 1 to 32 shares");
    match isa {
        // SAFETY: such an `Isa` only comes from `Isa::available`, which checked the CPU.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2::judge(job, batch, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::ShaNi => unsafe { shani::judge(job, batch, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512::judge(job, batch, out) },
        _ => scalar::judge(job, batch, out),
    }
}

/// Judges a batch of shares whose merkle roots are known: `out.root` holds them on entry, in the shape that `judge` leaves. Extranonces are not read.
#[inline]
#[cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "the dispatch call"))]
pub fn judge_headers(isa: Isa, job: &JobTable, batch: &ShareBatch, out: &mut Judged) {
    assert!((1..=BATCH).contains(&(batch.count as usize)), "a batch has 1 to 32 shares");
    match isa {
        // SAFETY: as in `judge`.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2::judge_headers(job, batch, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::ShaNi => unsafe { shani::judge_headers(job, batch, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512::judge_headers(job, batch, out) },
        _ => scalar::judge_headers(job, batch, out),
    }
}

#[cfg(test)]
mod tests;
