//! How many requests to a Service may be sent again: a share of those that came lately, and a number that always may.
//! What everybody sends again at once is what keeps an overloaded application down. Pure: the clock is an argument.

use std::time::Duration;

use crate::model::traffic::RetryBudget;

/// An interval is counted in so many parts.
const PARTS: u64 = 10;

/// What has been asked for and sent again lately.
#[derive(Clone, Debug, Default)]
pub(super) struct Budget {
    requests: Window,
    retries: Window,
    latest: Window,
}

impl Budget {
    /// A request came, `at` a time since some beginning.
    pub(super) fn requested(&mut self, limit: &RetryBudget, at: Duration) {
        self.requests.add(limit.interval, at);
    }

    /// Takes one retry, if there is one to be had.
    pub(super) fn retry(&mut self, limit: &RetryBudget, at: Duration) -> bool {
        let requests = u64::from(self.requests.sum(limit.interval, at));
        let retries = u64::from(self.retries.sum(limit.interval, at));
        let within_share = (retries + 1) * 100 <= requests * u64::from(limit.percent);
        let may = within_share || self.latest.sum(limit.min_interval, at) < limit.min_count;
        if may {
            self.retries.add(limit.interval, at);
            self.latest.add(limit.min_interval, at);
        }
        may
    }
}

/// A count over the last interval.
#[derive(Clone, Debug, Default)]
struct Window {
    counts: [u32; PARTS as usize],
    /// The number of the part that is counted in.
    part: u64,
}

impl Window {
    fn add(&mut self, interval: Duration, at: Duration) {
        let index = self.turn_to(interval, at);
        if let Some(count) = self.counts.get_mut(index) {
            *count = count.saturating_add(1);
        }
    }

    fn sum(&mut self, interval: Duration, at: Duration) -> u32 {
        self.turn_to(interval, at);
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Begins the part that `at` is in, and forgets what is older than an interval.
    fn turn_to(&mut self, interval: Duration, at: Duration) -> usize {
        let length = (interval.as_micros() / u128::from(PARTS)).max(1);
        let part = u64::try_from(at.as_micros() / length).unwrap_or(u64::MAX);
        // Another interval than before counts other parts; a moment that another thread's has overtaken does not.
        if part.abs_diff(self.part) >= PARTS {
            self.counts = Default::default();
            self.part = part;
        }
        while self.part < part {
            self.part += 1;
            if let Some(count) = self.counts.get_mut(index(self.part)) {
                *count = 0;
            }
        }
        index(self.part)
    }
}

fn index(part: u64) -> usize {
    usize::try_from(part % PARTS).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: RetryBudget = RetryBudget {
        percent: 20,
        interval: Duration::from_secs(10),
        min_count: 3,
        min_interval: Duration::from_secs(1),
    };

    /// How many of `asked` retries are allowed at a second.
    fn allowed(budget: &mut Budget, second: u64, asked: usize) -> usize {
        (0..asked).filter(|_| budget.retry(&LIMIT, Duration::from_secs(second))).count()
    }

    #[test]
    fn a_few_are_always_allowed_and_beyond_them_a_share() {
        let mut budget = Budget::default();
        assert_eq!(allowed(&mut budget, 100, 50), 3, "nothing came: the least");
        assert_eq!(allowed(&mut budget, 101, 50), 3, "a second later again");
        for _ in 0..100 {
            budget.requested(&LIMIT, Duration::from_secs(102));
        }
        assert_eq!(allowed(&mut budget, 102, 50), 14, "a fifth of a hundred, six of them gone already");
        assert_eq!(allowed(&mut budget, 109, 50), 3, "the share is used up");
        assert_eq!(allowed(&mut budget, 113, 50), 3, "requests of more than ten seconds ago do not count");
    }

    #[test]
    fn another_interval_and_a_clock_that_lags_are_borne() {
        let mut window = Window::default();
        let at = Duration::from_secs;
        for _ in 0..5 {
            window.add(at(10), at(1000));
        }
        assert_eq!(window.sum(at(10), at(999)), 5, "a thread that is a moment behind");
        assert_eq!(window.sum(at(100), at(1000)), 0, "the parts of another interval are others");
        window.add(at(100), at(1000));
        assert_eq!((window.sum(at(100), at(1090)), window.sum(at(100), at(1100))), (1, 0));
    }
}
