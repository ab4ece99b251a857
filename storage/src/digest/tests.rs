use serde::de::IntoDeserializer;
use serde::de::value::{BytesDeserializer, Error as ValueError, StrDeserializer};

use super::*;

const EMPTY_SHA256: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[test]
fn known_digests_are_computed() {
    assert_eq!(Digest::of(Algorithm::Sha256, b"").to_string(), EMPTY_SHA256);
    assert_eq!(
        Digest::of(Algorithm::Sha512, b"abc").to_string(),
        "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
         2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f"
    );
}

#[test]
fn text_key_and_order_survive_a_round_trip() {
    let mut digests = Vec::new();
    for round in 0..200u32 {
        for algorithm in Algorithm::ALL {
            digests.push(Digest::of(algorithm, &round.to_le_bytes()));
        }
    }
    for digest in &digests {
        assert_eq!(digest.to_string().parse(), Ok(*digest));
        assert_eq!(Digest::from_key(&digest.to_key()), Some(*digest));
        assert_eq!(format!("{digest:?}"), digest.to_string());
    }
    let mut by_key = digests.clone();
    by_key.sort_by_key(Digest::to_key);
    digests.sort();
    assert_eq!(digests, by_key);
}

#[test]
fn only_exact_lower_case_hex_is_a_digest() {
    let hex = &EMPTY_SHA256[7..];
    for bad in [
        "",
        "sha256",
        "sha256:",
        ":abc",
        hex,
        &EMPTY_SHA256[..70],
        &format!("{EMPTY_SHA256}0"),
        &EMPTY_SHA256.to_uppercase(),
        &format!("sha256:{}", hex.to_uppercase()),
        &format!("sha512:{hex}"),
        &format!("sha256:{}", hex.replace('e', "g")),
        &format!("sha256:../{}", &hex[3..]),
        "md5:",
        "Md5:abc",
        "md5+:abc",
    ] {
        assert_eq!(bad.parse::<Digest>(), Err(ParseDigestError::Malformed), "{bad}");
    }
}

#[test]
fn another_algorithm_is_named_in_the_error() {
    let error = "multihash+base58:QmRZxt2b1FVZPNqd8hsiykDL3TdBDeTSPX9Kv46HmX4Gx8".parse::<Digest>();
    assert_eq!(error, Err(ParseDigestError::UnsupportedAlgorithm("multihash+base58".into())));
}

#[test]
fn keys_of_wrong_length_or_algorithm_are_refused() {
    let key = Digest::of(Algorithm::Sha256, b"x").to_key();
    assert_eq!(Digest::from_key(&key[..32]), None);
    assert_eq!(Digest::from_key(&[]), None);
    assert_eq!(Digest::from_key(&[&[2], &key[1..]].concat()), None);
    assert_eq!(Digest::from_key(&[&[9], &key[1..]].concat()), None);
}

#[test]
fn serde_reads_text_and_key_forms() {
    let digest = Digest::of(Algorithm::Sha512, b"x");
    let text = digest.to_string();
    let from_text: StrDeserializer<'_, ValueError> = text.as_str().into_deserializer();
    assert_eq!(Digest::deserialize(from_text), Ok(digest));
    let key = digest.to_key();
    assert_eq!(Digest::deserialize(BytesDeserializer::<ValueError>::new(&key)), Ok(digest));
}
