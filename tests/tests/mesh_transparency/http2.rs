//! HTTP/2 with prior knowledge, and what gRPC needs of it: both ends written out.

use std::future::{Future, poll_fn};
use std::pin::Pin;

use anyhow::{Context, Result, anyhow, ensure};
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use hyper::body::Bytes;
use mesh_tests::mesh::scenario;
use mesh_tests::scale;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::world::{Ends, Lane, REQUESTS, Transcript, WITHIN, World};

/// Streams at once, as one client may have them.
const MANY: usize = 1_000;

type Asked = (Request<RecvStream>, SendResponse<Bytes>);
type Case = (&'static str, fn(Pair) -> Pin<Box<dyn Future<Output = Result<Transcript>>>>);

/// Both ends of one connection.
struct Pair {
    client: SendRequest<Bytes>,
    ping: h2::PingPong,
    /// Every request, by whichever connection it comes.
    asked: UnboundedReceiver<Asked>,
    /// Told to every connection of the server's: no more requests.
    goaway: tokio::sync::watch::Sender<bool>,
}

const CASES: &[Case] = &[
    ("a call with metadata both ways and a status", |mut pair| {
        Box::pin(async move {
            let request = call("/shop.Cart/Add")
                .header("grpc-timeout", "5S")
                .header("x-bin", "\u{7f}".escape_default().to_string());
            let (response, mut body) = pair.send(request.header("te", "trailers"), false)?;
            body.send_data(message(b"ask"), true)?;
            let (request, mut answer) = pair.next().await?;
            let mut seen = vec![of_request(&request)];
            seen.push(whole(request.into_body()).await);
            let head = Response::builder().header("content-type", "application/grpc").header("x-from", "there");
            let mut stream = answer.send_response(head.body(())?, false)?;
            stream.send_data(message(b"told"), false)?;
            stream.send_trailers(status("0"))?;
            seen.push(answered(response).await);
            Ok(seen)
        })
    }),
    ("trailers only", |mut pair| {
        Box::pin(async move {
            let (response, _body) = pair.send(call("/shop.Cart/Add"), true)?;
            let (_, mut answer) = pair.next().await?;
            let head = Response::builder().header("grpc-status", "5").header("grpc-message", "not%20there");
            answer.send_response(head.body(())?, true)?;
            Ok(vec![answered(response).await])
        })
    }),
    ("HEAD, 204, 304 with a length", |mut pair| {
        Box::pin(async move {
            let mut seen = Vec::new();
            for (method, status, length) in [("HEAD", 200, Some("123")), ("GET", 204, None), ("GET", 304, Some("9"))] {
                let (response, _body) = pair.send(call("/a").method(method), true)?;
                let (request, mut answer) = pair.next().await?;
                seen.push(of_request(&request));
                let mut head = Response::builder().status(status);
                if let Some(length) = length {
                    head = head.header("content-length", length);
                }
                answer.send_response(head.body(())?, true)?;
                seen.push(answered(response).await);
            }
            Ok(seen)
        })
    }),
    ("messages to and fro on two streams, one after another", |mut pair| {
        Box::pin(async move {
            let mut streams = Vec::new();
            for path in ["/shop.Cart/Chat", "/shop.Cart/Talk"] {
                let (response, up) = pair.send(call(path), false)?;
                let (request, mut answer) = pair.next().await?;
                let down = answer.send_response(Response::new(()), false)?;
                streams.push((response.await?.into_body(), up, request.into_body(), down));
            }
            let mut seen = Vec::new();
            for round in 0..10 {
                for (client, up, server, down) in &mut streams {
                    up.send_data(message(&[round]), false)?;
                    seen.push(next(server).await?);
                    down.send_data(message(&[round, round]), false)?;
                    seen.push(next(client).await?);
                }
            }
            for (client, mut up, mut server, mut down) in streams {
                up.send_data(Bytes::new(), true)?;
                seen.push(format!("{:?}", server.data().await.transpose()?.filter(|data| !data.is_empty())));
                down.send_trailers(status("0"))?;
                seen.push(whole(client).await);
            }
            Ok(seen)
        })
    }),
    ("a stream that the server resets before it answers", |pair| Box::pin(resets_by_server(pair, false))),
    ("a stream that the server resets after it has begun to answer", |pair| Box::pin(resets_by_server(pair, true))),
    ("a stream that the client resets", |mut pair| {
        Box::pin(async move {
            let mut seen = Vec::new();
            for reason in [Reason::CANCEL, Reason::NO_ERROR, Reason::INTERNAL_ERROR] {
                let (response, mut up) = pair.send(call("/a"), false)?;
                let (request, mut answer) = pair.next().await?;
                let mut body = request.into_body();
                up.send_data(message(b"x"), false)?;
                seen.push(next(&mut body).await?);
                let mut down = answer.send_response(Response::new(()), false)?;
                response.await?;
                up.send_reset(reason);
                // Who sends is told as well as who reads.
                poll_fn(|cx| down.poll_reset(cx)).await?;
                seen.push(matches!(body.data().await, Some(Err(_))).to_string());
            }
            Ok(seen)
        })
    }),
    ("an answer before the request has ended", |mut pair| {
        Box::pin(async move {
            let (response, mut up) = pair.send(call("/a"), false)?;
            up.send_data(message(b"some"), false)?;
            let (request, mut answer) = pair.next().await?;
            let mut body = request.into_body();
            let mut seen = vec![next(&mut body).await?];
            answer.send_response(Response::builder().status(413).body(())?, true)?;
            seen.push(answered(response).await);
            Ok(seen)
        })
    }),
    ("metadata of 60 KiB", |mut pair| {
        Box::pin(async move {
            let mut request = call("/a");
            for number in 0..60 {
                request = request.header(format!("x-{number}"), "y".repeat(1000));
            }
            let (response, _body) = pair.send(request, true)?;
            let (request, mut answer) = pair.next().await?;
            let mut head = Response::builder();
            for (name, value) in request.headers() {
                head = head.header(name, value);
            }
            answer.send_response(head.body(())?, true)?;
            let head = response.await?;
            Ok(vec![format!("{} there, {} back", request.headers().len(), head.headers().len())])
        })
    }),
    ("many streams at once", |mut pair| {
        Box::pin(async move {
            let mut responses = Vec::new();
            let mut asked = Vec::new();
            for number in 0..MANY {
                responses.push(pair.send(call(&format!("/{number}")), true)?.0);
                asked.push(pair.next().await?);
            }
            let paths = asked.len();
            for (request, mut answer) in asked.into_iter().rev() {
                let head = Response::builder().header("x-path", request.uri().path());
                answer.send_response(head.body(())?, true)?;
            }
            let mut right = 0;
            for (number, response) in responses.into_iter().enumerate() {
                right += usize::from(response.await?.headers()["x-path"] == format!("/{number}"));
            }
            Ok(vec![format!("{paths} at once, {right} answered")])
        })
    }),
    ("a slow stream and its neighbour", |mut pair| {
        Box::pin(async move {
            let (slow, _up) = pair.send(call("/slow"), true)?;
            let (_, mut answer) = pair.next().await?;
            let mut stream = answer.send_response(Response::new(()), false)?;
            let bytes = scale::pick(4 << 20, 64 << 20);
            // Nobody reads it: flow control holds it back.
            stream.send_data(vec![b'x'; bytes].into(), true)?;
            let slow = slow.await?.into_body();
            let mut seen = Vec::new();
            for number in 0..10 {
                let (response, _up) = pair.send(call(&format!("/{number}")), true)?;
                let (_, mut answer) = pair.next().await?;
                answer.send_response(Response::new(()), false)?.send_data(message(&[number; 3]), true)?;
                seen.push(answered(response).await);
            }
            seen.push(format!("{} bytes at last", whole(slow).await.len()));
            Ok(seen)
        })
    }),
    ("a ping", |mut pair| {
        Box::pin(async move {
            // All of the pair: its connection lives as long as it.
            let pair = &mut pair;
            pair.ping.ping(h2::Ping::opaque()).await?;
            Ok(vec!["answered".to_owned()])
        })
    }),
];

#[test]
fn streams_of_http2_are_what_they_are_without_the_mesh() -> Result<()> {
    scenario(|mesh| {
        let world = World::new(mesh)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let cases = CASES.iter().map(|(name, case)| {
            (*name, |ends: &mut Ends<'_>| -> Result<Transcript> {
                runtime.block_on(async { within(async { case(Pair::of(ends).await?).await }).await })
            })
        });
        world.same(REQUESTS, &[0], cases)?;
        for lane in [Lane::Http, Lane::HttpNear] {
            let mut ends = world.way(lane)?.open(0)?;
            runtime.block_on(within(goaway_drains(&mut ends))).with_context(|| format!("GOAWAY, {lane:?}"))?;
            let mut ends = world.way(lane)?.open(0)?;
            runtime.block_on(within(extended_connect_is_not_offered(&mut ends)))?;
        }
        Ok(())
    })
}

