//! What the kernel half tells user space through the ring buffer: refusals, and native connections that ended.

use std::net::SocketAddr;
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use mesh_common::counter::Counter;
use mesh_common::key::Ip;
use mesh_common::limits::EVENT_BYTES;
use mesh_common::value::{ClosedEvent, Event};
use tokio::io::unix::AsyncFd;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::error::CaptureError;
use super::sweep::{LiveNative, Traffic};
use crate::model::addr::canonical;
use crate::sys;

/// Ends of native connections wake nobody up, since a wake-up for each would cost more than the connection: they
/// are read this often, and sooner when the ring fills.
const READ_EVERY: Duration = Duration::from_millis(100);

/// One refused connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Cookie of the pod's netns; see [`super::Kernel::pod_by_cookie`].
    pub netns_cookie: u64,
    /// The other side.
    pub peer: SocketAddr,
    /// This side.
    pub local: SocketAddr,
    /// The exit taken.
    pub exit: Counter,
    /// Cookie of the other side's netns, where the kernel knows it.
    pub peer_cookie: Option<u64>,
}

/// A native connection that has ended; counts are the client's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed {
    /// As it was at its end.
    pub connection: LiveNative,
    /// From the SYN to the end.
    pub lasted: Duration,
    /// It never stood: the server's port was closed, or the policy changed in between.
    pub failed: bool,
}

/// One message of the kernel half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelEvent {
    /// A connection was refused.
    Refused(Refusal),
    /// A native connection ended.
    Closed(Closed),
}

/// Reads events in order.
pub struct EventReader {
    ring: AsyncFd<RingBuf<MapData>>,
    tick: Interval,
}

impl EventReader {
    pub(super) fn new(ring: RingBuf<MapData>) -> Result<Self, CaptureError> {
        let ring = sys::async_fd(ring).map_err(|e| CaptureError::map("events", &e))?;
        let mut tick = interval(READ_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self { ring, tick })
    }

    /// What has been told by now; ends, however much is told meanwhile.
    pub fn ready(&mut self) -> impl Iterator<Item = KernelEvent> + '_ {
        const MOST: usize = EVENT_BYTES as usize / size_of::<Event>();
        let ring = self.ring.get_mut();
        let items = std::iter::from_fn(|| ring.next().map(|item| parse(&item)));
        items.take(MOST).flatten()
    }

    /// The next event; waits for one. `None` when the ring is gone.
    pub async fn next(&mut self) -> Option<KernelEvent> {
        loop {
            if let Some(event) = self.ready().next() {
                return Some(event);
            }
            tokio::select! {
                ready = self.ring.readable_mut() => ready.ok()?.clear_ready(),
                _ = self.tick.tick() => {}
            }
        }
    }
}

fn parse(bytes: &[u8]) -> Option<KernelEvent> {
    if bytes.len() == size_of::<ClosedEvent>() {
        return closed(bytes).map(KernelEvent::Closed);
    }
    refused(bytes).map(KernelEvent::Refused)
}

fn refused(bytes: &[u8]) -> Option<Refusal> {
    (bytes.len() == size_of::<Event>()).then_some(())?;
    let peer_cookie = u64::from_ne_bytes(take(bytes, 48)?);
    Some(Refusal {
        netns_cookie: u64::from_ne_bytes(take(bytes, 0)?),
        peer: addr(take(bytes, 8)?, u16::from_ne_bytes(take(bytes, 40)?)),
        local: addr(take(bytes, 24)?, u16::from_ne_bytes(take(bytes, 42)?)),
        exit: *Counter::ALL.get(u32::from_ne_bytes(take(bytes, 44)?) as usize)?,
        peer_cookie: (peer_cookie != 0).then_some(peer_cookie),
    })
}

