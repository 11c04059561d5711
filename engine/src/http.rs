//! The subset of ClickHouse's HTTP interface that clients of this project use: `POST /` and `GET /` with the statement in `query` or in the body, settings as parameters,
//! `/ping`, users by header, parameter or Basic, `query_id`, exceptions with code and status, `X-ClickHouse-Summary`.
//!
//! The body of an `INSERT ... FORMAT x` is written to a file before the engine sees the statement: a body cut on its way commits nothing, not even its whole blocks, memory is bounded
//! whatever is sent, and the engine reports the real error of a view (its streaming insert says 394 instead). Results are held in memory: ask for sums, not for tables.
use crate::exception::{Exception, code};
use crate::library::{Library, Summary};
use crate::session::{Environment, Statement, run};
use crate::statement::{Insert, Kind, Refusal, kind};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// Longest statement that is taken from a body: a server's own limit is 256 KiB, but it reads the VALUES of an INSERT without one.
const TEXT_MAX_BYTES: usize = 64 << 20;
/// Largest head of a request; the statement of an insert stands in it.
const HEAD_MAX_BYTES: usize = 1 << 20;
/// How long requests may go on after a stop.
const DRAIN: Duration = Duration::from_secs(30);
/// Parameters that are no settings.
const NO_SETTINGS: [&str; 8] = ["query", "query_id", "database", "default_format", "user", "password", "quota_key", "session_timeout"];

/// How to serve.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The only user.
    pub user: String,
    /// Its password; empty for none.
    pub password: String,
    /// Folder for the bodies of inserts.
    pub spool: PathBuf,
    /// Most statements at work at once; the others wait.
    pub queries_max: usize,
    /// Largest body of an insert.
    pub body_max_bytes: u64,
}

struct Front {
    library: &'static Library,
    settings: Settings,
    turns: Semaphore,
    running: Mutex<HashSet<String>>,
    spooled: AtomicU64,
}

/// Serves until `stop` turns true, then lets the requests that have begun end.
pub async fn serve(listener: TcpListener, library: &'static Library, settings: Settings, mut stop: watch::Receiver<bool>) {
    let front = Arc::new(Front {
        library,
        turns: Semaphore::new(settings.queries_max.max(1)),
        settings,
        running: Mutex::new(HashSet::new()),
        spooled: AtomicU64::new(0),
    });
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = async { stop.wait_for(|stopped| *stopped).await.is_ok() } => break,
        };
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = accepted else {
            // Out of descriptors: connections that end give some back.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        // Without this the last small piece of an answer can wait 40 ms for an acknowledgement; where it cannot be set it only is slower.
        let _ = stream.set_nodelay(true);
        let (front, mut stop) = (Arc::clone(&front), stop.clone());
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let front = Arc::clone(&front);
                async move { Ok::<_, std::convert::Infallible>(front.answer(request).await) }
            });
            let connection =
                hyper::server::conn::http1::Builder::new().max_buf_size(HEAD_MAX_BYTES).serve_connection(TokioIo::new(stream), service);
            tokio::pin!(connection);
            // A client that goes away is no event.
            let stopped = tokio::select! {
                _ = connection.as_mut() => false,
                _ = async { stop.wait_for(|stopped| *stopped).await.is_ok() } => true,
            };
            if stopped {
                connection.as_mut().graceful_shutdown();
                let _ = connection.await;
            }
        });
    }
    let drained = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN, drained).await;
}

/// A request, understood.
struct Asked {
    query: Option<String>,
    query_id: String,
    environment: Environment,
}

/// A body in a file, which goes with it.
struct Spool(PathBuf);

impl Drop for Spool {
    fn drop(&mut self) {
        // What is left is removed at the next start.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A query_id that is at work.
struct Running<'a> {
    front: &'a Front,
    query_id: String,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.front.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.query_id);
    }
}

/// A statement, ready to run.
enum Ready {
    Text(Vec<u8>),
    Spooled { text: String, insert: Insert, spool: Spool },
}

type Reply = Response<Full<Bytes>>;

impl Front {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Reply {
        match request.uri().path() {
            "/ping" | "/replicas_status" => return plain(StatusCode::OK, "Ok.\n"),
            "/" => {}
            other => {
                let text = format!(
                    "There is no handle {other}\n\nUse / or /ping for health checks.\nSend queries from your program with POST method or GET /?query=...\n"
                );
                return plain(StatusCode::NOT_FOUND, &text);
            }
        }
        let asked = match self.understand(request.uri().query().unwrap_or_default(), request.headers(), request.method()) {
            Ok(asked) => asked,
            Err(exception) => return failed(&exception, ""),
        };
        let query_id = asked.query_id.clone();
        match self.carry_out(asked, request.into_body()).await {
            Ok(reply) => reply,
            Err(exception) => failed(&exception, &query_id),
        }
    }

