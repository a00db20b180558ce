//! What the proxy needs of a pod's network namespace. `capture` gives the real one; tests give loopback.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use socket2::Socket;

use crate::model::addr::{OrigDst, Scope};
use crate::model::workload::WorkloadUid;

/// Why the proxy wants a socket: decides how the kernel half treats its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketUse {
    /// To a peer: a tunnel to its port 15008, or plaintext to a destination outside the mesh.
    Upstream,
    /// To the application in this pod, showing `client` as the source address (port not kept).
    Delivery {
        /// The address that the application must see.
        client: SocketAddr,
    },
}

/// One enrolled pod's network, as the proxy sees it.
pub trait PodNet: Send + Sync + 'static {
    /// The pod.
    fn uid(&self) -> &WorkloadUid;

    /// Takes the original destination of a connection accepted on the outbound listener. `None` when the
    /// kernel has no record of it: the connection must then be reset.
    fn original_destination(&self, accepted: BorrowedFd<'_>) -> Option<(OrigDst, Scope)>;

    /// The pod of this node that opened the connection which `peer` made to `local` of this pod, where the kernel
    /// has a proof of it; `None` says nothing about who it was.
    fn proven_client(&self, local: SocketAddr, peer: SocketAddr) -> Option<WorkloadUid>;

    /// A non-blocking, close-on-exec TCP socket made inside the pod's network namespace, recognised by the
    /// kernel half as the agent's own. Not yet connected; for [`SocketUse::Delivery`] already bound.
    ///
    /// # Errors
    /// What the system call says.
    fn socket(&self, to: SocketAddr, purpose: SocketUse) -> std::io::Result<Socket>;
}
