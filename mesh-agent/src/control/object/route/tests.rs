//! Tables over single rules: what they become, and which mistakes cost which rule.

use super::*;
use crate::control::document::{Document, documents};
use crate::control::object::{Kind, Object, Reading, read as read_object};
use crate::model::route::{Filter, HeaderMatch, Reason, Retry, ServiceRef, Target, TextMatch};

/// A route of shop, with `spec` in flow style, and its mistakes as `field: reason`.
fn route(kind: &str, spec: &str) -> (Route, Vec<String>) {
    let text = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: r, namespace: shop, generation: 3, \
         creationTimestamp: '1970-01-01T00:01:00Z'}}\nspec: {spec}\n"
    );
    match read_text(&text) {
        Reading::Object(key, Object::Route(route), mistakes) => {
            assert_eq!((key.kind, &*key.name), (Kind::Route(route.name.kind), "r"));
            let mistakes = mistakes.into_iter().map(|mistake| format!("{}: {}", mistake.field, mistake.reason));
            let route = std::sync::Arc::try_unwrap(route).expect("one owner");
            (route, mistakes.collect())
        }
        other => panic!("{text}: {other:?}"),
    }
}

fn read_text(text: &str) -> Reading {
    match documents(text.as_bytes()).pop().expect("a document") {
        Document::Tree { value, repeated } => read_object(&value, &repeated),
        Document::Unreadable { reason, .. } => panic!("{text}: {reason}"),
    }
}

/// An HTTPRoute with a good rule before and after `rule`, which is dropped for `mistake`.
#[track_caller]
fn check_dropped(kind: &str, rule: &str, mistake: &str) {
    let spec = format!("{{rules: [{{name: before}}, {rule}, {{name: after}}]}}");
    let (route, mistakes) = route(kind, &spec);
    assert!(mistakes.iter().any(|text| text.contains(mistake)), "`{mistake}` is not in {mistakes:#?}");
    assert!(mistakes.iter().all(|text| text.starts_with("spec.rules[1]") && text.ends_with("rules[1] is dropped")));
    let names: Vec<_> = route.rules.iter().map(|rule| (rule.rule.id.index, rule.rule.id.name.as_deref())).collect();
    assert_eq!(names, [(0, Some("before")), (2, Some("after"))], "{rule}");
    assert!(route.flaws.iter().all(|flaw| flaw.starts_with("Dropped Rule rules[1]: ")), "{:?}", route.flaws);
}

#[test]
fn a_whole_rule_is_read_field_by_field() {
    let (route, mistakes) = route(
        "HTTPRoute",
        "
  parentRefs:
  - {group: '', kind: Service, name: web}
  - {group: '', kind: Service, name: web, namespace: bank, port: 80, sectionName: http}
  - {name: gateway}
  - {group: example.org, kind: Service, name: x}
  hostnames: [a.example]
  rules:
  - name: all
    matches:
    - path: {type: Exact, value: /a}
      method: GET
      headers: [{name: Version, value: one}, {name: version, value: two}, {name: X, type: RegularExpression, value: 'a+'}]
      queryParams: [{name: q, value: '1'}, {name: q, value: '2'}]
    backendRefs: [{name: a, port: 80, weight: 7}, {name: b, namespace: bank, port: 81}, {kind: Bucket, group: x, name: c}]
    timeouts: {request: 10s, backendRequest: 0s}
    retry: {attempts: 3, codes: [502, 503], backoff: 100ms}
",
    );
    assert_eq!(mistakes, [""; 0]);
    assert_eq!((route.created, route.generation), (Some(60), 3));
    let shown: Vec<String> = route.parents.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["shop/web", "bank/web:80 port `http`"]);
    let RouteRule { matches, rule } = &route.rules[0];
    assert_eq!(rule.id.to_string(), "HTTPRoute shop/r rules[0] `all`");
    let expected = Match {
        path: PathMatch::Exact("/a".into()),
        method: Some("GET".parse().unwrap()),
        headers: vec![
            HeaderMatch { name: "version".parse().unwrap(), value: TextMatch::Exact("one".into()) },
            HeaderMatch {
                name: "x".parse().unwrap(),
                value: TextMatch::Regex(crate::model::route::Pattern::new("a+").unwrap()),
            },
        ],
        query: vec![crate::model::route::QueryMatch { name: "q".into(), value: TextMatch::Exact("1".into()) }],
    };
    assert_eq!(*matches, [expected]);
    let service = |namespace: &str, name: &str, port| {
        Target::Service(ServiceRef { namespace: namespace.into(), name: name.into(), port })
    };
    let targets: Vec<_> = rule.backends.iter().map(|backend| (backend.weight, backend.target.clone())).collect();
    assert_eq!(targets[..2], [(7, service("shop", "a", 80)), (1, service("bank", "b", 81))]);
    assert!(matches!(&targets[2].1, Target::Invalid { reason: Reason::InvalidKind, .. }));
    let seconds = std::time::Duration::from_secs;
    assert_eq!(rule.timeouts, Timeouts { request: Some(seconds(10)), backend_request: None });
    let codes = vec![http::StatusCode::BAD_GATEWAY, http::StatusCode::SERVICE_UNAVAILABLE];
    assert_eq!(rule.retry, Some(Retry { attempts: 3, codes, backoff: seconds(1) / 10 }));
}

