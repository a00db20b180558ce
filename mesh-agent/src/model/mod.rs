//! The vocabulary every room shares: plain values and nothing else.
//!
//! Nothing here does IO, awaits, locks, or knows a serialisation format. A value of this room means
//! the same in the control plane that builds it, the policy that judges it and the log that prints it.

pub mod addr;
pub mod egress;
pub mod identity;
pub mod local;
pub mod outcome;
pub mod policy;
pub mod problem;
pub mod rare;
pub mod route;
pub mod selector;
pub mod service;
pub mod traffic;
pub mod workload;
