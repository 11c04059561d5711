//! What the transport costs the client, beside a request written by hand, one JSON line per figure: `cargo run --release -p otedama-shipper --example cost`; `cargo xtask figures ship`
//! takes the median of several.
use otedama_shipper::{Body, HttpSink, Sink, Timeouts};
use rustix::time::{ClockId, clock_gettime};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

const ROWS: u64 = 524_288;
const BYTES: usize = ROWS as usize * 85;
const ROUNDS: usize = 11;

fn cpu_ns(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// Reads requests, throws their bodies away and answers 200; adds its own CPU time to `spent`.
fn swallow(stream: TcpStream, spent: &AtomicU64) {
    let mut writer = stream.try_clone().expect("second handle");
    let mut reader = BufReader::with_capacity(1 << 20, stream);
    let mut last = cpu_ns(ClockId::ThreadCPUTime);
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        let mut length = None;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length: ") {
                length = value.trim().parse::<u64>().ok();
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut discard = |reader: &mut BufReader<TcpStream>, mut left: u64| {
            while left > 0 {
                let part = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let count = reader.read(&mut buffer[..part]).expect("body");
                assert!(count > 0, "the body is cut");
                left -= count as u64;
            }
        };
        match length {
            Some(length) => discard(&mut reader, length),
            None => loop {
                let mut line = String::new();
                reader.read_line(&mut line).expect("chunk size");
                let size = u64::from_str_radix(line.trim(), 16).expect("hex");
                discard(&mut reader, size + 2);
                if size == 0 {
                    break;
                }
            },
        }
        let now = cpu_ns(ClockId::ThreadCPUTime);
        spent.fetch_add(now - last, Ordering::SeqCst);
        last = now;
        writer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").expect("answer");
    }
}

fn by_hand(stream: &mut TcpStream, path: &std::path::Path) {
    let head = format!("POST /?query=INSERT HTTP/1.1\r\nHost: x\r\nContent-Length: {BYTES}\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("head");
    let file = std::fs::File::open(path).expect("segment");
    let (mut offset, mut crc) = (0, 0);
    let mut piece = vec![0u8; 1 << 20];
    while offset < BYTES {
        let count = piece.len().min(BYTES - offset);
        file.read_exact_at(&mut piece[..count], offset as u64).expect("read");
        crc = crc32c::crc32c_append(crc, &piece[..count]);
        stream.write_all(&piece[..count]).expect("body");
        offset += count;
    }
    std::hint::black_box(crc);
    let mut answer = [0u8; 38];
    stream.read_exact(&mut answer).expect("answer");
}

fn main() {
    let mut content = vec![0u8; BYTES];
    let mut word = 1u64;
    for chunk in content.chunks_exact_mut(8) {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("segment");
    std::fs::write(&path, &content).expect("segment");
    let crc = crc32c::crc32c(&content);
    drop(content);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("port");
    let address = listener.local_addr().expect("address");
    let spent = Arc::new(AtomicU64::new(0));
    let swallowed = Arc::clone(&spent);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let spent = Arc::clone(&swallowed);
            thread::spawn(move || swallow(stream, &spent));
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let sink = HttpSink::new(&format!("http://{address}"), "", "", Timeouts::default());
    let mut stream = TcpStream::connect(address).expect("connected");
    stream.set_nodelay(true).expect("nodelay");
    let mut costs = [const { Vec::new() }; 2];
    for _ in 0..ROUNDS {
        for (which, costs) in costs.iter_mut().enumerate() {
            let before = (cpu_ns(ClockId::ProcessCPUTime), spent.load(Ordering::SeqCst));
            if which == 0 {
                by_hand(&mut stream, &path);
            } else {
                let body = Body::File { path: path.clone(), size: BYTES as u64, crc32c: crc };
                runtime.block_on(sink.insert("INSERT", &[("query_id", "x".to_owned())], body)).expect("taken");
            }
            let process = cpu_ns(ClockId::ProcessCPUTime) - before.0;
            costs.push((process - (spent.load(Ordering::SeqCst) - before.1)) as f64 / ROWS as f64);
        }
    }
    for ((name, what), mut costs) in
        [("ship_by_hand_ns", "one request written by hand"), ("ship_ns", "HttpSink, the transport of the shipper")].into_iter().zip(costs)
    {
        costs.sort_by(f64::total_cmp);
        println!(
            r#"{{"name":"{name}","value":{:.2},"unit":"ns/row","counted":"CPU time to read, check and send a sealed segment, {what}","conditions":"median of {ROUNDS} turns of {ROWS} rows of 85 bytes, loopback, a server that throws bodies away, its own CPU time taken off, segment in the page cache"}}"#,
            costs[ROUNDS / 2]
        );
    }
}
