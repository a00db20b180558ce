//! Which of several matches goes first: the precedence of the Gateway API as a total order.

use std::cmp::{Ordering, Reverse};
use std::sync::Arc;

use crate::model::route::{Candidate, Match, PathMatch, Rule, TextMatch};

/// A match with all that its precedence depends on.
#[derive(Clone, Debug)]
pub struct Ranked {
    /// The match and its rule.
    pub candidate: Candidate,
    /// `metadata.creationTimestamp` in seconds since 1970; `None`, as in files, is younger than everything.
    pub created: Option<i64>,
    /// Its place in the rule's `matches`.
    pub index: usize,
}

/// Sorts matches of routes of one kind, the preferred one first, and drops what only the order needed.
#[must_use]
pub fn sorted(mut matches: Vec<Ranked>) -> Vec<Candidate> {
    matches.sort_by(precedence);
    matches.into_iter().map(|ranked| ranked.candidate).collect()
}

/// `Less`: `a` is preferred. Path (exact, pattern, longest prefix; for gRPC the longest service, then method), method,
/// number of headers, number of query parameters, oldest route, name, place of the rule, place of the match.
#[must_use]
pub fn precedence(a: &Ranked, b: &Ranked) -> Ordering {
    let specific = |ranked: &Ranked| Reverse(specificity(&ranked.candidate.matching));
    let created = |ranked: &Ranked| (ranked.created.is_none(), ranked.created);
    specific(a)
        .cmp(&specific(b))
        .then_with(|| created(a).cmp(&created(b)))
        .then_with(|| full_name(&a.candidate.rule).cmp(full_name(&b.candidate.rule)))
        .then_with(|| place(a).cmp(&place(b)))
}

/// `{namespace}/{name}`, compared as the text it would be.
fn full_name(rule: &Arc<Rule>) -> impl Iterator<Item = u8> {
    let route = &rule.id.route;
    route.namespace.bytes().chain([b'/']).chain(route.name.bytes())
}

fn place(ranked: &Ranked) -> (usize, usize) {
    (ranked.candidate.rule.id.index, ranked.index)
}

/// Grows with what is asked: kind and length of the path (twice for gRPC), method, headers, query parameters.
fn specificity(matching: &Match) -> ([usize; 3], bool, usize, usize) {
    let path = match &matching.path {
        PathMatch::Exact(_) => [2, 0, 0],
        PathMatch::Regex(pattern) => [1, pattern.as_str().len(), 0],
        PathMatch::Prefix(prefix) => [0, prefix.trim_end_matches('/').len(), 0],
        PathMatch::Grpc { service, method } => [0, length(service.as_ref()), length(method.as_ref())],
    };
    (path, matching.method.is_some(), matching.headers.len(), matching.query.len())
}

fn length(text: Option<&TextMatch>) -> usize {
    match text {
        None => 0,
        Some(TextMatch::Exact(text)) => text.len(),
        Some(TextMatch::Regex(pattern)) => pattern.as_str().len(),
    }
}
