//! Who believes whom, by what each of them holds. The process tests (`tests/it/peers_tls.rs`) see the same by TLS.

use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use flotilla_raft::{AuthoritiesRecord, TokenRecord};
use rustls::pki_types::{CertificateDer, UnixTime};
use tempfile::TempDir;
use uuid::Uuid;

use super::authority::{Authority, Fingerprint, Leaf, request};
use super::folder::{Folder, Trusted};
use super::join::{Proof, Token};
use super::material::Standing;
use super::own::Own;
use super::refusals::Reason;

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const OTHER_SECRET: &[u8] = b"0123456789abcdef0123456789abcdeX";

pub(super) struct Node {
    pub(super) own: Own,
    _dir: TempDir,
}

impl Node {
    fn new(node: u64, proof: Option<Proof>) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let own = Own::open(Folder::of(dir.path()), node, None, Duration::from_secs(9000), proof)?;
        Ok(Self { own, _dir: dir })
    }

    /// A node that founded a cluster of this id.
    fn founder(node: u64, cluster: u128, proof: Option<Proof>) -> Result<Self> {
        let mut founder = Self::new(node, proof)?;
        founder.own.make_authority(Some(Uuid::from_u128(cluster)))?;
        founder.own.sign_own()?;
        Ok(founder)
    }

    /// Gets its certificate from another one.
    fn join(&mut self, founder: &Self) -> Result<()> {
        let (key, asked) = request()?;
        let chain = founder.own.sign(&asked, self.own.node)?;
        self.own.trust(founder.own.trusted.clone())?;
        self.own.put_leaf(Leaf::new(key, chain)?)
    }

    pub(super) fn shows(&mut self) -> Result<Vec<CertificateDer<'static>>> {
        let shown = self.own.material()?.shown.context("nothing to show")?;
        Ok(shown.cert.clone())
    }

    /// What another one has proved to this one.
    fn judges(&mut self, other: &mut Self) -> Result<Result<Standing, Reason>> {
        self.judges_in(other, 0)
    }

    fn judges_in(&mut self, other: &mut Self, seconds: u64) -> Result<Result<Standing, Reason>> {
        let now = UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs() + seconds));
        let judged = self.own.material()?.judge(&other.shows()?, now);
        Ok(judged.map_err(|refused| refused.reason))
    }
}

/// Two nodes of one cluster, which both know the join secret.
pub(super) fn two_nodes() -> Result<(Node, Node)> {
    let (founder, mut joins) = (Node::founder(1, 7, secret()?)?, Node::new(2, secret()?)?);
    joins.join(&founder)?;
    Ok((founder, joins))
}

fn secret() -> Result<Option<Proof>> {
    Proof::of_secret(SECRET).map(Some)
}

fn is_node(id: u64) -> Result<Standing, Reason> {
    Ok(Standing::Node(Some(id)))
}

#[test]
fn who_knows_the_secret_may_join_and_is_a_node_once_it_has_a_certificate() -> Result<()> {
    let (mut founder, mut joins) = (Node::founder(1, 7, secret()?)?, Node::new(2, secret()?)?);
    assert_eq!(founder.judges(&mut joins)?, Ok(Standing::Secret));
    // It believes the cluster for the secret's sake, and not as nodes of its own.
    assert_eq!(joins.judges(&mut founder)?, Ok(Standing::Secret));
    joins.join(&founder)?;
    assert_eq!(founder.judges(&mut joins)?, is_node(2));
    assert_eq!(joins.judges(&mut founder)?, is_node(1));
    Ok(())
}

#[test]
fn strangers_are_refused_by_both() -> Result<()> {
    let mut founder = Node::founder(1, 7, secret()?)?;
    let mut stranger = Node::new(2, Some(Proof::of_secret(OTHER_SECRET)?))?;
    assert_eq!(founder.judges(&mut stranger)?, Err(Reason::UnknownAuthority));
    assert_eq!(stranger.judges(&mut founder)?, Err(Reason::UnknownAuthority));
    let mut other = Node::founder(3, 8, Some(Proof::of_secret(OTHER_SECRET)?))?;
    assert_eq!(founder.judges(&mut other)?, Err(Reason::OtherCluster));
    assert_eq!(other.judges(&mut founder)?, Err(Reason::OtherCluster));
    assert!(founder.own.material()?.judge(&[], UnixTime::now()).is_err_and(|no| no.reason == Reason::NoCertificate));
    let nonsense = [CertificateDer::from(b"nonsense".to_vec())];
    assert!(founder.own.material()?.judge(&nonsense, UnixTime::now()).is_err_and(|no| no.reason == Reason::Unreadable));
    Ok(())
}

#[test]
fn a_node_of_another_cluster_with_the_same_secret_may_only_join() -> Result<()> {
    let (mut one, mut other) = (Node::founder(1, 7, secret()?)?, Node::founder(2, 8, secret()?)?);
    assert_eq!(one.judges(&mut other)?, Ok(Standing::Secret));
    Ok(())
}

