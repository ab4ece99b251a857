//! Which source wins, and what is refused in which words.

use std::ffi::OsString;

use clap::{Args as _, FromArgMatches as _};

use super::*;

/// Loads a file (if not empty), an environment and flags.
fn load(file: &str, environment: &[(&str, &str)], flags: &[&str]) -> Result<Loaded, Refused> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("f.toml");
    std::fs::write(&path, file).expect("a file");
    let mut arguments = vec!["serve".to_owned()];
    if !file.is_empty() {
        arguments.push(format!("--config={}", path.display()));
    }
    arguments.extend(flags.iter().map(|flag| (*flag).to_owned()));
    let matches = Flags::augment_args(clap::Command::new("serve")).get_matches_from(arguments);
    let flags = Flags::from_arg_matches(&matches).expect("good flags");
    Loaded::load(&flags, environment.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))))
}

/// The refusal, with the folder of the file cut off.
fn refusal(file: &str, environment: &[(&str, &str)], flags: &[&str]) -> String {
    let refused = load(file, environment, flags).expect_err("should be refused").to_string();
    match (refused.find("(/"), refused.find("f.toml")) {
        (Some(start), Some(end)) => format!("{}({}", &refused[..start], &refused[end..]),
        _ => refused,
    }
}

#[test]
fn defaults_make_a_cluster_of_one() {
    let config = load("", &[], &[]).expect("good settings").config;
    assert_eq!(config.listen.to_string(), "0.0.0.0:5000");
    assert_eq!(config.advertise_url, "http://127.0.0.1:5000");
    assert_eq!(config.peer_advertise, "127.0.0.1:7000");
    assert_eq!((config.initial_cluster_size, config.replicas, config.min_copies), (1, 3, 2));
    assert_eq!((config.max_manifest_size, config.max_blob_size), (ByteSize::mib(4), ByteSize::gib(64)));
    assert_eq!(config.upload_ttl, Duration::from_secs(24 * 60 * 60));
    assert_eq!(config.raft.heartbeat, Duration::from_millis(100));
}

#[test]
fn each_source_wins_over_the_one_before() {
    let file = "name = 'file'\nreplicas = 1\nbody_timeout = '1s'\n[raft]\nkeep = 10\n";
    let environment = [("FLOTILLA_NAME", "variable"), ("FLOTILLA_BODY_TIMEOUT", "2s"), ("FLOTILLA_RAFT_KEEP", "20")];
    let loaded = load(file, &environment, &["--name=flag", "--raft-keep", "30"]).expect("good settings");
    let config = &loaded.config;
    assert_eq!((config.name.as_str(), config.replicas, config.raft.keep), ("flag", 1, 30));
    assert_eq!(config.body_timeout, Duration::from_secs(2));
    assert_eq!(loaded.origin("raft.keep").to_string(), "flag --raft-keep");
    assert_eq!(loaded.origin("body_timeout").to_string(), "environment variable FLOTILLA_BODY_TIMEOUT");
    assert!(loaded.origin("replicas").to_string().ends_with("f.toml, line 2"));
    assert_eq!(loaded.origin("listen"), Origin::Default);
    assert_eq!(loaded.origin("min_copies"), Origin::Default);
}

#[test]
fn peers_are_a_list_in_every_source() {
    let expected = ["a:1", "b:1", "c:1"];
    let address = "--peer-advertise=a:1";
    let file = load("peers = ['a:1', 'b:1', 'c:1']", &[], &[address]).expect("good settings").config;
    let variable = load("", &[("FLOTILLA_PEERS", "a:1,b:1,c:1")], &[address]).expect("good settings").config;
    let flags = load("", &[], &[address, "--peers=a:1,b:1", "--peers=c:1"]).expect("good settings").config;
    for config in [file, variable, flags] {
        assert_eq!(config.peers, expected);
        assert_eq!((config.initial_cluster_size, config.min_copies), (3, 2));
    }
    let none = load("peers = ['a:1']", &[("FLOTILLA_PEERS", "")], &[]).expect("good settings").config;
    assert!(none.peers.is_empty());
}

#[test]
fn an_unknown_name_is_refused_in_file_and_environment() {
    assert_eq!(
        refusal("\nlisten = '0.0.0.0:1'\nlisten_on = 1", &[], &[]),
        "listen_on (f.toml, line 3): no setting has this name; see `flotilla serve --help`"
    );
    assert_eq!(
        refusal("[raft]\n\nsnapshots = 1", &[], &[]),
        "raft.snapshots (f.toml, line 3): no setting has this name; see `flotilla serve --help`"
    );
    assert_eq!(refusal("[rafts]\nkeep = 1", &[], &[]), "rafts (f.toml, line 1): there is no such section");
    assert_eq!(
        refusal("", &[("FLOTILLA_PEER", "a:1")], &[]),
        "FLOTILLA_PEER (environment variable FLOTILLA_PEER): no setting has this name; see `flotilla serve --help`"
    );
}

