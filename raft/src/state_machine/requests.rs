//! Remembered requests: a proposal that comes again, after a lost answer or a change of leader, is answered and not
//! applied again (invariant I6).

use std::collections::BTreeMap;

use flotilla_storage::StorageError;
use uuid::Uuid;

use super::journal::{REQUESTS, envelopes};
use super::{Reader, State, garbage, keys};
use crate::command::{Answer, Proposal, Refusal};
use crate::wire::{self, Kind};

/// How many log entries back a request is remembered: far more than are written in the ten seconds for which a
/// proposal is tried again.
pub(crate) const WINDOW: u64 = 1 << 16;

/// Forgetting goes in steps of this many entries, so that most entries pay nothing for it.
const STEP: u64 = 64;

/// The most rows that one step forgets; usually it is one or two.
const FORGET_MAX: usize = 32;

/// Rows that are read at a time.
const ROWS: usize = 256;

/// Which requests the rows remember, and the floor below which none is. In memory, since almost every look-up finds
/// nothing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Requests {
    /// At which index each was applied.
    applied: BTreeMap<Uuid, u64>,
    floor: u64,
}

impl Requests {
    /// Reads them from the rows.
    ///
    /// # Errors
    /// Damaged data.
    pub(crate) fn load(reader: &dyn Reader) -> Result<Self, StorageError> {
        let floor = reader.get(&keys::request_floor())?.map_or(Ok(0), |row| wire::decode(Kind::Row, &row))?;
        let (mut applied, mut after) = (BTreeMap::new(), None);
        loop {
            let rows = reader.scan(&REQUESTS.rows(), after.as_deref(), ROWS)?;
            for (_, row) in &rows {
                for envelope in envelopes(row) {
                    let (id, answer): (Uuid, Answer) = wire::decode(Kind::Row, envelope?)?;
                    applied.insert(id, answer.revision);
                }
            }
            after = rows.last().map(|(key, _)| key.clone());
            if after.is_none() {
                return Ok(Self { applied, floor });
            }
        }
    }

    /// The lowest base index whose requests are remembered.
    pub(super) fn floor(&self) -> u64 {
        self.floor
    }
}

/// What is known of the request before it is applied: its former answer, or that it is too old to know.
pub(super) fn remembered(state: &State<'_>, proposal: &Proposal) -> Result<Option<Answer>, StorageError> {
    if proposal.base_index < state.requests().floor {
        return Ok(Some(Answer { revision: state.index(), result: Err(Refusal::RequestExpired) }));
    }
    let Some(index) = state.requests().applied.get(&proposal.request_id) else { return Ok(None) };
    for key in REQUESTS.block(*index) {
        let Some(row) = state.raw(&key)? else { break };
        for envelope in envelopes(&row) {
            let (id, answer): (Uuid, Answer) = wire::decode(Kind::Row, envelope?)?;
            if id == proposal.request_id {
                return Ok(Some(answer));
            }
        }
    }
    Err(StorageError::Corrupt { what: "a remembered request has no row".into() })
}

/// Remembers the answer, and forgets what is older than the window.
pub(super) fn remember(state: &mut State<'_>, proposal: &Proposal, answer: &Answer) -> Result<(), StorageError> {
    // A refusal may be tried again under the same id, as an upload's is when its bytes had to be copied once more.
    if answer.result.is_ok() {
        REQUESTS.append(state, &wire::encode(Kind::Row, &(proposal.request_id, answer))?)?;
        let index = state.index();
        state.requests_mut().applied.insert(proposal.request_id, index);
    }
    if state.index().is_multiple_of(STEP) && state.index() > WINDOW {
        forget(state, state.index() - WINDOW)?;
    }
    Ok(())
}

/// A request that came with a base index from the floor on was applied at one from the floor on.
fn forget(state: &mut State<'_>, floor: u64) -> Result<(), StorageError> {
    let mut last = None;
    for _ in 0..FORGET_MAX {
        let Some((key, row)) = state.first_after(&REQUESTS.rows(), last.as_deref())? else { break };
        if REQUESTS.end_of(&key)? > floor {
            break;
        }
        for envelope in envelopes(&row) {
            let (id, _): (Uuid, Answer) = wire::decode(Kind::Row, envelope?)?;
            state.requests_mut().applied.remove(&id);
        }
        state.delete(key.clone());
        last = Some(key);
    }
    garbage::forget_collected(state, floor)?;
    state.requests_mut().floor = floor;
    state.put(keys::request_floor(), &floor)
}
