//! Loads, attaches and pins the eBPF programs and enrols pods: the only user of aya.
//!
//! Place in the flow: before it. What this room builds makes a pod's `connect()` arrive at a listener of
//! `proxy`, and a delivery of `proxy` arrive at the application. It never decides on a connection itself and
//! never reads Kubernetes objects: it makes the kernel's maps say what a [`crate::snapshot::Snapshot`] says.

pub mod capabilities;
mod digest;
mod egress;
mod error;
mod events;
mod force;
mod guards;
mod handover;
mod hooks;
mod inherited;
mod inspect;
mod kernel;
mod kubelet;
mod linger;
mod links;
mod locate;
mod mesh_ips;
mod netlink;
mod netns;
mod object;
mod owner;
mod plain;
mod pod;
mod pod_entries;
pub mod probe;
mod records;
mod routes;
mod rules;
mod services;
mod sockets;
mod sweep;
mod sync;
mod uninstall;
mod veth;
mod written;

pub use error::{CaptureError, NotCaptured};
pub use events::{Closed, EventReader, KernelEvent, Refusal};
pub use kernel::Kernel;
pub use kubelet::Kubelet;
pub use locate::is_below;
pub use object::{Half, KernelConfig};
pub use owner::Owner;
pub use plain::Unproven;
pub use pod::{EnrolledPod, PodSockets};
pub use sockets::DirectConnection;
pub use sweep::{LiveNative, Sweep, Traffic};
pub use uninstall::uninstall;
