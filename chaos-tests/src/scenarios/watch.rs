//! A watcher whose node is killed again and again sees every change once and in order; two who race for a tag under a
//! condition never both win.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Value, json};

use crate::client::{Client, Method, plain_http};
use crate::cluster::{Cluster, Options};
use crate::image::sha256;
use crate::wait::until_ok;

const REPOSITORY: &str = "watched/app";
const KIND: &str = "application/vnd.example";
const SOON: Duration = Duration::from_secs(20);
/// A change that nobody tells within this time is lost.
const SILENCE: Duration = Duration::from_secs(30);

fn manifest(number: usize) -> Bytes {
    json!({"schemaVersion": 2, "mediaType": KIND, "number": number}).to_string().into()
}

/// Moves a tag `changes` times, kills a node `kills` times, and reads the feed beside it.
pub async fn watch(changes: usize, kills: usize) -> anyhow::Result<()> {
    let cluster = Cluster::start(Options::default()).await?;
    let result = watched(&cluster, changes, kills).await;
    cluster.judged(result)
}

async fn watched(cluster: &Cluster, changes: usize, kills: usize) -> anyhow::Result<()> {
    let start = cluster.client().put_manifest(REPOSITORY, "v", KIND, manifest(changes)).await?.expect(&[201])?;
    let since = start.header("flotilla-revision").context("no revision")?.to_owned();
    let (written, began) = (AtomicUsize::new(0), Instant::now());
    let write = async {
        let client = cluster.client();
        for number in 0..changes {
            // What was not answered is sent again: a tag that is there already does not move.
            let put =
                async || Ok(client.put_manifest(REPOSITORY, "v", KIND, manifest(number)).await?.expect(&[201])?);
            until_ok(SOON, "a manifest is put", put).await?;
            written.store(number + 1, Ordering::Relaxed);
        }
        anyhow::Ok(())
    };
    let kill = async {
        for round in 0..kills {
            let due = changes * (round + 1) / (kills + 1);
            let reached = async || {
                ensure!(written.load(Ordering::Relaxed) >= due, "{} changes", written.load(Ordering::Relaxed));
                Ok(())
            };
            until_ok(Duration::from_secs(300), "changes go on", reached).await?;
            let node = cluster.node(round % cluster.nodes().len());
            node.kill();
            node.restart()?;
            cluster.wait_ready(SOON).await?;
        }
        anyhow::Ok(())
    };
    let mut feed = Feed { urls: cluster.urls(), turn: 0, since, connections: 0, last: Instant::now() };
    let (write, kill, seen) = futures::join!(write, kill, feed.tags(changes));
    write?;
    kill?;
    let seen = seen?;
    let wanted: Vec<String> = (0..changes).map(|number| sha256(&manifest(number))).collect();
    let first = seen.iter().zip(&wanted).position(|(seen, wanted)| seen != wanted);
    ensure!(first.is_none(), "the change number {first:?} is not the one that was made");
    println!("{changes} changes in {:.2?}, each seen once and in order", began.elapsed());
    println!("{kills} nodes killed, {} connections of the watcher", feed.connections);
    Ok(())
}

/// A reader of the feed that goes on at another node after each break.
struct Feed {
    urls: Vec<String>,
    turn: usize,
    since: String,
    connections: usize,
    /// When the last change was told.
    last: Instant,
}

impl Feed {
    /// The digests of the first `count` moves of a tag.
    async fn tags(&mut self, count: usize) -> anyhow::Result<Vec<String>> {
        let mut seen = Vec::new();
        while seen.len() < count {
            // A break is what this is about; only silence is an error.
            let broken = self.follow(count, &mut seen).await.err();
            let reason = broken.map_or_else(|| "the stream ended".into(), |error| format!("{error:#}"));
            ensure!(self.last.elapsed() < SILENCE, "{} of {count} changes, and no more: {reason}", seen.len());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(seen)
    }

    async fn follow(&mut self, count: usize, seen: &mut Vec<String>) -> anyhow::Result<()> {
        self.turn += 1;
        let url = &self.urls[self.turn % self.urls.len()];
        let path = format!("{url}/api/v1/watch?since={}&repository={REPOSITORY}", self.since);
        let reply = plain_http(Duration::from_secs(600)).get(path).send().await?.error_for_status()?;
        self.connections += 1;
        let (mut text, mut chunks) = (Vec::new(), reply.bytes_stream());
        while seen.len() < count {
            // Comments go on coming when changes do not.
            ensure!(self.last.elapsed() < SILENCE, "only comments came");
            let chunk = tokio::time::timeout(SILENCE, chunks.next()).await?;
            let Some(chunk) = chunk else { return Ok(()) };
            text.extend_from_slice(&chunk?);
            while let Some(end) = text.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = text.drain(..end + 2).collect();
                self.take(std::str::from_utf8(&event)?, seen)?;
            }
        }
        Ok(())
    }

    fn take(&mut self, event: &str, seen: &mut Vec<String>) -> anyhow::Result<()> {
        let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let Some(id) = field("id:") else { return Ok(()) };
        self.since = id.to_owned();
        if field("event:") == Some("tag.put") {
            let data: Value = serde_json::from_str(field("data:").context("no data")?)?;
            self.last = Instant::now();
            seen.push(data["digest"].as_str().context("no digest")?.to_owned());
        }
        Ok(())
    }
}

/// Lets two writers race for one tag under `If-Match`, each at another node: exactly one wins each time.
pub async fn races(times: usize) -> anyhow::Result<()> {
    let cluster = Cluster::start(Options::default()).await?;
    let result = raced(&cluster, times).await;
    cluster.judged(result)
}

async fn raced(cluster: &Cluster, times: usize) -> anyhow::Result<()> {
    let clients: Vec<Client> = cluster.nodes().iter().map(|node| cluster.client_of(node)).collect();
    clients[0].put_manifest(REPOSITORY, "raced", KIND, manifest(0)).await?.expect(&[201])?;
    let mut current = sha256(&manifest(0));
    for round in 0..times {
        let bodies = [manifest(2 * round + 1), manifest(2 * round + 2)];
        let condition = format!("\"{current}\"");
        let headers = [("content-type", KIND), ("if-match", condition.as_str())];
        let path = format!("/v2/{REPOSITORY}/manifests/raced");
        let put = |writer: usize| {
            clients[(round + writer) % clients.len()].send(Method::PUT, &path, &headers, bodies[writer].clone())
        };
        let (one, other) = futures::join!(put(0), put(1));
        let statuses = [one?.status, other?.status];
        let winner = match statuses {
            [201, 412] => 0,
            [412, 201] => 1,
            _ => anyhow::bail!("race {round}: {statuses:?}"),
        };
        current = sha256(&bodies[winner]);
        for client in &clients {
            let read = client.manifest(REPOSITORY, "raced").await?.expect(&[200])?;
            ensure!(sha256(&read.body) == current, "race {round}: {} shows another winner", read.request);
        }
    }
    println!("{times} races, exactly one winner each, the same on every node");
    Ok(())
}
