//! net: sockets, framing, sessions, and the answers in order.
//!
//! A share in flight keeps a place in a FIFO; answers leave in FIFO order, and every other reply to a connection with shares in flight queues behind them there.
//! Without room for one more share (FIFO, ring) net stops reading: TCP shares are never dropped.
use super::overload::{Act, Heard, Load, Sweep, Unread, WALK_US};
use super::partials::{Held, Partials};
use crate::driver::{Driver, Event, JobNote, Slot};
use crate::metrics::{NetCounts, NetMetrics};
use crate::ring::{Rx, Tx};
use crate::stage::{Regime, Stage};
use crate::sys::pages::keep_on_small_pages;
use hdrhistogram::Histogram;
use otedama_primitives::{Answer, Clock, Dimension, ShareStatus, Submit, Work};
use otedama_stratum::Extranonces;
use otedama_stratum::v1::{self, IdToken, JobBook, PublishedJob, Reader, Session};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

/// Places in the FIFO of shares in flight, and depth of `log_net`.
pub const IN_FLIGHT: usize = 1 << 15;
/// Socket events handled in a step, so that answers and other stages on the core get their turn.
const EVENTS_PER_STEP: usize = 256;
/// Shares read in a step: what validate takes in a pass, so that on a core that both share nothing read waits for a second turn of net.
const SHARES_PER_STEP: usize = 256;
/// Lines read in a step, shares or not: who talks without end may not keep the answers of others waiting.
const LINES_PER_STEP: u64 = 1024;
/// While a share that was read has been without its verdict for this long, nothing more is read. What waits unread waits in the kernel, where it costs its sender;
/// what was read is hashed soon, whatever the load: a block candidate among it is at the nodes within two milliseconds.
const READ_AHEAD_US: u64 = 500;
/// Places of the FIFO released in a step: a write each at worst.
const ANSWERS_PER_STEP: usize = 4096;
/// Bytes of replies that may wait behind the shares in flight of a net; above it that net stops reading.
pub const TEXT_BYTES_MAX: usize = 4 << 20;
/// Pause after a poll that failed: time for what is short to come back, and no core spins meanwhile.
const POLL_RETRY: Duration = Duration::from_millis(5);
/// Kinds of failed polls that are told apart; what else comes is counted alone.
const FAILURES_TOLD: usize = 8;
/// The last word to a connection that is closed for its refusals.
const TOO_MANY_REFUSED: &[u8] =
    b"{\"id\":null,\"method\":\"client.show_message\",\"params\":[\"closed: too many refused shares or lines a second\"]}\n";
/// The last word to a connection that is closed because the server is overloaded.
const WORST_UNDER_OVERLOAD: &[u8] =
    b"{\"id\":null,\"method\":\"client.show_message\",\"params\":[\"closed: the server is overloaded and too much of what this connection sent was refused\"]}\n";
/// The last word to a connection whose line is longer than limits.line_bytes.
const LINE_TOO_LONG: &[u8] = b"{\"id\":null,\"method\":\"client.show_message\",\"params\":[\"closed: a line was too long\"]}\n";
/// The last word to a connection whose unfinished line found no room.
const NO_ROOM_FOR_PARTS: &[u8] =
    b"{\"id\":null,\"method\":\"client.show_message\",\"params\":[\"closed: no memory is left for unfinished lines of this length\"]}\n";
/// Connections that a new job is sent to in a step: answers go first.
const BROADCASTS_PER_STEP: usize = 32;
/// Connections whose deadlines are looked at in one housekeeping.
const DEADLINES_PER_HOUSEKEEPING: usize = 256;
/// Values of extranonce1 of a net that may wait for their last job after a disconnect, 24 bytes each: 4,000 reconnects a second for the life of a job.
pub const EXTRANONCES_WAITING: usize = 1 << 20;
/// Dimension records that one line can make: a session and its version mask.
const NAMES_PER_LINE: usize = 2;

/// What a net stage is told.
#[derive(Clone, Debug)]
pub struct NetSettings {
    /// Index of this stage, 0..=63.
    pub net: u8,
    /// Protocol settings shared by all sessions.
    pub session: v1::Settings,
    /// Connections of this stage at most.
    pub connections_max: usize,
    /// Longest line.
    pub line_bytes: usize,
    /// A connection that has not authorized by then is closed.
    pub authorize_within_us: u64,
    /// Refused shares and lines a second before a connection is closed.
    pub refused_per_s: u32,
    /// Bytes that wait longer than this to be read are overload; `u64::MAX` for no measures against it.
    pub read_within_us: u64,
}

/// Latency histograms on their way to stats and back, so that neither side allocates or locks.
#[derive(Debug)]
pub struct Histograms {
    /// Full ones, in microseconds.
    pub full: Tx<Box<Histogram<u64>>>,
    /// Emptied ones.
    pub empty: Rx<Box<Histogram<u64>>>,
}

/// Ring ends and shared state of a net stage.
#[derive(Debug)]
pub struct NetPorts {
    /// To the validate lanes this net owns.
    pub submits: Vec<Tx<Submit>>,
    /// From the log.
    pub answers: Rx<Answer>,
    /// Sessions and workers, before the rows that name them.
    pub names: Tx<Dimension>,
    /// Jobs from chain, after every validate stage has them.
    pub jobs: Rx<Arc<PublishedJob>>,
    /// Latency, bytes read to answer handed to the kernel.
    pub latency: Histograms,
    /// Counters for readers.
    pub metrics: Arc<NetMetrics>,
    /// Session counter of the run, shared by all nets.
    pub next_session: Arc<AtomicU32>,
    /// Decremented when this stage is drained.
    pub nets_running: Arc<AtomicUsize>,
    /// Set by the log stage while the log is full. A new session needs a record there; were it let in, records without room would stop the reading of all.
    pub log_full: Arc<AtomicBool>,
}

