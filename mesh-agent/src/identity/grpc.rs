//! The client of Istio's CA API: `mesh-agent ca`, istiod, istio-csr.
//!
//! One connection a call: a node asks a few times a day. The server must prove itself under the roots in a
//! file that the operator gave, by its host name; we prove ourselves as the node, or by a bearer token.

use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::uri::PathAndQuery;
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, version};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service};
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};
use zeroize::Zeroizing;

use super::bundle::TrustBundle;
use super::ca::{CaClient, KeepReady, SignFuture, SignedCert};
use super::chain;
use super::clock::{Clock, SystemClock, TlsTime};
use super::error::CertError;
use super::file_changes::FileChanges;
use super::istio::{CREATE_CERTIFICATE, CertificateRequest, CertificateResponse, MESSAGE_MAX_BYTES, Protobuf};
use super::node_login::NodeLogin;
use super::provider::provider;
use super::state;
use crate::model::identity::Identity;

/// A whole call: connection, handshake, request, answer.
const CALL_DEADLINE: Duration = Duration::from_secs(15);

/// Where the CA is and by which roots it is known.
#[derive(Clone, Debug)]
pub struct GrpcTarget {
    /// `HOST:PORT`; an IPv6 host in brackets.
    pub address: String,
    /// PEM file of the roots that vouch for the server; read again for each call.
    pub root_file: PathBuf,
    /// The name that the server must prove; the host of `address` if there is none.
    pub server_name: Option<String>,
}

/// How we prove who we are.
#[derive(Debug)]
pub enum CaAuth {
    /// As a node of `mesh-agent ca`.
    Node(NodeLogin),
    /// With the bearer token in this file, read again for each call: a projected service account token.
    BearerFile(PathBuf),
}

/// What proves us in one call.
pub(super) enum Proof {
    Certificate(Arc<CertifiedKey>),
    Bearer(Zeroizing<String>),
}

/// A CA behind Istio's API.
#[derive(Debug)]
pub struct GrpcCa {
    caller: Caller,
    auth: CaAuth,
    roots: FileChanges,
}

/// Makes calls to one CA.
#[derive(Debug)]
pub(super) struct Caller {
    target: GrpcTarget,
    server_name: ServerName<'static>,
    pub(super) clock: Arc<dyn Clock>,
}

impl GrpcCa {
    /// A client of the CA at `target`. Nothing is sent yet.
    ///
    /// # Errors
    /// When the address is not `HOST:PORT`.
    pub fn new(target: GrpcTarget, auth: CaAuth) -> Result<Self, CertError> {
        Self::with_clock(target, auth, Arc::new(SystemClock))
    }

    /// As [`Self::new`], by another clock than the machine's.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_clock(target: GrpcTarget, auth: CaAuth, clock: Arc<dyn Clock>) -> Result<Self, CertError> {
        let bad = |reason: &str| CertError::Setting { reason: format!("CA address `{}`: {reason}", target.address) };
        let (host, port) = target.address.rsplit_once(':').ok_or_else(|| bad("is not HOST:PORT"))?;
        port.parse::<u16>().map_err(|_| bad("has no port number after the last colon"))?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let host_name = ServerName::try_from(host).map_err(|_| bad("has no host name or IP address"))?.to_owned();
        let server_name = match &target.server_name {
            Some(name) => ServerName::try_from(name.clone()).map_err(|_| CertError::Setting {
                reason: format!("CA server name `{name}`: is neither a host name nor an IP address"),
            })?,
            None => host_name,
        };
        let roots = FileChanges::new(target.root_file.clone());
        Ok(Self { caller: Caller { target, server_name, clock }, auth, roots })
    }

    #[cfg(test)]
    pub(super) fn caller_for_tests(&self) -> &Caller {
        &self.caller
    }

    async fn sign_in_time(&self, csr: &str, identity: &Identity, ttl: Duration) -> Result<SignedCert, CertError> {
        let subject = identity.to_string();
        let proof = match &self.auth {
            CaAuth::Node(login) => Proof::Certificate(login.certificate(&self.caller).await?),
            CaAuth::BearerFile(path) => Proof::Bearer(bearer(path)?),
        };
        self.caller.call(proof, csr, &subject, Some(&subject), ttl).await
    }
}

