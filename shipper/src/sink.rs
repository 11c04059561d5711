//! The way to the server: `Sink` is what the shipper needs of it, `HttpSink` is the `clickhouse` crate over HTTP, and `SinkError` is what can be known after a failure.
//!
//! `examples/cost.rs` measures the crate beside a request written by hand (`Content-Length`, 1 MiB writes). What it costs more is little beside what the server does with a row,
//! and it takes `query_id` and every other setting per insert, has a timeout for a piece and one for the answer, and tells errors apart. The announced length that it
//! gives up is worth nothing: with or without it 18.16 does not notice a body cut between blocks, and with one Native block per insert there is no such place.
use bytes::Bytes;
use clickhouse::error::Error;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use otedama_killpoint::pass;
use otedama_sharelog::{AlignedBytes, BlockReader, LogError};
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// TCP keep-alive, which finds a dead server behind a connection at rest.
const KEEPALIVE: Duration = Duration::from_secs(60);
/// Idle connections are dropped before the server (3 s by default) does it.
const POOL_IDLE: Duration = Duration::from_secs(2);
/// Longest error text kept: servers quote whole queries.
const ERROR_TEXT_MAX: usize = 600;

/// The body of an insert.
#[derive(Clone, Debug)]
pub enum Body {
    /// Held in memory: dimension records.
    Memory(Bytes),
    /// A sealed segment, as it stands in its file.
    Segment {
        /// The `.native` file, or where it was before the segment grew cold.
        path: PathBuf,
        /// Its size in bytes, from the `.meta` beside it.
        size: u64,
        /// CRC-32C of its content, from the `.meta` beside it.
        crc32c: u32,
    },
}

/// Why a request did not succeed, by what it leaves known.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SinkError {
    /// The server answered with an error: it did not take the insert.
    #[error("{text}")]
    Refused {
        /// Its error code; 0 when the answer has none.
        code: u32,
        /// Its words, cut at 600 bytes.
        text: String,
    },
    /// No connection could be made: the server never saw the request.
    #[error("cannot connect to ClickHouse at {url}: {text}; is it running, and is [clickhouse] url right?")]
    Unreachable {
        /// The address tried.
        url: String,
        /// The system's words.
        text: String,
    },
    /// The answer was lost, cut or late: the insert may have happened.
    #[error("no answer from ClickHouse at {url}: {text}")]
    Unanswered {
        /// The address asked.
        url: String,
        /// What was seen.
        text: String,
    },
    /// The segment on the disk cannot be read or is not what its `.meta` says; nothing of it was committed.
    #[error("segment {path} cannot be shipped: {text}; run `otedama log verify`")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        text: String,
    },
    /// The server has some rows of a segment, but not all, and no query that could still add them.
    #[error(
        "the server has {found} of {wanted} rows of segment {segment}; delete them (ALTER TABLE shares DELETE WHERE seg = {seg}), then it is shipped again"
    )]
    Partial {
        /// Name of the segment.
        segment: String,
        /// Its number.
        seg: u64,
        /// Rows on the server.
        found: u64,
        /// Rows in the segment.
        wanted: u64,
    },
    /// Another process does what must not be done twice; it passes.
    #[error("{0}")]
    Busy(String),
    /// The server is back after a time in which nothing was asked of it; nothing was sent.
    #[error("ClickHouse has started anew since it was last asked: what it had acknowledged is looked for first")]
    Restarted,
    /// The server answers, but shipping to it could not be exact; the text says what to mend.
    #[error("{0}")]
    Mismatch(String),
}

/// What to do about a failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Remedy {
    /// Passing: try again with back-off.
    Retry,
    /// A table or the database is missing: probe again (which makes them, if allowed), then retry.
    Probe,
    /// Somebody has to mend schema, rights or the file: say so, and try again slowly.
    Alarm,
}

