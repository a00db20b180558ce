//! The decision of the `connect` and `sk_lookup` hooks, without the kernel.
//!
//! The programs implement [`ConnectView`] and [`LookupView`] with map look-ups; the host's tests implement
//! them with tables. Questions are asked in order of cost, and none is asked after the answer is known.
//! A miss or an error where a policy applies refuses.

use crate::counter::Counter;
use crate::value::{
    FLOW_DELIVERY, FLOW_SELF, FlowValue, POD_CAPTURES, POD_POLICY, POD_STRICT, PORT_EXCLUDED, PORT_PERMISSIVE,
    PORT_STRICT, SERVICE_EMPTY, ServiceValue,
};

/// What the `connect` hook may ask about one connection of an enrolled pod.
pub trait ConnectView {
    /// The socket is the agent's own.
    fn is_agent_socket(&self) -> bool;
    /// The destination is 127/8 or ::1.
    fn is_loopback(&self) -> bool;
    /// The destination is the pod's own address.
    fn is_own_ip(&self) -> bool;
    /// The destination port or CIDR is excluded by annotation.
    fn is_excluded(&self) -> bool;
    /// The service behind the destination, if it is a virtual address.
    fn service(&self) -> Option<ServiceValue>;
    /// The destination is a captured pod.
    fn is_mesh_ip(&self) -> bool;
    /// The pod has an address of the destination's family to rewrite to.
    fn has_family(&self) -> bool;
    /// The agent's outbound listener stands in this pod.
    fn agent_listens(&self) -> bool;
}

/// What the `connect` hook does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectVerdict {
    /// Leave it alone.
    Bypass(Counter),
    /// Rewrite to the agent.
    Capture,
    /// Rewrite a virtual address to this endpoint, without the agent.
    Fallback(ServiceValue),
    /// ECONNREFUSED.
    Refuse(Counter),
}

/// Decides one TCP `connect()` of a pod with the given `POD_*` flags.
#[inline(always)]
pub fn connect(flags: u32, view: &impl ConnectView) -> ConnectVerdict {
    use ConnectVerdict::{Bypass, Capture, Fallback, Refuse};
    if view.is_loopback() {
        return Bypass(Counter::ConnectLoopback);
    }
    if view.is_agent_socket() {
        return Bypass(Counter::ConnectAgent);
    }
    if flags & POD_CAPTURES == 0 {
        return Bypass(Counter::ConnectNotCapturing);
    }
    if view.is_own_ip() {
        return Bypass(Counter::ConnectOwnIp);
    }
    if view.is_excluded() {
        return Bypass(Counter::ConnectExcluded);
    }
    let service = view.service();
    if let Some(service) = service {
        if service.flags & SERVICE_EMPTY != 0 {
            return Refuse(Counter::ConnectNoEndpoints);
        }
    } else if !view.is_mesh_ip() {
        return Bypass(Counter::ConnectOutside);
    }
    if !view.has_family() {
        return Bypass(Counter::ConnectNoFamily);
    }
    if view.agent_listens() {
        return Capture;
    }
    if flags & POD_STRICT != 0 {
        return Refuse(Counter::ConnectAgentAway);
    }
    match service {
        Some(service) if service.fallback_port != 0 => Fallback(service),
        _ => Bypass(Counter::ConnectFallback),
    }
}

/// What the `sk_lookup` hook may ask about one SYN to an enrolled pod.
pub trait LookupView {
    /// It arrived on the loopback device for a loopback address.
    fn is_loopback(&self) -> bool;
    /// It is no packet but the `connect` hook's question whether the agent listens.
    fn is_liveness(&self) -> bool;
    /// The port is the tunnel port.
    fn is_tunnel_port(&self) -> bool;
    /// The port is one of the agent's own.
    fn is_agent_port(&self) -> bool;
    /// The record of this four-tuple.
    fn flow(&self) -> Option<FlowValue>;
    /// Cookie of this pod's netns.
    fn netns_cookie(&self) -> u64;
    /// A captured connection of this pod has this source.
    fn is_captured(&self) -> bool;
    /// The `POD_*` flags of this pod.
    fn pod_flags(&self) -> Option<u32>;
    /// The rule of the dialled port, if it has one.
    fn port_rule(&self) -> Option<u32>;
}

