//! What the tests of the whole pool share: a real server process, its stats, its log's verdict, and a miner that speaks over a bare socket.
#![allow(dead_code, reason = "each test binary uses a part of it")]
pub mod kills;

use loadgen::engine::EngineConfig;
use loadgen::hash::{OpenHeader, meets, merkle_roots, share_hash};
use loadgen::job::Job;
use loadgen::ledger::LedgerSink;
use loadgen::report::RunReport;
use loadgen::run::RunConfig;
use loadgen::session::Behaviour;
use otedama_primitives::{Difficulty, ShareStatus, Target, Work};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

/// Far past anything that a healthy server takes, also on a machine that compiles something else meanwhile: only what hangs runs into it.
pub const PATIENCE: Duration = Duration::from_secs(60);

static MACHINE: Mutex<()> = Mutex::new(());

/// The tests of one binary take turns: each brings a server with pinned threads, and two of them on two cores only slow each other down.
pub fn alone() -> MutexGuard<'static, ()> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// True for the long sizes, `OTEDAMA_LONG=1`.
pub fn long() -> bool {
    std::env::var_os("OTEDAMA_LONG").is_some_and(|value| value == "1")
}

/// `ci`, or `long` with `OTEDAMA_LONG=1`.
pub fn size<T>(ci: T, long_size: T) -> T {
    if long() { long_size } else { ci }
}

/// The config keys that tests change.
#[derive(Clone, Debug)]
pub struct Config {
    pub listen: SocketAddr,
    pub difficulty: f64,
    /// Where jobs come from: the first lines of `[chain]`.
    pub chain: String,
    pub max_connections: u32,
    pub refresh_s: u64,
    pub block_s: u64,
    pub ack: &'static str,
    pub row: &'static str,
    pub max_bytes: &'static str,
    pub line_bytes: u32,
    pub authorize_within_s: u64,
    pub refused_per_s: u32,
    /// A ClickHouse that the log waits for.
    pub clickhouse: String,
    pub net: &'static str,
    pub validate: &'static str,
    pub read_within_ms: u32,
    /// Instruction set of the hash kernels.
    pub isa: &'static str,
    /// Stages that stop for a while: not in the file but in the environment.
    pub fail_point: &'static str,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            // Four hashes a share.
            difficulty: 1e-9,
            chain: "rpc = [\"practice\"]\n".to_owned(),
            max_connections: 10_000,
            refresh_s: 30,
            block_s: 86_400,
            ack: "process",
            row: "replayable",
            max_bytes: "64 GiB",
            line_bytes: 8192,
            authorize_within_s: 10,
            refused_per_s: 0,
            clickhouse: String::new(),
            net: "auto",
            validate: "auto",
            read_within_ms: 250,
            isa: "auto",
            fail_point: "",
        }
    }
}

impl Config {
    fn text(&self, log: &Path) -> String {
        let Self {
            listen,
            difficulty,
            chain,
            max_connections,
            refresh_s,
            block_s,
            ack,
            row,
            max_bytes,
            line_bytes,
            authorize_within_s,
            refused_per_s,
            clickhouse,
            net,
            validate,
            read_within_ms,
            isa,
            fail_point: _,
        } = self;
        format!(
            "[stratum]\nlisten = [\"{listen}\"]\ndifficulty = {difficulty:e}\nmax_connections = {max_connections}\n\
             [vardiff]\nenabled = false\nmin = 2.4e-10\n\
             [chain]\n{chain}refresh_s = {refresh_s}\npractice_block_s = {block_s}\n\
             [log]\ndir = \"{}\"\nack = \"{ack}\"\nrow = \"{row}\"\nmax_bytes = \"{max_bytes}\"\n\
             [clickhouse]\nurl = \"{clickhouse}\"\n\
             [limits]\nline_bytes = {line_bytes}\nauthorize_within_s = {authorize_within_s}\nrefused_per_s = {refused_per_s}\n\
             read_within_ms = {read_within_ms}\n\
             [stats]\nlisten = \"127.0.0.1:0\"\n\
             [layout]\nnet = \"{net}\"\nvalidate = \"{validate}\"\nisa = \"{isa}\"\n",
            log.display()
        )
    }
}

/// A folder with a config, a log and a ledger, gone at the end of the test.
pub struct Site {
    folder: tempfile::TempDir,
    pub config: Config,
}

