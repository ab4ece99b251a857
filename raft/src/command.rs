//! Everything a client may ask the cluster to change, and what it hears back.
//!
//! Encoded by position (bincode): variants and fields are appended, never inserted (`testdata/` pins the bytes).

use std::fmt;

use bytes::Bytes;
use flotilla_storage::Digest;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::member::NodeId;
use crate::names::{PolicyName, RepositoryName, Tag};

/// The largest body, in bytes, that travels in its command and lives as rows of state (docs/adr/0003).
pub const INLINE_BODY_MAX: u64 = 12 * 1024;

/// A command on its way into the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// The same for every attempt at one change, so that a retry after a lost answer is applied once.
    pub request_id: Uuid,
    /// The index that the proposing node had applied when the request came. State remembers request ids down to a
    /// floor and refuses proposals from below it.
    pub base_index: u64,
    /// When the leader took the proposal, in milliseconds since the Unix epoch; zero until then.
    pub time_ms: u64,
    /// Who asks. Empty until identities exist.
    pub actor: String,
    /// What to change.
    pub command: Command,
}

impl fmt::Display for Proposal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}", self.request_id, self.command.name())
    }
}

/// A change to the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The first entry of a cluster: gives it its id.
    Found {
        /// The cluster's id.
        cluster_id: Uuid,
    },
    /// Makes an uploaded blob part of a repository.
    LinkBlob {
        /// The repository.
        repository: RepositoryName,
        /// The blob's digest, as the client gave it.
        digest: Digest,
        /// The blob's size in bytes.
        size: u64,
        /// Where its bytes are.
        body: Body,
    },
    /// Makes a blob that another repository holds part of this one.
    MountBlob {
        /// The repository that gets the blob.
        repository: RepositoryName,
        /// The repository that must hold it; any where `None`.
        from: Option<RepositoryName>,
        /// The blob's digest.
        digest: Digest,
    },
    /// Stores a manifest and points tags at it, at once or not at all.
    PutManifest(Box<ManifestPut>),
    /// Removes a tag; its manifest stays.
    DeleteTag {
        /// The repository.
        repository: RepositoryName,
        /// The tag.
        tag: Tag,
        /// What must be true of the tag.
        condition: Option<Condition>,
    },
    /// Removes a manifest and every tag that points at it.
    DeleteManifest {
        /// The repository.
        repository: RepositoryName,
        /// The manifest's digest.
        digest: Digest,
    },
    /// Removes a blob from a repository; other repositories keep theirs.
    UnlinkBlob {
        /// The repository.
        repository: RepositoryName,
        /// The blob's digest.
        digest: Digest,
    },
    /// Moves and removes tags of any repositories, all of them or none. Each tag is named once.
    MoveTags(Vec<TagChange>),
    /// Replaces the settings that all nodes share.
    PutSettings {
        /// The document, as [`crate::settings::Rules::parse`] reads it.
        document: String,
        /// The revision of the settings that this replaces; any where `None`, 0 for none.
        expected: Option<u64>,
    },
    /// Says that a blob of a repository is about to be used: the time after which it is garbage begins anew.
    TouchBlob {
        /// The repository.
        repository: RepositoryName,
        /// The blob's digest.
        digest: Digest,
    },
    /// Removes what nothing has used for the time of the settings, the longest unused first.
    Collect {
        /// Digests of files that a node holds and state does not name.
        orphans: Vec<Digest>,
        /// The most candidates to look at.
        limit: u32,
    },
    /// Removes those of the manifests that have had no tag for the time of the settings, are no child of an index, and
    /// whose subject is not there.
    CollectUntagged {
        /// The repository.
        repository: RepositoryName,
        /// The manifests.
        digests: Vec<Digest>,
    },
    /// Puts an image policy, or removes it.
    ChangePolicy {
        /// Its name.
        name: PolicyName,
        /// The document, checked before; `None` removes the policy.
        document: Option<String>,
        /// The revision of the version that this replaces; any where `None`, 0 for none.
        expected: Option<u64>,
    },
    /// Puts the first image policies, all of them or none: nothing happens where there ever was one.
    FoundPolicies(Vec<(PolicyName, String)>),
    /// Says where blobs are placed by a member: what its own configuration says.
    PlaceNode {
        /// The member.
        node: NodeId,
        /// Its zone, of at most [`crate::member::ZONE_MAX`] bytes.
        zone: String,
        /// Its weight.
        weight: u32,
    },
    /// Begins or ends the draining of a member.
    DrainNode {
        /// The member.
        node: NodeId,
        /// Whether it is drained from now on.
        draining: bool,
    },
    /// Changes by what the nodes believe each other.
    ChangeTrust(TrustChange),
}

