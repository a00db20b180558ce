//! The record layer of an established TLS 1.3 session, from buffer to buffer.
//!
//! rustls makes the session and its keys (and makes new ones, through its `kernel` interface, which exists for
//! this use); what it would copy twice per record on the way to an application is sealed and opened here
//! without a copy (RFC 8446 §5). The cryptography itself is aws-lc's, as rustls uses it. Nothing here does IO.
//!
//! ```text
//! record:  | 23 | 3 | 3 | length (2) | sealed: content, content type (1), zeros (0..) | tag (16) |
//! ```

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::kernel::KernelConnection;
use rustls::{ConnectionTrafficSecrets, ExtractedSecrets};

/// Record header.
const HEADER: usize = 5;
/// Tag of both AES-GCM suites.
const TAG: usize = 16;
/// Most content of a record (§5.1).
pub const MAX_CONTENT: usize = 1 << 14;
/// Most that a received record may be long, header included (§5.2).
pub const MAX_RECORD: usize = HEADER + MAX_CONTENT + 256;
/// What sealing adds to each record.
pub const OVERHEAD: usize = HEADER + 1 + TAG;
/// After this many records a key is replaced. AES-GCM stays safe up to 2^24.5 of them (§5.5); half of rustls'
/// own limit.
const RECORDS_PER_KEY: u64 = 1 << 23;
/// Handshake messages after the handshake are tickets and key updates; none is longer than this.
const MAX_HANDSHAKE: usize = 1 << 14;

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const CLOSE_NOTIFY: u8 = 0;
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

