//! Paths, hosts, headers, redirects, mirrors and retries.

use std::time::Duration;

use http::StatusCode;

use super::*;
use crate::model::route::{HeaderEdit, Mirror, PathEdit, Redirect, Retry, Rewrite};

#[test]
fn prefixes_are_whole_segments() {
    for (path, prefix, expected) in [
        ("/abc", "/abc", true),
        ("/abc/", "/abc", true),
        ("/abc/def", "/abc", true),
        ("/abcd", "/abc", false),
        ("/abc", "/abc/", true),
        ("/abc/def", "/abc/", true),
        ("/abcd", "/abc/", false),
        ("/ABC", "/abc", false),
        ("/", "/abc", false),
        ("/abc%2Fdef", "/abc", false),
        ("/x", "/", true),
        ("*", "/", true),
        ("", "/", true),
    ] {
        assert_eq!(path::has_prefix(path, prefix), expected, "{prefix} of {path}");
    }
}

/// The table of `replacePrefixMatch` in the API's own documentation, and a few more.
#[test]
fn a_replaced_prefix_leaves_one_slash_at_the_seam() {
    for (path, matched, replacement, expected) in [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        ("/foo//bar", "/foo", "/xyz", "/xyz//bar"),
        ("/bar", "/", "/xyz", "/xyz/bar"),
        ("/", "/", "/xyz", "/xyz/"),
        ("/foo%20bar", "/foo%20bar", "/x", "/x"),
        ("*", "/", "/x", "/x*"),
    ] {
        let edit = PathEdit::Prefix { matched: matched.into(), replacement: replacement.into() };
        assert_eq!(path::edited(path, &edit), expected, "{path}: {matched} to `{replacement}`");
    }
    assert_eq!(path::edited("/a/b", &PathEdit::Full("/c".into())), "/c");
    assert_eq!(path::edited("/a/b", &PathEdit::Full("".into())), "/");
}

#[track_caller]
fn rewritten(rewrite: Rewrite, mut parts: Parts) -> (String, String) {
    filter::edit_request([Filter::Rewrite(rewrite)].iter(), &mut parts).expect("a URI");
    let host = parts.headers.get(HOST).map(|host| host.to_str().unwrap().to_owned());
    (parts.uri.to_string(), host.unwrap_or_default())
}

#[test]
fn a_rewrite_keeps_the_query_and_changes_the_host_where_it_stands() {
    let host = || Rewrite { hostname: Some("b.example".into()), path: None };
    let path = || Rewrite { hostname: None, path: Some(PathEdit::Full("/x".into())) };
    for (rewrite, uri, header, expected_uri, expected_host) in [
        (path(), "/a?q=%20", "a", "/x?q=%20", "a"),
        (path(), "/a?", "a", "/x?", "a"),
        (path(), "http://a:81/a?q", "", "http://a:81/x?q", ""),
        (host(), "/a?q", "a:80", "/a?q", "b.example"),
        (host(), "/a", "", "/a", "b.example"),
        (host(), "http://a:81/a", "", "http://b.example/a", ""),
        (host(), "http://a/a", "a", "http://b.example/a", "b.example"),
    ] {
        let headers: &[(&str, &str)] = if header.is_empty() { &[] } else { &[("host", header)] };
        let got = rewritten(rewrite.clone(), request("GET", uri, headers));
        assert_eq!(got, (expected_uri.to_owned(), expected_host.to_owned()), "{rewrite:?} on {uri}");
    }
}

#[test]
fn header_edits_reach_the_authority_too() {
    let edit = HeaderEdit { set: vec![(HOST, HeaderValue::from_static("b"))], ..HeaderEdit::default() };
    for (uri, headers, expected) in [("http://a/x", &[][..], "http://b/x"), ("/x", &[("host", "a")][..], "/x")] {
        let mut parts = request("GET", uri, headers);
        filter::edit_request([Filter::RequestHeaders(edit.clone())].iter(), &mut parts).expect("a URI");
        assert_eq!(
            (parts.uri.to_string(), &parts.headers[HOST]),
            (expected.to_owned(), &HeaderValue::from_static("b"))
        );
    }
}

#[test]
fn what_cannot_become_a_uri_is_refused_and_not_sent() {
    let long = format!("/a/{}", "x".repeat(65_000));
    let mut parts = request("GET", &long, &[]);
    let edit = PathEdit::Prefix { matched: "/a".into(), replacement: format!("/{}", "y".repeat(1_000)).into() };
    let rewrite = Rewrite { hostname: None, path: Some(edit) };
    let answer = filter::edit_request([Filter::Rewrite(rewrite)].iter(), &mut parts).expect_err("too long");
    assert_eq!((answer.status, answer.reason), (StatusCode::BAD_REQUEST, AnswerReason::BadRequest));
}

