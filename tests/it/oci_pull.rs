//! Pulling blobs and manifests.

use anyhow::{Result, ensure};
use bytes::Bytes;
use chaos_tests::client::{Method, Way};
use chaos_tests::image::{Image, OCI_INDEX, OCI_MANIFEST, descriptor, random_bytes, sha256};
use serde_json::json;

use crate::fixture::{ZEROS, each, has, is_error, on_cluster, push_small, raw_get, want};

#[test]
fn c07_head_of_a_manifest_tells_its_size() -> Result<()> {
    on_cluster(async |cluster| {
        let repository = "c07/app";
        let (image, pushed) = push_small(cluster, repository, "v1").await?;
        for client in each(cluster) {
            for reference in ["v1", &pushed.digest] {
                for headers in [&[][..], &[("accept-encoding", "gzip")]] {
                    let path = format!("/v2/{repository}/manifests/{reference}");
                    let head = want(&client, Method::HEAD, &path, headers, "", &[200]).await?;
                    has(&head, "content-length", &image.manifest.len().to_string())?;
                    has(&head, "content-type", OCI_MANIFEST)?;
                    has(&head, "docker-content-digest", &pushed.digest)?;
                    ensure!(head.body.is_empty());
                    let get = want(&client, Method::GET, &path, headers, "", &[200]).await?;
                    has(&get, "content-length", &image.manifest.len().to_string())?;
                    ensure!(get.header("content-encoding").is_none(), "{}: compressed", get.request);
                    ensure!(get.body == image.manifest, "{}: other bytes", get.request);
                }
            }
            for blob in &image.blobs {
                let path = format!("/v2/{repository}/blobs/{}", sha256(blob));
                let head = want(&client, Method::HEAD, &path, &[("accept-encoding", "gzip")], "", &[200]).await?;
                has(&head, "content-length", &blob.len().to_string())?;
                has(&head, "docker-content-digest", &sha256(blob))?;
                has(&head, "accept-ranges", "bytes")?;
            }
        }
        Ok(())
    })
}

#[test]
fn c08_every_form_of_one_byte_range() -> Result<()> {
    on_cluster(async |cluster| {
        let repository = "c08/app";
        for size_bytes in [2_048, 300_000] {
            let blob = random_bytes(&mut rand::rng(), size_bytes);
            each(cluster)[0].push_blob(repository, &blob, Way::Put).await?;
            let path = format!("/v2/{repository}/blobs/{}", sha256(&blob));
            let last = size_bytes - 1;
            let forms = [
                ("bytes=0-3".to_owned(), 0, 3),
                ("bytes=5-".to_owned(), 5, last),
                ("bytes=0-".to_owned(), 0, last),
                ("bytes=-3".to_owned(), size_bytes - 3, last),
                ("bytes=2-99999999".to_owned(), 2, last),
                (format!("bytes={last}-{last}"), last, last),
                (format!("bytes=-{}", size_bytes * 2), 0, last),
            ];
            for client in each(cluster) {
                for (range, from, to) in &forms {
                    let part = want(&client, Method::GET, &path, &[("range", range)], "", &[206]).await?;
                    has(&part, "content-range", &format!("bytes {from}-{to}/{size_bytes}"))?;
                    has(&part, "content-length", &(to - from + 1).to_string())?;
                    ensure!(part.body == blob[*from..=*to], "{} {range}: other bytes", part.request);
                }
                let beyond = format!("bytes={size_bytes}-");
                let refused = want(&client, Method::GET, &path, &[("range", &beyond)], "", &[416]).await?;
                has(&refused, "content-range", &format!("bytes */{size_bytes}"))?;
                want(&client, Method::GET, &path, &[("range", "bytes=500-0")], "", &[200, 416]).await?;
                let whole = want(&client, Method::GET, &path, &[("range", "items=0-3")], "", &[200]).await?;
                ensure!(whole.body == blob, "{}: other bytes", whole.request);
                has(&whole, "accept-ranges", "bytes")?;
            }
        }
        Ok(())
    })
}

#[test]
fn c09_what_a_client_accepts_does_not_change_what_it_gets() -> Result<()> {
    on_cluster(async |cluster| {
        let repository = "c09/app";
        let (image, _) = push_small(cluster, repository, "child").await?;
        let document = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [descriptor(OCI_MANIFEST, &image.manifest)]});
        let index = Bytes::from(document.to_string());
        let digest = sha256(&index);
        each(cluster)[0].put_manifest(repository, "v1", OCI_INDEX, index.clone()).await?.expect(&[201])?;
        let docker = "application/vnd.docker.distribution.manifest.v2+json";
        let accepts: [&[(&str, &str)]; 6] = [
            &[("accept", "*/*")],
            &[("accept", "application/json")],
            &[("accept", docker)],
            &[("accept", docker), ("accept", OCI_MANIFEST), ("accept", "text/html"), ("accept", OCI_INDEX)],
            &[(
                "accept",
                "application/vnd.oci.image.manifest.v1+json;q=0.5, application/vnd.oci.image.index.v1+json;q=0.9",
            )],
            &[("accept", "nonsense")],
        ];
        for (node, client) in cluster.nodes().iter().zip(each(cluster)) {
            for reference in ["v1", &digest] {
                let path = format!("/v2/{repository}/manifests/{reference}");
                for accept in accepts {
                    let reply = want(&client, Method::GET, &path, accept, "", &[200]).await?;
                    ensure!(reply.body == index, "{} {accept:?}: other bytes", reply.request);
                    has(&reply, "content-type", OCI_INDEX)?;
                    has(&reply, "docker-content-digest", &digest)?;
                }
                let (head, body) = raw_get(&node.url, &path, &[]).await?;
                ensure!(head.status == 200 && body == index, "without Accept: {head:?}");
                ensure!(head.header("content-type") == Some(OCI_INDEX), "{head:?}");
            }
        }
        Ok(())
    })
}

