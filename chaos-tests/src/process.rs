//! Child processes that end with the process that started them, and the signals sent to them.
//!
//! The only unsafe code of this crate: `prctl` in the forked child, `kill`, `atexit`.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::mpsc::{self, Sender};
use std::thread;

/// What may be done to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// `kill -9`: no chance to say goodbye.
    Kill,
    /// A request to end in order.
    Terminate,
    /// What Ctrl-C sends.
    Interrupt,
    /// Stands still, with its sockets open.
    Stop,
    /// Goes on after [`Signal::Stop`].
    Continue,
}

impl Signal {
    fn number(self) -> libc::c_int {
        match self {
            Self::Kill => libc::SIGKILL,
            Self::Terminate => libc::SIGTERM,
            Self::Interrupt => libc::SIGINT,
            Self::Stop => libc::SIGSTOP,
            Self::Continue => libc::SIGCONT,
        }
    }
}

type Order = (Command, Sender<io::Result<Child>>);

/// Starts a command that the kernel kills when this process ends, however it ends.
///
/// The kernel ties that promise to the *thread* that forked, and the threads of test harnesses and
/// runtimes come and go. So one thread, which lives as long as the process, does all the forking.
pub fn spawn(command: Command) -> io::Result<Child> {
    static FORKER: OnceLock<Sender<Order>> = OnceLock::new();
    let forker = FORKER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (command, answer) in inbox {
                // Whoever asked waits for the answer; if it is gone, the child dies with us.
                let _ = answer.send(spawn_here(command));
            }
        });
        orders
    });
    let (answer, answered) = mpsc::channel();
    forker.send((command, answer)).expect("the forking thread lives as long as its sender, a static");
    answered.recv().expect("the forking thread answers every order")
}

fn spawn_here(mut command: Command) -> io::Result<Child> {
    // SAFETY: between fork and exec the closure makes one system call, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0 {
                Ok(())
            } else {
                Err(io::Error::last_os_error())
            }
        });
    }
    command.spawn()
}

/// Sends the signal to a child that has not been waited for, so its id cannot be another's by now.
pub fn send(child: &mut Child, signal: Signal) -> io::Result<()> {
    if child.try_wait()?.is_some() {
        return Ok(());
    }
    let pid = libc::pid_t::try_from(child.id()).expect("a pid fits its own type");
    // SAFETY: plain system call; the pid is that of our own child, not yet reaped.
    if unsafe { libc::kill(pid, signal.number()) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Calls `action` when this process exits by `exit` or by the return of `main`.
pub fn at_exit(action: extern "C" fn()) {
    // SAFETY: a plain function pointer without captured state; failure means "never called".
    let refused = unsafe { libc::atexit(action) };
    debug_assert_eq!(refused, 0, "atexit keeps at least 32 actions");
}
