//! Looking at the wire: every frame of one interface, kept in memory and searched afterwards.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, ensure};

use crate::netns::Netns;
use crate::sys;

/// Veth pairs hand over unsegmented packets of up to 64 KiB.
const FRAME_BYTES: usize = 128 * 1024;
/// Room for bursts while the reading thread waits for its turn.
const SOCKET_BYTES: i32 = 64 * 1024 * 1024;
/// A test that sends more than this has no business in a capture.
const MAX_BYTES: usize = 512 * 1024 * 1024;

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    reader: Option<JoinHandle<Result<Frames>>>,
}

/// What a capture saw.
#[derive(Debug, Default)]
pub struct Frames {
    frames: Vec<Vec<u8>>,
}

/// One TCP segment of a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// What it carries.
    pub payload: &'a [u8],
}

impl Capture {
    /// Begins to capture `interface` of `netns`, both directions.
    ///
    /// # Errors
    /// When there is no such interface, or no privilege.
    pub fn start(netns: &Netns, interface: &str) -> Result<Self> {
        let socket = netns.run(|| {
            let index = nix::net::if_::if_nametoindex(interface)?;
            sys::packet_socket(index, SOCKET_BYTES)
        })?;
        let socket = socket.with_context(|| format!("cannot capture {interface} of {}", netns.name()))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let reader = std::thread::spawn(move || read(socket, &stopped));
        Ok(Self { stop, reader: Some(reader) })
    }

    /// Ends the capture.
    ///
    /// # Errors
    /// When frames were lost: what was not seen proves nothing.
    pub fn stop(mut self) -> Result<Frames> {
        self.stop.store(true, Ordering::Release);
        let reader = self.reader.take().context("the capture was stopped before")?;
        reader.join().map_err(|_| anyhow!("the capture's reader panicked"))?
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

fn read(socket: OwnedFd, stop: &AtomicBool) -> Result<Frames> {
    let mut file = File::from(socket);
    let mut buffer = vec![0; FRAME_BYTES];
    let mut frames = Frames::default();
    let mut total = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(length) => {
                let frame = buffer.get(..length).unwrap_or_default();
                total += length;
                ensure!(total <= MAX_BYTES, "the capture holds more than {MAX_BYTES} bytes");
                frames.frames.push(frame.to_vec());
            }
            // The socket's read timeout: what was on its way when the stop was asked for has been read.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                if stop.load(Ordering::Acquire) {
                    break;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("cannot read frames"),
        }
    }
    let dropped = sys::packets_dropped(&file.into())?;
    ensure!(dropped == 0, "the capture lost {dropped} frames");
    Ok(frames)
}

impl Frames {
    /// How many frames.
    #[must_use]
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether nothing was seen.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// How many frames contain `bytes`.
    #[must_use]
    pub fn containing(&self, bytes: &[u8]) -> usize {
        self.frames.iter().filter(|frame| contains(frame, bytes)).count()
    }

    /// The TCP segments that carry something.
    pub fn segments(&self) -> impl Iterator<Item = Segment<'_>> {
        self.frames.iter().filter_map(|frame| segment(frame)).filter(|segment| !segment.payload.is_empty())
    }

    /// Bytes carried by TCP, by the port that looks like a server's: the smaller one.
    #[must_use]
    pub fn bytes_by_port(&self) -> BTreeMap<u16, usize> {
        let mut bytes = BTreeMap::new();
        for segment in self.segments() {
            *bytes.entry(segment.source_port.min(segment.destination_port)).or_default() += segment.payload.len();
        }
        bytes
    }

    /// TLS versions that servers chose in the `ServerHello`s on `port` (0x0304 = TLS 1.3), with their count.
    #[must_use]
    pub fn tls_versions(&self, port: u16) -> BTreeMap<u16, usize> {
        let mut versions = BTreeMap::new();
        for segment in self.segments().filter(|segment| segment.source_port == port) {
            if let Some(version) = server_hello_version(segment.payload) {
                *versions.entry(version).or_default() += 1;
            }
        }
        versions
    }
}

