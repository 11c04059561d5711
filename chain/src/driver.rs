//! The task of the control core that keeps the pool in work: templates in, jobs out; candidates in, blocks out.
//!
//! It never ends because a node is down. Templates come by long poll; every `poll_ms` each node is asked for its tip as well, so that a hanging long poll or a
//! node that has fallen behind costs at most that; every `refresh_s` the template is renewed on the same parent. The node in use is kept until it fails.
use crate::jobs::{Assembler, AssemblerSettings};
use crate::network::Network;
use crate::node::{NodeError, NodeRpc, one_line};
use crate::stats::ChainStats;
use crate::submit::{self, Outcome};
use crate::template::Template;
use crate::{CoinbaseError, JobError};
use otedama_primitives::{BlockCandidate, Clock, Hash256, Job, JobId, RunId, SessionId, WorkerId};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc::{Receiver, UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

/// Jobs whose template is kept for a block; more than ever are live on the share path.
const TEMPLATES_KEPT: usize = 16;
/// Jobs that a late candidate can still be matched with.
const JOBS_KEPT: usize = 4_096;
/// Parents whose fate is remembered.
const PARENTS_KEPT: usize = 4_096;
/// Candidates that wait beside the one that was submitted.
const WAITING_MAX: usize = 1_024;
/// Late candidates written down in one turn of the task.
const LATE_PER_TURN: usize = 64;
/// Candidates on decided parents that may wait to be written down; above it they are written down between the others.
pub const LATE_MAX: usize = 1 << 18;
/// Bytes of one.
pub const LATE_BYTES: usize = size_of::<Late>();
/// Hashes remembered so that a candidate that arrives twice (by ring and from the log) counts once.
const SEEN_KEPT: usize = 8_192;
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A long poll that answers more often than this on one parent does not make a job each time.
const SAME_PARENT_MIN: Duration = Duration::from_secs(1);
/// A node that is behind takes over only when the template in use is older than this many refreshes.
const BEHIND_REFRESHES: u32 = 10;
/// Turns of the runtime from a spawned submission to its bytes on an open connection: the task, then the connection's task.
const SUBMIT_YIELDS: u32 = 3;
/// How long a stop waits for blocks on their way.
const STOP_WAIT: Duration = Duration::from_secs(10);

/// Settings of the chain task.
#[derive(Debug, Clone)]
pub struct ChainSettings {
    /// Prefix of the job numbers.
    pub run: RunId,
    /// `[chain] network`; nodes on another chain are refused.
    pub network: Network,
    /// The coinbase.
    pub assembler: AssemblerSettings,
    /// `[chain] poll_ms`: how often the nodes are asked for their tip, at least 10.
    pub poll_ms: u64,
    /// `[chain] refresh_s`: how often the template is renewed on the same parent, at least 1.
    pub refresh_s: u64,
}

/// What the pool asks of the chain task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// A new job on the same template, because a duplicate table fills up.
    NewJobWanted,
    /// Stop; blocks on their way are waited for, at most 10 s.
    Stop,
}

/// State of a block, as the log and the `blocks` table have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockStatus {
    /// A candidate has arrived.
    Found,
    /// A node has it in its active chain.
    Accepted,
    /// Another block on the same parent came before it.
    Superseded,
    /// No node took it; the reason says why.
    Rejected,
}

impl BlockStatus {
    /// The word in the log.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Found => "found",
            Self::Accepted => "accepted",
            Self::Superseded => "superseded",
            Self::Rejected => "rejected",
        }
    }
}

/// A step in the life of a block: `Found` comes once, then one of the others. The last one holds: a block that was `Rejected` because the nodes that answered
/// refused it becomes `Accepted` when a slower node turns out to have it in its chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockEvent {
    /// The job it solves.
    pub job: JobId,
    /// Its height; 0 when the job is unknown.
    pub height: u32,
    /// Its hash.
    pub hash: Hash256,
    /// Who found it.
    pub worker: WorkerId,
    /// On which session.
    pub session: SessionId,
    /// When the share was read, microseconds since the epoch.
    pub found_us: u64,
    /// What it is worth, satoshi; 0 when the job is unknown.
    pub value_sat: u64,
    /// The state it enters.
    pub status: BlockStatus,
    /// The node that took it, or why none did; empty for `Found`.
    pub reason: String,
}

