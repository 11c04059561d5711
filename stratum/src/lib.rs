//! The Stratum protocol without I/O: bytes of one line in, reply bytes and an event out. Sockets, framing and rings belong to the net stage.
//!
//! Nothing here reads a clock, allocates on the submit path or trusts a byte of the wire. `v1` is the protocol that miners speak today;
//! `extranonce` hands out the bytes that keep their search spaces apart; `vardiff` finds the difficulty of a session.
#![forbid(unsafe_code)]

pub mod extranonce;
pub mod v1;
pub mod vardiff;

pub use extranonce::Extranonces;
