use super::*;
use crate::ring::{Full, ring};
use otedama_primitives::{Coin, RunId};
use proptest::prelude::*;
use std::collections::HashSet;

const REGTEST: u32 = 0x207f_ffff;

fn job(counter: u32, nbits: u32, extranonce2_bytes: u8) -> Arc<ValidatedJob> {
    Arc::new(ValidatedJob::new(&Job {
        id: RunId::new(1, 2).job(counter),
        coin: Coin::Bitcoin,
        height: counter,
        prev_hash: Hash256([counter as u8; 32]),
        version: 0x2000_0000,
        nbits,
        ntime: 1_700_000_000,
        ntime_min: 1_600_000_000,
        coinbase_prefix: [&[1u8; 60][..], &counter.to_be_bytes()].concat().into(),
        coinbase_suffix: vec![2; 90].into(),
        branch: vec![Hash256([3; 32]); 2].into(),
        extranonce2_bytes,
        network_target: Target::from_compact(nbits).expect("a target"),
        clean: true,
        created_us: 0,
    }))
}

/// A lane with the other ends of its rings.
struct Bench {
    lane: Validate,
    submits: Tx<Submit>,
    verdicts: Rx<Verdict>,
    blocks: Rx<BlockCandidate>,
    jobs: Tx<Arc<ValidatedJob>>,
    metrics: Arc<ValidateMetrics>,
    kept: Vec<Arc<ValidatedJob>>,
}

impl Bench {
    fn new(kernel: Kernel) -> Self {
        let (submits, submits_rx, _) = ring("net_validate", 1024, Full::Wait);
        let (verdicts_tx, verdicts, _) = ring("validate_log", 1024, Full::Wait);
        let (blocks_tx, blocks, _) = ring("validate_chain", 1024, Full::Flag);
        let (jobs, jobs_rx, _) = ring("chain_validate", 64, Full::Wait);
        let metrics = Arc::new(ValidateMetrics::default());
        let ports = ValidatePorts {
            submits: vec![submits_rx],
            verdicts: verdicts_tx,
            hashes: None,
            blocks: blocks_tx,
            block_bell: BlockBell::silent(),
            jobs: jobs_rx,
            metrics: metrics.clone(),
            nets_running: Arc::new(AtomicUsize::new(1)),
            validates_running: Arc::new(AtomicUsize::new(1)),
        };
        Self { lane: Validate::with_kernel(kernel, 77, ports), submits, verdicts, blocks, jobs, metrics, kept: vec![] }
    }

    fn publish(&mut self, job: Arc<ValidatedJob>) {
        self.kept.push(job.clone());
        assert!(self.jobs.push(job).is_ok());
    }

    /// One pass over these shares, at most `TAKE`.
    fn pass(&mut self, shares: &[Submit]) -> Vec<Verdict> {
        assert!(shares.len() <= TAKE);
        self.submits.push_all(shares);
        self.lane.step();
        self.lane.housekeeping();
        let mut verdicts = vec![Verdict::zeroed(); shares.len()];
        assert_eq!(self.verdicts.take_into(&mut verdicts), shares.len(), "one pass judges all of them");
        verdicts
    }

    fn count(&self, pick: impl Fn(&ValidateMetrics) -> &std::sync::atomic::AtomicU64) -> u64 {
        pick(&self.metrics).load(Ordering::Relaxed)
    }
}

fn share(job: u32, extranonce2: u64, nonce: u32, work: u64) -> Submit {
    Submit {
        job,
        extranonce1: 5,
        extranonce2,
        nonce,
        ntime: 1_700_000_000,
        version: 0x2000_0000,
        work,
        worker: 3,
        session: 4,
        status: Submit::PENDING,
        ..Submit::zeroed()
    }
}

/// Work that no share of a test meets.
const HOPELESS: u64 = u64::MAX;

#[test]
fn a_block_that_the_scalar_kernel_refutes_is_not_handed_on() {
    fn sees_blocks_everywhere(_: Isa, job: &JobTable, batch: &ShareBatch, judged: &mut Judged) {
        judge(Isa::Portable, job, batch, judged);
        judged.share_mask = u32::MAX >> (32 - batch.count);
        judged.network_mask = judged.share_mask;
    }
    let kernel = Kernel { isa: Isa::Portable, judge: sees_blocks_everywhere, judge_headers: sees_blocks_everywhere };
    let mut bench = Bench::new(kernel);
    bench.publish(job(1, 0x1d00_ffff, 8));
    let verdicts = bench.pass(&(0..40).map(|nonce| share(1, 1, nonce, HOPELESS)).collect::<Vec<_>>());
    assert_eq!(bench.blocks.available(), 0);
    assert!(verdicts.iter().all(|verdict| verdict.status == ShareStatus::LowDifficulty as u8 && verdict.flags == 0));
    // Every share of the pass was refuted; after it the kernel is the portable one.
    assert_eq!(bench.count(|metrics| &metrics.kernel_disagreed), 40);
    bench.pass(&(40..80).map(|nonce| share(1, 1, nonce, HOPELESS)).collect::<Vec<_>>());
    assert_eq!(bench.count(|metrics| &metrics.kernel_disagreed), 40);
    assert_eq!(bench.count(|metrics| &metrics.block_found), 0);
    assert_eq!(bench.lane.tables[1].used(), 0);
}

