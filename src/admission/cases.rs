//! Written cases: a folder with policies, what the registry holds, a request, and the answer that is expected. A policy is
//! tested by them like code.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use flotilla_raft::settings::Rules;
use flotilla_raft::{RepositoryName, Tag};
use flotilla_storage::{Digest, StorageError};
use serde_json::{Value, json};

use super::decide::Facts;
use super::hooks::{Grounds, Reply, Webhook, answer};
use super::policy::{Policy, parse_all};

/// The files of a case.
const POLICY: &str = "policy.yaml";
const STATE: &str = "state.txt";
const REQUEST: &str = "request.json";
pub(crate) const RESPONSE: &str = "response.json";

/// One folder.
#[derive(Debug)]
pub(crate) struct Case {
    policies: Vec<Policy>,
    state: Written,
    request: Vec<u8>,
    /// What is expected; `None` where it is not written yet.
    pub(crate) expected: Option<Value>,
}

impl Case {
    /// Reads a folder.
    ///
    /// # Errors
    /// A file is missing or not understood, with its place.
    pub(crate) fn load(folder: &Path) -> anyhow::Result<Self> {
        let text = |name: &str| std::fs::read_to_string(folder.join(name)).with_context(|| name.to_owned());
        let policies = text(POLICY)?;
        let policies = parse_all(&policies).context(POLICY)?.into_iter().map(|(_, policy)| policy).collect();
        let state = Written::parse(&text(STATE)?).context(STATE)?;
        let request = std::fs::read(folder.join(REQUEST)).context(REQUEST)?;
        let expected = match folder.join(RESPONSE).exists() {
            true => Some(serde_json::from_str(&text(RESPONSE)?).context(RESPONSE)?),
            false => None,
        };
        Ok(Self { policies, state, request, expected })
    }

    /// What both webhooks answer, with the patch as it is written and not as it is sent.
    ///
    /// # Errors
    /// The answer cannot be written as JSON.
    pub(crate) fn play(&self) -> anyhow::Result<Value> {
        Ok(json!({
            "mutate": self.answer(Webhook::Mutate, &self.request)?,
            "validate": self.answer(Webhook::Validate, &self.request)?,
        }))
    }

    fn answer(&self, webhook: Webhook, body: &[u8]) -> anyhow::Result<Value> {
        let grounds = Grounds {
            facts: &self.state,
            policies: &self.policies,
            now_ms: self.state.now_ms,
            is_stale: false,
            refusal: None,
        };
        let answer = match answer(webhook, &grounds, body)? {
            Reply::BadRequest(reason) => return Ok(json!({ "http_status": 400, "reason": reason })),
            Reply::Review(answer) => answer,
        };
        let mut shown = answer.review();
        if let Some(patch) = &answer.response.patch {
            shown["response"]["patch"] = serde_json::from_slice(patch)?;
        }
        Ok(shown)
    }
}

/// What a registry holds, written down.
#[derive(Debug)]
struct Written {
    revision: u64,
    now_ms: u64,
    rules: Rules,
    tags: BTreeMap<(RepositoryName, Tag), Digest>,
    manifests: BTreeMap<(RepositoryName, Digest), u64>,
    pairs: BTreeSet<(RepositoryName, Tag, Digest)>,
}

impl Written {
    /// Lines: `revision N` · `now TIME` · `settings JSON` · `manifest REPOSITORY DIGEST [AGE]` ·
    /// `tag REPOSITORY TAG DIGEST` · `was REPOSITORY TAG DIGEST`; `#` begins a comment.
    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut written = Self {
            revision: 1,
            now_ms: 0,
            rules: Rules::default(),
            tags: BTreeMap::new(),
            manifests: BTreeMap::new(),
            pairs: BTreeSet::new(),
        };
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if !line.is_empty() && !line.starts_with('#') {
                written.read(line).with_context(|| format!("line {}", number + 1))?;
            }
        }
        Ok(written)
    }

    fn read(&mut self, line: &str) -> anyhow::Result<()> {
        let (word, rest) = line.split_once(' ').with_context(|| format!("{line:?} says nothing"))?;
        let words: Vec<&str> = rest.split_whitespace().collect();
        match (word, words.as_slice()) {
            ("revision", [revision]) => self.revision = revision.parse()?,
            ("now", [time]) => {
                let time = humantime::parse_rfc3339(time)?.duration_since(std::time::UNIX_EPOCH)?;
                self.now_ms = u64::try_from(time.as_millis())?;
            }
            ("settings", [_, ..]) => self.rules = Rules::parse(rest)?,
            ("manifest", [repository, digest, age @ ..]) => {
                ensure!(age.len() <= 1, "more than an age follows the digest");
                let age = age.first().map_or(Ok(Default::default()), |age| humantime::parse_duration(age))?;
                let came_ms = self.now_ms.saturating_sub(u64::try_from(age.as_millis())?);
                self.manifests.insert((repository.parse()?, digest.parse()?), came_ms);
            }
            ("tag", [repository, tag, digest]) => {
                let (repository, tag, digest) =
                    (repository.parse::<RepositoryName>()?, tag.parse::<Tag>()?, digest.parse()?);
                self.pairs.insert((repository.clone(), tag.clone(), digest));
                self.tags.insert((repository, tag), digest);
            }
            ("was", [repository, tag, digest]) => {
                self.pairs.insert((repository.parse()?, tag.parse()?, digest.parse()?));
            }
            _ => bail!("{line:?} is not understood"),
        }
        Ok(())
    }
}

