//! The follower of the log: dimension records, then segments, then the cursor.
use crate::ShipperSettings;
use crate::dimension::{DimensionRows, RecentJobs, RowWriter, date_time};
use crate::probe::{Method, Server, probe};
use crate::schema::{JOBS, LAYOUTS_FROM, SEGMENTS, identifier, literal, segment_columns};
use crate::sink::{Body, HttpSink, Remedy, Sink, SinkError, blocking};
use crate::state::{ShipperState, StateKind};
use bytes::Bytes;
use otedama_killpoint::pass;
use otedama_sharelog::store::{Cursor, CursorPosition, SegmentStore, lock_resending};
use otedama_sharelog::{DimensionReader, Layout, LogError, SegmentMeta, segment_name};
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Most inserts in flight, whatever the config says.
const IN_FLIGHT_MAX: usize = 8;
/// Dimension text sent in one insert at the most, about.
const DIMENSION_BYTES: usize = 8 << 20;
/// Metas held at the most when there is much to catch up with: about 30 MB, and close to two hours of inserts before the folder is read again.
const AHEAD_MAX: usize = 65_536;

/// Acknowledged segments that are looked for on a server that has started anew: at 10 inserts a second what it took in its last 100 s, where a kernel writes pages back within 35.
const HELD_MAX: usize = 1024;
/// As many of them are remembered across a start of this process: pool and server may have lost power together, and 35 s are 350 inserts.
const HELD_AT_START: u32 = 512;
/// A server that was not heard of for so long may have lost power and be back: no machine starts in less. It is asked before it gets anything more.
const UNHEARD: Duration = Duration::from_secs(2);
/// Two readings of a server's start are the same one when they are this near, seconds.
const START_TOLERANCE_S: u64 = 3;

/// Stands in every identity that `reconcile --repair` sends under.
pub(crate) const REPAIR: &str = "-repair-";
/// Stands in every identity under which the pool sends what a server had acknowledged and lost.
const AGAIN: &str = "-again-";

/// Counts what is at work on a server under an identity with this mark, sent by this process or one before it.
pub(crate) fn at_work_sql(mark: &str) -> String {
    format!(
        "SELECT count() FROM system.processes WHERE position(query_id, '{mark}') > 0 OR (position(query, 'INSERT INTO ') = 1 AND position(query, '{mark}') > 0) FORMAT TabSeparated"
    )
}

/// How fast the shipper goes and how long it waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pace {
    /// Wait after the first failure; it doubles with each further one.
    pub wait_first: Duration,
    /// Longest wait after a failure, and the wait while somebody has something to mend.
    pub wait_longest: Duration,
    /// How often to look for a new segment.
    pub look_every: Duration,
    /// Most inserts a second into `shares`: every insert is a part that the server has to merge.
    pub inserts_per_s: u32,
    /// How long `run` may go on after `stop` to ship what is sealed.
    pub drain: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            wait_first: Duration::from_millis(50),
            wait_longest: Duration::from_secs(30),
            look_every: Duration::from_millis(100),
            inserts_per_s: 10,
            drain: Duration::from_secs(5),
        }
    }
}

/// Ships the segments of one folder to one server.
pub struct Shipper<S: Sink = HttpSink> {
    link: Arc<Link<S>>,
    store: Arc<SegmentStore>,
    dir: PathBuf,
    cursor: Arc<Cursor>,
    position: CursorPosition,
    state: Arc<ShipperState>,
    jobs: RecentJobs,
    pending: VecDeque<Pending>,
    /// None until a server answers: what a process before this one sent is read then.
    held: Option<Held>,
    /// None of the segments found so far was sent by this process: the first few may be on the server already.
    is_first_look: bool,
    /// When the server last seen had started, seconds since the epoch. None: not known yet, or nobody asks, as its replicas have what it loses.
    server_started_s: Option<u64>,
    /// When the server last answered.
    heard: Instant,
    lookout: Lookout,
    dimensions_looked: Option<Instant>,
    slot: Instant,
    /// Held while segments are on their way again.
    resending: Option<File>,
}

/// What requests need, shared with those in flight.
pub(crate) struct Link<S> {
    pub(crate) sink: S,
    pub(crate) settings: ShipperSettings,
}

/// What was acknowledged last. An acknowledged part is in the server's page cache: a power cut there can take it back, so it is held until it must have been written.
#[derive(Default)]
struct Held {
    metas: VecDeque<Arc<SegmentMeta>>,
    /// Offset of the first dimension record that was sent for one of them.
    dimensions_from: u64,
}

