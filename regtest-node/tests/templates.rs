//! Every block that the pool's assembler makes of a template is accepted by Bitcoin Core's consensus code.
//!
//! `OTEDAMA_LONG=1` adds the heights around 32,768, for which the engine needs about ten minutes: on regtest it
//! checks its whole block index after every block, so the cost grows with the square of the height.

mod pool;

use std::collections::BTreeSet;

use otedama_chain::{AssemblerSettings, Network, coinbase, longest_tag, payout_script};
use pool::{Work, solve};
use regtest_node::bitcoin::consensus::encode::deserialize_hex;
use regtest_node::bitcoin::script::Builder;
use regtest_node::bitcoin::{BlockHash, Transaction};
use regtest_node::{Node, NodeOptions, TemplateOptions, TransactionMix, Verdict};
use serde_json::Value;

const TEMPLATES: usize = 1_000;
/// Counts next to each other and to the powers of two: odd levels of the merkle tree, the empty branch, and 252 and 253
/// items (transactions and coinbase), where the count's own length changes.
const COUNTS: [usize; 20] = [0, 0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 31, 63, 127, 128, 251, 252, 253, 255, 300];
const ADDRESSES: [&str; 4] = [
    "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080",
    "bcrt1qft5p2uhsdcdc3l2ua4ap5qqfg4pjaqlp250x7us7a8qqhrxrxfsqseac85",
    "mkHS9ne12qx9pS9VojpwU5xtRd4T7X7ZUt",
    "2MzQwSSnBHWHqSAqtTVQ6v47XtaisrJa1Vc",
];

/// SplitMix64, so that a failing run can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }
}

/// What a run has met; asserted at its end, so that the test cannot shrink unseen.
#[derive(Default)]
struct Seen {
    templates: usize,
    transactions: usize,
    with_witness: usize,
    dependent: usize,
    counts: BTreeSet<usize>,
    script_bytes: BTreeSet<usize>,
    height_bytes: BTreeSet<usize>,
    extranonce2_bytes: BTreeSet<u8>,
    versions: BTreeSet<i32>,
}

/// Has the pool make and mine one block of what the node offers; Core must take it as the new tip.
fn pool_mines(node: &Node, random: &mut Random, seen: &mut Seen, transactions_max: usize) -> BlockHash {
    let template = node.template(&TemplateOptions { transactions_max: Some(transactions_max) });
    let extranonce2_bytes = 4 + random.below(5) as u8;
    let tag_bytes = match random.below(3) {
        0 => longest_tag(extranonce2_bytes),
        1 => 0,
        _ => random.below(longest_tag(extranonce2_bytes) + 1),
    };
    let settings = AssemblerSettings {
        payout_script: payout_script(Network::Regtest, random.pick(&ADDRESSES)).expect("an address of regtest"),
        tag: "/otedama/".chars().cycle().take(tag_bytes).collect(),
        extranonce2_bytes,
    };
    let times = (&template["mintime"], &template["curtime"]);
    let (Some(mintime), Some(curtime)) = (times.0.as_u64(), times.1.as_u64()) else {
        panic!("times are numbers: {times:?}");
    };
    // The least time, the template's own, and one ahead of it, as the share path allows them.
    let ntime = random.pick(&[mintime, curtime, curtime + 3]) as u32;
    let version_bits = random.pick(&[0, 0x1fff_e000, 0x0000_2000, 0x1000_0000]) | (random.next() as u32 & 0x1fff_e000);
    let work = Work {
        job_counter: random.next() as u32,
        extranonce1: random.next() as u32,
        extranonce2: random.pick(&[0, u64::MAX, 0x8000_0000_0000_0000]) ^ (random.next() >> 32),
        ntime,
        version_bits: random.pick(&[0, version_bits]),
    };
    let solved = solve(&template, settings, work);
    let verdict = node.submit(&solved.bytes);
    assert_eq!(verdict, Verdict::Accepted, "height {} with {work:?}: {template}", template["height"]);
    assert_eq!(node.tip(), solved.block.block_hash());

    let entries = template["transactions"].as_array().map_or(&[][..], Vec::as_slice);
    assert_eq!(solved.block.txdata.len(), entries.len() + 1);
    seen.templates += 1;
    seen.transactions += entries.len();
    seen.with_witness += entries.iter().filter(|entry| has_witness(entry)).count();
    seen.dependent += entries.iter().filter(|entry| entry["depends"].as_array().is_some_and(|list| !list.is_empty())).count();
    seen.counts.insert(entries.len());
    let script = solved.block.txdata[0].input[0].script_sig.as_bytes();
    seen.script_bytes.insert(script.len());
    seen.height_bytes.insert(coinbase::height_script(node.height()).len());
    seen.extranonce2_bytes.insert(extranonce2_bytes);
    seen.versions.insert(solved.block.header.version.to_consensus());
    solved.block.block_hash()
}

