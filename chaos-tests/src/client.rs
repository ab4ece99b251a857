//! A client of the OCI distribution API that believes nothing: every byte that comes back is hashed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

pub use reqwest::Method;

use crate::history::Outcome;
use crate::image::{ANY_MANIFEST, Image, OCI_MANIFEST, sha256};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
const SHOWN_BODY_BYTES: usize = 300;

/// An HTTP client for loopback: no proxies, no redirects, no certificates.
pub fn plain_http(timeout: Duration) -> reqwest::Client {
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .tls_certs_only([])
        .connect_timeout(Duration::from_secs(2))
        .timeout(timeout)
        .build()
        .expect("a client without certificates has nothing to fail on")
}

/// Why an operation did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// An answer with a status that is not the wanted one.
    #[error("{request} → {status} {body}")]
    Refused {
        /// Method, node and path.
        request: String,
        /// The answer's status.
        status: u16,
        /// The beginning of the answer's body.
        body: String,
    },
    /// No answer, or one that broke off.
    #[error("{request}: no answer: {reason}")]
    Lost {
        /// Method, node and path.
        request: String,
        /// What happened to the connection.
        reason: String,
    },
    /// An answer whose content is not what was pushed.
    #[error("{0}")]
    Wrong(String),
    /// A push that ended before its manifest was sent, so that nothing bears its name.
    #[error(transparent)]
    BeforeTheName(Box<Problem>),
}

impl Problem {
    /// What the client knows about its operation: an answer of 5xx or none at all proves nothing.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Refused { status, .. } if *status < 500 => Outcome::Failed,
            Self::BeforeTheName(_) => Outcome::Failed,
            Self::Refused { .. } | Self::Lost { .. } | Self::Wrong(_) => Outcome::Unknown,
        }
    }

    /// The status of the answer, if there was one.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::BeforeTheName(inner) => inner.status(),
            Self::Lost { .. } | Self::Wrong(_) => None,
        }
    }
}

/// How a blob is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// One POST with `?digest=`.
    Post,
    /// POST, then PUT with the whole body, as containerd does.
    Put,
    /// POST, one PATCH with the whole body, PUT without one, as docker and podman do.
    Patch,
    /// POST, PATCHes of this many bytes with `Content-Range`, PUT without a body.
    Chunks(usize),
}

impl Way {
    /// One way after the other.
    pub fn number(number: usize) -> Self {
        [Self::Put, Self::Patch, Self::Post, Self::Chunks(10_000)][number % 4]
    }
}

/// A complete answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Method, node and path of the request.
    pub request: String,
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// From the request's first byte to the answer's last.
    pub took: Duration,
}

impl Reply {
    /// A header's first value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The codes of an OCI error body.
    pub fn codes(&self) -> Vec<String> {
        let document = self.json();
        let errors = document["errors"].as_array().cloned().unwrap_or_default();
        errors.iter().filter_map(|error| Some(error["code"].as_str()?.to_owned())).collect()
    }

    /// The path and query of the `Location` header.
    pub fn location(&self) -> Result<String, Problem> {
        let location =
            self.header("location").ok_or_else(|| Problem::Wrong(format!("{} → no Location", self.request)))?;
        Ok(path_of(location).to_owned())
    }

    /// The reply, if its status is one of these.
    pub fn expect(self, allowed: &[u16]) -> Result<Self, Problem> {
        if allowed.contains(&self.status) {
            return Ok(self);
        }
        let shown = &self.body[..self.body.len().min(SHOWN_BODY_BYTES)];
        Err(Problem::Refused {
            body: String::from_utf8_lossy(shown).into_owned(),
            request: self.request,
            status: self.status,
        })
    }
}

/// The record of an acknowledged push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// In which repository.
    pub repository: String,
    /// Under which tag.
    pub tag: String,
    /// Which manifest.
    pub digest: String,
}

/// Sends each request to the next of its nodes.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    urls: Vec<String>,
    turn: AtomicUsize,
    timeout: Duration,
}

impl Client {
    /// A client of these nodes, with connections of its own.
    pub fn new(urls: Vec<String>) -> Self {
        Self::over(plain_http(REQUEST_TIMEOUT), urls)
    }

