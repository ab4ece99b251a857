//! Content by digest, over HTTP: conditional requests, ranges, and bodies that come in or go out.

pub(crate) mod ranges;

use std::io;
use std::ops::Range;

use actix_web::body::{BodySize, MessageBody, SizedStream};
use actix_web::http::header;
use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder};
use bytes::{Bytes, BytesMut};
use flotilla_storage::Digest;
use futures::{Stream, StreamExt, TryStreamExt, future, stream};
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use uuid::Uuid;

use ranges::Wanted;

use super::error::OciError;
use super::{DOCKER_CONTENT_DIGEST, Oci, checked};
use crate::replication::{ReadBlobError, Replication};
use crate::request;

/// How much memory the bodies may take that are kept because they were asked for.
const HOT_BYTES: u64 = 32 * 1024 * 1024;

/// Bodies of manifests and small blobs that were asked for lately. They never change; whether a repository holds them
/// is asked of state each time.
pub(super) struct HotBodies(Cache<Digest, Bytes, BySize>);

#[derive(Clone)]
struct BySize;

impl Weighter<Digest, Bytes> for BySize {
    fn weight(&self, _: &Digest, body: &Bytes) -> u64 {
        // The entry itself takes some memory too.
        body.len() as u64 + 256
    }
}

impl HotBodies {
    /// Empty.
    pub(super) fn new() -> Self {
        let options = OptionsBuilder::new()
            .estimated_items_capacity(8 * 1024)
            .weight_capacity(HOT_BYTES)
            // Each shard must be able to hold the largest manifest, whatever the number of cores.
            .shards(4)
            .build()
            .expect("all that is required is set");
        Self(Cache::with_options(options, BySize, DefaultHashBuilder::default(), DefaultLifecycle::default()))
    }

    pub(super) fn get(&self, digest: &Digest) -> Option<Bytes> {
        self.0.get(digest)
    }

    pub(super) fn put(&self, digest: Digest, body: Bytes) {
        self.0.insert(digest, body);
    }
}

/// Content whose existence in a repository is established.
#[derive(Debug, Clone, Copy)]
pub(super) struct Content<'a> {
    pub(super) digest: Digest,
    pub(super) size: u64,
    /// Its bytes are rows of state; else they are a file.
    pub(super) inline: bool,
    pub(super) media_type: &'a str,
    /// Worth its memory also where it is a file.
    pub(super) hot: bool,
}

impl Content<'_> {
    /// The whole of it, in memory: for manifests.
    ///
    /// # Errors
    /// None of its bytes can be had.
    pub(super) async fn read(&self, oci: &Oci) -> Result<Bytes, OciError> {
        match self.load(oci).await? {
            Source::Memory(body) => Ok(body),
            Source::File { .. } => self.read_whole(oci).await,
        }
    }

    async fn load(&self, oci: &Oci) -> Result<Source, OciError> {
        if let Some(body) = oci.hot.get(&self.digest) {
            return Ok(Source::Memory(body));
        }
        let body = match self.inline {
            // Existence was looked up before: a removal may have come between, and the next look tells.
            true => oci
                .consensus
                .registry()
                .body(&self.digest)?
                .ok_or_else(|| OciError::unavailable("the content went away just now"))?,
            false if self.hot => self.read_whole(oci).await?,
            false => {
                return Ok(Source::File { replication: oci.replication.clone(), digest: self.digest, size: self.size });
            }
        };
        oci.hot.put(self.digest, body.clone());
        Ok(Source::Memory(body))
    }

    async fn read_whole(&self, oci: &Oci) -> Result<Bytes, OciError> {
        let pieces = oci.replication.read(&self.digest, self.size, 0..self.size).await?;
        let body = pieces.try_fold(BytesMut::new(), |mut body, piece| {
            body.extend_from_slice(&piece);
            future::ready(Ok(body))
        });
        let body = body.await.map_err(|_| OciError::from(ReadBlobError::Unreachable))?;
        match body.len() as u64 == self.size {
            true => Ok(body.freeze()),
            false => Err(ReadBlobError::Unreachable.into()),
        }
    }
}

/// Where the bytes come from.
#[derive(Clone)]
enum Source {
    Memory(Bytes),
    File { replication: Replication, digest: Digest, size: u64 },
}

impl Source {
    /// The bytes of a range, opened: an error comes before the first byte of the answer.
    async fn open(&self, range: Range<u64>) -> Result<Pieces, OciError> {
        match self {
            Self::Memory(body) => {
                let part = usize::try_from(range.start)
                    .ok()
                    .zip(usize::try_from(range.end).ok())
                    .and_then(|(start, end)| body.get(start..end));
                let part = body.slice_ref(part.ok_or_else(OciError::internal)?);
                Ok(stream::once(future::ready(Ok(part))).boxed_local())
            }
            Self::File { replication, digest, size } => Ok(replication.read(digest, *size, range).await?.boxed_local()),
        }
    }
}

type Pieces = stream::LocalBoxStream<'static, io::Result<Bytes>>;

/// The entity tag of content: its digest, which is as strong as one gets.
fn quoted(digest: &Digest) -> String {
    format!("\"{digest}\"")
}

