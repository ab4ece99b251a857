//! The keys of the rows of state.
//!
//! A name ends at a zero byte, which no name contains, so that no repository's rows lie between another's.

use flotilla_storage::{Digest, Keyspace, StorageError};

use crate::names::{PolicyName, RepositoryName, Tag};
use crate::records::Candidate;
use crate::settings::Rules;

/// The largest value, or part of one, in bytes: sled moves larger values into files that it never syncs.
pub(crate) const ROW_PART: usize = 4000;

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

/// The row of the settings that all nodes share.
pub(crate) fn settings() -> Vec<u8> {
    key(Keyspace::Meta, &[b"settings"])
}

/// The row of where blobs are placed.
pub(crate) fn layout() -> Vec<u8> {
    key(Keyspace::Meta, &[b"layout"])
}

/// The row of the revision at which the settings were put.
pub(crate) fn settings_revision() -> Vec<u8> {
    key(Keyspace::Meta, &[b"settings-revision"])
}

/// The row of the revision at which a policy was put or removed last.
pub(crate) fn policies_revision() -> Vec<u8> {
    key(Keyspace::Meta, &[b"policies"])
}

/// The row of the authorities that all nodes trust.
pub(crate) fn authorities() -> Vec<u8> {
    key(Keyspace::Meta, &[b"authorities"])
}

/// The row of the tokens by which nodes may join.
pub(crate) fn tokens() -> Vec<u8> {
    key(Keyspace::Meta, &[b"tokens"])
}

/// The prefix of the versions of all policies; what follows it in a key has the form of a tag's version.
pub(crate) fn policies() -> Vec<u8> {
    key(Keyspace::Policy, &[])
}

/// The prefix of a policy's versions.
pub(crate) fn policy(name: &PolicyName) -> Vec<u8> {
    key(Keyspace::Policy, &[name.as_str().as_bytes(), &[0]])
}

/// A policy's version that began at this revision; newer ones come first.
pub(crate) fn policy_version(name: &PolicyName, revision: u64) -> Vec<u8> {
    [policy(name), (!revision).to_be_bytes().to_vec()].concat()
}

/// The prefix of the tags that pointed at a manifest.
pub(crate) fn pairs(repository: &RepositoryName, digest: &Digest) -> Vec<u8> {
    key(Keyspace::Pair, &[repository.as_str().as_bytes(), &[0], &digest.to_key()])
}

/// The row that says that a tag pointed at a manifest.
pub(crate) fn pair(repository: &RepositoryName, digest: &Digest, tag: &Tag) -> Vec<u8> {
    [pairs(repository, digest), tag.as_str().as_bytes().to_vec()].concat()
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

/// The prefix of a repository's manifests.
pub(crate) fn manifests(repository: &RepositoryName) -> Vec<u8> {
    key(Keyspace::Manifest, &[repository.as_str().as_bytes(), &[0]])
}

/// The prefix of a repository's blobs.
pub(crate) fn links(repository: &RepositoryName) -> Vec<u8> {
    key(Keyspace::Link, &[repository.as_str().as_bytes(), &[0]])
}

/// The prefix of a repository's deleted manifests that history needs.
pub(crate) fn formers(repository: &RepositoryName) -> Vec<u8> {
    key(Keyspace::Former, &[repository.as_str().as_bytes(), &[0]])
}

pub(crate) fn link(repository: &RepositoryName, digest: &Digest) -> Vec<u8> {
    key(Keyspace::Link, &[repository.as_str().as_bytes(), &[0], &digest.to_key()])
}

pub(crate) fn child(repository: &RepositoryName, digest: &Digest) -> Vec<u8> {
    key(Keyspace::Child, &[repository.as_str().as_bytes(), &[0], &digest.to_key()])
}

/// The row of the number of all [`uses`].
pub(crate) fn use_count() -> Vec<u8> {
    key(Keyspace::Meta, &[b"uses"])
}

pub(crate) fn uses(repository: &RepositoryName, digest: &Digest) -> Vec<u8> {
    key(Keyspace::Use, &[repository.as_str().as_bytes(), &[0], &digest.to_key()])
}

pub(crate) fn former(repository: &RepositoryName, digest: &Digest) -> Vec<u8> {
    key(Keyspace::Former, &[repository.as_str().as_bytes(), &[0], &digest.to_key()])
}

/// The kinds of candidates: each has its own time, so each is a queue of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Queue {
    Former = b'f',
    Existence = b'e',
    Link = b'l',
    Bytes = b'b',
}

