//! Manifests that refer to another one: listed, filtered, in pages, and found where the old tags listed them.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use chaos_tests::client::{Client, Method, Reply, Way, path_of};
use chaos_tests::image::{Image, OCI_INDEX, OCI_MANIFEST, descriptor, sha256};
use serde_json::{Value, json};

use crate::fixture::{ZEROS, each, has, is_error, on_cluster, push_small, want};

/// A manifest of the empty config that refers to a subject.
fn referrer(subject: &Value, kind: Option<&str>, number: usize) -> Bytes {
    let mut manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": descriptor("application/vnd.oci.empty.v1+json", b"{}"),
        "layers": [], "subject": subject, "annotations": {"number": number.to_string()},
    });
    if let Some(kind) = kind {
        manifest["artifactType"] = kind.into();
    }
    manifest.to_string().into()
}

async fn put(client: &Client, repository: &str, manifest: &Bytes) -> Result<Reply> {
    let reply = client.put_manifest(repository, &sha256(manifest), OCI_MANIFEST, manifest.clone()).await?;
    Ok(reply.expect(&[201])?)
}

async fn listed(client: &Client, path: &str) -> Result<(Reply, Vec<Value>)> {
    let reply = client.get(path).await?.expect(&[200])?;
    ensure!(reply.header("content-type") == Some(OCI_INDEX), "{}: {:?}", reply.request, reply.header("content-type"));
    let index = reply.json();
    ensure!(index["schemaVersion"] == 2 && index["mediaType"] == OCI_INDEX, "{}", reply.text());
    let manifests = index["manifests"].as_array().context("no list")?.clone();
    Ok((reply, manifests))
}

fn digests(manifests: &[Value]) -> Vec<String> {
    manifests.iter().filter_map(|manifest| manifest["digest"].as_str().map(str::to_owned)).collect()
}

#[test]
fn c21_referrers_are_listed_filtered_and_gone_with_their_manifest_on_every_node() -> Result<()> {
    on_cluster(async |cluster| {
        let (repository, clients) = ("referrers/app", each(cluster));
        let (image, pushed) = push_small(cluster, repository, "v1").await?;
        clients[0].push_blob(repository, &Bytes::from_static(b"{}"), Way::Put).await?;
        let subject = descriptor(OCI_MANIFEST, &image.manifest);
        let sbom = referrer(&subject, Some("application/sbom"), 1);
        let plain = referrer(&subject, None, 2);
        for (client, manifest) in clients.iter().zip([&sbom, &plain]) {
            has(&put(client, repository, manifest).await?, "oci-subject", &pushed.digest)?;
        }
        let path = format!("/v2/{repository}/referrers/{}", pushed.digest);
        for client in &clients {
            let (reply, all) = listed(client, &path).await?;
            ensure!(reply.header("oci-filters-applied").is_none(), "a filter that nobody asked for");
            let entry = |manifest: &Bytes| all.iter().find(|entry| entry["digest"] == sha256(manifest)).cloned();
            let found = entry(&sbom).context("the sbom is not listed")?;
            ensure!(found["artifactType"] == "application/sbom" && found["annotations"]["number"] == "1", "{found}");
            ensure!(found["size"] == sbom.len() && found["mediaType"] == OCI_MANIFEST, "{found}");
            let found = entry(&plain).context("the other one is not listed")?;
            ensure!(
                found["artifactType"] == "application/vnd.oci.empty.v1+json",
                "the config's type stands in: {found}"
            );
            ensure!(all.len() == 2, "{all:?}");

            let (reply, some) = listed(client, &format!("{path}?artifactType=application%2Fsbom")).await?;
            has(&reply, "oci-filters-applied", "artifactType")?;
            ensure!(digests(&some) == [sha256(&sbom)], "{some:?}");
            let head = client.head(&path).await?.expect(&[200])?;
            ensure!(
                head.header("content-length") == Some(&listed(client, &path).await?.0.body.len().to_string()),
                "HEAD"
            );
        }
        clients[1].delete(&format!("/v2/{repository}/manifests/{}", sha256(&sbom))).await?.expect(&[202])?;
        for client in &clients {
            ensure!(digests(&listed(client, &path).await?.1) == [sha256(&plain)], "a referrer that was deleted");
        }
        put(&clients[2], repository, &sbom).await?;
        ensure!(listed(&clients[0], &path).await?.1.len() == 2, "pushed again, it is there again");
        Ok(())
    })
}

