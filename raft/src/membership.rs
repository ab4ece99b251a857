//! Who belongs to the cluster, and who leads it: found, join, hand over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::join_all;
use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::command::Command;
use crate::consensus::{Consensus, ProposeError};
use crate::liveness::{CLOCK_MAX_MS, now_ms};
use crate::member::{Member, NodeId, NodeRecord};
use crate::network::{BlobCounts, Call, CallError, Identity, JoinReply, Pong, RemoveReply};

/// How long each of a leader's attempts to hand over may take.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(1);

/// How long a node that asks to join may take to say who it is.
const DIAL_LIMIT: Duration = Duration::from_secs(2);

/// How long a leader may take to remove a member.
const REMOVE_LIMIT: Duration = Duration::from_secs(10);

/// How long a member may take to say that it is there.
const LOOK_LIMIT: Duration = Duration::from_secs(1);

/// How a member is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Removal {
    /// Only where nothing is lost.
    Safe,
    /// Although copies of blobs may be lost.
    Force,
    /// Its disk is gone: this node, which has its name, takes its place.
    Replaced {
        /// The newcomer.
        by: NodeId,
    },
}

/// How often another leader is asked, and the pause before.
const LEADERS_ASKED: usize = 20;
const LEADER_ASKED_EACH: Duration = Duration::from_millis(250);

/// Why a member was not removed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RemoveError {
    /// It is not one.
    #[error("there is no such member")]
    Unknown,
    /// Something would be lost; says what.
    #[error("{0}")]
    Refused(String),
    /// Nobody leads, or the leader does not answer: the member may be removed or not.
    #[error("the leader does not answer: {0}; ask again")]
    NoLeader(String),
}

/// How often a leader looks for a voter that has its whole log.
const SUCCESSOR_LOOKS: usize = 20;

/// The pause between two looks.
const SUCCESSOR_LOOKED_FOR_EACH: Duration = Duration::from_millis(10);

impl Consensus {
    /// Founds a cluster of these nodes, this one among them, all of them empty: the first entry of the log names
    /// them, the second gives the cluster its id.
    ///
    /// # Errors
    /// A text that says why, such as that this node is not empty.
    pub async fn found(&self, nodes: BTreeMap<NodeId, NodeRecord>) -> Result<(), String> {
        self.raft().initialize(nodes).await.map_err(|problem| problem.to_string())
    }

    /// Gives the cluster this id, if it has none yet.
    ///
    /// # Errors
    /// See [`ProposeError`].
    pub async fn name_cluster(&self, cluster_id: Uuid) -> Result<(), ProposeError> {
        self.propose(Uuid::new_v4(), Command::Found { cluster_id }).await.map(|_| ())
    }

