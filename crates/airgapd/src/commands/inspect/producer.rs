//! Which program made a bundle, as far as its traces tell. Pure, and a guess: it is for people, and nothing depends on it.

use bundle::{Catalog, Content, Format, Manifest, Node, RawName, Warning};

/// Names the program that leaves such traces; `None` where several do, or none that is known.
pub(super) fn producer(catalog: &Catalog) -> Option<&'static str> {
    if is_ours(catalog) {
        return Some("airgapd");
    }
    match catalog.format {
        Format::DockerArchive => docker_archive(catalog),
        Format::Hybrid => Some(hybrid(catalog)),
        Format::OciLayout => layout(catalog),
    }
}

/// airgapd alone gives the full name in both annotations.
fn is_ours(catalog: &Catalog) -> bool {
    let has_both = |image: &bundle::Image| {
        let annotations = image.root.descriptor.annotations().as_ref();
        let value = |key| annotations.and_then(|annotations| annotations.get(key));
        let name = value("io.containerd.image.name");
        name.is_some_and(|name| has_host(name)) && name == value("org.opencontainers.image.ref.name")
    };
    catalog.format != Format::DockerArchive
        && !catalog.images.is_empty()
        && catalog.images.iter().all(has_both)
}

/// Docker and podman leave layers as they are; builders without a daemon compress them. podman and skopeo write names
/// in full, Docker as they are typed.
fn docker_archive(catalog: &Catalog) -> Option<&'static str> {
    if layers(catalog).any(|media_type| media_type.contains("gzip") || media_type.contains("zstd")) {
        return Some("crane, ko, kaniko, bazel or nix (a Docker archive with compressed layers)");
    }
    let tags = || {
        catalog
            .images
            .iter()
            .flat_map(|image| &image.names)
            .map(RawName::as_str)
    };
    if tags().any(|tag| tag.starts_with("docker.io/") || tag.starts_with("localhost/")) {
        return Some("podman save, buildah or skopeo (docker-archive)");
    }
    tags()
        .any(|tag| !has_host(tag))
        .then_some("docker save, before Docker 25")
}

fn hybrid(catalog: &Catalog) -> &'static str {
    let is_broken =
        |warning: &Warning| matches!(warning, Warning::OciSideBroken { .. } | Warning::IndexUnusable(_));
    if catalog.warnings.iter().any(is_broken) {
        return "docker save of Docker 25.0";
    }
    let is_flat = catalog
        .images
        .iter()
        .all(|image| matches!(image.root.content, Content::Manifest(_)));
    let is_plain = layers(catalog).all(|media_type| media_type.ends_with(".tar"));
    if is_flat && is_plain {
        "docker save, from Docker 25 on"
    } else {
        "ctr or nerdctl export, or docker save with containerd's image store"
    }
}

fn layout(catalog: &Catalog) -> Option<&'static str> {
    let annotated = |key: &str| {
        catalog.images.iter().any(|image| {
            let annotations = image.root.descriptor.annotations().as_ref();
            annotations.is_some_and(|annotations| annotations.contains_key(key))
        })
    };
    let name = catalog.images.iter().flat_map(|image| &image.names).next();
    match name {
        Some(RawName::ContainerdName(_)) if annotated("org.opencontainers.image.created") => {
            Some("docker buildx (type=oci)")
        }
        Some(RawName::ContainerdName(_)) => Some("ctr or nerdctl export"),
        Some(RawName::RefName(name)) if has_host(name) && has_absent_platforms(catalog) => {
            Some("k0s airgap bundle-artifacts")
        }
        Some(RawName::RefName(name)) if !name.contains(['/', ':']) => {
            Some("umoci, oras, buildah or skopeo (a layout with tags)")
        }
        Some(RawName::RefName(_)) => Some("skopeo or podman (oci-archive)"),
        Some(RawName::RepoTag(_)) | None => None,
    }
}

/// An index of many platforms of which the archive holds some, as a partial copy leaves it.
fn has_absent_platforms(catalog: &Catalog) -> bool {
    let is_absent = |node: &Node| matches!(node.content, Content::Absent);
    catalog.images.iter().any(|image| match &image.root.content {
        Content::Index(children) => children.iter().any(is_absent),
        _ => false,
    })
}

