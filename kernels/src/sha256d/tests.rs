use super::*;
use otedama_primitives::{Coin, JobId, Work};
use proptest::prelude::*;
use sha2::{Digest, Sha256};

fn slow_sha256d(message: &[u8]) -> [u8; 32] {
    Sha256::digest(Sha256::digest(message)).into()
}

fn job(prefix: Vec<u8>, suffix: Vec<u8>, branch: Vec<[u8; 32]>, extranonce2_bytes: u8) -> Job {
    Job {
        id: JobId(1),
        coin: Coin::Bitcoin,
        height: 1,
        prev_hash: Hash256([7; 32]),
        version: 0x2000_0000,
        nbits: 0x207f_ffff,
        ntime: 5,
        ntime_min: 1,
        coinbase_prefix: prefix.into(),
        coinbase_suffix: suffix.into(),
        branch: branch.into_iter().map(Hash256).collect(),
        extranonce2_bytes,
        network_target: Target::from_compact(0x207f_ffff).expect("regtest target"),
        clean: true,
        created_us: 0,
    }
}

fn slow_header_hash(job: &Job, extranonce: &[u8], version: u32, ntime: u32, nonce: u32) -> Hash256 {
    let coinbase = [&job.coinbase_prefix, extranonce, &job.coinbase_suffix].concat();
    let mut node = slow_sha256d(&coinbase);
    for sibling in &job.branch {
        node = slow_sha256d(&[node, sibling.0].concat());
    }
    let header =
        [&version.to_le_bytes()[..], &job.prev_hash.0, &node, &ntime.to_le_bytes(), &job.nbits.to_le_bytes(), &nonce.to_le_bytes()]
            .concat();
    Hash256(slow_sha256d(&header))
}

#[test]
fn known_block_headers_hash_to_their_names() {
    // Mainnet headers 0 and 125552, from tests/vectors/btc_headers.json.
    let cases = [
        (
            "0100000000000000000000000000000000000000000000000000000000000000000000003ba3edfd7a7b12b27ac72c3e67768f617fc81bc3888a51323a9fb8aa4b1e5e4a29ab5f49ffff001d1dac2b7c",
            "000000000019d6689c085ae165831e934ff763ae46a2a6c172b3f1b60a8ce26f",
        ),
        (
            "0100000081cd02ab7e569e8bcd9317e2fe99f2de44d49ab2b8851ba4a308000000000000e320b6c2fffc8d750423db8b1eb942ae710e951ed797f7affc8892b0f1fc122bc7f5d74df2b9441a42a14695",
            "00000000000000001e8d6829a8a21adc5d38d0a473b144b6765798e61f98bd1d",
        ),
    ];
    for (header, name) in cases {
        let mut bytes = [0u8; 80];
        otedama_primitives::decode_hex(header.as_bytes(), &mut bytes).expect("hex");
        assert_eq!(scalar::sha256d(&bytes).to_string(), name);
    }
}

