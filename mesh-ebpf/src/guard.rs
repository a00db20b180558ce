//! The guard: the only programs that run per packet, on the node's side of the veths of pods that have asked for it.
//! Loaded once per pod, like `sk_lookup`'s.
//!
//! On the node's side because only there everything comes by: packet sockets may leave a device without its egress
//! hooks (PACKET_QDISC_BYPASS, AF_XDP), and nothing inside the pod can take away what is attached outside.

use aya_ebpf::bindings::{
    __sk_buff, bpf_fib_lookup, bpf_sock, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Tuple4,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as Tuple6, tcx_action_base,
};
use aya_ebpf::helpers::generated::{
    bpf_fib_lookup as fib_lookup, bpf_sk_release, bpf_skb_load_bytes, bpf_skc_lookup_tcp,
};
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::PerCpuArray;
use aya_ebpf::programs::TcContext;
use mesh_common::counter::Counter;
use mesh_common::egress::DestinationView;
use mesh_common::frame::{Frame, Packet};
use mesh_common::guard::{PacketView, Socket, Verdict, enters, leaves};
use mesh_common::key::{Ip, KnownKey, ServiceKey, TCP};
use mesh_common::value::{MeshIpValue, PodValue};

use crate::lookup::pod_cookie;
use crate::maps::{AGENT_SK, ASKED, KNOWN, Read, SEEKS, Storage, count, pod, service};
use crate::outside::{To, tell};
use crate::read::{AF_INET6, field, is_v4, words};

/// What the netns of the device calls the pod's; set by the loader.
#[unsafe(no_mangle)]
static POD_NSID: u32 = 0;

/// `enum` of linux/tcp_states.h.
const TCP_LISTEN: u32 = 10;
/// Of `bpf_fib_lookup`: nothing to forward, or the device does not forward.
const NOT_FORWARDED: [i64; 2] = [4, 5];

/// The longest piece of a packet that is read at once.
const SCRATCH_BYTES: usize = 40;
/// Where pieces of packets are read to: the stack has no room for all of them.
#[map(name = "scratch")]
static SCRATCH: PerCpuArray<[u8; SCRATCH_BYTES]> = PerCpuArray::with_max_entries(1, 0);

/// What is known of the packet, for the same reason.
#[map(name = "packet")]
static PACKET: PerCpuArray<Packet> = PerCpuArray::with_max_entries(1, 0);

struct Skb(*mut __sk_buff);

impl Frame for Skb {
    #[inline(always)]
    fn read<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        const { assert!(N <= SCRATCH_BYTES) };
        let scratch = SCRATCH.get_ptr_mut(0)?;
        // SAFETY: the kernel writes `N` bytes of a per-CPU slot, or none, and the program is not preempted by itself.
        unsafe {
            let read = bpf_skb_load_bytes(self.0.cast(), at, scratch.cast(), N as u32);
            (read == 0).then(|| *scratch.cast::<[u8; N]>())
        }
    }

    #[inline(always)]
    fn is_tagged(&self) -> bool {
        field!((*self.0).vlan_present) != 0
    }
}

/// The end of a packet that is not the pod's, as the pod's egress rules ask about it.
struct View<'a> {
    skb: *mut __sk_buff,
    to: To<'a>,
    own_ip: Ip,
    own_port: u16,
}

impl View<'_> {
    #[inline(always)]
    fn known_key(&self) -> KnownKey {
        let To { cookie, ip, port, .. } = self.to;
        KnownKey { netns_cookie: cookie, ip, port, own_port: self.own_port, pad: 0 }
    }

    /// The socket in the pod's netns that a packet from the other end would find.
    #[inline(always)]
    fn look_up(&self) -> *mut bpf_sock {
        // SAFETY: all-zero is a valid tuple.
        let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
        let (other, own) = (words(&self.to.ip), words(&self.own_ip));
        let (sport, dport) = (self.to.port.to_be(), self.own_port.to_be());
        let size = if is_v4(&self.to.ip) {
            tuple.__bindgen_anon_1.ipv4 = Tuple4 { saddr: other[3], daddr: own[3], sport, dport };
            size_of::<Tuple4>()
        } else {
            tuple.__bindgen_anon_1.ipv6 = Tuple6 { saddr: other, daddr: own, sport, dport };
            size_of::<Tuple6>()
        };
        // SAFETY: a frozen read-only map; volatile, so that the placeholder is not folded in.
        let netns = u64::from(unsafe { core::ptr::read_volatile(&raw const POD_NSID) });
        // SAFETY: context and tuple are valid; the caller releases what is found.
        unsafe { bpf_skc_lookup_tcp(self.skb.cast(), &raw mut tuple, size as u32, netns, 0) }
    }
}

impl DestinationView for View<'_> {
    #[inline(always)]
    fn is_loopback(&self) -> bool {
        self.to.is_loopback()
    }

    #[inline(always)]
    fn is_own_ip(&self) -> bool {
        self.to.is_own_ip()
    }

    #[inline(always)]
    fn is_excluded(&self) -> bool {
        self.to.is_excluded()
    }

    #[inline(always)]
    fn mesh_ip(&self) -> Option<MeshIpValue> {
        self.to.mesh_ip()
    }

    #[inline(always)]
    fn admitted(&self) -> Option<u32> {
        self.to.admitted()
    }
}

