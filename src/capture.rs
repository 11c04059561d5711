//! `serve --capture` and `serve --replay-of`: the wire written down, and a server that hands out the same jobs and extranonces again, so that the same bytes meet
//! the same rules.
//!
//! A share is valid for one coinbase alone, and the coinbase holds the job's number and the session's extranonce1. So a server that a capture is to be played
//! against boots with the run, the ids and the seeded practice chain of the captured one, and publishes its jobs when as many lines have come as had come then:
//! by the place in the traffic, not by the clock. Sessions get the extranonces they had as long as they connect in the captured order, which `loadgen replay`
//! sees to. What depends on time alone has no place in this: vardiff is off, and no limit per second holds.
use crate::config::Config;
use otedama_chain::{BlockHex, NodeError, NodeRpc, Practice, PracticeSettings, SubmitReply, Template};
use otedama_pipeline::driver::CaptureWriter;
use otedama_primitives::capture::{CaptureError, CaptureReader, Entry, HEADER_BYTES, JobEntry};
use otedama_primitives::{Clock, Hash256};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a replay needs to know of the server; the first thing that stands in the folder.
const MANIFEST: &str = "capture.json";
/// Version of the manifest.
const FORMAT: u32 = 1;
/// How often a replaying server looks whether its chain has a new tip.
const LOOK: Duration = Duration::from_millis(2);

/// What `serve --capture` was told.
#[derive(Debug, Clone)]
pub struct CaptureOrder {
    /// Folder of the capture; must not be there, or be empty.
    pub dir: PathBuf,
    /// Bytes that the whole capture may have.
    pub bytes_max: u64,
}

/// What one boot draws at random, and a replay takes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drawn {
    /// Boot epoch of the run.
    pub epoch: u32,
    /// What the wire ids of jobs count from.
    pub salt: u32,
}

/// The practice chain that the jobs came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct PracticeChain {
    seed: u64,
    transactions: u32,
    nbits: u32,
}

impl PracticeChain {
    fn of(settings: &PracticeSettings) -> Self {
        Self { seed: settings.seed, transactions: settings.transactions, nbits: settings.nbits }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    /// Version of the server.
    build: String,
    nets: usize,
    drawn: Drawn,
    /// What must be the same where it is replayed, by config key.
    needs: serde_json::Map<String, serde_json::Value>,
    practice: Option<PracticeChain>,
    /// Why it can only be read; empty for a capture that can be replayed.
    not_replayable: Vec<String>,
}

/// Why a capture cannot be begun, or cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum CaptureFailure {
    /// The folder holds something.
    #[error("--capture {}: the folder is not empty, and a capture is never written over another; name a new one", .0.display())]
    NotEmpty(PathBuf),
    /// Too small for anything.
    #[error("--capture-max-mib 0: a capture needs some room")]
    NoRoom,
    /// A file that cannot be made or read.
    #[error("cannot {operation} {}: {source}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A manifest that is none.
    #[error("{}: {what}; give the folder of a capture", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A wire file that is none.
    #[error("{} {source}", path.display())]
    Wire {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: CaptureError,
    },
    /// It was taken for reading only.
    #[error("this capture cannot be replayed: {}", .0.join("; "))]
    NotReplayable(Vec<String>),
    /// This server is not like the captured one.
    #[error("a replay wants the captured server's settings: {}", .0.join("; "))]
    Unlike(Vec<String>),
}

impl CaptureFailure {
    /// 2 for what another command line mends, 3 for what it does not.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::File { .. } => 3,
            _ => 2,
        }
    }
}

/// Everything that decides a verdict or a coinbase, by config key.
fn needs_of(config: &Config) -> serde_json::Map<String, serde_json::Value> {
    let (stratum, vardiff, chain) = (&config.stratum, &config.vardiff, &config.chain);
    let needs = serde_json::json!({
        "pool.instance": config.pool.instance,
        "stratum.difficulty": stratum.difficulty,
        "stratum.max_workers_per_connection": stratum.max_workers_per_connection,
        "stratum.version_mask": format!("{:08x}", stratum.version_mask),
        "stratum.extranonce2_bytes": stratum.extranonce2_bytes,
        "vardiff.min": vardiff.min,
        "vardiff.max": vardiff.max,
        "chain.payout_address": chain.payout_address,
        "chain.coinbase_tag": chain.coinbase_tag,
        "limits.line_bytes": config.limits.line_bytes,
    });
    match needs {
        serde_json::Value::Object(needs) => needs,
        _ => serde_json::Map::new(),
    }
}

