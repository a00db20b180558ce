//! The guard's decision as tables, and over bytes of any kind.

use super::*;
use crate::frame::Frame;
use crate::key::{TCP, UDP, v4_mapped};
use crate::value::MeshIpValue;
use std::vec::Vec;

const OWN: [u8; 4] = [10, 0, 0, 1];
const OTHER: [u8; 4] = [10, 0, 0, 2];

/// What the maps say.
#[derive(Clone, Copy)]
struct World {
    to: Ip,
    mesh: bool,
    service: bool,
    admitted: bool,
    known: bool,
    node: bool,
    socket: Socket,
}

const NOWHERE: World = World {
    to: v4_mapped(OTHER),
    mesh: false,
    service: false,
    admitted: false,
    known: false,
    node: false,
    socket: Socket::None,
};

impl DestinationView for World {
    fn is_loopback(&self) -> bool {
        crate::key::is_this_host(&self.to)
    }

    fn is_own_ip(&self) -> bool {
        self.is_own(&self.to)
    }

    fn is_excluded(&self) -> bool {
        false
    }

    fn mesh_ip(&self) -> Option<MeshIpValue> {
        self.mesh.then_some(MeshIpValue { netns_cookie: 0 })
    }

    fn admitted(&self) -> Option<u32> {
        self.admitted.then_some(1)
    }
}

impl PacketView for World {
    fn is_own(&self, ip: &Ip) -> bool {
        *ip == v4_mapped(OWN)
    }

    fn is_service(&self) -> bool {
        self.service
    }

    fn is_known(&self) -> bool {
        self.known
    }

    fn socket(&self, or_listener: bool) -> Socket {
        if self.socket == Socket::Listener && !or_listener { Socket::None } else { self.socket }
    }

    fn is_node(&self) -> bool {
        self.node
    }
}

const SEGMENT: Packet = Packet {
    kind: Kind::Tcp,
    from: v4_mapped(OWN),
    to: v4_mapped(OTHER),
    from_port: 1,
    port: 2,
    protocol: TCP,
    flags: ACK,
    empty: false,
};

fn sent(packet: Packet, world: World) -> Verdict {
    leaves(POD_REFUSES_OUTSIDE, Some(&packet), &world)
}

#[test]
fn a_segment_needs_its_socket_and_outside_a_beginning() {
    use Counter::{GuardNoSocket as NoSocket, GuardOutside as Outside, GuardSegment as Segment};
    use Verdict::{Drop, Pass, PassKnown};
    let exact = |led| Socket::Exact { led };
    let inside = World { mesh: true, ..NOWHERE };
    let known = World { known: true, ..NOWHERE };
    let with = |world, socket| World { socket, ..world };
    let segment = |flags, empty| Packet { flags, empty, ..SEGMENT };
    for (packet, world, expected) in [
        (segment(SYN, true), with(inside, exact(false)), Pass(Segment)),
        (segment(SYN, true), inside, Drop(NoSocket)),
        (segment(SYN, true), with(inside, Socket::Listener), Drop(NoSocket)),
        (segment(ACK, false), with(inside, exact(false)), Pass(Segment)),
        (segment(ACK, false), inside, Drop(NoSocket)),
        (segment(SYN | ACK, true), with(inside, Socket::Listener), Pass(Segment)),
        (segment(SYN | ACK, false), with(inside, Socket::Listener), Drop(NoSocket)),
        (segment(SYN | ACK | RST, true), with(inside, Socket::Listener), Drop(NoSocket)),
        (segment(RST, true), inside, Pass(Segment)),
        (segment(RST | ACK, true), inside, Pass(Segment)),
        (segment(RST, false), inside, Drop(NoSocket)),
        (segment(SYN | RST, true), inside, Drop(NoSocket)),
        // Outside, and the mesh itself has led a socket there, or not.
        (segment(SYN, true), with(NOWHERE, exact(true)), PassKnown(Segment)),
        (segment(SYN, true), with(NOWHERE, exact(false)), Drop(Outside)),
        (segment(SYN, true), NOWHERE, Drop(NoSocket)),
        (segment(ACK, false), with(NOWHERE, exact(true)), Drop(Outside)),
        (segment(ACK, false), with(known, exact(false)), Pass(Segment)),
        (segment(ACK, false), known, Drop(NoSocket)),
        (segment(SYN | ACK, true), with(known, Socket::Listener), Pass(Segment)),
        (segment(SYN | ACK, true), with(NOWHERE, Socket::Listener), Drop(Outside)),
        (segment(RST, true), known, Pass(Segment)),
        (segment(RST, true), NOWHERE, Drop(Outside)),
    ] {
        assert_eq!(sent(packet, world), expected, "{packet:?}");
    }
    for world in [World { service: true, ..NOWHERE }, World { admitted: true, ..NOWHERE }] {
        assert_eq!(sent(SEGMENT, with(world, exact(false))), Pass(Segment));
    }
}

