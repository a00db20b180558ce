//! Tables of the decision on what is not in the mesh.

use super::*;
use crate::value::{ADMITTED_CLUSTER_DNS, POD_CAPTURES};

#[derive(Clone, Copy, Default)]
struct To {
    loopback: bool,
    own: bool,
    excluded: bool,
    mesh: bool,
    admitted: bool,
}

impl DestinationView for To {
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
        self.mesh.then_some(MeshIpValue { netns_cookie: 0 })
    }
    fn admitted(&self) -> Option<u32> {
        self.admitted.then_some(ADMITTED_CLUSTER_DNS)
    }
}

#[test]
fn what_leaves_a_pod_is_judged_as_the_table_says() {
    let outside = To::default();
    let on = POD_REFUSES_OUTSIDE;
    let table = [
        ("no rule", POD_CAPTURES, outside, Leaving::Unruled),
        ("outside", on, outside, Leaving::Refused),
        ("outside, whatever else the pod is", !0, outside, Leaving::Refused),
        ("loopback", on, To { loopback: true, ..outside }, Leaving::Local),
        ("itself", on, To { own: true, ..outside }, Leaving::Local),
        ("excluded", on, To { excluded: true, ..outside }, Leaving::Excluded),
        ("the mesh", on, To { mesh: true, ..outside }, Leaving::Mesh),
        ("admitted", on, To { admitted: true, ..outside }, Leaving::Admitted(ADMITTED_CLUSTER_DNS)),
        ("in the mesh, and admitted", on, To { mesh: true, admitted: true, ..outside }, Leaving::Mesh),
    ];
    for (what, flags, view, expected) in table {
        assert_eq!(judge(flags, &view), expected, "{what}");
    }
}

#[derive(Clone, Copy, Default)]
struct In {
    loopback: bool,
    flags: Option<u32>,
    named: bool,
    answer: bool,
}

impl ArrivingDatagram for In {
    fn is_loopback(&self) -> bool {
        self.loopback
    }
    fn flags(&self) -> Option<u32> {
        self.flags
    }
    fn is_refused_port(&self) -> bool {
        self.named
    }
    fn is_answer(&self) -> bool {
        self.answer
    }
}

#[test]
fn udp_into_a_pod_is_judged_as_the_table_says() {
    let plain = In { flags: Some(0), ..In::default() };
    let all = In { flags: Some(POD_UDP_STRICT), ..plain };
    let ports = In { flags: Some(POD_UDP_PORTS), ..plain };
    let table = [
        ("nothing refused", plain, None),
        ("nothing refused, a stale port rule", In { named: true, ..plain }, None),
        ("every port", all, Some(Counter::LookupUdpStrict)),
        ("every port, from the pod itself", In { loopback: true, ..all }, None),
        ("every port, an answer", In { answer: true, ..all }, Some(Counter::LookupUdpAdmitted)),
        ("a port not named", ports, None),
        ("a port named", In { named: true, ..ports }, Some(Counter::LookupUdpStrict)),
        ("a port named, an answer", In { named: true, answer: true, ..ports }, Some(Counter::LookupUdpAdmitted)),
        ("no entry", In { flags: None, ..plain }, Some(Counter::LookupNoPod)),
    ];
    for (what, view, expected) in table {
        assert_eq!(datagram_in(&view), expected, "{what}");
    }
}
