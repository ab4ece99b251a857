//! What the registry promises to survive, each as one function: it prints its progress and figures,
//! and its error says which promise was broken.

mod admission;
mod big_blob;
mod catch_up;
mod clients;
mod come_and_go;
pub mod damage;
mod drill;
mod garbage;
mod kill_all;
mod kill_leader;
mod kustomize;

pub mod membership;
mod million;
mod no_quorum;
pub mod peers;
pub mod placement;
mod watch;

pub use admission::{Size as AdmissionSize, admission};
pub use big_blob::big_blob;
pub use catch_up::{CatchUp, catch_up};
pub use clients::clients;
pub use come_and_go::{grow, lost_disk, zones};
pub use drill::drill;
pub use garbage::garbage;
pub use kill_all::kill_all;
pub use kill_leader::{handover, kill_leader};
pub use kustomize::{kustomize, kustomize_inside};
pub use million::million;
pub use no_quorum::no_quorum;
pub use watch::{races, watch};

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::cluster::{Cluster, Node};

const MIB: u64 = 1 << 20;

/// I15: prints the most memory that each living node has held; an error if one is over the limit.
fn check_peak_rss(cluster: &Cluster, limit_mib: u64) -> anyhow::Result<()> {
    let mut over = Vec::new();
    for node in cluster.nodes().iter().filter(|node| node.alive()) {
        let mib = node.peak_rss_bytes()? / MIB;
        println!("peak RSS of {}: {mib} MiB", node.name);
        if mib >= limit_mib {
            over.push(node.name.as_str());
        }
    }
    ensure!(over.is_empty(), "over {limit_mib} MiB of memory: {}", over.join(", "));
    Ok(())
}

/// Runs these parts of a scenario, functions of their own, one after the other.
macro_rules! each_part {
    ($($part:ident),+ $(,)?) => {
        $($crate::scenarios::say(stringify!($part), $part()).await?;)+
    };
}
use each_part;

async fn say(part: &str, running: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let began = Instant::now();
    running.await.with_context(|| part.replace('_', " "))?;
    println!("{} ({:.1} s)", part.replace('_', " "), began.elapsed().as_secs_f64());
    Ok(())
}

/// The value in the middle; of an even number, the upper one.
fn median(durations: &[Duration]) -> Duration {
    let mut sorted = durations.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

fn names(cluster: &Cluster) -> Vec<String> {
    cluster.nodes().iter().map(|node| node.name.clone()).collect()
}

fn all(cluster: &Cluster) -> Vec<&Node> {
    cluster.nodes().iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let seconds = [5, 1, 3].map(Duration::from_secs);
        assert_eq!(median(&seconds), Duration::from_secs(3));
        assert_eq!(median(&[]), Duration::ZERO);
    }
}