impl Site {
    pub fn new(config: Config) -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder"), config }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn log(&self) -> PathBuf {
        self.path("log")
    }

    pub fn ledger(&self) -> PathBuf {
        self.path("ledger")
    }

    /// Writes the config anew and gives its path.
    pub fn config_file(&self) -> PathBuf {
        let path = self.path("pool.toml");
        std::fs::write(&path, self.config.text(&self.log())).expect("write the config");
        path
    }

    /// Starts `otedama serve` and returns at once. What it says on standard error is appended to one file over all starts.
    pub fn spawn(&self) -> Starting {
        self.spawn_with(&[])
    }

    /// The same with these variables in its environment.
    pub fn spawn_with(&self, variables: &[(&str, &str)]) -> Starting {
        self.spawn_told(variables, &[])
    }

    /// The same with further arguments.
    pub fn spawn_told(&self, variables: &[(&str, &str)], arguments: &[&std::ffi::OsStr]) -> Starting {
        let stderr = File::options().create(true).append(true).open(self.path("stderr")).expect("open stderr");
        let mut command = Command::new(env!("CARGO_BIN_EXE_otedama"));
        if !self.config.fail_point.is_empty() {
            command.env("OTEDAMA_FAIL_POINT_PAUSE", self.config.fail_point);
        }
        let mut child = command
            .arg("serve")
            .arg("--config")
            .arg(self.config_file())
            .envs(variables.iter().copied())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .expect("start otedama");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let (said, lines) = mpsc::channel();
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| said.send(line).map_err(drop)));
        Starting { child: Some(child), lines, spawned: Instant::now() }
    }

    /// Starts `otedama serve` and waits until it listens.
    pub fn serve(&self) -> Server {
        self.serve_with(&[])
    }

    /// The same with further arguments.
    pub fn serve_with(&self, arguments: &[&std::ffi::OsStr]) -> Server {
        self.spawn_told(&[], arguments).listening().unwrap_or_else(|code| panic!("serve ended with {code:?}: {}", self.stderr()))
    }

    pub fn stderr(&self) -> String {
        std::fs::read_to_string(self.path("stderr")).unwrap_or_default()
    }

    /// `otedama log verify --json`: exit code and report.
    pub fn verify(&self, ledger: Option<&Path>) -> (i32, Value) {
        verify(&self.log(), ledger)
    }

    /// Verifies the log against the site's ledger: it must be clean. Gives the rows by status, in the order of `ShareStatus::ALL`.
    pub fn verified_clean(&self) -> [u64; 9] {
        let (code, report) = self.verify(Some(&self.ledger()));
        assert_eq!((code, &report["problems"]), (0, &serde_json::json!([])), "{}", self.stderr());
        let by_status = rows_by_status(&report["by_status"]);
        let (rows, shares) = (report["rows"].as_u64().expect("a count"), by_status.iter().sum());
        assert!(rows == shares || (rows < shares && self.config.row == "rollup"), "every row has a status: {rows} rows of {shares} shares");
        by_status
    }

    /// No thread of any server of this site has panicked.
    pub fn assert_no_panic(&self) {
        let said = self.stderr();
        assert!(!said.contains("panicked") && !said.contains("ended by itself"), "{said}");
    }
}

/// Counts by label as an array.
pub fn rows_by_status(counts: &Value) -> [u64; 9] {
    ShareStatus::ALL.map(|status| counts[status.label()].as_u64().unwrap_or_else(|| panic!("{} in {counts}", status.label())))
}

/// `otedama log verify --json` on any folder.
pub fn verify(dir: &Path, ledger: Option<&Path>) -> (i32, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_otedama"));
    command.args(["log", "verify", "--json", "--dir"]).arg(dir);
    if let Some(ledger) = ledger {
        command.arg("--ledger").arg(ledger);
    }
    let output = command.output().expect("run otedama log verify");
    let text = String::from_utf8_lossy(&output.stdout);
    let report = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text} {}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code().expect("verify ends by itself"), report)
}

/// Runs `otedama` with these arguments to its end.
pub fn otedama(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_otedama")).args(arguments).output().expect("run otedama")
}

/// A server on its way up. Killed when it goes out of scope.
pub struct Starting {
    child: Option<Child>,
    lines: mpsc::Receiver<String>,
    pub spawned: Instant,
}

