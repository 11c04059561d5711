//! Clients that a server must survive. Bounded in connections and in time; against loopback unless the user says that the target is theirs.
use crate::cpu;
use crate::engine::raise_file_limit;
use crate::random;
use crate::socket::{self, SocketOrder};
use clap::ValueEnum;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use serde_json::{Value, json};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A way to abuse a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Abuse {
    /// Begins a line and sends one byte of it a second.
    Slowloris,
    /// Connects and says nothing, or subscribes and closes its own side.
    HalfOpen,
    /// Bytes and broken JSON, as fast as the server takes them.
    Junk,
    /// A line that does not end.
    GiantLines,
    /// The same share again and again; runs on the farm, as the first of them must be valid.
    DuplicateStorm,
    /// Connects and resets, again and again.
    ConnectFlood,
    /// Sends submits and never reads an answer.
    SlowReader,
}

impl Abuse {
    /// Key in the command line and in the reports.
    pub fn label(self) -> &'static str {
        match self {
            Self::Slowloris => "slowloris",
            Self::HalfOpen => "half-open",
            Self::Junk => "junk",
            Self::GiantLines => "giant-lines",
            Self::DuplicateStorm => "duplicate-storm",
            Self::ConnectFlood => "connect-flood",
            Self::SlowReader => "slow-reader",
        }
    }
}

/// An abuse as it is ordered.
#[derive(Clone, Copy, Debug)]
pub struct AbuseOrder {
    /// Where to; the caller has checked that it may.
    pub target: SocketAddr,
    /// How; `DuplicateStorm` is not this module's.
    pub kind: Abuse,
    /// Connections that are kept open, or tried, at the same time.
    pub connections: usize,
    /// How long.
    pub length: Duration,
    /// At most so many new connections a second; 0 for as many as one core makes.
    pub connects_per_s: f64,
    /// Seed of what is sent.
    pub seed: u64,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct AbuseReport {
    /// How long it lasted.
    pub seconds: f64,
    /// Connections that came up.
    pub connects: u64,
    /// Connections that did not.
    pub connect_errors: u64,
    /// Connections that the server ended.
    pub closed_by_server: u64,
    /// Most that were open at the same time.
    pub open_max: usize,
    /// Bytes that the server's side took.
    pub sent_bytes: u64,
    /// Bytes that came back and were read.
    pub received_bytes: u64,
    /// CPU time of this side.
    pub client_cpu_s: f64,
    /// What went wrong last.
    pub trouble: String,
}

/// epoll, or too few files.
#[derive(Debug, thiserror::Error)]
pub enum AbuseError {
    /// epoll.
    #[error("cannot wait on epoll: {0}")]
    Poll(#[from] io::Error),
    /// More sockets than this process may open.
    #[error("{connections} connections need more than the {limit} files that this process may open (ulimit -Hn); use fewer")]
    FileLimit {
        /// Connections ordered.
        connections: usize,
        /// The limit.
        limit: u64,
    },
}

impl AbuseReport {
    /// The last line of `--json`.
    pub fn json(&self, order: &AbuseOrder) -> Value {
        let per_s = |count: f64| if self.seconds > 0.0 { (count / self.seconds).round() } else { 0.0 };
        json!({
            "schema": 1,
            "mode": "abuse",
            "abuse": order.kind.label(),
            "connections": order.connections,
            "seconds": (self.seconds * 1e3).round() / 1e3,
            "seed": order.seed,
            "connects": self.connects,
            "connects_per_s": per_s(self.connects as f64),
            "connect_errors": self.connect_errors,
            "closed_by_server": self.closed_by_server,
            "open_max": self.open_max,
            "sent_bytes": self.sent_bytes,
            "sent_bytes_per_s": per_s(self.sent_bytes as f64),
            "received_bytes": self.received_bytes,
            "client_cpu_s": (self.client_cpu_s * 1e3).round() / 1e3,
        })
    }

