//! Settings that all nodes share: they are state, changed through the log, so that every node decides alike.
//!
//! They are kept as the JSON document that was put; fields that it does not name have their defaults.

use std::collections::{BTreeMap, BTreeSet};

use globset::GlobBuilder;
pub use globset::{Error as GlobError, GlobMatcher};
use serde::{Deserialize, Serialize};

use crate::json::{Object, objects};
use crate::names::{RepositoryName, Tag};
use crate::registry_host;

/// The largest document, in bytes.
pub const DOCUMENT_MAX: usize = 256 << 10;

/// The most copies of a blob.
pub const REPLICAS_MAX: usize = 7;

/// The most rules of one kind.
const RULES_MAX: usize = 1000;

/// The most names of this registry: each image of it is compared under all of them.
const REGISTRY_NAMES_MAX: usize = 32;

/// How long changes and former versions of tags are kept unless the settings say otherwise, in seconds: a week.
const HISTORY_SECONDS: u64 = 7 * 24 * 60 * 60;

/// How long something must be unused to be garbage unless the settings say otherwise, in seconds: a day.
const GARBAGE_GRACE_SECONDS: u64 = 24 * 60 * 60;

/// The longest time of either kind, in seconds: ten years.
const SECONDS_MAX: u64 = 10 * 366 * 24 * 60 * 60;

/// The document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Tags that may be put once, and then neither moved nor removed.
    #[serde(deserialize_with = "objects")]
    pub immutable_tags: Vec<ImmutableTags>,
    /// Which manifests may name content that their repository does not hold; the first rule that matches counts.
    #[serde(deserialize_with = "objects")]
    pub missing_content: Vec<MissingContentRule>,
    /// Which manifests go by themselves when no tag points at them; the first rule that matches counts. Without one they
    /// stay.
    #[serde(deserialize_with = "objects")]
    pub collect_untagged: Vec<CollectUntagged>,
    /// How long changes and former versions of tags are kept, with the manifests that they name, in seconds.
    pub history_seconds: u64,
    /// How long nothing must have named or touched a blob for it to be garbage, in seconds. A push has that long
    /// between a blob and the manifest that names it.
    pub garbage_grace_seconds: u64,
    /// How many nodes keep the blobs of some repositories, in place of `replicas` of the nodes' configuration; the first
    /// rule that matches counts. A blob that several repositories hold has the most of their copies.
    #[serde(deserialize_with = "objects")]
    pub replicas: Vec<ReplicasRule>,
    /// Whether a node that comes back without its disk, under a new id and its old name, takes the place of the old id by
    /// itself. Only where no two machines can have one name, as in a StatefulSet.
    pub replace_lost_nodes: bool,
    /// What this registry is called in references to images: `host` or `host:port`.
    pub registry_names: Vec<String>,
    /// Other registries' images that this one holds copies of, for the mirrors that nodes pull through; the first that
    /// matches counts.
    #[serde(deserialize_with = "objects")]
    pub aliases: Vec<Alias>,
    /// Further kinds of Kubernetes objects that carry a pod template: `GROUP/RESOURCE` with the JSON pointer to it.
    pub workloads: BTreeMap<String, String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            immutable_tags: Vec::new(),
            missing_content: Vec::new(),
            collect_untagged: Vec::new(),
            history_seconds: HISTORY_SECONDS,
            garbage_grace_seconds: GARBAGE_GRACE_SECONDS,
            replicas: Vec::new(),
            replace_lost_nodes: false,
            registry_names: Vec::new(),
            aliases: Vec::new(),
            workloads: BTreeMap::new(),
        }
    }
}

/// How many nodes keep the blobs of some repositories.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplicasRule {
    /// The repositories, as a glob.
    pub repositories: String,
    /// Copies, 1 to [`REPLICAS_MAX`]. A majority of them is durable before a push is acknowledged.
    pub replicas: usize,
}