impl Held {
    /// What a process before this one sent last, as far as the folder still has it.
    fn load(store: &SegmentStore, position: CursorPosition) -> Result<Self, LogError> {
        let mut held = Self::default();
        let from = position.segment.saturating_sub(HELD_AT_START + 1);
        for meta in store.segments_after(from)?.into_iter().filter(|meta| meta.sequence() <= position.segment) {
            if from > 0 && held.dimensions_from == 0 {
                // Where its records begin is not known: it stands for the end of those before the next.
                held.dimensions_from = meta.dimensions_end;
            } else {
                held.push(Arc::new(meta));
            }
        }
        Ok(held)
    }

    fn push(&mut self, meta: Arc<SegmentMeta>) {
        self.metas.push_back(meta);
        while self.metas.len() > HELD_MAX {
            if let Some(gone) = self.metas.pop_front() {
                self.dimensions_from = gone.dimensions_end;
            }
        }
    }
}

/// A segment on its way.
#[derive(Clone)]
pub(crate) struct Pending {
    pub(crate) meta: Arc<SegmentMeta>,
    /// When it was found lost, microseconds since the epoch; 0 for a segment that goes out for the first time. Part of its identity: the server may remember the first one still.
    pub(crate) again_us: u64,
    /// It is `reconcile --repair` that sends it.
    pub(crate) is_repair: bool,
    /// The server has it.
    pub(crate) acknowledged: bool,
    /// An earlier try may have committed it on a server without tokens: look before sending again.
    pub(crate) doubtful: bool,
    /// Code of the last refusal.
    pub(crate) refused_with: u32,
}

/// When to list the folder again.
#[derive(Default)]
struct Lookout {
    /// The newest segment seen: the next one's name is known, so one stat tells.
    newest: Option<u64>,
    listed: Option<Instant>,
    listing_took: Duration,
}

enum Work {
    /// Something was shipped.
    Shipped,
    /// There is nothing to ship.
    Nothing,
}

impl Shipper<HttpSink> {
    /// A shipper over HTTP for the log in `dir`. Registers its cursor, so that retention waits for it.
    ///
    /// # Errors
    /// When the folder cannot be read or its cursor not be written.
    pub fn new(settings: ShipperSettings, store: SegmentStore, state: Arc<ShipperState>) -> Result<Self, LogError> {
        let sink = settings.sink();
        Self::with_sink(settings, sink, store, state)
    }
}

impl<S: Sink> Shipper<S> {
    /// As `new`, with a transport of your own.
    ///
    /// # Errors
    /// When the folder cannot be read or its cursor not be written.
    pub fn with_sink(settings: ShipperSettings, sink: S, store: SegmentStore, state: Arc<ShipperState>) -> Result<Self, LogError> {
        let dir = store.dir().to_path_buf();
        let cursor = Cursor::open(&dir, "shipper")?;
        let position = cursor.load()?;
        Ok(Self {
            link: Arc::new(Link { sink, settings }),
            store: Arc::new(store),
            dir,
            cursor: Arc::new(cursor),
            position,
            state,
            jobs: RecentJobs::default(),
            pending: VecDeque::new(),
            held: None,
            is_first_look: true,
            server_started_s: None,
            heard: Instant::now(),
            lookout: Lookout::default(),
            dimensions_looked: None,
            slot: Instant::now(),
            resending: None,
        })
    }

    /// Ships until `stop` turns true (or its sender is gone), then what is still sealed by then, for at most `Pace::drain`. Never fails: what goes wrong stands in the state.
    /// Needs a tokio runtime with time and I/O; reads the disk on its blocking threads.
    pub async fn run(mut self, stop: watch::Receiver<bool>) {
        let drain = self.link.settings.pace.drain;
        let mut watched = stop.clone();
        let deadline = async move {
            // An error means that the sender is gone: stop too.
            let _ = watched.wait_for(|stopped| *stopped).await;
            tokio::time::sleep(drain).await;
        };
        tokio::select! {
            () = self.work(stop) => {}
            () = deadline => {}
        }
    }

