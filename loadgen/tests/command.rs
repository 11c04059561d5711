//! The command line: help, refusals, and the last line that scripts read.
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

fn loadgen(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_loadgen")).args(args).output().expect("run")
}

/// A process that ends with its test, also where the test fails.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Self {
        Self(command.spawn().expect("start"))
    }

    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// A null server on a port of its own, and its address.
fn null_server() -> (Process, String) {
    let mut null =
        Process::start(Command::new(env!("CARGO_BIN_EXE_loadgen")).args(["null", "--listen", "127.0.0.1:0"]).stdout(Stdio::piped()));
    let mut first = String::new();
    BufReader::new(null.0.stdout.take().expect("stdout")).read_line(&mut first).expect("line");
    let address = first.trim().strip_prefix("listening on ").expect("first line").to_owned();
    (null, address)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn help_fits_on_a_screen_and_shows_examples() {
    for args in
        [&["--help"][..], &["run", "--help"], &["null", "--help"], &["compare", "--help"], &["plot", "--help"], &["trial", "--help"]]
    {
        let help = text(&loadgen(args).stdout);
        assert!(help.lines().count() <= 48, "{args:?}: {} lines", help.lines().count());
        assert!(help.lines().all(|line| line.chars().count() <= 120), "{args:?}");
    }
    assert!(text(&loadgen(&["run", "--help"]).stdout).contains("loadgen run --target"));
}

#[test]
fn what_cannot_be_done_is_refused_with_a_reason() {
    let cases: [(&[&str], i32, &str); 16] = [
        (&["run", "--target", "127.0.0.1:1", "--rate", "5", "--depth", "2"], 2, "cannot be used with"),
        (&["run", "--target", "127.0.0.1:1", "--against", "192.0.2.1:3333"], 2, "--i-own-this-target"),
        (&["run", "--target", "192.0.2.1:3333", "--abuse", "junk"], 2, "--i-own-this-target"),
        (&["run", "--target", "192.0.2.1:3333", "--processes", "2"], 2, "--i-own-this-target"),
        (&["run", "--target", "127.0.0.1:1", "--processes", "3", "--connections", "2"], 2, "--processes 3"),
        (&["run", "--target", "127.0.0.1:1", "--processes", "2", "--ledger", "x"], 2, "one process"),
        (&["run", "--target", "127.0.0.1:1", "--tolerance", "100"], 2, "--tolerance"),
        (&["null", "--burn-percent", "nan"], 2, "--burn-percent"),
        (&["compare", "/no/such/run", "/no/such/run"], 2, "/no/such/run"),
        (&["plot", "/no/such/run", "-o", "x.svg"], 2, "/no/such/run"),
        (&["run", "--target", "127.0.0.1:1", "--rate", "0"], 2, "above 0"),
        (&["run", "--target", "192.0.2.1:3333"], 2, "--i-own-this-target"),
        (&["run", "--target", "127.0.0.1:1", "--mode", "junk", "--bad-every", "3"], 2, "--mode valid"),
        (&["run", "--target", "nonsense"], 2, "host:port"),
        (&["run", "--target", "127.0.0.1:1", "--seconds", "-1"], 2, "unexpected argument"),
        (&["run", "--target", "127.0.0.1:1", "--worker-prefix", "a b"], 2, "--worker-prefix"),
    ];
    for (args, code, reason) in cases {
        let output = loadgen(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}");
        assert!(text(&output.stderr).contains(reason), "{args:?}: {}", text(&output.stderr));
    }
}

#[test]
fn the_last_line_has_the_published_keys_and_its_sums_add_up() {
    let (null, address) = null_server();
    let pid = null.0.id().to_string();
    let folder = tempfile::tempdir().expect("folder");
    let (out, ledger) = (folder.path().join("out"), folder.path().join("ledger"));
    for mode in ["valid", "junk", "idle"] {
        let mut args = vec!["run", "--target", &address, "--connections", "3", "--mode", mode, "--json", "--server-pid", &pid];
        args.extend(["--ledger", ledger.to_str().expect("path"), "--out", out.to_str().expect("path")]);
        args.extend(if mode == "idle" { ["--seconds", "0.2", "--warmup", "0"] } else { ["--shares", "1000", "--seed", "9"] });
        let output = loadgen(&args);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let stdout = text(&output.stdout);
        let line: serde_json::Value = serde_json::from_str(stdout.lines().last().expect("line")).expect("json");
        let keys: Vec<&str> = line.as_object().expect("object").keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            [
                "schema",
                "mode",
                "connections",
                "depth",
                "rate",
                "seconds",
                "seed",
                "submits",
                "accepted",
                "rejected",
                "unanswered",
                "wrong",
                "shares_per_s",
                "server_shares_per_cpu_s",
                "server_cpu_us_per_share",
                "client_cpu_us_per_share",
                "generator_limited",
                "latency_us"
            ]
        );
        let expected = if mode == "idle" { 0 } else { 1000 };
        assert_eq!(line["submits"], expected);
        assert_eq!(line["accepted"], expected);
        assert_eq!((line["unanswered"].as_u64(), line["wrong"].as_u64()), (Some(0), Some(0)));
        assert!(["result.json", "wrong.txt", "latency.hdr", "latency.hgrm"].iter().all(|name| out.join(name).exists()));
    }
    everything_else_runs_too(&address, &pid, folder.path());
    let ledger = std::fs::read_to_string(ledger).expect("ledger");
    assert_eq!(ledger.lines().count(), 2001, "one header and every submit of two runs");
}

