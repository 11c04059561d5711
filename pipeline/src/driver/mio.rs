//! The portable driver: `mio`, that is epoll on Linux, edge-triggered.
//!
//! One shared read buffer per net, so an idle connection owns no buffer. After a short read a stream socket is drained (epoll(7)): no second read to see EAGAIN.
use super::door::{ACCEPT_RETRY, ACCEPTS_PER_PASS, Door, DoorSettings, Listener};
use super::{BACKLOG_BYTES_MAX, Driver, Event, NetWaker, Plan, Slot};
use ::mio::net::{TcpListener, TcpStream};
use ::mio::{Events, Interest, Poll, Token, Waker};
use rustix::process::{Resource, getrlimit};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

const READ_BYTES: usize = 64 * 1024;
/// Descriptors of the process that no connection gets: for the log, the stats page and its clients, the nodes and ClickHouse. At most half of them all.
const DESCRIPTORS_KEPT: usize = 256;
const EVENTS: usize = 1024;
const LISTENER_TOKEN: usize = usize::MAX;
const WAKER_TOKEN: usize = usize::MAX - 1;

struct Connection {
    stream: Option<TcpStream>,
    generation: u32,
    /// The peer has shut its side down: read on to the end, whatever a short read says.
    read_closed: bool,
    /// In the ready queue already.
    queued: bool,
    backlog: Vec<u8>,
}

/// Sockets of one net on `mio`.
pub struct MioDriver {
    poll: Poll,
    events: Events,
    waker: Arc<Waker>,
    listeners: Vec<TcpListener>,
    door: Door,
    connections: Vec<Connection>,
    free: Vec<Slot>,
    ready: VecDeque<Slot>,
    /// Connections that failed on a write, with their generation: the slot may have a new tenant by the time it is looked at.
    gone: VecDeque<(Slot, u32)>,
    accept_open: bool,
    accept_ready: bool,
    accept_retry_at: Option<Instant>,
    accepts_left: usize,
    read: Box<[u8]>,
    read_len: usize,
    out: Vec<u8>,
    out_slot: Option<Slot>,
    bytes_sent: u64,
    closed_slow: u64,
}

impl std::fmt::Debug for MioDriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MioDriver").field("open", &self.door.open()).finish_non_exhaustive()
    }
}

impl MioDriver {
    /// Sockets of net `net`, accepting from `listener`. A connection is a descriptor here: where the process may not have enough of them, fewer connections than
    /// `settings` allow get in, so that the log can still open its files.
    pub fn new(listener: &Listener, net: usize, settings: DoorSettings) -> io::Result<Self> {
        let descriptors = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        Self::with_descriptors(listener, net, settings, descriptors)
    }

