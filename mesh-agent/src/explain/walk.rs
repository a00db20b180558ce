//! The walk: `connect()` in the source, the agent where it goes there, the receiver's hook, the receiver's agent.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use mesh_common::counter::Counter;
use mesh_common::decide::{self, ConnectVerdict, LookupVerdict};
use mesh_common::key::LISTENER_TUNNEL;
use mesh_common::limits::TUNNEL_PORT;
use mesh_common::value::{EndpointValue, FLOW_NATIVE, FLOW_SELF, LANE_CAPTURED_REST, ServiceValue};

use super::report::Path;
use super::view::{Arriving, Connecting, NodeView, outbound_exclusion, socket};
use super::{Check, exit_of, outside, words};
use crate::balance::kernel::is_kernels;
use crate::balance::{Client, eligible};
use crate::model::identity::PeerIdentity;
use crate::model::outcome::Outcome;
use crate::model::service::Endpoint;
use crate::model::workload::Workload;
use crate::policy::{Flow, Permit, authorize_delivery, facts};
use crate::snapshot::Snapshot;

/// What has been found on the way.
pub(super) struct Walk<'a> {
    snapshot: &'a Snapshot,
    refused_ports: &'a [u16],
    source: Option<&'a Workload>,
    source_ip: Option<IpAddr>,
    views: HashMap<&'a str, Rc<NodeView<'a>>>,
    pub(super) exclusions: Vec<String>,
    pub(super) paths: Vec<Path>,
    pub(super) checks: Vec<Check>,
}

/// What a connection carries to its receiver: the `FLOW_*` kind of its record, and the client that wrote it.
type Record<'a> = Option<(u16, &'a Workload)>;

impl<'a> Walk<'a> {
    pub(super) fn new(
        snapshot: &'a Snapshot,
        refused_ports: &'a [u16],
        source: Option<&'a Workload>,
        source_ip: Option<IpAddr>,
    ) -> Self {
        let (views, exclusions) = (HashMap::new(), Vec::new());
        Self { snapshot, refused_ports, source, source_ip, views, exclusions, paths: Vec::new(), checks: Vec::new() }
    }

    /// What `share` of the connections to `to` meet.
    pub(super) fn dial(&mut self, to: SocketAddr, share: f64) {
        if let Some(source) = self.source.filter(|source| source.is_enrolled() || source.captured.is_some()) {
            return self.hooked(source, to, share);
        }
        let why = match self.source {
            Some(source) => words::membership(source),
            None => "the source is no pod of the mesh".to_owned(),
        };
        self.direct(begun("bypass", why, share), to, None);
    }

    /// A `connect()` that the hook sees.
    fn hooked(&mut self, source: &'a Workload, to: SocketAddr, share: f64) {
        let node = self.view(&source.node);
        let service = Connecting::service_at(&node, to);
        let selected = !self.snapshot.policies_for(&source.uid).is_empty();
        let flags = facts::flags(source, source.captured.is_some(), false, selected);
        self.exclude(outbound_exclusion(source, to));
        for (draw, weight) in draws(service.as_ref()) {
            let view = Connecting { node: &node, source, to, service: service.as_ref(), draw };
            let verdict = decide::connect(flags, &view);
            let decided = exit_of(&verdict);
            self.checks.push(Check::Connect { pod: Arc::clone(&source.uid), to, draw, decided });
            self.connected(source, to, verdict, share * weight);
        }
    }

    fn connected(&mut self, source: &'a Workload, to: SocketAddr, verdict: ConnectVerdict, share: f64) {
        let (counter, _) = exit_of(&verdict);
        let at = format!("connect() on {}", source.node);
        let mut path = begun("bypass", words::exit(counter).to_owned(), share);
        path.exits.push(counter.as_str().to_owned());
        path.egress = outside::words(self.snapshot, source, to, counter);
        match verdict {
            ConnectVerdict::Bypass(Counter::ConnectLoopback) => self.end(path, None),
            ConnectVerdict::Bypass(Counter::ConnectOwnIp) => self.direct(path, to, Some((FLOW_SELF, source))),
            ConnectVerdict::Bypass(_) => self.direct(path, to, None),
            ConnectVerdict::RefuseOutside => {
                path.lane = "none".to_owned();
                path.enforced.push(at);
                let rule = source.egress.refused_by.as_ref().map(ToString::to_string);
                self.end(path, Some((Outcome::Denied, rule, words::exit(counter).to_owned())));
            }
            // Only while no agent listens, and one is asked.
            ConnectVerdict::Fallback(service) => {
                self.arrive(path, socket(service.fallback_ip, service.fallback_port), None, None);
            }
            ConnectVerdict::Refuse(counter) => {
                path.lane = "none".to_owned();
                path.enforced.push(at);
                let outcome = match counter {
                    Counter::ConnectNoEndpoints => Outcome::NoEndpoints,
                    Counter::ConnectShareFull => Outcome::Overloaded,
                    _ => Outcome::Denied,
                };
                self.end(path, Some((outcome, None, words::exit(counter).to_owned())));
            }
            ConnectVerdict::Deny(endpoint) => self.native(path, source, at, &endpoint, true),
            ConnectVerdict::Native(endpoint) => self.native(path, source, at, &endpoint, false),
            ConnectVerdict::Capture(lane) => {
                path.enforced.push(format!("{at} sends it to the agent there"));
                self.through_agent(path, source, to, lane == LANE_CAPTURED_REST);
            }
        }
    }