/// What the `sk_lookup` hook does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookupVerdict {
    /// The ordinary look-up goes on: the application's listener gets it.
    Pass(Counter),
    /// The agent's listener of this kind gets it; dropped when it is gone.
    Steer(u32, Counter),
    /// Refused: the client gets RST at once.
    Drop(Counter),
}

/// Decides one inbound TCP connection of a pod.
#[inline(always)]
pub fn lookup(view: &impl LookupView) -> LookupVerdict {
    use LookupVerdict::{Drop, Pass, Steer};
    if view.is_liveness() {
        return Pass(Counter::LookupLiveness);
    }
    if view.is_loopback() {
        return Pass(Counter::LookupLoopback);
    }
    let Some(flags) = view.pod_flags() else {
        return Drop(Counter::LookupNoPod);
    };
    if view.is_tunnel_port() {
        return Steer(crate::key::LISTENER_TUNNEL, Counter::LookupTunnel);
    }
    if view.is_agent_port() {
        return if view.is_captured() {
            Steer(crate::key::LISTENER_OUTBOUND, Counter::LookupOutbound)
        } else {
            Drop(Counter::LookupAgentPort)
        };
    }
    if let Some(flow) = view.flow()
        && flow.netns_cookie == view.netns_cookie()
    {
        if flow.kind == FLOW_DELIVERY {
            return Pass(Counter::LookupDelivery);
        }
        if flow.kind == FLOW_SELF {
            return Pass(Counter::LookupSelf);
        }
    }
    let strict = match view.port_rule() {
        Some(PORT_EXCLUDED) => return Pass(Counter::LookupExcluded),
        Some(PORT_STRICT) => true,
        Some(PORT_PERMISSIVE) => false,
        _ => flags & POD_STRICT != 0,
    };
    if strict {
        return Drop(Counter::LookupStrict);
    }
    if flags & POD_POLICY != 0 {
        return Steer(crate::key::LISTENER_PLAINTEXT, Counter::LookupPlaintext);
    }
    Pass(Counter::LookupPermissive)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{LISTENER_OUTBOUND, LISTENER_PLAINTEXT, LISTENER_TUNNEL};

    #[derive(Clone, Copy, Default)]
    struct Connect {
        agent: bool,
        loopback: bool,
        own: bool,
        excluded: bool,
        service: Option<ServiceValue>,
        mesh: bool,
        no_family: bool,
        away: bool,
    }

    impl ConnectView for Connect {
        fn is_agent_socket(&self) -> bool {
            self.agent
        }
        fn is_loopback(&self) -> bool {
            self.loopback
        }
        fn is_own_ip(&self) -> bool {
            self.own
        }
        fn is_excluded(&self) -> bool {
            self.excluded
        }
        fn service(&self) -> Option<ServiceValue> {
            self.service
        }
        fn is_mesh_ip(&self) -> bool {
            self.mesh
        }
        fn has_family(&self) -> bool {
            !self.no_family
        }
        fn agent_listens(&self) -> bool {
            !self.away
        }
    }

    const SERVICE: ServiceValue = ServiceValue { fallback_ip: [9; 16], fallback_port: 8080, flags: 0 };

    #[test]
    fn connects_go_where_the_table_says() {
        use ConnectVerdict::{Bypass, Capture, Fallback, Refuse};
        let mesh = Connect { mesh: true, ..Connect::default() };
        let service = Connect { service: Some(SERVICE), ..Connect::default() };
        let empty = ServiceValue { flags: SERVICE_EMPTY, ..SERVICE };
        let alone = ServiceValue { fallback_port: 0, ..SERVICE };
        let (on, strict) = (POD_CAPTURES, POD_CAPTURES | POD_STRICT);
        let table = [
            ("a mesh pod", on, mesh, Capture),
            ("a service", on, service, Capture),
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
            (
                "agent away, strict, service",
                strict,
                Connect { away: true, ..service },
                Refuse(Counter::ConnectAgentAway),
            ),
            (
                "agent away, no fallback",
                on,
                Connect { away: true, service: Some(alone), ..mesh },
                Bypass(Counter::ConnectFallback),
            ),
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
        flow: Option<FlowValue>,
        captured: bool,
        flags: Option<u32>,
        rule: Option<u32>,
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
        fn flow(&self) -> Option<FlowValue> {
            self.flow
        }
        fn netns_cookie(&self) -> u64 {
            7
        }
        fn is_captured(&self) -> bool {
            self.captured
        }
        fn pod_flags(&self) -> Option<u32> {
            self.flags
        }
        fn port_rule(&self) -> Option<u32> {
            self.rule
        }
    }

    #[test]
    fn inbound_goes_where_the_table_says() {
        use LookupVerdict::{Drop, Pass, Steer};
        let syn = Lookup {
            loopback: false,
            liveness: false,
            tunnel: false,
            agent_port: false,
            flow: None,
            captured: false,
            flags: Some(POD_CAPTURES),
            rule: None,
        };
        let strict = Lookup { flags: Some(POD_STRICT), ..syn };
        let flow = |netns_cookie, kind| Some(FlowValue { netns_cookie, kind, pad: 0 });
        let table = [
            ("permissive", syn, Pass(Counter::LookupPermissive)),
            ("strict", strict, Drop(Counter::LookupStrict)),
            ("policy", Lookup { flags: Some(POD_POLICY), ..syn }, Steer(LISTENER_PLAINTEXT, Counter::LookupPlaintext)),
            ("strict and policy", Lookup { flags: Some(POD_POLICY | POD_STRICT), ..syn }, Drop(Counter::LookupStrict)),
            ("strict port", Lookup { rule: Some(PORT_STRICT), ..syn }, Drop(Counter::LookupStrict)),
            ("permissive port", Lookup { rule: Some(PORT_PERMISSIVE), ..strict }, Pass(Counter::LookupPermissive)),
            (
                "permissive port under a policy",
                Lookup { rule: Some(PORT_PERMISSIVE), flags: Some(POD_STRICT | POD_POLICY), ..syn },
                Steer(LISTENER_PLAINTEXT, Counter::LookupPlaintext),
            ),
            ("excluded port", Lookup { rule: Some(PORT_EXCLUDED), ..strict }, Pass(Counter::LookupExcluded)),
            ("no entry", Lookup { flags: None, ..syn }, Drop(Counter::LookupNoPod)),
            ("loopback", Lookup { loopback: true, flags: None, ..syn }, Pass(Counter::LookupLoopback)),
            ("liveness", Lookup { liveness: true, agent_port: true, ..syn }, Pass(Counter::LookupLiveness)),
            ("tunnel", Lookup { tunnel: true, ..strict }, Steer(LISTENER_TUNNEL, Counter::LookupTunnel)),
            (
                "captured",
                Lookup { agent_port: true, captured: true, ..strict },
                Steer(LISTENER_OUTBOUND, Counter::LookupOutbound),
            ),
            ("agent port dialled", Lookup { agent_port: true, ..syn }, Drop(Counter::LookupAgentPort)),
            (
                "agent port with a self record",
                Lookup { agent_port: true, flow: flow(7, FLOW_SELF), ..syn },
                Drop(Counter::LookupAgentPort),
            ),
            ("delivered", Lookup { flow: flow(7, FLOW_DELIVERY), ..strict }, Pass(Counter::LookupDelivery)),
            ("itself", Lookup { flow: flow(7, FLOW_SELF), ..strict }, Pass(Counter::LookupSelf)),
            ("another pod's record", Lookup { flow: flow(8, FLOW_SELF), ..strict }, Drop(Counter::LookupStrict)),
            ("a foreign delivery", Lookup { flow: flow(8, FLOW_DELIVERY), ..strict }, Drop(Counter::LookupStrict)),
        ];
        for (what, view, expected) in table {
            assert_eq!(lookup(&view), expected, "{what}");
        }
    }
}
