//! Metrics of the agent as a whole, read from its state when somebody asks: pods, kernel exits, snapshot,
//! certificates, problems.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use tokio::sync::watch;

use super::stage::PodReport;
use crate::capture::Kernel;
use crate::capture::probe::{self, SocketControl};
use crate::identity::{CertState, CertStore};
use crate::snapshot::SnapshotStore;
use crate::sys;

/// What the metrics and the status are read from.
pub(super) struct Board {
    pub(super) kernel: Arc<Kernel>,
    pub(super) snapshots: Arc<SnapshotStore>,
    pub(super) certificates: Arc<CertStore>,
    socket_control: SocketControl,
    pods: Mutex<Vec<PodReport>>,
    /// Told after each reconciliation.
    looks: watch::Sender<()>,
    failed_rechecks: AtomicU64,
}

impl fmt::Debug for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Board").finish_non_exhaustive()
    }
}

impl Board {
    pub(super) fn new(kernel: Arc<Kernel>, snapshots: Arc<SnapshotStore>, certificates: Arc<CertStore>) -> Self {
        let socket_control = probe::socket_control_at_start();
        let (pods, failed_rechecks, looks) = (Mutex::default(), AtomicU64::default(), watch::Sender::new(()));
        Self { kernel, snapshots, certificates, socket_control, pods, looks, failed_rechecks }
    }

    /// Puts up where every pod stands after a reconciliation, and how many re-checks have failed so far.
    pub(super) fn put(&self, pods: Vec<PodReport>, failed_rechecks: u64) {
        self.failed_rechecks.store(failed_rechecks, Ordering::Relaxed);
        *self.pods.lock().unwrap_or_else(PoisonError::into_inner) = pods;
        self.looks.send_replace(());
    }

    /// Tells of each reconciliation.
    pub(super) fn watch(&self) -> watch::Receiver<()> {
        self.looks.subscribe()
    }

    /// Where every pod stood last.
    pub(super) fn pods(&self) -> Vec<PodReport> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Encodes the board.
#[derive(Debug)]
pub(super) struct BoardCollector(pub(super) Arc<Board>);

impl Collector for BoardCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.pods(&mut encoder)?;
        self.kernel(&mut encoder)?;
        self.snapshot(&mut encoder)?;
        self.certificates(&mut encoder)
    }
}

impl BoardCollector {
    fn pods(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut counts: BTreeMap<(&str, &str), i64> = BTreeMap::from([(("captured", ""), 0)]);
        let (mut expected, mut captured) = (0, 0);
        for pod in self.0.pods() {
            expected += i64::from(pod.is_expected());
            captured += i64::from(pod.is_expected() && pod.stage == "captured");
            *counts.entry((pod.stage, pod.reason)).or_default() += 1;
        }
        let help =
            "Opted-in pods of this node by stage; the reason of failed and outside ones, or `guard` for lack of one";
        let mut family = encoder.encode_descriptor("mesh_pods", help, None, MetricType::Gauge)?;
        for ((stage, reason), count) in counts {
            let labels = [("stage", stage), ("reason", reason)];
            ConstGauge::new(count).encode(family.encode_family(&labels)?)?;
        }
        let help = "Opted-in pods of this node that have a network and can be captured";
        ConstGauge::new(expected).encode(encoder.encode_descriptor(
            "mesh_pods_expected",
            help,
            None,
            MetricType::Gauge,
        )?)?;
        let help = "Those of mesh_pods_expected that are captured; fewer for long is to be looked at";
        ConstGauge::new(captured).encode(encoder.encode_descriptor(
            "mesh_pods_captured",
            help,
            None,
            MetricType::Gauge,
        )?)?;
        let help = "Failed attempts to judge a pod's plaintext and native connections by newer rules";
        let failed = ConstCounter::new(self.0.failed_rechecks.load(Ordering::Relaxed));
        failed.encode(encoder.encode_descriptor("mesh_recheck_failures", help, None, MetricType::Counter)?)
    }

    fn kernel(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Connections by the way they left a kernel program";
        let mut family = encoder.encode_descriptor("mesh_kernel_exits", help, None, MetricType::Counter)?;
        for (counter, count) in self.0.kernel.counters() {
            ConstCounter::new(count).encode(family.encode_family(&[("exit", counter.as_str())])?)?;
        }
        let control = self.0.socket_control;
        let features = [
            ("sock_diag", control != SocketControl::Nothing),
            ("sock_destroy", control == SocketControl::Ends),
            ("membarrier", sys::can_wait_for_readers()),
        ];
        let help = "1 where the kernel has what the agent can do without, 0 where it does without (docs/kernels.md)";
        let mut family = encoder.encode_descriptor("mesh_kernel_feature", help, None, MetricType::Gauge)?;
        for (feature, present) in features {
            ConstGauge::new(i64::from(present)).encode(family.encode_family(&[("feature", feature)])?)?;
        }
        Ok(())
    }

    fn snapshot(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let snapshot = self.0.snapshots.load();
        let gauge = |value: usize| ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        let mut put =
            |name, help, value| gauge(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?);
        let generation = usize::try_from(snapshot.generation()).unwrap_or(usize::MAX);
        put("mesh_snapshot_generation", "Generation of the snapshot in force", generation)?;
        put("mesh_workloads", "Pods known to the snapshot", snapshot.workloads().len())?;
        let captured = snapshot.workloads().iter().filter(|workload| workload.captured.is_some()).count();
        put("mesh_captured_workloads", "Pods known as captured, of all nodes: tunnel destinations", captured)?;
        put("mesh_services", "TCP service ports known to the snapshot", snapshot.services().len())?;
        put("mesh_policies", "Authorization policies in force", snapshot.policies().len())?;
        let mut effects: BTreeMap<&str, i64> =
            ["keeps_last", "ignored", "denies", "partly"].into_iter().map(|effect| (effect, 0)).collect();
        for problem in snapshot.problems().iter() {
            *effects.entry(problem.effect.as_str()).or_default() += 1;
        }
        let help = "Mistakes in configuration objects that are not mended yet, by what they lead to";
        let mut family = encoder.encode_descriptor("mesh_config_problems", help, None, MetricType::Gauge)?;
        for (effect, count) in effects {
            ConstGauge::new(count).encode(family.encode_family(&[("effect", effect)])?)?;
        }
        Ok(())
    }

    fn certificates(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "When the certificate in use expires, seconds since 1970; 0 while there is none";
        let name = "mesh_certificate_expiry_timestamp_seconds";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for status in self.0.certificates.status() {
            let expiry = match status.state {
                CertState::Missing => 0,
                CertState::Valid(dates) | CertState::Expired(dates) => seconds(dates.not_after),
            };
            let identity = status.identity.to_string();
            ConstGauge::new(expiry).encode(family.encode_family(&[("identity", identity.as_str())])?)?;
        }
        Ok(())
    }
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