/// Where jobs and blocks go. Both calls are made on the chain task: they may write a record, they should not fsync.
pub trait ChainSink: Send + 'static {
    /// A new job: record it in the log, then publish it to the share path. With `clean` set all earlier jobs end.
    fn job(&mut self, job: &Arc<Job>);
    /// A block has entered a state. Its submission is already on the way.
    fn block(&mut self, event: &BlockEvent);
}

/// Runs the chain task until it is told to stop (or the command channel closes). Fails only on settings under which no block could be valid.
pub async fn run<N: NodeRpc, S: ChainSink, C: Clock>(
    settings: ChainSettings,
    nodes: N,
    sink: S,
    clock: C,
    stats: Arc<ChainStats>,
    mut candidates: Receiver<BlockCandidate>,
    mut commands: Receiver<Command>,
) -> Result<(), CoinbaseError> {
    let mut driver = Driver::new(settings, Arc::new(nodes), sink, clock, stats)?;
    let mut events = driver.start();
    let mut candidates_open = true;
    loop {
        let wake = driver.next_wake();
        tokio::select! {
            candidate = candidates.recv(), if candidates_open => match candidate {
                Some(candidate) => driver.take(candidate).await,
                None => candidates_open = false,
            },
            Some(event) = events.recv() => driver.on_event(event),
            command = commands.recv() => match command {
                Some(Command::NewJobWanted) => {
                    // Several stages may ask at once; one job serves them all.
                    let mut stop = false;
                    while let Ok(more) = commands.try_recv() {
                        stop |= more == Command::Stop;
                    }
                    if stop {
                        break;
                    }
                    driver.publish_again();
                }
                Some(Command::Stop) | None => break,
            },
            () = tokio::time::sleep_until(wake) => driver.on_time(),
            () = tokio::task::yield_now(), if !driver.late.is_empty() => {}
        }
        // Books can wait, blocks cannot: those of decided parents are kept while no candidate is at the door.
        if candidates.is_empty() || driver.late.len() > LATE_MAX {
            driver.keep_books(LATE_PER_TURN);
        }
        driver.reap();
    }
    while let Ok(candidate) = candidates.try_recv() {
        driver.take(candidate).await;
    }
    driver.keep_books(usize::MAX);
    let deadline = Instant::now() + STOP_WAIT;
    while driver.blocks_on_their_way() {
        match tokio::time::timeout_at(deadline, events.recv()).await {
            Ok(Some(event @ (Event::Settled { .. } | Event::AcceptedLate { .. }))) => driver.on_event(event),
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => break,
        }
    }
    Ok(())
}

/// Why a template was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// There is none, or the node in use failed.
    Needed,
    /// The one in use is old.
    Refresh,
    /// A tip was seen that is not its parent.
    Tip,
    /// A long poll answered.
    LongPoll,
}

#[derive(Debug)]
enum Event {
    Template { node: usize, why: Why, template: Box<Template> },
    Failed { node: usize, why: Why, error: NodeError },
    Tip { node: usize, best: Result<Hash256, NodeError> },
    Settled { parent: Hash256, outcome: Outcome },
    AcceptedLate { parent: Hash256, hash: Hash256, node: usize },
}

/// What is known of a node.
#[derive(Debug)]
struct NodeState {
    failures: u32,
    retry_at: Instant,
    fetching: bool,
    fetch_again: Option<Why>,
    polling: bool,
    tip: Option<Hash256>,
    /// The tip whose template was not better than the one in use.
    ignored_tip: Option<Hash256>,
    chain_checked: Arc<AtomicBool>,
}

#[derive(Debug)]
struct KnownJob {
    job: Arc<Job>,
    template: Option<Arc<Template>>,
    value_sat: u64,
}

/// A candidate with what is needed to make its block.
#[derive(Debug)]
struct Waiting {
    candidate: BlockCandidate,
    job: Arc<Job>,
    template: Option<Arc<Template>>,
    value_sat: u64,
}

/// A candidate that came after its parent was decided, with all that is to be written of it.
#[derive(Debug)]
struct Late {
    candidate: BlockCandidate,
    height: u32,
    value_sat: u64,
    by: String,
}

