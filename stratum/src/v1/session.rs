//! The state of one Stratum V1 connection: lines in, replies and events out.
use super::claim::Claim;
use super::reader::{Reader, Unread};
use super::request::{Method, Param, Request};
use super::template::{Shape, ShapeNumber};
use super::workers::Workers;
use super::{IdToken, JobBook, PublishedJob, configure, lines, messages, scan, slow};
use crate::vardiff::{Learning, Vardiff};
use otedama_primitives::{
    Difficulty, SessionRecord, ShareStatus, Submit, Target, VersionMaskRecord, Work, WorkerName, WorkerRecord, decode_hex, flags,
};
use std::io::Write;
use std::net::SocketAddr;

/// What all sessions of a server share; from the config.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `[pool] name`: part of every worker identity.
    pub pool: Box<str>,
    /// `[stratum] difficulty`: what a session starts with.
    pub difficulty: Difficulty,
    /// Least difficulty that a miner may suggest; `[vardiff] min`.
    pub difficulty_min: Difficulty,
    /// Greatest difficulty that a miner may suggest; `[vardiff] max`.
    pub difficulty_max: Difficulty,
    /// `[stratum] version_mask`: header version bits that miners may roll (BIP 320).
    pub version_mask: u32,
    /// `[stratum] extranonce2_bytes`, 4..=8.
    pub extranonce2_bytes: u8,
    /// `[stratum] max_workers_per_connection`.
    pub workers_max: usize,
    /// How long after a retarget shares are judged at the easier of the two works, microseconds.
    pub grace_us: u64,
    /// The same for shares that name a job sent at a new, harder difficulty, microseconds; at most `grace_us`. Their miner was told, and each of them judged at the
    /// easier work is credited less than it cost: this only has to cover firmware that finishes what it has in hand.
    pub grace_raised_us: u64,
    /// `[vardiff]`: how difficulty follows the share rate; None keeps it fixed.
    pub learning: Option<Learning>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            pool: "otedama".into(),
            difficulty: Difficulty::clamped(1024.0),
            difficulty_min: Difficulty::clamped(1.0),
            difficulty_max: Difficulty::clamped(4e9),
            version_mask: 0x1fff_e000,
            extranonce2_bytes: 8,
            workers_max: 4096,
            grace_us: 60_000_000,
            grace_raised_us: 5_000_000,
            learning: None,
        }
    }
}

/// What net gives a session at accept: its place in the world.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seat {
    /// Session counter within the run, from 1.
    pub session: u32,
    /// From `Extranonces::allocate`.
    pub extranonce1: u32,
    /// Index of the net stage.
    pub net: u8,
}

/// What a line is judged against.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The server's settings.
    pub settings: &'a Settings,
    /// The net stage's book of jobs.
    pub jobs: &'a JobBook,
    /// When the bytes of the line were read, microseconds since the epoch.
    pub now_us: u64,
    /// The peer, for the session's record.
    pub peer: Option<SocketAddr>,
}

/// What a line came to. Replies, if any, stand in `out` and must leave after the answers to all shares in flight of the connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Nothing more to do.
    None,
    /// The line was refused without a row (not JSON, unknown method, submit before subscribe); the reply, if any, is in `out`. Count it (`lines_refused`, limits).
    Refused,
    /// A submit of a subscribed session: `status` is `Submit::PENDING`, or the refusal that needed no hash. Nothing is in `out`: write `answer` with the id when the verdict
    /// is back, in order. `in_flight` is 0, net fills it in.
    Share(Submit, IdToken),
    /// The session has subscribed: write the record before any row. Replies are in `out`.
    Subscribed(SessionRecord),
    /// The session may roll other version bits from now on: write the record before any row. Replies are in `out`.
    VersionMask(VersionMaskRecord),
    /// A worker is new on this connection: write the record before any row. Replies are in `out`.
    Authorized(WorkerRecord),
    /// Close the connection, for this reason; `out` may hold a last word.
    Close(&'static str),
}

