//! Collection of a little garbage.

use std::time::{Duration, Instant};

use anyhow::ensure;
use chaos_tests::client::{Client, Method, Way};
use chaos_tests::cluster::{Cluster, Options};
use chaos_tests::image::{random_bytes, sha256};
use serde_json::json;

use crate::{manifest, median, put_all, ratio};

const TIMES: usize = 7;
const GARBAGE: u64 = 10;

pub(crate) async fn run(few: usize, many: usize) -> anyhow::Result<()> {
    let cluster = Cluster::start(Options::default()).await?;
    let client = cluster.client();
    let settings = json!({"garbage_grace_seconds": 1}).to_string();
    client.send(Method::PUT, "/api/v1/settings", &[], settings.into()).await?.expect(&[204])?;
    let puts = |range: std::ops::Range<usize>| {
        range.map(|number| {
            let body = manifest(&format!("m{number}"));
            (format!("store/r{}", number % 100), sha256(&body), body)
        })
    };
    put_all(&client, puts(0..few)).await?;
    let small = collected(&client).await?;
    put_all(&client, puts(few..many)).await?;
    let large = collected(&client).await?;
    println!("collecting {GARBAGE} blobs among {many} manifests against {few}: {}", ratio(large, small));
    Ok(())
}

/// The median time of a collection of some blobs.
async fn collected(client: &Client) -> anyhow::Result<Duration> {
    let mut took = Vec::new();
    for _ in 0..TIMES {
        for _ in 0..GARBAGE {
            client.push_blob("store/garbage", &random_bytes(&mut rand::rng(), 20_000), Way::Post).await?;
        }
        // The shortest grace time.
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        let began = Instant::now();
        let ran = client.post("/api/v1/gc/run").await?.expect(&[200])?.json();
        let elapsed = began.elapsed();
        // The leader may have come first.
        if ran["links"] == GARBAGE {
            took.push(elapsed);
        }
    }
    ensure!(!took.is_empty(), "the leader was always first");
    Ok(median(&mut took))
}
