//! The node by itself: its transactions are valid, its RPC answers as `bitcoind` does, its templates follow the chain.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use regtest_node::bitcoin::consensus::encode::{deserialize, serialize};
use regtest_node::bitcoin::hashes::Hash;
use regtest_node::bitcoin::hex::{DisplayHex, FromHex};
use regtest_node::bitcoin::{Amount, Block, BlockHash, Transaction, TxMerkleNode, block};
use regtest_node::rpc::{Auth, Server};
use regtest_node::zmq::Publisher;
use regtest_node::{Node, NodeOptions, TemplateOptions, TransactionMix, Verdict};
use serde_json::{Value, json};

fn funded(transactions: usize, mix: TransactionMix) -> Node {
    Node::with_options(NodeOptions { mine: 120, transactions, mix, seed: 7 }).expect("the engine opens")
}

/// Assembles and solves a template without the pool's code: header, coinbase by BIP 34 and 141, transactions in order.
fn assemble(template: &Value) -> Block {
    let height = template["height"].as_u64().expect("height");
    let mut script = match height {
        1..=16 => vec![0x50 + height as u8],
        _ => {
            let mut number = height.to_le_bytes().to_vec();
            while number.last() == Some(&0) {
                number.pop();
            }
            if number.last().expect("height is not 0") & 0x80 != 0 {
                number.push(0);
            }
            [vec![number.len() as u8], number].concat()
        }
    };
    script.extend([4, 1, 2, 3, 4]);
    let commitment = template["default_witness_commitment"].as_str().expect("commitment");
    let coinbase_hex = format!(
        "020000000001010000000000000000000000000000000000000000000000000000000000000000ffffffff{:02x}{}ffffffff02{}0151{}26{commitment}0120{}00000000",
        script.len(),
        script.to_lower_hex_string(),
        template["coinbasevalue"].as_u64().expect("value").to_le_bytes().to_lower_hex_string(),
        "0000000000000000",
        "00".repeat(32),
    );
    let transaction = |hex: &str| -> Transaction { deserialize(&Vec::from_hex(hex).expect("hex")).expect("transaction") };
    let mut txdata = vec![transaction(&coinbase_hex)];
    for entry in template["transactions"].as_array().expect("list") {
        txdata.push(transaction(entry["data"].as_str().expect("data")));
    }
    let bits = u32::from_str_radix(template["bits"].as_str().expect("bits"), 16).expect("bits");
    let mut block = Block {
        header: block::Header {
            version: block::Version::from_consensus(template["version"].as_i64().expect("version") as i32),
            prev_blockhash: template["previousblockhash"].as_str().expect("previous").parse().expect("hash"),
            merkle_root: TxMerkleNode::all_zeros(),
            time: template["curtime"].as_u64().expect("curtime") as u32,
            bits: regtest_node::bitcoin::CompactTarget::from_consensus(bits),
            nonce: 0,
        },
        txdata,
    };
    solve(&mut block);
    block
}

fn solve(block: &mut Block) {
    block.header.merkle_root = block.compute_merkle_root().expect("has a coinbase");
    while block.header.validate_pow(block.header.target()).is_err() {
        block.header.nonce += 1;
    }
}

#[test]
fn blocks_with_every_mix_of_transactions_move_the_tip() {
    for mix in [TransactionMix::Both, TransactionMix::Witness, TransactionMix::Legacy] {
        let node = funded(60, mix);
        let mut with_witness = 0;
        let mut dependent = 0;
        for _ in 0..30 {
            let template = node.template(&TemplateOptions::default());
            let entries = template["transactions"].as_array().expect("list");
            assert_eq!(entries.len(), 60);
            with_witness += entries.iter().filter(|e| e["txid"] != e["hash"]).count();
            dependent += entries.iter().filter(|e| e["depends"] != json!([])).count();
            let block = assemble(&template);
            assert_eq!(node.submit(&serialize(&block)), Verdict::Accepted, "{mix:?}");
            assert_eq!(node.tip(), block.block_hash());
        }
        assert!(dependent > 100, "chains within a block occur: {dependent}");
        match mix {
            TransactionMix::Both => assert!((200..1600).contains(&with_witness), "{with_witness}"),
            TransactionMix::Witness => assert_eq!(with_witness, 1800),
            TransactionMix::Legacy => assert_eq!(with_witness, 0),
        }
    }
}