async fn within<T>(what: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(WITHIN * 2, what).await.context("it hangs")?
}

/// What is under way ends in order; what comes then goes by another connection, and the client notices neither.
async fn goaway_drains(ends: &mut Ends<'_>) -> Result<()> {
    let mut pair = Pair::of(ends).await?;
    let (first, _up) = pair.send(call("/first"), true)?;
    let (_, mut answer) = pair.next().await?;
    let mut down = answer.send_response(Response::new(()), false)?;
    let mut first = first.await?.into_body();
    pair.goaway.send(true)?;
    // The next one comes by another connection.
    let listener = ends.way.listener()?;
    let accepted = async move { tokio::net::TcpListener::from_std(listener)?.accept().await.map(|(stream, _)| stream) };
    let (goaway, _) = tokio::sync::watch::channel(false);
    let (tell, asked) = unbounded_channel();
    let (second, _up) = pair.send(call("/second"), true)?;
    let server = accepted.await?;
    tokio::spawn(serve(server, tell, goaway.subscribe()));
    pair.asked = asked;
    let (request, mut answer) = pair.next().await?;
    ensure!(request.uri().path() == "/second", "{}", request.uri());
    answer.send_response(Response::new(()), true)?;
    ensure!(second.await?.status() == 200, "the second one fails");
    down.send_data(message(b"late"), true)?;
    let late = next(&mut first).await?;
    ensure!(late.contains("late"), "{late}");
    Ok(())
}