/// Why what this server says cannot be had again.
fn obstacles(config: &Config, nets: usize) -> Vec<String> {
    let mut reasons = Vec::new();
    if !config.chain.is_practice() {
        reasons.push("its jobs came from a node and not from the seeded chain ([chain] rpc = [\"practice\"])".to_owned());
    }
    if config.vardiff.enabled {
        reasons.push("its difficulties followed the clock ([vardiff] enabled = false keeps them fixed)".to_owned());
    }
    if nets != 1 {
        reasons.push(format!("{nets} nets shared its connections by load ([layout] net with one core keeps their order)"));
    }
    reasons
}

/// A capture under way: its files.
#[derive(Debug)]
pub struct Capture {
    dir: PathBuf,
    files: VecDeque<(PathBuf, File)>,
    /// Bytes for each net.
    pub bytes_max: u64,
    /// Why it can only be read; empty for one that can be replayed.
    not_replayable: Vec<String>,
}

impl Capture {
    /// Makes the folder, the manifest and an empty wire file for every net.
    pub fn create(order: &CaptureOrder, config: &Config, drawn: Drawn, nets: usize) -> Result<Self, CaptureFailure> {
        let dir = &order.dir;
        if order.bytes_max == 0 {
            return Err(CaptureFailure::NoRoom);
        }
        let failed = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| CaptureFailure::File { operation, path, source }
        };
        std::fs::create_dir_all(dir).map_err(failed("make the folder", dir))?;
        if std::fs::read_dir(dir).map_err(failed("read the folder", dir))?.next().is_some() {
            return Err(CaptureFailure::NotEmpty(dir.clone()));
        }
        let not_replayable = obstacles(config, nets);
        let manifest = Manifest {
            format: FORMAT,
            build: env!("CARGO_PKG_VERSION").to_owned(),
            nets,
            drawn,
            needs: needs_of(config),
            practice: config.chain.is_practice().then(|| PracticeChain::of(&PracticeSettings::default())),
            not_replayable: not_replayable.clone(),
        };
        let path = dir.join(MANIFEST);
        // Only what does not exist is made: of two servers that were given one folder the second is told so.
        let make = |path: &Path| OpenOptions::new().write(true).create_new(true).open(path).map_err(failed("create", path));
        let text = serde_json::to_string_pretty(&manifest).unwrap_or_default() + "\n";
        make(&path)?.write_all(text.as_bytes()).map_err(failed("write", &path))?;
        let files = (0..nets)
            .map(|net| dir.join(format!("wire-{net}.bin")))
            .map(|path| make(&path).map(|file| (path, file)))
            .collect::<Result<_, _>>()?;
        let bytes_max = (order.bytes_max / nets.max(1) as u64).max(HEADER_BYTES as u64);
        Ok(Self { dir: dir.clone(), files, bytes_max, not_replayable })
    }

    /// What `serve` says of it when it starts.
    pub fn notice(&self) -> String {
        let mut text = format!("capture of the wire in {}", self.dir.display());
        if !self.not_replayable.is_empty() {
            text.push_str(&format!("; it can be read but not replayed: {}", self.not_replayable.join("; ")));
        }
        text
    }

    /// The work of the thread that writes the next net's file; true when the file is whole.
    pub fn writing(&mut self, writer: CaptureWriter) -> impl FnOnce() -> bool + Send + 'static + use<> {
        let file = self.files.pop_front();
        move || {
            let Some((path, mut file)) = file else { return false };
            let outcome = writer.run(&mut file);
            if let Err(error) = &outcome {
                eprintln!("warning: the capture ends here, the pool goes on: cannot write {}: {error}", path.display());
            }
            outcome.is_ok()
        }
    }
}

/// A capture that a server is to be like.
#[derive(Debug)]
pub struct Replay {
    manifest: Manifest,
    /// Its jobs, in their order.
    jobs: VecDeque<JobEntry>,
}

