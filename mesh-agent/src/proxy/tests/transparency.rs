//! Applications must not notice: every event of one side arrives at the other as what it is.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::rig::{HBONE, Mesh, Pod, RAW, soon, workload};
use crate::proxy::tcp::reset;

/// Client and server of one proxied connection, and the agents in between.
struct Pair {
    mesh: Mesh,
    _pods: [Pod; 2],
    client: TcpStream,
    server: TcpStream,
    seen_client: SocketAddr,
    client_pod_ip: std::net::IpAddr,
}

async fn connected(wire: &'static [&'static str]) -> Pair {
    let mesh = Mesh::new().speaking(wire);
    let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    let app = cart.listen();
    let dialled = mesh.service("cart", &[(&cart, app.local_addr().unwrap())]);
    let client = web.connect(dialled).await;
    let (server, seen_client) = soon(app.accept()).await.unwrap();
    let client_pod_ip = web.ip;
    // Both agents have it: what happens now happens to a connection that stands.
    mesh.a.metric_reaches("mesh_connect_duration_seconds_count{reporter=\"outbound\"}", 1.0).await;
    Pair { mesh, _pods: [web, cart], client, server, seen_client, client_pod_ip }
}

impl Pair {
    /// Ends in order: both agents must say so, with the same bytes.
    async fn ends_ok(self, sent: u64, received: u64) {
        drop((self.client, self.server));
        for node in [&self.mesh.a, &self.mesh.b] {
            let line = node.log.only().await;
            assert_eq!(line["outcome"], "ok", "{}: {line:#}", node.name);
            assert_eq!((line["bytes_sent"].as_u64(), line["bytes_received"].as_u64()), (Some(sent), Some(received)));
        }
    }

    async fn ends_with(&self, outcome: &str) {
        for node in [&self.mesh.a, &self.mesh.b] {
            let line = node.log.only().await;
            assert_eq!(line["outcome"], outcome, "{}: {line:#}", node.name);
        }
    }
}

async fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut data = Vec::new();
    soon(stream.read_to_end(&mut data)).await.unwrap();
    data
}

async fn is_reset(stream: &mut TcpStream) {
    let mut data = [0; 1024];
    loop {
        match soon(stream.read(&mut data)).await {
            Ok(0) => panic!("a clean end where a reset was due"),
            Ok(_) => {}
            Err(error) => return assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
        }
    }
}

