//! The stats endpoint: health for load balancers, metrics for Prometheus, JSON for scripts and one page for people.
//!
//! One thread, off the share cores. It only reads: every request takes a [`Snapshot`] from the [`StatsSource`] and renders it, so a slow reader costs the
//! share path nothing. Routes: `GET /`, `/live`, `/health` (alias `/api/health`), `/metrics`, `/api/status`, `/api/stats`.
use http_body_util::Full;
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::pin::pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot};

/// Connections served at once; later ones wait in the listen queue. A scraper, a load balancer and some browsers need a handful.
pub const CONNECTIONS_MAX: usize = 64;
/// Bytes of request line and headers that are read before the request is refused (431).
pub const REQUEST_BYTES_MAX: usize = 16 * 1024;
/// How long a client may take to send a request head, and how long an idle connection is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one connection may live: a client that does not read its answers cannot hold a place for ever.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(300);
/// How long a connection that was asked to end may take to do so.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

const PAGE: &str = include_str!("stats.html");

/// What the endpoint reads. The implementation sums counters; it must not block and is called once a request, from the stats thread.
pub trait StatsSource {
    /// Every figure at one moment.
    fn snapshot(&self) -> Snapshot;
    /// Whether miners should stay.
    fn health(&self) -> Health;
}

/// Every figure of a running server. Its serialised form is the answer of `/api/stats`; the key order is part of the contract.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Snapshot {
    /// Seconds since the process listened.
    pub uptime_s: f64,
    /// Network driver: `uring` or `mio`.
    pub driver: String,
    /// Hash kernel, e.g. `portable`.
    pub kernel: String,
    /// Acknowledgement tier: `memory`, `process` or `disk`.
    pub ack: String,
    /// `practice`, or the name of the network (`main`, `regtest`, ...).
    pub chain: String,
    /// Stratum connections.
    pub connections: Connections,
    /// Submits of subscribed sessions.
    pub shares: Shares,
    /// Lines refused that were no submit of a subscribed session.
    pub lines_refused: u64,
    /// Blocks by what became of them.
    pub blocks: Blocks,
    /// Bytes read to answer handed to the kernel.
    pub latency_us: Latency,
    /// The stages, in the order of the spine.
    pub stages: Vec<Stage>,
    /// The rings, in the order of the spine.
    pub rings: Vec<Ring>,
    /// The share log.
    pub log: Log,
    /// The shipper's view of ClickHouse.
    pub clickhouse: ClickHouse,
    /// Who this server is; in `/api/status`, not in `/api/stats`.
    #[serde(skip)]
    pub identity: Identity,
    /// Further counters and gauges for `/metrics` alone.
    #[serde(skip)]
    pub metrics: Vec<Metric>,
}

/// Who the server is and where it listens.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// `[pool] name`.
    pub pool: String,
    /// `[pool] instance`.
    pub instance: u8,
    /// Version of the binary.
    pub version: String,
    /// Stratum addresses.
    pub stratum: Vec<String>,
    /// Height that the newest job works on; None before the first template.
    pub height: Option<u32>,
    /// Seconds since the newest template; None before the first.
    pub template_age_s: Option<f64>,
}

/// Stratum connections since start.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Connections {
    /// Open now.
    pub open: u64,
    /// Accepted since start.
    pub accepted: u64,
    /// Refused since start.
    pub refused: u64,
}

/// Submits since start: received = accepted + rejected + in flight.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Shares {
    /// Submits of subscribed sessions.
    pub received: u64,
    /// Credited.
    pub accepted: u64,
    /// Refused, by reason.
    pub rejected: Rejected,
    /// Rows in the journal; equal to `received` once drained.
    pub logged: u64,
}

/// Refused submits by status, in the order of the status numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rejected {
    /// The job is unknown or has ended.
    pub stale: u64,
    /// Credited before.
    pub duplicate: u64,
    /// The hash is above the share target.
    pub low_difficulty: u64,
    /// ntime outside of the window.
    pub bad_time: u64,
    /// Version bits outside of the mask.
    pub bad_version: u64,
    /// A field that does not parse.
    pub malformed: u64,
    /// Unknown worker.
    pub unauthorized: u64,
    /// Refused to protect the server.
    pub overload: u64,
}

