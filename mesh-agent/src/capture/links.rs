//! Attaching so that it outlives the agent: links are pinned, and a pinned link gets the new program in place.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use aya::programs::links::FdLink;

use super::error::CaptureError;
use crate::sys;

/// Makes the link pinned at `pin` run `program`: updates the one that is there, else attaches and pins.
pub(super) fn install(
    what: &str,
    pin: &Path,
    program: BorrowedFd<'_>,
    attach: impl FnOnce() -> Result<FdLink, CaptureError>,
) -> Result<(), CaptureError> {
    match sys::bpf_obj_get(pin) {
        Ok(link) => match sys::bpf_link_update(link.as_fd(), program) {
            Ok(()) => return Ok(()),
            Err(error) => {
                // What it was attached to is gone: cgroup or netns of an earlier life.
                tracing::info!(pin = %pin.display(), %error, "a pinned link is dead; attaching anew");
                remove(pin).map_err(|e| CaptureError::kernel(what, &e))?;
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(CaptureError::kernel(what, &error)),
    }
    let link = attach()?;
    link.pin(pin).map(drop).map_err(|e| CaptureError::kernel(what, &e))
}

/// Whether anything is pinned there.
pub(super) fn any(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some())
}

/// Gives the link pinned at `pin` another program, if what it is attached to is still there.
pub(super) fn update(pin: &Path, program: BorrowedFd<'_>) {
    if let Err(error) = sys::bpf_obj_get(pin).and_then(|link| sys::bpf_link_update(link.as_fd(), program)) {
        tracing::debug!(pin = %pin.display(), %error, "a link was not updated");
    }
}

/// Detaches and unpins, in this order: when it returns, no connection sees the program any more. Nothing there is
/// no error.
pub(super) fn remove(pin: &Path) -> io::Result<()> {
    if let Ok(link) = sys::bpf_obj_get(pin)
        && let Err(error) = sys::bpf_link_detach(link.as_fd())
    {
        // Its netns or cgroup is gone, and the attachment with it.
        tracing::debug!(pin = %pin.display(), %error, "a link was not detached");
    }
    match fs::remove_file(pin) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
