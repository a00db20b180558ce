//! Tables and properties of the decision; the kernel suite asks the loaded programs the same.

use super::*;
use crate::key::{LISTENER_OUTBOUND, LISTENER_PLAINTEXT, LISTENER_TUNNEL};
use crate::value::{ADMITTED_KUBERNETES, BROKEN_POLICY, POLICY_DENY};
use proptest::prelude::*;
use std::collections::HashMap;

const RULES: Digest = [1; 16];
const ME: Digest = [2; 16];
const OTHER: Digest = [3; 16];

#[derive(Clone, Copy, Default)]
struct Connect {
    agent: bool,
    loopback: bool,
    own: bool,
    excluded: bool,
    service: Option<ServiceValue>,
    mesh: Option<u64>,
    no_family: bool,
    away: bool,
    full: bool,
    /// What the dice show.
    drawn: u32,
    /// The destination's rules and the verdict word for us.
    policy: Option<Digest>,
    word: Option<u32>,
    excluded_there: bool,
    list_gone: bool,
    admitted: bool,
}

impl PolicyView for Connect {
    fn policy(&self, key: &PolicyKey) -> Option<u32> {
        self.word.filter(|_| key.policy == RULES && key.identity == ME && key.port == 8080)
    }
}

impl DestinationView for Connect {
    fn is_loopback(&self) -> bool {
        self.loopback
    }
    fn is_own_ip(&self) -> bool {
        self.own
    }
    fn is_excluded(&self) -> bool {
        self.excluded
    }
    fn mesh_ip(&self) -> Option<MeshIpValue> {
        self.mesh.map(|netns_cookie| MeshIpValue { netns_cookie })
    }
    fn admitted(&self) -> Option<u32> {
        self.admitted.then_some(ADMITTED_KUBERNETES)
    }
}

impl ConnectView for Connect {
    fn is_agent_socket(&self) -> bool {
        self.agent
    }
    fn service(&self) -> Option<ServiceValue> {
        self.service
    }
    fn endpoint(&self, list: u32, slot: u32) -> Option<EndpointValue> {
        assert!(self.service.is_some_and(|service| list == service.list && slot < u32::from(service.local)));
        (!self.list_gone).then(|| pod(u64::from(slot) + 10))
    }
    fn draw(&self) -> u32 {
        self.drawn
    }
    fn dialled(&self) -> (Ip, u16) {
        ([9; 16], 8080)
    }
    fn destination(&self, netns_cookie: u64, port: u16) -> Option<Destination> {
        assert!(netns_cookie != 0 && port == 8080);
        self.policy.map(|policy| Destination { policy, excluded: self.excluded_there })
    }
    fn identity(&self) -> Digest {
        ME
    }
    fn is_share_full(&self) -> bool {
        self.full
    }
    fn has_family(&self) -> bool {
        !self.no_family
    }
    fn agent_listens(&self) -> bool {
        !self.away
    }
}

const SERVICE: ServiceValue =
    ServiceValue { fallback_ip: [9; 16], fallback_port: 8080, flags: 0, list: 4, eligible: 3, local: 0 };
const MIXED: ServiceValue = ServiceValue { local: 2, ..SERVICE };

fn pod(netns_cookie: u64) -> EndpointValue {
    EndpointValue { netns_cookie, ip: [9; 16], port: 8080, pad: [0; 3] }
}

