//! Node-to-node calls: requests and answers of the peer port, versioned by path (`/peer/v1`) and by envelope.

pub mod client;
mod serve;
mod snapshot_copy;
mod transport;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use client::{CallError, Dialer, PeerClient, Whom};
pub use serve::{Caller, ServeError};
pub(crate) use snapshot_copy::Receiving;
pub(crate) use transport::Network;

use crate::command::Answer;
use crate::member::{Member, NodeId, NodeRecord};

/// The header that names the node that is meant, as 12 hexadecimal digits: an address may have a new owner.
pub const TO_HEADER: &str = "flotilla-to";

/// Where the calls below are mounted: `POST {PREFIX}/{name of the call}`.
pub const PREFIX: &str = "/peer/v1/raft";

/// The calls of the peer port that this crate serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// openraft's AppendEntries.
    Append,
    /// openraft's RequestVote.
    Vote,
    /// openraft's pre-vote.
    PreVote,
    /// openraft's TransferLeader.
    Transfer,
    /// Proposals from a node that does not lead: as many replies come back, in the same order.
    Propose,
    /// The leader's read index.
    ReadIndex,
    /// Is the node there, and how far has it applied?
    Ping,
    /// Wait until an index is applied.
    WaitApplied,
    /// Who is this, and which cluster does it belong to?
    Identity,
    /// Take a new node in as a learner.
    Join,
    /// Remove a member.
    Remove,
    /// Is the node of this id a member, and of which cluster?
    Recognise,
    /// A copy of the leader's state begins.
    CopyBegin,
    /// Some rows of it.
    CopyRows,
    /// These were all: make them yours.
    CopyEnd,
}

impl Call {
    const ALL: [Self; 15] = [
        Self::Append,
        Self::Vote,
        Self::PreVote,
        Self::Transfer,
        Self::Propose,
        Self::ReadIndex,
        Self::Ping,
        Self::WaitApplied,
        Self::Identity,
        Self::Join,
        Self::Remove,
        Self::Recognise,
        Self::CopyBegin,
        Self::CopyRows,
        Self::CopyEnd,
    ];

    /// The last part of its path.
    pub fn name(self) -> &'static str {
        match self {
            Self::Append => "append",
            Self::Vote => "vote",
            Self::PreVote => "pre-vote",
            Self::Transfer => "transfer",
            Self::Propose => "propose",
            Self::ReadIndex => "read-index",
            Self::Ping => "ping",
            Self::WaitApplied => "wait-applied",
            Self::Identity => "identity",
            Self::Join => "join",
            Self::Remove => "remove",
            Self::Recognise => "recognise",
            Self::CopyBegin => "copy-begin",
            Self::CopyRows => "copy-rows",
            Self::CopyEnd => "copy-end",
        }
    }

    /// Whether it is asked of nodes, and answered to nodes, that may not belong to the cluster yet.
    pub fn is_for_newcomers(self) -> bool {
        matches!(self, Self::Identity | Self::Recognise | Self::Join)
    }

    /// The call of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|call| call.name() == name)
    }
}

/// What became of a forwarded proposal: [`Call::Propose`] is answered with one for each.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ProposeReply {
    /// It was applied.
    Answered(Answer),
    /// The node that was asked does not lead; nothing is known of the proposal.
    NotLeader(Option<NodeId>),
    /// The node that was asked lost its leadership or its quorum meanwhile.
    Unknown,
}

/// What became of a question for a read index.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum ReadIndexReply {
    /// Reads that began before the question may be answered from state that has applied this index.
    Index(u64),
    /// The node that was asked does not lead.
    NotLeader(Option<NodeId>),
    /// A majority did not answer.
    NoQuorum,
}

/// A node's files, as it last compared them with what it should have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobCounts {
    /// The layout's revision by which it compared all of them; 0 before the first time.
    pub layout_revision: u64,
    /// The settings' revision by which it did.
    pub rules_revision: u64,
    /// Those that belong to it and that it has.
    pub held: u64,
    /// Bytes of these.
    pub held_bytes: u64,
    /// Those that belong to it and that it does not have yet.
    pub missing: u64,
    /// Bytes of these.
    pub missing_bytes: u64,
    /// How many of the missing no node that answers could give.
    pub nowhere: u64,
    /// Bytes of these.
    pub nowhere_bytes: u64,
    /// Those that it has and that belong to others, which may not all have them yet.
    pub surplus: u64,
    /// How fast it may fetch what it lacks, in bytes a second.
    pub repair_rate: u64,
}

/// A node's word about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong {
    /// Its id.
    pub id: NodeId,
    /// The last log index that it has applied.
    pub applied_index: u64,
    /// The version of its program.
    pub version: String,
    /// Its files.
    pub blobs: BlobCounts,
    /// Its clock, in milliseconds since the Unix epoch.
    pub time_ms: u64,
}

/// Who a node is, before it need be a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its id.
    pub id: NodeId,
    /// Its name and addresses.
    pub record: NodeRecord,
    /// The cluster that it belongs to; `None` while it knows of none.
    pub cluster_id: Option<Uuid>,
    /// Whether its log is empty: a node that has one takes no part in founding another cluster.
    pub empty: bool,
    /// Its clock, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// Of this process alone: two that have one id have different ones.
    pub process: Uuid,
}

/// What became of a question to join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinReply {
    /// The node is a member now; the cluster's members are listed.
    Member(Vec<Member>),
    /// Ask this node, which leads; nobody is known to lead where it is `None`.
    NotLeader(Option<NodeRecord>),
    /// Not possible, for this reason.
    Refused(String),
}

/// What became of a question to remove a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum RemoveReply {
    /// It is none any more; what may be lost with it, where that was forced.
    Removed(Option<String>),
    /// It was none.
    Unknown,
    /// The node that was asked does not lead, or not any more.
    NotLeader,
    /// Not done, for this reason.
    Refused(String),
}
