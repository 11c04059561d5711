//! The types every other crate shares: hashes, targets, work, identities and the records that cross rings or stand in the share log.
//!
//! No I/O, no clocks, no allocation on the share path. What stands here is fixed by the log on users' disks: numbers are append-only.
#![forbid(unsafe_code)]

pub mod capture;
mod hash;
mod identity;
mod job;
mod record;
mod status;
mod time;
mod work;

pub use hash::{Hash256, HexError, decode_hex, encode_hex, hex_long, hex_pair, hex_word};
pub use identity::{Instance, JobId, RunId, SessionId, WorkerId, WorkerName, WorkerNameError};
pub use job::{BlockCandidate, Coin, Job};
pub use record::{
    Answer, Dimension, DimensionKind, DimensionTooLong, SessionRecord, ShareRow, Submit, Verdict, VersionMaskRecord, WorkerRecord, flags,
};
pub use status::ShareStatus;
pub use time::{Clock, ManualClock};
pub use work::{DIFFICULTY_MAX, DIFFICULTY_MIN, Difficulty, Target, Work};
