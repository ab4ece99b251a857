//! Builds storage → raft → services → HTTP, and stops them in the opposite order.

use crate::config::Config;

/// Runs a node until it is told to stop.
pub(crate) async fn run(config: Config) -> anyhow::Result<()> {
    anyhow::bail!("node {}: not wired yet", config.name)
}
