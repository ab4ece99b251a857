//! What a drill does to the cluster, and how it comes back.

use std::time::Duration;

use anyhow::Context as _;
use parking_lot::Mutex;

use super::cluster::Observer;
use super::journal::Journal;
use super::replace::{LostMember, replace};
use crate::cli::dev::{Action, Session};
use crate::cluster::status::Role;

/// How long a node stays away once the others go on, so that there is a time without it to measure.
const AWAY: Duration = Duration::from_secs(3);
/// Longer than any election; later than this it is a finding.
const ELECTED_WITHIN: Duration = Duration::from_secs(30);
/// A new node must keep up for ten seconds before it votes.
const WHOLE_WITHIN: Duration = Duration::from_secs(120);

/// A failure to rehearse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Scenario {
    /// The leader is killed without warning, and started again
    LeaderCrash,
    /// The leader is told to stop, hands over, and is started again
    LeaderHandover,
    /// Each node in turn is told to stop and started again
    RollingRestart,
    /// A node dies with its disk, and a new one takes its place
    LostDisk,
}

impl Scenario {
    pub(super) const ALL: [Self; 4] = [Self::LeaderCrash, Self::LeaderHandover, Self::RollingRestart, Self::LostDisk];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::LeaderCrash => "leader-crash",
            Self::LeaderHandover => "leader-handover",
            Self::RollingRestart => "rolling-restart",
            Self::LostDisk => "lost-disk",
        }
    }

    /// What it does, step by step.
    pub(super) fn steps(self) -> &'static str {
        match self {
            Self::LeaderCrash => "kill -9 of the leader; another one is elected; 3 s later it is started again",
            Self::LeaderHandover => "SIGTERM to the leader; it hands over and ends; 3 s later it is started again",
            Self::RollingRestart => {
                "SIGTERM to each node, the last one first; it is started again; the next one only once all is whole"
            }
            Self::LostDisk => {
                "kill -9 of a follower and its data removed; started as a new node, which replaces the old one and votes"
            }
        }
    }

    /// How long it takes from its start to the report on an idle cluster of three, with this `--duration`.
    pub(super) fn lasts(self, duration: Duration) -> Duration {
        // Measured: the steady state, the scenario itself, reading back.
        let own = match self {
            Self::LeaderCrash | Self::LeaderHandover | Self::RollingRestart => 15,
            Self::LostDisk => 45,
        };
        duration * 2 + Duration::from_secs(own)
    }
}

/// Where a scenario plays.
pub(super) struct Stage<'a> {
    pub(super) session: Session,
    pub(super) observer: &'a Observer,
    pub(super) journal: &'a Journal,
    /// How many members voted before.
    pub(super) voters: usize,
    /// The member that must still be taken out.
    pub(super) lost: &'a Mutex<Option<LostMember>>,
}

impl Stage<'_> {
    /// Does the harm and heals it; what the cluster should have done and did not.
    ///
    /// # Errors
    /// `flotilla dev` cannot do it.
    pub(super) async fn play(&mut self, scenario: Scenario) -> anyhow::Result<Vec<String>> {
        let problems = match scenario {
            Scenario::LeaderCrash => self.without_leader(Action::Kill).await?,
            Scenario::LeaderHandover => self.without_leader(Action::Stop).await?,
            Scenario::RollingRestart => self.roll().await?,
            Scenario::LostDisk => self.lose_disk().await?,
        };
        problems.iter().for_each(|problem| self.journal.note(problem));
        Ok(problems)
    }

    async fn without_leader(&mut self, end: Action) -> anyhow::Result<Vec<String>> {
        let leader = self.observer.leader().await?;
        self.journal.note(format_args!("{leader} leads"));
        self.take_down(end, &leader).await?;
        let mut problems = Vec::new();
        match self.observer.other_leader(&leader, ELECTED_WITHIN).await {
            Ok((other, term)) => self.journal.note(format_args!("{other} leads, in term {term}")),
            Err(error) => problems.push(format!("no other leader within {} s: {error:#}", ELECTED_WITHIN.as_secs())),
        }
        tokio::time::sleep(AWAY).await;
        self.bring_back(&leader).await?;
        problems.extend(self.see_whole().await);
        Ok(problems)
    }

    /// As a StatefulSet rolls: from the last to the first, one at a time.
    async fn roll(&mut self) -> anyhow::Result<Vec<String>> {
        let status = self.observer.status().await?;
        let mut names: Vec<String> = status.nodes.into_iter().map(|node| node.name).collect();
        names.sort_unstable();
        for name in names.iter().rev() {
            self.take_down(Action::Stop, name).await?;
            self.bring_back(name).await?;
            // The next one would take the majority.
            if let Some(problem) = self.see_whole().await {
                return Ok(vec![problem]);
            }
        }
        Ok(Vec::new())
    }

    async fn lose_disk(&mut self) -> anyhow::Result<Vec<String>> {
        let status = self.observer.status().await?;
        let follower = status.nodes.into_iter().rfind(|node| node.role == Role::Follower);
        let follower = follower.context("the cluster has no follower")?;
        self.take_down(Action::Kill, &follower.name).await?;
        let lost = LostMember { name: follower.name.clone(), id: follower.id };
        *self.lost.lock() = Some(lost.clone());
        self.session.ask(Action::Wipe, &follower.name).await?;
        self.journal.note(format_args!("{} has lost its disk", follower.name));
        tokio::time::sleep(AWAY).await;
        self.bring_back(&follower.name).await?;
        if let Err(error) = replace(self.observer, &lost).await {
            return Ok(vec![format!("{} was not replaced: {error:#}", follower.name)]);
        }
        *self.lost.lock() = None;
        self.journal.note(format_args!("the old {} (id {}) is no member any more", lost.name, lost.id));
        Ok(self.see_whole().await.into_iter().collect())
    }

    async fn take_down(&mut self, end: Action, name: &str) -> anyhow::Result<()> {
        self.journal.note(match end {
            Action::Kill => format!("kill -9 of {name}"),
            _ => format!("SIGTERM to {name}"),
        });
        self.session.ask(end, name).await?;
        self.journal.note(format_args!("{name} has ended"));
        Ok(())
    }

    async fn bring_back(&mut self, name: &str) -> anyhow::Result<()> {
        self.journal.note(format_args!("{name} is started again"));
        let said = self.session.ask(Action::Start, name).await?;
        self.journal.note(said);
        Ok(())
    }

    /// Why the cluster is not whole again, unless it is.
    async fn see_whole(&self) -> Option<String> {
        match self.observer.until_whole(self.voters, WHOLE_WITHIN).await {
            Ok(()) => {
                self.journal.note("the cluster is whole again");
                None
            }
            Err(error) => Some(format!("not whole again within {} s: {error:#}", WHOLE_WITHIN.as_secs())),
        }
    }
}
