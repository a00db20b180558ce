//! Many connections at once, limits, draining: nobody is lost and nothing is left behind.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::rig::{HBONE, Mesh, Node, RAW, soon};
use crate::proxy::Limits;

/// An application that sends everything back.
fn echo(app: tokio::net::TcpListener) {
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = app.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
}

async fn nothing_left(node: &Node) {
    let wait = async {
        while node.proxy.live() > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), wait).await.is_ok(), "{} live", node.proxy.live());
    for reporter in ["inbound", "outbound"] {
        node.metric_reaches(&format!("mesh_connections_live{{reporter=\"{reporter}\"}}"), 0.0).await;
    }
}

#[tokio::test]
async fn a_burst_of_2000_connections_is_served_whole_and_leaves_nothing() {
    burst(RAW, "raw").await;
}

#[tokio::test]
async fn a_burst_of_2000_connections_over_hbone_is_served_whole_and_leaves_nothing() {
    burst(HBONE, "hbone").await;
}

#[tokio::test]
async fn beyond_the_places_for_tunnels_of_their_own_connections_are_shared() {
    let limits = Limits { raw_per_peer: 2, ..Limits::default() };
    let mesh = Mesh::with_limits(limits).speaking(RAW);
    let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    let app = cart.listen();
    let to = app.local_addr().unwrap();
    echo(app);
    let mut held = Vec::new();
    for count in 1..=6_u8 {
        let mut client = web.connect(to).await;
        client.write_all(&[count]).await.unwrap();
        let mut back = [0];
        soon(client.read_exact(&mut back)).await.unwrap();
        assert_eq!(back, [count]);
        held.push(client);
    }
    for (wire, count) in [("raw", 2.0), ("hbone", 1.0)] {
        mesh.a.metric_reaches(&format!("mesh_tunnels_open{{reporter=\"outbound\",wire=\"{wire}\"}}"), count).await;
    }
    // A place that is free again is taken by the next, also at once.
    drop(held.remove(0));
    mesh.a.metric_reaches("mesh_connections_live{reporter=\"outbound\"}", 5.0).await;
    let mut again = web.connect(to).await;
    again.write_all(b"x").await.unwrap();
    soon(again.read_exact(&mut [0])).await.unwrap();
    mesh.a.metric_reaches("mesh_tunnels_open{reporter=\"outbound\",wire=\"raw\"}", 2.0).await;
    mesh.a.metric_reaches("mesh_tunnels_open{reporter=\"outbound\",wire=\"hbone\"}", 1.0).await;
}

async fn burst(wire: &'static [&'static str], name: &str) {
    const COUNT: usize = 2_000;
    // The tunnels of the burst are idle at its end: they must go too, and soon enough for a test.
    let limits = Limits { tunnel_idle: Duration::from_millis(200), ..Limits::default() };
    let mesh = Mesh::with_limits(limits).speaking(wire);
    let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    let app = cart.listen();
    let dialled = mesh.service("cart", &[(&cart, app.local_addr().unwrap())]);
    echo(app);
    let mut clients = tokio::task::JoinSet::new();
    let web = std::sync::Arc::new(web);
    for n in 0..COUNT {
        let web = std::sync::Arc::clone(&web);
        clients.spawn(async move {
            let mut client = web.connect(dialled).await;
            let text = n.to_string();
            client.write_all(text.as_bytes()).await.unwrap();
            client.shutdown().await.unwrap();
            let mut back = String::new();
            client.read_to_string(&mut back).await.unwrap();
            assert_eq!(back, text);
        });
    }
    let done = tokio::time::timeout(Duration::from_secs(60), clients.join_all()).await;
    assert_eq!(done.expect("the burst took too long").len(), COUNT);
    for node in [&mesh.a, &mesh.b] {
        let lines = node.log.wait(COUNT).await;
        let bad: Vec<_> = lines.iter().filter(|line| line["outcome"] != "ok").collect();
        assert!(bad.is_empty(), "{}: {} of {COUNT}, e.g. {:#}", node.name, bad.len(), bad[0]);
        nothing_left(node).await;
    }
    for (node, reporter) in [(&mesh.a, "outbound"), (&mesh.b, "inbound")] {
        node.metric_reaches(&format!("mesh_tunnels_open{{reporter=\"{reporter}\",wire=\"{name}\"}}"), 0.0).await;
    }
}

