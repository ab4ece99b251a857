//! What the API server asks (`admission.k8s.io/v1`): read as far as it can be, and the images that it is about.

use std::collections::BTreeSet;

use flotilla_raft::settings::Rules;
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, Operation};
use serde::Deserialize;
use serde_json::Value;

use super::decide::Image;

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";

/// On pods that the kubelet reports for the files of its own folder; they cannot be changed.
const MIRROR_ANNOTATION: &str = "/metadata/annotations/kubernetes.io~1config.mirror";

/// The most images of a pod that are judged: what is decided about each costs time, and everybody may send pods.
const IMAGES_MAX: usize = 1_000;

/// The lists of a pod's specification whose items have an image, and where in the item.
const LISTS: [(&str, &str); 4] = [
    ("containers", "image"),
    ("ephemeralContainers", "image"),
    ("initContainers", "image"),
    ("volumes", "image/reference"),
];

/// What carries a pod: `resize` is not asked about, since it changes no image.
pub(crate) const POD_RESOURCES: [&str; 2] = ["pods", "pods/ephemeralcontainers"];

/// What carries a pod template: group, resource, and where, as a JSON pointer.
pub(crate) const TEMPLATES: [(&str, &str, &str); 8] = [
    ("", "podtemplates", "/template"),
    ("", "replicationcontrollers", "/spec/template"),
    ("apps", "deployments", "/spec/template"),
    ("apps", "replicasets", "/spec/template"),
    ("apps", "statefulsets", "/spec/template"),
    ("apps", "daemonsets", "/spec/template"),
    ("batch", "jobs", "/spec/template"),
    ("batch", "cronjobs", "/spec/jobTemplate/spec/template"),
];

/// A request that was understood.
#[derive(Debug)]
pub(crate) struct Review {
    pub(crate) request: AdmissionRequest<DynamicObject>,
    /// What of it is judged.
    pub(crate) images: Vec<Image>,
    /// The object carries a pod template and is no pod.
    pub(crate) is_template: bool,
    /// Its images cannot be replaced.
    pub(crate) is_fixed: bool,
    /// Where the object should have a pod template by the settings, and has none.
    pub(crate) missing_template: Option<String>,
}

/// Why a body cannot be judged.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// It is no review: HTTP 400.
    NoReview(String),
    /// A review whose rest is not understood: the answer to this uid is no.
    Denied { uid: String, reason: String },
}

impl Review {
    /// Reads the body of a call.
    ///
    /// # Errors
    /// What to answer instead.
    pub(crate) fn parse(body: &[u8], rules: &Rules) -> Result<Self, Unreadable> {
        let no_review = |reason: &str| Unreadable::NoReview(reason.to_owned());
        let mut document: Value =
            serde_json::from_slice(body).map_err(|error| Unreadable::NoReview(format!("not JSON: {error}")))?;
        let field = |pointer: &str| document.pointer(pointer).and_then(Value::as_str);
        if field("/kind") != Some(KIND) {
            return Err(no_review("not an AdmissionReview"));
        }
        if field("/apiVersion") != Some(API_VERSION) {
            return Err(no_review("only admission.k8s.io/v1 is understood"));
        }
        let uid = field("/request/uid").filter(|uid| !uid.is_empty());
        let uid = uid.ok_or_else(|| no_review("the request has no uid"))?.to_owned();
        let denied = |reason: String| Unreadable::Denied { uid: uid.clone(), reason };
        let mut request = document.get_mut("request").map(Value::take).unwrap_or_default();
        let [object, old] =
            ["object", "oldObject"].map(|field| request.get_mut(field).map(Value::take).unwrap_or_default());
        let request: AdmissionRequest<DynamicObject> = serde_json::from_value(request)
            .map_err(|error| denied(format!("the request is not understood: {error}")))?;
        let nothing =
            |request| Self { request, images: Vec::new(), is_template: false, is_fixed: true, missing_template: None };
        let Some(place) = pod_spec(&request, rules) else { return Ok(nothing(request)) };
        if object.is_null() {
            return Err(denied("the request has no object".into()));
        }
        let known: BTreeSet<(&str, String)> = match request.operation {
            // What is there already must not stand in the way of anything else that is changed.
            Operation::Update => {
                let before = images(&old, &place.spec).map_err(&denied)?.unwrap_or_default();
                before.into_iter().map(|(list, image)| (list, image.text)).collect()
            }
            _ => BTreeSet::new(),
        };
        let found = match images(&object, &place.spec).map_err(&denied)? {
            Some(found) => found,
            None if place.is_configured => {
                return Ok(Self { missing_template: Some(field_of(&place.spec)), ..nothing(request) });
            }
            None => return Err(denied(format!("{} is missing", field_of(&place.spec)))),
        };
        let images = found.into_iter().filter(|(list, image)| !known.contains(&(*list, image.text.clone())));
        let images: Vec<Image> = images.map(|(_, image)| image).collect();
        if images.len() > IMAGES_MAX {
            return Err(denied(format!("it brings {} images, more than {IMAGES_MAX}", images.len())));
        }
        Ok(Self {
            images,
            is_template: place.is_template,
            // Pods alone can be mirrors.
            is_fixed: !place.is_template && object.pointer(MIRROR_ANNOTATION).is_some(),
            missing_template: None,
            request,
        })
    }
}