    async fn work(&mut self, mut stop: watch::Receiver<bool>) {
        let mut server = None;
        let mut wait = self.link.settings.pace.wait_first;
        let random = RandomState::new();
        let mut failures = 0u64;
        loop {
            let stopping = is_stopped(&stop);
            match self.cycle(&mut server, stopping).await {
                Ok(work) => {
                    wait = self.link.settings.pace.wait_first;
                    let method = server.as_ref().map_or(Method::Tokens, |server: &Server| server.method);
                    self.state.set(if method == Method::Tokens { StateKind::Ok } else { StateKind::Legacy }, "");
                    if matches!(work, Work::Nothing) {
                        if stopping {
                            return;
                        }
                        pause(self.link.settings.pace.look_every, &mut stop).await;
                    }
                }
                Err((error, remedy)) => {
                    failures += 1;
                    self.state.retries.fetch_add(1, Ordering::Relaxed);
                    let kind = if remedy == Remedy::Alarm { StateKind::Refusing } else { StateKind::Retrying };
                    self.state.set(kind, &error.to_string());
                    // The server may come back as another one: with tables gone, or upgraded.
                    server = None;
                    let longest = self.link.settings.pace.wait_longest;
                    let full = if remedy == Remedy::Alarm { longest } else { wait.min(longest) };
                    wait = (wait * 2).min(longest);
                    // Jitter: half to all of it, so that many pools do not come back in step.
                    let full_us = u64::try_from(full.as_micros()).unwrap_or(u64::MAX).max(2);
                    let jitter_us = random.hash_one(failures) % (full_us / 2 + 1);
                    pause(Duration::from_micros(full_us / 2 + jitter_us), &mut stop).await;
                }
            }
        }
    }

    /// One step: probe if needed, find segments, ship their dimension records, ship them, move the cursor.
    async fn cycle(&mut self, server: &mut Option<Server>, stopping: bool) -> Result<Work, (SinkError, Remedy)> {
        let plain = |error: SinkError| {
            let remedy = error.remedy(false);
            (error, remedy)
        };
        if server.is_none() {
            let found = probe(&self.link.sink, &self.link.settings).await.map_err(plain)?;
            self.state.set_version(&found.version);
            self.check_held(&found).await.map_err(plain)?;
            self.heard = Instant::now();
            *server = Some(found);
        }
        let Some(server) = server.as_ref() else { return Ok(Work::Nothing) };
        self.look(stopping).await.map_err(|error| (log_problem(&self.dir, &error), Remedy::Alarm))?;
        let in_flight = match server.method {
            Method::Tokens => self.link.settings.inserts_in_flight.clamp(1, IN_FLIGHT_MAX),
            Method::QueryIds => 1,
        };
        let Some(dimensions_end) = self.pending.iter().take(in_flight).map(|pending| pending.meta.dimensions_end).max() else {
            return self.ship_late_dimensions(stopping).await;
        };
        self.ask_whether_it_is_the_same().await.map_err(plain)?;
        self.ship_dimensions(Some(dimensions_end)).await?;
        self.ship_segments(server, in_flight, stopping).await?;
        self.heard = Instant::now();
        Ok(Work::Shipped)
    }

    /// An error where a server that was not heard of for a while has started since: it may have lost what it acknowledged, and no request need have failed meanwhile.
    async fn ask_whether_it_is_the_same(&mut self) -> Result<(), SinkError> {
        let Some(seen_s) = self.server_started_s.filter(|_| self.heard.elapsed() >= UNHEARD) else { return Ok(()) };
        let started_s = self.link.server_start_s().await?;
        self.heard = Instant::now();
        if seen_s.abs_diff(started_s) <= START_TOLERANCE_S { Ok(()) } else { Err(SinkError::Restarted) }
    }

