//! What consensus adds: conditions, the past, several changes at once, and the feed of changes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use chaos_tests::client::{Client, Method, Reply};
use chaos_tests::image::{OCI_MANIFEST, sha256};
use serde_json::{Value, json};

use crate::fixture::{ZEROS, each, has, is_error, on_cluster, on_own_cluster, tags_in, want};

/// Manifests that name nothing are the cheapest content.
fn manifest(name: &str) -> Bytes {
    json!({"schemaVersion": 2, "mediaType": "application/vnd.example", "name": name}).to_string().into()
}

async fn put(
    client: &Client,
    repository: &str,
    reference: &str,
    name: &str,
    headers: &[(&str, &str)],
) -> Result<Reply> {
    let mut all = vec![("content-type", "application/vnd.example")];
    all.extend(headers);
    Ok(client.send(Method::PUT, &format!("/v2/{repository}/manifests/{reference}"), &all, manifest(name)).await?)
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", sha256(&manifest(name)))
}

fn revision(reply: &Reply) -> Result<u64> {
    Ok(reply.header("flotilla-revision").context("no revision")?.parse()?)
}

#[test]
fn a_tag_changes_only_on_its_condition() -> Result<()> {
    on_cluster(async |cluster| {
        let (repository, clients) = ("changes/conditions", each(cluster));
        let absent = [("if-none-match", "*")];
        put(&clients[0], repository, "v", "one", &absent).await?.expect(&[201])?;
        for client in &clients {
            let refused = put(client, repository, "v", "two", &absent).await?;
            is_error(&refused, &[412], &["DENIED"])?;
            has(&refused, "etag", &quoted("one"))?;
            let refused = put(client, repository, "v", "two", &[("if-match", &quoted("two"))]).await?;
            is_error(&refused, &[412], &["DENIED"])?;
            is_error(
                &put(client, repository, "v", "two", &[("if-match", "W/\"x\"")]).await?,
                &[400],
                &["UNSUPPORTED"],
            )?;
            is_error(&put(client, repository, "none", "two", &[("if-match", "*")]).await?, &[412], &["DENIED"])?;
        }
        put(&clients[1], repository, "v", "two", &[("if-match", &quoted("one"))]).await?.expect(&[201])?;
        let path = format!("/v2/{repository}/manifests/v");
        let delete = async |condition: &str| {
            clients[2].send(Method::DELETE, &path, &[("if-match", condition)], Bytes::new()).await
        };
        is_error(&delete(&quoted("one")).await?, &[412], &["DENIED"])?;
        delete(&quoted("two")).await?.expect(&[202])?;
        is_error(&delete(&quoted("two")).await?, &[412], &["DENIED"])?;
        let digest = sha256(&manifest("three"));
        is_error(&put(&clients[0], repository, &digest, "three", &absent).await?, &[400], &["UNSUPPORTED"])?;
        Ok(())
    })
}

