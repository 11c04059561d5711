//! A captured wire played again: the same bytes over as many connections in the same order, and every verdict held against the captured one.
//!
//! A share is valid for one job and one extranonce1, so the bytes make sense only to a server that hands out the captured ones: `otedama serve --replay-of DIR`.
//! It publishes its next job once it has taken as many lines as had come when that job was captured. So this side keeps the order that matters: connections open
//! one after the other, and nothing that was read behind a job leaves before that job has come. Within that, `--speed 1` keeps the captured times and
//! `--speed max` sends as fast as the server reads.
//!
//! What is compared: for each connection the answers in their order, by id, by extranonce1 (to mining.subscribe) and by verdict (code and cause). Texts behind
//! the cause, notifications and times are not: another version may word them otherwise, and how broadcasts fall between answers depends on the moment.
use crate::answer::{Message, Verdict};
use crate::engine::raise_file_limit;
use crate::socket::{self, SocketOrder};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use otedama_primitives::ShareStatus;
use otedama_primitives::capture::{CaptureError, CaptureReader, Entry, JobEntry};
use serde_json::{Value, json};
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A server that owes something and says nothing for so long has not got it.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a connection may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// Bytes that may wait for the server's sockets.
const BACKLOG_BYTES_MAX: usize = 4 << 20;
/// Answers that may be compared later: what bounds memory where a server is slow.
const OWED_MAX: usize = 1 << 16;
/// Bytes read at once.
const READ_BYTES: usize = 1 << 16;
/// Bytes of a line that are shown.
const SHOWN_BYTES: usize = 300;

/// How fast.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Speed {
    /// At the captured times.
    AsCaptured,
    /// As fast as the server reads.
    Max,
}

/// A replay as it is ordered.
#[derive(Clone, Debug)]
pub struct ReplayOrder {
    /// Folder of the capture.
    pub dir: PathBuf,
    /// A server started with `--replay-of` that folder; the caller has checked that it may be loaded.
    pub target: SocketAddr,
    /// How fast.
    pub speed: Speed,
    /// Plays a capture that is cut off as far as it is whole.
    pub whole_part: bool,
}

/// Why there is no replay, or no end of it.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The folder has no manifest, or one of something else.
    #[error("{}: {what}; give the folder that otedama serve --capture wrote", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// It was taken where bytes cannot come again.
    #[error("this capture can be read but not replayed: {0}")]
    NotReplayable(String),
    /// A file that is damaged, cut off or not there.
    #[error("{} {source}{}", path.display(), if *.can_be_cut { "; --whole-part replays what stands before" } else { "" })]
    Wire {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: CaptureError,
        /// What stands before is whole.
        can_be_cut: bool,
    },
    /// Entries that were never written.
    #[error("{}: {entries} entries ({bytes} bytes) are missing {after_s:.1} s after the server's start, as the writer was behind; --whole-part replays what stands before", path.display())]
    Gap {
        /// The file.
        path: PathBuf,
        /// Entries.
        entries: u64,
        /// Bytes.
        bytes: u64,
        /// Where.
        after_s: f64,
    },
    /// More sockets than this process may open.
    #[error("the capture has {connections} connections at once, more than the {limit} files that this process may open (ulimit -Hn)")]
    FileLimit {
        /// Connections.
        connections: usize,
        /// The limit.
        limit: u64,
    },
    /// The target.
    #[error("connection {number} to {target}: {what}")]
    Connection {
        /// Which, in the order of the capture.
        number: usize,
        /// Where to.
        target: SocketAddr,
        /// What happened.
        what: String,
    },
    /// Not a server that replays.
    #[error("{target} is not serving this capture: {what}. Start it with: otedama serve --config F --replay-of {}", dir.display())]
    OtherServer {
        /// Where to.
        target: SocketAddr,
        /// How that shows.
        what: String,
        /// The capture.
        dir: PathBuf,
    },
    /// epoll.
    #[error("cannot wait on epoll: {0}")]
    Poll(io::Error),
}

