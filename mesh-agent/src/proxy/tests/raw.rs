//! `mesh-raw/1` byte by byte, as its documentation says it and not as the code writes it.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::rig::{Mesh, Pod, RAW, accounts, fresh_ip, is_reset, soon, workload};
use crate::model::workload::Captured;
use crate::proxy::TUNNEL_PORT;
use crate::tls::Tls;

const REPLY_OK: [u8; 5] = [2, 0, 0, 1, 0];
const END: [u8; 4] = [4, 0, 0, 0];
const RESET: [u8; 4] = [5, 0, 0, 0];
const DONE: [u8; 4] = [6, 0, 0, 0];

fn request(target: SocketAddr) -> Vec<u8> {
    let SocketAddr::V4(target) = target else { panic!("IPv4 in these tests") };
    let mut frame = vec![1, 0, 0, 8, 1, 4];
    frame.extend(target.port().to_be_bytes());
    frame.extend(target.ip().octets());
    frame
}

fn data(bytes: &[u8]) -> Vec<u8> {
    let mut frame = vec![3, 0, 0, u8::try_from(bytes.len()).unwrap()];
    frame.extend(bytes);
    frame
}

/// A session that is not one of our agents', from `web`'s address.
async fn session(mesh: &Mesh, web: &Pod, to: SocketAddr) -> impl AsyncRead + AsyncWrite + Unpin + use<> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(web.ip, 0)).unwrap();
    let io = soon(socket.connect(to)).await.unwrap();
    let [own, expected, _] = accounts();
    let tls = Tls::new(mesh.ca.store(&accounts().each_ref()));
    soon(tls.connect(io, &own, &expected, &[b"mesh-raw/1"])).await.unwrap().0
}

async fn expect(io: &mut (impl AsyncRead + Unpin), expected: &[u8]) {
    let mut read = vec![0; expected.len()];
    soon(io.read_exact(&mut read)).await.unwrap();
    assert_eq!(read, expected);
}

async fn put(io: &mut (impl AsyncWrite + Unpin), frames: &[&[u8]]) {
    io.write_all(&frames.concat()).await.unwrap();
    io.flush().await.unwrap();
}

#[tokio::test]
async fn a_client_is_served_one_tunnel_after_the_other() {
    let mesh = Mesh::new();
    let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    let app = cart.listen();
    let mut peer = session(&mesh, &web, cart.tunnel()).await;
    for _ in 0..3 {
        // All at once: data may follow the request before the answer.
        put(&mut peer, &[&request(app.local_addr().unwrap()), &data(b"quest"), &data(b"ion"), &END]).await;
        let (mut server, seen) = soon(app.accept()).await.unwrap();
        assert_eq!(seen.ip(), web.ip, "the tunnel's source is the client");
        let mut question = Vec::new();
        soon(server.read_to_end(&mut question)).await.unwrap();
        assert_eq!(question, b"question");
        server.write_all(b"answer").await.unwrap();
        drop(server);
        expect(&mut peer, &[&REPLY_OK[..], &data(b"answer"), &END, &DONE].concat()).await;
    }
    let lines = mesh.b.log.wait(3).await;
    assert!(lines.iter().all(|line| line["outcome"] == "ok" && line["bytes_sent"] == 8), "{lines:#?}");
}

#[tokio::test]
async fn frames_may_come_a_byte_at_a_time() {
    let mesh = Mesh::new();
    let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    let app = cart.listen();
    let mut peer = session(&mesh, &web, cart.tunnel()).await;
    let all = [request(app.local_addr().unwrap()), data(b"slow"), END.to_vec()].concat();
    for byte in all {
        put(&mut peer, &[&[byte]]).await;
    }
    let (mut server, _) = soon(app.accept()).await.unwrap();
    let mut text = String::new();
    soon(server.read_to_string(&mut text)).await.unwrap();
    assert_eq!(text, "slow");
}

