//! The practice chain: a node inside the process, seeded, with templates of mainnet's size and difficulty. For trying the pool and for every speed figure.
//!
//! The same seed gives the same templates: transactions depend on seed and height, the parent on seed and height or on the block that was accepted, times on
//! the height. Blocks that are submitted are judged by the rules that a pool can break, with rust-bitcoin's arithmetic and not with our own.
use crate::blocks::BlockHex;
use crate::merkle;
use crate::network::Network;
use crate::node::{NodeError, NodeRpc, SubmitReply};
use crate::template::Template;
use otedama_primitives::{Clock, Hash256, Target, encode_hex};
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Height of the first template.
const HEIGHT_FIRST: u32 = 900_000;
/// Proposed time of the first template: 2026-01-01 00:00:00 UTC.
const CURTIME_FIRST: u32 = 1_767_225_600;
/// Median time lies this far behind.
const MEDIAN_LAG_S: u32 = 3_600;
/// Times of consecutive blocks.
const SPACING_S: u32 = 600;
const SUBSIDY_SAT: u64 = 312_500_000;
const FEE_SAT: u64 = 1_000;
/// How many blocks back a hash is still known.
const CHAIN_KEPT: usize = 4_096;
/// A long poll looks at the clock this often: the injected clock cannot be waited for.
const LOOK: Duration = Duration::from_millis(50);
/// A long poll answers after this long with the same parent, as nodes do.
const LONG_POLL_MAX: Duration = Duration::from_secs(60);

/// What the practice chain is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PracticeSettings {
    /// Everything follows from it.
    pub seed: u64,
    /// Transactions of every template; 3,000 make a merkle branch of 12.
    pub transactions: u32,
    /// Compact network target.
    pub nbits: u32,
    /// A new block comes after this long, unless a candidate solves one before; 0 for never.
    pub block_s: u64,
}

impl Default for PracticeSettings {
    fn default() -> Self {
        // A target of mainnet's size in 2025: about 6 x 10^23 hashes a block.
        Self { seed: 1, transactions: 3_000, nbits: 0x1702_0000, block_s: 600 }
    }
}

/// Why a practice chain cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PracticeError {
    /// nbits is no target.
    #[error("practice nbits {0:08x} is not a target (negative, zero or too large)")]
    Bits(u32),
    /// More transactions than a job takes.
    #[error("a practice template of {0} transactions: at most 65535 make a job")]
    Transactions(u32),
}

/// The practice chain. Clones see the same chain.
#[derive(Debug)]
pub struct Practice<C> {
    chain: Arc<Mutex<Chain<C>>>,
}

impl<C> Clone for Practice<C> {
    fn clone(&self) -> Self {
        Self { chain: Arc::clone(&self.chain) }
    }
}

#[derive(Debug)]
struct Chain<C> {
    settings: PracticeSettings,
    target: Target,
    clock: C,
    /// Hashes of the chain, newest last, with the height of the newest.
    blocks: VecDeque<Hash256>,
    tip_height: u32,
    tip_since_us: u64,
    /// The template on the tip.
    template: Template,
    accepted: u64,
}

impl<C: Clock> Practice<C> {
    /// A chain that has one block, at height 899,999.
    pub fn new(settings: PracticeSettings, clock: C) -> Result<Self, PracticeError> {
        let target = Target::from_compact(settings.nbits).ok_or(PracticeError::Bits(settings.nbits))?;
        if settings.transactions > 65_535 {
            return Err(PracticeError::Transactions(settings.transactions));
        }
        let tip_height = HEIGHT_FIRST - 1;
        let tip = seeded_block(settings.seed, tip_height);
        let template = make_template(&settings, target, tip, HEIGHT_FIRST);
        let tip_since_us = clock.now_us();
        let chain = Chain { settings, target, clock, blocks: VecDeque::from([tip]), tip_height, tip_since_us, template, accepted: 0 };
        Ok(Self { chain: Arc::new(Mutex::new(chain)) })
    }

