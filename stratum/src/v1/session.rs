//! The state of one Stratum V1 connection: lines in, replies and events out.
use super::{IdToken, JobBook, PublishedJob};
use otedama_primitives::{Difficulty, SessionRecord, Submit, WorkerRecord};
use std::net::SocketAddr;

/// What all sessions of a server share; from the config.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `[pool] name`: part of every worker identity.
    pub pool: Box<str>,
    /// `[stratum] difficulty`: what a session starts with.
    pub difficulty: Difficulty,
    /// Least difficulty that a miner may suggest; `[vardiff] min`.
    pub difficulty_min: Difficulty,
    /// Greatest difficulty that a miner may suggest; `[vardiff] max`.
    pub difficulty_max: Difficulty,
    /// `[stratum] version_mask`: header version bits that miners may roll (BIP 320).
    pub version_mask: u32,
    /// `[stratum] extranonce2_bytes`, 4..=8.
    pub extranonce2_bytes: u8,
    /// `[stratum] max_workers_per_connection`.
    pub workers_max: usize,
    /// How long after a retarget shares are judged at the easier of the two works, microseconds.
    pub grace_us: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            pool: "otedama".into(),
            difficulty: Difficulty::clamped(1024.0),
            difficulty_min: Difficulty::clamped(1.0),
            difficulty_max: Difficulty::clamped(4e9),
            version_mask: 0x1fff_e000,
            extranonce2_bytes: 8,
            workers_max: 4096,
            grace_us: 60_000_000,
        }
    }
}

/// What net gives a session at accept: its place in the world.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seat {
    /// Session counter within the run, from 1.
    pub session: u32,
    /// From `Extranonces::allocate`.
    pub extranonce1: u32,
    /// Index of the net stage.
    pub net: u8,
}

/// What a line is judged against.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The server's settings.
    pub settings: &'a Settings,
    /// The net stage's book of jobs.
    pub jobs: &'a JobBook,
    /// When the bytes of the line were read, microseconds since the epoch.
    pub now_us: u64,
    /// The peer, for the session's record.
    pub peer: Option<SocketAddr>,
}

/// What a line came to. Replies, if any, stand in `out` and must leave after the answers to all shares in flight of the connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Nothing more to do.
    None,
    /// The line was refused without a row (not JSON, unknown method, submit before subscribe); the reply, if any, is in `out`. Count it (`lines_refused`, limits).
    Refused,
    /// A submit of a subscribed session: `status` is `Submit::PENDING`, or the refusal that needed no hash. Nothing is in `out`: write `answer` with the id when the verdict
    /// is back, in order. `in_flight` is 0, net fills it in.
    Share(Submit, IdToken),
    /// The session has subscribed: write the record before any row. Replies are in `out`.
    Subscribed(SessionRecord),
    /// A worker is new on this connection: write the record before any row. Replies are in `out`.
    Authorized(WorkerRecord),
    /// Close the connection, for this reason; `out` may hold a last word.
    Close(&'static str),
}

/// One connection.
#[derive(Debug)]
pub struct Session {
    seat: Seat,
}

impl Session {
    /// A connection that has said nothing yet.
    pub fn new(seat: Seat, _settings: &Settings) -> Self {
        Self { seat }
    }

    /// Judges one line (without its LF; a CR is trimmed). Replies are appended to `out`. A submit allocates nothing.
    pub fn on_line(&mut self, _ctx: &Context<'_>, _line: &[u8], _out: &mut Vec<u8>) -> Event {
        Event::None
    }

    /// Sends a new job (set_difficulty first where it is due); nothing before mining.subscribe was answered, nor a job the session already has.
    /// `clean` forces clean_jobs; it is also set where the session's last job has ended.
    pub fn notify(&mut self, _ctx: &Context<'_>, _job: &PublishedJob, _clean: bool, _out: &mut Vec<u8>) {}

    /// Changes the difficulty: set_difficulty and the newest job again leave in one write. Before the first job it only changes what will be sent with it.
    pub fn set_difficulty(&mut self, _ctx: &Context<'_>, _difficulty: Difficulty, _out: &mut Vec<u8>) {}

    /// Session counter within the run.
    pub fn number(&self) -> u32 {
        self.seat.session
    }

    /// As a big-endian number of its wire bytes.
    pub fn extranonce1(&self) -> u32 {
        self.seat.extranonce1
    }

    /// Counter of the newest job it was sent, 0 for none: what `Extranonces::release` wants.
    pub fn newest_job(&self) -> u32 {
        0
    }

    /// True once mining.subscribe was answered.
    pub fn is_subscribed(&self) -> bool {
        false
    }

    /// True once a worker was authorized: what the authorize deadline waits for.
    pub fn is_authorized(&self) -> bool {
        false
    }

    /// The difficulty it was last sent, or will be sent with its first job.
    pub fn difficulty(&self) -> Difficulty {
        Difficulty::clamped(0.0)
    }
}
