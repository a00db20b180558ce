//! A handshake that ends in [`Records`] instead of a stream: for connections whose bytes are copied in bulk.
//!
//! rustls' unbuffered interface does the handshake; this file moves its bytes. What the peer sent right behind
//! its last handshake message is kept.

use std::io;
use std::net::Ipv4Addr;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::{IpAddr, ServerName};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::{CommonState, Error};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::configs::Held;
use super::error::TlsError;
use super::records::Records;
use super::{Peer, Tls};
use crate::model::identity::Identity;

/// A first flight with X25519MLKEM768 is about 1.7 KiB, one with a certificate chain about 3.
const FIRST_BUFFER: usize = 4 << 10;
/// No handshake of ours comes near this (rustls' own limit for a message).
const LONGEST: usize = 64 << 10;

/// An established session over some connection.
#[derive(Debug)]
pub struct Session {
    /// Seals and opens from now on.
    pub records: Records,
    /// Content that came with the handshake and is opened already.
    pub opened: Vec<u8>,
    /// The beginning of a record that came with the handshake.
    pub sealed: Vec<u8>,
    /// The peer has ended its direction in order, right behind the handshake.
    pub closed: bool,
}

impl Tls {
    /// As [`Tls::accept`], for a caller that moves the bytes itself.
    ///
    /// # Errors
    /// As [`Tls::accept`].
    pub async fn accept_session<IO>(
        &self,
        io: &mut IO,
        own: &Identity,
        alpn: &[&[u8]],
    ) -> Result<(Session, Peer), TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let Held { config, credential } = self.configs.server(own, alpn)?;
        let mut connection = UnbufferedServerConnection::new(config).map_err(|e| TlsError::of_io(other(e)))?;
        let rest = self.in_time(drive(io, &mut connection)).await?;
        drop(credential);
        let peer = self.peer(&connection)?;
        let (secrets, kernel) = connection.dangerous_into_kernel_connection().map_err(|e| TlsError::of_io(other(e)))?;
        Ok((rest.session(Records::new(secrets, kernel))?, peer))
    }

    /// As [`Tls::connect`], for a caller that moves the bytes itself.
    ///
    /// # Errors
    /// As [`Tls::connect`].
    pub async fn connect_session<IO>(
        &self,
        io: &mut IO,
        own: &Identity,
        expected: &Identity,
        alpn: &[&[u8]],
    ) -> Result<(Session, Peer), TlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let Held { config, credential } = self.configs.client(own, expected, alpn)?;
        // Never sent (no SNI) and never compared: the verifier goes by the SPIFFE name.
        let name = ServerName::IpAddress(IpAddr::from(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
        let mut connection = UnbufferedClientConnection::new(config, name).map_err(|e| TlsError::of_io(other(e)))?;
        let rest = self.in_time(drive(io, &mut connection)).await?;
        drop(credential);
        let peer = self.peer(&connection)?;
        let (secrets, kernel) = connection.dangerous_into_kernel_connection().map_err(|e| TlsError::of_io(other(e)))?;
        Ok((rest.session(Records::new(secrets, kernel))?, peer))
    }
}

/// What both kinds of connection have in common here.
trait Handshake: std::ops::Deref<Target: std::ops::Deref<Target = CommonState>> {
    type Data;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Handshake for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

impl Handshake for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

/// What came after the handshake's last byte.
#[derive(Debug, Default)]
struct Rest {
    opened: Vec<u8>,
    sealed: Vec<u8>,
    closed: bool,
}

impl Rest {
    fn session(self, records: Result<Records, super::records::RecordError>) -> Result<Session, TlsError> {
        let records = records.map_err(|error| TlsError::Internal { reason: error.to_string() })?;
        Ok(Session { records, opened: self.opened, sealed: self.sealed, closed: self.closed })
    }
}

/// Moves the handshake's bytes until it is complete. On an error the peer is told why, as far as it listens.
async fn drive<IO, C>(io: &mut IO, connection: &mut C) -> io::Result<Rest>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    C: Handshake,
{
    let (mut incoming, mut used) = (vec![0; FIRST_BUFFER], 0);
    let (mut outgoing, mut rest) = (Vec::new(), Rest::default());
    loop {
        let UnbufferedStatus { mut discard, state, .. } =
            connection.process(incoming.get_mut(..used).unwrap_or_default());
        let mut more = false;
        let (mut done, mut failed) = (false, None);
        match state {
            Ok(ConnectionState::EncodeTlsData(mut record)) => encode(&mut record, &mut outgoing)?,
            Ok(ConnectionState::TransmitTlsData(sent)) => {
                io.write_all(&outgoing).await?;
                io.flush().await?;
                outgoing.clear();
                sent.done();
            }
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    let record = record.map_err(other)?;
                    discard += record.discard;
                    rest.opened.extend_from_slice(record.payload);
                }
            }
            Ok(ConnectionState::WriteTraffic(_)) => done = true,
            Ok(ConnectionState::BlockedHandshake) => more = true,
            Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => rest.closed = true,
            Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) => failed = Some(error),
        }
        incoming.copy_within(discard..used, 0);
        used = used.saturating_sub(discard);
        if let Some(error) = failed {
            tell(io, connection, incoming.get_mut(..used).unwrap_or_default()).await;
            return Err(other(error));
        }
        if (done || rest.closed) && !connection.is_handshaking() {
            rest.sealed = incoming.get(..used).unwrap_or_default().to_vec();
            return Ok(rest);
        }
        if rest.closed {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if more || done {
            used += read_more(io, &mut incoming, used).await?;
        }
    }
}

fn encode<D>(record: &mut rustls::unbuffered::EncodeTlsData<'_, D>, outgoing: &mut Vec<u8>) -> io::Result<()> {
    let start = outgoing.len();
    match record.encode(&mut []) {
        Err(EncodeError::InsufficientSize(needed)) => outgoing.resize(start + needed.required_size, 0),
        Err(error) => return Err(io::Error::other(error)),
        Ok(_) => return Ok(()),
    }
    record.encode(outgoing.get_mut(start..).unwrap_or_default()).map(|_| ()).map_err(io::Error::other)
}

async fn read_more<IO: AsyncRead + Unpin>(io: &mut IO, incoming: &mut Vec<u8>, used: usize) -> io::Result<usize> {
    if used == incoming.len() {
        if used >= LONGEST {
            return Err(other(Error::General("a handshake message is too long".to_owned())));
        }
        incoming.resize(used * 2, 0);
    }
    match io.read(incoming.get_mut(used..).unwrap_or_default()).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        count => Ok(count),
    }
}

/// Sends the alert that a failed handshake has left behind. `incoming` is what was not used, as rustls wants it.
async fn tell<IO, C>(io: &mut IO, connection: &mut C, incoming: &mut [u8])
where
    IO: AsyncWrite + Unpin,
    C: Handshake,
{
    let mut outgoing = Vec::new();
    // Asked first: with nothing left to send rustls would go on reading, and fail a second time.
    while connection.wants_write() {
        let Ok(ConnectionState::EncodeTlsData(mut record)) = connection.process(incoming).state else { break };
        if encode(&mut record, &mut outgoing).is_err() {
            break;
        }
    }
    // The peer may be gone; then nobody is left to be told.
    let _ = io.write_all(&outgoing).await;
    let _ = io.flush().await;
}

fn other(error: Error) -> io::Error {
    io::Error::other(error)
}
