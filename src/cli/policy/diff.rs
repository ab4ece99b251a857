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
        if let (Some(name), Some(from)) = (&self.name, self.from) {
            let (former, later) = (self.document(name, Some(from)).await?, self.document(name, self.to).await?);
            let at = |revision: Option<u64>| revision.map_or("in force".to_owned(), |number| number.to_string());
            say((&former, &format!("{name}@{from}")), (&later, &format!("{name}@{}", at(self.to))));
        }
        if let Some(file) = &self.file {
            let text = crate::cli::read_document(file)?;
            let policies = parse_all(&text).with_context(|| file.display().to_string())?;
            let (Listed { policies: present }, _) = self.node.get("/api/v1/policies").await?;
            let present: BTreeSet<String> = present.into_iter().map(|policy| policy.name).collect();
            for (document, policy) in policies {
                let former = match present.contains(policy.name.as_str()) {
                    true => self.document(&policy.name, None).await?,
                    false => String::new(),
                };
                say((&former, &format!("{}@in force", policy.name)), (document, &file.display().to_string()));
            }
        }
        Ok(())
    }

    async fn document(&self, name: &PolicyName, at: Option<u64>) -> anyhow::Result<String> {
        let query = at.map_or_else(String::new, |revision| format!("?revision={revision}"));
        let answer = self.node.send(Method::GET, &format!("{}{query}", path(name)), |request| request).await?;
        Ok(answer.text().await?)
    }
}

fn say((former, former_name): (&str, &str), (later, later_name): (&str, &str)) {
    // How a file ends is no difference between policies.
    let ended = |text: &str| format!("{}\n", text.trim_end());
    let (former, later) = (ended(former), ended(later));
    let difference = TextDiff::from_lines(&former, &later);
    let unified = difference.unified_diff().header(former_name, later_name).to_string();
    if !unified.is_empty() {
        crate::cli::say(unified.trim_end());
    }
}
