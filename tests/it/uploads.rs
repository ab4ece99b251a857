//! Upload sessions: chunks, offsets, mounts, and clients that go away.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use chaos_tests::client::{Client, Method, OCTETS, Way, path_of, with_query};
use chaos_tests::image::{random_bytes, sha256};
use chaos_tests::raw::Connection;
use futures::{StreamExt, TryStreamExt, stream};

use crate::fixture::{
    BODY_TIMEOUT, SOON, blob_everywhere, blob_nowhere, each, files_beside_metadata, has, is_error, nothing_yet,
    on_cluster, on_own_cluster, progress, push_small, want,
};

const UNKNOWN: &str = "5e0c4c6e-7a51-4c0f-8f5e-0123456789ab";

#[test]
fn c10_range_in_upload_answers_is_inclusive() -> Result<()> {
    on_cluster(async |cluster| {
        let clients = each(cluster);
        for client in &clients {
            let bytes = random_bytes(&mut rand::rng(), 15);
            let posted = client.post("/v2/c10/app/blobs/uploads/").await?.expect(&[202])?;
            ensure!(nothing_yet(posted.header("range")), "{:?}", posted.header("range"));
            let location = posted.location()?;
            for asked in &clients {
                ensure!(nothing_yet(progress(asked, &location).await?.as_deref()));
            }
            let first = client.patch(&location, Some("0-9"), bytes.slice(..10)).await?.expect(&[202])?;
            has(&first, "range", "0-9")?;
            for asked in &clients {
                ensure!(progress(asked, &first.location()?).await?.as_deref() == Some("0-9"));
            }
            let second = client.patch(&first.location()?, Some("10-14"), bytes.slice(10..)).await?.expect(&[202])?;
            has(&second, "range", "0-14")?;
            for asked in &clients {
                ensure!(progress(asked, &second.location()?).await?.as_deref() == Some("0-14"));
            }
            client.close_upload(&second.location()?, &sha256(&bytes), Bytes::new()).await?.expect(&[201])?;
        }
        Ok(())
    })
}

#[test]
fn c11_a_patch_of_unknown_length_is_a_stream() -> Result<()> {
    on_cluster(async |cluster| {
        let bytes = random_bytes(&mut rand::rng(), 4 << 20);
        for client in each(cluster) {
            let mut location = client.open_upload("c11/app").await?;
            for (from, to, range) in [(0, 3 << 20, "0-3145727"), (3 << 20, 4 << 20, "0-4194303")] {
                let pieces: Vec<_> = bytes
                    .slice(from..to)
                    .chunks(50_000)
                    .map(|piece| Ok::<_, std::io::Error>(bytes.slice_ref(piece)))
                    .collect();
                let body = reqwest::Body::wrap_stream(stream::iter(pieces));
                let patched =
                    client.send_stream(Method::PATCH, &location, &[OCTETS], None, body).await?.expect(&[202])?;
                has(&patched, "range", range)?;
                location = patched.location()?;
            }
            client.close_upload(&location, &sha256(&bytes), Bytes::new()).await?.expect(&[201])?;
        }
        blob_everywhere(cluster, "c11/app", &sha256(&bytes), bytes.len()).await
    })
}

#[test]
fn c12_a_chunk_that_comes_twice_or_too_early_is_refused_and_the_upload_goes_on() -> Result<()> {
    on_cluster(async |cluster| {
        let clients = each(cluster);
        for node in 0..clients.len() {
            let (client, other) = (&clients[node], &clients[(node + 1) % 3]);
            let bytes = random_bytes(&mut rand::rng(), 30);
            let location = client.open_upload("c12/app").await?;
            let (first, early) = (bytes.slice(..10), bytes.slice(20..));
            client.patch(&location, Some("0-9"), first.clone()).await?.expect(&[202])?;
            for (range, chunk) in [("0-9", first), ("20-29", early)] {
                let refused = client.patch(&location, Some(range), chunk.clone()).await?;
                is_error(&refused, &[416], &[])?;
                is_error(&other.patch(&location, Some(range), chunk).await?, &[416], &[])?;
            }
            ensure!(progress(other, &location).await?.as_deref() == Some("0-9"));
            let second = other.patch(&location, Some("10-19"), bytes.slice(10..20)).await?.expect(&[202])?;
            has(&second, "range", "0-19")?;
            let digest = sha256(&bytes[..20]);
            client.close_upload(&location, &digest, Bytes::new()).await?.expect(&[201])?;
            blob_everywhere(cluster, "c12/app", &digest, 20).await?;
        }
        Ok(())
    })
}