impl Rejected {
    /// From counts by status number (0 = accepted, which is left out).
    pub const fn from_counts(by_status: &[u64; 9]) -> Self {
        let [_, stale, duplicate, low_difficulty, bad_time, bad_version, malformed, unauthorized, overload] = *by_status;
        Self { stale, duplicate, low_difficulty, bad_time, bad_version, malformed, unauthorized, overload }
    }

    /// Label and count of each reason.
    pub const fn by_label(&self) -> [(&'static str, u64); 8] {
        [
            ("stale", self.stale),
            ("duplicate", self.duplicate),
            ("low_difficulty", self.low_difficulty),
            ("bad_time", self.bad_time),
            ("bad_version", self.bad_version),
            ("malformed", self.malformed),
            ("unauthorized", self.unauthorized),
            ("overload", self.overload),
        ]
    }

    /// All refusals together.
    pub fn total(&self) -> u64 {
        self.by_label().iter().map(|(_, count)| count).sum()
    }
}

/// Blocks since start.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Blocks {
    /// Hashes at or under the network target.
    pub found: u64,
    /// Seen in the best chain.
    pub accepted: u64,
    /// Not submitted, because another block of the same parent stood before it.
    pub superseded: u64,
    /// Refused by every node.
    pub rejected: u64,
}

/// Percentiles in microseconds since start.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Latency {
    /// Median.
    pub p50: u64,
    /// 99th percentile.
    pub p99: u64,
    /// 99.9th percentile.
    pub p999: u64,
    /// Largest.
    pub max: u64,
}

/// One stage.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Stage {
    /// Kind and index, e.g. `validate:0`.
    pub name: String,
    /// The core it is pinned to.
    pub core: usize,
    /// Part of the last window spent on work, 0 to 1.
    pub busy: f64,
    /// Part of the last window spent waiting for room downstream, 0 to 1.
    pub backpressure: f64,
    /// Seconds by regime since start, for `/metrics`.
    #[serde(skip)]
    pub regimes: Vec<(&'static str, f64)>,
}

/// One ring.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Ring {
    /// `<producer>_<consumer>:<index>`.
    pub name: String,
    /// Records it holds at most.
    pub depth: u64,
    /// Records in it now.
    pub used: u64,
}

/// The share log.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Log {
    /// Segments sealed.
    pub segments_sealed: u64,
    /// Segments acknowledged by ClickHouse.
    pub segments_shipped: u64,
    /// Sealed rows that ClickHouse has not acknowledged.
    pub rows_unshipped: u64,
    /// Bytes on disk.
    pub bytes: u64,
}

/// The shipper's view of ClickHouse.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ClickHouse {
    /// `off`, `ok`, `retrying` or `legacy`.
    pub state: String,
    /// The last error in words; empty when there was none.
    pub last_error: String,
}

/// A counter or gauge of one stage, beyond those that the snapshot has fields for.
#[derive(Clone, Debug)]
pub struct Metric {
    /// `<stage>_<subject>_<qualifier>_<action>_<unit>` without the product's prefix and without `_total`.
    pub name: String,
    /// One line that says what is counted.
    pub help: &'static str,
    /// Counters only rise and get `_total` on export.
    pub kind: MetricKind,
    /// The value, in base units.
    pub value: f64,
}

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only rises.
    Counter,
    /// Rises and falls.
    Gauge,
}

/// Whether a miner should stay. The first three decide the status code, `degraded` never does.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// A template young enough to mine on is out.
    pub fresh_template: bool,
    /// The log takes rows.
    pub log_writable: bool,
    /// The server is going down.
    pub draining: bool,
    /// What does not work although miners should stay, e.g. `clickhouse retrying`.
    pub degraded: Vec<String>,
}

