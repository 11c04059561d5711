//! First contact with everything that is no miner, beside honest miners that must not notice; and conditions under which a server must not start.
mod support;

use loadgen::farm::{Farm, FarmConfig};
use loadgen::ledger::LedgerSink;
use loadgen::random;
use loadgen::session::Behaviour;
use rustix::net::sockopt::set_socket_recv_buffer_size;
use rustix::net::{AddressFamily, SocketType, connect, socket};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;
use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::{Amount, Config, Miner, Server, Site, Wire, alone, code, eventually, ledger_counts, load, memory_kib, otedama, size};

const OTHER: i64 = 20;
const STALE: i64 = 21;
const HONEST_MINERS: u64 = 8;
/// What a hostile visit may leave in the server's memory: its own tables, touched for the first time.
const GROWTH_KIB_MAX: u64 = 32 << 10;
/// Memory that honest shares touch for the first time, a huge page at a time, has been touched when it grows by less than this in half a second.
const SETTLED_KIB: u64 = 1 << 10;

/// Runs `attack` on a server that serves honest miners meanwhile: they get a right answer to every share and are never cut off, the server's memory stays
/// bounded, and its books are in order afterwards. `attack` gives the shares that it has submitted itself; none of them may be credited.
fn beside_honest_miners(config: Config, attack: impl FnOnce(&Server) -> u64) {
    let _turn = alone();
    let site = Site::new(config);
    let mut server = site.serve();
    let mut farm = FarmConfig::new(server.stratum);
    farm.connections = HONEST_MINERS as usize;
    farm.shares_per_s_per_connection = 200.0;
    farm.reconnect = false;
    farm.ledger = LedgerSink::File(site.ledger());
    let stop = Arc::new(AtomicBool::new(false));
    let farm = Farm::start(farm, stop.clone()).expect("farm");
    let accepted = || farm.live().accepted.load(Ordering::Relaxed);
    assert!(eventually(|| accepted() > 0), "the farm mines");

    // Anonymous memory: the journal's pages are the disk's. The most that is seen at any time counts, not what is left.
    // What honest shares touch of the duplicate tables and of the sealer's columns is no doing of the visitor.
    let pid = server.pid();
    let mut before_kib = memory_kib(pid, "RssAnon");
    assert!(
        eventually(|| {
            std::thread::sleep(Duration::from_millis(500));
            let now_kib = memory_kib(pid, "RssAnon");
            now_kib < std::mem::replace(&mut before_kib, now_kib) + SETTLED_KIB
        }),
        "the memory of an honest farm settles: {before_kib} KiB"
    );
    let attacking = AtomicBool::new(true);
    let (hostile_shares, most_kib) = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most_kib = 0;
            while attacking.load(Ordering::Relaxed) {
                most_kib = most_kib.max(memory_kib(pid, "RssAnon"));
                std::thread::sleep(Duration::from_millis(2));
            }
            most_kib
        });
        let attacked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| attack(&server)));
        attacking.store(false, Ordering::Relaxed);
        let most_kib = watch.join().expect("the watch");
        (attacked.unwrap_or_else(|cause| std::panic::resume_unwind(cause)), most_kib)
    });
    let grown_kib = most_kib.saturating_sub(before_kib);
    assert!(grown_kib < GROWTH_KIB_MAX, "the server grew by {grown_kib} KiB");

    assert!(eventually(|| server.stats()["connections"]["open"] == HONEST_MINERS), "hostile connections are gone: {}", server.stats());
    let (before, clean) = (accepted(), server.get("/health"));
    assert_eq!(clean.0, 200, "{}", clean.1);
    assert!(eventually(|| accepted() > before + 100), "honest shares are accepted as before");
    assert!(server.is_alive());
    stop.store(true, Ordering::Relaxed);
    let summary = farm.join().expect("farm");
    let totals = &summary.totals;
    assert_eq!((totals.wrong, totals.unanswered, totals.disconnects), (0, 0, 0), "{:#?}", totals.wrong_kept);
    assert_eq!(totals.accepted, totals.submits, "{totals:?}");
    let drained = server.stop();
    assert_eq!((drained.received, drained.accepted), (totals.submits + hostile_shares, totals.accepted), "nothing hostile is credited");
    assert_eq!(ledger_counts(&site.ledger()).0, totals.by_status);
    site.verified_clean();
    site.assert_no_panic();
    println!("{} honest shares, latency {:?} us, server grew by {grown_kib} KiB", totals.submits, summary.latency_us);
}

