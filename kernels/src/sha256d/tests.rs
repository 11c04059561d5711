use super::*;
use otedama_primitives::{Coin, Job, JobId, Target, Work, decode_hex};
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

/// Xorshift: tests name their seed.
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> usize {
        (self.next() % end) as usize
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }

    fn hash(&mut self) -> [u8; 32] {
        let mut hash = [0; 32];
        hash.fill_with(|| self.next() as u8);
        hash
    }
}

/// A job of any shape.
pub(super) fn random_job(random: &mut Random) -> Job {
    let (prefix, suffix, levels) = (random.below(260), random.below(260), random.below(17));
    let (prefix, suffix) = (random.bytes(prefix), random.bytes(suffix));
    let branch = (0..levels).map(|_| random.hash()).collect();
    let mut job = job(prefix, suffix, branch, 4 + random.below(5) as u8);
    job.prev_hash = Hash256(random.hash());
    job.nbits = random.next() as u32;
    job
}

/// Shares of mixed work; what a kernel must not read is noise.
pub(super) fn random_batch(random: &mut Random, count: usize) -> ShareBatch {
    let mut batch = ShareBatch { count: count as u32, ..Default::default() };
    for share in 0..BATCH {
        batch.extranonce[share][..8].copy_from_slice(&random.next().to_le_bytes());
        batch.extranonce[share][8..].copy_from_slice(&random.next().to_le_bytes());
        batch.version[share] = random.next() as u32;
        batch.ntime[share] = random.next() as u32;
        batch.nonce[share] = random.next() as u32;
        batch.work[share] = 1 + random.next() % 4;
    }
    batch
}

/// The instruction sets that this CPU has; the others are skipped aloud.
fn available(test: &str) -> Vec<Isa> {
    let available = Isa::available();
    for isa in [Isa::Avx2, Isa::ShaNi, Isa::Avx512].into_iter().filter(|isa| !available.contains(isa)) {
        println!("skipped: {test} for {}: this CPU does not have it", isa.name());
    }
    available
}

/// Every instruction set, whole shares and by roots, against scalar.
fn assert_all_agree(isas: &[Isa], table: &JobTable, batch: &ShareBatch) {
    let mut expected = Judged::default();
    scalar::judge(table, batch, &mut expected);
    for &isa in isas {
        let mut out = Judged::default();
        judge(isa, table, batch, &mut out);
        let mut again = Judged { root: expected.root, ..Judged::default() };
        judge_headers(isa, table, batch, &mut again);
        for share in 0..batch.count as usize {
            let root = |judged: &Judged| judged.root.map(|column| column[share]);
            assert_eq!(root(&out), root(&expected), "root of share {share} of {} by {isa:?}", batch.count);
            assert_eq!(out.hash_of(share), expected.hash_of(share), "share {share} of {} by {isa:?}", batch.count);
            assert_eq!(again.hash_of(share), expected.hash_of(share), "share {share} of {} by {isa:?} over its root", batch.count);
        }
        for masks in [&out, &again] {
            assert_eq!((masks.share_mask, masks.network_mask), (expected.share_mask, expected.network_mask), "masks of {isa:?}");
        }
    }
}

#[test]
fn sha_256_gives_the_published_digests() {
    // NIST: FIPS 180-4's examples and the first cases of CAVP's SHA256ShortMsg.
    let cases: [(&[u8], &str); 5] = [
        (b"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        (b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        (b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"),
        (
            b"abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu",
            "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1",
        ),
        (&[0xd3], "28969cdfa74a12c82f3bad960b0b000aca2ac329deea5c2328ebc6f2ba9802c1"),
    ];
    for (message, digest) in cases {
        let words = scalar::sha256(message);
        assert_eq!(words.iter().map(|word| format!("{word:08x}")).collect::<String>(), digest);
    }
    let million = scalar::sha256(&vec![b'a'; 1_000_000]);
    assert_eq!(million, [0xcdc7_6e5c, 0x9914_fb92, 0x81a1_c7e2, 0x84d7_3e67, 0xf180_9a48, 0xa497_200e, 0x046d_39cc, 0xc711_2cd0]);
}

