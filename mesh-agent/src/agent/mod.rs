//! The composition root: the only file that knows every room. It starts them in order, runs until told to stop,
//! and takes them down in the opposite order. It decides nothing.

mod kernel_events;
mod metrics;
mod pods;
mod stage;
mod status;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};

use crate::admin::{self, Condition, Readiness};
use crate::balance::Balancer;
use crate::capture::{Kernel, KernelConfig, uninstall};
use crate::config::{Ca, Config, Source};
use crate::control::{self, DirConfig, publish_captured};
use crate::identity::{
    CaAuth, CaClient, CertStore, GrpcCa, GrpcTarget, LocalCa, NodeIdentity, NodeLogin, NodeName, Rotator,
    RotatorSettings,
};
use crate::proxy::{self, Deps, Limits, Proxy};
use crate::snapshot::SnapshotStore;
use crate::sys;
use crate::telemetry::{Registry, Telemetry};
use crate::tls::Tls;
use metrics::{Board, BoardCollector};
use pods::{Parts, Pods};

/// How often series of vanished workloads are looked for.
const SWEEP: Duration = Duration::from_secs(60);
/// Threads of the control runtime: source, certificates, admin. None of them computes for long.
const CONTROL_THREADS: usize = 2;

/// Runs the agent until SIGTERM or SIGINT. Called on the main thread, before any other is made.
///
/// # Errors
/// What keeps it from starting, with the way out; a failed drain is logged, not an error.
pub fn run(config: Config) -> Result<()> {
    sys::remember_home_netns().context("/proc is needed")?;
    sys::set_undumpable().context("PR_SET_DUMPABLE")?;
    raise_descriptor_limit();
    std::fs::create_dir_all(&config.state_dir)
        .with_context(|| format!("--state-dir {}", config.state_dir.display()))?;
    // Before any thread is made: it moves the whole process into its own cgroup.
    let kernel = Arc::new(Kernel::start(kernel_config(&config))?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .enable_all()
        .build()?;
    runtime.block_on(serve(config, kernel))
}

fn kernel_config(config: &Config) -> KernelConfig {
    KernelConfig { instance: config.instance.clone(), cgroup: config.cgroup.clone(), bpffs: config.bpffs.clone() }
}

/// Two sockets for each connection: the usual soft limit of 1,024 would end at 500.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
}

async fn serve(config: Config, kernel: Arc<Kernel>) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let ready = Arc::new(Readiness::waiting(&[
        (Condition::Source, "the objects have not been read yet"),
        (Condition::Pods, "the pods have not been looked at yet"),
    ]));
    let snapshots = Arc::new(SnapshotStore::default());
    let certificates = Arc::new(CertStore::new(&config.trust_domain));
    let registry = Arc::new(Registry::default());
    let telemetry = Telemetry::start(Arc::clone(&registry), Box::new(std::io::stdout()))?;
    let board = Arc::new(Board::new(Arc::clone(&kernel), Arc::clone(&snapshots), Arc::clone(&certificates)));
    registry.register(|r| r.register_collector(Box::new(BoardCollector(Arc::clone(&board)))));

    let wanted = watch::Sender::new(BTreeSet::new());
    let rotator = Rotator::new(Arc::clone(&certificates), ca_client(&config)?, RotatorSettings::default());
    tokio::spawn(rotator.run(wanted.subscribe()));

    let balancer = Arc::new(Balancer::new());
    let proxy = Arc::new(Proxy::new(Deps {
        snapshots: Arc::clone(&snapshots),
        balancer: Arc::clone(&balancer),
        tls: Arc::new(Tls::new(Arc::clone(&certificates))),
        telemetry: Arc::clone(&telemetry),
        limits: Limits::default(),
        workers: config.workers,
        reserved_ports: (0..=u16::MAX).filter(|port| mesh_common::limits::is_agent_port(*port)).collect(),
    })?);

    let metrics = admin::serve_metrics(config.metrics, registry, Arc::clone(&ready)).await?;
    tokio::spawn(metrics);
    tokio::spawn(admin::serve_status(&config.state_dir, status::source(&config, &board, &proxy))?);
    let scribe = kernel_events::Scribe {
        kernel: Arc::clone(&kernel),
        snapshots: Arc::clone(&snapshots),
        telemetry: Arc::clone(&telemetry),
    };
    tokio::spawn(scribe.write_all(kernel.events()?));
    tokio::spawn(sweep(Arc::clone(&telemetry), balancer, Arc::clone(&snapshots)));
    let source = tokio::spawn(read_source(config.clone(), Arc::clone(&snapshots)));

    let parts = Parts {
        kernel: Arc::clone(&kernel),
        proxy: Arc::clone(&proxy),
        certificates,
        wanted,
        publish: publisher(&config),
        wire: proxy::WIRE.iter().map(|alpn| Arc::from(*alpn)).collect(),
    };
    let (stop_pods, stopped) = oneshot::channel();
    let pods = PodsThread { snapshots, board, ready: Arc::clone(&ready) };
    let pods = std::thread::Builder::new().name("pods".into()).spawn(move || pods.run(Pods::new(parts), stopped))?;

    tracing::info!(node = config.node, instance = config.instance, metrics = %config.metrics, "mesh-agent is up");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        ended = source => {
            ended.context("the source's task")??;
        }
    }
    ready.lacks(Condition::Serving, "stopping".to_owned());
    tracing::info!(grace_seconds = config.grace.as_secs(), "stopping");
    let _ = stop_pods.send(config.uninstall_on_exit);
    let drained = proxy.shutdown(config.grace).await;
    if !drained {
        tracing::warn!("some connections did not end within the grace period and were cut");
    }
    if pods.join().is_err() {
        tracing::error!("the thread that cares for the pods had died");
    }
    if config.uninstall_on_exit {
        kernel.leave_cgroup();
        uninstall(&kernel_config(&config)).context("uninstalling")?;
    }
    Ok(())
}

