//! Nobody gets another's identity: each way to try is refused, and seen.

// Tests may panic: that is how they fail.
#![allow(clippy::panic, clippy::indexing_slicing)]

mod rogue;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::mesh::{IN_FORCE_WITHIN, Mesh, Workload, scenario};
use mesh_tests::objects::NETNS_ANNOTATION;
use mesh_tests::pod::is_refused;
use mesh_tests::topology::Side;
use mesh_tests::wait;
use rogue::{Answer, Shown};

const WITHIN: Duration = Duration::from_secs(60);
const TUNNEL: u16 = 15008;
/// The ports that captured connections are rewritten to, and the one for steered plaintext.
const AGENT_PORTS: std::ops::RangeInclusive<u16> = 19_600..=19_664;

/// `shop/client` on the first node; on the second the strict `vault/server`, which serves `shop/client` alone,
/// and its neighbour `shop/thief`.
struct Vault {
    client: Arc<Workload>,
    server: Arc<Workload>,
    thief: Arc<Workload>,
    _echo: mesh_tests::process::Process,
}

fn vault(mesh: &mut Mesh) -> Result<Vault> {
    for namespace in ["shop", "vault"] {
        mesh.objects().put_namespace(namespace, true)?;
    }
    mesh.objects().put_peer_mode("vault", "Strict")?;
    let spec = "  action: ALLOW\n  rules:\n  - sources:\n    \
                - {type: ServiceAccount, serviceAccount: {namespace: shop, name: client}}\n";
    mesh.objects().put_policy("vault", "only-client", spec)?;
    let client = mesh.pod(Side::A, "shop/client")?;
    let server = mesh.pod(Side::B, "vault/server")?;
    let thief = mesh.pod(Side::B, "shop/thief")?;
    let echo = server.sample_server("echo", 7000, &[])?;
    mesh.start()?;
    for pod in [&client, &server, &thief] {
        mesh.captured(pod)?;
    }
    // A client's agent that has not heard yet of the strict server's capture would send plaintext.
    wait::until("whom the policy allows is served", IN_FORCE_WITHIN, || {
        let answer = client.ask("churn", SocketAddr::new(server.ip(), 7000), &["--count", "1"], WITHIN)?;
        wait::holds(answer["ok"] == 1, || answer.to_string())
    })?;
    Ok(Vault { client, server, thief, _echo: echo })
}

#[test]
fn a_neighbour_under_another_account_is_denied_by_name() -> Result<()> {
    scenario(|mesh| {
        let vault = vault(mesh)?;
        for ip in vault.server.ips() {
            let found = vault.thief.ask("probe", SocketAddr::new(ip, 7000), &["--say", "x"], WITHIN)?;
            ensure!(is_refused(&found), "{found}");
        }
        let line = mesh.logged(Side::B, "the denial", |line| line["outcome"] == "denied")?;
        ensure!(line["source"]["identity"] == "spiffe://cluster.local/ns/shop/sa/thief", "{line}");
        ensure!(mesh.agent(Side::B)?.metrics(mesh.node(Side::B))?.sum("mesh_denials_total", &[]) >= 1.0);
        Ok(())
    })
}

#[test]
fn a_borrowed_source_address_is_no_identity() -> Result<()> {
    scenario(|mesh| {
        let vault = vault(mesh)?;
        let borrowed = vault.client.ip().to_string();
        vault.thief.netns().ip(&format!("addr add {borrowed}/32 dev eth0\n"))?;
        let to = SocketAddr::new(vault.server.ip(), 7000);
        let found =
            vault.thief.ask("probe", to, &["--bind", &borrowed, "--say", "x", "--within-ms", "2000"], WITHIN)?;
        ensure!(found["connect"] != "ok" || found["read"] != "data", "{found}");
        Ok(())
    })
}

