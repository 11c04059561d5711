//! The node's own money: anyone-can-spend outputs, and valid transactions made from them.
//!
//! The engine has neither wallet nor memory pool. Both are here, and both are simple because every output that the
//! ledger creates is opened by the script `OP_TRUE`: no keys, no signatures, yet witness and non-witness spends, chains
//! of unconfirmed transactions and several inputs all occur.

use std::collections::{HashMap, HashSet, VecDeque};

use bitcoin::absolute::LockTime;
use bitcoin::consensus::encode::serialize_hex;
use bitcoin::opcodes::OP_TRUE;
use bitcoin::script::{Builder, PushBytesBuf};
use bitcoin::{Amount, Block, OutPoint, Script, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid, Witness, Wtxid, transaction};

/// A coinbase output may be spent in a block this much higher (Core's `COINBASE_MATURITY`).
const COINBASE_MATURITY_BLOCKS: u32 = 100;
/// Outputs below this are left lying: splitting them further would only make transactions without a fee.
const COIN_MIN_SAT: u64 = 2_000;
/// With this many coins in hand transactions stop splitting, so that the ledger does not grow for ever.
const COINS_ENOUGH: usize = 20_000;

/// Which transactions the ledger makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TransactionMix {
    /// With and without witness, mixed inputs included.
    #[default]
    Both,
    /// Every transaction carries a witness: `hash` differs from `txid` in the template.
    Witness,
    /// No transaction carries a witness.
    Legacy,
}

/// The four ways an output is locked; each opens with the script `OP_TRUE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lock {
    WitnessScript,
    Bare,
    NestedWitnessScript,
    ScriptHash,
}

const LOCKS: [Lock; 4] = [Lock::WitnessScript, Lock::Bare, Lock::NestedWitnessScript, Lock::ScriptHash];

impl Lock {
    fn has_witness(self) -> bool {
        matches!(self, Self::WitnessScript | Self::NestedWitnessScript)
    }

    fn fits(self, mix: TransactionMix) -> bool {
        match mix {
            TransactionMix::Both => true,
            TransactionMix::Witness => self.has_witness(),
            TransactionMix::Legacy => !self.has_witness(),
        }
    }

    fn script(self) -> ScriptBuf {
        let open = open_script();
        match self {
            Self::Bare => open,
            Self::ScriptHash => open.to_p2sh(),
            Self::WitnessScript => open.to_p2wsh(),
            Self::NestedWitnessScript => open.to_p2wsh().to_p2sh(),
        }
    }

    /// What an input needs to spend the output: signature script and witness.
    fn key(self) -> (ScriptBuf, Witness) {
        let push = |script: ScriptBuf| {
            let mut bytes = PushBytesBuf::new();
            // Both scripts that are pushed here have at most 34 bytes: the limit cannot be met.
            let _ = bytes.extend_from_slice(script.as_bytes());
            Builder::new().push_slice(bytes).into_script()
        };
        let witness = || Witness::from_slice(&[open_script().as_bytes()]);
        match self {
            Self::Bare => (ScriptBuf::new(), Witness::new()),
            Self::ScriptHash => (push(open_script()), Witness::new()),
            Self::WitnessScript => (ScriptBuf::new(), witness()),
            Self::NestedWitnessScript => (push(open_script().to_p2wsh()), witness()),
        }
    }
}

fn open_script() -> ScriptBuf {
    Builder::new().push_opcode(OP_TRUE).into_script()
}

#[derive(Debug, Clone, Copy)]
struct Coin {
    outpoint: OutPoint,
    value_sat: u64,
    lock: Lock,
}

/// A transaction that waits for a block, with the fields of its template entry.
#[derive(Debug, Clone)]
pub(crate) struct Pending {
    pub transaction: Transaction,
    pub txid: Txid,
    pub wtxid: Wtxid,
    /// Full serialisation, hex.
    pub data: String,
    pub fee_sat: u64,
    pub weight: u64,
}

/// Spendable outputs and waiting transactions. Waiting transactions stand in an order in which parents come first.
#[derive(Debug)]
pub(crate) struct Ledger {
    scripts: [ScriptBuf; 4],
    coins: Vec<Coin>,
    immature: VecDeque<(u32, Coin)>,
    pending: Vec<Pending>,
    random_state: u64,
}

