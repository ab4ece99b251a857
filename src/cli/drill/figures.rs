//! What the load measures while it runs: how operations end, how long they take in each phase, and the longest time
//! without a success. Takes the same memory however long a drill runs.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::registry::{Outcome, Trouble};
use super::report::{Gap, Latency, MAX_EXAMPLES, Operations, TroubleSeen, millis};

/// No operation takes longer: the load gives up before.
const LONGEST: Duration = Duration::from_secs(120);

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Push,
    PullByTag,
    PullByDigest,
    List,
    MoveTag,
    ReadTag,
}

impl Kind {
    pub(super) const ALL: [Self; 6] =
        [Self::Push, Self::PullByTag, Self::PullByDigest, Self::List, Self::MoveTag, Self::ReadTag];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Push => "push",
            Self::PullByTag => "pull by tag",
            Self::PullByDigest => "pull by digest",
            Self::List => "list tags",
            Self::MoveTag => "move a tag",
            Self::ReadTag => "read that tag",
        }
    }

    pub(super) fn is_pull(self) -> bool {
        matches!(self, Self::PullByTag | Self::PullByDigest)
    }
}

/// The parts of a drill. What happens in the first one is not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    WarmUp,
    Before,
    During,
    After,
}

/// One operation of a client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun {
    phase: Phase,
    at: Duration,
}

/// All that is measured. Times are those since the drill began.
#[derive(Debug)]
pub(super) struct Figures {
    phase: Phase,
    tallies: [Tally; Kind::ALL.len()],
    push_gap: GapWatch,
    pull_gap: GapWatch,
    troubles: Vec<TroubleSeen>,
    calm: Calm,
}

/// How operations of one kind end.
#[derive(Debug)]
struct Tally {
    ok: u64,
    failed: u64,
    unknown: u64,
    /// Of those that succeed: before, during, after.
    micros: [Histogram<u64>; 3],
}

/// The time since the last operation that was not a success.
#[derive(Debug, Default)]
struct Calm {
    since: Duration,
    pushes: u64,
    pulls: u64,
    last_trouble: Option<String>,
}

impl Figures {
    pub(super) fn new() -> Self {
        Self {
            phase: Phase::WarmUp,
            tallies: std::array::from_fn(|_| Tally::new()),
            push_gap: GapWatch::default(),
            pull_gap: GapWatch::default(),
            troubles: Vec::new(),
            calm: Calm::default(),
        }
    }

    /// The next phase begins. The counts begin with [`Phase::Before`].
    pub(super) fn enter(&mut self, phase: Phase, now: Duration) {
        if phase == Phase::Before {
            self.push_gap.open(now);
            self.pull_gap.open(now);
        }
        self.phase = phase;
    }

    /// The load is over.
    pub(super) fn close(&mut self, now: Duration) {
        self.push_gap.close(now);
        self.pull_gap.close(now);
    }

    pub(super) fn begin(&self, now: Duration) -> Begun {
        Begun { phase: self.phase, at: now }
    }

    /// An operation has ended.
    pub(super) fn end(&mut self, kind: Kind, begun: Begun, result: Result<(), &Trouble>, now: Duration) {
        self.note_calm(kind, result, now);
        let Some(phase) = attributed(begun.phase, self.phase) else { return };
        let tally = &mut self.tallies[kind as usize];
        match result {
            Ok(()) => {
                tally.ok += 1;
                tally.micros[phase].saturating_record(micros(now.saturating_sub(begun.at)));
                self.gap_of(kind).into_iter().for_each(|gap| gap.success(now));
            }
            Err(trouble) => {
                match trouble.outcome {
                    Outcome::Unknown => tally.unknown += 1,
                    Outcome::Failed | Outcome::Ok => tally.failed += 1,
                }
                if self.troubles.len() < MAX_EXAMPLES {
                    let seen =
                        TroubleSeen { at_ms: millis(now), kind: kind.name().into(), reason: trouble.reason.clone() };
                    self.troubles.push(seen);
                }
            }
        }
    }

    /// How long pushes and pulls have succeeded without any trouble.
    pub(super) fn calm_for(&self, now: Duration) -> Duration {
        let both = self.calm.pushes > 0 && self.calm.pulls > 0;
        if both { now.saturating_sub(self.calm.since) } else { Duration::ZERO }
    }

