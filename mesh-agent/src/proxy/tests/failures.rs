//! What cannot be served is refused at once, with the right word, and never half done.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::rig::{Mesh, fresh_ip, refused, soon, workload};
use crate::identity::testing::identity;
use crate::model::workload::Captured;

#[tokio::test]
async fn an_application_that_refuses_is_a_reset_and_named_on_both_sides() {
    let mesh = Mesh::new();
    let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    let nobody = SocketAddr::new(cart.ip, 9);
    // The first connection opens the tunnel; the second shows what a refusal alone takes.
    web.is_refused(nobody).await;
    let started = Instant::now();
    web.is_refused(nobody).await;
    let took = started.elapsed();
    for node in [&mesh.a, &mesh.b] {
        let lines = node.log.wait(2).await;
        assert!(lines.iter().all(|line| line["outcome"] == "connect_refused"), "{}: {lines:#?}", node.name);
    }
    assert!(took.as_millis() < 500, "a refusal took {took:?}");
}

#[tokio::test]
async fn a_connection_without_a_record_in_the_kernel_is_refused() {
    let mesh = Mesh::new();
    let web = mesh.pod(&mesh.a, "web");
    refused(TcpStream::connect(web.outbound).await).await;
    assert_eq!(mesh.a.log.only().await["outcome"], "no_orig_dst");
}

#[tokio::test]
async fn a_peer_that_goes_without_a_word_is_counted_and_no_failed_session() {
    let mesh = Mesh::new();
    let cart = mesh.pod(&mesh.b, "cart");
    drop(TcpStream::connect(cart.tunnel()).await.unwrap());
    mesh.b.metric_reaches("mesh_tunnel_requests_refused_total{reason=\"nothing_said\"}", 1.0).await;
    let mut other = TcpStream::connect(cart.tunnel()).await.unwrap();
    other.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(mesh.b.log.only().await["outcome"], "tls_failed", "of the one that said something");
}

#[tokio::test]
async fn a_service_without_endpoints_is_refused() {
    let mesh = Mesh::new();
    let web = mesh.pod(&mesh.a, "web");
    let dialled = mesh.service("empty", &[]);
    web.is_refused(dialled).await;
    let line = mesh.a.log.only().await;
    assert_eq!((&line["outcome"], &line["destination"]["service"]), (&"no_endpoints".into(), &"shop/empty".into()));
}

#[tokio::test]
async fn a_captured_pod_is_never_dialled_in_plaintext() {
    let mesh = Mesh::new();
    let web = mesh.pod(&mesh.a, "web");
    let ip = fresh_ip();
    // Its application answers, its agent does not.
    let app = tokio::net::TcpListener::bind((ip, 0)).await.unwrap();
    let mut cart = workload("cart", "uid-gone".into(), "b", ip);
    cart.captured = Some(Captured { generation: 1, wire: ["h2".into()].into() });
    mesh.change(|parts| parts.workloads.put(Arc::new(cart)));
    web.is_refused(app.local_addr().unwrap()).await;
    assert_eq!(mesh.a.log.only().await["outcome"], "connect_refused");
    let accepted = std::future::poll_fn(|cx| std::task::Poll::Ready(app.poll_accept(cx).is_ready())).await;
    assert!(!accepted, "the application was dialled without a tunnel");
}

#[tokio::test]
async fn a_peer_that_proves_to_be_somebody_else_gets_nothing() {
    let mesh = Mesh::new();
    let (web, intruder) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "intruder"));
    let app = intruder.listen();
    // The registry of node A says that `cart` is there; the agent there proves `intruder`.
    mesh.change(|parts| {
        let mut cart = workload("cart", "uid-cart".into(), "b", intruder.ip);
        cart.captured = Some(Captured { generation: 1, wire: ["h2".into()].into() });
        parts.workloads.put(Arc::new(cart));
    });
    web.is_refused(app.local_addr().unwrap()).await;
    let line = mesh.a.log.only().await;
    assert_eq!(line["outcome"], "identity_mismatch", "{line:#}");
    assert!(line["reason"].as_str().unwrap().contains("/sa/intruder"), "{line:#}");
}

#[tokio::test]
async fn without_a_certificate_of_its_own_a_pod_gets_no_tunnel() {
    let mesh = Mesh::new();
    let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    mesh.change_workload(&web.uid, |web| web.identity = identity("shop", "not-issued"));
    web.is_refused(SocketAddr::new(cart.ip, 80)).await;
    assert_eq!(mesh.a.log.only().await["outcome"], "no_certificate");
}

#[tokio::test]
async fn another_endpoint_is_tried_when_the_first_refuses() {
    let mesh = Mesh::new();
    let (web, dead, alive) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"), mesh.pod(&mesh.b, "cart"));
    let app = alive.listen();
    let dialled = mesh.service("cart", &[(&dead, SocketAddr::new(dead.ip, 9)), (&alive, app.local_addr().unwrap())]);
    // Drawn at random: 32 draws miss the dead one once in four billion runs.
    for count in 1..=32 {
        let client = web.connect(dialled).await;
        drop(soon(app.accept()).await.unwrap());
        drop(client);
        mesh.a.log.wait(count).await;
    }
    let lines = mesh.a.log.wait(32).await;
    assert!(lines.iter().all(|line| line["outcome"] == "ok"), "{lines:#?}");
    let refusals = mesh.b.log.lines().iter().filter(|line| line["outcome"] == "connect_refused").count();
    assert!(refusals > 0, "the dead endpoint was never drawn: the test shows nothing");
}

#[tokio::test]
async fn an_endpoint_that_the_application_chose_itself_is_not_replaced() {
    let mesh = Mesh::new();
    let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    web.is_refused(SocketAddr::new(cart.ip, 9)).await;
    assert_eq!(mesh.b.log.wait(1).await.len(), 1);
}

#[tokio::test]
async fn what_is_not_a_handshake_on_the_tunnel_port_is_counted() {
    use tokio::io::AsyncWriteExt;
    let mesh = Mesh::new();
    let cart = mesh.pod(&mesh.b, "cart");
    let mut stranger = TcpStream::connect(cart.tunnel()).await.unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\nHost: cart\r\n\r\n").await.unwrap();
    let line = mesh.b.log.only().await;
    assert_eq!((&line["outcome"], &line["reporter"]), (&"tls_failed".into(), &"inbound".into()));
    assert!(line["source"].get("identity").is_none());
}