#[test]
fn what_an_http_rule_leaves_out_has_the_apis_default() {
    let everything = Match { path: PathMatch::Prefix("/".into()), method: None, headers: vec![], query: vec![] };
    for spec in
        ["{}", "{rules: [{}]}", "{rules: [{matches: [], filters: [], backendRefs: []}]}", "{rules: [{matches: null}]}"]
    {
        let (route, mistakes) = route("HTTPRoute", spec);
        assert_eq!((mistakes.len(), route.rules.len()), (0, 1), "{spec}: {mistakes:?}");
        assert_eq!(route.rules[0].matches[..], *std::slice::from_ref(&everything), "{spec}");
        assert_eq!(route.rules[0].rule.backends, [], "the parent's own endpoints");
    }
}

#[test]
fn a_mistake_costs_its_rule_and_no_other() {
    for (rule, mistake) in [
        ("{matchs: []}", "spec.rules[1].matchs: unknown field"),
        ("{matches: [{path: {value: /a, kind: Exact}}]}", "matches[0].path.kind: unknown field"),
        ("{matches: {}}", "spec.rules[1].matches: invalid type"),
        ("just text", "spec.rules[1]: invalid type"),
        ("{matches: [{path: {type: Suffix}}]}", "matches[0].path.type: unknown variant `Suffix`"),
        ("{matches: [{path: {value: a}}]}", "matches[0].path.value: `a` does not begin with /"),
        ("{matches: [{path: {value: /a//b}}]}", "contains //"),
        ("{matches: [{path: {value: /a/./b}}]}", "contains /./"),
        ("{matches: [{path: {value: /a/../b}}]}", "contains /../"),
        ("{matches: [{path: {value: /a%2Fb}}]}", "contains %2F"),
        ("{matches: [{path: {value: /a%2fb}}]}", "contains %2f"),
        ("{matches: [{path: {value: '/a#b'}}]}", "contains #"),
        ("{matches: [{path: {value: /a/..}}]}", "ends in a dot segment"),
        ("{matches: [{path: {value: /a/.}}]}", "ends in a dot segment"),
        ("{matches: [{path: {value: '/a?b'}}]}", "must be percent-encoded"),
        ("{matches: [{path: {value: '/a%g0'}}]}", "must be percent-encoded"),
        ("{matches: [{path: {type: RegularExpression, value: '('}}]}", "`(` is no pattern"),
        ("{matches: [{method: get}]}", "matches[0].method: `get` is not one of"),
        ("{matches: [{headers: [{name: 'a b', value: x}]}]}", "headers[0].name: `a b` is not a header name"),
        ("{matches: [{headers: [{name: a}]}]}", "headers[0]: missing field `value`"),
        ("{matches: [{headers: [{name: a, value: ''}]}]}", "headers[0].value: 0 bytes"),
        ("{matches: [{headers: [{name: a, type: RegularExpression, value: '['}]}]}", "headers[0].value: `[` is no"),
        ("{matches: [{queryParams: [{name: '', value: x}]}]}", "queryParams[0].name: missing"),
        ("{backendRefs: [{name: a}]}", "backendRefs[0].port: missing"),
        ("{backendRefs: [{name: a, port: 70000}]}", "backendRefs[0].port: invalid value"),
        ("{backendRefs: [{name: a, port: 80, weight: 1000001}]}", "backendRefs[0].weight: 1000001 is more"),
        ("{backendRefs: [{name: a, port: 80, weight: -1}]}", "backendRefs[0].weight: invalid value"),
        ("{backendRefs: [{port: 80}]}", "backendRefs[0]: missing field `name`"),
        ("{timeouts: {request: 1.5s}}", "timeouts.request: `1.5s` is no duration"),
        ("{timeouts: {request: 1s, backendRequest: 2s}}", "timeouts.backendRequest: longer than `request`"),
        ("{retry: {attempts: 0}}", "retry.attempts: 0"),
        ("{retry: {codes: [200]}}", "retry.codes[0]: 200 is not within"),
        ("{retry: {backoff: soon}}", "retry.backoff: `soon`"),
        ("{name: before}", "spec.rules[1].name: another rule has this name"),
    ] {
        check_dropped("HTTPRoute", rule, mistake);
    }
    for (rule, mistake) in [
        ("{matches: [{path: {value: /a}}]}", "matches[0].path: unknown field"),
        ("{matches: [{method: {}}]}", "matches[0].method: neither `service` nor `method`"),
        ("{matches: [{method: {service: ''}}]}", "matches[0].method: neither"),
        ("{matches: [{method: {service: a/b}}]}", "method.service: `a/b` is not a service name"),
        ("{matches: [{method: {method: 1x}}]}", "method.method: `1x` is not a method name"),
        ("{timeouts: {request: 1s}}", "spec.rules[1].timeouts: unknown field"),
    ] {
        check_dropped("GRPCRoute", rule, mistake);
    }
}