    /// Asks a node of a cluster who it is.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn identity_of(&self, address: &str, limit: Duration) -> Result<Identity, CallError> {
        self.client().call(address, None, Call::Identity, &(), limit).await
    }

    /// Asks a node of a cluster to take this one in.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn ask_to_join(&self, address: &str, cluster_id: Uuid, limit: Duration) -> Result<JoinReply, CallError> {
        let request = (self.node_id(), self.record().clone(), Some(cluster_id));
        self.client().call(address, None, Call::Join, &request, limit).await
    }

    /// Takes a node in as a learner, if this node leads.
    pub(crate) async fn take_in(&self, id: NodeId, record: NodeRecord, cluster_id: Option<Uuid>) -> JoinReply {
        let own = self.identity().cluster_id;
        if own.is_none() || own != cluster_id {
            let named = |id: Option<Uuid>| id.map_or_else(|| "without an id".to_owned(), |id| id.to_string());
            return JoinReply::Refused(format!("this is cluster {}, not {}", named(own), named(cluster_id)));
        }
        let members = self.members();
        if members.iter().any(|member| member.id == id) {
            return JoinReply::Member(members.to_vec());
        }
        match self.leader() {
            Some(leader) if leader == self.node_id() => {}
            leader => {
                return JoinReply::NotLeader(leader.and_then(|leader| {
                    members.iter().find(|member| member.id == leader).map(|member| member.record.clone())
                }));
            }
        }
        let checked = async {
            self.dial_back(id, &record).await?;
            self.name_is_free(&record.name).await
        };
        if let Err(problem) = checked.await {
            tracing::warn!(
                name = record.name,
                peer_address = record.peer_address,
                reason = problem,
                "a node is not taken in"
            );
            return JoinReply::Refused(problem);
        }
        // The node is added without a vote: one that never comes must not raise the quorum (case C43).
        let change = ChangeMembers::AddNodes(BTreeMap::from([(id, record)]));
        match self.change(change).await {
            Ok(()) => JoinReply::Member(self.members().to_vec()),
            Err(_) if self.leader() != Some(self.node_id()) => JoinReply::NotLeader(None),
            Err(problem) => JoinReply::Refused(problem),
        }
    }

    /// Whether a node is where it says that others find it (case C43).
    async fn dial_back(&self, id: NodeId, record: &NodeRecord) -> Result<(), String> {
        let address = &record.peer_address;
        match self.identity_of(address, DIAL_LIMIT).await {
            Ok(found) if found.id == id => match found.time_ms.abs_diff(now_ms()) {
                off_ms @ CLOCK_MAX_MS.. => Err(format!("its clock is {} s off: set it right", off_ms / 1000)),
                _ => Ok(()),
            },
            Ok(found) => Err(format!(
                "at its `peer_advertise` {address} another node answers, {} ({:012x})",
                found.record.name, found.id
            )),
            Err(problem) => Err(format!("it does not answer at its `peer_advertise` {address}: {problem}")),
        }
    }

    /// Whether no member that runs has this name: operators tell nodes apart by it.
    async fn name_is_free(&self, name: &str) -> Result<(), String> {
        for member in self.members().iter().filter(|member| member.record.name == name) {
            if self.look_at(member).await.pong.is_some() {
                return Err(format!(
                    "a node called {name} runs already, {:012x}: give this one another name",
                    member.id
                ));
            }
        }
        Ok(())
    }

    /// Changes the membership; members that lose their vote stay learners (openraft#1192).
    pub(crate) async fn change(&self, change: ChangeMembers<NodeId, NodeRecord>) -> Result<(), String> {
        self.raft().change_membership(change, true).await.map(drop).map_err(|problem| problem.to_string())
    }

    /// Removes a member from the cluster, through whoever leads. Its data stays on its disk and takes part in nothing
    /// any more. Says what may be lost with it, where that was forced.
    ///
    /// # Errors
    /// See [`RemoveError`]. What would stop all writes is refused always.
    pub async fn remove(&self, id: NodeId, how: Removal) -> Result<Option<String>, RemoveError> {
        let mut reason = "nobody leads".to_owned();
        for _ in 0..LEADERS_ASKED {
            let leader = self.leader().and_then(|leader| self.members().iter().find(|one| one.id == leader).cloned());
            let reply = match leader {
                None => RemoveReply::NotLeader,
                Some(leader) if leader.id == self.node_id() => self.remove_here(id, how).await,
                Some(leader) => {
                    let (address, request) = (leader.record.peer_address, (id, how));
                    let call = self.client().call(&address, Some(leader.id), Call::Remove, &request, REMOVE_LIMIT);
                    call.await.unwrap_or_else(|problem| {
                        reason = problem.to_string();
                        RemoveReply::NotLeader
                    })
                }
            };
            match reply {
                RemoveReply::Removed(lost) => return Ok(lost),
                RemoveReply::Unknown => return Err(RemoveError::Unknown),
                RemoveReply::Refused(reason) => return Err(RemoveError::Refused(reason)),
                RemoveReply::NotLeader => tokio::time::sleep(LEADER_ASKED_EACH).await,
            }
        }
        Err(RemoveError::NoLeader(reason))
    }

    /// Asks a member now: who died a moment ago may still count as reachable.
    async fn look_at<'a>(&self, member: &'a Member) -> Seen<'a> {
        let pong = match member.id == self.node_id() {
            true => Some(self.pong()),
            false => {
                let address = &member.record.peer_address;
                self.client().call::<_, Pong>(address, Some(member.id), Call::Ping, &(), LOOK_LIMIT).await.ok()
            }
        };
        let (layout, rules) = (self.layout_revision(), self.rules().revision());
        let is_of_now = |counts: &BlobCounts| counts.layout_revision >= layout && counts.rules_revision >= rules;
        let has_compared = pong.as_ref().is_some_and(|pong| is_of_now(&pong.blobs));
        Seen { member, pong, has_compared }
    }

    /// Removes a member, if this node leads. The leader itself hands over first, and its successor does it.
    pub(crate) async fn remove_here(&self, id: NodeId, how: Removal) -> RemoveReply {
        if self.leader() != Some(self.node_id()) {
            return RemoveReply::NotLeader;
        }
        // What is looked at before one removal does not hold after another.
        let _turn = self.removing().lock().await;
        let members = self.members();
        let Some(member) = members.iter().find(|member| member.id == id) else { return RemoveReply::Unknown };
        let seen: Vec<Seen> = join_all(members.iter().map(|member| self.look_at(member))).await;
        let copies_min =
            self.copies_needed(self.options().replicas, self.fewest_replicas().min(self.options().min_copies));
        if let Some(refusal) = removal_refused(&seen, id, how, copies_min) {
            return RemoveReply::Refused(refusal);
        }
        let lost = (how == Removal::Force).then(|| removal_refused(&seen, id, Removal::Safe, copies_min)).flatten();
        if id == self.node_id() {
            self.hand_over().await;
            return RemoveReply::NotLeader;
        }
        tracing::warn!(name = member.record.name, node_id = format!("{id:012x}"), ?how, ?lost, "removing a member");
        let ids = BTreeSet::from([id]);
        let removed = async {
            if member.voter {
                self.change(ChangeMembers::RemoveVoters(ids.clone())).await?;
            }
            self.change(ChangeMembers::RemoveNodes(ids)).await
        };
        match removed.await {
            Ok(()) => RemoveReply::Removed(lost),
            // Whoever leads by now does what is left to do.
            Err(_) if self.leader() != Some(self.node_id()) => RemoveReply::NotLeader,
            Err(problem) => RemoveReply::Refused(problem),
        }
    }

    /// Hands leadership over, if this node leads: to a voter that has the whole log, since openraft's target refuses
    /// without it and the leader takes no proposals meanwhile. Gives up after two attempts; an election does it then.
    pub async fn hand_over(&self) {
        for _ in 0..2 {
            let Some(successor) = self.successor().await else { return };
            if self.raft().trigger().transfer_leader(successor).await.is_err() {
                return;
            }
            let mut seen = self.raft().metrics();
            let own = self.node_id();
            let changed = seen.wait_until(|metrics| metrics.current_leader.is_some_and(|leader| leader != own));
            if matches!(tokio::time::timeout(HAND_OVER_LIMIT, changed).await, Ok(Ok(_))) {
                tracing::info!(node_id = format!("{successor:012x}"), "leadership handed over");
                return;
            }
        }
    }

    /// The voter to hand over to: one with the last entry if that can be had soon, else the one that has most. `None`
    /// where this node does not lead, or no other voter answers.
    async fn successor(&self) -> Option<NodeId> {
        let mut best = None;
        for _ in 0..SUCCESSOR_LOOKS {
            let metrics = self.raft().metrics().borrow_watched().clone();
            if metrics.current_leader != Some(self.node_id()) {
                return None;
            }
            let matched = metrics.replication.unwrap_or_default();
            let matched = |id: &NodeId| matched.get(id).copied().flatten().map(|log_id| log_id.index);
            let voters: Vec<NodeId> = metrics.membership_config.membership().voter_ids().collect();
            let others = voters.into_iter().filter(|id| *id != self.node_id() && self.reachable(*id));
            let members = self.members();
            let stays = |id: &NodeId| members.iter().any(|member| member.id == *id && !member.seat.draining);
            best = others.max_by_key(|id| (stays(id), matched(id)));
            if best.as_ref().is_none_or(|best| matched(best) == metrics.last_log_index) {
                break;
            }
            tokio::time::sleep(SUCCESSOR_LOOKED_FOR_EACH).await;
        }
        best
    }
}

