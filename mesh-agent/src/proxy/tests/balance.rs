//! Requests of one connection and the endpoints of a Service: shares, keys, endpoints that leave or fail, retries.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::http::{ONE, TWO, app, ask, read_head, route, rule};
use super::http2::{App, client, get};
use super::rig::{Mesh, Pod, soon};
use crate::model::route::{Retry, Rule};
use crate::model::service::ServicePort;
use crate::model::traffic::{Balancing, Ejection, HashKey, RetryBudget, Traffic};
use crate::snapshot::SnapshotParts;

/// Changes the Service of these tests.
fn change(parts: &mut SnapshotParts, change: impl FnOnce(&mut ServicePort)) {
    let found = parts.services.iter().find(|service| &*service.name == "shop").unwrap();
    let mut service = ServicePort::clone(found);
    change(&mut service);
    parts.services.put(Arc::new(service));
}

/// Three pods of both nodes, each with an application that takes so long, as one Service with a policy.
fn three(mesh: &Mesh, takes: [u64; 3], statuses: [u16; 3], traffic: Traffic) -> (Vec<(Pod, App)>, SocketAddr) {
    let nodes = [&mesh.a, &mesh.b, &mesh.b].into_iter().zip(takes).zip(statuses);
    let start = |((node, takes), status)| {
        let pod = mesh.pod(node, "cart");
        let app = App::start(&pod, StatusCode::from_u16(status).unwrap(), Duration::from_millis(takes));
        (pod, app)
    };
    let apps: Vec<(Pod, App)> = nodes.map(start).collect();
    let endpoints: Vec<(&Pod, SocketAddr)> = apps.iter().map(|(pod, app)| (pod, app.addr)).collect();
    let vip = mesh.service("shop", &endpoints);
    mesh.change(|parts| change(parts, |service| service.traffic = Some(Arc::new(traffic))));
    (apps, vip)
}

fn by(balancing: Balancing) -> Traffic {
    Traffic { balancing, ..Traffic::default() }
}

#[tokio::test]
async fn requests_of_one_connection_take_turns_and_each_endpoint_keeps_one_connection() {
    let mesh = Mesh::new();
    let web = mesh.pod(&mesh.a, "web");
    let (apps, vip) = three(&mesh, [0; 3], [200; 3], by(Balancing::RoundRobin));
    let client = client(web.connect(vip).await).await;
    for _ in 0..30 {
        assert_eq!(get(&client, "x", "y").await.0, StatusCode::OK);
    }
    for (_, app) in &apps {
        assert_eq!(app.served(), 10);
        // The first endpoint was dialled before anybody knew what would be spoken.
        assert!(app.connections() <= 2, "{}", app.connections());
    }
}

#[tokio::test]
async fn many_requests_at_once_share_one_connection_to_each_endpoint() {
    let mesh = Mesh::new();
    let web = mesh.pod(&mesh.a, "web");
    let (apps, vip) = three(&mesh, [20; 3], [200; 3], by(Balancing::RoundRobin));
    let client = client(web.connect(vip).await).await;
    let requests: Vec<_> = (0..90).map(|_| tokio::spawn(get_owned(client.clone()))).collect();
    for request in requests {
        assert_eq!(soon(request).await.unwrap(), StatusCode::OK);
    }
    for (_, app) in &apps {
        assert_eq!(app.served(), 30);
        assert!(app.connections() <= 2, "{}", app.connections());
    }
}

async fn get_owned(client: h2::client::SendRequest<bytes::Bytes>) -> StatusCode {
    get(&client, "x", "y").await.0
}

#[tokio::test]
async fn a_slow_endpoint_gets_few_of_the_requests() {
    let mesh = Mesh::new();
    let web = mesh.pod(&mesh.a, "web");
    // Slower by more than a busy machine makes the others now and then.
    let (apps, vip) = three(&mesh, [0, 0, 500], [200; 3], Traffic::default());
    let client = client(web.connect(vip).await).await;
    for _ in 0..100 {
        get(&client, "x", "y").await;
    }
    let served: Vec<usize> = apps.iter().map(|(_, app)| app.served()).collect();
    assert!(served[2] < 10, "of 33 in turn: {served:?}");
}

#[tokio::test]
async fn a_header_keeps_its_user_at_one_endpoint_also_when_another_leaves() {
    let mesh = Mesh::new();
    let web = mesh.pod(&mesh.a, "web");
    let by_user = by(Balancing::Hash(HashKey::Header("x-user".parse().unwrap())));
    let (apps, vip) = three(&mesh, [0; 3], [200; 3], by_user);
    let served = || -> Vec<usize> { apps.iter().map(|(_, app)| app.served()).collect() };
    let client = client(web.connect(vip).await).await;
    let mut homes = Vec::new();
    for user in 0..20 {
        let before = served();
        for _ in 0..3 {
            get(&client, "x-user", &user.to_string()).await;
        }
        let home = (0..3).find(|app| served()[*app] == before[*app] + 3);
        homes.push(home.expect("all three requests went to one"));
    }
    assert!((0..3).all(|app| homes.contains(&app)), "{homes:?}");
    mesh.change(|parts| change(parts, |service| drop(service.endpoints.remove(0))));
    for (user, home) in homes.iter().enumerate().filter(|(_, home)| **home != 0) {
        let before = served();
        get(&client, "x-user", &user.to_string()).await;
        assert_eq!(served()[*home], before[*home] + 1, "{user} is still at {home}");
    }
}

