//! Pushing blobs and manifests.

use anyhow::{Result, ensure};
use bytes::Bytes;
use chaos_tests::client::{Method, OCTETS, Way, with_query};
use chaos_tests::cluster::Cluster;
use chaos_tests::image::{
    Image, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, descriptor, random_bytes, sha256, sha512,
};
use chaos_tests::raw::Connection;
use serde_json::{Value, json};

use crate::fixture::{
    SOON, ZEROS, blob_everywhere, blob_nowhere, each, has, is_error, manifest_everywhere, manifest_nowhere, on_cluster,
    on_own_cluster, push_small, tags_of, want,
};

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const MANIFEST_LIMIT: usize = 4 << 20;

#[test]
fn c01_a_manifest_under_a_digest_that_is_not_its_own_is_refused() -> Result<()> {
    on_cluster(async |cluster| {
        let (repository, client) = ("c01/app", &each(cluster)[0]);
        push_small(cluster, repository, "v1").await?;
        let other = Image::random(&mut rand::rng(), &[100]);
        for blob in &other.blobs {
            client.push_blob(repository, blob, Way::Put).await?;
        }
        let put = client.put_manifest(repository, ZEROS, OCI_MANIFEST, other.manifest).await?;
        is_error(&put, &[400], &["DIGEST_INVALID"])?;
        manifest_nowhere(cluster, repository, ZEROS).await?;
        manifest_nowhere(cluster, repository, &other.digest).await?;
        for client in each(cluster) {
            ensure!(tags_of(&client, repository).await? == ["v1"]);
        }
        Ok(())
    })
}

