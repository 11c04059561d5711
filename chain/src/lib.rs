//! The chain side of the pool: templates from a node become jobs, block candidates become blocks, and the tip says what became of them.
//!
//! `template` reads what a node answers, `coinbase` and `jobs` make the share path's `Job` of it, `blocks` puts a solved job back together. `node` is the way to
//! real nodes (`node::rpc`), `practice` a built-in seeded chain behind the same trait, and `driver` the task of the control core that ties them together.
//! Nothing here runs on a share core.
#![forbid(unsafe_code)]

pub mod blocks;
pub mod coinbase;
pub mod driver;
pub mod jobs;
pub mod merkle;
pub mod network;
pub mod node;
pub mod practice;
mod stats;
mod submit;
pub mod template;

pub use blocks::{BlockError, BlockHex};
pub use coinbase::{CoinbaseError, longest_tag};
pub use driver::{BlockEvent, BlockStatus, ChainSettings, ChainSink, Command, run};
pub use jobs::{Assembler, AssemblerSettings, JobError};
pub use network::{Network, PayoutError, payout_script, practice_payout_script};
pub use node::rpc::{RpcConfigError, RpcNodes, RpcSettings, RpcTimeouts};
pub use node::{NodeError, NodeRpc, SubmitReply};
pub use practice::{Practice, PracticeError, PracticeSettings};
pub use stats::{ChainSnapshot, ChainStats};
pub use template::{Template, TemplateError};
