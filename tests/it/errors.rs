//! Bad requests, odd names, and headers behind proxies.

use anyhow::{Result, ensure};
use bytes::Bytes;
use chaos_tests::client::{Client, Method, Reply, Way};
use chaos_tests::cluster::{Cluster, Options};
use chaos_tests::image::{Image, OCI_MANIFEST, sha256};

use crate::fixture::{each, is_error, on_cluster, push_small, tags_of, want};

#[test]
fn c31_errors_are_json_that_clients_can_read() -> Result<()> {
    on_cluster(async |cluster| {
        let repository = "c31/app";
        push_small(cluster, repository, "v1").await?;
        for client in each(cluster) {
            let posted = client.post(&format!("/v2/{repository}/manifests/v1")).await?;
            is_error(&posted, &[405], &["UNSUPPORTED"])?;
            let allow = posted.header("allow").unwrap_or_default();
            ensure!(["GET", "HEAD", "PUT", "DELETE"].iter().all(|method| allow.contains(method)), "Allow: {allow}");
            let path = format!("/v2/{repository}/manifests/nope");
            let get = client.get(&path).await?;
            is_error(&get, &[404], &["MANIFEST_UNKNOWN"])?;
            let head = client.head(&path).await?.expect(&[404])?;
            ensure!(head.body.is_empty());
            ensure!(head.header("content-type") == get.header("content-type"), "{:?}", head.headers);
            is_error(&client.get(&format!("/v2/{repository}/nonsense")).await?, &[404], &[])?;
            is_error(&client.get("/v2/nonsense").await?, &[404], &[])?;
            for (method, path, methods) in [
                (Method::DELETE, "/api/v1/watch", "GET"),
                (Method::POST, "/api/v1/settings", "GET, PUT"),
                (Method::GET, "/api/v1/repositories/a/b/tags/v/rollback", "POST"),
            ] {
                let other = want(&client, method, path, &[], "", &[405]).await?;
                ensure!(other.header("allow") == Some(methods), "{path}: {:?}", other.header("allow"));
            }
            let large = Bytes::from(vec![b' '; 5 << 20]);
            is_error(&client.put_manifest(repository, "large", OCI_MANIFEST, large).await?, &[413], &[])?;
        }
        Ok(())
    })
}

#[test]
fn c33_addresses_in_answers_lead_back_through_the_proxy() -> Result<()> {
    on_cluster(async |cluster| {
        let repository = "c33/app";
        let (image, _) = push_small(cluster, repository, "a").await?;
        each(cluster)[0].put_manifest(repository, "b", OCI_MANIFEST, image.manifest).await?.expect(&[201])?;
        let proxies: [&[(&str, &str)]; 3] = [
            &[("host", "reg.example"), ("x-forwarded-proto", "https")],
            &[("host", "reg.example"), ("forwarded", "proto=https;host=reg.example")],
            &[("host", "reg.example:8443"), ("x-forwarded-proto", "https"), ("x-forwarded-host", "reg.example")],
        ];
        let leads_back = |reply: &Reply, header: &str| {
            let value = reply.header(header).unwrap_or_default().trim_start_matches('<');
            ensure!(
                value.starts_with('/') || value.starts_with("https://reg.example/"),
                "{}: {header}: {value}",
                reply.request
            );
            Ok(())
        };
        for client in each(cluster) {
            for headers in proxies {
                let posted =
                    want(&client, Method::POST, &format!("/v2/{repository}/blobs/uploads/"), headers, "", &[202])
                        .await?;
                leads_back(&posted, "location")?;
                let page =
                    want(&client, Method::GET, &format!("/v2/{repository}/tags/list?n=1"), headers, "", &[200]).await?;
                leads_back(&page, "link")?;
                let blob = Bytes::from("c33");
                let path = format!("/v2/{repository}/blobs/uploads/?digest={}", sha256(&blob));
                leads_back(&want(&client, Method::POST, &path, headers, blob, &[201]).await?, "location")?;
            }
        }
        Ok(())
    })
}

#[test]
fn c47_names_at_the_edges_of_the_grammar_work_in_every_endpoint() -> Result<()> {
    on_cluster(async |cluster| {
        let ten = ["part"; 10].join("/");
        let longest = format!("{}/{}", "a".repeat(127), "b".repeat(127));
        let names = [
            "a__b/c--d/e.f",
            "a---b",
            &ten,
            &longest,
            "x/tags/list",
            "x/manifests",
            "x/blobs/uploads",
            "x/blobs",
            "v2/x",
            "x/referrers",
        ];
        for (number, name) in names.into_iter().enumerate() {
            let clients = each(cluster);
            let image = Image::random(&mut rand::rng(), &[100, 20_000]);
            let pushed = clients[number % 3].push(name, "v1", &image, Way::Patch).await?;
            for client in &clients {
                client.verify(&pushed).await?;
                ensure!(tags_of(client, name).await? == ["v1"], "{name}");
                client.head(&format!("/v2/{name}/blobs/{}", sha256(&image.blobs[1]))).await?.expect(&[200])?;
                let location = client.open_upload(name).await?;
                client.get(&location).await?.expect(&[204])?;
                client.delete(&location).await?.expect(&[204])?;
            }
            clients[0].delete(&format!("/v2/{name}/manifests/v1")).await?.expect(&[202])?;
        }
        Ok(())
    })
}

