//! The load of a drill: clients that push, pull, list and move a tag, each at a steady pace, until they are told to end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng as _};
use tokio::task::JoinSet;

use super::figures::{Figures, Kind};
use super::image::{Image, digest};
use super::journal::Journal;
use super::ledger::{Ledger, Pushed};
use super::moving_tag::MovingTag;
use super::registry::{Outcome, Place, Pull, Registry, Trouble};
use crate::cli::dev::DescribedNode;

const PUSHERS: usize = 4;
const PULLERS: usize = 3;
const READERS: usize = 2;

/// The tag that moves, in a repository of its own.
const MOVING: &str = "moving";

/// An operation that takes longer is given up. Fewer than the longest time that a histogram holds.
const OPERATION_WITHIN: Duration = Duration::from_secs(60);

/// What all clients of a drill share.
pub(super) struct Rehearsal {
    /// Its repositories are `drill/<run>/…`.
    pub(super) run: String,
    pub(super) registry: Registry,
    pub(super) journal: Journal,
    pub(super) figures: Mutex<Figures>,
    pub(super) ledger: Mutex<Ledger>,
    pub(super) tag: Mutex<MovingTag>,
}

/// The clients at work. Dropping it ends them at once.
pub(super) struct Load {
    over: Arc<AtomicBool>,
    clients: JoinSet<anyhow::Result<()>>,
}

/// One client.
#[derive(Clone, Copy, Debug)]
enum Client {
    Pusher(usize),
    Puller,
    Lister,
    Mover,
    Reader,
}

/// What a client does next.
enum Operation {
    Push { place: Place, image: Image },
    Pull { pushed: Pushed, by_tag: bool },
    List { repository: String },
    MoveTag { image: Image },
    ReadTag,
}

impl Rehearsal {
    pub(super) fn begin(nodes: Vec<DescribedNode>) -> anyhow::Result<Self> {
        Ok(Self {
            run: format!("{:08x}", rand::random::<u32>()),
            registry: Registry::new(nodes)?,
            journal: Journal::begin(),
            figures: Mutex::new(Figures::new()),
            ledger: Mutex::default(),
            tag: Mutex::default(),
        })
    }

    /// Where a client pushes.
    fn repository(&self, name: impl std::fmt::Display) -> String {
        format!("drill/{}/{name}", self.run)
    }

    /// Repository and digest of every manifest that the load may have left in the registry.
    pub(super) fn manifests(&self) -> Vec<(String, String)> {
        let moving = self.repository(MOVING);
        let versions = self.tag.lock().digests().into_iter().map(|digest| (moving.clone(), digest));
        self.ledger.lock().manifests().into_iter().chain(versions).collect()
    }

    /// Does one operation and writes down how it ended.
    async fn perform(&self, operation: &Operation, random: &mut StdRng) {
        let first = random.random_range(0..self.registry.nodes().len().max(1));
        let begun = self.figures.lock().begin(self.journal.now());
        let done = tokio::time::timeout(OPERATION_WITHIN, self.ask(operation, first)).await;
        let done = done.unwrap_or_else(|_| Err(given_up(operation)));
        self.note(operation, &done);
        self.figures.lock().end(operation.kind(), begun, done.as_ref().map(|_| ()), self.journal.now());
    }

    /// Whether what was acknowledged may be undone by an earlier attempt of the same operation.
    async fn ask(&self, operation: &Operation, first: usize) -> Result<bool, Trouble> {
        let registry = &self.registry;
        match operation {
            Operation::Push { place, image } => registry.push(first, place, image).await,
            Operation::Pull { pushed, by_tag } => {
                let reference = if *by_tag { &pushed.place.tag } else { &pushed.digest };
                let pull = Pull {
                    repository: &pushed.place.repository,
                    reference,
                    digest: &pushed.digest,
                    blobs: &pushed.blobs,
                };
                registry.pull(first, &pull).await.map(|()| false)
            }
            Operation::List { repository } => registry.list(first, repository).await.map(|()| false),
            Operation::MoveTag { image } => self.move_tag(first, image).await,
            Operation::ReadTag => self.read_tag(first).await.map(|()| false),
        }
    }

    async fn move_tag(&self, first: usize, image: &Image) -> Result<bool, Trouble> {
        let place = Place { repository: self.repository(MOVING), tag: MOVING.to_owned() };
        self.tag.lock().sent(image.digest.clone());
        match self.registry.put_manifest(first, &place, image).await {
            // Its blobs come with the first version.
            Err(trouble) if trouble.outcome == Outcome::Failed => self.registry.push(first, &place, image).await,
            other => other,
        }
    }

    /// Reads the tag from one node and no other: what another node says is no excuse.
    async fn read_tag(&self, node: usize) -> Result<(), Trouble> {
        let repository = self.repository(MOVING);
        let floor = self.tag.lock().floor();
        let read = self.registry.only(node).manifest(0, &repository, MOVING).await;
        let (shown, warned) = match read {
            Ok((manifest, warned)) => (Some(digest(&manifest)), warned),
            Err(trouble) if trouble.status.is_some_and(|status| status == 404) => (None, false),
            // The node does not serve: ask another one, as a client would.
            Err(_) => return self.registry.manifest(node + 1, &repository, MOVING).await.map(drop),
        };
        let name = self.registry.nodes().get(node).map_or("?", |node| node.name.as_str());
        self.tag.lock().judge(floor, name, shown.as_deref(), warned);
        Ok(())
    }