#[test]
fn everything_else_goes_by_its_destination() {
    use Counter::{GuardDatagram as Datagram, GuardOutside as Outside, GuardProtocol as Protocol};
    use Verdict::{Drop, Pass};
    let inside = World { mesh: true, ..NOWHERE };
    for kind in [Kind::Udp, Kind::Icmp, Kind::Error, Kind::Fragment] {
        let packet = Packet { kind, protocol: UDP, ..SEGMENT };
        assert_eq!(sent(packet, inside), Pass(Datagram), "{kind:?}");
        assert_eq!(sent(packet, NOWHERE), Drop(Outside), "{kind:?}");
        assert_eq!(sent(packet, World { service: true, known: true, ..NOWHERE }), Drop(Outside), "{kind:?}");
    }
    assert_eq!(sent(Packet { kind: Kind::Other, ..SEGMENT }, inside), Drop(Protocol));
    assert_eq!(leaves(POD_REFUSES_OUTSIDE, None, &inside), Drop(Counter::GuardUnreadable));
    assert_eq!(leaves(0, None, &NOWHERE), Pass(Counter::GuardUnruled));
    // What stays in the pod has no business on the veth.
    for to in [OWN, [127, 0, 0, 1], [0; 4]] {
        let world = World { to: v4_mapped(to), mesh: true, socket: Socket::Exact { led: true }, ..NOWHERE };
        assert_eq!(sent(Packet { kind: Kind::Udp, ..SEGMENT }, world), Drop(Outside), "{to:?}");
    }
}

#[test]
fn nothing_leaves_under_another_address() {
    let world = World { mesh: true, socket: Socket::Exact { led: true }, ..NOWHERE };
    for kind in [Kind::Tcp, Kind::Udp, Kind::Icmp, Kind::Error, Kind::Fragment, Kind::Arp, Kind::Link] {
        let packet = Packet { kind, from: v4_mapped([10, 0, 0, 9]), ..SEGMENT };
        assert_eq!(sent(packet, world), Verdict::Drop(Counter::GuardSource), "{kind:?}");
    }
}

#[test]
fn the_links_own_stays_on_the_link() {
    let link = |from, to| Packet { kind: Kind::Link, from, to, ..SEGMENT };
    let mut local = [0; 16];
    (local[0], local[1], local[15]) = (0xfe, 0x80, 1);
    let mut group = [0; 16];
    (group[0], group[1], group[15]) = (0xff, 2, 1);
    let mut wide = group;
    wide[1] = 5;
    let (own, far) = (v4_mapped(OWN), v4_mapped(OTHER));
    let pass = Verdict::Pass(Counter::GuardLink);
    for from in [own, local, [0; 16]] {
        assert_eq!(sent(link(from, local), NOWHERE), pass, "{from:?}");
        assert_eq!(sent(link(from, group), NOWHERE), pass, "{from:?}");
        assert_eq!(sent(link(from, far), World { node: true, ..NOWHERE }), pass, "{from:?}");
        assert_eq!(sent(link(from, far), World { mesh: true, ..NOWHERE }), pass, "{from:?}");
        assert_eq!(sent(link(from, far), World { admitted: true, ..NOWHERE }), Verdict::Drop(Counter::GuardOutside));
        assert_eq!(sent(link(from, wide), NOWHERE), Verdict::Drop(Counter::GuardOutside), "{from:?}");
    }
    for sender in [OWN, [0; 4]] {
        assert_eq!(sent(Packet { kind: Kind::Arp, from: v4_mapped(sender), ..SEGMENT }, NOWHERE), pass);
    }
}

