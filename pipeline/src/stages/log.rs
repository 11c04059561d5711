//! log: every row to the journal, then the answer is released. Never fsyncs, renames, allocates or touches a fresh page.
//!
//! When "then" is, the tier says: before the append (`memory`), after it (`process`), or once the sync thread has told that it is on disk (`disk`). Appending never waits
//! for that: answers queue up here in order, and one sync releases all that were appended before it began.
use crate::metrics::{LogCounts, LogMetrics};
use crate::ring::{Rx, Tx};
use crate::stage::{Regime, Stage};
use bytemuck::Zeroable;
use otedama_killpoint::pass;
use otedama_primitives::{Answer, Clock, Dimension, Hash256, ShareRow, ShareStatus, Verdict};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Rows appended in one batch at most.
const ROWS: usize = 512;
/// Session and worker records appended in one batch at most.
const DIMENSIONS: usize = 64;
/// Cells of one dimension record.
const DIMENSION_CELLS: usize = size_of::<Dimension>() / size_of::<ShareRow>();
/// Hashes of a cell.
const HASHES_IN_CELL: usize = size_of::<ShareRow>() / size_of::<Hash256>();
/// Cells that a batch of records alone takes, its commit record included.
const DIMENSION_BATCH_CELLS: usize = DIMENSIONS * DIMENSION_CELLS + 1;

/// Where rows go: the journal, or the simulator's.
pub trait Append: Send {
    /// 64-byte cells that can be appended right now.
    fn room_cells(&self) -> usize;

    /// Appends one batch, all or nothing; rows exist when this returns. `hashes` are those of the rows in layout `full`, and none in the others.
    /// The caller has asked for the room: dimensions x 4 + rows + hashes / 2, rounded up, + 1 cells.
    fn append(&mut self, dimensions: &[Dimension], rows: &[ShareRow], hashes: &[Hash256]);

    /// True while there is no room and none is coming: the disk is full.
    fn is_full(&self) -> bool;

    /// The place behind the last batch; grows with every append.
    fn position(&self) -> u64 {
        0
    }

    /// Up to which `position` appended batches may be acknowledged. Only in tier `disk` this is behind what was appended.
    fn durable_position(&mut self) -> u64 {
        u64::MAX
    }

    /// True where answers wait for `durable_position`: tier `disk`.
    fn is_synced(&self) -> bool {
        false
    }

    /// True while nothing can be made durable: what waits, waits on.
    fn sync_is_failing(&self) -> bool {
        false
    }
}

/// Ring ends and shared state of the log stage.
#[derive(Debug)]
pub struct LogPorts {
    /// One ring per validate lane.
    pub verdicts: Vec<Rx<Verdict>>,
    /// Layout `full`: the hashes of the verdicts, one ring per validate lane; none in the others.
    pub hashes: Vec<Rx<Hash256>>,
    /// One ring per net.
    pub answers: Vec<Tx<Answer>>,
    /// Sessions and workers, one ring per net.
    pub names: Vec<Rx<Dimension>>,
    /// Counters for readers.
    pub metrics: Arc<LogMetrics>,
    /// Validate stages that may still send.
    pub validates_running: Arc<AtomicUsize>,
    /// Tier `memory`: answers are released before the append.
    pub answer_first: bool,
    /// Set while the log is full: the nets let nobody in then.
    pub log_full: Arc<AtomicBool>,
}

/// The stage.
pub struct Log<A, C> {
    journal: A,
    clock: C,
    ports: LogPorts,
    next_input: usize,
    /// Verdicts taken and not yet appended.
    held: usize,
    /// Whether those were answered already: tier `memory`, with room for them in sight.
    answered: bool,
    /// Tier `disk`: answers to rows that are appended and not durable, in order, with their net. As deep as all FIFOs of shares in flight together.
    unsynced: VecDeque<(u8, Answer)>,
    /// Behind how many more answers of `unsynced` which position stands.
    marks: VecDeque<(u64, usize)>,
    taken: Box<[Verdict; ROWS]>,
    /// Layout `full`: the hashes of those taken.
    hashes: Box<[Hash256; ROWS]>,
    rows: Box<[ShareRow; ROWS]>,
    dimensions: Box<[Dimension; DIMENSIONS]>,
    staged: Vec<Vec<Answer>>,
    counts: LogCounts,
    draining: bool,
    finished: bool,
}

impl<A, C> std::fmt::Debug for Log<A, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("counts", &self.counts).finish_non_exhaustive()
    }
}