/// Whether the client has the content already: `If-None-Match`.
fn is_known(request: &HttpRequest, digest: &Digest) -> bool {
    let etag = quoted(digest);
    let values = request.headers().get_all(header::IF_NONE_MATCH).filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == etag)
}

/// Whether the ranges are to be heeded: without `If-Range`, or where it names this content. Never where it is a date.
fn wanted(request: &HttpRequest, content: &Content<'_>) -> Wanted {
    let Some(range) = request::header(request, header::RANGE) else { return Wanted::Whole };
    let condition = request::header(request, header::IF_RANGE);
    // A range has a meaning for GET alone.
    if request.method() != Method::GET || condition.is_some_and(|condition| condition.trim() != quoted(&content.digest))
    {
        return Wanted::Whole;
    }
    ranges::parse(range, content.size)
}

/// Answers with content or the ranges of it that the client wants; `answer` has the other headers.
///
/// # Errors
/// 416, or none of its bytes can be had.
pub(super) async fn send(
    oci: &Oci,
    request: &HttpRequest,
    mut answer: HttpResponseBuilder,
    content: Content<'_>,
) -> Result<HttpResponse, OciError> {
    let size = content.size;
    answer
        .insert_header((DOCKER_CONTENT_DIGEST, checked(content.digest)))
        .insert_header((header::ETAG, checked(quoted(&content.digest))));
    if is_known(request, &content.digest) {
        return Ok(answer.status(StatusCode::NOT_MODIFIED).finish());
    }
    answer
        .insert_header((header::ACCEPT_RANGES, "bytes"))
        .insert_header((header::CONTENT_TYPE, checked(content.media_type)));
    if request.method() == Method::HEAD {
        return Ok(answer.body(SizedStream::new(size, nothing())));
    }
    let wanted = wanted(request, &content);
    if wanted == Wanted::Unsatisfiable {
        return Err(OciError::range_not_satisfiable(size));
    }
    let source = content.load(oci).await?;
    match wanted {
        Wanted::Parts(parts) => {
            answer.status(StatusCode::PARTIAL_CONTENT);
            match <[Range<u64>; 1]>::try_from(parts) {
                Ok([part]) => single(answer, &source, part, size).await,
                Err(parts) => multipart(answer, source, content, parts).await,
            }
        }
        Wanted::Whole | Wanted::Unsatisfiable => match source {
            Source::Memory(body) => Ok(answer.body(body)),
            source => Ok(answer.body(SizedStream::new(size, source.open(0..size).await?))),
        },
    }
}

/// 206 with one part.
async fn single(
    mut answer: HttpResponseBuilder,
    source: &Source,
    part: Range<u64>,
    size: u64,
) -> Result<HttpResponse, OciError> {
    answer.insert_header((header::CONTENT_RANGE, content_range(&part, size)));
    let length = part.end - part.start;
    Ok(answer.body(SizedStream::new(length, source.open(part).await?)))
}

/// 206 with several parts. Each is opened when the one before it is sent, so that a slow client holds one file.
async fn multipart(
    mut answer: HttpResponseBuilder,
    source: Source,
    content: Content<'_>,
    parts: Vec<Range<u64>>,
) -> Result<HttpResponse, OciError> {
    let boundary = Uuid::new_v4().simple().to_string();
    let head = |part: &Range<u64>| {
        let (media_type, range) = (content.media_type, content_range(part, content.size));
        Bytes::from(format!("\r\n--{boundary}\r\nContent-Type: {media_type}\r\nContent-Range: {range}\r\n\r\n"))
    };
    let sections: Vec<_> = parts.into_iter().map(|part| (head(&part), part)).collect();
    let end = Bytes::from(format!("\r\n--{boundary}--\r\n"));
    let length =
        sections.iter().map(|(head, part)| head.len() as u64 + part.end - part.start).sum::<u64>() + end.len() as u64;

    // The first is opened here, for an error that can still be answered.
    let mut opened = None;
    if let Some((_, part)) = sections.first() {
        opened = Some(source.open(part.clone()).await?);
    }
    let sections = stream::iter(sections).then(move |(head, part)| {
        let (source, opened) = (source.clone(), opened.take());
        async move {
            let pieces = match opened {
                Some(pieces) => pieces,
                None => source.open(part).await.map_err(io::Error::other)?,
            };
            Ok::<_, io::Error>(stream::once(future::ready(Ok(head))).chain(pieces))
        }
    });
    let body = sections.try_flatten().chain(stream::once(future::ready(Ok(end))));
    answer.insert_header((header::CONTENT_TYPE, format!("multipart/byteranges; boundary={boundary}")));
    Ok(answer.body(SizedStream::new(length, body)))
}

fn content_range(part: &Range<u64>, size: u64) -> String {
    format!("bytes {}-{}/{size}", part.start, part.end - 1)
}

/// Takes the body from an answer to HEAD; its length stays.
pub(crate) fn strip_body(answer: HttpResponse) -> HttpResponse {
    match answer.body().size() {
        BodySize::Sized(size) => answer.map_body(|_, _| SizedStream::new(size, nothing())).map_into_boxed_body(),
        BodySize::None | BodySize::Stream => answer,
    }
}

fn nothing() -> impl Stream<Item = Result<Bytes, io::Error>> {
    stream::empty()
}
