//! What nodes ask each other for about certificates: to sign one, for the authority's key, how far the other is.
//!
//! JSON under `/peer/v1/tls`. Who may call what is decided before, in [`super::admit`].

use std::time::Duration;

use actix_web::{HttpMessage as _, HttpRequest, HttpResponse, web};
use anyhow::{Context as _, bail, ensure};
use flotilla_raft::network::{Dialer, Whom};
use flotilla_raft::{Command, Consensus, NodeId, TrustChange};
use reqwest::RequestBuilder;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::PeerTls;
use super::admit::is_member;
use super::authority::{Authority, Fingerprint, Leaf, certificates, pem, request};
use super::folder::{Trusted, TrustedText};
use super::material::Standing;
use super::own::Own;
use super::refusals::{Reason, Refused};

pub(super) const SIGN: &str = "/peer/v1/tls/sign";
const AUTHORITY: &str = "/peer/v1/tls/authority";
const STATUS: &str = "/peer/v1/tls/status";
const ROTATE: &str = "/peer/v1/tls/rotate";

/// How long another node may take; signing with a token waits for an entry of the log.
const LIMIT: Duration = Duration::from_secs(5);

/// How long another node may take to rotate.
const ROTATE_LIMIT: Duration = Duration::from_secs(60);

/// The largest request, in bytes.
const REQUEST_MAX: usize = 16 << 10;

/// Other nodes that are asked in the place of one that cannot sign.
const ASKED_MAX: usize = 8;

#[derive(Serialize, Deserialize)]
struct SignRequest {
    /// The node that asks, as 12 hexadecimal digits.
    node: String,
    /// The request (PEM).
    request: String,
}

#[derive(Serialize, Deserialize)]
enum SignReply {
    Signed {
        cluster: Uuid,
        /// The chain (PEM), the node's own certificate first.
        chain: String,
        trusted: TrustedText,
    },
    /// This node cannot; these can.
    Ask(Vec<String>),
}

/// How far a node is with what the cluster agreed on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Progress {
    /// Fingerprints of the authorities that it trusts.
    pub(super) trusts: Vec<String>,
    /// Of those whose key it holds.
    pub(super) keys: Vec<String>,
    /// Of the one that signed its certificate.
    pub(super) signed_by: Option<String>,
    /// When that ends, in seconds since the Unix epoch.
    pub(super) ends_at: u64,
}

/// Asks other nodes.
pub(super) struct Calls {
    dialer: Dialer,
    nodes: reqwest::Client,
    newcomers: reqwest::Client,
}

impl Calls {
    pub(super) fn new(dialer: &Dialer) -> anyhow::Result<Self> {
        // No connection is kept: one that was made before this node had its certificate would go on to show the older one.
        let client =
            |whom| dialer.builder(whom).connect_timeout(Duration::from_secs(2)).pool_max_idle_per_host(0).build();
        Ok(Self { dialer: dialer.clone(), nodes: client(Whom::Node)?, newcomers: client(Whom::Newcomer)? })
    }

    async fn sign(&self, address: &str, request: &SignRequest) -> anyhow::Result<SignReply> {
        let call = self.newcomers.post(self.dialer.url(address, SIGN)).json(request);
        answered(call.timeout(LIMIT)).await
    }

    /// The authority of this fingerprint, from a voter.
    pub(super) async fn authority(&self, address: &str, fingerprint: Fingerprint) -> anyhow::Result<Authority> {
        let call = self.nodes.get(self.dialer.url(address, format_args!("{AUTHORITY}/{fingerprint}")));
        let text: String = answered(call.timeout(LIMIT)).await?;
        let authority = Authority::from_pem(&text)?;
        ensure!(Fingerprint::of(authority.certificate()) == fingerprint, "it is the key of another authority");
        Ok(authority)
    }

    pub(super) async fn progress(&self, address: &str) -> anyhow::Result<Progress> {
        answered(self.nodes.get(self.dialer.url(address, STATUS)).timeout(LIMIT)).await
    }

    pub(super) async fn rotate(&self, address: &str, finish: bool) -> anyhow::Result<()> {
        let call = self.nodes.post(self.dialer.url(address, format_args!("{ROTATE}?finish={finish}")));
        answered(call.timeout(ROTATE_LIMIT)).await
    }
}

