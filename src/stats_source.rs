//! Sums the counters of all stages into what the stats endpoint shows.
use crate::config::{Ack, Config};
use crate::jobs::lock;
use crate::stats::{
    Blocks, ClickHouse, Connections, Health, Identity, Latency, Log, Metric, MetricKind, Rejected, Ring, Shares, Snapshot, Stage,
    StatsSource,
};
use crate::topology::Latencies;
use hdrhistogram::Histogram;
use otedama_chain::ChainStats;
use otedama_kernels::Isa;
use otedama_pipeline::metrics::{CaptureMetrics, Kind, LogMetrics, NetMetrics, Sample, ValidateMetrics};
use otedama_pipeline::ring::RingInfo;
use otedama_pipeline::stages::DOUBLINGS_MAX;
use otedama_pipeline::sys::WallClock;
use otedama_pipeline::topology::StageInfo;
use otedama_pipeline::{Running, Rx, Tx};
use otedama_primitives::Clock;
use otedama_sharelog::LogCounters;
use otedama_shipper::{ShipperState, StateKind};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Shares of time are those of the last window at least this long.
const WINDOW: Duration = Duration::from_millis(900);
const REGIMES: [&str; 4] = ["caught_up", "processing", "backpressure", "housekeeping"];

/// The counters of a pool.
pub struct PoolStats {
    started: Instant,
    chain_label: String,
    identity: Identity,
    driver: &'static str,
    isa: Isa,
    ack: String,
    clock: WallClock,
    stages: Vec<StageInfo>,
    rings: Vec<RingInfo>,
    nets: Vec<Arc<NetMetrics>>,
    /// Empty without `--capture`.
    captures: Vec<Arc<CaptureMetrics>>,
    validates: Vec<Arc<ValidateMetrics>>,
    log: Arc<LogMetrics>,
    log_counters: Arc<LogCounters>,
    chain: Arc<ChainStats>,
    shipper: Arc<ShipperState>,
    ships: bool,
    draining: AtomicBool,
    live: Mutex<Live>,
}

/// What changes as it is read; the stats and control threads take this lock.
struct Live {
    latency: Histogram<u64>,
    rings: Vec<(Rx<Latencies>, Tx<Latencies>)>,
    window_from: Instant,
    regimes_before: Vec<[u64; 4]>,
    shares: Vec<(f64, f64)>,
}

/// What `/health` says once the scalar kernel has refuted the one chosen at boot.
fn kernel_degraded(kernel: &str, disagreed: u64) -> String {
    format!("kernel {kernel} hashed {disagreed} shares otherwise than the scalar kernel; the lanes that saw it use the portable kernel now")
}

/// What `/health` says while measures against overload are in force.
fn overload_degraded(step: u64, unread_us: u64) -> String {
    let doublings = step.saturating_sub(1).min(u64::from(DOUBLINGS_MAX));
    let mut measures = "no new connections".to_owned();
    if doublings > 0 {
        measures += &format!(", the busiest sessions at difficulty x{}", 1 << doublings);
    }
    if step > u64::from(DOUBLINGS_MAX) + 1 {
        measures += ", the worst sessions are closed";
    }
    format!("overload: bytes wait {} ms to be read; {measures}", unread_us / 1000)
}

fn load(value: &AtomicU64) -> u64 {
    // Relaxed: every number stands for itself.
    value.load(Ordering::Relaxed)
}

impl PoolStats {
    /// Reads the counters of a running pool.
    #[expect(clippy::too_many_arguments, reason = "one argument per part that counts; a struct would say the same names twice")]
    pub fn new(
        config: &Config,
        running: &Running,
        driver: &'static str,
        isa: Isa,
        clock: WallClock,
        nets: Vec<Arc<NetMetrics>>,
        captures: Vec<Arc<CaptureMetrics>>,
        validates: Vec<Arc<ValidateMetrics>>,
        log: Arc<LogMetrics>,
        latencies: Vec<(Rx<Latencies>, Tx<Latencies>)>,
        log_counters: Arc<LogCounters>,
        chain: Arc<ChainStats>,
        stratum: Vec<SocketAddr>,
    ) -> Self {
        let identity = Identity {
            pool: config.pool.name.clone(),
            instance: config.pool.instance,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            stratum: stratum.iter().map(SocketAddr::to_string).collect(),
            height: None,
            template_age_s: None,
        };
        let live = Live {
            latency: *otedama_pipeline::stages::Histograms::empty(),
            rings: latencies,
            window_from: Instant::now(),
            regimes_before: running.stages.iter().map(|stage| stage.regimes.read()).collect(),
            shares: vec![(0.0, 0.0); running.stages.len()],
        };
        Self {
            started: Instant::now(),
            chain_label: if config.chain.is_practice() { "practice".to_owned() } else { config.chain.network.name().to_owned() },
            identity,
            driver,
            isa,
            ack: config.log.ack.name().to_owned(),
            clock,
            stages: running.stages.clone(),
            rings: running.rings.clone(),
            nets,
            captures,
            validates,
            log,
            log_counters,
            chain,
            shipper: Arc::default(),
            ships: config.clickhouse.url.is_some(),
            draining: AtomicBool::new(false),
            live: Mutex::new(live),
        }
    }

