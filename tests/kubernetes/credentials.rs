//! Kubelets that ask for credentials before a pod uses an image that is there (KEP-2535).
