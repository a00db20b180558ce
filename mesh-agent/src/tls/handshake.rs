//! Connection in, session and peer out, within the deadline.

use std::future::Future;
use std::io;
use std::net::Ipv4Addr;

use rustls::CommonState;
use rustls::pki_types::{CertificateDer, IpAddr, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::configs::Held;
use super::error::TlsError;
use super::{Peer, Tls};
use crate::model::identity::Identity;

impl Tls {
    /// The server's side of a session: `io` speaks to the pod of identity `own`; `alpn` best first.
    ///
    /// # Errors
    /// When this node has no certificate for `own`, or the peer fails to prove a workload of the trust domain.
    pub async fn accept<IO>(
        &self,
        io: IO,
        own: &Identity,
        alpn: &[&[u8]],
    ) -> Result<(server::TlsStream<IO>, Peer), TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let Held { config, credential } = self.configs.server(own, alpn)?;
        let stream = self.in_time(TlsAcceptor::from(config).accept(io)).await?;
        drop(credential);
        let peer = self.peer(stream.get_ref().1)?;
        Ok((stream, peer))
    }

    /// The client's side of a session: on behalf of the pod of identity `own`, with `expected` and nobody else.
    ///
    /// A server that does not like our certificate says so only afterwards: see [`TlsError::of_io`].
    ///
    /// # Errors
    /// When this node has no certificate for `own`, or the peer fails to prove that it is `expected`.
    pub async fn connect<IO>(
        &self,
        io: IO,
        own: &Identity,
        expected: &Identity,
        alpn: &[&[u8]],
    ) -> Result<(client::TlsStream<IO>, Peer), TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let Held { config, credential } = self.configs.client(own, expected, alpn)?;
        // Never sent (no SNI) and never compared: the verifier goes by the SPIFFE name.
        let name = ServerName::IpAddress(IpAddr::from(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
        let stream = self.in_time(TlsConnector::from(config).connect(name, io)).await?;
        drop(credential);
        let peer = self.peer(stream.get_ref().1)?;
        Ok((stream, peer))
    }

    pub(super) async fn in_time<S>(&self, handshake: impl Future<Output = io::Result<S>>) -> Result<S, TlsError> {
        match tokio::time::timeout(self.deadline, handshake).await {
            Ok(ended) => ended.map_err(TlsError::of_io),
            Err(_) => Err(TlsError::Timeout { deadline: self.deadline }),
        }
    }

    pub(super) fn peer(&self, session: &CommonState) -> Result<Peer, TlsError> {
        let certificate: &CertificateDer<'_> =
            session.peer_certificates().and_then(|chain| chain.first()).ok_or(TlsError::NoPeerCertificate)?;
        let alpn = session
            .alpn_protocol()
            .ok_or_else(|| TlsError::Incompatible { reason: "no application protocol".to_owned() })?;
        Peer::verified_by_tls(certificate, alpn, &self.store)
    }
}
