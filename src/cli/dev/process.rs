//! One node of a `flotilla dev` cluster: what it is, and its process if it runs.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::watch;

use super::parent_death;
use crate::cli::complain;

/// A node that is told to stop finishes what it serves; longer than this it may not take.
const STOP_WITHIN: Duration = Duration::from_secs(25);

const PEER_PORTS_ABOVE: u16 = 1000;
const LOG_TAIL_LINES: usize = 15;
const LOG_TAIL_BYTES: u64 = 16 * 1024;

/// One node: what it is, and its process if it runs.
pub(super) struct Node {
    pub(super) name: String,
    pub(super) url: String,
    pub(super) client: SocketAddr,
    pub(super) peer: SocketAddr,
    pub(super) data_dir: PathBuf,
    pub(super) log: PathBuf,
    process: watch::Sender<Process>,
    expected_to_end: AtomicBool,
}

#[derive(Clone, Debug)]
enum Process {
    Running(Pid),
    /// With the exit status, or why there is none.
    Ended(String),
}

impl Node {
    pub(super) fn new(dir: &Path, first_port: u16, index: u16) -> Self {
        let name = format!("n{}", index + 1);
        let client = SocketAddr::from((Ipv4Addr::LOCALHOST, first_port + index));
        Self {
            url: format!("http://{client}"),
            client,
            peer: SocketAddr::from((Ipv4Addr::LOCALHOST, client.port() + PEER_PORTS_ABOVE)),
            data_dir: dir.join(&name),
            log: dir.join(format!("{name}.log")),
            process: watch::Sender::new(Process::Ended("not started".to_owned())),
            expected_to_end: AtomicBool::new(false),
            name,
        }
    }

    pub(super) fn require_free_ports(&self, advice: &str) -> anyhow::Result<()> {
        for address in [self.client, self.peer] {
            ensure!(is_free(address), "{} cannot start, because port {} is taken: {advice}", self.name, address.port());
        }
        Ok(())
    }

    /// Everything that makes the node, so that its command line alone can start it again.
    fn flags(&self, peers: &[String], join_secret: &Path) -> Vec<OsString> {
        let mut flags: Vec<OsString> = vec![
            format!("--name={}", self.name).into(),
            format!("--listen={}", self.client).into(),
            format!("--peer-listen={}", self.peer).into(),
            format!("--advertise-url={}", self.url).into(),
            format!("--peer-advertise={}", self.peer).into(),
            format!("--peers={}", peers.join(",")).into(),
            format!("--initial-cluster-size={}", peers.len()).into(),
        ];
        flags.extend(["--data-dir".into(), self.data_dir.clone().into_os_string()]);
        flags.extend(["--join-secret-file".into(), join_secret.as_os_str().to_owned()]);
        flags
    }

    /// Starts its process; both streams of output go to its log.
    pub(super) fn spawn(self: &Arc<Self>, binary: &Path, peers: &[String], join_secret: &Path) -> anyhow::Result<()> {
        let log = File::options().append(true).create(true).open(&self.log).context("its log")?;
        let mut command = tokio::process::Command::new(binary);
        command
            .arg("serve")
            .args(self.flags(peers, join_secret))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A Ctrl-C in the terminal is for the supervisor, which stops the nodes in order.
            .process_group(0);
        parent_death::follow(&mut command);
        let mut child = command.spawn()?;
        let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        self.expected_to_end.store(false, Ordering::Relaxed);
        self.process.send_replace(Process::Running(pid.context("it has no process id")?));
        let node = Arc::clone(self);
        tokio::spawn(async move {
            // The process is reaped here and nowhere else, and its pid forgotten before anything else runs
            // on this one thread: no signal can hit another process that got the same pid.
            let end = child.wait().await;
            let end = end.map_or_else(|error| error.to_string(), |status| status.to_string());
            node.process.send_replace(Process::Ended(end));
        });
        Ok(())
    }

    /// How it ended, unless it runs.
    pub(super) fn end(&self) -> Option<String> {
        match &*self.process.borrow() {
            Process::Running(_) => None,
            Process::Ended(end) => Some(end.clone()),
        }
    }

    /// Whether somebody asked for its end, so that the end is no news.
    pub(super) fn is_expected_to_end(&self) -> bool {
        self.expected_to_end.load(Ordering::Relaxed)
    }

    /// Its process id while we run it.
    pub(super) fn pid(&self) -> Option<i32> {
        match *self.process.borrow() {
            Process::Running(pid) => Some(pid.as_raw_nonzero().get()),
            Process::Ended(_) => None,
        }
    }

    /// Lets it finish, and kills it if that takes too long; returns its exit status.
    pub(super) async fn stop(&self) -> anyhow::Result<String> {
        self.expect_end(Signal::TERM)?;
        // A paused process sees the signal only once it goes on.
        self.signal(Signal::CONT)?;
        match tokio::time::timeout(STOP_WITHIN, self.ended()).await {
            Ok(end) => Ok(end),
            Err(_) => {
                complain(format_args!("{} did not stop within {} s: killing it", self.name, STOP_WITHIN.as_secs()));
                self.kill().await
            }
        }
    }

    pub(super) async fn kill(&self) -> anyhow::Result<String> {
        self.expect_end(Signal::KILL)?;
        Ok(self.ended().await)
    }

    fn expect_end(&self, signal: Signal) -> anyhow::Result<()> {
        self.expected_to_end.store(true, Ordering::Relaxed);
        self.signal(signal)
    }

    /// Removes its data, for good. Only of a node that does not run.
    ///
    /// # Errors
    /// It runs, here or started by somebody else, or the folder cannot be removed.
    pub(super) async fn wipe(&self) -> anyhow::Result<()> {
        let removed = self.data_dir.with_extension("wiped");
        remove(&removed).await?;
        // From here to the rename nothing else happens on this one thread, so that no start gets in between.
        if let Some(pid) = self.pid() {
            bail!("{} runs (pid {pid}): only a node that is stopped can lose its data", self.name);
        }
        self.require_free_ports("somebody else seems to have started it (`ss -ltnp` shows who listens)")?;
        std::fs::rename(&self.data_dir, &removed)
            .with_context(|| format!("cannot move {}", self.data_dir.display()))?;
        remove(&removed).await
    }

    /// Sends a signal to the process that we run.
    pub(super) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let Process::Running(pid) = *self.process.borrow() else {
            bail!("{} is not running here", self.name);
        };
        kill_process(pid, signal).with_context(|| format!("cannot signal {} (pid {})", self.name, pid.as_raw_nonzero()))
    }

    /// Waits for its end; returns the exit status.
    pub(super) async fn ended(&self) -> String {
        let mut process = self.process.subscribe();
        match process.wait_for(|process| matches!(process, Process::Ended(_))).await.as_deref() {
            Ok(Process::Ended(end)) => end.clone(),
            Ok(Process::Running(_)) | Err(_) => "unknown".to_owned(),
        }
    }

    /// The end of its log, indented under its path.
    pub(super) fn log_tail(&self) -> String {
        let text = read_end(&self.log).unwrap_or_else(|error| error.to_string());
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..];
        format!("{}:\n  {}\n", self.log.display(), tail.join("\n  "))
    }
}

async fn remove(folder: &Path) -> anyhow::Result<()> {
    match tokio::fs::remove_dir_all(folder).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Whether nobody listens there.
pub(super) fn is_free(address: SocketAddr) -> bool {
    TcpListener::bind(address).is_ok()
}

fn read_end(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