impl CaClient for GrpcCa {
    fn name(&self) -> &str {
        &self.caller.target.address
    }

    fn sign<'a>(&'a self, csr_pem: &'a str, identity: &'a Identity, ttl: Duration) -> SignFuture<'a> {
        Box::pin(self.sign_in_time(csr_pem, identity, ttl))
    }

    fn keep_ready(&self) -> KeepReady<'_> {
        match &self.auth {
            CaAuth::Node(login) => Box::pin(login.keep(&self.caller)),
            CaAuth::BearerFile(_) => Box::pin(std::future::pending()),
        }
    }

    fn changed(&self) -> KeepReady<'_> {
        Box::pin(self.roots.next())
    }
}

impl Caller {
    /// Address for messages.
    pub(super) fn name(&self) -> &str {
        &self.target.address
    }

    /// One `CreateCertificate`, within [`CALL_DEADLINE`].
    pub(super) async fn call(
        &self,
        proof: Proof,
        csr: &str,
        subject: &str,
        impersonated: Option<&str>,
        ttl: Duration,
    ) -> Result<SignedCert, CertError> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let mut request = Request::new(CertificateRequest::new(csr, seconds, impersonated));
        let certificate = match proof {
            Proof::Certificate(certificate) => Some(certificate),
            Proof::Bearer(token) => {
                let header = Zeroizing::new(format!("Bearer {}", *token));
                let mut value = MetadataValue::try_from(header.as_str()).map_err(|_| CertError::Setting {
                    reason: "the bearer token has characters that no token has".to_owned(),
                })?;
                value.set_sensitive(true);
                request.metadata_mut().insert("authorization", value);
                None
            }
        };
        match tokio::time::timeout(CALL_DEADLINE, self.exchange(certificate, request)).await {
            Ok(Ok(response)) => split_chain(&response).map_err(|reason| CertError::BadAnswer {
                ca: self.name().to_owned(),
                subject: subject.to_owned(),
                reason,
            }),
            Ok(Err(CallError::Cert(error))) => Err(error),
            Ok(Err(CallError::Status(status))) => Err(self.failure(&status, subject)),
            Err(_) => Err(self.unreachable(format!("no answer within {} s", CALL_DEADLINE.as_secs()))),
        }
    }

    async fn exchange(
        &self,
        certificate: Option<Arc<CertifiedKey>>,
        request: Request<CertificateRequest>,
    ) -> Result<CertificateResponse, CallError> {
        let config = self.tls_config(certificate)?;
        let tcp = TcpStream::connect(&self.target.address).await.map_err(|e| self.unreachable(e.to_string()))?;
        let tls = TlsConnector::from(Arc::new(config))
            .connect(self.server_name.clone(), tcp)
            .await
            .map_err(|e| self.unreachable(format!("TLS: {e}")))?;
        let (send, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls))
            .await
            .map_err(|e| self.unreachable(reasons(&e)))?;
        // Ends with the call: dropping `send` lets the connection close.
        let connection = AbortOnDrop(tokio::spawn(connection));
        let origin = http::Uri::builder().scheme("https").authority(self.name()).path_and_query("/").build();
        let origin = origin.map_err(|e| self.unreachable(e.to_string()))?;
        let mut grpc = tonic::client::Grpc::with_origin(Channel(send), origin)
            .max_decoding_message_size(MESSAGE_MAX_BYTES)
            .max_encoding_message_size(MESSAGE_MAX_BYTES);
        let ready = grpc.ready().await;
        ready.map_err(|e| self.unreachable(reasons(&e)))?;
        let codec = Protobuf::<CertificateRequest, CertificateResponse>::default();
        let answer = grpc.unary(request, PathAndQuery::from_static(CREATE_CERTIFICATE), codec).await;
        drop(connection);
        answer.map(tonic::Response::into_inner).map_err(CallError::Status)
    }

    fn tls_config(&self, certificate: Option<Arc<CertifiedKey>>) -> Result<ClientConfig, CertError> {
        let file = &self.target.root_file;
        let wrong = |fault: String| CertError::state(file, fault, "give the CA's root certificate (PEM)");
        let pem = state::read_public(file)?.ok_or_else(|| wrong("is missing".to_owned()))?;
        let bundle = TrustBundle::from_pem(&pem, 0).map_err(|e| wrong(e.to_string()))?;
        let mut roots = RootCertStore::empty();
        for root in bundle.roots() {
            roots.add(root.clone()).map_err(|e| wrong(e.to_string()))?;
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|e| wrong(e.to_string()))?;
        let builder = ClientConfig::builder_with_details(provider(), Arc::new(TlsTime(Arc::clone(&self.clock))))
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|e| CertError::crypto("a TLS configuration", e))?
            .with_webpki_verifier(verifier);
        let mut config = match certificate {
            Some(key) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key))),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config)
    }

    fn unreachable(&self, reason: String) -> CertError {
        CertError::CaUnreachable { ca: self.name().to_owned(), reason }
    }

    fn failure(&self, status: &Status, subject: &str) -> CertError {
        match status.code() {
            Code::Unauthenticated
            | Code::PermissionDenied
            | Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::NotFound
            | Code::Unimplemented => CertError::CaRefused {
                ca: self.name().to_owned(),
                subject: subject.to_owned(),
                reason: status.message().to_owned(),
            },
            _ => self.unreachable(reasons(status)),
        }
    }
}