#[test]
fn the_template_has_the_keys_of_bip_22_23_and_145_and_a_consistent_clock() {
    let node = funded(3, TransactionMix::Both);
    let template = node.template(&TemplateOptions::default());
    for key in [
        "version",
        "rules",
        "vbavailable",
        "vbrequired",
        "previousblockhash",
        "transactions",
        "coinbaseaux",
        "coinbasevalue",
        "longpollid",
        "target",
        "mintime",
        "mutable",
        "noncerange",
        "sigoplimit",
        "sizelimit",
        "weightlimit",
        "curtime",
        "bits",
        "height",
        "default_witness_commitment",
    ] {
        assert!(template.get(key).is_some(), "{key} is missing");
    }
    for key in ["data", "txid", "hash", "depends", "fee", "sigops", "weight"] {
        assert!(template["transactions"][0].get(key).is_some(), "{key}");
    }
    assert_eq!(template["target"], format!("7fffff{}", "0".repeat(58)));
    assert_eq!(template["bits"], "207fffff");
    assert_eq!(template["height"], 121);
    let limited = node.template(&TemplateOptions { transactions_max: Some(1) });
    assert_eq!(limited["transactions"].as_array().map(Vec::len), Some(1));
}

#[test]
fn a_burst_of_blocks_keeps_every_template_acceptable_at_its_least_and_current_time() {
    let node = Node::new().expect("the engine opens");
    for _ in 0..40 {
        let mut template = node.template(&TemplateOptions::default());
        assert!(template["curtime"].as_u64() >= template["mintime"].as_u64());
        template["curtime"] = template["mintime"].clone();
        let mut early = assemble(&template);
        early.header.time -= 1;
        solve(&mut early);
        assert_eq!(node.submit(&serialize(&early)).bip22(), Some("time-too-old"), "one second before mintime is too early");
        assert_eq!(node.submit(&serialize(&assemble(&template))), Verdict::Accepted);
    }
    node.mine_empty(60).expect("a burst at the current time");
    assert_eq!(node.height(), 100);
}

#[test]
fn a_reorganisation_leaves_templates_that_core_accepts() {
    let node = funded(40, TransactionMix::Both);
    node.mine_pending(5, None).expect("mined");
    let before = node.tip();
    let hashes = node.reorganise(3).expect("reorganised");
    assert_eq!(hashes.len(), 4);
    assert_eq!(node.tip(), hashes[3]);
    assert_eq!(node.height(), 126);
    let old = node.header_json(&before).expect("known");
    assert_eq!(old["confirmations"], -1);
    node.fill_mempool(40, TransactionMix::Both);
    for _ in 0..5 {
        let block = assemble(&node.template(&TemplateOptions::default()));
        assert!(block.txdata.len() > 30);
        assert_eq!(node.submit(&serialize(&block)), Verdict::Accepted);
    }
}

