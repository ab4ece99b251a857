//! Who watches, found by what they watch: a change costs only those who asked for it.

use std::collections::HashMap;
use std::sync::Arc;

use flotilla_raft::settings::{GlobError, GlobMatcher, glob};
use flotilla_raft::{Change, Place, RepositoryName};
use parking_lot::Mutex;
use tokio::sync::mpsc::{self, Receiver, Sender};

use super::event::Event;

/// The most who may watch one node.
const WATCHERS_MAX: usize = 10_000;

/// Events that a slow watcher may be behind before it reads from state again.
const EVENTS_MAX: usize = 1024;

/// Which repositories a watcher asked for.
#[derive(Clone)]
pub(super) enum Wanted {
    /// One, by its name.
    Repository(RepositoryName),
    /// All that a glob matches.
    Pattern(String, GlobMatcher),
}

impl Wanted {
    /// A glob over repositories; one without wildcards is a name.
    ///
    /// # Errors
    /// Not a glob.
    pub(super) fn parse(pattern: &str) -> Result<Self, GlobError> {
        match pattern.parse() {
            Ok(name) => Ok(Self::Repository(name)),
            Err(_) => Ok(Self::Pattern(pattern.into(), glob(pattern)?)),
        }
    }

    pub(super) fn is_match(&self, repository: &RepositoryName) -> bool {
        match self {
            Self::Repository(name) => name == repository,
            Self::Pattern(_, glob) => glob.is_match(repository.as_str()),
        }
    }
}

/// Watchers who asked for the same, by their numbers.
type Group = HashMap<u64, Sender<Arc<Event>>>;

#[derive(Default)]
struct Seats {
    /// Everything up to here was told.
    place: Place,
    next: u64,
    watchers: usize,
    repositories: HashMap<RepositoryName, Group>,
    patterns: HashMap<String, (GlobMatcher, Group)>,
}

/// All who watch this node. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Audience(Arc<Mutex<Seats>>);

impl Audience {
    /// Everything that is told from now on and wanted. Nothing when as many watch as may.
    pub(super) fn join(&self, wanted: Wanted) -> Option<Seat> {
        let mut seats = self.0.lock();
        if seats.watchers >= WATCHERS_MAX {
            return None;
        }
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let number = seats.next;
        seats.next += 1;
        seats.watchers += 1;
        let group = match &wanted {
            Wanted::Repository(name) => seats.repositories.entry(name.clone()).or_default(),
            Wanted::Pattern(text, glob) => {
                &mut seats.patterns.entry(text.clone()).or_insert_with(|| (glob.clone(), Group::new())).1
            }
        };
        group.insert(number, sender);
        drop(seats);
        Some(Seat { audience: self.clone(), wanted, number, events })
    }

    /// How many watch now.
    pub(super) fn watchers(&self) -> usize {
        self.0.lock().watchers
    }

    /// Everything up to here was told.
    pub(super) fn place(&self) -> Place {
        self.0.lock().place
    }

    /// Says that there is nothing to tell up to here, if nobody would hear it.
    pub(super) fn skip_to(&self, place: Place) -> bool {
        let mut seats = self.0.lock();
        if seats.watchers == 0 {
            seats.place = place;
        }
        seats.watchers == 0
    }

    /// Everything up to here was told: nothing was wanted of what came after the last change.
    pub(super) fn passed(&self, place: Place) {
        let mut seats = self.0.lock();
        seats.place = seats.place.max(place);
    }

    /// Ends the channels of all who watch: some changes are forgotten that were not told. They ask state for the rest, and
    /// hear there whether something is missing.
    pub(super) fn interrupt(&self) {
        let mut seats = self.0.lock();
        seats.repositories.values_mut().for_each(Group::clear);
        seats.patterns.values_mut().for_each(|(_, group)| group.clear());
    }

