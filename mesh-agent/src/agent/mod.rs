//! The composition root: the only file that knows every room. It starts them in order, runs until told to stop,
//! and takes them down in the opposite order. It decides nothing.

mod callers;
pub mod controller;
mod duties;
mod egress_events;
mod enrol;
mod explain;
mod handover;
mod inherited;
mod kernel_events;
mod metrics;
mod pod_list;
mod pods;
mod pods_thread;
mod publication;
mod report;
mod source;
mod stage;
mod status;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::admin::{Condition, Readiness};
use crate::balance::Balancer;
use crate::capture::{Half, Kernel, KernelConfig, uninstall as uninstall_instance};
use crate::cni::{self, Book};
use crate::config::{Ca, CaLogin, CniInstall, Config};
use crate::identity::{
    CaAuth, CaClient, CertStore, GrpcCa, GrpcTarget, LocalCa, NodeIdentity, NodeLogin, NodeName, Rotator,
    RotatorSettings,
};
use crate::model::identity::Identity;
use crate::proxy::{self, Deps, Limits, Proxy};
use crate::snapshot::SnapshotStore;
use crate::sys;
use crate::telemetry::{Registry, Telemetry};
use crate::tls::Tls;
use duties::{Duties, Running};
use enrol::Enroller;
use handover::charge::{self, Charge};
use handover::successor;
use metrics::{Board, BoardCollector};
use pods::{Parts, Pods};
use pods_thread::{Order, PodsThread};
use source::ObjectSource;

/// How often readiness is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// How often series of vanished workloads are looked for.
const SWEEP: Duration = Duration::from_secs(60);
/// What is left of the spans may take so long to be sent at the end.
const SPANS_LAST: Duration = Duration::from_secs(3);
/// Threads of the control runtime: source, certificates, admin. None of them computes for long.
const CONTROL_THREADS: usize = 2;

/// Runs the agent until SIGTERM or SIGINT. Called on the main thread, before any other is made.
///
/// # Errors
/// What keeps it from starting, with the way out; a failed drain is logged, not an error.
pub fn run(config: Config) -> Result<()> {
    sys::remember_home_netns().context("/proc is needed")?;
    sys::enter_cgroup_namespace_of_init().context(
        "the node's cgroup namespace, which is that of process 1: a container needs hostPID, CAP_SYS_PTRACE to see it \
         and CAP_SYS_ADMIN to enter it",
    )?;
    sys::set_undumpable().context("PR_SET_DUMPABLE")?;
    raise_descriptor_limit();
    let plugin = config.cni.iter().flat_map(|cni| [&*cni.conf_dir, &*cni.bin_dir]);
    cni::is_writable(plugin).context("the CNI plugin cannot be installed")?;
    std::fs::create_dir_all(&config.state_dir)
        .with_context(|| format!("--state-dir {}", config.state_dir.display()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .enable_all()
        .build()?;
    runtime.block_on(serve(config))
}

fn kernel_config(config: &Config) -> KernelConfig {
    KernelConfig {
        instance: config.instance.clone(),
        cgroup: config.cgroup.clone(),
        bpffs: config.bpffs.clone(),
        deny_errno: config.deny_errno,
        half: config.half,
    }
}

/// Two sockets for each connection: the usual soft limit of 1,024 would end at 500. As many as the data path's own
/// limit of connections asks for, else (only CAP_SYS_RESOURCE may go beyond it) as the hard limit allows.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    const ENOUGH: u64 = 1 << 17;
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| {
        let enough = hard.max(ENOUGH);
        setrlimit(Resource::RLIMIT_NOFILE, enough, enough).or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard, hard))
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
}

/// What stands before anything of the node is touched: the objects, certificates, telemetry.
struct Base {
    book: Arc<Book>,
    ready: Arc<Readiness>,
    snapshots: Arc<SnapshotStore>,
    certificates: Arc<CertStore>,
    wanted: watch::Sender<BTreeSet<Identity>>,
    registry: Arc<Registry>,
    telemetry: Arc<Telemetry>,
    /// Sends spans to their collector.
    spans: Option<JoinHandle<()>>,
    source: JoinHandle<Result<()>>,
}

impl Base {
    fn start(config: &Config, objects: &ObjectSource) -> Result<Self> {
        let ready = Arc::new(Readiness::waiting(&[
            (Condition::Source, "the objects have not been read yet"),
            (Condition::Pods, "the pods have not been looked at yet"),
            (Condition::Handover, "not in charge of the node yet"),
        ]));
        let snapshots = Arc::new(SnapshotStore::default());
        let certificates = Arc::new(CertStore::new(&config.trust_domain));
        let registry = Arc::new(Registry::default());
        let telemetry = Telemetry::start(Arc::clone(&registry), Box::new(std::io::stdout()), config.telemetry.clone())?;
        let spans = telemetry.exporter(&config.node).map(tokio::spawn);
        let wanted = watch::Sender::new(BTreeSet::new());
        let rotator = Rotator::new(Arc::clone(&certificates), ca_client(config)?, RotatorSettings::default());
        tokio::spawn(rotator.run(wanted.subscribe()));
        objects.register(&registry);
        let book = Arc::new(Book::open(&config.state_dir).context("/proc is needed")?);
        let source = tokio::spawn(objects.clone().run(config.clone(), Arc::clone(&book), Arc::clone(&snapshots)));
        Ok(Self { book, ready, snapshots, certificates, wanted, registry, telemetry, spans, source })
    }
}

