//! Blocks from solved jobs: header, coinbase with its witness, the template's transactions. What was claimed is computed again before anything is sent.
use crate::coinbase::{self, EXTRANONCE1_BYTES};
use crate::jobs::Assembler;
use crate::merkle;
use crate::template::Template;
use otedama_primitives::{BlockCandidate, Hash256, HexError, Job, JobId, Target, decode_hex, encode_hex};
use std::sync::Arc;

/// Why a candidate does not become a block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// Candidate, job and template do not belong together.
    #[error("the candidate is of job {candidate}, it was to be assembled on job {job}")]
    OtherJob {
        /// The candidate's job.
        candidate: JobId,
        /// The job given.
        job: JobId,
    },
    /// Job and template have another parent.
    #[error("job {job} stands on block {job_parent}, the template on {template_parent}")]
    OtherParent {
        /// The job.
        job: JobId,
        /// Its parent.
        job_parent: Hash256,
        /// The template's parent.
        template_parent: Hash256,
    },
    /// The number does not fit the job's extranonce2.
    #[error("extranonce2 {extranonce2:x} of the candidate does not fit {bytes} bytes")]
    Extranonce2 {
        /// As a number.
        extranonce2: u64,
        /// Bytes the job has for it.
        bytes: u8,
    },
    /// The header does not hash to what was claimed.
    #[error("the assembled header hashes to {own}, the candidate says {claimed}")]
    HashDiffers {
        /// Hash of the assembled header.
        own: Hash256,
        /// Hash of the candidate.
        claimed: Hash256,
    },
    /// The hash does not meet the network target.
    #[error("hash {hash} of the assembled header is above the network target {target}")]
    AboveTarget {
        /// Hash of the assembled header.
        hash: Hash256,
        /// The network target.
        target: Target,
    },
    /// The template's transactions are no hex; `Template::parse` makes sure they are.
    #[error("the template's transactions are not hex: {0}")]
    Body(HexError),
}

/// A block in the hex that submitblock takes, in two pieces, so that the megabytes are shared with the template and not copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockHex {
    /// Header, number of transactions, coinbase.
    pub head: String,
    /// The template's transactions.
    pub body: Arc<str>,
}

impl BlockHex {
    /// The block in bytes; fails where a piece is not hex.
    pub fn to_bytes(&self) -> Result<Vec<u8>, HexError> {
        let (head, body) = (self.head.len() / 2, self.body.len() / 2);
        let mut bytes = vec![0u8; head + body];
        decode_hex(self.head.as_bytes(), &mut bytes[..head])?;
        decode_hex(self.body.as_bytes(), &mut bytes[head..])?;
        Ok(bytes)
    }
}

/// The stripped coinbase that a candidate hashed.
pub fn coinbase_of(job: &Job, extranonce1: u32, extranonce2: u64) -> Result<Vec<u8>, BlockError> {
    let bytes = usize::from(job.extranonce2_bytes).min(8);
    let number = extranonce2.to_be_bytes();
    let (above, wire) = number.split_at(8 - bytes);
    if above.iter().any(|&byte| byte != 0) {
        return Err(BlockError::Extranonce2 { extranonce2, bytes: job.extranonce2_bytes });
    }
    let mut stripped = Vec::with_capacity(job.coinbase_prefix.len() + EXTRANONCE1_BYTES + bytes + job.coinbase_suffix.len());
    stripped.extend_from_slice(&job.coinbase_prefix);
    stripped.extend_from_slice(&extranonce1.to_be_bytes());
    stripped.extend_from_slice(wire);
    stripped.extend_from_slice(&job.coinbase_suffix);
    Ok(stripped)
}

/// The 80 bytes that are hashed.
pub fn header(version: u32, prev_hash: &Hash256, merkle_root: &Hash256, ntime: u32, nbits: u32, nonce: u32) -> [u8; 80] {
    let mut header = [0u8; 80];
    header[0..4].copy_from_slice(&version.to_le_bytes());
    header[4..36].copy_from_slice(&prev_hash.0);
    header[36..68].copy_from_slice(&merkle_root.0);
    header[68..72].copy_from_slice(&ntime.to_le_bytes());
    header[72..76].copy_from_slice(&nbits.to_le_bytes());
    header[76..80].copy_from_slice(&nonce.to_le_bytes());
    header
}

/// The header that a candidate of `job` hashed.
pub fn header_of(job: &Job, candidate: &BlockCandidate) -> Result<[u8; 80], BlockError> {
    let stripped = coinbase_of(job, candidate.extranonce1, candidate.extranonce2)?;
    let root = merkle::root_by_branch(merkle::sha256d(&stripped), &job.branch);
    Ok(header(candidate.version, &job.prev_hash, &root, candidate.ntime, job.nbits, candidate.nonce))
}

impl Assembler {
    /// The block as submitblock takes it. Its hash is computed again and must be the candidate's and meet the network target.
    pub fn block_in_pieces(&self, template: &Template, job: &Job, candidate: &BlockCandidate) -> Result<BlockHex, BlockError> {
        if candidate.job != job.id {
            return Err(BlockError::OtherJob { candidate: candidate.job, job: job.id });
        }
        if job.prev_hash != template.prev_hash {
            return Err(BlockError::OtherParent { job: job.id, job_parent: job.prev_hash, template_parent: template.prev_hash });
        }
        let header = header_of(job, candidate)?;
        let own = merkle::sha256d(&header);
        if own != candidate.hash {
            return Err(BlockError::HashDiffers { own, claimed: candidate.hash });
        }
        if !job.network_target.is_met_by(&own) {
            return Err(BlockError::AboveTarget { hash: own, target: job.network_target });
        }
        let stripped = coinbase_of(job, candidate.extranonce1, candidate.extranonce2)?;
        let mut head = Vec::with_capacity(512);
        head.extend_from_slice(&header);
        coinbase::put_compact_size(&mut head, template.txids.len() + 1);
        if template.witness_commitment.is_some() {
            head.extend_from_slice(&coinbase::with_witness(&stripped));
        } else {
            head.extend_from_slice(&stripped);
        }
        Ok(BlockHex { head: encode_hex(&head), body: Arc::clone(&template.body_hex) })
    }

    /// The block as one text of hex; see `block_in_pieces`.
    pub fn block_hex(&self, template: &Template, job: &Job, candidate: &BlockCandidate) -> Result<String, BlockError> {
        let block = self.block_in_pieces(template, job, candidate)?;
        Ok(block.head + &block.body)
    }

    /// The block in bytes; see `block_in_pieces`.
    pub fn block(&self, template: &Template, job: &Job, candidate: &BlockCandidate) -> Result<Vec<u8>, BlockError> {
        self.block_in_pieces(template, job, candidate)?.to_bytes().map_err(BlockError::Body)
    }
}