    /// Tells one change to all who want it. A watcher that is too far behind hears the end of its channel.
    pub(super) fn tell(&self, place: Place, change: Change) {
        // A lock for each change, not for all of a batch: others join in between.
        let mut seats = self.0.lock();
        let Seats { repositories, patterns, .. } = &mut *seats;
        let named = repositories.get_mut(&change.repository).into_iter();
        let matched = patterns.values_mut().filter(|(glob, _)| glob.is_match(change.repository.as_str()));
        let mut groups: Vec<&mut Group> = named.chain(matched.map(|(_, group)| group)).collect();
        if !groups.is_empty() {
            let event = Arc::new(Event::new(place, change));
            for group in &mut groups {
                group.retain(|_, watcher| watcher.try_send(event.clone()).is_ok());
            }
        }
        seats.place = place;
    }

    fn leave(&self, wanted: &Wanted, number: u64) {
        let mut seats = self.0.lock();
        seats.watchers -= 1;
        match wanted {
            Wanted::Repository(name) => {
                if let Some(group) = seats.repositories.get_mut(name) {
                    group.remove(&number);
                    if group.is_empty() {
                        seats.repositories.remove(name);
                    }
                }
            }
            Wanted::Pattern(text, _) => {
                if let Some((_, group)) = seats.patterns.get_mut(text) {
                    group.remove(&number);
                    if group.is_empty() {
                        seats.patterns.remove(text);
                    }
                }
            }
        }
    }
}

/// The place of one watcher, until it is dropped.
pub(super) struct Seat {
    audience: Audience,
    pub(super) wanted: Wanted,
    number: u64,
    /// Ends when the watcher did not keep up.
    pub(super) events: Receiver<Arc<Event>>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.audience.leave(&self.wanted, self.number);
    }
}

#[cfg(test)]
mod tests {
    use flotilla_raft::Changed;

    use super::*;

    fn tell(audience: &Audience, revision: u64, repository: &str) {
        let change = Change {
            what: Changed::TagPut,
            repository: repository.parse().unwrap(),
            tag: Some("v1".parse().unwrap()),
            digest: None,
            previous: None,
            actor: "".into(),
            time_ms: 0,
        };
        audience.tell(Place { revision, number: 0 }, change);
    }

    fn told(seat: &mut Seat) -> Vec<u64> {
        std::iter::from_fn(|| seat.events.try_recv().ok()).map(|event| event.place.revision).collect()
    }

    #[test]
    fn a_watcher_hears_what_it_asked_for_and_nothing_else() {
        let audience = Audience::default();
        let mut seats: Vec<_> = ["a/b", "a/*", "**", "**", "c"]
            .map(|pattern| audience.join(Wanted::parse(pattern).unwrap()).unwrap())
            .into_iter()
            .collect();
        for (revision, repository) in [(1, "a/b"), (2, "a/c"), (3, "a/b/c"), (4, "c")] {
            tell(&audience, revision, repository);
        }
        let heard: Vec<_> = seats.iter_mut().map(told).collect();
        assert_eq!(heard, [vec![1], vec![1, 2], vec![1, 2, 3, 4], vec![1, 2, 3, 4], vec![4]]);
        assert_eq!(audience.place(), Place { revision: 4, number: 0 });
        assert!(!audience.skip_to(Place { revision: 9, number: 0 }), "somebody listens");
        drop(seats);
        assert!(audience.skip_to(Place { revision: 9, number: 0 }));
        let seats = audience.0.lock();
        assert!(seats.repositories.is_empty() && seats.patterns.is_empty(), "who left takes up no room");
    }

    #[test]
    fn a_watcher_that_does_not_keep_up_hears_the_end() {
        let audience = Audience::default();
        let mut seat = audience.join(Wanted::parse("a").unwrap()).unwrap();
        for revision in 1..=EVENTS_MAX as u64 + 2 {
            tell(&audience, revision, "a");
        }
        assert_eq!(told(&mut seat).len(), EVENTS_MAX);
        assert!(matches!(seat.events.try_recv(), Err(mpsc::error::TryRecvError::Disconnected)));
        assert_eq!(audience.watchers(), 1, "it is there still");
    }
}
