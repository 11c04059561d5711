//! A farm of simulated miners for a Stratum V1 server on this machine: it subscribes, mines for real at the difficulty it is given, submits, and judges
//! every answer. It knows nothing of the server but the protocol, and keeps a ledger that the server's own log can be held against.
#![forbid(unsafe_code)]

pub mod abuse;
pub mod answer;
pub mod compare;
pub mod cpu;
pub mod dialect;
pub mod engine;
pub mod farm;
pub mod hash;
pub mod job;
pub mod ledger;
pub mod null;
pub mod plot;
pub mod processes;
pub mod profile;
pub mod random;
pub mod replay;
pub mod report;
pub mod run;
pub mod session;
pub mod socket;
pub mod statistics;
pub mod totals;
pub mod trial;
