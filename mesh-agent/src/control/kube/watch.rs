//! One kind at the API server: listed whole, then watched from there, again and again (decision 0009).
//!
//! Objects leave here reduced to what the mesh needs; of their JSON nothing stays. Never decides what is in force.

use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use kube::core::params::{ListParams, WatchParams};
use kube::core::{Request, WatchEvent};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::backoff::Backoff;
use super::connect::describe;
use super::health::Health;
use super::intern::Interner;
use super::status::{Sketch, Tee, has_status};
use super::{Event, Key, Kind, Mistake, Reading};
use crate::control::object;

/// Objects to a page: some megabytes of pods.
const PAGE: u32 = 500;
/// How long a page, or the head of a watch, may take.
const ANSWER: Duration = Duration::from_secs(60);
/// Bookmarks come every minute; a watch without two of them is dead.
const SILENCE: Duration = Duration::from_secs(150);
/// A watch that has lasted so long has not failed.
const LASTED: Duration = Duration::from_secs(30);
/// How often a kind that is not served is looked for, up to half later.
const ABSENT: Duration = Duration::from_secs(30);
/// RFC 9110; also the code of the event that ends an expired watch.
const GONE: u16 = 410;
pub(super) const NOT_FOUND: u16 = 404;
pub(super) const CONFLICT: u16 = 409;

/// What one watch needs.
pub(super) struct Watched {
    pub(super) kind: Kind,
    pub(super) client: kube::Client,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) health: Arc<Health>,
    pub(super) interner: Arc<Interner>,
    pub(super) trust_netns: bool,
    /// Told of every object whose status is to be written.
    pub(super) statuses: Option<Tee>,
}

/// A page of a list. Items of built-in kinds carry neither `apiVersion` nor `kind`. They are read one after another:
/// what a page of them takes as trees is a hundred times what stays of it.
#[derive(Debug, Deserialize)]
struct Page {
    #[serde(default)]
    metadata: PageMeta,
    items: Option<Vec<Box<RawValue>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMeta {
    resource_version: Option<String>,
    #[serde(rename = "continue")]
    more: Option<String>,
}

/// A complete list.
struct List {
    version: &'static str,
    resource_version: String,
    readings: Vec<(Key, Reading)>,
}

/// The receiver is gone: the source is ending.
struct Ended;

/// Why a watch has stopped.
enum Stop {
    /// It can be resumed where it stopped.
    Pause,
    /// The same, after a failure.
    Failed(String),
    /// What has happened since is not known any more, or the kind is not served.
    Relist,
    Ended,
}

impl From<Ended> for Stop {
    fn from(_: Ended) -> Self {
        Self::Ended
    }
}

impl Watched {
    /// Runs until nobody listens any more.
    pub(super) async fn run(self) {
        let Ended = match self.repeat().await {
            Err(ended) => ended,
            Ok(never) => match never {},
        };
    }

    async fn repeat(&self) -> Result<std::convert::Infallible, Ended> {
        let mut backoff = Backoff::default();
        loop {
            match self.list().await {
                Ok(Some(List { version, resource_version, readings })) => {
                    self.health.listed(self.kind);
                    self.send(Event::Listed(self.kind, readings)).await?;
                    self.follow(version, resource_version, &mut backoff).await?;
                    backoff.wait().await;
                }
                Ok(None) => {
                    self.health.connected(self.kind, true);
                    self.send(Event::Absent(self.kind)).await?;
                    tokio::time::sleep(ABSENT.mul_f64(1.0 + rand::random::<f64>() / 2.0)).await;
                }
                Err(reason) => {
                    self.away(format!("cannot be listed: {reason}")).await?;
                    backoff.wait().await;
                }
            }
        }
    }

    /// Every object of the kind, in the first of our versions that is served; `None` when none is.
    async fn list(&self) -> Result<Option<List>, String> {
        for version in self.kind.api().1 {
            if let Some(list) = self.list_version(version).await? {
                return Ok(Some(list));
            }
        }
        if self.kind.is_built_in() { Err("the server does not know this kind".to_owned()) } else { Ok(None) }
    }

    async fn list_version(&self, version: &'static str) -> Result<Option<List>, String> {
        let mut readings = Vec::new();
        let mut parameters = ListParams::default().limit(PAGE);
        // Ends with the server's last page; a server that never ends is bounded by its own token's life.
        loop {
            let request = Request::new(path(self.kind, version)).list(&parameters).map_err(|e| e.to_string())?;
            let page = match timeout(ANSWER, self.client.request::<Page>(request)).await {
                Ok(Ok(page)) => page,
                Ok(Err(error)) if code(&error) == Some(NOT_FOUND) => return Ok(None),
                Ok(Err(error)) => return Err(describe(&error)),
                Err(_) => return Err(format!("no answer within {} s", ANSWER.as_secs())),
            };
            for item in page.items.into_iter().flatten() {
                let value = serde_json::from_str(item.get()).map_err(|e| format!("an object in it: {e}"))?;
                readings.push(self.read(version, value));
            }
            parameters.continue_token = page.metadata.more.filter(|token| !token.is_empty());
            if parameters.continue_token.is_none() {
                let resource_version = page.metadata.resource_version.unwrap_or_default();
                return Ok(Some(List { version, resource_version, readings }));
            }
        }
    }

