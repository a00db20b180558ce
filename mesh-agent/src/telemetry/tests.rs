//! One record, two accounts of it: they must agree.

use std::io::Write;
use std::sync::{Arc, Mutex};

use super::labels::{Lane, Reporter, Security, ServiceName, Wire};
use super::record::Ending;
use super::{Registry, Settings, Telemetry};
use crate::model::outcome::Outcome;

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn telemetry() -> (Arc<Telemetry>, Arc<Registry>, Sink) {
    let (registry, sink) = (Arc::new(Registry::default()), Sink::default());
    let telemetry = Telemetry::start(Arc::clone(&registry), Box::new(sink.clone()), Settings::default()).unwrap();
    (telemetry, registry, sink)
}

/// Ends the log's thread, which writes out everything, and returns the lines.
fn lines(telemetry: Arc<Telemetry>, registry: Arc<Registry>, sink: &Sink) -> Vec<serde_json::Value> {
    drop((telemetry, registry));
    let text = sink.0.lock().unwrap().clone();
    String::from_utf8(text).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn a_record_writes_the_same_words_to_log_and_metrics() {
    let (telemetry, registry, sink) = telemetry();
    let mut record = telemetry.open(Reporter::Inbound);
    record.source.workload = Some("web".into());
    record.source.namespace = Some("shop".into());
    record.service = Some(ServiceName { namespace: "shop".into(), name: "cart".into() });
    record.lane = Lane::Tunnel;
    record.security = Security::MutualTls;
    record.connected();
    record.established();
    record.meter().sent(7);
    record.meter().received(9);

    let live = registry.encode().unwrap();
    let labels = concat!(
        r#"{reporter="inbound",source_workload="web",source_namespace="shop",destination_service="shop/cart","#,
        r#"destination_workload="unknown",destination_namespace="unknown",lane="tunnel",security="mutual_tls""#
    );
    assert!(live.contains(&format!("mesh_sent_bytes_total{labels}}} 7\n")), "bytes are live:\n{live}");
    assert!(live.contains(r#"mesh_connections_live{reporter="inbound"} 1"#), "{live}");

    let rule = Some(Arc::from("shop/deny-all"));
    record.record(Ending { outcome: Outcome::Revoked, rule, reason: "policy changed".into() });

    let text = registry.encode().unwrap();
    for expected in [
        format!("mesh_connections_opened_total{labels}}} 1\n"),
        format!("mesh_connections_closed_total{labels},outcome=\"revoked\"}} 1\n"),
        format!("mesh_received_bytes_total{labels}}} 9\n"),
        "mesh_denials_total{policy=\"shop/deny-all\",outcome=\"revoked\"} 1\n".into(),
        "mesh_connections_live{reporter=\"inbound\"} 0\n".into(),
        "mesh_connect_duration_seconds_count{reporter=\"inbound\"} 1\n".into(),
        "mesh_access_log_dropped_total 0\n".into(),
    ] {
        assert!(text.contains(&expected), "missing {expected} in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));

    let lines = lines(telemetry, registry, &sink);
    let [line] = &lines[..] else { panic!("one connection, one line: {lines:?}") };
    assert_eq!(line["outcome"], "revoked");
    assert_eq!(line["rule"], "shop/deny-all");
    assert_eq!(line["source"]["workload"], "web");
    assert_eq!(line["destination"]["service"], "shop/cart");
    assert_eq!((&line["bytes_sent"], &line["bytes_received"]), (&7.into(), &9.into()));
}

#[test]
fn a_record_that_is_dropped_is_still_written_once() {
    let (telemetry, registry, sink) = telemetry();
    drop(telemetry.open(Reporter::Outbound));
    let text = registry.encode().unwrap();
    assert!(text.contains("outcome=\"agent_drained\"} 1"), "{text}");
    assert!(text.contains("mesh_connections_live{reporter=\"outbound\"} 0"), "{text}");
    assert_eq!(lines(telemetry, registry, &sink).len(), 1);
}

#[test]
fn a_tunnel_is_counted_exactly_as_long_as_its_guard_lives() {
    let (telemetry, registry, _sink) = telemetry();
    let guard = telemetry.metrics().tunnel_opened(Reporter::Outbound, Wire::Hbone);
    assert!(registry.encode().unwrap().contains("mesh_tunnels_open{reporter=\"outbound\",wire=\"hbone\"} 1"));
    drop(guard);
    assert!(registry.encode().unwrap().contains("mesh_tunnels_open{reporter=\"outbound\",wire=\"hbone\"} 0"));
}