/// What one connection takes in its net, without the names of its workers: in one block of memory for all, so that an idle one owns no other.
pub const CONNECTION_BYTES: usize = size_of::<Option<Connection>>() + size_of::<u32>();

struct Connection {
    session: Session,
    peer: SocketAddr,
    /// Its unfinished line.
    held: Held,
    opened_us: u64,
    /// Places of the FIFO that are this connection's.
    in_flight: u32,
    /// Those of them that are replies.
    texts: u32,
    /// The second that is being counted, its low 32 bits, and what was answered in it and in the one before.
    second: u32,
    refused: u32,
    accepted: u32,
    accepted_before: u32,
    /// What was answered since the last walk of the overload's sweep.
    heard: Heard,
}

/// One place in the FIFO: a share that waits for its verdict, or a reply that waits for its turn.
#[derive(Clone, Copy)]
struct Place {
    arrival_us: u64,
    slot: Slot,
    generation: u32,
    id: IdToken,
    state: u8,
    /// Work that the miner was told for the share's job: what the share counts for in vardiff.
    told: Work,
}

const _: () = assert!(size_of::<Place>() <= 48, "net keeps 32,768 of them");

/// A share without a verdict.
const WAITING: u8 = 0xff;
/// A reply, the front one of `texts` when its turn comes.
const TEXT: u8 = 0xfe;

struct Fifo {
    places: Box<[Place]>,
    head: u32,
    tail: u32,
}

impl Fifo {
    fn new() -> Self {
        let empty = Place { arrival_us: 0, slot: 0, generation: 0, id: IdToken::NULL, state: TEXT, told: Work::new(0) };
        Self { places: vec![empty; IN_FLIGHT].into_boxed_slice(), head: 0, tail: 0 }
    }

    fn len(&self) -> usize {
        self.tail.wrapping_sub(self.head) as usize
    }

    fn room(&self) -> usize {
        IN_FLIGHT - self.len()
    }

    fn push(&mut self, place: Place) -> u32 {
        assert!(self.room() > 0, "net takes no line without a free place");
        let sequence = self.tail;
        self.places[sequence as usize % IN_FLIGHT] = place;
        self.tail = sequence.wrapping_add(1);
        sequence
    }

    fn answer(&mut self, answer: Answer) {
        assert!((answer.in_flight.wrapping_sub(self.head) as usize) < self.len(), "an answer names a share in flight");
        let place = &mut self.places[answer.in_flight as usize % IN_FLIGHT];
        assert_eq!(place.state, WAITING, "a share is answered once");
        place.state = answer.status;
    }

    /// The front place, once it has its verdict.
    fn pop(&mut self) -> Option<Place> {
        if self.len() == 0 {
            return None;
        }
        let place = self.places[self.head as usize % IN_FLIGHT];
        if place.state == WAITING {
            return None;
        }
        self.head = self.head.wrapping_add(1);
        Some(place)
    }

    /// When the share at the front was read, if it waits for its verdict.
    fn waits_since_us(&self) -> Option<u64> {
        let front = &self.places[self.head as usize % IN_FLIGHT];
        (self.len() > 0 && front.state == WAITING).then_some(front.arrival_us)
    }
}

/// The stage.
pub struct Net<D, C> {
    driver: D,
    clock: C,
    state: State,
    stalled: Option<Slot>,
    /// Where the broadcast of the newest job goes on, and how many connections it has still to look at.
    broadcast_at: usize,
    broadcast_left: usize,
    deadline_next: usize,
    unread: Unread,
    load: Load,
    sweep: Sweep,
    /// Where the sweep goes on; None while there is none.
    sweep_next: Option<usize>,
    /// When its next walk may begin.
    sweep_from_us: u64,
    /// Connections closed because they did not authorize in time.
    closed_late: u64,
    failures: PollFailures,
    answered: Box<[Answer; 512]>,
    arrivals: Vec<u64>,
    histogram: Box<Histogram<u64>>,
    draining: bool,
    finished: bool,
}

/// Everything but the driver, so that lines can be read from the driver's buffer while this changes.
struct State {
    settings: NetSettings,
    ports: NetPorts,
    jobs: JobBook,
    extranonces: Extranonces,
    connections: Vec<Option<Connection>>,
    generations: Vec<u32>,
    open: usize,
    fifo: Fifo,
    texts: VecDeque<Box<[u8]>>,
    text_bytes: usize,
    /// As of the last look at `NetPorts::log_full`.
    log_full: bool,
    /// Submits of this step by lane, published once.
    staged: Vec<Vec<Submit>>,
    /// Replies of the connection at hand that may leave at once.
    out: Vec<u8>,
    /// Reply of the line at hand.
    line_out: Vec<u8>,
    reader: Reader,
    partials: Partials,
    /// A line that came in parts, put together.
    assembled: Vec<u8>,
    /// What the stalled connection has said and nobody has taken yet; `left_spare` is its other half, so that one is filled while the other is read.
    left: Vec<u8>,
    left_spare: Vec<u8>,
    counts: NetCounts,
    /// Connections refused while the log was full, or for which no extranonce1 was free.
    refused_here: u64,
    seed: u64,
}

/// Polls that failed: each is counted, the first of each kind is told.
#[derive(Default)]
struct PollFailures {
    told: [Option<(io::ErrorKind, Option<i32>)>; FAILURES_TOLD],
}

