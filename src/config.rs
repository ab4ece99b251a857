//! The node's configuration: one typed [`Config`], fully checked before anything starts.
//!
//! A setting can be given in four places; the later one wins: its default, the TOML file, a
//! `FLOTILLA_…` environment variable, a command line flag. Each setting is declared once, as a field
//! below: the doc comment is what `--help` shows, and every source is parsed by the field's own
//! parser, because values from the file and the environment are turned into flags first
//! ([`sources`]). The `config` crate was not used for this: it forgets the line a value came from.

mod sources;
#[cfg(test)]
mod tests;
mod values;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::builder::RangedU64ValueParser;
use clap::{Args as _, FromArgMatches as _};
use flotilla_raft::WEIGHT_MAX;
use serde::Serialize;

pub(crate) use sources::{Flags, Origin, Refused};

/// More voters than this only make every write slower.
const MAX_VOTERS: u64 = 7;

/// The settings of one node, checked.
#[derive(Clone, Debug, PartialEq, clap::Args, Serialize)]
pub(crate) struct Config {
    /// This node's name, as operators see it; letters, digits, '-', '_' and '.'; default: the host's
    /// name
    #[arg(long, value_name = "NAME", value_parser = values::node_name)]
    pub(crate) name: String,

    /// Address and port on which clients are served
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:5000")]
    pub(crate) listen: SocketAddr,

    /// Address and port on which the other nodes are served
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:7000")]
    pub(crate) peer_listen: SocketAddr,

    /// URL under which clients reach this node; default: http:// and `listen`, or 127.0.0.1 if that
    /// is every address
    #[arg(long, value_name = "URL", value_parser = values::base_url)]
    pub(crate) advertise_url: String,

    /// Host and port under which the other nodes reach this one; default: `peer_listen`, or
    /// 127.0.0.1 if that is every address and all peers are on this machine
    #[arg(long, value_name = "HOST:PORT", value_parser = values::host_and_port)]
    pub(crate) peer_advertise: String,

    /// Folder of everything this node stores; made if it is missing
    #[arg(long, value_name = "DIR", default_value = "data")]
    pub(crate) data_dir: PathBuf,

    /// Host and port of each node with which to form or join the cluster, this one included,
    /// separated by commas; default: none, a cluster of one
    #[arg(long, value_name = "HOST:PORT,…", value_delimiter = ',', value_parser = values::host_and_port)]
    pub(crate) peers: Vec<String>,

    /// File of the secret by which the initial nodes know each other and others may join, 32 bytes or more
    #[arg(long, value_name = "FILE")]
    pub(crate) join_secret_file: Option<PathBuf>,

    /// File of a token by which this node may join a cluster, as `flotilla node token create` prints it
    #[arg(long, value_name = "FILE")]
    pub(crate) join_token_file: Option<PathBuf>,

    /// Leave the peer port open, without TLS: whoever reaches it can read and change everything
    #[arg(long, value_name = "BOOLEAN", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(default_value = "false", action = clap::ArgAction::Set)]
    pub(crate) insecure_peers: bool,

    /// How many nodes form a new cluster, 1 to 7; without effect once it exists; default: the
    /// number of peers
    #[arg(long, value_name = "NODES", value_parser = voters())]
    pub(crate) initial_cluster_size: usize,

    /// Copies of each blob, 1 to 7; never more than there are nodes
    #[arg(long, value_name = "COPIES", default_value = "3", value_parser = voters())]
    pub(crate) replicas: usize,

    /// Copies that must be durable before an upload is acknowledged, never more than there are nodes;
    /// default: a majority of `replicas`
    #[arg(long, value_name = "COPIES", value_parser = voters())]
    pub(crate) min_copies: usize,

    /// What fails together with this node, such as eu-1a: copies of a blob lie in zones apart; default: nothing
    #[arg(long, value_name = "NAME", default_value = "", value_parser = values::zone)]
    pub(crate) zone: String,

    /// How much of the blobs this node takes beside the others, 1 to 100
    #[arg(long, value_name = "WEIGHT", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=i64::from(WEIGHT_MAX)))]
    pub(crate) weight: u32,

    /// How fast this node fetches blobs that it should have and lacks, in bytes a second; 1MiB or more
    #[arg(long, value_name = "SIZE", default_value = "100MiB", value_parser = values::rate)]
    #[serde(serialize_with = "values::write_size")]
    pub(crate) repair_rate: ByteSize,

