//! A sealed Native segment against the `clickhouse` crate's row inserter, into a local server that swallows what it gets.
//!
//! Counted is user and system time of the process without the server's threads. Our side pays for all that it does: journal to columns, checksums, the
//! file (in memory, where /dev/shm is), its bytes checked again and into the socket. The inserter finds its rows in memory.
use crate::cycles::pin;
use crate::{Machine, Row, least, process_cpu_s, thread_cpu_s};
use clickhouse::{Client, Compression};
use otedama_primitives::{RunId, ShareRow};
use otedama_sharelog::store::SegmentStore;
use otedama_sharelog::{Layout, LogSettings, SealStep, SegmentMeta, ShareLog};
use otedama_shipper::{Body, HttpSink, Sink, Timeouts};
use serde::Serialize;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Rows of one insert.
const ROWS: u32 = 1 << 18;
const ROUNDS: u32 = 5;

/// One row for the inserter: the columns of our table in their order.
#[derive(Clone, Copy, Serialize, clickhouse::Row)]
struct InsertRow {
    instance: u16,
    seg: u64,
    seq: u32,
    time: u32,
    us: u32,
    session: u64,
    worker: u64,
    job: u64,
    coin: i8,
    status: i8,
    flags: u8,
    work: u64,
    share_difficulty: f32,
    nonce: u32,
    ntime: u32,
    version: u32,
    extranonce2: u64,
    latency_us: u32,
}

/// The share of that number. Ids repeat as they do in a pool, the rest is as good as random.
fn share(number: u32) -> ShareRow {
    let mixed = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ShareRow {
        worker: 1 + mixed % 500,
        work: 1 << 32,
        extranonce2: mixed,
        arrival_us: 1_795_000_000_000_000 + u64::from(number) * 3,
        session: 1 + number % 500,
        job: 1 + number / 100_000,
        nonce: mixed as u32,
        ntime: 1_795_000_000,
        version: 0x2000_0000 | (number & 0xffff) << 13,
        share_difficulty: 1.0 + (mixed >> 40) as f32,
        latency_us: 20 + (mixed >> 50) as u32 % 60,
        status: 0,
        flags: 0,
        net: 0,
        coin: 0,
    }
}

fn insert_row(number: u32) -> InsertRow {
    let row = share(number);
    InsertRow {
        instance: 1,
        seg: 1 << 32 | 1,
        seq: number,
        time: (row.arrival_us / 1_000_000) as u32,
        us: (row.arrival_us % 1_000_000) as u32,
        session: 1 << 32 | u64::from(row.session),
        worker: row.worker,
        job: 1 << 32 | u64::from(row.job),
        coin: 0,
        status: 0,
        flags: row.flags,
        work: row.work,
        share_difficulty: row.share_difficulty,
        nonce: row.nonce,
        ntime: row.ntime,
        version: row.version,
        extranonce2: row.extranonce2,
        latency_us: row.latency_us,
    }
}

/// Compares one insert of ROWS rows.
pub fn run(machine: &Machine) -> Result<Vec<Row>, String> {
    let server = Swallow::start(machine.other)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| format!("no runtime: {error}"))?;
    let url = format!("http://{}", server.address);
    let rows: Vec<InsertRow> = (0..ROWS).map(insert_row).collect();
    let (mut sealing, mut sending, mut plain, mut lz4) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let sealed = Sealed::new(round)?;
        sealing.push(sealed.cpu_ns);
        sending.push(server.cpu_ns(true, || sealed.send(&runtime, &url))?);
        for (compression, into) in [(Compression::None, &mut plain), (Compression::Lz4, &mut lz4)] {
            let client = Client::default().with_url(&url).with_validation(false).with_compression(compression);
            let whole = compression == Compression::None;
            into.push(
                server
                    .cpu_ns(whole, || runtime.block_on(inserter(&client, &rows)).map_err(|error| format!("the row inserter: {error}")))?,
            );
        }
    }
    let whole: Vec<f64> = sealing.iter().zip(&sending).map(|(sealing, sending)| sealing + sending).collect();
    let taken = ("Native segment, sealed and shipped", least(&whole));
    let sent = ("Native segment, shipped", least(&sending));
    let (plain, lz4) = (("row inserter, no compression", least(&plain)), ("row inserter, LZ4", least(&lz4)));
    let unit = "ns CPU/row";
    let all = "client's side of 2^18 rows in one insert, least of 5 rounds in turn; ours from the journal, with file and checksums, which the log needs anyway";
    let shipper = "the same; of ours the shipper's part: a sealed file read, checked and sent";
    Ok(vec![
        Row { taken, refused: plain, unit, counted: all },
        Row { taken, refused: lz4, unit, counted: all },
        Row { taken: sent, refused: plain, unit, counted: shipper },
        Row { taken: sent, refused: lz4, unit, counted: shipper },
    ])
}

fn ns_per_row(seconds: f64) -> f64 {
    seconds * 1e9 / f64::from(ROWS)
}

async fn inserter(client: &Client, rows: &[InsertRow]) -> clickhouse::error::Result<()> {
    let mut insert = client.insert::<InsertRow>("shares").await?;
    for row in rows {
        insert.write(row).await?;
    }
    insert.end().await
}

/// One sealed segment of ROWS rows.
struct Sealed {
    store: SegmentStore,
    meta: SegmentMeta,
    /// What sealing it took, a row.
    cpu_ns: f64,
    // Last, so that the folder goes after its readers.
    _folder: tempfile::TempDir,
}