/// Several processes, interleaved halves, storms, abuse, comparison and picture, each as a user would call it.
fn everything_else_runs_too(address: &str, pid: &str, folder: &std::path::Path) {
    let last_line = |args: &[&str]| -> serde_json::Value {
        let output = loadgen(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}{}", text(&output.stdout), text(&output.stderr));
        serde_json::from_str(text(&output.stdout).lines().last().expect("line")).expect("json")
    };
    let line = last_line(&["run", "--target", address, "--connections", "7", "--processes", "3", "--shares", "1000", "--server-pid", pid]);
    assert_eq!((line["connections"].as_u64(), line["submits"].as_u64(), line["accepted"].as_u64()), (Some(7), Some(1000), Some(1000)));
    let (out, picture) = (folder.join("pair"), folder.join("picture.svg"));
    let (out, against) = (out.to_str().expect("path"), out.join("against").to_str().expect("path").to_owned());
    last_line(&["run", "--target", address, "--against", address, "--connections", "2", "--seconds", "1", "--warmup", "0", "--out", out]);
    let comparison = text(&loadgen(&["compare", out, &against, "--tolerance", "99"]).stdout);
    assert!(comparison.contains("in turns within one run"), "{comparison}");
    let output = loadgen(&["plot", out, &against, "-o", picture.to_str().expect("path")]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(std::fs::read_to_string(picture).expect("picture").matches("<polyline").count() == 2);
    let storm = ["run", "--target", address, "--profile", "reconnect-storm", "--connections", "5", "--seconds", "2.3", "--warmup", "0"];
    let output = loadgen(&storm);
    assert!(output.status.success() && text(&output.stdout).contains("1 times connections broke"), "{}", text(&output.stdout));
    for profile in ["asic-farm", "proxy", "mixed"] {
        let line =
            last_line(&["run", "--target", address, "--profile", profile, "--connections", "20", "--seconds", "0.3", "--warmup", "0"]);
        assert_eq!((line["wrong"].as_u64(), line["unanswered"].as_u64()), (Some(0), Some(0)));
        assert_eq!(line["rate"].as_f64(), (profile == "asic-farm").then_some(10.0));
    }
    let line = last_line(&["run", "--target", address, "--abuse", "slowloris", "--connections", "5", "--seconds", "0.2"]);
    assert_eq!((line["mode"].as_str(), line["open_max"].as_u64()), (Some("abuse"), Some(5)));
}

#[test]
fn the_processes_of_a_farm_end_with_the_first_of_them() {
    let (_null, address) = null_server();
    let mut farm = Process::start(
        Command::new(env!("CARGO_BIN_EXE_loadgen"))
            .args(["run", "--target", &address, "--mode", "idle", "--connections", "3", "--processes", "3", "--seconds", "600"])
            .stderr(Stdio::piped()),
    );
    // Each part says when it is ready; the pipe ends once all of them have.
    let mut said = BufReader::new(farm.0.stderr.take().expect("stderr")).lines().map_while(Result::ok);
    assert_eq!(said.by_ref().take(3).filter(|line| line.starts_with("ready")).count(), 3);
    farm.end();
    let (rest_tx, rest) = std::sync::mpsc::channel();
    std::thread::spawn(move || rest_tx.send(said.collect::<Vec<_>>()));
    rest.recv_timeout(std::time::Duration::from_secs(60)).expect("parts that go on without their farm");
}

#[test]
fn a_server_that_is_not_there_is_exit_code_three_in_the_end() {
    // A port that was just free: nothing listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address").port();
    let mut child = Process::start(
        Command::new(env!("CARGO_BIN_EXE_loadgen"))
            .args(["run", "--target", &format!("127.0.0.1:{port}"), "--server-pid", "4294967295"])
            .stderr(Stdio::piped()),
    );
    assert_eq!(child.0.wait().expect("wait").code(), Some(3));
}
