//! Connections that the agent opens: to peers' tunnels, to destinations outside the mesh, to the pod's own app.
//!
//! A connection to an application takes the [`Permit`] that allows it: without a decision it does not compile.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};

use super::failure::Failure;
use super::pod_net::{PodNet, SocketUse};
use super::tcp;
use crate::policy::Permit;

/// Opens a connection from `pod` to a peer's tunnel port or to a destination outside the mesh.
///
/// # Errors
/// [`Failure::Connect`], after `within` at the latest.
pub(super) async fn dial(pod: &dyn PodNet, to: SocketAddr, within: Duration) -> Result<TcpStream, Failure> {
    let stream = open(pod, to, SocketUse::Upstream, within).await?;
    tcp::no_delay(&stream);
    tcp::keep_alive(&stream);
    Ok(stream)
}

/// Opens a connection to the application of `pod` that listens at `to`, which `permit` allows, showing `client`
/// as its source.
///
/// # Errors
/// [`Failure::Connect`], after `within` at the latest.
pub(super) async fn deliver(
    pod: &dyn PodNet,
    to: SocketAddr,
    client: SocketAddr,
    permit: &Permit,
    within: Duration,
) -> Result<TcpStream, Failure> {
    debug_assert_eq!(permit.flow().port, to.port(), "the permit is for this port");
    let stream = open(pod, to, SocketUse::Delivery { client }, within).await?;
    tcp::no_delay(&stream);
    Ok(stream)
}

async fn open(pod: &dyn PodNet, to: SocketAddr, purpose: SocketUse, within: Duration) -> Result<TcpStream, Failure> {
    let connect = async {
        let socket = pod.socket(to, purpose)?;
        TcpSocket::from_std_stream(socket.into()).connect(to).await
    };
    let connected = tokio::time::timeout(within, connect).await;
    connected
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|error| Failure::Connect { to, error: Arc::new(error) })
}
