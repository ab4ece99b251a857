//! One promise of docs/INVARIANTS.md per file. A checker reads a history and names each operation that breaks the promise.

mod acknowledged;
mod failed_pulls;
mod fresh_tags;

pub use acknowledged::lost_pushes;
pub use failed_pulls::{Outage, failed_pulls};
pub use fresh_tags::stale_reads;

use anyhow::ensure;

/// An error that lists the first violations, if there are any.
pub fn none_of(what: &str, violations: &[String]) -> anyhow::Result<()> {
    let shown: Vec<&str> = violations.iter().take(5).map(String::as_str).collect();
    ensure!(violations.is_empty(), "{} × {what}, such as:\n  {}", violations.len(), shown.join("\n  "));
    Ok(())
}
