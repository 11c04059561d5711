//! What every driver must do, over real sockets: one suite, run for each.
use super::{BACKLOG_BYTES_MAX, DoorSettings, Driver, Event, Listener, MioDriver, NetWaker, Slot};
use rustix::net::sockopt::{set_socket_linger, set_socket_recv_buffer_size, set_socket_send_buffer_size};
use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// A driver under test.
pub(super) trait Subject: Driver + Sized {
    /// None where this host does not allow it: the test is skipped and says so.
    fn start(listener: &Listener, settings: DoorSettings) -> Option<Self>;
    fn wakes(&self) -> NetWaker;
}

impl Subject for MioDriver {
    fn start(listener: &Listener, settings: DoorSettings) -> Option<Self> {
        Some(MioDriver::new(listener, 0, settings).expect("epoll"))
    }

    fn wakes(&self) -> NetWaker {
        self.waker()
    }
}

#[cfg(target_os = "linux")]
impl Subject for super::UringDriver {
    fn start(listener: &Listener, settings: DoorSettings) -> Option<Self> {
        if let Err(error) = super::UringDriver::probe() {
            eprintln!("skipped: {}", error.reason());
            return None;
        }
        Some(super::UringDriver::new(listener, 0, settings).expect("the probe passed"))
    }

    fn wakes(&self) -> NetWaker {
        self.waker()
    }
}

/// Tests of this module for a driver.
macro_rules! suite {
    ($driver:ty: $($name:ident)*) => {
        $(#[test]
        fn $name() {
            super::$name::<$driver>();
        })*
    };
    ($driver:ty) => {
        super::suite! { $driver:
            bytes_come_in_order_and_echoes_go_back
            a_reply_never_reaches_the_next_tenant_of_a_slot
            a_reset_is_a_close_and_leaves_the_slot_usable
            replies_to_many_in_turns_arrive_in_order
            a_slow_reader_gets_everything_and_one_that_never_reads_is_closed
            replies_behind_a_backlog_stay_in_order
            a_shut_door_keeps_connections_waiting_and_an_open_one_lets_them_in
            the_door_refuses_addresses_and_numbers_over_the_limit
            many_connections_each_get_their_own
            a_flood_arrives_whole_while_another_is_heard
            a_waker_ends_a_poll_from_another_thread
            what_was_said_before_a_close_arrives
            a_stale_slot_is_told_nothing
        }
    };
}
use suite;

mod mio {
    super::suite!(crate::driver::MioDriver);
}

#[cfg(target_os = "linux")]
mod uring {
    super::suite!(crate::driver::UringDriver);
}

pub(super) struct Bench<D> {
    pub(super) driver: D,
    pub(super) address: SocketAddr,
}

impl<D: Subject> Bench<D> {
    fn new(settings: DoorSettings) -> Option<Self> {
        Self::with_send_buffer(settings, None)
    }

    fn with_send_buffer(settings: DoorSettings, bytes: Option<usize>) -> Option<Self> {
        let (socket, address) = listening(bytes);
        let listener = Listener::new(vec![socket], 1).expect("non-blocking");
        D::start(&listener, settings).map(|driver| Self { driver, address })
    }
}

/// A listening socket whose children have a send buffer of `bytes`.
pub(super) fn listening(bytes: Option<usize>) -> (TcpListener, SocketAddr) {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
    if let Some(bytes) = bytes {
        set_socket_send_buffer_size(&socket, bytes).expect("a small buffer");
    }
    rustix::net::listen(&socket, 1024).expect("listens");
    let address = socket.local_addr().expect("bound");
    (socket, address)
}

impl<D: Driver> Bench<D> {
    /// The next event, waited for.
    pub(super) fn next(&mut self) -> Event {
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(20) {
            if let Some(event) = self.driver.event() {
                return event;
            }
            self.driver.flush();
            self.driver.poll(Duration::from_millis(10)).expect("poll");
        }
        panic!("no event within twenty seconds");
    }

    /// Polls for a while; there must be no event.
    fn quiet(&mut self) {
        for _ in 0..20 {
            self.driver.poll(Duration::from_millis(1)).expect("poll");
            assert_eq!(self.driver.event(), None);
        }
    }

