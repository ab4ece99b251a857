//! Flotilla, a highly available OCI registry: the node and its command line in one binary.

mod cli;
mod cluster;
mod config;
mod http;
mod identity;
mod memory;
mod node;
mod oci;
mod replication;
mod request_id;

use std::process::ExitCode;

/// The C library's allocator keeps memory per thread: with as many threads as a node has, it holds twice what is used.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // One provider of cryptography for the whole process, chosen before anything can open a connection.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        eprintln!("flotilla: another cryptography provider is installed already");
        return ExitCode::FAILURE;
    }
    cli::run()
}
