//! The portable driver: `mio`, that is epoll on Linux, edge-triggered.
//!
//! One shared read buffer per net, so an idle connection owns no buffer. After a short read a stream socket is drained (epoll(7)): no second read to see EAGAIN.
use super::{Driver, Event, Slot};
use ::mio::net::{TcpListener, TcpStream};
use ::mio::{Events, Interest, Poll, Token, Waker};
use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const READ_BYTES: usize = 64 * 1024;
/// Unsent bytes a connection may owe its peer before it is closed as a slow reader.
const BACKLOG_BYTES_MAX: usize = 256 * 1024;
const EVENTS: usize = 1024;
const LISTENER_TOKEN: usize = usize::MAX;
const WAKER_TOKEN: usize = usize::MAX - 1;
/// Connections accepted in one go, so that a connect storm does not starve shares.
const ACCEPTS_PER_PASS: usize = 64;
/// A net over the mean load looks at the door again after this.
const ACCEPT_RETRY: Duration = Duration::from_millis(5);
/// Source addresses remembered by the connect limiter.
const CONNECT_SOURCES_MAX: usize = 65_536;

/// Wakes a net that blocks in its poll.
pub type NetWaker = Arc<Waker>;

/// A listening socket and the load of the nets that share it.
#[derive(Debug)]
pub struct Listener {
    sockets: Vec<std::net::TcpListener>,
    loads: Arc<Vec<AtomicUsize>>,
}

impl Listener {
    /// Takes bound sockets to be shared by `nets` nets.
    pub fn new(sockets: Vec<std::net::TcpListener>, nets: usize) -> io::Result<Self> {
        for socket in &sockets {
            socket.set_nonblocking(true)?;
        }
        Ok(Self { sockets, loads: Arc::new((0..nets).map(|_| AtomicUsize::new(0)).collect()) })
    }
}

/// Limits at the door.
#[derive(Clone, Debug)]
pub struct MioSettings {
    /// Connections over all nets.
    pub connections_max: usize,
    /// New connections per source address and second; loopback is exempt, as a local proxy or a test has one address for all.
    pub connects_per_ip_per_s: u32,
    /// If not empty, only these addresses get in.
    pub allow: Vec<(IpAddr, u8)>,
    /// These addresses never get in.
    pub deny: Vec<(IpAddr, u8)>,
}

impl Default for MioSettings {
    fn default() -> Self {
        Self { connections_max: 10_000, connects_per_ip_per_s: 50, allow: Vec::new(), deny: Vec::new() }
    }
}

fn contains(networks: &[(IpAddr, u8)], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|&(network, bits)| match (network.to_canonical(), address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits.min(32))).unwrap_or(0);
            network.to_bits() & mask == address.to_bits() & mask
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits.min(128))).unwrap_or(0);
            network.to_bits() & mask == address.to_bits() & mask
        }
        _ => false,
    })
}

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
    waker: NetWaker,
    listeners: Vec<TcpListener>,
    loads: Arc<Vec<AtomicUsize>>,
    net: usize,
    settings: MioSettings,
    connections: Vec<Connection>,
    free: Vec<Slot>,
    open: usize,
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
    sources: HashMap<IpAddr, (Instant, f64)>,
    bytes_sent: u64,
    closed_slow: u64,
    refused: u64,
}

impl std::fmt::Debug for MioDriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MioDriver").field("net", &self.net).field("open", &self.open).finish_non_exhaustive()
    }
}

