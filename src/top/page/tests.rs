use super::*;
use proptest::prelude::*;

/// A server under load on two cores, as it answered: `recorded/README.md` has the commands.
fn recorded() -> (Reading, Reading) {
    let reading = |stats: &str, status: &str, metrics: &str| {
        Reading::new(serde_json::from_str(stats).expect("stats"), serde_json::from_str(status).expect("status"), metrics)
    };
    (
        reading(
            include_str!("../recorded/first.stats.json"),
            include_str!("../recorded/first.status.json"),
            include_str!("../recorded/first.metrics.txt"),
        ),
        reading(
            include_str!("../recorded/second.stats.json"),
            include_str!("../recorded/second.status.json"),
            include_str!("../recorded/second.metrics.txt"),
        ),
    )
}

/// The page as it comes out where there is room for any line.
fn uncut(page: &Page) -> Vec<String> {
    page.lines(usize::MAX, HEIGHT).into_iter().map(|line| line.text.trim_end().to_owned()).collect()
}

#[test]
fn a_recorded_server_fits_eighty_columns_and_twenty_four_rows_with_nothing_cut() {
    let (first, second) = recorded();
    let page = Page::between(&first, &second);
    let lines = uncut(&page);
    let shown = lines.join("\n");
    assert!(lines.len() <= HEIGHT, "{shown}");
    assert!(lines.iter().all(|line| line.len() <= WIDTH), "{shown}");
    assert!(!shown.contains("..") && !shown.contains("less busy") && !shown.contains("less full"), "something is left out:\n{shown}");
    let screen: Vec<String> = page.lines(WIDTH, HEIGHT).into_iter().map(|line| line.text.trim_end().to_owned()).collect();
    assert_eq!(screen, lines, "the screen has what there is");
    for stage in second.stats["stages"].as_array().expect("stages") {
        assert!(shown.contains(stage["name"].as_str().expect("a name")), "{shown}");
    }
    for ring in second.stats["rings"].as_array().expect("rings") {
        assert!(shown.contains(ring["name"].as_str().expect("a name")), "{shown}");
    }
    for reason in REASONS {
        assert!(shown.contains(&format!("{reason} {}", short(second.count(&format!("/shares/rejected/{reason}"))))), "{shown}");
    }
    for key in ["p50", "p99", "p999", "max"] {
        assert!(shown.contains(&micros(second.count(&format!("/latency_us/{key}")))), "{shown}");
    }
    assert!(shown.contains("PRACTICE") && shown.contains(second.word("/driver")) && shown.contains("height 900"), "{shown}");
}

#[test]
fn rates_and_regimes_are_those_of_the_time_between_two_readings() {
    let (first, second) = recorded();
    let page = Page::between(&first, &second);
    let json = page.to_json();
    let received = second.count("/shares/received") - first.count("/shares/received");
    let window_s = second.count("/uptime_s") - first.count("/uptime_s");
    assert!((json["received_per_s"].as_f64().expect("a rate") - received / window_s).abs() < 1e-3);
    for stage in json["stages"].as_array().expect("stages") {
        let all: f64 = REGIMES.iter().map(|regime| stage[*regime].as_f64().expect("a part")).sum();
        assert!((all - 1.0).abs() < 1e-3, "{stage}");
    }
    assert_eq!(json["stats"], second.stats, "the server's own answer is there as it came");
    // A server that was started again has counted from nought: its rates are those since its start.
    let restarted = Page::between(&second, &first);
    assert!((restarted.window_s - first.count("/uptime_s")).abs() < 1e-9);
    assert!((restarted.received_per_s - first.count("/shares/received") / restarted.window_s).abs() < 1e-6);
}

/// The recorded server, with every number of it replaced.
fn with_numbers(reading: &Reading, number: f64) -> Reading {
    fn replace(value: &mut Value, number: f64) {
        match value {
            Value::Number(_) => *value = json!(number),
            Value::Array(all) => all.iter_mut().for_each(|value| replace(value, number)),
            Value::Object(all) => all.values_mut().for_each(|value| replace(value, number)),
            _ => {}
        }
    }
    let mut changed = reading.clone();
    replace(&mut changed.stats, number);
    changed.samples.values_mut().for_each(|value| *value = number);
    changed
}

