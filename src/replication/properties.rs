//! See `crate::properties`.

use uuid::Uuid;

use super::{serve, upload_id};

pub(crate) fn upload_id(id: &Uuid) {
    assert!(upload_id::owner(id).is_none_or(|owner| owner < 1 << 48));
}

pub(crate) fn peer_range(text: &str, size: u64) {
    if let Some(range) = serve::parse_range(text, size) {
        assert!(range.start < range.end && range.end <= size);
    }
}
