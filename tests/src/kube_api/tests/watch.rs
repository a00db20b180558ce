//! Watches.

use super::*;

const PODS: &str = "/api/v1/namespaces/shop/pods";

#[test]
fn a_watch_tells_what_is_there_and_what_changes() {
    let server = shop();
    server.put(&pod("a", "x")).expect("put");
    let mut watching = Watching::new(&server, &format!("{PODS}?watch=1"));
    assert_eq!(watching.event(), "ADDED a");
    server.put(&pod("b", "x")).expect("put");
    server.put(&pod("a", "y")).expect("put");
    server.remove("Pod", "shop", "b").expect("removed");
    let events: Vec<String> = (0..4).map(|_| watching.event()).collect();
    assert_eq!(events, ["ADDED b", "MODIFIED a", "MODIFIED b", "DELETED b"]);
}

#[test]
fn a_watch_from_a_version_tells_only_what_came_later() {
    let server = shop();
    server.put(&pod("a", "x")).expect("put");
    let version = server.version();
    server.put(&pod("b", "x")).expect("put");
    let mut watching = Watching::new(&server, &format!("{PODS}?watch=true&resourceVersion={version}"));
    assert_eq!(watching.event(), "ADDED b");
}

#[test]
fn what_leaves_a_selection_is_told_as_deleted() {
    let server = shop();
    server.put(&pod("a", "x")).expect("put");
    let mut watching = Watching::new(&server, &format!("{PODS}?watch=1&labelSelector=app%3Dx"));
    assert_eq!(watching.event(), "ADDED a");
    server.put(&pod("a", "y")).expect("put");
    let (kind, object) = watching.next().expect("not cut").expect("an event");
    assert_eq!((kind.as_str(), &object["metadata"]["labels"]["app"]), ("DELETED", &json!("x")));
    assert_eq!(object["metadata"]["resourceVersion"], server.version().to_string());
    server.put(&pod("b", "y")).expect("put");
    server.put(&pod("a", "x")).expect("put");
    assert_eq!(watching.event(), "ADDED a");
}

#[test]
fn a_streamed_list_ends_with_a_bookmark() {
    let server = shop();
    server.put(&pod("a", "x")).expect("put");
    let options = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut watching = Watching::new(&server, &format!("{PODS}?{options}"));
    assert_eq!(watching.event(), "ADDED a");
    let (kind, object) = watching.next().expect("not cut").expect("an event");
    assert_eq!((kind.as_str(), &object["kind"]), ("BOOKMARK", &json!("Pod")));
    assert_eq!(object["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(object["metadata"]["resourceVersion"], server.version().to_string());
    assert_eq!(get(&server, &format!("{PODS}?watch=1&sendInitialEvents=true")).0, 422);
    assert_eq!(get(&server, &format!("{PODS}?watch=1&resourceVersionMatch=NotOlderThan")).0, 422);
}

#[test]
fn a_watch_ends_after_its_timeout_with_a_bookmark() {
    let server = shop();
    let options = "watch=1&timeoutSeconds=1&allowWatchBookmarks=true";
    let mut watching = Watching::new(&server, &format!("{PODS}?{options}"));
    let (kind, object) = watching.next().expect("not cut").expect("an event");
    assert_eq!((kind.as_str(), object["metadata"].get("annotations")), ("BOOKMARK", None));
    assert_eq!(watching.next().expect("not cut"), None);
}

#[test]
fn a_forgotten_version_is_an_error_in_the_stream() {
    let server = shop();
    server.put(&pod("a", "x")).expect("put");
    let version = server.version() - 1;
    server.faults().compact();
    let mut watching = Watching::new(&server, &format!("{PODS}?watch=1&resourceVersion={version}"));
    let (kind, object) = watching.next().expect("not cut").expect("an event");
    assert_eq!((kind.as_str(), &object["code"], &object["reason"]), ("ERROR", &json!(410), &json!("Expired")));
    assert_eq!(watching.next().expect("not cut"), None);
}
