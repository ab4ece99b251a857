//! Nodes know each other: the scenario `peers`, each part by itself.

use crate::fixture::runs;

runs! {
    peers:
    strangers_other_clusters_and_ended_certificates_are_refused,
    a_node_with_another_secret_and_one_of_another_cluster_hear_why,
    a_token_lets_one_node_join_and_ends,
    the_authority_is_rotated_under_load_and_no_request_between_nodes_fails,
    a_rotation_is_finished_without_a_node_that_is_away_and_that_node_comes_back,
    a_node_that_missed_a_rotation_comes_back_by_a_token,
    certificates_are_renewed_while_nodes_run,
    an_open_cluster_is_closed_by_a_restart_with_a_secret,
    certificates_of_the_operators_are_used,
}
