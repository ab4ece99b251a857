//! A tag that moves all the time, and what reads of it may show.
//!
//! One client moves the tag, so its versions have an order. A read that began after the acknowledgement of a version
//! must show that one or a later one (I2), unless its answer warns that it may be stale. A version whose outcome is
//! unknown may take effect at any time after it was sent, so that a read which shows it proves nothing.

use super::registry::Outcome;
use super::report::{MAX_EXAMPLES, TagReads};

/// More moves than the longest drill makes.
const MAX_VERSIONS: usize = 100_000;

#[derive(Debug)]
struct Version {
    digest: String,
    /// `None` while its request is under way.
    outcome: Option<Outcome>,
    /// An attempt of it may take effect although a later one was acknowledged.
    is_disputed: bool,
}

/// The versions of the tag, and how its reads went.
#[derive(Debug, Default)]
pub(super) struct MovingTag {
    versions: Vec<Version>,
    acknowledged: Option<usize>,
    reads: TagReads,
}

impl MovingTag {
    /// The number of the next version.
    pub(super) fn next(&self) -> usize {
        self.versions.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.versions.len() >= MAX_VERSIONS
    }

    /// A request that points the tag at that digest is about to be sent.
    pub(super) fn sent(&mut self, digest: String) {
        self.versions.push(Version { digest, outcome: None, is_disputed: false });
    }

    /// The last request that was sent has ended.
    pub(super) fn settled(&mut self, outcome: Outcome, is_disputed: bool) {
        let Some(version) = self.versions.last_mut() else { return };
        version.outcome = Some(outcome);
        version.is_disputed = is_disputed;
        if outcome == Outcome::Ok {
            self.acknowledged = Some(self.versions.len() - 1);
        }
    }

    /// The newest version that a read beginning now must show; `None` as long as there is none.
    pub(super) fn floor(&self) -> Option<usize> {
        self.acknowledged
    }

    /// Judges a read that began at that floor and got that digest, or a 404.
    pub(super) fn judge(&mut self, floor: Option<usize>, node: &str, digest: Option<&str>, warned: bool) {
        if warned {
            self.reads.warned += 1;
            return;
        }
        self.reads.judged += 1;
        let Some(floor) = floor else { return };
        let shown = digest.and_then(|digest| self.versions.iter().rposition(|version| version.digest == digest));
        let is_fresh = shown.is_some_and(|shown| shown >= floor || self.may_come_late(shown));
        if !is_fresh {
            self.reads.stale += 1;
            if self.reads.examples.len() < MAX_EXAMPLES {
                let shown = shown.map_or("nothing that was ever sent".to_owned(), |shown| format!("version {shown}"));
                self.reads.examples.push(format!("{node} showed {shown} after version {floor} was acknowledged"));
            }
        }
    }

    fn may_come_late(&self, version: usize) -> bool {
        let version = &self.versions[version];
        version.is_disputed || version.outcome == Some(Outcome::Unknown)
    }

    pub(super) fn reads(&self) -> TagReads {
        self.reads.clone()
    }

    /// The digest of every manifest that may be there.
    pub(super) fn digests(&self) -> Vec<String> {
        self.versions.iter().map(|version| version.digest.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(versions: &[(Outcome, bool)]) -> MovingTag {
        let mut tag = MovingTag::default();
        for (number, (outcome, is_disputed)) in versions.iter().enumerate() {
            tag.sent(format!("d{number}"));
            tag.settled(*outcome, *is_disputed);
        }
        tag
    }

    fn stale(mut tag: MovingTag, floor: Option<usize>, digest: Option<&str>) -> u64 {
        tag.judge(floor, "n1", digest, false);
        tag.reads().stale
    }

    #[test]
    fn a_read_must_show_what_was_acknowledged_before_it_or_something_later() {
        let two = || tag(&[(Outcome::Ok, false), (Outcome::Ok, false)]);
        assert_eq!(two().floor(), Some(1));
        assert_eq!(stale(two(), Some(1), Some("d1")), 0);
        assert_eq!(stale(two(), Some(1), Some("d0")), 1);
        assert_eq!(stale(two(), Some(0), Some("d1")), 0, "a later one was acknowledged meanwhile");
        assert_eq!(stale(two(), Some(1), None), 1, "a tag that was acknowledged is there");
        assert_eq!(stale(two(), Some(1), Some("dx")), 1);
        assert_eq!(stale(two(), None, None), 0);
    }

    #[test]
    fn a_version_under_way_may_be_shown() {
        let mut moved = tag(&[(Outcome::Ok, false)]);
        moved.sent("d1".to_owned());
        assert_eq!(moved.floor(), Some(0));
        assert_eq!(stale(moved, Some(0), Some("d1")), 0);
    }

    #[test]
    fn what_may_take_effect_late_proves_nothing() {
        let unknown = tag(&[(Outcome::Unknown, true), (Outcome::Ok, false)]);
        assert_eq!(stale(unknown, Some(1), Some("d0")), 0);
        let disputed = tag(&[(Outcome::Ok, true), (Outcome::Ok, false)]);
        assert_eq!(stale(disputed, Some(1), Some("d0")), 0);
        let failed = tag(&[(Outcome::Failed, false), (Outcome::Ok, false)]);
        assert_eq!(stale(failed, Some(1), Some("d0")), 1);
    }

    #[test]
    fn an_answer_that_warns_is_not_judged() {
        let mut warned = tag(&[(Outcome::Ok, false), (Outcome::Ok, false)]);
        warned.judge(Some(1), "n1", Some("d0"), true);
        assert_eq!((warned.reads().judged, warned.reads().warned, warned.reads().stale), (0, 1, 0));
    }
}