    /// On a server that has started since it was last seen: looks for what it had acknowledged, and queues again what it has lost, with the dimension records of that time.
    ///
    /// A replicated table is left alone: its other replicas have what one of them loses, and a replica that lags would be taken for one that lost.
    async fn check_held(&mut self, server: &Server) -> Result<(), SinkError> {
        if self.held.is_none() {
            let (store, position) = (Arc::clone(&self.store), self.position);
            let held = blocking(move || Held::load(&store, position)).await.map_err(|error| log_problem(&self.dir, &error))?;
            self.held = Some(held);
        }
        if server.replicated {
            self.server_started_s = None;
            return Ok(());
        }
        let started_s = self.link.server_start_s().await?;
        let same = self.server_started_s.is_some_and(|seen| seen.abs_diff(started_s) <= START_TOLERANCE_S);
        let held = self.held.get_or_insert_default();
        let waiting = self.pending.iter().any(|pending| pending.acknowledged);
        if same || (held.metas.is_empty() && !waiting) {
            self.server_started_s = Some(started_s);
            return Ok(());
        }
        if self.resending.is_none() {
            let lock = lock_resending(&self.dir).map_err(|error| log_problem(&self.dir, &error))?;
            let busy = || SinkError::Busy(format!("`otedama reconcile --repair` is at work on {}", self.dir.display()));
            self.resending = Some(lock.ok_or_else(busy)?);
        }
        // What a process before this one was sending again when it was killed may still be at work: under another identity it would be there twice.
        self.link.wait_until_none(&at_work_sql(AGAIN)).await?;
        let now_us = now_us();
        let is_young = |meta: &SegmentMeta| self.link.is_young(meta, now_us);
        let on_server = rows_by_segment(
            &self.link.sink,
            &self.link.settings,
            server.shares,
            held.metas
                .iter()
                .chain(self.pending.iter().filter(|pending| pending.acknowledged).map(|pending| &pending.meta))
                .map(Arc::as_ref),
        )
        .await?;
        let mut lost = Vec::new();
        let mut kept = VecDeque::new();
        for meta in held.metas.drain(..) {
            let found = on_server.get(&(u64::from(instance_of(&meta)), meta.seg)).copied().unwrap_or_default();
            match found {
                found if found == u64::from(meta.rows) => kept.push_back(meta),
                0 if is_young(&meta) && self.store.is_here(&meta) => lost.push(meta),
                0 if !is_young(&meta) => {}
                // Gone here too, or there in part or too often, which no power cut does: somebody's ALTER. `otedama reconcile` names it; it is counted once.
                _ => {
                    self.state.findings.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        held.metas = kept;
        // Acknowledged beside an earlier one that was not: they wait for it.
        for pending in self.pending.iter_mut().filter(|pending| pending.acknowledged) {
            if !on_server.contains_key(&(u64::from(instance_of(&pending.meta)), pending.meta.seg)) {
                (pending.acknowledged, pending.again_us) = (false, now_us);
                self.state.segments_lost.fetch_add(1, Ordering::Relaxed);
            }
        }
        // Nobody can count dimension records; what is there already is replaced by itself.
        self.position.dimensions = self.position.dimensions.min(held.dimensions_from);
        self.state.segments_lost.fetch_add(lost.len() as u64, Ordering::Relaxed);
        for meta in lost.into_iter().rev() {
            self.pending.push_front(Pending {
                meta,
                again_us: now_us,
                is_repair: false,
                acknowledged: false,
                doubtful: true,
                refused_with: 0,
            });
        }
        self.server_started_s = Some(started_s);
        self.end_resending();
        Ok(())
    }

    /// Lets `otedama reconcile --repair` go on when nothing is on its way again any more.
    fn end_resending(&mut self) {
        if !self.pending.iter().any(|pending| pending.again_us > 0) {
            self.resending = None;
        }
    }

    /// Fills `pending` when it is empty and there may be something new.
    async fn look(&mut self, now: bool) -> Result<(), LogError> {
        if !self.pending.is_empty() {
            return Ok(());
        }
        let next_is_there = self.lookout.newest.is_some_and(|seg| {
            // Ends with the sequence: a folder that has used up 2^32 segments has other worries.
            self.dir.join(format!("{}.native", segment_name(seg.wrapping_add(1)))).exists()
        });
        let interval = match self.lookout.newest {
            // The next name may never come: a folder can get a second epoch.
            Some(_) => Duration::from_secs(5),
            None => Duration::from_millis(100),
        };
        // A folder of many files is not listed without end: a twentieth of the time at the most.
        let due = self.lookout.listed.is_none_or(|listed| listed.elapsed() >= interval.max(self.lookout.listing_took * 20));
        if !(next_is_there || due || now) {
            return Ok(());
        }
        let started = Instant::now();
        let (store, after) = (Arc::clone(&self.store), self.position.segment);
        let metas = blocking(move || {
            let metas = store.segments_after(after)?;
            if !metas.is_empty() {
                // Before anybody hears of them: a power cut must not give their numbers to others.
                store.keep_names()?;
            }
            Ok(metas)
        })
        .await?;
        self.lookout.listed = Some(Instant::now());
        self.lookout.listing_took = started.elapsed();
        if let Some(last) = metas.last() {
            self.lookout.newest = Some(last.seg);
        }
        let in_doubt = if self.is_first_look { IN_FLIGHT_MAX } else { 0 };
        self.is_first_look &= metas.is_empty();
        self.pending = metas
            .into_iter()
            .take(AHEAD_MAX)
            .enumerate()
            .map(|(index, meta)| Pending {
                doubtful: index < in_doubt,
                meta: Arc::new(meta),
                again_us: 0,
                is_repair: false,
                acknowledged: false,
                refused_with: 0,
            })
            .collect();
        Ok(())
    }

    /// Records behind the last segment: what became of a block, ends of jobs.
    async fn ship_late_dimensions(&mut self, now: bool) -> Result<Work, (SinkError, Remedy)> {
        let due = self.dimensions_looked.is_none_or(|looked| looked.elapsed() >= Duration::from_secs(1));
        if !due && !now {
            return Ok(Work::Nothing);
        }
        self.dimensions_looked = Some(Instant::now());
        self.ship_dimensions(None).await?;
        Ok(Work::Nothing)
    }

    /// Ships dimension records up to `end`, or all there are.
    async fn ship_dimensions(&mut self, end: Option<u64>) -> Result<(), (SinkError, Remedy)> {
        loop {
            if end.is_some_and(|end| self.position.dimensions >= end) {
                return Ok(());
            }
            let (dir, from) = (self.dir.clone(), self.position.dimensions);
            let mut jobs = std::mem::take(&mut self.jobs);
            let read = blocking(move || Ok((read_dimensions(&dir, from, end, &mut jobs), jobs))).await;
            let (read, jobs) = read.map_err(|error| (log_problem(&self.dir, &error), Remedy::Alarm))?;
            self.jobs = jobs;
            let (rows, offset) = read.map_err(|error| (log_problem(&self.dir, &error), Remedy::Alarm))?;
            if rows.is_empty() {
                // The rest, if any, is not whole yet or of a kind that has no table.
                self.position.dimensions = offset;
                return Ok(());
            }
            self.ask_whether_it_is_the_same().await.map_err(refused)?;
            self.link.send_dimensions(rows).await.map_err(refused)?;
            self.heard = Instant::now();
            pass("ship.dimensions_sent");
            self.position.dimensions = offset;
            self.store_cursor().await?;
        }
    }

    /// Ships up to `in_flight` segments at once and moves the cursor over those that are done, in order.
    async fn ship_segments(&mut self, server: &Server, in_flight: usize, stopping: bool) -> Result<(), (SinkError, Remedy)> {
        let mut tasks = JoinSet::new();
        for (index, pending) in self.pending.iter().take(in_flight).enumerate().filter(|(_, pending)| !pending.acknowledged) {
            let now = Instant::now();
            let gap = Duration::from_secs(1) / self.link.settings.pace.inserts_per_s.max(1);
            if self.slot > now && !stopping {
                tokio::time::sleep(self.slot - now).await;
            }
            self.slot = self.slot.max(now) + gap;
            let (link, server, pending) = (Arc::clone(&self.link), server.clone(), pending.clone());
            let path = self.store.native_path(&pending.meta);
            tasks.spawn(async move { (index, link.ship_segment(&server, &pending, path).await) });
        }
        let mut first_error = None;
        while let Some(joined) = tasks.join_next().await {
            // A task that panicked or was cancelled says nothing: its segment stays pending.
            let Ok((index, outcome)) = joined else { continue };
            let Some(pending) = self.pending.get_mut(index) else { continue };
            match outcome {
                // What the server may have dropped for its age is not lost.
                Ok(Copies::None) if self.link.is_young(&pending.meta, now_us()) => {
                    pending.again_us = now_us();
                    self.state.segments_lost.fetch_add(1, Ordering::Relaxed);
                }
                Ok(copies) => {
                    pending.acknowledged = true;
                    if copies == Copies::TooMany {
                        self.state.findings.fetch_add(1, Ordering::Relaxed);
                    }
                    self.state.segments_shipped.fetch_add(1, Ordering::Relaxed);
                    self.state.rows_shipped.fetch_add(u64::from(pending.meta.rows), Ordering::Relaxed);
                    self.state.bytes_shipped.fetch_add(pending.meta.native_bytes, Ordering::Relaxed);
                }
                Err(error) => {
                    let repeated = matches!(&error, SinkError::Refused { code, .. } if *code == pending.refused_with);
                    pending.refused_with = if let SinkError::Refused { code, .. } = &error { *code } else { 0 };
                    pending.doubtful |= error.may_have_happened();
                    if matches!(error, SinkError::Partial { .. }) {
                        self.state.findings.fetch_add(1, Ordering::Relaxed);
                    }
                    let remedy = error.remedy(repeated);
                    first_error.get_or_insert((error, remedy));
                }
            }
        }
        let done = self.pending.iter().take_while(|pending| pending.acknowledged).count();
        if done > 0 {
            let metas: Vec<_> = self.pending.iter().take(done).map(|pending| Arc::clone(&pending.meta)).collect();
            self.link.send_segment_rows(server, &metas).await.map_err(refused)?;
            pass("ship.segment_told");
            if let Some(last) = metas.last() {
                // One that was lost and sent again lies behind the cursor.
                self.position.segment = self.position.segment.max(last.sequence());
                self.store_cursor().await?;
                pass("ship.cursor_stored");
            }
            let held = self.held.get_or_insert_default();
            metas.into_iter().for_each(|meta| held.push(meta));
            self.pending.drain(..done);
            self.end_resending();
        }
        first_error.map_or(Ok(()), Err)
    }

    async fn store_cursor(&self) -> Result<(), (SinkError, Remedy)> {
        let (cursor, position) = (Arc::clone(&self.cursor), self.position);
        // A full disk: shipping goes on repeating until the cursor can be written, which the token makes harmless.
        blocking(move || cursor.store(position)).await.map_err(|error| (log_problem(&self.dir, &error), Remedy::Retry))
    }
}

fn is_stopped(stop: &watch::Receiver<bool>) -> bool {
    *stop.borrow() || stop.has_changed().is_err()
}

/// Sleeps, or less when `stop` changes meanwhile.
async fn pause(time: Duration, stop: &mut watch::Receiver<bool>) {
    if is_stopped(stop) {
        tokio::time::sleep(time).await;
        return;
    }
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        _ = stop.changed() => {}
    }
}

fn log_problem(dir: &std::path::Path, error: &LogError) -> SinkError {
    SinkError::Damaged { path: dir.to_path_buf(), text: error.to_string() }
}

/// The remedy for what a dimension insert or a count was refused with.
fn refused(error: SinkError) -> (SinkError, Remedy) {
    let remedy = error.remedy(true);
    (error, remedy)
}

/// Reads entries from `from` up to `end` (or the end of the file), at most about `DIMENSION_BYTES` of text. Returns the rows and the offset behind them.
pub(crate) fn read_dimensions(
    dir: &std::path::Path,
    from: u64,
    end: Option<u64>,
    jobs: &mut RecentJobs,
) -> Result<(DimensionRows, u64), LogError> {
    let mut reader = match DimensionReader::from(dir, from) {
        Ok(reader) => reader,
        // The file is shorter than what was shipped: a power loss took records that had not been synced. Sending all of it again costs nothing but time.
        Err(LogError::Damaged { .. }) if from > 0 => DimensionReader::from(dir, 0)?,
        Err(error) => return Err(error),
    };
    let mut rows = DimensionRows::default();
    while rows.bytes() < DIMENSION_BYTES && end.is_none_or(|end| reader.offset() < end) {
        match reader.next() {
            None => break,
            Some(Ok((offset, entry))) => rows.add(offset, &entry, jobs),
            // `otedama log verify` tells of damage; what stands behind it still goes out.
            Some(Err(LogError::Damaged { .. })) => {}
            Some(Err(error)) => return Err(error),
        }
    }
    Ok((rows, reader.offset()))
}

fn insert_sql(database: &str, table: &str, columns: &str, format: &str) -> String {
    format!("INSERT INTO {}.{} {columns} FORMAT {format}", identifier(database), identifier(table))
}

/// Completes the row of a job on the server with its end. The newest `ended` of a job wins under FINAL.
pub(crate) fn job_end_sql(database: &str, job: u64, us: u64) -> String {
    let table = format!("{}.{}", identifier(database), identifier(JOBS.name));
    let kept: Vec<_> = JOBS.columns.iter().map(|column| column.name).filter(|name| !matches!(*name, "ended" | "ended_us")).collect();
    format!(
        "INSERT INTO {table} {} SELECT {}, toDateTime({}, 'UTC'), toUInt32({}) FROM {table} WHERE job = {job} LIMIT 1",
        JOBS.column_list(),
        kept.join(", "),
        literal(&date_time(us / 1_000_000)),
        us % 1_000_000
    )
}

/// Rows of the table `segments`, as version `schema` has it.
pub(crate) fn segment_rows(metas: &[Arc<SegmentMeta>], schema: u32) -> String {
    let mut text = String::new();
    for meta in metas {
        let accepted = meta.by_status.first().copied().unwrap_or_default();
        let mut row = RowWriter::new(&mut text);
        row.number(instance_of(meta))
            .number(meta.seg)
            .text(&meta.name)
            .number(meta.rows)
            .number(accepted)
            .number(meta.work_sum)
            .number(meta.work_credited);
        row.number(meta.native_bytes).text(&format!("{:016x}", meta.content_hash)).second(meta.first_us).second(meta.last_us);
        if schema >= LAYOUTS_FROM {
            row.text(meta.layout.label()).number(meta.shares());
        }
        row.end();
    }
    text
}

/// The instance whose rows a segment holds.
pub(crate) fn instance_of(meta: &SegmentMeta) -> u16 {
    (meta.run_prefix >> 24) as u16
}

/// The identity of an insert: pool, instance, directory epoch, sequence, content hash. The epoch makes a reinstalled server's tokens new ones; the hash turns a number
/// that was used twice into a visible second insert instead of a silent loss.
fn token(settings: &ShipperSettings, meta: &SegmentMeta) -> String {
    format!("{}-{}-{}-{:016x}", settings.pool, instance_of(meta), meta.name, meta.content_hash)
}

/// Microseconds since the epoch.
pub(crate) fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// How often the server has a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Copies {
    None,
    One,
    TooMany,
}

impl<S: Sink> Link<S> {
    /// An insert under the settings of the server's kind; `token` identifies a segment.
    async fn insert(&self, sql: &str, identity: Option<(&Server, String)>, body: Body) -> Result<(), SinkError> {
        let is_repeated = |token: &str| token.contains(REPAIR) || token.contains(AGAIN);
        let query_id = identity.as_ref().filter(|(_, token)| is_repeated(token)).map(|(_, token)| token.clone());
        let mut settings = match identity {
            None => Vec::new(),
            Some((Server { method: Method::QueryIds, .. }, token)) => vec![("query_id", token)],
            Some((Server { method: Method::Tokens, .. }, token)) => vec![
                // The same on every try: a server may take another setting for another insert.
                ("async_insert", "0".to_owned()),
                ("insert_deduplicate", "1".to_owned()),
                ("deduplicate_blocks_in_dependent_materialized_views", "1".to_owned()),
                ("insert_deduplication_token", token),
            ],
        };
        if let Some(query_id) = query_id.filter(|_| settings.iter().all(|(name, _)| *name != "query_id")) {
            // Who follows a repair or a pool that died looks for what that one left at work.
            settings.push(("query_id", query_id));
        }
        self.sink.insert(sql, &settings, body).await
    }

