//! Which endpoints of a service port may be used by a client: kube-proxy's rules, as a pure function.
//!
//! Follows `CategorizeEndpoints` of Kubernetes' `pkg/proxy/topology.go`, and like kube-proxy looks at one address
//! family at a time. <https://kubernetes.io/docs/reference/networking/virtual-ips/>

use super::Client;
use crate::model::service::{Endpoint, ServicePort};

/// The endpoints of `service` that `client` may use, in the order of the service.
///
/// Ready ones, narrowed by topology hints; with `internalTrafficPolicy: Local` those of the client's node and no
/// others. When none is ready, those that terminate but still serve.
#[must_use]
pub fn eligible<'a>(service: &'a ServicePort, client: &Client) -> Vec<&'a Endpoint> {
    let reachable = |endpoint: &&Endpoint| {
        let same_family = endpoint.addr.ip().is_ipv4() == client.ip.to_canonical().is_ipv4();
        same_family && (!service.local_only || is_local(endpoint, client))
    };
    let all: Vec<&Endpoint> = service.endpoints.iter().filter(reachable).collect();
    let ready: Vec<&Endpoint> = all.iter().copied().filter(|endpoint| endpoint.ready).collect();
    if ready.is_empty() {
        return all.into_iter().filter(|endpoint| endpoint.serving && endpoint.terminating).collect();
    }
    if service.local_only { ready } else { follow_hints(ready, client) }
}

fn is_local(endpoint: &Endpoint, client: &Client) -> bool {
    !client.node.is_empty() && endpoint.node == client.node
}

/// Hints are followed only when every ready endpoint has one and some endpoint is meant for this client; otherwise
/// a half-written set of hints would send everything to few endpoints, or nowhere. Node hints go before zones.
fn follow_hints<'a>(ready: Vec<&'a Endpoint>, client: &Client) -> Vec<&'a Endpoint> {
    let for_node = |endpoint: &&Endpoint| endpoint.nodes.contains(&client.node);
    if ready.iter().all(|endpoint| !endpoint.nodes.is_empty()) && ready.iter().any(for_node) {
        return ready.into_iter().filter(for_node).collect();
    }
    let for_zone = |endpoint: &&Endpoint| endpoint.zones.contains(&client.zone);
    if ready.iter().all(|endpoint| !endpoint.zones.is_empty()) && ready.iter().any(for_zone) {
        return ready.into_iter().filter(for_zone).collect();
    }
    ready
}
