//! Why an image may run or not, rule by rule: for people who ask.

use flotilla_storage::StorageError;
use serde_json::{Value, json};

use super::decide::{Effect, Image, Subject, applies, decide, known, pin};
use super::hooks::Grounds;
use super::policy::CompiledVerb;

/// What becomes of an image in a pod, and what each policy that selects the namespace says of it, as JSON. It is pinned as
/// the webhooks would do it first.
///
/// # Errors
/// State cannot be read.
pub(crate) fn explain(grounds: &Grounds<'_>, namespace: &str, text: &str) -> Result<Value, StorageError> {
    let Grounds { facts, policies, now_ms, .. } = *grounds;
    let image = Image {
        field: "spec.containers[0].image".into(),
        pointer: "/spec/containers/0/image".into(),
        container: String::new(),
        text: text.to_owned(),
    };
    let mut subject = Subject { namespace: namespace.to_owned(), is_template: false, now_ms, images: vec![image] };
    let (pins, mut findings) = pin(facts, policies, &subject)?;
    for (image, pinned) in subject.images.iter_mut().zip(&pins) {
        image.text = pinned.1.clone();
    }
    let decision = decide(facts, policies, &subject)?;
    findings.findings.extend(decision.findings.iter().cloned());
    let known = known(facts, text, false)?;
    let selecting = policies.iter().filter(|policy| policy.selects(namespace)).map(|policy| {
        let rules = policy.rules.iter().map(|rule| {
            let verb = match rule.verb {
                CompiledVerb::Deny => "deny",
                CompiledVerb::Approve => "approve",
                CompiledVerb::Require { .. } => "require",
            };
            json!({ "name": rule.name, "verb": verb, "matches": known.as_ref().is_ok_and(|known| applies(rule, known)) })
        });
        let rules: Vec<_> = rules.collect();
        let findings = findings.findings.iter().filter(|finding| finding.policy == policy.name.as_str());
        let findings: Vec<_> = findings
            .map(|finding| json!({ "rule": finding.rule, "effect": shown(finding.effect), "reason": finding.reason.to_string() }))
            .collect();
        json!({
            "name": policy.name,
            "revision": policy.revision,
            "mode": policy.mode,
            "default": policy.default,
            "rules": rules,
            "findings": findings,
        })
    });
    let selecting: Vec<_> = selecting.collect();
    Ok(json!({
        "image": text,
        "namespace": namespace,
        "allowed": decision.is_allowed() && grounds.refusal.is_none(),
        "refusal": grounds.refusal,
        "stale": grounds.is_stale,
        "runs_as": subject.images.first().map(|image| &image.text),
        "revision": decision.revision,
        "reference": known.as_ref().ok().map(|known| known.reference.to_string()),
        "not_valid": known.as_ref().err().map(ToString::to_string),
        "repository": known.as_ref().ok().and_then(|known| known.repository.clone()),
        "digest": known.as_ref().ok().and_then(|known| Some(known.digest?.to_string())),
        "policies": selecting,
    }))
}

fn shown(effect: Effect) -> &'static str {
    match effect {
        Effect::Deny => "deny",
        Effect::Warn => "warn",
        Effect::Audit => "audit",
    }
}
