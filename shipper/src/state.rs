//! What the stats page shows of the shipper.
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// State of the connection, as in `/api/stats`.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StateKind {
    /// No ClickHouse is configured, or the shipper has not started.
    Off = 0,
    /// The last request succeeded.
    Ok = 1,
    /// The last request failed; it is tried again.
    Retrying = 2,
    /// As `Ok`, on a server without insert tokens: at least once, and `otedama reconcile` tells.
    Legacy = 3,
    /// Shipping could not be exact, or cannot go on, until somebody mends what `last_error` says; it is looked at again every half minute.
    Refusing = 4,
}

impl StateKind {
    /// Name in JSON and metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Ok => "ok",
            Self::Retrying => "retrying",
            Self::Legacy => "legacy",
            Self::Refusing => "refusing",
        }
    }
}

/// Shared between the shipper, which writes, and the stats page. Relaxed throughout: each number stands for itself.
#[derive(Debug, Default)]
pub struct ShipperState {
    kind: AtomicU8,
    texts: Mutex<Texts>,
    /// Rows that the server acknowledged to this process.
    pub rows_shipped: AtomicU64,
    /// Segments that the server acknowledged to this process.
    pub segments_shipped: AtomicU64,
    /// Bytes of those segments.
    pub bytes_shipped: AtomicU64,
    /// Requests that failed and were tried again.
    pub retries: AtomicU64,
    /// Segments that were found doubled or in part, or are gone from server and folder.
    pub findings: AtomicU64,
    /// Segments that a server had lost after it acknowledged them, as in a power cut; they were sent again.
    pub segments_lost: AtomicU64,
}

#[derive(Debug, Default)]
struct Texts {
    last_error: String,
    server_version: String,
}

impl ShipperState {
    /// The state now.
    pub fn kind(&self) -> StateKind {
        match self.kind.load(Ordering::Relaxed) {
            1 => StateKind::Ok,
            2 => StateKind::Retrying,
            3 => StateKind::Legacy,
            4 => StateKind::Refusing,
            _ => StateKind::Off,
        }
    }

    /// Why it is retrying or refusing; empty when all is well.
    pub fn last_error(&self) -> String {
        self.texts.lock().unwrap_or_else(PoisonError::into_inner).last_error.clone()
    }

    /// The server's version; empty before the first probe.
    pub fn server_version(&self) -> String {
        self.texts.lock().unwrap_or_else(PoisonError::into_inner).server_version.clone()
    }

    pub(crate) fn set(&self, kind: StateKind, last_error: &str) {
        self.kind.store(kind as u8, Ordering::Relaxed);
        let mut texts = self.texts.lock().unwrap_or_else(PoisonError::into_inner);
        if texts.last_error != last_error {
            texts.last_error = last_error.to_owned();
        }
    }

    pub(crate) fn set_version(&self, version: &str) {
        self.texts.lock().unwrap_or_else(PoisonError::into_inner).server_version = version.to_owned();
    }
}
