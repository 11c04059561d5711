//! JSON-RPC over HTTP/1.1, in the dialect of `bitcoind`: status codes, error numbers, basic authentication, longpoll.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bitcoin::BlockHash;
use bitcoin::hex::FromHex;
use serde_json::{Value, json};

use crate::engine::Verdict;
use crate::ledger::TransactionMix;
use crate::node::{Node, TemplateOptions};

/// A block of 4 million weight units is at most 8 MB of hex; the rest is room for a batch.
const BODY_BYTES_MAX: usize = 32 << 20;
const HEADER_BYTES_MAX: u64 = 64 << 10;
/// Every connection has a thread; further ones are answered 503, as Core does when its work queue is full.
const CONNECTIONS_MAX: usize = 128;
/// An idle connection is closed after this.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a held longpoll looks whether its client or the server has gone.
const LONGPOLL_TICK: Duration = Duration::from_millis(250);

const METHOD_NOT_FOUND: i32 = -32601;
const INVALID_REQUEST: i32 = -32600;
const PARSE_ERROR: i32 = -32700;
const TYPE_ERROR: i32 = -3;
const INVALID_ADDRESS_OR_KEY: i32 = -5;
const INVALID_PARAMETER: i32 = -8;
const DESERIALIZATION: i32 = -22;
const INTERNAL: i32 = -32603;

/// Who may call.
#[derive(Debug, Clone, Default)]
pub enum Auth {
    /// Anyone who reaches the port.
    #[default]
    Open,
    /// HTTP basic authentication with these.
    Basic {
        /// User name.
        user: String,
        /// Password.
        password: String,
    },
    /// A fresh random password for the user `__cookie__`, written as `user:password` to this file (mode 0600), which
    /// is removed when the server stops.
    Cookie(PathBuf),
}

