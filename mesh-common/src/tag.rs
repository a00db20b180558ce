//! Words of a map that say whose they are.
//!
//! A kernel hash map gives the memory of a replaced entry to the next insertion at once, so a program that has looked
//! an entry up may find another key's value in it, or parts of two. A word is read whole, and with a tag of its key in
//! it a foreign one is noticed: the reader looks again. What does not fit a word is an immutable entry of another map,
//! which the word names.

use crate::key::{PortKey, ServiceKey};

/// A key that words can be tagged with.
pub trait Tagged {
    /// Its tag: 32 bits, spread evenly.
    fn tag(&self) -> u32;
}

#[inline(always)]
fn mix(sum: u64, word: u64) -> u64 {
    // The fractional part of the golden ratio: an odd multiplier whose bits are spread evenly.
    let product = (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    product ^ (product >> 32)
}

impl Tagged for u64 {
    #[inline(always)]
    fn tag(&self) -> u32 {
        mix(0, *self) as u32
    }
}

impl Tagged for PortKey {
    #[inline(always)]
    fn tag(&self) -> u32 {
        mix(mix(0, self.netns_cookie), u64::from(self.port) << 16 | u64::from(self.direction)) as u32
    }
}

impl Tagged for ServiceKey {
    #[inline(always)]
    fn tag(&self) -> u32 {
        let [a, b, c, d, e, f, g, h, rest @ ..] = self.ip;
        let sum = mix(mix(0, u64::from_ne_bytes([a, b, c, d, e, f, g, h])), u64::from_ne_bytes(rest));
        mix(sum, u64::from(self.port) << 16 | u64::from(self.protocol)) as u32
    }
}

/// Names an immutable entry of another map by its number.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference {
    word: u64,
}

impl Reference {
    /// That of `key`.
    #[inline(always)]
    #[must_use]
    pub fn new(key: &impl Tagged, number: u32) -> Self {
        Self { word: u64::from(key.tag()) << 32 | u64::from(number) }
    }

    /// The number, if it is that of `key`.
    #[inline(always)]
    #[must_use]
    pub fn open(self, key: &impl Tagged) -> Option<u32> {
        ((self.word >> 32) as u32 == key.tag()).then_some(self.word as u32)
    }
}

/// How many low bits of a [`crate::value::PortRule`] are the rule.
const RULE_MASK: u32 = 0xf;

#[inline(always)]
pub(crate) fn tag_rule(key: &PortKey, rule: u32) -> u32 {
    key.tag() & !RULE_MASK | rule & RULE_MASK
}

#[inline(always)]
pub(crate) fn open_rule(key: &PortKey, word: u32) -> Option<u32> {
    let rule = word & RULE_MASK;
    (tag_rule(key, rule) == word).then_some(rule)
}

#[cfg(feature = "user")]
mod user {
    // SAFETY: one integer.
    unsafe impl aya::Pod for super::Reference {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{INBOUND, OUTBOUND};
    use crate::value::PortRule;

    #[test]
    fn a_reference_is_that_of_its_key() {
        let key = ServiceKey { ip: [1; 16], port: 80, protocol: 6 };
        let reference = Reference::new(&key, 7);
        assert_eq!(reference.open(&key), Some(7));
        let mut ip = key.ip;
        ip[15] = 2;
        for other in [ServiceKey { ip, ..key }, ServiceKey { port: 81, ..key }, ServiceKey { protocol: 17, ..key }] {
            assert_eq!(reference.open(&other), None, "{other:?}");
        }
        assert_eq!(Reference::new(&5_u64, u32::MAX).open(&5_u64), Some(u32::MAX));
        assert_eq!(Reference::new(&5_u64, 1).open(&6_u64), None);
    }

    #[test]
    fn a_rule_is_that_of_its_port_direction_and_pod() {
        let key = PortKey { netns_cookie: 1, port: 80, direction: INBOUND, pad: 0 };
        let rule = PortRule::new(&key, 3);
        assert_eq!(rule.open(&key), Some(3));
        for other in
            [PortKey { netns_cookie: 2, ..key }, PortKey { port: 81, ..key }, PortKey { direction: OUTBOUND, ..key }]
        {
            assert_eq!(rule.open(&other), None, "{other:?}");
        }
    }
}