impl PollFailures {
    /// True the first time that an error of this kind comes.
    fn is_new(&mut self, error: &io::Error) -> bool {
        let kind = Some((error.kind(), error.raw_os_error()));
        match self.told.iter_mut().find(|told| told.is_none() || **told == kind) {
            Some(told) => std::mem::replace(told, kind).is_none(),
            None => false,
        }
    }
}

/// How the bytes of a connection were taken.
#[derive(PartialEq, Eq)]
enum Taken {
    All,
    /// Bytes stand in `left`, for want of room or because the slow tier has done enough in this pass.
    Stalled,
    Close,
}

impl<D, C> std::fmt::Debug for Net<D, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Net").field("net", &self.state.settings.net).field("counts", &self.state.counts).finish_non_exhaustive()
    }
}

impl<D: Driver, C: Clock> Net<D, C> {
    /// The stage over a driver; `seed` is random per boot.
    pub fn new(driver: D, clock: C, settings: NetSettings, ports: NetPorts, seed: u64) -> Self {
        let extranonces = Extranonces::new(settings.net, settings.connections_max.saturating_add(EXTRANONCES_WAITING));
        let reader = Reader::new(settings.line_bytes);
        let partials = Partials::new(settings.connections_max);
        let lanes = ports.submits.len();
        assert!(lanes > 0, "a net feeds at least one validate lane");
        let mut connections = Vec::with_capacity(settings.connections_max);
        keep_on_small_pages(connections.spare_capacity_mut());
        let load = Load::new(settings.read_within_us);
        let mut unread = Unread::default();
        unread.waited(clock.now_us());
        Self {
            driver,
            clock,
            state: State {
                connections,
                generations: Vec::with_capacity(settings.connections_max),
                settings,
                ports,
                jobs: JobBook::new(),
                extranonces,
                open: 0,
                fifo: Fifo::new(),
                texts: VecDeque::new(),
                text_bytes: 0,
                log_full: false,
                staged: (0..lanes).map(|_| Vec::with_capacity(IN_FLIGHT)).collect(),
                out: Vec::with_capacity(64 * 1024),
                line_out: Vec::with_capacity(16 * 1024),
                reader,
                partials,
                assembled: Vec::new(),
                left: Vec::new(),
                left_spare: Vec::new(),
                counts: NetCounts::default(),
                refused_here: 0,
                seed,
            },
            stalled: None,
            broadcast_at: 0,
            broadcast_left: 0,
            deadline_next: 0,
            unread,
            load,
            sweep: Sweep::default(),
            sweep_next: None,
            sweep_from_us: 0,
            closed_late: 0,
            failures: PollFailures::default(),
            answered: Box::new([Answer { in_flight: 0, status: 0, spare: [0; 3] }; 512]),
            arrivals: Vec::with_capacity(IN_FLIGHT),
            histogram: Box::new(latency_histogram()),
            draining: false,
            finished: false,
        }
    }

    /// Polls; a failure is counted, and told where it is the first of its kind. What the driver has gathered before stays to be read.
    fn poll(&mut self, timeout: Duration) -> bool {
        let Err(error) = self.driver.poll(timeout) else { return true };
        self.state.counts.poll_failed += 1;
        if self.failures.is_new(&error) {
            let Self { driver, state, .. } = self;
            eprintln!(
                "error: net {}: polling the sockets of driver {} failed: {error}; it is tried again every {} ms and counted (otedama_net_poll_failed_total)",
                state.settings.net,
                driver.name(),
                POLL_RETRY.as_millis()
            );
        }
        false
    }

    /// Verdicts in, answers out, in FIFO order. True when there were any.
    fn answer(&mut self) -> bool {
        loop {
            let count = self.state.ports.answers.take_into(&mut self.answered[..]);
            self.answered[..count].iter().for_each(|&answer| self.state.fifo.answer(answer));
            if count < self.answered.len() {
                break;
            }
        }
        let mut worked = false;
        for _ in 0..ANSWERS_PER_STEP {
            let Some(place) = self.state.fifo.pop() else { break };
            worked = true;
            let text = if place.state == TEXT { self.state.texts.pop_front() } else { None };
            self.state.text_bytes -= text.as_ref().map_or(0, |text| text.len());
            if place.state != TEXT {
                self.state.count_answer(place.state);
            }
            let Some(connection) = self.state.connection_of(&place) else { continue };
            connection.in_flight -= 1;
            match text {
                Some(text) => {
                    connection.texts -= 1;
                    self.driver.reply(place.slot, &text);
                }
                None => {
                    let status = ShareStatus::from_u8(place.state).unwrap_or(ShareStatus::Overload);
                    self.state.line_out.clear();
                    v1::answer(&mut self.state.line_out, &place.id, status);
                    self.driver.reply(place.slot, &self.state.line_out);
                    self.arrivals.push(place.arrival_us);
                    // What the server refuses to protect itself is not held against the miner.
                    if matches!(status, ShareStatus::Accepted | ShareStatus::Overload) && self.state.learn(&place) {
                        self.send_behind(place.slot);
                    }
                    if status == ShareStatus::Accepted {
                        self.state.accepted_one(place.slot, place.arrival_us);
                    } else if status != ShareStatus::Overload && self.state.refused_too_often(place.slot, place.arrival_us) {
                        self.state.counts.connection_closed_refusals += 1;
                        self.close_saying(place.slot, TOO_MANY_REFUSED);
                    }
                }
            }
        }
        if worked {
            self.driver.flush();
            otedama_killpoint::pass("net.answered");
            let now_us = self.clock.now_us();
            for arrival_us in self.arrivals.drain(..) {
                self.histogram.saturating_record(now_us.saturating_sub(arrival_us).max(1));
            }
        }
        worked
    }

