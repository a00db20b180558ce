//! The guard at a pod's veth: what is no socket's does not leave a pod that asks for it, and what is a socket's does.
//!
//! Tricks are tried without the guard first: what would not arrive anyway proves nothing.

// Tests may panic: that is how they fail.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../kernel_capture/bench.rs"]
#[allow(dead_code, reason = "half of it is other suites'")]
mod bench;
mod inbound;
mod legitimate;
mod life;
#[path = "../kernel_native/pair.rs"]
#[allow(dead_code, reason = "half of it is the native suite's")]
mod pair;
mod tricks;
#[path = "../kernel_egress/world.rs"]
#[allow(dead_code, reason = "half of it is the egress suite's")]
mod world;

use anyhow::{Context, Result, ensure};
use mesh_agent::model::egress::Egress;
use mesh_agent::model::workload::{PeerMode, Workload};
use mesh_tests::pod::Pod;

use bench::*;
use pair::*;
use world::*;

/// Makes a workload ask for the guard.
fn guarded(workload: Workload) -> Workload {
    Workload {
        egress: Egress { guarded_by: Some("test/guard".into()), ..(*workload.egress).clone() }.into(),
        ..workload
    }
}

/// Has the client of the world guarded from now on.
fn guard(bench: &mut Bench, world: &World) -> Result<()> {
    bench.replace(guarded(refusing(captured_workload(&world.client, PeerMode::Permissive))))?;
    let problem = bench.kernel.guard_problem(cookie_of(bench, &world.client)?);
    ensure!(problem.is_none(), "{problem:?}");
    Ok(())
}

fn cookie_of(bench: &Bench, pod: &Pod) -> Result<u64> {
    let cookies = records(bench)?;
    let found = cookies.keys().find(|cookie| bench.kernel.pod_by_cookie(**cookie).as_deref() == Some(pod.name()));
    found.copied().with_context(|| format!("{} is not enrolled", pod.name()))
}
