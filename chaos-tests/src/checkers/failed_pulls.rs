//! Pulls go on while any copy is alive: from a node that is there, no pull of an acknowledged push fails.

use std::time::Duration;

use crate::history::{Action, Operation, Outcome};

/// A time in which a node was away, or was told to be.
#[derive(Clone, Debug)]
pub struct Outage {
    /// Its name.
    pub node: String,
    /// From when on, since the history began.
    pub from: Duration,
    /// Until when.
    pub until: Duration,
}

/// Pulls that failed and were in no part during an outage of their node.
pub fn failed_pulls(history: &[Operation], outages: &[Outage]) -> Vec<String> {
    let during =
        |op: &Operation, outage: &Outage| outage.node == op.node && op.start <= outage.until && op.end >= outage.from;
    let failed = history.iter().filter(|op| op.action == Action::Pull && op.outcome != Outcome::Ok);
    let failed = failed.filter(|op| !outages.iter().any(|outage| during(op, outage)));
    failed
        .map(|op| {
            format!(
                "{}:{} from {} at {:.2?} to {:.2?}: {:?}",
                op.repository, op.tag, op.node, op.start, op.end, op.outcome
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::tests::operation;

    #[test]
    fn a_failed_pull_counts_unless_its_node_was_away() {
        let mut failed = operation(Action::Pull, "a", 5, 6);
        failed.outcome = Outcome::Unknown;
        let outage = |node: &str, from, until| Outage {
            node: node.to_owned(),
            from: Duration::from_secs(from),
            until: Duration::from_secs(until),
        };
        let history = [failed, operation(Action::Pull, "a", 7, 8)];
        assert_eq!(failed_pulls(&history, &[]).len(), 1);
        assert_eq!(failed_pulls(&history, &[outage("n2", 4, 9), outage("n1", 7, 9)]).len(), 1);
        assert_eq!(failed_pulls(&history, &[outage("n1", 6, 9)]).len(), 0);
    }
}
