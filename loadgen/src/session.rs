//! One simulated miner: the protocol and the mining of one connection, without sockets or clocks.
//!
//! Bytes from the server go into `on_bytes`, lines for the server come out of `hello` and `fill`. Every submit carries the set of answers that the
//! rules allow; an answer outside of it is wrong. What is sent depends on the seed and on what the server said, on nothing else.
use crate::answer::{AcceptedShape, Message, Verdict, error_of};
use crate::dialect::{DIALECTS, Dialect, Fields, Flaw, Style, put_hex_tail, put_hex32};
use crate::hash::{LANES, OpenHeader, meets, merkle_roots, share_hash};
use crate::job::{Job, JobCache};
use crate::ledger::Ledger;
use crate::random;
use crate::totals::{Latencies, Totals, WRONG_KEPT, WrongAnswer};
use clap::ValueEnum;
use otedama_primitives::{Difficulty, ShareStatus, Target, Work, decode_hex, encode_hex};
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

/// What the farm does once it is authorized.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Mode {
    /// Mines for real and judges every answer.
    #[default]
    Valid,
    /// Sends shares that look valid but were never hashed; answers are counted by code and not judged.
    Junk,
    /// Says nothing more.
    Idle,
}

impl Mode {
    /// Key in the command line and in the reports.
    pub fn label(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Junk => "junk",
            Self::Idle => "idle",
        }
    }
}

/// What every session of a farm is told.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// What to do once authorized.
    pub mode: Mode,
    /// Submits in flight per connection.
    pub depth: usize,
    /// Seed of everything that varies.
    pub seed: u64,
    /// Workers that each connection authorizes; submits take turns.
    pub workers_per_connection: usize,
    /// Distinct extranonce2 values per connection and job; 0 makes every share's unique.
    pub en2_units: u64,
    /// Every n-th submit is bad on purpose; 0 for none.
    pub bad_every: u64,
    /// Every n-th submit repeats a share; 0 for none.
    pub dup_every: u64,
    /// How submits are written.
    pub style: Style,
    /// Worker names are this, a dot, the connection, `w` and the worker.
    pub worker_prefix: String,
    /// Number of the first connection: a farm of several processes counts through.
    pub first_connection: usize,
    /// The schedule decides when shares leave, not the answers; `depth` is without meaning.
    pub open_loop: bool,
    /// Only every n-th connection is a proxy with all workers and the whole depth, the others have one worker and one share in flight; 0 and 1: all are.
    pub proxy_every: usize,
    /// Whether to negotiate version rolling; None leaves it to the dialect.
    pub version_rolling: Option<bool>,
    /// Takes any refusal of a bad share as right: other pools have other codes.
    pub any_refusal: bool,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            mode: Mode::Valid,
            depth: 8,
            seed: 1,
            workers_per_connection: 1,
            en2_units: 0,
            bad_every: 0,
            dup_every: 0,
            style: Style::EspMiner,
            worker_prefix: "loadgen".into(),
            first_connection: 0,
            open_loop: false,
            proxy_every: 0,
            version_rolling: None,
            any_refusal: false,
        }
    }
}

impl Behaviour {
    /// Whether the connection with this number (counted over all processes) has all workers and the whole depth.
    pub fn is_proxy(&self, number: usize) -> bool {
        self.proxy_every <= 1 || number.is_multiple_of(self.proxy_every)
    }
}

/// Shares in flight on one connection of an open loop: what a server that stops reading may cost in memory.
pub const OPEN_IN_FLIGHT_MAX: usize = 4096;

/// What the sessions of one farm share.
pub struct Shared {
    /// The farm's orders.
    pub behaviour: Behaviour,
    /// Counts.
    pub totals: Totals,
    /// Latencies of the measured window.
    pub latencies: Latencies,
    /// Open ledger, if one is kept.
    pub ledger: Option<Ledger>,
    /// Submits that may still be sent; `u64::MAX` for no limit.
    pub submits_left: u64,
    /// Submits in flight whose answer was passed over by all others of their window.
    pub passed_over: u64,
    /// The caller's clock: at least as far as the last bytes that were read.
    pub now_us: u64,
    jobs: JobCache,
    shapes: [AcceptedShape; DIALECTS.len()],
    /// An accepted share of each session, for another one to repeat.
    donations: Vec<Option<Past>>,
}

impl Shared {
    /// For a farm of `connections` sessions.
    pub fn new(behaviour: Behaviour, connections: usize, ledger: Option<Ledger>) -> Self {
        Self {
            behaviour,
            totals: Totals::default(),
            latencies: Latencies::default(),
            ledger,
            submits_left: u64::MAX,
            passed_over: 0,
            now_us: 0,
            jobs: JobCache::default(),
            shapes: Default::default(),
            donations: (0..connections).map(|_| None).collect(),
        }
    }
}

/// Why a session cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The server's line is not what the protocol says.
    #[error("the server sent {what}: {line}")]
    Protocol {
        /// What is wrong with it.
        what: String,
        /// The line, cut.
        line: String,
    },
    /// The server refused what every miner starts with.
    #[error("the server refused {request}: {line}")]
    Refused {
        /// Method, and worker where there is one.
        request: String,
        /// The answer.
        line: String,
    },
}

/// What a line in flight is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Configure,
    Subscribe,
    Authorize,
    /// A submit before mining.subscribe; no share, so it is judged but not counted as one.
    Early,
    Good,
    Junk,
    UnknownJob,
    EndedJob,
    LowDifficulty,
    TimeLow,
    TimeHigh,
    BadVersion,
    Malformed(Flaw),
    Unauthorized,
    /// Right behind its original, 1 to 63 copies in one write.
    RepeatAtOnce,
    RepeatLater,
    RepeatUpperCase,
    RepeatOtherWorker,
    /// Fields of another session's share: another extranonce1 makes it another header.
    RepeatOtherSession,
    /// Fields of an earlier job's share under the newest job.
    RepeatOtherJob,
}

/// Every way to be bad, in turn.
const BAD_KINDS: [Kind; 21] = [
    Kind::UnknownJob,
    Kind::LowDifficulty,
    Kind::Malformed(Flaw::HexNonce),
    Kind::EndedJob,
    Kind::TimeLow,
    Kind::BadVersion,
    Kind::Unauthorized,
    Kind::Malformed(Flaw::ShortExtranonce2),
    Kind::TimeHigh,
    Kind::Malformed(Flaw::HexExtranonce2),
    Kind::LowDifficulty,
    Kind::Malformed(Flaw::MissingParams),
    Kind::Malformed(Flaw::HexNtime),
    Kind::Malformed(Flaw::LongExtranonce2),
    Kind::Malformed(Flaw::HexVersion),
    Kind::Malformed(Flaw::TypeNonce),
    Kind::Malformed(Flaw::TypeExtranonce2),
    Kind::Malformed(Flaw::TypeNtime),
    Kind::Malformed(Flaw::TypeJob),
    Kind::Malformed(Flaw::TypeWorker),
    Kind::Malformed(Flaw::NoParams),
];