/// Where this registry has the images of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alias {
    /// The other's, `REGISTRY/PATH/**`, by the full name: `docker.io/library/**`.
    pub images: String,
    /// The repositories here, `PATH/**`.
    pub repositories: String,
}

/// One rule about immutable tags. Patterns are globs: `*` stays within a segment of a name, `**` stands for whole ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImmutableTags {
    /// What clients are told when the rule stops them.
    pub name: String,
    /// The repositories.
    pub repositories: String,
    /// The tags.
    pub tags: String,
}

/// One rule about manifests without a tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CollectUntagged {
    /// The repositories, as a glob.
    pub repositories: String,
    /// How long a manifest must have had no tag, and the settings been in force, in seconds.
    pub after_seconds: u64,
}

/// One rule about manifests that name content which is not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MissingContentRule {
    /// The repositories, as a glob.
    pub repositories: String,
    /// What may be missing.
    pub mode: MissingContent,
}

/// What a manifest may name without the repository holding it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MissingContent {
    /// Nothing: whoever can pull the manifest can pull all of it.
    #[default]
    Reject,
    /// Children of an index, for mirrors of some platforms.
    Children,
    /// Anything.
    All,
}

/// Why a document is refused; says where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidSettings(String);

/// Settings with their patterns compiled.
#[derive(Debug)]
pub struct Rules {
    immutable_tags: Vec<(String, GlobMatcher, GlobMatcher)>,
    missing_content: Vec<(GlobMatcher, MissingContent)>,
    collect_untagged: Vec<(GlobMatcher, u64)>,
    history_ms: u64,
    garbage_grace_ms: u64,
    since_ms: u64,
    revision: u64,
    replicas: Vec<(GlobMatcher, usize)>,
    replace_lost_nodes: bool,
    registry_names: BTreeSet<String>,
    /// Prefixes that end with a slash.
    aliases: Vec<(String, String)>,
    workloads: BTreeMap<String, String>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            immutable_tags: Vec::new(),
            missing_content: Vec::new(),
            collect_untagged: Vec::new(),
            history_ms: HISTORY_SECONDS * 1000,
            garbage_grace_ms: GARBAGE_GRACE_SECONDS * 1000,
            since_ms: 0,
            revision: 0,
            replicas: Vec::new(),
            replace_lost_nodes: false,
            registry_names: BTreeSet::new(),
            aliases: Vec::new(),
            workloads: BTreeMap::new(),
        }
    }
}

impl Rules {
    /// Reads a document.
    ///
    /// # Errors
    /// Not JSON, an unknown field, a bad pattern, an empty name, too many rules: with its place.
    pub fn parse(document: &str) -> Result<Self, InvalidSettings> {
        if document.len() > DOCUMENT_MAX {
            return Err(InvalidSettings(format!("more than {DOCUMENT_MAX} bytes")));
        }
        let Object(settings): Object<Settings> =
            serde_json::from_str(document).map_err(|error| InvalidSettings(error.to_string()))?;
        for (rules, limit, name) in [
            (settings.immutable_tags.len(), RULES_MAX, "immutable_tags"),
            (settings.missing_content.len(), RULES_MAX, "missing_content"),
            (settings.collect_untagged.len(), RULES_MAX, "collect_untagged"),
            (settings.replicas.len(), RULES_MAX, "replicas"),
            (settings.registry_names.len(), REGISTRY_NAMES_MAX, "registry_names"),
            (settings.aliases.len(), RULES_MAX, "aliases"),
            (settings.workloads.len(), RULES_MAX, "workloads"),
        ] {
            if rules > limit {
                return Err(InvalidSettings(format!("{name}: more than {limit}")));
            }
        }
        Ok(Self {
            history_ms: milliseconds("history_seconds", settings.history_seconds)?,
            garbage_grace_ms: milliseconds("garbage_grace_seconds", settings.garbage_grace_seconds)?,
            immutable_tags: numbered("immutable_tags", settings.immutable_tags, immutable_tags)?,
            missing_content: numbered("missing_content", settings.missing_content, missing_content)?,
            collect_untagged: numbered("collect_untagged", settings.collect_untagged, collect_untagged)?,
            replicas: numbered("replicas", settings.replicas, replicas)?,
            replace_lost_nodes: settings.replace_lost_nodes,
            registry_names: numbered("registry_names", settings.registry_names, registry_name)?.into_iter().collect(),
            aliases: numbered("aliases", settings.aliases, alias)?,
            workloads: settings.workloads.into_iter().map(workload).collect::<Result<_, _>>()?,
            ..Self::default()
        })
    }

