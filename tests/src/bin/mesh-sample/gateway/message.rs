//! Messages of the gRPC service: one string field, framed as gRPC frames it.
//!
//! ```text
//! 0 = not compressed | length, 4 bytes, big endian | 0x0a = field 1, a string | length, varint | text
//! ```

use anyhow::{Context, Result, bail, ensure};

const FIELD_1_STRING: u8 = 0x0a;

/// `text` as a whole message with its frame.
pub fn encode(text: &str) -> Vec<u8> {
    let mut message = vec![FIELD_1_STRING];
    let mut length = text.len();
    while length > 0x7f {
        message.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    message.push(length as u8);
    message.extend_from_slice(text.as_bytes());
    let mut frame = vec![0];
    frame.extend_from_slice(&(message.len() as u32).to_be_bytes());
    frame.append(&mut message);
    frame
}

/// The text of the one message that `frame` holds.
///
/// # Errors
/// When it holds something else.
pub fn decode(frame: &[u8]) -> Result<String> {
    let (head, message) = frame.split_at_checked(5).context("no whole gRPC frame")?;
    let (compressed, length) = head.split_at(1);
    let length = u32::from_be_bytes(length.try_into().context("no length")?) as usize;
    ensure!(compressed == [0] && length == message.len(), "not one uncompressed message: {head:?}");
    let Some((first, mut rest)) = message.split_first() else { return Ok(String::new()) };
    ensure!(*first == FIELD_1_STRING, "field and type {first:#x} are not the first string");
    let mut length = 0;
    for shift in (0..28).step_by(7) {
        let (byte, after) = rest.split_first().context("the length is cut off")?;
        rest = after;
        length |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            ensure!(rest.len() == length, "{} bytes instead of {length}", rest.len());
            return Ok(String::from_utf8_lossy(rest).into_owned());
        }
    }
    bail!("a length of more than four bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_every_length_come_back() {
        for length in [1, 127, 128, 300, 20_000] {
            let text = "x".repeat(length);
            assert_eq!(decode(&encode(&text)).ok(), Some(text));
        }
        assert_eq!(decode(&[0, 0, 0, 0, 0]).ok(), Some(String::new()), "an empty message");
    }

    #[test]
    fn what_is_cut_off_is_no_message() {
        let frame = encode(&"x".repeat(200));
        for cut in [0, 4, 6, 100] {
            assert!(decode(frame.get(..cut).unwrap_or_default()).is_err(), "{cut}");
        }
    }
}
