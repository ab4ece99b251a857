//! A snapshot on the wire: one request whose body is frames, each a length (u32, big-endian) and an envelope with a
//! checksum. First the head, then chunks of rows, at the end an empty chunk.

use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use flotilla_storage::{Install, StorageError, View};
use futures::{Stream, StreamExt};
use openraft::raft::SnapshotResponse;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::client::failure;
use super::{CallError, PeerClient, TO_HEADER};
use crate::log_store::LogStore;
use crate::member::{NodeId, NodeRecord};
use crate::types::{SnapshotMeta, TypeConfig, Vote};
use crate::wire::{self, Kind};

/// Bytes of rows in a chunk.
const CHUNK_BYTES: usize = 256 << 10;

/// The largest frame that is accepted, in bytes.
const FRAME_MAX: usize = 4 << 20;

/// Chunks that are read ahead of the network.
const AHEAD: usize = 4;

/// How long the whole copy and its installation may take; openraft gives it up by itself when it is not needed any more.
const COPY_LIMIT: Duration = Duration::from_secs(3600);

/// How long either side waits for the other's next step. One that is cut off without a word must not hold the other:
/// the follower takes one copy at a time, and the leader builds no new snapshot while a copy is out.
const STEP_LIMIT: Duration = Duration::from_secs(60);

/// A copy during which the log grows past this many bytes is given up, since nothing is purged meanwhile.
const LOG_MAX_BYTES: u64 = 2 << 30;

/// What the follower must know before the rows.
#[derive(Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) vote: Vote,
    pub(super) meta: SnapshotMeta,
}

type Chunk = Vec<(Vec<u8>, Vec<u8>)>;

/// Sends the rows of a view to a node, and waits until it has installed them. `log` is watched meanwhile.
pub(super) async fn send(
    client: &PeerClient,
    record: &NodeRecord,
    to: NodeId,
    head: Head,
    view: View,
    log: LogStore,
) -> Result<SnapshotResponse<TypeConfig>, CallError> {
    let (frames, queue) = mpsc::channel(AHEAD);
    tokio::spawn(async move {
        if let Err(problem) = produce(&frames, &head, view, &log).await {
            tracing::warn!(error = %problem, "a copy of the state is given up");
            // The follower must not take what came for the whole; if it does not listen any more, all the better.
            let _ = frames.try_send(Err(problem));
        }
    });
    let body = reqwest::Body::wrap_stream(tokio_stream::wrappers::ReceiverStream::new(queue));
    let post = client
        .post(&record.peer_address, "snapshot")
        .timeout(COPY_LIMIT)
        .header(TO_HEADER, format!("{to:012x}"))
        .body(body);
    let answer = post.send().await.map_err(|problem| failure(&problem))?;
    let status = answer.status().as_u16();
    let bytes = answer.bytes().await.map_err(|problem| failure(&problem))?;
    if status != 200 {
        return Err(CallError::NoAnswer(format!(
            "snapshot refused with status {status}: {}",
            String::from_utf8_lossy(&bytes)
        )));
    }
    wire::decode(Kind::Response, &bytes).map_err(|problem| CallError::Unreadable(problem.to_string()))
}

type FrameSender = mpsc::Sender<Result<Bytes, io::Error>>;

/// Reads the view to its end. It is closed when this returns, whatever the follower does.
async fn produce(frames: &FrameSender, head: &Head, view: View, log: &LogStore) -> Result<(), io::Error> {
    put(frames, &wire::encode(Kind::SnapshotHead, head)?).await?;
    let mut view = view;
    loop {
        if log.size_bytes() > LOG_MAX_BYTES {
            return Err(io::Error::other("the log has grown too much meanwhile"));
        }
        let read = move || {
            let rows: Chunk = view.next_chunk(CHUNK_BYTES)?.unwrap_or_default();
            Ok::<_, StorageError>((wire::encode(Kind::SnapshotChunk, &rows)?, rows.is_empty(), view))
        };
        let (frame, is_end, same) = tokio::task::spawn_blocking(read).await.map_err(io::Error::other)??;
        put(frames, &frame).await?;
        if is_end {
            return Ok(());
        }
        view = same;
    }
}

async fn put(frames: &FrameSender, envelope: &[u8]) -> Result<(), io::Error> {
    match tokio::time::timeout(STEP_LIMIT, frames.send(Ok(framed(envelope)))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(io::Error::other("the follower takes no more of it")),
        Err(_) => Err(io::Error::other("the follower does not go on")),
    }
}

fn framed(envelope: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(4 + envelope.len());
    frame.extend_from_slice(&(envelope.len() as u32).to_be_bytes());
    frame.extend_from_slice(envelope);
    frame.freeze()
}

/// Takes frames from a body.
struct Frames<S> {
    body: S,
    buffer: BytesMut,
}

impl<S: Stream<Item = Result<Bytes, String>> + Unpin> Frames<S> {
    async fn next(&mut self) -> Result<Bytes, String> {
        loop {
            if self.buffer.len() >= 4 {
                let length =
                    u32::from_be_bytes([self.buffer[0], self.buffer[1], self.buffer[2], self.buffer[3]]) as usize;
                if length > FRAME_MAX {
                    return Err(format!("a frame of {length} bytes"));
                }
                if self.buffer.len() >= 4 + length {
                    self.buffer.advance(4);
                    return Ok(self.buffer.split_to(length).freeze());
                }
            }
            match tokio::time::timeout(STEP_LIMIT, self.body.next()).await {
                Ok(Some(piece)) => self.buffer.extend_from_slice(&piece?),
                Ok(None) => return Err("the snapshot breaks off".into()),
                Err(_) => return Err("the snapshot does not go on".into()),
            }
        }
    }
}

/// Writes the rows of a body into a new generation; returns it, not yet installed, with the head.
pub(super) async fn receive<S: Stream<Item = Result<Bytes, String>> + Unpin>(
    body: S,
    install: Install,
) -> Result<(Head, Install), String> {
    let mut frames = Frames { body, buffer: BytesMut::new() };
    let head = frames.next().await?;
    let head: Head = wire::decode(Kind::SnapshotHead, &head).map_err(|problem| problem.to_string())?;
    let mut install = install;
    loop {
        let frame = frames.next().await?;
        let written = tokio::task::spawn_blocking(move || {
            let rows: Chunk = wire::decode(Kind::SnapshotChunk, &frame)?;
            install.put(&rows)?;
            Ok::<_, StorageError>((rows.is_empty(), install))
        });
        let (is_end, same) =
            written.await.map_err(|problem| problem.to_string())?.map_err(|problem| problem.to_string())?;
        install = same;
        if is_end {
            return Ok((head, install));
        }
    }
}
