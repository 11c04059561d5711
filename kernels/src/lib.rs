//! Pure functions over lanes of shares: the hashing that decides what a share is worth.
//!
//! The batch contract (`JobTable`, `ShareBatch`, `Judged`) is what the validate stage is built on; an instruction set is chosen once, at boot, as an `Isa`.
//! `scalar` is the definition: every other kernel must agree with it bit for bit.
#![deny(unsafe_code)]

pub mod prefetch;
pub mod sha256d;

pub use sha256d::{BATCH, EXTRANONCE_BYTES_MAX, Isa, JobTable, Judged, ShareBatch, judge, judge_headers};