#[test]
fn the_past_of_a_tag_can_be_read_listed_and_brought_back() -> Result<()> {
    on_cluster(async |cluster| {
        let (repository, clients) = ("changes/past", each(cluster));
        let first = revision(&put(&clients[0], repository, "v", "one", &[]).await?.expect(&[201])?)?;
        put(&clients[1], repository, "other", "one", &[]).await?.expect(&[201])?;
        let second = revision(&put(&clients[1], repository, "v", "two", &[]).await?.expect(&[201])?)?;
        let path = format!("/v2/{repository}/manifests/v");
        let gone = revision(&clients[2].delete(&path).await?.expect(&[202])?)?;
        for client in &clients {
            for (at, name) in [(first, "one"), (second - 1, "one"), (second, "two"), (gone - 1, "two")] {
                let then = client.get(&format!("{path}?revision={at}")).await?.expect(&[200])?;
                has(&then, "docker-content-digest", &sha256(&manifest(name)))?;
            }
            is_error(&client.get(&format!("{path}?revision={}", first - 1)).await?, &[404], &["MANIFEST_UNKNOWN"])?;
            is_error(&client.get(&format!("{path}?revision={gone}")).await?, &[404], &["MANIFEST_UNKNOWN"])?;
            is_error(&client.get(&format!("{path}?revision=99999999")).await?, &[400], &["UNSUPPORTED"])?;
            let list =
                async |at: u64| client.get(&format!("/v2/{repository}/tags/list?revision={at}")).await?.expect(&[200]);
            ensure!(tags_in(&list(first).await?)? == ["v"]);
            ensure!(tags_in(&list(second).await?)? == ["other", "v"]);
            ensure!(tags_in(&list(gone).await?)? == ["other"]);
            let page =
                client.get(&format!("/v2/{repository}/tags/list?revision={second}&n=1")).await?.expect(&[200])?;
            ensure!(
                page.header("link").is_some_and(|link| link.contains(&format!("revision={second}"))),
                "{:?}",
                page.header("link")
            );

            let history =
                client.get(&format!("/api/v1/repositories/{repository}/tags/v/history")).await?.expect(&[200])?;
            let versions = history.json()["history"].as_array().context("no list")?.clone();
            let told: Vec<_> = versions
                .iter()
                .map(|version| (version["revision"].as_u64(), version["digest"].as_str().map(str::to_owned)))
                .collect();
            let digest = |name: &str| Some(sha256(&manifest(name)));
            ensure!(
                told == [(Some(gone), None), (Some(second), digest("two")), (Some(first), digest("one"))],
                "{told:?}"
            );
        }
        let rollback = format!("/api/v1/repositories/{repository}/tags/v/rollback");
        let back = |to: u64| json!({"revision": to}).to_string();
        let answer = want(&clients[0], Method::POST, &rollback, &[], back(first), &[200]).await?;
        ensure!(answer.json()["digest"] == sha256(&manifest("one")), "{}", answer.text());
        has(&clients[1].get(&path).await?.expect(&[200])?, "docker-content-digest", &sha256(&manifest("one")))?;
        want(&clients[0], Method::POST, &rollback, &[("if-match", &quoted("two"))], back(second), &[412]).await?;
        want(&clients[0], Method::POST, &rollback, &[], back(gone), &[404]).await?;
        want(&clients[0], Method::POST, &rollback, &[], "{}", &[400]).await?;
        Ok(())
    })
}

#[test]
fn a_transaction_changes_all_of_its_tags_or_none() -> Result<()> {
    on_cluster(async |cluster| {
        let (one, two, clients) = ("changes/swap-a", "changes/swap-b", each(cluster));
        for (repository, tag, name) in [(one, "x", "one"), (two, "y", "two")] {
            put(&clients[0], repository, tag, name, &[]).await?.expect(&[201])?;
        }
        put(&clients[0], one, "keep", "two", &[]).await?.expect(&[201])?;
        put(&clients[0], two, "keep", "one", &[]).await?.expect(&[201])?;
        let (first, second) = (sha256(&manifest("one")), sha256(&manifest("two")));
        let change = async |number: usize, changes: Value, statuses: &[u16]| {
            let body = json!({"changes": changes}).to_string();
            want(&clients[number % 3], Method::POST, "/api/v1/transactions", &[], body, statuses).await
        };
        let swap = |to: [&String; 2]| {
            json!([
                {"repository": one, "tag": "x", "digest": to[0], "if_match": format!("\"{}\"", to[1])},
                {"repository": two, "tag": "y", "digest": to[1], "if_match": format!("\"{}\"", to[0])},
            ])
        };
        for round in 0..20 {
            let to = if round % 2 == 0 { [&second, &first] } else { [&first, &second] };
            let at = revision(&change(round, swap(to), &[200]).await?)?;
            for (repository, tag, digest) in [(one, "x", to[0]), (two, "y", to[1])] {
                let reply =
                    clients[(round + 1) % 3].get(&format!("/v2/{repository}/manifests/{tag}?revision={at}")).await?;
                has(&reply.expect(&[200])?, "docker-content-digest", digest)?;
            }
            is_error(&change(round + 1, swap(to), &[412]).await?, &[412], &["DENIED"])?;
        }
        let half = json!([{"repository": one, "tag": "x"}, {"repository": two, "tag": "y", "digest": ZEROS}]);
        let refused = change(0, half, &[404]).await?;
        ensure!(refused.text().contains("change 1"), "{}", refused.text());
        clients[1].head(&format!("/v2/{one}/manifests/x")).await?.expect(&[200])?;
        change(0, json!([]), &[400]).await?;
        change(0, json!([{"repository": one, "tag": "x", "tga": 1}]), &[400]).await?;
        Ok(())
    })
}

