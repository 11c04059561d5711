//! The io_uring driver: one call of the kernel hands over what a pass has to say and brings what has come.
//!
//! A connection is a place in a table of direct descriptors, armed once with a receive that goes on until it is ended; what it reads stands in buffers that the
//! kernel takes from one ring, so an idle connection owns none. A pass leaves as one send per connection, silent when it succeeds, that never waits: the
//! kernel has read its bytes by the time the call returns. What a full socket buffer did not take goes to a backlog of the connection, which is bounded, and
//! leaves when the socket has room.
//!
//! A table holds at most as many sockets as the process may have descriptors, so a net with more connections owns several rings and waits in the first;
//! the others write to the event descriptor that also wakes the net from other threads.
use super::door::{ACCEPT_RETRY, ACCEPTS_PER_PASS, Door, DoorSettings, Listener};
use super::{BACKLOG_BYTES_MAX, Driver, Event, NetWaker, Plan, Slot};
use io_uring::types::{CancelBuilder, Fd, Fixed};
use io_uring::{cqueue, opcode, squeue};
use ring::{BUFFER_GROUP, BUFFERS, Ring, Wait};
use rustix::event::{EventfdFlags, PollFlags, eventfd};
use rustix::io::Errno;
use rustix::net::{SendFlags, getpeername};
use rustix::process::{Resource, getrlimit};
use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

mod probe;
mod ring;

/// Places of a table at most: what a pass touches of it stays in the cache.
const PLACES_MAX: usize = 1 << 15;
/// Events that a poll gathers before it returns: the kernel runs about 20 receives a call, and a pass is cheaper the more it finds.
const GATHERED: usize = 128;
/// Calls without a completion after which the kernel's word that it has work is taken for an old one.
const CALLS_IN_VAIN: u32 = 4;
/// Bytes of replies that leave in one go: what one pass says stays in the cache.
const ARENA_BYTES: usize = 64 * 1024;
/// Runs of replies that leave in one go.
const RUNS: usize = 512;
/// Accepted sockets that may wait for their turn; above it the kernel keeps them in the listen queue.
const WAITING_MAX: usize = 1024;
/// Sends never wait, and one that comes up short counts as failed, so that it is not silent.
const SEND_FLAGS: i32 = (SendFlags::DONTWAIT.bits() | WAIT_ALL | SendFlags::NOSIGNAL.bits()) as i32;
/// MSG_WAITALL, which rustix knows for receives only; a send of io_uring takes it for "all or it has failed".
const WAIT_ALL: u32 = rustix::net::RecvFlags::WAITALL.bits();

/// Why io_uring cannot be used here.
#[derive(Debug, thiserror::Error)]
pub enum UringError {
    /// The kernel refuses a ring.
    #[error("io_uring_setup was refused: {hint}")]
    Setup {
        /// What that means.
        hint: &'static str,
        /// The kernel's word.
        #[source]
        source: io::Error,
    },
    /// The kernel has rings, but not this.
    #[error("this kernel's io_uring lacks {0}")]
    Lacks(&'static str),
    /// The kernel refuses something that a ring needs.
    #[error("io_uring was refused {what}")]
    Register {
        /// What it was.
        what: &'static str,
        /// The kernel's word.
        #[source]
        source: io::Error,
    },
}

impl UringError {
    fn setup(source: io::Error) -> Self {
        let hint = match Errno::from_io_error(&source) {
            Some(Errno::PERM | Errno::ACCESS) => {
                "a container's seccomp profile or kernel.io_uring_disabled forbids it (Docker does since version 25)"
            }
            Some(Errno::NOSYS) => "this kernel was built without it",
            Some(Errno::INVAL) => "deferred task work and a single issuer need Linux 6.1",
            Some(Errno::NOMEM) => "the memory that this process may lock (ulimit -l) is used up",
            Some(Errno::MFILE | Errno::NFILE) => "no descriptor is left (ulimit -n)",
            _ => "for no reason that is known here",
        };
        Self::Setup { hint, source }
    }

