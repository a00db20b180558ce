//! The root in force, shared by what signs with it and by what replaces it.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::super::authority::Authority;
use super::root_file;

/// The root that signs now, and the roots to trust. Clones share it.
#[derive(Clone, Debug)]
pub struct RootInForce {
    authority: Arc<ArcSwap<Authority>>,
    changed: Arc<watch::Sender<u64>>,
}

impl RootInForce {
    pub(super) fn new(authority: Authority) -> Self {
        Self { authority: Arc::new(ArcSwap::from_pointee(authority)), changed: Arc::new(watch::Sender::new(0)) }
    }

    /// What signs now.
    pub(super) fn load(&self) -> Arc<Authority> {
        self.authority.load_full()
    }

    /// Puts another root in force; nothing happens when it is the same one.
    pub(super) fn replace(&self, authority: Authority) {
        if self.load().is_same(&authority) {
            return;
        }
        let roots = authority.roots().len();
        self.authority.store(Arc::new(authority));
        self.changed.send_modify(|count| *count += 1);
        tracing::info!(roots, "another root is in force");
    }

    /// Every root to trust, PEM.
    #[must_use]
    pub fn roots_pem(&self) -> String {
        root_file::text(self.load().roots())
    }

    /// How many roots are to be trusted, and until when what signs is valid.
    #[must_use]
    pub fn summary(&self) -> (usize, SystemTime) {
        let authority = self.load();
        (authority.roots().len(), authority.not_after())
    }

    /// Wakes when another root is in force.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
