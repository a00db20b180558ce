//! `TrafficPolicy` objects → the service ports that they are for.
//!
//! One that names a port goes before one for the whole Service, and of equals the first by name: a Direct policy
//! (GEP-713) is not merged with others.

use std::collections::HashMap;
use std::sync::Arc;

use super::Found;
use crate::control::object::{TrafficPolicy, TrafficTarget};
use crate::model::problem::{Effect, Problem};
use crate::model::service::ServicePort;

/// Puts each policy to the ports it is for, and names those that have no effect.
pub(super) fn attach(policies: &[Found<TrafficPolicy>], ports: &mut [Arc<ServicePort>], problems: &mut Vec<Problem>) {
    if policies.is_empty() {
        return;
    }
    let mut by_service: HashMap<(Arc<str>, Arc<str>), Vec<usize>> = HashMap::new();
    for (at, port) in ports.iter().enumerate() {
        let name = (Arc::clone(&port.namespace), Arc::clone(&port.name));
        by_service.entry(name).or_default().push(at);
    }
    let mut claims: Vec<(&Found<TrafficPolicy>, &TrafficTarget)> =
        policies.iter().flat_map(|found| found.object.targets.iter().map(move |target| (found, target))).collect();
    claims.sort_by(|(one, a), (other, b)| {
        (a.port.is_none(), &one.object.name).cmp(&(b.port.is_none(), &other.object.name))
    });
    let mut owners: HashMap<usize, &TrafficPolicy> = HashMap::new();
    for (found, target) in claims {
        let policy = &*found.object;
        let name = (Arc::clone(&policy.namespace), Arc::clone(&target.service));
        let mut any = false;
        for at in by_service.get(&name).into_iter().flatten() {
            let Some(port) = ports.get_mut(*at) else { continue };
            if target.port.as_ref().is_some_and(|wanted| *wanted != port.port_name) {
                continue;
            }
            any = true;
            match owners.get(at) {
                None => {
                    Arc::make_mut(port).traffic = Some(Arc::clone(&policy.traffic));
                    owners.insert(*at, policy);
                }
                // What is for one port leaves the others to what is for all.
                Some(owner) if target.port.is_none() && owner.names(port) => {}
                Some(owner) => {
                    let reason = format!("{} has TrafficPolicy {} already", port.display_name(), owner.name);
                    problems.push(found.problem(title(policy), &target.field, reason, Effect::Partly));
                }
            }
        }
        if !any {
            let port = target.port.as_ref().map_or(String::new(), |port| format!(" with a TCP port named `{port}`"));
            let reason = format!("there is no Service {}/{}{port}", policy.namespace, target.service);
            problems.push(found.problem(title(policy), &target.field, reason, Effect::Partly));
        }
    }
}

fn title(policy: &TrafficPolicy) -> String {
    format!("TrafficPolicy {}/{}", policy.namespace, policy.name)
}

impl TrafficPolicy {
    /// Whether it is for this port by name.
    fn names(&self, port: &ServicePort) -> bool {
        self.targets.iter().any(|target| target.service == port.name && target.port.as_ref() == Some(&port.port_name))
    }
}
