//! The state of the cluster as one node sees it: the body of `GET /api/v1/cluster`, and its verdict.

use std::fmt::Write as _;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

/// A node this many log entries behind the leader is no longer in step.
pub(crate) const MAX_LAG_ENTRIES: u64 = 1_000;

/// A clock further off than this counts as wrong, in milliseconds: nothing is collected then, and no such node joins.
pub(crate) const CLOCK_OFF_MS: u64 = 5_000;

/// What `GET /api/v1/cluster` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClusterStatus {
    /// The cluster's id, given when it was formed.
    pub(crate) cluster_id: String,
    /// The state of the cluster in one word.
    pub(crate) verdict: Verdict,
    /// How many more nodes may fail at once so that a majority stays, and a copy of every blob.
    pub(crate) failures_tolerated: usize,
    /// What nodes have still to fetch from each other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) moving: Option<Moving>,
    /// The Raft term of the node that answered.
    pub(crate) term: u64,
    /// The log index up to which that node knows entries to be committed.
    pub(crate) commit_index: u64,
    /// The leader, if that node knows one.
    pub(crate) leader: Option<Leader>,
    /// All members.
    pub(crate) nodes: Vec<NodeStatus>,
}

/// Blobs on their way to where they belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Moving {
    /// Copies that are still to be made.
    pub(crate) blobs: u64,
    /// Bytes of these.
    pub(crate) bytes: u64,
    /// How long that takes at least, in seconds: at the rate that the nodes' configuration allows.
    pub(crate) seconds: u64,
}

/// Who leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Leader {
    /// Its node id.
    pub(crate) id: String,
    /// Its name.
    pub(crate) name: String,
}

/// One member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeStatus {
    /// Its node id, random and bound to its data.
    pub(crate) id: String,
    /// Its name.
    pub(crate) name: String,
    /// Where clients reach it.
    pub(crate) url: String,
    /// Its part in the agreement.
    pub(crate) role: Role,
    /// Why a learner has no vote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) waits_for: Option<String>,
    /// Whether it answers the node that was asked.
    pub(crate) reachable: bool,
    /// The version of Flotilla it runs; unknown while it cannot be reached.
    pub(crate) version: Option<String>,
    /// The log index it has applied; unknown while it cannot be reached.
    pub(crate) applied_index: Option<u64>,
    /// Log entries it has still to apply; unknown while it cannot be reached.
    pub(crate) lag: Option<u64>,
    /// Its blobs; unknown while it cannot be reached.
    pub(crate) blobs: Option<Blobs>,
    /// What fails together with it; empty: nothing does.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) zone: String,
    /// How much of the blobs it takes beside the others.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub(crate) weight: u32,
    /// Whether its blobs move to others.
    #[serde(default)]
    pub(crate) draining: bool,
    /// How far its clock is from that of the node that answered, in milliseconds, about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) clock_off_ms: Option<u64>,
}

fn one() -> u32 {
    1
}

fn is_one(weight: &u32) -> bool {
    *weight == 1
}

/// A node's part in the agreement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// A voter that orders all changes.
    Leader,
    /// A voter.
    Follower,
    /// Receives the log without a vote.
    Learner,
}

/// What a node holds of the blobs that it should hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Blobs {
    /// Blobs it has.
    pub(crate) held: u64,
    /// Bytes of these.
    #[serde(default)]
    pub(crate) held_bytes: u64,
    /// Blobs it should have and has not yet.
    pub(crate) missing: u64,
    /// Bytes of these.
    #[serde(default)]
    pub(crate) missing_bytes: u64,
    /// How many of the missing no node that answers could give.
    #[serde(default)]
    pub(crate) nowhere: u64,
    /// Bytes of these.
    #[serde(default)]
    pub(crate) nowhere_bytes: u64,
    /// Blobs it has and others should have, until all of them do.
    #[serde(default)]
    pub(crate) surplus: u64,
    /// How fast it may fetch what it lacks, in bytes a second.
    #[serde(default)]
    pub(crate) fetch_rate: u64,
    /// Whether it has compared its blobs since nodes came or went.
    #[serde(default)]
    pub(crate) compared: bool,
}

