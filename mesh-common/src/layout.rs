//! What of the maps must be the same in two builds for one to go on with the other's records.
//!
//! Records are of connections: they must outlive a change of programs, so a successor takes them over as they lie.
//! [`RECORDS`] names their layout and their words; it is part of the path under which they are pinned, so that
//! programs which would read something else into them never see them.

use core::mem::offset_of;

use crate::counter::Counter;
use crate::key::{FlowKey, KnownKey, LISTENER_OUTBOUND, LISTENER_PLAINTEXT, LISTENER_TUNNEL, ListenerKey, OrigKey};
use crate::limits;
use crate::value::{
    AGENT_DELIVERY, AGENT_UPSTREAM, Asked, CLIENT_CLOSED, ClosedEvent, Event, FLOW_DELIVERY, FLOW_NATIVE, FLOW_PROBE,
    FLOW_SELF, FlowValue, LANE_CAPTURED, LANE_CAPTURED_REST, LANE_FALLBACK, LANE_NATIVE, LIVE, OrigDst, SERVER_CLOSED,
    ShareValue, UNDER_WAY,
};

/// To be raised when a field or a word comes to mean something else, and nothing that is hashed below shows it: how
/// an identity becomes a digest, for one.
const MEANING: u64 = 1;

/// Equal in two builds exactly when each understands the records that the other writes.
pub const RECORDS: u64 = {
    let mut hash = fold(0xcbf2_9ce4_8422_2325, &[MEANING]);
    hash = fold(hash, &FIELDS_OF_KEYS);
    hash = fold(hash, &FIELDS_OF_VALUES);
    hash = fold(hash, &FIELDS_OF_EVENTS);
    hash = fold(hash, &CAPACITIES);
    fold(hash, &WORDS)
};

/// Size of a type and the place of each of its fields; does not compile when one is missing.
macro_rules! fields {
    ($type:ident: $($field:ident)*) => {{
        const _: fn(&$type) = |whole| {
            let $type { $($field: _),* } = whole;
        };
        fold(0, &[size_of::<$type>() as u64 $(, offset_of!($type, $field) as u64)*])
    }};
}

const FIELDS_OF_KEYS: [u64; 4] = [
    fields!(FlowKey: client_ip server_ip client_port server_port),
    fields!(OrigKey: netns_cookie ip port capture_port pad),
    fields!(ListenerKey: netns_cookie kind pad),
    fields!(KnownKey: netns_cookie ip port own_port pad),
];

const FIELDS_OF_VALUES: [u64; 4] = [
    fields!(FlowValue: netns_cookie server_cookie started_ns identity orig_port kind stage orig_ip),
    fields!(OrigDst: ip port lane),
    fields!(Asked: orig pad server_cookie),
    fields!(ShareValue: records),
];

const FIELDS_OF_EVENTS: [u64; 2] = [
    fields!(Event: netns_cookie peer_ip local_ip peer_port local_port counter peer_cookie),
    fields!(ClosedEvent: flow sent received duration_ns key srtt_us retransmits failed),
];

const CAPACITIES: [u64; 6] = [
    limits::FLOWS as u64,
    limits::ORIG_DSTS as u64,
    limits::PODS as u64,
    limits::LISTENERS as u64,
    limits::EVENT_BYTES as u64,
    limits::KNOWN as u64,
];

/// Numbers that are written into records, or by which they are found.
const WORDS: [u64; 37] = [
    LANE_CAPTURED as u64,
    LANE_FALLBACK as u64,
    LANE_NATIVE as u64,
    LANE_CAPTURED_REST as u64,
    FLOW_DELIVERY as u64,
    FLOW_SELF as u64,
    FLOW_NATIVE as u64,
    FLOW_PROBE as u64,
    UNDER_WAY as u64,
    LIVE as u64,
    CLIENT_CLOSED as u64,
    SERVER_CLOSED as u64,
    AGENT_UPSTREAM as u64,
    AGENT_DELIVERY as u64,
    LISTENER_OUTBOUND as u64,
    LISTENER_TUNNEL as u64,
    LISTENER_PLAINTEXT as u64,
    limits::CAPTURE_PORT_FIRST as u64,
    limits::CAPTURE_PORTS as u64,
    limits::TUNNEL_PORT as u64,
    // Those that are told in an `Event`.
    Counter::ConnectDenied as u64,
    Counter::LookupDenied as u64,
    Counter::LookupAgentPort as u64,
    Counter::LookupNoListener as u64,
    Counter::LookupStrict as u64,
    Counter::LookupNoPod as u64,
    Counter::ConnectEgress as u64,
    Counter::ConnectUdpEgress as u64,
    Counter::SendmsgEgress as u64,
    Counter::LookupUdpStrict as u64,
    Counter::GuardNoPod as u64,
    Counter::GuardUnreadable as u64,
    Counter::GuardProtocol as u64,
    Counter::GuardSource as u64,
    Counter::GuardOutside as u64,
    Counter::GuardNoSocket as u64,
    Counter::GuardStrict as u64,
];

/// FNV-1a, a word at a time.
const fn fold(mut hash: u64, words: &[u64]) -> u64 {
    let mut rest = words;
    while let [word, more @ ..] = rest {
        hash = (hash ^ *word).wrapping_mul(0x0100_0000_01b3);
        rest = more;
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_and_its_place_count() {
        assert_ne!(fold(1, &[2, 3]), fold(1, &[3, 2]));
        assert_ne!(fold(1, &[2, 3]), fold(1, &[2, 3, 0]));
        assert_ne!(fold(fold(1, &[2]), &[3]), fold(fold(1, &[3]), &[2]));
    }
}
