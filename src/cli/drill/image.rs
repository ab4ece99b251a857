//! The images that a drill pushes: a config, one layer of random bytes, a manifest.

use bytes::Bytes;
use rand::Rng;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Media type of the manifests.
pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Over 12 KiB, so that the layer is a file on the nodes and not a row of their state.
const LAYER_BYTES: usize = 64 * 1024;

/// An image that nobody has pushed before.
#[derive(Clone, Debug)]
pub(super) struct Image {
    pub(super) config: Bytes,
    pub(super) layer: Bytes,
    pub(super) manifest: Bytes,
    /// The manifest's.
    pub(super) digest: String,
}

impl Image {
    pub(super) fn random(random: &mut impl Rng) -> Self {
        let mut layer = vec![0; LAYER_BYTES];
        random.fill_bytes(&mut layer);
        let layer = Bytes::from(layer);
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
        });
        Self::of(Bytes::from(config.to_string()), layer, &Value::Null)
    }

    /// The same content under another manifest.
    pub(super) fn with_version(&self, version: usize) -> Self {
        let annotations = json!({ "drill.version": version.to_string() });
        Self::of(self.config.clone(), self.layer.clone(), &annotations)
    }

    fn of(config: Bytes, layer: Bytes, annotations: &Value) -> Self {
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": { "mediaType": CONFIG, "digest": digest(&config), "size": config.len() },
            "layers": [{ "mediaType": LAYER, "digest": digest(&layer), "size": layer.len() }],
        });
        if !annotations.is_null() {
            manifest["annotations"] = annotations.clone();
        }
        let manifest = Bytes::from(manifest.to_string());
        Self { digest: digest(&manifest), config, layer, manifest }
    }

    /// The digests of config and layer.
    pub(super) fn blobs(&self) -> [String; 2] {
        [digest(&self.config), digest(&self.layer)]
    }
}

/// `sha256:…` of the bytes.
pub(super) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_an_image_differ_in_their_manifest_alone() {
        let image = Image::random(&mut rand::rng());
        let (first, second) = (image.with_version(1), image.with_version(2));
        assert_eq!((first.blobs(), image.blobs()), (image.blobs(), second.blobs()));
        assert!(image.digest != first.digest && first.digest != second.digest);
        let manifest: Value = serde_json::from_slice(&second.manifest).expect("JSON");
        assert_eq!(manifest["layers"][0]["digest"], image.blobs()[1]);
        assert_eq!(manifest["layers"][0]["size"], LAYER_BYTES);
    }
}
