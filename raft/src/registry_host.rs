//! How a registry is named in references to images, so that two spellings of one name are one.

use std::net::{IpAddr, Ipv6Addr};

/// The port that goes without saying.
const HTTPS: u16 = 443;

/// Docker Hub's registry, as images name it.
pub const DOCKER_HUB: &str = "docker.io";

/// What else it is called.
const DOCKER_HUB_OTHERS: [&str; 3] = ["index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"];

/// Why a text names no registry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not HOST, HOST:PORT or [IPv6]:PORT")]
pub struct InvalidRegistryHost(String);

/// `HOST[:PORT]` in its one spelling: lower case, the port as a number and without that of HTTPS, an address as short as it
/// can be written, an IPv4 address within IPv6 as what it is.
///
/// # Errors
/// No name of a registry.
pub fn canonical(text: &str) -> Result<String, InvalidRegistryHost> {
    let invalid = || InvalidRegistryHost(text.to_owned());
    let (host, port) = match text.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')) {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    let port = match port {
        None => None,
        Some(port) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => {
            // Runtimes read 0443 as 443.
            Some(port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(invalid)?)
        }
        Some(_) => return Err(invalid()),
    };
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => match address.parse::<Ipv6Addr>().map_err(|_| invalid())?.to_canonical() {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        },
        None => {
            let host = host.to_ascii_lowercase();
            let is_label = |label: &str| {
                !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            };
            if !host.split('.').all(is_label) {
                return Err(invalid());
            }
            host
        }
    };
    Ok(match port.filter(|port| *port != HTTPS) {
        Some(port) => format!("{host}:{port}"),
        None => host,
    })
}

/// As [`canonical`], and Docker Hub by its one name.
///
/// # Errors
/// As [`canonical`].
pub fn registry_of(text: &str) -> Result<String, InvalidRegistryHost> {
    let host = canonical(text)?;
    Ok(if DOCKER_HUB_OTHERS.contains(&host.as_str()) { DOCKER_HUB.to_owned() } else { host })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_spellings_of_one_registry_are_one() {
        for (text, wanted) in [
            ("quay.io", "quay.io"),
            ("Quay.IO:443", "quay.io"),
            ("quay.io:0443", "quay.io"),
            ("quay.io:005000", "quay.io:5000"),
            ("10.0.0.5:05000", "10.0.0.5:5000"),
            ("[2001:DB8:0::1]:5000", "[2001:db8::1]:5000"),
            ("[::ffff:10.0.0.5]:5000", "10.0.0.5:5000"),
            ("[::1]", "[::1]"),
        ] {
            assert_eq!(canonical(text).as_deref(), Ok(wanted), "{text}");
        }
        for odd in
            ["", ":5000", "a:", "a:0", "a:65536", "a:+1", "a..b", "a.", "a_b", "[::1", "::1", "[x]", "a/b", "a b"]
        {
            assert!(canonical(odd).is_err(), "{odd:?}");
        }
    }
}