/// Every way to repeat a share, in turn.
const REPEAT_KINDS: [Kind; 6] =
    [Kind::RepeatAtOnce, Kind::RepeatLater, Kind::RepeatOtherSession, Kind::RepeatUpperCase, Kind::RepeatOtherJob, Kind::RepeatOtherWorker];

/// A set of statuses as bits by number.
type Allowed = u16;

const fn only(status: ShareStatus) -> Allowed {
    1 << status as u8
}

const ANY: Allowed = u16::MAX;
/// Whatever follows from the verdict on the share that this one repeats.
const AS_REPEATED: Allowed = 0;

/// Stands for a worker that no session authorizes.
const STRANGER: u16 = u16::MAX;

/// A line in flight.
#[derive(Clone, Copy, Debug)]
struct Entry {
    id: u64,
    sent_us: u64,
    extranonce2: u64,
    nonce: u32,
    ntime: u32,
    version_bits: u32,
    /// Header version as hashed.
    version: u32,
    /// Serial of the job in the session's ring.
    job: u32,
    /// Clean jobs that had come when it was sent.
    clean_jobs: u32,
    worker: u16,
    allowed: Allowed,
    kind: Kind,
    /// A later line was answered first.
    overtaken: bool,
    /// Left within the measured window.
    measured: bool,
}

const _: () = assert!(size_of::<Entry>() <= 64, "one cache line per share in flight");

impl Entry {
    fn control(kind: Kind, id: u64) -> Self {
        Self {
            id,
            sent_us: 0,
            extranonce2: 0,
            nonce: 0,
            ntime: 0,
            version_bits: 0,
            version: 0,
            job: 0,
            clean_jobs: 0,
            worker: 0,
            allowed: ANY,
            kind,
            overtaken: false,
            measured: false,
        }
    }

    fn is_submit(&self) -> bool {
        !matches!(self.kind, Kind::Configure | Kind::Subscribe | Kind::Authorize | Kind::Early)
    }
}

/// A share that was accepted, kept to be repeated.
#[derive(Clone, Debug)]
struct Past {
    job: Arc<Job>,
    extranonce2: u64,
    nonce: u32,
    ntime: u32,
    version_bits: u32,
    worker: u16,
}

/// A share whose nonce is still being looked for; survives from one time slice to the next.
struct Search {
    kind: Kind,
    job: u32,
    header: OpenHeader,
    extranonce2: u64,
    version_bits: u32,
}

/// Stale answers that nothing explains yet. A server that tells thousands of sessions of a clean job refuses the old one's shares before the last session
/// knows: the clean job that follows explains them. A share of the same job that is accepted later shows that they were wrong.
struct Suspicion {
    count: u64,
    job: u32,
    since_us: u64,
    first: WrongAnswer,
}

/// Jobs that a session remembers, as many as a server keeps live and ended ones together.
const JOBS: usize = 16;
/// Above this work a share is looked for alone, with a look at the clock; below, sixteen at a time.
const BATCH_WORK_MAX: u64 = 64;
/// Nonces between two looks at the clock: about half a millisecond.
const NONCES_PER_LOOK: u32 = 2048;
/// Repeats that wait for their chance; more are forgotten.
const REPEATS_DUE_MAX: i64 = 4;
/// Retargets further apart than this have nothing to do with each other: longer than any grace, and than jobs stay live.
const RETARGETS_APART_US: u64 = 600_000_000;
/// How long after the end of a job a server may take to tell a session of it.
const CLEAN_JOB_LATE_US: u64 = 2_000_000;
/// Largest extranonce on either side, bytes.
const EXTRANONCE_BYTES_MAX: usize = 16;

/// One connection's miner. See the module.
pub struct Session {
    index: usize,
    /// Counted over all processes of the farm.
    number: usize,
    depth: usize,
    rolls_version: bool,
    dialect_index: usize,
    dialect: &'static Dialect,
    workers: Vec<Box<str>>,
    ring: VecDeque<Entry>,
    /// Overtaken by all other answers of their window; still matched by id if an answer comes late.
    lost: Vec<Entry>,
    next_id: u64,
    extranonce1: Vec<u8>,
    extranonce1_hex: String,
    extranonce2_bytes: usize,
    extranonce_next: Option<(Vec<u8>, usize)>,
    authorized: usize,
    version_mask: Option<u32>,
    work_next: Option<Work>,
    work: Work,
    target: Target,
    /// The easiest of this and the difficulties shortly before it: what a grace period may judge at.
    target_easier: Target,
    work_easier: Work,
    retargeted_us: u64,
    suspicion: Option<Box<Suspicion>>,
    last_read_us: u64,
    jobs: [Option<Arc<Job>>; JOBS],
    /// Serial of the newest job, from 1; 0 before the first.
    job: u32,
    ended: Option<u32>,
    clean_jobs: u32,
    /// Submits planned over the session's life, reconnects included.
    planned: u64,
    bad_due: i64,
    bad_turn: usize,
    repeat_due: i64,
    repeat_turn: usize,
    repeat_run: u32,
    run_length: u32,
    /// Verdict on the last share that was no immediate repeat.
    lead: Option<ShareStatus>,
    extranonce2: u64,
    nonce: u32,
    shares_made: u64,
    roots: Vec<[u8; 32]>,
    roots_of: Option<Arc<Job>>,
    past: Option<Past>,
    past_of_earlier_job: Option<Past>,
    search: Option<Search>,
    filling: bool,
}

impl Session {
    /// The `index`-th session of a farm.
    pub fn new(index: usize, behaviour: &Behaviour) -> Self {
        let number = behaviour.first_connection + index;
        let dialect_index = behaviour.style.dialect_index(number);
        let (worker_count, depth) = if behaviour.is_proxy(number) { (behaviour.workers_per_connection, behaviour.depth) } else { (1, 1) };
        let workers =
            (0..worker_count).map(|worker| format!("{}.{number}w{worker}", behaviour.worker_prefix).into_boxed_str()).collect::<Vec<_>>();
        let mut state = random::mix(behaviour.seed) ^ random::mix(!(number as u64));
        let (extranonce2, nonce) = (random::next(&mut state), random::next(&mut state) as u32);
        Self {
            index,
            number,
            depth,
            rolls_version: behaviour.version_rolling.unwrap_or(DIALECTS[dialect_index].rolls_version),
            dialect_index,
            dialect: &DIALECTS[dialect_index],
            ring: VecDeque::new(),
            workers,
            lost: Vec::new(),
            next_id: 1,
            extranonce1: Vec::new(),
            extranonce1_hex: "-".into(),
            extranonce2_bytes: 0,
            extranonce_next: None,
            authorized: 0,
            version_mask: None,
            work_next: None,
            work: Work::new(1),
            target: Work::new(1).target(),
            target_easier: Work::new(1).target(),
            work_easier: Work::new(1),
            retargeted_us: 0,
            suspicion: None,
            last_read_us: 0,
            jobs: Default::default(),
            job: 0,
            ended: None,
            clean_jobs: 0,
            planned: number as u64,
            bad_due: 0,
            bad_turn: number,
            repeat_due: 0,
            repeat_turn: number,
            repeat_run: 0,
            run_length: number as u32 % 8,
            lead: None,
            extranonce2,
            nonce,
            shares_made: 0,
            roots: Vec::new(),
            roots_of: None,
            past: None,
            past_of_earlier_job: None,
            search: None,
            filling: false,
        }
    }