    /// Within which time all files are compared with their digests, again and again
    #[arg(long, value_name = "DURATION", default_value = "30days", value_parser = values::duration)]
    #[serde(serialize_with = "values::write_duration")]
    pub(crate) scrub_period: Duration,

    /// Free space of the disk that is kept for the log: with less than that nothing more may be pushed here
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = values::size)]
    #[serde(serialize_with = "values::write_size")]
    pub(crate) min_free: ByteSize,

    /// Largest manifest accepted, 16MiB at most (it is held in memory)
    #[arg(long, value_name = "SIZE", default_value = "4MiB", value_parser = values::size)]
    #[serde(serialize_with = "values::write_size")]
    pub(crate) max_manifest_size: ByteSize,

    /// Largest blob accepted
    #[arg(long, value_name = "SIZE", default_value = "64GiB", value_parser = values::size)]
    #[serde(serialize_with = "values::write_size")]
    pub(crate) max_blob_size: ByteSize,

    /// Upload sessions open on this node at a time
    #[arg(long, value_name = "UPLOADS", default_value = "10000", value_parser = at_least_one())]
    pub(crate) max_uploads: usize,

    /// How long an upload session may lie idle before it is dropped
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = values::duration)]
    #[serde(serialize_with = "values::write_duration")]
    pub(crate) upload_ttl: Duration,

    /// How long a request's body may pause before the connection is closed; beyond that it must come at 1 KiB a second
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = values::duration)]
    #[serde(serialize_with = "values::write_duration")]
    pub(crate) body_timeout: Duration,

    /// How long running requests may take to finish once the node is told to stop
    #[arg(long, value_name = "DURATION", default_value = "20s", value_parser = values::duration)]
    #[serde(serialize_with = "values::write_duration")]
    pub(crate) shutdown_timeout: Duration,

    /// Web pages that may call this node from a browser, as origins (https://registry.example)
    /// separated by commas, or * for all; default: none
    #[arg(long, value_name = "ORIGIN,…", value_delimiter = ',', value_parser = values::origin)]
    pub(crate) cors_origins: Vec<String>,

    /// What to log: error, warn, info or debug, or a filter such as info,flotilla_raft=debug; info,flotilla::access=info logs each request
    #[arg(long, value_name = "FILTER", default_value = "info", value_parser = values::log_filter)]
    pub(crate) log_level: String,

    /// Form of the log on standard error
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,

    /// Certificates of the peer port.
    #[command(flatten)]
    pub(crate) peer_tls: PeerTlsConfig,

    /// Which images may run in a Kubernetes cluster.
    #[command(flatten)]
    pub(crate) admission: AdmissionConfig,

    /// How the nodes agree.
    #[command(flatten)]
    pub(crate) raft: RaftConfig,
}

/// By which certificates the nodes know each other: those of the cluster's own authority, unless files are named.
#[derive(Clone, Debug, PartialEq, clap::Args, Serialize)]
pub(crate) struct PeerTlsConfig {
    /// Certificates of this node for the peer port (PEM), its own first, good for servers and clients; read again when it
    /// changes; default: the cluster makes its own
    #[arg(id = "peer_tls.cert", long = "peer-tls-cert", value_name = "FILE")]
    pub(crate) cert: Option<PathBuf>,

    /// The certificate's private key (PEM); read again when it changes
    #[arg(id = "peer_tls.key", long = "peer-tls-key", value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,

    /// Authorities (PEM) for nodes alone: whoever has a certificate of one of them is a node; read again when it changes
    #[arg(id = "peer_tls.ca", long = "peer-tls-ca", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,

    /// How long certificates are good that this node signs; they are renewed after two thirds of that
    #[arg(id = "peer_tls.lifetime", long = "peer-tls-lifetime", value_name = "DURATION")]
    #[arg(default_value = "90days", value_parser = values::lifetime)]
    #[serde(serialize_with = "values::write_duration")]
    pub(crate) lifetime: Duration,
}

/// Files by which a node shows who it is, and knows the others.
#[derive(Clone, Debug)]
pub(crate) struct PeerFiles {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) ca: PathBuf,
}

