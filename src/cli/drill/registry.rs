//! The cluster as a client of the registry sees it: requests that go to the next node where one does not serve them,
//! as containerd does with its mirrors.

use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, LOCATION, WARNING};
use reqwest::{Client, Method, RequestBuilder, StatusCode, Url};

use super::image::{Image, MANIFEST, digest};
use crate::cli::dev::DescribedNode;

/// A node may let a request wait ten seconds while a leader is elected; then it must have answered.
const REQUEST_WITHIN: Duration = Duration::from_secs(12);
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// More than any answer that a drill asks for.
const BODY_MAX_BYTES: usize = 1 << 20;
/// How much of a refusal is kept as its reason.
const REASON_MAX_CHARS: usize = 200;

/// What a client knows about the end of its operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Acknowledged.
    Ok,
    /// It had no effect, and never will.
    Failed,
    /// It may have had its effect, or may yet.
    Unknown,
}

/// Why an operation was not acknowledged.
#[derive(Clone, Debug)]
pub(super) struct Trouble {
    pub(super) outcome: Outcome,
    /// Of the last answer, if there was one.
    pub(super) status: Option<StatusCode>,
    pub(super) reason: String,
}

/// An answer whose status is a success.
#[derive(Debug)]
struct Answer {
    headers: HeaderMap,
    body: Bytes,
    /// An attempt before it may take effect later, so that what this answer says need not stay true.
    is_disputed: bool,
}

/// One attempt at one node that was not a success.
#[derive(Debug)]
struct Refusal {
    status: Option<StatusCode>,
    /// Nothing reached the node.
    is_unsent: bool,
    reason: String,
}

impl Trouble {
    /// It had no effect, and never will.
    pub(super) fn failed(reason: impl Into<String>) -> Self {
        Self { outcome: Outcome::Failed, status: None, reason: reason.into() }
    }
}

/// A client of all nodes.
#[derive(Clone, Debug)]
pub(super) struct Registry {
    http: Client,
    nodes: Vec<DescribedNode>,
}

impl Registry {
    /// # Errors
    /// The HTTP client cannot be set up.
    pub(super) fn new(nodes: Vec<DescribedNode>) -> anyhow::Result<Self> {
        let http = Client::builder()
            .no_proxy()
            .connect_timeout(CONNECT_WITHIN)
            .timeout(REQUEST_WITHIN)
            .build()
            .context("cannot make an HTTP client")?;
        Ok(Self { http, nodes })
    }

    pub(super) fn nodes(&self) -> &[DescribedNode] {
        &self.nodes
    }

    /// Pushes config, layer and manifest, beginning at that node; whether the acknowledgement is disputed.
    ///
    /// # Errors
    /// No node acknowledged it.
    pub(super) async fn push(&self, first: usize, place: &Place, image: &Image) -> Result<bool, Trouble> {
        for blob in [&image.config, &image.layer] {
            // Without all of its blobs it gets no name: it had no effect.
            self.push_blob(first, &place.repository, blob).await.map_err(Trouble::failed)?;
        }
        self.put_manifest(first, place, image).await
    }

    /// Points the tag at the manifest, beginning at that node; whether the acknowledgement is disputed.
    ///
    /// # Errors
    /// No node acknowledged it.
    pub(super) async fn put_manifest(&self, first: usize, place: &Place, image: &Image) -> Result<bool, Trouble> {
        let path = format!("/v2/{}/manifests/{}", place.repository, place.tag);
        let fill = |request: RequestBuilder| request.header(CONTENT_TYPE, MANIFEST).body(image.manifest.clone());
        Ok(self.send(first, Method::PUT, &path, fill).await?.is_disputed)
    }

    /// Pulls a manifest by tag or digest and everything that it must name, beginning at that node. All bytes are hashed.
    ///
    /// # Errors
    /// No node serves all of it, or the bytes are others.
    pub(super) async fn pull(&self, first: usize, pull: &Pull<'_>) -> Result<(), Trouble> {
        let (manifest, _) = self.manifest(first, pull.repository, pull.reference).await?;
        expect_digest(&manifest, pull.digest)?;
        for blob in pull.blobs {
            let answer =
                self.send(first, Method::GET, &format!("/v2/{}/blobs/{blob}", pull.repository), |all| all).await?;
            expect_digest(&answer.body, blob)?;
        }
        Ok(())
    }

