//! The assembler against blocks that real nodes have accepted, and the template reader against what real nodes have sent.
use otedama_chain::{Assembler, AssemblerSettings, BlockError, Template, TemplateError, blocks, coinbase, merkle};
use otedama_primitives::{BlockCandidate, Hash256, Job, RunId, WorkerId, decode_hex, encode_hex};
use serde_json::{Value, json};

fn vectors(name: &str) -> Vec<Value> {
    let path = format!("{}/tests/vectors/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("reading {path}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("parsing {path}: {error}"))
}

fn jobs() -> Vec<Value> {
    [vectors("node_blocks"), vectors("sv1_jobs")].concat()
}

fn is_litecoin(entry: &Value) -> bool {
    entry["getblocktemplate"]["mweb"].is_string()
}

fn text<'a>(entry: &'a Value, pointer: &str) -> &'a str {
    entry.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("no text at {pointer}"))
}

fn bytes(entry: &Value, pointer: &str) -> Vec<u8> {
    let hex = text(entry, pointer);
    let mut out = vec![0; hex.len() / 2];
    decode_hex(hex.as_bytes(), &mut out).expect("hex");
    out
}

fn word(entry: &Value, pointer: &str) -> u32 {
    u32::from_str_radix(text(entry, pointer), 16).expect("a 32-bit number")
}

fn internal_hashes(entry: &Value, pointer: &str) -> Vec<Hash256> {
    let list = entry.pointer(pointer).and_then(Value::as_array).expect("a list");
    list.iter().map(|hex| Hash256::from_internal_hex(hex.as_str().expect("text")).expect("hash")).collect()
}

fn assembler() -> Assembler {
    // The vectors pay this script: witness program 0 of twenty bytes of 0x11.
    let payout_script = [&[0x00, 0x14][..], &[0x11; 20]].concat();
    Assembler::new(AssemblerSettings { payout_script, tag: "/test/".into(), extranonce2_bytes: 8 }).expect("settings")
}

/// The vector's job in the share path's form, and the share that solved it.
fn solved(entry: &Value, template: &Template) -> (Job, BlockCandidate) {
    let mut job = assembler().job(template, RunId::new(1, 2).job(3)).expect("a job");
    job.coinbase_prefix = bytes(entry, "/job/coinb1").into();
    job.coinbase_suffix = bytes(entry, "/job/coinb2").into();
    let mask = word(entry, "/job/version_mask");
    let rolled = entry.pointer("/submit/version_bits").map_or(job.version & mask, |_| word(entry, "/submit/version_bits"));
    let candidate = BlockCandidate {
        job: job.id,
        session: 1,
        extranonce1: word(entry, "/job/extranonce1"),
        extranonce2: u64::from_str_radix(text(entry, "/submit/extranonce2"), 16).expect("extranonce2"),
        ntime: word(entry, "/submit/ntime"),
        nonce: word(entry, "/submit/nonce"),
        version: (job.version & !mask) | (rolled & mask),
        worker: WorkerId(9),
        hash: Hash256::from_display_hex(text(entry, "/hash")).expect("hash"),
        arrival_us: 0,
    };
    (job, candidate)
}

#[test]
fn blocks_that_bitcoin_nodes_accepted_are_reproduced_to_the_byte() {
    let entries: Vec<_> = jobs().into_iter().filter(|entry| !is_litecoin(entry)).collect();
    assert_eq!(entries.len(), 4);
    for entry in entries {
        let template = Template::parse(&entry["getblocktemplate"]).expect("a template");
        let (job, candidate) = solved(&entry, &template);
        assert_eq!(job.nbits, word(&entry, "/job/nbits"));
        assert_eq!(job.branch.to_vec(), internal_hashes(&entry, "/job/merkle_branch"));
        let stripped = blocks::coinbase_of(&job, candidate.extranonce1, candidate.extranonce2).expect("coinbase");
        assert_eq!(encode_hex(&stripped), text(&entry, "/coinbase"));
        assert_eq!(encode_hex(&blocks::header_of(&job, &candidate).expect("header")), text(&entry, "/header"));
        let block = assembler().block(&template, &job, &candidate).expect("a block");
        assert_eq!(encode_hex(&block), text(&entry, "/submitblock_hex"), "{}", text(&entry, "/source"));
        assert_eq!(assembler().block_hex(&template, &job, &candidate).expect("a block"), text(&entry, "/submitblock_hex"));
    }
}

#[test]
fn our_own_coinbase_has_the_height_and_the_outputs_that_the_nodes_accepted() {
    for entry in jobs().into_iter().filter(|entry| !is_litecoin(entry)) {
        let template = Template::parse(&entry["getblocktemplate"]).expect("a template");
        let job = assembler().job(&template, RunId::new(1, 2).job(3)).expect("a job");
        let theirs = bytes(&entry, "/job/coinb1");
        let height = coinbase::height_script(template.height);
        assert_eq!(job.coinbase_prefix[..41], theirs[..41]);
        assert_eq!(job.coinbase_prefix[42..42 + height.len()], theirs[42..42 + height.len()]);
        // Tag, then outputs; sequence and locktime are ours.
        let suffix = bytes(&entry, "/job/coinb2");
        let (sequence, locktime) = (b"/test/".len() + 4, suffix.len() - 4);
        assert_eq!(job.coinbase_suffix.len(), suffix.len());
        assert_eq!(job.coinbase_suffix[sequence..locktime], suffix[sequence..locktime]);
    }
}