    /// The error and the kernel's word on one line.
    pub fn reason(&self) -> String {
        use std::error::Error;
        match self.source() {
            Some(source) => format!("{self}: {source}"),
            None => self.to_string(),
        }
    }
}

/// What an entry was for: the highest bits of its user data. Below them stand the generation and the slot.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
enum Tag {
    /// A receive that goes on.
    Receive = 1,
    /// A run of replies; completes aloud only where it failed or fell short.
    Send = 2,
    /// A backlog.
    Backlog = 3,
    /// Room in a full socket buffer.
    Room = 4,
    /// An accept that goes on; the slot is the listener's index.
    Accept = 5,
    /// The event descriptor.
    Wake = 6,
    /// Closes and cancels: what comes of them needs no word.
    Silent = 7,
}

const TAG_SHIFT: u32 = 60;
const GENERATION_MASK: u32 = 0x0fff_ffff;

const fn user_data(tag: Tag, generation: u32, slot: Slot) -> u64 {
    (tag as u64) << TAG_SHIFT | ((generation & GENERATION_MASK) as u64) << 32 | slot as u64
}

struct Connection {
    generation: u32,
    /// 1 + index of its run in this pass, the newest while the pass goes on and the first while it is sent; 0: none.
    run: u32,
    open: bool,
    /// Its receive is armed.
    receives: bool,
    /// It waits for room in its socket buffer.
    waits_for_room: bool,
    /// Bytes that wait for that room.
    backlog: Option<Box<Backlog>>,
}

const _: () = assert!(size_of::<Connection>() == 24, "idle connections cost this");

#[derive(Default)]
struct Backlog {
    bytes: Vec<u8>,
}

/// Replies to one connection that were given without a break; more of the same pass follow in `next`.
#[derive(Clone, Copy)]
struct Run {
    slot: Slot,
    generation: u32,
    start: u32,
    end: u32,
    /// Index of the next run of this connection; 0: none, as the first run follows no other.
    next: u32,
    is_first: bool,
    /// `start..end` counts in `gathered`.
    is_gathered: bool,
}

/// Something that came for a connection.
#[derive(Clone, Copy)]
struct Arrived {
    slot: Slot,
    generation: u32,
    /// Bytes in `buffer`.
    bytes: u32,
    buffer: u16,
    /// The connection has ended; there is no buffer.
    ended: bool,
}

struct Listening {
    socket: TcpListener,
    armed: bool,
    cancelled: bool,
}

/// Everything but the rings, so that completions can be taken from a ring while this changes.
struct Sockets {
    connections: Vec<Connection>,
    free: Vec<Slot>,
    /// Slot = ring << shift | place.
    shift: u32,
    events: VecDeque<Arrived>,
    /// Connections that failed on a send, with their generation: the slot may have a new tenant by the time it is looked at.
    gone: VecDeque<(Slot, u32)>,
    /// Backlogs whose socket has room.
    roomy: Vec<(Slot, u32)>,
    listening: Vec<Listening>,
    /// Sockets accepted and not yet looked at.
    waiting: VecDeque<OwnedFd>,
    accept_open: bool,
    accept_retry_at: Option<Instant>,
    accepts_left: usize,
    wake_armed: bool,
    arena: Vec<u8>,
    /// Replies to a connection that were given with breaks, put together.
    gathered: Vec<u8>,
    runs: Vec<Run>,
    any_follows: bool,
    door: Door,
    bytes_sent: u64,
    closed_slow: u64,
    ran_out: u64,
}

/// Sockets of one net on io_uring.
pub struct UringDriver {
    rings: Vec<Ring>,
    sockets: Sockets,
    event: Arc<OwnedFd>,
    enabled: bool,
    /// Ring, buffer and length of the last `Event::Bytes`.
    current: Option<(usize, u16, usize)>,
    pace: Pace,
    /// Events that may come before this round is over: as many as there are connections, so that each that had something at the poll has had its turn.
    round: usize,
    broken: Option<io::Error>,
}

impl std::fmt::Debug for UringDriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { rings, sockets, .. } = self;
        f.debug_struct("UringDriver").field("rings", &rings.len()).field("open", &sockets.door.open()).finish_non_exhaustive()
    }
}

impl UringDriver {
    /// Tries everything that the driver needs on this host; the error says what is missing.
    pub fn probe() -> Result<(), UringError> {
        probe::probe()
    }

    /// Sockets of net `net`, accepting from `listener`. The thread that polls first is the one that runs it from then on.
    pub fn new(listener: &Listener, net: usize, settings: DoorSettings) -> Result<Self, UringError> {
        let places = places(settings.connections_max);
        Self::with_sizes(listener, net, settings, places, BUFFERS)
    }

