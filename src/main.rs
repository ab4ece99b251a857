//! Flotilla, a highly available OCI registry.
mod config;
mod node;

fn main() {}
