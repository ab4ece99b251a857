//! Reads what a manifest names. The bytes themselves are stored as they were pushed: nothing here is written back.
//!
//! Lenient where documents in the field differ (unknown fields, doubled keys, `null` for an empty list, a byte order
//! mark), strict where a wrong reading would let a broken image in.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use flotilla_storage::Digest;
use serde::Deserializer;
use serde::de::{self, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Types of manifests beyond the four that are read: an index may have them as children.
const OTHER_MANIFESTS: [&str; 3] = [
    "application/vnd.oci.artifact.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
];

/// Layers of these types lie elsewhere if they have `urls`, and are not pushed.
const FOREIGN_LAYERS: [&str; 2] =
    ["application/vnd.docker.image.rootfs.foreign.", "application/vnd.oci.image.layer.nondistributable."];

/// The most descriptors that one manifest may have: each becomes part of a command in the log.
pub(super) const DESCRIPTORS_MAX: usize = 10_000;

/// The longest media type in bytes.
const MEDIA_TYPE_MAX: usize = 255;

/// What a manifest says, as far as a registry acts on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ManifestDocument {
    pub(super) media_type: String,
    /// Config and layers, those left out that lie elsewhere.
    pub(super) blobs: Vec<Digest>,
    /// Children of an index.
    pub(super) manifests: Vec<Digest>,
    /// Entries of an index that are no manifests by their type (BuildKit's caches).
    pub(super) either: Vec<Digest>,
    pub(super) subject: Option<Digest>,
    pub(super) artifact_type: Option<String>,
    /// Its annotations, where it has a subject.
    pub(super) annotations: Vec<(String, String)>,
    /// What a document of an unknown type mentions, if it is JSON.
    pub(super) mentions: Vec<Digest>,
}

/// Why a document cannot be taken; reads after «the manifest is not valid:».
type Reason = String;

impl ManifestDocument {
    /// Reads a document that was pushed with this `Content-Type`, if any.
    ///
    /// # Errors
    /// Why it is not valid.
    pub(super) fn parse(content_type: Option<&str>, bytes: &[u8]) -> Result<Self, Reason> {
        let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let fields = Fields::parse(text);
        let inner = fields.as_ref().map_or(Ok(None), |fields| fields.text("mediaType"))?;
        let outer = content_type.map(without_parameters).filter(|outer| !outer.is_empty());
        let media_type = match (outer, inner) {
            (Some(outer), Some(inner)) if outer != inner => {
                return Err(format!("Content-Type is {outer}, mediaType in the document is {inner}"));
            }
            (Some(outer), _) => outer.to_owned(),
            (None, Some(inner)) => inner,
            (None, None) => shape(fields.as_ref().map_err(Clone::clone)?).to_owned(),
        };
        check_media_type(&media_type)?;
        match media_type.as_str() {
            OCI_MANIFEST | DOCKER_MANIFEST => Self::image(media_type, &fields?),
            OCI_INDEX | DOCKER_LIST => Self::index(media_type, &fields?),
            // Of other documents nothing is known, and nothing is asked. What they mention is kept.
            _ => Ok(Self { media_type, mentions: mentions(text)?, ..Self::default() }),
        }
    }

    fn image(media_type: String, fields: &Fields<'_>) -> Result<Self, Reason> {
        fields.check_schema_version()?;
        fields.check_absent("manifests", "an image manifest")?;
        let config = fields.descriptor("config")?.ok_or("config is missing")?;
        let layers = fields.descriptors("layers")?;
        let subject = fields.descriptor("subject")?;
        let local = layers.iter().filter(|layer| !layer.lies_elsewhere()).map(|layer| layer.digest);
        let blobs = unique(std::iter::once(config.digest).chain(local));
        let artifact_type = fields.text("artifactType")?.or(Some(config.media_type).filter(|kind| !kind.is_empty()));
        check_length(artifact_type.as_deref())?;
        let subject = subject.map(|subject| subject.digest);
        let annotations = subject.map_or_else(Vec::new, |_| fields.annotations());
        Ok(Self { media_type, blobs, subject, artifact_type, annotations, ..Self::default() })
    }