impl ReplayError {
    /// 2 for what another command line mends, 3 for the target and the machine.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Manifest { .. } | Self::NotReplayable(_) | Self::Wire { .. } | Self::Gap { .. } => 2,
            _ => 3,
        }
    }
}

/// The first answer that is not the captured one.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Difference {
    /// Which connection, in the order of the capture, from 1.
    pub connection: usize,
    /// Its peer in the capture.
    pub peer: String,
    /// Which answer of the connection, from 1.
    pub answer: u64,
    /// The line that was sent, where it is known.
    pub sent: String,
    /// The captured answer.
    pub captured: String,
    /// The answer now; empty when none came.
    pub replayed: String,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct ReplayReport {
    /// Connections opened.
    pub connections: u64,
    /// Lines sent.
    pub lines: u64,
    /// Submits among the answers that were compared.
    pub shares: u64,
    /// Shares by captured status; those with a code of no known cause stand nowhere.
    pub by_status: [u64; ShareStatus::ALL.len()],
    /// Other answers that were compared.
    pub other_answers: u64,
    /// Jobs of the capture.
    pub jobs: u64,
    /// Submits that had no answer in the capture: their connection ended before.
    pub unanswered: u64,
    /// Shares that one of both refused for its own load, which is no verdict on the share.
    pub overload: u64,
    /// Length of the capture.
    pub captured_s: f64,
    /// Length of the replay.
    pub seconds: f64,
    /// Where it ended.
    pub difference: Option<Difference>,
    /// Stopped by a signal before its end.
    pub stopped: bool,
}

impl ReplayReport {
    /// The last line, for scripts.
    pub fn json(&self, order: &ReplayOrder) -> Value {
        let by_status: serde_json::Map<String, Value> =
            ShareStatus::ALL.into_iter().map(|status| (status.label().to_owned(), self.by_status[status as usize].into())).collect();
        let rounded = |value: f64| (value * 1e3).round() / 1e3;
        json!({
            "schema": 1,
            "mode": "replay",
            "speed": if order.speed == Speed::Max { "max" } else { "1" },
            "connections": self.connections,
            "lines": self.lines,
            "jobs": self.jobs,
            "shares": self.shares,
            "by_status": by_status,
            "other_answers": self.other_answers,
            "unanswered": self.unanswered,
            "overload": self.overload,
            "captured_seconds": rounded(self.captured_s),
            "seconds": rounded(self.seconds),
            "stopped": self.stopped,
            "difference": self.difference,
        })
    }

    /// The report for people.
    pub fn table(&self, order: &ReplayOrder) -> String {
        let mut text = format!(
            "replay                 {} · {} · {} connections, {} lines, {} jobs\n\
             time                   {:.2} s, captured {:.2} s\n\
             shares                 {} compared",
            order.dir.display(),
            order.target,
            self.connections,
            self.lines,
            self.jobs,
            self.seconds,
            self.captured_s,
            self.shares,
        );
        for status in ShareStatus::ALL {
            if self.by_status[status as usize] > 0 {
                text.push_str(&format!(", {} {}", self.by_status[status as usize], status.label()));
            }
        }
        text.push_str(&format!(
            "\nother answers          {} compared\nnot compared           {} without an answer in the capture, {} refused for load\n",
            self.other_answers, self.unanswered, self.overload
        ));
        match &self.difference {
            Some(difference) => text.push_str(&format!(
                "DIFFERENT at connection {} ({}), answer {}\n  sent     {}\n  captured {}\n  replayed {}\n",
                difference.connection,
                difference.peer,
                difference.answer,
                if difference.sent.is_empty() { "(not known)" } else { &difference.sent },
                difference.captured,
                if difference.replayed.is_empty() { "(no answer)" } else { &difference.replayed },
            )),
            None if self.stopped => text.push_str("stopped before the end; no difference up to there\n"),
            None => text.push_str("every answer is the captured one\n"),
        }
        text
    }
}

/// What `capture.json` says, as far as it matters here.
#[derive(serde::Deserialize)]
struct Manifest {
    format: u32,
    drawn: Drawn,
    #[serde(default)]
    not_replayable: Vec<String>,
}