    /// Whether a new document says what it seems to: [`Rules::parse`] reads it, each `**` stands for whole parts of names,
    /// and each alias can match. What was put before is not held to this.
    ///
    /// # Errors
    /// As [`Rules::parse`].
    pub fn check(document: &str) -> Result<(), InvalidSettings> {
        Self::parse(document)?;
        let Object(settings): Object<Settings> =
            serde_json::from_str(document).map_err(|error| InvalidSettings(error.to_string()))?;
        let patterns = |list: &'static str, patterns: Vec<&String>| {
            let numbered = patterns.into_iter().cloned().enumerate();
            numbered.map(|(number, pattern)| (format!("{list}[{number}].repositories"), pattern)).collect::<Vec<_>>()
        };
        let all = [
            patterns("immutable_tags", settings.immutable_tags.iter().map(|rule| &rule.repositories).collect()),
            patterns("missing_content", settings.missing_content.iter().map(|rule| &rule.repositories).collect()),
            patterns("collect_untagged", settings.collect_untagged.iter().map(|rule| &rule.repositories).collect()),
            patterns("replicas", settings.replicas.iter().map(|rule| &rule.repositories).collect()),
        ];
        for (place, pattern) in all.into_iter().flatten() {
            check_stars(&pattern).map_err(|reason| InvalidSettings(format!("{place}: {pattern:?}: {reason}")))?;
        }
        for (number, alias) in settings.aliases.iter().enumerate() {
            check_alias(alias).map_err(|reason| InvalidSettings(format!("aliases[{number}].{reason}")))?;
        }
        Ok(())
    }

    /// Which repository of this registry an image of a registry is, if it is one: by the registry's names, else by an
    /// alias.
    pub fn repository_of(&self, registry: &str, repository: &RepositoryName) -> Option<RepositoryName> {
        if self.registry_names.contains(registry) {
            return Some(repository.clone());
        }
        let name = format!("{registry}/{repository}");
        let here = self.aliases.iter().find_map(|(theirs, ours)| Some(format!("{ours}{}", name.strip_prefix(theirs)?)));
        here?.parse().ok()
    }

    /// Every name under which images name a repository of this registry: by each of the registry's names, and by each
    /// alias.
    pub fn names_of(&self, repository: &RepositoryName) -> impl Iterator<Item = String> {
        let by_name = self.registry_names.iter().map(move |registry| format!("{registry}/{repository}"));
        let aliased = self.aliases.iter().filter_map(move |(theirs, ours)| {
            Some(format!("{theirs}{}", repository.as_str().strip_prefix(ours.as_str())?))
        });
        by_name.chain(aliased)
    }

    /// Where objects of a further kind carry their pod template, as a JSON pointer.
    pub fn pod_template(&self, group: &str, resource: &str) -> Option<&str> {
        self.workloads.get(&format!("{group}/{resource}")).map(String::as_str)
    }

    /// These rules were put at this revision and time, in milliseconds since the Unix epoch.
    pub(crate) fn in_force_since(self, revision: u64, since_ms: u64) -> Self {
        Self { since_ms, revision, ..self }
    }

    /// The revision at which they were put; 0 for those of a cluster that has no settings.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The further resources whose objects carry a pod template, as `GROUP/RESOURCE`.
    pub fn workloads(&self) -> impl Iterator<Item = &str> {
        self.workloads.keys().map(String::as_str)
    }

    /// Whether manifests of any repository go by themselves when they have no tag.
    pub fn collects_untagged(&self) -> bool {
        !self.collect_untagged.is_empty()
    }

    /// The time, in milliseconds since the Unix epoch, at which a manifest of a repository goes that had no tag since
    /// `since_ms`; `None` where such manifests stay.
    pub fn untagged_due_ms(&self, repository: &RepositoryName, since_ms: u64) -> Option<u64> {
        let found = self.collect_untagged.iter().find(|(repositories, _)| repositories.is_match(repository.as_str()));
        found.map(|(_, age_ms)| since_ms.max(self.since_ms).saturating_add(*age_ms))
    }

    /// How long changes, former versions of tags and the manifests that they name are kept, in milliseconds.
    pub fn history_ms(&self) -> u64 {
        self.history_ms
    }

    /// How long something must be unused to be garbage, in milliseconds.
    pub fn garbage_grace_ms(&self) -> u64 {
        self.garbage_grace_ms
    }

    /// The name of the first rule that keeps a tag where it is.
    pub fn immutable(&self, repository: &RepositoryName, tag: &Tag) -> Option<&str> {
        let matches = |(_, repositories, tags): &&(String, GlobMatcher, GlobMatcher)| {
            repositories.is_match(repository.as_str()) && tags.is_match(tag.as_str())
        };
        self.immutable_tags.iter().find(matches).map(|(name, _, _)| name.as_str())
    }

    /// How many nodes keep the blobs of a repository, where a rule says so.
    pub fn replicas(&self, repository: &RepositoryName) -> Option<usize> {
        let found = self.replicas.iter().find(|(repositories, _)| repositories.is_match(repository.as_str()));
        found.map(|(_, replicas)| *replicas)
    }

    /// Whether any rule says how many nodes keep blobs.
    pub fn sets_replicas(&self) -> bool {
        !self.replicas.is_empty()
    }

    /// The fewest copies that any rule wants.
    pub fn fewest_replicas(&self) -> Option<usize> {
        self.replicas.iter().map(|(_, replicas)| *replicas).min()
    }

    /// Whether a node that comes back without its disk takes the place of its old id by itself.
    pub fn replaces_lost_nodes(&self) -> bool {
        self.replace_lost_nodes
    }

    /// What manifests of a repository may name without its being there.
    pub(crate) fn missing_content(&self, repository: &RepositoryName) -> MissingContent {
        let found = self.missing_content.iter().find(|(repositories, _)| repositories.is_match(repository.as_str()));
        found.map_or_else(MissingContent::default, |(_, mode)| *mode)
    }
}

