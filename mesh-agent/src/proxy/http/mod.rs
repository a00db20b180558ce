//! The http lane: requests of a connection, one by one.
//!
//! `outbound` is the driver at the client's node (route, balance, try again), `inbound` the one at the server's
//! (authorize each request). Both give hyper a connection of ours to read and write (`io`), and both send requests
//! on through `conn`. What a request meets is decided in [`crate::route`] and [`crate::policy`]; decision 0007 has
//! the flow.

mod attempt;
mod body;
mod conn;
pub(super) mod downstream;
mod framing;
mod hop;
pub(super) mod in_flight;
pub(super) mod inbound;
mod io;
pub(super) mod kept;
mod mirror;
pub(super) mod outbound;
pub(super) mod prefixed;
#[cfg(test)]
mod properties;
pub(super) mod protocol;
mod record;
mod replay;
mod reply;
mod resets;
pub(super) mod settings;
pub(super) mod taken;

use std::future::Future;

/// Runs what hyper wants run beside a connection on the connection's own worker.
#[derive(Clone, Copy, Debug)]
struct LocalExec;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExec
where
    F::Output: 'static,
{
    fn execute(&self, task: F) {
        tokio::task::spawn_local(task);
    }
}
