//! Proof: faults against real `flotilla serve` processes, and checks of what clients were promised.
//!
//! Sees only what clients and operators see. It **never** imports a crate of the product: shared
//! types would hide mistakes on the wire.
//!
//! Trace of a scenario: [`scenarios`] → [`cluster`] starts the nodes → [`workload`] pushes and
//! pulls through [`client`] and writes down every operation in [`history`] → [`nemesis`] does the
//! harm → [`checkers`] read the history.

#![warn(missing_docs)]

pub mod balancer;
pub mod checkers;
pub mod client;
pub mod cluster;
pub mod dev;
pub mod fixture;
pub mod history;
pub mod image;
pub mod kubernetes;
pub mod nemesis;
pub mod pods;
mod ports;
pub mod process;
pub mod raw;
pub mod scenarios;
pub mod tools;
pub mod wait;
pub mod webhooks;
pub mod workload;
