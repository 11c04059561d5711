//! The wall clock that never goes back.
use otedama_primitives::Clock;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Wall time in microseconds: read once at the start, then carried on by the monotonic clock, so that a step of the wall clock neither repeats nor skips time
/// on a share core; `resync` moves forward with the wall clock, from housekeeping.
#[derive(Clone, Debug)]
pub struct WallClock {
    origin: Instant,
    base_us: Arc<AtomicU64>,
}

impl WallClock {
    /// Reads the wall clock.
    pub fn new() -> Self {
        let origin = Instant::now();
        Self { origin, base_us: Arc::new(AtomicU64::new(wall_us())) }
    }

    /// Follows the wall clock when it is ahead; when it was set back, the monotonic clock carries on until it has caught up.
    pub fn resync(&self) {
        let monotonic = self.origin.elapsed().as_micros() as u64;
        // Relaxed: one value, nothing else hangs on it; fetch_max keeps it from going back.
        self.base_us.fetch_max(wall_us().saturating_sub(monotonic), Ordering::Relaxed);
    }
}

impl Default for WallClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for WallClock {
    fn now_us(&self) -> u64 {
        self.base_us.load(Ordering::Relaxed) + self.origin.elapsed().as_micros() as u64
    }
}

fn wall_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_micros() as u64)
}
