//! Reviews at a steady rate while tags move, a policy changes and the leader is killed: each is answered in time, no two
//! nodes differ at one revision, and what is pinned is what the tag meant.

mod checks;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::client::{Client, Method};
use crate::cluster::{Cluster, Options};
use crate::wait::until_ok;
use crate::webhooks::{ApiServer, Hook, Verdict, pod};

/// Reviews a second: one call of each webhook for every two.
const RATE: u64 = 200;

/// Reviews that wait for their answer at the same time; more are not begun, and the rate is missed.
const IN_FLIGHT_MAX: usize = 512;

/// Between two moves of tags, and between two changes of the policy.
const MOVE_EACH: Duration = Duration::from_millis(100);
const CHANGE_EACH: Duration = Duration::from_millis(700);

/// One `HEAD` for so many reviews: enough for its hundredth part to say something.
const HEAD_EACH: u64 = 4;

/// After a start or a kill, before it counts as calm.
const CALM_AFTER: Duration = Duration::from_secs(5);

const SOON: Duration = Duration::from_secs(30);
const KIND: &str = "application/vnd.example";
const NAMESPACE: &str = "prod";
const POLICY: &str = "changing";
const TAGS: [&str; 4] = ["a", "b", "c", "d"];
const REPOSITORIES: [&str; 2] = ["team/app", "team/tool"];

/// The size of a run.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// How many reviews.
    pub reviews: u64,
    /// How often the leader is killed.
    pub kills: u64,
}

/// Plays an API server over three nodes.
pub async fn admission(size: Size) -> anyhow::Result<()> {
    let cluster = Cluster::start(Options { webhooks: true, ..Options::default() }).await?;
    let result = run(&cluster, size).await;
    cluster.judged(result)
}

/// What the tasks share.
struct Run {
    api_server: ApiServer,
    /// One for each node, for `HEAD`.
    clients: Vec<Client>,
    /// When each node was down: from before the kill until it was ready again.
    down: Mutex<Vec<(usize, Instant, Option<Instant>)>>,
    began: Instant,
    over: AtomicBool,
    begun: AtomicU64,
    /// The revision of the policy's last acknowledged change.
    acknowledged: AtomicU64,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    answers: Vec<Answer>,
    /// When they began, and how long they took.
    reviews: Vec<(Instant, Duration)>,
    heads: Vec<(Instant, Duration)>,
    /// Calls of a node that was down.
    unanswered: u64,
    /// Answers of a node that had not caught up since its start.
    undecided: u64,
    stale: u64,
}

