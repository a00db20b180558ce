//! The rotator with time paused: no test here waits.

use std::sync::atomic::Ordering;

use super::*;
use crate::identity::clock::Clock;
use crate::identity::store::CertState;
use crate::identity::testing::{ScriptedCa, TRUST_DOMAIN, TestCa, TestClock, identity};

const HOUR: Duration = Duration::from_secs(3600);

struct Running {
    store: Arc<CertStore>,
    ca: Arc<ScriptedCa>,
    clock: Arc<TestClock>,
    wanted: watch::Sender<BTreeSet<Identity>>,
    task: tokio::task::JoinHandle<()>,
}

fn start(takes: Duration, identities: &[Identity]) -> Running {
    let clock = TestClock::new();
    let store = Arc::new(CertStore::with_clock(TRUST_DOMAIN, Arc::clone(&clock) as Arc<dyn Clock>));
    let ca = ScriptedCa::new(Arc::clone(&clock) as Arc<dyn Clock>, takes);
    let rotator = Rotator::with_dice(
        Arc::clone(&store),
        Arc::clone(&ca) as Arc<dyn CaClient>,
        RotatorSettings { ttl: 24 * HOUR, concurrency: 2 },
        Box::new(|| 0.5),
    );
    let (wanted, receiver) = watch::channel(identities.iter().cloned().collect());
    let task = tokio::spawn(rotator.run(receiver));
    Running { store, ca, clock, wanted, task }
}

