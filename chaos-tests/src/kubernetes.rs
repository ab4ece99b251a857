//! A real API server of Kubernetes with its own etcd, and kubectl. There is no kubelet and no controller: objects are
//! taken in, stored and shown, which is where admission happens.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

use crate::ports;
use crate::process::{self, Signal};
use crate::wait::until_ok;

/// How long it may take until the API server answers.
const START_LIMIT: Duration = Duration::from_secs(120);

/// How long a call of kubectl may take.
const CALL_LIMIT: Duration = Duration::from_secs(60);

/// What the API server asks of whoever calls it.
const TOKEN: &str = "flotilla-test";

/// Everything that changes pods, with what the webhooks add to it.
const AUDIT_POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
rules:
  - level: Metadata
    verbs: [create, update, patch]
    omitStages: [RequestReceived]
  - level: None
";

/// The API server. Dropping it ends both processes and removes what they stored.
#[derive(Debug)]
pub struct Kubernetes {
    folder: TempDir,
    kubectl: PathBuf,
    processes: Vec<Child>,
}

/// What kubectl said.
#[derive(Debug, Clone)]
pub struct Said {
    /// Its exit status was 0.
    pub done: bool,
    /// Standard output.
    pub out: String,
    /// Standard error: warnings, and why something was refused.
    pub err: String,
}

impl Kubernetes {
    /// Starts etcd and the API server from these programs and waits until it is ready.
    ///
    /// # Errors
    /// One of them does not start; the end of its log is part of the error.
    pub async fn start([etcd, api_server, kubectl]: [PathBuf; 3]) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("flotilla-kubernetes-").tempdir()?;
        let ports = ports::free(3)?;
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let path = |name: &str| folder.path().join(name).display().to_string();
        fs::write(path("audit.yaml"), AUDIT_POLICY)?;
        fs::write(path("tokens.csv"), format!("{TOKEN},admin,1,system:masters\n"))?;
        let signing = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        fs::write(path("service-accounts.key"), signing.serialize_pem())?;
        fs::write(path("service-accounts.pub"), signing.public_key_pem())?;
        fs::write(path("kubeconfig"), kubeconfig(ports[2]))?;
        let mut store = Command::new(etcd);
        store.args(["--data-dir".into(), path("etcd")]);
        store.args(["--listen-client-urls".into(), url(ports[0]), "--advertise-client-urls".into(), url(ports[0])]);
        store.args(["--listen-peer-urls".into(), url(ports[1]), "--initial-advertise-peer-urls".into(), url(ports[1])]);
        store.args(["--initial-cluster".into(), format!("default={}", url(ports[1]))]);
        // It holds nothing that outlives the test.
        store.arg("--unsafe-no-fsync");
        let mut server = Command::new(api_server);
        server.args(["--etcd-servers".into(), url(ports[0]), "--secure-port".into(), ports[2].to_string()]);
        server.args(["--bind-address", "127.0.0.1", "--advertise-address", "192.0.2.1"]);
        server.args(["--cert-dir".into(), path("certificates"), "--token-auth-file".into(), path("tokens.csv")]);
        server.args(["--service-account-key-file".into(), path("service-accounts.pub")]);
        server.args(["--service-account-signing-key-file".into(), path("service-accounts.key")]);
        server.args(["--service-account-issuer", "https://kubernetes.default.svc"]);
        server.args(["--service-cluster-ip-range", "192.0.2.0/24", "--authorization-mode", "RBAC"]);
        // Without controllers nobody makes the account that every pod would need.
        server.args(["--disable-admission-plugins", "ServiceAccount"]);
        server.args(["--audit-policy-file".into(), path("audit.yaml"), "--audit-log-path".into(), path("audit.log")]);
        let mut kubernetes = Self { kubectl, processes: Vec::new(), folder };
        for (name, command) in [("etcd", store), ("api-server", server)] {
            kubernetes.spawn(name, command)?;
        }
        let ready = kubernetes.wait_ready().await;
        ready.with_context(|| kubernetes.log_tails())?;
        Ok(kubernetes)
    }

    fn spawn(&mut self, name: &str, mut command: Command) -> anyhow::Result<()> {
        let log = File::create(self.folder.path().join(format!("{name}.log")))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.processes.push(process::spawn(command).with_context(|| name.to_owned())?);
        Ok(())
    }

    async fn wait_ready(&mut self) -> anyhow::Result<()> {
        let ended = until_ok(START_LIMIT, "the API server is ready", async || {
            if self.processes.iter_mut().any(|child| !matches!(child.try_wait(), Ok(None))) {
                return Ok(true);
            }
            let said = self.kubectl(&["get", "--raw", "/readyz"]).await?;
            ensure!(said.done, "{}", said.err);
            Ok(false)
        });
        ensure!(!ended.await?, "etcd or the API server has ended");
        Ok(())
    }

    /// Runs kubectl.
    ///
    /// # Errors
    /// It cannot be started, or does not end. What the API server refuses is no error.
    pub async fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<Said> {
        self.kubectl_with(arguments, "").await
    }

    /// Runs kubectl with this on its standard input.
    ///
    /// # Errors
    /// As [`Self::kubectl`].
    pub async fn kubectl_with(&self, arguments: &[&str], input: &str) -> anyhow::Result<Said> {
        let mut child = tokio::process::Command::new(&self.kubectl)
            .env_clear()
            .env("HOME", self.folder.path())
            .arg("--kubeconfig")
            .arg(self.folder.path().join("kubeconfig"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).await?;
        }
        let output = timeout(CALL_LIMIT, child.wait_with_output()).await;
        let output = output.with_context(|| format!("kubectl {arguments:?} does not end"))??;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Said { done: output.status.success(), out: text(&output.stdout), err: text(&output.stderr) })
    }

    /// The audit log: one JSON document a line.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn audit_log(&self) -> anyhow::Result<String> {
        Ok(fs::read_to_string(self.folder.path().join("audit.log"))?)
    }

    fn log_tails(&self) -> String {
        let tail = |name: &str| {
            let log = fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            format!("{name}: {}", lines[lines.len().saturating_sub(8)..].join("\n"))
        };
        [tail("etcd.log"), tail("api-server.log")].join("\n")
    }
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        for child in self.processes.iter_mut().rev() {
            // One that has ended by itself is as good.
            let _ = process::send(child, Signal::Kill);
            let _ = child.wait();
        }
    }
}

fn kubeconfig(port: u16) -> String {
    // Its certificate is made at its start; the connection stays on this machine.
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
         clusters: [{{name: test, cluster: {{server: 'https://127.0.0.1:{port}', insecure-skip-tls-verify: true}}}}]\n\
         users: [{{name: test, user: {{token: {TOKEN}}}}}]\n\
         contexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n"
    )
}
