//! The engine as its clients see it. Needs libchdb (`OTEDAMA_LIBCHDB`, which `cargo xtask engine` fetches); without it every test says that it is skipped.
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

static SKIPPED: AtomicUsize = AtomicUsize::new(0);

fn library(test: &str) -> Option<PathBuf> {
    let path = std::env::var_os("OTEDAMA_LIBCHDB").map(PathBuf::from).filter(|path| path.exists());
    if path.is_none() {
        assert!(std::env::var("OTEDAMA_REQUIRE_CLICKHOUSE").as_deref() != Ok("1"), "{test}: OTEDAMA_LIBCHDB names no library");
        let number = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
        let _ = writeln!(std::io::stderr(), "SKIP {number}: {test}: OTEDAMA_LIBCHDB names no library (cargo xtask engine)");
    }
    path
}

/// `otedama-engine serve` on a folder.
struct Engine {
    child: Child,
    address: SocketAddr,
}

/// An answer.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value))
    }
}

impl Engine {
    fn start(data: &Path, more: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_otedama-engine"))
            .args(["serve", "--listen", "127.0.0.1:0", "--data"])
            .arg(data)
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the engine starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("its address");
        let address = line.trim().strip_prefix("listening on http://").and_then(|text| text.parse().ok());
        Self { address: address.unwrap_or_else(|| panic!("no address in {line:?}")), child }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("connected");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("set");
        stream
    }

