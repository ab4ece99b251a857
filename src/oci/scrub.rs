//! The scrub over HTTP: how far it is on this node, and have it done now.

use actix_web::{HttpResponse, get, post, web};
use utoipa_actix_web::service_config::ServiceConfig;

use super::Oci;

/// The routes. The app's data must hold [`Oci`].
pub(crate) fn configure(routes: &mut ServiceConfig<'_>) {
    routes.service(status).service(run);
}

/// `GET /api/v1/scrub`: how far this node has compared its files with their digests.
#[utoipa::path(responses((
    status = 200,
    body = Object,
    description = "`running`, `began_ms`, `ended_ms`, `checked` files and `checked_bytes`, `damaged`, `total_bytes`, `period_seconds`",
)))]
#[get("/api/v1/scrub")]
async fn status(oci: web::Data<Oci>) -> HttpResponse {
    HttpResponse::Ok().json(oci.replication.scrub_status())
}

/// `POST /api/v1/scrub`: this node begins a pass over all its files now.
#[utoipa::path(responses((status = 202, description = "It has begun, or will at once")))]
#[post("/api/v1/scrub")]
async fn run(oci: web::Data<Oci>) -> HttpResponse {
    oci.replication.scrub().run_now();
    HttpResponse::Accepted().finish()
}
