//! Time is injected: the simulator and the tests run production code on a clock of their own.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Microseconds since the Unix epoch that never go back within a process (an implementation holds the last value when the wall clock is set back).
pub trait Clock: Clone + Send + 'static {
    /// Now, in microseconds since 1970-01-01 UTC.
    fn now_us(&self) -> u64;
}

/// A clock that moves only when told to.
#[derive(Clone, Debug, Default)]
pub struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    /// A clock standing at `us`.
    pub fn at(us: u64) -> Self {
        Self(Arc::new(AtomicU64::new(us)))
    }

    /// Moves on by `us`.
    pub fn advance(&self, us: u64) {
        // Relaxed: the value is all that is shared; nothing else is published with it.
        self.0.fetch_add(us, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn now_us(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
