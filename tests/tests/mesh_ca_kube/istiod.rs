//! A server that wants exactly what istiod's CA wants (istio/istio security/pkg/server/ca, istio/api
//! security/v1alpha1/ca.proto) and answers as it does: our client must please it, and must not take everything from it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use mesh_agent::identity::{CaAuth, CertError, GrpcCa, GrpcTarget, issue};
use mesh_agent::model::identity::Identity;
use prost::Message;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_RSA_SHA256, RsaKeySize, SanType,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

const PATH: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
const NAME: &str = "istiod.istio-system.svc";
const TTL: Duration = Duration::from_secs(24 * 3600);
/// Status codes of gRPC.
const OK: u32 = 0;
const UNAUTHENTICATED: u32 = 16;

/// `istio.v1.auth.IstioCertificateRequest`.
#[derive(Clone, PartialEq, Message)]
struct CertificateRequest {
    #[prost(string, tag = "1")]
    csr: String,
    #[prost(int64, tag = "3")]
    validity_duration: i64,
    #[prost(message, optional, tag = "4")]
    metadata: Option<Struct>,
}

/// `istio.v1.auth.IstioCertificateResponse`.
#[derive(Clone, PartialEq, Message)]
struct CertificateResponse {
    #[prost(string, repeated, tag = "1")]
    cert_chain: Vec<String>,
}

/// `google.protobuf.Struct`
#[derive(Clone, PartialEq, Message)]
struct Struct {
    #[prost(map = "string, message", tag = "1")]
    fields: std::collections::HashMap<String, Value>,
}

/// `google.protobuf.Value`, with all its kinds: another one than a string is a mistake of the client's.
#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(oneof = "Kind", tags = "2, 3, 4")]
    kind: Option<Kind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Kind {
    #[prost(double, tag = "2")]
    Number(f64),
    #[prost(string, tag = "3")]
    Text(String),
    #[prost(bool, tag = "4")]
    Bool(bool),
}

/// A root with the RSA key that istiod makes for itself.
struct Root {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Root {
    fn new(name: &str) -> Result<Self> {
        let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }
}

/// What it gives besides what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Honest,
    /// A certificate of somebody else.
    AnotherName,
    /// A certificate that its roots do not vouch for.
    AnotherRoot,
}

/// An istiod on loopback.
struct Istiod {
    old: Root,
    new: Root,
    token: Mutex<String>,
    manner: Mutex<Manner>,
}

impl Istiod {
    async fn serve(self: Arc<Self>, listener: TcpListener, server: Arc<rustls::ServerConfig>) {
        while let Ok((tcp, _)) = listener.accept().await {
            let (own, server) = (Arc::clone(&self), Arc::clone(&server));
            tokio::spawn(async move {
                // What goes wrong is the client's to report.
                let _ = own.connection(tcp, server).await;
            });
        }
    }

    async fn connection(&self, tcp: TcpStream, server: Arc<rustls::ServerConfig>) -> Result<()> {
        let tls = TlsAcceptor::from(server).accept(tcp).await?;
        let mut connection = h2::server::handshake(tls).await?;
        while let Some(request) = connection.accept().await {
            let (request, mut respond) = request?;
            let (head, mut body) = request.into_parts();
            let exchange = async {
                let mut bytes = BytesMut::new();
                while let Some(part) = body.data().await {
                    let part = part?;
                    body.flow_control().release_capacity(part.len())?;
                    bytes.extend_from_slice(&part);
                }
                let answer = self.answer(&head, bytes.freeze());
                let response = http::Response::builder().header("content-type", "application/grpc").body(())?;
                let mut stream = respond.send_response(response, false)?;
                let (code, words) = match answer {
                    Ok(message) => {
                        let mut framed = BytesMut::new();
                        framed.put_u8(0);
                        framed.put_u32(u32::try_from(message.encoded_len())?);
                        message.encode(&mut framed)?;
                        stream.send_data(framed.freeze(), false)?;
                        (OK, String::new())
                    }
                    Err(error) => (UNAUTHENTICATED, error.to_string()),
                };
                let mut trailers = http::HeaderMap::new();
                trailers.insert("grpc-status", code.into());
                trailers.insert("grpc-message", words.parse()?);
                stream.send_trailers(trailers)?;
                Ok::<(), anyhow::Error>(())
            };
            tokio::select! {
                done = exchange => done?,
                _ = std::future::poll_fn(|context| connection.poll_closed(context)) => bail!("closed"),
            }
        }
        Ok(())
    }

