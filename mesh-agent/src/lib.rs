//! mesh-agent: the user half. One room per concern; ARCHITECTURE.md has the map and the forbidden edges.

// Tests may panic: that is how they fail.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing))]

pub mod admin;
pub mod agent;
pub mod balance;
pub mod capture;
pub mod cli;
pub mod cni;
pub mod config;
pub mod control;
pub mod drain;
pub mod explain;
#[cfg(test)]
mod fuzz_tests;
pub mod identity;
pub mod model;
pub mod policy;
pub mod proxy;
pub mod route;
pub mod snapshot;
pub mod sys;
pub mod telemetry;
pub mod tls;
