//! TCPRoute and TLSRoute: one rule, chosen by the port alone.
//!
//! `hostnames` of a TLSRoute has no effect on a Service parent (GEP-1294), so the two differ in their kind only.

use std::sync::Arc;

use super::AnswerReason;
use crate::model::route::{Backend, PortRoutes, Rule, ServiceRef, Target};

/// What becomes of a connection.
#[derive(Clone, Debug, PartialEq)]
pub enum L4Step<'a> {
    /// It goes to an endpoint of this service port.
    Forward(&'a Rule, &'a ServiceRef),
    /// It is reset.
    Refuse(AnswerReason, Arc<str>),
}

/// Chooses a backend. `pick` is as in [`super::begin`].
pub fn choose<'a>(routes: &'a PortRoutes, pick: impl FnOnce(&'a Rule) -> Option<usize>) -> L4Step<'a> {
    let Some(rule) = routes.candidates.first().map(|candidate| &*candidate.rule) else {
        return L4Step::Refuse(AnswerReason::NoRoute, "no rule".into());
    };
    match super::backend(rule, pick) {
        Some(Backend { target: Target::Service(target), .. }) => L4Step::Forward(rule, target),
        Some(Backend { target: Target::Invalid { message, .. }, .. }) => {
            L4Step::Refuse(AnswerReason::InvalidBackend, Arc::clone(message))
        }
        None => L4Step::Refuse(AnswerReason::NoBackend, format!("{} has no backend", rule.id).into()),
    }
}