    fn native(&mut self, mut path: Path, source: &'a Workload, at: String, endpoint: &EndpointValue, denied: bool) {
        let to = socket(endpoint.ip, endpoint.port);
        let pod = self.view(&source.node).pod(endpoint.netns_cookie);
        path.lane = "native".to_owned();
        path.why = format!("both ends are captured pods of {}", source.node);
        path.enforced.push(at);
        if !denied {
            return self.arrive(path, to, pod, Some((FLOW_NATIVE, source)));
        }
        self.name(&mut path, to, pod);
        let judged = pod.map(|pod| self.judge(pod, to, Some(source)));
        self.refuse(path, Outcome::Denied, judged, "refused by the kernel's table of policies");
    }

    /// The agent of the source's node has it.
    fn through_agent(&mut self, mut path: Path, source: &'a Workload, to: SocketAddr, rest: bool) {
        let Some(service) = self.snapshot.service_by_vip(to) else {
            let pod = self.snapshot.behind(to.ip(), None).map(|pod| &**pod);
            return self.carried(path, source, to, pod, "");
        };
        let ip = self.client_ip(to).unwrap_or(to.ip());
        let mut usable = eligible(service, &Client::new(source, ip));
        let others = |one: &&Endpoint| !is_kernels(one, self.snapshot, &source.node);
        if rest && usable.iter().any(others) {
            usable.retain(others);
        }
        if usable.is_empty() {
            let reason = format!("{} has no usable endpoint", service.display_name());
            path.lane = "none".to_owned();
            return self.end(path, Some((Outcome::NoEndpoints, None, reason)));
        }
        let pinned = match (service.affinity, &service.traffic) {
            (Some(_), _) => ": sessionAffinity is the agent's to keep",
            (None, Some(_)) => ": where each request goes by its TrafficPolicy is the agent's to choose",
            (None, None) => "",
        };
        let share = path.share / usable.len() as f64;
        for endpoint in usable {
            let pod = self.snapshot.behind(endpoint.addr.ip(), endpoint.workload.as_ref()).map(|pod| &**pod);
            self.carried(Path { share, ..path.clone() }, source, endpoint.addr.addr(), pod, pinned);
        }
    }

    /// The agent of the source's node carries it to one endpoint.
    fn carried(
        &mut self,
        mut path: Path,
        source: &'a Workload,
        to: SocketAddr,
        pod: Option<&'a Workload>,
        pinned: &str,
    ) {
        let Some(pod) = pod.filter(|pod| pod.captured.is_some()) else {
            path.lane = "plaintext".to_owned();
            path.why = "no agent answers for this endpoint".to_owned();
            return self.arrive(path, to, pod, None);
        };
        path.lane = "tunnel".to_owned();
        path.why = match (*pod.node == *source.node, pinned.is_empty()) {
            (false, _) => format!("captured on another node, {}", pod.node),
            (true, false) => format!("captured on the same node{pinned}"),
            (true, true) => "captured on the same node, but its rules ask for what the kernel cannot prove".to_owned(),
        };
        path.enforced.push(format!("mTLS to {}:{TUNNEL_PORT}, which must prove {}", to.ip(), pod.identity));
        path.enforced.push(format!("the agent on {}", pod.node));
        self.name(&mut path, to, Some(pod));
        if self.refused_ports.contains(&to.port()) {
            return self
                .end(path, Some((Outcome::BadTarget, None, "no tunnel is delivered to a mesh's port".to_owned())));
        }
        if !pod.ips.contains(&to.ip()) {
            let reason = format!("{} is not an address of {}", to.ip(), pod.display_name());
            return self.end(path, Some((Outcome::BadTarget, None, reason)));
        }
        self.settle(path, pod, to, Some(source));
    }