    fn with_sizes(listener: &Listener, net: usize, settings: DoorSettings, places: usize, buffers: u16) -> Result<Self, UringError> {
        assert!(places.is_power_of_two(), "a slot is a ring and a place side by side");
        let failed = |what| move |source| UringError::Register { what, source };
        let capacity = settings.connections_max.max(1);
        let rings = (0..capacity.div_ceil(places)).map(|_| Ring::new(places as u32, buffers)).collect::<Result<Vec<_>, _>>()?;
        let event =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|error| failed("an event descriptor")(error.into()))?;
        let mut listening = Vec::new();
        for socket in &listener.sockets {
            // Accepted sockets take this from the one that listens. Answers are small and already coalesced: Nagle would only delay them.
            let _ = rustix::net::sockopt::set_tcp_nodelay(socket, true);
            let socket = socket.try_clone().map_err(failed("a copy of the listening socket"))?;
            listening.push(Listening { socket, armed: false, cancelled: false });
        }
        let sockets = Sockets {
            connections: Vec::with_capacity(capacity),
            free: Vec::with_capacity(capacity),
            shift: places.trailing_zeros(),
            events: VecDeque::with_capacity(usize::from(buffers) + 2 * GATHERED),
            gone: VecDeque::with_capacity(64),
            roomy: Vec::with_capacity(64),
            listening,
            waiting: VecDeque::with_capacity(WAITING_MAX),
            accept_open: true,
            accept_retry_at: None,
            accepts_left: 0,
            wake_armed: false,
            arena: Vec::with_capacity(ARENA_BYTES),
            gathered: Vec::with_capacity(ARENA_BYTES),
            runs: Vec::with_capacity(RUNS),
            any_follows: false,
            door: Door::new(listener, net, settings),
            bytes_sent: 0,
            closed_slow: 0,
            ran_out: 0,
        };
        Ok(Self { rings, sockets, event: Arc::new(event), enabled: false, current: None, pace: Pace::default(), round: 0, broken: None })
    }

    /// What a net with so many connections takes here.
    pub fn plan(connections_max: usize) -> Plan {
        let places = places(connections_max);
        Plan {
            name: "uring",
            rings: connections_max.max(1).div_ceil(places) as u64,
            places: places as u64,
            ring_bytes: ring::queue_bytes(places as u64),
            read_buffers: u64::from(BUFFERS),
            read_buffer_bytes: ring::BUFFER_STRIDE as u64,
        }
    }

    /// Wakes this driver from its poll.
    pub fn waker(&self) -> NetWaker {
        NetWaker::uring(self.event.clone())
    }

    /// Rings with a table each.
    pub fn rings(&self) -> usize {
        self.rings.len()
    }

    fn enable(&mut self) -> io::Result<()> {
        for (index, ring) in self.rings.iter_mut().enumerate() {
            ring.enable((index > 0).then(|| self.event.as_fd()))?;
        }
        self.enabled = true;
        Ok(())
    }

    fn ring_of(&mut self, slot: Slot) -> &mut Ring {
        &mut self.rings[(slot >> self.sockets.shift) as usize]
    }

    /// Hands over what is queued in a ring, and takes what has come.
    /// How many completions came.
    fn enter(&mut self, index: usize, wait: Wait) -> usize {
        if let Err(error) = self.rings[index].enter(wait) {
            self.broken = Some(error);
        }
        let Self { rings, sockets, .. } = self;
        let ring = &mut rings[index];
        let mut came = 0;
        ring.reap(|ring, user_data, result, flags| {
            came += 1;
            sockets.complete(ring, user_data, result, flags);
        });
        if !ring.closing.is_empty() && !ring.has_entries() {
            // The close entries have run: the places are empty.
            sockets.free.append(&mut ring.closing);
        }
        came
    }

    /// Takes what has come without waiting, up to the size of a pass.
    fn gather(&mut self) {
        for index in 0..self.rings.len() {
            self.gather_from(index);
        }
    }

    /// As `gather`, from one ring. The kernel may say that it has work and have none: whoever adds some says so after it is in the list, and by then this side may
    /// have taken it. It takes that word back with the next work alone, so a few calls in vain end the matter.
    fn gather_from(&mut self, index: usize) {
        let mut in_vain = 0;
        while in_vain < CALLS_IN_VAIN && (self.rings[index].has_work() || self.rings[index].has_entries()) {
            let came = self.enter(index, Wait::No { gather: true });
            in_vain = if came > 0 || self.rings[index].has_entries() { 0 } else { in_vain + 1 };
            if self.sockets.events.len() >= GATHERED || self.broken.is_some() {
                break;
            }
        }
    }

    fn block(&mut self, mut timeout: Duration) {
        let sockets = &self.sockets;
        if sockets.accept_open && sockets.listening.iter().any(|listening| !listening.armed || listening.cancelled) {
            timeout = timeout.min(ACCEPT_RETRY);
        }
        let before = Instant::now();
        let others = &self.rings[1..];
        others.iter().for_each(|ring| ring.signals(true));
        if !others.is_empty() {
            // Pairs with the kernel's full barrier between adding work and reading whether it is to signal: one of the two sees the other.
            fence(Ordering::SeqCst);
        }
        let events_before = self.sockets.events.len();
        // What is added from here on is signalled, whatever the kernel says that it has.
        (1..self.rings.len()).for_each(|index| self.gather_from(index));
        let sockets = &self.sockets;
        if sockets.events.is_empty() && sockets.gone.is_empty() && sockets.roomy.is_empty() && self.broken.is_none() {
            // Work in another ring is one completion in this one, however much it is: a batch would be waited for in vain.
            let batch = self.pace.batch().filter(|_| self.rings.len() == 1);
            self.enter(0, Wait::For { timeout, batch });
        }
        self.rings[1..].iter().for_each(|ring| ring.signals(false));
        let after = Instant::now();
        self.gather();
        self.pace.waited(before, after, self.sockets.events.len() - events_before);
    }

    /// Arms again what has ended without a cause in the connection: for want of buffers, of room for completions, or because the kernel said so.
    fn arm_again(&mut self) {
        for index in 0..self.rings.len() {
            let ring = &mut self.rings[index];
            // No more than there are buffers, or the last of them ends at once again.
            for _ in 0..ring.unarmed.len().min(ring.buffers_left()) {
                let Some((slot, generation)) = ring.unarmed.pop_front() else { break };
                if let Some(connection) = self.sockets.live(slot, generation)
                    && !connection.receives
                {
                    connection.receives = true;
                    let place = slot & ((1 << self.sockets.shift) - 1);
                    if !ring.push(&receive(place, generation, slot)) {
                        self.sockets.gone.push_back((slot, generation));
                    }
                }
            }
        }
    }

    fn tend_wake(&mut self) {
        if !self.sockets.wake_armed {
            // A poll that is armed while the counter stands completes at once: it is taken down first.
            let _ = rustix::io::read(&*self.event, &mut [0_u8; 8]);
            let entry = opcode::PollAdd::new(Fd(self.event.as_raw_fd()), u32::from(PollFlags::IN.bits())).multi(true).build();
            self.sockets.wake_armed = self.rings[0].push(&entry.user_data(user_data(Tag::Wake, 0, 0)));
        }
    }

    /// Accepts where the door is open, this net is at or under the mean and not too many wait; stops where not. A burst may take it over the mean: what the
    /// kernel has accepted is not turned away.
    fn tend_door(&mut self) {
        let Sockets { listening, door, accept_open, accept_retry_at, waiting, .. } = &mut self.sockets;
        let wanted = *accept_open && waiting.len() < WAITING_MAX && door.load().1;
        if accept_retry_at.is_some_and(|at| at <= Instant::now()) {
            *accept_retry_at = None;
        }
        for (index, listening) in listening.iter_mut().enumerate() {
            let accept = user_data(Tag::Accept, 0, index as Slot);
            if wanted && !listening.armed && accept_retry_at.is_none() {
                let entry = opcode::AcceptMulti::new(Fd(listening.socket.as_raw_fd())).flags(CLOSE_ON_EXEC).build();
                listening.armed = self.rings[0].push(&entry.user_data(accept));
            } else if !wanted && listening.armed && !listening.cancelled {
                listening.cancelled = self.rings[0].push(&cancel(accept));
            }
        }
    }

    fn accept_one(&mut self) -> Option<Event> {
        while self.sockets.accept_open && self.sockets.accepts_left > 0 {
            let socket = self.sockets.waiting.pop_front()?;
            self.sockets.accepts_left -= 1;
            // A peer that is gone already has no name.
            let Some(peer) = getpeername(&socket).ok().flatten().and_then(|peer| SocketAddr::try_from(peer).ok()) else { continue };
            if !self.sockets.door.admits(peer.ip()) {
                continue;
            }
            match self.adopt(&socket) {
                Some(slot) => return Some(Event::Opened { slot, peer }),
                None => self.sockets.door.refused += 1,
            }
        }
        None
    }

    /// Puts a socket into a free place and arms its receive; the descriptor is closed by the caller, the socket lives on in the table.
    fn adopt(&mut self, socket: &OwnedFd) -> Option<Slot> {
        if self.sockets.free.is_empty() && self.sockets.connections.len() >= self.rings.len() << self.sockets.shift {
            // Places whose close has not run yet.
            for index in 0..self.rings.len() {
                self.enter(index, Wait::No { gather: false });
            }
        }
        let slot = match self.sockets.free.pop() {
            Some(slot) => slot,
            None => {
                let slot = self.sockets.connections.len();
                if slot >= self.rings.len() << self.sockets.shift {
                    return None;
                }
                self.sockets.connections.push(Connection {
                    generation: 0,
                    run: 0,
                    open: false,
                    receives: false,
                    waits_for_room: false,
                    backlog: None,
                });
                slot as Slot
            }
        };
        let place = self.sockets.place(slot);
        let generation = self.sockets.connections[slot as usize].generation;
        let ring = self.ring_of(slot);
        if ring.install(place, socket.as_fd()).is_err() || !ring.push(&receive(place, generation, slot)) {
            self.sockets.free.push(slot);
            return None;
        }
        let connection = &mut self.sockets.connections[slot as usize];
        connection.open = true;
        connection.receives = true;
        self.sockets.door.opened();
        Some(slot)
    }

    /// Ends a connection: what was said to it has left before, its receive is cancelled, and its place is closed by an entry that runs behind both.
    fn forget(&mut self, slot: Slot) {
        if self.sockets.connections[slot as usize].run != 0 {
            self.send_runs();
        }
        let place = self.sockets.place(slot);
        let connection = &mut self.sockets.connections[slot as usize];
        if !connection.open {
            return;
        }
        let generation = connection.generation;
        let (receives, waits_for_room) = (connection.receives, connection.waits_for_room);
        *connection = Connection {
            generation: generation.wrapping_add(1) & GENERATION_MASK,
            run: 0,
            open: false,
            receives: false,
            waits_for_room: false,
            backlog: None,
        };
        self.sockets.door.closed();
        let ring = self.ring_of(slot);
        // An armed entry holds the socket open, whatever becomes of its place in the table.
        if receives {
            ring.push(&cancel(user_data(Tag::Receive, generation, slot)));
        }
        if waits_for_room {
            ring.push(&cancel(user_data(Tag::Room, generation, slot)));
        }
        let close = opcode::Close::new(Fixed(place)).build().flags(squeue::Flags::SKIP_SUCCESS);
        ring.push(&close.user_data(user_data(Tag::Silent, 0, 0)));
        ring.closing.push(slot);
    }

    /// Hands the replies of this pass to the kernel, one send per connection.
    fn send_runs(&mut self) {
        if self.sockets.runs.is_empty() {
            return;
        }
        let Self { rings, sockets, .. } = self;
        if sockets.any_follows {
            // What is put together is as long as what there is, and may not move while entries name it.
            sockets.gathered.reserve(sockets.arena.len());
        }
        for index in 0..sockets.runs.len() {
            let Some((slot, generation, start, length)) = sockets.whole_run(index) else { continue };
            let place = sockets.place(slot);
            let entry = opcode::Send::new(Fixed(place), start, length).flags(SEND_FLAGS).build().flags(squeue::Flags::SKIP_SUCCESS);
            sockets.bytes_sent += u64::from(length);
            if !rings[(slot >> sockets.shift) as usize].push(&entry.user_data(user_data(Tag::Send, generation, slot))) {
                sockets.gone.push_back((slot, generation));
            }
        }
        if !self.hand_over() {
            // Entries that no call took name these bytes still: they are given up, and who was to get them is closed.
            let Sockets { runs, arena, gathered, gone, .. } = &mut self.sockets;
            std::mem::forget(std::mem::replace(arena, Vec::with_capacity(ARENA_BYTES)));
            std::mem::forget(std::mem::replace(gathered, Vec::with_capacity(ARENA_BYTES)));
            gone.extend(runs.iter().filter(|run| run.is_first).map(|run| (run.slot, run.generation)));
        }
        let Sockets { runs, connections, arena, gathered, any_follows, .. } = &mut self.sockets;
        runs.iter().for_each(|run| connections[run.slot as usize].run = 0);
        runs.clear();
        arena.clear();
        gathered.clear();
        *any_follows = false;
    }

    /// Sends backlogs whose sockets have room.
    fn send_backlogs(&mut self) {
        if self.sockets.roomy.is_empty() {
            return;
        }
        let mut roomy = std::mem::take(&mut self.sockets.roomy);
        for &(slot, generation) in &roomy {
            let place = self.sockets.place(slot);
            let Some(connection) = self.sockets.live(slot, generation) else { continue };
            let Some(backlog) = &connection.backlog else { continue };
            let (start, length) = (backlog.bytes.as_ptr(), backlog.bytes.len() as u32);
            let entry = opcode::Send::new(Fixed(place), start, length).flags(SEND_FLAGS).build();
            let ring = self.ring_of(slot);
            if !ring.push(&entry.user_data(user_data(Tag::Backlog, generation, slot))) {
                self.sockets.gone.push_back((slot, generation));
            }
        }
        // At once: a backlog that grows may move, and no entry may name it then.
        if !self.hand_over() {
            for &(slot, generation) in &roomy {
                let backlog = self.sockets.live(slot, generation).and_then(|connection| connection.backlog.take());
                // As in `send_runs`.
                std::mem::forget(backlog);
                self.sockets.gone.push_back((slot, generation));
            }
        }
        roomy.clear();
        if self.sockets.roomy.is_empty() {
            self.sockets.roomy = roomy;
        }
    }

    /// Hands over every entry of every ring, and takes every word of a failure among them: what they name is this driver's alone again when this returns true.
    /// False where a ring is broken and keeps some.
    fn hand_over(&mut self) -> bool {
        for index in 0..self.rings.len() {
            let mut tries = 0;
            while self.rings[index].has_entries() || self.rings[index].overflows() {
                // Completions that did not fit come with a gathering call alone.
                let gather = self.sockets.events.is_empty() || self.rings[index].overflows();
                self.enter(index, Wait::No { gather });
                if self.broken.is_some() {
                    break;
                }
                ring::pause(&mut tries);
            }
        }
        !self.rings.iter().any(Ring::has_entries)
    }

    /// The next thing that came in this round. What the kernel had at the poll is all in it: it runs what it has put off in the order in which it came, at most
    /// once for each connection.
    fn next_arrived(&mut self) -> Option<Arrived> {
        if self.sockets.events.is_empty() && self.round > 0 && self.rings.iter().any(Ring::has_work) {
            self.arm_again();
            self.gather();
        }
        self.round = self.round.saturating_sub(1);
        self.sockets.events.pop_front()
    }

    fn release_current(&mut self) {
        if let Some((ring, buffer, _)) = self.current.take() {
            self.rings[ring].release(buffer);
        }
    }
}

