//! A server in memory that speaks as much of ClickHouse's HTTP as the shipper does, keeps what it was asked, and misbehaves on order.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use otedama_shipper::schema::{SHARES, TABLES, VERSION, VERSION_VIEW};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

/// What the server does with an insert of a segment.
#[derive(Clone, Debug)]
pub enum Act {
    /// Takes it and says so.
    Take,
    /// Takes it and closes without an answer.
    TakeAndClose,
    /// Takes it and holds its answer back for longer than anybody waits.
    TakeAndHang,
    /// Closes without taking it.
    Close,
    /// Answers with this status and text without taking it.
    Refuse(u16, &'static str),
    /// Takes it, but only a part of its rows ever show in a count.
    TakeInPart,
    /// Drops the tables, and says that there are none.
    DropTables,
    /// Takes its time, then takes it.
    TakeSlowly,
    /// Takes it and answers after this long.
    TakeAfter(Duration),
}

/// An insert as it arrived.
#[derive(Clone, Debug)]
pub struct Insert {
    /// The statement.
    pub sql: String,
    /// All other parameters of the URL.
    pub settings: BTreeMap<String, String>,
    /// The body.
    pub body: Vec<u8>,
}

impl Insert {
    /// The identity it came under.
    pub fn token(&self) -> &str {
        self.settings.get("insert_deduplication_token").or_else(|| self.settings.get("query_id")).map_or("", String::as_str)
    }
}

#[derive(Default)]
pub struct World {
    pub version: String,
    pub tables: bool,
    /// Tables reported without a deduplication window.
    pub forgetful: Vec<&'static str>,
    pub acts: VecDeque<Act>,
    pub statements: Vec<String>,
    pub inserts: Vec<Insert>,
    /// Rows the server has, by token.
    pub rows: HashMap<String, u64>,
    /// Tokens it would recognise.
    pub remembered: HashSet<String>,
    /// When it started, seconds since the epoch.
    pub started_s: u64,
    /// How often a query that is asked for in system.processes still shows.
    pub lingering: u64,
    /// Bodies that ended before their end.
    pub cut: u64,
    pub users: Vec<(String, String)>,
}

pub struct Mock {
    pub address: SocketAddr,
    world: Arc<Mutex<World>>,
    stop: Arc<AtomicBool>,
}

impl Mock {
    pub fn start(version: &str) -> Self {
        Self::start_at(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port"), version)
    }

    pub fn start_at(listener: TcpListener, version: &str) -> Self {
        let address = listener.local_addr().expect("its address");
        let world = Arc::new(Mutex::new(World { version: version.to_owned(), tables: true, ..World::default() }));
        let stop = Arc::new(AtomicBool::new(false));
        let (accepting, stopping) = (Arc::clone(&world), Arc::clone(&stop));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stopping.load(Ordering::Relaxed) {
                    return;
                }
                let (world, stop) = (Arc::clone(&accepting), Arc::clone(&stopping));
                thread::spawn(move || serve(stream, &world, &stop));
            }
        });
        Self { address, world, stop }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().expect("no test panicked with it")
    }

    /// Inserts of segments.
    pub fn segment_inserts(&self) -> Vec<Insert> {
        self.world().inserts.iter().filter(|insert| insert.sql.ends_with(" FORMAT Native")).cloned().collect()
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes().iter();
    while let Some(&byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let hex: Vec<u8> = rest.by_ref().take(2).copied().collect();
                bytes.push(u8::from_str_radix(std::str::from_utf8(&hex).expect("ascii"), 16).expect("hex"));
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes).expect("UTF-8")
}

struct Request {
    parameters: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    /// None when the body was cut.
    body: Option<Vec<u8>>,
}

