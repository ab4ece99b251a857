//! The nodes of `flotilla dev` end when it ends, even if it is killed with no time to say goodbye.
//!
//! Linux does this for us: a child may ask for a signal at its parent's death. The request is the
//! child's own and lost when it ends, so a node that somebody else starts again by the same command
//! line does not depend on us. The "parent" is the thread that started the child, so that thread has
//! to be the one that lives as long as the supervisor: `flotilla dev` runs on its main thread only.

#![allow(unsafe_code)]

use rustix::io::Errno;
use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};
use tokio::process::Command;

/// Sends the child SIGTERM when the calling thread dies.
pub(super) fn follow(command: &mut Command) {
    let supervisor = getpid();
    let ask = move || {
        set_parent_process_death_signal(Some(Signal::TERM))?;
        // If the supervisor died before the request, nobody would ever send the signal.
        if getppid() != Some(supervisor) {
            return Err(Errno::SRCH.into());
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe work is allowed. The closure makes two
    // system calls, allocates nothing and takes no lock.
    unsafe { command.pre_exec(ask) };
}
