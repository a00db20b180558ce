//! Pods in the order of a real node: the object first, then the sandbox and ADD, then containers and `status.podIPs`.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};

use super::{Mesh, Workload, object};
use crate::cni::Runtime;
use crate::topology::Side;

impl Mesh {
    /// The sandbox of a pod `namespace/name`, in a cgroup named as the kubelet would name it. Its object is not put
    /// anywhere yet, and has no address; see [`Self::put`].
    ///
    /// # Errors
    /// What the system says.
    pub fn sandbox(&mut self, side: Side, name: &str, uid: &str) -> Result<Arc<Workload>> {
        self.sandbox_in_place_of(side, name, uid, None)
    }

    /// As [`Self::sandbox`], with the addresses of a pod that was [removed](Self::remove_sandbox).
    ///
    /// # Errors
    /// What the system says.
    pub fn sandbox_in_place_of(
        &mut self,
        side: Side,
        name: &str,
        uid: &str,
        gone: Option<&Workload>,
    ) -> Result<Arc<Workload>> {
        let (namespace, short) = name.split_once('/').with_context(|| format!("`{name}` is not namespace/name"))?;
        let node = self.topology.node(side);
        let name = format!("pod{uid}");
        let pod = match gone {
            Some(gone) => node.pod_in_place_of(&name, gone)?,
            None => node.pod(&name)?,
        };
        let workload = Arc::new(Workload { pod, object: object(side, (namespace, short), uid) });
        self.pods.push(Arc::clone(&workload));
        Ok(workload)
    }

    /// Takes the cable of a pod away and forgets it: its network is gone once the test has dropped it too.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove_sandbox(&mut self, workload: &Arc<Workload>) -> Result<()> {
        self.pods.retain(|pod| !Arc::ptr_eq(pod, workload));
        self.topology.node(workload.side()).disconnect(workload)
    }

    /// Puts a pod's object: without addresses, as before its sandbox, or with them, as the kubelet does later.
    ///
    /// # Errors
    /// What the API server says.
    pub fn put(&self, workload: &Workload, with_addresses: bool) -> Result<()> {
        let mut object = workload.object();
        object.ips = if with_addresses { workload.ips().to_vec() } else { Vec::new() };
        object.ready = with_addresses;
        self.objects.put_pod(&object)
    }

    /// The container runtime of one node.
    #[must_use]
    pub fn runtime(&self, side: Side) -> Runtime<'_> {
        Runtime::of(self.topology.node(side))
    }

    /// The pod `namespace/name` that was added before.
    ///
    /// # Errors
    /// When there is none.
    pub fn workload(&self, name: &str) -> Result<Arc<Workload>> {
        let found = self.pods.iter().find(|pod| pod.object.display_name() == name);
        found.cloned().with_context(|| format!("there is no pod {name}"))
    }

    /// The kubeconfig of [`Self::use_api_server`].
    ///
    /// # Errors
    /// What the system says.
    pub fn kubeconfig(&self) -> Result<PathBuf> {
        Ok(self.topology.run().subfolder("api-server")?.join("kubeconfig"))
    }
}
