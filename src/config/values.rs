//! Parsers of single values, and how they are written back.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytesize::ByteSize;
use serde::Serializer;

pub(super) fn node_name(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if text.is_empty() || text.len() > 253 || !text.chars().all(allowed) {
        return Err("a name has 1 to 253 letters, digits, '-', '_' or '.'".to_owned());
    }
    Ok(text.to_owned())
}

pub(super) fn zone(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if text.len() > flotilla_raft::ZONE_MAX || !text.chars().all(allowed) {
        return Err(format!("a zone has at most {} letters, digits, '-', '_' or '.'", flotilla_raft::ZONE_MAX));
    }
    Ok(text.to_owned())
}

pub(super) fn base_url(text: &str) -> Result<String, String> {
    let url = reqwest::Url::parse(text).map_err(|error| format!("{error}; expected http://host:port"))?;
    let plain = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() || !plain || !url.username().is_empty() {
        return Err("expected http://host:port or https://host:port, nothing behind it".to_owned());
    }
    Ok(text.trim_end_matches('/').to_owned())
}

pub(super) fn host_and_port(text: &str) -> Result<String, String> {
    let refused = || format!("{text:?} is not a host and a port, such as node-1.example:7000");
    let (host, port) = text.rsplit_once(':').ok_or_else(refused)?;
    let port: u16 = port.parse().map_err(|_| refused())?;
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let good = match bracketed {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && node_name(host).is_ok(),
    };
    if !good || port == 0 {
        return Err(refused());
    }
    Ok(text.to_owned())
}

/// Whether a host and port lie on this machine by the look of it.
pub(super) fn is_loopback(host_and_port: &str) -> bool {
    let host = host_and_port.rsplit_once(':').map_or(host_and_port, |(host, _)| host);
    let host = host.trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The address a caller on this machine can use: "every address" becomes the loopback address.
pub(super) fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(IpAddr::from([127, 0, 0, 1]));
    }
    address
}

pub(super) fn odd_voters(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(voters @ (1 | 3 | 5 | 7)) => Ok(voters),
        _ => Err("must be 1, 3, 5 or 7".to_owned()),
    }
}

pub(super) fn size(text: &str) -> Result<ByteSize, String> {
    match text.parse::<ByteSize>() {
        Ok(size) if size.as_u64() > 0 => Ok(size),
        Ok(_) => Err("must be more than nothing".to_owned()),
        Err(error) => Err(format!("{error}; expected a size such as 4MiB")),
    }
}

/// Below this a node would hardly ever have what it should have.
const RATE_MIN: ByteSize = ByteSize::mib(1);

pub(super) fn rate(text: &str) -> Result<ByteSize, String> {
    size(text).and_then(|rate| match rate < RATE_MIN {
        true => Err(format!("must be {RATE_MIN} or more")),
        false => Ok(rate),
    })
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        Ok(_) => Err("must be more than nothing".to_owned()),
        Err(error) => Err(format!("{error}; expected a duration such as 60s")),
    }
}

/// How long certificates may be good: long enough to be renewed in time, and within what they can say.
const LIFETIME_MIN: Duration = Duration::from_secs(10);
const LIFETIME_MAX: Duration = Duration::from_secs(3650 * 24 * 3600);

pub(super) fn lifetime(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|lifetime| match (LIFETIME_MIN..=LIFETIME_MAX).contains(&lifetime) {
        true => Ok(lifetime),
        false => Err("must be 10s to 3650days".to_owned()),
    })
}

/// `*`, or scheme, host and port.
pub(super) fn origin(text: &str) -> Result<String, String> {
    if text == "*" { Ok(text.to_owned()) } else { base_url(text) }
}

/// More than `debug` is not compiled in.
const LOG_LEVELS: [&str; 5] = ["off", "error", "warn", "info", "debug"];

pub(super) fn log_filter(text: &str) -> Result<String, String> {
    for directive in text.split(',') {
        let level = directive.rsplit('=').next().unwrap_or_default().trim();
        if !LOG_LEVELS.contains(&level) {
            return Err(format!("{level:?} is not one of {}", LOG_LEVELS.join(", ")));
        }
    }
    tracing_subscriber::EnvFilter::try_new(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

/// Writes a size exactly: bytesize's own form rounds to one decimal.
pub(super) fn write_size<S: Serializer>(size: &ByteSize, serializer: S) -> Result<S::Ok, S::Error> {
    let bytes = size.as_u64();
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B")];
    let (unit, suffix) = units.into_iter().find(|(unit, _)| bytes.is_multiple_of(*unit)).unwrap_or((1, "B"));
    serializer.collect_str(&format_args!("{}{suffix}", bytes / unit))
}

pub(super) fn write_optional_duration<S: Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match duration {
        Some(duration) => write_duration(duration, serializer),
        None => serializer.serialize_none(),
    }
}

pub(super) fn write_duration<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*duration))
}
