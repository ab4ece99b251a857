//! What operators do to members: drained, replaced, removed for good.

use std::time::{Duration, Instant};

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, ResponseError, delete, post, put, web};
use flotilla_raft::{Command, Consensus, Member, Removal, RemoveError, replaced_by};
use serde_json::json;
use utoipa_actix_web::service_config::ServiceConfig;
use uuid::Uuid;

use super::operator::shown;
use crate::oci::error::{Code, OciError};
use crate::request::query;

/// How long it may take to notice that one node is away and another there, and how often it is looked for.
const SEEN_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The routes. The app's data must hold [`Consensus`].
pub(crate) fn configure(routes: &mut ServiceConfig<'_>) {
    routes.service(remove).service(drain).service(undrain).service(replace);
}

/// `DELETE /api/v1/nodes/<node>`: removes a member for good, by its id or, where only one has it, its name. `force=true` does
/// so although copies of blobs may be lost.
#[utoipa::path(
    params(
        ("node" = String, Path, description = "Its id or its name"),
        ("force" = Option<bool>, Query, description = "Although copies of blobs may be lost"),
    ),
    responses(
        (status = 204, description = "It is no member any more"),
        (status = 200, body = Object, description = "It is no member any more; `may_be_lost` says what went with it, since that was forced"),
        (status = 404, body = Object, description = "There is no such member"),
        (status = 409, body = Object, description = "Refused: says what would be lost"),
        (status = 503, body = Object, description = "Nobody leads; ask again"),
    )
)]
#[delete("/api/v1/nodes/{node}")]
async fn remove(
    consensus: web::Data<Consensus>,
    request: HttpRequest,
    node: web::Path<String>,
) -> Result<HttpResponse, OciError> {
    let how = match query(&request, "force").as_deref() {
        None | Some("false") => Removal::Safe,
        Some("true") => Removal::Force,
        Some(_) => return Err(OciError::bad_request(Code::Unsupported, "force is true or false")),
    };
    let member = find(&consensus.members(), &node)?;
    Ok(match take_away(&consensus, &member, how).await? {
        None => HttpResponse::NoContent().finish(),
        Some(lost) => HttpResponse::Ok().json(json!({ "may_be_lost": lost })),
    })
}

/// `PUT /api/v1/nodes/<node>/drain`: its blobs move to other nodes, its leadership too, and no copy on it counts any more.
#[utoipa::path(
    params(("node" = String, Path, description = "Its id or its name")),
    responses(
        (status = 204, description = "It is being drained; `GET /api/v1/cluster` says how far"),
        (status = 404, body = Object, description = "There is no such member"),
        (status = 409, body = Object, description = "Another one is being drained, or no other member could take its blobs"),
        (status = 503, body = Object, description = "No majority answers"),
    )
)]
#[put("/api/v1/nodes/{node}/drain")]
async fn drain(consensus: web::Data<Consensus>, node: web::Path<String>) -> Result<HttpResponse, OciError> {
    set_draining(&consensus, &node, true).await
}

/// `DELETE /api/v1/nodes/<node>/drain`: it keeps blobs again.
#[utoipa::path(
    params(("node" = String, Path, description = "Its id or its name")),
    responses(
        (status = 204, description = "It keeps blobs again"),
        (status = 404, body = Object, description = "There is no such member"),
        (status = 503, body = Object, description = "No majority answers"),
    )
)]
#[delete("/api/v1/nodes/{node}/drain")]
async fn undrain(consensus: web::Data<Consensus>, node: web::Path<String>) -> Result<HttpResponse, OciError> {
    set_draining(&consensus, &node, false).await
}

/// `POST /api/v1/nodes/<name>/replace`: the node of this name that came back without its disk, under a new id, takes the
/// place of the old id.
#[utoipa::path(
    params(("node" = String, Path, description = "The name of both")),
    responses(
        (status = 204, description = "The old id is no member any more"),
        (status = 404, body = Object, description = "There is no such member"),
        (status = 409, body = Object, description = "The old id answers, or no node of this name is there under a new one"),
        (status = 503, body = Object, description = "Nobody leads; ask again"),
    )
)]
#[post("/api/v1/nodes/{node}/replace")]
async fn replace(consensus: web::Data<Consensus>, node: web::Path<String>) -> Result<HttpResponse, OciError> {
    let deadline = Instant::now() + SEEN_WITHIN;
    loop {
        let members = consensus.members();
        let mut named = members.iter().filter(|member| member.record.name == *node).peekable();
        if named.peek().is_none() {
            return Err(unknown(&node));
        }
        let reachable = |id| consensus.reachable(id);
        let replaced = match named.find_map(|new| Some((replaced_by(&members, new, reachable)?, new.id))) {
            Some((old, by)) => take_away(&consensus, old, Removal::Replaced { by }).await,
            None => Err(OciError::conflict(format!(
                "there is no {node} under an old id that is away and a new one that is there: start it with an empty data \
                 directory first"
            ))),
        };
        // For about a second the old id still counts as there and the new one not yet, as if it were the other way round.
        match replaced {
            Err(error) if error.status_code() == StatusCode::CONFLICT && Instant::now() < deadline => {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            replaced => return replaced.map(|_| HttpResponse::NoContent().finish()),
        }
    }
}

async fn set_draining(consensus: &Consensus, node: &str, draining: bool) -> Result<HttpResponse, OciError> {
    let node = find(&consensus.members(), node)?.id;
    consensus.propose(Uuid::new_v4(), Command::DrainNode { node, draining }).await?.result?;
    // Who looks at this node next finds it so.
    if let Err(error) = consensus.read_barrier().await {
        tracing::debug!(%error, "a change of who is drained may be seen here a little later");
    }
    Ok(HttpResponse::NoContent().finish())
}

/// Says what may be lost, where that was forced.
async fn take_away(consensus: &Consensus, member: &Member, how: Removal) -> Result<Option<String>, OciError> {
    match consensus.remove(member.id, how).await {
        Ok(lost) => Ok(lost),
        Err(RemoveError::Unknown) => Err(unknown(&shown(member.id))),
        Err(RemoveError::Refused(reason)) => {
            Err(OciError::conflict(format!("{} is not removed: {reason}", member.record.name)))
        }
        Err(error @ RemoveError::NoLeader(_)) => Err(OciError::unavailable(error.to_string())),
    }
}

fn find(members: &[Member], node: &str) -> Result<Member, OciError> {
    let mut named = members.iter().filter(|member| shown(member.id) == node || member.record.name == node);
    match (named.next(), named.next()) {
        (Some(member), None) => Ok(member.clone()),
        (None, _) => Err(unknown(node)),
        (Some(_), Some(_)) => Err(OciError::conflict(format!("more than one member is called {node}: give its id"))),
    }
}

fn unknown(node: &str) -> OciError {
    OciError::not_found(Code::Unsupported, format!("there is no member {node}"))
}
