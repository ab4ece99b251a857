//! `flotilla dev node …`: one line of JSON to the supervisor, one line back.
//!
//! Who asks with `undo_at_end` keeps the connection open. However it ends, the supervisor then lets every node that was
//! touched through it run again: a drill cannot leave its fault behind, not even when it is killed.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::fleet::Fleet;
use super::{READY_WITHIN, home};
use crate::cli::{complain, say};

const MAX_LINE_BYTES: u64 = 64 * 1024;
const ASK_WITHIN: Duration = Duration::from_secs(5);
const ANSWER_WITHIN: Duration = Duration::from_secs(120);

/// What can be done to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::cli) enum Action {
    /// Stop it in order (SIGTERM)
    Stop,
    /// Kill it without warning (SIGKILL), as a crash would
    Kill,
    /// Freeze it (SIGSTOP), as a machine that hangs would
    Pause,
    /// Let a paused node go on (SIGCONT)
    Resume,
    /// Start a node that is not running
    Start,
    /// Remove the data of a node that is not running, as a lost disk would; it starts as a new one
    Wipe,
}

#[derive(Debug, Serialize, Deserialize)]
struct Request {
    action: Action,
    node: String,
    #[serde(default)]
    undo_at_end: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    ok: bool,
    message: String,
}

/// The command line that does something to a node.
pub(super) fn command(dir: &Path, action: Action, name: &str) -> String {
    let action = format!("{action:?}").to_lowercase();
    format!("flotilla dev node {action} {name} --data-dir {}", dir.display())
}

/// Asks the supervisor of a folder, and prints what it answers.
pub(super) async fn ask(dir: &Path, action: Action, node: &str) -> anyhow::Result<()> {
    let mut session = Session { stream: BufReader::new(home::connect(dir).await?), undo_at_end: false };
    say(session.ask(action, node).await?);
    Ok(())
}

/// A connection to the supervisor that undoes what was done through it when it ends, however it ends.
pub(in crate::cli) struct Session {
    stream: BufReader<UnixStream>,
    undo_at_end: bool,
}

impl Session {
    /// Connects to the supervisor of a folder.
    ///
    /// # Errors
    /// No cluster runs there.
    pub(in crate::cli) async fn open(dir: &Path) -> anyhow::Result<Self> {
        Ok(Self { stream: BufReader::new(home::connect(dir).await?), undo_at_end: true })
    }

    /// Does something to a node and waits until it is done; what the supervisor says.
    ///
    /// # Errors
    /// The supervisor's reason, or that it does not answer.
    pub(in crate::cli) async fn ask(&mut self, action: Action, node: &str) -> anyhow::Result<String> {
        let request = Request { action, node: node.to_owned(), undo_at_end: self.undo_at_end };
        self.stream.write_all(line(&request)?.as_bytes()).await?;
        let answer = tokio::time::timeout(ANSWER_WITHIN, read_line(&mut self.stream)).await;
        let answer = answer.context("`flotilla dev` does not answer: is it paused?")?;
        let answer: Answer = serde_json::from_str(&answer?).context("`flotilla dev` ended before it answered")?;
        if !answer.ok {
            bail!("{}", answer.message);
        }
        Ok(answer.message)
    }
}

/// Answers every caller, until the listener breaks.
pub(super) async fn serve(listener: UnixListener, fleet: &Arc<Fleet>) -> anyhow::Result<()> {
    loop {
        let (stream, _) = listener.accept().await.context("cannot listen for `flotilla dev node`")?;
        let fleet = Arc::clone(fleet);
        // In a task of its own: a node that takes long to stop must not keep the next caller waiting.
        tokio::spawn(async move {
            let mut touched = BTreeSet::new();
            if let Err(error) = converse(stream, &fleet, &mut touched).await {
                complain(format_args!("`flotilla dev node` was not answered: {error:#}"));
            }
            undo(&fleet, &touched).await;
        });
    }
}

/// Answers one caller; `touched` become the nodes that must run again when it is gone.
async fn converse(stream: UnixStream, fleet: &Fleet, touched: &mut BTreeSet<String>) -> anyhow::Result<()> {
    let mut stream = BufReader::new(stream);
    let first = tokio::time::timeout(ASK_WITHIN, read_line(&mut stream)).await;
    let mut asked = first.context("nothing asked")??;
    // Nothing: the caller is gone, or wanted to know only whether somebody listens.
    while !asked.is_empty() {
        if !answer(&mut stream, fleet, &asked, touched).await? {
            break;
        }
        asked = read_line(&mut stream).await?;
    }
    Ok(())
}

/// Does what one line asks and answers it; whether the caller may ask more.
async fn answer(
    stream: &mut BufReader<UnixStream>,
    fleet: &Fleet,
    asked: &str,
    touched: &mut BTreeSet<String>,
) -> anyhow::Result<bool> {
    let request = serde_json::from_str::<Request>(asked).context("cannot understand the request");
    let stays = request.as_ref().is_ok_and(|request| request.undo_at_end);
    let done = match &request {
        Ok(request) => {
            // Before it is done: the caller may be gone when it is.
            touched.extend(stays.then(|| request.node.clone()));
            perform(fleet, request).await
        }
        Err(error) => Err(anyhow::anyhow!("{error:#}")),
    };
    let answer = match done {
        Ok(message) => Answer { ok: true, message },
        Err(error) => Answer { ok: false, message: format!("{error:#}") },
    };
    say(&answer.message);
    stream.write_all(line(&answer)?.as_bytes()).await?;
    Ok(stays)
}

/// Lets these nodes run, whatever was done to them.
async fn undo(fleet: &Fleet, touched: &BTreeSet<String>) {
    for node in touched.iter().filter_map(|name| fleet.node(name).ok()) {
        let undone = match node.pid() {
            // A node that is not paused does not notice.
            Some(_) => node.signal(Signal::CONT),
            None => fleet.start(node, READY_WITHIN).await.map(say),
        };
        if let Err(error) = undone {
            complain(format_args!("{} does not run again: {error:#}", node.name));
        }
    }
}

async fn perform(fleet: &Fleet, request: &Request) -> anyhow::Result<String> {
    let node = fleet.node(&request.node)?;
    let again = |action| command(&fleet.home.dir, action, &node.name);
    match request.action {
        Action::Stop => {
            Ok(format!("{} stopped ({}). Start it again: {}", node.name, node.stop().await?, again(Action::Start)))
        }
        Action::Kill => {
            Ok(format!("{} killed ({}). Start it again: {}", node.name, node.kill().await?, again(Action::Start)))
        }
        Action::Pause => {
            node.signal(Signal::STOP)?;
            Ok(format!("{} paused. Let it go on: {}", node.name, again(Action::Resume)))
        }
        Action::Resume => {
            node.signal(Signal::CONT)?;
            Ok(format!("{} goes on", node.name))
        }
        Action::Start => fleet.start(node, READY_WITHIN).await,
        Action::Wipe => {
            node.wipe().await?;
            Ok(format!("{} has lost its data. Start it as a new node: {}", node.name, again(Action::Start)))
        }
    }
}

fn line(message: &impl Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string(message)? + "\n")
}

/// The next line, or nothing when the other side is gone.
async fn read_line(stream: &mut BufReader<UnixStream>) -> anyhow::Result<String> {
    let mut line = String::new();
    stream.take(MAX_LINE_BYTES).read_line(&mut line).await?;
    Ok(line)
}