/// What became of the blocks on one parent.
#[derive(Debug, Default)]
struct Parent {
    on_its_way: Option<Waiting>,
    waiting: VecDeque<Waiting>,
    /// Set when a block stands on it, ours or another's: everything else on this parent is superseded.
    taken: Option<String>,
    /// What was refused by the nodes that answered, while another may still be at it.
    refused: Vec<Waiting>,
}

struct Driver<N, S, C> {
    settings: ChainSettings,
    assembler: Assembler,
    nodes: Arc<N>,
    sink: S,
    clock: C,
    stats: Arc<ChainStats>,
    events: Option<UnboundedSender<Event>>,
    tasks: JoinSet<()>,
    states: Vec<NodeState>,
    active: usize,
    current: Option<Arc<Template>>,
    counter: u32,
    published_at: Instant,
    refresh_at: Instant,
    poll_at: Instant,
    /// A template is wanted from whichever node can be asked next.
    wanted: Option<Why>,
    long_poll: Option<(usize, AbortHandle)>,
    long_poll_at: Instant,
    long_poll_failures: u32,
    jobs: VecDeque<KnownJob>,
    parents: HashMap<Hash256, Parent>,
    parents_order: VecDeque<Hash256>,
    /// Candidates on parents that are decided: nothing is to be done but the books.
    late: VecDeque<Late>,
    seen: HashSet<Hash256>,
    seen_order: VecDeque<Hash256>,
    jitter: u64,
}

impl<N: NodeRpc, S: ChainSink, C: Clock> Driver<N, S, C> {
    fn new(settings: ChainSettings, nodes: Arc<N>, sink: S, clock: C, stats: Arc<ChainStats>) -> Result<Self, CoinbaseError> {
        let assembler = Assembler::new(settings.assembler.clone())?;
        let now = Instant::now();
        let state = || NodeState {
            failures: 0,
            retry_at: now,
            fetching: false,
            fetch_again: None,
            polling: false,
            tip: None,
            ignored_tip: None,
            chain_checked: Arc::default(),
        };
        let states = (0..nodes.nodes().max(1)).map(|_| state()).collect();
        let jitter = u64::from(settings.run.prefix()) << 1 | 1;
        stats.stale_after_us.store((settings.refresh_s.max(1) * 4).max(60) * 1_000_000, Ordering::Relaxed);
        Ok(Self {
            settings,
            assembler,
            nodes,
            sink,
            clock,
            stats,
            events: None,
            tasks: JoinSet::new(),
            states,
            active: 0,
            current: None,
            counter: 0,
            published_at: now,
            refresh_at: now,
            poll_at: now,
            wanted: None,
            long_poll: None,
            long_poll_at: now,
            long_poll_failures: 0,
            jobs: VecDeque::new(),
            parents: HashMap::new(),
            parents_order: VecDeque::new(),
            late: VecDeque::new(),
            seen: HashSet::new(),
            seen_order: VecDeque::new(),
            jitter,
        })
    }

    /// Asks every node for a template: the first to answer puts the pool to work, so that a hanging node at the head of the list delays nothing.
    ///
    /// The channel of events is bounded by what is asked: a node has at most one template, one tip and one long poll under way, and a parent one block.
    fn start(&mut self) -> UnboundedReceiver<Event> {
        let (sender, receiver) = unbounded_channel();
        self.events = Some(sender);
        for node in 0..self.states.len() {
            self.fetch(node, Why::Needed);
        }
        self.poll_at = Instant::now() + self.poll_every();
        self.refresh_at = Instant::now() + self.refresh_every();
        receiver
    }

    fn poll_every(&self) -> Duration {
        Duration::from_millis(self.settings.poll_ms.max(10))
    }

    fn refresh_every(&self) -> Duration {
        Duration::from_secs(self.settings.refresh_s.max(1))
    }

    fn next_wake(&self) -> Instant {
        let mut wake = self.poll_at.min(self.refresh_at);
        if self.wanted.is_some() {
            wake = wake.min(self.states[self.best_node()].retry_at);
        }
        if self.long_poll.is_none() && self.can_long_poll() {
            wake = wake.min(self.long_poll_at);
        }
        // A moment in the past would spin when what is due cannot start yet.
        wake.max(Instant::now() + Duration::from_millis(1))
    }