/// Longest user agent in a `SessionRecord`, bytes.
const AGENT_BYTES_MAX: usize = 128;
/// Longest peer address in a `SessionRecord`, bytes.
const PEER_BYTES_MAX: usize = 56;
/// Each subscribe is answered with a whole job: a few are a miner that lost its state, more are an amplifier.
const SUBSCRIBES_MAX: u8 = 16;
/// Each change of the version bits is a record in the log.
const MASK_CHANGES_MAX: u8 = 16;
/// A suggestion within this time of the last retarget is not followed, for the same reason.
const SUGGEST_INTERVAL_US: u64 = 1_000_000;
/// Vardiff retargets no sooner than this after the last retarget: shares are dear, but not where the difficulty is far too low.
const RETARGET_INTERVAL_US: u64 = 1_000_000;

/// One connection: plain columns of at most 200 bytes, and the workers' names on the heap.
///
/// **One difficulty for all workers of a connection**: set_difficulty has no worker in it, and farm proxies submit for many workers over one connection while
/// they mine as one. So vardiff aims at the target rate for the connection, over the shares of all its workers; what it learned is remembered under the worker
/// that was authorized first, which is the one that a miner or proxy names first when it comes back.
///
/// **A job sent again** (a retarget that does not wait for the next job) is the same job to the pool but another one to the miner: its id ends in two more
/// digits and its ntime is later, because firmware ignores an id that it already has, and starts its search anew and would find the same shares again. The
/// digits also tell at which difficulty a share was found.
#[derive(Debug)]
pub struct Session {
    workers: Workers,
    /// The difficulty that was chosen (config, suggestion, later vardiff). What is sent has the doublings of `set_load` on top, and is the network's where that is
    /// less.
    wanted: Difficulty,
    /// The difficulty in force since `first_job`.
    sent: Difficulty,
    /// Least difficulty by mining.configure's minimum-difficulty.
    floor: Difficulty,
    /// Work of `sent`.
    work_now: Work,
    /// Work of the jobs before `first_job`; the least of them where several retargets overlap.
    work_before: Work,
    /// Until then a share is judged at the easier of the two; 0 before the first retarget.
    grace_until_us: u64,
    /// What is known about the share rate.
    vardiff: Vardiff,
    /// Work that the job of the last submit was sent at.
    told: Work,
    seat: Seat,
    /// Bits that mining.configure granted.
    version_mask: u32,
    /// Counter of the first job that was sent at `sent`.
    first_job: u32,
    /// Counter of the newest job that was sent; 0 for none.
    newest_job: u32,
    /// The ntime that it was last sent with.
    newest_ntime: u32,
    /// Which sending of `first_job` was the first at `sent`; 0 for the plain id. Later ones are at it, too.
    first_sending: u8,
    /// The last sending of the newest job.
    newest_sending: u8,
    /// What its submits look like.
    shape: ShapeNumber,
    /// Submits in a row that looked otherwise, 255 for more.
    shape_missed: u8,
    extranonce2_bytes: u8,
    /// mining.subscribe lines so far.
    subscribes: u8,
    /// Changes of the version mask since it subscribed.
    mask_changes: u8,
    /// Doublings of the difficulty that are to be in force for the server's load, and those with which `sent` was chosen.
    doublings: u8,
    sent_doublings: u8,
    /// set_difficulty must precede the next notify: miners fall back to 1 when they subscribe.
    difficulty_due: bool,
}

const _: () = assert!(size_of::<Session>() <= 200, "a pool keeps hundreds of thousands of them");

