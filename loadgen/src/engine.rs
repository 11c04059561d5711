//! Many sessions on one thread: sockets, epoll, pacing, reconnects.
use crate::cpu;
use crate::ledger::{Ledger, LedgerError, LedgerSink};
use crate::session::{Behaviour, Mode, Session, SessionError, Shared};
use crate::socket::{self, SocketOrder};
use crate::totals::{Latencies, LiveCounters};
use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Bytes read at once; also the longest line that is taken.
const READ_BYTES: usize = 1 << 18;
/// Connections that are set up at the same time: under any backlog.
const CONNECTING_MAX: usize = 128;
/// Wait before a broken connection is tried again.
const BACK_OFF: Duration = Duration::from_millis(20);
/// Hashing between two looks at the sockets, where shares are easy.
const SLICE: Duration = Duration::from_micros(500);
/// Hashing for one connection between two looks at the sockets, where shares are hard.
const SLICE_ALONE: Duration = Duration::from_millis(2);
/// Longest sleep: how late a stop flag or a paced share may be seen.
const SLEEP_MAX: Duration = Duration::from_millis(20);
/// Sleep of a farm that keeps a pace.
const SLEEP_PACED: Duration = Duration::from_millis(2);
/// How long lines of the ledger wait in memory at most.
const LEDGER_FLUSH: Duration = Duration::from_millis(100);
/// A run that ends by its number of shares gives up on a server that owes answers and has sent none for so long.
const STALL: Duration = Duration::from_secs(15);
/// Open loop: how far ahead shares are mined, so that their hashing is not part of their latency.
const AHEAD_US: u64 = 2_000;
/// Open loop: how many wait at most.
const AHEAD_SHARES: usize = 256;
/// Rounds that are made up for at once: a write of 10 KB.
const CATCH_UP_ROUNDS: u64 = 64;
/// Open loop: shares that are written or mined between two looks at the sockets, so that answers are not read late.
const BETWEEN_LOOKS: usize = 8;
/// Open loop: gaps shorter than this are spun through; a sleep ends so long before the next share is due, as waking up takes its time.
const WAKE_UP_US: u64 = 60;
/// Event token of the timer; connections count from 0.
const TIMER: Token = Token(usize::MAX);
/// Outages that are remembered: a connection that flaps fills no memory.
const OUTAGES_KEPT: usize = 1_000;
/// Connections from which on an end is a reset: TIME_WAIT would fill the table of ports.
const RESET_FROM: usize = 5_000;

/// A farm as it is ordered.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Where the server listens.
    pub target: SocketAddr,
    /// Connections to hold.
    pub connections: usize,
    /// What each does.
    pub behaviour: Behaviour,
    /// Connect again when a connection breaks.
    pub reconnect: bool,
    /// Where submits and their answers are written down.
    pub ledger: LedgerSink,
    /// At most so many shares a second from each connection; 0 for as many as the closed loop gives.
    pub pace_shares_per_s: f64,
    /// Open loop: shares per second of the whole farm, sent by the clock whatever the answers; 0 for the closed loop. Needs `Behaviour::open_loop`.
    pub rate_shares_per_s: f64,
    /// Connections are started evenly over this time.
    pub ramp: Duration,
}

impl EngineConfig {
    /// 64 connections in a closed loop without a limit.
    pub fn new(target: SocketAddr) -> Self {
        Self {
            target,
            connections: 64,
            behaviour: Behaviour::default(),
            reconnect: false,
            ledger: LedgerSink::None,
            pace_shares_per_s: 0.0,
            rate_shares_per_s: 0.0,
            ramp: Duration::ZERO,
        }
    }
}

