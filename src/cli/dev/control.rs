//! `flotilla dev node …`: one line of JSON to the supervisor, one line back.

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
pub(super) enum Action {
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
}

#[derive(Debug, Serialize, Deserialize)]
struct Request {
    action: Action,
    node: String,
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
    let mut stream = home::connect(dir).await?;
    let request = Request { action, node: node.to_owned() };
    stream.write_all(line(&request)?.as_bytes()).await?;
    let answer = tokio::time::timeout(ANSWER_WITHIN, read_line(&mut stream)).await;
    let answer = answer.context("`flotilla dev` does not answer: is it paused?")?;
    let answer: Answer = serde_json::from_str(&answer?).context("`flotilla dev` ended before it answered")?;
    if !answer.ok {
        bail!("{}", answer.message);
    }
    say(answer.message);
    Ok(())
}

/// Answers every caller, until the listener breaks.
pub(super) async fn serve(listener: UnixListener, fleet: &Arc<Fleet>) -> anyhow::Result<()> {
    loop {
        let (stream, _) = listener.accept().await.context("cannot listen for `flotilla dev node`")?;
        let fleet = Arc::clone(fleet);
        // In a task of its own: a node that takes long to stop must not keep the next caller waiting.
        tokio::spawn(async move {
            if let Err(error) = answer(stream, &fleet).await {
                complain(format_args!("`flotilla dev node` was not answered: {error:#}"));
            }
        });
    }
}

async fn answer(mut stream: UnixStream, fleet: &Fleet) -> anyhow::Result<()> {
    let request = tokio::time::timeout(ASK_WITHIN, read_line(&mut stream)).await.context("nothing asked")??;
    let done = match serde_json::from_str::<Request>(&request) {
        Ok(request) => perform(fleet, &request).await,
        Err(error) => Err(error).context("cannot understand the request"),
    };
    let answer = match done {
        Ok(message) => Answer { ok: true, message },
        Err(error) => Answer { ok: false, message: format!("{error:#}") },
    };
    say(&answer.message);
    stream.write_all(line(&answer)?.as_bytes()).await?;
    Ok(())
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
    }
}

fn line(message: &impl Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string(message)? + "\n")
}

async fn read_line(stream: &mut UnixStream) -> anyhow::Result<String> {
    let mut line = String::new();
    BufReader::new(stream.take(MAX_LINE_BYTES)).read_line(&mut line).await?;
    Ok(line)
}
