//! The API server of a Kubernetes cluster, as far as it calls webhooks: by TLS under the name of a Service, and strict
//! about what it gets back (Kubernetes, «Dynamic Admission Control»).

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

/// The name under which the webhooks are called.
const SERVICE: &str = "flotilla.flotilla.svc";

/// An authority and a certificate of it, in a folder as the kubelet fills it: links to files of a generation, of which
/// `..data` is the one in force.
#[derive(Debug, Clone)]
pub struct Files {
    folder: PathBuf,
    /// The authority's certificate, as `caBundle` has it.
    pub authority: PathBuf,
    /// The certificate.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Files {
    /// Makes them new in a folder.
    ///
    /// # Errors
    /// They cannot be made or written.
    pub fn make(folder: &Path) -> anyhow::Result<Self> {
        let name = |name: &str| folder.join(name);
        let files =
            Self { folder: folder.to_owned(), authority: name("ca.crt"), cert: name("tls.crt"), key: name("tls.key") };
        fs::create_dir_all(folder)?;
        files.renew()?;
        for file in [&files.authority, &files.cert, &files.key] {
            symlink(Path::new("..data").join(file.file_name().context("a name")?), file)?;
        }
        Ok(files)
    }

    /// Puts another authority and certificate in their place, at once.
    ///
    /// # Errors
    /// As [`Files::make`].
    pub fn renew(&self) -> anyhow::Result<()> {
        let mut authority = CertificateParams::new(Vec::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_key = KeyPair::generate()?;
        let authority_cert = authority.self_signed(&authority_key)?;
        let key = KeyPair::generate()?;
        let names = vec![SERVICE.to_owned(), "127.0.0.1".to_owned()];
        let cert = CertificateParams::new(names)?.signed_by(&key, &Issuer::new(authority, authority_key))?;
        let generation = format!("..{:x}", rand::random::<u64>());
        let below = self.folder.join(&generation);
        fs::create_dir(&below)?;
        fs::write(below.join("ca.crt"), authority_cert.pem())?;
        fs::write(below.join("tls.crt"), cert.pem())?;
        fs::write(below.join("tls.key"), key.serialize_pem())?;
        symlink(&generation, self.folder.join("..data_tmp"))?;
        fs::rename(self.folder.join("..data_tmp"), self.folder.join("..data"))?;
        Ok(())
    }
}

/// Which webhook is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// `/admission/mutate`
    Mutate,
    /// `/admission/validate`
    Validate,
}

/// An answer that the API server takes.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// Whether the object may be.
    pub allowed: bool,
    /// Why not.
    pub message: String,
    /// What `kubectl` shows.
    pub warnings: Vec<String>,
    /// What the audit log gets.
    pub annotations: Value,
    /// What is to be changed.
    pub patch: Option<Value>,
    /// How long it took.
    pub took: Duration,
}

/// Calls the webhooks of all nodes in turn.
#[derive(Debug)]
pub struct ApiServer {
    http: reqwest::Client,
    ports: Vec<u16>,
    turn: AtomicUsize,
    timeout: Duration,
}

impl ApiServer {
    /// Trusts the authority of these files, and shows the certificate of those, if there are any.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn new(files: &Files, ports: Vec<u16>, own: Option<&Files>) -> anyhow::Result<Self> {
        let authority = reqwest::Certificate::from_pem(&fs::read(&files.authority)?)?;
        let timeout = Duration::from_secs(5);
        let mut builder = reqwest::Client::builder();
        if let Some(own) = own {
            let both = [fs::read(&own.cert)?, fs::read(&own.key)?].concat();
            builder = builder.identity(reqwest::Identity::from_pem(&both)?);
        }
        let http = builder
            .tls_certs_only([authority])
            .resolve(SERVICE, SocketAddr::from(([127, 0, 0, 1], 0)))
            .no_proxy()
            .https_only(true)
            .timeout(timeout)
            .build()?;
        Ok(Self { http, ports, turn: AtomicUsize::new(0), timeout })
    }

    /// How long an answer may take: the webhooks leave a fifth of the time for the way.
    pub fn deadline(&self) -> Duration {
        self.timeout.mul_f64(0.8)
    }

    /// Whether a node says that it decides reviews.
    ///
    /// # Errors
    /// No answer.
    pub async fn is_ready(&self, node: usize) -> anyhow::Result<bool> {
        let url = format!("https://{SERVICE}:{}/readyz", self.ports[node]);
        Ok(self.http.get(url).send().await?.status().is_success())
    }

    /// Asks the next node.
    ///
    /// # Errors
    /// No answer in time, or one that the API server would not take.
    pub async fn call(&self, hook: Hook, review: &Value) -> anyhow::Result<Verdict> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        self.call_at(turn % self.ports.len(), hook, review).await
    }

    /// Asks a node by its number.
    ///
    /// # Errors
    /// As [`ApiServer::call`].
    pub async fn call_at(&self, node: usize, hook: Hook, review: &Value) -> anyhow::Result<Verdict> {
        let name = if hook == Hook::Mutate { "mutate" } else { "validate" };
        let port = self.ports[node];
        let url = format!("https://{SERVICE}:{port}/admission/{name}?timeout={}s", self.timeout.as_secs());
        let began = Instant::now();
        let answer = self.http.post(url).json(review).send().await?;
        let (status, took) = (answer.status(), began.elapsed());
        let body = answer.text().await?;
        ensure!(status == 200, "{name} answered {status}: {body}");
        let answer: Value = serde_json::from_str(&body).with_context(|| body.clone())?;
        for field in ["apiVersion", "kind"] {
            ensure!(answer[field] == review[field], "{field} is {}", answer[field]);
        }
        let response = &answer["response"];
        ensure!(response["uid"] == review["request"]["uid"], "another uid: {response}");
        let allowed = response["allowed"].as_bool().context("allowed is missing")?;
        let patch = match (&response["patchType"], &response["patch"]) {
            (Value::Null, Value::Null) => None,
            (kind, patch) => {
                ensure!(hook == Hook::Mutate, "validate must not patch: {response}");
                ensure!(*kind == "JSONPatch", "patchType is {kind}");
                Some(decoded(patch)?)
            }
        };
        let warnings = response["warnings"].as_array().cloned().unwrap_or_default();
        let warnings: Vec<String> = warnings.iter().filter_map(|text| Some(text.as_str()?.to_owned())).collect();
        ensure!(warnings.len() <= 10 && warnings.iter().all(|text| text.chars().count() <= 120), "{warnings:?}");
        let message = response["status"]["message"].as_str().unwrap_or_default().to_owned();
        ensure!(allowed || !message.is_empty(), "a denial without a reason");
        let annotations = response["auditAnnotations"].clone();
        Ok(Verdict { allowed, message, warnings, annotations, patch, took })
    }
}

/// A patch as Kubernetes has it.
fn decoded(patch: &Value) -> anyhow::Result<Value> {
    let bytes = BASE64_STANDARD.decode(patch.as_str().context("the patch is no text")?)?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// A review of a pod with these images.
pub fn pod(namespace: &str, images: &[&str]) -> Value {
    let containers: Vec<Value> = images
        .iter()
        .enumerate()
        .map(|(number, image)| json!({"name": format!("c{number}"), "image": image}))
        .collect();
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": format!("{:032x}", rand::random::<u128>()),
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": namespace,
            "name": "p",
            "operation": "CREATE",
            "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller"},
            "object": {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "p", "namespace": namespace},
                "spec": {"containers": containers},
            },
            "oldObject": null,
            "dryRun": false,
        }
    })
}