    /// A client of these nodes that shares connections with others.
    pub fn over(http: reqwest::Client, urls: Vec<String>) -> Self {
        assert!(!urls.is_empty(), "a client needs a node");
        Self { http, urls, turn: AtomicUsize::new(0), timeout: REQUEST_TIMEOUT }
    }

    /// Gives up on a request after this time.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Begins with the node of that number.
    pub fn starting_at(self, turn: usize) -> Self {
        self.turn.store(turn, Ordering::Relaxed);
        self
    }

    /// The nodes.
    pub fn urls(&self) -> &[String] {
        &self.urls
    }

    /// A client of the one node, counted from 0.
    pub fn only(&self, index: usize) -> Self {
        Self::over(self.http.clone(), vec![self.urls[index].clone()]).with_timeout(self.timeout)
    }

    /// Sends a request to the next node; one that does not accept the connection is passed over, as a balancer does.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Reply, Problem> {
        // One turn a request, however many share this client: else one of them could try a dead node every time.
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut last = None;
        for attempt in 0..self.urls.len() {
            let url = &self.urls[turn.wrapping_add(attempt) % self.urls.len()];
            match self.attempt(url, &method, path, headers, body.clone()).await {
                Err((problem, true)) => last = Some(problem),
                Err((problem, false)) => return Err(problem),
                Ok(reply) => return Ok(reply),
            }
        }
        Err(last.expect("a client has at least one node"))
    }

    /// Sends one streamed body to the next node, with a length if one is given, else by chunked encoding.
    pub async fn send_stream(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        length: Option<u64>,
        body: reqwest::Body,
    ) -> Result<Reply, Problem> {
        let length = length.map(|bytes| bytes.to_string());
        let mut headers = headers.to_vec();
        headers.extend(length.as_deref().map(|bytes| ("content-length", bytes)));
        let url = self.next_url();
        let request = format!("{method} {url}{path}");
        let began = Instant::now();
        let built = self
            .http
            .request(method, format!("{url}{path}"))
            .timeout(self.timeout)
            .headers(header_map(&headers))
            .body(body);
        let answer = built.send().await.map_err(|error| lost(&request, &error))?;
        complete(request, answer, began).await
    }

    /// GET without headers of its own.
    pub async fn get(&self, path: &str) -> Result<Reply, Problem> {
        self.send(Method::GET, path, &[], Bytes::new()).await
    }

    /// HEAD without headers of its own.
    pub async fn head(&self, path: &str) -> Result<Reply, Problem> {
        self.send(Method::HEAD, path, &[], Bytes::new()).await
    }

    /// DELETE.
    pub async fn delete(&self, path: &str) -> Result<Reply, Problem> {
        self.send(Method::DELETE, path, &[], Bytes::new()).await
    }

    /// POST without a body.
    pub async fn post(&self, path: &str) -> Result<Reply, Problem> {
        self.send(Method::POST, path, &[], Bytes::new()).await
    }

    /// Opens an upload; its path.
    pub async fn open_upload(&self, repository: &str) -> Result<String, Problem> {
        let path = format!("/v2/{repository}/blobs/uploads/");
        self.post(&path).await?.expect(&[202])?.location()
    }

    /// Adds bytes to an upload, with the `Content-Range` if one is given.
    pub async fn patch(&self, location: &str, range: Option<&str>, bytes: Bytes) -> Result<Reply, Problem> {
        let mut headers = vec![OCTETS];
        headers.extend(range.map(|range| ("content-range", range)));
        self.send(Method::PATCH, location, &headers, bytes).await
    }

    /// Closes an upload with the last (or all, or none) of its bytes.
    pub async fn close_upload(&self, location: &str, digest: &str, bytes: Bytes) -> Result<Reply, Problem> {
        let path = with_query(location, &format!("digest={digest}"));
        self.send(Method::PUT, &path, &[OCTETS], bytes).await
    }

    /// Pushes a blob; the answer is the closing one, 201.
    pub async fn push_blob(&self, repository: &str, blob: &Bytes, way: Way) -> Result<Reply, Problem> {
        let digest = sha256(blob);
        if way == Way::Post {
            let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
            let posted = self.send(Method::POST, &path, &[OCTETS], blob.clone()).await?;
            return posted.expect(&[201]);
        }
        let mut location = self.open_upload(repository).await?;
        let mut rest = Bytes::new();
        match way {
            Way::Chunks(size) => {
                for (number, chunk) in blob.chunks(size).enumerate() {
                    let from = number * size;
                    let range = format!("{from}-{}", from + chunk.len() - 1);
                    let patched = self.patch(&location, Some(&range), blob.slice_ref(chunk)).await?;
                    location = patched.expect(&[202])?.location()?;
                }
            }
            Way::Patch => {
                let patched = self.patch(&location, None, blob.clone()).await?;
                location = patched.expect(&[202])?.location()?;
            }
            Way::Put | Way::Post => rest = blob.clone(),
        }
        self.close_upload(&location, &digest, rest).await?.expect(&[201])
    }

    /// Puts a manifest under a tag or digest.
    pub async fn put_manifest(
        &self,
        repository: &str,
        reference: &str,
        media_type: &str,
        manifest: Bytes,
    ) -> Result<Reply, Problem> {
        let path = format!("/v2/{repository}/manifests/{reference}");
        self.send(Method::PUT, &path, &[("content-type", media_type)], manifest).await
    }

    /// Pushes every blob of the image, then its manifest under the tag.
    pub async fn push(&self, repository: &str, tag: &str, image: &Image, way: Way) -> Result<Pushed, Problem> {
        for blob in &image.blobs {
            let pushed = self.push_blob(repository, blob, way).await;
            pushed.map_err(|problem| Problem::BeforeTheName(Box::new(problem)))?;
        }
        let put = self.put_manifest(repository, tag, OCI_MANIFEST, image.manifest.clone()).await?.expect(&[201])?;
        if put.header("docker-content-digest") != Some(&image.digest) {
            return Err(Problem::Wrong(format!(
                "{} → Docker-Content-Digest {:?}, pushed {}",
                put.request,
                put.header("docker-content-digest"),
                image.digest
            )));
        }
        Ok(Pushed { repository: repository.to_owned(), tag: tag.to_owned(), digest: image.digest.clone() })
    }

    /// GET of a manifest, whatever the answer.
    pub async fn manifest(&self, repository: &str, reference: &str) -> Result<Reply, Problem> {
        let path = format!("/v2/{repository}/manifests/{reference}");
        self.send(Method::GET, &path, &[("accept", ANY_MANIFEST)], Bytes::new()).await
    }

    /// Streams a blob and compares its digest; its size.
    pub async fn pull_blob(&self, repository: &str, digest: &str) -> Result<u64, Problem> {
        let url = self.next_url();
        let path = format!("/v2/{repository}/blobs/{digest}");
        let request = format!("GET {url}{path}");
        let asked = self.http.get(format!("{url}{path}")).timeout(self.timeout);
        let answer = asked.send().await.map_err(|error| lost(&request, &error))?;
        if answer.status() != 200 {
            let reply = complete(request, answer, Instant::now()).await?;
            return Err(reply.expect(&[200]).expect_err("the status is not 200"));
        }
        let mut hasher = Sha256::new();
        let mut size_bytes = 0;
        let mut pieces = answer.bytes_stream();
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|error| lost(&request, &error))?;
            hasher.update(&piece);
            size_bytes += piece.len() as u64;
        }
        let found = format!("sha256:{}", hex::encode(hasher.finalize()));
        if found != digest {
            return Err(Problem::Wrong(format!("{request}: {size_bytes} bytes of {found}")));
        }
        Ok(size_bytes)
    }

    /// Pulls an acknowledged push by its tag and by its digest, and every blob that it names.
    pub async fn verify(&self, pushed: &Pushed) -> Result<(), Problem> {
        let mut manifest = Value::Null;
        for reference in [&pushed.tag, &pushed.digest] {
            let reply = self.manifest(&pushed.repository, reference).await?.expect(&[200])?;
            let found = sha256(&reply.body);
            if found != pushed.digest {
                return Err(Problem::Wrong(format!("{}: {found}, pushed {}", reply.request, pushed.digest)));
            }
            manifest = reply.json();
        }
        let layers = manifest["layers"].as_array().cloned().unwrap_or_default();
        for described in [manifest["config"].clone()].iter().chain(&layers) {
            let digest = described["digest"].as_str().unwrap_or_default();
            self.pull_blob(&pushed.repository, digest).await?;
        }
        Ok(())
    }

    /// The node of the next request.
    pub fn next_url(&self) -> &str {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        &self.urls[turn % self.urls.len()]
    }

    /// One request to one node; the flag of an error says that the node did not even accept the connection.
    async fn attempt(
        &self,
        url: &str,
        method: &Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Reply, (Problem, bool)> {
        let request = format!("{method} {url}{path}");
        let began = Instant::now();
        let mut built = self
            .http
            .request(method.clone(), format!("{url}{path}"))
            .timeout(self.timeout)
            .headers(header_map(headers));
        if matches!(*method, Method::POST | Method::PUT | Method::PATCH) {
            built = built.body(body);
        }
        let answer = built.send().await.map_err(|error| (lost(&request, &error), error.is_connect()))?;
        complete(request, answer, began).await.map_err(|problem| (problem, false))
    }
}