    /// Watches until the list must be made anew.
    async fn follow(&self, version: &'static str, mut from: String, backoff: &mut Backoff) -> Result<(), Ended> {
        loop {
            let started = Instant::now();
            let stop = self.watch(version, &mut from, backoff).await;
            if started.elapsed() >= LASTED {
                backoff.reset();
            }
            match stop {
                Stop::Pause => {}
                Stop::Failed(reason) => self.away(format!("cannot be watched: {reason}")).await?,
                Stop::Relist => return Ok(()),
                Stop::Ended => return Err(Ended),
            }
            backoff.wait().await;
        }
    }

    /// One watch, from `from`, which it moves on.
    async fn watch(&self, version: &'static str, from: &mut String, backoff: &mut Backoff) -> Stop {
        let request = match Request::new(path(self.kind, version)).watch(&WatchParams::default(), from) {
            Ok(request) => request,
            Err(error) => return Stop::Failed(error.to_string()),
        };
        let stream = match timeout(ANSWER, self.client.request_events::<Value>(request)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) if matches!(code(&error), Some(GONE | NOT_FOUND)) => return Stop::Relist,
            Ok(Err(error)) => return Stop::Failed(describe(&error)),
            Err(_) => return Stop::Failed(format!("no answer within {} s", ANSWER.as_secs())),
        };
        self.health.connected(self.kind, true);
        if let Err(ended) = self.send(Event::Connected(self.kind)).await {
            return ended.into();
        }
        let mut stream = std::pin::pin!(stream);
        loop {
            let event = match timeout(SILENCE, stream.try_next()).await {
                Ok(Ok(Some(event))) => event,
                Ok(Ok(None)) | Err(_) => return Stop::Pause,
                Ok(Err(error)) if code(&error) == Some(GONE) => return Stop::Relist,
                Ok(Err(error)) => return Stop::Failed(describe(&error)),
            };
            if let Err(stop) = self.take(version, event, from).await {
                return stop;
            }
            backoff.reset();
        }
    }

    async fn take(&self, version: &'static str, event: WatchEvent<Value>, from: &mut String) -> Result<(), Stop> {
        let (value, removed) = match event {
            WatchEvent::Added(value) | WatchEvent::Modified(value) => (value, false),
            WatchEvent::Deleted(value) => (value, true),
            WatchEvent::Bookmark(bookmark) => {
                *from = bookmark.metadata.resource_version;
                return Ok(());
            }
            WatchEvent::Error(status) if status.code == GONE => return Err(Stop::Relist),
            WatchEvent::Error(status) => return Err(Stop::Failed(format!("{} ({})", status.message, status.code))),
        };
        self.health.event(self.kind);
        let moved = value.pointer("/metadata/resourceVersion").and_then(Value::as_str).map(str::to_owned);
        let event = if removed {
            let key = object::key(self.kind, &value);
            if let Some(statuses) = &self.statuses {
                statuses.gone(&key);
            }
            Event::Removed(key)
        } else {
            let (key, reading) = self.read(version, value);
            Event::Put(key, reading)
        };
        self.send(event).await?;
        // After the event has been handed over: a watch that is resumed never skips one.
        if let Some(moved) = moved {
            *from = moved;
        }
        Ok(())
    }

    fn read(&self, version: &'static str, value: Value) -> (Key, Reading) {
        let statuses = self.statuses.as_ref().filter(|_| has_status(self.kind));
        let sketch = statuses.map(|_| Sketch::of(&value));
        let (mut key, mut reading) = read(self.kind, version, value, self.trust_netns);
        self.interner.share(&mut key, &mut reading);
        if let (Some(statuses), Some(sketch)) = (statuses, sketch) {
            statuses.is(version, sketch, &key, &reading);
        }
        (key, reading)
    }

    async fn away(&self, reason: String) -> Result<(), Ended> {
        self.health.connected(self.kind, false);
        self.send(Event::Away(self.kind, reason)).await
    }

    async fn send(&self, event: Event) -> Result<(), Ended> {
        self.events.send(event).await.map_err(|_| Ended)
    }
}

/// One object, reduced.
pub(super) fn read(kind: Kind, version: &str, mut value: Value, trust_netns: bool) -> (Key, Reading) {
    let (group, _) = kind.api();
    let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let mut withheld = None;
    if let Some(object) = value.as_object_mut() {
        object.insert("apiVersion".to_owned(), json!(api_version));
        object.insert("kind".to_owned(), json!(kind.as_str()));
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            // As long as the object itself, and nothing that we read.
            metadata.remove("managedFields");
        }
        if kind == Kind::Pod && !trust_netns {
            withheld = object::withhold_netns(&mut value);
        }
    }
    let key = object::key(kind, &value);
    let reading = match object::read(&value, &[]) {
        Reading::Object(key, object, mut mistakes) => {
            mistakes.retain(|mistake: &Mistake| !(kind.is_built_in() && mistake.is_unknown_field()));
            mistakes.extend(withheld);
            Reading::Object(key, object, mistakes)
        }
        other => other,
    };
    (key, reading)
}

/// Where the objects of a namespace are in the API, or all of a kind without namespaces.
pub(super) fn namespaced(kind: Kind, version: &str, namespace: &str) -> String {
    let all = path(kind, version);
    match all.rsplit_once('/') {
        Some((api, plural)) if !namespace.is_empty() => format!("{api}/namespaces/{namespace}/{plural}"),
        _ => all,
    }
}

/// Where a kind is in the API.
pub(super) fn path(kind: Kind, version: &str) -> String {
    match kind.api().0 {
        "" => format!("/api/{version}/{}", kind.plural()),
        group => format!("/apis/{group}/{version}/{}", kind.plural()),
    }
}

/// The HTTP code of what the API server has answered.
pub(super) fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}
