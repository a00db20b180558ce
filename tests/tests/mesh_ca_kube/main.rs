//! The certificate authority in a cluster: agents prove themselves by their service account tokens and get what their
//! node's pods need, nobody else gets anything, and traffic does not notice that certificates and roots come and go.

// Tests may panic: that is how they fail.
#![allow(clippy::panic, clippy::indexing_slicing)]

mod asking;
mod istiod;
mod rotation;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use asking::{Asked, ask, ask_with, outcome};
use mesh_tests::kube_api::ApiServer;
use mesh_tests::kube_ca::{AUDIENCE, KubeCa, NAMESPACE, SECRET, agent_pod};
use mesh_tests::mesh::{IN_FORCE_WITHIN, Mesh, Workload, scenario};
use mesh_tests::topology::Side;
use mesh_tests::wait;

const WITHIN: Duration = Duration::from_secs(60);
/// The options by which the first replica makes the root.
const MAKES_ROOT: [&str; 2] = ["--create-root-secret", "mesh-agent-system/mesh-agent-ca-root"];

/// A cluster with an authority on each node and their agents, `shop/client` on the first node and `shop/server` on the
/// second.
struct Shop {
    api: Arc<ApiServer>,
    ca: KubeCa,
    client: Arc<Workload>,
    server: Arc<Workload>,
    _echo: mesh_tests::process::Process,
}

impl Shop {
    fn open(mesh: &mut Mesh, more: &[&str]) -> Result<Self> {
        let (api, ca) = authority(mesh, more)?;
        mesh.objects().put_namespace("shop", true)?;
        let client = mesh.pod(Side::A, "shop/client")?;
        let server = mesh.pod(Side::B, "shop/server")?;
        let echo = server.sample_server("echo", 7000, &[])?;
        for side in Side::BOTH {
            let options = mesh.agent_options(ca.source(mesh.node(side))?);
            mesh.run_agent(side, options)?;
        }
        for side in Side::BOTH {
            mesh.ready(side)?;
        }
        mesh.captured(&client)?;
        mesh.captured(&server)?;
        let shop = Self { api, ca, client, server, _echo: echo };
        shop.talks(&shop.client)?;
        Ok(shop)
    }

    fn to(&self) -> SocketAddr {
        SocketAddr::new(self.server.ip(), 7000)
    }

    fn talks(&self, client: &Workload) -> Result<()> {
        wait::until("the server answers", IN_FORCE_WITHIN, || {
            let answer = client.ask("churn", self.to(), &["--count", "3"], WITHIN)?;
            wait::holds(answer["ok"] == 3, || answer.to_string())
        })
    }
}

/// An API server, and a replica of the authority on each node; the first one makes the root.
fn authority(mesh: &mut Mesh, more: &[&str]) -> Result<(Arc<ApiServer>, KubeCa)> {
    let api = mesh.use_api_server()?;
    let mut ca = KubeCa::new(Arc::clone(&api), mesh.node(Side::A).folder().join("kube-ca"))?;
    for side in Side::BOTH {
        ca.start(mesh.node(side), &[&MAKES_ROOT[..], more].concat())?;
    }
    Ok((api, ca))
}

#[test]
fn agents_of_a_cluster_are_certified_by_either_replica() -> Result<()> {
    scenario(|mesh| {
        let shop = Shop::open(mesh, &[])?;
        let peer = mesh.logged(Side::B, "the client's identity", |line| line.to_string().contains("sa/client"))?;
        ensure!(peer.to_string().contains("mutual_tls"), "{peer}");
        for side in Side::BOTH {
            let metrics = shop.ca.metrics(mesh.node(side))?;
            ensure!(metrics.sum("mesh_ca_requests_total", &[("outcome", "issued")]) >= 1.0, "nothing was issued");
            ensure!(metrics.sum("mesh_ca_roots", &[]) == 1.0, "one root");
            wait::until("the roots are published", IN_FORCE_WITHIN, || {
                let published = shop.ca.metrics(mesh.node(side))?.sum("mesh_ca_roots_published", &[]);
                wait::holds(published == 1.0, || published.to_string())
            })?;
            let log = shop.ca.log(side)?;
            ensure!(log.contains("certificate issued") && log.contains(side.node_name()), "not audited:\n{log}");
        }
        // What the Secret holds, mounted, is the same root: nothing changes.
        let before = shop.ca.published()?;
        shop.ca.mount_secret()?;
        let secret = shop.api.get("Secret", NAMESPACE, SECRET).context("no Secret")?;
        ensure!(secret["type"] == "kubernetes.io/tls", "{secret}");
        ensure!(shop.ca.published()? == before);
        // A replica that starts anew, from the mount alone.
        let mut ca = shop.ca;
        ca.kill(Side::A)?;
        ca.start(mesh.node(Side::A), &[])?;
        ensure!(ca.published()? == before, "another root after a restart");
        Ok(())
    })
}

#[test]
fn a_replica_without_a_root_says_what_to_do() -> Result<()> {
    scenario(|mesh| {
        let api = mesh.use_api_server()?;
        let ca = KubeCa::new(api, mesh.node(Side::A).folder().join("kube-ca"))?;
        let said = ca.gives_up(mesh.node(Side::A), &[])?;
        for words in ["tls.key", "--create-root-secret", "cert-manager"] {
            ensure!(said.contains(words), "`{words}` is not in:\n{said}");
        }
        Ok(())
    })
}

