//! A blob larger than memory goes through, and no node holds it in memory.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use anyhow::ensure;
use bytes::{Bytes, BytesMut};
use futures::{Stream, stream};
use sha2::{Digest as _, Sha256};

use super::{MIB, check_peak_rss};
use crate::client::{Client, Method, OCTETS, with_query};
use crate::cluster::{Cluster, Options};
use crate::image::random_bytes;
use crate::workload::random;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(1_800);
const PEAK_RSS_MIB: u64 = 150;

/// Pushes a blob to one node in one PUT, and a quarter of its size in one PATCH without a length to another; pulls
/// each from a node that it was not pushed to.
pub async fn big_blob(mib: u64, seed: u64) -> anyhow::Result<()> {
    let cluster = Cluster::start(Options::default()).await?;
    let result = run(&cluster, mib, seed).await;
    cluster.judged(result)
}

async fn run(cluster: &Cluster, mib: u64, seed: u64) -> anyhow::Result<()> {
    let client = |index| cluster.client_of(cluster.node(index)).with_timeout(REQUEST_TIMEOUT);
    let whole = Content::new(seed, mib).await?;
    put(&client(0), &whole).await?;
    pull(&client(1), &whole).await?;
    let quarter = Content::new(seed.wrapping_add(1), mib.div_ceil(4)).await?;
    patch(&client(1), &quarter).await?;
    pull(&client(2), &quarter).await?;
    check_peak_rss(cluster, PEAK_RSS_MIB)
}

async fn put(client: &Client, content: &Content) -> anyhow::Result<()> {
    let began = Instant::now();
    let location = with_query(&client.open_upload("big/blob").await?, &format!("digest={}", content.digest));
    let length = Some(content.mib * MIB);
    let put = client.send_stream(Method::PUT, &location, &[OCTETS], length, content.body()).await?;
    put.expect(&[201])?;
    println!("{} MiB pushed in one PUT: {}", content.mib, rate(content.mib, began));
    Ok(())
}

async fn patch(client: &Client, content: &Content) -> anyhow::Result<()> {
    let began = Instant::now();
    let location = client.open_upload("big/blob").await?;
    let patched = client.send_stream(Method::PATCH, &location, &[OCTETS], None, content.body()).await?;
    let location = patched.expect(&[202])?.location()?;
    client.close_upload(&location, &content.digest, Bytes::new()).await?.expect(&[201])?;
    println!("{} MiB pushed in one PATCH without a length: {}", content.mib, rate(content.mib, began));
    Ok(())
}

async fn pull(client: &Client, content: &Content) -> anyhow::Result<()> {
    let began = Instant::now();
    // Compares the digest of what comes.
    let size_bytes = client.pull_blob("big/blob", &content.digest).await?;
    ensure!(size_bytes == content.mib * MIB, "{size_bytes} bytes came");
    println!("{} MiB pulled from another node: {}", content.mib, rate(content.mib, began));
    Ok(())
}

fn rate(mib: u64, began: Instant) -> String {
    let took = began.elapsed();
    format!("{took:.2?}, {:.0} MiB/s", mib as f64 / took.as_secs_f64())
}

/// Bytes that are made when they are needed: one random MiB, each time with its number in front.
#[derive(Clone, Debug)]
struct Content {
    block: Bytes,
    mib: u64,
    digest: String,
}

impl Content {
    async fn new(seed: u64, mib: u64) -> anyhow::Result<Self> {
        let block = random_bytes(&mut random(seed, 6, 0), 1 << 20);
        let mut content = Self { block, mib, digest: String::new() };
        let hashed = content.clone();
        content.digest = tokio::task::spawn_blocking(move || {
            let mut hasher = Sha256::new();
            for number in 0..mib {
                hasher.update(hashed.piece(number));
            }
            format!("sha256:{}", hex::encode(hasher.finalize()))
        })
        .await?;
        Ok(content)
    }

    fn piece(&self, number: u64) -> Bytes {
        let mut piece = BytesMut::from(&self.block[..]);
        piece[..8].copy_from_slice(&number.to_le_bytes());
        piece.freeze()
    }

    fn body(&self) -> reqwest::Body {
        reqwest::Body::wrap_stream(self.clone().pieces())
    }

    fn pieces(self) -> impl Stream<Item = Result<Bytes, Infallible>> {
        stream::iter((0..self.mib).map(move |number| Ok(self.piece(number))))
    }
}