    /// The bytes of a manifest, and whether the answer warns that it may be stale.
    ///
    /// # Errors
    /// No node serves it.
    pub(super) async fn manifest(
        &self,
        first: usize,
        repository: &str,
        reference: &str,
    ) -> Result<(Bytes, bool), Trouble> {
        let path = format!("/v2/{repository}/manifests/{reference}");
        let answer = self.send(first, Method::GET, &path, |request| request.header(ACCEPT, MANIFEST)).await?;
        Ok((answer.body, answer.headers.contains_key(WARNING)))
    }

    /// The first tags of a repository.
    ///
    /// # Errors
    /// No node lists them.
    pub(super) async fn list(&self, first: usize, repository: &str) -> Result<(), Trouble> {
        let answer = self.send(first, Method::GET, &format!("/v2/{repository}/tags/list?n=100"), |all| all).await?;
        match serde_json::from_slice::<serde_json::Value>(&answer.body) {
            Ok(list) if list["tags"].is_array() => Ok(()),
            Ok(_) | Err(_) => Err(Trouble::failed("a list of another form")),
        }
    }

    /// Deletes a manifest with its tags, at the first node that does; one that is not there is as good.
    ///
    /// # Errors
    /// No node does.
    pub(super) async fn delete(&self, first: usize, repository: &str, digest: &str) -> Result<(), Trouble> {
        let path = format!("/v2/{repository}/manifests/{digest}");
        match self.send(first, Method::DELETE, &path, |request| request).await {
            Err(trouble) if trouble.status == Some(StatusCode::NOT_FOUND) => Ok(()),
            other => other.map(drop),
        }
    }

    /// A client of one node only.
    pub(super) fn only(&self, node: usize) -> Self {
        let nodes = self.nodes.get(node).cloned().into_iter().collect();
        Self { http: self.http.clone(), nodes }
    }

    /// An upload session belongs to a node: what breaks it begins anew at the next one.
    async fn push_blob(&self, first: usize, repository: &str, blob: &Bytes) -> Result<(), String> {
        let mut last = String::from("there are no nodes");
        for node in self.from(first) {
            match self.push_blob_to(node, repository, blob).await {
                Ok(()) => return Ok(()),
                Err(refusal) => last = refusal.reason,
            }
        }
        Err(last)
    }

    async fn push_blob_to(&self, node: &DescribedNode, repository: &str, blob: &Bytes) -> Result<(), Refusal> {
        let path = format!("/v2/{repository}/blobs/uploads/");
        let opened = self.attempt(node, Method::POST, &path, |request| request.header(CONTENT_LENGTH, 0)).await?;
        let strange = || Refusal { status: None, is_unsent: false, reason: "an upload without a Location".to_owned() };
        let location = opened.headers.get(LOCATION).and_then(|value| value.to_str().ok()).ok_or_else(strange)?;
        let mut location = Url::parse(&node.url).and_then(|url| url.join(location)).map_err(|_| strange())?;
        location.query_pairs_mut().append_pair("digest", &digest(blob));
        let path = format!("{}?{}", location.path(), location.query().unwrap_or_default());
        let fill =
            |request: RequestBuilder| request.header(CONTENT_TYPE, "application/octet-stream").body(blob.clone());
        self.attempt(node, Method::PUT, &path, fill).await.map(drop)
    }