impl Starting {
    /// Waits for its addresses; the exit code when it ends instead.
    pub fn listening(mut self) -> Result<Server, Option<i32>> {
        let mut said = Vec::new();
        while said.len() < 2 {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => said.push(line),
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("the server neither listens nor ends"),
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    let mut child = self.child.take().expect("taken once");
                    return Err(child.wait().expect("wait").code());
                }
            }
        }
        let up = self.spawned.elapsed();
        let address = |line: &str, before: &str, after: &str| -> SocketAddr {
            let text = line.strip_prefix(before).map(|rest| rest.strip_suffix(after).unwrap_or(rest));
            text.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no address in {line:?}"))
        };
        let stratum = address(&said[0], "listening on ", "   (PRACTICE chain)");
        let stats = address(&said[1], "stats on http://", "/");
        let child = self.child.take().expect("taken once");
        let (_none, nothing) = mpsc::channel();
        Ok(Server { child, lines: std::mem::replace(&mut self.lines, nothing), stratum, stats, up })
    }

    /// Waits for its end by a kill point, true when that came; kill -9 from outside when it did not. It may not end in any other way, except that the kernel still had the port:
    /// it takes a killed ring's hold on a listening socket back a little later.
    pub fn killed_itself_within(mut self, patience: Duration) -> bool {
        let mut child = self.child.take().expect("taken once");
        let until = Instant::now() + patience;
        while Instant::now() < until {
            if let Some(status) = child.try_wait().expect("wait") {
                if status.code() == Some(3) {
                    return false;
                }
                assert_eq!(status.signal(), Some(9), "the server ended otherwise: {status}");
                return true;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill().expect("kill");
        child.wait().expect("wait");
        false
    }

    /// kill -9, wherever it is.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        self.end();
    }
}

/// The line that `serve` ends with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Drained {
    pub received: u64,
    pub accepted: u64,
    pub rejected: u64,
    pub logged: u64,
}

/// A running server. Killed when it goes out of scope.
pub struct Server {
    child: Child,
    lines: mpsc::Receiver<String>,
    pub stratum: SocketAddr,
    pub stats: SocketAddr,
    /// From the start of the process to its word that it listens.
    pub up: Duration,
}

impl Server {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// kill -9.
    pub fn kill(mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_none()
    }

    /// SIGTERM, and the wait for its end: it must exit 0 with every share in its books and in its log.
    pub fn stop(self) -> Drained {
        let drained = self.stop_with_full_log();
        assert_eq!(drained.logged, drained.received, "{drained:?}");
        drained
    }

