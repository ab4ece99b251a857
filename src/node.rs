//! One node: builds storage → raft → services → HTTP, and stops them in the opposite order.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_http::HttpService;
use actix_service::{ServiceFactoryExt as _, map_config};
use actix_tls::accept::TlsError;
use actix_tls::accept::rustls_0_23::TlsStream;
use actix_web::dev::{AppConfig, Extensions};
use actix_web::middleware::from_fn;
use actix_web::rt::net::TcpStream;
use actix_web::{App, HttpServer, dev::ServerHandle, web};
use anyhow::Context as _;
use flotilla_raft::{Consensus, NodeId, NodeRecord, Options, PolicyName};
use flotilla_storage::{BlobStore, StorageError, durable_file, format, sync};
use tokio::signal::unix::{SignalKind, signal};
use uuid::Uuid;

use crate::admission::tls::Identity;
use crate::admission::{Admission, first_policies, webhook};
use crate::auth::peers::{self, PeerTls};
use crate::cluster::metrics::{Gauge, Register, Shown};
use crate::cluster::operator::shown;
use crate::cluster::{founding, peer};
use crate::config::{AdmissionConfig, Config};
use crate::oci::{Oci, uploads};
use crate::readiness::Readiness;
use crate::replication::Replication;
use crate::{http, identity, replication};

/// How long an idle connection is kept: longer than clients keep theirs, so that they close first.
const KEEP_ALIVE: Duration = Duration::from_secs(90);

/// Connections that wait to be accepted.
const BACKLOG: u32 = 4096;

/// How long a review that is being decided may keep a node from stopping.
const WEBHOOK_MAX: Duration = Duration::from_secs(5);

/// How long an address is waited for that another process has, and how often it is tried.
const IN_USE_MAX: Duration = Duration::from_secs(5);
const IN_USE_TRIED_EACH: Duration = Duration::from_millis(50);

/// How long a node that finds no majority after its start waits before it serves what it has.
const SERVE_ALONE_AFTER: Duration = Duration::from_secs(30);

/// Runs a node until it is told to stop.
///
/// # Errors
/// What cannot be opened or bound, or why the node had to stop by itself.
pub(crate) async fn run(config: Config) -> anyhow::Result<()> {
    let config = Arc::new(config);
    let clients = bind(config.listen, "listen").await?;
    let peers = bind(config.peer_listen, "peer_listen").await?;
    let (lock, node_id, cluster_id, blobs) = {
        let config = config.clone();
        tokio::task::spawn_blocking(move || open(&config)).await??
    };
    let (tls, first_policies) = {
        let config = config.admission.clone();
        tokio::task::spawn_blocking(move || admission_files(&config)).await??
    };
    tracing::info!(node_id = shown(node_id), name = config.name, version = env!("CARGO_PKG_VERSION"), data_dir = %config.data_dir.display(), "starting");
    tracing::warn!("there are no identities yet: whoever reaches this node may pull, push, delete and change policies");
    let peer_tls = {
        let config = config.clone();
        tokio::task::spawn_blocking(move || PeerTls::open(&config, node_id, cluster_id)).await??
    };
    let consensus = Consensus::start(options(&config, node_id, cluster_id), peer_tls.dialer()).await?;
    let replication = Replication::new(consensus.clone(), blobs, config.clone(), peer_tls.dialer())?;
    let readiness = Readiness::default();

    let (peer_server, peer_handle) = serve_peers(peers, &consensus, &replication, &readiness, &peer_tls)?;
    tokio::spawn(peer_server);
    let admission = web::Data::new(Admission::new(consensus.clone(), config.clone(), readiness.clone()));
    let (client_server, client_handle) =
        serve_clients(clients, &consensus, &replication, &readiness, &config, (&admission, tls.clone()), &peer_tls)?;
    tokio::spawn(client_server);
    let webhooks = match (config.admission.listen, tls) {
        (Some(listen), Some(tls)) => {
            let listener = bind(listen, "admission.listen").await?;
            tokio::spawn(tls.clone().follow());
            let (server, handle) = serve_webhooks(listener, &admission, tls.server_config())?;
            tokio::spawn(server);
            Some(handle)
        }
        _ => None,
    };
    match first_policies {
        Ok(None) => {}
        Ok(Some(policies)) => drop(tokio::spawn(first_policies::put(consensus.clone(), policies))),
        Err(problem) if consensus.is_empty() => return Err(problem),
        // Later starts need no such file, and the webhooks of a cluster that never had a policy deny.
        Err(problem) => tracing::error!(reason = format!("{problem:#}"), "the first policies cannot be read"),
    }
    let certificates = tokio::spawn(peer_tls.clone().follow(consensus.clone()));
    let background =
        tokio::spawn(start(consensus.clone(), replication.clone(), readiness.clone(), config.clone(), peer_tls));

    let ended = wait(&consensus).await;
    readiness.stop();
    background.abort();
    certificates.abort();
    replication.stop();
    stop(&consensus, &readiness, &client_handle, webhooks.as_ref(), &peer_handle, config.shutdown_timeout).await;
    drop(lock);
    ended
}

