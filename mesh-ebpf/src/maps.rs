//! The maps, and the few operations on them that more than one program needs.
//!
//! Socket storage exists as BTF maps only; the others use legacy definitions, which aya pins by name.

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, bpf_sock};
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::generated::{bpf_sk_storage_delete, bpf_sk_storage_get};
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SockHash};
use mesh_common::counter::{COUNT, Counter};
use mesh_common::key::{
    CidrKey, EndpointKey, FlowKey, Ip, KnownKey, ListenerKey, OrigKey, PlainKey, PolicyKey, PortKey, ServiceKey,
};
use mesh_common::limits;
use mesh_common::tag::Reference;
use mesh_common::value::{
    AdmittedValue, Asked, EndpointValue, FlowValue, MeshIpValue, OrigDst, PORT_UNREAD, PlainValue, PodValue,
    PolicyValue, PortRule, ServiceValue, ShareValue, ToldValue,
};

#[map(name = "pods")]
pub static PODS: HashMap<u64, Reference> = HashMap::with_max_entries(limits::PODS, 0);
#[map(name = "pod_facts")]
pub static POD_FACTS: Array<PodValue> = Array::with_max_entries(limits::POD_FACTS, 0);
#[map(name = "services")]
pub static SERVICES: HashMap<ServiceKey, Reference> = HashMap::with_max_entries(limits::SERVICES, BPF_F_NO_PREALLOC);
#[map(name = "service_facts")]
pub static SERVICE_FACTS: HashMap<u32, ServiceValue> =
    HashMap::with_max_entries(limits::SERVICE_FACTS, BPF_F_NO_PREALLOC);
#[map(name = "endpoints")]
pub static ENDPOINTS: HashMap<EndpointKey, EndpointValue> =
    HashMap::with_max_entries(limits::ENDPOINTS, BPF_F_NO_PREALLOC);
#[map(name = "policy")]
pub static POLICY: HashMap<PolicyKey, PolicyValue> = HashMap::with_max_entries(limits::POLICY, BPF_F_NO_PREALLOC);
#[map(name = "shares")]
pub static SHARES: HashMap<u64, ShareValue> = HashMap::with_max_entries(limits::PODS, 0);
#[map(name = "mesh_ips")]
pub static MESH_IPS: HashMap<Ip, MeshIpValue> = HashMap::with_max_entries(limits::MESH_IPS, BPF_F_NO_PREALLOC);
#[map(name = "port_rules")]
pub static PORT_RULES: HashMap<PortKey, PortRule> = HashMap::with_max_entries(limits::PORT_RULES, BPF_F_NO_PREALLOC);
#[map(name = "excluded_cidrs")]
pub static EXCLUDED_CIDRS: LpmTrie<CidrKey, u32> = LpmTrie::with_max_entries(limits::EXCLUDED_CIDRS, BPF_F_NO_PREALLOC);
#[map(name = "admitted")]
pub static ADMITTED: HashMap<ServiceKey, AdmittedValue> =
    HashMap::with_max_entries(limits::ADMITTED, BPF_F_NO_PREALLOC);
#[map(name = "told")]
pub static TOLD: HashMap<u64, ToldValue> = HashMap::with_max_entries(limits::PODS, 0);
#[map(name = "known")]
pub static KNOWN: LruHashMap<KnownKey, u32> = LruHashMap::with_max_entries(limits::KNOWN, 0);
/// For whoever asks who comes without proof: nothing is decided by it.
#[map(name = "plain")]
pub static PLAIN: LruHashMap<PlainKey, PlainValue> = LruHashMap::with_max_entries(limits::PLAIN, 0);
#[map(name = "flows")]
pub static FLOWS: HashMap<FlowKey, FlowValue> = HashMap::with_max_entries(limits::FLOWS, BPF_F_NO_PREALLOC);
#[map(name = "orig_dsts")]
pub static ORIG_DSTS: HashMap<OrigKey, OrigDst> = HashMap::with_max_entries(limits::ORIG_DSTS, BPF_F_NO_PREALLOC);
#[map(name = "listeners")]
pub static LISTENERS: SockHash<ListenerKey> = SockHash::with_max_entries(limits::LISTENERS, 0);
/// On this CPU a guard is looking for a socket, and no packet for its listener.
#[map(name = "seeks")]
pub static SEEKS: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);
#[map(name = "stats")]
pub static STATS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNT, 0);
#[map(name = "events")]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(limits::EVENT_BYTES, 0);

/// Shows that the programs of the twin run: one count for all their ways out.
#[cfg(feature = "twin")]
#[map(name = "twin")]
pub static TWIN: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// What the client's socket was connected to.
#[btf_map]
pub static ASKED: SkStorage<Asked> = SkStorage::new();
/// Where the application asked to go, on the socket that the agent accepted.
#[btf_map]
pub static ACCEPTED: SkStorage<OrigDst> = SkStorage::new();
/// Written by the agent on its own sockets, between `socket()` and `connect()`.
#[btf_map]
pub static AGENT_SK: SkStorage<u32> = SkStorage::new();

const CREATE: u64 = 1; // BPF_SK_STORAGE_GET_F_CREATE

