//! `otedama shares` against the slow, obvious answer: the same sums for any keys, filter and number of threads, and no sum of a segment that is not what its meta says.
mod support;

use otedama_primitives::{ShareRow, ShareStatus};
use otedama_sharelog::scan::{Filter, rows};
use otedama_sharelog::shares::{Key, Table, group_on};
use otedama_sharelog::store::SegmentStore;
use otedama_sharelog::{LoggedRow, ShareLog};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;
use support::{NOON_US, begin, row, settings, settle};

/// Sums by the texts of the keys.
type Sums = BTreeMap<Vec<String>, (u64, u128, u128)>;

fn sums_of(table: &Table) -> Sums {
    let sums: Sums = table.rows.iter().map(|row| (row.keys.clone(), (row.shares, row.work, row.credited))).collect();
    assert_eq!(sums.len(), table.rows.len(), "a group stands once");
    sums
}

fn text(key: Key, row: &LoggedRow) -> String {
    let second = row.arrival_us / 1_000_000;
    let (day, of_day) = (second / 86_400, second % 86_400);
    // The rows of these tests are of three days.
    let date = format!("2026-11-{:02}", 21 + day - NOON_US / 86_400_000_000);
    match key {
        Key::Worker if row.worker == 0 => "(unauthorized)".to_owned(),
        Key::Worker => format!("{:016x}", row.worker),
        Key::Minute => format!("{date}T{:02}:{:02}:00Z", of_day / 3600, of_day / 60 % 60),
        Key::Hour => format!("{date}T{:02}:00:00Z", of_day / 3600),
        Key::Day => date,
        Key::Status => ShareStatus::from_u8(row.status).expect("known").label().to_owned(),
        Key::Session => format!("{:016x}", row.session),
        Key::Job => format!("{:016x}", row.job),
        Key::Coin => "bitcoin".to_owned(),
    }
}

fn slowly(dir: &Path, keys: &[Key], filter: &Filter) -> Sums {
    let mut sums = Sums::new();
    for row in rows(dir, Filter::default()).expect("rows").map(|row| row.expect("sound")).filter(|row| filter.takes(row)) {
        let sum = sums.entry(keys.iter().map(|&key| text(key, &row)).collect()).or_default();
        sum.0 += 1;
        sum.1 += u128::from(row.work);
        sum.2 += if row.status == 0 { u128::from(row.work) } else { 0 };
    }
    sums
}

/// Steps between rows that fall before, on and behind the edges of minutes, hours and days.
fn step() -> impl Strategy<Value = u64> {
    prop_oneof![6 => Just(0), 6 => 1..1000_u64, 2 => 59_999_998..60_000_003_u64, 1 => 3_599_999_999..3_600_000_002_u64]
}

fn share() -> impl Strategy<Value = (u64, u64, u32, u32, u8)> {
    let work = prop_oneof![Just(0), Just(1), Just(u64::MAX), any::<u64>()];
    let worker = prop_oneof![Just(0), Just(1), Just(u64::MAX), 2..6_u64];
    (worker, work, 0..3_u32, 0..3_u32, 0..9_u8)
}

fn keys() -> impl Strategy<Value = Vec<Key>> {
    proptest::sample::subsequence(Key::ALL.to_vec(), 0..=8).prop_shuffle()
}

