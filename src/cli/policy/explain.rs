//! `flotilla policy explain`.

use anyhow::Context as _;
use serde::Deserialize;

use crate::cli::api::Node;

/// Say why an image may run in a namespace, or not: each policy and rule.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Explain {
    /// As a container names it
    image: String,

    #[arg(short, long)]
    namespace: String,

    /// Print the answer as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    node: Node,
}

#[derive(Deserialize)]
struct Explained {
    allowed: bool,
    revision: u64,
    reference: Option<String>,
    not_valid: Option<String>,
    digest: Option<String>,
    runs_as: Option<String>,
    refusal: Option<String>,
    stale: bool,
    policies: Vec<ExplainedPolicy>,
}

#[derive(Deserialize)]
struct ExplainedPolicy {
    name: String,
    mode: String,
    revision: u64,
    rules: Vec<ExplainedRule>,
    findings: Vec<ExplainedFinding>,
}

#[derive(Deserialize)]
struct ExplainedRule {
    name: String,
    verb: String,
    matches: bool,
}

#[derive(Deserialize)]
struct ExplainedFinding {
    rule: Option<String>,
    effect: String,
    reason: String,
}

impl Explain {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let encoded = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
        let (image, namespace) = (encoded(&self.image), encoded(&self.namespace));
        let path = format!("/api/v1/admission/explain?image={image}&namespace={namespace}");
        let (answer, _) = self.node.get::<serde_json::Value>(&path).await?;
        if self.json {
            crate::cli::say(answer);
            return Ok(());
        }
        let explained: Explained = serde_json::from_value(answer).context("an answer of another form")?;
        let verdict = if explained.allowed { "may run" } else { "may not run" };
        crate::cli::say(format_args!(
            "{} {verdict} in namespace {} (revision {})",
            self.image, self.namespace, explained.revision
        ));
        crate::cli::say(format_args!("  means {}", explained.reference.or(explained.not_valid).unwrap_or_default()));
        crate::cli::say(format_args!("  digest {}", explained.digest.as_deref().unwrap_or("not known here")));
        if let Some(runs_as) = explained.runs_as.filter(|text| *text != self.image) {
            crate::cli::say(format_args!("  runs as {runs_as}"));
        }
        if let Some(refusal) = explained.refusal {
            crate::cli::say(format_args!("  nothing is decided: {refusal}"));
        }
        if explained.stale {
            crate::cli::say("  by state that may be old: no majority of the nodes answers");
        }
        if explained.policies.is_empty() {
            crate::cli::say("  no policy is about this namespace");
        }
        for policy in explained.policies {
            crate::cli::say(format_args!("policy {} ({}, revision {})", policy.name, policy.mode, policy.revision));
            for rule in policy.rules {
                let is = if rule.matches { "is about it" } else { "is not about it" };
                crate::cli::say(format_args!("  {} {}: {is}", rule.verb, rule.name));
            }
            for finding in policy.findings {
                let rule = finding.rule.map_or_else(String::new, |rule| format!(" by {rule}"));
                crate::cli::say(format_args!("  {}{rule}: {}", finding.effect, finding.reason));
            }
        }
        Ok(())
    }
}
