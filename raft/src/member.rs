//! Who belongs to the cluster.

use serde::{Deserialize, Serialize};

/// A node's id: random, 48 bits, never zero, made once and kept with the node's data. A lost disk is a new node
/// under a new id. Shown to people and in JSON as 12 hexadecimal digits.
pub type NodeId = u64;

/// What the membership in the log says of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeRecord {
    /// The node's configured name, such as `n1`.
    pub name: String,
    /// Where peers reach it: `host:port`.
    pub peer_address: String,
    /// Where clients reach it: an http(s) URL without a slash at the end.
    pub url: String,
}

/// A member of the cluster: its id, its record, and whether it votes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The node's id.
    pub id: NodeId,
    /// Name and addresses.
    pub record: NodeRecord,
    /// False for a learner.
    pub voter: bool,
    /// Where blobs are placed by it.
    pub seat: Seat,
}

/// How many of the members have a blob before a push is acknowledged, where `min_copies` of `replicas` are wanted: no more than
/// there are that are not drained; where a majority of the replicas is wanted, no more than one of those that there are; and one
/// where a single voter acknowledges what the blob is called.
pub(crate) fn copies_needed(members: &[Member], replicas: usize, min_copies: usize) -> usize {
    let voters = members.iter().filter(|member| member.voter).count();
    let stay = members.iter().filter(|member| !member.seat.draining).count();
    let limit = if min_copies > replicas / 2 + 1 { stay } else { replicas.min(stay) / 2 + 1 };
    if voters < 2 { 1 } else { min_copies.min(limit).min(stay).max(1) }
}

/// A member's place in the layout by which blobs are spread over the nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seat {
    /// What fails together with this node, such as `eu-1a`: copies of a blob are kept apart. Empty: nothing does.
    pub zone: String,
    /// How much it takes beside the others, 1 to [`WEIGHT_MAX`].
    pub weight: u32,
    /// Its blobs move to others, and no copy on it counts.
    pub draining: bool,
}

/// The largest weight of a node.
pub const WEIGHT_MAX: u32 = 100;

/// The longest name of a zone, in bytes.
pub const ZONE_MAX: usize = 63;

impl Default for Seat {
    fn default() -> Self {
        Self { zone: String::new(), weight: 1, draining: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_needed_as_there_are_members_for_them() {
        // `V` votes, `L` learns, `d` votes and is drained.
        let members = |text: &str| -> Vec<Member> {
            let member = |(kind, id)| Member {
                id,
                record: NodeRecord::default(),
                voter: kind != 'L',
                seat: Seat { draining: kind == 'd', ..Seat::default() },
            };
            text.chars().zip(1..).map(member).collect()
        };
        let needed = |text, replicas, min_copies| copies_needed(&members(text), replicas, min_copies);
        let of_three = |text| needed(text, 3, 2);
        assert_eq!([of_three("V"), of_three("VL"), of_three("VLL")], [1, 1, 1]);
        assert_eq!([of_three("VV"), of_three("VVV"), of_three("VVVL"), of_three("VVVVV")], [2, 2, 2, 2]);
        assert_eq!([of_three("Vdd"), of_three("ddd"), of_three(""), needed("VVV", 3, 1)], [1, 1, 1, 1]);
        // A majority of five is one of three where there are three, and one of them may fail.
        assert_eq!([needed("VVV", 5, 3), needed("VVVV", 5, 3), needed("VVVVV", 5, 3)], [2, 3, 3]);
        assert_eq!([needed("VVV", 3, 3), needed("VVVVV", 3, 3)], [3, 3], "who wants more gets more");
    }
}
