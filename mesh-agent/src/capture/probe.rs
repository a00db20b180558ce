//! What can be known about this machine without attaching anything: for `mesh-agent check`, and for the agent's own
//! start.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use aya::EbpfLoader;
use aya::programs::{Program, ProgramError};
use netlink_packet_sock_diag::constants::{AF_INET, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_packet_sock_diag::{SockDiagDestroy, SockDiagMessage};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use nix::errno::Errno;

use super::capabilities;
use super::error::CaptureError;
use super::netlink::request;
use super::object::Half;
use super::sockets;
use crate::sys;

/// Whether the eBPF programs are in this binary.
#[must_use]
pub fn has_programs() -> bool {
    !Half::Own.object().is_empty()
}

/// Whether the kernel half can be attached here. Changes nothing.
///
/// # Errors
/// What keeps it from that.
pub(super) fn can_run() -> Result<(), CaptureError> {
    let missing = capabilities::missing();
    if has_programs() && !missing.is_empty() {
        return Err(CaptureError::Privileges(missing));
    }
    load_programs()
}

/// Loads every program but the guards and lets go of it again; attaches nothing and pins nothing.
///
/// # Errors
/// What the kernel says of the maps, or its verifier of the first program that it refuses.
pub fn load_programs() -> Result<(), CaptureError> {
    if !has_programs() {
        return Err(CaptureError::NotBuilt);
    }
    let mut ebpf = EbpfLoader::new().load(Half::Own.object()).map_err(|e| CaptureError::kernel("the object", &e))?;
    for (name, program) in ebpf.programs_mut() {
        let loaded = match program {
            Program::CgroupSockAddr(program) => program.load(),
            Program::SockOps(program) => program.load(),
            Program::SkLookup(program) => program.load(),
            // A pod that asks for a guard which this kernel cannot have says so; others need none.
            Program::SchedClassifier(_) => Ok(()),
            _ => Err(ProgramError::UnexpectedProgramType),
        };
        loaded.map_err(|e| CaptureError::kernel(name, &e))?;
    }
    Ok(())
}

/// Whether sysctls can be written below /proc/sys; if not, whether in a procfs of our own. Opens, writes nothing.
///
/// # Errors
/// Why in neither.
pub fn sysctls() -> io::Result<bool> {
    match std::fs::File::options().write(true).open("/proc/sys/net/ipv4/tcp_fwmark_accept") {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => sys::private_procfs().map(|_| false),
        // Whether this user may write it is for the capabilities to say.
        _ => Ok(true),
    }
}

/// What sock_diag(7) does with TCP sockets here: re-checking connections and looking after records stand on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketControl {
    /// Lists them and ends them.
    Ends,
    /// Lists them; the kernel was built without CONFIG_INET_DIAG_DESTROY.
    Lists,
    /// Nothing: there is no `tcp_diag`, built in or loaded.
    Nothing,
}

/// Asks for a list of no states, and for the end of a connection that cannot exist.
///
/// # Errors
/// When the kernel does not let us ask.
pub fn socket_control() -> io::Result<SocketControl> {
    // First: without the module, the end of any connection is "not found" as well.
    match sockets::dump(AF_INET, &ExtensionFlags::empty(), StateFlags::empty()) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(SocketControl::Nothing),
        Err(error) => return Err(error),
    }
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
        Ok(()) => Ok(SocketControl::Ends),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(SocketControl::Ends),
        Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => Ok(SocketControl::Lists),
        Err(error) => Err(error),
    }
}

/// Asked once, and what is amiss is said once: nothing else depends on it, so the agent runs with less.
#[must_use]
pub fn socket_control_at_start() -> SocketControl {
    if !sys::can_wait_for_readers() {
        tracing::warn!("membarrier(2) does not wait here: a connection may slip past a re-check (docs/kernels.md)");
    }
    let control = socket_control().unwrap_or_else(|error| {
        tracing::warn!(%error, "sock_diag cannot be asked");
        SocketControl::Nothing
    });
    let lacks = match control {
        SocketControl::Ends => return control,
        SocketControl::Lists => "CONFIG_INET_DIAG_DESTROY: connections that newer rules forbid go on until they end",
        SocketControl::Nothing => "tcp_diag: connections that newer rules forbid go on, and lost records stay",
    };
    tracing::warn!("this kernel lacks {lacks} (docs/kernels.md)");
    control
}
