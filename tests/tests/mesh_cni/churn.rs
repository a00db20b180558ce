//! Pods that come, change and go in random order, under addresses that others had, under traffic and faults of the API
//! server: nobody else ever answers, no new pod is outside the mesh, and in the end all is as after a fresh start.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, bail};
use mesh_tests::process::Process;
use mesh_tests::scale;

use super::settled::{self, Book};
use super::*;

/// What the pods' servers are called, and their Services.
const APPS: [&str; 3] = ["red", "green", "blue"];
const SERVICE_PORT: u16 = 80;
/// A kubelet would go on for longer.
const ATTEMPTS: usize = 5;

/// splitmix64: the same seed, the same order of events.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((word ^ (word >> 31)) % bound as u64).expect("below a usize")
    }
}

/// A pod that runs, as the kubelet has it.
struct Running {
    pod: Arc<Workload>,
    app: &'static str,
    _server: Process,
}

/// A pod that is gone: its addresses are free, its object may still be there.
struct Gone {
    pod: Arc<Workload>,
    has_object: bool,
}

struct Churn<'a> {
    mesh: &'a mut Mesh,
    dice: Dice,
    serial: usize,
    running: Vec<Running>,
    gone: Vec<Gone>,
    anchors: Vec<SocketAddr>,
    /// Whom traffic may come from.
    clients: Arc<Mutex<Vec<Arc<Workload>>>>,
}

impl Churn<'_> {
    /// A new pod, perhaps at addresses that another one had; its first connections are in the mesh.
    fn create(&mut self) -> Result<()> {
        self.serial += 1;
        let (uid, app) = (format!("u{}", self.serial), APPS[self.dice.below(APPS.len())]);
        let name = format!("shop/pod-{uid}");
        let place =
            (!self.gone.is_empty()).then(|| self.dice.below(self.gone.len())).map(|at| self.gone.swap_remove(at));
        let side = place.as_ref().map_or_else(|| Side::BOTH[self.dice.below(2)], |gone| gone.pod.side());
        let before = place.as_ref().map(|gone| &*gone.pod);
        let pod = self.mesh.sandbox_in_place_of(side, &name, &uid, before)?;
        self.put(&pod, app, None, false)?;
        self.add(side, &pod)?;
        // A strict server takes nothing but the mesh.
        for anchor in &self.anchors {
            let answer = pod.ask("get", *anchor, &["--path", "/"], WITHIN);
            let answer = answer.with_context(|| format!("the first connection of {uid} after ADD"))?;
            ensure!(answer["body"]["app"] == "anchor", "{answer}");
        }
        let server = pod.sample_server("http", PORT, &["--name", &format!("{app}-{uid}")])?;
        self.put(&pod, app, None, true)?;
        if let Some(gone) = place.filter(|gone| gone.has_object) {
            // The API server had two pods of one address for a while.
            self.mesh.objects().remove(&gone.pod.object().file_name())?;
        }
        self.clients.lock().expect("no panic").push(Arc::clone(&pod));
        self.running.push(Running { pod, app, _server: server });
        Ok(())
    }

    fn add(&self, side: Side, pod: &Workload) -> Result<()> {
        let runtime = self.mesh.runtime(side);
        let mut last = None;
        for _ in 0..ATTEMPTS {
            let answer = runtime.add(pod)?;
            if answer.is_success {
                return Ok(());
            }
            answer.failure(TRY_AGAIN, &[])?;
            runtime.delete(pod)?.success()?;
            last = Some(answer);
        }
        bail!("ADD failed {ATTEMPTS} times: {last:?}")
    }

    fn put(&self, pod: &Workload, app: &str, mode: Option<&str>, with_addresses: bool) -> Result<()> {
        let mut object = pod.object();
        object.labels.insert("app".to_owned(), app.to_owned());
        object.service_account = app.to_owned();
        mode.map(|mode| object.labels.insert(MODE_LABEL.to_owned(), mode.to_owned()));
        object.ips = if with_addresses { pod.ips().to_vec() } else { Vec::new() };
        object.ready = with_addresses;
        self.mesh.objects().put_pod(&object)
    }

    fn delete(&mut self) -> Result<()> {
        if self.running.is_empty() {
            return Ok(());
        }
        let at = self.dice.below(self.running.len());
        let Running { pod, .. } = self.running.swap_remove(at);
        self.clients.lock().expect("no panic").retain(|client| !Arc::ptr_eq(client, &pod));
        self.mesh.runtime(pod.side()).delete(&pod)?.success()?;
        self.mesh.remove_sandbox(&pod)?;
        let has_object = self.dice.below(2) == 0;
        if !has_object {
            self.mesh.objects().remove(&pod.object().file_name())?;
        }
        self.gone.push(Gone { pod, has_object });
        Ok(())
    }

    fn relabel(&mut self) -> Result<()> {
        if self.running.is_empty() {
            return Ok(());
        }
        let at = self.dice.below(self.running.len());
        let mode = [None, Some("enabled"), Some("disabled")][self.dice.below(3)];
        let Running { pod, app, .. } = &self.running[at];
        self.put(pod, app, mode, true)
    }

    fn fault(&mut self, api: &ApiServer) -> Result<()> {
        let faults = api.faults();
        match self.dice.below(6) {
            0 => faults.drop_watches(),
            1 => faults.cut_connections(),
            2 => faults.restart()?,
            3 => faults.fail("/api", 503, 3),
            4 => faults.latency(Duration::from_millis(100)),
            _ => faults.latency(Duration::ZERO),
        }
        Ok(())
    }
}

