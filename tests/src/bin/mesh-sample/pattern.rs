//! An endless stream of bytes that never repeats in practice, so that a lost, doubled or swapped one shows.

use std::io::{self, Read, Write};

use anyhow::{Result, bail};

/// Bytes per read or write.
const CHUNK: usize = 64 * 1024;

/// Generator of the stream (xorshift64*).
pub struct Pattern {
    state: u64,
}

impl Pattern {
    /// The stream number `seed`.
    pub fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1 }
    }

    /// Writes the next eight bytes of the stream to each whole piece of `buffer`, whose length is a multiple of 8.
    fn fill(&mut self, buffer: &mut [u8]) {
        for piece in buffer.chunks_exact_mut(8) {
            self.state ^= self.state >> 12;
            self.state ^= self.state << 25;
            self.state ^= self.state >> 27;
            piece.copy_from_slice(&self.state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
        }
    }
}

/// Sends the first `bytes` of stream `seed`.
pub fn send(mut to: impl Write, seed: u64, bytes: u64) -> io::Result<()> {
    let mut pattern = Pattern::new(seed);
    let mut buffer = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        pattern.fill(&mut buffer);
        let now = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
        to.write_all(buffer.get(..now).unwrap_or_default())?;
        left -= now as u64;
    }
    Ok(())
}

/// Reads to the end of data, which must be exactly the first `bytes` of stream `seed`.
pub fn check(mut from: impl Read, seed: u64, bytes: u64) -> Result<()> {
    let mut pattern = Pattern::new(seed);
    let (mut expected, mut got) = (vec![0; CHUNK], vec![0; CHUNK]);
    let (mut at, mut offset) = (0u64, CHUNK);
    loop {
        if offset == CHUNK {
            pattern.fill(&mut expected);
            offset = 0;
        }
        let length = from.read(got.get_mut(..CHUNK - offset).unwrap_or_default())?;
        if length == 0 {
            break;
        }
        if got.get(..length) != expected.get(offset..offset + length) {
            bail!("the bytes from {at} to {} are not those that were sent", at + length as u64);
        }
        offset += length;
        at += length as u64;
    }
    if at != bytes {
        bail!("{at} bytes arrived, {bytes} were sent");
    }
    Ok(())
}
