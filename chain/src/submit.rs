//! One block on its way to every node, until the tip tells what became of it.
use crate::blocks::BlockHex;
use crate::node::{NodeError, NodeRpc, SubmitReply, one_line};
use otedama_primitives::Hash256;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// A block is not given up before this: a node may be restarting.
const GIVE_UP: Duration = Duration::from_secs(600);
/// How often, and how long apart, a node that took a block is asked again whether it is in its active chain: other blocks may be connecting.
const CONFIRM_TRIES: u32 = 5;
const CONFIRM_PAUSE: Duration = Duration::from_millis(100);

/// Once one node has refused, the others have this long to say otherwise: the next candidate waits.
const OTHERS_WAIT: Duration = Duration::from_secs(5);

/// What became of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It stands in the active chain of this node.
    Accepted { node: usize },
    /// No node takes it.
    Refused { reason: String },
    /// It is a good block, but another one has its place.
    Lost { reason: String },
}

#[derive(Debug, Clone)]
enum Answer {
    /// In the active chain.
    Accepted,
    /// Refused for good.
    Refused(String),
    /// Known to the node, beside its active chain.
    Lost(String),
    /// The call failed; it goes on trying.
    Failed,
}

/// A block that has been sent to every node.
pub(crate) struct Settling<N> {
    nodes: Arc<N>,
    settled: Arc<AtomicBool>,
    answers: mpsc::UnboundedReceiver<(usize, Answer)>,
}

/// Sends the block to every node at once; the tasks that do so are ready to run when this returns.
pub(crate) fn settle<N: NodeRpc>(nodes: Arc<N>, block: Arc<BlockHex>, hash: Hash256) -> Settling<N> {
    let settled = Arc::new(AtomicBool::new(false));
    // Bounded by the nodes: each reports what it said about this block, and then what its tip says.
    let (report, answers) = mpsc::unbounded_channel();
    for node in 0..nodes.nodes() {
        let one = ToOneNode { nodes: Arc::clone(&nodes), node, hash, settled: Arc::clone(&settled), report: report.clone() };
        tokio::spawn(one.run(Arc::clone(&block)));
    }
    Settling { nodes, settled, answers }
}

impl<N: NodeRpc> Settling<N> {
    /// Ends with the first node that has the block in its chain, or when those that can be reached have refused it. The other nodes go on in the background.
    pub(crate) async fn outcome(&mut self) -> Outcome {
        let mut latest: Vec<Option<Answer>> = vec![None; self.nodes.nodes()];
        let mut deadline = None;
        loop {
            let next = match deadline {
                None => self.answers.recv().await,
                Some(deadline) => tokio::time::timeout_at(deadline, self.answers.recv()).await.unwrap_or(None),
            };
            let Some((node, answer)) = next else { break };
            if matches!(answer, Answer::Accepted) {
                // Relaxed: a hint to stop trying again; nothing is published with it.
                self.settled.store(true, Ordering::Relaxed);
                return Outcome::Accepted { node };
            }
            latest[node] = Some(answer);
            if latest.iter().any(|answer| matches!(answer, Some(Answer::Refused(_) | Answer::Lost(_)))) {
                if latest.iter().all(Option::is_some) {
                    break;
                }
                deadline.get_or_insert_with(|| Instant::now() + OTHERS_WAIT);
            }
        }
        self.settled.store(true, Ordering::Relaxed);
        verdict(&*self.nodes, &latest)
    }

    /// After an outcome that was no acceptance: the first node that has the block in its chain after all, having taken longer than the others were waited for.
    pub(crate) async fn accepted_late(mut self) -> Option<usize> {
        while let Some((node, answer)) = self.answers.recv().await {
            if matches!(answer, Answer::Accepted) {
                return Some(node);
            }
        }
        None
    }
}

fn verdict<N: NodeRpc>(nodes: &N, latest: &[Option<Answer>]) -> Outcome {
    let mut reasons = Vec::new();
    let mut lost = false;
    for (node, answer) in latest.iter().enumerate() {
        match answer {
            Some(Answer::Lost(reason)) => {
                lost = true;
                reasons.push(format!("{}: {reason}", nodes.url(node)));
            }
            Some(Answer::Refused(reason)) => reasons.push(format!("{}: {reason}", nodes.url(node))),
            _ => {}
        }
    }
    let reason = if reasons.is_empty() { "no node could be reached".to_owned() } else { reasons.join("; ") };
    if lost { Outcome::Lost { reason } } else { Outcome::Refused { reason } }
}

struct ToOneNode<N> {
    nodes: Arc<N>,
    node: usize,
    hash: Hash256,
    settled: Arc<AtomicBool>,
    report: mpsc::UnboundedSender<(usize, Answer)>,
}

impl<N: NodeRpc> ToOneNode<N> {
    /// The first try is made whatever the others say; later ones only while nobody has the block.
    async fn run(self, block: Arc<BlockHex>) {
        let deadline = Instant::now() + GIVE_UP;
        let mut pause = Duration::from_millis(50);
        let mut known = None;
        loop {
            let step = match &known {
                None => self.nodes.submit_block(self.node, &block).await.map(Some),
                Some(_) => Ok(None),
            };
            let answer = match step {
                Ok(Some(reply)) => match taken(&reply) {
                    Ok(word) => {
                        known = Some(word);
                        self.confirm(word).await
                    }
                    Err(reason) => Ok(Answer::Refused(reason)),
                },
                Ok(None) => self.confirm(known.unwrap_or_default()).await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(answer) => {
                    let _ = self.report.send((self.node, answer));
                    return;
                }
                Err(error) => {
                    // A failure is only told so that the others' refusals need not wait for this node.
                    let _ = self.report.send((self.node, Answer::Failed));
                    if self.settled.load(Ordering::Relaxed) {
                        return;
                    }
                    if Instant::now() >= deadline {
                        let _ = self.report.send((self.node, Answer::Refused(format!("given up after 600 s: {}", one_line(&error)))));
                        return;
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    /// null is not proof: the block must be the tip, or be found in the active chain.
    async fn confirm(&self, word: &str) -> Result<Answer, NodeError> {
        for attempt in 0..CONFIRM_TRIES {
            if attempt > 0 {
                tokio::time::sleep(CONFIRM_PAUSE).await;
            }
            if self.nodes.best_block(self.node).await? == self.hash {
                return Ok(Answer::Accepted);
            }
            if self.nodes.confirmations(self.node, &self.hash).await?.is_some_and(|count| count >= 1) {
                return Ok(Answer::Accepted);
            }
        }
        Ok(Answer::Lost(format!("answered {word}, but the block is not in its active chain")))
    }
}

/// The words of nodes that have the block, or had it already; anything else is a refusal. bcoin writes "rejected: " in front.
fn taken(reply: &SubmitReply) -> Result<&'static str, String> {
    match reply {
        SubmitReply::Null => Ok("null"),
        SubmitReply::Reason(reason) => match reason.strip_prefix("rejected: ").unwrap_or(reason) {
            "duplicate" => Ok("duplicate"),
            "inconclusive" => Ok("inconclusive"),
            "duplicate-inconclusive" => Ok("duplicate-inconclusive"),
            _ => Err(reason.chars().take(200).collect()),
        },
    }
}
