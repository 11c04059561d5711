//! `otedama reconcile --repair`: what the server lacks is sent again, what it has too often or in part is deleted and sent again, and the roll-ups of those hours are made again.
//!
//! Exact on servers with tokens and without, because nothing is done that a second process, or a second run, could do as well: the folder's lock on sending again is held, a
//! segment is counted before it is sent and after, it goes out under an identity that the server has never seen (a known one would be dropped in silence), and what an
//! earlier run may have left at work on the server is waited for. A run that dies is simply made again.
//!
//! Deletions are made only with leave (`allow_delete`); without it the report names the statements. The views that fill the roll-ups see inserts and no deletion, and a server
//! without tokens that is killed between the part of `shares` and those of its views lacks their sums: such hours are deleted from the roll-up and summed from
//! `shares` again, as soon as nothing is written into them any more.
use crate::ShipperSettings;
use crate::dimension::{RecentJobs, date_time};
use crate::probe::{Method, Server, probe};
use crate::reconcile::{ReconcileError, ReconcileReport, reconcile_with};
use crate::schema::{ROLL_UPS, RollUp, SHARES, identifier, literal};
use crate::ship::{Copies, Link, Pending, REPAIR, at_work_sql, instance_of, now_us, number, read_dimensions};
use crate::sink::{Sink, SinkError};
use otedama_sharelog::SegmentMeta;
use otedama_sharelog::store::{Cursor, DamagedMeta, Readable, SegmentStore, is_being_written, lock_resending};
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Tries of one insert before the run gives up; made again, it goes on where this one ended.
const TRIES: u32 = 10;
const HOUR_S: u64 = 3600;
const US: u64 = 1_000_000;

/// Hours of a roll-up that were made again, or are to be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct RollUpHours {
    /// Name of the roll-up.
    pub roll_up: &'static str,
    /// Start of the first hour, UTC.
    pub since: String,
    /// End of the last hour, UTC.
    pub until: String,
}

/// Something that was left as it is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Left {
    /// What it is, and why it was left.
    pub what: String,
    /// The statements that `--yes` runs, or that are for the operator to run.
    pub statements: Vec<String>,
}

/// What a repair found and did.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct RepairReport {
    /// The reconciliation before it.
    pub before: ReconcileReport,
    /// Segments whose rows were deleted on the server, to be sent again.
    pub deleted: Vec<String>,
    /// Segments that were sent again.
    pub shipped_again: Vec<String>,
    /// Roll-ups made again.
    pub rebuilt: Vec<RollUpHours>,
    /// What was left as it is.
    pub left: Vec<Left>,
    /// The reconciliation after it.
    pub after: ReconcileReport,
}

/// Repairs what `reconcile` finds between the log in `dir` and the server. Rows are deleted only with `allow_delete`.
///
/// # Errors
/// When log or server cannot be read or written; what was done until then is right, and a further run goes on.
pub async fn repair(settings: &ShipperSettings, dir: &Path, allow_delete: bool) -> Result<RepairReport, ReconcileError> {
    repair_with(settings.sink(), settings, dir, allow_delete).await
}

/// As `repair`, with a transport of your own.
///
/// # Errors
/// As `repair`.
pub async fn repair_with<S: Sink>(
    sink: S,
    settings: &ShipperSettings,
    dir: &Path,
    allow_delete: bool,
) -> Result<RepairReport, ReconcileError> {
    let store = SegmentStore::open(dir)?;
    let mut report = RepairReport::default();
    let Readable { metas, damaged } = store.readable()?;
    if metas.is_empty() && damaged.is_empty() {
        return Ok(report);
    }
    let Some(_lock) = lock_resending(dir)? else {
        return Err(SinkError::Busy(format!(
            "the pool (or another repair) is sending lost segments of {} again at this moment: wait for it, then look with `otedama reconcile`",
            dir.display()
        ))
        .into());
    };
    // Makes tables that are missing, where the settings allow it: a server that was set up anew is repaired like any other.
    let server = probe(&sink, settings).await?;
    let repair = Repair { link: Link { sink, settings: settings.clone() }, server, store, dir, allow_delete };
    repair.until_quiet().await?;
    report.before = reconcile_with(&repair.link.sink, settings, dir).await?;
    if repair.server.replicated || repair.server.shares != SHARES.name {
        if !report.before.is_clean() {
            report.left.push(Left {
                what:
                    "shares is replicated or spread over a cluster: run the repair of a shard on a node of it, replica by replica, by hand"
                        .to_owned(),
                statements: repair.statements_for(&report.before)?,
            });
        }
        report.after = report.before.clone();
        return Ok(report);
    }
    repair.segments(&mut report).await?;
    repair.roll_ups(&mut report).await?;
    report.after = reconcile_with(&repair.link.sink, settings, dir).await?;
    Ok(report)
}

