//! Jobs for the share path from templates.
use crate::coinbase::{self, CoinbaseError};
use crate::merkle;
use crate::template::Template;
use otedama_primitives::{Coin, Job, JobId};

/// Longest merkle branch that the share path carries: 65,536 transactions, far over what a block holds.
pub const BRANCH_MAX: usize = 16;

/// What the coinbases of this pool have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssemblerSettings {
    /// Script that the block reward pays; see `payout_script` and `practice_payout_script`.
    pub payout_script: Vec<u8>,
    /// `[chain] coinbase_tag`, printable ASCII.
    pub tag: String,
    /// `[stratum] extranonce2_bytes`, 4..=8.
    pub extranonce2_bytes: u8,
}

/// Why a template cannot become a job.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// No coinbase can be made.
    #[error("making the coinbase for height {height}")]
    Coinbase {
        /// Height of the template.
        height: u32,
        /// Why not.
        #[source]
        source: CoinbaseError,
    },
    /// More transactions than a merkle branch of 16 covers.
    #[error("the template for height {height} has {transactions} transactions, a job takes at most 65535")]
    TooManyTransactions {
        /// Height of the template.
        height: u32,
        /// Its transactions without the coinbase.
        transactions: usize,
    },
}

/// Makes jobs of templates and blocks of solved jobs (`Assembler::block`, module `blocks`).
#[derive(Debug, Clone)]
pub struct Assembler {
    settings: AssemblerSettings,
}

impl Assembler {
    /// Refuses settings under which no block could be valid.
    pub fn new(settings: AssemblerSettings) -> Result<Self, CoinbaseError> {
        coinbase::check(&settings.tag, settings.extranonce2_bytes, &settings.payout_script)?;
        Ok(Self { settings })
    }

    /// The job `id` on `template`. `clean` is false and `created_us` is the template's `received_us`: the driver sets `clean` on a new parent.
    pub fn job(&self, template: &Template, id: JobId) -> Result<Job, JobError> {
        let height = template.height;
        let settings = &self.settings;
        let parts = coinbase::parts(template, id, &settings.tag, settings.extranonce2_bytes, &settings.payout_script)
            .map_err(|source| JobError::Coinbase { height, source })?;
        let branch = merkle::branch(&template.txids);
        if branch.len() > BRANCH_MAX {
            return Err(JobError::TooManyTransactions { height, transactions: template.txids.len() });
        }
        Ok(Job {
            id,
            coin: Coin::Bitcoin,
            height,
            prev_hash: template.prev_hash,
            version: template.version,
            nbits: template.nbits,
            ntime: template.curtime,
            ntime_min: template.mintime,
            coinbase_prefix: parts.prefix.into_boxed_slice(),
            coinbase_suffix: parts.suffix.into_boxed_slice(),
            branch: branch.into_boxed_slice(),
            extranonce2_bytes: settings.extranonce2_bytes,
            network_target: template.target,
            clean: false,
            created_us: template.received_us,
        })
    }
}
