//! Names by content: what the kernel's maps call an identity and a set of rules (decision 0004).

use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use mesh_common::key::Digest;
use mesh_common::value::{BROKEN_POLICY, NO_POLICY};

use crate::model::identity::Identity;
use crate::model::policy::Policy;

/// The name of an identity.
pub(super) fn of_identity(identity: &Identity) -> Digest {
    of(&identity.to_string())
}

/// The name of the rules that select a workload, in their order; [`NO_POLICY`] when there are none.
pub(super) fn of_policies(policies: &[Arc<Policy>], trust_domain: &str) -> Digest {
    if policies.is_empty() {
        return NO_POLICY;
    }
    // The trust domain is part of what a rule means: service accounts and namespaces are of the local one.
    of(&format!("{trust_domain}\n{policies:?}"))
}

fn of(text: &str) -> Digest {
    let mut context = Context::new(&SHA256);
    context.update(text.as_bytes());
    let mut digest = [0; 16];
    for (to, from) in digest.iter_mut().zip(context.finish().as_ref()) {
        *to = *from;
    }
    debug_assert!(digest != NO_POLICY && digest != BROKEN_POLICY, "2^-127");
    digest
}
