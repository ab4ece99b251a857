//! Pages of referrers.

use bytes::Bytes;
use chaos_tests::client::Client;
use chaos_tests::cluster::{Cluster, Options};
use chaos_tests::image::{OCI_CONFIG, OCI_MANIFEST, descriptor, sha256};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::json;

use crate::{in_turns, ratio, text};

const TIMES: usize = 300;
const REPOSITORY: &str = "referrers/app";

pub(crate) async fn run(many: usize, few: usize) -> anyhow::Result<()> {
    let cluster = Cluster::start(Options::default()).await?;
    let client = cluster.client();
    let config = Bytes::from_static(b"{}");
    client.push_blob(REPOSITORY, &config, chaos_tests::client::Way::Put).await?;
    let mut lists = Vec::new();
    for (name, count) in [("few", few), ("many", many)] {
        let subject = Bytes::from(json!({"schemaVersion": 2, "name": name}).to_string());
        refer(&client, &subject, &config, count).await?;
        lists.push(format!("/v2/{REPOSITORY}/referrers/{}", sha256(&subject)));
    }
    let one = cluster.client_of(cluster.node(0));
    // To the last page by its links.
    let mut last = lists[1].clone();
    loop {
        let page = one.get(&last).await?.expect(&[200])?;
        anyhow::ensure!(text(&page.json(), "mediaType")?.contains("index"));
        match page.header("link").and_then(|link| Some(link.strip_prefix('<')?.split_once('>')?.0.to_owned())) {
            Some(next) => last = next,
            None => break,
        }
    }
    let [of_few, first, last] = in_turns(&one, [&lists[0], &lists[1], &last], TIMES).await?;
    println!("the first page of {many} referrers against all {few}: {}", ratio(first, of_few));
    println!("the last page of {many} referrers against all {few}: {}", ratio(last, of_few));
    Ok(())
}

async fn refer(client: &Client, subject: &Bytes, config: &Bytes, count: usize) -> anyhow::Result<()> {
    let put = |number: usize| async move {
        let referrer = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "application/vnd.example.sbom",
            "config": descriptor(OCI_CONFIG, config), "layers": [],
            "subject": {"mediaType": "application/vnd.example", "digest": sha256(subject), "size": subject.len()},
            "annotations": {"number": number.to_string()},
        });
        let body = Bytes::from(referrer.to_string());
        client.put_manifest(REPOSITORY, &sha256(&body), OCI_MANIFEST, body).await?.expect(&[201]).map(drop)
    };
    stream::iter((0..count).map(put)).buffer_unordered(64).try_collect::<()>().await?;
    Ok(())
}