#[test]
fn connects_go_where_the_table_says() {
    use ConnectVerdict::{Bypass, Capture, Fallback, Refuse};
    let mesh = Connect { mesh: Some(0), ..Connect::default() };
    let service = Connect { service: Some(SERVICE), ..Connect::default() };
    let empty = ServiceValue { flags: SERVICE_EMPTY, ..SERVICE };
    let alone = ServiceValue { fallback_port: 0, ..SERVICE };
    let (on, strict) = (POD_CAPTURES, POD_CAPTURES | POD_STRICT);
    let table = [
        ("a mesh pod", on, mesh, Capture(LANE_CAPTURED)),
        ("a service", on, service, Capture(LANE_CAPTURED)),
        ("outside", on, Connect::default(), Bypass(Counter::ConnectOutside)),
        ("loopback", strict, Connect { loopback: true, ..mesh }, Bypass(Counter::ConnectLoopback)),
        ("the agent itself", strict, Connect { agent: true, ..mesh }, Bypass(Counter::ConnectAgent)),
        ("itself", on, Connect { own: true, ..mesh }, Bypass(Counter::ConnectOwnIp)),
        ("excluded", on, Connect { excluded: true, ..mesh }, Bypass(Counter::ConnectExcluded)),
        ("not yet capturing", 0, mesh, Bypass(Counter::ConnectNotCapturing)),
        ("no endpoints", on, Connect { service: Some(empty), ..mesh }, Refuse(Counter::ConnectNoEndpoints)),
        ("no such family", on, Connect { no_family: true, ..mesh }, Bypass(Counter::ConnectNoFamily)),
        ("agent away, strict", strict, Connect { away: true, ..mesh }, Refuse(Counter::ConnectAgentAway)),
        ("agent away, permissive pod", on, Connect { away: true, ..mesh }, Bypass(Counter::ConnectFallback)),
        ("agent away, service", on, Connect { away: true, ..service }, Fallback(SERVICE)),
        ("agent away, strict, service", strict, Connect { away: true, ..service }, Refuse(Counter::ConnectAgentAway)),
        (
            "agent away, no fallback",
            on,
            Connect { away: true, service: Some(alone), ..mesh },
            Bypass(Counter::ConnectFallback),
        ),
        ("share used up", on, Connect { full: true, ..mesh }, Refuse(Counter::ConnectShareFull)),
        ("share used up, outside", on, Connect { full: true, ..Connect::default() }, Bypass(Counter::ConnectOutside)),
    ];
    for (what, flags, view, expected) in table {
        assert_eq!(connect(flags, &view), expected, "{what}");
    }
}

#[test]
fn a_pod_that_refuses_what_is_outside_connects_where_the_table_says() {
    use ConnectVerdict::{Bypass, Capture, Native, Refuse, RefuseOutside};
    let outside = Connect::default();
    let mesh = Connect { mesh: Some(0), ..outside };
    let here = Connect { mesh: Some(7), policy: Some(NO_POLICY), ..outside };
    let service = Connect { service: Some(SERVICE), ..outside };
    let admitted = Connect { admitted: true, ..outside };
    let on = POD_CAPTURES | POD_REFUSES_OUTSIDE;
    let table = [
        ("outside", on, outside, RefuseOutside),
        ("outside, the agent away", on, Connect { away: true, ..outside }, RefuseOutside),
        ("outside, the share used up", on, Connect { full: true, ..outside }, RefuseOutside),
        ("outside, while joining", POD_REFUSES_OUTSIDE, outside, RefuseOutside),
        ("admitted", on, admitted, Bypass(Counter::ConnectAdmitted)),
        ("admitted, while joining", POD_REFUSES_OUTSIDE, admitted, Bypass(Counter::ConnectAdmitted)),
        ("admitted, and nothing refused", POD_CAPTURES, admitted, Bypass(Counter::ConnectOutside)),
        ("a mesh pod", on, mesh, Capture(LANE_CAPTURED)),
        ("a mesh pod, while joining", POD_REFUSES_OUTSIDE, mesh, Bypass(Counter::ConnectNotCapturing)),
        ("a pod of the node", on, here, Native(pod(7))),
        ("a service", on, service, Capture(LANE_CAPTURED)),
        ("a service, while joining", POD_REFUSES_OUTSIDE, service, Bypass(Counter::ConnectNotCapturing)),
        (
            "a service, the agent away",
            on | POD_STRICT,
            Connect { away: true, ..service },
            Refuse(Counter::ConnectAgentAway),
        ),
        ("loopback", on, Connect { loopback: true, ..outside }, Bypass(Counter::ConnectLoopback)),
        ("itself", on, Connect { own: true, ..outside }, Bypass(Counter::ConnectOwnIp)),
        ("the agent itself", on, Connect { agent: true, ..outside }, Bypass(Counter::ConnectAgent)),
        ("excluded", on, Connect { excluded: true, ..outside }, Bypass(Counter::ConnectExcluded)),
    ];
    for (what, flags, view, expected) in table {
        assert_eq!(connect(flags, &view), expected, "{what}");
    }
}

