//! Connections that were open before the world around them changed, and go on after it.

use std::net::TcpStream;

use anyhow::{Context, Result, ensure};
use mesh_tests::mesh::{IN_FORCE_WITHIN, Mesh, scenario};
use mesh_tests::topology::Side;
use mesh_tests::wait;

use crate::http1::{OK, talk};
use crate::world::{Ends, Lane, World};

const LANES: [Lane; 6] = [Lane::Direct, Lane::Tunnel, Lane::Native, Lane::Http, Lane::HttpNear, Lane::Detected];
const NOBODY: &str =
    "  action: DENY\n  rules:\n  - sources:\n    - {type: ServiceAccount, serviceAccount: {name: nobody}}\n";

#[test]
fn open_connections_outlive_what_does_not_concern_them() -> Result<()> {
    scenario(|mesh| {
        let world = World::new(mesh)?;
        let held = world.connections(&LANES)?;
        go_on(&held, "before anything has changed")?;
        for namespace in ["shop", "ruled"] {
            mesh.objects().put_policy(namespace, "not-nobody", NOBODY)?;
        }
        known(mesh)?;
        go_on(&held, "with another rule")?;
        for namespace in ["shop", "ruled"] {
            mesh.objects().remove(&format!("authorizationpolicy-{namespace}-not-nobody"))?;
        }
        known(mesh)?;
        go_on(&held, "without the rule")?;
        // Nobody listens there: who is sent to it is sent on.
        let other = mesh.pod_with(Side::B, "ruled/other", |pod| {
            pod.labels.insert("app".to_owned(), "far".to_owned());
        })?;
        mesh.captured(&other)?;
        go_on(&held, "with another endpoint")?;
        mesh.objects().put_pod(&mesh_tests::objects::PodObject { ready: false, ..other.object() })?;
        known(mesh)?;
        go_on(&held, "with an endpoint that is not ready")
    })
}

/// Waits until both agents have read the objects as they are.
fn known(mesh: &Mesh) -> Result<()> {
    let generation = |side: Side| -> Result<f64> {
        Ok(mesh.agent(side)?.metrics(mesh.node(side))?.sum("mesh_snapshot_generation", &[]))
    };
    let before = [generation(Side::A)?, generation(Side::B)?];
    mesh.objects().put_namespace(&format!("n{}", before[0]), false)?;
    wait::until("both agents have read the objects", IN_FORCE_WITHIN, || {
        let now = [generation(Side::A)?, generation(Side::B)?];
        wait::holds(now[0] > before[0] && now[1] > before[1], || format!("{before:?} {now:?}"))
    })
}

fn go_on(held: &[(Ends<'_>, TcpStream)], when: &str) -> Result<()> {
    for (ends, server) in held {
        let lane = ends.way.lane;
        let heard = talk(&ends.client, server, b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n", OK);
        let [asked, answered] = heard.with_context(|| format!("{lane:?}, {when}"))?;
        let whole =
            asked.starts_with("GET /held") && answered.starts_with("HTTP/1.1 200 OK") && answered.ends_with("ok");
        ensure!(whole, "{lane:?}, {when}: {asked} {answered}");
    }
    Ok(())
}