/// A change of by what the nodes believe each other: public certificates, never keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrustChange {
    /// Replaces the authorities that all nodes trust.
    Authorities {
        /// Their certificates (DER).
        certificates: Vec<Bytes>,
        /// Which of them signs the nodes' certificates, from 0.
        signer: u32,
        /// The revision of the list that this replaces; 0 for none.
        expected: u64,
    },
    /// Lets one node join that proves to hold the secret of a token.
    PutToken {
        /// The token's id.
        id: String,
        /// The certificate (DER) of the authority whose key follows from the secret.
        authority: Bytes,
        /// How long it is good, in milliseconds.
        lifetime_ms: u64,
    },
    /// Uses a token up.
    UseToken {
        /// The token's id.
        id: String,
        /// The node that joins by it; it may repeat this.
        node: NodeId,
    },
}

/// The most bytes that an encoded digest takes.
const DIGEST_BYTES: usize = 80;

/// The most bytes that a change of a tag takes: names and two digests.
const TAG_CHANGE_BYTES: usize = 600;

/// What must be true of a tag for a change of it to happen (RFC 9110, §13.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// The tag is not there: `If-None-Match: *`.
    Absent,
    /// The tag is there: `If-Match: *`.
    Present,
    /// The tag points at this manifest: `If-Match: "<digest>"`.
    At(Digest),
}

/// One change of a [`Command::MoveTags`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagChange {
    /// The repository.
    pub repository: RepositoryName,
    /// The tag.
    pub tag: Tag,
    /// The manifest of the repository that it shall point at; `None` removes the tag.
    pub digest: Option<Digest>,
    /// What must be true of the tag.
    pub condition: Option<Condition>,
}

impl Command {
    /// A short name for logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Found { .. } => "found",
            Self::LinkBlob { .. } => "link-blob",
            Self::MountBlob { .. } => "mount-blob",
            Self::PutManifest(_) => "put-manifest",
            Self::DeleteTag { .. } => "delete-tag",
            Self::DeleteManifest { .. } => "delete-manifest",
            Self::UnlinkBlob { .. } => "unlink-blob",
            Self::MoveTags(_) => "move-tags",
            Self::PutSettings { .. } => "put-settings",
            Self::TouchBlob { .. } => "touch-blob",
            Self::Collect { .. } => "collect",
            Self::CollectUntagged { .. } => "collect-untagged",
            Self::ChangePolicy { .. } => "change-policy",
            Self::FoundPolicies(_) => "found-policies",
            Self::PlaceNode { .. } => "place-node",
            Self::DrainNode { .. } => "drain-node",
            Self::ChangeTrust(_) => "change-trust",
        }
    }

    /// How many bytes travel in it of what has no small limit, about.
    pub(crate) fn bulk_bytes(&self) -> usize {
        match self {
            Self::LinkBlob { body, .. } => body.inline_bytes(),
            Self::PutManifest(put) => {
                let digests = [&put.blobs, &put.manifests, &put.either, &put.mentions];
                let digests: usize = digests.into_iter().map(Vec::len).sum();
                // With the lengths before each text.
                let annotations = put.annotations.iter().map(|(key, value)| key.len() + value.len() + 16);
                put.body.inline_bytes() + annotations.sum::<usize>() + digests * DIGEST_BYTES
            }
            Self::MoveTags(changes) => changes.len() * TAG_CHANGE_BYTES,
            Self::PutSettings { document, .. } | Self::ChangePolicy { document: Some(document), .. } => document.len(),
            Self::FoundPolicies(policies) => policies.iter().map(|(_, document)| document.len()).sum(),
            Self::Collect { orphans: digests, .. } | Self::CollectUntagged { digests, .. } => {
                digests.len() * DIGEST_BYTES
            }
            _ => 0,
        }
    }
}

