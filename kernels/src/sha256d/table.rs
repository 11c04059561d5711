//! What all shares of a job have in common, worked out once: midstate, schedules of constant blocks, siblings.
use super::scalar::INITIAL;
use super::{EXTRANONCE_BYTES_MAX, ShareBatch};
use crate::BATCH;
use otedama_primitives::{Hash256, Job, Target};

/// SHA-256 round constants (FIPS 180-4, 4.2.2).
pub(super) const K: [u32; 64] = [
    0x428a_2f98,
    0x7137_4491,
    0xb5c0_fbcf,
    0xe9b5_dba5,
    0x3956_c25b,
    0x59f1_11f1,
    0x923f_82a4,
    0xab1c_5ed5,
    0xd807_aa98,
    0x1283_5b01,
    0x2431_85be,
    0x550c_7dc3,
    0x72be_5d74,
    0x80de_b1fe,
    0x9bdc_06a7,
    0xc19b_f174,
    0xe49b_69c1,
    0xefbe_4786,
    0x0fc1_9dc6,
    0x240c_a1cc,
    0x2de9_2c6f,
    0x4a74_84aa,
    0x5cb0_a9dc,
    0x76f9_88da,
    0x983e_5152,
    0xa831_c66d,
    0xb003_27c8,
    0xbf59_7fc7,
    0xc6e0_0bf3,
    0xd5a7_9147,
    0x06ca_6351,
    0x1429_2967,
    0x27b7_0a85,
    0x2e1b_2138,
    0x4d2c_6dfc,
    0x5338_0d13,
    0x650a_7354,
    0x766a_0abb,
    0x81c2_c92e,
    0x9272_2c85,
    0xa2bf_e8a1,
    0xa81a_664b,
    0xc24b_8b70,
    0xc76c_51a3,
    0xd192_e819,
    0xd699_0624,
    0xf40e_3585,
    0x106a_a070,
    0x19a4_c116,
    0x1e37_6c08,
    0x2748_774c,
    0x34b0_bcb5,
    0x391c_0cb3,
    0x4ed8_aa4a,
    0x5b9c_ca4f,
    0x682e_6ff3,
    0x748f_82ee,
    0x78a5_636f,
    0x84c8_7814,
    0x8cc7_0208,
    0x90be_fffa,
    0xa450_6ceb,
    0xbef9_a3f7,
    0xc671_78f2,
];

/// Padding of a 64-byte message, as words.
pub(super) const PADDING_64: [u32; 16] = [0x8000_0000, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 512];
/// The rounds of that padding: the same for every merkle node.
pub(super) const ROUNDS_PADDING_64: Rounds = Rounds::of(&PADDING_64);
/// Words 8 to 15 of a block whose first half is a hash to be hashed again: its padding.
pub(super) const PADDING_32: [u32; 8] = [0x8000_0000, 0, 0, 0, 0, 0, 0, 256];
/// What they give to the schedule.
pub(super) const HALF_PADDING_32: HalfBlock = HalfBlock::of(&PADDING_32);
/// Words 8 to 15 of a header's second block: the end of its padding.
pub(super) const HALF_PADDING_80: HalfBlock = HalfBlock::of(&[0, 0, 0, 0, 0, 0, 0, 640]);

/// The padding block of a 64-byte message and of a hash need it in lanes of four too.
const fn sigma0(x: u32) -> u32 {
    x.rotate_right(7) ^ x.rotate_right(18) ^ (x >> 3)
}

const fn sigma1(x: u32) -> u32 {
    x.rotate_right(17) ^ x.rotate_right(19) ^ (x >> 10)
}

/// K + W of all rounds of a block that is the same for every share: no schedule is left to do.
#[repr(C, align(64))]
#[derive(Clone, Debug)]
pub(super) struct Rounds(pub(super) [u32; 64]);

impl Rounds {
    const fn of(block: &[u32; 16]) -> Self {
        let mut w = [0u32; 64];
        let mut t = 0;
        while t < 64 {
            w[t] = if t < 16 {
                block[t]
            } else {
                sigma1(w[t - 2]).wrapping_add(w[t - 7]).wrapping_add(sigma0(w[t - 15])).wrapping_add(w[t - 16])
            };
            t += 1;
        }
        t = 0;
        while t < 64 {
            w[t] = w[t].wrapping_add(K[t]);
            t += 1;
        }
        Self(w)
    }
}

/// Words 8 to 15 of a block whose first half alone differs between shares: a merkle sibling, or padding.
#[repr(C, align(32))]
#[derive(Clone, Debug)]
pub(super) struct HalfBlock {
    /// The words, big-endian readings of the bytes.
    pub(super) words: [u32; 8],
    /// K + W of rounds 8 to 15.
    pub(super) rounds: [u32; 8],
    /// What the words add to W16 to W31; the rest of those comes from words 0 to 7.
    pub(super) schedule: [u32; 16],
}

