//! Accepts the peer port's connections. actix-web's own way keeps to itself why a handshake failed, and who calls in vain should
//! find the reason on both sides.

use std::io;
use std::net::SocketAddr;

use actix_service::{Service as _, ServiceFactory, ServiceFactoryExt as _, apply_fn_factory};
use actix_tls::accept::TlsError;
use actix_tls::accept::rustls_0_23::{Acceptor, AcceptorService, TlsStream};
use actix_web::rt::net::TcpStream;
use rustls::ServerConfig;

use super::PeerTls;
use super::refusals::{Reason, Refused};

/// A connection, and where it comes from.
type Accepted = (TlsStream<TcpStream>, Option<SocketAddr>);

/// The first step of a server: TLS. `E` is the error of the next one.
pub(crate) fn acceptor<E: 'static>(
    tls: &PeerTls,
    config: ServerConfig,
) -> impl ServiceFactory<TcpStream, Config = (), Response = Accepted, Error = TlsError<io::Error, E>, InitError = ()> + use<E>
{
    let tls = tls.clone();
    let accept = move |stream: TcpStream, acceptor: &AcceptorService| {
        let (tls, from, accepted) = (tls.clone(), stream.peer_addr().ok(), acceptor.call(stream));
        async move {
            let accepted = accepted.await.map(|stream| (stream, from));
            accepted.inspect_err(|error| tls.tell_of_failure(from, error))
        }
    };
    let accept = apply_fn_factory::<_, _, _, _, TcpStream, TcpStream, _, _>(Acceptor::new(config), accept);
    accept.map_init_err(|_| ()).map_err(TlsError::into_service_error)
}

impl PeerTls {
    fn tell_of_failure<E>(&self, from: Option<SocketAddr>, error: &TlsError<io::Error, E>) {
        let TlsError::Tls(error) = error else { return };
        let from = from.map_or_else(String::new, |from| from.ip().to_string());
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let refused = match inner {
            Some(rustls::Error::AlertReceived(alert)) => {
                Refused::new(Reason::CallerRefuses, format!("{alert:?}, {from}"))
            }
            Some(rustls::Error::InvalidMessage(_)) => Refused::new(Reason::NotTls, from),
            // Told where it was found.
            Some(rustls::Error::InvalidCertificate(_)) => return,
            _ => return tracing::debug!(%error, from, "a handshake on the peer port failed"),
        };
        self.inner.current.refusals.tell("a connection to the peer port failed", &refused);
    }
}
