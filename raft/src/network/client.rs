//! The calling side of the peer port.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
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

/// Whom a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whom {
    /// A node of this cluster, which must prove that.
    Node,
    /// Also a node that can only prove that it may join: before there is a cluster, and to say who it is.
    Newcomer,
}

type Builder = Arc<dyn Fn(Whom) -> reqwest::ClientBuilder + Send + Sync>;

/// How other nodes are reached. By whom and how they are believed is the business of who makes it.
#[derive(Clone)]
pub struct Dialer {
    scheme: &'static str,
    builder: Builder,
}

impl fmt::Debug for Dialer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Dialer({})", self.scheme)
    }
}

impl Dialer {
    /// Plain HTTP: everybody is believed.
    pub fn plain() -> Self {
        Self { scheme: "http", builder: Arc::new(|_| reqwest::Client::builder()) }
    }

    /// TLS, set up on the builders that this makes.
    pub fn tls(builder: impl Fn(Whom) -> reqwest::ClientBuilder + Send + Sync + 'static) -> Self {
        Self { scheme: "https", builder: Arc::new(builder) }
    }

    /// The beginning of a client with connections of its own.
    pub fn builder(&self, whom: Whom) -> reqwest::ClientBuilder {
        (self.builder)(whom).no_proxy().http1_only()
    }

    /// The URL of a path at a node's address (`host:port`).
    pub fn url(&self, address: &str, path: impl fmt::Display) -> String {
        format!("{}://{address}{path}", self.scheme)
    }
}

/// Calls other nodes. Cheap to clone; connections are kept.
#[derive(Clone)]
pub struct PeerClient {
    dialer: Dialer,
    nodes: reqwest::Client,
    newcomers: reqwest::Client,
    told: Arc<Told>,
}

impl PeerClient {
    /// A client with pools of its own.
    ///
    /// # Errors
    /// The HTTP client cannot be set up.
    pub fn new(dialer: &Dialer) -> Result<Self, reqwest::Error> {
        let client = |whom| {
            dialer
                .builder(whom)
                .connect_timeout(CONNECT_TIMEOUT)
                .pool_idle_timeout(Duration::from_secs(30))
                .tcp_nodelay(true)
                .tcp_keepalive(Duration::from_secs(15))
                .build()
        };
        let (nodes, newcomers) = (client(Whom::Node)?, client(Whom::Newcomer)?);
        Ok(Self { dialer: dialer.clone(), nodes, newcomers, told: Arc::default() })
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
        let client = if call.is_for_newcomers() { &self.newcomers } else { &self.nodes };
        let url = self.dialer.url(address, format_args!("{PREFIX}/{}", call.name()));
        let mut post = client.post(url).timeout(limit).body(body);
        if let Some(to) = to {
            post = post.header(TO_HEADER, format!("{to:012x}"));
        }
        let failed = |problem: reqwest::Error| {
            let failed = failure(&problem);
            self.told.refused(address, &failed);
            failed
        };
        let answer = post.send().await.map_err(failed)?;
        let status = answer.status().as_u16();
        let bytes = answer.bytes().await.map_err(failed)?;
        if status != 200 {
            let refused = CallError::Refused { status, reason: String::from_utf8_lossy(&bytes).into_owned() };
            self.told.refused(address, &refused);
            return Err(refused);
        }
        wire::decode(Kind::Response, &bytes).map_err(|problem| CallError::Unreadable(problem.to_string()))
    }
}

/// What was told of nodes that refuse this one: a call that is tried again and again is told of once in a while.
#[derive(Default)]
struct Told(Mutex<BTreeMap<String, (String, Instant)>>);

/// How often the same refusal is told of.
const TOLD_EACH: Duration = Duration::from_secs(60);

impl Told {
    /// Tells of an error, if it says that the other side does not believe in this one.
    fn refused(&self, address: &str, problem: &CallError) {
        let reason = match problem {
            CallError::Refused { status: 401 | 403, reason } => reason.clone(),
            CallError::Unreachable(reason) | CallError::NoAnswer(reason) => match reason.split_once(ALERT) {
                Some((_, alert)) => format!("{}{alert}", ALERT.trim_start()),
                None => return,
            },
            CallError::Refused { .. } | CallError::Unreadable(_) => return,
        };
        let mut told = self.0.lock();
        let lately = |(former, at): &(String, Instant)| *former == reason && at.elapsed() < TOLD_EACH;
        if !told.get(address).is_some_and(lately) {
            tracing::warn!(peer_address = address, reason, "a node refuses this one");
            told.insert(address.to_owned(), (reason, Instant::now()));
        }
    }
}

/// How rustls begins to tell that the other side ended the handshake; what follows is the reason.
const ALERT: &str = " received fatal alert: ";

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
