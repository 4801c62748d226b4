//! `containerd.services.introspection.v1` and `containerd.services.version.v1`: facts about this
//! containerd.

use std::path::PathBuf;

use containerd_client::google::rpc;
use tonic::{Code, Request, Response, Status};

use crate::filters::Filters;
use crate::service::Service;
use crate::state::{State, timestamp};
use crate::wire;
use crate::wire::generated::{introspection_server::Introspection, version_server::Version};

#[tonic::async_trait]
impl Version for Service {
    async fn version(&self, request: Request<()>) -> Result<Response<wire::VersionResponse>, Status> {
        self.global("Version.Version", request, |state, ()| {
            Ok(wire::VersionResponse {
                version: state.config.version.clone(),
                revision: "fake".to_owned(),
            })
        })
        .await
    }
}

#[tonic::async_trait]
impl Introspection for Service {
    async fn server(&self, request: Request<()>) -> Result<Response<wire::ServerResponse>, Status> {
        self.global("Introspection.Server", request, |state, ()| {
            let pid = if state.version.transfer() {
                u64::from(std::process::id())
            } else {
                0
            };
            let warning = |(id, message): &(String, String)| wire::DeprecationWarning {
                id: id.clone(),
                message: message.clone(),
                last_occurrence: Some(timestamp(state.now())),
            };
            Ok(wire::ServerResponse {
                uuid: state.config.uuid.clone(),
                pid,
                deprecations: state.config.deprecations.iter().map(warning).collect(),
                ..Default::default()
            })
        })
        .await
    }

    async fn plugins(
        &self,
        request: Request<wire::PluginsRequest>,
    ) -> Result<Response<wire::PluginsResponse>, Status> {
        self.global("Introspection.Plugins", request, |state, request| {
            let filters = Filters::parse(&request.filters)?;
            let mut plugins = plugins(state);
            plugins.retain(|plugin| {
                filters.accept(|path| match path {
                    ["type"] => Some(plugin.r#type.as_str()),
                    ["id"] => Some(plugin.id.as_str()),
                    _ => None,
                })
            });
            Ok(wire::PluginsResponse { plugins })
        })
        .await
    }
}

/// Returns the plugins that an importer may look for, with the names of the emulated version.
fn plugins(state: &State) -> Vec<wire::Plugin> {
    let platform = state.config.platform.on_the_wire();
    let plugin = |kind: &str, id: &str, platforms: &[wire::Platform]| wire::Plugin {
        r#type: kind.to_owned(),
        id: id.to_owned(),
        platforms: platforms.to_vec(),
        ..Default::default()
    };
    let here = std::slice::from_ref(&platform);
    let exports = |root: &Option<PathBuf>| {
        let root = root.iter();
        root.map(|root| ("root".to_owned(), root.display().to_string()))
            .collect()
    };
    let capabilities = state.version.rebases().then_some("rebase").into_iter();
    let mut plugins = vec![
        wire::Plugin {
            exports: exports(&state.config.content_root),
            ..plugin("io.containerd.content.v1", "content", &[])
        },
        plugin("io.containerd.snapshotter.v1", "native", here),
        wire::Plugin {
            exports: exports(&state.config.snapshots_root),
            capabilities: capabilities.map(str::to_owned).collect(),
            ..plugin("io.containerd.snapshotter.v1", "overlayfs", here)
        },
        plugin("io.containerd.metadata.v1", "bolt", &[]),
        plugin("io.containerd.differ.v1", "walking", here),
        plugin("io.containerd.gc.v1", "scheduler", &[]),
        plugin("io.containerd.runtime.v2", "task", here),
    ];
    plugins.extend(
        [
            "content",
            "diff",
            "images",
            "introspection",
            "leases",
            "namespaces",
            "snapshots",
            "version",
        ]
        .map(|id| plugin("io.containerd.grpc.v1", id, &[])),
    );
    if state.version.transfer() {
        plugins.extend(["transfer", "streaming"].map(|id| plugin("io.containerd.grpc.v1", id, &[])));
    }
    if state.config.cri {
        plugins.push(plugin("io.containerd.grpc.v1", "cri", here));
        if state.version.split_cri() {
            plugins.extend(["images", "runtime"].map(|id| plugin("io.containerd.cri.v1", id, here)));
        }
    }
    // Every real installation has plugins that do not apply to it.
    let skipped = rpc::Status {
        code: Code::Unknown as i32,
        message: "skip plugin".to_owned(),
        details: Vec::new(),
    };
    plugins.push(wire::Plugin {
        init_err: Some(skipped),
        ..plugin("io.containerd.snapshotter.v1", "zfs", here)
    });
    plugins
}