    fn take_jobs(&mut self) -> bool {
        let mut worked = false;
        while let Some(job) = self.state.ports.jobs.pop() {
            let lines = self.state.counts.line_received;
            self.driver.note_job(&JobNote { counter: job.job.id.counter(), wire_id: job.wire_id, height: job.job.height, lines });
            // What falls out of the book is not freed here: chain holds a reference until every stage has let go.
            drop(self.state.jobs.publish(job));
            self.broadcast_left = self.state.connections.len();
            worked = true;
        }
        if worked {
            self.state.extranonces.expire(self.state.jobs.oldest_live());
        }
        worked
    }

    /// Sends the newest job on.
    fn broadcast(&mut self) -> bool {
        if self.broadcast_left == 0 {
            return false;
        }
        let now_us = self.clock.now_us();
        let mut sent = 0;
        while self.broadcast_left > 0 && sent < BROADCASTS_PER_STEP && self.state.fifo.room() > 0 {
            let at = self.broadcast_at % self.state.connections.len();
            self.broadcast_at = at + 1;
            self.broadcast_left -= 1;
            if self.state.notify(at, now_us) {
                sent += 1;
                self.send_behind(at as Slot);
            }
        }
        self.driver.flush();
        sent > 0
    }

    /// Sends `line_out`, a job: behind the replies that wait for shares in flight, or an older job in one of them would come last. There must be a free place.
    fn send_behind(&mut self, slot: Slot) {
        if self.state.connections[slot as usize].as_ref().is_some_and(|connection| connection.texts > 0) {
            self.state.reply(slot);
        } else {
            self.driver.reply(slot, &self.state.line_out);
        }
    }

    /// Reads sockets until there is no room, nothing to read, or the step's budget is spent.
    fn read(&mut self) -> Regime {
        let now_us = self.clock.now_us();
        let mut worked = false;
        let is_ahead = self.state.fifo.waits_since_us().is_some_and(|since_us| now_us.saturating_sub(since_us) > READ_AHEAD_US);
        if is_ahead || (self.stalled.is_some() && self.state.credits() == 0) {
            return Regime::Backpressure;
        }
        if let Some(slot) = self.stalled {
            let before = self.state.counts.line_received;
            let taken = self.state.take_left(slot, now_us);
            let still = taken == Taken::Stalled;
            self.finish_bytes(slot, taken);
            worked = self.state.counts.line_received != before;
            if still {
                // What was taken is published all the same: the room that this waits for comes from there.
                self.driver.flush();
                self.state.publish_submits();
                return if worked { Regime::Processing } else { Regime::Backpressure };
            }
            self.stalled = None;
        }
        let mut polled = false;
        let lines_before = self.state.counts.line_received;
        for _ in 0..EVENTS_PER_STEP {
            let lines = self.state.counts.line_received - lines_before;
            if self.state.staged_shares() >= SHARES_PER_STEP || lines >= LINES_PER_STEP || self.state.credits() == 0 {
                break;
            }
            let Some(event) = self.driver.event() else {
                if polled {
                    self.unread.nothing_waits();
                    break;
                }
                if !self.poll(Duration::ZERO) {
                    break;
                }
                self.unread.polled(now_us);
                polled = true;
                continue;
            };
            if !worked {
                self.unread.read(now_us);
            }
            worked = true;
            match event {
                Event::Opened { slot, peer } => {
                    if !self.state.open(slot, peer, now_us) {
                        self.driver.close(slot);
                    }
                }
                Event::Closed { slot } => self.state.close(slot),
                Event::Bytes { slot } => {
                    let bytes = self.driver.bytes();
                    self.state.counts.byte_received += bytes.len() as u64;
                    let taken = self.state.take_bytes(slot, bytes, now_us);
                    let stalled = taken == Taken::Stalled;
                    self.finish_bytes(slot, taken);
                    if stalled {
                        self.stalled = Some(slot);
                        break;
                    }
                }
            }
        }
        self.driver.flush();
        self.state.publish_submits();
        match (worked, self.stalled.is_some() || self.state.credits() == 0) {
            (true, _) => Regime::Processing,
            (false, true) => Regime::Backpressure,
            (false, false) => Regime::CaughtUp,
        }
    }

    fn finish_bytes(&mut self, slot: Slot, taken: Taken) {
        if !self.state.out.is_empty() {
            self.driver.reply(slot, &self.state.out);
            self.state.out.clear();
        }
        if taken == Taken::Close {
            self.driver.close(slot);
            self.state.close(slot);
        }
    }

    fn close_saying(&mut self, slot: Slot, last_word: &[u8]) {
        self.driver.reply(slot, last_word);
        self.driver.close(slot);
        self.state.close(slot);
        if self.stalled == Some(slot) {
            self.stalled = None;
        }
    }

    /// Closes connections that did not authorize in time, and tells vardiff of the time that passed without shares; a bounded number of places a call.
    fn check_deadlines(&mut self) {
        let now_us = self.clock.now_us();
        let mut sent = false;
        let places = self.state.connections.len();
        for _ in 0..DEADLINES_PER_HOUSEKEEPING.min(places) {
            let at = self.deadline_next % places;
            self.deadline_next = (at + 1) % places;
            let late = self.state.connections[at].as_ref().is_some_and(|connection| {
                !connection.session.is_authorized() && now_us.saturating_sub(connection.opened_us) > self.state.settings.authorize_within_us
            });
            if late {
                self.closed_late += 1;
                self.driver.close(at as Slot);
                self.state.close(at as Slot);
                if self.stalled == Some(at as Slot) {
                    self.stalled = None;
                }
            } else if self.state.fifo.room() > 0 && self.state.look(at, now_us) {
                self.send_behind(at as Slot);
                sent = true;
            }
        }
        if sent {
            self.driver.flush();
        }
    }