/// Lets paused time run until `done`, for at most `limit` of it.
async fn until(limit: Duration, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < end, "not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_issued_when_an_identity_appears() {
    let web = identity("shop", "web");
    let run = start(Duration::from_millis(10), std::slice::from_ref(&web));
    let credential = run.store.wait_for(&web, HOUR).await.unwrap();
    assert_eq!(credential.identity(), &web);
    let life = credential.not_after().duration_since(credential.not_before()).unwrap();
    assert!(life <= 24 * HOUR, "{life:?}");
    assert_eq!(run.store.trust().roots().count(), 1);

    let db = identity("shop", "db");
    run.wanted.send_modify(|set| {
        set.insert(db.clone());
    });
    run.store.wait_for(&db, HOUR).await.unwrap();
    assert_eq!(run.ca.calls.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn waiting_for_an_identity_nobody_has_says_so() {
    let run = start(Duration::ZERO, &[]);
    let error = run.store.wait_for(&identity("shop", "web"), HOUR).await.unwrap_err();
    assert!(error.to_string().contains("no pod on this node"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_renewed_at_half_life_and_no_sooner() {
    let web = identity("shop", "web");
    let run = start(Duration::ZERO, std::slice::from_ref(&web));
    let first = run.store.wait_for(&web, HOUR).await.unwrap();
    tokio::time::sleep(11 * HOUR).await;
    assert_eq!(run.store.current(&web).unwrap().generation(), first.generation());
    until(2 * HOUR, || run.store.current(&web).unwrap().generation() > first.generation()).await;
    assert_eq!(run.ca.calls.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_set_forward_is_noticed_within_a_minute() {
    let web = identity("shop", "web");
    let run = start(Duration::ZERO, std::slice::from_ref(&web));
    let first = run.store.wait_for(&web, HOUR).await.unwrap();
    run.clock.jump(13 * HOUR);
    until(Duration::from_secs(61), || run.store.current(&web).unwrap().generation() > first.generation()).await;
}

#[tokio::test(start_paused = true)]
async fn a_valid_certificate_is_kept_while_the_ca_is_away_and_not_a_second_longer() {
    let web = identity("shop", "web");
    let run = start(Duration::ZERO, std::slice::from_ref(&web));
    let first = run.store.wait_for(&web, HOUR).await.unwrap();
    run.ca.away.store(true, Ordering::SeqCst);
    tokio::time::sleep(23 * HOUR).await;
    assert_eq!(run.store.current(&web).unwrap().generation(), first.generation());
    let status = run.store.status().remove(0);
    assert!(status.failures > 10 && status.last_error.unwrap().contains("away"));
    let calls = run.ca.calls.load(Ordering::SeqCst);
    assert!(calls < 12 * 3600 / 15 + 20, "{calls} calls in 11 hours: backoff does not hold");

    tokio::time::sleep(HOUR).await;
    assert!(run.store.current(&web).is_none(), "an expired certificate is not handed out");
    assert!(matches!(run.store.status().remove(0).state, CertState::Expired(_)));

    run.ca.away.store(false, Ordering::SeqCst);
    until(Duration::from_secs(60), || run.store.current(&web).is_some()).await;
    assert_eq!(run.store.status().remove(0).failures, 0);
}

#[tokio::test(start_paused = true)]
async fn no_more_attempts_than_allowed_are_under_way() {
    let identities: Vec<Identity> = (0..20).map(|n| identity("shop", &format!("sa{n}"))).collect();
    let run = start(Duration::from_secs(1), &identities);
    for identity in &identities {
        run.store.wait_for(identity, HOUR).await.unwrap();
    }
    assert_eq!(run.ca.most_under_way.load(Ordering::SeqCst), 2);
    assert_eq!(run.ca.calls.load(Ordering::SeqCst), 20);
}

#[tokio::test(start_paused = true)]
async fn the_key_is_gone_when_the_identity_leaves() {
    let web = identity("shop", "web");
    let run = start(Duration::ZERO, std::slice::from_ref(&web));
    let key = run.store.wait_for(&web, HOUR).await.unwrap().weak_key();
    assert!(key.upgrade().is_some());
    run.wanted.send_modify(BTreeSet::clear);
    until(HOUR, || run.store.status().is_empty()).await;
    assert!(run.store.current(&web).is_none());
    assert!(key.upgrade().is_none(), "somebody still holds the key");
}

#[tokio::test(start_paused = true)]
async fn an_answer_for_an_identity_that_left_is_dropped() {
    let web = identity("shop", "web");
    let run = start(Duration::from_secs(5), std::slice::from_ref(&web));
    until(HOUR, || run.ca.under_way.load(Ordering::SeqCst) == 1).await;
    run.wanted.send_modify(BTreeSet::clear);
    until(HOUR, || run.ca.under_way.load(Ordering::SeqCst) == 0).await;
    tokio::time::sleep(HOUR).await;
    assert!(run.store.current(&web).is_none() && run.store.status().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_identity_that_leaves_and_returns_gets_a_new_certificate() {
    let web = identity("shop", "web");
    let run = start(Duration::ZERO, std::slice::from_ref(&web));
    let first = run.store.wait_for(&web, HOUR).await.unwrap().serial().to_owned();
    run.wanted.send_modify(BTreeSet::clear);
    until(HOUR, || run.store.current(&web).is_none()).await;
    run.wanted.send_modify(|set| {
        set.insert(web.clone());
    });
    assert_ne!(run.store.wait_for(&web, HOUR).await.unwrap().serial(), first);
}

#[tokio::test(start_paused = true)]
async fn a_new_root_is_trusted_beside_the_old_one_and_its_absence_renews_at_once() {
    let (web, db) = (identity("shop", "web"), identity("shop", "db"));
    let run = start(Duration::ZERO, &[web.clone(), db.clone()]);
    let first = run.store.wait_for(&web, HOUR).await.unwrap().generation();
    run.store.wait_for(&db, HOUR).await.unwrap();
    let (old, new) = (run.ca.root(), Arc::new(TestCa::new("new root")));

    // Both roots: nothing has to be renewed before its time.
    run.ca.sign_with(Arc::clone(&new), vec![old]);
    run.wanted.send_modify(|set| {
        set.insert(identity("shop", "probe"));
    });
    until(HOUR, || run.store.trust().roots().count() == 2).await;
    tokio::time::sleep(HOUR).await;
    assert_eq!(run.store.current(&web).unwrap().generation(), first);

    // The old root is withdrawn: what it signed is renewed now, not at half-life.
    run.ca.sign_with(new, Vec::new());
    run.wanted.send_modify(|set| {
        set.insert(identity("shop", "probe2"));
    });
    until(Duration::from_secs(60), || run.store.current(&web).unwrap().generation() > first).await;
    assert_eq!(run.store.trust().roots().count(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_rotator_ends_when_nobody_can_want_anything_any_more() {
    let run = start(Duration::ZERO, &[]);
    drop(run.wanted);
    run.task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_change_at_the_ca_renews_everything_within_half_a_minute_and_not_at_once() {
    let names = [identity("shop", "web"), identity("shop", "db")];
    let run = start(Duration::ZERO, &names);
    for name in &names {
        run.store.wait_for(name, HOUR).await.unwrap();
    }
    for round in 1..=2 {
        let before: Vec<u64> = names.iter().map(|name| run.store.current(name).unwrap().generation()).collect();
        let renewed =
            || names.iter().zip(&before).all(|(name, old)| run.store.current(name).unwrap().generation() > *old);
        run.ca.change.notify_one();
        tokio::time::sleep(RENEWAL_SPREAD / 4).await;
        assert!(!renewed(), "round {round}: the dice say half of the spread");
        until(RENEWAL_SPREAD, renewed).await;
    }
    assert_eq!(run.ca.calls.load(Ordering::SeqCst), 6);
}

#[tokio::test(start_paused = true)]
async fn a_failed_renewal_is_tried_again_before_what_is_left_is_over() {
    let web = identity("shop", "web");
    let run = start(Duration::ZERO, std::slice::from_ref(&web));
    let first = run.store.wait_for(&web, HOUR).await.unwrap();
    run.ca.away.store(true, Ordering::SeqCst);
    // The wait between attempts has been at its most, 30 s less up to half, for hours.
    let left = || first.not_after().duration_since(run.clock.now()).unwrap_or_default();
    until(24 * HOUR, || left() < Duration::from_secs(8)).await;
    run.ca.away.store(false, Ordering::SeqCst);
    until(left(), || run.store.current(&web).is_some_and(|now| now.generation() > first.generation())).await;
}
