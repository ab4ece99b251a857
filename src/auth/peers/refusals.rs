//! Who is refused, and why: told in the log and counted.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use rustls::CertificateError;

/// How often the same refusal is told of: who is refused comes again, several times a second.
const TOLD_EACH: Duration = Duration::from_secs(60);

/// The most refusals that are remembered as told.
const TOLD_MAX: usize = 1000;

/// Why somebody is not believed. The names are those of the metric, and permanent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Reason {
    /// It shows no certificate.
    NoCertificate,
    /// It shows something that is no certificate.
    Unreadable,
    /// None of the authorities that are trusted signed its certificate.
    UnknownAuthority,
    /// Its certificate is of another cluster.
    OtherCluster,
    /// Its certificate has ended.
    Expired,
    /// Its certificate has not begun.
    NotYetValid,
    /// It was a node of this cluster.
    NotAMember,
    /// It may join, and asks for more.
    OnlyJoins,
    /// Its token has ended or was used.
    Token,
    /// It calls, and does not believe this node.
    CallerRefuses,
    /// It does not speak TLS.
    NotTls,
}

impl Reason {
    fn name(self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::Unreadable => "unreadable",
            Self::UnknownAuthority => "unknown_authority",
            Self::OtherCluster => "other_cluster",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::NotAMember => "not_a_member",
            Self::OnlyJoins => "only_joins",
            Self::Token => "token",
            Self::CallerRefuses => "caller_refuses",
            Self::NotTls => "not_tls",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::NoCertificate => "no certificate was shown",
            Self::Unreadable => "what was shown is no certificate",
            Self::UnknownAuthority => "no authority that this node trusts signed the certificate",
            Self::OtherCluster => "the certificate is of another cluster",
            Self::Expired => "the certificate has expired",
            Self::NotYetValid => "the certificate is not valid yet; do the clocks agree?",
            Self::NotAMember => "the node is no member of this cluster",
            Self::OnlyJoins => "who can only prove that it may join may not ask for this",
            Self::Token => "the token is not good",
            Self::CallerRefuses => "the caller refuses this node",
            Self::NotTls => "what came is not TLS; does the caller speak plain HTTP?",
        }
    }
}

/// A refusal: why, and of whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) reason: Reason,
    /// Who it says that it is, or more about why.
    pub(crate) of: String,
}

impl Refused {
    pub(super) fn new(reason: Reason, of: impl Into<String>) -> Self {
        Self { reason, of: of.into() }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.of.as_str() {
            "" => out.write_str(self.reason.words()),
            of => write!(out, "{} ({of})", self.reason.words()),
        }
    }
}

impl From<&Refused> for rustls::Error {
    /// What becomes of it in a handshake; the other side hears it as an alert.
    fn from(refused: &Refused) -> Self {
        let error = match refused.reason {
            Reason::Expired => CertificateError::Expired,
            Reason::NotYetValid => CertificateError::NotValidYet,
            Reason::UnknownAuthority => CertificateError::UnknownIssuer,
            Reason::Unreadable => CertificateError::BadEncoding,
            Reason::OtherCluster
            | Reason::NotAMember
            | Reason::OnlyJoins
            | Reason::NoCertificate
            | Reason::Token
            | Reason::CallerRefuses
            | Reason::NotTls => CertificateError::ApplicationVerificationFailure,
        };
        Self::InvalidCertificate(error)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    reason: &'static str,
}

/// Tells and counts.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    counted: Family<Labels, Counter>,
    told: Mutex<BTreeMap<String, Instant>>,
}

impl Refusals {
    /// Somebody was refused; `what` says on which occasion.
    pub(super) fn tell(&self, what: &str, refused: &Refused) {
        self.counted.get_or_create(&Labels { reason: refused.reason.name() }).inc();
        let line = format!("{what}: {refused}");
        let mut told = self.told.lock();
        if told.get(&line).is_some_and(|at| at.elapsed() < TOLD_EACH) {
            return;
        }
        if told.len() >= TOLD_MAX {
            told.retain(|_, at| at.elapsed() < TOLD_EACH);
        }
        if told.len() < TOLD_MAX {
            told.insert(line, Instant::now());
        }
        tracing::warn!(reason = refused.reason.name(), "{what}: {refused}");
    }

    /// Puts the counts on the page of metrics.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register("peer_refused", "Nodes and others refused on the peer port", self.counted.clone());
    }
}
