//! `mesh-agent ca` as a server: composed, run until told to end.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};

use super::{Setting, Settings, cluster};
use crate::admin::{self, Condition, Readiness};
use crate::cli::{fail, log};
use crate::control::{self, ControlError, DirConfig};
use crate::identity::ca_server::{BySnapshot, CaServer, CaServerSettings, CaSetting};
use crate::snapshot::SnapshotStore;
use crate::sys;
use crate::telemetry::{CaMetrics, Registry};

/// The task that reads the objects.
pub(super) type Source = JoinHandle<Result<(), ControlError>>;

pub(super) fn served(settings: Settings) -> ExitCode {
    log::init(settings.log_format);
    // Few nodes ask, a few times a day: two threads keep the source from delaying answers.
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    match runtime.block_on(serve(settings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("{error:#}")),
    }
}

/// Serves until SIGTERM or SIGINT, or until the source fails.
async fn serve(settings: Settings) -> anyhow::Result<()> {
    sys::set_undumpable().context("cannot forbid core dumps of the root key")?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let serving = run(settings);
    tokio::select! {
        ended = serving => ended,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

async fn run(settings: Settings) -> anyhow::Result<()> {
    let Settings { listen, names, trust_domain, max_ttl, metrics: metrics_at, setting, .. } = settings;
    let (registry, metrics) = (Arc::new(Registry::default()), CaMetrics::default());
    metrics.register(&registry);
    let ready = Arc::new(Readiness::waiting(&[
        (Condition::Source, "the objects have not been read yet"),
        (Condition::Serving, "not serving yet"),
    ]));
    if let Some(address) = metrics_at {
        tokio::spawn(admin::serve_metrics(address, registry, Arc::clone(&ready)).await?);
    }
    let store = Arc::new(SnapshotStore::default());
    // Dropped when this future is: the source ends with it.
    let (_stop, stopped) = watch::channel(());
    let (setting, mut source) = match setting {
        Setting::Alone { state_dir, objects } => {
            // The CA is no node: no pod is its own.
            let config = DirConfig {
                path: objects,
                node: String::new(),
                trust_domain: trust_domain.clone(),
                node_local_dns: None,
            };
            let source: Source = tokio::spawn(control::run(config, Arc::clone(&store), ended(stopped)));
            (CaSetting::Alone(state_dir), source)
        }
        Setting::Cluster(settings) => {
            let scene = cluster::Scene { trust_domain: &trust_domain, store: &store, metrics: &metrics };
            cluster::start(settings, scene, ended(stopped)).await?
        }
    };
    let server = CaServerSettings { trust_domain, listen, names, max_ttl, setting };
    let server = CaServer::bind(server, Arc::new(BySnapshot::new(Arc::clone(&store))), metrics).await?;
    let address = server.local_addr()?;

    // A CA that has not read the objects yet would refuse everybody.
    let mut generation = store.watch();
    tokio::select! {
        read = generation.wait_for(|generation| *generation > 0) => drop(read?),
        ended = &mut source => return Err(source_error(ended)),
    }
    ready.holds(Condition::Source);
    ready.holds(Condition::Serving);
    tracing::info!(%address, "certificate authority serves");
    tokio::select! {
        () = server.serve(std::future::pending()) => Ok(()),
        ended = &mut source => Err(source_error(ended)),
    }
}

/// Completes when the sender is gone.
async fn ended(mut stopped: watch::Receiver<()>) {
    while stopped.changed().await.is_ok() {}
}

fn source_error(ended: Result<Result<(), ControlError>, JoinError>) -> anyhow::Error {
    match ended {
        Ok(Ok(())) => anyhow!("the source of objects ended"),
        Ok(Err(error)) => anyhow::Error::new(error).context("the source of objects"),
        Err(error) => anyhow::Error::new(error).context("the source of objects"),
    }
}
