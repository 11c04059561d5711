//! Any order of failures, deaths of the process included, leaves every segment on the server exactly once.
mod log;
mod mock;

use bytes::Bytes;
use log::Log;
use mock::{Act, Insert, Reply, World};
use otedama_sharelog::store::{Cursor, CursorPosition};
use otedama_shipper::{Body, Pace, Shipper, ShipperSettings, ShipperState, Sink, SinkError};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// More than the shipper holds in doubt after a start, so that later ones are tried as well.
const SEGMENTS: u32 = 12;

/// What becomes of an insert, or of the process that makes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Taken,
    AnswerLost,
    RequestLost,
    Refused,
    Unreachable,
    DiesAfter,
    DiesBefore,
    /// The server takes it and loses power before it answers; what it took last is gone, and is remembered.
    PowerCut,
}

struct Model {
    world: World,
    /// Fates of the segments' inserts, in order of arrival; after them all goes well.
    fates: VecDeque<Fate>,
    /// Fates of all other inserts.
    others: VecDeque<Fate>,
    /// Tokens in the order they were taken.
    taken: Vec<String>,
}

#[derive(Clone)]
struct ModelSink {
    model: Arc<Mutex<Model>>,
    death: Arc<Notify>,
}

fn unanswered() -> SinkError {
    SinkError::Unanswered { url: String::new(), text: "closed".into() }
}

impl ModelSink {
    /// The outcome of an insert; None when the process does not live to see it.
    fn outcome(&self, insert: Insert) -> Option<Result<(), SinkError>> {
        let mut model = self.model.lock().expect("model");
        let fates = if insert.sql.ends_with(" FORMAT Native") { &mut model.fates } else { &mut model.others };
        let fate = fates.pop_front().unwrap_or(Fate::Taken);
        let mut take = || {
            model.world.acts.push_front(Act::Take);
            let reply = model.world.insert(insert.clone(), &mut Duration::default());
            model.world.acts.clear();
            assert!(matches!(reply, Reply::Send(200, _)));
            if insert.sql.ends_with(" FORMAT Native") {
                model.taken.push(insert.token().to_owned());
            }
        };
        match fate {
            Fate::Taken => {
                take();
                Some(Ok(()))
            }
            Fate::AnswerLost => {
                take();
                Some(Err(unanswered()))
            }
            Fate::RequestLost => Some(Err(unanswered())),
            Fate::Refused => Some(Err(SinkError::Refused { code: 241, text: "memory".into() })),
            Fate::Unreachable => Some(Err(SinkError::Unreachable { url: String::new(), text: "refused".into() })),
            Fate::DiesAfter => {
                take();
                None
            }
            Fate::DiesBefore => None,
            Fate::PowerCut => {
                take();
                let model = &mut *model;
                let last: Vec<_> = model.taken.iter().rev().take(3).cloned().collect();
                model.world.power_cut(|token| last.iter().any(|lost| lost == token));
                Some(Err(unanswered()))
            }
        }
    }
}

impl Sink for ModelSink {
    async fn query(&self, sql: &str) -> Result<String, SinkError> {
        match self.model.lock().expect("model").world.answer(sql) {
            Reply::Send(200, text) => Ok(text),
            _ => Err(unanswered()),
        }
    }

    async fn insert(&self, sql: &str, settings: &[(&'static str, String)], body: Body) -> Result<(), SinkError> {
        let body = match body {
            Body::Memory(bytes) => bytes,
            Body::Segment { path, .. } => Bytes::from(std::fs::read(path).expect("the segment")),
        };
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let outcome = self.outcome(Insert { sql: sql.to_owned(), settings, body: body.to_vec() });
        // Others in flight get their turn before the process dies.
        tokio::task::yield_now().await;
        match outcome {
            Some(outcome) => outcome,
            None => {
                self.death.notify_one();
                std::future::pending().await
            }
        }
    }
}

fn settings(in_flight: usize) -> ShipperSettings {
    let moment = Duration::from_micros(20);
    ShipperSettings {
        instance: 7,
        inserts_in_flight: in_flight,
        pace: Pace {
            wait_first: moment,
            wait_longest: moment,
            look_every: moment,
            inserts_per_s: 1_000_000,
            drain: Duration::from_secs(20),
        },
        ..ShipperSettings::new("http://model")
    }
}

/// Ships all of the log, starting a new process whenever one dies, and returns how many died.
async fn ship(log: &Log, sink: &ModelSink, in_flight: usize) -> u32 {
    let mut deaths = 0;
    loop {
        let shipper = Shipper::with_sink(settings(in_flight), sink.clone(), log.store(), Arc::new(ShipperState::default()))
            .expect("the log can be read");
        // Stopped from the start: it ships what is sealed and ends.
        let (_stop, stopped) = watch::channel(true);
        tokio::select! {
            () = shipper.run(stopped) => return deaths,
            () = sink.death.notified() => deaths += 1,
        }
    }
}

/// Some orders have no deaths: after each one the shipper looks before it sends, which would hide that it must do so after a lost answer as well.
fn fates() -> impl Strategy<Value = Vec<Fate>> {
    (0..4u32).prop_flat_map(|deaths| {
        let fate = prop_oneof![
            4 => Just(Fate::Taken),
            6 => Just(Fate::AnswerLost),
            2 => Just(Fate::RequestLost),
            2 => Just(Fate::Refused),
            2 => Just(Fate::Unreachable),
            deaths * 2 => Just(Fate::DiesAfter),
            deaths => Just(Fate::DiesBefore),
            deaths => Just(Fate::PowerCut),
        ];
        prop::collection::vec(fate, 0..48)
    })
}

#[test]
fn whatever_fails_in_whatever_order_every_segment_is_there_exactly_once() {
    let mut log = Log::new();
    for rows in 1..=SEGMENTS {
        log.segment(rows, 1);
    }
    let metas = log.store().segments().expect("segments");
    assert_eq!(metas.len(), SEGMENTS as usize);
    let cursor = Cursor::open(log.dir(), "shipper").expect("cursor");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime");
    let mut runner = TestRunner::new(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() });
    let cases = (prop_oneof![Just("18.16.1"), Just("26.7.2.1")], 1..5usize, fates(), fates());
    let outcome = runner.run(&cases, |(version, in_flight, fates, others)| {
        cursor.store(CursorPosition::default()).expect("set back");
        let world = World { version: version.into(), tables: true, started_s: 1_000_000, ..World::default() };
        // 18.16 has no tokens to remember, and a request that is cut there has ended.
        let model = Arc::new(Mutex::new(Model { world, fates: fates.into(), others: others.into(), taken: Vec::new() }));
        let sink = ModelSink { model: Arc::clone(&model), death: Arc::new(Notify::new()) };
        runtime.block_on(ship(&log, &sink, in_flight));
        let model = model.lock().expect("model");
        let rows: Vec<_> = model.world.by_segment().into_values().collect();
        let wanted: Vec<_> = (1..=u64::from(SEGMENTS)).collect();
        prop_assert_eq!(rows, wanted);
        prop_assert_eq!(cursor.load().expect("position").segment, SEGMENTS);
        let listed = model.world.inserts.iter().filter(|insert| insert.sql.contains("`segments`"));
        let named: String = listed.map(|insert| String::from_utf8_lossy(&insert.body).into_owned()).collect();
        prop_assert!(metas.iter().all(|meta| named.contains(&meta.name)), "segments lacks a row");
        Ok(())
    });
    outcome.expect("exactly once");
}
