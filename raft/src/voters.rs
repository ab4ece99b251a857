//! Who votes. The leader makes voters of learners that keep up, an odd number of them: a fourth voter makes no failure
//! more survivable and every majority larger. Nobody is asked, and nobody loses his place for being away.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver;

use crate::consensus::Consensus;
use crate::member::{Member, NodeId};
use crate::network::{BlobCounts, Pong};
use crate::replacement::Lost;

/// How often the leader looks.
const LOOK_EACH: Duration = Duration::from_secs(1);

/// How long a learner must have kept up.
const KEPT_UP_FOR: Duration = Duration::from_secs(10);

/// How often a leader that had better not lead tries to hand over.
const HAND_OVER_EACH: Duration = Duration::from_secs(10);

/// A node that is further behind does not keep up, in log entries, and in blobs that were pushed after it had all.
pub(crate) const LAG_MAX: u64 = 1000;

/// Fewer voters are never made of more: with one voter less than this, one disk may hold what was acknowledged.
const VOTERS_KEPT: usize = 3;

/// A member as the leader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Standing {
    id: NodeId,
    votes: bool,
    reachable: bool,
    /// It is drained, and does not stay.
    leaves: bool,
    /// A learner that has kept up long enough.
    may_vote: bool,
}

/// One change of who votes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Promote(BTreeSet<NodeId>),
    Demote(NodeId),
}

/// What to change, if anything.
fn next_step(members: &[Standing], leader: NodeId, voters_max: usize) -> Option<Step> {
    let votes: Vec<&Standing> = members.iter().filter(|member| member.votes).collect();
    let ready: Vec<NodeId> = members.iter().filter(|member| member.may_vote).map(|member| member.id).collect();
    let is_even = votes.len().is_multiple_of(2);
    // Who leaves is replaced before he goes.
    let stay = votes.iter().filter(|member| !member.leaves).count();
    let wanted = if stay.is_multiple_of(2) { 1 } else { 2 };
    if ready.len() >= wanted && stay + wanted <= voters_max {
        return Some(Step::Promote(ready.into_iter().take(wanted).collect()));
    }
    if votes.len() > voters_max || (is_even && votes.len() > VOTERS_KEPT) {
        // Whoever leaves or is away is of the least use.
        let others = votes.iter().filter(|member| member.id != leader);
        return others
            .min_by_key(|member| (!member.leaves, member.reachable, member.id))
            .map(|member| Step::Demote(member.id));
    }
    None
}

/// Whether a learner that kept up when it was looked at before still does. While images are pushed it always lacks some
/// that are on their way; with those counted, two learners would hardly ever keep up together.
fn still_keeps_up(pong: Option<&Pong>, by: Measure) -> bool {
    pong.is_some_and(|pong| {
        let blobs = BlobCounts { missing: pong.blobs.missing.saturating_sub(LAG_MAX), ..pong.blobs };
        waits_for(Some(&Pong { blobs, ..pong.clone() }), by).is_none()
    })
}

/// By what a learner is measured.
#[derive(Debug, Clone, Copy)]
struct Measure {
    commit_index: u64,
    layout_revision: u64,
    /// All members answer: what none of them has never comes.
    all_answer: bool,
}

/// Why a learner does not vote yet; `None` for one that keeps up.
fn waits_for(pong: Option<&Pong>, by: Measure) -> Option<String> {
    let Some(pong) = pong else { return Some("it does not answer".into()) };
    let lag = by.commit_index.saturating_sub(pong.applied_index);
    let never_comes = if by.all_answer { pong.blobs.nowhere } else { 0 };
    match (lag, pong.blobs.missing.saturating_sub(never_comes)) {
        (LAG_MAX.., _) => Some(format!("it is {lag} entries of the log behind")),
        (_, missing @ 1..) => Some(format!("it lacks {missing} blobs")),
        // What it lacks is known only once it has compared its files by this layout.
        _ if pong.blobs.layout_revision < by.layout_revision => {
            Some("it compares its blobs with what it should have".into())
        }
        _ => None,
    }
}

fn may_hand_over(last: Option<Instant>) -> bool {
    last.is_none_or(|at| at.elapsed() > HAND_OVER_EACH)
}