/// The API server has shown this agent what it had shown its predecessor within this; until then that one serves.
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(10);

impl Base {
    /// Takes in what a predecessor was told by the CNI plugin after this agent had read the book, and waits until the
    /// API server has shown those pods here too: one that is not known when this agent's programs come into force
    /// would be outside the mesh until it is.
    async fn know_what_came_since(&self) {
        self.book.read_again();
        let standing = self.book.standing();
        let known = self.snapshots.until(|snapshot| standing.iter().all(|uid| snapshot.workload(uid).is_some()));
        // Of a pod that the API server has no more, and whose sandbox still stands, there is nothing to wait for.
        let _ = tokio::time::timeout(CAUGHT_UP_WITHIN, known).await;
    }
}

async fn serve(config: Config) -> Result<()> {
    let mut stop = Stop::on_signals()?;
    let objects = ObjectSource::open(&config.source).await?;
    let mut base = Base::start(&config, &objects)?;
    let prepared = async || successor::prepared(&base.snapshots, &base.certificates, &base.wanted).await;
    let mandate = tokio::select! {
        mandate = successor::take_over(&config.state_dir, &config.instance, prepared) => mandate?,
        () = stop.told() => return Ok(()),
    };
    let owner = tokio::select! {
        owner = charge::claim(&config, mandate.as_ref()) => owner?,
        () = stop.told() => return Ok(()),
    };
    // From here on nobody else writes, or counts what the kernel carries.
    if mandate.is_some() {
        base.know_what_came_since().await;
    }
    let counting_since_ns = sys::monotonic_ns();
    let kernel = Arc::new(Kernel::start(kernel_config(&config))?);
    let board = Board::new(Arc::clone(&kernel), Arc::clone(&base.snapshots), Arc::clone(&base.certificates));
    let board = Arc::new(board);
    base.registry.register(|r| r.register_collector(Box::new(BoardCollector(Arc::clone(&board)))));
    let balancer = Arc::new(Balancer::new());
    let proxy = Arc::new(proxy(&config, &base, Arc::clone(&balancer))?);
    tokio::spawn(sweep(Arc::clone(&base.telemetry), balancer, Arc::clone(&base.snapshots)));

    let enroller =
        Arc::new(Enroller { board: Arc::clone(&board), book: Arc::clone(&base.book), cgroup: config.cgroup.clone() });
    let kept = tokio::spawn(Arc::clone(&enroller).keep(config.state_dir.clone()));
    let installed = config.cni.clone().map(|install| tokio::spawn(keep_installed(install, Arc::clone(&base.ready))));
    let (orders, ordered) = mpsc::unbounded_channel();
    let mut duties = Duties {
        config: config.clone(),
        kernel: Arc::clone(&kernel),
        proxy: Arc::clone(&proxy),
        snapshots: Arc::clone(&base.snapshots),
        telemetry: Arc::clone(&base.telemetry),
        registry: Arc::clone(&base.registry),
        ready: Arc::clone(&base.ready),
        board: Arc::clone(&board),
        enroller,
        orders: orders.clone(),
        running: Running::default(),
        counting_since_ns,
    };
    duties.read_events()?;
    let (standing, stands) = oneshot::channel();
    let thread = PodsThread {
        snapshots: Arc::clone(&base.snapshots),
        board,
        ready: Arc::clone(&base.ready),
        standing: Some(standing),
    };
    let linger = if mandate.is_some() { pods::LINGER } else { Duration::ZERO };
    let parts = Parts {
        kernel: Arc::clone(&kernel),
        proxy: Arc::clone(&proxy),
        certificates: Arc::clone(&base.certificates),
        wanted: base.wanted.clone(),
        publish: objects.publisher(&config.node)?,
        wire: proxy::WIRE.iter().map(|alpn| Arc::from(*alpn)).collect(),
        linger,
    };
    let pods = std::thread::Builder::new().name("pods".into()).spawn(move || thread.run(Pods::new(parts), ordered))?;

    let (succeeded, mut successor) = oneshot::channel();
    let mut charge = Charge::new((mandate, owner), stands, duties, succeeded);
    tracing::info!(node = config.node, instance = config.instance, metrics = %config.metrics, "mesh-agent is up");
    let why = tokio::select! {
        () = stop.told() => Why::Told,
        Ok(()) = &mut successor => Why::Succeeded,
        ended = &mut base.source => Why::Failed(ended.context("the source's task").flatten().err()),
        Err(error) = charge.run() => Why::Failed(Some(error)),
    };
    let wait = config.wait_when_succeeded && matches!(why, Why::Succeeded);
    base.ready.lacks(Condition::Serving, "stopping".to_owned());
    // These files are another agent's by now, or are left for the next one.
    kept.abort();
    if let Some(installed) = installed {
        installed.abort();
    }
    // A predecessor that still waits serves again before this agent stops to.
    charge.leave().await;
    let ended = Ending { config: &config, kernel: &kernel, proxy: &proxy, orders, pods }.end(why).await;
    base.telemetry.close_spans();
    if let Some(spans) = base.spans {
        // A collector that is away is not waited for.
        let _ = tokio::time::timeout(SPANS_LAST, spans).await;
    }
    ended?;
    if wait {
        tracing::info!("succeeded; waiting to be told to end");
        stop.told().await;
    }
    Ok(())
}