#[test]
fn the_agents_ports_are_nobodys_to_dial() -> Result<()> {
    scenario(|mesh| {
        let vault = vault(mesh)?;
        let plain = mesh.pod(Side::B, "plain/nobody")?;
        mesh.objects().put_namespace("plain", false)?;
        for from in [&vault.thief, &plain] {
            for ip in [vault.server.ip(), vault.server.ip6(), from.ip()] {
                for port in [*AGENT_PORTS.start(), *AGENT_PORTS.start() + 17, *AGENT_PORTS.end()] {
                    let to = SocketAddr::new(ip, port);
                    let found = from.ask("probe", to, &["--say", "x", "--within-ms", "2000"], WITHIN)?;
                    ensure!(found["connect"] == "TimedOut" || is_refused(&found), "{to}: {found}");
                }
            }
        }
        // In clear, the tunnel's port has nothing to say.
        let found = plain.ask(
            "probe",
            SocketAddr::new(vault.server.ip(), TUNNEL),
            &["--say", "GET / HTTP/1.1\r\n\r\n"],
            WITHIN,
        )?;
        ensure!(!found["text"].as_str().is_some_and(|text| text.contains("HTTP")), "{found}");
        Ok(())
    })
}

#[test]
fn a_tunnel_needs_a_certificate_of_the_mesh() -> Result<()> {
    scenario(|mesh| {
        mesh.expect_complaint("handshake");
        let vault = vault(mesh)?;
        let ca = mesh.ca()?.state().to_owned();
        let to = SocketAddr::new(vault.server.ip(), TUNNEL);
        let authority = format!("{}:7000", vault.server.ip());
        let allowed = "spiffe://cluster.local/ns/shop/sa/client".to_owned();
        let foreign = "spiffe://elsewhere.local/ns/shop/sa/client".to_owned();
        let untrusted = [Shown::Nothing, Shown::Forged(allowed.clone()), Shown::Genuine(foreign)];
        for shown in &untrusted {
            let answer = rogue::connect(vault.thief.netns(), to, shown, &ca, &authority)?;
            ensure!(matches!(answer, Answer::NotTrusted(_)), "{answer:?}");
        }
        // The same client with a true certificate gets through: what was refused was the certificate.
        let answer = rogue::connect(vault.thief.netns(), to, &Shown::Genuine(allowed), &ca, &authority)?;
        ensure!(answer == Answer::Status(200), "{answer:?}");
        let thief = Shown::Genuine("spiffe://cluster.local/ns/shop/sa/thief".to_owned());
        let answer = rogue::connect(vault.thief.netns(), to, &thief, &ca, &authority)?;
        ensure!(answer == Answer::Status(401), "{answer:?}");
        Ok(())
    })
}

#[test]
fn a_tunnel_leads_to_the_pod_it_came_in_by_and_nowhere_else() -> Result<()> {
    scenario(|mesh| {
        let vault = vault(mesh)?;
        let ca = mesh.ca()?.state().to_owned();
        let to = SocketAddr::new(vault.server.ip(), TUNNEL);
        let shown = Shown::Genuine("spiffe://cluster.local/ns/shop/sa/client".to_owned());
        let others = [
            format!("{}:7000", vault.thief.ip()),
            format!("{}:7000", vault.client.ip()),
            format!("[{}]:7000", vault.thief.ip6()),
            "127.0.0.1:7000".to_owned(),
            "[::1]:7000".to_owned(),
            "0.0.0.0:7000".to_owned(),
            "server.vault:7000".to_owned(),
            format!("{}:{TUNNEL}", vault.server.ip()),
            format!("{}:{}", vault.server.ip(), AGENT_PORTS.start()),
            format!("{}:0", vault.server.ip()),
        ];
        for authority in &others {
            let answer = rogue::connect(vault.client.netns(), to, &shown, &ca, authority)?;
            ensure!(answer == Answer::Status(400), "CONNECT {authority}: {answer:?}");
        }
        let refused = mesh.agent(Side::B)?.metrics(mesh.node(Side::B))?.sum("mesh_tunnel_requests_refused_total", &[]);
        ensure!(refused >= others.len() as f64, "{refused} counted of {}", others.len());
        Ok(())
    })
}

#[test]
fn an_annotation_that_names_another_pods_network_captures_nothing() -> Result<()> {
    scenario(|mesh| {
        mesh.expect_complaint("netns");
        let vault = vault(mesh)?;
        let stolen = vault.server.netns().path().display().to_string();
        mesh.pod_with(Side::B, "shop/impostor", |object| {
            object.annotations.insert(NETNS_ANNOTATION.to_owned(), stolen);
        })?;
        wait::until("the impostor is named as not captured", IN_FORCE_WITHIN, || {
            let status = mesh.agent(Side::B)?.status(mesh.node(Side::B))?.to_string();
            wait::holds(status.contains("impostor") && status.contains("netns"), || status)
        })?;
        let published = mesh.objects().text("captured.node-b");
        ensure!(!published.contains("uid-shop-impostor"), "{published}");
        // The owner of the network is still captured, under its own policy.
        let to = SocketAddr::new(vault.server.ip(), 7000);
        let answer = vault.client.ask("churn", to, &["--count", "1"], WITHIN)?;
        ensure!(answer["ok"] == 1, "{answer}");
        let found = vault.thief.ask("probe", to, &["--say", "x"], WITHIN)?;
        ensure!(is_refused(&found), "{found}");
        Ok(())
    })
}