#[test]
fn c02_helm_leaves_the_media_type_out_and_its_bytes_stay_as_they_are() -> Result<()> {
    on_cluster(async |cluster| {
        let (repository, client) = ("c02/charts/app", &each(cluster)[1]);
        let config = Bytes::from(r#"{"name":"app","version":"1.0.0"}"#);
        let chart = random_bytes(&mut rand::rng(), 20_000);
        for blob in [&config, &chart] {
            client.push_blob(repository, blob, Way::Put).await?;
        }
        let manifest = format!(
            r#"{{"schemaVersion":  2,"config":{},"layers":[{}]}}"#,
            descriptor("application/vnd.cncf.helm.config.v1+json", &config),
            descriptor("application/vnd.cncf.helm.chart.content.v1.tar+gzip", &chart),
        );
        let tag = "1.0.0_build1";
        client.put_manifest(repository, tag, OCI_MANIFEST, manifest.clone().into()).await?.expect(&[201])?;
        let digest = sha256(manifest.as_bytes());
        manifest_everywhere(cluster, repository, &[tag, &digest], manifest.as_bytes(), OCI_MANIFEST).await
    })
}

#[test]
fn c03_parameters_of_the_content_type_are_ignored_and_not_given_back() -> Result<()> {
    on_cluster(async |cluster| {
        let (repository, client) = ("c03/app", &each(cluster)[2]);
        let (image, _) = push_small(cluster, repository, "v0").await?;
        let with_charset = format!("{OCI_MANIFEST}; charset=utf-8");
        client.put_manifest(repository, "v1", &with_charset, image.manifest.clone()).await?.expect(&[201])?;
        for client in each(cluster) {
            let path = format!("/v2/{repository}/manifests/v1");
            has(&client.head(&path).await?.expect(&[200])?, "content-type", OCI_MANIFEST)?;
        }
        manifest_everywhere(cluster, repository, &["v1"], &image.manifest, OCI_MANIFEST).await
    })
}

#[test]
fn c04_a_blob_of_zero_bytes_is_a_blob() -> Result<()> {
    on_cluster(async |cluster| {
        let (repository, client) = ("c04/app", &each(cluster)[0]);
        let empty = Image::of(Bytes::new(), vec![Bytes::new()]);
        let digest = sha256(b"");
        let location = client.open_upload(repository).await?;
        let closed = client.close_upload(&location, &digest, Bytes::new()).await?.expect(&[201])?;
        has(&closed, "docker-content-digest", &digest)?;
        client.put_manifest(repository, "v1", OCI_MANIFEST, empty.manifest.clone()).await?.expect(&[201])?;
        blob_everywhere(cluster, repository, &digest, 0).await?;
        manifest_everywhere(cluster, repository, &["v1"], &empty.manifest, OCI_MANIFEST).await?;
        for client in each(cluster) {
            let path = format!("/v2/{repository}/blobs/{digest}");
            let whole = want(&client, Method::GET, &path, &[("range", "bytes=0-")], "", &[200, 416]).await?;
            ensure!(whole.status == 416 || whole.body.is_empty(), "{}", whole.request);
        }
        Ok(())
    })
}

#[test]
fn c05_layers_that_live_elsewhere_need_no_upload_and_others_do() -> Result<()> {
    on_cluster(async |cluster| {
        let (repository, client) = ("c05/windows", &each(cluster)[1]);
        let config = Bytes::from("{}");
        client.push_blob(repository, &config, Way::Put).await?;
        let missing = sha256(b"never pushed");
        let manifest = |layer_type: &str, urls: bool| {
            let mut layer = descriptor(layer_type, b"never pushed");
            if urls {
                layer["urls"] = json!(["https://layers.example/x"]);
            }
            manifest_of(&config, vec![layer])
        };
        let foreign = [
            ("docker", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
            ("oci", "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"),
        ];
        for (tag, layer_type) in foreign {
            let bytes = manifest(layer_type, true);
            client.put_manifest(repository, tag, OCI_MANIFEST, bytes.clone()).await?.expect(&[201])?;
            manifest_everywhere(cluster, repository, &[tag], &bytes, OCI_MANIFEST).await?;
        }
        blob_nowhere(cluster, repository, &missing).await?;
        let refused = client.put_manifest(repository, "plain", OCI_MANIFEST, manifest(OCI_LAYER, false)).await?;
        is_error(&refused, &[400, 404], &["MANIFEST_BLOB_UNKNOWN"])?;
        ensure!(refused.status == 400, "{} → {}", refused.request, refused.status);
        ensure!(refused.json()["errors"][0]["detail"].to_string().contains(&missing), "{}", refused.text());
        manifest_nowhere(cluster, repository, "plain").await
    })
}

#[test]
fn c06_sha512_is_as_good_as_sha256() -> Result<()> {
    on_cluster(async |cluster| {
        for (number, size_bytes) in [500, 30_000].into_iter().enumerate() {
            push_by_sha512(cluster, &format!("c06/app-{number}"), size_bytes).await?;
        }
        Ok(())
    })
}

#[test]
fn c06_sha512_is_there_after_a_restart() -> Result<()> {
    on_own_cluster(async |cluster| {
        let found = push_by_sha512(cluster, "c06/restarted", 30_000).await?;
        for node in cluster.nodes() {
            node.stop().await?;
        }
        for node in cluster.nodes() {
            node.restart()?;
        }
        cluster.wait_ready(SOON).await?;
        found_by_sha512(cluster, "c06/restarted", &found).await
    })
}

#[test]
fn c06_other_digests_are_refused() -> Result<()> {
    on_cluster(async |cluster| {
        let repository = "c06/refused";
        let (image, _) = push_small(cluster, repository, "v1").await?;
        let digests = [
            format!("md5:{}", "0".repeat(32)),
            format!("sha512:{}", "0".repeat(64)),
            format!("sha256:{}", "0".repeat(63)),
            format!("sha256:{}", "A".repeat(64)),
            "sha256:xyz".to_owned(),
        ];
        for client in each(cluster) {
            for digest in &digests {
                let location = client.open_upload(repository).await?;
                let closed = client.close_upload(&location, digest, Bytes::from("x")).await?;
                is_error(&closed, &[400], &["DIGEST_INVALID"])?;
                client.delete(&location).await?.expect(&[204])?;
                let put = client.put_manifest(repository, digest, OCI_MANIFEST, image.manifest.clone()).await?;
                is_error(&put, &[400], &["DIGEST_INVALID"])?;
            }
        }
        Ok(())
    })
}

#[test]
fn c49_a_manifest_of_exactly_the_limit_is_taken_and_one_byte_more_is_not() -> Result<()> {
    on_cluster(async |cluster| {
        let (repository, client) = ("c49/large", &each(cluster)[0]);
        let largest = index_of_size(MANIFEST_LIMIT);
        client.put_manifest(repository, "fits", OCI_INDEX, largest.clone()).await?.expect(&[201])?;
        manifest_everywhere(cluster, repository, &["fits", &sha256(&largest)], &largest, OCI_INDEX).await?;
        let larger = index_of_size(MANIFEST_LIMIT + 1);
        for client in each(cluster) {
            let refused = client.put_manifest(repository, "too-large", OCI_INDEX, larger.clone()).await?;
            is_error(&refused, &[413], &[])?;
        }
        manifest_nowhere(cluster, repository, "too-large").await
    })
}

#[test]
fn c49_a_manifest_without_a_length_is_cut_off_at_the_limit() -> Result<()> {
    on_cluster(async |cluster| {
        let repository = "c49/endless";
        push_small(cluster, repository, "v1").await?;
        for node in cluster.nodes() {
            let mut connection = Connection::open(&node.url).await?;
            let content_type = format!("Content-Type: {OCI_INDEX}");
            let headers = [content_type.as_str(), "Transfer-Encoding: chunked"];
            connection.request("PUT", &format!("/v2/{repository}/manifests/endless"), &headers).await?;
            let (sent, head) = connection.send_until_answered(&[b' '; 65_536], 50 << 20, SOON).await?;
            ensure!(head.status == 413, "{head:?}");
            // The limit, and what the sockets' buffers may hold.
            ensure!(sent < MANIFEST_LIMIT + (20 << 20), "{} took {sent} bytes", node.name);
        }
        manifest_nowhere(cluster, repository, "endless").await
    })
}

#[test]
fn every_way_of_pushing_a_blob_ends_with_the_same_blob_on_every_node() -> Result<()> {
    on_cluster(async |cluster| {
        for (way_number, way) in [Way::Post, Way::Put, Way::Patch, Way::Chunks(7_000)].into_iter().enumerate() {
            for (node, client) in each(cluster).iter().enumerate() {
                for size_bytes in [1, 512, 12_288, 12_289, 50_000] {
                    let repository = format!("ways/w{way_number}-{node}");
                    let blob = random_bytes(&mut rand::rng(), size_bytes);
                    let reply = client.push_blob(&repository, &blob, way).await?;
                    has(&reply, "docker-content-digest", &sha256(&blob))?;
                    let served = client.get(&reply.location()?).await?.expect(&[200])?;
                    ensure!(served.body == blob, "the Location of {} serves other bytes", reply.request);
                    blob_everywhere(cluster, &repository, &sha256(&blob), size_bytes).await?;
                }
            }
        }
        Ok(())
    })
}

#[test]
fn a_body_that_is_not_of_its_digest_is_refused_on_every_way() -> Result<()> {
    on_cluster(async |cluster| {
        let repository = "digest/mismatch";
        for (node, client) in each(cluster).iter().enumerate() {
            for size_bytes in [600, 40_000 + node] {
                let blob = random_bytes(&mut rand::rng(), size_bytes);
                let body = [&blob[..], b"12345"].concat();
                let digest = sha256(&blob);
                let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
                let posted = client.send(Method::POST, &path, &[OCTETS], body.clone().into()).await?;
                is_error(&posted, &[400], &["DIGEST_INVALID"])?;
                let location = client.open_upload(repository).await?;
                let put = client.close_upload(&location, &digest, body.clone().into()).await?;
                is_error(&put, &[400], &["DIGEST_INVALID"])?;
                let location = client.open_upload(repository).await?;
                let location = client.patch(&location, None, body.into()).await?.expect(&[202])?.location()?;
                let put = client.close_upload(&location, &digest, Bytes::new()).await?;
                is_error(&put, &[400], &["DIGEST_INVALID"])?;
                blob_nowhere(cluster, repository, &digest).await?;
            }
        }
        Ok(())
    })
}

#[test]
fn a_closing_put_without_a_digest_is_refused() -> Result<()> {
    on_cluster(async |cluster| {
        for client in each(cluster) {
            let location = client.open_upload("digest/absent").await?;
            let put = client.send(Method::PUT, &location, &[OCTETS], Bytes::from("x")).await?;
            is_error(&put, &[400], &["DIGEST_INVALID", "BLOB_UPLOAD_INVALID"])?;
        }
        Ok(())
    })
}

#[test]
fn a_manifest_that_names_missing_blobs_is_refused_with_each_of_them() -> Result<()> {
    on_cluster(async |cluster| {
        for (node, client) in each(cluster).iter().enumerate() {
            let repository = format!("missing/app-{node}");
            let absent = Image::random(&mut rand::rng(), &[100, 200]);
            client.push_blob(&repository, &Bytes::from("something else"), Way::Put).await?;
            let put = client.put_manifest(&repository, "v1", OCI_MANIFEST, absent.manifest.clone()).await?;
            is_error(&put, &[400, 404], &["MANIFEST_BLOB_UNKNOWN"])?;
            for blob in &absent.blobs {
                ensure!(put.text().contains(&sha256(blob)), "{} is not named: {}", sha256(blob), put.text());
            }
            manifest_nowhere(cluster, &repository, "v1").await?;
        }
        Ok(())
    })
}

#[test]
fn an_index_may_only_name_manifests_that_are_there() -> Result<()> {
    on_cluster(async |cluster| {
        let repository = "index/app";
        let (image, _) = push_small(cluster, repository, "child").await?;
        let index_of = |child: &[u8]| {
            let document =
                json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [descriptor(OCI_MANIFEST, child)]});
            Bytes::from(document.to_string())
        };
        let client = &each(cluster)[1];
        let index = index_of(&image.manifest);
        client.put_manifest(repository, "multi", OCI_INDEX, index.clone()).await?.expect(&[201])?;
        manifest_everywhere(cluster, repository, &["multi", &sha256(&index)], &index, OCI_INDEX).await?;
        let refused = client.put_manifest(repository, "sparse", OCI_INDEX, index_of(b"no such child")).await?;
        is_error(&refused, &[400, 404], &["MANIFEST_BLOB_UNKNOWN", "MANIFEST_UNKNOWN"])?;
        manifest_nowhere(cluster, repository, "sparse").await
    })
}

