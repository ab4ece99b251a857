//! Images made of random bytes, and digests.

use bytes::Bytes;
use rand::Rng;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256, Sha512};

/// Media type of an OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of an OCI image configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of a layer.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// What a client asks for that takes any manifest.
pub const ANY_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.v2+json, */*";

/// `sha256:…` of the bytes.
pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// `sha512:…` of the bytes.
pub fn sha512(bytes: &[u8]) -> String {
    format!("sha512:{}", hex::encode(Sha512::digest(bytes)))
}

/// That many random bytes.
pub fn random_bytes(random: &mut impl Rng, count: usize) -> Bytes {
    let mut bytes = vec![0; count];
    random.fill_bytes(&mut bytes);
    Bytes::from(bytes)
}

/// A descriptor of the bytes.
pub fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": sha256(bytes), "size": bytes.len()})
}

/// A manifest and everything that it names.
#[derive(Clone, Debug)]
pub struct Image {
    /// Config first, then layers.
    pub blobs: Vec<Bytes>,
    /// The bytes of the manifest.
    pub manifest: Bytes,
    /// The manifest's digest.
    pub digest: String,
}

impl Image {
    /// An image of these blobs.
    pub fn of(config: Bytes, layers: Vec<Bytes>) -> Self {
        let described: Vec<Value> = layers.iter().map(|layer| descriptor(OCI_LAYER, layer)).collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(OCI_CONFIG, &config),
            "layers": described,
        });
        let manifest = Bytes::from(manifest.to_string());
        let blobs = [config].into_iter().chain(layers).collect();
        Self { blobs, digest: sha256(&manifest), manifest }
    }

    /// An image that nobody has pushed before, with layers of these sizes in bytes.
    pub fn random(random: &mut impl Rng, layers: &[usize]) -> Self {
        let layers = layers.iter().map(|size| random_bytes(random, *size)).collect();
        let config = json!({"architecture": "amd64", "os": "linux", "serial": random.random::<u128>().to_string()});
        Self::of(Bytes::from(config.to_string()), layers)
    }

    /// An image with one layer that may lie in the log and one that is surely a file (over 12 KiB).
    pub fn mixed(random: &mut impl Rng) -> Self {
        let sizes = [random.random_range(1..8_000), random.random_range(13_000..60_000)];
        Self::random(random, &sizes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_the_standard() {
        assert_eq!(sha256(b""), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert!(sha512(b"").starts_with("sha512:cf83e1357eefb8bd"));
    }

    #[test]
    fn a_manifest_names_every_blob_of_its_image() {
        let image = Image::mixed(&mut rand::rng());
        let text = String::from_utf8_lossy(&image.manifest);
        assert!(image.blobs.iter().all(|blob| text.contains(&sha256(blob))));
        assert_eq!(image.digest, sha256(&image.manifest));
    }
}
