//! What operators see and do: the authorities, their rotation, tokens.

use std::time::{Duration, Instant};

use actix_web::{HttpRequest, HttpResponse, get, post, web};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use flotilla_raft::{AuthoritiesRecord, Command, Consensus, ProposeError, TokenRecord, TrustChange};
use serde::{Deserialize, Serialize};
use utoipa_actix_web::service_config::ServiceConfig;
use uuid::Uuid;

use super::authority::{Fingerprint, Said};
use super::join::token_id;
use super::rotation::{self, Step};
use super::{PeerTls, Way};
use crate::oci::error::{Code, OciError};
use crate::request::query;

/// How long the first authority of a cluster is waited for, and how often it is looked for.
const KNOWN_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The longest that a token may be good.
const TOKEN_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// `GET /api/v1/authority`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Authorities {
    /// Those that all nodes trust: one, or two while one takes the place of the other.
    pub(crate) authorities: Vec<AuthorityStatus>,
    /// What a rotation does now, if one is under way.
    pub(crate) step: Option<String>,
    /// The members that it waits for.
    pub(crate) waits_for: Vec<String>,
    /// When the members' certificates end, in seconds since the Unix epoch, by their names; null where that is not known.
    pub(crate) nodes: Vec<NodeCertificate>,
}

/// One authority.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AuthorityStatus {
    pub(crate) fingerprint: String,
    /// In seconds since the Unix epoch.
    pub(crate) ends_at: u64,
    /// Whether it signs certificates now.
    pub(crate) signs: bool,
}

/// One member's certificate.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct NodeCertificate {
    pub(crate) name: String,
    /// In seconds since the Unix epoch; `None` where the member does not answer.
    pub(crate) ends_at: Option<u64>,
    /// The fingerprint of the authority that signed it.
    pub(crate) signed_by: Option<String>,
}

/// What `POST /api/v1/tokens` takes.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct NewToken {
    pub(crate) id: String,
    /// The certificate (DER, base64) of the authority that follows from the token's secret, which stays with who made it.
    pub(crate) authority: String,
    /// How long it is good.
    pub(crate) lifetime_ms: u64,
}

/// The routes. The app's data must hold [`PeerTls`] and [`Consensus`].
pub(crate) fn configure(routes: &mut ServiceConfig<'_>) {
    routes.service(authorities).service(rotate).service(put_token).service(tokens);
}

/// The authorities, with all that was acknowledged; without a majority, those that this node knows. A cluster that was
/// founded a moment ago is about to agree on the first one.
async fn known(consensus: &Consensus) -> Result<AuthoritiesRecord, OciError> {
    if let Err(problem) = consensus.read_barrier().await {
        tracing::debug!(%problem, "the authorities may be older than the cluster's");
    }
    let deadline = Instant::now() + KNOWN_WITHIN;
    loop {
        match consensus.registry().authorities()? {
            Some(record) => return Ok(record),
            None if Instant::now() >= deadline => {
                return Err(OciError::unavailable("the cluster does not know its authority yet"));
            }
            None => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}

/// `GET /api/v1/authority`: the authorities that sign the nodes' certificates, and how far a rotation is.
#[utoipa::path(responses(
    (status = 200, body = Object, description = "The authorities, what a rotation waits for, and when certificates end"),
    (status = 404, body = Object, description = "The cluster has no authority of its own"),
))]
#[get("/api/v1/authority")]
async fn authorities(tls: web::Data<PeerTls>, consensus: web::Data<Consensus>) -> Result<HttpResponse, OciError> {
    has_own(&tls)?;
    let record = known(&consensus).await?;
    let members = tls.look_at(&consensus).await;
    let (step, waits_for) = match rotation::step(&record, &members, false) {
        Step::Done => (None, Vec::new()),
        Step::Trust(waits) => (Some("all members come to trust the new authority"), waits),
        Step::Sign(waits) => (Some("all members get certificates of the new authority"), waits),
    };
    let authority = |(number, certificate): (usize, &Bytes)| AuthorityStatus {
        fingerprint: Fingerprint::of(certificate).to_string(),
        ends_at: Said::by(certificate).map_or(0, |said| said.ends),
        signs: number == record.signer as usize,
    };
    let nodes = members.into_iter().map(|seen| NodeCertificate {
        name: seen.name,
        ends_at: seen.progress.as_ref().map(|own| own.ends_at),
        signed_by: seen.progress.and_then(|own| own.signed_by),
    });
    Ok(HttpResponse::Ok().json(Authorities {
        authorities: record.certificates.iter().enumerate().map(authority).collect(),
        step: step.map(str::to_owned),
        waits_for,
        nodes: nodes.collect(),
    }))
}