#[tokio::test]
async fn connections_share_a_tunnel_up_to_its_limit_and_one_handshake() {
    let limits = Limits { streams_per_tunnel: 10, ..Limits::default() };
    let mesh = Mesh::with_limits(limits).speaking(HBONE);
    let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    let app = cart.listen();
    let dialled = app.local_addr().unwrap();
    let mut held = Vec::new();
    for _ in 0..7 {
        held.push((web.connect(dialled).await, soon(app.accept()).await.unwrap()));
    }
    // Two workers, each with a pool of its own: seven connections need one tunnel, or one on each.
    let tunnels = mesh.a.metric("mesh_tunnels_open{reporter=\"outbound\",wire=\"hbone\"}");
    assert!((1.0..=2.0).contains(&tunnels), "{tunnels} tunnels for 7 connections");
    let handshakes = mesh.a.metric("mesh_handshake_duration_seconds_count{reporter=\"outbound\"}");
    assert!((handshakes - tunnels).abs() < f64::EPSILON, "{handshakes} handshakes for {tunnels} tunnels");
}

#[tokio::test]
async fn a_connection_over_the_pods_limit_is_reset_and_counted_and_the_others_live() {
    let limits = Limits { connections_per_pod: 2, ..Limits::default() };
    let mesh = Mesh::with_limits(limits);
    let web = mesh.pod(&mesh.a, "web");
    let app = tokio::net::TcpListener::bind((super::rig::fresh_ip(), 0)).await.unwrap();
    let dialled = app.local_addr().unwrap();
    let mut first = web.connect(dialled).await;
    let (mut first_server, _) = soon(app.accept()).await.unwrap();
    let second = web.connect(dialled).await;
    let _second_server = soon(app.accept()).await.unwrap();
    web.is_refused(dialled).await;
    assert_eq!(mesh.a.log.only().await["outcome"], "overloaded");
    let shed = mesh.a.metric("mesh_connections_shed_total{reason=\"connections_per_pod\"}");
    assert!((shed - 1.0).abs() < f64::EPSILON);
    first.write_all(b"x").await.unwrap();
    assert_eq!(soon(first_server.read_u8()).await.unwrap(), b'x');
    drop(second);
}

#[tokio::test]
async fn a_removed_pod_takes_no_new_connections_and_keeps_the_old() {
    let mesh = Mesh::new();
    let (mut web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    let app = cart.listen();
    let mut client = web.connect(app.local_addr().unwrap()).await;
    let (mut server, _) = soon(app.accept()).await.unwrap();
    web.handle = None;
    let gone = async { while tokio::net::TcpStream::connect(web.outbound).await.is_ok() {} };
    soon(gone).await;
    client.write_all(b"still here").await.unwrap();
    let mut data = [0; 10];
    soon(server.read_exact(&mut data)).await.unwrap();
}

#[tokio::test]
async fn a_drain_waits_for_connections_and_then_resets_them() {
    let mesh = Mesh::new();
    let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    let app = cart.listen();
    let dialled = app.local_addr().unwrap();
    let mut stays = web.connect(dialled).await;
    let _stays_server = soon(app.accept()).await.unwrap();
    let mut ends = web.connect(dialled).await;
    let (mut ends_server, _) = soon(app.accept()).await.unwrap();
    let finish = async {
        ends.write_all(b"last words").await.unwrap();
        ends.shutdown().await.unwrap();
        let mut text = String::new();
        ends_server.read_to_string(&mut text).await.unwrap();
        drop(ends_server);
        text
    };
    let (ended, text) = tokio::join!(mesh.a.proxy.shutdown(Duration::from_millis(500)), soon(finish));
    assert!(ended, "something outlived the drain");
    assert_eq!(text, "last words");
    let error = soon(stays.read(&mut [0; 1])).await.expect_err("reset at the end of the grace period");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let mut outcomes: Vec<_> =
        mesh.a.log.wait(2).await.iter().map(|line| line["outcome"].as_str().unwrap().to_owned()).collect();
    outcomes.sort();
    assert_eq!(outcomes, ["agent_drained", "ok"]);
}

#[tokio::test]
async fn a_draining_receiver_tells_its_peers_and_loses_no_byte() {
    let mesh = Mesh::new();
    let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    let app = cart.listen();
    let mut client = web.connect(app.local_addr().unwrap()).await;
    let (mut server, _) = soon(app.accept()).await.unwrap();
    let answer = vec![9; 1 << 20];
    let finish = async {
        server.write_all(&answer).await.unwrap();
        drop(server);
        let mut data = Vec::new();
        client.read_to_end(&mut data).await.unwrap();
        drop(client);
        data.len()
    };
    let (ended, length) = tokio::join!(mesh.b.proxy.shutdown(Duration::from_secs(20)), soon(finish));
    assert!(ended && length == 1 << 20, "{ended} {length}");
    assert_eq!(mesh.b.log.only().await["outcome"], "ok");
}