    /// True once every worker is authorized and a job has come.
    pub fn is_ready(&self) -> bool {
        self.job != 0 && self.authorized == self.workers.len()
    }

    /// Hashes that a share takes on average at the difficulty of the newest job.
    pub fn hashes_per_share(&self) -> u64 {
        self.work.hashes()
    }

    /// Lines in flight, those that were overtaken for good left out.
    pub fn in_flight(&self) -> usize {
        self.ring.len()
    }

    /// Submits that the closed loop wants to send now: a whole window once the last one has been answered, so that a window is one segment.
    pub fn room(&self, shared: &Shared) -> usize {
        if !self.is_ready() || shared.behaviour.mode == Mode::Idle {
            return 0;
        }
        let depth = self.depth;
        let room = if shared.behaviour.open_loop {
            OPEN_IN_FLIGHT_MAX.saturating_sub(self.ring.len())
        } else if self.ring.is_empty() || self.filling {
            depth.saturating_sub(self.ring.len())
        } else {
            0
        };
        usize::try_from(shared.submits_left).unwrap_or(usize::MAX).min(room)
    }

    fn take_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    /// The first words on a new connection: configure, subscribe, authorize, in one write.
    pub fn hello(&mut self, shared: &Shared, out: &mut Vec<u8>) {
        use std::io::Write as _;
        // Writing to a Vec cannot fail.
        if self.rolls_version {
            let id = self.take_id();
            let _ = writeln!(
                out,
                r#"{{"id":{id},"method":"mining.configure","params":[["version-rolling"],{{"version-rolling.mask":"ffffffff","version-rolling.min-bit-count":2}}]}}"#
            );
            self.ring.push_back(Entry::control(Kind::Configure, id));
        }
        if shared.behaviour.bad_every > 0 && !shared.behaviour.any_refusal && self.number.is_multiple_of(4) {
            let id = self.take_id();
            let _ = writeln!(
                out,
                r#"{{"id":{id},"method":"mining.submit","params":["early","00000001","0000000000000000","00000000","00000000"]}}"#
            );
            self.ring.push_back(Entry::control(Kind::Early, id));
        }
        let id = self.take_id();
        let _ = writeln!(out, r#"{{"id":{id},"method":"mining.subscribe","params":["loadgen/{}"]}}"#, env!("CARGO_PKG_VERSION"));
        self.ring.push_back(Entry::control(Kind::Subscribe, id));
        for worker in 0..self.workers.len() {
            let id = self.take_id();
            let _ = writeln!(out, r#"{{"id":{id},"method":"mining.authorize","params":["{}","x"]}}"#, self.workers[worker]);
            self.ring.push_back(Entry { worker: worker as u16, ..Entry::control(Kind::Authorize, id) });
        }
    }

    /// The connection is gone: books what was in flight as unanswered and forgets everything that belonged to it.
    pub fn abandon(&mut self, shared: &mut Shared) {
        shared.passed_over -= self.lost.len() as u64;
        let is_old =
            self.suspicion.as_ref().is_some_and(|suspicion| self.last_read_us.saturating_sub(suspicion.since_us) > CLEAN_JOB_LATE_US);
        self.clear_suspicion(shared, is_old);
        for entry in std::mem::take(&mut self.ring).into_iter().chain(std::mem::take(&mut self.lost)) {
            if entry.is_submit() {
                shared.totals.unanswered += 1;
                if entry.measured && shared.behaviour.open_loop {
                    // It waited at least so long; to leave it out would hide the worst.
                    shared.latencies.record(shared.now_us.saturating_sub(entry.sent_us));
                }
                self.write_ledger(shared, &entry, "unanswered");
            }
        }
        shared.donations[self.index] = None;
        let behaviour = &shared.behaviour;
        let fresh = Self::new(self.index, behaviour);
        // Counters that make shares unique and plans turn go on; all else starts over.
        *self = Self {
            planned: self.planned,
            bad_turn: self.bad_turn,
            repeat_turn: self.repeat_turn,
            run_length: self.run_length,
            extranonce2: self.extranonce2,
            nonce: self.nonce,
            shares_made: self.shares_made,
            ..fresh
        };
    }

    // ---- from the server ----

    /// Takes what the server sent, up to the last whole line; returns the bytes taken. `now_us` is when they were read.
    pub fn on_bytes(&mut self, shared: &mut Shared, data: &[u8], now_us: u64) -> Result<usize, SessionError> {
        let mut at = 0;
        self.last_read_us = now_us;
        loop {
            if let Some(front) = self.ring.front()
                && front.is_submit()
                && !front.overtaken
                && let Some(length) = shared.shapes[self.dialect_index].matches(&data[at..], front.id)
            {
                let entry = *front;
                self.ring.pop_front();
                self.settle(shared, &entry, Verdict::ACCEPTED, &data[at..at + length - 1], now_us);
                at += length;
                continue;
            }
            let Some(length) = memchr::memchr(b'\n', &data[at..]) else { break };
            let line = data[at..at + length].trim_ascii();
            at += length + 1;
            if !line.is_empty() {
                self.on_line(shared, line, now_us)?;
            }
        }
        if self.ring.front().is_some_and(|front| front.overtaken) && self.ring.iter().all(|entry| entry.overtaken) {
            shared.passed_over += self.ring.len() as u64;
            self.lost.extend(self.ring.drain(..));
        }
        Ok(at)
    }

    fn on_line(&mut self, shared: &mut Shared, line: &[u8], now_us: u64) -> Result<(), SessionError> {
        let protocol = |what: String| SessionError::Protocol { what, line: cut(line) };
        let message: Message<'_> =
            serde_json::from_slice(line).map_err(|error| protocol(format!("a line that is not a message ({error})")))?;
        if let Some(method) = &message.method {
            return self.on_notification(shared, method, &message, line);
        }
        let Some(entry) = self.take_answered(&message) else {
            return self.on_stray(shared, &message, line, now_us);
        };
        match entry.kind {
            Kind::Configure => self.on_configured(&message),
            Kind::Subscribe => self.on_subscribed(&message).map_err(protocol)?,
            Kind::Authorize => {
                if message.verdict() != Verdict::ACCEPTED {
                    let request = format!("mining.authorize of {}", self.workers[usize::from(entry.worker)]);
                    return Err(SessionError::Refused { request, line: cut(line) });
                }
                self.authorized += 1;
            }
            Kind::Early => {
                let code = message.error.map_or(0, |error| error_of(error).0);
                if code != 25 {
                    keep_wrong(shared, || ("25: a submit before mining.subscribe".into(), format!("id {}", entry.id)), line);
                }
            }
            _ => {
                let verdict = message.verdict();
                if verdict == Verdict::ACCEPTED {
                    shared.shapes[self.dialect_index].learn(line);
                }
                self.settle(shared, &entry, verdict, line, now_us);
            }
        }
        Ok(())
    }

    /// The front of the line, when the answer is its own. Ids that do not count (always 4) match by order alone.
    fn take_answered(&mut self, message: &Message<'_>) -> Option<Entry> {
        let id = message.id_number()?;
        let quoted = message.id.is_some_and(|raw| raw.get().starts_with('"'));
        let front = self.ring.front().filter(|front| !front.overtaken)?;
        if front.id != id || (front.is_submit() && quoted != self.dialect.string_id) {
            return None;
        }
        self.ring.pop_front()
    }

    /// An answer that is not to the front of the line: out of order, late, or to nothing.
    fn on_stray(&mut self, shared: &mut Shared, message: &Message<'_>, line: &[u8], now_us: u64) -> Result<(), SessionError> {
        let id = message.id_number();
        if let Some(position) = self.lost.iter().position(|entry| Some(entry.id) == id) {
            // It was counted as out of order when it was overtaken.
            let entry = self.lost.swap_remove(position);
            shared.passed_over -= 1;
            self.settle(shared, &entry, message.verdict(), line, now_us);
            return Ok(());
        }
        let Some(position) = self.ring.iter().position(|entry| Some(entry.id) == id && entry.is_submit()) else {
            keep_wrong(shared, || ("an answer to a line in flight".into(), "nothing with this id".into()), line);
            return Ok(());
        };
        let Some(entry) = self.ring.remove(position) else { return Ok(()) };
        let newly =
            self.ring.iter_mut().take(position).filter(|earlier| !earlier.overtaken).map(|earlier| earlier.overtaken = true).count();
        if newly > 0 {
            keep_wrong(shared, || (format!("answers in order; {newly} earlier submit(s) have none"), format!("id {}", entry.id)), line);
        }
        self.settle(shared, &entry, message.verdict(), line, now_us);
        Ok(())
    }

    fn on_configured(&mut self, message: &Message<'_>) {
        #[derive(serde::Deserialize)]
        struct Configured<'a> {
            #[serde(rename = "version-rolling", default)]
            rolling: bool,
            #[serde(rename = "version-rolling.mask", borrow, default)]
            mask: std::borrow::Cow<'a, str>,
        }
        // A server that refuses, or does not know the method, gets five parameters.
        let configured = message.result.and_then(|result| serde_json::from_str::<Configured<'_>>(result.get()).ok());
        self.version_mask =
            configured.filter(|configured| configured.rolling).and_then(|configured| u32::from_str_radix(&configured.mask, 16).ok());
    }

    fn on_subscribed(&mut self, message: &Message<'_>) -> Result<(), String> {
        let result = message.result.ok_or("no result to mining.subscribe")?;
        let (_, extranonce1, size): (serde::de::IgnoredAny, String, usize) =
            serde_json::from_str(result.get()).map_err(|error| format!("a result of mining.subscribe that cannot be used ({error})"))?;
        let extranonce1 = checked_extranonce(&extranonce1, size)?;
        self.set_extranonce(extranonce1, size);
        Ok(())
    }

    fn set_extranonce(&mut self, extranonce1: Vec<u8>, size: usize) {
        self.extranonce1_hex = encode_hex(&extranonce1);
        self.extranonce1 = extranonce1;
        self.extranonce2_bytes = size;
        self.roots_of = None;
    }

    fn on_notification(&mut self, shared: &mut Shared, method: &str, message: &Message<'_>, line: &[u8]) -> Result<(), SessionError> {
        let protocol = |what: String| SessionError::Protocol { what, line: cut(line) };
        let params = message.params.map_or("[]", |params| params.get());
        match method {
            "mining.set_difficulty" => {
                // The number is read from its text: exact, where a JSON reader may be off by a unit in the last place.
                let text = params.trim_matches(|byte: char| byte.is_ascii_whitespace() || matches!(byte, '[' | ']'));
                let difficulty: f64 = text.parse().map_err(|_| protocol("a difficulty that is no number".into()))?;
                self.work_next = Some(Difficulty::clamped(difficulty).work());
            }
            "mining.notify" => {
                if self.extranonce2_bytes == 0 {
                    return Err(protocol("a job before the answer to mining.subscribe".into()));
                }
                if let Some((extranonce1, size)) = self.extranonce_next.take() {
                    self.set_extranonce(extranonce1, size);
                }
                let job =
                    shared.jobs.get(params, self.extranonce1.len(), self.extranonce2_bytes).map_err(|error| protocol(error.to_string()))?;
                self.start_job(shared, job);
            }
            "mining.set_extranonce" => {
                let (extranonce1, size): (String, usize) =
                    serde_json::from_str(params).map_err(|error| protocol(format!("an extranonce that cannot be used ({error})")))?;
                self.extranonce_next = Some((checked_extranonce(&extranonce1, size).map_err(protocol)?, size));
            }
            "mining.set_version_mask" => {
                let [mask]: [String; 1] = serde_json::from_str(params).map_err(|error| protocol(format!("a version mask ({error})")))?;
                let mask = u32::from_str_radix(&mask, 16).map_err(|error| protocol(format!("a version mask ({error})")))?;
                self.version_mask = self.version_mask.map(|_| mask);
            }
            // show_message, reconnect, ping and what else a server may say: nothing that this miner does.
            _ => {}
        }
        Ok(())
    }

    fn start_job(&mut self, shared: &mut Shared, job: Arc<Job>) {
        if let Some(work) = self.work_next.take() {
            // A server keeps the easier of two works for a grace period, and the easiest of several that follow each other closely.
            let before =
                if self.last_read_us.saturating_sub(self.retargeted_us) < RETARGETS_APART_US { self.work_easier } else { self.work };
            self.work_easier = if self.job == 0 { work } else { work.easier(before).easier(self.work) };
            self.retargeted_us = self.last_read_us;
            self.work = work;
            self.target = work.target();
            self.target_easier = self.work_easier.target();
        }
        if job.clean {
            self.clear_suspicion(shared, false);
            self.clean_jobs += 1;
            self.ended = (self.job != 0).then_some(self.job);
        }
        if let Some(past) = self.past.take() {
            self.past_of_earlier_job = Some(past);
        }
        shared.donations[self.index] = None;
        self.job += 1;
        self.jobs[self.job as usize % JOBS] = Some(job);
    }

    /// The job of a serial, if it is not long gone.
    fn job_of(&self, serial: u32) -> Option<&Arc<Job>> {
        if serial == 0 || serial + JOBS as u32 <= self.job {
            return None;
        }
        self.jobs[serial as usize % JOBS].as_ref()
    }

    // ---- judging ----

    fn settle(&mut self, shared: &mut Shared, entry: &Entry, verdict: Verdict, line: &[u8], now_us: u64) {
        shared.totals.count(verdict.status, verdict.code);
        if entry.measured {
            shared.latencies.record(now_us.saturating_sub(entry.sent_us));
        }
        let mut allowed = entry.allowed;
        if allowed == AS_REPEATED {
            allowed = match self.lead {
                Some(ShareStatus::Accepted) => only(ShareStatus::Duplicate),
                Some(ShareStatus::Overload) | None => ANY,
                Some(status) => only(status),
            };
        } else {
            self.lead = verdict.status;
        }
        let refused_as_due = shared.behaviour.any_refusal && verdict != Verdict::ACCEPTED && allowed & only(ShareStatus::Accepted) == 0;
        let fits = |allowed: Allowed| refused_as_due || verdict.status.is_some_and(|status| allowed & only(status) != 0);
        if !fits(allowed) && allowed != ANY {
            if verdict.status == Some(ShareStatus::Overload) {
                shared.totals.overload += 1;
            } else if verdict.status == Some(ShareStatus::Stale) && entry.clean_jobs != self.clean_jobs {
                shared.totals.crossed += 1;
            } else if verdict.status == Some(ShareStatus::Stale) {
                self.suspect(entry, allowed, line, now_us);
            } else {
                let describe = || (format!("{} for {:?}", labels(allowed), entry.kind), self.line_of(entry));
                keep_wrong(shared, describe, line);
            }
        }
        if let Some(suspicion) = &self.suspicion {
            let lives = verdict.status == Some(ShareStatus::Accepted) && suspicion.job == entry.job;
            if lives || now_us.saturating_sub(suspicion.since_us) > CLEAN_JOB_LATE_US {
                self.clear_suspicion(shared, true);
            }
        }
        if verdict.status == Some(ShareStatus::Accepted)
            && entry.kind == Kind::Good
            && shared.behaviour.dup_every > 0
            && entry.job == self.job
        {
            self.remember(shared, entry);
        }
        if shared.ledger.is_some() {
            self.write_ledger(shared, entry, verdict.status.map_or("unknown", ShareStatus::label));
        }
    }

    fn suspect(&mut self, entry: &Entry, allowed: Allowed, line: &[u8], now_us: u64) {
        if let Some(suspicion) = &mut self.suspicion {
            suspicion.count += 1;
            return;
        }
        let expected = format!("{} for {:?}, as no clean job ended its job", labels(allowed), entry.kind);
        let first = WrongAnswer { expected, sent: self.line_of(entry), answer: cut(line) };
        self.suspicion = Some(Box::new(Suspicion { count: 1, job: entry.job, since_us: now_us, first }));
    }

    /// Books stale answers that have been explained, or never will be.
    fn clear_suspicion(&mut self, shared: &mut Shared, are_wrong: bool) {
        let Some(suspicion) = self.suspicion.take() else { return };
        if !are_wrong {
            shared.totals.crossed += suspicion.count;
            return;
        }
        shared.totals.wrong += suspicion.count;
        if shared.totals.wrong_kept.len() < WRONG_KEPT {
            shared.totals.wrong_kept.push(suspicion.first);
        }
    }

    /// Keeps an accepted share for later repeats, where one is wanted.
    fn remember(&mut self, shared: &mut Shared, entry: &Entry) {
        let donate = shared.donations.len() > 1 && shared.donations[self.index].is_none();
        if !donate && self.past.is_some() {
            return;
        }
        let Some(job) = self.job_of(entry.job) else { return };
        let past = Past {
            job: Arc::clone(job),
            extranonce2: entry.extranonce2,
            nonce: entry.nonce,
            ntime: entry.ntime,
            version_bits: entry.version_bits,
            worker: entry.worker,
        };
        if self.past.is_none() {
            self.past = Some(past);
        } else {
            shared.donations[self.index] = Some(past);
        }
    }

    fn worker_name(&self, worker: u16) -> &str {
        self.workers.get(usize::from(worker)).map_or("nobody.of.this.pool", |name| name)
    }

    /// A job id that the server never gave: eight hex digits drawn from the share itself.
    fn unknown_job(&self, entry: &Entry) -> String {
        let mut number = random::mix(entry.extranonce2 ^ u64::from(entry.nonce)) as u32;
        loop {
            let text = format!("{number:08x}");
            if self.jobs.iter().flatten().all(|job| *job.id != *text) {
                return text;
            }
            number = number.wrapping_add(1);
        }
    }

    /// Writes the line of an entry: when it is sent, and again when its answer is wrong.
    fn put_line(&self, out: &mut Vec<u8>, entry: &Entry) {
        let unknown;
        let job = match entry.kind {
            Kind::UnknownJob => {
                unknown = self.unknown_job(entry);
                unknown.as_str()
            }
            _ => self.job_of(entry.job).map_or("-", |job| &job.id),
        };
        let flaw = match entry.kind {
            Kind::Malformed(flaw) => flaw,
            Kind::RepeatUpperCase => Flaw::UpperCase,
            _ => Flaw::None,
        };
        let fields = Fields {
            id: entry.id,
            worker: self.worker_name(entry.worker),
            job,
            extranonce2: entry.extranonce2,
            extranonce2_bytes: self.extranonce2_bytes,
            ntime: entry.ntime,
            nonce: entry.nonce,
            version_bits: self.version_mask.map(|_| entry.version_bits),
        };
        self.dialect.submit(out, &fields, flaw);
    }

    fn line_of(&self, entry: &Entry) -> String {
        let mut line = Vec::new();
        self.put_line(&mut line, entry);
        String::from_utf8_lossy(line.trim_ascii_end()).into_owned()
    }

    fn write_ledger(&self, shared: &mut Shared, entry: &Entry, verdict: &str) {
        let Some(ledger) = &mut shared.ledger else { return };
        let out = ledger.line();
        let flaw = if let Kind::Malformed(flaw) = entry.kind { flaw } else { Flaw::None };
        let field = |out: &mut Vec<u8>, flaws: &[Flaw], put: &dyn Fn(&mut Vec<u8>)| {
            if flaws.contains(&flaw) {
                out.push(b'-')
            } else {
                put(out)
            }
            out.push(b' ');
        };
        out.extend_from_slice(self.extranonce1_hex.as_bytes());
        out.push(b' ');
        field(out, &[Flaw::TypeWorker, Flaw::NoParams], &|out| out.extend_from_slice(self.worker_name(entry.worker).as_bytes()));
        field(out, &[Flaw::TypeJob, Flaw::NoParams], &|out| match entry.kind {
            Kind::UnknownJob => out.extend_from_slice(self.unknown_job(entry).as_bytes()),
            _ => out.extend_from_slice(self.job_of(entry.job).map_or("-", |job| &job.id).as_bytes()),
        });
        let extranonce2_flaws =
            [Flaw::HexExtranonce2, Flaw::TypeExtranonce2, Flaw::NoParams, Flaw::ShortExtranonce2, Flaw::LongExtranonce2];
        field(out, &extranonce2_flaws, &|out| put_hex_tail(out, entry.extranonce2, self.extranonce2_bytes));
        field(out, &[Flaw::HexNtime, Flaw::TypeNtime, Flaw::MissingParams, Flaw::NoParams], &|out| put_hex32(out, entry.ntime));
        field(out, &[Flaw::HexNonce, Flaw::TypeNonce, Flaw::MissingParams, Flaw::NoParams], &|out| put_hex32(out, entry.nonce));
        field(out, &[Flaw::HexVersion, Flaw::NoParams], &|out| put_hex32(out, entry.version));
        out.extend_from_slice(verdict.as_bytes());
        out.push(b'\n');
    }

    // ---- mining ----

    /// Mines and appends up to `limit` submits (at most what `room` says), looking at the clock only where a share is hard; returns how many.
    /// The entries are stamped by `stamp` once the caller knows when they leave.
    pub fn fill(&mut self, shared: &mut Shared, limit: usize, out: &mut Vec<u8>, deadline: Instant) -> usize {
        let limit = limit.min(self.room(shared));
        let mut sent = 0;
        // A repeat must stand right behind its original in the same write.
        let mut repeatable = false;
        while sent < limit {
            if shared.behaviour.mode == Mode::Junk {
                self.push_junk(shared, out);
                sent += 1;
                continue;
            }
            if self.work.hashes() > BATCH_WORK_MAX {
                let planned = match &self.search {
                    Some(search) => search.kind,
                    None => self.plan(shared, repeatable, limit - sent),
                };
                repeatable = planned == Kind::Good || planned == Kind::RepeatAtOnce;
                if planned == Kind::EndedJob || is_repeat(planned) {
                    self.push_copy(shared, out, planned);
                } else if !self.mine_alone(shared, out, planned, deadline) {
                    break;
                }
                sent += 1;
                continue;
            }
            let mut kinds = [Kind::Good; LANES];
            let mut count = 0;
            let mut copy = None;
            while count < LANES && sent + count < limit {
                let planned = self.plan(shared, repeatable, limit - sent - count);
                repeatable = planned == Kind::Good || planned == Kind::RepeatAtOnce;
                if planned == Kind::EndedJob || is_repeat(planned) {
                    copy = Some(planned);
                    break;
                }
                kinds[count] = planned;
                count += 1;
            }
            if count > 0 {
                self.mine_batch(shared, out, &kinds[..count]);
                sent += count;
            }
            if let Some(kind) = copy {
                self.push_copy(shared, out, kind);
                sent += 1;
            }
        }
        self.filling = sent < limit;
        sent
    }

    /// Marks the newest `count` submits as leaving now.
    pub fn stamp(&mut self, count: usize, now_us: u64) {
        self.stamp_each(count, |_| now_us);
    }

    /// Marks the newest `count` submits as leaving at the time of each, the oldest of them first.
    pub fn stamp_each(&mut self, count: usize, time_us: impl Fn(usize) -> u64) {
        let from = self.ring.len().saturating_sub(count);
        for (at, entry) in self.ring.range_mut(from..).enumerate() {
            entry.sent_us = time_us(at);
        }
    }

    /// What the next submit is to be. `repeatable`: the line before it in this write is a good share or a repeat of one.
    fn plan(&mut self, shared: &Shared, repeatable: bool, room: usize) -> Kind {
        let behaviour = &shared.behaviour;
        self.planned += 1;
        if behaviour.bad_every > 0 && self.planned.is_multiple_of(behaviour.bad_every) {
            self.bad_due += 1;
        }
        if behaviour.dup_every > 0 && (self.planned + behaviour.dup_every / 2).is_multiple_of(behaviour.dup_every) {
            self.repeat_due = (self.repeat_due + 1).min(REPEATS_DUE_MAX);
        }
        if self.repeat_run > 0 && repeatable {
            self.repeat_run -= 1;
            self.repeat_due -= 1;
            return Kind::RepeatAtOnce;
        }
        self.repeat_run = 0;
        if self.bad_due > 0 {
            for _ in 0..BAD_KINDS.len() {
                let kind = BAD_KINDS[self.bad_turn % BAD_KINDS.len()];
                self.bad_turn += 1;
                if self.can_be(kind) {
                    self.bad_due -= 1;
                    return kind;
                }
            }
        }
        if self.repeat_due > 0 {
            for _ in 0..REPEAT_KINDS.len() {
                let kind = REPEAT_KINDS[self.repeat_turn % REPEAT_KINDS.len()];
                let (possible, worth_waiting) = match kind {
                    Kind::RepeatAtOnce => (repeatable, self.depth > 1),
                    Kind::RepeatLater | Kind::RepeatUpperCase => (self.past.is_some(), true),
                    Kind::RepeatOtherWorker => (self.past.is_some() && self.workers.len() > 1, self.workers.len() > 1),
                    Kind::RepeatOtherSession => (self.donated(shared).is_some(), false),
                    _ => (self.past_of_earlier_job.is_some(), false),
                };
                if possible {
                    self.repeat_turn += 1;
                    self.repeat_due -= 1;
                    if kind == Kind::RepeatAtOnce {
                        // 1 to 63 copies, as many as this window still takes; the debt is worked off by leaving later repeats out.
                        let copies = 1 + self.run_length % 63;
                        self.run_length += 1;
                        self.repeat_run = copies.min(u32::try_from(room).unwrap_or(u32::MAX)) - 1;
                    }
                    return kind;
                }
                if worth_waiting {
                    break;
                }
                self.repeat_turn += 1;
            }
        }
        Kind::Good
    }

    /// Whether this kind of bad share exists here and now.
    fn can_be(&self, kind: Kind) -> bool {
        match kind {
            Kind::EndedJob => self.ended.is_some_and(|serial| self.job_of(serial).is_some()),
            // At work 1 every hash passes.
            Kind::LowDifficulty => self.target_easier != Work::new(1).target(),
            Kind::BadVersion => self.bit_outside_of_mask().is_some(),
            Kind::Malformed(Flaw::HexVersion) => self.version_mask.is_some(),
            _ => true,
        }
    }

    /// The lowest version bit that may not be rolled and that the job leaves zero.
    fn bit_outside_of_mask(&self) -> Option<u32> {
        let taken = self.version_mask? | self.job_of(self.job)?.version;
        1u32.checked_shl(taken.trailing_ones())
    }

    /// Another session's accepted share of the job that is newest here.
    fn donated<'a>(&self, shared: &'a Shared) -> Option<&'a Past> {
        let job = self.job_of(self.job)?;
        shared.donations[(self.index + 1) % shared.donations.len()].as_ref().filter(|past| past.job.id == job.id)
    }

