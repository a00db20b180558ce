//! Routes with Service parents → what is in force on each port, and what each route is told.
//!
//! Per parent: is it a Service that can have routes, and which of its ports are meant. Per Service port and scope:
//! which kind of route has it (GEP-1294), and in which order the matches of its routes are tried. Backends are
//! looked up by name; one that leads nowhere stays, as its share of errors.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::Found;
use crate::control::object::{Route, RouteRule, Service};
use crate::model::route::{
    Backend, Candidate, Condition, Filter, ParentRef, ParentStatus, PortRoutes, Reason, RouteKind, RouteStatus, Rule,
    ServiceRef, Target,
};
use crate::model::service::ServicePort;
use crate::route::order::{self, Ranked};
use crate::snapshot::Table;

/// A Service port, and whose clients: the key under which routes merge or exclude one another. `None`: everybody's.
type Place = (ServiceRef, Option<Arc<str>>);

/// What there is to refer to.
struct Referents<'a> {
    services: HashMap<(&'a str, &'a str), &'a Service>,
    ports: &'a Table<ServicePort>,
}

/// A route with what became of each of its parents.
struct Judged<'a> {
    route: &'a Route,
    /// The ports it is for, by parent, or why there are none.
    parents: Vec<Result<Vec<ServiceRef>, Condition>>,
    rules: Vec<RouteRule>,
    resolved: Condition,
}

/// Compiles `routes`; `ports` are the compiled ports of `services`.
pub(in crate::control) fn compile(
    routes: &[Found<Route>],
    services: &[Found<Service>],
    ports: &Table<ServicePort>,
) -> (Vec<Arc<PortRoutes>>, Vec<RouteStatus>) {
    if routes.is_empty() {
        return (Vec::new(), Vec::new());
    }
    let referents = Referents {
        services: services
            .iter()
            .map(|found| ((&*found.object.namespace, &*found.object.name), &*found.object))
            .collect(),
        ports,
    };
    let with_parents = routes.iter().map(|found| &*found.object).filter(|route| !route.parents.is_empty());
    let judged: Vec<Judged<'_>> = with_parents.map(|route| referents.judge(route)).collect();

    let mut kinds: BTreeMap<Place, RouteKind> = BTreeMap::new();
    for judged in &judged {
        for place in judged.places() {
            let kind = kinds.entry(place).or_insert(judged.route.name.kind);
            *kind = (*kind).min(judged.route.name.kind);
        }
    }
    let mut matches: BTreeMap<Place, Vec<Ranked>> = BTreeMap::new();
    for judged in &judged {
        let won: HashSet<Place> =
            judged.places().filter(|place| kinds.get(place) == Some(&judged.route.name.kind)).collect();
        for place in won {
            let ranked = judged.ranked(&place.0);
            matches.entry(place).or_default().extend(ranked);
        }
    }
    let in_force = matches.into_iter().filter_map(|((service, consumer), ranked)| {
        let kind = *kinds.get(&(service.clone(), consumer.clone()))?;
        Some(Arc::new(PortRoutes { service, consumer, kind, candidates: order::sorted(ranked) }))
    });
    let in_force = in_force.collect();
    let mut statuses: Vec<RouteStatus> = judged.iter().map(|judged| judged.status(&kinds)).collect();
    statuses.sort();
    (in_force, statuses)
}

impl Referents<'_> {
    fn judge<'a>(&self, route: &'a Route) -> Judged<'a> {
        let mut rules = route.rules.clone();
        let mut resolved = condition(true, Reason::ResolvedRefs, "");
        for RouteRule { rule, .. } in &mut rules {
            for target in targets(rule) {
                self.resolve(target);
                if let (Target::Invalid { reason, message }, true) = (&*target, resolved.holds) {
                    resolved = condition(false, *reason, message);
                }
            }
        }
        let parents = route.parents.iter().map(|parent| self.parent_ports(parent, route)).collect();
        Judged { route, parents, rules, resolved }
    }

    /// The ports of `parent` that `route` is for.
    fn parent_ports(&self, parent: &ParentRef, route: &Route) -> Result<Vec<ServiceRef>, Condition> {
        let refuse = |reason, message: String| Err(condition(false, reason, &message));
        let Some(service) = self.services.get(&(&*parent.namespace, &*parent.name)) else {
            return refuse(
                Reason::NoMatchingParent,
                format!("there is no Service {}/{}", parent.namespace, parent.name),
            );
        };
        if service.external_name {
            return refuse(Reason::UnsupportedValue, format!("{parent} is an ExternalName Service"));
        }
        if service.cluster_ips.is_empty() && service.outer_ips.is_empty() {
            return refuse(Reason::UnsupportedValue, format!("{parent} is headless: there is no address to match by"));
        }
        let meant = service.ports.iter().filter(|port| {
            parent.port.is_none_or(|wanted| wanted == port.port)
                && parent.section_name.as_ref().is_none_or(|wanted| *wanted == port.name)
        });
        let ports: Vec<ServiceRef> = meant
            .map(|port| ServiceRef {
                namespace: Arc::clone(&service.namespace),
                name: Arc::clone(&service.name),
                port: port.port,
            })
            .collect();
        if ports.is_empty() {
            let have: Vec<String> = service.ports.iter().map(|port| port.port.to_string()).collect();
            return refuse(Reason::NoMatchingParent, format!("{parent}: the Service has ports {}", have.join(", ")));
        }
        if route.rules.is_empty() {
            return refuse(Reason::UnsupportedValue, route.flaws.join("; "));
        }
        Ok(ports)
    }

    /// Makes a reference that leads nowhere an invalid one.
    fn resolve(&self, target: &mut Target) {
        let Target::Service(reference) = target else { return };
        if self.ports.get(reference).is_some() {
            return;
        }
        let (reason, message) = match self.services.get(&(&*reference.namespace, &*reference.name)) {
            None => {
                let name = format!("{}/{}", reference.namespace, reference.name);
                (Reason::BackendNotFound, format!("there is no Service {name}"))
            }
            Some(service) if service.external_name => {
                (Reason::InvalidKind, format!("{reference} is an ExternalName Service"))
            }
            Some(_) => (Reason::BackendNotFound, format!("there is no port {reference}")),
        };
        *target = Target::Invalid { reason, message: message.into() };
    }
}

