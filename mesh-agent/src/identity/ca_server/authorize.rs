//! Which node may have which identity.

use std::fmt::Debug;
use std::sync::Arc;

use super::super::node::NodeName;
use crate::model::identity::Identity;
use crate::snapshot::SnapshotStore;

/// Decides whether a node's agent may speak for a service account.
pub trait NodeAuthorizer: Debug + Send + Sync + 'static {
    /// Whether `node` has a pod that needs a certificate of `identity`.
    fn may(&self, node: &NodeName, identity: &Identity) -> bool;
}

/// By the CA's own view of the objects: never by what the node says.
#[derive(Debug)]
pub struct BySnapshot(pub Arc<SnapshotStore>);

impl NodeAuthorizer for BySnapshot {
    fn may(&self, node: &NodeName, identity: &Identity) -> bool {
        let snapshot = self.0.load();
        snapshot.workloads().iter().any(|w| &*w.node == node.as_str() && w.identity == *identity && w.is_enrolled())
    }
}
