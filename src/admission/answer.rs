//! The answer to a review (`admission.k8s.io/v1`): what kubectl shows, and what the API server writes into its audit log.

use std::collections::HashMap;
use std::fmt;

use json_patch::jsonptr::PointerBuf;
use json_patch::{Patch, PatchOperation, ReplaceOperation};
use kube::core::admission::AdmissionResponse;
use serde_json::Value;

use super::decide::{Decision, Effect, Finding, Image};

/// Kubernetes asks for warnings of at most so many characters, and shows no more than a few.
const WARNING_CHARS: usize = 120;
const WARNINGS_MAX: usize = 10;

/// The longest message of a denial and the longest annotation, in bytes.
const MESSAGE_MAX: usize = 64 << 10;
const ANNOTATION_MAX: usize = 8 << 10;

/// How many characters of an image, or of a container's name, are shown; and how many at least in a warning.
const IMAGE_CHARS: usize = 300;
const IMAGE_CHARS_MIN: usize = 24;

/// Allowed or denied, by a decision.
pub(crate) fn decided(uid: &str, namespace: &str, decision: &Decision) -> AdmissionResponse {
    let answer = match decision.is_allowed() {
        true => allowed(uid),
        false => denied(uid, &denial(namespace, decision)),
    };
    with_notes(answer, decision)
}

/// Allowed, with images replaced. Nothing to replace, no patch.
///
/// # Errors
/// A field that is no JSON pointer; none of ours is.
pub(crate) fn patched(
    uid: &str,
    pins: &[(Image, String)],
    decision: &Decision,
) -> Result<AdmissionResponse, serde_json::Error> {
    if pins.is_empty() {
        return Ok(allowed(uid));
    }
    let mut answer = with_notes(allowed(uid), decision);
    let pinned = pins.iter().map(|(image, text)| format!("{}={text}", image.field));
    answer.audit_annotations.insert("pinned".into(), list(pinned, ANNOTATION_MAX));
    let operations = pins.iter().map(|(image, text)| {
        let path = PointerBuf::parse(image.pointer.as_str()).map_err(serde::de::Error::custom)?;
        Ok(PatchOperation::Replace(ReplaceOperation { path, value: Value::String(text.clone()) }))
    });
    answer.with_patch(Patch(operations.collect::<Result<_, serde_json::Error>>()?)).map_err(serde::ser::Error::custom)
}

pub(crate) fn allowed(uid: &str) -> AdmissionResponse {
    let mut answer = empty(uid);
    answer.allowed = true;
    answer
}

/// Denied for a reason that is no policy's.
pub(crate) fn denied(uid: &str, reason: &str) -> AdmissionResponse {
    let mut answer = empty(uid);
    answer.allowed = false;
    answer.result = AdmissionResponse::invalid(reason).result;
    answer.result.reason = "Forbidden".into();
    answer.result.code = 403;
    answer
}

/// Allowed, and nothing was pinned, for a reason.
pub(crate) fn unpinned(uid: &str, reason: &str) -> AdmissionResponse {
    let mut answer = allowed(uid);
    answer.warnings = Some(vec![cut(&format!("tags were not pinned: {reason}"), WARNING_CHARS)]);
    answer.audit_annotations.insert("not-pinned".into(), cut(reason, IMAGE_CHARS));
    answer
}

/// The crate's own answers leave the uid empty, which `failurePolicy: Ignore` takes for a yes.
fn empty(uid: &str) -> AdmissionResponse {
    let mut answer = AdmissionResponse::invalid("");
    answer.uid = uid.to_owned();
    answer.result = Default::default();
    answer
}

/// Says that an object of a kind that the settings name has no pod template where they say.
pub(crate) fn warn_of_missing(answer: &mut AdmissionResponse, place: &str) {
    let said = format!("nothing at {place}, where the registry's setting workloads has the pod template");
    answer.warnings.get_or_insert_default().push(cut(&said, WARNING_CHARS));
}

/// Says that the state behind an answer may be old.
pub(crate) fn mark_stale(answer: &mut AdmissionResponse) {
    let warnings = answer.warnings.get_or_insert_default();
    warnings.truncate(WARNINGS_MAX - 1);
    warnings.insert(0, "no majority of the registry's nodes answers: decided by state that may be old".into());
    answer.audit_annotations.insert("stale".into(), "true".into());
}

