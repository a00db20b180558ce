//! Keeps the plugin where it was installed, while others rewrite the same files.

use std::io;
use std::path::Path;
use std::time::Duration;

use inotify::{Inotify, WatchMask};
use tokio::io::unix::AsyncFd;
use tokio::time::{sleep, timeout};

use super::install::{InstallError, install_binary, install_entry, install_kubeconfig};
use crate::config::CniInstall;

/// What nobody announces, a token that is renewed among it, is looked at this often.
const LOOK: Duration = Duration::from_secs(60);
/// Between two repairs: another one that insists on the last place as well must not make the two of us busy.
const PAUSE: Duration = Duration::from_secs(1);
/// Room for some hundred events.
const BUFFER_BYTES: usize = 16 * 1024;

/// Installs the plugin and repairs what is changed, for ever. What cannot be done is logged once and tried again.
pub async fn keep(install: CniInstall) {
    let mut told = None;
    loop {
        // Before anything is read: what changes from here on is heard of.
        let watch = watch(&install.conf_dir);
        let installing = install.clone();
        let done = tokio::task::spawn_blocking(move || all(&installing)).await;
        let problem = match done {
            Ok(outcome) => outcome.err().map(|error| error.to_string()),
            Err(panicked) => Some(panicked.to_string()),
        };
        if let Some(reason) = problem.as_ref().filter(|_| problem != told) {
            tracing::warn!(%reason, "the CNI plugin is not in its place: pods start without waiting for the mesh");
        }
        told = problem;
        sleep(PAUSE).await;
        if let Ok(inotify) = watch {
            // Until something has happened, or it is time to look; an error is the directory's, which is looked for.
            let _ = timeout(LOOK, changed(inotify)).await;
        }
    }
}

/// The binary and the kubeconfig before the entry that names them.
fn all(install: &CniInstall) -> Result<(), InstallError> {
    if install_binary(install)? {
        tracing::info!(dir = %install.bin_dir.display(), "the CNI plugin's binary is installed");
    }
    if install_kubeconfig(install)? {
        tracing::info!(dir = %install.conf_dir.display(), "the CNI plugin's kubeconfig is written");
    }
    if let Some(path) = install_entry(install)? {
        tracing::info!(file = %path.display(), "the CNI plugin is in the network configuration, as its last plugin");
    }
    Ok(())
}

fn watch(dir: &Path) -> io::Result<AsyncFd<Inotify>> {
    let inotify = Inotify::init()?;
    let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::MOVED_FROM | WatchMask::DELETE;
    inotify.watches().add(dir, mask | WatchMask::ONLYDIR)?;
    crate::sys::async_fd(inotify)
}

async fn changed(mut inotify: AsyncFd<Inotify>) -> io::Result<()> {
    let mut ready = inotify.readable_mut().await?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let _ = ready.get_inner_mut().read_events(&mut buffer)?;
    Ok(())
}
