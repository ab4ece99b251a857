//! Another authority in the place of the one that is there, without a moment in which a node does not believe another:
//! first all trust both, then all get certificates of the new one, then the old one goes.

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use flotilla_raft::{AuthoritiesRecord, Command, Consensus, Member, TrustChange};
use futures::future::join_all;
use std::time::{Duration, Instant};
use uuid::Uuid;

use super::PeerTls;
use super::authority::{Authority, Fingerprint};
use super::calls::Progress;

/// How long a rotation that waits for nobody may take.
const FINISH_LIMIT: Duration = Duration::from_secs(30);
const LOOK_EACH: Duration = Duration::from_millis(250);

/// A member as who leads sees it.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) name: String,
    pub(super) votes: bool,
    /// `None` where it does not answer.
    pub(super) progress: Option<Progress>,
}

/// How far a rotation is, and for whom it waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// There is one authority.
    Done,
    /// These members do not trust both yet, or do not hold the new key.
    Trust(Vec<String>),
    /// These members have no certificate of the new one yet.
    Sign(Vec<String>),
}

/// Where a rotation stands. With `finish` nobody is waited for who does not answer.
pub(super) fn step(record: &AuthoritiesRecord, members: &[Seen], finish: bool) -> Step {
    let [_, new] = record.certificates.as_slice() else { return Step::Done };
    let new = Fingerprint::of(new).to_string();
    let without = |is_ready: &dyn Fn(&Seen, &Progress) -> bool| {
        let waits = members.iter().filter(|seen| seen.progress.as_ref().map_or(!finish, |own| !is_ready(seen, own)));
        waits.map(|seen| seen.name.clone()).collect::<Vec<_>>()
    };
    match record.signer {
        0 => Step::Trust(without(&|seen, own| own.trusts.contains(&new) && (!seen.votes || own.keys.contains(&new)))),
        _ => Step::Sign(without(&|_, own| own.signed_by.as_ref() == Some(&new))),
    }
}

/// What to agree on next, if nobody is waited for.
fn next(record: &AuthoritiesRecord, step: &Step) -> Option<(Vec<Bytes>, u32)> {
    match step {
        Step::Trust(waits) if waits.is_empty() => Some((record.certificates.clone(), 1)),
        Step::Sign(waits) if waits.is_empty() => Some((record.certificates[1..].to_vec(), 0)),
        Step::Done | Step::Trust(_) | Step::Sign(_) => None,
    }
}

impl PeerTls {
    /// All members and how far they are.
    pub(super) async fn look_at(&self, consensus: &Consensus) -> Vec<Seen> {
        let members = consensus.members();
        let look = |member: Member| async move {
            let progress = match member.id == consensus.node_id() {
                true => self.progress().await,
                false => self.inner.calls.progress(&member.record.peer_address).await,
            };
            Seen { name: member.record.name, votes: member.voter, progress: progress.ok() }
        };
        join_all(members.iter().cloned().map(look)).await
    }

    /// Goes one step on, if this node leads and a rotation is under way.
    ///
    /// # Errors
    /// The step cannot be agreed on.
    pub(super) async fn go_on(&self, consensus: &Consensus, finish: bool) -> anyhow::Result<Step> {
        let record = consensus.registry().authorities()?.context("the cluster has no authority yet")?;
        if record.certificates.len() < 2 {
            return Ok(Step::Done);
        }
        let step = step(&record, &self.look_at(consensus).await, finish);
        if let Some((certificates, signer)) = next(&record, &step) {
            tracing::info!(signer, authorities = certificates.len(), "the rotation of the authority goes on");
            agree(consensus, certificates, signer, record.revision).await?;
        }
        Ok(step)
    }

    /// Begins a rotation on the node that leads, or begins it anew while the new authority has not signed anything. With
    /// `finish`, ends the one that is under way without those who do not answer.
    ///
    /// # Errors
    /// Why not.
    pub(super) async fn rotate_here(&self, consensus: &Consensus, finish: bool) -> anyhow::Result<()> {
        ensure!(consensus.leader() == Some(consensus.node_id()), "this node does not lead");
        let record = consensus.registry().authorities()?.context("the cluster has no authority yet")?;
        if finish {
            ensure!(record.certificates.len() > 1, "no rotation is under way");
            return self.finish(consensus).await;
        }
        ensure!(record.signer == 0, "a rotation is under way, and certificates of the new authority are being signed");
        let cluster = consensus.registry().cluster_id()?.context("the cluster has no id yet")?;
        let known = record.clone();
        let made = self.change(move |own| {
            // Else the key would go with those of the rotation before, which this node may not have followed yet.
            own.agreed(&known)?;
            let fingerprint = own.keep(Authority::make(cluster)?)?;
            let made = own.keys.get(&fingerprint).context("it was kept")?;
            Ok(Bytes::copy_from_slice(made.certificate()))
        });
        let made = made.await?;
        tracing::info!(fingerprint = %Fingerprint::of(&made), "a new authority: the rotation begins");
        let old = record.certificates.into_iter().next().context("the cluster has no authority yet")?;
        agree(consensus, vec![old, made], 0, record.revision).await
    }

