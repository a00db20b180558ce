//! Where the findings are explained, below `docs/`.

/// File and heading for the finding `name`.
pub(super) fn of(name: &str) -> &'static str {
    match name {
        "programs" | "crds" | "agents" | "api-server" => "install.md#install",
        "kernel" | "cgroup" | "btf" | "bpffs" | "verifier" | "jit" | "sock-destroy" | "membarrier" => {
            "kernels.md#when-something-is-missing"
        }
        "authority" => "identity.md#a-cluster",
        "roots" => "identity.md#roots",
        "certificates" => "identity.md#life-of-a-certificate",
        "controller" | "gateway-api" => "debugging.md#a-route-says-something-is-wrong",
        "pods" => "debugging.md#a-pod-is-not-captured",
        "objects" => "debugging.md#configuration-that-does-not-take",
        "nodes" => "install.md#rights-of-operators",
        // Capabilities, and what a container shares with its node.
        _ => "install.md#what-the-agent-may-do-on-a-node",
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// As GitHub makes them of headings.
    fn anchor(heading: &str) -> String {
        let kept = heading.trim().to_lowercase();
        kept.chars().filter(|c| c.is_alphanumeric() || " -".contains(*c)).collect::<String>().replace(' ', "-")
    }

    #[test]
    fn every_place_is_there() {
        let names = [
            "programs",
            "kernel",
            "authority",
            "roots",
            "certificates",
            "controller",
            "pods",
            "objects",
            "nodes",
            "CAP_BPF",
        ];
        for place in names.map(of) {
            let (file, wanted) = place.split_once('#').expect("an anchor");
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(file);
            let text = std::fs::read_to_string(&path).expect("the page is there");
            let mut headings =
                text.lines().filter_map(|line| Some(anchor(line.strip_prefix('#')?.trim_start_matches('#'))));
            assert!(headings.any(|heading| heading == wanted), "{place}");
        }
    }
}
