//! `flotilla gc`: what nothing uses, and its collection.

use std::process::ExitCode;

use bytesize::ByteSize;
use flotilla_storage::Digest;
use reqwest::Method;
use serde::Deserialize;
use serde_json::Value;

use super::api::{self, Node};

/// See what nothing uses, why, and have it collected.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Gc {
    Plan(Plan),
    Run(Run),
    Explain(Explain),
}

/// Print what nothing uses, and when it goes.
#[derive(Debug, clap::Args)]
pub(super) struct Plan {
    /// Only what would go now
    #[arg(long)]
    due: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    node: Node,
}

/// Collect what is due, now. The leader does so by itself as well.
#[derive(Debug, clap::Args)]
pub(super) struct Run {
    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    node: Node,
}

/// Print who holds a digest, and when it goes.
#[derive(Debug, clap::Args)]
pub(super) struct Explain {
    /// The digest of a blob or manifest
    digest: Digest,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    node: Node,
}

impl Gc {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        api::run(async {
            match self {
                Self::Plan(plan) => plan.run().await,
                Self::Run(run) => run.run().await,
                Self::Explain(explain) => explain.run().await,
            }
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Deserialize)]
struct Planned {
    candidates: Vec<Candidate>,
    more: bool,
}

#[derive(Deserialize)]
struct Candidate {
    kind: String,
    repository: Option<String>,
    digest: Option<String>,
    unused_since: String,
    due_at: String,
    due: bool,
}

impl Plan {
    async fn run(self) -> anyhow::Result<()> {
        let (answer, _): (Value, _) = self.node.get("/api/v1/gc/plan").await?;
        if self.json {
            super::say(answer);
            return Ok(());
        }
        let Planned { candidates, more } = serde_json::from_value(answer)?;
        let mut table = super::table(["kind", "repository", "digest", "unused since", "goes"]);
        for one in candidates.into_iter().filter(|one| one.due || !self.due) {
            let goes = if one.due { "now".to_owned() } else { one.due_at };
            table.add_row([
                one.kind,
                one.repository.unwrap_or_default(),
                one.digest.unwrap_or_default(),
                one.unused_since,
                goes,
            ]);
        }
        match table.is_empty() {
            true => super::say("nothing"),
            false => super::say(table.trim_fmt()),
        }
        if more {
            super::say("and more");
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Ran {
    revision: u64,
    manifests: u64,
    untagged: u64,
    links: u64,
    blobs: u64,
    bytes: u64,
    orphans: u64,
}

impl Run {
    async fn run(self) -> anyhow::Result<()> {
        let sent = self.node.request(Method::POST, "/api/v1/gc/run")?.send().await;
        let answer = api::accepted(sent, &self.node.url).await?;
        let answer: Value = answer.json().await?;
        if self.json {
            super::say(answer);
            return Ok(());
        }
        let ran: Ran = serde_json::from_value(answer)?;
        super::say(format_args!(
            "at revision {}: {} manifests without a tag were deleted, {} blobs left their repositories, {} former manifests were forgotten; {} digests with {} and {} files without a name are being removed from every node",
            ran.revision,
            ran.untagged,
            ran.links,
            ran.manifests,
            ran.blobs,
            ByteSize(ran.bytes),
            ran.orphans
        ));
        Ok(())
    }
}

impl Explain {
    async fn run(self) -> anyhow::Result<()> {
        let (answer, _): (Value, _) = self.node.get(&format!("/api/v1/gc/blobs/{}", self.digest)).await?;
        if self.json {
            super::say(answer);
            return Ok(());
        }
        explanation(&answer).into_iter().for_each(super::say);
        Ok(())
    }
}

/// One line for each reason that keeps a digest, or that lets it go.
fn explanation(answer: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let size = answer["size"].as_u64().unwrap_or(0);
    let mut lines = vec![format!("{} ({})", text(&answer["digest"]), ByteSize(size))];
    for place in answer["repositories"].as_array().into_iter().flatten() {
        let repository = text(&place["repository"]);
        if place["manifest"].is_object() {
            lines.push(format!("stays: a manifest of {repository}"));
        }
        let former = &place["former_manifest"];
        if former.is_object() {
            let (deleted, due) = (text(&former["deleted"]), text(&former["due_at"]));
            lines.push(format!(
                "stays until {due}: a manifest of {repository}, deleted {deleted}, that the history of its tags names"
            ));
        }
        let blob = &place["blob"];
        if !blob.is_object() {
            continue;
        }
        match blob["uses"].as_u64().unwrap_or(0) {
            0 => {
                let (since, due) = (text(&blob["unused_since"]), text(&blob["due_at"]));
                lines.push(format!("leaves {repository} at {due}: no manifest names it, since {since}"));
            }
            uses => {
                let named_by: Vec<_> = blob["named_by"].as_array().into_iter().flatten().map(text).collect();
                lines
                    .push(format!("stays: a blob of {repository}, named by {uses} manifests: {}", named_by.join(", ")));
            }
        }
    }
    if answer["due_at"].is_string() {
        let (since, due) = (text(&answer["unused_since"]), text(&answer["due_at"]));
        lines.push(format!("goes at {due}: no repository holds it, since {since}"));
    }
    if answer["more"] == true {
        lines.push("and more repositories".into());
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_reason_has_its_line() {
        let answer = json!({
            "digest": "sha256:aa", "size": 2048, "more": false,
            "repositories": [
                {"repository": "a", "blob": {"uses": 1, "named_by": ["sha256:bb"]}},
                {"repository": "b", "blob": {"uses": 0, "named_by": [], "unused_since": "S", "due_at": "D"}},
            ],
        });
        assert_eq!(
            explanation(&answer),
            [
                "sha256:aa (2.0 KiB)",
                "stays: a blob of a, named by 1 manifests: sha256:bb",
                "leaves b at D: no manifest names it, since S",
            ]
        );
    }
}
