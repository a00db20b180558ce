//! `sock_ops`: writes the records that the receiver's `sk_lookup` reads, and takes them away again.
//!
//! `TCP_CONNECT_CB` runs before the SYN, with both ports known. A record goes when the receiver's side is
//! established or the client's socket closes, whichever is first; the receiver's look-up removes nothing,
//! because SYN retransmits and SYN cookies look up again.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use mesh_common::counter::Counter;
use mesh_common::key::{FlowKey, Ip, OrigKey};
use mesh_common::limits::is_agent_port;
use mesh_common::value::{AGENT_DELIVERY, FLOW_DELIVERY, FLOW_SELF, FlowValue, LANE_CAPTURED};

use crate::maps::{ACCEPTED, AGENT_SK, FLOWS, ORIG, ORIG_DSTS, PODS, Storage, count};
use crate::read::{AF_INET, AF_INET6, field, ip4, ip6, words};

const CONNECT_CB: u32 = 3;
const PASSIVE_ESTABLISHED_CB: u32 = 5;
const STATE_CB: u32 = 10;
const STATE_CB_FLAG: u32 = 4;
const TCP_CLOSE: u32 = 7;

struct Ends {
    cookie: u64,
    sk: *mut bpf_sock,
    local_ip: Ip,
    remote_ip: Ip,
    local_port: u16,
    remote_port: u16,
}

impl Ends {
    /// Reads all fields, whatever the family, before anything is decided (see `read`).
    #[inline(always)]
    fn read(ctx: &SockOpsContext) -> Option<Self> {
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

    #[inline(always)]
    fn flow_as_client(&self) -> FlowKey {
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
    fn orig_key(&self, ip: Ip, port: u16) -> OrigKey {
        OrigKey { netns_cookie: self.cookie, ip, port, pad: [0; 6] }
    }
}

/// The pod's client socket is about to send its SYN. Returns whether a record was left that must be removed.
#[inline(always)]
fn connecting(ends: &Ends) -> bool {
    let kind = if let Some(purpose) = AGENT_SK.on(ends.sk) {
        if *purpose != AGENT_DELIVERY {
            return false;
        }
        FLOW_DELIVERY
    } else if let Some(orig) = ORIG.on(ends.sk)
        && orig.lane == LANE_CAPTURED
    {
        let key = ends.orig_key(ends.local_ip, ends.local_port);
        let value = *orig;
        if ORIG_DSTS.insert(key, value, 0).is_err() {
            count(Counter::SockopsStoreFailed);
        }
        return true;
    } else if words(&ends.local_ip) == words(&ends.remote_ip) {
        FLOW_SELF
    } else {
        return false;
    };
    let value = FlowValue { netns_cookie: ends.cookie, kind, pad: 0 };
    if FLOWS.insert(ends.flow_as_client(), value, 0).is_err() {
        count(Counter::SockopsStoreFailed);
    }
    true
}

/// A listener of the pod, the application's or the agent's, has a new connection.
#[inline(always)]
fn accepted(ends: &Ends) {
    if is_agent_port(ends.local_port) {
        let key = ends.orig_key(ends.remote_ip, ends.remote_port);
        // SAFETY: copied at once; nobody else writes this entry while the connection stands.
        if let Some(orig) = unsafe { ORIG_DSTS.get(key) }.copied() {
            match ACCEPTED.on_or_new(ends.sk) {
                Some(slot) => *slot = orig,
                // The agent finds no destination on it and resets the connection.
                None => count(Counter::SockopsStoreFailed),
            }
            let _ = ORIG_DSTS.remove(key);
        }
    } else {
        let _ = FLOWS.remove(ends.flow_as_server());
    }
}

/// The pod's client socket is closed: refused, given up, or done.
#[inline(always)]
fn closed(ends: &Ends) {
    let _ = ORIG_DSTS.remove(ends.orig_key(ends.local_ip, ends.local_port));
    let _ = FLOWS.remove(ends.flow_as_client());
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
    // SAFETY: only presence is read. A pod that is leaving is gone from here, but its records must still go.
    if op == CONNECT_CB && unsafe { PODS.get(ends.cookie) }.is_some() {
        if connecting(&ends) {
            // Other programs may have asked for call-backs on this socket: add ours, never replace.
            let _ = ctx.set_cb_flags((ctx.cb_flags() | STATE_CB_FLAG) as i32);
        }
    } else if op == PASSIVE_ESTABLISHED_CB {
        accepted(&ends);
    } else if op == STATE_CB {
        closed(&ends);
    }
    1
}
