//! When a request is sent again. Whether it may be (its body, its method) is the driver's to know.

use std::time::Duration;

use http::StatusCode;

use crate::model::route::Retry;

/// Between two attempts at most, whatever the growth.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// Whether an answer with `status` is to be tried again; a failed connection always is.
#[must_use]
pub fn is_retriable(retry: &Retry, status: StatusCode) -> bool {
    retry.codes.contains(&status)
}

/// How long to wait before attempt `attempt` (1 is the first retry); `None`: no more attempts. It is never less than
/// `backoff`, doubles with each attempt, and `dice(n)`, from `0..n`, adds up to a half.
#[must_use]
pub fn wait_before(retry: &Retry, attempt: u32, mut dice: impl FnMut(u32) -> u32) -> Option<Duration> {
    if attempt == 0 || attempt > retry.attempts {
        return None;
    }
    let grown = retry.backoff.saturating_mul(1_u32.checked_shl(attempt - 1).unwrap_or(u32::MAX));
    let wait = grown.min(MAX_WAIT.max(retry.backoff));
    let jitter_micros = u32::try_from(wait.as_micros() / 2).unwrap_or(u32::MAX);
    let jitter = if jitter_micros == 0 { 0 } else { dice(jitter_micros) };
    Some(wait + Duration::from_micros(jitter.into()))
}
