//! The CA's listener: TLS 1.3 with a certificate of its own root, HTTP/2, one gRPC method.
//!
//! Bounded in everything a stranger can send: connections, time, headers, message size.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::server::NoServerSessionStorage;
use rustls::{ServerConfig, version};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Context, Poll, Service};
use tonic::metadata::MetadataMap;
use zeroize::Zeroizing;

use super::super::authority::Authority;
use super::super::bundle::TrustBundle;
use super::super::chain;
use super::super::clock::{Clock, SystemClock, TlsTime};
use super::super::error::CertError;
use super::super::istio::{CREATE_CERTIFICATE, CertificateRequest, CertificateResponse, MESSAGE_MAX_BYTES, Protobuf};
use super::super::node::NodeIdentity;
use super::super::provider::provider;
use super::authorize::NodeAuthorizer;
use super::log_limit::LogLimit;
use super::node_verifier::NodeVerifier;
use super::own_cert::OwnCert;
use super::root_file;
use super::service::{CaService, Caller};
use super::tokens::JoinTokens;

/// Connections at once; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 256;
/// Time for a TLS handshake.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// Life of a connection without a node certificate: enough to join.
const STRANGER_LIFE: Duration = Duration::from_secs(20);
/// Life of a node's connection; our agents use one a call.
const NODE_LIFE: Duration = Duration::from_secs(300);
/// Requests at once on one connection, and the most header bytes of one.
const STREAMS_MAX: u32 = 16;
const HEADERS_MAX_BYTES: u32 = 16 * 1024;
/// Wait after a failed accept, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What `mesh-agent ca` is started with.
#[derive(Clone, Debug)]
pub struct CaServerSettings {
    /// Root, tokens: everything this process must not lose.
    pub state_dir: PathBuf,
    /// SPIFFE trust domain.
    pub trust_domain: String,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Host names and addresses by which agents reach it, besides the listen address.
    pub names: Vec<String>,
}

/// A CA that listens.
#[derive(Debug)]
pub struct CaServer {
    listener: TcpListener,
    service: Arc<CaService>,
    tls: Arc<ServerConfig>,
}

impl CaServer {
    /// Opens (or makes) the root, puts the roots to trust into [`super::ROOT_FILE`], and listens.
    ///
    /// # Errors
    /// [`CertError::StateDir`], [`CertError::Listen`], or [`CertError::Setting`] for a name that is none.
    pub async fn bind(settings: CaServerSettings, authorizer: Arc<dyn NodeAuthorizer>) -> Result<Self, CertError> {
        Self::bind_with_clock(settings, authorizer, Arc::new(SystemClock)).await
    }

