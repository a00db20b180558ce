//! Applications and clients of HTTP/2, and frames that no library would send.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request, Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::rig::{Pod, soon};

/// An application that answers each request after a while, and counts them.
pub(super) struct App {
    pub(super) addr: SocketAddr,
    served: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
}

impl App {
    pub(super) fn start(pod: &Pod, status: StatusCode, takes: Duration) -> Self {
        let listener = pod.listen();
        let app = Self { addr: listener.local_addr().unwrap(), served: Arc::default(), connections: Arc::default() };
        let (served, connections) = (Arc::clone(&app.served), Arc::clone(&app.connections));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Relaxed);
                tokio::spawn(serve(stream, status, takes, Arc::clone(&served)));
            }
        });
        app
    }

    /// Requests answered.
    pub(super) fn served(&self) -> usize {
        self.served.load(Relaxed)
    }

    /// Connections accepted.
    pub(super) fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }
}

async fn serve(stream: TcpStream, status: StatusCode, takes: Duration, served: Arc<AtomicUsize>) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((_, mut respond))) = connection.accept().await {
        let served = Arc::clone(&served);
        tokio::spawn(async move {
            tokio::time::sleep(takes).await;
            served.fetch_add(1, Relaxed);
            let mut response = Response::new(());
            *response.status_mut() = status;
            let _ = respond.send_response(response, true);
        });
    }
}

/// A client on this connection.
pub(super) async fn client(stream: TcpStream) -> SendRequest<Bytes> {
    let (send, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    send
}

/// The head of the answer to a request with this header.
pub(super) async fn get(client: &SendRequest<Bytes>, name: &str, value: &str) -> (StatusCode, HeaderMap) {
    let request = Request::builder().uri("http://shop/").header(name, value).body(()).unwrap();
    let mut client = soon(client.clone().ready()).await.unwrap();
    let (answer, _) = client.send_request(request, true).unwrap();
    let (head, _) = soon(answer).await.unwrap().into_parts();
    (head.status, head.headers)
}

pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
pub(super) const CONTINUATION: u8 = 9;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// `GET http://c/`, by HPACK's static table.
pub(super) const GET: &[u8] = &[0x82, 0x84, 0x86, 0x41, 1, b'c'];

/// One frame (RFC 9113 §4.1).
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// What a client begins with.
pub(super) fn preface() -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, &[])].concat()
}

/// Waits until what was sent so far has been read.
pub(super) async fn read_so_far(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(&frame(PING, 0, 0, &[7; 8])).await?;
    loop {
        let (kind, flags, _) = read_frame(stream).await?;
        if (kind, flags) == (PING, ACK) {
            return Ok(());
        }
    }
}

/// The code of the GOAWAY that comes; `None`: the connection ends without one.
pub(super) async fn goaway(stream: &mut TcpStream) -> Option<u32> {
    loop {
        let (kind, _, payload) = soon(read_frame(stream)).await.ok()?;
        if kind == GOAWAY {
            return Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
        }
    }
}

async fn read_frame(stream: &mut TcpStream) -> std::io::Result<(u8, u8, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await?;
    let mut payload = vec![0; usize::try_from(u32::from_be_bytes([0, head[0], head[1], head[2]])).unwrap()];
    stream.read_exact(&mut payload).await?;
    Ok((head[3], head[4], payload))
}
