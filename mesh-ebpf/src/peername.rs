//! `getpeername4` and `getpeername6`: the application sees the destination it asked for.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::maps::{ASKED, Storage};
use crate::read::words;

const ALLOW: i32 = 1;

/// IPv4 sockets.
#[cgroup_sock_addr(getpeername4)]
pub fn mesh_getpeername4(ctx: SockAddrContext) -> i32 {
    // SAFETY: every context of this hook has a full socket.
    let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    if let Some(orig) = ASKED.on(sk).map(|asked| &asked.orig) {
        // SAFETY: writable fields of this context.
        unsafe {
            (*ctx.sock_addr).user_ip4 = words(&orig.ip)[3];
            (*ctx.sock_addr).user_port = u32::from(orig.port.to_be());
        }
    }
    ALLOW
}

/// IPv6 sockets, v4-mapped destinations included.
#[cgroup_sock_addr(getpeername6)]
pub fn mesh_getpeername6(ctx: SockAddrContext) -> i32 {
    // SAFETY: every context of this hook has a full socket.
    let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    if let Some(orig) = ASKED.on(sk).map(|asked| &asked.orig) {
        let ip = words(&orig.ip);
        let port = u32::from(orig.port.to_be());
        // SAFETY: writable fields of this context; each word is written on its own, as the verifier wants.
        unsafe {
            core::ptr::write_volatile(&raw mut (*ctx.sock_addr).user_ip6[0], ip[0]);
            core::ptr::write_volatile(&raw mut (*ctx.sock_addr).user_ip6[1], ip[1]);
            core::ptr::write_volatile(&raw mut (*ctx.sock_addr).user_ip6[2], ip[2]);
            core::ptr::write_volatile(&raw mut (*ctx.sock_addr).user_ip6[3], ip[3]);
            (*ctx.sock_addr).user_port = port;
        }
    }
    ALLOW
}
