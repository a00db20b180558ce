//! The wire as a stranger sees it: a client and a server that speak bare HBONE, right and wrong.

use std::net::SocketAddr;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::{Request, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::rig::{HBONE, Mesh, Pod, accounts, soon};
use crate::tls::Tls;

/// A peer that is not one of our agents: sessions with the mesh's certificates and nothing else.
fn stranger(mesh: &Mesh) -> Tls {
    Tls::new(mesh.ca.store(&accounts().each_ref()))
}

/// Opens a tunnel from `web`'s address, and its HTTP/2 connection.
async fn tunnel(mesh: &Mesh, web: &Pod, to: SocketAddr) -> h2::client::SendRequest<Bytes> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(web.ip, 0)).unwrap();
    let io = soon(socket.connect(to)).await.unwrap();
    let [own, expected, _] = accounts();
    let (tls, _) = soon(stranger(mesh).connect(io, &own, &expected, &[b"h2"])).await.unwrap();
    let (send, connection) = h2::client::handshake(tls).await.unwrap();
    tokio::spawn(connection);
    soon(send.ready()).await.unwrap()
}

fn connect_to(authority: &str) -> Request<()> {
    Request::builder().method("CONNECT").uri(authority).body(()).unwrap()
}

/// The status of one request that ends there.
async fn status(send: &mut h2::client::SendRequest<Bytes>, request: Request<()>) -> (StatusCode, String) {
    let (answer, _stream) = send.send_request(request, false).unwrap();
    let answer = soon(answer).await.unwrap();
    let reason = answer.headers().get("x-mesh-agent-reason").map_or("", |word| word.to_str().unwrap());
    (answer.status(), reason.to_owned())
}

#[tokio::test]
async fn a_bare_hbone_client_is_served() {
    let mesh = Mesh::new();
    let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    let app = cart.listen();
    let mut send = tunnel(&mesh, &web, cart.tunnel()).await;
    let request = connect_to(&app.local_addr().unwrap().to_string());
    let (answer, mut up) = send.send_request(request, false).unwrap();
    let (mut server, seen) = soon(app.accept()).await.unwrap();
    assert_eq!(seen.ip(), web.ip, "the tunnel's source is the client");
    let answer = soon(answer).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let mut down = answer.into_body();

    up.send_data(Bytes::from_static(b"question"), true).unwrap();
    let mut question = Vec::new();
    soon(server.read_to_end(&mut question)).await.unwrap();
    assert_eq!(question, b"question");
    server.write_all(b"answer").await.unwrap();
    server.shutdown().await.unwrap();
    assert_eq!(soon(down.data()).await.unwrap().unwrap(), "answer");
    while let Some(empty) = soon(down.data()).await {
        assert!(empty.unwrap().is_empty());
    }
    assert!(down.is_end_stream());
    assert_eq!(mesh.b.log.only().await["outcome"], "ok");
}

#[tokio::test]
async fn a_target_that_is_not_this_pods_is_a_400_and_counted() {
    let mesh = Mesh::new();
    let (web, cart, other) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"), mesh.pod(&mesh.b, "cart"));
    let foreign = other.listen();
    let mut send = tunnel(&mesh, &web, cart.tunnel()).await;
    let cases = [
        (foreign.local_addr().unwrap().to_string(), "foreign_address"),
        ("127.0.0.1:80".to_owned(), "foreign_address"),
        ("cart.shop:80".to_owned(), "not_an_address"),
        (format!("{}:15001", cart.ip), "mesh_port"),
        (format!("{}:15006", cart.ip), "mesh_port"),
        (format!("{}:15008", cart.ip), "mesh_port"),
        (cart.outbound.to_string(), "mesh_port"),
        (cart.plaintext.to_string(), "mesh_port"),
    ];
    for (count, (authority, _)) in cases.iter().enumerate() {
        let refused = status(&mut send, connect_to(authority)).await;
        assert_eq!(refused, (StatusCode::BAD_REQUEST, "bad_target".to_owned()), "{authority}");
        let lines = mesh.b.log.wait(count + 1).await;
        assert_eq!(lines[count]["outcome"], "bad_target", "{authority}");
    }
    for reason in ["foreign_address", "not_an_address", "mesh_port"] {
        let expected = cases.iter().filter(|(_, word)| *word == reason).count();
        let counted = mesh.b.metric(&format!("mesh_tunnel_requests_refused_total{{reason=\"{reason}\"}}"));
        assert!((counted - f64::from(u32::try_from(expected).unwrap())).abs() < f64::EPSILON, "{reason}: {counted}");
    }
}

