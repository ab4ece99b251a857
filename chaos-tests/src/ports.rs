//! Ports of loopback for the processes of tests. One that was given out is given to nobody else as long as this process
//! lives, nor tried: a node that was killed wants its own again.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use anyhow::Context as _;
use rand::Rng as _;

/// Below those that the system gives to outgoing connections, which could hold one while its node is down.
const PORTS: Range<u16> = 12_000..31_000;

/// Attempts before it is said that there are none.
const TRIED_MAX: usize = 1_000;

/// How far above its first port a cluster of `flotilla dev` has those of its peers.
const PEERS_ABOVE: u16 = 1_000;

static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// So many ports on which nobody listens.
///
/// # Errors
/// There are not as many.
pub(crate) fn free(count: usize) -> anyhow::Result<Vec<u16>> {
    (0..count).map(|_| first_of(&[0])).collect()
}

/// The first of so many free ports in a row, where those that `flotilla dev` gives to the peers are free as well.
///
/// # Errors
/// There are none.
pub(crate) fn free_base(nodes: u16) -> anyhow::Result<u16> {
    let offsets: Vec<u16> = (0..nodes).flat_map(|offset| [offset, PEERS_ABOVE + offset]).collect();
    first_of(&offsets)
}

/// A port that is free, as are all at these distances above it.
fn first_of(offsets: &[u16]) -> anyhow::Result<u16> {
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..TRIED_MAX {
        let first = rand::rng().random_range(PORTS);
        let all: Vec<u16> = offsets.iter().map(|offset| first + offset).collect();
        let is_free = |port: &u16| !given.contains(port) && TcpListener::bind(("127.0.0.1", *port)).is_ok();
        if all.iter().all(is_free) {
            given.extend(all);
            return Ok(first);
        }
    }
    None.context("no free ports on 127.0.0.1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_given_out_twice() {
        let mut ports = free(20).expect("a machine with 20 free ports");
        let base = free_base(3).expect("a machine with six free ports");
        ports.extend([base, base + 1, base + 2, base + 1_000, base + 1_001, base + 1_002]);
        let different: BTreeSet<u16> = ports.iter().copied().collect();
        assert_eq!(different.len(), 26);
    }
}
