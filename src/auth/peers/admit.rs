//! Who may ask for what on the peer port: the handshake says who calls, this which calls are open to it.

use std::time::Duration;

use actix_tls::accept::rustls_0_23::TlsStream;
use actix_web::body::MessageBody;
use actix_web::dev::{Extensions, ServiceRequest, ServiceResponse};
use actix_web::http::ConnectionType;
use actix_web::middleware::Next;
use actix_web::rt::net::TcpStream;
use actix_web::{Error, HttpMessage as _, HttpResponse, web};
use flotilla_raft::network::{Call, PREFIX};
use flotilla_raft::{Consensus, NodeId};
use parking_lot::Mutex;
use rustls::pki_types::{CertificateDer, UnixTime};

use super::authority::{Fingerprint, Said};
use super::calls;
use super::material::{Material, Standing};
use super::refusals::{Reason, Refused};
use super::{PeerTls, Way, own};

/// How long a connection that was good when it began is let go on after its certificate has ended, or the authority of
/// it: each of its answers closes it, and the next connection begins with what is in use then.
const GRACE: Duration = Duration::from_secs(60);

/// How long after a node's certificate was signed the node may join by it. A removed node has an older one.
pub(super) const JOINS_WITHIN: Duration = Duration::from_secs(600);

/// To whom a path is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// To everybody who can prove that it may join.
    Newcomers,
    /// To every node with a certificate of the cluster: whether it is a member, the log says, and that is being brought up to date
    /// by these very calls.
    Nodes,
    /// To nodes whose certificate was signed a short time ago.
    Joining,
    /// To members.
    Members,
}

fn access(path: &str) -> Access {
    let name = path.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('/'));
    match name.and_then(Call::named) {
        Some(Call::Identity | Call::Recognise) => Access::Newcomers,
        Some(Call::Join) => Access::Joining,
        Some(Call::Append | Call::Vote | Call::PreVote | Call::Transfer | Call::Ping) => Access::Nodes,
        Some(Call::CopyBegin | Call::CopyRows | Call::CopyEnd) => Access::Nodes,
        None if path == calls::SIGN => Access::Newcomers,
        _ => Access::Members,
    }
}

/// The other side of one connection.
struct Caller {
    chain: Vec<CertificateDer<'static>>,
    said: Option<Said>,
    judged: Mutex<(u64, Result<Standing, Refused>)>,
}

/// Keeps with a new connection who is on its other side.
pub(crate) fn remember_caller(tls: &PeerTls, connection: &TlsStream<TcpStream>, data: &mut Extensions) {
    let (_, session) = connection.get_ref();
    let chain = session.peer_certificates().unwrap_or_default().iter().map(|one| one.clone().into_owned());
    data.insert(Caller::new(chain.collect(), &tls.inner.current.get()));
}

impl Caller {
    fn new(chain: Vec<CertificateDer<'static>>, material: &Material) -> Self {
        // Once more than in the handshake: one that was taken up again checks nothing.
        let judged = material.judge(&chain, UnixTime::now());
        let said = chain.first().and_then(|own| Said::by(own));
        Self { chain, said, judged: Mutex::new((material.generation, judged)) }
    }

    /// What it has proved, and whether the connection should end with the next answer.
    fn standing(&self, material: &Material) -> (Result<Standing, Refused>, bool) {
        let mut closes = self.should_close(material);
        let mut judged = self.judged.lock();
        if judged.0 != material.generation {
            let now = material.judge(&self.chain, UnixTime::now());
            // With the join secret, what was a node's certificate still proves that it may join.
            let was_node = matches!(judged.1, Ok(Standing::Node(_)));
            let is_less = was_node && !matches!(now, Ok(Standing::Node(_)));
            match is_less && material.since.elapsed().is_ok_and(|age| age < GRACE) {
                true => closes = true,
                false => *judged = (material.generation, now),
            }
        }
        let ended = |said: &Said| own::now() > said.ends + GRACE.as_secs();
        match self.said.as_ref().filter(|said| ended(said)) {
            Some(said) => (Err(Refused::new(Reason::Expired, super::material::describe(said))), true),
            None => (judged.1.clone(), closes || judged.1.is_err()),
        }
    }

    /// Whether its certificate was signed a short time ago.
    fn is_new(&self) -> bool {
        self.said.as_ref().is_some_and(|said| own::now() < said.made_at() + JOINS_WITHIN.as_secs())
    }

    /// A node that has been given another certificate must come to show it.
    fn should_close(&self, material: &Material) -> bool {
        let Some(said) = &self.said else { return true };
        let is_old = own::now() > said.last_sixth();
        let signed_by = self.chain.get(1).map(|authority| Fingerprint::of(authority));
        is_old || (material.signer.is_some() && signed_by != material.signer)
    }
}