#[test]
fn bytes_of_a_manifest_are_kept_however_odd_their_json_is() -> Result<()> {
    on_cluster(async |cluster| {
        let repository = "odd/json";
        let (image, _) = push_small(cluster, repository, "v0").await?;
        let text = String::from_utf8(image.manifest.to_vec())?;
        let odd = [
            ("blanks", format!("\n {text} \n\n")),
            ("unknown", text.replacen('{', r#"{"x-unknown":{"b":1,"a":[1.0,1e3,"\u00e9"]},"#, 1)),
            ("newlines", text.replace(',', ",\r\n\t")),
        ];
        for (number, (tag, manifest)) in odd.iter().enumerate() {
            let client = &each(cluster)[number];
            client.put_manifest(repository, tag, OCI_MANIFEST, manifest.clone().into()).await?.expect(&[201])?;
            manifest_everywhere(cluster, repository, &[tag], manifest.as_bytes(), OCI_MANIFEST).await?;
        }
        Ok(())
    })
}

#[test]
fn a_docker_manifest_keeps_its_type() -> Result<()> {
    on_cluster(async |cluster| {
        let repository = "docker/app";
        let (image, _) = push_small(cluster, repository, "v0").await?;
        let text = String::from_utf8(image.manifest.to_vec())?;
        let manifest = text
            .replace(OCI_MANIFEST, DOCKER_MANIFEST)
            .replace(OCI_CONFIG, "application/vnd.docker.container.image.v1+json")
            .replace(OCI_LAYER, "application/vnd.docker.image.rootfs.diff.tar.gzip");
        let put = each(cluster)[1].put_manifest(repository, "v1", DOCKER_MANIFEST, manifest.clone().into()).await?;
        has(&put.expect(&[201])?, "docker-content-digest", &sha256(manifest.as_bytes()))?;
        manifest_everywhere(cluster, repository, &["v1"], manifest.as_bytes(), DOCKER_MANIFEST).await
    })
}

#[test]
fn what_is_no_manifest_is_refused() -> Result<()> {
    on_cluster(async |cluster| {
        let repository = "bad/manifest";
        let (image, _) = push_small(cluster, repository, "v1").await?;
        let broken = image.manifest.slice(..image.manifest.len() - 5);
        let other_type = String::from_utf8(image.manifest.to_vec())?.replace(OCI_MANIFEST, OCI_INDEX);
        let bodies: [(&str, Bytes); 6] = [
            ("broken", broken),
            ("list", Bytes::from("[]")),
            ("empty", Bytes::new()),
            ("strings", Bytes::from(r#"{"schemaVersion":2,"config":"x","layers":7}"#)),
            ("no-json", Bytes::from("\u{0}\u{1}")),
            ("other-type", Bytes::from(other_type)),
        ];
        for (client, (name, body)) in each(cluster).iter().cycle().zip(&bodies) {
            let put = client.put_manifest(repository, name, OCI_MANIFEST, body.clone()).await?;
            is_error(&put, &[400], &["MANIFEST_INVALID"])?;
            manifest_nowhere(cluster, repository, name).await?;
        }
        Ok(())
    })
}

#[test]
fn tags_outside_the_grammar_are_refused() -> Result<()> {
    on_cluster(async |cluster| {
        let repository = "bad/tag";
        let (image, _) = push_small(cluster, repository, "v1").await?;
        let longest = "a".repeat(128);
        for client in each(cluster) {
            client.put_manifest(repository, &longest, OCI_MANIFEST, image.manifest.clone()).await?.expect(&[201])?;
            for tag in [".dot", "-dash", "sp%20ace", "pl+us", &"a".repeat(129)] {
                let put = client.put_manifest(repository, tag, OCI_MANIFEST, image.manifest.clone()).await?;
                is_error(&put, &[400, 404], &[])?;
            }
            ensure!(tags_of(&client, repository).await? == [longest.as_str(), "v1"]);
        }
        Ok(())
    })
}

#[test]
fn a_manifest_put_broken_off_leaves_nothing_behind() -> Result<()> {
    on_cluster(async |cluster| {
        let repository = "cut/manifest";
        let (image, _) = push_small(cluster, repository, "v1").await?;
        for node in cluster.nodes() {
            let mut connection = Connection::open(&node.url).await?;
            let content_type = format!("Content-Type: {OCI_MANIFEST}");
            connection
                .request("PUT", &format!("/v2/{repository}/manifests/cut"), &[&content_type, "Content-Length: 1000"])
                .await?;
            connection.write(&image.manifest[..100]).await?;
        }
        manifest_nowhere(cluster, repository, "cut").await
    })
}

fn manifest_of(config: &[u8], layers: Vec<Value>) -> Bytes {
    let document = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": descriptor(OCI_CONFIG, config), "layers": layers,
    });
    Bytes::from(document.to_string())
}

fn index_of_size(size_bytes: usize) -> Bytes {
    let with = |fill: String| {
        json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "annotations": {"fill": fill}}).to_string()
    };
    let fill = size_bytes - with(String::new()).len();
    Bytes::from(with("x".repeat(fill)))
}