#[test]
fn trees_commitments_and_headers_of_litecoin_are_reproduced_and_its_templates_refused_with_a_reason() {
    let entries: Vec<_> = jobs().into_iter().filter(is_litecoin).collect();
    assert_eq!(entries.len(), 2);
    for entry in entries {
        let template = &entry["getblocktemplate"];
        let ids = |key: &str| -> Vec<Hash256> {
            let list = template["transactions"].as_array().expect("a list");
            list.iter().map(|tx| Hash256::from_display_hex(tx[key].as_str().expect("text")).expect("hash")).collect()
        };
        assert_eq!(merkle::branch(&ids("txid")), internal_hashes(&entry, "/job/merkle_branch"));
        assert_eq!(encode_hex(&merkle::witness_commitment(&ids("hash"))), text(template, "/default_witness_commitment"));
        let stripped = bytes(&entry, "/coinbase");
        let root = merkle::root_by_branch(merkle::sha256d(&stripped), &merkle::branch(&ids("txid")));
        assert_eq!(root, Hash256::from_internal_hex(text(&entry, "/merkle_root_internal")).expect("root"));
        let prev = Hash256::from_display_hex(text(template, "/previousblockhash")).expect("hash");
        let header = blocks::header(
            word(&entry, "/job/version"),
            &prev,
            &root,
            word(&entry, "/submit/ntime"),
            word(&entry, "/job/nbits"),
            word(&entry, "/submit/nonce"),
        );
        assert_eq!(encode_hex(&header), text(&entry, "/header"));
        let error = Template::parse(template).expect_err("Litecoin");
        assert!(matches!(error, TemplateError::Unsupported { key: "mweb", .. }), "{error}");
    }
}

#[test]
fn coinbases_branches_and_commitments_of_public_blocks_are_reproduced() {
    let entries = vectors("blocks_coinbase_merkle");
    assert_eq!(entries.len(), 4);
    for entry in entries {
        let stripped = bytes(&entry, "/coinbase_stripped");
        let txid = merkle::sha256d(&stripped);
        assert_eq!(txid.to_string(), text(&entry, "/coinbase_txid"));
        let header = bytes(&entry, "/header");
        let root = merkle::root_by_branch(txid, &internal_hashes(&entry, "/merkle_branch_internal"));
        assert_eq!(root.0, header[36..68]);
        assert_eq!(merkle::sha256d(&header).to_string(), text(&entry, "/hash"));
        let height = coinbase::height_script(entry["height"].as_u64().expect("a height") as u32);
        assert_eq!(stripped[42..42 + height.len()], height);
        if let Some(commitment) = entry["witness_commitment_script"].as_str() {
            assert_eq!(encode_hex(&coinbase::with_witness(&stripped)), text(&entry, "/coinbase"));
            let witness_root = Hash256::from_internal_hex(text(&entry, "/witness_merkle_root_internal")).expect("root");
            let own = [&merkle::COMMITMENT_PREFIX[..], &merkle::parent(&witness_root, &Hash256::default()).0].concat();
            assert_eq!(encode_hex(&own), commitment);
        } else {
            assert_eq!(text(&entry, "/coinbase"), text(&entry, "/coinbase_stripped"));
        }
    }
}

#[test]
fn a_candidate_that_differs_in_any_field_is_not_assembled() {
    let entry = &vectors("sv1_jobs")[0];
    let template = Template::parse(&entry["getblocktemplate"]).expect("a template");
    let (job, good) = solved(entry, &template);
    let refused = |candidate: BlockCandidate| assembler().block(&template, &job, &candidate).expect_err("a fault");
    for candidate in [
        BlockCandidate { extranonce1: good.extranonce1 ^ 1, ..good },
        BlockCandidate { extranonce2: good.extranonce2 ^ 1, ..good },
        BlockCandidate { ntime: good.ntime + 1, ..good },
        BlockCandidate { nonce: good.nonce ^ 1, ..good },
        BlockCandidate { version: good.version ^ (1 << 13), ..good },
    ] {
        assert!(matches!(refused(candidate), BlockError::HashDiffers { .. }));
    }
    assert!(matches!(refused(BlockCandidate { job: RunId::new(1, 2).job(4), ..good }), BlockError::OtherJob { .. }));
    let other = Template { prev_hash: Hash256([7; 32]), ..template.clone() };
    assert!(matches!(assembler().block(&other, &job, &good), Err(BlockError::OtherParent { .. })));
    let hard = Job { network_target: otedama_primitives::Target([0, 0, 0, 1]), ..job.clone() };
    assert!(matches!(assembler().block(&template, &hard, &good), Err(BlockError::AboveTarget { .. })));
    let narrow = Job { extranonce2_bytes: 7, ..job.clone() };
    assert!(matches!(assembler().block(&template, &narrow, &good), Err(BlockError::Extranonce2 { bytes: 7, .. })));
}

