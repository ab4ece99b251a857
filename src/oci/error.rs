//! The one place where errors become OCI codes and HTTP statuses (distribution specification, «Error Codes»).

use std::fmt;

use actix_web::error::PayloadError;
use actix_web::http::StatusCode;
use actix_web::http::header::{ACCEPT_RANGES, ALLOW, CONTENT_RANGE, ETAG, HeaderName, HeaderValue, RETRY_AFTER};
use actix_web::{HttpResponse, ResponseError, web};
use flotilla_raft::{InvalidName, ProposeError, ReadError, Refusal};
use flotilla_storage::{Digest, ParseDigestError, StorageError};
use serde::Serialize;
use serde_json::json;

use super::{FLOTILLA_REVISION, checked, decimal};
use crate::replication::{CollectError, ReadBlobError, StoreError};
use crate::request_id;

/// The codes of the specification that this registry uses, and two that it lacks: `UNAVAILABLE` and `UNKNOWN`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum Code {
    /// The repository does not hold the blob.
    BlobUnknown,
    /// A rule or a condition forbids it.
    Denied,
    /// A chunk or a closing request that does not fit its session.
    BlobUploadInvalid,
    /// No such upload session.
    BlobUploadUnknown,
    /// Not a digest, not a supported one, or not that of the content.
    DigestInvalid,
    /// The manifest names content that the repository does not hold.
    ManifestBlobUnknown,
    /// The manifest, its media type or its tag is not valid.
    ManifestInvalid,
    /// The repository does not hold the manifest.
    ManifestUnknown,
    /// Not a repository name.
    NameInvalid,
    /// No repository of this name.
    NameUnknown,
    /// Too large, or another length than was promised.
    SizeInvalid,
    /// The client should come back later.
    #[serde(rename = "TOOMANYREQUESTS")]
    TooManyRequests,
    /// No majority, no copy within reach, or a node that is going down: come back later.
    Unavailable,
    /// Our own mistake.
    Unknown,
    /// The operation does not exist here.
    Unsupported,
}

/// An answer that says no, in the specification's form.
#[derive(Debug)]
pub(crate) struct OciError {
    status: StatusCode,
    entries: Vec<Entry>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

#[derive(Debug, Serialize)]
struct Entry {
    code: Code,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<serde_json::Value>,
}

impl OciError {
    /// An answer with one error.
    pub(crate) fn new(status: StatusCode, code: Code, message: impl Into<String>) -> Self {
        Self { status, entries: vec![Entry { code, message: message.into(), detail: None }], headers: Vec::new() }
    }

    /// 400 with one error.
    pub(crate) fn bad_request(code: Code, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// 404 with one error.
    pub(crate) fn not_found(code: Code, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message)
    }

    /// 503: the client should try again, here or at another node.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        // A second is about what an election takes; containerd and others go to the next node at once.
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, message)
            .header(RETRY_AFTER, HeaderValue::from_static("1"))
    }

    /// 409: not now, since something would be lost.
    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, Code::Denied, message)
    }

    /// 429: what is set aside for such requests is in use.
    pub(crate) fn busy(message: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, Code::TooManyRequests, message)
            .header(RETRY_AFTER, HeaderValue::from_static("5"))
    }

    /// 500: a mistake of ours, which the log explains and the client does not see.
    pub(crate) fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, Code::Unknown, "internal error; the node's log says more")
    }

    /// 404 for a manifest that the repository does not hold.
    pub(crate) fn manifest_unknown(reference: impl fmt::Display) -> Self {
        Self::not_found(Code::ManifestUnknown, format!("manifest {reference} is not in the repository"))
    }

    /// 404 for a blob that the repository does not hold.
    pub(crate) fn blob_unknown(digest: &Digest) -> Self {
        Self::not_found(Code::BlobUnknown, format!("blob {digest} is not in the repository"))
    }

    /// 404 for a path that names nothing here.
    pub(crate) fn no_such_endpoint() -> Self {
        Self::not_found(Code::Unsupported, "no such endpoint")
    }

    /// 405, naming the methods that the resource has.
    pub(crate) fn method_not_allowed(methods: &str) -> Self {
        let error = Self::new(StatusCode::METHOD_NOT_ALLOWED, Code::Unsupported, format!("methods here: {methods}"));
        error.header(ALLOW, checked(methods))
    }

    /// 413 for a body over its limit.
    pub(crate) fn too_large(limit: u64) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, Code::SizeInvalid, format!("the body is larger than {limit} bytes"))
    }

    /// 408 for a body that stands still.
    pub(crate) fn stalled() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, Code::SizeInvalid, "no byte of the body came within the time limit")
    }

    /// 400 for a body that ends before it should.
    pub(crate) fn cut_short() -> Self {
        Self::bad_request(Code::SizeInvalid, "the body ended early")
    }

    /// 416 for ranges of which nothing is there.
    pub(crate) fn range_not_satisfiable(size: u64) -> Self {
        let error =
            Self::new(StatusCode::RANGE_NOT_SATISFIABLE, Code::SizeInvalid, format!("the content has {size} bytes"));
        error
            .header(CONTENT_RANGE, checked(format_args!("bytes */{size}")))
            .header(ACCEPT_RANGES, HeaderValue::from_static("bytes"))
    }

    /// Adds a header.
    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Says which of several changes the error is about, from 0.
    pub(crate) fn in_change(mut self, number: u32) -> Self {
        self.entries.iter_mut().for_each(|entry| entry.message = format!("change {number}: {}", entry.message));
        self
    }

    /// Adds details to the error.
    pub(crate) fn detail(mut self, detail: serde_json::Value) -> Self {
        self.entries.iter_mut().for_each(|entry| entry.detail = Some(detail.clone()));
        self
    }

    /// Adds the revision of what was read.
    pub(crate) fn revision(self, revision: u64) -> Self {
        self.header(FLOTILLA_REVISION, decimal(revision))
    }
}

