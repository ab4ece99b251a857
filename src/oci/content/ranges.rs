//! `Range` headers (RFC 9110, section 14).

use std::ops::Range;

/// The most ranges that one request may ask for. Podman asks for up to 1,024 of a zstd:chunked layer.
const RANGES_MAX: usize = 1024;

/// What a `Range` header asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Everything: the header says nothing that this server understands, or asks for more than a client needs.
    Whole,
    /// These parts, in the order in which they were asked for; never empty.
    Parts(Vec<Range<u64>>),
    /// Nothing that is there.
    Unsatisfiable,
}

/// Reads a `Range` header against content of `size` bytes.
///
/// Ranges are neither merged nor sorted: podman pairs the parts of the answer with its ranges by their order. What
/// keeps an answer bounded is that ranges which overlap so much that they exceed the content get the content, once.
pub(crate) fn parse(header: &str, size: u64) -> Wanted {
    let Some((unit, set)) = header.split_once('=') else { return Wanted::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Wanted::Whole;
    }
    let specs: Vec<&str> = set.split(',').map(str::trim).filter(|spec| !spec.is_empty()).collect();
    if specs.is_empty() || specs.len() > RANGES_MAX {
        return Wanted::Whole;
    }
    let Some(specs) = specs.into_iter().map(Spec::parse).collect::<Option<Vec<_>>>() else { return Wanted::Whole };
    let parts: Vec<_> = specs.into_iter().filter_map(|spec| spec.within(size)).collect();
    let total = parts.iter().try_fold(0_u64, |total, part| total.checked_add(part.end - part.start));
    match parts.is_empty() {
        true => Wanted::Unsatisfiable,
        false if total.is_none_or(|total| total > size) => Wanted::Whole,
        false => Wanted::Parts(parts),
    }
}

enum Spec {
    /// First and last byte; to the end where there is no last.
    From(u64, Option<u64>),
    /// So many bytes at the end.
    Suffix(u64),
}

impl Spec {
    fn parse(text: &str) -> Option<Self> {
        let (first, last) = text.split_once('-')?;
        match (first, last) {
            ("", length) => Some(Self::Suffix(number(length)?)),
            (first, "") => Some(Self::From(number(first)?, None)),
            (first, last) => Some(Self::From(number(first)?, Some(number(last)?))),
        }
    }

    /// The bytes that are there; `None` where there are none. A range that ends before it begins has none either.
    fn within(self, size: u64) -> Option<Range<u64>> {
        let range = match self {
            Self::From(first, last) => first..last.map_or(size, |last| last.saturating_add(1)).min(size),
            Self::Suffix(length) => size.saturating_sub(length)..size,
        };
        (range.start < range.end).then_some(range)
    }
}

/// Digits only; what does not fit is larger than any content.
fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(header: &str, size: u64) -> Vec<Range<u64>> {
        match parse(header, size) {
            Wanted::Parts(parts) => parts,
            other => panic!("{header}: {other:?}"),
        }
    }

    fn single(header: &str, size: u64) -> Range<u64> {
        match parts(header, size).as_slice() {
            [part] => part.clone(),
            several => panic!("{header}: {several:?}"),
        }
    }

    /// C08
    #[test]
    fn every_form_of_one_range() {
        assert_eq!(single("bytes=0-3", 10), 0..4);
        assert_eq!(single("bytes=5-", 10), 5..10);
        assert_eq!(single("bytes=0-", 10), 0..10);
        assert_eq!(single("bytes=-3", 10), 7..10);
        assert_eq!(single("bytes=-99", 10), 0..10);
        assert_eq!(single("bytes=2-99999999", 10), 2..10);
        assert_eq!(single("bytes=2-99999999999999999999999", 10), 2..10);
        assert_eq!(single("Bytes = 9-9", 10), 9..10);
    }

    #[test]
    fn nothing_that_is_there() {
        for header in [
            "bytes=10-",
            "bytes=5000-10000",
            "bytes=5-0",
            "bytes=-0",
            "bytes=18446744073709551615-18446744073709551615",
            "bytes=10-11,12-",
        ] {
            assert_eq!(parse(header, 10), Wanted::Unsatisfiable, "{header}");
        }
        assert_eq!(parse("bytes=0-", 0), Wanted::Unsatisfiable);
        assert_eq!(parse("bytes=-1", 0), Wanted::Unsatisfiable);
    }

    #[test]
    fn what_is_not_understood_is_ignored() {
        for header in [
            "items=0-3",
            "bytes",
            "bytes=",
            "bytes=,",
            "bytes=x",
            "bytes=1",
            "bytes=-",
            "bytes=1-2-3",
            "bytes=+1-2",
            "bytes=0-1,x",
            "",
        ] {
            assert_eq!(parse(header, 10), Wanted::Whole, "{header}");
        }
    }

    #[test]
    fn several_ranges_keep_their_order() {
        assert_eq!(parts("bytes=7-8, 0-1,3-3", 10), [7..9, 0..2, 3..4]);
        assert_eq!(single("bytes=0-1,50-", 10), 0..2);
    }

    #[test]
    fn ranges_cannot_multiply_the_content() {
        assert_eq!(parse("bytes=0-,0-,0-", 10), Wanted::Whole);
        assert_eq!(parse("bytes=0-,10-,1010-", u64::MAX), Wanted::Whole);
        let many = vec!["0-0"; RANGES_MAX + 1].join(",");
        assert_eq!(parse(&format!("bytes={many}"), 1 << 40), Wanted::Whole);
    }
}
