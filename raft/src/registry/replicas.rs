//! How many nodes keep a file, where rules of the settings say so.

use std::collections::HashMap;

use flotilla_storage::{Digest, StorageError};

use super::{Registry, WALK_PAGE};
use crate::names::RepositoryName;
use crate::records::BlobRecord;
use crate::settings::Rules;
use crate::state_machine::keys;

/// Digests whose number of copies is not the one of the nodes' configuration.
#[derive(Debug, Clone, Default)]
pub struct Replicas {
    /// By [`Digest::hashed`].
    by_digest: HashMap<u64, usize>,
}

impl Replicas {
    /// Copies of a digest; `default` where no rule concerns it.
    pub fn of(&self, digest: &Digest, default: usize) -> usize {
        self.by_digest.get(&digest.hashed()).copied().unwrap_or(default)
    }

    /// A repository holds the digest now, under a rule or none.
    pub fn linked(&mut self, digest: &Digest, replicas: Option<usize>, default: usize) {
        let key = digest.hashed();
        match (replicas, self.by_digest.get_mut(&key)) {
            (_, Some(most)) => *most = (*most).max(replicas.unwrap_or(default)),
            (Some(replicas), None) if replicas > default => drop(self.by_digest.insert(key, replicas)),
            // Fewer copies than by default: others may hold it, which the next walk finds.
            (_, None) => {}
        }
    }
}

impl Registry {
    /// The digests that rules concern. Walks the repositories that rules name.
    ///
    /// # Errors
    /// Damaged data.
    pub fn replicas(&self, rules: &Rules, default: usize) -> Result<Replicas, StorageError> {
        if !rules.sets_replicas() {
            return Ok(Replicas::default());
        }
        // The most copies that a rule wants, and how many repositories with a rule hold the digest.
        let mut ruled: HashMap<Digest, (usize, u64)> = HashMap::new();
        let mut after: Option<RepositoryName> = None;
        loop {
            let page = self.repositories(after.as_ref().map(RepositoryName::as_str), WALK_PAGE)?;
            after = page.last().cloned();
            for repository in page {
                let Some(replicas) = rules.replicas(&repository) else { continue };
                for prefix in [keys::links(&repository), keys::manifests(&repository), keys::formers(&repository)] {
                    self.each_row(&prefix, |key, _| {
                        let digest = Digest::from_key(&key[prefix.len()..]);
                        let digest = digest.ok_or_else(|| StorageError::Corrupt { what: "key of a digest".into() })?;
                        let (most, count) = ruled.entry(digest).or_default();
                        (*most, *count) = ((*most).max(replicas), *count + 1);
                        Ok(())
                    })?;
                }
            }
            if after.is_none() {
                break;
            }
        }
        let mut by_digest = HashMap::new();
        for (digest, (most, count)) in ruled {
            let Some(blob) = self.row::<BlobRecord>(&keys::blob(&digest))?.filter(|blob| blob.file) else { continue };
            let has_others = blob.links + blob.manifests > count;
            by_digest.insert(digest.hashed(), if has_others { most.max(default) } else { most });
        }
        Ok(Replicas { by_digest })
    }
}
