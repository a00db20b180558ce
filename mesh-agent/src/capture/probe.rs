//! What can be known about this machine without attaching anything: for `mesh-agent check`.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_sock_diag::constants::{AF_INET, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_packet_sock_diag::{SockDiagDestroy, SockDiagMessage};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use super::kernel::OBJECT;
use super::netlink::request;

/// Whether the eBPF programs are in this binary.
#[must_use]
pub fn has_programs() -> bool {
    !OBJECT.is_empty()
}

/// Whether the kernel can end a connection from outside (CONFIG_INET_DIAG_DESTROY): asks for the end of one that
/// cannot exist.
///
/// # Errors
/// When the kernel does not let us ask.
pub fn ends_connections() -> io::Result<bool> {
    let nowhere = |last| IpAddr::V4(Ipv4Addr::new(127, 255, 255, last));
    let message = SockDiagMessage::InetRequest(InetRequest {
        family: AF_INET,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: SocketId {
            source_port: 1,
            destination_port: 1,
            source_address: nowhere(1),
            destination_address: nowhere(2),
            interface_id: 0,
            cookie: [0xff; 8],
        },
    });
    match request(NETLINK_SOCK_DIAG, SockDiagDestroy::new(message), 0) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EOPNOTSUPP as i32) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Capabilities that the agent cannot do without, with their numbers (capabilities(7)).
const NEEDED: [(&str, u32); 3] = [
    // Routes and rules inside pods, transparent sockets, marks.
    ("CAP_NET_ADMIN", 12),
    // setns(2).
    ("CAP_SYS_ADMIN", 21),
    // Programs and maps.
    ("CAP_BPF", 39),
];

/// Which of the needed capabilities this process does not hold; all when /proc does not say.
#[must_use]
pub fn missing_capabilities() -> Vec<&'static str> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let held = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let held = held.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or_default();
    NEEDED.iter().filter(|(_, bit)| held & (1 << bit) == 0).map(|(name, _)| *name).collect()
}
