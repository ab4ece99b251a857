//! Commands against a state in memory, written down as scenarios: one line in, one line out.
//!
//! `testdata/*.scenario` hold them. A line that begins with `>` is a command, the lines below it are what must come of
//! it; `UPDATE_SCENARIOS=1` writes the files anew, and the difference is reviewed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use bytes::Bytes;
use flotilla_storage::{Algorithm, Digest, Keyspace, PresentRows, StorageError};
use uuid::Uuid;

use super::journal::{CHANGES, REQUESTS, envelopes};
use super::trust::TOKENS_MAX;
use super::{Layout, Reader, Requests, State, StoredSettings, apply, keys};
use crate::command::{
    Answer, Body, Command, Condition, INLINE_BODY_MAX, ManifestPut, Outcome, Proposal, Refusal, TagChange, TrustChange,
    TrustRefusal,
};
use crate::records::{
    AuthoritiesRecord, BlobRecord, Candidate, Change, LinkRecord, ManifestRecord, Place, PolicyVersion, Referrer,
    RepositoryRecord, TagRecord,
};
use crate::settings::Rules;
use crate::wire::{self, Kind};

#[derive(Default)]
struct Memory {
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
    index: u64,
    time_ms: u64,
    /// Milliseconds that passed beside those between commands.
    waited_ms: u64,
    requests: Requests,
}

