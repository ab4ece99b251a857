//! Certificates: the cluster's own authority, and what it signs for the nodes.

use std::fmt;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail, ensure};
use flotilla_raft::NodeId;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SubjectPublicKeyInfo,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// How long an authority lives: rotation is what ends it.
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Certificates begin so long before they are made: clocks differ.
const BACKDATED: Duration = Duration::from_secs(60 * 60);

/// The SHA-256 of a certificate.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of a certificate (DER).
    pub(crate) fn of(certificate: &[u8]) -> Self {
        Self(Sha256::digest(certificate).into())
    }

    /// From 64 hexadecimal digits.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let digit = |at: usize| text.get(2 * at..2 * at + 2).and_then(|two| u8::from_str_radix(two, 16).ok());
        let mut bytes = [0; 32];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = digit(at)?;
        }
        (text.len() == 64).then_some(Self(bytes))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// Which node of which cluster a certificate speaks for: the URI `flotilla://<cluster id>/<node id>` among its names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NodeName {
    pub(crate) cluster: Uuid,
    pub(crate) node: NodeId,
}

impl fmt::Display for NodeName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "flotilla://{}/{:012x}", self.cluster, self.node)
    }
}

impl NodeName {
    fn parse(uri: &str) -> Option<Self> {
        let (cluster, node) = uri.strip_prefix("flotilla://")?.split_once('/')?;
        Some(Self { cluster: cluster.parse().ok()?, node: u64::from_str_radix(node, 16).ok()? })
    }
}

/// What a certificate says. Nothing of it is checked here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Said {
    /// The node that it speaks for.
    pub(crate) node: Option<NodeName>,
    /// Its own name, and that of who signed it.
    pub(crate) subject: String,
    pub(crate) issuer: String,
    /// When it begins and ends, in seconds since the Unix epoch.
    pub(crate) begins: u64,
    pub(crate) ends: u64,
}

impl Said {
    /// Reads a certificate (DER); `None` where it is none.
    pub(crate) fn by(certificate: &[u8]) -> Option<Self> {
        let (_, read) = X509Certificate::from_der(certificate).ok()?;
        let uri = |name: &GeneralName<'_>| match name {
            GeneralName::URI(uri) => NodeName::parse(uri),
            _ => None,
        };
        let names = read.subject_alternative_name().ok().flatten();
        let common = |name: &x509_parser::x509::X509Name<'_>| {
            name.iter_common_name().next().and_then(|name| name.as_str().ok()).unwrap_or_default().to_owned()
        };
        let time = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or_default();
        Some(Self {
            node: names.and_then(|names| names.value.general_names.iter().find_map(uri)),
            subject: common(read.subject()),
            issuer: common(read.issuer()),
            begins: time(read.validity().not_before),
            ends: time(read.validity().not_after),
        })
    }
}

impl Said {
    /// When this part of its life is all that is left, in seconds since the Unix epoch.
    pub(super) fn last_sixth(&self) -> u64 {
        self.ends - (self.ends - self.made_at()) / 6
    }

    /// When it must be renewed: two thirds of its life are over.
    pub(super) fn renew_at(&self) -> u64 {
        self.ends - (self.ends - self.made_at()) / 3
    }

    /// When it was made, by the clock of who signed it.
    pub(super) fn made_at(&self) -> u64 {
        (self.begins + BACKDATED.as_secs()).min(self.ends)
    }
}

/// Parameters of a certificate that is good from now on for `lifetime`.
pub(super) fn parameters(name: &str, lifetime: Duration) -> CertificateParams {
    let now = SystemTime::now();
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.not_before = (now - BACKDATED).into();
    parameters.not_after = (now + lifetime).into();
    parameters
}

/// Parameters of an authority that signs for nodes, and for nobody else who signs.
pub(super) fn authority_parameters(name: &str, lifetime: Duration) -> CertificateParams {
    let mut parameters = parameters(name, lifetime);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    parameters
}

