//! Names as people type them: pods, services and addresses of a question, found in the snapshot or said to be missing
//! with what comes near.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::Question;
use crate::balance::{Client, eligible};
use crate::model::service::ServicePort;
use crate::model::workload::Workload;
use crate::snapshot::Snapshot;

/// How many names that come near are told.
const NEAR: usize = 3;
/// The length of a typing error.
const SLIPS: usize = 3;

/// A question whose names are found.
pub(super) struct Found {
    pub(super) source: Option<Arc<Workload>>,
    /// The address given for the source, if one was.
    pub(super) source_ip: Option<IpAddr>,
    pub(super) service: Option<Arc<ServicePort>>,
    /// What the application may dial, canonical; never empty.
    pub(super) dialled: Vec<SocketAddr>,
}

/// Finds what `question` names.
pub(super) fn find(snapshot: &Snapshot, question: &Question) -> Result<Found, String> {
    let (source, source_ip) = source(snapshot, &question.source)?;
    let (host, port) = split_port(&question.destination, question.port)?;
    let family = |ip: &IpAddr| match (source_ip, &source) {
        (Some(own), _) => own.is_ipv4() == ip.is_ipv4(),
        (None, Some(pod)) => pod.ips.iter().any(|own| own.is_ipv4() == ip.is_ipv4()),
        (None, None) => true,
    };
    if let Some(ip) = address(host) {
        let dialled = SocketAddr::new(ip, port);
        if source_ip.is_some() && !family(&ip) {
            return Err(format!("{} and {ip} are of different families", question.source));
        }
        let service = snapshot.service_by_vip(dialled).cloned();
        if service.is_none() {
            known_port(snapshot, ip, port)?;
        }
        return Ok(Found { source, source_ip, service, dialled: vec![dialled] });
    }
    let (namespace, name) = name(host)?;
    let ports = || snapshot.services().iter().filter(|s| *s.namespace == *namespace && *s.name == *name);
    let pod = pod(snapshot, namespace, name);
    if let Some(service) = ports().find(|service| service.port == port) {
        let mut dialled: Vec<SocketAddr> = service.vips.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
        if service.vips.is_empty() {
            // Headless: the name stands for the endpoints' own addresses.
            let client = |ip| source.as_ref().map(|pod| Client::new(pod, ip));
            let nobody = |ip| Client { ip, node: "".into(), zone: "".into() };
            let one = |ip| eligible(service, &client(ip).unwrap_or_else(|| nobody(ip))).into_iter().cloned();
            let any = [IpAddr::from([0_u8; 4]), IpAddr::from([0_u8; 16])];
            dialled = any.into_iter().flat_map(one).map(|e| SocketAddr::new(e.addr.ip(), port)).collect();
        }
        let wanted = dialled.iter().map(SocketAddr::ip).find(|ip| family(ip));
        dialled.retain(|to| wanted.is_some_and(|ip| ip.is_ipv4() == to.is_ipv4()));
        if !service.vips.is_empty() {
            dialled.truncate(1);
        }
        if dialled.is_empty() {
            return Err(format!("{namespace}/{name} has no address that {} can dial", question.source));
        }
        return Ok(Found { source, source_ip, service: Some(Arc::clone(service)), dialled });
    }
    if let Some(pod) = pod {
        let ip = pod.ips.iter().copied().find(family);
        let ip = ip.ok_or_else(|| format!("{namespace}/{name} has no address that {} can dial", question.source))?;
        return Ok(Found { source, source_ip, service: None, dialled: vec![SocketAddr::new(ip, port)] });
    }
    Err(match list(ports().map(|service| service.port.to_string())) {
        Some(ports) => format!("service {namespace}/{name} has no port {port}; it has {ports}"),
        None => missing("pod or service", namespace, name, pods(snapshot).chain(services(snapshot))),
    })
}

fn source(snapshot: &Snapshot, text: &str) -> Result<(Option<Arc<Workload>>, Option<IpAddr>), String> {
    if let Some(ip) = address(text) {
        return Ok((snapshot.workload_by_ip(ip).cloned(), Some(ip)));
    }
    let (namespace, name) = name(text)?;
    match pod(snapshot, namespace, name) {
        Some(pod) if pod.ips.is_empty() => {
            Err(format!("pod {text} owns no address (see `mesh-agent status` for problems with it)"))
        }
        Some(pod) => Ok((Some(Arc::clone(pod)), None)),
        None => Err(missing("pod", namespace, name, pods(snapshot))),
    }
}

