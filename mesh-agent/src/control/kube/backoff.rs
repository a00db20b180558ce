//! How long to wait before the API server is asked again. Pure: randomness is an argument.

use std::time::Duration;

/// After the first failure.
const FIRST: Duration = Duration::from_millis(200);
/// An API server that comes back finds every kind of every node waiting: not longer, and not all at once.
const LONGEST: Duration = Duration::from_secs(30);

/// Doubles from failure to failure.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The next wait: the upper half of the present bound, by `random` of 0 to 1.
    pub(super) fn next(&mut self, random: f64) -> Duration {
        let bound = FIRST.saturating_mul(2_u32.saturating_pow(self.failures)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
    }

    /// It answers again.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Waits for [`Self::next`].
    pub(super) async fn wait(&mut self) {
        let pause = self.next(rand::random());
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_a_bound_and_start_anew_after_success() {
        let mut backoff = Backoff::default();
        let bounds: Vec<u128> = (0..10).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(bounds, [200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000]);
        for _ in 0..100 {
            assert!(backoff.next(1.0) <= LONGEST);
        }
        backoff.reset();
        assert_eq!(backoff.next(0.0), FIRST / 2);
    }
}
