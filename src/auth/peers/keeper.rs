//! What goes on beside: what the cluster agreed on is followed, certificates are renewed, voters fetch the authority's key, and
//! whoever leads sees to the rest.

use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_raft::{Consensus, Member};
use futures::future::join_all;

use super::PeerTls;
use super::authority::{Fingerprint, Said};
use super::calls::votes;
use super::rotation;

/// How often it is looked whether there is something to do.
const LOOK_EACH: Duration = Duration::from_millis(500);

/// How long what fails is left alone.
const RETRY_EACH: Duration = Duration::from_secs(5);

/// A node that no other answers for so long may be one that they do not believe any more.
const ALONE_AFTER: Duration = Duration::from_secs(5);

impl PeerTls {
    /// Looks after all of it as long as the node runs.
    pub(super) async fn keep(&self, consensus: &Consensus) {
        let mut told = String::new();
        let mut alone = Instant::now();
        loop {
            let looked = self.look_after(consensus, &mut alone).await;
            let pause = match looked {
                Ok(()) => {
                    told.clear();
                    LOOK_EACH
                }
                Err(problem) => {
                    let reason = format!("{problem:#}");
                    if reason != told {
                        tracing::warn!(
                            reason,
                            "the certificates of the peer port cannot be looked after; it is tried again"
                        );
                        told = reason;
                    }
                    RETRY_EACH
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn look_after(&self, consensus: &Consensus, alone: &mut Instant) -> anyhow::Result<()> {
        self.follow_state(consensus).await?;
        // Who belongs to no cluster yet gets its certificate with it (`cluster::founding`).
        if consensus.is_empty() {
            return Ok(());
        }
        self.first_authority(consensus).await?;
        if votes(consensus, consensus.node_id()) {
            self.fetch_keys(consensus).await?;
        }
        if self.look(|own| Ok(own.needs_leaf())).await? {
            self.renew(consensus).await?;
        } else if self.is_alone(consensus, alone) {
            self.hide_leaf(true).await?;
            let asked = self.ask_others(consensus).await;
            self.hide_leaf(false).await?;
            if let Err(problem) = asked {
                // It was asked because of a rotation that may not have waited for this node; mostly the others are just away.
                tracing::debug!(reason = format!("{problem:#}"), "no other node gives this one a certificate");
            }
        }
        if consensus.leader() == Some(consensus.node_id()) {
            self.agree_on_first(consensus).await?;
            self.go_on_with_rotation(consensus).await?;
        }
        Ok(())
    }

    /// Takes over what the log says; what the proof has signed is signed anew in time.
    async fn follow_state(&self, consensus: &Consensus) -> anyhow::Result<()> {
        let (record, tokens) = (consensus.registry().authorities()?, consensus.registry().tokens()?);
        let cluster = consensus.registry().cluster_id()?;
        self.on_own(move |own, current| {
            let mut changed = match &record {
                Some(record) => own.agreed(record)?,
                None => false,
            };
            if own.tokens != tokens {
                own.tokens = tokens;
                changed = true;
            }
            if cluster.is_some() && own.cluster != cluster {
                own.cluster = cluster;
                changed = true;
            }
            if changed || own.is_stale() {
                current.put(own.material()?);
            }
            Ok(())
        })
        .await
    }

    /// A cluster that has no authority, as one that was founded without: its first voter makes one.
    async fn first_authority(&self, consensus: &Consensus) -> anyhow::Result<()> {
        let Some(cluster) = consensus.registry().cluster_id()? else { return Ok(()) };
        let members = consensus.members();
        let first = members.iter().filter(|member| member.voter).map(|member| member.id).min();
        if consensus.registry().authorities()?.is_some() || first != Some(consensus.node_id()) {
            return Ok(());
        }
        let has_none = self.look(|own| Ok(own.leaf.is_none() && own.trusted.authorities.is_empty())).await?;
        if has_none {
            self.change(move |own| own.make_authority(Some(cluster))).await?;
        }
        Ok(())
    }

    /// Gets a new certificate: by itself where it is a voter that holds the key, else from one.
    async fn renew(&self, consensus: &Consensus) -> anyhow::Result<()> {
        let votes = votes(consensus, consensus.node_id());
        if votes && self.look(|own| Ok(own.signer().is_some())).await? {
            self.change(|own| own.sign_own()).await?;
            tracing::info!(ends_at = self.ends_at(), "this node has renewed its certificate");
            return Ok(());
        }
        self.ask_others(consensus).await
    }

    /// What is shown is made anew only where that changes it.
    async fn hide_leaf(&self, hides: bool) -> anyhow::Result<()> {
        self.on_own(move |own, current| {
            if own.hide_leaf(hides) {
                current.put(own.material()?);
            }
            Ok(())
        })
        .await
    }

    async fn ask_others(&self, consensus: &Consensus) -> anyhow::Result<()> {
        let cluster = self.cluster_id();
        let mut last = Ok(());
        let voters =
            others(consensus).into_iter().filter(|member| member.voter).map(|member| member.record.peer_address);
        // Who was killed just after he had joined may not know of whom the cluster is made.
        let known = if consensus.members().is_empty() { consensus.peers().to_vec() } else { voters.collect() };
        for address in known {
            last = self.fetch_leaf_from(&address, cluster).await;
            if last.is_ok() {
                break;
            }
        }
        last
    }

    /// Whether no other member has answered for a while.
    fn is_alone(&self, consensus: &Consensus, since: &mut Instant) -> bool {
        let (members, others) = (consensus.members(), others(consensus));
        let has_none = others.is_empty() && !members.is_empty();
        if has_none || others.iter().any(|member| consensus.reachable(member.id)) {
            *since = Instant::now();
        }
        let is_alone = since.elapsed() > ALONE_AFTER;
        if is_alone {
            *since = Instant::now();
        }
        is_alone
    }

    /// Fetches the keys of the authorities that it does not hold from the other voters.
    async fn fetch_keys(&self, consensus: &Consensus) -> anyhow::Result<()> {
        let missing: Vec<Fingerprint> = self
            .look(|own| {
                let all = own.trusted.authorities.iter().map(|one| Fingerprint::of(one));
                Ok(all.filter(|one| !own.keys.contains_key(one)).collect())
            })
            .await?;
        for fingerprint in missing {
            let voters = others(consensus);
            let asked = voters.iter().filter(|member| member.voter);
            let asked = asked.map(|member| self.inner.calls.authority(&member.record.peer_address, fingerprint));
            let Some(found) = join_all(asked).await.into_iter().find_map(Result::ok) else { continue };
            self.look(move |own| own.keep(found).map(drop)).await?;
            tracing::info!(%fingerprint, "this node holds the authority's key");
        }
        Ok(())
    }

    /// Lets the cluster know of the authority by which it was founded.
    async fn agree_on_first(&self, consensus: &Consensus) -> anyhow::Result<()> {
        if consensus.registry().cluster_id()?.is_none() || consensus.registry().authorities()?.is_some() {
            return Ok(());
        }
        let held = self.look(|own| Ok(own.signer().map(|signer| Bytes::copy_from_slice(signer.certificate())))).await?;
        let Some(certificate) = held else { return Ok(()) };
        let ends_at = Said::by(&certificate).map_or(0, |said| said.ends);
        rotation::agree(consensus, vec![certificate.clone()], 0, 0).await?;
        tracing::info!(fingerprint = %Fingerprint::of(&certificate), ends_at, "the cluster knows its authority");
        Ok(())
    }

    async fn go_on_with_rotation(&self, consensus: &Consensus) -> anyhow::Result<()> {
        let is_under_way = consensus.registry().authorities()?.is_some_and(|record| record.certificates.len() > 1);
        if is_under_way {
            self.go_on(consensus, false).await?;
        }
        Ok(())
    }
}

fn others(consensus: &Consensus) -> Vec<Member> {
    consensus.members().iter().filter(|member| member.id != consensus.node_id()).cloned().collect()
}
