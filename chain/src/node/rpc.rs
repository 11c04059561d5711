//! JSON-RPC over HTTP to real nodes: Bitcoin Core and what speaks like it.
//!
//! Connections are kept and used again, so a found block goes out on an open one. Calls are safe to repeat (a block that is sent twice is a "duplicate"),
//! so one that fails on a kept connection, which the node may have closed, is made again on a new one.
use super::{NodeError, NodeRpc, SubmitReply};
use crate::blocks::BlockHex;
use crate::template::Template;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use otedama_primitives::Hash256;
use serde_json::Value;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;

/// Largest answer that is read: a template of 4 MB of transactions is 8 MB of hex and its keys.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Connections kept open to each node.
const IDLE_MAX: usize = 4;
/// Bytes of a node's words that are repeated in an error.
const WORDS_MAX: usize = 300;
/// "Method not found" of JSON-RPC.
const CODE_NO_METHOD: i64 = -32601;
/// Core's `RPC_INVALID_ADDRESS_OR_KEY`: the block is unknown.
const CODE_UNKNOWN: i64 = -5;
/// Core's codes that judge the block and not the call: cannot be decoded, fails verification, rejected, already in the chain.
const CODES_OF_BLOCKS: [i64; 4] = [-22, -25, -26, -27];

/// How long calls may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RpcTimeouts {
    /// Opening a connection.
    pub connect: Duration,
    /// Questions about the chain.
    pub call: Duration,
    /// getblocktemplate without a long poll.
    pub template: Duration,
    /// getblocktemplate with one: when it ends without an answer nothing is wrong.
    pub long_poll: Duration,
    /// submitblock.
    pub submit: Duration,
}

impl Default for RpcTimeouts {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self { connect: s(3), call: s(5), template: s(15), long_poll: s(90), submit: s(30) }
    }
}

/// Nodes and the way in.
#[derive(Debug, Clone, Default)]
pub struct RpcSettings {
    /// `[chain] rpc`: `http://host:port`, the preferred first.
    pub urls: Vec<String>,
    /// `[chain] user`; empty to use the cookie.
    pub user: String,
    /// `[chain] password`.
    pub password: String,
    /// `[chain] cookie_file`; empty for none. Read again whenever a node answers 401, as it is rewritten at every start of the node.
    pub cookie_file: PathBuf,
    /// How long calls may take.
    pub timeouts: RpcTimeouts,
}

/// Why `[chain] rpc` cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RpcConfigError {
    /// No node.
    #[error("[chain] rpc is empty: name at least one node, such as \"http://127.0.0.1:8332\", or \"practice\"")]
    Empty,
    /// Not a URL of the form that is taken.
    #[error("[chain] rpc \"{url}\": {why}")]
    Url {
        /// The text, without what stands before an `@`.
        url: String,
        /// What to mend.
        why: &'static str,
    },
}

/// The nodes of `[chain] rpc`.
#[derive(Debug)]
pub struct RpcNodes {
    nodes: Vec<RpcNode>,
    timeouts: RpcTimeouts,
}

#[derive(Debug)]
struct RpcNode {
    url: String,
    authority: String,
    path: String,
    auth: Auth,
    idle: Mutex<Vec<SendRequest<Pieces>>>,
}

#[derive(Debug)]
enum Auth {
    None,
    Password { header: String },
    Cookie { path: PathBuf, header: Mutex<Option<String>> },
}

impl RpcNodes {
    /// Checks the URLs; connects to nothing yet.
    pub fn new(settings: RpcSettings) -> Result<Self, RpcConfigError> {
        if settings.urls.is_empty() {
            return Err(RpcConfigError::Empty);
        }
        let nodes = settings.urls.iter().map(|url| RpcNode::new(url, &settings)).collect::<Result<_, _>>()?;
        Ok(Self { nodes, timeouts: settings.timeouts })
    }

    async fn call(&self, node: usize, method: &'static str, params: Vec<Bytes>, timeout: Duration) -> Result<Value, NodeError> {
        let answer = self.answer(node, method, params, timeout).await?;
        result(&self.nodes[node].url, method, &answer)
    }