#[test]
fn a_foreign_spend_of_the_nodes_coins_does_not_poison_later_templates() {
    let node = funded(20, TransactionMix::Both);
    let mut block = assemble(&node.template(&TemplateOptions::default()));
    // The first transaction's twin with one satoshi less: same inputs, other txid; everything after it may depend on
    // the original, so the block keeps only the twin.
    let mut twin = block.txdata[1].clone();
    twin.output[0].value -= Amount::from_sat(1);
    block.txdata.truncate(1);
    block.txdata.push(twin);
    let commitment = block.txdata[0].output[1].clone();
    let root = block.witness_root().expect("has a coinbase");
    let hash = Block::compute_witness_commitment(&root, &[0; 32]);
    let mut script = commitment.script_pubkey.to_bytes();
    script[6..].copy_from_slice(hash.as_byte_array());
    block.txdata[0].output[1].script_pubkey = script.into();
    // Its fee is not known to the template: the coinbase claims the subsidy alone.
    block.txdata[0].output[0].value = Amount::from_sat(5_000_000_000);
    solve(&mut block);
    assert_eq!(node.submit(&serialize(&block)), Verdict::Accepted);
    for _ in 0..3 {
        let next = assemble(&node.template(&TemplateOptions::default()));
        assert!(next.txdata.len() > 10);
        assert_eq!(node.submit(&serialize(&next)), Verdict::Accepted);
    }
}

#[test]
fn a_side_block_is_inconclusive_and_a_second_copy_is_a_duplicate() {
    let node = Node::new().expect("the engine opens");
    let mut side = assemble(&node.template(&TemplateOptions::default()));
    let main = side.clone();
    assert_eq!(node.submit(&serialize(&main)), Verdict::Accepted);
    assert_eq!(node.submit(&serialize(&main)), Verdict::Duplicate);
    side.header.time += 1;
    solve(&mut side);
    assert_eq!(node.submit(&serialize(&side)), Verdict::Inconclusive);
    assert_eq!(node.tip(), main.block_hash());
    assert_eq!(node.submit(b"no block at all"), Verdict::Undecodable);
}

