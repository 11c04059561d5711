//! How soon rows are sealed, and how that waits for a follower that is behind.
mod support;

use otedama_sharelog::store::{Cursor, CursorPosition, SegmentStore};
use otedama_sharelog::{LogSettings, ShareLog};
use support::{NOON_US, begin, row, settings};

#[test]
fn segments_grow_while_they_wait_for_a_follower_and_shrink_when_it_has_caught_up() {
    let folder = tempfile::tempdir().expect("folder");
    let settings = LogSettings { seal_after_ms: 20, has_cursor: true, keep_shipped_ms: u64::MAX, ..settings(folder.path(), 1) };
    let (mut journal, mut sealer, registry, _) = ShareLog::open(settings.clone()).expect("open");
    begin(&settings, &registry, &mut journal);
    let shipper = Cursor::open(folder.path(), "shipper").expect("cursor");
    let sealed = || SegmentStore::open(folder.path()).expect("store").segments().expect("segments");
    // A row every 10 ms; the sealer runs as often.
    let mut now_us = NOON_US;
    let mut appended = 0;
    let mut pass = |seconds: u64| {
        let before = sealed().len();
        for _ in 0..seconds * 100 {
            journal.append(&[], &[row(appended)]).expect("room");
            appended += 1;
            now_us += 10_000;
            for _ in 0..4 {
                sealer.step(now_us).expect("step");
            }
        }
        sealed().len() - before
    };
    let first = pass(1);
    assert!((20..=50).contains(&first), "{first} segments in a second: a twentieth each");
    // Nobody takes any: with so many waiting there is one per six to eight seconds.
    pass(60);
    let waiting = sealed().len();
    let late = pass(100);
    assert!((10..=18).contains(&late), "{late} segments in 100 s with {waiting} waiting");
    shipper.store(CursorPosition { segment: sealed().last().expect("segments").sequence(), dimensions: 0 }).expect("store");
    pass(2);
    shipper.store(CursorPosition { segment: sealed().last().expect("segments").sequence(), dimensions: 0 }).expect("store");
    let soon = pass(1);
    assert!(soon >= 20, "{soon} segments in a second once it has caught up");
    let rows: u64 = sealed().iter().map(|meta| u64::from(meta.rows)).sum();
    assert!(rows + 10 >= u64::from(appended), "{rows} of {appended} rows");
}
