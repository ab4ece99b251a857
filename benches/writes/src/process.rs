//! Server processes: started here, ended by their ids, and what they cost.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    net::TcpListener,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// How long a process may take to end when it is told to.
const END_WITHIN: Duration = Duration::from_secs(40);
const LOOK_EACH: Duration = Duration::from_millis(20);
const LOG_TAIL_BYTES: u64 = 2000;
const ATTACHED_WITHIN: Duration = Duration::from_secs(10);

/// A process that ends, at the latest, when this is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
    told_to_end: AtomicBool,
}

impl Process {
    /// Starts a program; what it prints goes to `log`.
    pub fn start(program: &Path, arguments: &[String], log: PathBuf) -> Result<Self> {
        let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // A Ctrl-C in the terminal is for this program alone, which then ends the others.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self { child, log, told_to_end: AtomicBool::new(false) })
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Fails with the end of its log if it does not run any more.
    pub fn require_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("it has ended with {status}: {}", self.log_tail()),
        }
    }

    /// The last of what it printed.
    pub fn log_tail(&self) -> String {
        let read = || {
            let mut file = File::open(&self.log)?;
            let start = file.metadata()?.len().saturating_sub(LOG_TAIL_BYTES);
            file.seek(SeekFrom::Start(start))?;
            let mut bytes = Vec::new();
            file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&bytes).trim().to_owned())
        };
        read().unwrap_or_else(|error| format!("(its log cannot be read: {error})"))
    }

    /// Tells it to end, once; does not wait.
    pub fn tell_to_end(&self) {
        if self.told_to_end.swap(true, Ordering::Relaxed) {
            return;
        }
        if let Some(pid) = Pid::from_raw(self.pid()) {
            // It may have ended by itself. Its id is still its own, since only we can reap it.
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.tell_to_end();
        let begun = Instant::now();
        while begun.elapsed() < END_WITHIN {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(LOOK_EACH),
                Ok(Some(_)) | Err(_) => return,
            }
        }
        eprintln!("process {} does not end and is killed", self.pid());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Counts the syncs of a process from [`SyncTrace::start`] to [`SyncTrace::stop`], by strace.
#[derive(Debug)]
pub struct SyncTrace {
    strace: Process,
    summary: PathBuf,
}

impl SyncTrace {
    /// Attaches to all threads of the process.
    pub async fn start(pid: i32, folder: &Path) -> Result<Self> {
        let summary = folder.join("strace.summary");
        let arguments = [
            "-f".to_owned(),
            "-c".to_owned(),
            "--trace=fsync,fdatasync".to_owned(),
            format!("--output={}", summary.display()),
            format!("--attach={pid}"),
        ];
        let mut strace = Process::start(Path::new("strace"), &arguments, folder.join("strace.log"))?;
        let begun = Instant::now();
        while !is_traced(pid)? {
            strace.require_running().context("strace")?;
            ensure!(begun.elapsed() < ATTACHED_WITHIN, "strace does not attach: {}", strace.log_tail());
            tokio::time::sleep(LOOK_EACH).await;
        }
        Ok(Self { strace, summary })
    }

    /// Detaches; returns how many syncs there were.
    pub fn stop(self) -> Result<u64> {
        drop(self.strace);
        let text = std::fs::read_to_string(&self.summary).with_context(|| self.summary.display().to_string())?;
        count_calls(&text).with_context(|| format!("strace's summary cannot be understood: {text}"))
    }
}

fn is_traced(pid: i32) -> Result<bool> {
    for thread in procfs::process::Process::new(pid)?.tasks()? {
        if thread?.status()?.tracerpid == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The calls in a summary of `strace -c`, whose columns are time in percent, seconds, time per call, calls, errors if
/// any, name. It is empty where there were no calls.
fn count_calls(summary: &str) -> Option<u64> {
    let lines = summary.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let calls = lines.filter(|fields| matches!(fields.last(), Some(&("fsync" | "fdatasync"))));
    calls.map(|fields| fields.get(3)?.parse::<u64>().ok()).sum()
}

/// Fails if something listens on one of these ports of loopback.
pub fn require_free(ports: impl IntoIterator<Item = u16>) -> Result<()> {
    for port in ports {
        TcpListener::bind(("127.0.0.1", port)).with_context(|| format!("port {port}: choose others with --port"))?;
    }
    Ok(())
}

/// CPU time in user and kernel mode that some processes have used so far, all threads.
pub fn cpu_time(pids: &[i32]) -> Result<Duration> {
    let mut ticks = 0;
    for pid in pids {
        let process = procfs::process::Process::new(*pid).with_context(|| format!("no process {pid}"))?;
        let stat = process.stat()?;
        ticks += stat.utime + stat.stime;
    }
    Ok(Duration::from_secs_f64(ticks as f64 / procfs::ticks_per_second() as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_a_summary_are_added_up() {
        let summary = "% time     seconds  usecs/call     calls    errors syscall\n\
                       ------ ----------- ----------- --------- --------- ----------------\n \
                       90.00    0.970174         575      1686           fdatasync\n \
                       10.00    0.000174         575        14         1 fsync\n\
                       100.00    0.970174         575      1700         1 total\n";
        assert_eq!(count_calls(summary), Some(1700));
        assert_eq!(count_calls(""), Some(0));
        assert_eq!(count_calls("what fsync"), None);
    }
}
