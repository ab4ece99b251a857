//! The files by which the webhooks' port speaks TLS: its certificate, and the authorities of its callers. They are read
//! again when they change.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use parking_lot::RwLock;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::config::AdmissionTls;

/// How often the files are looked at. Kubernetes swaps links, so that no event tells of a change.
const LOOK_EACH: Duration = Duration::from_secs(10);

/// What is in use. Connections that are open keep what they began with.
#[derive(Debug)]
pub(crate) struct Identity {
    files: AdmissionTls,
    current: RwLock<Current>,
}

#[derive(Debug, Clone)]
struct Current {
    certificate: Arc<CertifiedKey>,
    /// Of the callers; empty where anyone may call.
    authorities: Vec<CertificateDer<'static>>,
    callers: Option<Arc<dyn ClientCertVerifier>>,
}

impl Current {
    fn read(files: &AdmissionTls) -> anyhow::Result<Self> {
        let certificate = Arc::new(certified_key(files)?);
        let Some(file) = &files.client_ca else {
            return Ok(Self { certificate, authorities: Vec::new(), callers: None });
        };
        let authorities = certificates(file)?;
        let mut roots = RootCertStore::empty();
        for root in &authorities {
            roots.add(root.clone()).with_context(|| format!("not an authority: {}", file.display()))?;
        }
        let callers = WebPkiClientVerifier::builder(Arc::new(roots)).build();
        let callers = callers.with_context(|| file.display().to_string())?;
        Ok(Self { certificate, authorities, callers: Some(callers) })
    }

    fn is(&self, other: &Self) -> bool {
        self.certificate.cert == other.certificate.cert && self.authorities == other.authorities
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().certificate.clone())
    }
}

/// Asks who is in use now.
#[derive(Debug)]
struct Callers(Arc<Identity>);

impl Callers {
    fn now(&self) -> Result<Arc<dyn ClientCertVerifier>, rustls::Error> {
        let callers = self.0.current.read().callers.clone();
        callers.ok_or_else(|| rustls::Error::General("no authority of callers is known".into()))
    }
}

impl ClientCertVerifier for Callers {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A hint; callers have one certificate anyway.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.now()?.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.now()?.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.now()?.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.now().map(|callers| callers.supported_verify_schemes()).unwrap_or_default()
    }
}

impl Identity {
    /// Reads the files.
    ///
    /// # Errors
    /// A file cannot be read, holds no certificate or key, or certificate and key do not belong together.
    pub(crate) fn load(files: AdmissionTls) -> anyhow::Result<Self> {
        Ok(Self { current: RwLock::new(Current::read(&files)?), files })
    }

    /// How the port speaks TLS, 1.2 or 1.3.
    pub(crate) fn server_config(self: &Arc<Self>) -> ServerConfig {
        let builder = ServerConfig::builder();
        let builder = match &self.files.client_ca {
            None => builder.with_no_client_auth(),
            Some(_) => builder.with_client_cert_verifier(Arc::new(Callers(self.clone()))),
        };
        let mut config = builder.with_cert_resolver(self.clone());
        if self.files.client_ca.is_some() {
            // Who resumes a session shows no certificate, and its authority may be trusted no more.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        config
    }

    /// When the certificate ends, in seconds since the Unix epoch; 0 where that cannot be read.
    pub(crate) fn ends_at(&self) -> u64 {
        let current = self.current.read().certificate.clone();
        let ends = current.cert.first().and_then(|first| {
            let (_, certificate) = X509Certificate::from_der(first).ok()?;
            u64::try_from(certificate.validity().not_after.timestamp()).ok()
        });
        ends.unwrap_or_default()
    }

    /// Looks at the files from time to time. Files that cannot be used are told of, and what they held stays.
    pub(crate) async fn follow(self: Arc<Self>) {
        let mut told = String::new();
        loop {
            tokio::time::sleep(LOOK_EACH).await;
            let files = self.files.clone();
            let read = tokio::task::spawn_blocking(move || Current::read(&files)).await;
            match read.map_err(anyhow::Error::from).and_then(|read| read) {
                Ok(read) => {
                    told.clear();
                    if !read.is(&self.current.read()) {
                        *self.current.write() = read;
                        tracing::info!(ends_at = self.ends_at(), "the webhooks' certificates are others now");
                    }
                }
                Err(error) => {
                    let reason = format!("{error:#}");
                    if reason != told {
                        tracing::error!(
                            reason,
                            "the webhooks' certificates cannot be read again: the former ones stay"
                        );
                        told = reason;
                    }
                }
            }
        }
    }
}

fn certified_key(files: &AdmissionTls) -> anyhow::Result<CertifiedKey> {
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
