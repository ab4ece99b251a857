//! Pushes while others watch.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chaos_tests::client::{Client, plain_http};
use chaos_tests::cluster::{Cluster, Options};
use futures::StreamExt as _;
use tokio::task::JoinSet;

use crate::{KIND, manifest};

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(4);
const PUSHERS: usize = 32;

pub(crate) async fn run(count: usize) -> anyhow::Result<()> {
    let cluster = Cluster::start(Options::default()).await?;
    let client = cluster.client();
    let _warm = rate(&client).await?;
    for (what, globs) in [
        ("each of a repository of its own, which is not pushed to", (0..count).map(|n| format!("other/r{n}")).collect()),
        ("one of them of all that is pushed", (0..count).map(|n| if n == 0 { "**".into() } else { format!("other/r{n}") }).collect::<Vec<_>>()),
    ] {
        let (mut with, mut without) = (Vec::new(), Vec::new());
        let mut seen = 0;
        for _ in 0..ROUNDS {
            without.push(rate(&client).await?);
            let watching = Watching::start(&cluster, &globs).await?;
            with.push(rate(&client).await?);
            seen += watching.end();
        }
        let ratio = middle(&mut with) / middle(&mut without);
        println!("pushes with {count} watchers, {what}: {ratio:.2} of the rate without ({seen} events came)");
    }
    Ok(())
}

fn middle(rates: &mut [f64]) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// Tags put a second.
async fn rate(client: &Client) -> anyhow::Result<f64> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let began = Instant::now();
    let done = Arc::new(AtomicU64::new(0));
    let pushers = (0..PUSHERS).map(|pusher| {
        let done = done.clone();
        async move {
            while began.elapsed() < ROUND {
                let number = NEXT.fetch_add(1, Ordering::Relaxed);
                let body = manifest(&format!("m{number}"));
                client.put_manifest(&format!("pushed/r{pusher}"), "v", KIND, body).await?.expect(&[201])?;
                done.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, anyhow::Error>(())
        }
    });
    futures::future::try_join_all(pushers).await?;
    Ok(done.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64())
}

/// Open feeds, over all nodes.
struct Watching {
    feeds: JoinSet<()>,
    events: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Watching {
    async fn start(cluster: &Cluster, globs: &[String]) -> anyhow::Result<Self> {
        let (mut feeds, events, over) = (JoinSet::new(), Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let http = plain_http(Duration::from_secs(600));
        for (number, glob) in globs.iter().enumerate() {
            let node = &cluster.nodes()[number % cluster.nodes().len()];
            let url = format!("{}/api/v1/watch?repository={glob}", node.url);
            let reply = http.get(url).send().await?.error_for_status()?;
            let (events, over) = (events.clone(), over.clone());
            feeds.spawn(async move {
                let mut chunks = reply.bytes_stream();
                while let Some(Ok(chunk)) = chunks.next().await {
                    let came = chunk.windows(4).filter(|window| window == b"id: ").count();
                    events.fetch_add(came as u64, Ordering::Relaxed);
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        Ok(Self { feeds, events, over })
    }

    fn end(mut self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        self.feeds.abort_all();
        self.events.load(Ordering::Relaxed)
    }
}