#[test]
fn c35_parameters_that_mirrors_add_are_ignored() -> Result<()> {
    on_cluster(async |cluster| {
        let repository = "c35/app";
        let (image, _) = push_small(cluster, repository, "v1").await?;
        for client in each(cluster) {
            for query in ["ns=docker.io", "x=1", "ns=docker.io&x=", "ns"] {
                let path = format!("/v2/{repository}/manifests/v1?{query}");
                let reply = client.get(&path).await?.expect(&[200])?;
                ensure!(reply.body == image.manifest, "{}: other bytes", reply.request);
                client.head(&path).await?.expect(&[200])?;
                let path = format!("/v2/{repository}/blobs/{}?{query}", sha256(&image.blobs[0]));
                ensure!(client.get(&path).await?.expect(&[200])?.body == image.blobs[0]);
                client.head(&path).await?.expect(&[200])?;
                client.get(&format!("/v2/{repository}/tags/list?{query}")).await?.expect(&[200])?;
                let location =
                    client.post(&format!("/v2/{repository}/blobs/uploads/?{query}")).await?.expect(&[202])?;
                client.delete(&location.location()?).await?.expect(&[204])?;
            }
        }
        Ok(())
    })
}

#[test]
fn several_ranges_come_as_parts_of_one_answer() -> Result<()> {
    on_cluster(async |cluster| {
        let blob = random_bytes(&mut rand::rng(), 100_000);
        each(cluster)[0].push_blob("ranges/app", &blob, Way::Put).await?;
        let path = format!("/v2/ranges/app/blobs/{}", sha256(&blob));
        for client in each(cluster) {
            let reply = want(&client, Method::GET, &path, &[("range", "bytes=0-99,500-600")], "", &[206]).await?;
            let content_type = reply.header("content-type").unwrap_or_default();
            ensure!(content_type.starts_with("multipart/byteranges; boundary="), "{content_type}");
            for part in [&blob[0..=99], &blob[500..=600]] {
                ensure!(
                    reply.body.windows(part.len()).any(|bytes| bytes == part),
                    "{}: a part is missing",
                    reply.request
                );
            }
            ensure!(reply.text().contains("bytes 500-600/100000"), "{}: no Content-Range of a part", reply.request);
        }
        Ok(())
    })
}

#[test]
fn what_a_client_has_already_is_not_sent_again() -> Result<()> {
    on_cluster(async |cluster| {
        let repository = "etag/app";
        let (image, pushed) = push_small(cluster, repository, "v1").await?;
        let quoted = |digest: &str| format!("\"{digest}\"");
        let blob_digest = sha256(&image.blobs[1]);
        let paths = [
            (format!("/v2/{repository}/manifests/v1"), &pushed.digest),
            (format!("/v2/{repository}/manifests/{}", pushed.digest), &pushed.digest),
            (format!("/v2/{repository}/blobs/{blob_digest}"), &blob_digest),
        ];
        for client in each(cluster) {
            for (path, digest) in &paths {
                has(&client.get(path).await?.expect(&[200])?, "etag", &quoted(digest))?;
                let same = [("if-none-match", quoted(digest))];
                let same = want(&client, Method::GET, path, &[(same[0].0, &same[0].1)], "", &[304]).await?;
                ensure!(same.body.is_empty());
                has(&same, "docker-content-digest", digest)?;
                let other = quoted(ZEROS);
                want(&client, Method::GET, path, &[("if-none-match", &other)], "", &[200]).await?;
            }
        }
        Ok(())
    })
}

#[test]
fn what_was_never_pushed_is_not_found_on_any_node() -> Result<()> {
    on_cluster(async |cluster| {
        let repository = "unknown/app";
        let (image, pushed) = push_small(cluster, repository, "v1").await?;
        push_small(cluster, "unknown/other", "v1").await?;
        for client in each(cluster) {
            let manifest = client.manifest(repository, "nope").await?;
            is_error(&manifest, &[404], &["MANIFEST_UNKNOWN"])?;
            is_error(&client.manifest(repository, ZEROS).await?, &[404], &["MANIFEST_UNKNOWN"])?;
            is_error(&client.manifest("unknown/never", "v1").await?, &[404], &["MANIFEST_UNKNOWN", "NAME_UNKNOWN"])?;
            is_error(&client.manifest(repository, "sha256:bad").await?, &[400, 404], &[])?;
            let blob = client.get(&format!("/v2/{repository}/blobs/{ZEROS}")).await?;
            is_error(&blob, &[404], &["BLOB_UNKNOWN"])?;
            is_error(&client.get(&format!("/v2/{repository}/blobs/sha256:bad")).await?, &[400, 404], &[])?;
            // What another repository holds is not here.
            let foreign = client.get(&format!("/v2/unknown/other/blobs/{}", sha256(&image.blobs[1]))).await?;
            is_error(&foreign, &[404], &["BLOB_UNKNOWN"])?;
            is_error(&client.manifest("unknown/other", &pushed.digest).await?, &[404], &["MANIFEST_UNKNOWN"])?;
        }
        Ok(())
    })
}

#[test]
fn an_image_with_every_size_of_layer_comes_back_from_every_node() -> Result<()> {
    on_cluster(async |cluster| {
        let sizes = [0, 1, 4_095, 4_096, 4_097, 12_287, 12_288, 12_289, 262_144, 1_048_577];
        let image = Image::random(&mut rand::rng(), &sizes);
        let pushed = each(cluster)[2].push("sizes/app", "v1", &image, Way::Patch).await?;
        for client in each(cluster) {
            client.verify(&pushed).await?;
        }
        Ok(())
    })
}
