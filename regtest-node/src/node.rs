//! The node: one chain, its waiting transactions, templates made from both and verdicts on what comes back.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bitcoin::absolute::LockTime;
use bitcoin::block::{Header, Version};
use bitcoin::consensus::encode::{deserialize, serialize};
use bitcoin::hashes::{Hash, HashEngine, sha256d};
use bitcoin::script::Builder;
use bitcoin::{
    Amount, Block, BlockHash, CompactTarget, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxMerkleNode, TxOut, Txid, Witness,
    merkle_tree, transaction,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::engine::{BlockInfo, Engine, Verdict};
use crate::ledger::{Ledger, Pending, TransactionMix};

/// Regtest never retargets: every block has this compact target (Core's `CRegTestParams`).
const BITS: u32 = 0x207f_ffff;
/// Blocks between halvings on regtest.
const HALVING_BLOCKS: u32 = 150;
/// Blocks of a difficulty period on regtest (one day of ten minutes each).
const DIFFICULTY_PERIOD_BLOCKS: u32 = 144;
/// How far the first block of a period may lie before the last of the one before (Core's `MAX_TIMEWARP`, BIP 94).
const TIMEWARP_MAX_S: u32 = 600;
/// A block's time may lead the clock by this much (Core's `MAX_FUTURE_BLOCK_TIME`).
const FUTURE_MAX_S: u32 = 7200;
/// Spacing of the blocks that are mined at start, so that the chain looks grown and the clock has not run ahead.
const START_SPACING_S: u32 = 600;
const WEIGHT_MAX: u64 = 4_000_000;
/// Weight kept free for header, count and coinbase (Core's `block_reserved_weight` default).
const WEIGHT_RESERVED: u64 = 8_000;
const VERSION_TOP_BITS: i32 = 0x2000_0000;
const COMMITMENT_PREFIX: [u8; 6] = [0x6a, 0x24, 0xaa, 0x21, 0xa9, 0xed];

/// What a node starts with.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// Blocks mined before the node answers. Their coinbases are the node's own money; the first is spendable from
    /// 100 blocks on.
    pub mine: u32,
    /// The waiting transactions are topped up to this many after every new tip.
    pub transactions: usize,
    /// Which transactions those are.
    pub mix: TransactionMix,
    /// Seed of the transactions. Coinbases and times differ from run to run all the same.
    pub seed: u64,
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self { mine: 0, transactions: 0, mix: TransactionMix::Both, seed: 1 }
    }
}

/// What a template should contain.
#[derive(Debug, Clone, Copy, Default)]
pub struct TemplateOptions {
    /// At most this many of the waiting transactions, oldest first; `None`: all that fit into a block.
    pub transactions_max: Option<usize>,
}

/// A failure of the node itself; a refused block is a [`Verdict`], not an error.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The folder for the block files could not be made.
    #[error("creating a folder for block files in {}", std::env::temp_dir().display())]
    Folder(#[source] std::io::Error),
    /// The engine refused to work.
    #[error("{operation}: the consensus engine says: {detail}")]
    Engine {
        /// What was being done.
        operation: &'static str,
        /// The engine's words.
        detail: String,
    },
    /// A block of the node's own making was not taken.
    #[error("the node's own block at height {height} was not accepted: {verdict:?}")]
    OwnBlock {
        /// Its height.
        height: u32,
        /// What the engine said.
        verdict: Verdict,
    },
    /// The chain is shorter than the reorganisation asked for.
    #[error("cannot reorganise {depth} blocks of a chain of height {height}")]
    TooShort {
        /// Blocks that were to be replaced.
        depth: u32,
        /// The chain's height.
        height: u32,
    },
}

/// A proposal that is not a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProposalError {
    /// Core's error -22.
    #[error("Block decode failed")]
    Undecodable,
}

#[derive(Debug)]
struct State {
    ledger: Ledger,
    tip: BlockInfo,
    /// Counts changes of the waiting transactions; second half of the longpoll id, as in Core.
    updates: u64,
    /// Counts new tips since the node began to answer.
    tip_updates: u64,
    /// Makes coinbases of blocks at the same height differ.
    own_blocks: u32,
}

