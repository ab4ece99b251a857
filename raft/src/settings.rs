//! Settings that all nodes share: they are state, changed through the log, so that every node decides alike.
//!
//! They are kept as the JSON document that was put; fields that it does not name have their defaults.

use std::fmt;

use globset::GlobBuilder;
pub use globset::{Error as GlobError, GlobMatcher};
use serde::{Deserialize, Serialize};

use crate::json::{Object, objects};
use crate::names::{RepositoryName, Tag};

/// The largest document, in bytes.
pub const DOCUMENT_MAX: usize = 256 << 10;

/// The most rules of one kind.
const RULES_MAX: usize = 1000;

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
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            immutable_tags: Vec::new(),
            missing_content: Vec::new(),
            collect_untagged: Vec::new(),
            history_seconds: HISTORY_SECONDS,
            garbage_grace_seconds: GARBAGE_GRACE_SECONDS,
        }
    }
}

/// One rule about immutable tags. Patterns are globs: `*` stays within a segment of a name, `**` does not.
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
        }
    }
}

impl Rules {
    /// Reads a document.
    ///
    /// # Errors
    /// Not JSON, an unknown field, a bad pattern, an empty name, too many rules: with its place.
    pub fn parse(document: &str) -> Result<Self, InvalidSettings> {
        let refused =
            |place: fmt::Arguments<'_>, reason: &dyn fmt::Display| InvalidSettings(format!("{place}: {reason}"));
        if document.len() > DOCUMENT_MAX {
            return Err(InvalidSettings(format!("more than {DOCUMENT_MAX} bytes")));
        }
        let Object(settings): Object<Settings> =
            serde_json::from_str(document).map_err(|error| InvalidSettings(error.to_string()))?;
        for (rules, name) in [
            (settings.immutable_tags.len(), "immutable_tags"),
            (settings.missing_content.len(), "missing_content"),
            (settings.collect_untagged.len(), "collect_untagged"),
        ] {
            if rules > RULES_MAX {
                return Err(InvalidSettings(format!("{name}: more than {RULES_MAX} rules")));
            }
        }
        for (seconds, name) in
            [(settings.history_seconds, "history_seconds"), (settings.garbage_grace_seconds, "garbage_grace_seconds")]
        {
            if !(1..=SECONDS_MAX).contains(&seconds) {
                return Err(InvalidSettings(format!("{name}: must be 1 to {SECONDS_MAX}")));
            }
        }
        let mut compiled = Self {
            history_ms: settings.history_seconds * 1000,
            garbage_grace_ms: settings.garbage_grace_seconds * 1000,
            ..Self::default()
        };
        for (number, rule) in settings.immutable_tags.into_iter().enumerate() {
            let place = format!("immutable_tags[{number}]");
            if rule.name.trim().is_empty() {
                return Err(InvalidSettings(format!("{place}.name: is empty")));
            }
            let repositories =
                glob(&rule.repositories).map_err(|error| refused(format_args!("{place}.repositories"), &error))?;
            let tags = glob(&rule.tags).map_err(|error| refused(format_args!("{place}.tags"), &error))?;
            compiled.immutable_tags.push((rule.name, repositories, tags));
        }
        for (number, rule) in settings.missing_content.into_iter().enumerate() {
            let repositories = glob(&rule.repositories)
                .map_err(|error| refused(format_args!("missing_content[{number}].repositories"), &error))?;
            compiled.missing_content.push((repositories, rule.mode));
        }
        for (number, rule) in settings.collect_untagged.into_iter().enumerate() {
            let place = format!("collect_untagged[{number}]");
            let repositories =
                glob(&rule.repositories).map_err(|error| refused(format_args!("{place}.repositories"), &error))?;
            if !(1..=SECONDS_MAX).contains(&rule.after_seconds) {
                return Err(InvalidSettings(format!("{place}.after_seconds: must be 1 to {SECONDS_MAX}")));
            }
            compiled.collect_untagged.push((repositories, rule.after_seconds * 1000));
        }
        Ok(compiled)
    }

    /// These rules were put at this time, in milliseconds since the Unix epoch.
    pub(crate) fn in_force_since(self, since_ms: u64) -> Self {
        Self { since_ms, ..self }
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
    pub(crate) fn immutable(&self, repository: &RepositoryName, tag: &Tag) -> Option<&str> {
        let matches = |(_, repositories, tags): &&(String, GlobMatcher, GlobMatcher)| {
            repositories.is_match(repository.as_str()) && tags.is_match(tag.as_str())
        };
        self.immutable_tags.iter().find(matches).map(|(name, _, _)| name.as_str())
    }

    /// What manifests of a repository may name without its being there.
    pub(crate) fn missing_content(&self, repository: &RepositoryName) -> MissingContent {
        let found = self.missing_content.iter().find(|(repositories, _)| repositories.is_match(repository.as_str()));
        found.map_or_else(MissingContent::default, |(_, mode)| *mode)
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
    fn rules_are_found_by_repository_and_tag() {
        let rules = Rules::parse(
            r#"{"immutable_tags":[{"name":"releases","repositories":"prod/**","tags":"v*"}],
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
        assert!(reason(r#"{"garbage_grace_seconds":0}"#).starts_with("garbage_grace_seconds: "));
    }
}
