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
}
