//! A node that comes back without its disk is a new node under a new id and its old name. Where the settings allow it,
//! it takes the place of the old id by itself.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::consensus::Consensus;
use crate::member::{Member, NodeId};
use crate::membership::Removal;
use crate::network::RemoveReply;
use crate::voters::LAG_MAX;

/// How long the old id must be away, and the new one there, before it is replaced by itself.
const SEEN_FOR: Duration = Duration::from_secs(10);

/// Since when an old id is away and a new one of its name is there, by the leader's clock.
pub(crate) type Lost = BTreeMap<(NodeId, NodeId), Instant>;

/// The member of the same name that does not answer, where `newcomer` answers.
pub fn replaced_by<'a>(
    members: &'a [Member],
    newcomer: &Member,
    reachable: impl Fn(NodeId) -> bool,
) -> Option<&'a Member> {
    let has_its_name = |old: &&Member| old.id != newcomer.id && old.record.name == newcomer.record.name;
    let old = members.iter().filter(has_its_name).find(|old| !reachable(old.id));
    old.filter(|_| reachable(newcomer.id))
}

impl Consensus {
    /// Removes old ids whose place others take, if the settings allow it. For the leader.
    pub(crate) async fn replace_lost(&self, lost: &mut Lost) {
        if !self.rules().replaces_lost_nodes() {
            lost.clear();
            return;
        }
        let (members, commit_index) = (self.members(), self.status().commit_index);
        let keeps_up = |member: &&Member| {
            self.pong_of(member.id).is_some_and(|pong| commit_index.saturating_sub(pong.applied_index) < LAG_MAX)
        };
        let learners = members.iter().filter(|member| !member.voter).filter(keeps_up);
        let pairs: Vec<(NodeId, NodeId)> = learners
            .filter_map(|new| Some((replaced_by(&members, new, |id| self.reachable(id))?.id, new.id)))
            .collect();
        lost.retain(|pair, _| pairs.contains(pair));
        for (old, by) in pairs {
            let since = *lost.entry((old, by)).or_insert_with(Instant::now);
            if since.elapsed() < SEEN_FOR {
                continue;
            }
            match self.remove_here(old, Removal::Replaced { by }).await {
                RemoveReply::Removed(_) => {
                    tracing::warn!(old = format!("{old:012x}"), new = format!("{by:012x}"), "a lost node was replaced");
                }
                reply => tracing::warn!(?reply, old = format!("{old:012x}"), "a lost node could not be replaced"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::member::{NodeRecord, Seat};

    #[test]
    fn only_who_is_away_is_replaced_by_who_has_its_name() {
        let member = |id, name: &str| Member {
            id,
            record: NodeRecord { name: name.into(), ..NodeRecord::default() },
            voter: true,
            seat: Seat::default(),
        };
        let members = [member(1, "a"), member(2, "b"), member(3, "a")];
        let replaced = |away: &'static [NodeId]| replaced_by(&members, &members[2], |id| !away.contains(&id));
        assert_eq!(replaced(&[1]).map(|old| old.id), Some(1));
        assert_eq!(replaced(&[]), None);
        assert_eq!(replaced(&[1, 3]), None);
        assert_eq!(replaced(&[2]), None);
    }
}
