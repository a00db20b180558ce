//! Whatever a map lacks, or cannot take, a strict pod is reached by nobody whom its rules do not allow, and what may
//! not leave does not: each refusal is counted. One row at least for every map of the kernel half.

mod agent;
mod neighbours;
mod outside;

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use aya::maps::{MapData, SkStorage};
use mesh_agent::model::workload::PeerMode;
use mesh_common::counter::Counter;
use mesh_tests::bpf;
use mesh_tests::pod::Pod;

use crate::bench::*;
use crate::pair::*;

/// One way in which a map fails: takes it out of order, sees what must be refused refused and counted, and puts it in
/// order again.
struct Row<S> {
    map: &'static str,
    what: &'static str,
    fails: fn(&mut Bench, &S) -> Result<()>,
}

impl<S> Row<S> {
    const fn new(map: &'static str, what: &'static str, fails: fn(&mut Bench, &S) -> Result<()>) -> Self {
        Self { map, what, fails }
    }
}

/// Runs all rows on one node; `well` is what is let through while nothing fails.
fn each_fails_closed<S>(rows: &[Row<S>], bench: &mut Bench, scene: &S, well: impl Fn(&S) -> Result<()>) -> Result<()> {
    let mut open = Vec::new();
    for Row { map, what, fails } in rows {
        well(scene).with_context(|| format!("before {map}: {what}"))?;
        open.extend(fails(bench, scene).err().map(|error| format!("{map}, {what}: {error:#}")));
    }
    well(scene).context("after every row")?;
    ensure!(open.is_empty(), "{open:#?}");
    Ok(())
}

#[test]
fn every_map_of_the_kernel_half_has_a_row() -> Result<()> {
    let rows = neighbours::ROWS.iter().map(|row| row.map);
    let rows = rows.chain(agent::ROWS.iter().map(|row| row.map)).chain(outside::ROWS.iter().map(|row| row.map));
    let rows: BTreeSet<String> = rows.map(str::to_owned).collect();
    node(|bench| {
        let pod = bench.pod("pod")?;
        let _enrolled = bench.enrol(captured_workload(&pod, PeerMode::Strict))?;
        let mut maps = BTreeSet::new();
        for folder in bpf::pins(&bench.pins())? {
            let name = folder.file_name().to_string_lossy().into_owned();
            if name.starts_with("maps-") || name.starts_with("records-") {
                maps.extend(
                    bpf::pins(&folder.path())?.iter().map(|pin| pin.file_name().to_string_lossy().into_owned()),
                );
            }
        }
        assert_eq!(maps, rows);
        Ok(())
    })
}

/// Wants `refusal`, counted by each of `exits`.
fn counted(bench: &mut Bench, exits: &[Counter], refusal: impl FnOnce() -> Result<()>) -> Result<()> {
    let before: Vec<u64> = exits.iter().map(|exit| bench.count(*exit)).collect();
    refusal()?;
    for (exit, before) in exits.iter().zip(before) {
        ensure!(bench.count(*exit) > before, "not counted as {}", exit.as_str());
    }
    Ok(())
}

/// Wants a refusal of a connection to `to`, counted by each of `exits`.
fn refuses(bench: &mut Bench, from: &Pod, to: SocketAddr, exits: &[Counter]) -> Result<()> {
    counted(bench, exits, || refused(from, to))
}

/// Runs `meanwhile` without those entries of a map whose keys are `wanted`.
fn without<K: aya::Pod, V: aya::Pod>(
    bench: &mut Bench,
    name: &str,
    wanted: impl Fn(&K) -> bool,
    meanwhile: impl FnOnce(&mut Bench) -> Result<()>,
) -> Result<()> {
    let mut map = map::<K, V>(bench, name)?;
    let mut taken: Vec<(K, V)> = map.iter().collect::<Result<_, _>>()?;
    taken.retain(|(key, _)| wanted(key));
    ensure!(!taken.is_empty(), "it had no such entry before");
    taken.iter().try_for_each(|(key, _)| map.remove(key))?;
    let outcome = meanwhile(bench);
    taken.iter().try_for_each(|(key, value)| map.insert(key, value, 0))?;
    outcome
}

/// Runs `meanwhile` with other values in those entries of a map whose keys are `wanted`.
fn with_another<K: aya::Pod, V: aya::Pod>(
    bench: &mut Bench,
    name: &str,
    wanted: impl Fn(&K) -> bool,
    value: impl Fn(&K) -> V,
    meanwhile: impl FnOnce(&mut Bench) -> Result<()>,
) -> Result<()> {
    let mut map = map::<K, V>(bench, name)?;
    let mut taken: Vec<(K, V)> = map.iter().collect::<Result<_, _>>()?;
    taken.retain(|(key, _)| wanted(key));
    ensure!(!taken.is_empty(), "it had no such entry before");
    taken.iter().try_for_each(|(key, _)| map.insert(key, value(key), 0))?;
    let outcome = meanwhile(bench);
    taken.iter().try_for_each(|(key, value)| map.insert(key, value, 0))?;
    outcome
}

/// Runs `meanwhile` with a map that has room for nothing more: entries of `filler`, of which nobody has use.
fn full<K: aya::Pod, V: aya::Pod>(
    bench: &mut Bench,
    name: &str,
    capacity: u32,
    filler: impl Fn(u32) -> (K, V),
    meanwhile: impl FnOnce(&mut Bench) -> Result<()>,
) -> Result<()> {
    let mut map = map::<K, V>(bench, name)?;
    let filled = (0..=capacity).find(|n| {
        let (key, value) = filler(*n);
        map.insert(key, value, 0).is_err()
    });
    let filled = filled.context("it takes more than its capacity")?;
    let outcome = meanwhile(bench);
    (0..filled).try_for_each(|n| map.remove(&filler(n).0))?;
    outcome
}

fn any<K>(_: &K) -> bool {
    true
}

/// An address that is nobody's, another one for each number.
fn nobody(number: u32) -> [u8; 16] {
    let mut ip = [0xee; 16];
    ip[..4].copy_from_slice(&number.to_ne_bytes());
    ip
}

/// Takes what a socket storage holds of `socket`.
fn forget<V: aya::Pod>(bench: &Bench, storage: &str, socket: &impl std::os::fd::AsRawFd) -> Result<()> {
    let mut storage: SkStorage<MapData, V> = pinned(bench, storage)?;
    Ok(storage.remove(socket)?)
}