#[test]
fn whoever_is_not_the_agent_of_a_pods_node_gets_nothing() -> Result<()> {
    scenario(|mesh| {
        let (api, ca) = authority(mesh, &[])?;
        mesh.objects().put_namespace("shop", true)?;
        let _client = mesh.pod(Side::A, "shop/client")?;
        let _server = mesh.pod(Side::B, "shop/server")?;
        ca.mount_roots()?;
        let node = mesh.node(Side::A);
        let good = || ca.token(Side::A, &[AUDIENCE], WITHIN);
        wait::until("the pods are known to the authority", IN_FORCE_WITHIN, || {
            let asked = ask(&ca, node, &good()?, "shop/client")?;
            wait::holds(asked == Asked::Issued, || format!("{asked:?}"))
        })?;

        let of = |account: &str, pod: Option<&str>| api.issue_token(NAMESPACE, account, &[AUDIENCE], pod, WITHIN);
        api.put(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{namespace: {NAMESPACE}, name: other, uid: uid-other}}\n\
             spec: {{nodeName: node-a, serviceAccountName: other, containers: []}}\n"
        ))?;
        let over = ca.token(Side::A, &[AUDIENCE], Duration::ZERO)?;
        let table = [
            ("no pod of that account on the node", good()?, "shop/server", "not_on_node"),
            ("no such account", good()?, "shop/nobody", "not_on_node"),
            ("the agent's own", good()?, "mesh-agent-system/mesh-agent", "not_on_node"),
            ("for the API server", ca.token(Side::A, &[], WITHIN)?, "shop/client", "token_audience"),
            ("for istiod", ca.token(Side::A, &["istio-ca"], WITHIN)?, "shop/client", "token_audience"),
            ("over", over, "shop/client", "token_expired"),
            ("made up", "a.b.c".to_owned(), "shop/client", "token_invalid"),
            ("another account's", of("other", Some("other"))?, "shop/client", "not_an_agent"),
            ("bound to no pod", of("mesh-agent", None)?, "shop/client", "token_unbound"),
        ];
        for (case, token, account, word) in &table {
            let asked = ask(&ca, node, token, account).context(*case)?;
            ensure!(outcome(&asked) == Some(*word), "{case}: {asked:?}");
            audited(mesh, &ca, word).context(*case)?;
        }
        // A CSR for another name than the one in the metadata, and one for both.
        for csr in [&["shop/server"][..], &["shop/client", "shop/server"]] {
            let asked = ask_with(&ca, node, &good()?, "shop/client", csr)?;
            ensure!(outcome(&asked) == Some("names_disagree"), "{csr:?}: {asked:?}");
        }
        audited(mesh, &ca, "names_disagree")?;

        // The agent's pod is made anew on the same node: the old one's token is over with it.
        let old = good()?;
        ca.put_agent_pod(Side::A, "2")?;
        let asked = ask(&ca, node, &old, "shop/client")?;
        ensure!(matches!(outcome(&asked), Some("token_invalid" | "agent_gone")), "{asked:?}");
        wait::until("the new pod is known", IN_FORCE_WITHIN, || {
            let asked = ask(&ca, node, &good()?, "shop/client")?;
            wait::holds(asked == Asked::Issued, || format!("{asked:?}"))
        })?;

        // Without the right to ask nobody gets in, and the reason names the right.
        api.faults().forbid("create", "tokenreviews");
        let asked = ask(&ca, node, &good()?, "shop/client")?;
        ensure!(matches!(&asked, Asked::Away(why) if why.contains("tokenreviews")), "{asked:?}");
        api.faults().permit_all();

        // An API server that is away lets nobody in, and the caller may come again.
        api.faults().refuse_connections()?;
        let asked = ask(&ca, node, &good()?, "shop/client")?;
        ensure!(matches!(&asked, Asked::Away(why) if why.contains("review_failed")), "{asked:?}");
        Ok(())
    })
}

/// A token that the API server still takes for some seconds after its pod was deleted by force.
#[test]
fn a_token_outlives_its_pod_at_the_api_server_and_not_here() -> Result<()> {
    scenario(|mesh| {
        let (api, ca) = authority(mesh, &[])?;
        mesh.objects().put_namespace("shop", true)?;
        let _client = mesh.pod(Side::A, "shop/client")?;
        ca.mount_roots()?;
        let (node, token) = (mesh.node(Side::A), ca.token(Side::A, &[AUDIENCE], WITHIN)?);
        wait::until("the pods are known to the authority", IN_FORCE_WITHIN, || {
            let asked = ask(&ca, node, &token, "shop/client")?;
            wait::holds(asked == Asked::Issued, || format!("{asked:?}"))
        })?;
        api.faults().tokens_outlive_pods();
        api.remove("Pod", NAMESPACE, &agent_pod(Side::A))?;
        wait::until("the token is refused", IN_FORCE_WITHIN, || {
            let asked = ask(&ca, node, &token, "shop/client")?;
            wait::holds(outcome(&asked) == Some("agent_gone"), || format!("{asked:?}"))
        })?;
        audited(mesh, &ca, "agent_gone")
    })
}

/// A refusal of the first node's replica is logged and counted under its word.
fn audited(mesh: &Mesh, ca: &KubeCa, word: &str) -> Result<()> {
    let counted = ca.metrics(mesh.node(Side::A))?.sum("mesh_ca_requests_total", &[("outcome", word)]);
    ensure!(counted >= 1.0, "{word} is not counted");
    let log = ca.log(Side::A)?;
    let line = log.lines().find(|line| line.contains("request rejected") && line.contains(word));
    ensure!(line.is_some(), "{word} is not in the log:\n{log}");
    Ok(())
}
