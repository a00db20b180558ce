//! Ctrl-C that unwinds: the signal becomes an error of whatever is awaited, so that every guard is dropped.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{sys, wait};

/// From now on SIGINT, SIGTERM and SIGHUP do not end this process but make [`check`] fail. Programs that it
/// starts get these signals as usual.
///
/// # Errors
/// What the system says.
pub fn catch() -> Result<()> {
    sys::note_signals().context("cannot handle signals")
}

/// `Err` after a signal.
///
/// # Errors
/// After a signal.
pub fn check() -> Result<()> {
    if sys::signal_noted() {
        bail!("interrupted");
    }
    Ok(())
}

/// Waits for a signal.
pub fn wait() {
    while !sys::signal_noted() {
        wait::pause(Duration::from_millis(100));
    }
}