    /// Who asks what, in which environment.
    fn understand(&self, parameters: &str, headers: &HeaderMap, method: &Method) -> Result<Asked, Exception> {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (mut user, mut password) = (header("x-clickhouse-user"), header("x-clickhouse-key"));
        if let Some((name, word)) = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(basic) {
            (user, password) = (Some(name), Some(word));
        }
        let mut environment = Environment {
            database: header("x-clickhouse-database").unwrap_or_default(),
            format: header("x-clickhouse-format").unwrap_or_default(),
            ..Environment::default()
        };
        let (mut query, mut query_id) = (None, String::new());
        for (name, value) in form_urlencoded::parse(parameters.as_bytes()) {
            let value = value.into_owned();
            match &*name {
                "query" => query = Some(value),
                "query_id" => query_id = value,
                "database" => environment.database = value,
                "default_format" => environment.format = value,
                "user" => user = Some(value),
                "password" => password = Some(value),
                "compress" | "decompress" | "session_id" if !matches!(&*value, "" | "0") => {
                    return Err(Exception::new(
                        code::NOT_IMPLEMENTED,
                        format_args!("the parameter {name} is not supported by otedama-engine"),
                    ));
                }
                "compress" | "decompress" | "session_id" => {}
                other if NO_SETTINGS.contains(&other) => {}
                other => environment.settings.push((other.to_owned(), value)),
            }
        }
        let (user, password) = (user.unwrap_or_else(|| "default".to_owned()), password.unwrap_or_default());
        if user != self.settings.user || !same(password.as_bytes(), self.settings.password.as_bytes()) {
            let text = format!(
                "{user}: Authentication failed: password is incorrect, or there is no user with such name. (AUTHENTICATION_FAILED)"
            );
            return Err(Exception::new(code::AUTHENTICATION_FAILED, text));
        }
        match *method {
            Method::POST => {}
            Method::GET | Method::HEAD => environment.read_only = true,
            _ => {
                return Err(Exception::new(
                    code::NOT_IMPLEMENTED,
                    format_args!("the method {method} is not supported: POST, or GET to read"),
                ));
            }
        }
        if query_id.is_empty() {
            query_id = own_query_id();
        }
        Ok(Asked { query, query_id, environment })
    }

