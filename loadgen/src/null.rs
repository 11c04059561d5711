//! A server that judges nothing: it reads lines, finds their ids and answers true. The floor on the machine at hand, below which no server gets.
use crate::cpu;
use crate::engine::raise_file_limit;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const LISTENER: Token = Token(usize::MAX);
const READ_BYTES: usize = 1 << 17;
/// Longest line; a connection that sends a longer one is closed.
const LINE_BYTES_MAX: usize = 1 << 14;

/// Why the null server stopped.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {address}: {source}")]
pub struct NullError {
    operation: &'static str,
    address: SocketAddr,
    source: io::Error,
}

/// CPU time that is burnt on top of what serving costs, so that a known difference can be looked for.
#[derive(Debug)]
struct Burn {
    /// Part of the serving time.
    fraction: f64,
    turns_per_ns: f64,
    /// CPU time that the clock itself takes, twice in every pass.
    clocks_ns: f64,
    mark_ns: f64,
    served_ns: f64,
    burnt_ns: f64,
}

impl Burn {
    fn new(percent: f64) -> Self {
        const TURNS: u64 = 2_000_000;
        const READINGS: u32 = 1_000;
        // The quickest of a few: whatever disturbs makes it slower.
        let quickest = |work: &dyn Fn()| {
            (0..7)
                .map(|_| (cpu::thread_seconds(), work(), cpu::thread_seconds()))
                .map(|(from, (), to)| (to - from) * 1e9)
                .fold(f64::MAX, f64::min)
        };
        let turns_ns = quickest(&|| burn(TURNS));
        let readings_ns = quickest(&|| {
            (0..READINGS).for_each(|_| {
                std::hint::black_box(cpu::thread_seconds());
            })
        });
        Self {
            fraction: percent / 100.0,
            turns_per_ns: TURNS as f64 / turns_ns.max(1.0),
            clocks_ns: 2.0 * readings_ns / f64::from(READINGS),
            mark_ns: cpu::thread_seconds() * 1e9,
            served_ns: 0.0,
            burnt_ns: 0.0,
        }
    }

    /// After a pass: burns what the passes so far still owe. What it really took is measured and set off, so that errors do not add up.
    fn settle(&mut self) {
        let now_ns = cpu::thread_seconds() * 1e9;
        self.served_ns += now_ns - self.mark_ns - self.clocks_ns / 2.0;
        let owed_ns = self.fraction * self.served_ns - self.burnt_ns - self.clocks_ns;
        burn((owed_ns.max(0.0) * self.turns_per_ns) as u64);
        self.mark_ns = cpu::thread_seconds() * 1e9;
        self.burnt_ns += self.mark_ns - now_ns + self.clocks_ns / 2.0;
    }
}

/// Work of constant cost per turn that no compiler removes.
fn burn(turns: u64) {
    let mut state = turns;
    for _ in 0..turns {
        state = std::hint::black_box(state).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(7);
    }
    std::hint::black_box(state);
}

struct Client {
    stream: TcpStream,
    partial: Vec<u8>,
    backlog: Vec<u8>,
}

/// The null server, bound.
pub struct Null {
    listener: TcpListener,
    address: SocketAddr,
    poll: Poll,
    clients: Vec<Option<Client>>,
    free: Vec<usize>,
    buffer: Box<[u8]>,
    out: Vec<u8>,
    job: Vec<u8>,
    sessions: u32,
    burn: Option<Burn>,
}

impl Null {
    /// Binds `listen`. `difficulty` is what every miner is given; 2.4e-10 is work 1, where every hash passes.
    pub fn bind(listen: SocketAddr, difficulty: f64) -> Result<Self, NullError> {
        Self::bind_shared(listen, difficulty, false)
    }

