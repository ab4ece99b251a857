//! I2, a read by tag is never stale: begun after an acknowledged put of that tag had ended, it gives back
//! that digest or a later one. One client writes each tag, so the puts of a tag have an order.

use std::collections::BTreeMap;

use crate::history::{Action, Operation, Outcome};

/// Reads that gave back what they must not.
///
/// Reads that say themselves that they may be stale are not judged: that is what their warning is for.
pub fn stale_reads(history: &[Operation]) -> Vec<String> {
    let mut tags: BTreeMap<(&str, &str), Vec<&Operation>> = BTreeMap::new();
    for op in history {
        tags.entry((&op.repository, &op.tag)).or_default().push(op);
    }
    tags.values().flat_map(|ops| stale_of_one_tag(ops)).collect()
}

fn stale_of_one_tag(operations: &[&Operation]) -> Vec<String> {
    let of = |action| {
        let mut found: Vec<&Operation> = operations.iter().copied().filter(|op| op.action == action).collect();
        found.sort_by_key(|op| op.start);
        found
    };
    let puts = of(Action::Put);
    let mut reads = of(Action::Read);
    reads.retain(|read| read.outcome == Outcome::Ok);
    let mut violations = Vec::new();
    for read in &reads {
        if let Some(reason) = fault(read, &puts) {
            violations.push(format!(
                "{}:{} read from {} between {:?} and {:?} gave {:?}: {reason}",
                read.repository, read.tag, read.node, read.start, read.end, read.digest
            ));
        }
    }
    violations.extend(inversions(&reads, &puts));
    violations
}

/// Why no order of the puts explains what the read gave back.
fn fault(read: &Operation, puts: &[&Operation]) -> Option<String> {
    let settled =
        puts.iter().filter(|put| put.outcome == Outcome::Ok && put.end < read.start).max_by_key(|put| put.start);
    let Some(digest) = &read.digest else {
        return settled.map(|put| format!("{:?} was acknowledged before", put.digest));
    };
    let candidates = puts.iter().filter(|put| put.digest.as_ref() == Some(digest) && put.start < read.end);
    let mut reason = "nobody had put it".to_owned();
    for put in candidates {
        match put.outcome {
            Outcome::Failed => reason = "its put was refused".to_owned(),
            // It may take effect at any time after it began.
            Outcome::Unknown => return None,
            Outcome::Ok => match settled {
                Some(later) if later.start >= put.end => {
                    reason = format!("{:?} was acknowledged after it and before the read", later.digest);
                }
                Some(_) | None => return None,
            },
        }
    }
    Some(reason)
}

/// Reads that see an older put than a read that had ended before they began.
fn inversions(reads: &[&Operation], puts: &[&Operation]) -> Vec<String> {
    let order = |read: &Operation| {
        let found = puts.iter().position(|put| put.digest.is_some() && put.digest == read.digest)?;
        (puts[found].outcome == Outcome::Ok).then_some(found)
    };
    let mut by_end: Vec<(&Operation, usize)> = reads.iter().filter_map(|read| Some((*read, order(read)?))).collect();
    by_end.sort_by_key(|(read, _)| read.end);
    let mut violations = Vec::new();
    let mut ended = by_end.iter().peekable();
    let mut newest: Option<(&Operation, usize)> = None;
    // `reads` are in the order of their starts: what had ended before each is a growing prefix.
    for read in reads {
        while let Some((earlier, put)) = ended.next_if(|(earlier, _)| earlier.end < read.start) {
            if newest.is_none_or(|(_, seen)| seen < *put) {
                newest = Some((earlier, *put));
            }
        }
        let (Some((earlier, seen)), Some(put)) = (newest, order(read)) else {
            continue;
        };
        if put < seen {
            violations.push(format!(
                "{}:{} read from {} gave {:?} after {} had given the later {:?}",
                read.repository, read.tag, read.node, read.digest, earlier.node, earlier.digest
            ));
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::tests::operation;

    fn put(digest: &str, start: u64, end: u64) -> Operation {
        operation(Action::Put, digest, start, end)
    }

    fn read(digest: &str, start: u64, end: u64) -> Operation {
        operation(Action::Read, digest, start, end)
    }

    #[test]
    fn reads_of_the_last_put_and_of_one_under_way_are_fresh() {
        let history =
            [put("a", 1, 2), read("a", 3, 4), put("b", 5, 9), read("a", 6, 7), read("b", 8, 10), read("b", 11, 12)];
        assert_eq!(stale_reads(&history), Vec::<String>::new());
    }

    #[test]
    fn a_read_of_what_was_replaced_before_it_began_is_stale() {
        let history = [put("a", 1, 2), put("b", 3, 4), read("a", 5, 6)];
        assert_eq!(stale_reads(&history).len(), 1);
    }

    #[test]
    fn a_404_after_an_acknowledged_put_is_stale_and_before_it_is_not() {
        let nothing = |start| Operation { digest: None, ..read("", start, start + 1) };
        assert!(stale_reads(&[nothing(0), put("a", 1, 2)]).is_empty());
        assert_eq!(stale_reads(&[put("a", 1, 2), nothing(3)]).len(), 1);
    }

    #[test]
    fn a_put_without_an_answer_may_be_seen_early_late_or_never() {
        let unknown = Operation { outcome: Outcome::Unknown, ..put("b", 3, 4) };
        let history = [put("a", 1, 2), unknown, read("a", 5, 6), read("b", 7, 8)];
        assert!(stale_reads(&history).is_empty());
    }

    #[test]
    fn a_refused_put_and_one_that_never_was_must_not_be_seen() {
        let refused = Operation { outcome: Outcome::Failed, ..put("b", 3, 4) };
        assert_eq!(stale_reads(&[put("a", 1, 2), refused, read("b", 5, 6)]).len(), 1);
        assert_eq!(stale_reads(&[put("a", 1, 2), read("x", 5, 6)]).len(), 1);
    }

    #[test]
    fn a_tag_does_not_go_back_between_two_reads_during_a_put() {
        let history = [put("a", 1, 2), put("b", 3, 20), read("b", 4, 5), read("a", 6, 7)];
        assert_eq!(stale_reads(&history).len(), 1);
    }

    #[test]
    fn a_read_with_a_warning_is_not_judged() {
        let warned = operation(Action::StaleRead, "a", 5, 6);
        assert!(stale_reads(&[put("a", 1, 2), put("b", 3, 4), warned]).is_empty());
    }
}