/// Sends a request and reads the answer; an error of HTTP becomes its text.
async fn answered<T: DeserializeOwned>(call: RequestBuilder) -> anyhow::Result<T> {
    let answer = call.send().await.context("no answer")?;
    let status = answer.status();
    let body = answer.bytes().await.context("no answer")?;
    ensure!(status.is_success(), "{}", String::from_utf8_lossy(&body));
    serde_json::from_slice(&body).context("an answer that this version cannot read")
}

impl PeerTls {
    /// Fetches a certificate for this node, which is no member yet, from the node at an address, or from one that it names.
    /// Without an authority of the cluster's own there is nothing to do.
    ///
    /// # Errors
    /// Nobody signs; says why.
    pub(crate) async fn fetch_leaf(&self, address: &str, cluster: Option<Uuid>) -> Result<(), String> {
        if !matches!(self.inner.way, super::Way::Own(_)) {
            return Ok(());
        }
        let fetched = async {
            let will_do = move |own: &mut Own| {
                let will_do = own.leaf_will_do(cluster);
                if !will_do {
                    // To be shown the proof, not the certificate of a node that they do not know.
                    own.leaf = None;
                }
                Ok(will_do)
            };
            match self.change(will_do).await? {
                true => Ok(()),
                false => self.fetch_leaf_from(address, cluster).await,
            }
        };
        fetched.await.map_err(|problem| format!("no certificate from {address}: {problem:#}"))
    }

    /// As [`PeerTls::fetch_leaf`], whatever this node holds.
    ///
    /// # Errors
    /// Nobody signs; says why.
    pub(super) async fn fetch_leaf_from(&self, address: &str, cluster: Option<Uuid>) -> anyhow::Result<()> {
        let node = self.look(|own| Ok(own.node)).await?;
        let (key, asked) = request()?;
        let asked = SignRequest { node: format!("{node:012x}"), request: asked };
        let mut addresses = vec![address.to_owned()];
        let mut at = 0;
        while let Some(address) = addresses.get(at).filter(|_| at < ASKED_MAX).cloned() {
            at += 1;
            match self.inner.calls.sign(&address, &asked).await {
                Ok(SignReply::Signed { cluster: of, chain, trusted }) => {
                    ensure!(cluster.is_none_or(|wanted| wanted == of), "it belongs to another cluster, {of}");
                    return self.use_leaf(Leaf::new(key, certificates(&chain)?)?, trusted.try_into()?).await;
                }
                Ok(SignReply::Ask(others)) => {
                    let new: Vec<String> = others.into_iter().filter(|one| !addresses.contains(one)).collect();
                    addresses.extend(new);
                }
                Err(problem) if at >= addresses.len() => return Err(problem),
                Err(_) => {}
            }
        }
        bail!("no voter can sign now")
    }

    async fn use_leaf(&self, leaf: Leaf, trusted: Trusted) -> anyhow::Result<()> {
        let ends = leaf.said.ends;
        self.change(move |own| {
            own.trust(trusted)?;
            own.put_leaf(leaf)
        })
        .await?;
        tracing::info!(ends_at = ends, "this node has a new certificate");
        Ok(())
    }

    /// How far this node is.
    pub(super) async fn progress(&self) -> anyhow::Result<Progress> {
        self.look(|own| {
            Ok(Progress {
                trusts: own.trusted.authorities.iter().map(|one| Fingerprint::of(one).to_string()).collect(),
                keys: own.keys.keys().map(Fingerprint::to_string).collect(),
                signed_by: own.leaf.as_ref().and_then(|leaf| leaf.authority()).map(|signer| signer.to_string()),
                ends_at: own.leaf.as_ref().map_or(0, |leaf| leaf.said.ends),
            })
        })
        .await
    }
}

/// The routes. The app's data must hold [`PeerTls`] and [`Consensus`].
pub(crate) fn configure(routes: &mut web::ServiceConfig) {
    routes
        .service(
            web::resource(SIGN).app_data(web::JsonConfig::default().limit(REQUEST_MAX)).route(web::post().to(sign)),
        )
        .route(&format!("{AUTHORITY}/{{fingerprint}}"), web::get().to(authority))
        .route(STATUS, web::get().to(status))
        .route(ROTATE, web::post().to(rotate));
}

fn answer<T: Serialize>(result: anyhow::Result<T>) -> HttpResponse {
    match result {
        Ok(value) => HttpResponse::Ok().json(value),
        Err(problem) => HttpResponse::ServiceUnavailable().body(format!("{problem:#}")),
    }
}