#[test]
fn a_share_that_core_accepted_as_a_block_hashes_to_its_name() {
    // tests/vectors/sv1_jobs.json: all version bits of BIP 320 rolled; accepted by Bitcoin Core's engine.
    let unhex = |text: &str| {
        let mut bytes = vec![0u8; text.len() / 2];
        otedama_primitives::decode_hex(text.as_bytes(), &mut bytes).expect("hex");
        bytes
    };
    let mut job = job(
        unhex("02000000010000000000000000000000000000000000000000000000000000000000000000ffffffff1b02cd0004cbdb006b0c"),
        unhex(
            "2f746573742fffffffff0200f902950000000016001411111111111111111111111111111111111111110000000000000000266a24aa21a9ede2f61c3f71d1defd3fa999dfa36953755c690689799962b48bebd836974e8cf900000000",
        ),
        vec![],
        8,
    );
    let mut prev = unhex("77c756b7554ff2c4b97ef274a04fba6e9fcd907fe48ab8efd6c31120000262e9");
    prev.chunks_exact_mut(4).for_each(<[u8]>::reverse);
    job.prev_hash.0.copy_from_slice(&prev);
    let mut batch = ShareBatch { count: 1, ..Default::default() };
    batch.extranonce[0][..12].copy_from_slice(&unhex("4e06723cd8677143ecdde0c8"));
    batch.version[0] = 0x3fff_e000;
    batch.ntime[0] = 0x6b00_dbcb;
    batch.nonce[0] = 0x0001_87d2;
    let mut out = Judged::default();
    judge(Isa::Portable, &JobTable::new(&job), &batch, &mut out);
    assert_eq!(out.hash_of(0).to_string(), "0000f4abf1e9b1aab7ae98c01099f41a077f26fcc94595e920627dcc3518ec43");
    assert_eq!((out.share_mask, out.network_mask), (1, 1));
    let expected = 1.596_503_001_041_592_3e-5_f64;
    assert!((f64::from(out.difficulty_of(0)) / expected - 1.0).abs() < 1e-6);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_kernel_agrees_with_hashing_share_by_share(
        prefix in prop_oneof![0usize..200, 50usize..66, 115usize..130].prop_flat_map(|len| prop::collection::vec(any::<u8>(), len)),
        suffix in prop::collection::vec(any::<u8>(), 0usize..200),
        branch in prop::collection::vec(any::<[u8; 32]>(), 0usize..=16),
        extranonce2_bytes in 4u8..=8,
        count in 1u32..=32,
        seed in any::<u64>(),
    ) {
        let job = job(prefix, suffix, branch, extranonce2_bytes);
        let table = JobTable::new(&job);
        let mut batch = ShareBatch { count, ..Default::default() };
        let mut state = seed | 1;
        let mut next = || { state ^= state << 13; state ^= state >> 7; state ^= state << 17; state };
        for lane in 0..count as usize {
            batch.extranonce[lane][..8].copy_from_slice(&next().to_le_bytes());
            batch.extranonce[lane][8..].copy_from_slice(&next().to_le_bytes());
            (batch.version[lane], batch.ntime[lane], batch.nonce[lane]) = (next() as u32, next() as u32, next() as u32);
            // Targets at the hash itself, one above and one below decide `<=` against `<`.
            batch.work[lane] = 1 + next() % 4;
        }
        for isa in Isa::available() {
            let mut out = Judged::default();
            judge(isa, &table, &batch, &mut out);
            for lane in 0..count as usize {
                let slow = slow_header_hash(&job, &batch.extranonce[lane][..4 + usize::from(extranonce2_bytes)], batch.version[lane], batch.ntime[lane], batch.nonce[lane]);
                prop_assert_eq!(out.hash_of(lane), slow);
                prop_assert_eq!(out.share_mask >> lane & 1 == 1, Work::new(batch.work[lane]).target().is_met_by(&slow));
                prop_assert_eq!(out.network_mask >> lane & 1 == 1, job.network_target.is_met_by(&slow));
            }
        }
    }

    #[test]
    fn the_network_target_is_met_at_equality_and_not_one_above(extranonce in any::<[u8; 16]>(), nonce in any::<u32>()) {
        let mut job = job(vec![1; 70], vec![2; 90], vec![[3; 32]; 2], 8);
        let hash = slow_header_hash(&job, &extranonce[..12], 1, 2, nonce);
        let mut batch = ShareBatch { count: 1, ..Default::default() };
        (batch.extranonce[0], batch.version[0], batch.ntime[0], batch.nonce[0]) = (extranonce, 1, 2, nonce);
        let mut out = Judged::default();
        job.network_target = Target(hash.limbs());
        judge(Isa::Portable, &JobTable::new(&job), &batch, &mut out);
        prop_assert_eq!(out.network_mask, 1);
        let mut limbs = hash.limbs();
        limbs[0] = limbs[0].wrapping_sub(1);
        prop_assume!(limbs[0] != u64::MAX);
        job.network_target = Target(limbs);
        judge(Isa::Portable, &JobTable::new(&job), &batch, &mut out);
        prop_assert_eq!(out.network_mask, 0);
    }
}