fn open(config: &Config) -> anyhow::Result<(durable_file::Lock, NodeId, Option<Uuid>, BlobStore)> {
    let dir = &config.data_dir;
    durable_file::create_dir_durably(dir)?;
    let lock = durable_file::lock_folder(dir)?;
    format::check_data_dir(dir)?;
    sync::self_test(dir)?;
    Ok((
        lock,
        identity::load_or_make(dir)?,
        identity::cluster_of(dir)?,
        BlobStore::open(dir, config.min_free.as_u64()).map_err(|problem: StorageError| anyhow::anyhow!(problem))?,
    ))
}

type FirstPolicies = anyhow::Result<Option<Vec<(PolicyName, String)>>>;

fn admission_files(config: &AdmissionConfig) -> anyhow::Result<(Option<Arc<Identity>>, FirstPolicies)> {
    let tls = config.tls().map(Identity::load).transpose()?;
    let policies = config.policies.as_deref().map(first_policies::read).transpose();
    Ok((tls.map(Arc::new), policies.context("admission.policies")))
}

fn options(config: &Config, node_id: NodeId, cluster_id: Option<Uuid>) -> Options {
    Options {
        data_dir: config.data_dir.clone(),
        node_id,
        record: NodeRecord {
            name: config.name.clone(),
            peer_address: config.peer_advertise.clone(),
            url: config.advertise_url.clone(),
        },
        peers: config.peers.clone(),
        cluster_id,
        snapshot_every: config.raft.snapshot_every,
        keep: config.raft.keep,
        heartbeat: config.raft.heartbeat,
        election_min: config.raft.election_min,
        election_max: config.raft.election_max,
        voters_max: config.raft.max_voters,
        replicas: config.replicas,
        min_copies: config.min_copies,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// Waits for an address that is in use: a process that was killed has it until the last of its threads has ended, and one that
/// syncs takes its time.
async fn bind(address: SocketAddr, option: &str) -> anyhow::Result<TcpListener> {
    let began = Instant::now();
    loop {
        match TcpListener::bind(address) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && began.elapsed() < IN_USE_MAX => {
                tokio::time::sleep(IN_USE_TRIED_EACH).await;
            }
            bound => return bound.with_context(|| format!("cannot listen on {address} (option `{option}`)")),
        }
    }
}

type Server = actix_web::dev::Server;

/// A connection to the peer port.
type Connection = TlsStream<TcpStream>;

fn serve_peers(
    listener: TcpListener,
    consensus: &Consensus,
    replication: &Replication,
    readiness: &Readiness,
    tls: &PeerTls,
) -> anyhow::Result<(Server, ServerHandle)> {
    let (consensus, replication) = (web::Data::new(consensus.clone()), web::Data::new(replication.clone()));
    let (shared, readiness) = (web::Data::new(tls.clone()), web::Data::new(readiness.clone()));
    let app = move || {
        App::new()
            .wrap(from_fn(peers::admit))
            .wrap(from_fn(http::keep_body))
            .app_data(shared.clone())
            .app_data(readiness.clone())
            .app_data(consensus.clone())
            .app_data(replication.clone())
            .configure(peer::configure)
            .configure(replication::configure_peer)
            .configure(uploads::configure_peer)
            .configure(peers::configure)
    };
    let server = match tls.server_config()? {
        Some(config) => {
            let tls = tls.clone();
            let service = move || {
                let callers = tls.clone();
                let http = HttpService::build()
                    .keep_alive(KEEP_ALIVE)
                    .tcp_nodelay(true)
                    .on_connect_ext(move |connection: &Connection, data: &mut Extensions| {
                        peers::remember_caller(&callers, connection, data);
                    })
                    .h1(map_config(app(), |()| AppConfig::default()));
                peers::acceptor(&tls, config.clone()).and_then(http.map_err(TlsError::Service))
            };
            let server = actix_server::Server::build().workers(workers()).disable_signals();
            server.listen("peers", listener, service)?.run()
        }
        None => {
            let server = HttpServer::new(app).workers(workers()).keep_alive(KEEP_ALIVE).tcp_nodelay(true);
            server.disable_signals().listen(listener)?.run()
        }
    };
    let handle = server.handle();
    Ok((server, handle))
}

fn serve_clients(
    listener: TcpListener,
    consensus: &Consensus,
    replication: &Replication,
    readiness: &Readiness,
    config: &Arc<Config>,
    (admission, tls): (&web::Data<Admission>, Option<Arc<Identity>>),
    peer_tls: &PeerTls,
) -> anyhow::Result<(Server, ServerHandle)> {
    let oci = Oci::new(consensus.clone(), replication.clone(), config.clone(), readiness.stopping());
    let mut gauges = gauges(replication, &oci);
    gauges.extend(tls.map(|tls| Gauge {
        name: "admission_certificate_ends_timestamp_seconds",
        help: "When the webhooks' certificate ends, in seconds since the Unix epoch",
        read: Box::new(move || tls.ends_at()),
    }));
    let (ends, refused, peer_tls) = (peer_tls.clone(), peer_tls.clone(), web::Data::new(peer_tls.clone()));
    gauges.push(Gauge {
        name: "peer_certificate_ends_timestamp_seconds",
        help: "When this node's certificate for the other nodes ends, in seconds since the Unix epoch; 0 without one",
        read: Box::new(move || ends.ends_at()),
    });
    let (counted, scrubbing) = (admission.metrics.clone(), replication.clone());
    let more: Vec<Register> = vec![
        Box::new(move |registry| counted.register(registry)),
        Box::new(move |registry| refused.register(registry)),
        Box::new(move |registry| scrubbing.scrub().register(registry)),
    ];
    let shown = web::Data::new(Shown { gauges, more });
    let oci = web::Data::new(oci);
    let admission = admission.clone();
    let (consensus, readiness) = (web::Data::new(consensus.clone()), web::Data::new(readiness.clone()));
    let app = move || {
        http::app(oci.clone(), consensus.clone(), readiness.clone(), shown.clone(), admission.clone(), peer_tls.clone())
    };
    let server = HttpServer::new(app)
        .workers(workers())
        .backlog(BACKLOG)
        .keep_alive(KEEP_ALIVE)
        .client_request_timeout(config.body_timeout)
        .tcp_nodelay(true)
        .disable_signals()
        .listen(listener)?
        .run();
    let handle = server.handle();
    Ok((server, handle))
}

fn serve_webhooks(
    listener: TcpListener,
    admission: &web::Data<Admission>,
    tls: rustls::ServerConfig,
) -> anyhow::Result<(Server, ServerHandle)> {
    let admission = admission.clone();
    let server = HttpServer::new(move || App::new().app_data(admission.clone()).configure(webhook::configure))
        .workers(workers())
        .backlog(BACKLOG)
        .keep_alive(KEEP_ALIVE)
        .tcp_nodelay(true)
        .disable_signals()
        .shutdown_timeout(WEBHOOK_MAX.as_secs())
        .listen_rustls_0_23(listener, tls)?
        .run();
    let handle = server.handle();
    Ok((server, handle))
}

/// What the page of metrics shows beside the Raft group's figures.
fn gauges(replication: &Replication, oci: &Oci) -> Vec<Gauge> {
    let (sessions, copies, staging) = (replication.clone(), replication.clone(), replication.clone());
    let disk = replication.clone();
    let feed = oci.feed();
    vec![
        Gauge {
            name: "upload_sessions",
            help: "Upload sessions open on this node",
            read: Box::new(move || sessions.open_uploads().0 as u64),
        },
        Gauge {
            name: "upload_copies",
            help: "Copies that this node takes of other nodes' upload sessions",
            read: Box::new(move || copies.open_uploads().1 as u64),
        },
        Gauge {
            name: "staging_bytes",
            help: "Bytes of unfinished uploads on this node's disk",
            read: Box::new(move || staging.staging_bytes()),
        },
        Gauge {
            name: "disk_free_bytes",
            help: "What is free on the disk of the data folder",
            read: Box::new(move || disk.free_bytes()),
        },
        Gauge {
            name: "watchers",
            help: "Clients that watch changes at this node",
            read: Box::new(move || feed.watchers() as u64),
        },
    ]
}

fn workers() -> usize {
    std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2))
}

