//! Packets made by hand, and the ways in which a process with CAP_NET_RAW may send them.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc;
use nix::sys::socket::{MsgFlags, SockaddrStorage, send, sendto};

use crate::sys;

/// TCP flags.
pub const SYN: u8 = 2;
/// TCP flags.
pub const RST: u8 = 4;
/// TCP flags.
pub const ACK: u8 = 16;
/// IP protocol numbers.
pub const TCP: u8 = 6;
/// IP protocol numbers.
pub const UDP: u8 = 17;
/// Ethernet types.
pub const ARP: u16 = 0x0806;

/// A TCP segment between two ends.
#[must_use]
pub fn tcp(from: SocketAddr, to: SocketAddr, flags: u8, data: &[u8]) -> Vec<u8> {
    let mut segment = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    segment.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(data);
    checksum_at(&mut segment, 16, from.ip(), to.ip(), TCP);
    segment
}

/// A UDP datagram between two ends.
#[must_use]
pub fn udp(from: SocketAddr, to: SocketAddr, data: &[u8]) -> Vec<u8> {
    let mut datagram = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    datagram.extend((8 + data.len() as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(data);
    checksum_at(&mut datagram, 6, from.ip(), to.ip(), UDP);
    datagram
}

/// An ICMP message of either version.
#[must_use]
pub fn icmp(from: IpAddr, to: IpAddr, kind: u8, code: u8, rest: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    message.extend(rest);
    if from.is_ipv4() {
        let sum = checksum(&message);
        drop(message.splice(2..4, sum.to_be_bytes()));
    } else {
        checksum_at(&mut message, 2, from, to, ICMP6);
    }
    message
}

/// ICMP for this family.
#[must_use]
pub fn icmp_protocol(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { ICMP } else { ICMP6 }
}

const ICMP: u8 = 1;
const ICMP6: u8 = 58;

/// An IP packet of either version without options, around `payload`.
#[must_use]
pub fn ip(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    fragment(from, to, protocol, payload, 0, 64)
}

/// The same with the fragment word of RFC 791 (IPv4 only), and a hop limit.
#[must_use]
pub fn fragment(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8], word: u16, hops: u8) -> Vec<u8> {
    let mut packet = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = vec![0x45, 0];
            header.extend((20 + payload.len() as u16).to_be_bytes());
            header.extend([0, 1]);
            header.extend(word.to_be_bytes());
            header.extend([hops, protocol, 0, 0]);
            header.extend(from.octets());
            header.extend(to.octets());
            let sum = checksum(&header);
            drop(header.splice(10..12, sum.to_be_bytes()));
            header
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend((payload.len() as u16).to_be_bytes());
            header.extend([protocol, hops]);
            header.extend(from.octets());
            header.extend(to.octets());
            header
        }
        // Of different families there is none.
        _ => Vec::new(),
    };
    packet.extend(payload);
    packet
}

/// A frame around an IP packet.
#[must_use]
pub fn frame(to: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let kind: u16 = if packet.first().is_some_and(|first| first >> 4 == 4) { 0x0800 } else { 0x86dd };
    framed(to, kind, packet)
}

/// A frame of this Ethernet type.
#[must_use]
pub fn framed(to: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = to.to_vec();
    frame.extend([2, 0, 0, 0, 0, 1]);
    frame.extend(kind.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Sends a whole IP packet by a raw IP socket (`IPPROTO_RAW`), in this thread's network namespace.
///
/// # Errors
/// What the system says.
pub fn send_ip(to: IpAddr, packet: &[u8]) -> io::Result<()> {
    let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let socket = sys::socket(family, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
    sendto(socket.as_raw_fd(), packet, &SockaddrStorage::from(SocketAddr::new(to, 0)), MsgFlags::empty())?;
    Ok(())
}

/// How a frame leaves a packet socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// As every packet does.
    Queue,
    /// Past queues, and what is attached to them (`PACKET_QDISC_BYPASS`).
    Bypass,
}

/// Sends a frame by a packet socket of this interface, in this thread's network namespace.
///
/// # Errors
/// What the system says.
pub fn send_frame(interface: &str, frame: &[u8], by: By) -> io::Result<()> {
    let index = nix::net::if_::if_nametoindex(interface)?;
    let socket: OwnedFd = sys::packet_socket(index, 1 << 16)?;
    if by == By::Bypass {
        sys::bypass_queues(&socket)?;
    }
    send(socket.as_raw_fd(), frame, MsgFlags::empty())?;
    Ok(())
}

fn checksum_at(bytes: &mut Vec<u8>, at: usize, from: IpAddr, to: IpAddr, protocol: u8) {
    let mut whole = Vec::new();
    for ip in [from, to] {
        match ip {
            IpAddr::V4(v4) => whole.extend(v4.octets()),
            IpAddr::V6(v6) => whole.extend(v6.octets()),
        }
    }
    whole.extend([0, protocol]);
    whole.extend((bytes.len() as u16).to_be_bytes());
    whole.extend(&*bytes);
    let sum = checksum(&whole);
    drop(bytes.splice(at..at + 2, sum.to_be_bytes()));
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| match pair {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        [high] => u32::from(*high) << 8,
        _ => 0,
    });
    let mut sum: u32 = words.sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
