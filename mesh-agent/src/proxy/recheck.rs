//! Live connections and what still lets them live.
//!
//! Each worker keeps a set of its connections. With every new snapshot each one's standing is judged again; one
//! that no longer stands has its switch tripped, which its copy loop sees at the next wake-up: one load per
//! wake-up is all that this costs a connection.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;

use super::http::in_flight::InFlight;
use crate::model::outcome::Outcome;
use crate::model::workload::WorkloadUid;
use crate::policy::{Denial, NO_SUCH_WORKLOAD, Permit};
use crate::snapshot::Snapshot;
use crate::telemetry::record::Ending;

/// After how many connections the recheck lets others run: about 0.1 ms of work.
const TURN: usize = 128;

/// Ends a connection from outside. Tripped once; the first ending counts.
#[derive(Debug, Default)]
pub(super) struct Switch {
    ending: OnceCell<Ending>,
    waker: RefCell<Option<Waker>>,
}

impl Switch {
    pub(super) fn trip(&self, ending: Ending) {
        if self.ending.set(ending).is_ok()
            && let Some(waker) = self.waker.borrow_mut().take()
        {
            waker.wake();
        }
    }

    /// Ready with the ending once tripped. Remembers the waker of one task only.
    pub(super) fn poll(&self, cx: &Context<'_>) -> Poll<Ending> {
        if let Some(ending) = self.ending.get() {
            return Poll::Ready(ending.clone());
        }
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    pub(super) async fn tripped(&self) -> Ending {
        poll_fn(|cx| self.poll(cx)).await
    }
}

/// What a live connection's existence rests on.
#[derive(Debug)]
pub(super) enum Standing {
    /// Inbound: a policy decision.
    Permit(Permit),
    /// Inbound: the same, of a connection whose requests are read; and each request that is not over.
    Requests(Permit, Rc<InFlight>),
    /// Outbound: the destination is still a workload. `None` = outside the mesh, nothing to judge.
    Destination(Option<WorkloadUid>),
}

impl Standing {
    fn judge(&self, snapshot: &Snapshot) -> Result<(), Denial> {
        match self {
            Self::Permit(permit) => permit.recheck(snapshot).map(|_| ()),
            Self::Requests(permit, in_flight) => {
                permit.recheck(snapshot)?;
                in_flight.judge(permit.flow(), snapshot)
            }
            Self::Destination(Some(uid)) if snapshot.workload(uid).is_none() => Err(Denial {
                outcome: Outcome::Denied,
                rule: NO_SUCH_WORKLOAD.into(),
                reason: format!("the destination workload with uid {uid} is gone").into(),
            }),
            Self::Destination(_) => Ok(()),
        }
    }
}

#[derive(Debug)]
struct Entry {
    standing: RefCell<Standing>,
    switch: Switch,
}

/// The live connections of one worker.
#[derive(Debug, Default)]
pub(super) struct LiveSet {
    entries: RefCell<HashMap<u64, Rc<Entry>>>,
    next: Cell<u64>,
    emptied: Notify,
}

impl LiveSet {
    /// Adds a connection; it stays until the guard is dropped. To be called in the same turn as the decision
    /// that `standing` rests on: then no snapshot can slip in between unseen.
    pub(super) fn enter(self: &Rc<Self>, standing: Standing) -> Live {
        let id = self.next.get();
        self.next.set(id.wrapping_add(1));
        let entry = Rc::new(Entry { standing: RefCell::new(standing), switch: Switch::default() });
        self.entries.borrow_mut().insert(id, Rc::clone(&entry));
        Live { set: Rc::clone(self), id, entry }
    }

    /// Judges every connection under `snapshot` and ends those that no longer stand as [`Outcome::Revoked`].
    pub(super) async fn recheck(&self, snapshot: &Snapshot) {
        let entries: Vec<Rc<Entry>> = self.entries.borrow().values().map(Rc::clone).collect();
        for turn in entries.chunks(TURN) {
            for entry in turn {
                if let Err(denial) = entry.standing.borrow().judge(snapshot) {
                    entry.switch.trip(revoked(&denial));
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// Ends every connection.
    pub(super) fn trip_all(&self, ending: &Ending) {
        let entries: Vec<Rc<Entry>> = self.entries.borrow().values().map(Rc::clone).collect();
        for entry in entries {
            entry.switch.trip(ending.clone());
        }
    }

    /// Waits until there is none.
    pub(super) async fn empty(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.entries.borrow().is_empty() {
                return;
            }
            emptied.await;
        }
    }
}

fn revoked(denial: &Denial) -> Ending {
    Ending {
        outcome: Outcome::Revoked,
        rule: Some(Arc::clone(&denial.rule)),
        reason: format!("no longer permitted: {}", denial.reason),
    }
}

/// Membership in the set.
#[derive(Debug)]
pub(super) struct Live {
    set: Rc<LiveSet>,
    id: u64,
    entry: Rc<Entry>,
}

impl Live {
    /// What ends it from outside.
    pub(super) fn switch(&self) -> &Switch {
        &self.entry.switch
    }

    /// Rests it on something else from now on, e.g. once the endpoint is chosen.
    pub(super) fn stand_on(&self, standing: Standing) {
        *self.entry.standing.borrow_mut() = standing;
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let mut entries = self.set.entries.borrow_mut();
        entries.remove(&self.id);
        if entries.is_empty() {
            self.set.emptied.notify_waiters();
            // A burst's table is given back.
            entries.shrink_to(64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_to_a_workload_that_is_gone_is_revoked_and_the_others_live_on() {
        let set = Rc::new(LiveSet::default());
        let gone = set.enter(Standing::Destination(Some("uid-gone".into())));
        let outside = set.enter(Standing::Destination(None));
        set.recheck(&Snapshot::default()).await;
        let ending = gone.switch().tripped().await;
        assert_eq!(ending.outcome, Outcome::Revoked);
        assert_eq!(ending.rule.as_deref(), Some(NO_SUCH_WORKLOAD));
        assert!(outside.entry.switch.ending.get().is_none());
    }

    #[tokio::test]
    async fn the_set_is_empty_when_the_last_guard_is_dropped() {
        let set = Rc::new(LiveSet::default());
        let (first, second) = (set.enter(Standing::Destination(None)), set.enter(Standing::Destination(None)));
        let mut empty = std::pin::pin!(set.empty());
        drop(first);
        assert!(poll_fn(|cx| Poll::Ready(empty.as_mut().poll(cx).is_pending())).await);
        drop(second);
        empty.await;
        assert!(set.entries.borrow().is_empty());
    }

    #[tokio::test]
    async fn the_first_ending_counts() {
        let switch = Switch::default();
        switch.trip(Outcome::Revoked.into());
        switch.trip(Outcome::AgentDrained.into());
        assert_eq!(switch.tripped().await.outcome, Outcome::Revoked);
    }
}