    /// Why it is not calm.
    pub(super) fn last_trouble(&self) -> Option<&str> {
        self.calm.last_trouble.as_deref()
    }

    /// How many of these operations ended as a success, and how many did not.
    pub(super) fn count(&self, of: impl Fn(Kind) -> bool) -> (u64, u64) {
        let of = Kind::ALL.iter().filter(|kind| of(**kind)).map(|kind| &self.tallies[*kind as usize]);
        of.fold((0, 0), |(ok, not), tally| (ok + tally.ok, not + tally.failed + tally.unknown))
    }

    /// The longest times without a success, of pushes and of pulls.
    pub(super) fn gaps(&self) -> (Gap, Gap) {
        (self.push_gap.longest.clone(), self.pull_gap.longest.clone())
    }

    /// The 99th percentile over all phases; `None` where nothing succeeded.
    pub(super) fn p99(&self, of: impl Fn(Kind) -> bool) -> Option<Duration> {
        let mut all = histogram();
        for kind in Kind::ALL.into_iter().filter(|kind| of(*kind)) {
            for micros in &self.tallies[kind as usize].micros {
                all.add(micros).expect("histograms of the same bounds");
            }
        }
        (!all.is_empty()).then(|| Duration::from_micros(all.value_at_quantile(0.99)))
    }

    /// The figures of each kind, for the report.
    pub(super) fn operations(&self) -> Vec<Operations> {
        Kind::ALL.into_iter().map(|kind| self.tallies[kind as usize].shown(kind)).collect()
    }

    /// The first operations that were no success.
    pub(super) fn troubles(&self) -> Vec<TroubleSeen> {
        self.troubles.clone()
    }

    fn gap_of(&mut self, kind: Kind) -> Option<&mut GapWatch> {
        match kind {
            Kind::Push => Some(&mut self.push_gap),
            Kind::PullByTag | Kind::PullByDigest => Some(&mut self.pull_gap),
            Kind::List | Kind::MoveTag | Kind::ReadTag => None,
        }
    }

    fn note_calm(&mut self, kind: Kind, result: Result<(), &Trouble>, now: Duration) {
        match result {
            Ok(()) => {
                self.calm.pushes += u64::from(kind == Kind::Push);
                self.calm.pulls += u64::from(kind.is_pull());
            }
            Err(trouble) => {
                self.calm = Calm {
                    since: now,
                    last_trouble: Some(format!("{}: {}", kind.name(), trouble.reason)),
                    ..Calm::default()
                };
            }
        }
    }
}

impl Tally {
    fn new() -> Self {
        Self { ok: 0, failed: 0, unknown: 0, micros: std::array::from_fn(|_| histogram()) }
    }

    fn shown(&self, kind: Kind) -> Operations {
        let [before, during, after] = self.micros.each_ref().map(|micros| {
            let quantile = |at| micros.value_at_quantile(at) as f64 / 1_000.0;
            (!micros.is_empty()).then(|| Latency { p50_ms: quantile(0.5), p99_ms: quantile(0.99) })
        });
        let (kind, ok, failed, unknown) = (kind.name().to_owned(), self.ok, self.failed, self.unknown);
        Operations { kind, ok, failed, unknown, before, during, after }
    }
}

/// Which of the three counted phases an operation belongs to: to the fault if it saw any of it.
fn attributed(begun: Phase, ended: Phase) -> Option<usize> {
    match (begun, ended) {
        (Phase::WarmUp, _) => None,
        (Phase::During, _) | (_, Phase::During) => Some(1),
        (_, Phase::After) => Some(2),
        (_, Phase::Before | Phase::WarmUp) => Some(0),
    }
}

/// The longest time without a success between the opening and the close; the pieces at the two ends count.
#[derive(Debug, Default)]
struct GapWatch {
    last: Duration,
    longest: Gap,
}

impl GapWatch {
    fn open(&mut self, now: Duration) {
        *self = Self { last: now, longest: Gap::default() };
    }

    fn success(&mut self, now: Duration) {
        let length_ms = millis(now.saturating_sub(self.last));
        if length_ms > self.longest.longest_ms {
            self.longest = Gap { longest_ms: length_ms, began_at_ms: millis(self.last) };
        }
        self.last = now;
    }

