//! What a node shows to others, and whom it believes, at one moment.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flotilla_raft::NodeId;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, RootCertStore};
use uuid::Uuid;

use super::authority::{Fingerprint, Said};
use super::join::token_id;
use super::refusals::{Reason, Refused};

/// What the other side of a connection has proved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It is a node of this cluster: this one, where the certificates are the cluster's own.
    Node(Option<NodeId>),
    /// It knows the join secret.
    Secret,
    /// It holds the token of this id.
    Token(String),
}

/// What a node shows, and whom it believes.
#[derive(Debug)]
pub(crate) struct Material {
    /// Counts on with every change.
    pub(super) generation: u64,
    /// When this came into use.
    pub(super) since: SystemTime,
    /// What this node shows.
    pub(super) shown: Option<Arc<CertifiedKey>>,
    /// The cluster that this node belongs to, where that is known.
    pub(super) cluster: Option<Uuid>,
    /// Authorities of the cluster, or of the operator.
    pub(super) authorities: RootCertStore,
    /// Whether certificates must name a node of this cluster.
    pub(super) named: bool,
    /// The authority that signs certificates now.
    pub(super) signer: Option<Fingerprint>,
    /// The authority of the join secret.
    pub(super) secret: RootCertStore,
    /// Authorities of tokens.
    pub(super) tokens: BTreeMap<String, RootCertStore>,
    /// The authority that this node's own token names: good until it knows the cluster's authorities.
    pub(super) pinned: Option<Fingerprint>,
}

impl Material {
    /// Nothing to show, and nobody to believe.
    pub(super) fn nothing() -> Self {
        Self {
            generation: 0,
            since: SystemTime::now(),
            shown: None,
            cluster: None,
            authorities: RootCertStore::empty(),
            named: true,
            signer: None,
            secret: RootCertStore::empty(),
            tokens: BTreeMap::new(),
            pinned: None,
        }
    }

    /// What a chain of certificates, the own one first, proves.
    ///
    /// # Errors
    /// Why it proves nothing.
    pub(super) fn judge(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<Standing, Refused> {
        let Some((own, others)) = chain.split_first() else { return Err(Refused::new(Reason::NoCertificate, "")) };
        let Some(said) = Said::by(own) else { return Err(Refused::new(Reason::Unreadable, "")) };
        let by_cluster = verify(own, others, &self.authorities, now);
        if by_cluster.is_ok() {
            return self.name(&said);
        }
        if verify(own, others, &self.secret, now).is_ok() || self.is_pinned(chain, now) {
            return Ok(Standing::Secret);
        }
        if let Some((id, roots)) = token_id(&said.issuer).and_then(|id| self.tokens.get_key_value(id))
            && verify(own, &[], roots, now).is_ok()
        {
            return Ok(Standing::Token(id.clone()));
        }
        Err(self.refusal(&said, by_cluster))
    }

    /// The node that a certificate of one of our authorities names.
    fn name(&self, said: &Said) -> Result<Standing, Refused> {
        match (said.node, self.named) {
            (_, false) => Ok(Standing::Node(None)),
            (Some(name), true) if self.cluster.is_none_or(|own| own == name.cluster) => {
                Ok(Standing::Node(Some(name.node)))
            }
            (_, true) => Err(Refused::new(Reason::OtherCluster, describe(said))),
        }
    }

    fn refusal(&self, said: &Said, by_cluster: Result<(), CertificateError>) -> Refused {
        let of_other = said.node.is_some_and(|name| self.cluster.is_some_and(|own| own != name.cluster));
        let reason = match by_cluster {
            Err(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => Reason::Expired,
            Err(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => Reason::NotYetValid,
            _ if of_other => Reason::OtherCluster,
            _ => Reason::UnknownAuthority,
        };
        Refused::new(reason, describe(said))
    }

    /// Whether the authority that this node's token names signed it.
    fn is_pinned(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> bool {
        let Some(pinned) = self.pinned else { return false };
        let named = chain.iter().find(|one| Fingerprint::of(one) == pinned);
        named.is_some_and(|authority| {
            let roots = roots([authority.clone().into_owned()]);
            chain.first().is_some_and(|own| verify(own, &[], &roots, now).is_ok())
        })
    }
}

/// A certificate in a few words, for people.
pub(super) fn describe(said: &Said) -> String {
    match said.node {
        Some(name) => format!("{name}, signed by «{}»", said.issuer),
        None => format!("«{}», signed by «{}»", said.subject, said.issuer),
    }
}

/// These certificates as roots; one that is damaged is left out, and nobody is believed for it.
pub(super) fn roots(certificates: impl IntoIterator<Item = CertificateDer<'static>>) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates);
    roots
}

fn verify(
    own: &CertificateDer<'_>,
    others: &[CertificateDer<'_>],
    roots: &RootCertStore,
    now: UnixTime,
) -> Result<(), CertificateError> {
    if roots.is_empty() {
        return Err(CertificateError::UnknownIssuer);
    }
    let checked = ParsedCertificate::try_from(own).and_then(|own| {
        let algorithms = provider().signature_verification_algorithms;
        rustls::client::verify_server_cert_signed_by_trust_anchor(&own, roots, others, now, algorithms.all)
    });
    checked.map_err(|error| match error {
        rustls::Error::InvalidCertificate(reason) => reason,
        _ => CertificateError::BadEncoding,
    })
}

/// The one provider of cryptography.
pub(super) fn provider() -> Arc<CryptoProvider> {
    CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
}

/// A chain and its key as rustls wants them.
///
/// # Errors
/// The key is of a kind that cannot sign.
pub(super) fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: &rcgen::KeyPair,
) -> Result<Arc<CertifiedKey>, rustls::Error> {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok(Arc::new(CertifiedKey::new(chain, provider().key_provider.load_private_key(key)?)))
}

/// Seconds since the Unix epoch.
pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}