#[derive(serde::Deserialize)]
struct Drawn {
    salt: u32,
}

/// A line that was sent and has no answer yet.
struct Sent {
    /// Raw token of its id, `null` where there is none.
    id: String,
    is_submit: bool,
    line: Vec<u8>,
}

struct Connection {
    number: usize,
    peer: String,
    stream: Option<TcpStream>,
    /// Bytes that the socket did not take yet.
    backlog: Vec<u8>,
    /// Starts of lines whose ends have not come: captured in and out, and received now.
    partial_in: Vec<u8>,
    partial_out: Vec<u8>,
    partial_got: Vec<u8>,
    sent: VecDeque<Sent>,
    /// Captured answers that are owed, and answers that came before they were.
    owed: VecDeque<Vec<u8>>,
    got: VecDeque<Vec<u8>>,
    compared: u64,
    /// In the capture it had been told of jobs by now.
    is_subscribed: bool,
}

/// What ends the walk through a capture early.
enum End {
    Different(Box<Difference>),
    Failed(ReplayError),
    Stopped,
}

impl From<ReplayError> for End {
    fn from(error: ReplayError) -> Self {
        Self::Failed(error)
    }
}

struct Replay<'a> {
    order: &'a ReplayOrder,
    stop: &'a AtomicBool,
    poll: Poll,
    events: Events,
    connections: Vec<Connection>,
    by_slot: HashMap<u32, usize>,
    buffer: Box<[u8]>,
    salt: u32,
    /// Newest job that any connection was told of, by counter.
    newest_seen: u32,
    /// Newest job that the walk has passed, and of the whole capture.
    newest_passed: u32,
    jobs: u32,
    backlog_bytes: usize,
    owed: usize,
    /// Last time that anything came or went.
    moved: Instant,
    report: ReplayReport,
}

/// Plays the capture to its end, to the first difference, or until the flag is set.
pub fn replay(order: &ReplayOrder, stop: &AtomicBool) -> Result<ReplayReport, ReplayError> {
    let manifest = read_manifest(&order.dir)?;
    let path = order.dir.join("wire-0.bin");
    // The whole of it is looked at first: a replay that finds out at its end that the capture is damaged has shown nothing.
    let bounds = survey(&path, order)?;
    let limit = raise_file_limit();
    if limit < bounds.open_max as u64 + 32 {
        return Err(ReplayError::FileLimit { connections: bounds.open_max, limit });
    }
    let started = Instant::now();
    let mut replay = Replay {
        order,
        stop,
        poll: Poll::new().map_err(ReplayError::Poll)?,
        events: Events::with_capacity(1024),
        connections: Vec::new(),
        by_slot: HashMap::new(),
        buffer: vec![0; READ_BYTES].into(),
        salt: manifest.drawn.salt,
        newest_seen: 0,
        newest_passed: 0,
        jobs: bounds.jobs,
        backlog_bytes: 0,
        owed: 0,
        moved: started,
        report: ReplayReport { captured_s: bounds.length_us as f64 / 1e6, ..ReplayReport::default() },
    };
    match replay.walk(&path, &bounds) {
        Ok(()) => {}
        Err(End::Different(difference)) => replay.report.difference = Some(*difference),
        Err(End::Stopped) => replay.report.stopped = true,
        Err(End::Failed(error)) => return Err(error),
    }
    replay.report.seconds = started.elapsed().as_secs_f64();
    Ok(replay.report)
}

fn read_manifest(dir: &Path) -> Result<Manifest, ReplayError> {
    let path = dir.join("capture.json");
    let wrong = |what: String| ReplayError::Manifest { path: path.clone(), what };
    let text = std::fs::read_to_string(&path).map_err(|error| wrong(error.to_string()))?;
    let manifest: Manifest = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    if manifest.format != 1 {
        return Err(wrong(format!("format {}, of which this program knows 1", manifest.format)));
    }
    if !manifest.not_replayable.is_empty() {
        return Err(ReplayError::NotReplayable(manifest.not_replayable.join("; ")));
    }
    Ok(manifest)
}