/// Parameters of a node's certificate: it calls and is called by it.
pub(super) fn node_parameters(name: &str, lifetime: Duration) -> CertificateParams {
    let mut parameters = parameters(name, lifetime);
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    parameters
}

/// The public key of a certificate.
pub(super) fn public_key(certificate: &[u8]) -> anyhow::Result<SubjectPublicKeyInfo> {
    let (_, read) = X509Certificate::from_der(certificate).context("no certificate")?;
    SubjectPublicKeyInfo::from_der(read.public_key().raw).context("a key of an unknown kind")
}

/// The authority of a cluster, with its key.
pub(crate) struct Authority {
    key: KeyPair,
    certificate: CertificateDer<'static>,
}

impl Authority {
    /// Makes one for a cluster.
    ///
    /// # Errors
    /// The library of cryptography fails.
    pub(crate) fn make(cluster_id: Uuid) -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        // Two authorities of one cluster, as during a rotation, must differ by their names.
        let name = format!("flotilla authority {cluster_id} {:08x}", rand::random::<u32>());
        let certificate = authority_parameters(&name, AUTHORITY_LIFETIME).self_signed(&key)?.der().clone();
        Ok(Self { key, certificate })
    }

    /// Reads key and certificate (PEM).
    ///
    /// # Errors
    /// There is no key or no certificate, or they do not belong together.
    pub(crate) fn from_pem(text: &str) -> anyhow::Result<Self> {
        let key = KeyPair::from_pem(text).context("no private key of an authority")?;
        let certificate = CertificateDer::from_pem_slice(text.as_bytes()).context("no certificate of an authority")?;
        let same = public_key(&certificate)? == SubjectPublicKeyInfo::from_pem(&key.public_key_pem())?;
        ensure!(same, "the authority's key and certificate do not belong together");
        Ok(Self { key, certificate })
    }

    /// Key and certificate (PEM): a secret.
    pub(crate) fn to_pem(&self) -> String {
        format!("{}{}", self.key.serialize_pem(), pem("CERTIFICATE", &self.certificate))
    }

    /// The certificate (DER).
    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The cluster that it was made for.
    pub(crate) fn cluster_id(&self) -> Option<Uuid> {
        Said::by(&self.certificate)?.subject.split(' ').nth(2)?.parse().ok()
    }

    /// Signs a node's request (PEM): of what it asks for, only the key counts. Returns the chain, the node's first.
    ///
    /// # Errors
    /// The request is none, or its signature is not that of the key in it.
    pub(crate) fn sign(
        &self,
        request: &str,
        name: NodeName,
        lifetime: Duration,
    ) -> anyhow::Result<Vec<CertificateDer<'static>>> {
        let request = CertificateSigningRequestParams::from_pem(request).context("not a request for a certificate")?;
        let mut parameters = node_parameters(&format!("flotilla node {:012x}", name.node), lifetime);
        parameters.subject_alt_names = vec![SanType::URI(name.to_string().try_into()?)];
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &self.key)?;
        let signed = parameters.signed_by(&request.public_key, &issuer)?;
        Ok(vec![signed.der().clone(), self.certificate.clone()])
    }
}

/// A node's certificate with its key.
pub(crate) struct Leaf {
    key: KeyPair,
    chain: Vec<CertificateDer<'static>>,
    pub(crate) name: NodeName,
    pub(crate) said: Said,
}

impl Leaf {
    /// Puts a signed chain (PEM or DER) to the key that it was asked for with.
    ///
    /// # Errors
    /// The chain is empty, names no node, or is of another key.
    pub(crate) fn new(key: KeyPair, chain: Vec<CertificateDer<'static>>) -> anyhow::Result<Self> {
        let Some(first) = chain.first() else { bail!("no certificate") };
        let said = Said::by(first).context("not a certificate")?;
        let name = said.node.context("the certificate names no node")?;
        let same = public_key(first)? == SubjectPublicKeyInfo::from_pem(&key.public_key_pem())?;
        ensure!(same, "the node's key and certificate do not belong together");
        Ok(Self { key, chain, name, said })
    }

