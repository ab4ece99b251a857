//! Image policies: the document that people write, checked, and its patterns compiled.

use std::collections::BTreeSet;
use std::fmt;

use flotilla_raft::PolicyName;
use flotilla_raft::registry_host::{self, DOCKER_HUB};
use flotilla_raft::settings::{GlobMatcher, check_stars, glob};
use flotilla_storage::Digest;
use serde::{Deserialize, Serialize};

/// The largest document, in bytes.
pub(crate) const DOCUMENT_MAX: usize = 256 << 10;

/// The most rules of a policy, patterns of a rule and namespaces of a policy.
const LIST_MAX: usize = 1000;

/// The longest name of a rule, in characters: it stands in warnings.
const NAME_MAX: usize = 60;

/// The document, YAML or JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImagePolicy {
    pub(crate) name: PolicyName,
    pub(crate) mode: Mode,
    /// Globs over the names of namespaces.
    #[serde(default = "everywhere")]
    pub(crate) namespaces: Vec<String>,
    /// What happens to an image that no rule approves.
    pub(crate) default: Otherwise,
    #[serde(default)]
    pub(crate) pin: Pin,
    #[serde(default)]
    pub(crate) templates: Templates,
    #[serde(default)]
    pub(crate) rules: Vec<Rule>,
}

fn everywhere() -> Vec<String> {
    vec!["**".into()]
}

/// What becomes of what a policy finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// It is denied.
    Enforce,
    /// Whoever asked is warned.
    Warn,
    /// It is written down.
    Audit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Otherwise {
    Deny,
    Approve,
}

/// Where tags of this registry are replaced by what they point at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Pin {
    Off,
    #[default]
    Pods,
    /// In pods as well.
    Templates,
}

/// What becomes of what an enforced policy finds in a pod template.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Templates {
    #[default]
    Warn,
    Enforce,
    Off,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rule {
    /// What people are told; `rules[N]` where it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// `REGISTRY/REPOSITORY[:TAG][@DIGEST]`, each a glob.
    pub(crate) images: Vec<String>,
    pub(crate) verb: Verb,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verb {
    Deny,
    Approve,
    Require(Requirements),
}

/// What must be true of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Requirements {
    /// This registry holds it.
    pub(crate) exists: bool,
    /// It is named by its digest.
    pub(crate) digest: bool,
    /// It is named by its digest, or by a tag of this registry that cannot be moved.
    pub(crate) immutable_tag: bool,
    /// It came into this registry at most this long ago: `30d`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_age: Option<String>,
}

/// Why a document is refused; says where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct InvalidPolicy(String);

/// A policy whose patterns are compiled.
#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) name: PolicyName,
    /// The revision at which it was put.
    pub(crate) revision: u64,
    pub(crate) mode: Mode,
    pub(crate) default: Otherwise,
    pub(crate) pin: Pin,
    pub(crate) templates: Templates,
    pub(crate) rules: Vec<CompiledRule>,
    namespaces: Vec<GlobMatcher>,
}

#[derive(Debug)]
pub(crate) struct CompiledRule {
    pub(crate) name: String,
    pub(crate) images: Vec<Pattern>,
    pub(crate) verb: CompiledVerb,
}

#[derive(Debug)]
pub(crate) enum CompiledVerb {
    Deny,
    Approve,
    Require { exists: bool, digest: bool, immutable_tag: bool, max_age_ms: Option<u64> },
}

/// Which images a rule is about.
#[derive(Debug)]
pub(crate) struct Pattern {
    name: GlobMatcher,
    pub(crate) tag: Option<GlobMatcher>,
    pub(crate) digest: Option<GlobMatcher>,
}

