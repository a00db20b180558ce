//! The mesh cases of Gateway API, replayed: its base objects as pods and Services of two nodes, its manifests through
//! the directory source, its requests from inside the pods.
//!
//! One table says what must come of each request ([`table`]); manifests are ours (`tests/gateway`) and, where they are
//! on this machine, upstream's ([`manifests`]). Every test runs in each [`world::Placement`], and every request by both
//! address families. The agents are black boxes here as everywhere in the harness.

pub mod answer;
pub mod base;
pub mod case;
pub mod manifests;
pub mod report;
pub mod run;
pub mod table;
pub mod world;