/// RFC 8441 is not served: a client that asks whether it is gets no for an answer.
async fn extended_connect_is_not_offered(ends: &mut Ends<'_>) -> Result<()> {
    let mut pair = Pair::of(ends).await?;
    let (response, _up) = pair.send(call("/a"), true)?;
    let (_, mut answer) = pair.next().await?;
    answer.send_response(Response::new(()), true)?;
    response.await?;
    ensure!(!pair.client.is_extended_connect_protocol_enabled(), "extended CONNECT is offered");
    Ok(())
}

async fn resets_by_server(mut pair: Pair, begun: bool) -> Result<Transcript> {
    let mut seen = Vec::new();
    for reason in
        [Reason::CANCEL, Reason::INTERNAL_ERROR, Reason::ENHANCE_YOUR_CALM, Reason::REFUSED_STREAM, Reason::from(4711)]
    {
        let (response, _up) = pair.send(call("/a").method("POST"), true)?;
        let (_, mut answer) = pair.next().await?;
        if begun {
            let mut down = answer.send_response(Response::new(()), false)?;
            down.send_data(message(b"x"), false)?;
            let mut body = response.await?.into_body();
            seen.push(next(&mut body).await?);
            down.send_reset(reason);
            seen.push(whole(body).await);
        } else {
            answer.send_reset(reason);
            seen.push(answered(response).await);
        }
    }
    Ok(seen)
}

