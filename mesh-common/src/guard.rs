//! The decision of the guard at a pod's veth: on packets, for what is no socket's and what socket hooks do not see.
//!
//! It keeps no table of connections that are in the mesh: a segment of TCP passes when the pod's namespace has a socket
//! with exactly its ends, because each of those was judged by `connect()` or opened by the other side. What goes
//! outside must be *known* besides: begun by a socket that the mesh itself has led there, or from outside.

use crate::counter::Counter;
use crate::egress::{DestinationView, Leaving, judge};
use crate::frame::{ACK, Kind, Packet, RST, SYN};
use crate::key::Ip;
use crate::value::{POD_REFUSES_OUTSIDE, POD_STRICT};

/// What the pod's namespace has for the ends of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Socket {
    /// Nothing.
    None,
    /// One that listens.
    Listener,
    /// One with exactly these ends. `led`: the mesh itself led it to where it goes.
    Exact {
        /// It has the agent's mark, or where it was sent by the `connect` hook.
        led: bool,
    },
}

/// What may be asked about a packet. The destination is the end that is not the pod's, in both directions.
pub trait PacketView: DestinationView {
    /// An address of the pod.
    fn is_own(&self, ip: &Ip) -> bool;
    /// The destination is a virtual address of a Service, by TCP.
    fn is_service(&self) -> bool;
    /// The connection with these ends is known.
    fn is_known(&self) -> bool;
    /// The socket with these ends; with `or_listener`, else the one that listens for it.
    fn socket(&self, or_listener: bool) -> Socket;
    /// The destination is the node itself: nobody forwards what goes there.
    fn is_node(&self) -> bool;
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Pass(Counter),
    /// It goes on, and its connection is known from now on.
    PassKnown(Counter),
    /// It is dropped.
    Drop(Counter),
}

/// Judges what a pod with these `POD_*` flags sends; `None` is what could not be read.
#[inline(always)]
pub fn leaves(flags: u32, packet: Option<&Packet>, view: &impl PacketView) -> Verdict {
    use Verdict::{Drop, Pass};
    if flags & POD_REFUSES_OUTSIDE == 0 {
        return Pass(Counter::GuardUnruled);
    }
    let Some(packet) = packet else {
        return Drop(Counter::GuardUnreadable);
    };
    match packet.kind {
        Kind::Arp | Kind::Link => return link(packet, view),
        Kind::Other => return Drop(Counter::GuardProtocol),
        _ => {}
    }
    if !view.is_own(&packet.from) {
        return Drop(Counter::GuardSource);
    }
    let inside = is_inside(flags, packet, view);
    match packet.kind {
        Kind::Tcp => segment(packet, inside, view),
        _ if inside => Pass(Counter::GuardDatagram),
        _ => Drop(Counter::GuardOutside),
    }
}

/// Judges what is sent to a pod with these `POD_*` flags.
#[inline(always)]
pub fn enters(flags: u32, packet: Option<&Packet>, view: &impl PacketView) -> Verdict {
    let passes = Verdict::Pass(Counter::GuardEntered);
    match packet {
        // TCP and UDP are the pod's own look-up's to judge.
        Some(Packet { kind: Kind::Other, .. }) | None if flags & POD_STRICT != 0 => Verdict::Drop(Counter::GuardStrict),
        Some(packet) if is_syn(packet) && flags & POD_REFUSES_OUTSIDE != 0 && !is_inside(flags, packet, view) => {
            Verdict::PassKnown(Counter::GuardEntered)
        }
        _ => passes,
    }
}

/// What keeps the pod's own link going. It must speak for the pod, and stay on the link.
#[inline(always)]
fn link(packet: &Packet, view: &impl PacketView) -> Verdict {
    if !view.is_own(&packet.from) && !is_of_link(&packet.from) {
        return Verdict::Drop(Counter::GuardSource);
    }
    // Pods of the mesh may be neighbours, on a bridge.
    if packet.kind == Kind::Arp || is_of_link(&packet.to) || view.mesh_ip().is_some() || view.is_node() {
        return Verdict::Pass(Counter::GuardLink);
    }
    Verdict::Drop(Counter::GuardOutside)
}

/// No address, a link-local one, or a group of the link.
#[inline(always)]
fn is_of_link(ip: &Ip) -> bool {
    match ip {
        [0xfe, second, ..] if *second & 0xc0 == 0x80 => true,
        [0xff, scope, ..] => *scope & 15 == 2,
        _ => *ip == [0; 16] || *ip == crate::key::v4_mapped([0; 4]),
    }
}

#[inline(always)]
fn is_inside(flags: u32, packet: &Packet, view: &impl PacketView) -> bool {
    match judge(flags, view) {
        Leaving::Mesh | Leaving::Excluded | Leaving::Admitted(_) => true,
        Leaving::Refused => packet.kind == Kind::Tcp && view.is_service(),
        // What stays in the pod does not come by here.
        Leaving::Local | Leaving::Unruled => false,
    }
}

#[inline(always)]
fn is_syn(packet: &Packet) -> bool {
    packet.kind == Kind::Tcp && packet.flags & (SYN | ACK | RST) == SYN
}

#[inline(always)]
fn segment(packet: &Packet, inside: bool, view: &impl PacketView) -> Verdict {
    use Verdict::{Drop, Pass, PassKnown};
    let begins = is_syn(packet);
    if !inside && !begins && !view.is_known() {
        return Drop(Counter::GuardOutside);
    }
    // A closed port answers, and so does a socket that has just gone. Under the pod's own address it can end the pod's
    // own connections only.
    if packet.flags & (SYN | RST) == RST && packet.empty {
        return Pass(Counter::GuardSegment);
    }
    // SYN cookies: nothing but the listener is there yet.
    let answers = packet.flags & (SYN | ACK | RST) == SYN | ACK && packet.empty;
    match view.socket(answers) {
        Socket::Exact { led: false } if begins && !inside => Drop(Counter::GuardOutside),
        Socket::Exact { .. } if begins && !inside => PassKnown(Counter::GuardSegment),
        Socket::Exact { .. } => Pass(Counter::GuardSegment),
        Socket::Listener if answers => Pass(Counter::GuardSegment),
        Socket::Listener | Socket::None => Drop(Counter::GuardNoSocket),
    }
}

#[cfg(test)]
#[path = "guard_tests.rs"]
mod tests;