fn filter() -> impl Strategy<Value = (Option<u64>, Option<u64>, Option<u8>)> {
    (prop::option::of(0..1_u64 << 34), prop::option::of(0..1_u64 << 34), prop::option::weighted(0.3, 0..9_u8))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn sums_are_those_of_adding_row_by_row(
        shares in prop::collection::vec((step(), share()), 1..200),
        keys in keys(),
        (since, until, status) in filter(),
        segment_rows in 1..64_u32,
        sealed in any::<bool>(),
        threads in 1..4_usize,
    ) {
        let folder = tempfile::tempdir().expect("folder");
        let settings = otedama_sharelog::LogSettings { segment_rows, ..settings(folder.path(), 1) };
        let (mut journal, mut sealer, registry, _) = ShareLog::open(settings.clone()).expect("open");
        begin(&settings, &registry, &mut journal);
        // Up to two days behind eight in the morning.
        let mut arrival_us = NOON_US;
        let mut appended: Vec<ShareRow> = Vec::new();
        for (step, (worker, work, session, job, status)) in shares {
            arrival_us = (arrival_us + step).min(NOON_US + 47 * 3_600_000_000);
            appended.push(ShareRow { arrival_us, worker, work, session, job, status, ..row(1) });
        }
        for batch in appended.chunks(17) {
            journal.append(&[], batch).expect("room");
            while sealer.step(NOON_US).expect("step") == otedama_sharelog::SealStep::Worked {}
        }
        if sealed {
            sealer.drain(NOON_US).expect("drain");
        }
        let filter = Filter {
            since_us: since.map(|us| NOON_US + us),
            until_us: until.map(|us| NOON_US + us),
            status: status.and_then(ShareStatus::from_u8),
        };
        let table = group_on(folder.path(), &keys, &filter, threads).expect("group");
        prop_assert_eq!(&table.damaged, &Vec::<String>::new());
        prop_assert_eq!(sums_of(&table), slowly(folder.path(), &keys, &filter));
    }
}

/// A stretch of rows in which everything but workers, work and status stays as it is, and the step of time before it.
fn stretch() -> impl Strategy<Value = (u64, usize, u32, u32)> {
    let rows = prop_oneof![1..4_usize, 62..67_usize, 200..900_usize];
    (step(), rows, 0..3_u32, 0..3_u32)
}

/// Distinct numbers in no order.
fn mixed(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23).wrapping_mul(0xa076_1d64_78bd_642f)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn sums_over_long_stretches_of_equal_keys_are_those_of_adding_row_by_row(
        stretches in prop::collection::vec(stretch(), 1..8),
        keys in keys(),
        few in proptest::sample::subsequence(Key::ALL.to_vec(), 0..=3).prop_shuffle(),
        (since, until, status) in filter(),
        workers in prop_oneof![Just(1), Just(3), Just(5000_u64)],
        refused in prop_oneof![Just(0), Just(2), Just(9_u64)],
        segment_rows in prop_oneof![60..70_u32, 300..4000_u32],
        seed in any::<u64>(),
    ) {
        let folder = tempfile::tempdir().expect("folder");
        let settings = otedama_sharelog::LogSettings { segment_rows, journal_file_bytes: 4 << 20, ..settings(folder.path(), 1) };
        let (mut journal, mut sealer, registry, _) = ShareLog::open(settings.clone()).expect("open");
        begin(&settings, &registry, &mut journal);
        let mut arrival_us = NOON_US;
        let mut number = seed;
        for (step, count, session, job) in stretches {
            arrival_us = (arrival_us + step).min(NOON_US + 47 * 3_600_000_000);
            let rows: Vec<ShareRow> = (0..count)
                .map(|_| {
                    number = number.wrapping_add(1);
                    let (one, two) = (mixed(number), mixed(number ^ seed.rotate_left(32)));
                    let work = if one % 3 == 0 { u64::MAX - one % 2 } else { one };
                    let status = if two % 8 < refused { (two >> 8) % 9 } else { 0 } as u8;
                    ShareRow { arrival_us, worker: mixed(one % workers), work, session, job, status, ..row(1) }
                })
                .collect();
            for batch in rows.chunks(256) {
                journal.append(&[], batch).expect("room");
                while sealer.step(NOON_US).expect("step") == otedama_sharelog::SealStep::Worked {}
            }
        }
        sealer.drain(NOON_US).expect("drain");
        let limited = Filter {
            since_us: since.map(|us| NOON_US + us),
            until_us: until.map(|us| NOON_US + us),
            status: status.and_then(ShareStatus::from_u8),
        };
        for keys in [keys, few, vec![Key::Worker, Key::Minute, Key::Status], vec![Key::Status]] {
            for filter in [Filter::default(), limited] {
                let table = group_on(folder.path(), &keys, &filter, 2).expect("group");
                prop_assert_eq!(&table.damaged, &Vec::<String>::new());
                // Not prop_assert_eq: nobody reads 5,000 groups.
                prop_assert!(sums_of(&table) == slowly(folder.path(), &keys, &filter), "{:?} {:?}", keys, filter);
            }
        }
    }
}