#[tokio::test]
async fn a_request_that_is_no_connect_is_a_400() {
    let mesh = Mesh::new();
    let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    let mut send = tunnel(&mesh, &web, cart.tunnel()).await;
    let get = Request::builder().uri(format!("http://{}:80/", cart.ip)).body(()).unwrap();
    assert_eq!(status(&mut send, get).await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_dead_application_is_a_503_and_a_denial_a_401() {
    use crate::model::policy::{Action, Policy, Rule, Target};
    let mesh = Mesh::new();
    let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    let mut send = tunnel(&mesh, &web, cart.tunnel()).await;
    let dead = connect_to(&format!("{}:9", cart.ip));
    let refused = status(&mut send, dead.clone()).await;
    assert_eq!(refused, (StatusCode::SERVICE_UNAVAILABLE, "connect_refused".to_owned()));
    let everybody = vec![Rule::default()];
    mesh.policy(Policy {
        namespace: "shop".into(),
        name: "closed".into(),
        action: Action::Deny,
        target: Target::Mesh,
        rules: everybody,
        broken: None,
    });
    assert_eq!(status(&mut send, dead).await, (StatusCode::UNAUTHORIZED, "denied".to_owned()));
}

#[tokio::test]
async fn a_tunnel_that_breaks_off_is_a_reset_at_the_application_never_an_end() {
    let mesh = Mesh::new();
    let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    let app = cart.listen();
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(web.ip, 0)).unwrap();
    let io = soon(socket.connect(cart.tunnel())).await.unwrap();
    let [own, expected, _] = accounts();
    let (tls, _) = soon(stranger(&mesh).connect(io, &own, &expected, &[b"h2"])).await.unwrap();
    let (send, connection) = h2::client::handshake::<_>(tls).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut send = soon(send.ready()).await.unwrap();
    let (answer, mut up) = send.send_request(connect_to(&app.local_addr().unwrap().to_string()), false).unwrap();
    let (mut server, _) = soon(app.accept()).await.unwrap();
    let _down = soon(answer).await.unwrap();
    up.send_data(Bytes::from_static(b"half a quest"), false).unwrap();
    let mut data = [0; 12];
    soon(server.read_exact(&mut data)).await.unwrap();
    // The connection is closed with FIN and without a word of TLS or HTTP/2.
    connection.abort();
    let error = soon(server.read(&mut [0; 1])).await.expect_err("a truncated question looked complete");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(mesh.b.log.only().await["outcome"], "tunnel_failed");
}

#[tokio::test]
async fn every_reset_of_a_stream_is_a_reset_even_without_an_error_code() {
    for reason in [Reason::NO_ERROR, Reason::CANCEL, Reason::CONNECT_ERROR] {
        let mesh = Mesh::new();
        let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
        let app = cart.listen();
        let mut send = tunnel(&mesh, &web, cart.tunnel()).await;
        let request = connect_to(&app.local_addr().unwrap().to_string());
        let (answer, mut up) = send.send_request(request, false).unwrap();
        let (mut server, _) = soon(app.accept()).await.unwrap();
        let _down = soon(answer).await.unwrap();
        up.send_reset(reason);
        let error = soon(server.read(&mut [0; 1])).await.expect_err("a reset looked like an end");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{reason}");
        assert_eq!(mesh.b.log.only().await["outcome"], "app_reset");
    }
}

/// A pod whose agent is this test: it answers tunnels itself.
struct Scripted {
    listener: TcpListener,
    tls: Tls,
    addr: SocketAddr,
}

impl Scripted {
    async fn new(mesh: &Mesh) -> Self {
        let (listener, addr) = mesh.scripted(HBONE).await;
        Self { listener, tls: stranger(mesh), addr }
    }

    async fn accept(&self) -> h2::server::Connection<crate::tls::ServerStream<TcpStream>, Bytes> {
        let (io, _) = soon(self.listener.accept()).await.unwrap();
        let (tls, _) = soon(self.tls.accept(io, &accounts()[1], &[b"h2"])).await.unwrap();
        h2::server::handshake(tls).await.unwrap()
    }
}

/// Accepts the next stream and answers 200.
async fn serve<IO>(connection: &mut h2::server::Connection<IO, Bytes>) -> (Request<()>, RecvStream, SendStream<Bytes>)
where
    IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let (request, mut respond) = soon(connection.accept()).await.unwrap().unwrap();
    let send = respond.send_response(http::Response::new(()), false).unwrap();
    let (head, body) = request.into_parts();
    (Request::from_parts(head, ()), body, send)
}