    fn on_time(&mut self) {
        let now = Instant::now();
        if now >= self.refresh_at {
            self.refresh_at = now + self.refresh_every();
            self.wanted.get_or_insert(Why::Refresh);
        }
        if now >= self.poll_at {
            self.poll_at = now + self.poll_every();
            for node in 0..self.states.len() {
                self.poll(node, now);
            }
            if self.current.is_none() {
                self.wanted.get_or_insert(Why::Needed);
            }
        }
        self.fetch_if_wanted(now);
        self.long_poll_if_due(now);
    }

    /// Finished tasks are dropped; their results have come as events.
    fn reap(&mut self) {
        while self.tasks.try_join_next().is_some() {}
    }

    /// The node in use while it is well, else the one that failed least (in the order of the config), among those that may be asked again soonest.
    fn best_node(&self) -> usize {
        if self.states[self.active].failures == 0 {
            return self.active;
        }
        let now = Instant::now();
        (0..self.states.len())
            .min_by_key(|&node| {
                let state = &self.states[node];
                (state.retry_at.max(now), state.failures, node)
            })
            .unwrap_or(0)
    }

    fn fetch_if_wanted(&mut self, now: Instant) {
        if let Some(why) = self.wanted {
            let node = self.best_node();
            if self.states[node].retry_at <= now {
                self.wanted = None;
                self.fetch(node, why);
            }
        }
    }

    fn fetch(&mut self, node: usize, why: Why) {
        let state = &mut self.states[node];
        if state.fetching {
            state.fetch_again = Some(why);
            return;
        }
        let Some(events) = self.events.clone() else { return };
        state.fetching = true;
        let nodes = Arc::clone(&self.nodes);
        let checked = Arc::clone(&state.chain_checked);
        let network = self.settings.network;
        self.tasks.spawn(async move {
            let event = match checked_template(&*nodes, node, network, &checked).await {
                Ok(template) => Event::Template { node, why, template: Box::new(template) },
                Err(error) => Event::Failed { node, why, error },
            };
            let _ = events.send(event);
        });
    }

    fn poll(&mut self, node: usize, now: Instant) {
        let state = &mut self.states[node];
        let Some(events) = self.events.clone() else { return };
        if state.polling || state.retry_at > now {
            return;
        }
        state.polling = true;
        let nodes = Arc::clone(&self.nodes);
        self.tasks.spawn(async move {
            let best = nodes.best_block(node).await;
            let _ = events.send(Event::Tip { node, best });
        });
    }

    fn can_long_poll(&self) -> bool {
        self.current.as_ref().is_some_and(|template| template.longpollid.is_some()) && self.states[self.active].failures == 0
    }