#[test]
fn c12_of_two_chunks_at_once_one_is_taken_and_their_bytes_never_mix() -> Result<()> {
    on_cluster(async |cluster| {
        let clients = each(cluster);
        for round in 0..10 {
            let size_bytes = if round % 2 == 0 { 10 } else { 100_000 };
            let range = format!("0-{}", size_bytes - 1);
            let location = clients[round % 3].open_upload("c12/race").await?;
            let bodies = [random_bytes(&mut rand::rng(), size_bytes), random_bytes(&mut rand::rng(), size_bytes)];
            let (one, two) = tokio::join!(
                clients[(round + 1) % 3].patch(&location, Some(&range), bodies[0].clone()),
                clients[(round + 2) % 3].patch(&location, Some(&range), bodies[1].clone()),
            );
            let statuses = [one?.status, two?.status];
            let taken: Vec<_> = (0..2).filter(|index| statuses[*index] == 202).collect();
            ensure!(taken.len() == 1, "round {round}: {statuses:?}");
            ensure!([409, 416, 503].contains(&statuses[1 - taken[0]]), "round {round}: {statuses:?}");
            let digest = sha256(&bodies[taken[0]]);
            clients[0].close_upload(&location, &digest, Bytes::new()).await?.expect(&[201])?;
        }
        Ok(())
    })
}

#[test]
fn c13_a_content_range_that_does_not_parse_or_fit_changes_nothing() -> Result<()> {
    on_cluster(async |cluster| {
        let values = ["0-10", "9-0", "-9", "0-", "x", "0-9-12", "", "0-18446744073709551616", "0-8", "+0-9", "0 - 9"];
        for client in each(cluster) {
            let bytes = random_bytes(&mut rand::rng(), 10);
            let location = client.open_upload("c13/app").await?;
            for value in values {
                let refused = client.patch(&location, Some(value), bytes.clone()).await?;
                is_error(&refused, &[400, 416], &[])
                    .map_err(|error| error.context(format!("Content-Range {value:?}")))?;
                ensure!(nothing_yet(progress(&client, &location).await?.as_deref()), "after {value:?}");
            }
            let http = client.patch(&location, Some("bytes 0-9/10"), bytes.clone()).await?.expect(&[202, 400, 416])?;
            if http.status != 202 {
                client.patch(&location, Some("0-9"), bytes.clone()).await?.expect(&[202])?;
            }
            ensure!(progress(&client, &location).await?.as_deref() == Some("0-9"));
            client.close_upload(&location, &sha256(&bytes), Bytes::new()).await?.expect(&[201])?;
        }
        Ok(())
    })
}

#[test]
fn c14_upload_urls_are_kept_and_extended_by_clients() -> Result<()> {
    on_cluster(async |cluster| {
        for client in each(cluster) {
            for encoded in [false, true] {
                let bytes = random_bytes(&mut rand::rng(), 100);
                let digest = sha256(&bytes);
                let given = if encoded { digest.replace(':', "%3A") } else { digest.clone() };
                let opened = client.open_upload("c14/app").await?;
                client.patch(&opened, None, bytes.slice(..50)).await?.expect(&[202])?;
                // The location of the POST again, although the PATCH gave one too; and a parameter of somebody else's.
                let extended = with_query(&opened, "ns=docker.io");
                client.patch(&extended, Some("50-99"), bytes.slice(50..)).await?.expect(&[202])?;
                client.close_upload(&extended, &given, Bytes::new()).await?.expect(&[201])?;
                blob_everywhere(cluster, "c14/app", &digest, 100).await?;
            }
            let bytes = random_bytes(&mut rand::rng(), 100);
            let location = client.open_upload("c14/app").await?;
            let glued =
                format!("{}?digest={}", with_query(&location, &format!("digest={}", sha256(b"x"))), sha256(b"y"));
            let refused = client.send(Method::PUT, &glued, &[OCTETS], bytes.clone()).await?;
            ensure!((400..500).contains(&refused.status), "{} → {}", refused.request, refused.status);
            is_error(&refused, &[refused.status], &[])?;
            client.close_upload(&location, &sha256(&bytes), bytes).await?.expect(&[201])?;
        }
        Ok(())
    })
}

