//! `mesh-agent explain` says what a real connection then meets: verdict, lane and rule, on both nodes.

// Tests may panic: that is how they fail.
#![allow(clippy::panic, clippy::indexing_slicing)]

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::mesh::{IN_FORCE_WITHIN, Mesh, Workload, scenario};
use mesh_tests::pod::is_refused;
use mesh_tests::topology::Side;
use mesh_tests::wait;
use serde_json::Value;

const WITHIN: Duration = Duration::from_secs(60);
/// Who guards what: pods with the label take their client on one port and nobody else.
const GUARD: &str = "  targetRefs: [{kind: Pod, selector: {matchLabels: {guarded: 'yes'}}}]
  rules:
  - sources: [{type: ServiceAccount, serviceAccount: {name: client}}]
    networkAttributes: {ports: [7000]}
";

/// What is expected of one connection.
struct Row<'a> {
    from: &'a Workload,
    /// As explain is asked.
    to: &'a str,
    port: u16,
    /// As the client dials it.
    dial: SocketAddr,
    lane: &'a str,
    outcome: &'a str,
    rule: Option<&'a str>,
}

impl Row<'_> {
    /// Asks both agents, dials, and compares.
    fn check(&self, mesh: &Mesh) -> Result<()> {
        let allowed = self.outcome == "ok";
        for side in Side::BOTH {
            let explanation = self.explained(mesh, side)?;
            let path = &explanation["paths"][0];
            ensure!(explanation["verdict"] == if allowed { "allowed" } else { "refused" }, "{explanation:#}");
            ensure!(path["lane"] == self.lane && path["outcome"] == self.outcome, "{explanation:#}");
            ensure!(self.rule.is_none_or(|rule| path["rule"] == rule), "{explanation:#}");
            let own = side == self.from.side() && self.lane != "bypass";
            ensure!(!own || explanation["kernel"]["asked"].as_u64() > Some(0), "{explanation:#}");
        }
        wait::until(&format!("{} to {} is as explained", self.from.name(), self.to), IN_FORCE_WITHIN, || {
            let found = self.from.ask("probe", self.dial, &["--say", "x"], WITHIN)?;
            let served = found.get("connect").is_some_and(|connect| connect == "ok") && !is_refused(&found);
            wait::holds(served == allowed && is_refused(&found) != allowed, || found.to_string())
        })
    }

    /// What one agent says, once its kernel's maps say the same.
    fn explained(&self, mesh: &Mesh, side: Side) -> Result<Value> {
        let (from, port) = (self.from.object().display_name(), self.port.to_string());
        wait::until("the kernel keeps up with the snapshot", IN_FORCE_WITHIN, || {
            let (code, explanation) = mesh.agent(side)?.explain(&[&from, self.to, &port])?;
            ensure!(code == i32::from(self.outcome != "ok"), "exit code {code}: {explanation:#}");
            wait::holds(explanation["kernel"]["behind"] == Value::Array(Vec::new()), || format!("{explanation:#}"))?;
            Ok(explanation)
        })
    }
}

#[test]
fn what_is_explained_is_what_happens() -> Result<()> {
    scenario(|mesh| {
        // A service that has none, on purpose.
        mesh.expect_complaint("lonely");
        for (namespace, enabled) in [("shop", true), ("vault", true), ("plain", false)] {
            mesh.objects().put_namespace(namespace, enabled)?;
        }
        mesh.objects().put_peer_mode("vault", "Strict")?;
        mesh.objects().put_policy("shop", "guard", GUARD)?;
        let client = mesh.pod_with(Side::A, "shop/client", |pod| {
            pod.annotations.insert("mesh-agent.io/exclude-outbound-ports".to_owned(), "7002".to_owned());
        })?;
        let guarded = |pod: &mut mesh_tests::objects::PodObject| {
            pod.labels.insert("guarded".to_owned(), "yes".to_owned());
        };
        let near = mesh.pod_with(Side::A, "shop/near", guarded)?;
        let far = mesh.pod_with(Side::B, "shop/far", guarded)?;
        let open = mesh.pod(Side::B, "shop/open")?;
        let safe = mesh.pod(Side::B, "vault/safe")?;
        let stranger = mesh.pod(Side::A, "plain/stranger")?;
        mesh.start()?;
        for pod in [&client, &near, &far, &open, &safe] {
            mesh.captured(pod)?;
        }
        let service = mesh.service("shop/far", 80, 7000)?[0];
        let lonely = mesh.service("shop/lonely", 80, 7000)?[0];
        let mut servers = Vec::new();
        for pod in [&near, &far, &open, &safe, &stranger] {
            for port in [7000, 7001, 7002] {
                servers.push(pod.sample_server("echo", port, &[])?);
            }
        }
        let guard = Some("shop/guard");
        let row = |from, to, port, pod: &Workload, lane, outcome, rule| Row {
            from,
            to,
            port,
            dial: SocketAddr::new(pod.ip(), port),
            lane,
            outcome,
            rule,
        };
        for row in [
            row(&client, "shop/near", 7000, &near, "native", "ok", guard),
            row(&client, "shop/near", 7001, &near, "native", "denied", guard),
            row(&client, "shop/far", 7000, &far, "tunnel", "ok", guard),
            row(&client, "shop/far", 7001, &far, "tunnel", "denied", guard),
            row(&near, "shop/far", 7000, &far, "tunnel", "denied", guard),
            row(&client, "shop/open", 7000, &open, "tunnel", "ok", None),
            row(&client, "plain/stranger", 7000, &stranger, "bypass", "ok", None),
            row(&client, "shop/open", 7002, &open, "bypass", "ok", None),
            row(&client, "vault/safe", 7002, &safe, "bypass", "plaintext_refused", Some("vault/peers")),
            row(&stranger, "vault/safe", 7000, &safe, "bypass", "plaintext_refused", Some("vault/peers")),
            row(&stranger, "shop/near", 7000, &near, "bypass", "denied", guard),
            row(&stranger, "shop/open", 7000, &open, "bypass", "ok", None),
            Row { dial: service, port: 80, ..row(&client, "shop/far", 80, &far, "tunnel", "ok", guard) },
            Row { dial: lonely, ..row(&client, "shop/lonely", 80, &far, "none", "no_endpoints", None) },
        ] {
            row.check(mesh)?;
        }
        Ok(())
    })
}

#[test]
fn an_unclear_question_is_told_from_a_refusal() -> Result<()> {
    scenario(|mesh| {
        mesh.shop()?;
        let agent = mesh.agent(Side::A)?;
        for question in [&["shop/clinet", "shop/server", "80"][..], &["shop/client", "shop/server"], &["shop/client"]] {
            let (code, said) = agent.explain(question)?;
            ensure!(code == 2 && said.is_null(), "{question:?}: {code} {said}");
        }
        let (code, said) = agent.explain(&["shop/client", "shop/server", "80"])?;
        ensure!(code == 0 && said["paths"][0]["pod"] == "shop/server", "{code} {said:#}");
        // Nobody to ask.
        let options = mesh.take_agent(Side::A)?.stop()?;
        let mut command = std::process::Command::new(mesh_tests::programs::agent()?);
        command.args(["explain", "shop/client", "shop/server", "80", "--state-dir"]).arg(&options.objects);
        let output = command.output()?;
        ensure!(output.status.code() == Some(2) && !output.stderr.is_empty(), "{output:?}");
        Ok(())
    })
}
