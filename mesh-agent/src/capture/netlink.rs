//! One request, one answer, over a netlink socket of the calling thread's network namespace.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};

/// Sends `message` with `flags` (`NLM_F_REQUEST` and `NLM_F_ACK` are added) and waits for the acknowledgement.
///
/// # Errors
/// The kernel's errno, e.g. EEXIST, ENOENT.
pub(super) fn request<T>(protocol: isize, message: T, flags: u16) -> io::Result<()>
where
    T: NetlinkSerializable + NetlinkDeserializable + std::fmt::Debug,
{
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    header.sequence_number = 1;
    let mut packet = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    match NetlinkMessage::<T>::deserialize(&answer).map_err(io::Error::other)?.payload {
        // An acknowledgement is an error message with code 0.
        NetlinkPayload::Error(error) => match error.raw_code() {
            0 => Ok(()),
            code => Err(io::Error::from_raw_os_error(-code)),
        },
        other => Err(io::Error::other(format!("unexpected netlink answer: {other:?}"))),
    }
}
