//! The client port: every route, and what happens to every request on its way in and out.

use std::cell::RefCell;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use actix_cors::Cors;
use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{Payload, ResourceDef, ServiceFactory, ServiceRequest, ServiceResponse};
use actix_web::error::PayloadError;
use actix_web::http::header::HeaderValue;
use actix_web::http::{ConnectionType, Method};
use actix_web::middleware::{Condition, Next, from_fn};
use actix_web::{App, Error, HttpMessage, HttpRequest, HttpResponse, ResponseError, web};
use bytes::Bytes;
use flotilla_raft::Consensus;
use futures::{FutureExt, Stream};
use tracing::Instrument;
use utoipa::openapi::OpenApi;
use utoipa_actix_web::AppExt;
use utoipa_actix_web::service_config::ServiceConfig;

use crate::admission::{self, Admission};
use crate::auth::peers::{self, PeerTls};
use crate::cluster::metrics::Shown;
use crate::cluster::{nodes, operator};
use crate::oci::{self, DOCKER_DISTRIBUTION_API_VERSION, Oci, OciError, Route, repository, uploads};
use crate::readiness::{InFlight, Readiness};
use crate::request_id;

/// The client port's application, one for each worker.
pub(crate) fn app(
    oci: web::Data<Oci>,
    consensus: web::Data<Consensus>,
    readiness: web::Data<Readiness>,
    shown: web::Data<Shown>,
    admission: web::Data<Admission>,
    tls: web::Data<PeerTls>,
) -> App<
    impl ServiceFactory<
        ServiceRequest,
        Config = (),
        Response = ServiceResponse<impl MessageBody>,
        Error = Error,
        InitError = (),
    >,
> {
    let origins = oci.config.cors_origins.clone();
    let (app, api) = App::new()
        .app_data(oci)
        .app_data(consensus)
        .app_data(readiness)
        .app_data(shown)
        .app_data(admission)
        .app_data(tls)
        .wrap(Condition::new(!origins.is_empty(), cors(&origins)))
        .wrap(from_fn(accompany))
        .into_utoipa_app()
        .configure(described)
        .split_for_parts();
    app.app_data(web::Data::new(Methods::of(&api)))
        .service(web::resource(["/v2", "/v2/{path:.*}"]).to(distribution))
        .default_service(web::to(nothing_here))
}

/// What pages of these origins may do in a browser: all that other clients may.
fn cors(origins: &[String]) -> Cors {
    let cors = Cors::default().allow_any_method().allow_any_header().expose_any_header().max_age(3600);
    origins.iter().fold(cors, |cors, origin| match origin.as_str() {
        "*" => cors.allow_any_origin(),
        origin => cors.allowed_origin(origin),
    })
}

/// The routes that the OpenAPI document describes: all but the specification's own.
fn described(routes: &mut ServiceConfig<'_>) {
    operator::configure(routes);
    nodes::configure(routes);
    peers::api::configure(routes);
    admission::api::configure(routes);
    oci::changes::configure(routes);
    oci::garbage::configure(routes);
    oci::scrub::configure(routes);
    oci::settings::configure(routes);
}

/// Everything under `/v2`. Repositories' names have any depth, so the router sees one resource and [`Route`] the rest.
async fn route(oci: &Oci, request: &HttpRequest, payload: web::Payload) -> Result<HttpResponse, OciError> {
    let found = Route::parse(request.uri().path()).ok_or_else(OciError::no_such_endpoint)?;
    let methods = found.methods();
    match (request.method().as_str(), found) {
        ("GET" | "HEAD", Route::Base) => Ok(oci::base()),
        ("GET" | "HEAD", Route::Catalog) => oci::list_repositories(oci, request).await,
        ("GET" | "HEAD", Route::Tags(name)) => oci::list_tags(oci, request, &repository(&name)?).await,
        ("GET" | "HEAD", Route::Manifest(name, reference)) => {
            oci::get_manifest(oci, request, &repository(&name)?, &reference).await
        }
        ("PUT", Route::Manifest(name, reference)) => {
            oci::put_manifest(oci, request, repository(&name)?, &reference, payload).await
        }
        ("DELETE", Route::Manifest(name, reference)) => {
            oci::delete_manifest(oci, request, repository(&name)?, &reference).await
        }
        ("GET" | "HEAD", Route::Referrers(name, subject)) => {
            oci::list_referrers(oci, request, &repository(&name)?, &subject).await
        }
        ("GET" | "HEAD", Route::Blob(name, digest)) => oci::get_blob(oci, request, &repository(&name)?, &digest).await,
        ("DELETE", Route::Blob(name, digest)) => oci::delete_blob(oci, repository(&name)?, &digest).await,
        ("POST", Route::Uploads(name)) => {
            let name = repository(&name)?;
            match oci::mount_blob(oci, request, &name).await? {
                Some(mounted) => Ok(mounted),
                None => uploads::start(&oci.replication, request, name, payload).await,
            }
        }
        ("GET" | "HEAD" | "PATCH" | "PUT" | "DELETE", Route::Upload(name, id)) => {
            uploads::session(&oci.replication, request, repository(&name)?, &id, payload).await
        }
        _ => Err(OciError::method_not_allowed(methods)),
    }
}