/// A blob and a manifest known by their sha512 only.
struct BySha512 {
    blob: Bytes,
    manifest: Bytes,
}

async fn push_by_sha512(cluster: &Cluster, repository: &str, size_bytes: usize) -> Result<BySha512> {
    let client = &each(cluster)[0];
    let blob = random_bytes(&mut rand::rng(), size_bytes);
    let digest = sha512(&blob);
    let opened =
        client.post(&format!("/v2/{repository}/blobs/uploads/?digest-algorithm=sha512")).await?.expect(&[202])?;
    let location = client.patch(&opened.location()?, None, blob.clone()).await?.expect(&[202])?.location()?;
    let closed = client.close_upload(&location, &digest, Bytes::new()).await?.expect(&[201])?;
    has(&closed, "docker-content-digest", &digest)?;
    // The algorithm may also be known only at the end.
    let late = random_bytes(&mut rand::rng(), size_bytes);
    let location = client.open_upload(repository).await?;
    let location = client.patch(&location, None, late.clone()).await?.expect(&[202])?.location()?;
    client
        .send(Method::PUT, &with_query(&location, &format!("digest={}", sha512(&late))), &[OCTETS], Bytes::new())
        .await?
        .expect(&[201])?;
    let described = |bytes: &Bytes| json!({"mediaType": OCI_LAYER, "digest": sha512(bytes), "size": bytes.len()});
    let document = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": described(&blob), "layers": [described(&blob), described(&late)],
    });
    let manifest = Bytes::from(document.to_string());
    let put =
        client.put_manifest(repository, &sha512(&manifest), OCI_MANIFEST, manifest.clone()).await?.expect(&[201])?;
    has(&put, "docker-content-digest", &sha512(&manifest))?;
    let found = BySha512 { blob, manifest };
    found_by_sha512(cluster, repository, &found).await?;
    Ok(found)
}

