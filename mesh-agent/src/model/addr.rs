//! Addresses with their role in the type, so that a peer's address is never dialled as a destination.
//!
//! Every address is canonical: a v4-mapped IPv6 address is kept as IPv4 ([`canonical`]).

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use mesh_common::key::{Ip, v4_mapped};

macro_rules! role {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(SocketAddr);

        impl $name {
            /// Wraps `addr` in its canonical form.
            #[must_use]
            pub fn new(addr: SocketAddr) -> Self {
                Self(canonical(addr))
            }

            /// The address and port.
            #[must_use]
            pub fn addr(self) -> SocketAddr {
                self.0
            }

            /// The address alone.
            #[must_use]
            pub fn ip(self) -> IpAddr {
                self.0.ip()
            }

            /// The port alone, in host order.
            #[must_use]
            pub fn port(self) -> u16 {
                self.0.port()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

role!(
    /// Where the application asked to go: the argument of its `connect()`.
    OrigDst
);
role!(
    /// The other side of an accepted connection, as the kernel names it.
    PeerAddr
);
role!(
    /// The address and port of a chosen endpoint (a pod's IP and its target port).
    EndpointAddr
);

/// Which endpoints of the dialled service are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Any.
    All,
    /// Those that the kernel cannot connect to by itself: it has drawn among all, and drawn one of these.
    Rest,
}

/// An address as the kernel's maps have it: 16 bytes in network order, IPv4 as v4-mapped.
#[must_use]
pub fn key_ip(ip: IpAddr) -> Ip {
    match ip.to_canonical() {
        IpAddr::V4(v4) => v4_mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// Turns `::ffff:a.b.c.d` into `a.b.c.d`; leaves everything else alone.
#[must_use]
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}