#[test]
fn c15_a_mount_that_finds_nothing_becomes_an_upload() -> Result<()> {
    on_cluster(async |cluster| {
        push_small(cluster, "c15/source", "v1").await?;
        for client in each(cluster) {
            for from in ["no/such", "c15/source"] {
                let bytes = random_bytes(&mut rand::rng(), 500);
                let digest = sha256(&bytes);
                let path = format!("/v2/c15/target/blobs/uploads/?mount={digest}&from={from}");
                let location = client.post(&path).await?.expect(&[202])?.location()?;
                client.close_upload(&location, &digest, bytes).await?.expect(&[201])?;
                blob_everywhere(cluster, "c15/target", &digest, 500).await?;
            }
        }
        Ok(())
    })
}

#[test]
fn c16_a_mount_without_from_agrees_with_head() -> Result<()> {
    on_cluster(async |cluster| {
        let (image, _) = push_small(cluster, "c16/source", "v1").await?;
        for (node, client) in each(cluster).iter().enumerate() {
            let unknown = sha256(&random_bytes(&mut rand::rng(), 50));
            for digest in [sha256(&image.blobs[1]), unknown.clone()] {
                let repository = format!("c16/target-{node}");
                let path = format!("/v2/{repository}/blobs/uploads/?mount={digest}");
                let mounted = client.post(&path).await?.expect(&[201, 202])?;
                ensure!(mounted.status == 202 || digest != unknown, "{} → 201", mounted.request);
                for asked in each(cluster) {
                    let head = asked.head(&format!("/v2/{repository}/blobs/{digest}")).await?.expect(&[200, 404])?;
                    ensure!((mounted.status == 201) == (head.status == 200), "{} → {}", head.request, head.status);
                }
            }
        }
        Ok(())
    })
}

#[test]
fn a_mounted_blob_is_in_its_new_repository_on_every_node() -> Result<()> {
    on_cluster(async |cluster| {
        let image = chaos_tests::image::Image::random(&mut rand::rng(), &[1_000, 40_000]);
        each(cluster)[0].push("mount/source", "v1", &image, Way::Put).await?;
        for (node, client) in each(cluster).iter().enumerate() {
            for blob in &image.blobs {
                let (repository, digest) = (format!("mount/target-{node}"), sha256(blob));
                let encoded = digest.replace(':', "%3A");
                let path = format!("/v2/{repository}/blobs/uploads/?from=mount%2Fsource&mount={encoded}");
                let mounted = client.post(&path).await?.expect(&[201])?;
                has(&mounted, "docker-content-digest", &digest)?;
                ensure!(client.get(&mounted.location()?).await?.expect(&[200])?.body == blob);
                blob_everywhere(cluster, &repository, &digest, blob.len()).await?;
            }
        }
        Ok(())
    })
}

#[test]
fn c32_expect_continue_is_answered_before_the_body() -> Result<()> {
    on_cluster(async |cluster| {
        let bytes = random_bytes(&mut rand::rng(), 2 << 20);
        let length = format!("Content-Length: {}", bytes.len());
        let headers = ["Content-Type: application/octet-stream", length.as_str(), "Expect: 100-continue"];
        let digest = sha256(&bytes);
        for (node, client) in cluster.nodes().iter().zip(each(cluster)) {
            let location = with_query(&client.open_upload("c32/app").await?, &format!("digest={digest}"));
            let mut good = Connection::open(&node.url).await?;
            good.request("PUT", &location, &headers).await?;
            ensure!(good.head(SOON).await?.status == 100);
            good.write(&bytes).await?;
            ensure!(good.head(SOON).await?.status == 201);

            let mut unknown = Connection::open(&node.url).await?;
            let path = format!("/v2/c32/app/blobs/uploads/{UNKNOWN}?digest={digest}");
            unknown.request("PUT", &path, &headers).await?;
            // An invitation may come first; the answer must not wait for what it invites.
            let mut answer = unknown.head(SOON).await?;
            if answer.status == 100 {
                answer = unknown.head(SOON).await?;
            }
            ensure!(answer.status == 404, "{}: {answer:?}", node.name);
        }
        blob_everywhere(cluster, "c32/app", &digest, bytes.len()).await
    })
}