/// The header of a body that is only bytes.
pub const OCTETS: (&str, &str) = ("content-type", "application/octet-stream");

/// The path and query of a URL; a path stays as it is.
pub fn path_of(location: &str) -> &str {
    match location.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("/", |slash| &rest[slash..]),
        None => location,
    }
}

/// The URL with one more parameter, after those that it has.
pub fn with_query(location: &str, parameter: &str) -> String {
    let separator = if location.contains('?') { '&' } else { '?' };
    format!("{location}{separator}{parameter}")
}

fn header_map(headers: &[(&str, &str)]) -> HeaderMap {
    headers
        .iter()
        .map(|(name, value)| {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("tests send legal header names");
            let value = HeaderValue::from_str(value).expect("tests send legal header values");
            (name, value)
        })
        .collect()
}

async fn complete(request: String, answer: reqwest::Response, began: Instant) -> Result<Reply, Problem> {
    let status = answer.status().as_u16();
    let headers = answer.headers().clone();
    let body = answer.bytes().await.map_err(|error| lost(&request, &error))?;
    Ok(Reply { request, status, headers, body, took: began.elapsed() })
}

fn lost(request: &str, error: &reqwest::Error) -> Problem {
    let mut reason = error.to_string();
    let mut cause = std::error::Error::source(error);
    // The chain ends; eight links are more than any client library has.
    for _ in 0..8 {
        let Some(error) = cause else { break };
        reason = format!("{reason}: {error}");
        cause = error.source();
    }
    Problem::Lost { request: request.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_become_paths() {
        assert_eq!(path_of("http://127.0.0.1:5000/v2/r?x=1"), "/v2/r?x=1");
        assert_eq!(path_of("/v2/r"), "/v2/r");
        assert_eq!(with_query("/v2/r?x=1", "digest=d"), "/v2/r?x=1&digest=d");
        assert_eq!(with_query("/v2/r", "digest=d"), "/v2/r?digest=d");
    }

    #[test]
    fn only_a_refusal_proves_that_nothing_happened() {
        let refused = |status| Problem::Refused { request: String::new(), status, body: String::new() };
        let lost = || Problem::Lost { request: String::new(), reason: String::new() };
        assert_eq!(refused(404).outcome(), Outcome::Failed);
        assert_eq!(refused(503).outcome(), Outcome::Unknown);
        assert_eq!(lost().outcome(), Outcome::Unknown);
        let before = Problem::BeforeTheName(Box::new(lost()));
        assert_eq!(before.outcome(), Outcome::Failed);
    }

    #[tokio::test]
    async fn a_node_that_does_not_listen_is_passed_over_and_all_of_them_are_an_error() {
        let client = Client::new(vec!["http://127.0.0.1:1".to_owned(), "http://127.0.0.1:2".to_owned()]);
        let problem = client.get("/v2/").await.expect_err("nobody listens");
        assert!(problem.to_string().contains("127.0.0.1:2"), "{problem}");
    }
}