#[tokio::test]
async fn a_refusal_has_its_code_and_leaves_the_connection_usable() {
    let mesh = Mesh::new();
    let (web, cart, other) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"), mesh.pod(&mesh.b, "cart"));
    let foreign = other.listen();
    let mut peer = session(&mesh, &web, cart.tunnel()).await;
    let cases = [
        (foreign.local_addr().unwrap(), 1, "bad_target"),
        (SocketAddr::new(cart.ip, 15006), 1, "bad_target"),
        (cart.plaintext, 1, "bad_target"),
        (SocketAddr::new(cart.ip, 9), 4, "connect_refused"),
    ];
    for (count, (target, code, outcome)) in cases.into_iter().enumerate() {
        put(&mut peer, &[&request(target)]).await;
        expect(&mut peer, &[2, 0, 0, 1, code]).await;
        assert_eq!(mesh.b.log.wait(count + 1).await[count]["outcome"], outcome);
    }
    let app = cart.listen();
    put(&mut peer, &[&request(app.local_addr().unwrap())]).await;
    expect(&mut peer, &REPLY_OK).await;
}

#[tokio::test]
async fn whatever_is_not_an_end_is_a_reset_at_the_application() {
    for (name, frames, outcome) in [
        ("cut in a frame", vec![3, 0, 0, 9, b'x'], "tunnel_failed"),
        ("cut between frames", vec![3, 0, 0, 1, b'x'], "tunnel_failed"),
        ("reset", [&data(b"x")[..], &RESET].concat(), "app_reset"),
        ("reset after the end", [&data(b"x")[..], &END, &RESET].concat(), "app_reset"),
        ("data after the end", [&data(b"x")[..], &END, &data(b"y")].concat(), "tunnel_failed"),
        ("an unknown frame", [&data(b"x")[..], &[9, 0, 0, 0]].concat(), "tunnel_failed"),
        ("a request within", [&data(b"x")[..], &[1, 0, 0, 8]].concat(), "tunnel_failed"),
    ] {
        let mesh = Mesh::new();
        let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
        let app = cart.listen();
        let mut peer = session(&mesh, &web, cart.tunnel()).await;
        put(&mut peer, &[&request(app.local_addr().unwrap())]).await;
        expect(&mut peer, &REPLY_OK).await;
        let (server, _) = soon(app.accept()).await.unwrap();
        put(&mut peer, &[&frames]).await;
        let mut byte = [0];
        let mut server = server;
        soon(server.read_exact(&mut byte)).await.unwrap();
        if name.starts_with("cut") {
            drop(peer);
        }
        // Where the data had ended before, reading would only say so again.
        soon(server.ready(tokio::io::Interest::ERROR)).await.unwrap();
        let line = mesh.b.log.only().await;
        assert_eq!(line["outcome"], outcome, "{name}: {line:#}");
    }
}

#[tokio::test]
async fn a_reset_by_the_client_costs_the_tunnel_and_not_the_connection() {
    let mesh = Mesh::new();
    let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    let app = cart.listen();
    let mut peer = session(&mesh, &web, cart.tunnel()).await;
    for _ in 0..2 {
        put(&mut peer, &[&request(app.local_addr().unwrap()), &RESET]).await;
        expect(&mut peer, &[&REPLY_OK[..], &RESET, &DONE].concat()).await;
        let (mut server, _) = soon(app.accept()).await.unwrap();
        is_reset(&mut server).await;
    }
    // One that crosses the server's `done` is about nothing any more.
    put(&mut peer, &[&request(app.local_addr().unwrap()), &END]).await;
    drop(soon(app.accept()).await.unwrap());
    expect(&mut peer, &[&REPLY_OK[..], &END, &DONE].concat()).await;
    put(&mut peer, &[&RESET, &request(app.local_addr().unwrap())]).await;
    expect(&mut peer, &REPLY_OK).await;
}

#[tokio::test]
async fn a_reset_by_the_application_costs_the_tunnel_and_not_the_connection() {
    let mesh = Mesh::new();
    let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    let app = cart.listen();
    let mut peer = session(&mesh, &web, cart.tunnel()).await;
    put(&mut peer, &[&request(app.local_addr().unwrap())]).await;
    expect(&mut peer, &REPLY_OK).await;
    let (server, _) = soon(app.accept()).await.unwrap();
    server.set_zero_linger().unwrap();
    drop(server);
    expect(&mut peer, &RESET).await;
    // What was on its way is skipped, up to the client's own word.
    put(&mut peer, &[&data(b"too late"), &RESET]).await;
    expect(&mut peer, &DONE).await;
    put(&mut peer, &[&request(app.local_addr().unwrap())]).await;
    expect(&mut peer, &REPLY_OK).await;
}

/// A pod whose agent is this test.
struct Scripted {
    listener: TcpListener,
    tls: Tls,
    addr: SocketAddr,
}