impl Health {
    /// Why a miner should go elsewhere; empty when it should stay.
    pub fn reasons(&self) -> Vec<&'static str> {
        [(!self.fresh_template, "no fresh template"), (!self.log_writable, "log not writable"), (self.draining, "draining")]
            .into_iter()
            .filter_map(|(holds, reason)| holds.then_some(reason))
            .collect()
    }

    /// `ok`, `degraded` or `unavailable`.
    pub fn word(&self) -> &'static str {
        match (self.reasons().is_empty(), self.degraded.is_empty()) {
            (false, _) => "unavailable",
            (true, false) => "degraded",
            (true, true) => "ok",
        }
    }
}

#[derive(Serialize)]
struct HealthBody<'a> {
    status: &'static str,
    reasons: Vec<&'static str>,
    degraded: &'a [String],
}

#[derive(Serialize)]
struct StatusBody<'a> {
    status: &'static str,
    reasons: Vec<&'static str>,
    degraded: &'a [String],
    pool: &'a str,
    instance: u8,
    version: &'a str,
    chain: &'a str,
    stratum: &'a [String],
    uptime_s: f64,
    height: Option<u32>,
    template_age_s: Option<f64>,
    driver: &'a str,
    kernel: &'a str,
    ack: &'a str,
    connections_open: u64,
    shares_received: u64,
    shares_accepted: u64,
    shares_rejected: u64,
    latency_us: Latency,
    blocks: Blocks,
    log: Log,
    clickhouse: &'a ClickHouse,
}

/// Why the endpoint could not start.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// The listener could not be handed to the event loop.
    #[error("stats endpoint on {address} could not start")]
    Start {
        /// Where it was to listen.
        address: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// A running endpoint on a thread of its own. Dropping it leaves the thread running; `stop` ends it.
pub struct StatsServer {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl StatsServer {
    /// Starts the endpoint on `listener`. `on_thread` runs first on the new thread: pin it there.
    pub fn start(
        listener: TcpListener,
        source: Arc<dyn StatsSource + Send + Sync>,
        on_thread: impl FnOnce() + Send + 'static,
    ) -> Result<Self, StatsError> {
        let address = listener.local_addr().map_err(|source| StatsError::Start { address: "its listener".to_owned(), source })?;
        let failed = |source| StatsError::Start { address: address.to_string(), source };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let (stop, stopped) = oneshot::channel();
        let listener = {
            let _guard = runtime.enter();
            nonblocking(listener).map_err(failed)?
        };
        let thread = std::thread::Builder::new()
            .name("stats".to_owned())
            .spawn(move || {
                on_thread();
                runtime.block_on(serve(listener, source, async move {
                    // A dropped handle must not stop the endpoint: only a message does.
                    if stopped.await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }));
            })
            .map_err(failed)?;
        Ok(Self { address, stop, thread })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends the endpoint and waits for its thread.
    pub fn stop(self) {
        // An error means that the thread has already ended, which is what is wanted.
        let _ = self.stop.send(());
        let _ = self.thread.join();
    }
}

fn nonblocking(listener: TcpListener) -> std::io::Result<tokio::net::TcpListener> {
    listener.set_nonblocking(true)?;
    tokio::net::TcpListener::from_std(listener)
}

/// Serves until `stop` is ready. For a runtime that has other work as well; `StatsServer` has one of its own.
pub async fn serve(listener: tokio::net::TcpListener, source: Arc<dyn StatsSource + Send + Sync>, stop: impl Future<Output = ()>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut stop = pin!(stop);
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, stream) = tokio::select! {
            () = &mut stop => return,
            (place, accepted) = accepted => match (place, accepted) {
                (Ok(place), Ok((stream, _))) => (place, stream),
                // Out of descriptors or the client has gone: the listener lives on, but must not spin.
                _ => { tokio::time::sleep(Duration::from_millis(50)).await; continue; }
            },
        };
        let source = Arc::clone(&source);
        tokio::spawn(async move {
            connection(stream, source).await;
            drop(place);
        });
    }
}

async fn connection(stream: tokio::net::TcpStream, source: Arc<dyn StatsSource + Send + Sync>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = respond(&request, source.as_ref());
        async move { Ok::<_, Infallible>(response) }
    });
    let mut http = pin!(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(REQUEST_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service)
    );
    // Errors are the client's: a reset, a late head, bytes that are no HTTP. hyper has answered what can be answered.
    if tokio::time::timeout(CONNECTION_TIMEOUT, http.as_mut()).await.is_err() {
        http.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, http).await;
    }
}

