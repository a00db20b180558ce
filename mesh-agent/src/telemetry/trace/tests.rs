//! What is made of a request's context, and what a collector gets.

use http::{Method, Version};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::queue::MAX_SPANS;
use super::*;
use crate::telemetry::labels::RequestOutcome;
use crate::telemetry::request_series::{GrpcStatus, Response};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn tracer(share: f64) -> (Tracer, Arc<Queue>) {
    let queue = Arc::new(Queue::default());
    (Tracer::new(Ratio::of(share).unwrap(), Arc::clone(&queue)), queue)
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
}

fn request(kind: Kind, response: Response) -> Request {
    Request {
        kind,
        workload: (Some("web".into()), Some("shop".into())),
        peer: (Some("cart".into()), Some("shop".into())),
        client: Some(([10, 0, 0, 1], 4711).into()),
        server: Some(([10, 0, 0, 2], 8080).into()),
        method: Method::POST,
        uri: "/pay.Service/Charge?secret=1".parse().unwrap(),
        version: Version::HTTP_2,
        route: None,
        response,
        answered: None,
    }
}

const OK: Response = Response { status: Some(200), grpc: None, outcome: RequestOutcome::Ok };

#[test]
fn a_ratio_is_a_share_of_all_traces_and_the_same_for_everybody() {
    let [none, quarter, all] = [0.0, 0.25, 1.0].map(|share| Ratio::of(share).unwrap());
    let taken = (0..4000).filter(|_| quarter.takes(rand::random())).count();
    assert!((800..1200).contains(&taken), "{taken} of 4000");
    for trace in [0, 7 << 64, u128::from(u64::MAX), u128::MAX] {
        assert!(all.takes(trace) && !none.takes(trace), "{trace:x}");
    }
    for wrong in [-0.1, 1.1, f64::NAN] {
        assert_eq!(Ratio::of(wrong), None, "{wrong}");
    }
}

#[test]
fn a_recorded_context_goes_on_with_a_span_of_its_own_for_each_attempt() {
    let (tracer, queue) = tracer(0.0);
    let incoming = headers(&[("traceparent", PARENT), ("tracestate", "a=b")]);
    let (began, traced) = (Instant::now(), tracer.begin(Context::of(&incoming)));
    let mut sent = Vec::new();
    for status in [Some(StatusCode::SERVICE_UNAVAILABLE), None] {
        let mut outgoing = incoming.clone();
        assert!(!traced.sends(&mut outgoing), "the state stays");
        assert_eq!(outgoing["tracestate"], "a=b");
        sent.push(Context::of(&outgoing).unwrap());
        if let Some(status) = status {
            traced.sends_again(Some(status));
        }
    }
    tracer.end(&traced, began, || request(Kind::Client, OK));
    let spans = queue.take();
    let parent = Context::of(&incoming).unwrap();
    assert_eq!(spans.len(), 2);
    for (span, context) in spans.iter().zip(&sent) {
        assert_eq!((span.trace, span.parent), (parent.trace, Some(parent.span)));
        assert_eq!((span.id, context.trace, context.sampled), (context.span, parent.trace, Some(true)));
        assert!(span.start_ns <= span.end_ns && span.start_ns > 0);
    }
    assert!(spans[0].id != spans[1].id && spans[0].id != parent.span);
    assert_eq!((spans[0].early, spans[1].early), (Some(Some(StatusCode::SERVICE_UNAVAILABLE)), None));
}

#[test]
fn a_context_that_is_not_recorded_passes_as_it_came() {
    let (tracer, queue) = tracer(1.0);
    for pair in [
        ("traceparent", PARENT.replace("-01", "-00")),
        ("b3", "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0".to_owned()),
    ] {
        let incoming = headers(&[(pair.0, &pair.1), ("tracestate", "a=b")]);
        let traced = tracer.begin(Context::of(&incoming));
        let mut outgoing = incoming.clone();
        assert!(!traced.sends(&mut outgoing));
        assert_eq!(outgoing, incoming);
        tracer.end(&traced, Instant::now(), || unreachable!("nobody asks"));
        assert!(queue.take().is_empty());
    }
}

#[test]
fn a_request_without_a_valid_context_gets_one_and_every_node_decides_alike() {
    for (share, flags) in [(0.0, "00"), (1.0, "01")] {
        let (tracer, _queue) = tracer(share);
        for incoming in [headers(&[]), headers(&[("traceparent", "00-zz-1-1"), ("tracestate", "a=b")])] {
            let mut outgoing = incoming.clone();
            assert!(tracer.begin(Context::of(&incoming)).sends(&mut outgoing), "a state is another's");
            let text = outgoing["traceparent"].to_str().unwrap();
            assert!(text.starts_with("00-") && text.ends_with(flags), "{text}");
            let next = tracer.begin(Context::of(&outgoing));
            assert_eq!(next.spans.is_some(), share > 0.5);
        }
    }
}

