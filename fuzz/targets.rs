//! What the fuzz targets check, as plain functions: libFuzzer drives them on nightly, `stratum/tests/lines.rs` on stable.
#![allow(dead_code, reason = "each target uses one of the two")]
use otedama_primitives::WorkerName;
use otedama_primitives::{Coin, Difficulty, Hash256, Job, RunId, ShareStatus, Submit, Target, flags};
use otedama_stratum::v1::claim::Claim;
use otedama_stratum::v1::request::{Method, Param, Request};
use otedama_stratum::v1::template::Shape;
use otedama_stratum::v1::workers::Workers;
use otedama_stratum::v1::{
    Context, Event, IdToken, JobBook, PublishedJob, Reader, Seat, Session, Settings, Unread, answer, lines, scan, slow,
};
use serde_json::Value;
use std::sync::Arc;

/// The scanner, the slow tier and a plain reading of `serde_json::Value` must agree about any line.
pub fn v1_line(line: &[u8]) {
    // serde_json's `Value` reads an object with its private raw-value key as what stands in it; the reference is no reference there.
    if line.windows(b"$serde_json::private".len()).any(|window| window == b"$serde_json::private") {
        return;
    }
    let slow = slow::parse(line);
    if let Some(fast) = scan::scan(line) {
        let slow = slow.as_ref().expect("what the scanner takes the slow tier takes");
        assert_eq!(fast, slow.request(), "the tiers read the line differently");
    }
    match (serde_json::from_slice::<Value>(line), &slow) {
        (Ok(value), Some(slow)) => agree(&slow.request(), &value, line),
        (Ok(value), None) => assert!(!value.is_object(), "the slow tier refused an object"),
        (Err(_), None) => {}
        (Err(error), Some(_)) => {
            // `Value` must decode every number and string of the line, the slow tier only those that it uses.
            let text = error.to_string();
            let known = ["number out of range", "recursion limit", "surrogate", "hex escape", "unicode code point"];
            assert!(known.iter().any(|reason| text.contains(reason)), "the slow tier took what serde_json refuses: {text}");
        }
    }
}

fn agree(request: &Request<'_>, value: &Value, line: &[u8]) {
    let id = &value["id"];
    match request.id {
        Some(token) => {
            assert!(matches!(id, Value::Null | Value::Number(_) | Value::String(_)));
            let echoed: Value = serde_json::from_slice(token.as_bytes()).expect("the echo is JSON");
            assert_eq!(&echoed, id);
            assert!(
                token == IdToken::NULL || line.windows(token.as_bytes().len()).any(|window| window == token.as_bytes()),
                "byte for byte"
            );
        }
        None => assert!(matches!(id, Value::Bool(_) | Value::Array(_) | Value::Object(_)) || line.len() > IdToken::BYTES_MAX),
    }
    let answers = value.get("result").is_some() || value.get("error").is_some();
    let method = match value.get("method") {
        None | Some(Value::Null) if answers => Method::Answer,
        Some(Value::String(name)) => Method::from_name(name.as_bytes()),
        _ => Method::Missing,
    };
    assert_eq!(request.method, method);
    let empty = Vec::new();
    let params = value["params"].as_array().unwrap_or(&empty);
    assert_eq!(request.params_count as usize, params.len());
    for (index, param) in request.params.iter().enumerate() {
        let expected = params.get(index).unwrap_or(&Value::Null);
        match param {
            Param::Text(text) => assert_eq!(Some(*text), expected.as_str().map(str::as_bytes)),
            Param::Bool(bool) => assert_eq!(Some(*bool), expected.as_bool()),
            Param::Null => assert!(expected.is_null()),
            Param::Number(raw) => {
                assert!(expected.is_number());
                assert_eq!(&serde_json::from_slice::<Value>(raw).expect("a number"), expected);
            }
            Param::Nested(raw) => {
                assert!(expected.is_array() || expected.is_object());
                assert_eq!(&serde_json::from_slice::<Value>(raw).expect("nested"), expected);
            }
        }
    }
}

