//! The container image that `cargo xtask image` writes: its layout read back, each blob against its digest.
#![allow(clippy::indexing_slicing, reason = "JSON values: what is not there reads as null")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use aws_lc_rs::digest::SHA256;
use serde_json::Value;

/// The folder of the layout, beside the binary that is in it.
pub const FOLDER: &str = "image";
/// What is appended to the folder's name for the layout as one file.
pub const ARCHIVE: &str = "tar";

/// The SHA-256 of a blob.
#[derive(Debug)]
pub struct Digest {
    /// In hexadecimal: the blob's file name.
    pub hex: String,
    /// As documents name it, `sha256:…`.
    pub named: String,
}

/// The digest of `bytes`.
#[must_use]
pub fn digest(bytes: &[u8]) -> Digest {
    let hash = aws_lc_rs::digest::digest(&SHA256, bytes);
    let hex = hash.as_ref().iter().fold(String::new(), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    let named = format!("sha256:{hex}");
    Digest { hex, named }
}

/// What a container of the image runs, unless told otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageConfig {
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// `NAME=value`
    pub env: Vec<String>,
    /// `uid:gid`
    pub user: String,
}

/// An image.
#[derive(Debug)]
pub struct Image {
    /// What it runs.
    pub config: ImageConfig,
    /// Uncompressed tar archives, the lowest first.
    layers: Vec<Vec<u8>>,
}

impl Image {
    /// The image of this build: `MESH_IMAGE`, else beside the programs.
    ///
    /// # Errors
    /// When it is not there, with the way out.
    pub fn built() -> Result<Self> {
        let named = std::env::var_os("MESH_IMAGE").map(PathBuf::from);
        let folder = match named {
            Some(folder) => folder,
            None => crate::programs::sample()?.with_file_name(FOLDER),
        };
        Self::open(&folder)
            .with_context(|| format!("no image in {}: cargo xtask image --debug, or set MESH_IMAGE", folder.display()))
    }

    /// Reads a layout of one image.
    ///
    /// # Errors
    /// When something is missing, or not what its digest says.
    pub fn open(folder: &Path) -> Result<Self> {
        let index = fs::read(folder.join("index.json")).context("index.json cannot be read")?;
        let index: Value = serde_json::from_slice(&index)?;
        let manifest: Value = serde_json::from_slice(&blob(folder, &index["manifests"][0])?)?;
        let config: Value = serde_json::from_slice(&blob(folder, &manifest["config"])?)?;
        let layers = manifest["layers"].as_array().context("a manifest without layers")?;
        let layers: Vec<Vec<u8>> = layers.iter().map(|layer| blob(folder, layer)).collect::<Result<_>>()?;
        let unpacked: Vec<Value> = layers.iter().map(|layer| digest(layer).named.into()).collect();
        ensure!(config["rootfs"]["diff_ids"] == Value::Array(unpacked), "the layers are not those of the config");
        let config = &config["config"];
        let texts = |of: &Value| -> Vec<String> {
            of.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let user = config["User"].as_str().context("the image names no user")?.to_owned();
        let config = ImageConfig { entrypoint: texts(&config["Entrypoint"]), env: texts(&config["Env"]), user };
        Ok(Self { config, layers })
    }

    /// Unpacks its root file system into `folder`.
    ///
    /// # Errors
    /// What the system says.
    pub fn unpack(&self, folder: &Path) -> Result<()> {
        for layer in &self.layers {
            let mut archive = tar::Archive::new(layer.as_slice());
            archive.set_preserve_permissions(true);
            archive.unpack(folder).with_context(|| format!("cannot unpack into {}", folder.display()))?;
        }
        Ok(())
    }
}

fn blob(folder: &Path, descriptor: &Value) -> Result<Vec<u8>> {
    let named = descriptor["digest"].as_str().context("a descriptor without a digest")?;
    let hex = named.strip_prefix("sha256:").with_context(|| format!("{named} is no SHA-256"))?;
    let bytes = fs::read(folder.join("blobs/sha256").join(hex)).with_context(|| format!("no blob {named}"))?;
    ensure!(digest(&bytes).named == named, "the blob {named} is {}", digest(&bytes).named);
    ensure!(descriptor["size"] == bytes.len(), "the blob {named} has {} bytes", bytes.len());
    Ok(bytes)
}