impl<A: Append, C: Clock> Log<A, C> {
    /// The stage over a journal.
    pub fn new(journal: A, clock: C, ports: LogPorts) -> Self {
        let staged = ports.answers.iter().map(|_| Vec::with_capacity(ROWS)).collect();
        // An empty ring has all of its depth for room.
        let in_flight = if journal.is_synced() { ports.answers.iter().map(Tx::room).sum() } else { 0 };
        Self {
            journal,
            clock,
            ports,
            next_input: 0,
            held: 0,
            answered: false,
            unsynced: VecDeque::with_capacity(in_flight),
            marks: VecDeque::with_capacity(in_flight),
            taken: Box::new([Verdict::zeroed(); ROWS]),
            hashes: Box::new([Hash256::default(); ROWS]),
            rows: Box::new([ShareRow::zeroed(); ROWS]),
            dimensions: Box::new([Dimension::zeroed(); DIMENSIONS]),
            staged,
            counts: LogCounts::default(),
            draining: false,
            finished: false,
        }
    }

    /// Appends the session and worker records that are waiting now. False when the journal has no room for all of them.
    fn append_names(&mut self) -> bool {
        for ring in 0..self.ports.names.len() {
            let mut left = self.ports.names[ring].available();
            while left > 0 {
                if self.journal.room_cells() < DIMENSION_BATCH_CELLS {
                    return false;
                }
                let wanted = left.min(DIMENSIONS);
                let count = self.ports.names[ring].take_into(&mut self.dimensions[..wanted]);
                self.journal.append(&self.dimensions[..count], &[], &[]);
                self.counts.dimension_appended += count as u64;
                self.counts.batch_committed += 1;
                left -= count;
            }
        }
        true
    }

    fn names_are_waiting(&self) -> bool {
        self.ports.names.iter().any(|ring| ring.available() > 0)
    }

    fn answer(&mut self, count: usize, overload: bool) {
        for verdict in &self.taken[..count] {
            let answer = answer_to(verdict, overload);
            self.staged[usize::from(verdict.net)].push(answer);
        }
        self.push_staged();
    }

    fn push_staged(&mut self) {
        for (ring, staged) in self.ports.answers.iter_mut().zip(&mut self.staged) {
            assert!(ring.room() >= staged.len(), "log_net is as deep as net's FIFO of shares in flight");
            ring.push_all(staged);
            staged.clear();
        }
        pass("log.answered");
    }

    /// Tier `disk`: keeps the answers until what they answer is durable.
    fn keep_answers(&mut self, count: usize) {
        assert!(self.unsynced.capacity() - self.unsynced.len() >= count, "no more answers wait than shares are in flight");
        self.unsynced.extend(self.taken[..count].iter().map(|verdict| (verdict.net, answer_to(verdict, false))));
        self.marks.push_back((self.journal.position(), count));
        self.counts.row_waiting = self.unsynced.len() as u64;
    }

    /// Tier `disk`: releases the answers that the sync thread has made true. True when there were any.
    fn release_synced(&mut self) -> bool {
        if self.marks.is_empty() {
            return false;
        }
        let durable = self.journal.durable_position();
        let mut released = false;
        while let Some(&(position, count)) = self.marks.front()
            && position <= durable
        {
            self.release(count, false);
            released = true;
        }
        // Nothing more will become durable before this stage has to end: the miners are told that these are not recorded.
        if self.draining && self.journal.sync_is_failing() {
            while let Some(&(_, count)) = self.marks.front() {
                self.counts.row_unrecorded += count as u64;
                self.release(count, true);
                released = true;
            }
        }
        self.counts.row_waiting = self.unsynced.len() as u64;
        released
    }

    fn release(&mut self, count: usize, overload: bool) {
        self.marks.pop_front();
        for (net, mut answer) in self.unsynced.drain(..count) {
            if overload {
                answer.status = ShareStatus::Overload as u8;
            }
            self.staged[usize::from(net)].push(answer);
        }
        self.push_staged();
    }
}

fn answer_to(verdict: &Verdict, overload: bool) -> Answer {
    let status = if overload { ShareStatus::Overload as u8 } else { verdict.status };
    Answer { in_flight: verdict.in_flight, status, spare: [0; 3] }
}

impl<A: Append, C: Clock> Log<A, C> {
    /// Hashes that go with the verdicts held.
    fn hashes_held(&self) -> usize {
        if self.ports.hashes.is_empty() { 0 } else { self.held }
    }

    /// Cells of the verdicts held and their hashes, without the commit record.
    fn cells_held(&self) -> usize {
        self.held + self.hashes_held().div_ceil(HASHES_IN_CELL)
    }

    /// Takes the next verdicts, round robin over the lanes.
    fn take(&mut self) {
        let inputs = self.ports.verdicts.len();
        for _ in 0..inputs {
            let input = self.next_input;
            self.next_input = (input + 1) % inputs;
            self.held = self.ports.verdicts[input].take_into(&mut self.taken[..]);
            if self.held > 0 {
                let hashes = self.hashes_held();
                if hashes > 0 {
                    // Pushed before the verdicts, whose index was read with Acquire: all of them are there.
                    let taken = self.ports.hashes[input].take_into(&mut self.hashes[..hashes]);
                    assert_eq!(taken, hashes, "validate puts the hash of a verdict before it");
                }
                self.answered = self.ports.answer_first
                    && !self.journal.is_full()
                    && self.journal.room_cells() > self.cells_held() + DIMENSION_BATCH_CELLS;
                pass("log.taken");
                if self.answered {
                    self.counts.row_answered_early_most = self.counts.row_answered_early_most.max(self.held as u64);
                    self.answer(self.held, false);
                }
                return;
            }
        }
    }

