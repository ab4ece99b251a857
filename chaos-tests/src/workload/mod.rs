//! What clients do while faults happen, one workload per file. Every operation goes into the history.

mod pulls;
mod pushes;
mod tags;

pub use pulls::{Pulls, until_served, until_served_by};
pub use pushes::Pushes;
pub use tags::Tags;

use rand::SeedableRng;
use rand::rngs::StdRng;

/// A source of randomness that is the same for the same seed, workload and worker.
pub fn random(seed: u64, workload: u64, worker: u64) -> StdRng {
    StdRng::seed_from_u64(seed ^ (workload << 48) ^ (worker << 32))
}
