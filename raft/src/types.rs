//! openraft's type parameters, named once.

use std::sync::Arc;

use crate::command::{Answer, Proposal};
use crate::member::{NodeId, NodeRecord};

openraft::declare_raft_types!(
    /// The types of the registry's Raft group.
    pub TypeConfig:
        D = Arc<Proposal>,
        R = Answer,
        NodeId = NodeId,
        Node = NodeRecord,
);

pub(crate) type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = openraft::alias::VoteOf<TypeConfig>;
pub(crate) type Entry = openraft::alias::EntryOf<TypeConfig>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