    /// The same for a server whose log was full at times: what it then refused has no row.
    pub fn stop_with_full_log(mut self) -> Drained {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("SIGTERM");
        let mut last = String::new();
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            last = line;
        }
        let status = self.child.wait().expect("wait");
        assert_eq!(status.code(), Some(0), "{last}");
        let numbers: Vec<u64> = last.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect();
        let &[received, accepted, rejected, logged, _segments] = &numbers[..] else { panic!("not the line of a drained server: {last:?}") };
        assert!(last.starts_with("drained: received "), "{last}");
        assert_eq!(received, accepted + rejected, "{last}");
        Drained { received, accepted, rejected, logged }
    }

    /// Status code and body of a GET on the stats address.
    pub fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.stats).expect("connect to stats");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.stats).expect("ask");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("answer");
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP: {text}"));
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("no status: {head}"));
        (code, body.to_owned())
    }

    /// `GET /api/stats`.
    pub fn stats(&self) -> Value {
        let (code, body) = self.get("/api/stats");
        assert_eq!(code, 200, "{body}");
        serde_json::from_str(&body).expect("JSON")
    }

    /// The shares of `/api/stats` once nothing is in flight: received = accepted + rejected = logged. Accepted comes first in the array.
    /// Each stage publishes its counters in its own time, so that the last of them may come a moment after the last answer.
    pub fn settled_shares(&self, received: u64) -> [u64; 9] {
        let mut shares = Value::Null;
        let mut counts = [0; 9];
        let settled = eventually(|| {
            shares = self.stats()["shares"].take();
            let mut by_label = shares["rejected"].clone();
            by_label["accepted"] = shares["accepted"].clone();
            counts = rows_by_status(&by_label);
            shares["received"] == received && shares["logged"] == received && counts.iter().sum::<u64>() == received
        });
        assert!(settled, "{received} shares were sent, stats have {shares}");
        counts
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A figure in KiB of /proc/PID/status.
pub fn memory_kib(pid: u32, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the server runs");
    let line = text.lines().find(|line| line.starts_with(field)).unwrap_or_else(|| panic!("no {field}"));
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

/// Looks again until it holds or patience ends.
pub fn eventually(mut holds: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + PATIENCE;
    loop {
        if holds() {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A free port that no outgoing connection is given: a client that tries to come back while nobody listens could otherwise be connected to itself
/// and keep the port.
pub fn port_out_of_the_way() -> u16 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let first = range.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(32_768_u16);
    let top = first.clamp(2048, 32_768);
    let start = u16::try_from(std::process::id() % u32::from(top - 1024)).expect("smaller than top");
    (0..top - 1024)
        .map(|step| 1024 + (start + step) % (top - 1024))
        .find(|&port| TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, port)).is_ok())
        .expect("a free port")
}

/// When a run of the load generator ends.
#[derive(Clone, Copy, Debug)]
pub enum Amount {
    Submits(u64),
    Seconds(u64),
}

/// A run of the load generator.
pub fn load(target: SocketAddr, amount: Amount, connections: usize, depth: usize, behaviour: Behaviour, ledger: LedgerSink) -> RunReport {
    let behaviour = Behaviour { depth, ..behaviour };
    let engine = EngineConfig { connections, behaviour, ledger, ..EngineConfig::new(target) };
    let (shares, seconds) = match amount {
        Amount::Submits(submits) => (Some(submits), 3600),
        Amount::Seconds(seconds) => (None, seconds),
    };
    let config = RunConfig {
        window: Duration::from_secs(seconds),
        warmup: Duration::ZERO,
        shares,
        set_up_limit: PATIENCE,
        ..RunConfig::new(engine)
    };
    loadgen::run::run(config, &AtomicBool::new(false)).expect("the load generator")
}

/// Verdicts of a ledger: by status, and the unanswered.
pub fn ledger_counts(path: &Path) -> ([u64; 9], u64) {
    let text = std::fs::read_to_string(path).expect("read the ledger");
    let (mut by_status, mut unanswered) = ([0; 9], 0);
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let verdict = line.rsplit(' ').next().expect("a line has fields");
        match ShareStatus::from_label(verdict) {
            Some(status) => by_status[status as usize] += 1,
            None => {
                assert_eq!(verdict, "unanswered", "{line}");
                unanswered += 1;
            }
        }
    }
    (by_status, unanswered)
}

/// A connection without any manners of its own.
pub struct Wire {
    pub stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Wire {
    pub fn connect(target: SocketAddr) -> Self {
        Self::over(TcpStream::connect(target).expect("connect"))
    }

    pub fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("nodelay");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("timeout");
        let reader = BufReader::new(stream.try_clone().expect("clone"));
        Self { stream, reader }
    }

    /// One write, so one segment where it fits the loopback's 64 KiB.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("send");
    }

    /// One write to a server that may have closed the connection; false when it has.
    pub fn offer(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        match self.stream.write_all(bytes.as_ref()) {
            Ok(()) => true,
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => false,
            Err(error) => panic!("neither taken nor closed: {error}"),
        }
    }

    /// The next line; None once the server has closed the connection.
    pub fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(line),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => None,
            Err(error) => panic!("no line and no end: {error}"),
        }
    }

    /// Reads on until the server closes; it does so within patience, or the test fails.
    pub fn wait_for_close(&mut self) {
        while self.line().is_some() {}
    }
}

/// A share with all of its fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MinedShare {
    pub job: String,
    pub extranonce2: u64,
    pub ntime: u32,
    pub nonce: u32,
}

/// A subscribed and authorized miner on a bare socket.
pub struct Miner {
    pub wire: Wire,
    pub extranonce1: Vec<u8>,
    pub work: Work,
    pub target: Target,
    /// Jobs in the order in which they came.
    pub jobs: Vec<Job>,
    answers: VecDeque<Value>,
    next_id: u64,
    extranonce2: u64,
}

impl Miner {
    pub const WORKER: &'static str = "probe.one";

    pub fn connect(target: SocketAddr) -> Self {
        Self::over(Wire::connect(target))
    }