    fn index(media_type: String, fields: &Fields<'_>) -> Result<Self, Reason> {
        fields.check_schema_version()?;
        fields.check_absent("config", "an index")?;
        fields.check_absent("layers", "an index")?;
        if !fields.0.contains_key("manifests") {
            return Err("manifests is missing".into());
        }
        let entries = fields.descriptors("manifests")?;
        let subject = fields.descriptor("subject")?;
        let of = |manifests: bool| {
            unique(entries.iter().filter(|entry| entry.is_manifest() == manifests).map(|entry| entry.digest))
        };
        let artifact_type = fields.text("artifactType")?;
        check_length(artifact_type.as_deref())?;
        let subject = subject.map(|subject| subject.digest);
        let annotations = subject.map_or_else(Vec::new, |_| fields.annotations());
        Ok(Self {
            media_type,
            blobs: Vec::new(),
            manifests: of(true),
            either: of(false),
            subject,
            artifact_type,
            annotations,
            mentions: Vec::new(),
        })
    }
}

/// Every digest that is a value somewhere in a JSON document; none of any other document.
fn mentions(text: &[u8]) -> Result<Vec<Digest>, Reason> {
    let mut found = BTreeSet::new();
    let mut document = serde_json::Deserializer::from_slice(text);
    let walked = Mentions(&mut found).deserialize(&mut document).and_then(|()| document.end());
    match (found.len() > DESCRIPTORS_MAX, walked) {
        (true, _) => Err(format!("it mentions more than {DESCRIPTORS_MAX} digests")),
        (false, Ok(())) => Ok(found.into_iter().collect()),
        (false, Err(_)) => Ok(Vec::new()),
    }
}

/// Collects the digests of a document as it is read: held whole, one of a few bytes an item takes many times its size.
struct Mentions<'a>(&'a mut BTreeSet<Digest>);

impl<'de> DeserializeSeed<'de> for Mentions<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Mentions<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any JSON with so many digests")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<(), E> {
        self.0.extend(text.parse::<Digest>().ok());
        if self.0.len() > DESCRIPTORS_MAX { Err(E::invalid_length(self.0.len(), &self)) } else { Ok(()) }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<(), A::Error> {
        while values.next_element_seed(Mentions(&mut *self.0))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        while fields.next_key::<IgnoredAny>()?.is_some() {
            fields.next_value_seed(Mentions(&mut *self.0))?;
        }
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// A media type without its parameters.
fn without_parameters(value: &str) -> &str {
    value.split(';').next().unwrap_or_default().trim()
}

/// What a document is that does not say it.
fn shape(fields: &Fields<'_>) -> &'static str {
    if fields.get("manifests").is_some() { OCI_INDEX } else { OCI_MANIFEST }
}

/// `type/subtype` in the characters of a token: it becomes a header again.
fn check_media_type(text: &str) -> Result<(), Reason> {
    let is_token = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
    };
    match text.split_once('/') {
        Some((kind, subtype)) if text.len() <= MEDIA_TYPE_MAX && is_token(kind) && is_token(subtype) => Ok(()),
        _ => Err(format!("the media type must be of the form type/subtype and at most {MEDIA_TYPE_MAX} bytes long")),
    }
}

/// Artifact types come in odd forms, which are kept; only their length is bounded, since lists of referrers carry them.
fn check_length(artifact_type: Option<&str>) -> Result<(), Reason> {
    match artifact_type {
        Some(text) if text.len() > MEDIA_TYPE_MAX => {
            Err(format!("the artifact type (or the config's media type) is longer than {MEDIA_TYPE_MAX} bytes"))
        }
        _ => Ok(()),
    }
}

fn unique(digests: impl Iterator<Item = Digest>) -> Vec<Digest> {
    let mut seen = BTreeSet::new();
    digests.filter(|digest| seen.insert(*digest)).collect()
}

/// A JSON object whose values are read on demand. Of doubled keys the last counts, as with most readers.
struct Fields<'a>(BTreeMap<String, &'a RawValue>);