impl Ledger {
    pub fn new(seed: u64) -> Self {
        Self { scripts: LOCKS.map(Lock::script), coins: Vec::new(), immature: VecDeque::new(), pending: Vec::new(), random_state: seed }
    }

    pub fn pending(&self) -> &[Pending] {
        &self.pending
    }

    /// The script that the node's own block at `height` pays to: the four locks in turn.
    pub fn coinbase_script(&self, height: u32) -> ScriptBuf {
        self.scripts[height as usize % 4].clone()
    }

    /// SplitMix64 (Steele, Lea, Flood 2014): seeded, so that a run can be repeated.
    fn random(&mut self) -> u64 {
        self.random_state = self.random_state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random_state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..bound`; the bias of the remainder is of no consequence here.
    fn random_below(&mut self, bound: usize) -> usize {
        (self.random() % bound.max(1) as u64) as usize
    }

    fn take_coin(&mut self, mix: TransactionMix) -> Option<Coin> {
        if self.coins.is_empty() {
            return None;
        }
        // One in four spends the newest coin: mostly an unconfirmed parent, so chains within a block occur.
        let start = if self.random().is_multiple_of(4) { self.coins.len() - 1 } else { self.random_below(self.coins.len()) };
        let count = self.coins.len();
        let index = (0..count).map(|step| (start + count - step) % count).find(|&index| self.coins[index].lock.fits(mix))?;
        Some(self.coins.swap_remove(index))
    }

    /// Adds up to `count` valid transactions to the waiting ones and says how many it made; fewer when coins run out.
    pub fn generate(&mut self, count: usize, mix: TransactionMix) -> usize {
        for made in 0..count {
            let Some(first) = self.take_coin(mix) else {
                return made;
            };
            let mut spent = vec![first];
            // Joining coins only when there are plenty keeps a young chain able to fill a template.
            let extra_inputs = if self.coins.len() > 2 * (count - made) { self.random_below(3) } else { 0 };
            for _ in 0..extra_inputs {
                spent.extend(self.take_coin(mix));
            }
            let total_sat: u64 = spent.iter().map(|coin| coin.value_sat).sum();
            let fee_sat = self.random() % 2_000;
            let fee_sat = if total_sat > COIN_MIN_SAT + fee_sat { fee_sat } else { 0 };
            let outputs_wanted = if self.coins.len() < 64 + 2 * (count - made) {
                3 + self.random_below(6)
            } else if self.coins.len() < COINS_ENOUGH {
                1 + self.random_below(3)
            } else {
                1
            };
            let payable_sat = total_sat - fee_sat;
            let outputs_affordable = usize::try_from(payable_sat / COIN_MIN_SAT).unwrap_or(1);
            let output_count = outputs_wanted.min(outputs_affordable).max(1);
            self.push(&spent, payable_sat, output_count, fee_sat, mix);
        }
        count
    }

    fn push(&mut self, spent: &[Coin], payable_sat: u64, output_count: usize, fee_sat: u64, mix: TransactionMix) {
        let share_sat = payable_sat / output_count as u64;
        let mut locks = Vec::with_capacity(output_count);
        while locks.len() < output_count {
            let index = self.random_below(4);
            if LOCKS[index].fits(mix) {
                locks.push(index);
            }
        }
        let output: Vec<TxOut> = locks
            .iter()
            .enumerate()
            .map(|(at, &lock)| TxOut {
                value: Amount::from_sat(if at == 0 { payable_sat - share_sat * (output_count as u64 - 1) } else { share_sat }),
                script_pubkey: self.scripts[lock].clone(),
            })
            .collect();
        let input = spent
            .iter()
            .map(|coin| {
                let (script_sig, witness) = coin.lock.key();
                TxIn { previous_output: coin.outpoint, script_sig, sequence: Sequence::MAX, witness }
            })
            .collect();
        let transaction = Transaction { version: transaction::Version::TWO, lock_time: LockTime::ZERO, input, output };
        let txid = transaction.compute_txid();
        for (vout, (out, &lock)) in (0_u32..).zip(transaction.output.iter().zip(&locks)) {
            if out.value.to_sat() >= COIN_MIN_SAT {
                self.coins.push(Coin { outpoint: OutPoint { txid, vout }, value_sat: out.value.to_sat(), lock: LOCKS[lock] });
            }
        }
        self.pending.push(Pending {
            txid,
            wtxid: transaction.compute_wtxid(),
            data: serialize_hex(&transaction),
            fee_sat,
            weight: transaction.weight().to_wu(),
            transaction,
        });
    }

    fn lock_of(&self, script: &Script) -> Option<Lock> {
        let index = self.scripts.iter().position(|known| known.as_script() == script)?;
        Some(LOCKS[index])
    }

    fn coins_of(&self, transaction: &Transaction) -> Vec<Coin> {
        let mut txid = None;
        (0_u32..)
            .zip(&transaction.output)
            .filter(|(_, out)| out.value.to_sat() >= COIN_MIN_SAT)
            .filter_map(|(vout, out)| {
                let lock = self.lock_of(&out.script_pubkey)?;
                let txid = *txid.get_or_insert_with(|| transaction.compute_txid());
                Some(Coin { outpoint: OutPoint { txid, vout }, value_sat: out.value.to_sat(), lock })
            })
            .collect()
    }

    /// Follows a block that extends the tip. False: it spends our coins in a way we did not foresee; call `rebuild`.
    #[must_use]
    pub fn connect(&mut self, block: &Block, height: u32) -> bool {
        let ours: HashSet<Txid> = self.pending.iter().map(|pending| pending.txid).collect();
        let mut confirmed = HashSet::new();
        let mut foreign_spends = HashSet::new();
        let mut foreign_coins = Vec::new();
        for transaction in block.txdata.iter().skip(1) {
            let txid = transaction.compute_txid();
            if ours.contains(&txid) {
                confirmed.insert(txid);
            } else {
                foreign_spends.extend(transaction.input.iter().map(|input| input.previous_output));
                foreign_coins.extend(self.coins_of(transaction));
            }
        }
        let spends_ours = |outpoint: &OutPoint| foreign_spends.contains(outpoint);
        if !foreign_spends.is_empty()
            && (self.coins.iter().any(|coin| spends_ours(&coin.outpoint))
                || self.pending.iter().flat_map(|pending| &pending.transaction.input).any(|input| spends_ours(&input.previous_output)))
        {
            return false;
        }
        self.pending.retain(|pending| !confirmed.contains(&pending.txid));
        self.coins.extend(foreign_coins.into_iter().filter(|coin| !foreign_spends.contains(&coin.outpoint)));
        if let Some(coinbase) = block.txdata.first() {
            let coins = self.coins_of(coinbase);
            self.immature.extend(coins.into_iter().map(|coin| (height, coin)));
        }
        while let Some(&(mined, coin)) = self.immature.front()
            && mined + COINBASE_MATURITY_BLOCKS <= height + 1
        {
            self.coins.push(coin);
            self.immature.pop_front();
        }
        true
    }

    /// Starts again from the blocks of the active chain, genesis first: after a reorganisation, or a foreign spend.
    /// Waiting transactions are dropped, as their parents may be gone.
    pub fn rebuild(&mut self, blocks: impl Iterator<Item = Block>) {
        self.pending.clear();
        self.coins.clear();
        self.immature.clear();
        let mut unspent: Vec<Option<(u32, bool, Coin)>> = Vec::new();
        let mut place: HashMap<OutPoint, usize> = HashMap::new();
        let mut tip_height = 0;
        for (height, block) in (0_u32..).zip(blocks) {
            tip_height = height;
            for (at, transaction) in block.txdata.iter().enumerate() {
                for input in &transaction.input {
                    if let Some(index) = place.remove(&input.previous_output) {
                        unspent[index] = None;
                    }
                }
                for coin in self.coins_of(transaction) {
                    place.insert(coin.outpoint, unspent.len());
                    unspent.push(Some((height, at == 0, coin)));
                }
            }
        }
        for (height, is_coinbase, coin) in unspent.into_iter().flatten() {
            if is_coinbase && height + COINBASE_MATURITY_BLOCKS > tip_height + 1 {
                self.immature.push_back((height, coin));
            } else {
                self.coins.push(coin);
            }
        }
    }
}
