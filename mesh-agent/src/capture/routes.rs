//! What a pod's netns needs so that a delivered connection carries the client's own address.
//!
//! The agent binds its delivery socket to the client's address (`IP_TRANSPARENT`) and marks it; the answers of
//! the application must come back to that socket instead of leaving through the pod's interface. So the
//! accepted socket inherits the mark (`tcp_fwmark_accept`), and marked packets find a table in which
//! everything is local. The mark is matched in all 32 bits: an application that happens to mark its own
//! packets is not caught, short of choosing the same value.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;
use std::{fs, io};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::netlink::request;
use crate::sys;

/// The mark on delivery sockets ("MESH").
pub(super) const MARK: u32 = 0x4d45_5348;
/// The routing table that marked packets use; the same number, to be recognised.
const TABLE: u32 = MARK;
/// Before the main table (32766), after the local one (0).
const PRIORITY: u32 = 19_600;
/// Accepted sockets inherit the mark (both families); answers of no socket (a closed port's RST) reflect it.
const SYSCTLS: [&str; 3] = ["net/ipv4/tcp_fwmark_accept", "net/ipv4/fwmark_reflect", "net/ipv6/fwmark_reflect"];
const LOOPBACK_IFINDEX: u32 = 1;
const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

/// Installs rule, table and sysctl in the calling thread's network namespace; what is there already stays.
pub(super) fn install() -> io::Result<()> {
    write_sysctls("1")?;
    for family in FAMILIES {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        let installed =
            tolerate(request(NETLINK_ROUTE, RouteNetlinkMessage::NewRoute(route(family)), flags), nix::libc::EEXIST)
                .and_then(|()| {
                    tolerate(
                        request(NETLINK_ROUTE, RouteNetlinkMessage::NewRule(rule(family)), flags),
                        nix::libc::EEXIST,
                    )
                });
        match installed {
            // A kernel or netns without IPv6 has nothing to deliver over it.
            Err(_) if family == AddressFamily::Inet6 && !std::path::Path::new("/proc/net/if_inet6").exists() => {}
            other => other?,
        }
    }
    Ok(())
}

/// Takes them away again, where they are. The sysctls go back to their defaults; delivered connections must have
/// ended.
pub(super) fn remove() -> io::Result<()> {
    let missing = [nix::libc::ENOENT, nix::libc::ESRCH, nix::libc::EAFNOSUPPORT, nix::libc::EOPNOTSUPP];
    let mut found = false;
    for family in FAMILIES {
        for message in [RouteNetlinkMessage::DelRule(rule(family)), RouteNetlinkMessage::DelRoute(route(family))] {
            match request(NETLINK_ROUTE, message, 0) {
                Ok(()) => found = true,
                Err(e) if e.raw_os_error().is_some_and(|code| missing.contains(&code)) => {}
                Err(e) => return Err(e),
            }
        }
    }
    // Where nothing was delivered they are the pod's own.
    if found { write_sysctls("0") } else { Ok(()) }
}

fn write_sysctls(value: &str) -> io::Result<()> {
    for path in SYSCTLS {
        match write_sysctl(path, value) {
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.contains("ipv6") => {}
            other => other?,
        }
    }
    Ok(())
}

/// In a container /proc/sys is read-only; whose sysctls it shows is the calling thread's affair, not the mount's.
fn write_sysctl(path: &str, value: &str) -> io::Result<()> {
    match fs::write(Path::new("/proc/sys").join(path), value) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            let root = format!("/proc/self/fd/{}/sys", own_procfs()?.as_raw_fd());
            fs::write(Path::new(&root).join(path), value)
        }
        other => other,
    }
}

fn own_procfs() -> io::Result<&'static OwnedFd> {
    static OWN: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(own) = OWN.get() {
        return Ok(own);
    }
    let own = sys::private_procfs()?;
    Ok(OWN.get_or_init(|| own))
}

fn tolerate(result: io::Result<()>, errno: i32) -> io::Result<()> {
    match result {
        Err(e) if e.raw_os_error() == Some(errno) => Ok(()),
        other => other,
    }
}

fn rule(family: AddressFamily) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family;
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::FwMark(MARK),
        RuleAttribute::FwMask(u32::MAX),
        RuleAttribute::Table(TABLE),
        RuleAttribute::Priority(PRIORITY),
    ];
    rule
}

fn route(family: AddressFamily) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header = RouteHeader {
        address_family: family,
        table: RouteHeader::RT_TABLE_UNSPEC,
        protocol: RouteProtocol::Static,
        scope: RouteScope::Host,
        kind: RouteType::Local,
        ..RouteHeader::default()
    };
    route.attributes = vec![RouteAttribute::Table(TABLE), RouteAttribute::Oif(LOOPBACK_IFINDEX)];
    route
}
