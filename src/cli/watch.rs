//! `flotilla watch`: every change of names, as it happens.

use std::process::ExitCode;
use std::time::Duration;

use futures::StreamExt as _;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, StatusCode};

use super::api::{self, Node};

/// The pause before a connection that broke is made again.
const PAUSE: Duration = Duration::from_secs(1);

/// A node says something each 15 seconds; after this long it is taken for dead.
const SILENCE: Duration = Duration::from_secs(45);

/// The longest event that is read, in bytes.
const EVENT_MAX: usize = 1 << 20;

/// Print every change of tags and manifests, one JSON object a line, until interrupted.
///
/// A connection that breaks is made again, and goes on where it was: nothing is lost or told twice.
#[derive(Debug, clap::Args)]
pub(super) struct Watch {
    /// Begin after this revision, or after the event of this id; default: with what happens from now on
    #[arg(long, value_name = "REVISION")]
    since: Option<String>,

    /// Only repositories of this pattern, such as team/**
    #[arg(long, value_name = "GLOB")]
    repository: Option<String>,

    #[command(flatten)]
    node: Node,
}

impl Watch {
    pub(super) fn run(mut self) -> anyhow::Result<ExitCode> {
        api::run(async {
            loop {
                match self.follow().await {
                    Ok(()) => {}
                    // What the node refuses will not become right by asking again.
                    Err(Broken::Refused(error)) => return Err(error),
                    Err(Broken::Connection(error)) => super::complain(format_args!("{error:#}; trying again")),
                }
                tokio::time::sleep(PAUSE).await;
            }
        })
    }

    /// Prints what comes, and remembers how far that was, until the connection ends.
    async fn follow(&mut self) -> Result<(), Broken> {
        let mut query = Vec::new();
        for (name, value) in [("since", &self.since), ("repository", &self.repository)] {
            query
                .extend(value.as_ref().map(|value| format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC))));
        }
        let request = self.node.request(Method::GET, &format!("/api/v1/watch?{}", query.join("&")));
        let sent = request.map_err(Broken::Refused)?.send().await;
        let is_refused = sent
            .as_ref()
            .is_ok_and(|answer| answer.status().is_client_error() && answer.status() != StatusCode::TOO_MANY_REQUESTS);
        let answer = api::accepted(sent, &self.node.url).await;
        let answer = answer.map_err(if is_refused { Broken::Refused } else { Broken::Connection })?;
        if self.since.is_none() {
            let revision = answer.headers().get("flotilla-revision").and_then(|value| value.to_str().ok());
            self.since = revision.map(str::to_owned);
        }
        let (mut chunks, mut text) = (answer.bytes_stream(), Vec::new());
        let lost = |error: &str| Broken::Connection(anyhow::anyhow!("{error}"));
        while let Some(chunk) = tokio::time::timeout(SILENCE, chunks.next()).await.map_err(|_| lost("no word came"))? {
            text.extend_from_slice(&chunk.map_err(|error| Broken::Connection(error.without_url().into()))?);
            while let Some(end) = text.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = text.drain(..end + 2).collect();
                self.tell(&String::from_utf8_lossy(&event));
            }
            if text.len() > EVENT_MAX {
                return Err(lost("an event without an end"));
            }
        }
        Ok(())
    }

    fn tell(&mut self, event: &str) {
        let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let (Some(id), Some(name), Some(data)) = (field("id:"), field("event:"), field("data:")) else { return };
        super::say(format_args!("{{\"id\":\"{id}\",\"event\":\"{name}\",\"data\":{data}}}"));
        self.since = Some(id.to_owned());
    }
}

enum Broken {
    /// The node will not.
    Refused(anyhow::Error),
    /// It may be there again in a moment.
    Connection(anyhow::Error),
}