    /// What to do with held verdicts when the journal has no room: wait for the sealer, or, with a full disk, tell the miner; nothing is credited that was not recorded.
    fn no_room(&mut self) -> Regime {
        self.counts.journal_full_waited += 1;
        if !self.journal.is_full() {
            return Regime::Backpressure;
        }
        if !self.answered {
            // Ahead of answers that wait for a sync, perhaps: net keeps them in order.
            self.answer(self.held, true);
        }
        self.counts.row_unrecorded += self.held as u64;
        self.held = 0;
        Regime::Processing
    }
}

impl<A: Append, C: Clock> Stage for Log<A, C> {
    fn step(&mut self) -> Regime {
        pass("log.step");
        let released = self.release_synced();
        // Acquire pairs with the Release of a validate stage that has drained.
        let validates_running = self.ports.validates_running.load(Ordering::Acquire);
        if self.held == 0 {
            self.take();
        }
        if self.held == 0 {
            let waiting = self.names_are_waiting();
            let appended = self.append_names();
            if self.draining && validates_running == 0 && (!waiting || self.journal.is_full()) && self.marks.is_empty() {
                self.finished = true;
            }
            return match (waiting, appended) {
                (false, _) => {
                    if released {
                        Regime::Processing
                    } else {
                        Regime::CaughtUp
                    }
                }
                (true, true) => Regime::Processing,
                (true, false) => Regime::Backpressure,
            };
        }
        // Verdicts were taken first, so whatever names these rows is visible by now and goes in front of them.
        if !self.append_names() || self.journal.room_cells() < self.cells_held() + 1 {
            return self.no_room();
        }
        pass("log.names_appended");
        let count = self.held;
        let now_us = self.clock.now_us();
        for (row, verdict) in self.rows.iter_mut().zip(&self.taken[..count]) {
            *row = verdict.into_row(u32::try_from(now_us.saturating_sub(verdict.arrival_us)).unwrap_or(u32::MAX));
        }
        let hashes = self.hashes_held();
        self.journal.append(&[], &self.rows[..count], &self.hashes[..hashes]);
        self.counts.row_appended += count as u64;
        self.counts.batch_committed += 1;
        pass("log.appended");
        if !self.answered {
            if self.journal.is_synced() {
                self.keep_answers(count);
            } else {
                self.answer(count, false);
            }
        }
        self.held = 0;
        Regime::Processing
    }

    fn housekeeping(&mut self) {
        // Relaxed: a hint for the door, nothing is read through it.
        self.ports.log_full.store(self.journal.is_full(), Ordering::Relaxed);
        self.counts.publish(&self.ports.metrics);
        self.ports.verdicts.iter().for_each(Rx::publish);
        self.ports.hashes.iter().for_each(Rx::publish);
        self.ports.names.iter().for_each(Rx::publish);
        self.ports.answers.iter().for_each(Tx::publish);
    }

    fn drain(&mut self) {
        self.draining = true;
    }

    fn is_drained(&self) -> bool {
        self.finished
    }
}

/// The journal with the log's state: what the stage runs on in production, in every tier.
pub struct JournalEnd {
    journal: otedama_sharelog::Journal,
    full: Arc<AtomicBool>,
}

impl JournalEnd {
    /// `full` is set while no room is coming: the disk is full, or sealing fails.
    pub fn new(journal: otedama_sharelog::Journal, full: Arc<AtomicBool>) -> Self {
        Self { journal, full }
    }
}

impl Append for JournalEnd {
    fn room_cells(&self) -> usize {
        self.journal.room_cells()
    }

    fn append(&mut self, dimensions: &[Dimension], rows: &[ShareRow], hashes: &[Hash256]) {
        let appended = self.journal.append_hashed(dimensions, rows, hashes);
        assert!(appended.is_ok(), "the log stage asks for room before it appends");
    }

    fn is_full(&self) -> bool {
        // Relaxed: a state that the sealer sets and clears; a pass more or less does not matter.
        self.full.load(Ordering::Relaxed) || self.journal.sync_is_failing()
    }

    fn position(&self) -> u64 {
        self.journal.position()
    }

    fn durable_position(&mut self) -> u64 {
        self.journal.durable_position()
    }

    fn is_synced(&self) -> bool {
        self.journal.is_synced()
    }

    fn sync_is_failing(&self) -> bool {
        self.journal.sync_is_failing()
    }
}
