//! Where a connect() goes.

use proptest::prelude::*;

use super::*;
use crate::value::{ADMITTED_KUBERNETES, POLICY_DENY};

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

proptest! {
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
