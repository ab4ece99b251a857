//! Nodes know each other: who is refused on the peer port, with the reason on both sides, and what goes on without a break.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use crate::client::Way;
use crate::cluster::{Cluster, Node, Options};
use crate::image::Image;
use crate::wait::until_ok;
use crate::webhooks::Files;
use anyhow::{Context, Result, bail, ensure};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use serde_json::Value;

use super::each_part;
use crate::fixture::{GROWN, SOON, each, flotilla, peer_client, push_small};

const REFUSED: &str = "flotilla_peer_refused_total";

/// All of it, one after the other.
///
/// # Errors
/// The first that was not so.
pub async fn peers() -> Result<()> {
    each_part!(
        strangers_other_clusters_and_ended_certificates_are_refused,
        a_node_with_another_secret_and_one_of_another_cluster_hear_why,
        a_token_lets_one_node_join_and_ends,
        the_authority_is_rotated_under_load_and_no_request_between_nodes_fails,
        a_rotation_is_finished_without_a_node_that_is_away_and_that_node_comes_back,
        a_node_that_missed_a_rotation_comes_back_by_a_token,
        certificates_are_renewed_while_nodes_run,
        an_open_cluster_is_closed_by_a_restart_with_a_secret,
        certificates_of_the_operators_are_used,
    );
    Ok(())
}

/// What a node says of itself to whoever may know.
async fn identity(node: &Node, pem: Option<&str>) -> Result<(u16, String)> {
    let url = format!("{}/peer/v1/raft/identity", node.peer_url);
    let answer = peer_client(pem)?.post(url).header("connection", "close").body("").send().await?;
    Ok((answer.status().as_u16(), answer.text().await?))
}

/// There is no answer, and the innermost reason is this one. With TLS 1.3 the client is done before its certificate is
/// looked at, so now and then it sees its connection end before it read why, and asks again, as nodes do.
async fn is_refused(node: &Node, pem: &str, reason: &str) -> Result<()> {
    until_ok(SOON, &format!("it is refused: {reason}"), async || match identity(node, Some(pem)).await {
        Ok(answer) => bail!("an answer: {answer:?}"),
        Err(error) => {
            let said = format!("{error:#}");
            ensure!(said.contains(reason), "{said}");
            Ok(())
        }
    })
    .await
}

async fn has_said(node: &Node, words: &[&str]) -> Result<()> {
    until_ok(SOON, &format!("{} says {words:?}", node.name), async || {
        let log = node.log();
        let said = log.lines().any(|line| words.iter().all(|word| line.contains(word)));
        ensure!(said, "{}", node.log_tail());
        Ok(())
    })
    .await
}

fn file(node: &Node, name: &str) -> Result<String> {
    let path = node.data_dir.join("tls").join(name);
    std::fs::read_to_string(&path).with_context(|| path.display().to_string())
}

fn authorities(node: &Node) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(node.data_dir.join("tls"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with("authority-") {
            found.push(name);
        }
    }
    Ok(found)
}

/// A certificate and key (PEM) as a node has them, signed by this authority (PEM) or, without one, by itself.
fn forged(authority: Option<&str>, name: &str, ends: SystemTime) -> Result<String> {
    let mut parameters = CertificateParams::default();
    parameters.not_before = (SystemTime::now() - Duration::from_secs(7200)).into();
    parameters.not_after = ends.into();
    parameters.subject_alt_names = vec![SanType::URI(name.try_into()?)];
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate()?;
    let certificate = match authority {
        Some(pem) => {
            let start = pem.find("-----BEGIN CERTIFICATE").context("a certificate")?;
            let issuer = Issuer::from_ca_cert_pem(&pem[start..], KeyPair::from_pem(pem)?)?;
            parameters.signed_by(&key, &issuer)?
        }
        None => parameters.self_signed(&key)?,
    };
    Ok(format!("{}{}", key.serialize_pem(), certificate.pem()))
}

fn in_an_hour() -> SystemTime {
    SystemTime::now() + Duration::from_secs(3600)
}