#[test]
fn c22_c23_a_subject_may_come_later_or_never_and_what_is_no_digest_is_an_error() -> Result<()> {
    on_cluster(async |cluster| {
        let (repository, clients) = ("referrers/early", each(cluster));
        clients[0].push_blob(repository, &Bytes::from_static(b"{}"), Way::Put).await?;
        let image = Image::random(&mut rand::rng(), &[100]);
        let early = referrer(&descriptor(OCI_MANIFEST, &image.manifest), Some("a/b"), 1);
        put(&clients[0], repository, &early).await?;
        let path = format!("/v2/{repository}/referrers/{}", image.digest);
        ensure!(digests(&listed(&clients[1], &path).await?.1) == [sha256(&early)], "before the subject is there");
        clients[2].push(repository, "late", &image, Way::Put).await?;
        ensure!(digests(&listed(&clients[1], &path).await?.1) == [sha256(&early)], "once it is");
        for client in &clients {
            for unknown in [repository, "referrers/never"] {
                let (_, none) = listed(client, &format!("/v2/{unknown}/referrers/{ZEROS}")).await?;
                ensure!(none.is_empty(), "{none:?}");
            }
            for odd in ["sha256:xyz", "latest"] {
                let refused = client.get(&format!("/v2/{repository}/referrers/{odd}")).await?;
                is_error(&refused, &[400], &["DIGEST_INVALID"])?;
            }
            let wrong = client.delete(&path).await?;
            is_error(&wrong, &[405], &[])?;
            has(&wrong, "allow", "GET, HEAD")?;
        }
        Ok(())
    })
}

#[test]
fn many_referrers_come_in_pages_each_once() -> Result<()> {
    on_cluster(async |cluster| {
        let (repository, clients) = ("referrers/many", each(cluster));
        let (image, pushed) = push_small(cluster, repository, "v1").await?;
        clients[0].push_blob(repository, &Bytes::from_static(b"{}"), Way::Put).await?;
        let subject = descriptor(OCI_MANIFEST, &image.manifest);
        let mut wanted = Vec::new();
        for number in 0..230 {
            let kind = if number % 2 == 0 { "a/even" } else { "a/odd" };
            let manifest = referrer(&subject, Some(kind), number);
            put(&clients[number % 3], repository, &manifest).await?;
            wanted.push((kind, sha256(&manifest)));
        }
        for (query, kinds) in [("", vec!["a/even", "a/odd"]), ("?artifactType=a%2Fodd", vec!["a/odd"])] {
            let mut expected: Vec<String> =
                wanted.iter().filter(|(kind, _)| kinds.contains(kind)).map(|(_, digest)| digest.clone()).collect();
            let (mut found, mut pages) = (Vec::new(), 0);
            let mut next = Some(format!("/v2/{repository}/referrers/{}{query}", pushed.digest));
            while let Some(path) = next {
                let (reply, page) = listed(&clients[pages % 3], &path).await?;
                found.extend(digests(&page));
                pages += 1;
                ensure!(pages < 10, "pages without an end");
                next = reply.header("link").map(|link| link[1..link.find('>').unwrap_or(1)].to_owned());
            }
            expected.sort();
            found.sort();
            ensure!(found == expected, "{} of {} in {pages} pages", found.len(), expected.len());
            ensure!(pages > 1, "one page for {}", found.len());
        }
        Ok(())
    })
}

#[test]
fn what_the_old_tags_list_is_found_and_listed_once() -> Result<()> {
    on_cluster(async |cluster| {
        let (repository, clients) = ("referrers/moved", each(cluster));
        let (image, pushed) = push_small(cluster, repository, "v1").await?;
        clients[0].push_blob(repository, &Bytes::from_static(b"{}"), Way::Put).await?;
        let subject = descriptor(OCI_MANIFEST, &image.manifest);
        let known = referrer(&subject, Some("a/new"), 1);
        put(&clients[0], repository, &known).await?;
        // An artifact of an old client: nothing in it names its subject.
        let old = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "a/old",
            "config": descriptor("application/vnd.oci.empty.v1+json", b"{}"), "layers": [],
        });
        let old = Bytes::from(old.to_string());
        put(&clients[0], repository, &old).await?;
        let entry = |manifest: &Bytes, kind: &str| {
            let mut entry = descriptor(OCI_MANIFEST, manifest);
            entry["artifactType"] = kind.into();
            entry
        };
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry(&known, "a/new"), entry(&old, "a/old")]});
        let tag = pushed.digest.replace(':', "-");
        let path = format!("/v2/{repository}/manifests/{tag}");
        want(&clients[0], Method::PUT, &path, &[("content-type", OCI_INDEX)], index.to_string(), &[201]).await?;

        let path = format!("/v2/{repository}/referrers/{}", pushed.digest);
        for client in &clients {
            let mut found = digests(&listed(client, &path).await?.1);
            let mut wanted = vec![sha256(&known), sha256(&old)];
            found.sort();
            wanted.sort();
            ensure!(found == wanted, "{found:?}");
            let (_, some) = listed(client, &format!("{path}?artifactType=a/old")).await?;
            ensure!(digests(&some) == [sha256(&old)], "{some:?}");
        }
        let gone = clients[0].delete(path_of(&format!("/v2/{repository}/manifests/{tag}"))).await?;
        gone.expect(&[202])?;
        ensure!(digests(&listed(&clients[1], &path).await?.1) == [sha256(&known)], "the tag is gone");
        Ok(())
    })
}
