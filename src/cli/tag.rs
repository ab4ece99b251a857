//! `flotilla tag`: tags, as they are and as they were.

use std::process::ExitCode;
use std::str::FromStr;

use flotilla_raft::{RepositoryName, Tag};
use flotilla_storage::Digest;
use reqwest::Method;
use serde::Deserialize;
use serde_json::json;

use super::api::{self, Node};

/// List tags, see their history, move them.
#[derive(Debug, clap::Subcommand)]
pub(super) enum TagCommand {
    List(List),
    History(History),
    Rollback(Rollback),
    Move(Move),
}

/// Print the tags of a repository, one a line.
#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// The repository
    repository: RepositoryName,

    /// As they were at this revision
    #[arg(long)]
    revision: Option<u64>,

    #[command(flatten)]
    node: Node,
}

/// Print what a tag pointed at, the newest first.
#[derive(Debug, clap::Args)]
pub(super) struct History {
    /// The tag, as `repository:tag`
    #[arg(value_name = "REPOSITORY:TAG")]
    tag: TagName,

    /// Print JSON, one version a line
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    node: Node,
}

/// Point a tag again at what it pointed at then.
#[derive(Debug, clap::Args)]
pub(super) struct Rollback {
    /// The tag, as `repository:tag`
    #[arg(value_name = "REPOSITORY:TAG")]
    tag: TagName,

    /// The revision to go back to, as `flotilla tag history` prints it
    #[arg(long, value_name = "REVISION")]
    to: u64,

    /// Only if the tag points at this digest now
    #[arg(long, value_name = "DIGEST")]
    if_match: Option<Digest>,

    #[command(flatten)]
    node: Node,
}

/// Point tags at manifests of their repositories, or remove them: all at once, or none.
#[derive(Debug, clap::Args)]
pub(super) struct Move {
    /// A tag and the digest that it shall point at, or `-` to remove it; several are changed together
    #[arg(value_name = "REPOSITORY:TAG=DIGEST", required = true)]
    changes: Vec<Change>,

    #[command(flatten)]
    node: Node,
}

/// `repository:tag`
#[derive(Debug, Clone)]
struct TagName {
    repository: RepositoryName,
    tag: Tag,
}

impl FromStr for TagName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (repository, tag) = text.rsplit_once(':').ok_or("is not of the form repository:tag")?;
        let repository = repository.parse().map_err(|error| format!("repository: {error}"))?;
        Ok(Self { repository, tag: tag.parse().map_err(|error| format!("tag: {error}"))? })
    }
}

/// `repository:tag=digest`
#[derive(Debug, Clone)]
struct Change {
    name: TagName,
    digest: Option<Digest>,
}

impl FromStr for Change {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, digest) = text.split_once('=').ok_or("is not of the form repository:tag=digest")?;
        let digest = match digest {
            "-" => None,
            digest => Some(digest.parse().map_err(|error| format!("digest: {error}"))?),
        };
        Ok(Self { name: name.parse()?, digest })
    }
}

#[derive(Deserialize)]
struct Tags {
    tags: Vec<String>,
}

#[derive(Deserialize)]
struct Versions {
    history: Vec<Version>,
}

#[derive(Deserialize, serde::Serialize)]
struct Version {
    revision: u64,
    digest: Option<String>,
    time: String,
    actor: String,
}

#[derive(Deserialize)]
struct Changed {
    revision: u64,
}

impl TagCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        api::run(async {
            match self {
                Self::List(list) => list.run().await,
                Self::History(history) => history.run().await,
                Self::Rollback(rollback) => rollback.run().await,
                Self::Move(change) => change.run().await,
            }
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let past = self.revision.map_or_else(String::new, |revision| format!("?revision={revision}"));
        let mut next = Some(format!("/v2/{}/tags/list{past}", self.repository));
        while let Some(path) = next {
            let (page, after): (Tags, _) = self.node.get(&path).await?;
            page.tags.into_iter().for_each(super::say);
            next = after;
        }
        Ok(())
    }
}

impl History {
    async fn run(self) -> anyhow::Result<()> {
        let mut table = super::table(["revision", "digest", "time", "actor"]);
        let mut next = Some(format!("{}/history", self.tag.path()));
        while let Some(path) = next {
            let (page, after): (Versions, _) = self.node.get(&path).await?;
            for version in page.history {
                if self.json {
                    super::say(serde_json::to_string(&version)?);
                } else {
                    let digest = version.digest.unwrap_or_else(|| "(removed)".into());
                    table.add_row([version.revision.to_string(), digest, version.time, version.actor]);
                }
            }
            next = after;
        }
        if !self.json {
            super::say(table.trim_fmt());
        }
        Ok(())
    }
}

impl Rollback {
    async fn run(self) -> anyhow::Result<()> {
        let path = format!("{}/rollback", self.tag.path());
        let fill = |request: reqwest::RequestBuilder| {
            let request = request.json(&json!({ "revision": self.to }));
            match &self.if_match {
                Some(digest) => request.header("if-match", format!("\"{digest}\"")),
                None => request,
            }
        };
        let changed: Changed = self.node.send(Method::POST, &path, fill).await?.json().await?;
        super::say(format_args!("done at revision {}", changed.revision));
        Ok(())
    }
}

impl Move {
    async fn run(self) -> anyhow::Result<()> {
        let change = |change: &Change| {
            let digest = change.digest.map(|digest| digest.to_string());
            json!({ "repository": change.name.repository, "tag": change.name.tag, "digest": digest })
        };
        let body = json!({ "changes": self.changes.iter().map(change).collect::<Vec<_>>() });
        let answer = self.node.send(Method::POST, "/api/v1/transactions", |request| request.json(&body)).await?;
        let changed: Changed = answer.json().await?;
        super::say(format_args!("done at revision {}", changed.revision));
        Ok(())
    }
}

impl TagName {
    fn path(&self) -> String {
        format!("/api/v1/repositories/{}/tags/{}", self.repository, self.tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_names_tag_and_digest() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let change: Change = format!("team/app:v1={digest}").parse().unwrap();
        assert_eq!((change.name.repository.as_str(), change.name.tag.as_str()), ("team/app", "v1"));
        assert_eq!(change.digest, Some(digest.parse().unwrap()));
        assert_eq!("a:b=-".parse::<Change>().unwrap().digest, None);
        for odd in ["a:b", "a=b", "A:b=-", "a:b=sha256:1"] {
            assert!(odd.parse::<Change>().is_err(), "{odd}");
        }
    }
}
