//! What a SYN meets at its receiver.

use super::*;
use crate::key::{LISTENER_OUTBOUND, LISTENER_PLAINTEXT, LISTENER_TUNNEL};
use crate::value::POLICY_DENY;

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
