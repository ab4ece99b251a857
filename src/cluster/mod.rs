//! What operators see of the cluster.

pub(crate) mod status;