/// `POST /api/v1/authority/rotate`: puts another authority in the place of the one that is there.
#[utoipa::path(
    params(("finish" = Option<bool>, Query, description = "End the rotation that is under way without members that do not answer")),
    responses(
        (status = 202, description = "It is under way; `GET /api/v1/authority` says how far"),
        (status = 404, body = Object, description = "The cluster has no authority of its own"),
        (status = 409, body = Object, description = "Refused; says why"),
        (status = 503, body = Object, description = "Nobody leads, or it is not known whether it took effect; ask what holds"),
    )
)]
#[post("/api/v1/authority/rotate")]
async fn rotate(
    tls: web::Data<PeerTls>,
    consensus: web::Data<Consensus>,
    request: HttpRequest,
) -> Result<HttpResponse, OciError> {
    has_own(&tls)?;
    let finish = match query(&request, "finish").as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(OciError::bad_request(Code::Unsupported, "finish is true or false")),
    };
    match tls.rotate(&consensus, finish).await {
        Ok(()) => Ok(HttpResponse::Accepted().finish()),
        Err(problem) if consensus.leader().is_none() || problem.is::<ProposeError>() => {
            Err(OciError::unavailable(format!("{problem:#}")))
        }
        Err(problem) => Err(OciError::conflict(format!("{problem:#}"))),
    }
}

/// `POST /api/v1/tokens`: lets one node join that holds the token. Its secret does not come here.
#[utoipa::path(
    request_body(content = Object, description = "`id`, `authority` and `lifetime_ms`, as `flotilla node token create` makes them"),
    responses(
        (status = 201, description = "It is good now"),
        (status = 400, body = Object, description = "Not valid; says why"),
        (status = 404, body = Object, description = "The cluster has no authority of its own"),
        (status = 409, body = Object, description = "Refused; says why"),
    )
)]
#[post("/api/v1/tokens")]
async fn put_token(
    tls: web::Data<PeerTls>,
    consensus: web::Data<Consensus>,
    body: web::Bytes,
) -> Result<HttpResponse, OciError> {
    has_own(&tls)?;
    let invalid = |reason: &str| OciError::bad_request(Code::Unsupported, reason);
    let token: NewToken = serde_json::from_slice(&body).map_err(|_| invalid("not a token in JSON"))?;
    let authority = STANDARD.decode(&token.authority).map_err(|_| invalid("`authority` is not base64"))?;
    let said = Said::by(&authority).filter(|said| token_id(&said.subject) == Some(&token.id));
    if said.is_none() || token.id.len() > 64 {
        return Err(invalid("`authority` is not the certificate of this token's authority"));
    }
    if !(1..=TOKEN_MAX.as_millis() as u64).contains(&token.lifetime_ms) {
        return Err(invalid("a token is good for more than nothing and 30 days at most"));
    }
    let (id, lifetime_ms) = (token.id.clone(), token.lifetime_ms);
    let change = TrustChange::PutToken { id, authority: Bytes::from(authority), lifetime_ms };
    let answer = consensus.propose(Uuid::new_v4(), Command::ChangeTrust(change)).await?;
    answer.result.map_err(|refusal| OciError::conflict(refusal.to_string()))?;
    Ok(HttpResponse::Created().finish())
}

/// `GET /api/v1/tokens`: the tokens, those included that ended a short time ago.
#[utoipa::path(responses(
    (status = 200, body = Object, description = "Their ids, when each ends, and which node has used it"),
    (status = 404, body = Object, description = "The cluster has no authority of its own"),
))]
#[get("/api/v1/tokens")]
async fn tokens(tls: web::Data<PeerTls>, consensus: web::Data<Consensus>) -> Result<HttpResponse, OciError> {
    has_own(&tls)?;
    let shown = |token: TokenRecord| {
        let used_by = token.used_by.map(|node| format!("{node:012x}"));
        serde_json::json!({ "id": token.id, "ends_at": token.ends_ms / 1000, "used_by": used_by })
    };
    let tokens: Vec<_> = consensus.registry().tokens()?.into_iter().map(shown).collect();
    Ok(HttpResponse::Ok().json(serde_json::json!({ "tokens": tokens })))
}

fn has_own(tls: &PeerTls) -> Result<(), OciError> {
    match tls.inner.way {
        Way::Own(_) => Ok(()),
        Way::Files(_) => Err(none("the nodes' certificates are files of the operator's (`peer_tls.cert`)")),
        Way::Open => Err(none("the peer port is open (`insecure_peers`)")),
    }
}

fn none(why: &str) -> OciError {
    OciError::not_found(Code::Unsupported, format!("the cluster has no authority of its own: {why}"))
}
