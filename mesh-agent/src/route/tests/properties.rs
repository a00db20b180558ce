//! Random routes and requests: one rule is met or none, and a matcher that knows no order of its own finds the same.

use std::cmp::Reverse;

use http::HeaderName;
use proptest::prelude::*;
use proptest::sample::select;
use regex::Regex;

use super::*;
use crate::fuzz_tests::fuzz;
use crate::model::route::{Candidate, HeaderMatch, Pattern, QueryMatch, TextMatch};
use crate::route::order::{Ranked, sorted};

/// Few values each, so that generated rules and requests meet often.
const PATHS: [&str; 14] = [
    "/",
    "/a",
    "/a/",
    "/a/b",
    "/ab",
    "/a//b",
    "/%61",
    "/a%2Fb",
    "/A",
    "/shop.Cart/Add",
    "/shop.Cart/",
    "/a;b",
    "/a/b/c",
    "/a/.",
];
const VALUES: [&str; 7] = ["x", "y", "", "x,y", "X", "xx", "%41"];
const NAMES: [&str; 4] = ["h", "host", "n", "a b"];
const PATTERNS: [&str; 8] = ["/a", "/a.*", ".*", "x|y", "(?i)x", "", "/[a-c]/?", "x+"];

fn text() -> impl Strategy<Value = TextMatch> {
    prop_oneof![
        select(&VALUES[..]).prop_map(|value| TextMatch::Exact(value.into())),
        select(&PATTERNS[..]).prop_map(|pattern| TextMatch::Regex(Pattern::new(pattern).unwrap())),
    ]
}

fn path() -> impl Strategy<Value = PathMatch> {
    let part = || {
        proptest::option::of(prop_oneof![
            text(),
            select(&["shop.Cart", "Add"][..]).prop_map(|part| TextMatch::Exact(part.into()))
        ])
    };
    prop_oneof![
        select(&PATHS[..]).prop_map(|path| PathMatch::Exact(path.into())),
        select(&PATHS[..]).prop_map(|path| PathMatch::Prefix(path.into())),
        select(&PATTERNS[..]).prop_map(|pattern| PathMatch::Regex(Pattern::new(pattern).unwrap())),
        (part(), part()).prop_map(|(service, method)| PathMatch::Grpc { service, method }),
    ]
}

fn unique<T: Clone, K: PartialEq>(values: &[T], key: impl Fn(&T) -> K) -> Vec<T> {
    let first = |(at, value): &(usize, &T)| values[..*at].iter().all(|other| key(other) != key(value));
    values.iter().enumerate().filter(first).map(|(_, value)| value.clone()).collect()
}

fn wanted() -> impl Strategy<Value = Match> {
    let method = proptest::option::of(select(&["GET", "POST", "get"][..]));
    let headers = proptest::collection::vec((select(&NAMES[..3]), text()), 0..3);
    let query = proptest::collection::vec((select(&NAMES[..]), text()), 0..3);
    (path(), method, headers, query).prop_map(|(path, method, headers, query)| Match {
        path,
        method: method.map(|method| method.parse().unwrap()),
        headers: unique(&headers, |(name, _)| *name)
            .into_iter()
            .map(|(name, value)| HeaderMatch { name: HeaderName::from_static(name), value })
            .collect(),
        query: unique(&query, |(name, _)| *name)
            .into_iter()
            .map(|(name, value)| QueryMatch { name: name.into(), value })
            .collect(),
    })
}

/// Matches of routes of several ages and names, no two in one place.
fn matches() -> impl Strategy<Value = Vec<Ranked>> {
    let place = (select(&["r", "s"][..]), 0..2_usize, 0..3_usize, 0..3_u32);
    let one = (wanted(), place).prop_map(|(matching, (route, index, at, weight))| {
        let backend = Backend {
            target: Target::Service(ServiceRef { namespace: "shop".into(), name: route.into(), port: 80 }),
            weight,
            filters: vec![],
        };
        let rule = Rule { backends: vec![backend], ..rule("shop", route, index) };
        // Objects of one name have one age.
        let created = (route == "r").then_some(1);
        Ranked { candidate: Candidate { matching, rule: Arc::new(rule) }, created, index: at }
    });
    let place = |ranked: &Ranked| (ranked.candidate.rule.id.clone(), ranked.index);
    proptest::collection::vec(one, 0..7).prop_map(move |all| unique(&all, place))
}

fn asked() -> impl Strategy<Value = Parts> {
    let target = prop_oneof![
        (select(&PATHS[..]), proptest::option::of("(h|n|a\\+b|%68|x)?=?(x|y|X|%78|%zz|x%2Cy|\\+)?(&n=x|&h=y|&)?"))
            .prop_map(|(path, query)| query.map_or(path.to_owned(), |query| format!("{path}?{query}"))),
        Just("*".to_owned()),
        Just("http://x/a".to_owned()),
        "/[!-~&&[^#\"<>\\\\^`{|}]]{0,12}".prop_map(|target| target),
    ];
    let headers = proptest::collection::vec((select(&NAMES[..3]), select(&VALUES[..])), 0..4);
    (select(&["GET", "POST", "get", "M-X"][..]), target, headers).prop_filter_map(
        "no request",
        |(method, target, headers)| {
            let mut request = Request::builder().method(method).uri(target);
            for (name, value) in headers {
                request = request.header(name, value);
            }
            Some(request.body(()).ok()?.into_parts().0)
        },
    )
}

