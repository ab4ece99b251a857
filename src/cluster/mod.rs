//! The cluster as a whole: how it comes about, what operators see of it, and the peer port's calls of the Raft group.

pub(crate) mod founding;
pub(crate) mod metrics;
pub(crate) mod nodes;
pub(crate) mod operator;
pub(crate) mod peer;
pub(crate) mod status;
