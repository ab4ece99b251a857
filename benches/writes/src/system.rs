//! What the measurement asks of a system under test.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;

use crate::names::Names;

/// A running cluster of three.
#[async_trait]
pub trait System: Send + Sync {
    /// Its name, as the report shows it.
    fn name(&self) -> &'static str;

    /// The version of the program that runs.
    fn version(&self) -> &str;

    /// Its server processes.
    fn pids(&self) -> &[i32];

    /// What its names hold.
    fn names(&self) -> &Arc<Names>;

    /// The number of the node that leads.
    async fn leader(&self) -> Result<usize>;

    /// Clients of one node with a connection each.
    async fn connect(&self, leader: usize, clients: usize) -> Result<Vec<Box<dyn Client>>>;

    /// How often one node has synced its log to the disk since it started.
    async fn log_syncs(&self, node: usize) -> Result<u64>;

    /// Fails unless every name holds what was acknowledged last, read through another node than the leader.
    async fn check(&self) -> Result<()>;
}

/// Writes one thing after another.
#[async_trait]
pub trait Client: Send {
    /// Points a name at one of the two values; returns once that is durable on a majority.
    async fn put(&mut self, name: usize, value: usize) -> Result<()>;
}

/// Reads a counter from a page of metrics.
pub async fn counter(http: &reqwest::Client, url: &str, name: &str) -> Result<u64> {
    let page = http.get(url).send().await?.error_for_status()?.text().await?;
    find_counter(&page, name).with_context(|| format!("no counter {name} at {url}"))
}

fn find_counter(page: &str, name: &str) -> Option<u64> {
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    // Go writes large counters with an exponent.
    value.split_whitespace().next()?.parse::<f64>().ok().map(|value| value as u64)
}

/// Fails with the first of the names that does not hold what it should.
pub fn expect_held<'a>(names: &Names, held: impl Fn(usize) -> Option<&'a str>, values: [&str; 2]) -> Result<()> {
    for name in 0..crate::names::NAMES {
        let Some(value) = names.expected(name) else { continue };
        let (got, want) = (held(name).unwrap_or("nothing"), values[value]);
        if got != want {
            bail!("name {name} holds {got}, but {want} was acknowledged last");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_whole_and_in_both_forms() {
        let page = "# HELP syncs Syncs.\nsyncs_total_other 3\nsyncs_total 12\nlarge_total 1.5e+06\n";
        assert_eq!(find_counter(page, "syncs_total"), Some(12));
        assert_eq!(find_counter(page, "large_total"), Some(1_500_000));
        assert_eq!(find_counter(page, "syncs"), None);
    }

    #[test]
    fn a_lost_write_is_noticed() {
        let names = Names::new();
        let holds = |value: &'static str| move |_| Some(value);
        assert!(expect_held(&names, holds("b"), ["a", "b"]).is_ok());
        names.wrote(9, 0);
        assert!(expect_held(&names, holds("b"), ["a", "b"]).is_err());
        names.doubt(9);
        assert!(expect_held(&names, holds("b"), ["a", "b"]).is_ok());
    }
}
