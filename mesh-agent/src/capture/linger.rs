//! Entries that outlive the last one that named them.

use std::time::{Duration, Instant};

/// How long: a program that has read the name must still find the entry. It is done within microseconds, or within a
/// scheduling delay.
const LINGER: Duration = Duration::from_secs(1);

/// Since when nothing names an entry.
#[derive(Default)]
pub(super) struct Unwanted(Option<Instant>);

impl Unwanted {
    /// Something names it.
    pub(super) fn wanted(&mut self) {
        self.0 = None;
    }

    /// When it may go.
    pub(super) fn due(&self) -> Option<Instant> {
        self.0.map(|since| since + LINGER)
    }

    /// Nothing names it; returns whether it may go.
    pub(super) fn may_go(&mut self, now: Instant) -> bool {
        now.duration_since(*self.0.get_or_insert(now)) >= LINGER
    }
}