impl Replay {
    /// Reads the manifest and the jobs of a capture.
    pub fn read(dir: &Path) -> Result<Self, CaptureFailure> {
        let path = dir.join(MANIFEST);
        let text =
            std::fs::read_to_string(&path).map_err(|source| CaptureFailure::File { operation: "read", path: path.clone(), source })?;
        let wrong = |what: String| CaptureFailure::Manifest { path: path.clone(), what };
        let manifest: Manifest = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        if manifest.format != FORMAT {
            return Err(wrong(format!("it is of format {}, this server reads {FORMAT}", manifest.format)));
        }
        if !manifest.not_replayable.is_empty() {
            return Err(CaptureFailure::NotReplayable(manifest.not_replayable));
        }
        let path = dir.join("wire-0.bin");
        let file = File::open(&path).map_err(|source| CaptureFailure::File { operation: "read", path: path.clone(), source })?;
        let damaged = |source| CaptureFailure::Wire { path: path.clone(), source };
        let mut reader = CaptureReader::new(BufReader::with_capacity(1 << 20, file)).map_err(damaged)?;
        let mut jobs = VecDeque::new();
        loop {
            match reader.next_entry() {
                Ok(Some((Entry::Job(job), _))) => jobs.push_back(job),
                Ok(Some(_)) => {}
                Ok(None) => break,
                // What stands before the cut can be replayed.
                Err(error @ CaptureError::CutOff { .. }) => {
                    eprintln!("warning: {} {error}; its jobs up to there are replayed", path.display());
                    break;
                }
                Err(error) => return Err(damaged(error)),
            }
        }
        if !jobs.iter().zip(1..).all(|(job, counter)| job.counter == counter) {
            return Err(CaptureFailure::NotReplayable(vec!["jobs are missing in it".to_owned()]));
        }
        Ok(Self { manifest, jobs })
    }

    /// What the captured server drew.
    pub fn drawn(&self) -> Drawn {
        self.manifest.drawn
    }

    /// Refuses a config under which the same bytes would meet other rules, or which would mix the replay's shares with true ones.
    pub fn check(&self, config: &Config, nets: usize) -> Result<(), CaptureFailure> {
        let mut reasons: Vec<String> = obstacles(config, nets);
        for (key, value) in &self.manifest.needs {
            let ours = needs_of(config).remove(key);
            if ours.as_ref() != Some(value) {
                reasons.push(format!("{key} was {value} and is {}", ours.unwrap_or_default()));
            }
        }
        if self.manifest.practice != Some(PracticeChain::of(&PracticeSettings::default())) {
            reasons.push(format!("it was taken on another practice chain, by version {}", self.manifest.build));
        }
        if config.clickhouse.url.is_some() {
            reasons.push("[clickhouse] url must be empty: sessions and jobs get the numbers that they had".to_owned());
        }
        let used = std::fs::read_dir(&config.log.dir).is_ok_and(|mut entries| entries.next().is_some());
        if used {
            reasons.push(format!("[log] dir {} must be new or empty, for the same reason", config.log.dir.display()));
        }
        if reasons.is_empty() { Ok(()) } else { Err(CaptureFailure::Unlike(reasons)) }
    }

    /// Hands out the captured jobs one by one.
    pub fn into_turns(mut self) -> JobTurns {
        // The first is there from the start.
        let height = self.jobs.pop_front().map_or(0, |first| first.height);
        JobTurns { jobs: self.jobs, height, asked: 0 }
    }
}

/// What the chain has to do for the next captured job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobTurn {
    /// A job on the same parent.
    Again,
    /// So many new blocks.
    Blocks(u32),
}

/// When a replaying server publishes its next job.
#[derive(Debug)]
pub struct JobTurns {
    jobs: VecDeque<JobEntry>,
    height: u32,
    /// The job that was asked for last and may be on its way.
    asked: u32,
}

impl JobTurns {
    /// The next job, once as many lines have been taken as before it was captured, and the one before it, `newest`, has been published.
    pub fn next(&mut self, lines_taken: u64, newest: u32) -> Option<JobTurn> {
        if newest == 0 || newest < self.asked || self.jobs.front()?.lines > lines_taken {
            return None;
        }
        let job = self.jobs.pop_front()?;
        self.asked = job.counter;
        let blocks = job.height.saturating_sub(std::mem::replace(&mut self.height, job.height));
        Some(if blocks == 0 { JobTurn::Again } else { JobTurn::Blocks(blocks) })
    }
}

/// The practice chain without a clock: a long poll ends with a new tip and with nothing else.
#[derive(Debug)]
pub struct PatientPractice<C>(pub Practice<C>);

impl<C: Clock> NodeRpc for PatientPractice<C> {
    fn nodes(&self) -> usize {
        self.0.nodes()
    }

    fn url(&self, node: usize) -> &str {
        self.0.url(node)
    }

    async fn block_template(&self, node: usize, longpollid: Option<&str>) -> Result<Template, NodeError> {
        if let Some(known) = longpollid {
            while self.0.best_block(node).await?.to_string() == known {
                tokio::time::sleep(LOOK).await;
            }
        }
        self.0.block_template(node, None).await
    }

    async fn submit_block(&self, node: usize, block: &BlockHex) -> Result<SubmitReply, NodeError> {
        self.0.submit_block(node, block).await
    }

