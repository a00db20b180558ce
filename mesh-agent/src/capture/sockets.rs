//! The TCP sockets inside a pod, listed and ended by sock_diag(7).
//!
//! A policy or mode that changes must also reach connections that were let in before it: the agent judges
//! them with the same function as new ones, and the kernel ends those that no longer hold (SOCK_DESTROY: the
//! application gets ECONNABORTED, the other side RST).

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};

use mesh_common::limits::{TUNNEL_PORT, is_agent_port};
use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use netlink_packet_sock_diag::{SockDiagDestroy, SockDiagMessage};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use super::netlink::{ask, request};
use super::pod::EnrolledPod;
use super::routes::MARK;
use crate::model::addr::canonical;
use crate::model::workload::WorkloadUid;
use crate::sys;

/// TCP_LISTEN of the kernel's tcp_states.h.
const LISTEN: u8 = 10;
/// ESTABLISHED, SYN_RECV, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING: those that can carry data, or will.
const LIVE: [u8; 7] = [1, 3, 4, 5, 8, 9, 11];

/// An inbound connection that came in without the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectConnection {
    /// The pod's end.
    pub local: SocketAddr,
    /// The other end.
    pub peer: SocketAddr,
    /// The pod of this node that opened it, where the kernel has a proof of it.
    pub client: Option<WorkloadUid>,
}

impl EnrolledPod {
    /// Ends the inbound connections that came in without the agent and for which `may_stay` says no. Returns those
    /// ended. What was let in under rules that the maps no longer hold is among those judged.
    ///
    /// Blocks for a grace period of the kernel and the length of a dump: not for an async thread.
    ///
    /// # Errors
    /// When sockets cannot be listed, or the kernel lacks CONFIG_INET_DIAG_DESTROY; one that cannot be ended keeps no
    /// other from being ended.
    pub fn end_direct(&self, may_stay: impl Fn(&DirectConnection) -> bool) -> io::Result<Vec<DirectConnection>> {
        // A look-up that read the old rules has put its connection among the sockets by then.
        sys::wait_for_readers();
        self.netns.within(|| {
            let sockets = dump_all(&ExtensionFlags::empty())?;
            let listening: HashSet<u16> =
                sockets.iter().filter(|s| s.header.state == LISTEN).map(|s| s.header.socket_id.source_port).collect();
            let mut ended = Vec::new();
            let mut failed = None;
            for socket in sockets.iter().filter(|socket| LIVE.contains(&socket.header.state)) {
                let mut connection = connection(&socket.header.socket_id);
                connection.client = self.records.client(self.netns.cookie, connection.local, connection.peer);
                if connection.client.is_none() && !came_in_direct(socket, &connection, &listening) {
                    continue;
                }
                if !may_stay(&connection) {
                    match destroy(socket) {
                        // It ended by itself meanwhile.
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                        Ok(()) => ended.push(connection),
                        Err(error) => failed = Some(error),
                    }
                }
            }
            failed.map_or(Ok(ended), Err)
        })
    }
}

fn connection(id: &SocketId) -> DirectConnection {
    DirectConnection {
        local: canonical(SocketAddr::new(id.source_address, id.source_port)),
        peer: canonical(SocketAddr::new(id.destination_address, id.destination_port)),
        client: None,
    }
}

/// Without a record: inbound to the application, from outside the pod, and not delivered by the agent (which marks
/// its own, and the accepted socket inherits the mark).
fn came_in_direct(socket: &InetResponse, connection: &DirectConnection, listening: &HashSet<u16>) -> bool {
    let (local, peer) = (connection.local, connection.peer);
    listening.contains(&local.port())
        && local.port() != TUNNEL_PORT
        && !is_agent_port(local.port())
        && !peer.ip().is_loopback()
        && peer.ip() != local.ip()
        && !is_marked(socket)
}

/// Whether an agent has delivered a connection that still stands to the network namespace that the thread is in.
pub(super) fn any_marked() -> io::Result<bool> {
    let sockets = dump_all(&ExtensionFlags::empty())?;
    Ok(sockets.iter().any(|socket| LIVE.contains(&socket.header.state) && is_marked(socket)))
}

fn is_marked(socket: &InetResponse) -> bool {
    socket.nlas.iter().any(|nla| matches!(nla, Nla::Mark(MARK)))
}

/// Every TCP socket of the network namespace that the calling thread is in.
pub(super) fn dump_all(extensions: &ExtensionFlags) -> io::Result<Vec<InetResponse>> {
    let mut sockets = dump(AF_INET, extensions, StateFlags::all())?;
    sockets.extend(dump(AF_INET6, extensions, StateFlags::all())?);
    Ok(sockets)
}

/// Those of one family in one of these states.
pub(super) fn dump(family: u8, extensions: &ExtensionFlags, states: StateFlags) -> io::Result<Vec<InetResponse>> {
    let message = SockDiagMessage::InetRequest(InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::from_bits_retain(extensions.bits()),
        states,
        socket_id: if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() },
    });
    let answers = ask(NETLINK_SOCK_DIAG, message, NLM_F_DUMP)?.into_iter();
    let sockets = answers.filter_map(|answer| match answer {
        SockDiagMessage::InetResponse(response) => Some(*response),
        _ => None,
    });
    Ok(sockets.collect())
}

fn destroy(socket: &InetResponse) -> io::Result<()> {
    let message = SockDiagMessage::InetRequest(InetRequest {
        family: socket.header.family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: family_form(&socket.header.socket_id, socket.header.family),
    });
    request(NETLINK_SOCK_DIAG, SockDiagDestroy::new(message), 0)
}

/// The id as the kernel listed it: an AF_INET6 socket's v4-mapped addresses stay in 16 bytes.
fn family_form(id: &SocketId, family: u8) -> SocketId {
    let form = |ip: IpAddr| match ip {
        IpAddr::V4(v4) if family == AF_INET6 => IpAddr::V6(v4.to_ipv6_mapped()),
        other => other,
    };
    SocketId {
        source_address: form(id.source_address),
        destination_address: form(id.destination_address),
        ..id.clone()
    }
}