    /// The body of the answer, once it has come with a status under which a body counts.
    async fn answer(&self, node: usize, method: &'static str, params: Vec<Bytes>, timeout: Duration) -> Result<Answer, NodeError> {
        let node = &self.nodes[node];
        let mut body = Pieces(VecDeque::with_capacity(params.len() + 2));
        body.0.push_back(format!(r#"{{"jsonrpc":"1.0","id":"otedama","method":"{method}","params":["#).into());
        body.0.extend(params);
        body.0.push_back(Bytes::from_static(b"]}"));
        match tokio::time::timeout(timeout, node.exchange(method, &body, self.timeouts.connect)).await {
            Ok(answer) => answer,
            Err(_) => Err(NodeError::Timeout { method, url: node.url.clone(), timeout_ms: timeout.as_millis() as u64 }),
        }
    }
}

/// A request body in pieces, none of which is copied on its way to the socket.
#[derive(Debug, Clone)]
struct Pieces(VecDeque<Bytes>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.iter().map(|piece| piece.len() as u64).sum())
    }
}

/// Text that belongs to a template, as a piece of a body.
struct SharedText(Arc<str>);

impl AsRef<[u8]> for SharedText {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// An HTTP answer.
struct Answer {
    status: StatusCode,
    body: Bytes,
}

impl RpcNode {
    fn new(url: &str, settings: &RpcSettings) -> Result<Self, RpcConfigError> {
        let shown = match url.rsplit_once('@') {
            Some((_, after)) => format!("...@{after}"),
            None => url.to_owned(),
        };
        let refuse = |why| RpcConfigError::Url { url: shown.clone(), why };
        if url.contains('@') {
            return Err(refuse("put the user and the password into [chain] user and password: a URL is printed in logs"));
        }
        let uri: Uri = url.parse().map_err(|_| refuse("this is no URL: write it as http://host:port"))?;
        if uri.scheme_str() != Some("http") {
            return Err(refuse("write it as http://host:port (no TLS: reach a distant node through an SSH tunnel or a VPN)"));
        }
        let Some(authority) = uri.authority().filter(|authority| authority.port_u16().is_some()) else {
            return Err(refuse("the port is missing: Bitcoin Core listens on 8332, its test networks on 18332, 48332, 38332 and 18443"));
        };
        let auth = if !settings.user.is_empty() {
            Auth::Password { header: basic(&format!("{}:{}", settings.user, settings.password)) }
        } else if !settings.cookie_file.as_os_str().is_empty() {
            Auth::Cookie { path: settings.cookie_file.clone(), header: Mutex::default() }
        } else {
            Auth::None
        };
        let path = match uri.path() {
            "" => "/".to_owned(),
            path => path.to_owned(),
        };
        Ok(Self { url: url.trim_end_matches('/').to_owned(), authority: authority.as_str().to_owned(), path, auth, idle: Mutex::default() })
    }

    /// One call; with a cookie that the node refuses, a second one with the cookie read again.
    async fn exchange(&self, method: &'static str, body: &Pieces, connect: Duration) -> Result<Answer, NodeError> {
        let mut authorization = self.authorization(false)?;
        let mut answer = self.send(method, body, authorization.as_deref(), connect).await?;
        if answer.status == StatusCode::UNAUTHORIZED && matches!(self.auth, Auth::Cookie { .. }) {
            let fresh = self.authorization(true)?;
            if fresh != authorization {
                authorization = fresh;
                answer = self.send(method, body, authorization.as_deref(), connect).await?;
            }
        }
        Ok(answer)
    }

    fn authorization(&self, read_again: bool) -> Result<Option<String>, NodeError> {
        match &self.auth {
            Auth::None => Ok(None),
            Auth::Password { header } => Ok(Some(header.clone())),
            Auth::Cookie { path, header } => {
                let mut header = header.lock().unwrap_or_else(PoisonError::into_inner);
                if read_again || header.is_none() {
                    let cookie = std::fs::read_to_string(path).map_err(|source| NodeError::Cookie {
                        url: self.url.clone(),
                        path: path.clone(),
                        source,
                    })?;
                    *header = Some(basic(cookie.trim()));
                }
                Ok(header.clone())
            }
        }
    }

    async fn send(&self, method: &'static str, body: &Pieces, authorization: Option<&str>, connect: Duration) -> Result<Answer, NodeError> {
        loop {
            let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(sender) = kept else { break };
            if sender.is_closed() {
                continue;
            }
            if let Ok(answer) = self.send_on(sender, method, body, authorization).await {
                return Ok(answer);
            }
        }
        let sender = self.connect(method, connect).await?;
        self.send_on(sender, method, body, authorization).await
    }

