//! Mounts the Raft group's calls on the peer port.

use actix_web::http::StatusCode;
use actix_web::{HttpMessage as _, HttpRequest, HttpResponse, web};
use bytes::BytesMut;
use flotilla_raft::Consensus;
use flotilla_raft::network::{Call, Caller, PREFIX, ServeError, TO_HEADER};
use flotilla_raft::wire::MESSAGE_MAX;
use futures::StreamExt;

use crate::auth::peers::Standing;

/// The routes of the peer port that belong to the Raft group.
pub(crate) fn configure(routes: &mut web::ServiceConfig) {
    routes.route(&format!("{PREFIX}/{{call}}"), web::post().to(call));
}

async fn call(
    request: HttpRequest,
    name: web::Path<String>,
    body: web::Payload,
    consensus: web::Data<Consensus>,
) -> HttpResponse {
    let Some(call) = Call::named(&name) else {
        return HttpResponse::NotFound().body("this version of Flotilla knows no such call");
    };
    match read(body).await {
        Ok(body) => answer(consensus.serve(call, caller(&request), &body).await),
        Err(problem) => HttpResponse::BadRequest().body(problem),
    }
}

async fn read(mut body: web::Payload) -> Result<BytesMut, String> {
    let mut read = BytesMut::new();
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|problem| problem.to_string())?;
        if (read.len() + piece.len()) as u64 > MESSAGE_MAX {
            return Err(format!("more than {MESSAGE_MAX} bytes"));
        }
        read.extend_from_slice(&piece);
    }
    Ok(read)
}

fn caller(request: &HttpRequest) -> Caller {
    let to = request.headers().get(TO_HEADER).and_then(|id| u64::from_str_radix(id.to_str().ok()?, 16).ok());
    let from = match request.extensions().get::<Standing>() {
        Some(Standing::Node(from)) => *from,
        _ => None,
    };
    Caller { to, from }
}

fn answer(result: Result<Vec<u8>, ServeError>) -> HttpResponse {
    match result {
        Ok(body) => HttpResponse::Ok().body(body),
        Err(problem) => HttpResponse::build(status(&problem)).body(problem.to_string()),
    }
}

fn status(problem: &ServeError) -> StatusCode {
    match problem {
        ServeError::OtherNode { .. } => StatusCode::MISDIRECTED_REQUEST,
        ServeError::Unreadable(_) => StatusCode::BAD_REQUEST,
        ServeError::Stopped(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}
