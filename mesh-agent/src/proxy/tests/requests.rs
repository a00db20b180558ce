//! What the mesh says of requests: one line and one count on each side, and how each ended.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, Request, Response};
use serde_json::Value;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::http::{ONE, app, ask, no_admin, read_head, route, routed, rule};
use super::rig::{Log, Mesh, is_reset, soon};
use crate::model::policy::{Action, Policy};
use crate::model::route::{Retry, Rule, Timeouts};

/// The lines about requests, once there are `count`.
async fn requests(log: &Log, count: usize) -> Vec<Value> {
    let mut expected = count;
    loop {
        let (of, others): (Vec<Value>, Vec<Value>) =
            log.wait(expected).await.into_iter().partition(|line| line.get("method").is_some());
        if of.len() >= count {
            assert_eq!(of.len(), count, "{of:#?}");
            return of;
        }
        expected = count + others.len();
    }
}

/// The line about the request for `path`.
fn about<'a>(lines: &'a [Value], path: &str) -> &'a Value {
    lines.iter().find(|line| line["path"] == path).unwrap_or_else(|| panic!("{path} in {lines:#?}"))
}

/// The server's node reads requests, and lets all of them pass.
fn audited(mesh: &Mesh) {
    mesh.policy(Policy { action: Action::Audit, ..no_admin() });
}

/// The beginning of the series of requests from one pod of the rig to another.
fn series(name: &str, reporter: &str, service: &str, more: &str) -> String {
    format!(
        "{name}{{reporter=\"{reporter}\",source_workload=\"web\",source_namespace=\"shop\",\
         destination_service=\"{service}\",destination_workload=\"cart\",destination_namespace=\"shop\",\
         lane=\"http\",security=\"mutual_tls\",{more}}}"
    )
}

const RULE: &str = "HTTPRoute shop/route rules[0]";