/// A server that could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is taken or not ours.
    #[error("listening on {address}: choose a free port, or port 0")]
    Listen {
        /// As it was asked for.
        address: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The cookie file could not be written.
    #[error("writing the cookie file {}", path.display())]
    Cookie {
        /// Its path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

struct Shared {
    node: Arc<Node>,
    /// The value that `Authorization` must have, if any.
    authorization: Option<String>,
    stopping: AtomicBool,
    connections: AtomicUsize,
    /// One handle of every open connection, so that stopping does not wait for idle clients.
    streams: Mutex<Vec<(usize, TcpStream)>>,
}

/// A running server; dropping it closes every connection and joins the accepting thread.
pub struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: Option<JoinHandle<()>>,
    cookie_file: Option<PathBuf>,
}

impl Server {
    /// Serves `node` on `listen`; port 0 takes a free one, see [`Server::address`].
    ///
    /// # Errors
    /// The address cannot be listened on, or the cookie file cannot be written.
    pub fn start(node: Arc<Node>, listen: &str, auth: Auth) -> Result<Self, StartError> {
        let listen_error = |source| StartError::Listen { address: listen.to_owned(), source };
        let addresses: Vec<SocketAddr> = listen.to_socket_addrs().map_err(listen_error)?.collect();
        let listener = TcpListener::bind(&addresses[..]).map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        let mut cookie_file = None;
        let credentials = match auth {
            Auth::Open => None,
            Auth::Basic { user, password } => Some(format!("{user}:{password}")),
            Auth::Cookie(path) => {
                let cookie = write_cookie(&path).map_err(|source| StartError::Cookie { path: path.clone(), source })?;
                cookie_file = Some(path);
                Some(cookie)
            }
        };
        let shared = Arc::new(Shared {
            node,
            authorization: credentials.map(|text| format!("Basic {}", base64(text.as_bytes()))),
            stopping: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            streams: Mutex::new(Vec::new()),
        });
        let accepting = {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || accept(&listener, &shared))
        };
        Ok(Self { shared, address, accepting: Some(accepting), cookie_file })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// True once a client has called `stop`.
    pub fn is_stopping(&self) -> bool {
        // Pairs with nothing: the flag carries no other data.
        self.shared.stopping.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        // The accepting thread sleeps in accept(): one more connection wakes it.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
        if let Some(thread) = self.accepting.take() {
            let _ = thread.join();
        }
        let streams = self.shared.streams.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, stream) in streams.iter() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        drop(streams);
        // The threads hold the node, and with it the folder that must be removed before the process ends.
        for _ in 0..200 {
            if self.shared.connections.load(Ordering::Relaxed) == 0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        if let Some(path) = &self.cookie_file {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn write_cookie(path: &PathBuf) -> io::Result<String> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut secret = [0; 32];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut secret)?;
    let cookie = format!("__cookie__:{}", bitcoin::hex::DisplayHex::to_lower_hex_string(&secret[..]));
    // Written beside and renamed, as Core does: a reader never sees half a cookie.
    let unfinished = path.with_extension("tmp");
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    file.write_all(cookie.as_bytes())?;
    std::fs::rename(&unfinished, path)?;
    Ok(cookie)
}

/// RFC 4648 with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0_u32, |word, &byte| word << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            if place <= chunk.len() {
                let index = (word >> (18 - 6 * place)) & 63;
                text.push(char::from(ALPHABET[index as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for (id, stream) in listener.incoming().enumerate() {
        if shared.stopping.load(Ordering::Relaxed) {
            return;
        }
        let Ok(mut stream) = stream else {
            std::thread::sleep(Duration::from_millis(10)); // Out of descriptors: wait for one to be freed.
            continue;
        };
        if shared.connections.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
            let _ = respond(&mut stream, 503, b"Work queue depth exceeded", false);
            continue;
        }
        let Ok(handle) = stream.try_clone() else {
            continue;
        };
        // Only this thread adds, so the bound above cannot be passed by two at once.
        shared.connections.fetch_add(1, Ordering::Relaxed);
        lock(&shared.streams).push((id, handle));
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            // A connection that fails has nobody left to be told.
            let _ = converse(&stream, &shared);
            let _ = stream.shutdown(std::net::Shutdown::Both);
            lock(&shared.streams).retain(|(other, _)| *other != id);
            shared.connections.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Request {
    method: String,
    authorization: Option<String>,
    body: Vec<u8>,
    keep_alive: bool,
}

enum Received {
    Request(Request),
    /// To be answered with this status, then closed.
    Bad(u16),
    Closed,
}

fn converse(stream: &TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IDLE_TIMEOUT))?;
    stream.set_write_timeout(Some(IDLE_TIMEOUT))?;
    let mut reader = BufReader::with_capacity(64 << 10, stream);
    let mut writer = stream;
    loop {
        let request = match receive(&mut reader, &mut writer)? {
            Received::Request(request) => request,
            Received::Bad(status) => return respond(&mut writer, status, b"", false),
            Received::Closed => return Ok(()),
        };
        if shared.authorization.is_some() && request.authorization != shared.authorization {
            return respond(&mut writer, 401, b"", false);
        }
        if request.method != "POST" {
            return respond(&mut writer, 405, b"JSONRPC server handles only POST requests", false);
        }
        let (status, answer) = answer_body(&request.body, shared, stream);
        let body = match answer {
            Value::Null => Vec::new(),
            answer => format!("{answer}\n").into_bytes(),
        };
        respond(&mut writer, status, &body, request.keep_alive)?;
        if !request.keep_alive {
            return Ok(());
        }
    }
}

fn receive(reader: &mut BufReader<&TcpStream>, writer: &mut &TcpStream) -> io::Result<Received> {
    let mut head = Read::take(&mut *reader, HEADER_BYTES_MAX);
    let mut line = String::new();
    if head.read_line(&mut line)? == 0 {
        return Ok(Received::Closed);
    }
    let mut words = line.split_whitespace();
    let method = words.next().unwrap_or("").to_owned();
    let version = words.nth(1).unwrap_or("").to_owned();
    if !version.starts_with("HTTP/1.") {
        return Ok(Received::Bad(400));
    }
    let mut request = Request { method, authorization: None, body: Vec::new(), keep_alive: version != "HTTP/1.0" };
    let mut length = 0_usize;
    let mut expects_continue = false;
    loop {
        line.clear();
        if head.read_line(&mut line)? == 0 || !line.ends_with('\n') {
            return Ok(Received::Bad(400)); // Headers too long, or cut off.
        }
        let header = line.trim_end();
        if header.is_empty() {
            break;
        }
        let Some((name, value)) = header.split_once(':') else {
            return Ok(Received::Bad(400));
        };
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => match value.parse() {
                Ok(parsed) => length = parsed,
                Err(_) => return Ok(Received::Bad(400)),
            },
            "authorization" => request.authorization = Some(value.to_owned()),
            "connection" if value.eq_ignore_ascii_case("close") => request.keep_alive = false,
            "connection" if value.eq_ignore_ascii_case("keep-alive") => request.keep_alive = true,
            "expect" if value.eq_ignore_ascii_case("100-continue") => expects_continue = true,
            // Core's clients send a length; chunks are not worth the code here.
            "transfer-encoding" => return Ok(Received::Bad(411)),
            _ => {}
        }
    }
    if length > BODY_BYTES_MAX {
        return Ok(Received::Bad(413));
    }
    if expects_continue {
        writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    // Grown as bytes arrive, so that a length alone costs no memory.
    Read::take(&mut *reader, length as u64).read_to_end(&mut request.body)?;
    if request.body.len() < length {
        return Ok(Received::Closed);
    }
    Ok(Received::Request(request))
}

fn respond(writer: &mut impl Write, status: u16, body: &[u8], keep_alive: bool) -> io::Result<()> {
    let phrase = match status {
        200 => "OK",
        204 => "No Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        404 => "Not Found",
        405 => "Method Not Allowed",
        411 => "Length Required",
        413 => "Payload Too Large",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    };
    let challenge = if status == 401 { "WWW-Authenticate: Basic realm=\"jsonrpc\"\r\n" } else { "" };
    let connection = if keep_alive { "keep-alive" } else { "close" };
    let mut message = format!(
        "HTTP/1.1 {status} {phrase}\r\n{challenge}Content-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: {connection}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    message.extend_from_slice(body);
    writer.write_all(&message)
}

/// An error of a call: Core's number and text.
struct CallError(i32, String);

fn error<T>(code: i32, text: impl Into<String>) -> Result<T, CallError> {
    Err(CallError(code, text.into()))
}

/// Answers a body: one call or a batch. Returns the HTTP status with it; `Null` stands for an empty body.
fn answer_body(body: &[u8], shared: &Arc<Shared>, stream: &TcpStream) -> (u16, Value) {
    match serde_json::from_slice(body) {
        Ok(Value::Array(calls)) => {
            let answers: Vec<Value> =
                calls.iter().map(|call| answer_one(call, shared, stream).1).filter(|answer| !answer.is_null()).collect();
            (200, Value::Array(answers))
        }
        Ok(call @ Value::Object(_)) => answer_one(&call, shared, stream),
        Ok(_) => (400, json!({"result": null, "error": {"code": INVALID_REQUEST, "message": "Invalid Request object"}, "id": null})),
        Err(_) => (500, json!({"result": null, "error": {"code": PARSE_ERROR, "message": "Parse error"}, "id": null})),
    }
}

fn answer_one(call: &Value, shared: &Arc<Shared>, stream: &TcpStream) -> (u16, Value) {
    let id = call.get("id").cloned();
    let is_version_2 = call.get("jsonrpc").and_then(Value::as_str) == Some("2.0");
    let params = call.get("params").cloned().unwrap_or(Value::Null);
    let result = match call.get("method").and_then(Value::as_str) {
        Some(method) => dispatch(method, &params, shared, stream),
        None => error(INVALID_REQUEST, "Missing method"),
    };
    if is_version_2 {
        // JSON-RPC 2.0: errors are HTTP 200 as well, and a call without id gets no answer.
        let Some(id) = id else {
            return (204, Value::Null);
        };
        return match result {
            Ok(result) => (200, json!({"jsonrpc": "2.0", "result": result, "id": id})),
            Err(CallError(code, message)) => (200, json!({"jsonrpc": "2.0", "error": {"code": code, "message": message}, "id": id})),
        };
    }
    match result {
        Ok(result) => (200, json!({"result": result, "error": null, "id": id})),
        Err(CallError(code, message)) => {
            let status = match code {
                METHOD_NOT_FOUND => 404,
                INVALID_REQUEST => 400,
                _ => 500,
            };
            (status, json!({"result": null, "error": {"code": code, "message": message}, "id": id}))
        }
    }
}

/// A parameter by place or by name.
fn param<'a>(params: &'a Value, place: usize, name: &str) -> Option<&'a Value> {
    match params {
        Value::Array(list) => list.get(place),
        Value::Object(map) => map.get(name),
        _ => None,
    }
    .filter(|value| !value.is_null())
}

fn text_param<'a>(params: &'a Value, place: usize, name: &str) -> Result<&'a str, CallError> {
    match param(params, place, name) {
        Some(Value::String(text)) => Ok(text),
        _ => error(TYPE_ERROR, format!("JSON value of {name} is not of expected type string")),
    }
}

