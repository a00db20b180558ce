//! HTTP over the cluster: connections accepted, requests read, watches fed.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use http::{Response, header};
use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockAddr, Socket};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Duration, sleep};

use super::cluster::{Cluster, DeleteOptions, harness};
use super::exec::{self, Containers, Exec};
use super::failure::Failure;
use super::faults::Knobs;
use super::feed::{self, Body};
use super::request::{Place, Request, Upgrade, query};
use super::rest::{self, Around, Outcome};
use super::secure::Identity;
use super::time::now;

/// As many connections as the system lets wait.
const BACKLOG: i32 = 1024;
/// How long the server's own thread may take to notice that it is to stop listening.
const LET_GO: Duration = Duration::from_secs(20);

/// What connections and tests share.
#[derive(Debug)]
pub struct Shared {
    cluster: Mutex<Cluster>,
    knobs: Mutex<Knobs>,
    sockets: Vec<(Socket, SockAddr)>,
    /// By which clients that want TLS know it.
    identity: Identity,
    /// Counted up with each change of the cluster.
    changed: watch::Sender<u64>,
    /// Counted up when all watches are cut.
    watches: watch::Sender<u64>,
    /// Counted up when all connections are cut.
    connections: watch::Sender<u64>,
    listening: watch::Sender<bool>,
    /// Listeners that a runtime knows.
    accepting: AtomicUsize,
    containers: Mutex<Containers>,
}

impl Shared {
    /// A new cluster behind `sockets`, which listen.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(sockets: Vec<std::net::TcpListener>) -> Result<Self> {
        let bound = |socket: std::net::TcpListener| {
            socket.set_nonblocking(true)?;
            let socket = Socket::from(socket);
            let address = socket.local_addr()?;
            Ok((socket, address))
        };
        let sockets: Vec<(Socket, SockAddr)> = sockets.into_iter().map(bound).collect::<io::Result<_>>()?;
        let identity = Identity::new(sockets.iter().filter_map(|(_, address)| address.as_socket()))?;
        Ok(Self {
            cluster: Mutex::new(Cluster::new()),
            knobs: Mutex::default(),
            sockets,
            identity,
            changed: watch::Sender::new(0),
            watches: watch::Sender::new(0),
            connections: watch::Sender::new(0),
            listening: watch::Sender::new(true),
            accepting: AtomicUsize::new(0),
            containers: Mutex::default(),
        })
    }

    /// The cluster.
    pub fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What goes wrong.
    pub fn knobs(&self) -> MutexGuard<'_, Knobs> {
        self.knobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What runs in pods.
    pub fn containers(&self) -> MutexGuard<'_, Containers> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it listens.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.sockets.iter().filter_map(|(_, address)| address.as_socket())
    }

    /// Its certificate.
    pub fn certificate(&self) -> &str {
        &self.identity.pem
    }

    /// Lets all watches look for changes.
    pub fn wake_watches(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Counts what wakes the watches.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Counts what cuts the watches.
    pub fn watch_cuts(&self) -> watch::Receiver<u64> {
        self.watches.subscribe()
    }

    /// Cuts all watches.
    pub fn cut_watches(&self) {
        self.watches.send_modify(|count| *count += 1);
    }

    /// Cuts all connections.
    pub fn cut_connections(&self) {
        self.connections.send_modify(|count| *count += 1);
    }

    /// The sockets stay bound, and what connects is refused.
    pub fn stop_listening(&self) -> io::Result<()> {
        if !self.listening.send_replace(false) {
            return Ok(());
        }
        // A listener that is still registered would see the shutdown, and take it for its end for ever.
        let let_go = || self.accepting.load(Ordering::SeqCst) == 0;
        crate::wait::until("the listeners are let go", LET_GO, || {
            crate::wait::holds(let_go(), || "they are not".to_owned())
        })
        .map_err(io::Error::other)?;
        for (socket, address) in &self.sockets {
            socket.shutdown(std::net::Shutdown::Both)?;
            // A port that the system chose is given back by this; one that was asked for is not, and stays bound.
            match socket.bind(address) {
                Err(error) if error.raw_os_error() != Some(nix::libc::EINVAL) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// The sockets listen again.
    pub fn listen(&self) -> io::Result<()> {
        for (socket, _) in &self.sockets {
            socket.listen(BACKLOG)?;
        }
        self.listening.send_replace(true);
        Ok(())
    }
}

/// Serves until dropped.
pub async fn serve(shared: Arc<Shared>) {
    let mut tasks = tokio::task::JoinSet::new();
    for place in 0..shared.sockets.len() {
        tasks.spawn(accept(Arc::clone(&shared), place));
    }
    while tasks.join_next().await.is_some() {}
}

async fn accept(shared: Arc<Shared>, place: usize) {
    let mut listening = shared.listening.subscribe();
    let mut stop = shared.listening.subscribe();
    while listening.wait_for(|&listening| listening).await.is_ok() {
        let Some((socket, _)) = shared.sockets.get(place) else { return };
        // Counted first, and looked at afterwards: whoever stops it meanwhile sees one of both. Dropped last.
        let _counted = Counted::new(&shared.accepting);
        if !*shared.listening.borrow() {
            continue;
        }
        let copy = socket.try_clone().and_then(|socket| TcpListener::from_std(socket.into()));
        let Ok(listener) = copy else { return };
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        tokio::spawn(connection(Arc::clone(&shared), stream));
                    }
                    // The system has no descriptor left for now.
                    Err(_) => {
                        sleep(Duration::from_millis(5)).await;
                        break;
                    }
                },
                stopped = stopped(&mut stop) => {
                    if !stopped {
                        return;
                    }
                    break;
                }
            }
        }
    }
}

