//! Connections that the agent opens: to peers' tunnels, to destinations outside the mesh, to the pod's own app.
//!
//! A connection to an application takes the [`Permit`] that allows it: without a decision it does not compile.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;

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

/// A connection being opened. Given up half-way it is closed with RST: the other side may already have accepted
/// it, and must not take its end for an orderly one.
struct Connecting(Option<TcpStream>);

impl Drop for Connecting {
    fn drop(&mut self) {
        if let Some(stream) = self.0.take() {
            tcp::reset(stream);
        }
    }
}

async fn open(pod: &dyn PodNet, to: SocketAddr, purpose: SocketUse, within: Duration) -> Result<TcpStream, Failure> {
    let connected = match start(pod, to, purpose) {
        Ok(connecting) => match tokio::time::timeout(within, finish(connecting)).await {
            Ok(connected) => connected,
            Err(_elapsed) => Err(io::ErrorKind::TimedOut.into()),
        },
        Err(error) => Err(error),
    };
    connected.map_err(|error| Failure::Connect { to, error: Arc::new(error) })
}

fn start(pod: &dyn PodNet, to: SocketAddr, purpose: SocketUse) -> io::Result<Connecting> {
    let socket = pod.socket(to, purpose)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(nix::libc::EINPROGRESS) => return Err(error),
        _ => {}
    }
    Ok(Connecting(Some(TcpStream::from_std(socket.into())?)))
}

async fn finish(mut connecting: Connecting) -> io::Result<TcpStream> {
    let Some(stream) = &connecting.0 else { return Err(io::ErrorKind::NotConnected.into()) };
    stream.writable().await?;
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    connecting.0.take().ok_or_else(|| io::ErrorKind::NotConnected.into())
}