/// `registry.k8s.io/pause` and `localhost:5000/x`, not `busybox` or `library/busybox`.
fn has_host(name: &str) -> bool {
    name.split_once('/')
        .is_some_and(|(host, _)| host.contains(['.', ':']) || host == "localhost")
}

/// The media types of all layers.
fn layers(catalog: &Catalog) -> impl Iterator<Item = String> {
    let manifests = catalog.images.iter().flat_map(|image| manifests(&image.root));
    manifests
        .flat_map(|manifest| &manifest.layers)
        .map(|layer| layer.descriptor.media_type().to_string())
}

fn manifests(node: &Node) -> Vec<&Manifest> {
    match &node.content {
        Content::Manifest(manifest) => vec![manifest],
        Content::Index(children) => children.iter().flat_map(manifests).collect(),
        Content::Other | Content::Absent | Content::Broken(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use bundle::fixtures::{Archive, Image, Layer, Layout};
    use bundle::{Bundle, Limits};

    use super::*;

    fn of(archive: &Archive) -> Option<&'static str> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&archive.to_bytes()).unwrap();
        let bundle = Bundle::open(file.path(), &Limits::default()).unwrap();
        producer(bundle.catalog())
    }

    fn image(name: &str) -> Image {
        Image::new(name).platform("linux/amd64").layer("x")
    }

    /// What `gzip -n` makes of nothing.
    const EMPTY_GZIP: [u8; 20] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0];

    fn compressed() -> Layer {
        let plain = Layer::new("x");
        Layer::compressed(
            &plain,
            EMPTY_GZIP,
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        )
    }

    #[test]
    fn producers_are_known_by_their_traces() {
        let partial = || {
            let both = image("x")
                .platform("linux/arm64")
                .layer("y")
                .ref_name("quay.io/k0s/x:1");
            let mut archive = Layout::new().image(both).build();
            let absent = archive.images[0].manifests[1].digest.clone();
            archive.remove_blob(&absent);
            archive
        };
        let unnamed = Image::unnamed().platform("linux/amd64").layer("x");
        let table = [
            (
                "docker 24",
                Layout::docker().image(image("busybox:1")).build(),
                "before Docker 25",
            ),
            (
                "podman",
                Layout::docker().image(image("docker.io/library/x:1")).build(),
                "podman",
            ),
            (
                "crane",
                Layout::docker()
                    .image(Image::new("x:1").platform("linux/amd64").with_layer(compressed()))
                    .build(),
                "crane",
            ),
            (
                "docker 25",
                Layout::hybrid().image(image("docker.io/library/x:1")).build(),
                "from Docker 25",
            ),
            (
                "ctr",
                Layout::hybrid()
                    .image(image("x:1").platform("linux/arm64").layer("y"))
                    .build(),
                "ctr or nerdctl",
            ),
            ("k0s", partial(), "k0s airgap"),
            (
                "airgapd",
                Layout::hybrid()
                    .image(image("quay.io/x/y:1").ref_name("quay.io/x/y:1"))
                    .build(),
                "airgapd",
            ),
            (
                "skopeo",
                Layout::new()
                    .image(unnamed.clone().ref_name("quay.io/x/y:1"))
                    .build(),
                "skopeo or podman",
            ),
            (
                "umoci",
                Layout::new().image(unnamed.clone().ref_name("3.1")).build(),
                "umoci",
            ),
            (
                "buildx",
                Layout::new()
                    .image(
                        unnamed
                            .clone()
                            .containerd_name("docker.io/library/x:1")
                            .annotation("org.opencontainers.image.created", "2026-01-01T00:00:00Z"),
                    )
                    .build(),
                "buildx",
            ),
        ];
        for (case, archive, part) in table {
            let found = of(&archive).unwrap_or("nobody");
            assert!(found.contains(part), "{case}: {found}");
        }
        assert_eq!(of(&Layout::new().image(unnamed).build()), None);
    }
}
