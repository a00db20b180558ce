//! Pods, with their namespaces, nodes, capture states and peer policies → workloads.

use std::collections::HashMap;
use std::sync::Arc;

use super::egress::{ignored, without_ways_out};
use super::ownership::Owners;
use super::peer_modes::{self, Applicable};
use super::{Found, Objects};
use crate::control::object::{EXCLUDE_INBOUND_PORTS, MODE_LABEL, Mode, PeerPolicy, Pod};
use crate::model::egress::{Egress, UdpRefusals};
use crate::model::identity::Identity;
use crate::model::problem::{Effect, Problem};
use crate::model::rare::Rare;
use crate::model::workload::{Captured, Enrolment, Exclusions, Ips, PeerModes, Workload};

/// Looked up for every pod.
struct Context<'a> {
    namespaces: HashMap<&'a str, Option<Mode>>,
    zones: HashMap<&'a str, &'a Arc<str>>,
    captured: HashMap<(&'a str, &'a str), &'a Captured>,
    identities: HashMap<(&'a str, &'a str), Option<Identity>>,
    no_zone: Arc<str>,
    demands: HashMap<Vec<*const PeerPolicy>, Demands>,
}

/// What peer policies demand of a pod: the same of all to which the same policies apply.
#[derive(Clone)]
struct Demands {
    modes: Rare<PeerModes>,
    egress: Rare<Egress>,
    udp_refusals: Rare<UdpRefusals>,
}

impl Demands {
    fn of(peers: &Applicable<'_>) -> Self {
        Self { modes: peers.modes().into(), egress: peers.egress().into(), udp_refusals: peers.udp_refusals().into() }
    }
}

/// Compiles every pod that has a usable identity.
pub(super) fn compile(
    objects: &Objects,
    owners: &Owners<'_>,
    trust_domain: &str,
    problems: &mut Vec<Problem>,
) -> Vec<Arc<Workload>> {
    let captures = objects.captures.iter().map(|found| &found.object);
    let mut context = Context {
        namespaces: objects.namespaces.iter().map(|found| (&*found.object.name, found.object.mode)).collect(),
        zones: objects.nodes.iter().map(|found| (&*found.object.name, &found.object.zone)).collect(),
        captured: captures
            .flat_map(|state| state.pods.iter().map(|(uid, captured)| ((&*state.node, &**uid), captured)))
            .collect(),
        identities: HashMap::new(),
        no_zone: Arc::from(""),
        demands: HashMap::new(),
    };
    let peers = peer_modes::by_scope(&objects.peers);
    let mut workloads = Vec::with_capacity(objects.pods.len());
    let is_compiled = |at: usize| !owners.is_impostor(at) && !objects.bystanders.contains(&at);
    for (at, pod) in objects.pods.iter().enumerate().filter(|(at, _)| is_compiled(*at)) {
        let account = (&*pod.object.namespace, &*pod.object.service_account);
        let make = || Identity::new(trust_domain, account.0, account.1).ok();
        let Some(identity) = context.identities.entry(account).or_insert_with(make).clone() else {
            let reason = format!("`{}/{}` cannot be part of a SPIFFE id", account.0, account.1);
            problems.push(pod.problem(title(&pod.object), "spec.serviceAccountName", reason, Effect::Ignored));
            continue;
        };
        let applicable = peer_modes::applicable(&peers, &pod.object);
        let same = applicable.all().map(std::ptr::from_ref).collect();
        let demands = context.demands.entry(same).or_insert_with(|| Demands::of(&applicable)).clone();
        let workload = context.workload(pod, identity, owners.lost(at), (&applicable, demands), problems);
        workloads.push(Arc::new(workload));
    }
    workloads
}

fn title(pod: &Pod) -> String {
    format!("Pod {}", pod.display_name())
}

impl Context<'_> {
    fn workload(
        &self,
        found: &Found<Pod>,
        identity: Identity,
        lost: bool,
        (peers, demands): (&Applicable<'_>, Demands),
        problems: &mut Vec<Problem>,
    ) -> Workload {
        let pod = &found.object;
        let owns_nothing = lost || pod.host_network || pod.finished;
        let zone = self.zones.get(&*pod.node).copied().unwrap_or(&self.no_zone);
        Workload {
            uid: Arc::clone(&pod.uid),
            namespace: Arc::clone(&pod.namespace),
            name: Arc::clone(&pod.name),
            app: Arc::clone(&pod.app),
            node: Arc::clone(&pod.node),
            zone: Arc::clone(zone),
            labels: Arc::clone(&pod.labels),
            identity,
            ips: if owns_nothing { Ips::new() } else { pod.ips.clone() },
            host_network: pod.host_network,
            ports: Arc::clone(&pod.ports),
            probe_ports: Arc::clone(&pod.probe_ports),
            enrolment: self.enrolment(found, lost, peers, problems),
            captured: self.captured.get(&(&*pod.node, &*pod.uid)).map(|captured| (*captured).clone()),
            peer_mode: demands.modes,
            egress: demands.egress,
            udp_refusals: demands.udp_refusals,
            exclusions: exclusions(found, peers, problems),
            netns: pod.netns.clone(),
            terminating: pod.terminating,
        }
    }

    fn enrolment(
        &self,
        found: &Found<Pod>,
        lost: bool,
        peers: &Applicable<'_>,
        problems: &mut Vec<Problem>,
    ) -> Enrolment {
        let pod = &found.object;
        if pod.finished || lost {
            return Enrolment::Gone;
        }
        let namespace = self.namespaces.get(&*pod.namespace).copied().flatten();
        let is_asked = match (pod.mode.or(namespace), namespace) {
            (Some(Mode::Enabled), _) => true,
            (Some(Mode::Disabled), Some(Mode::Enabled)) => match why_not_out(peers) {
                Some(reason) => {
                    let field = format!("metadata.labels[{MODE_LABEL}]");
                    problems.push(found.problem(title(pod), &field, reason, Effect::Partly));
                    true
                }
                None => false,
            },
            _ => false,
        };
        match (is_asked, pod.host_network, pod.guest_kernel) {
            (false, _, _) => Enrolment::NotAsked,
            (true, true, _) => Enrolment::HostNetwork,
            (true, false, true) => Enrolment::GuestKernel,
            (true, false, false) => Enrolment::Enrolled,
        }
    }
}

/// Why a pod may not leave the mesh by its label.
fn why_not_out(peers: &Applicable<'_>) -> Option<String> {
    let strict = peers.forbids_opt_out().map(|policy| {
        format!("ignored: PeerPolicy {} is Strict and has no `allowOptOut: true`", policy.display_name())
    });
    strict.or_else(|| peers.forbids_going_out().map(ignored))
}

/// What the pod asks for, without what a higher scope keeps in.
fn exclusions(found: &Found<Pod>, peers: &Applicable<'_>, problems: &mut Vec<Problem>) -> Rare<Exclusions> {
    if found.object.exclusions == Rare::default() {
        return Rare::default();
    }
    let mut exclusions = Exclusions::clone(&found.object.exclusions);
    exclusions.inbound_ports.retain(|port| {
        let Some(policy) = peers.forbids_exclusion(*port) else {
            return true;
        };
        let reason =
            format!("{port} ignored: PeerPolicy {} is Strict and has no `allowOptOut: true`", policy.display_name());
        let field = format!("metadata.annotations[{EXCLUDE_INBOUND_PORTS}]");
        problems.push(found.problem(title(&found.object), &field, reason, Effect::Partly));
        false
    });
    without_ways_out(exclusions, found, peers, problems).into()
}
