//! The ways in which a program may open a stream.

use std::io;
use std::net::{SocketAddr, TcpStream};

use crate::sys;

/// One of them. The stream is made in the network namespace of the calling thread.
pub type Way = fn(SocketAddr) -> io::Result<TcpStream>;

/// Fast Open, which sends an `x` with its first segment.
pub const FAST_OPEN: &str = "Fast Open";

/// Each way by its name.
pub const WAYS: [(&str, Way); 6] = [
    ("connect", |to| TcpStream::connect(to)),
    ("connect, non-blocking", sys::non_blocking_connect),
    (FAST_OPEN, sys::fast_open_send),
    ("MPTCP", sys::multipath_connect),
    ("io_uring connect", sys::uring_connect),
    ("connect of an IPv6 socket, v4-mapped", |to| {
        TcpStream::connect(match to {
            SocketAddr::V4(v4) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), to.port()),
            SocketAddr::V6(_) => to,
        })
    }),
];