impl Scripted {
    async fn new(mesh: &Mesh) -> Self {
        let ip = fresh_ip();
        let listener = TcpListener::bind((ip, TUNNEL_PORT)).await.unwrap();
        let mut cart = workload("cart", "uid-scripted".into(), "b", ip);
        cart.captured = Some(Captured { generation: 1, wire: RAW.iter().map(|alpn| (*alpn).into()).collect() });
        mesh.change(|parts| parts.workloads.push(Arc::new(cart)));
        let tls = Tls::new(mesh.ca.store(&accounts().each_ref()));
        Self { listener, tls, addr: SocketAddr::new(ip, 80) }
    }

    async fn accept(&self) -> crate::tls::ServerStream<TcpStream> {
        let (io, _) = soon(self.listener.accept()).await.unwrap();
        soon(self.tls.accept(io, &accounts()[1], &[b"mesh-raw/1"])).await.unwrap().0
    }

    /// Reads the next request and checks it byte by byte, but for the random trace.
    async fn request(&self, io: &mut (impl AsyncRead + Unpin)) {
        let expected = request(self.addr);
        let mut frame = vec![0; expected.len() + 27];
        soon(io.read_exact(&mut frame)).await.unwrap();
        assert_eq!(frame[..4], [1, 0, 0, 35]);
        assert_eq!(frame[4..expected.len()], expected[4..]);
        assert_eq!((frame[expected.len()..][..2].to_vec(), frame.last()), (vec![1, 25], Some(&0)));
    }
}

#[tokio::test]
async fn an_idle_connection_carries_the_next_tunnel_and_a_dead_one_does_not() {
    let mesh = Mesh::new();
    let web = mesh.pod(&mesh.a, "web");
    let cart = Scripted::new(&mesh).await;
    let mut kept = None;
    for count in 1..=2 {
        let mut client = web.connect(cart.addr).await;
        let mut io = match kept.take() {
            Some(io) => io,
            None => cart.accept().await,
        };
        cart.request(&mut io).await;
        put(&mut io, &[&REPLY_OK, &data(b"hi"), &END]).await;
        let mut text = String::new();
        soon(client.read_to_string(&mut text)).await.unwrap();
        assert_eq!(text, "hi");
        drop(client);
        expect(&mut io, &END).await;
        put(&mut io, &[&DONE]).await;
        mesh.a.log.wait(count).await;
        kept = Some(io);
    }
    drop(kept);
    let _client = web.connect(cart.addr).await;
    let mut io = cart.accept().await;
    cart.request(&mut io).await;
}

#[tokio::test]
async fn after_one_idle_connection_that_was_closed_no_other_is_tried() {
    let mesh = Mesh::new();
    let web = mesh.pod(&mesh.a, "web");
    let cart = Scripted::new(&mesh).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        let client = web.connect(cart.addr).await;
        let mut io = cart.accept().await;
        cart.request(&mut io).await;
        put(&mut io, &[&REPLY_OK]).await;
        open.push((client, io));
    }
    let mut idle = Vec::new();
    for (count, (client, mut io)) in (1..).zip(open) {
        drop(client);
        expect(&mut io, &END).await;
        put(&mut io, &[&END, &DONE]).await;
        mesh.a.log.wait(count).await;
        idle.push(io);
    }
    let _client = web.connect(cart.addr).await;
    // The one that came back last is used first. Its server drains, and has not come to the others yet.
    let mut last = idle.pop().unwrap();
    cart.request(&mut last).await;
    drop(last);
    let mut fresh = cart.accept().await;
    cart.request(&mut fresh).await;
}

#[tokio::test]
async fn a_connection_whose_server_is_not_done_is_not_used_again() {
    let mesh = Mesh::new();
    let web = mesh.pod(&mesh.a, "web");
    let cart = Scripted::new(&mesh).await;
    let client = web.connect(cart.addr).await;
    let mut busy = cart.accept().await;
    cart.request(&mut busy).await;
    put(&mut busy, &[&REPLY_OK, &END]).await;
    drop(client);
    expect(&mut busy, &END).await;
    assert_eq!(mesh.a.log.only().await["outcome"], "ok");
    // Its application still swallows what was sent: the next connection gets a tunnel of its own.
    let _client = web.connect(cart.addr).await;
    let mut other = cart.accept().await;
    cart.request(&mut other).await;
}

