//! Test harness: nodes and pods as network namespaces and cgroups of this machine, real servers in them.
//!
//! Everything a test makes is a guard that takes it away again, also after a panic; [`leftovers`] proves it.
//! Names carry the process id, so runs side by side do not meet. Nothing here knows the agent's inside: it
//! is started as a program and judged by what it does on the wire, in its log and in its metrics.

pub mod agent;
pub mod apps;
pub mod bpf;
pub mod cgroup;
pub mod cni;
pub mod container;
pub mod datagram;
pub mod deployed;
pub mod dial;
pub mod gateway;
pub mod http;
pub mod image;
pub mod interrupt;
pub mod kube_api;
pub mod kube_ca;
pub mod kube_target;
pub mod kubectl;
pub mod leftovers;
pub mod mesh;
pub mod metrics;
pub mod netns;
pub mod objects;
pub mod pod;
pub mod process;
pub mod programs;
pub mod puppet;
pub mod raw;
pub mod run;
pub mod said;
pub mod scale;
pub mod sys;
pub mod topology;
pub mod wait;
pub mod wire;
pub mod workstation;
