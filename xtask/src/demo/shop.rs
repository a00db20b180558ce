//! The demo's cast: a small shop in three enrolled namespaces, and two old pods outside the mesh.
//!
//! ```text
//!  node-a                                   node-b
//!  shop-front/visitor ───────────────────▶ shop-front/front
//!  shop-cart/catalog  ◀─────────────────── front
//!  shop-cart/cart     ◀─────────────────── front
//!  cart ─────────────────────────────────▶ shop-pay/pay
//!  legacy/report ────────────────────────▶ legacy/ledger          (not enrolled)
//! ```

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use mesh_tests::agent::METRICS;
use mesh_tests::apps;
use mesh_tests::mesh::{Mesh, Workload};
use mesh_tests::process::Process;
use mesh_tests::topology::Side;

use super::{show, web_client};
use crate::shell;

/// A page that does not come within this does not come.
const PAGE_WITHIN: Duration = Duration::from_secs(15);
const PORT: u16 = 8080;

/// The shop, open for business.
pub struct Shop {
    /// The applications; dropped before their pods.
    _servers: Vec<Process>,
    /// Who comes to the shop.
    pub visitor: Arc<Workload>,
    /// Where its front is.
    pub front: SocketAddr,
    /// Where payments are made.
    pub pay: SocketAddr,
    /// The shelf, on the visitor's own node.
    pub catalog: SocketAddr,
    /// The old pair: client, and the server's address.
    pub report: Arc<Workload>,
    /// The old pair's server.
    pub ledger: Arc<Workload>,
    /// Nodes, agents, pods; dropped after whoever lives there.
    pub mesh: Mesh,
    binaries: PathBuf,
}

impl Shop {
    /// Makes nodes and pods, starts the applications, then the agents.
    pub fn open(binaries: &Path) -> Result<Self> {
        let mut mesh = Mesh::new()?;
        for (namespace, enrolled) in [("shop-front", true), ("shop-cart", true), ("shop-pay", true), ("legacy", false)]
        {
            mesh.objects().put_namespace(namespace, enrolled)?;
        }
        let visitor = mesh.pod(Side::A, "shop-front/visitor")?;
        let front = mesh.pod(Side::B, "shop-front/front")?;
        let catalog = mesh.pod(Side::A, "shop-cart/catalog")?;
        let cart = mesh.pod(Side::A, "shop-cart/cart")?;
        let pay = mesh.pod(Side::B, "shop-pay/pay")?;
        let report = mesh.pod(Side::A, "legacy/report")?;
        let ledger = mesh.pod(Side::B, "legacy/ledger")?;
        let mut service = |name: &str| mesh.service(name, 80, PORT).map(|[v4, _]| v4);
        let (front_at, cart_at) = (service("shop-front/front")?, service("shop-cart/cart")?);
        let (catalog_at, pay_at) = (service("shop-cart/catalog")?, service("shop-pay/pay")?);
        let web = |pod: &Workload, calls: &[SocketAddr]| {
            let calls: Vec<String> = calls.iter().map(ToString::to_string).collect();
            let mut arguments = vec!["--name", pod.name()];
            arguments.extend(calls.iter().flat_map(|call| ["--calls", call.as_str()]));
            pod.sample_server("http", PORT, &arguments)
        };
        let shelf = match shell::which("nginx") {
            Some(_) => apps::nginx(&catalog, PORT, "tea, pots, cups\n")?,
            None => web(&catalog, &[])?,
        };
        let servers = vec![
            shelf,
            web(&front, &[catalog_at, cart_at])?,
            web(&cart, &[pay_at])?,
            web(&pay, &[])?,
            web(&ledger, &[])?,
        ];
        mesh.start()?;
        for pod in [&visitor, &front, &catalog, &cart, &pay] {
            mesh.captured(pod)?;
        }
        let binaries = binaries.to_owned();
        Ok(Self {
            _servers: servers,
            mesh,
            visitor,
            front: front_at,
            pay: pay_at,
            catalog: catalog_at,
            report,
            ledger,
            binaries,
        })
    }

    /// Tells who is there.
    pub fn introduce(&self) {
        show::line("node-a: shop-front/visitor, shop-cart/catalog, shop-cart/cart, legacy/report");
        show::line("node-b: shop-front/front, shop-pay/pay, legacy/ledger");
        show::line("one agent on each node, ready; one certificate authority, which alone holds the root key");
        show::line("the applications are ordinary programs over plain TCP; nothing in them knows of the mesh");
    }

    /// The address of the old pair's server.
    pub fn ledger_at(&self) -> SocketAddr {
        SocketAddr::new(self.ledger.ip(), PORT)
    }

    /// Fetches a page from inside a pod; what went wrong is an answer too.
    pub fn fetch(&self, from: &Workload, url: &str, name: &str) -> Result<String> {
        let command = if shell::which("curl").is_some() { web_client(url) } else { self.sample_client(url) };
        let mut process = from.spawn(name, command)?;
        process.wait(PAGE_WITHIN)?;
        Ok(if process.stdout().is_empty() { process.stderr() } else { process.stdout() })
    }

    fn sample_client(&self, url: &str) -> Command {
        let (to, path) = url.trim_start_matches("http://").split_once('/').unwrap_or((url, ""));
        let mut command = Command::new(self.binaries.join("mesh-sample"));
        command.args(["get", "--to", to, "--path", &format!("/{path}")]);
        command
    }

    /// Writes a script that runs a command inside a pod, and prints what to do with it.
    pub fn what_to_try(&self) {
        let folder = self.visitor.folder().ancestors().nth(2).map(Path::to_owned).unwrap_or_default();
        let script = folder.join("enter");
        if let Err(error) = self.write_script(&script) {
            println!("cannot write {}: {error:#}", script.display());
            return;
        }
        let node = self.mesh.node(Side::B).netns().name();
        println!("\nIt keeps running. From another terminal, as root:");
        show::command(&format!("{} visitor curl -s http://{}/", script.display(), self.front));
        show::command(&format!("{} visitor curl -s http://{}/      # denied", script.display(), self.pay));
        show::command(&format!("ip netns exec {node} curl -s http://{METRICS}/metrics"));
        let state = self.mesh.node(Side::B).folder().join("state");
        let agent = self.binaries.join("mesh-agent");
        show::command(&format!("{} status --state-dir {}", agent.display(), state.display()));
        println!("The objects are the files in {}: change one and see.", self.mesh.objects().folder().display());
        println!("The access logs: {}/node-*/agent.out", folder.display());
        println!("Ctrl-C takes everything down.");
    }

    fn write_script(&self, path: &Path) -> Result<()> {
        let mut script = String::from(
            "#!/bin/sh\n# enter POD COMMAND...: runs a command in a pod, that is in its cgroup and in its network.\n\
             case \"$1\" in\n",
        );
        for pod in [&self.visitor, &self.report, &self.ledger] {
            let name = pod.object().name;
            let (cgroup, netns) = (pod.cgroup().path().display(), pod.netns().name());
            writeln!(script, "{name}) cgroup={cgroup}; netns={netns};;")?;
        }
        script.push_str("*) echo \"pods: visitor, report, ledger\" >&2; exit 64;;\nesac\nshift\n");
        script.push_str("echo $$ > \"$cgroup/cgroup.procs\" && exec ip netns exec \"$netns\" \"$@\"\n");
        fs::write(path, script)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        Ok(())
    }
}