    /// The report for people.
    pub fn table(&self, order: &AbuseOrder) -> String {
        let per_s = |count: u64| if self.seconds > 0.0 { count as f64 / self.seconds } else { 0.0 };
        format!(
            "abuse                  {} · {} · {} connections for {:.1} s\n\
             connections            {} came up ({:.0} a second), {} failed, {} at most at the same time\n\
             closed by the server   {}\n\
             sent                   {} bytes ({:.0} a second), {} came back\n\
             generator              {:.2} s CPU; last trouble: {}\n",
            order.kind.label(),
            order.target,
            order.connections,
            self.seconds,
            self.connects,
            per_s(self.connects),
            self.connect_errors,
            self.open_max,
            self.closed_by_server,
            self.sent_bytes,
            per_s(self.sent_bytes),
            self.received_bytes,
            self.client_cpu_s,
            if self.trouble.is_empty() { "none" } else { &self.trouble },
        )
    }
}

/// New connections that are under way at the same time.
const CONNECTING_MAX: usize = 512;
/// A slowloris sends its next byte after so long.
const DRIP: Duration = Duration::from_secs(1);
/// Bytes of one write.
const BLOCK_BYTES: usize = 8192;
/// A connection that a server lets send this much starts over.
const PER_CONNECTION_BYTES_MAX: u64 = 64 << 20;
/// Wait after a connection that failed or was closed.
const BACK_OFF: Duration = Duration::from_millis(20);

const SUBSCRIBE: &[u8] = b"{\"id\":1,\"method\":\"mining.subscribe\",\"params\":[\"loadgen/abuse\"]}\n";
const AUTHORIZE: &[u8] = b"{\"id\":2,\"method\":\"mining.authorize\",\"params\":[\"abuse.w\",\"x\"]}\n";
const SUBMIT: &[u8] =
    b"{\"id\":4,\"method\":\"mining.submit\",\"params\":[\"abuse.w\",\"0badc0de\",\"0000000000000001\",\"6b00dbcb\",\"00000001\"]}\n";

/// Lines that parsers have died of; random bytes follow them.
const JUNK_LINES: [&[u8]; 10] = [
    b"{\"id\":1,\"method\":\"mining.submit\",\"params\":[\"\\u0000\\ud800\",\"\\\\\\\\\",\"\\\"\",\"\",\"\"]}\n",
    b"{\"id\":{},\"method\":[],\"params\":{}}\n",
    b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\n",
    b"{\"id\":1e309,\"method\":\"mining.subscribe\",\"params\":[1e309]}\n",
    b"{\"method\":\"mining.submit\",\"method\":\"mining.authorize\",\"id\":1,\"id\":2}\n",
    b"\xff\xfe\xfd\x00\x01\n",
    b"{\"id\":1,\"method\":\"mining.nonsense\",\"params\":[]}\n",
    b"null\n",
    b"\r\n\r\n\n\n",
    b"{\"id\":18446744073709551616,\"method\":\"mining.submit\",\"params\":[null,null,null,null,null]}\n",
];

struct Client {
    stream: TcpStream,
    number: usize,
    is_up: bool,
    sent: u64,
    drip_at: Instant,
    /// The kernel's buffer was full; the next event says when it is not.
    is_full: bool,
}

/// Abuses the target until the time is up or the flag is set.
pub fn abuse(order: &AbuseOrder, stop: &AtomicBool) -> Result<AbuseReport, AbuseError> {
    let limit = raise_file_limit();
    if limit < order.connections as u64 + 32 {
        return Err(AbuseError::FileLimit { connections: order.connections, limit });
    }
    let cpu_before = cpu::thread_seconds();
    let mut attack = Attack {
        order,
        poll: Poll::new()?,
        clients: (0..order.connections).map(|_| None).collect(),
        free: (0..order.connections).rev().collect(),
        waiting: Vec::new(),
        connecting: 0,
        open: 0,
        started_connects: 0,
        state: random::mix(order.seed),
        block: Vec::with_capacity(2 * BLOCK_BYTES),
        buffer: vec![0; 1 << 16].into(),
        report: AbuseReport::default(),
        started: Instant::now(),
    };
    attack.fill_block();
    let mut events = Events::with_capacity(1024);
    // Relaxed: the flag carries no data.
    while attack.started.elapsed() < order.length && !stop.load(Ordering::Relaxed) {
        attack.connect_due();
        let wait = if order.kind == Abuse::ConnectFlood && order.connects_per_s == 0.0 { Duration::ZERO } else { Duration::from_millis(2) };
        match attack.poll.poll(&mut events, Some(wait)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            attack.on_event(event.token().0, event.is_writable(), event.is_readable() || event.is_read_closed() || event.is_error());
        }
        attack.talk();
    }
    let mut report = attack.report;
    report.seconds = attack.started.elapsed().as_secs_f64();
    report.client_cpu_s = cpu::thread_seconds() - cpu_before;
    Ok(report)
}

struct Attack<'a> {
    order: &'a AbuseOrder,
    poll: Poll,
    clients: Vec<Option<Client>>,
    free: Vec<usize>,
    /// Slots whose last connection ended, and when they may be tried again.
    waiting: Vec<(Instant, usize)>,
    connecting: usize,
    open: usize,
    started_connects: u64,
    state: u64,
    block: Vec<u8>,
    buffer: Box<[u8]>,
    report: AbuseReport,
    started: Instant,
}

impl Attack<'_> {
    /// What a connection sends over and over.
    fn fill_block(&mut self) {
        self.block.clear();
        match self.order.kind {
            Abuse::Junk => {
                while self.block.len() < BLOCK_BYTES {
                    let drawn = random::next(&mut self.state);
                    self.block.extend_from_slice(JUNK_LINES[(drawn % JUNK_LINES.len() as u64) as usize]);
                    for _ in 0..drawn >> 32 & 15 {
                        self.block.extend_from_slice(&random::next(&mut self.state).to_le_bytes());
                    }
                    self.block.push(b'\n');
                }
            }
            Abuse::GiantLines => self.block.resize(BLOCK_BYTES, b'['),
            _ => {
                while self.block.len() < BLOCK_BYTES {
                    self.block.extend_from_slice(SUBMIT);
                }
            }
        }
    }

