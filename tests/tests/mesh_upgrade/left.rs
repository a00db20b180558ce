//! What lies pinned of one instance.

use std::path::PathBuf;

use anyhow::{Context, Result};
use aya::maps::{Map, MapData, PerCpuArray};
use mesh_tests::mesh::{ENDS_WITHIN, Mesh};
use mesh_tests::topology::Side;
use mesh_tests::{bpf, wait};

/// The instance's directory.
pub fn root(mesh: &Mesh, side: Side) -> Result<PathBuf> {
    let entries = bpf::pins(mesh.node(side).bpffs())?;
    Ok(entries.first().context("nothing is pinned")?.path())
}

/// The directories of maps whose names begin with `prefix`.
pub fn folders(mesh: &Mesh, side: Side, prefix: &str) -> Result<Vec<PathBuf>> {
    let entries = bpf::pins(&root(mesh, side)?)?.into_iter();
    Ok(entries.filter(|e| e.file_name().to_string_lossy().starts_with(prefix)).map(|e| e.path()).collect())
}

/// Waits until the maps of one agent are pinned and no others.
pub fn one_agents_pins(mesh: &Mesh, side: Side) -> Result<()> {
    wait::until("the maps of earlier agents are gone", ENDS_WITHIN, || {
        let all = [folders(mesh, side, "maps-")?, folders(mesh, side, "records-")?];
        wait::holds(all.iter().all(|folders| folders.len() == 1), || format!("{all:?}"))
    })
}

/// Whether the twin's programs have decided on connections since they were loaded.
pub fn twin_runs(mesh: &Mesh, side: Side) -> Result<bool> {
    for folder in folders(mesh, side, "maps-")? {
        let pin = folder.join("twin");
        if pin.exists() {
            let counts: PerCpuArray<MapData, u64> = Map::from_map_data(MapData::from_pin(pin)?)?.try_into()?;
            return Ok(counts.get(&0, 0)?.iter().any(|count| *count > 0));
        }
    }
    Ok(false)
}