    /// Height of the newest block.
    pub fn height(&self) -> u32 {
        self.at_now().tip_height
    }

    /// Blocks that were submitted and accepted.
    pub fn accepted(&self) -> u64 {
        self.at_now().accepted
    }

    /// A new block by somebody else, now.
    pub fn mine_elsewhere(&self) {
        self.at_now().mine_elsewhere();
    }

    fn lock(&self) -> MutexGuard<'_, Chain<C>> {
        self.chain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The chain, blocks that are due by the clock included.
    fn at_now(&self) -> MutexGuard<'_, Chain<C>> {
        let mut chain = self.lock();
        let block_us = chain.settings.block_s.saturating_mul(1_000_000);
        let due = chain.clock.now_us().saturating_sub(chain.tip_since_us).checked_div(block_us).unwrap_or(0);
        // After a long sleep of the host one block is enough: nobody mined on those between.
        if due > 0 {
            let since = chain.tip_since_us + due * block_us;
            chain.mine_elsewhere();
            chain.tip_since_us = since;
        }
        chain
    }
}

impl<C: Clock> Chain<C> {
    fn tip(&self) -> Hash256 {
        self.template.prev_hash
    }

    fn mine_elsewhere(&mut self) {
        let hash = seeded_block(self.settings.seed, self.tip_height + 1);
        self.connect(hash);
    }

    fn connect(&mut self, hash: Hash256) {
        self.tip_height += 1;
        self.tip_since_us = self.clock.now_us();
        self.blocks.push_back(hash);
        if self.blocks.len() > CHAIN_KEPT {
            self.blocks.pop_front();
        }
        self.template = make_template(&self.settings, self.target, hash, self.tip_height + 1);
    }

    /// Core's words for what is wrong with a block, None when it is good and on the tip.
    fn judge(&self, bytes: &[u8]) -> Result<Hash256, &'static str> {
        let block: bitcoin::Block = bitcoin::consensus::deserialize(bytes).map_err(|_| "Block decode failed")?;
        let hash = Hash256(*<bitcoin::BlockHash as AsRef<[u8; 32]>>::as_ref(&block.block_hash()));
        if self.blocks.contains(&hash) {
            return Err("duplicate");
        }
        let parent: &[u8; 32] = block.header.prev_blockhash.as_ref();
        if *parent != self.tip().0 {
            return Err(if self.blocks.contains(&Hash256(*parent)) { "inconclusive" } else { "prev-blk-not-found" });
        }
        if block.header.bits.to_consensus() != self.settings.nbits {
            return Err("bad-diffbits");
        }
        if block.header.validate_pow(block.header.target()).is_err() {
            return Err("high-hash");
        }
        if block.header.time < self.template.mintime {
            return Err("time-too-old");
        }
        if !block.check_merkle_root() {
            return Err("bad-txnmrklroot");
        }
        let Some(coinbase) = block.txdata.first().filter(|tx| tx.is_coinbase()) else {
            return Err("bad-cb-missing");
        };
        let script = coinbase.input[0].script_sig.as_bytes();
        if !(2..=100).contains(&script.len()) {
            return Err("bad-cb-length");
        }
        let height = bitcoin::script::Builder::new().push_int(i64::from(self.tip_height) + 1).into_script();
        if !script.starts_with(height.as_bytes()) {
            return Err("bad-cb-height");
        }
        if !block.check_witness_commitment() {
            return Err("bad-witness-merkle-match");
        }
        let paid: u64 = coinbase.output.iter().map(|output| output.value.to_sat()).fold(0, u64::saturating_add);
        if paid > self.template.coinbase_value_sat {
            return Err("bad-cb-amount");
        }
        let txids = block.txdata.iter().skip(1).map(|tx| Hash256(*<bitcoin::Txid as AsRef<[u8; 32]>>::as_ref(&tx.compute_txid())));
        if !txids.eq(self.template.txids.iter().copied()) {
            return Err("bad-txns-inputs-missingorspent");
        }
        Ok(hash)
    }

    fn submit(&mut self, block: &BlockHex) -> SubmitReply {
        let Ok(bytes) = block.to_bytes() else {
            return SubmitReply::Reason("Block decode failed".into());
        };
        match self.judge(&bytes) {
            Ok(hash) => {
                self.accepted += 1;
                self.connect(hash);
                SubmitReply::Null
            }
            Err(reason) => SubmitReply::Reason(reason.into()),
        }
    }
}

