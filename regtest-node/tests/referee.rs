//! The referee can say no: one fault at a time is put into a block that the pool has assembled, and Core must refuse it
//! for exactly that fault. The block without the fault is accepted afterwards, so nothing else was wrong with it.

mod pool;

use std::time::{SystemTime, UNIX_EPOCH};

use otedama_chain::AssemblerSettings;
use pool::{Work, solve};
use regtest_node::bitcoin::consensus::encode::{deserialize, serialize};
use regtest_node::bitcoin::hashes::Hash;
use regtest_node::bitcoin::{Amount, Block, BlockHash, CompactTarget, ScriptBuf, TxMerkleNode, Witness, block};
use regtest_node::{Node, NodeOptions, RefusalClass, TemplateOptions, TransactionMix, Verdict};
use serde_json::{Value, json};

fn node() -> Node {
    let node = Node::with_options(NodeOptions { mine: 140, mix: TransactionMix::Both, ..NodeOptions::default() });
    let node = node.expect("the engine opens");
    assert_eq!(node.fill_mempool(40, TransactionMix::Both), 40);
    node
}

/// The block that the pool makes of `template` at its own time.
fn assembled(template: &Value) -> Block {
    let settings = AssemblerSettings { payout_script: vec![0x51], tag: "/otedama/".to_owned(), extranonce2_bytes: 8 };
    let ntime = u32::try_from(template["curtime"].as_u64().expect("curtime")).expect("32 bits");
    let work = Work { job_counter: 1, extranonce1: 2, extranonce2: 3, ntime, version_bits: 0 };
    let solved = solve(template, settings, work);
    assert_eq!(serialize(&solved.block), solved.bytes, "the block has one serialisation");
    solved.block
}

fn template(node: &Node) -> Value {
    node.template(&TemplateOptions::default())
}

/// Finds a nonce that meets the header's own target, whatever the header says.
fn mine(block: &mut Block) {
    block.header.nonce = 0;
    while !block.header.target().is_met_by(block.header.block_hash()) {
        block.header.nonce += 1;
    }
}

/// Makes header and transactions agree again, then mines.
fn seal(block: &mut Block) {
    block.header.merkle_root = block.compute_merkle_root().expect("has a coinbase");
    mine(block);
}

fn edit_coinbase_script(block: &mut Block, edit: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = block.txdata[0].input[0].script_sig.to_bytes();
    edit(&mut bytes);
    block.txdata[0].input[0].script_sig = ScriptBuf::from_bytes(bytes);
}

fn now_s() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    u32::try_from(since.as_secs()).expect("before 2106")
}

struct Fault {
    name: &'static str,
    reason: &'static str,
    class: RefusalClass,
    inject: fn(&mut Block, &Value),
}

