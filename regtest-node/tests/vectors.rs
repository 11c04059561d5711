//! Blocks that real nodes have accepted, replayed: the pool's code rebuilds them byte for byte, and Core takes their
//! coinbases at the same height again.

use otedama_chain::{Assembler, AssemblerSettings, Template, TemplateError, blocks, merkle};
use otedama_primitives::{BlockCandidate, Coin, Hash256, Job, JobId, WorkerId, decode_hex};
use regtest_node::bitcoin::Block;
use regtest_node::bitcoin::consensus::encode::{deserialize_hex, serialize};
use regtest_node::{Node, NodeOptions, Verdict};
use serde_json::Value;

/// The SHA256d entries with a Bitcoin template.
fn bitcoin_entries() -> Vec<Value> {
    let mut entries: Vec<Value> = Vec::new();
    for text in [include_str!("vectors/node_blocks.json"), include_str!("vectors/sv1_jobs.json")] {
        let list: Vec<Value> = serde_json::from_str(text).expect("a list");
        entries.extend(list.into_iter().filter(|entry| entry["pow_algo"] == "sha256d"));
    }
    assert_eq!(entries.len(), 4, "three of the engine, one of bcoin");
    entries
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} is a text"))
}

fn bytes(hex: &str) -> Vec<u8> {
    let mut into = vec![0; hex.len() / 2];
    decode_hex(hex.as_bytes(), &mut into).expect("hex");
    into
}

fn number(value: &Value, key: &str) -> u64 {
    u64::from_str_radix(text(value, key), 16).expect("a hex number")
}

fn number32(value: &Value, key: &str) -> u32 {
    u32::try_from(number(value, key)).expect("32 bits")
}

/// The job and the solved share of an entry, as the pool holds them.
fn job_and_candidate(entry: &Value, template: &Template) -> (Job, BlockCandidate) {
    let (job, submit) = (&entry["job"], &entry["submit"]);
    let branch: Vec<Hash256> = job["merkle_branch"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|sibling| Hash256::from_internal_hex(sibling.as_str().expect("hex")).expect("a hash"))
        .collect();
    let id = JobId(1);
    let job_record = Job {
        id,
        coin: Coin::Bitcoin,
        height: template.height,
        prev_hash: template.prev_hash,
        version: number32(job, "version"),
        nbits: number32(job, "nbits"),
        ntime: template.curtime,
        ntime_min: template.mintime,
        coinbase_prefix: bytes(text(job, "coinb1")).into(),
        coinbase_suffix: bytes(text(job, "coinb2")).into(),
        branch: branch.into(),
        extranonce2_bytes: 8,
        network_target: template.target,
        clean: true,
        created_us: 0,
    };
    let mask = number32(job, "version_mask");
    let bits = submit.get("version_bits").map_or(0, |_| number32(submit, "version_bits"));
    let candidate = BlockCandidate {
        job: id,
        session: 1,
        extranonce1: number32(job, "extranonce1"),
        extranonce2: number(submit, "extranonce2"),
        ntime: number32(submit, "ntime"),
        nonce: number32(submit, "nonce"),
        version: (job_record.version & !mask) | (bits & mask),
        worker: WorkerId(1),
        hash: Hash256::from_display_hex(text(entry, "hash")).expect("a hash"),
        arrival_us: 0,
    };
    (job_record, candidate)
}

#[test]
fn accepted_blocks_are_rebuilt_byte_for_byte_from_template_job_and_share() {
    let settings = AssemblerSettings { payout_script: vec![0x51], tag: String::new(), extranonce2_bytes: 8 };
    let assembler = Assembler::new(settings).expect("valid settings");
    for entry in bitcoin_entries() {
        let template = Template::parse(&entry["getblocktemplate"]).expect("understood");
        let (job, candidate) = job_and_candidate(&entry, &template);
        let header = blocks::header_of(&job, &candidate).expect("fits");
        assert_eq!(header[..], bytes(text(&entry, "header")));
        assert_eq!(merkle::sha256d(&header), candidate.hash);
        assert_eq!(job.branch[..], merkle::branch(&template.txids)[..]);
        let block = assembler.block_hex(&template, &job, &candidate).expect("assembled");
        assert_eq!(block, text(&entry, "submitblock_hex"));
    }
}

#[test]
fn the_engine_takes_the_vectors_coinbases_at_their_heights_on_another_parent() {
    let mut entries = bitcoin_entries();
    entries.sort_by_key(|entry| entry["getblocktemplate"]["height"].as_u64());
    let height = |entry: &Value| entry["getblocktemplate"]["height"].as_u64().and_then(|height| u32::try_from(height).ok());
    let first = height(&entries[0]).expect("a height");
    let node = Node::with_options(NodeOptions { mine: first - 1, ..NodeOptions::default() }).expect("the engine opens");
    for entry in &entries {
        let own_height = height(entry).expect("a height");
        node.mine_empty(own_height - 1 - node.height()).expect("mined");
        let mut block: Block = deserialize_hex(text(entry, "submitblock_hex")).expect("one block");
        assert_eq!(node.submit(&serialize(&block)).bip22(), Some("prev-blk-not-found"));
        // Only the link to the chain changes: parent, time and nonce. Coinbase, commitment and version bits stay.
        block.header.prev_blockhash = node.tip();
        block.header.time =
            node.template(&Default::default())["curtime"].as_u64().and_then(|time| u32::try_from(time).ok()).expect("a time");
        while !block.header.target().is_met_by(block.header.block_hash()) {
            block.header.nonce = block.header.nonce.wrapping_add(1);
        }
        assert_eq!(node.submit(&serialize(&block)), Verdict::Accepted, "height {own_height}");
        assert_eq!(node.tip(), block.block_hash());
    }
}

#[test]
fn litecoin_templates_with_an_extension_block_are_refused_rather_than_guessed_at() {
    let list: Vec<Value> = serde_json::from_str(include_str!("vectors/node_blocks.json")).expect("a list");
    let with_mweb: Vec<&Value> = list.iter().filter(|entry| entry["pow_algo"] == "scrypt").collect();
    assert_eq!(with_mweb.len(), 2);
    for entry in with_mweb {
        let refused = Template::parse(&entry["getblocktemplate"]);
        assert!(matches!(refused, Err(TemplateError::Unsupported { key: "mweb", .. })), "{refused:?}");
    }
}
