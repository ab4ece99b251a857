//! Proposals on their way to the leader: one call carries all that wait, so that a node which does not lead sends
//! few large requests instead of one for each client.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::command::Proposal;
use crate::network::{CallError, ProposeReply};

/// Proposals that may wait; further ones wait to be let in.
const WAITING_MAX: usize = 16_384;

/// The most proposals in one call.
const BATCH_MAX: usize = 256;

/// The most bytes of bodies in one call, beyond its first proposal.
const BATCH_MAX_BYTES: usize = 1 << 20;

/// Calls under way at once: one that waits for the log's next sync does not hold up those behind it.
const CALLS_MAX: usize = 4;

type Outcome = Result<ProposeReply, CallError>;

struct Waiting {
    proposal: Arc<Proposal>,
    answer: oneshot::Sender<Outcome>,
}

/// Where proposals queue for the leader. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Forwarding {
    queue: mpsc::Sender<Waiting>,
}

impl Forwarding {
    /// `call` takes proposals to the leader and returns as many replies, in the same order.
    pub(crate) fn start<F>(call: impl Fn(Vec<Arc<Proposal>>) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<Vec<ProposeReply>, CallError>> + Send + 'static,
    {
        let (queue, waiting) = mpsc::channel(WAITING_MAX);
        tokio::spawn(forward(waiting, call));
        Self { queue }
    }

    /// What became of one proposal. [`CallError::Unreachable`] and [`CallError::Refused`] mean that it was not sent.
    pub(crate) async fn submit(&self, proposal: Arc<Proposal>) -> Outcome {
        let (answer, waits) = oneshot::channel();
        let gone = || CallError::NoAnswer("this node is stopping".into());
        self.queue.send(Waiting { proposal, answer }).await.map_err(|_| gone())?;
        waits.await.unwrap_or_else(|_| Err(gone()))
    }
}

async fn forward<F>(mut waiting: mpsc::Receiver<Waiting>, call: impl Fn(Vec<Arc<Proposal>>) -> F)
where
    F: Future<Output = Result<Vec<ProposeReply>, CallError>> + Send + 'static,
{
    let calls = Arc::new(Semaphore::new(CALLS_MAX));
    // The semaphore is never closed, so this ends with the queue.
    while let Ok(permit) = calls.clone().acquire_owned().await {
        let Some(first) = waiting.recv().await else { return };
        let (proposals, answers) = gather(first, &mut waiting);
        let replies = call(proposals);
        tokio::spawn(async move {
            let replies = replies.await;
            drop(permit);
            deliver(answers, replies);
        });
    }
}

/// The first proposal and those that wait behind it, as far as they fit into one call.
fn gather(
    first: Waiting,
    waiting: &mut mpsc::Receiver<Waiting>,
) -> (Vec<Arc<Proposal>>, Vec<oneshot::Sender<Outcome>>) {
    let (mut proposals, mut answers, mut bytes) = (Vec::new(), Vec::new(), 0);
    let mut next = Some(first);
    while let Some(Waiting { proposal, answer }) = next {
        bytes += proposal.command.bulk_bytes();
        proposals.push(proposal);
        answers.push(answer);
        let full = proposals.len() >= BATCH_MAX || bytes >= BATCH_MAX_BYTES;
        next = if full { None } else { waiting.try_recv().ok() };
    }
    (proposals, answers)
}

/// A client that went away does not wait for its answer any more: those are dropped.
fn deliver(answers: Vec<oneshot::Sender<Outcome>>, replies: Result<Vec<ProposeReply>, CallError>) {
    match replies {
        Ok(replies) => {
            // An answer that is missing closes its channel, which reads as «no answer».
            for (answer, reply) in answers.into_iter().zip(replies) {
                let _ = answer.send(Ok(reply));
            }
        }
        Err(problem) => {
            for answer in answers {
                let _ = answer.send(Err(problem.clone()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::command::{Answer, Command, Outcome};

    fn proposal(number: u64) -> Arc<Proposal> {
        let command = Command::Found { cluster_id: Uuid::nil() };
        Arc::new(Proposal { request_id: Uuid::nil(), base_index: number, time_ms: 0, actor: String::new(), command })
    }

    fn replies(proposals: &[Arc<Proposal>]) -> Vec<ProposeReply> {
        let answered = |revision| ProposeReply::Answered(Answer { revision, result: Ok(Outcome::Done) });
        proposals.iter().map(|proposal| answered(proposal.base_index)).collect()
    }

    #[tokio::test]
    async fn one_call_carries_all_that_wait_and_each_gets_its_own_answer() {
        let (release, released) = tokio::sync::watch::channel(false);
        let (sizes, mut seen) = mpsc::unbounded_channel();
        let forwarding = Forwarding::start(move |proposals| {
            let mut released = released.clone();
            sizes.send(proposals.len()).unwrap();
            async move {
                released.wait_for(|released| *released).await.unwrap();
                Ok(replies(&proposals))
            }
        });
        let submit = |number| {
            let forwarding = forwarding.clone();
            tokio::spawn(async move { (number, forwarding.submit(proposal(number)).await) })
        };
        // All calls that may be under way are: what comes now waits, and goes together.
        let mut submitted = Vec::new();
        for number in 0..CALLS_MAX as u64 {
            submitted.push(submit(number));
            assert_eq!(seen.recv().await, Some(1));
        }
        submitted.extend((10..30).map(submit));
        while forwarding.queue.capacity() > WAITING_MAX - 20 {
            tokio::task::yield_now().await;
        }
        release.send(true).unwrap();
        for task in submitted {
            let (number, outcome) = task.await.unwrap();
            assert!(matches!(outcome, Ok(ProposeReply::Answered(answer)) if answer.revision == number));
        }
        assert_eq!(seen.recv().await, Some(20));
    }

    #[tokio::test]
    async fn a_call_that_fails_or_answers_too_little_leaves_nobody_waiting() {
        let failing =
            Forwarding::start(|_| async { Err::<Vec<ProposeReply>, _>(CallError::Unreachable("down".into())) });
        assert!(matches!(failing.submit(proposal(1)).await, Err(CallError::Unreachable(_))));
        let silent = Forwarding::start(|_| async { Ok(Vec::new()) });
        assert!(matches!(silent.submit(proposal(1)).await, Err(CallError::NoAnswer(_))));
    }
}