#[test]
fn a_kernel_that_hashes_one_lane_wrongly_is_found_out_when_that_lane_has_its_turn() {
    /// Wrong in the lane that stands in the version: neither the difficulty nor a mask shows it.
    fn flips_a_bit(_: Isa, job: &JobTable, batch: &ShareBatch, judged: &mut Judged) {
        judge(Isa::Portable, job, batch, judged);
        judged.hash[0][(batch.version[0] & 31) as usize] ^= 1;
    }
    let wrong_kernel = Kernel { isa: Isa::Portable, judge: flips_a_bit, judge_headers: flips_a_bit };
    let mut bench = Bench::new(wrong_kernel);
    bench.publish(job(1, 0x1d00_ffff, 8));
    let mut before = (0, 0);
    for wrong in 0..BATCH as u32 {
        for turn in [0, 1, 15, 16, 30, 31, wrong] {
            bench.lane.kernel = wrong_kernel;
            // Of the second batch of the pass.
            bench.lane.crosscheck_in = (BATCH as u32 + turn).into();
            let shares: Vec<_> = (0..70).map(|nonce| Submit { version: 0x2000_0000 | wrong, ..share(1, 1, nonce, HOPELESS) }).collect();
            bench.pass(&shares);
            let now = (bench.count(|metrics| &metrics.kernel_disagreed), bench.count(|metrics| &metrics.share_crosschecked));
            assert_eq!((now.0 - before.0, now.1 - before.1), (u64::from(wrong == turn), 1), "lane {wrong}, turn of {turn}");
            before = now;
        }
    }
}

/// Two passes over one extranonce, so that the second finds the roots of the first, with what the portable kernel makes of them.
struct Twice {
    first: Vec<Submit>,
    second: Vec<Submit>,
    right: Vec<Vec<Verdict>>,
    candidates: Vec<BlockCandidate>,
}

impl Twice {
    fn new(nbits: u32, work: u64) -> Self {
        let shares = |nonces: std::ops::Range<u32>| nonces.map(|nonce| share(1, 1, nonce, work)).collect::<Vec<_>>();
        let (first, second) = (shares(0..256), shares(256..512));
        let mut bench = Bench::new(Kernel::of(Isa::Portable));
        bench.publish(job(1, nbits, 8));
        let right = vec![bench.pass(&first), bench.pass(&second)];
        Self { first, second, right, candidates: std::iter::from_fn(|| bench.blocks.pop()).collect() }
    }
}

#[test]
fn after_a_disagreement_the_whole_pass_is_judged_anew() {
    /// Sees no block, and turns every other verdict round.
    fn turns_verdicts_round(_: Isa, job: &JobTable, batch: &ShareBatch, judged: &mut Judged) {
        judge(Isa::Portable, job, batch, judged);
        judged.network_mask = 0;
        judged.share_mask = !judged.share_mask & u32::MAX >> (32 - batch.count);
        judged.hash[7].iter_mut().for_each(|word| *word ^= 1);
    }
    let twice = Twice::new(REGTEST, 2);
    let mut bench = Bench::new(Kernel { isa: Isa::Portable, judge: turns_verdicts_round, judge_headers: turns_verdicts_round });
    bench.publish(job(1, REGTEST, 8));
    // The last share of the pass has its turn: seven batches have been judged wrongly by then, and not one block was seen.
    bench.lane.crosscheck_in = 255;
    assert_eq!(bench.pass(&twice.first), twice.right[0]);
    assert_eq!(bench.count(|metrics| &metrics.kernel_disagreed), 1);
    assert_eq!(bench.pass(&twice.second), twice.right[1]);
    // A candidate has the hash of its own share, though nobody saw it the first time.
    assert_eq!(std::iter::from_fn(|| bench.blocks.pop()).collect::<Vec<_>>(), twice.candidates);
    assert!(twice.candidates.len() > 100);
}