/// A regtest node. All methods take `&self` and may be called from any thread; changes are made one at a time.
#[derive(Debug)]
pub struct Node {
    engine: Engine,
    state: Mutex<State>,
    changed: Condvar,
    options: NodeOptions,
    // Last: the engine writes into the folder until it is dropped.
    _folder: TempDir,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

impl Node {
    /// A node at the genesis block, without transactions.
    ///
    /// # Errors
    /// The temporary folder or the engine could not be opened.
    pub fn new() -> Result<Self, NodeError> {
        Self::with_options(NodeOptions::default())
    }

    /// A node that has mined and filled its memory pool as `options` say.
    ///
    /// # Errors
    /// The temporary folder or the engine could not be opened, or a block of the node's own was refused.
    pub fn with_options(options: NodeOptions) -> Result<Self, NodeError> {
        let folder = tempfile::Builder::new().prefix("regtest-node-").tempdir().map_err(NodeError::Folder)?;
        let engine = Engine::open(folder.path())?;
        let state = State { ledger: Ledger::new(options.seed), tip: engine.tip(), updates: 0, tip_updates: 0, own_blocks: 0 };
        let node = Self { engine, state: Mutex::new(state), changed: Condvar::new(), options, _folder: folder };
        node.mine_at_start()?;
        Ok(node)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hash of the best block.
    pub fn tip(&self) -> BlockHash {
        self.lock().tip.hash
    }

    /// Height of the best block; the genesis block has 0.
    pub fn height(&self) -> u32 {
        self.lock().tip.height
    }

    /// Hash of the active chain's block at `height`.
    pub fn hash_at(&self, height: u32) -> Option<BlockHash> {
        self.engine.at_height(height).map(|info| info.hash)
    }

    /// Serialised block (with witnesses) of any known hash.
    pub fn block_bytes(&self, hash: &BlockHash) -> Option<Vec<u8>> {
        self.engine.block_bytes(hash)
    }

    /// Number of transactions that wait for a block.
    pub fn pending_count(&self) -> usize {
        self.lock().ledger.pending().len()
    }

    /// The scriptPubKey of the node's own money, one of four anyone-can-spend forms by height.
    pub fn coinbase_script(&self, height: u32) -> ScriptBuf {
        self.lock().ledger.coinbase_script(height)
    }

    /// A template exactly as `getblocktemplate` returns it (BIP 22, 23, 145).
    ///
    /// `curtime` is the clock, or `mintime` where a burst of blocks has pushed the median past the clock. It never
    /// nears the limit of two hours ahead of the clock in practice: a burst moves the median by one second in six
    /// blocks, so that takes some 43,000 blocks in a row; from there on Core refuses with `time-too-new`.
    pub fn template(&self, options: &TemplateOptions) -> Value {
        template_of(&self.lock(), options)
    }

    /// The longpoll id that a template made now would have.
    pub fn longpoll_id(&self) -> String {
        longpoll_id(&self.lock())
    }

    /// Waits until the tip or the waiting transactions differ from those `id` stands for. False: `timeout` has passed.
    pub fn wait_for_change(&self, id: &str, timeout: Duration) -> bool {
        let (state, _) =
            self.changed.wait_timeout_while(self.lock(), timeout, |state| longpoll_id(state) == id).unwrap_or_else(PoisonError::into_inner);
        longpoll_id(&state) != id
    }

    /// How many new tips there were since the node began to answer, and the present one.
    pub fn tip_update(&self) -> (u64, BlockHash) {
        let state = self.lock();
        (state.tip_updates, state.tip.hash)
    }

    /// Waits until there were more than `known` new tips, or until `timeout` has passed; returns what `tip_update` does.
    pub fn wait_for_tip_update(&self, known: u64, timeout: Duration) -> (u64, BlockHash) {
        let (state, _) = self
            .changed
            .wait_timeout_while(self.lock(), timeout, |state| state.tip_updates == known)
            .unwrap_or_else(PoisonError::into_inner);
        (state.tip_updates, state.tip.hash)
    }

    /// Gives a serialised block to Core. Stricter than `bitcoind` in one point: its RPC repairs a coinbase without the
    /// witness reserved value before it asks the engine, this node passes it on and Core's engine refuses it.
    pub fn submit(&self, block: &[u8]) -> Verdict {
        let mut state = self.lock();
        let verdict = self.submit_locked(&mut state, block, true);
        drop(state);
        // Those that wait look for themselves whether anything has changed.
        self.changed.notify_all();
        verdict
    }

    /// Checks a block as `getblocktemplate` in proposal mode does: everything but the proof of work, nothing stored.
    /// `None`: it would be accepted. The engine offers only its context-free checks for this, the rest (previous
    /// block, time, target, height, amount, commitment) is checked here; scripts are not run.
    ///
    /// # Errors
    /// The bytes are not one block.
    pub fn propose(&self, bytes: &[u8]) -> Result<Option<String>, ProposalError> {
        let block: Block = deserialize(bytes).map_err(|_| ProposalError::Undecodable)?;
        if self.engine.find(&block.block_hash()).is_some() {
            return Ok(Some("duplicate".to_owned()));
        }
        let state = self.lock();
        if block.header.prev_blockhash != state.tip.hash {
            return Ok(Some("inconclusive-not-best-prevblk".to_owned()));
        }
        Ok(self.proposal_fault(&state, &block, bytes))
    }

    fn proposal_fault(&self, state: &State, block: &Block, bytes: &[u8]) -> Option<String> {
        let fault = |reason: &str| Some(reason.to_owned());
        let height = state.tip.height + 1;
        if block.header.bits.to_consensus() != BITS {
            return fault("bad-diffbits");
        }
        if block.header.time <= state.tip.median_time {
            return fault("time-too-old");
        }
        if block.header.time > now_s() + FUTURE_MAX_S {
            return fault("time-too-new");
        }
        if block.header.version.to_consensus() < 4 {
            return Some(format!("bad-version(0x{:08x})", block.header.version.to_consensus()));
        }
        if !block.check_merkle_root() {
            return fault("bad-txnmrklroot");
        }
        let Some(coinbase) = block.txdata.first().filter(|first| first.is_coinbase()) else {
            return fault("bad-cb-missing");
        };
        let script = &coinbase.input[0].script_sig;
        if !(2..=100).contains(&script.len()) {
            return fault("bad-cb-length");
        }
        if let Err(class) = self.engine.passes_context_free_checks(bytes) {
            return Some(format!("rejected ({class:?})"));
        }
        if !script.as_bytes().starts_with(&height_script(height).into_bytes()) {
            return fault("bad-cb-height");
        }
        if !block.check_witness_commitment() {
            return fault("bad-witness-merkle-match");
        }
        let mut fees_sat = 0;
        for transaction in &block.txdata[1..] {
            let txid = transaction.compute_txid();
            let known = state.ledger.pending().iter().find(|p| p.txid == txid)?;
            fees_sat += known.fee_sat;
        }
        let paid_sat: u64 = coinbase.output.iter().map(|output| output.value.to_sat()).sum();
        if paid_sat > subsidy_sat(height) + fees_sat {
            return fault("bad-cb-amount");
        }
        None
    }

    /// Mines `count` blocks without transactions, each at the template's time, and returns their hashes. The time is
    /// the clock or the least allowed one, whichever is later.
    ///
    /// # Errors
    /// The engine refused one of them; those before it stand.
    pub fn mine_empty(&self, count: u32) -> Result<Vec<BlockHash>, NodeError> {
        self.mine(count, 0, None)
    }

    /// Mines `count` blocks with the waiting transactions that fit; pays to `script`, or to the node itself.
    ///
    /// # Errors
    /// The engine refused one of them; those before it stand.
    pub fn mine_pending(&self, count: u32, script: Option<ScriptBuf>) -> Result<Vec<BlockHash>, NodeError> {
        self.mine(count, usize::MAX, script)
    }

    fn mine(&self, count: u32, transactions_max: usize, script: Option<ScriptBuf>) -> Result<Vec<BlockHash>, NodeError> {
        let mut state = self.lock();
        let mut hashes = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let time = now_s().max(mintime(&state.tip));
            let block = own_block(&mut state, None, time, transactions_max, script.clone());
            hashes.push(self.accept_own(&mut state, &block, true)?);
        }
        self.changed.notify_all();
        Ok(hashes)
    }

