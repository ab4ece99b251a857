//! The pods of `deploy/kustomize` without a kubelet: processes with exactly the environment, arguments, user, volumes
//! and host names that the rendered manifests give them, each in its own network namespace.
//!
//! What a kubelet and the controller of StatefulSets do is done here: the same name and volume for the pod that takes
//! another's place, a new address each time, the hook and the signal before the end.

mod network;
mod rendered;

use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use tempfile::TempDir;

pub use network::{Network, Sandbox, allowed, enclosed};
pub use rendered::{FOLDER, Pod, Rendered};

use crate::client::{Client, plain_http};
use crate::cluster::binary;
use crate::image::random_bytes;
use crate::process::{self, Signal};
use crate::wait::{until, until_ok};

const ENTER: &str = include_str!("enter.sh");
/// How long a pod may take until it is ready.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// A liveness probe must be answered within a second, whatever else goes on.
const ALIVE_WITHIN: Duration = Duration::from_secs(1);

/// The pods of the StatefulSet. Dropping it ends them.
#[derive(Debug)]
pub struct Pods {
    folder: TempDir,
    network: Network,
    pods: Vec<Running>,
    http: reqwest::Client,
}

/// A pod and what is there of it now.
#[derive(Debug)]
struct Running {
    pod: Pod,
    process: Option<(Child, Sandbox)>,
}

