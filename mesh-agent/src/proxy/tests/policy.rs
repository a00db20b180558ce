//! Nothing reaches an application without a permit, and nothing goes on without one.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::rig::{Mesh, is_reset, listener, refused, soon};
use crate::model::policy::{Action, IdentityMatch, Policy, Rule, Source, Target};
use crate::model::workload::PeerMode;

/// `name` in namespace `shop`, for all of it, about service account `account`.
fn about(name: &str, action: Action, account: &str) -> Policy {
    let who = IdentityMatch::ServiceAccount { namespace: "shop".into(), name: account.into() };
    let source = Source { identity: Some(who), ..Source::default() };
    Policy {
        namespace: "shop".into(),
        name: name.into(),
        action,
        target: Target::Namespace("shop".into()),
        rules: vec![Rule { sources: Some(vec![source]), ..Rule::default() }],
        broken: None,
    }
}

#[tokio::test]
async fn denied_peer_is_reset_before_any_upstream_dial() {
    let mesh = Mesh::new();
    let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    mesh.policy(about("only-admins", Action::Allow, "admin"));
    let app = cart.listen();
    web.is_refused(app.local_addr().unwrap()).await;
    let (a, b) = (mesh.a.log.only().await, mesh.b.log.only().await);
    assert_eq!((&a["outcome"], &b["outcome"]), (&"denied".into(), &"denied".into()));
    assert_eq!(b["rule"], "shop/only-admins");
    let denials = "mesh_denials_total{policy=\"shop/only-admins\",outcome=\"denied\"}";
    assert!((mesh.b.metric(denials) - 1.0).abs() < f64::EPSILON);
    let dialled = std::future::poll_fn(|cx| std::task::Poll::Ready(app.poll_accept(cx).is_ready())).await;
    assert!(!dialled, "the application saw a denied connection");
}

#[tokio::test]
async fn the_permitting_rule_is_named() {
    let mesh = Mesh::new();
    let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    mesh.policy(about("web-may", Action::Allow, "web"));
    let app = cart.listen();
    let client = web.connect(app.local_addr().unwrap()).await;
    drop((soon(app.accept()).await.unwrap(), client));
    assert_eq!(mesh.b.log.only().await["rule"], "shop/web-may");
}

#[tokio::test]
async fn what_an_audit_matches_is_named_and_counted_and_goes_on() {
    let mesh = Mesh::new();
    let (web, other, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.a, "intruder"), mesh.pod(&mesh.b, "cart"));
    mesh.policy(about("watch-web", Action::Audit, "web"));
    mesh.policy(Policy { action: Action::Audit, ..super::http::no_admin() });
    let (addr, _told) = super::http::app(&cart, super::http::ONE);
    for (pod, path) in [(&web, "/admin"), (&web, "/"), (&other, "/admin")] {
        let mut client = pod.connect(addr).await;
        let request = format!("GET {path} HTTP/1.1\r\nHost: cart\r\n\r\n");
        assert_eq!(super::http::ask(&mut client, &request).await.1, "one");
    }
    let lines = mesh.b.log.wait(6).await;
    let found = |workload: &str, path: Option<&str>| {
        let of = |line: &&serde_json::Value| line["source"]["workload"] == workload && line["path"].as_str() == path;
        lines.iter().find(of).unwrap_or_else(|| panic!("{workload} {path:?} in {lines:#?}"))["audited"].clone()
    };
    assert_eq!(found("web", None), serde_json::json!(["shop/watch-web"]));
    assert_eq!(found("web", Some("/admin")), serde_json::json!(["shop/watch-web", "shop/no-admin"]));
    assert_eq!(found("web", Some("/")), serde_json::json!(["shop/watch-web"]));
    assert_eq!(found("intruder", None), serde_json::Value::Null);
    assert_eq!(found("intruder", Some("/admin")), serde_json::json!(["shop/no-admin"]));
    for (policy, times) in [("shop/watch-web", 4.0), ("shop/no-admin", 2.0)] {
        mesh.b.metric_reaches(&format!("mesh_audits_total{{policy=\"{policy}\"}}"), times).await;
    }
}

