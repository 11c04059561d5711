//! The dimension records: what resolves the ids in rows. Sessions and workers come from the share path as fixed binary records; runs, jobs and blocks are JSON, written by the control plane.
use otedama_primitives::{
    Coin, Dimension, DimensionKind, Hash256, Job, JobId, RunId, SessionId, SessionRecord, Target, VersionMaskRecord, WorkerId,
    WorkerRecord, decode_hex, encode_hex,
};
use serde::{Deserialize, Serialize};

/// One boot of one instance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunRecord {
    /// Instance and boot epoch.
    pub run: RunId,
    /// When it started, microseconds since the epoch.
    pub started_us: u64,
    /// Version and commit of the binary.
    pub build: String,
    /// Hash kernel chosen.
    pub kernel: String,
    /// Socket driver chosen.
    pub driver: String,
    /// Acknowledgement tier: memory, process or disk.
    pub tier: String,
    /// `[pool] name`, which worker ids are made with.
    pub pool: String,
}

/// A job, complete enough to recompute every share of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JobRecord {
    /// Its number.
    pub job: JobId,
    /// The number that V1 miners see, 8 hex digits on the wire.
    pub wire_id: u32,
    /// The coin.
    pub coin: Coin,
    /// Height of the block it would make.
    pub height: u32,
    /// Previous block hash.
    pub prev_hash: Hash256,
    /// Header version before rolled bits.
    pub version: u32,
    /// Compact network target.
    pub nbits: u32,
    /// The template's curtime, seconds.
    pub ntime: u32,
    /// The template's mintime, seconds.
    pub ntime_min: u32,
    /// Coinbase bytes before extranonce1.
    pub coinbase_prefix: Vec<u8>,
    /// Coinbase bytes after extranonce2.
    pub coinbase_suffix: Vec<u8>,
    /// Merkle siblings of the coinbase, leaf to root.
    pub branch: Vec<Hash256>,
    /// Bytes of extranonce2.
    pub extranonce2_bytes: u8,
    /// The network target.
    pub network_target: Target,
    /// First job on a new parent.
    pub clean: bool,
    /// When the template arrived, microseconds since the epoch.
    pub created_us: u64,
}

impl JobRecord {
    /// The record of a job that goes out under `wire_id`.
    pub fn new(job: &Job, wire_id: u32) -> Self {
        Self {
            job: job.id,
            wire_id,
            coin: job.coin,
            height: job.height,
            prev_hash: job.prev_hash,
            version: job.version,
            nbits: job.nbits,
            ntime: job.ntime,
            ntime_min: job.ntime_min,
            coinbase_prefix: job.coinbase_prefix.to_vec(),
            coinbase_suffix: job.coinbase_suffix.to_vec(),
            branch: job.branch.to_vec(),
            extranonce2_bytes: job.extranonce2_bytes,
            network_target: job.network_target,
            clean: job.clean,
            created_us: job.created_us,
        }
    }
}

/// What became of a block candidate.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockStatus {
    /// Handed to the node.
    Found,
    /// The node's tip confirms it.
    Accepted,
    /// An earlier candidate of the same parent was accepted.
    Superseded,
    /// Refused by every node.
    Rejected,
}

impl BlockStatus {
    /// Name in ClickHouse and JSON.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Found => "found",
            Self::Accepted => "accepted",
            Self::Superseded => "superseded",
            Self::Rejected => "rejected",
        }
    }
}

/// A block candidate; later records of the same hash replace earlier ones.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BlockRecord {
    /// The job it solved.
    pub job: JobId,
    /// Its height.
    pub height: u32,
    /// Block hash.
    pub hash: Hash256,
    /// The worker that found it.
    pub worker: WorkerId,
    /// The session that found it.
    pub session: SessionId,
    /// When its bytes were read, microseconds since the epoch.
    pub found_us: u64,
    /// What became of it.
    pub status: BlockStatus,
    /// The node's reason where it was refused, else empty.
    pub reason: String,
}

/// An entry of the dimension log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DimensionEntry {
    /// A boot.
    Run(RunRecord),
    /// A Stratum session.
    Session {
        /// Its full number.
        session: SessionId,
        /// The record as net wrote it.
        record: SessionRecord,
    },
    /// A worker; may come again, with the same name.
    Worker {
        /// Full number of the session that it was authorized on.
        session: SessionId,
        /// The record as net wrote it.
        record: WorkerRecord,
    },
    /// The version bits that a session may roll from a moment on.
    VersionMask {
        /// The session's full number.
        session: SessionId,
        /// The record as net wrote it.
        record: VersionMaskRecord,
    },
    /// A job, before it was published.
    Job(JobRecord),
    /// A job ended: its shares are stale from then on.
    JobEnd {
        /// The job.
        job: JobId,
        /// When, microseconds since the epoch.
        us: u64,
    },
    /// A block candidate.
    Block(BlockRecord),
}

