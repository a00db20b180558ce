//! Faults on demand.

use std::io::ErrorKind;
use std::time::Instant;

use super::*;

const PODS: &str = "/api/v1/namespaces/shop/pods";

fn connects(server: &ApiServer) -> Result<(), ErrorKind> {
    let address = server.address(0).expect("an address");
    TcpStream::connect_timeout(&address, WITHIN).map(drop).map_err(|error| error.kind())
}

#[test]
fn requests_fail_as_often_as_they_are_told_to() {
    let server = shop();
    server.faults().fail("/api/v1/pods", 503, 2);
    let codes: Vec<u16> = (0..3).map(|_| get(&server, "/api/v1/pods").0).collect();
    assert_eq!(codes, [503, 503, 200]);
}

#[test]
fn answers_are_held_back() {
    let server = shop();
    server.faults().latency(Duration::from_millis(200));
    let start = Instant::now();
    assert_eq!(get(&server, "/version").0, 200);
    assert!(start.elapsed() >= Duration::from_millis(200));
}

#[test]
fn single_verbs_are_forbidden() {
    let server = shop();
    server.faults().forbid("list", "pods");
    let (code, refused) = get(&server, PODS);
    assert_eq!((code, &refused["reason"]), (403, &json!("Forbidden")));
    assert!(refused["message"].as_str().is_some_and(|words| words.contains("cannot list resource \"pods\"")));
    assert_eq!(get(&server, "/api/v1/nodes").0, 200);
    server.faults().permit_all();
    assert_eq!(get(&server, PODS).0, 200);
}

#[test]
fn tokens_are_required_when_told_so() {
    let server = shop();
    server.faults().require_tokens(true);
    assert_eq!(ask_with(&server, "GET", PODS, &[("Authorization", "")], "").0, 401);
    assert_eq!(get(&server, PODS).0, 200);
}

#[test]
fn watches_are_cut_in_the_middle() {
    let server = shop();
    let mut watching = Watching::new(&server, &format!("{PODS}?watch=1"));
    server.faults().drop_watches();
    assert!(watching.next().is_err());
    assert_eq!(get(&server, PODS).0, 200);
}

#[test]
fn a_stale_watch_tells_nothing_until_it_may() {
    let server = shop();
    let mut watching = Watching::new(&server, &format!("{PODS}?watch=1"));
    server.faults().stale_watches(true);
    server.put(&pod("a", "x")).expect("put");
    let short = Duration::from_millis(300);
    watching.reader.get_ref().set_read_timeout(Some(short)).expect("a timeout");
    let nothing = watching.next().map_err(|error| error.kind());
    assert_eq!(nothing, Err(ErrorKind::WouldBlock));
    watching.reader.get_ref().set_read_timeout(Some(WITHIN)).expect("a timeout");
    server.faults().stale_watches(false);
    assert_eq!(watching.event(), "ADDED a");
}

#[test]
fn a_stopping_server_refuses_and_keeps_its_watches() {
    let server = shop();
    let mut watching = Watching::new(&server, &format!("{PODS}?watch=1"));
    server.faults().stop_listening().expect("stopped");
    assert_eq!(connects(&server), Err(ErrorKind::ConnectionRefused));
    server.put(&pod("a", "x")).expect("put");
    assert_eq!(watching.event(), "ADDED a");
    server.faults().listen().expect("listening");
    assert_eq!(get(&server, PODS).0, 200);
}

#[test]
fn a_restarted_server_has_forgotten_its_history() {
    let server = shop();
    server.put(&pod("a", "x")).expect("put");
    let version = server.version() - 1;
    let address = server.address(0).expect("an address");
    let mut watching = Watching::new(&server, &format!("{PODS}?watch=1&resourceVersion={version}"));
    assert_eq!(watching.event(), "ADDED a");
    server.faults().restart().expect("restarted");
    assert!(watching.next().is_err());
    assert_eq!(server.address(0).expect("an address"), address);
    let mut watching = Watching::new(&server, &format!("{PODS}?watch=1&resourceVersion={version}"));
    assert_eq!(watching.event(), "ERROR ");
    assert_eq!(names(&get(&server, PODS).1), ["a"]);
}

#[test]
fn connections_are_refused_also_at_a_port_asked_for() {
    let spare = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = spare.local_addr().expect("an address");
    drop(spare);
    let server = ApiServer::start(vec![TcpListener::bind(address).expect("a listener")]).expect("a server");
    server.faults().refuse_connections().expect("refused");
    assert_eq!(connects(&server), Err(ErrorKind::ConnectionRefused));
    server.faults().listen().expect("listening");
    assert_eq!(get(&server, "/version").0, 200);
}
