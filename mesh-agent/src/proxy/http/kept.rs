//! Connections towards applications that a client's connection keeps for its next requests: one for each endpoint and
//! version it has met, the one used longest ago closed first. They end with their client's connection; before that when
//! their endpoint leaves, and when nothing was sent on them for long.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::conn::{Connection, To};
use crate::snapshot::Snapshot;

/// Connections that one client's connection keeps: requests of one connection go to any endpoint of a Service, and a
/// Service rarely has more. One that has costs a new connection for some requests.
pub(super) const KEPT: usize = 64;

/// The connections of one client's connection, the one used last at the end.
#[derive(Default)]
pub(in crate::proxy) struct Kept {
    connections: RefCell<Vec<(Connection, Instant)>>,
    /// Connections for several requests at once that are being opened, and who waits for them.
    opening: RefCell<Vec<(To, Rc<Notify>)>>,
    member: Option<(Rc<KeptSet>, u64)>,
}

impl Kept {
    /// One whose connections are closed when their endpoints leave.
    pub(super) fn within(set: &Rc<KeptSet>) -> Rc<Self> {
        let id = set.next.get();
        set.next.set(id.wrapping_add(1));
        let member = Some((Rc::clone(set), id));
        let kept = Rc::new(Self { connections: RefCell::default(), opening: RefCell::default(), member });
        set.members.borrow_mut().insert(id, Rc::downgrade(&kept));
        kept
    }

    /// One that can carry a request now; an HTTP/2 connection stays for others.
    pub(super) fn take(&self, to: &To) -> Option<Connection> {
        let mut kept = self.connections.borrow_mut();
        kept.retain(|(connection, _)| !connection.is_closed());
        let at = kept.iter().position(|(connection, _)| connection.leads(to) && connection.can_send())?;
        let (connection, _) = kept.remove(at);
        if let Some(shared) = connection.share() {
            kept.push((connection, Instant::now()));
            return Some(shared);
        }
        Some(connection)
    }

    /// One that can carry a request now, else what `open` gives. Of several requests at once for a connection that
    /// carries many, one opens it and the others wait for it.
    pub(super) async fn take_or_open<E>(
        &self,
        to: &To,
        open: impl AsyncFnOnce() -> Result<Connection, E>,
    ) -> Result<Connection, E> {
        let under_way = self.opening.borrow().iter().find(|(other, _)| other == to).map(|(_, done)| Rc::clone(done));
        if let Some(done) = under_way {
            done.notified().await;
        }
        if let Some(kept) = self.take(to) {
            return Ok(kept);
        }
        if !to.h2 {
            return open().await;
        }
        let opening = Opening::begin(self, to);
        let opened = open().await?;
        let shared = opened.share();
        Ok(match shared {
            None => opened,
            Some(shared) => {
                self.keep(opened);
                drop(opening);
                shared
            }
        })
    }

    /// Keeps a connection for the next request. Its response may still be on the way.
    pub(super) fn keep(&self, connection: Connection) {
        let mut kept = self.connections.borrow_mut();
        let known = connection.is_shared() && kept.iter().any(|(one, _)| connection.is_like(one) && !one.is_closed());
        if known || connection.is_closed() {
            return;
        }
        if kept.len() >= KEPT {
            kept.remove(0);
        }
        kept.push((connection, Instant::now()));
    }

    fn retain(&self, stays: impl Fn(&To, Instant) -> bool) {
        // What they end with may look here: they are dropped after the borrow.
        let (kept, ended): (Vec<_>, Vec<_>) =
            self.connections.take().into_iter().partition(|(connection, used)| stays(connection.to(), *used));
        *self.connections.borrow_mut() = kept;
        drop(ended);
    }
}

/// A connection that is being opened; when this is dropped, whoever waits for it looks what has become of it.
struct Opening<'a> {
    of: &'a Kept,
    done: Rc<Notify>,
}

impl<'a> Opening<'a> {
    fn begin(of: &'a Kept, to: &To) -> Self {
        let done = Rc::new(Notify::new());
        of.opening.borrow_mut().push((to.clone(), Rc::clone(&done)));
        Self { of, done }
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.of.opening.borrow_mut().retain(|(_, done)| !Rc::ptr_eq(done, &self.done));
        self.done.notify_waiters();
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some((set, id)) = &self.member {
            set.members.borrow_mut().remove(id);
        }
    }
}

/// What the clients' connections of one worker keep.
#[derive(Default)]
pub(in crate::proxy) struct KeptSet {
    members: RefCell<HashMap<u64, Weak<Kept>>>,
    next: Cell<u64>,
}

impl KeptSet {
    /// Closes connections to pods that are gone or going, and those that nothing was sent on for `idle`. A request
    /// that is under way goes on to its end.
    pub(in crate::proxy) fn close_unused(&self, snapshot: &Snapshot, idle: Duration) {
        let now = Instant::now();
        let leaves = |to: &To| match &to.workload {
            Some(uid) => snapshot.workload(uid).is_none_or(|workload| workload.terminating),
            None => false,
        };
        let members: Vec<Rc<Kept>> = self.members.borrow().values().filter_map(Weak::upgrade).collect();
        for kept in members {
            kept.retain(|to, used| !leaves(to) && now.saturating_duration_since(used) < idle);
        }
    }
}
