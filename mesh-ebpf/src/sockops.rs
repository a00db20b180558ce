//! `sock_ops`: writes the records that the receiver's `sk_lookup` reads, and takes them away again.
//!
//! `TCP_CONNECT_CB` runs before the SYN, with both ports known. A record goes when the receiver's side is
//! established or the client's socket closes, whichever is first; the receiver's look-up removes nothing,
//! because SYN retransmits and SYN cookies look up again. A native connection's record stays, marked as live, until
//! both sockets are closed: a server that still reads what a client has left is judged by who that was. The client's
//! close is told to the agent with what the connection carried.

use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP, bpf_sock};
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_ktime_get_ns};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use mesh_common::counter::Counter;
use mesh_common::key::{FlowKey, Ip, OrigKey};
use mesh_common::limits::{EVENT_BYTES, is_agent_port};
use mesh_common::value::{
    AGENT_DELIVERY, Asked, CLIENT_CLOSED, ClosedEvent, FLOW_DELIVERY, FLOW_NATIVE, FLOW_SELF, FlowValue, LANE_CAPTURED,
    LANE_CAPTURED_REST, LANE_NATIVE, LIVE, PodValue, SERVER_CLOSED, UNDER_WAY,
};

use crate::maps::{ACCEPTED, AGENT_SK, ASKED, FLOWS, ORIG_DSTS, Read, Storage, count, pod, share};
use crate::read::{AF_INET, AF_INET6, field, ip4, ip6, words};

pub const CONNECT_CB: u32 = 3;
const PASSIVE_ESTABLISHED_CB: u32 = 5;
pub const STATE_CB: u32 = 10;
pub const STATE_CB_FLAG: u32 = 4;
/// `BPF_NOEXIST`.
const NOT_OVER_ANOTHER: u64 = 1;
// Of the kernel's tcp_states.h.
const TCP_SYN_SENT: u32 = 2;
const TCP_FIN_WAIT2: u32 = 5;
pub const TCP_CLOSE: u32 = 7;
const TCP_CLOSE_WAIT: u32 = 8;
const TCP_LAST_ACK: u32 = 9;
const TCP_CLOSING: u32 = 11;

pub struct Ends {
    pub cookie: u64,
    sk: *mut bpf_sock,
    local_ip: Ip,
    pub remote_ip: Ip,
    local_port: u16,
    remote_port: u16,
}

impl Ends {
    /// Reads all fields, whatever the family, before anything is decided (see `read`).
    #[inline(always)]
    pub fn read(ctx: &SockOpsContext) -> Option<Self> {
        let ops = ctx.ops;
        let family = field!((*ops).family);
        let (local4, remote4) = (field!((*ops).local_ip4), field!((*ops).remote_ip4));
        let local6 = [
            field!((*ops).local_ip6[0]),
            field!((*ops).local_ip6[1]),
            field!((*ops).local_ip6[2]),
            field!((*ops).local_ip6[3]),
        ];
        let remote6 = [
            field!((*ops).remote_ip6[0]),
            field!((*ops).remote_ip6[1]),
            field!((*ops).remote_ip6[2]),
            field!((*ops).remote_ip6[3]),
        ];
        let local_port = field!((*ops).local_port) as u16;
        // Network order in the upper half of the word.
        let remote_port = u32::from_be(field!((*ops).remote_port)) as u16;
        // SAFETY: the context is the kernel's.
        let (cookie, sk) = unsafe { (bpf_get_netns_cookie(ops.cast()), (*ops).__bindgen_anon_2.sk) };
        if sk.is_null() {
            return None;
        }
        let (local_ip, remote_ip) = match family {
            AF_INET => (ip4(local4), ip4(remote4)),
            AF_INET6 => (ip6(local6), ip6(remote6)),
            _ => return None,
        };
        Some(Self { cookie, sk, local_ip, remote_ip, local_port, remote_port })
    }

    /// A record of this kind, written now.
    #[inline(always)]
    pub fn record(&self, kind: u16, server_cookie: u64) -> FlowValue {
        FlowValue {
            netns_cookie: self.cookie,
            server_cookie,
            // SAFETY: no pointer is involved.
            started_ns: unsafe { bpf_ktime_get_ns() },
            identity: [0; 16],
            orig_port: 0,
            kind,
            stage: UNDER_WAY,
            orig_ip: [0; 16],
        }
    }

    #[inline(always)]
    pub fn flow_as_client(&self) -> FlowKey {
        FlowKey {
            client_ip: self.local_ip,
            server_ip: self.remote_ip,
            client_port: self.local_port,
            server_port: self.remote_port,
        }
    }

    #[inline(always)]
    fn flow_as_server(&self) -> FlowKey {
        FlowKey {
            client_ip: self.remote_ip,
            server_ip: self.local_ip,
            client_port: self.remote_port,
            server_port: self.local_port,
        }
    }