    /// The same; with `shared`, several null servers may listen on one address and the kernel deals the connections out: one process holds only as many as
    /// it may open files.
    pub fn bind_shared(listen: SocketAddr, difficulty: f64, shared: bool) -> Result<Self, NullError> {
        raise_file_limit();
        let failed = |operation| move |source| NullError { operation, address: listen, source };
        let mut listener = if shared { shared_listener(listen) } else { TcpListener::bind(listen) }.map_err(failed("listen on"))?;
        let address = listener.local_addr().map_err(failed("name"))?;
        let poll = Poll::new().map_err(failed("create epoll for"))?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE).map_err(failed("watch"))?;
        Ok(Self {
            listener,
            address,
            poll,
            clients: Vec::new(),
            free: Vec::new(),
            buffer: vec![0; READ_BYTES].into(),
            out: Vec::with_capacity(READ_BYTES),
            job: job_lines(difficulty),
            sessions: 0,
            burn: None,
        })
    }

    /// Burns so many per cent more CPU time than serving takes.
    pub fn burn_percent(&mut self, percent: f64) {
        self.burn = (percent > 0.0).then(|| Burn::new(percent));
    }

    /// CPU time that serving and burning took so far, seconds, where it burns.
    pub fn burnt(&self) -> Option<(f64, f64)> {
        self.burn.as_ref().map(|burn| (burn.served_ns * 1e-9, burn.burnt_ns * 1e-9))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the flag is set.
    pub fn serve(&mut self, stop: &AtomicBool) -> Result<(), NullError> {
        let mut events = Events::with_capacity(1024);
        // Relaxed: the flag carries no data.
        while !stop.load(Ordering::Relaxed) {
            match self.poll.poll(&mut events, Some(Duration::from_millis(100))) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(NullError { operation: "wait on", address: self.address, source }),
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept(),
                    Token(slot) => {
                        let alive = (!event.is_writable() || self.write_backlog(slot))
                            && self.read(slot, event.is_read_closed() || event.is_error());
                        if !alive {
                            self.close(slot);
                        }
                    }
                }
            }
            if let Some(burn) = &mut self.burn {
                burn.settle();
            }
        }
        Ok(())
    }

    fn accept(&mut self) {
        // Any error ends the batch: no more to accept, or no more files, and the next one that closes makes room.
        while let Ok((mut stream, _)) = self.listener.accept() {
            let slot = self.free.pop().unwrap_or_else(|| {
                self.clients.push(None);
                self.clients.len() - 1
            });
            let watched = stream
                .set_nodelay(true)
                .and_then(|()| self.poll.registry().register(&mut stream, Token(slot), Interest::READABLE | Interest::WRITABLE));
            match watched {
                Ok(()) => self.clients[slot] = Some(Client { stream, partial: Vec::new(), backlog: Vec::new() }),
                Err(_) => self.free.push(slot),
            }
        }
    }

    fn close(&mut self, slot: usize) {
        if self.clients[slot].take().is_some() {
            self.free.push(slot);
        }
    }

    fn write_backlog(&mut self, slot: usize) -> bool {
        let Some(client) = &mut self.clients[slot] else { return true };
        if client.backlog.is_empty() {
            return true;
        }
        self.out.clear();
        std::mem::swap(&mut self.out, &mut client.backlog);
        write_out(client, &self.out)
    }

    /// Reads what there is and answers all of it in one write; false when the connection is over. `to_end`: the peer has closed its side.
    fn read(&mut self, slot: usize, to_end: bool) -> bool {
        loop {
            let Some(client) = &mut self.clients[slot] else { return true };
            let kept = client.partial.len();
            self.buffer[..kept].copy_from_slice(&client.partial);
            let count = match client.stream.read(&mut self.buffer[kept..]) {
                Ok(0) => return false,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return false,
            };
            let data = &self.buffer[..kept + count];
            let mut at = 0;
            self.out.clear();
            while let Some(length) = memchr::memchr(b'\n', &data[at..]) {
                answer(&data[at..at + length], &mut self.out, &self.job, &mut self.sessions);
                at += length + 1;
            }
            client.partial.clear();
            client.partial.extend_from_slice(&data[at..]);
            if client.partial.len() > LINE_BYTES_MAX {
                return false;
            }
            if !self.out.is_empty() {
                let written = if client.backlog.is_empty() {
                    write_out(client, &self.out)
                } else {
                    client.backlog.extend_from_slice(&self.out);
                    true
                };
                if !written {
                    return false;
                }
            }
            if count < READ_BYTES - kept && !to_end {
                return true;
            }
        }
    }
}

fn shared_listener(listen: SocketAddr) -> io::Result<TcpListener> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen as start, socket_with, sockopt};
    let family = if listen.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    bind(&socket, &listen)?;
    start(&socket, 4096)?;
    Ok(TcpListener::from_std(std::net::TcpListener::from(socket)))
}