/// The first line teaches a shape; by it the second one is read as the scanner and the slow tier read it, or not at all.
pub fn v1_template(data: &[u8]) {
    let Some(end) = data.iter().position(|&byte| byte == b'\n') else { return };
    let (first, second) = data.split_at(end + 1);
    let Some(shape) = Shape::learn(first) else { return };
    let mut workers = Workers::default();
    for (number, name) in ["rig.1", "rig.10", "r"].iter().enumerate() {
        workers.add(&WorkerName::new(name.as_bytes()).expect("a name"), otedama_primitives::WorkerId(number as u64 + 1));
    }
    let own = agrees_with_the_other_tiers(&shape, first, &workers);
    let request = scan::scan(lines::trim(first)).expect("the scanner took it when it taught");
    let claim = Claim::of(&request, &workers, 8);
    let plain = |text: &[u8]| text.iter().all(u8::is_ascii_hexdigit);
    let is_plain = request.params[1..5].iter().chain(&request.params[5..6]).all(|param| match param {
        Param::Text(text) => plain(text),
        _ => true,
    });
    let whole = claim.worker.is_some() && claim.extranonce2.is_some() && claim.job.is_some();
    // Blanks around a name are no part of it, but a shape compares the name alone.
    let exact = matches!(request.params[0], Param::Text(name) if name.trim_ascii().len() == name.len());
    assert!(own || !is_plain || !whole || !exact, "a line without anything odd does not match what it taught");
    agrees_with_the_other_tiers(&shape, second, &workers);
}

/// False when the shape does not match.
fn agrees_with_the_other_tiers(shape: &Shape, bytes: &[u8], workers: &Workers) -> bool {
    let Some((used, claim)) = shape.read(bytes, workers, 8) else { return false };
    let (body, end) = bytes[..used].split_at(used - 1);
    assert_eq!(end, b"\n");
    assert!(!body.contains(&b'\n'), "one line is read at a time");
    let line = lines::trim(body);
    let request = scan::scan(line).expect("what matches a shape the scanner takes");
    assert_eq!(request.method, Method::Submit);
    assert_eq!(claim, Claim::of(&request, workers, 8), "the shape and the scanner read the line differently");
    let slow = slow::parse(line).expect("what the scanner takes the slow tier takes");
    assert_eq!(claim, Claim::of(&slow.request(), workers, 8), "the shape and the slow tier read the line differently");
    true
}

fn job(counter: u32, clean: bool, easy: bool, now_us: u64) -> Arc<PublishedJob> {
    let nbits = if easy { 0x207f_ffff } else { 0x1702_5ced };
    let job = Job {
        id: RunId::new(1, 2).job(counter),
        coin: Coin::Bitcoin,
        height: 1,
        prev_hash: Hash256([7; 32]),
        version: 0x2000_0000,
        nbits,
        ntime: 1_800_000_000,
        ntime_min: 1_799_999_000,
        coinbase_prefix: Box::new([1]),
        coinbase_suffix: Box::new([2]),
        branch: Box::new([]),
        extranonce2_bytes: 8,
        network_target: Target::from_compact(nbits).expect("a target"),
        clean,
        created_us: now_us,
    };
    Arc::new(PublishedJob::new(job, 0))
}

