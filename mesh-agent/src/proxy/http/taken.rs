//! What the requests of one pod take of the agent: how many there are at once, and how much of their bodies is kept to
//! send them again. Shared by all workers, so that no pod takes what others need.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::settings::HttpLimits;
use crate::telemetry::Telemetry;
use crate::telemetry::labels::Reporter;

/// What one pod's requests take.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Taken {
    requests: Arc<AtomicUsize>,
    replay_bytes: Arc<AtomicUsize>,
}

/// A share of something, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    of: Arc<AtomicUsize>,
    amount: usize,
}

impl Share {
    /// Nothing yet.
    fn of(of: &Arc<AtomicUsize>) -> Self {
        Self { of: Arc::clone(of), amount: 0 }
    }

    /// Takes more, if there is as much below `most`. Counted first and looked at afterwards: two threads can never both
    /// take the last of it.
    fn grow(&mut self, by: usize, most: usize) -> bool {
        let before = self.of.fetch_add(by, Relaxed);
        if before.saturating_add(by) > most {
            self.of.fetch_sub(by, Relaxed);
            return false;
        }
        self.amount += by;
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.fetch_sub(self.amount, Relaxed);
    }
}

impl Taken {
    /// One request more; `None`: the pod has as many as it may.
    pub(super) fn request(&self, limits: &HttpLimits) -> Option<Share> {
        let mut share = Share::of(&self.requests);
        share.grow(1, limits.requests_per_pod).then_some(share)
    }

    /// Room for the body of one request.
    pub(super) fn room(&self, limits: &HttpLimits, telemetry: &Arc<Telemetry>) -> Room {
        Room {
            share: Share::of(&self.replay_bytes),
            most: limits.replay_bytes,
            most_of_pod: limits.replay_bytes_per_pod,
            telemetry: Arc::clone(telemetry),
        }
    }
}

/// Room for what is kept of one body.
#[derive(Debug)]
pub(super) struct Room {
    share: Share,
    most: usize,
    most_of_pod: usize,
    telemetry: Arc<Telemetry>,
}

impl Room {
    /// Whether a body of at least `length` fits.
    pub(super) fn fits(&self, length: u64) -> bool {
        let fits = length <= self.most as u64;
        if !fits {
            self.telemetry.metrics().limited(Reporter::Outbound, "replay_bytes");
        }
        fits
    }

    /// Takes room for `bytes` more; `false`: there is none, and what was taken is given back.
    pub(super) fn take(&mut self, bytes: usize) -> bool {
        let limit = if self.share.amount.saturating_add(bytes) > self.most {
            "replay_bytes"
        } else if !self.share.grow(bytes, self.most_of_pod) {
            "replay_bytes_per_pod"
        } else {
            return true;
        };
        self.telemetry.metrics().limited(Reporter::Outbound, limit);
        self.share = Share::of(&self.share.of);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{Registry, Settings};

    #[test]
    fn what_is_taken_is_bounded_and_given_back() {
        let limits = HttpLimits { requests_per_pod: 2, ..HttpLimits::default() };
        let taken = Taken::default();
        let held = [taken.request(&limits), taken.request(&limits)];
        assert!(held.iter().all(Option::is_some) && taken.request(&limits).is_none());
        drop(held);
        assert!(taken.request(&limits).is_some());
    }

    #[test]
    fn bodies_are_kept_up_to_a_length_each_and_for_a_pod() {
        let limits = HttpLimits { replay_bytes: 10, replay_bytes_per_pod: 15, ..HttpLimits::default() };
        let registry = Arc::new(Registry::default());
        let telemetry =
            Telemetry::start(Arc::clone(&registry), Box::new(std::io::sink()), Settings::default()).unwrap();
        let taken = Taken::default();
        let room = || taken.room(&limits, &telemetry);
        let (mut one, mut other) = (room(), room());
        assert!(one.take(6) && one.take(4) && other.take(5), "fifteen in all");
        assert!(!other.take(1), "the pod has no more");
        assert!(!one.take(1), "nor would it be kept: longer than ten");
        assert!(room().take(10), "both have given back what they had");
        assert!(!room().fits(11) && room().fits(10));
        drop((one, other));
        let text = registry.encode().unwrap();
        for (limit, count) in [("replay_bytes\"} 2", 2), ("replay_bytes_per_pod\"} 1", 1)] {
            assert!(text.contains(&format!("limit=\"{limit}")), "{count}: {text}");
        }
    }
}
