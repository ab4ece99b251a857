//! What operators and orchestrators ask on the client port: probes, metrics, the state of the cluster.

use std::time::Duration;

use actix_web::{HttpResponse, ResponseError as _, get, web};
use flotilla_raft::{Consensus, Member, NodeId};
use utoipa_actix_web::service_config::ServiceConfig;

use super::metrics::{self, Shown};
use super::status::{Blobs, ClusterStatus, Leader, NodeStatus, Role};
use crate::oci::error::OciError;
use crate::readiness::Readiness;

/// A thread that writes log or state and has been at one piece of it for so long is stuck: its disk hangs.
const STUCK_AFTER: Duration = Duration::from_secs(10);

/// The routes of the client port that are not OCI's.
pub(crate) fn configure(routes: &mut ServiceConfig<'_>) {
    routes.service(startupz).service(healthz).service(readyz).service(metrics_page).service(cluster);
}

/// 200 once storage is open and the log replayed, which is before this server listens.
#[utoipa::path(responses((status = 200, description = "Storage is open and the log replayed")))]
#[get("/startupz")]
async fn startupz() -> HttpResponse {
    HttpResponse::Ok().body("started\n")
}

/// 200 while the process answers and the threads that write log and state get on with it; never a question of leaders or
/// quorum. Waits for nothing, so that it answers while a disk hangs.
#[utoipa::path(responses(
    (status = 200, description = "The process and its storage work"),
    (status = 503, description = "Its storage hangs or has ended; says which"),
))]
#[get("/healthz")]
async fn healthz(consensus: web::Data<Consensus>) -> HttpResponse {
    match consensus.storage_busy_for() {
        Ok(busy) if busy < STUCK_AFTER => HttpResponse::Ok().body("alive\n"),
        Ok(busy) => HttpResponse::ServiceUnavailable()
            .body(format!("storage hangs: one write has taken {} s so far\n", busy.as_secs())),
        Err(problem) => HttpResponse::ServiceUnavailable().body(format!("storage has ended: {problem}\n")),
    }
}

/// 200 while the node should be sent requests.
#[utoipa::path(responses(
    (status = 200, description = "It should be sent requests"),
    (status = 503, description = "It should not; says why"),
))]
#[get("/readyz")]
async fn readyz(readiness: web::Data<Readiness>, consensus: web::Data<Consensus>) -> HttpResponse {
    if readiness.is_ready() {
        return HttpResponse::Ok().body("ready\n");
    }
    let reason = match () {
        () if readiness.is_stopping() => "stopping\n",
        () if consensus.members().is_empty() => "waiting for peers to found or join a cluster\n",
        () if !consensus.quorum_reachable() => "catching up: no majority of the nodes answers yet\n",
        () => "catching up\n",
    };
    HttpResponse::ServiceUnavailable().body(reason)
}

/// Metrics in the OpenMetrics form.
#[utoipa::path(responses((status = 200, content_type = "application/openmetrics-text", description = "All metrics of this node")))]
#[get("/metrics")]
async fn metrics_page(consensus: web::Data<Consensus>, shown: web::Data<Shown>) -> HttpResponse {
    match web::block(move || metrics::page(&consensus, &shown)).await {
        Ok(page) => {
            HttpResponse::Ok().content_type("application/openmetrics-text; version=1.0.0; charset=utf-8").body(page)
        }
        Err(_) => HttpResponse::ServiceUnavailable().body("stopping\n"),
    }
}

/// How the cluster is, as this node sees it.
#[utoipa::path(responses(
    (status = 200, body = Object, description = "What `flotilla cluster status --json` prints"),
    (status = 503, body = Object, description = "This node belongs to no cluster yet"),
))]
#[get("/api/v1/cluster")]
async fn cluster(consensus: web::Data<Consensus>) -> HttpResponse {
    match consensus.registry().cluster_id() {
        Ok(Some(cluster_id)) => HttpResponse::Ok().json(state(&consensus, cluster_id.to_string())),
        Ok(None) => OciError::unavailable("this node belongs to no cluster yet").error_response(),
        Err(problem) => OciError::from(problem).error_response(),
    }
}

fn state(consensus: &Consensus, cluster_id: String) -> ClusterStatus {
    let raft = consensus.status();
    // A leader that cannot be reached is known only until the election.
    let leader = raft.leader.filter(|leader| consensus.reachable(*leader) && consensus.quorum_reachable());
    let members = consensus.members();
    let name = |id: NodeId| {
        members.iter().find(|member| member.id == id).map_or_else(String::new, |member| member.record.name.clone())
    };
    let mut nodes: Vec<_> = members.iter().map(|member| node(consensus, member, leader, raft.commit_index)).collect();
    nodes.sort_by(|one: &NodeStatus, other| (&one.name, &one.id).cmp(&(&other.name, &other.id)));
    ClusterStatus::new(
        cluster_id,
        raft.term,
        raft.commit_index,
        leader.map(|id| Leader { id: shown(id), name: name(id) }),
        nodes,
        consensus.fewest_replicas(),
    )
}

fn node(consensus: &Consensus, member: &Member, leader: Option<NodeId>, commit_index: u64) -> NodeStatus {
    let pong = consensus.pong_of(member.id);
    let role = match member.voter {
        true if leader == Some(member.id) => Role::Leader,
        true => Role::Follower,
        false => Role::Learner,
    };
    NodeStatus {
        id: shown(member.id),
        name: member.record.name.clone(),
        url: member.record.url.clone(),
        role,
        waits_for: consensus.waits_for(member),
        reachable: pong.is_some(),
        version: pong.as_ref().map(|pong| pong.version.clone()),
        applied_index: pong.as_ref().map(|pong| pong.applied_index),
        lag: pong.as_ref().map(|pong| commit_index.saturating_sub(pong.applied_index)),
        blobs: pong.as_ref().map(|pong| Blobs {
            held: pong.blobs.held,
            held_bytes: pong.blobs.held_bytes,
            missing: pong.blobs.missing,
            missing_bytes: pong.blobs.missing_bytes,
            nowhere: pong.blobs.nowhere,
            nowhere_bytes: pong.blobs.nowhere_bytes,
            surplus: pong.blobs.surplus,
            fetch_rate: pong.blobs.repair_rate,
            compared: pong.blobs.layout_revision >= consensus.layout_revision(),
        }),
        zone: member.seat.zone.clone(),
        weight: member.seat.weight,
        draining: member.seat.draining,
        clock_off_ms: consensus.clock_off_ms(member.id),
    }
}

/// A node's id as people and JSON see it.
pub(crate) fn shown(id: NodeId) -> String {
    format!("{id:012x}")
}