impl Queue {
    /// All of them with the age in milliseconds at which their candidates go, in the order in which they are collected:
    /// each may make candidates of a later one.
    pub(crate) fn aged(rules: &Rules) -> [(Self, u64); 4] {
        let (kept, grace) = (rules.history_ms(), rules.garbage_grace_ms());
        [(Self::Former, kept), (Self::Existence, kept), (Self::Link, grace), (Self::Bytes, grace)]
    }
}

/// The prefix of the candidates of a kind.
pub(crate) fn garbage(queue: Queue) -> Vec<u8> {
    key(Keyspace::Garbage, &[&[queue as u8]])
}

/// The row of something that may be garbage since a time.
pub(crate) fn candidate(since_ms: u64, what: &Candidate) -> Vec<u8> {
    let (queue, repository, last) = match what {
        Candidate::Former(repository, digest) => (Queue::Former, repository.as_str(), digest.to_key()),
        Candidate::Existence(repository, revision) => {
            (Queue::Existence, repository.as_str(), revision.to_be_bytes().to_vec())
        }
        Candidate::Link(repository, digest) => (Queue::Link, repository.as_str(), digest.to_key()),
        Candidate::Bytes(digest) => (Queue::Bytes, "", digest.to_key()),
    };
    let parts: [&[u8]; 5] = [&[queue as u8], &since_ms.to_be_bytes(), repository.as_bytes(), &[0], &last];
    key(Keyspace::Garbage, &parts)
}

/// A candidate and its time, from its key.
pub(crate) fn parse_candidate(key: &[u8]) -> Result<(u64, Candidate), StorageError> {
    let damaged = || StorageError::Corrupt { what: "key of a candidate for collection".into() };
    let parse = || {
        let (queue, rest) = key.get(1..)?.split_first()?;
        let (since_ms, rest) = rest.split_first_chunk::<8>()?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        let last = rest.get(end + 1..)?;
        let repository = || std::str::from_utf8(&rest[..end]).ok()?.parse().ok();
        let digest = || Digest::from_key(last);
        let candidate = match queue {
            b'f' => Candidate::Former(repository()?, digest()?),
            b'e' => Candidate::Existence(repository()?, u64::from_be_bytes(last.try_into().ok()?)),
            b'l' => Candidate::Link(repository()?, digest()?),
            b'b' => Candidate::Bytes(digest()?),
            _ => return None,
        };
        Some((u64::from_be_bytes(*since_ms), candidate))
    };
    parse().ok_or_else(damaged)
}

/// The row of the index at which a digest's file was collected last.
pub(crate) fn collected(digest: &Digest) -> Vec<u8> {
    key(Keyspace::Collected, &[b"d", &digest.to_key()])
}

/// The row by which [`collected`] is found when its time is over.
pub(crate) fn collected_at(index: u64, digest: &Digest) -> Vec<u8> {
    key(Keyspace::Collected, &[b"i", &index.to_be_bytes(), &digest.to_key()])
}

/// The prefix of all of [`collected_at`].
pub(crate) fn collections() -> Vec<u8> {
    key(Keyspace::Collected, &[b"i"])
}

/// The index and digest of a [`collected_at`].
pub(crate) fn parse_collected_at(key: &[u8]) -> Result<(u64, Digest), StorageError> {
    let parse = || {
        let (index, digest) = key.get(2..)?.split_first_chunk::<8>()?;
        Some((u64::from_be_bytes(*index), Digest::from_key(digest)?))
    };
    parse().ok_or_else(|| StorageError::Corrupt { what: "key of a collected digest".into() })
}

pub(crate) fn blob(digest: &Digest) -> Vec<u8> {
    key(Keyspace::Blob, &[&digest.to_key()])
}

