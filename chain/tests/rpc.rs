//! The JSON-RPC client against a small HTTP server on loopback that answers, refuses, hangs, cuts and lies on demand.
use otedama_chain::node::rpc::{RpcNodes, RpcSettings, RpcTimeouts};
use otedama_chain::{
    AssemblerSettings, BlockEvent, BlockHex, ChainSettings, ChainSink, ChainStats, Command, Network, NodeError, NodeRpc, SubmitReply,
    Template, TemplateError, practice_payout_script,
};
use otedama_primitives::{Hash256, Job, ManualClock, RunId};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedSender, channel, unbounded_channel};

/// What the server does with a call.
#[derive(Clone)]
enum Reply {
    Ok(Value),
    Error(u16, i64, &'static str),
    Raw(u16, String),
    Hang,
    /// Half of an answer, then the connection is closed.
    Cut,
    /// An answer, after which the connection is closed without a word.
    OkThenClose(Value),
}

/// A call as it arrived.
#[derive(Clone, Debug)]
struct Call {
    authorization: String,
    method: String,
    params: Value,
}

type Handler = dyn Fn(&Call) -> Reply + Send + Sync;

struct Stub {
    url: String,
    connections: Arc<AtomicUsize>,
    calls: Arc<Mutex<Vec<Call>>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Stub {
    async fn start(handler: impl Fn(&Call) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        let (connections, calls) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let handler: Arc<Handler> = Arc::new(handler);
        let serving = {
            let (connections, calls) = (Arc::clone(&connections), Arc::clone(&calls));
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    connections.fetch_add(1, Ordering::Relaxed);
                    tokio::spawn(serve(stream, Arc::clone(&handler), Arc::clone(&calls)));
                }
            })
        };
        Self { url, connections, calls, serving }
    }

    fn calls(&self) -> Vec<Call> {
        self.calls.lock().expect("lock").clone()
    }

    fn client(&self) -> RpcNodes {
        RpcNodes::new(RpcSettings { urls: vec![self.url.clone()], ..settings() }).expect("a URL")
    }
}

async fn serve(mut stream: TcpStream, handler: Arc<Handler>, calls: Arc<Mutex<Vec<Call>>>) -> Option<()> {
    let mut buffer = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            if stream.read_buf(&mut buffer).await.ok()? == 0 {
                return None;
            }
        };
        let head = String::from_utf8(buffer[..end].to_vec()).ok()?;
        let header = |name: &str| {
            let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:")));
            line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let length: usize = header("content-length").parse().ok()?;
        while buffer.len() < end + length {
            if stream.read_buf(&mut buffer).await.ok()? == 0 {
                return None;
            }
        }
        let body: Value = serde_json::from_slice(&buffer[end..end + length]).ok()?;
        buffer.drain(..end + length);
        let call =
            Call { authorization: header("authorization"), method: body["method"].as_str()?.to_owned(), params: body["params"].clone() };
        let reply = handler(&call);
        calls.lock().ok()?.push(call);
        let (status, text, close) = match reply {
            Reply::Ok(result) => (200, json!({"result": result, "error": null, "id": "otedama"}).to_string(), false),
            Reply::OkThenClose(result) => (200, json!({"result": result, "error": null, "id": "otedama"}).to_string(), true),
            Reply::Error(status, code, message) => {
                (status, json!({"result": null, "error": {"code": code, "message": message}, "id": "otedama"}).to_string(), false)
            }
            Reply::Raw(status, text) => (status, text, false),
            Reply::Hang => std::future::pending().await,
            Reply::Cut => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"resu").await.ok()?;
                return None;
            }
        };
        let answer = format!("HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{text}", text.len());
        stream.write_all(answer.as_bytes()).await.ok()?;
        if close {
            return None;
        }
    }
}

fn settings() -> RpcSettings {
    let long = Duration::from_secs(20);
    RpcSettings {
        timeouts: RpcTimeouts { connect: long, call: long, template: long, long_poll: long, submit: long },
        ..RpcSettings::default()
    }
}

fn impatient() -> RpcTimeouts {
    let short = Duration::from_millis(50);
    RpcTimeouts { connect: Duration::from_secs(5), call: short, template: short, long_poll: short, submit: short }
}

fn template_json() -> Value {
    let text = include_str!("vectors/sv1_jobs.json");
    serde_json::from_str::<Value>(text).expect("JSON")[0]["getblocktemplate"].clone()
}

fn block(hex: &str) -> BlockHex {
    let (head, body) = hex.split_at(hex.len() / 2);
    BlockHex { head: head.into(), body: body.into() }
}

const TIP: &str = "000000000019d6689c085ae165831e934ff763ae46a2a6c172b3f1b60a8ce26f";

