//! The share log: every submit becomes one row, exactly once, whatever dies.
//!
//! `Journal` (log stage) appends to mapped files; `Sealer` (control core) turns them into segments that ClickHouse takes as they are; `Registry` records what the ids in
//! rows mean; in tier `disk` `Syncer` (a thread of its own) makes the journal durable before it is acknowledged; `Packer` (another) compresses cold segments. Readers (`store`, `scan`, `shares`, `verify`) need no lock. Format: `journal_format`, `segment`, `dimensions`; order of syncs: `sealer`.
#![deny(unsafe_code)]

mod aligned;
mod block_reader;
mod cold;
mod column_file;
mod content_hash;
mod dimensions;
mod ends;
mod error;
mod folder;
mod group_by;
mod group_table;
mod id_map;
pub mod inspect;
mod journal;
mod journal_format;
mod journal_scan;
mod layout;
mod ledger;
mod log;
mod mapping;
mod records;
pub mod scan;
mod sealer;
mod segment;
mod segment_rows;
mod segment_writer;
pub mod shares;
mod storage;
pub mod store;
mod sync;
mod table_order;
mod utc;
pub mod verify;

pub use aligned::AlignedBytes;
pub use block_reader::{BlockReader, PIECE_BYTES};
pub use cold::{PackStep, Packer};
pub use dimensions::{DIMENSIONS_FILE, DIMENSIONS_START, DimensionReader, Registry};
pub use error::{JournalFull, LogError};
pub use id_map::{IdHasher, IdMap, IdSet, mix};
pub use journal::Journal;
pub use journal_format::{BATCH_DIMENSIONS_MAX, BATCH_ROWS_MAX};
pub use layout::{COLUMNS, Layout};
pub use log::{LogCounters, LogHandles, LogSettings, ShareLog, Trouble};
pub use records::{BlockRecord, BlockStatus, DimensionEntry, JobRecord, RunRecord};
pub use sealer::{SealStep, Sealer};
pub use segment::{JournalRange, LoggedRow, SEGMENT_ROWS_MAX, SegmentBlock, SegmentMeta, parse_segment_name, segment_name};
pub use storage::{Disk, Storage};
pub use sync::{SyncStep, Syncer};
pub use utc::{parse_moment, utc_text_us};
