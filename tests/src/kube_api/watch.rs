//! WATCH: what is sent at its beginning, and what each change of the store is to this watch.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::cluster::Cluster;
use super::failure::Failure;
use super::kind::Kind;
use super::list::{form, selector, version, wrong_option};
use super::render::{self, Form};
use super::request::{Place, Request};
use super::selector::Selector;
use super::store::Event;

/// A watch that asks for no end gets one.
const USUAL_TIMEOUT: Duration = Duration::from_secs(1800);

/// A watch that has begun.
#[derive(Debug)]
pub struct Watch {
    kind: Kind,
    namespace: Option<String>,
    name: Option<String>,
    selector: Selector,
    form: Form,
    /// Everything up to this version has been told.
    told: u64,
    /// Lines to begin with.
    pub first: Vec<Vec<u8>>,
    /// It wants bookmarks.
    pub bookmarks: bool,
    /// It ends after this.
    pub timeout: Duration,
    /// Whose it is.
    pub token: Option<String>,
}

/// Begins a watch.
///
/// # Errors
/// For options that do not go together. A version that is forgotten is no error: the watch tells it.
pub fn begin(cluster: &Cluster, request: &Request, place: &Place) -> Result<Watch, Failure> {
    let initial = match request.parameter("sendInitialEvents") {
        "" => None,
        _ => Some(request.flag("sendInitialEvents")),
    };
    match (initial, request.parameter("resourceVersionMatch")) {
        (None, "") | (Some(_), "NotOlderThan") => {}
        (None, _) => {
            let what = "Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            return Err(wrong_option("resourceVersionMatch", what));
        }
        (Some(_), _) => {
            let what = "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            return Err(wrong_option("sendInitialEvents", what));
        }
    }
    let (asked, current) = (version(request)?.unwrap_or(0), cluster.store.version());
    let all = initial.unwrap_or(asked == 0);
    if all && asked > current {
        return Err(Failure::too_large(asked, current));
    }
    let timeout = request.parameter("timeoutSeconds").parse().ok().filter(|&seconds| seconds > 0);
    let mut watch = Watch {
        kind: place.kind.clone(),
        namespace: place.namespace.clone(),
        name: place.name.clone(),
        selector: selector(request, place)?,
        form: form(request),
        told: if all || asked == 0 { current } else { asked },
        first: Vec::new(),
        bookmarks: request.flag("allowWatchBookmarks"),
        timeout: timeout.map_or(USUAL_TIMEOUT, Duration::from_secs),
        token: request.token.clone(),
    };
    if all {
        for (key, object) in cluster.store.all(&watch.kind.resource()) {
            if watch.is_mine(key) && watch.selector.matches(object) {
                watch.first.push(render::event("ADDED", &watch.kind, object, watch.form));
            }
        }
        if initial == Some(true) && watch.bookmarks {
            watch.first.push(render::bookmark(&watch.kind, current, true, watch.form));
        }
    }
    Ok(watch)
}

impl Watch {
    /// What is watched, as in paths.
    #[must_use]
    pub fn resource(&self) -> String {
        self.kind.resource()
    }

    /// The lines for what has changed since last time; also the line that ends a watch whose version is forgotten.
    ///
    /// # Errors
    /// With that last line.
    pub fn lines(&mut self, cluster: &Cluster) -> Result<Vec<Vec<u8>>, Vec<u8>> {
        let changes = cluster.store.changes_after(&self.kind.resource(), self.told).map_err(|failure| {
            let mut line = json!({"type": "ERROR", "object": failure.status()}).to_string().into_bytes();
            line.push(b'\n');
            line
        })?;
        let lines = changes.filter_map(|event| self.line(event)).collect();
        self.told = self.told.max(cluster.store.version());
        Ok(lines)
    }

    /// The line that tells how far this watch is.
    #[must_use]
    pub fn bookmark(&self) -> Vec<u8> {
        render::bookmark(&self.kind, self.told, false, self.form)
    }

    fn is_mine(&self, key: &(String, String)) -> bool {
        self.namespace.as_ref().is_none_or(|namespace| key.0 == *namespace)
            && self.name.as_ref().is_none_or(|name| key.1 == *name)
    }

    fn line(&self, event: &Event) -> Option<Vec<u8>> {
        if !self.is_mine(&event.key) {
            return None;
        }
        let meant = |object: &&Arc<Value>| self.selector.matches(object);
        let (before, after) = (event.before.as_ref().filter(meant), event.after.as_ref().filter(meant));
        match (before, after) {
            (None, Some(after)) => Some(render::event("ADDED", &self.kind, after, self.form)),
            (Some(_), Some(after)) => Some(render::event("MODIFIED", &self.kind, after, self.form)),
            (Some(before), None) => {
                // What leaves the selection, or the cluster: as it was, at the version of its leaving.
                let mut last = (**before).clone();
                last["metadata"]["resourceVersion"] = json!(event.version.to_string());
                Some(render::event("DELETED", &self.kind, &last, self.form))
            }
            (None, None) => None,
        }
    }
}
