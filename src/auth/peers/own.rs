//! What a node knows and holds where the certificates are the cluster's own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, ensure};
use flotilla_raft::{AuthoritiesRecord, NodeId, TokenRecord};
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use uuid::Uuid;

use super::admit::JOINS_WITHIN;
use super::authority::{Authority, Fingerprint, Leaf, NodeName, request};
use super::folder::{Folder, Trusted};
use super::join::{Proof, SIGNED_FOR};
use super::material::{Material, certified, roots, seconds};

/// How long who is about to found a cluster is believed to remember that it signed for this node.
const FOUNDED_WITHIN: Duration = Duration::from_secs(30);

/// All of it; one at a time changes it, and makes the [`Material`] anew.
pub(super) struct Own {
    pub(super) node: NodeId,
    pub(super) folder: Folder,
    /// How long certificates are good that this node signs.
    pub(super) lifetime: Duration,
    pub(super) proof: Option<Proof>,
    pub(super) cluster: Option<Uuid>,
    pub(super) leaf: Option<Leaf>,
    pub(super) trusted: Trusted,
    /// Authorities whose keys this node holds.
    pub(super) keys: BTreeMap<Fingerprint, Authority>,
    pub(super) tokens: Vec<TokenRecord>,
    /// When the proof has signed something that is shown.
    signed_at: Option<Instant>,
    /// Whether the node's own certificate is shown.
    shows_leaf: bool,
    /// Show the proof instead, where there is one: others may not believe the certificate any more.
    hides_leaf: bool,
}

impl Own {
    /// Reads what lies on disk. Blocks.
    ///
    /// # Errors
    /// A file is damaged.
    pub(super) fn open(
        folder: Folder,
        node: NodeId,
        cluster: Option<Uuid>,
        lifetime: Duration,
        proof: Option<Proof>,
    ) -> anyhow::Result<Self> {
        let (leaf, trusted) = (folder.leaf()?, folder.trusted()?);
        let keys = folder.authorities()?;
        let keys = keys.into_iter().map(|one| (Fingerprint::of(one.certificate()), one)).collect();
        let cluster = cluster.or(leaf.as_ref().map(|leaf| leaf.name.cluster));
        // A data directory that was copied to become another node brings the certificate of the first one.
        let leaf = leaf.filter(|leaf| leaf.name.node == node);
        Ok(Self {
            node,
            folder,
            lifetime,
            proof,
            cluster,
            leaf,
            trusted,
            keys,
            tokens: Vec::new(),
            signed_at: None,
            shows_leaf: false,
            hides_leaf: false,
        })
    }

    /// What to show and whom to believe from now on.
    ///
    /// # Errors
    /// Something that is held cannot be used.
    pub(super) fn material(&mut self) -> anyhow::Result<Material> {
        let secret = match &self.proof {
            Some(Proof::Secret(authority)) => roots([authority.certificate().clone()]),
            _ => roots([]),
        };
        let pinned = match &self.proof {
            Some(Proof::Token(_, token)) => Some(token.fingerprint),
            _ => None,
        };
        let token = |one: &TokenRecord| {
            let authority = CertificateDer::from(one.authority.to_vec());
            (one.id.clone(), roots([authority]))
        };
        Ok(Material {
            since: SystemTime::now(),
            shown: self.shown()?,
            cluster: self.cluster,
            authorities: roots(self.trusted.authorities.iter().cloned()),
            signer: self.trusted.signer,
            secret,
            pinned,
            tokens: self.tokens.iter().map(token).collect(),
            ..Material::nothing()
        })
    }

    /// The node's certificate; where it has none that is good, what its proof signs.
    fn shown(&mut self) -> anyhow::Result<Option<Arc<CertifiedKey>>> {
        self.signed_at = self.proof.is_some().then(Instant::now);
        self.shows_leaf = false;
        let is_good = |leaf: &Leaf| leaf.said.ends > now() && !self.hides_leaf;
        if let Some(leaf) = self.leaf.as_ref().filter(|leaf| self.proof.is_none() || is_good(leaf)) {
            let mut chain = leaf.chain().to_vec();
            // Who joins knows the secret alone, and believes the cluster's authority for its word.
            if let (Some(Proof::Secret(join)), Some(authority)) = (&self.proof, leaf.chain().get(1)) {
                chain.push(join.vouch_for(authority)?);
            }
            self.shows_leaf = true;
            return Ok(Some(certified(chain, leaf.key())?));
        }
        let Some(proof) = &self.proof else { return Ok(None) };
        let (key, certificate) = proof.authority().leaf()?;
        Ok(Some(certified(vec![certificate], &key)?))
    }

    /// Shows the proof for a while if that is a token, or the certificate again; says whether something changed. A secret
    /// vouches for the certificate that is shown beside it, a token for none.
    pub(super) fn hide_leaf(&mut self, hides: bool) -> bool {
        let hides = hides && matches!(self.proof, Some(Proof::Token(..)));
        std::mem::replace(&mut self.hides_leaf, hides) != hides
    }

    /// Whether something else should be shown: what the proof has signed grows old, or the certificate has ended.
    pub(super) fn is_stale(&self) -> bool {
        let has_ended = self.shows_leaf && self.leaf.as_ref().is_some_and(|leaf| leaf.said.ends <= now());
        self.signed_at.is_some_and(|at| at.elapsed() > SIGNED_FOR / 2 || has_ended)
    }

