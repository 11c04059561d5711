//! A real ClickHouse in a temporary folder on free loopback ports; and a proxy that loses its answers.
//!
//! It is 18.16, as Debian ships it, or with `OTEDAMA_TEST_SERVER=engine` a modern one: libchdb behind `otedama-engine` (`OTEDAMA_ENGINE` names the program, `OTEDAMA_LIBCHDB` the
//! library; `cargo xtask engine` makes both). The same tests run against either; what is promised differs, and they ask `Server::is_modern`. `OTEDAMA_TEST_SERVER=none` leaves
//! them to runs that have a server.
//!
//! The tests of the root package use this file too (`#[path = "../shipper/tests/server/mod.rs"] mod server;`): it needs std and rustix alone.
//! Where the server is not installed, `Server::start` prints a counted SKIP line and gives None, unless `OTEDAMA_REQUIRE_CLICKHOUSE=1`, which makes that a failure.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const CONFIG: &str = include_str!("../../../deploy/clickhouse/config.xml");
const USERS: &str = include_str!("../../../deploy/clickhouse/users.xml");
const START_WITHIN: Duration = Duration::from_secs(30);

static SKIPPED: AtomicUsize = AtomicUsize::new(0);
static FOLDERS: AtomicUsize = AtomicUsize::new(0);

/// Which server the tests run against.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Debian's 18.16: no tokens, at least once.
    Debian,
    /// libchdb behind otedama-engine: tokens, exactly once.
    Engine,
}

impl Kind {
    /// From `OTEDAMA_TEST_SERVER`; None when that is `none`.
    pub fn chosen() -> Option<Self> {
        match std::env::var("OTEDAMA_TEST_SERVER").as_deref() {
            Err(_) | Ok("" | "debian") => Some(Self::Debian),
            Ok("engine") => Some(Self::Engine),
            Ok("none") => None,
            Ok(other) => panic!("OTEDAMA_TEST_SERVER is {other:?}: it is debian, engine or none"),
        }
    }
}

/// A running server; dropped, it is killed and its folder removed.
pub struct Server {
    kind: Kind,
    binary: PathBuf,
    folder: PathBuf,
    http: u16,
    child: Option<Child>,
}

/// Where the server's binary is, if it is there; `OTEDAMA_CLICKHOUSE_SERVER` names another place for Debian's, `OTEDAMA_ENGINE` is that of the engine.
pub fn binary(kind: Kind) -> Option<PathBuf> {
    let named = |name: &str| std::env::var_os(name).map(|place| vec![PathBuf::from(place)]);
    let places = match kind {
        Kind::Debian => named("OTEDAMA_CLICKHOUSE_SERVER")
            .unwrap_or_else(|| ["/usr/sbin/clickhouse-server", "/usr/bin/clickhouse-server"].map(PathBuf::from).to_vec()),
        Kind::Engine => named("OTEDAMA_ENGINE").unwrap_or_default(),
    };
    places.into_iter().find(|path| path.exists())
}

/// A modern server: its URL, and the server where it is the engine that `OTEDAMA_TEST_SERVER=engine` asks for. `OTEDAMA_MODERN_CLICKHOUSE_URL` names another one.
pub fn modern(test: &str) -> Option<(String, Option<Server>)> {
    match (std::env::var("OTEDAMA_MODERN_CLICKHOUSE_URL").ok(), Kind::chosen()) {
        (Some(url), _) => Some((url, None)),
        (None, Some(Kind::Engine)) => Server::start(test).map(|server| (server.url(), Some(server))),
        (None, _) => {
            skip(test, "neither OTEDAMA_TEST_SERVER=engine nor OTEDAMA_MODERN_CLICKHOUSE_URL names a modern server");
            None
        }
    }
}

/// Debian's server, for what is about that one alone.
pub fn debian(test: &str) -> Option<Server> {
    if Kind::chosen() != Some(Kind::Engine) {
        return Server::start(test);
    }
    skip(test, "it is about Debian's server, and OTEDAMA_TEST_SERVER names another one");
    None
}

/// Says that `test` is skipped and why, past the capture of the test harness, and counts it.
pub fn skip(test: &str, why: &str) {
    let number = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
    let _ = writeln!(std::io::stderr(), "SKIP {number}: {test}: {why}");
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr()).expect("a free loopback port").port()
}

impl Server {
    /// Starts a server and waits until it answers; None, with a SKIP line, where there is none to start.
    pub fn start(test: &str) -> Option<Self> {
        let Some(kind) = Kind::chosen() else {
            skip(test, "OTEDAMA_TEST_SERVER=none leaves it to the lanes that have a server");
            return None;
        };
        let Some(binary) = binary(kind) else {
            let why = match kind {
                Kind::Debian => "clickhouse-server is not installed (apt-get install clickhouse-server)",
                Kind::Engine => "OTEDAMA_ENGINE names no otedama-engine (cargo xtask engine)",
            };
            assert!(std::env::var("OTEDAMA_REQUIRE_CLICKHOUSE").as_deref() != Ok("1"), "{test}: OTEDAMA_REQUIRE_CLICKHOUSE=1, but {why}");
            skip(test, why);
            return None;
        };
        let folder =
            std::env::temp_dir().join(format!("otedama-clickhouse-{}-{}", std::process::id(), FOLDERS.fetch_add(1, Ordering::Relaxed)));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("a temporary folder");
        let http = free_port();
        let place = folder.to_str().expect("a folder named in UTF-8");
        let config = CONFIG
            .replace("/var/lib/otedama-clickhouse", place)
            .replace("<http_port>8123<", &format!("<http_port>{http}<"))
            .replace("<tcp_port>9000<", &format!("<tcp_port>{}<", free_port()));
        fs::write(folder.join("config.xml"), config).expect("config.xml");
        fs::write(folder.join("users.xml"), USERS).expect("users.xml");
        let mut server = Self { kind, binary, folder, http, child: None };
        server.restart();
        Some(server)
    }