#[test]
fn every_address_of_a_strict_pod_is_strict() -> Result<()> {
    scenario(|mesh| {
        let vault = vault(mesh)?;
        mesh.objects().put_namespace("plain", false)?;
        let plain = mesh.pod(Side::B, "plain/nobody")?;
        // A second interface straight to the stranger, an address added later, and link-local ones.
        let (own, theirs) = (vault.server.netns(), plain.netns());
        own.ip(&format!("link add side0 index 301 type veth peer name side0 index 302 netns {}\n", theirs.name()))?;
        own.ip("addr add 172.30.0.1/24 dev side0\naddr add fe80::51/64 dev side0 nodad\nlink set side0 up\n")?;
        theirs.ip("addr add 172.30.0.2/24 dev side0\nlink set side0 up\n")?;
        own.ip("addr add 172.30.1.1/32 dev side0\n")?;
        theirs.ip("route add 172.30.1.1/32 dev side0\n")?;
        let scope = theirs.run(|| nix::net::if_::if_nametoindex("side0"))??;
        let link_local: IpAddr = "fe80::51".parse()?;
        let link_local = format!("[{link_local}%{scope}]:7000");
        let addresses = [
            SocketAddr::new(vault.server.ip(), 7000).to_string(),
            SocketAddr::new(vault.server.ip6(), 7000).to_string(),
            "172.30.0.1:7000".to_owned(),
            "172.30.1.1:7000".to_owned(),
            link_local,
        ];
        for address in &addresses {
            let probe = plain.sample("strict", &["probe", "--to", address, "--say", "x", "--within-ms", "3000"])?;
            let found = probe.answer(WITHIN)?;
            ensure!(found["connect"] == "ConnectionRefused", "plaintext to {address}: {found}");
        }
        let metrics = mesh.agent(Side::B)?.metrics(mesh.node(Side::B))?;
        let counted: f64 =
            metrics.samples().iter().filter(|s| s.labels.values().any(|v| v == "lookup_strict")).map(|s| s.value).sum();
        ensure!(counted >= addresses.len() as f64, "{counted} counted of {}", addresses.len());
        Ok(())
    })
}

#[test]
fn plaintext_is_unknown_whatever_its_address() -> Result<()> {
    scenario(|mesh| {
        mesh.objects().put_namespace("plain", false)?;
        let stranger = mesh.pod(Side::A, "plain/stranger")?;
        let (_, server) = mesh.shop()?;
        let _echo = server.sample_server("echo", 7000, &[])?;
        let to = SocketAddr::new(server.ip(), 7000);
        // Permissive and without a policy it gets in, as unknown.
        let answer = stranger.ask("churn", to, &["--count", "1"], WITHIN)?;
        ensure!(answer["ok"] == 1, "{answer}");
        // An ALLOW that names an identity is not for it, even with an object that claims its address.
        mesh.pod_with(Side::A, "shop/alias", |object| object.ips = stranger.ips().to_vec())?;
        let spec = "  rules:\n  - sources:\n    - {type: Namespace, namespace: {name: shop}}\n";
        mesh.objects().put_policy("shop", "own-namespace", spec)?;
        mesh.expect_complaint("alias");
        let line = wait::until("the stranger is denied", IN_FORCE_WITHIN, || {
            let found = stranger.ask("probe", to, &["--say", "x"], WITHIN)?;
            wait::holds(is_refused(&found), || found.to_string())?;
            // One that stood when the policy came is ended instead, which is no denial.
            let lines = mesh.agent(Side::B)?.access_log()?;
            lines.into_iter().find(|line| line["outcome"] == "denied").context("no denial is logged")
        })?;
        ensure!(line["source"].get("identity").is_none(), "{line}");
        Ok(())
    })
}