#[test]
fn c48_sessions_that_nobody_finishes_cost_next_to_nothing() -> Result<()> {
    on_cluster(async |cluster| {
        const SESSIONS: usize = 2_000;
        let clients = each(cluster);
        let count_files =
            || cluster.nodes().iter().map(|node| files_beside_metadata(&node.data_dir).len()).sum::<usize>();
        let rss = || cluster.nodes().iter().map(|node| node.peak_rss_bytes()).sum::<Result<u64>>();
        let (files_before, rss_before) = (count_files(), rss()?);
        let open = |number: usize| clients[number % 3].open_upload("c48/checks");
        let opened: Vec<String> = stream::iter(0..SESSIONS).map(open).buffer_unordered(16).try_collect().await?;
        let grown = count_files().saturating_sub(files_before);
        // Other tests push meanwhile.
        ensure!(grown < SESSIONS / 2, "{grown} files more");
        let mib = rss()?.saturating_sub(rss_before) >> 20;
        ensure!(mib < 200, "{mib} MiB more");
        for (number, location) in opened.iter().take(30).enumerate() {
            clients[number % 3].delete(location).await?.expect(&[204])?;
            for client in &clients {
                is_error(&client.delete(location).await?, &[404], &["BLOB_UPLOAD_UNKNOWN"])?;
                is_error(&client.get(location).await?, &[404], &["BLOB_UPLOAD_UNKNOWN"])?;
            }
        }
        let all: std::collections::HashSet<_> = opened.iter().collect();
        ensure!(all.len() == SESSIONS, "{} different locations", all.len());
        Ok(())
    })
}

#[test]
fn a_session_that_is_unknown_cancelled_or_finished_is_not_found() -> Result<()> {
    on_cluster(async |cluster| {
        let clients = each(cluster);
        for client in &clients {
            unknown_to(&clients, &format!("/v2/session/app/blobs/uploads/{UNKNOWN}")).await?;
            unknown_to(&clients, "/v2/session/app/blobs/uploads/not-an-id").await?;
            let cancelled = client.open_upload("session/app").await?;
            client.delete(&cancelled).await?.expect(&[204])?;
            unknown_to(&clients, &cancelled).await?;
            let finished = client.open_upload("session/app").await?;
            let bytes = random_bytes(&mut rand::rng(), 100);
            client.close_upload(&finished, &sha256(&bytes), bytes).await?.expect(&[201])?;
            for client in &clients {
                is_error(&client.patch(&finished, None, Bytes::from("x")).await?, &[404], &["BLOB_UPLOAD_UNKNOWN"])?;
            }
        }
        Ok(())
    })
}

#[test]
fn a_session_of_another_repository_is_not_found() -> Result<()> {
    on_cluster(async |cluster| {
        push_small(cluster, "session/other", "v1").await?;
        for client in each(cluster) {
            let location = client.open_upload("session/mine").await?;
            let stolen = location.replacen("/v2/session/mine/", "/v2/session/other/", 1);
            ensure!(stolen != location, "{location}");
            is_error(&client.patch(&stolen, None, Bytes::from("x")).await?, &[404], &["BLOB_UPLOAD_UNKNOWN"])?;
            ensure!(nothing_yet(progress(&client, &location).await?.as_deref()));
        }
        Ok(())
    })
}

