//! Content digests of the OCI Image Specification («Digests»): parse, compute, order, encode.

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::str::FromStr;
use std::sync::LazyLock;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;

/// The two registered digest algorithms of the OCI Image Specification. Order and key bytes are permanent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// SHA-256, 32 bytes.
    Sha256,
    /// SHA-512, 64 bytes.
    Sha512,
}

impl Algorithm {
    /// Both algorithms.
    pub const ALL: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

    /// The name before the colon: `sha256` or `sha512`.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// Length of the raw digest in bytes.
    pub fn size_bytes(self) -> usize {
        match self {
            Algorithm::Sha256 => 32,
            Algorithm::Sha512 => 64,
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Algorithm::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    fn key_byte(self) -> u8 {
        match self {
            Algorithm::Sha256 => 1,
            Algorithm::Sha512 => 2,
        }
    }
}

/// The digest of some content: an algorithm and its raw bytes. Written `sha256:<lower-case hex>`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    // Bytes past the algorithm's length are always zero, so that the derived comparisons are right.
    raw: [u8; 64],
}

/// Why a text is no digest that this registry can serve.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseDigestError {
    /// Not of the form `algorithm:hex`, or the hex has the wrong length or upper-case letters.
    #[error("not a digest of the form algorithm:hex")]
    Malformed,
    /// Well-formed by the specification's grammar, but of an algorithm that is not supported.
    #[error("digest algorithm {0} is not supported")]
    UnsupportedAlgorithm(String),
}

impl Digest {
    /// Hashes bytes that are already in memory.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The raw digest, 32 or 64 bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.raw[..self.algorithm.size_bytes()]
    }

    /// The raw digest as lower-case hex, without the algorithm.
    pub fn hex(&self) -> String {
        hex::encode(self.as_bytes())
    }

    /// Eight bytes that stand for the digest in tables of this process. Two digests that agree in these do not occur, and
    /// nobody outside can make them: the key of the hash is random.
    pub fn hashed(&self) -> u64 {
        static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        KEY.hash_one(self)
    }

    /// One byte for the algorithm, then the raw digest: a form that sorts and never changes.
    pub fn to_key(&self) -> Vec<u8> {
        let mut key = Vec::with_capacity(1 + self.algorithm.size_bytes());
        key.push(self.algorithm.key_byte());
        key.extend_from_slice(self.as_bytes());
        key
    }

    /// The inverse of [`Digest::to_key`]; `None` unless byte and length match exactly.
    pub fn from_key(key: &[u8]) -> Option<Digest> {
        let (&first, raw) = key.split_first()?;
        let algorithm = Algorithm::ALL.into_iter().find(|algorithm| algorithm.key_byte() == first)?;
        Digest::from_raw(algorithm, raw)
    }

    fn from_raw(algorithm: Algorithm, bytes: &[u8]) -> Option<Digest> {
        if bytes.len() != algorithm.size_bytes() {
            return None;
        }
        let mut raw = [0; 64];
        raw[..bytes.len()].copy_from_slice(bytes);
        Some(Digest { algorithm, raw })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, encoded) = text.split_once(':').ok_or(ParseDigestError::Malformed)?;
        let Some(algorithm) = Algorithm::from_name(name) else {
            let well_formed = is_algorithm(name) && is_encoded(encoded);
            return Err(if well_formed {
                ParseDigestError::UnsupportedAlgorithm(name.to_owned())
            } else {
                ParseDigestError::Malformed
            });
        };
        // Upper-case hex would give one content two names.
        if encoded.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(ParseDigestError::Malformed);
        }
        let raw = hex::decode(encoded).map_err(|_| ParseDigestError::Malformed)?;
        Digest::from_raw(algorithm, &raw).ok_or(ParseDigestError::Malformed)
    }
}

/// `algorithm-component [algorithm-separator algorithm-component]*` of the specification's grammar.
fn is_algorithm(name: &str) -> bool {
    name.split(['+', '.', '_', '-'])
        .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()))
}

/// `encoded` of the specification's grammar.
fn is_encoded(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'=' | b'_' | b'-'))
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            serializer.serialize_bytes(&self.to_key())
        }
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            deserializer.deserialize_str(DigestVisitor)
        } else {
            deserializer.deserialize_bytes(DigestVisitor)
        }
    }
}

struct DigestVisitor;

impl Visitor<'_> for DigestVisitor {
    type Value = Digest;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a sha256 or sha512 digest")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Digest, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_bytes<E: de::Error>(self, key: &[u8]) -> Result<Digest, E> {
        Digest::from_key(key).ok_or_else(|| E::invalid_length(key.len(), &self))
    }
}

/// Hashes content piece by piece. Cloning it forks the computation.
#[derive(Clone)]
pub struct Hasher(State);

#[derive(Clone)]
enum State {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl Hasher {
    /// Starts with no content.
    pub fn new(algorithm: Algorithm) -> Self {
        Hasher(match algorithm {
            Algorithm::Sha256 => State::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => State::Sha512(sha2::Sha512::new()),
        })
    }

    /// Appends a piece.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(hasher) => hasher.update(bytes),
            State::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of everything appended.
    pub fn finish(self) -> Digest {
        let mut raw = [0; 64];
        let algorithm = match self.0 {
            State::Sha256(hasher) => {
                raw[..32].copy_from_slice(&hasher.finalize());
                Algorithm::Sha256
            }
            State::Sha512(hasher) => {
                raw.copy_from_slice(&hasher.finalize());
                Algorithm::Sha512
            }
        };
        Digest { algorithm, raw }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

#[cfg(test)]
mod tests;