#[test]
fn b3_goes_on_as_b3() {
    let (tracer, _queue) = tracer(1.0);
    let single = headers(&[("b3", "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7")]);
    let multi = headers(&[("x-b3-traceid", "00f067aa0ba902b7"), ("x-b3-spanid", "00f067aa0ba902b7")]);
    for incoming in [single, multi] {
        let parent = Context::of(&incoming).unwrap();
        let mut outgoing = incoming.clone();
        tracer.begin(Some(parent)).sends(&mut outgoing);
        assert!(!outgoing.contains_key("traceparent"));
        let next = Context::of(&outgoing).unwrap();
        assert_eq!((next.trace, next.form, next.sampled), (parent.trace, parent.form, Some(true)));
        assert!(next.span != parent.span);
    }
}

#[test]
fn a_span_fails_by_what_its_side_is_to_blame_for() {
    let grpc = |code| Response { grpc: Some(GrpcStatus::Known(code)), ..OK };
    let status = |status| Response { status: Some(status), ..OK };
    let lost = Response { outcome: RequestOutcome::ServerLost, ..OK };
    for (response, client, server) in [
        (OK, None, None),
        (status(404), Some("404"), None),
        (status(503), Some("503"), Some("503")),
        (grpc(0), None, None),
        (grpc(5), Some("NOT_FOUND"), None),
        (grpc(14), Some("UNAVAILABLE"), Some("UNAVAILABLE")),
        (lost, Some("server_lost"), Some("server_lost")),
    ] {
        for (kind, expected) in [(Kind::Client, client), (Kind::Server, server)] {
            let request = Arc::new(request(kind, response));
            let span = Span { trace: 1, id: 2, parent: None, start_ns: 3, end_ns: 4, number: 0, early: None, request };
            let message = span.message();
            assert_eq!(message.status.is_some(), expected.is_some(), "{kind:?} {response:?}");
            let text = format!("{message:?}");
            assert!(expected.is_none_or(|word| text.contains(word)), "{kind:?} {text}");
            assert!(!text.contains("secret"), "{text}");
            let name = if response.grpc.is_some() { "pay.Service/Charge" } else { "POST" };
            assert_eq!(message.name, name);
        }
    }
}

fn span(id: u64) -> Span {
    let request = Arc::new(request(Kind::Client, OK));
    Span { trace: 1, id, parent: None, start_ns: 3, end_ns: 4, number: 0, early: None, request }
}

#[test]
fn a_full_queue_costs_spans_and_nobody_waits() {
    let queue = Arc::new(Queue::default());
    queue.push((0..MAX_SPANS as u64 + 10).map(span));
    assert_eq!(queue.take().len(), MAX_SPANS);
    let mut registry = prometheus_client::registry::Registry::default();
    registry.register_collector(Box::new(queue::SpanCollector(queue)));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(text.contains("mesh_spans_dropped_total{reason=\"full\"} 10\n"), "{text}");
}

/// Answers one request with `status`; gives its head and what it exports.
async fn collector(listener: TcpListener, status: &str) -> (String, otlp::Export) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes()).await.unwrap();
    (head, otlp::Export::decode(&*body).unwrap())
}

#[tokio::test]
async fn what_is_left_is_exported_at_the_end_and_what_is_not_taken_is_counted() {
    use std::sync::atomic::Ordering::Relaxed;
    for (status, expected) in [(Some("200 OK"), [2, 0, 0]), (Some("400 No"), [0, 2, 0]), (None, [0, 0, 2])] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = status.map(|status| tokio::spawn(collector(listener, status)));
        let queue = Arc::new(Queue::default());
        queue.push([span(1), span(2)].into_iter());
        queue.close();
        let endpoint = Endpoint::parse(&format!("http://{address}/otlp/")).unwrap();
        export::run(Arc::clone(&queue), endpoint, "node-a".to_owned()).await;
        let counts = [&queue.exported, &queue.rejected, &queue.unreachable].map(|count| count.load(Relaxed));
        assert_eq!(counts, expected, "{status:?}");
        let Some(served) = served else { continue };
        let (head, export) = served.await.unwrap();
        assert!(head.starts_with("POST /otlp/v1/traces HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("content-type: application/x-protobuf"), "{head}");
        assert_eq!(export.resource_spans.len(), 1, "one workload");
        let ids: Vec<u8> = export.resource_spans[0].scope_spans[0].spans.iter().map(|span| span.span_id[7]).collect();
        assert_eq!(ids, [1, 2]);
    }
}

#[test]
fn an_endpoint_is_a_base_url_in_plaintext() {
    for (text, expected) in [
        ("http://collector", Some("http://collector:4318/v1/traces")),
        ("http://127.0.0.1:4000/", Some("http://127.0.0.1:4000/v1/traces")),
        ("http://[::1]:1/base", Some("http://[::1]:1/base/v1/traces")),
        ("https://collector:4318", None),
        ("collector:4318", None),
        ("http://collector?x", None),
        ("", None),
    ] {
        assert_eq!(Endpoint::parse(text).ok().map(|endpoint| endpoint.to_string()).as_deref(), expected, "{text}");
    }
}
