//! The three stages of the share path.
mod duplicates;
mod log;
mod net;
mod overload;
mod partials;
mod roots;
mod validate;

pub use duplicates::{DUPLICATE_ENTRIES, DUPLICATE_PRESSURE, DUPLICATE_TABLE_BYTES, DUPLICATE_TABLES};
pub use log::{Append, JournalEnd, Log, LogPorts};
pub use net::{CONNECTION_BYTES, EXTRANONCES_WAITING, Histograms, IN_FLIGHT, Net, NetPorts, NetSettings, TEXT_BYTES_MAX};
pub use overload::DOUBLINGS_MAX;
pub use partials::{CHUNK_BYTES, SHARED_CHUNKS};
pub use roots::ROOT_CACHE_BYTES;
pub use validate::{BlockBell, Validate, ValidatePorts, ValidatedJob};