impl Sockets {
    fn place(&self, slot: Slot) -> u32 {
        slot & ((1 << self.shift) - 1)
    }

    fn live(&mut self, slot: Slot, generation: u32) -> Option<&mut Connection> {
        self.connections.get_mut(slot as usize).filter(|connection| connection.open && connection.generation == generation)
    }

    /// One completion.
    fn complete(&mut self, ring: &mut Ring, user_data: u64, result: i32, flags: u32) {
        let slot = user_data as u32;
        let generation = (user_data >> 32) as u32 & GENERATION_MASK;
        match user_data >> TAG_SHIFT {
            tag if tag == Tag::Receive as u64 => self.received(ring, slot, generation, result, flags),
            tag if tag == Tag::Send as u64 => self.sent_short(ring, slot, generation, result),
            tag if tag == Tag::Backlog as u64 => self.sent_backlog(ring, slot, generation, result),
            tag if tag == Tag::Room as u64 => {
                if let Some(connection) = self.live(slot, generation) {
                    connection.waits_for_room = false;
                    self.roomy.push((slot, generation));
                }
            }
            tag if tag == Tag::Accept as u64 => self.accepted(slot, result, flags),
            tag if tag == Tag::Wake as u64 => self.wake_armed = cqueue::more(flags),
            _ => {}
        }
    }

