//! `connect4` and `connect6`: the pod is found by netns cookie, the lane chosen, the destination rewritten.

use aya_ebpf::bindings::{
    bpf_sock, bpf_sock_addr, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Tuple4,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as Tuple6,
};
use aya_ebpf::helpers::generated::{
    bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_set_retval, bpf_sk_lookup_tcp, bpf_sk_release,
};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::counter::Counter;
use mesh_common::decide::{self, ConnectVerdict, ConnectView, Destination, PolicyView};
use mesh_common::egress::DestinationView;
use mesh_common::key::{Digest, EndpointKey, INBOUND, Ip, PolicyKey, ServiceKey, TCP, capture_port};
use mesh_common::limits::{CAPTURE_PORT_FIRST, RECORDS_PER_POD};
use mesh_common::value::{
    BROKEN_POLICY, EndpointValue, Event, LANE_FALLBACK, LANE_NATIVE, MeshIpValue, OrigDst, PORT_EXCLUDED, ServiceValue,
};

use crate::maps::{AGENT_SK, ASKED, ENDPOINTS, POLICY, Read, SHARES, Storage, count, pod, port_rule, report, service};
use crate::outside::{To, deny_errno, tell};
use crate::read::{IPPROTO_TCP, field, ip4, ip6, is_v4, words};

const ALLOW: i32 = 1;
const DENY: i32 = 0;
const ECONNREFUSED: i32 = 111;
/// Look up in the netns of the calling task.
const CURRENT_NETNS: u64 = u64::MAX;

struct View<'a> {
    sk: *mut bpf_sock,
    raw: *mut bpf_sock_addr,
    to: To<'a>,
}

impl PolicyView for View<'_> {
    #[inline(always)]
    fn policy(&self, key: &PolicyKey) -> Option<u32> {
        // SAFETY: one word is read.
        unsafe { POLICY.get(key) }.map(|value| value.verdict)
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

impl ConnectView for View<'_> {
    #[inline(always)]
    fn is_agent_socket(&self) -> bool {
        AGENT_SK.on(self.sk).is_some()
    }

    #[inline(always)]
    fn service(&self) -> Option<ServiceValue> {
        let To { ip, port, protocol, .. } = self.to;
        match service(&ServiceKey { ip, port, protocol }) {
            Read::Found(service) => Some(*service),
            Read::Missing => None,
            Read::Foreign => Some(ServiceValue::NOTHING),
        }
    }

    #[inline(always)]
    fn endpoint(&self, list: u32, slot: u32) -> Option<EndpointValue> {
        // SAFETY: a list's entries never change, and go a second after the last service that names it.
        unsafe { ENDPOINTS.get(EndpointKey { list, slot }) }.copied()
    }

    #[inline(always)]
    fn draw(&self) -> u32 {
        // SAFETY: no pointer is involved.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn dialled(&self) -> (Ip, u16) {
        (self.to.ip, self.to.port)
    }

    #[inline(always)]
    fn destination(&self, netns_cookie: u64, port: u16) -> Option<Destination> {
        let policy = match pod(netns_cookie) {
            Read::Found(pod) => pod.policy,
            Read::Missing => return None,
            Read::Foreign => BROKEN_POLICY,
        };
        Some(Destination { policy, excluded: port_rule(netns_cookie, port, INBOUND) == Some(PORT_EXCLUDED) })
    }

    #[inline(always)]
    fn identity(&self) -> Digest {
        self.to.pod.identity
    }

    #[inline(always)]
    fn is_share_full(&self) -> bool {
        // SAFETY: one aligned word is read.
        unsafe { SHARES.get(self.to.cookie) }.is_none_or(|share| share.records >= RECORDS_PER_POD)
    }

    #[inline(always)]
    fn has_family(&self) -> bool {
        words(self.to.own_ip()) != [0; 4]
    }

    #[inline(always)]
    fn agent_listens(&self) -> bool {
        let port = CAPTURE_PORT_FIRST.to_be();
        // SAFETY: all-zero is a valid tuple.
        let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
        let own = words(self.to.own_ip());
        let len = if is_v4(&self.to.ip) {
            tuple.__bindgen_anon_1.ipv4 = Tuple4 { saddr: 0, daddr: own[3], sport: 0, dport: port };
            12
        } else {
            tuple.__bindgen_anon_1.ipv6 = Tuple6 { saddr: [0; 4], daddr: own, sport: 0, dport: port };
            36
        };
        // SAFETY: the kernel checks the context and the tuple's length; the reference is given back.
        unsafe {
            let sk = bpf_sk_lookup_tcp(self.raw.cast(), &raw mut tuple, len, CURRENT_NETNS, 0);
            if sk.is_null() {
                return false;
            }
            bpf_sk_release(sk.cast());
        }
        true
    }
}

/// What is to be done with the address.
enum Action {
    Pass,
    Rewrite(Ip, u16),
    Refuse(i32),
}

