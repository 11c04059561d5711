//! ns per line of the scanner, of the scanner with a whole session behind it, and of the slow tier (serde_json), over 4,096 distinct submit lines of each dialect.
//! `cargo run --release -p otedama-stratum --example parse_rates`; the median of 41 rounds, variants side by side in each round. Read the ratios.
use otedama_primitives::{Coin, Hash256, Job, RunId, Target};
use otedama_stratum::v1::{Context, Event, JobBook, PublishedJob, Seat, Session, Settings, scan, slow};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

const LINES: u32 = 4096;
const ROUNDS: usize = 41;

fn ns_per_line(lines: &[String], mut work: impl FnMut(&[u8])) -> f64 {
    let start = Instant::now();
    for line in lines {
        work(black_box(line.as_bytes()));
    }
    start.elapsed().as_nanos() as f64 / lines.len() as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let now_us = 1_800_000_000_000_000;
    let settings = Settings::default();
    let mut book = JobBook::new();
    let job = Job {
        id: RunId::new(1, 2).job(2),
        coin: Coin::Bitcoin,
        height: 900_000,
        prev_hash: Hash256([7; 32]),
        version: 0x2000_0000,
        nbits: 0x1702_5ced,
        ntime: 1_800_000_000,
        ntime_min: 1_799_999_000,
        coinbase_prefix: Box::new([0; 60]),
        coinbase_suffix: Box::new([0; 120]),
        branch: vec![Hash256([1; 32]); 12].into(),
        extranonce2_bytes: 8,
        network_target: Target([0, 0, 0, 1]),
        clean: true,
        created_us: now_us,
    };
    book.publish(Arc::new(PublishedJob::new(job, 0)));
    let ctx = Context { settings: &settings, jobs: &book, now_us, peer: None };
    let mut session = Session::new(Seat { session: 1, extranonce1: 1, net: 0 }, &settings);
    let mut out = Vec::with_capacity(64 << 10);
    let worker = "bc1qexampleexampleexampleexample00000.rig1";
    session.on_line(&ctx, br#"{"id":0,"method":"mining.configure","params":[["version-rolling"],{}]}"#, &mut out);
    session.on_line(&ctx, br#"{"id":1,"method":"mining.subscribe","params":["bench"]}"#, &mut out);
    session.on_line(&ctx, format!(r#"{{"id":2,"method":"mining.authorize","params":["{worker}","x"]}}"#).as_bytes(), &mut out);

    println!("{:<14} {:>6} {:>10} {:>14} {:>12} {:>8}", "dialect", "bytes", "scanner", "with session", "serde_json", "ratio");
    for (dialect, six) in [("cgminer", false), ("ESP-Miner", true), ("cpuminer", false)] {
        let lines: Vec<String> = (0..LINES)
            .map(|index| {
                let (extranonce2, nonce) = (u64::from(index) * 0x9e37_79b9_7f4a_7c15, index.wrapping_mul(0x85eb_ca6b));
                match dialect {
                    "cgminer" => format!(
                        r#"{{"params": ["{worker}", "00000002", "{extranonce2:016x}", "6b49d201", "{nonce:08x}"], "id": {index}, "method": "mining.submit"}}"#
                    ),
                    "ESP-Miner" => format!(
                        r#"{{"id":{index},"method":"mining.submit","params":["{worker}","00000002","{extranonce2:016x}","6b49d201","{nonce:08x}","00{:02x}e000"]}}"#,
                        index & 0xff
                    ),
                    _ => format!(
                        r#"{{"method": "mining.submit", "params": ["{worker}", "00000002", "{extranonce2:016x}", "6b49d201", "{nonce:08x}"], "id":4}}"#
                    ),
                }
            })
            .collect();
        assert_eq!(six, lines[0].contains("00e000"));
        let (mut scanner, mut whole, mut serde) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            scanner.push(ns_per_line(&lines, |line| {
                black_box(scan::scan(line));
            }));
            whole.push(ns_per_line(&lines, |line| {
                let event = session.on_line(&ctx, line, &mut out);
                assert!(matches!(event, Event::Share(submit, _) if submit.status == 0xff));
                black_box(event);
            }));
            serde.push(ns_per_line(&lines, |line| {
                black_box(slow::parse(line).map(|request| request.request().params_count));
            }));
        }
        let bytes = lines.iter().map(String::len).sum::<usize>() / lines.len();
        let (scanner, whole, serde) = (median(scanner), median(whole), median(serde));
        println!("{dialect:<14} {bytes:>6} {scanner:>7.1} ns {whole:>11.1} ns {serde:>9.1} ns {:>7.1}x", serde / scanner);
    }
}
