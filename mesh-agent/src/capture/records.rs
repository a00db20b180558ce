//! The kernel's records of who opened a connection: read to name a native connection's client.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use aya::Ebpf;
use aya::maps::{HashMap as BpfHashMap, MapData};
use mesh_common::key::{FlowKey, OrigKey};
use mesh_common::value::{FLOW_NATIVE, FlowValue, OrigDst};

use super::error::CaptureError;
use super::object::take;
use super::sweep::flow_key;
use crate::model::workload::WorkloadUid;

/// Records of connections under way and of live native ones.
pub(super) struct Tables {
    pub(super) flows: BpfHashMap<MapData, FlowKey, FlowValue>,
    pub(super) orig_dsts: BpfHashMap<MapData, OrigKey, OrigDst>,
    /// Records of captured connections that had no socket at the last sweep.
    pub(super) suspects: HashSet<OrigKey>,
}

/// The records, and whose the network namespaces are.
pub(super) struct Records {
    tables: Mutex<Tables>,
    pods: RwLock<HashMap<u64, WorkloadUid>>,
}

impl Records {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, CaptureError> {
        let tables =
            Tables { flows: take(ebpf, "flows")?, orig_dsts: take(ebpf, "orig_dsts")?, suspects: HashSet::new() };
        Ok(Self { tables: Mutex::new(tables), pods: RwLock::default() })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn enter(&self, netns_cookie: u64, uid: WorkloadUid) {
        self.pods.write().unwrap_or_else(PoisonError::into_inner).insert(netns_cookie, uid);
    }

    pub(super) fn leave(&self, netns_cookie: u64) {
        self.pods.write().unwrap_or_else(PoisonError::into_inner).remove(&netns_cookie);
    }

    /// The enrolled pod with this netns.
    pub(super) fn pod(&self, netns_cookie: u64) -> Option<WorkloadUid> {
        self.pods.read().unwrap_or_else(PoisonError::into_inner).get(&netns_cookie).cloned()
    }

    /// The pod that opened the connection from `peer` to `local`, if it came by the native lane to the pod with
    /// `netns_cookie`.
    pub(super) fn client(&self, netns_cookie: u64, local: SocketAddr, peer: SocketAddr) -> Option<WorkloadUid> {
        let key = flow_key(peer, local);
        let flow = self.lock().flows.get(&key, 0).ok()?;
        let proves = flow.kind == FLOW_NATIVE && flow.server_cookie == netns_cookie;
        proves.then(|| self.pod(flow.netns_cookie)).flatten()
    }
}
