//! Remembered requests: a proposal that comes again, after a lost answer or a change of leader, is answered and not
//! applied again (invariant I6).

use flotilla_storage::StorageError;

use super::{State, garbage, keys};
use crate::command::{Answer, Proposal, Refusal};

/// How many log entries back a request is remembered: far more than are written in the ten seconds for which a
/// proposal is tried again.
pub(super) const WINDOW: u64 = 1 << 16;

/// Forgetting goes in steps of this many entries, so that most entries pay nothing for it.
const STEP: u64 = 64;

/// What is known of the request before it is applied: its former answer, or that it is too old to know.
pub(super) fn remembered(state: &State<'_>, proposal: &Proposal) -> Result<Option<Answer>, StorageError> {
    let floor: u64 = state.get(&keys::request_floor())?.unwrap_or(0);
    if proposal.base_index < floor {
        return Ok(Some(Answer { revision: state.index(), result: Err(Refusal::RequestExpired) }));
    }
    state.get(&keys::request(proposal.base_index, &proposal.request_id))
}

/// Remembers the answer, and forgets what is older than the window.
pub(super) fn remember(state: &mut State<'_>, proposal: &Proposal, answer: &Answer) -> Result<(), StorageError> {
    // A refusal may be tried again under the same id, as an upload's is when its bytes had to be copied once more.
    if answer.result.is_ok() {
        state.put(keys::request(proposal.base_index, &proposal.request_id), answer)?;
    }
    if state.index().is_multiple_of(STEP) && state.index() > WINDOW {
        forget(state, state.index() - WINDOW)?;
    }
    Ok(())
}

fn forget(state: &mut State<'_>, floor: u64) -> Result<(), StorageError> {
    for key in state.requests_below(floor)? {
        state.delete(key);
    }
    garbage::forget_collected(state, floor)?;
    state.put(keys::request_floor(), &floor)
}
