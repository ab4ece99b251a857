//! The official conformance program of the OCI distribution specification, with everything on: against one node, and
//! through a balancer that sends each request to another node.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_tests::balancer::Balancer;
use chaos_tests::client::Method;
use chaos_tests::cluster::Cluster;
use chaos_tests::tools;
use tokio::process::Command;
use tokio::time::timeout;

use crate::fixture::{each, on_own_cluster, want};

/// Everything that a conforming registry is asked, in this version of the program.
const CHECKS: u64 = 1032;
const PATIENCE: Duration = Duration::from_secs(300);
/// Into the run, which takes some seconds.
const KILLED_AFTER: Duration = Duration::from_secs(1);

#[test]
fn the_official_conformance_program_passes_on_one_node_and_over_all() -> Result<()> {
    let Some([program]) = tools::find(["conformance"])? else { return Ok(()) };
    on_own_cluster(async |cluster| {
        allow_sparse_images(cluster).await?;
        let balancer = Balancer::start(&cluster.urls()).await?;
        for (name, url) in [("one node", &cluster.urls()[0]), ("three nodes", &balancer.url)] {
            let totals = run(&program, url).await.context(name)?;
            println!("conformance, {name}: {totals:?}");
            passed(&totals).context(name)?;
        }
        Ok(())
    })
}

/// `make conformance`. The clients' requests go to the nodes that do not lead, each to the next: a request or an upload
/// session that is on the dying node itself dies with it, and this program tries nothing twice.
#[test]
#[ignore = "`make conformance` runs it"]
fn the_official_conformance_program_passes_while_the_leader_is_killed() -> Result<()> {
    let Some([program]) = tools::find(["conformance"])? else { return Ok(()) };
    on_own_cluster(async |cluster| {
        allow_sparse_images(cluster).await?;
        let leader = cluster.leader().await?;
        let others: Vec<String> =
            cluster.nodes().iter().filter(|node| node.name != leader.name).map(|node| node.url.clone()).collect();
        let balancer = Balancer::start(&others).await?;
        let killed = async {
            tokio::time::sleep(KILLED_AFTER).await;
            leader.kill();
            println!("{}, the leader, is killed", leader.name);
        };
        let (totals, ()) = futures::join!(run(&program, &balancer.url), killed);
        let totals = totals?;
        println!("conformance, the leader killed: {totals:?}");
        passed(&totals)?;
        ensure!(cluster.leader().await?.name != leader.name, "another node leads by now");
        Ok(())
    })
}

/// The README's badge says what the tests above demand.
#[test]
fn the_badge_tells_the_truth() -> Result<()> {
    let badge = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/conformance.svg"))?;
    let told = format!("{},{:03} checks pass", CHECKS / 1000, CHECKS % 1000);
    ensure!(badge.matches(&told).count() >= 1, "the badge does not say «{told}»");
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md"))?;
    ensure!(readme.contains("docs/conformance.svg"), "the README shows no badge");
    Ok(())
}

/// Nothing failed, nothing was skipped, and all ran.
fn passed(totals: &BTreeMap<String, u64>) -> Result<()> {
    let count = |kind: &str| totals.get(kind).copied().unwrap_or_default();
    ensure!(count("failures") + count("errors") + count("skipped") == 0, "{totals:?}");
    ensure!(count("tests") >= CHECKS, "only {totals:?}");
    Ok(())
}

/// The program also pushes images whose layers are not there, which the default refuses.
async fn allow_sparse_images(cluster: &Cluster) -> Result<()> {
    let settings = r#"{"missing_content": [{"repositories": "conformance/**", "mode": "all"}]}"#;
    want(&each(cluster)[0], Method::PUT, "/api/v1/settings", &[], settings, &[204]).await?;
    Ok(())
}

/// Runs it; the counts of its report, by name.
async fn run(program: &PathBuf, url: &str) -> Result<BTreeMap<String, u64>> {
    let results = tempfile::tempdir()?;
    let child = Command::new(program)
        .current_dir(results.path())
        .env_clear()
        .envs([
            ("OCI_REGISTRY", url.trim_start_matches("http://")),
            ("OCI_TLS", "disabled"),
            ("OCI_VERSION", "dev"),
            ("OCI_DATA_SPARSE", "true"),
            ("OCI_REPO1", "conformance/repo1"),
            ("OCI_REPO2", "conformance/repo2"),
        ])
        .env("OCI_RESULTS_DIR", results.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let output = timeout(PATIENCE, child.wait_with_output()).await.context("it did not end")??;
    let report = std::fs::read_to_string(results.path().join("junit.xml")).context("no report")?;
    let text = || String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}", output.status, failures(&report).unwrap_or_else(text));
    totals(&report)
}

/// The counts of the report's first element.
fn totals(report: &str) -> Result<BTreeMap<String, u64>> {
    let start = report.find("<testsuites").context("not a report")?;
    let head = report[start..].split('>').next().unwrap_or_default();
    let attributes = head.split_whitespace().filter_map(|attribute| attribute.split_once('='));
    Ok(attributes.filter_map(|(name, value)| Some((name.to_owned(), value.trim_matches('"').parse().ok()?))).collect())
}

/// The first lines of what failed.
fn failures(report: &str) -> Option<String> {
    let at = report.find("<failure").or_else(|| report.find("<error"))?;
    let from = report[..at].rfind("<testcase").unwrap_or(at);
    Some(report[from..].chars().take(3000).collect())
}