/// Why a farm cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The timer of the open loop.
    #[error("cannot {operation} a timer: {source}")]
    Timer {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// More sockets than this process may open.
    #[error(
        "{connections} connections need more than the {limit} files that this process may open (ulimit -Hn); spread them with --processes"
    )]
    FileLimit {
        /// Connections ordered.
        connections: usize,
        /// The limit.
        limit: u64,
    },
    /// epoll.
    #[error("cannot {operation} epoll: {source}")]
    Poll {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Not every connection was ready in time.
    #[error("{ready} of {connections} connections to {target} were ready after {seconds:.1} s; last trouble: {trouble}")]
    NotReady {
        /// Where to.
        target: SocketAddr,
        /// Connections that were authorized and had a job.
        ready: usize,
        /// Connections ordered.
        connections: usize,
        /// Seconds waited.
        seconds: f64,
        /// What went wrong last.
        trouble: String,
    },
    /// Every connection is gone and none comes back.
    #[error("every connection to {target} broke; last trouble: {trouble}")]
    AllBroken {
        /// Where to.
        target: SocketAddr,
        /// What went wrong last.
        trouble: String,
    },
    /// The server's CPU time.
    #[error(transparent)]
    Cpu(#[from] cpu::CpuError),
}

struct Connection {
    stream: Option<TcpStream>,
    is_up: bool,
    session: Session,
    /// Bytes that the socket did not take yet.
    backlog: Vec<u8>,
    /// Start of a line whose end has not come.
    partial: Vec<u8>,
    is_queued: bool,
    is_counted_ready: bool,
    paced_from: Instant,
    paced_sent: u64,
    /// Counts the connections that this one has been.
    life: u32,
}

/// The timetable of an open loop: share `next` leaves `next` intervals after `start_us`, from the connections in turn.
struct Schedule {
    interval_us: f64,
    start_us: u64,
    next: u64,
    /// The connection whose turn is next.
    turn: usize,
    /// What is being made up for, while the generator is whole rounds late.
    catching_up: Option<CatchingUp>,
    running: bool,
    timer: OwnedFd,
    /// Mined and waiting for their time, in order.
    ahead: VecDeque<Ahead>,
    spare: Vec<Vec<u8>>,
    lateness: Latencies,
    /// Shares that the timetable wanted out by the end of a stretch and that the generator had not got to.
    behind: u64,
}

/// Whole rounds of turns that are overdue: each connection writes its share of all of them at once, as a machine does whose segments could not leave.
/// One write for each share would keep a late generator late: the system call is most of what a share costs it.
struct CatchingUp {
    rounds: u64,
    /// Connections that are done.
    done: usize,
    /// Rounds that the connection in turn has mined.
    made: u64,
}

/// A share that waits for its time.
struct Ahead {
    due_us: u64,
    index: usize,
    life: u32,
    measured: bool,
    line: Vec<u8>,
}

impl Schedule {
    fn new(rate: f64, poll: &Poll) -> Result<Self, EngineError> {
        use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
        let failed = |operation| move |source: io::Error| EngineError::Timer { operation, source };
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)
            .map_err(|error| failed("create")(error.into()))?;
        poll.registry().register(&mut SourceFd(&timer.as_raw_fd()), TIMER, Interest::READABLE).map_err(failed("watch"))?;
        Ok(Self {
            interval_us: 1e6 / rate,
            start_us: 0,
            next: 0,
            turn: 0,
            catching_up: None,
            running: false,
            timer,
            ahead: VecDeque::new(),
            spare: Vec::new(),
            lateness: Latencies::default(),
            behind: 0,
        })
    }

    fn due_us(&self) -> u64 {
        self.due_of_us(self.next)
    }

    fn due_of_us(&self, share: u64) -> u64 {
        self.start_us + (share as f64 * self.interval_us) as u64
    }

    /// Shares that are due by now and whose turn has not come.
    fn overdue(&self, now_us: u64) -> u64 {
        let due = (now_us.saturating_sub(self.start_us) as f64 / self.interval_us) as u64;
        due.saturating_sub(self.next)
    }

    /// Whole rounds of `connections` turns that should have left by now.
    fn rounds_late(&self, now_us: u64, connections: usize) -> u64 {
        (self.overdue(now_us) / connections as u64).min(CATCH_UP_ROUNDS)
    }

    fn begin(&mut self, now_us: u64) {
        (self.running, self.start_us, self.next) = (true, now_us, 0);
    }

    fn pass_turn(&mut self, connections: usize) {
        self.next += 1;
        self.turn = (self.turn + 1) % connections;
    }

    /// Wakes the poll in so many microseconds, at least one.
    fn arm(&self, in_us: u64) -> Result<(), EngineError> {
        use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Timespec { tv_sec: (in_us / 1_000_000) as i64, tv_nsec: ((in_us % 1_000_000).max(1) * 1_000) as i64 };
        match timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &Itimerspec { it_interval: zero, it_value: value }) {
            Ok(_) => Ok(()),
            Err(error) => Err(EngineError::Timer { operation: "set", source: error.into() }),
        }
    }
}

