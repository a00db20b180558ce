//! What the http lane does not take on: each with its answer, its counter, and neighbours that notice nothing.

use std::net::SocketAddr;
use std::time::Duration;

use http::StatusCode;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::super::{HttpLimits, Limits};
use super::http::{ONE, app, ask, read_head, route, rule};
use super::http2::{
    App, CONTINUATION, END_HEADERS, END_STREAM, GET, HEADERS, RST_STREAM, client, frame, get, goaway, preface,
    read_so_far,
};
use super::rig::{Mesh, Node, Pod, soon};
use crate::model::route::{Retry, Rule};

/// ENHANCE_YOUR_CALM (RFC 9113 §7).
const CALM: u32 = 11;

#[tokio::test]
async fn the_answer_names_the_policy_only_where_the_operator_wants_it() {
    for tell_policy in [false, true] {
        let mesh = with(HttpLimits { tell_policy, ..HttpLimits::default() });
        let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
        let (addr, _told) = super::http::app(&cart, super::http::ONE);
        mesh.policy(super::http::no_admin());
        let mut client = web.connect(addr).await;
        let (head, _) = super::http::ask(&mut client, "GET /admin HTTP/1.1\r\nHost: c\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 403"), "{head}");
        assert_eq!(head.to_lowercase().contains("x-mesh-agent-policy: shop/no-admin"), tell_policy, "{head}");
    }
}

fn with(http: HttpLimits) -> Mesh {
    Mesh::with_limits(Limits { http, ..Limits::default() })
}

/// Waits until node `a` has counted that a limit was reached.
async fn reached(node: &Node, limit: &str, times: f64) {
    node.metric_reaches(&format!("mesh_limit_reached_total{{reporter=\"outbound\",limit=\"{limit}\"}}"), times).await;
}

