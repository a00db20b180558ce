//! Reading and writing.

use super::*;

const PODS: &str = "/api/v1/namespaces/shop/pods";
const ROUTES: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes";

fn route(spec: Value) -> Value {
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "web"},
        "spec": spec})
}

#[test]
fn kinds_are_discovered_once_their_crds_are_installed() {
    let server = server();
    assert_eq!(get(&server, "/apis/gateway.networking.k8s.io/v1").0, 404);
    assert_eq!(get(&server, ROUTES), (404, json!("404 page not found\n")));
    server.install_crds().expect("CRDs");
    let (code, list) = get(&server, "/apis/gateway.networking.k8s.io/v1");
    assert_eq!((code, &list["kind"]), (200, &json!("APIResourceList")));
    assert_eq!(get(&server, "/apis").1["kind"], "APIGroupList");
    let crds = get(&server, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions").1;
    assert_eq!(crds["items"][0]["status"]["conditions"][1]["type"], "Established");
    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    assert_eq!(ask_with(&server, "GET", "/apis", &[("Accept", aggregated)], "").0, 406);
    let either = format!("{aggregated},application/json");
    assert_eq!(ask_with(&server, "GET", "/apis", &[("Accept", &either)], "").0, 200);
}

#[test]
fn what_is_created_can_be_read_in_all_ways() {
    let server = shop();
    let body = json!({"metadata": {"name": "web", "labels": {"app": "web"}}, "spec": {"nodeName": "node-a"},
        "status": {"phase": "Running"}});
    let (code, made) = ask(&server, "POST", PODS, &body);
    assert_eq!((code, &made["kind"], &made["metadata"]["namespace"]), (201, &json!("Pod"), &json!("shop")));
    assert_eq!(made["status"]["phase"], "Pending", "the status is not the creator's");
    assert!(made["metadata"]["uid"].is_string() && made["metadata"]["creationTimestamp"].is_string());
    assert_eq!(get(&server, &format!("{PODS}/web")).1, made);
    server.put(&pod("api", "api")).expect("put");
    let listed = |query: &str| {
        let list = get(&server, &format!("/api/v1/pods?{query}")).1;
        names(&list).into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(listed(""), ["api", "web"]);
    assert_eq!(listed("labelSelector=app%3Dweb"), ["web"]);
    assert_eq!(listed("fieldSelector=spec.nodeName%3Dnode-b"), Vec::<String>::new());
    assert_eq!(listed("fieldSelector=metadata.name%3Dapi"), ["api"]);
    assert_eq!(names(&get(&server, "/api/v1/namespaces/default/pods").1), Vec::<&str>::new());
    let (code, refused) = ask(&server, "POST", PODS, &body);
    assert_eq!((code, &refused["reason"]), (409, &json!("AlreadyExists")));
    let (code, missing) = get(&server, &format!("{PODS}/none"));
    assert_eq!((code, &missing["reason"], &missing["kind"]), (404, &json!("NotFound"), &json!("Status")));
    assert_eq!(ask(&server, "POST", "/api/v1/namespaces/none/pods", &body).0, 404);
    assert_eq!(get(&server, "/api/v1/pods?fieldSelector=spec.x%3Dy").0, 400);
    let protobuf = [("Content-Type", "application/vnd.kubernetes.protobuf")];
    assert_eq!(ask_with(&server, "POST", PODS, &protobuf, "k8s").0, 415);
}

#[test]
fn a_list_comes_in_pieces_of_one_version() {
    let server = shop();
    for name in ["a", "b", "c"] {
        server.put(&pod(name, "x")).expect("put");
    }
    let first = get(&server, "/api/v1/pods?limit=2").1;
    assert_eq!((names(&first), &first["metadata"]["remainingItemCount"]), (vec!["a", "b"], &json!(1)));
    server.put(&pod("d", "x")).expect("put");
    let token = first["metadata"]["continue"].as_str().expect("a token");
    let rest = get(&server, &format!("/api/v1/pods?limit=2&continue={token}")).1;
    assert_eq!(names(&rest), ["c"]);
    assert_eq!(rest["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    server.faults().compact();
    let (code, expired) = get(&server, &format!("/api/v1/pods?limit=2&continue={token}"));
    assert_eq!((code, &expired["reason"]), (410, &json!("Expired")));
    let token = expired["metadata"]["continue"].as_str().expect("a token for the rest");
    assert_eq!(names(&get(&server, &format!("/api/v1/pods?continue={token}")).1), ["c", "d"]);
}

#[test]
fn a_list_is_of_the_version_asked_for() {
    let server = shop();
    server.put(&pod("a", "x")).expect("put");
    let version = server.version();
    server.put(&pod("b", "x")).expect("put");
    let at = |query: &str| get(&server, &format!("/api/v1/pods?{query}"));
    assert_eq!(names(&at(&format!("resourceVersion={version}&resourceVersionMatch=Exact")).1), ["a"]);
    assert_eq!(names(&at(&format!("resourceVersion={version}&resourceVersionMatch=NotOlderThan")).1), ["a", "b"]);
    assert_eq!(names(&at("resourceVersion=0&limit=1").1).len(), 2);
    let (code, early) = at("resourceVersion=9999");
    assert_eq!((code, &early["details"]["causes"][0]["reason"]), (504, &json!("ResourceVersionTooLarge")));
    assert_eq!(at("resourceVersionMatch=Exact").0, 422);
    assert_eq!(at("resourceVersion=x").0, 400);
    server.faults().compact();
    assert_eq!(at(&format!("resourceVersion={version}&resourceVersionMatch=Exact")).0, 410);
}

#[test]
fn an_update_of_an_old_version_conflicts() {
    let server = shop();
    let made = ask(&server, "POST", ROUTES, &route(json!({"hostnames": ["a"]}))).1;
    assert_eq!(made["metadata"]["generation"], 1);
    let mut changed = made.clone();
    changed["spec"] = json!({"hostnames": ["b"]});
    let path = format!("{ROUTES}/web");
    let (code, updated) = ask(&server, "PUT", &path, &changed);
    assert_eq!((code, &updated["metadata"]["generation"]), (200, &json!(2)));
    let (code, refused) = ask(&server, "PUT", &path, &changed);
    assert_eq!((code, &refused["reason"]), (409, &json!("Conflict")));
    assert_eq!(ask(&server, "PUT", &path, &route(json!({}))).0, 422, "a custom resource needs the version");
    // The same again is no change.
    let again = ask(&server, "PUT", &path, &updated).1;
    assert_eq!(again["metadata"]["resourceVersion"], updated["metadata"]["resourceVersion"]);
}

#[test]
fn spec_and_status_are_written_apart() {
    let server = shop();
    ask(&server, "POST", ROUTES, &route(json!({"hostnames": ["a"]})));
    let path = format!("{ROUTES}/web");
    let both = json!({"spec": {"hostnames": ["b"]}, "status": {"parents": []}});
    let status = patch(&server, MERGE, &format!("{path}/status"), &both).1;
    assert_eq!((&status["spec"]["hostnames"], &status["status"]), (&json!(["a"]), &json!({"parents": []})));
    assert_eq!(status["metadata"]["generation"], 1);
    let other = json!({"spec": {"hostnames": ["c"]}, "status": {"parents": [1]}});
    let spec = patch(&server, MERGE, &path, &other).1;
    assert_eq!((&spec["spec"]["hostnames"], &spec["status"]), (&json!(["c"]), &json!({"parents": []})));
    assert_eq!(spec["metadata"]["generation"], 2);
}

#[test]
fn apply_creates_owns_and_conflicts() {
    let server = shop();
    let path = |manager: &str, more: &str| format!("{ROUTES}/web?fieldManager={manager}{more}");
    let (code, made) = patch(&server, APPLY, &path("a", ""), &route(json!({"hostnames": ["a"]})));
    assert_eq!((code, &made["metadata"]["managedFields"][0]["manager"]), (201, &json!("a")));
    let (code, again) = patch(&server, APPLY, &path("a", ""), &route(json!({"hostnames": ["a"]})));
    assert_eq!((code, &again["metadata"]["resourceVersion"]), (200, &made["metadata"]["resourceVersion"]));
    let (code, refused) = patch(&server, APPLY, &path("b", ""), &route(json!({"hostnames": ["b"]})));
    assert_eq!((code, &refused["details"]["causes"][0]["reason"]), (409, &json!("FieldManagerConflict")));
    assert_eq!(patch(&server, APPLY, &path("b", "&force=true"), &route(json!({"hostnames": ["b"]}))).0, 200);
    assert_eq!(patch(&server, APPLY, &format!("{ROUTES}/web"), &route(json!({}))).0, 422);
    // The status is another's, and does not touch the spec.
    let mut status = route(json!({"hostnames": ["z"]}));
    status["status"] = json!({"parents": [{"controllerName": "x/y"}]});
    let path = format!("{ROUTES}/web/status?fieldManager=c");
    let (code, written) = patch(&server, APPLY, &path, &status);
    assert_eq!((code, &written["spec"]["hostnames"]), (200, &json!(["b"])), "{written}");
    assert_eq!(written["status"]["parents"][0]["controllerName"], "x/y");
    let none = patch(
        &server,
        APPLY,
        &format!("{ROUTES}/none/status?fieldManager=c"),
        &json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "none"}}),
    );
    assert_eq!(none.0, 404);
}

#[test]
fn one_object_is_served_in_all_versions_of_its_kind() {
    let server = shop();
    ask(&server, "POST", ROUTES, &route(json!({"hostnames": ["a"]})));
    let beta = get(&server, "/apis/gateway.networking.k8s.io/v1beta1/namespaces/shop/httproutes/web").1;
    assert_eq!(beta["apiVersion"], "gateway.networking.k8s.io/v1beta1");
    let list = get(&server, ROUTES).1;
    assert_eq!(list["items"][0]["kind"], "HTTPRoute");
}

#[test]
fn a_crd_with_a_schema_is_enforced() {
    let server = shop();
    let mut crd = crate::kube_api::kind::mesh_crds().swap_remove(2);
    let spec = json!({"type": "object", "required": ["hostnames"], "properties": {
        "hostnames": {"type": "array", "items": {"type": "string"}}, "weight": {"type": "integer", "default": 1}}});
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"] =
        json!({"type": "object", "properties": {"spec": spec, "status": {"type": "object"}}});
    server.put_object(crd).expect("put");
    let (code, refused) = ask(&server, "POST", ROUTES, &route(json!({"hostnames": [1]})));
    assert_eq!((code, &refused["details"]["causes"][0]["field"]), (422, &json!("spec.hostnames[0]")));
    let made = ask(&server, "POST", ROUTES, &route(json!({"hostnames": ["a"], "unknown": 1}))).1;
    assert_eq!(made["spec"], json!({"hostnames": ["a"], "weight": 1}));
    let (code, _) = patch(&server, MERGE, &format!("{ROUTES}/web"), &json!({"spec": {"hostnames": null}}));
    assert_eq!(code, 422);
}

#[test]
fn metadata_alone_is_given_when_asked_for() {
    let server = shop();
    server.put(&pod("web", "web")).expect("put");
    let accept = |what: &str| format!("application/json;as={what};g=meta.k8s.io;v=v1");
    let list = ask_with(&server, "GET", PODS, &[("Accept", &accept("PartialObjectMetadataList"))], "").1;
    assert_eq!((&list["kind"], names(&list)), (&json!("PartialObjectMetadataList"), vec!["web"]));
    assert_eq!(list["items"][0].get("spec"), None);
    let path = format!("{PODS}/web");
    let one = ask_with(&server, "GET", &path, &[("Accept", &accept("PartialObjectMetadata"))], "").1;
    assert_eq!((&one["kind"], one.get("status")), (&json!("PartialObjectMetadata"), None));
    let headers = [("Accept", accept("PartialObjectMetadata"))];
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let event = Watching::of(&server, &format!("{PODS}?watch=1"), &headers).next();
    let (_, object) = event.expect("not cut").expect("an event");
    assert_eq!((&object["kind"], object.get("spec")), (&json!("PartialObjectMetadata"), None));
}

#[test]
fn a_deletion_answers_with_what_goes() {
    let server = shop();
    server.put(&pod("web", "web")).expect("put");
    server.put("{apiVersion: v1, kind: ConfigMap, metadata: {name: c, namespace: shop}}").expect("put");
    let (code, going) = ask(&server, "DELETE", &format!("{PODS}/web"), &json!({}));
    assert_eq!((code, going["metadata"]["deletionTimestamp"].is_string()), (200, true));
    let wrong = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "x"}});
    assert_eq!(ask(&server, "DELETE", &format!("{PODS}/web"), &wrong).0, 409);
    assert_eq!(ask(&server, "DELETE", &format!("{PODS}/web?gracePeriodSeconds=0"), &json!({})).0, 200);
    assert_eq!(get(&server, &format!("{PODS}/web")).0, 404);
    let gone = ask(&server, "DELETE", "/api/v1/namespaces/shop/configmaps/c", &json!({})).1;
    assert_eq!((&gone["status"], &gone["details"]["name"]), (&json!("Success"), &json!("c")));
}