impl Consensus {
    /// Why this node, which leads, had better not.
    fn should_not_lead(&self) -> Option<&'static str> {
        if self.members().iter().any(|member| member.id == self.node_id() && member.seat.draining) {
            return Some("this node is drained");
        }
        // Its stamps would move the time of state on, and what depends on it.
        (!self.clock_agrees()).then_some("this node's clock is far off those of the others")
    }

    /// Why a member is no voter, in words for an operator; `None` for a voter.
    pub fn waits_for(&self, member: &Member) -> Option<String> {
        if member.voter {
            return None;
        }
        let waits = waits_for(self.pong_of(member.id).as_ref(), self.measure());
        Some(waits.unwrap_or_else(|| {
            "it keeps up; after ten seconds it votes, with another learner where one alone makes the voters even".into()
        }))
    }

    fn measure(&self) -> Measure {
        let all_answer = self.members().iter().all(|member| self.reachable(member.id));
        Measure { commit_index: self.status().commit_index, layout_revision: self.layout_revision(), all_answer }
    }

    /// Looks after who votes while this node leads, until it stops.
    pub(crate) async fn keep_voters(self, voters_max: usize) {
        let mut kept_up: BTreeMap<NodeId, Instant> = BTreeMap::new();
        let (mut lost, mut handed_over) = (Lost::default(), None);
        let mut ticks = tokio::time::interval(LOOK_EACH);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.has_ended() {
                return;
            }
            if self.leader() != Some(self.node_id()) || !self.quorum_reachable() {
                kept_up.clear();
                lost.clear();
                continue;
            }
            if let Some(reason) = self.should_not_lead().filter(|_| may_hand_over(handed_over)) {
                tracing::warn!("leadership is handed over: {reason}");
                handed_over = Some(Instant::now());
                self.hand_over().await;
                continue;
            }
            self.replace_lost(&mut lost).await;
            if let Err(problem) = self.look_at_voters(&mut kept_up, voters_max).await {
                tracing::warn!(error = %problem, "who votes could not be changed; it is tried again");
            }
        }
    }

    async fn look_at_voters(&self, kept_up: &mut BTreeMap<NodeId, Instant>, voters_max: usize) -> Result<(), String> {
        let is_joint = {
            let metrics = self.raft().metrics();
            let metrics = metrics.borrow_watched();
            metrics.membership_config.membership().get_joint_config().len() > 1
        };
        if is_joint {
            // A leader died between the two steps of a change.
            return self.change(ChangeMembers::AddVoterIds(BTreeSet::new())).await;
        }
        let (members, by, now) = (self.members(), self.measure(), Instant::now());
        let keeps_up = |member: &&Member| {
            let pong = self.pong_of(member.id);
            match kept_up.contains_key(&member.id) {
                true => still_keeps_up(pong.as_ref(), by),
                false => waits_for(pong.as_ref(), by).is_none(),
            }
        };
        let learners: BTreeSet<NodeId> =
            members.iter().filter(|member| !member.voter).filter(keeps_up).map(|member| member.id).collect();
        kept_up.retain(|id, _| learners.contains(id));
        for id in learners {
            kept_up.entry(id).or_insert(now);
        }
        let standings: Vec<Standing> = members
            .iter()
            .map(|member| Standing {
                id: member.id,
                votes: member.voter,
                reachable: self.reachable(member.id),
                leaves: member.seat.draining,
                may_vote: !member.seat.draining
                    && kept_up.get(&member.id).is_some_and(|since| now - *since >= KEPT_UP_FOR),
            })
            .collect();
        let Some(step) = next_step(&standings, self.node_id(), voters_max) else { return Ok(()) };
        tracing::info!(?step, "changing who votes");
        match step {
            Step::Promote(ids) => self.change(ChangeMembers::AddVoterIds(ids)).await,
            Step::Demote(id) => self.change(ChangeMembers::RemoveVoters(BTreeSet::from([id]))).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(text: &str) -> Vec<Standing> {
        let kinds = text.chars().zip(1..);
        kinds
            .map(|(kind, id)| Standing {
                id,
                votes: "vVd".contains(kind),
                leaves: kind == 'd',
                reachable: kind != 'v' && kind != 'l',
                may_vote: kind == 'R',
            })
            .collect()
    }

    /// `V` votes, `v` votes and is away, `d` votes and is drained, `R` may vote, `l` is a learner that is away, `L` one that does not keep up yet.
    fn step(text: &str, voters_max: usize) -> Option<Step> {
        next_step(&members(text), 1, voters_max)
    }

    fn promote(ids: &[NodeId]) -> Option<Step> {
        Some(Step::Promote(ids.iter().copied().collect()))
    }

    #[test]
    fn voters_grow_by_two() {
        assert_eq!(step("VVVR", 5), None);
        assert_eq!(step("VVVRR", 5), promote(&[4, 5]));
        assert_eq!(step("VVVRL", 5), None);
        assert_eq!(step("VR", 5), None);
        assert_eq!(step("VRR", 5), promote(&[2, 3]));
        assert_eq!(step("VVVVVRR", 5), None);
        assert_eq!(step("VVVVVRR", 7), promote(&[6, 7]));
    }

    #[test]
    fn an_even_number_becomes_odd() {
        assert_eq!(step("VVR", 5), promote(&[3]));
        assert_eq!(step("VVVVR", 5), promote(&[5]));
        assert_eq!(step("VVVvR", 5), promote(&[5]));
        assert_eq!(step("VVVV", 5), Some(Step::Demote(2)));
        assert_eq!(step("VVVv", 5), Some(Step::Demote(4)));
        assert_eq!(step("VV", 5), None);
    }

    #[test]
    fn who_leaves_is_replaced_first() {
        assert_eq!(step("VVd", 5), None);
        assert_eq!(step("VVdR", 5), promote(&[4]));
        assert_eq!(step("VVdR", 3), promote(&[4]));
        assert_eq!(step("VVdV", 5), Some(Step::Demote(3)));
        assert_eq!(step("VVdv", 5), Some(Step::Demote(3)));
        assert_eq!(step("VVVVd", 5), None);
        assert_eq!(step("VVVVdR", 5), promote(&[6]));
        assert_eq!(step("VVVVdV", 5), Some(Step::Demote(5)));
    }

    #[test]
    fn nobody_loses_a_vote_for_being_away() {
        assert_eq!(step("Vvv", 5), None);
        assert_eq!(step("VVvvv", 5), None);
        assert_eq!(step("VVvR", 5), None);
        assert_eq!(step("VVVl", 5), None);
    }

    #[test]
    fn a_lower_limit_is_kept() {
        assert_eq!(step("VVVVV", 3), Some(Step::Demote(2)));
        assert_eq!(step("VVVVRR", 3), Some(Step::Demote(2)));
    }

    #[test]
    fn a_learner_waits_until_it_has_log_and_blobs() {
        let pong = |applied_index, missing| Pong {
            id: 4,
            applied_index,
            version: String::new(),
            blobs: BlobCounts { missing, layout_revision: 7, ..BlobCounts::default() },
            time_ms: 0,
        };
        let by = Measure { commit_index: 10_000, layout_revision: 7, all_answer: true };
        let later = Measure { layout_revision: 8, ..by };
        assert_eq!(waits_for(Some(&pong(9_500, 0)), by), None);
        assert!(waits_for(Some(&pong(9_500, 0)), later).is_some_and(|why| why.contains("compares")));
        assert!(waits_for(Some(&pong(9_000, 0)), by).is_some_and(|why| why.contains("1000 entries")));
        assert!(waits_for(Some(&pong(10_000, 2)), by).is_some_and(|why| why.contains("2 blobs")));
        assert!(waits_for(None, by).is_some_and(|why| why.contains("not answer")));
        // It had all once: what is pushed since is on its way.
        assert!(still_keeps_up(Some(&pong(9_500, 20)), by));
        assert!(!still_keeps_up(Some(&pong(9_500, 1_001)), by));
        assert!(!still_keeps_up(Some(&pong(9_000, 20)), by) && !still_keeps_up(None, by));
        assert!(!still_keeps_up(Some(&pong(9_500, 20)), later));
        // What nobody has never comes; as long as a member is away, that one may have it.
        let mut lost = pong(10_000, 2);
        lost.blobs.nowhere = 2;
        assert_eq!(waits_for(Some(&lost), by), None);
        assert!(waits_for(Some(&lost), Measure { all_answer: false, ..by }).is_some());
    }
}
