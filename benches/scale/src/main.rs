//! What lists, referrers, collection and watchers cost as the registry grows: each as a ratio of two measurements on
//! one cluster of three nodes on this machine, taken in turns.

mod gc;
mod lists;
mod referrers;
mod watchers;

use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use chaos_tests::client::{Client, Reply};
use clap::{Parser, Subcommand};
use futures::{StreamExt as _, TryStreamExt as _, stream};

#[derive(Debug, Parser)]
#[command(about, version)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The last page of a list against the first, and the first of many against the first of few
    Lists {
        #[arg(long, default_value_t = 24_000)]
        tags: usize,
        #[arg(long, default_value_t = 50_000)]
        repositories: usize,
    },
    /// A page of many referrers against a page of few
    Referrers {
        #[arg(long, default_value_t = 5_000)]
        many: usize,
        #[arg(long, default_value_t = 50)]
        few: usize,
    },
    /// Collecting ten blobs in a large store against a small one
    Gc {
        #[arg(long, default_value_t = 1_000)]
        few: usize,
        #[arg(long, default_value_t = 100_000)]
        many: usize,
    },
    /// The rate of pushes with watchers against that without
    Watchers {
        #[arg(long, default_value_t = 1_000)]
        count: usize,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Arguments::parse().what {
        What::Lists { tags, repositories } => lists::run(tags, repositories).await,
        What::Referrers { many, few } => referrers::run(many, few).await,
        What::Gc { few, many } => gc::run(few, many).await,
        What::Watchers { count } => watchers::run(count).await,
    }
}

/// A manifest of a type that nobody reads.
const KIND: &str = "application/vnd.example";

fn manifest(name: &str) -> Bytes {
    serde_json::json!({"schemaVersion": 2, "name": name}).to_string().into()
}

/// Puts manifests, many at a time: `(repository, reference, body)` each.
async fn put_all(client: &Client, puts: impl Iterator<Item = (String, String, Bytes)>) -> anyhow::Result<()> {
    let put = |(repository, reference, body): (String, String, Bytes)| async move {
        client.put_manifest(&repository, &reference, KIND, body).await?.expect(&[201]).map(drop)
    };
    stream::iter(puts.map(put)).buffer_unordered(64).try_collect::<()>().await?;
    Ok(())
}

/// The median time of requests for each of the paths, taken in turns.
async fn in_turns<const N: usize>(client: &Client, paths: [&str; N], times: usize) -> anyhow::Result<[Duration; N]> {
    let mut took = [(); N].map(|()| Vec::with_capacity(times));
    for _ in 0..times {
        for (path, took) in paths.iter().zip(&mut took) {
            let began = Instant::now();
            let _reply: Reply = client.get(path).await?.expect(&[200])?;
            took.push(began.elapsed());
        }
    }
    Ok(took.map(|mut took| median(&mut took)))
}

fn median(took: &mut [Duration]) -> Duration {
    took.sort_unstable();
    took.get(took.len() / 2).copied().unwrap_or_default()
}

fn ratio(one: Duration, other: Duration) -> String {
    format!("{:.2} ({one:.2?} against {other:.2?})", one.as_secs_f64() / other.as_secs_f64())
}

/// The page after the entry `last` of a list.
fn page(list: &str, last: &str) -> String {
    format!("{list}?n=100&last={last}")
}

/// The text of a JSON field.
fn text<'a>(value: &'a serde_json::Value, field: &str) -> anyhow::Result<&'a str> {
    value[field].as_str().with_context(|| format!("no {field} in {value}"))
}
