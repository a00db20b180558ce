//! Sources of Kubernetes objects → model → snapshot.