    /// Untouched by the source's side: the cluster resolves a virtual address, not the mesh.
    fn direct(&mut self, path: Path, to: SocketAddr, record: Record<'a>) {
        let Some(service) = self.snapshot.service_by_vip(to) else {
            let pod = self.snapshot.behind(to.ip(), None).map(|pod| &**pod);
            return self.arrive(path, to, pod, record);
        };
        let ip = self.client_ip(to).unwrap_or(to.ip());
        let client = match self.source {
            Some(source) => Client::new(source, ip),
            None => Client { ip, node: "".into(), zone: "".into() },
        };
        let usable = eligible(service, &client);
        if usable.is_empty() {
            let reason =
                format!("{} has no usable endpoint; the cluster refuses it, not the mesh", service.display_name());
            return self.end(path, Some((Outcome::NoEndpoints, None, reason)));
        }
        let share = path.share / usable.len() as f64;
        for endpoint in usable {
            let pod = self.snapshot.behind(endpoint.addr.ip(), endpoint.workload.as_ref()).map(|pod| &**pod);
            self.arrive(Path { share, ..path.clone() }, endpoint.addr.addr(), pod, record);
        }
    }

    /// Its SYN reaches `to`.
    fn arrive(&mut self, mut path: Path, to: SocketAddr, pod: Option<&'a Workload>, record: Record<'a>) {
        self.name(&mut path, to, pod);
        let Some(pod) = pod.filter(|pod| pod.captured.is_some()) else {
            path.reason = match pod {
                Some(pod) => format!("nothing of the mesh stands before it: {}", words::membership(pod)),
                None => "outside the mesh: nothing of it is enforced there".to_owned(),
            };
            return self.end(path, None);
        };
        let node = self.view(&pod.node);
        let verdict = decide::lookup(&Arriving { node: &node, pod, to, record });
        let by = record.map(|(kind, client)| (kind, Arc::clone(&client.uid)));
        self.checks.push(Check::Arrive { pod: Arc::clone(&pod.uid), to, record: by, decided: verdict });
        let (LookupVerdict::Pass(counter) | LookupVerdict::Drop(counter) | LookupVerdict::Steer(_, counter)) = verdict;
        path.exits.push(counter.as_str().to_owned());
        path.enforced.push(format!("sk_lookup of {} on {}", pod.display_name(), pod.node));
        let proven = record.filter(|(kind, _)| *kind == FLOW_NATIVE).map(|(_, client)| client);
        match verdict {
            LookupVerdict::Pass(counter) => {
                if counter == Counter::LookupExcluded {
                    let pod = pod.display_name();
                    self.exclude(Some(format!("exclude-inbound-ports of {pod} names {}", to.port())));
                }
                let permit = self.judge(pod, to, proven).ok().filter(|_| counter == Counter::LookupNative);
                self.permitted(path, permit.as_ref(), passed(counter));
            }
            LookupVerdict::Drop(Counter::LookupAgentPort) => {
                let reason = words::exit(Counter::LookupAgentPort).to_owned();
                self.end(path, Some((Outcome::BadTarget, None, reason)));
            }
            LookupVerdict::Drop(counter) => {
                let judged = self.judge(pod, to, proven);
                self.refuse(path, Outcome::Denied, Some(judged), counter.as_str());
            }
            LookupVerdict::Steer(LISTENER_TUNNEL, _) => {
                let reason = format!("port {TUNNEL_PORT} takes tunnels of other agents, and no application's bytes");
                self.end(path, Some((Outcome::BadTarget, None, reason)));
            }
            LookupVerdict::Steer(..) => {
                path.enforced.push(format!("the agent on {}", pod.node));
                if self.refused_ports.contains(&to.port()) {
                    let reason = "nothing is delivered to a mesh's port".to_owned();
                    return self.end(path, Some((Outcome::BadTarget, None, reason)));
                }
                self.settle(path, pod, to, proven);
            }
        }
    }

    /// What the policy says about `client`, who has proven who it is, or about somebody unknown.
    fn judge(
        &self,
        pod: &Workload,
        to: SocketAddr,
        client: Option<&Workload>,
    ) -> Result<Permit, crate::policy::Denial> {
        let flow = Flow {
            destination: Arc::clone(&pod.uid),
            port: to.port(),
            peer: client.map_or(PeerIdentity::Unknown, |client| PeerIdentity::Verified(client.identity.clone())),
            source_ip: self.client_ip(to).unwrap_or(to.ip()),
        };
        authorize_delivery(self.snapshot, flow).map(|(permit, _)| permit)
    }