    pub(super) fn connect(&mut self) -> (TcpStream, Slot) {
        let stream = TcpStream::connect(self.address).expect("connects");
        let local = stream.local_addr().expect("connected");
        match self.next() {
            Event::Opened { slot, peer } => {
                assert_eq!(peer, local);
                (stream, slot)
            }
            other => panic!("a connection opens first, not {other:?}"),
        }
    }

    /// Reads `count` bytes that come to `slot`.
    fn read(&mut self, slot: Slot, count: usize) -> Vec<u8> {
        let mut got = Vec::new();
        while got.len() < count {
            assert_eq!(self.next(), Event::Bytes { slot });
            got.extend_from_slice(self.driver.bytes());
        }
        assert_eq!(got.len(), count);
        got
    }
}

/// Bytes that tell where they belong.
fn pattern(seed: u32, count: usize) -> Vec<u8> {
    (0..count as u32).map(|n| (n.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8).collect()
}

fn bytes_come_in_order_and_echoes_go_back<D: Subject>() {
    let Some(mut bench) = Bench::<D>::new(DoorSettings::default()) else { return };
    let (mut peer, slot) = bench.connect();
    for round in 0..50 {
        // From one byte to more than a buffer.
        let sent = pattern(round, 1 + (round as usize * 977) % 40_000);
        peer.write_all(&sent).expect("sends");
        let got = bench.read(slot, sent.len());
        assert_eq!(got, sent);
        got.chunks(1000).for_each(|part| bench.driver.reply(slot, part));
        bench.driver.flush();
        let mut echo = vec![0; sent.len()];
        // A long echo needs room in the socket, which comes as the peer reads.
        let mut at = 0;
        peer.set_read_timeout(Some(Duration::from_millis(10))).expect("timeout");
        while at < echo.len() {
            match peer.read(&mut echo[at..]) {
                Ok(count) => at += count,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => panic!("{error}"),
            }
            bench.driver.poll(Duration::ZERO).expect("poll");
        }
        assert_eq!(echo, sent);
    }
    drop(peer);
    assert_eq!(bench.next(), Event::Closed { slot });
    assert_eq!(bench.driver.bytes_sent(), (0..50).map(|round| 1 + (round * 977) % 40_000).sum::<u64>());
}

fn a_reply_never_reaches_the_next_tenant_of_a_slot<D: Subject>() {
    let Some(mut bench) = Bench::<D>::new(DoorSettings::default()) else { return };
    let (mut leaving, slot) = bench.connect();
    let mut seen = 1;
    for round in 0..20 {
        leaving.write_all(b"hello").expect("sends");
        leaving.shutdown(Shutdown::Write).expect("half closes");
        assert_eq!(bench.read(slot, 5), b"hello");
        bench.driver.reply(slot, b"for the one who leaves");
        // The next one is in the queue before the first is seen to have gone.
        let mut coming = TcpStream::connect(bench.address).expect("connects");
        let (mut closed, mut opened) = (false, None);
        while !closed || opened.is_none() {
            match bench.next() {
                Event::Closed { slot: gone } => {
                    assert_eq!(gone, slot);
                    closed = true;
                }
                Event::Opened { slot, .. } => opened = Some(slot),
                Event::Bytes { .. } => panic!("nobody said anything"),
            }
        }
        let second = opened.expect("opened");
        bench.driver.reply(second, b"for the one who comes");
        bench.driver.close(second);
        bench.driver.flush();
        // The words of a close may need a poll.
        bench.quiet();
        let (mut first_read, mut second_read) = (String::new(), String::new());
        leaving.read_to_string(&mut first_read).expect("reads");
        coming.read_to_string(&mut second_read).expect("reads");
        assert_eq!((first_read.as_str(), second_read.as_str()), ("for the one who leaves", "for the one who comes"), "round {round}");
        let next = bench.connect();
        seen = seen.max(next.1 + 1);
        leaving = next.0;
        if next.1 != slot {
            // Back to the slot that the rounds are about.
            let (other, again) = bench.connect();
            assert_eq!(again, slot);
            bench.driver.close(next.1);
            leaving = other;
        }
    }
    assert!(seen <= 2, "slots are used again: {seen}");
}

fn a_reset_is_a_close_and_leaves_the_slot_usable<D: Subject>() {
    let Some(mut bench) = Bench::<D>::new(DoorSettings::default()) else { return };
    for round in 0..10 {
        let (peer, slot) = bench.connect();
        assert_eq!(slot, 0, "round {round}");
        set_socket_linger(&peer, Some(Duration::ZERO)).expect("linger");
        drop(peer);
        // What is said to it meanwhile goes nowhere and hurts nobody.
        bench.driver.reply(slot, b"too late");
        bench.driver.flush();
        assert_eq!(bench.next(), Event::Closed { slot });
        bench.quiet();
    }
}

fn replies_to_many_in_turns_arrive_in_order<D: Subject>() {
    let Some(mut bench) = Bench::<D>::new(DoorSettings::default()) else { return };
    let mut peers: Vec<_> = (0..7).map(|_| bench.connect()).collect();
    let mut expected: Vec<Vec<u8>> = vec![Vec::new(); peers.len()];
    for pass in 0..40_usize {
        for turn in 0..pass * 3 {
            let to = (turn * 5 + pass) % peers.len();
            let text = format!("<{pass}:{turn}>");
            expected[to].extend_from_slice(text.as_bytes());
            bench.driver.reply(peers[to].1, text.as_bytes());
        }
        bench.driver.flush();
    }
    for ((peer, slot), expected) in peers.iter_mut().zip(&expected) {
        let mut got = vec![0; expected.len()];
        peer.read_exact(&mut got).expect("reads");
        assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(expected), "slot {slot}");
    }
}