    /// Inserts dimension records into their tables.
    pub(crate) async fn send_dimensions(&self, rows: DimensionRows) -> Result<(), SinkError> {
        let database = &self.settings.database;
        let (parts, ends) = rows.into_parts();
        for (table, text) in parts {
            let sql = insert_sql(database, table.name, &table.column_list(), "TabSeparated");
            self.insert(&sql, None, Body::Memory(Bytes::from(text))).await?;
        }
        for (job, us) in ends {
            self.sink.query(&job_end_sql(database, job.0, us)).await?;
        }
        Ok(())
    }

    /// Tells the server which segments it has.
    pub(crate) async fn send_segment_rows(&self, server: &Server, metas: &[Arc<SegmentMeta>]) -> Result<(), SinkError> {
        let sql = insert_sql(&self.settings.database, SEGMENTS.name, &SEGMENTS.column_list_at(server.schema), "TabSeparated");
        self.insert(&sql, None, Body::Memory(Bytes::from(segment_rows(metas, server.schema)))).await
    }

    pub(crate) async fn ship_segment(&self, server: &Server, pending: &Pending, path: PathBuf) -> Result<Copies, SinkError> {
        let meta = &*pending.meta;
        let mut token = token(&self.settings, meta);
        if pending.again_us > 0 {
            token.push_str(&format!("{}{}", if pending.is_repair { REPAIR } else { AGAIN }, pending.again_us));
        }
        if pending.doubtful && server.method == Method::QueryIds {
            self.wait_until_gone(&token).await?;
            let copies = self.copies(server, meta).await?;
            if copies != Copies::None {
                return Ok(copies);
            }
        }
        if server.schema < LAYOUTS_FROM && matches!(meta.layout, Layout::Full | Layout::Rollup) {
            return Err(SinkError::Mismatch(format!(
                "segment {} is of layout {}, for which the tables of database {} lack columns: `otedama schema --from {}` prints what adds them, or set [clickhouse] create_tables = true",
                meta.name,
                meta.layout.label(),
                self.settings.database,
                server.schema
            )));
        }
        let sql = insert_sql(&self.settings.database, server.shares, &segment_columns(meta.layout), "Native");
        self.insert(&sql, Some((server, token)), Body::Segment { path, size: meta.native_bytes, crc32c: meta.crc32c }).await?;
        pass("ship.answered");
        if pending.doubtful && server.method == Method::Tokens && !server.replicated {
            // A server that lost power may remember the token of a first try and have lost its rows: then it has dropped this one as its repetition. Rows are never looked for
            // first instead: they can be there while a view that the first try did not come to still lacks them, which the repetition mends.
            return self.copies(server, meta).await;
        }
        Ok(Copies::One)
    }

