//! The kubelet's probes: let in by proof of who dials and by what the dialled pod itself declares.

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use mesh_agent::capture::Kubelet;
use mesh_agent::model::workload::{PeerMode, Workload};
use mesh_common::counter::Counter;
use mesh_tests::pod::Pod;
use mesh_tests::topology::Side;
use mesh_tests::{bpf, wait};

use crate::bench::*;
use crate::pair::*;

/// A cgroup for a kubelet, beside those of the pods; gone when dropped.
struct Home(PathBuf);

impl Home {
    fn new(bench: &Bench, name: &str) -> Result<Self> {
        let parent = bench.config.cgroup.parent().context("the node's cgroup has a parent")?;
        let node = bench.config.cgroup.file_name().context("and a name")?.to_string_lossy();
        let path = parent.join(format!("{node}-{name}"));
        std::fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir(&self.0) {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}

/// What becomes of a connection from the node's own network, dialled by a process in `cgroup`.
fn dial(bench: &Bench, cgroup: Option<&Home>, to: SocketAddr) -> Result<bool> {
    let node = bench.topology.node(Side::A);
    let Some(home) = cgroup else {
        return node.netns().run(|| TcpStream::connect(to).is_ok());
    };
    let script = format!(
        "echo $$ > {}/cgroup.procs && exec ip netns exec {} bash -c 'exec 3<>/dev/tcp/{}/{}'",
        home.0.display(),
        node.netns().name(),
        to.ip(),
        to.port()
    );
    Ok(Command::new("bash").args(["-c", &script]).stderr(Stdio::null()).status()?.success())
}

/// A strict pod with a server on each of two ports, of which it declares one as a probe's.
fn strict(bench: &mut Bench, name: &str) -> Result<(Pod, Vec<mesh_tests::process::Process>)> {
    let pod = bench.pod(name)?;
    let workload = Workload { probe_ports: [8081].into(), ..captured_workload(&pod, PeerMode::Strict) };
    let _gone = bench.enrol(workload)?;
    let apps = vec![pod.sample_server("greeter", 8080, &[])?, pod.sample_server("greeter", 8081, &[])?];
    Ok((pod, apps))
}

#[test]
fn the_kubelet_probes_declared_ports_and_nobody_else_does() -> Result<()> {
    node(|bench| {
        let (pod, _apps) = strict(bench, "probed")?;
        let home = Home::new(bench, "kubelet")?;
        let followed = bench.kernel.follow_kubelet(&Kubelet::Cgroup(home.0.clone()))?;
        assert_eq!(followed.as_deref(), Some(&*home.0));
        for ip in pod.ips() {
            let (declared, other) = (SocketAddr::new(ip, 8081), SocketAddr::new(ip, 8080));
            ensure!(dial(bench, Some(&home), declared)?, "the kubelet does not reach {declared}");
            ensure!(!dial(bench, Some(&home), other)?, "the kubelet reaches {other}, which is no probe's");
            // The same address, another process.
            ensure!(!dial(bench, None, declared)?, "another process of the node reaches {declared}");
        }
        assert_eq!(bench.count(Counter::LookupProbe), 2);
        wait::until("no record is left", SOON, || {
            let flows = bpf::map_entries(&bench.pins())?["flows"];
            wait::holds(flows == 0, || format!("{flows} flows"))
        })
    })
}

/// A probe of pod A with `host:` naming B is the kubelet dialling B on a port that B has not declared.
#[test]
fn what_one_pod_declares_opens_no_other() -> Result<()> {
    node(|bench| {
        let (_a, _apps) = strict(bench, "a")?;
        let b = bench.pod("b")?;
        let _gone = bench.enrol(captured_workload(&b, PeerMode::Strict))?;
        let _app = b.sample_server("greeter", 8081, &[])?;
        let home = Home::new(bench, "kubelet")?;
        bench.kernel.follow_kubelet(&Kubelet::Cgroup(home.0.clone()))?;
        ensure!(!dial(bench, Some(&home), SocketAddr::new(b.ip(), 8081))?, "B is reached by A's declaration");
        Ok(())
    })
}

#[test]
fn a_kubelet_that_comes_back_in_another_cgroup_is_followed_by_its_port() -> Result<()> {
    const PORT: u16 = 20_250;
    node(|bench| {
        let (pod, _apps) = strict(bench, "probed")?;
        let declared = SocketAddr::new(pod.ip(), 8081);
        let by_port = Kubelet::Port(PORT);
        assert_eq!(bench.kernel.follow_kubelet(&by_port)?, None, "there is none yet");
        let (first, second) = (Home::new(bench, "kubelet-1")?, Home::new(bench, "kubelet-2")?);
        for (home, other) in [(&first, &second), (&second, &first)] {
            let kubelet = Listening(listen(home, PORT)?);
            let followed = wait::until("it is followed", SOON, || {
                bench.kernel.follow_kubelet(&by_port)?.filter(|path| *path == home.0).context("not yet")
            })?;
            assert_eq!(followed, home.0);
            ensure!(dial(bench, Some(home), declared)?, "it does not reach {declared}");
            ensure!(!dial(bench, Some(other), declared)?, "where it is not still counts as the kubelet");
            drop(kubelet);
        }
        Ok(())
    })
}

#[test]
fn a_cgroup_with_pods_below_it_is_nobodys() -> Result<()> {
    node(|bench| {
        let parent = bench.config.cgroup.parent().context("a parent")?.to_owned();
        for cgroup in [bench.config.cgroup.clone(), parent] {
            let error = bench.kernel.follow_kubelet(&Kubelet::Cgroup(cgroup)).err().context("it is taken")?;
            ensure!(error.to_string().contains("cgroup of its own"), "{error}");
        }
        Ok(())
    })
}

/// Killed when dropped.
struct Listening(Child);

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process in `home` that listens, in the network namespace of the test itself.
fn listen(home: &Home, port: u16) -> Result<Child> {
    let server = format!("import socket, time; s = socket.create_server((\"127.0.0.1\", {port})); time.sleep(60)");
    let script = format!("echo $$ > {}/cgroup.procs && exec python3 -c '{server}'", home.0.display());
    Ok(Command::new("bash").args(["-c", &script]).spawn()?)
}