#[test]
fn no_number_is_too_long_for_its_place() {
    let (_, second) = recorded();
    for number in [0.0, 1.0, 9_999.0, 9_999.9, 99_949.0, 99_951.0, 999_499.0, 999_501.0, 1e9, 123_456_789_012.0, 1.8e19] {
        let mut reading = with_numbers(&second, number);
        reading.status["height"] = json!(u32::MAX);
        // These end where they do: thirty years of service, ten minutes in the histogram of latencies, a petabyte of log.
        reading.stats["uptime_s"] = json!(number.min(1e9));
        reading.stats["log"]["bytes"] = json!(number.min(1e15));
        reading.stats["latency_us"] =
            json!({"p50": number.min(6e8), "p99": number.min(6e8), "p999": number.min(6e8), "max": number.min(6e8)});
        let page = Page::between(&reading, &reading);
        for line in uncut(&page) {
            assert!(line.len() <= WIDTH, "{number}: {} columns: {line}", line.len());
        }
        assert!(short(number).len() <= 5, "{number}");
    }
}

#[test]
fn more_stages_and_rings_than_rows_are_counted() {
    let (_, mut second) = recorded();
    let stages: Vec<Value> =
        (0..129).map(|index| json!({"name": format!("validate:{index}"), "core": index, "busy": 0.5, "backpressure": 0.0})).collect();
    let rings: Vec<Value> = (0..400).map(|index| json!({"name": format!("net_validate:{index}"), "depth": 16384, "used": index})).collect();
    second.stats["stages"] = json!(stages);
    second.stats["rings"] = json!(rings);
    let page = Page::between(&second, &second);
    let lines = uncut(&page);
    assert_eq!(lines.len(), HEIGHT);
    let rows = lines.iter().filter(|line| line.starts_with("validate:")).count();
    assert!(lines.iter().any(|line| line.contains(&format!("and {} less busy", 129 - rows))), "{lines:#?}");
    assert!(lines.iter().any(|line| line.contains("net_validate:399")), "the fullest is shown: {lines:#?}");
    assert!(lines.iter().any(|line| line.contains(&format!("and {} less full", 400 - rows))), "{lines:#?}");
}

#[test]
fn what_a_server_says_moves_no_cursor_and_long_words_wrap() {
    let (_, mut second) = recorded();
    second.status["pool"] = json!("evil\u{1b}[2Jpool\u{7}");
    second.status["status"] = json!("unavailable");
    second.status["reasons"] = json!(["log not writable"]);
    second.status["degraded"] = json!(["x".repeat(90), "\u{1f4a9}\r\n"]);
    second.stats["clickhouse"] = json!({"state": "retrying", "last_error": "e".repeat(1000)});
    let page = Page::between(&second, &second);
    let lines = uncut(&page);
    assert!(lines.iter().all(|line| line.bytes().all(|byte| (0x20..0x7f).contains(&byte)) && line.len() <= WIDTH), "{lines:#?}");
    assert!(lines.len() <= HEIGHT);
    assert!(lines[1].starts_with("unavailable: log not writable; xxx") && lines[2].starts_with("xxx"), "{lines:#?}");
}

#[test]
fn a_server_that_is_away_is_said_to_be_away_above_its_last_page() {
    let (first, second) = recorded();
    let page = Page::between(&first, &second);
    let lines = away(Some(&page), "no server answers on 127.0.0.1:1", Duration::from_secs(7), WIDTH, HEIGHT);
    assert_eq!(lines.len(), HEIGHT);
    assert_eq!(lines[0].text, "server away for 7 s; asked again every second, q ends");
    assert!(lines[1].text.contains("127.0.0.1:1"));
    assert!(lines[2..].iter().all(|line| line.tone == Tone::Soft));
    assert_eq!(away(None, "x", Duration::ZERO, WIDTH, HEIGHT).len(), 2);
}

#[test]
fn an_answer_without_the_expected_keys_is_shown_without_them() {
    let empty = Reading::new(json!({}), json!([]), "not a metric\n# HELP x\nx{a=\"b\"} nonsense\n");
    let lines = uncut(&Page::between(&empty, &empty));
    assert!(lines.len() <= HEIGHT && lines.iter().all(|line| line.len() <= WIDTH));
}

proptest! {
    #[test]
    fn any_size_of_the_window_is_kept(width in 0usize..200, height in 0usize..60) {
        let (first, second) = recorded();
        let page = Page::between(&first, &second);
        for lines in [page.lines(width, height), away(Some(&page), "gone", Duration::from_secs(1), width, height)] {
            prop_assert!(lines.len() <= height);
            prop_assert!(lines.iter().all(|line| line.text.len() <= width));
        }
    }
}