    /// Looks at the age of unread bytes and takes measures, or takes them back.
    fn watch_load(&mut self) {
        let now_us = self.clock.now_us();
        let age_us = self.unread.look(now_us);
        self.state.counts.unread_oldest_us = age_us;
        let was_shut = self.load.measures().door_shut;
        if self.load.observe(now_us, age_us) {
            let measures = self.load.measures();
            self.state.counts.overload_step = u64::from(measures.step());
            if measures.door_shut != was_shut {
                self.driver.accept(was_shut);
            }
            if measures.door_shut && self.sweep_next.is_none() {
                self.sweep.forget();
                self.sweep_next = Some(0);
            }
        }
        if self.sweep_next.is_some() {
            self.sweep_on(now_us);
        }
    }

    /// Goes on with the walk over all connections: a bounded number of places and of messages a call.
    fn sweep_on(&mut self, now_us: u64) {
        let measures = self.load.measures();
        let (mut at, end) = (self.sweep_next.unwrap_or(0), self.state.connections.len());
        if at == 0 {
            if now_us < self.sweep_from_us {
                return;
            }
            self.sweep_from_us = now_us + WALK_US;
        }
        let mut acts = 0;
        let mut visits = 0;
        while at < end && visits < DEADLINES_PER_HOUSEKEEPING && acts < BROADCASTS_PER_STEP && self.state.fifo.room() > 0 {
            let slot = at as Slot;
            at += 1;
            visits += 1;
            let Some(connection) = self.state.connections[slot as usize].as_mut() else { continue };
            let heard = std::mem::take(&mut connection.heard);
            match self.sweep.visit(heard, connection.session.load_doublings(), measures) {
                Act::Leave => {}
                Act::Double(doublings) => {
                    acts += 1;
                    if self.state.set_load(slot as usize, doublings, now_us) {
                        self.send_behind(slot);
                    }
                }
                Act::Close => {
                    acts += 1;
                    self.state.counts.connection_closed_overload += 1;
                    self.close_saying(slot, WORST_UNDER_OVERLOAD);
                }
            }
        }
        if acts > 0 {
            self.driver.flush();
        }
        self.sweep_next = Some(at);
        if at >= end {
            self.sweep.end();
            // Another walk as long as there is something to do: while the door is shut, and until the last difficulty is back.
            self.sweep_next = (measures.door_shut || self.state.counts.session_doubled > 0).then_some(0);
        }
    }
}

/// Two significant digits from 1 us to 10 minutes: 1 % precision in 20 KiB.
fn latency_histogram() -> Histogram<u64> {
    match Histogram::new_with_bounds(1, 600_000_000, 2) {
        Ok(histogram) => histogram,
        Err(error) => unreachable!("constant bounds are valid: {error}"),
    }
}

impl Histograms {
    /// An empty histogram of the shape that circulates.
    pub fn empty() -> Box<Histogram<u64>> {
        Box::new(latency_histogram())
    }
}

impl State {
    /// Lines that can be taken now: each needs a place, a submit in the fullest lane and a dimension record.
    fn credits(&self) -> usize {
        if self.text_bytes > TEXT_BYTES_MAX {
            return 0;
        }
        let lanes =
            self.ports.submits.iter().zip(&self.staged).map(|(ring, staged)| ring.room().saturating_sub(staged.len())).min().unwrap_or(0);
        // With a full log no record is taken: who needs one is closed, the others get their answers.
        let names = if self.log_full { usize::MAX } else { self.ports.names.room() / NAMES_PER_LINE };
        lanes.min(self.fifo.room()).min(names)
    }

    fn staged_shares(&self) -> usize {
        self.staged.iter().map(Vec::len).sum()
    }

    fn publish_submits(&mut self) {
        for (ring, staged) in self.ports.submits.iter_mut().zip(&mut self.staged) {
            ring.push_all(staged);
            staged.clear();
        }
    }

    fn connection_of(&mut self, place: &Place) -> Option<&mut Connection> {
        if self.generations[place.slot as usize] != place.generation {
            return None;
        }
        self.connections[place.slot as usize].as_mut()
    }

    fn open(&mut self, slot: Slot, peer: SocketAddr, now_us: u64) -> bool {
        let at = slot as usize;
        while self.connections.len() <= at {
            self.connections.push(None);
            self.generations.push(0);
        }
        // Relaxed: a hint, a pass more or less does not matter.
        if self.ports.log_full.load(Ordering::Relaxed) {
            self.refused_here += 1;
            return false;
        }
        let Some(extranonce1) = self.extranonces.allocate() else {
            self.refused_here += 1;
            return false;
        };
        // Relaxed: only uniqueness counts.
        let number = self.ports.next_session.fetch_add(1, Ordering::Relaxed);
        let seat = v1::Seat { session: number, extranonce1, net: self.settings.net };
        self.connections[at] = Some(Connection {
            session: Session::new(seat, &self.settings.session),
            peer,
            held: Held::NONE,
            opened_us: now_us,
            in_flight: 0,
            texts: 0,
            second: 0,
            refused: 0,
            accepted: 0,
            accepted_before: 0,
            heard: Heard::default(),
        });
        self.open += 1;
        self.counts.connection_accepted += 1;
        true
    }

