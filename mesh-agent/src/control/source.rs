//! The directory as a source: which version of a file counts, and when.
//!
//! A writer that does not rename leaves a file torn for a while. What a file said before counts until its writer
//! has closed it and it is YAML again, but for [`TORN`] at most; then it counts as it is. A file that is renamed in
//! counts at once, and so does one that nothing was known about when its writer closed it. The clock is an argument.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::compile::compile;
use super::dir::{Batch, Change, is_configuration};
use super::document::is_whole;
use super::files::Files;
use crate::model::problem::{Effect, Problem};
use crate::snapshot::SnapshotParts;

/// How long the predecessor of a torn file counts.
const TORN: Duration = Duration::from_secs(2);
/// How long after it failed the directory is listed again.
const RESCAN_RETRY: Duration = Duration::from_secs(1);

/// The state of the directory source.
#[derive(Debug)]
pub(super) struct DirSource {
    path: PathBuf,
    node: Arc<str>,
    trust_domain: Arc<str>,
    files: Files,
    /// Files whose predecessor still counts, with the time at which they were first seen torn.
    torn: BTreeMap<String, Instant>,
    /// Why the directory cannot be read.
    lost: Option<String>,
    /// When to look at everything again, after that failed.
    rescan_at: Option<Instant>,
    /// Something has changed since the last [`Self::compile`].
    changed: bool,
}

impl DirSource {
    /// A source that has read nothing yet.
    pub(super) fn new(path: PathBuf, node: &str, trust_domain: &str) -> Self {
        Self {
            path,
            node: node.into(),
            trust_domain: trust_domain.into(),
            files: Files::default(),
            torn: BTreeMap::new(),
            lost: None,
            rescan_at: None,
            changed: true,
        }
    }

    /// Takes in what happened, and what time has brought about.
    pub(super) fn absorb(&mut self, batch: Batch, now: Instant) {
        if batch.lost {
            // What was removed together with its directory was not meant to be taken back.
            self.torn.clear();
            self.rescan_at = None;
            self.lose("the directory is gone; looking for it every second".to_owned());
            return;
        }
        for (name, change) in &batch.changes {
            self.change(name, *change, now);
        }
        if batch.rescan || self.rescan_at.is_some_and(|at| at <= now) {
            self.rescan(now);
        }
        let due = self.torn.iter().filter(|(_, since)| **since + TORN <= now);
        for name in due.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.read(&name, None);
        }
    }

    /// When [`Self::absorb`] must be called again although nothing happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.torn.values().map(|since| *since + TORN).chain(self.rescan_at).min()
    }

    /// Everything that counts now; `None` when nothing has changed since it was last asked.
    pub(super) fn compile(&mut self) -> Option<SnapshotParts> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let mut objects = self.files.objects();
        objects.problems.extend(self.lost.as_ref().map(|reason| Problem {
            location: self.path.display().to_string().into(),
            object: "directory".into(),
            field: "".into(),
            reason: reason.as_str().into(),
            effect: Effect::KeepsLast,
        }));
        Some(compile(&objects, &self.node, &self.trust_domain))
    }

    fn lose(&mut self, reason: String) {
        self.lost = Some(reason);
        self.changed = true;
    }

    fn change(&mut self, name: &str, change: Change, now: Instant) {
        match change {
            Change::Removed => {
                self.torn.remove(name);
                self.files.remove(name);
                self.changed = true;
            }
            Change::Renamed => self.read(name, None),
            Change::Closed => self.read(name, Some(now)),
            // A link appears whole and is never closed.
            Change::Written if is_link(&self.path.join(name)) => self.read(name, None),
            Change::Written => {
                self.torn.entry(name.to_owned()).or_insert(now);
            }
        }
    }

    fn rescan(&mut self, now: Instant) {
        let names = match list(&self.path) {
            Ok(names) => names,
            Err(error) => {
                self.rescan_at = Some(now + RESCAN_RETRY);
                return self.lose(format!("the directory cannot be read: {error}"));
            }
        };
        (self.lost, self.rescan_at, self.changed) = (None, None, true);
        self.files.retain(&names);
        self.torn.retain(|name, _| names.contains(name));
        for name in names {
            self.read(&name, Some(now));
        }
    }

    /// Reads a file. With `patience`, the present time, a torn one may wait for its writer.
    fn read(&mut self, name: &str, patience: Option<Instant>) {
        let bytes = read_file(&self.path.join(name));
        if let (Some(now), Ok(bytes)) = (patience, &bytes)
            && self.files.knows(name)
            && !is_whole(bytes)
        {
            self.torn.entry(name.to_owned()).or_insert(now);
            return;
        }
        self.torn.remove(name);
        self.changed = true;
        match bytes {
            Ok(bytes) => self.files.apply(name, &bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.files.remove(name),
            Err(error) => self.files.unavailable(name, format!("cannot be read: {error}")),
        }
    }
}

/// The names of the files that concern us.
fn list(path: &Path) -> io::Result<HashSet<String>> {
    let mut names = HashSet::new();
    for entry in std::fs::read_dir(path)? {
        names.extend(entry?.file_name().into_string().ok().filter(|name| is_configuration(name)));
    }
    Ok(names)
}

/// Only regular files: opening a pipe would wait for its writer.
fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    std::fs::read(path)
}

fn is_link(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink() || metadata.nlink() > 1)
}