    fn close(&mut self, now: Duration) {
        self.success(now);
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, micros(LONGEST), 3).expect("constant bounds that the crate documents as valid")
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Pushes that take 10 ms each and end at these times.
    fn pushed(figures: &mut Figures, ends: &[u64]) {
        for end in ends {
            let begun = figures.begin(at(end - 10));
            figures.end(Kind::Push, begun, Ok(()), at(*end));
        }
    }

    #[test]
    fn the_longest_gap_counts_from_the_opening_to_the_close() {
        let mut figures = Figures::new();
        pushed(&mut figures, &[50]);
        figures.enter(Phase::Before, at(100));
        pushed(&mut figures, &[400, 500, 600]);
        assert_eq!(figures.gaps().0, Gap { longest_ms: 300.0, began_at_ms: 100.0 });
        figures.enter(Phase::During, at(700));
        pushed(&mut figures, &[2_600]);
        assert_eq!(figures.gaps().0, Gap { longest_ms: 2_000.0, began_at_ms: 600.0 });
        figures.close(at(9_000));
        assert_eq!(figures.gaps().0, Gap { longest_ms: 6_400.0, began_at_ms: 2_600.0 });
        assert_eq!(figures.gaps().1, Gap { longest_ms: 8_900.0, began_at_ms: 100.0 }, "nothing was pulled");
    }

    #[test]
    fn what_saw_the_fault_belongs_to_it() {
        use Phase::{After, Before, During, WarmUp};
        assert_eq!(attributed(WarmUp, Before), None);
        assert_eq!(attributed(Before, Before), Some(0));
        assert_eq!(attributed(Before, During), Some(1));
        assert_eq!(attributed(Before, After), Some(2), "phases are never that short, but it must be somewhere");
        assert_eq!(attributed(During, After), Some(1));
        assert_eq!(attributed(After, After), Some(2));
    }

    #[test]
    fn percentiles_are_those_of_the_phase() {
        let mut figures = Figures::new();
        for (phase, ms, count) in [(Phase::Before, 10, 98), (Phase::Before, 90, 2), (Phase::During, 2_000, 1)] {
            figures.enter(phase, at(0));
            for _ in 0..count {
                let begun = figures.begin(at(0));
                figures.end(Kind::Push, begun, Ok(()), at(ms));
            }
        }
        let push = &figures.operations()[0];
        assert_eq!((push.kind.as_str(), push.ok), ("push", 101));
        let near = |found: f64, wanted: f64| (found - wanted).abs() <= wanted / 500.0;
        let before = push.before.as_ref().expect("some");
        assert!(near(before.p50_ms, 10.0) && near(before.p99_ms, 90.0), "{before:?}");
        assert!(near(push.during.as_ref().expect("one").p50_ms, 2_000.0));
        assert_eq!(push.after, None);
        let p99 = figures.p99(|kind| kind == Kind::Push).expect("some").as_secs_f64() * 1_000.0;
        assert!(near(p99, 90.0), "{p99}");
        assert_eq!(figures.p99(Kind::is_pull), None);
    }

    #[test]
    fn trouble_is_counted_by_its_outcome_and_ends_the_calm() {
        let mut figures = Figures::new();
        pushed(&mut figures, &[20]);
        let pull = figures.begin(at(20));
        figures.end(Kind::PullByTag, pull, Ok(()), at(30));
        assert_eq!(figures.calm_for(at(1_000)), at(1_000));
        figures.enter(Phase::Before, at(1_000));
        for outcome in [Outcome::Failed, Outcome::Unknown] {
            let begun = figures.begin(at(1_000));
            let trouble = Trouble { outcome, status: None, reason: "no".to_owned() };
            figures.end(Kind::PullByDigest, begun, Err(&trouble), at(1_100));
        }
        assert_eq!(figures.calm_for(at(5_000)), Duration::ZERO);
        assert_eq!(figures.last_trouble(), Some("pull by digest: no"));
        assert_eq!(figures.count(Kind::is_pull), (0, 2));
        let pulls = &figures.operations()[2];
        assert_eq!((pulls.ok, pulls.failed, pulls.unknown), (0, 1, 1));
        assert_eq!(figures.troubles().len(), 2);
    }
}
