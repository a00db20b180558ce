//! Random bytes and headers for what looks at them before or after hyper: detection, the watch over lengths, and what
//! is passed on from hop to hop.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Request, Version};
use proptest::prelude::*;
use proptest::sample::select;

use super::framing::Watch;
use super::hop;
use super::protocol::{Spoken, spoken};
use crate::fuzz_tests::{fuzz, fuzz_bytes, mutations};
use crate::proxy::tests::recorder::request;
use crate::proxy::tests::smuggling::corpus;

/// First bytes of what is spoken on other ports, and of HTTP/2.
fn openings() -> Vec<Vec<u8>> {
    let others: [&[u8]; 10] = [
        // As long as a method may be, and longer.
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEF /a HTTP/1.1\r\n\r\n",
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFG /a HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"*1\r\n$4\r\nPING\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"EHLO a HTTP/1.1\r\n",
        b"GET key\r\n",
        b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
        b"",
    ];
    corpus().into_iter().chain(others.map(<[u8]>::to_vec)).collect()
}

/// What RFC 9112 §3 and RFC 9113 §3.4 say of the first bytes, by the whole of them.
fn naive(bytes: &[u8]) -> Option<Spoken> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    if bytes.len() >= PREFACE.len() && bytes[..PREFACE.len()] == *PREFACE {
        return Some(Spoken::Http2);
    }
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let token = !method.is_empty() && HeaderName::from_bytes(method).is_ok() && method.len() <= 32;
    let plain = !target.is_empty() && target.iter().all(|byte| *byte > b' ' && *byte != 0x7f);
    (token && plain && version.starts_with(b"HTTP/1.")).then_some(Spoken::Http1)
}

#[test]
fn detection_agrees_with_the_standards_and_never_changes_its_mind() {
    fuzz_bytes(openings(), |bytes| {
        let found = spoken(&bytes);
        match naive(&bytes) {
            Some(expected) => prop_assert_eq!(found, Some(expected)),
            None => prop_assert!(!matches!(found, Some(Spoken::Http1 | Spoken::Http2))),
        }
        let mut answers = (0..=bytes.len()).map(|length| spoken(&bytes[..length]));
        if let Some(first) = answers.find_map(|answer| answer) {
            prop_assert!(answers.all(|answer| answer == Some(first)), "more bytes changed {first:?}");
        }
        Ok(())
    });
}

/// How many of the bytes pass, when they come in these pieces; `None`: all.
fn refused_after(bytes: &[u8], pieces: &[usize]) -> Option<usize> {
    let (mut watch, mut at) = (Watch::default(), 0);
    for piece in pieces.iter().copied().chain([bytes.len()]) {
        let end = (at + piece).min(bytes.len());
        if let Err(before) = watch.look(&bytes[at..end]) {
            return Some(at + before);
        }
        at = end;
    }
    None
}

/// Whether the head at the beginning says twice how long its body is.
fn says_it_twice(bytes: &[u8]) -> bool {
    let lines = bytes.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let head = lines.skip(1).take_while(|line| !line.is_empty());
    let names = head.filter_map(|line| line.split(|byte| *byte == b':').next());
    names
        .filter(|name| [&b"content-length"[..], b"transfer-encoding"].iter().any(|one| name.eq_ignore_ascii_case(one)))
        .count()
        > 1
}

#[test]
fn the_watch_refuses_what_is_said_twice_and_nothing_that_can_be_read_in_one_way() {
    fuzz(&(mutations(corpus()), proptest::collection::vec(0..40_usize, 0..8)), |(bytes, pieces)| {
        let refused = refused_after(&bytes, &[]);
        let in_pieces = refused_after(&bytes, &pieces);
        prop_assert_eq!(refused.is_some(), in_pieces.is_some(), "{:?} and {:?}", refused, in_pieces);
        // Where requests are as they should be, the head that follows them is looked at.
        let mut at = 0;
        while let Ok(Some((whole, length))) = request(&bytes[at..]) {
            at += length;
            prop_assert!(refused.is_none_or(|before| before >= at), "{} is refused", whole.line);
            let switches = whole.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("upgrade"));
            if switches || whole.line.starts_with("CONNECT ") {
                return Ok(());
            }
        }
        let rest = &bytes[at..];
        let whole_head = rest.windows(4).any(|window| window == b"\r\n\r\n");
        let fields_are_lines =
            request(&[rest.split(|b| *b == b'\n').next().unwrap_or_default(), b"\n\r\n"].concat()).is_ok();
        if whole_head && fields_are_lines && says_it_twice(rest) && sound_until_twice(rest) {
            prop_assert_eq!(refused, Some(at));
        }
        Ok(())
    });
}

