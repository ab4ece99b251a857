//! What the subcommands that ask a running node have in common.

use std::time::Duration;

use anyhow::Context as _;
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;

/// How long a node may take to answer.
const LIMIT: Duration = Duration::from_secs(15);

/// Which node to ask.
#[derive(Debug, clap::Args)]
pub(super) struct Node {
    /// Any node of the cluster
    #[arg(long, env = "FLOTILLA_URL", default_value = "http://127.0.0.1:5000")]
    pub(super) url: Url,
}

#[derive(Deserialize)]
struct Errors {
    errors: Vec<OneError>,
}

#[derive(Deserialize)]
struct OneError {
    code: String,
    message: String,
}

impl Node {
    /// A request for a path with its query, which may take as long as it likes.
    ///
    /// # Errors
    /// The HTTP client cannot be set up.
    pub(super) fn request(&self, method: Method, path: &str) -> anyhow::Result<RequestBuilder> {
        let mut client = Client::builder().connect_timeout(Duration::from_secs(3));
        if matches!(self.url.host_str(), Some("127.0.0.1" | "localhost" | "[::1]")) {
            // A proxy would look for the node on its own machine.
            client = client.no_proxy();
        }
        Ok(client.build()?.request(method, format!("{}{path}", self.url.as_str().trim_end_matches('/'))))
    }

    /// Sends a request and wants a success.
    ///
    /// # Errors
    /// No answer, or the reason that the node gave.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        fill: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> anyhow::Result<Response> {
        accepted(fill(self.request(method, path)?.timeout(LIMIT)).send().await, &self.url).await
    }

    /// Gets a JSON document.
    ///
    /// # Errors
    /// As [`Node::send`]; an answer of another form.
    pub(super) async fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> anyhow::Result<(T, Option<String>)> {
        let answer = self.send(Method::GET, path, |request| request).await?;
        let next = answer.headers().get("link").and_then(|link| link.to_str().ok()).and_then(next_of);
        Ok((answer.json().await.context("an answer of another form")?, next))
    }
}

/// The answer, if it is a success.
///
/// # Errors
/// No answer, or the reason that the node gave.
pub(super) async fn accepted(sent: reqwest::Result<Response>, url: &Url) -> anyhow::Result<Response> {
    let answer = sent.map_err(reqwest::Error::without_url).with_context(|| {
        format!("no answer from {url}: is the node running? Try another one with --url or FLOTILLA_URL")
    })?;
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let body = answer.text().await.unwrap_or_default();
    anyhow::bail!("{}", refusal(status, &body))
}

fn refusal(status: StatusCode, body: &str) -> String {
    match serde_json::from_str::<Errors>(body) {
        Ok(Errors { errors }) if !errors.is_empty() => {
            let reasons: Vec<_> =
                errors.into_iter().map(|error| format!("{} ({})", error.message, error.code)).collect();
            reasons.join("; ")
        }
        _ => format!("status {status}: {}", body.chars().take(200).collect::<String>().trim()),
    }
}

/// The path of a `Link` with `rel="next"`.
fn next_of(link: &str) -> Option<String> {
    let (path, parameters) = link.strip_prefix('<')?.split_once('>')?;
    parameters.contains("rel=\"next\"").then(|| path.to_owned())
}

/// Runs a subcommand that waits for the network.
///
/// # Errors
/// Its own.
pub(super) fn run<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_in_the_nodes_own_words() {
        let body = r#"{"errors":[{"code":"DENIED","message":"tag v1 is immutable","detail":null}]}"#;
        assert_eq!(refusal(StatusCode::FORBIDDEN, body), "tag v1 is immutable (DENIED)");
        assert_eq!(refusal(StatusCode::BAD_GATEWAY, "<html>"), "status 502 Bad Gateway: <html>");
    }

    #[test]
    fn the_next_page_is_read_from_its_link() {
        assert_eq!(
            next_of("</v2/a/tags/list?n=2&last=b>; rel=\"next\"").as_deref(),
            Some("/v2/a/tags/list?n=2&last=b")
        );
        assert_eq!(next_of("</x>; rel=\"prev\""), None);
    }
}