    /// Sends a request to one node after the other until one of them serves or refuses it.
    async fn send(
        &self,
        first: usize,
        method: Method,
        path: &str,
        fill: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Answer, Trouble> {
        let mut is_disputed = false;
        let (mut status, mut reason) = (None, String::from("there are no nodes"));
        for node in self.from(first) {
            let refusal = match self.attempt(node, method.clone(), path, &fill).await {
                Ok(answer) => return Ok(Answer { is_disputed, ..answer }),
                Err(refusal) => refusal,
            };
            (status, reason) = (refusal.status, refusal.reason);
            match status {
                Some(status) if !is_for_the_next(status) => break,
                Some(_) | None => is_disputed |= !refusal.is_unsent,
            }
        }
        let may_have_happened = is_disputed && method != Method::GET;
        let outcome = if may_have_happened { Outcome::Unknown } else { Outcome::Failed };
        Err(Trouble { outcome, status, reason })
    }

    async fn attempt(
        &self,
        node: &DescribedNode,
        method: Method,
        path: &str,
        fill: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Answer, Refusal> {
        let request = format!("{method} {}{path}", node.url);
        let lost = |error: reqwest::Error| Refusal {
            status: None,
            is_unsent: error.is_connect(),
            reason: format!("{request}: {:#}", anyhow::Error::from(error.without_url())),
        };
        let mut answer =
            fill(self.http.request(method.clone(), format!("{}{path}", node.url))).send().await.map_err(lost)?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let mut body = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(lost)? {
            body.extend_from_slice(&piece);
            if body.len() > BODY_MAX_BYTES {
                let reason = format!("{request}: an answer of more than {BODY_MAX_BYTES} bytes");
                return Err(Refusal { status: None, is_unsent: false, reason });
            }
        }
        if status.is_success() {
            return Ok(Answer { headers, body: body.into(), is_disputed: false });
        }
        let said: String = String::from_utf8_lossy(&body).chars().take(REASON_MAX_CHARS).collect();
        let reason = format!("{request}: {} {}", status.as_u16(), said.trim());
        Err(Refusal { status: Some(status), is_unsent: false, reason })
    }

    /// All nodes, beginning with that one.
    fn from(&self, first: usize) -> impl Iterator<Item = &DescribedNode> {
        self.nodes.iter().cycle().skip(first % self.nodes.len().max(1)).take(self.nodes.len())
    }
}

/// Where a push goes.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) repository: String,
    pub(super) tag: String,
}

/// What a pull asks for, and what must come back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pull<'a> {
    pub(super) repository: &'a str,
    /// A tag or a digest.
    pub(super) reference: &'a str,
    /// The manifest's.
    pub(super) digest: &'a str,
    pub(super) blobs: &'a [String],
}

/// Whether the node could not, and another may: containerd asks the next one after these too.
fn is_for_the_next(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::REQUEST_TIMEOUT
}

fn expect_digest(bytes: &[u8], wanted: &str) -> Result<(), Trouble> {
    let found = digest(bytes);
    if found == wanted {
        return Ok(());
    }
    Err(Trouble::failed(format!("got {found} in place of {wanted}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nobody() -> Registry {
        // Ports on which nobody listens.
        let node = |port: u16| DescribedNode { name: format!("n{port}"), url: format!("http://127.0.0.1:{port}") };
        Registry::new(vec![node(1), node(2), node(3)]).expect("a client")
    }

    #[test]
    fn each_node_is_asked_once_beginning_with_the_first() {
        let registry = nobody();
        let names: Vec<&str> = registry.from(4).map(|node| node.name.as_str()).collect();
        assert_eq!(names, ["n2", "n3", "n1"]);
        assert_eq!(registry.only(2).from(7).count(), 1);
    }

    #[tokio::test]
    async fn what_reached_no_node_has_failed_and_is_not_unknown() {
        let image = Image::random(&mut rand::rng());
        let place = Place { repository: "drill/x".to_owned(), tag: "t".to_owned() };
        let trouble = nobody().put_manifest(0, &place, &image).await.expect_err("nobody listens");
        assert_eq!(trouble.outcome, Outcome::Failed, "{}", trouble.reason);
        assert!(trouble.reason.contains("127.0.0.1:3"), "{}", trouble.reason);
    }

    #[test]
    fn only_what_a_node_cannot_do_now_goes_to_the_next() {
        for next in [500, 502, 503, 429, 408] {
            assert!(is_for_the_next(StatusCode::from_u16(next).expect("a status")), "{next}");
        }
        for end in [400, 403, 404, 409, 412] {
            assert!(!is_for_the_next(StatusCode::from_u16(end).expect("a status")), "{end}");
        }
    }
}