#[tokio::test]
async fn a_live_connection_ends_when_its_permit_no_longer_holds() {
    let mesh = Mesh::new();
    let (web, other) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.a, "intruder"));
    let cart = mesh.pod(&mesh.b, "cart");
    let app = cart.listen();
    let dialled = app.local_addr().unwrap();
    let mut revoked = web.connect(dialled).await;
    let (mut server, _) = soon(app.accept()).await.unwrap();
    revoked.write_all(b"x").await.unwrap();
    assert_eq!(soon(server.read_u8()).await.unwrap(), b'x');
    let mut kept = other.connect(dialled).await;
    let (mut kept_server, _) = soon(app.accept()).await.unwrap();

    mesh.policy(about("no-web", Action::Deny, "web"));

    is_reset(&mut revoked).await;
    is_reset(&mut server).await;
    let line = mesh.b.log.only().await;
    assert_eq!((&line["outcome"], &line["rule"]), (&"revoked".into(), &"shop/no-web".into()));
    kept.write_all(b"y").await.unwrap();
    assert_eq!(soon(kept_server.read_u8()).await.unwrap(), b'y', "others go on");
}

#[tokio::test]
async fn a_connection_to_a_deleted_workload_ends_on_both_sides() {
    let mesh = Mesh::new();
    let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    let app = cart.listen();
    let mut client = web.connect(app.local_addr().unwrap()).await;
    let (mut server, _) = soon(app.accept()).await.unwrap();
    mesh.change(|parts| parts.workloads.remove(&cart.uid));
    is_reset(&mut client).await;
    is_reset(&mut server).await;
    // Whichever agent learns it first ends it; the other may hear of it from the first.
    let outcomes = [mesh.a.log.only().await, mesh.b.log.only().await].map(|line| line["outcome"].clone());
    assert!(outcomes.contains(&"revoked".into()), "{outcomes:?}");
}

#[tokio::test]
async fn plaintext_to_a_strict_port_is_reset_and_named() {
    let mesh = Mesh::new();
    let cart = mesh.pod(&mesh.b, "cart");
    mesh.change_workload(&cart.uid, |cart| cart.peer_mode.default = PeerMode::Strict);
    let (dialled, _handle) = mesh.plaintext(&mesh.b, &cart);
    refused(TcpStream::connect(dialled).await).await;
    let line = mesh.b.log.only().await;
    assert_eq!((&line["outcome"], &line["security"]), (&"plaintext_refused".into(), &"none".into()));
    assert!(line["source"].get("identity").is_none(), "plaintext proves nothing: {line:#}");
}

#[tokio::test]
async fn plaintext_is_unknown_to_a_rule_by_identity_whatever_its_address() {
    let mesh = Mesh::new();
    let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    mesh.policy(about("web-may", Action::Allow, "web"));
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(web.ip, 0)).unwrap();
    let (dialled, _handle) = mesh.plaintext(&mesh.b, &cart);
    refused(soon(socket.connect(dialled)).await).await;
    assert_eq!(mesh.b.log.only().await["outcome"], "denied");
}

#[tokio::test]
async fn permitted_plaintext_is_delivered_with_the_clients_address() {
    let mesh = Mesh::new();
    let cart = mesh.pod(&mesh.b, "cart");
    // The kernel half steers a connection to the agent without changing its destination. Here the agent's
    // listener and the application's share address and port; the kernel gives each connection to one of the two,
    // so some pass the agent several times before they get through. None may get lost or lose the address.
    let shared = SocketAddr::new(cart.ip, 0);
    let agents = listener(shared, true);
    let shared = agents.local_addr().unwrap();
    let app = tokio::net::TcpListener::from_std(listener(shared, true)).unwrap();
    let _handle = mesh.steer(&mesh.b, &cart, agents);
    for _ in 0..10 {
        let client = TcpStream::connect(shared).await.unwrap();
        let (_server, seen) = soon(app.accept()).await.unwrap();
        assert_eq!(seen.ip(), client.local_addr().unwrap().ip());
    }
    let lines = mesh.b.log.wait(1).await;
    assert!(lines.iter().all(|line| line["lane"] == "plaintext"), "{lines:#?}");
}