    fn received(&mut self, ring: &mut Ring, slot: Slot, generation: u32, result: i32, flags: u32) {
        let buffer = ring.buffer_of(flags);
        let more = cqueue::more(flags);
        let live = self.live(slot, generation);
        let is_live = live.is_some();
        if let Some(connection) = live {
            connection.receives = more;
        }
        let mut event = Arrived { slot, generation, bytes: 0, buffer: 0, ended: false };
        match (buffer, result) {
            (Some(buffer), 1..) if is_live => {
                self.events.push_back(Arrived { bytes: result as u32, buffer, ..event });
                if !more {
                    ring.unarmed.push_back((slot, generation));
                }
                return;
            }
            (Some(buffer), _) => ring.release(buffer),
            (None, _) => {}
        }
        if !is_live || more {
            return;
        }
        if result < 0 {
            match Errno::from_raw_os_error(-result) {
                Errno::NOBUFS => {
                    self.ran_out += 1;
                    ring.ran_out();
                    ring.unarmed.push_back((slot, generation));
                    return;
                }
                Errno::INTR | Errno::AGAIN | Errno::NOMEM => {
                    ring.unarmed.push_back((slot, generation));
                    return;
                }
                _ => {}
            }
        }
        event.ended = true;
        self.events.push_back(event);
    }

    fn accepted(&mut self, listener: u32, result: i32, flags: u32) {
        if !cqueue::more(flags)
            && let Some(listening) = self.listening.get_mut(listener as usize)
        {
            listening.armed = false;
            listening.cancelled = false;
        }
        match ring::accepted(result) {
            Some(socket) => self.waiting.push_back(socket),
            None => match Errno::from_raw_os_error(-result) {
                Errno::CANCELED | Errno::CONNABORTED | Errno::INTR | Errno::AGAIN => {}
                // Out of descriptors or memory: the connection stays in the kernel's queue; look again later instead of spinning.
                _ => self.accept_retry_at = Some(Instant::now() + ACCEPT_RETRY),
            },
        }
    }

    /// The bytes that are to leave for the connection of the run at `index`: slot, generation, start and length. None where the run is not the first of its
    /// connection, the connection is gone, or it has a backlog, which these bytes join.
    fn whole_run(&mut self, index: usize) -> Option<(Slot, u32, *const u8, u32)> {
        let run = self.runs[index];
        if !run.is_first {
            return None;
        }
        let Run { slot, generation, .. } = run;
        self.live(slot, generation)?;
        if run.next != 0 {
            let start = self.gathered.len();
            let mut at = index;
            loop {
                let part = self.runs[at];
                self.gathered.extend_from_slice(&self.arena[part.start as usize..part.end as usize]);
                if part.next == 0 {
                    break;
                }
                at = part.next as usize;
            }
            self.runs[index] = Run { start: start as u32, end: self.gathered.len() as u32, is_gathered: true, ..run };
        }
        let connection = &mut self.connections[slot as usize];
        connection.run = index as u32 + 1;
        let bytes = bytes_of(&self.runs[index], &self.arena, &self.gathered);
        if let Some(backlog) = &mut connection.backlog {
            let before = backlog.bytes.len();
            backlog.bytes.extend_from_slice(bytes);
            // Counted once, however much follows before it is closed.
            if before <= BACKLOG_BYTES_MAX && backlog.bytes.len() > BACKLOG_BYTES_MAX {
                self.closed_slow += 1;
                self.gone.push_back((slot, generation));
            }
            return None;
        }
        Some((slot, generation, bytes.as_ptr(), bytes.len() as u32))
    }

