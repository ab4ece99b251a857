//! What a decision knows: the applied state of this node as of one revision, and the policies that were in force then.

use std::sync::Arc;

use flotilla_raft::settings::Rules;
use flotilla_raft::{Registry, RepositoryName, Tag};
use flotilla_storage::{Digest, StorageError};
use parking_lot::Mutex;

use super::decide::Facts;
use super::policy::{InvalidPolicy, Policy};

/// Policies as they were compiled last. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Policies {
    compiled: Arc<Mutex<Option<Compiled>>>,
    /// This node was told of policies to begin with: until there is one, nothing is decided.
    are_expected: bool,
}

#[derive(Clone)]
struct Compiled {
    /// The revision at which a policy was put or removed last.
    revision: u64,
    policies: Arc<Vec<Policy>>,
}

/// Why there are no policies to decide by. Nothing is allowed then.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoPolicies {
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// One that this version does not understand.
    #[error("policy {name} is not understood by this version: {reason}")]
    NotUnderstood { name: String, reason: InvalidPolicy },
    #[error("the first policies (admission.policies) are not in force yet")]
    NotYet,
}

impl Policies {
    pub(crate) fn new(are_expected: bool) -> Self {
        Self { compiled: Arc::default(), are_expected }
    }

    /// Those that were in force at a revision that is applied.
    ///
    /// # Errors
    /// Damaged data, a policy that is not understood, or none yet where some are expected.
    pub(crate) fn at(&self, registry: &Registry, revision: u64) -> Result<Arc<Vec<Policy>>, NoPolicies> {
        let changed = registry.policies_revision()?;
        if changed == 0 && self.are_expected {
            return Err(NoPolicies::NotYet);
        }
        let known = self.compiled.lock().clone();
        if let Some(compiled) = known.filter(|compiled| compiled.revision == changed && changed <= revision) {
            return Ok(compiled.policies);
        }
        let mut policies = Vec::new();
        for (name, began, version) in registry.policies(revision)? {
            let document = version.document.unwrap_or_default();
            let policy = Policy::parse(&document, began);
            policies.push(policy.map_err(|reason| NoPolicies::NotUnderstood { name: name.to_string(), reason })?);
        }
        let policies = Arc::new(policies);
        if changed <= revision {
            *self.compiled.lock() = Some(Compiled { revision: changed, policies: policies.clone() });
        }
        Ok(policies)
    }
}

/// The state of this node as of a revision that is applied.
pub(crate) struct AsOf {
    pub(crate) registry: Registry,
    pub(crate) rules: Arc<Rules>,
    pub(crate) revision: u64,
}

impl Facts for AsOf {
    fn revision(&self) -> u64 {
        self.revision
    }

    fn rules(&self) -> &Rules {
        &self.rules
    }

    fn tag(&self, repository: &RepositoryName, tag: &Tag) -> Result<Option<Digest>, StorageError> {
        Ok(self.registry.tag_at(repository, tag, self.revision)?.and_then(|(_, version)| version.digest))
    }

    fn manifest(&self, repository: &RepositoryName, digest: &Digest) -> Result<Option<u64>, StorageError> {
        let record = self.registry.manifest(repository, digest)?;
        if let Some(record) = record.filter(|record| record.revision <= self.revision) {
            return Ok(Some(record.time_ms));
        }
        // One that was deleted since then was there then.
        let former = self.registry.former_manifest(repository, digest)?;
        let former =
            former.filter(|former| former.record.revision <= self.revision && self.revision < former.deleted_at);
        Ok(former.map(|former| former.record.time_ms))
    }

    fn tag_was(&self, repository: &RepositoryName, tag: &Tag, digest: &Digest) -> Result<bool, StorageError> {
        self.registry.tag_was(repository, tag, digest, self.revision)
    }
}