/// Reads the feed by polls, each at another node, until `count` events have come.
async fn poll(clients: &[Client], mut since: String, repository: &str, count: usize) -> Result<Vec<Value>> {
    let (mut events, mut turn) = (Vec::new(), 0);
    let deadline = Instant::now() + Duration::from_secs(30);
    while events.len() < count {
        ensure!(Instant::now() < deadline, "{} of {count} events in 30 s", events.len());
        turn += 1;
        let path = format!("/api/v1/watch?since={since}&repository={repository}&wait=2");
        // A node that was just killed does not answer: the next one goes on.
        let Ok(reply) = clients[turn % clients.len()].get(&path).await else { continue };
        if reply.status == 503 {
            continue;
        }
        let answer = reply.expect(&[200])?.json();
        since = answer["next"].as_str().context("no next")?.to_owned();
        events.extend(answer["events"].as_array().context("no events")?.iter().cloned());
    }
    Ok(events)
}

#[test]
fn every_change_is_told_once_and_in_order_to_who_polls_and_to_who_streams() -> Result<()> {
    on_cluster(async |cluster| {
        let (repository, clients) = ("changes/watched", each(cluster));
        let since = revision(&put(&clients[0], repository, "start", "start", &[]).await?.expect(&[201])?)?;
        let streamed = tokio::spawn(stream(cluster.urls()[1].clone(), since, repository, 8));
        put(&clients[0], repository, "v", "one", &[]).await?.expect(&[201])?;
        put(&clients[1], "changes/other", "v", "one", &[]).await?.expect(&[201])?;
        put(&clients[1], repository, "v", "two", &[]).await?.expect(&[201])?;
        put(&clients[2], repository, "v", "two", &[]).await?.expect(&[201])?;
        put(&clients[0], repository, "w", "two", &[]).await?.expect(&[201])?;
        let path = format!("/v2/{repository}/manifests/{}", sha256(&manifest("two")));
        clients[0].delete(&path).await?.expect(&[202])?;
        let told = |events: &[Value]| -> Vec<String> {
            let name = |event: &Value| {
                format!("{} {}", event["event"].as_str().unwrap_or("?"), event["data"]["tag"].as_str().unwrap_or("-"))
            };
            events.iter().map(name).collect()
        };
        let wanted = [
            "manifest.put -",
            "tag.put v",
            "manifest.put -",
            "tag.put v",
            "tag.put w",
            "tag.delete v",
            "tag.delete w",
            "manifest.delete -",
        ];
        let polled = poll(&clients, since.to_string(), repository, wanted.len()).await?;
        ensure!(told(&polled) == wanted, "{:?}", told(&polled));
        ensure!(polled[3]["data"]["previous"] == sha256(&manifest("one")), "{}", polled[3]);
        ensure!(polled[3]["data"]["digest"] == sha256(&manifest("two")), "{}", polled[3]);
        ensure!(polled[5]["data"]["digest"].is_null(), "{}", polled[5]);
        // From the middle of a revision: its first event is not told again.
        let middle = polled[5]["id"].as_str().context("an id")?.to_owned();
        let rest = poll(&clients, middle, repository, 2).await?;
        ensure!(told(&rest) == wanted[6..], "{:?}", told(&rest));
        let streamed = tokio::time::timeout(Duration::from_secs(20), streamed).await???;
        ensure!(streamed == polled, "the stream tells something else: {streamed:?}");
        for bad in ["since=x", "since=1&repository=%5B", "since=1&wait=x"] {
            is_error(&clients[0].get(&format!("/api/v1/watch?{bad}")).await?, &[400], &["UNSUPPORTED"])?;
        }
        Ok(())
    })
}

