//! References to images as Kubernetes objects carry them: `registry/repository:tag@digest`, with Docker Hub's defaults.

use std::fmt;
use std::net::Ipv6Addr;

use flotilla_raft::registry_host::{self, DOCKER_HUB};
use flotilla_raft::{RepositoryName, Tag};
use flotilla_storage::Digest;
use oci_spec::distribution::Reference;

/// The longest reference that is looked at, in bytes: name, tag and digest at their longest, and a host.
const LENGTH_MAX: usize = 1024;

/// Where Docker Hub has what has no folder.
const DOCKER_HUB_OFFICIAL: &str = "library";

/// How long the identifiers are that runtimes take for no name (github.com/distribution/reference).
const IDENTIFIER_CHARS: usize = 64;

/// What an image is called where neither tag nor digest is given.
const TAG_DEFAULT: &str = "latest";

/// What stands where Istio's own webhook puts its proxy's image.
const AUTO: &str = "auto";

/// A parsed reference. Two that name the same image of the same registry are equal, however they are spelled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageReference {
    /// `host` or `host:port` in lower case, without the port of HTTPS.
    pub(crate) registry: String,
    pub(crate) repository: RepositoryName,
    /// `latest` where neither tag nor digest is given.
    pub(crate) tag: Option<Tag>,
    pub(crate) digest: Option<Digest>,
}

/// Why a text is no reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct InvalidReference(String);

impl ImageReference {
    /// Reads a reference as container runtimes do (github.com/distribution/reference, «normalize»).
    ///
    /// # Errors
    /// Says which part is not valid.
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidReference> {
        if text.is_empty() {
            return Err(invalid("it is empty"));
        }
        if text == AUTO {
            return Err(invalid("something was to replace it by an image, as Istio does with its proxy, and did not"));
        }
        if text.len() > LENGTH_MAX {
            return Err(invalid(format_args!("it is longer than {LENGTH_MAX} bytes")));
        }
        if text.len() == IDENTIFIER_CHARS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(invalid("64 hexadecimal digits are a container's identifier and no name"));
        }
        // The crate's grammar knows no addresses in brackets: any host takes their place.
        let (address, rest) = match bracketed(text)? {
            Some((address, rest)) => (Some(address), format!("address.invalid{rest}")),
            None => (None, text.to_owned()),
        };
        let parsed: Reference = rest.parse().map_err(invalid)?;
        let port = parsed.registry().strip_prefix("address.invalid");
        let registry = match address {
            Some(address) => format!("[{address}]{}", port.unwrap_or_default()),
            None => parsed.registry().to_owned(),
        };
        let registry = registry_host::registry_of(&registry).map_err(invalid)?;
        let repository = match registry == DOCKER_HUB && !parsed.repository().contains('/') {
            true => format!("{DOCKER_HUB_OFFICIAL}/{}", parsed.repository()),
            false => parsed.repository().to_owned(),
        };
        Ok(Self {
            registry,
            repository: repository.parse().map_err(invalid)?,
            tag: match (parsed.tag(), parsed.digest()) {
                (None, None) => Some(TAG_DEFAULT.parse().map_err(invalid)?),
                (tag, _) => tag.map(str::parse).transpose().map_err(invalid)?,
            },
            digest: parsed.digest().map(str::parse).transpose().map_err(invalid)?,
        })
    }

    /// Registry and repository, as policies match them.
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }
}

/// In full: nothing is left to defaults.
impl fmt::Display for ImageReference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(out, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(out, "@{digest}")?;
        }
        Ok(())
    }
}

/// An IPv6 address in brackets, and what follows them.
fn bracketed(text: &str) -> Result<Option<(Ipv6Addr, &str)>, InvalidReference> {
    let Some(text) = text.strip_prefix('[') else { return Ok(None) };
    let (address, rest) = text.split_once(']').ok_or_else(|| invalid("the bracket of an address does not end"))?;
    let address = address.parse().map_err(|_| invalid("no IPv6 address stands in the brackets"))?;
    match rest.starts_with([':', '/']) && rest.contains('/') {
        true => Ok(Some((address, rest))),
        false => Err(invalid("a repository must follow the address")),
    }
}

fn invalid(reason: impl fmt::Display) -> InvalidReference {
    InvalidReference(reason.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(text: &str) -> String {
        ImageReference::parse(text).map_or_else(|error| format!("refused: {error}"), |parsed| parsed.to_string())
    }

    /// C38
    #[test]
    fn c38_the_many_names_of_docker_hub_are_one() {
        for text in [
            "nginx",
            "nginx:latest",
            "library/nginx",
            "docker.io/nginx",
            "index.docker.io/library/nginx",
            "Docker.io/nginx",
            "docker.io:443/library/nginx",
            "registry-1.docker.io/nginx",
            "registry.hub.docker.com/library/nginx",
            "docker.io:0443/nginx",
        ] {
            assert_eq!(full(text), "docker.io/library/nginx:latest", "{text}");
        }
        assert_eq!(full("docker.io/other/nginx"), "docker.io/other/nginx:latest");
        assert_eq!(full("localhost/nginx"), "localhost/nginx:latest");
        assert_eq!(full("nginx.example/app"), "nginx.example/app:latest");
        assert_eq!(full("reg:5000/nginx"), "reg:5000/nginx:latest");
        assert_eq!(full("nginx:5000"), "docker.io/library/nginx:5000");
    }

    #[test]
    fn a_digest_makes_the_tag_a_label() {
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(full(&format!("nginx@{digest}")), format!("docker.io/library/nginx@{digest}"));
        let both = format!("reg.example:5000/team/app:1.2@{digest}");
        assert_eq!(full(&both), both);
        let sha512 = format!("reg.example/app@sha512:{}", "0".repeat(128));
        assert_eq!(full(&sha512), sha512);
    }

    #[test]
    fn hosts_may_be_addresses() {
        assert_eq!(full("[::1]:5000/a/b:v1"), "[::1]:5000/a/b:v1");
        assert_eq!(full("[2001:DB8:0::1]/a"), "[2001:db8::1]/a:latest", "one address has one spelling");
        assert_eq!(full("[::1]:443/a"), "[::1]/a:latest");
        assert_eq!(full("[::ffff:10.0.0.5]:05000/a"), "10.0.0.5:5000/a:latest");
        assert_eq!(full("127.0.0.1:5000/a"), "127.0.0.1:5000/a:latest");
        for odd in ["[::1]", "[::1]a", "[::1", "[x]/a", "[::1]:5000", "[::1]:/a", "[::1]:x/a", "[]/a"] {
            assert!(full(odd).starts_with("refused"), "{odd}: {}", full(odd));
        }
    }

    #[test]
    fn what_no_runtime_would_pull_is_refused() {
        let digest = "a".repeat(64);
        for odd in [
            "",
            "auto",
            " nginx",
            "nginx ",
            "nginx:",
            "nginx@",
            "nginx:v1:v2",
            "nginx@sha256:abc",
            &format!("nginx@sha256:{}", "A".repeat(64)),
            &format!("nginx@md5:{digest}"),
            &format!("nginx@sha256:{digest}@sha256:{digest}"),
            "Nginx",
            "reg.example/App",
            "reg.example//app",
            "reg.example/../app",
            "reg.example/app:ä",
            "https://reg.example/app",
            "reg.example/app?x",
            "a\nb",
            "quay.io:99999/a",
            "quay.io:0/a",
            &digest,
            "a\0b",
            &"a/".repeat(600),
            &format!("nginx:{}", "a".repeat(129)),
        ] {
            assert!(full(odd).starts_with("refused"), "{odd:?}: {}", full(odd));
        }
    }
}