struct Repair<'a, S> {
    link: Link<S>,
    server: Server,
    store: SegmentStore,
    dir: &'a Path,
    allow_delete: bool,
}

/// Whole hours, seconds since the epoch; the end is behind the last one.
#[derive(Clone, Copy)]
struct Hours {
    since_s: u64,
    until_s: u64,
}

impl Hours {
    fn of(first_us: u64, last_us: u64) -> Self {
        let hour = |us: u64| us / US / HOUR_S * HOUR_S;
        Self { since_s: hour(first_us), until_s: hour(last_us) + HOUR_S }
    }

    fn bounds(self) -> (String, String) {
        let moment = |seconds: u64| format!("toDateTime({}, 'UTC')", literal(&date_time(seconds)));
        (moment(self.since_s), moment(self.until_s))
    }
}

impl<S: Sink> Repair<'_, S> {
    fn settings(&self) -> &ShipperSettings {
        &self.link.settings
    }

    fn delete_sql(&self, meta: &SegmentMeta) -> String {
        format!(
            "ALTER TABLE {}.{} DELETE WHERE instance = {} AND seg = {}",
            identifier(&self.settings().database),
            identifier(self.server.shares),
            instance_of(meta),
            meta.seg
        )
    }

    fn statements_for(&self, report: &ReconcileReport) -> Result<Vec<String>, ReconcileError> {
        let metas = self.store.readable()?.metas;
        let named = |meta: &&SegmentMeta| report.missing.contains(&meta.name) || report.doubled.contains(&meta.name);
        Ok(metas.iter().filter(named).map(|meta| self.delete_sql(meta)).collect())
    }

    /// Waits until no insert and no deletion of an earlier repair is at work.
    async fn until_quiet(&self) -> Result<(), SinkError> {
        let database = literal(&self.settings().database);
        let inserts = at_work_sql(REPAIR);
        let mutations = format!("SELECT count() FROM system.mutations WHERE database = {database} AND NOT is_done FORMAT TabSeparated");
        for sql in [inserts, mutations] {
            self.until("what an earlier repair began", || async { Ok(number(&self.link.sink.query(&sql).await?)? == 0) }).await?;
        }
        Ok(())
    }

    async fn until<F: Future<Output = Result<bool, SinkError>>>(&self, what: &str, done: impl Fn() -> F) -> Result<(), SinkError> {
        let since = Instant::now();
        let mut wait = self.settings().pace.wait_first;
        while !done().await? {
            if since.elapsed() > self.settings().timeouts.answer {
                return Err(SinkError::Busy(format!(
                    "{what} is not over after {} s: see system.mutations and system.processes on the server, then run the repair again",
                    self.settings().timeouts.answer.as_secs()
                )));
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(1));
        }
        Ok(())
    }

    /// Every segment that was acknowledged ends up on the server once.
    async fn segments(&self, report: &mut RepairReport) -> Result<(), ReconcileError> {
        let Readable { metas, damaged } = self.store.readable()?;
        report.left.extend(damaged.into_iter().map(|damaged| Left { what: damaged.error.to_string(), statements: Vec::new() }));
        let metas: Vec<Arc<SegmentMeta>> = metas.into_iter().map(Arc::new).collect();
        let wanted = |meta: &&Arc<SegmentMeta>| report.before.missing.contains(&meta.name) || report.before.doubled.contains(&meta.name);
        let concerned: Vec<_> = metas.iter().filter(wanted).cloned().collect();
        if concerned.is_empty() {
            return Ok(());
        }
        let keep_us = u64::from(self.settings().keep_days).saturating_sub(1) * 86_400 * US;
        let now = now_us();
        // A server that lost rows, or was set up anew, may lack what names them too. Records that it has are replaced by themselves.
        self.dimensions().await?;
        for meta in concerned {
            if self.settings().keep_days > 0 && meta.first_us + keep_us < now {
                report.left.push(Left {
                    what: format!(
                        "{}: older than the {} days that rows of shares stay on the server",
                        meta.name,
                        self.settings().keep_days
                    ),
                    statements: Vec::new(),
                });
                continue;
            }
            let found = self.link.count(&self.server, &meta).await?;
            if found > 0 {
                let statement = self.delete_sql(&meta);
                if !self.allow_delete {
                    report.left.push(Left {
                        what: format!(
                            "{}: the server has {found} rows of {}; they have to be deleted before it is sent again, which --yes allows",
                            meta.name, meta.rows
                        ),
                        statements: vec![statement],
                    });
                    continue;
                }
                self.link.sink.query(&statement).await?;
                self.until("a deletion", || async { Ok(self.link.count(&self.server, &meta).await? == 0) }).await?;
                report.deleted.push(meta.name.clone());
            }
            self.ship(&meta).await?;
            report.shipped_again.push(meta.name.clone());
        }
        Ok(())
    }

    async fn dimensions(&self) -> Result<(), ReconcileError> {
        let mut jobs = RecentJobs::default();
        let mut from = 0;
        loop {
            let (rows, offset) = read_dimensions(self.dir, from, None, &mut jobs)?;
            if rows.is_empty() {
                return Ok(());
            }
            self.link.send_dimensions(rows).await?;
            from = offset;
        }
    }

    /// Sends a segment of which the server has no row.
    async fn ship(&self, meta: &Arc<SegmentMeta>) -> Result<(), SinkError> {
        let mut pending =
            Pending { meta: Arc::clone(meta), again_us: now_us(), is_repair: true, acknowledged: false, doubtful: false, refused_with: 0 };
        let mut wait = self.settings().pace.wait_first;
        let mut outcome = Ok(Copies::None);
        for _ in 0..TRIES {
            outcome = self.link.ship_segment(&self.server, &pending, self.store.native_path(meta)).await;
            match &outcome {
                Ok(Copies::One) => return self.link.send_segment_rows(&self.server, std::slice::from_ref(meta)).await,
                Ok(Copies::TooMany) => {
                    return Err(SinkError::Mismatch(format!(
                        "segment {} is on the server more than once after it was sent once: does somebody else write into this database?",
                        meta.name
                    )));
                }
                // Its identity is used up: a server that lost power after it took the first try.
                Ok(Copies::None) => pending.again_us = now_us(),
                Err(error) => pending.doubtful |= error.may_have_happened(),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(self.settings().pace.wait_longest);
        }
        outcome.map(drop)
    }

    /// Makes the hours of roll-ups again that differ from `shares`.
    async fn roll_ups(&self, report: &mut RepairReport) -> Result<(), ReconcileError> {
        let Readable { metas, damaged } = self.store.readable()?;
        let Some((first_us, last_us)) =
            metas.iter().map(|meta| (meta.first_us, meta.last_us)).reduce(|one, other| (one.0.min(other.0), one.1.max(other.1)))
        else {
            return Ok(());
        };
        let until_us = self.written_from_us(&metas, &damaged)?;
        for roll_up in &ROLL_UPS {
            let hours = self.differing(roll_up, Hours::of(first_us, last_us)).await?;
            for hours in hours {
                let (since, until) = hours.bounds();
                let named = RollUpHours { roll_up: roll_up.name, since: date_time(hours.since_s), until: date_time(hours.until_s) };
                let token =
                    (self.server.method == Method::Tokens).then(|| format!("{}{REPAIR}{}-{}", roll_up.name, hours.since_s, now_us()));
                let statements = roll_up.rebuild_sql(&self.settings().database, self.server.schema, &since, &until, token.as_deref());
                let why = if let Some(segment) = report.left.iter().find(|left| !left.statements.is_empty()) {
                    Some(format!("shares itself is not repaired: {}", segment.what))
                } else if hours.until_s * US > until_us {
                    Some("rows are still written into it: run the repair again when it is over".to_owned())
                } else if self.others_write(hours).await? {
                    Some("other servers of the pool may still send rows of it: run the repair again an hour after its end".to_owned())
                } else if !self.allow_delete {
                    Some("its rows have to be deleted and summed again, which --yes allows".to_owned())
                } else {
                    None
                };
                if let Some(why) = why {
                    report.left.push(Left {
                        what: format!("{} from {} to {}: {why}", named.roll_up, named.since, named.until),
                        statements: statements.into(),
                    });
                    continue;
                }
                let [delete, insert] = &statements;
                self.link.sink.query(delete).await?;
                let left = format!(
                    "SELECT count() FROM {}.{} WHERE {} >= {since} AND {} < {until} FORMAT TabSeparated",
                    identifier(&self.settings().database),
                    identifier(roll_up.name),
                    roll_up.time_column(),
                    roll_up.time_column()
                );
                self.until("a deletion", || async { Ok(number(&self.link.sink.query(&left).await?)? == 0) }).await?;
                self.link.sink.query(insert).await?;
                report.rebuilt.push(named);
            }
        }
        Ok(())
    }

    /// From when on rows of this folder may still be on their way to the server, microseconds since the epoch.
    fn written_from_us(&self, metas: &[SegmentMeta], damaged: &[DamagedMeta]) -> Result<u64, ReconcileError> {
        let passed = if self.dir.join("cursor-shipper").exists() { Cursor::open(self.dir, "shipper")?.load()?.segment } else { 0 };
        let unshipped = metas.iter().filter(|meta| meta.sequence() > passed).map(|meta| meta.first_us).min();
        // Arrival never goes back: what is not sealed yet arrived behind what is.
        let unsealed = if is_being_written(self.dir)? { metas.last().map(|meta| meta.last_us) } else { None };
        let unknown = damaged.iter().filter(|damaged| damaged.sequence > passed).map(|damaged| damaged.since_us).min();
        Ok(unshipped.into_iter().chain(unsealed).chain(unknown).min().unwrap_or(u64::MAX))
    }

    /// True when rows of other instances are in these hours and may still come.
    async fn others_write(&self, hours: Hours) -> Result<bool, SinkError> {
        if now_us() / US > hours.until_s + HOUR_S {
            return Ok(false);
        }
        let (since, until) = hours.bounds();
        let sql = format!(
            "SELECT count() FROM {}.{} WHERE time >= {since} AND time < {until} AND instance != {} FORMAT TabSeparated",
            identifier(&self.settings().database),
            identifier(self.server.shares),
            self.settings().instance
        );
        Ok(number(&self.link.sink.query(&sql).await?)? > 0)
    }

    /// The hours that differ, neighbours as one.
    async fn differing(&self, roll_up: &RollUp, within: Hours) -> Result<Vec<Hours>, SinkError> {
        let (since, until) = within.bounds();
        let text =
            self.link.sink.query(&roll_up.differing_hours_sql(&self.settings().database, self.server.schema, &since, &until)).await?;
        let mut hours: Vec<Hours> = Vec::new();
        for line in text.lines() {
            let since_s = number(line.split('\t').next().unwrap_or_default())?;
            match hours.last_mut() {
                Some(last) if last.until_s == since_s => last.until_s += HOUR_S,
                _ => hours.push(Hours { since_s, until_s: since_s + HOUR_S }),
            }
        }
        Ok(hours)
    }
}
