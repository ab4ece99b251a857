//! HTTP tests against a real cluster of three nodes. Tests of a case from the field begin with its number.

mod any_node;
mod architecture;
mod clients;
mod cluster;
mod dev;
mod errors;
mod fixture;
mod oci_pull;
mod oci_push;
mod tags;
mod uploads;
