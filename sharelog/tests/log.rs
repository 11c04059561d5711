//! The life of a log: append, seal, crash, recover, recycle, and readers beside it.
mod support;
use otedama_primitives::ShareRow;
use otedama_sharelog::{LogError, SegmentBlock, ShareLog, store::SegmentStore};
use std::sync::atomic::Ordering::Relaxed;
use support::*;

#[test]
fn rows_come_back_as_they_went_in_sealed_or_not() {
    let folder = tempfile::tempdir().expect("folder");
    let settings = settings(folder.path(), 1);
    let (mut journal, mut sealer, registry, _) = ShareLog::open(settings.clone()).expect("open");
    begin(&settings, &registry, &mut journal);
    let worker = |index: u32| u64::from(index % 7 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let rows: Vec<ShareRow> = (0..2500).map(|index| ShareRow { worker: worker(index), ..row(index) }).collect();
    for batch in rows.chunks(100) {
        journal.append(&[], batch).expect("room");
        settle(&mut sealer, NOON_US);
    }
    let store = SegmentStore::open(folder.path()).expect("store");
    let metas = store.segments().expect("segments");
    assert_eq!(metas.iter().map(|meta| meta.rows).collect::<Vec<_>>(), [1000, 1000], "500 rows are still open");
    assert_eq!(metas.iter().map(|meta| meta.sequence()).collect::<Vec<_>>(), [1, 2]);
    let expect = |row: &ShareRow| {
        let prefix = u64::from(settings.run.prefix()) << 32;
        (row.arrival_us, prefix | 1, row.worker, prefix | 1, row.status, row.flags, row.work, row.nonce, row.extranonce2, row.latency_us)
    };
    let found: Vec<_> = otedama_sharelog::scan::rows(folder.path(), Default::default())
        .expect("scan")
        .map(|row| row.expect("row"))
        .map(|r| (r.arrival_us, r.session, r.worker, r.job, r.status, r.flags, r.work, r.nonce, r.extranonce2, r.latency_us))
        .collect();
    assert_eq!(found, rows.iter().map(expect).collect::<Vec<_>>());
    let sum: u128 = rows[..1000].iter().map(|row| u128::from(row.work)).sum();
    assert!(sum > u128::from(u64::MAX), "the sum of one segment is beyond 64 bits");
    assert_eq!(metas[0].work_sum, sum);
    let mut bytes = Vec::new();
    assert!(store.read_native(&metas[0], &mut bytes).expect("native"));
    let block = SegmentBlock::parse(&bytes).expect("block");
    let lying: Vec<_> = (0..1000).map(|at| block.row(at)).collect();
    assert!(lying.is_sorted_by_key(|row| (row.worker, row.seq)), "on the disk they lie in the order of the table");
    assert!(lying.iter().all(|row| (row.seg, row.instance) == (metas[0].seg, 3)));
    let mut arrivals = Vec::new();
    assert!(block.arrivals(&mut arrivals));
    assert!(arrivals.iter().map(|&at| lying[at as usize].seq).eq(0..1000));
    // Two rows with one place: no order to go by, and nothing is lost.
    let seq_at = bytes.windows(11).position(|bytes| bytes == b"\x03seq\x06UInt32").expect("the column") + 11;
    for wrong in [bytes[seq_at + 4..seq_at + 8].to_vec(), vec![0xff; 4]] {
        bytes[seq_at..seq_at + 4].copy_from_slice(&wrong);
        assert!(!SegmentBlock::parse(&bytes).expect("block").arrivals(&mut arrivals));
        assert!(arrivals.iter().copied().eq(0..1000));
    }
}

#[test]
fn a_second_writer_is_refused_with_exit_code_three_and_a_reader_is_not() {
    let folder = tempfile::tempdir().expect("folder");
    let held = ShareLog::open(settings(folder.path(), 1)).expect("open");
    let second = ShareLog::open(settings(folder.path(), 2)).map(|_| ()).expect_err("locked");
    assert!(matches!(second, LogError::Locked { .. }), "{second}");
    assert_eq!(second.exit_code(), 3);
    assert_eq!(nonces(folder.path()), []);
    // Somebody takes the file for a stale one.
    std::fs::remove_file(folder.path().join("LOCK")).expect("it is there");
    let third = ShareLog::open(settings(folder.path(), 2)).map(|_| ()).expect_err("locked all the same");
    assert!(matches!(third, LogError::Locked { .. }), "{third}");
    drop(held);
    ShareLog::open(settings(folder.path(), 3)).expect("free again");
}

#[test]
fn time_never_goes_back_within_a_journal() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut journal, _sealer, ..) = ShareLog::open(settings(folder.path(), 1)).expect("open");
    let at = |nonce: u32, arrival_us: u64| ShareRow { arrival_us, ..row(nonce) };
    journal.append(&[], &[at(0, 50), at(1, 40), at(2, 60)]).expect("room");
    journal.append(&[], &[at(3, 10), at(4, 70)]).expect("room");
    journal.append(&[], &[at(5, 71)]).expect("room");
    let times: Vec<_> =
        otedama_sharelog::scan::rows(folder.path(), Default::default()).expect("scan").map(|row| row.expect("row").arrival_us).collect();
    assert_eq!(times, [50, 50, 60, 60, 70, 71]);
}