#[test]
fn every_mistake_of_a_filter_is_named_and_costs_its_rule() {
    let prefix = "matches: [{path: {value: /a}}]";
    let exact = "matches: [{path: {type: Exact, value: /a}}]";
    for (rest, filter, mistake) in [
        ("", "{requestHeaderModifier: {}}", "filters[0].type: missing"),
        ("", "{type: RequestHeaderModifier}", "filters[0]: type RequestHeaderModifier needs its fields"),
        ("", "{type: CORS, urlRewrite: {}}", "the fields of URLRewrite do not belong to type CORS"),
        ("", "{type: RequestHeaderModifier, requestHeaderModifier: {put: []}}", "requestHeaderModifier.put: unknown"),
        (
            "",
            "{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: 'a:', value: b}]}}",
            "set[0].name: `a:` is not a header name",
        ),
        (
            "",
            "{type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: a, value: \"b\\nc\"}]}}",
            "add[0].value",
        ),
        ("", "{type: RequestHeaderModifier, requestHeaderModifier: {remove: ['']}}", "remove[0]: `` is not a header"),
        ("", "{type: RequestRedirect, requestRedirect: {statusCode: 200}}", "statusCode: 200 is not 301"),
        ("", "{type: RequestRedirect, requestRedirect: {scheme: ftp}}", "scheme: unknown variant `ftp`"),
        ("", "{type: RequestRedirect, requestRedirect: {port: 0}}", "port: 0 is not a port"),
        ("", "{type: RequestRedirect, requestRedirect: {hostname: A.example}}", "hostname: `A.example` is not a host"),
        (
            "backendRefs: [{name: a, port: 80}]",
            "{type: RequestRedirect, requestRedirect: {}}",
            "backendRefs: a rule that redirects has no backends",
        ),
        ("", "{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath}}}", "path: type ReplaceFullPath needs"),
        (
            "",
            "{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replacePrefixMatch: /x}}}",
            "path: type ReplaceFullPath needs",
        ),
        (
            "",
            "{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: '/a?b'}}}",
            "replaceFullPath: `/a?b` is not a path",
        ),
        (
            exact,
            "{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /x}}}",
            "path: ReplacePrefixMatch needs exactly one match",
        ),
        (
            "matches: [{path: {value: /a}}, {path: {value: /b}}]",
            "{type: RequestRedirect, requestRedirect: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /x}}}",
            "path: ReplacePrefixMatch needs exactly one match",
        ),
        (prefix, "{type: URLRewrite, urlRewrite: {}}, {type: URLRewrite, urlRewrite: {}}", "URLRewrite stands twice"),
        (
            prefix,
            "{type: URLRewrite, urlRewrite: {}}, {type: RequestRedirect, requestRedirect: {}}",
            "exclude one another",
        ),
        (
            "",
            "{type: RequestMirror, requestMirror: {backendRef: {name: a, port: 1}, percent: 5, fraction: {numerator: 1}}}",
            "`percent` and `fraction` exclude one another",
        ),
        ("", "{type: RequestMirror, requestMirror: {backendRef: {name: a, port: 1}, percent: 101}}", "101 of 100"),
        ("", "{type: RequestMirror, requestMirror: {backendRef: {name: a}}}", "backendRef.port: missing"),
        ("", "{type: CORS, cors: {allowOrigins: ['*', 'http://a']}}", "allowOrigins: `*` stands alone"),
        ("", "{type: CORS, cors: {allowOrigins: ['ftp://a']}}", "allowOrigins[0]: `ftp://a` is not an origin"),
        ("", "{type: CORS, cors: {allowOrigins: ['http://a.*.b']}}", "allowOrigins[0]"),
        ("", "{type: CORS, cors: {allowOrigins: ['http://a:0']}}", "allowOrigins[0]"),
        ("", "{type: CORS, cors: {allowMethods: ['a b']}}", "allowMethods[0]: not a method"),
        ("", "{type: CORS, cors: {maxAge: 0}}", "maxAge: 0"),
    ] {
        let comma = if rest.is_empty() { "" } else { ", " };
        check_dropped("HTTPRoute", &format!("{{filters: [{filter}]{comma}{rest}}}"), mistake);
    }
}

