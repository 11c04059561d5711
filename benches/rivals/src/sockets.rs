//! `mio` against `tokio-uring`: a server that reads lines and answers each with 40 bytes, on loopback, 64 connections with 8 lines in flight each.
use crate::cycles::pin;
use crate::{Machine, Row, least, process_cpu_s, thread_cpu_s};
use mio::event::Source;
use mio::{Events, Interest, Poll, Token};
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

const CONNECTIONS: usize = 64;
const IN_FLIGHT: usize = 8;
/// Bytes of a submit line and of its answer.
const LINE: usize = 120;
const ANSWER: usize = 40;
const SECONDS: f64 = 1.5;
const ROUNDS: usize = 4;
const BUFFER: usize = 8192;

/// Serves CONNECTIONS connections to their end; says its address first.
type Server = fn(mpsc::Sender<SocketAddr>) -> std::io::Result<()>;

/// Compares the CPU time of the server's side, the kernel's share of it included.
pub fn run(machine: &Machine) -> Result<Vec<Row>, String> {
    if machine.other == machine.core {
        return Err("the server needs a core of its own".to_owned());
    }
    let (mut taken, mut refused) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        taken.push(measure(machine, serve_mio).map_err(|error| format!("mio: {error}"))?);
        refused.push(measure(machine, serve_uring).map_err(|error| format!("tokio-uring: {error}; is io_uring allowed here?"))?);
    }
    Ok(vec![Row {
        taken: ("mio line sink", least(&taken)),
        refused: ("tokio-uring line sink", least(&refused)),
        unit: "ns CPU/line",
        counted: "server's user and system time, kernel workers included, 64 connections x 8 lines of 120 bytes, least of 4 rounds in turn",
    }])
}

fn measure(machine: &Machine, server: Server) -> std::io::Result<f64> {
    let (core, other) = (machine.core, machine.other);
    let (say, hear) = mpsc::channel();
    let serving = std::thread::spawn(move || {
        pin(Some(core)).map_err(std::io::Error::other)?;
        server(say)
    });
    let Ok(address) = hear.recv() else {
        return Err(serving.join().ok().and_then(Result::err).unwrap_or_else(|| ErrorKind::NotConnected.into()));
    };
    pin(Some(other)).map_err(std::io::Error::other)?;
    let (process, mine) = (process_cpu_s(), thread_cpu_s());
    let lines = load(address);
    let server_cpu_s = process_cpu_s() - process - (thread_cpu_s() - mine);
    let served = serving.join().map_err(|_| std::io::Error::other("the server's thread ended with a panic"))?;
    pin(Some(core)).map_err(std::io::Error::other)?;
    served?;
    Ok(server_cpu_s * 1e9 / lines? as f64)
}

/// Lines answered. Every connection sends IN_FLIGHT lines, waits for their answers, and sends the next ones.
fn load(address: SocketAddr) -> std::io::Result<u64> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(CONNECTIONS);
    let mut burst = vec![b'x'; LINE * IN_FLIGHT];
    burst.chunks_exact_mut(LINE).for_each(|line| line[LINE - 1] = b'\n');
    let mut connections = Vec::with_capacity(CONNECTIONS);
    for index in 0..CONNECTIONS {
        let mut stream = std::net::TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.write_all(&burst)?;
        stream.set_nonblocking(true)?;
        let mut stream = mio::net::TcpStream::from_std(stream);
        stream.register(poll.registry(), Token(index), Interest::READABLE)?;
        connections.push((stream, 0));
    }
    let (start, mut answered) = (Instant::now(), 0);
    let mut buffer = [0; BUFFER];
    while start.elapsed().as_secs_f64() < SECONDS {
        poll.poll(&mut events, Some(Duration::from_millis(100)))?;
        for event in &events {
            let (stream, bytes) = &mut connections[event.token().0];
            loop {
                match stream.read(&mut buffer) {
                    Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                    Ok(read) => *bytes += read,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
                if *bytes == ANSWER * IN_FLIGHT {
                    *bytes = 0;
                    answered += IN_FLIGHT as u64;
                    // A burst of 960 bytes fits an empty socket buffer.
                    stream.write_all(&burst)?;
                }
            }
        }
    }
    if answered == 0 { Err(ErrorKind::TimedOut.into()) } else { Ok(answered) }
}

fn lines_of(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte == b'\n').count()
}

fn answers() -> Vec<u8> {
    let mut answer = vec![b'y'; ANSWER * BUFFER];
    answer.chunks_exact_mut(ANSWER).for_each(|one| one[ANSWER - 1] = b'\n');
    answer
}

fn serve_mio(say: mpsc::Sender<SocketAddr>) -> std::io::Result<()> {
    let mut poll = Poll::new()?;
    let mut listener = mio::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let listening = Token(CONNECTIONS);
    poll.registry().register(&mut listener, listening, Interest::READABLE)?;
    let _ = say.send(listener.local_addr()?);
    let mut events = Events::with_capacity(CONNECTIONS + 1);
    let mut streams = Vec::with_capacity(CONNECTIONS);
    let (answers, mut buffer, mut ended) = (answers(), [0; BUFFER], 0);
    while ended < CONNECTIONS {
        poll.poll(&mut events, None)?;
        for event in &events {
            if event.token() == listening {
                while let Ok((mut stream, _)) = listener.accept() {
                    stream.set_nodelay(true)?;
                    poll.registry().register(&mut stream, Token(streams.len()), Interest::READABLE)?;
                    streams.push(stream);
                }
                continue;
            }
            let stream = &mut streams[event.token().0];
            loop {
                match stream.read(&mut buffer) {
                    Ok(read) if read > 0 => {
                        let answered = stream.write_all(&answers[..ANSWER * lines_of(&buffer[..read])]);
                        // Short of the buffer there is nothing more to read; a new edge comes with new bytes.
                        if answered.is_ok() && read == BUFFER {
                            continue;
                        }
                        if answered.is_err() {
                            ended += usize::from(poll.registry().deregister(stream).is_ok());
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Ok(_) | Err(_) => ended += usize::from(poll.registry().deregister(stream).is_ok()),
                }
                break;
            }
        }
    }
    Ok(())
}

fn serve_uring(say: mpsc::Sender<SocketAddr>) -> std::io::Result<()> {
    tokio_uring::start(async move {
        let listener = tokio_uring::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let _ = say.send(listener.local_addr()?);
        let mut tasks = Vec::with_capacity(CONNECTIONS);
        for _ in 0..CONNECTIONS {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tasks.push(tokio_uring::spawn(async move {
                let (mut buffer, mut out) = (vec![0; BUFFER], answers());
                loop {
                    let (read, back) = stream.read(buffer).await;
                    buffer = back;
                    let Ok(read @ 1..) = read else { return };
                    let answer = tokio_uring::buf::BoundedBuf::slice(out, ..ANSWER * lines_of(&buffer[..read]));
                    let (written, back) = stream.write_all(answer).await;
                    out = tokio_uring::buf::Slice::into_inner(back);
                    if written.is_err() {
                        return;
                    }
                }
            }));
        }
        for task in tasks {
            // A task that ended with a panic has closed its connection, which the load reports.
            let _ = task.await;
        }
        Ok(())
    })
}