    /// What the ledger and the tag must know of it.
    fn note(&self, operation: &Operation, done: &Result<bool, Trouble>) {
        let outcome = done.as_ref().map_or_else(|trouble| trouble.outcome, |_| Outcome::Ok);
        match operation {
            Operation::Push { place, image } => self.ledger.lock().add(place.clone(), image, outcome),
            Operation::MoveTag { .. } => {
                self.tag.lock().settled(outcome, done.as_ref().is_ok_and(|is_disputed| *is_disputed));
            }
            Operation::Pull { .. } | Operation::List { .. } | Operation::ReadTag => {}
        }
    }
}

impl Operation {
    fn kind(&self) -> Kind {
        match self {
            Self::Push { .. } => Kind::Push,
            Self::Pull { by_tag: true, .. } => Kind::PullByTag,
            Self::Pull { by_tag: false, .. } => Kind::PullByDigest,
            Self::List { .. } => Kind::List,
            Self::MoveTag { .. } => Kind::MoveTag,
            Self::ReadTag => Kind::ReadTag,
        }
    }
}

impl Client {
    /// Between two operations. It bounds what a drill leaves on disks, and how closely gaps are seen.
    fn pace(self) -> Duration {
        Duration::from_millis(match self {
            Self::Pusher(_) | Self::Mover => 100,
            Self::Puller | Self::Reader => 40,
            Self::Lister => 250,
        })
    }

    /// Its next operation; `None` where there is nothing to do yet.
    fn plan(self, rehearsal: &Rehearsal, number: usize, base: &Image, random: &mut StdRng) -> Option<Operation> {
        match self {
            Self::Pusher(pusher) => {
                let place =
                    Place { repository: rehearsal.repository(format_args!("app-{pusher}")), tag: format!("t{number}") };
                Some(Operation::Push { place, image: Image::random(random) })
            }
            Self::Puller => {
                let pushed = rehearsal.ledger.lock().any(random)?;
                Some(Operation::Pull { pushed, by_tag: random.random() })
            }
            Self::Lister => {
                let pushed = rehearsal.ledger.lock().any(random)?;
                Some(Operation::List { repository: pushed.place.repository })
            }
            Self::Mover => Some(Operation::MoveTag { image: base.with_version(rehearsal.tag.lock().next()) }),
            Self::Reader => rehearsal.tag.lock().floor().map(|_| Operation::ReadTag),
        }
    }

    async fn work(self, rehearsal: &Rehearsal, over: &AtomicBool) -> anyhow::Result<()> {
        let mut random = StdRng::from_os_rng();
        let base = Image::random(&mut random);
        let mut number = 0;
        while !over.load(Ordering::Relaxed) {
            if let Some(operation) = self.plan(rehearsal, number, &base, &mut random) {
                rehearsal.perform(&operation, &mut random).await;
                number += 1;
            }
            let is_full = rehearsal.ledger.lock().is_full() || rehearsal.tag.lock().is_full();
            anyhow::ensure!(!is_full, "the drill takes so long that it cannot remember all that it pushed");
            tokio::time::sleep(self.pace()).await;
        }
        Ok(())
    }
}

impl Load {
    /// Starts the clients.
    pub(super) fn start(rehearsal: &Arc<Rehearsal>) -> Self {
        let (over, mut clients) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
        let pushers = (0..PUSHERS).map(Client::Pusher);
        let pullers = std::iter::repeat_n(Client::Puller, PULLERS);
        let readers = std::iter::repeat_n(Client::Reader, READERS);
        for client in pushers.chain(pullers).chain(readers).chain([Client::Lister, Client::Mover]) {
            let (rehearsal, over) = (Arc::clone(rehearsal), Arc::clone(&over));
            clients.spawn(async move { client.work(&rehearsal, &over).await });
        }
        Self { over, clients }
    }

    /// Lets the clients finish what they are at.
    ///
    /// # Errors
    /// One of them ended early: the figures would not be those of the whole load.
    pub(super) async fn end(mut self) -> anyhow::Result<()> {
        self.over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.context("a client of the load")??;
        }
        Ok(())
    }

    /// Waits for a client that ends by itself, which none of them should.
    pub(super) async fn broken(&mut self) -> anyhow::Error {
        match self.clients.join_next().await {
            Some(Ok(Err(error))) => error,
            Some(Ok(Ok(()))) | None => anyhow::anyhow!("the load ended early"),
            Some(Err(error)) => anyhow::Error::from(error).context("a client of the load"),
        }
    }
}

fn given_up(operation: &Operation) -> Trouble {
    let changes = matches!(operation.kind(), Kind::Push | Kind::MoveTag);
    let outcome = if changes { Outcome::Unknown } else { Outcome::Failed };
    Trouble { outcome, status: None, reason: format!("no end after {} s", OPERATION_WITHIN.as_secs()) }
}
