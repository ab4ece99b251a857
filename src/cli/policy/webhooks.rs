//! `flotilla policy webhooks`.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use flotilla_raft::settings::Rules;
use reqwest::{Method, Url};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::admission::configuration::{Target, configurations};
use crate::cli::api::Node;

/// Print the webhook configurations for `kubectl apply -f -`, with the kinds that the settings name as workloads.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Webhooks {
    /// The authority that signed the nodes' certificates (PEM)
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,

    /// The namespace of the registry; it is left out, as kube-system is
    #[arg(long, default_value = "flotilla")]
    namespace: String,

    /// The Service of the webhooks
    #[arg(long, value_name = "NAME", default_value = "flotilla")]
    service: String,

    /// The port of the Service
    #[arg(long, default_value_t = 8443)]
    port: u16,

    /// Call the webhooks here and not by a Service, from outside of the cluster: https://HOST:PORT
    #[arg(long, value_name = "URL")]
    webhook_url: Option<Url>,

    #[command(flatten)]
    node: Node,
}

impl Webhooks {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let authority = std::fs::read(&self.ca).with_context(|| format!("cannot read {}", self.ca.display()))?;
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&authority).collect();
        ensure!(certificates.is_ok_and(|found| !found.is_empty()), "{} holds no certificate (PEM)", self.ca.display());
        if let Some(url) = &self.webhook_url {
            ensure!(url.scheme() == "https", "{url}: the API server calls webhooks by https alone");
        }
        let settings = self.node.send(Method::GET, "/api/v1/settings", |request| request).await?.text().await?;
        let rules = Rules::parse(&settings).context("this version does not understand the settings")?;
        let url = self.webhook_url.map(String::from);
        let target = Target { namespace: self.namespace, service: self.service, port: self.port, url, authority };
        let (mutating, validating) = configurations(&target, rules.workloads());
        let documents = [serde_saphyr::to_string(&mutating)?, serde_saphyr::to_string(&validating)?];
        crate::cli::say(documents.map(|document| document.trim_end().to_owned()).join("\n---\n"));
        Ok(())
    }
}
