//! Every key prefix of the metadata store, in one place.

/// The first byte of every row's key.
///
/// Permanent: a byte once used keeps its meaning for ever. Add a variant, never reuse or renumber one.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Keyspace {
    /// Single rows about the state itself: what was applied, membership, settings.
    Meta = b'm',
    /// Repositories.
    Repository = b'r',
    /// Tags.
    Tag = b't',
    /// Manifests of a repository.
    Manifest = b'f',
    /// Links of a repository to a digest.
    Link = b'l',
    /// What is known of a digest across repositories, and its bytes where they live in state.
    Blob = b'b',
    /// Digests whose bytes are files.
    File = b'F',
    /// Request ids already answered.
    Request = b'q',
    /// Parts of rows that are longer than one value.
    Part = b'p',
    /// The versions of each tag, the newest first.
    History = b'h',
    /// Changes of names, in the order in which they happened.
    Change = b'c',
    /// Manifests that refer to another one, by their subject.
    Referrer = b's',
    /// How many manifests of a repository name a digest that it does not link.
    Use = b'u',
    /// What may be garbage, by the time since which it is unused.
    Garbage = b'g',
    /// Digests whose files were collected, and when.
    Collected = b'x',
    /// Manifests that were deleted and that the history of a tag still names.
    Former = b'd',
    /// When each repository came to hold something, and to hold nothing, the newest first.
    Existence = b'e',
    /// How many indexes of a repository have a manifest as a child.
    Child = b'k',
    /// The versions of each image policy, the newest first.
    Policy = b'o',
    /// Manifests with tags that pointed at them longer ago than the versions of the tags say.
    Pair = b'a',
}

impl Keyspace {
    /// All prefixes, for tools that walk the whole state.
    pub const ALL: [Keyspace; 20] = [
        Keyspace::Meta,
        Keyspace::Repository,
        Keyspace::Tag,
        Keyspace::Manifest,
        Keyspace::Link,
        Keyspace::Blob,
        Keyspace::File,
        Keyspace::Request,
        Keyspace::Part,
        Keyspace::History,
        Keyspace::Change,
        Keyspace::Referrer,
        Keyspace::Use,
        Keyspace::Garbage,
        Keyspace::Collected,
        Keyspace::Former,
        Keyspace::Existence,
        Keyspace::Child,
        Keyspace::Policy,
        Keyspace::Pair,
    ];

    /// The byte that keys of this space begin with.
    pub fn prefix(self) -> u8 {
        self as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_the_released_bytes() {
        let bytes: Vec<u8> = Keyspace::ALL.iter().map(|space| space.prefix()).collect();
        assert_eq!(bytes, b"mrtflbFqphcsugxdekoa");
    }
}
