//! Who asks, and may they. So far: the other nodes.

pub(crate) mod peers;
