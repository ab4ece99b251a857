use flotilla_storage::Algorithm;
use serde_json::json;

use super::*;

fn digest(name: &str) -> Digest {
    Digest::of(Algorithm::Sha256, name.as_bytes())
}

fn descriptor(media_type: &str, name: &str) -> serde_json::Value {
    json!({"mediaType": media_type, "digest": digest(name), "size": name.len()})
}

fn image() -> serde_json::Value {
    json!({"schemaVersion": 2, "config": descriptor("application/vnd.oci.image.config.v1+json", "config"),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", "layer")]})
}

fn parse(content_type: &str, document: &serde_json::Value) -> Result<ManifestDocument, Reason> {
    ManifestDocument::parse(Some(content_type), document.to_string().as_bytes())
}

#[test]
fn an_image_names_its_config_and_layers() {
    let parsed = parse(OCI_MANIFEST, &image()).unwrap();
    assert_eq!(parsed.blobs, [digest("config"), digest("layer")]);
    assert_eq!(parsed.artifact_type.as_deref(), Some("application/vnd.oci.image.config.v1+json"));
    assert_eq!((parsed.manifests, parsed.either, parsed.subject), (vec![], vec![], None));
}

#[test]
fn a_blob_that_is_config_and_layer_is_named_once() {
    let mut document = image();
    document["layers"] = json!([document["config"], document["config"]]);
    assert_eq!(parse(OCI_MANIFEST, &document).unwrap().blobs, [digest("config")]);
}

/// C03
#[test]
fn parameters_of_the_content_type_are_dropped() {
    let mut document = image();
    document["mediaType"] = json!(OCI_MANIFEST);
    let parsed = parse(&format!("{OCI_MANIFEST}; charset=utf-8"), &document).unwrap();
    assert_eq!(parsed.media_type, OCI_MANIFEST);
}

#[test]
fn without_a_content_type_the_document_says_what_it_is_by_name_or_shape() {
    let kind = |document: serde_json::Value| ManifestDocument::parse(None, document.to_string().as_bytes()).unwrap().media_type;
    let mut docker = image();
    docker["mediaType"] = json!(DOCKER_MANIFEST);
    assert_eq!(kind(docker), DOCKER_MANIFEST);
    assert_eq!(kind(image()), OCI_MANIFEST);
    assert_eq!(kind(json!({"schemaVersion": 2, "manifests": []})), OCI_INDEX);
    assert!(ManifestDocument::parse(None, b"not json").is_err());
}

#[test]
fn a_content_type_that_contradicts_the_document_is_refused() {
    let mut document = image();
    document["mediaType"] = json!(OCI_MANIFEST);
    assert!(parse(DOCKER_MANIFEST, &document).unwrap_err().contains("mediaType"));
    assert!(parse("application/json", &document).is_err());
}

#[test]
fn other_types_are_taken_as_they_are() {
    for bytes in [&b"anything"[..], b"", b"{\"layers\":7}"] {
        let parsed = ManifestDocument::parse(Some("application/vnd.example+json"), bytes).unwrap();
        assert_eq!(parsed, ManifestDocument { media_type: "application/vnd.example+json".into(), ..Default::default() });
    }
    for kind in ["x", "a/", "/b", "a/b c", "a/b\u{e4}", &format!("a/{}", "b".repeat(254))] {
        assert!(ManifestDocument::parse(Some(kind), b"x").is_err(), "{kind}");
    }
}

#[test]
fn junk_is_refused() {
    let text = image().to_string();
    let broken: [&[u8]; 9] = [
        &text.as_bytes()[..text.len() - 5],
        b"[]",
        b"",
        b"null",
        b"{}",
        br#"{"schemaVersion":2,"config":"x","layers":7}"#,
        br#"{"schemaVersion":2,"layers":[]}"#,
        br#"{"schemaVersion":2} {}"#,
        b"\xff\xfe",
    ];
    for bytes in broken {
        assert!(ManifestDocument::parse(Some(OCI_MANIFEST), bytes).is_err(), "{}", String::from_utf8_lossy(bytes));
        assert!(ManifestDocument::parse(Some(OCI_INDEX), bytes).is_err(), "{}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn descriptors_need_a_digest_and_a_size() {
    let with = |key: &str, value: serde_json::Value| {
        let mut document = image();
        document["layers"][0][key] = value;
        parse(OCI_MANIFEST, &document)
    };
    for (key, value) in [("digest", json!(null)), ("digest", json!("sha256:bad")), ("digest", json!("md5:00")), ("digest", json!(7)), ("size", json!(null))] {
        assert!(with(key, value.clone()).unwrap_err().starts_with("layers[0]: "), "{key} {value}");
    }
    for (key, value) in [("size", json!(-1)), ("size", json!("1")), ("size", json!(1.5)), ("urls", json!("x")), ("mediaType", json!({}))] {
        assert!(with(key, value.clone()).is_err(), "{key} {value}");
    }
    assert!(with("size", json!(0)).is_ok());
    assert!(with("mediaType", json!(null)).is_ok());
}

/// C05
#[test]
fn layers_that_lie_elsewhere_need_not_be_here() {
    for kind in ["application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"] {
        let mut document = image();
        document["layers"][0]["mediaType"] = json!(kind);
        document["layers"][0]["urls"] = json!(["https://layers.example/x"]);
        assert_eq!(parse(OCI_MANIFEST, &document).unwrap().blobs, [digest("config")]);
        document["layers"][0]["urls"] = json!([]);
        assert_eq!(parse(OCI_MANIFEST, &document).unwrap().blobs.len(), 2);
    }
}

#[test]
fn urls_on_an_ordinary_layer_do_not_excuse_it() {
    let mut document = image();
    document["layers"][0]["urls"] = json!(["https://layers.example/x"]);
    assert_eq!(parse(OCI_MANIFEST, &document).unwrap().blobs.len(), 2);
}

#[test]
fn entries_of_an_index_are_manifests_by_their_type() {
    let entries = [descriptor(OCI_MANIFEST, "child"), descriptor(DOCKER_LIST, "list"), descriptor("application/vnd.buildkit.cacheconfig.v0", "cache")];
    let document = json!({"schemaVersion": 2, "manifests": entries, "subject": descriptor(OCI_MANIFEST, "subject"), "artifactType": "a/b"});
    let parsed = parse(OCI_INDEX, &document).unwrap();
    assert_eq!(parsed.manifests, [digest("child"), digest("list")]);
    assert_eq!(parsed.either, [digest("cache")]);
    assert_eq!(parsed.subject, Some(digest("subject")));
    assert_eq!(parsed.artifact_type.as_deref(), Some("a/b"));
    assert_eq!(parse(OCI_INDEX, &json!({"schemaVersion": 2, "manifests": null})).unwrap().artifact_type, None);
}

#[test]
fn a_document_is_an_image_or_an_index() {
    let mut document = image();
    document["manifests"] = json!([]);
    assert!(parse(OCI_MANIFEST, &document).is_err());
    assert!(parse(OCI_INDEX, &document).is_err());
}

#[test]
fn odd_but_readable_documents_are_taken() {
    let text = image().to_string();
    let doubled = text.replacen('{', "{\"schemaVersion\":1,\"x\":{\"layers\":[]},", 1);
    for odd in [format!("\u{feff}{text}"), format!(" {text}\n\n"), doubled] {
        assert!(ManifestDocument::parse(Some(OCI_MANIFEST), odd.as_bytes()).is_ok(), "{odd}");
    }
}

#[test]
fn descriptors_are_limited_in_number() {
    let mut document = image();
    document["layers"] = serde_json::Value::Array(vec![descriptor("a/b", "x"); DESCRIPTORS_MAX + 1]);
    assert!(parse(OCI_MANIFEST, &document).unwrap_err().contains("10000"));
}