    #[inline(always)]
    fn orig_as_client(&self) -> OrigKey {
        OrigKey::new(self.cookie, self.local_ip, self.local_port, self.remote_port)
    }

    #[inline(always)]
    fn orig_as_server(&self) -> OrigKey {
        OrigKey::new(self.cookie, self.remote_ip, self.remote_port, self.local_port)
    }
}

/// The pod's client socket is about to send its SYN. Returns whether a record was left that must be removed.
#[inline(always)]
fn connecting(ends: &Ends, pod: &PodValue) -> bool {
    if let Some(purpose) = AGENT_SK.on(ends.sk) {
        return *purpose == AGENT_DELIVERY && prove(ends, FLOW_DELIVERY, None, pod);
    }
    if let Some(asked) = ASKED.on(ends.sk) {
        match asked.orig.lane {
            LANE_NATIVE => return prove(ends, FLOW_NATIVE, Some(asked), pod),
            LANE_CAPTURED | LANE_CAPTURED_REST => {
                let key = ends.orig_as_client();
                if ORIG_DSTS.insert(&key, &asked.orig, 0).is_ok() {
                    share(ends.cookie, 1);
                } else {
                    count(Counter::SockopsStoreFailed);
                }
                return true;
            }
            _ => {}
        }
    }
    words(&ends.local_ip) == words(&ends.remote_ip) && prove(ends, FLOW_SELF, None, pod)
}

/// Writes the record that the receiver will find.
#[inline(always)]
fn prove(ends: &Ends, kind: u16, asked: Option<&mut Asked>, pod: &PodValue) -> bool {
    let mut flow = ends.record(kind, 0);
    if let Some(asked) = asked {
        flow.server_cookie = asked.server_cookie;
        flow.identity = pod.identity;
        (flow.orig_ip, flow.orig_port) = (asked.orig.ip, asked.orig.port);
    }
    let key = ends.flow_as_client();
    if FLOWS.insert(&key, &flow, NOT_OVER_ANOTHER).is_ok() {
        share(ends.cookie, 1);
        return true;
    }
    // A server may hold on to an earlier connection between the same ends.
    // SAFETY: one word is read.
    let earlier = unsafe { FLOWS.get(&key) }.map(|flow| flow.netns_cookie);
    if FLOWS.insert(&key, &flow, 0).is_err() {
        count(Counter::SockopsStoreFailed);
        return true;
    }
    if let Some(earlier) = earlier {
        share(earlier, -1);
    }
    share(ends.cookie, 1);
    true
}

/// A listener of the pod, the application's or the agent's, has a new connection. Returns whether its end matters.
#[inline(always)]
fn accepted(ends: &Ends) -> bool {
    if is_agent_port(ends.local_port) {
        let key = ends.orig_as_server();
        // SAFETY: copied at once; nobody else writes this entry while the connection stands.
        if let Some(orig) = unsafe { ORIG_DSTS.get(&key) }.copied() {
            match ACCEPTED.on_or_new(ends.sk) {
                Some(slot) => *slot = orig,
                // The agent finds no destination on it and resets the connection.
                None => count(Counter::SockopsStoreFailed),
            }
            if ORIG_DSTS.remove(&key).is_ok() {
                share(ends.cookie, -1);
            }
        }
        return false;
    }
    let key = ends.flow_as_server();
    let Some(flow) = FLOWS.get_ptr_mut(&key) else {
        return false;
    };
    // SAFETY: a live map value; nobody else writes it before it is live.
    let flow = unsafe { &mut *flow };
    if flow.kind == FLOW_NATIVE {
        flow.stage = LIVE;
        return true;
    }
    let client = flow.netns_cookie;
    if FLOWS.remove(&key).is_ok() {
        share(client, -1);
    }
    false
}

/// Notes on a live record that an end is closed. Returns whether both are: the later one takes the record away.
///
/// Both ends may be closed at a time, on two CPUs: then either may see both, and one of them at least does.
#[inline(always)]
fn ended(flow: *mut FlowValue, end: u32) -> bool {
    // SAFETY: a live map value. The stage is the upper half of an aligned word (asserted in mesh-common), and no bit of
    // its lower half is set by this.
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({word} + 0) |= {bits}",
            word = in(reg) &raw mut (*flow).orig_port,
            bits = in(reg) u64::from(end) << 32,
        );
        FlowValue::is_over(core::ptr::read_volatile(&raw const (*flow).stage))
    }
}