#[test]
fn a_pod_goes_when_its_grace_is_over() {
    let server = shop();
    server.put(&pod("web", "web")).expect("put");
    let mut watching = Watching::new(&server, &format!("{PODS}?watch=1"));
    assert_eq!(watching.event(), "ADDED web");
    ask(&server, "DELETE", &format!("{PODS}/web"), &json!({"gracePeriodSeconds": 1}));
    let events: Vec<String> = (0..3).map(|_| watching.event()).collect();
    assert_eq!(events, ["MODIFIED web", "MODIFIED web", "DELETED web"]);
}

#[test]
fn tokens_are_requested_reviewed_and_used() {
    let server = shop();
    server.put("{apiVersion: v1, kind: ServiceAccount, metadata: {name: web, namespace: shop}}").expect("put");
    let path = "/api/v1/namespaces/shop/serviceaccounts/web/token";
    let (code, issued) = ask(&server, "POST", path, &json!({"spec": {"audiences": ["mesh"]}}));
    assert_eq!((code, &issued["kind"]), (201, &json!("TokenRequest")));
    let token = issued["status"]["token"].as_str().expect("a token");
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let review =
        |audience: &str| ask(&server, "POST", reviews, &json!({"spec": {"token": token, "audiences": [audience]}})).1;
    assert_eq!(review("mesh")["status"]["user"]["username"], "system:serviceaccount:shop:web");
    assert_eq!(review("other")["status"].get("authenticated"), None);
    let as_whom = |token: &str| ask_with(&server, "GET", PODS, &[("Authorization", &format!("Bearer {token}"))], "").0;
    assert_eq!(as_whom(token), 401, "it is not for the API server");
    let own = server.issue_token("shop", "web", &[], None, WITHIN).expect("a token");
    assert_eq!(as_whom(&own), 200);
    assert_eq!(as_whom("made up"), 401);
    assert_eq!(ask_with(&server, "GET", PODS, &[("Authorization", "")], "").0, 200, "as kubectl without TLS");
    server.remove("ServiceAccount", "shop", "web").expect("removed");
    assert_eq!(as_whom(&own), 401);
}
