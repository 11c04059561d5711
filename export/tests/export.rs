//! What is exported is what the log has, row by row and bit by bit, read back by the format's own reader.
use otedama_export::{Column, ExportError, Format, Order, to_file, to_writer};
use otedama_primitives::{Dimension, RunId, SessionRecord, ShareRow, ShareStatus, WorkerId, WorkerRecord};
use otedama_sharelog::scan::{self, Filter};
use otedama_sharelog::{Journal, Layout, LogSettings, LoggedRow, SealStep, Sealer, ShareLog};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use proptest::prelude::*;
use std::fs::File;
use std::path::Path;

const START_US: u64 = 1_795_248_000_000_000;

/// A log with these rows: the first half of them sealed.
fn log(dir: &Path, rows: &[ShareRow]) -> (Journal, Sealer<otedama_sharelog::Disk>) {
    let settings = LogSettings {
        dir: dir.to_path_buf(),
        pool: "test".into(),
        run: RunId::new(3, 9),
        segment_rows: (rows.len() as u32 / 3).clamp(300, 100_000),
        seal_after_ms: 1000,
        max_bytes: 1 << 40,
        journal_file_bytes: 4 << 20,
        keep_ms: u64::MAX,
        keep_shipped_ms: 0,
        has_cursor: false,
        layout: Layout::Full,
        rolls_up_when_full: false,
    };
    let (mut journal, mut sealer, ..) = ShareLog::open(settings).expect("open");
    let session = SessionRecord {
        session: 1,
        extranonce1: 7,
        net: 0,
        extranonce2_bytes: 8,
        started_us: START_US,
        peer: "127.0.0.1:4000".into(),
        agent: "test/1".into(),
    };
    let named = |id: u64, name: &str| {
        Dimension::worker(&WorkerRecord { worker: WorkerId(id), seen_us: START_US, session: 1, name: name.into() }).expect("fits")
    };
    let records = [Dimension::session(&session).expect("fits"), named(77, "alice.rig1"), named(78, "comma,\u{fc}\"quote\"")];
    journal.append(&records, &[]).expect("room");
    let (sealed, open) = rows.split_at(rows.len() / 2);
    let append = |journal: &mut Journal, sealer: &mut Sealer<_>, batch: &[ShareRow]| {
        while journal.append(&[], batch).is_err() {
            sealer.step(START_US).expect("step");
        }
    };
    for batch in sealed.chunks(100) {
        append(&mut journal, &mut sealer, batch);
    }
    while sealer.step(START_US).expect("step") == SealStep::Worked {}
    if !sealed.is_empty() {
        while sealer.step(START_US + 3_600_000_000).expect("step") == SealStep::Worked {}
    }
    for batch in open.chunks(100) {
        append(&mut journal, &mut sealer, batch);
    }
    (journal, sealer)
}

fn order(dir: &Path, format: Format) -> Order {
    Order { dir: dir.to_path_buf(), filter: Filter::default(), columns: Column::ALL.to_vec(), format }
}

fn name(row: &LoggedRow) -> &'static str {
    match row.worker {
        77 => "alice.rig1",
        78 => "comma,\u{fc}\"quote\"",
        _ => "",
    }
}

/// The fields of a row as a reader of Parquet must see them.
fn fields(row: &LoggedRow) -> Vec<Field> {
    let status = ShareStatus::from_u8(row.status).expect("known").label();
    let mut work = vec![0];
    work.extend(row.work.to_be_bytes());
    vec![
        Field::TimestampMicros(row.arrival_us as i64),
        Field::UShort(row.instance),
        Field::ULong(row.seg),
        Field::UInt(row.seq),
        Field::ULong(row.session),
        Field::ULong(row.worker),
        Field::Str(name(row).into()),
        Field::ULong(row.job),
        Field::Str("bitcoin".into()),
        Field::Str(status.into()),
        Field::UByte(row.flags),
        Field::Decimal(parquet::data_type::Decimal::from_bytes(work.into(), 20, 0)),
        Field::Float(row.share_difficulty),
        Field::UInt(row.nonce),
        Field::UInt(row.ntime),
        Field::UInt(row.version),
        Field::ULong(row.extranonce2),
        Field::UInt(row.latency_us),
        Field::UInt(row.share_count),
        Field::Str(if row.hash == otedama_primitives::Hash256::default() { String::new() } else { row.hash.to_string() }),
    ]
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..3_u64, (u64::MAX - 2)..=u64::MAX, Just(1 << 63), any::<u64>()]
}