#[test]
fn what_is_known_and_not_supported_leaves_its_rule_and_says_so() {
    for (kind, rule, flaw, filter) in [
        ("HTTPRoute", "{sessionPersistence: {type: Cookie}}", "sessionPersistence: not supported", None),
        (
            "HTTPRoute",
            "{filters: [{type: ExtensionRef, extensionRef: {group: a, kind: b, name: c}}]}",
            "filters[0].type: filter ExtensionRef is not supported",
            Some("ExtensionRef"),
        ),
        (
            "HTTPRoute",
            "{filters: [{type: Tomorrow, tomorrow: {}}]}",
            "filter Tomorrow is not supported",
            Some("Tomorrow"),
        ),
        (
            "GRPCRoute",
            "{filters: [{type: URLRewrite, urlRewrite: {}}]}",
            "filter URLRewrite is not",
            Some("URLRewrite"),
        ),
    ] {
        let (route, mistakes) = route(kind, &format!("{{rules: [{rule}]}}"));
        assert!(mistakes.len() == 1 && mistakes[0].contains(flaw), "{rule}: {mistakes:?}");
        assert!(route.flaws[0].contains(flaw));
        let expected: Vec<Filter> = filter.into_iter().map(|name| Filter::Unsupported(name.into())).collect();
        assert_eq!(route.rules[0].rule.filters, expected);
    }
}