#[test]
fn chunks_out_of_order_are_refused_also_in_the_closing_put() -> Result<()> {
    on_cluster(async |cluster| {
        for client in each(cluster) {
            let bytes = random_bytes(&mut rand::rng(), 3_000);
            let digest = sha256(&bytes);
            let mut location = client.open_upload("order/app").await?;
            let ahead = client.patch(&location, Some("1000-1999"), bytes.slice(1_000..2_000)).await?;
            is_error(&ahead, &[416], &[])?;
            for (from, range) in [(0, "0-999"), (1_000, "1000-1999")] {
                let patched =
                    client.patch(&location, Some(range), bytes.slice(from..from + 1_000)).await?.expect(&[202])?;
                location = patched.location()?;
            }
            let back = client.patch(&location, Some("0-999"), bytes.slice(..1_000)).await?;
            is_error(&back, &[416], &[])?;
            let closing = with_query(&location, &format!("digest={digest}"));
            let early = [OCTETS, ("content-range", "2500-2999")];
            want(&client, Method::PUT, &closing, &early, bytes.slice(2_500..), &[416]).await?;
            let seen = client.get(&closing).await?.expect(&[204])?;
            has(&seen, "range", "0-1999")?;
            let last = [OCTETS, ("content-range", "2000-2999")];
            want(&client, Method::PUT, &closing, &last, bytes.slice(2_000..), &[201]).await?;
            blob_everywhere(cluster, "order/app", &digest, 3_000).await?;
        }
        Ok(())
    })
}

#[test]
fn a_body_that_stands_still_is_given_up() -> Result<()> {
    on_cluster(async |cluster| {
        for (node, client) in cluster.nodes().iter().zip(each(cluster)) {
            let digest = sha256(&random_bytes(&mut rand::rng(), 1_000));
            let location = client.open_upload("stalled/app").await?;
            let began = Instant::now();
            let mut connection = Connection::open(&node.url).await?;
            let headers = ["Content-Type: application/octet-stream", "Content-Length: 1000"];
            connection.request("PUT", &with_query(&location, &format!("digest={digest}")), &headers).await?;
            connection.write(b"0123456789").await?;
            // An answer or a closed connection: either tells the client.
            match connection.head(BODY_TIMEOUT * 3).await {
                Ok(head) => ensure!(head.status >= 400, "{head:?}"),
                Err(error) => ensure!(error.kind() != std::io::ErrorKind::TimedOut, "{}: {error}", node.name),
            }
            ensure!(began.elapsed() >= BODY_TIMEOUT / 2, "{} has no patience: {:?}", node.name, began.elapsed());
            blob_nowhere(cluster, "stalled/app", &digest).await?;
            client.get(&location).await?.expect(&[204, 404])?;
        }
        Ok(())
    })
}

#[test]
fn a_slow_body_that_keeps_moving_is_not_given_up() -> Result<()> {
    on_cluster(async |cluster| {
        let (node, client) = (cluster.node(0), &each(cluster)[0]);
        let bytes = random_bytes(&mut rand::rng(), 4_000);
        let digest = sha256(&bytes);
        let location = client.open_upload("slow/app").await?;
        let mut connection = Connection::open(&node.url).await?;
        let headers = ["Content-Type: application/octet-stream", "Content-Length: 4000"];
        connection.request("PUT", &with_query(&location, &format!("digest={digest}")), &headers).await?;
        let began = Instant::now();
        for piece in bytes.chunks(500) {
            connection.write(piece).await?;
            tokio::time::sleep(BODY_TIMEOUT / 6).await;
        }
        ensure!(began.elapsed() > BODY_TIMEOUT);
        ensure!(connection.head(SOON).await?.status == 201);
        blob_everywhere(cluster, "slow/app", &digest, 4_000).await
    })
}

#[test]
fn a_client_that_goes_away_in_the_middle_leaves_no_blob() -> Result<()> {
    on_cluster(async |cluster| {
        for (node, client) in cluster.nodes().iter().zip(each(cluster)) {
            let bytes = random_bytes(&mut rand::rng(), 100_000);
            let digest = sha256(&bytes);
            let headers = ["Content-Type: application/octet-stream", "Content-Length: 100000"];
            let posted = format!("/v2/cut/app/blobs/uploads/?digest={digest}");
            let location = client.open_upload("cut/app").await?;
            let put = with_query(&location, &format!("digest={digest}"));
            for (method, path) in [("POST", &posted), ("PUT", &put)] {
                let mut connection = Connection::open(&node.url).await?;
                connection.request(method, path, &headers).await?;
                connection.write(&bytes[..50_000]).await?;
            }
            blob_nowhere(cluster, "cut/app", &digest).await?;
            client.get(&location).await?.expect(&[204, 404])?;
            // The same blob can be pushed at once, also by an upload of its own.
            client.push_blob("cut/app", &bytes, Way::Patch).await?;
            blob_everywhere(cluster, "cut/app", &digest, bytes.len()).await?;
        }
        Ok(())
    })
}