    /// Replaces the last `depth` blocks by `depth + 1` empty ones and returns the hashes of these.
    ///
    /// # Errors
    /// The chain is shorter than that, or the engine refused one of the blocks.
    pub fn reorganise(&self, depth: u32) -> Result<Vec<BlockHash>, NodeError> {
        let mut state = self.lock();
        let height = state.tip.height;
        let too_short = NodeError::TooShort { depth, height };
        let Some(mut parent) = height.checked_sub(depth).and_then(|at| self.engine.at_height(at)) else {
            return Err(too_short);
        };
        let mut hashes = Vec::new();
        for _ in 0..=depth {
            let time = now_s().max(mintime(&parent));
            let block = own_block(&mut state, Some(&parent), time, 0, None);
            let verdict = self.submit_locked(&mut state, &serialize(&block), true);
            let hash = block.block_hash();
            let found = self.engine.find(&hash);
            match (verdict, found) {
                (Verdict::Accepted | Verdict::Inconclusive, Some((info, _))) => parent = info,
                (verdict, _) => {
                    return Err(NodeError::OwnBlock { height: parent.height + 1, verdict });
                }
            }
            hashes.push(hash);
        }
        self.changed.notify_all();
        Ok(hashes)
    }

    /// Adds up to `count` valid transactions to the waiting ones and returns how many were made; fewer when the node
    /// has no more spendable outputs of the kind.
    pub fn fill_mempool(&self, count: usize, mix: TransactionMix) -> usize {
        let mut state = self.lock();
        let made = state.ledger.generate(count, mix);
        if made > 0 {
            state.updates += 1;
            self.changed.notify_all();
        }
        made
    }