/// What ends a session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The peer's, or of whoever is in between: not a record, or not from the peer.
    #[error("a record does not open")]
    Forged,
    /// The peer's: something that TLS 1.3 does not allow here.
    #[error("{0}")]
    Protocol(&'static str),
    /// The peer ended the session with an alert (RFC 8446 §6).
    #[error("the peer ended the session with alert {0}")]
    Alert(u8),
    /// Ours: the caller's buffer is too small, or no new key could be made.
    #[error("{0}")]
    Internal(&'static str),
}

/// One direction's key.
struct Key {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Key {
    fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, RecordError> {
        let (algorithm, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            _ => return Err(RecordError::Internal("the session's suite is not AES-GCM")),
        };
        let unbound = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| NO_KEY)?;
        let iv = iv.as_ref().try_into().map_err(|_| NO_KEY)?;
        Ok(Self { key: LessSafeKey::new(unbound), iv, sequence })
    }

    /// The nonce of the next record (§5.3): never the same twice, because the sequence only grows.
    fn nonce(&mut self) -> Result<Nonce, RecordError> {
        let mut nonce = self.iv;
        let sequence = self.sequence.to_be_bytes();
        for (byte, bits) in nonce.iter_mut().rev().zip(sequence.iter().rev()) {
            *byte ^= bits;
        }
        self.sequence = self.sequence.checked_add(1).ok_or(NO_KEY)?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

const NO_KEY: RecordError = RecordError::Internal("no key could be made");
const NO_ROOM: RecordError = RecordError::Internal("the buffer is too small");

/// Makes the next key of a direction (§7.2).
trait Rekey: Send {
    fn next_tx(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error>;
    fn next_rx(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error>;
}

impl<Data: Send> Rekey for KernelConnection<Data> {
    fn next_tx(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error> {
        self.update_tx_secret()
    }

    fn next_rx(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error> {
        self.update_rx_secret()
    }
}

/// Seals and opens the records of one session.
pub struct Records {
    tx: Key,
    rx: Key,
    rekey: Box<dyn Rekey>,
    /// The peer has asked for a key update of ours (§4.6.3).
    update_asked: bool,
    records_per_key: u64,
    /// An unfinished handshake message.
    handshake: Vec<u8>,
}

/// What [`Records::open`] has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Bytes of the input that were whole records, and are done with.
    pub read: usize,
    /// Bytes of content written to the output.
    pub written: usize,
    /// The peer has ended its direction in order; nothing after that counts.
    pub closed: bool,
}

/// What [`Records::seal`] has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sealed {
    /// Bytes of the data (the head not counted) that went in.
    pub read: usize,
    /// Bytes written to the output.
    pub written: usize,
}

impl Records {
    /// Takes over a session whose handshake is complete.
    pub(super) fn new<Data: Send + 'static>(
        secrets: ExtractedSecrets,
        connection: KernelConnection<Data>,
    ) -> Result<Self, RecordError> {
        Ok(Self {
            tx: Key::new(secrets.tx)?,
            rx: Key::new(secrets.rx)?,
            rekey: Box::new(connection),
            update_asked: false,
            records_per_key: RECORDS_PER_KEY,
            handshake: Vec::new(),
        })
    }

    /// Replaces keys after fewer records, for the tests of that.
    #[cfg(test)]
    pub(super) fn with_records_per_key(mut self, records: u64) -> Self {
        self.records_per_key = records;
        self
    }

    /// Seals `head` and then as much of `data` as fits, in full records, into `output`.
    ///
    /// # Errors
    /// When not even `head` fits (it needs its length, [`OVERHEAD`] and room for a key update).
    pub fn seal(&mut self, head: &[u8], data: &[u8], output: &mut [u8]) -> Result<Sealed, RecordError> {
        let mut sealed = Sealed::default();
        if self.update_asked || self.tx.sequence >= self.records_per_key {
            sealed.written += self.update_key(output)?;
        }
        if !head.is_empty() {
            // Small and first: copied together with the data that follows it, to make one record.
            let together = data.len().min(MAX_CONTENT.saturating_sub(head.len()));
            let room = output.get_mut(sealed.written..).ok_or(NO_ROOM)?;
            let together = together.min(room.len().saturating_sub(OVERHEAD + head.len()));
            let content = head.len() + together;
            let slot = room.get_mut(HEADER..HEADER + content).ok_or(NO_ROOM)?;
            let (first, second) = slot.split_at_mut(head.len());
            first.copy_from_slice(head);
            second.copy_from_slice(data.get(..together).unwrap_or_default());
            sealed.written += self.seal_in_place(room, content)?;
            sealed.read = together;
        }
        while sealed.read < data.len() {
            let room = output.get_mut(sealed.written..).ok_or(NO_ROOM)?;
            let content = (data.len() - sealed.read).min(MAX_CONTENT).min(room.len().saturating_sub(OVERHEAD));
            if content == 0 || self.tx.sequence >= self.records_per_key {
                break;
            }
            let content = data.get(sealed.read..sealed.read + content).unwrap_or_default();
            sealed.written += self.seal_one(APPLICATION_DATA, content, room)?;
            sealed.read += content.len();
        }
        Ok(sealed)
    }

    /// Seals the alert that ends our direction in order (§6.1).
    ///
    /// # Errors
    /// When it does not fit.
    pub fn seal_close(&mut self, output: &mut [u8]) -> Result<usize, RecordError> {
        self.seal_one(ALERT, &[1, CLOSE_NOTIFY], output)
    }

    /// Opens every whole record of `input` for which `output` has room (a record of any length fits in
    /// [`MAX_RECORD`] bytes), and puts their contents one behind the other.
    ///
    /// # Errors
    /// Any of them ends the session.
    pub fn open(&mut self, input: &[u8], output: &mut [u8]) -> Result<Opened, RecordError> {
        let mut opened = Opened::default();
        while !opened.closed {
            let rest = input.get(opened.read..).unwrap_or_default();
            let Some((header, rest)) = rest.split_at_checked(HEADER) else { break };
            let length = length_of(header)?;
            let Some(body) = rest.get(..length) else { break };
            let Some(room) = output.get_mut(opened.written..).filter(|room| room.len() >= length - TAG) else { break };
            let content = self.open_one(header, body, room)?;
            opened.read += HEADER + length;
            match content {
                (APPLICATION_DATA, length) => opened.written += length,
                (HANDSHAKE, length) => self.handshake(room.get(..length).unwrap_or_default())?,
                (ALERT, length) => match room.get(..length) {
                    Some([_, CLOSE_NOTIFY]) => opened.closed = true,
                    Some([_, alert]) => return Err(RecordError::Alert(*alert)),
                    _ => return Err(RecordError::Protocol("an alert of a wrong length")),
                },
                _ => return Err(RecordError::Protocol("a record of an unknown type")),
            }
        }
        Ok(opened)
    }

    /// One record's content type and length; its content is then at the start of `output`.
    fn open_one(&mut self, header: &[u8], body: &[u8], output: &mut [u8]) -> Result<(u8, usize), RecordError> {
        let (sealed, tag) = body.split_at_checked(body.len().saturating_sub(TAG)).ok_or(RecordError::Forged)?;
        let output = output.get_mut(..sealed.len()).ok_or(NO_ROOM)?;
        let nonce = self.rx.nonce()?;
        self.rx
            .key
            .open_separate_gather(nonce, Aad::from(header), sealed, tag, output)
            .map_err(|_| RecordError::Forged)?;
        // The type is the last byte that is not padding (§5.4).
        let end = output.iter().rposition(|byte| *byte != 0).ok_or(RecordError::Protocol("a record of padding"))?;
        if end > MAX_CONTENT {
            return Err(RecordError::Protocol("a record is too long"));
        }
        Ok((output.get(end).copied().unwrap_or_default(), end))
    }

    fn seal_one(&mut self, kind: u8, content: &[u8], output: &mut [u8]) -> Result<usize, RecordError> {
        let (header, rest) = output.split_at_mut_checked(HEADER).ok_or(NO_ROOM)?;
        let (sealed, rest) = rest.split_at_mut_checked(content.len()).ok_or(NO_ROOM)?;
        let tail = rest.get_mut(..1 + TAG).ok_or(NO_ROOM)?;
        header.copy_from_slice(&header_of(content.len())?);
        let nonce = self.tx.nonce()?;
        self.tx
            .key
            .seal_out_of_place_scatter(nonce, Aad::from(&*header), content, sealed, &[kind], tail)
            .map_err(|_| RecordError::Internal("a record could not be sealed"))?;
        Ok(content.len() + OVERHEAD)
    }

    /// As [`Self::seal_one`], for `content` bytes of application data that stand in their place already.
    fn seal_in_place(&mut self, output: &mut [u8], content: usize) -> Result<usize, RecordError> {
        let (header, rest) = output.split_at_mut_checked(HEADER).ok_or(NO_ROOM)?;
        let (sealed, rest) = rest.split_at_mut_checked(content).ok_or(NO_ROOM)?;
        let tail = rest.get_mut(..1 + TAG).ok_or(NO_ROOM)?;
        header.copy_from_slice(&header_of(content)?);
        let nonce = self.tx.nonce()?;
        self.tx
            .key
            .seal_in_place_scatter(nonce, Aad::from(&*header), sealed, &[APPLICATION_DATA], tail)
            .map_err(|_| RecordError::Internal("a record could not be sealed"))?;
        Ok(content + OVERHEAD)
    }

    /// Tells the peer that the key changes, and changes it (§4.6.3).
    fn update_key(&mut self, output: &mut [u8]) -> Result<usize, RecordError> {
        let written = self.seal_one(HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0], output)?;
        self.tx = Key::new(self.rekey.next_tx().map_err(|_| NO_KEY)?)?;
        self.update_asked = false;
        Ok(written)
    }

    fn handshake(&mut self, content: &[u8]) -> Result<(), RecordError> {
        self.handshake.extend_from_slice(content);
        while let [kind, a, b, c, rest @ ..] = &*self.handshake {
            let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            if length > MAX_HANDSHAKE {
                return Err(RecordError::Protocol("a handshake message is too long"));
            }
            let Some(message) = rest.get(..length) else { break };
            match (*kind, message) {
                // Resumption is off: tickets are of no use.
                (NEW_SESSION_TICKET, _) => {}
                (KEY_UPDATE, [asked @ (0 | 1)]) if rest.len() == length => {
                    self.update_asked |= *asked == 1;
                    self.rx = Key::new(self.rekey.next_rx().map_err(|_| NO_KEY)?)?;
                }
                _ => return Err(RecordError::Protocol("an unexpected handshake message")),
            }
            self.handshake.drain(..4 + length);
        }
        if self.handshake.is_empty() {
            self.handshake = Vec::new();
        }
        Ok(())
    }
}

/// The header of a record with this much content; also its additional data (§5.2).
fn header_of(content: usize) -> Result<[u8; HEADER], RecordError> {
    let length = u16::try_from(content + 1 + TAG).map_err(|_| RecordError::Internal("a record is too long"))?;
    let [high, low] = length.to_be_bytes();
    Ok([APPLICATION_DATA, 3, 3, high, low])
}

/// The length that a received header gives, once it is one that may be.
fn length_of(header: &[u8]) -> Result<usize, RecordError> {
    let &[APPLICATION_DATA, 3, 3, high, low] = header else {
        return Err(RecordError::Protocol("not a record of an established session"));
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if (1 + TAG..=MAX_RECORD - HEADER).contains(&length) {
        Ok(length)
    } else {
        Err(RecordError::Protocol("a record of an impossible length"))
    }
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Records").field("sent", &self.tx.sequence).field("opened", &self.rx.sequence).finish()
    }
}
