//! The cluster that the tests share, and what most of them need.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use chaos_tests::client::{Client, Method, Reply};
use chaos_tests::cluster::{Cluster, Options};
pub(crate) use chaos_tests::fixture::{SOON, each, flotilla, peer_client, push_small};
use chaos_tests::raw::{Connection, Head};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::OnceCell;

/// The shared nodes' limit for a body that stands still.
pub(crate) const BODY_TIMEOUT: Duration = Duration::from_secs(5);
pub(crate) const ZEROS: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime"));
/// A cluster that could not start is not started again by the next test.
static SHARED: OnceCell<Result<&'static Cluster, String>> = OnceCell::const_new();

/// A test of each of these parts of a scenario.
macro_rules! runs {
    ($scenario:ident: $($part:ident),+ $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $part() -> anyhow::Result<()> {
                chaos_tests::scenarios::$scenario::$part().await
            }
        )+
    };
}
pub(crate) use runs;

/// Runs a test on the shared cluster.
pub(crate) fn on_cluster(test: impl AsyncFnOnce(&'static Cluster) -> Result<()>) -> Result<()> {
    RUNTIME.block_on(async {
        let started = SHARED
            .get_or_init(async || {
                let options = Options::with_args(["--body-timeout", "5s"]);
                Cluster::start(options).await.map(Cluster::shared).map_err(|error| format!("{error:?}"))
            })
            .await;
        let cluster = started.as_ref().map_err(|error| anyhow!("no cluster: {error}"))?;
        test(cluster).await
    })
}

/// Runs a test on a cluster of its own, whose nodes it may stop.
pub(crate) fn on_own_cluster(test: impl AsyncFnOnce(&Cluster) -> Result<()>) -> Result<()> {
    RUNTIME.block_on(async {
        let cluster = Cluster::start(Options::default()).await?;
        let result = test(&cluster).await;
        cluster.judged(result)
    })
}

/// Sends a request and wants one of the statuses; the reply.
pub(crate) async fn want(
    client: &Client,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
    statuses: &[u16],
) -> Result<Reply> {
    Ok(client.send(method, path, headers, body.into()).await?.expect(statuses)?)
}

/// The status is one of these, the body an OCI error, its code one of those (any, if none is named).
pub(crate) fn is_error(reply: &Reply, statuses: &[u16], codes: &[&str]) -> Result<()> {
    let said = || format!("{} → {} {}", reply.request, reply.status, reply.text());
    ensure!(statuses.contains(&reply.status), "{}, wanted {statuses:?}", said());
    let content_type = reply.header("content-type").unwrap_or_default();
    ensure!(content_type.starts_with("application/json"), "{} as {content_type:?}", said());
    let found = reply.codes();
    ensure!(!found.is_empty(), "{}: no code", said());
    ensure!(reply.json()["errors"][0]["message"].is_string(), "{}: no message", said());
    ensure!(
        codes.is_empty() || found.iter().any(|code| codes.contains(&code.as_str())),
        "{}, wanted {codes:?}",
        said()
    );
    Ok(())
}

/// The header must have exactly this value.
pub(crate) fn has(reply: &Reply, header: &str, value: &str) -> Result<()> {
    ensure!(
        reply.header(header) == Some(value),
        "{}: {header} is {:?}, wanted {value}",
        reply.request,
        reply.header(header)
    );
    Ok(())
}

/// The tags of a repository by the word of one node, without pages.
pub(crate) async fn tags_of(client: &Client, repository: &str) -> Result<Vec<String>> {
    let reply = client.get(&format!("/v2/{repository}/tags/list")).await?.expect(&[200])?;
    tags_in(&reply)
}

/// The tags of one page.
pub(crate) fn tags_in(reply: &Reply) -> Result<Vec<String>> {
    let document = reply.json();
    let tags = document["tags"].as_array().with_context(|| format!("{}: {}", reply.request, reply.text()))?;
    tags.iter().map(|tag| tag.as_str().map(str::to_owned).context("a tag is text")).collect()
}

/// The blob is at every node, by HEAD and byte for byte.
pub(crate) async fn blob_everywhere(
    cluster: &Cluster,
    repository: &str,
    digest: &str,
    size_bytes: usize,
) -> Result<()> {
    for client in each(cluster) {
        let head = client.head(&format!("/v2/{repository}/blobs/{digest}")).await?.expect(&[200])?;
        has(&head, "content-length", &size_bytes.to_string())?;
        has(&head, "docker-content-digest", digest)?;
        ensure!(client.pull_blob(repository, digest).await? == size_bytes as u64, "{}", head.request);
    }
    Ok(())
}

/// The manifest is at every node with these bytes and this type.
pub(crate) async fn manifest_everywhere(
    cluster: &Cluster,
    repository: &str,
    references: &[&str],
    bytes: &[u8],
    media_type: &str,
) -> Result<()> {
    for client in each(cluster) {
        for reference in references {
            let reply = client.manifest(repository, reference).await?.expect(&[200])?;
            ensure!(reply.body == bytes, "{}: {} other bytes", reply.request, reply.body.len());
            has(&reply, "content-type", media_type)?;
        }
    }
    Ok(())
}

/// The manifest is at no node.
pub(crate) async fn manifest_nowhere(cluster: &Cluster, repository: &str, reference: &str) -> Result<()> {
    for client in each(cluster) {
        let reply = client.manifest(repository, reference).await?;
        is_error(&reply, &[404], &["MANIFEST_UNKNOWN", "NAME_UNKNOWN"])?;
    }
    Ok(())
}

/// The blob is at no node.
pub(crate) async fn blob_nowhere(cluster: &Cluster, repository: &str, digest: &str) -> Result<()> {
    for client in each(cluster) {
        client.head(&format!("/v2/{repository}/blobs/{digest}")).await?.expect(&[404])?;
    }
    Ok(())
}

/// How far an upload is, by the word of one node: its `Range`.
pub(crate) async fn progress(client: &Client, location: &str) -> Result<Option<String>> {
    let reply = client.get(location).await?.expect(&[204])?;
    ensure!(reply.header("location").is_some(), "{}: no Location", reply.request);
    Ok(reply.header("range").map(str::to_owned))
}

/// Whether an upload's `Range` says that nothing has come.
pub(crate) fn nothing_yet(range: Option<&str>) -> bool {
    range.is_none_or(|range| range == "0-0")
}

/// A GET by hand, without any header that is not given; head and body.
pub(crate) async fn raw_get(url: &str, path: &str, headers: &[&str]) -> Result<(Head, Vec<u8>)> {
    let mut connection = Connection::open(url).await?;
    connection.request("GET", path, headers).await?;
    let head = connection.head(SOON).await?;
    let length = head.header("content-length").context("a length")?.parse()?;
    Ok((head, connection.body(length, SOON).await?))
}

/// Files below a data directory that are no part of log or state.
pub(crate) fn files_beside_metadata(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    // A folder or file may go while this looks at it: nodes run meanwhile.
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        match entry.metadata() {
            Ok(kind) if kind.is_dir() && !name.starts_with("raft") && !name.starts_with("state") => {
                found.extend(files_beside_metadata(&entry.path()));
            }
            Ok(kind) if kind.is_file() => found.push((entry.path(), kind.len())),
            Ok(_) | Err(_) => {}
        }
    }
    found
}