    fn connect_due(&mut self) {
        let now = Instant::now();
        self.waiting.retain(|&(when, slot)| {
            let is_due = when <= now;
            if is_due {
                self.free.push(slot);
            }
            !is_due
        });
        let allowed = match self.order.connects_per_s {
            rate if rate > 0.0 => (self.started.elapsed().as_secs_f64() * rate) as u64,
            _ => u64::MAX,
        };
        while self.connecting < CONNECTING_MAX && self.started_connects < allowed {
            let Some(slot) = self.free.pop() else { break };
            let number = self.started_connects as usize;
            self.started_connects += 1;
            let receive_bytes = (self.order.kind == Abuse::SlowReader).then_some(2048);
            let order = SocketOrder { source: socket::source_of(self.order.target, slot), receive_bytes, reset_on_close: true };
            let stream = socket::connect(self.order.target, order).and_then(|mut stream| {
                self.poll.registry().register(&mut stream, Token(slot), Interest::READABLE | Interest::WRITABLE)?;
                Ok(stream)
            });
            match stream {
                Ok(stream) => {
                    self.connecting += 1;
                    self.clients[slot] = Some(Client { stream, number, is_up: false, sent: 0, drip_at: now, is_full: false });
                }
                Err(error) => {
                    self.report.connect_errors += 1;
                    self.report.trouble = format!("connect: {error}");
                    self.waiting.push((now + BACK_OFF, slot));
                }
            }
        }
    }

    fn end(&mut self, slot: usize, by_server: bool, trouble: Option<String>) {
        let Some(client) = self.clients[slot].take() else { return };
        if client.is_up {
            self.open -= 1;
            self.report.closed_by_server += u64::from(by_server);
        } else {
            self.connecting -= 1;
            self.report.connect_errors += 1;
        }
        if let Some(trouble) = trouble {
            self.report.trouble = trouble;
        }
        if by_server {
            self.waiting.push((Instant::now() + BACK_OFF, slot));
        } else {
            self.free.push(slot);
        }
    }

    fn on_event(&mut self, slot: usize, is_writable: bool, is_readable: bool) {
        let Some(client) = &mut self.clients[slot] else { return };
        if is_writable && !client.is_up {
            match client.stream.take_error() {
                Ok(None) if client.stream.peer_addr().is_ok() => {}
                Ok(None) => return,
                Ok(Some(error)) | Err(error) => return self.end(slot, true, Some(format!("connect: {error}"))),
            }
            client.is_up = true;
            self.connecting -= 1;
            self.open += 1;
            self.report.open_max = self.report.open_max.max(self.open);
            self.report.connects += 1;
            if !self.greet(slot) {
                return;
            }
        }
        let Some(client) = &mut self.clients[slot] else { return };
        client.is_full = client.is_full && !is_writable;
        if is_readable && self.order.kind != Abuse::SlowReader {
            self.read(slot);
        }
    }

    /// The first words; false when the connection is over with them.
    fn greet(&mut self, slot: usize) -> bool {
        let Some(client) = &mut self.clients[slot] else { return false };
        match self.order.kind {
            Abuse::ConnectFlood => {
                self.end(slot, false, None);
                return false;
            }
            Abuse::HalfOpen if client.number.is_multiple_of(2) => {
                self.write(slot, SUBSCRIBE, 0);
                if let Some(client) = &self.clients[slot] {
                    // A connection that broke meanwhile shows as an event.
                    let _ = client.stream.shutdown(Shutdown::Write);
                }
            }
            Abuse::SlowReader => {
                self.write(slot, SUBSCRIBE, 0);
                self.write(slot, AUTHORIZE, 0);
            }
            _ => {}
        }
        true
    }