#[test]
fn strict_pods_take_what_somebody_judges() {
    let other = Packet { kind: Kind::Other, ..SEGMENT };
    let passes = Verdict::Pass(Counter::GuardEntered);
    for refused in [Some(&other), None] {
        assert_eq!(enters(POD_STRICT, refused, &NOWHERE), Verdict::Drop(Counter::GuardStrict));
        assert_eq!(enters(POD_REFUSES_OUTSIDE, refused, &NOWHERE), passes);
    }
    for kind in [Kind::Tcp, Kind::Udp, Kind::Icmp, Kind::Error, Kind::Fragment, Kind::Arp, Kind::Link] {
        assert_eq!(enters(POD_STRICT, Some(&Packet { kind, ..SEGMENT }), &NOWHERE), passes, "{kind:?}");
    }
    let syn = Packet { flags: SYN, ..SEGMENT };
    let begun = Verdict::PassKnown(Counter::GuardEntered);
    assert_eq!(enters(POD_REFUSES_OUTSIDE, Some(&syn), &NOWHERE), begun);
    assert_eq!(enters(POD_REFUSES_OUTSIDE, Some(&syn), &World { mesh: true, ..NOWHERE }), passes);
    assert_eq!(enters(POD_REFUSES_OUTSIDE, Some(&SEGMENT), &NOWHERE), passes);
    assert_eq!(enters(0, Some(&syn), &NOWHERE), passes);
}

struct Bytes(Vec<u8>);

impl Frame for Bytes {
    fn read<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        let at = at as usize;
        self.0.get(at..at + N)?.try_into().ok()
    }

    fn is_tagged(&self) -> bool {
        false
    }
}

/// Whatever the bytes are, what leaves is whole, the pod's own, and goes where it may.
#[test]
fn no_bytes_pass_that_a_plain_reading_would_refuse() {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    };
    let mut passed = 0_u32;
    for _ in 0..200_000 {
        let mut bytes: Vec<u8> = (0..random() % 100).map(|_| random() as u8).collect();
        // Mostly IPv4 without options, from the pod, of a protocol that is read.
        for (at, value) in
            [(12, 8), (13, 0), (14, 0x45), (20, 0), (21, 0), (23, [6, 17, 1, 132][random() as usize % 4])]
        {
            if random() % 8 != 0
                && let Some(byte) = bytes.get_mut(at)
            {
                *byte = value;
            }
        }
        if let Some(source) = bytes.get_mut(26..30) {
            source.copy_from_slice(&OWN);
        }
        let mut packet = Packet::NOTHING;
        let read = packet.read(&Bytes(bytes.clone())).map(|()| packet);
        let inside = random() % 2 == 0;
        let world = World { to: packet.to, mesh: inside, ..NOWHERE };
        let verdict = leaves(POD_REFUSES_OUTSIDE, read.as_ref(), &world);
        let Verdict::Pass(counter) = verdict else { continue };
        passed += 1;
        let ip = bytes.get(12..14) == Some(&[8, 0]);
        match counter {
            Counter::GuardLink => assert!(!ip, "{bytes:?}"),
            _ => {
                assert!(inside, "outside: {bytes:?}");
                if ip {
                    assert!(bytes.len() >= 34 && bytes[14] == 0x45, "{bytes:?}");
                    assert!([1, 6, 17].contains(&bytes[23]), "{bytes:?}");
                }
            }
        }
    }
    assert!(passed > 1_000, "only {passed} pass: the test has nothing to say");
}