/// Kind numbers of the file; append-only. 1, 2 and 7 are those of `DimensionKind`.
pub(crate) mod kind {
    pub(crate) const SESSION: u32 = super::DimensionKind::Session as u32;
    pub(crate) const WORKER: u32 = super::DimensionKind::Worker as u32;
    pub(crate) const RUN: u32 = 3;
    pub(crate) const JOB: u32 = 4;
    pub(crate) const JOB_END: u32 = 5;
    pub(crate) const BLOCK: u32 = 6;
    pub(crate) const VERSION_MASK: u32 = super::DimensionKind::VersionMask as u32;
}

#[derive(Serialize, Deserialize)]
struct RunText {
    run: u32,
    started_us: u64,
    build: String,
    kernel: String,
    driver: String,
    tier: String,
    pool: String,
}

#[derive(Serialize, Deserialize)]
struct JobText {
    job: u64,
    wire_id: u32,
    coin: u8,
    height: u32,
    prev_hash: String,
    version: u32,
    nbits: u32,
    ntime: u32,
    ntime_min: u32,
    coinbase_prefix: String,
    coinbase_suffix: String,
    /// Internal byte order, as hashed.
    branch: Vec<String>,
    extranonce2_bytes: u8,
    /// Most significant digit first.
    network_target: String,
    clean: bool,
    created_us: u64,
}

#[derive(Serialize, Deserialize)]
struct JobEndText {
    job: u64,
    us: u64,
}

#[derive(Serialize, Deserialize)]
struct BlockText {
    job: u64,
    height: u32,
    hash: String,
    worker: u64,
    session: u64,
    found_us: u64,
    status: BlockStatus,
    reason: String,
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    // Strings and numbers always serialise.
    serde_json::to_vec(value).unwrap_or_default()
}

pub(crate) fn encode_run(record: &RunRecord) -> Vec<u8> {
    json(&RunText {
        run: record.run.prefix(),
        started_us: record.started_us,
        build: record.build.clone(),
        kernel: record.kernel.clone(),
        driver: record.driver.clone(),
        tier: record.tier.clone(),
        pool: record.pool.clone(),
    })
}

pub(crate) fn encode_job(record: &JobRecord) -> Vec<u8> {
    json(&JobText {
        job: record.job.0,
        wire_id: record.wire_id,
        coin: record.coin as u8,
        height: record.height,
        prev_hash: record.prev_hash.to_string(),
        version: record.version,
        nbits: record.nbits,
        ntime: record.ntime,
        ntime_min: record.ntime_min,
        coinbase_prefix: encode_hex(&record.coinbase_prefix),
        coinbase_suffix: encode_hex(&record.coinbase_suffix),
        branch: record.branch.iter().map(|hash| encode_hex(&hash.0)).collect(),
        extranonce2_bytes: record.extranonce2_bytes,
        network_target: record.network_target.to_string(),
        clean: record.clean,
        created_us: record.created_us,
    })
}

pub(crate) fn encode_job_end(job: JobId, us: u64) -> Vec<u8> {
    json(&JobEndText { job: job.0, us })
}

pub(crate) fn encode_block(record: &BlockRecord) -> Vec<u8> {
    json(&BlockText {
        job: record.job.0,
        height: record.height,
        hash: record.hash.to_string(),
        worker: record.worker.0,
        session: record.session.0,
        found_us: record.found_us,
        status: record.status,
        reason: record.reason.clone(),
    })
}

fn bytes_of(text: &str) -> Option<Vec<u8>> {
    let mut bytes = vec![0u8; text.len() / 2];
    decode_hex(text.as_bytes(), &mut bytes).ok()?;
    Some(bytes)
}

fn target_of(text: &str) -> Option<Target> {
    Hash256::from_display_hex(text).ok().map(|hash| Target(hash.limbs()))
}

fn coin_of(number: u8) -> Option<Coin> {
    (number == Coin::Bitcoin as u8).then_some(Coin::Bitcoin)
}