    fn with_descriptors(listener: &Listener, net: usize, mut settings: DoorSettings, descriptors: usize) -> io::Result<Self> {
        settings.connections_max = settings.connections_max.min(Self::connections_of(descriptors));
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), Token(WAKER_TOKEN))?);
        let mut listeners = Vec::new();
        for socket in &listener.sockets {
            let mut listening = TcpListener::from_std(socket.try_clone()?);
            poll.registry().register(&mut listening, Token(LISTENER_TOKEN), Interest::READABLE)?;
            listeners.push(listening);
        }
        let capacity = settings.connections_max;
        Ok(Self {
            poll,
            events: Events::with_capacity(EVENTS),
            waker,
            listeners,
            door: Door::new(listener, net, settings),
            connections: Vec::with_capacity(capacity),
            free: Vec::with_capacity(capacity),
            ready: VecDeque::with_capacity(capacity),
            gone: VecDeque::with_capacity(64),
            accept_open: true,
            accept_ready: true,
            accept_retry_at: None,
            accepts_left: 0,
            read: vec![0; READ_BYTES].into_boxed_slice(),
            read_len: 0,
            out: Vec::with_capacity(READ_BYTES),
            out_slot: None,
            bytes_sent: 0,
            closed_slow: 0,
        })
    }

    /// Connections that a process with so many descriptors lets in.
    pub fn connections_of(descriptors: usize) -> usize {
        descriptors - DESCRIPTORS_KEPT.min(descriptors / 2)
    }

    /// What a net takes here, whatever its connections.
    pub fn plan() -> Plan {
        Plan { name: "mio", rings: 0, places: 0, ring_bytes: 0, read_buffers: 1, read_buffer_bytes: READ_BYTES as u64 }
    }

    /// Wakes this driver from its poll.
    pub fn waker(&self) -> NetWaker {
        NetWaker::mio(self.waker.clone())
    }

    fn accept_one(&mut self) -> Option<Event> {
        if !self.accept_open || !self.accept_ready || self.accepts_left == 0 {
            return None;
        }
        let mut index = 0;
        while index < self.listeners.len() {
            if !self.door.load().1 {
                self.accept_retry_at = Some(Instant::now() + ACCEPT_RETRY);
                self.accept_ready = false;
                return None;
            }
            match self.listeners[index].accept() {
                Ok((stream, peer)) => {
                    self.accepts_left -= 1;
                    if !self.door.admits(peer.ip()) {
                        if self.accepts_left == 0 {
                            return None;
                        }
                        continue;
                    }
                    if let Some(slot) = self.adopt(stream) {
                        return Some(Event::Opened { slot, peer });
                    }
                    self.door.refused += 1;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => index += 1,
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {}
                Err(_) => {
                    // Out of descriptors or memory: the connection stays in the kernel's queue; look again later instead of spinning.
                    self.accept_retry_at = Some(Instant::now() + ACCEPT_RETRY);
                    self.accept_ready = false;
                    return None;
                }
            }
        }
        self.accept_ready = false;
        None
    }

    fn adopt(&mut self, mut stream: TcpStream) -> Option<Slot> {
        // Answers are small and already coalesced: Nagle would only delay them.
        let _ = stream.set_nodelay(true);
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                let slot = Slot::try_from(self.connections.len()).ok()?;
                self.connections.push(Connection { stream: None, generation: 0, read_closed: false, queued: false, backlog: Vec::new() });
                slot
            }
        };
        let connection = &mut self.connections[slot as usize];
        let token = token_of(slot, connection.generation);
        if self.poll.registry().register(&mut stream, token, Interest::READABLE | Interest::WRITABLE).is_err() {
            self.free.push(slot);
            return None;
        }
        connection.stream = Some(stream);
        connection.read_closed = false;
        connection.queued = false;
        self.door.opened();
        Some(slot)
    }

    fn drop_connection(&mut self, slot: Slot) {
        // What was said to this connection leaves before its slot can go to another.
        if self.out_slot == Some(slot) {
            self.write_out();
        }
        let connection = &mut self.connections[slot as usize];
        if let Some(mut stream) = connection.stream.take() {
            let _ = self.poll.registry().deregister(&mut stream);
            connection.generation = connection.generation.wrapping_add(1) & GENERATION_MASK;
            connection.backlog = Vec::new();
            self.free.push(slot);
            self.door.closed();
        }
    }

    /// Writes the pending run, or what a writable event allows of a backlog.
    fn write_out(&mut self) {
        let Some(slot) = self.out_slot.take() else { return };
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            self.out.clear();
            return;
        };
        let Some(stream) = connection.stream.as_mut() else {
            self.out.clear();
            return;
        };
        let mut written = 0;
        if connection.backlog.is_empty() {
            match write_some(stream, &self.out) {
                Ok(count) => written = count,
                Err(_) => {
                    self.out.clear();
                    self.gone.push_back((slot, connection.generation));
                    return;
                }
            }
        }
        self.bytes_sent += written as u64;
        if written < self.out.len() {
            let before = connection.backlog.len();
            connection.backlog.extend_from_slice(&self.out[written..]);
            // Counted once, however much follows before it is closed.
            if before <= BACKLOG_BYTES_MAX && connection.backlog.len() > BACKLOG_BYTES_MAX {
                self.closed_slow += 1;
                self.gone.push_back((slot, connection.generation));
            }
        }
        self.out.clear();
    }

    fn write_backlog(&mut self, slot: Slot) {
        let connection = &mut self.connections[slot as usize];
        if connection.backlog.is_empty() {
            return;
        }
        let Some(stream) = connection.stream.as_mut() else { return };
        match write_some(stream, &connection.backlog) {
            Ok(count) => {
                self.bytes_sent += count as u64;
                connection.backlog.drain(..count);
                if connection.backlog.is_empty() {
                    connection.backlog = Vec::new();
                }
            }
            Err(_) => self.gone.push_back((slot, connection.generation)),
        }
    }
}

const GENERATION_MASK: u32 = 0x3fff_ffff;

fn token_of(slot: Slot, generation: u32) -> Token {
    Token(((generation as usize) << 32) | slot as usize)
}

