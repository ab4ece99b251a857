//! Bytes that a disk changed: noticed, never served, and mended.

use std::fs;
use std::os::unix::fs::FileExt;

use crate::client::{Method, Way};
use crate::cluster::{Cluster, Node, Options};
use crate::image::{random_bytes, sha256};
use crate::wait::until_ok;
use anyhow::{Context, Result, ensure};
use bytes::Bytes;

use super::each_part;
use crate::fixture::{SOON, each, flotilla, on_own_cluster};

/// All of it, one after the other.
///
/// # Errors
/// The first that was not so.
pub async fn damage() -> Result<()> {
    each_part!(
        a_flipped_bit_never_reaches_a_client,
        without_checksums_a_flipped_bit_never_reaches_a_client_in_a_whole_blob,
        the_rest_of_a_damaged_blob_comes_from_copies_that_are_checked,
        a_push_takes_the_place_of_damaged_copies,
        a_file_that_cannot_be_opened_is_replaced_and_keeps_nobody_from_the_others,
        the_scrub_finds_and_mends_what_nobody_reads,
    );
    Ok(())
}

fn flip_a_bit(node: &Node, digest: &str, offset: u64) -> Result<()> {
    let file = fs::OpenOptions::new().read(true).write(true).open(node.blob_file(digest))?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset)?;
    Ok(file.write_all_at(&[byte[0] ^ 1], offset)?)
}

/// Pushed, and a copy on every node.
async fn everywhere(cluster: &Cluster, blob: &Bytes) -> Result<String> {
    each(cluster)[0].push_blob("rot/app", blob, Way::Put).await?;
    let digest = sha256(blob);
    until_ok(SOON, "every node has its copy", async || {
        let lacks = cluster.nodes().iter().find(|node| !node.blob_file(&digest).exists());
        ensure!(lacks.is_none(), "{lacks:?}");
        Ok(())
    })
    .await?;
    Ok(digest)
}

async fn is_mended(node: &Node, digest: &str) -> Result<()> {
    until_ok(SOON, "the file is whole again", async || {
        let bytes = fs::read(node.blob_file(digest)).context("its file")?;
        ensure!(sha256(&bytes) == digest, "the file is damaged still");
        Ok(())
    })
    .await
}

/// A flipped bit, found at once or on the way: the client gets the right bytes, whole and by range, and the file is mended.
///
/// # Errors
/// It was not so.
pub async fn a_flipped_bit_never_reaches_a_client() -> Result<()> {
    on_own_cluster(Options::default(), async |cluster| {
        let node = cluster.node(1);
        let client = cluster.client_of(node);
        // Small ones are compared with their digest, others with checksums; the damage is found at once, or on the way.
        for (size, offset) in [(20_000, 19_999), (5 << 20, 5), (5 << 20, 5_000_000)] {
            let blob = random_bytes(&mut rand::rng(), size);
            let digest = everywhere(cluster, &blob).await?;
            flip_a_bit(node, &digest, offset)?;
            let path = format!("/v2/rot/app/blobs/{digest}");
            // Others give what this one cannot, whichever comes first.
            let range = [("range", format!("bytes={}-{offset}", offset.saturating_sub(9)))];
            let [(name, value)] = &range;
            let part = client.send(Method::GET, &path, &[(name, value)], Bytes::new()).await?.expect(&[206])?;
            let first = usize::try_from(offset.saturating_sub(9))?;
            ensure!(part.body == blob[first..=usize::try_from(offset)?], "wrong bytes of a range at {offset}");
            let whole = client.get(&path).await.context("it broke")?.expect(&[200])?;
            ensure!(whole.body == blob, "wrong bytes of a blob with a flipped bit at {offset}");
            is_mended(node, &digest).await?;
            ensure!(fs::read_dir(node.data_dir.join("damaged"))?.count() > 0, "the damaged file is kept aside");
        }
        Ok(())
    })
    .await
}

/// Where checksums are missing, a whole blob is right or its answer breaks.
///
/// # Errors
/// It was not so.
pub async fn without_checksums_a_flipped_bit_never_reaches_a_client_in_a_whole_blob() -> Result<()> {
    on_own_cluster(Options::default(), async |cluster| {
        let blob = random_bytes(&mut rand::rng(), 5 << 20);
        let digest = everywhere(cluster, &blob).await?;
        let node = cluster.node(1);
        let sums = node.blob_file(&digest).with_extension("sums");
        until_ok(SOON, "they are made as the blob comes in", async || Ok(fs::remove_file(&sums)?)).await?;
        flip_a_bit(node, &digest, 5)?;
        let (client, path) = (cluster.client_of(node), format!("/v2/rot/app/blobs/{digest}"));
        // Each answer is whole and right, or it breaks.
        let right = async || Ok(client.get(&path).await.context("it broke")?.expect(&[200])?.body == blob);
        ensure!(until_ok(SOON, "the blob can be had", right).await?, "wrong bytes came as a whole blob");
        is_mended(node, &digest).await
    })
    .await
}

