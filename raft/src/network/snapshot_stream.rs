//! A snapshot on the wire: one request whose body is frames, each a length (u32, big-endian) and an envelope with a
//! checksum. First the head, then chunks of rows, at the end an empty chunk.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use flotilla_storage::{Install, StorageError, View};
use futures::{Stream, StreamExt};
use openraft::raft::SnapshotResponse;
use serde::{Deserialize, Serialize};

use super::client::failure;
use super::{CallError, PREFIX, PeerClient, TO_HEADER};
use crate::member::{NodeId, NodeRecord};
use crate::types::{SnapshotMeta, TypeConfig, Vote};
use crate::wire::{self, Kind};

/// Bytes of rows in a chunk.
const CHUNK_BYTES: usize = 256 << 10;

/// The largest frame that is accepted, in bytes.
const FRAME_MAX: usize = 4 << 20;

/// Chunks that are read ahead of the network.
const AHEAD: usize = 4;

/// How long the whole copy may take; openraft gives it up by itself when it is not needed any more.
const COPY_LIMIT: Duration = Duration::from_secs(3600);

/// What the follower must know before the rows.
#[derive(Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) vote: Vote,
    pub(super) meta: SnapshotMeta,
}

type Chunk = Vec<(Vec<u8>, Vec<u8>)>;

/// Sends the rows of a view to a node, and waits until it has installed them.
pub(super) async fn send(
    client: &PeerClient,
    record: &NodeRecord,
    to: NodeId,
    vote: Vote,
    meta: SnapshotMeta,
    view: View,
) -> Result<SnapshotResponse<TypeConfig>, CallError> {
    let (frames, queue) = tokio::sync::mpsc::channel::<Result<Bytes, std::io::Error>>(AHEAD);
    tokio::task::spawn_blocking(move || {
        let result = produce(&frames, vote, meta, view);
        if let Err(problem) = result {
            tracing::warn!(error = %problem, "a copy of the state is given up");
            let _ = frames.blocking_send(Err(problem.into()));
        }
    });
    let body = reqwest::Body::wrap_stream(tokio_stream::wrappers::ReceiverStream::new(queue));
    let post = client
        .http()
        .post(format!("http://{}{PREFIX}/snapshot", record.peer_address))
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

fn produce(
    frames: &tokio::sync::mpsc::Sender<Result<Bytes, std::io::Error>>,
    vote: Vote,
    meta: SnapshotMeta,
    mut view: View,
) -> Result<(), StorageError> {
    let send = |envelope: Vec<u8>| frames.blocking_send(Ok(framed(&envelope))).map_err(|_| StorageError::Closed);
    send(wire::encode(Kind::SnapshotHead, &Head { vote, meta })?)?;
    while let Some(rows) = view.next_chunk(CHUNK_BYTES)? {
        send(wire::encode(Kind::SnapshotChunk, &rows)?)?;
    }
    send(wire::encode(Kind::SnapshotChunk, &Chunk::new())?)
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
            match self.body.next().await {
                Some(piece) => self.buffer.extend_from_slice(&piece?),
                None => return Err("the snapshot breaks off".into()),
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