fn ca_client(config: &Config) -> Result<Arc<dyn CaClient>> {
    Ok(match &config.ca {
        Ca::Local => Arc::new(LocalCa::open(&config.state_dir, &config.trust_domain)?),
        Ca::Grpc { address, root, join_token } => {
            let target = GrpcTarget { address: address.clone(), root_file: root.clone() };
            let name: NodeName = config.node.parse()?;
            let node = NodeIdentity::new(&config.trust_domain, name);
            let login = NodeLogin::new(node, &config.state_dir, join_token.clone());
            Arc::new(GrpcCa::new(target, CaAuth::Node(login))?)
        }
    })
}

async fn read_source(config: Config, snapshots: Arc<SnapshotStore>) -> Result<()> {
    let Source::Dir(path) = config.source;
    let config = DirConfig { path, node: config.node, trust_domain: config.trust_domain };
    control::run(config, snapshots, std::future::pending()).await?;
    Ok(())
}

fn publisher(config: &Config) -> pods::Publish {
    let Source::Dir(dir) = config.source.clone();
    let node = config.node.clone();
    Box::new(move |pods| publish_captured(&dir, &node, pods))
}

/// Forgets what is remembered of workloads and endpoints that are gone.
async fn sweep(telemetry: Arc<Telemetry>, balancer: Arc<Balancer>, snapshots: Arc<SnapshotStore>) {
    let mut ticks = tokio::time::interval(SWEEP);
    loop {
        ticks.tick().await;
        let snapshot = snapshots.load();
        telemetry.sweep(&snapshot);
        balancer.retain(snapshot.services());
    }
}

/// The thread on which pods are enrolled: it may block.
struct PodsThread {
    snapshots: Arc<SnapshotStore>,
    board: Arc<Board>,
    ready: Arc<Readiness>,
}

impl PodsThread {
    fn run(self, mut pods: Pods, mut stop: oneshot::Receiver<bool>) {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_time().build() else {
            tracing::error!("the thread that cares for the pods could not start");
            return;
        };
        let mut snapshots = self.snapshots.watch();
        let mut certificates = self.board.certificates.watch();
        loop {
            let mut next = None;
            // Generation 0 is not a state of the mesh: nothing has been read yet.
            let snapshot = self.snapshots.load();
            if snapshot.generation() > 0 {
                next = pods.reconcile(&snapshot, Instant::now());
                self.put_up(&pods);
            }
            let stopping = runtime.block_on(async {
                let timer = async {
                    match next {
                        Some(next) => tokio::time::sleep_until(next.into()).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    uninstalling = &mut stop => Some(uninstalling.unwrap_or(false)),
                    _ = snapshots.changed() => None,
                    _ = certificates.changed() => None,
                    () = timer => None,
                }
            });
            match stopping {
                Some(true) => return pods.take_down(),
                Some(false) => return,
                None => {}
            }
        }
    }

    fn put_up(&self, pods: &Pods) {
        let report = pods.report();
        let joining: Vec<String> =
            report.iter().filter(|pod| pod.stage == "joining").map(|pod| pod.workload.display_name()).collect();
        if joining.is_empty() {
            self.ready.holds(Condition::Pods);
        } else {
            self.ready.lacks(Condition::Pods, format!("joining: {}", joining.join(", ")));
        }
        self.ready.holds(Condition::Source);
        self.board.put(report);
    }
}

/// Removes everything of an instance whose agent is gone.
///
/// # Errors
/// When its pin directory cannot be removed.
pub fn remove_instance(instance: String, bpffs: PathBuf, cgroup: PathBuf) -> Result<()> {
    sys::remember_home_netns().context("/proc is needed")?;
    uninstall(&KernelConfig { instance, cgroup, bpffs }).context("uninstalling")
}