    /// Writes from `bytes`, counted from `from`; what does not fit is left to the next round.
    fn write(&mut self, slot: usize, bytes: &[u8], from: usize) {
        let Some(client) = &mut self.clients[slot] else { return };
        match client.stream.write(&bytes[from..]) {
            Ok(count) => {
                client.sent += count as u64;
                self.report.sent_bytes += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => client.is_full = true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => self.end(slot, true, Some(format!("write: {error}"))),
        }
    }

    fn read(&mut self, slot: usize) {
        loop {
            let Some(client) = &mut self.clients[slot] else { return };
            match client.stream.read(&mut self.buffer) {
                Ok(0) => return self.end(slot, true, Some("the server closed the connection".into())),
                Ok(count) => self.report.received_bytes += count as u64,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.end(slot, true, Some(format!("read: {error}"))),
            }
        }
    }

    /// Every connection says its next words.
    fn talk(&mut self) {
        if matches!(self.order.kind, Abuse::ConnectFlood | Abuse::HalfOpen) {
            return;
        }
        let now = Instant::now();
        let block = std::mem::take(&mut self.block);
        for slot in 0..self.clients.len() {
            let Some(client) = &mut self.clients[slot] else { continue };
            if !client.is_up || client.is_full {
                continue;
            }
            if client.sent > PER_CONNECTION_BYTES_MAX {
                self.end(slot, false, None);
                continue;
            }
            if self.order.kind == Abuse::Slowloris {
                if client.drip_at <= now {
                    client.drip_at = now + DRIP;
                    // Never its newline.
                    let at = client.sent as usize % (SUBSCRIBE.len() - 1);
                    self.write(slot, &SUBSCRIBE[..=at], at);
                }
                continue;
            }
            // A write that was cut goes on where it stopped, so that lines stay lines.
            let at = client.sent as usize % block.len();
            self.write(slot, &block, at);
        }
        self.block = block;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    /// A server that takes every connection, reads it to its end and closes it after `limit` bytes; it counts connections and bytes.
    fn server(limit: u64) -> (SocketAddr, Arc<(AtomicU64, AtomicU64)>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let counts = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
        let shared = Arc::clone(&counts);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(mut stream), counts) = (stream, Arc::clone(&shared)) else { continue };
                counts.0.fetch_add(1, Ordering::Relaxed);
                std::thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    let mut read = 0;
                    while let Ok(count @ 1..) = stream.read(&mut buffer) {
                        counts.1.fetch_add(count as u64, Ordering::Relaxed);
                        read += count as u64;
                        if read >= limit {
                            break;
                        }
                    }
                });
            }
        });
        (address, counts)
    }

    fn go(kind: Abuse, limit: u64) -> (AbuseReport, u64, u64) {
        let (target, counts) = server(limit);
        let order = AbuseOrder { target, kind, connections: 8, length: Duration::from_millis(400), connects_per_s: 200.0, seed: 3 };
        let report = abuse(&order, &AtomicBool::new(false)).expect("abuse");
        (report, counts.0.load(Ordering::Relaxed), counts.1.load(Ordering::Relaxed))
    }

    #[test]
    fn a_slowloris_holds_its_connections_and_says_next_to_nothing() {
        let (report, accepted, _) = go(Abuse::Slowloris, u64::MAX);
        assert_eq!((report.open_max, report.connects, report.closed_by_server), (8, 8, 0), "{report:?}");
        assert!(report.sent_bytes >= 8 && report.sent_bytes < 100 && accepted >= 8, "{report:?}");
    }

    #[test]
    fn floods_of_bytes_come_back_when_they_are_cut_off() {
        for kind in [Abuse::Junk, Abuse::GiantLines, Abuse::SlowReader] {
            let (report, _, read) = go(kind, 20_000);
            assert!(report.closed_by_server > 0 && report.connects > 8, "{kind:?}: {report:?}");
            assert!(report.open_max <= 8 && read >= 20_000, "{kind:?}: {read} {report:?}");
        }
    }

    #[test]
    fn a_connect_flood_keeps_to_its_rate_and_sends_nothing() {
        let (report, _, read) = go(Abuse::ConnectFlood, u64::MAX);
        assert!((20..=90).contains(&report.connects), "200 a second for 0.4 s: {report:?}");
        assert_eq!((report.sent_bytes, read), (0, 0));
    }

    #[test]
    fn half_open_connections_are_silent_or_closed_on_one_side() {
        let (report, accepted, read) = go(Abuse::HalfOpen, u64::MAX);
        assert!(accepted >= 8 && read >= 4 * SUBSCRIBE.len() as u64, "{report:?}");
        assert_eq!(report.sent_bytes % SUBSCRIBE.len() as u64, 0);
    }
}