/// The pod's socket is closed: refused, given up, or done.
#[inline(always)]
fn closed(ctx: &SockOpsContext, ends: &Ends) {
    let lane = ASKED.on(ends.sk).map_or(0, |asked| asked.orig.lane);
    if lane == LANE_CAPTURED || lane == LANE_CAPTURED_REST {
        if ORIG_DSTS.remove(&ends.orig_as_client()).is_ok() {
            share(ends.cookie, -1);
        }
        return;
    }
    // Clients are those that asked for something, the agent's, and a pod's that connect to itself: there either end may
    // be the client's.
    let mut is_client = lane != 0 || AGENT_SK.on(ends.sk).is_some();
    // One key: the stack has no room for two.
    let mut key = if is_client { ends.flow_as_client() } else { ends.flow_as_server() };
    let mut found = FLOWS.get_ptr_mut(&key);
    if found.is_none() && !is_client && words(&ends.local_ip) == words(&ends.remote_ip) {
        is_client = true;
        // The addresses are the same.
        (key.client_port, key.server_port) = (key.server_port, key.client_port);
        found = FLOWS.get_ptr_mut(&key);
    }
    let Some(flow) = found else {
        return;
    };
    // SAFETY: a live map value; each word is read once.
    let (client, stage) = unsafe { ((*flow).netns_cookie, core::ptr::read_volatile(&raw const (*flow).stage)) };
    if stage & LIVE == 0 && !is_client || is_client && stage & CLIENT_CLOSED != 0 {
        return;
    }
    if lane == LANE_NATIVE {
        // SAFETY: but for the stage nobody writes this entry any more.
        tell(ctx, &key, unsafe { &*flow });
    }
    let end = if is_client { CLIENT_CLOSED } else { SERVER_CLOSED };
    if stage & LIVE != 0 && !ended(flow, end) {
        return;
    }
    if FLOWS.remove(&key).is_ok() {
        share(client, -1);
    }
}

/// Reports what a native connection has carried.
#[inline(always)]
fn tell(ctx: &SockOpsContext, key: &FlowKey, flow: &FlowValue) {
    let ops = ctx.ops;
    let from = ctx.arg(0);
    // SYN and FIN count as one byte each; the state that is left says which of them were acknowledged.
    let fin_sent = u64::from(from == TCP_FIN_WAIT2 || from == TCP_CLOSING || from == TCP_LAST_ACK);
    let fin_received = u64::from(from == TCP_CLOSE_WAIT || from == TCP_CLOSING || from == TCP_LAST_ACK);
    let fin_received = fin_received | u64::from(from == TCP_FIN_WAIT2);
    // SAFETY: no pointer is involved.
    let now = unsafe { bpf_ktime_get_ns() };
    let Some(mut entry) = crate::maps::EVENTS.reserve::<ClosedEvent>(0) else {
        count(Counter::EventLost);
        return;
    };
    entry.write(ClosedEvent {
        flow: *flow,
        sent: field!((*ops).bytes_acked).saturating_sub(1 + fin_sent),
        received: field!((*ops).bytes_received).saturating_sub(fin_received),
        duration_ns: now.saturating_sub(flow.started_ns),
        key: *key,
        // The kernel keeps it in eighths.
        srtt_us: field!((*ops).srtt_us) >> 3,
        retransmits: field!((*ops).total_retrans),
        failed: u32::from(from == TCP_SYN_SENT),
    });
    // Waking the agent for each would cost more than the connection: it looks ten times a second by itself.
    let filled = crate::maps::EVENTS.query(BPF_RB_AVAIL_DATA.into());
    let wake = if filled > u64::from(EVENT_BYTES / 4) { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP };
    entry.submit(wake.into());
}

/// All sockets of the pods and of the agent.
#[sock_ops]
pub fn mesh_sockops(ctx: SockOpsContext) -> u32 {
    let op = ctx.op();
    if op != CONNECT_CB && op != PASSIVE_ESTABLISHED_CB && op != STATE_CB {
        return 1;
    }
    if op == STATE_CB && ctx.arg(1) != TCP_CLOSE {
        return 1;
    }
    let Some(ends) = Ends::read(&ctx) else {
        return 1;
    };
    if op == CONNECT_CB {
        // A pod that is leaving is gone from here, but its records must still go. Without a record the receiver
        // refuses.
        if let Read::Found(pod) = pod(ends.cookie)
            && connecting(&ends, pod)
        {
            // Other programs may have asked for call-backs on this socket: add ours, never replace.
            let _ = ctx.set_cb_flags((ctx.cb_flags() | STATE_CB_FLAG) as i32);
        }
    } else if op == PASSIVE_ESTABLISHED_CB {
        if accepted(&ends) {
            let _ = ctx.set_cb_flags((ctx.cb_flags() | STATE_CB_FLAG) as i32);
        }
    } else if op == STATE_CB {
        closed(&ctx, &ends);
    }
    1
}
