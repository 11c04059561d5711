//! Logs that are as the pool writes them replay identical; one changed field of one row is found, and named.
mod day;

use day::{DAY_US, Made, Plan, make};
use otedama_kernels::Isa;
use otedama_primitives::{ShareStatus, flags};
use otedama_replay::{Kind, Order, Report, Unjudged, replay};
use otedama_sharelog::scan::{self, Filter};
use otedama_sharelog::store::SegmentStore;
use otedama_sharelog::{COLUMNS, Layout, LoggedRow, SegmentBlock, SegmentMeta};
use std::collections::HashMap;
use std::path::Path;

fn order(dir: &Path) -> Order {
    Order { dir: dir.to_path_buf(), since_us: None, until_us: None, threads: 1, isa: Isa::choose("auto").expect("a kernel") }
}

fn run(order: &Order) -> Report {
    replay(order).expect("the folder is there")
}

/// A day with everything in it: boots after kills, small segments, rows that no segment has.
fn written(rows: u64) -> (tempfile::TempDir, Plan, Made) {
    let folder = tempfile::tempdir().expect("a folder");
    let plan = Plan {
        segment_rows: 3000,
        journal_file_bytes: 256 << 10,
        kills: 3,
        ends_killed: true,
        odd_of_a_million: 150_000,
        ..Plan::new(folder.path(), rows)
    };
    let made = make(&plan).expect("written");
    (folder, plan, made)
}

fn copy(from: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(from).expect("list") {
        let entry = entry.expect("entry");
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).expect("copy");
    }
    folder
}

fn reason(report: &Report, reason: Unjudged) -> u64 {
    report.unjudged[reason as usize]
}

#[test]
fn a_log_of_several_boots_replays_identical_by_every_kernel_and_number_of_threads() {
    let (folder, _, made) = written(24_000);
    assert!(made.by_status.iter().all(|&rows| rows > 0), "every status has rows: {made:?}");
    assert!(made.blocks > 0);
    let first = run(&order(folder.path()));
    assert!(first.is_identical(), "{}", first.to_text());
    assert_eq!(first.rows, made.rows);
    assert_eq!(first.judged + first.unjudged_rows(), made.rows);
    for status in [ShareStatus::Accepted, ShareStatus::Duplicate, ShareStatus::LowDifficulty, ShareStatus::BadTime, ShareStatus::BadVersion]
    {
        assert_eq!(first.judged_by_status[status as usize], made.by_status[status as usize], "{}", status.label());
    }
    for (status, why) in [
        (ShareStatus::Malformed, Unjudged::Malformed),
        (ShareStatus::Unauthorized, Unjudged::Unauthorized),
        (ShareStatus::Overload, Unjudged::Overload),
    ] {
        assert_eq!(reason(&first, why), made.by_status[status as usize]);
    }
    let stale = first.judged_by_status[ShareStatus::Stale as usize];
    assert!(stale > 0 && reason(&first, Unjudged::StaleJobUnknown) > 0);
    let unknown = reason(&first, Unjudged::StaleJobUnknown) + reason(&first, Unjudged::StaleEndUnrecorded);
    assert_eq!(stale + unknown, made.by_status[ShareStatus::Stale as usize]);
    assert_eq!((first.work_credited, first.block_candidates), (made.work_credited, made.blocks));
    assert_eq!(
        reason(&first, Unjudged::MaskUnrecorded) + reason(&first, Unjudged::OriginalGone) + reason(&first, Unjudged::StatusUnknown),
        0
    );

    for isa in Isa::available() {
        for threads in [1, 2, 5] {
            let again = run(&Order { threads, isa, ..order(folder.path()) });
            assert_eq!(again.to_text(), first.to_text(), "{isa:?} with {threads} threads");
        }
    }
}

#[test]
fn ranges_add_up_to_the_whole_and_know_originals_that_lie_before_them() {
    let (folder, _, made) = written(12_000);
    let whole = run(&order(folder.path()));
    let mut cuts = vec![None];
    cuts.extend((1..24).map(|hour| Some(DAY_US + hour * 3_600_000_000 + 123_456)));
    cuts.push(None);
    let (mut rows, mut judged, mut credited) = (0, 0, 0);
    for pair in cuts.windows(2) {
        let part = run(&Order { since_us: pair[0], until_us: pair[1], ..order(folder.path()) });
        assert!(part.is_identical(), "{}", part.to_text());
        (rows, judged, credited) = (rows + part.rows, judged + part.judged, credited + part.work_credited);
    }
    assert_eq!((rows, judged, credited), (made.rows, whole.judged, made.work_credited));
}