#[test]
fn a_segment_never_crosses_a_utc_day_nor_a_run() {
    let folder = tempfile::tempdir().expect("folder");
    const MIDNIGHT_US: u64 = 1_795_305_600_000_000;
    let (mut journal, mut sealer, ..) = ShareLog::open(settings(folder.path(), 1)).expect("open");
    let rows: Vec<_> = (0..10).map(|index| ShareRow { arrival_us: MIDNIGHT_US - 3 + u64::from(index), ..row(index) }).collect();
    journal.append(&[], &rows).expect("room");
    journal.append(&[], &[ShareRow { arrival_us: MIDNIGHT_US + 86_400_000_000, ..row(10) }]).expect("room");
    drop(journal);
    sealer.drain(NOON_US).expect("drain");
    drop(sealer);
    let (mut journal, mut sealer, ..) = ShareLog::open(settings(folder.path(), 2)).expect("open");
    journal.append(&[], &[ShareRow { arrival_us: MIDNIGHT_US + 86_400_000_000, ..row(11) }]).expect("room");
    drop(journal);
    sealer.drain(NOON_US).expect("drain");
    let metas = SegmentStore::open(folder.path()).expect("store").segments().expect("segments");
    assert_eq!(metas.iter().map(|meta| meta.rows).collect::<Vec<_>>(), [3, 7, 1, 1]);
    assert_eq!(metas[0].last_us, MIDNIGHT_US - 1);
    assert_eq!(metas[1].first_us, MIDNIGHT_US);
}

#[test]
fn files_are_recycled_and_what_an_earlier_use_left_is_not_read() {
    let folder = tempfile::tempdir().expect("folder");
    let settings = settings(folder.path(), 1);
    let (mut journal, mut sealer, registry, _) = ShareLog::open(settings.clone()).expect("open");
    begin(&settings, &registry, &mut journal);
    // 256 KiB are 4096 cells: 40,000 rows go through every file more than once. Batches of odd sizes leave stale commits at every kind of place.
    let mut next = 0;
    while next < 40_000 {
        let size = 1 + next % 37;
        let rows: Vec<_> = (next..next + size).map(row).collect();
        settle(&mut sealer, NOON_US);
        journal.append(&[], &rows).expect("room");
        next += size;
    }
    let files = std::fs::read_dir(folder.path())
        .expect("list")
        .filter(|entry| entry.as_ref().expect("entry").path().extension().is_some_and(|e| e == "open"));
    assert!(files.count() <= 5, "files are used again");
    let wanted: Vec<_> = (0..next).map(|nonce| (settings.run.prefix(), nonce)).collect();
    assert_eq!(nonces(folder.path()), wanted);
    // A crash here: the copy has a half-filled recycled file with older rows behind its end.
    let crashed = tempfile::tempdir().expect("folder");
    copy(folder.path(), crashed.path());
    let (_journal, mut sealer, _, counters) = ShareLog::open(support::settings(crashed.path(), 2)).expect("recover");
    sealer.drain(NOON_US).expect("drain");
    assert_eq!(nonces(crashed.path()), wanted);
    assert_eq!(counters.journals_damaged.load(Relaxed), 0);
}