    /// The same over a connection of the caller's.
    pub fn over(mut wire: Wire) -> Self {
        wire.send(format!(
            "{{\"id\":1,\"method\":\"mining.subscribe\",\"params\":[\"probe/1\"]}}\n{{\"id\":2,\"method\":\"mining.authorize\",\"params\":[\"{}\",\"x\"]}}\n",
            Self::WORKER
        ));
        let work = Work::new(1);
        let target = work.target();
        let mut miner =
            Self { wire, extranonce1: vec![], work, target, jobs: vec![], answers: VecDeque::new(), next_id: 3, extranonce2: 1 };
        let subscribed = miner.answer(1);
        let hex = subscribed["result"][1].as_str().expect("extranonce1");
        miner.extranonce1 = (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).expect("hex")).collect();
        assert_eq!(subscribed["result"][2], 8, "these tests mine with 8 bytes of extranonce2");
        assert_eq!(miner.answer(2)["result"], true);
        while miner.jobs.is_empty() {
            miner.read();
        }
        miner
    }

    /// Takes one line: a job, a difficulty, or an answer to be asked for.
    fn read(&mut self) {
        let line = self.wire.line().expect("the server goes on");
        let value: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        match value["method"].as_str() {
            Some("mining.notify") => {
                let job = Job::from_notify(&value["params"].to_string(), 4, 8).expect("a job");
                self.jobs.push(job);
            }
            Some("mining.set_difficulty") => {
                self.work = Difficulty::clamped(value["params"][0].as_f64().expect("a number")).work();
                self.target = self.work.target();
            }
            Some(other) => panic!("unexpected {other}"),
            None => self.answers.push_back(value),
        }
    }

    /// The next answer, which must be to `id`: answers come in order.
    pub fn answer(&mut self, id: u64) -> Value {
        while self.answers.is_empty() {
            self.read();
        }
        let answer = self.answers.pop_front().expect("not empty");
        assert_eq!(answer["id"], id, "{answer}");
        answer
    }

    pub fn newest(&self) -> &Job {
        self.jobs.last().expect("connect waits for a job")
    }

    /// Waits for a job after the newest one.
    pub fn next_job(&mut self) -> &Job {
        let known = self.jobs.len();
        while self.jobs.len() == known {
            self.read();
        }
        self.newest()
    }

    /// Looks for a share of the newest job.
    pub fn mine(&mut self) -> MinedShare {
        self.extranonce2 += 1;
        let (extranonce2, target) = (self.extranonce2, self.target);
        let job = self.jobs.last().expect("connect waits for a job");
        let mut root = [[0; 32]];
        merkle_roots(job, &self.extranonce1, &[extranonce2], &mut root);
        let mut header = OpenHeader::new(job, &root[0], job.ntime, job.version);
        let nonce = (0..=u32::MAX).find(|&nonce| meets(&header.hash(nonce), &target)).expect("four billion nonces suffice");
        MinedShare { job: job.id.to_string(), extranonce2, ntime: job.ntime, nonce }
    }

    /// Whether these fields would make a share of `job` in this session.
    pub fn would_pass(&self, job: &Job, share: &MinedShare) -> bool {
        self.target.is_met_by(&share_hash(job, &self.extranonce1, share.extranonce2, share.ntime, share.nonce, job.version))
    }

    /// The line that submits a share, and its id.
    pub fn submit_line(&mut self, share: &MinedShare) -> (u64, String) {
        let id = self.next_id;
        self.next_id += 1;
        let MinedShare { job, extranonce2, ntime, nonce } = share;
        let line = format!(
            "{{\"id\":{id},\"method\":\"mining.submit\",\"params\":[\"{}\",\"{job}\",\"{extranonce2:016x}\",\"{ntime:08x}\",\"{nonce:08x}\"]}}\n",
            Self::WORKER
        );
        (id, line)
    }

    /// Submits all in one write; the wire code of each answer, 0 for accepted.
    pub fn submit_at_once(&mut self, shares: &[MinedShare]) -> Vec<i64> {
        let lines: Vec<(u64, String)> = shares.iter().map(|share| self.submit_line(share)).collect();
        self.wire.send(lines.iter().map(|(_, line)| line.as_str()).collect::<String>());
        lines.iter().map(|(id, _)| code(&self.answer(*id))).collect()
    }
}

/// The wire code of an answer, 0 for accepted.
pub fn code(answer: &Value) -> i64 {
    if answer["result"] == true {
        assert!(answer["error"].is_null(), "{answer}");
        return 0;
    }
    answer["error"][0].as_i64().unwrap_or_else(|| panic!("neither true nor an error: {answer}"))
}
