//! Fail points: stages that stop for a while, so that tests can see a whole server recover.
//!
//! A stage is wrapped where the pipeline is put together, and only when a test asks for it: the binary that is tested is the one that is shipped, and without a fail
//! point nothing of this is on any path.
use crate::stage::{Regime, Stage};
use std::time::{Duration, Instant};

/// One pause of one stage.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pause {
    /// Name of the stage, as in the stats: `net:0`, `validate:0`, `log`.
    pub stage: String,
    /// From the first step of the stage to the pause.
    pub after: Duration,
    /// How long it lasts.
    pub lasts: Duration,
}

/// Why a list of pauses is not understood.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a fail point is STAGE@AFTER_MS+PAUSE_MS, several are separated by commas, such as log@2000+5000; this is {0:?}")]
pub struct NotAPause(String);

impl Pause {
    /// The variable that a server reads its fail points from. For tests: no config key, and a server that finds it says so loudly.
    pub const VARIABLE: &'static str = "OTEDAMA_FAIL_POINT_PAUSE";

    /// Reads `log@2000+5000,net:0@1000+50`: times in milliseconds.
    pub fn parse(text: &str) -> Result<Vec<Self>, NotAPause> {
        let one = |text: &str| -> Option<Self> {
            let (stage, times) = text.trim().rsplit_once('@')?;
            let (after, lasts) = times.split_once('+')?;
            let milliseconds = |text: &str| text.parse().ok().map(Duration::from_millis);
            let pause = Self { stage: stage.to_owned(), after: milliseconds(after)?, lasts: milliseconds(lasts)? };
            (!stage.is_empty()).then_some(pause)
        };
        text.split(',').map(|text| one(text).ok_or_else(|| NotAPause(text.to_owned()))).collect()
    }
}

/// A stage that does nothing during its pause but say that it has no room.
pub(crate) struct Paused {
    stage: Box<dyn Stage>,
    pause: Pause,
    started: Option<Instant>,
}

impl Paused {
    pub(crate) fn new(stage: Box<dyn Stage>, pause: Pause) -> Self {
        Self { stage, pause, started: None }
    }
}

impl Stage for Paused {
    fn step(&mut self) -> Regime {
        let elapsed = self.started.get_or_insert_with(Instant::now).elapsed();
        if elapsed >= self.pause.after && elapsed < self.pause.after + self.pause.lasts {
            return Regime::Backpressure;
        }
        self.stage.step()
    }

    fn housekeeping(&mut self) {
        self.stage.housekeeping();
    }

    fn wait(&mut self, timeout: Duration) -> bool {
        self.stage.wait(timeout)
    }

    fn can_wait(&self) -> bool {
        self.stage.can_wait()
    }

    fn expects_answers(&self) -> bool {
        self.stage.expects_answers()
    }

    fn drain(&mut self) {
        self.stage.drain();
    }

    fn is_drained(&self) -> bool {
        self.stage.is_drained()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_read_and_nonsense_is_refused() {
        let pause = |stage: &str, after, lasts| Pause {
            stage: stage.to_owned(),
            after: Duration::from_millis(after),
            lasts: Duration::from_millis(lasts),
        };
        assert_eq!(Pause::parse("log@2000+5000"), Ok(vec![pause("log", 2000, 5000)]));
        assert_eq!(Pause::parse("net:0@0+1, validate:1@7+8"), Ok(vec![pause("net:0", 0, 1), pause("validate:1", 7, 8)]));
        for wrong in ["", "log", "log@1", "log@1+", "@1+2", "log@-1+2", "log@1+2,", "log@1+99999999999999999999"] {
            assert!(Pause::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_paused_stage_does_nothing_and_then_goes_on() {
        struct Counter(std::sync::Arc<std::sync::atomic::AtomicU64>);
        impl Stage for Counter {
            fn step(&mut self) -> Regime {
                self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                Regime::Processing
            }
            fn housekeeping(&mut self) {}
            fn is_drained(&self) -> bool {
                true
            }
        }
        let steps = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
        let pause = Pause { stage: "a".into(), after: Duration::ZERO, lasts: Duration::from_millis(30) };
        let mut paused = Paused::new(Box::new(Counter(steps.clone())), pause);
        assert_eq!(paused.step(), Regime::Backpressure);
        assert_eq!(steps.load(std::sync::atomic::Ordering::Relaxed), 0);
        while paused.step() == Regime::Backpressure {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(steps.load(std::sync::atomic::Ordering::Relaxed), 1);
    }
}
