//! Notices that the content of a small file has become another: a mounted ConfigMap or Secret, which the kubelet swaps
//! by a link that no watch of the file itself sees. So it is read again and again; it is some kilobytes.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::state;

/// How often it is read.
const EVERY: Duration = Duration::from_secs(1);

/// One file, and its content as it was seen last.
#[derive(Debug)]
pub(super) struct FileChanges {
    path: PathBuf,
    seen: Mutex<Option<Vec<u8>>>,
}

impl FileChanges {
    /// From the content that `path` has now.
    pub(super) fn new(path: PathBuf) -> Self {
        let seen = Mutex::new(read(&path));
        Self { path, seen }
    }

    /// Ends when the file has another content than when it was seen last. A file that is gone or cannot be read has
    /// not changed: it will be back.
    pub(super) async fn next(&self) {
        loop {
            tokio::time::sleep(EVERY).await;
            let Some(now) = read(&self.path) else { continue };
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if seen.as_ref() != Some(&now) {
                *seen = Some(now);
                return;
            }
        }
    }
}

fn read(path: &std::path::Path) -> Option<Vec<u8>> {
    state::read_public(path).ok().flatten().map(|bytes| bytes.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_change_ends_the_wait_once_and_a_file_that_is_gone_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("roots");
        std::fs::write(&path, "old").unwrap();
        let file = FileChanges::new(path.clone());
        let changed = async || tokio::time::timeout(EVERY * 3, file.next()).await.is_ok();
        assert!(!changed().await, "nothing has changed");
        std::fs::remove_file(&path).unwrap();
        assert!(!changed().await, "gone is not changed");
        std::fs::write(&path, "old").unwrap();
        assert!(!changed().await, "back as it was");
        std::fs::write(&path, "new").unwrap();
        assert!(changed().await);
        assert!(!changed().await, "told once");
    }
}
