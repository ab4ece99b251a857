//! The manifests that refer to another one (distribution specification, «Listing Referrers»).

use std::ops::ControlFlow;

use actix_web::http::header::{CONTENT_TYPE, HeaderName, HeaderValue, LINK};
use actix_web::{HttpRequest, HttpResponse};
use flotilla_raft::{Referrer, Registry, RepositoryName, Tag};
use flotilla_storage::{Digest, StorageError};
use serde_json::{Map, Value, json};

use super::content::Content;
use super::error::{OciError, blocking};
use super::extract::encoded;
use super::manifest_document::OCI_INDEX;
use super::{FLOTILLA_REVISION, Oci, checked, decimal};
use crate::request::{query, query_all};

const OCI_FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// The most descriptors of one page, so that its cost does not grow with the list.
const PAGE_MAX: usize = 100;

/// Rows that are read together: each may carry some MiB of annotations.
const ROWS: usize = 10;

/// A page is full at this many bytes of descriptors: clients refuse an index of 4 MiB.
const PAGE_BYTES: usize = 2 << 20;

/// The most rows that one request looks through for those that its filter wants.
const LOOK_MAX: usize = 10_000;

/// `GET` and `HEAD /v2/<name>/referrers/<digest>`
pub(crate) async fn list(
    oci: &Oci,
    request: &HttpRequest,
    repository: &RepositoryName,
    subject: &str,
) -> Result<HttpResponse, OciError> {
    let subject: Digest = subject.parse()?;
    let types: Vec<String> = query_all(request, "artifactType").into_iter().map(String::from).collect();
    let after = query(request, "last").map(|last| last.parse::<Digest>()).transpose()?;

    let freshness = oci.catch_up().await?;
    let revision = oci.consensus.applied_index();
    let (registry, name, wanted) = (oci.consensus.registry().clone(), repository.clone(), types.clone());
    let mut found = blocking(move || Found::look(&registry, &name, &subject, after, &wanted)).await?;
    if found.next.is_none() {
        found.add_listed_by_tag(oci, repository, &subject, &types).await?;
    }

    let mut answer = HttpResponse::Ok();
    answer.insert_header((CONTENT_TYPE, OCI_INDEX)).insert_header((FLOTILLA_REVISION, decimal(revision)));
    if !types.is_empty() {
        answer.insert_header((OCI_FILTERS_APPLIED, "artifactType"));
    }
    if let Some(warning) = freshness.warning() {
        answer.insert_header(warning);
    }
    if let Some(next) = found.next {
        answer.insert_header((LINK, link(repository, &subject, &types, &next)));
    }
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found.descriptors });
    Ok(answer.body(index.to_string()))
}

/// One page, and after which digest the next one begins.
#[derive(Default)]
struct Found {
    descriptors: Vec<Value>,
    bytes: usize,
    next: Option<Digest>,
}

impl Found {
    fn look(
        registry: &Registry,
        repository: &RepositoryName,
        subject: &Digest,
        mut after: Option<Digest>,
        types: &[String],
    ) -> Result<Self, StorageError> {
        let mut found = Self::default();
        let mut looked = 0;
        loop {
            let rows = registry.referrers(repository, subject, after.as_ref(), ROWS)?;
            let is_last = rows.len() < ROWS;
            looked += rows.len();
            for (digest, referrer) in rows {
                if is_wanted(types, referrer.artifact_type.as_deref())
                    && found.add(descriptor(&digest, referrer)).is_break()
                {
                    found.next = after;
                    return Ok(found);
                }
                after = Some(digest);
            }
            if is_last || looked >= LOOK_MAX {
                found.next = after.filter(|_| !is_last);
                return Ok(found);
            }
        }
    }

    fn add(&mut self, descriptor: Value) -> ControlFlow<()> {
        let bytes = descriptor.to_string().len();
        let is_full = self.descriptors.len() >= PAGE_MAX || self.bytes + bytes > PAGE_BYTES;
        if is_full && !self.descriptors.is_empty() {
            return ControlFlow::Break(());
        }
        self.bytes += bytes;
        self.descriptors.push(descriptor);
        ControlFlow::Continue(())
    }

    /// Adds what was listed under the referrers tag before the repository came here («Enabling the Referrers API»):
    /// manifests that the repository holds and that are not listed already. They end the last page, up to its limit in
    /// bytes.
    async fn add_listed_by_tag(
        &mut self,
        oci: &Oci,
        repository: &RepositoryName,
        subject: &Digest,
        types: &[String],
    ) -> Result<(), OciError> {
        let registry = oci.consensus.registry();
        let Some(tag) = referrers_tag(subject) else { return Ok(()) };
        let Some(tagged) = registry.tag(repository, &tag)? else { return Ok(()) };
        let Some(record) = registry.manifest(repository, &tagged.digest)? else { return Ok(()) };
        if record.media_type != OCI_INDEX {
            return Ok(());
        }
        let content = Content {
            digest: tagged.digest,
            size: record.size,
            inline: record.inline,
            media_type: OCI_INDEX,
            hot: true,
        };
        let body = content.read(oci).await?;
        let (registry, name, subject, types) = (registry.clone(), repository.clone(), *subject, types.to_vec());
        // An old index may name thousands.
        for descriptor in blocking(move || listed_by_tag(&registry, &name, &subject, &types, &body)).await? {
            self.bytes += descriptor.to_string().len();
            if self.bytes > PAGE_BYTES {
                break;
            }
            self.descriptors.push(descriptor);
        }
        Ok(())
    }
}