#[test]
fn a_journal_without_room_refuses_and_takes_again_when_the_sealer_ran() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut journal, mut sealer, ..) = ShareLog::open(settings(folder.path(), 1)).expect("open");
    let rows: Vec<_> = (0..512).map(row).collect();
    let mut appended = 0u64;
    while journal.room_cells() >= rows.len() {
        journal.append(&[], &rows).expect("room_cells said so");
        appended += 512;
    }
    assert_eq!(appended, 512 * 7, "one file of 4096 cells");
    assert_eq!(journal.append(&[], &rows), Err(otedama_sharelog::JournalFull));
    settle(&mut sealer, NOON_US);
    journal.append(&[], &rows).expect("a spare has come");
    assert_eq!(journal.rows_appended(), appended + 512);
}

#[test]
fn readers_beside_a_writer_see_every_row_up_to_some_moment_and_no_problem() {
    let folder = tempfile::tempdir().expect("folder");
    let settings = otedama_sharelog::LogSettings { segment_rows: 700, journal_file_bytes: 128 << 10, ..settings(folder.path(), 1) };
    let (mut journal, mut sealer, registry, _) = ShareLog::open(settings.clone()).expect("open");
    begin(&settings, &registry, &mut journal);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer_stop = stop.clone();
    let writer = std::thread::spawn(move || {
        let (mut next, mut session_counter) = (0u32, 1u32);
        while !writer_stop.load(Relaxed) {
            session_counter += 1;
            let rows: Vec<_> = (next..next + 300).map(|nonce| ShareRow { session: session_counter, ..row(nonce) }).collect();
            while journal.append(&[session(session_counter)], &rows).is_err() {
                sealer.step(NOON_US).expect("step");
            }
            next += 300;
            sealer.step(NOON_US).expect("step");
        }
        next
    });
    let mut last = 0;
    for _ in 0..40 {
        assert_eq!(otedama_sharelog::verify::verify(folder.path(), None).expect("verify").problems, Vec::<String>::new());
        let seen = nonces(folder.path());
        assert!(seen.iter().map(|(_, nonce)| *nonce).eq(0..seen.len() as u32), "a reader sees rows 0..n, each once");
        assert!(seen.len() >= last, "and never fewer than before");
        last = seen.len();
        if last > 300_000 {
            break;
        }
    }
    stop.store(true, Relaxed);
    let appended = writer.join().expect("writer");
    assert_eq!(nonces(folder.path()).len(), appended as usize);
}

#[test]
fn a_dimension_record_that_a_power_cut_took_a_part_of_is_cut_and_damage_with_records_behind_it_stays() {
    let folder = tempfile::tempdir().expect("folder");
    let settings = settings(folder.path(), 1);
    let path = folder.path().join("dimensions.log");
    let (journal, _, registry, _) = ShareLog::open(settings.clone()).expect("open");
    registry.run(&run_record(settings.run)).expect("run");
    registry.job(&job(settings.run, 1)).expect("job");
    let sound = std::fs::read(&path).expect("read");
    registry.job(&job(settings.run, 2)).expect("job");
    drop((journal, registry));
    // The size is that of the last write, its second half never came.
    let mut torn = std::fs::read(&path).expect("read");
    let half = sound.len() + (torn.len() - sound.len()) / 2;
    torn[half..].fill(0);
    std::fs::write(&path, &torn).expect("write");
    drop(ShareLog::open(support::settings(folder.path(), 2)).expect("open"));
    assert_eq!(std::fs::read(&path).expect("read"), sound);
    assert_eq!(otedama_sharelog::verify::verify(folder.path(), None).expect("verify").problems, Vec::<String>::new());
    // A flipped byte in the first record: the second stands behind it, so nothing is cut, and verify tells.
    let mut damaged = sound.clone();
    damaged[60] ^= 1;
    std::fs::write(&path, &damaged).expect("write");
    drop(ShareLog::open(support::settings(folder.path(), 3)).expect("open"));
    assert_eq!(std::fs::read(&path).expect("read"), damaged);
    assert!(!otedama_sharelog::verify::verify(folder.path(), None).expect("verify").is_clean());
}
