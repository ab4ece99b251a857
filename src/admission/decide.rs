//! The decision: what policies say of the images of one review. No I/O but reads of state, no clock: the same state, the
//! same policies and the same review give the same decision on every node.

use std::collections::BTreeSet;
use std::fmt;

use flotilla_raft::settings::Rules;
use flotilla_raft::{RepositoryName, Tag};
use flotilla_storage::{Digest, StorageError};

use super::policy::{CompiledRule, CompiledVerb, Mode, Otherwise, Pattern, Pin, Policy, Templates};
use super::reference::{ImageReference, InvalidReference};

/// What a decision may know of the registry, as of one revision.
pub(crate) trait Facts {
    fn revision(&self) -> u64;
    /// The settings in force.
    fn rules(&self) -> &Rules;
    /// What a tag points at.
    fn tag(&self, repository: &RepositoryName, tag: &Tag) -> Result<Option<Digest>, StorageError>;
    /// When a manifest came into its repository, in milliseconds since the Unix epoch; `None` if it is not there.
    fn manifest(&self, repository: &RepositoryName, digest: &Digest) -> Result<Option<u64>, StorageError>;
    /// Whether a tag points at a manifest, or did.
    fn tag_was(&self, repository: &RepositoryName, tag: &Tag, digest: &Digest) -> Result<bool, StorageError>;
}

/// What is to be judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) namespace: String,
    /// A workload that carries a pod template, not a pod.
    pub(crate) is_template: bool,
    /// The time that ages are counted to, in milliseconds since the Unix epoch.
    pub(crate) now_ms: u64,
    pub(crate) images: Vec<Image>,
}

/// One image where it stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Image {
    /// Which field, as people write it: `spec.containers[0].image`.
    pub(crate) field: String,
    /// The same as a JSON pointer.
    pub(crate) pointer: String,
    /// The container, or the volume.
    pub(crate) container: String,
    pub(crate) text: String,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decision {
    /// The revision that it was made at.
    pub(crate) revision: u64,
    /// What policies object to, in an order that does not depend on theirs.
    pub(crate) findings: BTreeSet<Finding>,
    /// Every image that was judged, with the digest that its name meant where this registry knows it.
    pub(crate) images: Vec<Judged>,
    /// The policies that select the namespace, `NAME@REVISION`, in an order that does not depend on theirs.
    pub(crate) policies: BTreeSet<String>,
}

impl Decision {
    /// No policy is about it.
    pub(crate) fn is_unregulated(&self) -> bool {
        self.policies.is_empty()
    }

    pub(crate) fn is_allowed(&self) -> bool {
        !self.findings.iter().any(|finding| finding.effect == Effect::Deny)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Judged {
    pub(crate) image: Image,
    pub(crate) digest: Option<Digest>,
}

/// One objection of one policy to one image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    pub(crate) effect: Effect,
    pub(crate) image: Image,
    pub(crate) policy: String,
    /// The rule, where it is one rule's.
    pub(crate) rule: Option<String>,
    pub(crate) reason: Reason,
}

/// What becomes of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Effect {
    Deny,
    Warn,
    Audit,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reason {
    /// No image is named.
    Unreadable(String),
    Denied,
    NotApproved,
    /// What is required and not so.
    Unmet(Requirement),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Requirement {
    Exists,
    Digest,
    ImmutableTag,
    MaxAge,
}

impl Reason {
    /// Without what to do about it.
    pub(super) fn in_short(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "not a valid reference",
            Self::Denied => "denied",
            Self::NotApproved => "no rule approves it",
            Self::Unmet(Requirement::Exists) => "not in this registry",
            Self::Unmet(Requirement::Digest) => "not named by its digest",
            Self::Unmet(Requirement::ImmutableTag) => "its tag can be moved",
            Self::Unmet(Requirement::MaxAge) => "too old, or not here",
        }
    }
}

/// With what to do about it.
impl fmt::Display for Reason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(error) => write!(out, "the reference is not valid: {error}"),
            Self::Denied => out.write_str("denied; use another image, or ask for the rule to be changed"),
            Self::NotApproved => out.write_str("no rule approves it; use an approved image, or ask for a rule"),
            Self::Unmet(Requirement::Exists) => out.write_str("this registry does not hold it; push it first"),
            Self::Unmet(Requirement::Digest) => out.write_str("it must be named by its digest, as in NAME@sha256:…"),
            Self::Unmet(Requirement::ImmutableTag) => {
                out.write_str("its tag can be moved; name it by an immutable tag of this registry, or by its digest")
            }
            Self::Unmet(Requirement::MaxAge) => out.write_str("it is too old, or not in this registry; build it anew"),
        }
    }
}

