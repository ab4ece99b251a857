//! `flotilla drill`: failures of a `flotilla dev` cluster rehearsed under load.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_tests::client::Client;
use chaos_tests::cluster::binary;
use chaos_tests::dev::{Dev, free_base};
use chaos_tests::process::{self, Signal};
use chaos_tests::wait::{until, until_ok};
use serde_json::Value;

use crate::fixture::flotilla;

const DRILL_LIMIT: Duration = Duration::from_secs(240);
const SOON: Duration = Duration::from_secs(60);

/// A drill that runs, and what it says.
struct Drill {
    child: Child,
    log: std::path::PathBuf,
}

impl Drill {
    fn start(dev: &Dev, log: &Path, arguments: &[&str]) -> Result<Self> {
        let file = File::create(log)?;
        let mut command = Command::new(binary()?);
        command
            .args(["drill", "run"])
            .args(arguments)
            .arg("--data-dir")
            .arg(dev.data_dir())
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        Ok(Self { child: process::spawn(command)?, log: log.to_owned() })
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it says that.
    async fn says(&self, text: &str) -> Result<()> {
        until_ok(SOON, text, async || {
            let said = self.said();
            ensure!(said.contains(text), "{said}");
            Ok(())
        })
        .await
    }

    /// Waits for its end; its exit status, `None` if a signal killed it.
    async fn ends(&mut self) -> Result<Option<i32>> {
        let ended = until(DRILL_LIMIT, "the end of the drill", async || self.child.try_wait().ok().flatten()).await;
        Ok(ended.with_context(|| self.said())?.code())
    }
}

/// Runs a drill to its end, which must be that status; what it said.
async fn drill(dev: &Dev, folder: &Path, arguments: &[&str], status: i32) -> Result<String> {
    let mut drill = Drill::start(dev, &folder.join("drill.log"), arguments)?;
    let ended = drill.ends().await?;
    ensure!(ended == Some(status), "ended with {ended:?}, not {status}: {}", drill.said());
    Ok(drill.said())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_of_the_leader_is_rehearsed_and_judged_by_the_objectives() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut dev = Dev::start(folder.path(), free_base()?)?;
    let urls = dev.urls().await?;
    let place = folder.path().join("report").display().to_string();
    // Bounds that hold on a busy machine: how fast it is, is not what this asks.
    let met = ["--objective", "push-gap=60s", "--objective", "lost=0", "--objective", "stale=0", "--report", &place];
    let arguments = [&["leader-crash", "--duration", "2s"], &met[..]].concat();
    drill(&dev, folder.path(), &arguments, 0).await?;

    let report: Value = serde_json::from_str(&fs::read_to_string(format!("{place}/report.json"))?)?;
    ensure!(report["verdict"] == "pass" && report["scenario"] == "leader-crash", "{report:#}");
    let count = |path: &str| report.pointer(path).and_then(Value::as_f64).unwrap_or(-1.0);
    ensure!(count("/read_back/pushes") >= 20.0 && count("/read_back/lost") == 0.0, "{report:#}");
    ensure!(count("/tag_reads/judged") > 0.0 && count("/tag_reads/stale") == 0.0, "{report:#}");
    ensure!(count("/without_push/longest_ms") > 100.0, "an election takes a while: {report:#}");
    for phase in ["before", "during", "after"] {
        ensure!(count(&format!("/operations/0/{phase}/p50_ms")) > 0.0, "no pushes {phase}: {report:#}");
    }
    let markdown = fs::read_to_string(format!("{place}/report.md"))?;
    let (done, printed) = flotilla(&["drill", "report", &place]).await?;
    ensure!(done && printed.trim_end() == markdown.trim_end(), "{printed}");
    let (done, printed) = flotilla(&["drill", "report", &place, "--json"]).await?;
    ensure!(done && serde_json::from_str::<Value>(&printed)? == report, "{printed}");
    nothing_left(&urls, report["run"].as_str().context("run")?).await?;

    let impossible = ["leader-crash", "--duration", "1s", "--objective", "push-gap=1ms"];
    let said = drill(&dev, folder.path(), &impossible, 1).await?;
    ensure!(said.contains("# Drill leader-crash: broken") && said.contains("**broken**"), "{said}");
    dev.end().await
}

/// The drill's repositories hold no tag any more.
async fn nothing_left(urls: &[String], run: &str) -> Result<()> {
    for url in urls {
        for name in ["app-0", "app-3", "moving"] {
            let reply = Client::new(vec![url.clone()]).get(&format!("/v2/drill/{run}/{name}/tags/list")).await?;
            let tags = reply.json()["tags"].as_array().cloned().unwrap_or_default();
            ensure!(tags.is_empty(), "{}: {}", reply.request, reply.text());
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_ends_a_drill_all_nodes_run_again() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut dev = Dev::start(folder.path(), free_base()?)?;
    let before = dev.nodes().await?;
    let pids = |nodes: &[Value]| nodes.iter().filter_map(|node| node["pid"].as_u64()).collect::<Vec<_>>();
    let mut last = pids(&before);
    for (signal, status) in [(Signal::Interrupt, Some(2)), (Signal::Terminate, Some(2)), (Signal::Kill, None)] {
        let mut drill = Drill::start(&dev, &folder.path().join("drill.log"), &["leader-crash", "--duration", "1s"])?;
        drill.says("kill -9 of").await?;
        drill.says("has ended").await?;
        process::send(&mut drill.child, signal)?;
        let ended = drill.ends().await?;
        ensure!(ended == status, "{signal:?}: {ended:?} {}", drill.said());
        let now = pids(&dev.nodes().await?);
        ensure!(
            now.len() == 3 && now != last,
            "{signal:?}: {now:?} after {last:?}: no node was killed, or one is gone"
        );
        last = now;
    }
    dev.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_disk_is_replaced_and_a_node_that_runs_keeps_its_data() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut dev = Dev::start(folder.path(), free_base()?)?;
    let ids = |nodes: &[Value]| nodes.iter().map(|node| node["id"].to_string()).collect::<Vec<_>>();
    let before = ids(&dev.nodes().await?);
    let data = dev.data_dir().display().to_string();
    let (done, said) = flotilla(&["dev", "node", "wipe", "n1", "--data-dir", &data]).await?;
    ensure!(!done && said.contains("only a node that is stopped"), "{said}");

    let said = drill(&dev, folder.path(), &["lost-disk", "--duration", "1s"], 0).await?;
    ensure!(said.contains("has lost its disk") && said.contains("is no member any more"), "{said}");
    let after = ids(&dev.nodes().await?);
    let changed = before.iter().zip(&after).filter(|(before, after)| before != after).count();
    ensure!(changed == 1, "{before:?} became {after:?}");
    dev.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_run_ends_with_2_and_the_reason() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let nowhere = folder.path().display().to_string();
    let cases: [(&[&str], &str); 5] = [
        (&["run", "leader-crash", "--data-dir", &nowhere], "no cluster runs in"),
        (&["run", "leader-crash", "--objective", "gap=1s"], "push-gap, pull-gap"),
        (&["run", "leader-crash", "--objective", "lost=0", "--objective", "lost=1"], "given twice"),
        (&["run", "leader-crush"], "leader-crash"),
        (&["report", &nowhere], "cannot read the report"),
    ];
    for (arguments, reason) in cases {
        let output = Command::new(binary()?).arg("drill").args(arguments).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(2) && said.contains(reason), "{arguments:?}: {} {said}", output.status);
    }
    let (done, said) = flotilla(&["drill", "list"]).await?;
    let names = ["leader-crash", "leader-handover", "rolling-restart", "lost-disk"];
    ensure!(done && names.iter().all(|name| said.contains(name)), "{said}");
    Ok(())
}
