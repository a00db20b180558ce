//! A pod that refuses what is not in the mesh: nothing leaves, whatever the maps of its built-in rules lack.

use std::net::SocketAddr;

use anyhow::Result;
use mesh_agent::model::egress::Egress;
use mesh_agent::model::workload::{PeerMode, Workload};
use mesh_common::counter::Counter;
use mesh_common::key::ServiceKey;
use mesh_common::value::{AdmittedValue, ToldValue};
use mesh_tests::pod::Pod;
use mesh_tests::process::Process;

use super::{Row, any, each_fails_closed, refuses, without};
use crate::bench::*;
use crate::pair::*;

pub(super) struct Enclosed {
    client: Pod,
    /// Admitted by a built-in rule; serves.
    admitted: SocketAddr,
    /// Not admitted; serves.
    outside: SocketAddr,
    _servers: [Process; 2],
}

pub(super) const ROWS: &[Row<Enclosed>] = &[
    Row::new("admitted", "no entry", |bench, at| {
        without::<ServiceKey, AdmittedValue>(bench, "admitted", any, |b| {
            refuses(b, &at.client, at.admitted, &[Counter::ConnectEgress])
        })
    }),
    Row::new("told", "no entry", |bench, at| {
        without::<u64, ToldValue>(bench, "told", any, |b| {
            refuses(b, &at.client, at.outside, &[Counter::ConnectEgress, Counter::EventLimited])
        })
    }),
];

#[test]
fn what_may_not_leave_is_refused_whatever_map_fails() -> Result<()> {
    node(|bench| {
        let (client, outside) = (bench.pod("client")?, bench.pod("outside")?);
        let servers = [outside.sample_server("greeter", 53, &[])?, outside.sample_server("greeter", 8080, &[])?];
        let admitted = SocketAddr::new(outside.ip(), 53);
        bench.services.push(cluster_dns(Some(admitted)));
        let inside = Egress { refused_by: Some("test/inside".into()), ..Egress::default() };
        let _gone =
            bench.enrol(Workload { egress: inside.into(), ..captured_workload(&client, PeerMode::Permissive) })?;
        let outside = SocketAddr::new(outside.ip(), 8080);
        let enclosed = Enclosed { client, admitted, outside, _servers: servers };
        each_fails_closed(ROWS, bench, &enclosed, |at| served(&at.client, at.admitted).map(drop))
    })
}
