//! An orderly end of several nodes.

use anyhow::Result;
use futures::future::try_join_all;

use crate::cluster::Node;

/// SIGTERM to all of these at once; each must end with exit status 0.
pub async fn stop(nodes: &[&Node]) -> Result<()> {
    try_join_all(nodes.iter().map(|node| node.stop())).await?;
    Ok(())
}
