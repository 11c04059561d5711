//! Shares that leave by the clock: a server that stops for a while must show in the latencies of all that were due meanwhile.
use loadgen::engine::EngineConfig;
use loadgen::null::Null;
use loadgen::report::RunReport;
use loadgen::run::{RunConfig, run};
use loadgen::session::Behaviour;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn order(target: SocketAddr, connections: usize, rate: f64, seconds: f64) -> RunConfig {
    let behaviour = Behaviour { open_loop: true, depth: 1, ..Behaviour::default() };
    let engine = EngineConfig { connections, behaviour, rate_shares_per_s: rate, ..EngineConfig::new(target) };
    RunConfig { window: Duration::from_secs_f64(seconds), warmup: Duration::ZERO, ..RunConfig::new(engine) }
}

fn go(config: RunConfig) -> RunReport {
    run(config, &AtomicBool::new(false)).expect("run")
}

/// A run against a server that takes everything at once.
fn against_null(config: impl FnOnce(SocketAddr) -> RunConfig) -> RunReport {
    let mut null = Null::bind("127.0.0.1:0".parse().expect("address"), 2.4e-10).expect("bind");
    let target = null.address();
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    let server = std::thread::spawn(move || null.serve(&flag));
    let report = go(config(target));
    stop.store(true, Ordering::Relaxed);
    server.join().expect("thread").expect("serve");
    report
}

const NOTIFY: &str = r#"{"id":null,"method":"mining.notify","params":["0000000a","0707070707070707070707070707070707070707070707070707070707070707","0102","0304",[],"20000000","1b00ffff","6b00dbcb",true]}"#;

/// Accepts everything; each connection takes a pause once, before the answer to its `stop_at`-th submit.
fn pausing_server(stop_at: u64, pause: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { break };
            std::thread::spawn(move || serve(&stream, stop_at, pause));
        }
    });
    address
}

fn serve(mut stream: &TcpStream, stop_at: u64, pause: Duration) {
    stream.set_nodelay(true).expect("nodelay");
    let mut submits = 0;
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { break };
        let message: serde_json::Value = serde_json::from_str(&line).expect("json");
        let id = &message["id"];
        let mut answer = format!("{{\"id\":{id},\"result\":true,\"error\":null}}\n");
        match message["method"].as_str() {
            Some("mining.subscribe") => {
                answer = format!("{{\"id\":{id},\"result\":[[[\"mining.notify\",\"1\"]],\"0badcafe\",8],\"error\":null}}\n");
            }
            Some("mining.authorize") => {
                answer.push_str("{\"id\":null,\"method\":\"mining.set_difficulty\",\"params\":[2.4e-10]}\n");
                answer.push_str(NOTIFY);
                answer.push('\n');
            }
            Some("mining.submit") => {
                submits += 1;
                if submits == stop_at {
                    std::thread::sleep(pause);
                }
            }
            _ => {}
        }
        if stream.write_all(answer.as_bytes()).is_err() {
            break;
        }
    }
}

#[test]
fn every_share_that_was_due_while_the_server_slept_waited_its_whole_time() {
    // 1000 a second over one connection for a second; it sleeps 300 ms after 200 of them.
    let report = go(order(pausing_server(200, Duration::from_millis(300)), 1, 1000.0, 1.0));
    assert_eq!((report.totals.wrong, report.totals.unanswered), (0, 0), "{}", report.table());
    assert!((950..=1010).contains(&report.totals.submits), "{}", report.table());
    assert_eq!(report.histogram.len(), report.totals.submits, "every share is in the histogram");
    // A closed loop would book one slow share. Here 300 were due: about 250 of them waited more than 50 ms, about 100 more than 200 ms.
    let beyond = |us: u64| report.histogram.len() - report.histogram.count_between(0, us);
    assert!(beyond(50_000) >= 230 && beyond(200_000) >= 80, "{} {}", beyond(50_000), beyond(200_000));
    assert!(beyond(280_000) >= 1);
}

#[test]
fn the_rate_is_kept_over_many_connections_and_the_mix_of_shares_stays() {
    let report = against_null(|target| RunConfig { repeat: 2, ..order(target, 50, 2000.0, 0.5) });
    assert_eq!((report.totals.wrong, report.totals.unanswered, report.totals.missed), (0, 0, 0), "{}", report.table());
    assert!((1_900..=2_010).contains(&report.totals.submits), "{}", report.table());
    assert_eq!(report.windows.len(), 2);
    assert!(report.histogram.min() > 1, "no share leaves before its time: {}", report.table());
    let line = report.json();
    assert_eq!((line["rate"].as_f64(), line["depth"].is_null()), (Some(2000.0), true));
    assert!(report.lateness.is_some());
}

#[test]
fn a_rate_that_no_core_makes_is_said_to_be_the_generators_limit() {
    let report = against_null(|target| order(target, 10, 1e8, 0.2));
    assert!(report.is_generator_limited() && report.table().contains("WARNING"), "{}", report.table());
    assert_eq!(report.totals.unanswered, 0);
}

#[test]
fn a_generator_that_is_rounds_late_makes_them_up_and_every_share_of_the_timetable_is_booked_once() {
    let (rate, seconds) = (2e6, 0.5);
    let report = against_null(|target| order(target, 7, rate, seconds));
    let totals = &report.totals;
    assert_eq!((totals.wrong, totals.unanswered), (0, 0), "{}", report.table());
    assert_eq!(report.histogram.len(), totals.submits, "every share has its latency");
    let lateness = report.lateness.as_ref().expect("an open loop");
    let booked = (totals.submits + totals.missed + lateness.behind) as f64;
    assert!((0.99 * rate * seconds..1.2 * rate * seconds).contains(&booked), "{booked} of {} were due: {}", rate * seconds, report.table());
    assert!(report.histogram.max() >= lateness.histogram.max(), "a share that left late waited at least so long for its answer");
}