/// What the Gateway API says of one match, word by word.
fn holds(wanted: &Match, parts: &Parts) -> bool {
    let text = |wanted: &TextMatch, found: &str| match wanted {
        TextMatch::Exact(exact) => **exact == *found,
        TextMatch::Regex(pattern) => {
            Regex::new(pattern.as_str()).unwrap();
            Regex::new(&format!("\\A(?:{})\\z", pattern.as_str())).unwrap().is_match(found)
        }
    };
    let path = parts.uri.path();
    let segments = |path: &str| path.split('/').map(str::to_owned).collect::<Vec<_>>();
    let path_holds = match &wanted.path {
        PathMatch::Exact(exact) => **exact == *path,
        PathMatch::Prefix(prefix) => {
            let mut prefix = segments(prefix);
            while prefix.last().is_some_and(String::is_empty) {
                prefix.pop();
            }
            segments(path).starts_with(&prefix)
        }
        PathMatch::Regex(pattern) => text(&TextMatch::Regex(pattern.clone()), path),
        PathMatch::Grpc { service: None, method: None } => true,
        PathMatch::Grpc { service, method } => match &segments(path)[..] {
            [empty, of, name] if empty.is_empty() => {
                service.as_ref().is_none_or(|w| text(w, of)) && method.as_ref().is_none_or(|w| text(w, name))
            }
            _ => false,
        },
    };
    let header = |wanted: &HeaderMatch| {
        let values: Vec<&str> =
            parts.headers.get_all(&wanted.name).iter().map(|value| value.to_str().unwrap()).collect();
        if wanted.name == http::header::HOST {
            let authority = parts.uri.authority().map(http::uri::Authority::as_str);
            let found = authority.or(values.first().copied()).unwrap_or_default();
            return !found.is_empty() && text(&wanted.value, found);
        }
        !values.is_empty() && text(&wanted.value, &values.join(","))
    };
    let query = |wanted: &QueryMatch| {
        let pairs =
            parts.uri.query().unwrap_or_default().split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let found = pairs
            .map(|(name, value)| (decoded(name), decoded(value)))
            .find(|(name, _)| *name == wanted.name.as_bytes());
        found.and_then(|(_, value)| String::from_utf8(value).ok()).is_some_and(|value| text(&wanted.value, &value))
    };
    path_holds
        && wanted.method.as_ref().is_none_or(|method| *method == parts.method)
        && wanted.headers.iter().all(header)
        && wanted.query.iter().all(query)
}

fn decoded(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let (mut decoded, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let escaped = text.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        let escaped = escaped.filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
        match escaped.map(|hex| u8::from_str_radix(hex, 16).unwrap()) {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(if bytes[at] == b'+' { b' ' } else { bytes[at] });
                at += 1;
            }
        }
    }
    decoded
}

/// Of those that hold, the one to be preferred: the greatest of all by everything that the specification names.
fn best<'a>(all: &'a [Ranked], parts: &Parts) -> Option<&'a Ranked> {
    let length = |text: &Option<TextMatch>| match text {
        None => 0,
        Some(TextMatch::Exact(text)) => text.len(),
        Some(TextMatch::Regex(pattern)) => pattern.as_str().len(),
    };
    let path = |path: &PathMatch| match path {
        PathMatch::Exact(_) => (3, 0, 0),
        PathMatch::Regex(pattern) => (2, pattern.as_str().len(), 0),
        PathMatch::Prefix(prefix) => (1, prefix.trim_end_matches('/').len(), 0),
        PathMatch::Grpc { service, method } => (1, length(service), length(method)),
    };
    all.iter().filter(|ranked| holds(&ranked.candidate.matching, parts)).max_by_key(|ranked| {
        let matching = &ranked.candidate.matching;
        let id = &ranked.candidate.rule.id;
        let asked = (path(&matching.path), matching.method.is_some(), matching.headers.len(), matching.query.len());
        let age = Reverse(ranked.created.unwrap_or(i64::MAX));
        (asked, age, Reverse((id.route.namespace.clone(), id.route.name.clone(), id.index, ranked.index)))
    })
}

#[test]
fn a_naive_matcher_agrees_on_every_route_and_request() {
    fuzz(&(matches(), asked(), any::<bool>()), |(all, parts, picks)| {
        let expected = best(&all, &parts).map(|ranked| ranked.candidate.clone());
        let service = ServiceRef { namespace: "shop".into(), name: "web".into(), port: 80 };
        let routes = PortRoutes { service, consumer: None, kind: RouteKind::Http, candidates: sorted(all) };
        prop_assert_eq!(l7::select(&routes, &RequestView::of(&parts)).cloned(), expected.clone());
        let step = begin(&routes, &RequestView::of(&parts), DIALLED, |_| picks.then_some(0));
        match (step, expected) {
            (Step::Answer(answer), None) => prop_assert_eq!(answer.reason, AnswerReason::NoRoute),
            (Step::Answer(answer), Some(candidate)) => {
                prop_assert_eq!(answer.reason, AnswerReason::NoBackend);
                prop_assert_eq!(candidate.rule.backends[0].weight, 0);
            }
            (Step::Forward(forward), Some(candidate)) => {
                prop_assert_eq!(&forward.rule.id, &candidate.rule.id);
                let mut edited = Request::new(()).into_parts().0;
                edited.uri = parts.uri.clone();
                prop_assert!(forward.edit_request(&mut edited).is_ok());
                prop_assert_eq!(edited.uri, parts.uri, "no filter, no change");
            }
            (Step::Forward(forward), None) => prop_assert!(false, "{} matches nothing here", forward.rule.id),
        }
        Ok(())
    });
}
