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
use super::super::ca::WORKLOAD_TTL_MAX;
use super::super::chain;
use super::super::clock::{Clock, SystemClock, TlsTime};
use super::super::error::CertError;
use super::super::istio::{CREATE_CERTIFICATE, CertificateRequest, CertificateResponse, MESSAGE_MAX_BYTES, Protobuf};
use super::super::node::NodeIdentity;
use super::super::provider::provider;
use super::agent_login::AgentLogin;
use super::audit::Audit;
use super::authorize::NodeAuthorizer;
use super::in_force::RootInForce;
use super::node_verifier::NodeVerifier;
use super::own_cert::OwnCert;
use super::root_file;
use super::service::{CaService, Caller, Login, response};
use super::tokens::JoinTokens;
use crate::telemetry::CaMetrics;

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
#[derive(Debug)]
pub struct CaServerSettings {
    /// SPIFFE trust domain.
    pub trust_domain: String,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Host names and addresses by which agents reach it, besides the listen address.
    pub names: Vec<String>,
    /// Longest life of a workload's certificate; at most [`WORKLOAD_TTL_MAX`].
    pub max_ttl: Duration,
    /// Where the root is, and how callers prove themselves.
    pub setting: CaSetting,
}

/// Where a CA serves.
#[derive(Debug)]
pub enum CaSetting {
    /// Anywhere: root and join tokens are in this state directory.
    Alone(PathBuf),
    /// In a cluster.
    Cluster(RootInForce, AgentLogin),
}

/// A CA that listens.
#[derive(Debug)]
pub struct CaServer {
    listener: TcpListener,
    service: Arc<CaService>,
    tls: Arc<ServerConfig>,
    audit: Arc<Audit>,
}

impl CaServer {
    /// Listens. Stand-alone, it first opens (or makes) the root and puts the roots to trust into [`super::ROOT_FILE`].
    ///
    /// # Errors
    /// [`CertError::StateDir`], [`CertError::Listen`], or [`CertError::Setting`] for a name that is none.
    pub async fn bind(
        settings: CaServerSettings,
        authorizer: Arc<dyn NodeAuthorizer>,
        metrics: CaMetrics,
    ) -> Result<Self, CertError> {
        Self::bind_with_clock(settings, authorizer, metrics, Arc::new(SystemClock)).await
    }

    pub(super) async fn bind_with_clock(
        settings: CaServerSettings,
        authorizer: Arc<dyn NodeAuthorizer>,
        metrics: CaMetrics,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, CertError> {
        let CaServerSettings { trust_domain, listen, mut names, max_ttl, setting } = settings;
        if !listen.ip().is_unspecified() {
            names.push(listen.ip().to_string());
        }
        if names.is_empty() {
            let reason = format!("listening on {listen} needs at least one --name by which agents reach it");
            return Err(CertError::Setting { reason });
        }
        let state_dir = if let CaSetting::Alone(dir) = &setting { Some(dir.clone()) } else { None };
        let (root, login) = match setting {
            CaSetting::Alone(dir) => {
                let authority = Authority::open(&dir, &trust_domain, Arc::clone(&clock))?;
                (RootInForce::new(authority), Login::Join(JoinTokens::open(&dir, Arc::clone(&clock))?))
            }
            CaSetting::Cluster(root, login) => (root, Login::Agents(login)),
        };
        let trust_domain: Arc<str> = trust_domain.into();
        let own_cert = OwnCert::new(root.clone(), &names)?;
        let listener = TcpListener::bind(listen)
            .await
            .map_err(|e| CertError::Listen { address: listen, reason: e.to_string() })?;
        let config = ServerConfig::builder_with_details(provider(), Arc::new(TlsTime(clock)))
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|e| CertError::crypto("a TLS configuration", e))?;
        let config = match &login {
            Login::Join(_) => {
                let roots = root.load();
                let bundle = TrustBundle::new(roots.roots(), 0).map_err(|e| CertError::crypto("a trust bundle", e))?;
                config.with_client_cert_verifier(Arc::new(NodeVerifier::new(bundle, Arc::clone(&trust_domain))))
            }
            Login::Agents(_) => config.with_no_client_auth(),
        };
        let mut config = config.with_cert_resolver(Arc::new(own_cert));
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        if let Some(dir) = state_dir {
            root_file::write(&dir, root.load().roots())?;
        }
        let max_ttl = max_ttl.min(WORKLOAD_TTL_MAX);
        let service = Arc::new(CaService { root, login, authorizer, trust_domain, max_ttl });
        Ok(Self { listener, service, tls: Arc::new(config), audit: Arc::new(Audit::new(metrics)) })
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
                    let (tls, service, audit) =
                        (TlsAcceptor::from(Arc::clone(&self.tls)), Arc::clone(&self.service), Arc::clone(&self.audit));
                    connections.spawn(async move {
                        let _slot = slot;
                        connection(tls, service, audit, tcp, peer).await;
                    });
                }
                Err(error) => {
                    self.audit.accept_failed(&error);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn connection(tls: TlsAcceptor, service: Arc<CaService>, audit: Arc<Audit>, tcp: TcpStream, peer: SocketAddr) {
    let stream = match tokio::time::timeout(HANDSHAKE_DEADLINE, tls.accept(tcp)).await {
        Ok(Ok(stream)) => stream,
        // A port scan or a health check: says nothing.
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => return,
        failed => {
            let reason = failed.map_or_else(|e| e.to_string(), |r| r.err().map_or_else(String::new, |e| e.to_string()));
            audit.handshake_refused(peer, &reason);
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
    let requests = Requests { service, node, audit, peer };
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
    audit: Arc<Audit>,
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
        let Self { service, audit, peer, .. } = self.clone();
        Box::pin(async move {
            let answer = service.serve(caller, request.get_ref()).await;
            audit.record(peer, &answer);
            answer.result.map(|signed| tonic::Response::new(response(&signed))).map_err(Status::from)
        })
    }
}
