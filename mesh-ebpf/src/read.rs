//! Reading hook contexts in the one way the verifier accepts.
//!
//! Reading `local_ip6` in one branch and `local_ip4` in the other lets the compiler merge the two into one
//! load from a computed offset, which the verifier refuses ("dereference of modified ctx ptr"). So each field
//! is read with a volatile load, before anything is decided.

use mesh_common::key::{Ip, v4_mapped};

pub const AF_INET: u32 = 2;
pub const AF_INET6: u32 = 10;
pub const IPPROTO_TCP: u32 = 6;

/// Reads one field of a context.
macro_rules! field {
    ($place:expr) => {
        // SAFETY: a field of the context that the kernel handed to the program.
        unsafe { core::ptr::read_volatile(&raw const $place) }
    };
}
pub(crate) use field;

/// Four network-order words as an address.
#[inline(always)]
pub fn ip6(words: [u32; 4]) -> Ip {
    let [a, b, c, d] = words.map(u32::to_ne_bytes);
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
}

/// One network-order word as an address.
#[inline(always)]
pub fn ip4(word: u32) -> Ip {
    v4_mapped(word.to_ne_bytes())
}

/// The four network-order words of an address.
#[inline(always)]
pub fn words(ip: &Ip) -> [u32; 4] {
    [
        u32::from_ne_bytes([ip[0], ip[1], ip[2], ip[3]]),
        u32::from_ne_bytes([ip[4], ip[5], ip[6], ip[7]]),
        u32::from_ne_bytes([ip[8], ip[9], ip[10], ip[11]]),
        u32::from_ne_bytes([ip[12], ip[13], ip[14], ip[15]]),
    ]
}

/// Whether an address is v4-mapped.
#[inline(always)]
pub fn is_v4(ip: &Ip) -> bool {
    let [a, b, c, _] = words(ip);
    a == 0 && b == 0 && c == 0xffff_u32.to_be()
}