#[test]
fn known_block_headers_hash_to_their_names() {
    // Mainnet, each proven by its own hash.
    let headers: Vec<serde_json::Value> =
        serde_json::from_str(include_str!("../../tests/vectors/btc_headers.json")).expect("the vectors are JSON");
    assert!(headers.len() >= 4);
    for case in headers {
        let mut header = [0u8; 80];
        decode_hex(case["header"].as_str().expect("hex").as_bytes(), &mut header).expect("160 digits");
        let name = case["hash"].as_str().expect("a hash");
        assert_eq!(scalar::sha256d(&header).to_string(), name);
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let mut job = job(vec![], vec![], vec![], 8);
        job.prev_hash.0.copy_from_slice(&header[4..36]);
        job.nbits = word(72);
        job.network_target = Target::from_compact(job.nbits).expect("a target");
        let table = JobTable::new(&job);
        for isa in available("known headers") {
            let mut batch = ShareBatch { count: 1, ..Default::default() };
            (batch.version[0], batch.ntime[0], batch.nonce[0]) = (word(0), word(68), word(76));
            let mut out = Judged::default();
            for (column, root) in out.root.iter_mut().zip(header[36..68].chunks_exact(4)) {
                column[0] = u32::from_be_bytes(root.try_into().expect("four bytes"));
            }
            judge_headers(isa, &table, &batch, &mut out);
            assert_eq!(out.hash_of(0).to_string(), name, "{isa:?}");
            assert_eq!(out.network_mask, 1, "{isa:?}: a block meets the network's target");
        }
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
    let table = JobTable::new(&job);
    available("the share of sv1_jobs.json").iter().for_each(|&isa| judge_the_known_share(isa, &table, &batch));
}

fn judge_the_known_share(isa: Isa, table: &JobTable, batch: &ShareBatch) {
    let mut out = Judged::default();
    judge(isa, table, batch, &mut out);
    assert_eq!(out.hash_of(0).to_string(), "0000f4abf1e9b1aab7ae98c01099f41a077f26fcc94595e920627dcc3518ec43");
    assert_eq!((out.share_mask, out.network_mask), (1, 1));
    let expected = 1.596_503_001_041_592_3e-5_f64;
    assert!((f64::from(out.difficulty_of(0)) / expected - 1.0).abs() < 1e-6);
}

#[test]
fn an_extranonce_may_stand_at_every_offset() {
    // Every offset in a block twice over, so that it straddles every edge, with every length, alone, in a stream group and in lanes.
    let isas = available("an extranonce at every offset");
    let mut random = Random(0x0ff5e7);
    for prefix in 0..=130 {
        for extranonce2_bytes in 4..=8 {
            let suffix = random.below(130);
            let job = job(random.bytes(prefix), random.bytes(suffix), vec![random.hash()], extranonce2_bytes);
            let table = JobTable::new(&job);
            let batch = random_batch(&mut random, [1, 5, 17, 32][prefix % 4]);
            assert_all_agree(&isas, &table, &batch);
            let share = random.below(u64::from(batch.count));
            let mut out = Judged::default();
            judge(Isa::Portable, &table, &batch, &mut out);
            let extranonce = &batch.extranonce[share][..4 + usize::from(extranonce2_bytes)];
            let slow = slow_header_hash(&job, extranonce, batch.version[share], batch.ntime[share], batch.nonce[share]);
            assert_eq!(out.hash_of(share), slow, "{prefix} bytes before {extranonce2_bytes}");
        }
    }
}

#[test]
fn a_million_random_shares_agree() {
    // 10^8 once per change of a kernel: OTEDAMA_LONG=1.
    let isas = available("a million random shares");
    let total: u64 = if std::env::var_os("OTEDAMA_LONG").is_some() { 100_000_000 } else { 1_000_000 };
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get() as u64);
    let (done, levels, counts) = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|thread| {
                let isas = &isas;
                scope.spawn(move || {
                    let mut random = Random(0xc0ffee ^ thread << 32);
                    // One bit for each number of levels, and of shares less one.
                    let (mut done, mut levels, mut counts) = (0, 0_u32, 0_u32);
                    while done < total.div_ceil(threads) {
                        // From 0 to 16 levels. A table serves a few batches.
                        let job = random_job(&mut random);
                        levels |= 1 << job.branch.len();
                        let table = JobTable::new(&job);
                        for _ in 0..8 {
                            let count = if random.below(4) == 0 { 1 + random.below(32) } else { BATCH };
                            let batch = random_batch(&mut random, count);
                            assert_all_agree(isas, &table, &batch);
                            done += count as u64;
                            counts |= 1 << (count - 1);
                        }
                    }
                    (done, levels, counts)
                })
            })
            .collect();
        running
            .into_iter()
            .map(|thread| thread.join().expect("no kernel disagrees"))
            .fold((0, 0, 0), |sum: (u64, u32, u32), one| (sum.0 + one.0, sum.1 | one.1, sum.2 | one.2))
    });
    println!("{done} shares agree over {} instruction sets", isas.len());
    assert_eq!(levels, (1 << 17) - 1, "one bit for each number of levels: all from 0 to 16 were among them");
    assert_eq!(counts, u32::MAX, "one bit for each length of a batch: all from 1 to 32 were among them");
}