fn a_slow_reader_gets_everything_and_one_that_never_reads_is_closed<D: Subject>() {
    let Some(mut bench) = Bench::<D>::with_send_buffer(DoorSettings::default(), Some(4096)) else { return };
    let (mut peer, slot) = bench.connect();
    set_socket_recv_buffer_size(&peer, 4096).expect("a small buffer");
    // More than the socket buffers hold: the rest waits in the backlog and leaves as the peer reads.
    let sent = pattern(1, BACKLOG_BYTES_MAX / 2);
    sent.chunks(4000).for_each(|part| {
        bench.driver.reply(slot, part);
        bench.driver.flush();
    });
    assert_eq!(bench.driver.closed_slow(), 0);
    assert!(bench.driver.bytes_sent() < sent.len() as u64, "the socket took it all: the test tests nothing");
    let count = sent.len();
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; count];
        peer.read_exact(&mut got).map(|()| (peer, got))
    });
    let since = Instant::now();
    while bench.driver.bytes_sent() < sent.len() as u64 {
        bench.driver.poll(Duration::from_millis(10)).expect("poll");
        assert_eq!(bench.driver.event(), None);
        assert!(since.elapsed() < Duration::from_secs(20), "the backlog does not leave");
    }
    let (_peer, got) = reader.join().expect("no panic").expect("everything arrives");
    assert!(got == sent, "in order, nothing lost");
    // Now nobody reads: the backlog has a bound.
    let before = bench.driver.bytes_sent();
    let mut told = 0;
    while bench.driver.closed_slow() == 0 {
        bench.driver.reply(slot, &sent[..1000]);
        bench.driver.flush();
        told += 1000;
        assert!(told < 16 << 20, "the backlog has no bound");
    }
    let taken = bench.driver.bytes_sent() - before;
    // More before it is closed does not count it again.
    bench.driver.reply(slot, &sent[..1000]);
    bench.driver.flush();
    assert!(told - taken <= BACKLOG_BYTES_MAX as u64 + 1000, "{told} said, {taken} taken");
    assert_eq!(bench.next(), Event::Closed { slot });
    assert_eq!(bench.driver.closed_slow(), 1);
    // Its memory is gone, its slot is free, and the door is open.
    assert_eq!(bench.connect().1, slot);
}