fn write_out(client: &mut Client, out: &[u8]) -> bool {
    let mut at = 0;
    while at < out.len() {
        match client.stream.write(&out[at..]) {
            Ok(0) => return false,
            Ok(count) => at += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                client.backlog.extend_from_slice(&out[at..]);
                return true;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
    true
}

/// Answers one line.
fn answer(line: &[u8], out: &mut Vec<u8>, job: &[u8], sessions: &mut u32) {
    // The usual line of this crate's own miner is known by its first bytes; all others are searched.
    let (id, is_submit) = match line.strip_prefix(br#"{"id":"#) {
        Some(rest) => {
            let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            (&rest[..digits], rest[digits..].starts_with(br#","method":"mining.submit""#))
        }
        None => (&[][..], false),
    };
    if is_submit && !id.is_empty() {
        return answer_true(out, id);
    }
    let id = if id.is_empty() { find_id(line) } else { id };
    let contains = |needle: &[u8]| memchr::memmem::find(line, needle).is_some();
    if contains(b"mining.submit") {
        answer_true(out, id);
    } else if contains(b"mining.subscribe") {
        *sessions = sessions.wrapping_add(1);
        out.extend_from_slice(br#"{"id":"#);
        out.extend_from_slice(id);
        out.extend_from_slice(br#","result":[[["mining.notify","1"]],""#);
        crate::dialect::put_hex32(out, *sessions);
        out.extend_from_slice(b"\",8],\"error\":null}\n");
    } else if contains(b"mining.configure") {
        out.extend_from_slice(br#"{"id":"#);
        out.extend_from_slice(id);
        out.extend_from_slice(b",\"result\":{\"version-rolling\":true,\"version-rolling.mask\":\"1fffe000\"},\"error\":null}\n");
    } else if contains(b"mining.authorize") {
        answer_true(out, id);
        out.extend_from_slice(job);
    } else {
        answer_true(out, id);
    }
}

fn answer_true(out: &mut Vec<u8>, id: &[u8]) {
    out.extend_from_slice(br#"{"id":"#);
    out.extend_from_slice(id);
    out.extend_from_slice(b",\"result\":true,\"error\":null}\n");
}

/// The raw token after `"id":`, or null.
fn find_id(line: &[u8]) -> &[u8] {
    let Some(at) = memchr::memmem::rfind(line, br#""id":"#) else { return b"null" };
    let token = line[at + 5..].trim_ascii_start();
    let end = token.iter().position(|byte| matches!(byte, b',' | b'}')).unwrap_or(token.len());
    let token = token[..end].trim_ascii_end();
    if token.is_empty() { b"null" } else { token }
}

/// set_difficulty and one job with 12 merkle branches and a coinbase of 300 bytes: the work of a share in a full block.
fn job_lines(difficulty: f64) -> Vec<u8> {
    let mut lines = format!("{{\"id\":null,\"method\":\"mining.set_difficulty\",\"params\":[{difficulty:e}]}}\n").into_bytes();
    lines.extend_from_slice(br#"{"id":null,"method":"mining.notify","params":["00000001","#);
    let mut state = 7u64;
    let mut hex = |bytes: usize| {
        let drawn: Vec<u8> = (0..bytes).map(|_| crate::random::next(&mut state) as u8).collect();
        format!("\"{}\"", otedama_primitives::encode_hex(&drawn))
    };
    let (prev_hash, coinb1, coinb2) = (hex(32), hex(58), hex(230));
    let branch: Vec<String> = (0..12).map(|_| hex(32)).collect();
    lines.extend_from_slice(format!("{prev_hash},{coinb1},{coinb2},[{}],", branch.join(",")).as_bytes());
    lines.extend_from_slice(b"\"20000000\",\"17021369\",\"6b00dbcb\",true]}\n");
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(line: &str) -> String {
        let mut out = Vec::new();
        answer(line.as_bytes(), &mut out, b"JOB\n", &mut 8);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn ids_come_back_as_they_were_sent() {
        let accepted = |id: &str| format!("{{\"id\":{id},\"result\":true,\"error\":null}}\n");
        assert_eq!(answered(r#"{"id":12,"method":"mining.submit","params":[]}"#), accepted("12"));
        assert_eq!(answered(r#"{"params": [], "id": "12", "method": "mining.submit"}"#), accepted("\"12\""));
        assert_eq!(answered(r#"{"method": "mining.submit", "params": [], "id":4}"#), accepted("4"));
        assert_eq!(answered("nonsense"), accepted("null"));
        assert_eq!(answered(r#"{"id":3,"method":"mining.authorize","params":[]}"#), accepted("3") + "JOB\n");
        assert_eq!(
            answered(r#"{"id":2,"method":"mining.subscribe"}"#),
            "{\"id\":2,\"result\":[[[\"mining.notify\",\"1\"]],\"00000009\",8],\"error\":null}\n"
        );
    }

    #[test]
    fn an_address_is_shared_only_when_both_say_so() {
        let first = Null::bind_shared("127.0.0.1:0".parse().expect("address"), 1.0, true).expect("bind");
        assert!(Null::bind_shared(first.address(), 1.0, true).is_ok());
        assert!(Null::bind(first.address(), 1.0).is_err());
    }

    #[test]
    fn a_burn_is_as_large_as_ordered_over_many_passes() {
        let mut burner = Burn::new(5.0);
        for _ in 0..2_000 {
            burn(100_000);
            burner.settle();
        }
        let ratio = burner.burnt_ns / burner.served_ns;
        assert!((0.045..0.055).contains(&ratio), "{ratio}");
    }

    #[test]
    fn the_job_is_one_that_miners_can_work_on() {
        let text = String::from_utf8(job_lines(2.4e-10)).expect("text");
        let notify = text.lines().nth(1).expect("notify");
        let message: serde_json::Value = serde_json::from_str(notify).expect("json");
        let job = crate::job::Job::from_notify(&message["params"].to_string(), 4, 8).expect("job");
        assert_eq!(job.branch().len(), 12);
        assert!(text.starts_with(r#"{"id":null,"method":"mining.set_difficulty","params":[2.4e-10]}"#), "{text}");
    }
}