impl SinkError {
    /// What to do about it. `repeated` says that the same segment has failed in the same way before: code 33 is also the answer to a body cut on its way, so it is retried once.
    pub fn remedy(&self, repeated: bool) -> Remedy {
        match self {
            Self::Unreachable { .. } | Self::Unanswered { .. } | Self::Busy(_) | Self::Restarted => Remedy::Retry,
            Self::Damaged { .. } | Self::Partial { .. } | Self::Mismatch(_) => Remedy::Alarm,
            Self::Refused { code, .. } => match code {
                // UNKNOWN_TABLE, UNKNOWN_DATABASE
                60 | 81 => Remedy::Probe,
                // CANNOT_READ_ALL_DATA
                33 if !repeated => Remedy::Retry,
                // NO_SUCH_COLUMN_IN_TABLE, CANNOT_READ_ALL_DATA, UNKNOWN_IDENTIFIER, TYPE_MISMATCH, SYNTAX_ERROR, UNKNOWN_SETTING,
                // UNKNOWN_USER, WRONG_PASSWORD, REQUIRED_PASSWORD, DATABASE_ACCESS_DENIED, bad cast, ACCESS_DENIED, AUTHENTICATION_FAILED
                16 | 33 | 47 | 53 | 62 | 115 | 192 | 193 | 194 | 291 | 368 | 497 | 516 => Remedy::Alarm,
                // 252 too many parts, 241 memory, 202 too many queries, 209 and 210 socket, 159 time, 216 the first try still runs, 394 and 999 wrapped causes, all else
                _ => Remedy::Retry,
            },
        }
    }

    /// True when the server may have committed the insert.
    pub fn may_have_happened(&self) -> bool {
        // A refusal can come after the base part was committed (a view that throws), so only an insert that never left is certain.
        !matches!(self, Self::Unreachable { .. } | Self::Damaged { .. } | Self::Busy(_) | Self::Restarted | Self::Mismatch(_))
    }
}

/// The code in the server's words: `Code: 60, e.displayText()...` (18.16, which sends no header) or `Code: 60. DB::Exception...`; 0 when there is none.
pub fn error_code(text: &str) -> u32 {
    let Some((_, rest)) = text.split_once("Code: ") else { return 0 };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    rest[..digits].parse().unwrap_or(0)
}

/// What the shipper needs of a server. Tests put failures here.
pub trait Sink: Send + Sync + 'static {
    /// Runs a statement and returns its result as tab-separated text (or in the FORMAT it names).
    fn query(&self, sql: &str) -> impl Future<Output = Result<String, SinkError>> + Send;

    /// `INSERT ... FORMAT ...` with `body` as its data, under these settings (`query_id` among them).
    fn insert(&self, sql: &str, settings: &[(&'static str, String)], body: Body) -> impl Future<Output = Result<(), SinkError>> + Send;
}

/// How long requests may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// A statement, from sending it to the end of its result.
    pub query: Duration,
    /// One piece of a body into the socket.
    pub piece: Duration,
    /// The end of a body to the answer: parsing, sorting, views.
    pub answer: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { query: Duration::from_secs(30), piece: Duration::from_secs(30), answer: Duration::from_secs(300) }
    }
}

/// Bytes handed to the connection at a time.
const SENT_BYTES: usize = 1 << 20;
/// Pieces of an insert that there are at once, at the most: two with the connection, one that waits for it, one being read. So many are kept for the next ones.
pub const PIECES_KEPT: usize = 4;

/// Memory of pieces, kept from segment to segment: every fresh page costs a fault, and a segment has ten thousand of them.
#[derive(Default)]
struct Kept(Mutex<Vec<AlignedBytes>>);

/// A piece on its way; its memory comes back when it is sent.
struct Piece {
    bytes: AlignedBytes,
    home: Arc<Kept>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut kept = self.home.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < PIECES_KEPT {
            kept.push(bytes);
        }
    }
}

/// The `clickhouse` crate's HTTP client: no compression (it costs the client 200 ns a row to save 30 bytes), no validation (extra queries that 18.16 refuses).
#[derive(Clone)]
pub struct HttpSink {
    client: clickhouse::Client,
    url: String,
    timeouts: Timeouts,
    kept: Arc<Kept>,
}

