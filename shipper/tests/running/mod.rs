//! A shipper at work, for tests against real servers.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use otedama_sharelog::store::SegmentStore;
use otedama_shipper::{Pace, Shipper, ShipperSettings, ShipperState, Timeouts};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub const PATIENCE: Duration = Duration::from_secs(90);

pub fn settings(url: String) -> ShipperSettings {
    ShipperSettings {
        instance: 7,
        // The rows of these tests have a date of their own.
        keep_days: 0,
        timeouts: Timeouts { query: Duration::from_secs(10), piece: Duration::from_secs(10), answer: Duration::from_secs(30) },
        pace: Pace {
            wait_first: Duration::from_millis(5),
            wait_longest: Duration::from_millis(100),
            look_every: Duration::from_millis(5),
            inserts_per_s: 1000,
            drain: Duration::from_secs(20),
        },
        ..ShipperSettings::new(url)
    }
}

pub struct Running {
    pub state: Arc<ShipperState>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Running {
    pub fn start(settings: ShipperSettings, store: SegmentStore) -> Self {
        let state = Arc::new(ShipperState::default());
        let shipper = Shipper::new(settings, store, Arc::clone(&state)).expect("the log can be read");
        let (stop, stopped) = watch::channel(false);
        Self { state, stop, task: tokio::spawn(shipper.run(stopped)) }
    }

    pub fn shipped(&self) -> u64 {
        self.state.segments_shipped.load(Ordering::Relaxed)
    }

    pub async fn until(&self, what: &str, condition: impl Fn(&ShipperState) -> bool) {
        let waiting = async {
            while !condition(&self.state) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        assert!(waited.is_ok(), "{what} did not happen; state {:?}, last error {:?}", self.state.kind(), self.state.last_error());
    }

    pub async fn until_shipped(&self, segments: u64) {
        self.until("shipping", |state| state.segments_shipped.load(Ordering::Relaxed) >= segments).await;
    }

    pub async fn end(self) {
        self.stop.send_replace(true);
        tokio::time::timeout(PATIENCE, self.task).await.expect("run ends").expect("run does not panic");
    }
}
