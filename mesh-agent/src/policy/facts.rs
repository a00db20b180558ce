//! What the kernel is told of one pod: the flags and port rules that its programs read.

use std::collections::BTreeMap;

use mesh_common::key::{INBOUND, Ip, OUTBOUND, PROBE, UDP_IN};
use mesh_common::value::{
    POD_CAPTURES, POD_POLICY, POD_REFUSES_OUTSIDE, POD_STRICT, POD_UDP_PORTS, POD_UDP_STRICT, PORT_EXCLUDED,
    PORT_PERMISSIVE, PORT_PROBE, PORT_STRICT,
};

use crate::model::addr::key_ip;
use crate::model::workload::{PeerMode, Workload};

/// The `POD_*` bits of `workload`. `captures`: its connects go to the agent; `lenient`: plaintext passes for now
/// although it is strict; `has_policy`: some policy selects it.
#[must_use]
pub fn flags(workload: &Workload, captures: bool, lenient: bool, has_policy: bool) -> u32 {
    let mut flags = 0;
    if captures {
        flags |= POD_CAPTURES;
    }
    if workload.peer_mode.default == PeerMode::Strict && !lenient {
        flags |= POD_STRICT;
    }
    if has_policy {
        flags |= POD_POLICY;
    }
    if workload.egress.refused_by.is_some() {
        flags |= POD_REFUSES_OUTSIDE;
    }
    if workload.udp_refusals.all.is_some() && !lenient {
        flags |= POD_UDP_STRICT;
    }
    if !workload.udp_refusals.ports.is_empty() && !lenient {
        flags |= POD_UDP_PORTS;
    }
    flags
}

/// `flags` of a pod some of whose port rules could not be written: what has no rule is refused.
#[must_use]
pub fn without_port_rules(flags: u32) -> u32 {
    let udp = if flags & POD_UDP_PORTS == 0 { 0 } else { POD_UDP_STRICT };
    flags | POD_STRICT | udp
}

/// The first address of each family, IPv4 before IPv6; zero where there is none.
#[must_use]
pub fn own_ips(workload: &Workload) -> [Ip; 2] {
    [true, false].map(|v4| workload.ips.iter().find(|ip| ip.is_ipv4() == v4).map_or([0; 16], |ip| key_ip(*ip)))
}

/// The `PORT_*` rules by port and direction; an exclusion goes before a mode.
#[must_use]
pub fn port_rules(workload: &Workload, lenient: bool) -> BTreeMap<(u16, u16), u32> {
    let mut rules = BTreeMap::new();
    for (port, mode) in &workload.peer_mode.ports {
        let rule = match mode {
            PeerMode::Strict if !lenient => PORT_STRICT,
            _ => PORT_PERMISSIVE,
        };
        rules.insert((*port, INBOUND), rule);
    }
    for port in &workload.exclusions.inbound_ports {
        rules.insert((*port, INBOUND), PORT_EXCLUDED);
    }
    for port in &*workload.probe_ports {
        rules.insert((*port, PROBE), PORT_PROBE);
    }
    for port in workload.udp_refusals.ports.keys() {
        rules.insert((*port, UDP_IN), PORT_STRICT);
    }
    for port in &workload.exclusions.outbound_ports {
        rules.insert((*port, OUTBOUND), PORT_EXCLUDED);
    }
    rules
}