    fn next_extranonce2(&mut self, units: u64) -> u64 {
        let value = if units == 0 { self.extranonce2 } else { self.shares_made % units };
        self.extranonce2 = self.extranonce2.wrapping_add(1);
        self.shares_made += 1;
        if self.extranonce2_bytes < 8 { value & ((1 << (8 * self.extranonce2_bytes)) - 1) } else { value }
    }

    /// Version bits that the next share rolls: drawn, as a miner's midstate loop would have them.
    fn next_version_bits(&self, seed: u64) -> u32 {
        let drawn = random::mix(seed ^ self.shares_made.rotate_left(32) ^ self.number as u64) as u32;
        drawn & self.version_mask.unwrap_or(0)
    }

    /// Header version with these rolled bits (BIP 310): bits under the mask replace the job's.
    fn version_with(&self, job: &Job, bits: u32) -> u32 {
        (job.version & !self.version_mask.unwrap_or(0)) | bits
    }

    fn wants(&self, kind: Kind, header: &mut OpenHeader, nonce: u32) -> bool {
        let state = header.hash(nonce);
        if kind == Kind::LowDifficulty { !meets(&state, &self.target_easier) } else { meets(&state, &self.target) }
    }

    /// Mines one share per kind, all of the newest job, in lanes.
    fn mine_batch(&mut self, shared: &mut Shared, out: &mut Vec<u8>, kinds: &[Kind]) {
        let Some(job) = self.job_of(self.job).cloned() else { return };
        let count = kinds.len();
        let (seed, units) = (shared.behaviour.seed, shared.behaviour.en2_units);
        let mut extranonce2 = [0u64; LANES];
        let mut bits = [0u32; LANES];
        for lane in 0..count {
            bits[lane] = self.next_version_bits(seed);
            extranonce2[lane] = self.next_extranonce2(units);
        }
        let mut roots = [[0u8; 32]; LANES];
        self.roots_for(&job, units, &extranonce2[..count], &mut roots[..count]);
        for lane in 0..count {
            let mut header = OpenHeader::new(&job, &roots[lane], job.ntime, self.version_with(&job, bits[lane]));
            // Nonces of a session never repeat within 2^32 hashes, so that no two headers are equal even where extranonce2 values are few.
            let nonce = loop {
                let nonce = self.nonce;
                self.nonce = nonce.wrapping_add(1);
                if self.wants(kinds[lane], &mut header, nonce) {
                    break nonce;
                }
            };
            self.push_mined(shared, out, kinds[lane], &job, extranonce2[lane], nonce, bits[lane]);
        }
    }