#[test]
fn connects_to_pods_of_the_node_go_where_the_table_says() {
    use ConnectVerdict::{Capture, Deny, Native, Refuse};
    let here = Connect { mesh: Some(7), policy: Some(NO_POLICY), ..Connect::default() };
    let ruled = Connect { policy: Some(RULES), ..here };
    let allowed = Connect { word: Some(POLICY_ALLOW), ..ruled };
    let mixed = Connect { mesh: None, service: Some(MIXED), ..allowed };
    let (on, strict) = (POD_CAPTURES, POD_CAPTURES | POD_STRICT);
    let rest = Capture(LANE_CAPTURED_REST);
    let table = [
        ("no rules", on, here, Native(pod(7))),
        ("allowed", on, allowed, Native(pod(7))),
        ("denied", on, Connect { word: Some(POLICY_DENY), ..ruled }, Deny(pod(7))),
        ("no entry", on, ruled, Deny(pod(7))),
        ("an unknown word", on, Connect { word: Some(77), ..ruled }, Deny(pod(7))),
        ("rules that could not be written", on, Connect { policy: Some(BROKEN_POLICY), ..allowed }, Deny(pod(7))),
        ("for the agent", on, Connect { word: Some(POLICY_AGENT), ..ruled }, Capture(LANE_CAPTURED)),
        ("excluded there", on, Connect { excluded_there: true, ..ruled }, Native(pod(7))),
        ("leaving", on, Connect { policy: None, ..here }, Capture(LANE_CAPTURED)),
        ("no agent is needed", strict, Connect { away: true, ..allowed }, Native(pod(7))),
        ("share used up", on, Connect { full: true, ..allowed }, Refuse(Counter::ConnectShareFull)),
        ("first slot", on, Connect { drawn: 3, ..mixed }, Native(pod(10))),
        ("second slot", on, Connect { drawn: 4, ..mixed }, Native(pod(11))),
        ("another node's", on, Connect { drawn: 5, ..mixed }, rest),
        ("another node's, agent away", strict, Connect { drawn: 5, away: true, ..mixed }, Native(pod(10))),
        ("a list that is gone", on, Connect { list_gone: true, ..mixed }, Capture(LANE_CAPTURED)),
    ];
    for (what, flags, view, expected) in table {
        assert_eq!(connect(flags, &view), expected, "{what}");
    }
}

#[derive(Clone, Copy)]
struct Lookup {
    loopback: bool,
    liveness: bool,
    tunnel: bool,
    agent_port: bool,
    proof: Option<Proof>,
    captured: bool,
    flags: Option<u32>,
    policy: Digest,
    word: Option<u32>,
    rule: Option<u32>,
    probe_port: bool,
}

impl PolicyView for Lookup {
    fn policy(&self, key: &PolicyKey) -> Option<u32> {
        self.word.filter(|_| key.policy == RULES && key.identity == ME && key.port == 8080)
    }
}

impl LookupView for Lookup {
    fn is_loopback(&self) -> bool {
        self.loopback
    }
    fn is_liveness(&self) -> bool {
        self.liveness
    }
    fn is_tunnel_port(&self) -> bool {
        self.tunnel
    }
    fn is_agent_port(&self) -> bool {
        self.agent_port
    }
    fn port(&self) -> u16 {
        8080
    }
    fn proof(&self) -> Option<Proof> {
        self.proof
    }
    fn netns_cookie(&self) -> u64 {
        7
    }
    fn is_captured(&self) -> bool {
        self.captured
    }
    fn receiver(&self) -> Option<Receiver> {
        self.flags.map(|flags| Receiver { flags, policy: self.policy })
    }
    fn is_probe_port(&self) -> bool {
        self.probe_port
    }
    fn port_rule(&self) -> Option<u32> {
        self.rule
    }
}

const SYN: Lookup = Lookup {
    loopback: false,
    liveness: false,
    tunnel: false,
    agent_port: false,
    proof: None,
    captured: false,
    flags: Some(POD_CAPTURES),
    policy: NO_POLICY,
    word: None,
    rule: None,
    probe_port: false,
};

