//! Ctrl-C that unwinds: the signal becomes an error of whatever is awaited, so that every guard is dropped.

use std::sync::{Condvar, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};

static INTERRUPTED: Mutex<bool> = Mutex::new(false);
static CHANGED: Condvar = Condvar::new();

/// From now on SIGINT, SIGTERM and SIGHUP do not end this process but make [`check`] fail.
///
/// To be called before any other thread is started. Programs started later get the signals as usual.
///
/// # Errors
/// What the system says.
pub fn catch() -> Result<()> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block().context("cannot block signals")?;
    let wait = move || {
        while signals.wait().is_ok() {
            *INTERRUPTED.lock().unwrap_or_else(PoisonError::into_inner) = true;
            CHANGED.notify_all();
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).context("cannot start a thread")?;
    Ok(())
}

/// `Err` after a signal.
///
/// # Errors
/// After a signal.
pub fn check() -> Result<()> {
    if *INTERRUPTED.lock().unwrap_or_else(PoisonError::into_inner) {
        bail!("interrupted");
    }
    Ok(())
}

/// Waits for a signal.
pub fn wait() {
    let interrupted = INTERRUPTED.lock().unwrap_or_else(PoisonError::into_inner);
    drop(CHANGED.wait_while(interrupted, |interrupted| !*interrupted));
}
