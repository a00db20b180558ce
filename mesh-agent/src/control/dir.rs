//! Sees that files of a directory change; reads none of them.
//!
//! inotify, see inotify(7). What happens within a few milliseconds comes as one [`Batch`], so that an editor's
//! rename-and-write is one change. When the kernel's queue overflows the batch says to look at everything.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use inotify::{Event, EventMask, Inotify, WatchMask};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How long after the first event a batch is closed. Far below the one second in which a change must be visible,
/// far above the gap that editors leave between moving a file away and writing it anew.
const DEBOUNCE: Duration = Duration::from_millis(10);
/// How often a vanished directory is looked for.
const RETRY: Duration = Duration::from_secs(1);
/// Room for some hundred events of longest name; more are read in turns.
const BUFFER_BYTES: usize = 64 * 1024;
/// What a Kubernetes volume renames to put all its files in place at once.
const VOLUME_SWITCH: &str = "..data";

/// What happened to a file; when several things did, the last of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It is being written; there may be more to come.
    Written,
    /// Its writer closed it.
    Closed,
    /// It was renamed in: whole by the writer's own word.
    Renamed,
    /// It is gone.
    Removed,
}

/// What happened since the last batch.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// By file name.
    pub(super) changes: BTreeMap<String, Change>,
    /// Anything may have changed.
    pub(super) rescan: bool,
    /// The directory itself is gone; the changes of this batch were its end.
    pub(super) lost: bool,
}

impl Batch {
    /// One that says to look at everything.
    pub(super) fn rescan() -> Self {
        Self { rescan: true, ..Self::default() }
    }

    fn note<N: AsRef<std::ffi::OsStr>>(&mut self, event: &Event<N>) {
        let mask = event.mask;
        if mask.contains(EventMask::Q_OVERFLOW) {
            self.rescan = true;
        }
        if mask.intersects(EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::UNMOUNT | EventMask::IGNORED) {
            self.lost = true;
        }
        let Some(name) = event.name.as_ref().and_then(|name| name.as_ref().to_str()) else {
            return;
        };
        if name == VOLUME_SWITCH {
            self.rescan = true;
        }
        if mask.contains(EventMask::ISDIR) || !is_configuration(name) {
            return;
        }
        let change = if mask.intersects(EventMask::DELETE | EventMask::MOVED_FROM) {
            Change::Removed
        } else if mask.contains(EventMask::MOVED_TO) {
            Change::Renamed
        } else if mask.contains(EventMask::CLOSE_WRITE) {
            Change::Closed
        } else {
            Change::Written
        };
        self.changes.insert(name.to_owned(), change);
    }
}

/// Whether a file of this name is read: `*.yaml`, `*.yml` and `*.json`, and not the hidden files that editors and
/// our own writer work on.
pub(super) fn is_configuration(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
    !name.starts_with('.') && matches!(extension, Some("yaml" | "yml" | "json"))
}

/// Watches one directory, and goes on looking for it when it vanishes.
#[derive(Debug)]
pub(super) struct Watcher {
    path: PathBuf,
    inotify: Option<AsyncFd<Inotify>>,
}

impl Watcher {
    /// Watches `path` from now on: whatever is read of it afterwards is at least as new.
    ///
    /// # Errors
    /// When it is not a directory, may not be read, or the user's inotify instances are used up.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), inotify: Some(watch(path)?) })
    }

    /// The next batch. Losing no event when dropped before it completes: they stay in the kernel's queue.
    pub(super) async fn next(&mut self) -> Batch {
        let Some(inotify) = &mut self.inotify else {
            return self.look_for_directory().await;
        };
        let outcome = async {
            drop(inotify.readable().await?);
            tokio::time::sleep(DEBOUNCE).await;
            let mut batch = Batch::default();
            let mut buffer = vec![0; BUFFER_BYTES];
            while read(inotify, &mut buffer, &mut batch)? {}
            Ok::<_, io::Error>(batch)
        };
        match outcome.await {
            Ok(batch) if !batch.lost => batch,
            // An error of the queue is as bad as a lost directory, and mended the same way.
            Ok(_) | Err(_) => {
                self.inotify = None;
                Batch { lost: true, ..Batch::default() }
            }
        }
    }

    async fn look_for_directory(&mut self) -> Batch {
        loop {
            tokio::time::sleep(RETRY).await;
            if let Ok(inotify) = watch(&self.path) {
                self.inotify = Some(inotify);
                return Batch::rescan();
            }
        }
    }
}

fn watch(path: &Path) -> io::Result<AsyncFd<Inotify>> {
    let inotify = Inotify::init()?;
    let of_files = WatchMask::CREATE
        | WatchMask::MODIFY
        | WatchMask::CLOSE_WRITE
        | WatchMask::MOVED_TO
        | WatchMask::MOVED_FROM
        | WatchMask::DELETE;
    let of_directory = WatchMask::DELETE_SELF | WatchMask::MOVE_SELF | WatchMask::ONLYDIR;
    inotify.watches().add(path, of_files | of_directory)?;
    crate::sys::async_fd(inotify)
}

/// Reads what is queued into `batch`; false when nothing was.
fn read(inotify: &mut AsyncFd<Inotify>, buffer: &mut [u8], batch: &mut Batch) -> io::Result<bool> {
    let result = inotify.try_io_mut(Interest::READABLE, |inotify| match inotify.read_events(buffer) {
        Ok(events) => {
            events.for_each(|event| batch.note(&event));
            Ok(true)
        }
        Err(error) => Err(error),
    });
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        other => other,
    }
}
