//! The command line: help, refusals, and the last line that scripts read.
use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

fn loadgen(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_loadgen")).args(args).output().expect("run")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn help_fits_on_a_screen_and_shows_examples() {
    for args in [&["--help"][..], &["run", "--help"], &["null", "--help"]] {
        let help = text(&loadgen(args).stdout);
        assert!(help.lines().count() <= 48, "{args:?}: {} lines", help.lines().count());
        assert!(help.lines().all(|line| line.chars().count() <= 120), "{args:?}");
    }
    assert!(text(&loadgen(&["run", "--help"]).stdout).contains("loadgen run --target"));
}

#[test]
fn what_cannot_be_done_is_refused_with_a_reason() {
    let cases: [(&[&str], i32, &str); 6] = [
        (&["run", "--target", "127.0.0.1:1", "--rate", "5"], 2, "open loop"),
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
    let mut null = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(["null", "--listen", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("start");
    let mut first = String::new();
    BufReader::new(null.stdout.take().expect("stdout")).read_line(&mut first).expect("line");
    let address = first.trim().strip_prefix("listening on ").expect("first line").to_owned();
    let pid = null.id().to_string();
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
        assert!(out.join("result.json").exists() && out.join("wrong.txt").exists());
    }
    null.kill().expect("kill");
    null.wait().expect("wait");
    let ledger = std::fs::read_to_string(ledger).expect("ledger");
    assert_eq!(ledger.lines().count(), 2001, "one header and every submit of two runs");
}

#[test]
fn a_server_that_is_not_there_is_exit_code_three_in_the_end() {
    // A port that was just free: nothing listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address").port();
    let mut child = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(["run", "--target", &format!("127.0.0.1:{port}"), "--server-pid", "4294967295"])
        .stderr(Stdio::piped())
        .spawn()
        .expect("start");
    assert_eq!(child.wait().expect("wait").code(), Some(3));
}
