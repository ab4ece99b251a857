//! The `Content-Range` of a chunk: `<first>-<last>`, both inclusive (distribution specification, «Pushing a blob in
//! chunks»). HTTP libraries write `bytes <first>-<last>/<total>` by themselves; that is taken too.

/// A chunk's place in its blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ChunkRange {
    first: u64,
    length: u64,
}

impl ChunkRange {
    /// `None` for what does not match the grammar, ends before it begins, or is no number of this universe.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let range = match text.strip_prefix("bytes ") {
            Some(rest) => {
                let (range, total) = rest.split_once('/')?;
                (total == "*" || number(total).is_some()).then_some(range)?
            }
            None => text,
        };
        let (first, last) = range.split_once('-')?;
        let (first, last) = (number(first)?, number(last)?);
        let length = last.checked_sub(first)?.checked_add(1)?;
        Some(Self { first, length })
    }

    /// The first byte's position.
    pub(super) fn first(self) -> u64 {
        self.first
    }

    /// Bytes.
    pub(super) fn length(self) -> u64 {
        self.length
    }
}

/// Digits only: `u64::from_str` would take a sign.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_count() {
        assert_eq!(ChunkRange::parse("0-9"), Some(ChunkRange { first: 0, length: 10 }));
        assert_eq!(ChunkRange::parse("10-10"), Some(ChunkRange { first: 10, length: 1 }));
    }

    #[test]
    fn what_http_libraries_write_is_taken() {
        assert_eq!(ChunkRange::parse("bytes 0-9/10"), Some(ChunkRange { first: 0, length: 10 }));
        assert_eq!(ChunkRange::parse("bytes 5-9/*"), Some(ChunkRange { first: 5, length: 5 }));
    }

    #[test]
    fn c13_anything_else_is_refused() {
        let bad = [
            "9-0",
            "-9",
            "0-",
            "x",
            "0-9-12",
            "",
            "0-18446744073709551616",
            "0-18446744073709551615",
            "+0-9",
            "0-+9",
            " 0-9",
            "0-9 ",
            "0 - 9",
            "bytes=0-9",
            "bytes 0-9",
            "bytes 0-9/",
            "bytes 0-9/x",
            "0-9/10",
            "٠-٩",
        ];
        for text in bad {
            assert_eq!(ChunkRange::parse(text), None, "{text:?}");
        }
    }
}