    async fn finish(&self, consensus: &Consensus) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            match self.go_on(consensus, true).await? {
                Step::Done => return Ok(()),
                Step::Trust(waits) | Step::Sign(waits) if began.elapsed() > FINISH_LIMIT => {
                    bail!("still waiting for {}, which answer", waits.join(", "))
                }
                Step::Trust(_) | Step::Sign(_) => tokio::time::sleep(LOOK_EACH).await,
            }
        }
    }

    /// As [`PeerTls::rotate_here`], through whoever leads.
    ///
    /// # Errors
    /// Why not.
    pub(super) async fn rotate(&self, consensus: &Consensus, finish: bool) -> anyhow::Result<()> {
        let leader = consensus.leader().context("nobody leads; ask again")?;
        if leader == consensus.node_id() {
            return self.rotate_here(consensus, finish).await;
        }
        let members = consensus.members();
        let leader = members.iter().find(|member| member.id == leader).context("nobody leads; ask again")?;
        self.inner.calls.rotate(&leader.record.peer_address, finish).await
    }
}

/// Lets the cluster agree on its authorities.
pub(super) async fn agree(
    consensus: &Consensus,
    certificates: Vec<Bytes>,
    signer: u32,
    expected: u64,
) -> anyhow::Result<()> {
    let change = TrustChange::Authorities { certificates, signer, expected };
    let answer = consensus.propose(Uuid::new_v4(), Command::ChangeTrust(change)).await?;
    match answer.result {
        Ok(_) => Ok(()),
        Err(refusal) => bail!(refusal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(certificates: &[&'static str], signer: u32) -> AuthoritiesRecord {
        let certificates = certificates.iter().map(|one| Bytes::from_static(one.as_bytes())).collect();
        AuthoritiesRecord { certificates, signer, revision: 5, time_ms: 0 }
    }

    fn fingerprint(name: &str) -> String {
        Fingerprint::of(name.as_bytes()).to_string()
    }

    /// `trusts/keys/signed_by`, each a letter for each authority; `-` for one that does not answer.
    fn seen(name: &str, votes: bool, text: &str) -> Seen {
        let progress = (text != "-").then(|| {
            let mut parts = text.split('/').map(|part| part.chars().map(|one| fingerprint(&one.to_string())).collect());
            let (trusts, keys) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            let signed_by: Vec<String> = parts.next().unwrap_or_default();
            Progress { trusts, keys, signed_by: signed_by.into_iter().next(), ends_at: 0 }
        });
        Seen { name: name.into(), votes, progress }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_rotation_waits_for_everybody_in_each_step() {
        let both = record(&["a", "b"], 0);
        let members = [seen("n1", true, "ab/ab/a"), seen("n2", true, "ab/a/a"), seen("n3", false, "a//a")];
        assert_eq!(step(&both, &members, false), Step::Trust(names(&["n2", "n3"])));
        let members = [seen("n1", true, "ab/ab/a"), seen("n2", true, "ab/ab/a"), seen("n3", false, "ab//a")];
        assert_eq!(next(&both, &step(&both, &members, false)), Some((both.certificates.clone(), 1)));
        let signing = record(&["a", "b"], 1);
        let members = [seen("n1", true, "ab/ab/b"), seen("n2", true, "-"), seen("n3", false, "ab//a")];
        assert_eq!(step(&signing, &members, false), Step::Sign(names(&["n2", "n3"])));
        assert_eq!(step(&signing, &members, true), Step::Sign(names(&["n3"])));
        let members = [seen("n1", true, "ab/ab/b"), seen("n2", true, "-"), seen("n3", false, "ab//b")];
        assert_eq!(next(&signing, &step(&signing, &members, false)), None);
        assert_eq!(next(&signing, &step(&signing, &members, true)), Some((vec![Bytes::from_static(b"b")], 0)));
        assert_eq!(step(&record(&["b"], 0), &members, false), Step::Done);
    }
}