#[tokio::test]
async fn each_side_counts_and_logs_a_request_once() {
    let mesh = Mesh::new();
    let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    let (addr, _told) = app(&cart, ONE);
    let vip = mesh.service("shop", &[(&cart, addr)]);
    mesh.change(route("shop", vec![("/", rule(0, &[("shop", 1)]))]));
    audited(&mesh);
    let mut client = web.connect(vip).await;
    let trace = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n";
    for path in ["/one?token=secret", "/two"] {
        ask(&mut client, &format!("GET {path} HTTP/1.1\r\nHost: shop\r\n{trace}\r\n")).await;
    }
    for (node, reporter, service, route) in
        [(&mesh.a, "outbound", "shop/shop", RULE), (&mesh.b, "inbound", "unknown", "none")]
    {
        let lines = requests(&node.log, 2).await;
        let line = about(&lines, "/one");
        for (field, expected) in [
            ("reporter", Value::from(reporter)),
            ("lane", "http".into()),
            ("security", "mutual_tls".into()),
            ("method", "GET".into()),
            ("protocol", "HTTP/1.1".into()),
            ("status", 200.into()),
            ("outcome", "ok".into()),
            ("request_bytes", 0.into()),
            ("response_bytes", 3.into()),
            ("attempts", 1.into()),
            ("trace_id", "4bf92f3577b34da6a3ce929d0e0e4736".into()),
        ] {
            assert_eq!(line[field], expected, "{field} of {line}");
        }
        assert_eq!(line["route"].as_str().unwrap_or("none"), route);
        assert_eq!(line["source"]["workload"], "web");
        assert_eq!(line["source"]["identity"], "spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!(line["destination"]["workload"], "cart");
        let times = ["upstream_ms", "connect_ms", "waited_ms", "own_ms"].map(|name| line[name].as_f64().unwrap_or(0.0));
        let (head, sum) = (line["head_ms"].as_f64().unwrap(), times.iter().sum::<f64>());
        assert!((head - sum).abs() < 0.01 && times[0] > 0.0, "the parts of {line}");
        assert!(line["duration_ms"].as_f64().unwrap() >= head, "{line}");
        let more = |rest: &str| format!("route=\"{route}\"{rest}");
        let ok = more(",status=\"200\",grpc_status=\"none\",outcome=\"ok\"");
        node.metric_reaches(&series("mesh_requests_total", reporter, service, &ok), 2.0).await;
        let count = series("mesh_request_duration_seconds_count", reporter, service, &more(",class=\"2xx\""));
        node.metric_reaches(&count, 2.0).await;
        node.metric_reaches(&series("mesh_response_body_bytes_total", reporter, service, &more("")), 6.0).await;
        node.metric_reaches(&format!("mesh_requests_live{{reporter=\"{reporter}\"}}"), 0.0).await;
        let own = format!("mesh_request_own_duration_seconds_count{{reporter=\"{reporter}\"}}");
        node.metric_reaches(&own, 2.0).await;
    }
}

/// Accepts a connection, reads a request and answers its beginning.
async fn begun(listener: &TcpListener) -> TcpStream {
    let (mut server, _) = soon(listener.accept()).await.unwrap();
    soon(read_head(&mut server)).await.unwrap();
    server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello").await.unwrap();
    server
}

/// Asks for `path`, and reads the beginning of the answer.
async fn asks(client: &mut TcpStream, path: &str) {
    client.write_all(format!("GET {path} HTTP/1.1\r\nHost: shop\r\n\r\n").as_bytes()).await.unwrap();
}

async fn reads(client: &mut TcpStream) {
    soon(read_head(client)).await.unwrap();
    soon(client.read_exact(&mut [0; 5])).await.unwrap();
}

#[tokio::test]
async fn an_answer_that_breaks_off_says_who_broke_it() {
    let mesh = Mesh::new();
    let (web, _cart, listener, vip) = routed(&mesh);
    let mut client = web.connect(vip).await;
    asks(&mut client, "/client").await;
    let mut server = begun(&listener).await;
    reads(&mut client).await;
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    // While an answer is on its way, who has gone is met by writing: a client may end its own direction at any time.
    server.write_all(b"w").await.unwrap();
    requests(&mesh.a.log, 1).await;
    drop(server);

    let mut client = web.connect(vip).await;
    asks(&mut client, "/server").await;
    let server = begun(&listener).await;
    reads(&mut client).await;
    drop(server);
    is_reset(&mut client).await;
    let lines = requests(&mesh.a.log, 2).await;
    for (path, outcome, bytes) in [("/client", "client_lost", 6), ("/server", "server_lost", 5)] {
        let line = about(&lines, path);
        assert_eq!((&line["outcome"], &line["status"]), (&outcome.into(), &200.into()), "{line}");
        assert_eq!(line["response_bytes"], bytes, "{line}");
    }
}

#[tokio::test]
async fn an_answer_that_is_late_or_switches_says_so() {
    let mesh = Mesh::new();
    let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    let listener = cart.listen();
    let vip = mesh.service("shop", &[(&cart, listener.local_addr().unwrap())]);
    let timeouts = Timeouts { request: Some(Duration::from_millis(200)), backend_request: None };
    let late = Rule { timeouts, ..rule(0, &[("shop", 1)]) };
    mesh.change(route("shop", vec![("/late", late), ("/", rule(1, &[("shop", 1)]))]));
    let mut client = web.connect(vip).await;
    asks(&mut client, "/late").await;
    let _server = begun(&listener).await;
    reads(&mut client).await;
    is_reset(&mut client).await;

    let mut client = web.connect(vip).await;
    let request = b"GET /chat HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    client.write_all(request).await.unwrap();
    let (mut server, _) = soon(listener.accept()).await.unwrap();
    soon(read_head(&mut server)).await.unwrap();
    let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    server.write_all(answer).await.unwrap();
    soon(read_head(&mut client)).await.unwrap();
    let lines = requests(&mesh.a.log, 2).await;
    assert_eq!(about(&lines, "/late")["outcome"], "timeout");
    // While the connection goes on.
    let line = about(&lines, "/chat");
    assert_eq!((&line["outcome"], &line["status"]), (&"switched".into(), &101.into()));
    drop((client, server));
}

#[tokio::test]
async fn an_answer_whose_permit_ends_says_so() {
    let mesh = Mesh::new();
    let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    let listener = cart.listen();
    audited(&mesh);
    let mut client = web.connect(listener.local_addr().unwrap()).await;
    asks(&mut client, "/admin/feed").await;
    let _server = begun(&listener).await;
    reads(&mut client).await;
    mesh.policy(Policy { name: "really".into(), ..no_admin() });
    is_reset(&mut client).await;
    let lines = requests(&mesh.b.log, 1).await;
    assert_eq!(about(&lines, "/admin/feed")["outcome"], "revoked", "{lines:#?}");
}

#[tokio::test]
async fn attempts_are_counted_and_so_is_the_body_of_the_last() {
    let mesh = Mesh::new();
    let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    let (addr, _told) = app(&cart, "HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy");
    let vip = mesh.service("shop", &[(&cart, addr)]);
    let codes = vec![http::StatusCode::SERVICE_UNAVAILABLE];
    let retry = Some(Retry { attempts: 2, codes, backoff: Duration::from_millis(1) });
    mesh.change(route("shop", vec![("/", Rule { retry, ..rule(0, &[("shop", 1)]) })]));
    let mut client = web.connect(vip).await;
    let (head, _) = ask(&mut client, "POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 0\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 503"), "{head}");
    let lines = requests(&mesh.a.log, 1).await;
    assert_eq!((&lines[0]["attempts"], &lines[0]["status"]), (&3.into(), &503.into()), "{lines:#?}");
    assert!(lines[0]["waited_ms"].as_f64().unwrap() >= 2.0, "{lines:#?}");
    let retries = series("mesh_request_retries_total", "outbound", "shop/shop", &format!("route=\"{RULE}\""));
    mesh.a.metric_reaches(&retries, 2.0).await;
}

