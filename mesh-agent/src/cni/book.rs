//! The book of local facts (decision 0010): which network namespace and which addresses each pod of this node has, as
//! the container runtime told at ADD. It survives the agent, not the boot. Decides nothing about the mesh.
//!
//! While one agent hands over to the next, both are told of sandboxes and both write. So the file is what is true, and
//! every change is made to what it says at that moment, under a lock that it has for this.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::stamped;
use crate::admin::{EnrolRequest, ReleaseRequest};
use crate::model::local::{LocalPod, LocalPods};
use crate::model::workload::WorkloadUid;

/// Its file in the state directory.
pub const BOOK_NAME: &str = "pods.json";
/// Held by whoever changes it. Another file: the book itself is replaced whole.
const LOCK_NAME: &str = ".pods.lock";
/// An entry whose pod the API server has never shown goes after this: well beyond any deadline of an ADD.
const FORGOTTEN: Duration = Duration::from_secs(600);

/// One sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Sandbox {
    namespace: String,
    name: String,
    /// `CNI_CONTAINERID`.
    container: String,
    netns: PathBuf,
    /// Of the network namespace: its path may be used again.
    inode: u64,
    addresses: Vec<IpAddr>,
    /// It has been taken down.
    gone: bool,
}

/// What is known of one pod.
#[derive(Clone, Debug)]
struct Entry {
    sandbox: Sandbox,
    /// A snapshot has had the pod.
    seen: bool,
    since: Instant,
}

/// The book.
#[derive(Debug)]
pub struct Book {
    dir: PathBuf,
    boot_id: String,
    entries: Mutex<BTreeMap<WorkloadUid, Entry>>,
    told: watch::Sender<Arc<LocalPods>>,
}

