//! What the operator demands of a drill: `--objective push-gap=5s`, each the most that a figure may be.

use std::str::FromStr;
use std::time::Duration;

use super::report::{ObjectiveResult, Unit, millis};

/// A figure that can be an objective.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    PushGap,
    PullGap,
    Lost,
    Stale,
    PushP99,
    PullP99,
    FailedPulls,
}

/// The most that a figure may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Objective {
    pub(super) name: Name,
    limit: Limit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    Time(Duration),
    Count(u64),
}

/// What a drill found.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Found {
    pub(super) push_gap_ms: f64,
    pub(super) pull_gap_ms: f64,
    pub(super) lost: u64,
    pub(super) stale: u64,
    /// `None` where no push succeeded, which meets no objective.
    pub(super) push_p99: Option<Duration>,
    pub(super) pull_p99: Option<Duration>,
    pub(super) failed_pulls: u64,
}

impl Name {
    const ALL: [Self; 7] =
        [Self::PushGap, Self::PullGap, Self::Lost, Self::Stale, Self::PushP99, Self::PullP99, Self::FailedPulls];

    fn text(self) -> &'static str {
        match self {
            Self::PushGap => "push-gap",
            Self::PullGap => "pull-gap",
            Self::Lost => "lost",
            Self::Stale => "stale",
            Self::PushP99 => "push-p99",
            Self::PullP99 => "pull-p99",
            Self::FailedPulls => "failed-pulls",
        }
    }

    fn is_time(self) -> bool {
        matches!(self, Self::PushGap | Self::PullGap | Self::PushP99 | Self::PullP99)
    }
}

/// What holds where no objective is given: nothing acknowledged is lost, nothing stale is read.
pub(super) fn defaults() -> Vec<Objective> {
    [Name::Lost, Name::Stale].map(|name| Objective { name, limit: Limit::Count(0) }).to_vec()
}

/// The name that comes twice, if one does.
pub(super) fn repeated(objectives: &[Objective]) -> Option<&'static str> {
    let is_repeated = |name: &Name| objectives.iter().filter(|objective| objective.name == *name).count() > 1;
    Name::ALL.into_iter().find(is_repeated).map(Name::text)
}

impl FromStr for Objective {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) =
            text.split_once('=').ok_or_else(|| format!("is not of the form NAME=VALUE; {}", known()))?;
        let name = Name::ALL.into_iter().find(|known| known.text() == name);
        let name = name.ok_or_else(|| format!("there is no such objective; {}", known()))?;
        let limit = if name.is_time() {
            let time = humantime::parse_duration(value);
            Limit::Time(
                time.map_err(|error| format!("{value:?} is no time such as 5s or 300ms ({error}); {}", known()))?,
            )
        } else {
            // `parse` would also take a sign.
            let count = value.parse().ok().filter(|_| value.bytes().all(|digit| digit.is_ascii_digit()));
            Limit::Count(count.ok_or_else(|| format!("{value:?} is no whole number; {}", known()))?)
        };
        Ok(Self { name, limit })
    }
}

impl Objective {
    /// Whether what was found keeps within the limit.
    pub(super) fn judge(self, found: &Found) -> ObjectiveResult {
        let time = |duration: Option<Duration>| duration.map(millis);
        let value = match self.name {
            Name::PushGap => Some(found.push_gap_ms),
            Name::PullGap => Some(found.pull_gap_ms),
            Name::PushP99 => time(found.push_p99),
            Name::PullP99 => time(found.pull_p99),
            Name::Lost => Some(found.lost as f64),
            Name::Stale => Some(found.stale as f64),
            Name::FailedPulls => Some(found.failed_pulls as f64),
        };
        let (limit, unit) = match self.limit {
            Limit::Time(time) => (millis(time), Unit::Ms),
            Limit::Count(count) => (count as f64, Unit::Count),
        };
        let met = value.is_some_and(|value| value <= limit);
        ObjectiveResult { name: self.name.text().to_owned(), unit, limit, value, met }
    }
}

fn known() -> String {
    let of = |is_time| {
        let names = Name::ALL.into_iter().filter(|name| name.is_time() == is_time).map(Name::text);
        names.collect::<Vec<_>>().join(", ")
    };
    format!("with a time: {}; with a number: {}", of(true), of(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(objective: &str, found: &Found) -> bool {
        objective.parse::<Objective>().expect(objective).judge(found).met
    }

    #[test]
    fn a_limit_is_the_most_that_may_be() {
        let found = Found {
            push_gap_ms: 2_000.0,
            lost: 1,
            push_p99: Some(Duration::from_millis(80)),
            failed_pulls: 3,
            ..Found::default()
        };
        assert!(judged("push-gap=2s", &found) && !judged("push-gap=1999ms", &found));
        assert!(judged("lost=1", &found) && !judged("lost=0", &found));
        assert!(judged("push-p99=80ms", &found) && !judged("push-p99=79ms", &found));
        assert!(judged("failed-pulls=3", &found) && !judged("failed-pulls=2", &found));
        assert!(judged("stale=0", &found) && judged("pull-gap=0s", &found));
        assert!(!judged("pull-p99=1h", &found), "nothing was pulled");
    }

    #[test]
    fn what_is_not_understood_is_refused_with_the_names() {
        for odd in [
            "lost",
            "lost=",
            "lost=-1",
            "lost=+1",
            "lost=0.5",
            "lost=5s",
            "push-gap=5",
            "push-gap=",
            "pushgap=5s",
            "=5s",
            "Lost=0",
        ] {
            let refusal = odd.parse::<Objective>().expect_err(odd);
            assert!(
                refusal.contains("push-gap, pull-gap") && refusal.contains("lost, stale, failed-pulls"),
                "{refusal}"
            );
        }
    }

    #[test]
    fn a_name_comes_once() {
        let all = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("valid")).collect::<Vec<Objective>>();
        assert_eq!(repeated(&all(&["lost=0", "push-gap=1s"])), None);
        assert_eq!(repeated(&all(&["lost=0", "push-gap=1s", "lost=1"])), Some("lost"));
        assert_eq!(repeated(&defaults()), None);
    }
}