/// What is true of every answer under `/v2`: errors in the specification's form, no body for HEAD, docker's header.
async fn distribution(
    oci: web::Data<Oci>,
    readiness: web::Data<Readiness>,
    request: HttpRequest,
    payload: web::Payload,
) -> HttpResponse {
    let routed = async {
        if readiness.is_stopping() {
            return Err(OciError::unavailable("this node is stopping"));
        }
        if oci.consensus.members().is_empty() {
            return Err(OciError::unavailable("this node belongs to no cluster yet: it waits for its peers"));
        }
        // What this node knows may be older than what it answered before it was started again.
        if !readiness.is_started() {
            return Err(OciError::unavailable("this node was started a moment ago and is still catching up"));
        }
        route(&oci, &request, payload).await
    };
    let answer = AssertUnwindSafe(routed).catch_unwind().await;
    let answer = answer.unwrap_or_else(|_| {
        tracing::error!(method = %request.method(), path = request.uri().path(), "a request made its handler panic");
        Err(OciError::internal())
    });
    let mut answer = answer.unwrap_or_else(|error| error.error_response());
    answer.headers_mut().insert(DOCKER_DISTRIBUTION_API_VERSION, HeaderValue::from_static("registry/2.0"));
    if readiness.is_stopping() {
        answer.head_mut().set_connection_type(ConnectionType::Close);
    }
    if request.method() == Method::HEAD { oci::strip_body(answer) } else { answer }
}

/// Which methods the routes have, as the OpenAPI document says.
struct Methods(Vec<(ResourceDef, String)>);

impl Methods {
    fn of(api: &OpenApi) -> Self {
        let methods = api.paths.paths.iter().map(|(path, item)| {
            let operations =
                [("GET", &item.get), ("PUT", &item.put), ("POST", &item.post), ("DELETE", &item.delete)].into_iter();
            let methods: Vec<_> = operations.filter_map(|(name, operation)| operation.as_ref().map(|_| name)).collect();
            // The one parameter that has slashes.
            (ResourceDef::new(path.replace("{repository}", "{repository:.+}")), methods.join(", "))
        });
        Self(methods.collect())
    }

    fn allowed(&self, path: &str) -> Option<&str> {
        self.0.iter().find(|(pattern, _)| pattern.is_match(path)).map(|(_, methods)| methods.as_str())
    }
}

/// No route took the request: it has another method than the resource, or there is no such resource.
async fn nothing_here(request: HttpRequest, methods: web::Data<Methods>) -> HttpResponse {
    let error = match methods.allowed(request.path()) {
        Some(methods) => OciError::method_not_allowed(methods),
        None => OciError::no_such_endpoint(),
    };
    let answer = error.error_response();
    if request.method() == Method::HEAD { oci::strip_body(answer) } else { answer }
}

