//! Socket drivers: readiness and bytes in, coalesced writes out. Statically dispatched; two implementations for production, one for the simulator.
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

mod mio;
pub use self::mio::{Listener, MioDriver, MioSettings, NetWaker};

/// Index of a connection in a driver's table; reused after a close, with another generation.
pub type Slot = u32;

/// What happened on a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A new connection.
    Opened {
        /// Its place.
        slot: Slot,
        /// The other end.
        peer: SocketAddr,
    },
    /// Bytes came; they are in `Driver::bytes` until the next call of `event`.
    Bytes {
        /// Which connection.
        slot: Slot,
    },
    /// The connection is gone, by the peer or by an error; its slot is free after this event.
    Closed {
        /// Which connection.
        slot: Slot,
    },
}

/// Sockets of one net stage.
pub trait Driver: Send {
    /// Gathers readiness; blocks at most `timeout`.
    fn poll(&mut self, timeout: Duration) -> io::Result<()>;

    /// The next event of those gathered; None when there is none left.
    fn event(&mut self) -> Option<Event>;

    /// The bytes of the last `Event::Bytes`.
    fn bytes(&self) -> &[u8];

    /// Appends to what this pass sends to `slot`. Consecutive calls for one slot leave in one write.
    fn reply(&mut self, slot: Slot, bytes: &[u8]);

    /// Hands everything appended to the kernel. What a full socket buffer does not take waits in a bounded backlog; a reader too slow for that is closed.
    fn flush(&mut self);

    /// Closes after what was replied has been handed over. No event follows; the slot is free when this returns.
    fn close(&mut self, slot: Slot);

    /// Opens or shuts the door to new connections.
    fn accept(&mut self, open: bool);

    /// Bytes handed to the kernel since the start.
    fn bytes_sent(&self) -> u64;

    /// Connections that were closed because their backlog overflowed.
    fn closed_slow(&self) -> u64;

    /// Connections refused at the door.
    fn refused(&self) -> u64;

    /// `mio`, `uring`, `simulated`.
    fn name(&self) -> &'static str;
}
