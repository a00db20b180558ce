//! Preflights and the headers of actual requests.

use super::*;
use crate::model::route::{AllowList, Cors, OriginMatch};

fn origin(scheme: Scheme, host: &str, wildcard: bool, port: u16) -> OriginMatch {
    OriginMatch::Origin { scheme, host: host.into(), wildcard, port }
}

fn only(names: &[&str]) -> AllowList {
    AllowList::Only(names.iter().map(|name| (*name).into()).collect())
}

fn shop() -> Cors {
    Cors {
        origins: vec![
            origin(Scheme::Https, "shop.example", false, 443),
            origin(Scheme::Http, ".dev.example", true, 8080),
        ],
        credentials: false,
        methods: only(&["GET", "PUT"]),
        headers: only(&["x-a", "x-b"]),
        expose: only(&["x-out"]),
        max_age: 60,
    }
}

/// The answer's headers as `name: value`, without the reason; `None` when the request goes on.
fn preflight(cors: Cors, headers: &[(&str, &str)]) -> Option<Vec<String>> {
    let routes = routes(vec![Filter::Cors(cors)]);
    let parts = request("OPTIONS", "/", headers);
    match begin(&routes, &RequestView::of(&parts), DIALLED, |_| None) {
        Step::Answer(answer) => {
            assert_eq!((answer.status.as_u16(), answer.reason), (204, AnswerReason::Preflight));
            Some(shown(&answer.headers))
        }
        Step::Forward(_) => None,
    }
}

fn shown(headers: &HeaderMap) -> Vec<String> {
    let mut shown: Vec<String> = headers
        .iter()
        .filter(|(name, _)| !name.as_str().starts_with("x-mesh"))
        .map(|(name, value)| {
            format!("{}: {}", name.as_str().trim_start_matches("access-control-"), value.to_str().unwrap())
        })
        .collect();
    shown.sort();
    shown
}

const METHOD: (&str, &str) = ("access-control-request-method", "PUT");

#[test]
fn an_origin_that_may_ask_is_told_what_is_allowed() {
    let expected = [
        "allow-headers: x-a, x-b",
        "allow-methods: GET, PUT",
        "allow-origin: https://shop.example",
        "max-age: 60",
        "vary: origin",
    ];
    let got = preflight(shop(), &[("origin", "https://shop.example"), METHOD]);
    assert_eq!(got.as_deref(), Some(&expected.map(str::to_owned)[..]));
}

#[test]
fn origins_match_by_scheme_host_and_port() {
    for (asked, allowed) in [
        ("https://shop.example", true),
        ("https://shop.example:443", true),
        ("https://SHOP.example", true),
        ("http://shop.example", false),
        ("https://shop.example:8443", false),
        ("https://x.shop.example", false),
        ("https://shop.example.evil", false),
        ("http://a.dev.example:8080", true),
        ("http://a.b.dev.example:8080", true),
        ("http://dev.example:8080", false),
        ("http://adev.example:8080", false),
        ("http://a.dev.example", false),
        ("null", false),
        ("ftp://shop.example", false),
        ("https://shop.example:x", false),
        ("https://user@shop.example", false),
    ] {
        let got = preflight(shop(), &[("origin", asked), METHOD]).expect("an answer");
        assert_eq!(got.contains(&format!("allow-origin: {asked}")), allowed, "{asked}: {got:?}");
        assert!(allowed || got == ["vary: origin"], "{asked}: {got:?}");
    }
}

#[test]
fn a_wildcard_is_a_star_only_without_credentials() {
    let any = |credentials| Cors {
        origins: vec![OriginMatch::Any],
        credentials,
        methods: AllowList::Any,
        headers: AllowList::Any,
        expose: AllowList::Any,
        max_age: 5,
    };
    let asked = [("origin", "http://a"), METHOD, ("access-control-request-headers", "x-q")];
    let open = preflight(any(false), &asked).expect("an answer");
    assert_eq!(open, ["allow-headers: *", "allow-methods: *", "allow-origin: *", "max-age: 5", "vary: origin"]);
    let secret = preflight(any(true), &asked).expect("an answer");
    let expected = [
        "allow-credentials: true",
        "allow-headers: x-q",
        "allow-methods: PUT",
        "allow-origin: http://a",
        "max-age: 5",
        "vary: origin",
    ];
    assert_eq!(secret, expected);
    let without_headers = preflight(any(true), &asked[..2]).expect("an answer");
    assert!(!without_headers.iter().any(|line| line.starts_with("allow-headers")), "{without_headers:?}");
}

#[test]
fn what_is_no_preflight_goes_on_and_its_answer_is_marked() {
    assert_eq!(preflight(shop(), &[("origin", "https://shop.example")]), None);
    assert_eq!(preflight(shop(), &[METHOD]), None);
    for (asked, expected) in [
        (
            Some("https://shop.example"),
            &["allow-origin: https://shop.example", "expose-headers: x-out", "vary: origin"][..],
        ),
        (Some("https://evil.example"), &["vary: origin"][..]),
        (None, &["vary: origin"][..]),
    ] {
        let routes = routes(vec![Filter::Cors(shop())]);
        let headers: Vec<(&str, &str)> = asked.map(|asked| ("origin", asked)).into_iter().collect();
        let parts = request("GET", "/", &headers);
        let Step::Forward(forward) = begin(&routes, &RequestView::of(&parts), DIALLED, |_| None) else { panic!() };
        let mut answer = HeaderMap::new();
        forward.edit_response(&mut answer);
        assert_eq!(shown(&answer), expected, "{asked:?}");
    }
}

#[test]
fn a_redirect_can_be_followed_across_origins() {
    let redirect = crate::model::route::Redirect {
        scheme: None,
        hostname: None,
        port: None,
        path: None,
        status: http::StatusCode::FOUND,
    };
    let routes = routes(vec![Filter::Cors(shop()), Filter::Redirect(redirect)]);
    let parts = request("GET", "/", &[("origin", "https://shop.example"), ("host", "a")]);
    let Step::Answer(answer) = begin(&routes, &RequestView::of(&parts), DIALLED, |_| None) else { panic!() };
    assert!(shown(&answer.headers).contains(&"allow-origin: https://shop.example".to_owned()));
}