/// The row of a digest's file.
pub(crate) fn file(digest: &Digest) -> Vec<u8> {
    key(Keyspace::File, &[&digest.to_key()])
}

/// The prefix of all of [`file`].
pub(crate) fn files() -> Vec<u8> {
    key(Keyspace::File, &[])
}

/// The prefix of a tag's versions.
pub(crate) fn history(repository: &RepositoryName, tag: &Tag) -> Vec<u8> {
    key(Keyspace::History, &[repository.as_str().as_bytes(), &[0], tag.as_str().as_bytes(), &[0]])
}

/// A tag's version that began at this revision. Newer ones come first: the first from `revision` on is the one that
/// was in force then.
pub(crate) fn version(repository: &RepositoryName, tag: &Tag, revision: u64) -> Vec<u8> {
    [history(repository, tag), (!revision).to_be_bytes().to_vec()].concat()
}

/// The row that says whether a repository was there from a revision on; newer ones come first.
pub(crate) fn existence(repository: &RepositoryName, revision: u64) -> Vec<u8> {
    key(Keyspace::Existence, &[repository.as_str().as_bytes(), &[0], &(!revision).to_be_bytes()])
}

/// The prefix of all of [`existence`]; what follows it in a key has the form of a tag's version.
pub(crate) fn existences() -> Vec<u8> {
    key(Keyspace::Existence, &[])
}

/// The prefix of all versions of a repository's tags.
pub(crate) fn histories(repository: &RepositoryName) -> Vec<u8> {
    key(Keyspace::History, &[repository.as_str().as_bytes(), &[0]])
}

/// The revision at which a version began, from its key.
pub(crate) fn revision_of_version(key: &[u8]) -> Result<u64, StorageError> {
    let revision = key.last_chunk::<8>().map(|inverted| !u64::from_be_bytes(*inverted));
    revision.ok_or_else(|| StorageError::Corrupt { what: "key of a tag's version".into() })
}

/// The name of a version, from its key; `prefix` is the length of [`histories`] or [`existences`].
pub(crate) fn name_of_version<T: std::str::FromStr>(key: &[u8], prefix: usize) -> Result<T, StorageError> {
    // A zero byte and the revision end the key.
    text_after(key.get(..key.len().saturating_sub(9)).unwrap_or_default(), prefix)
}

/// After all versions of a name, and before those of the next one; `prefix` is [`histories`] or [`existences`]. The
/// text need not be a name.
pub(crate) fn after_versions(prefix: &[u8], name: &str) -> Vec<u8> {
    [prefix, name.as_bytes(), &[0], &[0xff; 9]].concat()
}

/// The prefix of the rows of a journal.
pub(crate) fn journal(space: Keyspace) -> Vec<u8> {
    key(space, &[])
}

/// One row of a journal's block.
pub(crate) fn journal_row(space: Keyspace, block: u64, part: u16) -> Vec<u8> {
    key(space, &[&block.to_be_bytes(), &part.to_be_bytes()])
}

/// The row of the oldest revision that can still be read and watched from.
pub(crate) fn history_floor() -> Vec<u8> {
    key(Keyspace::Meta, &[b"history"])
}

/// The prefix of the manifests that refer to `subject`.
pub(crate) fn referrers(repository: &RepositoryName, subject: &Digest) -> Vec<u8> {
    key(Keyspace::Referrer, &[repository.as_str().as_bytes(), &[0], &subject.to_key()])
}

pub(crate) fn referrer(repository: &RepositoryName, subject: &Digest, digest: &Digest) -> Vec<u8> {
    [referrers(repository, subject), digest.to_key()].concat()
}

/// A name that makes up the rest of a key.
pub(crate) fn text_after<T: std::str::FromStr>(key: &[u8], prefix: usize) -> Result<T, StorageError> {
    let damaged = || StorageError::Corrupt { what: "a name in a key".into() };
    let text = key.get(prefix..).and_then(|rest| std::str::from_utf8(rest).ok()).ok_or_else(damaged)?;
    text.parse().map_err(|_| damaged())
}