fn seeded(purpose: &[u8], seed: u64, height: u32, index: u32) -> [u8; 32] {
    let digest = Sha256::new()
        .chain_update(b"otedama practice ")
        .chain_update(purpose)
        .chain_update(seed.to_le_bytes())
        .chain_update(height.to_le_bytes())
        .chain_update(index.to_le_bytes());
    digest.finalize().into()
}

fn seeded_block(seed: u64, height: u32) -> Hash256 {
    Hash256(seeded(b"block", seed, height, 0))
}

/// A transaction that parses: one input from nowhere, one output that anyone can spend.
fn synthetic_transaction(seed: u64, height: u32, index: u32) -> Vec<u8> {
    let mut data = Vec::with_capacity(61);
    data.extend_from_slice(&2u32.to_le_bytes());
    data.push(1);
    data.extend_from_slice(&seeded(b"transaction", seed, height, index));
    data.extend_from_slice(&0u32.to_le_bytes());
    data.push(0);
    data.extend_from_slice(&u32::MAX.to_le_bytes());
    data.push(1);
    data.extend_from_slice(&10_000u64.to_le_bytes());
    data.extend_from_slice(&[1, 0x51]);
    data.extend_from_slice(&0u32.to_le_bytes());
    data
}

fn make_template(settings: &PracticeSettings, target: Target, tip: Hash256, height: u32) -> Template {
    let mut txids = Vec::with_capacity(settings.transactions as usize);
    let mut body_hex = String::with_capacity(settings.transactions as usize * 122);
    for index in 0..settings.transactions {
        let data = synthetic_transaction(settings.seed, height, index);
        txids.push(merkle::sha256d(&data));
        body_hex.push_str(&encode_hex(&data));
    }
    let curtime = CURTIME_FIRST.saturating_add(height.saturating_sub(HEIGHT_FIRST).saturating_mul(SPACING_S));
    Template {
        version: 0x2000_0000,
        prev_hash: tip,
        height,
        nbits: settings.nbits,
        target,
        mintime: curtime - MEDIAN_LAG_S,
        curtime,
        coinbase_value_sat: SUBSIDY_SAT + FEE_SAT * u64::from(settings.transactions),
        // No transaction has a witness, so these are the wtxids as well.
        witness_commitment: Some(merkle::witness_commitment(&txids)),
        txids,
        body_hex: body_hex.into(),
        longpollid: Some(tip.to_string()),
        received_us: 0,
    }
}

impl<C: Clock> NodeRpc for Practice<C> {
    fn nodes(&self) -> usize {
        1
    }

    fn url(&self, _node: usize) -> &str {
        "practice"
    }

    async fn block_template(&self, _node: usize, longpollid: Option<&str>) -> Result<Template, NodeError> {
        let mut waited = Duration::ZERO;
        loop {
            {
                let chain = self.at_now();
                if longpollid.is_none() || longpollid != chain.template.longpollid.as_deref() || waited >= LONG_POLL_MAX {
                    return Ok(chain.template.clone());
                }
            }
            tokio::time::sleep(LOOK).await;
            waited += LOOK;
        }
    }

    async fn submit_block(&self, _node: usize, block: &BlockHex) -> Result<SubmitReply, NodeError> {
        Ok(self.at_now().submit(block))
    }

