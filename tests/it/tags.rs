//! Listing, moving and deleting tags, and deleting what they name.

use anyhow::{Context, Result, ensure};
use chaos_tests::client::{Way, path_of};
use chaos_tests::image::{Image, OCI_MANIFEST, sha256};

use crate::fixture::{each, is_error, manifest_nowhere, on_cluster, on_own_cluster, push_small, tags_in, tags_of};

#[test]
fn c17_odd_values_of_n() -> Result<()> {
    on_cluster(async |cluster| {
        let repository = "c17/app";
        let (image, _) = push_small(cluster, repository, "a").await?;
        for tag in ["b", "c"] {
            each(cluster)[1]
                .put_manifest(repository, tag, OCI_MANIFEST, image.manifest.clone())
                .await?
                .expect(&[201])?;
        }
        let mut doubtful = Vec::new();
        for client in each(cluster) {
            let list = async |query: &str| client.get(&format!("/v2/{repository}/tags/list?{query}")).await;
            let none = list("n=0").await?.expect(&[200])?;
            ensure!(tags_in(&none)?.is_empty() && none.header("link").is_none(), "{}: {}", none.request, none.text());
            for query in ["n=-1", "n=abc", "n=1.5"] {
                is_error(&list(query).await?, &[400], &[])?;
            }
            let mut answers = Vec::new();
            for (query, first) in [("n=", 3), ("n=2&n=1", 2)] {
                let reply = list(query).await?.expect(&[200, 400])?;
                if reply.status == 200 {
                    ensure!(tags_in(&reply)?.len() == first, "{}: {}", reply.request, reply.text());
                } else {
                    is_error(&reply, &[400], &[])?;
                }
                answers.push(reply.status);
            }
            doubtful.push(answers);
        }
        ensure!(doubtful.iter().all(|answers| *answers == doubtful[0]), "the nodes differ: {doubtful:?}");
        Ok(())
    })
}

#[test]
fn c18_a_repository_without_its_last_tag_has_an_empty_list() -> Result<()> {
    on_cluster(async |cluster| {
        let repository = "c18/app";
        let (_, pushed) = push_small(cluster, repository, "only").await?;
        let clients = each(cluster);
        clients[1].delete(&format!("/v2/{repository}/manifests/only")).await?.expect(&[202])?;
        for client in &clients {
            let list = client.get(&format!("/v2/{repository}/tags/list")).await?.expect(&[200])?;
            ensure!(list.json()["tags"].as_array().is_some_and(Vec::is_empty), "{}: {}", list.request, list.text());
            ensure!(list.json()["name"] == repository, "{}", list.text());
            client.manifest(repository, &pushed.digest).await?.expect(&[200])?;
        }
        clients[2].delete(&format!("/v2/{repository}/manifests/{}", pushed.digest)).await?.expect(&[202])?;
        let mut statuses = Vec::new();
        for client in &clients {
            let list = client.get(&format!("/v2/{repository}/tags/list")).await?.expect(&[200, 404])?;
            if list.status == 404 {
                is_error(&list, &[404], &["NAME_UNKNOWN"])?;
            } else {
                ensure!(tags_in(&list)?.is_empty(), "{}", list.text());
            }
            statuses.push(list.status);
            is_error(&client.get("/v2/c18/never/tags/list").await?, &[404], &["NAME_UNKNOWN"])?;
        }
        ensure!(statuses.iter().all(|status| *status == statuses[0]), "the nodes differ: {statuses:?}");
        Ok(())
    })
}

#[test]
fn c19_pages_are_followed_by_their_link() -> Result<()> {
    on_cluster(async |cluster| {
        let (image, _) = push_small(cluster, "c19/app-0", "seed").await?;
        for (node, client) in each(cluster).iter().enumerate() {
            let repository = format!("c19/app-{node}");
            let longest = "m".repeat(128);
            for blob in &image.blobs {
                client.push_blob(&repository, blob, Way::Put).await?;
            }
            let tags = ["b", "d", &longest, "t", "z"];
            for tag in tags {
                client.put_manifest(&repository, tag, OCI_MANIFEST, image.manifest.clone()).await?.expect(&[201])?;
            }
            let mut path = format!("/v2/{repository}/tags/list?n=2");
            let mut walked: Vec<String> = Vec::new();
            let mut pages = 0;
            loop {
                ensure!(pages < 10, "the pages have no end");
                pages += 1;
                let page = client.get(&path).await?.expect(&[200])?;
                ensure!(page.json()["name"] == repository.as_str(), "{}", page.text());
                walked.extend(tags_in(&page)?);
                if pages == 1 {
                    client
                        .put_manifest(&repository, "a", OCI_MANIFEST, image.manifest.clone())
                        .await?
                        .expect(&[201])?;
                }
                let Some(link) = page.header("link") else { break };
                ensure!(tags_in(&page)?.len() == 2, "{}", page.text());
                let (url, rest) =
                    link.strip_prefix('<').and_then(|link| link.split_once('>')).with_context(|| link.to_owned())?;
                ensure!(rest.replace(' ', "").contains(";rel=\"next\""), "{link}");
                ensure!(url.starts_with('/') || url.starts_with(&client.urls()[0]), "{link}");
                path = path_of(url).to_owned();
            }
            walked.retain(|tag| tag != "seed");
            ensure!(walked == tags, "{walked:?}");
        }
        Ok(())
    })
}