/// Why a request that is no submit was refused: code and text.
type Refusal = (u8, &'static str);

impl Session {
    /// A connection that has said nothing yet.
    pub fn new(seat: Seat, settings: &Settings) -> Self {
        let wanted = messages::wire_difficulty(settings.difficulty.get());
        Self {
            workers: Workers::default(),
            wanted,
            sent: wanted,
            floor: Difficulty::clamped(0.0),
            work_now: wanted.work(),
            work_before: wanted.work(),
            grace_until_us: 0,
            vardiff: Vardiff::new(0),
            told: wanted.work(),
            seat,
            version_mask: 0,
            first_job: 0,
            newest_job: 0,
            newest_ntime: 0,
            first_sending: 0,
            newest_sending: 0,
            shape: ShapeNumber::NONE,
            shape_missed: 0,
            extranonce2_bytes: settings.extranonce2_bytes.clamp(4, 8),
            subscribes: 0,
            mask_changes: 0,
            doublings: 0,
            sent_doublings: 0,
            difficulty_due: true,
        }
    }

    /// Reads and judges the first line of `bytes`: the bytes that it took, its LF included, and what it came to. Replies are appended to `out`. A submit that the
    /// first two tiers take allocates nothing, but for the few that teach its shape.
    #[inline]
    pub fn read(&mut self, ctx: &Context<'_>, reader: &mut Reader, bytes: &[u8], out: &mut Vec<u8>) -> Result<(usize, Event), Unread> {
        if let Some((used, claim)) = reader.shapes.read(self.shape, bytes, &self.workers, self.extranonce2_bytes) {
            self.shape_missed = 0;
            reader.tiers.template += 1;
            return Ok((used, self.judge(ctx, &claim)));
        }
        self.read_any(ctx, reader, bytes, out)
    }

    #[inline(never)]
    fn read_any(&mut self, ctx: &Context<'_>, reader: &mut Reader, bytes: &[u8], out: &mut Vec<u8>) -> Result<(usize, Event), Unread> {
        let length = match memchr::memchr(b'\n', bytes) {
            Some(length) if length <= reader.line_bytes => length,
            None if bytes.len() <= reader.line_bytes => return Err(Unread::Unfinished),
            _ => return Err(Unread::TooLong),
        };
        let line = lines::trim(&bytes[..length]);
        let event = if let Some(request) = scan::scan(line) {
            reader.tiers.scanned += 1;
            self.on_request(ctx, &request, out)
        } else if line.is_empty() {
            Event::None
        } else if reader.may_parse_slowly(line.len()) {
            self.on_odd_line(ctx, line, out)
        } else {
            return Err(Unread::Later);
        };
        if let Event::Share(submit, _) = &event
            && submit.status == Submit::PENDING
        {
            self.learn_shape(reader, &bytes[..=length]);
        }
        Ok((length + 1, event))
    }

    /// Learns from a submit that its shape did not match: from the first of a connection, then from the second, fourth, eighth in a row, so that an odd line now and
    /// then leaves the shape alone, and lines that teach nothing cost little.
    fn learn_shape(&mut self, reader: &mut Reader, line: &[u8]) {
        self.shape_missed = self.shape_missed.saturating_add(1);
        if self.shape_missed.is_power_of_two()
            && (self.shape_missed > 1 || self.shape == ShapeNumber::NONE)
            && let Some(shape) = Shape::learn(line)
        {
            self.shape = reader.shapes.number(shape);
        }
    }

    /// Judges one line (without its LF; a CR is trimmed) by the scanner or the slow tier. Replies are appended to `out`.
    pub fn on_line(&mut self, ctx: &Context<'_>, line: &[u8], out: &mut Vec<u8>) -> Event {
        let line = lines::trim(line);
        match scan::scan(line) {
            Some(request) => self.on_request(ctx, &request, out),
            None if line.is_empty() => Event::None,
            None => self.on_odd_line(ctx, line, out),
        }
    }

    /// A line that the scanner gave up.
    fn on_odd_line(&mut self, ctx: &Context<'_>, line: &[u8], out: &mut Vec<u8>) -> Event {
        match slow::parse(line) {
            Some(odd) => self.on_request(ctx, &odd.request(), out),
            None if self.is_subscribed() => refuse(out, &IdToken::NULL, (20, "malformed: the line is not one JSON object")),
            None => Event::Close("the first words were not Stratum"),
        }
    }

    /// Sends a new job (set_difficulty first where it is due); nothing before mining.subscribe was answered, nor a job the session already has.
    /// `clean` forces clean_jobs; it is also set where the session's last job has ended.
    pub fn notify(&mut self, ctx: &Context<'_>, job: &PublishedJob, clean: bool, out: &mut Vec<u8>) {
        if self.is_subscribed() && job.job.id.counter() > self.newest_job {
            self.send_job(ctx, job, clean || job.job.clean, out);
        }
    }

    /// Changes the difficulty: set_difficulty and a job leave in one write, the newest job under a new id where the session already has it. Before the first job it
    /// only changes what will be sent with it.
    pub fn set_difficulty(&mut self, ctx: &Context<'_>, difficulty: Difficulty, out: &mut Vec<u8>) {
        self.wanted = messages::wire_difficulty(difficulty.get().max(self.floor.get()));
        self.send_change(ctx, out);
    }

    /// Doubles the difficulty so many times, up to `Settings::difficulty_max`, because the server is overloaded; 0 ends it. The work of the miner is the same, in
    /// fewer shares, and vardiff aims at so many fewer. Set_difficulty and a job leave in one write, as in `set_difficulty`.
    pub fn set_load(&mut self, ctx: &Context<'_>, doublings: u8, out: &mut Vec<u8>) {
        self.doublings = doublings;
        self.send_change(ctx, out);
    }

    /// Doublings of the difficulty for the server's load.
    pub fn load_doublings(&self) -> u8 {
        self.doublings
    }

    fn send_change(&mut self, ctx: &Context<'_>, out: &mut Vec<u8>) {
        if self.newest_job == 0 {
            return;
        }
        // Without a live job, or with every id of this one used, the change waits for the next job.
        if let Some(job) = ctx.jobs.newest()
            && job.job.id.counter() >= self.newest_job
            && self.effective(ctx, job) != self.sent
            && (job.job.id.counter() > self.newest_job || self.newest_sending < u8::MAX)
        {
            self.send_job(ctx, job, job.job.clean && job.job.id.counter() > self.newest_job, out);
        }
    }

    /// Books a share for vardiff that was answered accepted, or refused for the server's own sake. `told` is `told_work` right after its submit. Writes a retarget
    /// to `out` where one is due: it must leave after everything that waits for this connection.
    pub fn on_share(&mut self, ctx: &Context<'_>, told: Work, out: &mut Vec<u8>) {
        if let Some(learning) = &ctx.settings.learning {
            let weight = told.hashes() as f64 / self.work_now.hashes() as f64;
            let decision = self.vardiff.on_share(&learning.policy.slowed(self.sent_doublings), self.sent, weight as f32, ctx.now_us);
            self.follow(ctx, decision, out);
        }
    }

    /// Books time without shares for vardiff; to be called every few seconds, and more often does no harm. `out` as in `on_share`.
    pub fn on_time(&mut self, ctx: &Context<'_>, out: &mut Vec<u8>) {
        if let Some(learning) = &ctx.settings.learning {
            if self.newest_job == 0 || !self.is_authorized() || ctx.jobs.newest().is_none() {
                self.vardiff.skip(ctx.now_us);
                return;
            }
            let decision = self.vardiff.on_time(&learning.policy.slowed(self.sent_doublings), self.sent, ctx.now_us);
            self.follow(ctx, decision, out);
        }
    }

    fn follow(&mut self, ctx: &Context<'_>, decision: Option<Difficulty>, out: &mut Vec<u8>) {
        if let Some(difficulty) = decision
            && self.rested(ctx, RETARGET_INTERVAL_US)
        {
            self.set_difficulty(ctx, undoubled(difficulty, self.sent_doublings), out);
        }
    }

    /// True when the last retarget lies at least `interval_us` back.
    fn rested(&self, ctx: &Context<'_>, interval_us: u64) -> bool {
        self.grace_until_us == 0 || ctx.now_us.saturating_add(ctx.settings.grace_us) >= self.grace_until_us.saturating_add(interval_us)
    }

    /// Work at which the miner was told to mine the job that its last submit named.
    pub fn told_work(&self) -> Work {
        self.told
    }

    /// Remembers what was learned about the miner, for its next connection. To be called when this one ends.
    pub fn remember(&self, settings: &Settings) {
        if let Some(learning) = &settings.learning
            && self.is_authorized()
            && self.vardiff.is_settled()
        {
            learning.memory.remember(self.workers.first(), undoubled(self.sent, self.sent_doublings));
        }
    }

    /// Session counter within the run.
    pub fn number(&self) -> u32 {
        self.seat.session
    }

    /// As a big-endian number of its wire bytes.
    pub fn extranonce1(&self) -> u32 {
        self.seat.extranonce1
    }

    /// Counter of the newest job it was sent, 0 for none: what `Extranonces::release` wants.
    pub fn newest_job(&self) -> u32 {
        self.newest_job
    }

    /// True once mining.subscribe was answered.
    pub fn is_subscribed(&self) -> bool {
        self.subscribes > 0
    }

    /// The version bits that it may roll from `now_us` on; belongs with its record.
    pub fn version_mask_record(&self, now_us: u64) -> VersionMaskRecord {
        VersionMaskRecord { session: self.seat.session, mask: self.version_mask, since_us: now_us }
    }

    /// True once a worker was authorized: what the authorize deadline waits for.
    pub fn is_authorized(&self) -> bool {
        !self.workers.is_empty()
    }

    /// The difficulty it was last sent, or will be sent with its first job.
    pub fn difficulty(&self) -> Difficulty {
        if self.newest_job == 0 { self.wanted } else { self.sent }
    }

    fn on_request(&mut self, ctx: &Context<'_>, request: &Request<'_>, out: &mut Vec<u8>) -> Event {
        if request.method == Method::Submit {
            if !self.is_subscribed() {
                return refuse(out, &request.id.unwrap_or(IdToken::NULL), (25, "not subscribed"));
            }
            let claim = Claim::of(request, &self.workers, self.extranonce2_bytes);
            return self.judge(ctx, &claim);
        }
        if request.method == Method::Answer {
            return Event::None;
        }
        let Some(id) = request.id else {
            return refuse(out, &IdToken::NULL, (20, "malformed: the id must be a number, a string or null of at most 16 bytes"));
        };
        match request.method {
            Method::Subscribe => return self.subscribe(ctx, &id, &request.params[0], out),
            Method::Authorize => return self.authorize(ctx, &id, &request.params[0], out),
            Method::Configure => match configure::negotiate(&request.params[0], &request.params[1], ctx.settings) {
                Some(granted) => {
                    let mask = self.version_mask;
                    messages::result(out, &id, &granted.result);
                    self.apply(ctx, &granted, out);
                    if self.is_subscribed() && self.version_mask != mask {
                        if self.mask_changes >= MASK_CHANGES_MAX {
                            return Event::Close("configured too often");
                        }
                        self.mask_changes += 1;
                        return Event::VersionMask(self.version_mask_record(ctx.now_us));
                    }
                }
                None => return refuse(out, &id, (20, "malformed: configure takes a list of extensions and an object")),
            },
            Method::SuggestDifficulty => match number(&request.params[0]) {
                Some(value) => self.suggest(ctx, &id, value, out),
                None => return refuse(out, &id, (20, "malformed: suggest_difficulty takes a number")),
            },
            Method::SuggestTarget => match target(&request.params[0]) {
                Some(target) => self.suggest(ctx, &id, difficulty_of(&target), out),
                None => return refuse(out, &id, (20, "malformed: suggest_target takes up to 64 hex digits")),
            },
            // The extranonce of a session never changes, so the subscription is easily kept.
            Method::ExtranonceSubscribe => messages::result(out, &id, b"true"),
            Method::Ping => messages::result(out, &id, b"\"pong\""),
            // Nobody may see the transactions of a template: an empty list is what ckpool answers, too.
            Method::GetTransactions => messages::result(out, &id, b"[]"),
            Method::Missing => return refuse(out, &id, (20, "malformed: the method is missing")),
            Method::Unknown | Method::Submit | Method::Answer => return refuse(out, &id, (20, "unknown method")),
        }
        Event::None
    }

    fn subscribe(&mut self, ctx: &Context<'_>, id: &IdToken, agent: &Param<'_>, out: &mut Vec<u8>) -> Event {
        if self.subscribes >= SUBSCRIBES_MAX {
            return Event::Close("subscribed too often");
        }
        let again = self.is_subscribed();
        self.subscribes += 1;
        out.extend_from_slice(b"{\"id\":");
        out.extend_from_slice(id.as_bytes());
        // Writing into a Vec cannot fail.
        let _ = writeln!(
            out,
            ",\"result\":[[[\"mining.set_difficulty\",\"{0:08x}\"],[\"mining.notify\",\"{0:08x}\"]],\"{1:08x}\",{2}],\"error\":null}}",
            self.seat.session, self.seat.extranonce1, self.extranonce2_bytes
        );
        self.difficulty_due = true;
        if let Some(job) = ctx.jobs.newest() {
            self.send_job(ctx, job, true, out);
        }
        if again {
            return Event::None;
        }
        let mut peer = ctx.peer.map(|peer| peer.to_string()).unwrap_or_default();
        peer.truncate(PEER_BYTES_MAX);
        Event::Subscribed(SessionRecord {
            session: self.seat.session,
            extranonce1: self.seat.extranonce1,
            net: self.seat.net,
            extranonce2_bytes: self.extranonce2_bytes,
            started_us: ctx.now_us,
            peer,
            agent: printable(agent),
        })
    }

    fn authorize(&mut self, ctx: &Context<'_>, id: &IdToken, raw: &Param<'_>, out: &mut Vec<u8>) -> Event {
        // The password is not looked at: options in it (`d=1024`) are other pools' conventions.
        let Param::Text(raw) = *raw else {
            return refuse(out, id, (24, "unauthorized worker: the name must be a string"));
        };
        let Ok(name) = WorkerName::new(raw) else {
            return refuse(out, id, (24, "unauthorized worker: 1 to 128 printable ASCII characters without quotes or backslash"));
        };
        if self.workers.find(name.as_str().as_bytes()).is_some() {
            messages::result(out, id, b"true");
            return Event::None;
        }
        if self.workers.len() >= ctx.settings.workers_max.min(Workers::MAX) {
            return refuse(out, id, (24, "unauthorized worker: too many workers on this connection"));
        }
        let worker = name.id(&ctx.settings.pool);
        let first = self.workers.is_empty();
        self.workers.add(&name, worker);
        if first {
            self.vardiff = Vardiff::new(ctx.now_us);
        }
        messages::result(out, id, b"true");
        if first
            && let Some(learning) = &ctx.settings.learning
            && let Some(difficulty) = learning.memory.recall(worker)
        {
            self.set_difficulty(ctx, difficulty, out);
            self.vardiff = Vardiff::remembered(ctx.now_us);
        }
        Event::Authorized(WorkerRecord { worker, seen_us: ctx.now_us, session: self.seat.session, name: name.as_str().to_owned() })
    }

    fn apply(&mut self, ctx: &Context<'_>, granted: &configure::Granted, out: &mut Vec<u8>) {
        if let Some(mask) = granted.version_mask {
            self.version_mask = mask;
        }
        if let Some(floor) = granted.difficulty_min {
            self.floor = floor;
            self.set_difficulty(ctx, self.wanted, out);
        }
    }

    fn suggest(&mut self, ctx: &Context<'_>, id: &IdToken, value: f64, out: &mut Vec<u8>) {
        let followed = value.is_finite() && self.rested(ctx, SUGGEST_INTERVAL_US);
        messages::result(out, id, if followed { b"true" } else { b"false" });
        if followed {
            let (least, most) = (ctx.settings.difficulty_min.get(), ctx.settings.difficulty_max.get());
            self.set_difficulty(ctx, Difficulty::clamped(value.min(most).max(least)), out);
        }
    }

    /// What a session would be sent with this job.
    fn effective(&self, ctx: &Context<'_>, job: &PublishedJob) -> Difficulty {
        let mut difficulty = self.wanted;
        if self.doublings > 0 {
            let doubled = self.wanted.get() * f64::from(1_u32 << self.doublings.min(16));
            let most = ctx.settings.difficulty_max.get().max(self.wanted.get());
            difficulty = messages::wire_difficulty(doubled.min(most));
        }
        if difficulty > job.network_difficulty { job.network_difficulty } else { difficulty }
    }

    fn send_job(&mut self, ctx: &Context<'_>, job: &PublishedJob, clean: bool, out: &mut Vec<u8>) {
        let difficulty = self.effective(ctx, job);
        let counter = job.job.id.counter();
        let again = counter <= self.newest_job;
        let changed = difficulty != self.sent && !(again && self.newest_sending == u8::MAX);
        let sending = if again { self.newest_sending + u8::from(changed) } else { 0 };
        if changed {
            self.retarget(ctx, difficulty, counter, sending);
            self.difficulty_due = true;
        }
        if self.difficulty_due {
            messages::set_difficulty(out, self.sent);
            self.difficulty_due = false;
        }
        // Where broadcasts were skipped, the job that ended the session's last one may be among them.
        let clean = clean || self.newest_job == 0 || !ctx.jobs.is_live(self.newest_job);
        let line = if clean { &job.notify_clean } else { &job.notify };
        if again {
            // A later ntime makes headers that this miner has not tried: many start their search anew with every notify.
            let elapsed_s = ctx.now_us.saturating_sub(job.job.created_us) / 1_000_000;
            let now = job.job.ntime.saturating_add(u32::try_from(elapsed_s).unwrap_or(u32::MAX));
            self.newest_ntime = now.max(self.newest_ntime.saturating_add(1)).min(job.job.ntime_max(ctx.now_us));
            messages::notify_again(out, line, clean, sending, self.newest_ntime);
        } else {
            out.extend_from_slice(line);
            if self.newest_job == 0 {
                self.vardiff.skip(ctx.now_us);
            }
            self.newest_job = counter;
            self.newest_ntime = job.job.ntime;
        }
        self.newest_sending = sending;
    }

    /// From this sending of the job `counter` on, shares are found at `difficulty`.
    fn retarget(&mut self, ctx: &Context<'_>, difficulty: Difficulty, counter: u32, sending: u8) {
        let work = difficulty.work();
        if self.newest_job == 0 {
            self.work_before = work;
        } else {
            // Two works are kept. Where jobs of an earlier retarget may still be mined the easier stands for both, so that no honest share is refused.
            // The first job at `sent` counts among them where it was sent before at another difficulty.
            let oldest_before = self.first_job + u32::from(self.first_sending > 0);
            let overlaps = ctx.now_us < self.grace_until_us || oldest_before > ctx.jobs.oldest_live();
            self.work_before = if overlaps { self.work_before.easier(self.work_now) } else { self.work_now };
            self.first_job = counter;
            self.first_sending = sending;
            self.grace_until_us = ctx.now_us.saturating_add(ctx.settings.grace_us);
        }
        // A doubling for the load moves difficulty and target rate together: to vardiff, which counts against both, that is no change.
        let doubled = f64::from(1_u32 << self.doublings.min(16)) / f64::from(1_u32 << self.sent_doublings.min(16));
        self.vardiff.retargeted(Difficulty::clamped(self.sent.get() * doubled), difficulty);
        self.sent_doublings = self.doublings;
        self.sent = difficulty;
        self.work_now = work;
    }

    /// For a share of this sending of a job: the work that it is judged at now, the work that its miner was told, and the flag where the grace made it easier.
    fn work_of(&self, ctx: &Context<'_>, job: &PublishedJob, sending: u8) -> (Work, Work, u8) {
        let counter = job.job.id.counter();
        let is_new = counter > self.first_job || (counter == self.first_job && sending >= self.first_sending);
        let told = if is_new { self.work_now } else { self.work_before };
        let cut_us = if is_new { ctx.settings.grace_us.saturating_sub(ctx.settings.grace_raised_us) } else { 0 };
        let in_grace = ctx.now_us.saturating_add(cut_us) < self.grace_until_us;
        let judged = if in_grace { self.work_now.easier(self.work_before) } else { told };
        (judged.easier(job.network_work), told, if judged < told { flags::GRACE } else { 0 })
    }

    /// The verdicts that need no hash, in this order: shape (id, five params), worker, job known, job live, sizes, ntime window, version mask.
    #[inline]
    fn judge(&mut self, ctx: &Context<'_>, claim: &Claim) -> Event {
        let (entry, sending) = claim.job.map_or((None, 0), |(wire_id, sending)| (ctx.jobs.lookup(wire_id), sending));
        let (work, told, grace) = entry.map_or((self.work_now, self.work_now, 0), |(job, _)| self.work_of(ctx, job, sending));
        self.told = told;
        let job_version = entry.map_or(0, |(job, _)| job.job.version);
        let late = entry.is_some_and(|(job, live)| live && job.job.id.counter() < self.newest_job);

        let refused = if claim.id.is_none() || !claim.has_shape {
            Some(ShareStatus::Malformed)
        } else if claim.worker.is_none() {
            Some(ShareStatus::Unauthorized)
        } else if !claim.names_job {
            Some(ShareStatus::Malformed)
        } else {
            match entry {
                None | Some((_, false)) => Some(ShareStatus::Stale),
                Some((job, true)) => match (claim.extranonce2, claim.ntime, claim.nonce, claim.rolled) {
                    (Some(_), Some(ntime), Some(_), Some(rolled)) => {
                        if !(job.job.ntime_min..=job.job.ntime_max(ctx.now_us)).contains(&ntime) {
                            Some(ShareStatus::BadTime)
                        } else if rolled.unwrap_or(0) & !self.version_mask != 0 {
                            Some(ShareStatus::BadVersion)
                        } else {
                            None
                        }
                    }
                    _ => Some(ShareStatus::Malformed),
                },
            }
        };
        // What could be decoded stands in the row, whatever the verdict: a row explains itself.
        let submit = Submit {
            worker: claim.worker.map_or(0, |worker| worker.0),
            work: work.hashes(),
            extranonce2: claim.extranonce2.unwrap_or(0),
            arrival_us: ctx.now_us,
            session: self.seat.session,
            job: entry.map_or(0, |(job, _)| job.job.id.counter()),
            extranonce1: self.seat.extranonce1,
            nonce: claim.nonce.unwrap_or(0),
            ntime: claim.ntime.unwrap_or(0),
            // BIP 310: the bits of the mask come from the miner, all others from the job. Bits past the mask stand in the row as they were sent: merged into the job's
            // version, those that it has, too, would not be seen.
            version: match claim.rolled.flatten() {
                Some(bits) if refused == Some(ShareStatus::BadVersion) => bits,
                Some(bits) => (job_version & !self.version_mask) | bits,
                None => job_version,
            },
            in_flight: 0,
            status: refused.map_or(Submit::PENDING, |status| status as u8),
            flags: grace | if late { flags::LATE } else { 0 },
            net: self.seat.net,
            spare: 0,
        };
        Event::Share(submit, claim.id.unwrap_or(IdToken::NULL))
    }
}

/// A difficulty without the doublings that are in it.
fn undoubled(difficulty: Difficulty, doublings: u8) -> Difficulty {
    Difficulty::clamped(difficulty.get() / f64::from(1_u32 << doublings.min(16)))
}

fn refuse(out: &mut Vec<u8>, id: &IdToken, (code, text): Refusal) -> Event {
    messages::error(out, id, code, text);
    Event::Refused
}

/// A number, or a string that holds one: cpuminer-opt suggests its difficulty as text.
fn number(param: &Param<'_>) -> Option<f64> {
    match *param {
        Param::Number(text) | Param::Text(text) => std::str::from_utf8(text).ok()?.trim().parse().ok(),
        _ => None,
    }
}

/// A target of 1 to 64 hex digits, most significant first, with or without "0x".
fn target(param: &Param<'_>) -> Option<Target> {
    let Param::Text(text) = *param else { return None };
    let digits = text.strip_prefix(b"0x").or_else(|| text.strip_prefix(b"0X")).unwrap_or(text);
    if digits.is_empty() {
        return None;
    }
    let mut padded = [b'0'; 64];
    padded.get_mut(64usize.checked_sub(digits.len())?..)?.copy_from_slice(digits);
    let mut bytes = [0; 32];
    decode_hex(&padded, &mut bytes).ok()?;
    bytes.reverse();
    Some(Target(otedama_primitives::Hash256(bytes).limbs()))
}

/// The difficulty of a suggested target. Work is rounded down, so a target that stands for a whole difficulty would come out a hair below it.
fn difficulty_of(target: &Target) -> f64 {
    let difficulty = target.work().difficulty();
    let whole = difficulty.round();
    if (difficulty - whole).abs() < whole * 1e-9 { whole } else { difficulty }
}

/// Printable ASCII of a user agent, at most 128 bytes; other bytes as `?`.
fn printable(param: &Param<'_>) -> String {
    let Param::Text(text) = *param else { return String::new() };
    let allowed = |byte: u8| if (0x20..0x7f).contains(&byte) { char::from(byte) } else { '?' };
    text.iter().take(AGENT_BYTES_MAX).map(|&byte| allowed(byte)).collect()
}

#[cfg(test)]
mod tests;