impl Facts for Written {
    fn revision(&self) -> u64 {
        self.revision
    }

    fn rules(&self) -> &Rules {
        &self.rules
    }

    fn tag(&self, repository: &RepositoryName, tag: &Tag) -> Result<Option<Digest>, StorageError> {
        Ok(self.tags.get(&(repository.clone(), tag.clone())).copied())
    }

    fn manifest(&self, repository: &RepositoryName, digest: &Digest) -> Result<Option<u64>, StorageError> {
        Ok(self.manifests.get(&(repository.clone(), *digest)).copied())
    }

    fn tag_was(&self, repository: &RepositoryName, tag: &Tag, digest: &Digest) -> Result<bool, StorageError> {
        Ok(self.pairs.contains(&(repository.clone(), tag.clone(), *digest)))
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use json_patch::Patch;
    use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
    use k8s_openapi::api::batch::v1::{CronJob, Job};
    use k8s_openapi::api::core::v1::{Pod, PodTemplate, ReplicationController};
    use serde::de::DeserializeOwned;

    use super::*;

    fn folders() -> Vec<PathBuf> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/admission");
        let mut folders: Vec<_> = root.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
        folders.sort();
        folders
    }

    /// `UPDATE_ADMISSION=1` writes the answers anew, and the difference is reviewed.
    #[test]
    fn the_written_cases_are_answered_as_they_say() {
        let folders = folders();
        assert!(folders.len() >= 60, "{} cases", folders.len());
        let mut differing = Vec::new();
        for folder in folders {
            let case = Case::load(&folder).unwrap_or_else(|error| panic!("{}: {error:#}", folder.display()));
            let answer = case.play().unwrap();
            if std::env::var_os("UPDATE_ADMISSION").is_some() {
                std::fs::write(folder.join(RESPONSE), serde_json::to_string_pretty(&answer).unwrap() + "\n").unwrap();
            } else if case.expected.as_ref() != Some(&answer) {
                differing.push(format!("{}: {answer:#}", folder.display()));
            }
        }
        assert!(differing.is_empty(), "{}", differing.join("\n"));
    }

    /// As the API server does it: the patched object goes in again, and is an object of its kind.
    #[test]
    fn a_patch_leads_to_a_valid_object_that_is_patched_no_more() {
        let mut patched = 0;
        for folder in folders() {
            let case = Case::load(&folder).unwrap();
            let Ok(mut review) = serde_json::from_slice::<Value>(&case.request) else { continue };
            let answer = case.answer(Webhook::Mutate, &case.request).unwrap();
            let Ok(patch) = serde_json::from_value::<Patch>(answer["response"]["patch"].clone()) else { continue };
            patched += 1;
            json_patch::patch(&mut review["request"]["object"], &patch).unwrap();
            check_kind(&review["request"]["object"]);
            let again = case.answer(Webhook::Mutate, review.to_string().as_bytes()).unwrap();
            assert_eq!(again["response"]["patch"], Value::Null, "{}", folder.display());
            assert_eq!(again["response"]["allowed"], true);
        }
        assert!(patched >= 8, "{patched} patched");
    }

    fn check_kind(object: &Value) {
        fn is<T: DeserializeOwned>(object: &Value) {
            serde_json::from_value::<T>(object.clone()).unwrap_or_else(|error| panic!("{error}: {object}"));
        }
        match object["kind"].as_str() {
            Some("Pod") => is::<Pod>(object),
            Some("PodTemplate") => is::<PodTemplate>(object),
            Some("ReplicationController") => is::<ReplicationController>(object),
            Some("Deployment") => is::<Deployment>(object),
            Some("ReplicaSet") => is::<ReplicaSet>(object),
            Some("StatefulSet") => is::<StatefulSet>(object),
            Some("DaemonSet") => is::<DaemonSet>(object),
            Some("Job") => is::<Job>(object),
            Some("CronJob") => is::<CronJob>(object),
            // Not Kubernetes' own.
            kind => assert_eq!(kind, Some("Rollout")),
        }
    }

    #[test]
    fn the_objects_of_the_cases_are_those_of_kubernetes() {
        for folder in folders().iter().filter(|folder| !folder.to_string_lossy().contains("junk")) {
            let request: Value = serde_json::from_slice(&std::fs::read(folder.join(REQUEST)).unwrap()).unwrap();
            for object in ["object", "oldObject"].map(|name| &request["request"][name]) {
                if ["PodExecOptions", "ConfigMap"].iter().all(|kind| object["kind"] != *kind) && !object.is_null() {
                    check_kind(object);
                }
            }
        }
    }

    #[test]
    fn a_state_that_is_not_understood_is_refused_with_its_line() {
        for odd in ["revision x", "tag a b", "mainfest a b", "now soon", "settings []", "manifest a sha256:0 1d", "x"] {
            let refused = format!("{:#}", Written::parse(&format!("# fine\n\n{odd}\n")).unwrap_err());
            assert!(refused.starts_with("line 3"), "{odd}: {refused}");
        }
    }
}
