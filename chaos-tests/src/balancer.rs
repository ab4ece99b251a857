//! A balancer without affinity: each request goes to the next node. Bodies are streamed both ways, and those of
//! requests at a limited rate if need be.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use futures::StreamExt as _;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, BodyStream, Full, StreamBody};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

type Body = BoxBody<Bytes, hyper::Error>;

/// A running balancer; dropping it stops it.
#[derive(Debug)]
pub struct Balancer {
    /// Where it listens.
    pub url: String,
    accepting: JoinHandle<()>,
}

impl Balancer {
    /// Listens on a free port of loopback in front of these nodes (`http://host:port`).
    pub async fn start(nodes: &[String]) -> anyhow::Result<Self> {
        Self::start_with(nodes, None).await
    }

    /// The same, and each request's body passes at this many bytes per second at most: a push of some size is then
    /// surely under way for a while, however fast the machine is.
    pub async fn start_slow(nodes: &[String], bytes_per_second: u32) -> anyhow::Result<Self> {
        Self::start_with(nodes, Some(f64::from(bytes_per_second))).await
    }

    async fn start_with(nodes: &[String], bytes_per_second: Option<f64>) -> anyhow::Result<Self> {
        let listener =
            TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.context("a port for the balancer")?;
        let url = format!("http://{}", listener.local_addr()?);
        let nodes: Arc<[String]> =
            nodes.iter().map(|url| url.trim_start_matches("http://").trim_end_matches('/').to_owned()).collect();
        let turns = Arc::new(Turns { nodes, next: AtomicUsize::new(0), bytes_per_second });
        let accepting = tokio::spawn(async move {
            // Ends with the task: when the balancer is dropped, or the listener fails.
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&turns)));
            }
        });
        Ok(Self { url, accepting })
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

#[derive(Debug)]
struct Turns {
    nodes: Arc<[String]>,
    next: AtomicUsize,
    bytes_per_second: Option<f64>,
}

impl Turns {
    /// A connection to the next node; one that does not accept is passed over.
    async fn connect(&self) -> Option<TcpStream> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        for attempt in 0..self.nodes.len() {
            let node = &self.nodes[turn.wrapping_add(attempt) % self.nodes.len()];
            if let Ok(stream) = TcpStream::connect(node).await {
                return Some(stream);
            }
        }
        None
    }
}

async fn serve(stream: TcpStream, turns: Arc<Turns>) {
    let service = service_fn(move |request| {
        let turns = Arc::clone(&turns);
        async move { Ok::<_, hyper::Error>(forward(request, &turns).await) }
    });
    // A client that goes away is no error of ours.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn forward(request: Request<Incoming>, turns: &Turns) -> Response<Body> {
    let Some(stream) = turns.connect().await else {
        return refusal("no node answers");
    };
    match ask(request.map(|body| paced(body, turns.bytes_per_second)), stream).await {
        Ok(response) => response,
        Err(error) => refusal(&error.to_string()),
    }
}

/// One request over a connection of its own; `Host` stays as the client gave it.
async fn ask(mut request: Request<Body>, stream: TcpStream) -> hyper::Result<Response<Body>> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    let mut response = sender.send_request(request).await?;
    response.headers_mut().remove(CONNECTION);
    Ok(response.map(BodyExt::boxed))
}

fn paced(body: Incoming, bytes_per_second: Option<f64>) -> Body {
    let Some(rate) = bytes_per_second else { return body.boxed() };
    let frames = BodyStream::new(body).then(move |frame| async move {
        let bytes = frame.as_ref().ok().and_then(|frame| frame.data_ref()).map_or(0, Bytes::len);
        tokio::time::sleep(Duration::from_secs_f64(bytes as f64 / rate)).await;
        frame
    });
    BodyExt::boxed(StreamBody::new(frames))
}

fn refusal(reason: &str) -> Response<Body> {
    let body = Full::new(Bytes::from(reason.to_owned()));
    let mut response = Response::new(body.map_err(|never| match never {}).boxed());
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Client, Method};

    async fn node(name: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = service_fn(move |request: Request<Incoming>| async move {
                    let body = request.into_body().collect().await?.to_bytes();
                    let answer = format!("{name} {}", body.len());
                    Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from(answer))))
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        url
    }

    #[tokio::test]
    async fn each_request_of_one_client_goes_to_the_next_node_and_dead_ones_are_passed_over() {
        let nodes = [node("a").await, "http://127.0.0.1:1".to_owned(), node("b").await];
        let balancer = Balancer::start(&nodes).await.expect("it starts");
        let client = Client::new(vec![balancer.url.clone()]);
        let mut answers = Vec::new();
        for size in [0, 1, 100_000] {
            let body = Bytes::from(vec![7; size]);
            let reply = client.send(Method::POST, "/", &[], body).await.expect("a node answers");
            answers.push(reply.text());
        }
        assert_eq!(answers, ["a 0", "b 1", "b 100000"]);
    }
}