impl fmt::Display for OciError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let messages: Vec<&str> = self.entries.iter().map(|entry| entry.message.as_str()).collect();
        write!(out, "{}: {}", self.status, messages.join("; "))
    }
}

impl std::error::Error for OciError {}

impl ResponseError for OciError {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        let mut answer = HttpResponse::build(self.status);
        for (name, value) in &self.headers {
            answer.append_header((name, value));
        }
        // Beside the list, since an error's `detail` has a form of its own for each code.
        match request_id::current() {
            Some(id) => answer.json(json!({ "errors": self.entries, "request_id": id })),
            None => answer.json(json!({ "errors": self.entries })),
        }
    }
}

impl From<ProposeError> for OciError {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::NoQuorum => Self::unavailable("no majority of the nodes answers; nothing was changed"),
            ProposeError::OutcomeUnknown => outcome_unknown(),
        }
    }
}

impl From<ReadError> for OciError {
    fn from(error: ReadError) -> Self {
        match error {
            // What is not here may be on the nodes that do not answer.
            ReadError::NoQuorum => {
                Self::unavailable("no majority of the nodes answers: whether it exists is not known")
            }
            ReadError::Stopped => stopping(),
        }
    }
}

impl From<Refusal> for OciError {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::RepositoryUnknown => Self::not_found(Code::NameUnknown, message),
            Refusal::ManifestUnknown | Refusal::TagUnknown => Self::not_found(Code::ManifestUnknown, message),
            Refusal::BlobUnknown => Self::not_found(Code::BlobUnknown, message),
            Refusal::ContentMissing(digests) => content_missing(&digests),
            Refusal::ConditionFailed { current, .. } => condition_failed(message, current),
            Refusal::TagImmutable { .. } => Self::new(StatusCode::FORBIDDEN, Code::Denied, message),
            Refusal::MediaTypeDiffers { .. } => Self::bad_request(Code::ManifestInvalid, message),
            Refusal::PolicyUnknown => Self::not_found(Code::Unsupported, message),
            Refusal::PolicyChanged { .. } => Self::new(StatusCode::PRECONDITION_FAILED, Code::Denied, message),
            Refusal::PoliciesFull { .. } => Self::new(StatusCode::FORBIDDEN, Code::Denied, message),
            Refusal::Trust(_) => Self::conflict(message),
            Refusal::SettingsChanged { .. } => Self::new(StatusCode::PRECONDITION_FAILED, Code::Denied, message),
            Refusal::SettingsInvalid(_) => Self::bad_request(Code::Unsupported, message),
            Refusal::InChange { number, refusal } => Self::from(*refusal).in_change(number),
            Refusal::NodeUnknown => Self::not_found(Code::Unsupported, message),
            Refusal::OtherDraining { .. } | Refusal::NobodyRemains => Self::conflict(message),
            Refusal::HoldersGone | Refusal::PromiseExpired => Self::unavailable(message),
            Refusal::RequestExpired => outcome_unknown(),
        }
    }
}

impl From<StoreError> for OciError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NoQuorum => {
                Self::unavailable("too few nodes could take a copy; nothing was stored under a name")
            }
            StoreError::Storage(error) => error.into(),
        }
    }
}

impl From<CollectError> for OciError {
    fn from(error: CollectError) -> Self {
        match error {
            CollectError::Propose(error) => error.into(),
            CollectError::Storage(error) => error.into(),
        }
    }
}

impl From<ReadBlobError> for OciError {
    fn from(error: ReadBlobError) -> Self {
        match error {
            ReadBlobError::Unreachable => Self::unavailable("no node that holds the content can be reached"),
            ReadBlobError::Storage(error) => error.into(),
        }
    }
}

