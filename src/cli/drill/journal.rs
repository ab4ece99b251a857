//! What happened when, told at once to whoever waits, and kept for the report. On a terminal there is a line below
//! that shows how the load goes; elsewhere there are plain lines only. All of it on standard error: standard output is
//! the report's.

use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;

use super::report::{Event, millis};

/// More than any scenario has; what comes after them is told and not kept.
const MAX_EVENTS: usize = 1_000;
const DRAW_EVERY: Duration = Duration::from_millis(200);

/// The clock of a drill and its events.
pub(super) struct Journal {
    began: Instant,
    events: Mutex<Vec<Event>>,
    bar: Option<ProgressBar>,
}

impl Journal {
    /// The drill begins now.
    pub(super) fn begin() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            bar.set_style(ProgressStyle::default_spinner());
            bar.enable_steady_tick(DRAW_EVERY);
            bar
        });
        Self { began: Instant::now(), events: Mutex::default(), bar }
    }

    /// The time since the drill began.
    pub(super) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Something has happened.
    pub(super) fn note(&self, what: impl Display) {
        let event = Event { at_ms: millis(self.now()), what: what.to_string() };
        self.tell(&event);
        let mut events = self.events.lock();
        if events.len() < MAX_EVENTS {
            events.push(event);
        }
    }

    /// Whether somebody sees [`Journal::show`].
    pub(super) fn has_display(&self) -> bool {
        self.bar.is_some()
    }

    /// Replaces the line that shows how it goes.
    pub(super) fn show(&self, line: String) {
        if let Some(bar) = &self.bar {
            bar.set_message(line);
        }
    }

    /// Takes that line away.
    pub(super) fn end_display(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Everything so far.
    pub(super) fn events(&self) -> Vec<Event> {
        self.events.lock().clone()
    }

    fn tell(&self, event: &Event) {
        let line = format!("{:7.2} s  {}", event.at_ms / 1_000.0, event.what);
        match &self.bar {
            Some(bar) => bar.println(line),
            // If nobody reads it, the drill goes on all the same.
            None => drop(writeln!(std::io::stderr(), "{line}")),
        }
    }
}