fn proof(netns_cookie: u64, kind: u16) -> Option<Proof> {
    Some(Proof { netns_cookie, kind, server_cookie: 0, identity: [0; 16] })
}

#[test]
fn inbound_goes_where_the_table_says() {
    use LookupVerdict::{Drop, Pass, Steer};
    let strict = Lookup { flags: Some(POD_STRICT), ..SYN };
    let policy = Lookup { flags: Some(POD_POLICY), ..SYN };
    let both = Lookup { flags: Some(POD_POLICY | POD_STRICT), ..SYN };
    let table = [
        ("permissive", SYN, Pass(Counter::LookupPermissive)),
        ("strict", strict, Drop(Counter::LookupStrict)),
        ("policy", policy, Steer(LISTENER_PLAINTEXT, Counter::LookupPlaintext)),
        ("strict and policy", both, Drop(Counter::LookupStrict)),
        ("strict port", Lookup { rule: Some(PORT_STRICT), ..SYN }, Drop(Counter::LookupStrict)),
        ("permissive port", Lookup { rule: Some(PORT_PERMISSIVE), ..strict }, Pass(Counter::LookupPermissive)),
        (
            "permissive port under a policy",
            Lookup { rule: Some(PORT_PERMISSIVE), ..both },
            Steer(LISTENER_PLAINTEXT, Counter::LookupPlaintext),
        ),
        ("excluded port", Lookup { rule: Some(PORT_EXCLUDED), ..strict }, Pass(Counter::LookupExcluded)),
        ("no entry", Lookup { flags: None, ..SYN }, Drop(Counter::LookupNoPod)),
        ("loopback", Lookup { loopback: true, flags: None, ..SYN }, Pass(Counter::LookupLoopback)),
        ("liveness", Lookup { liveness: true, agent_port: true, ..SYN }, Pass(Counter::LookupLiveness)),
        ("tunnel", Lookup { tunnel: true, ..strict }, Steer(LISTENER_TUNNEL, Counter::LookupTunnel)),
        (
            "captured",
            Lookup { agent_port: true, captured: true, ..strict },
            Steer(LISTENER_OUTBOUND, Counter::LookupOutbound),
        ),
        ("agent port dialled", Lookup { agent_port: true, ..SYN }, Drop(Counter::LookupAgentPort)),
        (
            "agent port with a self record",
            Lookup { agent_port: true, proof: proof(7, FLOW_SELF), ..SYN },
            Drop(Counter::LookupAgentPort),
        ),
        ("delivered", Lookup { proof: proof(7, FLOW_DELIVERY), ..strict }, Pass(Counter::LookupDelivery)),
        ("itself", Lookup { proof: proof(7, FLOW_SELF), ..strict }, Pass(Counter::LookupSelf)),
        ("another pod's record", Lookup { proof: proof(8, FLOW_SELF), ..strict }, Drop(Counter::LookupStrict)),
        ("a foreign delivery", Lookup { proof: proof(8, FLOW_DELIVERY), ..strict }, Drop(Counter::LookupStrict)),
    ];
    for (what, view, expected) in table {
        assert_eq!(lookup(&view), expected, "{what}");
    }
}

#[test]
fn a_record_proves_who_and_the_current_policy_decides() {
    use LookupVerdict::{Drop, Pass, Steer};
    let native = |server_cookie, identity| Some(Proof { kind: FLOW_NATIVE, netns_cookie: 5, server_cookie, identity });
    let proven = Lookup { proof: native(7, ME), flags: Some(POD_STRICT | POD_POLICY), ..SYN };
    let ruled = Lookup { policy: RULES, ..proven };
    let allowed = Lookup { word: Some(POLICY_ALLOW), ..ruled };
    let table = [
        ("no rules, strict", proven, Pass(Counter::LookupNative)),
        ("allowed", allowed, Pass(Counter::LookupNative)),
        ("denied since", Lookup { word: Some(POLICY_DENY), ..ruled }, Drop(Counter::LookupDenied)),
        ("no entry", ruled, Drop(Counter::LookupDenied)),
        ("somebody else", Lookup { proof: native(7, OTHER), ..allowed }, Drop(Counter::LookupDenied)),
        (
            "for the agent",
            Lookup { word: Some(POLICY_AGENT), ..ruled },
            Steer(LISTENER_PLAINTEXT, Counter::LookupProven),
        ),
        ("for another pod", Lookup { proof: native(8, ME), ..allowed }, Drop(Counter::LookupStrict)),
        ("excluded port", Lookup { rule: Some(PORT_EXCLUDED), ..ruled }, Pass(Counter::LookupExcluded)),
        ("agent port", Lookup { agent_port: true, ..allowed }, Drop(Counter::LookupAgentPort)),
    ];
    for (what, view, expected) in table {
        assert_eq!(lookup(&view), expected, "{what}");
    }
}

