//! Where redirects lead.

use super::{Class, Test};
use crate::gateway::case::get;

/// Path, status and `Location` of each redirect.
type Redirects = &'static [(&'static str, u16, &'static str)];

/// Tests of the suite with redirects.
pub(super) fn tests() -> Vec<Test> {
    use Class::{Core, Extended, Provisional};
    let test = |name, class, stem, redirects: Redirects| {
        let cases = redirects.iter().map(|(path, status, location)| get(path).redirected(*status, location)).collect();
        Test::new(name, class, stem, cases)
    };
    vec![
        test("MeshHTTPRouteRedirectHostAndStatus", Core, "httproute-redirect-host-and-status", HOST),
        test("MeshHTTPRouteRedirectPath", Extended, "httproute-redirect-path", PATH),
        test("MeshHTTPRouteRedirectPort", Extended, "httproute-redirect-port", PORT),
        test("MeshHTTPRouteSchemeRedirect", Extended, "httproute-redirect-scheme", SCHEME),
        test("MeshHTTPRoute303Redirect", Provisional, "httproute-303-redirect", SEE_OTHER),
        test("MeshHTTPRoute307Redirect", Provisional, "httproute-307-redirect", TEMPORARY),
        test("MeshHTTPRoute308Redirect", Provisional, "httproute-308-redirect", PERMANENT),
    ]
}

const SEE_OTHER: Redirects = &[("/redirect", 303, "http://echo/redirect")];
const TEMPORARY: Redirects = &[("/temporary", 307, "http://echo/temporary")];
const PERMANENT: Redirects = &[("/permanent", 308, "http://echo/permanent")];

const HOST: Redirects = &[
    ("/hostname-redirect", 302, "http://example.org/hostname-redirect"),
    ("/host-and-status", 301, "http://example.org/host-and-status"),
];

const PATH: Redirects = &[
    ("/original-prefix/lemon", 302, "http://echo/replacement-prefix/lemon"),
    ("/full/path/original", 302, "http://echo/full-path-replacement"),
    ("/path-and-host", 302, "http://example.org/replacement-prefix"),
    ("/path-and-status", 301, "http://echo/replacement-prefix"),
    ("/full-path-and-host", 302, "http://example.org/replacement-full"),
    ("/full-path-and-status", 301, "http://echo/replacement-full"),
];

const PORT: Redirects = &[
    ("/port", 302, "http://echo:8083/port"),
    ("/port-and-host", 302, "http://example.org:8083/port-and-host"),
    ("/port-and-status", 301, "http://echo:8083/port-and-status"),
    ("/port-and-host-and-status", 302, "http://example.org:8083/port-and-host-and-status"),
];

const SCHEME: Redirects = &[
    ("/scheme", 302, "https://echo/scheme"),
    ("/scheme-and-host", 302, "https://example.org/scheme-and-host"),
    ("/scheme-and-status", 301, "https://echo/scheme-and-status"),
    ("/scheme-and-host-and-status", 302, "https://example.org/scheme-and-host-and-status"),
];