#[tokio::test]
async fn a_tunnel_that_was_reset_leaves_its_connection_to_the_next() {
    let mesh = Mesh::new();
    let web = mesh.pod(&mesh.a, "web");
    let cart = Scripted::new(&mesh).await;
    let client = web.connect(cart.addr).await;
    let mut io = cart.accept().await;
    cart.request(&mut io).await;
    put(&mut io, &[&REPLY_OK]).await;
    client.set_zero_linger().unwrap();
    drop(client);
    expect(&mut io, &RESET).await;
    put(&mut io, &[&data(b"too late"), &RESET, &DONE]).await;
    let mut client = web.connect(cart.addr).await;
    cart.request(&mut io).await;
    // This time it is the server's application.
    put(&mut io, &[&REPLY_OK, &RESET]).await;
    is_reset(&mut client).await;
    expect(&mut io, &RESET).await;
    put(&mut io, &[&DONE]).await;
    let _client = web.connect(cart.addr).await;
    cart.request(&mut io).await;
}

#[tokio::test]
async fn a_peer_that_does_not_agree_to_a_reset_loses_the_connection() {
    let mesh = Mesh::new();
    let web = mesh.pod(&mesh.a, "web");
    let cart = Scripted::new(&mesh).await;
    let client = web.connect(cart.addr).await;
    let mut io = cart.accept().await;
    cart.request(&mut io).await;
    put(&mut io, &[&REPLY_OK]).await;
    client.set_zero_linger().unwrap();
    drop(client);
    expect(&mut io, &RESET).await;
    let read = soon(io.read(&mut [0])).await;
    assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn whatever_is_not_an_end_is_a_reset_at_the_client() {
    for (name, frames, outcome) in [
        ("cut", data(b"half an ans"), "tunnel_failed"),
        ("reset", [&data(b"half an ans")[..], &RESET].concat(), "app_reset"),
        ("nonsense", [&data(b"half an ans")[..], &REPLY_OK].concat(), "tunnel_failed"),
    ] {
        let mesh = Mesh::new();
        let web = mesh.pod(&mesh.a, "web");
        let cart = Scripted::new(&mesh).await;
        let mut client = web.connect(cart.addr).await;
        let mut io = cart.accept().await;
        cart.request(&mut io).await;
        put(&mut io, &[&REPLY_OK, &frames]).await;
        let mut half = [0; 11];
        soon(client.read_exact(&mut half)).await.unwrap();
        drop(io);
        is_reset(&mut client).await;
        let line = mesh.a.log.only().await;
        assert_eq!(line["outcome"], outcome, "{name}: {line:#}");
    }
}

#[tokio::test]
async fn a_refusal_by_code_is_the_outcome_at_the_client() {
    for (code, outcome) in [(1, "bad_target"), (2, "denied"), (4, "connect_refused"), (99, "tunnel_failed")] {
        let mesh = Mesh::new();
        let web = mesh.pod(&mesh.a, "web");
        let cart = Scripted::new(&mesh).await;
        let mut client = web.connect(cart.addr).await;
        let mut io = cart.accept().await;
        cart.request(&mut io).await;
        put(&mut io, &[&[2, 0, 0, 1, code]]).await;
        is_reset(&mut client).await;
        let line = mesh.a.log.only().await;
        assert_eq!(line["outcome"], outcome, "{line:#}");
    }
}

#[tokio::test]
async fn a_slow_application_keeps_its_tunnel_to_itself_and_loses_nothing() {
    const LENGTH: usize = 8 << 20;
    let mesh = Mesh::new();
    let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    let app = cart.listen();
    let mut first = web.connect(app.local_addr().unwrap()).await;
    let (mut slow, _) = soon(app.accept()).await.unwrap();
    // The answer is over before the question: only then could the client's agent think that all is done.
    slow.shutdown().await.unwrap();
    let writing = tokio::spawn(async move {
        first.write_all(&vec![3; LENGTH]).await.unwrap();
        first.shutdown().await.unwrap();
    });
    let mut second = web.connect(app.local_addr().unwrap()).await;
    let (mut quick, _) = soon(app.accept()).await.unwrap();
    second.write_all(b"now").await.unwrap();
    let mut data = [0; 3];
    soon(quick.read_exact(&mut data)).await.unwrap();
    let mut all = Vec::new();
    soon(slow.read_to_end(&mut all)).await.unwrap();
    assert_eq!(all.len(), LENGTH);
    writing.await.unwrap();
}