#[test]
fn c20_deleting_one_of_two_tags_keeps_the_manifest_and_the_other() -> Result<()> {
    on_cluster(async |cluster| {
        let repository = "c20/app";
        let (image, pushed) = push_small(cluster, repository, "a").await?;
        let clients = each(cluster);
        clients[1].put_manifest(repository, "b", OCI_MANIFEST, image.manifest.clone()).await?.expect(&[201])?;
        clients[2].delete(&format!("/v2/{repository}/manifests/a")).await?.expect(&[202])?;
        for client in &clients {
            is_error(&client.manifest(repository, "a").await?, &[404], &["MANIFEST_UNKNOWN"])?;
            client.manifest(repository, "b").await?.expect(&[200])?;
            client.manifest(repository, &pushed.digest).await?.expect(&[200])?;
            ensure!(tags_of(client, repository).await? == ["b"]);
            let again = client.delete(&format!("/v2/{repository}/manifests/a")).await?;
            is_error(&again, &[404], &["MANIFEST_UNKNOWN"])?;
        }
        Ok(())
    })
}

#[test]
fn c24_deleting_a_manifest_takes_its_tags_along_on_every_node_at_once() -> Result<()> {
    on_cluster(async |cluster| {
        let repository = "delete/app";
        let clients = each(cluster);
        let (image, pushed) = push_small(cluster, repository, "v1").await?;
        clients[1].put_manifest(repository, "v1.0", OCI_MANIFEST, image.manifest.clone()).await?.expect(&[201])?;
        push_small(cluster, repository, "v2").await?;
        clients[2].delete(&format!("/v2/{repository}/manifests/{}", pushed.digest)).await?.expect(&[202])?;
        for reference in ["v1", "v1.0", &pushed.digest] {
            manifest_nowhere(cluster, repository, reference).await?;
        }
        for client in &clients {
            client.manifest(repository, "v2").await?.expect(&[200])?;
            ensure!(tags_of(client, repository).await? == ["v2"]);
            let again = client.delete(&format!("/v2/{repository}/manifests/{}", pushed.digest)).await?;
            is_error(&again, &[404], &["MANIFEST_UNKNOWN"])?;
        }
        Ok(())
    })
}

#[test]
fn c26_a_blob_that_a_manifest_needs_goes_from_one_repository_alone() -> Result<()> {
    on_cluster(async |cluster| {
        let clients = each(cluster);
        let image = Image::random(&mut rand::rng(), &[20_000]);
        let (one, other) = ("c26/a", "c26/b");
        clients[0].push(one, "v1", &image, Way::Put).await?;
        let whole = clients[1].push(other, "v1", &image, Way::Put).await?;
        let layer = &image.blobs[1];
        let path = format!("/v2/{one}/blobs/{}", sha256(layer));
        clients[2].delete(&path).await?.expect(&[202])?;
        for client in &clients {
            is_error(&client.get(&path).await?, &[404], &["BLOB_UNKNOWN"])?;
            client.manifest(one, "v1").await?.expect(&[200])?;
            client.verify(&whole).await?;
        }
        clients[1].push_blob(one, layer, Way::Put).await?;
        for client in &clients {
            client.pull_blob(one, &sha256(layer)).await?;
        }
        Ok(())
    })
}