impl Sealed {
    /// Appends are the log stage's and not counted: the inserter finds its rows in memory too.
    fn new(round: u32) -> Result<Self, String> {
        let failed = |error: &dyn std::fmt::Display| format!("the share log: {error}");
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.map_err(|error| failed(&error))?;
        let settings = LogSettings {
            dir: folder.path().to_owned(),
            pool: "rivals".to_owned(),
            run: RunId::new(1, 1 + round),
            segment_rows: ROWS,
            seal_after_ms: 1_000_000,
            max_bytes: 1 << 32,
            journal_file_bytes: 1 << 25,
            keep_ms: 1_000_000,
            keep_shipped_ms: 1_000_000,
            has_cursor: false,
            layout: Layout::Replayable,
            rolls_up_when_full: false,
        };
        let (mut journal, mut sealer, _registry, _counters) = ShareLog::open(settings).map_err(|error| failed(&error))?;
        let now_us = 1_795_000_000_000_000;
        // The first journal file is a small one; the sealer makes the others ready.
        while sealer.step(now_us).map_err(|error| failed(&error))? != SealStep::Idle {}
        for first in (0..ROWS).step_by(512) {
            let rows: Vec<ShareRow> = (first..first + 512).map(share).collect();
            journal.append(&[], &rows).map_err(|error| failed(&error))?;
        }
        drop(journal);
        let start = thread_cpu_s();
        sealer.drain(now_us).map_err(|error| failed(&error))?;
        let cpu_ns = ns_per_row(thread_cpu_s() - start);
        let store = SegmentStore::open(folder.path()).map_err(|error| failed(&error))?;
        let metas = store.segments().map_err(|error| failed(&error))?;
        let [meta] = metas.as_slice() else { return Err(format!("{} segments were sealed instead of one", metas.len())) };
        Ok(Self { meta: meta.clone(), store, cpu_ns, _folder: folder })
    }

    /// As the shipper does it.
    fn send(&self, runtime: &tokio::runtime::Runtime, url: &str) -> Result<(), String> {
        let sink = HttpSink::new(url, "", "", Timeouts::default());
        let (path, meta) = (self.store.native_path(&self.meta), &self.meta);
        let body = Body::Segment { path, size: meta.native_bytes, crc32c: meta.crc32c, rows: meta.rows, layout: meta.layout };
        runtime.block_on(sink.insert("INSERT INTO shares FORMAT Native", &[], body)).map_err(|error| format!("the insert: {error}"))
    }
}

/// A server on loopback that reads each request to its end and answers 200.
struct Swallow {
    address: SocketAddr,
    /// CPU time of its threads, up to the last answer.
    cpu_ns: Arc<AtomicU64>,
    body_bytes: Arc<AtomicU64>,
}

impl Swallow {
    fn start(core: usize) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("no server on loopback: {error}");
        let listener = TcpListener::bind("127.0.0.1:0").map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (cpu_ns, body_bytes) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (cpu, bytes) = (cpu_ns.clone(), body_bytes.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (cpu, bytes) = (cpu.clone(), bytes.clone());
                std::thread::spawn(move || {
                    let _ = pin(Some(core));
                    // A connection that ends, in whatever way, is the client's to report.
                    let _ = serve(stream, &cpu, &bytes);
                });
            }
        });
        Ok(Self { address, cpu_ns, body_bytes })
    }

    /// CPU of one insert on the client's side, in nanoseconds a row. `whole`: an uncompressed body has all columns of all rows.
    fn cpu_ns(&self, whole: bool, insert: impl FnOnce() -> Result<(), String>) -> Result<f64, String> {
        // Relaxed: the answer over the socket comes behind both stores.
        let (server, bytes) = (self.cpu_ns.load(Ordering::Relaxed), self.body_bytes.load(Ordering::Relaxed));
        let start = process_cpu_s();
        insert()?;
        let spent = process_cpu_s() - start;
        let bytes = self.body_bytes.load(Ordering::Relaxed) - bytes;
        if bytes == 0 || (whole && bytes < u64::from(ROWS) * Layout::Replayable.row_bytes() as u64) {
            return Err(format!("only {bytes} bytes of {ROWS} rows reached the server: nothing is measured"));
        }
        Ok(ns_per_row(spent - (self.cpu_ns.load(Ordering::Relaxed) - server) as f64 * 1e-9))
    }
}

fn serve(mut stream: TcpStream, cpu_ns: &AtomicU64, body_bytes: &AtomicU64) -> std::io::Result<()> {
    let mut reader = BufReader::with_capacity(1 << 18, stream.try_clone()?);
    let mut line = String::new();
    let mut counted_s = 0.0;
    loop {
        let mut bytes = 0;
        let (mut length, mut chunked) = (0, false);
        loop {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let lower = line.trim_end().to_ascii_lowercase();
            match lower.split_once(':') {
                Some(("content-length", value)) => length = value.trim().parse().unwrap_or(0),
                Some(("transfer-encoding", _)) => chunked = true,
                _ if lower.is_empty() => break,
                _ => {}
            }
        }
        if chunked {
            loop {
                line.clear();
                reader.read_line(&mut line)?;
                let size = u64::from_str_radix(line.trim_end(), 16).unwrap_or(0);
                // Behind each chunk, and behind the last empty one, stands a line end.
                skip(&mut reader, size + 2)?;
                bytes += size;
                if size == 0 {
                    break;
                }
            }
        } else {
            skip(&mut reader, length)?;
            bytes += length;
        }
        body_bytes.fetch_add(bytes, Ordering::Relaxed);
        let now_s = thread_cpu_s();
        cpu_ns.fetch_add(((now_s - counted_s) * 1e9) as u64, Ordering::Relaxed);
        counted_s = now_s;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
    }
}

fn skip(reader: &mut impl Read, bytes: u64) -> std::io::Result<u64> {
    std::io::copy(&mut reader.take(bytes), &mut std::io::sink())
}
