//! Datagrams: `sendmsg4` and `sendmsg6` for those that name their destination, on connected sockets too, and `connect4`
//! and `connect6` for sockets of every protocol but TCP. Attached only while a pod of the node refuses what is not in
//! the mesh.

use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_set_retval};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::counter::Counter;
use mesh_common::key::Ip;

use crate::maps::{Read, pod};
use crate::outside::{To, deny_errno, may_leave};
use crate::read::{IPPROTO_TCP, field, ip4, ip6};

const ALLOW: i32 = 1;
const DENY: i32 = 0;

#[inline(always)]
fn decide(ctx: &SockAddrContext, ip: Ip, refused: Counter) -> i32 {
    let port = u16::from_be(field!((*ctx.sock_addr).user_port) as u16);
    let protocol = field!((*ctx.sock_addr).protocol) as u16;
    // SAFETY: the context is the kernel's.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) };
    let allowed = match pod(cookie) {
        Read::Found(pod) => may_leave(&To { cookie, pod, ip, port, protocol }, refused),
        Read::Missing => true,
        Read::Foreign => false,
    };
    if allowed {
        return ALLOW;
    }
    // SAFETY: no pointer is involved.
    unsafe { bpf_set_retval(-deny_errno()) };
    DENY
}

#[inline(always)]
fn destination4(ctx: &SockAddrContext) -> Ip {
    ip4(field!((*ctx.sock_addr).user_ip4))
}

#[inline(always)]
fn destination6(ctx: &SockAddrContext) -> Ip {
    ip6([
        field!((*ctx.sock_addr).user_ip6[0]),
        field!((*ctx.sock_addr).user_ip6[1]),
        field!((*ctx.sock_addr).user_ip6[2]),
        field!((*ctx.sock_addr).user_ip6[3]),
    ])
}

#[inline(always)]
fn is_tcp(ctx: &SockAddrContext) -> bool {
    field!((*ctx.sock_addr).protocol) == IPPROTO_TCP
}

/// IPv4 destinations, v4-mapped ones included.
#[cgroup_sock_addr(sendmsg4)]
pub fn mesh_sendmsg4(ctx: SockAddrContext) -> i32 {
    decide(&ctx, destination4(&ctx), Counter::SendmsgEgress)
}

/// IPv6 destinations.
#[cgroup_sock_addr(sendmsg6)]
pub fn mesh_sendmsg6(ctx: SockAddrContext) -> i32 {
    decide(&ctx, destination6(&ctx), Counter::SendmsgEgress)
}

/// IPv4 destinations; TCP is `mesh_connect4`'s.
#[cgroup_sock_addr(connect4)]
pub fn mesh_peer4(ctx: SockAddrContext) -> i32 {
    if is_tcp(&ctx) {
        return ALLOW;
    }
    decide(&ctx, destination4(&ctx), Counter::ConnectUdpEgress)
}

/// IPv6 destinations, v4-mapped ones included; TCP is `mesh_connect6`'s.
#[cgroup_sock_addr(connect6)]
pub fn mesh_peer6(ctx: SockAddrContext) -> i32 {
    if is_tcp(&ctx) {
        return ALLOW;
    }
    decide(&ctx, destination6(&ctx), Counter::ConnectUdpEgress)
}
