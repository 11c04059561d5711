//! Stratum V1: newline-delimited JSON as miners of fifteen years write it.
//!
//! `lines` trims what framing leaves, `scan` reads a line in one pass without allocating and hands what is odd to `slow` (serde_json),
//! `jobs` holds what shares can name, `messages` writes, and `session` is the state of one connection.

mod configure;
pub mod jobs;
pub mod lines;
pub mod messages;
pub mod request;
pub mod scan;
pub mod session;
pub mod slow;

pub use jobs::{JobBook, PublishedJob};
pub use messages::answer;
pub use request::IdToken;
pub use session::{Context, Event, Seat, Session, Settings};
