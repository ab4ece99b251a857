//! The calling side of the peer port.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Call, PREFIX, TO_HEADER};
use crate::member::NodeId;
use crate::wire::{self, Kind};

/// How long a connection may take to come about.
pub const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// Why a call has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// No connection: the request was not sent.
    #[error("cannot connect: {0}")]
    Unreachable(String),
    /// The time was over, or the connection broke, after the request had been sent.
    #[error("no answer: {0}")]
    NoAnswer(String),
    /// The node answered that it will not, such as one that has another id.
    #[error("refused with status {status}: {reason}")]
    Refused {
        /// HTTP's status.
        status: u16,
        /// The node's words.
        reason: String,
    },
    /// An answer that this build cannot read.
    #[error("unreadable answer: {0}")]
    Unreadable(String),
}

/// Calls other nodes. Cheap to clone; connections are kept.
#[derive(Clone)]
pub struct PeerClient {
    http: reqwest::Client,
}

impl PeerClient {
    /// A client with a pool of its own.
    ///
    /// # Errors
    /// The HTTP client cannot be set up.
    pub fn new() -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(Duration::from_secs(30))
            .tcp_nodelay(true)
            .tcp_keepalive(Duration::from_secs(15))
            .no_proxy()
            .http1_only()
            .build()?;
        Ok(Self { http })
    }

    /// One call. `to` is the id that must answer, where it is known.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        address: &str,
        to: Option<NodeId>,
        call: Call,
        request: &Q,
        limit: Duration,
    ) -> Result<A, CallError> {
        let body =
            wire::encode(Kind::Request, request).map_err(|problem| CallError::Unreadable(problem.to_string()))?;
        let mut post = self.http.post(format!("http://{address}{PREFIX}/{}", call.name())).timeout(limit).body(body);
        if let Some(to) = to {
            post = post.header(TO_HEADER, format!("{to:012x}"));
        }
        let answer = post.send().await.map_err(|problem| failure(&problem))?;
        let status = answer.status().as_u16();
        let bytes = answer.bytes().await.map_err(|problem| failure(&problem))?;
        if status != 200 {
            return Err(CallError::Refused { status, reason: String::from_utf8_lossy(&bytes).into_owned() });
        }
        wire::decode(Kind::Response, &bytes).map_err(|problem| CallError::Unreadable(problem.to_string()))
    }
}

/// Sorts reqwest's errors by whether the request can have reached the node.
pub(crate) fn failure(problem: &reqwest::Error) -> CallError {
    let mut reason = problem.to_string();
    let mut source = std::error::Error::source(problem);
    while let Some(inner) = source {
        reason = format!("{reason}: {inner}");
        source = inner.source();
    }
    if problem.is_connect() { CallError::Unreachable(reason) } else { CallError::NoAnswer(reason) }
}
