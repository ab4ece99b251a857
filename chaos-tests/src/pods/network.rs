//! The network of a small Kubernetes cluster on this machine: each pod has a network namespace with an address of its
//! own, a bridge connects them, and a hosts file takes the place of DNS.
//!
//! All of it lies in the namespaces of one process ([`enclosed`]) and goes when that ends, however it ends.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::net::Ipv4Addr;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::process::{self, Signal};
use crate::wait::until_ok;

const BRIDGE: &str = "pods";
/// Of a network of its own: it cannot collide with this machine's.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const PREFIX: u32 = 16;
/// The hosts file has always this size, so that it changes in one write and nobody reads half of it.
const HOSTS_BYTES: usize = 4096;
const SOON: Duration = Duration::from_secs(10);

/// Whether this process may make namespaces; says aloud why not.
///
/// # Errors
/// It may not, in CI, where nothing is skipped.
pub fn allowed() -> anyhow::Result<bool> {
    let is_root = fs::metadata("/proc/self").is_ok_and(|owner| owner.uid() == 0);
    let made = || Command::new("unshare").args(["--net", "--mount", "--uts", "true"]).output();
    if is_root && made().is_ok_and(|output| output.status.success()) {
        return Ok(true);
    }
    ensure!(std::env::var_os("CI").is_none(), "in CI nothing is skipped; root is needed for network namespaces");
    println!("skipped: network namespaces need root");
    Ok(false)
}

/// Runs a program in a network and a mount namespace of its own, and passes on what it prints.
///
/// # Errors
/// It cannot be started, or fails.
pub async fn enclosed(program: &Path, arguments: &[String]) -> anyhow::Result<()> {
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount"]).arg(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = process::spawn(command).context("unshare")?;
    let output = child.stdout.take().context("its output")?;
    let ended = tokio::task::spawn_blocking(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            println!("{line}");
        }
        child.wait()
    });
    let status = ended.await??;
    ensure!(status.success(), "{} {}: {status}", program.display(), arguments.join(" "));
    Ok(())
}

/// The network, inside of [`enclosed`].
#[derive(Debug)]
pub struct Network {
    hosts: PathBuf,
    names: BTreeMap<Ipv4Addr, Vec<String>>,
    next: u32,
}

/// Where a pod's process will run: what the pause container is to a pod.
#[derive(Debug)]
pub struct Sandbox {
    /// Never used before, as a new pod's.
    pub address: Ipv4Addr,
    keeper: Child,
}

impl Network {
    /// Sets the bridge up; the hosts file lies in the folder and is this process' own `/etc/hosts` too.
    ///
    /// # Errors
    /// A command of iproute2 fails.
    pub fn start(folder: &Path) -> anyhow::Result<Self> {
        let hosts = folder.join("hosts");
        let network = Self { hosts, names: BTreeMap::new(), next: u32::from(GATEWAY) };
        fs::write(&network.hosts, "\n".repeat(HOSTS_BYTES))?;
        network.write_hosts()?;
        run(Command::new("mount").arg("--bind").arg(&network.hosts).arg("/etc/hosts"))?;
        ip("link set lo up")?;
        ip(&format!("link add {BRIDGE} type bridge"))?;
        ip(&format!("address add {GATEWAY}/{PREFIX} dev {BRIDGE}"))?;
        ip(&format!("link set {BRIDGE} up"))?;
        Ok(network)
    }

    /// A new place for a pod, with the next address, under these names.
    ///
    /// # Errors
    /// It cannot be set up.
    pub async fn sandbox(&mut self, host_name: &str, names: &[String]) -> anyhow::Result<Sandbox> {
        self.next += 1;
        let address = Ipv4Addr::from(self.next);
        let mut command = Command::new("unshare");
        command.args(["--net", "--uts", "sh", "-c", "hostname \"$0\" && exec sleep infinity", host_name]);
        let sandbox = Sandbox { address, keeper: process::spawn(command)? };
        let pid = sandbox.keeper.id();
        until_ok(SOON, "a host name of its own", async || {
            let found = run(Command::new("nsenter").args(["--uts", "--target", &pid.to_string(), "hostname"]))?;
            ensure!(found.trim() == host_name, "{found}");
            Ok(())
        })
        .await?;
        let outside = format!("pod{}", self.next - u32::from(GATEWAY));
        ip(&format!("link add {outside} type veth peer name eth0 netns {pid}"))?;
        ip(&format!("link set {outside} master {BRIDGE} up"))?;
        for setting in ["link set lo up", &format!("address add {address}/{PREFIX} dev eth0"), "link set eth0 up"] {
            let mut inside = sandbox.command(&["--net"]);
            run(inside.arg("ip").args(setting.split(' ')))?;
        }
        self.names.insert(address, names.to_vec());
        self.write_hosts()?;
        Ok(sandbox)
    }

    /// The names of a pod that has gone lead nowhere.
    ///
    /// # Errors
    /// The hosts file cannot be written.
    pub fn forget(&mut self, address: Ipv4Addr) -> anyhow::Result<()> {
        self.names.remove(&address);
        self.write_hosts()
    }

    /// Where names are looked up.
    pub fn hosts(&self) -> &Path {
        &self.hosts
    }

    fn write_hosts(&self) -> anyhow::Result<()> {
        let lines = self.names.iter().map(|(address, names)| format!("{address} {}\n", names.join(" ")));
        let mut content = "127.0.0.1 localhost\n".to_owned() + &lines.collect::<String>();
        ensure!(content.len() <= HOSTS_BYTES, "too many names");
        content.push_str(&"\n".repeat(HOSTS_BYTES - content.len()));
        Ok(File::options().write(true).open(&self.hosts)?.write_all_at(content.as_bytes(), 0)?)
    }
}

impl Sandbox {
    /// A command that will run in these namespaces of it (`--net`, `--uts`).
    pub fn command(&self, namespaces: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(namespaces).args(["--target", &self.keeper.id().to_string()]);
        command
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // It may have ended with everything else.
        let _ = process::send(&mut self.keeper, Signal::Kill);
        let _ = self.keeper.wait();
    }
}

fn ip(arguments: &str) -> anyhow::Result<()> {
    run(Command::new("ip").args(arguments.split(' '))).map(drop)
}

fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