/// The first `count` server-sent events, in the form of a poll's.
async fn stream(url: String, since: u64, repository: &'static str, count: usize) -> Result<Vec<Value>> {
    use futures::StreamExt as _;
    let http = chaos_tests::client::plain_http(Duration::from_secs(60));
    let reply = http.get(format!("{url}/api/v1/watch?since={since}&repository={repository}")).send().await?;
    ensure!(reply.headers()["content-type"] == "text/event-stream", "{:?}", reply.headers());
    let (mut text, mut chunks, mut events) = (String::new(), reply.bytes_stream(), Vec::new());
    while events.len() < count {
        text.push_str(std::str::from_utf8(&chunks.next().await.context("the stream ended")??)?);
        while let Some((event, rest)) = text.split_once("\n\n") {
            let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            if let (Some(id), Some(name), Some(data)) = (field("id:"), field("event:"), field("data:")) {
                events.push(json!({"id": id, "event": name, "data": serde_json::from_str::<Value>(data)?}));
            }
            text = rest.to_owned();
        }
    }
    Ok(events)
}

#[test]
fn a_watcher_goes_on_at_another_node_when_its_own_is_killed() -> Result<()> {
    on_own_cluster(async |cluster| {
        let clients = each(cluster);
        let since = revision(&put(&clients[0], "w/app", "start", "start", &[]).await?.expect(&[201])?)?;
        const CHANGES: usize = 300;
        let names: Vec<String> = (0..CHANGES).map(|number| format!("m{number}")).collect();
        let write = async {
            for (number, name) in names.iter().enumerate() {
                if number == CHANGES / 2 {
                    cluster.nodes()[2].kill();
                }
                put(&clients[number % 2], "w/app", "v", name, &[]).await?.expect(&[201])?;
            }
            Ok::<_, anyhow::Error>(())
        };
        let (written, events) = futures::join!(write, poll(&clients, since.to_string(), "w/*", 2 * CHANGES));
        written?;
        let moved: Vec<_> = events?
            .into_iter()
            .filter(|event| event["event"] == "tag.put")
            .map(|event| event["data"]["digest"].clone())
            .collect();
        let wanted: Vec<_> = names.iter().map(|name| Value::from(sha256(&manifest(name)))).collect();
        ensure!(moved == wanted, "{} changes of {}", moved.len(), wanted.len());
        Ok(())
    })
}

#[test]
fn settings_are_shared_and_tags_that_they_keep_do_not_move() -> Result<()> {
    on_own_cluster(async |cluster| {
        let clients = each(cluster);
        let path = "/api/v1/settings";
        let none = clients[0].get(path).await?.expect(&[200])?;
        has(&none, "etag", "\"0\"")?;
        for (headers, document) in [
            (&[][..], "[]"),
            (&[], r#"{"immutable_tags": [["name", "prod/**", "v*"]]}"#),
            (&[("if-match", "*")], "{}"),
            (&[("if-match", "\"0\""), ("if-match", "\"0\"")], "{}"),
            (&[("if-match", "\"0\""), ("if-none-match", "*")], "{}"),
        ] {
            want(&clients[0], Method::PUT, path, headers, document, &[400]).await?;
        }
        let document = r#"{"immutable_tags": [{"name": "releases", "repositories": "prod/**", "tags": "v*"}],
            "missing_content": [{"repositories": "mirror/**", "mode": "all"}]}"#;
        let set = want(&clients[1], Method::PUT, path, &[("if-match", "\"0\"")], document, &[204]).await?;
        for none_yet in [("if-match", "\"0\""), ("if-none-match", "*")] {
            want(&clients[2], Method::PUT, path, &[none_yet], "{}", &[412]).await?;
        }
        is_error(
            &want(&clients[2], Method::PUT, path, &[], r#"{"imutable": []}"#, &[400]).await?,
            &[400],
            &["UNSUPPORTED"],
        )?;
        for client in &clients {
            let shown = client.get(path).await?.expect(&[200])?;
            ensure!(shown.text() == document && shown.header("etag") == set.header("etag"), "{}", shown.text());
        }
        put(&clients[0], "prod/a", "v1", "one", &[]).await?.expect(&[201])?;
        for client in &clients {
            put(client, "prod/a", "v1", "one", &[]).await?.expect(&[201])?;
            let refused = put(client, "prod/a", "v1", "two", &[]).await?;
            is_error(&refused, &[403], &["DENIED"])?;
            ensure!(refused.text().contains("releases"), "{}", refused.text());
            is_error(&client.delete("/v2/prod/a/manifests/v1").await?, &[403], &["DENIED"])?;
            put(client, "prod/a", "latest", "one", &[]).await?.expect(&[201])?;
        }
        let sparse = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [],
            "config": {"mediaType": "a/b", "digest": ZEROS, "size": 3}});
        for (repository, status) in [("mirror/a", 201), ("own/a", 400)] {
            let path = format!("/v2/{repository}/manifests/v1");
            want(&clients[0], Method::PUT, &path, &[("content-type", OCI_MANIFEST)], sparse.to_string(), &[status])
                .await?;
        }
        Ok(())
    })
}