#[test]
fn c47_names_outside_the_grammar_are_refused() -> Result<()> {
    on_cluster(async |cluster| {
        let image = Image::random(&mut rand::rng(), &[]);
        let (too_long, absurd) = ("a".repeat(256), "a".repeat(8_000));
        let names = [
            "a..b", "a_-b", "-a", "A/b", "a//b", "a/", "a___b", "a.", "_a", "a%00b", "a/..%2fb", "%C3%A9", &too_long,
            &absurd,
        ];
        for client in each(cluster) {
            for name in names {
                for reply in every_endpoint(&client, name, &image).await? {
                    let shown = &name[..name.len().min(20)];
                    ensure!(
                        [400, 404, 414, 431].contains(&reply.status),
                        "{shown}: {} → {}",
                        reply.request,
                        reply.status
                    );
                    if name.len() < 8_000 {
                        is_error(&reply, &[400, 404], &[])?;
                    }
                }
            }
        }
        Ok(())
    })
}

#[test]
fn the_base_answers_with_its_version_on_every_node() -> Result<()> {
    on_cluster(async |cluster| {
        for client in each(cluster) {
            let base = client.get("/v2/").await?.expect(&[200])?;
            ensure!(base.header("docker-distribution-api-version") == Some("registry/2.0"), "{:?}", base.headers);
            client.head("/v2/").await?.expect(&[200])?;
            let without_slash = client.get("/v2").await?;
            ensure!([200, 301, 308].contains(&without_slash.status), "/v2 → {}", without_slash.status);
        }
        Ok(())
    })
}

async fn every_endpoint(client: &Client, name: &str, image: &Image) -> Result<Vec<Reply>> {
    Ok(vec![
        client.get(&format!("/v2/{name}/manifests/v1")).await?,
        client.put_manifest(name, "v1", OCI_MANIFEST, image.manifest.clone()).await?,
        client.get(&format!("/v2/{name}/blobs/{}", image.digest)).await?,
        client.post(&format!("/v2/{name}/blobs/uploads/")).await?,
        client.get(&format!("/v2/{name}/tags/list")).await?,
    ])
}

#[test]
fn a_request_is_found_again_by_its_id() -> Result<()> {
    on_cluster(async |cluster| {
        for client in each(cluster) {
            let given = [("x-request-id", "proxy-7:42")];
            let missing = client.send(Method::GET, "/v2/none/manifests/v1", &given, Bytes::new()).await?;
            ensure!(missing.header("x-request-id") == Some("proxy-7:42"), "{:?}", missing.headers);
            ensure!(missing.json()["request_id"] == "proxy-7:42", "{}", missing.text());
            let (one, other) = (client.get("/v2/").await?, client.get("/v2/").await?);
            let id = one.header("x-request-id").unwrap_or_default();
            ensure!(id.len() == 36 && other.header("x-request-id") != Some(id), "{:?}", one.headers);
        }
        Ok(())
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_the_configured_origins_may_call_the_node() -> Result<()> {
    let cluster = Cluster::start(Options::with_args(["--cors-origins", "https://ui.example"])).await?;
    let result = async {
        let client = &each(&cluster)[0];
        let asked = [("origin", "https://ui.example"), ("access-control-request-method", "PUT")];
        let may =
            client.send(Method::OPTIONS, "/v2/a/manifests/v1", &asked, Bytes::new()).await?.expect(&[200, 204])?;
        ensure!(may.header("access-control-allow-origin") == Some("https://ui.example"), "{:?}", may.headers);
        ensure!(may.header("access-control-allow-methods").is_some_and(|methods| methods.contains("PUT")), "{may:?}");
        let get = client.send(Method::GET, "/v2/", &asked[..1], Bytes::new()).await?.expect(&[200])?;
        ensure!(get.header("access-control-allow-origin") == Some("https://ui.example"), "{:?}", get.headers);
        let other = [("origin", "https://else.example")];
        let get = client.send(Method::GET, "/v2/", &other, Bytes::new()).await?.expect(&[200])?;
        ensure!(get.header("access-control-allow-origin").is_none(), "{:?}", get.headers);
        Ok(())
    };
    let result = result.await;
    cluster.judged(result)
}