impl PeerTlsConfig {
    /// The operator's files; `None` where the cluster makes its own certificates.
    pub(crate) fn files(&self) -> Option<PeerFiles> {
        Some(PeerFiles { cert: self.cert.clone()?, key: self.key.clone()?, ca: self.ca.clone()? })
    }
}

/// The webhooks of this node.
#[derive(Clone, Debug, PartialEq, clap::Args, Serialize)]
pub(crate) struct AdmissionConfig {
    /// Address and port on which the API server of a Kubernetes cluster is served, by TLS; default: none, no webhooks
    #[arg(id = "admission.listen", long = "admission-listen", value_name = "IP:PORT")]
    pub(crate) listen: Option<SocketAddr>,

    /// Certificates of the webhooks (PEM), the node's own first; read again when it changes
    #[arg(id = "admission.tls_cert", long = "admission-tls-cert", value_name = "FILE")]
    pub(crate) tls_cert: Option<PathBuf>,

    /// The certificate's private key (PEM); read again when it changes
    #[arg(id = "admission.tls_key", long = "admission-tls-key", value_name = "FILE")]
    pub(crate) tls_key: Option<PathBuf>,

    /// Authorities (PEM) one of which must have signed the certificate of who calls; default: anyone may call
    #[arg(id = "admission.client_ca", long = "admission-client-ca", value_name = "FILE")]
    pub(crate) client_ca: Option<PathBuf>,

    /// Policies to begin with, a file or a folder of files: put when the cluster has never had one; until they are in
    /// force the webhooks deny
    #[arg(id = "admission.policies", long = "admission-policies", value_name = "PATH")]
    pub(crate) policies: Option<PathBuf>,

    /// What is decided while no majority of the nodes answers: by what this node has, or no to everything
    #[arg(id = "admission.without_quorum", long = "admission-without-quorum", value_name = "ANSWER")]
    #[arg(default_value = "local")]
    pub(crate) without_quorum: WithoutQuorum,

    /// How long this node decides by what it has while no majority answers; default: for ever
    #[arg(id = "admission.max_staleness", long = "admission-max-staleness", value_name = "DURATION")]
    #[arg(value_parser = values::duration)]
    #[serde(serialize_with = "values::write_optional_duration")]
    pub(crate) max_staleness: Option<Duration>,
}

/// What the webhooks decide while no majority of the nodes answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum WithoutQuorum {
    /// By what this node has, and say so.
    Local,
    /// No.
    Deny,
}

/// The files by which the webhooks speak TLS.
#[derive(Clone, Debug)]
pub(crate) struct AdmissionTls {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) client_ca: Option<PathBuf>,
}

impl AdmissionConfig {
    /// The files of the webhooks; `None` where there are no webhooks.
    pub(crate) fn tls(&self) -> Option<AdmissionTls> {
        let (_, cert, key) = (self.listen?, self.tls_cert.clone()?, self.tls_key.clone()?);
        Some(AdmissionTls { cert, key, client_ca: self.client_ca.clone() })
    }
}

/// How the nodes agree; all nodes of a cluster should have the same values.
#[derive(Clone, Debug, PartialEq, clap::Args, Serialize)]
pub(crate) struct RaftConfig {
    /// Log entries after which a snapshot is taken
    #[arg(id = "raft.snapshot_every", long = "raft-snapshot-every", value_name = "ENTRIES")]
    #[arg(default_value = "20000", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) snapshot_every: u64,

    /// Log entries kept behind a snapshot, for nodes that were away for a short time
    #[arg(id = "raft.keep", long = "raft-keep", value_name = "ENTRIES", default_value = "5000")]
    pub(crate) keep: u64,

    /// The most nodes that vote, an odd number; further ones are learners, which serve everything but have no vote
    #[arg(id = "raft.max_voters", long = "raft-max-voters", value_name = "NODES", default_value = "5")]
    #[arg(value_parser = values::odd_voters)]
    pub(crate) max_voters: usize,

    /// Time between two heartbeats of the leader
    #[arg(id = "raft.heartbeat", long = "raft-heartbeat", value_name = "DURATION")]
    #[arg(default_value = "100ms", value_parser = values::duration)]
    #[serde(serialize_with = "values::write_duration")]
    pub(crate) heartbeat: Duration,

