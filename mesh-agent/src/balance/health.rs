//! How an endpoint has fared, where its Service's policy leaves failing ones alone: in use, ejected for a while, then
//! on probation: one request tells whether it is in use again. A pure state machine.

use std::time::Duration;

use super::load::Moment;
use crate::model::traffic::Ejection;

/// An ejection doubles at most so often: the longest time that a policy can ask for is reached by then.
const MOST_DOUBLINGS: u32 = 16;

/// How an endpoint has fared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Health {
    /// Failed requests in a row.
    failures: u32,
    /// When its last ejection ends; `None`: it is in use.
    until: Option<Moment>,
    /// Ejections without a rest in between, and when the last one that ended did.
    times: u32,
    rested: Option<Moment>,
    /// Its request on probation is under way.
    probing: bool,
}

/// What may be sent to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Requests.
    InUse,
    /// One request, to see how it fares.
    Probation,
    /// Nothing.
    Ejected,
}

impl Health {
    /// How it stands at `now`.
    pub(super) fn standing(&self, now: Moment) -> Standing {
        match self.until {
            None => Standing::InUse,
            Some(until) if now.has_reached(until) && !self.probing => Standing::Probation,
            Some(_) => Standing::Ejected,
        }
    }

    /// It is chosen. Whether this is its request on probation.
    pub(super) fn chosen(&mut self, now: Moment) -> bool {
        let probes = self.standing(now) == Standing::Probation;
        self.probing |= probes;
        probes
    }

    /// Its request on probation is over without a word about it.
    pub(super) fn probe_lost(&mut self) {
        self.probing = false;
    }

    /// It has answered in order.
    pub(super) fn succeeded(&mut self, now: Moment) {
        self.failures = 0;
        if self.probing {
            (self.probing, self.until, self.rested) = (false, None, Some(now));
        }
    }

    /// A request to it has failed. Returns for how long it is ejected, if that is now.
    pub(super) fn failed(&mut self, policy: &Ejection, now: Moment) -> Option<Duration> {
        self.failures = self.failures.saturating_add(1);
        let on_probation = std::mem::take(&mut self.probing);
        let is_out = self.until.is_some();
        if !on_probation && (is_out || self.failures < policy.consecutive) {
            return None;
        }
        let length = |times: u32| policy.base.saturating_mul(1 << times.min(MOST_DOUBLINGS)).min(policy.max);
        // In use for as long as it was out: it begins anew.
        if self.rested.is_some_and(|since| now.has_reached(since.plus(length(self.times.saturating_sub(1))))) {
            self.times = 0;
        }
        let out = length(self.times);
        (self.failures, self.until, self.rested) = (0, Some(now.plus(out)), None);
        self.times = self.times.saturating_add(1);
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Ejection = Ejection {
        consecutive: 3,
        base: Duration::from_secs(10),
        max: Duration::from_secs(35),
        min_health_percent: 50,
    };

    const fn seconds(seconds: u32) -> Moment {
        Moment(seconds * 1000)
    }

    #[test]
    fn failures_in_a_row_eject_and_an_answer_in_between_begins_anew() {
        let mut health = Health::default();
        for (failed, ejected) in [(true, None), (true, None), (false, None), (true, None), (true, None)] {
            let out = if failed {
                health.failed(&POLICY, seconds(0))
            } else {
                health.succeeded(seconds(0));
                None
            };
            assert_eq!(out, ejected);
        }
        assert_eq!(health.standing(seconds(0)), Standing::InUse);
        assert_eq!(health.failed(&POLICY, seconds(0)), Some(POLICY.base));
        assert_eq!(health.standing(seconds(9)), Standing::Ejected);
        assert_eq!(health.failed(&POLICY, seconds(9)), None, "what was under way says nothing new");
    }

    #[test]
    fn one_request_is_let_through_on_probation_and_decides() {
        let mut health = Health { times: 1, until: Some(seconds(10)), ..Health::default() };
        assert_eq!(health.standing(seconds(10)), Standing::Probation);
        assert!(health.chosen(seconds(10)), "the first is the probe");
        assert_eq!(health.standing(seconds(10)), Standing::Ejected, "there is no second");
        health.probe_lost();
        assert!(health.chosen(seconds(11)), "unless the first one was given up");
        health.succeeded(seconds(12));
        assert_eq!(health.standing(seconds(12)), Standing::InUse);
        assert!(!health.chosen(seconds(12)));
    }

    #[test]
    fn each_further_ejection_doubles_up_to_the_most_and_a_rest_begins_anew() {
        let mut health = Health::default();
        let mut now = 0;
        let mut lengths = Vec::new();
        for _ in 0..POLICY.consecutive {
            lengths.extend(health.failed(&POLICY, seconds(now)));
        }
        for _ in 0..3 {
            now += 40;
            assert!(health.chosen(seconds(now)));
            lengths.extend(health.failed(&POLICY, seconds(now)));
        }
        now += 40;
        assert!(health.chosen(seconds(now)));
        health.succeeded(seconds(now));
        now += 36;
        for _ in 0..POLICY.consecutive {
            lengths.extend(health.failed(&POLICY, seconds(now)));
        }
        assert_eq!(lengths, [10, 20, 35, 35, 10].map(Duration::from_secs));
    }
}
