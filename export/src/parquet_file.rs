//! Parquet, row group by row group. Unsigned numbers are unsigned there, too; work is DECIMAL(20, 0), whose sums readers keep exact, where a sum of UINT64 would wrap.
use crate::columns::{Cell, Column, Names};
use otedama_primitives::Hash256;
use otedama_sharelog::LoggedRow;
use parquet::basic::{Compression, Encoding};
use parquet::data_type::{ByteArray, ByteArrayType, DataType, FixedLenByteArray, FixedLenByteArrayType, FloatType, Int32Type, Int64Type};
use parquet::errors::{ParquetError, Result};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;
use std::io::Write;
use std::sync::Arc;

/// Rows of a row group: 28 MiB of them wait, and their columns encoded.
const GROUP_ROWS: usize = 1 << 18;
/// Values handed over at a time.
const PIECE: usize = 4096;

/// Writes rows.
pub(crate) struct Writer<W: Write + Send> {
    file: SerializedFileWriter<W>,
    columns: Vec<Column>,
    names: Names,
    rows: Vec<LoggedRow>,
}

impl<W: Write + Send> Writer<W> {
    pub(crate) fn new(out: W, columns: &[Column], names: Names) -> Result<Self> {
        let fields: String = columns.iter().map(|column| format!("  REQUIRED {};\n", column.described().1)).collect();
        let schema = parse_message_type(&format!("message shares {{\n{fields}}}"))?;
        let mut properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_created_by(format!("otedama {}", env!("CARGO_PKG_VERSION")));
        for column in columns {
            // A dictionary pays where few values come again and again; what rises, or stays close, is stored as differences; hashes and nonces as they are.
            let encoding = match column {
                Column::Ts | Column::Seq | Column::Ntime | Column::Extranonce2 | Column::LatencyUs => Encoding::DELTA_BINARY_PACKED,
                Column::Nonce | Column::ShareDifficulty | Column::Hash => Encoding::PLAIN,
                _ => continue,
            };
            let path = ColumnPath::from(column.name());
            properties = properties.set_column_dictionary_enabled(path.clone(), false).set_column_encoding(path, encoding);
        }
        let file = SerializedFileWriter::new(out, Arc::new(schema), Arc::new(properties.build()))?;
        Ok(Self { file, columns: columns.to_vec(), names, rows: Vec::new() })
    }

    pub(crate) fn push(&mut self, row: LoggedRow) -> Result<()> {
        self.rows.push(row);
        if self.rows.len() == GROUP_ROWS { self.group() } else { Ok(()) }
    }

    pub(crate) fn finish(mut self) -> Result<()> {
        self.group()?;
        self.file.close().map(drop)
    }

    fn group(&mut self) -> Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let mut group = self.file.next_row_group()?;
        for &column in &self.columns {
            let mut writer =
                group.next_column()?.ok_or_else(|| ParquetError::General(format!("no writer for column {}", column.name())))?;
            let values = || self.rows.iter().map(|row| column.of(row, &self.names));
            match column {
                Column::Ts | Column::Seg | Column::Session | Column::Worker | Column::Job | Column::Extranonce2 => {
                    put::<Int64Type>(&mut writer, values().map(|cell| large(&cell) as i64))?;
                }
                Column::WorkerName | Column::Coin | Column::Status => {
                    let mut last = ByteArray::from("");
                    put::<ByteArrayType>(&mut writer, values().map(|cell| text(&cell, &mut last)))?;
                }
                Column::Hash => put::<ByteArrayType>(&mut writer, self.rows.iter().map(|row| hash_text(&row.hash)))?,
                Column::Work => {
                    let mut last = (0, decimal(0));
                    put::<FixedLenByteArrayType>(
                        &mut writer,
                        values().map(|cell| {
                            let work = large(&cell);
                            if last.0 != work {
                                last = (work, decimal(work));
                            }
                            last.1.clone()
                        }),
                    )?;
                }
                Column::ShareDifficulty => put::<FloatType>(&mut writer, self.rows.iter().map(|row| row.share_difficulty))?,
                Column::Instance
                | Column::Seq
                | Column::Flags
                | Column::Nonce
                | Column::Ntime
                | Column::Version
                | Column::LatencyUs
                | Column::ShareCount => {
                    put::<Int32Type>(&mut writer, values().map(|cell| large(&cell) as i32))?;
                }
            }
            writer.close()?;
        }
        group.close()?;
        self.rows.clear();
        Ok(())
    }
}

fn put<T: DataType>(writer: &mut SerializedColumnWriter<'_>, values: impl Iterator<Item = T::T>) -> Result<()> {
    let mut values = values;
    let mut piece = Vec::with_capacity(PIECE);
    loop {
        piece.clear();
        piece.extend(values.by_ref().take(PIECE));
        if piece.is_empty() {
            return Ok(());
        }
        writer.typed::<T>().write_batch(&piece, None, None)?;
    }
}

fn large(cell: &Cell<'_>) -> u64 {
    match *cell {
        Cell::Small(number) => u64::from(number),
        Cell::Large(number) | Cell::Work(number) | Cell::Time(number) => number,
        Cell::Float(_) | Cell::Text(_) | Cell::Hash(_) => 0,
    }
}

/// The text as Parquet keeps it: the one before, shared, where it is the same.
fn text(cell: &Cell<'_>, last: &mut ByteArray) -> ByteArray {
    let Cell::Text(text) = cell else { return ByteArray::from("") };
    if last.data() != text.as_bytes() {
        *last = ByteArray::from(*text);
    }
    last.clone()
}

/// As explorers show it; empty where the row has none.
fn hash_text(hash: &Hash256) -> ByteArray {
    if *hash == Hash256::default() { ByteArray::from("") } else { ByteArray::from(hash.to_string().into_bytes()) }
}

/// Nine bytes, big-endian, two's complement: the smallest that hold every u64.
fn decimal(work: u64) -> FixedLenByteArray {
    let mut bytes = vec![0u8; 9];
    if let Some(tail) = bytes.last_chunk_mut::<8>() {
        *tail = work.to_be_bytes();
    }
    FixedLenByteArray::from(bytes)
}