/// Bytes as the lines of one connection. A line of one byte below 8 is an event of the server instead: 0..=3 a new job (bit 0 clean, bit 1 easy network), 4 and 5 a retarget, 6 and 7 time.
pub fn v1_session(data: &[u8]) {
    let settings = Settings { workers_max: 3, ..Settings::default() };
    let mut book = JobBook::new();
    let mut session = Session::new(Seat { session: 1, extranonce1: 0x0400_0001, net: 1 }, &settings);
    // The same connection once more, read with all three tiers: it must not show.
    let mut twin = Session::new(Seat { session: 1, extranonce1: 0x0400_0001, net: 1 }, &settings);
    let (mut reader, mut twin_out, mut line_and_more) = (Reader::new(1 << 20), Vec::new(), Vec::new());
    let (mut now_us, mut counter) = (1_800_000_000_000_000u64, 0u32);
    let mut out = Vec::new();
    for line in data.split(|&byte| byte == b'\n').take(256) {
        out.clear();
        twin_out.clear();
        let was_subscribed = session.is_subscribed();
        match *line {
            [what @ 0..=3] => {
                counter += 1;
                let job = job(counter, what & 1 == 1, what & 2 == 2, now_us);
                book.publish(Arc::clone(&job));
                let ctx = Context { settings: &settings, jobs: &book, now_us, peer: None };
                session.notify(&ctx, &job, false, &mut out);
                twin.notify(&ctx, &job, false, &mut twin_out);
                assert_eq!(was_subscribed, !out.is_empty(), "a subscribed session gets every job, others none");
            }
            [what @ 4..=5] => {
                let ctx = Context { settings: &settings, jobs: &book, now_us, peer: None };
                let difficulty = Difficulty::clamped(if what == 4 { 0.5 } else { 65536.0 });
                session.set_difficulty(&ctx, difficulty, &mut out);
                twin.set_difficulty(&ctx, difficulty, &mut twin_out);
            }
            [what @ 6..=7] => now_us += if what == 6 { 1_000_000 } else { 61_000_000 },
            _ => {
                let ctx = Context { settings: &settings, jobs: &book, now_us, peer: None };
                let event = session.on_line(&ctx, line, &mut out);
                line_and_more.clear();
                line_and_more.extend_from_slice(line);
                line_and_more.extend_from_slice(b"\n{\"id\":");
                let read = match twin.read(&ctx, &mut reader, &line_and_more, &mut twin_out) {
                    Err(Unread::Later) => {
                        reader.begin_pass();
                        twin.read(&ctx, &mut reader, &line_and_more, &mut twin_out)
                    }
                    read => read,
                };
                assert_eq!(read, Ok((line.len() + 1, event.clone())), "the tiers came to different events");
                assert_eq!(out, twin_out, "the tiers came to different replies");
                match event {
                    Event::Share(submit, id) => {
                        assert!(was_subscribed && out.is_empty());
                        check_submit(&submit, &book, &session, now_us);
                        let status = ShareStatus::from_u8(submit.status).unwrap_or(ShareStatus::Accepted);
                        answer(&mut out, &id, status);
                    }
                    Event::Subscribed(record) => {
                        assert!(!was_subscribed && record.agent.len() <= 128 && record.peer.len() <= 56);
                        otedama_primitives::Dimension::session(&record).expect("fits its record");
                    }
                    Event::Authorized(record) => {
                        otedama_primitives::Dimension::worker(&record).expect("fits its record");
                    }
                    Event::VersionMask(record) => {
                        assert!(was_subscribed);
                        otedama_primitives::Dimension::version_mask(&record).expect("fits its record");
                    }
                    Event::Refused => assert!(!out.is_empty(), "who is refused is told"),
                    Event::Close(_) => return,
                    Event::None => {}
                }
            }
        }
        check_replies(&out, was_subscribed);
    }
}

fn check_submit(submit: &Submit, book: &JobBook, session: &Session, now_us: u64) {
    assert_eq!((submit.session, submit.extranonce1, submit.net, submit.in_flight, submit.arrival_us), (1, 0x0400_0001, 1, 0, now_us));
    assert!(submit.work >= 1);
    let entry = book.lookup(submit.job).filter(|_| submit.job != 0);
    assert_eq!(entry.is_some(), submit.job != 0);
    if let Some((job, live)) = entry {
        assert!(submit.work <= job.network_work.hashes(), "no more work than the network");
        assert_eq!(submit.flags & flags::LATE != 0, live && submit.job < session.newest_job());
    }
    match ShareStatus::from_u8(submit.status) {
        None => {
            assert_eq!(submit.status, Submit::PENDING);
            let (job, live) = entry.expect("a pending share has its job");
            assert!(live && submit.worker != 0);
            assert!((job.job.ntime_min..=job.job.ntime_max(now_us)).contains(&submit.ntime));
            assert_eq!((submit.version ^ job.job.version) & !0x1fff_e000, 0, "bits outside of any mask");
        }
        Some(status) => assert!(
            matches!(
                status,
                ShareStatus::Stale | ShareStatus::BadTime | ShareStatus::BadVersion | ShareStatus::Malformed | ShareStatus::Unauthorized
            ),
            "a verdict that needs a hash"
        ),
    }
}

fn check_replies(out: &[u8], was_subscribed: bool) {
    assert!(out.is_empty() || out.ends_with(b"\n"));
    for (index, line) in out.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).enumerate() {
        let value: Value = serde_json::from_slice(line).expect("every line that leaves is JSON");
        if value.get("method").is_some() {
            assert!(was_subscribed || index > 0, "a notification before the subscribe result");
        } else {
            assert!(["id", "result", "error"].iter().all(|key| value.get(key).is_some()), "an answer lacks a key");
            assert_eq!(index, 0, "answers come first");
        }
    }
}