    /// Merkle roots, from memory where extranonce2 values come again and again.
    fn roots_for(&mut self, job: &Arc<Job>, units: u64, extranonce2: &[u64], roots: &mut [[u8; 32]]) {
        const UNITS_MAX: u64 = 1 << 16;
        if units == 0 || units > UNITS_MAX {
            return merkle_roots(job, &self.extranonce1, extranonce2, roots);
        }
        if !self.roots_of.as_ref().is_some_and(|of| Arc::ptr_eq(of, job)) {
            self.roots_of = Some(Arc::clone(job));
            self.roots.clear();
        }
        let known = |roots: &Vec<[u8; 32]>, value: u64| roots.get(value as usize).is_some_and(|root| *root != [0; 32]);
        if !extranonce2.iter().all(|&value| known(&self.roots, value)) {
            merkle_roots(job, &self.extranonce1, extranonce2, roots);
            self.roots.resize(units as usize, [0; 32]);
            for (&value, root) in extranonce2.iter().zip(roots.iter()) {
                self.roots[value as usize] = *root;
            }
            return;
        }
        for (&value, root) in extranonce2.iter().zip(roots) {
            *root = self.roots[value as usize];
        }
    }

    /// Looks for one share until the deadline; false when it has not been found yet.
    fn mine_alone(&mut self, shared: &mut Shared, out: &mut Vec<u8>, kind: Kind, deadline: Instant) -> bool {
        let Some(job) = self.job_of(self.job).cloned() else { return false };
        let mut search = match self.search.take() {
            Some(search) if search.job == self.job => search,
            _ => {
                let version_bits = self.next_version_bits(shared.behaviour.seed);
                let extranonce2 = self.next_extranonce2(shared.behaviour.en2_units);
                let mut roots = [[0u8; 32]];
                self.roots_for(&job, shared.behaviour.en2_units, &[extranonce2], &mut roots);
                let header = OpenHeader::new(&job, &roots[0], job.ntime, self.version_with(&job, version_bits));
                Search { kind, job: self.job, header, extranonce2, version_bits }
            }
        };
        loop {
            for _ in 0..NONCES_PER_LOOK {
                let nonce = self.nonce;
                self.nonce = nonce.wrapping_add(1);
                if self.wants(kind, &mut search.header, nonce) {
                    self.push_mined(shared, out, kind, &job, search.extranonce2, nonce, search.version_bits);
                    return true;
                }
            }
            if Instant::now() >= deadline {
                self.search = Some(search);
                return false;
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one share")]
    fn push_mined(
        &mut self,
        shared: &mut Shared,
        out: &mut Vec<u8>,
        kind: Kind,
        job: &Job,
        extranonce2: u64,
        nonce: u32,
        version_bits: u32,
    ) {
        let mut entry = Entry {
            extranonce2,
            nonce,
            version_bits,
            ntime: job.ntime,
            job: self.job,
            worker: (self.shares_made % self.workers.len() as u64) as u16,
            allowed: only(ShareStatus::Accepted),
            ..Entry::control(kind, 0)
        };
        match kind {
            Kind::UnknownJob => entry.allowed = only(ShareStatus::Stale),
            Kind::LowDifficulty => entry.allowed = only(ShareStatus::LowDifficulty),
            Kind::TimeLow => (entry.ntime, entry.allowed) = (1, only(ShareStatus::BadTime)),
            Kind::TimeHigh => (entry.ntime, entry.allowed) = (u32::MAX, only(ShareStatus::BadTime)),
            Kind::BadVersion => {
                entry.version_bits |= self.bit_outside_of_mask().unwrap_or(0);
                entry.allowed = only(ShareStatus::BadVersion);
            }
            Kind::Malformed(_) => entry.allowed = only(ShareStatus::Malformed),
            Kind::Unauthorized => (entry.worker, entry.allowed) = (STRANGER, only(ShareStatus::Unauthorized)),
            _ => {}
        }
        entry.version = self.version_with(job, entry.version_bits);
        self.push(shared, out, entry);
    }

    /// Submits what needs no search: repeats, and shares of a job that has ended.
    fn push_copy(&mut self, shared: &mut Shared, out: &mut Vec<u8>, kind: Kind) {
        let copied = match kind {
            Kind::RepeatAtOnce => self.ring.back().map(|original| Entry { kind, allowed: AS_REPEATED, ..*original }),
            Kind::EndedJob => self.share_of_ended_job(shared),
            Kind::RepeatOtherSession => {
                let donor = (self.index + 1) % shared.donations.len();
                shared.donations[donor].take().and_then(|past| self.judge_past(kind, &past))
            }
            Kind::RepeatOtherJob => self.past_of_earlier_job.take().and_then(|past| self.judge_past(kind, &past)),
            _ => self.past.take().and_then(|past| {
                let job = self.job_of(self.job)?;
                let worker = if kind == Kind::RepeatOtherWorker { (past.worker + 1) % self.workers.len() as u16 } else { past.worker };
                let version = self.version_with(job, past.version_bits);
                let allowed = only(ShareStatus::Duplicate);
                Some(Entry { worker, allowed, version, ..self.entry_of(kind, &past) })
            }),
        };
        // The plan made sure that there is something to copy; a good share takes its place otherwise.
        match copied {
            Some(entry) => self.push(shared, out, entry),
            None => self.push_junk(shared, out),
        }
    }

    fn entry_of(&self, kind: Kind, past: &Past) -> Entry {
        Entry {
            extranonce2: past.extranonce2,
            nonce: past.nonce,
            ntime: past.ntime,
            version_bits: past.version_bits,
            job: self.job,
            worker: past.worker % self.workers.len().max(1) as u16,
            ..Entry::control(kind, 0)
        }
    }

    /// The fields of a share from elsewhere as a submit of the newest job here, with what the rules say to it.
    fn judge_past(&self, kind: Kind, past: &Past) -> Option<Entry> {
        let job = self.job_of(self.job)?;
        let mut entry = self.entry_of(kind, past);
        // Bits that another session negotiated may not be allowed here.
        entry.version_bits &= self.version_mask.unwrap_or(0);
        entry.version = self.version_with(job, entry.version_bits);
        let hash = share_hash(job, &self.extranonce1, past.extranonce2, past.ntime, past.nonce, entry.version);
        let before = share_hash(
            &past.job,
            &self.extranonce1,
            past.extranonce2,
            past.ntime,
            past.nonce,
            self.version_with(&past.job, past.version_bits),
        );
        entry.allowed = if kind == Kind::RepeatOtherJob && hash == before {
            only(ShareStatus::Duplicate)
        } else if self.target.is_met_by(&hash) {
            only(ShareStatus::Accepted)
        } else if self.target_easier.is_met_by(&hash) {
            only(ShareStatus::Accepted) | only(ShareStatus::LowDifficulty)
        } else {
            only(ShareStatus::LowDifficulty)
        };
        if past.ntime < job.ntime {
            // The newer job's smallest time is not known to miners.
            entry.allowed |= only(ShareStatus::BadTime);
        }
        Some(entry)
    }

    /// A share that was valid while its job lived; its nonce is looked for only where that is quick.
    fn share_of_ended_job(&mut self, shared: &Shared) -> Option<Entry> {
        let serial = self.ended?;
        let job = Arc::clone(self.job_of(serial)?);
        let version_bits = self.next_version_bits(shared.behaviour.seed);
        let extranonce2 = self.next_extranonce2(0);
        let version = self.version_with(&job, version_bits);
        let mut nonce = self.nonce;
        if self.work.hashes() <= BATCH_WORK_MAX {
            let mut roots = [[0u8; 32]];
            merkle_roots(&job, &self.extranonce1, &[extranonce2], &mut roots);
            let mut header = OpenHeader::new(&job, &roots[0], job.ntime, version);
            while !self.wants(Kind::EndedJob, &mut header, nonce) {
                nonce = nonce.wrapping_add(1);
            }
        }
        self.nonce = nonce.wrapping_add(1);
        let allowed = only(ShareStatus::Stale);
        Some(Entry {
            extranonce2,
            nonce,
            version_bits,
            version,
            ntime: job.ntime,
            job: serial,
            allowed,
            ..Entry::control(Kind::EndedJob, 0)
        })
    }

    fn push_junk(&mut self, shared: &mut Shared, out: &mut Vec<u8>) {
        let Some(job) = self.job_of(self.job) else { return };
        let (ntime, version) = (job.ntime, job.version);
        let mut state = shared.behaviour.seed ^ random::mix(self.shares_made) ^ self.number as u64;
        let version_bits = random::next(&mut state) as u32 & self.version_mask.unwrap_or(0);
        let version = (version & !self.version_mask.unwrap_or(0)) | version_bits;
        let nonce = random::next(&mut state) as u32;
        let extranonce2 = self.next_extranonce2(shared.behaviour.en2_units);
        let worker = (self.shares_made % self.workers.len() as u64) as u16;
        self.push(
            shared,
            out,
            Entry { extranonce2, nonce, ntime, version_bits, version, worker, job: self.job, ..Entry::control(Kind::Junk, 0) },
        );
    }

    fn push(&mut self, shared: &mut Shared, out: &mut Vec<u8>, mut entry: Entry) {
        entry.id = match self.dialect.fixed_id {
            Some(id) => id,
            None => self.take_id(),
        };
        entry.clean_jobs = self.clean_jobs;
        entry.measured = shared.latencies.recording;
        self.put_line(out, &entry);
        self.ring.push_back(entry);
        shared.totals.submits += 1;
        shared.submits_left = shared.submits_left.saturating_sub(1);
    }
}

fn is_repeat(kind: Kind) -> bool {
    REPEAT_KINDS.contains(&kind)
}

fn checked_extranonce(extranonce1: &str, extranonce2_bytes: usize) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0u8; extranonce1.len() / 2];
    decode_hex(extranonce1.as_bytes(), &mut bytes).map_err(|error| format!("an extranonce1 that is not hex ({error})"))?;
    if bytes.len() > EXTRANONCE_BYTES_MAX || !(1..=EXTRANONCE_BYTES_MAX).contains(&extranonce2_bytes) {
        return Err(format!(
            "extranonces of {} and {extranonce2_bytes} bytes, of which up to {EXTRANONCE_BYTES_MAX} are taken",
            bytes.len()
        ));
    }
    Ok(bytes)
}

fn labels(allowed: Allowed) -> String {
    let mut text = String::new();
    for status in ShareStatus::ALL {
        if allowed & only(status) != 0 {
            let separator = if text.is_empty() { "" } else { " or " };
            // Writing to a String cannot fail.
            let _ = write!(text, "{separator}{}", status.label());
        }
    }
    text
}

fn cut(line: &[u8]) -> String {
    String::from_utf8_lossy(&line[..line.len().min(400)]).into_owned()
}

/// Counts a wrong answer and keeps the first few in full.
fn keep_wrong(shared: &mut Shared, describe: impl FnOnce() -> (String, String), line: &[u8]) {
    shared.totals.wrong += 1;
    if shared.totals.wrong_kept.len() < WRONG_KEPT {
        let (expected, sent) = describe();
        shared.totals.wrong_kept.push(WrongAnswer { expected, sent, answer: cut(line) });
    }
}
