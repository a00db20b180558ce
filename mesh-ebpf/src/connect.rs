//! `connect4` and `connect6`: the pod is found by netns cookie, the lane chosen, the destination rewritten.

use aya_ebpf::bindings::{
    bpf_sock, bpf_sock_addr, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Tuple4,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as Tuple6,
};
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_set_retval, bpf_sk_lookup_tcp, bpf_sk_release};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::counter::Counter;
use mesh_common::decide::{self, ConnectVerdict, ConnectView};
use mesh_common::key::{CidrKey, Ip, OUTBOUND, PortKey, ServiceKey, capture_port, is_loopback};
use mesh_common::limits::CAPTURE_PORT_FIRST;
use mesh_common::value::{LANE_CAPTURED, LANE_FALLBACK, OrigDst, PORT_EXCLUDED, PodValue, ServiceValue};

use crate::maps::{AGENT_SK, EXCLUDED_CIDRS, MESH_IPS, ORIG, PODS, PORT_RULES, SERVICES, Storage, count};
use crate::read::{IPPROTO_TCP, field, ip4, ip6, is_v4, words};

const ALLOW: i32 = 1;
const DENY: i32 = 0;
const ECONNREFUSED: i32 = 111;
/// Look up in the netns of the calling task.
const CURRENT_NETNS: u64 = u64::MAX;
/// Bits of the cookie in front of the address in a [`CidrKey`], plus the address.
const CIDR_BITS: u32 = 64 + 128;

struct View<'a> {
    sk: *mut bpf_sock,
    raw: *mut bpf_sock_addr,
    cookie: u64,
    ip: Ip,
    port: u16,
    pod: &'a PodValue,
}

impl View<'_> {
    #[inline(always)]
    fn own_ip(&self) -> &Ip {
        if is_v4(&self.ip) { &self.pod.ip4 } else { &self.pod.ip6 }
    }
}

impl ConnectView for View<'_> {
    #[inline(always)]
    fn is_agent_socket(&self) -> bool {
        AGENT_SK.on(self.sk).is_some()
    }

    #[inline(always)]
    fn is_loopback(&self) -> bool {
        is_loopback(&self.ip)
    }

    #[inline(always)]
    fn is_own_ip(&self) -> bool {
        words(&self.ip) == words(self.own_ip())
    }

    #[inline(always)]
    fn is_excluded(&self) -> bool {
        let port = PortKey { netns_cookie: self.cookie, port: self.port, direction: OUTBOUND, pad: 0 };
        // SAFETY: a copy is taken at once; a concurrent update is read as the old or the new word.
        if unsafe { PORT_RULES.get(port) }.is_some_and(|rule| rule.rule == PORT_EXCLUDED) {
            return true;
        }
        let cidr = Key::new(CIDR_BITS, CidrKey { netns_cookie: self.cookie.to_ne_bytes(), ip: self.ip });
        EXCLUDED_CIDRS.get(cidr).is_some()
    }

    #[inline(always)]
    fn service(&self) -> Option<ServiceValue> {
        // SAFETY: a copy is taken at once.
        unsafe { SERVICES.get(ServiceKey { ip: self.ip, port: self.port, protocol: IPPROTO_TCP as u16 }) }.copied()
    }

    #[inline(always)]
    fn is_mesh_ip(&self) -> bool {
        // SAFETY: only presence is read.
        unsafe { MESH_IPS.get(self.ip) }.is_some()
    }

    #[inline(always)]
    fn has_family(&self) -> bool {
        words(self.own_ip()) != [0; 4]
    }

    #[inline(always)]
    fn agent_listens(&self) -> bool {
        let port = CAPTURE_PORT_FIRST.to_be();
        // SAFETY: all-zero is a valid tuple.
        let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
        let own = words(self.own_ip());
        let len = if is_v4(&self.ip) {
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
    Refuse,
}

#[inline(always)]
fn decide(ctx: &SockAddrContext, ip: Ip, port: u16) -> Action {
    if field!((*ctx.sock_addr).protocol) != IPPROTO_TCP {
        return Action::Pass;
    }
    // SAFETY: the context is the kernel's.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) };
    // SAFETY: the value is only read; an update replaces the element.
    let Some(pod) = (unsafe { PODS.get(cookie) }) else {
        return Action::Pass;
    };
    // SAFETY: every `connect` context has a full socket.
    let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    let view = View { sk, raw: ctx.sock_addr, cookie, ip, port, pod };
    match decide::connect(pod.flags, &view) {
        ConnectVerdict::Bypass(counter) => {
            // A socket may be connected again after a refusal: what it asked for before must not be shown.
            ORIG.clear(sk);
            count(counter);
            Action::Pass
        }
        ConnectVerdict::Refuse(counter) => {
            count(counter);
            Action::Refuse
        }
        ConnectVerdict::Capture => {
            let orig = OrigDst { ip, port, lane: LANE_CAPTURED };
            remember(sk, orig, Counter::ConnectCaptured, *view.own_ip(), capture_port(&ip, port))
        }
        ConnectVerdict::Fallback(service) => {
            let orig = OrigDst { ip, port, lane: LANE_FALLBACK };
            remember(sk, orig, Counter::ConnectFallback, service.fallback_ip, service.fallback_port)
        }
    }
}

#[inline(always)]
fn remember(sk: *mut bpf_sock, orig: OrigDst, counter: Counter, to: Ip, to_port: u16) -> Action {
    match ORIG.on_or_new(sk) {
        Some(slot) => {
            *slot = orig;
            count(counter);
            Action::Rewrite(to, to_port)
        }
        None => {
            count(Counter::ConnectStoreFailed);
            Action::Refuse
        }
    }
}

#[inline(always)]
fn refuse() -> i32 {
    // SAFETY: no pointer is involved.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    DENY
}

/// IPv4 sockets.
#[cgroup_sock_addr(connect4)]
pub fn mesh_connect4(ctx: SockAddrContext) -> i32 {
    let ip = ip4(field!((*ctx.sock_addr).user_ip4));
    let port = u16::from_be(field!((*ctx.sock_addr).user_port) as u16);
    match decide(&ctx, ip, port) {
        Action::Pass => ALLOW,
        Action::Refuse => refuse(),
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
        Action::Refuse => refuse(),
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