/// Socket storage from any program type: aya's own methods take a `SockAddrContext` only.
pub trait Storage<T> {
    /// The value on `sk`, if there is one.
    fn on(&self, sk: *mut bpf_sock) -> Option<&mut T>;
    /// The value on `sk`, zeroed when new; `None` when the kernel has no memory for it.
    fn on_or_new(&self, sk: *mut bpf_sock) -> Option<&mut T>;
    /// Takes the value away.
    fn clear(&self, sk: *mut bpf_sock);
}

impl<T> Storage<T> for SkStorage<T> {
    #[inline(always)]
    fn on(&self, sk: *mut bpf_sock) -> Option<&mut T> {
        let map = core::ptr::from_ref(self).cast_mut().cast();
        // SAFETY: the kernel checks map, socket and flags; the value lives as long as the socket.
        unsafe { bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), 0).cast::<T>().as_mut() }
    }

    #[inline(always)]
    fn on_or_new(&self, sk: *mut bpf_sock) -> Option<&mut T> {
        let map = core::ptr::from_ref(self).cast_mut().cast();
        // SAFETY: as above.
        unsafe { bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), CREATE).cast::<T>().as_mut() }
    }

    #[inline(always)]
    fn clear(&self, sk: *mut bpf_sock) {
        let map = core::ptr::from_ref(self).cast_mut().cast();
        // SAFETY: as above. A missing value is not an error here.
        let _ = unsafe { bpf_sk_storage_delete(map, sk.cast()) };
    }
}

/// Counts one way out.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(slot) = STATS.get_ptr_mut(counter as u32) {
        // SAFETY: a per-CPU slot, and the program is not preempted by itself.
        unsafe { *slot += 1 };
    }
    #[cfg(feature = "twin")]
    if let Some(slot) = TWIN.get_ptr_mut(0) {
        // SAFETY: as above.
        unsafe { *slot += 1 };
    }
}

/// How often a word is looked up that turns out to be another key's: the new one is in the map by then.
const TRIES: u32 = 3;

/// What became of a look-up.
pub enum Read<T> {
    Found(T),
    Missing,
    /// Another's, each time: neither there nor not there.
    Foreign,
}

/// What `open` finds in the word of `key`.
#[inline(always)]
fn tagged<K, V>(map: &HashMap<K, V>, key: &K, open: impl Fn(V, &K) -> Option<u32>) -> Read<u32> {
    for _ in 0..TRIES {
        let Some(at) = map.get_ptr(key) else {
            return Read::Missing;
        };
        // SAFETY: a live map value; one aligned word, read once.
        if let Some(found) = open(unsafe { at.read_volatile() }, key) {
            return Read::Found(found);
        }
    }
    count(Counter::EntryForeign);
    Read::Foreign
}

/// Facts that a word has named: when they are not there, neither is it known that there are none.
#[inline(always)]
fn named<T>(facts: Option<T>) -> Read<T> {
    if facts.is_none() {
        count(Counter::EntryForeign);
    }
    facts.map_or(Read::Foreign, Read::Found)
}

/// What is known of the pod with this netns.
#[inline(always)]
pub fn pod(netns_cookie: u64) -> Read<&'static PodValue> {
    match tagged(&PODS, &netns_cookie, Reference::open) {
        Read::Found(number) => named(POD_FACTS.get(number)),
        Read::Missing => Read::Missing,
        Read::Foreign => Read::Foreign,
    }
}

/// What is known of a virtual address and port.
#[inline(always)]
pub fn service(key: &ServiceKey) -> Read<&'static ServiceValue> {
    match tagged(&SERVICES, key, Reference::open) {
        // SAFETY: facts never change, and go a second after the last word that names them.
        Read::Found(number) => named(unsafe { SERVICE_FACTS.get(number) }),
        Read::Missing => Read::Missing,
        Read::Foreign => Read::Foreign,
    }
}

/// The rule of a port; [`PORT_UNREAD`] when it is another's each time.
#[inline(always)]
pub fn port_rule(netns_cookie: u64, port: u16, direction: u16) -> Option<u32> {
    let key = PortKey { netns_cookie, port, direction, pad: 0 };
    match tagged(&PORT_RULES, &key, PortRule::open) {
        Read::Found(rule) => Some(rule),
        Read::Missing => None,
        Read::Foreign => Some(PORT_UNREAD),
    }
}

/// Adds to a pod's count of records, atomically: its connections are opened and closed on every CPU.
#[inline(always)]
pub fn share(netns_cookie: u64, change: i64) {
    if let Some(share) = SHARES.get_ptr_mut(netns_cookie) {
        // SAFETY: a live map value, 8-byte aligned; BPF_STX | BPF_ATOMIC, the only atomic addition of this target:
        // `core` has none without compare-and-swap.
        unsafe {
            core::arch::asm!(
                "lock *(u64 *)({records} + 0) += {change}",
                records = in(reg) &raw mut (*share).records,
                change = in(reg) change,
            );
        }
    }
}

/// Adds one to a word of a map value, atomically, as [`share`] does.
///
/// # Safety
/// `word` points into a live map value and is aligned.
#[inline(always)]
pub unsafe fn increment(word: *mut u64) {
    // SAFETY: the caller's.
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({word} + 0) += {one}",
            word = in(reg) word,
            one = in(reg) 1_u64,
        );
    }
}

/// Tells user space of a refusal or of an end.
#[inline(always)]
pub fn report<E: 'static>(event: &E) {
    if EVENTS.output::<E>(event, 0).is_err() {
        count(Counter::EventLost);
    }
}