const FAULTS: &[Fault] = &[
    Fault {
        name: "hash above the target",
        reason: "high-hash",
        class: RefusalClass::InvalidHeader,
        inject: |block, _| {
            while block.header.target().is_met_by(block.header.block_hash()) {
                block.header.nonce += 1;
            }
        },
    },
    Fault {
        name: "one bit of the merkle root",
        reason: "bad-txnmrklroot",
        class: RefusalClass::Mutated,
        inject: |block, _| {
            let mut root = block.header.merkle_root.to_byte_array();
            root[31] ^= 1;
            block.header.merkle_root = TxMerkleNode::from_byte_array(root);
            mine(block);
        },
    },
    Fault {
        name: "the last transaction left out of the block but not of the root",
        reason: "bad-txnmrklroot",
        class: RefusalClass::Mutated,
        inject: |block, _| drop(block.txdata.pop()),
    },
    Fault {
        name: "the first transaction a second time",
        reason: "bad-txns-inputs-missingorspent",
        class: RefusalClass::Consensus,
        inject: |block, _| {
            block.txdata.push(block.txdata[1].clone());
            let root = block.witness_root().expect("has a coinbase");
            set_commitment(block, &root);
            seal(block);
        },
    },
    Fault {
        name: "the tree's odd leaf written out (CVE-2012-2459)",
        reason: "bad-txns-duplicate",
        class: RefusalClass::Mutated,
        inject: |block, _| block.txdata.push(block.txdata[40].clone()),
    },
    Fault {
        name: "one satoshi too much",
        reason: "bad-cb-amount",
        class: RefusalClass::Consensus,
        inject: |block, _| {
            block.txdata[0].output[0].value += Amount::from_sat(1);
            seal(block);
        },
    },
    Fault {
        name: "the height of the next block",
        reason: "bad-cb-height",
        class: RefusalClass::Consensus,
        inject: |block, _| {
            edit_coinbase_script(block, |bytes| bytes[1] += 1);
            seal(block);
        },
    },
    Fault {
        name: "the height without its sign byte",
        reason: "bad-cb-height",
        class: RefusalClass::Consensus,
        inject: |block, _| {
            edit_coinbase_script(block, |bytes| {
                assert_eq!(bytes[..3], [2, 141, 0]);
                bytes.splice(..3, [1, 141]);
            });
            seal(block);
        },
    },
    Fault {
        name: "no witness reserved value",
        reason: "bad-witness-nonce-size",
        class: RefusalClass::Mutated,
        inject: |block, _| block.txdata[0].input[0].witness = Witness::new(),
    },
    Fault {
        name: "a reserved value of 31 bytes",
        reason: "bad-witness-nonce-size",
        class: RefusalClass::Mutated,
        inject: |block, _| block.txdata[0].input[0].witness = Witness::from_slice(&[[0_u8; 31]]),
    },
    Fault {
        name: "another reserved value than was committed to",
        reason: "bad-witness-merkle-match",
        class: RefusalClass::Mutated,
        inject: |block, _| block.txdata[0].input[0].witness = Witness::from_slice(&[[1_u8; 32]]),
    },
    Fault {
        name: "one bit of the witness commitment",
        reason: "bad-witness-merkle-match",
        class: RefusalClass::Mutated,
        inject: |block, _| {
            let mut script = block.txdata[0].output[1].script_pubkey.to_bytes();
            script[37] ^= 1;
            block.txdata[0].output[1].script_pubkey = ScriptBuf::from_bytes(script);
            seal(block);
        },
    },
    Fault {
        name: "no commitment although there are witnesses",
        reason: "unexpected-witness",
        class: RefusalClass::Mutated,
        inject: |block, _| {
            block.txdata[0].output.truncate(1);
            block.txdata[0].input[0].witness = Witness::new();
            seal(block);
        },
    },
    Fault {
        name: "a transaction without its witness",
        reason: "bad-witness-merkle-match",
        class: RefusalClass::Mutated,
        inject: |block, _| {
            let with_witness = block.txdata.iter_mut().skip(1).find(|transaction| !transaction.input[0].witness.is_empty());
            with_witness.expect("the mix has some").input[0].witness = Witness::new();
        },
    },
    Fault {
        name: "the transactions in reverse, children before parents",
        reason: "bad-txns-inputs-missingorspent",
        class: RefusalClass::Consensus,
        inject: |block, _| {
            block.txdata[1..].reverse();
            let root = block.witness_root().expect("has a coinbase");
            set_commitment(block, &root);
            seal(block);
        },
    },
    Fault {
        name: "a coinbase script of 101 bytes",
        reason: "bad-cb-length",
        class: RefusalClass::Consensus,
        inject: |block, _| {
            edit_coinbase_script(block, |bytes| bytes.resize(101, b'x'));
            seal(block);
        },
    },
    Fault {
        name: "a locktime that is not reached",
        reason: "bad-txns-nonfinal",
        class: RefusalClass::Consensus,
        inject: |block, template| {
            let height = u32::try_from(template["height"].as_u64().expect("height")).expect("32 bits");
            block.txdata[0].lock_time = regtest_node::bitcoin::absolute::LockTime::from_consensus(height);
            seal(block);
        },
    },
    Fault {
        name: "a time more than two hours ahead",
        reason: "time-too-new",
        class: RefusalClass::TimeFuture,
        inject: |block, _| {
            block.header.time = now_s() + 7_200 + 600;
            mine(block);
        },
    },
    Fault {
        name: "the median time itself",
        reason: "time-too-old",
        class: RefusalClass::InvalidHeader,
        inject: |block, template| {
            block.header.time = u32::try_from(template["mintime"].as_u64().expect("mintime")).expect("32 bits") - 1;
            mine(block);
        },
    },
    Fault {
        name: "a harder target than the chain's",
        reason: "bad-diffbits",
        class: RefusalClass::InvalidHeader,
        inject: |block, _| {
            block.header.bits = CompactTarget::from_consensus(0x207f_fffe);
            mine(block);
        },
    },
    Fault {
        name: "an unknown previous block",
        reason: "prev-blk-not-found",
        class: RefusalClass::MissingPrevious,
        inject: |block, _| {
            block.header.prev_blockhash = BlockHash::from_byte_array([7; 32]);
            mine(block);
        },
    },
    Fault {
        name: "a version from before BIP 65",
        reason: "bad-version(0x00000003)",
        class: RefusalClass::InvalidHeader,
        inject: |block, _| {
            block.header.version = block::Version::from_consensus(3);
            mine(block);
        },
    },
];