async fn cluster_id(cluster: &Cluster) -> Result<String> {
    let document = each(cluster)[0].get("/api/v1/cluster").await?.expect(&[200])?.json();
    document["cluster_id"].as_str().map(str::to_owned).context("an id")
}

/// Unknown peers, ended certificates, plain HTTP: refused, with the reason on both sides.
///
/// # Errors
/// It was not so.
pub async fn strangers_other_clusters_and_ended_certificates_are_refused() -> Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    let result = refused(&mut cluster).await;
    cluster.judged(result)
}

async fn refused(cluster: &mut Cluster) -> Result<()> {
    let node = cluster.node(0);
    let id = cluster_id(cluster).await?;
    let before = cluster.metric(node, REFUSED).await?;
    // A certificate of the cluster: the request is read, and found to be none.
    let own = file(cluster.node(1), "node.pem")?;
    let (status, text) = identity(node, Some(&own)).await?;
    ensure!(status == 200, "{status} {text}");

    let (status, text) = identity(node, None).await?;
    ensure!(status == 403 && text.contains("no certificate was shown"), "{status} {text}");
    has_said(node, &["refused", "no certificate was shown"]).await?;

    let stranger = forged(None, &format!("flotilla://{id}/0000000000ff"), in_an_hour())?;
    is_refused(node, &stranger, "UnknownCA").await?;
    has_said(node, &["refused", "no authority that this node trusts", "0000000000ff"]).await?;

    let authority = file(node, authorities(node)?.first().context("n1 holds the key")?)?;
    let name = format!("flotilla://{id}/0000000000fe");
    let expired = forged(Some(&authority), &name, SystemTime::now() - Duration::from_secs(10))?;
    is_refused(node, &expired, "CertificateExpired").await?;
    has_said(node, &["refused", "has expired", "0000000000fe"]).await?;

    // Good, but of no member: it may say who it is, and ask for nothing else.
    let outsider = forged(Some(&authority), &name, in_an_hour())?;
    let call = |path: &str| {
        let (client, url) = (peer_client(Some(&outsider)), format!("{}/peer/v1/{path}", node.peer_url));
        async move { Ok::<_, anyhow::Error>(client?.post(url).send().await?) }
    };
    let answer = call("raft/propose").await?;
    ensure!(answer.status() == 403 && answer.text().await?.contains("no member of this cluster"));
    has_said(node, &["refused", "no member of this cluster", "0000000000fe"]).await?;

    // One that was signed two hours ago, as a removed node has it, does not join.
    let answer = call("raft/join").await?;
    ensure!(answer.status() == 403 && answer.text().await?.contains("no member of this cluster"));

    // Plain HTTP does not get as far as that.
    let plain = node.peer_url.replace("https:", "http:");
    let answer = reqwest::Client::builder().no_proxy().build()?.post(format!("{plain}/peer/v1/raft/identity")).send();
    ensure!(answer.await.is_err(), "plain HTTP was answered");
    has_said(node, &["not TLS"]).await?;
    ensure!(cluster.metric(node, REFUSED).await? >= before + 5.0);
    push_small(cluster, "refused/app", "v1").await?;
    comes_back(cluster, &authority).await
}

/// A node whose certificate ended while it was away hears that, and is helped by what proves that it may join.
async fn comes_back(cluster: &mut Cluster, authority: &str) -> Result<()> {
    cluster.node(2).kill();
    let id = std::fs::read_to_string(cluster.node(2).data_dir.join("node.id"))?;
    let name = format!("flotilla://{}/{}", cluster_id(cluster).await?, id.trim());
    let ended = forged(Some(authority), &name, SystemTime::now() - Duration::from_secs(10))?;
    std::fs::write(cluster.node(2).data_dir.join("tls/node.pem"), ended)?;
    let arguments = cluster.node_mut(2).arguments_mut();
    let at = arguments.iter().position(|argument| argument == "--join-secret-file").context("it was given one")?;
    let secret: Vec<String> = arguments.drain(at..at + 2).collect();
    cluster.node(2).restart()?;
    has_said(cluster.node(2), &["a node refuses this one", "CertificateExpired"]).await?;
    has_said(cluster.node(0), &["a call to the peer port is refused", "has expired", id.trim()]).await?;
    cluster.node(2).kill();
    cluster.node_mut(2).arguments_mut().extend(secret);
    cluster.node(2).restart()?;
    cluster.wait_ready(GROWN).await?;
    nobody_is_missing(cluster).await
}