/// Asks the Services from random pods, until told to stop; gives the first answer that was somebody else's.
fn traffic(
    clients: &Mutex<Vec<Arc<Workload>>>,
    services: &[(String, SocketAddr)],
    stop: &AtomicBool,
    answered: &AtomicU64,
    seed: u64,
) -> Option<String> {
    let mut dice = Dice(seed);
    while !stop.load(Ordering::Relaxed) {
        let client = {
            let clients = clients.lock().expect("no panic");
            (!clients.is_empty()).then(|| dice.below(clients.len())).and_then(|at| clients.get(at).cloned())
        };
        let Some(client) = client else {
            wait::pause(Duration::from_millis(10));
            continue;
        };
        let (app, address) = &services[dice.below(services.len())];
        // A client that is just being deleted, or a server: no answer. Another one's answer is what must not be.
        let Ok(answer) = client.ask("get", *address, &["--path", "/"], WITHIN) else { continue };
        let by = answer["body"]["app"].as_str().unwrap_or_default();
        if answer["status"] == 200 {
            if !by.starts_with(app.as_str()) {
                return Some(format!("{} asked {app} and got {answer}", client.name()));
            }
            answered.fetch_add(1, Ordering::Relaxed);
        }
    }
    None
}

/// What stays while the pods come and go.
struct World {
    api: Arc<ApiServer>,
    /// Strict servers, one on each node.
    anchors: Vec<SocketAddr>,
    _servers: Vec<Process>,
    services: Vec<(String, SocketAddr)>,
}

fn world(mesh: &mut Mesh) -> Result<World> {
    for complaint in ["API server", "trying again", "could not be", "CaptureState cannot be applied"] {
        mesh.expect_complaint(complaint);
    }
    let api = begin(mesh)?;
    mesh.objects().put_peer_policy("shop", "peers", "  mode: Strict\n  allowOptOut: true\n")?;
    let (mut anchors, mut servers) = (Vec::new(), Vec::new());
    for (side, name) in [(Side::A, "shop/anchor-a"), (Side::B, "shop/anchor-b")] {
        let anchor = added(mesh, side, name, &name.replace('/', "-"))?;
        servers.push(anchor.sample_server("http", PORT, &["--name", "anchor"])?);
        mesh.put(&anchor, true)?;
        mesh.captured(&anchor)?;
        anchors.push(SocketAddr::new(anchor.ip(), PORT));
    }
    let services = APPS.iter().map(|app| {
        let [address, _] = mesh.service(&format!("shop/{app}"), SERVICE_PORT, PORT)?;
        Ok(((*app).to_owned(), address))
    });
    let services = services.collect::<Result<Vec<_>>>()?;
    Ok(World { api, anchors, _servers: servers, services })
}

#[test]
fn pods_come_change_and_go_under_traffic_and_faults() -> Result<()> {
    let (pods, time) = scale::pick((12, Duration::from_secs(20)), (50, Duration::from_secs(120)));
    let seed = rand::random::<u64>();
    eprintln!("seed {seed}");
    scenario(|mesh| {
        let World { api, anchors, services, _servers } = world(mesh)?;
        let clients = Arc::new(Mutex::new(Vec::new()));
        let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
        let mut churn = Churn {
            mesh,
            dice: Dice(seed),
            serial: 0,
            running: Vec::new(),
            gone: Vec::new(),
            anchors,
            clients: Arc::clone(&clients),
        };
        (0..pods).try_for_each(|_| churn.create())?;
        let outcome = std::thread::scope(|scope| {
            let asking: Vec<_> = (0..2)
                .map(|at| {
                    let (clients, services, stop, answered) = (&clients, &services, &stop, &answered);
                    scope.spawn(move || traffic(clients, services, stop, answered, seed ^ at))
                })
                .collect();
            let until = Instant::now() + time;
            let mut work = || -> Result<()> {
                while Instant::now() < until {
                    match churn.dice.below(10) {
                        0..=2 if churn.running.len() < pods => churn.create()?,
                        0..=4 => churn.delete()?,
                        5..=7 => churn.relabel()?,
                        _ => churn.fault(&api)?,
                    }
                }
                Ok(())
            };
            let outcome = work();
            stop.store(true, Ordering::Relaxed);
            let wrong = asking.into_iter().map(|thread| thread.join().expect("no panic"));
            let wrong: Vec<String> = wrong.flatten().collect();
            outcome.and_then(|()| wait::holds(wrong.is_empty(), || wrong.join("\n")))
        });
        outcome.with_context(|| format!("seed {seed}"))?;
        api.faults().latency(Duration::ZERO);
        api.faults().restart()?;
        for gone in churn.gone.drain(..).filter(|gone| gone.has_object) {
            churn.mesh.objects().remove(&gone.pod.object().file_name())?;
        }
        let Churn { mesh, running, serial, .. } = churn;
        let answered = answered.load(Ordering::Relaxed);
        ensure!(answered > 20, "only {answered} requests were answered in {time:?}");
        settled::as_after_a_fresh_start(mesh, Book::Forgotten).with_context(|| format!("seed {seed}"))?;
        eprintln!("{serial} pods were made, {answered} requests answered; at the end {} pods", running.len());
        Ok(())
    })
}