    /// Shortest time without a leader before a node stands for election
    #[arg(id = "raft.election_min", long = "raft-election-min", value_name = "DURATION")]
    #[arg(default_value = "500ms", value_parser = values::duration)]
    #[serde(serialize_with = "values::write_duration")]
    pub(crate) election_min: Duration,

    /// Longest time without a leader before a node stands for election
    #[arg(id = "raft.election_max", long = "raft-election-max", value_name = "DURATION")]
    #[arg(default_value = "900ms", value_parser = values::duration)]
    #[serde(serialize_with = "values::write_duration")]
    pub(crate) election_max: Duration,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

fn voters() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=MAX_VOTERS)
}

fn at_least_one() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=1_000_000)
}

/// A configuration and where each of its values came from.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// The settings in effect.
    pub(crate) config: Config,
    origins: BTreeMap<String, Origin>,
}

impl Loaded {
    /// Merges defaults, file, environment and flags, and checks the result.
    pub(crate) fn load(
        flags: &Flags,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, Refused> {
        let mut given = sources::merge(flags, environment)?;
        let explicit = sources::parse(&given);
        for (key, value) in computed_defaults(&explicit, &given)? {
            given.insert(key.to_owned(), value, Origin::Default);
        }
        let config =
            Config::from_arg_matches(&sources::parse(&given)).expect("each value was checked when it was read");
        let loaded = Self { config, origins: given.origins() };
        match loaded.config.contradiction() {
            // The setting that somebody gave is the one to look at, not the default beside it.
            Some((keys, reason)) => {
                let given = keys.iter().find(|key| loaded.origin(key) != Origin::Default);
                let key = given.or(keys.first()).copied().unwrap_or_default();
                Err(Refused::new(key, loaded.origin(key), reason))
            }
            None => Ok(loaded),
        }
    }

    /// Where the value of `key` (`raft.heartbeat`) came from.
    pub(crate) fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::Default)
    }
}

/// The defaults that follow from other settings, for each setting that nobody gave.
fn computed_defaults(
    explicit: &clap::ArgMatches,
    given: &sources::Given,
) -> Result<Vec<(&'static str, String)>, Refused> {
    let address = |key| *explicit.get_one::<SocketAddr>(key).expect("has a default");
    let count = |key| explicit.get_one::<usize>(key).copied();
    let peers: Vec<&String> = explicit.get_many("peers").map(Iterator::collect).unwrap_or_default();

    let size = count("initial_cluster_size").unwrap_or(peers.len().max(1));
    if size as u64 > MAX_VOTERS {
        let reason = format!(
            "{size} peers are more than the {MAX_VOTERS} that may form a cluster: list fewer, the others can join later"
        );
        return Err(Refused::new("peers", given.origin("peers"), reason));
    }
    let copies = count("replicas").expect("has a default");
    let mut defaults = vec![
        ("advertise_url", format!("http://{}", values::reachable(address("listen")))),
        ("initial_cluster_size", size.to_string()),
        ("min_copies", (copies / 2 + 1).to_string()),
    ];
    if !given.has("name") {
        defaults.push(("name", host_name()?));
    }
    if !given.has("peer_advertise") {
        let address = address("peer_listen");
        // Telling other machines to find this one at 127.0.0.1 would show as a cluster that never forms.
        if address.ip().is_unspecified() && !peers.iter().all(|peer| values::is_loopback(peer)) {
            let reason = "must be set, because peer_listen is every address and the peers are on other machines: \
                          give the host and port under which they reach this node";
            return Err(Refused::new("peer_advertise", Origin::Default, reason));
        }
        if address.port() == 0 {
            let reason = "must be set, because peer_listen leaves the port to the system: give the host and port under \
                          which other nodes reach this one";
            return Err(Refused::new("peer_advertise", Origin::Default, reason));
        }
        defaults.push(("peer_advertise", values::reachable(address).to_string()));
    }
    defaults.retain(|(key, _)| !given.has(key));
    Ok(defaults)
}

fn host_name() -> Result<String, Refused> {
    let uname = rustix::system::uname();
    values::node_name(&uname.nodename().to_string_lossy()).map_err(|reason| {
        Refused::new("name", Origin::Default, format!("the host's name cannot be used, set one: {reason}"))
    })
}