/// Every reference of a rule.
fn targets(rule: &mut Rule) -> impl Iterator<Item = &mut Target> {
    fn mirror(filter: &mut Filter) -> Option<&mut Target> {
        match filter {
            Filter::Mirror(mirror) => Some(&mut mirror.target),
            _ => None,
        }
    }
    let of_backends = rule.backends.iter_mut().flat_map(|backend| {
        let Backend { target, filters, .. } = backend;
        std::iter::once(target).chain(filters.iter_mut().filter_map(mirror))
    });
    rule.filters.iter_mut().filter_map(mirror).chain(of_backends)
}

impl Judged<'_> {
    /// A route to a Service of its own namespace is the producer's, for everybody; one to another namespace's is for
    /// the clients of its own namespace.
    fn consumer(&self, service: &ServiceRef) -> Option<Arc<str>> {
        let own = &self.route.name.namespace;
        (*own != service.namespace).then(|| Arc::clone(own))
    }

    fn places(&self) -> impl Iterator<Item = Place> {
        let ports = self.parents.iter().flatten().flatten();
        ports.map(|service| (service.clone(), self.consumer(service)))
    }

    /// Its matches on one port. A rule without backends leads to the endpoints of the port itself.
    fn ranked(&self, service: &ServiceRef) -> Vec<Ranked> {
        let mut all = Vec::new();
        for RouteRule { matches, rule } in &self.rules {
            let mut rule = rule.clone();
            if rule.backends.is_empty() && !rule.filters.iter().any(|filter| matches!(filter, Filter::Redirect(_))) {
                let target = Target::Service(service.clone());
                rule.backends.push(Backend { target, weight: 1, filters: Vec::new() });
            }
            let rule = Arc::new(rule);
            for (index, matching) in matches.iter().enumerate() {
                let candidate = Candidate { matching: matching.clone(), rule: Arc::clone(&rule) };
                all.push(Ranked { candidate, created: self.route.created, index });
            }
        }
        all
    }

    fn status(&self, kinds: &BTreeMap<Place, RouteKind>) -> RouteStatus {
        let parents = self.route.parents.iter().zip(&self.parents);
        let parents = parents.map(|(parent, ports)| ParentStatus {
            parent: parent.clone(),
            accepted: self.accepted(ports, kinds),
            resolved_refs: self.resolved.clone(),
            partially_invalid: (!self.route.flaws.is_empty() && !self.rules.is_empty())
                .then(|| condition(true, Reason::UnsupportedValue, &self.route.flaws.join("; "))),
        });
        RouteStatus {
            route: self.route.name.clone(),
            observed_generation: self.route.generation,
            parents: parents.collect(),
        }
    }

    /// A route that loses one of several ports is accepted for the others, and says so.
    fn accepted(&self, ports: &Result<Vec<ServiceRef>, Condition>, kinds: &BTreeMap<Place, RouteKind>) -> Condition {
        let ports = match ports {
            Ok(ports) => ports,
            Err(refused) => return refused.clone(),
        };
        let lost: Vec<String> = ports
            .iter()
            .filter_map(|port| {
                let winner = kinds.get(&(port.clone(), self.consumer(port)))?;
                (*winner != self.route.name.kind).then(|| format!("{} has {port}", winner.as_str()))
            })
            .collect();
        let message = lost.join("; ");
        if lost.len() == ports.len() {
            return condition(false, Reason::Conflicted, &message);
        }
        condition(true, Reason::Accepted, &message)
    }
}

fn condition(holds: bool, reason: Reason, message: &str) -> Condition {
    Condition { holds, reason, message: message.into() }
}
