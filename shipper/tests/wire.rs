//! What goes over the wire, and what the shipper makes of every way in which a server can fail it.
mod log;
mod mock;

use log::Log;
use mock::{Act, Mock};
use otedama_sharelog::store::Cursor;
use otedama_sharelog::{BlockStatus, Layout, LoggedRow, PIECE_BYTES, SegmentBlock};
use otedama_shipper::schema::segment_columns;
use otedama_shipper::{Pace, Shipper, ShipperSettings, ShipperState, StateKind, Timeouts};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

const MODERN: &str = "26.7.2.1";
const OLD: &str = "18.16.1";
const PATIENCE: Duration = Duration::from_secs(20);

fn settings(url: String) -> ShipperSettings {
    ShipperSettings {
        instance: 7,
        timeouts: Timeouts { query: Duration::from_secs(2), piece: Duration::from_millis(300), answer: Duration::from_millis(300) },
        pace: Pace {
            wait_first: Duration::from_millis(1),
            wait_longest: Duration::from_millis(8),
            look_every: Duration::from_millis(2),
            inserts_per_s: 1000,
            drain: Duration::from_millis(500),
        },
        ..ShipperSettings::new(url)
    }
}

struct Running {
    state: Arc<ShipperState>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

fn start(settings: ShipperSettings, log: &Log) -> Running {
    let state = Arc::new(ShipperState::default());
    let shipper = Shipper::new(settings, log.store(), Arc::clone(&state)).expect("the log can be read");
    let (stop, stopped) = watch::channel(false);
    Running { state, stop, task: tokio::spawn(shipper.run(stopped)) }
}

impl Running {
    async fn until(&self, what: &str, condition: impl Fn(&ShipperState) -> bool) {
        let waiting = async {
            while !condition(&self.state) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        assert!(waited.is_ok(), "{what} did not happen; state {:?}, last error {:?}", self.state.kind(), self.state.last_error());
    }

    async fn shipped(&self, segments: u64) {
        self.until("shipping", |state| state.segments_shipped.load(Ordering::Relaxed) >= segments).await;
        self.end().await;
    }

    async fn end(&self) {
        self.stop.send_replace(true);
        self.until("the end of run", |_| self.task.is_finished()).await;
    }
}

fn passed(log: &Log) -> u32 {
    Cursor::open(log.dir(), "shipper").and_then(|cursor| cursor.load()).expect("cursor").segment
}

fn rows_of(block: &[u8]) -> Vec<LoggedRow> {
    let block = SegmentBlock::parse(block).expect("one block");
    (0..block.rows()).map(|row| block.row(row)).collect()
}

#[tokio::test]
async fn a_segment_goes_out_in_the_order_of_its_table_under_the_settings_of_a_modern_server() {
    let mock = Mock::start(MODERN);
    let mut log = Log::new();
    log.segment(1000, 5);
    let run = start(ShipperSettings { user: "pool".into(), password: "secret".into(), ..settings(mock.url()) }, &log);
    run.shipped(1).await;
    let inserts = mock.segment_inserts();
    assert_eq!(inserts.len(), 1);
    let meta = &log.store().segments().expect("segments")[0];
    let segment = std::fs::read(log.store().native_path(meta)).expect("the segment");
    assert!(inserts[0].body == segment, "the file, byte by byte");
    let sent = rows_of(&segment);
    assert!(sent.is_sorted_by_key(|row| (row.worker, row.arrival_us, row.seq)) && !sent.is_sorted_by_key(|row| row.seq));
    assert_eq!(inserts[0].sql, format!("INSERT INTO `otedama`.`shares` {} FORMAT Native", segment_columns(Layout::Replayable)));
    let token = format!("otedama-7-{}-{:016x}", meta.name, meta.content_hash);
    let sent: Vec<_> = inserts[0].settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(
        sent,
        [
            ("async_insert", "0"),
            ("deduplicate_blocks_in_dependent_materialized_views", "1"),
            ("insert_deduplicate", "1"),
            ("insert_deduplication_token", token.as_str()),
        ]
    );
    let world = mock.world();
    assert!(world.users.iter().all(|user| *user == ("pool".to_owned(), "secret".to_owned())) && !world.users.is_empty());
    let order: Vec<_> = world.inserts.iter().map(|insert| insert.sql.split('`').nth(3).unwrap_or_default().to_owned()).collect();
    assert_eq!(order, ["runs", "sessions", "workers", "jobs", "shares", "segments"]);
    assert_eq!(run.state.rows_shipped.load(Ordering::Relaxed), 1000);
    drop(world);
    assert_eq!(passed(&log), 1);
}

#[tokio::test]
async fn every_failure_is_retried_with_the_same_bytes_and_the_same_token_until_each_segment_is_there_once() {
    let mock = Mock::start(MODERN);
    let mut log = Log::new();
    for _ in 0..3 {
        log.segment(300, 5);
    }
    mock.world().acts = [
        Act::TakeAndHang,
        Act::Refuse(500, "Code: 241. DB::Exception: Memory limit exceeded. (MEMORY_LIMIT_EXCEEDED)"),
        Act::TakeAndClose,
        Act::DropTables,
        Act::Close,
        Act::Take,
        Act::Refuse(503, ""),
        Act::Refuse(500, "Code: 252. DB::Exception: Too many parts"),
        Act::TakeSlowly,
        Act::TakeAndClose,
    ]
    .into();
    let run = start(settings(mock.url()), &log);
    run.shipped(3).await;
    assert_eq!(run.state.kind(), StateKind::Ok);
    assert_eq!(run.state.last_error(), "");
    let inserts = mock.segment_inserts();
    assert_eq!(inserts.len(), 6 + 3 + 2, "tries of the first, second and third segment");
    for tries in [&inserts[..6], &inserts[6..9], &inserts[9..]] {
        assert!(
            tries
                .iter()
                .all(|insert| insert.token() == tries[0].token() && insert.body == tries[0].body && insert.settings == tries[0].settings)
        );
    }
    let world = mock.world();
    assert_eq!(world.rows.len(), 3);
    assert!(world.rows.values().all(|&rows| rows == 300), "{:?}", world.rows);
    assert!(
        world.statements.iter().any(|sql| sql.starts_with("CREATE TABLE IF NOT EXISTS `otedama`.`shares`")),
        "the dropped tables were made again"
    );
    assert!(run.state.retries.load(Ordering::Relaxed) >= 8);
    drop(world);
    assert_eq!(passed(&log), 3);
}

#[tokio::test]
async fn a_server_that_is_not_there_yet_is_waited_for() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("its address");
    drop(listener);
    let mut log = Log::new();
    log.segment(10, 5);
    let run = start(settings(format!("http://{address}")), &log);
    run.until("the first refused connection", |state| state.kind() == StateKind::Retrying).await;
    assert!(run.state.last_error().contains("cannot connect"), "{}", run.state.last_error());
    let mock = Mock::start_at(TcpListener::bind(address).expect("the port is still free"), MODERN);
    run.shipped(1).await;
    assert_eq!(mock.segment_inserts().len(), 1);
}

#[tokio::test]
async fn an_old_server_gets_no_setting_it_does_not_know_and_a_lost_answer_is_cleared_up_by_counting() {
    let mock = Mock::start(OLD);
    let mut log = Log::new();
    for _ in 0..3 {
        log.segment(300, 5);
    }
    // The first answer is lost after, the second before the server took the rows.
    mock.world().acts =
        [Act::TakeAndClose, Act::Close, Act::Take, Act::Refuse(500, "Code: 241, e.displayText() = DB::Exception"), Act::Take].into();
    mock.world().lingering = 3;
    let run = start(settings(mock.url()), &log);
    run.shipped(3).await;
    assert_eq!(run.state.kind(), StateKind::Legacy);
    let inserts = mock.segment_inserts();
    assert_eq!(inserts.len(), 1 + 2 + 2);
    for insert in &inserts {
        let names: Vec<_> = insert.settings.keys().map(String::as_str).collect();
        assert_eq!(names, ["query_id"]);
    }
    assert_eq!(inserts[1].token(), inserts[2].token());
    let world = mock.world();
    assert!(world.rows.len() == 3 && world.rows.values().all(|&rows| rows == 300), "{:?}", world.rows);
    let asked = world.statements.iter().filter(|sql| sql.contains("system.processes")).count();
    assert!(asked >= 4, "it waits while the query still runs: {asked}");
    assert_eq!(run.state.findings.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_process_that_died_before_its_cursor_moved_does_not_double_its_last_segment_on_an_old_server() {
    let mock = Mock::start(OLD);
    let mut log = Log::new();
    log.segment(300, 5);
    log.segment(200, 5);
    let cursor = Cursor::open(log.dir(), "shipper").expect("cursor");
    let before = cursor.load().expect("position");
    start(settings(mock.url()), &log).shipped(2).await;
    cursor.store(before).expect("set back");
    start(settings(mock.url()), &log).shipped(2).await;
    assert_eq!(mock.segment_inserts().len(), 2, "both were found by counting");
    let mut rows: Vec<_> = mock.world().rows.values().copied().collect();
    rows.sort_unstable();
    assert_eq!(rows, [200, 300]);
}

#[tokio::test]
async fn a_part_of_a_segment_stops_an_old_server_until_somebody_removed_it() {
    let mock = Mock::start(OLD);
    let mut log = Log::new();
    log.segment(300, 5);
    mock.world().acts = [Act::TakeInPart].into();
    let run = start(settings(mock.url()), &log);
    run.until("refusing", |state| state.kind() == StateKind::Refusing).await;
    assert!(run.state.last_error().contains("150 of 300 rows"), "{}", run.state.last_error());
    assert!(run.state.findings.load(Ordering::Relaxed) >= 1);
    assert_eq!((mock.segment_inserts().len(), passed(&log)), (1, 0));
    mock.world().rows.clear();
    run.shipped(1).await;
    assert_eq!(mock.world().rows.values().sum::<u64>(), 300);
}

#[tokio::test]
async fn it_refuses_to_ship_where_a_retry_would_double_a_roll_up() {
    for forgetful in ["shares", "worker_minute"] {
        let mock = Mock::start(MODERN);
        mock.world().forgetful = vec![forgetful];
        let mut log = Log::new();
        log.segment(10, 5);
        let run = start(settings(mock.url()), &log);
        run.until("refusing", |state| state.kind() == StateKind::Refusing).await;
        let error = run.state.last_error();
        assert!(error.contains(&format!("otedama.{forgetful}")) && error.contains("MODIFY SETTING"), "{error}");
        assert!(mock.segment_inserts().is_empty());
        // The operator follows the advice.
        mock.world().forgetful.clear();
        run.shipped(1).await;
    }
}

#[tokio::test]
async fn missing_tables_are_not_made_without_leave_and_the_error_says_how() {
    let mock = Mock::start(MODERN);
    mock.world().tables = false;
    let mut log = Log::new();
    log.segment(10, 5);
    let run = start(ShipperSettings { create_tables: false, ..settings(mock.url()) }, &log);
    run.until("refusing", |state| state.kind() == StateKind::Refusing).await;
    assert!(run.state.last_error().contains("otedama schema | clickhouse-client"), "{}", run.state.last_error());
    assert!(!mock.world().statements.iter().any(|sql| sql.starts_with("CREATE")));
    mock.world().tables = true;
    run.shipped(1).await;
}

#[tokio::test]
async fn several_segments_in_flight_move_the_cursor_only_over_a_run_of_done_ones() {
    let mock = Mock::start(MODERN);
    let mut log = Log::new();
    for _ in 0..8 {
        log.segment(20, 5);
    }
    // Two of the first four are lost before and after they are taken; whichever they are, all eight arrive once.
    mock.world().acts = [Act::TakeSlowly, Act::Close, Act::TakeAndClose, Act::TakeSlowly].into();
    let run = start(ShipperSettings { inserts_in_flight: 4, ..settings(mock.url()) }, &log);
    run.shipped(8).await;
    let world = mock.world();
    assert!(world.rows.len() == 8 && world.rows.values().all(|&rows| rows == 20), "{:?}", world.rows);
    assert_eq!(run.state.segments_shipped.load(Ordering::Relaxed), 8, "none is counted twice");
    drop(world);
    assert_eq!(passed(&log), 8);
}

#[tokio::test]
async fn a_damaged_segment_never_reaches_the_server_whole() {
    let mock = Mock::start(MODERN);
    let mut log = Log::new();
    log.segment(150_000, 5);
    let meta = log.store().segments().expect("segments").remove(0);
    let path = log.store().native_path(&meta);
    let sound = std::fs::read(&path).expect("the segment");
    assert!(sound.len() > 2 * PIECE_BYTES, "pieces leave before the last one is read: {}", sound.len());
    // Behind the first piece, and in the last bytes: pieces before it have left.
    for at in [PIECE_BYTES + 1000, sound.len() - 1] {
        let mut bytes = sound.clone();
        bytes[at] ^= 1;
        std::fs::write(&path, &bytes).expect("damaged");
        let run = start(settings(mock.url()), &log);
        run.until("refusing", |state| state.kind() == StateKind::Refusing).await;
        assert!(run.state.last_error().contains("CRC-32C"), "{}", run.state.last_error());
        assert!(mock.segment_inserts().is_empty(), "only cut bodies arrived");
        run.end().await;
    }
    let run = start(settings(mock.url()), &log);
    std::fs::write(&path, &sound[..sound.len() - 1]).expect("cut");
    run.until("the other damage", |state| state.last_error().contains("bytes, its .meta says")).await;
    std::fs::write(&path, &sound).expect("restored from a copy");
    run.shipped(1).await;
    let inserts = mock.segment_inserts();
    assert!(inserts[0].body == sound);
}

#[tokio::test]
async fn stop_ends_a_run_whose_server_hangs() {
    let mock = Mock::start(MODERN);
    let mut log = Log::new();
    log.segment(10, 5);
    mock.world().acts = std::iter::repeat_n(Act::TakeAndHang, 1000).collect();
    let run = start(settings(mock.url()), &log);
    run.until("a first try", |_| !mock.segment_inserts().is_empty()).await;
    run.end().await;
    assert_eq!(passed(&log), 0);
}

#[tokio::test]
async fn what_became_of_blocks_and_jobs_goes_out_although_no_segment_follows() {
    let mock = Mock::start(MODERN);
    let mut log = Log::new();
    log.segment(10, 5);
    let run = start(settings(mock.url()), &log);
    run.until("shipping", |state| state.segments_shipped.load(Ordering::Relaxed) == 1).await;
    log.registry.block(&log.block(BlockStatus::Accepted)).expect("block");
    log.registry.job_end(log.job(1).job, log::FIRST_US + 5_000_000).expect("end");
    log.sync();
    let seen = |table: &str| {
        let inserts = &mock.world().inserts;
        inserts
            .iter()
            .filter(|insert| insert.sql.contains(&format!("`{table}`")))
            .map(|insert| String::from_utf8_lossy(&insert.body).into_owned())
            .collect::<Vec<_>>()
    };
    run.until("the block and the end of its job", |_| seen("blocks").len() == 1 && seen("jobs").len() == 2).await;
    assert!(seen("blocks")[0].contains("\taccepted\t"));
    assert!(seen("jobs")[1].ends_with("\t2026-11-20 23:46:24\t0\n"), "{}", seen("jobs")[1]);
    run.end().await;
    // A process that no longer has the job at hand lets the server complete its own row. It takes up the records of the last 512 segments again, so there are more behind the job.
    log.registry.job(&log.job(2)).expect("job");
    for _ in 0..520 {
        log.segment(1, 5);
    }
    start(settings(mock.url()), &log).shipped(520).await;
    log.registry.job_end(log.job(2).job, log::FIRST_US).expect("end");
    log.sync();
    let run = start(settings(mock.url()), &log);
    let job = log.job(2).job.0;
    run.until("the completed row", |_| mock.world().statements.iter().any(|sql| sql.contains(&format!("WHERE job = {job} LIMIT 1")))).await;
    run.end().await;
}

#[tokio::test]
async fn what_a_server_took_and_lost_in_a_power_cut_goes_out_again_with_its_dimension_records() {
    for version in [MODERN, OLD] {
        let mock = Mock::start(version);
        let mut log = Log::new();
        for rows in 1..=5 {
            log.segment(rows, 5);
        }
        let run = start(settings(mock.url()), &log);
        run.until("shipping", |state| state.segments_shipped.load(Ordering::Relaxed) == 5).await;
        let tokens: Vec<_> = mock.segment_inserts().iter().map(|insert| insert.token().to_owned()).collect();
        let sessions = |mock: &Mock| {
            let world = mock.world();
            let sent = world.inserts.iter().filter(|insert| insert.sql.contains("`sessions`"));
            sent.map(|insert| insert.body.iter().filter(|&&byte| byte == b'\n').count()).sum::<usize>()
        };
        let before = sessions(&mock);
        mock.world().power_cut(|token| token == tokens[3] || token == tokens[4]);
        // The connection breaks, which is how the shipper notices.
        mock.world().acts = [Act::Close].into();
        log.segment(6, 5);
        run.until("all six", |_| mock.world().by_segment().into_values().eq([1, 2, 3, 4, 5, 6])).await;
        run.until("the cursor", |_| passed(&log) == 6).await;
        run.end().await;
        assert_eq!(run.state.segments_lost.load(Ordering::Relaxed), 2, "{version}");
        let again: Vec<_> = mock.segment_inserts()[6..].iter().map(|insert| insert.token().to_owned()).collect();
        assert!(again.iter().filter(|token| token.contains("-again-")).count() == 2, "{again:?}");
        // The log has one record of the one session.
        assert_eq!((before, sessions(&mock)), (1, 2), "the records of the time of the lost segments go again");

        // The same across a start of the process: what it sent last is looked for.
        mock.world().power_cut(|token| token == tokens[0] || token.contains("-again-"));
        let run = start(settings(mock.url()), &log);
        run.until("all six again", |_| mock.world().by_segment().into_values().eq([1, 2, 3, 4, 5, 6])).await;
        run.end().await;
        assert_eq!(run.state.segments_lost.load(Ordering::Relaxed), 3, "{version}");
        assert_eq!(passed(&log), 6);
    }
}

#[tokio::test]
async fn a_cold_segment_that_the_server_lost_goes_out_again_with_the_bytes_that_it_had() {
    let mock = Mock::start(MODERN);
    let mut log = Log::new();
    for rows in [20_000, 3, 4] {
        log.segment(rows, 5);
    }
    let run = start(settings(mock.url()), &log);
    run.shipped(3).await;
    let sent = mock.segment_inserts();
    log.pack();
    let metas = log.store().segments().expect("segments");
    assert!(metas.iter().all(|meta| !log.store().native_path(meta).exists() && log.store().is_here(meta)), "all are cold");
    assert_eq!(passed(&log), 3);
    let tokens: Vec<_> = sent.iter().map(|insert| insert.token().to_owned()).collect();
    mock.world().power_cut(|token| token == tokens[0] || token == tokens[2]);
    let run = start(settings(mock.url()), &log);
    run.until("all three again", |_| mock.world().by_segment().into_values().eq([20_000, 3, 4])).await;
    run.end().await;
    let again = mock.segment_inserts();
    assert_eq!(again.len(), 5);
    assert!(again[3].body == sent[0].body && again[4].body == sent[2].body, "the same bytes");

    // One that is torn does not get there, and is named.
    let packed = log.store().native_path(&metas[1]).with_extension("native.zst");
    let bytes = std::fs::read(&packed).expect("packed");
    std::fs::write(&packed, &bytes[..bytes.len() - 5]).expect("torn");
    mock.world().power_cut(|token| token == tokens[1]);
    let run = start(settings(mock.url()), &log);
    run.until("refusing", |state| state.kind() == StateKind::Refusing).await;
    assert!(run.state.last_error().contains("native.zst"), "{}", run.state.last_error());
    std::fs::write(&packed, &bytes).expect("restored from a copy");
    run.until("the torn one", |_| mock.world().by_segment().into_values().eq([20_000, 3, 4])).await;
    run.end().await;
}

#[tokio::test]
async fn what_somebody_deleted_on_a_server_that_never_stopped_stays_deleted() {
    let mock = Mock::start(MODERN);
    let mut log = Log::new();
    log.segment(3, 5);
    let run = start(settings(mock.url()), &log);
    run.until("shipping", |state| state.segments_shipped.load(Ordering::Relaxed) == 1).await;
    mock.world().rows.clear();
    mock.world().acts = [Act::Refuse(503, ""), Act::Close].into();
    log.segment(4, 5);
    run.until("the second", |state| state.segments_shipped.load(Ordering::Relaxed) == 2).await;
    run.end().await;
    assert!(mock.world().by_segment().into_values().eq([4]));
    assert_eq!(run.state.segments_lost.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_server_that_lost_power_while_nothing_was_asked_of_it_gets_again_what_it_lost() {
    for version in [MODERN, OLD] {
        let mock = Mock::start(version);
        let mut log = Log::new();
        log.segment(1, 5);
        log.segment(2, 5);
        let run = start(settings(mock.url()), &log);
        run.until("shipping", |state| state.segments_shipped.load(Ordering::Relaxed) == 2).await;
        let last = mock.segment_inserts()[1].token().to_owned();
        mock.world().power_cut(|token| token == last);
        // Longer than a server is trusted without a word from it; and no request ever fails.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        log.segment(3, 5);
        run.until("all three", |_| mock.world().by_segment().into_values().eq([1, 2, 3])).await;
        run.until("the cursor", |_| passed(&log) == 3).await;
        run.end().await;
        assert_eq!(run.state.segments_lost.load(Ordering::Relaxed), 1, "{version}");
    }
}

#[tokio::test]
async fn pool_and_server_that_lose_power_together_lose_nothing_of_the_last_half_minute() {
    let mock = Mock::start(MODERN);
    let mut log = Log::new();
    for _ in 0..360 {
        log.segment(1, 5);
    }
    let run = start(settings(mock.url()), &log);
    run.shipped(360).await;
    // Ten inserts a second, and a kernel that writes pages back within 35 s.
    let first = mock.segment_inserts()[10].token().to_owned();
    mock.world().power_cut(|token| token == first);
    let run = start(settings(mock.url()), &log);
    run.until("all of them", |_| mock.world().by_segment().into_values().eq(std::iter::repeat_n(1, 360))).await;
    run.end().await;
}

#[tokio::test]
async fn what_a_killed_process_was_sending_again_is_waited_for_before_anything_is_sent_again() {
    for version in [MODERN, OLD] {
        let mock = Mock::start(version);
        let mut log = Log::new();
        log.segment(4, 5);
        start(settings(mock.url()), &log).shipped(1).await;
        {
            let mut world = mock.world();
            world.power_cut(|_| true);
            // An insert of the process before, which had found the segment lost as well.
            world.lingering = 5;
            world.statements.clear();
        }
        let run = start(settings(mock.url()), &log);
        run.until("the segment", |_| mock.world().by_segment().into_values().eq([4])).await;
        run.end().await;
        let world = mock.world();
        let counted = world.statements.iter().position(|sql| sql.starts_with("SELECT instance, seg, count()")).expect("a count");
        let asked = world.statements[..counted].iter().filter(|sql| sql.contains("system.processes") && sql.contains("-again-")).count();
        assert_eq!(asked, 6, "{version}: five times it is there, then not: {:?}", world.statements);
        drop(world);
        let again = mock.segment_inserts().pop().expect("sent again");
        assert!(
            again.settings.get("query_id").is_some_and(|id| id.contains("-again-")),
            "{version}: who comes after must find it: {again:?}"
        );
    }
}

#[tokio::test]
async fn the_first_segments_of_a_process_are_in_doubt_whatever_their_numbers() {
    let mock = Mock::start(OLD);
    let mut log = Log::behind(Layout::Replayable, 50);
    log.segment(300, 5);
    let cursor = Cursor::open(log.dir(), "shipper").expect("cursor");
    let before = cursor.load().expect("position");
    start(settings(mock.url()), &log).shipped(1).await;
    assert_eq!(passed(&log), 51, "fifty numbers are used up");
    cursor.store(before).expect("set back");
    start(settings(mock.url()), &log).shipped(1).await;
    assert_eq!(mock.segment_inserts().len(), 1, "it was found by counting");
    assert_eq!(mock.world().rows.values().sum::<u64>(), 300);
}

#[tokio::test]
async fn rows_that_a_server_dropped_for_their_age_are_not_sent_again_for_ever() {
    let mock = Mock::start(MODERN);
    let mut log = Log::new();
    // Of 2001.
    log.segment_of(1, |number| otedama_primitives::ShareRow { arrival_us: 1_000_000_000_000_000, ..log::row(number, 5) });
    // The server remembers the insert and has no row of it.
    mock.world().acts = [Act::TakeInPart].into();
    let run = start(ShipperSettings { keep_days: 90, ..settings(mock.url()) }, &log);
    run.shipped(1).await;
    assert_eq!((mock.segment_inserts().len(), passed(&log)), (2, 1));
    assert_eq!(run.state.segments_lost.load(Ordering::Relaxed), 0);
}
