//! `chaos-tests`: each scenario against real nodes on this machine.

use std::process::ExitCode;

use chaos_tests::scenarios::{self, AdmissionSize, CatchUp};
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(about = "Faults against real Flotilla processes, and checks of what clients were promised")]
struct Arguments {
    /// Repeats a run: its random choices follow from this number.
    #[arg(long, global = true, env = "FLOTILLA_SEED")]
    seed: Option<u64>,
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Debug, Subcommand)]
enum Scenario {
    /// Kill -9 the leader during pushes: they go on within 5 s and nothing acknowledged is lost.
    KillLeader {
        #[arg(long, default_value_t = 20)]
        times: u32,
    },
    /// SIGTERM to the leader during pushes: it hands over, and the median gap is under half a second.
    Handover {
        #[arg(long, default_value_t = 20)]
        times: u32,
    },
    /// From three to five nodes and back under load: no failed pull, no lost push.
    Grow,
    /// A node loses its disk under load and is replaced by one command; all copies come back.
    LostDisk,
    /// Six nodes in three zones lose a whole zone: every blob can be read.
    Zones,
    /// A registry of a million tags (five for each manifest): start, snapshot, catch-up, memory, disk.
    Million {
        #[arg(long, default_value_t = 200_000)]
        manifests: usize,
    },
    /// Kill -9 all nodes at once during pushes: everything acknowledged is back within 10 s.
    KillAll {
        #[arg(long, default_value_t = 20)]
        times: u32,
    },
    /// A stopped node misses many writes and catches up by a snapshot.
    CatchUp {
        #[arg(long, default_value_t = 10_000)]
        writes: usize,
        #[arg(long, default_value_t = 1_000)]
        snapshot_every: usize,
        #[arg(long, default_value_t = 500)]
        keep: usize,
    },
    /// A large blob goes in at one node and comes out at another, in little memory.
    BigBlob {
        #[arg(long, default_value_t = 2_048)]
        mib: u64,
    },
    /// Two of three nodes gone: pulls go on, pushes are refused at once, and all heals by itself.
    NoQuorum,
    /// Nodes are killed under a watcher: it sees every change once and in order.
    Watch {
        #[arg(long, default_value_t = 10_000)]
        changes: usize,
        #[arg(long, default_value_t = 10)]
        kills: usize,
    },
    /// Two writers race for a tag under a condition: exactly one wins each time.
    Races {
        #[arg(long, default_value_t = 1_000)]
        times: usize,
    },
    /// Pushes at the edge of the grace time while collection runs: each keeps its blobs or is told.
    Garbage {
        #[arg(long, default_value_t = 2_000)]
        pushes: usize,
        /// Kill all nodes at once now and then.
        #[arg(long)]
        kills: bool,
    },
    /// Reviews at a steady rate while tags move, a policy changes and the leader is killed.
    Admission {
        #[arg(long, default_value_t = 100_000)]
        reviews: u64,
        #[arg(long, default_value_t = 10)]
        kills: u64,
    },
    /// The pods of deploy/kustomize, in network namespaces: a cluster, rolling restarts under load, a lost disk.
    Kustomize {
        #[arg(long, default_value_t = 3)]
        rounds: u32,
        /// This process is in namespaces of its own.
        #[arg(long, hide = true)]
        inside: bool,
    },
    /// `flotilla drill` on `flotilla dev`: its verdicts, and its figures beside those of an independent client.
    Drill {
        #[arg(long, default_value_t = 5)]
        times: u32,
    },
    /// Bits of blobs flip: clients get the right bytes or an error, and the scrub mends.
    Damage,
    /// Nodes with wrong addresses, copied, foreign and removed data directories (C43, C44); last copies; growth.
    Membership,
    /// Unknown peers, ended tokens and certificates are refused with the reason; the authority is rotated under load.
    Peers,
    /// Five nodes share the blobs, two die; copies as the settings say; lost disks.
    Placement,
    /// Many clients push and pull at once.
    Clients {
        #[arg(long, default_value_t = 200)]
        count: usize,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(rand::random);
    println!("seed {seed}");
    let result = match arguments.scenario {
        Scenario::KillLeader { times } => scenarios::kill_leader(times, seed).await,
        Scenario::Handover { times } => scenarios::handover(times, seed).await,
        Scenario::Grow => scenarios::grow(seed).await,
        Scenario::LostDisk => scenarios::lost_disk(seed).await,
        Scenario::Zones => scenarios::zones(seed).await,
        Scenario::Million { manifests } => scenarios::million(manifests, seed).await,
        Scenario::KillAll { times } => scenarios::kill_all(times, seed).await,
        Scenario::CatchUp { writes, snapshot_every, keep } => {
            scenarios::catch_up(CatchUp { writes, snapshot_every, keep }, seed).await
        }
        Scenario::BigBlob { mib } => scenarios::big_blob(mib, seed).await,
        Scenario::NoQuorum => scenarios::no_quorum(seed).await,
        Scenario::Watch { changes, kills } => scenarios::watch(changes, kills).await,
        Scenario::Races { times } => scenarios::races(times).await,
        Scenario::Garbage { pushes, kills } => scenarios::garbage(pushes, kills, seed).await,
        Scenario::Admission { reviews, kills } => scenarios::admission(AdmissionSize { reviews, kills }).await,
        Scenario::Kustomize { rounds, inside: true } => scenarios::kustomize_inside(rounds, seed).await,
        Scenario::Kustomize { rounds, inside: false } => scenarios::kustomize(rounds, seed).await,
        Scenario::Drill { times } => scenarios::drill(times, seed).await,
        Scenario::Damage => scenarios::damage::damage().await,
        Scenario::Membership => scenarios::membership::membership().await,
        Scenario::Peers => scenarios::peers::peers().await,
        Scenario::Placement => scenarios::placement::placement().await,
        Scenario::Clients { count } => scenarios::clients(count, seed).await,
    };
    match result {
        Ok(()) => {
            println!("passed");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("FAILED (seed {seed}): {error:#}");
            ExitCode::FAILURE
        }
    }
}
