//! Which route and rule a request meets, or comes nearest to: what the http lane will ask, asked in advance.

use http::request::Parts;

use super::RequestQuestion;
use super::report::RouteReport;
use super::request::head;
use super::resolve::Found;
use crate::model::route::{Filter, PortRoutes, Rule, Scheme, Target};
use crate::route::{Answer, Dialled, Forward, RequestView, Step, begin, l7};
use crate::snapshot::Snapshot;

/// What routes make of a connection of `found`, and of `request` on it. `None`: nobody asked, and there are none.
pub(super) fn explain(
    snapshot: &Snapshot,
    found: &Found,
    request: Option<&RequestQuestion>,
) -> Result<Option<RouteReport>, String> {
    let namespace = found.source.as_ref().map_or("", |pod| &pod.namespace);
    let frontend = found.service.as_ref().filter(|service| !service.vips.is_empty());
    let routes = frontend.and_then(|service| snapshot.routes_for(service, namespace));
    let (Some(service), Some(routes)) = (frontend, routes) else {
        let why = match frontend {
            Some(service) => format!("no route is for {} and clients of {namespace}", service.display_name()),
            None => "routes are met at a Service's own address only".to_owned(),
        };
        return Ok(request.map(|_| RouteReport { rule: None, said: vec![why] }));
    };
    let mut report = RouteReport { rule: None, said: vec![scope(routes)] };
    if !routes.kind.is_l7() {
        let rule = routes.candidates.first().map(|candidate| &*candidate.rule);
        report.rule = rule.map(|rule| rule.id.to_string());
        report.said.extend(rule.iter().flat_map(|rule| backends(rule)));
    } else if let Some(request) = request {
        let head = head(request, &service.name)?;
        meet(routes, &head, service.port, &mut report);
    } else {
        report.said.push("name METHOD and PATH to see which rule a request meets".to_owned());
    }
    Ok(Some(report))
}

fn scope(routes: &PortRoutes) -> String {
    let clients = match &routes.consumer {
        Some(namespace) => format!("clients of {namespace}, by its own routes"),
        None => "everybody without routes of their own".to_owned(),
    };
    let (kind, matches) = (routes.kind.as_str(), routes.candidates.len());
    let plural = if matches == 1 { "" } else { "es" };
    format!("{} has {kind} with {matches} match{plural}, for {clients}", routes.service)
}

fn meet(routes: &PortRoutes, head: &Parts, port: u16, report: &mut RouteReport) {
    let view = RequestView::of(head);
    let Some(candidate) = l7::select(routes, &view) else {
        report.said.push("no rule matches: answered 404".to_owned());
        if let Some((nearest, miss)) = l7::nearest(routes, &view) {
            report.said.push(format!("nearest is {}: {}", nearest.rule.id, miss.describe(&view)));
        }
        return;
    };
    let rule = &*candidate.rule;
    report.rule = Some(rule.id.to_string());
    report.said.push(format!("by {}", l7::describe(&candidate.matching)));
    // Of several backends each may be the one: each is asked in its turn.
    let dialled = Dialled { port, scheme: Scheme::Http };
    let last = rule.backends.len().max(1);
    for index in 0..last {
        let is_drawn = rule.backends.get(index).is_none_or(|backend| backend.weight > 0);
        if !is_drawn && last > 1 {
            continue;
        }
        let share = share(rule, index);
        match begin(routes, &view, dialled, |_| Some(index)) {
            Step::Answer(answer) => report.said.push(format!("{}{share}", answered(&answer))),
            Step::Forward(forward) => report.said.push(format!("{}{share}", forwarded(&forward, head))),
        }
        if rule.filters.iter().any(|filter| matches!(filter, Filter::Redirect(_) | Filter::Unsupported(_))) {
            break;
        }
    }
    report.said.extend(limits(rule));
}

fn share(rule: &Rule, index: usize) -> String {
    let total: u64 = rule.backends.iter().map(|backend| u64::from(backend.weight)).sum();
    match rule.backends.get(index) {
        Some(backend) if rule.backends.len() > 1 && total > 0 => {
            format!(" ({:.1} %)", f64::from(backend.weight) * 100.0 / total as f64)
        }
        _ => String::new(),
    }
}

fn answered(answer: &Answer) -> String {
    format!("answered {} ({}): {}", answer.status.as_u16(), answer.reason.as_str(), answer.detail)
}

fn forwarded(forward: &Forward<'_>, head: &Parts) -> String {
    let mut edited = head.clone();
    match forward.edit_request(&mut edited) {
        Err(answer) => answered(&answer),
        Ok(()) if edited.uri != head.uri => format!("goes to {} as {}", forward.target, edited.uri),
        Ok(()) => format!("goes to {}", forward.target),
    }
}

fn backends(rule: &Rule) -> Vec<String> {
    let line = |(index, backend): (usize, &crate::model::route::Backend)| match &backend.target {
        Target::Service(target) => format!("goes to {target}{}", share(rule, index)),
        Target::Invalid { message, .. } => format!("refused: {message}{}", share(rule, index)),
    };
    rule.backends.iter().enumerate().map(line).collect()
}

fn limits(rule: &Rule) -> Vec<String> {
    let mut said = Vec::new();
    let timeouts = [("the whole request", rule.timeouts.request), ("each attempt", rule.timeouts.backend_request)];
    said.extend(timeouts.iter().filter_map(|(what, limit)| Some(format!("{what} may take {:?}", (*limit)?))));
    if let Some(retry) = &rule.retry {
        let codes: Vec<&str> = retry.codes.iter().map(http::StatusCode::as_str).collect();
        let after = if codes.is_empty() { String::new() } else { format!(" or after {}", codes.join(", ")) };
        said.push(format!("tried again up to {} times when the connection fails{after}", retry.attempts));
    }
    said
}
