//! Where blobs are: the scenario `placement`, each part by itself.

use crate::fixture::runs;

runs! {
    placement:
    five_nodes_share_the_blobs_two_may_fail_and_one_may_leave,
    repositories_have_as_many_copies_as_the_settings_say,
    a_node_that_lost_its_disk_takes_the_place_of_its_old_id,
}