impl HttpSink {
    /// A client for this server. Statements name their tables with the database, so none is selected here: it may not exist yet.
    pub fn new(url: &str, user: &str, password: &str, timeouts: Timeouts) -> Self {
        let mut connector = HttpConnector::new();
        // The crate's own connector leaves Nagle's algorithm on: head and body leave in several writes, and a later one can wait 40 ms for the server's delayed
        // acknowledgement (18.16 on loopback, 1,000 rows: 43 ms an insert with it, 25 to 30 ms without).
        connector.set_nodelay(true);
        connector.set_keepalive(Some(KEEPALIVE));
        connector.set_connect_timeout(Some(timeouts.query));
        let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).pool_idle_timeout(POOL_IDLE).build(connector);
        let mut client =
            clickhouse::Client::with_http_client(http).with_url(url).with_validation(false).with_compression(clickhouse::Compression::None);
        if !user.is_empty() {
            client = client.with_user(user);
        }
        if !password.is_empty() {
            client = client.with_password(password);
        }
        Self { client, url: url.to_owned(), timeouts, kept: Arc::default() }
    }

    /// The same client with a setting sent on every request.
    pub fn with_setting(mut self, name: &str, value: &str) -> Self {
        self.client = self.client.with_setting(name, value);
        self
    }

    /// Runs a statement and hands its result over piece by piece, as it comes; there is no limit to its time. `format` is that of the result where the statement names none.
    ///
    /// # Errors
    /// What the transport or the server says, or what `to` returns: `Err` with a text ends the reading.
    pub async fn stream(&self, sql: &str, format: &str, mut to: impl FnMut(&[u8]) -> Result<(), SinkError>) -> Result<(), SinkError> {
        // `query_raw`: `query` would take every question mark for a placeholder.
        let mut cursor = self.client.query_raw(sql).fetch_bytes(format).map_err(|error| self.error(error))?;
        while let Some(piece) = cursor.next().await.map_err(|error| self.error(error))? {
            to(&piece)?;
        }
        Ok(())
    }

    fn error(&self, error: Error) -> SinkError {
        let url = self.url.clone();
        match error {
            Error::BadResponse(text) => SinkError::Refused { code: error_code(&text), text: cut(text) },
            Error::TimedOut => SinkError::Unanswered { url, text: "timed out".to_owned() },
            Error::InvalidParams(cause) => {
                SinkError::Refused { code: 115, text: format!("[clickhouse] url {url:?} is not usable: {cause}") }
            }
            Error::Unsupported(text) => SinkError::Refused { code: 115, text },
            other => {
                let mut text = String::new();
                let mut connecting = false;
                let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&other);
                while let Some(error) = cause {
                    if let Some(io) = error.downcast_ref::<io::Error>() {
                        connecting |= io.kind() == io::ErrorKind::ConnectionRefused;
                    }
                    let words = error.to_string();
                    if !text.contains(&words) {
                        if !text.is_empty() {
                            text.push_str(": ");
                        }
                        text.push_str(&words);
                    }
                    cause = error.source();
                }
                let text = cut(text);
                // hyper-util's client names the phase only in its text.
                if connecting || text.contains("(Connect)") || text.contains("dns error") {
                    SinkError::Unreachable { url, text }
                } else {
                    SinkError::Unanswered { url, text }
                }
            }
        }
    }
}