#[test]
fn a_location_has_a_port_only_where_its_scheme_does_not_say_it() {
    let redirect = |scheme, hostname: Option<&str>, port| Redirect {
        scheme,
        hostname: hostname.map(Into::into),
        port,
        path: None,
        status: StatusCode::FOUND,
    };
    let (http, https) = (Some(Scheme::Http), Some(Scheme::Https));
    for (redirect, dialled, expected) in [
        (redirect(None, None, None), 80, "http://a.example/p?q"),
        (redirect(None, None, None), 8080, "http://a.example:8080/p?q"),
        (redirect(None, Some("b.example"), None), 8080, "http://b.example:8080/p?q"),
        (redirect(None, None, Some(80)), 8080, "http://a.example/p?q"),
        (redirect(None, None, Some(443)), 80, "http://a.example:443/p?q"),
        (redirect(http, None, None), 8080, "http://a.example/p?q"),
        (redirect(https, None, None), 80, "https://a.example/p?q"),
        (redirect(https, None, None), 8080, "https://a.example/p?q"),
        (redirect(https, None, Some(443)), 80, "https://a.example/p?q"),
        (redirect(https, None, Some(80)), 80, "https://a.example:80/p?q"),
        (redirect(https, Some("b.example"), Some(8443)), 80, "https://b.example:8443/p?q"),
    ] {
        let parts = request("GET", "/p?q", &[("host", "a.example:8080")]);
        let dialled = Dialled { port: dialled, scheme: Scheme::Http };
        let location = redirect::location(&redirect, &RequestView::of(&parts), dialled);
        assert_eq!(location, expected, "{redirect:?} dialled {dialled:?}");
    }
}

#[test]
fn the_host_of_an_authority_has_neither_user_nor_port() {
    for (authority, expected) in
        [("a", "a"), ("a:80", "a"), ("u:p@a:80", "a"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("", "")]
    {
        assert_eq!(redirect::host_of(authority), expected, "{authority}");
    }
}

#[test]
fn a_mirror_gets_its_share_and_an_invalid_one_nothing() {
    let service = |name: &str| ServiceRef { namespace: "shop".into(), name: name.into(), port: 80 };
    let mirror = |target, numerator, denominator| Filter::Mirror(Mirror { target, numerator, denominator });
    let gone = Target::Invalid { reason: crate::model::route::Reason::BackendNotFound, message: "gone".into() };
    let routes = routes(vec![
        mirror(Target::Service(service("all")), 100, 100),
        mirror(Target::Service(service("some")), 3, 8),
        mirror(Target::Service(service("none")), 0, 100),
        mirror(gone, 1, 1),
    ]);
    let parts = request("GET", "/", &[]);
    let Step::Forward(forward) = begin(&routes, &RequestView::of(&parts), DIALLED, |_| None) else { panic!() };
    for dice in 0..8 {
        let names: Vec<&str> = forward.mirrors(|n| dice % n).iter().map(|to| &*to.name).collect();
        assert_eq!(names, if dice < 3 { vec!["all", "some"] } else { vec!["all"] }, "{dice}");
    }
}

#[test]
fn waits_grow_from_the_backoff_and_end() {
    let retry = Retry { attempts: 3, codes: vec![StatusCode::BAD_GATEWAY], backoff: Duration::from_millis(100) };
    let most = |n: u32| n - 1;
    for (attempt, least, with_jitter) in [(1, 100, 150), (2, 200, 300), (3, 400, 600)] {
        assert_eq!(retry::wait_before(&retry, attempt, |_| 0), Some(Duration::from_millis(least)));
        let longest = retry::wait_before(&retry, attempt, most).expect("a wait");
        assert!(longest < Duration::from_millis(with_jitter) && longest > Duration::from_millis(with_jitter - 1));
    }
    assert_eq!((retry::wait_before(&retry, 0, |_| 0), retry::wait_before(&retry, 4, |_| 0)), (None, None));
    let at_once = Retry { attempts: u32::MAX, codes: vec![], backoff: Duration::ZERO };
    assert_eq!(retry::wait_before(&at_once, u32::MAX, |_| panic!("no jitter of nothing")), Some(Duration::ZERO));
    let slow = Retry { attempts: u32::MAX, codes: vec![], backoff: Duration::from_secs(40) };
    assert_eq!(retry::wait_before(&slow, 40, |_| 0), Some(Duration::from_secs(40)), "never less than the backoff");
    assert!(retry::is_retriable(&retry, StatusCode::BAD_GATEWAY) && !retry::is_retriable(&retry, StatusCode::OK));
}