#[test]
fn after_a_disagreement_no_root_is_trusted() {
    fn makes_wrong_roots(_: Isa, job: &JobTable, batch: &ShareBatch, judged: &mut Judged) {
        judge(Isa::Portable, job, batch, judged);
        judged.root[0].iter_mut().for_each(|word| *word ^= 1);
    }
    /// As the one before, and found out at once.
    fn makes_wrong_hashes_too(isa: Isa, job: &JobTable, batch: &ShareBatch, judged: &mut Judged) {
        makes_wrong_roots(isa, job, batch, judged);
        judged.hash[0].iter_mut().for_each(|word| *word ^= 1);
    }
    // No block shows a wrong root here: what the cache has left would stand.
    let twice = Twice::new(0x1d00_ffff, 2);
    let mut bench = Bench::new(Kernel { isa: Isa::Portable, judge: makes_wrong_roots, judge_headers });
    bench.publish(job(1, 0x1d00_ffff, 8));
    assert_eq!(bench.pass(&twice.first), twice.right[0]);
    assert_eq!(bench.count(|metrics| &metrics.kernel_disagreed), 0, "the hashes of the first pass are right, its roots are not");
    bench.lane.kernel.judge = makes_wrong_hashes_too;
    bench.lane.crosscheck_in = 0;
    // Another extranonce: the roots of the first pass are not asked for.
    bench.pass(&[share(1, 9, 1, HOPELESS)]);
    assert_eq!(bench.count(|metrics| &metrics.kernel_disagreed), 1);
    assert_eq!(bench.pass(&twice.second), twice.right[1]);
}

#[test]
fn a_recomputed_lane_stands_as_the_scalar_kernel_has_it() {
    for lane in 0..BATCH {
        for (met, block) in [(false, false), (true, false), (true, true)] {
            let mut judged = Judged { share_mask: 0x5555_5555, network_mask: 0x3333_3333, ..Judged::default() };
            let hash = Hash256(std::array::from_fn(|byte| (byte * 7 + lane) as u8));
            correct(&mut judged, lane, &hash, met, block);
            assert_eq!(judged.hash_of(lane), hash);
            assert_eq!((judged.share_mask >> lane & 1 == 1, judged.network_mask >> lane & 1 == 1), (met, block));
            let others = !(1u32 << lane);
            assert_eq!((judged.share_mask & others, judged.network_mask & others), (0x5555_5555 & others, 0x3333_3333 & others));
        }
    }
}

#[test]
fn a_block_goes_to_chain_though_its_duplicate_table_is_full() {
    let mut bench = Bench::new(Kernel::of(Isa::Portable));
    let easy = job(1, REGTEST, 8);
    bench.publish(easy.clone());
    bench.lane.step();
    let table = &mut bench.lane.tables[1];
    let mut filler = 0;
    loop {
        let other = share(1, filler, 1 << 20, 1);
        if table.insert(&other, table.hash(&other)) == Inserted::Full {
            break;
        }
        filler += 1;
    }
    let shares: Vec<_> = (0..64).map(|nonce| share(1, 1 << 40, nonce, 1)).collect();
    let verdicts = bench.pass(&shares);
    let mut blocks = 0;
    for (submit, verdict) in shares.iter().zip(&verdicts) {
        assert_eq!(verdict.status, ShareStatus::Overload as u8);
        let hash = easy.hash(submit.extranonce1, submit.extranonce2, submit.version, submit.ntime, submit.nonce);
        let block = easy.network_target.is_met_by(&hash);
        assert_eq!(verdict.flags, if block { flags::BLOCK } else { 0 });
        if block {
            blocks += 1;
            assert_eq!(bench.blocks.pop().map(|candidate| candidate.hash), Some(hash));
        }
    }
    assert!(blocks > 10, "{blocks} of 64 hashes");
}

#[test]
fn a_block_that_the_ring_to_chain_has_no_room_for_is_flagged_in_its_row() {
    let mut bench = Bench::new(Kernel::of(Isa::Portable));
    let (blocks_tx, blocks, _) = ring("validate_chain", 4, Full::Flag);
    bench.lane.ports.blocks = blocks_tx;
    bench.blocks = blocks;
    bench.publish(job(1, REGTEST, 8));
    let verdicts = bench.pass(&(0..64).map(|nonce| share(1, 1, nonce, 1)).collect::<Vec<_>>());
    let of_blocks: Vec<_> = verdicts.iter().filter(|verdict| verdict.flags & flags::BLOCK != 0).collect();
    let handed_on = bench.blocks.available();
    assert!(handed_on >= 4 && of_blocks.len() > handed_on, "{handed_on} of {}", of_blocks.len());
    // In ring order: those that found room, then those that did not. Every other row is without the flag.
    let flagged: Vec<_> = of_blocks.iter().map(|verdict| verdict.flags & flags::FROM_LOG != 0).collect();
    assert_eq!(flagged, (0..of_blocks.len()).map(|at| at >= handed_on).collect::<Vec<_>>());
    assert!(verdicts.iter().all(|verdict| verdict.flags & flags::BLOCK != 0 || verdict.flags & flags::FROM_LOG == 0));
    assert_eq!(bench.count(|metrics| &metrics.block_flagged), (of_blocks.len() - handed_on) as u64);
}

