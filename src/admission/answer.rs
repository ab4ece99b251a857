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

/// The longest message of a denial, in bytes, and the longest annotation.
const TEXT_MAX: usize = 8 << 10;

/// Allowed or denied, by a decision.
pub(crate) fn decided(uid: &str, namespace: &str, decision: &Decision) -> AdmissionResponse {
    let mut answer = match decision.is_allowed() {
        true => allowed(uid),
        false => denied(uid, &denial(namespace, decision)),
    };
    let warnings = warnings(decision);
    answer.warnings = Some(warnings).filter(|warnings| !warnings.is_empty());
    answer.audit_annotations = annotations(decision);
    answer
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
    let mut answer = allowed(uid);
    let warnings = warnings(decision);
    answer.warnings = Some(warnings).filter(|warnings| !warnings.is_empty());
    if pins.is_empty() {
        return Ok(answer);
    }
    answer.audit_annotations.insert("revision".into(), decision.revision.to_string());
    answer.audit_annotations.insert("policy".into(), list(&decision.policies));
    let pinned = pins.iter().map(|(image, text)| format!("{}={text}", image.field));
    answer.audit_annotations.insert("pinned".into(), list(pinned));
    let operations = pins.iter().map(|(image, text)| {
        let path = PointerBuf::parse(image.pointer.as_str()).map_err(serde::de::Error::custom)?;
        Ok(PatchOperation::Replace(ReplaceOperation { path, value: Value::String(text.clone()) }))
    });
    answer.with_patch(Patch(operations.collect::<Result<_, serde_json::Error>>()?)).map_err(serde::ser::Error::custom)
}

pub(crate) fn allowed(uid: &str) -> AdmissionResponse {
    let mut answer = denied(uid, "");
    answer.allowed = true;
    answer.result = Default::default();
    answer
}

/// Denied for a reason that is no policy's.
pub(crate) fn denied(uid: &str, reason: &str) -> AdmissionResponse {
    // The crate's own leaves the uid empty, which `failurePolicy: Ignore` takes for a yes.
    let mut answer = AdmissionResponse::invalid(reason);
    answer.uid = uid.to_owned();
    answer.result.reason = "Forbidden".into();
    answer.result.code = 403;
    answer
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
    let denials: Vec<&Finding> = with_effect(decision, Effect::Deny).collect();
    let said = denials.iter().map(|finding| {
        let container = match finding.image.container.as_str() {
            "" => String::new(),
            container => format!(" ({container})"),
        };
        format!("{}{container}: image {:?}: {}", finding.image.field, finding.image.text, objection(finding))
    });
    format!("not allowed to run in namespace {namespace:?}: {}", list(said))
}

fn warnings(decision: &Decision) -> Vec<String> {
    let said: Vec<String> = with_effect(decision, Effect::Warn)
        .map(|finding| {
            cut(&format!("{}: {:?}: {}", finding.image.field, finding.image.text, objection(finding)), WARNING_CHARS)
        })
        .collect();
    let more = said.len().saturating_sub(WARNINGS_MAX);
    if more == 0 {
        return said;
    }
    let last = format!("{} more images or rules are objected to", more + 1);
    said.into_iter().take(WARNINGS_MAX - 1).chain([last]).collect()
}

fn annotations(decision: &Decision) -> HashMap<String, String> {
    let mut notes = HashMap::from([("revision".to_owned(), decision.revision.to_string())]);
    let mut note = |key: &str, value: String| {
        if !value.is_empty() {
            notes.insert(key.to_owned(), value);
        }
    };
    note("policy", list(&decision.policies));
    let digests = decision.images.iter();
    let digests = digests.filter_map(|judged| Some(format!("{}={}", judged.image.field, judged.digest?)));
    note("digest", list(digests));
    for (effect, key) in [(Effect::Deny, "denied"), (Effect::Warn, "warned"), (Effect::Audit, "audited")] {
        let found =
            with_effect(decision, effect).map(|finding| format!("{}: {}", finding.image.field, objection(finding)));
        note(key, list(found));
    }
    notes
}

fn with_effect(decision: &Decision, effect: Effect) -> impl Iterator<Item = &Finding> {
    decision.findings.iter().filter(move |finding| finding.effect == effect)
}

fn objection(finding: &Finding) -> String {
    let rule = finding.rule.as_ref().map_or_else(String::new, |rule| format!(", rule {rule}"));
    format!("policy {}{rule}: {}", finding.policy, finding.reason)
}

/// One text of several, no longer than [`TEXT_MAX`].
fn list(items: impl IntoIterator<Item = impl fmt::Display>) -> String {
    let mut text = String::new();
    let mut left_out = 0;
    for item in items {
        let item = item.to_string();
        if text.len() + item.len() > TEXT_MAX {
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