fn respond(request: &Request<Incoming>, source: &dyn StatsSource) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered here\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        return response;
    }
    if !request.body().is_end_stream() {
        let mut response = text(StatusCode::PAYLOAD_TOO_LARGE, "a request here has no body\n");
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        return response;
    }
    match request.uri().path() {
        "/" => reply(StatusCode::OK, "text/html; charset=utf-8", PAGE),
        "/live" => text(StatusCode::OK, "live\n"),
        "/health" | "/api/health" => health(&source.health()),
        "/metrics" => {
            reply(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", render_metrics(&source.snapshot(), &source.health()))
        }
        "/api/stats" => json(StatusCode::OK, &source.snapshot()),
        "/api/status" => status(&source.snapshot(), &source.health()),
        _ => text(StatusCode::NOT_FOUND, "not found; there are /, /live, /health, /metrics, /api/status and /api/stats\n"),
    }
}

fn health(health: &Health) -> Response<Full<Bytes>> {
    let reasons = health.reasons();
    let code = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(code, &HealthBody { status: health.word(), reasons, degraded: &health.degraded })
}

fn status(snapshot: &Snapshot, health: &Health) -> Response<Full<Bytes>> {
    let identity = &snapshot.identity;
    json(
        StatusCode::OK,
        &StatusBody {
            status: health.word(),
            reasons: health.reasons(),
            degraded: &health.degraded,
            pool: &identity.pool,
            instance: identity.instance,
            version: &identity.version,
            chain: &snapshot.chain,
            stratum: &identity.stratum,
            uptime_s: snapshot.uptime_s,
            height: identity.height,
            template_age_s: identity.template_age_s,
            driver: &snapshot.driver,
            kernel: &snapshot.kernel,
            ack: &snapshot.ack,
            connections_open: snapshot.connections.open,
            shares_received: snapshot.shares.received,
            shares_accepted: snapshot.shares.accepted,
            shares_rejected: snapshot.shares.rejected.total(),
            latency_us: snapshot.latency_us,
            blocks: snapshot.blocks,
            log: snapshot.log,
            clickhouse: &snapshot.clickhouse,
        },
    )
}

fn json(code: StatusCode, body: &impl Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec(body) {
        Ok(bytes) => reply(code, "application/json", bytes),
        // Plain structs of numbers and strings serialise; should one ever not, the scraper learns of it instead of the process ending.
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("this answer does not serialise: {error}\n")),
    }
}

fn text(code: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    reply(code, "text/plain; charset=utf-8", body)
}

fn reply(code: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(
        CONTENT_SECURITY_POLICY,
        // The page is one file: its own style and script stand inside of it, and it may talk to this server alone.
        HeaderValue::from_static(
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
    );
    response
}

/// Prometheus text (format 0.0.4): each family once, with its help and type.
struct Exposition(String);

impl Exposition {
    /// Name on export and type word. A counter gets `_total`.
    fn exported(name: &str, kind: MetricKind) -> (String, &'static str) {
        match kind {
            MetricKind::Counter => (format!("otedama_{name}_total"), "counter"),
            MetricKind::Gauge => (format!("otedama_{name}"), "gauge"),
        }
    }

    fn has(&self, name: &str, kind: MetricKind) -> bool {
        self.0.contains(&format!("# TYPE {} ", Self::exported(name, kind).0))
    }

    /// Starts a family. `name` is without the product's prefix.
    fn family(&mut self, name: &str, kind: MetricKind, help: &str) -> Family<'_> {
        let (name, word) = Self::exported(name, kind);
        // Writing to a String cannot fail.
        let _ = write!(self.0, "# HELP {name} {}\n# TYPE {name} {word}\n", help.replace('\\', "\\\\").replace('\n', "\\n"));
        Family { out: &mut self.0, name }
    }
}

