//! Which members answer. Every member is pinged every 250 ms; without a majority that answers, writes are refused
//! and names are read locally at once, instead of after an election's time-out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::member::{Member, NodeId};
use crate::network::{Call, CallError, PeerClient, Pong};
use crate::state_store::Progress;

/// How often each member is asked.
const PING_EACH: Duration = Duration::from_millis(250);

/// A member that has not answered for so long is not reachable: with the ping's interval this leaves a write that
/// must be refused within 2 s some time to spare, and a busy node some time to answer.
const SILENCE_MAX: Duration = Duration::from_millis(1250);

/// How long one ping may take.
const PING_LIMIT: Duration = Duration::from_millis(1000);

/// Clocks that are further apart than this do not agree.
pub(crate) const CLOCK_MAX_MS: u64 = 5000;

/// What is known of the other members.
#[derive(Clone)]
pub(crate) struct Liveness {
    shared: Arc<Shared>,
}

struct Shared {
    own_id: NodeId,
    seen: Mutex<BTreeMap<NodeId, Seen>>,
    quorum: watch::Sender<bool>,
    /// When a majority answered last.
    quorum_at: Mutex<Instant>,
}

#[derive(Clone)]
struct Seen {
    at: Option<Instant>,
    /// Its last word, and when that came.
    pong: Option<(Pong, Instant)>,
}

impl Seen {
    /// Its clock now, about, in milliseconds since the Unix epoch.
    fn clock_ms(&self) -> Option<u64> {
        let (pong, at) = self.pong.as_ref()?;
        Some(pong.time_ms.saturating_add(at.elapsed().as_millis() as u64))
    }

    /// How far it is from ours, in milliseconds. Looked at anew each time: ours may have been set since its last word.
    fn clock_off_ms(&self) -> Option<u64> {
        Some(self.clock_ms()?.abs_diff(now_ms()))
    }
}