fn closed(bytes: &[u8]) -> Option<Closed> {
    let u64_at = |at| Some(u64::from_ne_bytes(take(bytes, at)?));
    let u32_at = |at| Some(u32::from_ne_bytes(take(bytes, at)?));
    let port_at = |at| Some(u16::from_ne_bytes(take(bytes, at)?));
    let connection = LiveNative {
        client_cookie: u64_at(0)?,
        server_cookie: u64_at(8)?,
        client: addr(take(bytes, 88)?, port_at(120)?),
        server: addr(take(bytes, 104)?, port_at(122)?),
        dialled: addr(take(bytes, 48)?, port_at(40)?),
        started_ns: u64_at(16)?,
        traffic: Traffic {
            sent: u64_at(64)?,
            received: u64_at(72)?,
            round_trip: Duration::from_micros(u32_at(124)?.into()),
            retransmits: u32_at(128)?,
        },
    };
    Some(Closed { connection, lasted: Duration::from_nanos(u64_at(80)?), failed: u32_at(132)? != 0 })
}

fn take<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn addr(ip: Ip, port: u16) -> SocketAddr {
    canonical(SocketAddr::new(ip.into(), port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_common::key::{FlowKey, v4_mapped};
    use mesh_common::value::{FLOW_NATIVE, FlowValue, LIVE};

    #[test]
    fn a_refusal_is_read_as_the_kernel_lays_it_out() {
        let event = Event {
            netns_cookie: 0x0102_0304_0506_0708,
            peer_ip: v4_mapped([10, 1, 2, 3]),
            local_ip: std::net::Ipv6Addr::LOCALHOST.octets(),
            peer_port: 4711,
            local_port: 80,
            counter: Counter::LookupStrict as u32,
            peer_cookie: 9,
        };
        let mut bytes = Vec::new();
        bytes.extend(event.netns_cookie.to_ne_bytes());
        bytes.extend(event.peer_ip);
        bytes.extend(event.local_ip);
        bytes.extend(event.peer_port.to_ne_bytes());
        bytes.extend(event.local_port.to_ne_bytes());
        bytes.extend(event.counter.to_ne_bytes());
        bytes.extend(event.peer_cookie.to_ne_bytes());
        let expected = Refusal {
            netns_cookie: event.netns_cookie,
            peer: "10.1.2.3:4711".parse().unwrap(),
            local: "[::1]:80".parse().unwrap(),
            exit: Counter::LookupStrict,
            peer_cookie: Some(9),
        };
        assert_eq!(parse(&bytes), Some(KernelEvent::Refused(expected)));
        assert_eq!(parse(&bytes[..55]), None, "a short event is no event");
    }

    #[test]
    fn an_end_is_read_as_the_kernel_lays_it_out() {
        let key = FlowKey {
            client_ip: v4_mapped([10, 0, 0, 1]),
            server_ip: v4_mapped([10, 0, 0, 2]),
            client_port: 40_000,
            server_port: 8_080,
        };
        let mut bytes = Vec::new();
        let flow = FlowValue {
            netns_cookie: 1,
            server_cookie: 2,
            started_ns: 3,
            identity: [4; 16],
            orig_port: 80,
            stage: LIVE,
            kind: FLOW_NATIVE,
            orig_ip: v4_mapped([10, 96, 0, 1]),
        };
        bytes.extend([flow.netns_cookie, flow.server_cookie, flow.started_ns].map(u64::to_ne_bytes).concat());
        bytes.extend(flow.identity);
        bytes.extend(flow.orig_port.to_ne_bytes());
        bytes.extend(flow.kind.to_ne_bytes());
        bytes.extend(flow.stage.to_ne_bytes());
        bytes.extend(flow.orig_ip);
        bytes.extend([100_u64, 200, 3_000_000].map(u64::to_ne_bytes).concat());
        bytes.extend(key.client_ip);
        bytes.extend(key.server_ip);
        bytes.extend(key.client_port.to_ne_bytes());
        bytes.extend(key.server_port.to_ne_bytes());
        bytes.extend([55_u32, 1, 0].map(u32::to_ne_bytes).concat());
        let connection = LiveNative {
            client_cookie: 1,
            server_cookie: 2,
            client: "10.0.0.1:40000".parse().unwrap(),
            server: "10.0.0.2:8080".parse().unwrap(),
            dialled: "10.96.0.1:80".parse().unwrap(),
            started_ns: 3,
            traffic: Traffic { sent: 100, received: 200, round_trip: Duration::from_micros(55), retransmits: 1 },
        };
        let expected = Closed { connection, lasted: Duration::from_millis(3), failed: false };
        assert_eq!(parse(&bytes), Some(KernelEvent::Closed(expected)));
    }
}
