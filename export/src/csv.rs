//! CSV by RFC 4180: CRLF, a header line, quotes where a text needs them. Times are ISO 8601 with microseconds, UTC.
use crate::columns::{Cell, Column, Names};
use otedama_primitives::Hash256;
use otedama_sharelog::{LoggedRow, utc_text_us};
use std::io::{self, Write};

pub(crate) fn header(out: &mut impl Write, columns: &[Column]) -> io::Result<()> {
    for (index, column) in columns.iter().enumerate() {
        write!(out, "{}{}", if index > 0 { "," } else { "" }, column.name())?;
    }
    out.write_all(b"\r\n")
}

pub(crate) fn row(out: &mut impl Write, columns: &[Column], row: &LoggedRow, names: &Names) -> io::Result<()> {
    for (index, column) in columns.iter().enumerate() {
        if index > 0 {
            out.write_all(b",")?;
        }
        match column.of(row, names) {
            Cell::Small(number) => write!(out, "{number}")?,
            Cell::Large(number) | Cell::Work(number) => write!(out, "{number}")?,
            // Shortest text that reads back as the same number.
            Cell::Float(number) => write!(out, "{number:?}")?,
            Cell::Time(us) => out.write_all(utc_text_us(us).as_bytes())?,
            Cell::Hash(hash) if hash == Hash256::default() => {}
            Cell::Hash(hash) => write!(out, "{hash}")?,
            Cell::Text(text) if text.contains([',', '"', '\n', '\r']) => write!(out, "\"{}\"", text.replace('"', "\"\""))?,
            Cell::Text(text) => out.write_all(text.as_bytes())?,
        }
    }
    out.write_all(b"\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_quoted_where_they_must_be() {
        let mut names = Names::default();
        names.insert(7, "a,\"b\"".into());
        let mut out = Vec::new();
        header(&mut out, &[Column::WorkerName, Column::Work, Column::Ts]).expect("memory");
        let logged = LoggedRow { worker: 7, work: u64::MAX, arrival_us: 1_795_248_000_000_042, ..LoggedRow::default() };
        row(&mut out, &[Column::WorkerName, Column::Work, Column::Ts], &logged, &names).expect("memory");
        let text = String::from_utf8(out).expect("UTF-8");
        assert_eq!(text, "worker_name,work,ts\r\n\"a,\"\"b\"\"\",18446744073709551615,2026-11-21T08:00:00.000042Z\r\n");
    }
}