/// The entry in a record whose crc holds; None for a kind or form of another release.
pub(crate) fn decode(kind: u32, run_prefix: u32, payload: &[u8]) -> Option<DimensionEntry> {
    let run = RunId::from_prefix(run_prefix);
    match kind {
        kind::SESSION => {
            let record = dimension(kind, payload)?.as_session()?;
            Some(DimensionEntry::Session { session: run.session(record.session), record })
        }
        kind::WORKER => {
            let record = dimension(kind, payload)?.as_worker()?;
            Some(DimensionEntry::Worker { session: run.session(record.session), record })
        }
        kind::VERSION_MASK => {
            let record = dimension(kind, payload)?.as_version_mask()?;
            Some(DimensionEntry::VersionMask { session: run.session(record.session), record })
        }
        kind::RUN => {
            let text: RunText = serde_json::from_slice(payload).ok()?;
            Some(DimensionEntry::Run(RunRecord {
                run: RunId::from_prefix(text.run),
                started_us: text.started_us,
                build: text.build,
                kernel: text.kernel,
                driver: text.driver,
                tier: text.tier,
                pool: text.pool,
            }))
        }
        kind::JOB => {
            let text: JobText = serde_json::from_slice(payload).ok()?;
            Some(DimensionEntry::Job(JobRecord {
                job: JobId(text.job),
                wire_id: text.wire_id,
                coin: coin_of(text.coin)?,
                height: text.height,
                prev_hash: Hash256::from_display_hex(&text.prev_hash).ok()?,
                version: text.version,
                nbits: text.nbits,
                ntime: text.ntime,
                ntime_min: text.ntime_min,
                coinbase_prefix: bytes_of(&text.coinbase_prefix)?,
                coinbase_suffix: bytes_of(&text.coinbase_suffix)?,
                branch: text.branch.iter().map(|hash| Hash256::from_internal_hex(hash).ok()).collect::<Option<_>>()?,
                extranonce2_bytes: text.extranonce2_bytes,
                network_target: target_of(&text.network_target)?,
                clean: text.clean,
                created_us: text.created_us,
            }))
        }
        kind::JOB_END => {
            let text: JobEndText = serde_json::from_slice(payload).ok()?;
            Some(DimensionEntry::JobEnd { job: JobId(text.job), us: text.us })
        }
        kind::BLOCK => {
            let text: BlockText = serde_json::from_slice(payload).ok()?;
            Some(DimensionEntry::Block(BlockRecord {
                job: JobId(text.job),
                height: text.height,
                hash: Hash256::from_display_hex(&text.hash).ok()?,
                worker: WorkerId(text.worker),
                session: SessionId(text.session),
                found_us: text.found_us,
                status: text.status,
                reason: text.reason,
            }))
        }
        _ => None,
    }
}

/// The entry that a record of the journal will be.
pub(crate) fn of_dimension(run_prefix: u32, dimension: &Dimension) -> Option<DimensionEntry> {
    decode(u32::from(dimension.kind), run_prefix, dimension.payload.get(..usize::from(dimension.len))?)
}

fn dimension(kind: u32, bytes: &[u8]) -> Option<Dimension> {
    let mut payload = [0u8; 248];
    payload.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(Dimension { kind: kind as u8, spare: 0, len: bytes.len() as u16, spare2: 0, payload })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn job(job: JobId, wire_id: u32) -> JobRecord {
        JobRecord {
            job,
            wire_id,
            coin: Coin::Bitcoin,
            height: 900_000,
            prev_hash: Hash256([7; 32]),
            version: 0x2000_0000,
            nbits: 0x1d00_ffff,
            ntime: 1_795_218_379,
            ntime_min: 1_795_210_000,
            coinbase_prefix: vec![1, 2, 3],
            coinbase_suffix: vec![4, 5],
            branch: vec![Hash256([1; 32]), Hash256([2; 32])],
            extranonce2_bytes: 8,
            network_target: Target([1, 2, 3, 4]),
            clean: true,
            created_us: u64::MAX,
        }
    }

    #[test]
    fn control_plane_records_come_back_as_they_went_in() {
        let run = RunRecord {
            run: RunId::new(3, 0xabcdef),
            started_us: 5,
            build: "0.1.0".into(),
            kernel: "scalar".into(),
            driver: "mio".into(),
            tier: "process".into(),
            pool: "otedama \"quoted\"".into(),
        };
        assert_eq!(decode(kind::RUN, 0, &encode_run(&run)), Some(DimensionEntry::Run(run.clone())));
        let job = job(run.run.job(4), 0xdead_0004);
        assert_eq!(decode(kind::JOB, 0, &encode_job(&job)), Some(DimensionEntry::Job(job.clone())));
        assert_eq!(decode(kind::JOB_END, 0, &encode_job_end(job.job, 9)), Some(DimensionEntry::JobEnd { job: job.job, us: 9 }));
        let block = BlockRecord {
            job: job.job,
            height: 1,
            hash: Hash256([9; 32]),
            worker: WorkerId(u64::MAX),
            session: run.run.session(1),
            found_us: 3,
            status: BlockStatus::Superseded,
            reason: "stale-prevblk".into(),
        };
        assert_eq!(decode(kind::BLOCK, 0, &encode_block(&block)), Some(DimensionEntry::Block(block)));
        assert_eq!(decode(99, 0, b"{}"), None);
        assert_eq!(decode(kind::JOB, 0, b"{"), None);
    }
}
