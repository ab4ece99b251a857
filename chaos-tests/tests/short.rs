//! Short forms of the scenarios, one cluster at a time: the nodes of two would share too few processors.

use chaos_tests::scenarios::{self, AdmissionSize, CatchUp};
use tokio::sync::Mutex;

static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

fn seed() -> u64 {
    let seed = std::env::var("FLOTILLA_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(rand::random);
    println!("seed {seed}");
    seed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_of_the_manifests_form_a_cluster_roll_under_load_and_survive_a_lost_disk() -> anyhow::Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    scenarios::kustomize(1, seed()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pushes_survive_the_death_of_the_leader() -> anyhow::Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    scenarios::kill_leader(2, seed()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_pushes_survive_the_death_of_all_nodes() -> anyhow::Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    scenarios::kill_all(2, seed()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_missed_more_than_the_log_keeps_catches_up() -> anyhow::Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    let size = CatchUp { writes: 2_400, snapshot_every: 300, keep: 100 };
    scenarios::catch_up(size, seed()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_big_blob_goes_through_in_little_memory() -> anyhow::Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    scenarios::big_blob(96, seed()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_pulls_go_on_and_pushes_are_refused_at_once() -> anyhow::Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    scenarios::no_quorum(seed()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_push_and_pull_at_once_without_an_error() -> anyhow::Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    scenarios::clients(40, seed()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_sees_every_change_once_although_its_node_is_killed() -> anyhow::Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    scenarios::watch(600, 2).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_who_race_for_a_tag_exactly_one_wins() -> anyhow::Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    scenarios::races(50).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c25_a_push_that_races_with_collection_keeps_its_blobs_or_is_told() -> anyhow::Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    scenarios::garbage(200, false, seed()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_collection_and_the_death_of_all_nodes() -> anyhow::Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    scenarios::garbage(150, true, seed()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reviews_are_answered_alike_and_in_time_while_the_leader_is_killed() -> anyhow::Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    scenarios::admission(AdmissionSize { reviews: 3_000, kills: 1 }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_tells_what_an_independent_client_saw() -> anyhow::Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    scenarios::drill(1, seed()).await
}