async fn sign(
    http: HttpRequest,
    asked: web::Json<SignRequest>,
    tls: web::Data<PeerTls>,
    consensus: web::Data<Consensus>,
) -> HttpResponse {
    let standing = http.extensions().get::<Standing>().cloned();
    let Some(node) = u64::from_str_radix(&asked.node, 16).ok().filter(|node| *node != 0) else {
        return HttpResponse::BadRequest().body("no node id");
    };
    if !tls.can_sign(&consensus).await {
        return answer(Ok(SignReply::Ask(voters(&consensus))));
    }
    if let Err(refused) = may_have(&consensus, standing, node).await {
        tls.inner.current.refusals.tell(&format!("node {node:012x} gets no certificate"), &refused);
        return HttpResponse::Forbidden().body(refused.to_string());
    }
    let request = asked.into_inner().request;
    let signed = tls.look(move |own| {
        let chain = own.sign(&request, node)?;
        let cluster = own.cluster.context("the cluster has no id yet")?;
        let chain = chain.iter().map(|one| pem("CERTIFICATE", one)).collect();
        Ok(SignReply::Signed { cluster, chain, trusted: TrustedText::from(&own.trusted) })
    });
    let signed = signed.await;
    if signed.is_ok() {
        tracing::info!(node_id = format!("{node:012x}"), "signed a node's certificate");
        tls.inner.signed_for.lock().insert(node);
    }
    answer(signed)
}

impl PeerTls {
    /// Voters sign, and who is about to found a cluster.
    async fn can_sign(&self, consensus: &Consensus) -> bool {
        let votes = votes(consensus, consensus.node_id());
        let holds = self.look(|own| Ok(own.signer().is_some())).await;
        holds.unwrap_or(false) && (votes || consensus.members().is_empty())
    }
}

fn voters(consensus: &Consensus) -> Vec<String> {
    let members = consensus.members();
    let others = members.iter().filter(|member| member.voter && member.id != consensus.node_id());
    others.map(|member| member.record.peer_address.clone()).collect()
}

/// Whether a node is a voter, as far as this node knows.
pub(super) fn votes(consensus: &Consensus, node: NodeId) -> bool {
    consensus.members().iter().any(|member| member.id == node && member.voter)
}

/// Whether whoever asks may have a certificate for this node.
async fn may_have(consensus: &Consensus, standing: Option<Standing>, node: NodeId) -> Result<(), Refused> {
    match standing {
        Some(Standing::Secret) => Ok(()),
        Some(Standing::Node(Some(own))) if own == node => match is_member(consensus, node).await {
            true => Ok(()),
            false => Err(Refused::new(Reason::NotAMember, format!("{node:012x}"))),
        },
        Some(Standing::Node(own)) => {
            let who = own.map_or_else(String::new, |own| format!("{own:012x} asks for {node:012x}"));
            Err(Refused::new(Reason::OnlyJoins, who))
        }
        Some(Standing::Token(id)) => {
            let change = TrustChange::UseToken { id: id.clone(), node };
            match consensus.propose(Uuid::new_v4(), Command::ChangeTrust(change)).await {
                Ok(applied) => {
                    applied.result.map(drop).map_err(|refusal| Refused::new(Reason::Token, refusal.to_string()))
                }
                Err(problem) => Err(Refused::new(Reason::Token, format!("it cannot be looked at: {problem}"))),
            }
        }
        None => Err(Refused::new(Reason::NoCertificate, "")),
    }
}

/// The key of an authority, for voters alone.
async fn authority(
    http: HttpRequest,
    fingerprint: web::Path<String>,
    tls: web::Data<PeerTls>,
    consensus: web::Data<Consensus>,
) -> HttpResponse {
    let standing = http.extensions().get::<Standing>().cloned();
    let may = matches!(standing, Some(Standing::Node(Some(node))) if votes(&consensus, node));
    if !may {
        return HttpResponse::Forbidden().body("only voters hold the authority's key");
    }
    let fingerprint = Fingerprint::parse(&fingerprint);
    let key = tls.look(move |own| {
        let held = fingerprint.and_then(|fingerprint| own.keys.get(&fingerprint));
        held.map(Authority::to_pem).context("this node does not hold that key")
    });
    answer(key.await)
}

async fn status(tls: web::Data<PeerTls>) -> HttpResponse {
    answer(tls.progress().await)
}

#[derive(Deserialize)]
struct RotateQuery {
    finish: bool,
}

async fn rotate(
    query: web::Query<RotateQuery>,
    tls: web::Data<PeerTls>,
    consensus: web::Data<Consensus>,
) -> HttpResponse {
    answer(tls.rotate_here(&consensus, query.finish).await)
}