/// More rows than are read at a time, in several segments, with more groups than a fresh table has room for.
#[test]
fn many_rows_and_groups_are_summed_on_any_number_of_threads() {
    let folder = tempfile::tempdir().expect("folder");
    let settings = otedama_sharelog::LogSettings { segment_rows: 20_000, journal_file_bytes: 4 << 20, ..settings(folder.path(), 1) };
    let (mut journal, mut sealer, registry, _) = ShareLog::open(settings.clone()).expect("open");
    begin(&settings, &registry, &mut journal);
    for batch in 0..120_u32 {
        let rows: Vec<_> = (0..512)
            .map(|index| batch * 512 + index)
            .map(|number| ShareRow { worker: 1000 + u64::from(number % 7001), ..row(number) })
            .collect();
        journal.append(&[], &rows).expect("room");
        while sealer.step(NOON_US).expect("step") == otedama_sharelog::SealStep::Worked {}
    }
    sealer.drain(NOON_US).expect("drain");
    let keys = [Key::Worker, Key::Status];
    let one = group_on(folder.path(), &keys, &Filter::default(), 1).expect("group");
    // Not assert_eq: nobody reads 60,000 groups.
    assert!(sums_of(&one) == slowly(folder.path(), &keys, &Filter::default()), "the sums differ");
    assert!(one.rows.len() > 7000, "{}", one.rows.len());
    for threads in [2, 3, 64] {
        assert!(group_on(folder.path(), &keys, &Filter::default(), threads).expect("group") == one, "{threads} threads");
    }
}

#[test]
fn a_segment_that_is_not_what_its_meta_says_is_named_and_left_out() {
    let folder = tempfile::tempdir().expect("folder");
    let settings = settings(folder.path(), 1);
    let (mut journal, mut sealer, registry, _) = ShareLog::open(settings.clone()).expect("open");
    begin(&settings, &registry, &mut journal);
    for batch in 0..6_u32 {
        let rows: Vec<_> = (batch * 500..(batch + 1) * 500).map(row).collect();
        journal.append(&[], &rows).expect("room");
        while sealer.step(NOON_US).expect("step") == otedama_sharelog::SealStep::Worked {}
    }
    sealer.drain(NOON_US).expect("drain");
    let store = SegmentStore::open(folder.path()).expect("store");
    let metas = store.segments().expect("segments");
    assert_eq!(metas.len(), 3);
    let sound = group_on(folder.path(), &[Key::Minute], &Filter::default(), 1).expect("group");
    assert_eq!((sound.rows.iter().map(|row| row.shares).sum::<u64>(), sound.damaged.len()), (3000, 0));

    let path = store.native_path(&metas[1]);
    let whole = std::fs::read(&path).expect("read");
    let of_work = whole.windows(10).position(|bytes| bytes == b"work\x06UInt6").expect("the column") + 12;
    let of_status = whole.windows(11).position(|bytes| bytes == b"'overload' ").expect("its type") + "'overload' = 8)".len();
    let cases: [(&str, Vec<u8>); 6] = [
        ("a status that is another", whole.iter().enumerate().map(|(at, byte)| if at == of_status + 700 { 6 } else { *byte }).collect()),
        ("a status that is none", whole.iter().enumerate().map(|(at, byte)| if at == of_status + 700 { 200 } else { *byte }).collect()),
        ("a flipped bit of work", whole.iter().enumerate().map(|(at, byte)| byte ^ u8::from(at == of_work + 4000)).collect()),
        ("a cut file", whole[..whole.len() - 1].to_vec()),
        ("a flipped bit of a header", whole.iter().enumerate().map(|(at, byte)| byte ^ u8::from(at == 4)).collect()),
        ("nothing", Vec::new()),
    ];
    for (what, bytes) in cases {
        std::fs::write(&path, bytes).expect("write");
        for (threads, key) in [(1, Key::Minute), (2, Key::Minute), (1, Key::Worker), (2, Key::Status)] {
            let table = group_on(folder.path(), &[key], &Filter::default(), threads).expect("group");
            assert_eq!(table.rows.iter().map(|row| row.shares).sum::<u64>(), 2000, "{what}");
            assert_eq!(table.damaged.len(), 1, "{what}");
            assert!(table.damaged[0].contains(&metas[1].name), "{what}: {}", table.damaged[0]);
        }
    }
    std::fs::write(&path, &whole).expect("write");
    assert_eq!(group_on(folder.path(), &[Key::Minute], &Filter::default(), 2).expect("group"), sound);
}

