//! `flotilla settings`: what all nodes share.

use std::path::PathBuf;
use std::process::ExitCode;

use reqwest::Method;

use super::api::{self, Node};

/// See and replace the settings that all nodes share.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Settings {
    Get(Get),
    Apply(Apply),
}

/// Print the settings, a JSON document.
#[derive(Debug, clap::Args)]
pub(super) struct Get {
    #[command(flatten)]
    node: Node,
}

/// Replace the settings by a JSON document.
#[derive(Debug, clap::Args)]
pub(super) struct Apply {
    /// The document; `-` is standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,

    /// Only if the settings still have this revision
    #[arg(long, value_name = "REVISION")]
    if_match: Option<u64>,

    #[command(flatten)]
    node: Node,
}

impl Settings {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        api::run(async {
            match self {
                Self::Get(get) => get.run().await,
                Self::Apply(apply) => apply.run().await,
            }
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Get {
    async fn run(self) -> anyhow::Result<()> {
        let answer = self.node.send(Method::GET, "/api/v1/settings", |request| request).await?;
        super::say(answer.text().await?.trim_end());
        Ok(())
    }
}

impl Apply {
    async fn run(self) -> anyhow::Result<()> {
        let document = super::read_document(&self.file)?;
        let fill = |request: reqwest::RequestBuilder| match self.if_match {
            Some(revision) => request.body(document).header("if-match", format!("\"{revision}\"")),
            None => request.body(document),
        };
        let answer = self.node.send(Method::PUT, "/api/v1/settings", fill).await?;
        let revision = answer.headers().get("flotilla-revision").and_then(|value| value.to_str().ok());
        super::say(format_args!("done at revision {}", revision.unwrap_or("?")));
        Ok(())
    }
}