#[inline(always)]
fn decide(ctx: &SockAddrContext, ip: Ip, port: u16) -> Action {
    if field!((*ctx.sock_addr).protocol) != IPPROTO_TCP {
        return Action::Pass;
    }
    // SAFETY: the context is the kernel's.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) };
    let pod = match pod(cookie) {
        Read::Found(pod) => pod,
        Read::Missing => return Action::Pass,
        Read::Foreign => return Action::Refuse(ECONNREFUSED),
    };
    let to = To { cookie, pod, ip, port, protocol: TCP };
    // SAFETY: every `connect` context has a full socket.
    let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    let view = View { sk, raw: ctx.sock_addr, to };
    match decide::connect(pod.flags, &view) {
        ConnectVerdict::Bypass(counter) => {
            // A socket may be connected again after a refusal: what it asked for before must not be shown.
            ASKED.clear(sk);
            count(counter);
            Action::Pass
        }
        ConnectVerdict::Refuse(counter) => {
            count(counter);
            Action::Refuse(ECONNREFUSED)
        }
        ConnectVerdict::Deny(endpoint) => {
            count(Counter::ConnectDenied);
            report(&view.denial(&endpoint));
            Action::Refuse(deny_errno())
        }
        ConnectVerdict::RefuseOutside => {
            count(Counter::ConnectEgress);
            tell(&view.to.refusal(Counter::ConnectEgress));
            Action::Refuse(deny_errno())
        }
        ConnectVerdict::Capture(lane) => {
            let (to, to_port) = (*view.to.own_ip(), capture_port(&ip, port));
            view.remember(lane, 0, Counter::ConnectCaptured, to, to_port)
        }
        ConnectVerdict::Native(endpoint) => {
            let server = endpoint.netns_cookie;
            view.remember(LANE_NATIVE, server, Counter::ConnectNative, endpoint.ip, endpoint.port)
        }
        ConnectVerdict::Fallback(service) => {
            let (to, to_port) = (service.fallback_ip, service.fallback_port);
            view.remember(LANE_FALLBACK, 0, Counter::ConnectFallback, to, to_port)
        }
    }
}

impl View<'_> {
    /// Leaves on the socket what was asked and what became of it.
    #[inline(always)]
    fn remember(&self, lane: u16, server_cookie: u64, counter: Counter, to: Ip, to_port: u16) -> Action {
        match ASKED.on_or_new(self.sk) {
            Some(slot) => {
                slot.orig = OrigDst { ip: self.to.ip, port: self.to.port, lane };
                slot.server_cookie = server_cookie;
                count(counter);
                Action::Rewrite(to, to_port)
            }
            None => {
                count(Counter::ConnectStoreFailed);
                Action::Refuse(ECONNREFUSED)
            }
        }
    }

    #[inline(always)]
    fn denial(&self, endpoint: &EndpointValue) -> Event {
        Event {
            netns_cookie: self.to.cookie,
            peer_ip: endpoint.ip,
            local_ip: *self.to.own_ip(),
            peer_port: endpoint.port,
            local_port: 0,
            counter: Counter::ConnectDenied as u32,
            peer_cookie: endpoint.netns_cookie,
        }
    }
}

#[inline(always)]
fn refuse(errno: i32) -> i32 {
    // SAFETY: no pointer is involved.
    unsafe { bpf_set_retval(-errno) };
    DENY
}

/// IPv4 sockets.
#[cgroup_sock_addr(connect4)]
pub fn mesh_connect4(ctx: SockAddrContext) -> i32 {
    let ip = ip4(field!((*ctx.sock_addr).user_ip4));
    let port = u16::from_be(field!((*ctx.sock_addr).user_port) as u16);
    match decide(&ctx, ip, port) {
        Action::Pass => ALLOW,
        Action::Refuse(errno) => refuse(errno),
        Action::Rewrite(to, to_port) => {
            // SAFETY: writable fields of this context.
            unsafe {
                (*ctx.sock_addr).user_ip4 = words(&to)[3];
                (*ctx.sock_addr).user_port = u32::from(to_port.to_be());
            }
            ALLOW
        }
    }
}

/// IPv6 sockets, v4-mapped destinations included.
#[cgroup_sock_addr(connect6)]
pub fn mesh_connect6(ctx: SockAddrContext) -> i32 {
    let ip = ip6([
        field!((*ctx.sock_addr).user_ip6[0]),
        field!((*ctx.sock_addr).user_ip6[1]),
        field!((*ctx.sock_addr).user_ip6[2]),
        field!((*ctx.sock_addr).user_ip6[3]),
    ]);
    let port = u16::from_be(field!((*ctx.sock_addr).user_port) as u16);
    match decide(&ctx, ip, port) {
        Action::Pass => ALLOW,
        Action::Refuse(errno) => refuse(errno),
        Action::Rewrite(to, to_port) => {
            let to = words(&to);
            // SAFETY: writable fields of this context; each word is written on its own, as the verifier wants.
            unsafe {
                core::ptr::write_volatile(&raw mut (*ctx.sock_addr).user_ip6[0], to[0]);
                core::ptr::write_volatile(&raw mut (*ctx.sock_addr).user_ip6[1], to[1]);
                core::ptr::write_volatile(&raw mut (*ctx.sock_addr).user_ip6[2], to[2]);
                core::ptr::write_volatile(&raw mut (*ctx.sock_addr).user_ip6[3], to[3]);
                (*ctx.sock_addr).user_port = u32::from(to_port.to_be());
            }
            ALLOW
        }
    }
}