    /// Whether this node needs another certificate: for want of one, for its age, or for the authority that signed it.
    pub(super) fn needs_leaf(&self) -> bool {
        self.leaf.as_ref().is_none_or(|leaf| {
            leaf.said.renew_at() <= now() || self.trusted.signer.is_some_and(|signer| leaf.authority() != Some(signer))
        })
    }

    /// Whether a cluster would take this node in by the certificate that it has: others believe one of a node that they do
    /// not know for a short time only. A cluster that is about to be founded (`None`) is founded by who has signed for all,
    /// and may have forgotten that. Who can prove nothing must go on with what he has.
    pub(super) fn leaf_will_do(&self, cluster: Option<Uuid>) -> bool {
        let fresh_for = if cluster.is_some() { JOINS_WITHIN / 2 } else { FOUNDED_WITHIN };
        let is_fresh = |leaf: &Leaf| now() < leaf.said.ends.min(leaf.said.made_at() + fresh_for.as_secs());
        let of_it = self.leaf.as_ref().filter(|leaf| cluster.is_none_or(|cluster| cluster == leaf.name.cluster));
        of_it.is_some_and(|leaf| self.proof.is_none() || is_fresh(leaf))
    }

    /// The authority that signs, if its key is here.
    pub(super) fn signer(&self) -> Option<&Authority> {
        self.keys.get(&self.trusted.signer?)
    }

    /// Makes the authority of a cluster that has none; one that was made and not used yet is used. Blocks.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn make_authority(&mut self, cluster: Option<Uuid>) -> anyhow::Result<()> {
        let is_ours = |one: &&Authority| cluster.is_none() || one.cluster_id() == cluster;
        if let Some(made) = self.signer().filter(is_ours) {
            self.cluster = made.cluster_id();
            return Ok(());
        }
        let cluster = cluster.unwrap_or_else(Uuid::new_v4);
        let authority = Authority::make(cluster)?;
        let fingerprint = self.keep(authority)?;
        self.cluster = Some(cluster);
        self.trust(Trusted {
            revision: 0,
            signer: Some(fingerprint),
            authorities: self.keys.get(&fingerprint).map(|one| one.certificate().clone()).into_iter().collect(),
        })
    }

    /// Keeps the key of an authority. Blocks.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn keep(&mut self, authority: Authority) -> anyhow::Result<Fingerprint> {
        self.folder.put_authority(&authority)?;
        let fingerprint = Fingerprint::of(authority.certificate());
        self.keys.insert(fingerprint, authority);
        Ok(fingerprint)
    }

    /// Trusts these from now on. Blocks.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn trust(&mut self, trusted: Trusted) -> anyhow::Result<()> {
        if trusted != self.trusted {
            self.folder.put_trusted(&trusted)?;
            self.trusted = trusted;
        }
        Ok(())
    }

    /// Trusts what the cluster agreed on, if that is newer; whether it was. Keys of authorities that are none any more
    /// go. Blocks.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn agreed(&mut self, record: &AuthoritiesRecord) -> anyhow::Result<bool> {
        if record.revision <= self.trusted.revision {
            return Ok(false);
        }
        let authorities: Vec<CertificateDer<'static>> =
            record.certificates.iter().map(|one| CertificateDer::from(one.to_vec())).collect();
        let fingerprints: Vec<Fingerprint> = authorities.iter().map(|one| Fingerprint::of(one)).collect();
        let signer = fingerprints.get(record.signer as usize).copied();
        self.trust(Trusted { revision: record.revision, signer, authorities })?;
        let gone: Vec<Fingerprint> = self.keys.keys().filter(|key| !fingerprints.contains(key)).copied().collect();
        for fingerprint in gone {
            self.folder.remove_authority(fingerprint)?;
            self.keys.remove(&fingerprint);
        }
        Ok(true)
    }

    /// Signs a node's request (PEM).
    ///
    /// # Errors
    /// This node cannot sign, or the request is none.
    pub(super) fn sign(&self, asked: &str, node: NodeId) -> anyhow::Result<Vec<CertificateDer<'static>>> {
        let cluster = self.cluster.context("the cluster has no id yet")?;
        let signer = self.signer().context("this node does not hold the authority's key")?;
        signer.sign(asked, NodeName { cluster, node }, self.lifetime)
    }

    /// Signs its own certificate. Blocks.
    ///
    /// # Errors
    /// As [`Own::sign`], or it cannot be written.
    pub(super) fn sign_own(&mut self) -> anyhow::Result<()> {
        let (key, asked) = request()?;
        let chain = self.sign(&asked, self.node)?;
        self.put_leaf(Leaf::new(key, chain)?)
    }

    /// Uses a certificate that was signed for this node. Blocks.
    ///
    /// # Errors
    /// It is another node's, or it cannot be written.
    pub(super) fn put_leaf(&mut self, leaf: Leaf) -> anyhow::Result<()> {
        ensure!(leaf.name.node == self.node, "the certificate is of node {:012x}", leaf.name.node);
        self.folder.put_leaf(&leaf)?;
        self.cluster = Some(leaf.name.cluster);
        self.leaf = Some(leaf);
        Ok(())
    }
}

/// Now, in seconds since the Unix epoch.
pub(super) fn now() -> u64 {
    seconds(SystemTime::now())
}