impl Pods {
    /// Starts all pods at once, as `podManagementPolicy: Parallel` says, and waits until each is ready.
    ///
    /// # Errors
    /// One cannot be started, or does not become ready.
    pub async fn start(rendered: &Rendered) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("flotilla-pods-").tempdir()?;
        // Pods are other users than this process.
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755))?;
        let network = Network::start(folder.path())?;
        let replicas = rendered.one("StatefulSet", "flotilla")?["spec"]["replicas"].as_u64().context("replicas")?;
        let pods = (0..usize::try_from(replicas)?).map(|ordinal| rendered.pod(ordinal));
        let pods: Vec<Pod> = pods.collect::<anyhow::Result<_>>()?;
        let secret = folder.path().join("join");
        fs::create_dir(&secret)?;
        // What `kubectl create secret` makes, as a kubelet mounts it: mode 0440, of the pod's group.
        fs::write(secret.join("secret"), hex::encode(random_bytes(&mut rand::rng(), 32)))?;
        chown(secret.join("secret"), Some(0), Some(u32::try_from(pods[0].ids[2])?))?;
        fs::set_permissions(secret.join("secret"), Permissions::from_mode(0o440))?;
        fs::write(folder.path().join("enter.sh"), ENTER)?;
        let pods = pods.into_iter().map(|pod| Running { pod, process: None }).collect();
        let mut cluster = Self { folder, network, pods, http: plain_http(Duration::from_secs(10)) };
        for ordinal in 0..cluster.pods.len() {
            cluster.start_pod(ordinal).await?;
        }
        for ordinal in 0..cluster.pods.len() {
            cluster.wait_ready(ordinal).await?;
        }
        Ok(cluster)
    }

    /// The pods' names, in their order.
    pub fn names(&self) -> Vec<String> {
        self.pods.iter().map(|running| running.pod.name.clone()).collect()
    }

    /// A client of all pods by their names, which passes over those that are not there.
    ///
    /// # Errors
    /// A pod has no port for clients.
    pub fn client(&self) -> anyhow::Result<Client> {
        let urls = self.pods.iter().map(|running| running.pod.url());
        Ok(Client::over(self.http.clone(), urls.collect::<anyhow::Result<_>>()?))
    }

    /// A client of one pod.
    ///
    /// # Errors
    /// As [`Pods::client`].
    pub fn client_of(&self, ordinal: usize) -> anyhow::Result<Client> {
        Ok(Client::over(self.http.clone(), vec![self.pods[ordinal].pod.url()?]))
    }

    /// Starts the pod of this number: a new address, the name and the volume that it had.
    ///
    /// # Errors
    /// It runs already, or cannot be started.
    pub async fn start_pod(&mut self, ordinal: usize) -> anyhow::Result<()> {
        let pod = self.pods[ordinal].pod.clone();
        ensure!(self.pods[ordinal].process.is_none(), "{} runs", pod.name);
        let data = self.volume(&pod)?;
        let root = self.folder.path().join(format!("{}.root", pod.name));
        fs::create_dir_all(&root)?;
        let sandbox = self.network.sandbox(&pod.name, &pod.host_names).await?;
        let log = OpenOptions::new().create(true).append(true).open(self.log(&pod))?;
        let mut command = sandbox.command(&["--net", "--uts"]);
        command.args(["unshare", "--mount", "sh"]).arg(self.folder.path().join("enter.sh"));
        command.arg(root).arg(binary()?.canonicalize()?).arg(self.network.hosts());
        command.args(pod.ids.map(|id| id.to_string()));
        for (volume, target) in &pod.mounts {
            let source = if volume == "data" { data.clone() } else { self.folder.path().join(volume) };
            command.arg(source).arg(target);
        }
        command.arg("--").args(&pod.arguments);
        command.env_clear().envs(&pod.environment).env("HOSTNAME", &pod.name);
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = process::spawn(command).with_context(|| pod.name.clone())?;
        self.pods[ordinal].process = Some((child, sandbox));
        Ok(())
    }

    /// Waits for what the startup and then the readiness probe want.
    ///
    /// # Errors
    /// It ends, or does not become ready in time; with the end of its log.
    pub async fn wait_ready(&mut self, ordinal: usize) -> anyhow::Result<()> {
        let (pod, client) = (self.pods[ordinal].pod.clone(), self.client_of(ordinal)?);
        let client = client.with_timeout(Duration::from_secs(2));
        for probe in ["startupProbe", "readinessProbe"] {
            let (path, what) = (pod.probe(probe)?, format!("{probe} of {}", pod.name));
            let ended = until_ok(READY_WITHIN, &what, async || {
                if self.ended(ordinal)? {
                    return Ok(true);
                }
                client.get(path).await?.expect(&[200])?;
                Ok(false)
            });
            let ended = ended.await.with_context(|| self.log_tail(&pod))?;
            ensure!(!ended, "{} has ended: {}", pod.name, self.log_tail(&pod));
        }
        self.is_alive(ordinal).await
    }

    /// Asks the liveness probe of a running pod.
    ///
    /// # Errors
    /// A kubelet would restart it.
    pub async fn is_alive(&self, ordinal: usize) -> anyhow::Result<()> {
        let path = self.pods[ordinal].pod.probe("livenessProbe")?;
        self.client_of(ordinal)?.with_timeout(ALIVE_WITHIN).get(path).await?.expect(&[200])?;
        Ok(())
    }

    /// Ends a pod as its deletion does: the hook, SIGTERM, the time of grace. Its address goes with it.
    ///
    /// # Errors
    /// It does not end in order, or not in time.
    pub async fn stop(&mut self, ordinal: usize) -> anyhow::Result<()> {
        let pod = self.pods[ordinal].pod.clone();
        let (mut child, sandbox) = self.pods[ordinal].process.take().context("it does not run")?;
        let [grace, hook] = pod.grace_seconds.map(Duration::from_secs);
        tokio::time::sleep(hook).await;
        process::send(&mut child, Signal::Terminate)?;
        let left = grace.saturating_sub(hook);
        let status = until(left, "an end after SIGTERM", async || child.try_wait().ok().flatten()).await;
        self.network.forget(sandbox.address)?;
        let status = status.inspect_err(|_| drop(process::send(&mut child, Signal::Kill)))?;
        ensure!(status.success(), "{} ends after SIGTERM with {status}: {}", pod.name, self.log_tail(&pod));
        Ok(())
    }

    /// Kills a pod and destroys its volume, as the loss of a machine with its disk does.
    ///
    /// # Errors
    /// It does not run, or its files cannot be removed.
    pub fn lose(&mut self, ordinal: usize) -> anyhow::Result<()> {
        let (mut child, sandbox) = self.pods[ordinal].process.take().context("it does not run")?;
        process::send(&mut child, Signal::Kill)?;
        child.wait()?;
        self.network.forget(sandbox.address)?;
        Ok(fs::remove_dir_all(self.folder.path().join(&self.pods[ordinal].pod.name))?)
    }

    /// What `kubectl exec POD -- /flotilla …` would print: the program, inside of the running container.
    ///
    /// # Errors
    /// It does not run, or the command fails: then with what it says.
    pub async fn exec(&self, ordinal: usize, arguments: &[&str]) -> anyhow::Result<String> {
        let running = &self.pods[ordinal];
        let (child, _) = running.process.as_ref().with_context(|| format!("{} does not run", running.pod.name))?;
        let mut command = tokio::process::Command::new("nsenter");
        command.args(["--target", &child.id().to_string(), "--mount", "--net", "--uts", "--root", "--wd", "/flotilla"]);
        command.args(arguments).env_clear().envs(&running.pod.environment);
        let output = command.output().await?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        ensure!(output.status.success(), "flotilla {}: {said}", arguments.join(" "));
        Ok(said)
    }

    /// Keeps data and logs if the result is an error, and says where.
    ///
    /// # Errors
    /// The result's own.
    pub fn judged<T>(mut self, result: anyhow::Result<T>) -> anyhow::Result<T> {
        if result.is_err() {
            self.folder.disable_cleanup(true);
        }
        result.with_context(|| format!("data and logs are kept in {}", self.folder.path().display()))
    }

    fn ended(&mut self, ordinal: usize) -> anyhow::Result<bool> {
        let running = &mut self.pods[ordinal];
        let (child, _) = running.process.as_mut().context("it does not run")?;
        Ok(child.try_wait()?.is_some())
    }

    /// The folder of a claim, as a kubelet hands a new volume out: root's, and writable for `fsGroup`.
    fn volume(&self, pod: &Pod) -> anyhow::Result<PathBuf> {
        let data = self.folder.path().join(&pod.name);
        if !data.exists() {
            fs::create_dir(&data)?;
            chown(&data, Some(0), Some(u32::try_from(pod.ids[2])?))?;
            fs::set_permissions(&data, Permissions::from_mode(0o2775))?;
        }
        Ok(data)
    }

    fn log(&self, pod: &Pod) -> PathBuf {
        self.folder.path().join(format!("{}.log", pod.name))
    }

    fn log_tail(&self, pod: &Pod) -> String {
        let log = fs::read_to_string(self.log(pod)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        for (mut child, _sandbox) in self.pods.iter_mut().filter_map(|running| running.process.take()) {
            // It may have ended by itself.
            let _ = process::send(&mut child, Signal::Kill);
            let _ = child.wait();
        }
    }
}