#[test]
fn two_nodes_in_one_process_keep_their_reasons_apart() {
    let threads: Vec<_> = (0..2)
        .map(|index| {
            std::thread::spawn(move || {
                let node = Node::new().expect("the engine opens");
                for round in 1..=50 {
                    let mut block = assemble(&node.template(&TemplateOptions::default()));
                    let expected = if index == 0 {
                        block.header.time -= 100_000_000;
                        block.header.bits = regtest_node::bitcoin::CompactTarget::from_consensus(0x207f_fffe);
                        "bad-diffbits"
                    } else {
                        // By another amount each time: Core remembers a refused block by its hash.
                        block.txdata[0].output[0].value += Amount::from_sat(round);
                        "bad-cb-amount"
                    };
                    solve(&mut block);
                    assert_eq!(node.submit(&serialize(&block)).bip22(), Some(expected));
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("no assertion failed");
    }
}

struct Client {
    server: Server,
    node: Arc<Node>,
}

impl Client {
    fn start(node: Node, auth: Auth) -> Self {
        let node = Arc::new(node);
        let server = Server::start(Arc::clone(&node), "127.0.0.1:0", auth).expect("listens");
        Self { server, node }
    }

    /// Status and body of one POST on a connection of its own.
    fn post(&self, headers: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.server.address()).expect("connects");
        write!(stream, "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
            .expect("sends");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answers");
        let status = answer[9..12].parse().expect("status");
        let body = answer.split_once("\r\n\r\n").expect("headers end").1;
        (status, body.to_owned())
    }

    fn call(&self, method: &str, params: Value) -> Value {
        let body = json!({"jsonrpc": "1.0", "id": 5, "method": method, "params": params});
        let (_, answer) = self.post("", &body.to_string());
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        assert_eq!(answer["id"], 5);
        answer
    }
}

#[test]
fn the_rpc_carries_a_block_from_template_to_tip() {
    let client = Client::start(funded(25, TransactionMix::Both), Auth::Open);
    assert_eq!(client.call("getblocktemplate", json!([]))["error"]["code"], -8);
    assert_eq!(client.call("getblocktemplate", json!([{"rules": []}]))["error"]["code"], -8);
    let template = client.call("getblocktemplate", json!([{"rules": ["segwit"]}]))["result"].clone();
    let block = assemble(&template);
    let data = serialize(&block).to_lower_hex_string();
    let propose = |data: &str| client.call("getblocktemplate", json!([{"mode": "proposal", "data": data, "rules": ["segwit"]}]));
    let mut greedy = block.clone();
    greedy.txdata[0].output[0].value += Amount::from_sat(1);
    greedy.header.merkle_root = greedy.compute_merkle_root().expect("has a coinbase");
    assert_eq!(propose(&data), json!({"result": null, "error": null, "id": 5}));
    assert_eq!(propose(&serialize(&greedy).to_lower_hex_string())["result"], "bad-cb-amount");
    assert_eq!(propose("00")["error"]["code"], -22);
    assert_eq!(client.call("submitblock", json!(["00ff"]))["error"]["code"], -22);
    assert_eq!(client.call("submitblock", json!([data]))["result"], Value::Null);
    assert_eq!(client.call("submitblock", json!([data]))["result"], "duplicate");
    assert_eq!(propose(&data)["result"], "duplicate");
    let hash = block.block_hash().to_string();
    assert_eq!(client.call("getbestblockhash", json!([]))["result"], hash);
    assert_eq!(client.call("getblockcount", json!([]))["result"], 121);
    assert_eq!(client.call("getblockhash", json!([121]))["result"], hash);
    assert_eq!(client.call("getblockhash", json!([122]))["error"]["code"], -8);
    let header = client.call("getblockheader", json!([hash, true]))["result"].clone();
    assert_eq!(header["height"], 121);
    assert_eq!(header["confirmations"], 1);
    assert_eq!(header["previousblockhash"], template["previousblockhash"]);
    assert_eq!(header["mediantime"].as_u64(), {
        let next = client.call("getblocktemplate", json!([{"rules": ["segwit"]}]));
        next["result"]["mintime"].as_u64().map(|mintime| mintime - 1)
    });
    let raw = client.call("getblockheader", json!([hash, false]))["result"].clone();
    assert_eq!(raw, serialize(&block.header).to_lower_hex_string());
    assert_eq!(client.call("getblock", json!([hash, 0]))["result"], data);
    assert_eq!(client.call("getblockchaininfo", json!([]))["result"]["chain"], "regtest");
    assert_eq!(client.call("nonsense", json!([]))["error"]["code"], -32601);
}

#[test]
fn a_longpoll_is_held_until_the_tip_or_the_memory_pool_changes() {
    let client = Client::start(funded(5, TransactionMix::Both), Auth::Open);
    let changes: [fn(&Node); 2] =
        [|node| drop(node.mine_empty(1).expect("mined")), |node| assert_eq!(node.fill_mempool(1, TransactionMix::Both), 1)];
    for change in changes {
        let id = client.node.longpoll_id();
        std::thread::scope(|scope| {
            let held = scope.spawn(|| client.call("getblocktemplate", json!([{"rules": ["segwit"], "longpollid": id}])));
            std::thread::sleep(Duration::from_millis(400));
            assert!(!held.is_finished(), "nothing has changed yet");
            change(&client.node);
            let answer = held.join().expect("answered");
            assert_ne!(answer["result"]["longpollid"], id);
            assert_eq!(answer["result"]["longpollid"], client.node.longpoll_id());
        });
    }
    assert!(client.node.wait_for_change("an old id", Duration::ZERO), "answered, not held");
    let id = client.node.longpoll_id();
    assert!(!client.node.wait_for_change(&id, Duration::ZERO));
}

#[test]
fn only_the_right_credentials_are_let_in() {
    let body = r#"{"method":"getblockcount","params":[],"id":1}"#;
    let basic = Client::start(Node::new().expect("opens"), Auth::Basic { user: "user".into(), password: "pass".into() });
    assert_eq!(basic.post("", body).0, 401);
    assert_eq!(basic.post("Authorization: Basic dXNlcjpwYXN0\r\n", body).0, 401);
    assert_eq!(basic.post("Authorization: Basic dXNlcjpwYXNz\r\n", body).0, 200);

    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(".cookie");
    let cookie = Client::start(Node::new().expect("opens"), Auth::Cookie(path.clone()));
    let text = std::fs::read_to_string(&path).expect("written");
    assert!(text.starts_with("__cookie__:"));
    assert_eq!(cookie.post("", body).0, 401);
    drop(cookie);
    assert!(!path.exists());
}

#[test]
fn malformed_requests_are_answered_and_the_server_goes_on() {
    let client = Client::start(Node::new().expect("opens"), Auth::Open);
    let raw = |text: &str| {
        let mut stream = TcpStream::connect(client.server.address()).expect("connects");
        stream.write_all(text.as_bytes()).expect("sends");
        stream.shutdown(std::net::Shutdown::Write).expect("half closed");
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer.get(9..12).map(str::to_owned)
    };
    assert_eq!(raw("GARBAGE\r\n\r\n").as_deref(), Some("400"));
    assert_eq!(raw("GET / HTTP/1.1\r\n\r\n").as_deref(), Some("405"));
    assert_eq!(raw("POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n").as_deref(), Some("400"));
    assert_eq!(raw("POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n").as_deref(), Some("413"));
    assert_eq!(raw("POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\n{}"), None);
    assert_eq!(client.post("", "not json").0, 500);
    assert_eq!(client.post("", "5").0, 400);
    let (status, batch) = client.post("", r#"[{"method":"getblockcount","id":1},{"jsonrpc":"2.0","method":"getbestblockhash","id":2}]"#);
    assert_eq!(status, 200);
    let batch: Value = serde_json::from_str(&batch).expect("JSON");
    assert_eq!(batch[0]["result"], 0);
    assert_eq!(batch[1]["result"], client.node.tip().to_string());
    assert!(batch[1].get("error").is_none());
    assert_eq!(client.node.tip().to_string().parse::<BlockHash>().ok(), Some(client.node.tip()));
}

#[test]
fn a_subscriber_hears_of_every_new_tip_and_a_stranger_to_the_topic_of_none() {
    let node = Arc::new(Node::new().expect("opens"));
    let publisher = Publisher::start(Arc::clone(&node), "127.0.0.1:0").expect("listens");
    let subscribe = |topic: &[u8]| {
        let mut stream = TcpStream::connect(publisher.address()).expect("connects");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        let mut greeting = [0; 64];
        (greeting[0], greeting[9], greeting[10]) = (0xff, 0x7f, 3);
        greeting[12..16].copy_from_slice(b"NULL");
        stream.write_all(&greeting).expect("sends");
        stream.write_all(b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x03SUB").expect("sends");
        stream.write_all(&[0, 1 + topic.len() as u8, 1]).expect("sends");
        stream.write_all(topic).expect("sends");
        // Their greeting and READY, of the same length as ours.
        stream.read_exact(&mut [0; 64 + 27]).expect("greets");
        stream
    };
    let mut all = subscribe(b"");
    let mut blocks = subscribe(b"hashblock");
    let mut transactions = subscribe(b"hashtx");
    std::thread::sleep(Duration::from_millis(300)); // The subscription itself is not acknowledged by the protocol.
    for number in 0..3_u32 {
        let hash = node.mine_empty(1).expect("mined")[0];
        for stream in [&mut all, &mut blocks] {
            let mut message = [0; 2 + 9 + 2 + 32 + 2 + 4];
            stream.read_exact(&mut message).expect("hears");
            let mut expected = b"\x01\x09hashblock\x01\x20".to_vec();
            expected.extend(hash.to_byte_array().iter().rev());
            expected.extend([0, 4]);
            expected.extend(number.to_le_bytes());
            assert_eq!(message[..], expected[..]);
        }
    }
    drop(publisher);
    let mut rest = Vec::new();
    let _ = transactions.read_to_end(&mut rest);
    assert_eq!(rest, b"");
}