/// A farm in motion; belongs to one thread.
pub struct Engine {
    config: EngineConfig,
    poll: Poll,
    events: Events,
    connections: Vec<Connection>,
    /// Counts, latencies, ledger.
    pub shared: Shared,
    hungry: VecDeque<usize>,
    retries: VecDeque<(Instant, usize)>,
    connecting: usize,
    ready: usize,
    dead: usize,
    buffer: Box<[u8]>,
    out: Vec<u8>,
    started: Instant,
    blocked: Duration,
    /// Part of `blocked` that was spun through.
    spun: Duration,
    schedule: Option<Schedule>,
    /// When the first connection of a complete farm broke, while it is not complete again.
    incomplete_since: Option<Instant>,
    outages_s: Vec<f64>,
    ledger_flushed: Instant,
    trouble: String,
    live: Option<Arc<LiveCounters>>,
}

impl Engine {
    /// Prepares a farm; no connection is made before it is pumped.
    pub fn new(config: EngineConfig) -> Result<Self, EngineError> {
        let limit = raise_file_limit();
        // A margin for epoll, the timer, the ledger and what the process has open already.
        if limit < config.connections as u64 + 32 {
            return Err(EngineError::FileLimit { connections: config.connections, limit });
        }
        let poll = Poll::new().map_err(|source| EngineError::Poll { operation: "create", source })?;
        let now = Instant::now();
        let ledger = Ledger::open(&config.ledger)?;
        let connections = (0..config.connections)
            .map(|index| Connection {
                stream: None,
                is_up: false,
                session: Session::new(index, &config.behaviour),
                backlog: Vec::new(),
                partial: Vec::new(),
                is_queued: false,
                is_counted_ready: false,
                paced_from: now,
                paced_sent: 0,
                life: 0,
            })
            .collect();
        let schedule = if config.rate_shares_per_s > 0.0 { Some(Schedule::new(config.rate_shares_per_s, &poll)?) } else { None };
        let step = config.ramp.div_f64(config.connections.max(1) as f64);
        Ok(Self {
            shared: Shared::new(config.behaviour.clone(), config.connections, ledger),
            retries: (0..config.connections).map(|index| (now + step.mul_f64(index as f64), index)).collect(),
            schedule,
            spun: Duration::ZERO,
            incomplete_since: None,
            outages_s: Vec::new(),
            config,
            poll,
            events: Events::with_capacity(1024),
            connections,
            hungry: VecDeque::new(),
            connecting: 0,
            ready: 0,
            dead: 0,
            buffer: vec![0; READ_BYTES].into(),
            out: Vec::with_capacity(1 << 16),
            started: now,
            blocked: Duration::ZERO,
            ledger_flushed: now,
            trouble: "none".into(),
            live: None,
        })
    }

    /// Counters for another thread, brought up to date after every pass.
    pub fn publish_to(&mut self, live: Arc<LiveCounters>) {
        self.live = Some(live);
    }

    /// Connections that are authorized and have a job.
    pub fn ready(&self) -> usize {
        self.ready
    }

    /// For each time that connections of a complete farm broke: seconds from the first of them until every worker of every connection was authorized again and
    /// had a job. The first `OUTAGES_KEPT`; one that lasts still is not among them.
    pub fn outages_s(&self) -> &[f64] {
        &self.outages_s
    }

    /// Hashes that the first connection needs for a share on average; None where nothing is mined.
    pub fn hashes_per_share(&self) -> Option<u64> {
        let mines = self.config.behaviour.mode == Mode::Valid;
        self.connections.first().filter(|_| mines).map(|connection| connection.session.hashes_per_share())
    }

    /// Submits without an answer yet.
    pub fn outstanding(&self) -> u64 {
        let totals = &self.shared.totals;
        totals.submits - totals.answered() - totals.unanswered
    }

    /// Time spent waiting for the server so far.
    pub fn blocked(&self) -> Duration {
        self.blocked
    }