impl Policy {
    /// Reads one document.
    ///
    /// # Errors
    /// Not YAML, an unknown or a missing field, a bad pattern, too much of something: with its place.
    pub(crate) fn parse(document: &str, revision: u64) -> Result<Self, InvalidPolicy> {
        if document.len() > DOCUMENT_MAX {
            return Err(InvalidPolicy(format!("more than {DOCUMENT_MAX} bytes")));
        }
        if documents(document).count() > 1 {
            return Err(InvalidPolicy("more than one document: put each by itself".into()));
        }
        let policy: ImagePolicy = serde_saphyr::from_str(document).map_err(|error| refused("not valid", error))?;
        at_most(policy.namespaces.len(), "namespaces")?;
        at_most(policy.rules.len(), "rules")?;
        if policy.namespaces.is_empty() {
            return Err(refused("namespaces", "is empty: the policy is about no namespace"));
        }
        let namespaces = policy.namespaces.iter().enumerate();
        let namespaces = namespaces
            .map(|(number, pattern)| {
                namespace(pattern).map_err(|error| refused(format_args!("namespaces[{number}]"), error))
            })
            .collect::<Result<_, _>>()?;
        let rules = policy.rules.into_iter().enumerate();
        Ok(Self {
            name: policy.name,
            revision,
            mode: policy.mode,
            default: policy.default,
            pin: policy.pin,
            templates: policy.templates,
            rules: rules.map(|(number, rule)| CompiledRule::new(number, rule)).collect::<Result<_, _>>()?,
            namespaces,
        })
    }

    pub(crate) fn selects(&self, namespace: &str) -> bool {
        self.namespaces.iter().any(|pattern| pattern.is_match(namespace))
    }
}

impl CompiledRule {
    fn new(number: usize, rule: Rule) -> Result<Self, InvalidPolicy> {
        let place = format!("rules[{number}]");
        if rule.images.is_empty() {
            return Err(refused(format_args!("{place}.images"), "is empty: the rule is about no image"));
        }
        at_most(rule.images.len(), format_args!("{place}.images"))?;
        let images = rule.images.iter().enumerate();
        let images = images
            .map(|(number, text)| {
                Pattern::parse(text).map_err(|error| refused(format_args!("{place}.images[{number}]"), error))
            })
            .collect::<Result<_, _>>()?;
        let verb = match rule.verb {
            Verb::Deny => CompiledVerb::Deny,
            Verb::Approve => CompiledVerb::Approve,
            Verb::Require(required) => {
                let max_age_ms = required.max_age.as_deref().map(humantime::parse_duration).transpose();
                let max_age_ms =
                    max_age_ms.map_err(|error| refused(format_args!("{place}.verb.require.max_age"), error))?;
                let Requirements { exists, digest, immutable_tag, .. } = required;
                if !exists && !digest && !immutable_tag && max_age_ms.is_none() {
                    return Err(refused(format_args!("{place}.verb.require"), "requires nothing"));
                }
                let max_age_ms = max_age_ms.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
                if max_age_ms == Some(0) {
                    return Err(refused(
                        format_args!("{place}.verb.require.max_age"),
                        "is nothing: no image is so young",
                    ));
                }
                CompiledVerb::Require { exists, digest, immutable_tag, max_age_ms }
            }
        };
        let name = rule.name.filter(|name| !name.trim().is_empty());
        if name.as_ref().is_some_and(|name| name.chars().count() > NAME_MAX || name.chars().any(char::is_control)) {
            return Err(refused(
                format_args!("{place}.name"),
                format_args!("is no line of at most {NAME_MAX} characters"),
            ));
        }
        Ok(Self { name: name.unwrap_or(place), images, verb })
    }
}

