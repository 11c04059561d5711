//! `zmqpubhashblock` as `bitcoind` offers it: a ZMTP 3.0 publisher (RFC 23, mechanism NULL) with the one topic that a
//! pool listens to.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bitcoin::hashes::Hash;

use crate::node::Node;

const TOPIC: &[u8] = b"hashblock";
const GREETING_BYTES: usize = 64;
/// A subscriber sends its subscriptions and nothing larger.
const FRAME_BYTES_MAX: u64 = 4096;
/// Each subscriber has two threads.
const SUBSCRIBERS_MAX: usize = 32;
/// How often a waiting subscriber's thread looks whether it should end.
const TICK: Duration = Duration::from_millis(100);
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

const FLAG_MORE: u8 = 1;
const FLAG_LONG: u8 = 2;
const FLAG_COMMAND: u8 = 4;

/// A running publisher; dropping it disconnects every subscriber.
///
/// A message has three parts: `hashblock`, the 32 bytes of the new tip's hash in the order in which they are printed,
/// and a counter (u32, little-endian). Where several blocks arrive at once only the last is announced, and the
/// counter shows the gap.
pub struct Publisher {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    node: Arc<Node>,
    stopping: AtomicBool,
    /// Open subscribers, by number of connection.
    streams: Mutex<Vec<(usize, TcpStream)>>,
}

impl Publisher {
    /// Publishes the tips of `node` on `listen`; port 0 takes a free one, see [`Publisher::address`].
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub fn start(node: Arc<Node>, listen: &str) -> io::Result<Self> {
        let listener = TcpListener::bind(listen)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { node, stopping: AtomicBool::new(false), streams: Mutex::new(Vec::new()) });
        let accepting = {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || accept(&listener, &shared))
        };
        Ok(Self { address, shared, accepting: Some(accepting) })
    }

    /// Where it listens; subscribers connect to `tcp://` and this.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        // The accepting thread sleeps in accept(): one more connection wakes it.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
        if let Some(thread) = self.accepting.take() {
            let _ = thread.join();
        }
        for (_, stream) in streams(&self.shared).iter() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // The threads hold the node, and with it the folder that must be removed before the process ends.
        for _ in 0..200 {
            if streams(&self.shared).is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn streams(shared: &Shared) -> std::sync::MutexGuard<'_, Vec<(usize, TcpStream)>> {
    shared.streams.lock().unwrap_or_else(PoisonError::into_inner)
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for (id, stream) in listener.incoming().enumerate() {
        if shared.stopping.load(Ordering::Relaxed) {
            return;
        }
        let Ok(stream) = stream else {
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        let Ok(handle) = stream.try_clone() else {
            continue;
        };
        {
            let mut streams = streams(shared);
            if streams.len() >= SUBSCRIBERS_MAX {
                continue;
            }
            streams.push((id, handle));
        }
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            // A subscriber that fails connects again: that is how ZeroMQ works.
            let _ = serve(&stream, &shared);
            let _ = stream.shutdown(Shutdown::Both);
            streams(&shared).retain(|(other, _)| *other != id);
        });
    }
}

