//! Agreement: the registry's replicated state machine, and the Raft group that orders its commands.
//!
//! A change enters at [`Consensus::propose`], is ordered and made durable on a majority by openraft over
//! [`log_store`], and is applied by [`state_store`] through the pure [`state_machine`]. A read enters at
//! [`Consensus::read_barrier`] and then looks into [`Registry`].
//!
//! This crate never speaks HTTP as a server, knows nothing of OCI's status codes and nothing of Kubernetes:
//! `src/` mounts the handlers of [`network`] and turns answers into the protocols' own forms.
#![forbid(unsafe_code)]
// Clocks and randomness belong to the glue; `state_machine` denies both to itself.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod command;
pub mod consensus;
#[cfg(test)]
mod consensus_tests;
mod forwarding;
pub mod json;
mod liveness;
mod log_store;
mod member;
mod membership;
pub mod names;
pub mod network;
mod promises;
mod read_gate;
mod recognition;
mod records;
pub mod registry;
pub mod registry_host;
mod replacement;
mod row_cache;
pub mod settings;
mod snapshot;
pub mod state_machine;
mod state_store;
#[cfg(test)]
mod store_tests;
mod types;
mod voters;
pub mod wire;
#[cfg(test)]
mod wire_tests;

pub use command::{
    Answer, Body, Collected, Command, Condition, ManifestPut, Outcome, Proposal, Refusal, TagChange, TrustChange,
    TrustRefusal,
};
pub use consensus::{AppliedBlob, BlobCounts, Consensus, Options, ProposeError, RaftStatus, ReadError};
pub use member::{Member, NodeId, NodeRecord, Seat, WEIGHT_MAX, ZONE_MAX};
pub use membership::{Removal, RemoveError};
pub use names::{InvalidName, PolicyName, RepositoryName, Tag};
pub use promises::{Pin, Promises};
pub use records::{
    AuthoritiesRecord, Candidate, Change, Changed, FormerManifest, LinkRecord, ManifestRecord, Place, PolicyVersion,
    Referrer, SettingsRecord, TagRecord, TagVersion, TokenRecord,
};
pub use registry::{Holding, Registry, Replicas, Whereabouts};
pub use replacement::replaced_by;
