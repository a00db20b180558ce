//! Traffic while certificates of a few seconds come and go, while the root is replaced, while the authority is away.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};

use super::*;

/// Certificates live so long, in seconds, of which one is backdated.
const LIFE: &str = "10";
const LIFE_S: i64 = 10;
/// The same for an outage, which must fit into what is left of a certificate when its renewal is due.
const LIFE_OF_OUTAGE: &str = "20";
/// A handshake by a pod that has no tunnel yet, this often.
const FRESH_EVERY: Duration = Duration::from_secs(2);
/// Renewals are due after half a life; the rest is for a busy machine.
const RENEWED_WITHIN: Duration = Duration::from_secs(20);

/// How many pods have their first connection while certificates change: the form of CI takes 16 s, the long one 60 s.
fn rounds() -> usize {
    if std::env::var_os("MESH_TEST_LONG").is_some() { 30 } else { 8 }
}

/// A shop with pods that have not talked yet, and a client that dials on and on.
struct Busy {
    shop: Shop,
    fresh: Vec<Arc<Workload>>,
    dialling: mesh_tests::process::Process,
    began: Instant,
    done: usize,
}

impl Busy {
    fn open(mesh: &mut Mesh, life: &str, rounds: usize) -> Result<Self> {
        let shop = Shop::open(mesh, &["--max-ttl-seconds", life])?;
        let fresh = (0..rounds).map(|n| mesh.pod(Side::A, &format!("shop/fresh-{n}"))).collect::<Result<Vec<_>>>()?;
        fresh.iter().try_for_each(|pod| mesh.captured(pod))?;
        let dialling = shop.client.ask_later("dial", shop.to(), &["--every-ms", "20", "--count", "1000000"])?;
        Ok(Self { shop, fresh, dialling, began: Instant::now(), done: 0 })
    }

    /// The next pod's first connections: handshakes with the certificates of now, on both sides.
    fn round(&mut self) -> Result<()> {
        let due = self.began + FRESH_EVERY * u32::try_from(self.done)?;
        wait::until("the next round is due", WITHIN, || wait::holds(Instant::now() >= due, || "not yet".to_owned()))?;
        let pod = self.fresh.get(self.done).context("no fresh pod is left")?;
        self.done += 1;
        let answer = pod.ask("churn", self.shop.to(), &["--count", "20", "--parallel", "4"], WITHIN)?;
        ensure!(answer["failed"] == 0 && answer["ok"] == 20, "round {}: {answer}", self.done);
        Ok(())
    }

    /// Every connection so far, and no failed one.
    fn end(mut self, mesh: &mut Mesh) -> Result<()> {
        self.dialling.kill()?;
        let lines = self.dialling.lines()?;
        let failed: Vec<_> = lines.iter().filter(|line| line["outcome"] != "ok").collect();
        let all = lines.len();
        ensure!(failed.is_empty(), "{} of {all} connections failed, first {:?}", failed.len(), failed.first());
        // Every 20 ms, on a machine that may be busy.
        let due = self.began.elapsed().as_millis() / 20;
        ensure!(all as u128 * 2 > due, "{all} connections of {due}");
        for side in Side::BOTH {
            let refused = mesh.agent(side)?.access_log()?;
            let bad = refused.iter().find(|line| line["outcome"] == "no_certificate");
            ensure!(bad.is_none(), "{bad:?}");
        }
        // An agent that asks just now would say that the authority is gone.
        mesh.keep(self.shop.ca);
        Ok(())
    }
}

/// Waits until every certificate of both nodes was issued later than now.
fn renewed(mesh: &Mesh) -> Result<()> {
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
    for side in Side::BOTH {
        wait::until("the certificates are renewed", RENEWED_WITHIN, || {
            let status = mesh.agent(side)?.status(mesh.node(side))?;
            let ends = status["identities"].as_array().context("no identities")?;
            let old = ends.iter().find(|of| of["not_after"].as_i64().is_none_or(|end| end < now + LIFE_S));
            wait::holds(old.is_none() && !ends.is_empty(), || format!("{now}: {old:?}"))
        })?;
    }
    Ok(())
}

/// Another root: key and certificate, PEM.
fn new_root() -> Result<(String, String)> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "the new root");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let certificate = params.self_signed(&key)?;
    // As the authority publishes it: one form of PEM for all.
    Ok((key.serialize_pem(), certificate.pem().replace("\r\n", "\n")))
}

#[test]
fn certificates_of_ten_seconds_come_and_go_unnoticed() -> Result<()> {
    scenario(|mesh| {
        let mut busy = Busy::open(mesh, LIFE, rounds())?;
        for _ in 0..rounds() {
            busy.round()?;
        }
        for side in Side::BOTH {
            let issued = busy.shop.ca.metrics(mesh.node(side))?.sum("mesh_ca_requests_total", &[("outcome", "issued")]);
            // One for each identity at first, then one each five seconds.
            let least = if side == Side::A { rounds() * 2 } else { rounds() / 3 };
            ensure!(issued >= least as f64, "{issued} certificates: they were not renewed");
        }
        busy.end(mesh)
    })
}

#[test]
fn a_root_is_replaced_by_way_of_both_unnoticed() -> Result<()> {
    scenario(|mesh| {
        let rounds = rounds().max(6);
        let mut busy = Busy::open(mesh, LIFE, rounds)?;
        busy.shop.ca.mount_secret()?;
        let secret =
            |name: &str| -> Result<String> { Ok(std::fs::read_to_string(busy.shop.ca.root_dir().join(name))?) };
        let (old_key, old) = (secret("tls.key")?, secret("tls.crt")?);
        let (new_key, new) = new_root()?;
        let (old_first, new_first) = (format!("{old}{new}"), format!("{new}{old}"));
        let steps = [
            ("the new one is trusted", &old_key, &old, &old_first, &old_first),
            ("the new one signs", &new_key, &new, &new_first, &new_first),
            ("the old one is gone", &new_key, &new, &new, &new),
        ];
        for (step, key, cert, trusted, published) in steps {
            busy.round()?;
            let files = [("tls.key", key.as_str()), ("tls.crt", cert), ("ca.crt", trusted)];
            busy.shop.ca.change_root(&files, published).context(step)?;
            busy.shop.ca.mount_roots()?;
            renewed(mesh).context(step)?;
            busy.round()?;
        }
        while busy.done < rounds {
            busy.round()?;
        }
        for side in Side::BOTH {
            let log = mesh.agent(side)?.log();
            ensure!(log.contains("roots of the CA have changed"), "the agent has not seen the file change:\n{log}");
        }
        busy.end(mesh)
    })
}

#[test]
fn an_authority_that_is_away_for_a_while_is_not_missed() -> Result<()> {
    scenario(|mesh| {
        mesh.expect_complaint("certificate not renewed; the old one keeps serving");
        let mut busy = Busy::open(mesh, LIFE_OF_OUTAGE, rounds())?;
        busy.round()?;
        Side::BOTH.into_iter().try_for_each(|side| busy.shop.ca.kill(side))?;
        // Until a renewal has fallen into the outage.
        while !mesh.agent(Side::A)?.log().contains("the old one keeps serving") {
            busy.round().context("no renewal fell into the outage")?;
        }
        let options = [&MAKES_ROOT[..], &["--max-ttl-seconds", LIFE_OF_OUTAGE]].concat();
        for side in Side::BOTH {
            busy.shop.ca.start(mesh.node(side), &options)?;
        }
        while busy.done < rounds() {
            busy.round()?;
        }
        renewed(mesh)?;
        busy.end(mesh)
    })
}
