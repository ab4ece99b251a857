//! What operators do to members: removed for good.

use actix_web::{HttpRequest, HttpResponse, delete, web};
use flotilla_raft::{Consensus, Member, RemoveError};
use utoipa_actix_web::service_config::ServiceConfig;

use super::operator::shown;
use crate::oci::error::{Code, OciError};
use crate::request::query;

/// The routes. The app's data must hold [`Consensus`].
pub(crate) fn configure(routes: &mut ServiceConfig<'_>) {
    routes.service(remove);
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
    let force = match query(&request, "force").as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(OciError::bad_request(Code::Unsupported, "force is true or false")),
    };
    let member = find(&consensus.members(), &node)?;
    match consensus.remove(member.id, force).await {
        Ok(()) => Ok(HttpResponse::NoContent().finish()),
        Err(RemoveError::Unknown) => Err(unknown(&node)),
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