#[test]
fn c27_deletes_that_find_nothing_say_so_and_leave_no_entry_in_the_log() -> Result<()> {
    on_own_cluster(async |cluster| {
        let (repository, clients) = ("c27/app", each(cluster));
        let (image, pushed) = push_small(cluster, repository, "v1").await?;
        let of = |name: &str, what: &str| format!("/v2/{name}/{what}");
        for (what, code) in [
            ("manifests/v1".to_owned(), "MANIFEST_UNKNOWN"),
            (format!("manifests/{}", pushed.digest), "MANIFEST_UNKNOWN"),
            (format!("blobs/{}", sha256(&image.blobs[0])), "BLOB_UNKNOWN"),
        ] {
            clients[0].delete(&of(repository, &what)).await?.expect(&[202])?;
            let before = clients[0].get("/api/v1/cluster").await?.json()["commit_index"].clone();
            for client in &clients {
                is_error(&client.delete(&of(repository, &what)).await?, &[404], &[code])?;
                is_error(&client.delete(&of("c27/never", &what)).await?, &[404], &["NAME_UNKNOWN"])?;
            }
            let after = clients[0].get("/api/v1/cluster").await?.json()["commit_index"].clone();
            ensure!(after == before, "{what}: {before} → {after}");
        }
        for odd in ["manifests/sha256:xyz", "blobs/sha256:xyz", "blobs/latest"] {
            is_error(&clients[1].delete(&of(repository, odd)).await?, &[400, 404], &[])?;
        }
        let upload = clients[0].open_upload(repository).await?;
        clients[1].delete(path_of(&upload)).await?.expect(&[204])?;
        is_error(&clients[2].delete(path_of(&upload)).await?, &[404], &["BLOB_UPLOAD_UNKNOWN"])?;
        Ok(())
    })
}

#[test]
fn a_deleted_blob_is_gone_on_every_node_at_once_and_can_be_pushed_again() -> Result<()> {
    on_cluster(async |cluster| {
        let clients = each(cluster);
        for (node, client) in clients.iter().enumerate() {
            for size_bytes in [1_000, 30_000] {
                let blob = chaos_tests::image::random_bytes(&mut rand::rng(), size_bytes);
                let path = format!("/v2/delete/blob/blobs/{}", sha256(&blob));
                client.push_blob("delete/blob", &blob, Way::Put).await?;
                clients[(node + 1) % 3].delete(&path).await?.expect(&[202])?;
                for client in &clients {
                    client.head(&path).await?.expect(&[404])?;
                    is_error(&client.get(&path).await?, &[404], &["BLOB_UNKNOWN", "NAME_UNKNOWN"])?;
                    // It may have been all that the repository held.
                    is_error(&client.delete(&path).await?, &[404], &["BLOB_UNKNOWN", "NAME_UNKNOWN"])?;
                }
                client.push_blob("delete/blob", &blob, Way::Put).await?;
                for client in &clients {
                    client.pull_blob("delete/blob", &sha256(&blob)).await?;
                }
            }
        }
        Ok(())
    })
}

#[test]
fn a_moved_tag_is_seen_by_every_node_at_once() -> Result<()> {
    on_cluster(async |cluster| {
        let clients = each(cluster);
        for round in 0..20 {
            let image = Image::random(&mut rand::rng(), &[]);
            clients[round % 3].push("move/app", "latest", &image, Way::Post).await?;
            for client in &clients {
                let reply = client.manifest("move/app", "latest").await?.expect(&[200])?;
                ensure!(sha256(&reply.body) == image.digest, "round {round}: {} is stale", reply.request);
            }
        }
        Ok(())
    })
}

#[test]
fn tags_are_sorted_and_last_need_not_be_one_of_them() -> Result<()> {
    on_cluster(async |cluster| {
        let repository = "sorted/app";
        let (image, _) = push_small(cluster, repository, "m").await?;
        for tag in ["z", "B", "_x", "10", "2", "a.b", "a-b"] {
            each(cluster)[0]
                .put_manifest(repository, tag, OCI_MANIFEST, image.manifest.clone())
                .await?
                .expect(&[201])?;
        }
        let sorted = ["10", "2", "B", "_x", "a-b", "a.b", "m", "z"];
        for client in each(cluster) {
            ensure!(tags_of(&client, repository).await? == sorted);
            let after = client.get(&format!("/v2/{repository}/tags/list?last=nope&n=1")).await?.expect(&[200])?;
            ensure!(tags_in(&after)? == ["z"], "{}", after.text());
            let after = client.get(&format!("/v2/{repository}/tags/list?last=_x&n=2")).await?.expect(&[200])?;
            ensure!(tags_in(&after)? == ["a-b", "a.b"], "{}", after.text());
            ensure!(after.header("link").is_some(), "{}: no Link", after.request);
            let end = client.get(&format!("/v2/{repository}/tags/list?last=z")).await?.expect(&[200])?;
            ensure!(tags_in(&end)?.is_empty() && end.header("link").is_none(), "{}", end.text());
        }
        Ok(())
    })
}
