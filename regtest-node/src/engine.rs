//! The consensus engine behind safe, owned answers: headers as numbers, verdicts with Core's reason strings.

use std::cell::RefCell;
use std::path::Path;
use std::sync::{Arc, Mutex, Once};

use bitcoin::BlockHash;
use bitcoin::hashes::Hash;
use bitcoinkernel::prelude::*;
use bitcoinkernel::{
    BLOCK_CHECK_BASE, Block, BlockCheckResult, BlockTreeEntry, BlockValidationResult, BlockValidationStateRef, ChainParams, ChainType,
    ChainstateManager, ChainstateManagerBuilder, Context, ContextBuilder, Log, Logger, ProcessBlockResult, ValidationMode,
};

use crate::node::NodeError;

/// How Core classifies a refusal (`BlockValidationResult` in Core's `consensus/validation.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalClass {
    /// Breaks a consensus rule.
    Consensus,
    /// Refused before, with the same hash; the first reason is not kept by the engine.
    CachedInvalid,
    /// The header alone is wrong: proof of work, time or target.
    InvalidHeader,
    /// The transactions do not belong to this header: merkle root or witness commitment.
    Mutated,
    /// The block before it is not known.
    MissingPrevious,
    /// It builds on a block that was refused.
    InvalidPrevious,
    /// Its time is more than two hours ahead of the clock.
    TimeFuture,
    /// Anything else, among it failures of the engine itself.
    Other,
}

/// What happened to a submitted block, by what Core reports *and* by comparing the tip before and after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The block is the new tip.
    Accepted,
    /// Known before, and valid as far as the engine has looked.
    Duplicate,
    /// Stored, but it is not the tip and was not connected: a side block.
    Inconclusive,
    /// Refused. `reason` is Core's string, for example `bad-cb-amount`.
    Refused {
        /// Core's reject reason, without its debug text.
        reason: String,
        /// Core's class for it.
        class: RefusalClass,
    },
    /// The bytes are not one block.
    Undecodable,
}

impl Verdict {
    /// The result of `submitblock` as BIP 22 has it: `None` (JSON null) for an accepted block, else the reason.
    /// An undecodable block is an RPC error (-22) rather than a result; here it reads "rejected".
    pub fn bip22(&self) -> Option<&str> {
        match self {
            Self::Accepted => None,
            Self::Duplicate => Some("duplicate"),
            Self::Inconclusive => Some("inconclusive"),
            Self::Refused { reason, .. } => Some(reason),
            Self::Undecodable => Some("rejected"),
        }
    }
}

/// One block of the tree, with what a template and a header answer need.
#[derive(Debug, Clone)]
pub(crate) struct BlockInfo {
    pub hash: BlockHash,
    pub previous: Option<BlockHash>,
    pub height: u32,
    pub version: i32,
    pub merkle_root: [u8; 32],
    pub time: u32,
    pub bits: u32,
    pub nonce: u32,
    /// Median of the times of this block and up to ten before it.
    pub median_time: u32,
}

thread_local! {
    /// First refusal that the engine logged on this thread since the last clearing.
    static LOGGED_REASON: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// The engine hands reason strings to its log alone, which is one for the whole process. It writes them on the thread
/// that called `process_block`, so a slot per thread keeps several nodes in one process apart.
struct ReasonCatcher;

impl Log for ReasonCatcher {
    fn log(&self, message: &str) {
        if let Some(reason) = reason_in(message) {
            LOGGED_REASON.with_borrow_mut(|slot| {
                slot.get_or_insert_with(|| reason.to_owned());
            });
        }
    }
}

/// Cuts Core's reject reason out of one of the two log lines that carry it; the debug text after the comma is dropped.
fn reason_in(message: &str) -> Option<&str> {
    let (_, tail) = message.split_once("Block validation error: ").or_else(|| message.split_once("AcceptBlock FAILED ("))?;
    let tail = tail.trim_end();
    // Without debug text the second form ends in the parenthesis that it opened itself.
    let end = tail.find(", ").unwrap_or_else(|| tail.len() - usize::from(message.contains("AcceptBlock FAILED (") && tail.ends_with(')')));
    let reason = &tail[..end];
    (!reason.is_empty()).then_some(reason)
}

fn install_reason_catcher() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // A failure costs the reason strings only: refusals then read by their class.
        if let Ok(logger) = Logger::new(ReasonCatcher) {
            std::mem::forget(logger); // The log is the process's: it stays connected until the end.
        }
    });
}

