//! A Bitcoin test node: the verdicts are Bitcoin Core's, everything around them is small.
//!
//! The consensus engine is Core's own (`bitcoinkernel`), on a private regtest chain whose databases live in memory.
//! The engine has no memory pool, no wallet and no network, so this crate adds the three things that a mining pool
//! needs from a node: block templates (BIP 22, 23, 145), `submitblock` with Core's reason strings, and a supply of valid
//! transactions to fill the templates with. [`Node`] is used in-process by tests; [`rpc::Server`] puts the same node
//! behind JSON-RPC over HTTP, as `bitcoind` would.

mod engine;
mod ledger;
mod node;
pub mod rpc;
pub mod zmq;

pub use engine::{RefusalClass, Verdict};
pub use ledger::TransactionMix;
pub use node::{Node, NodeError, NodeOptions, ProposalError, TemplateOptions};

/// Re-exported so that callers name hashes, blocks and scripts by the types of this crate's own version.
pub use bitcoin;
