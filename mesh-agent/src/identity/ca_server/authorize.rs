//! Which node may have which identity.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use super::super::node::NodeName;
use crate::model::identity::Identity;
use crate::snapshot::{Snapshot, SnapshotStore};

/// Decides whether a node's agent may speak for a service account.
pub trait NodeAuthorizer: Debug + Send + Sync + 'static {
    /// Whether `node` has a pod that needs a certificate of `identity`.
    fn may(&self, node: &NodeName, identity: &Identity) -> bool;
}

/// By the CA's own view of the objects: never by what the node says.
#[derive(Debug)]
pub struct BySnapshot {
    snapshots: Arc<SnapshotStore>,
    /// Of the snapshot that was asked about last.
    index: Mutex<Index>,
}

/// Who is on which node.
#[derive(Debug, Default)]
struct Index {
    generation: u64,
    nodes: HashMap<Arc<str>, HashSet<Identity>>,
}

impl BySnapshot {
    /// By what `snapshots` holds whenever somebody asks.
    #[must_use]
    pub fn new(snapshots: Arc<SnapshotStore>) -> Self {
        Self { snapshots, index: Mutex::default() }
    }
}

impl NodeAuthorizer for BySnapshot {
    fn may(&self, node: &NodeName, identity: &Identity) -> bool {
        let snapshot = self.snapshots.load();
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        // When all nodes ask at once, each pod is looked at once and not once for each of them.
        if index.generation < snapshot.generation() {
            *index = Index::of(&snapshot);
        }
        index.nodes.get(node.as_str()).is_some_and(|identities| identities.contains(identity))
    }
}

impl Index {
    fn of(snapshot: &Snapshot) -> Self {
        let mut nodes: HashMap<Arc<str>, HashSet<Identity>> = HashMap::new();
        for workload in snapshot.workloads().iter().filter(|workload| workload.is_enrolled()) {
            nodes.entry(Arc::clone(&workload.node)).or_default().insert(workload.identity.clone());
        }
        Self { generation: snapshot.generation(), nodes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control;
    use crate::identity::testing::{TRUST_DOMAIN, identity};

    const OBJECTS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {mesh-agent.io/mode: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: web, uid: u1}
spec: {nodeName: a, serviceAccountName: web, containers: []}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: job, uid: u2}
spec: {nodeName: a, serviceAccountName: job, containers: []}
status: {podIP: 10.0.0.2, phase: Succeeded}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: host, uid: u3}
spec: {nodeName: a, serviceAccountName: host, hostNetwork: true, containers: []}
---
apiVersion: v1
kind: Pod
metadata: {namespace: other, name: plain, uid: u4}
spec: {nodeName: a, serviceAccountName: plain, containers: []}
status: {podIP: 10.0.0.4}
";

    #[tokio::test]
    async fn a_node_may_have_what_its_enrolled_pods_need_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("objects.yaml");
        std::fs::write(&file, OBJECTS).unwrap();
        let store = Arc::new(SnapshotStore::default());
        let config = control::DirConfig {
            path: dir.path().to_owned(),
            node: String::new(),
            trust_domain: TRUST_DOMAIN.to_owned(),
            node_local_dns: None,
        };
        let mut generation = store.watch();
        let source = tokio::spawn(control::run(config, Arc::clone(&store), std::future::pending()));
        generation.wait_for(|generation| *generation > 0).await.unwrap();

        let authorizer = BySnapshot::new(Arc::clone(&store));
        let may = |node: &str, namespace: &str, account: &str| {
            authorizer.may(&node.parse().unwrap(), &identity(namespace, account))
        };
        assert!(may("a", "shop", "web"));
        for (case, node, namespace, account) in [
            ("on another node", "b", "shop", "web"),
            ("over", "a", "shop", "job"),
            ("in the host's network", "a", "shop", "host"),
            ("not enrolled", "a", "other", "plain"),
            ("nowhere", "a", "shop", "db"),
        ] {
            assert!(!may(node, namespace, account), "{case}");
        }

        std::fs::remove_file(&file).unwrap();
        let gone = tokio::time::timeout(std::time::Duration::from_secs(5), generation.wait_for(|g| *g > 1));
        gone.await.expect("within 5 s").unwrap();
        assert!(!may("a", "shop", "web"), "its pod has left");
        source.abort();
    }
}
