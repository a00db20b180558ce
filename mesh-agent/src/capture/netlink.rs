//! Questions and answers over a netlink socket of the calling thread's network namespace.

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
    ask(protocol, message, NLM_F_ACK | flags).map(drop)
}

/// Sends `message` with `flags` (`NLM_F_REQUEST` is added; `NLM_F_ACK` or `NLM_F_DUMP` must be among them) and gives
/// what is answered, up to the acknowledgement or the end of the dump.
///
/// # Errors
/// The kernel's errno, e.g. EEXIST, ENOENT.
pub(super) fn ask<T>(protocol: isize, message: T, flags: u16) -> io::Result<Vec<T>>
where
    T: NetlinkSerializable + NetlinkDeserializable + std::fmt::Debug,
{
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = 1;
    let mut packet = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut answers = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        if !take_datagram(&datagram, &mut answers)? {
            return Ok(answers);
        }
    }
}

/// Reads the messages of one datagram. Returns whether more follow.
fn take_datagram<T: NetlinkDeserializable>(datagram: &[u8], answers: &mut Vec<T>) -> io::Result<bool> {
    let mut rest = datagram;
    while !rest.is_empty() {
        let message = NetlinkMessage::<T>::deserialize(rest).map_err(io::Error::other)?;
        let len = (message.header.length as usize).next_multiple_of(4);
        match message.payload {
            NetlinkPayload::InnerMessage(answer) => answers.push(answer),
            NetlinkPayload::Done(_) => return Ok(false),
            // An acknowledgement is an error message with code 0.
            NetlinkPayload::Error(error) => match error.raw_code() {
                0 => return Ok(false),
                code => return Err(io::Error::from_raw_os_error(-code)),
            },
            _ => {}
        }
        // A length of zero would never end.
        rest = rest.get(len.max(4)..).unwrap_or_default();
    }
    Ok(true)
}
