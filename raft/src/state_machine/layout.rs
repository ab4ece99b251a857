//! Where blobs are placed: the members with their zones and weights, and who is being drained.

use std::collections::BTreeMap;

use flotilla_storage::StorageError;
use serde::{Deserialize, Serialize};

use super::{Applied, Reader, State, keys, long_rows};
use crate::command::{Outcome, Refusal};
use crate::member::{NodeId, Seat};
use crate::wire::{self, Kind};

/// The layout's row. Members that it does not name have the default seat.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layout {
    /// The log index at which it changed last, by a membership too.
    pub(crate) revision: u64,
    /// Members whose seat is not the default one.
    pub(crate) seats: BTreeMap<NodeId, Seat>,
}

impl Layout {
    /// The stored one.
    ///
    /// # Errors
    /// Damaged data.
    pub(crate) fn load(reader: &dyn Reader) -> Result<Self, StorageError> {
        let key = keys::layout();
        let Some(stored) = reader.get(&key)? else { return Ok(Self::default()) };
        wire::decode(Kind::Row, &long_rows::join(&key, stored, |part| reader.get(part))?)
    }

    /// A member's seat.
    pub(crate) fn seat(&self, node: NodeId) -> Seat {
        self.seats.get(&node).cloned().unwrap_or_default()
    }

    /// Whether a member is being drained.
    pub(crate) fn is_draining(&self, node: NodeId) -> bool {
        self.seats.get(&node).is_some_and(|seat| seat.draining)
    }
}

/// Notes what a member's own configuration says.
pub(super) fn place(state: &mut State<'_>, node: NodeId, zone: &str, weight: u32) -> Applied {
    if !state.is_member(node) {
        return Ok(Err(Refusal::NodeUnknown));
    }
    let seat = Seat { zone: zone.to_owned(), weight, ..state.layout().seat(node) };
    seated(state, node, seat)
}

/// Begins or ends the draining of a member.
pub(super) fn drain(state: &mut State<'_>, node: NodeId, draining: bool) -> Applied {
    if !state.is_member(node) {
        return Ok(Err(Refusal::NodeUnknown));
    }
    if draining {
        let other = state.layout().seats.iter().find(|(other, seat)| **other != node && seat.draining);
        if let Some((other, _)) = other {
            return Ok(Err(Refusal::OtherDraining { node: *other }));
        }
        if state.members().len() < 2 {
            return Ok(Err(Refusal::NobodyRemains));
        }
    }
    let seat = Seat { draining, ..state.layout().seat(node) };
    seated(state, node, seat)
}

fn seated(state: &mut State<'_>, node: NodeId, seat: Seat) -> Applied {
    if state.layout().seat(node) != seat {
        let mut layout = state.layout().clone();
        layout.seats.insert(node, seat);
        layout.revision = state.index();
        state.put_layout(layout)?;
    }
    Ok(Ok(Outcome::Done))
}

/// A membership took effect: who left has no seat.
pub(super) fn members_changed(state: &mut State<'_>) -> Result<(), StorageError> {
    let mut layout = state.layout().clone();
    layout.seats.retain(|node, _| state.members().contains(node));
    layout.revision = state.index();
    state.put_layout(layout)
}