/// Where the bytes of a blob or manifest are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// In the command: at most [`INLINE_BODY_MAX`] bytes.
    Inline(Bytes),
    /// A file named by its digest, durable on these nodes before the command is proposed.
    File {
        /// The nodes that promised the bytes.
        holders: Vec<NodeId>,
        /// How many of the holders must still be members, and not drained, when the command is applied.
        min_copies: u32,
        /// The lowest index that one of the holders had applied when it promised the bytes.
        promised: u64,
    },
}

impl Body {
    fn inline_bytes(&self) -> usize {
        match self {
            Self::Inline(bytes) => bytes.len(),
            Self::File { .. } => 0,
        }
    }
}

/// A manifest and what its PUT asked for. Everything that apply needs has been parsed from the body before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestPut {
    /// The repository.
    pub repository: RepositoryName,
    /// The manifest's digest, by the algorithm that the client used (sha256 where it used a tag).
    pub digest: Digest,
    /// Its media type: the `Content-Type` of the push without parameters.
    pub media_type: String,
    /// Its size in bytes.
    pub size: u64,
    /// Where its bytes are, exactly as pushed.
    pub body: Body,
    /// The tags to point at it; may be empty.
    pub tags: Vec<Tag>,
    /// Blobs (config, layers) that must be linked in the repository.
    pub blobs: Vec<Digest>,
    /// Manifests (children of an index) that must be in the repository.
    pub manifests: Vec<Digest>,
    /// Content that may be a manifest or a blob and must be there as one of them (an index entry of a type that is
    /// no manifest's, as BuildKit's caches have).
    pub either: Vec<Digest>,
    /// The manifest that this one refers to; need not exist.
    pub subject: Option<Digest>,
    /// `artifactType`, or the config's media type where an image has none; for listing referrers.
    pub artifact_type: Option<String>,
    /// Its annotations, where it has a subject; for listing referrers.
    pub annotations: Vec<(String, String)>,
    /// What must be true of each of the tags.
    pub condition: Option<Condition>,
    /// Digests that a document of an unknown type mentions: they need not be there, and are kept if they are.
    pub mentions: Vec<Digest>,
}

/// What an applied command answers. Every node computes the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The log index at which the command was applied (first, if it was proposed more than once): its revision.
    pub revision: u64,
    /// What came of it.
    pub result: Result<Outcome, Refusal>,
}

/// What an accepted command says beyond «done».
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Nothing to say.
    Done,
    /// The blob that was mounted has this size in bytes.
    Mounted {
        /// Bytes.
        size: u64,
    },
    /// What a collection removed.
    Collected(Collected),
}

/// What a collection removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    /// Deleted manifests that history needs no more.
    pub manifests: u64,
    /// Manifests that had no tag for too long.
    pub untagged: u64,
    /// Blobs of repositories.
    pub links: u64,
    /// Digests whose bytes go, on every node.
    pub blobs: u64,
    /// Bytes of one copy of these, those of orphans not counted.
    pub bytes: u64,
    /// Files that state did not name.
    pub orphans: u64,
    /// Whether more was due than the limit allowed.
    pub more: bool,
}

