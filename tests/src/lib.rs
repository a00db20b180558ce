//! Test harness: pods as network namespaces and cgroups, nodes as instances.
