//! The id of an upload session: a UUID of version 8 whose first 48 bits are the id of the node that holds the
//! session, so that any node knows where to pass a request on to. The other 74 bits are random: who does not know
//! the id cannot guess it.

use flotilla_raft::NodeId;
use uuid::Uuid;

/// A new id for a session on `owner`.
pub(crate) fn new(owner: NodeId) -> Uuid {
    let mut bytes: [u8; 16] = rand::random();
    bytes[..6].copy_from_slice(&owner.to_be_bytes()[2..]);
    Uuid::new_v8(bytes)
}

/// The node that holds the session; `None` for an id that this registry never gave out.
pub(crate) fn owner(id: &Uuid) -> Option<NodeId> {
    if id.get_version_num() != 8 {
        return None;
    }
    let bytes = id.as_bytes();
    Some(bytes[..6].iter().fold(0, |number, byte| (number << 8) | NodeId::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_names_its_owner() {
        for node in [1, 0xffff_ffff_ffff, 0x1234_5678_9abc] {
            assert_eq!(owner(&new(node)), Some(node));
        }
    }

    #[test]
    fn two_ids_of_one_owner_differ() {
        assert_ne!(new(1), new(1));
    }

    #[test]
    fn the_form_is_that_of_a_uuid() {
        let text = new(0x1234_5678_9abc).to_string();
        assert!(text.starts_with("12345678-9abc-8"), "{text}");
        assert!(matches!(text.as_bytes()[19], b'8' | b'9' | b'a' | b'b'), "{text}");
    }

    #[test]
    fn other_versions_have_no_owner() {
        assert_eq!(owner(&Uuid::new_v4()), None);
        assert_eq!(owner(&Uuid::nil()), None);
    }
}