/// What a body says of itself, of whatever else it consists.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Head {
    pub(crate) request: HeadOfRequest,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct HeadOfRequest {
    pub(crate) uid: String,
    pub(crate) operation: String,
    pub(crate) namespace: String,
    pub(crate) resource: HeadOfResource,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct HeadOfResource {
    pub(crate) resource: String,
}

impl Head {
    /// `None` for what has no uid. Skips over the object, so that it takes little time.
    pub(crate) fn of(body: &[u8]) -> Option<Self> {
        serde_json::from_slice(body).ok().filter(|head: &Self| !head.request.uid.is_empty())
    }
}

/// Where an object has its pod specification.
struct Place {
    /// As a JSON pointer.
    spec: String,
    is_template: bool,
    /// The settings say so.
    is_configured: bool,
}

/// A JSON pointer as people write it.
fn field_of(pointer: &str) -> String {
    pointer.trim_start_matches('/').replace('/', ".")
}

/// Where the object of a request has its pod specification; `None` where there is nothing to judge.
fn pod_spec(request: &AdmissionRequest<DynamicObject>, rules: &Rules) -> Option<Place> {
    if !matches!(request.operation, Operation::Create | Operation::Update) {
        return None;
    }
    let (group, resource) = (request.resource.group.as_str(), request.resource.resource.as_str());
    let sub_resource = request.sub_resource.as_deref().filter(|name| !name.is_empty());
    match (group, resource, sub_resource) {
        ("", "pods", None | Some("ephemeralcontainers" | "resize")) => {
            return Some(Place { spec: "/spec".into(), is_template: false, is_configured: false });
        }
        (_, _, Some(_)) => return None,
        _ => {}
    }
    let known = TEMPLATES.iter().find(|known| (known.0, known.1) == (group, resource)).map(|known| known.2);
    let template = known.or_else(|| rules.pod_template(group, resource))?;
    Some(Place { spec: format!("{template}/spec"), is_template: true, is_configured: known.is_none() })
}

/// Every image of a pod specification, with the list that it stands in; `None` where there is no specification.
fn images(object: &Value, spec: &str) -> Result<Option<Vec<(&'static str, Image)>>, String> {
    let mut found = Vec::new();
    let Some(pod) = object.pointer(spec).filter(|pod| !pod.is_null()) else { return Ok(None) };
    if !pod.is_object() {
        return Err(format!("{} is not an object", field_of(spec)));
    }
    for (list, inner) in LISTS {
        let place = format!("{}.{list}", field_of(spec));
        let items = match pod.get(list) {
            None | Some(Value::Null) => continue,
            Some(items) => items.as_array().ok_or_else(|| format!("{place} is not a list"))?,
        };
        for (number, item) in items.iter().enumerate() {
            let place = format!("{place}[{number}]");
            if !item.is_object() {
                return Err(format!("{place} is not an object"));
            }
            if list == "volumes" && item.get("image").is_none_or(Value::is_null) {
                continue;
            }
            let text = match item.pointer(&format!("/{inner}")) {
                None | Some(Value::Null) => "",
                Some(image) => image.as_str().ok_or_else(|| format!("{place}.image is not a text"))?,
            };
            let image = Image {
                field: format!("{place}.{}", inner.replace('/', ".")),
                pointer: format!("{spec}/{list}/{number}/{inner}"),
                container: item.get("name").and_then(Value::as_str).unwrap_or_default().to_owned(),
                text: text.to_owned(),
            };
            found.push((list, image));
        }
    }
    Ok(Some(found))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn review(resource: (&str, &str, Option<&str>), operation: &str, object: Value, old: Value) -> Value {
        json!({
            "apiVersion": API_VERSION, "kind": KIND,
            "request": {
                "uid": "u1", "operation": operation, "namespace": "prod", "name": "",
                "kind": { "group": resource.0, "version": "v1", "kind": "Any" },
                "resource": { "group": resource.0, "version": "v1", "resource": resource.1 },
                "subResource": resource.2, "userInfo": {}, "object": object, "oldObject": old,
            }
        })
    }

    fn parse(document: &Value) -> Result<Review, Unreadable> {
        let rules = Rules::parse(r#"{"workloads":{"argoproj.io/rollouts":"/spec/template"}}"#).unwrap();
        Review::parse(document.to_string().as_bytes(), &rules)
    }

    fn fields(document: &Value) -> Vec<String> {
        parse(document).unwrap().images.into_iter().map(|image| format!("{}={}", image.field, image.text)).collect()
    }

    /// C41
    #[test]
    fn c41_every_workload_that_carries_a_pod_template_is_looked_into() {
        let template = || json!({ "spec": { "containers": [{ "name": "c", "image": "a" }] } });
        for (group, resource, object, field) in [
            ("apps", "deployments", json!({ "spec": { "template": template() } }), "spec.template.spec"),
            ("apps", "statefulsets", json!({ "spec": { "template": template() } }), "spec.template.spec"),
            ("apps", "daemonsets", json!({ "spec": { "template": template() } }), "spec.template.spec"),
            ("apps", "replicasets", json!({ "spec": { "template": template() } }), "spec.template.spec"),
            ("batch", "jobs", json!({ "spec": { "template": template() } }), "spec.template.spec"),
            ("", "replicationcontrollers", json!({ "spec": { "template": template() } }), "spec.template.spec"),
            ("argoproj.io", "rollouts", json!({ "spec": { "template": template() } }), "spec.template.spec"),
            ("", "podtemplates", json!({ "template": template() }), "template.spec"),
            (
                "batch",
                "cronjobs",
                json!({ "spec": { "jobTemplate": { "spec": { "template": template() } } } }),
                "spec.jobTemplate.spec.template.spec",
            ),
        ] {
            let document = review((group, resource, None), "CREATE", object, Value::Null);
            assert_eq!(fields(&document), [format!("{field}.containers[0].image=a")], "{resource}");
            assert!(parse(&document).unwrap().is_template);
        }
        let unknown = review(("x.example", "things", None), "CREATE", json!({ "spec": template() }), Value::Null);
        assert!(fields(&unknown).is_empty(), "what carries no pod is not looked into");
    }

    #[test]
    fn every_field_that_carries_an_image_is_found() {
        let pod = json!({ "spec": {
            "containers": [{ "name": "c", "image": "a" }],
            "initContainers": [{ "name": "i", "image": "b" }],
            "ephemeralContainers": [{ "name": "e", "image": "d" }],
            "volumes": [{ "name": "v", "image": { "reference": "e" } }, { "name": "w", "emptyDir": {} }],
        }});
        let expected = [
            "spec.containers[0].image=a",
            "spec.ephemeralContainers[0].image=d",
            "spec.initContainers[0].image=b",
            "spec.volumes[0].image.reference=e",
        ];
        assert_eq!(fields(&review(("", "pods", None), "CREATE", pod.clone(), Value::Null)), expected);
        let sub = review(("", "pods", Some("ephemeralcontainers")), "UPDATE", pod.clone(), json!({}));
        assert_eq!(fields(&sub).len(), 4);
        assert!(fields(&review(("", "pods", None), "UPDATE", pod.clone(), pod.clone())).is_empty());
        assert!(fields(&review(("", "pods", Some("status")), "UPDATE", pod, Value::Null)).is_empty());
    }

    /// C40
    #[test]
    fn c40_requests_without_an_object_have_nothing_to_judge() {
        for (resource, operation) in [
            (("", "pods", None), "DELETE"),
            (("", "pods", Some("exec")), "CONNECT"),
            (("", "namespaces", None), "CREATE"),
        ] {
            assert!(fields(&review(resource, operation, Value::Null, Value::Null)).is_empty(), "{operation}");
        }
        let mut scoped = review(("", "nodes", None), "CREATE", json!({}), Value::Null);
        scoped["request"].as_object_mut().unwrap().remove("namespace");
        assert!(fields(&scoped).is_empty());
    }

    #[test]
    fn what_is_not_understood_is_refused_and_keeps_its_uid() {
        let sound = review(("", "pods", None), "CREATE", json!({ "spec": {} }), Value::Null);
        let changed = |pointer: &str, value: Value| {
            let mut document = sound.clone();
            *document.pointer_mut(pointer).unwrap() = value;
            parse(&document)
        };
        assert!(parse(&sound).is_ok());
        for (pointer, value) in [
            ("/kind", json!("Pod")),
            ("/apiVersion", json!("admission.k8s.io/v1beta1")),
            ("/request/uid", json!("")),
            ("/request/uid", json!(7)),
        ] {
            assert!(matches!(changed(pointer, value), Err(Unreadable::NoReview(_))), "{pointer}");
        }
        for (pointer, value) in [
            ("/request/operation", json!("PATCH")),
            ("/request/object", Value::Null),
            ("/request/object/spec", json!({ "containers": {} })),
            ("/request/object/spec", json!({ "containers": [1] })),
            ("/request/object/spec", json!({ "containers": [{ "image": 5 }] })),
            ("/request/resource", json!("pods")),
        ] {
            let refused = changed(pointer, value);
            assert!(matches!(&refused, Err(Unreadable::Denied { uid, .. }) if uid == "u1"), "{pointer}: {refused:?}");
        }
        for junk in ["", "null", "[]", "{", "\u{0}", &"[".repeat(100_000)] {
            assert!(matches!(Review::parse(junk.as_bytes(), &Rules::default()), Err(Unreadable::NoReview(_))));
        }
    }
}
