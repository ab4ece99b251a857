//! Which nodes keep a blob: rendezvous hashing of its digest over the members. Computed, never stored, so the
//! function must not change: other releases of the same cluster compute it too.

use flotilla_raft::NodeId;
use flotilla_storage::Digest;

/// The nodes that keep `digest`, best first: `copies` of `nodes`, all of them where there are not more.
pub(crate) fn placed(digest: &Digest, nodes: &[NodeId], copies: usize) -> Vec<NodeId> {
    let mut ranked = ranked(digest.as_bytes(), nodes);
    ranked.truncate(copies);
    ranked
}

/// All of `nodes` in the order in which they are asked to keep what `key` names.
pub(crate) fn ranked(key: &[u8], nodes: &[NodeId]) -> Vec<NodeId> {
    let key = fold(key);
    let mut scored: Vec<(u64, NodeId)> = nodes.iter().map(|node| (mix(key ^ mix(*node)), *node)).collect();
    // The node's id breaks ties, so that every node of the cluster sees one order.
    scored.sort_unstable_by(|a, b| b.cmp(a));
    scored.into_iter().map(|(_, node)| node).collect()
}

/// The first eight bytes as a number. Keys are digests or random ids, so these alone are well spread.
fn fold(key: &[u8]) -> u64 {
    key.iter().take(8).fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

/// The finalizer of SplitMix64: every bit of the input changes about half of the output's.
fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use flotilla_storage::Algorithm;

    use super::*;

    fn digest(number: u32) -> Digest {
        Digest::of(Algorithm::Sha256, &number.to_be_bytes())
    }

    #[test]
    fn everybody_is_placed_where_there_are_not_more_nodes_than_copies() {
        let mut placed = placed(&digest(1), &[7, 8, 9], 3);
        placed.sort_unstable();
        assert_eq!(placed, [7, 8, 9]);
    }

    #[test]
    fn the_order_of_the_members_does_not_matter() {
        assert_eq!(placed(&digest(1), &[1, 2, 3, 4, 5], 3), placed(&digest(1), &[5, 3, 1, 4, 2], 3));
    }

    #[test]
    fn copies_spread_evenly() {
        let nodes = [0x1234_5678_9abc, 0x1234_5678_9abd, 3, 4, 5];
        let mut counts: HashMap<NodeId, u32> = HashMap::new();
        for number in 0..10_000 {
            for node in placed(&digest(number), &nodes, 3) {
                *counts.entry(node).or_default() += 1;
            }
        }
        assert!(counts.values().all(|count| (5_600..6_400).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_node_that_leaves_moves_only_its_own_copies() {
        for number in 0..1_000 {
            let before = placed(&digest(number), &[1, 2, 3, 4, 5], 3);
            let after = placed(&digest(number), &[1, 2, 3, 4], 3);
            assert!(before.iter().filter(|node| **node != 5).all(|node| after.contains(node)));
        }
    }

    #[test]
    fn the_function_is_the_one_that_other_releases_compute() {
        assert_eq!(ranked(&[1, 2, 3, 4, 5, 6, 7, 8], &[1, 2, 3]), RANKED_BY_THE_FIRST_RELEASE);
    }

    const RANKED_BY_THE_FIRST_RELEASE: [NodeId; 3] = [3, 2, 1];
}
