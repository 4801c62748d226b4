//! Declares the server side of containerd's services over the message types that
//! `containerd-client` and `k8s-cri` already generate. So this crate contains no `.proto` file.
//! Methods that are not declared answer `UNIMPLEMENTED`.

use std::fmt::Write as _;

use tonic_build::manual::{Builder, Method, Service};

/// The sides of a method that are streams.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Unary,
    ServerStream,
    BothStreams,
}
use Kind::{BothStreams, ServerStream, Unary};

/// Rust name, wire name, request type, response type and kind of a method.
type Row = (&'static str, &'static str, &'static str, &'static str, Kind);

const CONTENT: &[Row] = &[
    ("info", "Info", "InfoRequest", "InfoResponse", Unary),
    ("update", "Update", "UpdateRequest", "UpdateResponse", Unary),
    (
        "list",
        "List",
        "ListContentRequest",
        "ListContentResponse",
        ServerStream,
    ),
    ("delete", "Delete", "DeleteContentRequest", "Empty", Unary),
    (
        "read",
        "Read",
        "ReadContentRequest",
        "ReadContentResponse",
        ServerStream,
    ),
    ("status", "Status", "StatusRequest", "StatusResponse", Unary),
    (
        "list_statuses",
        "ListStatuses",
        "ListStatusesRequest",
        "ListStatusesResponse",
        Unary,
    ),
    (
        "write",
        "Write",
        "WriteContentRequest",
        "WriteContentResponse",
        BothStreams,
    ),
    ("abort", "Abort", "AbortRequest", "Empty", Unary),
];

const CONTAINERS: &[Row] = &[(
    "list_stream",
    "ListStream",
    "ListContainersRequest",
    "ListContainerMessage",
    ServerStream,
)];

const LEASES: &[Row] = &[
    ("create", "Create", "CreateRequest", "CreateResponse", Unary),
    ("delete", "Delete", "DeleteRequest", "Empty", Unary),
    ("list", "List", "ListRequest", "ListResponse", Unary),
    (
        "add_resource",
        "AddResource",
        "AddResourceRequest",
        "Empty",
        Unary,
    ),
    (
        "delete_resource",
        "DeleteResource",
        "DeleteResourceRequest",
        "Empty",
        Unary,
    ),
    (
        "list_resources",
        "ListResources",
        "ListResourcesRequest",
        "ListResourcesResponse",
        Unary,
    ),
];

const SNAPSHOTS: &[Row] = &[
    (
        "prepare",
        "Prepare",
        "snapshots::PrepareSnapshotRequest",
        "snapshots::PrepareSnapshotResponse",
        Unary,
    ),
    ("commit", "Commit", "CommitSnapshotRequest", "Empty", Unary),
    (
        "remove",
        "Remove",
        "snapshots::RemoveSnapshotRequest",
        "Empty",
        Unary,
    ),
    (
        "stat",
        "Stat",
        "snapshots::StatSnapshotRequest",
        "snapshots::StatSnapshotResponse",
        Unary,
    ),
    (
        "list",
        "List",
        "snapshots::ListSnapshotsRequest",
        "snapshots::ListSnapshotsResponse",
        ServerStream,
    ),
];

const DIFF: &[Row] = &[("apply", "Apply", "ApplyRequest", "ApplyResponse", Unary)];

const IMAGES: &[Row] = &[
    ("get", "Get", "GetImageRequest", "GetImageResponse", Unary),
    ("list", "List", "ListImagesRequest", "ListImagesResponse", Unary),
    (
        "create",
        "Create",
        "CreateImageRequest",
        "CreateImageResponse",
        Unary,
    ),
    (
        "update",
        "Update",
        "UpdateImageRequest",
        "UpdateImageResponse",
        Unary,
    ),
    ("delete", "Delete", "DeleteImageRequest", "Empty", Unary),
];

const NAMESPACES: &[Row] = &[
    ("get", "Get", "GetNamespaceRequest", "GetNamespaceResponse", Unary),
    (
        "list",
        "List",
        "ListNamespacesRequest",
        "ListNamespacesResponse",
        Unary,
    ),
    (
        "create",
        "Create",
        "CreateNamespaceRequest",
        "CreateNamespaceResponse",
        Unary,
    ),
];