#[test]
fn a_segment_with_a_damaged_meta_is_named_and_left_out_by_every_reader_whose_range_it_may_be_in() {
    let folder = tempfile::tempdir().expect("folder");
    let settings = otedama_sharelog::LogSettings { segment_rows: 500, journal_file_bytes: 128 << 10, ..settings(folder.path(), 1) };
    let (mut journal, mut sealer, registry, _) = ShareLog::open(settings.clone()).expect("open");
    begin(&settings, &registry, &mut journal);
    for batch in 0..5_u32 {
        journal.append(&[], &(batch * 500..(batch + 1) * 500).map(row).collect::<Vec<_>>()).expect("room");
        settle(&mut sealer, NOON_US);
    }
    sealer.drain(NOON_US).expect("drain");
    let store = SegmentStore::open(folder.path()).expect("store");
    let metas = store.segments().expect("segments");
    let meta_path = |index: usize| store.native_path(&metas[index]).with_extension("meta");
    let sound = std::fs::read(meta_path(2)).expect("read");
    let seen = |filter: &Filter| {
        let table = group_on(folder.path(), &[Key::Minute], filter, 2).expect("group");
        let (mut scanned, mut errors) = (0, Vec::new());
        for row in rows(folder.path(), *filter).expect("scan") {
            match row {
                Ok(_) => scanned += 1,
                Err(error) => errors.push(error.to_string()),
            }
        }
        assert_eq!((table.rows.iter().map(|row| row.shares).sum::<u64>(), &table.damaged), (scanned, &errors));
        (scanned, errors)
    };
    for (what, bytes) in [("cut", Some(&sound[..sound.len() - 1])), ("flipped", Some(&b"{}"[..])), ("gone", None)] {
        match bytes {
            Some(bytes) => std::fs::write(meta_path(2), bytes).expect("write"),
            None => std::fs::remove_file(meta_path(2)).expect("remove"),
        }
        let (scanned, errors) = seen(&Filter::default());
        assert_eq!(scanned, 2000, "{what}");
        assert!(errors.len() == 1 && errors[0].contains(&metas[2].name), "{what}: {errors:?}");
        // What cannot be in it is answered without a word.
        let later = Filter { since_us: Some(metas[3].first_us + 1), ..Filter::default() };
        assert_eq!(seen(&later), (999, Vec::new()), "{what}");
        let earlier = Filter { until_us: Some(metas[1].last_us), ..Filter::default() };
        assert_eq!(seen(&earlier), (999, Vec::new()), "{what}");
        let within = Filter { since_us: Some(metas[2].first_us), until_us: Some(metas[2].last_us), ..Filter::default() };
        assert!(seen(&within).1.len() == 1, "{what}");
        // Who follows the log stops there.
        assert!(store.segments_after(1).is_err_and(|error| error.to_string().contains(&metas[2].name)), "{what}");
        assert!(!otedama_sharelog::verify::verify(folder.path(), None).expect("verify").is_clean());
    }
    std::fs::write(meta_path(2), &sound).expect("restore");
    // The newest one: nothing comes behind it.
    std::fs::write(meta_path(4), b"").expect("write");
    assert_eq!(seen(&Filter { since_us: Some(metas[4].first_us), ..Filter::default() }).1.len(), 1);
    assert_eq!(seen(&Filter { until_us: Some(metas[3].last_us), ..Filter::default() }), (1999, Vec::new()));
}