    fn close(&mut self, slot: Slot) {
        let at = slot as usize;
        if let Some(mut connection) = self.connections.get_mut(at).and_then(Option::take) {
            self.generations[at] = self.generations[at].wrapping_add(1);
            self.partials.drop_line(&mut connection.held);
            self.open -= 1;
            self.counts.session_doubled -= u64::from(connection.session.load_doublings() > 0);
            let newest = connection.session.newest_job();
            connection.session.remember(&self.settings.session);
            self.extranonces.release(connection.session.extranonce1(), newest);
        }
    }

    fn count_answer(&mut self, status: u8) {
        let counts = &mut self.counts;
        *match ShareStatus::from_u8(status).unwrap_or(ShareStatus::Overload) {
            ShareStatus::Accepted => &mut counts.share_accepted,
            ShareStatus::Stale => &mut counts.share_stale_refused,
            ShareStatus::Duplicate => &mut counts.share_duplicate_refused,
            ShareStatus::LowDifficulty => &mut counts.share_low_difficulty_refused,
            ShareStatus::BadTime => &mut counts.share_bad_time_refused,
            ShareStatus::BadVersion => &mut counts.share_bad_version_refused,
            ShareStatus::Malformed => &mut counts.share_malformed_refused,
            ShareStatus::Unauthorized => &mut counts.share_unauthorized_refused,
            ShareStatus::Overload => &mut counts.share_overload_refused,
        } += 1;
    }

    fn connection_in_second(&mut self, slot: Slot, now_us: u64) -> Option<&mut Connection> {
        let connection = self.connections.get_mut(slot as usize).and_then(Option::as_mut)?;
        let second = (now_us / 1_000_000) as u32;
        if connection.second != second {
            connection.accepted_before = if connection.second.wrapping_add(1) == second { connection.accepted } else { 0 };
            connection.second = second;
            connection.accepted = 0;
            connection.refused = 0;
        }
        Some(connection)
    }

    fn accepted_one(&mut self, slot: Slot, now_us: u64) {
        if let Some(connection) = self.connection_in_second(slot, now_us) {
            connection.accepted += 1;
            connection.heard.accepted = connection.heard.accepted.saturating_add(1);
        }
    }

    /// Books one refusal of a connection; true when it is over its limit for the second. A connection may be refused as much as it was credited of late: a
    /// proxy with thousands of shares in flight has as many stale ones when a block comes.
    fn refused_too_often(&mut self, slot: Slot, now_us: u64) -> bool {
        let limit = self.settings.refused_per_s;
        let Some(connection) = self.connection_in_second(slot, now_us) else { return false };
        connection.refused += 1;
        connection.heard.refused = connection.heard.refused.saturating_add(1);
        connection.refused > limit.max(connection.accepted.saturating_add(connection.accepted_before))
    }

    /// Writes the newest job for a connection into `line_out`; false when there is nothing to send.
    fn notify(&mut self, at: usize, now_us: u64) -> bool {
        let Some(connection) = self.connections[at].as_mut() else { return false };
        let Some(job) = self.jobs.newest() else { return false };
        self.line_out.clear();
        let context = v1::Context { settings: &self.settings.session, jobs: &self.jobs, now_us, peer: Some(connection.peer) };
        connection.session.notify(&context, job, false, &mut self.line_out);
        let sent = !self.line_out.is_empty();
        self.counts.job_sent += u64::from(sent);
        sent
    }

    /// Books the share of this place for vardiff; true when a retarget stands in `line_out`.
    fn learn(&mut self, place: &Place) -> bool {
        self.retarget(place.slot as usize, place.arrival_us, |session, context, out| session.on_share(context, place.told, out))
    }

    /// Books the time without shares of a connection for vardiff; true when a retarget stands in `line_out`.
    fn look(&mut self, at: usize, now_us: u64) -> bool {
        self.retarget(at, now_us, |session, context, out| session.on_time(context, out))
    }

    /// Sets the doublings of a connection's difficulty; true when a retarget stands in `line_out`.
    fn set_load(&mut self, at: usize, doublings: u8, now_us: u64) -> bool {
        let Some(connection) = self.connections.get_mut(at).and_then(Option::as_mut) else { return false };
        let before = connection.session.load_doublings();
        self.line_out.clear();
        let context = v1::Context { settings: &self.settings.session, jobs: &self.jobs, now_us, peer: None };
        connection.session.set_load(&context, doublings, &mut self.line_out);
        let counts = &mut self.counts;
        counts.session_doubled = counts.session_doubled + u64::from(doublings > 0) - u64::from(before > 0);
        let sent = !self.line_out.is_empty();
        counts.difficulty_doubled += u64::from(sent && doublings > before);
        counts.job_sent += u64::from(sent);
        sent
    }

