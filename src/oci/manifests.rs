//! Manifests: push, pull and delete, by tag and by digest.

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use flotilla_raft::command::INLINE_BODY_MAX;
use flotilla_raft::{Answer, Body, Command, ManifestPut, ManifestRecord, Refusal, RepositoryName, Tag};
use flotilla_storage::{Algorithm, Digest};
use uuid::Uuid;

use super::content::{self, Content};
use super::error::{Code, OciError, blocking};
use super::extract::Reference;
use super::manifest_document::ManifestDocument;
use super::{DOCKER_CONTENT_DIGEST, FLOTILLA_REVISION, Freshness, Oci, checked, decimal};
use super::{condition, past};
use crate::body::read_body;
use crate::request::query_all;

const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");

/// The most `tag` parameters of one PUT; the specification asks for ten.
const TAG_PARAMETERS_MAX: usize = 50;

/// How often a push begins again because nodes that had taken its bytes left the cluster or collected them meanwhile.
const ATTEMPTS: usize = 3;

/// Hashing and parsing this many bytes would hold up a worker's other requests.
const EXAMINE_INLINE_MAX: usize = 128 * 1024;

/// `GET` and `HEAD /v2/<name>/manifests/<reference>`
///
/// What a client accepts is not looked at: a reference names one document (C09).
pub(crate) async fn get(
    oci: &Oci,
    request: &HttpRequest,
    repository: &RepositoryName,
    reference: &str,
) -> Result<HttpResponse, OciError> {
    // What cannot be a tag is no tag of the repository.
    let parsed = Reference::parse(reference).map_err(|error| match reference.contains(':') {
        true => error,
        false => OciError::manifest_unknown(reference),
    })?;
    let mut answer = HttpResponse::Ok();
    let (digest, record) = match parsed {
        Reference::Tag(tag) => {
            let found = match past::revision(oci, request).await? {
                Some(revision) => by_tag_at(oci, repository, &tag, revision).await?,
                None => by_tag(oci, repository, &tag).await?,
            };
            answer.insert_header((FLOTILLA_REVISION, decimal(found.revision)));
            if let Some(warning) = found.freshness.warning() {
                answer.insert_header(warning);
            }
            (found.digest, found.record)
        }
        Reference::Digest(digest) => {
            let found = oci.find(|| Ok(oci.consensus.registry().manifest(repository, &digest)?)).await?;
            let record = found.ok_or_else(|| unknown(oci, reference))?;
            answer.insert_header((FLOTILLA_REVISION, decimal(record.revision)));
            (digest, record)
        }
    };
    let content =
        Content { digest, size: record.size, inline: record.inline, media_type: &record.media_type, hot: true };
    content::send(oci, request, answer, content).await
}

struct Tagged {
    digest: Digest,
    record: ManifestRecord,
    revision: u64,
    freshness: Freshness,
}

async fn by_tag(oci: &Oci, repository: &RepositoryName, tag: &Tag) -> Result<Tagged, OciError> {
    let freshness = oci.catch_up().await?;
    let registry = oci.consensus.registry();
    // A tag may move, and its former manifest go, between the two look-ups: then the tag says where it is now.
    for _ in 0..ATTEMPTS {
        let Some(found) = registry.tag(repository, tag)? else { break };
        if let Some(record) = registry.manifest(repository, &found.digest)? {
            return Ok(Tagged { digest: found.digest, record, revision: found.revision, freshness });
        }
    }
    Err(freshness.missing(unknown(oci, tag)))
}

/// A tag as it was. A manifest that was deleted since is kept as long as that can be asked for.
async fn by_tag_at(oci: &Oci, repository: &RepositoryName, tag: &Tag, revision: u64) -> Result<Tagged, OciError> {
    let missing = || OciError::manifest_unknown(tag).revision(revision);
    let (revision, digest) = past::tag_at(oci, repository, tag, revision).await?.ok_or_else(missing)?;
    let registry = oci.consensus.registry();
    let record = match registry.manifest(repository, &digest)? {
        Some(record) => record,
        None => registry.former_manifest(repository, &digest)?.ok_or_else(missing)?.record,
    };
    Ok(Tagged { digest, record, revision, freshness: Freshness::Current })
}

fn unknown(oci: &Oci, reference: impl std::fmt::Display) -> OciError {
    OciError::manifest_unknown(reference).revision(oci.consensus.applied_index())
}