impl Blobs {
    /// Whether nothing on a node that is drained is needed any more.
    pub(crate) fn is_drained(&self) -> bool {
        self.compared && self.held == 0 && self.surplus == 0
    }
}

/// The state of the cluster in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// All voters are there and in step, and no blob lacks a copy.
    Healthy,
    /// Everything is served, but with less reserve than intended.
    Degraded,
    /// No majority or no leader: nothing can be written.
    NoQuorum,
}

impl ClusterStatus {
    /// Puts a status together and judges it.
    pub(crate) fn new(
        cluster_id: String,
        term: u64,
        commit_index: u64,
        leader: Option<Leader>,
        nodes: Vec<NodeStatus>,
        replicas: usize,
    ) -> Self {
        let (verdict, voters) = judge(leader.is_some(), &nodes);
        let failures_tolerated = voters.min(copies_to_spare(&nodes, replicas));
        let moving = moving(&nodes);
        Self { cluster_id, verdict, failures_tolerated, moving, term, commit_index, leader, nodes }
    }

    /// The verdict as a sentence: what is wrong, and how many nodes may fail now.
    pub(crate) fn sentence(&self) -> String {
        let mut sentence = match (self.verdict, self.failures_tolerated) {
            (Verdict::NoQuorum, _) => "No quorum: pulls go on, nothing can be written.".to_owned(),
            (_, 0) => "No node may fail now.".to_owned(),
            (_, 1) => "One node may fail now.".to_owned(),
            (_, more) => format!("{more} nodes may fail now."),
        };
        if self.verdict == Verdict::Degraded {
            sentence.insert_str(0, "Degraded: ");
        }
        if let Some(Moving { blobs, bytes, seconds }) = self.moving {
            let (size, time) = (ByteSize::b(bytes), humantime::format_duration(Duration::from_secs(seconds)));
            let _ = write!(sentence, " {blobs} copies ({size}) are on their way, {time} at least.");
        }
        for node in &self.nodes {
            if node.draining {
                let state = match node.blobs {
                    Some(blobs) if blobs.is_drained() => "is drained".to_owned(),
                    Some(blobs) => format!("is being drained: {} blobs left", blobs.held + blobs.surplus),
                    None => "is being drained".to_owned(),
                };
                let _ = write!(sentence, " {} {state}.", node.name);
            }
            if let Some(complaint) = node.complaint() {
                // Writing to a String cannot fail.
                let _ = write!(sentence, " {} {complaint}.", node.name);
            }
        }
        sentence
    }
}

impl Blobs {
    /// It lacks some, or has not looked since the layout changed.
    fn may_lack(self) -> bool {
        self.missing > 0 || !self.compared
    }
}

impl NodeStatus {
    fn is_voter(&self) -> bool {
        self.role != Role::Learner
    }

    /// What keeps this node from being as it should be.
    fn complaint(&self) -> Option<String> {
        if !self.reachable {
            return Some("cannot be reached".to_owned());
        }
        if let Some(Blobs { missing: missing @ 1.., nowhere, .. }) = self.blobs {
            let blobs = if missing == 1 { "blob" } else { "blobs" };
            let mut complaint = format!("lacks {missing} {blobs}");
            if nowhere > 0 {
                // Writing to a String cannot fail.
                let _ = write!(
                    complaint,
                    ", {nowhere} of which no node that answers has (its log names them): bring back the nodes that are away, or push again"
                );
            }
            return Some(complaint);
        }
        if self.blobs.is_some_and(|blobs| !blobs.compared) {
            return Some("compares its blobs with what it should have".to_owned());
        }
        if let Some(off_ms @ CLOCK_OFF_MS..) = self.clock_off_ms {
            return Some(format!("has a clock that is {} s off", off_ms / 1000));
        }
        self.lag.filter(|lag| *lag > MAX_LAG_ENTRIES).map(|lag| format!("is {lag} log entries behind"))
    }
}

/// How many nodes may fail at once so that a copy of every blob stays. Whoever lacks blobs, or does not answer, counts as
/// failed.
fn copies_to_spare(nodes: &[NodeStatus], replicas: usize) -> usize {
    let keepers = nodes.iter().filter(|node| !node.draining);
    let lacking = |node: &&NodeStatus| node.blobs.is_none_or(Blobs::may_lack);
    replicas.min(keepers.clone().count()).saturating_sub(1 + keepers.filter(lacking).count())
}

