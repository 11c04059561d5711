//! The chain task against nodes that fail in every way a test can think of, on paused time.
use otedama_chain::{
    AssemblerSettings, BlockEvent, BlockHex, BlockStatus, ChainSettings, ChainSink, ChainSnapshot, ChainStats, Command, Network, NodeError,
    NodeRpc, Practice, PracticeSettings, SubmitReply, Template, blocks, merkle, practice_payout_script,
};
use otedama_primitives::{BlockCandidate, Clock, Hash256, Job, ManualClock, RunId, Target, WorkerId};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::mpsc::{Sender, channel};
use tokio::time::{Instant, sleep};

const URLS: [&str; 3] = ["http://a:8332", "http://b:8332", "http://c:8332"];
const TIMEOUT_MS: u64 = 10_000;

/// How a fake node treats a call.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Mood {
    Well,
    Hang,
    Refuse500,
}

/// How a fake node treats a block that is submitted.
#[derive(Clone, PartialEq, Debug)]
enum OnSubmit {
    /// Takes it as its tip.
    Take,
    /// Takes it, and another block on top of it.
    TakeAndMoveOn,
    /// Takes it, but the answer is lost.
    TakeAndCut,
    /// Takes it after eight seconds.
    TakeSlowly,
    /// Says null and does nothing.
    SayNull,
    Say(&'static str),
    Fail,
    Hang,
}

#[derive(Clone)]
struct FakeNode {
    mood: Mood,
    template: Template,
    chain: Option<&'static str>,
    /// Hash to confirmations, besides the tip.
    known: HashMap<Hash256, i64>,
    on_submit: VecDeque<OnSubmit>,
    submitted: Vec<Hash256>,
    long_polls: u32,
}

#[derive(Clone)]
struct Fake(Arc<Mutex<Vec<FakeNode>>>);

fn hash(text: &str) -> Hash256 {
    merkle::sha256d(text.as_bytes())
}

fn template(height: u32, parent: Hash256) -> Template {
    Template {
        version: 0x2000_0000,
        prev_hash: parent,
        height,
        nbits: 0x207f_ffff,
        target: Target::from_compact(0x207f_ffff).expect("target"),
        mintime: 1_795_217_270,
        curtime: 1_795_218_379,
        coinbase_value_sat: 312_500_000,
        txids: Vec::new(),
        body_hex: "".into(),
        witness_commitment: None,
        longpollid: Some(parent.to_string()),
        received_us: 0,
    }
}

impl Fake {
    fn of(count: usize) -> Self {
        let node = FakeNode {
            mood: Mood::Well,
            template: template(101, hash("100")),
            chain: Some("regtest"),
            known: HashMap::new(),
            on_submit: VecDeque::new(),
            submitted: Vec::new(),
            long_polls: 0,
        };
        Self(Arc::new(Mutex::new(vec![node; count])))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<FakeNode>> {
        self.0.lock().expect("no test panics with the lock")
    }

    fn set(&self, node: usize, change: impl FnOnce(&mut FakeNode)) {
        change(&mut self.lock()[node]);
    }

    async fn mood(&self, node: usize, method: &'static str) -> Result<(), NodeError> {
        let mood = self.lock()[node].mood;
        match mood {
            Mood::Well => Ok(()),
            Mood::Hang => Err(timed_out(node, method).await),
            Mood::Refuse500 => Err(NodeError::Status { method, url: URLS[node].into(), status: 500, advice: "" }),
        }
    }
}

async fn timed_out(node: usize, method: &'static str) -> NodeError {
    sleep(Duration::from_millis(TIMEOUT_MS)).await;
    NodeError::Timeout { method, url: URLS[node].into(), timeout_ms: TIMEOUT_MS }
}

impl NodeRpc for Fake {
    fn nodes(&self) -> usize {
        self.lock().len()
    }

    fn url(&self, node: usize) -> &str {
        URLS[node]
    }

