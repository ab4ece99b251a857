//! `kill -9` of every node at the same moment, as when the power fails.

use std::thread;

use crate::cluster::{Cluster, Node};

/// Kills all nodes at once, and returns when all are gone.
pub fn kill_all(cluster: &Cluster) {
    thread::scope(|scope| {
        for node in cluster.nodes() {
            scope.spawn(|| Node::kill(node));
        }
    });
}