/// A reference with what state says of it.
pub(super) struct Known {
    pub(super) reference: ImageReference,
    /// Registry and repository, as it is named.
    name: String,
    /// The same under every other name that this registry has for it: denials and requirements see them all.
    other_names: Vec<String>,
    /// Where this registry has it.
    pub(super) repository: Option<RepositoryName>,
    /// What it means now: its digest, or what its tag points at.
    pub(super) digest: Option<Digest>,
    /// Which tag denials and requirements see: with a digest the tag proves nothing.
    tag: Option<Tag>,
    /// Which tag approvals see: with a digest, only one that did point at it.
    proven_tag: Option<Tag>,
    /// The digest is part of the name.
    is_pinned: bool,
    /// When it came into this registry.
    time_ms: Option<u64>,
}

impl Known {
    fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.name).chain(&self.other_names).map(String::as_str)
    }
}

/// Judges images as they stand, those of a template as its pods will have them.
pub(crate) fn decide(facts: &dyn Facts, policies: &[Policy], subject: &Subject) -> Result<Decision, StorageError> {
    judge(facts, policies, subject, subject.is_template && is_pinned(policies, subject, Pin::Pods))
}

/// Whether images get their digest in what `wanted` names, pods or templates.
fn is_pinned(policies: &[Policy], subject: &Subject, wanted: Pin) -> bool {
    let pins = |policy: &Policy| policy.mode == Mode::Enforce && policy.pin >= wanted;
    policies.iter().any(|policy| pins(policy) && policy.selects(&subject.namespace))
}

/// Which images get their digest: each with the text to put in its place; and what is found of these images as they
/// stand now, since who sees the new text no longer sees that a tag was asked for.
pub(crate) fn pin(
    facts: &dyn Facts,
    policies: &[Policy],
    subject: &Subject,
) -> Result<(Vec<(Image, String)>, Decision), StorageError> {
    let mut decision = judge(facts, policies, subject, true)?;
    let pins = is_pinned(policies, subject, if subject.is_template { Pin::Templates } else { Pin::Pods });
    // A template is pinned to what its pods may be: with a digest they would no longer say that a denied tag was meant.
    let as_pods = match subject.is_template && pins {
        true => judge(facts, policies, &Subject { is_template: false, ..subject.clone() }, true)?.findings,
        false => decision.findings.clone(),
    };
    let mut pinned = Vec::new();
    for judged in decision.images.iter().filter(|_| pins) {
        let Ok(reference) = ImageReference::parse(&judged.image.text) else { continue };
        // What is denied stays as it is, for whoever reads the denial.
        let denied = |finding: &Finding| finding.effect == Effect::Deny && finding.image == judged.image;
        if reference.digest.is_some() || as_pods.iter().any(denied) {
            continue;
        }
        if let (Some(digest), Some(tag)) = (&judged.digest, &reference.tag) {
            let text = &judged.image.text;
            // The tag that was left out is said, so that it stays to be seen.
            let named = if names_tag(text) { text.clone() } else { format!("{text}:{tag}") };
            pinned.push((judged.image.clone(), format!("{named}@{digest}")));
        }
    }
    decision.findings.retain(|finding| pinned.iter().any(|(image, _)| *image == finding.image));
    Ok((pinned, decision))
}

/// Whether a reference without a digest has a tag of its own.
fn names_tag(text: &str) -> bool {
    text.rsplit_once('/').map_or(text, |(_, last)| last).contains(':')
}