/// The destination without its port, and the port: given once, or twice the same.
fn split_port(text: &str, port: Option<u16>) -> Result<(&str, u16), String> {
    let own = text.parse::<SocketAddr>().is_ok() || (address(text).is_none() && text.contains(':'));
    let split = if own { text.rsplit_once(':') } else { None };
    let (host, own) = match split {
        Some((host, digits)) => {
            let port = digits.parse().map_err(|_| format!("`{digits}` of `{text}` is no port"))?;
            (host, Some(port))
        }
        None => (text, None),
    };
    match (own, port) {
        (Some(0), _) | (_, Some(0)) => Err("0 is no port that can be dialled".to_owned()),
        (Some(own), Some(port)) if own != port => Err(format!("`{text}` and port {port} contradict each other")),
        (Some(port), _) | (None, Some(port)) => Ok((host, port)),
        (None, None) => Err(format!("`{text}` needs a port: give it as the third argument")),
    }
}

fn address(text: &str) -> Option<IpAddr> {
    let text = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    text.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

/// `namespace/name`, or a service's cluster name `name.namespace.svc…`.
fn name(text: &str) -> Result<(&str, &str), String> {
    if let Some((namespace, name)) = text.split_once('/').filter(|(_, name)| !name.contains('/')) {
        return Ok((namespace, name));
    }
    let mut labels = text.split('.');
    match (labels.next(), labels.next(), labels.next()) {
        (Some(name), Some(namespace), Some("svc")) => Ok((namespace, name)),
        _ => Err(format!(
            "`{text}` is neither an address, nor namespace/name, nor name.namespace.svc; other names are not resolved"
        )),
    }
}

fn pod<'a>(snapshot: &'a Snapshot, namespace: &str, name: &str) -> Option<&'a Arc<Workload>> {
    snapshot.workloads().iter().find(|pod| *pod.namespace == *namespace && *pod.name == *name)
}

/// An address of a service, but a port that it does not have: the mistake that is meant to be found.
fn known_port(snapshot: &Snapshot, ip: IpAddr, port: u16) -> Result<(), String> {
    if snapshot.workload_by_ip(ip).is_some() {
        return Ok(());
    }
    let at: Vec<_> = snapshot.services().iter().filter(|service| service.vips.contains(&ip)).collect();
    match (at.first(), list(at.iter().map(|service| service.port.to_string()))) {
        (Some(first), Some(ports)) => Err(format!(
            "{ip} is of service {}/{}, which has no port {port}; it has {ports}",
            first.namespace, first.name
        )),
        _ => Ok(()),
    }
}

fn pods(snapshot: &Snapshot) -> impl Iterator<Item = String> {
    snapshot.workloads().iter().map(|pod| pod.display_name())
}

fn services(snapshot: &Snapshot) -> impl Iterator<Item = String> {
    snapshot.services().iter().map(|service| format!("{}/{}", service.namespace, service.name))
}

fn missing(what: &str, namespace: &str, name: &str, known: impl Iterator<Item = String>) -> String {
    let wanted = format!("{namespace}/{name}");
    let mut near: Vec<(usize, String)> = known
        .map(|known| {
            let contains = known.split('/').any(|part| part == name) || known.starts_with(&wanted);
            (if contains { 0 } else { distance(&wanted, &known) }, known)
        })
        .filter(|(distance, _)| *distance <= SLIPS)
        .collect();
    near.sort();
    near.dedup();
    match list(near.into_iter().take(NEAR).map(|(_, name)| name)) {
        Some(near) => format!("no {what} {wanted} is known; near: {near}"),
        None => format!("no {what} {wanted} is known to this agent"),
    }
}

fn list(items: impl Iterator<Item = String>) -> Option<String> {
    let items: Vec<String> = items.collect();
    (!items.is_empty()).then(|| items.join(", "))
}

/// How many letters must be put in, taken out or changed (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (done, letter) in a.chars().enumerate() {
        let mut next = vec![done + 1];
        let mut left = done + 1;
        for (above, other) in row.windows(2).zip(&b) {
            let [diagonal, up] = above else { continue };
            left = (diagonal + usize::from(letter != *other)).min(up + 1).min(left + 1);
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}
