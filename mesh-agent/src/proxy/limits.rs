//! How much the data path takes on: per pod and in all. What is over a limit is reset at once and counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use super::failure::Failure;
use super::http::settings::HttpLimits;

/// Bounds of the data path. The defaults are for one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Live connections of the whole agent. Each costs two sockets and about 10 KiB when idle: 50,000 stay
    /// within the 2^17 descriptors and the half GiB that a node agent is usually given.
    pub connections: usize,
    /// Live connections of one pod, so that one cannot take all of the above. As many as one address pair has
    /// ephemeral ports (32768–60999).
    pub connections_per_pod: usize,
    /// From accept to the end of a TLS handshake. Generous: it only has to end what never ends.
    pub handshake: Duration,
    /// One TCP connect. As long as four SYNs (1+2+4 s of waiting between them) need.
    pub connect: Duration,
    /// From a tunnel's request to its answer: the other side's connect deadline and a margin.
    pub answer: Duration,
    /// How long an unused tunnel connection is kept. Longer than the pauses of a polling client (60 s), shorter
    /// than the idle timers of common middle boxes.
    pub tunnel_idle: Duration,
    /// How old a tunnel connection may get before no new stream is put on it: an hour, so that a certificate's
    /// rotation or revocation reaches every peer within that time.
    pub tunnel_age: Duration,
    /// Streams that we put on one HTTP/2 tunnel connection; a lower limit of the peer wins. 100 is what every
    /// HBONE peer must take; more would let one stalled TCP connection hold up more applications.
    pub streams_per_tunnel: usize,
    /// Connections of their own (`mesh-raw/1`) that one pod's tunnels to one peer get, per worker; further tunnels
    /// share HTTP/2 connections. Each costs a handshake when it is first opened.
    pub raw_per_peer: usize,
    /// Handshakes under way at once for one destination pod, per worker. Enough to keep both nodes' cores busy.
    pub handshakes_per_peer: usize,
    /// What the http lane takes on.
    pub http: HttpLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 50_000,
            connections_per_pod: 28_000,
            handshake: Duration::from_secs(10),
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(12),
            tunnel_idle: Duration::from_secs(90),
            tunnel_age: Duration::from_secs(3_600),
            streams_per_tunnel: 100,
            raw_per_peer: 8,
            handshakes_per_peer: 16,
            http: HttpLimits::default(),
        }
    }
}

/// One live connection's share of every budget; given back when dropped.
#[derive(Debug)]
pub(super) struct Share([Arc<AtomicUsize>; 2]);

impl Share {
    /// Takes a share of the agent's and of the pod's budget.
    pub(super) fn take(limits: &Limits, all: &Arc<AtomicUsize>, pod: &Arc<AtomicUsize>) -> Result<Self, Failure> {
        // Counted first and looked at afterwards: two threads can never both take the last share.
        let now = [all.fetch_add(1, Relaxed), pod.fetch_add(1, Relaxed)];
        let share = Self([Arc::clone(all), Arc::clone(pod)]);
        let [all, pod] = now;
        if all >= limits.connections {
            return Err(Failure::Overloaded("connections"));
        }
        if pod >= limits.connections_per_pod {
            return Err(Failure::Overloaded("connections_per_pod"));
        }
        Ok(share)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        for count in &self.0 {
            count.fetch_sub(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_share_is_given_once_and_a_refusal_costs_nothing() {
        let limits = Limits { connections: 3, connections_per_pod: 2, ..Limits::default() };
        let (all, one, other) = <(Arc<AtomicUsize>, Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let held = [Share::take(&limits, &all, &one).unwrap(), Share::take(&limits, &all, &one).unwrap()];
        assert!(matches!(Share::take(&limits, &all, &one), Err(Failure::Overloaded("connections_per_pod"))));
        let third = Share::take(&limits, &all, &other).unwrap();
        assert!(matches!(Share::take(&limits, &all, &other), Err(Failure::Overloaded("connections"))));
        drop((held, third));
        assert_eq!([&all, &one, &other].map(|count| count.load(Relaxed)), [0, 0, 0]);
    }
}
