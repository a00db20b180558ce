//! Waiting for a condition, with a deadline and a bounded pace. Nothing in the harness waits for time alone.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::interrupt;

/// Pause between two looks: short beside any deadline, long beside a look's own cost.
const PACE: Duration = Duration::from_millis(5);

/// Looks again and again until `look` is `Ok`; gives its value.
///
/// # Errors
/// After `within`, what was awaited together with the last look's error; at once after an interruption.
pub fn until<T>(what: &str, within: Duration, mut look: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        interrupt::check()?;
        match look() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error).with_context(|| format!("not within {within:?}: {what}"));
            }
            Err(_) => pause(PACE),
        }
    }
}

/// Lets other threads run for about `time`; may return early. For pacing loops only: what follows must not
/// depend on it.
pub fn pause(time: Duration) {
    std::thread::park_timeout(time);
}

/// `Err` with `message` unless `condition` holds: the last line of most looks.
///
/// # Errors
/// When the condition does not hold.
pub fn holds(condition: bool, message: impl FnOnce() -> String) -> Result<()> {
    if condition { Ok(()) } else { Err(anyhow::anyhow!(message())) }
}
