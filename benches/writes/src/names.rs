//! What is written: names (tags here, keys there) that go to and fro between two values of one size.

use std::sync::atomic::{AtomicU8, Ordering};

/// How many names there are.
pub const NAMES: usize = 1024;

const VALUE: u8 = 1;
const IN_DOUBT: u8 = 2;

/// Which value each name holds in one system. A name has one writer at a time.
#[derive(Debug)]
pub struct Names(Vec<AtomicU8>);

impl Names {
    /// Names that hold nothing yet; the first value written is the first one.
    pub fn new() -> Self {
        Self((0..NAMES).map(|_| AtomicU8::new(VALUE)).collect())
    }

    /// The value to write next: the one that the name does not hold, so that every write changes something.
    pub fn next(&self, name: usize) -> usize {
        usize::from(self.0[name].load(Ordering::Relaxed) & VALUE ^ VALUE)
    }

    /// A write was acknowledged.
    pub fn wrote(&self, name: usize, value: usize) {
        let doubt = self.0[name].load(Ordering::Relaxed) & IN_DOUBT;
        self.0[name].store(doubt | u8::from(value != 0), Ordering::Relaxed);
    }

    /// A write failed: it may have taken effect, or may still, so nothing can be expected of the name any more.
    pub fn doubt(&self, name: usize) {
        self.0[name].fetch_or(IN_DOUBT, Ordering::Relaxed);
    }

    /// The value that was acknowledged last, where that is certain.
    pub fn expected(&self, name: usize) -> Option<usize> {
        let held = self.0[name].load(Ordering::Relaxed);
        (held & IN_DOUBT == 0).then_some(usize::from(held & VALUE))
    }

    /// The names of one of several clients, in the order in which it writes them.
    pub fn of(client: usize, clients: usize) -> impl Iterator<Item = usize> + Clone {
        (client..NAMES).step_by(clients)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_write_changes_the_value() {
        let names = Names::new();
        for round in 0..4 {
            let value = names.next(7);
            assert_eq!(value, round % 2);
            names.wrote(7, value);
            assert_eq!(names.expected(7), Some(value));
        }
    }

    #[test]
    fn a_name_in_doubt_stays_so() {
        let names = Names::new();
        names.doubt(3);
        names.wrote(3, names.next(3));
        assert_eq!(names.expected(3), None);
        assert_eq!(names.next(3), 1);
    }

    #[test]
    fn clients_share_the_names_without_overlap() {
        for clients in [1, 16, 100, NAMES] {
            let all: Vec<usize> = (0..clients).flat_map(|client| Names::of(client, clients)).collect();
            assert_eq!(all.len(), NAMES);
            assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), NAMES);
        }
    }
}
