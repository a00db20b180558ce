//! `mesh-raw/1` byte by byte, as its documentation says it and not as the code writes it.

use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpSocket;

use super::rig::{Mesh, Pod, accounts, is_reset, soon};
use crate::tls::Tls;

pub(super) const REPLY_OK: [u8; 5] = [2, 0, 0, 1, 0];
pub(super) const END: [u8; 4] = [4, 0, 0, 0];
pub(super) const RESET: [u8; 4] = [5, 0, 0, 0];
pub(super) const DONE: [u8; 4] = [6, 0, 0, 0];

pub(super) fn request(target: SocketAddr) -> Vec<u8> {
    let SocketAddr::V4(target) = target else { panic!("IPv4 in these tests") };
    let mut frame = vec![1, 0, 0, 8, 1, 4];
    frame.extend(target.port().to_be_bytes());
    frame.extend(target.ip().octets());
    frame
}

pub(super) fn data(bytes: &[u8]) -> Vec<u8> {
    let [_, length @ ..] = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    [&[3], &length[..], bytes].concat()
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

pub(super) async fn expect(io: &mut (impl AsyncRead + Unpin), expected: &[u8]) {
    let mut read = vec![0; expected.len()];
    soon(io.read_exact(&mut read)).await.unwrap();
    assert_eq!(read, expected);
}

pub(super) async fn put(io: &mut (impl AsyncWrite + Unpin), frames: &[&[u8]]) {
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
async fn frames_behind_the_one_that_tells_the_protocol_are_not_lost() {
    let mesh = Mesh::new();
    let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    let app = cart.listen();
    mesh.policy(super::http::no_admin());
    let mut peer = session(&mesh, &web, cart.tunnel()).await;
    put(&mut peer, &[&request(app.local_addr().unwrap())]).await;
    expect(&mut peer, &REPLY_OK).await;
    let (mut server, _) = soon(app.accept()).await.unwrap();
    let body: Vec<u8> = (0..60_000).map(|n: u32| n.to_le_bytes()[0]).collect();
    let head = format!("POST / HTTP/1.1\r\nHost: cart\r\nContent-Length: {}\r\n\r\n", body.len());
    put(&mut peer, &[&data(head.as_bytes()), &data(&body)]).await;
    soon(super::http::read_head(&mut server)).await.unwrap();
    expect(&mut server, &body).await;
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
