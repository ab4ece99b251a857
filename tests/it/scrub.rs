//! Bytes that a disk changed: the scenario `damage`, each part by itself.

use crate::fixture::runs;

runs! {
    damage:
    a_flipped_bit_never_reaches_a_client,
    without_checksums_a_flipped_bit_never_reaches_a_client_in_a_whole_blob,
    the_rest_of_a_damaged_blob_comes_from_copies_that_are_checked,
    a_push_takes_the_place_of_damaged_copies,
    a_file_that_cannot_be_opened_is_replaced_and_keeps_nobody_from_the_others,
    the_scrub_finds_and_mends_what_nobody_reads,
}