/// Bytes of a column in a `.native` file, by the segment's own header.
fn place_of(bytes: &[u8], column: &str, row: usize) -> std::ops::Range<usize> {
    let mut at = 0;
    let varint = |at: &mut usize| {
        let (mut value, mut shift) = (0usize, 0);
        loop {
            let byte = bytes[*at];
            *at += 1;
            value |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    };
    let columns = varint(&mut at);
    let rows = varint(&mut at);
    let layout = if columns == Layout::Full.columns().len() { Layout::Full } else { Layout::Replayable };
    for &index in layout.columns() {
        let (name, _, width) = COLUMNS[index];
        for _ in 0..2 {
            let length = varint(&mut at);
            at += length;
        }
        if name == column {
            return at + row * width..at + (row + 1) * width;
        }
        at += rows * width;
    }
    panic!("no column {column}");
}

/// Puts a value into a row of a sealed segment, checksums and all.
fn forge(dir: &Path, row: &LoggedRow, column: &str, value: &[u8]) {
    let store = SegmentStore::open(dir).expect("open");
    let meta: SegmentMeta = store.segments().expect("segments").into_iter().find(|meta| meta.seg == row.seg).expect("its segment");
    let path = store.native_path(&meta);
    let mut bytes = std::fs::read(&path).expect("read");
    let mut arrivals = Vec::new();
    SegmentBlock::parse(&bytes).expect("a block").arrivals(&mut arrivals);
    let place = place_of(&bytes, column, arrivals[row.seq as usize] as usize);
    assert_ne!(&bytes[place.clone()], value, "{column} is changed");
    bytes[place].copy_from_slice(value);
    std::fs::write(&path, &bytes).expect("write");
    let path = path.with_extension("meta");
    let text = std::fs::read_to_string(&path).expect("read");
    let json = text.lines().next().expect("a line of JSON");
    let json = format!("{}\n", json.replace(&format!("\"crc32c\":{}", meta.crc32c), &format!("\"crc32c\":{}", crc32c::crc32c(&bytes))));
    std::fs::write(&path, format!("{json}crc32c {:08x}\n", crc32c::crc32c(json.as_bytes()))).expect("write");
}

#[test]
fn one_changed_field_of_one_row_is_found_and_named() {
    let (folder, _, _) = written(6000);
    let rows: Vec<LoggedRow> = scan::rows(folder.path(), Filter::default()).expect("scan").collect::<Result<_, _>>().expect("a sound log");
    let mut shares: HashMap<_, u32> = HashMap::new();
    let key = |row: &LoggedRow| (row.job, row.session, row.extranonce2, row.nonce, row.ntime, row.version);
    rows.iter().for_each(|row| *shares.entry(key(row)).or_default() += 1);
    // Sent once: what becomes of an original changes its duplicates, too.
    let of = |status: ShareStatus, fits: &dyn Fn(&LoggedRow) -> bool| {
        let mut candidates = rows.iter().filter(|row| {
            row.seg != 0 && row.status == status as u8 && (shares[&key(row)] == 1) == (status != ShareStatus::Duplicate) && fits(row)
        });
        *candidates.nth(3).unwrap_or_else(|| panic!("some rows of status {}", status.label()))
    };
    let hard = of(ShareStatus::Accepted, &|row| row.work > 1 && row.flags & flags::BLOCK == 0);
    let easy = of(ShareStatus::Accepted, &|row| row.work == 1 && row.flags & flags::BLOCK == 0);
    let block = {
        let mut blocks = rows.iter().filter(|row| row.seg != 0 && row.flags & flags::BLOCK != 0 && shares[&key(row)] == 1);
        *blocks.next().expect("a block")
    };
    let low = of(ShareStatus::LowDifficulty, &|_| true);
    let twin = of(ShareStatus::Duplicate, &|_| true);
    let bad_time = of(ShareStatus::BadTime, &|_| true);
    let bad_version = of(ShareStatus::BadVersion, &|_| true);
    let other_session =
        rows.iter().find(|row| row.session >> 32 == easy.session >> 32 && row.session != easy.session).expect("another").session;
    let status = |status: ShareStatus| vec![status as u8];
    let number = |number: u32| number.to_le_bytes().to_vec();
    let long = |number: u64| number.to_le_bytes().to_vec();
    let bits = |number: f32| number.to_le_bytes().to_vec();

    let mut forgeries = vec![
        (&hard, "share_difficulty", bits(f32::from_bits(hard.share_difficulty.to_bits() ^ 1)), Kind::ShareDifficulty),
        (&low, "share_difficulty", bits(f32::from_bits(low.share_difficulty.to_bits() + 1)), Kind::ShareDifficulty),
        (&bad_time, "share_difficulty", bits(1.0), Kind::ShareDifficulty),
        (&twin, "share_difficulty", bits(f32::MAX), Kind::ShareDifficulty),
        (&hard, "flags", vec![hard.flags | flags::BLOCK], Kind::BlockFlag),
        (&low, "flags", vec![low.flags | flags::BLOCK], Kind::BlockFlag),
        (&twin, "flags", vec![twin.flags | flags::BLOCK], Kind::BlockFlag),
        (&block, "flags", vec![block.flags & !flags::BLOCK], Kind::BlockFlag),
        (&easy, "nonce", number(easy.nonce ^ 0x8000_0000), Kind::ShareDifficulty),
        (&easy, "ntime", number(easy.ntime - 1), Kind::ShareDifficulty),
        (&easy, "extranonce2", long(easy.extranonce2 ^ 1 << 40), Kind::ShareDifficulty),
        (&easy, "session", long(other_session), Kind::ShareDifficulty),
        (&easy, "ntime", number(0), Kind::Status),
        (&easy, "ntime", number(u32::MAX), Kind::Status),
        (&easy, "version", number(easy.version ^ 1), Kind::Status),
        (&easy, "worker", long(0), Kind::Status),
        (&easy, "job", long(easy.job ^ 1 << 20), Kind::Unresolved),
        (&easy, "job", long(0), Kind::Unresolved),
        (&easy, "session", long(0), Kind::Unresolved),
        (&easy, "work", long(0), Kind::Work),
        (&easy, "work", long(u64::MAX), Kind::Status),
        (&block, "work", long(u64::MAX), Kind::Work),
        (&low, "work", long(1), Kind::Status),
        (&twin, "nonce", number(twin.nonce ^ 0x8000_0000), Kind::Status),
        (&bad_time, "ntime", number(hard.ntime), Kind::Status),
        (&bad_version, "version", number(0), Kind::Status),
    ];
    for row in [&hard, &easy, &low, &twin, &bad_time, &bad_version] {
        for other in
            [ShareStatus::Accepted, ShareStatus::Duplicate, ShareStatus::LowDifficulty, ShareStatus::BadTime, ShareStatus::BadVersion]
        {
            // A row of bad_version has the bits as they were sent, and a miner may send the job's whole version: only that nothing was hashed tells, and of a
            // duplicate nothing was.
            let kind = match other {
                ShareStatus::BadVersion if row.share_difficulty == 0.0 && row.status != ShareStatus::BadTime as u8 => continue,
                ShareStatus::BadVersion if row.status != ShareStatus::BadTime as u8 => Kind::ShareDifficulty,
                _ => Kind::Status,
            };
            if other as u8 != row.status {
                forgeries.push((row, "status", status(other), kind));
            }
        }
    }
    for (row, column, value, kind) in forgeries {
        // The window of a row of another hour says nothing of the changed one's.
        if column == "ntime" && row.status == ShareStatus::BadTime as u8 && row.job != hard.job {
            continue;
        }
        let forged = copy(folder.path());
        forge(forged.path(), row, column, &value);
        for threads in [1, 3] {
            let report = run(&Order { threads, ..order(forged.path()) });
            let told = format!("{column} = {value:?} of {row:?}\n{}", report.to_text());
            assert!(!report.is_identical(), "{told}");
            let first = report.first.as_ref().unwrap_or_else(|| panic!("{told}"));
            assert_eq!(
                (first.segment.as_str(), first.seq, first.kind),
                (otedama_sharelog::segment_name(row.seg).as_str(), row.seq, kind),
                "{told}"
            );
            assert_eq!((report.rows_different, report.problems.len()), (1, 0), "{told}");
            let place = rows.iter().position(|other| (other.seg, other.seq) == (row.seg, row.seq));
            assert_eq!(place, Some(first.row as usize), "{told}");
        }
    }
}

#[test]
fn hashes_of_layout_full_are_held_against_those_of_the_replay() {
    let folder = tempfile::tempdir().expect("a folder");
    let plan = Plan { layout: Layout::Full, odd_of_a_million: 100_000, ..Plan::new(folder.path(), 3000) };
    make(&plan).expect("written");
    let report = run(&order(folder.path()));
    assert!(report.is_identical(), "{}", report.to_text());
    let mut rows = scan::rows(folder.path(), Filter::default()).expect("scan").map(|row| row.expect("a sound log"));
    let row = rows.find(|row| row.status == ShareStatus::LowDifficulty as u8).expect("some are low");
    let mut hash = row.hash.0;
    hash.reverse();
    hash[31] ^= 1;
    forge(folder.path(), &row, "hash", &hash);
    let report = run(&order(folder.path()));
    let first = report.first.as_ref().expect("a difference");
    assert_eq!((first.kind, first.seq, report.rows_different), (Kind::Hash, row.seq, 1), "{}", report.to_text());
}

#[test]
fn rows_that_keep_less_are_counted_and_what_they_leave_is_judged() {
    for layout in [Layout::Lean, Layout::Rollup] {
        let folder = tempfile::tempdir().expect("a folder");
        let plan = Plan { layout, odd_of_a_million: 100_000, ends_killed: true, ..Plan::new(folder.path(), 6000) };
        let made = make(&plan).expect("written");
        let report = run(&Order { threads: 2, ..order(folder.path()) });
        assert!(report.is_identical(), "{layout:?}: {}", report.to_text());
        let kept = report.judged_by_status;
        // What no segment has is whole in the journal; of sums, refusals and candidates are, too.
        assert!(reason(&report, Unjudged::NotKept) > 0 && kept[ShareStatus::Accepted as usize] > 0, "{layout:?}: {}", report.to_text());
        assert!(kept[ShareStatus::Accepted as usize] < made.by_status[ShareStatus::Accepted as usize]);
        if layout == Layout::Rollup {
            assert_eq!(kept[ShareStatus::BadTime as usize], made.by_status[ShareStatus::BadTime as usize]);
            assert_eq!(report.block_candidates, made.blocks);
        }
    }
}

#[test]
fn without_recorded_masks_bad_versions_are_counted_and_everything_else_is_judged() {
    let folder = tempfile::tempdir().expect("a folder");
    let made = make(&Plan { without_masks: true, ..Plan::new(folder.path(), 4000) }).expect("written");
    let report = run(&order(folder.path()));
    assert!(report.is_identical(), "{}", report.to_text());
    assert_eq!(reason(&report, Unjudged::MaskUnrecorded), made.by_status[ShareStatus::BadVersion as usize]);
    assert!(reason(&report, Unjudged::MaskUnrecorded) > 0);
}

#[test]
fn what_retention_removed_is_no_difference() {
    let (folder, _, made) = written(6000);
    let store = SegmentStore::open(folder.path()).expect("open");
    let metas = store.segments().expect("segments");
    let (mut rows_gone, mut originals_gone) = (0, 0);
    for meta in &metas[..metas.len() - 1] {
        rows_gone += u64::from(meta.rows);
        std::fs::remove_file(store.native_path(meta)).expect("remove");
        std::fs::remove_file(store.native_path(meta).with_extension("meta")).expect("remove");
        let report = run(&order(folder.path()));
        assert!(report.is_identical(), "{}", report.to_text());
        assert_eq!(report.rows, made.rows - rows_gone);
        originals_gone += reason(&report, Unjudged::OriginalGone);
    }
    assert!(originals_gone > 0);
}

#[test]
fn damage_is_told_and_never_taken_for_a_difference_nor_a_panic() {
    let (folder, _, made) = written(12_000);
    let store = SegmentStore::open(folder.path()).expect("open");
    let metas = store.segments().expect("segments");
    let torn = copy(folder.path());
    let meta = &metas[metas.len() / 2];
    let path = SegmentStore::open(torn.path()).expect("open").native_path(meta);
    let bytes = std::fs::read(&path).expect("read");
    std::fs::write(&path, &bytes[..bytes.len() / 2]).expect("write");
    let report = run(&order(torn.path()));
    assert!(!report.is_identical());
    assert_eq!(
        (report.problems.len(), report.rows_different, report.rows),
        (1, 0, made.rows - u64::from(meta.rows)),
        "{}",
        report.to_text()
    );

    // Any byte of the records: what they resolved is unresolved, or damage, and nothing falls over.
    let dimensions = torn.path().join("dimensions.log");
    std::fs::write(&path, &bytes).expect("write");
    let sound = std::fs::read(&dimensions).expect("read");
    for step in 1..40 {
        let mut damaged = sound.clone();
        let at = (step * 7919 * 13) % damaged.len();
        damaged[at] ^= 0x20;
        std::fs::write(&dimensions, &damaged).expect("write");
        if let Ok(report) = replay(&order(torn.path())) {
            assert!(!report.is_identical(), "byte {at}");
        }
    }
}

#[test]
fn a_place_that_two_rows_claim_is_damage_and_nothing_is_said_of_an_order() {
    let (folder, _, _) = written(3000);
    let rows: Vec<LoggedRow> = scan::rows(folder.path(), Filter::default()).expect("scan").collect::<Result<_, _>>().expect("a sound log");
    let row = rows.iter().find(|row| row.seg != 0).expect("a sealed one");
    forge(folder.path(), row, "seq", &(row.seq + 1).to_le_bytes());
    let damaged: Vec<String> =
        scan::rows(folder.path(), Filter::default()).expect("scan").filter_map(|row| Some(row.err()?.to_string())).collect();
    assert!(matches!(damaged.as_slice(), [what] if what.contains("seq of its rows")), "{damaged:?}");
    let problems = otedama_sharelog::verify::verify(folder.path(), None).expect("verify").problems;
    assert!(problems.iter().any(|what| what.contains("seq of its rows")), "{problems:?}");
    assert!(!problems.iter().any(|what| what.contains("arrived before") || what.contains("another segment or place")), "{problems:?}");
}
