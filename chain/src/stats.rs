//! What the chain task shows to the outside, readable from any thread at any time.
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Live figures of the chain task. All atomics are Relaxed: each stands for itself and publishes nothing else.
#[derive(Debug, Default)]
pub struct ChainStats {
    pub(crate) jobs: AtomicU64,
    pub(crate) templates: AtomicU64,
    pub(crate) template_us: AtomicU64,
    pub(crate) stale_after_us: AtomicU64,
    pub(crate) height: AtomicU32,
    pub(crate) blocks_found: AtomicU64,
    pub(crate) handed_us_last: AtomicU64,
    pub(crate) handed_us_most: AtomicU64,
    pub(crate) blocks_accepted: AtomicU64,
    pub(crate) blocks_superseded: AtomicU64,
    pub(crate) blocks_rejected: AtomicU64,
    pub(crate) calls_failed: AtomicU64,
    words: Mutex<Words>,
}

#[derive(Debug, Default)]
struct Words {
    node: String,
    last_error: String,
}

/// The figures at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainSnapshot {
    /// Jobs issued since the start.
    pub jobs: u64,
    /// Templates received since the start.
    pub templates: u64,
    /// Time since the newest template arrived, milliseconds; None before the first.
    pub template_age_ms: Option<u64>,
    /// Height of the block being mined; 0 before the first template.
    pub height: u32,
    /// Address of the node whose templates are in use, "practice" for the practice chain, empty before the first template.
    pub node: String,
    /// The newest failure of a node, empty when there was none since the last good template.
    pub last_error: String,
    /// Calls to nodes that failed since the start.
    pub calls_failed: u64,
    /// Candidates that arrived.
    pub blocks_found: u64,
    /// From the bytes of the newest candidate that was submitted to the start of its submitblock, microseconds; 0 before the first.
    pub handed_us_last: u64,
    /// The largest of those since the start.
    pub handed_us_most: u64,
    /// Blocks that the tip confirmed.
    pub blocks_accepted: u64,
    /// Candidates beside another block on the same parent.
    pub blocks_superseded: u64,
    /// Candidates that no node took.
    pub blocks_rejected: u64,
    /// True while the newest template is younger than four refreshes (at least a minute): miners do useful work.
    pub fresh: bool,
}

impl ChainStats {
    /// The figures at `now_us`, by the clock that the chain task runs on.
    pub fn snapshot(&self, now_us: u64) -> ChainSnapshot {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let templates = read(&self.templates);
        let age_us = now_us.saturating_sub(read(&self.template_us));
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        ChainSnapshot {
            jobs: read(&self.jobs),
            templates,
            template_age_ms: (templates > 0).then_some(age_us / 1_000),
            height: self.height.load(Ordering::Relaxed),
            node: words.node.clone(),
            last_error: words.last_error.clone(),
            calls_failed: read(&self.calls_failed),
            blocks_found: read(&self.blocks_found),
            handed_us_last: read(&self.handed_us_last),
            handed_us_most: read(&self.handed_us_most),
            blocks_accepted: read(&self.blocks_accepted),
            blocks_superseded: read(&self.blocks_superseded),
            blocks_rejected: read(&self.blocks_rejected),
            fresh: templates > 0 && age_us <= read(&self.stale_after_us),
        }
    }

    pub(crate) fn set_node(&self, node: &str) {
        let mut words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        words.last_error.clear();
        if words.node != node {
            words.node = node.to_owned();
        }
    }

    pub(crate) fn set_error(&self, error: String) {
        self.words.lock().unwrap_or_else(PoisonError::into_inner).last_error = error;
    }
}