/// What a node said at a revision.
#[derive(Debug)]
struct Answer {
    node: usize,
    revision: u64,
    hook: Hook,
    images: Vec<String>,
    allowed: bool,
    /// By image, as the patch has them.
    pinned: BTreeMap<String, String>,
    /// The policy's revision by which it was decided.
    policy: Option<u64>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn image(repository: &str, tag: &str) -> String {
    format!("reg.example/{repository}:{tag}")
}

fn document(allows: bool) -> String {
    let verb = if allows { "approve" } else { "deny" };
    format!(
        "name: {POLICY}\nmode: enforce\nnamespaces: [{NAMESPACE}]\ndefault: deny\nrules:\n\
         - {{name: app, images: ['reg.example/team/app'], verb: approve}}\n\
         - {{name: tool, images: ['reg.example/team/tool'], verb: {verb}}}\n"
    )
}

async fn run(cluster: &Cluster, size: Size) -> anyhow::Result<()> {
    let settings = json!({"registry_names": ["reg.example"]}).to_string();
    cluster.client().send(Method::PUT, "/api/v1/settings", &[], settings.into()).await?.expect(&[204])?;
    let mut number = 0;
    for repository in REPOSITORIES {
        for tag in TAGS {
            number += 1;
            put(&cluster.client(), repository, tag, number).await?;
        }
    }
    let run = Arc::new(Run {
        api_server: cluster.api_server()?,
        clients: cluster.nodes().iter().map(|node| cluster.client_of(node)).collect(),
        down: Mutex::default(),
        began: Instant::now(),
        over: AtomicBool::new(false),
        begun: AtomicU64::new(0),
        acknowledged: AtomicU64::new(0),
        seen: Mutex::default(),
    });
    let policies = Mutex::new(BTreeMap::from([(change_policy(&cluster.client(), true, &run).await?, true)]));
    let reviews = async {
        let ended = run.reviews(size.reviews).await;
        run.over.store(true, Ordering::Relaxed);
        ended
    };
    let (reviews, moves, changes, kills) = futures::join!(
        reviews,
        run.moves(cluster.client(), number),
        run.changes(cluster.client(), &policies),
        run.kills(cluster, size)
    );
    reviews?;
    println!("{} moves of tags, {} changes of the policy, {} kills", moves?, changes?, kills?);
    let policies = policies.into_inner().unwrap_or_else(PoisonError::into_inner);
    let seen = std::mem::take(&mut *lock(&run.seen));
    checks::nodes_agree(&seen.answers)?;
    checks::policies_held(&seen.answers, &policies)?;
    checks::pins_were_right(&seen.answers, &checks::histories(cluster).await?)?;
    run.figures(&seen)
}

async fn put(client: &Client, repository: &str, tag: &str, number: u64) -> anyhow::Result<()> {
    let manifest = json!({"schemaVersion": 2, "mediaType": KIND, "number": number}).to_string();
    let put = async || {
        let manifest = Bytes::from(manifest.clone());
        Ok(client.put_manifest(repository, tag, KIND, manifest).await?.expect(&[201])?)
    };
    until_ok(SOON, "a tag is moved", put).await.map(drop)
}

async fn change_policy(client: &Client, allows: bool, run: &Run) -> anyhow::Result<u64> {
    // The same again is no change, so that what was not answered is sent again.
    let put = async || {
        let path = format!("/api/v1/policies/{POLICY}");
        let done = client.send(Method::PUT, &path, &[], document(allows).into()).await?.expect(&[204])?;
        let revision: u64 = done.header("etag").context("no revision")?.trim_matches('"').parse()?;
        Ok(revision)
    };
    let revision = until_ok(SOON, "the policy is changed", put).await?;
    run.acknowledged.store(revision, Ordering::SeqCst);
    Ok(revision)
}

impl Run {
    async fn reviews(self: &Arc<Self>, count: u64) -> anyhow::Result<()> {
        let mut clock = interval(Duration::from_secs(1) / RATE as u32);
        // What is late is not made up for: the rate is a limit.
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut tasks, in_flight) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
        for number in 0..count {
            clock.tick().await;
            while in_flight.load(Ordering::Relaxed) >= IN_FLIGHT_MAX {
                tasks.join_next().await.context("reviews are in flight")???;
            }
            self.begun.store(number, Ordering::Relaxed);
            in_flight.fetch_add(1, Ordering::Relaxed);
            let (run, in_flight) = (self.clone(), in_flight.clone());
            tasks.spawn(async move {
                let done = run.review(number).await;
                in_flight.fetch_sub(1, Ordering::Relaxed);
                done
            });
            while let Some(ended) = tasks.try_join_next() {
                ended??;
            }
        }
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        Ok(())
    }

