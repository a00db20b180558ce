//! What counts when: torn files and a vanished directory, by a clock that the test holds.

use std::path::Path;
use std::time::{Duration, Instant};

use super::{pod, policy};
use crate::control::dir::{Batch, Change};
use crate::control::source::DirSource;
use crate::snapshot::SnapshotParts;

/// A directory, the source that reads it, and the time.
struct Scene {
    dir: tempfile::TempDir,
    source: DirSource,
    now: Instant,
    parts: SnapshotParts,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let source = DirSource::new(dir.path().to_owned(), "node-a", "cluster.local");
        let mut scene = Self { dir, source, now: Instant::now(), parts: SnapshotParts::default() };
        scene.absorb(Batch::rescan());
        scene
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path().join(name), text).expect("written");
    }

    /// `name` has `text` and `change` happened to it.
    fn happens(&mut self, name: &str, text: &str, change: Change) -> &SnapshotParts {
        self.write(name, text);
        self.absorb(Batch { changes: [(name.to_owned(), change)].into(), ..Batch::default() })
    }

    fn absorb(&mut self, batch: Batch) -> &SnapshotParts {
        self.source.absorb(batch, self.now);
        if let Some(parts) = self.source.compile() {
            self.parts = parts;
        }
        &self.parts
    }

    fn wait(&mut self, time: Duration) -> &SnapshotParts {
        self.now += time;
        self.absorb(Batch::default())
    }

    #[track_caller]
    fn check(&self, pods: &[&str], problems: usize) {
        let names: Vec<&str> = self.parts.workloads.iter().map(|workload| &*workload.name).collect();
        assert_eq!((&*names, self.parts.problems.len()), (pods, problems), "{:#?}", self.parts.problems);
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_file_being_written_counts_once_its_writer_closes_it() {
    let mut scene = Scene::new();
    scene.happens("a.yaml", &pod("x", "10.0.0.1"), Change::Closed);
    scene.check(&["x"], 0);
    scene.happens("a.yaml", &pod("y", "10.0.0.2"), Change::Written);
    scene.check(&["x"], 0);
    assert_eq!(scene.source.deadline(), Some(scene.now + 2 * SECOND));
    scene.happens("a.yaml", &pod("z", "10.0.0.2"), Change::Closed);
    scene.check(&["z"], 0);
    assert_eq!(scene.source.deadline(), None);
}

#[test]
fn the_predecessor_of_a_torn_file_counts_for_two_seconds_at_most() {
    let mut scene = Scene::new();
    let (good, torn) = (policy("p", "{rules: [{}]}"), policy("p", "{rules: [{"));
    scene.happens("a.yaml", &good, Change::Closed);
    scene.happens("a.yaml", &torn, Change::Closed);
    assert!(scene.parts.policies[0].broken.is_none());
    scene.wait(SECOND);
    scene.happens("a.yaml", &torn, Change::Written);
    assert!(scene.parts.policies[0].broken.is_none(), "a second tear does not start the time anew");
    scene.wait(SECOND);
    assert!(scene.parts.policies[0].broken.is_some());
    scene.check(&[], 1);
    scene.happens("a.yaml", &good, Change::Closed);
    assert!(scene.parts.policies[0].broken.is_none());
    scene.check(&[], 0);
}

#[test]
fn a_writer_that_never_closes_is_read_after_two_seconds() {
    let mut scene = Scene::new();
    scene.happens("a.yaml", &pod("x", "10.0.0.1"), Change::Written);
    scene.check(&[], 0);
    scene.wait(2 * SECOND);
    scene.check(&["x"], 0);
}

#[test]
fn a_renamed_in_file_counts_at_once_however_bad() {
    let mut scene = Scene::new();
    scene.happens("a.yaml", &policy("p", "{}"), Change::Renamed);
    scene.happens("a.yaml", &policy("p", "{["), Change::Renamed);
    assert!(scene.parts.policies[0].broken.is_some());
}

#[test]
fn a_file_that_nothing_was_known_about_is_named_as_soon_as_it_is_closed() {
    let mut scene = Scene::new();
    scene.happens("a.yaml", "{", Change::Closed);
    scene.check(&[], 1);
}

#[test]
fn links_count_at_once_and_what_is_no_file_is_named() {
    let mut scene = Scene::new();
    scene.write(".hidden", &pod("x", "10.0.0.1"));
    std::os::unix::fs::symlink(scene.path().join(".hidden"), scene.path().join("a.yaml")).expect("link");
    scene.absorb(Batch { changes: [("a.yaml".to_owned(), Change::Written)].into(), ..Batch::default() });
    scene.check(&["x"], 0);
    std::fs::create_dir(scene.path().join("b.yaml")).expect("directory");
    scene.absorb(Batch::rescan());
    scene.check(&["x"], 1);
    assert!(scene.parts.problems[0].to_string().starts_with("b.yaml: file: cannot be read: not a regular file"));
}

#[test]
fn a_removed_file_is_gone_at_once() {
    let mut scene = Scene::new();
    scene.happens("a.yaml", &pod("x", "10.0.0.1"), Change::Closed);
    std::fs::remove_file(scene.path().join("a.yaml")).expect("removed");
    scene.absorb(Batch { changes: [("a.yaml".to_owned(), Change::Removed)].into(), ..Batch::default() });
    scene.check(&[], 0);
}

#[test]
fn a_rescan_finds_what_was_missed() {
    let mut scene = Scene::new();
    scene.happens("a.yaml", &pod("x", "10.0.0.1"), Change::Closed);
    scene.write("b.json", "{\"apiVersion\": \"v1\", \"kind\": \"Pod\", \"metadata\": {\"name\": \"y\"}}");
    scene.write("c.txt", &pod("z", "10.0.0.3"));
    std::fs::remove_file(scene.path().join("a.yaml")).expect("removed");
    scene.absorb(Batch::rescan());
    scene.check(&["y"], 0);
}

#[test]
fn a_vanished_directory_leaves_the_last_snapshot_and_says_so_until_it_is_back() {
    let mut scene = Scene::new();
    scene.happens("a.yaml", &pod("x", "10.0.0.1"), Change::Closed);
    scene.happens("a.yaml", "{", Change::Written);
    let removed = [("a.yaml".to_owned(), Change::Removed)].into();
    scene.absorb(Batch { changes: removed, lost: true, rescan: false });
    scene.check(&["x"], 1);
    assert_eq!(scene.source.deadline(), None, "nothing is read while there is nothing to read");
    scene.wait(10 * SECOND);
    scene.check(&["x"], 1);
    scene.write("a.yaml", &pod("y", "10.0.0.1"));
    scene.absorb(Batch::rescan());
    scene.check(&["y"], 0);
}

#[test]
fn a_directory_that_cannot_be_listed_is_tried_again() {
    let mut scene = Scene::new();
    scene.happens("a.yaml", &pod("x", "10.0.0.1"), Change::Closed);
    let aside = scene.path().with_extension("aside");
    std::fs::rename(scene.path(), &aside).expect("moved");
    scene.absorb(Batch::rescan());
    scene.check(&["x"], 1);
    assert_eq!(scene.source.deadline(), Some(scene.now + SECOND));
    std::fs::rename(&aside, scene.path()).expect("moved back");
    scene.wait(SECOND);
    scene.check(&["x"], 0);
    assert_eq!(scene.source.deadline(), None);
}

#[test]
fn nothing_is_compiled_when_nothing_counts_anew() {
    let mut scene = Scene::new();
    scene
        .source
        .absorb(Batch { changes: [("a.yaml".to_owned(), Change::Written)].into(), ..Batch::default() }, scene.now);
    assert!(scene.source.compile().is_none());
}
