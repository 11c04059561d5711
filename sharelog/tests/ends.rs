//! Jobs that died with their server get their ends at the next start.
mod support;

use otedama_primitives::ShareRow;
use otedama_sharelog::{DIMENSIONS_START, DimensionEntry, DimensionReader, JobRecord, LogSettings, ShareLog};
use std::collections::BTreeMap;
use std::path::Path;
use support::{NOON_US, begin, job, row, session, settings, settle};

/// The ends on record by job number; none twice.
fn ends(dir: &Path) -> BTreeMap<u64, u64> {
    let mut ends = BTreeMap::new();
    for entry in DimensionReader::from(dir, DIMENSIONS_START).expect("records") {
        if let (_, DimensionEntry::JobEnd { job, us }) = entry.expect("sound") {
            assert_eq!(ends.insert(job.0, us), None, "job {job} ended twice");
        }
    }
    ends
}

fn rows_at(seconds: u64, count: u32) -> Vec<ShareRow> {
    (0..count).map(|index| ShareRow { arrival_us: NOON_US + seconds * 1_000_000 + u64::from(index), ..row(index) }).collect()
}

/// Opens the log and lets it settle, as a start does that serves nobody, and dies.
fn boot(settings: &LogSettings) {
    let (_journal, mut sealer, ..) = ShareLog::open(settings.clone()).expect("open");
    settle(&mut sealer, NOON_US);
}

#[test]
fn jobs_of_a_killed_run_end_with_its_last_row_and_ends_on_record_stay() {
    let folder = tempfile::tempdir().expect("folder");
    let first = settings(folder.path(), 1);
    let run = first.run;
    {
        let (mut journal, mut sealer, registry, _) = ShareLog::open(first.clone()).expect("open");
        begin(&first, &registry, &mut journal);
        for counter in 2..=4 {
            registry.job(&JobRecord { clean: false, ..job(run, counter) }).expect("job");
        }
        registry.job_end(run.job(1), NOON_US + 5).expect("end");
        journal.append(&[], &rows_at(0, 50)).expect("room");
        settle(&mut sealer, NOON_US);
        // The last of it is in the journal alone.
        journal.append(&[], &rows_at(7, 3)).expect("room");
    }
    let second = settings(folder.path(), 2);
    {
        let (mut journal, mut sealer, registry, _) = ShareLog::open(second.clone()).expect("open");
        begin(&second, &registry, &mut journal);
        assert_eq!(ends(folder.path()).len(), 1, "not before its rows are sealed");
        settle(&mut sealer, NOON_US);
        let died_us = NOON_US + 7_000_002;
        let expected = BTreeMap::from([1, 2, 3, 4].map(|counter| (run.job(counter).0, if counter == 1 { NOON_US + 5 } else { died_us })));
        assert_eq!(ends(folder.path()), expected, "and this run's own job lives");
    }
    boot(&settings(folder.path(), 3));
    assert_eq!(ends(folder.path()).get(&second.run.job(1).0), Some(&(NOON_US + 1)), "a job that nothing followed has ended all the same");
    boot(&settings(folder.path(), 4));
    assert_eq!(ends(folder.path()).len(), 5);
}

#[test]
fn a_job_on_a_new_parent_ended_those_before_it_also_where_the_server_did_not_live_to_say_so() {
    let folder = tempfile::tempdir().expect("folder");
    let first = settings(folder.path(), 1);
    let run = first.run;
    {
        let (mut journal, mut sealer, registry, _) = ShareLog::open(first.clone()).expect("open");
        begin(&first, &registry, &mut journal);
        registry.job(&JobRecord { clean: false, created_us: NOON_US + 10, ..job(run, 2) }).expect("job");
        registry.job(&JobRecord { created_us: NOON_US + 20, ..job(run, 3) }).expect("job");
        registry.job(&JobRecord { created_us: NOON_US + 30, ..job(run, 4) }).expect("job");
        journal.append(&[], &rows_at(1, 1)).expect("room");
        settle(&mut sealer, NOON_US);
    }
    boot(&settings(folder.path(), 2));
    let expected = [(1, 20), (2, 20), (3, 30), (4, 1_000_000)];
    assert_eq!(ends(folder.path()), expected.into_iter().map(|(counter, us)| (run.job(counter).0, NOON_US + us)).collect());
}

/// Two hours of a server that seals every minute and makes `jobs_an_hour` jobs, whose very first job and whose last three have no end on record. Gives the last job.
fn two_hours(settings: &LogSettings, jobs_an_hour: u64) -> u32 {
    let (mut journal, mut sealer, registry, _) = ShareLog::open(settings.clone()).expect("open");
    let run = settings.run;
    journal.append(&[session(1)], &[]).expect("room");
    let (mut made, mut minute) = (0, 0);
    while minute < 120 {
        while made * 3600 <= minute * 60 * jobs_an_hour {
            made += 1;
            let created_us = NOON_US + minute * 60_000_000;
            registry.job(&JobRecord { created_us, clean: false, ..job(run, made as u32) }).expect("job");
            if made > 4 {
                registry.job_end(run.job(made as u32 - 3), created_us).expect("end");
            }
        }
        journal.append(&[], &rows_at(minute * 60, 2)).expect("room");
        settle(&mut sealer, NOON_US + minute * 60_000_000);
        minute += 1;
        settle(&mut sealer, NOON_US + minute * 60_000_000 + 60_000_000);
    }
    made as u32
}

#[test]
fn records_of_long_ago_are_read_only_where_the_last_half_hour_has_few_jobs() {
    for (jobs_an_hour, finds_the_first) in [(120, false), (10, true)] {
        let folder = tempfile::tempdir().expect("folder");
        let first = LogSettings { seal_after_ms: 1000, ..settings(folder.path(), 1) };
        let last = two_hours(&first, jobs_an_hour);
        let before = ends(folder.path());
        boot(&settings(folder.path(), 2));
        let mut added = ends(folder.path());
        added.retain(|job, _| !before.contains_key(job));
        let died_us = NOON_US + 119 * 60_000_000 + 1;
        let mut expected: BTreeMap<u64, u64> = (last - 2..=last).map(|counter| (first.run.job(counter).0, died_us)).collect();
        if finds_the_first {
            expected.insert(first.run.job(1).0, died_us);
        }
        assert_eq!(added, expected, "{jobs_an_hour} jobs an hour");
    }
}
