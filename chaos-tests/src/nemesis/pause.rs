//! Nodes that stand still: their connections stay open and nothing comes through.

use anyhow::Result;

use crate::cluster::Node;

/// Nodes that go on when this is dropped.
#[derive(Debug)]
pub struct Paused<'a>(Vec<&'a Node>);

impl<'a> Paused<'a> {
    /// SIGSTOP to all of these.
    pub fn begin(nodes: &[&'a Node]) -> Result<Self> {
        let paused = Self(nodes.to_vec());
        for node in nodes {
            node.pause()?;
        }
        Ok(paused)
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        for node in &self.0 {
            // One that has died meanwhile cannot go on, and whoever needs it will notice.
            let _ = node.resume();
        }
    }
}