/// How far a capture is to be played, and what that takes.
#[derive(Debug, Default)]
struct Bounds {
    entries: u64,
    first_us: u64,
    length_us: u64,
    open_max: usize,
    jobs: u32,
}

fn open(path: &Path) -> Result<CaptureReader<BufReader<File>>, ReplayError> {
    let wire = |source| ReplayError::Wire { path: path.to_owned(), source, can_be_cut: false };
    let file = File::open(path).map_err(|error| wire(error.into()))?;
    CaptureReader::new(BufReader::with_capacity(1 << 20, file)).map_err(wire)
}

/// Reads the whole file once.
fn survey(path: &Path, order: &ReplayOrder) -> Result<Bounds, ReplayError> {
    let mut reader = open(path)?;
    let mut bounds = Bounds::default();
    let (mut first_us, mut last_us, mut open) = (None, 0, 0usize);
    loop {
        match reader.next_entry() {
            Ok(Some((Entry::Lost { entries, bytes }, at_us))) => {
                if order.whole_part {
                    break;
                }
                let (entries, after_s) = (entries.into(), at_us as f64 / 1e6);
                return Err(ReplayError::Gap { path: path.to_owned(), entries, bytes, after_s });
            }
            Ok(Some((entry, at_us))) => {
                // The time until the first miner came is nothing to wait for.
                if let Entry::Opened { .. } = entry {
                    first_us.get_or_insert(at_us);
                    open += 1;
                    bounds.open_max = bounds.open_max.max(open);
                }
                if let Entry::Job(job) = entry {
                    bounds.jobs = bounds.jobs.max(job.counter);
                }
                if let Entry::Left { .. } | Entry::Shut { .. } = entry {
                    open = open.saturating_sub(1);
                }
                last_us = at_us;
                bounds.entries += 1;
            }
            Ok(None) => break,
            Err(CaptureError::CutOff { .. }) if order.whole_part => break,
            Err(source) => {
                let can_be_cut = matches!(source, CaptureError::CutOff { .. });
                return Err(ReplayError::Wire { path: path.to_owned(), source, can_be_cut });
            }
        }
    }
    bounds.first_us = first_us.unwrap_or(last_us);
    bounds.length_us = last_us.saturating_sub(bounds.first_us);
    Ok(bounds)
}

/// Whole lines of `bytes` behind what `partial` holds, without their ends; what is left over stays in `partial`.
fn lines(partial: &mut Vec<u8>, bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut rest = bytes;
    while let Some(at) = memchr::memchr(b'\n', rest) {
        partial.extend_from_slice(&rest[..at]);
        found.push(std::mem::take(partial));
        rest = &rest[at + 1..];
    }
    partial.extend_from_slice(rest);
    found
}

/// The job that a notification names, as the number at the front of its id.
fn job_of(message: &Message<'_>) -> Option<u32> {
    if message.method.as_deref() != Some("mining.notify") {
        return None;
    }
    let params: Vec<Value> = serde_json::from_str(message.params?.get()).ok()?;
    u32::from_str_radix(params.first()?.as_str()?.get(..8)?, 16).ok()
}

fn shown(line: &[u8]) -> String {
    String::from_utf8_lossy(&line[..line.len().min(SHOWN_BYTES)]).into_owned()
}

/// What two answers must have in common.
#[derive(PartialEq, Debug)]
enum Meaning {
    /// Raw id, verdict, and whether there is a result that is no verdict.
    Answer { id: String, verdict: Verdict, refused: bool },
    /// To mining.subscribe: extranonce1 and the bytes of extranonce2.
    Subscribed { id: String, extranonce1: String, extranonce2_bytes: u64 },
    /// No answer at all.
    Other(Vec<u8>),
}

impl Meaning {
    fn of(line: &[u8]) -> Self {
        let Ok(message) = serde_json::from_slice::<Message<'_>>(line) else { return Self::Other(line.to_vec()) };
        let id = message.id.map_or("null", |id| id.get()).to_owned();
        let subscribed = message.result.and_then(|result| serde_json::from_str::<(Value, String, u64)>(result.get()).ok());
        match subscribed {
            Some((_, extranonce1, extranonce2_bytes)) => Self::Subscribed { id, extranonce1, extranonce2_bytes },
            None => Self::Answer { id, verdict: message.verdict(), refused: message.error.is_some() },
        }
    }
}