fn cut(mut text: String) -> String {
    if text.len() > ERROR_TEXT_MAX {
        let end = (0..=ERROR_TEXT_MAX).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

impl Sink for HttpSink {
    async fn query(&self, sql: &str) -> Result<String, SinkError> {
        // `query_raw`: `query` would take every question mark for a placeholder.
        let request = self.client.query_raw(sql);
        let whole = async { request.fetch_bytes("TabSeparated")?.collect().await };
        match tokio::time::timeout(self.timeouts.query, whole).await {
            Ok(Ok(bytes)) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Ok(Err(error)) => Err(self.error(error)),
            Err(_) => Err(self.error(Error::TimedOut)),
        }
    }

    async fn insert(&self, sql: &str, settings: &[(&'static str, String)], body: Body) -> Result<(), SinkError> {
        let mut insert = self.client.insert_formatted_with(sql).with_timeouts(Some(self.timeouts.piece), Some(self.timeouts.answer));
        for (name, value) in settings {
            insert = insert.with_setting(*name, value);
        }
        match body {
            Body::Memory(bytes) => insert.send(bytes).await.map_err(|error| self.error(error))?,
            Body::Segment { path, size, crc32c } => {
                let file = path.clone();
                let opened = blocking(move || BlockReader::open(&file, size, crc32c)).await;
                let reader = opened.map_err(|error| damaged(&path, error))?;
                let mut pieces = Pieces { path, reader: Some(reader), home: Arc::clone(&self.kept) };
                // Each piece is checked before it leaves, and the last one leaves only when the whole file has: a damaged segment stays an unfinished block, which no server commits.
                while let Some(mut piece) = pieces.next().await? {
                    while !piece.is_empty() {
                        // In parts: the time that one may take is for so many bytes, however slow the line.
                        let part = piece.split_to(piece.len().min(SENT_BYTES));
                        insert.send(part).await.map_err(|error| self.error(error))?;
                    }
                }
                pass("ship.body_sent");
            }
        }
        insert.end().await.map_err(|error| self.error(error))
    }
}

/// Reads a segment in pieces on tokio's blocking threads, so that a cold disk does not hold up the core's other tasks.
struct Pieces {
    path: PathBuf,
    /// Away while it reads.
    reader: Option<BlockReader>,
    home: Arc<Kept>,
}

impl Pieces {
    async fn next(&mut self) -> Result<Option<Bytes>, SinkError> {
        let Some(mut reader) = self.reader.take() else { return Ok(None) };
        let home = Arc::clone(&self.home);
        let read = blocking(move || {
            let bytes = home.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
            let mut piece = Piece { bytes, home };
            let is_one = reader.next(&mut piece.bytes)?;
            Ok((reader, is_one.then(|| Bytes::from_owner(piece))))
        })
        .await;
        let (reader, piece) = read.map_err(|error| damaged(&self.path, error))?;
        self.reader = Some(reader);
        Ok(piece)
    }
}

/// `path` is what was to be read; an error may name what is there instead.
fn damaged(path: &Path, error: LogError) -> SinkError {
    let (path, text) = match error {
        LogError::Io { source, path, .. } if source.kind() == io::ErrorKind::OutOfMemory => {
            return SinkError::Busy(format!("there is no memory to read segment {} with", path.display()));
        }
        LogError::Io { source, path, .. } => (path, source.to_string()),
        LogError::Damaged { what, path } => (path, what),
        other => (path.to_path_buf(), other.to_string()),
    };
    SinkError::Damaged { path, text }
}

/// Reads or writes the log on a blocking thread.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, LogError> + Send + 'static) -> Result<T, LogError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // The runtime is shutting down.
        Err(error) => Err(LogError::Io {
            operation: "read the share log on a blocking thread in",
            path: PathBuf::from("."),
            source: io::Error::other(error),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_read_from_the_words_of_old_and_new_servers() {
        assert_eq!(
            error_code("Code: 60, e.displayText() = DB::Exception: Table otedama.shares doesn't exist., e.what() = DB::Exception"),
            60
        );
        assert_eq!(error_code("Code: 252. DB::Exception: Too many parts (3000). (TOO_MANY_PARTS) (version 26.7.2.1)"), 252);
        for text in ["", "Code: ", "Code: x", "502 Bad Gateway", "Code: 99999999999999"] {
            assert_eq!(error_code(text), 0, "{text}");
        }
    }

    #[test]
    fn schema_errors_alarm_passing_ones_retry_and_a_cut_body_is_resent_once() {
        let refused = |code| SinkError::Refused { code, text: String::new() };
        for code in [62, 16, 115, 53, 516] {
            assert_eq!(refused(code).remedy(false), Remedy::Alarm, "{code}");
        }
        for code in [252, 241, 202, 209, 210, 159, 394, 999, 216, 0, 1] {
            assert_eq!(refused(code).remedy(true), Remedy::Retry, "{code}");
        }
        assert_eq!((refused(33).remedy(false), refused(33).remedy(true)), (Remedy::Retry, Remedy::Alarm));
        assert_eq!(refused(60).remedy(true), Remedy::Probe);
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(cut("é".repeat(400)).len(), 600);
        assert_eq!(cut(format!("a{}", "é".repeat(400))).len(), 599);
    }
}
