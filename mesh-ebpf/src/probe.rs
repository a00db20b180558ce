//! `sock_ops` of the kubelet's cgroup: proves that a connection to a pod of this node is the kubelet's.
//!
//! Whether it is let in is the receiver's decision: only on a port that the pod itself declares as a probe.

use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use mesh_common::counter::Counter;
use mesh_common::value::FLOW_PROBE;

use crate::maps::{FLOWS, MESH_IPS, count};
use crate::sockops::{CONNECT_CB, Ends, STATE_CB, STATE_CB_FLAG, TCP_CLOSE};

/// All sockets of the kubelet.
#[sock_ops]
pub fn mesh_kubelet(ctx: SockOpsContext) -> u32 {
    let op = ctx.op();
    if op != CONNECT_CB && op != STATE_CB || op == STATE_CB && ctx.arg(1) != TCP_CLOSE {
        return 1;
    }
    let Some(ends) = Ends::read(&ctx) else {
        return 1;
    };
    let key = ends.flow_as_client();
    if op == STATE_CB {
        let _ = FLOWS.remove(key);
        return 1;
    }
    // SAFETY: one word is read.
    let server_cookie = unsafe { MESH_IPS.get(ends.remote_ip) }.map_or(0, |value| value.netns_cookie);
    if server_cookie == 0 {
        return 1;
    }
    if FLOWS.insert(key, ends.record(FLOW_PROBE, server_cookie), 0).is_err() {
        count(Counter::SockopsStoreFailed);
    }
    let _ = ctx.set_cb_flags((ctx.cb_flags() | STATE_CB_FLAG) as i32);
    1
}
