//! Refusals that the kernel made on its own, told to user space through the ring buffer.

use std::net::{IpAddr, SocketAddr};

use aya::maps::{MapData, RingBuf};
use mesh_common::counter::Counter;
use mesh_common::value::Event;
use tokio::io::unix::AsyncFd;

use super::error::CaptureError;
use crate::model::addr::canonical;
use crate::sys;

/// One refused connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Cookie of the pod's netns; see [`super::Kernel::pod_by_cookie`].
    pub netns_cookie: u64,
    /// Who dialled.
    pub peer: SocketAddr,
    /// What was dialled.
    pub local: SocketAddr,
    /// The exit taken.
    pub exit: Counter,
}

/// Reads refusals in order.
pub struct RefusalReader {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl RefusalReader {
    pub(super) fn new(ring: RingBuf<MapData>) -> Result<Self, CaptureError> {
        let ring = sys::async_fd(ring).map_err(|e| CaptureError::map("events", &e))?;
        Ok(Self { ring })
    }

    /// The next refusal; waits for one. `None` when the ring is gone.
    pub async fn next(&mut self) -> Option<Refusal> {
        loop {
            let mut guard = self.ring.readable_mut().await.ok()?;
            if let Some(item) = guard.get_inner_mut().next() {
                match parse(&item) {
                    Some(refusal) => return Some(refusal),
                    None => continue,
                }
            }
            guard.clear_ready();
        }
    }
}

fn parse(bytes: &[u8]) -> Option<Refusal> {
    let cookie = u64::from_ne_bytes(bytes.get(..8)?.try_into().ok()?);
    let ip = |from: usize| -> Option<IpAddr> {
        let octets: [u8; 16] = bytes.get(from..from + 16)?.try_into().ok()?;
        Some(IpAddr::from(octets))
    };
    let port = |from: usize| -> Option<u16> { Some(u16::from_ne_bytes(bytes.get(from..from + 2)?.try_into().ok()?)) };
    let counter = u32::from_ne_bytes(bytes.get(44..48)?.try_into().ok()?);
    (bytes.len() == size_of::<Event>()).then_some(())?;
    Some(Refusal {
        netns_cookie: cookie,
        peer: canonical(SocketAddr::new(ip(8)?, port(40)?)),
        local: canonical(SocketAddr::new(ip(24)?, port(42)?)),
        exit: *Counter::ALL.get(counter as usize)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_read_as_the_kernel_lays_it_out() {
        let event = Event {
            netns_cookie: 0x0102_0304_0506_0708,
            peer_ip: mesh_common::key::v4_mapped([10, 1, 2, 3]),
            local_ip: std::net::Ipv6Addr::LOCALHOST.octets(),
            peer_port: 4711,
            local_port: 80,
            counter: Counter::LookupStrict as u32,
        };
        let mut bytes = Vec::new();
        bytes.extend(event.netns_cookie.to_ne_bytes());
        bytes.extend(event.peer_ip);
        bytes.extend(event.local_ip);
        bytes.extend(event.peer_port.to_ne_bytes());
        bytes.extend(event.local_port.to_ne_bytes());
        bytes.extend(event.counter.to_ne_bytes());
        let expected = Refusal {
            netns_cookie: event.netns_cookie,
            peer: "10.1.2.3:4711".parse().unwrap(),
            local: "[::1]:80".parse().unwrap(),
            exit: Counter::LookupStrict,
        };
        assert_eq!(parse(&bytes), Some(expected));
        assert_eq!(parse(&bytes[..47]), None, "a short event is no event");
    }
}