fn count_param(params: &Value, place: usize, name: &str) -> Result<u32, CallError> {
    match param(params, place, name).and_then(Value::as_u64) {
        Some(count) => u32::try_from(count).or_else(|_| error(INVALID_PARAMETER, format!("{name} out of range"))),
        None => error(TYPE_ERROR, format!("JSON value of {name} is not of expected type number")),
    }
}

fn hash_param(params: &Value, place: usize, name: &str) -> Result<BlockHash, CallError> {
    let text = text_param(params, place, name)?;
    BlockHash::from_str(text)
        .or_else(|_| error(INVALID_PARAMETER, format!("{name} must be of length 64 (not {}, for '{text}')", text.len())))
}

fn dispatch(method: &str, params: &Value, shared: &Arc<Shared>, stream: &TcpStream) -> Result<Value, CallError> {
    let node = &shared.node;
    let own_block_failed = |failure: crate::NodeError| CallError(INTERNAL, failure.to_string());
    match method {
        "getblocktemplate" => template(params, shared, stream),
        "submitblock" => {
            let Ok(block) = Vec::<u8>::from_hex(text_param(params, 0, "hexdata")?) else {
                return error(DESERIALIZATION, "Block decode failed");
            };
            match node.submit(&block) {
                Verdict::Undecodable => error(DESERIALIZATION, "Block decode failed"),
                verdict => Ok(verdict.bip22().map_or(Value::Null, Value::from)),
            }
        }
        "getbestblockhash" => Ok(node.tip().to_string().into()),
        "getblockcount" => Ok(node.height().into()),
        "getblockhash" => match node.hash_at(count_param(params, 0, "height")?) {
            Some(hash) => Ok(hash.to_string().into()),
            None => error(INVALID_PARAMETER, "Block height out of range"),
        },
        "getblockheader" => {
            let hash = hash_param(params, 0, "blockhash")?;
            let is_verbose = param(params, 1, "verbose").and_then(Value::as_bool) != Some(false);
            let answer = if is_verbose { node.header_json(&hash) } else { node.header_bytes(&hash).map(|bytes| hex(&bytes).into()) };
            answer.map_or_else(|| error(INVALID_ADDRESS_OR_KEY, "Block not found"), Ok)
        }
        "getblock" => {
            let hash = hash_param(params, 0, "blockhash")?;
            let verbosity = param(params, 1, "verbosity").and_then(Value::as_u64).unwrap_or(1);
            block(node, &hash, verbosity).map_or_else(|| error(INVALID_ADDRESS_OR_KEY, "Block not found"), Ok)
        }
        "getblockchaininfo" => Ok(node.chain_json()),
        "getdifficulty" => Ok(node.chain_json()["difficulty"].clone()),
        "getnetworkinfo" => Ok(json!({
            // The engine is a snapshot of Core's development branch: 31.99.
            "version": 319_900,
            "subversion": concat!("/regtest-node:", env!("CARGO_PKG_VERSION"), "/"),
            "protocolversion": 70016,
            "localservices": "0000000000000000",
            "localrelay": false,
            "timeoffset": 0,
            "networkactive": false,
            "connections": 0,
            "connections_in": 0,
            "connections_out": 0,
            "networks": [],
            "relayfee": 0.00001,
            "incrementalfee": 0.00001,
            "localaddresses": [],
            "warnings": [],
        })),
        "getmininginfo" => {
            let chain = node.chain_json();
            Ok(json!({
                "blocks": chain["blocks"],
                "bits": chain["bits"],
                "difficulty": chain["difficulty"],
                "target": chain["target"],
                "networkhashps": 0,
                "pooledtx": node.pending_count(),
                "chain": "regtest",
                "warnings": [],
            }))
        }
        "getmempoolinfo" => Ok(json!({"loaded": true, "size": node.pending_count()})),
        "validateaddress" => Ok(address(text_param(params, 0, "address")?)),
        "generatetoaddress" => {
            let count = count_param(params, 0, "nblocks")?;
            let text = text_param(params, 1, "address")?;
            let Some(script) = script_of(text) else {
                return error(INVALID_ADDRESS_OR_KEY, "Error: Invalid address");
            };
            node.mine_pending(count, Some(script)).map(|hashes| texts(&hashes)).map_err(own_block_failed)
        }
        // The three below exist here alone: blocks from elsewhere, a fuller memory pool, a reorganisation.
        "mineempty" => node.mine_empty(count_param(params, 0, "nblocks")?).map(|hashes| texts(&hashes)).map_err(own_block_failed),
        "fillmempool" => {
            let count = count_param(params, 0, "count")?;
            let mix = match param(params, 1, "mix").and_then(Value::as_str) {
                None | Some("both") => TransactionMix::Both,
                Some("witness") => TransactionMix::Witness,
                Some("legacy") => TransactionMix::Legacy,
                Some(_) => {
                    return error(INVALID_PARAMETER, "mix must be both, witness or legacy");
                }
            };
            Ok(node.fill_mempool(count as usize, mix).into())
        }
        "reorganise" => node.reorganise(count_param(params, 0, "depth")?).map(|hashes| texts(&hashes)).map_err(own_block_failed),
        "stop" => {
            shared.stopping.store(true, Ordering::Relaxed);
            Ok("regtest-node stopping".into())
        }
        _ => error(METHOD_NOT_FOUND, "Method not found"),
    }
}