    fn answer(&self, head: &http::request::Parts, mut body: Bytes) -> Result<CertificateResponse> {
        ensure!(head.method == http::Method::POST && head.uri.path() == PATH, "{} {}", head.method, head.uri);
        ensure!(head.headers.get("te").is_some_and(|te| te == "trailers"), "te: trailers");
        let kind = head.headers.get("content-type").context("no content-type")?.to_str()?;
        ensure!(kind.starts_with("application/grpc"), "content-type {kind}");
        let shown: Vec<_> = head.headers.get_all("authorization").iter().collect();
        let [shown] = shown.as_slice() else { bail!("{} times authorization", shown.len()) };
        let expected = format!("Bearer {}", self.token.lock().map_err(|_| anyhow!("poisoned"))?);
        ensure!(shown.to_str()? == expected, "request authenticate failure");

        ensure!(body.get_u8() == 0, "compressed");
        ensure!(body.get_u32() as usize == body.len(), "one message");
        let request = CertificateRequest::decode(body)?;
        ensure!(request.validity_duration == TTL.as_secs() as i64, "validity {}", request.validity_duration);
        let metadata = request.metadata.context("no metadata: the caller's own identity would be given")?;
        let Some(Value { kind: Some(Kind::Text(impersonated)) }) = metadata.fields.get("ImpersonatedIdentity") else {
            bail!("ImpersonatedIdentity is no string in {metadata:?}");
        };
        let csr = CertificateSigningRequestParams::from_pem(&request.csr)?;
        // istio-csr goes further than istiod: the CSR must ask for the same name and for nothing else.
        let names: Vec<_> = csr.params.subject_alt_names.iter().collect();
        ensure!(matches!(names.as_slice(), [SanType::URI(uri)] if uri.as_str() == impersonated), "{names:?}");
        self.sign(&csr, impersonated)
    }

    fn sign(&self, csr: &CertificateSigningRequestParams, name: &str) -> Result<CertificateResponse> {
        let manner = *self.manner.lock().map_err(|_| anyhow!("poisoned"))?;
        let name = if manner == Manner::AnotherName { "spiffe://cluster.local/ns/shop/sa/other" } else { name };
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(name.try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let now = SystemTime::now();
        params.not_before = (now - Duration::from_secs(120)).into();
        params.not_after = (now + TTL).into();
        let leaf = params.signed_by(&csr.public_key, &self.new.issuer)?;
        let roots =
            if manner == Manner::AnotherRoot { vec![&self.old.pem] } else { vec![&self.new.pem, &self.old.pem] };
        // One certificate to an entry, each with a newline: so istiod has it since ztunnel.
        let chain = std::iter::once(&leaf.pem()).chain(roots).map(|pem| format!("{}\n", pem.trim())).collect();
        Ok(CertificateResponse { cert_chain: chain })
    }

    fn server_config(&self) -> Result<rustls::ServerConfig> {
        let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)?;
        let mut params = CertificateParams::new(vec![NAME.to_owned(), "istiod.istio-system".to_owned()])?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.old.issuer)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

#[test]
fn istiod_serves_our_client_unchanged() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let folder = tempfile::tempdir()?;
        let (token, roots) = (folder.path().join("token"), folder.path().join("root-cert.pem"));
        std::fs::write(&token, "first\n")?;
        let istiod = Arc::new(Istiod {
            old: Root::new("old")?,
            new: Root::new("new")?,
            token: Mutex::new("first".to_owned()),
            manner: Mutex::new(Manner::Honest),
        });
        std::fs::write(&roots, &istiod.old.pem)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address: SocketAddr = listener.local_addr()?;
        let config = Arc::new(istiod.server_config()?);
        let serving = tokio::spawn(Arc::clone(&istiod).serve(listener, config));

        let client = |server_name: Option<&str>| {
            let target = GrpcTarget {
                address: address.to_string(),
                root_file: roots.clone(),
                server_name: server_name.map(str::to_owned),
            };
            GrpcCa::new(target, CaAuth::BearerFile(token.clone()))
        };
        let web = Identity::new("cluster.local", "shop", "web")?;
        let ask = async |client: &GrpcCa| issue(client, &web, TTL, SystemTime::now()).await;

        let named = client(Some(NAME))?;
        let issued = ask(&named).await?;
        ensure!(issued.credential.identity() == &web);
        ensure!(issued.trust.roots().count() == 2, "each root of the bundle is one");

        // By an address that its certificate does not have, it is nobody.
        let error = ask(&client(None)?).await.err().context("trusted under another name")?;
        ensure!(matches!(&error, CertError::CaUnreachable { reason, .. } if reason.contains("TLS")), "{error}");

        // The kubelet has renewed the token: the next call shows the new one.
        *istiod.token.lock().map_err(|_| anyhow!("poisoned"))? = "second".to_owned();
        let error = ask(&named).await.err().context("an old token was taken")?;
        ensure!(matches!(error, CertError::CaRefused { .. }), "{error}");
        std::fs::write(&token, "second")?;
        ask(&named).await?;

        for (manner, words) in [(Manner::AnotherName, "sa/other"), (Manner::AnotherRoot, "not signed by any root")] {
            *istiod.manner.lock().map_err(|_| anyhow!("poisoned"))? = manner;
            let error = ask(&named).await.err().with_context(|| format!("{manner:?} was taken"))?;
            ensure!(matches!(&error, CertError::BadAnswer { reason, .. } if reason.contains(words)), "{error}");
        }
        serving.abort();
        Ok(())
    })
}
