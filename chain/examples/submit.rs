//! From a candidate in the channel to the first bytes of its submitblock at the node, one JSON line per figure: `cargo run --release -p otedama-chain --example submit`;
//! `cargo xtask figures ship` takes the median of several. The template has 1 MB, the node is a thread of its own.
use otedama_chain::node::rpc::{RpcNodes, RpcSettings, RpcTimeouts};
use otedama_chain::{AssemblerSettings, BlockEvent, ChainSettings, ChainSink, Network, blocks, merkle, practice_payout_script};
use otedama_primitives::{BlockCandidate, Hash256, Job, ManualClock, RunId, WorkerId, encode_hex};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedSender, channel, unbounded_channel};

const ROUNDS: u32 = 200;

fn settings() -> RpcSettings {
    let long = Duration::from_secs(20);
    RpcSettings {
        timeouts: RpcTimeouts { connect: long, call: long, template: long, long_poll: long, submit: long },
        ..RpcSettings::default()
    }
}

fn template_json() -> Value {
    let text = include_str!("../tests/vectors/sv1_jobs.json");
    serde_json::from_str::<Value>(text).expect("JSON")[0]["getblocktemplate"].clone()
}

struct Jobs(UnboundedSender<Arc<Job>>);

impl ChainSink for Jobs {
    fn job(&mut self, job: &Arc<Job>) {
        let _ = self.0.send(Arc::clone(job));
    }

    fn block(&mut self, _event: &BlockEvent) {}
}

fn main() {
    let transactions: Vec<Value> = (0..2_000u32)
        .map(|index| {
            let data: Vec<u8> = [2u32.to_le_bytes(), [1; 4], index.to_le_bytes()].concat().into_iter().chain([7; 488]).collect();
            let id = merkle::sha256d(&data).to_string();
            json!({"data": encode_hex(&data), "txid": id, "hash": id})
        })
        .collect();
    let make = move |height: u32, parent: &Hash256| {
        let mut template = template_json();
        template["transactions"] = json!(transactions);
        template["height"] = json!(height);
        template["previousblockhash"] = json!(parent.to_string());
        template.as_object_mut().expect("object").remove("default_witness_commitment");
        template.as_object_mut().expect("object").remove("longpollid");
        template
    };
    let state = Arc::new(Mutex::new((make(205, &Hash256::default()), Hash256::default())));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    let (arrived, arrivals) = std::sync::mpsc::channel();
    let serving = Arc::clone(&state);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, state, arrived, make) = (stream.expect("stream"), Arc::clone(&serving), arrived.clone(), make.clone());
            std::thread::spawn(move || {
                let (mut buffer, mut chunk) = (Vec::new(), vec![0u8; 1 << 16]);
                loop {
                    let mut at = None;
                    let end = loop {
                        let count = stream.read(&mut chunk).unwrap_or(0);
                        if count == 0 {
                            return;
                        }
                        at.get_or_insert_with(Instant::now);
                        buffer.extend_from_slice(&chunk[..count]);
                        let text = String::from_utf8_lossy(&buffer[..buffer.len().min(1_000)]).into_owned();
                        let Some(end) = text.find("\r\n\r\n") else { continue };
                        let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("length");
                        if buffer.len() >= end + 4 + length.parse::<usize>().expect("number") {
                            break end + 4;
                        }
                    };
                    let body: Value = serde_json::from_slice(&buffer[end..]).expect("JSON");
                    buffer.clear();
                    let mut state = state.lock().expect("lock");
                    let result = match body["method"].as_str() {
                        Some("getblocktemplate") => state.0.clone(),
                        Some("getbestblockhash") => json!(state.1.to_string()),
                        Some("submitblock") => {
                            arrived.send(at.expect("bytes came")).expect("waited for");
                            let mut header = [0u8; 80];
                            otedama_primitives::decode_hex(&body["params"][0].as_str().expect("hex").as_bytes()[..160], &mut header)
                                .expect("hex");
                            state.1 = merkle::sha256d(&header);
                            let height = state.0["height"].as_u64().expect("height") as u32 + 1;
                            state.0 = make(height, &state.1);
                            Value::Null
                        }
                        _ => json!({"chain": "regtest"}),
                    };
                    let text = json!({"result": result, "error": null}).to_string();
                    drop(state);
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
                    stream.write_all(answer.as_bytes()).expect("sent");
                }
            });
        }
    });

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let mut times_us: Vec<u128> = runtime.block_on(async {
        let nodes = RpcNodes::new(RpcSettings { urls: vec![url], ..settings() }).expect("a URL");
        let assembler = AssemblerSettings { payout_script: practice_payout_script(), tag: "/test/".into(), extranonce2_bytes: 8 };
        let chain = ChainSettings { run: RunId::new(1, 1), network: Network::Regtest, assembler, poll_ms: 500, refresh_s: 30 };
        let (jobs, mut published) = unbounded_channel();
        let (candidates, candidates_rx) = channel(1 << 16);
        let (_commands, commands_rx) = channel(16);
        tokio::spawn(otedama_chain::run(chain, nodes, Jobs(jobs), ManualClock::at(1), Arc::default(), candidates_rx, commands_rx));
        let mut times_us = Vec::new();
        for _ in 0..ROUNDS {
            let job = published.recv().await.expect("a job");
            tokio::time::sleep(Duration::from_millis(30)).await;
            let mut candidate = BlockCandidate {
                job: job.id,
                session: 1,
                extranonce1: 1,
                extranonce2: 1,
                ntime: job.ntime,
                nonce: 0,
                version: job.version,
                worker: WorkerId(1),
                hash: Hash256::default(),
                arrival_us: 0,
            };
            while {
                candidate.hash = merkle::sha256d(&blocks::header_of(&job, &candidate).expect("header"));
                !job.network_target.is_met_by(&candidate.hash)
            } {
                candidate.nonce += 1;
            }
            let sent = Instant::now();
            candidates.try_send(candidate).expect("running");
            let at = loop {
                match arrivals.try_recv() {
                    Ok(at) => break at,
                    Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                }
            };
            times_us.push(at.duration_since(sent).as_micros());
        }
        times_us
    });
    times_us.sort_unstable();
    let at = |share: usize| times_us[times_us.len() * share / 100];
    for (name, us) in [("p50", at(50)), ("p90", at(90)), ("p99", at(99)), ("max", times_us[times_us.len() - 1])] {
        println!(
            r#"{{"name":"candidate_to_submitblock_us_{name}","value":{us},"unit":"us","counted":"candidate sent to the chain task until the node has the first bytes of its submitblock","conditions":"{ROUNDS} blocks of 1 MB, node on a thread of its own, loopback, connection open"}}"#
        );
    }
}
