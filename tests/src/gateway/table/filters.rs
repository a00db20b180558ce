//! What filters make of a request.

use super::{Class, Test};
use crate::gateway::case::{Case, Client, call, get};

/// Tests of the suite that look at headers and paths as the server gets them.
pub(super) fn tests() -> Vec<Test> {
    use Class::{Core, Extended};
    vec![
        Test::new("MeshHTTPRouteRequestHeaderModifier", Core, "httproute-request-header-modifier", edits()),
        Test::new(
            "MeshHTTPRouteBackendRequestHeaderModifier",
            Extended,
            "httproute-request-header-modifier-backend",
            edits(),
        ),
        Test::new("MeshGRPCRouteRequestHeaderModifier", Core, "grpcroute-request-header-modifier", grpc_edits()),
        Test::new("MeshHTTPRouteRewritePath", Extended, "httproute-rewrite-path", rewrites()),
    ]
}

/// Of a rule or of a backend: the same.
fn edits() -> Vec<Case> {
    let kept = |case: Case| case.header("Some-Other-Header", "val").sent("Some-Other-Header", "val");
    vec![
        kept(get("/set")).sent("X-Header-Set", "set-overwrites-values"),
        kept(get("/set")).header("X-Header-Set", "some-other-value").sent("X-Header-Set", "set-overwrites-values"),
        kept(get("/add")).sent("X-Header-Add", "add-appends-values"),
        kept(get("/add"))
            .header("X-Header-Add", "some-other-value")
            .sent("X-Header-Add", "some-other-value,add-appends-values"),
        get("/remove").header("X-Header-Remove", "val").not_sent(&["X-Header-Remove"]),
        get("/multiple")
            .header("X-Header-Set-2", "set-val-2")
            .header("X-Header-Add-2", "add-val-2")
            .header("X-Header-Remove-2", "remove-val-2")
            .header("Another-Header", "another-header-val")
            .sent("X-Header-Set-1", "header-set-1")
            .sent("X-Header-Set-2", "header-set-2")
            .sent("X-Header-Add-1", "header-add-1")
            .sent("X-Header-Add-2", "add-val-2,header-add-2")
            .sent("X-Header-Add-3", "header-add-3")
            .sent("Another-Header", "another-header-val")
            .not_sent(&["X-Header-Remove-1", "X-Header-Remove-2"]),
        get("/case-insensitivity")
            .header("x-header-set", "original-val-set")
            .header("x-header-add", "original-val-add")
            .header("x-header-remove", "original-val-remove")
            .header("Another-Header", "another-header-val")
            .sent("X-Header-Set", "header-set")
            .sent("X-Header-Add", "original-val-add,header-add")
            .sent("Another-Header", "another-header-val")
            .not_sent(&["X-Header-Remove"]),
    ]
    .into_iter()
    .map(|case| case.by("echo-v1"))
    .collect()
}

fn grpc_edits() -> Vec<Case> {
    let test_case = |name: &str| call().header("x-test-case", name);
    vec![
        test_case("set")
            .header("x-header-set", "this-value-should-be-overwritten")
            .sent("x-header-set", "set-overwrites-values")
            .by("echo-v1"),
        test_case("add")
            .header("x-header-add", "this-value-should-be-appended")
            .sent("x-header-add", "this-value-should-be-appended,add-appends-values")
            .by("echo-v1"),
        test_case("remove").header("x-header-remove", "val").not_sent(&["x-header-remove"]).by("echo-v1"),
        test_case("multi")
            .from(Client::Second)
            .header("x-header-set-2", "set-val-2")
            .header("x-header-add-2", "add-header-2")
            .header("x-header-remove-2", "remove-val-2")
            .sent("x-header-set-1", "header-set-1")
            .sent("x-header-set-2", "header-set-2")
            .sent("x-header-add-1", "header-add-1")
            .sent("x-header-add-2", "add-header-2,header-add-2")
            .not_sent(&["x-header-remove-1", "x-header-remove-2"])
            .by("echo-v2"),
    ]
}

fn rewrites() -> Vec<Case> {
    let edited = |path: &str| {
        get(path)
            .header("X-Header-Remove", "remove-val")
            .header("X-Header-Add-Append", "append-val-1")
            .header("X-Header-Set", "set-val")
            .sent("X-Header-Add", "header-val-1")
            .sent("X-Header-Add-Append", "append-val-1,header-val-2")
            .sent("X-Header-Set", "set-overwrites-values")
            .not_sent(&["X-Header-Remove"])
    };
    vec![
        get("/prefix/one/two").as_path("/one/two"),
        get("/strip-prefix/three").as_path("/three"),
        get("/strip-prefix").as_path("/"),
        get("/full/one/two").as_path("/one"),
        edited("/full/rewrite-path-and-modify-headers/test").as_path("/test"),
        edited("/prefix/rewrite-path-and-modify-headers/one").as_path("/prefix/one"),
    ]
    .into_iter()
    .map(|case| case.by("echo-v1"))
    .collect()
}
