//! Stopping without losing anything that can still be finished.
//!
//! Whoever has work in flight holds a [`DrainWatch`]; the agent holds the [`Drain`]. Draining ends when the last
//! watch is dropped, so nobody has to count. It knows nothing of what the work is.

use std::time::Duration;

use tokio::sync::watch;

/// After the grace period: how long resetting what is left may take. Resets need one turn of each task.
const FORCE: Duration = Duration::from_secs(2);

/// Where a drain has got to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// No drain.
    Running,
    /// Take no new work; finish what is in flight.
    Draining,
    /// The grace period is over: end what is in flight now.
    Forced,
}

/// Starts a drain.
#[derive(Debug)]
pub struct Drain(watch::Sender<Phase>);

/// Held by work in flight; dropping it says that the work is done.
#[derive(Clone, Debug)]
pub struct DrainWatch(watch::Receiver<Phase>);

/// A drain and its first watch.
#[must_use]
pub fn channel() -> (Drain, DrainWatch) {
    let (sender, receiver) = watch::channel(Phase::Running);
    (Drain(sender), DrainWatch(receiver))
}

impl Drain {
    /// Another watch.
    #[must_use]
    pub fn watch(&self) -> DrainWatch {
        DrainWatch(self.0.subscribe())
    }

    /// Tells every watch to finish, waits up to `grace`, then tells them to end at once and waits two seconds
    /// more. Returns whether every watch was dropped in the end.
    pub async fn drain(self, grace: Duration) -> bool {
        self.0.send_replace(Phase::Draining);
        if tokio::time::timeout(grace, self.0.closed()).await.is_ok() {
            return true;
        }
        self.0.send_replace(Phase::Forced);
        tokio::time::timeout(FORCE, self.0.closed()).await.is_ok()
    }
}

impl DrainWatch {
    /// Where the drain has got to; an abandoned [`Drain`] counts as forced.
    #[must_use]
    pub fn phase(&self) -> Phase {
        if self.0.has_changed().is_err() { Phase::Forced } else { *self.0.borrow() }
    }

    /// Waits until the drain has reached `phase` (or the [`Drain`] was dropped without draining).
    pub async fn reached(&mut self, phase: Phase) {
        // An error means that the sender is gone: there is nothing left to wait for.
        let _ = self.0.wait_for(|now| *now >= phase).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_drain_ends_with_the_last_watch() {
        let (drain, mut watch) = channel();
        let second = drain.watch();
        let draining = tokio::spawn(drain.drain(Duration::from_secs(60)));
        watch.reached(Phase::Draining).await;
        assert_eq!(second.phase(), Phase::Draining);
        drop(watch);
        assert!(!draining.is_finished());
        drop(second);
        assert!(draining.await.unwrap());
    }

    #[tokio::test]
    async fn after_the_grace_period_watches_are_told_to_end_at_once() {
        let (drain, mut watch) = channel();
        let draining = tokio::spawn(drain.drain(Duration::from_millis(1)));
        watch.reached(Phase::Forced).await;
        drop(watch);
        assert!(draining.await.unwrap());
    }

    #[tokio::test]
    async fn an_abandoned_drain_counts_as_forced() {
        let (drain, mut watch) = channel();
        assert_eq!(watch.phase(), Phase::Running);
        drop(drain);
        watch.reached(Phase::Forced).await;
        assert_eq!(watch.phase(), Phase::Forced);
    }
}
