//! The kernel's `mesh_ips`: the addresses of captured pods.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use mesh_common::key::Ip;
use mesh_common::value::MeshIpValue;

use super::error::CaptureError;
use super::kernel::Maps;
use super::sync::key_ip;
use super::written::Last;
use crate::model::workload::WorkloadUid;
use crate::snapshot::Snapshot;

/// Makes `mesh_ips` say which addresses are captured pods', and by which cookie those of this node are found.
///
/// # Errors
/// The first entry that cannot be written.
pub(super) fn sync(
    maps: &mut Maps,
    snapshot: &Snapshot,
    cookies: &HashMap<WorkloadUid, u64>,
    last: Option<&Last>,
) -> Result<(), CaptureError> {
    let entry = |ip: IpAddr| {
        let workload = snapshot.workload_by_ip(ip).filter(|workload| workload.captured.is_some())?;
        let here = (*workload.node == *snapshot.node()).then(|| cookies.get(&workload.uid)).flatten();
        Some(MeshIpValue { netns_cookie: here.copied().unwrap_or(0) })
    };
    let Some(last) = last else {
        let known: HashSet<Ip> = snapshot.addresses().keys().map(|ip| key_ip(*ip)).collect();
        let gone: Vec<Ip> = maps.mirror.mesh_ips.keys().filter(|ip| !known.contains(*ip)).copied().collect();
        gone.into_iter().try_for_each(|ip| put(maps, ip, None))?;
        return snapshot.addresses().keys().try_for_each(|ip| put(maps, key_ip(*ip), entry(*ip)));
    };
    let changed = last.addresses(snapshot, cookies);
    changed.into_iter().try_for_each(|ip| put(maps, key_ip(ip), entry(ip)))
}

fn put(maps: &mut Maps, ip: Ip, wanted: Option<MeshIpValue>) -> Result<(), CaptureError> {
    let mirror = &mut maps.mirror.mesh_ips;
    match wanted {
        Some(value) if mirror.get(&ip) != Some(&value) => {
            maps.mesh_ips.insert(ip, value, 0).map_err(|e| CaptureError::map("mesh_ips", &e))?;
            mirror.insert(ip, value);
        }
        None if mirror.remove(&ip).is_some() => {
            let _ = maps.mesh_ips.remove(&ip);
        }
        Some(_) | None => {}
    }
    Ok(())
}