#[tokio::test]
async fn what_we_send_is_what_hbone_asks_for() {
    let mesh = Mesh::new();
    let web = mesh.pod(&mesh.a, "web");
    let cart = Scripted::new(&mesh).await;
    let client = web.connect(cart.addr).await;
    let mut connection = cart.accept().await;
    let (head, _, _) = serve(&mut connection).await;
    assert_eq!(head.method(), "CONNECT");
    assert_eq!((head.uri().scheme(), head.uri().path_and_query()), (None, None), "RFC 9113 §8.5");
    assert_eq!(head.uri().authority().unwrap().as_str(), cart.addr.to_string());
    assert_eq!(head.headers()["forwarded"], format!("for={}", web.ip));
    assert!(head.headers()["baggage"].to_str().unwrap().contains("service.name=web"));
    assert_eq!(head.headers()["traceparent"].len(), 55);
    drop(client);
}

#[tokio::test]
async fn a_draining_tunnel_is_left_and_its_streams_go_on() {
    let mesh = Mesh::new();
    let web = mesh.pod(&mesh.a, "web");
    let cart = Scripted::new(&mesh).await;
    let mut first = web.connect(cart.addr).await;
    let mut connection = cart.accept().await;
    let (_, mut body, _send) = serve(&mut connection).await;
    connection.graceful_shutdown();
    let drained = tokio::spawn(async move {
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            respond.send_reset(Reason::REFUSED_STREAM);
        }
    });
    // Until the GOAWAY has arrived the connection may still be chosen; then the stream is refused and moves.
    let mut second = web.connect(cart.addr).await;
    let mut next = cart.accept().await;
    let (_, mut second_body, _second_send) = serve(&mut next).await;
    let driven = tokio::spawn(async move { while next.accept().await.is_some() {} });
    first.write_all(b"one").await.unwrap();
    second.write_all(b"two").await.unwrap();
    assert_eq!(soon(body.data()).await.unwrap().unwrap(), "one");
    assert_eq!(soon(second_body.data()).await.unwrap().unwrap(), "two");
    drained.abort();
    driven.abort();
}

#[tokio::test]
async fn a_tunnel_that_breaks_off_is_a_reset_at_the_client_never_an_end() {
    let mesh = Mesh::new();
    let web = mesh.pod(&mesh.a, "web");
    let cart = Scripted::new(&mesh).await;
    let mut client: TcpStream = web.connect(cart.addr).await;
    let mut connection = cart.accept().await;
    let (_, body, mut send) = serve(&mut connection).await;
    send.send_data(Bytes::from_static(b"half an ans"), false).unwrap();
    let driven = tokio::spawn(async move { while connection.accept().await.is_some() {} });
    let mut data = [0; 11];
    soon(client.read_exact(&mut data)).await.unwrap();
    driven.abort();
    drop((send, body));
    let error = soon(client.read(&mut [0; 1])).await.expect_err("a truncated answer looked complete");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(mesh.a.log.only().await["outcome"], "tunnel_failed");
}