#[test]
fn one_share_in_4096_is_recomputed_in_every_lane() {
    let mut bench = Bench::new(Kernel::of(Isa::Portable));
    bench.publish(job(1, 0x1d00_ffff, 8));
    let mut turns = HashSet::new();
    for pass in 0..16 * 40u32 {
        // The lane in whose turn the next recomputed share will be, once the passes before it have gone by.
        turns.insert(bench.lane.crosscheck_in % BATCH as u64);
        bench.pass(&(0..256).map(|nonce| share(1, 1, pass * 256 + nonce, HOPELESS)).collect::<Vec<_>>());
    }
    let checked = bench.count(|metrics| &metrics.share_crosschecked);
    assert!((38..=42).contains(&checked), "{checked} in 40 x 4096");
    assert!(turns.len() > 10, "{turns:?}");
    assert_eq!(bench.count(|metrics| &metrics.kernel_disagreed), 0);
}

#[test]
fn thin_inputs_are_judged_in_one_batch() {
    let (mut verdict_count, mut rings, mut inputs) = (0, vec![], vec![]);
    for _ in 0..4 {
        let (tx, rx, _) = ring::<Submit>("net_validate", 64, Full::Wait);
        rings.push(tx);
        inputs.push(rx);
    }
    let mut bench = Bench::new(Kernel::of(Isa::Portable));
    bench.lane.ports.submits = inputs;
    bench.publish(job(1, 0x1d00_ffff, 8));
    for (input, ring) in rings.iter_mut().enumerate() {
        let shares: Vec<_> =
            (0..8).map(|nonce| Submit { net: input as u8, in_flight: nonce, ..share(1, input as u64, nonce, 1) }).collect();
        ring.push_all(&shares);
    }
    bench.lane.step();
    bench.lane.housekeeping();
    let mut next = [0; 4];
    while let Some(verdict) = bench.verdicts.pop() {
        assert_eq!(verdict.in_flight, next[usize::from(verdict.net)], "in ring order");
        next[usize::from(verdict.net)] += 1;
        verdict_count += 1;
    }
    assert_eq!(verdict_count, 32);
    assert_eq!(bench.count(|metrics| &metrics.batch_hashed), 1);
}

#[test]
fn a_share_that_waits_for_its_job_finds_it_in_the_ring() {
    let mut bench = Bench::new(Kernel::of(Isa::Portable));
    bench.publish(job(1, 0x1d00_ffff, 8));
    bench.lane.step();
    // As when chain publishes and a net hears of it while a pass has taken its jobs already.
    bench.publish(job(13, 0x1d00_ffff, 8));
    bench.lane.taken[0] = share(13, 1, 1, 1);
    bench.lane.taken[1] = share(1, 1, 1, 1);
    bench.lane.judge(2);
    let statuses: Vec<_> = std::iter::from_fn(|| bench.verdicts.pop()).map(|verdict| verdict.status).collect();
    // The table of job 1 has gone to job 13.
    assert_eq!(statuses, [ShareStatus::Accepted as u8, ShareStatus::Stale as u8]);
}

/// What becomes of a stream, share after share, by the definition.
struct Definition {
    live: Vec<Arc<ValidatedJob>>,
    credited: HashSet<(u32, u32, u64, u32, u32, u32)>,
}

impl Definition {
    fn judge(&mut self, submit: &Submit) -> (u8, u8) {
        if submit.status != Submit::PENDING {
            return (submit.status, 0);
        }
        let Some(job) = self.live.iter().find(|job| job.id.counter() == submit.job) else { return (ShareStatus::Stale as u8, 0) };
        let key = (submit.job, submit.extranonce1, submit.extranonce2, submit.ntime, submit.nonce, submit.version);
        if self.credited.contains(&key) {
            return (ShareStatus::Duplicate as u8, 0);
        }
        let hash = job.hash(submit.extranonce1, submit.extranonce2, submit.version, submit.ntime, submit.nonce);
        let block = job.network_target.is_met_by(&hash);
        if !block && !Work::new(submit.work).target().is_met_by(&hash) {
            return (ShareStatus::LowDifficulty as u8, 0);
        }
        self.credited.insert(key);
        (ShareStatus::Accepted as u8, if block { flags::BLOCK } else { 0 })
    }
}