/// This machine's clock, in milliseconds since the Unix epoch.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl Liveness {
    pub(crate) fn new(own_id: NodeId) -> Self {
        Self {
            shared: Arc::new(Shared {
                own_id,
                seen: Mutex::default(),
                quorum: watch::channel(false).0,
                quorum_at: Mutex::new(Instant::now()),
            }),
        }
    }

    /// Whether a majority of the voters answers, this node included where it votes.
    pub(crate) fn quorum(&self) -> bool {
        *self.shared.quorum.borrow()
    }

    /// How long ago a majority answered last.
    pub(crate) fn quorum_lost_for(&self) -> Duration {
        self.shared.quorum_at.lock().elapsed()
    }

    /// Returns once no majority answers.
    pub(crate) async fn quorum_lost(&self) {
        // The sender lives as long as self.
        let _ = self.shared.quorum.subscribe().wait_for(|quorum| !quorum).await;
    }

    /// Whether the node answered lately; this one always does.
    pub(crate) fn reachable(&self, id: NodeId) -> bool {
        id == self.shared.own_id
            || self.shared.seen.lock().get(&id).and_then(|seen| seen.at).is_some_and(|at| at.elapsed() < SILENCE_MAX)
    }

    /// The node's last word, if it is reachable.
    pub(crate) fn pong(&self, id: NodeId) -> Option<Pong> {
        self.reachable(id)
            .then(|| self.shared.seen.lock().get(&id).and_then(|seen| Some(seen.pong.as_ref()?.0.clone())))
            .flatten()
    }

    /// Whether this node's clock is close to those of a majority of the voters.
    pub(crate) fn clock_agrees(&self, members: &[Member]) -> bool {
        let seen = self.shared.seen.lock();
        let off_ms = |voter: &Member| seen.get(&voter.id).and_then(Seen::clock_off_ms);
        let agrees = |voter: &Member| {
            voter.id == self.shared.own_id || off_ms(voter).is_some_and(|off_ms| off_ms <= CLOCK_MAX_MS)
        };
        let voters = members.iter().filter(|member| member.voter);
        let (all, close) = voters.fold((0, 0), |(all, close), voter| (all + 1, close + usize::from(agrees(voter))));
        close > all / 2
    }

    /// The time that most of the voters have, in milliseconds since the Unix epoch: this node's own, unless most of those that
    /// were heard of contradict it; then what lies in the middle.
    pub(crate) fn time_ms(&self, members: &[Member]) -> u64 {
        let own_ms = now_ms();
        let seen = self.shared.seen.lock();
        let voters = members.iter().filter(|member| member.voter);
        let mut clocks: Vec<u64> = voters
            .filter_map(|voter| match voter.id == self.shared.own_id {
                true => Some(own_ms),
                false => seen.get(&voter.id).and_then(Seen::clock_ms),
            })
            .collect();
        clocks.sort_unstable();
        let others = clocks.iter().filter(|clock| clock.abs_diff(own_ms) > CLOCK_MAX_MS).count();
        match clocks.get(clocks.len().saturating_sub(1) / 2) {
            Some(middle) if 2 * others > clocks.len() => *middle,
            _ => own_ms,
        }
    }

    /// How far a reachable node's clock is from ours, in milliseconds, about.
    pub(crate) fn clock_off_ms(&self, id: NodeId) -> Option<u64> {
        self.reachable(id).then(|| self.shared.seen.lock().get(&id).and_then(Seen::clock_off_ms)).flatten()
    }

    fn heard(&self, id: NodeId, answer: Result<Pong, CallError>) {
        let mut seen = self.shared.seen.lock();
        let entry = seen.entry(id).or_insert(Seen { at: None, pong: None });
        match answer {
            Ok(pong) => {
                let now = Instant::now();
                *entry = Seen { at: Some(now), pong: Some((pong, now)) };
            }
            // Nobody listens there: no need to wait for the silence to grow long.
            Err(CallError::Unreachable(_)) => entry.at = None,
            Err(_) => {}
        }
    }

    fn judge(&self, members: &[Member]) {
        let voters = members.iter().filter(|member| member.voter);
        let (all, alive) =
            voters.fold((0, 0), |(all, alive), voter| (all + 1, alive + usize::from(self.reachable(voter.id))));
        let quorum = all > 0 && alive > all / 2;
        if quorum {
            *self.shared.quorum_at.lock() = Instant::now();
        }
        let changed = self.shared.quorum.send_if_modified(|former| std::mem::replace(former, quorum) != quorum);
        if changed && all > 1 {
            if quorum {
                tracing::info!("a majority of the voters answers")
            } else {
                tracing::warn!(alive, all, "no majority of the voters answers")
            }
        }
    }

    /// Pings until the progress of the state machine ends, which is when the node does.
    pub(crate) async fn run(self, client: PeerClient, progress: watch::Receiver<Progress>) {
        let mut ticks = tokio::time::interval(PING_EACH);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let in_flight: Arc<Mutex<BTreeMap<NodeId, ()>>> = Arc::default();
        while progress.has_changed().is_ok() {
            ticks.tick().await;
            let members = progress.borrow().members.clone();
            for member in members.iter().filter(|member| member.id != self.shared.own_id) {
                if in_flight.lock().insert(member.id, ()).is_some() {
                    continue;
                }
                let (liveness, client, member, in_flight, members) =
                    (self.clone(), client.clone(), member.clone(), in_flight.clone(), members.clone());
                tokio::spawn(async move {
                    let answer = client
                        .call::<_, Pong>(&member.record.peer_address, Some(member.id), Call::Ping, &(), PING_LIMIT)
                        .await;
                    liveness.heard(member.id, answer);
                    in_flight.lock().remove(&member.id);
                    liveness.judge(&members);
                });
            }
            self.judge(&members);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::member::{NodeRecord, Seat};
    use crate::network::BlobCounts;

    #[test]
    fn a_clock_that_most_others_contradict_is_noticed() {
        let voter = |id| Member { id, record: NodeRecord::default(), voter: true, seat: Seat::default() };
        let members: Vec<Member> = (1..=3).map(voter).collect();
        let liveness = Liveness::new(1);
        let off_by = |liveness: &Liveness| (liveness.time_ms(&members) + 500 - now_ms()) / 1000;
        let says = |id, time_ms| {
            let (version, blobs) = (String::new(), BlobCounts::default());
            liveness.heard(id, Ok(Pong { id, applied_index: 1, version, blobs, time_ms }));
            (liveness.clock_agrees(&members), off_by(&liveness))
        };
        // Nobody was heard of: nothing says that this node is wrong, nor that it is right.
        assert_eq!((liveness.clock_agrees(&members), off_by(&liveness)), (false, 0));
        assert_eq!(says(2, now_ms() + 60_000), (false, 0));
        assert_eq!(says(3, now_ms()), (true, 0));
        assert_eq!(says(3, now_ms() + 80_000), (false, 60), "two against one: the one in the middle");
        assert_eq!(says(2, now_ms() + 2_000), (true, 0));
    }
}
