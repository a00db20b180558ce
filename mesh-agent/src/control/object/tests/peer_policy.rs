//! Peer policies.

use super::*;
use crate::control::object::peer_policy::EgressRule;
use crate::model::workload::PeerMode;

#[test]
fn peer_policies_are_read_in_both_spellings() {
    let (policy, mistakes) = peer(
        SHOP,
        "{mode: STRICT, ports: {8080: {mode: Permissive}, '9090': {mode: PERMISSIVE}}, selector: {matchLabels: \
        {app: web}}, allowOptOut: true}",
    );
    assert_eq!(mistakes, [""; 0]);
    let ports = BTreeMap::from([(8080, PeerMode::Permissive), (9090, PeerMode::Permissive)]);
    let expected = PeerPolicy {
        namespace: "shop".into(),
        name: "p".into(),
        target: web(),
        default: Some(PeerMode::Strict),
        ports,
        allow_opt_out: true,
        egress: None,
        udp: None,
        guard: false,
    };
    assert_eq!(policy, expected);
    let (policy, _) = peer("{name: p, namespace: mesh-agent-system}", "{mode: Permissive}");
    assert_eq!((policy.target, policy.default), (Target::Mesh, Some(PeerMode::Permissive)));
}

#[test]
fn a_broken_peer_policy_is_strict_for_what_it_targets() {
    let all = || Target::Namespace("shop".into());
    for (spec, mistake, target) in [
        ("{}", "spec: neither `mode`, `ports`, `egress`, `udp` nor `guard`", all()),
        ("{mode: Off}", "spec.mode: unknown variant `Off`", all()),
        ("{mode: null}", "spec.mode: invalid type: null", all()),
        ("{mode: Permissive, modes: x}", "spec.modes: unknown field", all()),
        ("{mode: Permissive, ports: {http: {mode: Strict}}}", "spec.ports.http: not a port", all()),
        ("{mode: Permissive, ports: {80: Strict}}", "spec.ports.80: invalid type", all()),
        ("{mode: Permissive, selector: {matchLabels: {app: web}}, x: 1}", "spec.x: unknown field", web()),
        ("{mode: Maybe, selector: {matchLabels: {app: web}}}", "spec.mode: unknown variant", web()),
        ("{mode: Permissive, selector: {labels: {app: web}}}", "spec.selector.labels: unknown field", all()),
        ("{mode: Permissive, selector: null}", "spec.selector: invalid type: null", all()),
        ("{egress: {}}", "spec.egress: missing field `default`", all()),
        ("{egress: null}", "spec.egress: invalid type: null", all()),
        ("{egress: {default: refuse, guard: true}}", "spec.egress.guard: unknown field", all()),
        ("{egress: {default: deny}}", "spec.egress.default: unknown variant `deny`", all()),
        ("{egress: {default: allow, optOut: true}}", "spec.egress.optOut: unknown field", all()),
        ("{egres: {default: allow}, mode: Permissive}", "spec.egres: unknown field", all()),
        ("{udp: all}", "spec.udp: only a strict pod refuses UDP", all()),
        ("{mode: Permissive, udp: all}", "spec.udp: only a strict pod refuses UDP", all()),
        ("{mode: Strict, udp: some}", "spec.udp: neither `all` nor a list of ports", all()),
        ("{mode: Strict, udp: []}", "spec.udp: neither `all` nor a list of ports", all()),
        ("{mode: Strict, udp: [53, 0]}", "spec.udp[1]: not a port", all()),
        ("{mode: Strict, udp: null}", "spec.udp", all()),
        ("{guard: false}", "spec: neither `mode`", all()),
        ("{guard: yes-please}", "spec.guard: invalid type", all()),
        ("{guard: true, selector: {matchLabels: {app: web}}, x: 1}", "spec.x: unknown field", web()),
    ] {
        let (policy, mistakes) = peer(SHOP, spec);
        assert!(mistakes.iter().any(|text| text.contains(mistake)), "`{mistake}` is not in {mistakes:?}");
        // What was to be guarded is guarded, and nothing else.
        let guard = spec.starts_with("{guard: yes") || spec.starts_with("{guard: true");
        assert_eq!(policy, PeerPolicy::broken(&"shop".into(), &"p".into(), target, guard), "{spec}");
    }
}

#[test]
fn peer_policies_say_what_may_leave_the_mesh_and_what_udp_comes_in() {
    let rule = |refuses, allow_opt_out| Some(EgressRule { refuses, allow_opt_out });
    for (spec, egress, udp) in [
        ("{egress: {default: refuse}}", rule(true, false), None),
        ("{egress: {default: Refuse}}", rule(true, false), None),
        ("{egress: {default: allow, allowOptOut: true}}", rule(false, true), None),
        ("{mode: Strict, udp: all}", None, Some(UdpPorts::All)),
        ("{mode: Strict, udp: [53, 5353]}", None, Some(UdpPorts::These([53, 5353].into()))),
    ] {
        let (policy, mistakes) = peer(SHOP, spec);
        assert_eq!(mistakes, [""; 0], "{spec}");
        assert_eq!((policy.egress, policy.udp, policy.guard), (egress, udp, false), "{spec}");
    }
    let (policy, mistakes) = peer(SHOP, "{guard: true}");
    assert!(policy.guard && mistakes.is_empty(), "{mistakes:?}");
}
