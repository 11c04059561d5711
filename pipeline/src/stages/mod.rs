//! The three stages of the share path.
mod duplicates;
mod log;
mod net;
mod validate;

pub use duplicates::{DUPLICATE_ENTRIES, DUPLICATE_ENTRY_BYTES, DUPLICATE_PRESSURE, DUPLICATE_TABLES};
pub use log::{Append, JournalEnd, Log, LogPorts};
pub use net::{Histograms, IN_FLIGHT, Net, NetPorts, NetSettings};
pub use validate::{Validate, ValidatePorts, ValidatedJob};