    /// The part of it that was spun through, which costs CPU time but is no work.
    pub fn spun(&self) -> Duration {
        self.spun
    }

    /// Open loop: how late shares left while the connection could take them, microseconds, and how many the generator had not got to in time.
    pub fn lateness(&mut self) -> Option<(&hdrhistogram::Histogram<u64>, u64)> {
        self.schedule.as_mut().map(|schedule| (schedule.lateness.histogram(), schedule.behind))
    }

    /// What went wrong last.
    pub fn trouble(&self) -> &str {
        &self.trouble
    }

    /// Connects until every connection is ready, without sending a share unless `sending`.
    pub fn set_up(&mut self, limit: Duration, sending: bool, stop: &AtomicBool) -> Result<(), EngineError> {
        let started = Instant::now();
        // Relaxed here and below: the flag carries no data.
        while self.ready < self.connections.len() && !stop.load(Ordering::Relaxed) {
            if started.elapsed() >= limit {
                return Err(self.not_ready(started.elapsed()));
            }
            self.turn(started + limit, sending, true)?;
        }
        Ok(())
    }

    /// The error of a farm that is not complete after so long.
    pub fn not_ready(&self, after: Duration) -> EngineError {
        EngineError::NotReady {
            target: self.config.target,
            ready: self.ready,
            connections: self.connections.len(),
            seconds: after.as_secs_f64(),
            trouble: self.trouble.clone(),
        }
    }

    /// Runs the loop, open or closed, until `until`, the stop flag, or the last of the submits that may be sent.
    pub fn pump(&mut self, until: Instant, stop: &AtomicBool) -> Result<(), EngineError> {
        let now_us = self.elapsed_us();
        match &mut self.schedule {
            Some(schedule) if schedule.running => {}
            Some(schedule) => schedule.begin(now_us),
            None => (0..self.connections.len()).for_each(|index| self.queue(index)),
        }
        let is_counted = self.shared.submits_left != u64::MAX;
        let (mut answered, mut answered_at) = (self.shared.totals.answered(), Instant::now());
        loop {
            let now = Instant::now();
            let owed = self.outstanding() - self.shared.passed_over;
            if now >= until || stop.load(Ordering::Relaxed) || (self.shared.submits_left == 0 && owed == 0) {
                break;
            }
            if self.shared.totals.answered() != answered || owed == 0 {
                (answered, answered_at) = (self.shared.totals.answered(), now);
            } else if is_counted && now - answered_at >= STALL {
                self.trouble = format!("no answer for {} s, {owed} submits in flight", STALL.as_secs());
                break;
            }
            self.turn(until, true, false)?;
            if self.dead == self.connections.len() {
                return Err(EngineError::AllBroken { target: self.config.target, trouble: self.trouble.clone() });
            }
        }
        Ok(())
    }

    /// Sends nothing more and takes answers until there is none left to come, or until the limit.
    pub fn drain(&mut self, limit: Duration) -> Result<(), EngineError> {
        self.halt_schedule()?;
        let until = Instant::now() + limit;
        while self.outstanding() > 0 && Instant::now() < until && self.dead < self.connections.len() {
            self.turn(until, false, false)?;
        }
        Ok(())
    }

    /// Closes every connection, books what has no answer, and closes the ledger; its text where it was kept in memory.
    pub fn finish(&mut self) -> Result<Option<Vec<u8>>, EngineError> {
        self.shared.now_us = self.elapsed_us();
        for connection in &mut self.connections {
            connection.stream = None;
            connection.session.abandon(&mut self.shared);
        }
        self.publish();
        match self.shared.ledger.take() {
            Some(ledger) => Ok(ledger.close()?),
            None => Ok(None),
        }
    }