    fn mine_at_start(&self) -> Result<(), NodeError> {
        let mut state = self.lock();
        let now = now_s();
        for index in 0..self.options.mine {
            let age_s = (self.options.mine - 1 - index).saturating_mul(START_SPACING_S);
            let time = now.saturating_sub(age_s).max(mintime(&state.tip));
            let block = own_block(&mut state, None, time, 0, None);
            self.accept_own(&mut state, &block, false)?;
        }
        self.top_up(&mut state);
        Ok(())
    }

    fn accept_own(&self, state: &mut State, block: &Block, top_up: bool) -> Result<BlockHash, NodeError> {
        let height = state.tip.height + 1;
        match self.submit_locked(state, &serialize(block), top_up) {
            Verdict::Accepted => Ok(state.tip.hash),
            verdict => Err(NodeError::OwnBlock { height, verdict }),
        }
    }

    fn submit_locked(&self, state: &mut State, bytes: &[u8], top_up: bool) -> Verdict {
        let verdict = self.engine.process(bytes);
        // The engine may move the tip also when it refuses this block, by going back to a branch that it knows.
        let tip = self.engine.tip();
        if tip.hash == state.tip.hash {
            return verdict;
        }
        let extends = tip.previous == Some(state.tip.hash) && verdict == Verdict::Accepted;
        let followed = extends && deserialize::<Block>(bytes).is_ok_and(|block| state.ledger.connect(&block, tip.height));
        state.tip = tip;
        if !followed {
            self.rebuild_ledger(state);
        }
        state.updates += 1;
        // Blocks at the start are not told either.
        state.tip_updates += u64::from(top_up);
        if top_up {
            self.top_up(state);
        }
        verdict
    }

    fn rebuild_ledger(&self, state: &mut State) {
        let blocks = (0..=state.tip.height).filter_map(|height| {
            let hash = self.engine.at_height(height)?.hash;
            deserialize(&self.engine.block_bytes(&hash)?).ok()
        });
        state.ledger.rebuild(blocks);
    }

    fn top_up(&self, state: &mut State) {
        let missing = self.options.transactions.saturating_sub(state.ledger.pending().len());
        if state.ledger.generate(missing, self.options.mix) > 0 {
            state.updates += 1;
        }
    }

    /// The header of a known block as `getblockheader` (verbose) returns it.
    pub fn header_json(&self, hash: &BlockHash) -> Option<Value> {
        let (info, active) = self.engine.find(hash)?;
        let tip_height = self.engine.height();
        let mut header = json!({
            "hash": info.hash.to_string(),
            "confirmations": if active { i64::from(tip_height) - i64::from(info.height) + 1 } else { -1 },
            "height": info.height,
            "version": info.version,
            "versionHex": format!("{:08x}", info.version),
            "merkleroot": Txid::from_byte_array(info.merkle_root).to_string(),
            "time": info.time,
            "mediantime": info.median_time,
            "nonce": info.nonce,
            "bits": format!("{:08x}", info.bits),
            "target": target_hex(),
            "difficulty": difficulty(),
            "chainwork": chainwork(info.height),
        });
        if let Some(previous) = info.previous {
            header["previousblockhash"] = previous.to_string().into();
        }
        if active && let Some(next) = self.engine.at_height(info.height + 1) {
            header["nextblockhash"] = next.hash.to_string().into();
        }
        Some(header)
    }