/// Whether nothing before the second length is such that hyper refuses the head anyway.
fn sound_until_twice(bytes: &[u8]) -> bool {
    let mut seen = 0;
    for line in bytes.split(|byte| *byte == b'\n').skip(1) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return false };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        let length = name.eq_ignore_ascii_case(b"content-length");
        if length || name.eq_ignore_ascii_case(b"transfer-encoding") {
            seen += 1;
        }
        if seen == 2 {
            return true;
        }
        if length && std::str::from_utf8(value).ok().and_then(|value| value.parse::<u64>().ok()).is_none() {
            return false;
        }
    }
    false
}

const NAMES: [&str; 16] = [
    "connection",
    "te",
    "upgrade",
    "keep-alive",
    "proxy-connection",
    "http2-settings",
    "host",
    "content-length",
    "transfer-encoding",
    "x-a",
    "x-b",
    "x-mesh-agent-reason",
    "x-mesh-agents",
    "trailer",
    "cookie",
    "expect",
];
const VALUES: [&[u8]; 14] = [
    b"close",
    b"x-a",
    b"x-a, X-B",
    b"upgrade",
    b"Upgrade, te",
    b"websocket",
    b"h2c, websocket",
    b"trailers",
    b"gzip;q=1, trailers",
    b"content-length, host",
    b"",
    b",",
    b"\xff",
    b"3",
];

fn headers() -> impl Strategy<Value = Vec<(&'static str, &'static [u8])>> {
    proptest::collection::vec((select(&NAMES[..]), select(&VALUES[..])), 0..10)
}

/// The names that a `Connection` header lists, in small letters.
fn named(headers: &[(&str, &[u8])]) -> Vec<String> {
    let values = headers.iter().filter(|(name, _)| *name == "connection");
    let text = values.filter_map(|(_, value)| std::str::from_utf8(value).ok());
    text.flat_map(|value| value.split(',')).map(|name| name.trim().to_ascii_lowercase()).collect()
}

#[test]
fn what_is_passed_on_is_what_was_sent_without_what_concerns_one_hop() {
    fuzz(
        &(headers(), select(&[Version::HTTP_10, Version::HTTP_11, Version::HTTP_2][..]), any::<bool>()),
        |(sent, version, h2)| {
            let mut map = HeaderMap::new();
            for (name, value) in &sent {
                map.append(HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap());
            }
            let named = named(&sent);
            hop::disown(&mut map);
            hop::clean(&mut map, version);
            let own = ["connection", "te", "upgrade", "keep-alive", "proxy-connection", "http2-settings"];
            let framing = ["host", "content-length", "transfer-encoding"];
            let stays = |name: &str| {
                let removed = own.contains(&name) || named.iter().any(|one| one == name) && !framing.contains(&name);
                !removed && !name.starts_with("x-mesh-agent-")
            };
            for name in NAMES {
                let values = |wanted: &&(&str, &[u8])| wanted.0 == name;
                let expected: Vec<&[u8]> = sent.iter().filter(values).map(|(_, value)| *value).collect();
                let found: Vec<&[u8]> = map.get_all(name).iter().map(HeaderValue::as_bytes).collect();
                match name {
                    "te" => prop_assert!(found.is_empty() || found == [b"trailers"]),
                    "connection" => {
                        prop_assert!(found.is_empty() || (found == [b"upgrade"] && map.contains_key("upgrade")))
                    }
                    "upgrade" => {
                        prop_assert!(found.is_empty() || (found == [b"websocket"] && version == Version::HTTP_11))
                    }
                    _ if stays(name) => prop_assert_eq!(found, expected),
                    _ => prop_assert!(found.is_empty(), "{name} is passed on"),
                }
            }
            let mut parts = Request::builder().version(version).uri("/a").body(()).unwrap().into_parts().0;
            parts.headers = map;
            let ambiguous = hop::ambiguity(&parts).is_some();
            let count = |name: &str| parts.headers.get_all(name).iter().count();
            if count("host") > 1
                || count("content-length") > 1
                || (count("content-length") > 0 && count("transfer-encoding") > 0)
            {
                prop_assert!(ambiguous);
            }
            hop::convert(&mut parts, h2);
            if h2 {
                prop_assert!(
                    ["connection", "transfer-encoding", "upgrade"]
                        .iter()
                        .all(|name| !parts.headers.contains_key(*name))
                );
            }
            Ok(())
        },
    );
}
