//! The steady state that a drill begins in: without it, its figures would not be about the fault.

use std::time::Duration;

use anyhow::{Context as _, ensure};

use super::cluster::{Observer, until, voters};
use super::load::Rehearsal;

/// How long it may take until the state is steady, all in all.
pub(super) const STEADY_WITHIN: Duration = Duration::from_secs(60);

/// How long the load must run without an error.
const CALM: Duration = Duration::from_secs(3);

/// Waits until the cluster is whole and may lose a node; how many members vote.
///
/// # Errors
/// What it lacks.
pub(super) async fn whole(observer: &Observer, within: Duration) -> anyhow::Result<usize> {
    let probe = async || {
        observer.require_whole(1).await?;
        let status = observer.status().await?;
        ensure!(
            status.failures_tolerated > 0,
            "the cluster stands no failure now, and a drill is one: it needs three nodes that vote"
        );
        Ok(voters(&status))
    };
    until(within, probe).await.context("the cluster is not in a steady state")
}

/// Waits until the load has run for a while without an error.
///
/// # Errors
/// The last of them.
pub(super) async fn calm(rehearsal: &Rehearsal, within: Duration) -> anyhow::Result<()> {
    let probe = async || {
        let figures = rehearsal.figures.lock();
        let calm = figures.calm_for(rehearsal.journal.now());
        ensure!(calm >= CALM, "{}", figures.last_trouble().unwrap_or("pushes or pulls have not begun"));
        Ok(())
    };
    until(within, probe).await.with_context(|| {
        format!("the load does not run {} s without an error, before anything was done", CALM.as_secs())
    })
}
