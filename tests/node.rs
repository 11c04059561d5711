//! The pool on a real node: Bitcoin Core's consensus engine (`regtest-node/`) makes the templates and judges every block.
//!
//! `OTEDAMA_REGTEST_NODE` names the node's binary, as the test lane `node` builds it; without it these tests say that they are skipped and why.
mod support;

use loadgen::farm::{Farm, FarmConfig};
use loadgen::ledger::LedgerSink;
use otedama_primitives::flags;
use otedama_sharelog::scan::{Filter, rows};
use otedama_sharelog::{BlockStatus, DIMENSIONS_START, DimensionEntry, DimensionReader};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use support::{Config, PATIENCE, Server, Site, alone, eventually, memory_kib, port_out_of_the_way, size};

/// Blocks at the start: transactions need matured coinbases.
const START_HEIGHT: u64 = 150;
const PAYOUT: &str = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080";

/// The node's process; killed when it goes out of scope.
struct Node {
    child: Child,
    address: SocketAddr,
}

impl Node {
    /// None, and a line that says so, where there is no node to start.
    fn start(test: &str, listen: SocketAddr, arguments: &[&str]) -> Option<Self> {
        let Some(binary) = std::env::var_os("OTEDAMA_REGTEST_NODE") else {
            let _ = writeln!(std::io::stderr(), "SKIP 1: {test}: OTEDAMA_REGTEST_NODE does not name the binary of regtest-node");
            return None;
        };
        let mut child = Command::new(binary)
            .args(["--mine", &START_HEIGHT.to_string(), "--transactions", "50", "--listen", &listen.to_string()])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("regtest-node starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("its address");
        let address = line.trim().strip_prefix("listening on ").and_then(|text| text.parse().ok());
        Some(Self { address: address.unwrap_or_else(|| panic!("no address in {line:?}")), child })
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// One call without parameters, or with them.
    fn call(&self, method: &str, params: Value, user: Option<&str>) -> Value {
        let body = json!({ "jsonrpc": "1.0", "id": 1, "method": method, "params": params }).to_string();
        let authorization = user.map_or(String::new(), |user| format!("Authorization: Basic {}\r\n", base64(user.as_bytes())));
        let mut stream = TcpStream::connect(self.address).expect("connect to the node");
        write!(stream, "POST / HTTP/1.1\r\nHost: node\r\nConnection: close\r\n{authorization}Content-Length: {}\r\n\r\n{body}", body.len())
            .expect("ask the node");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("the node's answer");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP: {answer}"));
        let mut answer: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{method}: {error}: {head}"));
        assert!(answer["error"].is_null(), "{method}: {answer}");
        answer["result"].take()
    }

    fn height(&self, user: Option<&str>) -> u64 {
        self.call("getblockcount", json!([]), user).as_u64().expect("a height")
    }

    fn stop(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let three = [chunk[0], chunk.get(1).copied().unwrap_or(0), chunk.get(2).copied().unwrap_or(0)];
        let bits = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        for digit in 0..4 {
            let is_there = digit <= chunk.len();
            text.push(if is_there { char::from(DIGITS[(bits >> (18 - 6 * digit)) as usize & 63]) } else { '=' });
        }
    }
    text
}

/// Passes connections on to the node; cut, it closes them and takes no others, as a node that is being restarted.
struct Line {
    address: SocketAddr,
    is_cut: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Line {
    fn to(node: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free loopback port");
        let line = Self { address: listener.local_addr().expect("its address"), is_cut: Arc::default(), open: Arc::default() };
        let (is_cut, open) = (line.is_cut.clone(), line.open.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if is_cut.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(server) = TcpStream::connect(node) else { continue };
                let both = || Some((client.try_clone().ok()?, server.try_clone().ok()?));
                let (Some(one), Some(two), Some(three)) = (both(), both(), both()) else { continue };
                open.lock().unwrap_or_else(PoisonError::into_inner).extend([three.0, three.1]);
                std::thread::spawn(move || pass(one.0, one.1));
                std::thread::spawn(move || pass(two.1, two.0));
            }
        });
        line
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn cut(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
        for stream in self.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn mend(&self) {
        self.is_cut.store(false, Ordering::SeqCst);
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

fn config(urls: &[String], more: &str) -> Config {
    let urls: Vec<String> = urls.iter().map(|url| format!("\"{url}\"")).collect();
    Config {
        difficulty: 2.4e-10,
        chain: format!("network = \"regtest\"\nrpc = [{}]\npayout_address = \"{PAYOUT}\"\npoll_ms = 100\n{more}", urls.join(", ")),
        ..Config::default()
    }
}

/// 64 connections at depth 8, with a ledger.
struct Load {
    farm: Farm,
    stop: Arc<AtomicBool>,
}

impl Load {
    fn start(site: &Site, target: SocketAddr, shares_per_s: f64) -> Self {
        let mut config = FarmConfig::new(target);
        config.reconnect = false;
        config.shares_per_s_per_connection = shares_per_s / config.connections as f64;
        config.ledger = LedgerSink::File(site.ledger());
        let stop = Arc::new(AtomicBool::new(false));
        Self { farm: Farm::start(config, stop.clone()).expect("a farm"), stop }
    }

    /// Ends it; submits, all of them answered by the rules.
    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let summary = self.farm.join().expect("the farm");
        assert_eq!(summary.totals.wrong, 0, "{:#?}", summary.totals.wrong_kept);
        assert_eq!((summary.totals.unanswered, summary.totals.disconnects), (0, 0));
        summary.totals.submits
    }
}

fn accepted(server: &Server) -> u64 {
    server.stats()["blocks"]["accepted"].as_u64().expect("a count")
}

/// Waits for `blocks` of them while the load goes on, as long as there is progress.
fn until_accepted(server: &Server, blocks: u64) {
    let mut now = accepted(server);
    while now < blocks {
        let before = now;
        let has_more = eventually(|| {
            now = accepted(server);
            now > before
        });
        assert!(has_more, "{now} of {blocks} blocks, and none for {PATIENCE:?}: {}", server.stats());
    }
}

/// Rows flagged as block candidates, and those of them whose ring was full.
fn flagged(log: &Path) -> (u64, u64) {
    let (mut blocks, mut from_log) = (0, 0);
    for row in rows(log, Filter::default()).expect("the log") {
        let row = row.expect("a row");
        blocks += u64::from(row.flags & flags::BLOCK != 0);
        from_log += u64::from(row.flags & flags::FROM_LOG != 0);
    }
    (blocks, from_log)
}

/// The blocks of `/api/stats` once every candidate in the log has its fate: found, accepted, superseded, rejected.
fn settled_blocks(server: &Server, log: &Path) -> ([u64; 4], u64) {
    let (candidates, from_log) = flagged(log);
    let mut blocks = [0; 4];
    let settled = eventually(|| {
        let stats = server.stats();
        blocks = ["found", "accepted", "superseded", "rejected"].map(|key| stats["blocks"][key].as_u64().expect("a count"));
        blocks[0] == candidates && blocks[0] == blocks[1..].iter().sum::<u64>()
    });
    assert!(settled, "{candidates} rows are candidates ({from_log} by way of the log), the blocks are {blocks:?}");
    (blocks, from_log)
}

#[test]
fn node_every_block_of_the_pool_is_in_cores_chain_and_every_candidate_in_the_log_has_its_fate() {
    let _turn = alone();
    let test = "node_every_block_of_the_pool_is_in_cores_chain_and_every_candidate_in_the_log_has_its_fate";
    let Some(node) = Node::start(test, SocketAddr::from(([127, 0, 0, 1], 0)), &["--user", "pool", "--password", "pass word"]) else {
        return;
    };
    let user = Some("pool:pass word");
    assert_eq!(node.height(user), START_HEIGHT);
    let site = Site::new(config(&[node.url()], "user = \"pool\"\npassword = \"pass word\"\n"));
    let server = site.serve();
    let began = Instant::now();
    // Every second hash is a candidate here. As many as the farm can make would keep the control core busy with writing down thousands of superseded ones
    // for each block; 10,000 a second still overflow the candidate ring.
    let load = Load::start(&site, server.stratum, 20_000.0);
    let wanted = size(100, 1000);
    until_accepted(&server, wanted / 2);
    let memory_half = memory_kib(server.pid(), "RssAnon");
    until_accepted(&server, wanted);
    let memory_whole = memory_kib(server.pid(), "RssAnon");
    let seconds = began.elapsed().as_secs_f64();
    let submits = load.end();
    server.settled_shares(submits);
    let lag = Instant::now();
    let ([found, accepted, superseded, rejected], from_log) = settled_blocks(&server, &site.log());
    let lag = lag.elapsed();
    assert_eq!(rejected, 0, "{}", site.stderr());
    assert_eq!(found, accepted + superseded);
    assert!(accepted >= wanted);
    assert_eq!(node.height(user), START_HEIGHT + accepted, "the node's chain has every accepted block and no other");
    // Not one by the pool's own word: the node's chain names the blocks, the pool's log of records names the same.
    let said = site.stderr();
    for height in START_HEIGHT + 1..=START_HEIGHT + accepted {
        let hash = node.call("getblockhash", json!([height]), user);
        let hash = hash.as_str().expect("a hash");
        assert!(said.contains(&format!("block {hash} at height {height}: accepted")), "block {hash} at height {height} is not the pool's");
    }
    // Jobs are kept for late candidates and rows for the next segment, both up to a bound (flat from 3,000 blocks on); a queue that nobody empties is not.
    let growth_max = size(64, 256) << 10;
    assert!(memory_whole < memory_half + growth_max, "{memory_half} KiB at half of the blocks, {memory_whole} KiB at all");
    println!(
        "{submits} submits in {seconds:.1} s: {found} candidates ({from_log} by way of the log, the last settled {} ms after the load) = {accepted} accepted + \
         {superseded} superseded; own memory {memory_half} KiB at half of the blocks, {memory_whole} KiB at all",
        lag.as_millis()
    );
    let drained = server.stop();
    assert_eq!(drained.received, submits);
    site.verified_clean();
    site.assert_no_panic();
}

#[test]
fn node_outage_of_seconds_costs_no_block_and_a_dead_node_beside_it_no_time() {
    let _turn = alone();
    let test = "node_outage_of_seconds_costs_no_block_and_a_dead_node_beside_it_no_time";
    let Some(node) = Node::start(test, SocketAddr::from(([127, 0, 0, 1], 0)), &[]) else { return };
    let line = Line::to(node.address);
    let dead = format!("http://127.0.0.1:{}", port_out_of_the_way());
    let site = Site::new(config(&[dead, line.url()], ""));
    let server = site.serve();
    let load = Load::start(&site, server.stratum, 2_000.0);
    until_accepted(&server, 20);
    line.cut();
    // What was on the line at the cut may still arrive at the node.
    std::thread::sleep(Duration::from_millis(200));
    let height = node.height(None);
    let answered = server.stats()["shares"]["accepted"].as_u64().expect("a count");
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(node.height(None), height, "nothing reaches a node that is cut off");
    let during = server.stats()["shares"]["accepted"].as_u64().expect("a count") - answered;
    assert!(during > 0, "miners are answered while no node is there");
    line.mend();
    until_accepted(&server, accepted(&server) + 30);
    let submits = load.end();
    server.settled_shares(submits);
    let ([found, accepted, superseded, rejected], from_log) = settled_blocks(&server, &site.log());
    assert_eq!(rejected, 0, "{}", site.stderr());
    assert_eq!(node.height(None), START_HEIGHT + accepted, "an answer that was lost at the cut is found again at the tip");
    println!(
        "{submits} submits, {during} in 5 s without a node: {found} candidates ({from_log} by way of the log) = {accepted} accepted + {superseded} superseded"
    );
    server.stop();
    site.verified_clean();
    site.assert_no_panic();
}

#[test]
fn node_hears_of_every_candidate_also_of_those_in_flight_when_the_pool_stops() {
    let _turn = alone();
    let test = "node_hears_of_every_candidate_also_of_those_in_flight_when_the_pool_stops";
    let Some(node) = Node::start(test, SocketAddr::from(([127, 0, 0, 1], 0)), &[]) else { return };
    let site = Site::new(config(&[node.url()], ""));
    for round in 1..=3 {
        let server = site.serve();
        let load = Load::start(&site, server.stratum, 0.0);
        until_accepted(&server, 5);
        server.stop();
        load.stop.store(true, Ordering::Relaxed);
        // The farm's connections end with the server: it says so, and that is all it says.
        drop(load.farm.join());
        let (candidates, from_log) = flagged(&site.log());
        let (mut found, mut ended, mut accepted) = (0, BTreeSet::new(), 0);
        for entry in DimensionReader::from(&site.log(), DIMENSIONS_START).expect("the log's records") {
            let (_, entry) = entry.expect("a record");
            let DimensionEntry::Block(block) = entry else { continue };
            match block.status {
                BlockStatus::Found => found += 1,
                status => {
                    accepted += u64::from(status == BlockStatus::Accepted);
                    ended.insert(block.hash.0);
                }
            }
        }
        assert_eq!((found, ended.len() as u64), (candidates, candidates), "round {round}, {from_log} by way of the log");
        assert_eq!(node.height(None), START_HEIGHT + accepted);
    }
    site.assert_no_panic();
}

#[test]
fn node_started_again_with_another_cookie_and_another_chain_is_mined_on() {
    let _turn = alone();
    let test = "node_started_again_with_another_cookie_and_another_chain_is_mined_on";
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cookie = folder.path().join(".cookie");
    let cookie_argument = cookie.to_str().expect("UTF-8").to_owned();
    let arguments = ["--cookie-file", cookie_argument.as_str()];
    let listen = SocketAddr::from(([127, 0, 0, 1], port_out_of_the_way()));
    let Some(node) = Node::start(test, listen, &arguments) else { return };
    let first = std::fs::read_to_string(&cookie).expect("the node writes its cookie");
    let site = Site::new(config(&[node.url()], &format!("cookie_file = \"{cookie_argument}\"\n")));
    let server = site.serve();
    let load = Load::start(&site, server.stratum, 2_000.0);
    until_accepted(&server, 20);
    node.stop();
    let before = accepted(&server);
    std::thread::sleep(Duration::from_secs(1));
    // Its own arguments and another cookie; its chain begins anew, so it is another one of the same length.
    let node = Node::start(test, listen, &["--cookie-file", cookie_argument.as_str(), "--seed", "2"]).expect("it was there before");
    let second = std::fs::read_to_string(&cookie).expect("the node writes its cookie");
    assert_ne!(first, second);
    until_accepted(&server, before + 30);
    let submits = load.end();
    server.settled_shares(submits);
    let ([found, accepted, superseded, rejected], _) = settled_blocks(&server, &site.log());
    let height = node.height(Some(second.trim()));
    // A block that the first node took and could not confirm any more may count on neither side.
    assert!(
        height >= START_HEIGHT + 30 && height <= START_HEIGHT + accepted - before + 1,
        "{height}, {accepted} accepted, {before} before"
    );
    println!(
        "{submits} submits: {found} candidates = {accepted} accepted ({before} on the first chain) + {superseded} superseded + {rejected} rejected; height {height}"
    );
    server.stop();
    site.verified_clean();
    site.assert_no_panic();
}

#[test]
fn base64_is_as_in_rfc_4648() {
    for (plain, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")] {
        assert_eq!(base64(plain.as_bytes()), coded);
    }
}
