//! What is remembered of each endpoint: how much it has to do, how soon it answers, how it has fared. Shared by every
//! worker of the node.
//!
//! The time to answer is a peak-sensitive moving average (peak EWMA, as in Finagle and Linkerd): a slower answer counts
//! at once and in full, a faster one by and by, and what is remembered fades, so that a slow endpoint is tried again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use super::health::Health;
use crate::model::addr::EndpointAddr;

/// How fast the past fades: after this long a third of it is left. Long enough to bridge the pauses of a client, short
/// enough to try an endpoint again within a minute; Finagle's and Linkerd's value.
const DECAY_SECONDS: f32 = 10.0;
/// What an endpoint costs that was asked and has not answered yet: it gets no second request before its first answer,
/// unless others have as many.
const UNKNOWN_SECONDS: f32 = 1.0e6;

/// What is remembered of one endpoint.
#[derive(Debug, Default)]
pub(super) struct Load {
    /// Connections and requests that are not over.
    in_flight: AtomicU32,
    /// A [`Pace`], packed: read and written without a lock.
    pace: AtomicU64,
    /// Looked at only where a policy ejects.
    health: Mutex<Health>,
}

impl Load {
    /// Connections and requests that are not over.
    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    pub(super) fn begin(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    pub(super) fn end(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    /// What a request to it costs at `now`, in seconds: its time to answer for each request under way and this one.
    pub(super) fn cost(&self, now: Moment) -> f32 {
        let (pace, in_flight) = (Pace::unpack(self.pace.load(Relaxed)), self.in_flight());
        let seconds = match pace.at(now) {
            // Nothing is known, and somebody waits for the first answer already.
            0.0 if in_flight > 0 => UNKNOWN_SECONDS,
            seconds => seconds,
        };
        #[expect(clippy::cast_precision_loss, reason = "a number of requests")]
        let requests = in_flight as f32 + 1.0;
        seconds * requests
    }

    /// It has answered.
    pub(super) fn observe(&self, took: Duration, now: Moment) {
        self.change(|pace| pace.observed(took, now));
    }

    /// It has not answered for so long.
    pub(super) fn observe_at_least(&self, took: Duration, now: Moment) {
        self.change(|pace| pace.at_least(took, now));
    }

    fn change(&self, change: impl Fn(Pace) -> Pace) {
        let _ = self.pace.fetch_update(Relaxed, Relaxed, |packed| Some(change(Pace::unpack(packed)).pack()));
    }

    /// Looks at or changes how it fares. Valid after every statement, whoever panicked while it was locked.
    pub(super) fn with_health<T>(&self, use_it: impl FnOnce(&mut Health) -> T) -> T {
        use_it(&mut self.health.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Milliseconds since the balancer was made. It begins anew after 49 days: then an average looks fresh once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moment(pub(super) u32);

impl Moment {
    /// Milliseconds from `earlier` to now; 0 when `earlier` is later, as another thread's clock may have it.
    fn since(self, earlier: Self) -> u32 {
        let passed = self.0.wrapping_sub(earlier.0);
        if passed > u32::MAX / 2 { 0 } else { passed }
    }

    /// This moment and `after`.
    pub(super) fn plus(self, after: Duration) -> Self {
        Self(self.0.wrapping_add(u32::try_from(after.as_millis()).unwrap_or(u32::MAX / 4).min(u32::MAX / 4)))
    }

    /// Whether it is not before `other`.
    pub(super) fn has_reached(self, other: Self) -> bool {
        self.0.wrapping_sub(other.0) <= u32::MAX / 2
    }
}

/// The moving average of the time to answer, and when it was written.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Pace {
    seconds: f32,
    written: Moment,
}

impl Pace {
    /// What is left of it at `now`.
    fn at(self, now: Moment) -> f32 {
        self.seconds * self.left(now)
    }

    #[expect(clippy::cast_precision_loss, reason = "milliseconds against a decay of seconds")]
    fn left(self, now: Moment) -> f32 {
        (-(now.since(self.written) as f32) / (DECAY_SECONDS * 1000.0)).exp()
    }

    fn observed(self, took: Duration, now: Moment) -> Self {
        let took = took.as_secs_f32();
        let old = self.left(now);
        let seconds = if took >= self.seconds { took } else { self.seconds * old + took * (1.0 - old) };
        Self { seconds, written: now }
    }

    fn at_least(self, took: Duration, now: Moment) -> Self {
        let took = took.as_secs_f32();
        if took > self.at(now) { Self { seconds: took, written: now } } else { self }
    }

    fn pack(self) -> u64 {
        u64::from(self.seconds.to_bits()) << 32 | u64::from(self.written.0)
    }

    fn unpack(packed: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = packed.to_be_bytes();
        Self {
            seconds: f32::from_bits(u32::from_be_bytes([a, b, c, d])),
            written: Moment(u32::from_be_bytes([e, f, g, h])),
        }
    }
}

/// What is remembered of every endpoint. Written when an endpoint is met for the first time, and by [`Self::retain`].
#[derive(Debug, Default)]
pub(super) struct Loads(RwLock<HashMap<EndpointAddr, Arc<Load>>>);

impl Loads {
    /// What is remembered of `endpoint`, from now on.
    pub(super) fn of(&self, endpoint: EndpointAddr) -> Arc<Load> {
        if let Some(load) = self.find(endpoint) {
            return load;
        }
        Arc::clone(self.0.write().unwrap_or_else(PoisonError::into_inner).entry(endpoint).or_default())
    }

    /// What is remembered of `endpoint`, if anything is.
    pub(super) fn find(&self, endpoint: EndpointAddr) -> Option<Arc<Load>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&endpoint).map(Arc::clone)
    }

    /// Forgets those that are not `present` and have nothing under way.
    pub(super) fn retain(&self, present: impl Fn(&EndpointAddr) -> bool) {
        let mut loads = self.0.write().unwrap_or_else(PoisonError::into_inner);
        loads.retain(|endpoint, load| present(endpoint) || load.in_flight() > 0);
    }

    /// How many endpoints are remembered.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.read().unwrap_or_else(PoisonError::into_inner).len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u32) -> Moment {
        Moment(seconds * 1000)
    }

    #[test]
    fn a_slower_answer_counts_at_once_and_a_faster_one_by_and_by() {
        let load = Load::default();
        load.observe(Duration::from_millis(10), seconds(1));
        assert!((load.cost(seconds(1)) - 0.010).abs() < 1e-6);
        load.observe(Duration::from_millis(500), seconds(2));
        assert!((load.cost(seconds(2)) - 0.5).abs() < 1e-6, "the peak counts in full");
        load.observe(Duration::from_millis(10), seconds(3));
        let after = load.cost(seconds(3));
        assert!((0.44..0.47).contains(&after), "a second later a tenth of it is gone: {after}");
        for second in 4..60 {
            load.observe(Duration::from_millis(10), seconds(second));
        }
        assert!(load.cost(seconds(60)) < 0.015, "{}", load.cost(seconds(60)));
    }

    #[test]
    fn what_is_remembered_fades_while_nothing_is_sent() {
        let load = Load::default();
        load.observe(Duration::from_secs(1), seconds(0));
        let costs: Vec<f32> = [0, 10, 30, 100].map(|at| load.cost(seconds(at))).to_vec();
        assert!(costs[0] > 0.99 && (0.36..0.38).contains(&costs[1]) && costs[2] < 0.05 && costs[3] < 1e-4, "{costs:?}");
    }

    #[test]
    fn a_request_under_way_makes_the_next_one_dearer() {
        let (load, now) = (Load::default(), seconds(1));
        assert_eq!(load.cost(now), 0.0, "a new endpoint is tried at once");
        load.begin();
        assert!(load.cost(now) >= UNKNOWN_SECONDS, "and not again before it has answered");
        load.observe(Duration::from_millis(10), now);
        assert!((load.cost(now) - 0.020).abs() < 1e-6);
        load.end();
        load.observe_at_least(Duration::from_millis(5), now);
        assert!((load.cost(now) - 0.010).abs() < 1e-6, "less than is known says nothing");
        load.observe_at_least(Duration::from_secs(3), now);
        assert!((load.cost(now) - 3.0).abs() < 1e-6, "one that hangs is slow though it never answers");
    }

    #[test]
    fn time_may_begin_anew_and_threads_may_disagree_about_it() {
        let pace = Pace { seconds: 0.25, written: Moment(u32::MAX - 499) };
        assert_eq!(Pace::unpack(pace.pack()), pace);
        assert_eq!(Moment(500).since(pace.written), 1000);
        assert_eq!(pace.written.since(Moment(500)), 0, "an earlier moment has not passed");
        assert!(Moment(500).has_reached(pace.written) && !pace.written.has_reached(Moment(500)));
        assert_eq!(pace.written.plus(Duration::from_millis(1000)), Moment(500));
    }
}