    async fn copies(&self, server: &Server, meta: &SegmentMeta) -> Result<Copies, SinkError> {
        let (found, wanted) = (self.count(server, meta).await?, u64::from(meta.rows));
        match found {
            0 => Ok(Copies::None),
            found if found == wanted => Ok(Copies::One),
            found if found > wanted => Ok(Copies::TooMany),
            found => Err(SinkError::Partial { segment: meta.name.clone(), seg: meta.seg, found, wanted }),
        }
    }

    /// The first try may still be running on the server although its answer was lost.
    async fn wait_until_gone(&self, query_id: &str) -> Result<(), SinkError> {
        self.wait_until_none(&format!("SELECT count() FROM system.processes WHERE query_id = {} FORMAT TabSeparated", literal(query_id)))
            .await
    }

    /// False for rows that the server may have dropped for their age.
    fn is_young(&self, meta: &SegmentMeta, now_us: u64) -> bool {
        let keep_us = u64::from(self.settings.keep_days).saturating_sub(1) * 86_400_000_000;
        self.settings.keep_days == 0 || meta.first_us + keep_us >= now_us
    }

    /// When the server started, seconds since the epoch; two readings may differ by a second.
    async fn server_start_s(&self) -> Result<u64, SinkError> {
        number(&self.sink.query("SELECT toUInt32(now()) - uptime() FORMAT TabSeparated").await?)
    }

