//! Flotilla, a highly available OCI registry: the node and its command line. `main.rs` makes the one binary of it; no
//! other crate builds on this one.

mod admission;
mod auth;
mod body;
mod cli;
mod cluster;
mod config;
mod freshness;
mod http;
mod identity;
mod memory;
mod node;
mod oci;
mod pace;
#[cfg(any(fuzzing, test))]
pub mod properties;
mod readiness;
mod replication;
mod request;
mod request_id;
mod revision;
mod timestamp;

use std::process::ExitCode;

/// Runs the command line; the process ends with this.
pub fn run() -> ExitCode {
    // One provider of cryptography for the whole process, chosen before anything can open a connection.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        eprintln!("flotilla: another cryptography provider is installed already");
        return ExitCode::FAILURE;
    }
    cli::run()
}