impl HalfBlock {
    const fn of(words: &[u32; 8]) -> Self {
        let mut rounds = [0u32; 8];
        let mut schedule = [0u32; 16];
        let mut t = 0;
        while t < 8 {
            rounds[t] = words[t].wrapping_add(K[t + 8]);
            t += 1;
        }
        t = 16;
        while t < 32 {
            let mut sum = 0u32;
            if t < 18 {
                sum = sum.wrapping_add(sigma1(words[t - 2 - 8]));
            }
            if t < 23 {
                sum = sum.wrapping_add(words[t - 7 - 8]);
            }
            if t >= 23 && t < 31 {
                sum = sum.wrapping_add(sigma0(words[t - 15 - 8]));
            }
            if t >= 24 {
                sum = sum.wrapping_add(words[t - 16 - 8]);
            }
            schedule[t - 16] = sum;
            t += 1;
        }
        Self { words: *words, rounds, schedule }
    }
}

/// Reads bytes as SHA-256 does.
pub(super) fn words<const WORDS: usize>(bytes: &[u8]) -> [u32; WORDS] {
    let mut words = [0; WORDS];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = chunk.iter().fold(0, |word, &byte| word << 8 | u32::from(byte));
    }
    words
}

/// What all shares of a job have in common, worked out once per job: the midstate of the coinbase before the extranonce, the padded rest, the branch.
/// About 4 KiB for 12 levels, read front to back once per batch.
#[derive(Clone, Debug)]
pub struct JobTable {
    pub(super) midstate: [u32; 8],
    /// The one or two blocks that hold the extranonce, zeros in its place.
    pub(super) head: [u8; 128],
    /// The same as words.
    pub(super) head_words: [[u32; 16]; 2],
    pub(super) head_blocks: u8,
    pub(super) extranonce_offset: u8,
    pub(super) extranonce_bytes: u8,
    /// Coinbase blocks after the extranonce, padding included: the same for every share.
    pub(super) tail: Vec<[u8; 64]>,
    pub(super) tail_rounds: Vec<Rounds>,
    pub(super) branch: Vec<Hash256>,
    pub(super) siblings: Vec<HalfBlock>,
    pub(super) prev_hash: Hash256,
    pub(super) prev_words: [u32; 8],
    pub(super) nbits: u32,
    pub(super) network_target: Target,
}

impl JobTable {
    /// Prepares the tables of a job.
    pub fn new(job: &Job) -> Self {
        let extranonce_bytes = 4 + usize::from(job.extranonce2_bytes);
        assert!(extranonce_bytes <= EXTRANONCE_BYTES_MAX, "extranonce2 has at most 8 bytes");
        let constant_blocks = job.coinbase_prefix.len() / 64;
        let mut midstate = INITIAL;
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
        let tail: Vec<[u8; 64]> = rest[head_blocks * 64..]
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
            head_words: [words(&head[..64]), words(&head[64..])],
            head_blocks: head_blocks as u8,
            extranonce_offset: offset as u8,
            extranonce_bytes: extranonce_bytes as u8,
            tail_rounds: tail.iter().map(|block| Rounds::of(&words(block))).collect(),
            tail,
            siblings: job.branch.iter().map(|sibling| HalfBlock::of(&words(&sibling.0))).collect(),
            branch: job.branch.to_vec(),
            prev_hash: job.prev_hash,
            prev_words: words(&job.prev_hash.0),
            nbits: job.nbits,
            network_target: job.network_target,
        }
    }

    /// The words of the head that the extranonce touches: up to four, from `first_extranonce_word` on, zero where the job's own bytes stand.
    #[inline(always)]
    pub(super) fn extranonce_words(&self, extranonce: &[u8; 16]) -> [u32; 4] {
        let unused_bits = 128 - 8 * u32::from(self.extranonce_bytes);
        let shift_bits = 8 * u32::from(self.extranonce_offset % 4);
        let bytes = (u128::from_be_bytes(*extranonce) >> unused_bits << unused_bits) >> shift_bits;
        [(bytes >> 96) as u32, (bytes >> 64) as u32, (bytes >> 32) as u32, bytes as u32]
    }

    /// Where they stand in the head.
    #[inline(always)]
    pub(super) fn first_extranonce_word(&self) -> usize {
        usize::from(self.extranonce_offset / 4)
    }

    /// The extranonce words of a whole batch as columns. Shape: `[word][share]`.
    #[inline(always)]
    pub(super) fn extranonce_columns(&self, batch: &ShareBatch, columns: &mut [[u32; BATCH]; 4]) {
        for (share, extranonce) in batch.extranonce.iter().enumerate() {
            for (column, word) in columns.iter_mut().zip(self.extranonce_words(extranonce)) {
                column[share] = word;
            }
        }
    }
}