/// Another secret, another cluster: refused, with the reason on both sides.
///
/// # Errors
/// It was not so.
pub async fn a_node_with_another_secret_and_one_of_another_cluster_hear_why() -> Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    let result = not_believed(&mut cluster).await;
    cluster.judged(result)
}

async fn not_believed(cluster: &mut Cluster) -> Result<()> {
    let secret = cluster.folder().join("other.secret");
    std::fs::write(&secret, "0123456789abcdef0123456789abcdef\n")?;
    let secret = secret.display().to_string();
    cluster.add(&["--join-secret-file", &secret])?;
    has_said(cluster.node(3), &["is refused", "no authority that this node trusts"]).await?;
    has_said(cluster.node(0), &["the caller refuses this node", "UnknownCA"]).await?;
    cluster.node(3).kill();

    let other = Cluster::start(Options { nodes: 1, ..Options::default() }).await?;
    other.node(0).stop().await?;
    let our_id = cluster_id(cluster).await?;
    let foreign = cluster.prepare(&["--join-secret-file", &secret])?;
    let done =
        std::process::Command::new("cp").arg("-r").arg(&other.node(0).data_dir).arg(&foreign.data_dir).status()?;
    ensure!(done.success());
    foreign.restart()?;
    has_said(cluster.node(4), &["is refused", "of another cluster", &our_id]).await?;
    has_said(cluster.node(0), &["the caller refuses this node", "AccessDenied"]).await?;
    cluster.node(4).kill();

    let (done, said) = flotilla(&[
        "serve",
        "--peers",
        "127.0.0.1:9,127.0.0.1:10",
        "--peer-listen",
        "127.0.0.1:10",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        &cluster.folder().join("lost").display().to_string(),
    ])
    .await?;
    ensure!(!done && said.contains("join_secret_file") && said.contains("insecure_peers"), "{said}");
    push_small(cluster, "refused/app", "v1").await.map(drop)
}

/// A token lets one node join, once, until it ends.
///
/// # Errors
/// It was not so.
pub async fn a_token_lets_one_node_join_and_ends() -> Result<()> {
    let mut cluster = Cluster::start(Options { nodes: 1, join_secret: false, ..Options::default() }).await?;
    let result = tokens(&mut cluster).await;
    cluster.judged(result)
}

async fn token(cluster: &Cluster, name: &str, ttl: &str) -> Result<String> {
    let (done, said) = flotilla(&["node", "token", "create", "--ttl", ttl, "--url", &cluster.node(0).url]).await?;
    ensure!(done && said.starts_with("flotilla-join:"), "{said}");
    let file = cluster.folder().join(name);
    std::fs::write(&file, said)?;
    Ok(file.display().to_string())
}

async fn tokens(cluster: &mut Cluster) -> Result<()> {
    let good = token(cluster, "good.token", "1h").await?;
    cluster.add(&["--join-token-file", &good])?;
    cluster.wait_ready(SOON).await?;
    ensure!(cluster.status(cluster.node(0)).await?.member("n2").is_some());
    push_small(cluster, "token/app", "v1").await?;
    // Once it belongs, it needs its token no more.
    std::fs::remove_file(&good)?;
    cluster.node(1).kill();
    let arguments = cluster.node_mut(1).arguments_mut();
    let at = arguments.iter().position(|argument| argument == "--join-token-file").context("it was given one")?;
    arguments.drain(at..at + 2);
    cluster.node(1).restart()?;
    cluster.wait_ready(SOON).await?;

    let twice = token(cluster, "twice.token", "1h").await?;
    cluster.add(&["--join-token-file", &twice])?;
    cluster.wait_ready(SOON).await?;
    cluster.add(&["--join-token-file", &twice])?;
    has_said(cluster.node(3), &["the token has been used by another node"]).await?;
    has_said(cluster.node(0), &["gets no certificate", "the token has been used by another node"]).await?;
    cluster.node(3).kill();

    let short = token(cluster, "short.token", "1s").await?;
    until_ok(SOON, "the token has ended", async || {
        let listed = each(cluster)[0].get("/api/v1/tokens").await?.expect(&[200])?.json();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        let last = listed["tokens"].as_array().and_then(|tokens| tokens.last()?["ends_at"].as_u64());
        ensure!(last.is_some_and(|ends| ends + 1 < now), "{listed}");
        Ok(())
    })
    .await?;
    cluster.add(&["--join-token-file", &short])?;
    has_said(cluster.node(4), &["the token has ended"]).await?;
    has_said(cluster.node(0), &["gets no certificate", "the token has ended"]).await?;
    cluster.node(4).kill();
    let members = cluster.status(cluster.node(0)).await?.nodes;
    ensure!(members.len() == 3, "{members:?}");
    Ok(())
}

