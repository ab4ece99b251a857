//! How rustls asks what is in use now: so certificates and authorities change without a restart, and without a new client.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flotilla_raft::network::{Dialer, Whom};
use parking_lot::RwLock;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    ClientSessionMemoryCache, ClientSessionStore, ResolvesClientCert, Resumption, Tls12ClientSessionValue,
    Tls13ClientSessionValue,
};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, ServerSessionMemoryCache, StoresServerSessions};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, NamedGroup, ServerConfig, SignatureScheme,
};

use super::material::{Material, Standing, provider};
use super::refusals::{Reason, Refusals, Refused};

/// A connection that was being made when something else came into use has its tickets by then.
const SETTLED_AFTER: Duration = Duration::from_secs(10);

/// Sessions that each side remembers.
const SESSIONS: usize = 1024;

/// What is in use, and what came of it.
#[derive(Debug)]
pub(crate) struct Current {
    material: RwLock<Arc<Material>>,
    pub(super) refusals: Refusals,
}

impl Current {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { material: RwLock::new(Arc::new(Material::nothing())), refusals: Refusals::default() })
    }

    /// What is in use now.
    pub(super) fn get(&self) -> Arc<Material> {
        self.material.read().clone()
    }

    /// Puts something else in use. Sessions that began before are not taken up again.
    pub(super) fn put(&self, mut material: Material) {
        let mut current = self.material.write();
        material.generation = current.generation + 1;
        *current = Arc::new(material);
    }

    /// Changes when sessions that began before may not be taken up again. Their tickets come a moment after a handshake,
    /// hence a second time a while later.
    fn epoch(&self) -> u64 {
        let material = self.material.read();
        let is_settled = material.since.elapsed().is_ok_and(|age| age > SETTLED_AFTER);
        2 * material.generation + u64::from(is_settled)
    }

    fn judge(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Standing, Refused> {
        let chain: Vec<CertificateDer<'_>> = [std::slice::from_ref(own), others].concat();
        self.get().judge(&chain, now)
    }
}

/// What the peer port does with TLS: 1.3 alone. Who shows no certificate gets in, to be told so by HTTP.
pub(super) fn server_config(current: &Arc<Current>) -> anyhow::Result<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])?;
    let mut config = builder
        .with_client_cert_verifier(Arc::new(Callers(current.clone())))
        .with_cert_resolver(Arc::new(Shown(current.clone())));
    config.session_storage =
        Arc::new(ServerSessions(Sessions::new(current, || ServerSessionMemoryCache::new(SESSIONS))));
    Ok(config)
}

/// Reaches other nodes by what is in use.
pub(super) fn dialer(current: &Arc<Current>) -> anyhow::Result<Dialer> {
    let (nodes, newcomers) = (client_config(current, Whom::Node)?, client_config(current, Whom::Newcomer)?);
    Ok(Dialer::tls(move |whom| {
        let config = match whom {
            Whom::Node => nodes.clone(),
            Whom::Newcomer => newcomers.clone(),
        };
        reqwest::Client::builder().tls_backend_preconfigured(config)
    }))
}

fn client_config(current: &Arc<Current>, whom: Whom) -> anyhow::Result<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])?;
    let mut config = builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Called { current: current.clone(), whom }))
        .with_client_cert_resolver(Arc::new(Shown(current.clone())));
    let sessions = ClientSessions(Sessions::new(current, || Arc::new(ClientSessionMemoryCache::new(SESSIONS))));
    config.resumption = Resumption::store(Arc::new(sessions));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Shows this node's certificate.
#[derive(Debug)]
struct Shown(Arc<Current>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.get().shown.clone()
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.get().shown.clone()
    }

    fn has_certs(&self) -> bool {
        self.0.get().shown.is_some()
    }
}

/// Judges who calls. What it may ask for is judged by HTTP (`admit`).
#[derive(Debug)]
struct Callers(Arc<Current>);

impl ClientCertVerifier for Callers {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A hint; nodes have one certificate anyway.
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self.0.judge(end_entity, intermediates, now) {
            Ok(_) => Ok(ClientCertVerified::assertion()),
            Err(refused) => {
                self.0.refusals.tell("a call to the peer port is refused", &refused);
                Err(Error::from(&refused))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signed, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signed, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Judges who is called. By which name it is reached says nothing: its certificate names node and cluster.
#[derive(Debug)]
struct Called {
    current: Arc<Current>,
    whom: Whom,
}

impl ServerCertVerifier for Called {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let judged =
            self.current.judge(end_entity, intermediates, now).and_then(|standing| match (standing, self.whom) {
                (Standing::Node(_), _) | (Standing::Secret, Whom::Newcomer) => Ok(()),
                // A token is for calls, not for being called.
                (Standing::Secret | Standing::Token(_), _) => Err(Refused::new(Reason::OnlyJoins, "")),
            });
        match judged {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(refused) => {
                let what = format!("the node at {} is refused", server_name.to_str());
                self.current.refusals.tell(&what, &refused);
                Err(Error::from(&refused))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signed, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signed, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Sessions that may be taken up again, as long as what they began with is in use: certificates are not checked again then.
struct Sessions<T: ?Sized> {
    current: Arc<Current>,
    epoch: AtomicU64,
    sessions: RwLock<Arc<T>>,
    make: fn() -> Arc<T>,
}

impl<T: ?Sized> Sessions<T> {
    fn new(current: &Arc<Current>, make: fn() -> Arc<T>) -> Self {
        let (epoch, sessions) = (AtomicU64::new(current.epoch()), RwLock::new(make()));
        Self { current: current.clone(), epoch, sessions, make }
    }

    fn get(&self) -> Arc<T> {
        let epoch = self.current.epoch();
        if self.epoch.swap(epoch, Ordering::Relaxed) != epoch {
            *self.sessions.write() = (self.make)();
        }
        self.sessions.read().clone()
    }
}

impl<T: ?Sized> fmt::Debug for Sessions<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Sessions")
    }
}

#[derive(Debug)]
struct ServerSessions(Sessions<ServerSessionMemoryCache>);

impl StoresServerSessions for ServerSessions {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        self.0.get().put(key, value)
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.0.get().get(key)
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.0.get().take(key)
    }

    fn can_cache(&self) -> bool {
        true
    }
}

#[derive(Debug)]
struct ClientSessions(Sessions<ClientSessionMemoryCache>);

impl ClientSessionStore for ClientSessions {
    fn set_kx_hint(&self, server_name: ServerName<'static>, group: NamedGroup) {
        self.0.get().set_kx_hint(server_name, group);
    }

    fn kx_hint(&self, server_name: &ServerName<'_>) -> Option<NamedGroup> {
        self.0.get().kx_hint(server_name)
    }

    // TLS 1.2 is not spoken.
    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, server_name: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.0.get().insert_tls13_ticket(server_name, value);
    }

    fn take_tls13_ticket(&self, server_name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.0.get().take_tls13_ticket(server_name)
    }
}
