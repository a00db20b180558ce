//! The loaded programs and `policy::authorize` say the same, for random rules and flows.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Result, ensure};
use mesh_agent::model::identity::Identity;
use mesh_agent::model::identity::PeerIdentity;
use mesh_agent::model::policy::{Action, IdentityMatch, Policy, Rule, Source, Target};
use mesh_agent::model::workload::PeerMode;
use mesh_agent::policy::{Flow, authorize};
use mesh_common::counter::Counter;
use mesh_tests::scale;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use crate::bench::*;
use crate::pair::*;

const PORTS: [u16; 3] = [7101, 7102, 7103];

fn identity_match() -> impl Strategy<Value = IdentityMatch> {
    let names = || prop::sample::select(vec!["client-1", "client-2", "server", "*"]);
    let spaces = || prop::sample::select(vec!["test", "elsewhere"]);
    let leaf = prop_oneof![
        (spaces(), names())
            .prop_map(|(space, name)| IdentityMatch::ServiceAccount { namespace: space.into(), name: name.into() }),
        spaces().prop_map(|space| IdentityMatch::Namespace(space.into())),
        names().prop_filter("a name", |name| *name != "*").prop_map(|name| {
            IdentityMatch::Spiffe(Identity::new("cluster.local", "test", name).unwrap().to_string().into())
        }),
    ];
    prop_oneof![4 => leaf.clone(), 1 => prop::collection::vec(leaf, 0..3).prop_map(IdentityMatch::Not)]
}

fn policies() -> impl Strategy<Value = Vec<Arc<Policy>>> {
    let source =
        prop::option::weighted(0.9, identity_match()).prop_map(|identity| Source { identity, ..Source::default() });
    let ports = prop::collection::vec(prop::sample::select(PORTS.to_vec()), 0..3);
    let rule = (prop::option::of(prop::collection::vec(source, 0..3)), prop::option::of(ports))
        .prop_map(|(sources, ports)| Rule { sources, ports, requests: None });
    let policy = (
        prop::sample::select(vec![Action::Allow, Action::Deny]),
        prop::collection::vec(rule, 0..3),
        prop::bool::weighted(0.05),
        prop::sample::select(vec![Target::Mesh, Target::Namespace("test".into()), Target::Namespace("x".into())]),
    )
        .prop_map(|(action, rules, broken, target)| {
            let broken = broken.then(|| "a mistake".into());
            Arc::new(Policy { namespace: "test".into(), name: "p".into(), action, target, rules, broken })
        });
    prop::collection::vec(policy, 0..4)
}

#[test]
fn the_loaded_programs_decide_as_the_agent_does() -> Result<()> {
    let cases = scale::pick(150, 3_000);
    node(|bench| {
        let server = bench.pod("server")?;
        let clients = [bench.pod("client-1")?, bench.pod("client-2")?];
        let _server = bench.enrol(captured_workload(&server, PeerMode::Strict))?;
        let mut kept = Vec::new();
        for (index, client) in clients.iter().enumerate() {
            let mut workload = captured_workload(client, PeerMode::Permissive);
            workload.identity = Identity::new("cluster.local", "test", &format!("client-{}", index + 1))?;
            kept.push(bench.enrol(workload)?);
        }
        let mut runner = TestRunner::deterministic();
        let (mut allowed, mut denied) = (0, 0);
        for _ in 0..cases {
            bench.policies = policies().new_tree(&mut runner).map_err(|e| anyhow::anyhow!("{e}"))?.current();
            let snapshot = bench.snapshot();
            bench.kernel.sync(&snapshot)?;
            for (index, client) in clients.iter().enumerate() {
                let peer = Identity::new("cluster.local", "test", &format!("client-{}", index + 1))?;
                for port in PORTS.into_iter().chain([7999]) {
                    let flow = Flow {
                        destination: server.name().into(),
                        port,
                        peer: PeerIdentity::Verified(peer.clone()),
                        source_ip: client.ip(),
                    };
                    let expected = authorize(&snapshot, flow).is_ok();
                    let before = counts(bench, [Counter::ConnectNative, Counter::ConnectDenied, Counter::LookupNative]);
                    let to = SocketAddr::new(server.ip(), port);
                    // Nobody listens: what was let through is refused by the server's kernel.
                    let connected = client.netns().run(|| std::net::TcpStream::connect(to).is_ok())?;
                    ensure!(!connected, "nobody listens on {to}");
                    let after = counts(bench, [Counter::ConnectNative, Counter::ConnectDenied, Counter::LookupNative]);
                    let change = [0, 1, 2].map(|at: usize| after[at] - before[at]);
                    let wanted = if expected { [1, 0, 1] } else { [0, 1, 0] };
                    ensure!(change == wanted, "{peer} to {port} under {:?}: {change:?}", bench.policies);
                    if expected { allowed += 1 } else { denied += 1 }
                }
            }
        }
        ensure!(allowed > cases && denied > cases, "{allowed} allowed and {denied} denied show little");
        drop(kept);
        Ok(())
    })
}
