//! When to ask for a certificate: pure arithmetic, dice passed in.

use std::time::{Duration, SystemTime};

/// A refresh is due at this share of the certificate's life …
const REFRESH_AT: f64 = 0.5;
/// … give or take this share, so that certificates issued together are not refreshed together.
const REFRESH_SPREAD: f64 = 0.05;
/// First wait after a failure.
pub(super) const BACKOFF_MIN: Duration = Duration::from_millis(200);
/// Longest wait after a failure.
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// When to refresh a certificate valid from `not_before` to `not_after`. `dice` is in 0..1.
pub(super) fn refresh_at(not_before: SystemTime, not_after: SystemTime, dice: f64) -> SystemTime {
    let life = not_after.duration_since(not_before).unwrap_or_default();
    let share = REFRESH_AT + REFRESH_SPREAD * (2.0 * dice.clamp(0.0, 1.0) - 1.0);
    not_before + life.mul_f64(share)
}

/// How long to wait after the `failures`-th failure in a row (from 1): doubling, capped, and cut by up to
/// half so that nodes which lost the CA together do not return together. `dice` is in 0..1.
pub(super) fn backoff(failures: u32, dice: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let full = BACKOFF_MIN.saturating_mul(1 << doublings).min(BACKOFF_MAX);
    full.mul_f64(1.0 - 0.5 * dice.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn refresh_is_at_half_life_give_or_take_a_twentieth() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let end = start + Duration::from_secs(1000);
        for (dice, seconds) in [(0.0, 450), (0.5, 500), (1.0, 550)] {
            assert_eq!(refresh_at(start, end, dice), start + Duration::from_secs(seconds), "{dice}");
        }
        assert_eq!(refresh_at(end, start, 0.5), end, "a certificate without a life is due at once");
    }

    proptest! {
        #[test]
        fn backoff_stays_between_half_the_minimum_and_the_maximum(failures in 0u32.., dice in 0.0f64..1.0) {
            let wait = backoff(failures, dice);
            prop_assert!(wait >= BACKOFF_MIN / 2 && wait <= BACKOFF_MAX);
        }

        #[test]
        fn backoff_grows_with_failures(failures in 1u32..40) {
            prop_assert!(backoff(failures + 1, 0.0) >= backoff(failures, 0.0));
        }
    }
}