    fn long_poll_if_due(&mut self, now: Instant) {
        if self.long_poll.as_ref().is_some_and(|(node, _)| *node != self.active)
            && let Some((_, task)) = self.long_poll.take()
        {
            task.abort();
        }
        if self.long_poll.is_some() || !self.can_long_poll() || self.long_poll_at > now {
            return;
        }
        let (Some(events), Some(id)) = (self.events.clone(), self.current.as_ref().and_then(|template| template.longpollid.clone())) else {
            return;
        };
        let (nodes, node) = (Arc::clone(&self.nodes), self.active);
        let task = self.tasks.spawn(async move {
            let event = match nodes.block_template(node, Some(&id)).await {
                Ok(template) => Event::Template { node, why: Why::LongPoll, template: Box::new(template) },
                Err(error) => Event::Failed { node, why: Why::LongPoll, error },
            };
            let _ = events.send(event);
        });
        self.long_poll = Some((node, task));
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Template { node, why, template } => self.on_template(node, why, *template),
            Event::Failed { node, why: Why::LongPoll, error } => self.on_long_poll_failed(node, &error),
            Event::Failed { node, why, error } => {
                self.fetched(node);
                self.node_failed(node, &error);
                // The start asks every node at once; failures of the others do not matter once one has answered.
                if self.current.is_none() || node == self.active {
                    self.wanted = Some(why);
                    self.fetch_if_wanted(Instant::now());
                }
            }
            Event::Tip { node, best } => self.on_tip(node, best),
            Event::Settled { parent, outcome } => self.on_settled(parent, outcome),
            Event::AcceptedLate { parent, hash, node } => self.on_accepted_late(parent, hash, node),
        }
        self.long_poll_if_due(Instant::now());
    }

    fn fetched(&mut self, node: usize) {
        self.states[node].fetching = false;
        if let Some(why) = self.states[node].fetch_again.take() {
            self.fetch(node, why);
        }
    }

    fn node_failed(&mut self, node: usize, error: &NodeError) {
        self.stats.calls_failed.fetch_add(1, Ordering::Relaxed);
        self.stats.set_error(one_line(error));
        let pause = self.pause(self.states[node].failures);
        let state = &mut self.states[node];
        state.failures = state.failures.saturating_add(1);
        state.retry_at = Instant::now() + pause;
        // Whoever answers there next may be another node.
        state.chain_checked.store(false, Ordering::Relaxed);
    }

    fn node_well(&mut self, node: usize) {
        let state = &mut self.states[node];
        state.failures = 0;
        state.retry_at = Instant::now();
    }

    /// 50 ms doubled with every failure up to 5 s, of which a random half is taken off, so that many pools do not knock together.
    fn pause(&mut self, failures: u32) -> Duration {
        self.jitter ^= self.jitter << 13;
        self.jitter ^= self.jitter >> 7;
        self.jitter ^= self.jitter << 17;
        let full = BACKOFF_MIN.saturating_mul(1 << failures.min(10)).min(BACKOFF_MAX);
        full / 2 + full.mul_f64((self.jitter % 1_024) as f64 / 2_048.0)
    }

    fn on_long_poll_failed(&mut self, node: usize, error: &NodeError) {
        if self.long_poll.as_ref().is_none_or(|(polled, _)| *polled != node) {
            return;
        }
        self.long_poll = None;
        if error.is_timeout() {
            return; // nothing new within the time a call may take
        }
        self.stats.calls_failed.fetch_add(1, Ordering::Relaxed);
        self.long_poll_at = Instant::now() + self.pause(self.long_poll_failures);
        self.long_poll_failures = self.long_poll_failures.saturating_add(1);
    }

    fn on_tip(&mut self, node: usize, best: Result<Hash256, NodeError>) {
        self.states[node].polling = false;
        let tip = match best {
            Ok(tip) => tip,
            Err(error) => {
                self.node_failed(node, &error);
                if node == self.active && self.current.is_some() {
                    // The template in use is still good work, but its node cannot be relied on for the next one.
                    self.wanted.get_or_insert(Why::Needed);
                    self.fetch_if_wanted(Instant::now());
                }
                return;
            }
        };
        let state = &mut self.states[node];
        state.tip = Some(tip);
        let news = self.current.as_ref().is_none_or(|current| current.prev_hash != tip) && state.ignored_tip != Some(tip);
        // A node that cannot make templates may well answer this: only a template makes it well again, so one is asked for.
        if news || state.failures > 0 {
            self.fetch(node, Why::Tip);
        }
    }

    fn on_template(&mut self, node: usize, why: Why, template: Template) {
        let now = Instant::now();
        if why == Why::LongPoll {
            if self.long_poll.as_ref().is_none_or(|(polled, _)| *polled != node) {
                return;
            }
            self.long_poll = None;
            self.long_poll_failures = 0;
            // A node that answers at once, again and again, is asked at most once a second.
            self.long_poll_at = if now < self.published_at + SAME_PARENT_MIN { now + SAME_PARENT_MIN } else { now };
        } else {
            self.fetched(node);
        }
        self.node_well(node);
        self.states[node].tip = Some(template.prev_hash);
        self.stats.templates.fetch_add(1, Ordering::Relaxed);

        let template = template.received_at(self.clock.now_us());
        match self.current.clone() {
            None => self.adopt(node, template, true),
            Some(current) if current.prev_hash == template.prev_hash => {
                if node != self.active && self.states[self.active].failures == 0 {
                    return;
                }
                self.active = node;
                let due = why == Why::Refresh || (why != Why::Tip && now >= self.published_at + SAME_PARENT_MIN);
                if due {
                    self.adopt(node, template, false);
                } else {
                    self.stats.template_us.store(template.received_us, Ordering::Relaxed);
                    self.stats.set_node(self.nodes.url(node));
                }
            }
            Some(current) => {
                if self.is_better(node, &template, &current) {
                    self.adopt(node, template, true);
                } else {
                    self.states[node].ignored_tip = Some(template.prev_hash);
                    if node == self.active
                        && let Some(other) = self.node_at(&current.prev_hash, node)
                    {
                        self.active = other;
                    }
                }
            }
        }
    }

    /// Whether a template on another parent replaces the one in use.
    fn is_better(&self, node: usize, template: &Template, current: &Template) -> bool {
        let old = Instant::now() > self.published_at + self.refresh_every() * BEHIND_REFRESHES;
        if template.height > current.height || old {
            return true;
        }
        // The node in use may change its mind (a reorganisation), unless it fell behind while another one still stands by the parent in use.
        node == self.active && (template.height == current.height || self.node_at(&current.prev_hash, node).is_none())
    }

    /// Another node in good health that has `tip`.
    fn node_at(&self, tip: &Hash256, except: usize) -> Option<usize> {
        (0..self.states.len()).find(|&node| node != except && self.states[node].failures == 0 && self.states[node].tip == Some(*tip))
    }

    fn adopt(&mut self, node: usize, template: Template, clean: bool) {
        self.active = node;
        self.stats.set_node(self.nodes.url(node));
        self.stats.template_us.store(template.received_us, Ordering::Relaxed);
        self.stats.height.store(template.height, Ordering::Relaxed);
        let template = Arc::new(template);
        match self.publish(&template, clean) {
            Ok(()) => {
                for state in &mut self.states {
                    state.ignored_tip = None;
                }
                self.current = Some(template);
            }
            Err(error) => {
                // Asked again at the next refresh or tip; mining goes on with what there is.
                self.states[node].ignored_tip = Some(template.prev_hash);
                self.stats.set_error(one_line(&error));
            }
        }
    }

    fn publish(&mut self, template: &Arc<Template>, clean: bool) -> Result<(), JobError> {
        let id = self.settings.run.job(self.counter.wrapping_add(1).max(1));
        let mut job = self.assembler.job(template, id)?;
        self.counter = id.counter();
        job.clean = clean;
        let job = Arc::new(job);
        self.jobs.push_back(KnownJob {
            job: Arc::clone(&job),
            template: Some(Arc::clone(template)),
            value_sat: template.coinbase_value_sat,
        });
        if let Some(old) = self.jobs.len().checked_sub(TEMPLATES_KEPT + 1) {
            self.jobs[old].template = None;
        }
        if self.jobs.len() > JOBS_KEPT {
            self.jobs.pop_front();
        }
        self.published_at = Instant::now();
        self.refresh_at = self.published_at + self.refresh_every();
        self.stats.jobs.fetch_add(1, Ordering::Relaxed);
        self.sink.job(&job);
        Ok(())
    }

    /// Another job on the template in use: its number alone makes all its headers new.
    fn publish_again(&mut self) {
        let refresh_at = self.refresh_at;
        if let Some(template) = self.current.clone()
            && let Err(error) = self.publish(&template, false)
        {
            self.stats.set_error(one_line(&error));
        }
        self.refresh_at = refresh_at;
    }

    /// Takes a candidate in. One on a parent that already has its block only wants to be written down, which may wait: on a network where every other hash is
    /// a block, tens of thousands a second of them must not stand before the first on a new parent.
    async fn take(&mut self, candidate: BlockCandidate) {
        if !self.is_new(candidate.hash) {
            return;
        }
        let known = self.jobs.iter().rev().find(|known| known.job.id == candidate.job);
        let decided = known.and_then(|known| Some((known, self.parents.get(&known.job.prev_hash)?.taken.clone()?)));
        match decided {
            Some((known, by)) => self.late.push_back(Late { candidate, height: known.job.height, value_sat: known.value_sat, by }),
            None => self.on_candidate(candidate).await,
        }
    }

    /// True once for every hash: a candidate may come by ring and from the log.
    fn is_new(&mut self, hash: Hash256) -> bool {
        if !self.seen.insert(hash) {
            return false;
        }
        self.seen_order.push_back(hash);
        if self.seen_order.len() > SEEN_KEPT
            && let Some(oldest) = self.seen_order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        true
    }

    /// Writes down up to `count` of the late candidates.
    fn keep_books(&mut self, count: usize) {
        for _ in 0..count {
            let Some(late) = self.late.pop_front() else { return };
            self.tell(&late.candidate, late.height, late.value_sat, BlockStatus::Found, String::new());
            self.tell(&late.candidate, late.height, late.value_sat, BlockStatus::Superseded, late.by);
        }
    }

    async fn on_candidate(&mut self, candidate: BlockCandidate) {
        let known = self.jobs.iter().rev().find(|known| known.job.id == candidate.job);
        let Some(waiting) = known.map(|known| Waiting {
            candidate,
            job: Arc::clone(&known.job),
            template: known.template.clone(),
            value_sat: known.value_sat,
        }) else {
            self.tell(&candidate, 0, 0, BlockStatus::Found, String::new());
            self.tell(&candidate, 0, 0, BlockStatus::Rejected, "its job is no longer known".into());
            return;
        };
        let (job, value_sat) = (Arc::clone(&waiting.job), waiting.value_sat);
        let parent = job.prev_hash;
        if !self.parents.contains_key(&parent) {
            self.parents_order.push_back(parent);
            self.forget_old_parents();
        }
        let state = self.parents.entry(parent).or_default();
        let mut superseded = None;
        let mut refused = Vec::new();
        if let Some(by) = &state.taken {
            superseded = Some(by.clone());
        } else if state.on_its_way.is_none() {
            state.waiting.push_back(waiting);
            refused = self.submit_next(parent);
            // The tasks take their first steps, down to the bytes on an open connection, before anything is written to the log.
            for _ in 0..SUBMIT_YIELDS {
                tokio::task::yield_now().await;
            }
        } else if state.waiting.len() < WAITING_MAX {
            state.waiting.push_back(waiting);
        } else {
            superseded = Some(format!("{WAITING_MAX} candidates on this parent wait already"));
        }
        self.tell(&candidate, job.height, value_sat, BlockStatus::Found, String::new());
        if let Some(by) = superseded {
            self.tell(&candidate, job.height, value_sat, BlockStatus::Superseded, by);
        }
        self.tell_refused(refused);
    }

    /// Sends the next candidate on `parent` to the nodes; returns those that could not even be assembled, with the reason.
    fn submit_next(&mut self, parent: Hash256) -> Vec<(Waiting, String)> {
        let mut refused = Vec::new();
        let Some(state) = self.parents.get_mut(&parent) else { return refused };
        while let Some(next) = state.waiting.pop_front() {
            let block = match &next.template {
                None => Err("the template of its job is no longer kept".to_owned()),
                Some(template) => self.assembler.block_in_pieces(template, &next.job, &next.candidate).map_err(|error| one_line(&error)),
            };
            match block {
                Ok(block) => {
                    let (nodes, events, hash) = (Arc::clone(&self.nodes), self.events.clone(), next.candidate.hash);
                    let handed_us = self.clock.now_us().saturating_sub(next.candidate.arrival_us);
                    self.stats.handed_us_last.store(handed_us, Ordering::Relaxed);
                    self.stats.handed_us_most.fetch_max(handed_us, Ordering::Relaxed);
                    state.on_its_way = Some(next);
                    // Not one of `tasks`: a block on its way outlives the driver's interest in anything else.
                    let mut settling = submit::settle(nodes, Arc::new(block), hash);
                    tokio::spawn(async move {
                        let Some(events) = events else { return };
                        let outcome = settling.outcome().await;
                        let accepted = matches!(outcome, Outcome::Accepted { .. });
                        let _ = events.send(Event::Settled { parent, outcome });
                        if !accepted && let Some(node) = settling.accepted_late().await {
                            let _ = events.send(Event::AcceptedLate { parent, hash, node });
                        }
                    });
                    break;
                }
                Err(reason) => refused.push((next, reason)),
            }
        }
        refused
    }

    fn on_settled(&mut self, parent: Hash256, outcome: Outcome) {
        let Some(state) = self.parents.get_mut(&parent) else { return };
        let Some(settled) = state.on_its_way.take() else { return };
        match outcome {
            Outcome::Accepted { node } => self.accepted(parent, &settled, node),
            Outcome::Lost { reason } => {
                let by = "another block stands on this parent".to_owned();
                state.taken = Some(by.clone());
                let waiting = std::mem::take(&mut state.waiting);
                self.tell_waiting(&settled, BlockStatus::Rejected, reason);
                self.remember_refused(parent, settled);
                for other in waiting {
                    self.tell_waiting(&other, BlockStatus::Superseded, by.clone());
                }
            }
            Outcome::Refused { reason } => {
                let unassembled = self.submit_next(parent);
                self.tell_waiting(&settled, BlockStatus::Rejected, reason);
                self.remember_refused(parent, settled);
                self.tell_refused(unassembled);
            }
        }
    }

    fn accepted(&mut self, parent: Hash256, block: &Waiting, node: usize) {
        // First of all new work on the new block, from the node that has it.
        self.fetch(node, Why::Tip);
        let by = format!("block {} of this pool was first", block.candidate.hash);
        let mut waiting = VecDeque::new();
        if let Some(state) = self.parents.get_mut(&parent) {
            state.taken = Some(by.clone());
            waiting = std::mem::take(&mut state.waiting);
        }
        let url = self.nodes.url(node).to_owned();
        self.tell_waiting(block, BlockStatus::Accepted, url);
        for other in waiting {
            self.tell_waiting(&other, BlockStatus::Superseded, by.clone());
        }
    }

    fn remember_refused(&mut self, parent: Hash256, block: Waiting) {
        if let Some(state) = self.parents.get_mut(&parent)
            && state.refused.len() < WAITING_MAX
        {
            state.refused.push(Waiting { template: None, ..block });
        }
    }

    /// A node that was not waited for has the block after all: what was told is corrected.
    fn on_accepted_late(&mut self, parent: Hash256, hash: Hash256, node: usize) {
        let Some(state) = self.parents.get_mut(&parent) else { return };
        let Some(at) = state.refused.iter().position(|block| block.candidate.hash == hash) else { return };
        let block = state.refused.swap_remove(at);
        self.stats.blocks_rejected.fetch_sub(1, Ordering::Relaxed);
        self.accepted(parent, &block, node);
    }

    fn blocks_on_their_way(&self) -> bool {
        self.parents.values().any(|parent| parent.on_its_way.is_some())
    }

    /// Parents with a block on its way are kept whatever their age.
    fn forget_old_parents(&mut self) {
        while self.parents_order.len() > PARENTS_KEPT {
            let Some(at) =
                self.parents_order.iter().position(|parent| self.parents.get(parent).is_none_or(|state| state.on_its_way.is_none()))
            else {
                return;
            };
            if let Some(parent) = self.parents_order.remove(at) {
                self.parents.remove(&parent);
            }
        }
    }

    fn tell_refused(&mut self, refused: Vec<(Waiting, String)>) {
        for (waiting, reason) in refused {
            self.tell_waiting(&waiting, BlockStatus::Rejected, reason);
        }
    }

    fn tell_waiting(&mut self, waiting: &Waiting, status: BlockStatus, reason: String) {
        self.tell(&waiting.candidate, waiting.job.height, waiting.value_sat, status, reason);
    }

    fn tell(&mut self, candidate: &BlockCandidate, height: u32, value_sat: u64, status: BlockStatus, reason: String) {
        self.counter_of(status).fetch_add(1, Ordering::Relaxed);
        self.sink.block(&BlockEvent {
            job: candidate.job,
            height,
            hash: candidate.hash,
            worker: candidate.worker,
            session: candidate.job.run().session(candidate.session),
            found_us: candidate.arrival_us,
            value_sat,
            status,
            reason,
        });
    }

    fn counter_of(&self, status: BlockStatus) -> &AtomicU64 {
        match status {
            BlockStatus::Found => &self.stats.blocks_found,
            BlockStatus::Accepted => &self.stats.blocks_accepted,
            BlockStatus::Superseded => &self.stats.blocks_superseded,
            BlockStatus::Rejected => &self.stats.blocks_rejected,
        }
    }
}

/// A template, from a node that is on the configured chain as far as it tells.
async fn checked_template<N: NodeRpc>(nodes: &N, node: usize, network: Network, checked: &AtomicBool) -> Result<Template, NodeError> {
    if !checked.load(Ordering::Relaxed) {
        if let Some(chain) = nodes.chain_name(node).await?
            && Network::from_label(&chain) != Some(network)
        {
            return Err(NodeError::OtherChain { url: nodes.url(node).to_owned(), chain, network });
        }
        checked.store(true, Ordering::Relaxed);
    }
    nodes.block_template(node, None).await
}