impl Reader for Memory {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StorageError> {
        Ok(self.rows.get(key).cloned())
    }

    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<PresentRows, StorageError> {
        let rows = self
            .rows
            .iter()
            .filter(|(key, _)| key.starts_with(prefix) && after.is_none_or(|after| key.as_slice() > after));
        Ok(rows.take(limit).map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}

impl Memory {
    fn apply(&mut self, proposals: &[Proposal]) -> Vec<Answer> {
        let members = BTreeSet::from([1, 2, 3]);
        let rules = StoredSettings::default().rules(self).expect("sound rows");
        let mut requests = std::mem::take(&mut self.requests);
        let mut state =
            State::new(self, members, self.time_ms, rules, Layout::load(self).expect("a sound row"), &mut requests);
        let mut answers = Vec::new();
        let mut index = self.index;
        for proposal in proposals {
            index += 1;
            state.set_index(index);
            answers.push(apply(&mut state, proposal).expect("sound rows"));
        }
        let (time_ms, rows) = (state.time_ms(), state.into_rows());
        (self.index, self.time_ms, self.requests) = (index, time_ms, requests);
        for (key, value) in rows {
            match value {
                Some(value) if value.len() > 4096 => panic!("the store takes no value of {} bytes", value.len()),
                Some(value) => self.rows.insert(key, value),
                None => self.rows.remove(&key),
            };
        }
        answers
    }

    fn one(&mut self, command: Command) -> Answer {
        let proposal = Proposal {
            request_id: Uuid::from_u128(u128::from(self.index) + 1000),
            base_index: self.index,
            time_ms: 1000 * (self.index + 1) + self.waited_ms,
            actor: String::new(),
            command,
        };
        self.apply(&[proposal]).remove(0)
    }

    fn row<T: serde::de::DeserializeOwned>(&self, key: &[u8]) -> Option<T> {
        self.rows.get(key).map(|bytes| wire::decode(Kind::Row, bytes).expect("a sound row"))
    }
}

fn digest(name: &str) -> Digest {
    Digest::of(Algorithm::Sha256, name.as_bytes())
}

fn body(word: &str) -> Body {
    match word.strip_prefix("file:") {
        Some(file) => {
            let (holders, promised) = file.split_once('@').unwrap_or((file, "1000000"));
            let holders = holders.split(',').map(|id| id.parse().expect("an id")).collect();
            Body::File { holders, min_copies: 2, promised: promised.parse().expect("an index") }
        }
        None => Body::Inline(Bytes::copy_from_slice(word.as_bytes())),
    }
}

/// `absent`, `present`, a manifest's name, or `-`.
fn condition(word: Option<&&str>) -> Option<Condition> {
    match *word? {
        "-" => None,
        "absent" => Some(Condition::Absent),
        "present" => Some(Condition::Present),
        name => Some(Condition::At(digest(name))),
    }
}

/// `REPO:TAG=NAME|-[:CONDITION]`
fn change(word: &str) -> TagChange {
    let (place, change) = word.split_once('=').expect("a change");
    let (repository, tag) = place.split_once(':').expect("a tag");
    let (name, when) = change.split_once(':').unwrap_or((change, "-"));
    TagChange {
        repository: repository.parse().expect("a repository"),
        tag: tag.parse().expect("a tag"),
        digest: (name != "-").then(|| digest(name)),
        condition: condition(Some(&when)),
    }
}

/// `link REPO NAME BODY` (`file:HOLDERS[@PROMISED]` for a file) · `mount REPO NAME [FROM]` · `unlink REPO NAME` ·
/// `put REPO NAME TAGS|- BLOBS|- [CHILDREN|- [CONDITION|- [SUBJECT [TYPE [MENTIONS]]]]]` · `delete-tag REPO TAG [CONDITION]` ·
/// `delete-manifest REPO NAME` · `move CHANGE…` · `settings REVISION|- DOCUMENT` · `touch REPO NAME` ·
/// `collect LIMIT [ORPHANS]` · `collect-untagged REPO NAMES` · `policy NAME REVISION|- [DOCUMENT]` ·
/// `found-policies NAME=DOCUMENT…`
fn command(line: &str) -> Command {
    let words: Vec<&str> = line.split_whitespace().collect();
    let repository = words[1].split(':').next().and_then(|name| name.parse().ok());
    let repository = repository.unwrap_or_else(|| "none".parse().expect("a repository"));
    let list = |word: Option<&&str>| {
        word.filter(|word| **word != "-").map_or_else(Vec::new, |word| word.split(',').map(digest).collect())
    };
    match words[0] {
        "link" => Command::LinkBlob {
            repository,
            digest: digest(words[2]),
            size: words[2].len() as u64,
            body: body(words[3]),
        },
        "mount" => Command::MountBlob {
            repository,
            digest: digest(words[2]),
            from: words.get(3).map(|from| from.parse().expect("a repository")),
        },
        "unlink" => Command::UnlinkBlob { repository, digest: digest(words[2]) },
        "delete-tag" => {
            Command::DeleteTag { repository, tag: words[2].parse().expect("a tag"), condition: condition(words.get(3)) }
        }
        "touch" => Command::TouchBlob { repository, digest: digest(words[2]) },
        "collect-untagged" => Command::CollectUntagged { repository, digests: list(words.get(2)) },
        "collect" => Command::Collect { orphans: list(words.get(2)), limit: words[1].parse().expect("a number") },
        "settings" => Command::PutSettings { document: words[2..].join(" "), expected: words[1].parse().ok() },
        "policy" => Command::ChangePolicy {
            name: words[1].parse().expect("a name"),
            document: words.get(3).map(|_| words[3..].join(" ")),
            expected: words[2].parse().ok(),
        },
        "found-policies" => {
            let policies = words[1..].iter().filter_map(|word| word.split_once('='));
            Command::FoundPolicies(policies.map(|(name, text)| (name.parse().expect("a name"), text.into())).collect())
        }
        "place" => Command::PlaceNode {
            node: words[1].parse().expect("a node"),
            zone: words[2].into(),
            weight: words[3].parse().expect("a weight"),
        },
        "drain" => Command::DrainNode {
            node: words[1].parse().expect("a node"),
            draining: words[2].parse().expect("true or false"),
        },
        "move" => Command::MoveTags(words[1..].iter().map(|word| change(word)).collect()),
        "delete-manifest" => Command::DeleteManifest { repository, digest: digest(words[2]) },
        "put" => Command::PutManifest(Box::new(ManifestPut {
            repository,
            digest: digest(words[2]),
            media_type: words.get(8).unwrap_or(&"application/vnd.oci.image.manifest.v1+json").to_string(),
            size: words[2].len() as u64,
            body: body(words[2]),
            tags: if words[3] == "-" {
                Vec::new()
            } else {
                words[3].split(',').map(|tag| tag.parse().expect("a tag")).collect()
            },
            blobs: list(words.get(4)),
            manifests: list(words.get(5)),
            either: Vec::new(),
            subject: words.get(7).map(|subject| digest(subject)),
            artifact_type: None,
            annotations: Vec::new(),
            condition: condition(words.get(6)),
            mentions: list(words.get(9)),
        })),
        other => panic!("no command {other}"),
    }
}

fn transcript(scenario: &str) -> String {
    let mut memory = Memory::default();
    let mut names = BTreeMap::new();
    let mut out = String::new();
    for line in scenario.lines().filter(|line| line.starts_with('>') || line.starts_with('#') || line.is_empty()) {
        let _ = writeln!(out, "{line}");
        let Some(text) = line.strip_prefix('>') else { continue };
        text.split([' ', ',', '=', ':']).for_each(|word| {
            names.insert(digest(word).to_string(), word.to_owned());
        });
        if let Some(seconds) = text.strip_prefix("wait ") {
            memory.waited_ms += seconds.parse::<u64>().expect("seconds") * 1000;
            continue;
        }
        let answer = memory.one(command(text));
        let _ = match &answer.result {
            Ok(outcome) => writeln!(out, "{outcome:?} at {}", answer.revision),
            Err(Refusal::ContentMissing(missing)) => writeln!(
                out,
                "refused: missing {:?}",
                missing.iter().map(|digest| &names[&digest.to_string()]).collect::<Vec<_>>()
            ),
            Err(refusal) => writeln!(out, "refused: {refusal}"),
        };
        out.push_str(&listing(&memory, &names));
    }
    out
}

/// What is there: each repository with its counts and tags.
fn listing(memory: &Memory, names: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    for (key, value) in memory.scan(b"r", None, usize::MAX).expect("in memory") {
        let name: crate::RepositoryName = String::from_utf8_lossy(&key[1..]).parse().expect("a name");
        let record: RepositoryRecord = wire::decode(Kind::Row, &value).expect("a sound row");
        let prefix = keys::tags(&name);
        let tags = memory.scan(&prefix, None, usize::MAX).expect("in memory").into_iter().map(|(key, value)| {
            let tag: TagRecord = wire::decode(Kind::Row, &value).expect("a sound row");
            format!(
                " {}→{}@{}",
                String::from_utf8_lossy(&key[prefix.len()..]),
                names[&tag.digest.to_string()],
                tag.revision
            )
        });
        let _ = writeln!(
            out,
            "  {name}: {} blobs, {} manifests{}",
            record.blobs,
            record.manifests,
            tags.collect::<String>()
        );
    }
    let layout = Layout::load(memory).expect("a sound row");
    for (node, seat) in &layout.seats {
        let drained = if seat.draining { ", draining" } else { "" };
        let _ = writeln!(
            out,
            "  node {node}: zone {}, weight {}{drained}, layout {}",
            seat.zone, seat.weight, layout.revision
        );
    }
    let policies = keys::policies();
    for (key, value) in memory.scan(&policies, None, usize::MAX).expect("in memory") {
        let name: crate::PolicyName = keys::name_of_version(&key, policies.len()).expect("a name");
        let revision = keys::revision_of_version(&key).expect("a revision");
        let version: PolicyVersion = wire::decode(Kind::Row, &value).expect("a sound row");
        let _ = writeln!(out, "  policy {name}@{revision}: {}", version.document.as_deref().unwrap_or("removed"));
    }
    for (key, _) in memory.scan(b"g", None, usize::MAX).expect("in memory") {
        let (since_ms, candidate) = keys::parse_candidate(&key).expect("a candidate");
        let what = match candidate {
            Candidate::Former(repository, digest) => {
                format!("former manifest {repository} {}", names[&digest.to_string()])
            }
            Candidate::Existence(repository, revision) => format!("repository {repository} until {revision}"),
            Candidate::Link(repository, digest) => format!("blob {repository} {}", names[&digest.to_string()]),
            Candidate::Bytes(digest) => format!("bytes {}", names[&digest.to_string()]),
        };
        let _ = writeln!(out, "  unused since {since_ms}: {what}");
    }
    out
}

fn check(name: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(format!("{name}.scenario"));
    let written = std::fs::read_to_string(&path).expect("a scenario");
    let played = transcript(&written);
    if std::env::var_os("UPDATE_SCENARIOS").is_some() {
        std::fs::write(&path, &played).expect("written");
    }
    assert_eq!(played, written, "{}", path.display());
}

#[test]
fn blobs_are_linked_mounted_and_unlinked() {
    check("blobs");
}

#[test]
fn tags_change_on_conditions_and_together() {
    check("conditions");
}

#[test]
fn settings_decide_what_may_move_and_what_may_be_missing() {
    check("settings");
}

#[test]
fn what_nothing_uses_is_collected_after_its_time() {
    check("garbage");
}

#[test]
fn manifests_without_a_tag_are_collected_where_a_rule_says_so() {
    check("untagged");
}

#[test]
fn policies_keep_their_versions() {
    check("policies");
    check("first-policies");
}

#[test]
fn nodes_are_placed_and_drained_one_at_a_time() {
    check("layout");
}

#[test]
fn who_leaves_the_membership_has_no_seat() {
    let mut memory = Memory::default();
    memory.one(command("place 3 b 2"));
    let mut requests = Requests::default();
    let (rules, layout) = (std::sync::Arc::default(), Layout::load(&memory).expect("a sound row"));
    let mut state = State::new(&memory, BTreeSet::from([1, 2, 3]), 0, rules, layout, &mut requests);
    state.set_index(9);
    state.set_members(BTreeSet::from([1, 2, 3])).expect("applied");
    assert_eq!(state.layout().revision, 1);
    state.set_members(BTreeSet::from([1, 2])).expect("applied");
    assert_eq!(*state.layout(), Layout { revision: 9, ..Layout::default() });
}

#[test]
fn a_tag_that_pointed_at_a_manifest_is_known_as_long_as_the_manifest() {
    let mut memory = Memory::default();
    let mut play = |lines: &str| lines.lines().for_each(|line| drop(memory.one(command(line.trim()))));
    play(
        r#"settings - {"history_seconds":10}
        link r layer content
        put r image v1 layer
        put r other v1,v2 layer
        put r image v2 layer
        delete-tag r v2"#,
    );
    for _ in 0..130 {
        play("touch r layer");
    }
    let pairs = |memory: &Memory| {
        let rows = memory.scan(&[Keyspace::Pair.prefix()], None, usize::MAX).expect("in memory");
        rows.into_iter().map(|(key, _)| key).collect::<Vec<_>>()
    };
    let repository = "r".parse().expect("a repository");
    let was = |name: &str, tag: &str| keys::pair(&repository, &digest(name), &tag.parse().expect("a tag"));
    let mut expected = vec![was("image", "v1"), was("other", "v2"), was("image", "v2")];
    expected.sort();
    assert_eq!(pairs(&memory), expected, "no version of a tag says so any more");
    memory.one(command("delete-manifest r image"));
    assert_eq!(pairs(&memory), [was("other", "v2")]);
}

#[test]
fn manifests_and_tags_are_put_and_deleted() {
    check("manifests");
}

#[test]
fn changes_lie_in_the_order_in_which_they_were_made() {
    let mut memory = Memory::default();
    memory.one(command("link r layer content"));
    for number in 0..200 {
        // Of several sizes: what is short fits where what is long did not.
        let tag = "t".repeat(1 + number * 7 % 100);
        memory.one(command(&format!("put r image{number} {tag},other layer")));
    }
    let rows = memory.scan(&CHANGES.rows(), None, usize::MAX).expect("in memory");
    let places: Vec<Place> = rows
        .iter()
        .flat_map(|(_, row)| envelopes(row))
        .map(|envelope| wire::decode::<(Place, Change)>(Kind::Row, envelope.expect("whole")).expect("a change").0)
        .collect();
    assert_eq!(places.len(), 600);
    assert!(places.is_sorted(), "{:?}", places.windows(2).find(|pair| pair[0] > pair[1]));
}

/// They fill hundreds of rows of one block, the last of which is not looked for one by one.
#[test]
fn the_changes_of_a_manifest_with_thousands_of_tags_lie_in_order() {
    let mut memory = Memory::default();
    let tags = |range: std::ops::Range<u32>| range.map(|tag| format!("t{tag:04}")).collect::<Vec<_>>().join(",");
    for hundred in 0..50 {
        let answer = memory.one(command(&format!("put r m {} -", tags(hundred * 100..(hundred + 1) * 100))));
        assert!(answer.result.is_ok(), "{answer:?}");
    }
    let deleted = memory.one(command("delete-manifest r m"));
    assert!(deleted.result.is_ok());
    let mut found = Vec::new();
    for key in CHANGES.block(deleted.revision) {
        let Some(row) = memory.rows.get(&key) else { break };
        for envelope in envelopes(row) {
            let (place, change): (Place, Change) = wire::decode(Kind::Row, envelope.expect("whole")).expect("sound");
            found.extend(change.tag.filter(|_| place.revision == deleted.revision).map(|tag| (place.number, tag)));
        }
    }
    assert_eq!(found.len(), 5_000);
    assert!(found.is_sorted());
}

#[test]
fn a_request_that_comes_again_is_answered_and_not_applied_again() {
    let mut memory = Memory::default();
    let link = |id: u128, base_index| Proposal {
        request_id: Uuid::from_u128(id),
        base_index,
        time_ms: 5,
        actor: String::new(),
        command: command("link a/b blob body"),
    };
    let first = memory.apply(&[link(1, 0)]);
    memory.one(command("unlink a/b blob"));
    let again = memory.apply(&[link(1, 0), link(1, 0)]);
    assert_eq!(again, [first[0].clone(), first[0].clone()]);
    assert_eq!(memory.row::<LinkRecord>(&keys::link(&"a/b".parse().expect("a name"), &digest("blob"))), None);
}

#[test]
fn a_request_twice_in_one_chunk_is_applied_once() {
    let mut memory = Memory::default();
    let put = Proposal {
        request_id: Uuid::from_u128(7),
        base_index: 0,
        time_ms: 5,
        actor: String::new(),
        command: command("put r manifest a -"),
    };
    let answers = memory.apply(&[put.clone(), put]);
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[0].revision, 1);
}

#[test]
fn a_refused_request_may_be_tried_again_under_its_id() {
    let mut memory = Memory::default();
    let mut link = Proposal {
        request_id: Uuid::from_u128(7),
        base_index: 0,
        time_ms: 5,
        actor: String::new(),
        command: command("link r blob file:8,9"),
    };
    assert_eq!(memory.apply(std::slice::from_ref(&link))[0].result, Err(Refusal::HoldersGone));
    link.command = command("link r blob file:1,9,2");
    assert_eq!(memory.apply(&[link])[0].result, Ok(Outcome::Done));
}

#[test]
fn requests_below_the_floor_are_refused_and_forgotten() {
    let mut memory = Memory { index: super::requests::WINDOW - 10, ..Memory::default() };
    let old = Proposal {
        request_id: Uuid::from_u128(1),
        base_index: 3,
        time_ms: 5,
        actor: String::new(),
        command: command("link r blob body"),
    };
    assert!(memory.apply(std::slice::from_ref(&old))[0].result.is_ok());
    for _ in 0..200 {
        memory.one(command("delete-tag r none"));
    }
    assert_eq!(memory.apply(std::slice::from_ref(&old))[0].result, Err(Refusal::RequestExpired));
    let kept = memory.rows.keys().find(|key| key[0] == b'q').expect("requests");
    assert!(
        REQUESTS.end_of(kept).expect("a row") > memory.index - super::requests::WINDOW - 64,
        "the first is forgotten"
    );
}

#[test]
fn the_clock_of_state_never_goes_back() {
    let mut memory = Memory::default();
    let put = |id: u128, time_ms, name: &str| Proposal {
        request_id: Uuid::from_u128(id),
        base_index: 0,
        time_ms,
        actor: "x".into(),
        command: command(&format!("put r {name} t -")),
    };
    memory.apply(&[put(1, 5000, "one")]);
    memory.apply(&[put(2, 4000, "two")]);
    let tag: TagRecord =
        memory.row(&keys::tag(&"r".parse().expect("a name"), &"t".parse().expect("a tag"))).expect("a tag");
    assert_eq!((tag.time_ms, tag.revision, tag.actor.as_str()), (5000, 2, "x"));
}

#[test]
fn bodies_are_split_into_rows_that_sled_keeps_in_its_pages() {
    for size in [0, 1, keys::ROW_PART, INLINE_BODY_MAX as usize] {
        let mut memory = Memory::default();
        let bytes = Bytes::from(vec![7u8; size]);
        let digest = Digest::of(Algorithm::Sha512, &bytes);
        memory.one(Command::LinkBlob {
            repository: "r".parse().expect("a name"),
            digest,
            size: size as u64,
            body: Body::Inline(bytes.clone()),
        });
        assert!(memory.rows.values().all(|value| value.len() <= keys::ROW_PART));
        let key = keys::blob(&digest);
        let whole =
            super::long_rows::join(&key, memory.rows[&key].clone(), |part| memory.get(part)).expect("all parts");
        let record: BlobRecord = wire::decode(Kind::Row, &whole).expect("a sound row");
        assert_eq!(record.body, Some(bytes));
        memory.waited_ms = Rules::default().history_ms();
        memory.one(command("collect 100"));
        assert!(
            memory.rows.keys().all(|key| matches!(key[0], b'q' | b'm' | b'e' | b'g')),
            "collected with all its parts"
        );
    }
}

#[test]
fn a_manifest_record_keeps_what_was_parsed() {
    let mut memory = Memory::default();
    memory.one(command("link r layer body"));
    memory.one(command("put r image v1 layer"));
    let record: ManifestRecord =
        memory.row(&keys::manifest(&"r".parse().expect("a name"), &digest("image"))).expect("a manifest");
    assert_eq!((record.blobs, record.inline, record.revision), (vec![digest("layer")], true, 2));
    let blob: BlobRecord = memory.row(&keys::blob(&digest("image"))).expect("a blob");
    assert_eq!(
        blob,
        BlobRecord { size: 5, body: Some("image".into()), file: false, links: 0, manifests: 1, unused_since_ms: 0 }
    );
}

#[test]
fn a_manifest_that_names_thousands_of_digests_fits_into_rows_and_leaves_none_behind() {
    let mut memory = Memory::default();
    let empty = memory.one(command("put r child - -"));
    assert!(empty.result.is_ok());
    let repository: crate::RepositoryName = "r".parse().expect("a name");
    let Command::PutManifest(mut put) = command("put r index v1 -") else { panic!("a manifest") };
    for number in 0..10_000 {
        let layer = digest(&format!("layer {number}"));
        memory.one(Command::LinkBlob { repository: repository.clone(), digest: layer, size: 1, body: body("x") });
        put.blobs.push(layer);
    }
    let before: BTreeSet<_> = memory.rows.keys().filter(|key| key[0] != b'q').cloned().collect();
    assert!(memory.one(Command::PutManifest(put.clone())).result.is_ok());
    assert!(memory.rows.values().all(|value| value.len() <= keys::ROW_PART), "sled keeps no longer value in its pages");
    let key = keys::manifest(&repository, &put.digest);
    let head = memory.rows[&key].clone();
    let whole = super::long_rows::join(&key, head, |part| memory.get(part)).expect("all parts");
    let record: ManifestRecord = wire::decode(Kind::Row, &whole).expect("a sound row");
    assert_eq!(record.blobs, put.blobs);
    // Put again and deleted: the parts go with the head.
    assert!(memory.one(Command::PutManifest(put.clone())).result.is_ok());
    assert!(memory.one(Command::DeleteManifest { repository, digest: put.digest }).result.is_ok());
    let after: BTreeSet<_> = memory.rows.keys().filter(|key| key[0] != b'q').cloned().collect();
    let left: Vec<_> = after.difference(&before).map(|key| key[0]).collect();
    let may_stay = |space: &u8| matches!(space, b'b' | b'h' | b'c' | b'd' | b'p' | b'g');
    assert!(left.iter().all(may_stay), "only what history holds for its time: {left:?}");
    // Forgotten by history first, then unused for their time.
    for _ in 0..2 {
        memory.waited_ms += Rules::default().history_ms();
        assert!(memory.one(command("collect 100000")).result.is_ok());
    }
    let after: BTreeSet<_> = memory.rows.keys().filter(|key| key[0] != b'q').cloned().collect();
    assert!(!after.iter().any(|key| matches!(key[0], b'd' | b'p' | b'g' | b'l' | b'u')), "nothing is left of it");
}

#[test]
fn changes_are_forgotten_after_their_time_but_not_what_a_tag_is() {
    let day = 24 * 60 * 60 * 1000;
    let mut memory = Memory::default();
    let at = |memory: &mut Memory, days: u64, line: &str| {
        let index = memory.index;
        let proposal = Proposal {
            request_id: Uuid::from_u128(u128::from(index)),
            base_index: index,
            time_ms: days * day,
            actor: String::new(),
            command: command(line),
        };
        memory.apply(&[proposal]).remove(0)
    };
    for (days, line) in [(0, "put r one a,b,gone -"), (0, "put r two a -"), (1, "delete-tag r gone")] {
        assert!(at(&mut memory, days, line).result.is_ok());
    }
    // Changes are forgotten with the whole block that they share.
    while memory.index < CHANGES.span {
        at(&mut memory, 1, "delete-tag r none");
    }
    let later = at(&mut memory, 20, "put r one a -").revision;
    // Forgetting goes in steps of entries.
    for number in 0..64 {
        at(&mut memory, 20, &format!("put r m{number} x -"));
    }
    let versions = |memory: &Memory, tag: &str| -> Vec<u64> {
        let prefix = keys::history(&"r".parse().expect("a name"), &tag.parse().expect("a tag"));
        let rows = memory.scan(&prefix, None, usize::MAX).expect("in memory");
        rows.iter().map(|(key, _)| keys::revision_of_version(key).expect("a version")).collect()
    };
    assert_eq!(versions(&memory, "a"), [later, 2], "what it is, and what it was at the oldest revision that is kept");
    assert_eq!(versions(&memory, "b"), [1], "a tag that never moved");
    assert_eq!(versions(&memory, "gone"), [] as [u64; 0]);
    let rows = memory.scan(&CHANGES.rows(), None, usize::MAX).expect("in memory");
    let (oldest, _): (Place, Change) =
        wire::decode(Kind::Row, envelopes(&rows[0].1).next().expect("a change").expect("whole")).expect("sound");
    assert_eq!(oldest.revision, later);
    assert_eq!(memory.row::<u64>(&keys::history_floor()), Some(3));
}

#[test]
fn a_referrer_is_listed_as_long_as_it_is_there() {
    let mut memory = Memory::default();
    assert!(memory.one(command("put r sbom - - - - image")).result.is_ok());
    let key = keys::referrer(&"r".parse().expect("a name"), &digest("image"), &digest("sbom"));
    assert_eq!(memory.row::<Referrer>(&key).map(|referrer| referrer.size), Some(4));
    assert!(memory.one(command("delete-manifest r sbom")).result.is_ok());
    assert_eq!(memory.row::<Referrer>(&key), None);
}

#[test]
fn the_rows_do_not_depend_on_where_chunks_begin() {
    let start = super::requests::WINDOW - 100;
    let proposals: Vec<_> = (0..2000u64)
        .map(|number| Proposal {
            request_id: Uuid::from_u128(number.into()),
            // A burst under one base index, as from a node that was a little behind.
            base_index: if number < 1500 { 3 } else { start + number - 1 },
            time_ms: number,
            actor: String::new(),
            command: command(&format!("put r manifest{} t{} -", number % 40, number % 7)),
        })
        .collect();
    let rows = |chunk: usize| {
        let mut memory = Memory { index: start, ..Memory::default() };
        let answers: Vec<_> = proposals.chunks(chunk).flat_map(|chunk| memory.apply(chunk)).collect();
        assert_eq!(Requests::load(&memory).expect("sound rows"), memory.requests, "as after a restart");
        (answers, memory.rows)
    };
    let (one, many) = (rows(1), rows(256));
    assert_eq!(one.0, many.0);
    assert!(one.1 == many.1, "{} and {} rows", one.1.len(), many.1.len());
}

fn trust(change: TrustChange) -> Command {
    Command::ChangeTrust(change)
}

fn trust_refused(answer: &Answer) -> Option<&TrustRefusal> {
    match &answer.result {
        Err(Refusal::Trust(refusal)) => Some(refusal),
        _ => None,
    }
}

#[test]
fn the_authorities_are_replaced_only_by_who_knows_them() {
    let mut memory = Memory::default();
    let mut put = |certificates: &[&'static str], signer, expected| {
        let certificates = certificates.iter().map(|one| Bytes::from_static(one.as_bytes())).collect();
        memory.one(trust(TrustChange::Authorities { certificates, signer, expected }))
    };
    assert_eq!(put(&["a"], 0, 0).result, Ok(Outcome::Done));
    assert_eq!(trust_refused(&put(&["b"], 0, 0)), Some(&TrustRefusal::AuthoritiesChanged { current: 1 }));
    assert_eq!(put(&["a", "b"], 1, 1).result, Ok(Outcome::Done));
    for (certificates, signer) in [(&[][..], 0), (&["a"][..], 1), (&["a", "b", "c"][..], 0)] {
        assert_eq!(trust_refused(&put(certificates, signer, 3)), Some(&TrustRefusal::AuthoritiesInvalid));
    }
    let record: AuthoritiesRecord = memory.row(&keys::authorities()).expect("put");
    assert_eq!((record.certificates.len(), record.signer, record.revision), (2, 1, 3));
}

#[test]
fn a_token_is_used_by_one_node_before_it_ends() {
    let mut memory = Memory::default();
    let put = |id: &str, lifetime_ms| {
        trust(TrustChange::PutToken { id: id.into(), authority: Bytes::from_static(b"certificate"), lifetime_ms })
    };
    let used_by = |id: &str, node| trust(TrustChange::UseToken { id: id.into(), node });
    assert_eq!(memory.one(put("a", 60_000)).result, Ok(Outcome::Done));
    assert_eq!(trust_refused(&memory.one(put("a", 60_000))), Some(&TrustRefusal::TokenExists));
    assert_eq!(trust_refused(&memory.one(used_by("b", 4))), Some(&TrustRefusal::TokenUnknown));
    assert_eq!(memory.one(used_by("a", 4)).result, Ok(Outcome::Done));
    // An answer that was lost is asked for again.
    assert_eq!(memory.one(used_by("a", 4)).result, Ok(Outcome::Done));
    assert_eq!(trust_refused(&memory.one(used_by("a", 5))), Some(&TrustRefusal::TokenUsed));
    assert_eq!(memory.one(put("c", 1000)).result, Ok(Outcome::Done));
    memory.waited_ms += 10_000;
    assert_eq!(trust_refused(&memory.one(used_by("c", 5))), Some(&TrustRefusal::TokenEnded));
    // A day later nobody is told any more.
    memory.waited_ms += 25 * 60 * 60 * 1000;
    assert_eq!(memory.one(put("d", 1000)).result, Ok(Outcome::Done));
    assert_eq!(trust_refused(&memory.one(used_by("c", 5))), Some(&TrustRefusal::TokenUnknown));
}

#[test]
fn tokens_have_a_limit_that_ended_ones_do_not_count_for() {
    let mut memory = Memory::default();
    let put = |id: u32, lifetime_ms| {
        let authority = Bytes::from(vec![7; 400]);
        trust(TrustChange::PutToken { id: id.to_string(), authority, lifetime_ms })
    };
    for id in 0..TOKENS_MAX {
        assert_eq!(memory.one(put(id, if id == 0 { 150_000 } else { 10_000_000 })).result, Ok(Outcome::Done), "{id}");
    }
    let full = TrustRefusal::TokensFull { limit: TOKENS_MAX };
    assert_eq!(trust_refused(&memory.one(put(1000, 60_000))), Some(&full));
    memory.waited_ms += 100_000;
    assert_eq!(memory.one(put(1001, 60_000)).result, Ok(Outcome::Done));
}