    fn retarget(&mut self, at: usize, now_us: u64, book: impl FnOnce(&mut Session, &v1::Context<'_>, &mut Vec<u8>)) -> bool {
        if self.settings.session.learning.is_none() {
            return false;
        }
        let Some(connection) = self.connections.get_mut(at).and_then(Option::as_mut) else { return false };
        let before = connection.session.difficulty();
        self.line_out.clear();
        let context = v1::Context { settings: &self.settings.session, jobs: &self.jobs, now_us, peer: None };
        book(&mut connection.session, &context, &mut self.line_out);
        if self.line_out.is_empty() {
            return false;
        }
        let counts = &mut self.counts;
        *if connection.session.difficulty() > before { &mut counts.difficulty_raised } else { &mut counts.difficulty_lowered } += 1;
        counts.job_sent += 1;
        true
    }

    /// Takes what the stalled connection had said before.
    fn take_left(&mut self, slot: Slot, now_us: u64) -> Taken {
        let mut bytes = std::mem::replace(&mut self.left, std::mem::take(&mut self.left_spare));
        let taken = self.take_bytes(slot, &bytes, now_us);
        bytes.clear();
        self.left_spare = bytes;
        taken
    }

    /// Takes the lines that end in `bytes`; the first of them may have begun earlier. Replies that may leave at once stand in `out`.
    fn take_bytes(&mut self, slot: Slot, bytes: &[u8], now_us: u64) -> Taken {
        let Some(connection) = self.connections.get_mut(slot as usize).and_then(Option::as_mut) else { return Taken::All };
        let mut rest = bytes;
        if connection.held.bytes() > 0 {
            let Some(end) = memchr::memchr(b'\n', bytes) else { return self.hold(slot, bytes) };
            let (last_part, behind) = bytes.split_at(end + 1);
            rest = behind;
            let mut line = std::mem::take(&mut self.assembled);
            self.partials.take(&mut connection.held, &mut line);
            line.extend_from_slice(last_part);
            let (taken, used) = self.take_lines(slot, &line, now_us);
            if taken == Taken::Stalled {
                self.leave(&line[used..], rest);
            }
            line.clear();
            self.assembled = line;
            if taken != Taken::All {
                return taken;
            }
        }
        let (taken, used) = self.take_lines(slot, rest, now_us);
        match taken {
            Taken::All if used < rest.len() => self.hold(slot, &rest[used..]),
            Taken::Stalled => {
                self.leave(&rest[used..], &[]);
                taken
            }
            _ => taken,
        }
    }

    /// Keeps what could not be taken now.
    fn leave(&mut self, first: &[u8], then: &[u8]) {
        self.left.clear();
        self.left.extend_from_slice(first);
        self.left.extend_from_slice(then);
    }

    /// Keeps the beginning of a line, or more of it; closes who sends a line without end.
    fn hold(&mut self, slot: Slot, bytes: &[u8]) -> Taken {
        let Some(connection) = self.connections.get_mut(slot as usize).and_then(Option::as_mut) else { return Taken::All };
        if connection.held.bytes() + bytes.len() > self.settings.line_bytes {
            return self.refuse_long_line();
        }
        if self.partials.append(&mut connection.held, bytes).is_err() {
            self.counts.connection_closed_unfinished += 1;
            self.out.extend_from_slice(NO_ROOM_FOR_PARTS);
            return Taken::Close;
        }
        Taken::All
    }

    fn refuse_long_line(&mut self) -> Taken {
        self.counts.line_refused += 1;
        self.out.extend_from_slice(LINE_TOO_LONG);
        Taken::Close
    }

    /// Takes lines from the start of `bytes` on: how it went, and the bytes that it took. What is left after `Taken::All` is the beginning of a line.
    fn take_lines(&mut self, slot: Slot, bytes: &[u8], now_us: u64) -> (Taken, usize) {
        let at = slot as usize;
        let mut used = 0;
        let mut credits = self.credits();
        while used < bytes.len() {
            if credits == 0 {
                // Publishing frees nothing by itself, but the next stage may have moved on.
                credits = self.credits();
                if credits == 0 {
                    return (Taken::Stalled, used);
                }
            }
            let Some(connection) = self.connections[at].as_mut() else { return (Taken::Close, used) };
            self.line_out.clear();
            let context = v1::Context { settings: &self.settings.session, jobs: &self.jobs, now_us, peer: Some(connection.peer) };
            match connection.session.read(&context, &mut self.reader, &bytes[used..], &mut self.line_out) {
                Ok((length, event)) => {
                    credits -= 1;
                    used += length;
                    self.counts.line_received += 1;
                    if !self.on_event(slot, event, now_us) {
                        return (Taken::Close, used);
                    }
                }
                Err(v1::Unread::Unfinished) => break,
                Err(v1::Unread::Later) => return (Taken::Stalled, used),
                Err(v1::Unread::TooLong) => return (self.refuse_long_line(), used),
            }
        }
        (Taken::All, used)
    }

    /// What a line came to; false when the connection is to be closed.
    fn on_event(&mut self, slot: Slot, event: v1::Event, now_us: u64) -> bool {
        let at = slot as usize;
        match event {
            v1::Event::Share(mut submit, id) => {
                let Some(connection) = self.connections[at].as_mut() else { return false };
                let place = Place {
                    arrival_us: now_us,
                    slot,
                    generation: self.generations[at],
                    id,
                    state: WAITING,
                    told: connection.session.told_work(),
                };
                submit.in_flight = self.fifo.push(place);
                connection.in_flight += 1;
                self.counts.share_received += 1;
                let lane = self.lane_of(&submit);
                self.staged[lane].push(submit);
                return true;
            }
            v1::Event::None => {}
            v1::Event::Refused => {
                self.counts.line_refused += 1;
                if self.refused_too_often(slot, now_us) {
                    self.counts.connection_closed_refusals += 1;
                    self.out.extend_from_slice(TOO_MANY_REFUSED);
                    return false;
                }
            }
            v1::Event::Subscribed(record) => {
                let mask = self.connections[at].as_ref().map(|connection| connection.session.version_mask_record(now_us));
                if !self.name(Dimension::session(&record)) || !mask.is_none_or(|mask| self.name(Dimension::version_mask(&mask))) {
                    return false;
                }
            }
            v1::Event::VersionMask(record) => {
                if !self.name(Dimension::version_mask(&record)) {
                    return false;
                }
            }
            v1::Event::Authorized(record) => {
                if !self.name(Dimension::worker(&record)) {
                    return false;
                }
            }
            v1::Event::Close(_) => {
                self.reply(slot);
                return false;
            }
        }
        self.reply(slot);
        true
    }

    /// Sends a record to the log; false when the log is full and cannot take it, so that the session or worker must not go on.
    fn name(&mut self, record: Result<Dimension, otedama_primitives::DimensionTooLong>) -> bool {
        match record {
            Ok(record) => {
                let pushed = self.ports.names.push(record);
                assert!(pushed.is_ok() || self.log_full, "no line is taken without room for its record");
                pushed.is_ok()
            }
            Err(error) => unreachable!("names and agents are cut to fit: {error}"),
        }
    }

    /// Sends `line_out`: at once, or behind the shares in flight of its connection.
    fn reply(&mut self, slot: Slot) {
        if self.line_out.is_empty() {
            return;
        }
        let at = slot as usize;
        let Some(connection) = self.connections[at].as_mut() else { return };
        if connection.in_flight == 0 {
            self.out.extend_from_slice(&self.line_out);
            return;
        }
        connection.in_flight += 1;
        connection.texts += 1;
        self.text_bytes += self.line_out.len();
        self.texts.push_back(self.line_out.as_slice().into());
        self.fifo.push(Place { arrival_us: 0, slot, generation: self.generations[at], id: IdToken::NULL, state: TEXT, told: Work::new(0) });
    }

    /// The lane that judges a share: by extranonces, so that a duplicate always meets its original.
    fn lane_of(&self, submit: &Submit) -> usize {
        let lanes = self.staged.len();
        if lanes == 1 {
            return 0;
        }
        let mixed = (submit.extranonce2 ^ self.seed ^ (u64::from(submit.extranonce1) << 17)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 32) as usize % lanes
    }
}

impl<D: Driver, C: Clock> Stage for Net<D, C> {
    fn step(&mut self) -> Regime {
        otedama_killpoint::pass("net.step");
        self.state.reader.begin_pass();
        let jobs = self.take_jobs();
        // Answers leave before a socket is read: the cycle of rings cannot fill up.
        let answered = self.answer();
        let broadcast = self.broadcast();
        if self.draining {
            if !self.finished && self.state.fifo.len() == 0 {
                for at in 0..self.state.connections.len() {
                    if self.state.connections[at].is_some() {
                        self.driver.close(at as Slot);
                        self.state.close(at as Slot);
                    }
                }
                self.driver.flush();
                self.finished = true;
                // Release pairs with the Acquire of the validate stages: everything sent is visible to them.
                self.state.ports.nets_running.fetch_sub(1, Ordering::Release);
            }
            return if answered { Regime::Processing } else { Regime::CaughtUp };
        }
        let read = self.read();
        if jobs || answered || broadcast { Regime::Processing } else { read }
    }