/// Compiles the items of a list; whatever is wrong is told with the item's place.
fn numbered<T, C>(
    list: &str,
    items: Vec<T>,
    compile: impl Fn(&str, T) -> Result<C, InvalidSettings>,
) -> Result<Vec<C>, InvalidSettings> {
    items.into_iter().enumerate().map(|(number, item)| compile(&format!("{list}[{number}]"), item)).collect()
}

fn milliseconds(place: &str, seconds: u64) -> Result<u64, InvalidSettings> {
    match (1..=SECONDS_MAX).contains(&seconds) {
        true => Ok(seconds * 1000),
        false => Err(InvalidSettings(format!("{place}: must be 1 to {SECONDS_MAX}"))),
    }
}

fn compiled(place: &str, field: &str, pattern: &str) -> Result<GlobMatcher, InvalidSettings> {
    glob(pattern).map_err(|error| InvalidSettings(format!("{place}.{field}: {error}")))
}

fn immutable_tags(place: &str, rule: ImmutableTags) -> Result<(String, GlobMatcher, GlobMatcher), InvalidSettings> {
    if rule.name.trim().is_empty() {
        return Err(InvalidSettings(format!("{place}.name: is empty")));
    }
    let repositories = compiled(place, "repositories", &rule.repositories)?;
    Ok((rule.name, repositories, compiled(place, "tags", &rule.tags)?))
}