/// Why a command changed nothing. A refusal is an answer, not an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The repository holds nothing.
    #[error("repository not known")]
    RepositoryUnknown,
    /// No such manifest in the repository.
    #[error("manifest not known in the repository")]
    ManifestUnknown,
    /// No such tag in the repository.
    #[error("tag not known in the repository")]
    TagUnknown,
    /// No such blob in the repository (or, for a mount, in the one to mount from).
    #[error("blob not known in the repository")]
    BlobUnknown,
    /// The manifest names content that the repository does not hold; all of it is listed.
    #[error("manifest names content that the repository does not hold")]
    ContentMissing(Vec<Digest>),
    /// Fewer than `min_copies` of the holders are members that are not drained: copy again and propose again.
    #[error("too few of the nodes that hold the bytes are members that stay")]
    HoldersGone,
    /// The bytes may have been collected since their holders promised them: ask the holders and propose again.
    #[error("the bytes may have been collected meanwhile")]
    PromiseExpired,
    /// The proposal is older than what state remembers: whether it was applied before is not known.
    #[error("the request is too old to tell whether it was applied")]
    RequestExpired,
    /// A tag is not where the condition of its change says.
    #[error("tag {tag} of {repository} is not as the condition says")]
    ConditionFailed {
        /// The repository.
        repository: RepositoryName,
        /// The tag.
        tag: Tag,
        /// Where it points; `None` where there is no such tag.
        current: Option<Digest>,
    },
    /// A rule keeps the tag where it is.
    #[error("tag {tag} of {repository} is immutable by the rule «{rule}»")]
    TagImmutable {
        /// The repository.
        repository: RepositoryName,
        /// The tag.
        tag: Tag,
        /// The rule's name.
        rule: String,
    },
    /// The settings are others than the ones that were to be replaced.
    #[error("the settings were changed at revision {current}")]
    SettingsChanged {
        /// Their revision; 0 where none were put yet.
        current: u64,
    },
    /// The settings are not valid.
    #[error("the settings are not valid: {0}")]
    SettingsInvalid(String),
    /// One of several changes was refused, and with it all of them.
    #[error("change {number}: {refusal}")]
    InChange {
        /// Its place among the changes, from 0.
        number: u32,
        /// Why.
        refusal: Box<Refusal>,
    },
    /// The manifest is in the repository under another media type.
    #[error("the manifest is in the repository as {media_type}; delete it to put it as another type")]
    MediaTypeDiffers {
        /// The media type that it has.
        media_type: String,
    },
    /// No such policy.
    #[error("no policy has this name")]
    PolicyUnknown,
    /// The policy is another than the one that was to be replaced.
    #[error("the policy was changed at revision {current}")]
    PolicyChanged {
        /// The revision of the version in force; 0 where there is none.
        current: u64,
    },
    /// As many policies as there may be are there, recently deleted ones included.
    #[error("there are {limit} policies, those included that were deleted a short time ago: no more may be added")]
    PoliciesFull {
        /// How many there may be.
        limit: u32,
    },
    /// No member has this id.
    #[error("there is no such member")]
    NodeUnknown,
    /// Nodes are drained one at a time.
    #[error("node {node:012x} is being drained: one at a time")]
    OtherDraining {
        /// The one that is.
        node: NodeId,
    },
    /// All members would be drained.
    #[error("no other member could take its blobs")]
    NobodyRemains,
    /// A change of by what the nodes believe each other.
    #[error(transparent)]
    Trust(TrustRefusal),
}

/// Why a [`TrustChange`] changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum TrustRefusal {
    /// The authorities are others than the ones that were to be replaced.
    #[error("the authorities were changed at revision {current}")]
    AuthoritiesChanged {
        /// Their revision; 0 where there are none yet.
        current: u64,
    },
    /// There would be no authority, or too many, or none that signs.
    #[error("there are 1 or 2 authorities, one of which signs")]
    AuthoritiesInvalid,
    /// As many tokens as there may be have not ended yet.
    #[error("there are {limit} tokens that have not ended yet: no more may be made")]
    TokensFull {
        /// How many there may be.
        limit: u32,
    },
    /// There is a token of this id.
    #[error("there is a token of this id already")]
    TokenExists,
    /// No such token, or it ended long ago.
    #[error("the token is not known; did it end long ago?")]
    TokenUnknown,
    /// The token has ended.
    #[error("the token has ended")]
    TokenEnded,
    /// Another node has used the token.
    #[error("the token has been used by another node: make one for each node")]
    TokenUsed,
}
