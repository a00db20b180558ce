//! Clients that go on dialling while agents come and go.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use mesh_tests::mesh::{Mesh, Workload};
use mesh_tests::process::Process;
use mesh_tests::topology::Side;
use mesh_tests::{scale, wait};
use serde_json::Value;

use super::WITHIN;

const NOT_DENIED: &str =
    "  action: DENY\n  rules:\n  - sources:\n    - {type: ServiceAccount, serviceAccount: {name: denied}}\n";

/// Clients at work on the first node: some that are served, by the other node's pod and by a neighbour, some that a
/// policy denies, and a stranger before a strict pod.
pub struct Traffic {
    served: [Process; 2],
    refused: [Process; 3],
    open: [Process; 2],
    _servers: [Process; 3],
}

impl Traffic {
    /// Makes the pods and objects and starts the agents and the clients.
    pub fn start(mesh: &mut Mesh) -> Result<Self> {
        mesh.objects().put_namespace("plain", false)?;
        mesh.objects().put_namespace("vault", true)?;
        mesh.objects().put_peer_mode("vault", "Strict")?;
        mesh.objects().put_policy("shop", "not-denied", NOT_DENIED)?;
        let stranger = mesh.pod(Side::A, "plain/stranger")?;
        let denied = mesh.pod(Side::A, "shop/denied")?;
        let neighbour = mesh.pod(Side::A, "shop/neighbour")?;
        let safe = mesh.pod(Side::B, "vault/safe")?;
        let (client, server) = mesh.shop()?;
        for pod in [&denied, &neighbour, &safe] {
            mesh.captured(pod)?;
        }
        let echo = |pod: &Workload| pod.sample_server("echo", 7000, &[]);
        let servers = [echo(&server)?, echo(&neighbour)?, echo(&safe)?];
        let dials = scale::pick(1600_u32, 6000);
        let dial = |from: &Workload, to: &Workload, every: u32| {
            let (every, count) = (every.to_string(), (dials * 5 / every).to_string());
            from.ask_later("dial", at(to), &["--every-ms", &every, "--count", &count])
        };
        let chat = |to: &Workload, lines: u32| {
            client.ask_later("chat", at(to), &["--every-ms", "20", "--count", &lines.to_string()])
        };
        let traffic = Self {
            // What an agent carries ends within its grace period, or with it; what the kernel carries need not end.
            open: [chat(&server, 300)?, chat(&neighbour, dials / 4 + 100)?],
            served: [dial(&client, &server, 5)?, dial(&client, &neighbour, 5)?],
            refused: [dial(&denied, &server, 25)?, dial(&denied, &neighbour, 25)?, dial(&stranger, &safe, 25)?],
            _servers: servers,
        };
        for dialler in traffic.served.iter().chain(&traffic.refused) {
            let printed = || dialler.stdout().lines().count();
            wait::until("the diallers dial", WITHIN, || wait::holds(printed() > 10, || dialler.stdout()))?;
        }
        Ok(traffic)
    }

    /// Waits for the clients' end; not one connection may have been lost, nor one let through.
    pub fn unharmed(self) -> Result<()> {
        let lost = self.lost()?;
        ensure!(lost.is_empty(), "new connections failed: {lost:?}");
        Ok(())
    }

    /// Waits for the clients' end; not one connection may have been let through, nor one that stood been lost. Gives
    /// what became of the new ones that were.
    pub fn lost(self) -> Result<Vec<Value>> {
        let mut lost = Vec::new();
        for mut served in self.served {
            served.wait(WITHIN)?;
            let mut lines = served.lines()?;
            let sum = lines.pop().context("it printed nothing")?;
            ensure!(lines.len() >= 1600 && sum["ok"].as_u64().is_some(), "{sum}");
            lost.extend(lines.into_iter().filter(|line| line["outcome"] != "ok"));
        }
        for open in self.open {
            let open = open.answer(WITHIN)?;
            ensure!(open["failed"] == 0 && open["ok"].as_u64() >= Some(300), "an open connection failed: {open}");
        }
        for refused in self.refused {
            let refused = refused.answer(WITHIN)?;
            ensure!(refused["ok"] == 0, "who is denied was let through: {refused}");
        }
        Ok(lost)
    }
}

fn at(pod: &Workload) -> SocketAddr {
    SocketAddr::new(pod.ip(), 7000)
}