struct Family<'a> {
    out: &'a mut String,
    name: String,
}

impl Family<'_> {
    fn value(&mut self, labels: &[(&str, &str)], value: f64) -> &mut Self {
        self.out.push_str(&self.name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let open = if index == 0 { '{' } else { ',' };
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.out, "{open}{label}=\"{text}\"");
        }
        if !labels.is_empty() {
            self.out.push('}');
        }
        let _ = writeln!(self.out, " {value}");
        self
    }
}

/// The answer of `/metrics`. No label names a worker, a session or an address: the number of series is fixed by the layout.
pub fn render_metrics(snapshot: &Snapshot, health: &Health) -> String {
    use MetricKind::{Counter, Gauge};
    let mut out = Exposition(String::with_capacity(8 * 1024));
    let count = |value: u64| value as f64;
    let identity = &snapshot.identity;
    out.family("build_info", Gauge, "Always 1; what is running is in the labels").value(
        &[
            ("version", &identity.version),
            ("driver", &snapshot.driver),
            ("kernel", &snapshot.kernel),
            ("ack", &snapshot.ack),
            ("chain", &snapshot.chain),
        ],
        1.0,
    );
    out.family("uptime_seconds", Gauge, "Seconds since the server listened").value(&[], snapshot.uptime_s);
    out.family("healthy", Gauge, "1 when miners should stay, 0 when /health answers 503")
        .value(&[], f64::from(u8::from(health.reasons().is_empty())));
    out.family("degraded_conditions", Gauge, "Conditions that degrade the server although miners should stay")
        .value(&[], health.degraded.len() as f64);

    let connections = &snapshot.connections;
    out.family("net_connections_open", Gauge, "Stratum connections open now").value(&[], count(connections.open));
    out.family("net_connection_accepted", Counter, "Stratum connections accepted").value(&[], count(connections.accepted));
    out.family("net_connection_refused", Counter, "Stratum connections refused").value(&[], count(connections.refused));
    out.family("net_line_refused", Counter, "Lines refused that were no submit of a subscribed session")
        .value(&[], count(snapshot.lines_refused));
    let shares = &snapshot.shares;
    out.family("net_share_received", Counter, "Submits of subscribed sessions").value(&[], count(shares.received));
    let mut judged = out.family("validate_share_judged", Counter, "Submits by verdict, those that net refused included");
    judged.value(&[("status", "accepted")], count(shares.accepted));
    for (label, refused) in shares.rejected.by_label() {
        judged.value(&[("status", label)], count(refused));
    }
    out.family("log_row_appended", Counter, "Rows appended to the journal").value(&[], count(shares.logged));
    let latency = &snapshot.latency_us;
    let mut ranks = out.family("net_share_latency_seconds", Gauge, "Bytes read to answer handed to the kernel, since start");
    for (rank, value_us) in [("p50", latency.p50), ("p99", latency.p99), ("p999", latency.p999), ("max", latency.max)] {
        ranks.value(&[("rank", rank)], count(value_us) / 1e6);
    }
    let blocks = &snapshot.blocks;
    out.family("chain_block_found", Counter, "Hashes at or under the network target").value(&[], count(blocks.found));
    let mut ends = out.family("chain_block_settled", Counter, "Found blocks by what became of them");
    for (label, settled) in [("accepted", blocks.accepted), ("superseded", blocks.superseded), ("rejected", blocks.rejected)] {
        ends.value(&[("status", label)], count(settled));
    }
    if let Some(height) = identity.height {
        out.family("chain_template_height", Gauge, "Height that the newest job works on").value(&[], f64::from(height));
    }
    if let Some(age_s) = identity.template_age_s {
        out.family("chain_template_age_seconds", Gauge, "Seconds since the newest template").value(&[], age_s);
    }

    let mut regimes = out.family("stage_regime_seconds", Counter, "Time of each stage by what it was doing");
    for stage in &snapshot.stages {
        for (regime, seconds) in &stage.regimes {
            regimes.value(&[("stage", &stage.name), ("regime", regime)], *seconds);
        }
    }
    let mut depths = out.family("ring_depth_records", Gauge, "Records a ring holds at most");
    for ring in &snapshot.rings {
        depths.value(&[("ring", &ring.name)], count(ring.depth));
    }
    let mut fills = out.family("ring_used_records", Gauge, "Records in a ring now");
    for ring in &snapshot.rings {
        fills.value(&[("ring", &ring.name)], count(ring.used));
    }

    let log = &snapshot.log;
    out.family("log_segment_sealed", Counter, "Segments sealed").value(&[], count(log.segments_sealed));
    out.family("log_occupied_bytes", Gauge, "Bytes of the share log on disk").value(&[], count(log.bytes));
    out.family("shipper_segment_shipped", Counter, "Segments acknowledged by ClickHouse").value(&[], count(log.segments_shipped));
    out.family("shipper_unshipped_rows", Gauge, "Sealed rows not yet acknowledged by ClickHouse").value(&[], count(log.rows_unshipped));
    let mut states = out.family("shipper_state", Gauge, "1 for the state the shipper is in, 0 for the others");
    for state in ["off", "ok", "retrying", "legacy"] {
        states.value(&[("state", state)], f64::from(u8::from(snapshot.clickhouse.state == state)));
    }
    for metric in &snapshot.metrics {
        // A stage may count what a field above has already shown; a family that stands twice makes a scraper refuse the whole answer.
        if !out.has(&metric.name, metric.kind) {
            out.family(&metric.name, metric.kind, metric.help).value(&[], metric.value);
        }
    }
    out.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::sync::Mutex;

    struct Fixed(Mutex<Health>);

    fn snapshot() -> Snapshot {
        Snapshot {
            uptime_s: 12.3,
            driver: "uring".into(),
            kernel: "avx512x2".into(),
            ack: "process".into(),
            chain: "practice".into(),
            connections: Connections { open: 64, accepted: 64, refused: 0 },
            shares: Shares { received: 1000, accepted: 990, rejected: Rejected::from_counts(&[990, 1, 2, 7, 0, 0, 0, 0, 0]), logged: 1000 },
            lines_refused: 0,
            blocks: Blocks::default(),
            latency_us: Latency { p50: 20, p99: 80, p999: 200, max: 900 },
            stages: vec![Stage {
                name: "validate:0".into(),
                core: 1,
                busy: 0.41,
                backpressure: 0.0,
                regimes: vec![("processing", 4.5), ("backpressure", 0.0), ("caught_up", 7.25)],
            }],
            rings: vec![Ring { name: "net_validate:0".into(), depth: 16384, used: 12 }],
            log: Log { segments_sealed: 3, segments_shipped: 3, rows_unshipped: 0, bytes: 123 },
            clickhouse: ClickHouse { state: "off".into(), last_error: String::new() },
            identity: Identity {
                pool: "otedama".into(),
                instance: 7,
                version: "0.1.0".into(),
                stratum: vec!["127.0.0.1:3333".into()],
                height: Some(840_000),
                template_age_s: Some(1.5),
            },
            metrics: vec![Metric {
                name: "net_reply_queue_full".into(),
                help: "Replies that had to wait",
                kind: MetricKind::Counter,
                value: 4.0,
            }],
        }
    }

    impl StatsSource for Fixed {
        fn snapshot(&self) -> Snapshot {
            snapshot()
        }
        fn health(&self) -> Health {
            self.0.lock().unwrap().clone()
        }
    }

    fn healthy() -> Health {
        Health { fresh_template: true, log_writable: true, draining: false, degraded: Vec::new() }
    }

    fn start(health: Health) -> StatsServer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        StatsServer::start(listener, Arc::new(Fixed(Mutex::new(health))), || {}).unwrap()
    }

    /// Sends `request` as it stands and returns code, head and body.
    fn exchange(server: &StatsServer, request: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_ascii_lowercase(), body.to_owned())
    }

    fn get(server: &StatsServer, path: &str) -> (u16, String, String) {
        exchange(server, &format!("GET {path} HTTP/1.1\r\nHost: stats\r\nConnection: close\r\n\r\n"))
    }

    #[test]
    fn stats_are_the_published_json_in_the_published_key_order() {
        let server = start(healthy());
        let (code, head, body) = get(&server, "/api/stats");
        assert_eq!(code, 200);
        assert!(head.contains("content-type: application/json"), "{head}");
        assert_eq!(
            body,
            concat!(
                r#"{"uptime_s":12.3,"driver":"uring","kernel":"avx512x2","ack":"process","chain":"practice","connections":{"open":64,"accepted":64,"refused":0},"#,
                r#""shares":{"received":1000,"accepted":990,"rejected":{"stale":1,"duplicate":2,"low_difficulty":7,"bad_time":0,"bad_version":0,"malformed":0,"unauthorized":0,"overload":0},"logged":1000},"lines_refused":0,"#,
                r#""blocks":{"found":0,"accepted":0,"superseded":0,"rejected":0},"latency_us":{"p50":20,"p99":80,"p999":200,"max":900},"#,
                r#""stages":[{"name":"validate:0","core":1,"busy":0.41,"backpressure":0.0}],"rings":[{"name":"net_validate:0","depth":16384,"used":12}],"#,
                r#""log":{"segments_sealed":3,"segments_shipped":3,"rows_unshipped":0,"bytes":123},"clickhouse":{"state":"off","last_error":""}}"#
            )
        );
        server.stop();
    }

    #[test]
    fn health_is_503_only_for_what_sends_a_miner_elsewhere() {
        for (change, code, word) in [
            (healthy(), 200, "ok"),
            (Health { degraded: vec!["clickhouse retrying".into()], ..healthy() }, 200, "degraded"),
            (Health { fresh_template: false, ..healthy() }, 503, "no fresh template"),
            (Health { log_writable: false, ..healthy() }, 503, "log not writable"),
            (Health { draining: true, degraded: vec!["clickhouse retrying".into()], ..healthy() }, 503, "draining"),
        ] {
            let degraded = change.degraded.clone();
            let server = start(change);
            for path in ["/health", "/api/health"] {
                let (answered, _, body) = get(&server, path);
                assert_eq!(answered, code, "{word}");
                assert!(body.contains(&format!("\"{word}\"")), "{body}");
                let parsed: serde_json::Value = serde_json::from_str(&body).unwrap();
                assert_eq!(parsed["degraded"], serde_json::json!(degraded));
            }
            assert_eq!(get(&server, "/live").0, 200, "a server that lives says so, healthy or not");
            server.stop();
        }
    }

    #[test]
    fn status_names_the_server_and_sums_the_refusals() {
        let server = start(healthy());
        let (code, _, body) = get(&server, "/api/status?pretty=1");
        assert_eq!(code, 200);
        let parsed: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(parsed["status"], "ok");
        assert_eq!(parsed["pool"], "otedama");
        assert_eq!(parsed["instance"], 7);
        assert_eq!(parsed["shares_rejected"], 10);
        assert_eq!(parsed["height"], 840_000);
        server.stop();
    }

    #[test]
    fn every_metric_family_stands_once_with_help_and_type() {
        let mut source = snapshot();
        // What a field shows already, and the same metric from two stages.
        for name in ["net_share_received", "net_reply_queue_full"] {
            source.metrics.push(Metric { name: name.into(), help: "again", kind: MetricKind::Counter, value: 9.0 });
        }
        let text = render_metrics(&source, &healthy());
        let mut seen = std::collections::HashSet::new();
        let mut family = String::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                family = rest.split(' ').next().unwrap().to_owned();
                assert!(seen.insert(family.clone()), "{family} stands twice");
                assert!(rest.len() > family.len() + 1, "{family} has no help");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert_eq!(name, family);
                assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
            } else {
                let name = line.split(['{', ' ']).next().unwrap();
                assert_eq!(name, family, "a sample outside of its family");
                assert!(line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
                assert!(!line.contains("worker="), "{line}");
            }
        }
        for line in [
            "otedama_net_share_received_total 1000",
            "otedama_validate_share_judged_total{status=\"low_difficulty\"} 7",
            "otedama_stage_regime_seconds_total{stage=\"validate:0\",regime=\"caught_up\"} 7.25",
            "otedama_ring_used_records{ring=\"net_validate:0\"} 12",
            "otedama_net_reply_queue_full_total 4",
            "otedama_shipper_state{state=\"off\"} 1",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn label_values_are_escaped() {
        let mut odd = snapshot();
        odd.identity.version = "a\"b\\c\nd".into();
        assert!(render_metrics(&odd, &healthy()).contains(r#"version="a\"b\\c\nd""#));
    }

    #[test]
    fn the_page_asks_nothing_of_other_servers() {
        let server = start(healthy());
        let (code, head, body) = get(&server, "/");
        assert_eq!(code, 200);
        assert!(head.contains("content-type: text/html"));
        assert!(head.contains("content-security-policy: default-src 'none'"));
        assert!(body.contains("/api/stats") && body.contains("PRACTICE"));
        for outside in ["http://", "https://", "src=", "@import", "innerHTML"] {
            let found = body.replace("http://www.w3.org/2000/svg", "").contains(outside);
            assert!(!found, "the page has {outside}");
        }
        server.stop();
    }

    #[test]
    fn head_has_the_length_and_no_body() {
        let server = start(healthy());
        let (code, head, body) = exchange(&server, "HEAD /api/stats HTTP/1.1\r\nHost: stats\r\nConnection: close\r\n\r\n");
        let length: usize = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap();
        assert_eq!((code, body.as_str()), (200, ""));
        assert_eq!(length, serde_json::to_vec(&snapshot()).unwrap().len());
        server.stop();
    }

    #[test]
    fn what_is_not_offered_is_refused() {
        let server = start(healthy());
        assert_eq!(get(&server, "/nothing").0, 404);
        assert_eq!(get(&server, "/api/stats/").0, 404);
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "BREW"] {
            let (code, head, _) =
                exchange(&server, &format!("{method} /live HTTP/1.1\r\nHost: stats\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"));
            assert_eq!(code, 405, "{method}");
            assert!(head.contains("allow: get, head"), "{head}");
        }
        assert_eq!(exchange(&server, "GET /live HTTP/1.1\r\nHost: stats\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello").0, 413);
        assert_eq!(exchange(&server, "\u{1}\u{2} not http\r\n\r\n").0, 400);
        let long = format!("GET /live HTTP/1.1\r\nHost: stats\r\nX-Long: {}", "a".repeat(REQUEST_BYTES_MAX));
        assert_eq!(exchange(&server, &long).0, 431);
        assert_eq!(get(&server, "/live").0, 200, "the endpoint lives on");
        server.stop();
    }

    #[test]
    fn silent_clients_do_not_shut_others_out() {
        let server = start(healthy());
        let silent: Vec<_> = (0..CONNECTIONS_MAX - 1).map(|_| TcpStream::connect(server.address()).unwrap()).collect();
        assert_eq!(get(&server, "/live").0, 200);
        drop(silent);
        server.stop();
    }

    #[test]
    fn one_connection_serves_many_requests() {
        let server = start(healthy());
        let (_, _, rest) = exchange(
            &server,
            "GET /live HTTP/1.1\r\nHost: stats\r\n\r\nGET /live HTTP/1.1\r\nHost: stats\r\n\r\nGET /live HTTP/1.1\r\nHost: stats\r\nConnection: close\r\n\r\n",
        );
        assert_eq!(rest.matches("live\n").count(), 3, "{rest}");
        server.stop();
    }
}