impl From<StorageError> for OciError {
    fn from(error: StorageError) -> Self {
        if matches!(error, StorageError::Full { .. }) {
            tracing::warn!(%error, "a push was refused");
            return Self::unavailable("this node's disk is nearly full; what it has can be pulled");
        }
        // Paths and the disk's state are for the operator, not for clients.
        tracing::error!(error = &error as &dyn std::error::Error, "storage failed during a request");
        Self::internal()
    }
}

impl From<InvalidName> for OciError {
    fn from(error: InvalidName) -> Self {
        let message = error.to_string();
        match error {
            InvalidName::Repository => Self::bad_request(Code::NameInvalid, message),
            // The specification has no code for tags.
            InvalidName::Tag => Self::bad_request(Code::ManifestInvalid, message),
            InvalidName::Policy => Self::bad_request(Code::Unsupported, message),
        }
    }
}

impl From<ParseDigestError> for OciError {
    fn from(error: ParseDigestError) -> Self {
        Self::bad_request(Code::DigestInvalid, error.to_string())
    }
}

impl From<PayloadError> for OciError {
    fn from(error: PayloadError) -> Self {
        match error {
            PayloadError::Incomplete(_) | PayloadError::Io(_) => Self::cut_short(),
            PayloadError::Overflow => Self::new(StatusCode::PAYLOAD_TOO_LARGE, Code::SizeInvalid, error.to_string()),
            PayloadError::EncodingCorrupted | PayloadError::UnknownLength => {
                Self::bad_request(Code::SizeInvalid, error.to_string())
            }
            // The enum is open: what actix-web adds is the body's fault as well.
            _ => Self::bad_request(Code::SizeInvalid, error.to_string()),
        }
    }
}

fn outcome_unknown() -> OciError {
    OciError::unavailable("the outcome is not known: the change may still take effect; ask, or send it again")
}

/// Does work that takes a while on a thread for such work.
///
/// # Errors
/// The work's own; 503 while the node stops.
pub(crate) async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, OciError>
where
    T: Send + 'static,
    E: Into<OciError> + Send + 'static,
{
    web::block(work).await.map_err(|_| stopping())?.map_err(Into::into)
}

fn stopping() -> OciError {
    OciError::unavailable("this node is stopping")
}

/// 412, with what the tag points at as its entity tag.
fn condition_failed(message: String, current: Option<Digest>) -> OciError {
    let error = OciError::new(StatusCode::PRECONDITION_FAILED, Code::Denied, message);
    let error = error.detail(json!({ "current": current.map(|digest| digest.to_string()) }));
    match current {
        Some(digest) => error.header(ETAG, checked(format_args!("\"{digest}\""))),
        None => error,
    }
}

/// One error for each digest, so that clients see all that they have to push.
fn content_missing(digests: &[Digest]) -> OciError {
    let entry = |digest: &Digest| Entry {
        code: Code::ManifestBlobUnknown,
        message: format!("the manifest names {digest}, which is not in the repository"),
        detail: Some(json!({ "digest": digest })),
    };
    OciError { status: StatusCode::BAD_REQUEST, entries: digests.iter().map(entry).collect(), headers: Vec::new() }
}

#[cfg(test)]
mod tests {
    use actix_web::body::to_bytes;
    use flotilla_storage::Algorithm;

    use super::*;

    async fn body(error: OciError) -> serde_json::Value {
        let answer = error.error_response();
        assert_eq!(answer.headers().get("content-type").unwrap(), "application/json");
        serde_json::from_slice(&to_bytes(answer.into_body()).await.unwrap()).unwrap()
    }

    #[actix_web::test]
    async fn every_missing_digest_is_named() {
        let digests = [b"a", b"b"].map(|bytes| Digest::of(Algorithm::Sha256, bytes));
        let body = body(Refusal::ContentMissing(digests.to_vec()).into()).await;
        for (entry, digest) in body["errors"].as_array().unwrap().iter().zip(digests) {
            assert_eq!(entry["code"], "MANIFEST_BLOB_UNKNOWN");
            assert_eq!(entry["detail"]["digest"], digest.to_string());
        }
        assert_eq!(body["errors"].as_array().unwrap().len(), 2);
    }

    #[actix_web::test]
    async fn without_a_quorum_clients_are_told_when_to_come_back() {
        let answer = OciError::from(ProposeError::NoQuorum).error_response();
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.headers().get("retry-after").unwrap(), "1");
        assert_eq!(body(ProposeError::OutcomeUnknown.into()).await["errors"][0]["code"], "UNAVAILABLE");
    }

    #[actix_web::test]
    async fn codes_are_spelled_as_in_the_specification() {
        assert_eq!(
            body(OciError::bad_request(Code::TooManyRequests, "x")).await["errors"][0]["code"],
            "TOOMANYREQUESTS"
        );
        assert_eq!(
            body(OciError::bad_request(Code::BlobUploadUnknown, "x")).await["errors"][0]["code"],
            "BLOB_UPLOAD_UNKNOWN"
        );
    }
}