#[test]
fn a_key_that_stands_twice_costs_its_rule() {
    let (route, mistakes) = route("HTTPRoute", "{rules: [{name: a, name: b}, {name: c}]}");
    assert_eq!(mistakes, ["spec.rules[0].name: stands twice; rules[0] is dropped"]);
    assert_eq!(route.rules.len(), 1);
}

#[test]
fn a_parent_that_cannot_be_read_is_none() {
    for (parent, mistake) in [
        ("{kind: Service, name: web}", "parentRefs[0].group: `gateway.networking.k8s.io` has no Service"),
        ("{group: '', kind: Service, name: web, ports: 80}", "parentRefs[0].ports: unknown field"),
        ("{group: '', kind: Service, name: web, port: 0}", "parentRefs[0].port: 0 is not a port"),
        ("{group: '', kind: Service}", "parentRefs[0]: missing field `name`"),
    ] {
        let (route, mistakes) = route("HTTPRoute", &format!("{{parentRefs: [{parent}]}}"));
        assert!(mistakes.len() == 1 && mistakes[0].contains(mistake), "{parent}: {mistakes:?}");
        assert_eq!(route.parents, []);
    }
}

#[test]
fn routes_of_connections_have_one_rule() {
    for kind in ["TCPRoute", "TLSRoute"] {
        let spec =
            "{hostnames: [a.example], rules: [{backendRefs: [{name: a, port: 1, weight: 0}]}, {backendRefs: []}]}";
        let (route, mistakes) = route(kind, spec);
        assert_eq!(mistakes, ["spec.rules[1]: a route of this kind has one rule; rules[1] is dropped"]);
        assert_eq!((route.rules.len(), route.rules[0].rule.backends[0].weight), (1, 0));
    }
}

#[test]
fn versions_that_were_served_are_read_and_others_named() {
    for (api_version, kind, good) in [
        ("gateway.networking.k8s.io/v1beta1", "HTTPRoute", true),
        ("gateway.networking.k8s.io/v1alpha2", "HTTPRoute", false),
        ("gateway.networking.k8s.io/v1alpha2", "TCPRoute", true),
        ("gateway.networking.k8s.io/v1alpha3", "TLSRoute", true),
        ("gateway.networking.k8s.io/v1alpha3", "TCPRoute", false),
    ] {
        let spec = "{rules: [{backendRefs: [{name: a, port: 1}]}]}";
        let text = format!("apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: r}}\nspec: {spec}\n");
        match read_text(&text) {
            Reading::Object(_, _, mistakes) => assert!(good && mistakes.is_empty(), "{text}: {mistakes:?}"),
            Reading::Unusable(_, mistakes) => {
                assert!(!good && mistakes[0].reason.contains("is not gateway.networking.k8s.io/v1"), "{mistakes:?}");
            }
            Reading::Foreign => panic!("{text}"),
        }
    }
}

#[test]
fn a_reference_grant_is_read_for_its_mistakes() {
    let head = "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: g}\n";
    for (spec, expected) in [
        ("{from: [{group: '', kind: a, namespace: b}], to: [{group: '', kind: Service}]}", None),
        ("{from: [], to: [{group: '', kind: Service}]}", Some("spec.from: 0 entries")),
        (
            "{from: [{group: '', kind: a, namespace: b, name: c}], to: [{group: '', kind: S}]}",
            Some("spec.from[0].name"),
        ),
    ] {
        let Reading::Object(_, Object::ReferenceGrant, mistakes) = read_text(&format!("{head}spec: {spec}\n")) else {
            panic!("{spec}")
        };
        let shown: Vec<_> = mistakes.iter().map(|mistake| format!("{}: {}", mistake.field, mistake.reason)).collect();
        assert_eq!(shown.len(), usize::from(expected.is_some()), "{shown:?}");
        assert!(expected.is_none_or(|part| shown[0].contains(part)), "{shown:?}");
    }
}