impl Pattern {
    /// `NAME[:TAG][@DIGEST]`
    fn parse(text: &str) -> Result<Self, InvalidPolicy> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        // A colon before the last slash is a port's, and one within brackets at the beginning an address's.
        let is_tags = |(name, tag): &(&str, &str)| !tag.contains('/') && (!name.starts_with('[') || name.contains(']'));
        let (name, tag) = match rest.rsplit_once(':').filter(is_tags) {
            Some((name, tag)) => (name, Some(tag)),
            None => (rest, None),
        };
        if [Some(name), tag, digest].contains(&Some("")) {
            return Err(InvalidPolicy(format!("{text:?} has an empty part")));
        }
        check_name(name).map_err(|reason| InvalidPolicy(format!("{text:?} would match nothing: {reason}")))?;
        let is_digest = |text: &str| is_pattern(text) || text.parse::<Digest>().is_ok();
        if digest.is_some_and(|digest| !is_digest(digest)) {
            return Err(InvalidPolicy(format!("{text:?} would match nothing: what follows @ is no digest")));
        }
        // An address in brackets is no class of characters.
        let name = match name.strip_prefix('[').and_then(|name| name.split_once(']')) {
            Some((address, rest)) => format!("\\[{address}\\]{rest}"),
            None => name.to_owned(),
        };
        let compiled = |pattern: &str| glob(pattern).map_err(|error| InvalidPolicy(error.to_string()));
        Ok(Self {
            name: compiled(&name)?,
            tag: tag.map(compiled).transpose()?,
            digest: digest.map(compiled).transpose()?,
        })
    }

    /// Whether it is about images of this registry and repository, and perhaps of some tag or digest.
    pub(crate) fn matches_name(&self, name: &str) -> bool {
        self.name.is_match(name)
    }
}

/// Whether a text means more than itself.
fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '[', '{'])
}

/// Whether some image's full name may match a pattern.
fn check_name(name: &str) -> Result<(), String> {
    let (host, path) = name.split_once('/').map_or((name, None), |(host, path)| (host, Some(path)));
    let is_bracketed = host.starts_with('[') && host.contains(']');
    let may_be_host = host == "localhost" || is_pattern(host) || host.contains(['.', ':']);
    if !may_be_host || (path.is_none() && !name.contains("**")) {
        return Err("a name begins with its registry, as in docker.io/library/nginx or **/nginx".into());
    }
    if path.is_some_and(|path| path.chars().any(|letter| letter.is_ascii_uppercase())) {
        return Err("names of repositories are in lower case".into());
    }
    if path.is_some_and(|path| path.contains(':')) {
        return Err("there is no colon in the name of a repository".into());
    }
    check_stars(name)?;
    if is_pattern(host) && !is_bracketed {
        return Ok(());
    }
    let canonical = registry_host::registry_of(host).map_err(|invalid| invalid.to_string())?;
    if canonical != host {
        return Err(format!("write {host} as {canonical}"));
    }
    match path {
        Some(path) if host == DOCKER_HUB && !path.contains('/') && !path.contains("**") => {
            Err(format!("write {name} as {DOCKER_HUB}/library/{path}"))
        }
        _ => Ok(()),
    }
}

/// A pattern over the names of namespaces (RFC 1123 labels).
fn namespace(pattern: &str) -> Result<GlobMatcher, String> {
    let may_be = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || "-*?[]{},!".contains(letter);
    match pattern.chars().all(may_be) && !pattern.is_empty() {
        true => glob(pattern).map_err(|error| error.to_string()),
        false => Err(format!("{pattern:?} would match nothing: namespaces have lower-case letters, digits and -")),
    }
}

/// Reads a text of several documents that are divided by `---`: each with the policy that it says.
///
/// # Errors
/// As [`Policy::parse`]; two of one name.
pub(crate) fn parse_all(text: &str) -> Result<Vec<(&str, Policy)>, InvalidPolicy> {
    let found: Vec<&str> = documents(text).collect();
    let parsed = found.iter().enumerate().map(|(number, document)| {
        let policy = Policy::parse(document, 0).map_err(|invalid| match found.len() {
            1 => invalid,
            count => InvalidPolicy(format!("document {} of {count}: {invalid}", number + 1)),
        });
        Ok((*document, policy?))
    });
    let policies: Vec<_> = parsed.collect::<Result<_, _>>()?;
    let mut names = BTreeSet::new();
    match policies.iter().find(|(_, policy)| !names.insert(&policy.name)) {
        Some((_, twice)) => Err(refused(&twice.name, "two policies have this name")),
        None => Ok(policies),
    }
}

/// The documents of a text; those that hold nothing but comments are left out.
fn documents(text: &str) -> impl Iterator<Item = &str> {
    let is_content = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    let documents = text.split("\n---").map(|document| document.strip_prefix("---").unwrap_or(document));
    documents.filter(move |document| document.lines().any(is_content))
}

