//! The decision on what is not in the mesh: for connections, datagrams and packets that leave a pod, and for UDP that
//! comes into one.
//!
//! Asked by the same rules as [`crate::decide`]: in order of cost, and a miss where a rule applies refuses.

use crate::counter::Counter;
use crate::value::{MeshIpValue, POD_REFUSES_OUTSIDE, POD_UDP_PORTS, POD_UDP_STRICT};

/// What may be asked about where a pod's connection, datagram or packet goes.
pub trait DestinationView {
    /// The destination is 127/8, ::1, or no address at all, which means the same.
    fn is_loopback(&self) -> bool;
    /// The destination is the pod's own address.
    fn is_own_ip(&self) -> bool;
    /// The destination port or CIDR is excluded by annotation.
    fn is_excluded(&self) -> bool;
    /// The destination, if it is a captured pod's address.
    fn mesh_ip(&self) -> Option<MeshIpValue>;
    /// The built-in rule that admits address, port and protocol.
    fn admitted(&self) -> Option<u32>;
}

/// Where something goes that leaves a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// Nothing says that the pod refuses anything.
    Unruled,
    /// It stays in the pod.
    Local,
    /// Excluded by an annotation that counts.
    Excluded,
    /// To a captured pod.
    Mesh,
    /// Outside the mesh, by this built-in rule.
    Admitted(u32),
    /// Outside the mesh: refused.
    Refused,
}

/// Judges what leaves a pod with the given `POD_*` flags by no lane: any protocol but TCP, and packets.
#[inline(always)]
pub fn judge(flags: u32, view: &impl DestinationView) -> Leaving {
    if flags & POD_REFUSES_OUTSIDE == 0 {
        return Leaving::Unruled;
    }
    if view.is_loopback() || view.is_own_ip() {
        return Leaving::Local;
    }
    if view.is_excluded() {
        return Leaving::Excluded;
    }
    if view.mesh_ip().is_some() {
        return Leaving::Mesh;
    }
    outside(flags, view)
}

/// The last question of [`judge`], for what is known not to be in the mesh.
#[inline(always)]
pub fn outside(flags: u32, view: &impl DestinationView) -> Leaving {
    if flags & POD_REFUSES_OUTSIDE == 0 {
        return Leaving::Unruled;
    }
    match view.admitted() {
        Some(rule) => Leaving::Admitted(rule),
        None => Leaving::Refused,
    }
}

/// What may be asked about a datagram to an unconnected UDP socket of a pod.
pub trait ArrivingDatagram {
    /// It arrived on the loopback device for a loopback address.
    fn is_loopback(&self) -> bool;
    /// The pod's `POD_*` flags; `None` when it has no entry.
    fn flags(&self) -> Option<u32>;
    /// The port is one of those on which UDP is refused.
    fn is_refused_port(&self) -> bool;
    /// It comes from an address and port that a built-in rule admits.
    fn is_answer(&self) -> bool;
}

/// Judges UDP that arrives: `None` passes without a word, because nothing is refused there.
#[inline(always)]
pub fn datagram_in(view: &impl ArrivingDatagram) -> Option<Counter> {
    if view.is_loopback() {
        return None;
    }
    let Some(flags) = view.flags() else {
        return Some(Counter::LookupNoPod);
    };
    if flags & POD_UDP_STRICT == 0 && (flags & POD_UDP_PORTS == 0 || !view.is_refused_port()) {
        return None;
    }
    Some(if view.is_answer() { Counter::LookupUdpAdmitted } else { Counter::LookupUdpStrict })
}

#[cfg(test)]
#[path = "egress_tests.rs"]
mod tests;
