//! The definition: one share after the other, on the `sha2` crate's compression function (it picks SHA-NI where the CPU has it).
use super::{EXTRANONCE_BYTES_MAX, JobTable, Judged, ShareBatch};
use otedama_primitives::{Hash256, Target, Work};
use sha2::block_api::compress256;

/// SHA-256 initial state (FIPS 180-4, 5.3.3).
pub const INITIAL: [u32; 8] = [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// The padding block of a 64-byte message.
const PADDING_64: [u8; 64] = {
    let mut block = [0u8; 64];
    block[0] = 0x80;
    block[62] = 0x02;
    block
};

/// SHA-256 of any message (FIPS 180-4), as words.
pub fn sha256(message: &[u8]) -> [u32; 8] {
    let mut state = INITIAL;
    let mut blocks = message.chunks_exact(64);
    for block in &mut blocks {
        compress_slice(&mut state, block);
    }
    let rest = blocks.remainder();
    let mut tail = [0u8; 128];
    tail[..rest.len()].copy_from_slice(rest);
    tail[rest.len()] = 0x80;
    let end = if rest.len() < 56 { 64 } else { 128 };
    tail[end - 8..end].copy_from_slice(&(message.len() as u64 * 8).to_be_bytes());
    tail[..end].chunks_exact(64).for_each(|block| compress_slice(&mut state, block));
    state
}

/// SHA-256d of any message.
pub fn sha256d(message: &[u8]) -> Hash256 {
    Hash256(bytes_of(&second_hash(&sha256(message))))
}

fn compress_slice(state: &mut [u32; 8], block: &[u8]) {
    let mut copy = [0u8; 64];
    copy.copy_from_slice(block);
    compress256(state, &[copy]);
}

fn node(block: &[u8; 64]) -> [u32; 8] {
    let mut state = INITIAL;
    compress256(&mut state, &[*block, PADDING_64]);
    second_hash(&state)
}

/// SHA-256 of a 32-byte state: the second half of SHA-256d.
fn second_hash(first: &[u32; 8]) -> [u32; 8] {
    let mut block = [0u8; 64];
    block[..32].copy_from_slice(&bytes_of(first));
    block[32] = 0x80;
    block[62] = 0x01;
    let mut state = INITIAL;
    compress256(&mut state, &[block]);
    state
}

fn bytes_of(state: &[u32; 8]) -> [u8; 32] {
    let mut bytes = [0u8; 32];
    for (chunk, word) in bytes.chunks_exact_mut(4).zip(state) {
        chunk.copy_from_slice(&word.to_be_bytes());
    }
    bytes
}

/// Merkle root of one share of `job`, as SHA-256 words.
pub fn share_root(job: &JobTable, extranonce: &[u8; 16]) -> [u32; 8] {
    let mut state = job.midstate;
    let mut head = job.head;
    let at = usize::from(job.extranonce_offset);
    let bytes = usize::from(job.extranonce_bytes);
    debug_assert!(bytes <= EXTRANONCE_BYTES_MAX && at + bytes <= head.len());
    head[at..at + bytes].copy_from_slice(&extranonce[..bytes]);
    head[..usize::from(job.head_blocks) * 64].chunks_exact(64).for_each(|block| compress_slice(&mut state, block));
    compress256(&mut state, &job.tail);
    let mut current = second_hash(&state);
    for sibling in &job.branch {
        let mut block = [0u8; 64];
        block[..32].copy_from_slice(&bytes_of(&current));
        block[32..].copy_from_slice(&sibling.0);
        current = node(&block);
    }
    current
}

/// Header hash of one share of `job` over a merkle root, as SHA-256 words.
pub fn header_hash(job: &JobTable, root: &[u32; 8], version: u32, ntime: u32, nonce: u32) -> [u32; 8] {
    let mut header = [0u8; 128];
    header[..4].copy_from_slice(&version.to_le_bytes());
    header[4..36].copy_from_slice(&job.prev_hash.0);
    header[36..68].copy_from_slice(&bytes_of(root));
    header[68..72].copy_from_slice(&ntime.to_le_bytes());
    header[72..76].copy_from_slice(&job.nbits.to_le_bytes());
    header[76..80].copy_from_slice(&nonce.to_le_bytes());
    header[80] = 0x80;
    header[126] = 0x02;
    header[127] = 0x80;
    let mut state = INITIAL;
    header.chunks_exact(64).for_each(|block| compress_slice(&mut state, block));
    second_hash(&state)
}

/// Header hash of one share of `job`, as SHA-256 words.
pub fn share_hash(job: &JobTable, extranonce: &[u8; 16], version: u32, ntime: u32, nonce: u32) -> [u32; 8] {
    header_hash(job, &share_root(job, extranonce), version, ntime, nonce)
}

/// Judges a batch.
pub fn judge(job: &JobTable, batch: &ShareBatch, out: &mut Judged) {
    for lane in 0..batch.count as usize {
        for (column, word) in out.root.iter_mut().zip(share_root(job, &batch.extranonce[lane])) {
            column[lane] = word;
        }
    }
    judge_headers(job, batch, out);
}

/// Judges a batch by its roots. Remembers the target of the last work seen, as most sessions share one.
pub fn judge_headers(job: &JobTable, batch: &ShareBatch, out: &mut Judged) {
    out.share_mask = 0;
    out.network_mask = 0;
    let mut known: (u64, Target) = (1, Work::new(1).target());
    for lane in 0..batch.count as usize {
        let root = std::array::from_fn(|word| out.root[word][lane]);
        let words = header_hash(job, &root, batch.version[lane], batch.ntime[lane], batch.nonce[lane]);
        for (column, word) in out.hash.iter_mut().zip(words) {
            column[lane] = word;
        }
        if batch.work[lane] != known.0 {
            known = (batch.work[lane], Work::new(batch.work[lane]).target());
        }
        let hash = Hash256(bytes_of(&words));
        out.share_mask |= u32::from(known.1.is_met_by(&hash)) << lane;
        out.network_mask |= u32::from(job.network_target.is_met_by(&hash)) << lane;
    }
}
