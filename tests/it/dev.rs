//! `flotilla dev`: three nodes on one machine by one command.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_tests::client::{Client, Way};
use chaos_tests::cluster::binary;
use chaos_tests::dev::{Dev, free_base};
use chaos_tests::image::Image;
use chaos_tests::wait::until_ok;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dev_runs_three_nodes_says_where_they_are_and_keeps_their_data() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let port = free_base()?;
    let mut dev = Dev::start(folder.path(), port)?;
    let nodes = dev.nodes().await?;
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
    again.nodes().await?;
    for node in 0..3 {
        client.only(node).verify(&pushed).await?;
    }
    again.end().await
}

async fn healthy_by_the_word_of(url: &str) -> Result<()> {
    let program = binary()?;
    until_ok(SOON, "cluster status is healthy", async || {
        let asked = Command::new(&program).args(["cluster", "status", "--json", "--url", url]).output()?;
        let text = String::from_utf8_lossy(&asked.stdout).into_owned();
        ensure!(asked.status.success(), "{}: {text}", asked.status);
        let document: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
        ensure!(document["verdict"] == "healthy" && document["nodes"].as_array().map(Vec::len) == Some(3), "{text}");
        Ok(())
    })
    .await
}