fn rows() -> impl Strategy<Value = Vec<ShareRow>> {
    let row = (number(), number(), number(), number(), prop_oneof![Just(0_u64), Just(77), Just(78), any::<u64>()], 0..9_u8, any::<u8>());
    prop::collection::vec(row, 0..700).prop_map(|numbers| {
        let rows = numbers.into_iter().enumerate().map(|(index, (work, extranonce2, a, b, worker, status, flags))| ShareRow {
            worker,
            work,
            extranonce2,
            arrival_us: START_US + index as u64 * 1_000,
            session: 1,
            job: 1 + (a >> 62) as u32,
            nonce: a as u32,
            ntime: (a >> 32) as u32,
            version: b as u32,
            share_difficulty: f32::from_bits((b >> 33) as u32 & 0x7f7f_ffff),
            latency_us: (b >> 32) as u32,
            status,
            flags,
            net: 0,
            coin: 0,
        });
        rows.collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    #[test]
    fn parquet_has_every_row_as_the_log_has_it(rows in rows()) {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = folder.path().join("log");
        // In use: the journal is open, and half of the rows are in no segment.
        let _open = log(&dir, &rows);
        let logged: Vec<LoggedRow> = scan::rows(&dir, Filter::default()).expect("scan").map(|row| row.expect("sound")).collect();
        prop_assert_eq!(logged.len(), rows.len());
        let path = folder.path().join("shares.parquet");
        let exported = to_file(&order(&dir, Format::Parquet), &path).expect("exported");
        prop_assert_eq!((exported.rows, exported.damaged.len()), (rows.len() as u64, 0));
        let reader = SerializedFileReader::new(File::open(&path).expect("open")).expect("Parquet");
        prop_assert_eq!(reader.metadata().file_metadata().num_rows(), rows.len() as i64);
        let mut read = 0;
        for (row, logged) in reader.get_row_iter(None).expect("rows").zip(&logged) {
            let row = row.expect("a row");
            let found: Vec<(String, Field)> = row.get_column_iter().map(|(name, field)| (name.clone(), field.clone())).collect();
            let wanted: Vec<(String, Field)> = Column::ALL.map(|column| column.name().to_owned()).into_iter().zip(fields(logged)).collect();
            prop_assert_eq!(found, wanted);
            read += 1;
        }
        prop_assert_eq!(read, rows.len());
    }

    #[test]
    fn csv_has_every_row_as_the_log_has_it(rows in rows()) {
        let folder = tempfile::tempdir().expect("a folder");
        let _open = log(folder.path(), &rows);
        let logged: Vec<LoggedRow> = scan::rows(folder.path(), Filter::default()).expect("scan").map(|row| row.expect("sound")).collect();
        let mut bytes = Vec::new();
        let columns = Column::of_the_log();
        to_writer(&Order { columns: columns.clone(), ..order(folder.path(), Format::Csv) }, &mut bytes).expect("exported");
        let text = String::from_utf8(bytes).expect("UTF-8");
        let mut lines = text.split("\r\n");
        let header: Vec<_> = columns.iter().map(|column| column.name()).collect();
        prop_assert_eq!(lines.next().expect("a header"), header.join(","));
        for row in &logged {
            let cells: Vec<&str> = lines.next().expect("a line").split(',').collect();
            prop_assert_eq!(cells.len(), columns.len());
            let cell = |name: &str| cells[header.iter().position(|column| *column == name).expect("a column")];
            prop_assert_eq!(cell("work").parse(), Ok(row.work));
            prop_assert_eq!(cell("share_difficulty").parse::<f32>().map(f32::to_bits), Ok(row.share_difficulty.to_bits()));
            prop_assert_eq!(otedama_sharelog::parse_moment(&cell("ts")[..19], 0), Ok(row.arrival_us / 1_000_000 * 1_000_000));
            prop_assert_eq!(cell("ts")[20..26].parse(), Ok(row.arrival_us % 1_000_000));
            let numbers = ["instance", "seg", "seq", "session", "worker", "job", "flags", "nonce", "ntime", "version", "extranonce2", "latency_us", "share_count"];
            let of_row = [
                u64::from(row.instance), row.seg, u64::from(row.seq), row.session, row.worker, row.job, u64::from(row.flags), u64::from(row.nonce),
                u64::from(row.ntime), u64::from(row.version), row.extranonce2, u64::from(row.latency_us), u64::from(row.share_count),
            ];
            prop_assert_eq!(numbers.map(|name| cell(name).parse::<u64>().expect("a number")), of_row);
            prop_assert_eq!(cell("status"), ShareStatus::from_u8(row.status).expect("known").label());
        }
        prop_assert_eq!((lines.next(), lines.next()), (Some(""), None));
    }
}

#[test]
fn a_range_is_exact_and_a_large_export_has_several_row_groups() {
    let folder = tempfile::tempdir().expect("a folder");
    let rows: Vec<ShareRow> = (0..300_000_u32)
        .map(|index| ShareRow {
            nonce: index,
            work: 1,
            session: 1,
            arrival_us: START_US + u64::from(index) * 1_000,
            ..bytemuck::Zeroable::zeroed()
        })
        .collect();
    let _open = log(&folder.path().join("log"), &rows);
    let filter = Filter { since_us: Some(START_US + 1_000_000), until_us: Some(START_US + 299_000_000), status: None };
    let order = Order { filter, columns: vec![Column::Nonce, Column::Work], ..order(&folder.path().join("log"), Format::Parquet) };
    let path = folder.path().join("range.parquet");
    assert_eq!(to_file(&order, &path).expect("exported").rows, 298_000);
    let reader = SerializedFileReader::new(File::open(&path).expect("open")).expect("Parquet");
    assert_eq!(reader.num_row_groups(), 2);
    let nonces = reader.get_row_iter(None).expect("rows").map(|row| match row.expect("a row").get_column_iter().next() {
        Some((_, Field::UInt(nonce))) => *nonce,
        other => panic!("{other:?}"),
    });
    assert!(nonces.eq(1_000..299_000));
}

#[test]
fn a_file_appears_whole_or_not_at_all_and_damage_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("log");
    let rows: Vec<ShareRow> =
        (0..1_000_u32).map(|index| ShareRow { session: 1, nonce: index, arrival_us: START_US, ..bytemuck::Zeroable::zeroed() }).collect();
    let _open = log(&dir, &rows);
    let path = folder.path().join("shares.csv");
    std::fs::write(&path, "from before").expect("write");
    let nowhere = order(&folder.path().join("missing"), Format::Csv);
    assert!(matches!(to_file(&nowhere, &path), Err(ExportError::Log(_))));
    assert_eq!(std::fs::read_to_string(&path).expect("read"), "from before", "a failed export leaves what was there");
    let native = std::fs::read_dir(&dir)
        .expect("list")
        .map(|entry| entry.expect("entry").path())
        .find(|path| path.extension().is_some_and(|kind| kind == "native"));
    let native = native.expect("a segment");
    let mut bytes = std::fs::read(&native).expect("read");
    bytes[100] ^= 1;
    std::fs::write(&native, &bytes).expect("write");
    let exported = to_file(&order(&dir, Format::Csv), &path).expect("exported");
    assert_eq!(exported.damaged.len(), 1);
    let lines = std::fs::read_to_string(&path).expect("read").lines().count() as u64;
    assert_eq!(exported.rows + 1, lines);
    assert!(exported.rows < 1_000);
    let left: Vec<_> = std::fs::read_dir(folder.path()).expect("list").map(|entry| entry.expect("entry").file_name()).collect();
    assert_eq!(left.len(), 2, "nothing temporary is left: {left:?}");
}