/// `PUT /v2/<name>/manifests/<reference>`
pub(crate) async fn put(
    oci: &Oci,
    request: &HttpRequest,
    repository: RepositoryName,
    reference: &str,
    payload: web::Payload,
) -> Result<HttpResponse, OciError> {
    let reference = Reference::parse(reference)?;
    let tags = match &reference {
        Reference::Tag(tag) => vec![tag.clone()],
        Reference::Digest(_) => tag_parameters(request)?,
    };
    let condition = condition::of(request)?;
    if condition.is_some() && tags.is_empty() {
        return Err(OciError::bad_request(Code::Unsupported, "a condition is about a tag, and none is put here"));
    }
    let content_type = match request.headers().get(header::CONTENT_TYPE).map(HeaderValue::to_str) {
        None => None,
        Some(Ok(text)) => Some(text.to_owned()),
        Some(Err(_)) => return Err(invalid("Content-Type is not ASCII")),
    };
    oci.replication.require_room().await?;
    let (limit, pause) = (oci.config.max_manifest_size.as_u64(), oci.config.body_timeout);
    let mut memory = oci.bodies.share();
    let bytes = read_body(request, payload, limit, pause, &mut memory).await?;
    let (digest, document) = examine(&reference, content_type, bytes.clone()).await?;

    let put = ManifestPut {
        repository: repository.clone(),
        digest,
        media_type: document.media_type,
        size: bytes.len() as u64,
        body: Body::Inline(Bytes::new()),
        tags: tags.clone(),
        blobs: document.blobs,
        manifests: document.manifests,
        either: document.either,
        subject: document.subject,
        artifact_type: document.artifact_type,
        annotations: document.annotations,
        condition,
        mentions: document.mentions,
    };
    let subject = put.subject;
    let stored = propose(oci, put, &bytes).await?;
    stored.result.map_err(|refusal| OciError::from(refusal).revision(stored.revision))?;
    oci.hot.put(digest, bytes);

    let mut answer = HttpResponse::Created();
    answer.insert_header((header::LOCATION, checked(format_args!("/v2/{repository}/manifests/{digest}"))));
    answer.insert_header((DOCKER_CONTENT_DIGEST, checked(digest)));
    answer.insert_header((FLOTILLA_REVISION, decimal(stored.revision)));
    if let Some(subject) = subject {
        answer.insert_header((OCI_SUBJECT, checked(subject)));
    }
    if matches!(reference, Reference::Digest(_)) {
        tags.iter().for_each(|tag| {
            answer.append_header((OCI_TAG, checked(tag)));
        });
    }
    Ok(answer.finish())
}

/// The tags that a PUT by digest asks for beside (specification, end-7b).
fn tag_parameters(request: &HttpRequest) -> Result<Vec<Tag>, OciError> {
    let values = query_all(request, "tag");
    if values.len() > TAG_PARAMETERS_MAX {
        let message = format!("at most {TAG_PARAMETERS_MAX} tags in one request");
        return Err(OciError::new(StatusCode::URI_TOO_LONG, Code::ManifestInvalid, message));
    }
    let mut tags = Vec::with_capacity(values.len());
    for value in values {
        let tag: Tag = value.parse()?;
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    Ok(tags)
}

/// Checks the bytes against their reference, and reads what they name.
async fn examine(
    reference: &Reference,
    content_type: Option<String>,
    bytes: Bytes,
) -> Result<(Digest, ManifestDocument), OciError> {
    let named = match reference {
        Reference::Tag(_) => None,
        Reference::Digest(digest) => Some(*digest),
    };
    let few = bytes.len() <= EXAMINE_INLINE_MAX;
    let examine = move || {
        let digest = Digest::of(named.map_or(Algorithm::Sha256, |digest| digest.algorithm()), &bytes);
        if named.is_some_and(|named| named != digest) {
            return Err(OciError::bad_request(Code::DigestInvalid, format!("the body's digest is {digest}")));
        }
        let document = ManifestDocument::parse(content_type.as_deref(), &bytes).map_err(invalid)?;
        Ok((digest, document))
    };
    if few {
        return examine();
    }
    blocking(examine).await
}

fn invalid(reason: impl std::fmt::Display) -> OciError {
    OciError::bad_request(Code::ManifestInvalid, format!("the manifest is not valid: {reason}"))
}

/// Bytes first, then the log.
async fn propose(oci: &Oci, mut put: ManifestPut, bytes: &Bytes) -> Result<Answer, OciError> {
    let mut attempts = ATTEMPTS;
    loop {
        put.body = match put.size <= INLINE_BODY_MAX {
            true => Body::Inline(bytes.clone()),
            false => oci.replication.store(&put.repository, bytes.clone(), &put.digest).await?,
        };
        // A new id each time, since the command is another one: its holders differ.
        let answer = oci.consensus.propose(Uuid::new_v4(), Command::PutManifest(Box::new(put.clone()))).await?;
        attempts -= 1;
        let again = matches!(answer.result, Err(Refusal::HoldersGone | Refusal::PromiseExpired));
        if !again || attempts == 0 {
            return Ok(answer);
        }
    }
}

/// `DELETE /v2/<name>/manifests/<reference>`: by tag the tag alone, by digest the manifest and all its tags.
pub(crate) async fn delete(
    oci: &Oci,
    request: &HttpRequest,
    repository: RepositoryName,
    reference: &str,
) -> Result<HttpResponse, OciError> {
    let condition = condition::of(request)?;
    let command = match Reference::parse(reference) {
        Ok(Reference::Tag(tag)) => Command::DeleteTag { repository, tag, condition },
        Ok(Reference::Digest(_)) if condition.is_some() => {
            return Err(OciError::bad_request(Code::Unsupported, "a condition is about a tag, not about a manifest"));
        }
        Ok(Reference::Digest(digest)) => Command::DeleteManifest { repository, digest },
        Err(error) if reference.contains(':') => return Err(error),
        Err(_) => return Err(unknown(oci, reference)),
    };
    oci.remove(command).await
}
