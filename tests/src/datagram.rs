//! The ways in which a program may send a datagram; each sends [`WORD`] to the address given.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, sendmmsg, sendmsg, sendto};

use crate::sys;

/// What is sent.
pub const WORD: &[u8] = b"out";

/// Cluster DNS, where anybody may connect to.
pub const CONNECTED_TO: [&str; 2] = ["10.96.0.10", "fd96::10"];

/// A way of sending.
pub type Way = fn(SocketAddr) -> io::Result<()>;

/// Those of UDP, with their names.
pub const WAYS: [(&str, Way); 9] = [
    ("connect, then send", connected),
    ("sendto", unconnected),
    ("sendmsg", message),
    ("sendmmsg", messages),
    ("sendto on a socket connected elsewhere", past_its_connection),
    ("sendto of an IPv6 socket, v4-mapped", mapped),
    ("connect of an IPv6 socket, v4-mapped", mapped_connected),
    ("io_uring sendmsg", uring),
    ("sendto with AF_UNSPEC", unspecified),
];

fn any(to: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    UdpSocket::bind((any, 0))
}

fn connected(to: SocketAddr) -> io::Result<()> {
    let socket = any(to)?;
    socket.connect(to)?;
    socket.send(WORD).map(drop)
}

fn unconnected(to: SocketAddr) -> io::Result<()> {
    any(to)?.send_to(WORD, to).map(drop)
}

fn message(to: SocketAddr) -> io::Result<()> {
    let to_storage = SockaddrStorage::from(to);
    sendmsg(any(to)?.as_raw_fd(), &[IoSlice::new(WORD)], &[], MsgFlags::empty(), Some(&to_storage))?;
    Ok(())
}

fn messages(to: SocketAddr) -> io::Result<()> {
    let mut headers = MultiHeaders::preallocate(1, None);
    let addresses = [Some(SockaddrStorage::from(to))];
    let words = [[IoSlice::new(WORD)]];
    let sent = sendmmsg(any(to)?.as_raw_fd(), &mut headers, &words, addresses, [], MsgFlags::empty())?;
    // A first message that fails is the call's error.
    if sent.count() == 1 { Ok(()) } else { Err(io::Error::other("no message was sent")) }
}

fn past_its_connection(to: SocketAddr) -> io::Result<()> {
    let socket = any(to)?;
    let [v4, v6] = CONNECTED_TO;
    socket.connect((if to.is_ipv4() { v4 } else { v6 }, 53))?;
    sendto(socket.as_raw_fd(), WORD, &SockaddrStorage::from(to), MsgFlags::empty())?;
    Ok(())
}

fn as_mapped(to: SocketAddr) -> SocketAddr {
    match to.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), to.port()),
        IpAddr::V6(_) => to,
    }
}

fn mapped(to: SocketAddr) -> io::Result<()> {
    UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?.send_to(WORD, as_mapped(to)).map(drop)
}

fn mapped_connected(to: SocketAddr) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
    socket.connect(as_mapped(to))?;
    socket.send(WORD).map(drop)
}

fn uring(to: SocketAddr) -> io::Result<()> {
    sys::uring_send(&any(to)?.into(), to, WORD)
}

fn unspecified(to: SocketAddr) -> io::Result<()> {
    match to {
        SocketAddr::V4(v4) => sys::send_unspecified(&any(to)?.into(), v4, WORD),
        // IPv6 takes no such address.
        SocketAddr::V6(_) => unconnected(to),
    }
}

/// A datagram of a protocol that has no such hooks, or none of its own; `connect`: by a connected socket.
///
/// # Errors
/// What the system says.
pub fn of_protocol(to: SocketAddr, kind: i32, protocol: i32, bytes: &[u8], connect: bool) -> io::Result<()> {
    let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let socket: OwnedFd = sys::socket(family, kind, protocol)?;
    let to = SockaddrStorage::from(to);
    if connect {
        nix::sys::socket::connect(socket.as_raw_fd(), &to)?;
        nix::sys::socket::send(socket.as_raw_fd(), bytes, MsgFlags::empty())?;
    } else {
        sendto(socket.as_raw_fd(), bytes, &to, MsgFlags::empty())?;
    }
    Ok(())
}