    /// The shipper's state, to be filled by it.
    pub fn shipper(&self) -> Arc<ShipperState> {
        self.shipper.clone()
    }

    /// Takes the latency histograms in; once a second, or the nets would go on counting in the ones they have until somebody asks.
    pub fn collect(&self) {
        lock(&self.live).take_histograms();
    }

    /// Says on `/health` that the pool is going down.
    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    fn sum(&self, pick: impl Fn(&NetMetrics) -> &AtomicU64) -> u64 {
        self.nets.iter().map(|net| load(pick(net))).sum()
    }

    /// Rows acknowledged that a power cut at this moment could take, and the age of the oldest in milliseconds. None in tier `disk`; in the others a row is safe once it is
    /// in a sealed segment.
    fn at_risk(&self) -> (f64, f64) {
        if self.ack == Ack::Disk.name() {
            return (0.0, 0.0);
        }
        let rows = load(&self.log.row_appended).saturating_sub(load(&self.log_counters.rows_sealed_of_run));
        let oldest_us = load(&self.log_counters.oldest_unsealed_us);
        let age_ms = if rows == 0 || oldest_us == 0 { 0 } else { self.clock.now_us().saturating_sub(oldest_us) / 1000 };
        (rows as f64, age_ms as f64)
    }

    fn metrics(&self) -> Vec<Metric> {
        let mut by_name: BTreeMap<String, Metric> = BTreeMap::new();
        let mut add = |stage: &str, samples: Vec<Sample>| {
            for sample in samples {
                let name = format!("{stage}_{}", sample.name);
                let kind = if sample.kind == Kind::Counter { MetricKind::Counter } else { MetricKind::Gauge };
                let metric = by_name.entry(name.clone()).or_insert(Metric { name, help: sample.help, kind, value: 0.0 });
                let value = sample.value as f64;
                metric.value = if sample.kind == Kind::Most { metric.value.max(value) } else { metric.value + value };
            }
        };
        self.nets.iter().for_each(|net| add("net", net.samples()));
        self.validates.iter().for_each(|validate| add("validate", validate.samples()));
        add("log", self.log.samples());
        self.captures.iter().for_each(|capture| add("capture", capture.samples()));
        let gauge = |name: &str, help, value: f64| Metric { name: name.to_owned(), help, kind: MetricKind::Gauge, value };
        let counter = |name: &str, help, value: u64| Metric { name: name.to_owned(), help, kind: MetricKind::Counter, value: value as f64 };
        let chain = self.chain.snapshot(self.clock.now_us());
        let log = &self.log_counters;
        let (at_risk_rows, at_risk_ms) = self.at_risk();
        let mut all: Vec<_> = by_name.into_values().collect();
        all.extend([
            counter("chain_job_issued", "Jobs issued", chain.jobs),
            counter("chain_template_received", "Templates received", chain.templates),
            counter("chain_call_failed", "Calls to nodes that failed", chain.calls_failed),
            gauge(
                "chain_block_handed_last_seconds",
                "Newest submitted block candidate: from the bytes read to the start of submitblock",
                chain.handed_us_last as f64 / 1e6,
            ),
            gauge("chain_block_handed_most_seconds", "The same, the largest since the start", chain.handed_us_most as f64 / 1e6),
            gauge("log_full_state", "1 while the disk or max_bytes is full", f64::from(u8::from(log.log_full.load(Ordering::Relaxed)))),
            gauge(
                "log_rollup_state",
                "1 while sums are kept instead of rows because room is short (when_full = rollup)",
                f64::from(u8::from(log.rolled_up.load(Ordering::Relaxed))),
            ),
            counter("log_share_rolled_up", "Shares that stand in sums because room was short", load(&log.shares_rolled_up)),
            gauge("log_journal_spare_count", "Journal files ready for use", load(&log.journal_spares) as f64),
            gauge("log_row_at_risk_count", "Rows acknowledged that a power cut now could take", at_risk_rows),
            gauge("log_row_at_risk_ms", "Milliseconds since the oldest such row that the sealer has read came in", at_risk_ms),
            counter("log_sync_completed", "Tier disk: rounds of the sync thread", load(&log.syncs)),
            counter("log_sync_failed", "Tier disk: rounds that failed; nothing was acknowledged by them", load(&log.syncs_failed)),
            counter("log_sync_spent_us", "Tier disk: microseconds spent in rounds of the sync thread", load(&log.sync_us)),
            gauge("log_sync_longest_us", "Tier disk: the longest round", load(&log.sync_us_max) as f64),
            counter("log_journal_replaced", "Tier disk: journal files given up after a failed write or sync", load(&log.journals_replaced)),
            counter("log_tail_cut_byte", "Unacknowledged bytes behind the last sync that a power cut took", load(&log.cut_bytes)),
            counter("log_row_sealed", "Rows sealed into segments", load(&log.rows_sealed)),
            counter("log_segment_packed", "Cold segments compressed", load(&log.segments_packed)),
            counter("log_packed_away_byte", "Bytes that compressing cold segments saved", load(&log.packed_away_bytes)),
            counter("log_journal_damaged", "Journal files set aside because a part of them was damaged", load(&log.journals_damaged)),
            counter("shipper_row_shipped", "Rows that ClickHouse acknowledged", load(&self.shipper.rows_shipped)),
            counter("shipper_request_retried", "Requests to ClickHouse that were tried again", load(&self.shipper.retries)),
            counter(
                "shipper_segment_lost",
                "Segments that ClickHouse had acknowledged and lost; they were sent again",
                load(&self.shipper.segments_lost),
            ),
            counter(
                "shipper_segment_found_wrong",
                "Segments found doubled or in part; otedama reconcile names them",
                load(&self.shipper.findings),
            ),
        ]);
        all
    }
}

