//! `mesh-raw/1` byte by byte, where the agent asks for tunnels: what a peer may answer, and when its connection is used
//! again.

use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::{TcpListener, TcpStream};

use super::raw::{DONE, END, REPLY_OK, RESET, data, expect, put, request};
use super::rig::{Mesh, Pod, RAW, accounts, is_reset, soon};
use crate::tls::Tls;

/// A pod whose agent is this test.
struct Scripted {
    listener: TcpListener,
    tls: Tls,
    addr: SocketAddr,
}

impl Scripted {
    async fn new(mesh: &Mesh) -> Self {
        let (listener, addr) = mesh.scripted(RAW).await;
        Self { listener, tls: Tls::new(mesh.ca.store(&accounts().each_ref())), addr }
    }

    async fn accept(&self) -> crate::tls::ServerStream<TcpStream> {
        let (io, _) = soon(self.listener.accept()).await.unwrap();
        soon(self.tls.accept(io, &accounts()[1], &[b"mesh-raw/1"])).await.unwrap().0
    }

    /// A connection of `web`'s, and the fresh one of its agent's whose request has been read.
    async fn asked(&self, web: &Pod) -> (TcpStream, crate::tls::ServerStream<TcpStream>) {
        let client = web.connect(self.addr).await;
        let mut io = self.accept().await;
        self.request(&mut io).await;
        (client, io)
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
    cart.asked(&web).await;
}

#[tokio::test]
async fn after_one_idle_connection_that_was_closed_no_other_is_tried() {
    let mesh = Mesh::new();
    let web = mesh.pod(&mesh.a, "web");
    let cart = Scripted::new(&mesh).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        let (client, mut io) = cart.asked(&web).await;
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
    let (client, mut busy) = cart.asked(&web).await;
    put(&mut busy, &[&REPLY_OK, &END]).await;
    drop(client);
    expect(&mut busy, &END).await;
    assert_eq!(mesh.a.log.only().await["outcome"], "ok");
    // Its application still swallows what was sent: the next connection gets a tunnel of its own.
    cart.asked(&web).await;
}

#[tokio::test]
async fn a_tunnel_that_was_reset_leaves_its_connection_to_the_next() {
    let mesh = Mesh::new();
    let web = mesh.pod(&mesh.a, "web");
    let cart = Scripted::new(&mesh).await;
    let (client, mut io) = cart.asked(&web).await;
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
    let (client, mut io) = cart.asked(&web).await;
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
        let (mut client, mut io) = cart.asked(&web).await;
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
        let (mut client, mut io) = cart.asked(&web).await;
        put(&mut io, &[&[2, 0, 0, 1, code]]).await;
        is_reset(&mut client).await;
        let line = mesh.a.log.only().await;
        assert_eq!(line["outcome"], outcome, "{line:#}");
    }
}