    fn send(&self, method: &str, target: &str, headers: &str, body: &[u8]) -> Answer {
        let mut stream = self.connect();
        let head = format!("{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
        stream.write_all(head.as_bytes()).expect("head");
        // A server that refuses a body stops reading it.
        let _ = stream.write_all(body);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
        let status = head.split(' ').nth(1).and_then(|text| text.parse().ok()).expect("a status");
        Answer { status, head: head.to_owned(), body: body.to_owned() }
    }

    fn post(&self, sql: &str) -> Answer {
        self.send("POST", "/", "", sql.as_bytes())
    }

    fn ask(&self, sql: &str) -> String {
        let answer = self.post(sql);
        assert_eq!(answer.status, 200, "{sql}: {}", answer.body);
        answer.body.trim_end().to_owned()
    }

    fn stop(mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")).expect("not 0");
        kill_process(pid, Signal::TERM).expect("signalled");
        let until = Instant::now() + Duration::from_secs(60);
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().expect("waited") {
                assert_eq!(status.code(), Some(0));
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("it does not end");
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn query(data: Option<&Path>, more: &[&str], script: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_otedama-engine"));
    command.arg("query").args(more);
    if let Some(data) = data {
        command.arg("--data").arg(data);
    }
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the engine starts");
    child.stdin.take().expect("piped").write_all(script.as_bytes()).expect("written");
    child.wait_with_output().expect("ended")
}

const TABLE: &str = "CREATE TABLE t (a UInt32) ENGINE = MergeTree ORDER BY a SETTINGS non_replicated_deduplication_window = 100";

/// A Native block with one UInt32 column `a`.
fn block(values: &[u32]) -> Vec<u8> {
    assert!(values.len() < 128);
    let mut bytes = vec![1, values.len() as u8, 1, b'a', 6];
    bytes.extend_from_slice(b"UInt32");
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    bytes
}

const INSERT: &str = "/?query=INSERT+INTO+t+(a)+FORMAT+Native&async_insert=0";

#[test]
fn statements_settings_users_and_errors_look_like_those_of_a_server() {
    if library("statements_settings_users_and_errors_look_like_those_of_a_server").is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let password = folder.path().join("password");
    std::fs::write(&password, "word\nnothing").expect("written");
    let data = folder.path().join("data");
    let engine = Engine::start(&data, &["--user", "ana", "--password-file", password.to_str().expect("UTF-8")]);
    assert_eq!(engine.send("GET", "/ping", "", b"").body, "Ok.\n");
    let ana = "X-ClickHouse-User: ana\r\nX-ClickHouse-Key: word\r\n";
    let as_ana = |target: &str, body: &str| engine.send("POST", target, ana, body.as_bytes());

    // Who.
    for (target, headers) in
        [("/", ""), ("/?user=ana&password=wor", ""), ("/", "Authorization: Basic YW5hOng=\r\n"), ("/?user=eve&password=word", "")]
    {
        let answer = engine.send("POST", target, headers, b"SELECT 1");
        assert_eq!((answer.status, answer.header("x-clickhouse-exception-code")), (403, Some("516")), "{target} {headers}");
    }
    for (target, headers) in [("/", ana), ("/?user=ana&password=word", ""), ("/", "Authorization: Basic YW5hOndvcmQ=\r\n")] {
        assert_eq!(engine.send("POST", target, headers, b"SELECT 1").body, "1\n", "{target} {headers}");
    }

    // Where and how.
    assert_eq!(as_ana("/", "CREATE DATABASE o").status, 200);
    assert_eq!(as_ana("/?database=o", TABLE).status, 200);
    let answer = as_ana("/?database=o&query=INSERT+INTO+t+FORMAT+CSV&query_id=mine", "1\n2\n");
    assert_eq!((answer.status, answer.header("x-clickhouse-query-id")), (200, Some("mine")), "{}", answer.body);
    assert!(answer.header("x-clickhouse-summary").is_some_and(|summary| summary.contains("\"written_rows\":\"2\"")), "{}", answer.head);
    assert_eq!(as_ana("/?database=o", "INSERT INTO t FORMAT TSV\n3\n4\n").status, 200);
    assert_eq!(as_ana("/?database=o&query=INSERT+INTO+t+VALUES", "(5), (6)").status, 200);
    assert_eq!(as_ana("/?database=o", "INSERT INTO t VALUES (7)").status, 200);
    assert_eq!(as_ana("/?database=o", "SELECT count(), sum(a) FROM t").body, "7\t28\n");
    let answer = as_ana("/?database=o&default_format=JSONEachRow", "SELECT max(a) AS a FROM t");
    assert_eq!((answer.body.as_str(), answer.header("x-clickhouse-format")), ("{\"a\":7}\n", Some("JSONEachRow")));
    assert_eq!(as_ana("/?default_format=JSON", "SELECT 1 FORMAT CSV").body, "1\n", "the statement's own format wins");
    assert_eq!(as_ana("/?max_threads=1&param_n=7", "SELECT {n:UInt8}, getSetting('max_threads')").body, "7\t1\n");
    assert_ne!(
        as_ana("/", "SELECT getSetting('max_threads') = 1 AND getSetting('log_comment') = 'x'").body,
        "1\n",
        "settings end with their request"
    );
    assert_eq!(as_ana("/", "SELECT timezone()").body, "UTC\n");

    // What goes wrong.
    for (target, sql, status, code) in [
        ("/", "SELCT 1", 400, "62"),
        ("/", "SELECT nope", 404, "47"),
        ("/", "SELECT * FROM o.nope", 404, "60"),
        ("/?database=nope", "SELECT 1", 404, "81"),
        ("/?no_such_setting=1", "SELECT 1", 404, "115"),
        ("/?a%20b=1", "SELECT 1", 404, "115"),
        ("/", "SELECT 1; SELECT 2", 400, "62"),
        ("/", "SELECT 1 INTO OUTFILE '/x'", 501, "48"),
        ("/?decompress=1", "SELECT 1", 501, "48"),
        ("/?database=o&query=INSERT+INTO+t+FORMAT+Native", "no block", 500, "33"),
    ] {
        let answer = as_ana(target, sql);
        assert_eq!(answer.header("x-clickhouse-exception-code"), Some(code), "{target} {sql}: {}", answer.body);
        assert_eq!(answer.status, status, "{target} {sql}: {}", answer.body);
        assert!(answer.body.starts_with(&format!("Code: {code}. DB::Exception: ")), "{}", answer.body);
    }
    assert_eq!(engine.send("GET", "/?query=DROP+TABLE+o.t", ana, b"").header("x-clickhouse-exception-code"), Some("164"), "GET only reads");
    assert_eq!(engine.send("GET", "/?query=SELECT+count()+FROM+o.t", ana, b"").body, "7\n");
    assert_eq!(engine.send("GET", "/nope", ana, b"").status, 404);
    engine.stop();

    // The folder is a clickhouse-local's, and one process has it at a time.
    let engine = Engine::start(&data, &[]);
    let second = query(Some(&data), &[], "SELECT 1");
    assert_eq!(second.status.code(), Some(3), "{second:?}");
    assert!(String::from_utf8_lossy(&second.stderr).contains("belongs to another otedama-engine"), "{second:?}");
    assert_eq!(engine.ask("SELECT count() FROM o.t"), "7");
}

#[test]
fn a_token_is_known_after_a_crash_and_a_view_is_filled_once() {
    if library("a_token_is_known_after_a_crash_and_a_view_is_filled_once").is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mut engine = Engine::start(folder.path(), &[]);
    engine.ask(TABLE);
    engine
        .ask("CREATE TABLE s (k UInt8, n UInt64) ENGINE = SummingMergeTree ORDER BY k SETTINGS non_replicated_deduplication_window = 100");
    engine.ask("CREATE MATERIALIZED VIEW v TO s AS SELECT toUInt8(a % 2) AS k, count() AS n FROM t GROUP BY k");
    let insert = |engine: &Engine, token: &str, values: &[u32]| {
        let target = format!("{INSERT}&insert_deduplication_token={token}&deduplicate_blocks_in_dependent_materialized_views=1");
        engine.send("POST", &target, "", &block(values)).status
    };
    for token in 0..20 {
        assert_eq!(insert(&engine, &token.to_string(), &[token, token + 1, token + 2]), 200);
        if token % 5 == 4 {
            // The signal finds it at rest or at a merge; what was answered has to be there.
            engine.child.kill().expect("killed");
            engine.child.wait().expect("waited");
            engine = Engine::start(folder.path(), &[]);
        }
        assert_eq!(insert(&engine, &token.to_string(), &[token, token + 1, token + 2]), 200);
        assert_eq!(insert(&engine, &(token / 2).to_string(), &[token / 2, token / 2 + 1, token / 2 + 2]), 200);
    }
    assert_eq!(engine.ask("SELECT count(), uniqExact(a) FROM t"), "60\t22");
    assert_eq!(engine.ask("SELECT sum(n) FROM s"), "60");

    // A view that throws after the table has its part: the error is the view's own, and once it is mended the retry fills it, once.
    engine.ask("CREATE TABLE w (a UInt32) ENGINE = MergeTree ORDER BY a SETTINGS non_replicated_deduplication_window = 100");
    engine.ask("CREATE MATERIALIZED VIEW x TO w AS SELECT throwIf(a = 1000, 'the view throws') + a AS a FROM t");
    let target = format!("{INSERT}&insert_deduplication_token=thrown");
    let answer = engine.send("POST", &target, "", &block(&[1000]));
    assert!(answer.status == 500 && answer.body.contains("the view throws"), "{}", answer.body);
    engine.ask("ALTER TABLE x MODIFY QUERY SELECT a FROM t");
    for _ in 0..2 {
        assert_eq!(engine.send("POST", &target, "", &block(&[1000])).status, 200);
    }
    assert_eq!(engine.ask("SELECT countIf(a = 1000) FROM t"), "1");
    assert_eq!(engine.ask("SELECT countIf(a = 1000) FROM w"), "1");
}

#[test]
fn a_body_cut_anywhere_commits_nothing() {
    if library("a_body_cut_anywhere_commits_nothing").is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let engine = Engine::start(folder.path(), &[]);
    engine.ask(TABLE);
    let two = [block(&[1, 2, 3]), block(&[4, 5, 6])].concat();
    let half = two.len() / 2;
    for end in [0, 1, half - 1, half, half + 1, two.len() - 1] {
        for chunked in [false, true] {
            let mut stream = engine.connect();
            let length = if chunked { "Transfer-Encoding: chunked".to_owned() } else { format!("Content-Length: {}", two.len()) };
            stream.write_all(format!("POST {INSERT} HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n").as_bytes()).expect("head");
            if chunked && end > 0 {
                stream.write_all(format!("{end:x}\r\n").as_bytes()).expect("size");
            }
            stream.write_all(&two[..end]).expect("body");
            if chunked && end > 0 {
                stream.write_all(b"\r\n").expect("end of the chunk, but not of the body");
            }
            stream.shutdown(Shutdown::Write).expect("cut");
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer);
            assert!(!answer.starts_with("HTTP/1.1 200"), "{end} bytes, chunked {chunked}: {answer}");
        }
    }
    assert_eq!(engine.ask("SELECT count() FROM t"), "0");
    assert_eq!(engine.send("POST", INSERT, "", &two).status, 200);
    assert_eq!(engine.ask("SELECT sum(a) FROM t"), "21");
    let spool = folder.path().join("otedama-spool");
    assert_eq!(std::fs::read_dir(&spool).expect("the spool").count(), 0, "bodies go with their requests");
}

#[test]
fn a_body_over_the_bound_is_refused() {
    if library("a_body_over_the_bound_is_refused").is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let engine = Engine::start(folder.path(), &["--body-max-bytes", "1000"]);
    engine.ask("CREATE TABLE t (a String) ENGINE = Memory");
    let answer = engine.send("POST", "/?query=INSERT+INTO+t+FORMAT+CSV", "", &vec![b'x'; 1001]);
    assert_eq!((answer.status, answer.header("x-clickhouse-exception-code")), (413, Some("261")), "{}", answer.body);
    assert_eq!(engine.send("POST", "/?query=INSERT+INTO+t+FORMAT+CSV", "", &vec![b'x'; 1000]).status, 200);
    assert_eq!(engine.ask("SELECT length(a) FROM t"), "1000");
}

#[test]
fn requests_run_beside_each_other_and_a_query_id_only_once() {
    if library("requests_run_beside_each_other_and_a_query_id_only_once").is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let engine = Engine::start(folder.path(), &[]);
    engine.ask(TABLE);
    thread::scope(|scope| {
        for writer in 0..8_u32 {
            let engine = &engine;
            scope.spawn(move || {
                for number in 0..10 {
                    let value = writer * 10 + number;
                    let target = format!("{INSERT}&insert_deduplication_token={value}");
                    assert_eq!(engine.send("POST", &target, "", &block(&[value])).status, 200);
                    engine.ask("SELECT count() FROM t");
                }
            });
        }
    });
    assert_eq!(engine.ask("SELECT count(), uniqExact(a) FROM t"), "80\t80");

    let slow = "/?query=SELECT+sleep(2)&query_id=same";
    thread::scope(|scope| {
        // Refused itself where it meets one of the others: then it comes again.
        let first = scope.spawn(|| while engine.send("POST", slow, "", b"").status != 200 {});
        let until = Instant::now() + Duration::from_secs(20);
        // The second is refused for as long as the first is at work, whenever that has begun.
        let refused = loop {
            let answer = engine.send("POST", "/?query=SELECT+1&query_id=same", "", b"");
            if answer.status != 200 || Instant::now() > until || first.is_finished() {
                break answer;
            }
        };
        assert_eq!(refused.header("x-clickhouse-exception-code"), Some("216"), "{}", refused.body);
        first.join().expect("answered");
    });
    assert_eq!(engine.send("POST", "/?query=SELECT+1&query_id=same", "", b"").status, 200, "free again");
}

#[test]
fn statements_from_standard_input_run_in_one_session_and_exit_codes_tell() {
    if library("statements_from_standard_input_run_in_one_session_and_exit_codes_tell").is_none() {
        return;
    }
    let script = "CREATE DATABASE o\0CREATE TABLE o.t (a UInt8) ENGINE = ReplacingMergeTree ORDER BY a\0INSERT INTO o.t VALUES (1), (2), (2)\0 \0SELECT a, {x:String} AS x FROM t FINAL";
    let done = query(None, &["--database", "o", "--format", "CSVWithNames", "--set", "param_x=it's"], script);
    assert_eq!(
        (done.status.code(), String::from_utf8_lossy(&done.stdout).as_ref()),
        (Some(0), "\"a\",\"x\"\n1,\"it's\"\n2,\"it's\"\n"),
        "{done:?}"
    );
    for (script, code, says) in
        [("SELECT nope", 1, "Code: 47."), ("SELECT nope\0SELECT 1", 1, "Code: 47."), ("", 2, "no statement"), (" \0\n", 2, "no statement")]
    {
        let done = query(None, &[], script);
        assert_eq!(done.status.code(), Some(code), "{script:?}: {done:?}");
        assert!(String::from_utf8_lossy(&done.stderr).contains(says), "{script:?}: {done:?}");
        assert!(done.stdout.is_empty());
    }
    let folder = tempfile::tempdir().expect("a folder");
    let made = query(Some(folder.path()), &[], "CREATE TABLE kept (a UInt8) ENGINE = MergeTree ORDER BY a\0INSERT INTO kept VALUES (7)");
    assert_eq!(made.status.code(), Some(0), "{made:?}");
    let kept = query(Some(folder.path()), &[], "SELECT a FROM kept");
    assert_eq!(kept.stdout, b"7\n", "{kept:?}");
}

#[test]
fn a_library_that_is_not_there_is_an_environment_error_that_says_what_to_do() {
    for wrong in ["/nonexistent/libchdb.so", "/dev/null"] {
        let done = query(None, &["--library", wrong], "SELECT 1");
        assert_eq!(done.status.code(), Some(3), "{done:?}");
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(said.contains(wrong) && said.contains("cargo xtask engine"), "{said}");
    }
}