#[tokio::test]
async fn calls_are_made_as_core_takes_them_and_share_one_connection() {
    let stub = Stub::start(|call| match call.method.as_str() {
        "getblocktemplate" => Reply::Ok(template_json()),
        "getbestblockhash" => Reply::Ok(json!(TIP)),
        "getblockheader" => Reply::Ok(json!({"confirmations": -1})),
        "getblockchaininfo" => Reply::Ok(json!({"chain": "regtest"})),
        _ => Reply::Ok(Value::Null),
    })
    .await;
    let client = RpcNodes::new(RpcSettings { urls: vec![stub.url.clone()], user: "pool".into(), password: "secret".into(), ..settings() })
        .expect("a URL");
    let tip = Hash256::from_display_hex(TIP).expect("hash");
    assert_eq!(client.block_template(0, None).await.expect("template"), Template::parse(&template_json()).expect("template"));
    client.block_template(0, Some("a\"b")).await.expect("template");
    assert_eq!(client.best_block(0).await.expect("tip"), tip);
    assert_eq!(client.confirmations(0, &tip).await.expect("header"), Some(-1));
    assert_eq!(client.chain_name(0).await.expect("info"), Some("regtest".into()));
    assert_eq!(client.submit_block(0, &block("00ff")).await.expect("reply"), SubmitReply::Null);
    let calls = stub.calls();
    let made: Vec<_> = calls.iter().map(|call| (call.method.as_str(), call.params.clone())).collect();
    assert_eq!(
        made,
        [
            ("getblocktemplate", json!([{"rules": ["segwit"]}])),
            ("getblocktemplate", json!([{"rules": ["segwit"], "longpollid": "a\"b"}])),
            ("getbestblockhash", json!([])),
            ("getblockheader", json!([TIP])),
            ("getblockchaininfo", json!([])),
            ("submitblock", json!(["00ff"])),
        ]
    );
    assert!(calls.iter().all(|call| call.authorization == "Basic cG9vbDpzZWNyZXQ="));
    assert_eq!(stub.connections.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_cookie_that_the_node_has_rewritten_is_read_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(".cookie");
    let wanted = Arc::new(Mutex::new("Basic YTox".to_owned())); // a:1
    let check = Arc::clone(&wanted);
    let stub = Stub::start(move |call| {
        if call.authorization == *check.lock().expect("lock") { Reply::Ok(json!(TIP)) } else { Reply::Raw(401, String::new()) }
    })
    .await;
    let client = RpcNodes::new(RpcSettings { urls: vec![stub.url.clone()], cookie_file: path.clone(), ..settings() }).expect("a URL");
    let missing = client.best_block(0).await.expect_err("no cookie yet");
    assert!(matches!(missing, NodeError::Cookie { .. }) && missing.to_string().contains("[chain] cookie_file"), "{missing}");

    std::fs::write(&path, "a:1\n").expect("written");
    client.best_block(0).await.expect("the first cookie");
    // The node restarts: it writes another cookie and takes only that.
    std::fs::write(&path, "b:2").expect("written");
    *wanted.lock().expect("lock") = "Basic Yjoy".to_owned();
    client.best_block(0).await.expect("the second cookie");
    assert_eq!(stub.calls().len(), 3, "one refusal, then the new cookie");

    *wanted.lock().expect("lock") = "another".to_owned();
    let refused = client.best_block(0).await.expect_err("no cookie fits");
    assert!(matches!(refused, NodeError::Status { status: 401, .. }), "{refused}");
    assert_eq!(stub.calls().len(), 4, "the same cookie is not sent twice");
}

#[tokio::test]
async fn every_way_of_failing_is_an_error_of_its_own_that_names_method_and_url() {
    async fn failure(reply: Reply) -> NodeError {
        let stub = Stub::start(move |_| reply.clone()).await;
        let error = stub.client().best_block(0).await.expect_err("a failure");
        let text = error.to_string();
        assert!(text.contains("getbestblockhash") && text.contains(&stub.url), "{text}");
        error
    }
    assert!(
        matches!(failure(Reply::Error(500, -28, "Loading block index")).await, NodeError::Rpc { code: -28, ref message, .. } if message == "Loading block index")
    );
    assert!(matches!(failure(Reply::Error(200, -1, "as JSON-RPC 2 has it")).await, NodeError::Rpc { code: -1, .. }));
    assert!(matches!(failure(Reply::Raw(500, "oops".into())).await, NodeError::Status { status: 500, .. }));
    assert!(failure(Reply::Raw(503, "Work queue depth exceeded".into())).await.to_string().contains("rpcworkqueue"));
    assert!(failure(Reply::Raw(403, String::new())).await.to_string().contains("rpcallowip"));
    assert!(failure(Reply::Raw(401, String::new())).await.to_string().contains("user and password"));
    assert!(matches!(failure(Reply::Raw(200, "{\"result\":".into())).await, NodeError::Malformed { .. }));
    assert!(matches!(failure(Reply::Raw(200, "[]".into())).await, NodeError::Malformed { .. }));
    assert!(matches!(failure(Reply::Raw(200, "{}".into())).await, NodeError::Malformed { .. }));
    assert!(matches!(failure(Reply::Ok(json!("zz"))).await, NodeError::Malformed { .. }));
    assert!(matches!(failure(Reply::Ok(json!(7))).await, NodeError::Malformed { .. }));
    assert!(matches!(failure(Reply::Cut).await, NodeError::Transport { .. }));
}

#[tokio::test]
async fn a_node_that_hangs_or_is_not_there_is_given_up() {
    let stub = Stub::start(|_| Reply::Hang).await;
    let client = RpcNodes::new(RpcSettings { urls: vec![stub.url.clone()], timeouts: impatient(), ..settings() }).expect("a URL");
    for error in [
        client.best_block(0).await.err(),
        client.block_template(0, None).await.err(),
        client.block_template(0, Some("id")).await.err(),
        client.submit_block(0, &block("00")).await.err(),
    ] {
        let error = error.expect("a timeout");
        assert!(error.is_timeout() && error.to_string().contains("no answer within 50 ms"), "{error}");
    }
    let gone = {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        format!("http://{}", listener.local_addr().expect("address"))
    };
    let client = RpcNodes::new(RpcSettings { urls: vec![gone], ..settings() }).expect("a URL");
    let error = client.best_block(0).await.expect_err("nobody there");
    assert!(matches!(error, NodeError::Connect { .. }) && error.to_string().contains("is the node running"), "{error}");
}

#[tokio::test]
async fn a_connection_that_the_node_has_closed_is_replaced() {
    let stub = Stub::start(|_| Reply::OkThenClose(json!(TIP))).await;
    let client = stub.client();
    for _ in 0..5 {
        client.best_block(0).await.expect("answered");
    }
    assert_eq!(stub.connections.load(Ordering::Relaxed), 5);
    assert_eq!(stub.calls().len(), 5);
}

#[tokio::test]
async fn what_nodes_say_of_blocks_is_told_from_what_they_say_of_the_call() {
    let stub = Stub::start(|call| match (call.method.as_str(), call.params[0].as_str()) {
        ("submitblock", Some("01")) => Reply::Ok(json!("high-hash")),
        ("submitblock", Some("02")) => Reply::Error(500, -22, "Block decode failed"),
        ("submitblock", Some("03")) => Reply::Error(500, -28, "Loading"),
        ("submitblock", _) => Reply::Ok(json!(false)),
        ("getblockheader", _) => Reply::Error(500, -5, "Block not found"),
        ("getblocktemplate", _) => Reply::Ok(json!({"height": 5})),
        _ => Reply::Error(404, -32601, "Method not found"),
    })
    .await;
    let client = stub.client();
    assert_eq!(client.submit_block(0, &block("01")).await.expect("reply"), SubmitReply::Reason("high-hash".into()));
    assert_eq!(client.submit_block(0, &block("02")).await.expect("reply"), SubmitReply::Reason("Block decode failed".into()));
    assert!(matches!(client.submit_block(0, &block("03")).await, Err(NodeError::Rpc { code: -28, .. })));
    assert!(matches!(client.submit_block(0, &block("04")).await, Err(NodeError::Malformed { .. })));
    assert_eq!(client.confirmations(0, &Hash256::default()).await.expect("unknown"), None);
    assert_eq!(client.chain_name(0).await.expect("no such method"), None);
    assert!(matches!(client.block_template(0, None).await, Err(NodeError::Template { source: TemplateError::Missing { .. }, .. })));
}

struct Jobs(UnboundedSender<Arc<Job>>);

impl ChainSink for Jobs {
    fn job(&mut self, job: &Arc<Job>) {
        let _ = self.0.send(Arc::clone(job));
    }

    fn block(&mut self, _event: &BlockEvent) {}
}

#[tokio::test]
async fn the_chain_task_works_over_http_past_a_broken_and_a_dead_node() {
    let broken = Stub::start(|_| Reply::Raw(500, "broken".into())).await;
    let dead = {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        format!("http://{}", listener.local_addr().expect("address"))
    };
    let well = Stub::start(|call| match (call.method.as_str(), call.params[0]["longpollid"].is_null()) {
        ("getblocktemplate", true) => Reply::Ok(template_json()),
        ("getblocktemplate", false) => Reply::Hang,
        ("getbestblockhash", _) => Reply::Ok(template_json()["previousblockhash"].clone()),
        _ => Reply::Error(404, -32601, "Method not found"),
    })
    .await;
    let nodes = RpcNodes::new(RpcSettings { urls: vec![dead, broken.url.clone(), well.url.clone()], ..settings() }).expect("URLs");
    let chain = ChainSettings {
        run: RunId::new(1, 1),
        network: Network::Regtest,
        assembler: AssemblerSettings { payout_script: practice_payout_script(), tag: "/test/".into(), extranonce2_bytes: 8 },
        poll_ms: 20,
        refresh_s: 30,
    };
    let (jobs, mut published) = unbounded_channel();
    let (_candidates, candidates) = channel(16);
    let (commands, commands_rx) = channel(16);
    let stats = Arc::new(ChainStats::default());
    let task = tokio::spawn(otedama_chain::run(chain, nodes, Jobs(jobs), ManualClock::at(1), Arc::clone(&stats), candidates, commands_rx));
    let job = published.recv().await.expect("a job");
    assert_eq!((job.height, job.clean), (205, true));
    assert_eq!(stats.snapshot(1).node, well.url);
    commands.try_send(Command::Stop).expect("running");
    task.await.expect("joined").expect("good settings");
}