/// Gives a request its id, logs it, and counts it as long as its answer is on the way.
async fn accompany(
    mut request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<Accompanied>, Error> {
    let began = Instant::now();
    // What comes while the node stops is refused, and must not put the end off.
    let readiness = request.app_data::<web::Data<Readiness>>().filter(|readiness| !readiness.is_stopping());
    let in_flight = readiness.map(|readiness| readiness.request());
    let unread = UnreadBody::of(&mut request);
    let id = request_id::of(&request);
    let span = tracing::debug_span!("request", method = %request.method(), path = request.uri().path(), id = ?id);
    let mut answer = request_id::with(id.clone(), next.call(request)).instrument(span).await?;
    let (asked, status) = (answer.request(), answer.status().as_u16());
    tracing::info!(
        target: "flotilla::access",
        method = %asked.method(),
        path = asked.uri().path(),
        status,
        duration_ms = began.elapsed().as_millis() as u64,
        client = asked.connection_info().peer_addr(),
        request_id = id.to_str().unwrap_or_default(),
        "answered"
    );
    answer.headers_mut().insert(request_id::X_REQUEST_ID, id);
    Ok(answer.map_body(|_, body| Accompanied { body: body.boxed(), _in_flight: in_flight, _unread: unread }))
}

/// What the peer port needs of [`accompany`]: uploads that were passed on are waited for when the node stops, and nothing is read
/// and thrown away there either.
pub(crate) async fn keep_body(
    mut request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<Accompanied>, Error> {
    // A client's request that another node has passed on is one of this node's as well.
    let is_clients = request.path().starts_with(uploads::FORWARDED_TO);
    let readiness =
        request.app_data::<web::Data<Readiness>>().filter(|readiness| is_clients && !readiness.is_stopping());
    let in_flight = readiness.map(|readiness| readiness.request());
    let unread = UnreadBody::of(&mut request);
    let answer = next.call(request).await?;
    Ok(answer.map_body(|_, body| Accompanied { body: body.boxed(), _in_flight: in_flight, _unread: unread }))
}

/// An answer's body, and what must live until it is sent.
pub(crate) struct Accompanied {
    body: BoxBody,
    _in_flight: Option<InFlight>,
    _unread: Option<UnreadBody>,
}

impl MessageBody for Accompanied {
    type Error = Box<dyn std::error::Error>;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.body).poll_next(context)
    }
}

/// A request's body, kept until the answer is sent.
///
/// actix-web reads and throws away what is left of a chunked body that nobody holds any more, however long it is and
/// however slowly it comes. While it is held, the connection is closed after an answer that came before the body's end.
#[derive(Clone)]
struct UnreadBody(Rc<RefCell<Payload>>);

impl UnreadBody {
    fn of(request: &mut ServiceRequest) -> Option<Self> {
        let payload = request.take_payload();
        if matches!(payload, Payload::None) {
            return None;
        }
        let unread = Self(Rc::new(RefCell::new(payload)));
        request.set_payload(Payload::Stream { payload: Box::pin(unread.clone()) });
        Some(unread)
    }
}

impl Stream for UnreadBody {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_next(context)
    }
}

#[cfg(test)]
mod tests {
    use utoipa::openapi::{RefOr, Response};

    use super::*;

    #[test]
    fn resources_say_which_methods_they_have() {
        let (_, api) = App::new().into_utoipa_app().configure(described).split_for_parts();
        let methods = Methods::of(&api);
        assert_eq!(methods.allowed("/api/v1/settings"), Some("GET, PUT"));
        assert_eq!(methods.allowed("/api/v1/repositories/a/b/tags/v1/rollback"), Some("POST"));
        assert_eq!(methods.allowed("/metrics"), Some("GET"));
        assert_eq!(methods.allowed("/api/v1/nothing"), None);
    }

    /// What the routes themselves say. `UPDATE_OPENAPI=1` writes it to docs/, where the difference is reviewed.
    #[test]
    fn the_openapi_document_is_that_of_the_routes() {
        let (_, mut api) = App::new().into_utoipa_app().configure(described).split_for_parts();
        api.info.title = "Flotilla: what it adds to the OCI Distribution API".into();
        api.info.version = env!("CARGO_PKG_VERSION").into();
        api.info.description = Some("docs/api.md says what each does.".into());
        api.info.license = None;
        api.info.contact = None;
        for item in api.paths.paths.values_mut() {
            let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete];
            for operation in operations.into_iter().flatten() {
                let error = |text: &str| RefOr::T(Response::new(text));
                let others = operation.responses.responses.entry("4XX".into());
                others.or_insert_with(|| {
                    error("The errors of the OCI Distribution Specification, for what is not listed")
                });
                let failures = operation.responses.responses.entry("5XX".into());
                failures
                    .or_insert_with(|| error("The same form; 503 with `Retry-After` where it is worth trying again"));
            }
        }
        let routes = api.to_pretty_json().unwrap() + "\n";
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
        if std::env::var_os("UPDATE_OPENAPI").is_some() {
            std::fs::write(&path, &routes).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), routes);
    }
}
