//! Capacities of the kernel maps, each with its reason and its memory cost.
//!
//! Cost of an entry = key + value + about 64 bytes of bucket and element header. Only `pods` and what hangs on it is
//! preallocated; all else takes memory for what is in it. An insertion that fails, because a map is full or memory
//! short, refuses its connection and is counted.

/// Pods of one node. Kubernetes' default is 110, the largest providers allow 250. Preallocated, 80 KiB.
pub const PODS: u32 = 1_024;

/// What is known of them, and of as many again three times over: so many changes need no waiting for readers.
/// Preallocated, 288 KiB.
pub const POD_FACTS: u32 = PODS * 4;

/// Virtual addresses × ports. 10,000 services of two families and some ports. 92 B each, when used.
pub const SERVICES: u32 = 65_536;

/// What is known of them: as many, and as much again while they change. 96 B each, when used.
pub const SERVICE_FACTS: u32 = SERVICES * 2;

/// Captured pods of the whole mesh, both families. 88 B each, when used.
pub const MESH_IPS: u32 = 131_072;

/// Per-port rules (exclusions, peer modes) of one node's pods. 84 B each, when used.
pub const PORT_RULES: u32 = 16_384;

/// Excluded CIDRs of one node's pods. Allocated on use.
pub const EXCLUDED_CIDRS: u32 = 4_096;

/// Local endpoints of services: 10,000 services with one captured pod of this node each, in both families, and as
/// much again while lists change. 104 B each.
pub const ENDPOINTS: u32 = 65_536;

/// Rules × identities of one node × ports that the rules name. 104 B each.
pub const POLICY: u32 = 262_144;

/// Connections between their SYN and the moment both sides know them, and native ones for as long as they live. 164 B
/// each.
pub const FLOWS: u32 = 524_288;

/// Captured connections between SYN and acceptance: short-lived. 116 B each.
pub const ORIG_DSTS: u32 = 524_288;

/// Records that one pod may have in [`FLOWS`] and [`ORIG_DSTS`] together: a sixteenth, so that a pod that opens
/// connections to nowhere takes nothing from fifteen neighbours that do the same. More than the 28,232 connections that
/// one address pair can have.
pub const RECORDS_PER_POD: i64 = 32_768;

/// Destinations outside the mesh that pods may reach although they refuse the rest: DNS and the API server with their
/// endpoints, UDP ports of Services, endpoints of Services without an address. 88 B each, when used.
pub const ADMITTED: u32 = 65_536;

/// Refusals of what is outside, or of UDP, that are told of one pod within a second; all are counted.
pub const TOLD_PER_SECOND: u64 = 32;

/// Connections between guarded pods and what is outside the mesh. The longest unused one makes room: its packets are
/// refused then, and no other's. 2.2 MiB, preallocated with the first guard.
pub const KNOWN: u32 = 16_384;

/// Whom pods of this node have let in without proof: source address × pod × port. The one that came longest ago makes
/// room; nothing is decided by it. 448 KiB, preallocated.
pub const PLAIN: u32 = 4_096;

/// Listening sockets of the agent: three for each pod.
pub const LISTENERS: u32 = PODS * 3;

/// Bytes of the event ring: 16,384 refusals or 7,200 ended native connections not yet read. Those are read ten times a
/// second, and at once when a quarter is full.
pub const EVENT_BYTES: u32 = 1_024 * 1_024;

/// First port of the range that captured connections are rewritten to.
///
/// Below the ephemeral range (32768…), outside the ports of other meshes (4xxx, 15xxx) and of Kubernetes
/// node ports (30000…32767).
pub const CAPTURE_PORT_FIRST: u16 = 19_600;

/// Ports in that range. One port would cap a pod at 28,232 open connections (its ephemeral ports), and at
/// 470 new ones a second when the client closes first (60 s of TIME_WAIT). Must be a power of two.
pub const CAPTURE_PORTS: u16 = 64;

/// Where the tunnel listener is (HBONE).
pub const TUNNEL_PORT: u16 = 15_008;

/// Where the listener for steered plaintext is bound; reached through `sk_lookup` only.
pub const PLAINTEXT_PORT: u16 = CAPTURE_PORT_FIRST + CAPTURE_PORTS;

/// Whether `port` belongs to the agent inside a pod: nobody may dial it without a record.
#[must_use]
pub const fn is_agent_port(port: u16) -> bool {
    port >= CAPTURE_PORT_FIRST && port <= PLAINTEXT_PORT
}

const _: () = assert!(CAPTURE_PORTS.is_power_of_two());