fn serve(stream: &TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(SEND_TIMEOUT))?;
    stream.set_read_timeout(Some(SEND_TIMEOUT))?;
    let mut writer = stream;
    let mut reader = stream.try_clone()?;
    writer.write_all(&greeting())?;
    let mut theirs = [0; GREETING_BYTES];
    reader.read_exact(&mut theirs)?;
    if theirs[0] != 0xff || theirs[9] != 0x7f || theirs[10] < 3 || &theirs[12..17] != b"NULL\0" {
        return Err(io::ErrorKind::InvalidData.into());
    }
    writer.write_all(&frame(FLAG_COMMAND, b"\x05READY\x0bSocket-Type\x00\x00\x00\x03PUB"))?;
    read_frame(&mut reader)?; // Their READY; what socket they are does not matter to a publisher.
    stream.set_read_timeout(None)?;

    let subscriptions = Arc::new(Mutex::new(Vec::<Vec<u8>>::new()));
    let gone = Arc::new(AtomicBool::new(false));
    // From here on: a tip that comes between the subscription and the first wait must not be missed.
    let mut known = shared.node.tip_update();
    let listening = {
        let (subscriptions, gone) = (Arc::clone(&subscriptions), Arc::clone(&gone));
        std::thread::spawn(move || {
            while let Ok((flags, body)) = read_frame(&mut reader) {
                follow(&subscriptions, flags, &body);
            }
            gone.store(true, Ordering::Relaxed);
        })
    };
    let mut outcome = Ok(());
    while outcome.is_ok() && !gone.load(Ordering::Relaxed) && !shared.stopping.load(Ordering::Relaxed) {
        let (count, tip) = shared.node.wait_for_tip_update(known.0, TICK);
        if count == known.0 {
            continue;
        }
        known = (count, tip);
        let is_wanted = subscriptions.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|prefix| TOPIC.starts_with(prefix));
        if is_wanted {
            let mut hash = tip.to_byte_array();
            hash.reverse();
            // The first block after the start is number 0, as with bitcoind.
            let number = (count - 1) as u32;
            let mut message = frame(FLAG_MORE, TOPIC);
            message.extend(frame(FLAG_MORE, &hash));
            message.extend(frame(0, &number.to_le_bytes()));
            outcome = writer.write_all(&message);
        }
    }
    let _ = stream.shutdown(Shutdown::Both); // Ends the listening thread's read.
    let _ = listening.join();
    outcome
}

fn greeting() -> [u8; GREETING_BYTES] {
    let mut bytes = [0; GREETING_BYTES];
    bytes[0] = 0xff;
    bytes[9] = 0x7f;
    // Version 3.0: a 3.1 peer then subscribes by messages, which is the form understood below besides the command.
    bytes[10] = 3;
    bytes[12..16].copy_from_slice(b"NULL");
    bytes
}

/// A short frame; everything sent here has less than 256 bytes.
fn frame(flags: u8, body: &[u8]) -> Vec<u8> {
    debug_assert!(body.len() < 256, "needs the long form");
    let mut bytes = vec![flags, body.len() as u8];
    bytes.extend_from_slice(body);
    bytes
}

fn read_frame(reader: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
    let mut flags = [0];
    reader.read_exact(&mut flags)?;
    let size = if flags[0] & FLAG_LONG != 0 {
        let mut size = [0; 8];
        reader.read_exact(&mut size)?;
        u64::from_be_bytes(size)
    } else {
        let mut size = [0];
        reader.read_exact(&mut size)?;
        u64::from(size[0])
    };
    if size > FRAME_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; size as usize];
    reader.read_exact(&mut body)?;
    Ok((flags[0], body))
}

/// Takes a subscription or its end: 1 or 0 and the topic's prefix as a message, or the commands of ZMTP 3.1.
fn follow(subscriptions: &Mutex<Vec<Vec<u8>>>, flags: u8, body: &[u8]) {
    let (is_start, prefix) = if flags & FLAG_COMMAND != 0 {
        if let Some(prefix) = body.strip_prefix(b"\x09SUBSCRIBE") {
            (true, prefix)
        } else if let Some(prefix) = body.strip_prefix(b"\x06CANCEL") {
            (false, prefix)
        } else {
            return;
        }
    } else {
        match body.split_first() {
            Some((1, prefix)) => (true, prefix),
            Some((0, prefix)) => (false, prefix),
            _ => return,
        }
    };
    let mut subscriptions = subscriptions.lock().unwrap_or_else(PoisonError::into_inner);
    if is_start {
        if subscriptions.len() < 64 {
            subscriptions.push(prefix.to_vec());
        }
    } else if let Some(at) = subscriptions.iter().position(|known| known == prefix) {
        subscriptions.swap_remove(at);
    }
}
