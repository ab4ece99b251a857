//! `GET /metrics`, in the OpenMetrics text form. Names are permanent: add, never reuse.

use flotilla_raft::Consensus;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

/// A figure of another part of the node.
pub(crate) struct Gauge {
    /// Its name, without the prefix.
    pub(crate) name: &'static str,
    /// What it is.
    pub(crate) help: &'static str,
    /// Reads it, when the page is asked for; may wait for the disk.
    pub(crate) read: Box<dyn Fn() -> u64 + Send + Sync>,
}

/// Puts metrics on the page.
pub(crate) type Register = Box<dyn Fn(&mut Registry) + Send + Sync>;

/// What the other parts of the node show.
#[derive(Default)]
pub(crate) struct Shown {
    pub(crate) gauges: Vec<Gauge>,
    /// Puts what is counted by labels on the page.
    pub(crate) more: Vec<Register>,
}

/// The metrics of this node, read now. Blocks.
pub(crate) fn page(consensus: &Consensus, shown: &Shown) -> String {
    let mut registry = Registry::with_prefix("flotilla");
    let raft = consensus.status();
    let [built, sent, installed] = raft.snapshots;
    let mut gauge = |name: &str, help: &str, value: u64| registry.register(name, help, ConstGauge::new(value as i64));
    gauge("raft_term", "The current Raft term", raft.term);
    gauge("raft_commit_index", "The last log index known to be committed", raft.commit_index);
    gauge("raft_applied_index", "The last log index applied by this node", raft.applied_index);
    gauge("raft_snapshot_index", "The log index of the last snapshot", raft.snapshot_index);
    gauge("raft_is_leader", "1 on the node that leads", u64::from(raft.leader == Some(consensus.node_id())));
    gauge("raft_has_quorum", "1 while a majority of the voters answers", u64::from(consensus.quorum_reachable()));
    if let Some(own) = consensus.pong_of(consensus.node_id()) {
        gauge("blobs_held", "Blob files that this node should have and has", own.blobs.held);
        gauge("blobs_missing", "Blob files that this node should have and lacks", own.blobs.missing);
        gauge("blobs_surplus", "Blob files that this node has and others should have", own.blobs.surplus);
        gauge("blobs_held_bytes", "Bytes of the blob files that this node should have and has", own.blobs.held_bytes);
        gauge("blobs_missing_bytes", "Bytes of those that it lacks", own.blobs.missing_bytes);
        gauge("blobs_nowhere", "Those of them that no node that answers could give", own.blobs.nowhere);
    }
    shown.gauges.iter().for_each(|more| gauge(more.name, more.help, (more.read)()));
    registry.register_with_unit("raft_log", "Size of the log", Unit::Bytes, ConstGauge::new(raft.log_bytes as i64));
    let mut counter = |name: &str, help: &str, value: u64| registry.register(name, help, ConstCounter::new(value));
    counter("raft_log_syncs", "Syncs of the log to the disk", raft.log_syncs);
    counter("raft_snapshots_built", "Snapshots built by this node", built);
    counter("raft_snapshots_sent", "Snapshots sent to a follower", sent);
    counter("raft_snapshots_installed", "Snapshots installed from a leader", installed);
    shown.more.iter().for_each(|register| register(&mut registry));
    let mut page = String::new();
    // Writing into a String does not fail.
    let _ = encode(&mut page, &registry);
    page
}
