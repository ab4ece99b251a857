//! `flotilla dev`: a whole cluster on this machine, and rehearsals of its failures.
//!
//! The nodes are ordinary `flotilla serve` processes with everything in their flags. The supervisor
//! starts them, proves with a small image that they are one registry, reports those that die, and
//! stops all when it is told to. It restarts nothing by itself: to see what a dead node means is
//! the purpose.

mod control;
mod demo;
mod fleet;
mod home;
mod parent_death;
mod process;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

pub(super) use self::control::{Action, Session};
use self::fleet::Fleet;
use self::home::Home;
pub(super) use self::home::{DescribedNode, described_nodes};
use super::say;

/// How long the nodes may take to form a cluster.
const READY_WITHIN: Duration = Duration::from_secs(60);

const DEFAULT_NODES: u16 = 3;
const DEFAULT_PORT: u16 = 5000;

/// Run a cluster on this machine until Ctrl-C or SIGTERM, for development and rehearsals.
///
/// The data stays in the folder: the next start brings the same cluster back. Exit status: 0 once
/// all nodes are stopped, 1 with the reason if they cannot be started.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Dev {
    #[command(flatten)]
    start: Start,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Args)]
struct Start {
    /// How many nodes, 1 to 7; default: as many as the folder has, or 3
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=7))]
    nodes: Option<u16>,

    /// Client port of the first node; the next ones follow it, peer ports lie 1000 higher; default:
    /// the folder's, or 5000
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64_000))]
    port: Option<u16>,

    #[command(flatten)]
    place: Place,

    /// Do not push and pull a demonstration image
    #[arg(long)]
    no_demo: bool,
}

/// Where the cluster lies.
#[derive(Debug, clap::Args)]
pub(super) struct Place {
    /// Folder of the cluster: data and log of each node, dev.json, which describes the nodes
    #[arg(long, value_name = "DIR", default_value = ".flotilla")]
    pub(super) data_dir: PathBuf,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Node(NodeCommand),
}

/// Stop, kill, pause, resume, start or wipe one node of a running `flotilla dev`.
#[derive(Debug, clap::Args)]
struct NodeCommand {
    /// What to do
    action: Action,

    /// The node, such as n2
    name: String,

    #[command(flatten)]
    place: Place,
}

impl Dev {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        // One thread: the nodes are told to die with the thread that started them (see parent_death).
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            match self.command {
                Some(Command::Node(node)) => control::ask(&node.place.data_dir, node.action, &node.name).await,
                None => self.start.run().await,
            }
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Start {
    async fn run(self) -> anyhow::Result<()> {
        let home = Home::open(&self.place.data_dir, self.nodes, self.port)?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut told_to_stop = async || {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        };

        let fleet = Arc::new(Fleet::new(home)?);
        fleet.require_free_ports()?;
        fleet.home.mark()?;
        let outcome = tokio::select! {
            () = told_to_stop() => Ok(()),
            outcome = live(&fleet, !self.no_demo) => outcome,
        };
        say("Stopping the nodes, the leader last. Press Ctrl-C again to kill them.");
        tokio::select! {
            () = fleet.stop_all() => {}
            () = told_to_stop() => fleet.kill_all().await,
        }
        fleet.home.clean_up();
        fleet.name_strangers();
        outcome
    }
}

/// Starts the cluster, shows that it works, and serves `dev node …` for good.
async fn live(fleet: &Arc<Fleet>, with_demo: bool) -> anyhow::Result<()> {
    let names: Vec<&str> = fleet.nodes.iter().map(|node| node.name.as_str()).collect();
    say(format_args!("Starting {} in {}", names.join(", "), fleet.home.dir.display()));
    let deadline = Instant::now() + READY_WITHIN;
    fleet.start_all()?;
    fleet.wait_until_formed(deadline).await?;
    if with_demo {
        let urls: Vec<&str> = fleet.nodes.iter().map(|node| node.url.as_str()).collect();
        let pulled = demo::run(&fleet.http, &urls).await.context("the demonstration image did not make it around")?;
        say(pulled);
    }
    // Served before it is announced: who reads dev.json may ask at once.
    let socket = fleet.home.bind_socket()?;
    fleet.write_description()?;
    introduce(fleet, with_demo).await;
    control::serve(socket, fleet).await
}

/// The nodes, and what to try next.
async fn introduce(fleet: &Fleet, with_demo: bool) {
    let status = fleet.status().await;
    for node in &fleet.nodes {
        let member = status.iter().flat_map(|status| &status.nodes).find(|member| member.name == node.name);
        let role = member.map_or("member".to_owned(), |member| format!("{:?}", member.role).to_lowercase());
        let pid = node.pid().map_or("-".to_owned(), |pid| pid.to_string());
        say(format_args!("{}  {role:8}  pid {pid:8} {}", node.name, node.url));
    }
    let first = fleet.nodes[0].url.trim_start_matches("http://");
    let last = &fleet.nodes[fleet.nodes.len() - 1];
    let image = if with_demo { demo::IMAGE } else { "library/alpine:latest" };
    let (repository, _) = image.split_once(':').unwrap_or((image, ""));
    say("\nTry next (any node will do):");
    if !with_demo {
        say(format_args!("  docker pull alpine && docker tag alpine {first}/{image} && docker push {first}/{image}"));
    }
    say(format_args!("  docker pull {first}/{image}"));
    say(format_args!("  podman pull --tls-verify=false {first}/{image}"));
    say(format_args!("  skopeo inspect --tls-verify=false docker://{first}/{image}"));
    say(format_args!("  curl {}/v2/{repository}/tags/list", last.url));
    say(format_args!("  flotilla cluster status --url {}", fleet.nodes[0].url));
    say(format_args!("  {}", control::command(&fleet.home.dir, Action::Kill, &last.name)));
    say("Ctrl-C stops all nodes; their data stays.");
}