    /// One pass: connect, poll, read, and hash and write for a slice. `setting_up`: failures are tried again whatever the orders.
    fn turn(&mut self, until: Instant, sending: bool, setting_up: bool) -> Result<(), EngineError> {
        if sending && !setting_up && self.schedule.is_some() {
            return self.turn_by_the_clock(until);
        }
        let now = Instant::now();
        self.connect_due(now, setting_up);
        let paced = self.config.pace_shares_per_s > 0.0;
        if sending && paced {
            for index in 0..self.connections.len() {
                self.queue(index);
            }
        }
        let timeout = if sending && !self.hungry.is_empty() {
            Duration::ZERO
        } else {
            let retry = self.retries.front().filter(|_| self.connecting < CONNECTING_MAX);
            let retry_in = retry.map_or(SLEEP_MAX, |(when, _)| when.saturating_duration_since(now));
            let sleep = if sending && paced { SLEEP_PACED } else { SLEEP_MAX };
            sleep.min(retry_in).min(until.saturating_duration_since(now))
        };
        self.poll_once(timeout)?;
        if !timeout.is_zero() {
            self.blocked += now.elapsed();
        }
        self.on_events(setting_up);
        if sending {
            self.mine(Instant::now() + SLICE, setting_up);
        }
        self.flush_ledger()?;
        self.publish();
        Ok(())
    }

