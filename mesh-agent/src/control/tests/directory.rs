//! A real directory, watched by a running source.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::{pod, policy};
use crate::control::{ControlError, DirConfig, Published, publish_captured, run};
use crate::model::workload::Captured;
use crate::snapshot::{Snapshot, SnapshotStore};

fn config(path: &Path, trust_domain: &str) -> DirConfig {
    let (path, trust_domain) = (path.to_owned(), trust_domain.to_owned());
    DirConfig { path, node: "node-a".to_owned(), trust_domain, node_local_dns: None }
}

struct Running {
    store: Arc<SnapshotStore>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), ControlError>>,
}

impl Running {
    async fn start(dir: &Path) -> Self {
        let store = Arc::new(SnapshotStore::default());
        let config = config(dir, "cluster.local");
        let (stop, stopped) = oneshot::channel();
        let shutdown = async {
            let _ = stopped.await;
        };
        let task = tokio::spawn(run(config, Arc::clone(&store), shutdown));
        let running = Self { store, stop, task };
        running.until(Duration::from_secs(5), |snapshot| snapshot.generation() > 0).await;
        running
    }

    /// Waits until the published snapshot is as it should be.
    #[track_caller]
    fn until(&self, limit: Duration, is_so: impl Fn(&Snapshot) -> bool) -> impl Future<Output = Arc<Snapshot>> {
        let caller = std::panic::Location::caller();
        let store = Arc::clone(&self.store);
        async move {
            let outcome = tokio::time::timeout(limit, store.until(is_so)).await;
            outcome.unwrap_or_else(|_| panic!("{caller}: not within {limit:?}: {:#?}", store.load()))
        }
    }

    async fn stop(self) {
        self.stop.send(()).expect("still running");
        self.task.await.expect("no panic").expect("no error");
    }
}

/// A change must be visible well within a second.
const SOON: Duration = Duration::from_secs(1);

fn names(snapshot: &Snapshot) -> Vec<&str> {
    snapshot.workloads().iter().map(|workload| &*workload.name).collect()
}

#[tokio::test]
async fn changes_of_every_kind_are_visible_within_a_second() {
    let dir = tempfile::tempdir().expect("directory");
    let file = dir.path().join("pods.yaml");
    std::fs::write(&file, pod("a", "10.0.0.1")).expect("written");
    let running = Running::start(dir.path()).await;
    running.until(SOON, |snapshot| names(snapshot) == ["a"]).await;

    std::fs::write(&file, pod("b", "10.0.0.1")).expect("written");
    running.until(SOON, |snapshot| names(snapshot) == ["b"]).await;
    std::fs::write(dir.path().join(".new"), pod("c", "10.0.0.1")).expect("written");
    std::fs::rename(dir.path().join(".new"), &file).expect("renamed");
    running.until(SOON, |snapshot| names(snapshot) == ["c"]).await;
    std::fs::write(dir.path().join("more.yml"), pod("d", "10.0.0.2")).expect("written");
    running.until(SOON, |snapshot| names(snapshot) == ["c", "d"]).await;
    std::fs::remove_file(&file).expect("removed");
    let last = running.until(SOON, |snapshot| names(snapshot) == ["d"]).await;

    std::fs::write(dir.path().join("notes.txt"), "nothing of ours").expect("written");
    std::fs::write(dir.path().join("more.yml"), pod("d", "10.0.0.2")).expect("written");
    std::fs::write(&file, policy("p", "{oops: 1}")).expect("written");
    let named = running.until(SOON, |snapshot| !snapshot.problems().is_empty()).await;
    assert_eq!(named.generation(), last.generation() + 1, "what changes nothing is not published");
    assert_eq!(&*named.problems()[0].field, "spec.oops");
    running.stop().await;
}

#[tokio::test]
async fn a_directory_that_comes_back_is_read_again() {
    let above = tempfile::tempdir().expect("directory");
    let dir = above.path().join("objects");
    std::fs::create_dir(&dir).expect("directory");
    std::fs::write(dir.join("a.yaml"), pod("a", "10.0.0.1")).expect("written");
    let running = Running::start(&dir).await;

    std::fs::rename(&dir, above.path().join("aside")).expect("moved");
    let lost = running.until(SOON, |snapshot| !snapshot.problems().is_empty()).await;
    assert_eq!((names(&lost), &*lost.problems()[0].object), (vec!["a"], "directory"));
    std::fs::create_dir(&dir).expect("directory");
    std::fs::write(dir.join("a.yaml"), pod("b", "10.0.0.1")).expect("written");
    let limit = Duration::from_secs(5);
    let back = running.until(limit, |snapshot| snapshot.problems().is_empty()).await;
    assert_eq!(names(&back), ["b"]);
    std::fs::write(dir.join("a.yaml"), pod("c", "10.0.0.1")).expect("written");
    running.until(SOON, |snapshot| names(snapshot) == ["c"]).await;
    running.stop().await;
}

#[tokio::test]
async fn what_an_agent_publishes_others_see() {
    let dir = tempfile::tempdir().expect("directory");
    std::fs::write(dir.path().join("a.yaml"), pod("a", "10.0.0.1")).expect("written");
    let running = Running::start(dir.path()).await;
    let captured = Captured { generation: 4, wire: ["h2".into()].into() };
    let published = Published { uid: "uid-a".into(), name: "shop/a".to_owned(), captured: captured.clone() };
    publish_captured(dir.path(), "node-a", &[published]).expect("published");
    let is_captured = |snapshot: &Snapshot| snapshot.workload("uid-a").is_some_and(|a| a.captured.is_some());
    let snapshot = running.until(SOON, is_captured).await;
    assert_eq!(snapshot.workload("uid-a").expect("a").captured, Some(captured));

    publish_captured(dir.path(), "node-a", &[]).expect("taken back");
    running.until(SOON, |snapshot| !is_captured(snapshot)).await;
    let left: Vec<_> =
        std::fs::read_dir(dir.path()).expect("listed").map(|entry| entry.expect("entry").file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    running.stop().await;
}

#[test]
fn publishing_names_what_stands_in_its_way() {
    let dir = tempfile::tempdir().expect("directory");
    for name in ["", "../etc", "Node", ".x"] {
        assert!(matches!(publish_captured(dir.path(), name, &[]), Err(ControlError::NodeName(named)) if named == name));
    }
    let error = publish_captured(&dir.path().join("none"), "a", &[]).expect_err("no directory");
    assert!(error.to_string().contains("none/captured.a.yaml: No such file"), "{error}");
}

#[tokio::test]
async fn what_cannot_be_run_says_why() {
    let dir = tempfile::tempdir().expect("directory");
    let start =
        |path: &Path, trust_domain: &str| run(config(path, trust_domain), Arc::default(), std::future::pending());
    let missing = start(&dir.path().join("none"), "cluster.local").await.expect_err("no directory");
    assert!(
        missing.to_string().starts_with("cannot watch directory")
            && missing.to_string().contains(
                "none: No \
    such file"
            )
    );
    let file = dir.path().join("a.yaml");
    std::fs::write(&file, "").expect("written");
    assert!(matches!(start(&file, "cluster.local").await, Err(ControlError::Directory { .. })), "not a directory");
    assert!(matches!(start(dir.path(), "Not A Domain").await, Err(ControlError::TrustDomain(_))));
}