/// One listener that is registered with the runtime, or about to be.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn connection(shared: Arc<Shared>, stream: TcpStream) {
    let mut cut = shared.connections.subscribe();
    let mut listening = shared.listening.subscribe();
    let _ = stream.set_nodelay(true);
    let stream = tokio::select! {
        opened = shared.identity.open(stream) => match opened {
            Ok(stream) => stream,
            // It was none of ours, or is gone.
            Err(_) => return,
        },
        _ = cut.changed() => return,
    };
    let service = service_fn(|request| {
        let shared = Arc::clone(&shared);
        async move {
            let response = respond(Arc::clone(&shared), request).await;
            *shared.knobs().answered.entry(response.status().as_u16()).or_default() += 1;
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let server = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut server = std::pin::pin!(server);
    let mut is_stopped = false;
    loop {
        tokio::select! {
            _ = server.as_mut() => return,
            _ = cut.changed() => return,
            _ = stopped(&mut listening), if !is_stopped => {
                is_stopped = true;
                server.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Waits until the server does not listen; false when it has ended.
async fn stopped(listening: &mut watch::Receiver<bool>) -> bool {
    listening.wait_for(|&listening| !listening).await.is_ok()
}

async fn respond(shared: Arc<Shared>, mut incoming: http::Request<Incoming>) -> Response<Body> {
    let upgrade = hyper::upgrade::on(&mut incoming);
    let request = match read(incoming).await {
        Ok(request) => request,
        Err(failure) => return refusal(&failure),
    };
    let (latency, failing, nobody) = {
        let mut knobs = shared.knobs();
        (knobs.latency, knobs.failure(&request.path), knobs.tokens_required && request.token.is_none())
    };
    if !latency.is_zero() {
        sleep(latency).await;
    }
    if let Some(code) = failing {
        let reason = if code == 503 { "ServiceUnavailable" } else { "InternalError" };
        return refusal(&Failure::new(code, reason, "a fault of the test"));
    }
    if nobody {
        return refusal(&Failure::new(401, "Unauthorized", "Unauthorized"));
    }
    let outcome = {
        let (forbidden, containers) = (shared.knobs().forbidden.clone(), shared.containers().clone());
        let around = Around { forbidden: &forbidden, containers: &containers };
        let mut cluster = shared.cluster();
        let before = cluster.store.version();
        let outcome = rest::answer(&mut cluster, &request, &around, now());
        if cluster.store.version() != before {
            shared.wake_watches();
        }
        outcome
    };
    match outcome {
        Ok(Outcome::Answer(code, text)) => whole(code, "application/json", text),
        Ok(Outcome::Going(text, place, uid, after)) => {
            tokio::spawn(end_of_grace(shared, *place, uid, after));
            whole(200, "application/json", text)
        }
        Ok(Outcome::Watch(watch)) => {
            let mut response = Response::new(feed::start(shared, *watch));
            let json = header::HeaderValue::from_static("application/json");
            response.headers_mut().insert(header::CONTENT_TYPE, json);
            response
        }
        Ok(Outcome::Exec(exec)) => switch(*exec, upgrade),
        Ok(Outcome::Nowhere) => whole(404, "text/plain; charset=utf-8", b"404 page not found\n".to_vec()),
        Err(failure) => refusal(&failure),
    }
}

/// From here on it is WebSocket.
fn switch(exec: Exec, upgrade: OnUpgrade) -> Response<Body> {
    let mut response = whole(101, "text/plain", Vec::new());
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_TYPE);
    headers.insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, header::HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, header::HeaderValue::from_static(exec.protocol));
    if let Ok(accept) = header::HeaderValue::from_str(&exec.accept) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    tokio::spawn(exec::serve(exec, upgrade));
    response
}

/// What kubelet does when the containers of a pod have ended.
async fn end_of_grace(shared: Arc<Shared>, place: Place, uid: String, after: Duration) {
    sleep(after).await;
    let key = (place.namespace.unwrap_or_default(), place.name.unwrap_or_default());
    let change = harness(&place.kind, key, now());
    let options = DeleteOptions { grace_seconds: Some(0), uid: Some(uid), version: None };
    // It may be gone already.
    let _ = shared.cluster().delete(&change, &options);
    shared.wake_watches();
}

async fn read(incoming: http::Request<Incoming>) -> Result<Request, Failure> {
    let (head, body) = incoming.into_parts();
    let text = |name: header::HeaderName| {
        let values = head.headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.collect::<Vec<_>>().join(",")
    };
    let body = body.collect().await.map_err(|error| Failure::bad_request(error.to_string()))?;
    Ok(Request {
        method: head.method.to_string(),
        path: head.uri.path().to_owned(),
        query: query(head.uri.query().unwrap_or_default()),
        accept: text(header::ACCEPT),
        content_type: text(header::CONTENT_TYPE),
        user_agent: text(header::USER_AGENT),
        token: text(header::AUTHORIZATION).strip_prefix("Bearer ").map(str::to_owned),
        body: body.to_bytes().to_vec(),
        query_text: head.uri.query().unwrap_or_default().to_owned(),
        upgrade: text(header::UPGRADE)
            .eq_ignore_ascii_case("websocket")
            .then(|| Upgrade { key: text(header::SEC_WEBSOCKET_KEY), protocols: text(header::SEC_WEBSOCKET_PROTOCOL) }),
    })
}

fn refusal(failure: &Failure) -> Response<Body> {
    whole(failure.code, "application/json", failure.status().to_string().into_bytes())
}

fn whole(code: u16, media: &'static str, text: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(feed::whole(Bytes::from(text)));
    *response.status_mut() = http::StatusCode::from_u16(code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(media));
    response
}
