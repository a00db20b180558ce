//! The choosers: which of several a request goes to. Pure: costs, turns, keys and dice are arguments.

use std::net::IpAddr;

use http::HeaderMap;
use http::header::COOKIE;
use rand::{Rng, RngExt};

use crate::model::addr::EndpointAddr;
use crate::model::traffic::HashKey;

/// Two different ones of `count`, drawn at random; the same one twice when there is no other.
pub(super) fn two(count: usize, dice: &mut impl Rng) -> Option<(usize, usize)> {
    match count {
        0 => None,
        1 => Some((0, 0)),
        _ => {
            let first = dice.random_range(0..count);
            // Drawn from the others: adding 1..count to `first` around the ring never meets `first` again.
            Some((first, (first + dice.random_range(1..count)) % count))
        }
    }
}

/// Whether rather the second of two is taken, by what each costs.
///
/// The odds are those of the squares: of two that cost about the same each gets about half, where always taking the
/// lesser would give one of them everything until the average turns; one that costs ten times as much gets a
/// hundredth.
pub(super) fn second_of(first: f32, second: f32, dice: &mut impl Rng) -> bool {
    let (first, second) = (first * first, second * second);
    let both = first + second;
    if both > 0.0 && both.is_finite() { dice.random::<f32>() * both < first } else { second < first }
}

/// What of a request makes it belong to an endpoint, as a number; `None`: it has no such thing.
#[must_use]
pub fn key(of: &HashKey, headers: &HeaderMap, client: IpAddr) -> Option<u64> {
    match of {
        HashKey::Source => Some(match client.to_canonical() {
            IpAddr::V4(ip) => digest(0, &ip.octets()),
            IpAddr::V6(ip) => digest(0, &ip.octets()),
        }),
        HashKey::Header(name) => {
            let mut values = headers.get_all(name).iter().peekable();
            values.peek()?;
            Some(values.fold(0, |sum, value| digest(sum, value.as_bytes())))
        }
        HashKey::Cookie(name) => {
            let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
            let mut pairs = cookies.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
            pairs.find(|(own, _)| *own == &**name).map(|(_, value)| digest(0, value.as_bytes()))
        }
    }
}

/// How strongly `key` belongs to `endpoint`; it goes to the one to which it belongs most (rendezvous hashing).
///
/// When an endpoint leaves, its keys alone go elsewhere, and to all the others alike; one that joins takes its share
/// from all alike. There is no table to build and to share, every agent of the mesh comes to the same result, and the
/// walk over the endpoints is made anyway to see which are eligible. The load is not bounded: a key with two requests
/// at once would be on two endpoints.
pub(super) fn affinity(key: u64, endpoint: EndpointAddr) -> u64 {
    let port = endpoint.addr().port().to_be_bytes();
    let addr = match endpoint.ip() {
        IpAddr::V4(ip) => digest(digest(0, &ip.octets()), &port),
        IpAddr::V6(ip) => digest(digest(0, &ip.octets()), &port),
    };
    mix(key ^ mix(addr))
}

/// FNV-1a: the same on every machine and in every version, which the standard library's hash is not.
fn digest(seed: u64, bytes: &[u8]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    bytes.iter().fold(seed ^ OFFSET, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(PRIME))
}

/// Spreads a number over all bits (the finalizer of SplitMix64).
fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    fn endpoints(count: u8) -> Vec<EndpointAddr> {
        (0..count).map(|n| EndpointAddr::new(([10, 0, 0, n], 80).into())).collect()
    }

    /// Where `key` goes among `endpoints`.
    fn home(key: u64, endpoints: &[EndpointAddr]) -> EndpointAddr {
        *endpoints.iter().max_by_key(|endpoint| affinity(key, **endpoint)).expect("an endpoint")
    }

    fn keys() -> impl Iterator<Item = u64> {
        (0..10_000_u32).map(|user| digest(0, user.to_string().as_bytes()))
    }

    #[test]
    fn keys_spread_evenly() {
        let all = endpoints(10);
        let mut shares: HashMap<EndpointAddr, u32> = HashMap::new();
        for key in keys() {
            *shares.entry(home(key, &all)).or_default() += 1;
        }
        assert!(shares.len() == 10 && shares.values().all(|share| (900..1100).contains(share)), "{shares:?}");
    }

    proptest! {
        #[test]
        fn only_the_keys_of_an_endpoint_that_leaves_move_and_to_all_the_others(gone in 0_usize..10) {
            let all = endpoints(10);
            let mut left = all.clone();
            let gone = left.remove(gone);
            let mut heirs: HashMap<EndpointAddr, u32> = HashMap::new();
            for key in keys() {
                let (before, after) = (home(key, &all), home(key, &left));
                if before == gone {
                    *heirs.entry(after).or_default() += 1;
                } else {
                    prop_assert_eq!(before, after);
                }
            }
            let moved: u32 = heirs.values().sum();
            prop_assert!(heirs.len() == 9 && (900..1100).contains(&moved), "{} to {}", moved, heirs.len());
        }
    }

    #[test]
    fn a_key_is_what_the_policy_names_and_the_same_for_every_agent() {
        let mut headers = HeaderMap::new();
        headers.append("x-user", "ann".parse().unwrap());
        headers.append("cookie", "a=1; session=s1".parse().unwrap());
        headers.append("cookie", "other=2".parse().unwrap());
        let ip: IpAddr = "10.0.0.1".parse().unwrap();
        let of = |of: HashKey| key(&of, &headers, ip);
        assert_eq!(of(HashKey::Header("x-user".parse().unwrap())), Some(digest(0, b"ann")));
        assert_eq!(of(HashKey::Cookie("session".into())), Some(digest(0, b"s1")));
        assert_eq!(of(HashKey::Cookie("other".into())), Some(digest(0, b"2")));
        assert_eq!(of(HashKey::Cookie("sess".into())), None);
        assert_eq!(of(HashKey::Header("x-none".parse().unwrap())), None);
        assert_eq!(of(HashKey::Source), key(&HashKey::Source, &headers, "::ffff:10.0.0.1".parse().unwrap()));
        assert_eq!(digest(0, b"a"), 0xaf63_dc4c_8601_ec8c, "FNV-1a as its authors have it");
    }

    #[test]
    fn the_odds_of_two_follow_what_they_cost() {
        let mut dice = SmallRng::seed_from_u64(7);
        let mut share = |first: f32, second: f32| {
            (0..10_000).filter(|_| second_of(first, second, &mut dice)).count() as f64 / 10_000.0
        };
        assert!((0.48..0.52).contains(&share(0.01, 0.01)));
        assert!((0.40..0.50).contains(&share(0.010, 0.011)));
        assert!(share(0.01, 0.1) < 0.02 && share(0.1, 0.01) > 0.98);
        assert!(share(0.01, 0.0) > 0.999, "a new one is tried at once");
        assert_eq!(share(0.0, 0.0), 0.0, "the first drawn, and that was drawn at random");
    }

    #[test]
    fn two_are_never_the_same_one_unless_there_is_no_other() {
        let mut dice = SmallRng::seed_from_u64(7);
        assert_eq!((two(0, &mut dice), two(1, &mut dice)), (None, Some((0, 0))));
        for _ in 0..1000 {
            let (first, second) = two(3, &mut dice).expect("two");
            assert!(first != second && first < 3 && second < 3);
        }
    }
}
