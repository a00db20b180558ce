//! The kernel's `pods` and `pod_facts`: what its programs know of each enrolled pod.
//!
//! A pod's entry in `pods` is one word that names its facts, and facts are written before anybody can find them and
//! never changed while somebody may: a change takes new ones and switches the word.

use std::collections::{HashMap, VecDeque};

use aya::maps::{Array, HashMap as BpfHashMap, MapData};
use mesh_common::limits::POD_FACTS;
use mesh_common::tag::Reference;
use mesh_common::value::PodValue;

use super::error::CaptureError;
use crate::sys;

/// The two maps, and which facts are free.
pub(super) struct PodEntries {
    pods: BpfHashMap<MapData, u64, Reference>,
    facts: Array<MapData, PodValue>,
    in_use: HashMap<u64, u32>,
    /// Oldest first.
    free: VecDeque<u32>,
    /// How many of the oldest nobody can be reading any more.
    quiet: usize,
}

impl PodEntries {
    /// Of maps that are empty.
    pub(super) fn new(pods: BpfHashMap<MapData, u64, Reference>, facts: Array<MapData, PodValue>) -> Self {
        let free: VecDeque<u32> = (0..POD_FACTS).collect();
        Self { pods, facts, in_use: HashMap::new(), quiet: free.len(), free }
    }

    /// What the programs know of the pod.
    pub(super) fn get(&self, netns_cookie: u64) -> Option<PodValue> {
        self.facts.get(self.in_use.get(&netns_cookie)?, 0).ok()
    }

    /// Every flag that some pod's entry has, whoever wrote it.
    pub(super) fn flags(&self) -> u32 {
        self.in_use.keys().filter_map(|cookie| self.get(*cookie)).fold(0, |flags, pod| flags | pod.flags)
    }

    /// Whoever reads the pod's entry sees all of what it was or all of this.
    pub(super) fn put(&mut self, netns_cookie: u64, value: PodValue) -> Result<(), CaptureError> {
        if self.get(netns_cookie) == Some(value) && self.pods.get(&netns_cookie, 0).is_ok() {
            return Ok(());
        }
        let number = self.take().ok_or_else(|| CaptureError::map("pod_facts", &std::io::Error::other("it is full")))?;
        let written = self.facts.set(number, value, 0).map_err(|e| CaptureError::map("pod_facts", &e));
        let reference = Reference::new(&netns_cookie, number);
        let inserted = written
            .and_then(|()| self.pods.insert(netns_cookie, reference, 0).map_err(|e| CaptureError::map("pods", &e)));
        let unused = if inserted.is_ok() { self.in_use.insert(netns_cookie, number) } else { Some(number) };
        self.free.extend(unused);
        inserted
    }

    pub(super) fn remove(&mut self, netns_cookie: u64) {
        let _ = self.pods.remove(&netns_cookie);
        self.free.extend(self.in_use.remove(&netns_cookie));
    }

    /// Facts that nobody reads. Waits for a grace period once for some thousand changes.
    fn take(&mut self) -> Option<u32> {
        if self.quiet == 0 {
            sys::wait_for_readers();
            self.quiet = self.free.len();
        }
        self.quiet = self.quiet.saturating_sub(1);
        self.free.pop_front()
    }
}