fn template(params: &Value, shared: &Arc<Shared>, stream: &TcpStream) -> Result<Value, CallError> {
    let node = &shared.node;
    let request = param(params, 0, "template_request");
    let field = |name: &str| request.and_then(|request| request.get(name)).filter(|value| !value.is_null());
    match field("mode") {
        None => {}
        Some(Value::String(mode)) if mode == "template" => {}
        Some(Value::String(mode)) if mode == "proposal" => {
            let Some(Value::String(data)) = field("data") else {
                return error(TYPE_ERROR, "Missing data String key for proposal");
            };
            let proposed = Vec::<u8>::from_hex(data).ok().and_then(|bytes| node.propose(&bytes).ok());
            return match proposed {
                Some(fault) => Ok(fault.map_or(Value::Null, Value::from)),
                None => error(DESERIALIZATION, "Block decode failed"),
            };
        }
        Some(_) => return error(INVALID_PARAMETER, "Invalid mode"),
    }
    let knows_segwit = field("rules").and_then(Value::as_array).is_some_and(|rules| rules.iter().any(|rule| rule == "segwit"));
    if !knows_segwit {
        return error(INVALID_PARAMETER, "getblocktemplate must be called with the segwit rule set (call with {\"rules\": [\"segwit\"]})");
    }
    if let Some(id) = field("longpollid").and_then(Value::as_str) {
        // Core waits a minute before it looks at the memory pool; here any change ends the wait at once.
        while !node.wait_for_change(id, LONGPOLL_TICK) {
            if shared.stopping.load(Ordering::Relaxed) {
                return error(-9, "Shutting down");
            }
            if has_hung_up(stream) {
                return error(INTERNAL, "client has gone");
            }
        }
    }
    Ok(node.template(&TemplateOptions::default()))
}

