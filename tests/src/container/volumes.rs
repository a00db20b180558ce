//! What the kubelet does for a pod before its container starts: the volumes, on this machine.
#![allow(clippy::indexing_slicing, reason = "JSON values: what is not there reads as null")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::kube_api::ApiServer;

/// What the kubelet knows of a pod.
#[derive(Debug)]
pub struct Volumes<'a> {
    /// Whom it asks for objects and tokens.
    pub api: &'a ApiServer,
    /// The pod's namespace.
    pub namespace: &'a str,
    /// The pod's name.
    pub pod: &'a str,
    /// Its spec.
    pub spec: &'a Value,
    /// Where the pod's volumes are made.
    pub folder: PathBuf,
    /// Where paths of the simulated node are on this machine.
    pub host: &'a BTreeMap<&'static str, PathBuf>,
}

impl Volumes<'_> {
    /// Makes each volume; where it is, by name. An object that is there later comes with the next call.
    ///
    /// # Errors
    /// For a volume of a kind that is not known here, and where a kubelet would not start the pod.
    pub fn make(&self) -> Result<BTreeMap<String, PathBuf>> {
        let mut all = BTreeMap::new();
        for volume in self.spec["volumes"].as_array().into_iter().flatten() {
            let name = volume["name"].as_str().context("a volume without a name")?;
            let at = self.volume(name, volume).with_context(|| format!("volume {name}"))?;
            all.insert(name.to_owned(), at);
        }
        Ok(all)
    }

    /// The folder of the pod's own service account, at its usual place.
    ///
    /// # Errors
    /// When the account is not there.
    pub fn service_account(&self) -> Result<PathBuf> {
        let folder = self.folder("service-account")?;
        self.write(&folder.join("token"), &self.token(&[])?, None)?;
        self.write(&folder.join("namespace"), self.namespace, None)?;
        self.write(&folder.join("ca.crt"), self.api.certificate(), None)?;
        Ok(folder)
    }

    fn volume(&self, name: &str, volume: &Value) -> Result<PathBuf> {
        if let Some(path) = volume["hostPath"]["path"].as_str() {
            let at = self.host.get(path).with_context(|| format!("the simulated node has no {path}"))?;
            match volume["hostPath"]["type"].as_str() {
                Some("DirectoryOrCreate") => fs::create_dir_all(at)?,
                _ => ensure!(at.is_dir(), "{} is no folder", at.display()),
            }
            return Ok(at.clone());
        }
        let folder = self.folder(name)?;
        if volume["configMap"].is_object() {
            for (file, text) in self.data("ConfigMap", &volume["configMap"]["name"], &volume["configMap"])? {
                self.write(&folder.join(file), text.as_str().unwrap_or_default(), None)?;
            }
        } else if volume["secret"].is_object() {
            let mode = volume["secret"]["defaultMode"].as_u64();
            for (file, text) in self.data("Secret", &volume["secret"]["secretName"], &volume["secret"])? {
                let bytes = STANDARD.decode(text.as_str().unwrap_or_default())?;
                self.write(&folder.join(file), std::str::from_utf8(&bytes)?, mode)?;
            }
        } else {
            let source = &volume["projected"]["sources"][0]["serviceAccountToken"];
            let (Some(audience), Some(path)) = (source["audience"].as_str(), source["path"].as_str()) else {
                bail!("of a kind that the harness does not know: {volume}");
            };
            self.write(&folder.join(path), &self.token(&[audience])?, None)?;
        }
        Ok(folder)
    }

    fn data(&self, kind: &str, name: &Value, source: &Value) -> Result<serde_json::Map<String, Value>> {
        let name = name.as_str().context("no name")?;
        match self.api.get(kind, self.namespace, name) {
            Some(object) => object["data"].as_object().cloned().with_context(|| format!("{kind} {name} is empty")),
            None if source["optional"] == true => Ok(serde_json::Map::new()),
            None => bail!("there is no {kind} {name}"),
        }
    }

    fn token(&self, audiences: &[&str]) -> Result<String> {
        let account = self.spec["serviceAccountName"].as_str().context("the pod names no account")?;
        self.api.issue_token(self.namespace, account, audiences, Some(self.pod), Duration::from_secs(3600))
    }

    fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder.join(name);
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// In one step for whoever reads it. It is the pod's group's, if it has one, else its user's alone.
    fn write(&self, path: &Path, text: &str, mode: Option<u64>) -> Result<()> {
        let id = |field: &str| self.spec["securityContext"][field].as_u64().map(|id| id as u32);
        let (owner, group) = (id("runAsUser"), id("fsGroup"));
        let mode = mode.unwrap_or(if group.is_some() { 0o640 } else { 0o600 });
        let draft = path.with_extension("draft");
        fs::write(&draft, text)?;
        chown(&draft, if group.is_some() { None } else { owner }, group)?;
        fs::set_permissions(&draft, fs::Permissions::from_mode(u32::try_from(mode)?))?;
        fs::rename(&draft, path).with_context(|| format!("cannot put {}", path.display()))
    }
}