fn judge(
    facts: &dyn Facts,
    policies: &[Policy],
    subject: &Subject,
    to_be_pinned: bool,
) -> Result<Decision, StorageError> {
    let selected: Vec<&Policy> = policies.iter().filter(|policy| policy.selects(&subject.namespace)).collect();
    let mut decision = Decision {
        revision: facts.revision(),
        findings: BTreeSet::new(),
        images: Vec::new(),
        policies: selected.iter().map(|policy| format!("{}@{}", policy.name, policy.revision)).collect(),
    };
    for image in &subject.images {
        let known = known(facts, &image.text, to_be_pinned)?;
        let digest = known.as_ref().ok().and_then(|known| known.digest);
        decision.images.push(Judged { image: image.clone(), digest });
        decision.findings.extend(findings(facts, &selected, subject, image, &known));
    }
    Ok(decision)
}

/// Looks an image up.
pub(super) fn known(
    facts: &dyn Facts,
    text: &str,
    to_be_pinned: bool,
) -> Result<Result<Known, InvalidReference>, StorageError> {
    let reference = match ImageReference::parse(text) {
        Ok(reference) => reference,
        Err(invalid) => return Ok(Err(invalid)),
    };
    let repository = facts.rules().repository_of(&reference.registry, &reference.repository);
    let (mut digest, mut tag, mut proven_tag) = (reference.digest, reference.tag.clone(), reference.tag.clone());
    if let (Some(digest), Some(asked)) = (&reference.digest, &reference.tag) {
        let is_proven = match &repository {
            Some(repository) => facts.tag_was(repository, asked, digest)?,
            None => false,
        };
        tag = None;
        proven_tag = proven_tag.filter(|_| is_proven);
    }
    let mut is_pinned = digest.is_some();
    let mut time_ms = None;
    if let Some(repository) = &repository {
        if let (None, Some(tag)) = (&digest, &tag) {
            digest = facts.tag(repository, tag)?;
            is_pinned = to_be_pinned && digest.is_some();
        }
        if let Some(digest) = &digest {
            time_ms = facts.manifest(repository, digest)?;
        }
    }
    let name = reference.name();
    let other_names = match &repository {
        Some(repository) => facts.rules().names_of(repository).filter(|other| *other != name).collect(),
        None => Vec::new(),
    };
    Ok(Ok(Known { reference, name, other_names, repository, digest, tag, proven_tag, is_pinned, time_ms }))
}

/// Enforced policies judge together. Each of the others is judged as if it were enforced beside them.
fn findings(
    facts: &dyn Facts,
    selected: &[&Policy],
    subject: &Subject,
    image: &Image,
    known: &Result<Known, InvalidReference>,
) -> BTreeSet<Finding> {
    let enforced: Vec<&Policy> = selected.iter().copied().filter(|policy| policy.mode == Mode::Enforce).collect();
    let mut found = BTreeSet::new();
    let mut add = |objections: Vec<Objection<'_>>, owner: Option<&Policy>| {
        for objection in objections {
            // What the enforced ones object to by themselves is theirs alone.
            if owner.is_some_and(|owner| !std::ptr::eq(owner, objection.policy)) {
                continue;
            }
            if let Some(effect) = effect(objection.policy, subject, &objection.reason) {
                found.insert(Finding {
                    effect,
                    image: image.clone(),
                    policy: objection.policy.name.to_string(),
                    rule: objection.rule.map(str::to_owned),
                    reason: objection.reason,
                });
            }
        }
    };
    add(objections(facts, &enforced, subject, known), None);
    for other in selected.iter().copied().filter(|policy| policy.mode != Mode::Enforce) {
        let beside: Vec<&Policy> = enforced.iter().copied().chain([other]).collect();
        add(objections(facts, &beside, subject, known), Some(other));
    }
    found
}