fn has_witness(entry: &Value) -> bool {
    let transaction: Transaction = deserialize_hex(entry["data"].as_str().unwrap_or("")).expect("a transaction");
    transaction.input.iter().any(|input| !input.witness.is_empty())
}

#[test]
fn a_thousand_templates_become_blocks_that_core_accepts() {
    // Heights at which the number in the coinbase changes its length or its sign byte, and their neighbours.
    let is_edge = |height: u32| matches!(height, 1..=18 | 126..=130 | 254..=258);
    let node = Node::new().expect("the engine opens");
    let mut random = Random(42);
    let mut seen = Seen::default();
    let mut heights = BTreeSet::new();
    while seen.templates < TEMPLATES {
        let height = node.height() + 1;
        // Below 120 the node mines between the edges: it needs coins of its own, mature, to make transactions from.
        if height < 120 && !is_edge(height) {
            node.mine_empty(1).expect("the node mines");
            continue;
        }
        let count = if random.below(3) == 0 { random.below(301) } else { random.pick(&COUNTS) };
        let mix = random.pick(&[TransactionMix::Both, TransactionMix::Witness, TransactionMix::Legacy]);
        node.fill_mempool(count.saturating_sub(node.pending_count()), mix);
        pool_mines(&node, &mut random, &mut seen, count);
        heights.insert(height);
    }
    println!(
        "{} templates, {} transactions ({} with witness, {} dependent), {} different counts, up to height {}",
        seen.templates,
        seen.transactions,
        seen.with_witness,
        seen.dependent,
        seen.counts.len(),
        node.height()
    );
    assert!((1..=18).chain(126..=130).chain(254..=258).all(|height| heights.contains(&height)));
    assert!(COUNTS.iter().all(|count| seen.counts.contains(count)), "{:?}", seen.counts);
    assert!(seen.transactions > 50_000, "{}", seen.transactions);
    assert!(seen.with_witness > 10_000 && seen.transactions - seen.with_witness > 10_000, "{}", seen.with_witness);
    assert!(seen.dependent > 5_000, "{}", seen.dependent);
    // Script of heights up to 2 bytes: the longest tag leaves the one byte free that heights from 32,768 need.
    assert!(seen.script_bytes.contains(&99) && seen.script_bytes.iter().all(|bytes| *bytes <= 100), "{:?}", seen.script_bytes);
    assert_eq!(seen.height_bytes, BTreeSet::from([1, 2, 3]));
    assert_eq!(seen.extranonce2_bytes, BTreeSet::from([4, 5, 6, 7, 8]));
    assert!(seen.versions.contains(&0x2000_0000) && seen.versions.contains(&0x3fff_e000), "{:x?}", seen.versions);
}

#[test]
fn blocks_past_height_32767_with_the_longest_script_are_accepted() {
    if std::env::var_os("OTEDAMA_LONG").is_none() {
        println!("skipped: growing the chain to 32,768 takes the engine about ten minutes; set OTEDAMA_LONG=1");
        return;
    }
    let node = Node::with_options(NodeOptions { mine: 32_760, ..NodeOptions::default() }).expect("the engine opens");
    let mut random = Random(43);
    let mut seen = Seen::default();
    for _ in 0..40 {
        node.fill_mempool(20, TransactionMix::Both);
        pool_mines(&node, &mut random, &mut seen, 20);
    }
    assert_eq!(node.height(), 32_800);
    assert_eq!(seen.height_bytes, BTreeSet::from([3, 4]));
    assert!(seen.script_bytes.contains(&100), "{:?}", seen.script_bytes);
}

#[test]
fn heights_out_of_reach_are_encoded_as_core_encodes_them() {
    let edges: [u32; 16] =
        [0, 16, 17, 127, 128, 255, 256, 32_767, 32_768, 65_535, 65_536, 8_388_607, 8_388_608, 16_777_215, 16_777_216, 2_147_483_646];
    for edge in edges {
        for height in [edge.saturating_sub(1), edge, edge + 1] {
            let expected = Builder::new().push_int(i64::from(height)).into_script();
            assert_eq!(coinbase::height_script(height), expected.to_bytes(), "height {height}");
        }
    }
}