async fn found_by_sha512(cluster: &Cluster, repository: &str, pushed: &BySha512) -> Result<()> {
    for client in each(cluster) {
        for (kind, bytes) in [("blobs", &pushed.blob), ("manifests", &pushed.manifest)] {
            let path = format!("/v2/{repository}/{kind}/{}", sha512(bytes));
            let head = client.head(&path).await?.expect(&[200])?;
            has(&head, "docker-content-digest", &sha512(bytes))?;
            has(&head, "content-length", &bytes.len().to_string())?;
            let get = client.get(&path).await?.expect(&[200])?;
            ensure!(get.body == bytes, "{}: other bytes", get.request);
            has(&get, "docker-content-digest", &sha512(bytes))?;
        }
    }
    Ok(())
}

#[test]
fn a_manifest_of_two_hundred_layers_is_taken_and_an_endless_artifact_type_refused() -> Result<()> {
    on_cluster(async |cluster| {
        let (repository, client) = ("many/layers", &each(cluster)[2]);
        let layers: Vec<Bytes> = (0..200).map(|number| Bytes::from(format!("layer {number}"))).collect();
        let image = Image::of(Bytes::from("{}"), layers);
        client.push(repository, "v1", &image, Way::Put).await?;
        manifest_everywhere(cluster, repository, &["v1", &image.digest], &image.manifest, OCI_MANIFEST).await?;
        let endless = json!({"schemaVersion": 2, "manifests": [], "artifactType": "x".repeat(5000)}).to_string();
        let put = client.put_manifest(repository, "endless", OCI_INDEX, endless.into()).await?;
        is_error(&put, &[400], &["MANIFEST_INVALID"])?;
        client.delete(&format!("/v2/{repository}/manifests/{}", image.digest)).await?.expect(&[202])?;
        manifest_nowhere(cluster, repository, "v1").await
    })
}