enum CallError {
    Cert(CertError),
    Status(Status),
}

impl From<CertError> for CallError {
    fn from(error: CertError) -> Self {
        Self::Cert(error)
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<hyper::Result<()>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// hyper's sender as tonic takes it.
struct Channel(SendRequest<Body>);

impl Service<http::Request<Body>> for Channel {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<Self::Response, hyper::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// The token in `path`, without the newline that editors add.
pub(super) fn bearer(path: &std::path::Path) -> Result<Zeroizing<String>, CertError> {
    let wrong = |fault: &str| CertError::state(path, fault, "write the token there");
    // A projected service account token is world-readable inside its own mount: the mode says nothing.
    let bytes = state::read_public(path)?.ok_or_else(|| wrong("is missing"))?;
    match std::str::from_utf8(&bytes).map(str::trim) {
        Ok(token) if !token.is_empty() => Ok(Zeroizing::new(token.to_owned())),
        _ => Err(wrong("holds no token")),
    }
}

/// Leaf, intermediates and roots out of an answer. The last entry holds roots (Istio's convention); istiod gives each
/// certificate an entry of its own, so with several roots those before the last are known by being self-issued.
fn split_chain(response: &CertificateResponse) -> Result<SignedCert, String> {
    let (last, chain) = response.cert_chain.split_last().ok_or("it is empty")?;
    if chain.is_empty() {
        return Err("it has no root after the certificate".to_owned());
    }
    let certificates = |pem: &str| {
        CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| format!("its PEM is broken: {e}"))
    };
    let mut leaf_first = Vec::new();
    for entry in chain {
        leaf_first.extend(certificates(entry)?);
    }
    let (mut roots, chain): (Vec<_>, Vec<_>) = leaf_first.into_iter().partition(|cert| chain::is_self_issued(cert));
    roots.extend(certificates(last)?);
    Ok(SignedCert { chain, roots })
}

/// An error with its causes: hyper's own words alone say little.
fn reasons(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