    async fn carry_out(self: &Arc<Self>, asked: Asked, body: Incoming) -> Result<Reply, Exception> {
        let ready = self.read(asked.query, body).await?;
        let began = Instant::now();
        let front = Arc::clone(self);
        let (query_id, environment) = (asked.query_id, asked.environment);
        let format_named = match &ready {
            Ready::Text(text) => match kind(text) {
                Ok(Kind::Other { format }) => format,
                _ => None,
            },
            Ready::Spooled { .. } => None,
        };
        let format = format_named
            .unwrap_or_else(|| if environment.format.is_empty() { "TabSeparated".to_owned() } else { environment.format.clone() });
        let id = query_id.clone();
        // A client that goes away does not end its statement: a server carries it out as well, and whoever asks again must know it by its token.
        let work = tokio::spawn(async move {
            let _turn = front.turns.acquire().await;
            let inner = Arc::clone(&front);
            tokio::task::spawn_blocking(move || {
                let _running = inner.begin(&query_id)?;
                match &ready {
                    Ready::Text(text) => run(inner.library, &environment, &Statement::Text(text)),
                    Ready::Spooled { text, insert, spool } => {
                        run(inner.library, &environment, &Statement::FromFile { text, insert: *insert, data: &spool.0 })
                    }
                }
            })
            .await
        });
        let ended = work.await.map_err(|error| error.to_string()).and_then(|inner| inner.map_err(|error| error.to_string()));
        let answer = ended
            .unwrap_or_else(|error| Err(Exception::new(code::CANNOT_SCHEDULE_TASK, format_args!("the statement was lost: {error}"))))?;
        let summary = answer.summary;
        let mut reply = Response::new(Full::new(Bytes::from_owner(answer)));
        let headers = reply.headers_mut();
        describe(headers, &id);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type(&format)));
        put(headers, "x-clickhouse-format", &format);
        put(headers, "x-clickhouse-summary", &summary_json(&summary, began.elapsed()));
        Ok(reply)
    }

    fn begin(&self, query_id: &str) -> Result<Running<'_>, Exception> {
        if !self.running.lock().unwrap_or_else(PoisonError::into_inner).insert(query_id.to_owned()) {
            let text = format!("Query with id = {query_id} is already running. (QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING)");
            return Err(Exception::new(code::QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING, text));
        }
        Ok(Running { front: self, query_id: query_id.to_owned() })
    }

    /// Reads the body to its end and finds the statement.
    async fn read(&self, query: Option<String>, mut body: Incoming) -> Result<Ready, Exception> {
        let Some(query) = query.filter(|query| !query.trim().is_empty()) else {
            let text = collect(&mut body, Vec::new()).await?;
            return match kind(&text).map_err(|refusal| refused(&refusal))? {
                Kind::Other { .. } => Ok(Ready::Text(text)),
                Kind::Insert(insert) => {
                    let head = statement_text(&text[..insert.end])?;
                    let (spool, mut file) = self.spool()?;
                    write(&mut file, &text[insert.data_at..])?;
                    Ok(Ready::Spooled { text: head, insert, spool })
                }
            };
        };
        match kind(query.as_bytes()).map_err(|refusal| refused(&refusal))? {
            Kind::Other { .. } => {
                let mut text = query.into_bytes();
                let statement_ends = text.len();
                text.push(b'\n');
                let text = collect(&mut body, text).await?;
                // Both parts are one statement, as VALUES in the body are.
                if text.len() > statement_ends + 1 {
                    kind(&text).map_err(|refusal| refused(&refusal))?;
                }
                Ok(Ready::Text(text))
            }
            Kind::Insert(insert) => {
                let (spool, mut file) = self.spool()?;
                let inline = &query.as_bytes()[insert.data_at..];
                if !inline.is_empty() {
                    write(&mut file, inline)?;
                    write(&mut file, b"\n")?;
                }
                let mut left = self.settings.body_max_bytes;
                while let Some(piece) = next(&mut body).await? {
                    left = left.checked_sub(piece.len() as u64).ok_or_else(|| {
                        Exception::new(
                            code::QUERY_IS_TOO_LARGE,
                            format_args!("the body is larger than {} bytes", self.settings.body_max_bytes),
                        )
                    })?;
                    write(&mut file, &piece)?;
                }
                let text = query[..insert.end].to_owned();
                Ok(Ready::Spooled { text, insert, spool })
            }
        }
    }

    fn spool(&self) -> Result<(Spool, File), Exception> {
        let path = self.settings.spool.join(format!("{}.body", self.spooled.fetch_add(1, Ordering::Relaxed)));
        let file = File::create(&path).map_err(|error| {
            Exception::new(code::CANNOT_WRITE_TO_FILE, format_args!("the spool {} cannot be made: {error}", path.display()))
        })?;
        Ok((Spool(path), file))
    }
}

/// Makes the spool folder and clears what a crash left in it.
///
/// # Errors
/// When it cannot be made or read.
pub fn prepare_spool(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "body") {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn write(file: &mut File, bytes: &[u8]) -> Result<(), Exception> {
    file.write_all(bytes).map_err(|error| Exception::new(code::CANNOT_WRITE_TO_FILE, format_args!("the body cannot be spooled: {error}")))
}

fn statement_text(text: &[u8]) -> Result<String, Exception> {
    String::from_utf8(text.to_vec()).map_err(|_| Exception::new(code::SYNTAX_ERROR, "Syntax error: the statement is not UTF-8"))
}

fn refused(refusal: &Refusal) -> Exception {
    match refusal {
        Refusal::SecondStatement => Exception::new(code::SYNTAX_ERROR, format_args!("{refusal}. (SYNTAX_ERROR)")),
        Refusal::IntoOutfile => Exception::new(code::NOT_IMPLEMENTED, refusal),
    }
}

/// The next piece of a body; an error is a client that went away or broke HTTP.
async fn next(body: &mut Incoming) -> Result<Option<Bytes>, Exception> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Exception::new(code::BAD_ARGUMENTS, format_args!("the body was cut: {error}")))?;
        if let Ok(piece) = frame.into_data() {
            return Ok(Some(piece));
        }
    }
    Ok(None)
}

