//! Socket drivers: readiness and bytes in, coalesced writes out. Statically dispatched; two implementations for production, one for the simulator.
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

mod captured;
#[cfg(test)]
mod contract;
mod door;
mod mio;
#[cfg(target_os = "linux")]
mod uring;
pub use self::captured::{CAPTURE_RING_WORDS, CaptureWriter, Captured};
pub use self::door::{DoorSettings, Listener};
pub use self::mio::MioDriver;
#[cfg(target_os = "linux")]
pub use self::uring::{UringDriver, UringError};

/// Unsent bytes a connection may owe its peer before it is closed as a slow reader.
pub const BACKLOG_BYTES_MAX: usize = 256 * 1024;

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

/// A job that has come into a net's book, for drivers that write down what happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JobNote {
    /// Counter within the run.
    pub counter: u32,
    /// Its id on the wire as a number.
    pub wire_id: u32,
    /// Height of the block that it works on.
    pub height: u32,
    /// Lines that the net had taken before.
    pub lines: u64,
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

    /// Says that lines taken from here on are judged with this job in the book.
    fn note_job(&mut self, _: &JobNote) {}

    /// Bytes handed to the kernel since the start.
    fn bytes_sent(&self) -> u64;

    /// Connections that were closed because their backlog overflowed.
    fn closed_slow(&self) -> u64;

    /// Connections refused at the door.
    fn refused(&self) -> u64;

    /// Receives that found all buffers in use (ENOBUFS) and were armed again; 0 where a driver reads into one buffer.
    fn without_buffer(&self) -> u64 {
        0
    }

    /// `mio`, `uring`, `simulated`.
    fn name(&self) -> &'static str;
}

/// Wakes a net that blocks in its poll; from any thread.
#[derive(Clone, Debug)]
pub struct NetWaker(Wake);

#[derive(Clone, Debug)]
enum Wake {
    Mio(Arc<::mio::Waker>),
    #[cfg(target_os = "linux")]
    Uring(Arc<std::os::fd::OwnedFd>),
}

impl NetWaker {
    fn mio(waker: Arc<::mio::Waker>) -> Self {
        Self(Wake::Mio(waker))
    }

    #[cfg(target_os = "linux")]
    fn uring(event: Arc<std::os::fd::OwnedFd>) -> Self {
        Self(Wake::Uring(event))
    }

    /// Ends the poll that the net blocks in, or the next one. An error costs the net its own timeout of some milliseconds, nothing else.
    pub fn wake(&self) -> io::Result<()> {
        match &self.0 {
            Wake::Mio(waker) => waker.wake(),
            #[cfg(target_os = "linux")]
            Wake::Uring(event) => Ok(rustix::io::write(&**event, &1_u64.to_ne_bytes()).map(drop)?),
        }
    }
}

#[cfg(not(target_os = "linux"))]
const NOT_LINUX: &str = "it is an interface of Linux";

/// Which driver is asked for: `[layout] driver`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Choice {
    /// `uring` where this host has what it needs, else `mio`.
    Auto,
    /// `mio`.
    Mio,
    /// `uring`, or an error.
    Uring,
}

/// What a driver takes for one net: for `otedama check`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    /// `uring` or `mio`.
    pub name: &'static str,
    /// Rings, each with a table of sockets; 0 where sockets are descriptors of the process.
    pub rings: u64,
    /// Sockets of one table.
    pub places: u64,
    /// Bytes of the kernel for one ring.
    pub ring_bytes: u64,
    /// Buffers that sockets are read into.
    pub read_buffers: u64,
    /// Bytes of one of them.
    pub read_buffer_bytes: u64,
}

/// The drivers of all nets, of one kind.
#[derive(Debug)]
pub enum Drivers {
    /// On `mio`.
    Mio(Vec<MioDriver>),
    /// On io_uring.
    #[cfg(target_os = "linux")]
    Uring(Vec<UringDriver>),
}

/// Why no driver could be opened.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// `mio` did not start.
    #[error("starting the mio driver")]
    Mio(#[source] io::Error),
    /// io_uring was asked for by name and is not to be had.
    #[error("[layout] driver = \"uring\" cannot run on this host; use \"auto\" or \"mio\"")]
    #[cfg(target_os = "linux")]
    Uring(#[source] UringError),
    /// This system has no io_uring at all.
    #[error("[layout] driver = \"uring\" needs Linux; use \"auto\" or \"mio\"")]
    NotLinux,
}

impl Drivers {
    /// One driver for each of `nets` nets behind `listener`. With it, for `Choice::Auto` that became `mio`, why.
    pub fn open(choice: Choice, listener: &Listener, nets: usize, door: &DoorSettings) -> Result<(Self, Option<String>), DriverError> {
        let mio = || {
            let drivers = (0..nets).map(|net| MioDriver::new(listener, net, door.clone())).collect::<io::Result<Vec<_>>>();
            drivers.map(Self::Mio).map_err(DriverError::Mio)
        };
        if choice == Choice::Mio {
            return Ok((mio()?, None));
        }
        #[cfg(target_os = "linux")]
        {
            let uring = UringDriver::probe()
                .and_then(|()| (0..nets).map(|net| UringDriver::new(listener, net, door.clone())).collect::<Result<Vec<_>, _>>());
            match uring {
                Ok(drivers) => Ok((Self::Uring(drivers), None)),
                Err(error) if choice == Choice::Auto => Ok((mio()?, Some(error.reason()))),
                Err(error) => Err(DriverError::Uring(error)),
            }
        }
        #[cfg(not(target_os = "linux"))]
        match choice {
            Choice::Uring => Err(DriverError::NotLinux),
            _ => Ok((mio()?, Some(NOT_LINUX.to_owned()))),
        }
    }

    /// What `open` would take for each net with so many connections on this host. With it, for `Choice::Auto` that became `mio`, why.
    pub fn plan(choice: Choice, connections_max: usize) -> Result<(Plan, Option<String>), DriverError> {
        if choice == Choice::Mio {
            return Ok((MioDriver::plan(), None));
        }
        #[cfg(target_os = "linux")]
        match UringDriver::probe() {
            Ok(()) => Ok((UringDriver::plan(connections_max), None)),
            Err(error) if choice == Choice::Auto => Ok((MioDriver::plan(), Some(error.reason()))),
            Err(error) => Err(DriverError::Uring(error)),
        }
        #[cfg(not(target_os = "linux"))]
        match choice {
            Choice::Uring => Err(DriverError::NotLinux),
            _ => Ok((MioDriver::plan(), Some(NOT_LINUX.to_owned()))),
        }
    }

    /// `uring` or `mio`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Mio(_) => "mio",
            #[cfg(target_os = "linux")]
            Self::Uring(_) => "uring",
        }
    }

    /// A waker of each net.
    pub fn wakers(&self) -> Vec<NetWaker> {
        match self {
            Self::Mio(drivers) => drivers.iter().map(MioDriver::waker).collect(),
            #[cfg(target_os = "linux")]
            Self::Uring(drivers) => drivers.iter().map(UringDriver::waker).collect(),
        }
    }
}