#[test]
fn certificates_end() -> Result<()> {
    let (mut founder, mut joins) = (Node::founder(1, 7, None)?, Node::new(2, None)?);
    joins.join(&founder)?;
    assert_eq!(founder.judges_in(&mut joins, 8900)?, is_node(2));
    assert_eq!(founder.judges_in(&mut joins, 9100)?, Err(Reason::Expired));
    assert!(!joins.own.needs_leaf());
    Ok(())
}

#[test]
fn an_ended_certificate_gives_way_to_the_proof() -> Result<()> {
    let mut founder = Node::founder(1, 7, secret()?)?;
    let mut late = Node::new(2, secret()?)?;
    founder.own.lifetime = Duration::ZERO;
    late.join(&founder)?;
    assert!(late.own.needs_leaf());
    assert_eq!(founder.judges(&mut late)?, Ok(Standing::Secret));
    Ok(())
}

#[test]
fn a_token_is_for_calling_and_its_fingerprint_for_being_believed() -> Result<()> {
    let mut founder = Node::founder(1, 7, secret()?)?;
    let fingerprint = founder.own.trusted.signer.context("a signer")?;
    let token = Token::make(fingerprint);
    let mut joins = Node::new(2, Some(Proof::of_token(token.to_string().as_bytes())?))?;
    assert_eq!(founder.judges(&mut joins)?, Err(Reason::UnknownAuthority));
    let authority = Bytes::copy_from_slice(token.authority()?.certificate());
    founder.own.tokens = vec![TokenRecord { id: token.id.clone(), authority, ends_ms: 0, used_by: None }];
    assert_eq!(founder.judges(&mut joins)?, Ok(Standing::Token(token.id.clone())));
    assert_eq!(joins.judges(&mut founder)?, Ok(Standing::Secret));
    let mut other = Node::founder(3, 8, None)?;
    assert_eq!(joins.judges(&mut other)?, Err(Reason::UnknownAuthority));
    Ok(())
}

#[test]
fn during_a_rotation_both_authorities_are_believed_and_afterwards_one() -> Result<()> {
    let (mut first, mut second) = (Node::founder(1, 7, None)?, Node::new(2, None)?);
    second.join(&first)?;
    let old = first.own.trusted.signer.context("a signer")?;
    let made = Authority::make(Uuid::from_u128(7))?;
    let new = first.own.keep(made)?;
    let certificate = |node: &Node, of: &Fingerprint| {
        node.own.keys.get(of).map(|one| Bytes::copy_from_slice(one.certificate())).context("held")
    };
    let (old_cert, new_cert) = (certificate(&first, &old)?, certificate(&first, &new)?);
    let record = |certificates: &[&Bytes], signer, revision| AuthoritiesRecord {
        certificates: certificates.iter().map(|one| (*one).clone()).collect(),
        signer,
        revision,
        time_ms: 0,
    };
    for node in [&mut first, &mut second] {
        assert!(node.own.agreed(&record(&[&old_cert, &new_cert], 0, 5))?);
        assert!(!node.own.needs_leaf());
    }
    assert!(first.own.agreed(&record(&[&old_cert, &new_cert], 1, 6))?);
    assert!(first.own.needs_leaf());
    first.own.sign_own()?;
    assert_eq!(second.judges(&mut first)?, is_node(1));
    assert_eq!(first.judges(&mut second)?, is_node(2));
    second.join(&first)?;
    for node in [&mut first, &mut second] {
        assert!(node.own.agreed(&record(&[&new_cert], 0, 7))?);
        // What is older says nothing any more.
        assert!(!node.own.agreed(&record(&[&old_cert], 0, 5))?);
    }
    assert_eq!(second.judges(&mut first)?, is_node(1));
    assert_eq!(first.own.keys.keys().collect::<Vec<_>>(), [&new]);
    let mut late = Node::new(3, None)?;
    late.own.trust(Trusted {
        revision: 5,
        signer: Some(old),
        authorities: vec![CertificateDer::from(old_cert.to_vec())],
    })?;
    assert_eq!(late.judges(&mut second)?, Err(Reason::UnknownAuthority));
    Ok(())
}

#[test]
fn what_a_node_holds_survives_a_restart() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let open = |node| Own::open(Folder::of(dir.path()), node, None, Duration::from_secs(9000), None);
    let mut own = open(1)?;
    own.make_authority(None)?;
    own.sign_own()?;
    let again = open(1)?;
    assert!(again.signer().is_some() && !again.needs_leaf());
    assert_eq!((again.cluster, &again.trusted), (own.cluster, &own.trusted));
    // The folder of another node gives no certificate to this one.
    assert!(open(2)?.needs_leaf());
    Ok(())
}