/// A template of a Bitcoin node with one transaction that has a witness and one that has none.
fn with_transactions() -> Value {
    let mut template = vectors("sv1_jobs")[0]["getblocktemplate"].clone();
    let segwit = vectors("node_blocks")[1]["getblocktemplate"]["transactions"][0].clone();
    assert_ne!(segwit["txid"], segwit["hash"]);
    let legacy = bytes(&vectors("blocks_coinbase_merkle")[0], "/coinbase");
    let id = merkle::sha256d(&legacy).to_string();
    let wtxids = [Hash256::from_display_hex(text(&segwit, "/hash")).expect("hash"), merkle::sha256d(&legacy)];
    template["transactions"] = json!([segwit, { "data": encode_hex(&legacy), "txid": id, "hash": id }]);
    template["default_witness_commitment"] = json!(encode_hex(&merkle::witness_commitment(&wtxids)));
    template
}

#[test]
fn the_merkle_tree_is_of_txids_and_transactions_keep_their_order() {
    let json = with_transactions();
    let template = Template::parse(&json).expect("a template");
    let listed: Vec<_> = (0..2).map(|i| text(&json, &format!("/transactions/{i}/txid")).to_owned()).collect();
    assert_eq!(template.txids.iter().map(Hash256::to_string).collect::<Vec<_>>(), listed);
    let data: String = (0..2).map(|i| text(&json, &format!("/transactions/{i}/data")).to_owned()).collect();
    assert_eq!(&*template.body_hex, data);
    assert_eq!(assembler().job(&template, RunId::new(0, 0).job(1)).expect("job").branch[0], template.txids[0]);
}

#[test]
fn every_damaged_template_is_refused_and_names_the_field() {
    let good = with_transactions();
    assert!(Template::parse(&good).is_ok());
    let other_hash = "00".repeat(31) + "07";
    for (pointer, value, expected) in [
        ("/version", json!("1"), "\"version\""),
        ("/version", json!(1u64 << 32), "\"version\""),
        ("/version", json!(-(1i64 << 31) - 1), "\"version\""),
        ("/previousblockhash", json!("zz"), "\"previousblockhash\""),
        ("/previousblockhash", json!(7), "\"previousblockhash\""),
        ("/height", json!(0), "\"height\""),
        ("/height", json!(1.5), "\"height\""),
        ("/height", json!(1u64 << 32), "\"height\""),
        ("/curtime", json!(-1), "\"curtime\""),
        ("/mintime", json!(null), "\"mintime\""),
        ("/mintime", json!(4_000_000_000u32), "after its \"curtime\""),
        ("/coinbasevalue", json!(2_100_000_000_000_001u64), "\"coinbasevalue\""),
        ("/bits", json!("7fffff"), "\"bits\""),
        ("/bits", json!("00000000"), "not a target"),
        ("/bits", json!("1d00ffff"), "\"target\" of the template is"),
        ("/target", json!(other_hash.clone()), "\"target\" of the template is"),
        ("/transactions", json!({}), "\"transactions\""),
        ("/transactions/0", json!("ab"), "transactions[0]"),
        ("/transactions/0/data", json!("abc"), "transactions[0].data"),
        ("/transactions/0/data", json!("ab"), "transaction 0"),
        ("/transactions/1/data", json!(null), "transactions[1].data"),
        ("/transactions/0/hash", json!(other_hash.clone()), "transaction 0"),
        ("/transactions/1/txid", json!(other_hash.clone()), "transaction 1"),
        ("/default_witness_commitment", json!(null), "rules [\"segwit\"]"),
        ("/default_witness_commitment", json!("6a24aa21a9ed".to_owned() + &other_hash), "its transactions give"),
        ("/default_witness_commitment", json!("6a24"), "\"default_witness_commitment\""),
        ("/rules", json!(["csv", "!quantum"]), "\"quantum\""),
        ("/rules", json!("csv"), "\"rules\""),
        ("/longpollid", json!(5), "\"longpollid\""),
    ] {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer}")) = value.clone();
        let error = Template::parse(&bad).expect_err(pointer);
        assert!(error.to_string().contains(expected), "{pointer} = {value}: {error}");
    }
    for key in ["version", "previousblockhash", "height", "curtime", "mintime", "coinbasevalue", "bits", "transactions"] {
        let mut bad = good.clone();
        bad.as_object_mut().expect("an object").remove(key);
        assert_eq!(Template::parse(&bad), Err(TemplateError::Missing { key: key.into() }));
    }
    assert_eq!(Template::parse(&json!([])), Err(TemplateError::NotAnObject));
    let mut signet = good;
    signet["signet_challenge"] = json!("51");
    assert!(matches!(Template::parse(&signet), Err(TemplateError::Unsupported { key: "signet_challenge", .. })));
}