/// A member as the leader sees it.
struct Seen<'a> {
    member: &'a Member,
    /// Its word about itself; `None` where it does not answer.
    pong: Option<Pong>,
    /// Its counts are of the layout and the settings of now.
    has_compared: bool,
}

impl Seen<'_> {
    /// It was drained to its end: it has no blob, and none is given to it.
    fn has_nothing(&self) -> bool {
        let blobs = self.pong.as_ref().map(|pong| pong.blobs.held + pong.blobs.surplus);
        self.member.seat.draining && self.has_compared && blobs == Some(0)
    }
}

/// Why a member must not be removed now; `copies_min` is the lowest number of copies by which a push is acknowledged.
fn removal_refused(members: &[Seen<'_>], id: NodeId, how: Removal, copies_min: usize) -> Option<String> {
    let remain: Vec<&Seen<'_>> = members.iter().filter(|seen| seen.member.id != id).collect();
    let voters = remain.iter().filter(|seen| seen.member.voter);
    let (all, answer) = voters.fold((0, 0), |(all, answer), seen| (all + 1, answer + usize::from(seen.pong.is_some())));
    if all == 0 {
        return Some("it is the last voter: there would be no cluster".into());
    }
    if answer <= all / 2 {
        return Some(format!(
            "of the {all} voters that remain only {answer} answer: nothing could be written any more"
        ));
    }
    let leaving = members.iter().find(|seen| seen.member.id == id)?;
    // The least number of voters that stands a failure comes again from learners, if they are given the time.
    let next = remain.iter().find(|seen| !seen.member.voter && !seen.member.seat.draining && seen.pong.is_some());
    let waits_for_voter = next.filter(|_| leaving.member.voter && all == 2).map(|next| {
        format!(
            "two voters would remain, and none of them could fail: {} is to vote first; ask again in some seconds",
            next.member.record.name
        )
    });
    match (how, &leaving.pong) {
        (Removal::Force, _) => return None,
        (Removal::Replaced { .. }, Some(_)) => {
            return Some("it answers, so its disk is not lost: decommission it instead".into());
        }
        (Removal::Replaced { by }, None) => {
            let newcomer = remain.iter().find(|seen| seen.member.id == by && seen.pong.is_some());
            return newcomer.is_none().then(|| format!("{by:012x}, which is to take its place, does not answer"));
        }
        // While images are pushed others always lack some that are on their way.
        (Removal::Safe, Some(_)) if leaving.has_nothing() => return waits_for_voter,
        // Counts come a little after a push was acknowledged.
        (Removal::Safe, Some(pong)) if copies_min < 2 || pong.blobs.surplus > 0 => {
            return Some(format!(
                "it holds {} blobs, some of which may be nowhere else: decommission it instead",
                pong.blobs.held + pong.blobs.surplus
            ));
        }
        (Removal::Safe, None) if copies_min < 2 => {
            return Some(
                "it does not answer, and some blobs have one copy alone, which it may hold; or force it".into(),
            );
        }
        (Removal::Safe, _) => {}
    }
    // Counts of the layout or the settings before say nothing: what a member that went had alone is on its way to others now.
    if let Some(late) = members.iter().find(|seen| seen.pong.is_some() && !seen.has_compared) {
        let name = &late.member.record.name;
        return Some(format!("{name} compares its blobs with what it should have now; ask again in some seconds"));
    }
    let lacks = remain.iter().find_map(|seen| {
        let name = &seen.member.record.name;
        match seen.pong.as_ref().map(|pong| pong.blobs.missing) {
            Some(0) => None,
            Some(missing) => {
                Some(format!("{name} lacks {missing} blobs, of which this may be the last copy; wait, or force it"))
            }
            None => Some(format!(
                "{name} does not answer: this may hold the last copy of its blobs; bring it back, or force it"
            )),
        }
    });
    lacks.or(waits_for_voter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::member::Seat;

    fn refusal(missing: &[Option<u64>], id: NodeId, force: bool) -> Option<String> {
        refused(missing, id, if force { Removal::Force } else { Removal::Safe }, 2)
    }

    fn refused(missing: &[Option<u64>], id: NodeId, how: Removal, copies_min: usize) -> Option<String> {
        let record = |id: u64| NodeRecord { name: format!("n{id}"), ..NodeRecord::default() };
        let members: Vec<Member> = (1..=missing.len() as u64)
            .map(|id| Member { id, record: record(id), voter: id < 4, seat: Seat::default() })
            .collect();
        let pong = |missing: u64| Pong {
            id: 1,
            applied_index: 1,
            version: String::new(),
            // The thousands are what it alone may have.
            blobs: BlobCounts { missing: missing % 1000, surplus: missing / 1000, ..BlobCounts::default() },
            time_ms: 0,
        };
        let seen = members.iter().zip(missing).map(|(member, missing)| Seen {
            member,
            pong: missing.map(pong),
            has_compared: true,
        });
        removal_refused(&seen.collect::<Vec<_>>(), id, how, copies_min)
    }

    #[test]
    fn a_member_that_was_drained_goes_while_others_wait_for_blobs() {
        let seat = Seat { draining: true, ..Seat::default() };
        let member = |id: u64, seat| Member { id, record: NodeRecord::default(), voter: true, seat };
        let members = [member(1, Seat::default()), member(2, Seat::default()), member(3, seat)];
        let refused = |surplus, has_compared| {
            let pong = |missing, surplus| {
                let blobs = BlobCounts { missing, surplus, ..BlobCounts::default() };
                Some(Pong { id: 1, applied_index: 1, version: String::new(), blobs, time_ms: 0 })
            };
            let pongs = [pong(0, 0), pong(4, 0), pong(0, surplus)];
            let seen = members.iter().zip(pongs).map(|(member, pong)| Seen { member, pong, has_compared });
            removal_refused(&seen.collect::<Vec<_>>(), 3, Removal::Safe, 2).is_some()
        };
        assert!(!refused(0, true));
        assert!(refused(1, true) && refused(0, false));
    }

    #[test]
    fn a_second_member_goes_only_once_all_have_compared_their_blobs_without_the_first() {
        let members: Vec<Member> = (1..=4)
            .map(|id| Member { id, record: NodeRecord::default(), voter: true, seat: Seat::default() })
            .collect();
        let refused = |has_compared, how| {
            let pong = |id| {
                Some(Pong { id, applied_index: 1, version: String::new(), blobs: BlobCounts::default(), time_ms: 0 })
            };
            let seen = members.iter().map(|member| Seen { member, pong: pong(member.id), has_compared });
            removal_refused(&seen.collect::<Vec<_>>(), 3, how, 2)
        };
        assert_eq!(refused(true, Removal::Safe), None);
        assert!(refused(false, Removal::Safe).is_some_and(|why| why.contains("compares its blobs")));
        assert_eq!(refused(false, Removal::Force), None);
    }

    #[test]
    fn a_member_goes_only_where_quorum_and_copies_stay() {
        assert_eq!(refusal(&[Some(0), Some(0), Some(0)], 3, false), None);
        // One that is away for good has nothing that its removal could lose.
        assert_eq!(refusal(&[Some(0), Some(0), None], 3, false), None);
        let says = |missing: &[Option<u64>], id, force, text: &str| {
            let refusal = refusal(missing, id, force);
            assert!(refusal.as_ref().is_some_and(|refusal| refusal.contains(text)), "{refusal:?}");
        };
        says(&[Some(0)], 1, true, "the last voter");
        says(&[Some(0), Some(0), None], 2, true, "only 1 answer");
        says(&[Some(0), Some(4), Some(0)], 3, false, "n2 lacks 4 blobs");
        assert_eq!(refusal(&[Some(0), Some(4), Some(0)], 3, true), None);
        says(&[Some(0), Some(0), Some(0), None], 3, false, "n4 does not answer");
        says(&[Some(0), Some(0), Some(0), Some(2000)], 4, false, "it holds 2 blobs");
        assert!(refused(&[Some(0), Some(0), None], 3, Removal::Safe, 1).is_some_and(|text| text.contains("one copy")));
        assert!(
            refused(&[Some(0), Some(0), Some(0)], 3, Removal::Safe, 1)
                .is_some_and(|text| text.contains("nowhere else"))
        );
        let by_4 = Removal::Replaced { by: 4 };
        assert_eq!(refused(&[Some(0), Some(0), None, Some(9)], 3, by_4, 1), None);
        assert!(
            refused(&[Some(0), Some(0), Some(0), Some(9)], 3, by_4, 3).is_some_and(|text| text.contains("answers"))
        );
        assert!(refused(&[Some(0), Some(0), None, None], 3, by_4, 3).is_some_and(|text| text.contains("000000000004")));
        // A learner that never came, as the one of case C43.
        assert_eq!(refusal(&[Some(0), Some(0), Some(0), None], 4, false), None);
    }
}
