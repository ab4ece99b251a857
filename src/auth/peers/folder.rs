//! What of all this lies on disk, in the folder `tls` of the data directory: keys with mode 0600. No snapshot holds them, and no
//! backup may.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use flotilla_storage::durable_file;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::authority::{Authority, Fingerprint, Leaf, certificates, pem};

const NODE: &str = "node.pem";
const TRUSTED: &str = "trusted.json";

/// How the names of the authorities' files begin and end.
const AUTHORITY: (&str, &str) = ("authority-", ".pem");

/// Whom the node trusts, as it knew last: it must know before it can hear of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Trusted {
    /// The log index at which this list was put; 0 for one that came with a certificate before there was one.
    pub(super) revision: u64,
    pub(super) signer: Option<Fingerprint>,
    pub(super) authorities: Vec<CertificateDer<'static>>,
}

/// The form of [`Trusted`] in its file and on the wire.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct TrustedText {
    revision: u64,
    signer: Option<String>,
    authorities: Vec<String>,
}

impl From<&Trusted> for TrustedText {
    fn from(trusted: &Trusted) -> Self {
        Self {
            revision: trusted.revision,
            signer: trusted.signer.map(|signer| signer.to_string()),
            authorities: trusted.authorities.iter().map(|one| pem("CERTIFICATE", one)).collect(),
        }
    }
}

impl TryFrom<TrustedText> for Trusted {
    type Error = anyhow::Error;

    fn try_from(text: TrustedText) -> anyhow::Result<Self> {
        let signer = text.signer.map(|signer| Fingerprint::parse(&signer).context("no fingerprint")).transpose()?;
        let authorities = certificates(&text.authorities.concat())?;
        Ok(Self { revision: text.revision, signer, authorities })
    }
}

/// The folder. All calls block.
#[derive(Debug, Clone)]
pub(super) struct Folder(PathBuf);

impl Folder {
    /// The one below a data directory; made when something is written.
    pub(super) fn of(data_dir: &Path) -> Self {
        Self(data_dir.join("tls"))
    }

    pub(super) fn leaf(&self) -> anyhow::Result<Option<Leaf>> {
        self.read(NODE, Leaf::from_pem)
    }

    pub(super) fn put_leaf(&self, leaf: &Leaf) -> anyhow::Result<()> {
        self.write(NODE, &leaf.to_pem())
    }

    pub(super) fn trusted(&self) -> anyhow::Result<Trusted> {
        let read = |text: &str| serde_json::from_str::<TrustedText>(text)?.try_into();
        Ok(self.read(TRUSTED, read)?.unwrap_or_default())
    }

    pub(super) fn put_trusted(&self, trusted: &Trusted) -> anyhow::Result<()> {
        self.write(TRUSTED, &format!("{:#}\n", serde_json::to_value(TrustedText::from(trusted))?))
    }

    /// The authorities whose keys lie here.
    pub(super) fn authorities(&self) -> anyhow::Result<Vec<Authority>> {
        if !self.0.is_dir() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.0).with_context(|| self.0.display().to_string())? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.starts_with(AUTHORITY.0) && name.ends_with(AUTHORITY.1) {
                found.extend(self.read(&name, Authority::from_pem)?);
            }
        }
        Ok(found)
    }

    pub(super) fn put_authority(&self, authority: &Authority) -> anyhow::Result<()> {
        self.write(&file_of(Fingerprint::of(authority.certificate())), &authority.to_pem())
    }

    pub(super) fn remove_authority(&self, fingerprint: Fingerprint) -> anyhow::Result<()> {
        Ok(durable_file::remove(&self.0.join(file_of(fingerprint)))?)
    }

    fn read<T>(&self, name: &str, parse: impl FnOnce(&str) -> anyhow::Result<T>) -> anyhow::Result<Option<T>> {
        let path = self.0.join(name);
        let Some(bytes) = durable_file::read(&path)? else { return Ok(None) };
        let text = std::str::from_utf8(&bytes).map_err(anyhow::Error::from);
        text.and_then(parse).map(Some).with_context(|| path.display().to_string())
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        durable_file::create_dir_durably(&self.0)?;
        Ok(durable_file::write_secret_atomically(&self.0.join(name), text.as_bytes())?)
    }
}

fn file_of(fingerprint: Fingerprint) -> String {
    format!("{}{}{}", AUTHORITY.0, &fingerprint.to_string()[..16], AUTHORITY.1)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn what_is_written_is_read() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let folder = Folder::of(dir.path());
        assert!(folder.leaf()?.is_none() && folder.authorities()?.is_empty());
        assert_eq!(folder.trusted()?, Trusted::default());
        let authority = Authority::make(Uuid::from_u128(7))?;
        let signer = Fingerprint::of(authority.certificate());
        let trusted = Trusted { revision: 4, signer: Some(signer), authorities: vec![authority.certificate().clone()] };
        folder.put_authority(&authority)?;
        folder.put_trusted(&trusted)?;
        assert_eq!(folder.trusted()?, trusted);
        assert_eq!(folder.authorities()?.len(), 1);
        folder.remove_authority(signer)?;
        assert!(folder.authorities()?.is_empty());
        Ok(())
    }
}