    fn poll_once(&mut self, timeout: Duration) -> Result<(), EngineError> {
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                self.events.clear();
                Ok(())
            }
            Err(source) => Err(EngineError::Poll { operation: "wait on", source }),
        }
    }

    fn on_events(&mut self, setting_up: bool) {
        // Taken out for the time of the loop; an empty one costs no allocation.
        let events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        for event in events.iter().filter(|event| event.token() != TIMER) {
            let index = event.token().0;
            if event.is_writable() {
                self.on_writable(index, setting_up);
            }
            if event.is_readable() || event.is_read_closed() || event.is_error() {
                self.on_readable(index, event.is_read_closed() || event.is_error(), setting_up);
            }
            self.queue(index);
        }
        self.events = events;
    }

    fn elapsed_us(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }

    /// One pass of the open loop: what is due leaves, what will be due soon is mined, and the rest of the time is the sockets'.
    fn turn_by_the_clock(&mut self, until: Instant) -> Result<(), EngineError> {
        let now = Instant::now();
        let mut worked = false;
        for _ in 0..BETWEEN_LOOKS {
            if !self.step_schedule(until) {
                break;
            }
            worked = true;
        }
        let now_us = self.elapsed_us();
        let next_us = self.schedule.as_ref().map_or(0, |schedule| match schedule.ahead.front() {
            Some(front) => front.due_us,
            None => schedule.due_us(),
        });
        let gap_us =
            next_us.saturating_sub(now_us).min(SLEEP_MAX.as_micros() as u64).min(until.saturating_duration_since(now).as_micros() as u64);
        let sleeps = !worked && gap_us > WAKE_UP_US;
        if sleeps && let Some(schedule) = &self.schedule {
            schedule.arm(gap_us - WAKE_UP_US)?;
        }
        let asked = Instant::now();
        self.poll_once(if sleeps { SLEEP_MAX } else { Duration::ZERO })?;
        if sleeps {
            self.blocked += asked.elapsed();
        }
        let idle = !sleeps && !worked && self.events.is_empty();
        self.on_events(false);
        self.connect_due(now, false);
        self.flush_ledger()?;
        self.publish();
        if idle {
            let spun = now.elapsed();
            self.blocked += spun;
            self.spun += spun;
        }
        Ok(())
    }

    /// Writes the next share if it is due, or mines one ahead; false when neither is wanted now.
    fn step_schedule(&mut self, until: Instant) -> bool {
        let now_us = self.elapsed_us();
        let Some(schedule) = &mut self.schedule else { return false };
        if schedule.ahead.front().is_some_and(|front| front.due_us <= now_us) {
            self.write_ahead(now_us);
            return true;
        }
        if !schedule.running {
            return false;
        }
        if schedule.catching_up.is_none() && schedule.ahead.is_empty() {
            let rounds = schedule.rounds_late(now_us, self.connections.len());
            schedule.catching_up = (rounds > 0).then_some(CatchingUp { rounds, done: 0, made: 0 });
        }
        if schedule.catching_up.is_some() {
            return self.shared.submits_left > 0 && self.catch_up(now_us, until);
        }
        let (index, due_us) = (schedule.turn, schedule.due_us());
        if due_us > now_us + AHEAD_US || schedule.ahead.len() >= AHEAD_SHARES || self.shared.submits_left == 0 {
            return false;
        }
        let connection = &mut self.connections[index];
        let mut line = schedule.spare.pop().unwrap_or_default();
        line.clear();
        let count = if connection.is_up {
            connection.session.fill(&mut self.shared, 1, &mut line, until.min(Instant::now() + SLICE_ALONE))
        } else {
            0
        };
        if count == 0 {
            schedule.spare.push(line);
            if connection.is_up && connection.session.room(&self.shared) > 0 {
                // A hard share is still being looked for: its turn stays.
                return due_us <= now_us;
            }
            self.shared.totals.missed += 1;
            schedule.pass_turn(self.connections.len());
            return true;
        }
        connection.session.stamp(count, due_us);
        schedule.ahead.push_back(Ahead { due_us, index, life: connection.life, measured: self.shared.latencies.recording, line });
        schedule.pass_turn(self.connections.len());
        true
    }

    /// Mines and writes what one connection owes of the rounds that are made up for.
    fn catch_up(&mut self, now_us: u64, until: Instant) -> bool {
        let count = self.connections.len();
        let Some(schedule) = &mut self.schedule else { return false };
        let Some(late) = &mut schedule.catching_up else { return false };
        let (index, owed) = ((schedule.turn + late.done) % count, late.rounds - late.made);
        let first = schedule.next + late.done as u64 + late.made * count as u64;
        let connection = &mut self.connections[index];
        let is_up = connection.is_up;
        self.out.clear();
        let mined = if is_up {
            connection.session.fill(&mut self.shared, owed as usize, &mut self.out, until.min(Instant::now() + SLICE_ALONE)) as u64
        } else {
            0
        };
        late.made += mined;
        let is_mining = mined < owed && is_up && connection.session.room(&self.shared) > 0;
        if !is_mining {
            // What is beyond the last of the ordered shares was never due.
            self.shared.totals.missed += if self.shared.submits_left > 0 { owed - mined } else { 0 };
            (late.done, late.made) = (late.done + 1, 0);
        }
        if late.done == count {
            schedule.next += late.rounds * count as u64;
            schedule.catching_up = None;
        }
        connection.session.stamp_each(mined as usize, |at| schedule.due_of_us(first + at as u64 * count as u64));
        if self.shared.latencies.recording {
            for at in 0..mined {
                schedule.lateness.record(now_us.saturating_sub(schedule.due_of_us(first + at * count as u64)));
            }
        }
        if mined > 0 {
            if connection.backlog.is_empty() {
                self.write_out(index, false);
            } else {
                connection.backlog.extend_from_slice(&self.out);
            }
        }
        true
    }

    /// Writes the share that waits in front.
    fn write_ahead(&mut self, now_us: u64) {
        let Some(schedule) = &mut self.schedule else { return };
        let Some(ahead) = schedule.ahead.pop_front() else { return };
        let connection = &mut self.connections[ahead.index];
        // A connection that broke has booked the share with all others in flight.
        if connection.life == ahead.life && connection.is_up {
            if !connection.backlog.is_empty() {
                connection.backlog.extend_from_slice(&ahead.line);
            } else {
                if ahead.measured {
                    schedule.lateness.record(now_us.saturating_sub(ahead.due_us));
                }
                self.out.clear();
                self.out.extend_from_slice(&ahead.line);
                self.write_out(ahead.index, false);
            }
        }
        if let Some(schedule) = &mut self.schedule {
            schedule.spare.push(ahead.line);
        }
    }

    /// Ends the timetable: what was mined leaves at its time, a few milliseconds from now, and what the generator had not got to is counted.
    fn halt_schedule(&mut self) -> Result<(), EngineError> {
        let now_us = self.elapsed_us();
        let Some(schedule) = &mut self.schedule else { return Ok(()) };
        if !std::mem::take(&mut schedule.running) {
            return Ok(());
        }
        if self.shared.submits_left > 0 {
            let made = schedule.catching_up.take().map_or(0, |late| late.done as u64 * late.rounds + late.made);
            schedule.behind += schedule.overdue(now_us).saturating_sub(made);
        }
        let until = Instant::now() + Duration::from_micros(2 * AHEAD_US);
        while self.schedule.as_ref().is_some_and(|schedule| !schedule.ahead.is_empty()) {
            self.turn_by_the_clock(until)?;
        }
        Ok(())
    }

    fn publish(&self) {
        if let Some(live) = &self.live {
            live.publish(&self.shared.totals, self.ready as u64, self.started.elapsed().as_micros() as u64);
        }
    }

    fn flush_ledger(&mut self) -> Result<(), EngineError> {
        if let Some(ledger) = &mut self.shared.ledger
            && (ledger.is_full() || self.ledger_flushed.elapsed() >= LEDGER_FLUSH)
        {
            ledger.flush()?;
            self.ledger_flushed = Instant::now();
        }
        Ok(())
    }

    fn connect_due(&mut self, now: Instant, setting_up: bool) {
        while self.connecting < CONNECTING_MAX && self.retries.front().is_some_and(|(when, _)| *when <= now) {
            let Some((_, index)) = self.retries.pop_front() else { break };
            let number = self.config.behaviour.first_connection + index;
            let reset_on_close = self.connections.len() >= RESET_FROM || number >= socket::PER_SOURCE;
            let order = SocketOrder { source: socket::source_of(self.config.target, number), receive_bytes: None, reset_on_close };
            let connected = socket::connect(self.config.target, order).and_then(|mut stream| {
                self.poll.registry().register(&mut stream, Token(index), Interest::READABLE | Interest::WRITABLE)?;
                Ok(stream)
            });
            match connected {
                Ok(stream) => {
                    self.connections[index].stream = Some(stream);
                    self.connecting += 1;
                }
                Err(error) => self.down(index, &format!("connect: {error}"), setting_up),
            }
        }
    }

    fn on_writable(&mut self, index: usize, setting_up: bool) {
        let connection = &mut self.connections[index];
        let Some(stream) = &connection.stream else { return };
        if !connection.is_up {
            // The classic test of a non-blocking connect: an error is pending, or there is a peer.
            let outcome = match stream.take_error() {
                Ok(None) => stream.peer_addr().and_then(|_| stream.set_nodelay(true)),
                Ok(Some(error)) | Err(error) => Err(error),
            };
            match outcome {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotConnected => return,
                Err(error) => return self.down(index, &format!("connect: {error}"), setting_up),
            }
            connection.is_up = true;
            self.connecting -= 1;
            self.shared.totals.connects += 1;
            self.out.clear();
            connection.session.hello(&self.shared, &mut self.out);
            self.write_out(index, setting_up);
        } else if !connection.backlog.is_empty() {
            self.out.clear();
            std::mem::swap(&mut self.out, &mut connection.backlog);
            self.write_out(index, setting_up);
        }
    }

    /// Writes `out` to a connection; what does not fit becomes its backlog.
    fn write_out(&mut self, index: usize, setting_up: bool) {
        let connection = &mut self.connections[index];
        let mut at = 0;
        let error = loop {
            let Some(stream) = &mut connection.stream else { return };
            match stream.write(&self.out[at..]) {
                Ok(0) => break Some("write: the connection takes nothing".to_owned()),
                Ok(count) => {
                    at += count;
                    if at == self.out.len() {
                        break None;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    connection.backlog.extend_from_slice(&self.out[at..]);
                    break None;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Some(format!("write: {error}")),
            }
        };
        if let Some(error) = error {
            self.down(index, &error, setting_up);
        }
    }

    /// Reads what there is; `to_end` when the peer has closed its side: the end must be read too, as no further event tells of it.
    fn on_readable(&mut self, index: usize, to_end: bool, setting_up: bool) {
        loop {
            let connection = &mut self.connections[index];
            if !connection.is_up {
                return;
            }
            let Some(stream) = &mut connection.stream else { return };
            let kept = connection.partial.len();
            self.buffer[..kept].copy_from_slice(&connection.partial);
            let space = self.buffer.len() - kept;
            let count = match stream.read(&mut self.buffer[kept..]) {
                Ok(0) => return self.down(index, "the server closed the connection", setting_up),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return self.down(index, &format!("read: {error}"), setting_up),
            };
            let now_us = self.started.elapsed().as_micros() as u64;
            self.shared.now_us = now_us;
            let data = &self.buffer[..kept + count];
            let taken = match connection.session.on_bytes(&mut self.shared, data, now_us) {
                Ok(taken) => taken,
                Err(error) => return self.fail(index, &error, setting_up),
            };
            connection.partial.clear();
            connection.partial.extend_from_slice(&data[taken..]);
            if connection.partial.len() == self.buffer.len() {
                return self.down(index, "the server sent a line without an end", setting_up);
            }
            if !connection.is_counted_ready && connection.session.is_ready() {
                connection.is_counted_ready = true;
                connection.paced_from = Instant::now();
                connection.paced_sent = 0;
                self.ready += 1;
                if self.ready == self.connections.len()
                    && let Some(since) = self.incomplete_since.take()
                    && self.outages_s.len() < OUTAGES_KEPT
                {
                    self.outages_s.push(since.elapsed().as_secs_f64());
                }
            }
            // A read that did not fill the buffer has emptied an edge-triggered stream (epoll(7)): no second read to be told so.
            if count < space && !to_end {
                return;
            }
        }
    }

    fn fail(&mut self, index: usize, error: &SessionError, setting_up: bool) {
        self.down(index, &error.to_string(), setting_up);
    }

    /// The connection is gone.
    fn down(&mut self, index: usize, trouble: &str, setting_up: bool) {
        self.shared.now_us = self.started.elapsed().as_micros() as u64;
        self.trouble.clear();
        self.trouble.push_str(trouble);
        let connection = &mut self.connections[index];
        if connection.is_up {
            self.shared.totals.disconnects += 1;
        } else if connection.stream.is_some() {
            self.connecting -= 1;
        }
        // Dropping a stream closes it, which takes it out of epoll.
        connection.stream = None;
        connection.is_up = false;
        connection.life += 1;
        connection.backlog.clear();
        connection.partial.clear();
        connection.session.abandon(&mut self.shared);
        if connection.is_counted_ready {
            connection.is_counted_ready = false;
            if self.ready == self.connections.len() {
                self.incomplete_since = Some(Instant::now());
            }
            self.ready -= 1;
        }
        if self.config.reconnect || setting_up {
            self.retries.push_back((Instant::now() + BACK_OFF, index));
        } else {
            self.dead += 1;
        }
    }

    /// Breaks every connection at once; what was in flight is unanswered, and all are tried again.
    pub fn break_all(&mut self) {
        for index in 0..self.connections.len() {
            if self.connections[index].stream.is_some() {
                self.down(index, "broken on purpose", true);
            }
        }
    }

    /// Shares that the pace allows a connection now.
    fn allowance(&mut self, index: usize) -> usize {
        let rate = self.config.pace_shares_per_s;
        if rate <= 0.0 {
            return usize::MAX;
        }
        let connection = &mut self.connections[index];
        let due = (connection.paced_from.elapsed().as_secs_f64() * rate) as u64;
        // What a slow server held back is not made up for in a burst.
        let depth = self.shared.behaviour.depth as u64;
        connection.paced_sent = connection.paced_sent.max(due.saturating_sub(depth));
        (due - connection.paced_sent.min(due)) as usize
    }

    /// Puts a connection in line for hashing if it has room.
    fn queue(&mut self, index: usize) {
        if self.shared.behaviour.mode == Mode::Idle || self.schedule.is_some() || self.connections[index].is_queued {
            return;
        }
        let connection = &self.connections[index];
        let wants = connection.is_up && connection.backlog.is_empty() && connection.session.room(&self.shared) > 0;
        if wants && self.allowance(index) > 0 {
            self.connections[index].is_queued = true;
            self.hungry.push_back(index);
        }
    }

    fn mine(&mut self, until: Instant, setting_up: bool) {
        while let Some(index) = self.hungry.pop_front() {
            self.connections[index].is_queued = false;
            let allowance = self.allowance(index);
            let connection = &mut self.connections[index];
            if !connection.is_up || !connection.backlog.is_empty() {
                continue;
            }
            self.out.clear();
            let count = connection.session.fill(&mut self.shared, allowance, &mut self.out, until.max(Instant::now() + SLICE_ALONE));
            if count > 0 {
                connection.paced_sent += count as u64;
                connection.session.stamp(count, self.started.elapsed().as_micros() as u64);
                self.write_out(index, setting_up);
            }
            self.queue(index);
            if Instant::now() >= until {
                break;
            }
        }
    }
}

/// Sockets are files: takes what the hard limit gives, and returns it.
pub fn raise_file_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // An error leaves the limit as it is.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}