/// What happens once the ports are open: find the cluster, catch up, become ready.
async fn start(
    consensus: Consensus,
    replication: Replication,
    readiness: Readiness,
    config: Arc<Config>,
    peer_tls: PeerTls,
) {
    founding::join_or_found(&consensus, &config, &peer_tls).await;
    founding::name_cluster(&consensus, &peer_tls).await;
    let (registry, dir) = (consensus.registry().clone(), config.data_dir.clone());
    let kept = tokio::task::spawn_blocking(move || match registry.cluster_id()? {
        Some(cluster_id) => identity::keep_cluster(&dir, cluster_id),
        None => Ok(()),
    });
    if let Err(problem) = kept.await.map_err(anyhow::Error::from).and_then(|kept| kept) {
        tracing::error!(reason = format!("{problem:#}"), "the cluster's id cannot be written down");
    }
    replication.start();
    {
        let (consensus, config) = (consensus.clone(), config.clone());
        tokio::spawn(async move { founding::take_seat(&consensus, &config).await });
    }
    let began = Instant::now();
    loop {
        if consensus.read_barrier().await.is_ok() {
            readiness.caught_up();
            break;
        }
        // While a majority answers, however long it takes to catch up with it, others serve what is newer.
        if began.elapsed().min(consensus.quorum_lost_for()) > SERVE_ALONE_AFTER {
            tracing::warn!("no majority of the nodes answers: serving what this node has");
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    readiness.started();
    tracing::info!(log_index = consensus.applied_index(), "ready");
}

/// Waits for a signal, or for the node to stop by itself.
async fn wait(consensus: &Consensus) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        reason = consensus.stopped() => Err(anyhow::anyhow!("the node cannot go on: {reason}")),
    }
}

/// Leadership first, so that the others go on; then the requests in flight; then the ports; then storage.
async fn stop(
    consensus: &Consensus,
    readiness: &Readiness,
    clients: &ServerHandle,
    webhooks: Option<&ServerHandle>,
    peers: &ServerHandle,
    limit: Duration,
) {
    tracing::info!("stopping");
    consensus.hand_over().await;
    // New connections go on being accepted, to hear that this node is not ready: else they would hang until the end.
    let began = Instant::now();
    while readiness.in_flight() > 0 && began.elapsed() < limit {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    if readiness.in_flight() > 0 {
        tracing::warn!(requests = readiness.in_flight(), "requests are cut off: the time to finish them is over");
    }
    clients.stop(false).await;
    if let Some(webhooks) = webhooks {
        // Each call has its own, short deadline.
        webhooks.stop(true).await;
    }
    consensus.shutdown().await;
    peers.stop(false).await;
    tracing::info!("stopped");
}
