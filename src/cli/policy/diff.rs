//! `flotilla policy diff`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Context as _;
use flotilla_raft::PolicyName;
use reqwest::Method;
use similar::TextDiff;

use super::{Listed, path};
use crate::admission::policy::parse_all;
use crate::cli::api::Node;

/// Show what changed in a policy, or what `apply` of a file would change.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["name", "file"]))]
pub(in crate::cli) struct Diff {
    #[arg(requires = "from")]
    name: Option<PolicyName>,

    /// The version that was in force at this revision
    #[arg(long, value_name = "REVISION", requires = "name")]
    from: Option<u64>,

    /// Is compared with the one at this revision; default: with that in force
    #[arg(long, value_name = "REVISION", requires = "from")]
    to: Option<u64>,

    /// The policies in force are compared with those of this file; `-` is standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,

    #[command(flatten)]
    node: Node,
}

impl Diff {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let (Listed { policies: present }, _) = self.node.get("/api/v1/policies").await?;
        let present: BTreeSet<String> = present.into_iter().map(|policy| policy.name).collect();
        if let (Some(name), Some(from)) = (&self.name, self.from) {
            let former = Named { name: format!("{name}@{from}"), text: self.document(name, Some(from)).await? };
            let later = match self.to {
                Some(to) => Named { name: format!("{name}@{to}"), text: self.document(name, Some(to)).await? },
                None => self.in_force(name, &present).await?,
            };
            say(&former, &later);
        }
        if let Some(file) = &self.file {
            let text = crate::cli::read_document(file)?;
            for (document, policy) in parse_all(&text).with_context(|| file.display().to_string())? {
                let later = Named { name: file.display().to_string(), text: document.to_owned() };
                say(&self.in_force(&policy.name, &present).await?, &later);
            }
        }
        Ok(())
    }

    /// Nothing, where there is no such policy.
    async fn in_force(&self, name: &PolicyName, present: &BTreeSet<String>) -> anyhow::Result<Named> {
        match present.contains(name.as_str()) {
            true => Ok(Named { name: format!("{name}@in force"), text: self.document(name, None).await? }),
            false => Ok(Named { name: format!("{name} (none)"), text: String::new() }),
        }
    }

    async fn document(&self, name: &PolicyName, at: Option<u64>) -> anyhow::Result<String> {
        let query = at.map_or_else(String::new, |revision| format!("?revision={revision}"));
        let answer = self.node.send(Method::GET, &format!("{}{query}", path(name)), |request| request).await?;
        Ok(answer.text().await?)
    }
}

/// A document, and what it is called in a difference.
struct Named {
    name: String,
    text: String,
}

fn say(former: &Named, later: &Named) {
    // How a file ends is no difference between policies.
    let ended = |text: &str| if text.is_empty() { String::new() } else { format!("{}\n", text.trim_end()) };
    let (former_text, later_text) = (ended(&former.text), ended(&later.text));
    let difference = TextDiff::from_lines(&former_text, &later_text);
    let unified = difference.unified_diff().header(&former.name, &later.name).to_string();
    if !unified.is_empty() {
        crate::cli::say(unified.trim_end());
    }
}