    /// A send that did not take all: the rest becomes the backlog.
    fn sent_short(&mut self, ring: &mut Ring, slot: Slot, generation: u32, result: i32) {
        let place = self.place(slot);
        let Some(connection) = self.connections.get_mut(slot as usize) else { return };
        if !connection.open || connection.generation != generation || connection.run == 0 {
            return;
        }
        let bytes = bytes_of(&self.runs[connection.run as usize - 1], &self.arena, &self.gathered);
        let sent = match result {
            0.. => result as usize,
            _ if Errno::from_raw_os_error(-result) == Errno::AGAIN => 0,
            _ => {
                self.bytes_sent -= bytes.len() as u64;
                self.gone.push_back((slot, generation));
                return;
            }
        };
        let rest = &bytes[sent.min(bytes.len())..];
        self.bytes_sent -= rest.len() as u64;
        if !rest.is_empty() {
            connection.backlog.get_or_insert_default().bytes.extend_from_slice(rest);
            connection.waits_for_room = true;
            if !ring.push(&room(place, generation, slot)) {
                self.gone.push_back((slot, generation));
            }
        }
    }

    fn sent_backlog(&mut self, ring: &mut Ring, slot: Slot, generation: u32, result: i32) {
        let place = self.place(slot);
        let Some(connection) = self.connections.get_mut(slot as usize).filter(|c| c.open && c.generation == generation) else { return };
        let Some(backlog) = &mut connection.backlog else { return };
        let sent = match result {
            0.. => result as usize,
            _ if Errno::from_raw_os_error(-result) == Errno::AGAIN => 0,
            _ => return self.gone.push_back((slot, generation)),
        };
        self.bytes_sent += sent as u64;
        backlog.bytes.drain(..sent.min(backlog.bytes.len()));
        if backlog.bytes.is_empty() {
            connection.backlog = None;
            return;
        }
        connection.waits_for_room = true;
        if !ring.push(&room(place, generation, slot)) {
            self.gone.push_back((slot, generation));
        }
    }
}

/// SOCK_CLOEXEC for accepted sockets.
const CLOSE_ON_EXEC: i32 = rustix::net::SocketFlags::CLOEXEC.bits() as i32;

fn receive(place: u32, generation: u32, slot: Slot) -> squeue::Entry {
    opcode::RecvMulti::new(Fixed(place), BUFFER_GROUP).build().user_data(user_data(Tag::Receive, generation, slot))
}

fn room(place: u32, generation: u32, slot: Slot) -> squeue::Entry {
    opcode::PollAdd::new(Fixed(place), u32::from(PollFlags::OUT.bits())).build().user_data(user_data(Tag::Room, generation, slot))
}

fn cancel(what: u64) -> squeue::Entry {
    let entry = opcode::AsyncCancel2::new(CancelBuilder::user_data(what)).build();
    entry.flags(squeue::Flags::SKIP_SUCCESS).user_data(user_data(Tag::Silent, 0, 0))
}

fn bytes_of<'a>(run: &Run, arena: &'a [u8], gathered: &'a [u8]) -> &'a [u8] {
    &(if run.is_gathered { gathered } else { arena })[run.start as usize..run.end as usize]
}

/// Places of each table for so many connections: as many as the process may have descriptors.
fn places(connections_max: usize) -> usize {
    let descriptors = getrlimit(Resource::Nofile).current.map_or(PLACES_MAX, |limit| usize::try_from(limit).unwrap_or(PLACES_MAX));
    connections_max.max(1).next_power_of_two().min(PLACES_MAX).min(floor_power_of_two(descriptors))
}

/// The largest power of two at or under `value`, which is not 0.
fn floor_power_of_two(value: usize) -> usize {
    1 << value.max(1).ilog2()
}

/// When to wait for more than one completion. Each wake of an idle core costs both sides about a share's worth of time: at a load where the core hardly idles
/// anyway, and so latency is made by the queue, a short wait saves most of them. At half of that load it would only add its length, and is left out.
#[derive(Debug, Default)]
struct Pace {
    busy_us: f64,
    waited_us: f64,
    events: f64,
    on: bool,
    last: Option<Instant>,
}

/// Completions to wait for.
const BATCH: u32 = 32;
/// Microseconds after which what has come is enough.
const BATCH_WAIT_US: u32 = 50;
/// Time over which the load is looked at.
const PACE_US: f64 = 4000.0;
/// Parts of that time without work below which waits are batched, and above which no longer.
const IDLE_ON: f64 = 0.25;
const IDLE_OFF: f64 = 0.5;
/// Completions that a batched wait must be expected to bring.
const BATCH_EXPECTED: f64 = 2.0;

impl Pace {
    fn batch(&self) -> Option<(u32, u32)> {
        self.on.then_some((BATCH, BATCH_WAIT_US))
    }

    /// Books a wait.
    fn waited(&mut self, before: Instant, after: Instant, events: usize) {
        let busy = self.last.map_or(Duration::ZERO, |last| before.saturating_duration_since(last));
        self.last = Some(after);
        self.busy_us += busy.as_secs_f64() * 1e6;
        self.waited_us += after.saturating_duration_since(before).as_secs_f64() * 1e6;
        self.events += events as f64;
        let total_us = self.busy_us + self.waited_us;
        if total_us < PACE_US {
            return;
        }
        let idle = self.waited_us / total_us;
        let expected = self.events / total_us * f64::from(BATCH_WAIT_US);
        self.on = if self.on { idle < IDLE_OFF && expected >= BATCH_EXPECTED / 2.0 } else { idle < IDLE_ON && expected >= BATCH_EXPECTED };
        (self.busy_us, self.waited_us, self.events) = (0.0, 0.0, 0.0);
    }
}