/// True when the client has closed its side: a pool that gave up waiting must not hold a thread here.
fn has_hung_up(stream: &TcpStream) -> bool {
    if stream.set_nonblocking(true).is_err() {
        return true;
    }
    let peeked = stream.peek(&mut [0]);
    let restored = stream.set_nonblocking(false);
    matches!(peeked, Ok(0)) || restored.is_err()
}

fn block(node: &Node, hash: &BlockHash, verbosity: u64) -> Option<Value> {
    let bytes = node.block_bytes(hash)?;
    if verbosity == 0 {
        return Some(hex(&bytes).into());
    }
    let block: bitcoin::Block = bitcoin::consensus::encode::deserialize(&bytes).ok()?;
    let mut answer = node.header_json(hash)?;
    answer["size"] = bytes.len().into();
    answer["weight"] = block.weight().to_wu().into();
    answer["nTx"] = block.txdata.len().into();
    answer["tx"] = block.txdata.iter().map(|transaction| transaction.compute_txid().to_string()).collect();
    Some(answer)
}

fn script_of(address: &str) -> Option<bitcoin::ScriptBuf> {
    let parsed: bitcoin::Address<bitcoin::address::NetworkUnchecked> = address.parse().ok()?;
    let checked = parsed.require_network(bitcoin::Network::Regtest).ok()?;
    Some(checked.script_pubkey())
}

fn address(text: &str) -> Value {
    match script_of(text) {
        Some(script) => json!({
            "isvalid": true,
            "address": text,
            "scriptPubKey": script.to_hex_string(),
            "isscript": script.is_p2sh() || script.is_p2wsh(),
            "iswitness": script.is_witness_program(),
        }),
        None => json!({"isvalid": false, "error": "Invalid or unsupported address"}),
    }
}

fn texts(hashes: &[BlockHash]) -> Value {
    hashes.iter().map(ToString::to_string).collect()
}

fn hex(bytes: &[u8]) -> String {
    bitcoin::hex::DisplayHex::to_lower_hex_string(bytes)
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_agrees_with_the_examples_of_rfc_4648() {
        let examples =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("fooba", "Zm9vYmE="), ("foobar", "Zm9vYmFy")];
        for (plain, coded) in examples {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