    /// True for a server that knows inserts by their tokens: what is promised there is exactly once, in the views' tables too.
    pub fn is_modern(&self) -> bool {
        self.kind == Kind::Engine
    }

    /// `clickhouse.state` in the pool's stats when all is well.
    pub fn state(&self) -> &'static str {
        if self.is_modern() { "ok" } else { "legacy" }
    }

    /// The server's own process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.http)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.http))
    }

    /// SIGKILL, as a crash.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        if let Some(pid) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let until = Instant::now() + START_WITHIN;
        while Instant::now() < until {
            if matches!(child.try_wait(), Ok(Some(_))) {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Starts it again on its ports and data.
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "it is still running");
        let output = fs::File::create(self.folder.join("output")).expect("output file");
        let mut command = Command::new(&self.binary);
        match self.kind {
            Kind::Debian => command.arg("-C").arg(self.folder.join("config.xml")),
            Kind::Engine => command.args(["serve", "--listen", &self.address().to_string(), "--data"]).arg(self.folder.join("data")),
        };
        let child = command
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("second handle"))
            .stderr(output)
            .spawn()
            .expect("the server starts");
        self.child = Some(child);
        let until = Instant::now() + START_WITHIN;
        while self.try_query("SELECT 1").as_deref() != Ok("1\n") {
            assert!(Instant::now() < until, "the server does not answer:\n{}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The ends of what it printed and logged.
    pub fn log(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.folder.join(name)).unwrap_or_default();
        let tail = |text: String| text.lines().rev().take(15).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n");
        format!("{}\n{}", tail(read("output")), tail(read("server.err.log")))
    }

    /// Runs a statement and returns its result, tab-separated.
    pub fn query(&self, sql: &str) -> String {
        self.try_query(sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// As `query`; an error is the server's answer, or why there is none.
    pub fn try_query(&self, sql: &str) -> Result<String, String> {
        self.post("", sql.as_bytes())
    }

    /// POST with the query string `parameters` (encoded) and this body.
    pub fn post(&self, parameters: &str, body: &[u8]) -> Result<String, String> {
        let text = |error: std::io::Error| error.to_string();
        let mut stream = TcpStream::connect(self.address()).map_err(text)?;
        stream.set_read_timeout(Some(Duration::from_secs(60))).map_err(text)?;
        let head = format!("POST /?{parameters} HTTP/1.0\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).map_err(text)?;
        stream.write_all(body).map_err(text)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).map_err(text)?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, result) = answer.split_once("\r\n\r\n").ok_or("no answer")?;
        if head.split(' ').nth(1) == Some("200") { Ok(result.to_owned()) } else { Err(result.to_owned()) }
    }

    /// The folder with its data.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Passes connections on to a server and loses some of its answers: the request arrives and is carried out, and the client sees its connection close.
pub struct LossyProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    target: SocketAddr,
    /// Every this many-th segment insert loses its answer; 0 for none.
    every: u64,
    inserts: AtomicU64,
    lost: AtomicU64,
    stop: AtomicBool,
}

impl LossyProxy {
    /// A proxy in front of `target` that loses the answer to every `every`-th insert of a segment.
    pub fn start(target: SocketAddr, every: u64) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free loopback port");
        let address = listener.local_addr().expect("its address");
        let shared = Arc::new(Shared { target, every, inserts: AtomicU64::new(0), lost: AtomicU64::new(0), stop: AtomicBool::new(false) });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if accepting.stop.load(Ordering::Relaxed) {
                    return;
                }
                let shared = Arc::clone(&accepting);
                thread::spawn(move || shared.pass(client));
            }
        });
        Self { address, shared }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Segment inserts that passed, and how many of their answers were lost.
    pub fn counts(&self) -> (u64, u64) {
        (self.shared.inserts.load(Ordering::Relaxed), self.shared.lost.load(Ordering::Relaxed))
    }
}

impl Drop for LossyProxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn pass(&self, mut client: TcpStream) {
        // A server that is down: the client's connection just closes.
        let Ok(mut server) = TcpStream::connect(self.target) else { return };
        let (Ok(mut client_in), Ok(mut server_out)) = (client.try_clone(), server.try_clone()) else { return };
        let lose = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut buffer = vec![0u8; 1 << 16];
                while let Ok(count @ 1..) = client_in.read(&mut buffer) {
                    let piece = &buffer[..count];
                    // A client asks again on a connection only when it has its answer, so a request starts a piece.
                    let line = piece.split(|&byte| byte == b'\r').next().unwrap_or_default();
                    if piece.starts_with(b"POST ") && line.windows(6).any(|word| word == b"Native") {
                        let insert = self.inserts.fetch_add(1, Ordering::Relaxed) + 1;
                        lose.store(self.every > 0 && insert.is_multiple_of(self.every), Ordering::Relaxed);
                    }
                    if server_out.write_all(piece).is_err() {
                        break;
                    }
                }
                let _ = server_out.shutdown(Shutdown::Write);
            });
            let mut buffer = vec![0u8; 1 << 16];
            while let Ok(count @ 1..) = server.read(&mut buffer) {
                if lose.load(Ordering::Relaxed) {
                    self.lost.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                if client.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Both);
        });
    }
}