/// What becomes of an objection; `None` where the policy does not look at templates.
fn effect(policy: &Policy, subject: &Subject, reason: &Reason) -> Option<Effect> {
    let by_mode = match policy.mode {
        Mode::Enforce => Effect::Deny,
        Mode::Warn => Effect::Warn,
        Mode::Audit => Effect::Audit,
    };
    if !subject.is_template {
        return Some(by_mode);
    }
    match (policy.templates, reason) {
        (Templates::Off, _) => None,
        // Something may fill it in before there is a pod.
        (_, Reason::Unreadable(_)) | (Templates::Warn, _) => Some(by_mode.max(Effect::Warn)),
        (Templates::Enforce, _) => Some(by_mode),
    }
}

struct Objection<'a> {
    policy: &'a Policy,
    rule: Option<&'a str>,
    reason: Reason,
}

/// What policies that are in force together object to: denials, requirements that do not hold, and that nothing approves.
fn objections<'a>(
    facts: &dyn Facts,
    policies: &[&'a Policy],
    subject: &Subject,
    known: &Result<Known, InvalidReference>,
) -> Vec<Objection<'a>> {
    let known = match known {
        Ok(known) => known,
        Err(invalid) => {
            let reason = Reason::Unreadable(invalid.to_string());
            return policies.iter().map(|policy| Objection { policy, rule: None, reason: reason.clone() }).collect();
        }
    };
    let mut found = Vec::new();
    let mut is_approved = false;
    for (policy, rule) in policies.iter().flat_map(|policy| policy.rules.iter().map(move |rule| (*policy, rule))) {
        let mut object = |reason| found.push(Objection { policy, rule: Some(rule.name.as_str()), reason });
        match &rule.verb {
            CompiledVerb::Deny if objectionable(rule, known) => object(Reason::Denied),
            CompiledVerb::Approve => is_approved |= approved(rule, known),
            CompiledVerb::Require { exists, digest, immutable_tag, max_age_ms } if objectionable(rule, known) => {
                let is_immutable = || {
                    let tag = known.repository.as_ref().zip(known.tag.as_ref());
                    tag.is_some_and(|(repository, tag)| facts.rules().immutable(repository, tag).is_some())
                };
                let is_young =
                    |age_ms: u64| known.time_ms.is_some_and(|time_ms| subject.now_ms.saturating_sub(time_ms) <= age_ms);
                for (is_unmet, requirement) in [
                    (*exists && known.time_ms.is_none(), Requirement::Exists),
                    (*digest && !known.is_pinned, Requirement::Digest),
                    (*immutable_tag && !known.is_pinned && !is_immutable(), Requirement::ImmutableTag),
                    (max_age_ms.is_some_and(|age_ms| !is_young(age_ms)), Requirement::MaxAge),
                ] {
                    if is_unmet {
                        object(Reason::Unmet(requirement));
                    }
                }
            }
            _ => {}
        }
    }
    if !is_approved {
        let denying = policies.iter().filter(|policy| policy.default == Otherwise::Deny);
        found.extend(denying.map(|policy| Objection { policy, rule: None, reason: Reason::NotApproved }));
    }
    found
}

/// Whether a rule is about an image.
pub(super) fn applies(rule: &CompiledRule, known: &Known) -> bool {
    match rule.verb {
        CompiledVerb::Approve => approved(rule, known),
        CompiledVerb::Deny | CompiledVerb::Require { .. } => objectionable(rule, known),
    }
}

/// Whether a denial or a requirement is about an image, under whichever name.
fn objectionable(rule: &CompiledRule, known: &Known) -> bool {
    let is_named = |pattern: &Pattern| known.names().any(|name| pattern.matches_name(name));
    // What a tag means now is denied as well: it is what would run.
    let is_about = |pattern: &Pattern| matches(pattern, known.tag.as_ref(), known.digest.as_ref());
    rule.images.iter().any(|pattern| is_about(pattern) && is_named(pattern))
}

/// Whether an approval is about an image, as it is named: what runs under another name may come from elsewhere.
fn approved(rule: &CompiledRule, known: &Known) -> bool {
    // A tag may be moved before the image is pulled, so only a digest that is part of the name counts.
    let digest = known.digest.as_ref().filter(|_| known.is_pinned);
    let is_about = |pattern: &Pattern| matches(pattern, known.proven_tag.as_ref(), digest);
    rule.images.iter().any(|pattern| is_about(pattern) && pattern.matches_name(&known.name))
}