fn missing_content(place: &str, rule: MissingContentRule) -> Result<(GlobMatcher, MissingContent), InvalidSettings> {
    Ok((compiled(place, "repositories", &rule.repositories)?, rule.mode))
}

fn replicas(place: &str, rule: ReplicasRule) -> Result<(GlobMatcher, usize), InvalidSettings> {
    match (1..=REPLICAS_MAX).contains(&rule.replicas) {
        true => Ok((compiled(place, "repositories", &rule.repositories)?, rule.replicas)),
        false => Err(InvalidSettings(format!("{place}.replicas: must be 1 to {REPLICAS_MAX}"))),
    }
}

fn collect_untagged(place: &str, rule: CollectUntagged) -> Result<(GlobMatcher, u64), InvalidSettings> {
    let repositories = compiled(place, "repositories", &rule.repositories)?;
    Ok((repositories, milliseconds(&format!("{place}.after_seconds"), rule.after_seconds)?))
}

fn registry_name(place: &str, name: String) -> Result<String, InvalidSettings> {
    match registry_host::canonical(&name) {
        Ok(canonical) if canonical == name => Ok(name),
        Ok(canonical) => Err(InvalidSettings(format!("{place}: write {name:?} as {canonical:?}"))),
        Err(invalid) => Err(InvalidSettings(format!("{place}: {invalid}"))),
    }
}

/// Both prefixes, with the slash at the end.
fn alias(place: &str, alias: Alias) -> Result<(String, String), InvalidSettings> {
    let prefix = |text: &str, field: &str| match text.strip_suffix("**") {
        Some(prefix) if prefix.ends_with('/') && !prefix.contains(['*', '?', '[', '{']) => Ok(prefix.to_owned()),
        _ => Err(InvalidSettings(format!("{place}.{field}: {text:?} does not end with /** after a plain path"))),
    };
    Ok((prefix(&alias.images, "images")?, prefix(&alias.repositories, "repositories")?))
}

/// Whether some image and repository may match an alias that [`alias`] reads.
fn check_alias(alias: &Alias) -> Result<(), String> {
    let images = alias.images.trim_end_matches("**").trim_end_matches('/');
    let (host, path) = images.split_once('/').map_or((images, None), |(host, path)| (host, Some(path)));
    let canonical = registry_host::registry_of(host).map_err(|invalid| format!("images: {invalid}"))?;
    if canonical != host {
        return Err(format!("images: write {host} as {canonical}"));
    }
    let repository = alias.repositories.trim_end_matches("**").trim_end_matches('/');
    for (field, name) in [("images", path), ("repositories", Some(repository))] {
        if let Some(invalid) = name.and_then(|name| name.parse::<RepositoryName>().err()) {
            return Err(format!("{field}: {invalid}"));
        }
    }
    Ok(())
}

/// `GROUP/RESOURCE` and the JSON pointer (RFC 6901) of the pod template.
fn workload((resource, pointer): (String, String)) -> Result<(String, String), InvalidSettings> {
    let is_part = |part: &str| !part.is_empty() && !part.contains(['*', ' ']);
    if resource.split('/').count() != 2 || !resource.split('/').all(is_part) {
        return Err(InvalidSettings(format!("workloads: {resource:?} is not GROUP/RESOURCE")));
    }
    let mut escapes = pointer.split('~').skip(1);
    if !pointer.starts_with('/') || pointer.ends_with('/') || !escapes.all(|rest| rest.starts_with(['0', '1'])) {
        return Err(InvalidSettings(format!("workloads.{resource}: {pointer:?} is not a JSON pointer")));
    }
    if pointer.ends_with("/template/spec") {
        let whole = pointer.trim_end_matches("/spec");
        return Err(InvalidSettings(format!("workloads.{resource}: name the template and not its spec: {whole:?}")));
    }
    Ok((resource, pointer))
}

