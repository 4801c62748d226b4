//! The configuration of a private containerd.

use std::path::Path;

use super::Options;

/// The paths in a configuration.
pub(super) struct Layout<'a> {
    pub(super) folder: &'a Path,
    pub(super) runc: &'a Path,
    pub(super) snapshotter: &'a str,
}

/// Returns the configuration in format version 2, which all generations read.
///
/// containerd would share some paths with the machine's own: NRI socket, CNI, registries, shims'
/// state. The configuration moves each of them to the private folder or turns the feature off.
pub(super) fn config(layout: &Layout<'_>, options: &Options) -> String {
    let Layout {
        folder,
        runc,
        snapshotter,
    } = layout;
    let (folder, runc) = (folder.display(), runc.display());
    let disabled = if options.cri {
        ""
    } else {
        r#""io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime""#
    };
    let (sandbox_image, extra) = (&options.sandbox_image, &options.extra_config);
    let discard = options.discard_unpacked_layers;
    format!(
        r#"version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = [{disabled}]

[grpc]
address = "{folder}/c.sock"

[plugins."io.containerd.internal.v1.opt"]
path = "{folder}/opt"

[plugins."io.containerd.nri.v1.nri"]
disable = true

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{sandbox_image}"
stream_server_address = "127.0.0.1"
stream_server_port = "0"
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{folder}/cni-bin"
conf_dir = "{folder}/cni"

[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{folder}/registries"

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "{snapshotter}"
default_runtime_name = "runc"
discard_unpacked_layers = {discard}

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "{runc}"
Root = "{folder}/runc"

{extra}
"#
    )
}
