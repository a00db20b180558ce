//! Loads, attaches and pins the eBPF programs, enrols pods: the only user of aya.