    pub(super) async fn bind_with_clock(
        settings: CaServerSettings,
        authorizer: Arc<dyn NodeAuthorizer>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, CertError> {
        let mut names = settings.names;
        if !settings.listen.ip().is_unspecified() {
            names.push(settings.listen.ip().to_string());
        }
        if names.is_empty() {
            let reason = format!("listening on {} needs at least one --name by which agents reach it", settings.listen);
            return Err(CertError::Setting { reason });
        }
        let authority = Authority::open(&settings.state_dir, &settings.trust_domain, Arc::clone(&clock))?;
        let bundle = TrustBundle::new(authority.roots(), 0).map_err(|e| CertError::crypto("a trust bundle", e))?;
        let tokens = JoinTokens::open(&settings.state_dir, Arc::clone(&clock))?;
        let trust_domain: Arc<str> = settings.trust_domain.into();
        let service = Arc::new(CaService { authority, tokens, authorizer, trust_domain: Arc::clone(&trust_domain) });
        let own_cert = OwnCert::new(Arc::clone(&service), &names)?;
        let listener = TcpListener::bind(settings.listen)
            .await
            .map_err(|e| CertError::Listen { address: settings.listen, reason: e.to_string() })?;
        let mut config = ServerConfig::builder_with_details(provider(), Arc::new(TlsTime(clock)))
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|e| CertError::crypto("a TLS configuration", e))?
            .with_client_cert_verifier(Arc::new(NodeVerifier::new(bundle, trust_domain)))
            .with_cert_resolver(Arc::new(own_cert));
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        root_file::write(&settings.state_dir, service.authority.roots())?;
        Ok(Self { listener, service, tls: Arc::new(config) })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What the system call says.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` ends; requests under way then are cut off, and their callers ask again.
    pub async fn serve(self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        let limit = Arc::new(LogLimit::default());
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        loop {
            let accepted = async {
                let slot = Arc::clone(&slots).acquire_owned().await;
                (slot, self.listener.accept().await)
            };
            let (slot, accepted) = tokio::select! {
                () = &mut stop => return,
                Some(_) = connections.join_next() => continue,
                accepted = accepted => accepted,
            };
            match accepted {
                Ok((tcp, peer)) => {
                    let (tls, service, limit) =
                        (TlsAcceptor::from(Arc::clone(&self.tls)), Arc::clone(&self.service), Arc::clone(&limit));
                    connections.spawn(async move {
                        let _slot = slot;
                        connection(tls, service, limit, tcp, peer).await;
                    });
                }
                Err(error) => {
                    if let Some(suppressed) = limit.admit() {
                        tracing::warn!(%error, suppressed, "accept failed");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn connection(tls: TlsAcceptor, service: Arc<CaService>, limit: Arc<LogLimit>, tcp: TcpStream, peer: SocketAddr) {
    let stream = match tokio::time::timeout(HANDSHAKE_DEADLINE, tls.accept(tcp)).await {
        Ok(Ok(stream)) => stream,
        // A port scan or a health check: says nothing.
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => return,
        failed => {
            if let Some(suppressed) = limit.admit() {
                let reason =
                    failed.map_or_else(|e| e.to_string(), |r| r.err().map_or_else(String::new, |e| e.to_string()));
                tracing::warn!(%peer, reason, suppressed, "handshake refused");
            }
            return;
        }
    };
    // Verified in the handshake; read once more for the name.
    let node = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .and_then(|leaf| chain::node(leaf, &service.trust_domain).ok());
    let life = if node.is_some() { NODE_LIFE } else { STRANGER_LIFE };
    let requests = Requests { service, node, limit, peer };
    let answer = service_fn(move |request| {
        let requests = requests.clone();
        async move { Ok::<_, Infallible>(requests.answer(request).await) }
    });
    let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADERS_MAX_BYTES)
        .serve_connection(TokioIo::new(stream), answer);
    // How it ends is the client's business: every answer was given by then or will be asked for again.
    let _ = tokio::time::timeout(life, served).await;
}

/// The requests of one connection.
#[derive(Clone)]
struct Requests {
    service: Arc<CaService>,
    node: Option<NodeIdentity>,
    limit: Arc<LogLimit>,
    peer: SocketAddr,
}

impl Requests {
    async fn answer(self, request: http::Request<Incoming>) -> http::Response<Body> {
        if request.uri().path() != CREATE_CERTIFICATE {
            return Status::unimplemented(format!("only {CREATE_CERTIFICATE} is served")).into_http();
        }
        let codec = Protobuf::<CertificateResponse, CertificateRequest>::default();
        tonic::server::Grpc::new(codec).max_decoding_message_size(MESSAGE_MAX_BYTES).unary(self, request).await
    }

    fn caller(&self, metadata: &MetadataMap) -> Caller {
        let bearer = metadata
            .get("authorization")
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "));
        match (bearer, &self.node) {
            (Some(token), _) => Caller::Token(Zeroizing::new(token.to_owned())),
            (None, Some(node)) => Caller::Node(node.clone()),
            (None, None) => Caller::Nobody,
        }
    }
}

impl Service<tonic::Request<CertificateRequest>> for Requests {
    type Response = tonic::Response<CertificateResponse>;
    type Error = Status;
    type Future = BoxFuture<Self::Response, Status>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: tonic::Request<CertificateRequest>) -> Self::Future {
        let caller = self.caller(request.metadata());
        let answer = self.service.answer(&caller, request.get_ref()).map_err(|rejection| {
            if let Some(suppressed) = self.limit.admit() {
                let node = self.node.as_ref().map_or("-", |node| node.name().as_str());
                tracing::warn!(peer = %self.peer, node, reason = %rejection, suppressed, "request rejected");
            }
            Status::from(rejection)
        });
        Box::pin(std::future::ready(answer.map(tonic::Response::new)))
    }
}
