//! The node's side of a pod's devices: found from inside the pod, because only its own kernel names say which they are.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::netlink::ask;
use super::netns::Netns;
use crate::sys;

/// Where network namespaces are named that a pod's device may lead to, besides the agent's own.
const NAMED: &str = "/run/netns";
const OF_INIT: &str = "/proc/1/ns/net";

/// A device inside a pod by which packets leave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Way {
    /// Its index in the pod.
    pub(super) index: u32,
    /// The index of the other side.
    pub(super) peer: u32,
    /// What the pod's netns calls the other side's.
    nsid: i32,
}

/// The other side of a [`Way`].
pub(super) struct Outside {
    pub(super) netns: Arc<File>,
    /// Its name there.
    pub(super) device: String,
    /// What its netns calls the pod's.
    pub(super) pod_nsid: u32,
}

/// Every device that leads out of the pod.
///
/// # Errors
/// What leads out and is no veth: a guard has no place there.
pub(super) fn ways(netns: &Netns) -> io::Result<Vec<Way>> {
    let links = netns.within(links)?;
    let mut ways = Vec::new();
    for link in links.iter().filter(|link| !link.header.flags.contains(LinkFlags::Loopback)) {
        let (name, kind, peer, nsid) = describe(link);
        match (kind, nsid, peer) {
            (Some(InfoKind::Veth), Some(nsid), Some(peer)) => ways.push(Way { index: link.header.index, peer, nsid }),
            // Both ends are in the pod, or it is a tunnel's: what it carries leaves by another device.
            (Some(_), None, _) => {}
            (kind, _, _) => {
                let kind = kind.map_or_else(|| "no virtual device".to_owned(), |kind| format!("{kind:?}"));
                return Err(io::Error::other(format!("device {name} of the pod is no veth ({kind})")));
            }
        }
    }
    if ways.is_empty() { Err(io::Error::other("the pod has no veth")) } else { Ok(ways) }
}

/// Finds the other side of `way`.
///
/// # Errors
/// When its netns is not among those that this process can find.
pub(super) fn outside(netns: &Netns, way: &Way) -> io::Result<Outside> {
    let found = candidates().into_iter().find_map(|path| {
        let file = File::open(path).ok()?;
        (netns.within(|| nsid_of(&file)).ok()? == Some(way.nsid)).then_some(file)
    });
    let found = found.ok_or_else(|| {
        let words = "the node's side of the pod's veth is in a network namespace that is neither the agent's, nor";
        io::Error::other(format!("{words} {OF_INIT}, nor named in {NAMED}"))
    })?;
    let there = sys::within_netns(found.as_fd(), links)??;
    let link = there.iter().find(|link| link.header.index == way.peer).map(describe);
    match link {
        Some((name, Some(InfoKind::Veth), Some(back), Some(nsid))) if back == way.index => {
            let pod_nsid = u32::try_from(nsid).map_err(|_| io::Error::other("the pod's netns has no number there"))?;
            Ok(Outside { netns: Arc::new(found), device: name, pod_nsid })
        }
        _ => Err(io::Error::other("the node's side of the pod's veth is not where the kernel says")),
    }
}

fn candidates() -> Vec<PathBuf> {
    let named = fs::read_dir(NAMED).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    [Path::new("/proc/self/ns/net"), Path::new(OF_INIT)].map(Path::to_owned).into_iter().chain(named).collect()
}

/// What the calling thread's netns calls that of `file`; `None` when it has no name for it.
fn nsid_of(file: &File) -> io::Result<Option<i32>> {
    let mut message = NsidMessage::default();
    message.attributes = vec![NsidAttribute::Fd(file.as_raw_fd().unsigned_abs())];
    let answers = ask(NETLINK_ROUTE, RouteNetlinkMessage::GetNsId(message), NLM_F_ACK)?;
    let ids = answers.iter().flat_map(|answer| match answer {
        RouteNetlinkMessage::NewNsId(message) => message.attributes.as_slice(),
        _ => &[],
    });
    Ok(ids.clone().find_map(|attribute| match attribute {
        NsidAttribute::Id(id) if *id >= 0 => Some(*id),
        _ => None,
    }))
}

/// Every device of the calling thread's netns.
fn links() -> io::Result<Vec<LinkMessage>> {
    let answers = ask(NETLINK_ROUTE, RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
    let links = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    });
    Ok(links.collect())
}

/// Name, kind, index of the device that it leads to, and what its netns calls that one's when it is another.
fn describe(link: &LinkMessage) -> (String, Option<InfoKind>, Option<u32>, Option<i32>) {
    let (mut name, mut kind, mut peer, mut nsid) = (String::new(), None, None, None);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(found) => name.clone_from(found),
            LinkAttribute::Link(index) => peer = Some(*index),
            LinkAttribute::LinkNetNsId(id) => nsid = Some(*id),
            LinkAttribute::LinkInfo(infos) => {
                kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.clone()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    (name, kind, peer, nsid)
}
