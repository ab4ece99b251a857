//! A client library that shares no line with ours: `oci-client`, against three nodes behind a balancer that sends each
//! request to the next.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use chaos_tests::balancer::Balancer;
use chaos_tests::image::{random_bytes, sha256};
use futures::future::try_join_all;
use oci_client::client::{ClientConfig, ClientProtocol, Config, ImageLayer};
use oci_client::manifest::{IMAGE_LAYER_GZIP_MEDIA_TYPE, OciDescriptor, OciImageIndex, OciImageManifest, OciManifest};
use oci_client::secrets::RegistryAuth::Anonymous;
use oci_client::{Client, Reference};
use serde_json::json;

use crate::fixture::{each, on_cluster};

fn client() -> Client {
    Client::new(ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() })
}

fn layers() -> Vec<ImageLayer> {
    [5_000, 300_000].map(|size| ImageLayer::oci_v1_gzip(random_bytes(&mut rand::rng(), size), None)).into()
}

/// Pushes an image; its layers and its manifest.
async fn push(client: &Client, reference: &Reference) -> Result<(Vec<ImageLayer>, OciImageManifest)> {
    let layers = layers();
    let config = Config::oci_v1(Bytes::from(json!({"architecture": "amd64", "os": "linux"}).to_string()), None);
    let manifest = OciImageManifest::build(&layers, &config, None);
    client.push(reference, &layers, config, &Anonymous, Some(manifest.clone())).await?;
    Ok((layers, manifest))
}

async fn pull(client: &Client, reference: &Reference, layers: &[ImageLayer]) -> Result<String> {
    let pulled = client.pull(reference, &Anonymous, vec![IMAGE_LAYER_GZIP_MEDIA_TYPE]).await?;
    let digests = |layers: &[ImageLayer]| {
        let mut digests: Vec<_> = layers.iter().map(|layer| sha256(&layer.data)).collect();
        digests.sort();
        digests
    };
    ensure!(digests(&pulled.layers) == digests(layers), "{reference}: other layers came back");
    pulled.digest.context("no digest")
}

#[test]
fn oci_client_pushes_pulls_lists_mounts_and_finds_referrers() -> Result<()> {
    on_cluster(async |cluster| {
        let balancer = Balancer::start(&cluster.urls()).await?;
        let host = balancer.url.trim_start_matches("http://");
        let reference = |name: &str| format!("{host}/oci-client/{name}").parse::<Reference>();
        let client = client();

        // Twenty side by side, and each comes back.
        let side_by_side = (0..20).map(|number| {
            let (client, reference) = (&client, reference(&format!("app:v{number}")));
            async move {
                let reference = reference?;
                let (layers, _) = push(client, &reference).await?;
                pull(client, &reference, &layers).await
            }
        });
        let digests: Vec<String> = try_join_all(side_by_side).await?;
        let tags = client.list_tags(&reference("app:v0")?, &Anonymous, Some(7), Some("v13")).await?.tags;
        ensure!(tags == ["v14", "v15", "v16", "v17", "v18", "v19", "v2"], "{tags:?}");

        // An index of two platforms, of images that are there.
        let entry = |digest: &str, architecture: &str| -> Result<serde_json::Value> {
            Ok(json!({
                "mediaType": oci_client::manifest::OCI_IMAGE_MEDIA_TYPE, "digest": digest, "size": 1,
                "platform": {"os": "linux", "architecture": architecture},
            }))
        };
        let index: OciImageIndex = serde_json::from_value(json!({
            "schemaVersion": 2, "mediaType": oci_client::manifest::OCI_IMAGE_INDEX_MEDIA_TYPE,
            "manifests": [entry(&digests[0], "amd64")?, entry(&digests[1], "arm64")?],
        }))?;
        let multi = reference("app:multi")?;
        client.push_manifest_list(&multi, &Anonymous, index).await?;
        let (pulled, _) = client.pull_manifest(&multi, &Anonymous).await?;
        let OciManifest::ImageIndex(pulled) = pulled else { anyhow::bail!("{multi} is no index") };
        ensure!(pulled.manifests.iter().map(|entry| &entry.digest).eq(&digests[..2]), "{pulled:?}");

        // A layer of one repository becomes one of another.
        let (from, to) = (reference("app:v0")?, reference("copy:v0")?);
        let (OciManifest::Image(image), _) = client.pull_manifest(&from, &Anonymous).await? else {
            anyhow::bail!("{from} is no image")
        };
        for blob in image.layers.iter().chain([&image.config]) {
            client.mount_blob(&to, &from, &blob.digest).await?;
            ensure!(client.blob_exists(&to, &blob.digest).await?);
        }
        client.push_manifest(&to, &OciManifest::Image(image.clone())).await?;
        ensure!(client.fetch_manifest_digest(&to, &Anonymous).await? == digests[0]);

        // An artifact with a subject is found by it.
        let subject = OciDescriptor {
            media_type: oci_client::manifest::OCI_IMAGE_MEDIA_TYPE.to_owned(),
            digest: digests[0].clone(),
            size: 1,
            ..OciDescriptor::default()
        };
        let kind = "application/vnd.example.sbom";
        let sbom = OciImageManifest { subject: Some(subject), artifact_type: Some(kind.to_owned()), ..image };
        client.push_manifest(&reference("app:sbom")?, &OciManifest::Image(sbom)).await?;
        let of = reference(&format!("app@{}", digests[0]))?;
        let found = client.pull_referrers(&of, Some(kind)).await?;
        ensure!(found.manifests.len() == 1, "{found:?}");
        ensure!(client.pull_referrers(&of, Some("application/other")).await?.manifests.is_empty());

        let catalog = client.catalog(&from, &Anonymous, Some(2), Some("oci-client/")).await?.repositories;
        ensure!(catalog == ["oci-client/app", "oci-client/copy"], "{catalog:?}");
        for node in each(cluster) {
            node.manifest("oci-client/app", "multi").await?.expect(&[200])?;
        }
        Ok(())
    })
}