impl Driver for UringDriver {
    fn poll(&mut self, timeout: Duration) -> io::Result<()> {
        if !self.enabled {
            self.enable()?;
        }
        if let Some(error) = self.broken.take() {
            return Err(error);
        }
        self.release_current();
        self.sockets.accepts_left = ACCEPTS_PER_PASS;
        self.round = self.sockets.door.open().max(GATHERED);
        self.tend_wake();
        self.tend_door();
        self.arm_again();
        self.gather();
        let sockets = &self.sockets;
        let has_events = !sockets.events.is_empty() || !sockets.gone.is_empty() || !sockets.roomy.is_empty();
        let has_guests = sockets.accept_open && !sockets.waiting.is_empty();
        if !(has_events || has_guests || timeout.is_zero() || self.broken.is_some()) {
            self.block(timeout);
        }
        self.send_backlogs();
        match self.broken.take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn event(&mut self) -> Option<Event> {
        self.release_current();
        while let Some((slot, generation)) = self.sockets.gone.pop_front() {
            if self.sockets.live(slot, generation).is_some() {
                self.forget(slot);
                return Some(Event::Closed { slot });
            }
        }
        while let Some(arrived) = self.next_arrived() {
            let Arrived { slot, generation, bytes, buffer, ended } = arrived;
            let ring = (slot >> self.sockets.shift) as usize;
            let is_live = self.sockets.live(slot, generation).is_some();
            match (ended, is_live) {
                (false, true) => {
                    self.current = Some((ring, buffer, bytes as usize));
                    return Some(Event::Bytes { slot });
                }
                (false, false) => self.rings[ring].release(buffer),
                (true, true) => {
                    self.forget(slot);
                    return Some(Event::Closed { slot });
                }
                (true, false) => {}
            }
        }
        self.accept_one()
    }

    fn bytes(&self) -> &[u8] {
        self.current.map_or(&[], |(ring, buffer, count)| self.rings[ring].bytes(buffer, count))
    }

    fn reply(&mut self, slot: Slot, bytes: &[u8]) {
        if self.sockets.runs.len() >= RUNS || self.sockets.arena.len() + bytes.len() > ARENA_BYTES {
            self.send_runs();
        }
        let Sockets { connections, runs, arena, any_follows, .. } = &mut self.sockets;
        let Some(connection) = connections.get_mut(slot as usize).filter(|connection| connection.open) else { return };
        let start = arena.len() as u32;
        arena.extend_from_slice(bytes);
        let end = arena.len() as u32;
        let index = runs.len() as u32;
        if connection.run != 0 && connection.run == index {
            runs[index as usize - 1].end = end;
            return;
        }
        if connection.run != 0 {
            runs[connection.run as usize - 1].next = index;
            *any_follows = true;
        }
        let is_first = connection.run == 0;
        runs.push(Run { slot, generation: connection.generation, start, end, next: 0, is_first, is_gathered: false });
        connection.run = index + 1;
    }

    fn flush(&mut self) {
        self.send_runs();
        // Closes: the peer learns of them now, not when this net polls again.
        for index in 0..self.rings.len() {
            if self.rings[index].has_entries() {
                self.enter(index, Wait::No { gather: self.sockets.events.is_empty() });
            }
        }
    }

    fn close(&mut self, slot: Slot) {
        self.forget(slot);
    }

    fn accept(&mut self, open: bool) {
        self.sockets.accept_open = open;
    }

    fn bytes_sent(&self) -> u64 {
        self.sockets.bytes_sent
    }

    fn closed_slow(&self) -> u64 {
        self.sockets.closed_slow
    }

    fn refused(&self) -> u64 {
        self.sockets.door.refused
    }

    fn without_buffer(&self) -> u64 {
        self.sockets.ran_out
    }

    fn name(&self) -> &'static str {
        "uring"
    }
}

#[cfg(test)]
mod tests {
    use super::super::contract::{Bench, echo_to_many, listening};
    use super::*;
    use std::io::Write;

    fn bench(connections_max: usize, places: usize, buffers: u16) -> Option<Bench<UringDriver>> {
        if let Err(error) = UringDriver::probe() {
            eprintln!("skipped: {}", error.reason());
            return None;
        }
        let (socket, address) = listening(None);
        let listener = Listener::new(vec![socket], 1).expect("non-blocking");
        let settings = DoorSettings { connections_max, ..DoorSettings::default() };
        let driver = UringDriver::with_sizes(&listener, 0, settings, places, buffers).expect("the probe passed");
        Some(Bench { driver, address })
    }