    async fn connect(&self, method: &'static str, connect: Duration) -> Result<SendRequest<Pieces>, NodeError> {
        let failed = |source| NodeError::Connect { method, url: self.url.clone(), source };
        let stream = match tokio::time::timeout(connect, TcpStream::connect(&self.authority)).await {
            Ok(stream) => stream.map_err(failed)?,
            Err(_) => return Err(failed(std::io::ErrorKind::TimedOut.into())),
        };
        // A block must not wait for the peer's delayed acknowledgement; failing to set this is no reason not to send.
        let _ = stream.set_nodelay(true);
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(method, &error))?;
        // Ends when the sender is dropped or the node closes; its errors come back through the sender.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(sender)
    }

    async fn send_on(
        &self,
        mut sender: SendRequest<Pieces>,
        method: &'static str,
        body: &Pieces,
        authorization: Option<&str>,
    ) -> Result<Answer, NodeError> {
        let mut request = Request::post(&self.path).header(HOST, &self.authority).header(CONTENT_TYPE, "application/json");
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request.body(body.clone()).map_err(|error| self.broken(method, &error))?;
        sender.ready().await.map_err(|error| self.broken(method, &error))?;
        let response = sender.send_request(request).await.map_err(|error| self.broken(method, &error))?;
        let status = response.status();
        let body =
            Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(|error| self.broken(method, &*error))?.to_bytes();
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX && !sender.is_closed() {
            idle.push(sender);
        }
        Ok(Answer { status, body })
    }

    fn broken(&self, method: &'static str, error: &(dyn std::error::Error + 'static)) -> NodeError {
        NodeError::Transport { method, url: self.url.clone(), detail: super::one_line(error) }
    }
}

/// The `result` of an answer, or the error that it is. Nodes send JSON-RPC errors under the statuses 200, 400, 404 and 500.
fn result(url: &str, method: &'static str, answer: &Answer) -> Result<Value, NodeError> {
    let status = answer.status.as_u16();
    let advice = match status {
        401 => ": the node refuses the credentials: check [chain] user and password, or cookie_file",
        403 => ": the node refuses this address or method: check its rpcallowip and rpcwhitelist",
        503 => ": the node is overloaded: raise its rpcworkqueue and rpcthreads",
        _ => "",
    };
    let parsed = if matches!(status, 401 | 403) { None } else { serde_json::from_slice::<Value>(&answer.body).ok() };
    let Some(Value::Object(mut fields)) = parsed else {
        return Err(if answer.status.is_success() {
            let start: String = String::from_utf8_lossy(&answer.body[..answer.body.len().min(80)]).into_owned();
            malformed(url, method, format!("it is no JSON object, it starts with {start:?}"))
        } else {
            NodeError::Status { method, url: url.to_owned(), status, advice }
        });
    };
    match fields.get("error") {
        None | Some(Value::Null) => {}
        Some(error) => {
            let code = error.get("code").and_then(Value::as_i64).unwrap_or(0);
            let words = error.get("message").and_then(Value::as_str).map_or_else(|| error.to_string(), str::to_owned);
            return Err(NodeError::Rpc { method, url: url.to_owned(), code, message: words.chars().take(WORDS_MAX).collect() });
        }
    }
    if !answer.status.is_success() {
        return Err(NodeError::Status { method, url: url.to_owned(), status, advice });
    }
    fields.remove("result").ok_or_else(|| malformed(url, method, "it has neither \"result\" nor \"error\""))
}

fn malformed(url: &str, method: &'static str, detail: impl Into<String>) -> NodeError {
    NodeError::Malformed { method, url: url.to_owned(), detail: detail.into() }
}

impl NodeRpc for RpcNodes {
    fn nodes(&self) -> usize {
        self.nodes.len()
    }

    fn url(&self, node: usize) -> &str {
        &self.nodes[node].url
    }