/// What an index of the old scheme lists that the repository holds and that is not listed by its own subject.
fn listed_by_tag(
    registry: &Registry,
    repository: &RepositoryName,
    subject: &Digest,
    types: &[String],
    index: &[u8],
) -> Result<Vec<Value>, StorageError> {
    // Whatever else stands under that tag lists nothing.
    let index: Value = serde_json::from_slice(index).unwrap_or_default();
    let mut listed = Vec::new();
    for descriptor in index["manifests"].as_array().into_iter().flatten() {
        let Some(digest) = descriptor["digest"].as_str().and_then(|digest| digest.parse::<Digest>().ok()) else {
            continue;
        };
        let manifest = registry.manifest(repository, &digest)?;
        let is_news = manifest.is_some_and(|manifest| manifest.subject != Some(*subject));
        if is_news && is_wanted(types, descriptor["artifactType"].as_str()) {
            listed.push(descriptor.clone());
        }
    }
    Ok(listed)
}

fn is_wanted(types: &[String], artifact_type: Option<&str>) -> bool {
    types.is_empty() || artifact_type.is_some_and(|is| types.iter().any(|wanted| wanted == is))
}

fn descriptor(digest: &Digest, referrer: Referrer) -> Value {
    let mut fields = Map::new();
    fields.insert("mediaType".into(), referrer.media_type.into());
    fields.insert("digest".into(), digest.to_string().into());
    fields.insert("size".into(), referrer.size.into());
    if let Some(artifact_type) = referrer.artifact_type {
        fields.insert("artifactType".into(), artifact_type.into());
    }
    if !referrer.annotations.is_empty() {
        let annotations: Map<String, Value> =
            referrer.annotations.into_iter().map(|(key, value)| (key, value.into())).collect();
        fields.insert("annotations".into(), annotations.into());
    }
    fields.into()
}

/// `<algorithm>-<encoded>`, cut to 64 characters («Referrers Tag Schema»).
fn referrers_tag(subject: &Digest) -> Option<Tag> {
    let (algorithm, encoded) = (subject.algorithm().name(), subject.hex());
    format!("{algorithm}-{}", &encoded[..encoded.len().min(64)]).parse().ok()
}

fn link(repository: &RepositoryName, subject: &Digest, types: &[String], last: &Digest) -> HeaderValue {
    let filters: String = types.iter().map(|kind| format!("artifactType={}&", encoded(kind))).collect();
    let last = last.to_string();
    let path = format_args!("/v2/{repository}/referrers/{subject}?{filters}last={}", encoded(&last));
    checked(format_args!("<{path}>; rel=\"next\""))
}

#[cfg(test)]
mod tests {
    use flotilla_storage::Algorithm;

    use super::*;

    fn referrer(annotation: usize) -> Referrer {
        Referrer {
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            size: 3,
            artifact_type: Some("application/sbom".into()),
            annotations: vec![("k".into(), "v".repeat(annotation))],
        }
    }

    #[test]
    fn a_page_is_bounded_in_number_and_bytes_and_never_empty() {
        let digest = Digest::of(Algorithm::Sha256, b"a");
        let mut few = Found::default();
        assert!(few.add(descriptor(&digest, referrer(3 << 20))).is_continue());
        assert!(few.add(descriptor(&digest, referrer(1))).is_break());
        let mut many = Found::default();
        assert_eq!((0..200).take_while(|_| many.add(descriptor(&digest, referrer(1))).is_continue()).count(), PAGE_MAX);
    }

    #[test]
    fn tags_of_the_old_scheme_are_cut_where_the_specification_cuts_them() {
        let sha512 = Digest::of(Algorithm::Sha512, b"a");
        let tag = referrers_tag(&sha512).unwrap();
        assert_eq!(tag.as_str(), format!("sha512-{}", &sha512.hex()[..64]));
    }

    #[test]
    fn the_next_page_keeps_the_filters() {
        let digest = Digest::of(Algorithm::Sha256, b"a");
        let name = "a/b".parse().unwrap();
        let link = link(&name, &digest, &["a/b+c".into()], &digest);
        let hex = digest.hex();
        assert_eq!(
            link,
            format!("</v2/a/b/referrers/sha256:{hex}?artifactType=a%2Fb%2Bc&last=sha256%3A{hex}>; rel=\"next\"")
        );
    }
}
