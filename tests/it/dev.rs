//! `flotilla dev`: three nodes on one machine by one command.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_tests::client::{Client, Way};
use chaos_tests::cluster::binary;
use chaos_tests::image::Image;
use chaos_tests::process::{self, Signal};
use chaos_tests::wait::{until, until_ok};
use rand::Rng;
use serde_json::Value;

const START_LIMIT: Duration = Duration::from_secs(60);
const END_LIMIT: Duration = Duration::from_secs(30);

/// The supervisor; killed when the test ends early.
struct Dev(Child);

impl Dev {
    fn start(folder: &Path, port: u16) -> Result<Self> {
        let log = fs::File::create(folder.join("dev.log"))?;
        let mut command = Command::new(binary()?);
        command
            .args(["dev", "--nodes", "3", "--no-demo", "--port", &port.to_string(), "--data-dir"])
            .arg(folder.join("data"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(Self(process::spawn(command)?))
    }

    /// What it writes about its nodes, once each of them is ready.
    async fn nodes(&mut self, folder: &Path) -> Result<Vec<Value>> {
        let log = || fs::read_to_string(folder.join("dev.log")).unwrap_or_default();
        until_ok(START_LIMIT, "three ready nodes", async || {
            let text = fs::read_to_string(folder.join("data/dev.json")).context("data/dev.json")?;
            let document: Value = serde_json::from_str(&text)?;
            let nodes = document["nodes"].as_array().context("nodes")?.clone();
            ensure!(nodes.len() == 3, "{text}");
            for node in &nodes {
                let url = node["url"].as_str().context("url")?;
                Client::new(vec![url.to_owned()]).get("/readyz").await?.expect(&[200])?;
            }
            Ok(nodes)
        })
        .await
        .with_context(log)
    }

    /// SIGTERM; it must end in order.
    async fn end(&mut self) -> Result<()> {
        process::send(&mut self.0, Signal::Terminate)?;
        let status = until(END_LIMIT, "an end after SIGTERM", async || self.0.try_wait().ok().flatten()).await?;
        ensure!(status.success(), "it ends with {status}");
        Ok(())
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = process::send(&mut self.0, Signal::Kill);
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dev_runs_three_nodes_says_where_they_are_and_keeps_their_data() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let port = free_base()?;
    let mut dev = Dev::start(folder.path(), port)?;
    let nodes = dev.nodes(folder.path()).await?;
    let urls: Vec<String> = nodes.iter().filter_map(|node| Some(node["url"].as_str()?.to_owned())).collect();
    let expected: Vec<String> = (port..port + 3).map(|port| format!("http://127.0.0.1:{port}")).collect();
    ensure!(urls == expected, "{urls:?}");
    for node in &nodes {
        ensure!(["name", "id", "peer_url", "data_dir"].iter().all(|key| node[*key].is_string()), "{node}");
        ensure!(node["pid"].as_u64().is_some_and(|pid| Path::new(&format!("/proc/{pid}")).exists()), "{node}");
    }

    let client = Client::new(urls.clone());
    let pushed = client.push("dev/app", "v1", &Image::mixed(&mut rand::rng()), Way::Put).await?;
    for (node, url) in urls.iter().enumerate() {
        client.only(node).verify(&pushed).await?;
        healthy_by_the_word_of(url).await?;
    }
    dev.end().await?;
    for url in &urls {
        ensure!(client.get("/healthz").await.is_err(), "{url} still answers");
    }

    let mut again = Dev::start(folder.path(), port)?;
    again.nodes(folder.path()).await?;
    for node in 0..3 {
        client.only(node).verify(&pushed).await?;
    }
    again.end().await
}

async fn healthy_by_the_word_of(url: &str) -> Result<()> {
    let program = binary()?;
    until_ok(END_LIMIT, "cluster status is healthy", async || {
        let asked = Command::new(&program).args(["cluster", "status", "--json", "--url", url]).output()?;
        let text = String::from_utf8_lossy(&asked.stdout).into_owned();
        ensure!(asked.status.success(), "{}: {text}", asked.status);
        let document: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
        ensure!(document["verdict"] == "healthy" && document["nodes"].as_array().map(Vec::len) == Some(3), "{text}");
        Ok(())
    })
    .await
}

/// The first of three ports in a row that are free, as are those 1,000 above them.
fn free_base() -> Result<u16> {
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    (0..200)
        .map(|_| rand::rng().random_range(12_000..30_000))
        .find(|base| (0..3).all(|offset| free(base + offset) && free(base + 1_000 + offset)))
        .context("no free ports on 127.0.0.1")
}
