//! How nodes know each other: mutual TLS on the peer port (docs/peers.md).
//!
//! Certificates are those of the cluster's own authority, which the founding node makes and every voter holds; or files
//! of the operator's; or there are none, where the operator says that the peer port is open. What is in use at a moment is
//! [`material`]; [`own`] makes it from what the node holds, [`handshake`] lets rustls ask for it, [`admit`] says who may call what,
//! [`keeper`] renews and rotates, [`calls`] is what nodes ask each other for that.
//!
//! Nothing here is ever logged but names, fingerprints and times.

mod accept;
mod admit;
pub(crate) mod api;
pub(crate) mod authority;
mod calls;
mod files;
mod folder;
mod handshake;
pub(crate) mod join;
mod keeper;
mod material;
mod own;
mod refusals;
mod rotation;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use flotilla_raft::network::Dialer;
use flotilla_raft::{Consensus, NodeId};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use rustls::ServerConfig;
use uuid::Uuid;

pub(crate) use accept::acceptor;
pub(crate) use admit::{admit, remember_caller};
pub(crate) use calls::configure;
pub(crate) use material::Standing;

use crate::config::Config;
use authority::Said;
use calls::Calls;
use files::Files;
use folder::Folder;
use handshake::Current;
use join::Proof;
use own::Own;

/// By what nodes know each other.
enum Way {
    /// By nothing.
    Open,
    /// By files of the operator's.
    Files(Files),
    /// By the cluster's own authority.
    Own(Box<Mutex<Own>>),
}

/// How this node shows who it is, and knows the others. Cheap to clone.
#[derive(Clone)]
pub(crate) struct PeerTls {
    inner: Arc<Inner>,
}

struct Inner {
    way: Way,
    current: Arc<Current>,
    dialer: Dialer,
    calls: Calls,
    /// For whom this node has signed since its start.
    signed_for: Mutex<BTreeSet<NodeId>>,
}

impl PeerTls {
    /// Reads what the configuration names and what lies in the data directory. Blocks.
    ///
    /// # Errors
    /// A file is missing or damaged; or there are peers, and nothing by which they could know this node.
    pub(crate) fn open(config: &Config, node: NodeId, cluster: Option<Uuid>) -> anyhow::Result<Self> {
        let current = Current::new();
        let way = match config.peer_tls.files() {
            _ if config.insecure_peers => {
                tracing::warn!(
                    "the peer port is open (`insecure_peers`): whoever reaches it can read and change everything"
                );
                Way::Open
            }
            Some(named) => Way::Files(Files::open(named, &current)?),
            None => {
                let proof = proof(config)?;
                let mut own = Own::open(Folder::of(&config.data_dir), node, cluster, config.peer_tls.lifetime, proof)?;
                refuse_without_proof(config, &own)?;
                current.put(own.material()?);
                Way::Own(Box::new(Mutex::new(own)))
            }
        };
        let dialer = match &way {
            Way::Open => Dialer::plain(),
            Way::Files(_) | Way::Own(_) => handshake::dialer(&current)?,
        };
        let calls = Calls::new(&dialer)?;
        Ok(Self { inner: Arc::new(Inner { way, current, dialer, calls, signed_for: Mutex::default() }) })
    }

    /// How to reach the other nodes.
    pub(crate) fn dialer(&self) -> &Dialer {
        &self.inner.dialer
    }

    /// How the peer port speaks TLS; `None` where it speaks plain HTTP.
    ///
    /// # Errors
    /// The library of TLS refuses it.
    pub(crate) fn server_config(&self) -> anyhow::Result<Option<ServerConfig>> {
        match self.inner.way {
            Way::Open => Ok(None),
            Way::Files(_) | Way::Own(_) => handshake::server_config(&self.inner.current).map(Some),
        }
    }

    /// The cluster that this node's certificate is of, where that is known.
    pub(crate) fn cluster_id(&self) -> Option<Uuid> {
        self.inner.current.get().cluster
    }