fn read_body(reader: &mut BufReader<TcpStream>, headers: &BTreeMap<String, String>) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    if headers.get("transfer-encoding").is_some_and(|value| value == "chunked") {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let size = usize::from_str_radix(line.trim(), 16).ok()?;
            let mut piece = vec![0u8; size + 2];
            reader.read_exact(&mut piece).ok()?;
            if size == 0 {
                return Some(body);
            }
            body.extend_from_slice(&piece[..size]);
        }
    }
    body.resize(headers.get("content-length")?.parse().ok()?, 0);
    reader.read_exact(&mut body).ok()?;
    Some(body)
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    if reader.read_line(&mut line).ok()? == 0 {
        return None;
    }
    let target = line.split(' ').nth(1)?.to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let query = target.split_once('?').map_or("", |(_, query)| query);
    let parameters =
        query.split('&').filter_map(|pair| pair.split_once('=')).map(|(name, value)| (decoded(name), decoded(value))).collect();
    let body = read_body(reader, &headers);
    Some(Request { parameters, headers, body })
}

pub enum Reply {
    Send(u16, String),
    Close,
    Hang,
}

fn serve(stream: TcpStream, world: &Mutex<World>, stop: &AtomicBool) {
    let mut writer = stream.try_clone().expect("second handle");
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader) {
        let Some(body) = request.body else {
            world.lock().expect("world").cut += 1;
            return;
        };
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let mut slow = Duration::ZERO;
        let reply = {
            let mut world = world.lock().expect("world");
            if let (Some(user), Some(password)) = (request.headers.get("x-clickhouse-user"), request.headers.get("x-clickhouse-key")) {
                world.users.push((user.clone(), password.clone()));
            }
            match request.parameters.get("query") {
                Some(sql) => {
                    let mut settings = request.parameters.clone();
                    settings.remove("query");
                    let insert = Insert { sql: sql.clone(), settings, body };
                    world.insert(insert, &mut slow)
                }
                None => world.answer(&String::from_utf8(body).expect("SQL in UTF-8")),
            }
        };
        thread::sleep(slow);
        match reply {
            Reply::Send(status, text) => {
                let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{text}", text.len());
                if writer.write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
            Reply::Close => return,
            Reply::Hang => {
                // Until the client gives up.
                let _ = reader.read(&mut [0u8; 1]);
                return;
            }
        }
    }
}

/// Number of the segment in a token.
fn seg_of(token: &str) -> u64 {
    let mut parts = token.split('-').skip(2).map(|part| u64::from_str_radix(part, 16).expect("hex"));
    (parts.next().expect("the epoch") << 32) | parts.next().expect("the sequence")
}

impl World {
    /// Starts anew without the rows of these tokens, which it still recognises: their parts were in its page cache.
    pub fn power_cut(&mut self, lost: impl Fn(&str) -> bool) {
        self.started_s += 100;
        self.rows.retain(|token, _| !lost(token));
    }

    /// Rows by segment.
    pub fn by_segment(&self) -> BTreeMap<u64, u64> {
        let mut rows = BTreeMap::new();
        self.rows.iter().for_each(|(token, count)| *rows.entry(seg_of(token)).or_default() += count);
        rows
    }

    pub fn insert(&mut self, insert: Insert, slow: &mut Duration) -> Reply {
        let native = insert.sql.ends_with(" FORMAT Native");
        let act = if native { self.acts.pop_front().unwrap_or(Act::Take) } else { Act::Take };
        let token = insert.token().to_owned();
        // Second varint of a Native block.
        let rows = if native { native_rows(&insert.body) } else { 0 };
        self.inserts.push(insert);
        let modern = !self.version.starts_with("18.");
        let mut take = |rows: u64| {
            // A modern server recognises the token.
            if self.remembered.insert(token.clone()) || !modern {
                *self.rows.entry(token.clone()).or_default() += rows;
            }
        };
        if !native {
            return Reply::Send(200, String::new());
        }
        match act {
            Act::Take => take(rows),
            Act::TakeSlowly => {
                *slow = Duration::from_millis(30);
                take(rows);
            }
            Act::TakeAfter(time) => {
                *slow = time;
                take(rows);
            }
            Act::TakeInPart => {
                take(rows / 2);
                return Reply::Close;
            }
            Act::TakeAndClose => {
                take(rows);
                return Reply::Close;
            }
            Act::TakeAndHang => {
                take(rows);
                return Reply::Hang;
            }
            Act::Close => return Reply::Close,
            Act::Refuse(status, text) => return Reply::Send(status, text.to_owned()),
            Act::DropTables => {
                self.tables = false;
                return Reply::Send(
                    404,
                    "Code: 60, e.displayText() = DB::Exception: Table otedama.shares doesn't exist., e.what() = DB::Exception".into(),
                );
            }
        }
        Reply::Send(200, String::new())
    }