#[test]
fn random_bytes_and_half_lines_are_refused_or_closed() {
    beside_honest_miners(Config { authorize_within_s: 1, ..Config::default() }, |server| {
        let mut seed = 1;
        let mut wires: Vec<Wire> = (0..200)
            .map(|index| {
                let mut wire = Wire::connect(server.stratum);
                let bytes = random::next(&mut seed) % 4096 + 1;
                let mut noise: Vec<u8> = (0..bytes).map(|_| random::next(&mut seed) as u8).collect();
                // Some of it looks like a line at first.
                if index % 4 == 0 {
                    noise.splice(0..0, *b"{\"id\":1,\"method\":\"mining.subscribe\",\"params\":[\"");
                }
                if index % 2 == 0 {
                    noise.push(b'\n');
                }
                wire.offer(&noise);
                wire
            })
            .collect();
        wires.iter_mut().for_each(Wire::wait_for_close);

        // A TLS hello, an HTTP request, a V2 handshake: what scanners and lost clients say.
        for greeting in [
            &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
            b"GET / HTTP/1.1\r\nHost: pool\r\n\r\n",
            &[0xff; 64],
            b"\n\n\n\r\n\r\n",
            b"\0\0\0\n",
        ] {
            let mut wire = Wire::connect(server.stratum);
            wire.offer(greeting);
            wire.wait_for_close();
        }

        let hello = b"{\"id\":1,\"method\":\"mining.subscribe\",\"params\":[\"half/1\"]}\n";
        for cut in 0..hello.len() {
            let mut wire = Wire::connect(server.stratum);
            wire.send(&hello[..cut]);
            match cut % 3 {
                // The rest never comes: closed by the server.
                0 if cut % 12 == 0 => wire.wait_for_close(),
                1 => wire.stream.shutdown(Shutdown::Both).expect("shutdown"),
                // Our side is done, theirs is not: they must notice, too.
                2 => {
                    wire.stream.shutdown(Shutdown::Write).expect("shutdown");
                    wire.wait_for_close();
                }
                _ => drop(wire),
            }
        }
        // One byte at a time is slow, not hostile.
        let mut wire = Wire::connect(server.stratum);
        hello.iter().for_each(|byte| wire.send([*byte]));
        assert!(wire.line().is_some_and(|line| line.starts_with("{\"id\":1,\"result\":[[")), "a slow writer is served");
        drop(wire);

        // Garbage for the stats endpoint, which shares the process.
        for index in 0..20 {
            let mut stream = TcpStream::connect(server.stats).expect("connect");
            let noise: Vec<u8> = (0..1 << (index % 12)).map(|_| random::next(&mut seed) as u8).collect();
            let _ = stream.write_all(&noise);
        }
        0
    });
}

