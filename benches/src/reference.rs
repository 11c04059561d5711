//! Shares hashed with the `sha2` crate alone, written apart from the kernels: what they are checked against and compared with.
use otedama_primitives::Job;
use sha2::block_api::compress256;
use sha2::{Digest, Sha256};

/// SHA-256 initial state (FIPS 180-4, 5.3.3).
const INITIAL: [u32; 8] = [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// What varies from share to share of a job. `extranonce` is extranonce1 and extranonce2, 12 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Varying {
    /// As it stands in the coinbase.
    pub extranonce: [u8; 12],
    /// Of the header.
    pub version: u32,
    /// Of the header.
    pub ntime: u32,
    /// Of the header.
    pub nonce: u32,
}

/// A job ready to be hashed share by share.
pub struct Reference<'a> {
    job: &'a Job,
    /// After the whole blocks before the extranonce, as a user of the crate keeps it.
    hasher: Sha256,
    /// The same, for the bare compression function.
    midstate: [u32; 8],
    /// The coinbase from the block that holds the extranonce, padded, zeros in its place.
    rest: Vec<[u8; 64]>,
    extranonce_at: usize,
}

impl<'a> Reference<'a> {
    /// Prepares what all shares of the job share.
    pub fn new(job: &'a Job) -> Self {
        let whole = job.coinbase_prefix.len() / 64 * 64;
        let (before, after) = job.coinbase_prefix.split_at(whole);
        let mut rest = [after, &[0; 12], &job.coinbase_suffix].concat();
        rest.push(0x80);
        rest.resize((rest.len() + 8).next_multiple_of(64) - 8, 0);
        rest.extend(((before.len() + after.len() + 12 + job.coinbase_suffix.len()) as u64 * 8).to_be_bytes());
        let mut midstate = INITIAL;
        compress256(&mut midstate, before.as_chunks::<64>().0);
        Self {
            job,
            hasher: Sha256::new().chain_update(before),
            midstate,
            rest: rest.as_chunks::<64>().0.to_vec(),
            extranonce_at: after.len(),
        }
    }

    /// Header hash of a share, nothing prepared: the coinbase put together and hashed from its first byte.
    pub fn naive(&self, share: &Varying) -> [u8; 32] {
        let coinbase = [&self.job.coinbase_prefix[..], &share.extranonce, &self.job.coinbase_suffix].concat();
        self.header(self.climb(Sha256::digest(Sha256::digest(coinbase)).into()), share)
    }

    /// Header hash of a share from a clone of the hasher that has read the blocks before the extranonce: the crate as its users know it.
    pub fn midstate(&self, share: &Varying) -> [u8; 32] {
        let mut hasher = self.hasher.clone();
        hasher.update(&self.job.coinbase_prefix[self.job.coinbase_prefix.len() - self.extranonce_at..]);
        hasher.update(share.extranonce);
        hasher.update(&self.job.coinbase_suffix);
        self.header(self.climb(Sha256::digest(hasher.finalize()).into()), share)
    }

    fn climb(&self, mut node: [u8; 32]) -> [u8; 32] {
        for sibling in &self.job.branch {
            let first = Sha256::new().chain_update(node).chain_update(sibling.0).finalize();
            node = Sha256::digest(first).into();
        }
        node
    }

    /// Header hash over a known root.
    pub fn header(&self, root: [u8; 32], share: &Varying) -> [u8; 32] {
        Sha256::digest(Sha256::digest(self.header_bytes(root, share))).into()
    }

    fn header_bytes(&self, root: [u8; 32], share: &Varying) -> [u8; 80] {
        let mut header = [0; 80];
        header[..4].copy_from_slice(&share.version.to_le_bytes());
        header[4..36].copy_from_slice(&self.job.prev_hash.0);
        header[36..68].copy_from_slice(&root);
        header[68..72].copy_from_slice(&share.ntime.to_le_bytes());
        header[72..76].copy_from_slice(&self.job.nbits.to_le_bytes());
        header[76..].copy_from_slice(&share.nonce.to_le_bytes());
        header
    }

    /// Header hash of a share by the bare compression function from a stored midstate: the crate without its buffering, share at a time.
    pub fn compressed(&self, share: &Varying) -> [u8; 32] {
        let mut state = self.midstate;
        let mut first = [self.rest[0], self.rest[1]];
        first.as_flattened_mut()[self.extranonce_at..self.extranonce_at + 12].copy_from_slice(&share.extranonce);
        compress256(&mut state, &first);
        compress256(&mut state, &self.rest[2..]);
        let mut node = second(state);
        for sibling in &self.job.branch {
            let mut blocks = [[0; 64]; 2];
            blocks[0][..32].copy_from_slice(&node);
            blocks[0][32..].copy_from_slice(&sibling.0);
            (blocks[1][0], blocks[1][62]) = (0x80, 0x02);
            let mut state = INITIAL;
            compress256(&mut state, &blocks);
            node = second(state);
        }
        self.header_compressed(node, share)
    }

    /// Header hash over a known root, by the bare compression function.
    pub fn header_compressed(&self, root: [u8; 32], share: &Varying) -> [u8; 32] {
        let mut blocks = [[0; 64]; 2];
        blocks.as_flattened_mut()[..80].copy_from_slice(&self.header_bytes(root, share));
        (blocks[1][16], blocks[1][62], blocks[1][63]) = (0x80, 0x02, 0x80);
        let mut state = INITIAL;
        compress256(&mut state, &blocks);
        second(state)
    }
}

/// SHA-256 of the 32 bytes of a state.
fn second(first: [u32; 8]) -> [u8; 32] {
    let mut block = [0; 64];
    block[..32].copy_from_slice(&bytes(first));
    (block[32], block[62]) = (0x80, 0x01);
    let mut state = INITIAL;
    compress256(&mut state, &[block]);
    bytes(state)
}

fn bytes(state: [u32; 8]) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (four, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(state) {
        *four = word.to_be_bytes();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::job;

    #[test]
    fn the_three_forms_give_one_hash() {
        for levels in [0, 1, 12] {
            let job = job(levels);
            let reference = Reference::new(&job);
            for seed in 0..8_u32 {
                let mut share = Varying { extranonce: [seed as u8; 12], version: seed << 13, ntime: !seed, nonce: seed };
                share.extranonce[11] = 255;
                let hash = reference.naive(&share);
                assert_eq!(reference.midstate(&share), hash);
                assert_eq!(reference.compressed(&share), hash);
                assert_eq!(reference.header([7; 32], &share), reference.header_compressed([7; 32], &share));
            }
        }
    }
}
