//! `sock_ops` of the kubelet's cgroup: proves that a connection to a pod of this node is the kubelet's.
//!
//! Whether it is let in is the receiver's decision: only on a port that the pod itself declares as a probe.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use mesh_common::counter::Counter;
use mesh_common::value::{FLOW_PROBE, FlowValue};

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
    let flow = FlowValue {
        netns_cookie: ends.cookie,
        server_cookie,
        // SAFETY: no pointer is involved.
        started_ns: unsafe { bpf_ktime_get_ns() },
        identity: [0; 16],
        orig_port: 0,
        pad: 0,
        kind: FLOW_PROBE,
        orig_ip: [0; 16],
    };
    if FLOWS.insert(key, flow, 0).is_err() {
        count(Counter::SockopsStoreFailed);
    }
    let _ = ctx.set_cb_flags((ctx.cb_flags() | STATE_CB_FLAG) as i32);
    1
}