    /// One call of three containers at the next node; now and then a `HEAD` at the same.
    async fn review(&self, number: u64) -> anyhow::Result<()> {
        let node = (number % self.clients.len() as u64) as usize;
        let hook = if number.is_multiple_of(2) { Hook::Mutate } else { Hook::Validate };
        let turn = (number / 6) as usize;
        let (repository, tag) = (REPOSITORIES[turn % 2], |further: usize| TAGS[(turn / 2 + further) % TAGS.len()]);
        let images = [image(repository, tag(0)), image("team/app", tag(1)), image(repository, tag(2))];
        let review = pod(NAMESPACE, &images.each_ref().map(String::as_str));
        let (acknowledged, began) = (self.acknowledged.load(Ordering::SeqCst), Instant::now());
        if number.is_multiple_of(HEAD_EACH) {
            let path = format!("/v2/{repository}/manifests/{}", tag(0));
            let head = self.clients[node].send(Method::HEAD, &path, &[], Bytes::new()).await;
            if head.is_ok_and(|reply| reply.status == 200) {
                lock(&self.seen).heads.push((began, began.elapsed()));
            }
        }
        let began = Instant::now();
        let verdict = match self.api_server.call_at(node, hook, &review).await {
            Ok(verdict) => verdict,
            // The API server asks through a Service, which soon leaves out who is not there.
            Err(_) if self.was_down(node, began) => {
                lock(&self.seen).unanswered += 1;
                return Ok(());
            }
            Err(error) => return Err(error.context(format!("review {number} at node {node}"))),
        };
        let limit = self.api_server.deadline();
        ensure!(verdict.took <= limit, "review {number}: {:?}, more than {limit:?}", verdict.took);
        let mut seen = lock(&self.seen);
        seen.reviews.push((began, verdict.took));
        if verdict.annotations["stale"] == "true" {
            seen.stale += 1;
            return Ok(());
        }
        if verdict.annotations["revision"].is_null() && self.was_down(node, began) {
            // A node that was just started and has not caught up: no decision, so no admission.
            ensure!(verdict.allowed == (hook == Hook::Mutate) && verdict.patch.is_none(), "{verdict:?}");
            seen.undecided += 1;
            return Ok(());
        }
        let answer = Answer::of(node, hook, &images, &verdict)
            .with_context(|| format!("review {number} at node {node}: {verdict:?}"))?;
        ensure!(
            answer.revision >= acknowledged,
            "review {number} began after revision {acknowledged} was acknowledged, and knows {} only",
            answer.revision
        );
        seen.answers.push(answer);
        Ok(())
    }

    fn was_down(&self, node: usize, began: Instant) -> bool {
        lock(&self.down).iter().any(|(down, _, until)| *down == node && until.is_none_or(|until| began <= until))
    }

    async fn moves(&self, client: Client, mut number: u64) -> anyhow::Result<u64> {
        let mut moves = 0;
        while !self.over.load(Ordering::Relaxed) {
            number += 1;
            moves += 1;
            let (repository, tag) = (number as usize % REPOSITORIES.len(), number as usize / 2 % TAGS.len());
            put(&client, REPOSITORIES[repository], TAGS[tag], number).await?;
            tokio::time::sleep(MOVE_EACH).await;
        }
        Ok(moves)
    }

    async fn changes(&self, client: Client, policies: &Mutex<BTreeMap<u64, bool>>) -> anyhow::Result<u64> {
        let (mut changes, mut allows) = (0, true);
        while !self.over.load(Ordering::Relaxed) {
            allows = !allows;
            let revision = change_policy(&client, allows, self).await?;
            lock(policies).insert(revision, allows);
            changes += 1;
            tokio::time::sleep(CHANGE_EACH).await;
        }
        Ok(changes)
    }

    /// Kills the leader, spread over the run.
    async fn kills(&self, cluster: &Cluster, size: Size) -> anyhow::Result<u64> {
        for round in 0..size.kills {
            let due = size.reviews * (round + 1) / (size.kills + 1);
            let patience = Duration::from_secs(60 + 4 * size.reviews / RATE);
            until_ok(patience, "reviews go on", async || {
                let begun = self.begun.load(Ordering::Relaxed);
                ensure!(begun >= due || self.over.load(Ordering::Relaxed), "{begun} of {due}");
                Ok(())
            })
            .await?;
            let leader = cluster.leader().await?;
            let node = cluster.nodes().iter().position(|node| node.name == leader.name).context("a leader")?;
            lock(&self.down).push((node, Instant::now(), None));
            leader.kill();
            leader.restart()?;
            cluster.wait_ready(SOON).await?;
            if let Some((_, _, until)) = lock(&self.down).last_mut() {
                *until = Some(Instant::now());
            }
        }
        Ok(size.kills)
    }

