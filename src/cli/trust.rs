//! `flotilla node token` and `flotilla node rotate-authority`: by what nodes believe each other.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde::Deserialize;

use super::api::Node;
use crate::auth::peers::api::{Authorities, NewToken};
use crate::auth::peers::authority::Fingerprint;
use crate::auth::peers::join::Token;

/// How long a rotation is watched.
const ROTATION_LIMIT: Duration = Duration::from_secs(300);
const LOOK_EACH: Duration = Duration::from_millis(500);

/// Make and list tokens, each of which lets one node join.
#[derive(Debug, clap::Subcommand)]
pub(super) enum TokenCommand {
    Create(Create),
    List(List),
}

/// Print a token: in a file that `join_token_file` names, it lets one node join.
///
/// It is used up by the first node that joins by it. Its secret stays with you: the cluster keeps only what checks it.
#[derive(Debug, clap::Args)]
pub(super) struct Create {
    /// How long it is good, 30 days at most
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
    ttl: Duration,

    #[command(flatten)]
    node: Node,
}

/// List the tokens, those included that ended a short time ago.
#[derive(Debug, clap::Args)]
pub(super) struct List {
    #[command(flatten)]
    node: Node,
}

/// Put another authority in the place of the one that signs the nodes' certificates.
///
/// All members trust both first, then get certificates of the new one, then the old one goes. This waits for all members; one
/// that is away for good must be removed first, or the rotation finished without it.
#[derive(Debug, clap::Args)]
pub(super) struct RotateAuthority {
    /// End the rotation that is under way without members that do not answer: to be believed again they must prove anew that
    /// they may join
    #[arg(long)]
    finish: bool,

    #[command(flatten)]
    node: Node,
}

#[derive(Deserialize)]
struct Tokens {
    tokens: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    id: String,
    ends_at: u64,
    used_by: Option<String>,
}

impl TokenCommand {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Create(create) => create.run().await,
            Self::List(list) => list.run().await,
        }
    }
}

impl Create {
    async fn run(self) -> anyhow::Result<()> {
        let (known, _) = self.node.get::<Authorities>("/api/v1/authority").await?;
        let signer = known.authorities.iter().find(|authority| authority.signs);
        let fingerprint = signer.and_then(|signer| Fingerprint::parse(&signer.fingerprint));
        let token = Token::make(fingerprint.context("the node names no authority")?);
        let asked = NewToken {
            id: token.id.clone(),
            authority: STANDARD.encode(token.authority()?.certificate()),
            lifetime_ms: self.ttl.as_millis().try_into().context("--ttl")?,
        };
        self.node.send(Method::POST, "/api/v1/tokens", |request| request.json(&asked)).await?;
        super::say(token);
        Ok(())
    }
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let (listed, _) = self.node.get::<Tokens>("/api/v1/tokens").await?;
        let mut table = super::table(["id", "ends", "used by"]);
        for token in listed.tokens {
            let ends = std::time::UNIX_EPOCH + Duration::from_secs(token.ends_at);
            let ends = humantime::format_rfc3339_seconds(ends).to_string();
            table.add_row([token.id, ends, token.used_by.unwrap_or_default()]);
        }
        super::say(table.trim_fmt());
        Ok(())
    }
}

impl RotateAuthority {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let path = format!("/api/v1/authority/rotate?finish={}", self.finish);
        // Ending it may take a while, and is told below.
        self.node.send(Method::POST, &path, |request| request.timeout(ROTATION_LIMIT)).await?;
        let (began, mut said) = (Instant::now(), String::new());
        loop {
            let (known, _) = self.node.get::<Authorities>("/api/v1/authority").await?;
            let Some(step) = known.step else {
                let signer = known.authorities.first().map_or("", |authority| authority.fingerprint.as_str());
                super::say(format_args!("done: the authority is {signer}"));
                return Ok(());
            };
            let line = match known.waits_for.is_empty() {
                true => step,
                false => format!("{step}: waiting for {}", known.waits_for.join(", ")),
            };
            if began.elapsed() > ROTATION_LIMIT {
                bail!(
                    "still under way: {line}. It goes on by itself; `--finish` ends it without members that are away"
                );
            }
            if line != said {
                super::say(&line);
                said = line;
            }
            tokio::time::sleep(LOOK_EACH).await;
        }
    }
}