#[derive(Clone, Debug)]
enum Act {
    /// A job with this many bytes of extranonce2 and whether every second hash is a block.
    Job(u8, bool),
    Shares(Vec<Submit>),
}

fn act() -> impl Strategy<Value = Act> {
    // Few values of everything: repeats of extranonces, of whole shares, and ended jobs are the rule.
    let share = (0u32..14, 0u32..3, 0u64..6, 0u32..4, 0u32..3, 1u64..4, 0u32..40).prop_map(
        |(back, extranonce1, extranonce2, nonce, rolled, work, refused)| {
            let mut share = share(back, extranonce2, nonce, work);
            share.extranonce1 = extranonce1;
            share.version |= rolled << 13;
            if refused == 0 {
                share.status = ShareStatus::BadTime as u8;
            }
            share
        },
    );
    prop_oneof![
        1 => (4u8..=8, any::<bool>()).prop_map(|(bytes, easy)| Act::Job(bytes, easy)),
        4 => prop::collection::vec(share, 1..=TAKE).prop_map(Act::Shares),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn verdicts_are_those_of_the_definition_with_the_root_cache_and_without(acts in prop::collection::vec(act(), 1..24)) {
        for isa in Isa::available() {
            let mut with = Bench::new(Kernel::of(isa));
            let mut without = Bench::new(Kernel::of(isa));
            without.lane.roots.sleep_for_ever();
            let mut definition = Definition { live: vec![], credited: HashSet::new() };
            let mut newest = 0;
            let mut blocks = 0;
            for act in &acts {
                match act {
                    Act::Job(bytes, easy) => {
                        newest += 1;
                        let job = job(newest, if *easy { REGTEST } else { 0x1d00_ffff }, *bytes);
                        definition.live.retain(|old| old.id.counter() + DUPLICATE_TABLES as u32 > newest);
                        definition.live.push(job.clone());
                        with.publish(job.clone());
                        without.publish(job);
                    }
                    Act::Shares(shares) => {
                        let shares: Vec<_> = shares.iter().map(|share| Submit { job: newest.saturating_sub(share.job), ..*share }).collect();
                        let cached = with.pass(&shares);
                        prop_assert_eq!(&cached, &without.pass(&shares));
                        for (submit, verdict) in shares.iter().zip(&cached) {
                            let expected = definition.judge(submit);
                            prop_assert_eq!((verdict.status, verdict.flags), expected, "{:?}", submit);
                            blocks += usize::from(expected.1 == flags::BLOCK);
                            if expected.1 == flags::BLOCK {
                                let candidate = with.blocks.pop().expect("a block is handed on");
                                let job = with.kept.iter().find(|job| job.id.counter() == submit.job).expect("published");
                                prop_assert_eq!(candidate.hash, job.hash(submit.extranonce1, submit.extranonce2, submit.version, submit.ntime, submit.nonce));
                                prop_assert_eq!(Some(candidate), without.blocks.pop());
                            }
                        }
                        prop_assert_eq!(with.blocks.available(), 0);
                    }
                }
            }
            prop_assert_eq!(with.count(|metrics| &metrics.block_found), blocks as u64);
            prop_assert_eq!(with.count(|metrics| &metrics.kernel_disagreed), 0);
            prop_assert_eq!(without.count(|metrics| &metrics.root_hit), 0);
        }
    }
}

#[test]
fn repeated_extranonces_hit_the_root_cache_from_the_second_pass_on() {
    for isa in Isa::available() {
        let mut bench = Bench::new(Kernel::of(isa));
        bench.publish(job(1, 0x1d00_ffff, 8));
        for pass in 0..4u32 {
            bench.pass(&(0..256).map(|nonce| share(1, u64::from(nonce % 7), pass * 256 + nonce, 1)).collect::<Vec<_>>());
        }
        assert_eq!(bench.count(|metrics| &metrics.root_looked_up), 1024);
        assert_eq!(bench.count(|metrics| &metrics.root_hit), 768);
        bench.publish(job(2, 0x1d00_ffff, 8));
        bench.pass(&(0..256).map(|nonce| share(2, 1, nonce, 1)).collect::<Vec<_>>());
        assert_eq!(bench.count(|metrics| &metrics.root_hit), 768, "a root belongs to one job");
    }
}