#[test]
fn the_kubelet_reaches_what_the_pod_itself_declares_and_nothing_else() {
    use LookupVerdict::{Drop, Pass};
    let by_kubelet =
        |server_cookie| Some(Proof { kind: FLOW_PROBE, netns_cookie: 1, server_cookie, identity: [0; 16] });
    let strict = Lookup { flags: Some(POD_STRICT | POD_POLICY), policy: RULES, ..SYN };
    let probed = Lookup { proof: by_kubelet(7), probe_port: true, ..strict };
    let table = [
        ("declared", probed, Pass(Counter::LookupProbe)),
        ("another port", Lookup { probe_port: false, ..probed }, Drop(Counter::LookupStrict)),
        ("another pod's record", Lookup { proof: by_kubelet(8), ..probed }, Drop(Counter::LookupStrict)),
        ("somebody else", Lookup { proof: None, ..probed }, Drop(Counter::LookupStrict)),
        ("agent port", Lookup { agent_port: true, ..probed }, Drop(Counter::LookupAgentPort)),
    ];
    for (what, view, expected) in table {
        assert_eq!(lookup(&view), expected, "{what}");
    }
}

struct Table(HashMap<(u8, u8, u16), u32>);

impl PolicyView for Table {
    fn policy(&self, key: &PolicyKey) -> Option<u32> {
        self.0.get(&(key.policy[0], key.identity[0], key.port)).copied()
    }
}

proptest! {
    /// Only an entry that says so allows, the port's own before that of any port; all else refuses.
    #[test]
    fn nothing_is_allowed_without_an_entry_that_says_so(
        entries in proptest::collection::hash_map((1u8..4, 0u8..3, 0u16..4), 0u32..6, 0..20),
        policy in 0u8..4, identity in 0u8..3, port in 1u16..4,
    ) {
        let own = entries.get(&(policy, identity, port)).or_else(|| entries.get(&(policy, identity, ANY_PORT))).copied();
        let expected = match own {
            _ if policy == 0 => Verdict::Allow,
            Some(POLICY_ALLOW) => Verdict::Allow,
            Some(POLICY_AGENT) => Verdict::Agent,
            _ => Verdict::Deny,
        };
        prop_assert_eq!(verdict(&[policy; 16], &[identity; 16], port, &Table(entries)), expected);
    }

    /// Each eligible endpoint is as likely as any other, wherever it is.
    #[test]
    fn a_draw_serves_each_endpoint_once_in_a_full_turn(local in 1u16..6, elsewhere in 0u16..6) {
        let service = ServiceValue { eligible: local + elsewhere, local, ..SERVICE };
        let mut here = vec![0; usize::from(local)];
        let mut rest = 0;
        for drawn in 0..u32::from(local + elsewhere) {
            let view = Connect { service: Some(service), drawn, policy: Some(NO_POLICY), ..Connect::default() };
            match connect(POD_CAPTURES, &view) {
                ConnectVerdict::Native(endpoint) => here[usize::try_from(endpoint.netns_cookie).unwrap() - 10] += 1,
                ConnectVerdict::Capture(LANE_CAPTURED_REST) => rest += 1,
                other => prop_assert!(false, "{:?}", other),
            }
        }
        prop_assert!(here.iter().all(|count| *count == 1));
        prop_assert_eq!(rest, elsewhere);
    }
}
