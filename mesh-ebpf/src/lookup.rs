//! `sk_lookup`: every new inbound connection of one pod's netns, and UDP for its unconnected sockets. Loaded
//! once per pod, with its netns cookie as a read-only constant, because the hook cannot ask for it.

use aya_ebpf::bindings::{bpf_sk_lookup, sk_action};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use mesh_common::counter::Counter;
use mesh_common::decide::{self, LookupVerdict, LookupView, PolicyView, Proof, Receiver};
use mesh_common::egress::{ArrivingDatagram, datagram_in};
use mesh_common::key::{
    FlowKey, INBOUND, Ip, ListenerKey, OrigKey, PROBE, PlainKey, PolicyKey, UDP, UDP_IN, is_loopback,
};
use mesh_common::limits::{TUNNEL_PORT, is_agent_port};
use mesh_common::value::{Event, PORT_PROBE, PlainValue, UNDER_WAY};

use crate::maps::{FLOWS, LISTENERS, ORIG_DSTS, PLAIN, POLICY, Read, SEEKS, count, increment, pod, port_rule, report};
use crate::outside::{admitted, tell};
use crate::read::{AF_INET, IPPROTO_TCP, field, ip4, ip6};

/// The pod's netns cookie; set by the loader, which refuses zero.
#[unsafe(no_mangle)]
static POD_COOKIE: u64 = 0;

/// Exactly the socket of the map, whatever reuseport group it is in: a hand-over is one map update.
const NO_REUSEPORT: u64 = 2;
const LOOPBACK_IFINDEX: u32 = 1;
const BPF_NOEXIST: u64 = 1;
const PASS: u32 = sk_action::SK_PASS;
const DROP: u32 = sk_action::SK_DROP;

/// The cookie of the pod that this object was loaded for.
#[inline(always)]
pub fn pod_cookie() -> u64 {
    // SAFETY: a frozen read-only map; volatile, so that the placeholder is not folded in.
    unsafe { core::ptr::read_volatile(&raw const POD_COOKIE) }
}

struct View {
    cookie: u64,
    ifindex: u32,
    remote_ip: Ip,
    local_ip: Ip,
    remote_port: u16,
    local_port: u16,
}

impl View {
    #[inline(always)]
    fn read(raw: *mut bpf_sk_lookup) -> Self {
        let family = field!((*raw).family);
        let (remote4, local4) = (field!((*raw).remote_ip4), field!((*raw).local_ip4));
        let remote6 = [
            field!((*raw).remote_ip6[0]),
            field!((*raw).remote_ip6[1]),
            field!((*raw).remote_ip6[2]),
            field!((*raw).remote_ip6[3]),
        ];
        let local6 = [
            field!((*raw).local_ip6[0]),
            field!((*raw).local_ip6[1]),
            field!((*raw).local_ip6[2]),
            field!((*raw).local_ip6[3]),
        ];
        let remote_port = u16::from_be(field!((*raw).remote_port));
        let local_port = field!((*raw).local_port) as u16;
        let ifindex = field!((*raw).ingress_ifindex);
        let (remote_ip, local_ip) =
            if family == AF_INET { (ip4(remote4), ip4(local4)) } else { (ip6(remote6), ip6(local6)) };
        Self { cookie: pod_cookie(), ifindex, remote_ip, local_ip, remote_port, local_port }
    }

    #[inline(always)]
    fn flow_key(&self) -> FlowKey {
        FlowKey {
            client_ip: self.remote_ip,
            server_ip: self.local_ip,
            client_port: self.remote_port,
            server_port: self.local_port,
        }
    }

    /// A refusal, with the client's netns where its record names it.
    #[inline(always)]
    fn event(&self, counter: Counter) -> Event {
        // SAFETY: one word is read.
        let peer_cookie = unsafe { FLOWS.get(self.flow_key()) }.map_or(0, |flow| flow.netns_cookie);
        Event {
            netns_cookie: self.cookie,
            peer_ip: self.remote_ip,
            local_ip: self.local_ip,
            peer_port: self.remote_port,
            local_port: self.local_port,
            counter: counter as u32,
            peer_cookie,
        }
    }
}

impl PolicyView for View {
    #[inline(always)]
    fn policy(&self, key: &PolicyKey) -> Option<u32> {
        // SAFETY: one word is read.
        unsafe { POLICY.get(key) }.map(|value| value.verdict)
    }
}

impl LookupView for View {
    #[inline(always)]
    fn is_loopback(&self) -> bool {
        self.ifindex == LOOPBACK_IFINDEX && is_loopback(&self.local_ip)
    }

    #[inline(always)]
    fn is_liveness(&self) -> bool {
        self.ifindex == 0
    }

    #[inline(always)]
    fn is_tunnel_port(&self) -> bool {
        self.local_port == TUNNEL_PORT
    }

    #[inline(always)]
    fn is_agent_port(&self) -> bool {
        is_agent_port(self.local_port)
    }

    #[inline(always)]
    fn port(&self) -> u16 {
        self.local_port
    }

