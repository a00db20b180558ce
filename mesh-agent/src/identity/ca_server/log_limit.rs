//! A bound on log lines that strangers can cause.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Lines per second; more tell nothing new.
const LINES_PER_SECOND: u32 = 10;

/// Counts what it does not let through.
#[derive(Debug)]
pub(super) struct LogLimit(Mutex<Window>);

#[derive(Debug)]
struct Window {
    began: Instant,
    lines: u32,
    suppressed: u64,
}

impl Default for LogLimit {
    fn default() -> Self {
        Self(Mutex::new(Window { began: Instant::now(), lines: 0, suppressed: 0 }))
    }
}

impl LogLimit {
    /// `Some(lines suppressed since the last one)` if a line may be written now.
    pub(super) fn admit(&self) -> Option<u64> {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if window.began.elapsed() >= Duration::from_secs(1) {
            window.began = Instant::now();
            window.lines = 0;
        }
        if window.lines >= LINES_PER_SECOND {
            window.suppressed += 1;
            return None;
        }
        window.lines += 1;
        Some(std::mem::take(&mut window.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_cut_to_ten_a_second_and_counted() {
        let limit = LogLimit::default();
        assert_eq!((0..100).filter(|_| limit.admit().is_some()).count(), 10);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(limit.admit(), Some(90));
    }
}
