//! What a row costs the client from the journal to the server's socket, and the transport of it beside a request written by hand, one JSON line per figure:
//! `cargo run --release -p otedama-shipper --example cost [-- FOLDER]`; `cargo xtask figures ship` takes the median of several.
mod farm;

use otedama_primitives::RunId;
use otedama_sharelog::store::SegmentStore;
use otedama_sharelog::{Journal, Layout, LogSettings, Sealer, SegmentMeta, ShareLog};
use otedama_shipper::{Body, HttpSink, Sink, Timeouts};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

const ROWS: u32 = 524_288;
const ROUNDS: usize = 11;
/// By when every journal file and buffer has been used.
const WARM_ROUNDS: usize = 3;
/// Rows of a batch of the journal.
const BATCH: u32 = 64;

fn cpu_ns(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// Keeps this thread and those that it starts on a core: as in a pool, sealer and shipper have one and the server is elsewhere.
fn stay_on(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).expect("the core is ours");
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

/// Sends the segment as it stands on the disk.
fn by_hand(stream: &mut TcpStream, path: &Path, meta: &SegmentMeta) {
    let bytes = meta.native_bytes as usize;
    let head = format!("POST /?query=INSERT HTTP/1.1\r\nHost: x\r\nContent-Length: {bytes}\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("head");
    let file = std::fs::File::open(path).expect("segment");
    let (mut offset, mut crc) = (0, 0);
    let mut piece = vec![0u8; 1 << 20];
    while offset < bytes {
        let count = piece.len().min(bytes - offset);
        file.read_exact_at(&mut piece[..count], offset as u64).expect("read");
        crc = crc32c::crc32c_append(crc, &piece[..count]);
        stream.write_all(&piece[..count]).expect("body");
        offset += count;
    }
    assert_eq!(crc, meta.crc32c);
    let mut answer = [0u8; 38];
    stream.read_exact(&mut answer).expect("answer");
}

/// A log as a pool with a ClickHouse has it.
fn log(dir: &Path) -> (Journal, Sealer) {
    let settings = LogSettings {
        dir: dir.to_path_buf(),
        pool: "cost".into(),
        run: RunId::new(1, 1),
        segment_rows: ROWS,
        seal_after_ms: 600_000,
        max_bytes: 1 << 40,
        journal_file_bytes: 32 << 20,
        keep_ms: u64::MAX,
        keep_shipped_ms: 0,
        has_cursor: true,
        layout: Layout::Replayable,
        rolls_up_when_full: false,
    };
    let (journal, sealer, ..) = ShareLog::open(settings).expect("the log opens");
    (journal, sealer)
}

fn main() {
    let base = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = tempfile::tempdir_in(&base).expect("folder");
    let allowed = sched_getaffinity(None).expect("cores");
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core)).collect();
    let (elsewhere, here) = (*cores.first().expect("a core"), *cores.last().expect("a core"));
    stay_on(here);
    let (mut journal, mut sealer) = log(folder.path());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("port");
    let address = listener.local_addr().expect("address");
    let spent = Arc::new(AtomicU64::new(0));
    let swallowed = Arc::clone(&spent);
    thread::spawn(move || {
        stay_on(elsewhere);
        for stream in listener.incoming().flatten() {
            let spent = Arc::clone(&swallowed);
            thread::spawn(move || swallow(stream, &spent));
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let sink = HttpSink::new(&format!("http://{address}"), "", "", Timeouts::default());
    let mut stream = TcpStream::connect(address).expect("connected");
    stream.set_nodelay(true).expect("nodelay");
    let (mut seal, mut hand, mut ship, mut whole) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut number = 0;
    for round in 0..WARM_ROUNDS + ROUNDS {
        // The sealer's share of it alone, whenever it has its turn.
        let mut sealing = 0;
        let mut sealed = |sealer: &mut Sealer, wait_for_room: bool| {
            let before = cpu_ns(ClockId::ThreadCPUTime);
            if wait_for_room { sealer.step(farm::FARM_US).map(drop) } else { sealer.drain(farm::FARM_US) }.expect("sealed");
            sealing += cpu_ns(ClockId::ThreadCPUTime) - before;
        };
        for _ in 0..ROWS / BATCH {
            let rows: Vec<_> = (number..number + u64::from(BATCH)).map(farm::farm).collect();
            number += u64::from(BATCH);
            while journal.room_cells() <= 2 * rows.len() {
                sealed(&mut sealer, true);
            }
            journal.append(&[], &rows).expect("there is room");
        }
        sealed(&mut sealer, false);
        let store = SegmentStore::open(folder.path()).expect("the folder is there");
        let meta = store.segments().expect("segments").pop().expect("one was sealed");
        assert_eq!(meta.rows, ROWS);
        let path = store.native_path(&meta);
        let measured = |send: &mut dyn FnMut()| {
            let before = (cpu_ns(ClockId::ProcessCPUTime), spent.load(Ordering::SeqCst));
            send();
            let process = cpu_ns(ClockId::ProcessCPUTime) - before.0;
            process - (spent.load(Ordering::SeqCst) - before.1)
        };
        let by_sink = measured(&mut || {
            let body = Body::Segment { path: path.clone(), size: meta.native_bytes, crc32c: meta.crc32c };
            runtime.block_on(sink.insert("INSERT", &[("query_id", "x".to_owned())], body)).expect("taken");
        });
        assert_eq!(std::fs::read(&path).expect("segment").len() as u64, meta.native_bytes);
        let as_it_stands = measured(&mut || by_hand(&mut stream, &path, &meta));
        // A pool that runs makes no journal file and grows no buffer: it uses what it has again.
        if round >= WARM_ROUNDS {
            let per_row = |ns: u64| ns as f64 / f64::from(ROWS);
            seal.push(per_row(sealing));
            hand.push(per_row(as_it_stands));
            ship.push(per_row(by_sink));
            whole.push(per_row(sealing + by_sink));
        }
    }
    let place = if folder.path().starts_with("/dev/shm") { "tmpfs" } else { "disk" };
    for (name, what, mut costs) in [
        (
            "encode_ship_ns",
            "from the journal to the socket: rows read and checked, put in the order of the table, laid out as columns, summed, written and synced as a segment, read again, checked, sent",
            whole,
        ),
        ("encode_ns", "its first half: from the journal to the sealed and synced segment", seal),
        ("ship_ns", "its second half: HttpSink, the transport of the shipper, from the segment to the socket", ship),
        (
            "ship_by_hand_ns",
            "one request written by hand that reads the segment out of the page cache, where it was read before, checks and sends it",
            hand,
        ),
    ] {
        costs.sort_by(f64::total_cmp);
        println!(
            r#"{{"name":"{name}","value":{:.2},"unit":"ns/row","counted":"CPU time of the client, {what}","conditions":"median of {ROUNDS} segments of {ROWS} rows of 85 bytes, 100000 workers, appended in batches of {BATCH}; one core for the client and another for the server, loopback to one that throws bodies away, its own CPU time taken off; a log on {place}"}}"#,
            costs[costs.len() / 2]
        );
    }
}