    async fn best_block(&self, node: usize) -> Result<Hash256, NodeError> {
        self.0.best_block(node).await
    }

    async fn confirmations(&self, node: usize, block: &Hash256) -> Result<Option<i64>, NodeError> {
        self.0.confirmations(node, block).await
    }

    async fn chain_name(&self, node: usize) -> Result<Option<String>, NodeError> {
        self.0.chain_name(node).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use otedama_pipeline::driver::Captured;
    use std::time::Instant;

    fn practice() -> Config {
        let mut config = Config::defaults();
        config.chain.rpc = vec!["practice".to_owned()];
        config.vardiff.enabled = false;
        config.log.dir = "no/such/folder".into();
        config
    }

    const DRAWN: Drawn = Drawn { epoch: 7, salt: 9 };

    fn create(dir: &Path, config: &Config, nets: usize) -> Result<Capture, CaptureFailure> {
        Capture::create(&CaptureOrder { dir: dir.to_owned(), bytes_max: 1 << 20 }, config, DRAWN, nets)
    }

    #[test]
    fn jobs_come_by_lines_and_one_after_the_other() {
        let job = |counter, height, lines| JobEntry { counter, wire_id: 0, height, lines };
        let jobs = [job(1, 100, 0), job(2, 100, 5), job(3, 103, 5), job(4, 103, 9)].into();
        let manifest = Manifest {
            format: FORMAT,
            build: String::new(),
            nets: 1,
            drawn: DRAWN,
            needs: serde_json::Map::new(),
            practice: None,
            not_replayable: vec![],
        };
        let mut turns = Replay { manifest, jobs }.into_turns();
        assert_eq!(turns.next(5, 0), None, "the first job is not out yet");
        assert_eq!(turns.next(4, 1), None);
        assert_eq!(turns.next(5, 1), Some(JobTurn::Again));
        assert_eq!(turns.next(5, 1), None, "the second is on its way");
        assert_eq!(turns.next(5, 2), Some(JobTurn::Blocks(3)));
        assert_eq!(turns.next(8, 3), None);
        assert_eq!(turns.next(u64::MAX, 3), Some(JobTurn::Again));
        assert_eq!(turns.next(u64::MAX, 4), None);
    }

    #[test]
    fn a_folder_with_anything_in_it_is_left_alone() {
        let folder = tempfile::tempdir().expect("folder");
        let dir = folder.path().join("capture");
        let mut capture = create(&dir, &practice(), 1).expect("new");
        assert!(capture.not_replayable.is_empty());
        let error = create(&dir, &practice(), 1).expect_err("taken").to_string();
        assert!(error.contains("not empty"), "{error}");
        // A net that did nothing still makes a capture that can be read.
        let (driver, writer, _) = Captured::new((), 0, Instant::now(), capture.bytes_max);
        drop(driver);
        assert!((capture.writing(writer))());
        let replay = Replay::read(&dir).expect("readable");
        assert_eq!(replay.drawn(), DRAWN);
        replay.check(&practice(), 1).expect("the same server");
    }

    #[test]
    fn a_server_under_other_rules_is_told_which() {
        let folder = tempfile::tempdir().expect("folder");
        let mut capture = create(folder.path(), &practice(), 1).expect("empty");
        let (driver, writer, _) = Captured::new((), 0, Instant::now(), capture.bytes_max);
        drop(driver);
        assert!((capture.writing(writer))());
        let replay = Replay::read(folder.path()).expect("readable");
        let mut other = practice();
        other.stratum.difficulty = 2.0;
        other.vardiff.enabled = true;
        other.chain.coinbase_tag = "/else/".to_owned();
        other.log.dir = folder.path().to_owned();
        let error = replay.check(&other, 2).expect_err("unlike").to_string();
        for part in ["stratum.difficulty was 1024.0 and is 2.0", "enabled = false", "chain.coinbase_tag", "2 nets", "must be new or empty"]
        {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn what_cannot_be_replayed_says_why_at_once() {
        let folder = tempfile::tempdir().expect("folder");
        let capture = create(folder.path(), &Config::defaults(), 3).expect("empty");
        assert_eq!(capture.not_replayable.len(), 3, "{:?}", capture.not_replayable);
        let error = Replay::read(folder.path()).expect_err("refused").to_string();
        assert!(error.contains("cannot be replayed") && error.contains("practice") && error.contains("3 nets"), "{error}");
        let error = Replay::read(&folder.path().join("nowhere")).expect_err("none").to_string();
        assert!(error.contains("capture.json"), "{error}");
    }
}