async fn collect(body: &mut Incoming, mut text: Vec<u8>) -> Result<Vec<u8>, Exception> {
    while let Some(piece) = next(body).await? {
        if text.len() + piece.len() > TEXT_MAX_BYTES {
            let text = format!(
                "the statement is longer than {TEXT_MAX_BYTES} bytes: put the INSERT into the parameter query and its data into the body"
            );
            return Err(Exception::new(code::QUERY_IS_TOO_LARGE, text));
        }
        text.extend_from_slice(&piece);
    }
    Ok(text)
}

/// User and password of `Basic ...`.
fn basic(header: &str) -> Option<(String, String)> {
    let (scheme, words) = header.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(words.trim()).ok()?).ok()?;
    text.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned()))
}

/// Whether two passwords are the same, in a time that tells no more than their lengths.
fn same(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len() && left.iter().zip(right).fold(0, |differs, (left, right)| differs | (left ^ right)) == 0
}

/// Unlike every other of this process and of those before it.
fn own_query_id() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("otedama-engine-{:x}-{:x}-{:x}", std::process::id(), since.as_nanos(), COUNT.fetch_add(1, Ordering::Relaxed))
}

fn put(headers: &mut HeaderMap, name: &'static str, value: &str) {
    // A value that no header can hold is one that nobody can use.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

fn describe(headers: &mut HeaderMap, query_id: &str) {
    headers.insert(HeaderName::from_static("x-clickhouse-server-display-name"), HeaderValue::from_static("otedama-engine"));
    headers.insert(HeaderName::from_static("x-clickhouse-timezone"), HeaderValue::from_static("UTC"));
    put(headers, "x-clickhouse-query-id", query_id);
}

fn plain(status: StatusCode, text: &str) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=UTF-8"));
    reply
}

fn failed(exception: &Exception, query_id: &str) -> Reply {
    let status = StatusCode::from_u16(exception.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let text = exception.text.trim_end();
    let mut reply = plain(status, &format!("{text}\n"));
    let headers = reply.headers_mut();
    describe(headers, query_id);
    put(headers, "x-clickhouse-exception-code", &exception.code.to_string());
    reply
}

fn content_type(format: &str) -> &'static str {
    match format {
        "JSON" | "JSONCompact" | "JSONStrings" | "JSONCompactStrings" | "JSONColumns" | "JSONObjectEachRow" => {
            "application/json; charset=UTF-8"
        }
        _ if format.starts_with("JSON") => "application/x-ndjson; charset=UTF-8",
        _ if format.starts_with("CSV") => "text/csv; charset=UTF-8; header=absent",
        _ if format.starts_with("TabSeparated") || format.starts_with("TSV") => "text/tab-separated-values; charset=UTF-8",
        "Native" | "Parquet" | "Arrow" | "ArrowStream" | "ORC" | "Avro" => "application/octet-stream",
        _ if format.starts_with("RowBinary") => "application/octet-stream",
        _ => "text/plain; charset=UTF-8",
    }
}

fn summary_json(summary: &Summary, elapsed: Duration) -> String {
    let Summary { read_rows, read_bytes, written_rows, written_bytes, result_rows, result_bytes } = summary;
    format!(
        "{{\"read_rows\":\"{read_rows}\",\"read_bytes\":\"{read_bytes}\",\"written_rows\":\"{written_rows}\",\"written_bytes\":\"{written_bytes}\",\
         \"total_rows_to_read\":\"0\",\"result_rows\":\"{result_rows}\",\"result_bytes\":\"{result_bytes}\",\"elapsed_ns\":\"{}\"}}",
        elapsed.as_nanos()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn basic_logins_are_read_and_nonsense_is_none() {
        assert_eq!(basic("Basic YTpiOmM="), Some(("a".into(), "b:c".into())));
        assert_eq!(basic("basic dTo="), Some(("u".into(), String::new())));
        for wrong in ["Bearer x", "Basic", "Basic !", "Basic YQ=="] {
            assert_eq!(basic(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn passwords_are_the_same_only_when_they_are() {
        assert!(same(b"", b"") && same(b"abc", b"abc"));
        assert!(!same(b"abc", b"abd") && !same(b"abc", b"ab") && !same(b"", b"a"));
    }

    #[test]
    fn query_ids_of_our_own_differ() {
        assert_ne!(own_query_id(), own_query_id());
    }

    #[test]
    fn the_spool_is_cleared_of_bodies_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let spool = folder.path().join("spool");
        prepare_spool(&spool).expect("made");
        std::fs::write(spool.join("7.body"), "x").expect("written");
        std::fs::write(spool.join("note"), "x").expect("written");
        prepare_spool(&spool).expect("cleared");
        assert!(!spool.join("7.body").exists() && spool.join("note").exists());
    }
}
