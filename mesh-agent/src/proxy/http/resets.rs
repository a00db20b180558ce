//! Requests that a client gives up before their answer. Each costs an endpoint a request and the client two frames: one
//! that does hardly anything else is cut off (rapid reset, CVE-2023-44487).

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// A request that was waited for longer than this was not given up early: its client has run out of patience.
const EARLY: Duration = Duration::from_secs(1);

/// The requests of one connection.
#[derive(Debug)]
pub(super) struct Resets {
    /// So many early resets are borne in any case.
    borne: u64,
    requests: Cell<u64>,
    early: Cell<u64>,
    exceeded: Notify,
}

impl Resets {
    pub(super) fn new(borne: u64) -> Self {
        Self { borne, requests: Cell::new(0), early: Cell::new(0), exceeded: Notify::new() }
    }

    /// A request came at `now`.
    pub(super) fn begin(self: &Rc<Self>, now: Instant) -> Asked {
        self.requests.set(self.requests.get().saturating_add(1));
        Asked { of: Rc::clone(self), since: now, answered: false }
    }

    /// Waits until the client is to be cut off.
    pub(super) async fn exceeded(&self) {
        self.exceeded.notified().await;
    }

    fn given_up(&self, waited: Duration) {
        if waited >= EARLY {
            return;
        }
        self.early.set(self.early.get().saturating_add(1));
        if self.is_exceeded() {
            self.exceeded.notify_one();
        }
    }

    /// More were given up early than are borne, and most of all that were asked.
    fn is_exceeded(&self) -> bool {
        let early = self.early.get();
        early > self.borne && early.saturating_mul(2) > self.requests.get()
    }
}

/// A request that has no answer yet; dropped before [`Self::answered`] it was given up.
#[derive(Debug)]
pub(super) struct Asked {
    of: Rc<Resets>,
    since: Instant,
    answered: bool,
}

impl Asked {
    pub(super) fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if !self.answered {
            self.of.given_up(self.since.elapsed());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resets(of: &Rc<Resets>, count: usize) {
        (0..count).for_each(|_| drop(of.begin(Instant::now())));
    }

    #[test]
    fn only_a_client_that_hardly_does_anything_else_is_cut_off() {
        let client = Rc::new(Resets::new(10));
        resets(&client, 10);
        assert!(!client.is_exceeded(), "ten are borne");
        (0..12).for_each(|_| client.begin(Instant::now()).answered());
        resets(&client, 1);
        assert!(!client.is_exceeded(), "most were answered");
        resets(&client, 2);
        assert!(client.is_exceeded());
    }

    #[test]
    fn patience_that_runs_out_is_no_attack() {
        let client = Rc::new(Resets::new(0));
        let long_ago = Instant::now().checked_sub(EARLY).expect("the machine runs for a second");
        drop(client.begin(long_ago));
        assert!(!client.is_exceeded());
        drop(client.begin(Instant::now()));
        assert!(!client.is_exceeded(), "one of two");
        drop(client.begin(Instant::now()));
        assert!(client.is_exceeded());
    }
}