fn matches(pattern: &Pattern, tag: Option<&Tag>, digest: Option<&Digest>) -> bool {
    pattern.tag.as_ref().is_none_or(|wanted| tag.is_some_and(|tag| wanted.is_match(tag.as_str())))
        && pattern.digest.as_ref().is_none_or(|wanted| digest.is_some_and(|digest| wanted.is_match(digest.to_string())))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A registry that holds two images, and one tag that moved from one to the other.
    struct Two(Rules);

    fn digest(letter: char) -> Digest {
        format!("sha256:{}", letter.to_string().repeat(64)).parse().unwrap()
    }

    impl Facts for Two {
        fn revision(&self) -> u64 {
            7
        }

        fn rules(&self) -> &Rules {
            &self.0
        }

        fn tag(&self, _: &RepositoryName, tag: &Tag) -> Result<Option<Digest>, StorageError> {
            Ok(match tag.as_str() {
                "v1" => Some(digest('a')),
                "live" => Some(digest('b')),
                _ => None,
            })
        }

        fn manifest(&self, _: &RepositoryName, asked: &Digest) -> Result<Option<u64>, StorageError> {
            Ok(match () {
                () if *asked == digest('a') => Some(0),
                () if *asked == digest('b') => Some(50_000),
                () => None,
            })
        }

        fn tag_was(&self, _: &RepositoryName, tag: &Tag, asked: &Digest) -> Result<bool, StorageError> {
            Ok(tag.as_str() == "live" && *asked == digest('a') || self.tag(&"r".parse().unwrap(), tag)? == Some(*asked))
        }
    }

    fn facts() -> Two {
        let settings =
            r#"{"registry_names":["reg.example"],"immutable_tags":[{"name":"v","repositories":"**","tags":"v*"}]}"#;
        Two(Rules::parse(settings).unwrap())
    }

    fn subject(images: Vec<String>, is_template: bool) -> Subject {
        let images = images.into_iter().enumerate();
        let image = |(number, text): (usize, String)| Image {
            field: format!("spec.containers[{number}].image"),
            pointer: format!("/spec/containers/{number}/image"),
            container: "c".into(),
            text,
        };
        Subject { namespace: "prod".into(), is_template, now_ms: 100_000, images: images.map(image).collect() }
    }

    #[test]
    fn a_template_whose_pods_get_digests_may_name_tags() {
        let denied = |pin: &str, image: &str, is_template| {
            let text = format!(
                "name: p\nmode: enforce\ndefault: approve\npin: {pin}\ntemplates: enforce\nrules:\n- images: ['**']\n  verb: {{require: {{digest: true}}}}\n"
            );
            let policies = [Policy::parse(&text, 1).unwrap()];
            let found = decide(&facts(), &policies, &subject(vec![image.into()], is_template)).unwrap().findings;
            found.iter().any(|finding| finding.effect == Effect::Deny)
        };
        assert!(!denied("pods", "reg.example/app:v1", true));
        assert!(denied("off", "reg.example/app:v1", true));
        assert!(denied("pods", "reg.example/app:gone", true), "there is no digest for it");
        assert!(denied("pods", "reg.example/app:v1", false), "the webhook that pins has not seen it");
    }

    fn images() -> impl Strategy<Value = Vec<String>> {
        let (a, b) = (digest('a'), digest('b'));
        let texts = [
            "reg.example/app:v1".to_owned(),
            "reg.example/app:live".to_owned(),
            "reg.example/app:gone".to_owned(),
            format!("reg.example/app:live@{a}"),
            format!("reg.example/app:live@{b}"),
            format!("reg.example/app@{a}"),
            "nginx".to_owned(),
            "quay.io/x/y:1".to_owned(),
            "auto".to_owned(),
        ];
        prop::collection::vec(prop::sample::select(texts.to_vec()), 1..4)
    }

    /// One rule in YAML, by its verb.
    fn rule(verbs: &'static [&'static str]) -> impl Strategy<Value = String> {
        let images = ["**", "reg.example/**", "**:live", "**:v*", "docker.io/**", "**@sha256:a*", "quay.io/x/y:1"];
        (prop::sample::select(images.to_vec()), prop::sample::select(verbs))
            .prop_map(|(images, verb)| format!("- images: ['{images}']\n  verb: {verb}\n"))
    }

    const DENY: &[&str] = &["deny"];
    const APPROVE: &[&str] = &["approve"];
    const REQUIRE: &[&str] = &[
        "{require: {exists: true}}",
        "{require: {digest: true}}",
        "{require: {immutable_tag: true}}",
        "{require: {max_age: 60s}}",
    ];
    const ALL: &[&str] =
        &["deny", "approve", "{require: {exists: true}}", "{require: {digest: true}}", "{require: {max_age: 60s}}"];

    /// A policy's head, and its rules.
    fn written() -> impl Strategy<Value = (String, Vec<String>)> {
        let head = (
            prop::sample::select(&["enforce", "enforce", "warn", "audit"]),
            prop::sample::select(&["deny", "approve"]),
            prop::sample::select(&["warn", "enforce", "off"]),
        );
        let head = head.prop_map(|(mode, default, templates)| {
            format!("mode: {mode}\ndefault: {default}\ntemplates: {templates}\n")
        });
        (head, prop::collection::vec(rule(ALL), 0..4))
    }

    fn policies(written: &[(String, Vec<String>)]) -> Vec<Policy> {
        let policy = |(number, (head, rules)): (usize, &(String, Vec<String>))| {
            let rules = if rules.is_empty() { String::new() } else { format!("rules:\n{}", rules.concat()) };
            Policy::parse(&format!("name: p{number}\n{head}{rules}"), 3).unwrap()
        };
        written.iter().enumerate().map(policy).collect()
    }

    /// What a decision comes to, without the names of rules, which follow their places.
    fn verdict(policies: &[Policy], subject: &Subject) -> (bool, BTreeSet<(Effect, Image, Reason)>) {
        let decision = decide(&facts(), policies, subject).unwrap();
        let findings = decision.findings.iter();
        let findings = findings.map(|finding| (finding.effect, finding.image.clone(), finding.reason.clone()));
        (decision.is_allowed(), findings.collect())
    }

    proptest! {
        #[test]
        fn order_and_duplicates_never_count(
            written in prop::collection::vec(written(), 0..4), images in images(), template in any::<bool>(), turn in 0..4usize,
        ) {
            let subject = subject(images, template);
            let expected = verdict(&policies(&written), &subject);
            let mut turned = written.clone();
            if !turned.is_empty() {
                let by = turn % turned.len();
                turned.rotate_left(by);
            }
            for (_, rules) in &mut turned {
                rules.reverse();
                rules.extend(rules.first().cloned());
            }
            turned.extend(turned.first().cloned());
            prop_assert_eq!(verdict(&policies(&turned), &subject), expected);
        }

        #[test]
        fn one_more_denial_or_requirement_never_approves_more(
            written in prop::collection::vec(written(), 1..4), images in images(), template in any::<bool>(),
            more in prop_oneof![rule(DENY), rule(REQUIRE)], at in 0..3usize,
        ) {
            let subject = subject(images, template);
            let before = verdict(&policies(&written), &subject).0;
            let mut stricter = written;
            let at = at % stricter.len();
            stricter[at].1.push(more);
            prop_assert!(before || !verdict(&policies(&stricter), &subject).0);
        }

        #[test]
        fn one_more_approval_never_denies_more(
            written in prop::collection::vec(written(), 1..4), images in images(), template in any::<bool>(),
            more in rule(APPROVE), at in 0..3usize,
        ) {
            let subject = subject(images, template);
            let before = verdict(&policies(&written), &subject).0;
            let mut milder = written;
            let at = at % milder.len();
            milder[at].1.push(more);
            prop_assert!(!before || verdict(&policies(&milder), &subject).0);
        }
    }
}
