//! The contract of a stage and the loop that runs them.
use crate::metrics::RegimeNs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How a step went; its time is booked under this.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Regime {
    /// There was nothing to do.
    CaughtUp,
    /// Work was done.
    Processing,
    /// There is work, but the next stage has no room.
    Backpressure,
}

/// One job of the pipeline. Never blocks but in `wait`, never allocates per share, never logs per share.
pub trait Stage: Send {
    /// One bounded piece of work. Looks at credits before it takes input.
    fn step(&mut self) -> Regime;

    /// Publishes counters; called every few milliseconds and before the loop blocks.
    fn housekeeping(&mut self);

    /// Blocks until outside work may have come, at most `timeout`. False for a stage that has nothing to block in: the loop idles by itself then.
    fn wait(&mut self, _timeout: Duration) -> bool {
        false
    }

    /// True for a stage that has something to block in.
    fn can_wait(&self) -> bool {
        false
    }

    /// True while this stage waits for other cores to finish something that it handed out: the loop must look again soon.
    fn expects_answers(&self) -> bool {
        false
    }

    /// Called once, when the pipeline is told to stop: take no new outside work.
    fn drain(&mut self) {}

    /// True when a draining stage has nothing left and none can come.
    fn is_drained(&self) -> bool;
}

/// How a loop idles when all its stages are caught up and it may not block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Idle {
    /// The core is this loop's alone: spin.
    Spin,
    /// The core is shared with other threads: sleep a little, or nobody else gets on.
    Sleep,
}

const HOUSEKEEPING_EVERY: Duration = Duration::from_millis(5);
/// Longest block in the driver's poll, so that deadlines are looked at.
const WAIT_MAX: Duration = Duration::from_millis(20);
/// Longest pause while shares are in flight on other cores.
const WAIT_IN_FLIGHT: Duration = Duration::from_micros(50);
/// Passes that look again before a loop with shares in flight pauses.
const LOOKS_IN_FLIGHT: u32 = 64;

/// A stage with its time accounting.
pub struct Seat {
    /// `net:0`: name of the stage instance, metric label.
    pub name: String,
    /// The stage.
    pub stage: Box<dyn Stage>,
    /// Where its time goes.
    pub regimes: Arc<RegimeNs>,
}

/// Runs the stages of one core until `stop` is set and all of them are drained. `may_block`: everything that can bring work to this loop wakes the one stage
/// of it that can wait; otherwise it never pauses for longer than shares may be in flight.
pub fn run(seats: &mut [Seat], idle: Idle, may_block: bool, stop: &AtomicBool) {
    let mut draining = false;
    let mut looks = 0u32;
    let mut last_housekeeping = Instant::now();
    loop {
        // Acquire pairs with the Release of whoever asks to stop.
        if !draining && stop.load(Ordering::Acquire) {
            draining = true;
            seats.iter_mut().for_each(|seat| seat.stage.drain());
        }
        let mut all_caught_up = true;
        let mut any_processed = false;
        let mut mark = Instant::now();
        for seat in seats.iter_mut() {
            let regime = seat.stage.step();
            let now = Instant::now();
            let spent = (now - mark).as_nanos() as u64;
            mark = now;
            // Relaxed: this thread is the only writer.
            let bucket = match regime {
                Regime::CaughtUp => &seat.regimes.caught_up,
                Regime::Processing => &seat.regimes.processing,
                Regime::Backpressure => &seat.regimes.backpressure,
            };
            bucket.store(bucket.load(Ordering::Relaxed) + spent, Ordering::Relaxed);
            all_caught_up &= regime == Regime::CaughtUp;
            any_processed |= regime == Regime::Processing;
        }
        if mark - last_housekeeping >= HOUSEKEEPING_EVERY {
            last_housekeeping = mark;
            keep_house(seats);
        }
        if any_processed {
            looks = 0;
            continue;
        }
        if draining && seats.iter().all(|seat| seat.stage.is_drained()) {
            keep_house(seats);
            return;
        }
        let in_flight = !may_block || !all_caught_up || seats.iter().any(|seat| seat.stage.expects_answers());
        if in_flight || draining {
            looks += 1;
            if looks < LOOKS_IN_FLIGHT {
                std::hint::spin_loop();
                continue;
            }
            looks = 0;
            pause(seats, WAIT_IN_FLIGHT, idle, true);
        } else {
            pause(seats, WAIT_MAX, idle, false);
        }
    }
}

fn pause(seats: &mut [Seat], timeout: Duration, idle: Idle, in_flight: bool) {
    let start = Instant::now();
    let mut waited_in = 0;
    // A poll has a granularity of a millisecond, too coarse while shares are in flight elsewhere: those loops sleep a timer's worth instead.
    let blocked = !in_flight
        && seats.iter_mut().enumerate().any(|(index, seat)| {
            seat.stage.wait(timeout) && {
                waited_in = index;
                true
            }
        });
    if !blocked {
        match idle {
            Idle::Spin => {
                for _ in 0..32 {
                    std::hint::spin_loop();
                }
            }
            Idle::Sleep => std::thread::sleep(WAIT_IN_FLIGHT),
        }
    }
    if let Some(seat) = seats.get(waited_in) {
        let bucket = &seat.regimes.caught_up;
        bucket.store(bucket.load(Ordering::Relaxed) + start.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }
}

fn keep_house(seats: &mut [Seat]) {
    for seat in seats {
        let start = Instant::now();
        seat.stage.housekeeping();
        let bucket = &seat.regimes.housekeeping;
        bucket.store(bucket.load(Ordering::Relaxed) + start.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }
}