#[tokio::test]
async fn bytes_arrive_both_ways_and_the_records_name_everybody() {
    for wire in [RAW, HBONE] {
        let mut pair = connected(wire).await;
        assert_eq!(pair.seen_client.ip(), pair.client_pod_ip, "the application sees the client's address");
        let mut data = [0; 5];
        pair.client.write_all(b"hello").await.unwrap();
        soon(pair.server.read_exact(&mut data)).await.unwrap();
        pair.server.write_all(b"there!").await.unwrap();
        let mut answer = [0; 6];
        soon(pair.client.read_exact(&mut answer)).await.unwrap();
        assert_eq!((&data, &answer), (b"hello", b"there!"));

        let (a, b) = (&pair.mesh.a, &pair.mesh.b);
        let labels = concat!(
            r#"source_workload="web",source_namespace="shop",destination_service="shop/cart","#,
            r#"destination_workload="cart",destination_namespace="shop",lane="tunnel",security="mutual_tls"}"#
        );
        a.metric_reaches(&format!("mesh_sent_bytes_total{{reporter=\"outbound\",{labels}"), 5.0).await;
        a.metric_reaches(&format!("mesh_received_bytes_total{{reporter=\"outbound\",{labels}"), 6.0).await;
        let inbound = labels.replace("\"shop/cart\"", "\"unknown\"");
        b.metric_reaches(&format!("mesh_sent_bytes_total{{reporter=\"inbound\",{inbound}"), 5.0).await;

        let (a_log, b_log) = (a.log.clone(), b.log.clone());
        pair.ends_ok(5, 6).await;
        let (a, b) = (a_log.only().await, b_log.only().await);
        assert_eq!(a["source"]["identity"], "spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!(a["destination"]["identity"], "spiffe://cluster.local/ns/shop/sa/cart");
        assert_eq!(b["source"]["identity"], "spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!((&a["reporter"], &b["reporter"]), (&"outbound".into(), &"inbound".into()));
        assert!(a["connect_ms"].as_f64().unwrap() > 0.0);
    }
}

#[tokio::test]
async fn the_server_may_speak_first() {
    for wire in [RAW, HBONE] {
        let mut pair = connected(wire).await;
        pair.server.write_all(b"220 ready\r\n").await.unwrap();
        let mut greeting = [0; 11];
        soon(pair.client.read_exact(&mut greeting)).await.unwrap();
        assert_eq!(&greeting, b"220 ready\r\n");
        pair.ends_ok(0, 11).await;
    }
}

#[tokio::test]
async fn a_half_closed_client_still_reads_a_long_answer() {
    for wire in [RAW, HBONE] {
        let mut pair = connected(wire).await;
        pair.client.write_all(b"question").await.unwrap();
        pair.client.shutdown().await.unwrap();
        assert_eq!(read_all(&mut pair.server).await, b"question");
        let answer = vec![7; 3_000_000];
        let ((), read) = tokio::join!(
            async {
                pair.server.write_all(&answer).await.unwrap();
                pair.server.shutdown().await.unwrap();
            },
            read_all(&mut pair.client)
        );
        assert!(read == answer, "{} bytes", read.len());
        pair.ends_ok(8, 3_000_000).await;
    }
}

#[tokio::test]
async fn a_half_closed_server_still_reads() {
    for wire in [RAW, HBONE] {
        let mut pair = connected(wire).await;
        pair.server.write_all(b"bye").await.unwrap();
        pair.server.shutdown().await.unwrap();
        assert_eq!(read_all(&mut pair.client).await, b"bye");
        pair.client.write_all(b"one more thing").await.unwrap();
        pair.client.shutdown().await.unwrap();
        assert_eq!(read_all(&mut pair.server).await, b"one more thing");
        pair.ends_ok(14, 3).await;
    }
}

#[tokio::test]
async fn an_empty_connection_is_an_ordinary_one() {
    for wire in [RAW, HBONE] {
        let pair = connected(wire).await;
        pair.ends_ok(0, 0).await;
    }
}

#[tokio::test]
async fn a_reset_by_the_client_is_a_reset_at_the_server() {
    for wire in [RAW, HBONE] {
        let mut pair = connected(wire).await;
        reset(std::mem::replace(&mut pair.client, dummy().await));
        is_reset(&mut pair.server).await;
        pair.ends_with("app_reset").await;
    }
}

#[tokio::test]
async fn a_reset_by_the_server_is_a_reset_at_the_client() {
    for wire in [RAW, HBONE] {
        let mut pair = connected(wire).await;
        reset(std::mem::replace(&mut pair.server, dummy().await));
        is_reset(&mut pair.client).await;
        pair.ends_with("app_reset").await;
    }
}

#[tokio::test]
async fn a_reset_after_a_half_close_is_seen_although_nobody_reads_any_more() {
    for wire in [RAW, HBONE] {
        let mut pair = connected(wire).await;
        pair.client.shutdown().await.unwrap();
        assert_eq!(read_all(&mut pair.server).await, b"");
        reset(std::mem::replace(&mut pair.client, dummy().await));
        // Reading would only say again that the data has ended.
        soon(pair.server.ready(tokio::io::Interest::ERROR)).await.unwrap();
        pair.ends_with("app_reset").await;
    }
}

#[tokio::test]
async fn a_reset_by_the_client_reaches_a_server_that_does_not_read() {
    for wire in [RAW, HBONE] {
        let mut pair = connected(wire).await;
        // More than all buffers on the way can hold: somewhere the flow is blocked.
        let flood = vec![1; 64 << 20];
        let blocked = tokio::time::timeout(std::time::Duration::from_millis(300), pair.client.write_all(&flood)).await;
        assert!(blocked.is_err(), "64 MiB fitted into buffers: no back-pressure");
        reset(std::mem::replace(&mut pair.client, dummy().await));
        // The server sees it when it comes to read; the agents must know at once.
        pair.ends_with("app_reset").await;
        is_reset(&mut pair.server).await;
    }
}

#[tokio::test]
async fn bulk_both_ways_at_once_arrives_whole_and_in_order() {
    for wire in [RAW, HBONE] {
        const LENGTH: usize = 20 << 20;
        let Pair { mesh, _pods, client, server, .. } = connected(wire).await;
        let pattern = |seed: usize| (0..LENGTH).map(move |i| u8::try_from((i / 7 + i / 4099 + seed) % 251).unwrap());
        let exchange = async |stream: TcpStream, send: usize, expect: usize| {
            let (mut read, mut write) = stream.into_split();
            let data: Vec<u8> = pattern(send).collect();
            let mut received = Vec::with_capacity(LENGTH);
            tokio::join!(
                async {
                    write.write_all(&data).await.unwrap();
                    write.shutdown().await.unwrap();
                },
                async {
                    read.read_to_end(&mut received).await.unwrap();
                }
            );
            assert!(received.iter().copied().eq(pattern(expect)), "{} bytes differ", received.len());
        };
        soon(async { tokio::join!(exchange(client, 1, 2), exchange(server, 2, 1)) }).await;
        let line = mesh.a.log.only().await;
        assert_eq!(line["outcome"], "ok", "{line:#}");
        assert_eq!(line["bytes_sent"].as_u64(), Some(LENGTH as u64));
    }
}

#[tokio::test]
async fn a_byte_at_a_time_is_not_held_back() {
    for wire in [RAW, HBONE] {
        let mut pair = connected(wire).await;
        for byte in 0..200u8 {
            pair.client.write_u8(byte).await.unwrap();
            assert_eq!(soon(pair.server.read_u8()).await.unwrap(), byte);
            pair.server.write_u8(byte).await.unwrap();
            assert_eq!(soon(pair.client.read_u8()).await.unwrap(), byte);
        }
        pair.ends_ok(200, 200).await;
    }
}

#[tokio::test]
async fn a_destination_outside_the_mesh_is_reached_in_plaintext_and_counted_as_such() {
    let mesh = Mesh::new();
    let web = mesh.pod(&mesh.a, "web");
    let app = TcpListener::bind((super::rig::fresh_ip(), 0)).await.unwrap();
    let mut client = web.connect(app.local_addr().unwrap()).await;
    let (mut server, seen) = soon(app.accept()).await.unwrap();
    assert_eq!(seen.ip(), web.ip);
    client.write_all(b"hi").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut server).await, b"hi");
    drop((client, server));
    let line = mesh.a.log.only().await;
    assert_eq!(
        (&line["outcome"], &line["lane"], &line["security"]),
        (&"ok".into(), &"plaintext".into(), &"none".into())
    );
}

#[tokio::test]
async fn an_uncaptured_pod_of_the_mesh_is_reached_in_plaintext_and_named() {
    let mesh = Mesh::new();
    let web = mesh.pod(&mesh.a, "web");
    let ip = super::rig::fresh_ip();
    let app = TcpListener::bind((ip, 0)).await.unwrap();
    mesh.change(|parts| parts.workloads.put(workload("cart", "uid-plain".into(), "b", ip).into()));
    let client = web.connect(app.local_addr().unwrap()).await;
    drop((client, soon(app.accept()).await.unwrap()));
    let line = mesh.a.log.only().await;
    assert_eq!((&line["security"], &line["destination"]["workload"]), (&"none".into(), &"cart".into()));
    assert!(line["destination"].get("identity").is_none(), "nothing was proven: {line:#}");
}

/// Some connection to put in the place of one that is given away.
async fn dummy() -> TcpStream {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    TcpStream::connect(listener.local_addr().unwrap()).await.unwrap()
}
