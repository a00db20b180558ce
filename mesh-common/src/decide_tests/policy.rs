//! What the entries of the policy map allow.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

struct Table(HashMap<(u8, u8, u16), u32>);

impl PolicyView for Table {
    fn policy(&self, key: &PolicyKey) -> Option<u32> {
        self.0.get(&(key.policy[0], key.identity[0], key.port)).copied()
    }
}

proptest! {
    /// Only an entry that says so allows, the port's own before that of any port; all else refuses.
    #[test]
    fn nothing_is_allowed_without_an_entry_that_says_so(
        entries in proptest::collection::hash_map((1u8..4, 0u8..3, 0u16..4), 0u32..6, 0..20),
        policy in 0u8..4, identity in 0u8..3, port in 1u16..4,
    ) {
        let entry = |port| entries.get(&(policy, identity, port)).copied();
        let own = entry(port).or_else(|| entry(ANY_PORT));
        let expected = match own {
            _ if policy == 0 => Verdict::Allow,
            Some(POLICY_ALLOW) => Verdict::Allow,
            Some(POLICY_AGENT) => Verdict::Agent,
            _ => Verdict::Deny,
        };
        prop_assert_eq!(verdict(&[policy; 16], &[identity; 16], port, &Table(entries)), expected);
    }
}
