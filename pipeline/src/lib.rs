//! The data plane: stages joined by lock-free rings, from sockets to the share log.
//!
//! A stage does one bounded piece of work per `step` and says how it went; a run loop owns the cores, the idling and the time accounting.
//! The same stages run pinned, several on a core, or one after the other under a seeded simulator.
#![deny(unsafe_code)]

pub mod driver;
pub mod fail_point;
pub mod metrics;
pub mod ring;
pub mod stage;
pub mod stages;
pub mod sys;
pub mod topology;

pub use ring::{Full, Rx, Tx};
pub use stage::{Regime, Stage};
pub use topology::{Cores, Running, Topology, TopologyError};