    pub fn answer(&mut self, sql: &str) -> Reply {
        self.statements.push(sql.to_owned());
        let text = if sql == "SELECT version()" {
            format!("{}\n", self.version)
        } else if sql.starts_with("CREATE ") {
            self.tables = true;
            String::new()
        } else if sql.starts_with("SELECT name, engine_full FROM system.tables") {
            let view = format!("{VERSION_VIEW}\tView\n");
            if self.tables {
                TABLES.iter().map(|table| format!("{}\tMergeTree\n", table.name)).chain([view]).collect()
            } else {
                String::new()
            }
        } else if sql.starts_with("SELECT max(version) FROM `otedama`.`schema_version`") {
            format!("{VERSION}\n")
        } else if sql.starts_with("SELECT table, name, type FROM system.columns") {
            let line = |table: &str, name: &str, kind: &str| {
                format!("{table}\t{name}\t{}\n", kind.replace("WORK", "UInt128").replace('\'', "\\'"))
            };
            TABLES.iter().flat_map(|table| table.columns.iter().map(move |column| line(table.name, column.name, column.kind))).collect()
        } else if sql.contains("dependencies_table") {
            let engine = |name: &str| {
                if self.forgetful.contains(&name) {
                    "MergeTree ORDER BY x"
                } else {
                    "MergeTree ORDER BY x SETTINGS non_replicated_deduplication_window = 100000"
                }
            };
            let mut text = format!("otedama\tshares\t{}\tCREATE TABLE\t0\totedama.worker_minute_view\n", engine(SHARES.name));
            text.push_str("otedama\tworker_minute_view\t\tCREATE MATERIALIZED VIEW otedama.worker_minute_view TO otedama.worker_minute (a UInt8) AS SELECT 1\t0\t\n");
            text.push_str(&format!("otedama\tworker_minute\t{}\tCREATE TABLE\t0\t\n", engine("worker_minute")));
            text
        } else if sql.starts_with("SELECT toUInt32(now()) - uptime()") {
            format!("{}\n", self.started_s)
        } else if sql.starts_with("SELECT instance, seg, count() FROM `otedama`.`shares`") {
            self.by_segment().iter().map(|(seg, rows)| format!("7\t{seg}\t{rows}\n")).collect()
        } else if sql.contains("system.processes") {
            let here = u64::from(self.lingering > 0);
            self.lingering = self.lingering.saturating_sub(1);
            format!("{here}\n")
        } else if sql.starts_with("SELECT count() FROM `otedama`.`shares` WHERE instance = ") {
            let seg: u64 = sql
                .split("seg = ")
                .nth(1)
                .and_then(|rest| rest.split(' ').next())
                .and_then(|digits| digits.parse().ok())
                .expect("a segment");
            let rows = self.by_segment().get(&seg).copied().unwrap_or_default();
            format!("{rows}\n")
        } else {
            String::new()
        };
        Reply::Send(200, text)
    }
}

pub fn native_rows(body: &[u8]) -> u64 {
    let mut rows = 0;
    for (index, byte) in body[1..].iter().take(5).enumerate() {
        rows |= u64::from(byte & 0x7f) << (7 * index);
        if *byte < 0x80 {
            break;
        }
    }
    rows
}
