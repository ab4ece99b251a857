//! The keys of the rows of state.
//!
//! A name ends at a zero byte, which no name contains, so that no repository's rows lie between another's.

use flotilla_storage::{Digest, Keyspace};
use uuid::Uuid;

use crate::names::{RepositoryName, Tag};

/// The largest part of a body in one row, in bytes: sled moves larger values into files that it never syncs.
pub(crate) const BODY_PART: usize = 4000;

/// The largest value, or part of one, in bytes, for the same reason.
pub(crate) const ROW_PART: usize = 4000;

/// The most rows that one body takes.
#[cfg(test)]
pub(crate) const BODY_PARTS_MAX: usize = crate::command::INLINE_BODY_MAX as usize / BODY_PART + 1;

fn key(space: Keyspace, parts: &[&[u8]]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + parts.iter().map(|part| part.len()).sum::<usize>());
    key.push(space.prefix());
    parts.iter().for_each(|part| key.extend_from_slice(part));
    key
}

/// The row of the last applied log id, the membership and the clock.
pub(crate) fn applied() -> Vec<u8> {
    key(Keyspace::Meta, &[b"applied"])
}

/// The row of the cluster's id.
pub(crate) fn cluster_id() -> Vec<u8> {
    key(Keyspace::Meta, &[b"cluster"])
}

/// The row of the lowest base index whose requests are remembered.
pub(crate) fn request_floor() -> Vec<u8> {
    key(Keyspace::Meta, &[b"floor"])
}

/// The marker that a snapshot was built or installed.
pub(crate) fn snapshot_marker() -> Vec<u8> {
    key(Keyspace::Meta, &[b"snapshot"])
}

pub(crate) fn repository(repository: &RepositoryName) -> Vec<u8> {
    key(Keyspace::Repository, &[repository.as_str().as_bytes()])
}

pub(crate) fn tags(repository: &RepositoryName) -> Vec<u8> {
    key(Keyspace::Tag, &[repository.as_str().as_bytes(), &[0]])
}

pub(crate) fn tag(repository: &RepositoryName, tag: &Tag) -> Vec<u8> {
    key(Keyspace::Tag, &[repository.as_str().as_bytes(), &[0], tag.as_str().as_bytes()])
}

pub(crate) fn manifest(repository: &RepositoryName, digest: &Digest) -> Vec<u8> {
    key(Keyspace::Manifest, &[repository.as_str().as_bytes(), &[0], &digest.to_key()])
}

pub(crate) fn link(repository: &RepositoryName, digest: &Digest) -> Vec<u8> {
    key(Keyspace::Link, &[repository.as_str().as_bytes(), &[0], &digest.to_key()])
}

pub(crate) fn blob(digest: &Digest) -> Vec<u8> {
    key(Keyspace::Blob, &[&digest.to_key()])
}

/// The prefix of a body's parts.
#[cfg(test)]
pub(crate) fn body(digest: &Digest) -> Vec<u8> {
    key(Keyspace::Body, &[&digest.to_key()])
}

pub(crate) fn body_part(digest: &Digest, part: u16) -> Vec<u8> {
    key(Keyspace::Body, &[&digest.to_key(), &part.to_be_bytes()])
}

/// Remembered requests, ordered by the base index that they came with.
pub(crate) fn request(base_index: u64, id: &Uuid) -> Vec<u8> {
    key(Keyspace::Request, &[&base_index.to_be_bytes(), id.as_bytes()])
}

/// Before the remembered requests with this base index, and after those with a lower one.
pub(crate) fn requests_from(base_index: u64) -> Vec<u8> {
    key(Keyspace::Request, &[&base_index.to_be_bytes()])
}

/// The prefix of all remembered requests.
pub(crate) fn requests() -> Vec<u8> {
    key(Keyspace::Request, &[])
}