fn at_most(count: usize, place: impl fmt::Display) -> Result<(), InvalidPolicy> {
    if count > LIST_MAX { Err(refused(place, format_args!("more than {LIST_MAX}"))) } else { Ok(()) }
}

fn refused(place: impl fmt::Display, reason: impl fmt::Display) -> InvalidPolicy {
    InvalidPolicy(format!("{place}: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::reference::ImageReference;

    fn refusal(document: &str) -> String {
        Policy::parse(document, 0).map_or_else(|error| error.to_string(), |_| "taken".into())
    }

    #[test]
    fn a_policy_is_read_as_yaml_or_json() {
        let yaml = "name: prod\nmode: enforce\nnamespaces: [prod-*]\ndefault: deny\nrules:\n- name: ours\n  images: ['reg.example/**']\n  verb: approve\n- images: ['**:latest']\n  verb: deny\n- images: ['reg.example/**']\n  verb: {require: {exists: true, max_age: 30d}}\n";
        let policy = Policy::parse(yaml, 7).unwrap();
        assert!(policy.selects("prod-a") && !policy.selects("dev"));
        assert_eq!((policy.pin, policy.templates, policy.revision), (Pin::Pods, Templates::Warn, 7));
        let names: Vec<_> = policy.rules.iter().map(|rule| rule.name.as_str()).collect();
        assert_eq!(names, ["ours", "rules[1]", "rules[2]"]);
        let json = r#"{"name":"prod","mode":"audit","default":"approve"}"#;
        assert!(Policy::parse(json, 0).unwrap().selects("anything"));
    }

    #[test]
    fn a_class_of_characters_in_a_tag_is_one() {
        for (pattern, name, tag) in [
            ("docker.io/library/nginx:1.[0-9]*", "docker.io/library/nginx", "1.2"),
            ("**:[0-9]*", "reg.example/app", "7"),
            ("[::1]:5000/app:v[0-9]", "[::1]:5000/app", "v1"),
        ] {
            let pattern = Pattern::parse(pattern).unwrap();
            assert!(pattern.matches_name(name), "{name}");
            assert!(pattern.tag.unwrap().is_match(tag), "{tag}");
        }
        let port = Pattern::parse("[::1]:5000/app").unwrap();
        assert!(port.matches_name("[::1]:5000/app") && port.tag.is_none());
    }

    #[test]
    fn what_is_not_understood_is_refused_with_its_place() {
        let rules = |rules: &str| format!("name: a\nmode: warn\ndefault: deny\nrules:\n{rules}");
        for (document, said) in [
            ("name: a\nmode: warn\ndefault: deny\nmodes: x\n".into(), "modes"),
            ("name: a\nmode: warn\n".into(), "default"),
            ("name: a\nmode: war\ndefault: deny\n".into(), "war"),
            ("name: A_\nmode: warn\ndefault: deny\n".into(), "policy's name"),
            ("name: a\nmode: warn\ndefault: deny\nnamespaces: ['[']\n".into(), "namespaces[0]"),
            (rules("- images: ['reg.example/[']\n  verb: deny\n"), "rules[0].images[0]"),
            (rules("- images: [nginx]\n  verb: deny\n"), "docker.io/library/nginx"),
            (rules("- images: ['*']\n  verb: deny\n"), "would match nothing"),
            (rules("- images: ['docker.io/evil**']\n  verb: deny\n"), "a slash"),
            (rules("- images: ['registry.evil.example**']\n  verb: deny\n"), "a slash"),
            (rules("- images: ['**nginx:latest']\n  verb: deny\n"), "a slash"),
            (rules("- images: ['docker.io/a:b/c']\n  verb: deny\n"), "no colon"),
            (rules("- images: []\n  verb: deny\n"), "rules[0].images"),
            (rules("- images: ['**:']\n  verb: deny\n"), "empty part"),
            (rules("- images: ['**']\n  verb: allow\n"), "allow"),
            (rules("- images: ['**']\n  verb: {require: {}}\n"), "rules[0].verb.require"),
            (rules("- images: ['**']\n  verb: {require: {max_age: soon}}\n"), "max_age"),
            (rules("- images: ['**']\n  verb: {require: {exist: true}}\n"), "exist"),
            (format!("name: a\nmode: warn\ndefault: deny # {}\n", "x".repeat(DOCUMENT_MAX)), "more than"),
            ("".into(), "not valid"),
            ("[a, warn, ['**'], deny]\n".into(), "not valid"),
            ("name: a\nmode: warn\ndefault: deny\nname: b\n".into(), "name"),
            ("name: a\nmode: warn\ndefault: deny\n---\nname: b\n".into(), "more than one document"),
            ("name: a\nmode: warn\ndefault: deny\nnamespaces: []\n".into(), "namespaces: is empty"),
            ("name: a\nmode: warn\ndefault: deny\nnamespaces: [Prod]\n".into(), "namespaces[0]"),
            (
                "name: a\nmode: warn\ndefault: deny\nrules: [{name: \"a\\nb\", images: ['**'], verb: deny}]\n".into(),
                "rules[0].name",
            ),
            (
                "name: a\nmode: warn\ndefault: deny\nrules: [{images: ['**'], verb: {require: {max_age: 0s}}}]\n"
                    .into(),
                "max_age",
            ),
        ] {
            let refusal = refusal(&document);
            assert!(refusal.contains(said), "{document:.80}: {refusal}");
        }
    }

    #[test]
    fn patterns_have_name_tag_and_digest() {
        let matches = |pattern: &str, image: &str| {
            Pattern::parse(pattern).unwrap().matches_name(&ImageReference::parse(image).unwrap().name())
        };
        assert!(matches("docker.io/library/*", "nginx") && !matches("docker.io/other/*", "nginx"));
        assert!(matches("docker.io/**", "nginx") && !matches("docker.io/**", "docker.io.evil.example/nginx"));
        assert!(matches("**", "[::1]:5000/a") && matches("[::1]:5000/**", "[::1]:5000/a"));
        assert!(matches("reg:5000/a:v*", "reg:5000/a") && matches("**:latest", "nginx"));
        assert!(!matches("reg.example/bla/**", "reg.example/blatest/x"), "a path ends at its boundary");
        let both = Pattern::parse("reg:5000/a:v*@sha256:*").unwrap();
        assert!(both.tag.is_some_and(|tag| tag.is_match("v1")) && both.digest.is_some());
    }

    #[test]
    fn what_can_match_no_image_is_refused() {
        for (pattern, said) in [
            ("nginx", "begins with its registry"),
            ("docker.io/nginx", "docker.io/library/nginx"),
            ("index.docker.io/library/nginx", "write index.docker.io as docker.io"),
            ("Quay.IO/evil/**", "write Quay.IO as quay.io"),
            ("quay.io:0443/evil/**", "as quay.io"),
            ("docker.io/Library/nginx", "lower case"),
            ("docker.io/library/nginx@sha256:xyz", "no digest"),
            ("quay..io/a", "HOST"),
        ] {
            let refused = Pattern::parse(pattern).map_or_else(|error| error.to_string(), |_| "taken".into());
            assert!(refused.contains(said), "{pattern}: {refused}");
        }
        for pattern in
            ["**", "**/nginx", "*.example.com/**", "docker.io/**", "localhost/a", "**@sha256:*", "[::1]:5000/**"]
        {
            assert!(Pattern::parse(pattern).is_ok(), "{pattern}");
        }
    }

    #[test]
    fn the_policies_of_the_documentation_are_policies() {
        let text = std::fs::read_to_string("docs/admission.md").expect("a file");
        let blocks = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
        let policies: Vec<_> = blocks.flat_map(|block| parse_all(block).expect("policies")).collect();
        let names: Vec<_> = policies.iter().map(|(_, policy)| policy.name.as_str()).collect();
        assert_eq!(names, ["production", "ours-alone", "no-surprises", "would-be-stricter"]);
        let shipped = std::fs::read_to_string("deploy/admission/policies/trow.yaml").expect("a file");
        assert_eq!(parse_all(&shipped).expect("a policy").len(), 1);
    }
}