/// Answers streams by their path; each in a way of its own.
async fn grpc(listener: TcpListener) {
    let (stream, _) = listener.accept().await.unwrap();
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let status =
            |code: &'static str| HeaderMap::from_iter([("grpc-status".parse().unwrap(), code.parse().unwrap())]);
        let mut head = Response::new(());
        if request.uri().path() == "/only" {
            *head.headers_mut() = status("12");
            respond.send_response(head, true).unwrap();
            continue;
        }
        let mut body = respond.send_response(head, false).unwrap();
        body.send_data(Bytes::from_static(b"hello"), false).unwrap();
        match request.uri().path() {
            "/trailers" => drop(tokio::spawn(async move {
                let mut asked = request.into_body();
                while asked.data().await.is_some() {}
                body.send_trailers(status("5")).unwrap();
            })),
            // Once the client has what came before.
            "/reset" => drop(tokio::spawn(async move {
                drop(request.into_body().data().await);
                body.send_reset(Reason::INTERNAL_ERROR);
            })),
            _ => drop(tokio::spawn(async move {
                std::future::poll_fn(|cx| body.poll_reset(cx)).await.unwrap();
            })),
        }
    }
}

async fn open(client: &mut h2::client::SendRequest<Bytes>, path: &str) -> (h2::RecvStream, h2::SendStream<Bytes>) {
    let request = Request::post(format!("http://shop{path}")).header("content-type", "application/grpc");
    let (answer, body) = client.send_request(request.body(()).unwrap(), path == "/only").unwrap();
    (soon(answer).await.unwrap().into_body(), body)
}

#[tokio::test]
async fn streams_have_their_grpc_status_and_who_reset_them() {
    let mesh = Mesh::new();
    let (web, _cart, listener, vip): (_, _, _, SocketAddr) = routed(&mesh);
    audited(&mesh);
    tokio::spawn(grpc(listener));
    let (mut client, connection) = h2::client::handshake(web.connect(vip).await).await.unwrap();
    tokio::spawn(connection);

    let (mut answer, mut body) = open(&mut client, "/trailers").await;
    body.send_data(Bytes::from_static(b"abc"), true).unwrap();
    assert_eq!(soon(answer.data()).await.unwrap().unwrap(), "hello");
    assert_eq!(soon(answer.trailers()).await.unwrap().unwrap()["grpc-status"], "5");
    let (mut answer, _) = open(&mut client, "/only").await;
    assert!(soon(answer.data()).await.is_none());
    let (mut answer, mut body) = open(&mut client, "/reset").await;
    assert_eq!(soon(answer.data()).await.unwrap().unwrap(), "hello");
    body.send_data(Bytes::from_static(b"go"), false).unwrap();
    let reset = soon(answer.data()).await.unwrap().unwrap_err();
    assert_eq!(reset.reason(), Some(Reason::INTERNAL_ERROR));
    let (mut answer, mut body) = open(&mut client, "/cancel").await;
    assert_eq!(soon(answer.data()).await.unwrap().unwrap(), "hello");
    body.send_reset(Reason::CANCEL);

    for node in [&mesh.a, &mesh.b] {
        let lines = requests(&node.log, 4).await;
        for (path, grpc, outcome, sent) in [
            ("/trailers", Value::from(5), "ok", 3),
            ("/only", 12.into(), "ok", 0),
            ("/reset", Value::Null, "server_aborted", 2),
            ("/cancel", Value::Null, "client_aborted", 0),
        ] {
            let line = about(&lines, path);
            assert_eq!((&line["grpc_status"], &line["outcome"]), (&grpc, &outcome.into()), "{line}");
            assert_eq!((&line["request_bytes"], &line["protocol"]), (&sent.into(), &"HTTP/2".into()), "{line}");
        }
    }
    let answered = format!("route=\"{RULE}\",status=\"200\",grpc_status=\"5\",outcome=\"ok\"");
    mesh.a.metric_reaches(&series("mesh_requests_total", "outbound", "shop/shop", &answered), 1.0).await;
}
