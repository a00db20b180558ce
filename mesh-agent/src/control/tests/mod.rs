//! The room as a whole: versions of files, time, and a real directory.

mod directory;
mod load;
mod source;
mod versions;

/// A pod of `shop`.
fn pod(name: &str, ip: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: uid-{name}}}\n\
         spec: {{nodeName: node-a}}\nstatus: {{podIP: {ip}}}\n"
    )
}

/// An `AuthorizationPolicy` of `shop`.
fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: mesh-agent.io/v1alpha1\nkind: AuthorizationPolicy\n\
         metadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
    )
}

/// A `PeerPolicy` of `shop`.
fn peer(name: &str, spec: &str) -> String {
    policy(name, spec).replace("AuthorizationPolicy", "PeerPolicy")
}