    async fn block_template(&self, node: usize, longpollid: Option<&str>) -> Result<Template, NodeError> {
        const METHOD: &str = "getblocktemplate";
        let (params, timeout) = match longpollid {
            None => (Bytes::from_static(br#"{"rules":["segwit"]}"#), self.timeouts.template),
            Some(id) => (format!(r#"{{"rules":["segwit"],"longpollid":{}}}"#, Value::from(id)).into(), self.timeouts.long_poll),
        };
        let answer = self.answer(node, METHOD, vec![params], timeout).await?;
        // Megabytes of JSON: read on a thread of its own, so that a found block need not wait for it.
        let at = &self.nodes[node];
        let url = at.url.clone();
        let read = tokio::task::spawn_blocking(move || {
            let value = result(&url, METHOD, &answer)?;
            Template::parse(&value).map_err(|source| NodeError::Template { url, source })
        });
        read.await.unwrap_or_else(|error| Err(at.broken(METHOD, &error)))
    }

    async fn submit_block(&self, node: usize, block: &BlockHex) -> Result<SubmitReply, NodeError> {
        const METHOD: &str = "submitblock";
        let params =
            vec![format!("\"{}", block.head).into(), Bytes::from_owner(SharedText(Arc::clone(&block.body))), Bytes::from_static(b"\"")];
        match self.call(node, METHOD, params, self.timeouts.submit).await {
            Ok(Value::Null) => Ok(SubmitReply::Null),
            Ok(Value::String(reason)) => Ok(SubmitReply::Reason(reason)),
            Ok(_) => Err(malformed(&self.nodes[node].url, METHOD, "it is neither null nor a text")),
            Err(NodeError::Rpc { code, message, .. }) if CODES_OF_BLOCKS.contains(&code) => Ok(SubmitReply::Reason(message)),
            Err(error) => Err(error),
        }
    }

    async fn best_block(&self, node: usize) -> Result<Hash256, NodeError> {
        const METHOD: &str = "getbestblockhash";
        let result = self.call(node, METHOD, Vec::new(), self.timeouts.call).await?;
        result
            .as_str()
            .and_then(|hex| Hash256::from_display_hex(hex).ok())
            .ok_or_else(|| malformed(&self.nodes[node].url, METHOD, "it is no block hash"))
    }

    async fn confirmations(&self, node: usize, block: &Hash256) -> Result<Option<i64>, NodeError> {
        const METHOD: &str = "getblockheader";
        match self.call(node, METHOD, vec![format!("\"{block}\"").into()], self.timeouts.call).await {
            Ok(header) => match header.get("confirmations").and_then(Value::as_i64) {
                Some(count) => Ok(Some(count)),
                None => Err(malformed(&self.nodes[node].url, METHOD, "it has no \"confirmations\"")),
            },
            Err(NodeError::Rpc { code: CODE_UNKNOWN, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn chain_name(&self, node: usize) -> Result<Option<String>, NodeError> {
        match self.call(node, "getblockchaininfo", Vec::new(), self.timeouts.call).await {
            Ok(info) => Ok(info.get("chain").and_then(Value::as_str).map(str::to_owned)),
            // Not there, or kept from this user: the template and the address have to do.
            Err(NodeError::Rpc { code: CODE_NO_METHOD, .. } | NodeError::Status { status: 403, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn basic(credentials: &str) -> String {
    format!("Basic {}", base64(credentials.as_bytes()))
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0u32, |group, &byte| (group << 8) | u32::from(byte)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let index = (group >> (18 - 6 * digit)) & 63;
            text.push(if digit <= chunk.len() { DIGITS[index as usize] as char } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_standard() {
        // RFC 4648, section 10.
        for (plain, expected) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("fooba", "Zm9vYmE="), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(plain.as_bytes()), expected);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }

    #[test]
    fn urls_that_cannot_be_used_say_what_to_mend_and_hide_the_password() {
        for (url, expected) in [
            ("", "no URL"),
            ("127.0.0.1", "http://host:port"),
            ("https://127.0.0.1:8332", "no TLS"),
            ("http://127.0.0.1", "port is missing"),
            ("http://user:secret@127.0.0.1:8332", "[chain] user"),
        ] {
            let error = RpcNodes::new(RpcSettings { urls: vec![url.into()], ..RpcSettings::default() }).expect_err(url).to_string();
            assert!(error.contains(expected) && !error.contains("secret"), "{error}");
        }
        assert_eq!(RpcNodes::new(RpcSettings::default()).err(), Some(RpcConfigError::Empty));
    }
}