impl Config {
    /// Each value is good by itself when this runs; here are the pairs that do not go together.
    fn contradiction(&self) -> Option<(&'static [&'static str], String)> {
        let raft = &self.raft;
        if self.min_copies > self.replicas {
            let reason = format!("min_copies ({}) is more than replicas ({})", self.min_copies, self.replicas);
            return Some((&["min_copies", "replicas"], reason));
        }
        // Encoded, what a manifest says of itself takes up to twice as much, and 64 MiB fit into a message.
        if self.max_manifest_size > ByteSize::mib(16) {
            return Some((&["max_manifest_size"], "is more than 16MiB".to_owned()));
        }
        if self.initial_cluster_size > self.peers.len() + 1 {
            let reason = format!(
                "{} nodes cannot be found with {} peers: list all of them",
                self.initial_cluster_size,
                self.peers.len()
            );
            return Some((&["initial_cluster_size", "peers"], reason));
        }
        if let Some(twice) =
            self.peers.iter().enumerate().find_map(|(i, peer)| self.peers[..i].iter().find(|p| *p == peer))
        {
            return Some((&["peers"], format!("{twice} is listed twice")));
        }
        if self.listen == self.peer_listen && self.listen.port() != 0 {
            let reason = format!("{} is the address of listen and of peer_listen", self.listen);
            return Some((&["peer_listen", "listen"], reason));
        }
        if let Some(reason) = self.peers_contradict() {
            return Some((
                &["insecure_peers", "peer_tls.cert", "peer_tls.key", "peer_tls.ca", "join_token_file"],
                reason,
            ));
        }
        let admission = &self.admission;
        if let Some(webhooks) = admission.listen.filter(|webhooks| webhooks.port() != 0)
            && (webhooks == self.listen || webhooks == self.peer_listen)
        {
            let reason = format!("{webhooks} is the address of another port of this node");
            return Some((&["admission.listen", "listen", "peer_listen"], reason));
        }
        let tls = [&admission.tls_cert, &admission.tls_key, &admission.client_ca];
        if admission.listen.is_none() && tls.into_iter().any(Option::is_some) {
            let reason = "webhooks are served only where admission.listen says at which address".to_owned();
            return Some((&["admission.tls_cert", "admission.tls_key", "admission.client_ca"], reason));
        }
        if admission.listen.is_some() && (admission.tls_cert.is_none() || admission.tls_key.is_none()) {
            let reason =
                "the API server calls webhooks by TLS alone: set admission.tls_cert and admission.tls_key".to_owned();
            return Some((&["admission.listen"], reason));
        }
        if raft.election_min < raft.heartbeat * 3 {
            let reason = "raft.election_min must be at least three times raft.heartbeat, or one heartbeat that is late \
                          starts an election";
            return Some((&["raft.election_min", "raft.heartbeat"], reason.to_owned()));
        }
        // Both count in whole milliseconds.
        if raft.election_max.as_millis() <= raft.election_min.as_millis() {
            let reason = "raft.election_max must be more than raft.election_min, or nodes stand at the same time";
            return Some((&["raft.election_max", "raft.election_min"], reason.to_owned()));
        }
        None
    }

    /// Nodes know each other in one way.
    fn peers_contradict(&self) -> Option<String> {
        let files = &self.peer_tls;
        let named = [&files.cert, &files.key, &files.ca].into_iter().flatten().count();
        let joins = self.join_secret_file.is_some() || self.join_token_file.is_some();
        match (self.insecure_peers, named) {
            (true, 1..) => Some("an open peer port (insecure_peers) shows no certificates (peer_tls)".to_owned()),
            (true, 0) if joins => Some("an open peer port (insecure_peers) asks for no proof to join".to_owned()),
            (false, 1 | 2) => Some("set peer_tls.cert, peer_tls.key and peer_tls.ca, or none of them".to_owned()),
            (false, 3) if joins => Some("who has certificates (peer_tls) needs no other proof to join".to_owned()),
            _ if self.join_secret_file.is_some() && self.join_token_file.is_some() => {
                Some("set join_secret_file or join_token_file, not both".to_owned())
            }
            _ => None,
        }
    }

    /// The keys of all settings, in their order: `name`, …, `raft.election_max`.
    pub(crate) fn keys() -> Vec<String> {
        let command = Config::augment_args(clap::Command::new("keys"));
        command.get_arguments().map(|argument| argument.get_id().to_string()).collect()
    }
}
