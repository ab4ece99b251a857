//! The certificate of the webhooks' port, which is read again when its files change.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use parking_lot::RwLock;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::config::AdmissionTls;

/// How often the files are looked at. Kubernetes swaps links, so that no event tells of a change.
const LOOK_EACH: Duration = Duration::from_secs(10);

/// The certificate in use. Connections that are open keep theirs.
#[derive(Debug)]
pub(crate) struct Certificate {
    current: RwLock<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().clone())
    }
}

impl Certificate {
    /// Reads the files.
    ///
    /// # Errors
    /// A file cannot be read, holds no certificate or key, or the two do not belong together.
    pub(crate) fn load(files: &AdmissionTls) -> anyhow::Result<Self> {
        Ok(Self { current: RwLock::new(Arc::new(read(files)?)) })
    }

    /// When it ends, in seconds since the Unix epoch; 0 where that cannot be read.
    pub(crate) fn ends_at(&self) -> u64 {
        let current = self.current.read().clone();
        let ends = current.cert.first().and_then(|first| {
            let (_, certificate) = X509Certificate::from_der(first).ok()?;
            u64::try_from(certificate.validity().not_after.timestamp()).ok()
        });
        ends.unwrap_or_default()
    }

    /// Looks at the files from time to time. Files that cannot be used are told of, and the former certificate stays.
    pub(crate) async fn follow(self: Arc<Self>, files: AdmissionTls) {
        let mut told = String::new();
        loop {
            tokio::time::sleep(LOOK_EACH).await;
            let wanted = files.clone();
            let read = tokio::task::spawn_blocking(move || read(&wanted)).await;
            match read.map_err(anyhow::Error::from).and_then(|read| read) {
                Ok(read) => {
                    told.clear();
                    if read.cert != self.current.read().cert {
                        *self.current.write() = Arc::new(read);
                        tracing::info!(ends_at = self.ends_at(), "the webhooks have a new certificate");
                    }
                }
                Err(error) => {
                    let reason = format!("{error:#}");
                    if reason != told {
                        tracing::error!(reason, "the webhooks' certificate cannot be read again: the former one stays");
                        told = reason;
                    }
                }
            }
        }
    }
}

fn read(files: &AdmissionTls) -> anyhow::Result<CertifiedKey> {
    let certificates = certificates(&files.cert)?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .with_context(|| format!("no private key in {}", files.key.display()))?;
    let provider = CryptoProvider::get_default().context("no cryptography provider is installed")?;
    let both = || format!("{} and {} do not go together", files.cert.display(), files.key.display());
    CertifiedKey::from_der(certificates, key, provider).with_context(both)
}

fn certificates(file: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let name = || format!("no certificates in {}", file.display());
    let read: Vec<_> = CertificateDer::pem_file_iter(file).and_then(Iterator::collect).with_context(name)?;
    if read.is_empty() { Err(anyhow::anyhow!(name())) } else { Ok(read) }
}

/// How the webhooks' port speaks TLS, 1.2 or 1.3.
///
/// # Errors
/// The file of the clients' authority cannot be used.
pub(crate) fn server_config(certificate: Arc<Certificate>, files: &AdmissionTls) -> anyhow::Result<ServerConfig> {
    let builder = ServerConfig::builder();
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let mut roots = RootCertStore::empty();
            for root in certificates(file)? {
                roots.add(root).with_context(|| format!("not an authority: {}", file.display()))?;
            }
            let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build();
            builder.with_client_cert_verifier(verifier.with_context(|| file.display().to_string())?)
        }
    };
    Ok(builder.with_cert_resolver(certificate))
}
