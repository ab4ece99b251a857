//! Waiting for a condition, with a deadline.

use std::time::{Duration, Instant};

use anyhow::bail;

const PAUSE: Duration = Duration::from_millis(20);

/// Asks `probe` again and again until it has an answer; an error that says `what` did not come after `within`.
pub async fn until<T>(within: Duration, what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> anyhow::Result<T> {
    let began = Instant::now();
    loop {
        if let Some(answer) = probe().await {
            return Ok(answer);
        }
        if began.elapsed() > within {
            bail!("not within {within:?}: {what}");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// [`until`] for a probe that can say why it is not satisfied: the last reason becomes part of the error.
pub async fn until_ok<T>(
    within: Duration,
    what: &str,
    mut probe: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let began = Instant::now();
    loop {
        match probe().await {
            Ok(answer) => return Ok(answer),
            Err(reason) if began.elapsed() > within => {
                return Err(reason.context(format!("not within {within:?}: {what}")));
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}