/// Result of the last `BlockChecked` callback: the block's hash, and its class when it was refused.
type Checked = Arc<Mutex<Option<([u8; 32], Option<RefusalClass>)>>>;

/// Core's chain state on regtest. Calls that change it are serialised by the owner ([`crate::Node`]).
pub(crate) struct Engine {
    chain: ChainstateManager,
    params: ChainParams,
    checked: Checked,
    // Fields drop in order: the chain state must go before the context that it was made in.
    _context: Context,
}

impl Engine {
    /// Opens a fresh chain (genesis only) with its block files under `folder`; the databases live in memory.
    pub fn open(folder: &Path) -> Result<Self, NodeError> {
        install_reason_catcher();
        let folder_text = folder.to_str().ok_or_else(|| NodeError::Engine {
            operation: "opening the block folder",
            detail: format!("{} is not UTF-8", folder.display()),
        })?;
        let checked = Checked::default();
        let seen = Arc::clone(&checked);
        let failed = |operation| move |error: bitcoinkernel::KernelError| NodeError::Engine { operation, detail: error.to_string() };
        let context = ContextBuilder::new()
            .chain_type(ChainType::Regtest)
            .with_block_checked_validation(move |block: Block, state: BlockValidationStateRef<'_>| {
                let class = (state.mode() != ValidationMode::Valid).then(|| class_of(state.result()));
                *seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some((block.hash().to_bytes(), class));
            })
            .build()
            .map_err(failed("creating the engine's context"))?;
        let blocks_text = format!("{folder_text}/blocks");
        let chain = ChainstateManagerBuilder::new(&context, folder_text, &blocks_text)
            .map_err(failed("preparing the chain state"))?
            .worker_threads(0)
            .block_tree_db_in_memory(true)
            .chainstate_db_in_memory(true)
            .build()
            .map_err(failed("opening the chain state"))?;
        chain.import_blocks().map_err(failed("activating the genesis block"))?;
        Ok(Self { chain, params: ChainParams::new(ChainType::Regtest), checked, _context: context })
    }

    pub fn tip(&self) -> BlockInfo {
        info(&self.chain.active_chain().tip())
    }

    pub fn height(&self) -> u32 {
        u32::try_from(self.chain.active_chain().height()).unwrap_or(0)
    }

    pub fn at_height(&self, height: u32) -> Option<BlockInfo> {
        let chain = self.chain.active_chain();
        (height <= self.height()).then(|| chain.at_height(height as usize))?.map(|entry| info(&entry))
    }

    /// The block of this hash and whether it is on the active chain.
    pub fn find(&self, hash: &BlockHash) -> Option<(BlockInfo, bool)> {
        let entry = self.entry(hash)?;
        let active = self.chain.active_chain().contains(&entry);
        Some((info(&entry), active))
    }

    fn entry(&self, hash: &BlockHash) -> Option<BlockTreeEntry<'_>> {
        self.chain.get_block_tree_entry(&bitcoinkernel::BlockHash::from(hash.to_byte_array()))
    }

    /// The stored bytes of a block; `None` when its body is not there.
    pub fn block_bytes(&self, hash: &BlockHash) -> Option<Vec<u8>> {
        let entry = self.entry(hash)?;
        self.chain.read_block_data(&entry).ok()?.consensus_encode().ok()
    }

    /// Core's checks that need no chain: sizes, sigops, the coinbase's form. Proof of work and merkle root are left out.
    pub fn passes_context_free_checks(&self, bytes: &[u8]) -> Result<(), RefusalClass> {
        let block = Block::new(bytes).map_err(|_| RefusalClass::Other)?;
        match block.check(&self.params, BLOCK_CHECK_BASE) {
            BlockCheckResult::Valid => Ok(()),
            BlockCheckResult::Invalid(state) => Err(class_of(state.result())),
        }
    }

    /// Gives the block to Core. The engine's own result is not enough: a block that fails while it is connected comes
    /// back as `NewBlock`, so the callback's class and the tip afterwards decide.
    pub fn process(&self, bytes: &[u8]) -> Verdict {
        let Ok(block) = Block::new(bytes) else {
            return Verdict::Undecodable;
        };
        let hash = block.hash().to_bytes();
        let tip_before = self.chain.active_chain().tip().block_hash().to_bytes();
        LOGGED_REASON.with_borrow_mut(Option::take);
        *self.checked.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;

        let result = self.chain.process_block(&block);

        let tip_after = self.chain.active_chain().tip().block_hash().to_bytes();
        let logged = LOGGED_REASON.with_borrow_mut(Option::take);
        let checked = self.checked.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let refused_class = match checked {
            Some((checked_hash, class)) if checked_hash == hash => class,
            _ => None,
        };
        match (result, refused_class) {
            (ProcessBlockResult::Duplicate, _) => Verdict::Duplicate,
            (ProcessBlockResult::NewBlock, None) if tip_after == hash && tip_before != hash => Verdict::Accepted,
            (ProcessBlockResult::NewBlock, None) => Verdict::Inconclusive,
            (_, class) => {
                Verdict::Refused { reason: logged.unwrap_or_else(|| "rejected".to_owned()), class: class.unwrap_or(RefusalClass::Other) }
            }
        }
    }
}