const INTROSPECTION: &[Row] = &[
    ("plugins", "Plugins", "PluginsRequest", "PluginsResponse", Unary),
    ("server", "Server", "Empty", "ServerResponse", Unary),
];

const VERSION: &[Row] = &[("version", "Version", "Empty", "VersionResponse", Unary)];

const EVENTS: &[Row] = &[(
    "subscribe",
    "Subscribe",
    "SubscribeRequest",
    "Envelope",
    ServerStream,
)];

const CRI_IMAGE: &[Row] = &[
    (
        "list_images",
        "ListImages",
        "cri::ListImagesRequest",
        "cri::ListImagesResponse",
        Unary,
    ),
    (
        "image_status",
        "ImageStatus",
        "cri::ImageStatusRequest",
        "cri::ImageStatusResponse",
        Unary,
    ),
    (
        "pull_image",
        "PullImage",
        "cri::PullImageRequest",
        "cri::PullImageResponse",
        Unary,
    ),
    (
        "remove_image",
        "RemoveImage",
        "cri::RemoveImageRequest",
        "cri::RemoveImageResponse",
        Unary,
    ),
    (
        "image_fs_info",
        "ImageFsInfo",
        "cri::ImageFsInfoRequest",
        "cri::ImageFsInfoResponse",
        Unary,
    ),
];

const CRI_RUNTIME: &[Row] = &[(
    "version",
    "Version",
    "cri::VersionRequest",
    "cri::VersionResponse",
    Unary,
)];

/// Package, service and methods.
const SERVICES: &[(&str, &str, &[Row])] = &[
    ("containerd.services.content.v1", "Content", CONTENT),
    ("containerd.services.containers.v1", "Containers", CONTAINERS),
    ("containerd.services.leases.v1", "Leases", LEASES),
    ("containerd.services.snapshots.v1", "Snapshots", SNAPSHOTS),
    ("containerd.services.diff.v1", "Diff", DIFF),
    ("containerd.services.images.v1", "Images", IMAGES),
    ("containerd.services.namespaces.v1", "Namespaces", NAMESPACES),
    (
        "containerd.services.introspection.v1",
        "Introspection",
        INTROSPECTION,
    ),
    ("containerd.services.version.v1", "Version", VERSION),
    ("containerd.services.events.v1", "Events", EVENTS),
    ("runtime.v1", "ImageService", CRI_IMAGE),
    ("runtime.v1", "RuntimeService", CRI_RUNTIME),
];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let services: Vec<Service> = SERVICES
        .iter()
        .map(|(package, name, rows)| service(package, name, rows))
        .collect();
    Builder::new().build_client(false).compile(&services);
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR for build scripts");
    std::fs::write(format!("{out}/rpcs.rs"), rpc_names()).expect("OUT_DIR is writable");
}

fn service(package: &str, name: &str, rows: &[Row]) -> Service {
    let service = Service::builder().package(package).name(name);
    rows.iter()
        .fold(service, |service, row| service.method(method(row)))
        .build()
}

fn method((name, route, input, output, kind): &Row) -> Method {
    let method = Method::builder()
        .name(name)
        .route_name(route)
        .input_type(format!("crate::wire::{input}"))
        .output_type(format!("crate::wire::{output}"))
        .codec_path("crate::wire::Codec");
    match kind {
        Unary => method.build(),
        ServerStream => method.server_streaming().build(),
        BothStreams => method.client_streaming().server_streaming().build(),
    }
}

/// Returns every RPC as `Service.Method`, so that using a misspelt name in a test fails.
fn rpc_names() -> String {
    let names = SERVICES
        .iter()
        .flat_map(|(_, name, rows)| rows.iter().map(move |row| format!("{name}.{}", row.1)));
    let mut list = String::from("&[\n");
    for name in names {
        writeln!(list, "    {name:?},").expect("writing to a String cannot fail");
    }
    list + "]"
}