/// Writes until done or the socket is full; bytes written.
fn write_some(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let mut written = 0;
    while written < bytes.len() {
        match stream.write(&bytes[written..]) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => written += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}

impl Driver for MioDriver {
    fn poll(&mut self, timeout: Duration) -> io::Result<()> {
        let mut timeout = timeout;
        if !self.ready.is_empty() || !self.gone.is_empty() || (self.accept_ready && self.accept_open) {
            timeout = Duration::ZERO;
        }
        if let Some(at) = self.accept_retry_at {
            let left = at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.accept_retry_at = None;
                self.accept_ready = true;
                timeout = Duration::ZERO;
            } else {
                timeout = timeout.min(left);
            }
        }
        self.accepts_left = ACCEPTS_PER_PASS;
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error),
        }
        let mut writable = VecDeque::new();
        for event in &self.events {
            match event.token().0 {
                LISTENER_TOKEN => self.accept_ready = true,
                WAKER_TOKEN => {}
                token => {
                    let slot = token as u32;
                    let generation = (token >> 32) as u32;
                    let Some(connection) = self.connections.get_mut(slot as usize) else { continue };
                    if connection.generation != generation || connection.stream.is_none() {
                        continue;
                    }
                    if event.is_writable() && !connection.backlog.is_empty() {
                        writable.push_back(slot);
                    }
                    connection.read_closed |= event.is_read_closed() || event.is_error();
                    if (event.is_readable() || connection.read_closed) && !connection.queued {
                        connection.queued = true;
                        self.ready.push_back(slot);
                    }
                }
            }
        }
        writable.into_iter().for_each(|slot| self.write_backlog(slot));
        Ok(())
    }

    fn event(&mut self) -> Option<Event> {
        while let Some((slot, generation)) = self.gone.pop_front() {
            let connection = &self.connections[slot as usize];
            if connection.generation == generation && connection.stream.is_some() {
                self.drop_connection(slot);
                return Some(Event::Closed { slot });
            }
        }
        while let Some(slot) = self.ready.pop_front() {
            let connection = &mut self.connections[slot as usize];
            connection.queued = false;
            let Some(stream) = connection.stream.as_mut() else { continue };
            match stream.read(&mut self.read) {
                Ok(0) => {
                    self.drop_connection(slot);
                    return Some(Event::Closed { slot });
                }
                Ok(count) => {
                    self.read_len = count;
                    if count == self.read.len() || connection.read_closed {
                        connection.queued = true;
                        self.ready.push_back(slot);
                    }
                    return Some(Event::Bytes { slot });
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {
                    connection.queued = true;
                    self.ready.push_back(slot);
                }
                Err(_) => {
                    self.drop_connection(slot);
                    return Some(Event::Closed { slot });
                }
            }
        }
        self.accept_one()
    }

    fn bytes(&self) -> &[u8] {
        &self.read[..self.read_len]
    }

    fn reply(&mut self, slot: Slot, bytes: &[u8]) {
        // A run is bounded: what one connection is told in a pass must not grow with what it says.
        if self.out_slot != Some(slot) || self.out.len() >= READ_BYTES {
            self.write_out();
            self.out_slot = Some(slot);
        }
        self.out.extend_from_slice(bytes);
    }

    fn flush(&mut self) {
        self.write_out();
    }

    fn close(&mut self, slot: Slot) {
        self.drop_connection(slot);
    }

    fn accept(&mut self, open: bool) {
        self.accept_open = open;
    }

    fn bytes_sent(&self) -> u64 {
        self.bytes_sent
    }

    fn closed_slow(&self) -> u64 {
        self.closed_slow
    }

    fn refused(&self) -> u64 {
        self.door.refused
    }

    fn name(&self) -> &'static str {
        "mio"
    }
}

#[cfg(test)]
mod tests {
    use super::super::contract::{Bench, listening};
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_the_log() {
        let (socket, address) = listening(None);
        let listener = Listener::new(vec![socket], 1).expect("non-blocking");
        let driver = MioDriver::with_descriptors(&listener, 0, DoorSettings::default(), DESCRIPTORS_KEPT * 2 + 1).expect("epoll");
        assert_eq!(driver.door.settings.connections_max, DESCRIPTORS_KEPT + 1);
        drop(driver);
        let driver = MioDriver::with_descriptors(&listener, 0, DoorSettings::default(), 5).expect("epoll");
        let mut bench = Bench { driver, address };
        let _peers: Vec<_> = (0..3).map(|_| bench.connect()).collect();
        let _over = std::net::TcpStream::connect(address).expect("the kernel takes it");
        while bench.driver.refused() == 0 {
            bench.driver.poll(Duration::from_millis(10)).expect("poll");
            assert_eq!(bench.driver.event(), None, "it takes a descriptor that the log needs");
        }
        let driver = MioDriver::with_descriptors(&listener, 0, DoorSettings { connections_max: 7, ..DoorSettings::default() }, 1 << 20);
        assert_eq!(driver.expect("epoll").door.settings.connections_max, 7, "as configured where there are enough");
    }
}
