//! What `explain` asks of the live maps is what the loaded programs do, also while the maps are behind the snapshot.

use std::net::SocketAddr;

use anyhow::Result;
use mesh_agent::explain::exit_of;
use mesh_agent::model::policy::Action;
use mesh_agent::model::workload::PeerMode;
use mesh_common::counter::Counter;
use mesh_common::decide::LookupVerdict;
use mesh_common::value::FLOW_NATIVE;

use crate::bench::*;
use crate::pair::*;

#[test]
fn the_live_maps_answer_as_the_loaded_programs_do() -> Result<()> {
    node(|bench| {
        let Pair { client, server, .. } = pair(bench, PeerMode::Strict)?;
        let _app = server.sample_server("greeter", 8080, &[])?;
        let to = SocketAddr::new(server.ip(), 8080);
        let vip: SocketAddr = format!("{VIP}:80").parse()?;
        let nobody: SocketAddr = format!("{EMPTY_VIP}:80").parse()?;
        let outside: SocketAddr = "192.0.2.1:1".parse()?;
        let exit = |bench: &Bench, to| bench.kernel.would_connect(client.name(), to, 0).as_ref().map(exit_of);
        let accepts = |bench: &Bench, record| bench.kernel.would_accept(server.name(), 8080, record);
        let native = Some((FLOW_NATIVE, client.name()));

        for dialled in [to, vip] {
            assert_eq!(exit(bench, dialled), Some((Counter::ConnectNative, Some(to))));
            served(&client, dialled)?;
        }
        assert_eq!(counts(bench, [Counter::ConnectNative, Counter::LookupNative]), [2, 2]);
        assert_eq!(exit(bench, nobody), Some((Counter::ConnectNoEndpoints, None)));
        assert_eq!(exit(bench, outside), Some((Counter::ConnectOutside, None)));
        assert_eq!(accepts(bench, native), Some(LookupVerdict::Pass(Counter::LookupNative)));
        assert_eq!(accepts(bench, None), Some(LookupVerdict::Drop(Counter::LookupStrict)));
        assert_eq!(bench.kernel.would_connect("nobody", to, 0), None);

        // Rules that the maps have not been told of: they are seen to be behind, and still say what is done.
        bench.policies = vec![rule("not-the-client", Action::Deny, Some(client.name()), None)];
        let snapshot = bench.snapshot();
        assert_eq!(bench.kernel.has_rules_of(server.name(), &snapshot), Some(false));
        assert_eq!(exit(bench, to), Some((Counter::ConnectNative, Some(to))));
        served(&client, to)?;
        bench.kernel.sync(&snapshot)?;
        assert_eq!(bench.kernel.has_rules_of(server.name(), &snapshot), Some(true));
        assert_eq!(exit(bench, to), Some((Counter::ConnectDenied, Some(to))));
        assert_eq!(accepts(bench, native), Some(LookupVerdict::Drop(Counter::LookupDenied)));
        refused(&client, to)
    })
}