impl PacketView for View<'_> {
    #[inline(always)]
    fn is_own(&self, ip: &Ip) -> bool {
        let own = if is_v4(ip) { &self.to.pod.ip4 } else { &self.to.pod.ip6 };
        words(ip) == words(own)
    }

    #[inline(always)]
    fn is_service(&self) -> bool {
        let To { ip, port, .. } = self.to;
        matches!(service(&ServiceKey { ip, port, protocol: TCP }), Read::Found(_))
    }

    #[inline(always)]
    fn is_known(&self) -> bool {
        // SAFETY: only presence is read.
        unsafe { KNOWN.get(self.known_key()) }.is_some()
    }

    #[inline(always)]
    fn socket(&self, or_listener: bool) -> Socket {
        let seeks = SEEKS.get_ptr_mut(0);
        if let Some(seeks) = seeks.filter(|_| !or_listener) {
            // SAFETY: a per-CPU slot, and the program is not preempted by itself.
            unsafe { seeks.write_volatile(1) };
        }
        let sk = self.look_up();
        if let Some(seeks) = seeks {
            // SAFETY: as above.
            unsafe { seeks.write_volatile(0) };
        }
        if sk.is_null() {
            return Socket::None;
        }
        let listens = field!((*sk).state) == TCP_LISTEN;
        let led = ASKED.on(sk).is_some() || AGENT_SK.on(sk).is_some();
        // SAFETY: found above, and released once.
        unsafe { bpf_sk_release(sk.cast()) };
        if listens { Socket::Listener } else { Socket::Exact { led } }
    }

    #[inline(always)]
    fn is_node(&self) -> bool {
        // SAFETY: all-zero is a valid argument.
        let mut asked: bpf_fib_lookup = unsafe { core::mem::zeroed() };
        asked.family = AF_INET6 as u8;
        asked.ifindex = field!((*self.skb).ifindex);
        asked.__bindgen_anon_3.ipv6_src = words(&self.own_ip);
        asked.__bindgen_anon_4.ipv6_dst = words(&self.to.ip);
        let size = size_of::<bpf_fib_lookup>() as i32;
        // SAFETY: the context is the kernel's, the argument as long as is said.
        let found = unsafe { fib_lookup(self.skb.cast(), &raw mut asked, size, 0) };
        found == NOT_FORWARDED[0] || found == NOT_FORWARDED[1]
    }
}

/// A pod that nothing is known of, for what is told of it.
static NOBODY: PodValue = PodValue { ip4: [0; 16], ip6: [0; 16], identity: [0; 16], policy: [0; 16], flags: 0, pad: 0 };

#[inline(always)]
fn guard(skb: *mut __sk_buff, leaving: bool) -> i32 {
    let cookie = pod_cookie();
    let known_pod = match pod(cookie) {
        Read::Found(pod) => Some(pod),
        Read::Missing | Read::Foreign => None,
    };
    let pod = known_pod.unwrap_or(&NOBODY);
    let Some(slot) = PACKET.get_ptr_mut(0) else {
        return tcx_action_base::TCX_DROP;
    };
    // SAFETY: a per-CPU slot, and the program is not preempted by itself; the zeroes that it begins with are a packet.
    let packet = unsafe { &mut *slot };
    let packet = packet.read(&Skb(skb)).map(|()| &*packet);
    let mut view =
        View { skb, to: To { cookie, pod, ip: [0; 16], port: 0, protocol: 0 }, own_ip: [0; 16], own_port: 0 };
    if let Some(packet) = packet {
        let Packet { from, to, from_port, port, protocol, .. } = packet;
        view.to.protocol = *protocol;
        if leaving {
            (view.to.ip, view.to.port, view.own_ip, view.own_port) = (*to, *port, *from, *from_port);
        } else {
            (view.to.ip, view.to.port, view.own_ip, view.own_port) = (*from, *from_port, *to, *port);
        }
    }
    let verdict = if known_pod.is_none() {
        Verdict::Drop(Counter::GuardNoPod)
    } else if leaving {
        leaves(pod.flags, packet, &view)
    } else {
        enters(pod.flags, packet, &view)
    };
    match verdict {
        Verdict::Pass(counter) => count(counter),
        Verdict::PassKnown(counter) => {
            // One that finds no room is not known: its next segment is refused.
            let _ = KNOWN.insert(view.known_key(), 1, 0);
            count(counter);
        }
        Verdict::Drop(counter) => {
            count(counter);
            tell(&view.to.refusal(counter));
            return tcx_action_base::TCX_DROP;
        }
    }
    tcx_action_base::TCX_NEXT
}

/// What the pod sends: ingress of the node's side.
#[classifier]
pub fn mesh_guard_out(ctx: TcContext) -> i32 {
    guard(ctx.skb.skb, true)
}

/// What is sent to the pod: egress of the node's side.
#[classifier]
pub fn mesh_guard_in(ctx: TcContext) -> i32 {
    guard(ctx.skb.skb, false)
}
