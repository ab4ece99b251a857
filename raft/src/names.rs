//! Names from outside, checked once at the edge: repository names and tags.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The longest repository name in bytes. The specification names 255 as the limit of host and name together in
/// many clients; every registry in use draws the line here.
pub const REPOSITORY_NAME_MAX: usize = 255;

/// The longest tag in bytes (distribution specification, «Pulling manifests»).
pub const TAG_MAX: usize = 128;

/// The longest name of a policy in bytes (RFC 1123, as Kubernetes applies it).
pub const POLICY_NAME_MAX: usize = 253;

/// A name that does not match its grammar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Not a repository name: lower-case path components with separators `.`, `_`, `__` or dashes, at most 255 bytes.
    #[error(
        "repository name must be lower-case path components of letters and digits, separated inside by '.', '_', '__' or dashes, at most 255 bytes"
    )]
    Repository,
    /// Not a tag: a letter, digit or `_`, then at most 127 letters, digits, `.`, `_` or `-`.
    #[error("a tag begins with a letter, a digit or '_', followed by at most 127 letters, digits, '.', '_' or '-'")]
    Tag,
    /// Not the name of a policy: lower-case letters, digits, `-` and `.`, a letter or digit at both ends, at most 253
    /// bytes.
    #[error(
        "a policy's name is lower-case letters, digits, '-' and '.', with a letter or digit at both ends, at most 253 bytes"
    )]
    Policy,
}

/// A repository's name, such as `library/redis` (distribution specification, «Pulling manifests»).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RepositoryName(Arc<str>);

impl RepositoryName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RepositoryName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let valid = text.len() <= REPOSITORY_NAME_MAX && text.split('/').all(is_path_component);
        valid.then(|| Self(text.into())).ok_or(InvalidName::Repository)
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(text: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    if !bytes.first().is_some_and(alphanumeric) || !bytes.last().is_some_and(alphanumeric) {
        return false;
    }
    bytes
        .split(alphanumeric)
        .all(|separator| matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-'))
}

impl TryFrom<String> for RepositoryName {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<RepositoryName> for String {
    fn from(name: RepositoryName) -> Self {
        name.0.as_ref().to_owned()
    }
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl fmt::Debug for RepositoryName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// A tag: a mutable name for a manifest within a repository.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tag(Arc<str>);

impl Tag {
    /// The tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let bytes = text.as_bytes();
        let word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        let valid = bytes.len() <= TAG_MAX
            && bytes.first().is_some_and(word)
            && bytes.iter().all(|byte| word(byte) || matches!(byte, b'.' | b'-'));
        valid.then(|| Self(text.into())).ok_or(InvalidName::Tag)
    }
}

impl TryFrom<String> for Tag {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<Tag> for String {
    fn from(tag: Tag) -> Self {
        tag.0.as_ref().to_owned()
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// The name of an image policy: a DNS subdomain, as the names of objects in Kubernetes are (RFC 1123).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PolicyName(Arc<str>);

impl PolicyName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PolicyName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let is_label = |label: &str| {
            let bytes = label.as_bytes();
            bytes.first().is_some_and(alphanumeric)
                && bytes.last().is_some_and(alphanumeric)
                && bytes.iter().all(|byte| alphanumeric(byte) || *byte == b'-')
        };
        let valid = text.len() <= POLICY_NAME_MAX && text.split('.').all(is_label);
        valid.then(|| Self(text.into())).ok_or(InvalidName::Policy)
    }
}

impl TryFrom<String> for PolicyName {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<PolicyName> for String {
    fn from(name: PolicyName) -> Self {
        name.0.as_ref().to_owned()
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl fmt::Debug for PolicyName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_names_follow_the_specifications_expression() {
        for name in [
            "a",
            "a__b/c--d/e.f",
            "a---b",
            "x/tags/list",
            "x/manifests",
            "x/blobs/uploads",
            "1/2/3/4/5/6/7/8/9/10",
            &"a".repeat(255),
        ] {
            assert!(name.parse::<RepositoryName>().is_ok(), "{name}");
        }
        for name in ["", "a..b", "a_-b", "-a", "A/b", "a//b", "a/", "/a", "a___b", "a b", "a\0b", "ä", &"a".repeat(256)]
        {
            assert_eq!(name.parse::<RepositoryName>(), Err(InvalidName::Repository), "{name}");
        }
    }

    #[test]
    fn policies_have_names_that_kubernetes_takes() {
        for name in ["a", "prod", "prod-1.example", "0a", &"a".repeat(253)] {
            assert!(name.parse::<PolicyName>().is_ok(), "{name}");
        }
        for name in ["", "-a", "a-", "a..b", ".a", "A", "a_b", "a/b", &"a".repeat(254)] {
            assert_eq!(name.parse::<PolicyName>(), Err(InvalidName::Policy), "{name}");
        }
    }

    #[test]
    fn tags_follow_the_specifications_expression() {
        for tag in ["latest", "_x", "1.0.0_build1", "A-b", &"a".repeat(128)] {
            assert!(tag.parse::<Tag>().is_ok(), "{tag}");
        }
        for tag in ["", ".dot", "-dash", "a b", "a/b", "a:b", &"a".repeat(129)] {
            assert_eq!(tag.parse::<Tag>(), Err(InvalidName::Tag), "{tag}");
        }
    }
}
