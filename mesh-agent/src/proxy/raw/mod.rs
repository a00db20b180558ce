//! `mesh-raw/1`: one tunnel per TLS connection, between agents of this project.
//!
//! Against HTTP/2 it saves the multiplexing task, its wake-ups and its copies, and the windows. A connection that
//! ended in order carries the next tunnel, so that a new connection costs no handshake.

pub(super) mod frame;
mod over;
pub(super) mod tunnel;

pub(super) use frame::ALPN;
pub(super) use tunnel::RawTunnel;
