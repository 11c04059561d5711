//! Double SHA-256 over lanes: many shares of one job at a time, so that an out-of-order core overlaps calls that do not wait for each other.
//!
//! Every call below runs one compression for each lane before the next stage starts. One share at a time waits for its own previous
//! compression; sixteen lanes hide about a third of that latency on a CPU with SHA extensions.
use crate::job::Job;
use otedama_primitives::{Hash256, Target};
use sha2::block_api::compress256;

/// Shares that one call of `merkle_roots` takes at most.
pub const LANES: usize = 16;

/// The eight words of a SHA-256 state.
pub type State = [u32; 8];

/// The initial state of SHA-256 (FIPS 180-4, 5.3.3).
pub const INITIAL: State = [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// The padding block after a message of 64 bytes.
const PADDING_AFTER_64: [u8; 64] = padding(64, 0);

/// A block of padding for a message of `message_bytes`, whose last block holds `used` bytes before the padding starts.
const fn padding(message_bytes: u64, used: usize) -> [u8; 64] {
    let mut block = [0u8; 64];
    block[used] = 0x80;
    let bits = (message_bytes * 8).to_be_bytes();
    let mut index = 0;
    while index < 8 {
        block[56 + index] = bits[index];
        index += 1;
    }
    block
}

fn put_state(state: &State, into: &mut [u8]) {
    for (four, word) in into.chunks_exact_mut(4).zip(state) {
        four.copy_from_slice(&word.to_be_bytes());
    }
}

fn bytes_of(state: &State) -> [u8; 32] {
    let mut bytes = [0u8; 32];
    put_state(state, &mut bytes);
    bytes
}

/// Absorbs whole blocks of a constant prefix; the rest of `prefix` (under 64 bytes) is left to the caller.
pub fn midstate(prefix: &[u8]) -> State {
    let mut state = INITIAL;
    let (blocks, _rest) = prefix.as_chunks::<64>();
    compress256(&mut state, blocks);
    state
}

/// SHA-256d of `bytes`, one message at a time.
pub fn sha256d(bytes: &[u8]) -> Hash256 {
    let mut state = INITIAL;
    let (blocks, rest) = bytes.as_chunks::<64>();
    compress256(&mut state, blocks);
    let mut last = [[0u8; 64]; 2];
    last.as_flattened_mut()[..rest.len()].copy_from_slice(rest);
    last.as_flattened_mut()[rest.len()] = 0x80;
    let count = if rest.len() < 56 { 1 } else { 2 };
    last[count - 1][56..].copy_from_slice(&(bytes.len() as u64 * 8).to_be_bytes());
    compress256(&mut state, &last[..count]);
    Hash256(bytes_of(&second(&state)))
}

/// The outer hash of SHA-256d: the state of SHA-256 over the 32 bytes of `first`.
fn second(first: &State) -> State {
    let mut block = const { padding(32, 32) };
    put_state(first, &mut block[..32]);
    let mut state = INITIAL;
    compress256(&mut state, &[block]);
    state
}

/// Merkle roots of `extranonce2.len()` shares (1 to `LANES`) of one job and one session: `roots[lane]` belongs to `extranonce2[lane]`.
pub fn merkle_roots(job: &Job, extranonce1: &[u8], extranonce2: &[u64], roots: &mut [[u8; 32]]) {
    let count = extranonce2.len();
    assert!((1..=LANES).contains(&count) && roots.len() == count);
    let (varying, constant) = job.tail_blocks();
    let mut heads = [[[0u8; 64]; 2]; LANES];
    for (head, &value) in heads.iter_mut().zip(extranonce2) {
        head[..varying.len()].copy_from_slice(varying);
        job.put_extranonces(extranonce1, value, head.as_flattened_mut());
    }
    let mut states = [job.midstate(); LANES];
    let states = &mut states[..count];
    for index in 0..varying.len() {
        for (state, head) in states.iter_mut().zip(&heads) {
            compress256(state, &[head[index]]);
        }
    }
    for block in constant {
        for state in states.iter_mut() {
            compress256(state, std::slice::from_ref(block));
        }
    }
    let mut outer = const { [padding(32, 32); LANES] };
    let mut nodes = [[0u8; 64]; LANES];
    finish(states, &mut outer, &mut nodes);
    for sibling in job.branch() {
        for (state, node) in states.iter_mut().zip(&mut nodes) {
            node[32..].copy_from_slice(sibling);
            *state = INITIAL;
            compress256(state, std::slice::from_ref(node));
        }
        for state in states.iter_mut() {
            compress256(state, &[PADDING_AFTER_64]);
        }
        finish(states, &mut outer, &mut nodes);
    }
    for (root, node) in roots.iter_mut().zip(&nodes) {
        root.copy_from_slice(&node[..32]);
    }
}

/// Outer hash of every lane; the digest lands in the left half of the lane's merkle node.
fn finish(states: &mut [State], outer: &mut [[u8; 64]; LANES], nodes: &mut [[u8; 64]; LANES]) {
    for (state, block) in states.iter_mut().zip(outer.iter_mut()) {
        put_state(state, &mut block[..32]);
        *state = INITIAL;
        compress256(state, std::slice::from_ref(block));
    }
    for (state, node) in states.iter().zip(nodes.iter_mut()) {
        put_state(state, &mut node[..32]);
    }
}

/// A header whose nonce is still open: the state after its first 64 bytes and the block of the rest.
#[derive(Clone, Copy)]
pub struct OpenHeader {
    state: State,
    rest: [u8; 64],
}

impl OpenHeader {
    /// The header of `job` with this root, header time and full version.
    pub fn new(job: &Job, root: &[u8; 32], ntime: u32, version: u32) -> Self {
        let mut first = [0u8; 64];
        first[..4].copy_from_slice(&version.to_le_bytes());
        first[4..36].copy_from_slice(&job.prev_hash);
        first[36..].copy_from_slice(&root[..28]);
        let mut state = INITIAL;
        compress256(&mut state, &[first]);
        let mut rest = const { padding(80, 16) };
        rest[..4].copy_from_slice(&root[28..]);
        rest[4..8].copy_from_slice(&ntime.to_le_bytes());
        rest[8..12].copy_from_slice(&job.nbits.to_le_bytes());
        Self { state, rest }
    }

    /// The final state of SHA-256d with this nonce.
    #[inline]
    pub fn hash(&mut self, nonce: u32) -> State {
        self.rest[12..16].copy_from_slice(&nonce.to_le_bytes());
        let mut state = self.state;
        compress256(&mut state, std::slice::from_ref(&self.rest));
        second(&state)
    }
}

/// The hash of one complete share.
pub fn share_hash(job: &Job, extranonce1: &[u8], extranonce2: u64, ntime: u32, nonce: u32, version: u32) -> Hash256 {
    let mut root = [[0u8; 32]];
    merkle_roots(job, extranonce1, &[extranonce2], &mut root);
    Hash256(bytes_of(&OpenHeader::new(job, &root[0], ntime, version).hash(nonce)))
}

/// True when the hash whose final state this is meets the target. The top 64 bits decide all but one in 2^64.
#[inline]
pub fn meets(state: &State, target: &Target) -> bool {
    let top = (u64::from(state[7].swap_bytes()) << 32) | u64::from(state[6].swap_bytes());
    if top == target.0[3] { target.is_met_by(&Hash256(bytes_of(state))) } else { top < target.0[3] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use otedama_primitives::decode_hex;
    use proptest::prelude::*;

    fn hex(text: &str) -> Vec<u8> {
        let mut bytes = vec![0u8; text.len() / 2];
        decode_hex(text.as_bytes(), &mut bytes).expect("hex");
        bytes
    }

    fn field<'a>(value: &'a serde_json::Value, path: &str) -> &'a str {
        value.pointer(path).and_then(serde_json::Value::as_str).unwrap_or_else(|| panic!("no {path}"))
    }

    #[test]
    fn known_headers_have_their_known_hashes() {
        let headers: Vec<serde_json::Value> = serde_json::from_str(include_str!("../tests/vectors/btc_headers.json")).expect("json");
        assert!(!headers.is_empty());
        for header in &headers {
            assert_eq!(sha256d(&hex(field(header, "/header"))).to_string(), field(header, "/hash"));
        }
    }

    #[test]
    fn a_share_that_a_node_accepted_hashes_to_its_known_root_and_hash() {
        let jobs: Vec<serde_json::Value> = serde_json::from_str(include_str!("../tests/vectors/sv1_jobs.json")).expect("json");
        assert!(!jobs.is_empty());
        for vector in &jobs {
            let extranonce1 = hex(field(vector, "/job/extranonce1"));
            let extranonce2 = hex(field(vector, "/submit/extranonce2"));
            let notify = serde_json::json!([
                "1",
                field(vector, "/job/prevhash"),
                field(vector, "/job/coinb1"),
                field(vector, "/job/coinb2"),
                vector["job"]["merkle_branch"],
                field(vector, "/job/version"),
                field(vector, "/job/nbits"),
                field(vector, "/submit/ntime"),
                true
            ]);
            let job = Job::from_notify(&notify.to_string(), extranonce1.len(), extranonce2.len()).expect("notify");
            let number = |path| u32::from_str_radix(field(vector, path), 16).expect("hex");
            let mask = number("/job/version_mask");
            let version = (job.version & !mask) | (number("/submit/version_bits") & mask);
            let value = extranonce2.iter().fold(0u64, |value, &byte| (value << 8) | u64::from(byte));
            let mut root = [[0u8; 32]];
            merkle_roots(&job, &extranonce1, &[value], &mut root);
            assert_eq!(root[0].to_vec(), hex(field(vector, "/merkle_root_internal")));
            let hash = share_hash(&job, &extranonce1, value, number("/submit/ntime"), number("/submit/nonce"), version);
            assert_eq!(hash.to_string(), field(vector, "/hash"));
        }
    }

    fn slow_root(coinbase: &[u8], branch: &[[u8; 32]]) -> [u8; 32] {
        use sha2::{Digest, Sha256};
        let twice = |bytes: &[u8]| -> [u8; 32] { Sha256::digest(Sha256::digest(bytes)).into() };
        branch.iter().fold(twice(coinbase), |acc, sibling| twice(&[acc, *sibling].concat()))
    }

    proptest! {
        #[test]
        fn lanes_agree_with_hashing_one_coinbase_at_a_time(
            prefix in prop_oneof![Just(0usize), 50usize..70, 110usize..132, 0usize..300],
            suffix in prop_oneof![Just(0usize), 40usize..70, 0usize..300],
            levels in 0usize..16,
            sizes in (1usize..=8, 4usize..=8),
            lanes in 1usize..=LANES,
            seed in any::<u64>(),
        ) {
            let mut state = seed;
            let mut bytes = |count: usize| (0..count).map(|_| crate::random::next(&mut state) as u8).collect::<Vec<u8>>();
            let (coinb1, coinb2, extranonce1) = (bytes(prefix), bytes(suffix), bytes(sizes.0));
            let branch: Vec<[u8; 32]> = (0..levels).map(|_| bytes(32).try_into().expect("32")).collect();
            let job = Job::from_parts(&coinb1, &coinb2, &branch, sizes.0, sizes.1);
            let mask = if sizes.1 == 8 { u64::MAX } else { (1 << (8 * sizes.1)) - 1 };
            let values: Vec<u64> = (0..lanes).map(|lane| seed.rotate_left(lane as u32) & mask).collect();
            let mut roots = vec![[0u8; 32]; lanes];
            merkle_roots(&job, &extranonce1, &values, &mut roots);
            for (root, value) in roots.iter().zip(&values) {
                let coinbase = [&coinb1[..], &extranonce1, &value.to_be_bytes()[8 - sizes.1..], &coinb2].concat();
                prop_assert_eq!(*root, slow_root(&coinbase, &branch));
            }
        }

        #[test]
        fn the_quick_target_test_is_the_full_one(words in prop::array::uniform8(prop_oneof![Just(0u32), Just(u32::MAX), any::<u32>()]), lower in -1i64..=1) {
            let hash = Hash256(bytes_of(&words));
            let mut limbs = hash.limbs();
            limbs[0] = limbs[0].wrapping_add(lower as u64);
            let target = Target(limbs);
            prop_assert_eq!(meets(&words, &target), target.is_met_by(&hash));
        }
    }
}
