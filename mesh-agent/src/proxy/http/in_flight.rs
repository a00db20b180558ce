//! The requests of one connection that are not over, so that new rules are put to them too.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use http::request::Parts;

use crate::policy::{Denial, Flow, RequestFacts, authorize_request};
use crate::snapshot::Snapshot;

/// Requests by a number of their own.
#[derive(Debug, Default)]
pub(in crate::proxy) struct InFlight {
    requests: RefCell<Vec<(u64, Rc<Parts>)>>,
    next: Cell<u64>,
}

impl InFlight {
    /// Adds a request; it stays until the guard is dropped. To be called in the same turn as the decision about it:
    /// then no snapshot can slip in between unseen.
    pub(super) fn enter(self: &Rc<Self>, request: &Rc<Parts>) -> Guard {
        let number = self.next.get();
        self.next.set(number.wrapping_add(1));
        self.requests.borrow_mut().push((number, Rc::clone(request)));
        Guard { set: Rc::clone(self), number }
    }

    /// Decides each of them again.
    ///
    /// # Errors
    /// The first denial that now holds.
    pub(in crate::proxy) fn judge(&self, flow: &Flow, snapshot: &Snapshot) -> Result<(), Denial> {
        let requests = self.requests.borrow();
        requests.iter().try_for_each(|(_, request)| {
            authorize_request(flow, &RequestFacts::of(request), snapshot).map(|_permit| ())
        })
    }
}

/// Membership.
#[derive(Debug)]
pub(super) struct Guard {
    set: Rc<InFlight>,
    number: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.set.requests.borrow_mut().retain(|(number, _)| *number != self.number);
    }
}
