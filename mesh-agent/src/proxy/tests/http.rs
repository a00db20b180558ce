//! The http lane: what routes make of requests, and what rules make of them at the server.

use std::net::SocketAddr;
use std::sync::Arc;

use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::rig::{Mesh, Pod, is_reset, soon};
use crate::model::policy::{Action, Policy, RequestMatch, Rule as PolicyRule, Target as PolicyTarget};
use crate::model::route::{
    Backend, Candidate, Filter, HeaderEdit, Match, PathMatch, PortRoutes, Retry, RouteKind, RouteName, Rule, RuleId,
    ServiceRef, Target, Timeouts,
};
use crate::snapshot::SnapshotParts;

/// An application that answers each request of each connection with `answer`, and tells what it was asked.
pub(super) fn app(pod: &Pod, answer: &'static str) -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = pod.listen();
    let (tell, told) = tokio::sync::mpsc::unbounded_channel();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, answer, tell));
    (addr, told)
}

async fn serve(listener: TcpListener, answer: &'static str, tell: tokio::sync::mpsc::UnboundedSender<String>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let tell = tell.clone();
        tokio::spawn(async move {
            while let Some(head) = read_head(&mut stream).await {
                let _ = tell.send(head);
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// Up to the empty line.
pub(super) async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}

/// Sends a request and returns the head of the answer and its body by Content-Length.
pub(super) async fn ask(stream: &mut TcpStream, request: &str) -> (String, String) {
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = soon(read_head(stream)).await.expect("an answer");
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    soon(stream.read_exact(&mut body)).await.unwrap();
    (head, String::from_utf8(body).unwrap())
}

pub(super) const ONE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX-App: one\r\n\r\none";
pub(super) const TWO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\ntwo";

/// The name of the service port that `Mesh::service` makes.
fn named(name: &str) -> ServiceRef {
    ServiceRef { namespace: "shop".into(), name: name.into(), port: 80 }
}

pub(super) fn rule(index: usize, backends: &[(&str, u32)]) -> Rule {
    let backend = |(name, weight): &(&str, u32)| Backend {
        target: Target::Service(named(name)),
        weight: *weight,
        filters: vec![],
    };
    Rule {
        id: RuleId {
            route: RouteName { kind: RouteKind::Http, namespace: "shop".into(), name: "route".into() },
            index,
            name: None,
        },
        filters: vec![],
        backends: backends.iter().map(backend).collect(),
        timeouts: Timeouts::default(),
        retry: None,
    }
}

/// `rules` of an HTTPRoute on `service`, each below a prefix.
pub(super) fn route(service: &str, rules: Vec<(&str, Rule)>) -> impl FnOnce(&mut SnapshotParts) {
    let candidate = |(prefix, rule): (&str, Rule)| Candidate {
        matching: Match { path: PathMatch::Prefix(prefix.into()), method: None, headers: vec![], query: vec![] },
        rule: Arc::new(rule),
    };
    let candidates = rules.into_iter().map(candidate).collect();
    let routes = PortRoutes { service: named(service), consumer: None, kind: RouteKind::Http, candidates };
    move |parts| parts.routes.push(Arc::new(routes))
}

/// A client, an application of another node, its listener, and a Service for it with a route for everything.
pub(super) fn routed(mesh: &Mesh) -> (Pod, Pod, TcpListener, SocketAddr) {
    let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    let listener = cart.listen();
    let vip = mesh.service("shop", &[(&cart, listener.local_addr().unwrap())]);
    mesh.change(route("shop", vec![("/", rule(0, &[("shop", 1)]))]));
    (web, cart, listener, vip)
}

#[tokio::test]
async fn each_request_of_a_connection_goes_where_its_rule_says() {
    let mesh = Mesh::new();
    let web = mesh.pod(&mesh.a, "web");
    let (near, far) = (mesh.pod(&mesh.a, "cart"), mesh.pod(&mesh.b, "cart"));
    let ((one, _one), (two, _two)) = (app(&near, ONE), app(&far, TWO));
    let vip = mesh.service("shop", &[(&near, one)]);
    mesh.service("two", &[(&far, two)]);
    mesh.change(route("shop", vec![("/two", rule(0, &[("two", 1)])), ("/one", rule(1, &[("shop", 1)]))]));
    let mut client = web.connect(vip).await;
    for _ in 0..3 {
        assert_eq!(ask(&mut client, "GET /one HTTP/1.1\r\nHost: shop\r\n\r\n").await.1, "one");
        assert_eq!(ask(&mut client, "GET /two/x HTTP/1.1\r\nHost: shop\r\n\r\n").await.1, "two");
    }
    let (head, _) = ask(&mut client, "GET /three HTTP/1.1\r\nHost: shop\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 404") && head.contains("x-mesh-agent-reason: no_route"), "{head}");
    drop(client);
    // Seven requests and their connection.
    let lines = mesh.a.log.wait(8).await;
    let connection = |line: &&serde_json::Value| line.get("method").is_none();
    let connection = lines.iter().find(connection).expect("the connection is logged");
    assert_eq!((&connection["lane"], &connection["outcome"]), (&"http".into(), &"ok".into()));
    let ours = lines.iter().find(|line| line["answered"] == "no_route").expect("the answer of the mesh is logged");
    assert_eq!((&ours["path"], &ours["status"]), (&"/three".into(), &404.into()));
    assert_eq!(ours["destination"]["service"], "shop/shop");
    mesh.a.metric_reaches("mesh_request_answers_total{reporter=\"outbound\",reason=\"no_route\"}", 1.0).await;
}

#[tokio::test]
async fn what_a_request_says_beyond_its_route_arrives_as_it_was_sent() {
    let mesh = Mesh::new();
    let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    let (addr, mut told) = app(&cart, ONE);
    let vip = mesh.service("shop", &[(&cart, addr)]);
    let edit = HeaderEdit { set: vec![("x-set".parse().unwrap(), "new".parse().unwrap())], ..HeaderEdit::default() };
    let edited = Rule { filters: vec![Filter::RequestHeaders(edit)], ..rule(0, &[("shop", 1)]) };
    mesh.change(route("shop", vec![("/", edited)]));
    let mut client = web.connect(vip).await;
    let request = "PUT /a%2Fb//..;x? HTTP/1.1\r\nHost: shop:80\r\nX-Mixed-Case: 1\r\nConnection: x-hop\r\nX-Hop: 1\r\n\
                   x-mesh-agent-reason: denied\r\nX-Set: old\r\nContent-Length: 0\r\n\r\n";
    let (head, body) = ask(&mut client, request).await;
    assert_eq!(body, "one");
    assert!(head.contains("X-App: one") && !head.to_ascii_lowercase().contains("date:"), "{head}");
    let told = soon(told.recv()).await.unwrap();
    assert!(told.starts_with("PUT /a%2Fb//..;x? HTTP/1.1\r\n"), "{told}");
    for there in ["X-Mixed-Case: 1\r\n", "Host: shop:80\r\n", "new\r\n"] {
        assert!(told.contains(there), "{there} in {told}");
    }
    for gone in ["x-hop", "x-mesh-agent", "old", "connection"] {
        assert!(!told.to_ascii_lowercase().contains(gone), "{gone} in {told}");
    }
}

#[tokio::test]
async fn a_failed_attempt_is_repeated_with_its_body_and_a_late_one_is_given_up() {
    let mesh = Mesh::new();
    let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    let listener = cart.listen();
    let vip = mesh.service("shop", &[(&cart, listener.local_addr().unwrap())]);
    let retry = Retry {
        attempts: 2,
        codes: vec![StatusCode::SERVICE_UNAVAILABLE],
        backoff: std::time::Duration::from_millis(1),
    };
    let timeouts = Timeouts { request: None, backend_request: Some(std::time::Duration::from_millis(300)) };
    let repeated = Rule { retry: Some(retry), ..rule(0, &[("shop", 1)]) };
    let late = Rule { timeouts, ..rule(1, &[("shop", 1)]) };
    mesh.change(route("shop", vec![("/again", repeated), ("/late", late)]));
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let answers = Arc::new(std::sync::Mutex::new(vec![TWO, "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"]));
    tokio::spawn(async move {
        // The second attempt may come by the same connection or by another.
        while let Ok((mut stream, _)) = listener.accept().await {
            let (tell, answers) = (tell.clone(), Arc::clone(&answers));
            tokio::spawn(async move {
                while read_head(&mut stream).await.is_some() {
                    let Some(answer) = answers.lock().unwrap().pop() else {
                        // The late one: its connection ends with its time.
                        let end = stream.read(&mut [0; 1]).await;
                        return tell.send(format!("ended {}", end.unwrap_or(0))).unwrap();
                    };
                    let mut body = [0; 5];
                    stream.read_exact(&mut body).await.unwrap();
                    tell.send(String::from_utf8(body.to_vec()).unwrap()).unwrap();
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
    let mut client = web.connect(vip).await;
    let (head, body) = ask(&mut client, "POST /again HTTP/1.1\r\nHost: shop\r\nContent-Length: 5\r\n\r\nhello").await;
    assert!(head.starts_with("HTTP/1.1 200") && body == "two", "{head}");
    let (head, _) = ask(&mut client, "GET /late HTTP/1.1\r\nHost: shop\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 504") && head.contains("x-mesh-agent-reason: timeout"), "{head}");
    for expected in ["hello", "hello", "ended 0"] {
        assert_eq!(soon(told.recv()).await.unwrap(), expected);
    }
}

#[tokio::test]
async fn large_bodies_pass_whole_in_both_directions() {
    for wire in [super::rig::RAW, super::rig::HBONE] {
        let mesh = Mesh::new().speaking(wire);
        let (web, _cart, listener, vip) = routed(&mesh);
        let content: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[usize::try_from(n % 3).unwrap()]).collect();
        let sent = content.clone();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_head(&mut stream).await.unwrap();
            let mut body = vec![0; sent.len()];
            stream.read_exact(&mut body).await.unwrap();
            assert!(body == sent, "what was sent has arrived");
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(&body).await.unwrap();
        });
        let mut client = web.connect(vip).await;
        let head = format!("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: {}\r\n\r\n", content.len());
        client.write_all(head.as_bytes()).await.unwrap();
        client.write_all(&content).await.unwrap();
        let head = soon(read_head(&mut client)).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let mut body = vec![0; content.len()];
        soon(client.read_exact(&mut body)).await.unwrap();
        assert!(body == content, "what was answered has arrived");
    }
}

#[tokio::test]
async fn after_a_switch_of_protocols_bytes_pass_both_ways() {
    let mesh = Mesh::new();
    let (web, _cart, listener, vip) = routed(&mesh);
    let mut client = web.connect(vip).await;
    let request = "GET /chat HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    client.write_all(request.as_bytes()).await.unwrap();
    let (mut server, _) = soon(listener.accept()).await.unwrap();
    let head = soon(read_head(&mut server)).await.unwrap().to_ascii_lowercase();
    assert!(head.contains("upgrade: websocket") && head.contains("connection: upgrade"), "{head}");
    let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nfirst";
    server.write_all(answer).await.unwrap();
    let head = soon(read_head(&mut client)).await.unwrap().to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101") && head.contains("upgrade: websocket"), "{head}");
    let mut first = [0; 5];
    soon(client.read_exact(&mut first)).await.unwrap();
    client.write_all(b"\x00second").await.unwrap();
    let mut second = [0; 7];
    soon(server.read_exact(&mut second)).await.unwrap();
    assert_eq!((&first, &second), (b"first", b"\x00second"));
    drop(client);
    assert_eq!(soon(server.read(&mut [0; 1])).await.unwrap(), 0, "the end passes too");
}

/// Denies requests below `/admin` to everybody.
pub(super) fn no_admin() -> Policy {
    let paths = Some(vec![PathMatch::Prefix("/admin".into())]);
    let requests = RequestMatch { paths, ..RequestMatch::default() };
    Policy {
        namespace: "shop".into(),
        name: "no-admin".into(),
        action: Action::Deny,
        target: PolicyTarget::Namespace("shop".into()),
        rules: vec![PolicyRule { requests: Some(requests), ..PolicyRule::default() }],
        broken: None,
    }
}

#[tokio::test]
async fn the_servers_node_judges_each_request_of_a_raw_tunnel() {
    for wire in [super::rig::RAW, super::rig::HBONE] {
        let mesh = Mesh::new().speaking(wire);
        let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
        let (addr, mut told) = app(&cart, ONE);
        mesh.policy(no_admin());
        let mut client = web.connect(addr).await;
        assert_eq!(ask(&mut client, "GET /shop HTTP/1.1\r\nHost: c\r\n\r\n").await.1, "one");
        for denied in ["/admin/x", "/%61dmin", "/x/../admin"] {
            let (head, _) = ask(&mut client, &format!("GET {denied} HTTP/1.1\r\nHost: c\r\n\r\n")).await;
            assert!(
                head.starts_with("HTTP/1.1 403") && head.contains("x-mesh-agent-reason: denied"),
                "{denied} {head}"
            );
        }
        assert_eq!(ask(&mut client, "GET /shop HTTP/1.1\r\nHost: c\r\n\r\n").await.1, "one");
        for _ in 0..2 {
            assert!(soon(told.recv()).await.unwrap().starts_with("GET /shop"), "the application saw a denied request");
        }
        assert!(told.try_recv().is_err());
        let lines = mesh.b.log.wait(3).await;
        assert!(lines.iter().all(|line| line["answered"] != "denied" || line["rule"] == "shop/no-admin"), "{lines:#?}");
        mesh.b.metric_reaches("mesh_denials_total{policy=\"shop/no-admin\",outcome=\"denied\"}", 3.0).await;

        let mut other = web.connect(addr).await;
        other.write_all(b"*1\r\n$4\r\nPING\r\n").await.unwrap();
        is_reset(&mut other).await;
    }
}

#[tokio::test]
async fn a_request_that_is_not_over_ends_with_its_permit() {
    let mesh = Mesh::new();
    let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    let listener = cart.listen();
    mesh.policy(Policy { action: Action::Audit, ..no_admin() });
    let dialled = listener.local_addr().unwrap();
    let (mut denied, mut kept) = (web.connect(dialled).await, web.connect(dialled).await);
    denied.write_all(b"GET /admin/feed HTTP/1.1\r\nHost: c\r\n\r\n").await.unwrap();
    kept.write_all(b"GET /feed HTTP/1.1\r\nHost: c\r\n\r\n").await.unwrap();
    let mut servers = Vec::new();
    for _ in 0..2 {
        let (mut server, _) = soon(listener.accept()).await.unwrap();
        let head = soon(read_head(&mut server)).await.unwrap();
        server.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n").await.unwrap();
        servers.push((head, server));
    }
    for client in [&mut denied, &mut kept] {
        soon(read_head(client)).await.unwrap();
        soon(client.read_exact(&mut [0; 6])).await.unwrap();
    }
    mesh.policy(Policy { name: "really".into(), ..no_admin() });
    is_reset(&mut denied).await;
    let (_, server) = servers.iter_mut().find(|(head, _)| head.starts_with("GET /feed")).unwrap();
    server.write_all(b"1\r\nb\r\n").await.unwrap();
    let mut more = [0; 6];
    soon(kept.read_exact(&mut more)).await.unwrap();
    assert_eq!(&more, b"1\r\nb\r\n", "others go on");
}

#[tokio::test]
async fn what_is_spoken_after_a_switch_ends_with_the_permit_of_its_request() {
    let mesh = Mesh::new();
    let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    let listener = cart.listen();
    mesh.policy(Policy { action: Action::Audit, ..no_admin() });
    let mut client = web.connect(listener.local_addr().unwrap()).await;
    let request = b"GET /admin/chat HTTP/1.1\r\nHost: c\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    client.write_all(request).await.unwrap();
    let (mut server, _) = soon(listener.accept()).await.unwrap();
    soon(read_head(&mut server)).await.unwrap();
    let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nx";
    server.write_all(answer).await.unwrap();
    soon(read_head(&mut client)).await.unwrap();
    assert_eq!(soon(client.read_u8()).await.unwrap(), b'x');
    mesh.policy(Policy { name: "really".into(), ..no_admin() });
    is_reset(&mut client).await;
}

#[tokio::test]
async fn rules_about_requests_end_the_connections_that_nobody_reads() {
    let mesh = Mesh::new();
    let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    let (addr, _told) = app(&cart, ONE);
    let mut client = web.connect(addr).await;
    assert_eq!(ask(&mut client, "GET /shop HTTP/1.1\r\nHost: c\r\n\r\n").await.1, "one");
    mesh.policy(no_admin());
    is_reset(&mut client).await;
}