#[test]
fn an_endless_line_is_closed_and_leaves_no_memory_behind() {
    let bytes_max: usize = size(64 << 20, 1 << 30);
    beside_honest_miners(Config { refused_per_s: 100, ..Config::default() }, |server| {
        let chunk = vec![b'x'; 1 << 20];
        let starts =
            ["", "{\"id\":1,\"method\":\"mining.subscribe\",\"params\":[\"", "{\"id\":1,\"method\":\"mining.submit\",\"params\":["];
        let mut sent = 0;
        // From strangers and from miners in good standing, until as much has been offered as one connection would have sent.
        for turn in 0.. {
            let mut wire = if turn % 2 == 0 { Wire::connect(server.stratum) } else { Miner::connect(server.stratum).wire };
            if wire.offer(starts[turn % starts.len()]) {
                let before = sent;
                while wire.offer(&chunk) {
                    sent += chunk.len();
                    assert!(sent - before < bytes_max, "one line may grow to {} bytes", sent - before);
                }
                sent += chunk.len();
            }
            wire.wait_for_close();
            if sent >= bytes_max {
                break;
            }
        }
        // Many lines that end in time, but only just, and never the one that follows.
        let mut wires: Vec<Miner> = (0..256).map(|_| Miner::connect(server.stratum)).collect();
        for miner in &mut wires {
            miner.wire.send(&chunk[..8000]);
        }
        assert!(eventually(|| server.stats()["connections"]["open"] == 256 + HONEST_MINERS));
        for miner in &mut wires {
            assert!(miner.wire.offer(&chunk[..200]), "not yet too long");
            miner.wire.offer(&chunk[..8192]);
            miner.wire.wait_for_close();
        }
        0
    });
}

#[test]
fn connections_that_say_nothing_are_closed_and_keep_nobody_out() {
    let silent: usize = size(1_000, 9_000);
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).expect("raise the limit of open files");
    beside_honest_miners(Config { authorize_within_s: 1, ..Config::default() }, |server| {
        let mut wires: Vec<TcpStream> = (0..silent).map(|_| TcpStream::connect(server.stratum).expect("connect")).collect();
        // A miner that comes in the midst of them is served.
        let mut miner = Miner::connect(server.stratum);
        let share = miner.mine();
        let mut wrong = share.clone();
        wrong.job = "ffffffff".into();
        assert_eq!(miner.submit_at_once(&[wrong]), [21]);
        for stream in &mut wires {
            stream.set_read_timeout(Some(support::PATIENCE)).expect("timeout");
            let read = std::io::Read::read(stream, &mut [0; 64]);
            assert!(
                matches!(read, Ok(0)) || read.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset),
                "{read:?}"
            );
        }
        1
    });
}

#[test]
fn places_are_limited_and_freed() {
    let _turn = alone();
    let site = Site::new(Config { max_connections: 16, ..Config::default() });
    let server = site.serve();
    let mut miners: Vec<Miner> = (0..16).map(|_| Miner::connect(server.stratum)).collect();
    for _ in 0..8 {
        Wire::connect(server.stratum).wait_for_close();
    }
    assert!(eventually(|| server.stats()["connections"]["refused"] == 8), "{}", server.stats());
    for _ in 0..64 {
        drop(miners.remove(0));
        assert!(eventually(|| server.stats()["connections"]["open"] == 15));
        let mut miner = Miner::connect(server.stratum);
        let share = miner.mine();
        assert_eq!(miner.submit_at_once(&[share]), [0], "a place that was freed is as good as new");
        miners.push(miner);
    }
    assert_eq!(server.stop().accepted, 64);
    assert_eq!(site.verify(None).0, 0);
}

