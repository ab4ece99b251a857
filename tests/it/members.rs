//! Who belongs to the cluster and who votes: the scenario `membership`, each part by itself.

use crate::fixture::runs;

runs! {
    membership:
    a_cluster_grows_to_five_voters_and_shrinks_again,
    c43_a_wrong_address_is_refused_and_a_ghost_can_be_removed,
    the_last_copy_of_a_blob_is_not_removed_with_its_node,
    c44_a_node_that_is_not_who_it_says_it_is_ends_with_the_reason,
}
