//! The way to nodes: one trait for real nodes, the practice chain and the simulator.
use crate::blocks::BlockHex;
use crate::network::Network;
use crate::template::{Template, TemplateError};
use otedama_primitives::Hash256;
use std::future::Future;
use std::path::PathBuf;

pub mod rpc;

/// One or more nodes of one chain. A node is named by its index, 0 to `nodes() - 1`; the order is that of `[chain] rpc`.
/// Every call ends by itself: implementations carry their own timeouts.
pub trait NodeRpc: Send + Sync + 'static {
    /// How many nodes there are, at least 1.
    fn nodes(&self) -> usize;

    /// The node's address for logs and statistics, without credentials.
    fn url(&self, node: usize) -> &str;

    /// getblocktemplate with the segwit rules; with a long-poll id it answers when that template is out of date.
    fn block_template(&self, node: usize, longpollid: Option<&str>) -> impl Future<Output = Result<Template, NodeError>> + Send;

    /// submitblock of a whole block.
    fn submit_block(&self, node: usize, block: &BlockHex) -> impl Future<Output = Result<SubmitReply, NodeError>> + Send;

    /// getbestblockhash.
    fn best_block(&self, node: usize) -> impl Future<Output = Result<Hash256, NodeError>> + Send;

    /// `confirmations` of getblockheader: 1 and up in the active chain, -1 beside it; None when the node does not know the block.
    fn confirmations(&self, node: usize, block: &Hash256) -> impl Future<Output = Result<Option<i64>, NodeError>> + Send;

    /// `chain` of getblockchaininfo; None when the node has no such method.
    fn chain_name(&self, node: usize) -> impl Future<Output = Result<Option<String>, NodeError>> + Send;
}

/// What submitblock answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SubmitReply {
    /// null: probably accepted. No proof: the tip is.
    Null,
    /// The node's reason, such as "duplicate", "inconclusive" or "high-hash"; the words differ between nodes.
    Reason(String),
}

/// Why a call to a node failed.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// No connection.
    #[error("{method} at {url}: cannot connect: is the node running, and is this its RPC port?")]
    Connect {
        /// RPC method.
        method: &'static str,
        /// The node.
        url: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// No answer in time.
    #[error("{method} at {url}: no answer within {timeout_ms} ms")]
    Timeout {
        /// RPC method.
        method: &'static str,
        /// The node.
        url: String,
        /// How long was waited.
        timeout_ms: u64,
    },
    /// The connection broke or the answer was no HTTP.
    #[error("{method} at {url}: the connection failed: {detail}")]
    Transport {
        /// RPC method.
        method: &'static str,
        /// The node.
        url: String,
        /// What happened.
        detail: String,
    },
    /// An HTTP status instead of an answer.
    #[error("{method} at {url}: HTTP status {status}{advice}")]
    Status {
        /// RPC method.
        method: &'static str,
        /// The node.
        url: String,
        /// The status code.
        status: u16,
        /// What to mend, where the status tells.
        advice: &'static str,
    },
    /// A JSON-RPC error.
    #[error("{method} at {url}: the node says: {message} (code {code})")]
    Rpc {
        /// RPC method.
        method: &'static str,
        /// The node.
        url: String,
        /// JSON-RPC error code.
        code: i64,
        /// The node's words.
        message: String,
    },
    /// The answer is not what the method answers.
    #[error("{method} at {url}: the answer is not understood: {detail}")]
    Malformed {
        /// RPC method.
        method: &'static str,
        /// The node.
        url: String,
        /// What is wrong.
        detail: String,
    },
    /// The template was refused.
    #[error("getblocktemplate at {url}: {source}")]
    Template {
        /// The node.
        url: String,
        /// Why.
        source: TemplateError,
    },
    /// The cookie file cannot be read.
    #[error("reading the cookie of {url} from {}: set [chain] cookie_file to the .cookie in the node's data folder, or set user and password", path.display())]
    Cookie {
        /// The node.
        url: String,
        /// `[chain] cookie_file`.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The node is on another chain.
    #[error(
        "{url} is on the chain \"{chain}\", but [chain] network = \"{network}\": point rpc at a node of {network}, or set the network to match"
    )]
    OtherChain {
        /// The node.
        url: String,
        /// What it says it is on.
        chain: String,
        /// The configured network.
        network: Network,
    },
}

impl NodeError {
    /// True for an answer that did not come in time: for a long poll that is no failure.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout { .. })
    }
}

/// The whole story of an error in one line, causes included.
pub(crate) fn one_line(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = inner.source();
    }
    line
}
