//! What stands in the rows of state. Encoded by position: fields are appended, never inserted (`testdata/` pins the
//! bytes).

use std::collections::BTreeSet;
use std::fmt;

use bytes::Bytes;
use flotilla_storage::Digest;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::member::NodeId;
use crate::names::{RepositoryName, Tag};

/// What a tag points at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagRecord {
    /// The manifest's digest, as it was given when the tag was put.
    pub digest: Digest,
    /// The log index at which the tag last moved.
    pub revision: u64,
    /// When it moved, by the leader's clock, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// Who moved it.
    pub actor: String,
}

/// A manifest in a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestRecord {
    /// The media type that it was pushed with.
    pub media_type: String,
    /// Bytes.
    pub size: u64,
    /// Whether its bytes are rows of state; else they are a file.
    pub inline: bool,
    /// The log index at which it came into the repository.
    pub revision: u64,
    /// Config and layers.
    pub blobs: Vec<Digest>,
    /// Children of an index.
    pub manifests: Vec<Digest>,
    /// Entries of an index that are blobs or manifests.
    pub either: Vec<Digest>,
    /// The manifest that it refers to.
    pub subject: Option<Digest>,
    /// Its artifact type.
    pub artifact_type: Option<String>,
    /// Whether a tag ever pointed at it: then the history of tags may name it after its deletion.
    pub tagged: bool,
    /// When it came, or lost a tag while such manifests are collected, in milliseconds since the Unix epoch.
    pub untagged_since_ms: u64,
    /// When it came into the repository, by the leader's clock, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// Digests that a document of an unknown type mentions.
    pub mentions: Vec<Digest>,
}

impl ManifestRecord {
    /// The blobs that it keeps from being collected in its repository: each digest once. Children of an index are
    /// manifests, which stay by themselves.
    pub(crate) fn named(&self) -> BTreeSet<Digest> {
        [&self.blobs, &self.either, &self.mentions].into_iter().flatten().copied().collect()
    }
}

/// A blob in a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkRecord {
    /// Bytes.
    pub size: u64,
    /// Whether its bytes are rows of state; else they are a file.
    pub inline: bool,
    /// The log index at which it came into the repository.
    pub revision: u64,
    /// The request that made the link: an upload's id, or a mount's.
    pub request_id: Uuid,
    /// How many manifests of the repository name it, deleted ones that history still needs included.
    pub uses: u64,
    /// While no manifest names it: since when, or when it was last touched, in milliseconds since the Unix epoch.
    pub unused_since_ms: u64,
}

/// A manifest as the list of its subject's referrers shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Referrer {
    /// Its media type.
    pub media_type: String,
    /// Bytes.
    pub size: u64,
    /// Its artifact type.
    pub artifact_type: Option<String>,
    /// Its annotations.
    pub annotations: Vec<(String, String)>,
}

/// What a tag was from one revision on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagVersion {
    /// The manifest's digest; `None` where the tag was removed.
    pub digest: Option<Digest>,
    /// When it came to be so, by the leader's clock, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// Who made it so.
    pub actor: String,
}

/// What kind of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Changed {
    /// A tag points at another manifest, or is new.
    TagPut,
    /// A tag is gone.
    TagDelete,
    /// A manifest came into a repository.
    ManifestPut,
    /// A manifest is gone from a repository.
    ManifestDelete,
}

/// One change of names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What kind.
    pub what: Changed,
    /// In which repository.
    pub repository: RepositoryName,
    /// Which tag, where it is one.
    pub tag: Option<Tag>,
    /// Where the tag points now, or which manifest it is.
    pub digest: Option<Digest>,
    /// Where the tag pointed before.
    pub previous: Option<Digest>,
    /// Who made the change.
    pub actor: String,
    /// When, by the leader's clock, in milliseconds since the Unix epoch.
    pub time_ms: u64,
}

/// A change's place in the order of all: its revision, and its number there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// The log index at which it happened.
    pub revision: u64,
    /// Which of the changes of that revision, from 0.
    pub number: u32,
}

impl Place {
    /// After all changes of a revision.
    pub fn after(revision: u64) -> Self {
        Self { revision, number: u32::MAX }
    }
}

/// `REVISION.NUMBER`; the revision alone means after all of it.
impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            u32::MAX => write!(out, "{}", self.revision),
            number => write!(out, "{}.{number}", self.revision),
        }
    }
}

/// A digest that any repository holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BlobRecord {
    /// Bytes.
    pub(crate) size: u64,
    /// Its bytes, where they live in state.
    pub(crate) body: Option<Bytes>,
    /// Its bytes are a file on the nodes that placement names.
    pub(crate) file: bool,
    /// Repositories that hold it as a blob.
    pub(crate) links: u64,
    /// Repositories that hold it as a manifest, or need it for their history.
    pub(crate) manifests: u64,
    /// While neither holds it: since when, in milliseconds since the Unix epoch.
    pub(crate) unused_since_ms: u64,
}

impl BlobRecord {
    pub(crate) fn is_unused(&self) -> bool {
        self.links == 0 && self.manifests == 0
    }
}

/// A manifest that was deleted and that the history of a tag still names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormerManifest {
    /// As it was.
    pub record: ManifestRecord,
    /// When it was deleted, by the leader's clock, in milliseconds since the Unix epoch.
    pub deleted_ms: u64,
    /// The log index at which it was deleted.
    pub deleted_at: u64,
}

/// Something that may be garbage. Whether it is, its own row says: one that was used again stays in the queue until
/// its time comes, so that pushes need not look for it there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Candidate {
    /// A deleted manifest that history still needs.
    Former(RepositoryName, Digest),
    /// That a repository was there until this revision, which history still needs.
    Existence(RepositoryName, u64),
    /// A blob of a repository that no manifest names.
    Link(RepositoryName, Digest),
    /// Bytes that no repository holds.
    Bytes(Digest),
}

/// How much a repository holds. The row is there while anything is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RepositoryRecord {
    /// Blobs.
    pub(crate) blobs: u64,
    /// Manifests.
    pub(crate) manifests: u64,
}

/// What an image policy was from one revision on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyVersion {
    /// The document, as it was put; `None` where the policy was removed.
    pub document: Option<String>,
    /// When it came to be so, by the leader's clock, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// Who made it so.
    pub actor: String,
}

/// The settings that all nodes share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingsRecord {
    /// The JSON document, as it was put.
    pub document: String,
    /// The log index at which it was put.
    pub revision: u64,
    /// When it was put, by the leader's clock, in milliseconds since the Unix epoch.
    pub time_ms: u64,
}

/// The authorities that all nodes trust.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthoritiesRecord {
    /// Their certificates (DER).
    pub certificates: Vec<Bytes>,
    /// Which of them signs the nodes' certificates, from 0.
    pub signer: u32,
    /// The log index at which the list was put.
    pub revision: u64,
    /// When it was put, by the leader's clock, in milliseconds since the Unix epoch.
    pub time_ms: u64,
}

/// A token by which one node may join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Its id.
    pub id: String,
    /// The certificate (DER) of the authority whose key follows from its secret.
    pub authority: Bytes,
    /// When it ends, by the leader's clock, in milliseconds since the Unix epoch.
    pub ends_ms: u64,
    /// The node that has joined by it.
    pub used_by: Option<NodeId>,
}