/// Whether each `**` of a pattern over names stands for whole parts of them. Elsewhere [`glob`] takes it for `*`, which
/// nobody means who writes it.
///
/// # Errors
/// It does not; says what to write.
pub fn check_stars(pattern: &str) -> Result<(), String> {
    let stands_alone = |(at, stars): (usize, &str)| {
        let (before, after) = (&pattern[..at], &pattern[at + stars.len()..]);
        (before.is_empty() || before.ends_with(['/', '{', ',']))
            && (after.is_empty() || after.starts_with(['/', '}', ',']))
    };
    match pattern.match_indices("**").all(stands_alone) {
        true => Ok(()),
        false => Err("** has a slash or nothing on each side, as in evil/** or **/nginx; within a part write *".into()),
    }
}

/// A pattern over names: `*` and `?` stay within a segment, `**` does not.
///
/// # Errors
/// Not a glob.
pub fn glob(pattern: &str) -> Result<GlobMatcher, globset::Error> {
    Ok(GlobBuilder::new(pattern).literal_separator(true).build()?.compile_matcher())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_document_says_what_it_seems_to() {
        for pattern in ["**", "a/**", "**/b", "a/**/b", "{a/**,b}", "a*b", "{**/a,**}"] {
            assert_eq!(check_stars(pattern), Ok(()), "{pattern}");
        }
        for pattern in ["a**", "**b", "a**/b", "a/**b", "***", "a/****"] {
            assert!(check_stars(pattern).is_err(), "{pattern}");
        }
        for (odd, place) in [
            (
                r#"{"immutable_tags":[{"name":"a","repositories":"prod**","tags":"v*"}]}"#,
                "immutable_tags[0].repositories",
            ),
            (
                r#"{"replicas":[{"repositories":"a/**","replicas":1},{"repositories":"**b","replicas":1}]}"#,
                "replicas[1]",
            ),
            (
                r#"{"aliases":[{"images":"index.docker.io/**","repositories":"m/**"}]}"#,
                "write index.docker.io as docker.io",
            ),
            (r#"{"aliases":[{"images":"Quay.io/**","repositories":"m/**"}]}"#, "aliases[0].images"),
            (r#"{"aliases":[{"images":"quay.io:443/**","repositories":"m/**"}]}"#, "write quay.io:443 as quay.io"),
            (r#"{"aliases":[{"images":"quay.io/**","repositories":"Mirror/**"}]}"#, "aliases[0].repositories"),
            (r#"{"aliases":[{"images":"quay.io/A/**","repositories":"m/**"}]}"#, "aliases[0].images"),
        ] {
            let refused = Rules::check(odd).unwrap_err().to_string();
            assert!(refused.contains(place), "{odd}: {refused}");
            assert!(Rules::parse(odd).is_ok(), "{odd} is in force where it was put before");
        }
        let good = r#"{"aliases":[{"images":"docker.io/**","repositories":"m/**"},{"images":"quay.io/a/**","repositories":"q/**"}]}"#;
        assert_eq!(Rules::check(good), Ok(()));
    }

    #[test]
    fn images_are_found_here_by_name_and_alias() {
        let rules = Rules::parse(
            r#"{"registry_names":["reg.example","[::1]:5000"],
                "aliases":[{"images":"docker.io/**","repositories":"mirror/docker.io/**"}],
                "workloads":{"argoproj.io/rollouts":"/spec/template"}}"#,
        )
        .unwrap();
        let here = |registry: &str, repository: &str| {
            rules.repository_of(registry, &repository.parse().unwrap()).map(|found| found.as_str().to_owned())
        };
        assert_eq!(here("reg.example", "a/b").as_deref(), Some("a/b"));
        assert_eq!(here("[::1]:5000", "a").as_deref(), Some("a"));
        assert_eq!(here("docker.io", "library/nginx").as_deref(), Some("mirror/docker.io/library/nginx"));
        assert_eq!(here("docker.io.evil.example", "library/nginx"), None);
        assert_eq!(rules.pod_template("argoproj.io", "rollouts"), Some("/spec/template"));
        for (odd, place) in [
            (r#"{"registry_names":["Reg.example"]}"#, "registry_names[0]"),
            (r#"{"registry_names":["reg.example:443"]}"#, "registry_names[0]"),
            (r#"{"registry_names":["reg/x"]}"#, "registry_names[0]"),
            (r#"{"aliases":[{"images":"docker.io","repositories":"m/**"}]}"#, "aliases[0].images"),
            (r#"{"aliases":[["docker.io/**","m/**"]]}"#, "expected an object"),
            (r#"{"workloads":{"rollouts":"/spec"}}"#, "workloads"),
            (r#"{"workloads":{"a/rollouts":"spec"}}"#, "workloads.a/rollouts"),
        ] {
            let refused = Rules::parse(odd).unwrap_err().to_string();
            assert!(refused.contains(place), "{odd}: {refused}");
            assert!(Rules::check(odd).is_err());
        }
    }

    #[test]
    fn rules_are_found_by_repository_and_tag() {
        let rules = Rules::parse(
            r#"{"immutable_tags":[{"name":"releases","repositories":"prod/**","tags":"v*"}],
                "replicas":[{"repositories":"mirror/**","replicas":1},{"repositories":"**/kept","replicas":5}],
                "missing_content":[{"repositories":"mirror/one/**","mode":"children"},{"repositories":"mirror/**","mode":"all"}]}"#,
        )
        .expect("valid");
        let name = |text: &str| text.parse::<RepositoryName>().expect("a name");
        let tag = |text: &str| text.parse::<Tag>().expect("a tag");
        assert_eq!(rules.immutable(&name("prod/a/b"), &tag("v1")), Some("releases"));
        assert_eq!(rules.immutable(&name("prod/a"), &tag("latest")), None);
        assert_eq!(rules.immutable(&name("dev/a"), &tag("v1")), None);
        assert_eq!(rules.missing_content(&name("mirror/one/x")), MissingContent::Children);
        assert_eq!(rules.missing_content(&name("mirror/two")), MissingContent::All);
        assert_eq!((rules.replicas(&name("mirror/kept")), rules.replicas(&name("a/kept"))), (Some(1), Some(5)));
        assert_eq!(rules.replicas(&name("own")), None);
        assert_eq!(rules.missing_content(&name("own")), MissingContent::Reject);
    }

    #[test]
    fn patterns_keep_to_segments() {
        let matches = |pattern: &str, name: &str| glob(pattern).expect("a glob").is_match(name);
        assert!(matches("team/*", "team/app") && !matches("team/*", "team/app/x"));
        assert!(matches("team/**", "team/app/x") && matches("**", "a"));
    }

    #[test]
    fn what_is_not_understood_is_refused_with_its_place() {
        let reason = |document: &str| Rules::parse(document).expect_err("refused").to_string();
        assert!(reason("[").contains("line 1"));
        assert!(reason(r#"{"imutable_tags":[]}"#).contains("imutable_tags"));
        let bad = r#"{"immutable_tags":[{"name":"x","repositories":"a","tags":"[z"}]}"#;
        assert!(reason(bad).starts_with("immutable_tags[0].tags: "), "{}", reason(bad));
        assert!(reason(r#"{"immutable_tags":[{"name":" ","repositories":"a","tags":"b"}]}"#).contains("[0].name"));
        assert!(reason(r#"{"missing_content":[{"repositories":"a","mode":"some"}]}"#).contains("some"));
        assert!(reason(r#"{"replicas":[{"repositories":"a","replicas":8}]}"#).starts_with("replicas[0].replicas: "));
        assert!(reason(r#"{"garbage_grace_seconds":0}"#).starts_with("garbage_grace_seconds: "));
    }
}