#[tokio::test]
async fn an_endpoint_that_leaves_ends_what_it_has_and_gets_nothing_more() {
    let mesh = Mesh::new();
    let (web, leaving, staying) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"), mesh.pod(&mesh.b, "cart"));
    let listener = leaving.listen();
    let (other, _told) = app(&staying, TWO);
    let vip = mesh.service("shop", &[(&leaving, listener.local_addr().unwrap())]);
    mesh.change(route("shop", vec![("/", rule(0, &[("shop", 1)]))]));
    let mut first = web.connect(vip).await;
    first.write_all(b"GET /slow HTTP/1.1\r\nHost: shop\r\n\r\n").await.unwrap();
    let (mut server, _) = soon(listener.accept()).await.unwrap();
    soon(read_head(&mut server)).await.unwrap();
    mesh.change(|parts| {
        change(parts, |service| {
            service.endpoints[0] = crate::model::service::Endpoint {
                addr: crate::model::addr::EndpointAddr::new(other),
                workload: Some(Arc::clone(&staying.uid)),
                ..service.endpoints[0].clone()
            }
        });
    });
    mesh.change_workload(&leaving.uid, |workload| workload.terminating = true);
    let mut second = web.connect(vip).await;
    assert_eq!(ask(&mut second, "GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.1, "two");
    server.write_all(ONE.as_bytes()).await.unwrap();
    let head = soon(read_head(&mut first)).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "what was under way is answered: {head}");
    soon(first.read_exact(&mut [0; 3])).await.unwrap();
    assert_eq!(ask(&mut first, "GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.1, "two", "the next one goes elsewhere");
    mesh.change(|_| {});
    assert_eq!(soon(server.read(&mut [0; 1])).await.unwrap(), 0, "then the connection kept for it ends");
    assert_eq!(ask(&mut first, "GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.1, "two", "and its client's goes on");
}

#[tokio::test]
async fn an_endpoint_that_answers_with_errors_is_left_alone() {
    let mesh = Mesh::new();
    let web = mesh.pod(&mesh.a, "web");
    let ejection = Some(Ejection { consecutive: 3, ..Ejection::default() });
    let (apps, vip) = three(&mesh, [0; 3], [200, 503, 200], Traffic { ejection, ..by(Balancing::RoundRobin) });
    let client = client(web.connect(vip).await).await;
    for _ in 0..30 {
        get(&client, "x", "y").await;
    }
    let served: Vec<usize> = apps.iter().map(|(_, app)| app.served()).collect();
    assert_eq!((served[1], served[0] + served[2]), (3, 27), "{served:?}");
    mesh.a.metric_reaches("mesh_endpoint_ejections_total", 1.0).await;
}

#[tokio::test]
async fn retries_end_with_the_budget_and_say_so() {
    let mesh = Mesh::new();
    let (web, cart) = (mesh.pod(&mesh.a, "web"), mesh.pod(&mesh.b, "cart"));
    let app = App::start(&cart, StatusCode::SERVICE_UNAVAILABLE, Duration::ZERO);
    let vip = mesh.service("shop", &[(&cart, app.addr)]);
    let minute = Duration::from_secs(60);
    let budget = RetryBudget { percent: 0, interval: minute, min_count: 2, min_interval: minute };
    mesh.change(|parts| {
        change(parts, |service| service.traffic = Some(Arc::new(Traffic { budget, ..Traffic::default() })))
    });
    let codes = vec![StatusCode::SERVICE_UNAVAILABLE];
    let retry = Some(Retry { attempts: 1, codes, backoff: Duration::from_millis(1) });
    mesh.change(route("shop", vec![("/", Rule { retry, ..rule(0, &[("shop", 1)]) })]));
    let client = client(web.connect(vip).await).await;
    let mut reasons = Vec::new();
    for _ in 0..5 {
        let (status, headers) = get(&client, "x", "y").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        reasons.push(headers.get("x-mesh-agent-reason").map(|reason| reason.to_str().unwrap().to_owned()));
    }
    let refused = Some("retry_budget".to_owned());
    assert_eq!(reasons, [None, None, refused.clone(), refused.clone(), refused]);
    assert_eq!(app.served(), 7, "five requests and two retries");
    mesh.a.metric_reaches("mesh_limit_reached_total{reporter=\"outbound\",limit=\"retry_budget\"}", 3.0).await;
}