/// A request with one of its values replaced, by another type or by nonsense.
fn with_values_replaced(method: &str, params: &[&str]) -> Vec<String> {
    let nested = format!("{}1{}", "[".repeat(64), "]".repeat(64));
    let deep = format!("{}1{}", "[".repeat(3000), "]".repeat(3000));
    let long_text = format!("\"{}\"", "a".repeat(5000));
    let values = [
        "null",
        "true",
        "0",
        "-1",
        "1.5",
        "1e308",
        "1e999",
        "18446744073709551616",
        "\"\"",
        "\" \"",
        "\"zz\"",
        "\"\\u0000\\ud800\"",
        "\"\u{fffd}\u{1f4a9}\"",
        "[]",
        "{}",
        "[[]]",
        "{\"a\":{\"b\":[null]}}",
        &nested,
        &deep,
        &long_text,
    ];
    let mut lines = Vec::new();
    for value in values {
        lines.push(format!("{{\"id\":7,\"method\":\"{method}\",\"params\":{value}}}"));
        lines.push(format!("{{\"id\":{value},\"method\":\"{method}\",\"params\":[{}]}}", params.join(",")));
        for at in 0..params.len() {
            let replaced: Vec<&str> = params.iter().enumerate().map(|(index, &param)| if index == at { value } else { param }).collect();
            lines.push(format!("{{\"id\":7,\"method\":\"{method}\",\"params\":[{}]}}", replaced.join(",")));
        }
    }
    // Too few and too many.
    for count in 0..params.len() {
        lines.push(format!("{{\"id\":7,\"method\":\"{method}\",\"params\":[{}]}}", params[..count].join(",")));
    }
    lines.push(format!("{{\"id\":7,\"method\":\"{method}\",\"params\":[{},{}]}}", params.join(","), vec!["1"; 500].join(",")));
    lines
}

#[test]
fn wrong_types_in_every_field_of_every_method_are_answered() {
    const METHODS: [(&str, &[&str]); 10] = [
        (
            "mining.configure",
            &["[\"version-rolling\",\"minimum-difficulty\"]", "{\"version-rolling.mask\":\"ffffffff\",\"minimum-difficulty.value\":1}"],
        ),
        ("mining.configure", &["[\"version-rolling\"]", "{\"version-rolling.mask\":1,\"version-rolling.min-bit-count\":\"x\"}"]),
        ("mining.subscribe", &["\"agent\"", "\"session\"", "\"host\"", "3333"]),
        ("mining.authorize", &["\"probe.one\"", "\"x\""]),
        ("mining.suggest_difficulty", &["1"]),
        ("mining.suggest_target", &["\"00000000ffff0000000000000000000000000000000000000000000000000000\""]),
        ("mining.extranonce.subscribe", &["1"]),
        ("mining.get_transactions", &["\"1\""]),
        ("mining.ping", &["1"]),
        ("client.unknown", &["1"]),
    ];
    // A nonce that meets no target at this work: whatever gets through is a share of too little work, and nothing is credited.
    let config = Config { difficulty: 1000.0, ..Config::default() };
    let _turn = alone();
    let site = Site::new(config);
    let mut server = site.serve();
    let mut lines: Vec<String> = METHODS.iter().flat_map(|(method, params)| with_values_replaced(method, params)).collect();
    let mut probe = Miner::connect(server.stratum);
    let job = format!("\"{}\"", probe.newest().id);
    let submit =
        ["\"probe.one\"", &job, "\"0000000000000001\"", &format!("\"{:08x}\"", probe.newest().ntime), "\"00000000\"", "\"00002000\""];
    lines.extend(with_values_replaced("mining.submit", &submit));
    for method in ["null", "1", "[]", "{}", "\"\"", "\"mining\\u002esubmit\"", "\"mining.submit\\u0000\"", "true"] {
        lines.push(format!("{{\"id\":7,\"method\":{method},\"params\":[]}}"));
    }
    // Not JSON at all, or not one object, or an object that says things twice.
    for line in [
        "{",
        "}",
        "[]",
        "null",
        "1",
        "\"a\"",
        "{\"id\":1",
        "{\"id\":1,}",
        "{id:1}",
        "{\"id\":1}{\"id\":2}",
        "{\"id\":1,\"id\":2,\"method\":\"mining.ping\"}",
        "{\"method\":\"mining.ping\"}",
        "{\"params\":[]}",
        "{}",
        "{\"id\":1,\"method\":\"mining.submit\",\"params\":[\"\\",
        "{\"id\":1,\"method\":\"mining.submit\",\"params\":{\"0\":1}}",
        "{\"id\":1,\"result\":true,\"error\":null}",
        "\u{feff}{\"id\":1}",
        "{'id':1}",
        "nul",
        "tru",
        "-",
        "1e",
        "\"\\x\"",
        "{\"id\":\"\\uDEAD\",\"method\":\"mining.ping\"}",
    ] {
        lines.push(line.to_owned());
    }

    let (mut answered, mut silent, mut closed) = (0, 0, 0);
    for line in &lines {
        // Behind each line goes one whose answer is known; what comes before that is the answer to the line.
        let token = "{\"id\":\"token\",\"method\":\"mining.ping\",\"params\":[]}\n";
        if !probe.wire.offer(format!("{line}\n{token}")) {
            probe = Miner::connect(server.stratum);
            assert!(probe.wire.offer(format!("{line}\n{token}")), "a fresh connection takes {line:.200}");
        }
        let mut answers = 0;
        loop {
            let Some(text) = probe.wire.line() else {
                closed += 1;
                probe = Miner::connect(server.stratum);
                break;
            };
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text:?} answers {line:.200}"));
            if value["id"] == "token" {
                assert_eq!(value["result"], "pong", "{line:.200}");
                break;
            }
            if value["method"].is_null() {
                answers += 1;
                if line.contains("mining.submit") {
                    assert!(code(&value) >= OTHER, "{text} answers {line:.200}");
                }
            }
        }
        assert!(answers <= 1, "{answers} answers to {line:.200}");
        answered += answers;
        silent += u64::from(answers == 0);
    }
    assert!(server.is_alive());
    let mut miner = Miner::connect(server.stratum);
    let unknown = support::MinedShare { job: "00".into(), extranonce2: 1, ntime: 0, nonce: 0 };
    assert_eq!(miner.submit_at_once(&[unknown]), [21], "served as ever");
    let drained = server.stop();
    assert_eq!(drained.accepted, 0);
    assert!(drained.received > 100, "{drained:?}");
    assert_eq!(site.verify(None).0, 0);
    site.assert_no_panic();
    println!("{} lines: {answered} answered, {silent} without an answer, {closed} closed; {drained:?}", lines.len());
}