/// From where a file is damaged the rest comes from copies that are checked.
///
/// # Errors
/// It was not so.
pub async fn the_rest_of_a_damaged_blob_comes_from_copies_that_are_checked() -> Result<()> {
    on_own_cluster(Options::default(), async |cluster| {
        for _ in 0..3 {
            let blob = random_bytes(&mut rand::rng(), 5 << 20);
            let digest = everywhere(cluster, &blob).await?;
            // Past the first piece of the one that is asked, and further on where the next one has no checksums.
            flip_a_bit(cluster.node(0), &digest, 1 << 20)?;
            let sums = cluster.node(1).blob_file(&digest).with_extension("sums");
            until_ok(SOON, "they are made as the blob comes in", async || Ok(fs::remove_file(&sums)?)).await?;
            flip_a_bit(cluster.node(1), &digest, 2 << 20)?;
            let whole = each(cluster)[0].get(&format!("/v2/rot/app/blobs/{digest}")).await.context("it broke")?;
            ensure!(whole.expect(&[200])?.body == blob, "wrong bytes came as a whole blob");
        }
        Ok(())
    })
    .await
}

/// A push over damaged copies mends them.
///
/// # Errors
/// It was not so.
pub async fn a_push_takes_the_place_of_damaged_copies() -> Result<()> {
    on_own_cluster(Options::default(), async |cluster| {
        for size in [20_000, 300_000] {
            let blob = random_bytes(&mut rand::rng(), size);
            let digest = everywhere(cluster, &blob).await?;
            for node in cluster.nodes() {
                flip_a_bit(node, &digest, 7)?;
            }
            each(cluster)[0].push_blob("rot/app", &blob, Way::Put).await?;
            for client in each(cluster) {
                let whole = client.get(&format!("/v2/rot/app/blobs/{digest}")).await?.expect(&[200])?;
                ensure!(whole.body == blob, "wrong bytes");
            }
        }
        Ok(())
    })
    .await
}

/// A file that cannot be opened is replaced; the scrub gets on to the others.
///
/// # Errors
/// It was not so.
pub async fn a_file_that_cannot_be_opened_is_replaced_and_keeps_nobody_from_the_others() -> Result<()> {
    on_own_cluster(Options::default(), async |cluster| {
        let node = cluster.node(2);
        let mut digests = Vec::new();
        for _ in 0..6 {
            digests.push(everywhere(cluster, &random_bytes(&mut rand::rng(), 60_000)).await?);
        }
        digests.sort();
        let file = node.blob_file(&digests[0]);
        fs::remove_file(&file)?;
        std::os::unix::fs::symlink(&file, &file)?;
        for digest in &digests[1..] {
            flip_a_bit(node, digest, 9)?;
        }
        let (done, said) = flotilla(&["scrub", "run", "--url", &node.url]).await?;
        ensure!(done, "{said}");
        for digest in &digests {
            is_mended(node, digest).await?;
        }
        Ok(())
    })
    .await
}

/// What nobody reads, the scrub finds and mends.
///
/// # Errors
/// It was not so.
pub async fn the_scrub_finds_and_mends_what_nobody_reads() -> Result<()> {
    on_own_cluster(Options::default(), async |cluster| {
        let blob = random_bytes(&mut rand::rng(), 3 << 20);
        let digest = everywhere(cluster, &blob).await?;
        let node = cluster.node(2);
        flip_a_bit(node, &digest, 2 << 20)?;
        let sums = cluster.node(0).blob_file(&digest).with_extension("sums");
        until_ok(SOON, "checksums are made as the blob comes in", async || Ok(fs::remove_file(&sums)?)).await?;
        let (done, said) = flotilla(&["scrub", "run", "--url", &cluster.node(0).url]).await?;
        ensure!(done && said.lines().count() == 3, "{said}");
        is_mended(node, &digest).await?;
        ensure!(cluster.metric(node, "flotilla_scrub_damaged_files_total").await? == 1.0);
        until_ok(SOON, "all nodes say that they are through", async || {
            let (done, said) = flotilla(&["scrub", "status", "--url", &cluster.node(0).url]).await?;
            ensure!(done && said.lines().skip(1).filter(|line| line.contains("ended")).count() == 3, "{said}");
            Ok(())
        })
        .await?;
        ensure!(sums.exists(), "it makes checksums where there are none");
        Ok(())
    })
    .await
}