/// Why the agent ends.
enum Why {
    /// By a signal.
    Told,
    /// Another agent of this instance is in charge.
    Succeeded,
    /// It cannot go on.
    Failed(Option<anyhow::Error>),
}

/// What is taken down at the end.
struct Ending<'a> {
    config: &'a Config,
    kernel: &'a Kernel,
    proxy: &'a Proxy,
    orders: mpsc::UnboundedSender<Order>,
    pods: std::thread::JoinHandle<()>,
}

impl Ending<'_> {
    async fn end(self, why: Why) -> Result<()> {
        tracing::info!(grace_seconds = self.config.grace.as_secs(), "stopping");
        // What is installed is another agent's by now, or is left for the next one.
        let uninstall = self.config.uninstall_on_exit && matches!(why, Why::Told);
        let _ = self.orders.send(Order::Stop { uninstall });
        self.kernel.let_listeners_go();
        let drained = self.proxy.shutdown(self.config.grace).await;
        if !drained {
            tracing::warn!("some connections did not end within the grace period and were cut");
        }
        if self.pods.join().is_err() {
            tracing::error!("the thread that cares for the pods had died");
        }
        if uninstall {
            if let Some(install) = &self.config.cni {
                // Before the pods: from here on new ones start without the mesh.
                cni::uninstall(&install.conf_dir, &install.bin_dir).context("uninstalling the CNI plugin")?;
            }
            self.kernel.leave_cgroup();
            uninstall_instance(&kernel_config(self.config)).context("uninstalling")?;
        }
        match why {
            Why::Failed(Some(error)) => Err(error),
            _ => Ok(()),
        }
    }
}

/// SIGTERM and SIGINT.
struct Stop([Signal; 2]);

impl Stop {
    fn on_signals() -> Result<Self> {
        Ok(Self([signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?]))
    }

    async fn told(&mut self) {
        let [terminate, interrupt] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}

fn proxy(config: &Config, base: &Base, balancer: Arc<Balancer>) -> Result<Proxy> {
    Ok(Proxy::new(Deps {
        snapshots: Arc::clone(&base.snapshots),
        balancer,
        tls: Arc::new(Tls::new(Arc::clone(&base.certificates))),
        telemetry: Arc::clone(&base.telemetry),
        limits: Limits { http: config.http.clone(), ..Limits::default() },
        workers: config.workers,
        reserved_ports: (0..=u16::MAX).filter(|port| mesh_common::limits::is_agent_port(*port)).collect(),
    })?)
}

fn ca_client(config: &Config) -> Result<Arc<dyn CaClient>> {
    Ok(match &config.ca {
        Ca::Local => Arc::new(LocalCa::open(&config.state_dir, &config.trust_domain)?),
        Ca::Grpc { address, root, server_name, login } => {
            let (address, root_file, server_name) = (address.clone(), root.clone(), server_name.clone());
            let auth = match login {
                CaLogin::TokenFile(file) => CaAuth::BearerFile(file.clone()),
                CaLogin::Join(token) => {
                    let name: NodeName = config.node.parse()?;
                    let node = NodeIdentity::new(&config.trust_domain, name);
                    CaAuth::Node(NodeLogin::new(node, &config.state_dir, token.clone()))
                }
            };
            Arc::new(GrpcCa::new(GrpcTarget { address, root_file, server_name }, auth)?)
        }
    })
}

/// Keeps the CNI plugin in its place, once this agent can answer it.
async fn keep_installed(install: CniInstall, ready: Arc<Readiness>) {
    while !ready.missing().is_empty() {
        tokio::time::sleep(LOOK).await;
    }
    cni::keep(install).await;
}

/// Forgets what is remembered of workloads and endpoints that are gone.
async fn sweep(telemetry: Arc<Telemetry>, balancer: Arc<Balancer>, snapshots: Arc<SnapshotStore>) {
    let mut ticks = tokio::time::interval(SWEEP);
    loop {
        ticks.tick().await;
        let snapshot = snapshots.load();
        telemetry.sweep(&snapshot);
        balancer.retain(snapshot.services(), snapshot.routes());
    }
}

/// Removes everything of an instance whose agent is gone.
///
/// # Errors
/// When its pin directory cannot be removed.
pub fn remove_instance(instance: String, bpffs: PathBuf, cgroup: PathBuf) -> Result<()> {
    sys::remember_home_netns().context("/proc is needed")?;
    uninstall_instance(&KernelConfig { instance, cgroup, bpffs, deny_errno: 0, half: Half::Own })
        .context("uninstalling")
}