#[test]
fn a_chunk_that_breaks_off_can_be_continued_from_where_the_upload_says() -> Result<()> {
    on_cluster(async |cluster| {
        for (node, client) in cluster.nodes().iter().zip(each(cluster)) {
            let bytes = random_bytes(&mut rand::rng(), 60_000);
            let location = client.open_upload("resume/app").await?;
            client.patch(&location, Some("0-9999"), bytes.slice(..10_000)).await?.expect(&[202])?;
            let mut connection = Connection::open(&node.url).await?;
            let headers =
                ["Content-Type: application/octet-stream", "Content-Length: 50000", "Content-Range: 10000-59999"];
            connection.request("PATCH", &location, &headers).await?;
            connection.write(&bytes[10_000..30_000]).await?;
            drop(connection);
            let digest = sha256(&bytes);
            chaos_tests::wait::until_ok(SOON, "the upload goes on", async || {
                let range = progress(&client, &location).await?.unwrap_or_default();
                let next = range.trim_start_matches("0-").parse::<usize>()? + 1;
                ensure!((10_000..=30_000).contains(&next), "{range}");
                let rest = format!("{next}-59999");
                client.patch(&location, Some(&rest), bytes.slice(next..)).await?.expect(&[202])?;
                Ok(())
            })
            .await?;
            client.close_upload(&location, &digest, Bytes::new()).await?.expect(&[201])?;
            blob_everywhere(cluster, "resume/app", &digest, bytes.len()).await?;
        }
        Ok(())
    })
}

async fn unknown_to(clients: &[Client], location: &str) -> Result<()> {
    for client in clients {
        let digest = sha256(b"x");
        let replies = [
            client.get(location).await?,
            client.patch(location, None, Bytes::from("x")).await?,
            client.close_upload(location, &digest, Bytes::from("x")).await?,
            client.delete(location).await?,
        ];
        for reply in replies {
            is_error(&reply, &[404], &["BLOB_UPLOAD_UNKNOWN"])?;
        }
    }
    Ok(())
}

#[test]
fn unfinished_uploads_are_counted_until_they_end() -> Result<()> {
    on_own_cluster(async |cluster| {
        let (node, client) = (&cluster.nodes()[0], &each(cluster)[0]);
        let figures = async || {
            let sessions = cluster.metric(node, "flotilla_upload_sessions").await?;
            Ok::<_, anyhow::Error>((sessions, cluster.metric(node, "flotilla_staging_bytes").await?))
        };
        ensure!(figures().await? == (0.0, 0.0), "{:?}", figures().await?);
        let location = client.open_upload("counted/app").await?;
        let chunk = random_bytes(&mut rand::rng(), 100_000);
        let location = client.patch(&location, None, chunk).await?.expect(&[202])?.location()?;
        let (sessions, bytes) = figures().await?;
        ensure!(sessions == 1.0 && bytes >= 100_000.0, "{sessions} sessions, {bytes} bytes");
        // The copies flow beside the answer.
        chaos_tests::wait::until_ok(SOON, "a copy at the second node", async || {
            let copies = cluster.metric(&cluster.nodes()[1], "flotilla_upload_copies").await?;
            ensure!(copies == 1.0, "{copies} copies at the second node");
            Ok(())
        })
        .await?;
        client.delete(path_of(&location)).await?.expect(&[204])?;
        let deadline = Instant::now() + SOON;
        while figures().await? != (0.0, 0.0) {
            ensure!(Instant::now() < deadline, "{:?} stay behind", figures().await?);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    })
}