impl Pair {
    async fn of(ends: &mut Ends<'_>) -> Result<Self> {
        let server = ends.accept()?;
        let (client, server) = (tokio_stream(ends.client.try_clone()?)?, tokio_stream(server)?);
        let (tell, asked) = unbounded_channel();
        let (goaway, told) = tokio::sync::watch::channel(false);
        tokio::spawn(serve(server, tell, told));
        let (client, mut connection) = h2::client::Builder::new()
            .max_header_list_size(1 << 20)
            // One stream that nobody reads must leave room for others.
            .initial_connection_window_size(1 << 20)
            .handshake(client)
            .await?;
        let ping = connection.ping_pong().context("no ping")?;
        tokio::spawn(connection);
        Ok(Self { client, ping, asked, goaway })
    }

    fn send(&mut self, request: http::request::Builder, ends: bool) -> Result<(ResponseFuture, SendStream<Bytes>)> {
        Ok(self.client.send_request(request.body(())?, ends)?)
    }

    async fn next(&mut self) -> Result<Asked> {
        self.asked.recv().await.context("the server's connection has ended")
    }
}

fn tokio_stream(stream: std::net::TcpStream) -> Result<tokio::net::TcpStream> {
    stream.set_nonblocking(true)?;
    Ok(tokio::net::TcpStream::from_std(stream)?)
}

async fn serve(
    stream: tokio::net::TcpStream,
    tell: tokio::sync::mpsc::UnboundedSender<Asked>,
    mut goaway: tokio::sync::watch::Receiver<bool>,
) -> Result<()> {
    let mut builder = h2::server::Builder::new();
    builder.max_header_list_size(1 << 20).max_concurrent_streams(MANY as u32 + 1).max_send_buffer_size(1 << 30);
    let mut connection = builder.enable_connect_protocol().handshake(stream).await?;
    loop {
        tokio::select! {
            Ok(()) = goaway.changed() => connection.graceful_shutdown(),
            asked = connection.accept() => match asked {
                Some(asked) => tell.send(asked?).map_err(|_| anyhow!("nobody listens"))?,
                None => return Ok(()),
            },
        }
    }
}

fn call(path: &str) -> http::request::Builder {
    Request::builder().method("POST").uri(format!("http://shop.example{path}"))
}

/// A message of gRPC: not compressed, its length, its bytes.
fn message(bytes: &[u8]) -> Bytes {
    [&[0][..], &(bytes.len() as u32).to_be_bytes(), bytes].concat().into()
}

fn status(code: &str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", code.parse().unwrap_or_else(|_| http::HeaderValue::from_static("2")));
    trailers.insert("x-after", http::HeaderValue::from_static("all"));
    trailers
}

fn of_request(request: &Request<RecvStream>) -> String {
    format!("{} {} {:?}", request.method(), request.uri(), sorted(request.headers()))
}

fn sorted(headers: &HeaderMap) -> Vec<String> {
    let mut lines: Vec<String> = headers.iter().map(|(name, value)| format!("{name}: {value:?}")).collect();
    lines.sort();
    lines
}

async fn next(body: &mut RecvStream) -> Result<String> {
    let data = body.data().await.context("the body has ended")??;
    body.flow_control().release_capacity(data.len())?;
    Ok(data.escape_ascii().to_string())
}

/// All of a body, its trailers, and how it ended.
async fn whole(mut body: RecvStream) -> String {
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        match data {
            Ok(data) => {
                let _ = body.flow_control().release_capacity(data.len());
                bytes.extend(data);
            }
            Err(error) => return format!("{} and then {:?}", bytes.escape_ascii(), error.reason()),
        }
    }
    match body.trailers().await {
        Ok(trailers) => format!("{} {:?}", bytes.escape_ascii(), trailers.as_ref().map(sorted)),
        Err(error) => format!("{} and then {:?}", bytes.escape_ascii(), error.reason()),
    }
}

async fn answered(response: ResponseFuture) -> String {
    match response.await {
        Ok(response) => {
            let head = format!("{} {:?}", response.status(), sorted(response.headers()));
            format!("{head} {}", whole(response.into_body()).await)
        }
        Err(error) => format!("no answer, but {:?}", error.reason()),
    }
}
