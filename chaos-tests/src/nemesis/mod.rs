//! One fault per file. A fault is done and, where it can be, undone; what it means is for scenarios to say.

mod kill_all;
mod pause;
mod stop;

pub use kill_all::kill_all;
pub use pause::Paused;
pub use stop::stop;