    #[test]
    fn more_connections_than_a_table_holds_are_spread_over_rings_and_wake_the_net() {
        let Some(mut bench) = bench(40, 8, 64) else { return };
        assert_eq!(bench.driver.rings(), 5);
        echo_to_many(&mut bench, 40, 3);
        echo_to_many(&mut bench, 40, 1);
        // What comes in the last ring ends a wait in the first, again and again.
        let mut peers: Vec<_> = (0..40).map(|_| bench.connect()).collect();
        for round in 0..50 {
            let (peer, slot) = &mut peers[32 + round % 8];
            let slot = *slot;
            let mut peer = peer.try_clone().expect("clones");
            let thread = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(2));
                peer.write_all(b"!").expect("sends");
            });
            let since = Instant::now();
            while bench.driver.event() != Some(Event::Bytes { slot }) {
                bench.driver.poll(Duration::from_secs(60)).expect("poll");
                assert!(since.elapsed() < Duration::from_secs(30), "slept on");
            }
            thread.join().expect("no panic");
        }
    }

    #[test]
    fn a_kernel_that_says_it_has_work_and_has_none_stops_nothing() {
        for connections in [4, 16] {
            let Some(mut bench) = bench(connections, 4, 64) else { return };
            bench.driver.rings.iter_mut().for_each(|ring| ring.says_work = true);
            let since = Instant::now();
            bench.driver.poll(Duration::from_millis(50)).expect("poll");
            assert!(since.elapsed() >= Duration::from_millis(1), "an idle net waits");
            let most = connections;
            let mut peers: Vec<_> = (0..most).map(|_| bench.connect()).collect();
            for (peer, slot) in &mut peers {
                peer.write_all(b"!").expect("sends");
                assert_eq!(bench.next(), Event::Bytes { slot: *slot });
            }
        }
    }

    #[test]
    fn without_buffers_receives_end_are_counted_and_go_on() {
        let Some(mut bench) = bench(64, 64, 2) else { return };
        echo_to_many(&mut bench, 64, 4);
        assert!(bench.driver.without_buffer() > 0, "two buffers were enough for 64 at once: the test tests nothing");
        let held = bench.driver.rings[0].buffers_left();
        assert!(held <= 2, "{held} of 2 buffers");
    }

    #[test]
    fn a_connection_that_never_reads_costs_its_backlog_and_no_more() {
        let Some(mut bench) = bench(4, 4, 4) else { return };
        let (_peer, slot) = bench.connect();
        let mut most = 0;
        while bench.driver.closed_slow() == 0 {
            bench.driver.reply(slot, &[7; 1000]);
            bench.driver.flush();
            most = most.max(bench.driver.sockets.connections[slot as usize].backlog.as_ref().map_or(0, |backlog| backlog.bytes.capacity()));
            assert!(bench.driver.sockets.arena.capacity() <= 2 * ARENA_BYTES);
        }
        assert!(most <= 4 * BACKLOG_BYTES_MAX, "{most}");
        bench.driver.reply(slot, &[7; 1000]);
        bench.driver.flush();
        assert_eq!(bench.driver.closed_slow(), 1, "one connection counts once");
        assert_eq!(bench.next(), Event::Closed { slot });
        assert!(bench.driver.sockets.connections[slot as usize].backlog.is_none());
    }

    /// A connection whose peer has not read, has now, and so has room for its backlog; with what is to come.
    fn roomy_bench() -> Option<(Bench<UringDriver>, std::net::TcpStream, Slot, usize)> {
        let mut bench = bench(4, 4, 4)?;
        let (peer, slot) = bench.connect();
        let mut told = 0;
        while bench.driver.sockets.connections[slot as usize].backlog.is_none() {
            bench.driver.reply(slot, &[7; 1000]);
            bench.driver.flush();
            told += 1000;
        }
        peer.set_nonblocking(true).expect("a socket");
        let mut got = vec![0; 1 << 16];
        while bench.driver.sockets.roomy.is_empty() {
            use std::io::Read;
            while let Ok(count) = (&peer).read(&mut got) {
                told -= count;
            }
            bench.driver.gather();
            bench.driver.enter(0, Wait::No { gather: true });
        }
        peer.set_nonblocking(false).expect("a socket");
        Some((bench, peer, slot, told))
    }

    #[test]
    fn no_entry_names_a_backlog_once_it_may_grow_whatever_the_kernel_puts_off() {
        let Some((mut bench, mut peer, slot, left)) = roomy_bench() else { return };
        bench.driver.rings[0].refusals = vec![Errno::AGAIN; 40];
        bench.driver.send_backlogs();
        assert!(!bench.driver.rings[0].has_entries(), "an entry names memory that the next reply moves");
        assert!(bench.driver.rings[0].refusals.is_empty(), "the test tests nothing");
        let mut got = vec![0; left];
        std::io::Read::read_exact(&mut peer, &mut got).expect("the backlog arrives");
        assert!(bench.driver.sockets.live(slot, 0).is_some());
    }

    #[test]
    fn replies_wait_for_a_kernel_that_puts_them_off() {
        let Some(mut bench) = bench(4, 4, 4) else { return };
        let (mut peer, slot) = bench.connect();
        bench.driver.reply(slot, b"late");
        bench.driver.rings[0].refusals = vec![Errno::AGAIN; 1050];
        bench.driver.flush();
        let mut got = [0; 4];
        std::io::Read::read_exact(&mut peer, &mut got).expect("it arrives");
        assert_eq!(&got, b"late");
    }

    #[test]
    fn what_a_broken_ring_keeps_is_not_written_over_and_its_connections_end() {
        let Some((mut bench, _peer, slot, _)) = roomy_bench() else { return };
        let roomy = std::mem::take(&mut bench.driver.sockets.roomy);
        let (_other_peer, other) = bench.connect();
        bench.driver.sockets.roomy = roomy;
        bench.driver.rings[0].refusals = vec![Errno::BADF];
        bench.driver.send_backlogs();
        assert!(bench.driver.rings[0].has_entries() && bench.driver.sockets.connections[slot as usize].backlog.is_none());
        bench.driver.reply(other, b"lost");
        let named = bench.driver.sockets.arena.as_ptr();
        bench.driver.rings[0].refusals = vec![Errno::BADF];
        bench.driver.flush();
        assert_ne!(bench.driver.sockets.arena.as_ptr(), named, "the next replies are written where the kernel still reads");
        assert!(bench.driver.poll(Duration::ZERO).is_err());
        let mut ended = [bench.next(), bench.next()];
        ended.sort_by_key(|event| format!("{event:?}"));
        let mut expected = [Event::Closed { slot }, Event::Closed { slot: other }];
        expected.sort_by_key(|event| format!("{event:?}"));
        assert_eq!(ended, expected);
    }

    #[test]
    fn waits_are_batched_under_load_alone() {
        let start = Instant::now();
        let mut now = start;
        let mut pace = Pace::default();
        let mut run = |pace: &mut Pace, busy_us: u64, waited_us: u64, events: usize| {
            for _ in 0..1000 {
                let before = now + Duration::from_micros(busy_us);
                now = before + Duration::from_micros(waited_us);
                pace.waited(before, now, events);
            }
            pace.batch().is_some()
        };
        assert!(!run(&mut pace, 1, 20_000, 0), "idle");
        assert!(!run(&mut pace, 10, 10, 1), "half of what it can do");
        assert!(run(&mut pace, 90, 10, 10), "nearly all of it");
        assert!(run(&mut pace, 60, 40, 10), "still, where batches have made it cheaper");
        assert!(!run(&mut pace, 40, 60, 10));
        assert!(!run(&mut pace, 900, 10, 1), "busy with few events: a wait would gather nothing");
    }
}