    async fn block_template(&self, node: usize, longpollid: Option<&str>) -> Result<Template, NodeError> {
        self.mood(node, "getblocktemplate").await?;
        if longpollid.is_some() {
            self.lock()[node].long_polls += 1;
        }
        let asked = Instant::now();
        loop {
            let template = self.lock()[node].template.clone();
            if longpollid.is_none() || longpollid != template.longpollid.as_deref() {
                return Ok(template);
            }
            if asked.elapsed() > Duration::from_secs(90) {
                return Err(NodeError::Timeout { method: "getblocktemplate", url: URLS[node].into(), timeout_ms: 90_000 });
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    async fn submit_block(&self, node: usize, block: &BlockHex) -> Result<SubmitReply, NodeError> {
        let mut header = [0u8; 80];
        otedama_primitives::decode_hex(&block.head.as_bytes()[..160], &mut header).expect("hex");
        let block = merkle::sha256d(&header);
        self.lock()[node].submitted.push(block);
        self.mood(node, "submitblock").await?;
        let failed = || NodeError::Transport { method: "submitblock", url: URLS[node].into(), detail: "cut".into() };
        let plan = self.lock()[node].on_submit.pop_front().unwrap_or(OnSubmit::Take);
        if plan == OnSubmit::Hang {
            return Err(timed_out(node, "submitblock").await);
        }
        if plan == OnSubmit::TakeSlowly {
            sleep(Duration::from_secs(8)).await;
        }
        let mut nodes = self.lock();
        let fake = &mut nodes[node];
        match plan {
            OnSubmit::Say(reason) => return Ok(SubmitReply::Reason(reason.into())),
            OnSubmit::Fail => return Err(failed()),
            OnSubmit::SayNull => return Ok(SubmitReply::Null),
            _ if fake.template.prev_hash == block || fake.known.contains_key(&block) => return Ok(SubmitReply::Reason("duplicate".into())),
            _ if header[4..36] != fake.template.prev_hash.0 => return Ok(SubmitReply::Reason("inconclusive".into())),
            _ => {}
        }
        fake.template = template(fake.template.height + 1, block);
        if plan == OnSubmit::TakeAndMoveOn {
            fake.known.insert(block, 2);
            fake.template = template(fake.template.height + 1, hash("theirs"));
        }
        if plan == OnSubmit::TakeAndCut { Err(failed()) } else { Ok(SubmitReply::Null) }
    }

    async fn best_block(&self, node: usize) -> Result<Hash256, NodeError> {
        self.mood(node, "getbestblockhash").await?;
        Ok(self.lock()[node].template.prev_hash)
    }

    async fn confirmations(&self, node: usize, block: &Hash256) -> Result<Option<i64>, NodeError> {
        self.mood(node, "getblockheader").await?;
        Ok(self.lock()[node].known.get(block).copied())
    }

    async fn chain_name(&self, node: usize) -> Result<Option<String>, NodeError> {
        self.mood(node, "getblockchaininfo").await?;
        Ok(self.lock()[node].chain.map(str::to_owned))
    }
}

#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Recorded>>);

/// Jobs and block events in the order of their arrival.
type Recorded = (Vec<Arc<Job>>, Vec<BlockEvent>);

impl ChainSink for Recorder {
    fn job(&mut self, job: &Arc<Job>) {
        self.0.lock().expect("lock").0.push(Arc::clone(job));
    }

    fn block(&mut self, event: &BlockEvent) {
        self.0.lock().expect("lock").1.push(event.clone());
    }
}

struct Pool {
    recorder: Recorder,
    clock: ManualClock,
    stats: Arc<ChainStats>,
    candidates: Sender<BlockCandidate>,
    commands: Sender<Command>,
    task: tokio::task::JoinHandle<()>,
}

impl Pool {
    fn start<N: NodeRpc>(nodes: N) -> Self {
        Self::start_with(nodes, 500)
    }

    fn start_with<N: NodeRpc>(nodes: N, poll_ms: u64) -> Self {
        let settings = ChainSettings {
            run: RunId::new(3, 0xabc),
            network: Network::Regtest,
            assembler: AssemblerSettings { payout_script: practice_payout_script(), tag: "/test/".into(), extranonce2_bytes: 8 },
            poll_ms,
            refresh_s: 30,
        };
        let (recorder, clock, stats) = (Recorder::default(), ManualClock::at(1_000_000), Arc::new(ChainStats::default()));
        let (candidates, candidates_rx) = channel(1 << 16);
        let (commands, commands_rx) = channel(16);
        let running = otedama_chain::run(settings, nodes, recorder.clone(), clock.clone(), Arc::clone(&stats), candidates_rx, commands_rx);
        let task = tokio::spawn(async move { running.await.expect("good settings") });
        Self { recorder, clock, stats, candidates, commands, task }
    }

    fn jobs(&self) -> Vec<Arc<Job>> {
        self.recorder.0.lock().expect("lock").0.clone()
    }

    fn newest(&self) -> Arc<Job> {
        self.jobs().last().expect("a job").clone()
    }

    fn blocks(&self) -> Vec<(BlockStatus, Hash256)> {
        self.recorder.0.lock().expect("lock").1.iter().map(|event| (event.status, event.hash)).collect()
    }

    fn reason_of(&self, hash: Hash256) -> String {
        let events = &self.recorder.0.lock().expect("lock").1;
        events.iter().rfind(|event| event.hash == hash).expect("an event").reason.clone()
    }

    fn stats(&self) -> ChainSnapshot {
        self.stats.snapshot(self.clock.now_us())
    }

    fn submit(&self, job: &Job, extranonce2: u64) -> BlockCandidate {
        let candidate = solve(job, extranonce2);
        self.candidates.try_send(candidate).expect("running");
        candidate
    }

    async fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(!self.task.is_finished(), "the chain task ended while waiting until {what}");
            assert!(
                start.elapsed() < Duration::from_secs(1_000),
                "waited in vain until {what}: {:?}, {} jobs, {:?}",
                self.stats(),
                self.jobs().len(),
                self.blocks()
            );
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn until_jobs(&self, count: usize) {
        self.until(&format!("there are {count} jobs"), |pool| pool.jobs().len() >= count).await;
    }

    async fn until_settled(&self, count: u64) {
        self.until(&format!("{count} blocks are settled"), |pool| {
            let stats = pool.stats();
            stats.blocks_accepted + stats.blocks_superseded + stats.blocks_rejected >= count
        })
        .await;
    }
}

fn solve(job: &Job, extranonce2: u64) -> BlockCandidate {
    let mut candidate = BlockCandidate {
        job: job.id,
        session: 4,
        extranonce1: 1,
        extranonce2,
        ntime: job.ntime,
        nonce: 0,
        version: job.version,
        worker: WorkerId(5),
        hash: Hash256::default(),
        arrival_us: 6,
    };
    loop {
        candidate.hash = merkle::sha256d(&blocks::header_of(job, &candidate).expect("header"));
        if job.network_target.is_met_by(&candidate.hash) {
            return candidate;
        }
        candidate.nonce += 1;
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_job_is_clean_refreshes_are_not_and_a_new_parent_is_again() {
    let fake = Fake::of(1);
    let pool = Pool::start(fake.clone());
    pool.until_jobs(1).await;
    pool.clock.advance(7);
    let refreshed = Instant::now();
    pool.until_jobs(3).await;
    assert!((59..=61).contains(&refreshed.elapsed().as_secs()), "{:?}", refreshed.elapsed());
    fake.set(0, |node| node.template = template(102, hash("101")));
    pool.until_jobs(4).await;
    let jobs = pool.jobs();
    assert_eq!(jobs.iter().map(|job| job.clean).collect::<Vec<_>>(), [true, false, false, true]);
    assert_eq!(jobs.iter().map(|job| job.id.counter()).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!(jobs.iter().map(|job| job.height).collect::<Vec<_>>(), [101, 101, 101, 102]);
    assert_eq!((jobs[0].created_us, jobs[1].created_us), (1_000_000, 1_000_007));
    assert_eq!(jobs[0].ntime, 1_795_218_379, "template time, whatever the clock says");
    assert_ne!(jobs[0].coinbase_prefix, jobs[1].coinbase_prefix, "the same template twice makes other coinbases");
    assert!(pool.stats().fresh);
    pool.clock.advance(121_000_000);
    assert!(!pool.stats().fresh);
}

#[tokio::test(start_paused = true)]
async fn a_long_poll_brings_the_new_block_when_polling_is_slow() {
    let fake = Fake::of(1);
    let pool = Pool::start_with(fake.clone(), 1_000_000);
    pool.until_jobs(1).await;
    pool.until("the long poll is out", |_| fake.lock()[0].long_polls == 1).await;
    let at = Instant::now();
    fake.set(0, |node| node.template = template(102, hash("101")));
    pool.until_jobs(2).await;
    assert!(at.elapsed() < Duration::from_millis(100), "{:?}", at.elapsed());
    pool.until("the next long poll is out", |_| fake.lock()[0].long_polls == 2).await;
}

#[tokio::test(start_paused = true)]
async fn polling_brings_the_new_block_when_the_node_has_no_long_poll() {
    let fake = Fake::of(1);
    fake.set(0, |node| node.template.longpollid = None);
    let pool = Pool::start(fake.clone());
    pool.until_jobs(1).await;
    let at = Instant::now();
    fake.set(0, |node| node.template = Template { longpollid: None, ..template(102, hash("101")) });
    pool.until_jobs(2).await;
    assert!(at.elapsed() < Duration::from_millis(600), "{:?}", at.elapsed());
    assert_eq!(fake.lock()[0].long_polls, 0);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_down_at_the_start_is_waited_for_however_long() {
    let fake = Fake::of(2);
    for node in 0..2 {
        fake.set(node, |node| node.mood = Mood::Refuse500);
    }
    let pool = Pool::start(fake.clone());
    sleep(Duration::from_secs(86_400)).await;
    assert!(!pool.task.is_finished() && pool.jobs().is_empty());
    let stats = pool.stats();
    assert!(!stats.fresh && stats.last_error.contains("HTTP status 500"), "{stats:?}");
    // Back-off holds: at least 2.5 s between knocks at each door, a handful of calls at each knock.
    assert!((10_000..400_000).contains(&stats.calls_failed), "{}", stats.calls_failed);
    let up = Instant::now();
    fake.set(1, |node| node.mood = Mood::Well);
    pool.until_jobs(1).await;
    assert!(up.elapsed() <= Duration::from_secs(6), "{:?}", up.elapsed());
    assert_eq!(pool.stats().node, URLS[1]);
}

#[tokio::test(start_paused = true)]
async fn a_hanging_first_node_does_not_hold_up_the_first_job() {
    let fake = Fake::of(2);
    fake.set(0, |node| node.mood = Mood::Hang);
    let at = Instant::now();
    let pool = Pool::start(fake);
    pool.until_jobs(1).await;
    assert!(at.elapsed() < Duration::from_millis(100), "{:?}", at.elapsed());
    assert_eq!(pool.stats().node, URLS[1]);
}

#[tokio::test(start_paused = true)]
async fn the_pool_moves_to_another_node_when_the_one_in_use_fails_and_misses_no_block() {
    for mood in [Mood::Refuse500, Mood::Hang] {
        let fake = Fake::of(3);
        let pool = Pool::start(fake.clone());
        pool.until_jobs(1).await;
        assert_eq!(pool.stats().node, URLS[0]);
        fake.set(0, |node| node.mood = mood);
        fake.set(1, |node| node.mood = mood);
        sleep(Duration::from_secs(60)).await;
        assert_eq!(pool.stats().node, URLS[2], "{mood:?}");
        let at = Instant::now();
        fake.set(2, |node| node.template = template(102, hash("101")));
        pool.until("the new parent is mined on", |pool| pool.newest().height == 102).await;
        assert!(at.elapsed() < Duration::from_secs(1), "{mood:?}: {:?}", at.elapsed());
        // Recovered nodes are used again when the one in use fails.
        fake.set(0, |node| (node.mood, node.template) = (Mood::Well, template(102, hash("101"))));
        fake.set(2, |node| node.mood = mood);
        sleep(Duration::from_secs(60)).await;
        assert_eq!(pool.stats().node, URLS[0], "{mood:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_falls_behind_is_left_and_does_not_take_the_pool_back() {
    let fake = Fake::of(2);
    let pool = Pool::start(fake.clone());
    pool.until_jobs(1).await;
    let at = Instant::now();
    fake.set(1, |node| node.template = template(102, hash("101")));
    pool.until("the new parent is mined on", |pool| pool.newest().height == 102).await;
    assert!(at.elapsed() < Duration::from_secs(1), "{:?}", at.elapsed());
    sleep(Duration::from_secs(200)).await;
    assert!(pool.jobs()[1..].iter().all(|job| job.height == 102), "never back to the stale tip");
    assert_eq!(pool.jobs().iter().filter(|job| job.clean).count(), 2);
    assert_eq!(pool.stats().node, URLS[1]);
}

#[tokio::test(start_paused = true)]
async fn a_reorganisation_of_the_node_in_use_is_followed_and_a_rival_tip_of_another_is_not() {
    let fake = Fake::of(2);
    let pool = Pool::start(fake.clone());
    pool.until_jobs(1).await;
    fake.set(1, |node| node.template = template(101, hash("rival")));
    sleep(Duration::from_secs(5)).await;
    assert_eq!(pool.newest().prev_hash, hash("100"));
    fake.set(0, |node| node.template = template(101, hash("reorganised")));
    sleep(Duration::from_secs(5)).await;
    assert_eq!(pool.newest().prev_hash, hash("reorganised"));
    assert!(pool.newest().clean || pool.jobs().iter().any(|job| job.clean && job.prev_hash == hash("reorganised")));
}

#[tokio::test(start_paused = true)]
async fn a_node_of_another_chain_is_refused_by_name_and_one_that_does_not_tell_is_taken() {
    let fake = Fake::of(1);
    fake.set(0, |node| node.chain = Some("main"));
    let pool = Pool::start(fake.clone());
    sleep(Duration::from_secs(60)).await;
    assert!(pool.jobs().is_empty());
    let error = pool.stats().last_error;
    assert!(error.contains("on the chain \"main\"") && error.contains("network = \"regtest\""), "{error}");
    fake.set(0, |node| node.chain = None);
    pool.until_jobs(1).await;
}

#[tokio::test(start_paused = true)]
async fn a_new_job_on_demand_has_the_same_template_and_another_number() {
    let pool = Pool::start(Fake::of(1));
    pool.until_jobs(1).await;
    pool.commands.try_send(Command::NewJobWanted).expect("running");
    pool.commands.try_send(Command::NewJobWanted).expect("running");
    pool.until_jobs(2).await;
    sleep(Duration::from_secs(1)).await;
    let jobs = pool.jobs();
    assert_eq!(jobs.len(), 2, "two wishes at once are one job");
    assert!(!jobs[1].clean && jobs[1].prev_hash == jobs[0].prev_hash && jobs[1].id != jobs[0].id);
}

#[tokio::test(start_paused = true)]
async fn a_block_goes_to_every_node_at_once_and_new_work_follows_at_once() {
    let fake = Fake::of(3);
    fake.set(1, |node| node.on_submit = [OnSubmit::Hang].into());
    let pool = Pool::start(fake.clone());
    pool.until_jobs(1).await;
    let at = Instant::now();
    let block = pool.submit(&pool.newest(), 1);
    pool.until_settled(1).await;
    pool.until_jobs(2).await;
    assert!(at.elapsed() < Duration::from_millis(100), "{:?}", at.elapsed());
    assert!(fake.lock().iter().all(|node| node.submitted == [block.hash]));
    assert_eq!(pool.blocks(), [(BlockStatus::Found, block.hash), (BlockStatus::Accepted, block.hash)]);
    let next = pool.newest();
    assert!(next.clean && next.prev_hash == block.hash);
    let event = pool.recorder.0.lock().expect("lock").1[0].clone();
    assert_eq!((event.height, event.value_sat, event.found_us, event.session.counter()), (101, 312_500_000, 6, 4));
    assert_eq!(event.session, RunId::new(3, 0xabc).session(4));
}

#[tokio::test(start_paused = true)]
async fn candidates_on_one_parent_after_the_first_are_superseded() {
    let fake = Fake::of(1);
    let pool = Pool::start(fake.clone());
    pool.until_jobs(1).await;
    let job = pool.newest();
    let first = pool.submit(&job, 1);
    let second = pool.submit(&job, 2);
    pool.until_settled(2).await;
    let late = pool.submit(&job, 3);
    pool.until_settled(3).await;
    assert_eq!(fake.lock()[0].submitted, [first.hash]);
    let stats = pool.stats();
    assert_eq!((stats.blocks_found, stats.blocks_accepted, stats.blocks_superseded, stats.blocks_rejected), (3, 1, 2, 0));
    for other in [second, late] {
        assert!(pool.reason_of(other.hash).contains(&first.hash.to_string()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_candidate_is_submitted_only_when_the_first_is_refused() {
    let fake = Fake::of(2);
    for node in 0..2 {
        fake.set(node, |node| node.on_submit = [OnSubmit::Say("rejected: bad-cb-amount")].into());
    }
    let pool = Pool::start(fake.clone());
    pool.until_jobs(1).await;
    let job = pool.newest();
    let (first, second, third) = (pool.submit(&job, 1), pool.submit(&job, 2), pool.submit(&job, 3));
    pool.until_settled(3).await;
    assert_eq!(fake.lock()[0].submitted, [first.hash, second.hash]);
    let blocks = pool.blocks();
    assert!(blocks.contains(&(BlockStatus::Rejected, first.hash)), "{blocks:?}");
    assert!(blocks.contains(&(BlockStatus::Accepted, second.hash)), "{blocks:?}");
    assert!(blocks.contains(&(BlockStatus::Superseded, third.hash)), "{blocks:?}");
    assert!(pool.reason_of(first.hash).contains("http://a:8332: rejected: bad-cb-amount"), "{}", pool.reason_of(first.hash));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_by_one_node_does_not_wait_long_for_another_that_hangs() {
    let fake = Fake::of(2);
    fake.set(0, |node| node.on_submit = [OnSubmit::Say("high-hash")].into());
    fake.set(1, |node| node.on_submit = [OnSubmit::Hang].into());
    let pool = Pool::start(fake.clone());
    pool.until_jobs(1).await;
    let at = Instant::now();
    let (_, second) = (pool.submit(&pool.newest(), 1), pool.submit(&pool.newest(), 2));
    pool.until_settled(2).await;
    assert!(at.elapsed() < Duration::from_secs(6), "{:?}", at.elapsed());
    assert!(pool.blocks().contains(&(BlockStatus::Accepted, second.hash)));
}

#[tokio::test(start_paused = true)]
async fn a_block_that_a_slow_node_takes_after_all_is_corrected_to_accepted() {
    let fake = Fake::of(2);
    fake.set(0, |node| node.on_submit = [OnSubmit::Say("high-hash")].into());
    fake.set(1, |node| node.on_submit = [OnSubmit::TakeSlowly].into());
    let pool = Pool::start(fake.clone());
    pool.until_jobs(1).await;
    let block = pool.submit(&pool.newest(), 1);
    pool.until("it is accepted", |pool| pool.stats().blocks_accepted == 1).await;
    let steps = [BlockStatus::Found, BlockStatus::Rejected, BlockStatus::Accepted].map(|status| (status, block.hash));
    assert_eq!(pool.blocks(), steps);
    assert_eq!(pool.stats().blocks_rejected, 0);
    pool.until("it is mined on", |pool| pool.newest().prev_hash == block.hash).await;
}

#[tokio::test(start_paused = true)]
async fn null_is_no_proof_and_the_tip_is() {
    let fake = Fake::of(1);
    fake.set(0, |node| node.on_submit = [OnSubmit::SayNull].into());
    let pool = Pool::start(fake.clone());
    pool.until_jobs(1).await;
    let block = pool.submit(&pool.newest(), 1);
    pool.until_settled(1).await;
    assert_eq!(pool.blocks()[1], (BlockStatus::Rejected, block.hash));
    assert!(pool.reason_of(block.hash).contains("answered null, but the block is not in its active chain"));
}

#[tokio::test(start_paused = true)]
async fn a_block_that_is_already_buried_is_accepted_by_its_confirmations() {
    let fake = Fake::of(1);
    fake.set(0, |node| node.on_submit = [OnSubmit::TakeAndMoveOn].into());
    let pool = Pool::start(fake.clone());
    pool.until_jobs(1).await;
    let block = pool.submit(&pool.newest(), 1);
    pool.until_settled(1).await;
    assert_eq!(pool.blocks()[1], (BlockStatus::Accepted, block.hash));
    pool.until("the newest tip is mined on", |pool| pool.newest().prev_hash == hash("theirs")).await;
}

#[tokio::test(start_paused = true)]
async fn a_block_that_comes_second_is_rejected_and_those_beside_it_are_superseded() {
    let fake = Fake::of(1);
    fake.set(0, |node| node.template.longpollid = None);
    let pool = Pool::start_with(fake.clone(), 1_000_000);
    pool.until_jobs(1).await;
    let job = pool.newest();
    fake.set(0, |node| node.template = template(102, hash("101")));
    let (first, second) = (pool.submit(&job, 1), pool.submit(&job, 2));
    pool.until_settled(2).await;
    let blocks = pool.blocks();
    assert!(
        blocks.contains(&(BlockStatus::Rejected, first.hash)) && blocks.contains(&(BlockStatus::Superseded, second.hash)),
        "{blocks:?}"
    );
    assert_eq!(fake.lock()[0].submitted, [first.hash]);
}

#[tokio::test(start_paused = true)]
async fn a_submission_whose_answer_was_lost_is_sent_again_and_found_to_be_taken() {
    let fake = Fake::of(1);
    fake.set(0, |node| node.on_submit = [OnSubmit::Fail, OnSubmit::Hang, OnSubmit::TakeAndCut].into());
    let pool = Pool::start(fake.clone());
    pool.until_jobs(1).await;
    let block = pool.submit(&pool.newest(), 1);
    pool.until_settled(1).await;
    assert_eq!(pool.blocks()[1], (BlockStatus::Accepted, block.hash));
    assert_eq!(fake.lock()[0].submitted.len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_candidate_counts_once_and_one_of_an_unknown_job_is_told() {
    let fake = Fake::of(1);
    let pool = Pool::start(fake);
    pool.until_jobs(1).await;
    let job = pool.newest();
    let candidate = pool.submit(&job, 1);
    pool.candidates.try_send(candidate).expect("running");
    let unknown = BlockCandidate { job: RunId::new(9, 9).job(9), hash: hash("unknown"), ..candidate };
    pool.candidates.try_send(unknown).expect("running");
    let wrong = BlockCandidate { hash: hash("wrong"), ..solve(&job, 2) };
    pool.until_settled(2).await;
    assert_eq!(pool.stats().blocks_found, 2);
    assert!(pool.reason_of(unknown.hash).contains("no longer known"));
    // On the next parent: a candidate whose header is not what it claims never reaches a node.
    pool.until_jobs(2).await;
    let wrong = BlockCandidate { job: pool.newest().id, ..wrong };
    pool.candidates.try_send(wrong).expect("running");
    pool.until_settled(3).await;
    assert!(pool.reason_of(wrong.hash).contains("the assembled header hashes to"), "{}", pool.reason_of(wrong.hash));
    assert_eq!(pool.stats().blocks_rejected, 2);
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_a_block_on_its_way() {
    let fake = Fake::of(1);
    fake.set(0, |node| node.on_submit = [OnSubmit::Fail, OnSubmit::Fail].into());
    let pool = Pool::start(fake);
    pool.until_jobs(1).await;
    let block = pool.submit(&pool.newest(), 1);
    pool.commands.try_send(Command::Stop).expect("running");
    pool.task.await.expect("joined");
    let events = pool.recorder.0.lock().expect("lock").1.clone();
    assert_eq!(events.last().map(|event| (event.status, event.hash)), Some((BlockStatus::Accepted, block.hash)));
}

#[tokio::test(start_paused = true)]
async fn no_block_is_lost_whatever_one_of_two_nodes_does() {
    let plans = [
        OnSubmit::Take,
        OnSubmit::TakeAndCut,
        OnSubmit::SayNull,
        OnSubmit::Say("duplicate"),
        OnSubmit::Say("rejected: inconclusive"),
        OnSubmit::Say("high-hash"),
        OnSubmit::Fail,
        OnSubmit::Hang,
    ];
    let mut rounds = 0;
    for faulty in 0..2 {
        for first in &plans {
            for second in &plans {
                let fake = Fake::of(2);
                fake.set(faulty, |node| node.on_submit = [first.clone(), second.clone()].into());
                let pool = Pool::start(fake.clone());
                pool.until_jobs(1).await;
                let block = pool.submit(&pool.newest(), 1);
                pool.until_settled(1).await;
                assert_eq!(pool.blocks()[1], (BlockStatus::Accepted, block.hash), "{first:?} then {second:?} at node {faulty}");
                pool.task.abort();
                rounds += 1;
            }
        }
    }
    assert_eq!(rounds, 128);
}

#[tokio::test(start_paused = true)]
async fn on_the_practice_chain_found_is_accepted_and_superseded_and_every_job_is_unique() {
    let practice = Practice::new(PracticeSettings { seed: 3, transactions: 20, nbits: 0x207f_ffff, block_s: 600 }, ManualClock::at(1))
        .expect("practice");
    let pool = Pool::start(practice.clone());
    for round in 1..=50 {
        pool.until("new work has come", |pool| pool.jobs().iter().filter(|job| job.clean).count() == round).await;
        let job = pool.newest();
        pool.submit(&job, 1);
        pool.submit(&job, 2);
        pool.until_settled(2 * round as u64).await;
    }
    let stats = pool.stats();
    assert_eq!((stats.blocks_found, stats.blocks_accepted, stats.blocks_superseded, stats.blocks_rejected), (100, 50, 50, 0));
    assert_eq!(practice.accepted(), 50);
    let mut prefixes: Vec<_> = pool.jobs().iter().map(|job| job.coinbase_prefix.clone()).collect();
    let count = prefixes.len();
    prefixes.sort();
    prefixes.dedup();
    assert_eq!(prefixes.len(), count);
}