/// Every image that may not run, with the policy, the rule and what to do.
fn denial(namespace: &str, decision: &Decision) -> String {
    let said = with_effect(decision, Effect::Deny).map(|finding| {
        let container = match finding.image.container.as_str() {
            "" => String::new(),
            container => format!(" ({})", cut(container, IMAGE_CHARS)),
        };
        format!("{}{container}: {}", finding.image.field, objection(finding))
    });
    format!("not allowed to run in namespace {namespace:?}: {}", list(said, MESSAGE_MAX))
}

fn with_notes(mut answer: AdmissionResponse, decision: &Decision) -> AdmissionResponse {
    answer.warnings = Some(warnings(decision)).filter(|warnings| !warnings.is_empty());
    answer.audit_annotations = annotations(decision);
    answer
}

fn warnings(decision: &Decision) -> Vec<String> {
    let said: Vec<String> = with_effect(decision, Effect::Warn).map(warning).collect();
    let more = said.len().saturating_sub(WARNINGS_MAX);
    if more == 0 {
        return said;
    }
    let last = format!("{} more images or rules are objected to", more + 1);
    said.into_iter().take(WARNINGS_MAX - 1).chain([last]).collect()
}

/// What matters first: who objects, and to what; then where, as far as there is room.
fn warning(finding: &Finding) -> String {
    let rule = finding.rule.as_ref().map_or_else(String::new, |rule| format!("/{rule}"));
    let who = cut(&format!("policy {}{rule}", finding.policy), 47);
    let head = format!("{who}: {}: ", finding.reason.in_short());
    let room = WARNING_CHARS.saturating_sub(head.chars().count());
    let place = format!(" ({})", finding.image.field.trim_end_matches(".image"));
    let place = if place.chars().count() + IMAGE_CHARS_MIN <= room { place } else { String::new() };
    format!("{head}{}{place}", cut(&finding.image.text, room - place.chars().count()))
}

fn annotations(decision: &Decision) -> HashMap<String, String> {
    let mut notes = HashMap::from([("revision".to_owned(), decision.revision.to_string())]);
    let mut note = |key: &str, value: String| {
        if !value.is_empty() {
            notes.insert(key.to_owned(), value);
        }
    };
    note("policy", list(&decision.policies, ANNOTATION_MAX));
    let digests = decision.images.iter();
    let digests = digests.filter_map(|judged| Some(format!("{}={}", judged.image.field, judged.digest?)));
    note("digest", list(digests, ANNOTATION_MAX));
    for (effect, key) in [(Effect::Deny, "denied"), (Effect::Warn, "warned"), (Effect::Audit, "audited")] {
        let found =
            with_effect(decision, effect).map(|finding| format!("{}: {}", finding.image.field, objection(finding)));
        note(key, list(found, ANNOTATION_MAX));
    }
    notes
}

fn with_effect(decision: &Decision, effect: Effect) -> impl Iterator<Item = &Finding> {
    decision.findings.iter().filter(move |finding| finding.effect == effect)
}

fn objection(finding: &Finding) -> String {
    let rule = finding.rule.as_ref().map_or_else(String::new, |rule| format!(", rule {rule}"));
    let image = cut(&finding.image.text, IMAGE_CHARS);
    format!("image {image:?}: policy {}{rule}: {}", finding.policy, finding.reason)
}

/// One text of several, of about so many bytes at most.
fn list(items: impl IntoIterator<Item = impl fmt::Display>, bytes: usize) -> String {
    let mut text = String::new();
    let mut left_out = 0;
    for item in items {
        let item = item.to_string();
        if text.len() + item.len() > bytes {
            left_out += 1;
            continue;
        }
        if !text.is_empty() {
            text.push_str("; ");
        }
        text.push_str(&item);
    }
    if left_out > 0 {
        text.push_str(&format!("; and {left_out} more"));
    }
    text
}

fn cut(text: &str, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        None => text.to_owned(),
        Some(_) => text.chars().take(chars - 1).chain(['…']).collect(),
    }
}