    fn housekeeping(&mut self) {
        self.check_deadlines();
        if !self.draining {
            self.watch_load();
        }
        // Relaxed: a state that the log publishes.
        self.state.log_full = self.state.ports.log_full.load(Ordering::Relaxed);
        let counts = &mut self.state.counts;
        counts.connection_refused = self.state.refused_here + self.driver.refused();
        counts.connection_closed_slow = self.closed_late + self.driver.closed_slow();
        counts.receive_unbuffered = self.driver.without_buffer();
        counts.connection_open = self.state.open as u64;
        counts.share_in_flight = (self.state.fifo.len() - self.state.texts.len()) as u64;
        counts.byte_sent = self.driver.bytes_sent();
        let tiers = self.state.reader.tiers();
        (counts.line_matched, counts.line_scanned, counts.line_odd) = (tiers.template, tiers.scanned, tiers.slow);
        counts.publish(&self.state.ports.metrics);
        self.state.ports.submits.iter().for_each(Tx::publish);
        self.state.ports.answers.publish();
        self.state.ports.names.publish();
        self.state.ports.jobs.publish();
        if !self.histogram.is_empty()
            && let Some(empty) = self.state.ports.latency.empty.pop()
        {
            let full = std::mem::replace(&mut self.histogram, empty);
            if let Err(mut full) = self.state.ports.latency.full.push(full) {
                // Stats is behind by every histogram there is: this one is counted there next time.
                std::mem::swap(&mut self.histogram, &mut full);
            }
        }
    }

    fn wait(&mut self, timeout: Duration) -> bool {
        if !self.poll(timeout) {
            std::thread::sleep(POLL_RETRY.min(timeout));
        }
        self.unread.waited(self.clock.now_us());
        true
    }

    fn can_wait(&self) -> bool {
        true
    }

    fn expects_answers(&self) -> bool {
        self.state.fifo.len() > 0
    }

    fn drain(&mut self) {
        self.draining = true;
        self.driver.accept(false);
        self.stalled = None;
    }

    fn is_drained(&self) -> bool {
        self.finished
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_failure_is_new_once_and_there_are_never_more_than_can_be_told() {
        let mut failures = PollFailures::default();
        let error = io::Error::from_raw_os_error;
        assert!(failures.is_new(&error(9)));
        assert!(!failures.is_new(&error(9)));
        assert!(failures.is_new(&error(12)), "another number");
        assert!(failures.is_new(&io::Error::other("no number")));
        assert!(!failures.is_new(&io::Error::other("nor this")) && !failures.is_new(&error(12)) && !failures.is_new(&error(9)));
        let told = 3 + (100..200).filter(|&number| failures.is_new(&error(number))).count();
        assert_eq!(told, FAILURES_TOLD);
    }
}