#[test]
fn who_writes_refusals_without_end_is_told_and_closed() {
    beside_honest_miners(Config { refused_per_s: 100, ..Config::default() }, |server| {
        let mut miner = Miner::connect(server.stratum);
        let mut share = miner.mine();
        share.job = "ffffffff".into();
        let before = server.stats()["shares"]["rejected"]["stale"].as_u64().expect("a count");
        let lines: String = (0..1000).map(|_| miner.submit_line(&share).1).collect();
        miner.wire.offer(lines);
        let (mut answers, mut told) = (0, false);
        while let Some(line) = miner.wire.line() {
            answers += u64::from(line.contains("\"error\":[21,"));
            told |= line.contains("client.show_message") && line.contains("refused");
        }
        assert!((100..=202).contains(&answers), "{answers} answers: the limit is 100 in a second, and a second may have turned");
        assert!(told, "it is told why");
        let after = || server.stats()["shares"]["rejected"]["stale"].as_u64().expect("a count");
        let mut last = after();
        // What was read before the close stands in the books; count it when it has settled.
        while {
            std::thread::sleep(Duration::from_millis(200));
            after() != last
        } {
            last = after();
        }
        last - before
    });
}

#[test]
fn a_reader_that_never_reads_is_closed_and_others_go_on() {
    beside_honest_miners(Config { refused_per_s: 100, ..Config::default() }, |server| {
        let SocketAddr::V4(target) = server.stratum else { panic!("listens on IPv4") };
        for _ in 0..2 {
            let plain = socket(AddressFamily::INET, SocketType::STREAM, None).expect("socket");
            set_socket_recv_buffer_size(&plain, 2048).expect("a small buffer");
            connect(&plain, &target).expect("connect");
            let mut wire = Wire::over(TcpStream::from(plain));
            wire.send("{\"id\":1,\"method\":\"mining.subscribe\",\"params\":[]}\n{\"id\":2,\"method\":\"mining.authorize\",\"params\":[\"deaf\",\"\"]}\n");
            let pings = "{\"id\":\"sixteen bytes\",\"method\":\"mining.ping\",\"params\":[]}\n".repeat(4096);
            let mut sent = 0;
            while wire.offer(&pings) {
                sent += pings.len();
                assert!(sent < 256 << 20, "the server keeps answers for ever");
            }
        }
        0
    });
}