    async fn best_block(&self, _node: usize) -> Result<Hash256, NodeError> {
        Ok(self.at_now().tip())
    }

    async fn confirmations(&self, _node: usize, block: &Hash256) -> Result<Option<i64>, NodeError> {
        let chain = self.at_now();
        Ok(chain.blocks.iter().rev().position(|known| known == block).map(|depth| depth as i64 + 1))
    }

    async fn chain_name(&self, _node: usize) -> Result<Option<String>, NodeError> {
        Ok(None)
    }
}

/// The network whose addresses practice takes when one is configured: any, as nothing is paid.
pub fn payout_script(address: &str) -> Result<Vec<u8>, crate::PayoutError> {
    if address.is_empty() {
        return Ok(crate::practice_payout_script());
    }
    let network = Network::ALL.into_iter().find(|&network| crate::payout_script(network, address).is_ok()).unwrap_or(Network::Main);
    crate::payout_script(network, address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Assembler, AssemblerSettings};
    use otedama_primitives::{BlockCandidate, Job, ManualClock, RunId, WorkerId};

    fn easy(transactions: u32) -> PracticeSettings {
        PracticeSettings { seed: 7, transactions, nbits: 0x207f_ffff, block_s: 600 }
    }

    fn assembler() -> Assembler {
        Assembler::new(AssemblerSettings { payout_script: practice_script(), tag: "/otedama/".into(), extranonce2_bytes: 8 })
            .expect("settings")
    }

    fn practice_script() -> Vec<u8> {
        payout_script("").expect("no address needed")
    }

    fn solve(job: &Job) -> BlockCandidate {
        let mut candidate = BlockCandidate {
            job: job.id,
            session: 1,
            extranonce1: 0x0102_0304,
            extranonce2: 5,
            ntime: job.ntime,
            nonce: 0,
            version: job.version,
            worker: WorkerId(1),
            hash: Hash256::default(),
            arrival_us: 0,
        };
        loop {
            candidate.hash = merkle::sha256d(&crate::blocks::header_of(job, &candidate).expect("header"));
            if job.network_target.is_met_by(&candidate.hash) {
                return candidate;
            }
            candidate.nonce += 1;
        }
    }

    async fn template<C: Clock>(practice: &Practice<C>) -> Template {
        practice.block_template(0, None).await.expect("a template")
    }

    #[tokio::test]
    async fn the_same_seed_gives_the_same_templates_and_another_seed_others() {
        let clock = ManualClock::at(1);
        let (one, two) = (Practice::new(easy(50), clock.clone()).expect("one"), Practice::new(easy(50), ManualClock::at(99)).expect("two"));
        let other = Practice::new(PracticeSettings { seed: 8, ..easy(50) }, clock).expect("other");
        for _ in 0..3 {
            assert_eq!(template(&one).await, template(&two).await);
            assert_ne!(template(&one).await.txids, template(&other).await.txids);
            one.mine_elsewhere();
            two.mine_elsewhere();
        }
    }

    #[tokio::test]
    async fn the_default_template_is_of_mainnets_size() {
        let practice = Practice::new(PracticeSettings::default(), ManualClock::at(1)).expect("practice");
        let template = template(&practice).await;
        let job = assembler().job(&template, RunId::new(0, 1).job(1)).expect("a job");
        assert_eq!((template.txids.len(), job.branch.len()), (3_000, 12));
        assert!(job.network_target.work().hashes() == u64::MAX, "no demo finds a block");
    }

    #[tokio::test]
    async fn a_solved_block_is_accepted_and_moves_the_tip() {
        for transactions in [0, 1, 2, 5] {
            let practice = Practice::new(easy(transactions), ManualClock::at(1)).expect("practice");
            for round in 0..3 {
                let template = template(&practice).await;
                let job = assembler().job(&template, RunId::new(0, 1).job(round + 1)).expect("a job");
                let candidate = solve(&job);
                let hex = assembler().block_in_pieces(&template, &job, &candidate).expect("a block");
                assert_eq!(practice.submit_block(0, &hex).await.expect("reply"), SubmitReply::Null);
                assert_eq!(practice.best_block(0).await.expect("tip"), candidate.hash);
                assert_eq!(practice.confirmations(0, &candidate.hash).await.expect("known"), Some(1));
                assert_eq!(practice.submit_block(0, &hex).await.expect("reply"), SubmitReply::Reason("duplicate".into()));
            }
            assert_eq!((practice.accepted(), practice.height()), (3, HEIGHT_FIRST + 2));
        }
    }

    #[tokio::test]
    async fn every_fault_of_an_assembler_is_refused_by_name() {
        let practice = Practice::new(easy(4), ManualClock::at(1)).expect("practice");
        let good = template(&practice).await;
        let mut swapped = good.txids.clone();
        swapped.swap(0, 1);
        for (fault, expected) in [
            (Template { coinbase_value_sat: good.coinbase_value_sat + 1, ..good.clone() }, "bad-cb-amount"),
            (Template { height: good.height + 1, ..good.clone() }, "bad-cb-height"),
            (Template { witness_commitment: Some(merkle::witness_commitment(&[])), ..good.clone() }, "bad-witness-merkle-match"),
            (Template { txids: swapped, ..good.clone() }, "bad-txnmrklroot"),
            (Template { prev_hash: Hash256([9; 32]), ..good.clone() }, "prev-blk-not-found"),
            (Template { nbits: 0x207e_ffff, ..good.clone() }, "bad-diffbits"),
            (Template { curtime: good.mintime - 1, ..good.clone() }, "time-too-old"),
            (Template { body_hex: "".into(), ..good.clone() }, "Block decode failed"),
        ] {
            let job = assembler().job(&fault, RunId::new(0, 1).job(1)).expect("a job");
            let hex = assembler().block_in_pieces(&fault, &job, &solve(&job)).expect("a block");
            assert_eq!(practice.submit_block(0, &hex).await.expect("reply"), SubmitReply::Reason(expected.into()));
        }
        assert_eq!(
            practice.submit_block(0, &BlockHex { head: "zz".into(), body: "".into() }).await.expect("reply"),
            SubmitReply::Reason("Block decode failed".into())
        );
        assert_eq!(practice.height(), HEIGHT_FIRST - 1);
    }

    #[tokio::test(start_paused = true)]
    async fn blocks_come_by_the_injected_clock_and_end_a_long_poll() {
        let clock = ManualClock::at(1);
        let practice = Practice::new(easy(1), clock.clone()).expect("practice");
        let first = template(&practice).await;
        let waiting = {
            let (practice, id) = (practice.clone(), first.longpollid.clone());
            tokio::spawn(async move { practice.block_template(0, id.as_deref()).await.expect("a template") })
        };
        clock.advance(599_999_999);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!waiting.is_finished());
        clock.advance(1);
        let second = waiting.await.expect("joined");
        assert_eq!(second.height, first.height + 1);
        assert_eq!(second.curtime, first.curtime + SPACING_S);
    }

    #[test]
    fn chains_that_cannot_be_are_refused() {
        let clock = ManualClock::at(0);
        assert_eq!(Practice::new(PracticeSettings { nbits: 0, ..easy(1) }, clock.clone()).err(), Some(PracticeError::Bits(0)));
        assert_eq!(Practice::new(easy(65_536), clock).err(), Some(PracticeError::Transactions(65_536)));
    }

    #[test]
    fn practice_takes_an_address_of_any_network_and_refuses_a_typo() {
        assert!(payout_script("tb1qw508d6qejxtdg4y5r3zarvary0c5xw7kxpjzsx").is_ok());
        assert!(payout_script("nonsense").is_err());
    }
}
