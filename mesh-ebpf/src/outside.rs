//! What leaves a pod, as `mesh_common::egress` asks about it, and how a refusal of it is told.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::maps::lpm_trie::Key;
use mesh_common::counter::Counter;
use mesh_common::egress::{DestinationView, Leaving, judge};
use mesh_common::key::{CidrKey, Ip, OUTBOUND, ServiceKey, is_this_host};
use mesh_common::limits::TOLD_PER_SECOND;
use mesh_common::value::{Event, MeshIpValue, PORT_EXCLUDED, PodValue};

use crate::maps::{ADMITTED, EXCLUDED_CIDRS, MESH_IPS, TOLD, count, increment, port_rule, report};
use crate::read::{is_v4, words};

const ECONNREFUSED: i32 = 111;
/// What a refusal looks like to the application: ECONNREFUSED, as from a closed port, or EACCES. Set by the loader.
#[unsafe(no_mangle)]
static DENY_ERRNO: i32 = ECONNREFUSED;
/// Bits of the cookie in front of the address in a [`CidrKey`], plus the address.
const CIDR_BITS: u32 = 64 + 128;
/// A second as [`tell`] counts them: a shift is all that it costs.
const SECOND_BITS: u32 = 30;

/// The errno of a refusal by a rule.
#[inline(always)]
pub fn deny_errno() -> i32 {
    // SAFETY: a frozen read-only map; volatile, so that the placeholder is not folded in.
    unsafe { core::ptr::read_volatile(&raw const DENY_ERRNO) }
}

/// Where something goes that leaves a pod.
pub struct To<'a> {
    pub cookie: u64,
    pub pod: &'a PodValue,
    pub ip: Ip,
    pub port: u16,
    pub protocol: u16,
}

/// The built-in rule that admits a destination.
#[inline(always)]
pub fn admitted(ip: Ip, port: u16, protocol: u16) -> Option<u32> {
    // SAFETY: one word is read, and only that there is one decides: it was this destination's when it was looked up.
    unsafe { ADMITTED.get(ServiceKey { ip, port, protocol }) }.map(|value| value.rule)
}

impl To<'_> {
    /// The pod's own address of the destination's family.
    #[inline(always)]
    pub fn own_ip(&self) -> &Ip {
        if is_v4(&self.ip) { &self.pod.ip4 } else { &self.pod.ip6 }
    }

    /// A refusal of it.
    #[inline(always)]
    pub fn refusal(&self, counter: Counter) -> Event {
        Event {
            netns_cookie: self.cookie,
            peer_ip: self.ip,
            local_ip: *self.own_ip(),
            peer_port: self.port,
            local_port: 0,
            counter: counter as u32,
            peer_cookie: 0,
        }
    }
}

impl DestinationView for To<'_> {
    #[inline(always)]
    fn is_loopback(&self) -> bool {
        is_this_host(&self.ip)
    }

    #[inline(always)]
    fn is_own_ip(&self) -> bool {
        words(&self.ip) == words(self.own_ip())
    }

    #[inline(always)]
    fn is_excluded(&self) -> bool {
        if port_rule(self.cookie, self.port, OUTBOUND) == Some(PORT_EXCLUDED) {
            return true;
        }
        let cidr = Key::new(CIDR_BITS, CidrKey { netns_cookie: self.cookie.to_ne_bytes(), ip: self.ip });
        EXCLUDED_CIDRS.get(cidr).is_some()
    }

    #[inline(always)]
    fn mesh_ip(&self) -> Option<MeshIpValue> {
        // SAFETY: a copy is taken at once.
        unsafe { MESH_IPS.get(self.ip) }.copied()
    }

    #[inline(always)]
    fn admitted(&self) -> Option<u32> {
        admitted(self.ip, self.port, self.protocol)
    }
}

/// Judges a datagram, or what is connected by another protocol than TCP. False: refused, counted and told.
#[inline(always)]
pub fn may_leave(to: &To<'_>, refused: Counter) -> bool {
    let counter = match judge(to.pod.flags, to) {
        Leaving::Unruled => return true,
        Leaving::Local => Counter::DatagramLocal,
        Leaving::Excluded => Counter::DatagramExcluded,
        Leaving::Mesh => Counter::DatagramMesh,
        Leaving::Admitted(_) => Counter::DatagramAdmitted,
        Leaving::Refused => {
            count(refused);
            tell(&to.refusal(refused));
            return false;
        }
    };
    count(counter);
    true
}

/// Tells user space of a refusal that a pod, or whoever sends to it, can cause at any rate: so many a second for each
/// pod, and the rest is only counted.
#[inline(always)]
pub fn tell(event: &Event) {
    let Some(told) = TOLD.get_ptr_mut(event.netns_cookie) else {
        count(Counter::EventLimited);
        return;
    };
    // SAFETY: a live map value. Two CPUs may both begin a second; then one more may be told.
    let refusals = unsafe {
        let second = bpf_ktime_get_ns() >> SECOND_BITS;
        if (*told).second != second {
            (*told).second = second;
            (*told).refusals = 0;
        }
        increment(&raw mut (*told).refusals);
        core::ptr::read_volatile(&raw const (*told).refusals)
    };
    if refusals > TOLD_PER_SECOND {
        count(Counter::EventLimited);
    } else {
        report(event);
    }
}
