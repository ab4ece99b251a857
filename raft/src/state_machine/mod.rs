//! The registry as a pure function: (state, command) → writes and an answer.
//!
//! No clock, no randomness, no I/O beyond reading rows, no iteration over anything without an order: every node
//! that applies the same log writes the same rows (docs/INVARIANTS.md). A refusal is an answer; an `Err` means that
//! our own data is damaged, and the node stops.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod blobs;
mod garbage;
mod history;
pub(crate) mod journal;
pub(crate) mod keys;
mod layout;
pub(crate) mod long_rows;
mod manifests;
mod policies;
mod requests;
mod settings;
mod state;
mod tags;
mod trust;

#[cfg(test)]
mod tests;

use flotilla_storage::StorageError;

pub(crate) use layout::Layout;
pub(crate) use requests::{Requests, WINDOW as REQUESTS_WINDOW};
pub(crate) use settings::Stored as StoredSettings;
pub(crate) use state::{Reader, State};

use crate::command::{Answer, Command, Outcome, Proposal, Refusal};

/// What a command made of the state: an outcome, or why nothing changed.
pub(crate) type Applied = Result<Result<Outcome, Refusal>, StorageError>;

/// Applies one entry of the log. The state's writes are stored by the caller, with the applied log id, in one batch.
pub(crate) fn apply(state: &mut State<'_>, proposal: &Proposal) -> Result<Answer, StorageError> {
    if let Some(answer) = requests::remembered(state, proposal)? {
        return Ok(answer);
    }
    state.begin(proposal);
    let answer = Answer { revision: state.index(), result: decide(state, proposal)? };
    requests::remember(state, proposal, &answer)?;
    history::forget(state)?;
    Ok(answer)
}

fn decide(state: &mut State<'_>, proposal: &Proposal) -> Applied {
    match &proposal.command {
        Command::Found { cluster_id } => {
            if !state.exists(&keys::cluster_id())? {
                state.put(keys::cluster_id(), cluster_id)?;
            }
            Ok(Ok(Outcome::Done))
        }
        Command::LinkBlob { repository, digest, size, body } => {
            blobs::link(state, repository, digest, *size, body, proposal.request_id)
        }
        Command::MountBlob { repository, from, digest } => {
            blobs::mount(state, repository, from.as_ref(), digest, proposal.request_id)
        }
        Command::UnlinkBlob { repository, digest } => blobs::unlink(state, repository, digest),
        Command::PutManifest(put) => manifests::put(state, put),
        Command::DeleteManifest { repository, digest } => manifests::delete(state, repository, digest),
        Command::DeleteTag { repository, tag, condition } => tags::delete(state, repository, tag, *condition),
        Command::PutSettings { document, expected } => settings::put(state, document, *expected),
        Command::MoveTags(changes) => tags::change_all(state, changes),
        Command::TouchBlob { repository, digest } => garbage::touch(state, repository, digest),
        Command::CollectUntagged { repository, digests } => manifests::collect_untagged(state, repository, digests),
        Command::ChangePolicy { name, document, expected } => {
            policies::change(state, name, document.as_deref(), *expected)
        }
        Command::FoundPolicies(policies) => policies::found(state, policies),
        Command::PlaceNode { node, zone, weight } => layout::place(state, *node, zone, *weight),
        Command::DrainNode { node, draining } => layout::drain(state, *node, *draining),
        Command::ChangeTrust(change) => trust::change(state, change),
        Command::Collect { orphans, limit } => garbage::collect(state, orphans, *limit),
    }
}
