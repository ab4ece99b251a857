//! Which nodes keep a blob: rendezvous hashing of its digest over the members that are not drained, weighted, zones
//! apart. Computed, never stored, so the function must not change: other releases of the same cluster compute it too.

use std::collections::HashSet;

use flotilla_raft::{Member, NodeId};
use flotilla_storage::Digest;

/// The nodes that keep `digest`, best first: `copies` of those that are not drained, all of them where there are not
/// more. With fewer copies the nodes are a prefix of those with more.
pub(crate) fn placed(digest: &Digest, members: &[Member], copies: usize) -> Vec<NodeId> {
    placed_by(digest.as_bytes(), members, copies)
}

/// All members in the order in which they are asked for what `key` names, or to keep it: those that keep `copies` of
/// it first, those that are drained last.
pub(crate) fn ordered(key: &[u8], members: &[Member], copies: usize) -> Vec<NodeId> {
    let mut nodes = placed_by(key, members, copies);
    let others = ranked(key, members).into_iter().filter(|node| !nodes.contains(&node.id));
    let (drained, others): (Vec<&Member>, Vec<&Member>) = others.partition(|node| node.seat.draining);
    nodes.extend(others.into_iter().chain(drained).map(|node| node.id));
    nodes
}

fn placed_by(key: &[u8], members: &[Member], copies: usize) -> Vec<NodeId> {
    let mut left = ranked(key, members);
    left.retain(|node| !node.seat.draining);
    let mut chosen = Vec::with_capacity(copies.min(left.len()));
    // Each round takes the best node of each zone.
    while chosen.len() < copies && !left.is_empty() {
        let mut zones = HashSet::new();
        left.retain(|node| {
            // A node without a zone is one by itself.
            let is_apart = node.seat.zone.is_empty() || zones.insert(node.seat.zone.as_str());
            let takes = is_apart && chosen.len() < copies;
            if takes {
                chosen.push(node.id);
            }
            !takes
        });
    }
    chosen
}

/// All members, the one that scores best first. A node of weight w has as many tries: it wins w times as often.
fn ranked<'a>(key: &[u8], members: &'a [Member]) -> Vec<&'a Member> {
    let key = fold(key);
    let score = |node: &Member| {
        let tries = u64::from(node.seat.weight.max(1));
        (0..tries).map(|number| mix(key ^ mix(node.id ^ number.rotate_right(16)))).max()
    };
    let mut scored: Vec<_> = members.iter().map(|node| (score(node), node)).collect();
    // The node's id breaks ties, so that every node of the cluster sees one order.
    scored.sort_unstable_by(|(a, one), (b, other)| (b, other.id).cmp(&(a, one.id)));
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

    use flotilla_raft::{NodeRecord, Seat};
    use flotilla_storage::Algorithm;

    use super::*;

    fn digest(number: u32) -> Digest {
        Digest::of(Algorithm::Sha256, &number.to_be_bytes())
    }

    fn node(id: NodeId, seat: Seat) -> Member {
        Member { id, record: NodeRecord::default(), voter: true, seat }
    }

    fn nodes(ids: &[NodeId]) -> Vec<Member> {
        ids.iter().map(|id| node(*id, Seat::default())).collect()
    }

    fn counts(members: &[Member], copies: usize) -> HashMap<NodeId, u32> {
        let mut counts: HashMap<NodeId, u32> = HashMap::new();
        for number in 0..10_000 {
            placed(&digest(number), members, copies).into_iter().for_each(|node| *counts.entry(node).or_default() += 1);
        }
        counts
    }

    #[test]
    fn everybody_is_placed_where_there_are_not_more_nodes_than_copies() {
        let mut placed = placed(&digest(1), &nodes(&[7, 8, 9]), 3);
        placed.sort_unstable();
        assert_eq!(placed, [7, 8, 9]);
    }

    #[test]
    fn the_order_of_the_members_does_not_matter() {
        let (one, other) = (nodes(&[1, 2, 3, 4, 5]), nodes(&[5, 3, 1, 4, 2]));
        assert_eq!(placed(&digest(1), &one, 3), placed(&digest(1), &other, 3));
    }

    #[test]
    fn copies_spread_evenly() {
        let counts = counts(&nodes(&[0x1234_5678_9abc, 0x1234_5678_9abd, 3, 4, 5]), 3);
        assert!(counts.values().all(|count| (5_600..6_400).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_node_of_twice_the_weight_takes_twice_as_much() {
        let heavy = node(9, Seat { weight: 2, ..Seat::default() });
        let members: Vec<Member> = nodes(&[1, 2, 3]).into_iter().chain([heavy]).collect();
        let counts = counts(&members, 1);
        assert!((3_700..4_300).contains(&counts[&9]), "{counts:?}");
        assert!((1_700..2_300).contains(&counts[&1]), "{counts:?}");
    }

    #[test]
    fn copies_lie_in_zones_apart_and_evenly_where_there_are_too_few() {
        let seat = |zone: &str| Seat { zone: zone.into(), ..Seat::default() };
        let zone_of = |id: NodeId| ["a", "b", "c"][(id % 3) as usize];
        let three: Vec<Member> = (0..9).map(|id| node(id, seat(zone_of(id)))).collect();
        let two: Vec<Member> = (0..6).map(|id| node(id, seat(["a", "b"][(id % 2) as usize]))).collect();
        for number in 0..1_000 {
            let zones: HashSet<&str> = placed(&digest(number), &three, 3).into_iter().map(zone_of).collect();
            assert_eq!(zones.len(), 3);
            let four = placed(&digest(number), &two, 4);
            assert_eq!(four.iter().filter(|id| **id % 2 == 0).count(), 2);
            assert_eq!(placed(&digest(number), &two, 2), four[..2]);
        }
    }

    #[test]
    fn a_node_that_leaves_or_is_drained_moves_only_its_own_copies() {
        let (all, mut draining) = (nodes(&[1, 2, 3, 4, 5]), nodes(&[1, 2, 3, 4, 5]));
        draining[4].seat.draining = true;
        for number in 0..1_000 {
            let before = placed(&digest(number), &all, 3);
            let after = placed(&digest(number), &nodes(&[1, 2, 3, 4]), 3);
            assert!(before.iter().filter(|node| **node != 5).all(|node| after.contains(node)));
            assert_eq!(placed(&digest(number), &draining, 3), after);
            assert_eq!(ordered(digest(number).as_bytes(), &draining, 3).last(), Some(&5));
        }
    }

    #[test]
    fn the_function_is_the_one_that_other_releases_compute() {
        assert_eq!(ordered(&[1, 2, 3, 4, 5, 6, 7, 8], &nodes(&[1, 2, 3]), 1), ORDERED_BY_THE_FIRST_RELEASE);
        let weighted: Vec<Member> = (1..=5).map(|id| node(id, Seat { weight: id as u32, ..Seat::default() })).collect();
        assert_eq!(placed(&digest(1), &weighted, 5), WEIGHTED_BY_THE_FIRST_RELEASE);
    }

    const ORDERED_BY_THE_FIRST_RELEASE: [NodeId; 3] = [3, 2, 1];
    const WEIGHTED_BY_THE_FIRST_RELEASE: [NodeId; 5] = [3, 4, 5, 2, 1];
}