impl Live {
    fn take_histograms(&mut self) {
        for (full, empty) in &mut self.rings {
            while let Some(mut histogram) = full.pop() {
                // Same bounds on both sides, so adding cannot fail.
                let added = self.latency.add(&*histogram);
                debug_assert!(added.is_ok());
                histogram.reset();
                let returned = empty.push(histogram);
                debug_assert!(returned.is_ok(), "as many circulate as the ring holds");
            }
            full.publish();
            empty.publish();
        }
    }

    fn read(&mut self, stages: &[StageInfo]) -> Latency {
        self.take_histograms();
        let elapsed = self.window_from.elapsed();
        if elapsed >= WINDOW {
            let now: Vec<_> = stages.iter().map(|stage| stage.regimes.read()).collect();
            for ((share, before), now) in self.shares.iter_mut().zip(&self.regimes_before).zip(&now) {
                let spent: Vec<f64> = now.iter().zip(before).map(|(now, before)| now.saturating_sub(*before) as f64).collect();
                let all = spent.iter().sum::<f64>().max(1.0);
                *share = ((spent[1] + spent[3]) / all, spent[2] / all);
            }
            self.regimes_before = now;
            self.window_from = Instant::now();
        }
        let at = |quantile| self.latency.value_at_quantile(quantile);
        if self.latency.is_empty() {
            Latency::default()
        } else {
            Latency { p50: at(0.5), p99: at(0.99), p999: at(0.999), max: self.latency.max() }
        }
    }
}

