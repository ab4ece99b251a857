//! A cluster of `flotilla dev`: the supervisor, and what it says about its nodes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::client::Client;
use crate::cluster::binary;
use crate::ports;
use crate::process::{self, Signal};
use crate::wait::{until, until_ok};

const NODES: u16 = 3;
const START_LIMIT: Duration = Duration::from_secs(60);
const END_LIMIT: Duration = Duration::from_secs(30);

/// The supervisor of three nodes; killed, and they with it, when this is dropped.
#[derive(Debug)]
pub struct Dev {
    supervisor: Child,
    folder: PathBuf,
}

impl Dev {
    /// Starts it: its data in `data` of that folder, what it says in `dev.log` there.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(folder: &Path, port: u16) -> anyhow::Result<Self> {
        let log = File::create(folder.join("dev.log"))?;
        let mut command = Command::new(binary()?);
        command
            .args(["dev", "--nodes", &NODES.to_string(), "--no-demo", "--port", &port.to_string(), "--data-dir"])
            .arg(folder.join("data"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(Self { supervisor: process::spawn(command)?, folder: folder.to_owned() })
    }

    /// The folder of the cluster, for `--data-dir`.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// What the supervisor writes about its nodes, once each of them is ready.
    ///
    /// # Errors
    /// They are not ready in time; with what it said.
    pub async fn nodes(&self) -> anyhow::Result<Vec<Value>> {
        let log = || fs::read_to_string(self.folder.join("dev.log")).unwrap_or_default();
        until_ok(START_LIMIT, "three ready nodes", async || {
            let text = fs::read_to_string(self.data_dir().join("dev.json")).context("data/dev.json")?;
            let document: Value = serde_json::from_str(&text)?;
            let nodes = document["nodes"].as_array().context("nodes")?.clone();
            ensure!(nodes.len() == usize::from(NODES), "{text}");
            for node in &nodes {
                ensure!(node["pid"].is_u64(), "{text}");
                let url = node["url"].as_str().context("url")?;
                Client::new(vec![url.to_owned()]).get("/readyz").await?.expect(&[200])?;
            }
            Ok(nodes)
        })
        .await
        .with_context(log)
    }

    /// Where clients reach the nodes, once each of them is ready.
    ///
    /// # Errors
    /// As [`Dev::nodes`].
    pub async fn urls(&self) -> anyhow::Result<Vec<String>> {
        Ok(self.nodes().await?.iter().filter_map(|node| Some(node["url"].as_str()?.to_owned())).collect())
    }

    /// SIGTERM; it must end in order.
    ///
    /// # Errors
    /// It does not.
    pub async fn end(&mut self) -> anyhow::Result<()> {
        process::send(&mut self.supervisor, Signal::Terminate)?;
        let ended = async || self.supervisor.try_wait().ok().flatten();
        let status = until(END_LIMIT, "an end after SIGTERM", ended).await?;
        ensure!(status.success(), "it ends with {status}");
        Ok(())
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = process::send(&mut self.supervisor, Signal::Kill);
        let _ = self.supervisor.wait();
    }
}

/// A port for [`Dev::start`].
///
/// # Errors
/// There is none.
pub fn free_base() -> anyhow::Result<u16> {
    ports::free_base(NODES)
}