#[test]
fn a_full_log_refuses_shares_and_says_so() {
    let _turn = alone();
    // Nobody takes what the log holds, so nothing may be deleted.
    let config = Config { max_bytes: "64 MiB", clickhouse: "http://127.0.0.1:9".into(), difficulty: 2.4e-10, ..Config::default() };
    let site = Site::new(config);
    let mut server = site.serve();
    // Before the farm fills the log: afterwards nobody is let in.
    let mut miner = Miner::connect(server.stratum);
    let mut farm = FarmConfig::new(server.stratum);
    farm.connections = 16;
    farm.behaviour.depth = 64;
    farm.ledger = LedgerSink::File(site.ledger());
    let stop = Arc::new(AtomicBool::new(false));
    let farm = Farm::start(farm, stop.clone()).expect("farm");
    let overload = || server.stats()["shares"]["rejected"]["overload"].as_u64().expect("a count");
    assert!(eventually(|| overload() > 1000), "the log never fills: {}", server.stats());
    let room = || {
        let entries = std::fs::read_dir(site.log()).expect("list").flatten();
        let bytes: u64 = entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum();
        assert!(bytes <= 64 << 20, "the log takes {bytes} bytes");
    };
    room();
    // While the sealer is behind, the log is full only for a moment: a file that it has read comes back. It stays full once all that was logged is sealed and unshipped.
    let held = || {
        let stats = server.stats();
        let count = |pointer: &str| stats.pointer(pointer).and_then(serde_json::Value::as_u64).expect("a count");
        (count("/shares/logged"), count("/log/rows_unshipped"))
    };
    let settled = || {
        let (logged, unshipped) = held();
        std::thread::sleep(Duration::from_secs(2));
        room();
        logged == unshipped && held() == (logged, unshipped)
    };
    assert!(eventually(settled), "the log never stays full: {}", server.stats());
    let (status, body) = server.get("/health");
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("log"), "{body}");
    // Who is in is told, once the last cells of the journal, too few for a batch of the farm's, are used up.
    // Duplicate tables fill all the same, so jobs change fast, and a share may come after its job: a row like any other, where there is room for it.
    let mut submitted = [0_u64; 3];
    let mut is_refused = || {
        let share = miner.mine();
        let codes = miner.submit_at_once(&[share]);
        let kind = [0, OTHER, STALE].iter().position(|&code| codes == [code]).unwrap_or_else(|| panic!("{codes:?}"));
        submitted[kind] += 1;
        codes == [OTHER]
    };
    assert!(eventually(&mut is_refused), "a share finds room in a full log again and again");
    // Who comes now is not let in, however many they are: their records would have no place.
    for _ in 0..6 {
        let mut wires: Vec<Wire> = (0..500).map(|_| Wire::connect(server.stratum)).collect();
        for wire in &mut wires {
            wire.offer("{\"id\":1,\"method\":\"mining.subscribe\",\"params\":[]}\n{\"id\":2,\"method\":\"mining.authorize\",\"params\":[\"late\",\"\"]}\n");
        }
        wires.iter_mut().for_each(Wire::wait_for_close);
    }
    assert!(eventually(&mut is_refused), "those who are in are still answered");
    let [taken, refused, stale] = submitted;
    stop.store(true, Ordering::Relaxed);
    let summary = farm.join().expect("farm");
    assert!(server.is_alive());
    let totals = &summary.totals;
    assert_eq!((totals.wrong, totals.unanswered), (0, 0), "{:#?}", totals.wrong_kept);
    let farm_stale = totals.submits - totals.accepted - totals.overload;
    assert_eq!(totals.rejected.iter().find(|(code, _)| *code == STALE).map_or(0, |&(_, count)| count), farm_stale, "{totals:?}");
    let drained = server.stop_with_full_log();
    room();
    assert_eq!((drained.received, drained.accepted), (totals.submits + taken + refused + stale, totals.accepted + taken));
    assert_eq!(drained.logged, drained.accepted + stale + farm_stale, "what was credited was recorded, what was not recorded was refused");
    let logged = site.verified_clean();
    assert_eq!(logged[0], drained.accepted);
    site.assert_no_panic();
    println!("{} accepted before the log was full, {} refused", drained.accepted, totals.overload + refused);
}