/// A client's pod, another one, and a routed Service of an application that speaks HTTP/2.
fn pods(mesh: &Mesh) -> (Pod, Pod, App, SocketAddr, Pod) {
    let (web, other, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    let app = App::start(&cart, StatusCode::OK, Duration::ZERO);
    let vip = mesh.service("shop", &[(&cart, app.addr)]);
    mesh.change(route("shop", vec![("/", rule(0, &[("shop", 1)]))]));
    (web, other, app, vip, cart)
}

/// A request that its application has and does not answer.
async fn hanging(pod: &Pod, vip: SocketAddr, listener: &TcpListener) -> [tokio::net::TcpStream; 2] {
    let mut stream = pod.connect(vip).await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.unwrap();
    let (mut server, _) = soon(listener.accept()).await.unwrap();
    soon(read_head(&mut server)).await.unwrap();
    [stream, server]
}

#[tokio::test]
async fn a_pod_with_as_many_requests_as_it_may_have_gets_503_and_its_neighbour_does_not() {
    let mesh = with(HttpLimits { requests_per_pod: 2, ..HttpLimits::default() });
    let (web, other, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    let listener = cart.listen();
    let vip = mesh.service("shop", &[(&cart, listener.local_addr().unwrap())]);
    mesh.change(route("shop", vec![("/", rule(0, &[("shop", 1)]))]));
    let mut held = [hanging(&web, vip, &listener).await, hanging(&web, vip, &listener).await];
    let mut third = web.connect(vip).await;
    // It is dialled before anybody knows what will be spoken.
    let (mut thirds, _) = soon(listener.accept()).await.unwrap();
    let request = "GET / HTTP/1.1\r\nHost: shop\r\n\r\n";
    let (head, _) = ask(&mut third, request).await;
    assert!(head.starts_with("HTTP/1.1 503") && head.contains("x-mesh-agent-reason: overloaded"), "{head}");
    reached(&mesh.a, "requests_per_pod", 1.0).await;
    hanging(&other, vip, &listener).await;
    let [stream, server] = &mut held[0];
    server.write_all(ONE.as_bytes()).await.unwrap();
    soon(read_head(stream)).await.unwrap();
    soon(tokio::io::AsyncReadExt::read_exact(stream, &mut [0; 3])).await.unwrap();
    third.write_all(request.as_bytes()).await.unwrap();
    assert!(soon(read_head(&mut thirds)).await.is_some(), "there is room again");
}

#[tokio::test]
async fn a_head_that_is_too_large_is_answered_431_in_either_version() {
    let mesh = with(HttpLimits { head_bytes: 16 << 10, ..HttpLimits::default() });
    let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    let (addr, _told) = app(&cart, ONE);
    let vip = mesh.service("shop", &[(&cart, addr)]);
    mesh.change(route("shop", vec![("/", rule(0, &[("shop", 1)]))]));
    let request = |length: usize| format!("GET / HTTP/1.1\r\nHost: shop\r\nx-large: {}\r\n\r\n", "a".repeat(length));
    let mut stream = web.connect(vip).await;
    assert_eq!(ask(&mut stream, &request(15 << 10)).await.1, "one");
    let (head, _) = ask(&mut stream, &request(17 << 10)).await;
    assert!(head.starts_with("HTTP/1.1 431") && head.contains("x-mesh-agent-reason: head_too_large"), "{head}");
    reached(&mesh.a, "head_bytes", 1.0).await;
    let (head, _) = ask(&mut web.connect(vip).await, &request(40 << 10)).await;
    assert!(head.starts_with("HTTP/1.1 431"), "hyper has given up on it: {head}");
    reached(&mesh.a, "head_bytes", 2.0).await;

    let client = client(web.connect(vip).await).await;
    let (status, headers) = get(&client, "x-large", &"a".repeat(17 << 10)).await;
    assert_eq!((status.as_u16(), headers["x-mesh-agent-reason"].as_bytes()), (431, &b"head_too_large"[..]));
    reached(&mesh.a, "head_bytes", 3.0).await;
}

#[tokio::test]
async fn a_client_that_resets_what_it_asks_for_is_cut_off() {
    let mesh = Mesh::new();
    let (web, other, _app, vip, _cart) = pods(&mesh);
    let asks = |stream: u32| frame(HEADERS, END_HEADERS | END_STREAM, stream, GET);
    let resets = |stream: u32| frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes());

    // All at once: before we have looked at any.
    let mut burst = web.connect(vip).await;
    let pairs = (0..400).flat_map(|n| [asks(2 * n + 1), resets(2 * n + 1)]);
    burst.write_all(&[preface()].into_iter().chain(pairs).collect::<Vec<_>>().concat()).await.unwrap();
    assert_eq!(goaway(&mut burst).await, Some(CALM));
    reached(&mesh.a, "http2_flood", 1.0).await;

    // One by one: each has been looked at.
    let mut steady = web.connect(vip).await;
    steady.write_all(&preface()).await.unwrap();
    let mut cut = None;
    for n in 0..2_000 {
        let stream = 2 * n + 1;
        let asked = async {
            steady.write_all(&asks(stream)).await?;
            read_so_far(&mut steady).await?;
            steady.write_all(&resets(stream)).await
        };
        if soon(asked).await.is_err() {
            cut = Some(n);
            break;
        }
    }
    assert!(cut.is_some_and(|n| n >= 500), "{cut:?}");
    reached(&mesh.a, "rapid_reset", 1.0).await;
    for limit in ["http2_flood", "rapid_reset"] {
        let reason = format!("limit reached: {limit}");
        let named = |line: &serde_json::Value| line["reason"] == reason && line["outcome"] == "overloaded";
        let mut lines = mesh.a.log.wait(1).await;
        // Each request has a line of its own.
        while !lines.iter().any(named) {
            lines = mesh.a.log.wait(lines.len() + 1).await;
        }
    }

    for pod in [&web, &other] {
        assert_eq!(get(&client(pod.connect(vip).await).await, "x", "y").await.0, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_head_of_endless_continuations_is_cut_off() {
    let mesh = Mesh::new();
    let (web, _other, _app, vip, _cart) = pods(&mesh);
    let mut stream = web.connect(vip).await;
    let continued = (0..200).map(|_| frame(CONTINUATION, 0, 1, &[]));
    let all = [preface(), frame(HEADERS, END_STREAM, 1, GET)].into_iter().chain(continued);
    stream.write_all(&all.collect::<Vec<_>>().concat()).await.unwrap();
    assert_eq!(goaway(&mut stream).await, Some(CALM));
    reached(&mesh.a, "http2_flood", 1.0).await;
}

#[tokio::test]
async fn a_body_longer_than_what_is_kept_is_sent_once() {
    let mesh = with(HttpLimits { replay_bytes: 4, ..HttpLimits::default() });
    let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    let busy = "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n";
    let (addr, mut told) = app(&cart, busy);
    let vip = mesh.service("shop", &[(&cart, addr)]);
    let retry = Retry { attempts: 3, codes: vec![StatusCode::SERVICE_UNAVAILABLE], backoff: Duration::from_millis(1) };
    mesh.change(route("shop", vec![("/", Rule { retry: Some(retry), ..rule(0, &[("shop", 1)]) })]));
    let mut stream = web.connect(vip).await;
    let (head, _) = ask(&mut stream, "POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 5\r\n\r\nhello").await;
    assert!(head.starts_with("HTTP/1.1 503 Busy"), "the application's own answer: {head}");
    assert!(soon(told.recv()).await.unwrap().starts_with("POST"));
    assert!(told.try_recv().is_err(), "it was sent once");
    reached(&mesh.a, "replay_bytes", 1.0).await;
}
