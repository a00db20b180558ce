//! The OCI image layout of an image of one file: blobs by digest, and the index that names the manifest
//! (image-spec 1.1, `image-layout.md`).
//!
//! ```text
//! oci-layout   index.json ──► manifest ──► config    (what to run, as whom)
//! blobs/sha256/…                      └──► layer     (tar)
//! ```

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result};
use mesh_tests::image::{Digest, digest};
use serde::Serialize;
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header, HeaderMode};

/// Not compressed: see decision 0014.
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Who runs it where nobody says so: nobody of the node's.
const USER: &str = "65532:65532";

/// A stored blob, as documents refer to it.
#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: &'static str,
    digest: String,
    size: usize,
    #[serde(skip_serializing_if = "Value::is_null")]
    annotations: Value,
}

/// What goes into the image.
pub struct Image<'a> {
    /// `mesh-agent:v0.1.0`, as in `deploy/`.
    pub name: &'a str,
    /// Where the binary is, relative to the root.
    pub path: &'a str,
    /// The binary.
    pub binary: &'a [u8],
}

/// What a container of the image runs, and what is said of it.
pub fn config() -> Value {
    json!({
        "User": USER,
        "Env": ["PATH=/usr/local/bin"],
        "Entrypoint": [format!("/{}", super::BINARY)],
        "Labels": {
            "org.opencontainers.image.title": "mesh-agent",
            "org.opencontainers.image.description": "Node-level service mesh agent, its authority and its controller",
            "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
            "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
        },
    })
}

/// Writes the layout into `folder`, in place of one that is there; gives the manifest's digest.
pub fn write(folder: &Path, image: &Image<'_>) -> Result<String> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot replace {}", folder.display()))?;
    }
    fs::create_dir_all(folder.join("blobs/sha256")).with_context(|| format!("cannot make {}", folder.display()))?;
    let layer = blob(folder, LAYER, &layer(image)?)?;
    let config = json!({
        // Docker's and Go's names of architectures.
        "architecture": match std::env::consts::ARCH { "x86_64" => "amd64", "aarch64" => "arm64", other => other },
        "os": "linux",
        "config": config(),
        "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
        "history": [{"created_by": "cargo xtask image"}],
    });
    let config = blob(folder, CONFIG, config.to_string().as_bytes())?;
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]});
    let stored = blob(folder, MANIFEST, manifest.to_string().as_bytes())?;
    let digest = stored.digest.clone();
    // By the first podman and skopeo name what they read, by the second containerd does.
    let annotations = json!({
        "org.opencontainers.image.ref.name": image.name,
        "io.containerd.image.name": format!("docker.io/library/{}", image.name),
    });
    let named = Descriptor { annotations, ..stored };
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [named]});
    fs::write(folder.join("index.json"), index.to_string())?;
    fs::write(folder.join("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string())?;
    Ok(digest)
}

/// Writes a layout as one file.
pub fn archive(folder: &Path, file: &Path) -> Result<()> {
    let out = File::create(file).with_context(|| format!("cannot write {}", file.display()))?;
    let mut archive = Builder::new(out);
    archive.mode(HeaderMode::Deterministic);
    let mut names = vec!["oci-layout".to_owned(), "index.json".to_owned()];
    for entry in folder.join("blobs/sha256").read_dir()? {
        names.push(format!("blobs/sha256/{}", entry?.file_name().to_string_lossy()));
    }
    names.sort();
    for name in names {
        archive.append_path_with_name(folder.join(&name), &name)?;
    }
    archive.into_inner()?.sync_all().with_context(|| format!("cannot write {}", file.display()))
}

/// Stores a blob and gives its descriptor.
fn blob(folder: &Path, media_type: &'static str, bytes: &[u8]) -> Result<Descriptor> {
    let Digest { hex, named } = digest(bytes);
    let path = folder.join("blobs/sha256").join(hex);
    fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(Descriptor { media_type, digest: named, size: bytes.len(), annotations: Value::Null })
}

/// The folders above the binary, and the binary; everything root's, of 1970.
fn layer(image: &Image<'_>) -> Result<Vec<u8>> {
    let mut layer = Builder::new(Vec::new());
    let mut above: Vec<&Path> = Path::new(image.path).ancestors().skip(1).collect();
    above.retain(|folder| !folder.as_os_str().is_empty());
    for folder in above.into_iter().rev() {
        let name = format!("{}/", folder.display());
        layer.append_data(&mut header(EntryType::Directory, 0), name, &[][..])?;
    }
    layer.append_data(&mut header(EntryType::Regular, image.binary.len()), image.path, image.binary)?;
    layer.into_inner().context("the layer cannot be ended")
}

fn header(kind: EntryType, bytes: usize) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_size(bytes as u64);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}