#[test]
fn a_second_server_on_the_same_log_is_refused_and_the_first_goes_on() {
    let _turn = alone();
    let site = Site::new(Config::default());
    let server = site.serve();
    let second = site.spawn().listening();
    assert_eq!(second.err(), Some(Some(3)), "exit code");
    let said = site.stderr();
    assert!(said.contains(&site.log().display().to_string()), "the folder is named: {said}");
    assert!(said.contains("another process") || said.contains("in use") || said.contains("locked"), "{said}");
    let report = load(server.stratum, Amount::Submits(1000), 4, 8, Behaviour::default(), LedgerSink::File(site.ledger()));
    assert_eq!((report.totals.accepted, report.totals.wrong), (1000, 0));
    assert_eq!(server.stop().accepted, 1000);
    assert_eq!(site.verified_clean()[0], 1000);
}

#[test]
fn a_port_in_use_and_a_log_that_cannot_be_are_the_environments_fault() {
    let _turn = alone();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let listen = taken.local_addr().expect("address");
    let site = Site::new(Config { listen, ..Config::default() });
    assert_eq!(site.spawn().listening().err(), Some(Some(3)));
    assert!(site.stderr().contains(&listen.to_string()), "{}", site.stderr());

    let site = Site::new(Config::default());
    std::fs::write(site.log(), "a file where the folder should be").expect("write");
    assert_eq!(site.spawn().listening().err(), Some(Some(3)));
    assert!(site.stderr().contains(&site.log().display().to_string()), "{}", site.stderr());
}

#[test]
fn a_config_that_cannot_be_meant_exits_with_two_and_says_where() {
    let _turn = alone();
    let site = Site::new(Config::default());
    let path = site.path("bad.toml");
    let file = path.to_str().expect("UTF-8").to_owned();
    for (text, said) in [
        ("[stratum]\ndificulty = 1.0\n", "did you mean `difficulty`"),
        ("[stratun]\ndifficulty = 1.0\n", "did you mean [stratum]"),
        ("[stratum]\ndifficulty = \"hard\"\n", "2"),
        ("[stratum]\nlisten = [\"nowhere\"]\n", "listen"),
        ("[pool]\ninstance = 256\n", "instance"),
        ("[chain]\nrpc = [\"practice\"]\nrefresh_s = 0\n", "refresh_s"),
        ("[chain\n", "1"),
        ("[chain]\nrpc = [\"practice\"]\n[layout]\nnet = \"999\"\n", "999"),
    ] {
        std::fs::write(&path, text).expect("write");
        for command in ["serve", "check"] {
            let output = otedama(&[command, "--config", &file]);
            let error = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{command} with {text:?}: {error}");
            assert!(error.contains(said), "{command} with {text:?}: {error}");
        }
    }
    let missing = site.path("missing.toml");
    let output = otedama(&["serve", "--config", missing.to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("missing.toml"));
    assert_eq!(otedama(&["serve", "--no-such-option"]).status.code(), Some(2));
}