    #[inline(always)]
    fn proof(&self) -> Option<Proof> {
        // SAFETY: a record is written once and replaced whole.
        let flow = unsafe { FLOWS.get(self.flow_key()) }?;
        // A live one is of a connection that the receiver has already: a look-up is for another.
        (flow.stage == UNDER_WAY).then_some(Proof {
            kind: flow.kind,
            netns_cookie: flow.netns_cookie,
            server_cookie: flow.server_cookie,
            identity: flow.identity,
        })
    }

    #[inline(always)]
    fn netns_cookie(&self) -> u64 {
        self.cookie
    }

    #[inline(always)]
    fn is_captured(&self) -> bool {
        let key = OrigKey::new(self.cookie, self.remote_ip, self.remote_port, self.local_port);
        // SAFETY: only presence is read.
        unsafe { ORIG_DSTS.get(key) }.is_some()
    }

    #[inline(always)]
    fn receiver(&self) -> Option<Receiver> {
        match pod(self.cookie) {
            Read::Found(pod) => Some(Receiver { flags: pod.flags, policy: pod.policy }),
            Read::Missing | Read::Foreign => None,
        }
    }

    #[inline(always)]
    fn is_probe_port(&self) -> bool {
        port_rule(self.cookie, self.local_port, PROBE) == Some(PORT_PROBE)
    }

    #[inline(always)]
    fn port_rule(&self) -> Option<u32> {
        port_rule(self.cookie, self.local_port, INBOUND)
    }
}

/// A datagram for a socket that is not connected.
struct Datagram<'a>(&'a View);

impl ArrivingDatagram for Datagram<'_> {
    #[inline(always)]
    fn is_loopback(&self) -> bool {
        self.0.ifindex == LOOPBACK_IFINDEX && is_loopback(&self.0.local_ip)
    }

    #[inline(always)]
    fn flags(&self) -> Option<u32> {
        match pod(self.0.cookie) {
            Read::Found(pod) => Some(pod.flags),
            Read::Missing | Read::Foreign => None,
        }
    }

    #[inline(always)]
    fn is_refused_port(&self) -> bool {
        port_rule(self.0.cookie, self.0.local_port, UDP_IN).is_some()
    }

    #[inline(always)]
    fn is_answer(&self) -> bool {
        admitted(self.0.remote_ip, self.0.remote_port, UDP).is_some()
    }
}

#[inline(always)]
fn datagram(ctx: &SkLookupContext) -> u32 {
    let view = View::read(ctx.lookup);
    match datagram_in(&Datagram(&view)) {
        None => PASS,
        Some(counter @ Counter::LookupUdpAdmitted) => {
            count(counter);
            PASS
        }
        Some(counter) => {
            count(counter);
            tell(&view.event(counter));
            DROP
        }
    }
}

/// One pod's new inbound connections, and datagrams for its sockets that are not connected.
#[sk_lookup]
pub fn mesh_lookup(ctx: SkLookupContext) -> u32 {
    if field!((*ctx.lookup).protocol) != IPPROTO_TCP {
        return datagram(&ctx);
    }
    // A guard seeks a connection that stands; what it is not, no rule needs to hear of.
    if SEEKS.get(0).is_some_and(|seeks| *seeks != 0) {
        count(Counter::LookupSought);
        return DROP;
    }
    let view = View::read(ctx.lookup);
    match decide::lookup(&view) {
        LookupVerdict::Pass(counter) => {
            remember(&view, counter);
            count(counter);
            PASS
        }
        LookupVerdict::Drop(counter) => refuse(&view, counter),
        LookupVerdict::Steer(kind, counter) => {
            remember(&view, counter);
            let key = ListenerKey { netns_cookie: view.cookie, kind, pad: 0 };
            if LISTENERS.redirect_sk_lookup(&ctx, key, NO_REUSEPORT).is_ok() {
                count(counter);
                PASS
            } else {
                refuse(&view, Counter::LookupNoListener)
            }
        }
    }
}

/// Writes down who is let in without proof, by the exits that let such a one in.
#[inline(always)]
fn remember(view: &View, counter: Counter) {
    if !matches!(counter, Counter::LookupPermissive | Counter::LookupPlaintext) {
        return;
    }
    let key = PlainKey { netns_cookie: view.cookie, ip: view.remote_ip, port: view.local_port, pad: [0; 3] };
    // SAFETY: no precondition.
    let now = unsafe { bpf_ktime_get_ns() };
    if let Some(value) = PLAIN.get_ptr_mut(key) {
        // SAFETY: a live map value, 8-byte aligned. Of two times at once either is as good.
        unsafe {
            increment(&raw mut (*value).count);
            (*value).last_ns = now;
        }
        return;
    }
    // Of two that are the first at once one is not counted.
    let _ = PLAIN.insert(key, PlainValue { count: 1, last_ns: now }, BPF_NOEXIST);
}

#[inline(always)]
fn refuse(view: &View, counter: Counter) -> u32 {
    count(counter);
    report(&view.event(counter));
    DROP
}