impl MioDriver {
    /// Sockets of net `net`, accepting from `listener`.
    pub fn new(listener: &Listener, net: usize, settings: MioSettings) -> io::Result<Self> {
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
            loads: listener.loads.clone(),
            net,
            settings,
            connections: Vec::with_capacity(capacity),
            free: Vec::with_capacity(capacity),
            open: 0,
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
            sources: HashMap::new(),
            bytes_sent: 0,
            closed_slow: 0,
            refused: 0,
        })
    }

    /// Wakes this driver from its poll.
    pub fn waker(&self) -> NetWaker {
        self.waker.clone()
    }

    fn set_load(&self) {
        // Relaxed: a hint for balancing, nothing is read through it.
        self.loads[self.net].store(self.open, Ordering::Relaxed);
    }

    /// Connections of all nets, and whether this one is at or under the mean.
    fn load(&self) -> (usize, bool) {
        let total: usize = self.loads.iter().map(|load| load.load(Ordering::Relaxed)).sum();
        (total, self.open * self.loads.len() <= total)
    }

    fn source_may_connect(&mut self, address: IpAddr) -> bool {
        if contains(&self.settings.deny, address) || !(self.settings.allow.is_empty() || contains(&self.settings.allow, address)) {
            return false;
        }
        if address.to_canonical().is_loopback() {
            return true;
        }
        let now = Instant::now();
        let rate = f64::from(self.settings.connects_per_ip_per_s);
        if self.sources.len() >= CONNECT_SOURCES_MAX {
            self.sources.retain(|_, (seen, _)| now - *seen < Duration::from_secs(1));
            if self.sources.len() >= CONNECT_SOURCES_MAX {
                return false;
            }
        }
        let (seen, tokens) = self.sources.entry(address).or_insert((now, rate));
        *tokens = (*tokens + (now - *seen).as_secs_f64() * rate).min(rate);
        *seen = now;
        let may = *tokens >= 1.0;
        if may {
            *tokens -= 1.0;
        }
        may
    }

    fn accept_one(&mut self) -> Option<Event> {
        if !self.accept_open || !self.accept_ready || self.accepts_left == 0 {
            return None;
        }
        let mut index = 0;
        while index < self.listeners.len() {
            let (total, at_or_under_mean) = self.load();
            if !at_or_under_mean {
                self.accept_retry_at = Some(Instant::now() + ACCEPT_RETRY);
                self.accept_ready = false;
                return None;
            }
            match self.listeners[index].accept() {
                Ok((stream, peer)) => {
                    self.accepts_left -= 1;
                    if total >= self.settings.connections_max || !self.source_may_connect(peer.ip()) {
                        self.refused += 1;
                        if self.accepts_left == 0 {
                            return None;
                        }
                        continue;
                    }
                    if let Some(slot) = self.adopt(stream) {
                        return Some(Event::Opened { slot, peer });
                    }
                    self.refused += 1;
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
        self.open += 1;
        self.set_load();
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
            self.open -= 1;
            self.set_load();
        }
    }

    /// Writes the pending run, or what a writable event allows of a backlog.
    fn write_out(&mut self) {
        let Some(slot) = self.out_slot.take() else { return };
        let Some(connection) = self.connections.get_mut(slot as usize) else { return };
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
            connection.backlog.extend_from_slice(&self.out[written..]);
            if connection.backlog.len() > BACKLOG_BYTES_MAX {
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
        self.refused
    }

    fn name(&self) -> &'static str {
        "mio"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn driver() -> (MioDriver, std::net::SocketAddr) {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = socket.local_addr().expect("bound");
        let listener = Listener::new(vec![socket], 1).expect("non-blocking");
        (MioDriver::new(&listener, 0, MioSettings::default()).expect("epoll"), address)
    }

    /// The next event, waited for.
    fn next(driver: &mut MioDriver) -> Event {
        for _ in 0..500 {
            if let Some(event) = driver.event() {
                return event;
            }
            driver.poll(Duration::from_millis(10)).expect("poll");
        }
        panic!("no event within five seconds");
    }

    #[test]
    fn a_reply_never_reaches_the_next_tenant_of_a_slot() {
        let (mut driver, address) = driver();
        let mut leaving = std::net::TcpStream::connect(address).expect("connects");
        leaving.write_all(b"hello").expect("sends");
        leaving.shutdown(std::net::Shutdown::Write).expect("half closes");
        let Event::Opened { slot, .. } = next(&mut driver) else { panic!("a connection opens first") };
        assert_eq!(next(&mut driver), Event::Bytes { slot });
        assert_eq!(driver.bytes(), b"hello");
        driver.reply(slot, b"for the one who leaves");
        // The next one is in the queue before the first is seen to have gone, all in one pass.
        let mut coming = std::net::TcpStream::connect(address).expect("connects");
        assert_eq!(next(&mut driver), Event::Closed { slot });
        let Event::Opened { slot: second, .. } = next(&mut driver) else { panic!("the second connection opens") };
        assert_eq!(second, slot, "the slot is reused at once");
        driver.reply(second, b"for the one who comes");
        driver.flush();
        driver.close(second);
        let (mut first_read, mut second_read) = (String::new(), String::new());
        leaving.read_to_string(&mut first_read).expect("reads");
        coming.read_to_string(&mut second_read).expect("reads");
        assert_eq!((first_read.as_str(), second_read.as_str()), ("for the one who leaves", "for the one who comes"));
    }

    #[test]
    fn a_reader_too_slow_for_its_backlog_is_closed_and_a_slow_one_gets_everything() {
        let (mut driver, address) = driver();
        let mut peer = std::net::TcpStream::connect(address).expect("connects");
        let Event::Opened { slot, .. } = next(&mut driver) else { panic!("a connection opens first") };
        // More than socket buffers hold, in one go: the rest waits in the backlog and leaves as the peer reads.
        let sent: Vec<u8> = (0..u32::MAX).map(|n| n as u8).take(BACKLOG_BYTES_MAX).collect();
        let mut written = 0;
        while driver.connections[slot as usize].backlog.is_empty() {
            driver.reply(slot, &sent[..4096]);
            driver.flush();
            written += 4096;
        }
        let mut got = vec![0u8; written];
        let reader = std::thread::spawn(move || peer.read_exact(&mut got).map(|()| (peer, got)));
        while !driver.connections[slot as usize].backlog.is_empty() {
            driver.poll(Duration::from_millis(10)).expect("poll");
            assert_eq!(driver.event(), None);
        }
        let (_peer, got) = reader.join().expect("no panic").expect("everything arrives");
        assert!(got.chunks(4096).all(|chunk| chunk == &sent[..4096]), "in order, nothing lost");
        // Now nobody reads: the backlog has a bound.
        let mut rounds = 0;
        while driver.closed_slow() == 0 {
            driver.reply(slot, &sent[..4096]);
            driver.flush();
            rounds += 1;
            assert!(rounds < 100_000, "the backlog has no bound");
        }
        assert_eq!(next(&mut driver), Event::Closed { slot });
    }

    #[test]
    fn an_address_block_holds_its_ends_and_not_their_neighbours() {
        for (block, bits, inside, outside) in [
            ("10.0.0.0", 8, &["10.0.0.0", "10.255.255.255", "::ffff:10.1.1.1"][..], &["9.255.255.255", "11.0.0.0", "::1"][..]),
            ("10.0.0.7", 32, &["10.0.0.7"], &["10.0.0.6", "10.0.0.8"]),
            ("0.0.0.0", 0, &["0.0.0.0", "255.255.255.255"], &["::1"]),
            ("2001:db8::", 32, &["2001:db8::", "2001:db8:ffff::1"], &["2001:db7:ffff::", "2001:db9::"]),
            ("::", 0, &["::", "2001::1"], &["1.2.3.4"]),
        ] {
            let block = [(block.parse().expect("address"), bits)];
            let holds = |text: &&str| contains(&block, text.parse().expect("address"));
            assert!(inside.iter().all(holds), "{block:?}");
            assert!(!outside.iter().any(holds), "{block:?}");
        }
    }
}
