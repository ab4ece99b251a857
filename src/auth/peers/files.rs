//! Certificates of the operator's: files, read again when they change. Whoever has a certificate of the authority is a node.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::handshake::Current;
use super::material::{Material, provider, roots};
use crate::config::PeerFiles;

/// How often the files are looked at. Kubernetes swaps links, so that no event tells of a change.
const LOOK_EACH: Duration = Duration::from_secs(10);

/// The files.
pub(super) struct Files(PeerFiles);

type Read = (Arc<CertifiedKey>, Vec<CertificateDer<'static>>);

impl Files {
    /// Reads them and puts them in use. Blocks.
    ///
    /// # Errors
    /// One cannot be read, or certificate and key do not go together.
    pub(super) fn open(files: PeerFiles, current: &Current) -> anyhow::Result<Self> {
        current.put(material(read(&files)?));
        Ok(Self(files))
    }

    /// Looks at them from time to time. Files that cannot be used are told of, and what they held stays.
    pub(super) async fn follow(&self, current: &Current) {
        let (mut used, mut told) = (None, String::new());
        loop {
            let files = self.0.clone();
            let found = tokio::task::spawn_blocking(move || read(&files)).await;
            match found.map_err(anyhow::Error::from).and_then(|found| found) {
                Ok((shown, authorities)) => {
                    told.clear();
                    let found = (shown.cert.clone(), authorities.clone());
                    if used.as_ref().is_some_and(|used| *used != found) {
                        current.put(material((shown, authorities)));
                        tracing::info!("the certificates of the peer port are others now");
                    }
                    used = Some(found);
                }
                Err(error) => {
                    let reason = format!("{error:#}");
                    if reason != told {
                        tracing::error!(
                            reason,
                            "the certificates of the peer port cannot be read again: the former ones stay"
                        );
                        told = reason;
                    }
                }
            }
            tokio::time::sleep(LOOK_EACH).await;
        }
    }
}

fn material((shown, authorities): Read) -> Material {
    Material {
        since: SystemTime::now(),
        shown: Some(shown),
        authorities: roots(authorities),
        named: false,
        ..Material::nothing()
    }
}

fn read(files: &PeerFiles) -> anyhow::Result<Read> {
    let certificates = |file: &std::path::Path| {
        let name = || format!("no certificates in {}", file.display());
        let read: Vec<_> = CertificateDer::pem_file_iter(file).and_then(Iterator::collect).with_context(name)?;
        if read.is_empty() { Err(anyhow::anyhow!(name())) } else { Ok(read) }
    };
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .with_context(|| format!("no private key in {}", files.key.display()))?;
    let both = || format!("{} and {} do not go together", files.cert.display(), files.key.display());
    let shown = CertifiedKey::from_der(certificates(&files.cert)?, key, &provider()).with_context(both)?;
    Ok((Arc::new(shown), certificates(&files.ca)?))
}
