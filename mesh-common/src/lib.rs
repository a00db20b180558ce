//! The contract between mesh-agent's kernel half and its user half.
//!
//! Both sides compile this crate: map keys and values ([`key`], [`value`]), capacities ([`limits`]), exit
//! counters ([`counter`]) and the decisions themselves ([`decide`], [`egress`], [`guard`] on what [`frame`] reads),
//! which are pure so that the kernel program and the host's tests run the same lines; [`layout`] names what two agents
//! must share to follow one another. Nothing here knows aya-ebpf, tokio or Kubernetes.
#![cfg_attr(not(test), no_std)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing))]

pub mod counter;
pub mod decide;
pub mod egress;
pub mod frame;
pub mod guard;
pub mod key;
pub mod layout;
pub mod limits;
pub mod tag;
pub mod value;
