//! HTTP tests against a real cluster of three nodes. Tests of a case from the field begin with its number.

mod admission;
mod any_node;
mod architecture;
mod changes;
mod clients;
mod cluster;
mod conformance;
mod dev;
mod drill;
mod errors;
mod fixture;
mod full_disk;
mod garbage;
mod kubernetes;
mod kustomize;
mod members;
mod oci_client;
mod oci_pull;
mod oci_push;
mod peers_tls;
mod placement;
mod probes;
mod referrers;
mod scrub;
mod tags;
mod uploads;