    /// An agent decides.
    fn settle(&mut self, path: Path, pod: &Workload, to: SocketAddr, client: Option<&Workload>) {
        match self.judge(pod, to, client) {
            Ok(permit) => self.permitted(path, Some(&permit), ""),
            Err(denial) => self.refuse(path, denial.outcome, Some(Err(denial)), ""),
        }
    }

    fn permitted(&mut self, mut path: Path, permit: Option<&Permit>, reason: &str) {
        path.rule = permit.and_then(|permit| permit.rule()).map(ToString::to_string);
        path.reason = match (&path.rule, permit) {
            (Some(_), _) => "an ALLOW rule matches and no DENY does".to_owned(),
            (None, Some(_)) => "no ALLOW policy selects it and no DENY rule matches".to_owned(),
            (None, None) => reason.to_owned(),
        };
        self.end(path, None);
    }

    /// `judged` says why; `or` and `outcome` speak where it has nothing against it.
    fn refuse(
        &mut self,
        path: Path,
        outcome: Outcome,
        judged: Option<Result<Permit, crate::policy::Denial>>,
        or: &str,
    ) {
        let refusal = match judged {
            Some(Err(denial)) => (denial.outcome, Some(denial.rule.to_string()), denial.reason.to_string()),
            _ => (outcome, None, or.to_owned()),
        };
        self.end(path, Some(refusal));
    }

    /// Ends a path; one that differs from another only in its share adds to it.
    fn end(&mut self, mut path: Path, refusal: Option<(Outcome, Option<String>, String)>) {
        path.allowed = refusal.is_none();
        path.outcome = Outcome::Ok.to_string();
        if let Some((outcome, rule, reason)) = refusal {
            (path.outcome, path.rule, path.reason) = (outcome.to_string(), rule, reason);
        }
        let alike = |other: &&mut Path| Path { share: path.share, ..(**other).clone() } == path;
        match self.paths.iter_mut().find(alike) {
            Some(other) => other.share += path.share,
            None => self.paths.push(path),
        }
    }

    fn name(&self, path: &mut Path, to: SocketAddr, pod: Option<&Workload>) {
        path.endpoint = to.to_string();
        if let Some(pod) = pod {
            path.pod = Some(pod.display_name());
            path.node = pod.node.to_string();
            path.peer_mode = pod.captured.is_some().then(|| words::peer_mode(pod, to.port()));
        }
    }

    fn exclude(&mut self, exclusion: Option<String>) {
        self.exclusions.extend(exclusion.filter(|new| !self.exclusions.contains(new)));
    }

    /// The source's address towards `to`.
    fn client_ip(&self, to: SocketAddr) -> Option<IpAddr> {
        let own = |pod: &Workload| pod.ips.iter().copied().find(|ip| ip.is_ipv4() == to.is_ipv4());
        self.source_ip.or_else(|| self.source.and_then(own))
    }

    fn view(&mut self, node: &'a str) -> Rc<NodeView<'a>> {
        let snapshot = self.snapshot;
        Rc::clone(self.views.entry(node).or_insert_with(|| Rc::new(NodeView::new(snapshot, node))))
    }
}

fn begun(lane: &str, why: String, share: f64) -> Path {
    Path {
        share,
        endpoint: String::new(),
        pod: None,
        node: String::new(),
        lane: lane.to_owned(),
        why,
        allowed: false,
        outcome: String::new(),
        rule: None,
        reason: String::new(),
        egress: None,
        request: None,
        peer_mode: None,
        enforced: Vec::new(),
        exits: Vec::new(),
    }
}

/// What the kernel may draw for a service, each with its likelihood: every endpoint of this node, and one number that
/// stands for all others.
fn draws(service: Option<&(ServiceValue, Vec<EndpointValue>)>) -> Vec<(u32, f64)> {
    let (eligible, local) = service.map_or((0, 0), |(value, _)| (value.eligible, value.local));
    if local == 0 {
        return vec![(0, 1.0)];
    }
    let one = 1.0 / f64::from(eligible.max(local));
    let mut draws: Vec<(u32, f64)> = (0..u32::from(local)).map(|slot| (slot, one)).collect();
    if eligible > local {
        draws.push((u32::from(local), f64::from(eligible - local) * one));
    }
    draws
}

fn passed(counter: Counter) -> &'static str {
    match counter {
        Counter::LookupExcluded => "the port is excluded from the mesh",
        Counter::LookupPermissive => "plaintext passes: the port is permissive and no policy selects the pod",
        Counter::LookupSelf => "the pod to itself",
        other => other.as_str(),
    }
}