    /// Reads key and chain (PEM).
    ///
    /// # Errors
    /// As [`Leaf::new`].
    pub(crate) fn from_pem(text: &str) -> anyhow::Result<Self> {
        let key = KeyPair::from_pem(text).context("no private key of a node")?;
        Self::new(key, certificates(text)?)
    }

    /// Key and chain (PEM): a secret.
    pub(crate) fn to_pem(&self) -> String {
        let chain: String = self.chain.iter().map(|one| pem("CERTIFICATE", one)).collect();
        format!("{}{chain}", self.key.serialize_pem())
    }

    /// The node's own first, then that of the authority.
    pub(crate) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The private key.
    pub(crate) fn key(&self) -> &KeyPair {
        &self.key
    }

    /// The authority that signed it.
    pub(crate) fn authority(&self) -> Option<Fingerprint> {
        self.chain.get(1).map(|authority| Fingerprint::of(authority))
    }
}

/// A new key, and the request (PEM) to sign it.
///
/// # Errors
/// The library of cryptography fails.
pub(crate) fn request() -> anyhow::Result<(KeyPair, String)> {
    let key = KeyPair::generate()?;
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, "flotilla node");
    let request = parameters.serialize_request(&key)?.pem()?;
    Ok((key, request))
}

/// All certificates of a text (PEM).
///
/// # Errors
/// One of them is damaged.
pub(crate) fn certificates(text: &str) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<_, _>>().context("damaged certificates")
}

/// Bytes in PEM's form.
pub(crate) fn pem(label: &str, bytes: &[u8]) -> String {
    use base64::Engine as _;
    let encoded = base64::engine::general_purpose::STANDARD.encode(bytes);
    let lines: Vec<&str> = encoded.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_authority_signs_survives_its_files() -> anyhow::Result<()> {
        let cluster = Uuid::from_u128(7);
        let authority = Authority::from_pem(&Authority::make(cluster)?.to_pem())?;
        assert_eq!(authority.cluster_id(), Some(cluster));
        let (key, asked) = request()?;
        let name = NodeName { cluster, node: 0xabc };
        let leaf = Leaf::new(key, authority.sign(&asked, name, Duration::from_secs(9000))?)?;
        let read = Leaf::from_pem(&leaf.to_pem())?;
        assert_eq!((read.name, &read.said, read.chain()), (name, &leaf.said, leaf.chain()));
        assert_eq!(leaf.authority(), Some(Fingerprint::of(authority.certificate())));
        // Two thirds of what is left, whatever lies before.
        assert_eq!(leaf.said.ends - leaf.said.renew_at(), 3000);
        Ok(())
    }

    #[test]
    fn keys_of_others_are_refused() -> anyhow::Result<()> {
        let authority = Authority::make(Uuid::from_u128(7))?;
        let (_, asked) = request()?;
        let name = NodeName { cluster: Uuid::from_u128(7), node: 1 };
        let chain = authority.sign(&asked, name, Duration::from_secs(60))?;
        assert!(Leaf::new(KeyPair::generate()?, chain).is_err());
        let other = Authority::make(Uuid::from_u128(8))?;
        let mixed = format!("{}{}", other.key.serialize_pem(), pem("CERTIFICATE", authority.certificate()));
        assert!(Authority::from_pem(&mixed).is_err());
        assert!(authority.sign("no request", name, Duration::from_secs(60)).is_err());
        Ok(())
    }

    #[test]
    fn fingerprints_are_read_as_they_are_written() {
        let fingerprint = Fingerprint::of(b"certificate");
        assert_eq!(Fingerprint::parse(&fingerprint.to_string()), Some(fingerprint));
        assert_eq!(Fingerprint::parse("ab"), None);
        assert_eq!(Fingerprint::parse(&"ä".repeat(32)), None);
    }
}
