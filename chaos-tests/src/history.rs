//! What clients did, when, and what came of it.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What a client knows about the end of its operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Acknowledged.
    Ok,
    /// Refused: it had no effect and never will.
    Failed,
    /// No answer, or one that proves nothing: it may have had its effect, or may yet.
    Unknown,
}

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A manifest put under a tag, its blobs before it.
    Put,
    /// A manifest read by tag; its digest is what came back, none for a 404.
    Read,
    /// A read that said itself, by a `Warning`, that it may be stale.
    StaleRead,
    /// A pull of everything behind a tag and its digest, all of it intact.
    Pull,
}

/// One operation of one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// What was asked for.
    pub action: Action,
    /// In which repository.
    pub repository: String,
    /// By which tag.
    pub tag: String,
    /// Which manifest was put, or came back.
    pub digest: Option<String>,
    /// The node, or the last of several, that was asked.
    pub node: String,
    /// When the client began, since the history did.
    pub start: Duration,
    /// When the client knew the outcome.
    pub end: Duration,
    /// What the client knows.
    pub outcome: Outcome,
}

/// A shared record of operations, in the order in which they ended.
#[derive(Debug)]
pub struct History {
    began: Instant,
    operations: Mutex<Vec<Operation>>,
}

impl Default for History {
    fn default() -> Self {
        Self { began: Instant::now(), operations: Mutex::default() }
    }
}

impl History {
    /// The time since the history began.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Adds an operation that has ended.
    pub fn record(&self, operation: Operation) {
        self.operations.lock().unwrap_or_else(PoisonError::into_inner).push(operation);
    }

    /// Everything so far.
    pub fn snapshot(&self) -> Vec<Operation> {
        self.operations.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One of the acknowledged puts, by chance.
    pub fn any_acknowledged(&self, random: &mut impl rand::Rng) -> Option<Operation> {
        let operations = self.operations.lock().unwrap_or_else(PoisonError::into_inner);
        // Most operations are puts or pulls of them: a few tries find one.
        for _ in 0..20 {
            let at = random.random_range(0..operations.len().max(1));
            let found = operations.get(at).filter(|op| op.action == Action::Put && op.outcome == Outcome::Ok);
            if found.is_some() {
                return found.cloned();
            }
        }
        None
    }

    /// The acknowledged puts that ended in the span of time.
    pub fn acknowledged(&self, from: Duration, until: Duration) -> Vec<Operation> {
        self.operations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .filter(|op| op.action == Action::Put && op.outcome == Outcome::Ok)
            .filter(|op| from <= op.end && op.end <= until)
            .cloned()
            .collect()
    }
}

/// The longest time without an acknowledged put within the span; the pieces at its two ends count.
pub fn longest_gap(operations: &[Operation], from: Duration, until: Duration) -> Duration {
    let mut ends: Vec<Duration> = operations
        .iter()
        .filter(|op| op.action == Action::Put && op.outcome == Outcome::Ok)
        .map(|op| op.end)
        .filter(|end| *end <= until)
        .collect();
    ends.sort_unstable();
    // The gap in which the fault falls began with the last success before it.
    let before = ends.iter().rev().find(|end| **end <= from).copied();
    let mut last = before.unwrap_or(from);
    let mut longest = Duration::ZERO;
    for end in ends.into_iter().filter(|end| *end > from).chain([until]) {
        longest = longest.max(end - last);
        last = end;
    }
    longest
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn operation(action: Action, digest: &str, start: u64, end: u64) -> Operation {
        Operation {
            action,
            repository: "r".to_owned(),
            tag: "t".to_owned(),
            digest: Some(digest.to_owned()),
            node: "n1".to_owned(),
            start: Duration::from_secs(start),
            end: Duration::from_secs(end),
            outcome: Outcome::Ok,
        }
    }

    #[test]
    fn the_ends_of_a_span_count_as_gaps() {
        let seconds = Duration::from_secs;
        let puts: Vec<_> = [9, 11, 12, 15].map(|end| operation(Action::Put, "d", end - 1, end)).to_vec();
        assert_eq!(longest_gap(&puts, seconds(10), seconds(16)), seconds(3));
        assert_eq!(longest_gap(&puts, seconds(10), seconds(20)), seconds(5));
        assert_eq!(longest_gap(&[], seconds(10), seconds(20)), seconds(10));
    }
}