fn moving(nodes: &[NodeStatus]) -> Option<Moving> {
    let moving =
        nodes.iter().filter_map(|node| node.blobs).fold(Moving { blobs: 0, bytes: 0, seconds: 0 }, |sum, blobs| {
            let bytes = blobs.missing_bytes.saturating_sub(blobs.nowhere_bytes);
            Moving {
                blobs: sum.blobs + blobs.missing.saturating_sub(blobs.nowhere),
                bytes: sum.bytes + bytes,
                seconds: sum.seconds.max(bytes / blobs.fetch_rate.max(1)),
            }
        });
    (moving.blobs > 0).then_some(moving)
}

/// The verdict, and how many more voters may fail and still leave a majority.
fn judge(has_leader: bool, nodes: &[NodeStatus]) -> (Verdict, usize) {
    let voters = nodes.iter().filter(|node| node.is_voter());
    let majority = voters.clone().count() / 2 + 1;
    let reachable = voters.filter(|node| node.reachable).count();
    if !has_leader || reachable < majority {
        return (Verdict::NoQuorum, 0);
    }
    // A learner that catches up, or is away, takes no reserve from anyone; blobs it lacks are copies we count on.
    let in_order = nodes.iter().all(|node| match node.role {
        Role::Learner => node.blobs.is_none_or(|blobs| !blobs.may_lack()),
        Role::Leader | Role::Follower => node.complaint().is_none(),
    });
    let verdict = if in_order { Verdict::Healthy } else { Verdict::Degraded };
    (verdict, reachable - majority)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, role: Role) -> NodeStatus {
        NodeStatus {
            id: format!("id-{name}"),
            name: name.to_owned(),
            url: format!("http://{name}:5000"),
            role,
            waits_for: None,
            reachable: true,
            version: Some("0.1.0".to_owned()),
            applied_index: Some(7),
            lag: Some(0),
            blobs: Some(Blobs { held: 3, held_bytes: 30, fetch_rate: 10, compared: true, ..Blobs::default() }),
            zone: String::new(),
            weight: 1,
            draining: false,
            clock_off_ms: None,
        }
    }

    fn three(change: impl FnOnce(&mut Vec<NodeStatus>)) -> ClusterStatus {
        let mut nodes = vec![node("n1", Role::Leader), node("n2", Role::Follower), node("n3", Role::Follower)];
        change(&mut nodes);
        let leader = Leader { id: "id-n1".to_owned(), name: "n1".to_owned() };
        ClusterStatus::new("c".to_owned(), 2, 7, Some(leader), nodes, 3)
    }

    fn verdict(status: &ClusterStatus) -> (Verdict, usize) {
        (status.verdict, status.failures_tolerated)
    }

    #[test]
    fn three_voters_in_step_tolerate_one_failure() {
        let status = three(|_| {});
        assert_eq!(verdict(&status), (Verdict::Healthy, 1));
        assert_eq!(status.sentence(), "One node may fail now.");
    }

    #[test]
    fn one_voter_away_leaves_no_reserve() {
        let status = three(|nodes| nodes[2].reachable = false);
        assert_eq!(verdict(&status), (Verdict::Degraded, 0));
        assert_eq!(status.sentence(), "Degraded: No node may fail now. n3 cannot be reached.");
    }

    #[test]
    fn two_voters_away_are_no_quorum() {
        let status = three(|nodes| nodes[1..].iter_mut().for_each(|node| node.reachable = false));
        assert_eq!(verdict(&status), (Verdict::NoQuorum, 0));
    }

    #[test]
    fn a_majority_without_a_leader_is_no_quorum() {
        let nodes = vec![node("n1", Role::Follower), node("n2", Role::Follower)];
        let status = ClusterStatus::new("c".to_owned(), 2, 7, None, nodes, 3);
        assert_eq!(verdict(&status), (Verdict::NoQuorum, 0));
    }

    #[test]
    fn a_cluster_of_one_is_healthy_and_tolerates_nothing() {
        let leader = Leader { id: "id-n1".to_owned(), name: "n1".to_owned() };
        let status = ClusterStatus::new("c".to_owned(), 1, 1, Some(leader), vec![node("n1", Role::Leader)], 3);
        assert_eq!(verdict(&status), (Verdict::Healthy, 0));
    }

    #[test]
    fn a_missing_blob_or_a_long_lag_degrades() {
        let lacks = Blobs { held: 2, missing: 1, missing_bytes: 2048, fetch_rate: 1024, ..Blobs::default() };
        let missing = three(|nodes| nodes[1].blobs = Some(lacks));
        assert_eq!(verdict(&missing), (Verdict::Degraded, 1));
        let moves = "1 copies (2.0 KiB) are on their way, 2s at least.";
        assert_eq!(missing.sentence(), format!("Degraded: One node may fail now. {moves} n2 lacks 1 blob."));
        let lost = Blobs { nowhere: 1, nowhere_bytes: 2048, ..lacks };
        let lost = three(|nodes| nodes[1].blobs = Some(lost));
        assert_eq!((lost.moving, verdict(&lost)), (None, (Verdict::Degraded, 1)));
        let says = "n2 lacks 1 blob, 1 of which no node that answers has (its log names them): bring back the nodes that are away, or push again.";
        assert_eq!(lost.sentence(), format!("Degraded: One node may fail now. {says}"));
        let behind = three(|nodes| nodes[1].lag = Some(MAX_LAG_ENTRIES + 1));
        assert_eq!(verdict(&behind), (Verdict::Degraded, 1));
        assert_eq!(verdict(&three(|nodes| nodes[1].lag = Some(MAX_LAG_ENTRIES))), (Verdict::Healthy, 1));
    }

    #[test]
    fn a_learner_has_no_vote_and_its_absence_degrades_nothing() {
        let mut nodes = three(|_| {}).nodes;
        let mut learner = node("n4", Role::Learner);
        learner.reachable = false;
        learner.blobs = None;
        nodes.push(learner);
        let leader = Some(Leader { id: "id-n1".to_owned(), name: "n1".to_owned() });
        assert_eq!(verdict(&ClusterStatus::new("c".to_owned(), 1, 1, leader, nodes, 3)), (Verdict::Healthy, 1));
    }

    #[test]
    fn copies_count_among_what_may_fail() {
        // Two nodes lack blobs: the third may have the only copies.
        let lacks = Some(Blobs { missing: 1, ..Blobs::default() });
        let status = three(|nodes| nodes[1..].iter_mut().for_each(|node| node.blobs = lacks));
        assert_eq!(status.failures_tolerated, 0);
        let drained = three(|nodes| {
            nodes[2].draining = true;
            nodes[2].blobs = Some(Blobs { surplus: 4, compared: true, ..Blobs::default() });
        });
        assert_eq!(verdict(&drained), (Verdict::Healthy, 1));
        assert_eq!(drained.sentence(), "One node may fail now. n3 is being drained: 4 blobs left.");
        let changed = three(|nodes| nodes[1].blobs = Some(Blobs { held: 3, ..Blobs::default() }));
        assert_eq!(
            changed.sentence(),
            "Degraded: One node may fail now. n2 compares its blobs with what it should have."
        );
        let off = three(|nodes| nodes[1].clock_off_ms = Some(61_000));
        assert_eq!(off.sentence(), "Degraded: One node may fail now. n2 has a clock that is 61 s off.");
    }

    #[test]
    fn json_has_the_documented_form() {
        let json = serde_json::to_value(three(|nodes| nodes.truncate(1))).expect("plain data");
        let expected = serde_json::json!({
            "cluster_id": "c", "verdict": "healthy", "failures_tolerated": 0, "term": 2, "commit_index": 7,
            "leader": {"id": "id-n1", "name": "n1"},
            "nodes": [{
                "id": "id-n1", "name": "n1", "url": "http://n1:5000", "role": "leader", "reachable": true,
                "version": "0.1.0", "applied_index": 7, "lag": 0, "draining": false,
                "blobs": {
                    "held": 3, "held_bytes": 30, "missing": 0, "missing_bytes": 0, "nowhere": 0,
                    "nowhere_bytes": 0, "surplus": 0, "fetch_rate": 10, "compared": true
                }
            }]
        });
        assert_eq!(json, expected);
        assert_eq!(serde_json::to_value(Verdict::NoQuorum).expect("plain data"), "no_quorum");
    }
}
