//! What holds of the parsers of this folder for whatever comes in.

use flotilla_raft::settings::Rules;
use serde_json::Value;

use super::policy::parse_all;
use super::reference::ImageReference;
use super::review::{Review, Unreadable};

pub(crate) fn reference(text: &str) {
    let Ok(parsed) = ImageReference::parse(text) else { return };
    let full = parsed.to_string();
    assert_eq!(ImageReference::parse(&full).as_ref(), Ok(&parsed), "{text:?} is {full:?} in full");
    assert!(parsed.tag.is_some() || parsed.digest.is_some());
    assert!(!parsed.registry.is_empty() && !parsed.registry.chars().any(|letter| letter.is_ascii_uppercase()));
    assert!(!parsed.name().contains(['@', ' ']) && parsed.name().starts_with(&parsed.registry));
}

pub(crate) fn policy(text: &str) {
    if let Ok(policies) = parse_all(text) {
        assert!(policies.iter().all(|(_, policy)| policy.rules.iter().all(|rule| !rule.images.is_empty())));
    }
}

pub(crate) fn review(bytes: &[u8]) {
    match Review::parse(bytes, &Rules::default()) {
        Ok(review) => {
            let document: Value = serde_json::from_slice(bytes).unwrap_or_default();
            assert_eq!(document["request"]["uid"].as_str(), Some(review.request.uid.as_str()));
            for image in &review.images {
                let found = document["request"]["object"].pointer(&image.pointer);
                assert_eq!(found.and_then(Value::as_str).unwrap_or_default(), image.text, "{}", image.pointer);
            }
        }
        Err(Unreadable::Denied { uid, reason }) => assert!(!uid.is_empty() && !reason.is_empty()),
        Err(Unreadable::NoReview(reason)) => assert!(!reason.is_empty()),
    }
}
