//! Pages of lists.

use chaos_tests::client::Method;
use chaos_tests::cluster::{Cluster, Options};
use chaos_tests::image::sha256;
use serde_json::json;

use crate::{in_turns, manifest, page, put_all, ratio};

const TIMES: usize = 300;
/// Tags of one transaction.
const AT_ONCE: usize = 1_000;

pub(crate) async fn run(tags: usize, repositories: usize) -> anyhow::Result<()> {
    let cluster = Cluster::start(Options::default()).await?;
    let client = cluster.client();
    let one = cluster.client_of(cluster.node(0));
    let body = manifest("tagged");
    for (repository, count) in [("tags/few", 100), ("tags/many", tags)] {
        let digest = sha256(&body);
        put_all(&client, [(repository.to_owned(), digest.clone(), body.clone())].into_iter()).await?;
        let names: Vec<_> = (0..count).map(|number| format!("t{number:07}")).collect();
        for some in names.chunks(AT_ONCE) {
            let changes: Vec<_> =
                some.iter().map(|tag| json!({"repository": repository, "tag": tag, "digest": digest})).collect();
            let body = json!({ "changes": changes }).to_string();
            client.send(Method::POST, "/api/v1/transactions", &[], body.into()).await?.expect(&[200])?;
        }
    }
    let list = "/v2/tags/many/tags/list";
    let (first, last) = (page(list, ""), page(list, &format!("t{:07}", tags - 101)));
    let [few, first, last] = in_turns(&one, ["/v2/tags/few/tags/list?n=100", &first, &last], TIMES).await?;
    println!("page of 100 of {tags} tags, the last against the first: {}", ratio(last, first));
    println!("the first page of {tags} tags against that of 100: {}", ratio(first, few));

    let few = "/v2/_catalog?n=100";
    // The repositories of the tags and these: about a hundred.
    put_all(&client, (0..98).map(|number| (format!("r{number:07}"), "v".to_owned(), manifest("r")))).await?;
    let [of_few] = in_turns(&one, [few], TIMES).await?;
    let rest = (98..repositories).map(|number| (format!("r{number:07}"), "v".to_owned(), manifest("r")));
    put_all(&client, rest).await?;
    let (first, last) = (page("/v2/_catalog", ""), page("/v2/_catalog", &format!("r{:07}", repositories - 101)));
    let [first, last] = in_turns(&one, [&first, &last], TIMES).await?;
    println!("page of 100 of {repositories} repositories, the last against the first: {}", ratio(last, first));
    println!("the first page of {repositories} repositories against that of 100: {}", ratio(first, of_few));
    Ok(())
}