impl Replay<'_> {
    fn walk(&mut self, path: &Path, bounds: &Bounds) -> Result<(), End> {
        let mut reader = open(path)?;
        let begun = Instant::now();
        for _ in 0..bounds.entries {
            let Some((entry, at_us)) =
                reader.next_entry().map_err(|source| ReplayError::Wire { path: path.to_owned(), source, can_be_cut: false })?
            else {
                break;
            };
            if self.order.speed == Speed::AsCaptured && !matches!(entry, Entry::Out { .. } | Entry::Job(_)) {
                self.pump_until(begun + Duration::from_micros(at_us.saturating_sub(bounds.first_us)))?;
            }
            match entry {
                Entry::Opened { slot, peer } => self.open(slot, peer)?,
                Entry::In { slot, bytes } => self.send(slot, bytes)?,
                Entry::Out { slot, bytes } => self.owe(slot, bytes)?,
                Entry::Left { slot } | Entry::Shut { slot } => self.leave(slot)?,
                Entry::Job(job) => self.pass_job(&job)?,
                Entry::Lost { .. } | Entry::Full | Entry::End => {}
            }
        }
        self.pump_while(|replay| replay.owed > 0)
    }

    fn open(&mut self, slot: u32, peer: &str) -> Result<(), End> {
        let index = self.connections.len();
        let reset_on_close = index >= socket::PER_SOURCE;
        let order = SocketOrder { source: socket::source_of(self.order.target, index), receive_bytes: None, reset_on_close };
        let failed = |error: io::Error| self.connection_error(index, format!("connect: {error}"));
        let mut stream = socket::connect(self.order.target, order).map_err(failed)?;
        self.poll.registry().register(&mut stream, Token(index), Interest::READABLE | Interest::WRITABLE).map_err(failed)?;
        self.connections.push(Connection {
            number: index + 1,
            peer: peer.to_owned(),
            stream: Some(stream),
            backlog: Vec::new(),
            partial_in: Vec::new(),
            partial_out: Vec::new(),
            partial_got: Vec::new(),
            sent: VecDeque::new(),
            owed: VecDeque::new(),
            got: VecDeque::new(),
            compared: 0,
            is_subscribed: false,
        });
        // One after the other: the server gives extranonces in the order in which connections stand in its queue.
        let since = Instant::now();
        loop {
            let stream = self.connections[index].stream.as_ref();
            let Some(stream) = stream else { return Err(self.connection_error(index, "the server closed it at once".into()).into()) };
            match stream.take_error() {
                Ok(None) if stream.peer_addr().is_ok() => break,
                Ok(None) => {}
                Ok(Some(error)) | Err(error) => return Err(self.connection_error(index, format!("connect: {error}")).into()),
            }
            if since.elapsed() > CONNECT_LIMIT {
                return Err(self.connection_error(index, format!("not up after {} s", CONNECT_LIMIT.as_secs())).into());
            }
            self.pump(Duration::from_millis(5))?;
        }
        if let Some(stream) = &self.connections[index].stream {
            // Lines leave as they were captured, not as the kernel would like to gather them.
            let _ = stream.set_nodelay(true);
        }
        self.by_slot.insert(slot, index);
        self.report.connections += 1;
        Ok(())
    }

    fn connection_error(&self, index: usize, what: String) -> ReplayError {
        ReplayError::Connection { number: index + 1, target: self.order.target, what }
    }

    fn send(&mut self, slot: u32, bytes: &[u8]) -> Result<(), End> {
        let Some(&index) = self.by_slot.get(&slot) else { return Ok(()) };
        // A job that nobody could be told of when it was passed: who is told first says that it is there.
        if self.connections[index].is_subscribed && self.newest_seen < self.newest_passed {
            self.await_job()?;
        }
        let connection = &mut self.connections[index];
        for line in lines(&mut connection.partial_in, bytes) {
            self.report.lines += 1;
            let message = serde_json::from_slice::<Message<'_>>(&line);
            let (id, is_submit) = match &message {
                Ok(message) => (message.id.map_or("null", |id| id.get()), message.method.as_deref() == Some("mining.submit")),
                Err(_) => ("null", false),
            };
            connection.sent.push_back(Sent { id: id.to_owned(), is_submit, line: line.clone() });
        }
        if connection.stream.is_some() {
            connection.backlog.extend_from_slice(bytes);
            self.backlog_bytes += bytes.len();
            self.write(index);
        }
        self.pump(Duration::ZERO)?;
        self.pump_while(|replay| replay.backlog_bytes > BACKLOG_BYTES_MAX || replay.owed > OWED_MAX)
    }

    /// What the server said in the capture: its answers are owed now.
    fn owe(&mut self, slot: u32, bytes: &[u8]) -> Result<(), End> {
        let Some(&index) = self.by_slot.get(&slot) else { return Ok(()) };
        let connection = &mut self.connections[index];
        for line in lines(&mut connection.partial_out, bytes) {
            match serde_json::from_slice::<Message<'_>>(&line) {
                Ok(message) if message.method.is_some() => connection.is_subscribed |= message.method.as_deref() == Some("mining.notify"),
                _ => {
                    connection.owed.push_back(line);
                    self.owed += 1;
                }
            }
        }
        self.compare(index)
    }

    /// The connection ended here, by whichever side: everything that it was told is waited for, then this side ends it.
    fn leave(&mut self, slot: u32) -> Result<(), End> {
        let Some(index) = self.by_slot.remove(&slot) else { return Ok(()) };
        self.pump_while(|replay| {
            let connection = &replay.connections[index];
            !connection.owed.is_empty() || (connection.stream.is_some() && !connection.backlog.is_empty())
        })?;
        let connection = &mut self.connections[index];
        self.report.unanswered += connection.sent.drain(..).filter(|sent| sent.is_submit).count() as u64;
        if let Some(stream) = &connection.stream {
            // Not closed: bytes that the server has not read yet would be lost with it. It closes its side when it comes to the end.
            let _ = stream.shutdown(Shutdown::Write);
        }
        Ok(())
    }

    /// Everything before the job has left; nothing behind it does before it has come.
    fn pass_job(&mut self, job: &JobEntry) -> Result<(), End> {
        self.report.jobs += 1;
        self.newest_passed = job.counter;
        self.pump_while(|replay| replay.backlog_bytes > 0)?;
        let somebody_is_told = self.by_slot.values().any(|&index| self.connections[index].is_subscribed);
        if somebody_is_told { self.await_job() } else { Ok(()) }
    }

    fn await_job(&mut self) -> Result<(), End> {
        self.moved = Instant::now();
        while self.newest_seen < self.newest_passed {
            if self.moved.elapsed() > PATIENCE {
                let what = format!("job {} of the capture did not come within {} s", self.newest_passed, PATIENCE.as_secs());
                return Err(self.other_server(what));
            }
            let mut told = self.by_slot.values().map(|&index| &self.connections[index]).filter(|connection| connection.is_subscribed);
            if let Some(gone) = told.clone().find(|connection| connection.stream.is_none())
                && told.all(|connection| connection.stream.is_none())
            {
                return Err(self.connection_error(gone.number - 1, "the server closed it while a job was waited for".into()).into());
            }
            self.pump(Duration::from_millis(5))?;
        }
        Ok(())
    }

    fn other_server(&self, what: String) -> End {
        ReplayError::OtherServer { target: self.order.target, what, dir: self.order.dir.clone() }.into()
    }

    /// Compares what has come with what is owed.
    fn compare(&mut self, index: usize) -> Result<(), End> {
        let connection = &mut self.connections[index];
        while let (Some(captured), Some(replayed)) = (connection.owed.front(), connection.got.front()) {
            let same_bytes = captured == replayed;
            let meaning = Meaning::of(captured);
            let now = if same_bytes { None } else { Some(Meaning::of(replayed)) };
            let id = match &meaning {
                Meaning::Answer { id, .. } | Meaning::Subscribed { id, .. } => id.as_str(),
                Meaning::Other(_) => "null",
            };
            // Lines that need no answer stand between those that have one.
            while connection.sent.front().is_some_and(|sent| sent.id != id) {
                connection.sent.pop_front();
            }
            let sent = connection.sent.pop_front();
            let is_overload =
                |meaning: &Meaning| matches!(meaning, Meaning::Answer { verdict, .. } if verdict.status == Some(ShareStatus::Overload));
            let for_load = now.as_ref().is_some_and(|now| is_overload(now) || is_overload(&meaning));
            if now.is_some_and(|now| now != meaning) && !for_load {
                return Err(End::Different(Box::new(Difference {
                    connection: connection.number,
                    peer: connection.peer.clone(),
                    answer: connection.compared + 1,
                    sent: sent.map_or(String::new(), |sent| shown(&sent.line)),
                    captured: shown(captured),
                    replayed: shown(replayed),
                })));
            }
            match (&meaning, sent.is_some_and(|sent| sent.is_submit)) {
                _ if for_load => self.report.overload += 1,
                // Before mining.subscribe a submit is no share (25).
                (Meaning::Answer { verdict, .. }, true) if verdict.code != 25 => {
                    self.report.shares += 1;
                    if let Some(status) = verdict.status {
                        self.report.by_status[status as usize] += 1;
                    }
                }
                _ => self.report.other_answers += 1,
            }
            connection.compared += 1;
            connection.owed.pop_front();
            connection.got.pop_front();
            self.owed -= 1;
        }
        Ok(())
    }

    // ---- sockets ----

    fn pump_until(&mut self, until: Instant) -> Result<(), End> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.pump(left.min(Duration::from_millis(20)))?;
        }
    }

    /// Pumps while the condition holds; when nothing moves for too long, what is owed first is missing.
    fn pump_while(&mut self, holds: impl Fn(&Self) -> bool) -> Result<(), End> {
        self.moved = Instant::now();
        while holds(self) {
            if self.moved.elapsed() > PATIENCE {
                return Err(self.missing());
            }
            self.pump(Duration::from_millis(5))?;
            // An answer that cannot come any more need not be waited for.
            if let Some(index) = self.connections.iter().position(|connection| connection.stream.is_none() && !connection.owed.is_empty()) {
                return Err(self.missing_of(index));
            }
        }
        Ok(())
    }

    fn missing(&mut self) -> End {
        match self.connections.iter().position(|connection| !connection.owed.is_empty()) {
            Some(index) => self.missing_of(index),
            None => self.connection_error(0, format!("the server reads nothing for {} s", PATIENCE.as_secs())).into(),
        }
    }

    fn missing_of(&mut self, index: usize) -> End {
        let connection = &mut self.connections[index];
        let captured = connection.owed.pop_front().unwrap_or_default();
        let id = match Meaning::of(&captured) {
            Meaning::Answer { id, .. } | Meaning::Subscribed { id, .. } => id,
            Meaning::Other(_) => "null".to_owned(),
        };
        let sent = connection.sent.iter().find(|sent| sent.id == id).map_or(String::new(), |sent| shown(&sent.line));
        End::Different(Box::new(Difference {
            connection: connection.number,
            peer: connection.peer.clone(),
            answer: connection.compared + 1,
            sent,
            captured: shown(&captured),
            replayed: String::new(),
        }))
    }

    fn pump(&mut self, timeout: Duration) -> Result<(), End> {
        // Relaxed: the flag carries no data.
        if self.stop.load(Ordering::Relaxed) {
            return Err(End::Stopped);
        }
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(ReplayError::Poll(error).into()),
        }
        let ready: Vec<(usize, bool, bool)> = self
            .events
            .iter()
            .map(|event| (event.token().0, event.is_writable(), event.is_readable() || event.is_read_closed() || event.is_error()))
            .collect();
        for (index, is_writable, is_readable) in ready {
            if is_writable {
                self.write(index);
            }
            if is_readable {
                self.read(index)?;
            }
        }
        Ok(())
    }

    /// Writes what the socket takes. A connection that is gone shows when it is read.
    fn write(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let Some(stream) = &mut connection.stream else { return };
        let mut written = 0;
        while written < connection.backlog.len() {
            match stream.write(&connection.backlog[written..]) {
                Ok(0) => break,
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        if written > 0 {
            self.moved = Instant::now();
            connection.backlog.drain(..written);
            self.backlog_bytes -= written;
        }
    }

    fn read(&mut self, index: usize) -> Result<(), End> {
        loop {
            let connection = &mut self.connections[index];
            let Some(stream) = &mut connection.stream else { return Ok(()) };
            let count = match stream.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected) => return Ok(()),
                Err(_) => break,
            };
            self.moved = Instant::now();
            for line in lines(&mut connection.partial_got, &self.buffer[..count]) {
                match serde_json::from_slice::<Message<'_>>(&line) {
                    Ok(message) if message.method.is_some() => {
                        if let Some(job) = job_of(&message) {
                            let counter = job.wrapping_sub(self.salt);
                            // The ids of other boots count from elsewhere.
                            if counter == 0 || counter > self.jobs {
                                let what = format!("it sent job {job:08x}, which the capture does not have");
                                return Err(self.other_server(what));
                            }
                            self.newest_seen = self.newest_seen.max(counter);
                        }
                    }
                    _ => connection.got.push_back(line),
                }
            }
            self.compare(index)?;
        }
        // What could not be sent never will be.
        let connection = &mut self.connections[index];
        connection.stream = None;
        self.backlog_bytes -= connection.backlog.len();
        connection.backlog.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_across_reads() {
        let mut partial = Vec::new();
        assert_eq!(lines(&mut partial, b"ab"), Vec::<Vec<u8>>::new());
        assert_eq!(lines(&mut partial, b"c\n\nd\ne"), [b"abc".to_vec(), b"".to_vec(), b"d".to_vec()]);
        assert_eq!(partial, b"e");
    }

    #[test]
    fn answers_differ_by_verdict_and_extranonce_and_not_by_wording() {
        let same = |one: &str, two: &str| Meaning::of(one.as_bytes()) == Meaning::of(two.as_bytes());
        let accepted = r#"{"id":4,"result":true,"error":null}"#;
        assert!(same(accepted, r#"{"id": 4, "error": null, "result": true}"#));
        assert!(!same(accepted, r#"{"id":5,"result":true,"error":null}"#));
        assert!(!same(accepted, r#"{"id":4,"result":null,"error":[22,"duplicate share",null]}"#));
        assert!(same(
            r#"{"id":4,"result":null,"error":[22,"duplicate share",null]}"#,
            r#"{"id":4,"result":false,"error":[22,"seen",null]}"#
        ));
        assert!(!same(r#"{"id":4,"result":null,"error":[20,"bad_time",null]}"#, r#"{"id":4,"result":null,"error":[20,"malformed",null]}"#));
        let subscribed = r#"{"id":1,"result":[[["mining.notify","00000001"]],"00000001",8],"error":null}"#;
        assert!(same(subscribed, r#"{"id":1,"result":[[],"00000001",8],"error":null}"#));
        assert!(!same(subscribed, r#"{"id":1,"result":[[],"00000002",8],"error":null}"#));
    }

    #[test]
    fn a_notification_names_its_job_by_the_first_eight_digits() {
        let job = |line: &str| job_of(&serde_json::from_str::<Message<'_>>(line).expect("json"));
        assert_eq!(job(r#"{"id":null,"method":"mining.notify","params":["0000001f","aa"]}"#), Some(0x1f));
        assert_eq!(job(r#"{"id":null,"method":"mining.notify","params":["0000001f02","aa"]}"#), Some(0x1f));
        assert_eq!(job(r#"{"id":null,"method":"mining.notify","params":["é"]}"#), None);
        assert_eq!(job(r#"{"id":null,"method":"mining.set_difficulty","params":[1]}"#), None);
    }
}
