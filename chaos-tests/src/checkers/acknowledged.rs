//! I1, no acknowledged push is lost: once the cluster has healed, each node gives back all of it, intact.

use std::collections::HashMap;
use std::time::Duration;

use crate::history::{Action, Operation, Outcome};

/// Acknowledged puts that some node did not give back in its last pull since `healed`.
///
/// A put is left out if another one of the same tag, begun after it, may have replaced it.
pub fn lost_pushes(history: &[Operation], healed: Duration, nodes: &[String]) -> Vec<String> {
    let mut last_pull: HashMap<(&str, &str, &str), &Operation> = HashMap::new();
    let mut last_put_start: HashMap<(&str, &str), Duration> = HashMap::new();
    for op in history {
        match op.action {
            Action::Pull if op.start >= healed => {
                last_pull.insert((&op.node, &op.repository, &op.tag), op);
            }
            Action::Put if op.outcome != Outcome::Failed => {
                let start = last_put_start.entry((&op.repository, &op.tag)).or_default();
                *start = op.start.max(*start);
            }
            Action::Pull | Action::Put | Action::Read | Action::StaleRead => {}
        }
    }
    let acknowledged = history.iter().filter(|op| {
        op.action == Action::Put
            && op.outcome == Outcome::Ok
            && op.end <= healed
            && last_put_start.get(&(op.repository.as_str(), op.tag.as_str())).is_none_or(|last| *last <= op.end)
    });
    let mut lost = Vec::new();
    for put in acknowledged {
        for node in nodes {
            let pull = last_pull.get(&(node.as_str(), put.repository.as_str(), put.tag.as_str()));
            let intact = pull.is_some_and(|pull| pull.outcome == Outcome::Ok && pull.digest == put.digest);
            if !intact {
                lost.push(format!(
                    "{}:{} {} was acknowledged by {} after {:?}; {node} gives {:?}",
                    put.repository,
                    put.tag,
                    put.digest.as_deref().unwrap_or("?"),
                    put.node,
                    put.end,
                    pull.map(|pull| (pull.outcome, &pull.digest)),
                ));
            }
        }
    }
    lost
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::tests::operation;

    const HEALED: Duration = Duration::from_secs(10);

    fn nodes() -> Vec<String> {
        vec!["n1".to_owned(), "n2".to_owned()]
    }

    fn pull(node: &str, digest: &str, start: u64) -> Operation {
        Operation { node: node.to_owned(), ..operation(Action::Pull, digest, start, start + 1) }
    }

    #[test]
    fn a_push_that_every_node_gives_back_is_kept() {
        let history = [operation(Action::Put, "a", 1, 2), pull("n1", "a", 10), pull("n2", "a", 11)];
        assert!(lost_pushes(&history, HEALED, &nodes()).is_empty());
    }

    #[test]
    fn a_push_that_one_node_lost_is_reported() {
        let mut failed = pull("n2", "a", 11);
        failed.outcome = Outcome::Failed;
        let history = [operation(Action::Put, "a", 1, 2), pull("n1", "a", 10), failed];
        assert_eq!(lost_pushes(&history, HEALED, &nodes()).len(), 1);
    }

    #[test]
    fn a_push_that_came_back_as_another_is_reported() {
        let history = [operation(Action::Put, "a", 1, 2), pull("n1", "a", 10), pull("n2", "b", 11)];
        assert_eq!(lost_pushes(&history, HEALED, &nodes()).len(), 1);
    }

    #[test]
    fn a_pull_from_before_the_healing_proves_nothing() {
        let history = [operation(Action::Put, "a", 1, 2), pull("n1", "a", 3), pull("n2", "a", 3)];
        assert_eq!(lost_pushes(&history, HEALED, &nodes()).len(), 2);
    }

    #[test]
    fn a_push_of_unknown_outcome_and_a_replaced_one_need_not_be_there() {
        let mut unknown = operation(Action::Put, "b", 3, 4);
        unknown.outcome = Outcome::Unknown;
        let history = [operation(Action::Put, "a", 1, 2), unknown];
        assert!(lost_pushes(&history, HEALED, &nodes()).is_empty());
    }
}