#[test]
fn a_bad_value_is_refused_with_key_source_and_reason() {
    assert_eq!(
        refusal("[raft]\nheartbeat = 100", &[], &[]),
        "raft.heartbeat (f.toml, line 2): \"100\": time unit needed, for example 100sec or 100ms; expected a duration such as 60s"
    );
    assert_eq!(
        refusal("", &[("FLOTILLA_LOG_FORMAT", "xml")], &[]),
        "log_format (environment variable FLOTILLA_LOG_FORMAT): \"xml\": must be one of text, json"
    );
    assert_eq!(refusal("replicas = 0", &[], &[]), "replicas (f.toml, line 1): \"0\": 0 is not in 1..=7");
    assert_eq!(refusal("name = true", &[], &[]), "name (f.toml, line 1): boolean is no type for this setting");
    assert_eq!(refusal("name = ['a', 'b']", &[], &[]), "name (f.toml, line 1): array is no type for this setting");
    assert!(refusal("name = 'a", &[], &[]).starts_with("the configuration file (f.toml, line 1): is not TOML: "));
    assert!(refusal("peers = ['a']", &[], &[]).contains("\"a\" is not a host and a port"));
    assert!(refusal("listen = 'a'", &[], &[]).contains("invalid socket address syntax"));
    assert!(refusal("advertise_url = 'http://a/b'", &[], &[]).contains("nothing behind it"));
    assert!(refusal("max_blob_size = '4 apples'", &[], &[]).contains("expected a size such as 4MiB"));
    assert!(refusal("data_dir = ''", &[], &[]).ends_with("a value is missing"));
    assert!(refusal("log_level = 'trace'", &[], &[]).contains("off, error, warn, info, debug"));
    assert!(refusal("log_level = 'flotilla=loud'", &[], &[]).starts_with("log_level (f.toml, line 1): "));
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    assert_eq!(
        refusal("", &[], &["--min-copies=3", "--replicas=2"]),
        "min_copies (flag --min-copies): min_copies (3) is more than replicas (2)"
    );
    assert!(refusal("[raft]\nelection_min = '200ms'", &[], &[]).starts_with("raft.election_min (f.toml, line 2): "));
    assert!(refusal("[raft]\nelection_max = '500ms'", &[], &[]).starts_with("raft.election_max (f.toml, line 2): "));
    // The one that was given is named, not the default that it does not go with.
    assert!(refusal("", &[], &["--raft-heartbeat=2s"]).starts_with("raft.heartbeat (flag --raft-heartbeat): "));
    assert!(refusal("", &[], &["--initial-cluster-size=3"]).starts_with("initial_cluster_size (flag "));
    assert!(refusal("", &[], &["--peers=a:1,a:1", "--peer-advertise=a:1"]).ends_with("a:1 is listed twice"));
    assert!(refusal("", &[], &["--peer-listen=0.0.0.0:5000"]).starts_with("peer_listen (flag "));
}

#[test]
fn nodes_know_each_other_in_one_way() {
    assert!(load("insecure_peers = true", &[], &[]).expect("good settings").config.insecure_peers);
    assert!(load("", &[], &["--insecure-peers"]).expect("good settings").config.insecure_peers);
    assert!(
        !load("insecure_peers = true", &[("FLOTILLA_INSECURE_PEERS", "false")], &[])
            .expect("good")
            .config
            .insecure_peers
    );
    assert!(refusal("", &[], &["--insecure-peers", "--join-secret-file=s"]).contains("asks for no proof to join"));
    assert!(
        refusal("[peer_tls]\ncert = 'c'", &[], &[]).starts_with("peer_tls.cert (f.toml, line 2): set peer_tls.cert, ")
    );
    assert!(refusal("", &[], &["--join-secret-file=s", "--join-token-file=t"]).contains("not both"));
    let files = ["--peer-tls-cert=c", "--peer-tls-key=k", "--peer-tls-ca=a"];
    assert!(load("", &[], &files).expect("good settings").config.peer_tls.files().is_some());
    assert!(refusal("join_secret_file = 's'", &[], &files).contains("needs no other proof"));
}

#[test]
fn a_node_with_peers_elsewhere_must_say_where_it_is_itself() {
    assert!(refusal("", &[], &["--peers=a:7000,b:7000"]).starts_with("peer_advertise (default): must be set"));
    assert!(refusal("", &[], &["--peer-listen=127.0.0.1:0"]).starts_with("peer_advertise (default): must be set"));
    let local = load("", &[], &["--peers=127.0.0.1:7000,localhost:7001"]).expect("good settings").config;
    assert_eq!(local.peer_advertise, "127.0.0.1:7000");
    let bound = load("", &[], &["--peers=a:7000,b:7000", "--peer-listen=10.0.0.1:7000"]).expect("good settings").config;
    assert_eq!(bound.peer_advertise, "10.0.0.1:7000");
}

#[test]
fn variables_that_kubernetes_or_the_cli_set_are_no_settings() {
    let environment = [
        ("FLOTILLA_SERVICE_HOST", "10.0.0.1"),
        ("FLOTILLA_SERVICE_PORT_HTTP", "5000"),
        ("FLOTILLA_PORT", "tcp://10.0.0.1:5000"),
        ("FLOTILLA_PORT_5000_TCP_ADDR", "10.0.0.1"),
        ("FLOTILLA_URL", "http://a"),
        ("FLOTILLA_CONFIG", "f.toml"),
        ("FLOTILLA_BIN", "b"),
        ("FLOTILLA_KEEP", "1"),
    ];
    assert!(load("", &environment, &[]).is_ok());
}