fn replies_behind_a_backlog_stay_in_order<D: Subject>() {
    let Some(mut bench) = Bench::<D>::with_send_buffer(DoorSettings::default(), Some(4096)) else { return };
    let (mut slow, slot) = bench.connect();
    let (mut quick, other) = bench.connect();
    set_socket_recv_buffer_size(&slow, 4096).expect("a small buffer");
    let (mut sent, mut got) = (Vec::new(), Vec::new());
    slow.set_read_timeout(Some(Duration::from_millis(1))).expect("timeout");
    let mut buffer = [0; 700];
    let mut read = |got: &mut Vec<u8>, slow: &mut TcpStream| match slow.read(&mut buffer) {
        Ok(count) => got.extend_from_slice(&buffer[..count]),
        Err(error) => assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}"),
    };
    for round in 0..80_u32 {
        let part = pattern(round, 1 + (round as usize * 331) % 1500);
        sent.extend_from_slice(&part);
        // With breaks, so that a pass holds several pieces for one connection.
        let (front, back) = part.split_at(part.len() / 2);
        bench.driver.reply(slot, front);
        bench.driver.reply(other, &round.to_le_bytes());
        bench.driver.reply(slot, back);
        bench.driver.flush();
        read(&mut got, &mut slow);
        bench.driver.poll(Duration::ZERO).expect("poll");
        assert_eq!(bench.driver.event(), None);
        let mut number = [0; 4];
        quick.read_exact(&mut number).expect("the quick one is not held up");
        assert_eq!(u32::from_le_bytes(number), round);
    }
    let since = Instant::now();
    while got.len() < sent.len() && since.elapsed() < Duration::from_secs(20) {
        read(&mut got, &mut slow);
        bench.driver.poll(Duration::ZERO).expect("poll");
    }
    assert!(got == sent, "{} of {} bytes, in order", got.len(), sent.len());
    assert_eq!(bench.driver.closed_slow(), 0);
}

fn a_shut_door_keeps_connections_waiting_and_an_open_one_lets_them_in<D: Subject>() {
    let Some(mut bench) = Bench::<D>::new(DoorSettings::default()) else { return };
    let (mut first, slot) = bench.connect();
    bench.driver.accept(false);
    bench.quiet();
    let mut second = TcpStream::connect(bench.address).expect("the kernel queues it");
    second.write_all(b"second").expect("sends");
    bench.quiet();
    // Who is in goes on.
    first.write_all(b"first").expect("sends");
    assert_eq!(bench.read(slot, 5), b"first");
    bench.quiet();
    assert_eq!(bench.driver.refused(), 0);
    bench.driver.accept(true);
    let Event::Opened { slot, .. } = bench.next() else { panic!("it was waiting") };
    assert_eq!(bench.read(slot, 6), b"second");
}

fn the_door_refuses_addresses_and_numbers_over_the_limit<D: Subject>() {
    let denied = DoorSettings { deny: vec![("127.0.0.1".parse().expect("address"), 32)], ..DoorSettings::default() };
    let Some(mut bench) = Bench::<D>::new(denied) else { return };
    let mut peer = TcpStream::connect(bench.address).expect("connects");
    bench.quiet();
    assert_eq!(bench.driver.refused(), 1);
    assert!(matches!(peer.read(&mut [0; 8]), Ok(0) | Err(_)), "closed before it was read");
    let Some(mut bench) = Bench::<D>::new(DoorSettings { connections_max: 3, ..DoorSettings::default() }) else { return };
    let mut inside: Vec<_> = (0..3).map(|_| bench.connect()).collect();
    for refused in 1..=5 {
        let mut peer = TcpStream::connect(bench.address).expect("connects");
        bench.quiet();
        assert_eq!(bench.driver.refused(), refused);
        assert!(matches!(peer.read(&mut [0; 8]), Ok(0) | Err(_)), "closed before it was read");
    }
    // A place that is left is a place that is free.
    let (peer, slot) = inside.remove(1);
    drop(peer);
    assert_eq!(bench.next(), Event::Closed { slot });
    assert_eq!(bench.connect().1, slot);
}

fn many_connections_each_get_their_own<D: Subject>() {
    let Some(mut bench) = Bench::<D>::new(DoorSettings::default()) else { return };
    echo_to_many(&mut bench, 400, 5);
}