    /// The 80 bytes of a known block's header.
    pub fn header_bytes(&self, hash: &BlockHash) -> Option<[u8; 80]> {
        let (info, _) = self.engine.find(hash)?;
        let header = Header {
            version: Version::from_consensus(info.version),
            prev_blockhash: info.previous.unwrap_or_else(BlockHash::all_zeros),
            merkle_root: TxMerkleNode::from_byte_array(info.merkle_root),
            time: info.time,
            bits: CompactTarget::from_consensus(info.bits),
            nonce: info.nonce,
        };
        serialize(&header).try_into().ok()
    }

    /// What `getblockchaininfo` returns.
    pub fn chain_json(&self) -> Value {
        let tip = self.lock().tip.clone();
        json!({
            "chain": "regtest",
            "blocks": tip.height,
            "headers": tip.height,
            "bestblockhash": tip.hash.to_string(),
            "bits": format!("{BITS:08x}"),
            "target": target_hex(),
            "difficulty": difficulty(),
            "time": tip.time,
            "mediantime": tip.median_time,
            "verificationprogress": 1,
            "initialblockdownload": false,
            "chainwork": chainwork(tip.height),
            "size_on_disk": 0,
            "pruned": false,
            "warnings": [],
        })
    }
}

fn now_s() -> u32 {
    SystemTime::now().duration_since(UNIX_EPOCH).ok().and_then(|since| u32::try_from(since.as_secs()).ok()).unwrap_or(0)
}

/// The least time of a block on `parent`: median time past + 1, and for the first block of a difficulty period also
/// not far before its parent. Core's template honours the second rule (BIP 94) on every network.
fn mintime(parent: &BlockInfo) -> u32 {
    let least = parent.median_time + 1;
    if (parent.height + 1).is_multiple_of(DIFFICULTY_PERIOD_BLOCKS) { least.max(parent.time.saturating_sub(TIMEWARP_MAX_S)) } else { least }
}

fn subsidy_sat(height: u32) -> u64 {
    5_000_000_000_u64.checked_shr(height / HALVING_BLOCKS).unwrap_or(0)
}

fn longpoll_id(state: &State) -> String {
    format!("{}{}", state.tip.hash, state.updates)
}

fn target_hex() -> String {
    let target = bitcoin::Target::from_compact(CompactTarget::from_consensus(BITS));
    format!("{target:x}")
}

fn difficulty() -> f64 {
    bitcoin::Target::from_compact(CompactTarget::from_consensus(BITS)).difficulty_float()
}

/// Every regtest block counts two expected hashes (2^256 / (target + 1), rounded down).
fn chainwork(height: u32) -> String {
    format!("{:064x}", 2 * (u64::from(height) + 1))
}

/// The waiting transactions that a template takes: the longest prefix within number and weight. A prefix, because
/// parents come before children.
fn selected(state: &State, transactions_max: usize) -> &[Pending] {
    let pending = state.ledger.pending();
    let mut weight = WEIGHT_RESERVED;
    let count = pending
        .iter()
        .take(transactions_max)
        .take_while(|waiting| {
            weight += waiting.weight;
            weight <= WEIGHT_MAX
        })
        .count();
    &pending[..count]
}

/// The commitment output's script over the coinbase (counted as zeros) and `transactions`; reserved value all zeros.
fn commitment_script(transactions: &[Pending]) -> Vec<u8> {
    let leaves = std::iter::once([0; 32]).chain(transactions.iter().map(|waiting| waiting.wtxid.to_byte_array()));
    let root = merkle_tree::calculate_root(leaves.map(sha256d::Hash::from_byte_array)).map_or([0; 32], |root| root.to_byte_array());
    let mut hasher = sha256d::Hash::engine();
    hasher.input(&root);
    hasher.input(&[0; 32]);
    let mut script = COMMITMENT_PREFIX.to_vec();
    script.extend(sha256d::Hash::from_engine(hasher).to_byte_array());
    script
}

fn template_of(state: &State, options: &TemplateOptions) -> Value {
    let transactions = selected(state, options.transactions_max.unwrap_or(usize::MAX));
    let height = state.tip.height + 1;
    let fees_sat: u64 = transactions.iter().map(|waiting| waiting.fee_sat).sum();
    let mintime = mintime(&state.tip);
    // 1-based places, as BIP 22 counts them.
    let place: std::collections::HashMap<Txid, usize> =
        transactions.iter().zip(1..).map(|(waiting, place)| (waiting.txid, place)).collect();
    let entries: Vec<Value> = transactions
        .iter()
        .map(|waiting| {
            let mut depends: Vec<usize> =
                waiting.transaction.input.iter().filter_map(|input| place.get(&input.previous_output.txid).copied()).collect();
            depends.sort_unstable();
            depends.dedup();
            json!({
                "data": waiting.data,
                "txid": waiting.txid.to_string(),
                "hash": waiting.wtxid.to_string(),
                "depends": depends,
                "fee": waiting.fee_sat,
                // OP_TRUE has no signature operation, and no script of ours has anything else.
                "sigops": 0,
                "weight": waiting.weight,
            })
        })
        .collect();
    json!({
        "capabilities": ["proposal"],
        "version": VERSION_TOP_BITS,
        "rules": ["csv", "!segwit", "taproot"],
        "vbavailable": {},
        "vbrequired": 0,
        "previousblockhash": state.tip.hash.to_string(),
        "transactions": entries,
        "coinbaseaux": {},
        "coinbasevalue": subsidy_sat(height) + fees_sat,
        "longpollid": longpoll_id(state),
        "target": target_hex(),
        "mintime": mintime,
        "mutable": ["time", "transactions", "prevblock"],
        "noncerange": "00000000ffffffff",
        "sigoplimit": 80_000,
        "sizelimit": 4_000_000,
        "weightlimit": WEIGHT_MAX,
        "curtime": now_s().max(mintime),
        "bits": format!("{BITS:08x}"),
        "height": height,
        "default_witness_commitment": hex(&commitment_script(transactions)),
    })
}

fn hex(bytes: &[u8]) -> String {
    bitcoin::hex::DisplayHex::to_lower_hex_string(bytes)
}

/// BIP 34 as Core builds it: OP_1 to OP_16 for the first heights, then a minimal push.
fn height_script(height: u32) -> ScriptBuf {
    Builder::new().push_int(i64::from(height)).into_script()
}

/// A solved block on `parent` (the tip where `None`). It is the second, independent assembler beside the pool's own.
fn own_block(state: &mut State, parent: Option<&BlockInfo>, time: u32, transactions_max: usize, script: Option<ScriptBuf>) -> Block {
    let parent = parent.unwrap_or(&state.tip);
    let (previous, height) = (parent.hash, parent.height + 1);
    state.own_blocks += 1;
    let transactions = selected(state, transactions_max);
    let fees_sat: u64 = transactions.iter().map(|waiting| waiting.fee_sat).sum();
    let coinbase = Transaction {
        version: transaction::Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output: OutPoint::null(),
            script_sig: Builder::from(height_script(height).into_bytes()).push_slice(state.own_blocks.to_le_bytes()).into_script(),
            sequence: Sequence::MAX,
            witness: Witness::from_slice(&[[0_u8; 32]]),
        }],
        output: vec![
            TxOut {
                value: Amount::from_sat(subsidy_sat(height) + fees_sat),
                script_pubkey: script.unwrap_or_else(|| state.ledger.coinbase_script(height)),
            },
            TxOut { value: Amount::ZERO, script_pubkey: ScriptBuf::from_bytes(commitment_script(transactions)) },
        ],
    };
    let txdata: Vec<Transaction> =
        std::iter::once(coinbase).chain(transactions.iter().map(|waiting| waiting.transaction.clone())).collect();
    let merkle_root = merkle_tree::calculate_root(txdata.iter().map(Transaction::compute_txid))
        .map_or(TxMerkleNode::all_zeros(), |root| TxMerkleNode::from_byte_array(root.to_byte_array()));
    let mut header = Header {
        version: Version::from_consensus(VERSION_TOP_BITS),
        prev_blockhash: previous,
        merkle_root,
        time,
        bits: CompactTarget::from_consensus(BITS),
        nonce: 0,
    };
    let target = header.target();
    while !target.is_met_by(header.block_hash()) {
        header.nonce += 1;
    }
    Block { header, txdata }
}
