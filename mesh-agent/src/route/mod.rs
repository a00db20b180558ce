//! Which rule a request meets, and what the rule does to it: pure functions over [`crate::model::route`].
//!
//! The http driver calls [`begin`] once per request and gets either an [`Answer`] of ours or a [`Forward`], which it
//! sends to an endpoint of [`Forward::target`]. Nothing here reads a clock, draws a number, remembers or decides on
//! permission: dice and the state of weights are arguments. Decision 0007 has the flow.

pub mod answer;
pub mod cors;
pub mod filter;
pub mod l4;
pub mod l7;
pub mod order;
pub mod path;
pub mod redirect;
pub mod retry;
#[cfg(test)]
mod tests;
pub mod weights;

use http::HeaderMap;
use http::header::{HOST, HeaderValue, ORIGIN};
use http::request::Parts;

pub use self::answer::{Answer, AnswerReason, POLICY_HEADER};
pub(crate) use self::redirect::host_of;
use crate::model::route::{Backend, Filter, PortRoutes, Rule, Scheme, ServiceRef, Target};

/// A request as matching sees it.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    /// Its method.
    pub method: &'a http::Method,
    /// Its path as sent, percent-encoding kept; `*` and the empty path are what they are.
    pub path: &'a str,
    /// Its query without the `?`.
    pub query: Option<&'a str>,
    /// `:authority`, else `Host`; empty when there is neither.
    pub authority: &'a str,
    /// Its headers.
    pub headers: &'a HeaderMap,
}

impl<'a> RequestView<'a> {
    /// The view of a request's head.
    #[must_use]
    pub fn of(parts: &'a Parts) -> Self {
        let host = || parts.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        Self {
            method: &parts.method,
            path: parts.uri.path(),
            query: parts.uri.query(),
            authority: parts.uri.authority().map_or_else(host, http::uri::Authority::as_str),
            headers: &parts.headers,
        }
    }
}

/// What the client dialled: its request says neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialled {
    /// The port of its connect.
    pub port: u16,
    /// The scheme it speaks.
    pub scheme: Scheme,
}

/// What becomes of a request.
#[derive(Debug)]
pub enum Step<'a> {
    /// It is answered here.
    Answer(Answer),
    /// It goes on.
    Forward(Forward<'a>),
}

/// A request on its way: what is still to be done to it and to its answer.
#[derive(Debug)]
pub struct Forward<'a> {
    /// The rule that it met: its name, timeouts and retries.
    pub rule: &'a Rule,
    /// The backend it was given to.
    pub backend: &'a Backend,
    /// Where the backend is. Without endpoints there, answer [`AnswerReason::NoEndpoints`].
    pub target: &'a ServiceRef,
    /// `Origin` of the request, for CORS.
    origin: Option<HeaderValue>,
}

/// Routes one request. `pick` chooses among the backends of a rule that has several, by their weights (see
/// [`weights::SmoothWeights`]); `None` from it, and a place that has no backend, are answered as
/// [`AnswerReason::NoBackend`].
pub fn begin<'a>(
    routes: &'a PortRoutes,
    request: &RequestView<'_>,
    dialled: Dialled,
    pick: impl FnOnce(&'a Rule) -> Option<usize>,
) -> Step<'a> {
    let Some(candidate) = l7::select(routes, request) else {
        let detail = format!("no rule of {} matches", routes.service);
        return Step::Answer(Answer::new(AnswerReason::NoRoute, request, &detail));
    };
    let rule = &*candidate.rule;
    if let Some(answer) = filter::answer(&rule.filters, request, dialled) {
        return Step::Answer(answer);
    }
    let Some(backend) = backend(rule, pick) else {
        return Step::Answer(Answer::new(AnswerReason::NoBackend, request, &format!("{} has no backend", rule.id)));
    };
    if let Some(answer) = filter::answer(&backend.filters, request, dialled) {
        return Step::Answer(answer);
    }
    match &backend.target {
        Target::Service(target) => {
            let origin = request.headers.get(ORIGIN).cloned();
            Step::Forward(Forward { rule, backend, target, origin })
        }
        Target::Invalid { message, .. } => {
            let detail = format!("{}: {message}", rule.id);
            Step::Answer(Answer::new(AnswerReason::InvalidBackend, request, &detail))
        }
    }
}

/// The backend whose turn it is; `pick` is asked only where there is a choice.
fn backend<'a>(rule: &'a Rule, pick: impl FnOnce(&'a Rule) -> Option<usize>) -> Option<&'a Backend> {
    match &rule.backends[..] {
        [only] if only.weight > 0 => Some(only),
        [] | [_] => None,
        several => pick(rule).and_then(|index| several.get(index)),
    }
}

impl<'a> Forward<'a> {
    /// The rule's filters, then the backend's.
    fn filters(&self) -> impl Iterator<Item = &'a Filter> + use<'a> {
        self.rule.filters.iter().chain(&self.backend.filters)
    }

    /// Applies the filters to the request's head, before every attempt anew to a fresh copy of it.
    ///
    /// # Errors
    /// The answer to give when the rewritten target is no URI.
    pub fn edit_request(&self, parts: &mut Parts) -> Result<(), Answer> {
        filter::edit_request(self.filters(), parts)
    }

    /// Applies the filters to the answer's headers.
    pub fn edit_response(&self, headers: &mut HeaderMap) {
        filter::edit_response(self.filters(), self.origin.as_ref(), headers);
    }

    /// Where copies of the request go. `dice(n)` draws from `0..n`. What cannot be reached is left out: nobody waits
    /// for a copy's answer.
    #[must_use]
    pub fn mirrors(&self, mut dice: impl FnMut(u32) -> u32) -> Vec<&'a ServiceRef> {
        let mirrors = self.filters().filter_map(|filter| match filter {
            Filter::Mirror(mirror) => Some(mirror),
            _ => None,
        });
        let drawn = mirrors.filter(|mirror| dice(mirror.denominator) < mirror.numerator);
        drawn
            .filter_map(|mirror| match &mirror.target {
                Target::Service(target) => Some(target),
                Target::Invalid { .. } => None,
            })
            .collect()
    }
}