fn class_of(result: BlockValidationResult) -> RefusalClass {
    match result {
        BlockValidationResult::Consensus => RefusalClass::Consensus,
        BlockValidationResult::CachedInvalid => RefusalClass::CachedInvalid,
        BlockValidationResult::InvalidHeader => RefusalClass::InvalidHeader,
        BlockValidationResult::Mutated => RefusalClass::Mutated,
        BlockValidationResult::MissingPrev => RefusalClass::MissingPrevious,
        BlockValidationResult::InvalidPrev => RefusalClass::InvalidPrevious,
        BlockValidationResult::TimeFuture => RefusalClass::TimeFuture,
        BlockValidationResult::Unset | BlockValidationResult::HeaderLowWork => RefusalClass::Other,
    }
}

fn info(entry: &BlockTreeEntry<'_>) -> BlockInfo {
    /// Core's `nMedianTimeSpan`.
    const MEDIAN_SPAN_BLOCKS: usize = 11;
    let header = entry.header();
    let mut times = [0_u32; MEDIAN_SPAN_BLOCKS];
    let mut count = 0;
    let mut at = Some(*entry);
    while let Some(block) = at {
        times[count] = block.header().timestamp();
        count += 1;
        if count == MEDIAN_SPAN_BLOCKS {
            break;
        }
        at = block.prev();
    }
    let times = &mut times[..count];
    times.sort_unstable();
    // Near the genesis block the count is even at times; Core takes the element at count / 2 there as well.
    let median_time = times[times.len() / 2];

    let mut merkle_root = [0; 32];
    if let Ok(bytes) = header.consensus_encode() {
        merkle_root.copy_from_slice(&bytes[36..68]);
    }
    BlockInfo {
        hash: BlockHash::from_byte_array(entry.block_hash().to_bytes()),
        previous: entry.prev().map(|previous| BlockHash::from_byte_array(previous.block_hash().to_bytes())),
        height: u32::try_from(entry.height()).unwrap_or(0),
        version: header.version(),
        merkle_root,
        time: header.timestamp(),
        bits: header.bits(),
        nonce: header.nonce(),
        median_time,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_cut_from_both_log_lines_with_and_without_debug_text() {
        let lines = [
            ("[error] ProcessNewBlock: AcceptBlock FAILED (bad-txnmrklroot, hashMerkleRoot mismatch)\n", Some("bad-txnmrklroot")),
            ("[error] ProcessNewBlock: AcceptBlock FAILED (duplicate-invalid)\n", Some("duplicate-invalid")),
            ("Block validation error: bad-cb-amount, coinbase pays too much (actual=2 vs limit=1)\n", Some("bad-cb-amount")),
            ("Block validation error: bad-cb-amount\n", Some("bad-cb-amount")),
            (
                "Block validation error: block-script-verify-flag-failed (empty stack), input 0 of x\n",
                Some("block-script-verify-flag-failed (empty stack)"),
            ),
            ("UpdateTip: new best=00 height=1\n", None),
        ];
        for (line, expected) in lines {
            assert_eq!(reason_in(line), expected, "{line}");
        }
    }
}