fn contains(text: &[u8], bytes: &[u8]) -> bool {
    let Some((first, _)) = bytes.split_first() else { return true };
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| byte == first) {
        rest = rest.get(at..).unwrap_or_default();
        if rest.starts_with(bytes) {
            return true;
        }
        rest = rest.get(1..).unwrap_or_default();
    }
    false
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Ethernet, then IPv4 (RFC 791) or IPv6 without extension headers (RFC 8200), then TCP (RFC 9293).
fn segment(frame: &[u8]) -> Option<Segment<'_>> {
    const TCP: u8 = 6;
    let packet = frame.get(14..)?;
    let tcp = match be16(frame, 12)? {
        0x0800 if *packet.get(9)? == TCP => {
            let header = usize::from(packet.first()? & 0x0f) * 4;
            packet.get(header..usize::from(be16(packet, 2)?).max(header))?
        }
        0x86dd if *packet.get(6)? == TCP => packet.get(40..40 + usize::from(be16(packet, 4)?))?,
        _ => return None,
    };
    let header = usize::from(tcp.get(12)? >> 4) * 4;
    Some(Segment { source_port: be16(tcp, 0)?, destination_port: be16(tcp, 2)?, payload: tcp.get(header..)? })
}

/// The version that a `ServerHello` at the start of `payload` chose (RFC 8446 §4.1.3): the one of the
/// `supported_versions` extension if it is there, else the legacy one.
fn server_hello_version(payload: &[u8]) -> Option<u16> {
    const HANDSHAKE: u8 = 22;
    const SERVER_HELLO: u8 = 2;
    const SUPPORTED_VERSIONS: u16 = 43;
    if *payload.first()? != HANDSHAKE || *payload.get(5)? != SERVER_HELLO {
        return None;
    }
    let body = payload.get(9..)?;
    let legacy = be16(body, 0)?;
    let session_id = usize::from(*body.get(34)?);
    // After the session id: cipher suite (2), compression (1), extensions' length (2).
    let mut extensions = body.get(35 + session_id + 5..)?;
    while let (Some(kind), Some(length)) = (be16(extensions, 0), be16(extensions, 2)) {
        if kind == SUPPORTED_VERSIONS {
            return be16(extensions, 4);
        }
        extensions = extensions.get(4 + usize::from(length)..)?;
    }
    Some(legacy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_needle_is_found_wherever_it_lies() {
        for (text, needle, found) in
            [("aab", "ab", true), ("ab", "ab", true), ("xaby", "ab", true), ("aaa", "ab", false), ("", "a", false)]
        {
            assert_eq!(contains(text.as_bytes(), needle.as_bytes()), found, "{text} {needle}");
        }
    }

    #[test]
    fn a_segment_ends_where_its_packet_does_not_where_the_frame_does() {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00]);
        let mut packet = vec![0x45, 0, 0, 42, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        packet.extend([0x3a, 0x98, 0x01, 0xbb, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x18, 0, 0, 0, 0, 0, 0]);
        packet.extend(b"hi");
        frame.extend(packet);
        frame.extend(b"padding");
        let expected = Segment { source_port: 15000, destination_port: 443, payload: b"hi" };
        assert_eq!(segment(&frame), Some(expected));
    }

    #[test]
    fn the_version_of_a_server_hello_is_read_from_its_extension() {
        let mut hello = vec![22, 3, 3, 0, 0, 2, 0, 0, 0, 3, 3];
        hello.extend([7; 32]);
        hello.extend([0, 0x13, 0x01, 0, 0, 12]);
        hello.extend([0, 51, 0, 2, 9, 9]);
        let tls12 = hello.clone();
        hello.extend([0, 43, 0, 2, 3, 4]);
        assert_eq!(server_hello_version(&hello), Some(0x0304));
        assert_eq!(server_hello_version(&tls12), Some(0x0303));
        assert_eq!(server_hello_version(b"GET / HTTP/1.1"), None);
    }
}