fn set_commitment(block: &mut Block, root: &regtest_node::bitcoin::WitnessMerkleNode) {
    let commitment = Block::compute_witness_commitment(root, &[0; 32]);
    let mut script = block.txdata[0].output[1].script_pubkey.to_bytes();
    script[6..].copy_from_slice(commitment.as_byte_array());
    block.txdata[0].output[1].script_pubkey = ScriptBuf::from_bytes(script);
}

#[test]
fn every_single_fault_is_refused_for_its_own_reason_and_the_sound_block_is_accepted() {
    for fault in FAULTS {
        let node = node();
        let template = template(&node);
        let sound = assembled(&template);
        let mut faulty = sound.clone();
        (fault.inject)(&mut faulty, &template);
        assert_ne!(faulty, sound, "{}", fault.name);
        let tip = node.tip();
        let expected = Verdict::Refused { reason: fault.reason.to_owned(), class: fault.class };
        assert_eq!(node.submit(&serialize(&faulty)), expected, "{}", fault.name);
        assert_eq!(node.tip(), tip, "{}: the tip has moved", fault.name);
        assert_eq!(node.submit(&serialize(&sound)), Verdict::Accepted, "after {}", fault.name);
        assert_eq!(node.tip(), sound.block_hash());
    }
}

#[test]
fn a_second_copy_is_a_duplicate_and_a_second_copy_of_a_refused_block_is_invalid() {
    let node = node();
    let sound = assembled(&template(&node));
    let mut greedy = sound.clone();
    greedy.txdata[0].output[0].value += Amount::from_sat(1);
    seal(&mut greedy);
    assert_eq!(node.submit(&serialize(&greedy)).bip22(), Some("bad-cb-amount"));
    // Whole and refused: Core has stored it, and says that it knows it, not again what was wrong.
    assert_eq!(node.submit(&serialize(&greedy)).bip22(), Some("duplicate-invalid"));
    assert_eq!(node.submit(&serialize(&sound)), Verdict::Accepted);
    assert_eq!(node.submit(&serialize(&sound)), Verdict::Duplicate);
    assert_eq!(node.tip(), sound.block_hash());
}

#[test]
fn a_block_on_the_tips_parent_is_refused_with_the_tips_height_and_inconclusive_with_its_own() {
    let node = node();
    let earlier = template(&node);
    let rival = assembled(&earlier);
    node.mine_empty(1).expect("another miner was first");
    let mut stale = template(&node);
    stale["previousblockhash"] = earlier["previousblockhash"].clone();
    let mut stale = assembled(&stale);
    // The pool's coinbase is locked until its height, which Core looks at before the height itself.
    assert_eq!(node.submit(&serialize(&stale)).bip22(), Some("bad-txns-nonfinal"));
    stale.txdata[0].lock_time = regtest_node::bitcoin::absolute::LockTime::ZERO;
    seal(&mut stale);
    assert_eq!(node.submit(&serialize(&stale)).bip22(), Some("bad-cb-height"));
    let tip = node.tip();
    assert_eq!(node.submit(&serialize(&rival)), Verdict::Inconclusive);
    assert_eq!(node.tip(), tip);
}

#[test]
fn a_template_altered_on_its_way_makes_a_block_that_core_refuses() {
    let node = node();
    let good = template(&node);
    let alterations: [(&str, Value, &str); 3] = [
        ("coinbasevalue", json!(good["coinbasevalue"].as_u64().expect("a number") + 1), "bad-cb-amount"),
        ("height", json!(140), "bad-cb-height"),
        ("previousblockhash", json!("07".repeat(32)), "prev-blk-not-found"),
    ];
    for (key, value, reason) in alterations {
        let mut altered = good.clone();
        altered[key] = value;
        assert_eq!(node.submit(&serialize(&assembled(&altered))).bip22(), Some(reason), "{key}");
    }
    assert_eq!(node.submit(&serialize(&assembled(&good))), Verdict::Accepted);
}

#[test]
fn an_empty_block_without_commitment_is_legal_and_bytes_that_are_no_block_are_not_decoded() {
    let node = node();
    let mut template = node.template(&TemplateOptions { transactions_max: Some(0) });
    template.as_object_mut().expect("an object").remove("default_witness_commitment");
    let block = assembled(&template);
    assert_eq!(block.txdata[0].output.len(), 1);
    let bytes = serialize(&block);
    assert_eq!(node.submit(&bytes[..bytes.len() - 1]), Verdict::Undecodable);
    assert_eq!(node.submit(&bytes[..80]), Verdict::Undecodable);
    assert_eq!(node.submit(&[]), Verdict::Undecodable);
    assert_eq!(node.submit(b"garbage"), Verdict::Undecodable);
    assert_eq!(node.submit(&bytes), Verdict::Accepted);
    assert!(deserialize::<Block>(&bytes).is_ok());
}
