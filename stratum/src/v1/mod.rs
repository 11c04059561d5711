//! Stratum V1: newline-delimited JSON as miners of fifteen years write it.
//!
//! A line goes through up to three tiers: `template` compares a submit with an earlier one of its connection, `scan` reads any flat line in one pass without
//! allocating, and `slow` (serde_json) takes what is odd; a submit comes to the same `claim` from each. `jobs` holds what shares can name, `workers` who may submit,
//! `messages` writes, and `session` is the state of one connection, which reads by the `reader` of its net.

pub mod claim;
mod configure;
pub mod jobs;
pub mod lines;
mod marks;
pub mod messages;
pub mod reader;
pub mod request;
pub mod scan;
pub mod session;
pub mod slow;
pub mod template;
pub mod workers;

pub use jobs::{JobBook, PublishedJob};
pub use messages::answer;
pub use reader::{Reader, Tiers, Unread};
pub use request::IdToken;
pub use session::{Context, Event, Seat, Session, Settings};