/// Small images are pushed to all nodes in turn, as long as this lives; none may fail.
struct Load {
    ends: Arc<AtomicBool>,
    pushed: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<Result<()>>,
}

impl Load {
    fn start(cluster: &Cluster, repository: &'static str) -> Self {
        let clients = each(cluster);
        let (ends, pushed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ended, counted) = (ends.clone(), pushed.clone());
        let task = tokio::spawn(async move {
            for (number, client) in clients.iter().cycle().enumerate() {
                if ended.load(Ordering::Relaxed) {
                    break;
                }
                // Large enough to be files that nodes copy to each other.
                let image = Image::random(&mut rand::rng(), &[200_000]);
                client.push(repository, &format!("v{}", number % 10), &image, Way::Put).await?;
                counted.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        Self { ends, pushed, task }
    }

    async fn end(self) -> Result<u64> {
        self.ends.store(true, Ordering::Relaxed);
        self.task.await??;
        Ok(self.pushed.load(Ordering::Relaxed))
    }
}

/// What each node has refused so far. While a cluster is founded, a call may come before its caller's certificate is used.
async fn refusals(cluster: &Cluster) -> Result<Vec<f64>> {
    let mut refused = Vec::new();
    for node in cluster.nodes() {
        refused.push(cluster.metric(node, REFUSED).await?);
    }
    Ok(refused)
}

async fn nobody_was_refused_since(cluster: &Cluster, before: &[f64]) -> Result<()> {
    let after = refusals(cluster).await?;
    let logs = || cluster.nodes().iter().map(|node| node.log_tail()).collect::<Vec<_>>().join("\n");
    ensure!(after == before, "{before:?} refusals, then {after:?}: {}", logs());
    Ok(())
}

async fn authority_of(cluster: &Cluster, asked: usize) -> Result<Value> {
    until_ok(SOON, "the node knows its authority", async || {
        Ok(each(cluster)[asked].get("/api/v1/authority").await?.expect(&[200])?.json())
    })
    .await
}

/// The authority is rotated twice under load; no request between nodes fails.
///
/// # Errors
/// It was not so.
pub async fn the_authority_is_rotated_under_load_and_no_request_between_nodes_fails() -> Result<()> {
    let cluster = Cluster::start(Options::default()).await?;
    let result = rotated(&cluster).await;
    cluster.judged(result)
}

async fn rotated(cluster: &Cluster) -> Result<()> {
    until_ok(SOON, "all voters hold the key", async || {
        for node in cluster.nodes() {
            ensure!(authorities(node)?.len() == 1, "{}", node.name);
        }
        Ok(())
    })
    .await?;
    let before = authority_of(cluster, 0).await?["authorities"][0]["fingerprint"].clone();
    let old = file(cluster.node(0), "node.pem")?;
    let refused = refusals(cluster).await?;
    let load = Load::start(cluster, "rotated/app");
    for _ in 0..2 {
        let (done, said) = flotilla(&["node", "rotate-authority", "--url", &cluster.node(1).url]).await?;
        ensure!(done && said.contains("done: the authority is"), "{said}");
    }
    let pushed = load.end().await?;
    ensure!(pushed > 5, "only {pushed} pushes meanwhile");
    nobody_was_refused_since(cluster, &refused).await?;
    let after = authority_of(cluster, 2).await?;
    ensure!(after["authorities"].as_array().is_some_and(|all| all.len() == 1), "{after}");
    let signer = &after["authorities"][0]["fingerprint"];
    ensure!(*signer != before, "{after}");
    let nodes = after["nodes"].as_array().context("nodes")?;
    ensure!(nodes.len() == 3 && nodes.iter().all(|node| node["signed_by"] == *signer), "{after}");
    for node in cluster.nodes() {
        until_ok(SOON, "the old key is gone", async || {
            let held = authorities(node)?;
            ensure!(
                held.len() == 1 && signer.as_str().is_some_and(|signer| held[0].contains(&signer[..16])),
                "{held:?}"
            );
            Ok(())
        })
        .await?;
        is_refused(node, &old, "UnknownCA").await?;
    }
    Ok(())
}

/// A rotation is finished without a node that is away.
///
/// # Errors
/// It was not so.
pub async fn a_rotation_is_finished_without_a_node_that_is_away_and_that_node_comes_back() -> Result<()> {
    let cluster = Cluster::start(Options::default()).await?;
    let result = finished(&cluster).await;
    cluster.judged(result)
}

async fn finished(cluster: &Cluster) -> Result<()> {
    push_small(cluster, "finished/app", "v1").await?;
    cluster.node(2).kill();
    let post = async |path: &str| each(cluster)[0].send(crate::client::Method::POST, path, &[], "".into()).await;
    until_ok(SOON, "the rotation begins", async || Ok(post("/api/v1/authority/rotate").await?.expect(&[202])?)).await?;
    let waits = authority_of(cluster, 1).await?;
    ensure!(waits["waits_for"].as_array().is_some_and(|names| names.iter().any(|name| *name == "n3")), "{waits}");
    let (done, said) = flotilla(&["node", "rotate-authority", "--finish", "--url", &cluster.node(0).url]).await?;
    ensure!(done && said.contains("done"), "{said}");
    cluster.node(2).restart()?;
    cluster.wait_ready(GROWN).await?;
    push_small(cluster, "finished/app", "v2").await?;
    until_ok(SOON, "it has caught up", async || {
        cluster.client_of(cluster.node(2)).manifest("finished/app", "v2").await?.expect(&[200])?;
        Ok(())
    })
    .await
}

/// The same, of a node that knows no join secret: it proves by a token that it belongs.
///
/// # Errors
/// It was not so.
pub async fn a_node_that_missed_a_rotation_comes_back_by_a_token() -> Result<()> {
    let mut cluster = Cluster::start(Options { nodes: 1, join_secret: false, ..Options::default() }).await?;
    let result = back_by_a_token(&mut cluster).await;
    cluster.judged(result)
}

async fn back_by_a_token(cluster: &mut Cluster) -> Result<()> {
    let file = token(cluster, "join.token", "1h").await?;
    cluster.add(&["--join-token-file", &file])?;
    cluster.wait_ready(SOON).await?;
    cluster.node(1).kill();
    let post = async |path: &str| each(cluster)[0].send(crate::client::Method::POST, path, &[], "".into()).await;
    until_ok(SOON, "the rotation begins", async || Ok(post("/api/v1/authority/rotate").await?.expect(&[202])?)).await?;
    let (done, said) = flotilla(&["node", "rotate-authority", "--finish", "--url", &cluster.node(0).url]).await?;
    ensure!(done && said.contains("done"), "{said}");
    cluster.node(1).restart()?;
    has_said(cluster.node(0), &["unknown_authority"]).await?;
    push_small(cluster, "missed/app", "v1").await?;
    cluster.node(1).kill();
    token(cluster, "join.token", "1h").await?;
    cluster.node(1).restart()?;
    until_ok(GROWN, "it has caught up", async || {
        cluster.client_of(cluster.node(1)).manifest("missed/app", "v1").await?.expect(&[200])?;
        Ok(())
    })
    .await
}

/// Certificates are renewed while nodes run.
///
/// # Errors
/// It was not so.
pub async fn certificates_are_renewed_while_nodes_run() -> Result<()> {
    let cluster = Cluster::start(Options::with_args(["--peer-tls-lifetime", "24s"])).await?;
    let result = renewed(&cluster).await;
    cluster.judged(result)
}

async fn renewed(cluster: &Cluster) -> Result<()> {
    const ENDS: &str = "flotilla_peer_certificate_ends_timestamp_seconds";
    let mut first = Vec::new();
    for node in cluster.nodes() {
        first.push(cluster.metric(node, ENDS).await?);
    }
    let refused = refusals(cluster).await?;
    let load = Load::start(cluster, "renewed/app");
    // Past the end of the certificates that they began with, and of those after.
    until_ok(GROWN, "each node has its third certificate", async || {
        for (node, first) in cluster.nodes().iter().zip(&first) {
            let ends = cluster.metric(node, ENDS).await?;
            ensure!(ends >= first + 25.0, "{}: {ends}, first {first}", node.name);
        }
        Ok(())
    })
    .await?;
    load.end().await?;
    nobody_was_refused_since(cluster, &refused).await
}

/// An open cluster is closed by a restart with a secret.
///
/// # Errors
/// It was not so.
pub async fn an_open_cluster_is_closed_by_a_restart_with_a_secret() -> Result<()> {
    let options = Options { join_secret: false, ..Options::with_args(["--insecure-peers"]) };
    let mut cluster = Cluster::start(options).await?;
    let result = closed(&mut cluster).await;
    cluster.judged(result)
}

async fn closed(cluster: &mut Cluster) -> Result<()> {
    let (image, _) = push_small(cluster, "closed/app", "v1").await?;
    has_said(cluster.node(0), &["WARN", "the peer port is open"]).await?;
    let reply = each(cluster)[0].get("/api/v1/authority").await?;
    ensure!(reply.status == 404 && reply.text().contains("insecure_peers"), "{}", reply.text());
    let secret = cluster.folder().join("join.secret");
    std::fs::write(&secret, "0123456789abcdef0123456789abcdef")?;
    for number in 0..3 {
        cluster.node(number).kill();
        let arguments = cluster.node_mut(number).arguments_mut();
        arguments.retain(|argument| argument != "--insecure-peers");
        arguments.extend(["--join-secret-file".to_owned(), secret.display().to_string()]);
    }
    for node in cluster.nodes() {
        node.restart()?;
    }
    cluster.wait_ready(GROWN).await?;
    each(cluster)[2].manifest("closed/app", "v1").await?.expect(&[200])?;
    each(cluster)[1].push("closed/app", "v2", &image, Way::Put).await?;
    let known = authority_of(cluster, 0).await?;
    ensure!(known["authorities"].as_array().is_some_and(|all| all.len() == 1), "{known}");
    Ok(())
}

/// Certificates of the operators are used.
///
/// # Errors
/// It was not so.
pub async fn certificates_of_the_operators_are_used() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let files = Files::make(&folder.path().join("certificates"))?;
    let text = |path: &Path| path.display().to_string();
    let (cert, key, ca) = (text(&files.cert), text(&files.key), text(&files.authority));
    let arguments = ["--peer-tls-cert", &cert, "--peer-tls-key", &key, "--peer-tls-ca", &ca];
    let cluster = Cluster::start(Options { join_secret: false, ..Options::with_args(arguments) }).await?;
    let result = operators(&cluster).await;
    cluster.judged(result)
}

async fn operators(cluster: &Cluster) -> Result<()> {
    push_small(cluster, "files/app", "v1").await?;
    is_refused(cluster.node(0), &forged(None, "flotilla://x/1", in_an_hour())?, "UnknownCA").await?;
    nobody_is_missing(cluster).await
}

async fn nobody_is_missing(cluster: &Cluster) -> Result<()> {
    until_ok(SOON, "all see each other", async || {
        let status = cluster.status(cluster.node(1)).await?;
        ensure!(status.nodes.iter().all(|node| node.reachable), "{:?}", status.nodes);
        Ok(())
    })
    .await
}
