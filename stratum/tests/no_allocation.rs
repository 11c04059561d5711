//! The submit path of a session makes no heap allocation, whatever the verdict.
use otedama_primitives::{Coin, Hash256, Job, RunId, ShareStatus, Target};
use otedama_stratum::v1::{Context, Event, JobBook, PublishedJob, Reader, Seat, Session, Settings, answer};
use std::sync::Arc;

#[test]
fn a_submit_and_its_answer_allocate_nothing() {
    let settings = Settings::default();
    let mut book = JobBook::new();
    let job = Job {
        id: RunId::new(1, 2).job(2),
        coin: Coin::Bitcoin,
        height: 1,
        prev_hash: Hash256([7; 32]),
        version: 0x2000_0000,
        nbits: 0x1702_5ced,
        ntime: 1_800_000_000,
        ntime_min: 1_799_999_000,
        coinbase_prefix: Box::new([1]),
        coinbase_suffix: Box::new([2]),
        branch: Box::new([]),
        extranonce2_bytes: 8,
        network_target: Target::from_compact(0x1702_5ced).expect("a target"),
        clean: true,
        created_us: 1_800_000_000_000_000,
    };
    book.publish(Arc::new(PublishedJob::new(job, 0)));
    let ctx = Context { settings: &settings, jobs: &book, now_us: 1_800_000_000_000_000, peer: None };
    let mut session = Session::new(Seat { session: 1, extranonce1: 1, net: 0 }, &settings);
    let mut out = Vec::with_capacity(64 << 10);
    session.on_line(&ctx, br#"{"id":1,"method":"mining.subscribe","params":[]}"#, &mut out);
    for name in ["rig.1", "rig.2", "rig.3"] {
        session.on_line(&ctx, format!(r#"{{"id":2,"method":"mining.authorize","params":["{name}","x"]}}"#).as_bytes(), &mut out);
    }
    let lines: Vec<Vec<u8>> = [
        ("rig.1", "00000002", "6b49d200", "0100000000000000"),
        ("rig.3", "00000002", "0x6b49d200", "0100000000000000"),
        ("rig.4", "00000002", "6b49d200", "0100000000000000"),
        ("rig.2", "00000009", "6b49d200", "0100000000000000"),
        ("rig.2", "00000002", "1", "0100000000000000"),
        ("rig.2", "00000002", "6b49d200", "01"),
    ]
    .iter()
    .map(|(worker, job, ntime, extranonce2)| {
        format!(r#"{{"params": ["{worker}", "{job}", "{extranonce2}", "{ntime}", "310e0000"], "id": "a17", "method": "mining.submit"}}"#)
            .into_bytes()
    })
    .collect();
    let mut shares = 0;
    // By all tiers, as net reads: the first submit taught its shape, and the two workers of the others are looked up.
    let mut reader = Reader::new(8192);
    let wire: Vec<u8> = (0..64u8)
        .flat_map(|number| {
            let worker = ["rig.1", "rig.2", "rig.3"][usize::from(number % 3)];
            format!("{{\"params\": [\"{worker}\", \"00000002\", \"{number:016x}\", \"6b49d200\", \"310e0000\"], \"id\": {number}, \"method\": \"mining.submit\"}}\n").into_bytes()
        })
        .collect();
    let (first, _) = session.read(&ctx, &mut reader, &wire, &mut out).expect("a whole line");
    let mut at = first;
    let matched = allocation_counter::measure(|| {
        while let Ok((used, Event::Share(submit, id))) = session.read(&ctx, &mut reader, &wire[at..], &mut out) {
            assert_eq!(submit.status, otedama_primitives::Submit::PENDING);
            answer(&mut out, &id, ShareStatus::Accepted);
            at += used;
        }
    });
    assert_eq!((at, reader.tiers().template, reader.tiers().scanned), (wire.len(), 63, 1));
    assert_eq!(matched.count_total, 0, "{matched:?}");
    let counted = allocation_counter::measure(|| {
        for line in &lines {
            out.clear();
            if let Event::Share(submit, id) = session.on_line(&ctx, line, &mut out) {
                answer(&mut out, &id, ShareStatus::from_u8(submit.status).unwrap_or(ShareStatus::Accepted));
                shares += 1;
            }
        }
    });
    assert_eq!(shares, lines.len());
    assert_eq!(counted.count_total, 0, "{counted:?}");
}