/// Lets a request through if whoever calls may ask for it; handlers find the [`Standing`] with the request.
pub(crate) async fn admit(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse, Error> {
    let (Some(tls), Some(consensus)) =
        (request.app_data::<web::Data<PeerTls>>().cloned(), request.app_data::<web::Data<Consensus>>().cloned())
    else {
        return Ok(request.into_response(HttpResponse::InternalServerError().finish()));
    };
    if matches!(tls.inner.way, Way::Open) {
        request.extensions_mut().insert(Standing::Node(None));
        return Ok(next.call(request).await?.map_into_boxed_body());
    }
    let material = tls.inner.current.get();
    let caller = request.conn_data::<Caller>();
    let (judged, closes) = match caller {
        Some(caller) => caller.standing(&material),
        None => (Err(Refused::new(Reason::NoCertificate, "")), true),
    };
    let is_new = caller.is_some_and(Caller::is_new);
    let allowed = match judged {
        Ok(standing) => may(&consensus, &standing, is_new, access(request.path())).await.map(|()| standing),
        Err(refused) => Err(refused),
    };
    let mut answer = match allowed {
        Ok(standing) => {
            request.extensions_mut().insert(standing);
            next.call(request).await?.map_into_boxed_body()
        }
        Err(refused) => {
            let from = request.peer_addr().map_or_else(String::new, |address| format!(" from {}", address.ip()));
            tls.inner.current.refusals.tell(&format!("a call{from} of {} is refused", request.path()), &refused);
            request.into_response(HttpResponse::Forbidden().body(refused.to_string()))
        }
    };
    if closes {
        answer.response_mut().head_mut().set_connection_type(ConnectionType::Close);
    }
    Ok(answer)
}

async fn may(consensus: &Consensus, standing: &Standing, is_new: bool, access: Access) -> Result<(), Refused> {
    match (standing, access) {
        (Standing::Secret | Standing::Token(_), Access::Newcomers) => Ok(()),
        (Standing::Secret | Standing::Token(_), _) => Err(Refused::new(Reason::OnlyJoins, "")),
        (Standing::Node(_), Access::Newcomers | Access::Nodes) | (Standing::Node(None), _) => Ok(()),
        (Standing::Node(Some(_)), Access::Joining) if is_new => Ok(()),
        (Standing::Node(Some(node)), Access::Joining | Access::Members) => match is_member(consensus, *node).await {
            true => Ok(()),
            false => Err(Refused::new(Reason::NotAMember, format!("{node:012x}"))),
        },
    }
}

/// Whether a node is a member. Where this node does not know it, it may know less than all do.
pub(super) async fn is_member(consensus: &Consensus, node: NodeId) -> bool {
    let knows = || {
        let members = consensus.members();
        members.is_empty() || members.iter().any(|member| member.id == node)
    };
    knows() || (consensus.read_barrier().await.is_ok() && knows())
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn a_connection_outlives_its_authority_by_an_answer() -> anyhow::Result<()> {
        let (mut node, mut other) = super::super::tests::two_nodes()?;
        let caller = Caller::new(other.shows()?, &node.own.material()?);
        assert_eq!(caller.standing(&node.own.material()?), (Ok(Standing::Node(Some(2))), false));
        let mut changed = Material { generation: 7, ..node.own.material()? };
        changed.authorities = super::super::material::roots([]);
        assert_eq!(caller.standing(&changed), (Ok(Standing::Node(Some(2))), true));
        changed.since = SystemTime::now() - 2 * GRACE;
        assert_eq!(caller.standing(&changed), (Ok(Standing::Secret), false));
        // One that begins now never was a node.
        assert_eq!(Caller::new(other.shows()?, &changed).standing(&changed).0, Ok(Standing::Secret));
        Ok(())
    }

    #[test]
    fn what_is_not_named_is_for_members() {
        assert_eq!(access("/peer/v1/raft/identity"), Access::Newcomers);
        assert_eq!(access("/peer/v1/raft/recognise"), Access::Newcomers);
        assert_eq!(access(calls::SIGN), Access::Newcomers);
        assert_eq!(access("/peer/v1/raft/join"), Access::Joining);
        for path in ["append", "vote", "pre-vote", "transfer", "ping", "copy-begin", "copy-rows", "copy-end"] {
            assert_eq!(access(&format!("/peer/v1/raft/{path}")), Access::Nodes, "{path}");
        }
        for path in [
            "/peer/v1/raft/propose",
            "/peer/v1/raft/remove",
            "/peer/v1/raft/read-index",
            "/peer/v1/blobs/x",
            "/",
            "/peer/v1/raft/none",
            "/peer/v1/tls/authority",
        ] {
            assert_eq!(access(path), Access::Members, "{path}");
        }
    }
}