    async fn wait_until_none(&self, sql: &str) -> Result<(), SinkError> {
        let mut wait = self.settings.pace.wait_first;
        while number(&self.sink.query(sql).await?)? > 0 {
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(1));
        }
        Ok(())
    }

    pub(crate) async fn count(&self, server: &Server, meta: &SegmentMeta) -> Result<u64, SinkError> {
        // The bounds in time let the server open one day's parts alone.
        let sql = format!(
            "SELECT count() FROM {}.{} WHERE instance = {} AND seg = {} AND time >= toDateTime({}, 'UTC') AND time <= toDateTime({}, 'UTC') FORMAT TabSeparated",
            identifier(&self.settings.database),
            identifier(server.shares),
            instance_of(meta),
            meta.seg,
            literal(&date_time(meta.first_us / 1_000_000)),
            literal(&date_time(meta.last_us / 1_000_000))
        );
        number(&self.sink.query(&sql).await?)
    }
}

/// Rows on the server by (instance, segment), of these segments and others of their time.
pub(crate) async fn rows_by_segment<'a, S: Sink>(
    sink: &S,
    settings: &ShipperSettings,
    table: &str,
    metas: impl Iterator<Item = &'a SegmentMeta>,
) -> Result<HashMap<(u64, u64), u64>, SinkError> {
    let bounds = metas.fold(None, |bounds: Option<(u64, u64)>, meta| {
        let (first, last) = bounds.unwrap_or((u64::MAX, 0));
        Some((first.min(meta.first_us), last.max(meta.last_us)))
    });
    let Some((first_us, last_us)) = bounds else { return Ok(HashMap::new()) };
    // The bounds in time leave other days unread.
    let sql = format!(
        "SELECT instance, seg, count() FROM {}.{} WHERE time >= toDateTime({}, 'UTC') AND time <= toDateTime({}, 'UTC') GROUP BY instance, seg FORMAT TabSeparated",
        identifier(&settings.database),
        identifier(table),
        literal(&date_time(first_us / 1_000_000)),
        literal(&date_time(last_us / 1_000_000))
    );
    let mut found = HashMap::new();
    for line in sink.query(&sql).await?.lines() {
        let mut numbers = line.split('\t').map(str::parse::<u64>);
        match (numbers.next(), numbers.next(), numbers.next()) {
            (Some(Ok(instance)), Some(Ok(seg)), Some(Ok(rows))) => found.insert((instance, seg), rows),
            _ => {
                let line: String = line.chars().take(200).collect();
                return Err(SinkError::Mismatch(format!(
                    "the server answered the count of rows by segment with {line:?}: is it ClickHouse?"
                )));
            }
        };
    }
    Ok(found)
}

pub(crate) fn number(text: &str) -> Result<u64, SinkError> {
    text.trim().parse().map_err(|_| SinkError::Mismatch(format!("the server answered a count with {text:?}: is it ClickHouse?")))
}

const _: () = assert!(AHEAD_MAX >= IN_FLIGHT_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jobs_end_is_completed_from_the_servers_own_row() {
        let sql = job_end_sql("otedama", 7, 1_795_218_379_000_009);
        assert!(
            sql.ends_with(
                "clean, time, us, toDateTime('2026-11-20 23:46:19', 'UTC'), toUInt32(9) FROM `otedama`.`jobs` WHERE job = 7 LIMIT 1"
            ),
            "{sql}"
        );
        assert_eq!(sql.matches("ended").count(), 2, "only in the column list: {sql}");
    }

    #[test]
    fn every_table_has_an_insert_with_its_columns() {
        for table in crate::schema::TABLES {
            let sql = insert_sql("o`x", table.name, &table.column_list(), "Native");
            assert!(sql.starts_with("INSERT INTO `o\\`x`.`"), "{sql}");
            assert_eq!(sql.matches(',').count() + 1, table.columns.len());
        }
    }
}