impl Book {
    /// Opens the book in `state_dir`. One that is torn or of another boot is empty: the pods are looked for then.
    ///
    /// # Errors
    /// Without /proc.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        let book = Self {
            dir: state_dir.to_owned(),
            boot_id: stamped::boot_id()?,
            entries: Mutex::default(),
            told: watch::Sender::new(Arc::default()),
        };
        book.read_again();
        Ok(book)
    }

    /// Takes in what another agent of this node has written since.
    pub fn read_again(&self) {
        let mut entries = self.lock();
        self.take_in(&mut entries);
        self.tell(&entries);
    }

    /// Pods whose sandbox stands.
    #[must_use]
    pub fn standing(&self) -> Vec<WorkloadUid> {
        let standing = |(uid, pod): (&WorkloadUid, &LocalPod)| (*pod != LocalPod::Gone).then(|| Arc::clone(uid));
        self.told.borrow().iter().filter_map(standing).collect()
    }

    /// Makes the entries those of the file. One that is not there or torn changes nothing.
    fn take_in(&self, entries: &mut BTreeMap<WorkloadUid, Entry>) {
        let read = stamped::read::<BTreeMap<WorkloadUid, Sandbox>>(&self.dir, BOOK_NAME, &self.boot_id);
        let Some((sandboxes, _)) = read else { return };
        let mut before = std::mem::take(entries);
        for (uid, sandbox) in sandboxes {
            let known = before.remove(&uid).filter(|entry| entry.sandbox == sandbox);
            let is_there = || sandbox.gone || inode(&sandbox.netns).ok() == Some(sandbox.inode);
            if known.is_some() || is_there() {
                let new = || Entry { sandbox, seen: false, since: Instant::now() };
                entries.insert(uid, known.unwrap_or_else(new));
            }
        }
    }

    /// Changes what the file says now, and writes it if `change` says that something is new. What cannot be written
    /// has not happened.
    fn change<T>(&self, change: impl FnOnce(&mut BTreeMap<WorkloadUid, Entry>) -> (bool, T)) -> io::Result<T> {
        let mut entries = self.lock();
        let lock = File::create(self.dir.join(LOCK_NAME))?;
        lock.lock()?;
        self.take_in(&mut entries);
        let before = entries.clone();
        let (is_new, outcome) = change(&mut entries);
        let written = if is_new { self.write(&entries) } else { Ok(()) };
        if written.is_err() {
            *entries = before;
        }
        self.tell(&entries);
        written.map(|()| outcome)
    }

    /// What the pods of this node are known to have, now and whenever it changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<LocalPods>> {
        self.told.subscribe()
    }

    /// Notes a sandbox that stands; gives its network namespace's inode. Another pod that had one of its addresses has
    /// none any more. Blocks on the disk.
    ///
    /// # Errors
    /// When the network namespace cannot be seen or the book cannot be written; nothing is noted then.
    pub fn enter(&self, request: &EnrolRequest) -> io::Result<u64> {
        let EnrolRequest { uid, namespace, name, container, netns, addresses } = request;
        let inode = inode(netns)?;
        let sandbox = Sandbox {
            namespace: namespace.clone(),
            name: name.clone(),
            container: container.clone(),
            netns: netns.clone(),
            inode,
            addresses: addresses.iter().map(IpAddr::to_canonical).collect(),
            gone: false,
        };
        self.change(|entries| {
            if entries.get(uid.as_str()).is_some_and(|entry| entry.sandbox == sandbox) {
                return (false, inode);
            }
            for (other, entry) in entries.iter_mut() {
                let shares = entry.sandbox.addresses.iter().any(|address| sandbox.addresses.contains(address));
                entry.sandbox.gone |= **other != *uid.as_str() && shares;
            }
            entries.insert(uid.as_str().into(), Entry { sandbox, seen: false, since: Instant::now() });
            (true, inode)
        })
    }

    /// Notes that a sandbox is taken down. One that is not the pod's present one, or not known, changes nothing.
    /// Blocks on the disk.
    pub fn leave(&self, request: &ReleaseRequest) {
        self.settle(|entries| {
            let entry = entries.get_mut(request.uid.as_str());
            let of_this = |entry: &&mut Entry| entry.sandbox.container == request.container && !entry.sandbox.gone;
            entry.filter(of_this).map(|entry| entry.sandbox.gone = true).is_some()
        });
    }

    /// Forgets pods that are gone. `exists` says whether a complete snapshot has a pod. Blocks on the disk.
    pub fn prune(&self, exists: impl Fn(&str) -> bool, now: Instant) {
        let stays = |entry: &Entry| entry.seen || now.saturating_duration_since(entry.since) < FORGOTTEN;
        let mut is_any_gone = false;
        for (uid, entry) in self.lock().iter_mut() {
            let exists = exists(uid);
            is_any_gone |= !exists && (entry.seen || !stays(entry));
            entry.seen |= exists;
        }
        // Every snapshot is looked at: the disk is touched when there is something to write alone.
        if is_any_gone {
            self.settle(|entries| {
                let before = entries.len();
                entries.retain(|uid, entry| exists(uid) || !entry.seen && stays(entry));
                entries.len() != before
            });
        }
    }

    fn settle(&self, change: impl FnOnce(&mut BTreeMap<WorkloadUid, Entry>) -> bool) {
        if let Err(error) = self.change(|entries| (change(entries), ())) {
            // What it says too much is found out on use: the netns is not there any more.
            tracing::warn!(%error, file = %self.dir.join(BOOK_NAME).display(), "the book of pods could not be written");
        }
    }

    fn write(&self, entries: &BTreeMap<WorkloadUid, Entry>) -> io::Result<()> {
        let sandboxes: BTreeMap<&str, &Sandbox> = entries.iter().map(|(uid, entry)| (&**uid, &entry.sandbox)).collect();
        stamped::write(&self.dir, BOOK_NAME, &self.boot_id, &sandboxes)
    }

    fn tell(&self, entries: &BTreeMap<WorkloadUid, Entry>) {
        let local = |Sandbox { netns, addresses, gone, .. }: &Sandbox| match gone {
            true => LocalPod::Gone,
            false => LocalPod::Standing { netns: netns.clone(), addresses: addresses.clone() },
        };
        let pods: LocalPods = entries.iter().map(|(uid, entry)| (Arc::clone(uid), local(&entry.sandbox))).collect();
        self.told.send_if_modified(|told| {
            let changed = **told != pods;
            *told = Arc::new(pods);
            changed
        });
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<WorkloadUid, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of a network namespace's file.
fn inode(netns: &Path) -> io::Result<u64> {
    Ok(fs::metadata(netns)?.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(dir: &Path, uid: &str, container: &str, address: &str) -> EnrolRequest {
        let netns = dir.join(container);
        fs::write(&netns, "").unwrap();
        let (namespace, name) = ("shop".to_owned(), uid.to_owned());
        let addresses = vec![address.parse().unwrap()];
        EnrolRequest { uid: uid.to_owned(), namespace, name, container: container.to_owned(), netns, addresses }
    }

    fn leave(book: &Book, uid: &str, container: &str) {
        book.leave(&ReleaseRequest { uid: uid.to_owned(), container: container.to_owned() });
    }

    #[track_caller]
    fn check(book: &Book, standing: &[&str], gone: &[&str]) {
        let told = book.watch().borrow().clone();
        let of = |is_gone: bool| {
            let of = told.iter().filter(move |(_, pod)| (**pod == LocalPod::Gone) == is_gone);
            of.map(|(uid, _)| uid.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(
            (of(false), of(true)),
            (
                standing.iter().map(ToString::to_string).collect(),
                gone.to_vec().iter().map(ToString::to_string).collect()
            )
        );
    }

    #[test]
    fn what_was_entered_is_there_for_the_next_agent_until_it_leaves() {
        let dir = tempfile::tempdir().unwrap();
        let book = Book::open(dir.path()).unwrap();
        book.enter(&request(dir.path(), "a", "box-a", "::ffff:10.0.0.1")).unwrap();
        book.enter(&request(dir.path(), "b", "box-b", "10.0.0.2")).unwrap();
        let standing =
            LocalPod::Standing { netns: dir.path().join("box-a"), addresses: vec!["10.0.0.1".parse().unwrap()] };
        assert_eq!(book.watch().borrow().get("a"), Some(&standing));
        check(&Book::open(dir.path()).unwrap(), &["a", "b"], &[]);
        leave(&book, "a", "box-a");
        check(&book, &["b"], &["a"]);
        check(&Book::open(dir.path()).unwrap(), &["b"], &["a"]);
    }

    #[test]
    fn two_agents_lose_nothing_of_one_another() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (Book::open(dir.path()).unwrap(), Book::open(dir.path()).unwrap());
        old.enter(&request(dir.path(), "a", "box-a", "10.0.0.1")).unwrap();
        new.enter(&request(dir.path(), "b", "box-b", "10.0.0.2")).unwrap();
        check(&new, &["a", "b"], &[]);
        old.enter(&request(dir.path(), "c", "box-c", "10.0.0.3")).unwrap();
        leave(&new, "a", "box-a");
        check(&new, &["b", "c"], &["a"]);
        old.read_again();
        check(&old, &["b", "c"], &["a"]);
        old.prune(|uid| uid != "a", Instant::now() + FORGOTTEN * 2);
        new.read_again();
        check(&new, &["b", "c"], &[]);
        check(&Book::open(dir.path()).unwrap(), &["b", "c"], &[]);
    }

    #[test]
    fn a_sandbox_that_was_replaced_takes_nothing_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let book = Book::open(dir.path()).unwrap();
        let first = book.enter(&request(dir.path(), "a", "box-1", "10.0.0.1")).unwrap();
        let second = book.enter(&request(dir.path(), "a", "box-2", "10.0.0.1")).unwrap();
        assert_ne!(first, second);
        leave(&book, "a", "box-1");
        leave(&book, "unknown", "box-1");
        check(&book, &["a"], &[]);
    }

    #[test]
    fn an_address_belongs_to_the_last_pod_that_got_it() {
        let dir = tempfile::tempdir().unwrap();
        let book = Book::open(dir.path()).unwrap();
        book.enter(&request(dir.path(), "a", "box-a", "10.0.0.1")).unwrap();
        book.enter(&request(dir.path(), "b", "box-b", "10.0.0.1")).unwrap();
        check(&book, &["b"], &["a"]);
    }

    #[test]
    fn another_boot_or_another_netns_at_the_path_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let book = Book::open(dir.path()).unwrap();
        book.enter(&request(dir.path(), "a", "box-a", "10.0.0.1")).unwrap();
        book.enter(&request(dir.path(), "b", "box-b", "10.0.0.2")).unwrap();
        // Made before the other is removed: no inode is used twice.
        fs::write(dir.path().join("new"), "").unwrap();
        fs::rename(dir.path().join("new"), dir.path().join("box-a")).unwrap();
        check(&Book::open(dir.path()).unwrap(), &["b"], &[]);
        let file = dir.path().join(BOOK_NAME);
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replace(&stamped::boot_id().unwrap(), "another-boot")).unwrap();
        check(&Book::open(dir.path()).unwrap(), &[], &[]);
    }

    #[test]
    fn pods_that_the_api_server_has_no_more_or_never_had_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let book = Book::open(dir.path()).unwrap();
        for (uid, address) in [("a", "10.0.0.1"), ("b", "10.0.0.2")] {
            book.enter(&request(dir.path(), uid, uid, address)).unwrap();
        }
        let now = Instant::now();
        book.prune(|uid| uid == "a", now);
        check(&book, &["a", "b"], &[]);
        book.prune(|_| false, now);
        check(&book, &["b"], &[]);
        book.prune(|_| false, now + FORGOTTEN * 2);
        check(&book, &[], &[]);
    }

    #[test]
    fn a_netns_that_cannot_be_seen_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let book = Book::open(dir.path()).unwrap();
        let mut request = request(dir.path(), "a", "box-a", "10.0.0.1");
        request.netns = dir.path().join("nowhere");
        assert!(book.enter(&request).is_err());
        check(&book, &[], &[]);
    }
}
