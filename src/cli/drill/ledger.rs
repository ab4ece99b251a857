//! What the load pushed: to pull it, to read it back, and to delete it again.

use rand::Rng;

use super::image::Image;
use super::registry::{Outcome, Place};

/// More than the load can push in the longest drill; past it the drill ends rather than forgets.
pub(super) const MAX_PUSHES: usize = 100_000;

/// One push whose manifest was, or may have been, sent.
#[derive(Clone, Debug)]
pub(super) struct Pushed {
    pub(super) place: Place,
    /// The manifest's.
    pub(super) digest: String,
    pub(super) blobs: [String; 2],
}

/// All pushes.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    acknowledged: Vec<Pushed>,
    /// May be there or not: nothing is promised, but they are to be deleted.
    doubtful: Vec<Pushed>,
}

impl Ledger {
    /// Adds a push that has ended.
    pub(super) fn add(&mut self, place: Place, image: &Image, outcome: Outcome) {
        let pushed = Pushed { place, digest: image.digest.clone(), blobs: image.blobs() };
        match outcome {
            Outcome::Ok => self.acknowledged.push(pushed),
            Outcome::Unknown => self.doubtful.push(pushed),
            Outcome::Failed => {}
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.acknowledged.len() + self.doubtful.len() >= MAX_PUSHES
    }

    /// Any acknowledged push.
    pub(super) fn any(&self, random: &mut impl Rng) -> Option<Pushed> {
        let count = self.acknowledged.len();
        (count > 0).then(|| self.acknowledged[random.random_range(0..count)].clone())
    }

    pub(super) fn acknowledged(&self) -> Vec<Pushed> {
        self.acknowledged.clone()
    }

    /// Repository and digest of every manifest that may be there.
    pub(super) fn manifests(&self) -> Vec<(String, String)> {
        let all = self.acknowledged.iter().chain(&self.doubtful);
        all.map(|pushed| (pushed.place.repository.clone(), pushed.digest.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_acknowledged_pushes_are_pulled_and_doubtful_ones_are_deleted_too() {
        let mut ledger = Ledger::default();
        let mut random = rand::rng();
        assert!(ledger.any(&mut random).is_none());
        for outcome in [Outcome::Failed, Outcome::Unknown, Outcome::Ok] {
            let place = Place { repository: "drill/x".to_owned(), tag: format!("{outcome:?}") };
            ledger.add(place, &Image::random(&mut random), outcome);
        }
        assert_eq!(ledger.any(&mut random).expect("one is acknowledged").place.tag, "Ok");
        assert_eq!(ledger.acknowledged().len(), 1);
        assert_eq!(ledger.manifests().len(), 2);
    }
}