impl StatsSource for PoolStats {
    fn snapshot(&self) -> Snapshot {
        let (latency_us, shares_of_time) = {
            let mut live = lock(&self.live);
            (live.read(&self.stages), live.shares.clone())
        };
        let chain = self.chain.snapshot(self.clock.now_us());
        // By number of the status.
        let by_status = [
            self.sum(|net| &net.share_accepted),
            self.sum(|net| &net.share_stale_refused),
            self.sum(|net| &net.share_duplicate_refused),
            self.sum(|net| &net.share_low_difficulty_refused),
            self.sum(|net| &net.share_bad_time_refused),
            self.sum(|net| &net.share_bad_version_refused),
            self.sum(|net| &net.share_malformed_refused),
            self.sum(|net| &net.share_unauthorized_refused),
            self.sum(|net| &net.share_overload_refused),
        ];
        let round = |value: f64| (value * 10_000.0).round() / 10_000.0;
        let stages = self.stages.iter().zip(shares_of_time).map(|(stage, (busy, backpressure))| Stage {
            name: stage.name.clone(),
            core: stage.core,
            busy: round(busy),
            backpressure: round(backpressure),
            regimes: REGIMES.into_iter().zip(stage.regimes.read().map(|ns| ns as f64 / 1e9)).collect(),
        });
        Snapshot {
            uptime_s: (self.started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0,
            driver: self.driver.to_owned(),
            kernel: self.isa.label().to_owned(),
            ack: self.ack.clone(),
            chain: self.chain_label.clone(),
            connections: Connections {
                open: self.sum(|net| &net.connection_open),
                accepted: self.sum(|net| &net.connection_accepted),
                refused: self.sum(|net| &net.connection_refused),
            },
            shares: Shares {
                received: self.sum(|net| &net.share_received),
                accepted: by_status[0],
                rejected: Rejected::from_counts(&by_status),
                logged: load(&self.log.row_appended),
            },
            lines_refused: self.sum(|net| &net.line_refused),
            blocks: Blocks {
                found: chain.blocks_found,
                accepted: chain.blocks_accepted,
                superseded: chain.blocks_superseded,
                rejected: chain.blocks_rejected,
            },
            latency_us,
            stages: stages.collect(),
            rings: self.rings.iter().map(|ring| Ring { name: ring.name.clone(), depth: ring.depth as u64, used: ring.used() }).collect(),
            log: Log {
                segments_sealed: load(&self.log_counters.segments_sealed),
                segments_shipped: load(&self.log_counters.segments_shipped),
                rows_unshipped: load(&self.log_counters.rows_unshipped),
                bytes: load(&self.log_counters.bytes),
            },
            clickhouse: ClickHouse {
                state: if self.ships { self.shipper.kind().label().to_owned() } else { "off".to_owned() },
                last_error: self.shipper.last_error(),
            },
            identity: Identity {
                height: (chain.height > 0).then_some(chain.height),
                template_age_s: chain.template_age_ms.map(|age| age as f64 / 1000.0),
                ..self.identity.clone()
            },
            metrics: self.metrics(),
        }
    }

    fn health(&self) -> Health {
        let chain = self.chain.snapshot(self.clock.now_us());
        let mut degraded = Vec::new();
        if self.ships && matches!(self.shipper.kind(), StateKind::Retrying | StateKind::Refusing) {
            degraded.push(format!("clickhouse {}: {}", self.shipper.kind().label(), self.shipper.last_error()));
        }
        let disagreed: u64 = self.validates.iter().map(|validate| load(&validate.kernel_disagreed)).sum();
        if disagreed > 0 {
            degraded.push(kernel_degraded(self.isa.label(), disagreed));
        }
        let most = |pick: fn(&NetMetrics) -> &AtomicU64| self.nets.iter().map(|net| load(pick(net))).max().unwrap_or(0);
        let step = most(|net| &net.overload_step);
        if step > 0 {
            degraded.push(overload_degraded(step, most(|net| &net.unread_oldest_us)));
        }
        if chain.fresh && !chain.last_error.is_empty() {
            degraded.push(format!("node: {}", chain.last_error));
        }
        let log_full = self.log_counters.log_full.load(Ordering::Relaxed);
        let troubles = self.log_counters.troubles();
        let log_writable = !log_full && troubles.is_empty();
        if log_full && troubles.is_empty() {
            degraded.push("log: max_bytes is reached and nothing may be deleted yet".to_owned());
        }
        if self.log_counters.rolled_up.load(Ordering::Relaxed) {
            degraded.push("log: max_bytes is near or the disk was full, so sums by worker and second are kept instead of rows".to_owned());
        }
        let unpacked = self.log_counters.packing_trouble();
        if !unpacked.is_empty() {
            degraded.push(format!("log: a cold segment could not be compressed: {unpacked}"));
        }
        degraded.extend(troubles.into_iter().map(|trouble| format!("log: {trouble}")));
        Health { fresh_template: chain.fresh, log_writable, draining: self.draining.load(Ordering::Relaxed), degraded }
    }
}
