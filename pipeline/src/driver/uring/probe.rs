//! A trial of everything that the driver needs, on a small ring and sockets of its own: kernels differ in more than their numbers, and containers forbid parts.
use super::ring::{Ring, Wait};
use super::{SEND_FLAGS, Tag, UringError, receive, user_data};
use io_uring::types::{Fd, Fixed};
use io_uring::{cqueue, opcode, squeue};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// A kernel answers at once; one that does not within this never will.
const PATIENCE: Duration = Duration::from_secs(1);
const QUESTION: &[u8] = b"question";
const ANSWER: &[u8] = b"answer";

pub(super) fn probe() -> Result<(), UringError> {
    let failed = |what| move |source| UringError::Register { what, source };
    let mut ring = Ring::new(4, 4)?;
    ring.enable(None).map_err(failed("leave to start"))?;
    let (near, mut far) = UnixStream::pair().map_err(failed("a pair of sockets for its trial"))?;
    far.set_read_timeout(Some(PATIENCE)).map_err(failed("a pair of sockets for its trial"))?;
    ring.install(0, near.as_fd()).map_err(failed("a direct descriptor"))?;
    drop(near);
    ring.push(&receive(0, 0, 0));
    let send = opcode::Send::new(Fixed(0), ANSWER.as_ptr(), ANSWER.len() as u32).flags(SEND_FLAGS).build();
    ring.push(&send.flags(squeue::Flags::SKIP_SUCCESS).user_data(user_data(Tag::Send, 0, 0)));
    let listener = TcpListener::bind("127.0.0.1:0").ok();
    if let Some(listener) = &listener {
        let accept = opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).build();
        ring.push(&accept.user_data(user_data(Tag::Accept, 0, 0)));
    }
    ring.enter(Wait::No { gather: true }).map_err(failed("its first call"))?;
    far.write_all(QUESTION).map_err(failed("a pair of sockets for its trial"))?;
    ring.enter(Wait::For { timeout: PATIENCE, batch: Some((1, 1)) }).map_err(failed("a wait with a timeout"))?;
    let (mut goes_on, mut sent_in_silence, mut accepts) = (false, true, true);
    ring.reap(|ring, user_data, result, flags| {
        let tag = user_data >> super::TAG_SHIFT;
        if tag == Tag::Receive as u64 {
            let buffer = ring.buffer_of(flags);
            goes_on =
                cqueue::more(flags) && usize::try_from(result).is_ok_and(|count| buffer.is_some_and(|b| ring.bytes(b, count) == QUESTION));
        } else if tag == Tag::Send as u64 {
            sent_in_silence = false;
        } else if tag == Tag::Accept as u64 {
            accepts = false;
        }
    });
    let mut answer = [0; ANSWER.len()];
    sent_in_silence &= far.read_exact(&mut answer).is_ok() && answer == ANSWER;
    if !goes_on {
        return Err(UringError::Lacks("receives that go on into provided buffers (Linux 6.0)"));
    }
    if !sent_in_silence {
        return Err(UringError::Lacks("sends that are silent when they succeed (Linux 5.17)"));
    }
    if !accepts {
        return Err(UringError::Lacks("accepts that go on (Linux 5.19)"));
    }
    Ok(())
}