impl<'a> Fields<'a> {
    fn parse(text: &'a [u8]) -> Result<Self, Reason> {
        serde_json::from_slice(text).map(Self).map_err(|error| format!("not a JSON object: {error}"))
    }

    /// A field's JSON text; `null` is as good as absent.
    fn get(&self, name: &str) -> Option<&'a str> {
        self.0.get(name).map(|value| value.get()).filter(|json| *json != "null")
    }

    /// A text field; empty is as good as absent.
    fn text(&self, name: &str) -> Result<Option<String>, Reason> {
        let Some(json) = self.get(name) else { return Ok(None) };
        let text: String = serde_json::from_str(json).map_err(|_| format!("{name} is not a string"))?;
        Ok(Some(text).filter(|text| !text.is_empty()))
    }

    /// What is no text is passed over: annotations are for people, and odd ones are in the field.
    fn annotations(&self) -> Vec<(String, String)> {
        let Some(json) = self.get("annotations") else { return Vec::new() };
        let annotations: BTreeMap<String, Value> = serde_json::from_str(json).unwrap_or_default();
        let texts = annotations.into_iter().filter_map(|(key, value)| match value {
            Value::String(text) => Some((key, text)),
            _ => None,
        });
        texts.collect()
    }

    fn descriptor(&self, name: &str) -> Result<Option<Descriptor>, Reason> {
        self.get(name).map(|json| Descriptor::parse(name, json)).transpose()
    }

    fn descriptors(&self, name: &str) -> Result<Vec<Descriptor>, Reason> {
        let Some(json) = self.get(name) else { return Ok(Vec::new()) };
        let entries: Vec<&RawValue> = serde_json::from_str(json).map_err(|_| format!("{name} is not a list"))?;
        if entries.len() > DESCRIPTORS_MAX {
            return Err(format!("{name} has more than {DESCRIPTORS_MAX} entries"));
        }
        entries
            .iter()
            .enumerate()
            .map(|(index, entry)| Descriptor::parse(&format!("{name}[{index}]"), entry.get()))
            .collect()
    }

    fn check_schema_version(&self) -> Result<(), Reason> {
        match self.get("schemaVersion") {
            Some("2") => Ok(()),
            _ => Err("schemaVersion is not 2".into()),
        }
    }

    /// A document that is an image to one reader and an index to another would be two things under one digest.
    fn check_absent(&self, name: &str, kind: &str) -> Result<(), Reason> {
        match self.get(name) {
            None => Ok(()),
            Some(_) => Err(format!("{kind} has no {name}")),
        }
    }
}

struct Descriptor {
    media_type: String,
    digest: Digest,
    has_urls: bool,
}

impl Descriptor {
    fn parse(at: &str, json: &str) -> Result<Self, Reason> {
        let within = |reason: Reason| format!("{at}: {reason}");
        let fields = Fields::parse(json.as_bytes()).map_err(within)?;
        let digest = fields.text("digest").map_err(within)?.ok_or_else(|| within("digest is missing".into()))?;
        let digest = digest.parse().map_err(|error| within(format!("digest: {error}")))?;
        let size = fields.get("size").ok_or_else(|| within("size is missing".into()))?;
        // Clients count in signed 64 bits.
        if size.parse::<i64>().map_or(true, |size| size < 0) {
            return Err(within("size is not a count of bytes".into()));
        }
        let urls: Option<Vec<String>> = fields
            .get("urls")
            .map(serde_json::from_str)
            .transpose()
            .map_err(|_| within("urls is not a list of strings".into()))?;
        let media_type = fields.text("mediaType").map_err(within)?.unwrap_or_default();
        Ok(Self { media_type, digest, has_urls: urls.is_some_and(|urls| !urls.is_empty()) })
    }

    fn lies_elsewhere(&self) -> bool {
        self.has_urls && FOREIGN_LAYERS.iter().any(|prefix| self.media_type.starts_with(prefix))
    }

    fn is_manifest(&self) -> bool {
        let kind = self.media_type.as_str();
        [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST].contains(&kind) || OTHER_MANIFESTS.contains(&kind)
    }
}

#[cfg(test)]
mod tests;