    /// When this node's certificate ends, in seconds since the Unix epoch; 0 where it has none.
    pub(crate) fn ends_at(&self) -> u64 {
        let shown = self.inner.current.get().shown.clone();
        let own = shown.as_ref().and_then(|shown| shown.cert.first()).and_then(|own| Said::by(own));
        own.map_or(0, |own| own.ends)
    }

    /// Puts the counts of refusals on the page of metrics.
    pub(crate) fn register(&self, registry: &mut Registry) {
        self.inner.current.refusals.register(registry);
    }

    /// Makes the authority of a cluster that this node is about to found with these others; says for whom it waits until
    /// each of them has its certificate.
    ///
    /// # Errors
    /// What is being waited for, or what cannot be written.
    pub(crate) async fn found(&self, others: &[(NodeId, String)]) -> Result<(), String> {
        if !matches!(self.inner.way, Way::Own(_)) {
            return Ok(());
        }
        let made = self.change(|own| {
            own.make_authority(None)?;
            if own.needs_leaf() { own.sign_own() } else { Ok(()) }
        });
        made.await.map_err(|problem| format!("the cluster's authority cannot be made: {problem:#}"))?;
        let signed_for = self.inner.signed_for.lock();
        let without: Vec<&str> =
            others.iter().filter(|(id, _)| !signed_for.contains(id)).map(|(_, name)| name.as_str()).collect();
        match without.is_empty() {
            true => Ok(()),
            false => Err(format!("waiting for {} to fetch certificates", without.join(", "))),
        }
    }

    /// Looks after certificates, authorities and tokens as long as the node runs.
    pub(crate) async fn follow(self, consensus: Consensus) {
        match &self.inner.way {
            Way::Open => {}
            Way::Files(files) => files.follow(&self.inner.current).await,
            Way::Own(_) => self.keep(&consensus).await,
        }
    }

    /// Changes what this node holds, on a thread that may wait for the disk, and puts it in use.
    async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Own) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        self.on_own(move |own, current| {
            let changed = change(own)?;
            current.put(own.material()?);
            Ok(changed)
        })
        .await
    }

    /// Looks at what this node holds.
    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&mut Own) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        self.on_own(move |own, _| look(own)).await
    }

    async fn on_own<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Own, &Current) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let inner = self.inner.clone();
        let done = tokio::task::spawn_blocking(move || match &inner.way {
            Way::Own(own) => work(&mut own.lock(), &inner.current),
            Way::Open | Way::Files(_) => bail!("this node has no authority of its own: see docs/peers.md"),
        });
        done.await?
    }
}

fn proof(config: &Config) -> anyhow::Result<Option<Proof>> {
    let read = |file: &Path| std::fs::read(file).with_context(|| file.display().to_string());
    let parsed = match (&config.join_secret_file, &config.join_token_file) {
        (Some(file), _) => Proof::of_secret(&read(file)?).with_context(|| file.display().to_string())?,
        (None, Some(file)) => Proof::of_token(&read(file)?).with_context(|| file.display().to_string())?,
        (None, None) => return Ok(None),
    };
    Ok(Some(parsed))
}

/// A node that can prove nothing would wait for its peers for ever.
fn refuse_without_proof(config: &Config, own: &Own) -> anyhow::Result<()> {
    let has_others = config.peers.iter().any(|peer| *peer != config.peer_advertise);
    if has_others && own.proof.is_none() && own.leaf.is_none() {
        bail!(
            "this node has peers and nothing by which they could know it. Give all initial nodes one secret \
             (`join_secret_file`, made by `head -c 32 /dev/urandom | base64`), or this one a token (`join_token_file`, made by \
             `flotilla node token create` at any node), or certificates (`peer_tls.cert`, `.key`, `.ca`); or open the peer port \
             to everybody (`insecure_peers`)"
        );
    }
    Ok(())
}