/// `count` connections send something of their own `rounds` times, all before the first is answered, and must get it back.
pub(super) fn echo_to_many<D: Driver>(bench: &mut Bench<D>, count: usize, rounds: u32) {
    let mut peers = HashMap::new();
    while peers.len() < count {
        let (peer, slot) = bench.connect();
        assert!(peers.insert(slot, peer).is_none(), "a slot of its own");
    }
    for round in 0..rounds {
        let mut expected = HashMap::new();
        for (&slot, peer) in &mut peers {
            let text = pattern(slot.wrapping_mul(31).wrapping_add(round), 100 + slot as usize % 700);
            peer.write_all(&text).expect("sends");
            expected.insert(slot, text);
        }
        let mut left: usize = expected.values().map(Vec::len).sum();
        while left > 0 {
            let Event::Bytes { slot } = bench.next() else { panic!("nobody comes or goes") };
            let bytes = bench.driver.bytes().to_vec();
            left -= bytes.len();
            bench.driver.reply(slot, &bytes);
        }
        bench.driver.flush();
        for (slot, peer) in &mut peers {
            let mut echo = vec![0; expected[slot].len()];
            peer.read_exact(&mut echo).expect("reads");
            assert_eq!(&echo, &expected[slot], "slot {slot}, round {round}");
        }
    }
    let mut slots: Vec<Slot> = peers.keys().copied().collect();
    drop(peers);
    while !slots.is_empty() {
        let Event::Closed { slot } = bench.next() else { panic!("all go") };
        slots.swap_remove(slots.iter().position(|&open| open == slot).expect("closed once"));
    }
}

fn a_flood_arrives_whole_while_another_is_heard<D: Subject>() {
    let Some(mut bench) = Bench::<D>::new(DoorSettings::default()) else { return };
    let (mut flooding, slot) = bench.connect();
    let (mut quiet, other) = bench.connect();
    let sent = pattern(3, 8 << 20);
    let total = sent.len();
    let writer = std::thread::spawn(move || flooding.write_all(&sent).map(|()| (flooding, sent)));
    quiet.write_all(b"here").expect("sends");
    let (mut got, mut heard) = (Vec::with_capacity(total), Vec::new());
    while got.len() < total || heard.len() < 4 {
        match bench.next() {
            Event::Bytes { slot: from } if from == slot => got.extend_from_slice(bench.driver.bytes()),
            Event::Bytes { slot: from } => {
                assert_eq!(from, other);
                heard.extend_from_slice(bench.driver.bytes());
            }
            event => panic!("{event:?}"),
        }
    }
    let (_flooding, sent) = writer.join().expect("no panic").expect("all is taken");
    assert!(got == sent, "in order, nothing lost");
    assert_eq!(heard, b"here");
}

fn a_waker_ends_a_poll_from_another_thread<D: Subject>() {
    let Some(mut bench) = Bench::<D>::new(DoorSettings::default()) else { return };
    bench.quiet();
    for _ in 0..5 {
        let waker = bench.driver.wakes();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            waker.wake().expect("wakes");
        });
        let since = Instant::now();
        bench.driver.poll(Duration::from_secs(60)).expect("poll");
        assert!(since.elapsed() < Duration::from_secs(30), "slept on");
        assert_eq!(bench.driver.event(), None);
        thread.join().expect("no panic");
    }
}

fn what_was_said_before_a_close_arrives<D: Subject>() {
    let Some(mut bench) = Bench::<D>::new(DoorSettings::default()) else { return };
    let mut peers: Vec<_> = (0..20).map(|_| bench.connect()).collect();
    for (_, slot) in &peers {
        bench.driver.reply(*slot, b"closed: ");
        bench.driver.reply(*slot, b"too many refused shares");
        bench.driver.close(*slot);
    }
    bench.driver.flush();
    bench.quiet();
    for (peer, _) in &mut peers {
        let mut read = String::new();
        peer.read_to_string(&mut read).expect("reads");
        assert_eq!(read, "closed: too many refused shares");
    }
}

fn a_stale_slot_is_told_nothing<D: Subject>() {
    let Some(mut bench) = Bench::<D>::new(DoorSettings::default()) else { return };
    let (mut peer, slot) = bench.connect();
    peer.write_all(b"never read").expect("sends");
    bench.driver.close(slot);
    // Nothing of these is an error, nor reaches anyone.
    bench.driver.reply(slot, b"nobody");
    bench.driver.reply(slot + 1000, b"nobody");
    bench.driver.close(slot);
    bench.driver.flush();
    bench.quiet();
    let (mut next, again) = bench.connect();
    assert_eq!(again, slot);
    bench.driver.reply(again, b"you");
    bench.driver.close(again);
    bench.driver.flush();
    bench.quiet();
    let mut read = String::new();
    next.read_to_string(&mut read).expect("reads");
    assert_eq!(read, "you");
}