/// Words of a hash whose number is these limbs.
fn words_of(limbs: [u64; 4]) -> [u32; 8] {
    let mut words = [0; 8];
    for (pair, limb) in words.chunks_exact_mut(2).zip(limbs) {
        pair[0] = (limb as u32).swap_bytes();
        pair[1] = ((limb >> 32) as u32).swap_bytes();
    }
    words
}

fn neighbour(limbs: [u64; 4], step: i8) -> [u64; 4] {
    let mut limbs = limbs;
    for limb in &mut limbs {
        let (next, carry) = if step > 0 { limb.overflowing_add(1) } else { limb.overflowing_sub(u64::from(step < 0)) };
        *limb = next;
        if !carry {
            break;
        }
    }
    limbs
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn sha_256_agrees_with_the_crate(message in prop::collection::vec(any::<u8>(), 0..300)) {
        let digest: [u8; 32] = Sha256::digest(&message).into();
        prop_assert_eq!(scalar::sha256(&message), table::words::<8>(&digest));
        prop_assert_eq!(scalar::sha256d(&message).0, slow_sha256d(&message));
    }

    #[test]
    fn every_kernel_agrees_with_hashing_share_by_share(
        prefix in prop_oneof![0usize..200, 50usize..66, 115usize..130].prop_flat_map(|len| prop::collection::vec(any::<u8>(), len)),
        suffix in prop::collection::vec(any::<u8>(), 0usize..200),
        branch in prop::collection::vec(any::<[u8; 32]>(), 0usize..=16),
        extranonce2_bytes in 4u8..=8,
        shares in 1usize..=64,
        seed in any::<u64>(),
    ) {
        let job = job(prefix, suffix, branch, extranonce2_bytes);
        let table = JobTable::new(&job);
        let mut random = Random(seed | 1);
        let mut left = shares;
        while left > 0 {
            let count = left.min(BATCH);
            left -= count;
            let mut batch = random_batch(&mut random, count);
            let slow: Vec<Hash256> = (0..count).map(|share| {
                let extranonce = &batch.extranonce[share][..4 + usize::from(extranonce2_bytes)];
                slow_header_hash(&job, extranonce, batch.version[share], batch.ntime[share], batch.nonce[share])
            }).collect();
            for (work, hash) in batch.work.iter_mut().zip(&slow) {
                // The largest work that the hash meets, floor(2^256 / (hash + 1)), or one more, or anything.
                let largest = Target(hash.limbs()).work().hashes();
                *work = match random.below(4) { 0 => largest, 1 => largest.saturating_add(1), 2 => random.next().max(1), _ => 1 };
            }
            for isa in Isa::available() {
                let mut out = Judged::default();
                judge(isa, &table, &batch, &mut out);
                for (share, slow) in slow.iter().enumerate() {
                    prop_assert_eq!(out.hash_of(share), *slow, "{:?}", isa);
                    prop_assert_eq!(out.share_mask >> share & 1 == 1, Work::new(batch.work[share]).target().is_met_by(slow), "{:?}", isa);
                    prop_assert_eq!(out.network_mask >> share & 1 == 1, job.network_target.is_met_by(slow), "{:?}", isa);
                }
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn hashes_at_their_targets_and_beside_them_are_told_apart(
        cases in prop::collection::vec((prop_oneof![1u64..5, Just(u64::MAX), (0u32..64).prop_map(|bit| 1 << bit), any::<u64>()], -1i8..=1, any::<bool>()), 1..=32),
        network in prop_oneof![Just(u64::MAX), (0u32..64).prop_map(|bit| 1 << bit), 1u64..1000],
    ) {
        // Hashes are put in, not found: a tie of the top 64 bits is one in 2^64.
        let mut job = job(vec![], vec![], vec![], 8);
        job.network_target = Work::new(network).target();
        let table = JobTable::new(&job);
        let mut batch = ShareBatch { count: cases.len() as u32, ..Default::default() };
        let mut out = Judged { share_mask: u32::MAX, network_mask: u32::MAX, ..Judged::default() };
        let mut expected = (0, 0);
        for (share, &(work, step, at_network)) in cases.iter().enumerate() {
            let work = Work::new(work);
            batch.work[share] = work.hashes();
            let limbs = neighbour(if at_network { job.network_target.0 } else { work.target().0 }, step);
            for (column, word) in out.hash.iter_mut().zip(words_of(limbs)) {
                column[share] = word;
            }
            prop_assert_eq!(out.hash_of(share).limbs(), limbs);
            expected.0 |= u32::from(work.target().is_met_by(&out.hash_of(share))) << share;
            expected.1 |= u32::from(job.network_target.is_met_by(&out.hash_of(share))) << share;
        }
        compare::compare(&table, &batch, &mut out);
        prop_assert_eq!((out.share_mask, out.network_mask), expected);
    }

    #[test]
    fn the_network_target_is_met_at_equality_and_not_one_above(extranonce in any::<[u8; 16]>(), nonce in any::<u32>()) {
        let mut job = job(vec![1; 70], vec![2; 90], vec![[3; 32]; 2], 8);
        let hash = slow_header_hash(&job, &extranonce[..12], 1, 2, nonce);
        let mut batch = ShareBatch { count: 1, ..Default::default() };
        (batch.extranonce[0], batch.version[0], batch.ntime[0], batch.nonce[0]) = (extranonce, 1, 2, nonce);
        for isa in Isa::available() {
            let mut out = Judged::default();
            for (step, met) in [(1, 1), (0, 1), (-1, 0)] {
                job.network_target = Target(neighbour(hash.limbs(), step));
                judge(isa, &JobTable::new(&job), &batch, &mut out);
                prop_assert_eq!(out.network_mask, met, "{:?}, target {:+} from the hash", isa, step);
            }
        }
    }
}

#[test]
fn a_name_that_the_cpu_lacks_or_nobody_knows_chooses_nothing() {
    assert_eq!(Isa::choose("auto"), Isa::available().last().copied());
    assert_eq!(Isa::choose("portable"), Some(Isa::Portable));
    assert_eq!(Isa::choose("avx"), None);
    for isa in [Isa::Avx2, Isa::ShaNi, Isa::Avx512] {
        assert_eq!(Isa::choose(isa.name()).is_some(), Isa::available().contains(&isa));
    }
}