    /// Whether nobody was killed just before.
    fn is_calm(&self, at: Instant) -> bool {
        let after = |from: Instant| at.saturating_duration_since(from);
        let is_near = |(_, from, until): &(usize, Instant, Option<Instant>)| {
            at + CALM_AFTER > *from && until.is_none_or(|until| after(until) < CALM_AFTER)
        };
        after(self.began) > CALM_AFTER && !lock(&self.down).iter().any(is_near)
    }

    fn figures(&self, seen: &Seen) -> anyhow::Result<()> {
        let took = self.began.elapsed();
        let answered = seen.reviews.len();
        println!(
            "{answered} reviews answered in {took:.1?} ({:.0}/s), {} by a state that may be old, {} without a decision by a node that \
             had just started, {} calls of a node that was down",
            answered as f64 / took.as_secs_f64(),
            seen.stale,
            seen.undecided,
            seen.unanswered,
        );
        println!("{} answers compared: nodes agree, policies held, pins are what the tags meant", seen.answers.len());
        let calm = |all: &[(Instant, Duration)]| -> Vec<Duration> {
            all.iter().filter(|(at, _)| self.is_calm(*at)).map(|(_, took)| *took).collect()
        };
        let all = |all: &[(Instant, Duration)]| -> Vec<Duration> { all.iter().map(|(_, took)| *took).collect() };
        for (when, reviews, heads) in [
            ("while all is calm", calm(&seen.reviews), calm(&seen.heads)),
            ("over the whole run", all(&seen.reviews), all(&seen.heads)),
        ] {
            let (review, head) = (quantiles(reviews), quantiles(heads));
            println!(
                "{when}: review p50 {:.2?} p99 {:.2?}, HEAD by tag p50 {:.2?} p99 {:.2?}: {:.2} x at p50, {:.2} x at p99",
                review[0],
                review[1],
                head[0],
                head[1],
                review[0].as_secs_f64() / head[0].as_secs_f64(),
                review[1].as_secs_f64() / head[1].as_secs_f64(),
            );
        }
        Ok(())
    }
}

impl Answer {
    fn of(node: usize, hook: Hook, images: &[String], verdict: &Verdict) -> anyhow::Result<Self> {
        let note = |key: &str| verdict.annotations[key].as_str();
        let revision = note("revision").context("no revision")?.parse()?;
        let policy = match note("policy") {
            None => None,
            Some(policy) => {
                let known = policy.split(',').find_map(|one| one.trim().strip_prefix(&format!("{POLICY}@")));
                Some(known.with_context(|| policy.to_owned())?.parse()?)
            }
        };
        let mut pinned = BTreeMap::new();
        for change in verdict.patch.iter().flat_map(|patch| patch.as_array().into_iter().flatten()) {
            let value = change["value"].as_str().context("a patch without a text")?;
            let (name, digest) = value.split_once('@').with_context(|| value.to_owned())?;
            pinned.insert(name.to_owned(), digest.to_owned());
        }
        Ok(Self { node, revision, hook, images: images.to_vec(), allowed: verdict.allowed, pinned, policy })
    }
}

/// The middle and the ninety-ninth part of a hundred.
fn quantiles(mut durations: Vec<Duration>) -> [Duration; 2] {
    durations.sort_unstable();
    let at = |part: f64| {
        let index = (durations.len() as f64 * part) as usize;
        durations.get(index.min(durations.len().saturating_sub(1))).copied().unwrap_or_default()
    };
    [at(0.5), at(0.99)]
}
