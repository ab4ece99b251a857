//! The demonstration: an image pushed to one node and pulled from the others.

use anyhow::{Context as _, ensure};
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use reqwest::{Client, Response, StatusCode, Url};
use serde_json::json;
use sha2::{Digest as _, Sha256};

/// Where the image lies.
pub(super) const IMAGE: &str = "flotilla/demo:latest";

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// An image of one layer, and what it is known by.
struct Image {
    config: Vec<u8>,
    layer: Vec<u8>,
    manifest: Vec<u8>,
}

/// Pushes the image to the first node, pulls it by tag from each other, and tells the result.
pub(super) async fn run(http: &Client, urls: &[&str]) -> anyhow::Result<String> {
    let (first, others) = urls.split_first().context("there are no nodes")?;
    let image = Image::build()?;
    push(http, first, &image).await.with_context(|| format!("push to {first}"))?;
    for url in others {
        pull(http, url, &image).await.with_context(|| format!("pull from {url}"))?;
    }
    let digest = digest(&image.manifest);
    Ok(match others.len() {
        0 => format!("Pushed {IMAGE} to {first}: {digest}"),
        count => format!(
            "Pushed {IMAGE} to {first}, pulled it from {count} other {}: everywhere {digest}",
            if count == 1 { "node" } else { "nodes" }
        ),
    })
}

impl Image {
    /// The same bytes each time, so that a second start adds nothing to the registry.
    fn build() -> anyhow::Result<Self> {
        let text = b"Pushed to one node, pulled from the others.\n";
        let mut header = tar::Header::new_ustar();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        let mut archive = tar::Builder::new(Vec::new());
        archive.append_data(&mut header, "flotilla.txt", text.as_slice()).context("cannot build the layer")?;
        let layer = archive.into_inner().context("cannot build the layer")?;
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": {},
            "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
        });
        let config = serde_json::to_vec(&config)?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": { "mediaType": CONFIG, "digest": digest(&config), "size": config.len() },
            "layers": [{ "mediaType": LAYER, "digest": digest(&layer), "size": layer.len() }],
        });
        Ok(Self { manifest: serde_json::to_vec(&manifest)?, config, layer })
    }
}

async fn push(http: &Client, url: &str, image: &Image) -> anyhow::Result<()> {
    for blob in [&image.config, &image.layer] {
        push_blob(http, url, blob).await.with_context(|| format!("blob {}", digest(blob)))?;
    }
    let put = http.put(manifest_url(url)).header(CONTENT_TYPE, MANIFEST).body(image.manifest.clone());
    expect(put.send().await?, StatusCode::CREATED).await.context("manifest")?;
    Ok(())
}

async fn push_blob(http: &Client, url: &str, blob: &[u8]) -> anyhow::Result<()> {
    let start = Url::parse(&format!("{}/blobs/uploads/", repository_url(url)))?;
    let session =
        expect(http.post(start.clone()).header(CONTENT_LENGTH, 0).send().await?, StatusCode::ACCEPTED).await?;
    let location = session.headers().get(LOCATION).context("the upload session has no Location")?;
    let mut location = start.join(location.to_str().context("the upload session's Location is no text")?)?;
    location.query_pairs_mut().append_pair("digest", &digest(blob));
    let put = http.put(location).header(CONTENT_TYPE, "application/octet-stream").body(blob.to_vec());
    expect(put.send().await?, StatusCode::CREATED).await?;
    Ok(())
}

async fn pull(http: &Client, url: &str, image: &Image) -> anyhow::Result<()> {
    let get = http.get(manifest_url(url)).header(ACCEPT, MANIFEST);
    compare(expect(get.send().await?, StatusCode::OK).await?, &image.manifest).await.context("manifest")?;
    for blob in [&image.config, &image.layer] {
        let digest = digest(blob);
        let get = http.get(format!("{}/blobs/{digest}", repository_url(url)));
        let answer = expect(get.send().await?, StatusCode::OK).await;
        compare(answer?, blob).await.with_context(|| format!("blob {digest}"))?;
    }
    Ok(())
}

async fn compare(answer: Response, pushed: &[u8]) -> anyhow::Result<()> {
    let (pulled, pushed) = (digest(&answer.bytes().await?), digest(pushed));
    ensure!(pulled == pushed, "pulled {pulled}, but pushed {pushed}");
    Ok(())
}

/// The answer if it has the status that the specification names, else its body as the reason.
async fn expect(answer: Response, status: StatusCode) -> anyhow::Result<Response> {
    if answer.status() == status {
        return Ok(answer);
    }
    let got = answer.status();
    let body: String = answer.text().await.unwrap_or_default().chars().take(300).collect();
    anyhow::bail!("answered {got} in place of {status}: {}", body.trim())
}

fn repository_url(url: &str) -> String {
    let (repository, _) = IMAGE.split_once(':').unwrap_or((IMAGE, ""));
    format!("{url}/v2/{repository}")
}

fn manifest_url(url: &str) -> String {
    let (_, tag) = IMAGE.split_once(':').unwrap_or((IMAGE, "latest"));
    format!("{}/manifests/{tag}", repository_url(url))
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn the_image_is_whole_and_always_the_same() {
        let image = Image::build().expect("an image");
        assert_eq!(digest(&image.manifest), digest(&Image::build().expect("an image").manifest));
        let manifest: serde_json::Value = serde_json::from_slice(&image.manifest).expect("JSON");
        assert_eq!(manifest["layers"][0]["digest"], digest(&image.layer));
        let mut archive = tar::Archive::new(image.layer.as_slice());
        let mut text = String::new();
        let mut file = archive.entries().expect("an archive").next().expect("a file").expect("a file");
        file.read_to_string(&mut text).expect("text");
        assert_eq!(text, "Pushed to one node, pulled from the others.\n");
    }
}