#[test]
fn a_watcher_is_told_what_it_cannot_have() -> Result<()> {
    on_cluster(async |cluster| {
        for client in each(cluster) {
            for odd in ["since=99999999", "since=99999999&wait=1", "since=x", "repository=", "repository=[", "wait=x"] {
                is_error(&client.get(&format!("/api/v1/watch?{odd}")).await?, &[400], &["UNSUPPORTED"])?;
            }
            let long = "a*".repeat(300);
            is_error(&client.get(&format!("/api/v1/watch?repository={long}")).await?, &[400], &["UNSUPPORTED"])?;
        }
        Ok(())
    })
}

#[test]
fn the_catalog_can_be_read_as_it_was() -> Result<()> {
    on_cluster(async |cluster| {
        let (names, clients) = (["catalog-then/a", "catalog-then/b"], each(cluster));
        let first = revision(&put(&clients[0], names[0], "v", "one", &[]).await?.expect(&[201])?)?;
        let both = revision(&put(&clients[1], names[1], "v", "one", &[]).await?.expect(&[201])?)?;
        let path = format!("/v2/{}/manifests/{}", names[0], sha256(&manifest("one")));
        let gone = revision(&clients[2].delete(&path).await?.expect(&[202])?)?;
        let back = revision(&put(&clients[0], names[0], "v", "one", &[]).await?.expect(&[201])?)?;
        for client in &clients {
            for (then, wanted) in [
                (first - 1, &names[..0]),
                (first, &names[..1]),
                (both, &names[..]),
                (gone, &names[1..]),
                (back, &names[..]),
            ] {
                let mut found = Vec::new();
                let mut path = Some(format!("/v2/_catalog?revision={then}&n=1&last=catalog-then/"));
                while let Some(next) = path {
                    let page = client.get(&next).await?.expect(&[200])?;
                    has(&page, "flotilla-revision", &then.to_string())?;
                    let listed = page.json()["repositories"].as_array().cloned().unwrap_or_default();
                    found.extend(listed.iter().filter_map(Value::as_str).map(str::to_owned));
                    let link = page.header("link").and_then(|link| Some(link.strip_prefix('<')?.split_once('>')?.0));
                    path = link
                        .filter(|_| found.last().is_some_and(|last| last.starts_with("catalog-then/")))
                        .map(str::to_owned);
                }
                found.retain(|name| name.starts_with("catalog-then/"));
                ensure!(found == wanted, "at {then}: {found:?}, wanted {wanted:?}");
                for name in names {
                    // The list of tags knows the same repositories.
                    let status = if wanted.contains(&name) { 200 } else { 404 };
                    client.get(&format!("/v2/{name}/tags/list?revision={then}")).await?.expect(&[status])?;
                }
            }
        }
        Ok(())
    })
}
